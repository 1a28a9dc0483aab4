//! Redis in front of a database: each route's records in one of the two, as it asks.
//!
//! - *strict*: claims and outcomes are committed in the database before anything is sent or answered. Redis has hints:
//!   what the database said of settled records, so that repetitions cost it nothing. A hint never grants, and where
//!   Redis does not answer within [`HINT_DEADLINE`] the database is asked.
//! - *cache*: records are in Redis alone.
//!
//! # Hints
//!
//! What is settled changes in two ways only: its retention ends, which is judged here by the database's clock, and it is
//! forgotten or erased. Whoever forgets ends the hint before and after he writes to the database, and is told that it
//! failed where that does not succeed. A hint is kept as of the moment *before* the database was asked
//! ([`Redis::as_of`]): what was read before an erasure is refused by the word that the erasure left, and by another
//! epoch where Redis lost that word. Erasures by SQL functions are heard of by notification; where one may have been
//! missed, hints of before count no more in this process. A process that has had no answer of the database for
//! [`TOLD_MAX`] shows none.
//!
//! *S2*: times are the database's of strict records, Redis's of others.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{self, Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, Record, Revision, State, Stored},
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    Answer, CacheRoutes, FallsBack, Filter, HearsForgotten, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept,
    Usage, Watch, Write,
    circuit::{Breaker, Gate},
    forgotten,
    guarded::Guarded,
    pair::Scans,
    recent::Recent,
    redis::{AsOf, Redis},
};

/// Within which a hint has to be there: longer than a call to Redis takes, and little beside a commit.
pub const HINT_DEADLINE: Duration = Duration::from_millis(50);
/// For so long hints are shown without a word of the database.
pub const TOLD_MAX: Duration = Duration::from_secs(600);
/// How often the database is asked for its time, where nobody else asked it.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// So many hints are being written at a time; more are left out.
const WRITING_MAX: usize = 256;
/// So many words that end a hint are owed; of more the oldest are dropped, and told.
const OWED_MAX: usize = 10_000;
/// By so much a word that ends a hint outlives what it ends: clocks differ.
const SLACK: Duration = Duration::from_secs(600);
/// Not worth a hint.
const KEEP_MIN: Duration = Duration::from_secs(2);
/// Asked for the time: no key's.
const NOBODY: RecordId = RecordId([0; 32]);

/// Two stores as one, by route.
pub struct Tiered {
    both: Arc<Both>,
    _tasks: JoinSet<()>,
}

struct Both {
    database: Arc<Guarded>,
    cache: Arc<Guarded>,
    hints: Arc<Redis>,
    gate: Gate,
    in_cache: OnceLock<Arc<CacheRoutes>>,
    /// Whether a record was kept in the cache since this process began, by a route that may do so no more.
    has_used_cache: AtomicBool,
    /// Keys whose record was in the cache when it was looked at last.
    placed: Recent,
    scans: Scans,
    /// What the database's clock said, and when.
    told: Mutex<Option<(Micros, Instant)>>,
    /// Hints of records written up to here count no more.
    distrusted: AtomicU64,
    /// Those of records written until the database says its time next.
    distrusts: AtomicBool,
    writing: Arc<Semaphore>,
    owed: Mutex<Vec<Ended>>,
    figures: Figures,
}

#[derive(Debug, Default)]
struct Figures {
    shown: AtomicU64,
    missed: AtomicU64,
    failed: AtomicU64,
}

/// What came of looking for hints, since this process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Shown: the database was not asked.
    pub shown: u64,
    /// There was none.
    pub missed: u64,
    /// Redis did not answer in time, or what it had could not be read.
    pub failed: u64,
}

/// A hint that has to end.
#[derive(Clone, Copy, Debug)]
struct Ended {
    id: RecordId,
    fence: Fence,
    revision: Revision,
    keep: Duration,
}

impl fmt::Debug for Tiered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tiered({:?}, {:?})", self.both.database, self.both.cache)
    }
}

impl Tiered {
    /// `hints` is what `cache` guards. All routes are strict until [`Store::keep_in_cache`] says otherwise.
    #[must_use]
    pub fn new(database: Arc<Guarded>, cache: Arc<Guarded>, hints: Arc<Redis>, breaker: Breaker) -> Self {
        let both = Arc::new(Both {
            database,
            cache,
            hints,
            gate: Gate::new("Redis, for hints of answered keys,", breaker),
            in_cache: OnceLock::new(),
            has_used_cache: AtomicBool::new(false),
            placed: Recent::default(),
            scans: Scans::default(),
            told: Mutex::default(),
            distrusted: AtomicU64::new(0),
            distrusts: AtomicBool::new(false),
            writing: Arc::new(Semaphore::new(WRITING_MAX)),
            owed: Mutex::default(),
            figures: Figures::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_up(Arc::clone(&both)));
        Self { both, _tasks: tasks }
    }

    /// The database's guard.
    #[must_use]
    pub fn database(&self) -> &Arc<Guarded> {
        &self.both.database
    }

    /// What came of looking for hints.
    #[must_use]
    pub fn hints(&self) -> Hints {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let Figures { shown, missed, failed } = &self.both.figures;
        Hints { shown: of(shown), missed: of(missed), failed: of(failed) }
    }

    /// The database's time is not known: no hint is shown until it says so again.
    #[cfg(any(test, feature = "conformance"))]
    pub fn forget_time(&self) {
        *self.both.told() = None;
    }
}

impl Both {
    fn told(&self) -> std::sync::MutexGuard<'_, Option<(Micros, Instant)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database said its time.
    fn tell(&self, now: Micros) {
        if self.distrusts.swap(false, Ordering::SeqCst) {
            self.distrusted.fetch_max(now.0, Ordering::SeqCst);
        }
        *self.told() = Some((now, Instant::now()));
    }

    /// The database's time, about, where it was told lately.
    fn now(&self) -> Option<Micros> {
        let (at, since) = (*self.told())?;
        let ago = since.elapsed();
        (ago < TOLD_MAX).then(|| at.plus(ago))
    }

    fn is_in_cache(&self, route: &str) -> bool {
        self.in_cache.get().is_some_and(|routes| routes.has(route))
    }

    fn uses_cache(&self) -> bool {
        self.has_used_cache.load(Ordering::Relaxed) || self.in_cache.get().is_some_and(|routes| !routes.is_empty())
    }

    /// The hint of a record that is settled and has not ended, and the database's time.
    async fn hint(&self, id: RecordId) -> Option<(Record, Micros)> {
        let now = self.now()?;
        let pass = self.gate.pass().ok()?;
        let found = timeout(HINT_DEADLINE, self.hints.hint(id)).await;
        let found = found.unwrap_or_else(|late| Err(StoreError::not_applied(Kind::Unavailable).because(late)));
        pass.ended(&found);
        let (figure, shown) = match found {
            Ok(Some(record)) if self.counts(&record, now) => (&self.figures.shown, Some((record, now))),
            Ok(_) => (&self.figures.missed, None),
            Err(error) => {
                tracing::debug!(%error, record = %id.short(), "a hint could not be read");
                (&self.figures.failed, None)
            }
        };
        figure.fetch_add(1, Ordering::Relaxed);
        shown
    }

    fn counts(&self, record: &Record, now: Micros) -> bool {
        let Stored { keep_until, written_at, .. } = record.stored;
        record.facts.state == State::Completed
            && keep_until > now
            && written_at <= now
            && !self.distrusts.load(Ordering::SeqCst)
            && written_at.0 > self.distrusted.load(Ordering::SeqCst)
    }

    /// Keeps a hint of a record that is worth one, beside.
    fn offer(self: &Arc<Self>, id: RecordId, as_of: AsOf, now: Micros, stored: Stored, facts: &Facts) {
        let Some(outcome) = facts.outcome.as_ref().filter(|outcome| !outcome.body_not_kept) else { return };
        let ends = match outcome.body_until {
            Micros::ZERO => stored.keep_until,
            until => until.min(stored.keep_until),
        };
        let keep = ends.since(now);
        if facts.state != State::Completed || keep < KEEP_MIN {
            return;
        }
        let Ok(permit) = Arc::clone(&self.writing).try_acquire_owned() else { return };
        let (both, record) = (Arc::clone(self), Record { stored, facts: facts.clone() });
        tokio::spawn(async move {
            let Ok(pass) = both.gate.pass() else { return };
            let kept = timeout(HINT_DEADLINE * 4, both.hints.keep_hint(id, record, as_of, keep)).await;
            let kept = kept.unwrap_or_else(|late| Err(StoreError::unknown(Kind::Unavailable).because(late)));
            pass.ended(&kept);
            drop(permit);
        });
    }

    async fn end(&self, ended: Ended) -> Result<(), StoreError> {
        let Ended { id, fence, revision, keep } = ended;
        self.hints.end_hint(id, fence, revision, keep).await
    }

    /// A hint has to end and could not be ended.
    fn owe(&self, ended: Ended) {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if owed.len() >= OWED_MAX {
            let dropped = owed.remove(0);
            tracing::error!(record = %dropped.id.short(), "a hint in Redis could not be ended, and is shown until its retention is over");
        }
        owed.push(ended);
    }

    async fn insert_strict(
        self: &Arc<Self>,
        id: RecordId,
        facts: &Facts,
        lease: Duration,
    ) -> Result<Insert, StoreError> {
        if let Some((record, now)) = self.hint(id).await {
            return Ok(Insert::Existing { record: Box::new(record), now });
        }
        let as_of = self.hints.as_of(&id);
        let inserted = self.database.insert(id, facts, lease).await?;
        // Where its route kept it in the cache before.
        if self.uses_cache() {
            self.placed.forget(&id);
        }
        match &inserted {
            Insert::Inserted { now, .. } => self.tell(*now),
            Insert::Existing { record, now } => {
                self.tell(*now);
                self.offer(id, as_of, *now, record.stored, &record.facts);
            }
        }
        Ok(inserted)
    }

    async fn replace_strict(self: &Arc<Self>, id: RecordId, write: &Replacement) -> Result<Write, StoreError> {
        if write.facts.state == State::Erased {
            return self.forget(id, write.expect, self.database.replace(id, write)).await;
        }
        let as_of = self.hints.as_of(&id);
        let written = self.database.replace(id, write).await?;
        match &written {
            Write::Applied { fence, revision, now } => {
                self.tell(*now);
                let before = Stored { fence: *fence, ..Stored::default() };
                let stored =
                    Stored { fence: *fence, revision: *revision, ..cas::replaced(write, &before, *now, *fence) };
                self.offer(id, as_of, *now, stored, &write.facts);
            }
            Write::Lost { now, .. } => self.tell(*now),
        }
        Ok(written)
    }

    /// Erases or removes: the hint is ended before, so that it does not outlive a write whose answer is lost, and after, so
    /// that none comes in between.
    async fn forget(&self, id: RecordId, expect: Expect, write: Answer<'_, Write>) -> Result<Write, StoreError> {
        let Expect::Seen(fence, revision) = expect else { return write.await };
        let read = self.database.get(id).await?;
        self.tell(read.now);
        let Some(there) = read.record else { return write.await };
        let keep = there.stored.keep_until.since(read.now) + SLACK;
        let ended =
            |fence, revision: Revision| Ended { id, fence, revision: Revision(revision.0.saturating_add(1)), keep };
        self.end(ended(fence, revision))
            .await
            .map_err(|error| StoreError::not_applied(error.kind.clone()).because(error))?;
        let written = write.await;
        if forgotten::is_to_be_told(&written) {
            let after = match &written {
                Ok(Write::Applied { fence, revision, .. }) => ended(*fence, *revision),
                _ => ended(fence, revision),
            };
            if let Err(error) = self.end(after).await {
                self.owe(after);
                return Err(StoreError::unknown(error.kind.clone()).because(error));
            }
        }
        written
    }

    /// A write by a fence, or of what was seen, to whichever has the record.
    async fn write<'a>(
        &'a self,
        id: RecordId,
        write: impl Fn(&'a Guarded) -> Answer<'a, Write>,
    ) -> Result<Write, StoreError> {
        if self.placed.has(&id) {
            return write(&self.cache).await;
        }
        let written = write(&self.database).await?;
        if matches!(written, Write::Lost { record: None, .. }) && self.uses_cache() {
            return write(&self.cache).await;
        }
        Ok(written)
    }

    async fn get(&self, id: RecordId) -> Result<Read, StoreError> {
        if self.placed.has(&id) {
            return self.cache.get(id).await;
        }
        let read = self.database.get(id).await?;
        self.tell(read.now);
        match &read.record {
            // Whoever repeats an erasure that was cut off looks here.
            Some(record) if record.facts.state == State::Erased => {
                let Stored { fence, revision, keep_until, .. } = record.stored;
                self.end(Ended { id, fence, revision, keep: keep_until.since(read.now) + SLACK }).await?;
            }
            None if self.uses_cache() => {
                let of_cache = self.cache.get(id).await?;
                if of_cache.record.is_some() {
                    self.placed.note(id);
                    return Ok(of_cache);
                }
            }
            _ => {}
        }
        Ok(read)
    }

    /// Somebody else forgot this key, perhaps by an SQL function, or nobody knows which.
    fn heard(self: &Arc<Self>, id: Option<RecordId>) {
        let Some(id) = id else {
            self.distrusts.store(true, Ordering::SeqCst);
            return;
        };
        let both = Arc::clone(self);
        tokio::spawn(async move {
            if let Ok(Some(Record { stored, .. })) = both.hints.hint(id).await {
                let keep = both.now().map_or(SLACK, |now| stored.keep_until.since(now) + SLACK);
                let ended = Ended { id, fence: stored.fence, revision: Revision(stored.revision.0 + 1), keep };
                if both.end(ended).await.is_err() {
                    both.owe(ended);
                }
            }
        });
    }
}

/// Hears the database's time now and then, and ends the hints that are owed.
async fn keep_up(both: Arc<Both>) {
    let mut tick = interval(TELL_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let is_stale = both.told().is_none_or(|(_, since)| since.elapsed() >= TELL_EVERY);
        if is_stale && let Ok(read) = both.database.get(NOBODY).await {
            both.tell(read.now);
        }
        loop {
            let next = both.owed.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(ended) = next else { break };
            if both.end(ended).await.is_err() {
                both.owe(ended);
                break;
            }
        }
    }
}

impl Store for Tiered {
    fn kind(&self) -> &'static str {
        "tiered"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        if self.both.is_in_cache(&facts.route) {
            self.both.has_used_cache.store(true, Ordering::Relaxed);
            self.both.placed.note(id);
            return self.both.cache.insert(id, facts, lease);
        }
        Box::pin(self.both.insert_strict(id, facts, lease))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        let both = &self.both;
        let in_cache = both.placed.has(&id) || both.is_in_cache(&write.facts.route);
        Box::pin(async move {
            let first =
                if in_cache { both.cache.replace(id, write).await } else { both.replace_strict(id, write).await };
            // A route may have changed since its record was made.
            match first? {
                Write::Lost { record: None, .. } if in_cache => both.replace_strict(id, write).await,
                Write::Lost { record: None, .. } if both.uses_cache() => both.cache.replace(id, write).await,
                written => Ok(written),
            }
        })
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(self.both.write(id, move |store| store.extend(id, holder, lease)))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        match expect {
            Expect::Seen(..) if !self.both.placed.has(&id) => Box::pin(async move {
                let removed = self.both.forget(id, expect, self.both.database.remove(id, expect)).await?;
                if matches!(removed, Write::Lost { record: None, .. }) && self.both.uses_cache() {
                    return self.both.cache.remove(id, expect).await;
                }
                Ok(removed)
            }),
            _ => Box::pin(self.both.write(id, move |store| store.remove(id, expect))),
        }
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(self.both.get(id))
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        Box::pin(async move {
            let both = &self.both;
            if !both.uses_cache() {
                return both.database.scan(after, limit, filter).await;
            }
            let (page, of_cache) = both.scans.page(Some(&both.cache), &both.database, after, limit, filter).await?;
            page.records.iter().take(of_cache).for_each(|(id, _)| both.placed.note(*id));
            Ok(page)
        })
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        // Redis removes by itself.
        self.both.database.sweep(limit, waits)
    }

    fn watch(&self, id: RecordId) -> Watch {
        if self.both.placed.has(&id) { self.both.cache.watch(id) } else { self.both.database.watch(id) }
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        self.both.cache.tell_forgotten(Arc::clone(&hears));
        let both = Arc::downgrade(&self.both);
        self.both.database.tell_forgotten(Arc::new(move |id| {
            if let Some(both) = both.upgrade() {
                both.heard(id);
            }
            hears(id);
        }));
    }

    fn fall_back(&self, when: FallsBack) {
        // Where one does not answer, the other does not have what it has.
        drop(when);
    }

    fn keep_in_cache(&self, routes: Arc<CacheRoutes>) {
        let _taken = self.both.in_cache.set(routes);
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        self.both.database.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        self.both.database.rules(policy)
    }

    fn usage(&self, tenant: &str) -> Usage {
        let (of_database, of_cache) = (self.both.database.usage(tenant), self.both.cache.usage(tenant));
        Usage { records: of_database.records + of_cache.records, bytes: of_database.bytes + of_cache.bytes }
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.both.cache.lost_ago()
    }

    fn stats(&self) -> Stats {
        let (mut stats, of_cache) = (self.both.database.stats(), self.both.cache.stats());
        stats.concerns.extend(of_cache.concerns.into_iter().map(|concern| format!("Redis: {concern}")));
        stats.cache = of_cache.cache;
        if self.both.uses_cache() {
            stats.records += of_cache.records;
            stats.open += of_cache.open;
            stats.bytes += of_cache.bytes;
        }
        stats
    }
}
