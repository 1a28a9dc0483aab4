//! Redis in front of a database: each route's records where it asks for them.
//!
//! - *strict*: claims and outcomes are committed in the database before anything is sent or answered (`strict`).
//! - *journaled*: in Redis, and in a local log from which the database gets them ([`journaled`](crate::journaled)).
//! - *cache*: in Redis alone.
//!
//! Each is a store of its own, and a key's record is in one of them. Where a route's durability has changed since a record
//! was made, what is asked of it goes on to the others that are in use.
//!
//! *S2*: times are those of the store that a record is in.

mod strict;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence},
};

use self::strict::Strict;
pub use self::strict::{HINT_DEADLINE, Hints, TOLD_MAX};
use crate::{
    Answer, Durabilities, Durability, FallsBack, Filter, HearsForgotten, Insert, Page, Read, Stats, Store, StoreError,
    Swept, Usage, Watch, Write, circuit::Breaker, guarded::Guarded, lists::Lists, recent::Recent, redis::Redis,
};

/// The stores of all durabilities as one, by route.
pub struct Tiered {
    strict: Strict,
    journaled: Option<Other>,
    cache: Other,
    routes: OnceLock<Arc<Durabilities>>,
    lists: Lists,
}

/// A store that not every route's records are in.
struct Other {
    store: Arc<Guarded>,
    /// Whether a record was kept in it since this process began, by a route that may do so no more.
    was_used: AtomicBool,
    /// Keys whose record was in it when it was looked at last.
    placed: Recent,
}

impl Other {
    fn new(store: Arc<Guarded>) -> Self {
        Self { store, was_used: AtomicBool::new(false), placed: Recent::default() }
    }

    fn note(&self, id: RecordId) {
        self.was_used.store(true, Ordering::Relaxed);
        self.placed.note(id);
    }
}

impl fmt::Debug for Tiered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let journaled = self.journaled.as_ref().map(|journaled| &journaled.store);
        write!(f, "Tiered({:?}, {journaled:?}, {:?})", self.strict, self.cache.store)
    }
}

impl Tiered {
    /// `hints` is what `cache` guards. All routes are strict until [`Store::keep_by_route`] says otherwise.
    #[must_use]
    pub fn new(database: Arc<Guarded>, cache: Arc<Guarded>, hints: Arc<Redis>, breaker: Breaker) -> Self {
        Self {
            strict: Strict::new(database, hints, breaker),
            journaled: None,
            cache: Other::new(cache),
            routes: OnceLock::new(),
            lists: Lists::default(),
        }
    }

    /// With a place for routes that are journaled.
    #[must_use]
    pub fn with_journaled(self, journaled: Arc<Guarded>) -> Self {
        Self { journaled: Some(Other::new(journaled)), ..self }
    }

    /// The database's guard.
    #[must_use]
    pub fn database(&self) -> &Arc<Guarded> {
        self.strict.database()
    }

    /// What came of looking for hints.
    #[must_use]
    pub fn hints(&self) -> Hints {
        self.strict.hints()
    }

    /// The database's time is not known: no hint is shown until it says so again.
    #[cfg(any(test, feature = "conformance"))]
    pub fn forget_time(&self) {
        self.strict.forget_time();
    }

    /// What is not strict, where there is such a place.
    fn other(&self, durability: Durability) -> Option<&Other> {
        match durability {
            Durability::Strict => None,
            Durability::Journaled => self.journaled.as_ref(),
            Durability::Cache => Some(&self.cache),
        }
    }

    fn store(&self, durability: Durability) -> &dyn Store {
        self.other(durability).map_or(&self.strict, |other| &*other.store)
    }

    /// Where a new record of `route` goes.
    fn of_route(&self, route: &str) -> Durability {
        self.routes.get().map_or_else(Durability::default, |routes| routes.of(route))
    }

    /// Where the record of `id` was when it was looked at last, and [`Durability::Strict`] where that is not known.
    fn placed(&self, id: &RecordId) -> Durability {
        let has = |durability: &Durability| self.other(*durability).is_some_and(|other| other.placed.has(id));
        Durability::ALL.into_iter().find(has).unwrap_or_default()
    }

    /// Whether records may be kept so.
    fn is_used(&self, durability: Durability) -> bool {
        durability == Durability::Strict
            || self.other(durability).is_some_and(|other| {
                other.was_used.load(Ordering::Relaxed) || self.routes.get().is_some_and(|routes| routes.has(durability))
            })
    }

    /// All that records may be in, `first` before the others.
    fn from(&self, first: Durability) -> impl Iterator<Item = Durability> {
        let others = Durability::ALL.into_iter().filter(move |durability| *durability != first);
        std::iter::once(first).chain(others.filter(|durability| self.is_used(*durability)))
    }

    async fn insert(&self, id: RecordId, facts: &Facts, lease: Duration) -> Result<Insert, StoreError> {
        let durability = self.of_route(&facts.route);
        if let Some(other) = self.other(durability) {
            other.note(id);
        }
        let inserted = self.store(durability).insert(id, facts, lease).await?;
        // Where its route kept it elsewhere before.
        for before in Durability::ALL.into_iter().filter(|before| *before != durability && self.is_used(*before)) {
            if let Some(other) = self.other(before) {
                other.placed.forget(&id);
            }
        }
        Ok(inserted)
    }

    /// A write of what is there already, to whichever store has the record.
    async fn write<'a>(
        &'a self,
        first: Durability,
        write: impl Fn(&'a dyn Store) -> Answer<'a, Write>,
    ) -> Result<Write, StoreError> {
        let mut absent = None;
        for durability in self.from(first) {
            match write(self.store(durability)).await? {
                lost @ Write::Lost { record: None, .. } => absent = absent.or(Some(lost)),
                written => return Ok(written),
            }
        }
        absent.ok_or_else(nowhere)
    }

    async fn get(&self, id: RecordId) -> Result<Read, StoreError> {
        let mut absent = None;
        for durability in self.from(self.placed(&id)) {
            let read = self.store(durability).get(id).await?;
            if read.record.is_some() {
                if let Some(other) = self.other(durability) {
                    other.note(id);
                }
                return Ok(read);
            }
            absent = absent.or(Some(read));
        }
        absent.ok_or_else(nowhere)
    }

    async fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Result<Page, StoreError> {
        const ORDER: [Durability; 3] = [Durability::Cache, Durability::Journaled, Durability::Strict];
        let stores = ORDER.map(|durability| self.is_used(durability).then(|| self.store(durability)));
        let (page, counts) = self.lists.page(&stores, after, limit, filter).await?;
        let mut ids = page.records.iter().map(|(id, _)| *id);
        for (durability, count) in ORDER.into_iter().zip(counts) {
            let of_this = ids.by_ref().take(count);
            match self.other(durability) {
                Some(other) => of_this.for_each(|id| other.placed.note(id)),
                None => of_this.for_each(drop),
            }
        }
        Ok(page)
    }
}

/// No store was asked, which cannot be: one always is.
fn nowhere() -> StoreError {
    StoreError::not_applied(crate::Kind::Unavailable)
}

impl Store for Tiered {
    fn kind(&self) -> &'static str {
        "tiered"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(self.insert(id, facts, lease))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        let first = match self.placed(&id) {
            Durability::Strict => self.of_route(&write.facts.route),
            placed => placed,
        };
        Box::pin(self.write(first, move |store| store.replace(id, write)))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(self.write(self.placed(&id), move |store| store.extend(id, holder, lease)))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(self.write(self.placed(&id), move |store| store.remove(id, expect)))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(self.get(id))
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        Box::pin(self.scan(after, limit, filter))
    }

    /// Of the database, what is journaled too; Redis removes by itself.
    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        Box::pin(async move {
            let of_strict = self.strict.sweep(limit, waits).await;
            let Some(journaled) = &self.journaled else { return of_strict };
            // One that fails keeps the other from nothing.
            let of_journal = journaled.store.sweep(limit, waits).await?;
            Ok(of_strict? + of_journal)
        })
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.store(self.placed(&id)).watch(id)
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        // What is journaled is told by the same Redis.
        self.cache.store.tell_forgotten(Arc::clone(&hears));
        self.strict.tell_forgotten(hears);
    }

    fn fall_back(&self, when: FallsBack) {
        // Only this one's records are in both: where another does not answer, the rest do not have what it has.
        if let Some(journaled) = &self.journaled {
            journaled.store.fall_back(when);
        }
    }

    fn keep_by_route(&self, routes: Arc<Durabilities>) {
        let _taken = self.routes.set(routes);
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        self.strict.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        self.strict.rules(policy)
    }

    fn usage(&self, tenant: &str) -> Usage {
        let others = [self.journaled.as_ref(), Some(&self.cache)].into_iter().flatten();
        others.map(|other| other.store.usage(tenant)).fold(self.strict.usage(tenant), |sum, of| Usage {
            records: sum.records + of.records,
            bytes: sum.bytes + of.bytes,
        })
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.cache.store.lost_ago()
    }

    fn stats(&self) -> Stats {
        let (mut stats, of_cache) = (self.strict.stats(), self.cache.store.stats());
        stats.concerns.extend(of_cache.concerns.into_iter().map(|concern| format!("Redis: {concern}")));
        stats.cache = of_cache.cache;
        if self.is_used(Durability::Cache) {
            stats.records += of_cache.records;
            stats.open += of_cache.open;
            stats.bytes += of_cache.bytes;
        } else if let Some(cache) = &mut stats.cache {
            // Nothing was lost that counts.
            cache.last.clear();
        }
        if self.is_used(Durability::Journaled)
            && let Some(journaled) = &self.journaled
        {
            let of_journaled = journaled.store.stats();
            stats.accepts_claims &= of_journaled.accepts_claims;
            stats.concerns.extend(of_journaled.concerns);
        }
        stats
    }
}
