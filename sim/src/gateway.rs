//! A gateway: the engine that users get, over the journaled store, over servers that fail.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use onceward::{Engine, JobError, Jobs, Limits, Route, Routes, RunError};
use onceward_core::{
    cas::{Expect, Replacement},
    key::{RecordId, Secret},
    policy::Policy,
    record::{Facts, Fence, SessionId},
};
use onceward_store::{
    Answer, Filter, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write,
    journaled::{Fact, Journaled, Left, Options, Owed, Place, Spool},
};
use tokio::time::sleep;

use crate::{
    history::{Call, Effect, Key, Told, answer},
    journal::SimJournal,
    redis::SimFront,
    world::{DEADLINE, PARTITIONS, World},
};

/// A gateway's disk, on which its spool is: it may outlive the gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    facts: Vec<Option<(SessionId, Fact)>>,
    /// That have begun and not ended.
    sessions: Vec<SessionId>,
}

impl Disk {
    /// What is there, by session.
    fn left(&self) -> Vec<Left> {
        let mut all: Vec<Left> =
            self.sessions.iter().map(|session| Left { session: *session, facts: Vec::new() }).collect();
        for (at, (session, fact)) in self.facts.iter().enumerate().filter_map(|(at, entry)| Some((at, entry.as_ref()?)))
        {
            let fact = (fact.id, Place { segment: 0, offset: u32::try_from(at).unwrap_or(u32::MAX), len: 1 });
            match all.iter_mut().find(|left| left.session == *session) {
                Some(left) => left.facts.push(fact),
                None => all.push(Left { session: *session, facts: vec![fact] }),
            }
        }
        all
    }
}

#[derive(Debug)]
struct SimSpool {
    world: Arc<World>,
    who: usize,
    life: u32,
}

impl SimSpool {
    /// A write takes its time.
    async fn written(&self) {
        let takes = {
            let inner = &mut *self.world.lock();
            let slow = if inner.rng.u32(..inner.spool_is_slow_in) == 0 { 300 } else { 1 };
            Duration::from_micros(inner.rng.u64(50..2_000) * slow)
        };
        sleep(takes).await;
        self.world.awake(self.who, self.life).await;
    }
}

impl Spool for SimSpool {
    fn begin(&self, session: SessionId) -> Answer<'_, ()> {
        Box::pin(async move {
            self.written().await;
            self.world.lock().gateways[self.who].disk.sessions.push(session);
            Ok(())
        })
    }

    fn end(&self, session: SessionId) {
        self.world.lock().gateways[self.who].disk.sessions.retain(|there| *there != session);
    }

    fn append<'a>(&'a self, session: SessionId, fact: &'a Fact) -> Answer<'a, Place> {
        Box::pin(async move {
            self.written().await;
            let disk = &mut self.world.lock().gateways[self.who].disk.facts;
            disk.push(Some((session, fact.clone())));
            let offset = u32::try_from(disk.len() - 1).unwrap_or(u32::MAX);
            Ok(Place { segment: 0, offset, len: 1 })
        })
    }

    fn read(&self, _id: RecordId, place: Place) -> Answer<'_, Fact> {
        let disk = &self.world.lock().gateways[self.who].disk.facts;
        let fact = disk.get(place.offset as usize).and_then(|entry| entry.as_ref().map(|(_, fact)| fact.clone()));
        let gone = || StoreError::not_applied(Kind::Damaged("released, and read again".into()));
        Box::pin(std::future::ready(fact.ok_or_else(gone)))
    }

    fn release(&self, places: &[Place]) {
        let disk = &mut self.world.lock().gateways[self.who].disk.facts;
        for place in places {
            if let Some(entry) = disk.get_mut(place.offset as usize) {
                *entry = None;
            }
        }
    }

    fn has_room(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The protocol as a store of the engine: what the engine does not ask for in a run is not there.
struct Behind(Arc<Journaled>);

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Store for Behind {
    fn kind(&self) -> &'static str {
        "journaled"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(self.0.insert(id, facts, lease))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(self.0.replace(id, write))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(self.0.extend(id, holder, lease))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(self.0.remove(id, expect))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(self.0.get(id))
    }

    fn scan(&self, _after: Option<RecordId>, _limit: usize, _filter: Filter) -> Answer<'_, Page> {
        unreachable!("nobody lists records in a run")
    }

    fn sweep(&self, _limit: usize, _waits: Duration) -> Answer<'_, Swept> {
        unreachable!("nobody sweeps in a run")
    }

    fn watch(&self, _id: RecordId) -> Watch {
        Watch::never()
    }

    fn keep_rules<'a>(&'a self, _policy: u32, _rules: &'a str) -> Answer<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn rules(&self, _policy: u32) -> Answer<'_, Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn usage(&self, _tenant: &str) -> Usage {
        Usage::default()
    }

    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    fn stats(&self) -> Stats {
        Stats { accepts_claims: true, ..Stats::default() }
    }
}

/// One life of a gateway.
#[derive(Clone)]
pub(crate) struct Gateway {
    world: Arc<World>,
    pub(crate) who: usize,
    life: u32,
    pub(crate) journaled: Arc<Journaled>,
    pub(crate) owed: Arc<Owed>,
    jobs: Jobs,
}

impl Gateway {
    /// Begins a session, of a process that owes what its earlier ones left.
    pub(crate) fn start(world: &Arc<World>, who: usize, owed: Arc<Owed>) -> Self {
        let life = world.lock().gateways[who].life;
        let session = world.new_session(who);
        let front = SimFront { world: Arc::clone(world), who, life };
        let journal = SimJournal { world: Arc::clone(world), who, life };
        let spool = SimSpool { world: Arc::clone(world), who, life };
        let options = Options { session, partitions: PARTITIONS, deadline: DEADLINE };
        let journaled =
            Arc::new(Journaled::start(options, Arc::new(front), Arc::new(journal), Arc::new(spool), Arc::clone(&owed)));
        let routes = Routes::new(vec![], Route::new("default"));
        let limits = Limits { replay_cache_bytes: 0, ..Limits::default() };
        let store = Arc::new(Behind(Arc::clone(&journaled)));
        let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, limits, session);
        let policy = {
            let inner = world.lock();
            let (two_phase_dispatch, retention, sliding_max) =
                (inner.has_two_phases, inner.retention, inner.sliding_max);
            let lease = Duration::from_millis(1_500);
            Policy { lease, two_phase_dispatch, retention, sliding_max, ..Policy::default() }
        };
        let jobs = Jobs::new(engine, "work", policy, Duration::from_millis(700));
        Self { world: Arc::clone(world), who, life, journaled, owed, jobs }
    }

    /// What a process that begins owes: what those before it left on its disk.
    pub(crate) fn owed(world: &World, who: usize) -> Arc<Owed> {
        Arc::new(Owed::new(world.lock().gateways[who].disk.left()))
    }

    /// Sends the request of a key through this gateway, and notes what came of it.
    pub(crate) async fn request(&self, key: Key) -> Told {
        self.ask(key, false).await
    }

    /// As [`request`](Self::request); the job does what it is to do where `goes_well`.
    pub(crate) async fn ask(&self, key: Key, goes_well: bool) -> Told {
        let (world, who, life) = (Arc::clone(&self.world), self.who, self.life);
        let asked_at = world.elapsed();
        let is_alone = {
            let history = &mut world.lock().history;
            history.asked.insert(key, asked_at);
            let open = history.open.entry(key).or_default();
            *open += 1;
            *open == 1
        };
        let upstream = Arc::clone(&world);
        let work = move |run: onceward::Run| async move {
            let (before, takes, dice) = {
                let rng = &mut upstream.lock().rng;
                let takes = if rng.u32(..10) == 0 { 3_000 } else { 50 };
                let dice = if goes_well { 50 } else { rng.u32(..100) };
                (rng.u64(1..5), rng.u64(1..takes), dice)
            };
            let begun = upstream.elapsed();
            upstream.lock().history.begun.insert(key, begun);
            sleep(Duration::from_millis(before)).await;
            upstream.awake(who, life).await;
            if dice < 8 {
                return Err(JobError::NotDone(Nothing));
            }
            // On its way: what the gateway does from now on changes nothing for it.
            let effect = Effect { key, fence: run.fence, at: upstream.elapsed(), who };
            tracing::debug!(at = ?upstream.elapsed(), key, who, fence = run.fence, "sent");
            if dice < 95 {
                upstream.lock().history.effects.push(effect);
            }
            sleep(Duration::from_millis(takes)).await;
            upstream.awake(who, life).await;
            if !(15..95).contains(&dice) {
                return Err(JobError::Unknown(Nothing));
            }
            Ok(Bytes::from(answer(key, run.fence)))
        };
        let told = match self.jobs.run_once(&format!("key-{key}"), b"", work).await {
            Ok(done) => Told::Done(String::from_utf8_lossy(&done.output).into_owned()),
            Err(RunError::InFlight) => Told::InFlight,
            Err(RunError::OutcomeUnknown | RunError::ClaimLost | RunError::Job(JobError::Unknown(_))) => Told::Unknown,
            Err(RunError::Gone) => Told::Gone,
            Err(RunError::StoreUnavailable) => Told::Unavailable,
            Err(RunError::Job(JobError::NotDone(_))) => Told::NotDone,
            Err(other) => Told::Other(other.to_string()),
        };
        world.awake(who, life).await;
        tracing::debug!(at = ?world.elapsed(), ?asked_at, key, who, ?told, "told");
        let call = Call { key, who, asked_at, told_at: world.elapsed(), is_alone, told: told.clone() };
        let history = &mut world.lock().history;
        history.calls.push(call);
        history.open.entry(key).and_modify(|open| *open -= 1);
        told
    }

    /// Erases a key, as an operator does, and notes that it is done.
    pub(crate) async fn erase(&self, key: Key) {
        use onceward_core::transition::{self, Forget, Write as Wanted};
        let id = record_id(key);
        let Ok(Read { record: Some(record), now }) = self.journaled.get(id).await else { return };
        let kept = self.world.lock().retention;
        let Ok(Wanted::Replace(write)) = transition::forget(&record, Forget::Erase, false, "asked to", kept, now)
        else {
            return;
        };
        if matches!(self.journaled.replace(id, &write).await, Ok(Write::Applied { .. })) {
            self.world.awake(self.who, self.life).await;
            let at = self.world.elapsed();
            tracing::debug!(?at, key, who = self.who, "erased");
            self.world.lock().history.erased.entry(key).or_insert(at);
        }
    }

    /// Settles an unknown outcome by the upstream's books, where they say that it took effect: only that stays true.
    pub(crate) async fn settle(&self, key: Key) {
        use onceward_core::{
            outcome::Outcome,
            transition::{self, Resolution},
        };
        let id = record_id(key);
        let Ok(Read { record: Some(record), now }) = self.journaled.get(id).await else { return };
        let effect = {
            let history = &self.world.lock().history;
            let begun = history.begun.get(&key).copied().unwrap_or_default();
            // Of the run that is there now.
            history.effects.iter().rfind(|effect| effect.key == key && effect.at >= begun).cloned()
        };
        let Some(Effect { fence, .. }) = effect else { return };
        let body = Bytes::from(answer(key, fence));
        let outcome = Outcome { status: 200, body, ..Outcome::default() };
        let kept = self.world.lock().retention;
        let wanted = transition::resolve(&record, Resolution::Executed(outcome), "by the books", kept, now);
        if let Ok(write) = wanted {
            drop(self.journaled.replace(id, &write).await);
        }
    }
}

/// As [`Jobs::run_once`] makes it.
pub(crate) fn record_id(key: Key) -> RecordId {
    use onceward_core::key::Scope;
    let scope = Scope { tenant: "default", env: "default", principal: "job", route: "work" };
    RecordId::derive(&Secret::from_bytes([7; 32]), &scope, &format!("key-{key}"))
}

/// Why a job says so.
#[derive(Debug, thiserror::Error)]
#[error("the dice said so")]
pub(crate) struct Nothing;
