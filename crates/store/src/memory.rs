//! The reference store: one process, no durability, the oracle of the others.
//!
//! It holds encoded records, so that what it returns went through the codec, and it refuses new
//! claims at its bound instead of evicting. Its clock, its incarnation, its role and its sessions
//! can be set from outside, which is how the conformance list shows that those checks come first.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onceward_core::{
    cas::{self, Expect, Replacement},
    codec::{self, DecodeError},
    key::RecordId,
    outcome::Outcome,
    record::{Facts, Fence, Micros, Record, Revision, SessionId, State, Stored},
};

use crate::{
    Answer, Filter, Insert, Kind, Page, RULES_MAX, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write,
    watch::Watchers,
};

/// How far a store's clock may be from where it was expected: beyond it, nothing is written.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2);

/// How the store tells the time.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The wall clock at the start, and the time since.
    System(tokio::time::Instant, Micros),
    /// Set from outside, in microseconds.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's.
    #[must_use]
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the store's clock")]
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self::System(tokio::time::Instant::now(), Micros::ZERO.plus(wall))
    }

    fn now(&self) -> Micros {
        match self {
            Self::System(start, at_start) => at_start.plus(start.elapsed()),
            Self::Manual(now) => Micros(now.load(Ordering::SeqCst)),
        }
    }
}

/// The bounds of a memory store.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// New claims are refused at so many records.
    pub records_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { records_max: 1_000_000 }
    }
}

/// A store in this process's memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
    /// The incarnation that this handle was opened on.
    incarnation: u64,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// Another clock that the first must agree with.
    reference: Option<Clock>,
    bounds: Bounds,
    inner: Mutex<Inner>,
    watchers: Watchers,
}

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<RecordId, Box<[u8]>>,
    /// The settled ones by their end, so that a sweep reads only what it removes.
    ends: BTreeSet<(Micros, RecordId)>,
    /// Those whose body ends before, by its end.
    body_ends: BTreeSet<(Micros, RecordId)>,
    tenants: BTreeMap<String, Usage>,
    bytes: u64,
    open: u64,
    /// Larger than the fence of every record that is gone.
    mark: Fence,
    /// Fingerprint rules by policy, the oldest first.
    rules: VecDeque<(u32, String)>,
    /// The latest time that any step saw.
    seen_until: Micros,
    incarnation: u64,
    replica: bool,
    partitions: u16,
    over: HashSet<SessionId>,
    members: Option<HashSet<SessionId>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(Bounds::default(), Clock::system())
    }
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new(bounds: Bounds, clock: Clock) -> Self {
        Self::with_reference(bounds, clock, None)
    }

    /// An empty store whose clock is held against another, as a store across a network is held
    /// against the clock of its client.
    #[must_use]
    pub fn with_reference(bounds: Bounds, clock: Clock, reference: Option<Clock>) -> Self {
        let inner = Inner { partitions: 256, ..Inner::default() };
        let shared = Shared { clock, reference, bounds, inner: Mutex::new(inner), watchers: Watchers::default() };
        Self { shared: Arc::new(shared), incarnation: 0 }
    }

    /// Another handle, opened on the store as it is now.
    ///
    /// # Errors
    /// Where the store was made with another partition count.
    pub fn reopen(&self, partitions: u16) -> Result<Self, StoreError> {
        let inner = self.lock();
        if inner.partitions != partitions {
            let said = format!("it has {} partitions, this process {partitions}", inner.partitions);
            return Err(StoreError::not_applied(Kind::Newer(said)));
        }
        Ok(Self { shared: Arc::clone(&self.shared), incarnation: inner.incarnation })
    }

    /// Loses everything but the clock, as a flush or a restart without persistence does.
    pub fn lose(&self) {
        let mut inner = self.lock();
        let next = inner.incarnation + 1;
        let seen_until = inner.seen_until;
        *inner = Inner { partitions: 256, incarnation: next, seen_until, ..Inner::default() };
    }

    /// Makes it a replica, which must not decide, or a primary again.
    pub fn set_replica(&self, replica: bool) {
        self.lock().replica = replica;
    }

    /// Declares a session over: it holds nothing and may write nothing.
    pub fn end_session(&self, session: SessionId) {
        let mut inner = self.lock();
        inner.over.insert(session);
        let ids: Vec<RecordId> = inner.records.keys().copied().collect();
        for id in ids {
            let Ok(Some(mut record)) = inner.read(&id) else { continue };
            if record.facts.session == session && record.facts.state == State::InFlight {
                inner.take(&id, &record);
                record.stored.lease_until = Micros::ZERO;
                record.stored.revision = Revision(record.stored.revision.0 + 1);
                inner.put(id, &record.stored, &record.facts);
                // Whoever waits for the holder waits for nothing.
                self.shared.watchers.wake(&id);
            }
        }
    }

    /// From now on only these sessions may claim.
    pub fn admit_only(&self, sessions: impl IntoIterator<Item = SessionId>) {
        self.lock().members = Some(sessions.into_iter().collect());
    }

    /// Flips one bit of a record, as a failing disk or a foreign writer would.
    pub fn damage(&self, id: &RecordId) {
        if let Some(byte) = self.lock().records.get_mut(id).and_then(|bytes| bytes.get_mut(codec::HEADER_BYTES)) {
            *byte ^= 1;
        }
    }

    /// Puts bytes in a record's place, as another version of this store would.
    pub fn overwrite(&self, id: &RecordId, with: &[u8]) {
        let mut inner = self.lock();
        let Some(old) = inner.records.get_mut(id).map(|bytes| std::mem::replace(bytes, with.into())) else { return };
        inner.bytes = (inner.bytes + with.len() as u64).saturating_sub(old.len() as u64);
    }

    /// A record's stored bytes.
    #[must_use]
    pub fn bytes_of(&self, id: &RecordId) -> Option<Bytes> {
        self.lock().records.get(id).map(|bytes| Bytes::copy_from_slice(bytes))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The checks that come before every step: incarnation, role, session, clock. Any of them
    /// failing means that nothing was written.
    fn enter(&self, session: Option<SessionId>) -> Result<(MutexGuard<'_, Inner>, Micros), StoreError> {
        let mut inner = self.lock();
        if inner.replica {
            return Err(StoreError::not_applied(Kind::NotPrimary));
        }
        if inner.incarnation != self.incarnation {
            return Err(StoreError::not_applied(Kind::Incarnation));
        }
        if let Some(session) = session {
            let is_member = inner.members.as_ref().is_none_or(|members| members.contains(&session));
            if !is_member {
                return Err(StoreError::not_applied(Kind::SessionOver));
            }
            inner.live(session)?;
        }
        let now = self.shared.clock.now();
        let behind = inner.seen_until.since(now);
        if behind > CLOCK_SKEW_MAX {
            let said = format!("it is {behind:?} behind what it said before");
            return Err(StoreError::not_applied(Kind::ClockSuspect(said)));
        }
        if let Some(reference) = self.shared.reference.as_ref().map(Clock::now) {
            let apart = now.since(reference).max(reference.since(now));
            if apart > CLOCK_SKEW_MAX {
                let said = format!("it is {apart:?} from this process's");
                return Err(StoreError::not_applied(Kind::ClockSuspect(said)));
            }
        }
        // S2: the store's time never goes back.
        let now = now.max(inner.seen_until);
        inner.seen_until = now;
        Ok((inner, now))
    }

    fn insert_now(&self, id: RecordId, facts: &Facts, lease: Duration) -> Result<Insert, StoreError> {
        let (mut inner, now) = self.enter(Some(facts.session))?;
        let there = inner.read(&id)?;
        let ended = match there {
            Some(record) if !record.is_expired(now) => {
                return Ok(Insert::Existing { record: Box::new(record), now });
            }
            other => other,
        };
        if ended.is_none() && inner.records.len() >= self.shared.bounds.records_max {
            return Err(StoreError::not_applied(Kind::Full));
        }
        if let Some(ended) = &ended {
            inner.take(&id, ended);
        }
        let stored = cas::inserted(lease, now, inner.mark, ended.map(|record| record.stored).as_ref());
        inner.put(id, &stored, facts);
        drop(inner);
        self.shared.watchers.wake(&id);
        Ok(Insert::Inserted { fence: stored.fence, now })
    }

    /// The shape of every conditional write: meet the record, which `step` finds taken out, or return what is there.
    fn meet(
        &self,
        id: RecordId,
        expect: Expect,
        claims_for: Option<SessionId>,
        step: impl FnOnce(&mut Inner, Record, Micros) -> Stored,
    ) -> Result<Write, StoreError> {
        let (mut inner, now) = self.enter(claims_for)?;
        let there = inner.read(&id)?.filter(|record| !record.is_expired(now));
        let Some(record) = there else { return Ok(Write::Lost { record: None, now }) };
        if !cas::is_meant(expect, &record.stored, record.facts.state) {
            return Ok(Write::Lost { record: Some(Box::new(record)), now });
        }
        if matches!(expect, Expect::Holder(_)) {
            inner.live(record.facts.session)?;
        }
        inner.take(&id, &record);
        let stored = step(&mut inner, record, now);
        drop(inner);
        self.shared.watchers.wake(&id);
        Ok(Write::Applied { fence: stored.fence, revision: stored.revision, now })
    }
}

impl Inner {
    fn read(&self, id: &RecordId) -> Result<Option<Record>, StoreError> {
        let Some(bytes) = self.records.get(id) else { return Ok(None) };
        codec::decode(&Bytes::copy_from_slice(bytes)).map(Some).map_err(|error| {
            let kind = match error {
                DecodeError::Newer(_) | DecodeError::Flags(_) => Kind::Newer(error.to_string()),
                _ => Kind::Damaged(error.to_string()),
            };
            StoreError::not_applied(kind).because(error)
        })
    }

    /// S16: a session that is over writes nothing more.
    fn live(&self, session: SessionId) -> Result<(), StoreError> {
        if self.over.contains(&session) { Err(StoreError::not_applied(Kind::SessionOver)) } else { Ok(()) }
    }

    /// Puts a record where there is none.
    fn put(&mut self, id: RecordId, stored: &Stored, facts: &Facts) {
        let mut bytes = Vec::new();
        codec::encode_parts(stored, facts, &mut bytes);
        self.bytes += bytes.len() as u64;
        self.open += u64::from(facts.state == State::InFlight);
        match self.tenants.get_mut(&facts.tenant) {
            Some(usage) => {
                usage.records += 1;
                usage.bytes += bytes.len() as u64;
            }
            None => {
                self.tenants.insert(facts.tenant.clone(), Usage { records: 1, bytes: bytes.len() as u64 });
            }
        }
        if stored.keep_until != Micros::ZERO {
            self.ends.insert((stored.keep_until, id));
        }
        if let Some(end) = body_end(facts) {
            self.body_ends.insert((end, id));
        }
        self.records.insert(id, bytes.into_boxed_slice());
    }

    /// Takes a record out, as it was read, for another or for good.
    fn take(&mut self, id: &RecordId, old: &Record) {
        let len = self.records.remove(id).map_or(0, |bytes| bytes.len() as u64);
        self.bytes -= len;
        self.ends.remove(&(old.stored.keep_until, *id));
        if let Some(end) = body_end(&old.facts) {
            self.body_ends.remove(&(end, *id));
        }
        self.open -= u64::from(old.facts.state == State::InFlight);
        if let Some(usage) = self.tenants.get_mut(&old.facts.tenant) {
            usage.records -= 1;
            usage.bytes = usage.bytes.saturating_sub(len);
            if usage.records == 0 {
                self.tenants.remove(&old.facts.tenant);
            }
        }
        // S4: whatever takes a record away remembers its fence.
        self.mark = self.mark.max(old.stored.fence);
    }
}

fn body_end(facts: &Facts) -> Option<Micros> {
    facts.outcome.as_ref().map(|outcome| outcome.body_until).filter(|end| *end != Micros::ZERO)
}

impl Store for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(std::future::ready(self.insert_now(id, facts, lease)))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        // A takeover is a claim; a settling of somebody else's claim is not.
        let claims = matches!(write.expect, Expect::Seen(..)) && write.facts.state == State::InFlight;
        let written = self.meet(id, write.expect, claims.then_some(write.facts.session), |inner, there, now| {
            let stored = cas::replaced(write, &there.stored, now, inner.mark);
            inner.put(id, &stored, &write.facts);
            stored
        });
        Box::pin(std::future::ready(written))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        let written = self.meet(id, Expect::Holder(holder), None, |inner, there, now| {
            let stored = cas::extended(&there.stored, lease, now);
            inner.put(id, &stored, &there.facts);
            stored
        });
        Box::pin(std::future::ready(written))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        let written = self.meet(id, expect, None, |_inner, there, _now| there.stored);
        Box::pin(std::future::ready(written))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        let read = self.enter(None).and_then(|(inner, now)| {
            let record = inner.read(&id)?.filter(|record| !record.is_expired(now));
            Ok(Read { record, now })
        });
        Box::pin(std::future::ready(read))
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        let page = self.enter(None).and_then(|(inner, now)| {
            use std::ops::Bound::{Excluded, Unbounded};
            let mut page = Page { now, ..Page::default() };
            for id in inner.records.range((after.map_or(Unbounded, Excluded), Unbounded)).map(|(id, _)| id) {
                if page.records.len() == limit {
                    page.next = page.records.last().map(|(id, _)| *id);
                    break;
                }
                let Some(record) = inner.read(id)? else { continue };
                if !record.is_expired(now) && filter.admits(&record, now) {
                    page.records.push((*id, record));
                }
            }
            Ok(page)
        });
        Box::pin(std::future::ready(page))
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        let swept = self.enter(None).map(|(mut inner, now)| {
            let ended: Vec<(Micros, RecordId)> =
                inner.ends.iter().take_while(|(end, _)| end.plus(waits) <= now).take(limit).copied().collect();
            for end in &ended {
                if let Ok(Some(old)) = inner.read(&end.1) {
                    inner.take(&end.1, &old);
                }
                // One that cannot be read stays, as damage, but is not met again.
                inner.ends.remove(end);
            }
            let bare: Vec<(Micros, RecordId)> =
                inner.body_ends.iter().take_while(|(end, _)| end.plus(waits) <= now).take(limit).copied().collect();
            for end in &bare {
                inner.body_ends.remove(end);
                let Ok(Some(mut record)) = inner.read(&end.1) else { continue };
                inner.take(&end.1, &record);
                record.facts.outcome = record.facts.outcome.map(Outcome::bare);
                inner.put(end.1, &record.stored, &record.facts);
            }
            Swept { removed: ended.len() as u64, more: ended.len() == limit || bare.len() == limit }
        });
        Box::pin(std::future::ready(swept))
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.shared.watchers.watch(id)
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        let kept = self.enter(None).map(|(mut inner, _)| {
            inner.rules.retain(|(kept, _)| *kept != policy);
            inner.rules.push_back((policy, rules.to_owned()));
            if inner.rules.len() > RULES_MAX {
                inner.rules.pop_front();
            }
        });
        Box::pin(std::future::ready(kept))
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        let found = self
            .enter(None)
            .map(|(inner, _)| inner.rules.iter().find(|(kept, _)| *kept == policy).map(|(_, rules)| rules.clone()));
        Box::pin(std::future::ready(found))
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.lock().tenants.get(tenant).copied().unwrap_or_default()
    }

    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    fn stats(&self) -> Stats {
        let inner = self.lock();
        let full = inner.records.len() >= self.shared.bounds.records_max;
        Stats {
            records: inner.records.len() as u64,
            records_max: Some(self.shared.bounds.records_max as u64),
            open: inner.open,
            bytes: inner.bytes,
            accepts_claims: !full,
            concerns: if full { vec!["the store is full: new claims are refused".into()] } else { Vec::new() },
            cache: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use onceward_core::{
        record::ClaimId,
        transition::{self, Write as Transition},
    };

    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const KEEP: Duration = Duration::from_secs(60);

    fn bounded(records_max: usize) -> (Memory, Arc<AtomicU64>) {
        let time = Arc::new(AtomicU64::new(1_750_000_000_000_000));
        (Memory::new(Bounds { records_max }, Clock::Manual(Arc::clone(&time))), time)
    }

    fn pass(time: &AtomicU64, span: Duration) {
        time.fetch_add(u64::try_from(span.as_micros()).unwrap(), Ordering::SeqCst);
    }

    fn id(of: u8) -> RecordId {
        RecordId([of; 32])
    }

    fn facts() -> Facts {
        transition::place(ClaimId([1; 16]), SessionId([1; 16]))
    }

    async fn claim(store: &Memory, of: u8) -> Result<Fence, Kind> {
        match store.insert(id(of), &facts(), LEASE).await {
            Ok(Insert::Inserted { fence, .. }) => Ok(fence),
            Ok(Insert::Existing { .. }) => panic!("{of} is taken"),
            Err(error) => Err(error.kind),
        }
    }

    async fn complete(store: &Memory, of: u8, fence: Fence) {
        let body = Bytes::from(vec![of; 1000]);
        let outcome = Outcome { status: 200, body, ..Outcome::default() };
        let Transition::Replace(write) = transition::complete(&facts(), fence, outcome, KEEP, Micros(1)) else {
            panic!("a completion is a replacement")
        };
        assert!(matches!(store.replace(id(of), &write).await, Ok(Write::Applied { .. })));
    }

    /// Waits for an event that must come; the limit only ends a test that has failed.
    async fn woken<T>(watch: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), watch).await.expect("nobody is woken")
    }

    async fn is_there(store: &Memory, of: u8) -> bool {
        store.get(id(of)).await.unwrap().record.is_some()
    }

    #[tokio::test]
    async fn a_full_store_refuses_new_claims_and_evicts_nothing_and_holders_still_finish() {
        let (store, time) = bounded(3);
        let mut fences = Vec::new();
        for of in 0..3 {
            fences.push(claim(&store, of).await.unwrap());
        }
        assert_eq!(claim(&store, 3).await, Err(Kind::Full));
        assert!(!store.stats().accepts_claims && store.stats().concerns.len() == 1);
        for (of, fence) in (0..3).zip(fences) {
            assert!(store.extend(id(of), fence, LEASE).await.is_ok());
            complete(&store, of, fence).await;
            assert_eq!(claim(&store, 3).await, Err(Kind::Full), "a settled record is not evicted either");
        }
        // The records' end makes room, and then only as far as a sweep has come.
        pass(&time, KEEP);
        assert!(!is_there(&store, 0).await);
        assert_eq!(store.sweep(2, Duration::ZERO).await.unwrap(), Swept { removed: 2, more: true });
        assert!(claim(&store, 3).await.is_ok() && store.stats().accepts_claims);
        assert_eq!(store.sweep(2, Duration::ZERO).await.unwrap(), Swept { removed: 1, more: false });
    }

    #[tokio::test]
    async fn a_full_store_lets_an_ended_key_be_claimed_again() {
        let (store, time) = bounded(1);
        let fence = claim(&store, 0).await.unwrap();
        complete(&store, 0, fence).await;
        pass(&time, KEEP);
        assert!(claim(&store, 0).await.unwrap() > fence);
    }

    #[tokio::test]
    async fn a_sweep_takes_only_what_has_ended() {
        let (store, time) = bounded(10);
        let early = claim(&store, 0).await.unwrap();
        complete(&store, 0, early).await;
        pass(&time, KEEP / 2);
        let late = claim(&store, 1).await.unwrap();
        complete(&store, 1, late).await;
        claim(&store, 2).await.unwrap();
        assert_eq!(store.sweep(10, Duration::ZERO).await.unwrap(), Swept::default());
        pass(&time, KEEP / 2);
        assert_eq!(store.sweep(10, Duration::ZERO).await.unwrap().removed, 1);
        assert!(!is_there(&store, 0).await && is_there(&store, 1).await && is_there(&store, 2).await);
        pass(&time, 1000 * KEEP);
        assert_eq!(store.sweep(10, Duration::ZERO).await.unwrap().removed, 1);
        assert!(is_there(&store, 2).await, "its lease is long over, its outcome unknown: it has no end");
    }

    #[tokio::test]
    async fn what_is_counted_is_what_is_there() {
        let (store, time) = bounded(10);
        for of in 0..5 {
            let fence = claim(&store, of).await.unwrap();
            if of > 1 {
                complete(&store, of, fence).await;
            }
        }
        let bytes: usize = (0..5).map(|of| store.bytes_of(&id(of)).unwrap().len()).sum();
        let stats = store.stats();
        assert_eq!((stats.records, stats.open, stats.bytes), (5, 2, bytes as u64));
        pass(&time, KEEP);
        store.sweep(10, Duration::ZERO).await.unwrap();
        let stats = store.stats();
        assert_eq!((stats.records, stats.open), (2, 2));
        assert_eq!(store.lock().tenants.values().map(|usage| usage.records).sum::<u64>(), 2);
    }

    #[tokio::test]
    async fn a_damaged_record_is_an_error_and_never_an_absence() {
        let (store, time) = bounded(10);
        let fence = claim(&store, 0).await.unwrap();
        complete(&store, 0, fence).await;
        store.damage(&id(0));
        assert!(store.get(id(0)).await.is_err_and(|error| matches!(error.kind, Kind::Damaged(_))));
        assert!(matches!(claim(&store, 0).await, Err(Kind::Damaged(_))));
        pass(&time, KEEP);
        store.sweep(10, Duration::ZERO).await.unwrap();
        assert!(matches!(claim(&store, 0).await, Err(Kind::Damaged(_))), "nor after a sweep");
    }

    #[tokio::test]
    async fn a_watch_wakes_after_each_kind_of_write_also_one_before_it_is_awaited() {
        let (store, _) = bounded(10);
        let watch = store.watch(id(0));
        let fence = claim(&store, 0).await.unwrap();
        woken(watch).await;
        let watch = store.watch(id(0));
        store.extend(id(0), fence, LEASE).await.unwrap();
        woken(watch).await;
        let watch = store.watch(id(0));
        complete(&store, 0, fence).await;
        woken(watch).await;
        let fence = claim(&store, 1).await.unwrap();
        let watch = store.watch(id(1));
        store.remove(id(1), Expect::Holder(fence)).await.unwrap();
        woken(watch).await;
        claim(&store, 2).await.unwrap();
        let watch = store.watch(id(2));
        store.end_session(SessionId([1; 16]));
        woken(watch).await;
    }

    #[tokio::test]
    async fn a_write_wakes_all_who_wait_for_the_key_and_nobody_else() {
        let (store, _) = bounded(10);
        let all: Vec<_> = (0..20).map(|_| tokio::spawn(store.watch(id(0)))).collect();
        let mut other = store.watch(id(1));
        claim(&store, 0).await.unwrap();
        for waiter in all {
            woken(waiter).await.unwrap();
        }
        assert!((&mut other).now_or_never().is_none());
        // A write that is refused is none.
        let mut same = store.watch(id(0));
        store.extend(id(0), Fence(1), LEASE).await.unwrap();
        assert!((&mut same).now_or_never().is_none());
    }

    #[tokio::test]
    async fn those_who_stop_waiting_leave_nothing_behind() {
        let (store, _) = bounded(10);
        let (first, second) = (store.watch(id(0)), store.watch(id(0)));
        let other = store.watch(id(1));
        assert_eq!(store.shared.watchers.len(), 2);
        drop(first);
        assert_eq!(store.shared.watchers.len(), 2);
        claim(&store, 0).await.unwrap();
        woken(second).await;
        drop(other);
        assert_eq!(store.shared.watchers.len(), 0);
    }
}
