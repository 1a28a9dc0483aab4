//! The database, with hints in Redis: what it said of settled records, so that repetitions cost it nothing. A hint never
//! grants, and where Redis does not answer within [`HINT_DEADLINE`] the database is asked.
//!
//! What is settled changes in two ways only: its retention ends, which is judged here by the database's clock, and it is
//! forgotten or erased. Whoever forgets ends the hint before and after he writes to the database, and is told that it
//! failed where that does not succeed. A hint is kept as of the moment *before* the database was asked
//! ([`Redis::as_of`]): what was read before an erasure is refused by the word that the erasure left, and by another
//! epoch where Redis lost that word. Erasures by SQL functions are heard of by notification; where one may have been
//! missed, hints of before count no more in this process. A process that has had no answer of the database for
//! [`TOLD_MAX`] shows none.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
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
    Answer, Filter, HearsForgotten, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write,
    circuit::{Breaker, Gate},
    forgotten,
    guarded::Guarded,
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

/// A database with hints.
pub(super) struct Strict {
    both: Arc<Both>,
    _tasks: JoinSet<()>,
}

struct Both {
    database: Arc<Guarded>,
    hints: Arc<Redis>,
    gate: Gate,
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

impl fmt::Debug for Strict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Strict({:?})", self.both.database)
    }
}

impl Strict {
    pub(super) fn new(database: Arc<Guarded>, hints: Arc<Redis>, breaker: Breaker) -> Self {
        let both = Arc::new(Both {
            database,
            hints,
            gate: Gate::new("Redis, for hints of answered keys,", breaker),
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

    pub(super) fn database(&self) -> &Arc<Guarded> {
        &self.both.database
    }

    /// What came of looking for hints.
    pub(super) fn hints(&self) -> Hints {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let Figures { shown, missed, failed } = &self.both.figures;
        Hints { shown: of(shown), missed: of(missed), failed: of(failed) }
    }

    /// The database's time is not known: no hint is shown until it says so again.
    #[cfg(any(test, feature = "conformance"))]
    pub(super) fn forget_time(&self) {
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

    async fn insert(self: &Arc<Self>, id: RecordId, facts: &Facts, lease: Duration) -> Result<Insert, StoreError> {
        if let Some((record, now)) = self.hint(id).await {
            return Ok(Insert::Existing { record: Box::new(record), now });
        }
        let as_of = self.hints.as_of(&id);
        let inserted = self.database.insert(id, facts, lease).await?;
        match &inserted {
            Insert::Inserted { now, .. } => self.tell(*now),
            Insert::Existing { record, now } => {
                self.tell(*now);
                self.offer(id, as_of, *now, record.stored, &record.facts);
            }
        }
        Ok(inserted)
    }

    async fn replace(self: &Arc<Self>, id: RecordId, write: &Replacement) -> Result<Write, StoreError> {
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

    async fn get(&self, id: RecordId) -> Result<Read, StoreError> {
        let read = self.database.get(id).await?;
        self.tell(read.now);
        // Whoever repeats an erasure that was cut off looks here.
        if let Some(record) = read.record.as_ref().filter(|record| record.facts.state == State::Erased) {
            let Stored { fence, revision, keep_until, .. } = record.stored;
            self.end(Ended { id, fence, revision, keep: keep_until.since(read.now) + SLACK }).await?;
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

impl Store for Strict {
    fn kind(&self) -> &'static str {
        self.both.database.kind()
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(self.both.insert(id, facts, lease))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(self.both.replace(id, write))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        self.both.database.extend(id, holder, lease)
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(self.both.forget(id, expect, self.both.database.remove(id, expect)))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(self.both.get(id))
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        self.both.database.scan(after, limit, filter)
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        self.both.database.sweep(limit, waits)
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.both.database.watch(id)
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        let both = Arc::downgrade(&self.both);
        self.both.database.tell_forgotten(Arc::new(move |id| {
            if let Some(both) = both.upgrade() {
                both.heard(id);
            }
            hears(id);
        }));
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        self.both.database.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        self.both.database.rules(policy)
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.both.database.usage(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    fn stats(&self) -> Stats {
        self.both.database.stats()
    }
}
