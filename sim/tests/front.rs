//! The scripts of the journal's front on a real Redis, held to the rules that the simulator proves the protocol by: the same
//! calls, in the same order, give the same answers and leave the same records.
//!
//! The scripts' clock is fixed by a key that only tests' scripts read, ahead of the machine's, so that both know the same
//! time to the microsecond. A store's time never goes back, so both take the latest that was answered where the clock does.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use fastrand::Rng;
use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease, Replacement},
    key::RecordId,
    outcome::{Checkpoint, Field, Outcome},
    record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
    transition,
};
use onceward_sim::server::Server as Rules;
use onceward_store::{
    journaled::{At, Dirty, Fact, Front, Install, Row, Sight, Stepped, View, What},
    redis::{
        JournaledFront, Options, Redis,
        address::{Address, Credentials},
    },
};

const SEED: u64 = 0x0f0f_2026;
/// Each begins without data, and is over before the server removes anything by its own clock.
const EPISODES: u64 = 30;
const CALLS: u64 = 400;
const PARTITIONS: u16 = 2;
const IDS: u8 = 3;
const SESSIONS: u8 = 3;
/// How far the clock may go back before nothing is done any more.
const BACK_US_MAX: u64 = 2_000_000;

async fn opened(url: &str) -> Redis {
    let address = Address::new(url, Credentials::default(), Credentials::default(), None).unwrap();
    Redis::open(Options { clock_moves: true, usage: false, ..Options::new(address) }).await.unwrap()
}

fn id(partition: u16, number: u8) -> RecordId {
    let mut id = [number; 32];
    id[..2].copy_from_slice(&partition.to_be_bytes());
    RecordId(id)
}

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

async fn look(front: &JournaledFront, partition: u16) -> Sight {
    front.look(&[partition]).await.unwrap().first().unwrap().1
}

/// The real one, the rules, and what both are told.
struct Both<'a> {
    server: &'a servers::Redis,
    store: Redis,
    front: JournaledFront,
    rules: Rules,
    rng: Rng,
    clock: u64,
    /// The latest that the clock has shown.
    clock_max: u64,
    /// The latest that was answered.
    answered: u64,
    seen: BTreeMap<String, u64>,
}

impl Both<'_> {
    fn now(&self) -> Micros {
        Micros(self.clock.max(self.answered))
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.seen.entry(what.into()).or_default() += 1;
    }

    async fn set_clock(&mut self, to: u64) {
        self.clock = to;
        self.clock_max = self.clock_max.max(to);
        for partition in 0..PARTITIONS {
            self.store.fix_clock(partition, Micros(to)).await.unwrap();
        }
    }

    /// Empty, at a time whose lower half is about to be full, or not.
    async fn begin(&mut self) {
        self.server.command(&["FLUSHALL"]).unwrap();
        let incarnation = look(&self.front, 0).await.incarnation;
        self.rules = Rules::new(incarnation, true, PARTITIONS);
        let low = if self.rng.bool() { u64::from(u32::MAX) - self.rng.u64(..2_000) } else { self.rng.u64(..1 << 32) };
        let later = (self.answered.max(2_000_000_000_000_000) >> 32) + 1;
        self.clock_max = 0;
        self.set_clock((later << 32) + low).await;
    }

    fn partition(&mut self) -> u16 {
        self.rng.u16(..PARTITIONS)
    }

    fn at(&mut self, partition: u16) -> At {
        let sight = self.rules.look(partition).unwrap();
        // Mostly one that is let in.
        let session = session(if self.rng.u8(..4) > 0 { 0 } else { self.rng.u8(..SESSIONS) });
        let mut at = At { partition, view: sight.view, incarnation: sight.incarnation, session };
        match self.rng.u8(..60) {
            0 => at.view.number += 1,
            1 => at.view.tag += 1,
            2 => at.incarnation.0[19] ^= 1,
            3 => at.view = View::default(),
            _ => {}
        }
        at
    }

    fn span(&mut self) -> Duration {
        match self.rng.u8(..20) {
            0 => Duration::MAX,
            1 => Duration::ZERO,
            2..8 => Duration::from_micros(self.rng.u64(..3_000)),
            _ => Duration::from_secs(self.rng.u64(1..3_600)),
        }
    }

    fn facts(&mut self) -> Facts {
        let rng = &mut self.rng;
        let states =
            [State::InFlight, State::InFlight, State::NotExecuted, State::Completed, State::Failed, State::Erased];
        let state = rng.choice(states).unwrap();
        let body = rng.choice([&b""[..], b"ok", &b"{\"id\":\"pay_1\",\"amount\":100},".repeat(40)]).unwrap().to_vec();
        let outcome = (matches!(state, State::Completed | State::Failed) && rng.u8(..4) > 0).then(|| Outcome {
            status: 201,
            headers: vec![Field { name: "content-type".into(), value: "application/json".into() }],
            body: body.into(),
            body_until: if rng.bool() { Micros::ZERO } else { Micros(rng.u64(1..1 << 50)) },
            ..Outcome::default()
        });
        let checkpoint =
            (rng.u8(..3) == 0).then(|| Checkpoint { seq: rng.u32(1..4), name: "step".into(), data: "x".into() });
        Facts {
            state,
            phase: if rng.bool() { Phase::Claimed } else { Phase::Dispatched },
            ambiguous: rng.bool(),
            attempt: rng.u32(..3),
            settled_at: Micros(rng.u64(..1 << 50)),
            outcome,
            checkpoint,
            ..transition::place(ClaimId([rng.u8(..3); 16]), session(rng.u8(..SESSIONS)))
        }
    }

    /// About as high as those that are there.
    fn fence(&mut self, id: &RecordId) -> Fence {
        let there = self.rules.record(id.partition(), id).map_or(self.clock, |record| record.stored.fence.0);
        match self.rng.u8(..8) {
            0 => Fence(there + 1),
            1 => Fence(there - 1),
            2 => Fence(self.clock),
            3 => Fence(self.clock - self.rng.u64(..3_000_000)),
            4 => Fence(self.clock + self.rng.u64(..3_000_000)),
            _ => Fence(there),
        }
    }

    /// Of the journal.
    fn row(&mut self, id: &RecordId) -> Record {
        let around = |rng: &mut Rng, clock: u64| Micros(clock - 1_000_000 + rng.u64(..20_000_000));
        let (facts, fence) = (self.facts(), self.fence(id));
        let revisions = [1, 2, 7, u64::from(u32::MAX), u64::from(u32::MAX) - 1];
        let stored = Stored {
            fence,
            revision: Revision(self.rng.choice(revisions).unwrap()),
            lease_until: around(&mut self.rng, self.clock),
            keep_until: if self.rng.bool() { Micros::ZERO } else { around(&mut self.rng, self.clock) },
            written_at: around(&mut self.rng, self.clock),
        };
        // A copy of what is there, as often as not: what was shipped comes back.
        match self.rules.record(id.partition(), id) {
            Some(record) if self.rng.bool() => {
                let phase = if self.rng.bool() { Phase::Claimed } else { Phase::Dispatched };
                Record { facts: Facts { phase, ..record.facts.clone() }, ..record.clone() }
            }
            _ => Record { stored, facts },
        }
    }

    fn facts_of_journal(&mut self, partition: u16, count: usize) -> Vec<Fact> {
        (0..count)
            .map(|_| {
                let id = id(partition, self.rng.u8(..IDS));
                Fact { id, record: Arc::new(self.row(&id)) }
            })
            .collect()
    }

    fn expect(&mut self, id: &RecordId) -> Expect {
        let there = self.rules.record(id.partition(), id).map_or(Revision(1), |record| record.stored.revision);
        let fence = self.fence(id);
        match self.rng.u8(..8) {
            0..4 => Expect::Holder(fence),
            4 => Expect::Seen(fence, Revision(there.0 + 1)),
            _ => Expect::Seen(fence, there),
        }
    }

    async fn step(&mut self) {
        let partition = self.partition();
        let (id, at) = (id(partition, self.rng.u8(..IDS)), self.at(partition));
        let row: Option<Row> = match self.rng.u8(..6) {
            0..3 => None,
            3 => Some(None),
            _ => Some(Some(Box::new(self.row(&id)))),
        };
        let (facts, lease, span) = (self.facts(), self.span(), self.span());
        let write = Replacement {
            expect: self.expect(&id),
            facts: facts.clone(),
            fence: if self.rng.bool() { FenceRule::Keep } else { FenceRule::Next },
            lease: self.rng.choice([Lease::Keep, Lease::Over, Lease::For(span)]).unwrap(),
            keep: self.rng.choice([Keep::Open, Keep::For(span)]).unwrap(),
        };
        let claim = Facts { state: State::InFlight, outcome: None, ..facts };
        let (name, what) = match self.rng.u8(..10) {
            0..3 => ("insert", What::Insert { facts: &claim, lease }),
            3..6 => ("replace", What::Replace(&write)),
            6 => ("extend", What::Extend { holder: self.fence(&id), lease }),
            7 => ("release", What::Release(write.expect)),
            _ => ("get", What::Get),
        };
        let before = self.rules.record(partition, &id).cloned();
        let real = self.front.step(&at, id, what, row.as_ref()).await.unwrap();
        let now = self.now();
        let ruled = self.rules.step(&at, id, what, row.as_ref(), now);
        let (came_to, answered) = match &ruled {
            Stepped::Done { now, .. } => ("done", Some(*now)),
            Stepped::There { now, .. } => ("there", Some(*now)),
            Stepped::Absent { now } => ("absent", Some(*now)),
            Stepped::NeedsRow => ("needs the row", None),
            Stepped::Elsewhere => ("elsewhere", None),
        };
        self.count(format!("{name}: {came_to}"));
        let is_warm = self.rules.look(partition).unwrap().is_warm;
        if came_to == "needs the row" && is_warm {
            self.count("below the horizon: needs the row");
        }
        let is_open = |record: &Record| matches!(record.facts.state, State::InFlight | State::NotExecuted);
        if came_to == "absent"
            && matches!(row, Some(None))
            && before.as_ref().is_some_and(|record| is_open(record) && !record.is_expired(now))
        {
            self.count("below the horizon: absent");
        }
        let left = self.rules.record(partition, &id).map(|record| record.stored.fence);
        if before.as_ref().is_some_and(|record| is_open(record) && left.is_some_and(|left| left < record.stored.fence))
        {
            self.count("a claim of an earlier view gives way");
        }
        let told = format!("{at:?} {id} {what:?}\n row {row:?}\n before {before:?}\n now {now:?}");
        same(&real, &ruled, &told);
        self.answered = self.answered.max(answered.unwrap_or_default().0);
        let kept = self.front.kept(partition, &id).await.unwrap();
        same(&kept.as_ref(), &self.rules.record(partition, &id), &told);
    }

    async fn view(&mut self) {
        let partition = self.partition();
        let mut at = self.at(partition);
        // A view's number is 1 at least.
        at.view.number = (at.view.number + self.rng.u64(..3)).max(1);
        at.view.tag = self.rng.u64(1..3);
        let count = self.rng.usize(..4);
        let erased = self.facts_of_journal(partition, count);
        let marks = [0, self.clock - 5, self.clock + 1_000_000, self.clock | u64::from(u32::MAX)];
        let horizons = [0, self.clock - self.rng.u64(..3_000_000), self.clock, self.clock + 1_000_000];
        let install = Install {
            admitted: (0..SESSIONS).filter(|number| *number == 0 || self.rng.bool()).map(session).collect(),
            mark: Fence(self.rng.choice(marks).unwrap()),
            horizon: Fence(self.rng.choice(horizons).unwrap()),
            erased,
        };
        let real = self.front.install(&at, &install).await.unwrap();
        let now = self.now();
        let ruled = self.rules.install(&at, &install, now);
        self.count(format!("install: {ruled}"));
        same(&real, &ruled, &format!("{at:?} {install:?} now {now:?}"));
        self.compare(partition).await;
    }

    async fn other(&mut self) {
        let partition = self.partition();
        let at = self.at(partition);
        let told = format!("{at:?}");
        match self.rng.u8(..10) {
            0..2 => {
                let (real, ruled) = (self.front.admit(&at).await.unwrap(), self.rules.admit(&at));
                self.count(format!("admit: {ruled}"));
                same(&real, &ruled, &told);
            }
            2 => {
                let target = session(self.rng.u8(..SESSIONS));
                let real = self.front.shut_out(&at, target).await.unwrap();
                let ruled = self.rules.shut_out(&at, target);
                self.count(format!("shut out: {ruled}"));
                same(&real, &ruled, &told);
            }
            3 => {
                let (real, ruled) = (self.front.warm(&at).await.unwrap(), self.rules.warm(&at));
                self.count(format!("warm: {ruled}"));
                same(&real, &ruled, &told);
            }
            4..6 => {
                // More than one script takes, now and then.
                let count = if self.rng.u8(..6) == 0 { 80 } else { self.rng.usize(..4) };
                let rows = self.facts_of_journal(partition, count);
                let real = self.front.merge(&at, &rows).await.unwrap();
                let now = self.now();
                let ruled = self.rules.merge(&at, &rows, now);
                self.count(format!("merge: {ruled}"));
                same(&real, &ruled, &told);
                self.compare(partition).await;
            }
            6..9 => {
                let mut shipped = Vec::new();
                for number in 0..IDS {
                    let id = id(partition, number);
                    let Some(stored) = self.rules.record(partition, &id).map(|record| record.stored) else { continue };
                    let revision = Revision(stored.revision.0 - u64::from(self.rng.u8(..4) == 0));
                    shipped.push(Dirty { id, fence: stored.fence, revision });
                }
                let real = self.front.clean(&at, &shipped).await.unwrap();
                let ruled = self.rules.clean(&at, &shipped);
                let gone = shipped.iter().filter(|of| self.rules.record(partition, &of.id).is_none()).count();
                self.count(if gone > 0 { "clean: gone".to_owned() } else { format!("clean: {ruled}") });
                same(&real, &ruled, &told);
                self.compare(partition).await;
            }
            _ => self.compare(partition).await,
        }
    }

    /// Every record of the partition, what is dirty of it, and its view.
    async fn compare(&mut self, partition: u16) {
        for number in 0..IDS {
            let id = id(partition, number);
            let kept = self.front.kept(partition, &id).await.unwrap();
            same(&kept.as_ref(), &self.rules.record(partition, &id), &id);
        }
        let sight = self.rules.look(partition).unwrap();
        same(&look(&self.front, partition).await, &sight, &partition);
        for number in 0..SESSIONS {
            let Self { front, rules, .. } = self;
            let at = At { partition, view: sight.view, incarnation: sight.incarnation, session: session(number) };
            let (real, ruled) = (front.dirty(&at).await.unwrap(), rules.dirty(&at));
            let is_some = ruled.is_some();
            same(&real, &ruled, &at);
            self.count(format!("dirty: {is_some}"));
        }
    }

    async fn call(&mut self) {
        match self.rng.u8(..100) {
            0..20 => {
                let to = match self.rng.u8(..10) {
                    0 => self.clock + self.rng.u64(..4_000_000_000),
                    1 => (self.clock - self.rng.u64(..BACK_US_MAX)).max(self.clock_max - BACK_US_MAX),
                    2..6 => self.clock + 1,
                    _ => self.clock + self.rng.u64(..1_000_000),
                };
                self.set_clock(to).await;
            }
            20..25 => self.view().await,
            25..45 => self.other().await,
            _ => self.step().await,
        }
    }
}

#[track_caller]
fn same(real: &impl Debug, ruled: &impl Debug, told: &impl Debug) {
    let (real, ruled) = (format!("{real:?}"), format!("{ruled:?}"));
    if real != ruled {
        panic!("real   {real}\nruled  {ruled}\n{told:#?}");
    }
}

/// Says where it was when a call failed.
struct Place {
    episode: u64,
    call: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("in episode {}, at call {}", self.episode, self.call);
        }
    }
}

async fn the_same(server: &servers::Redis) {
    println!("seed {SEED:#x}, {EPISODES} episodes of {CALLS} calls");
    let store = opened(&server.url()).await;
    let (front, rules) = (store.front(), Rules::new(Default::default(), true, PARTITIONS));
    let (rng, seen) = (Rng::with_seed(SEED), BTreeMap::new());
    let mut both = Both { server, store, front, rules, rng, clock: 0, clock_max: 0, answered: 0, seen };
    for episode in 0..EPISODES {
        both.rng = Rng::with_seed(SEED + episode);
        both.begin().await;
        for call in 0..CALLS {
            let _place = Place { episode, call };
            both.call().await;
        }
        for partition in 0..PARTITIONS {
            both.compare(partition).await;
        }
    }
    println!("{:#?}", both.seen);
    for name in ["insert", "replace", "extend", "release", "get"] {
        for came_to in ["done", "there", "absent", "needs the row", "elsewhere"] {
            let can = !matches!((name, came_to), ("get", "done") | ("insert", "absent"));
            let count = both.seen.get(&format!("{name}: {came_to}")).copied().unwrap_or_default();
            assert!(!can || count > 0, "this shows nothing of {name}: {came_to}");
        }
    }
    let decided_by_the_row =
        ["below the horizon: needs the row", "below the horizon: absent", "a claim of an earlier view gives way"];
    for call in decided_by_the_row {
        assert!(both.seen.contains_key(call), "this shows nothing of what is {call}");
    }
    for call in ["install: true", "install: false", "admit: true", "admit: false", "shut out: true", "clean: gone"] {
        assert!(both.seen.contains_key(call), "this shows nothing of {call}");
    }
}

#[tokio::test]
async fn the_scripts_say_and_leave_what_the_simulators_rules_do() {
    the_same(&servers::Redis::start(&[]).unwrap()).await;
}

#[tokio::test]
async fn the_scripts_say_and_leave_the_same_on_valkey() {
    the_same(&servers::Redis::valkey(&[]).unwrap()).await;
}
