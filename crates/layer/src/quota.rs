//! Quotas: what a tenant may take, so that the others are still served.
//!
//! Only fresh claims are held against them. Whoever is over his quota is told when to come back, and nothing is
//! claimed; his repeats are answered as ever, and what he has running finishes.
//!
//! The rate is kept as one time for each tenant, at which its bucket is full again (the generic cell rate algorithm, ITU-T
//! I.371): a bucket that is full needs no memory. Records and bytes are the store's own count.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use onceward_store::Store;
use tokio::time::Instant;

use crate::route::{Part, Routes};

/// When to come back where only the end of a record makes room.
const ROOM_AFTER: Duration = Duration::from_secs(60);

/// What one tenant may take. `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Fresh claims a second, in the long run.
    pub claims_per_second: Option<NonZeroU32>,
    /// How many of them at once; as many as in a second where `None`.
    pub burst: Option<NonZeroU32>,
    /// Records it may have: a fresh claim that would be one more is refused.
    pub live_records: Option<u64>,
    /// Bytes its records may take: at so many, fresh claims are refused.
    pub bytes: Option<u64>,
}

impl Quota {
    /// What is said here, else what `base` says.
    #[must_use]
    pub fn or(self, base: Self) -> Self {
        Self {
            claims_per_second: self.claims_per_second.or(base.claims_per_second),
            burst: self.burst.or(base.burst),
            live_records: self.live_records.or(base.live_records),
            bytes: self.bytes.or(base.bytes),
        }
    }

    /// The time that one claim takes of the bucket, and how far ahead the bucket may be taken.
    fn rate(&self) -> Option<(Duration, Duration)> {
        let rate = self.claims_per_second?;
        let each = Duration::from_secs(1) / rate.get();
        Some((each, each * self.burst.unwrap_or(rate).get()))
    }
}

/// The quotas of all tenants.
///
/// Where a store has a bound of records and routes tell tenants apart, a tenant whose quota says nothing of
/// `live_records` may have half of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Of each that is not named.
    pub each: Quota,
    /// Of those that are; where one says nothing, what `each` says counts.
    pub tenants: HashMap<String, Quota>,
}

/// Which limit a tenant has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaLimit {
    /// [`Quota::claims_per_second`].
    Rate,
    /// [`Quota::live_records`].
    Records,
    /// [`Quota::bytes`].
    Bytes,
}

impl QuotaLimit {
    pub(crate) const ALL: [Self; 3] = [Self::Rate, Self::Records, Self::Bytes];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Records => "records",
            Self::Bytes => "bytes",
        }
    }
}

/// A tenant is over its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) limit: QuotaLimit,
    /// When to come back.
    pub(crate) after: Duration,
}

/// The quotas in force, and what tenants have taken.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// None: nothing is limited.
    rules: ArcSwapOption<Rules>,
    taken: Mutex<Taken>,
    /// Somebody was refused for what its records take.
    is_short: AtomicBool,
}

#[derive(Debug)]
struct Rules {
    quotas: Quotas,
    /// For a quota that says nothing of records.
    records_max: Option<u64>,
}

impl Rules {
    fn of(&self, tenant: &str) -> Quota {
        let own = self.quotas.tenants.get(tenant).copied().unwrap_or_default();
        let quota = own.or(self.quotas.each);
        Quota { live_records: quota.live_records.or(self.records_max), ..quota }
    }
}

#[derive(Debug, Default)]
struct Taken {
    tenants: HashMap<Arc<str>, Tenant>,
    /// Beyond so many, those with nothing taken are forgotten.
    full_at: usize,
}

#[derive(Debug)]
struct Tenant {
    /// When its bucket is full again.
    full: Instant,
    /// Claims that the store may not have counted yet.
    on_the_way: u64,
}

impl Gate {
    /// Puts quotas in force. What was taken stays taken.
    pub(crate) fn set(&self, quotas: Quotas, routes: &Routes, store: &dyn Store) {
        let tells_tenants = routes.all().any(|route| !matches!(route.scope.tenant, Part::Fixed(_)));
        let records_max = store.stats().records_max.filter(|_| tells_tenants).map(|most| most.div_ceil(2));
        let limits = records_max.is_some() || quotas != Quotas::default();
        self.rules.store(limits.then(|| Arc::new(Rules { quotas, records_max })));
    }

    /// The quotas in force.
    pub(crate) fn quotas(&self) -> Quotas {
        self.rules.load().as_ref().map(|rules| rules.quotas.clone()).unwrap_or_default()
    }

    /// Takes one fresh claim of the tenant's quota, which must then be told how it ended.
    pub(crate) fn take(&self, tenant: &str, store: &dyn Store) -> Result<Claiming<'_>, Over> {
        let rules = self.rules.load();
        let Some(quota) = rules.as_ref().map(|rules| rules.of(tenant)).filter(|quota| *quota != Quota::default())
        else {
            return Ok(Claiming { gate: self, of: None });
        };
        let now = Instant::now();
        let mut taken = self.lock();
        let (name, Tenant { full, on_the_way }) = taken.tenant(tenant, now);
        if quota.live_records.is_some() || quota.bytes.is_some() {
            let usage = store.usage(tenant);
            let is_over = |limit: Option<u64>, has| limit.is_some_and(|limit| has >= limit);
            if is_over(quota.live_records, usage.records + *on_the_way) {
                self.is_short.store(true, Ordering::Relaxed);
                return Err(Over { limit: QuotaLimit::Records, after: ROOM_AFTER });
            }
            if is_over(quota.bytes, usage.bytes) {
                self.is_short.store(true, Ordering::Relaxed);
                return Err(Over { limit: QuotaLimit::Bytes, after: ROOM_AFTER });
            }
        }
        let mut cost = Duration::ZERO;
        if let Some((each, ahead)) = quota.rate() {
            let next = (*full).max(now) + each;
            if next > now + ahead {
                return Err(Over { limit: QuotaLimit::Rate, after: next - (now + ahead) });
            }
            (*full, cost) = (next, each);
        }
        *on_the_way += 1;
        Ok(Claiming { gate: self, of: Some((name, cost)) })
    }

    /// Whether a tenant was refused for what its records take, since this was asked last.
    pub(crate) fn take_short(&self) -> bool {
        self.is_short.swap(false, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn tenant(&mut self, name: &str, now: Instant) -> (Arc<str>, &mut Tenant) {
        const FEW: usize = 1024;
        if self.tenants.len() >= self.full_at.max(FEW) && !self.tenants.contains_key(name) {
            // Each of those that stay has claimed within the time of a burst.
            self.tenants.retain(|_, tenant| tenant.on_the_way > 0 || tenant.full > now);
            self.full_at = self.tenants.len() * 2;
        }
        let name = self.tenants.get_key_value(name).map_or_else(|| Arc::from(name), |(name, _)| Arc::clone(name));
        let tenant = self.tenants.entry(Arc::clone(&name)).or_insert(Tenant { full: now, on_the_way: 0 });
        (name, tenant)
    }
}

/// One claim that was taken of a quota and is on its way to the store. Dropped without a word, it is given back.
#[derive(Debug)]
pub(crate) struct Claiming<'a> {
    gate: &'a Gate,
    /// The tenant, and what of its bucket was taken.
    of: Option<(Arc<str>, Duration)>,
}

impl Claiming<'_> {
    /// The store has the record: it is spent.
    pub(crate) fn spent(mut self) {
        self.end(false);
    }

    fn end(&mut self, give_back: bool) {
        let Some((name, cost)) = self.of.take() else { return };
        if let Some(tenant) = self.gate.lock().tenants.get_mut(&name) {
            tenant.on_the_way -= 1;
            if give_back {
                tenant.full -= cost;
            }
        }
    }
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.end(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onceward_store::memory::{Bounds, Clock, Memory};

    fn gate(quotas: Quotas, store: &Memory) -> Gate {
        let gate = Gate::default();
        gate.set(quotas, &Routes::new(vec![], crate::Route::new("default")), store);
        gate
    }

    fn per_second(claims: u32, burst: u32) -> Quota {
        Quota { claims_per_second: NonZeroU32::new(claims), burst: NonZeroU32::new(burst), ..Quota::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_refilled_evenly_and_what_claimed_nothing_is_given_back() {
        let store = Memory::default();
        let acme = Quota { claims_per_second: NonZeroU32::new(100), ..Quota::default() };
        let tenants = HashMap::from([("acme".to_owned(), acme)]);
        let gate = gate(Quotas { each: per_second(10, 3), tenants }, &store);
        for _ in 0..3 {
            gate.take("umbrella", &store).expect("within the burst").spent();
        }
        let over = gate.take("umbrella", &store).expect_err("the burst is spent");
        assert_eq!(over, Over { limit: QuotaLimit::Rate, after: Duration::from_millis(100) });
        // Named, it has its own rate, and the common burst.
        for _ in 0..3 {
            gate.take("acme", &store).expect("another tenant").spent();
        }
        assert_eq!(gate.take("acme", &store).expect_err("spent").after, Duration::from_millis(10));
        tokio::time::advance(Duration::from_millis(100)).await;
        for _ in 0..5 {
            drop(gate.take("umbrella", &store).expect("given back each time"));
        }
        gate.take("umbrella", &store).expect("one was refilled").spent();
        assert!(gate.take("umbrella", &store).is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        for _ in 0..3 {
            gate.take("umbrella", &store).expect("no more than the burst is saved up").spent();
        }
        assert!(gate.take("umbrella", &store).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn claims_on_their_way_count_as_records_until_the_store_counts_them() {
        let store = Memory::default();
        let gate =
            gate(Quotas { each: Quota { live_records: Some(2), ..Quota::default() }, ..Quotas::default() }, &store);
        let (one, two) = (gate.take("acme", &store).expect("none"), gate.take("acme", &store).expect("one"));
        let over = gate.take("acme", &store).expect_err("two are on their way");
        assert_eq!((over.limit, over.after), (QuotaLimit::Records, ROOM_AFTER));
        assert!(gate.take_short() && !gate.take_short(), "told once, so that ended records are removed");
        drop(one);
        two.spent();
        assert!(gate.take("acme", &store).is_ok(), "the store has counted none");
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_bounded_store_is_left_to_others_where_tenants_are_told_apart() {
        let store = Memory::new(Bounds { records_max: 5 }, Clock::system());
        let gate = gate(Quotas::default(), &store);
        let all: Vec<_> = (0..9).map(|_| gate.take("default", &store)).collect();
        assert!(all.iter().all(Result::is_ok), "one tenant has the store for itself");
        let mut route = crate::Route::new("pay");
        route.scope.tenant = Part::Header(http::HeaderName::from_static("x-tenant"));
        gate.set(Quotas::default(), &Routes::new(vec![route], crate::Route::new("default")), &store);
        let some: Vec<_> = (0..4).map(|_| gate.take("acme", &store)).collect();
        assert_eq!(some.iter().filter(|taken| taken.is_ok()).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_with_a_full_bucket_take_no_memory() {
        let store = Memory::default();
        let gate = gate(Quotas { each: per_second(10, 3), ..Quotas::default() }, &store);
        for round in 0..10 {
            for tenant in 0..1000 {
                gate.take(&format!("{round}-{tenant}"), &store).expect("its first").spent();
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(gate.lock().tenants.len() <= 3000, "{}", gate.lock().tenants.len());
    }
}
