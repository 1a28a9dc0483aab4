//! The protocol as a [`Store`]: one session after the other, and what is asked of other places beside them.

use std::{
    fmt,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Record, Seen, SessionId, State},
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Fact, Front, Journal, Journaled, Left, Options, Owed, Serves, Spool, is_released};
use crate::{
    Answer, FallsBack, Filter, HearsForgotten, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch,
    Write,
};

/// How often it is looked whether a session is over.
const TICK: Duration = Duration::from_millis(200);
/// How often it is looked whether all partitions are served.
const READY_TICK: Duration = Duration::from_millis(20);
/// A session that is over has so long to put what it holds into the journal; then others retire it.
const LEAVES_WITHIN: Duration = Duration::from_secs(60);
/// So many claims of a page are read in Redis at a time.
const READS_AT_A_TIME: usize = 16;
/// So many rows of the journal are read for a page.
const ROWS: std::ops::RangeInclusive<usize> = 64..=500;

/// Why a claim is refused although the database would take it.
const NOT_HERE: &str = "nobody reaches Redis, and its route's on_store_outage is not fallback";

/// What a session of this process is made of.
#[derive(Debug)]
struct Parts {
    front: Arc<dyn Front>,
    journal: Arc<dyn Journal>,
    spool: Arc<dyn Spool>,
    owed: Arc<Owed>,
    options: Options,
}

impl Parts {
    /// # Errors
    /// The system gives no randomness: two sessions of one id would be one member.
    fn session(&self) -> Result<Journaled, StoreError> {
        // Not the session that records name: that is this process, whose sessions here come and go.
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| StoreError::not_applied(Kind::Unavailable).because(error))?;
        let options = Options { session: SessionId(id), ..self.options };
        let (front, journal, spool) = (Arc::clone(&self.front), Arc::clone(&self.journal), Arc::clone(&self.spool));
        Ok(Journaled::start(options, front, journal, spool, Arc::clone(&self.owed)))
    }
}

/// The session that serves.
struct Current {
    session: Arc<Journaled>,
    /// No other follows.
    is_last: bool,
}

/// Redis in front of a journal, as a store.
pub struct JournaledStore {
    parts: Arc<Parts>,
    current: Arc<RwLock<Current>>,
    redis: Arc<dyn Store>,
    database: Arc<dyn Store>,
    /// Which claims go to the database while nobody reaches Redis; all where nobody has said.
    falls_back: OnceLock<FallsBack>,
    _tasks: JoinSet<()>,
}

impl fmt::Debug for JournaledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JournaledStore({:?}, {:?})", self.parts.front, self.parts.journal)
    }
}

impl JournaledStore {
    /// Begins the first session. `left` is what was found in `spool`; `redis` is the store whose servers `front` speaks to,
    /// of which waiters are woken, and `database` the one of `journal`, which keeps what processes share.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn start(
        options: Options,
        front: Arc<dyn Front>,
        journal: Arc<dyn Journal>,
        spool: Arc<dyn Spool>,
        left: Vec<Left>,
        redis: Arc<dyn Store>,
        database: Arc<dyn Store>,
    ) -> Result<Self, StoreError> {
        let parts = Arc::new(Parts { front, journal, spool, owed: Arc::new(Owed::new(left)), options });
        let current = Arc::new(RwLock::new(Current { session: Arc::new(parts.session()?), is_last: false }));
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(Arc::clone(&parts), Arc::clone(&current)));
        Ok(Self { parts, current, redis, database, falls_back: OnceLock::new(), _tasks: tasks })
    }

    fn session(&self) -> Arc<Journaled> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).session)
    }

    /// How many partitions are how, as far as this process has looked.
    #[must_use]
    pub fn serves(&self) -> Serves {
        self.session().serves()
    }

    /// How many records of this process the journal does not have yet, and since when the first of them waits.
    #[must_use]
    pub fn backlog(&self) -> (usize, Duration) {
        self.session().backlog()
    }

    /// Until claims of all partitions are taken: `false` where that is not so within `limit`.
    pub async fn is_ready(&self, limit: Duration) -> bool {
        let ready = async {
            let mut ticks = interval(READY_TICK);
            loop {
                ticks.tick().await;
                let Serves { in_force, of, .. } = self.serves();
                if in_force == of {
                    return;
                }
            }
        };
        timeout(limit, ready).await.is_ok()
    }

    /// Ends in order, within `limit`: `false` where others have to retire this process's session, or whoever comes after on
    /// its disk. Nothing is claimed any more.
    pub async fn leave(&self, limit: Duration) -> bool {
        self.current.write().unwrap_or_else(PoisonError::into_inner).is_last = true;
        self.session().leave(limit).await
    }
}

/// A session that is over is followed by another, beside which it leaves.
async fn follow(parts: Arc<Parts>, current: Arc<RwLock<Current>>) {
    let mut leaving = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        while leaving.try_join_next().is_some() {}
        let mut current = current.write().unwrap_or_else(PoisonError::into_inner);
        if current.is_last || !current.session.is_over() {
            continue;
        }
        match parts.session() {
            Ok(next) => {
                let over = std::mem::replace(&mut current.session, Arc::new(next));
                leaving.spawn(async move { over.leave(LEAVES_WITHIN).await });
            }
            Err(error) => tracing::error!(%error, "no session can begin"),
        }
    }
}

/// The record of a row. Of a claim the journal has neither how long the lease runs nor that its holder has given up: that
/// is read where it was written, or as the row has it while that does not answer.
async fn as_it_is(session: &Journaled, Fact { id, record }: Fact) -> (RecordId, Option<Arc<Record>>) {
    if record.facts.state != State::InFlight {
        return (id, Some(record));
    }
    match session.get(id).await {
        Ok(read) => (id, read.record.map(Arc::new)),
        Err(_) => (id, Some(record)),
    }
}

/// Whether only a record that is in flight is seen as this.
fn is_in_flight(seen: Seen) -> bool {
    matches!(seen, Seen::InFlight | Seen::Abandoned | Seen::Unknown)
}

impl Store for JournaledStore {
    fn kind(&self) -> &'static str {
        "journaled"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(async move {
            let session = self.session();
            if !session.is_on_database(&id)
                || self.falls_back.get().is_none_or(|falls_back| falls_back(&id, &facts.route))
            {
                return session.insert(id, facts, lease).await;
            }
            // What is there is told all the same.
            let Read { record, now } = session.get(id).await?;
            match record.filter(|record| !record.is_expired(now)) {
                Some(record) => Ok(Insert::Existing { record: Box::new(record), now }),
                None => Err(StoreError::not_applied(Kind::Declined).because(NOT_HERE)),
            }
        })
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(async move { self.session().replace(id, write).await })
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(async move { self.session().extend(id, holder, lease).await })
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(async move { self.session().remove(id, expect).await })
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(async move { self.session().get(id).await })
    }

    /// Of the journal, with all that this process has written until now; what others wrote a moment ago may not be there.
    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        Box::pin(async move {
            // Where the journal does not take it in time, the list is of before.
            let _shipped = timeout(self.parts.options.deadline, self.session().shipped()).await;
            let rows = limit.clamp(*ROWS.start(), *ROWS.end());
            let (facts, now) = self.parts.journal.list(after, rows, filter.state.is_some_and(is_in_flight)).await?;
            let has_more = facts.len() >= rows;
            let mut page = Page { now, ..Page::default() };
            let mut last = None;
            let session = self.session();
            let mut facts = stream::iter(facts).map(|fact| as_it_is(&session, fact)).buffered(READS_AT_A_TIME);
            while let Some((id, record)) = facts.next().await {
                if page.records.len() >= limit {
                    page.next = last;
                    return Ok(page);
                }
                last = Some(id);
                let record = record.filter(|record| !is_released(&record.facts) && !record.is_expired(now));
                if let Some(record) = record.filter(|record| filter.admits(record, now)) {
                    page.records.push((id, Arc::unwrap_or_clone(record)));
                }
            }
            page.next = last.filter(|_| has_more);
            Ok(page)
        })
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        Box::pin(async move { self.session().sweep(limit, waits).await })
    }

    /// Of where the key's view is now: one that is on its way to the other looks again.
    fn watch(&self, id: RecordId) -> Watch {
        if self.session().is_on_database(&id) { self.database.watch(id) } else { self.redis.watch(id) }
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        self.database.tell_forgotten(Arc::clone(&hears));
        self.redis.tell_forgotten(hears);
    }

    fn fall_back(&self, when: FallsBack) {
        let _taken = self.falls_back.set(when);
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        self.database.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        self.database.rules(policy)
    }

    /// Not counted yet.
    fn usage(&self, _tenant: &str) -> Usage {
        Usage::default()
    }

    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    fn stats(&self) -> Stats {
        let Serves { in_force, warm, on_database, of } = self.serves();
        let mut concerns = Vec::new();
        if in_force < of {
            concerns.push(format!(
                "journaled: {} of {of} partitions have no view in force that this process is in: their keys are refused",
                of - in_force
            ));
        }
        if warm < in_force {
            concerns.push(format!(
                "journaled: in {} of {of} partitions Redis does not have every record yet: each new key there asks the database",
                in_force - warm
            ));
        }
        if on_database > 0 {
            concerns.push(format!(
                "journaled: nobody reaches Redis for {on_database} of {of} partitions: their claims go to the database until it is back"
            ));
        }
        let has_room = self.parts.spool.has_room().is_ok();
        if !has_room {
            concerns.push("journaled: the spool is full: new keys are refused until the database takes it".to_owned());
        }
        Stats { accepts_claims: in_force > 0 && has_room, concerns, ..Stats::default() }
    }
}
