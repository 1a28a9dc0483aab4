//! The functions of the journal in SQL beside the simulator's rules: one random sequence of calls, answered by both.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use futures_util::TryStreamExt as _;
use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease, Replacement},
    key::RecordId,
    outcome::{Checkpoint, Outcome},
    record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
    transition,
};
use onceward_sim::database::Database;
use onceward_store::{
    StoreError,
    journaled::{
        At, Fact, Horizon, Incarnation, Journal as _, LastActive, Mark, Opening, Snapshot, Stepped, Timeline, View,
        ViewRow, What,
    },
    postgres::{
        Failover, JournalOptions, Options, Postgres, PostgresJournal,
        address::Address,
        forced::{Forced, Said, Wish},
        migrate::{MIGRATIONS, migrate},
    },
};
use servers::Postgres as Server;

const SEEDS: [u64; 3] = [1, 2, 3];
const CALLS: usize = 700;
/// Of 256: views come and go in these.
const PARTITIONS: [u16; 3] = [0, 7, 255];
const CONNECTIONS: usize = 3;
/// So much longer than the test takes that its own time does not count.
const SILENCE: Duration = Duration::from_secs(3_000_000);
const HEARD_WITHIN: Duration = Duration::from_secs(1_000_000);
/// A time that has not come.
const FAR: Micros = Micros(1 << 60);
const STEP: Duration = Duration::from_secs(2_000_000);

/// The same two ways.
struct Both {
    rng: Rng,
    server: Server,
    journals: Vec<PostgresJournal>,
    forced: Forced,
    rules: Database,
    now: Duration,
    /// Sessions that there ever were; the last few are those that do something.
    sessions: u64,
    /// As it was seen last, and before that.
    seen: Snapshot,
    before: Snapshot,
    /// The view that was active last, of each partition.
    active: BTreeMap<u16, ViewRow>,
    /// How often each call was taken, and refused.
    counts: BTreeMap<&'static str, [usize; 2]>,
}

impl Both {
    async fn start(seed: u64) -> Self {
        let server = Server::start(&[]).unwrap();
        server.create_database("shop").unwrap();
        let address = Address::new(&server.url("shop"), None, None).unwrap();
        migrate(&address, MIGRATIONS, false).await.unwrap();
        let forced = Forced::connect(&address).await.unwrap();
        let store = Postgres::open(Options::new(address)).await.unwrap();
        let options = JournalOptions { failover: Failover::None, silence: SILENCE, heard_within: HEARD_WITHIN };
        let journals: Vec<_> = (0..CONNECTIONS).map(|_| store.journal(options.clone())).collect();
        let seen = journals[0].look(session(0)).await.unwrap();
        Self {
            rng: Rng::with_seed(seed),
            server,
            forced,
            rules: Database::new(256, seen.timeline),
            journals,
            now: Duration::ZERO,
            sessions: 3,
            before: seen.clone(),
            active: BTreeMap::new(),
            seen,
            counts: BTreeMap::new(),
        }
    }

    fn journal(&mut self) -> &PostgresJournal {
        let which = self.rng.usize(..CONNECTIONS);
        &self.journals[which]
    }

    fn count(&mut self, call: &'static str, is_taken: bool) {
        self.counts.entry(call).or_default()[usize::from(!is_taken)] += 1;
    }

    /// One of the last few, or one that never joined.
    fn session(&mut self) -> SessionId {
        match self.rng.u32(..20) {
            0 => session(9_999),
            _ => session(self.sessions - self.rng.u64(..self.sessions.min(5))),
        }
    }

    /// Mostly the present one.
    fn timeline(&mut self) -> Timeline {
        self.seen.timeline ^ u64::from(self.rng.u32(..12) == 0)
    }

    fn partitions(&mut self) -> Vec<u16> {
        let mut some: Vec<u16> = PARTITIONS.into_iter().filter(|_| self.rng.u32(..4) > 0).collect();
        self.rng.shuffle(&mut some);
        some
    }

    /// A view as it is, as it was, or as none is.
    fn view(&mut self, partition: u16) -> ViewRow {
        let from = if self.rng.u32(..6) == 0 { &self.before } else { &self.seen };
        let mut row = from.views[usize::from(partition)];
        match self.rng.u32(..30) {
            0 => row.view.tag ^= 1,
            1 => row.view.number += 1,
            _ => {}
        }
        row
    }

    fn views(&mut self) -> Vec<(u16, View)> {
        let of = self.partitions();
        of.into_iter().map(|partition| (partition, self.view(partition).view)).collect()
    }

    fn last_active(&mut self, partition: u16) -> LastActive {
        let active = self.active.get(&partition).copied().filter(|_| self.rng.u32(..4) > 0);
        let ViewRow { partition, view, incarnation, .. } = active.unwrap_or_else(|| self.view(partition));
        let incarnation = if self.rng.u32(..20) == 0 { Incarnation([9; 20]) } else { incarnation };
        LastActive { partition, view, incarnation }
    }

    fn id(&mut self) -> RecordId {
        let mut id = [0; 32];
        (id[0], id[1], id[2]) = (self.rng.u8(..), PARTITIONS[self.rng.usize(..3)] as u8, 1);
        id[0] %= 4;
        RecordId(id)
    }

    fn facts(&mut self) -> Vec<Fact> {
        let count = self.rng.usize(..12);
        (0..count).map(|_| Fact { id: self.id(), record: Arc::new(record(&mut self.rng)) }).collect()
    }

    /// Looks with both, and at the tags that were drawn.
    async fn look(&mut self, session: SessionId) {
        let seen = self.journal().look(session).await.unwrap();
        let expected = self.rules.look(session, self.now, SILENCE, self.rules.mark);
        assert_eq!(Snapshot { kept: expected.kept, ..seen.clone() }, expected);
        if self.seen.views != seen.views {
            self.before = std::mem::replace(&mut self.seen, seen);
        } else {
            self.seen = seen;
        }
    }

    /// Both shipped, or neither; what is shipped to a server that nothing takes over from is past losing.
    async fn shipped(&mut self, call: &'static str, said: Result<Option<Mark>, StoreError>, expected: Option<Mark>) {
        let said = said.unwrap();
        assert_eq!(said.is_some(), expected.is_some(), "{call}");
        self.count(call, said.is_some());
        if let Some(mark) = said {
            let kept = self.journal().look(session(0)).await.unwrap().kept;
            assert!(mark <= kept, "{call}: {mark} is behind {kept}");
        }
    }

    async fn call(&mut self) {
        let (who, timeline) = (self.session(), self.timeline());
        match self.rng.u32(..100) {
            0..=7 => {
                if self.rng.bool() {
                    self.sessions += 1;
                }
                let who = if self.rng.bool() { session(self.sessions) } else { who };
                let said = self.journal().join(who, timeline).await.unwrap();
                assert_eq!(said, self.rules.join(who, timeline, self.now), "join");
                self.count("join", said);
            }
            8..=15 => self.open(who, timeline).await,
            16..=28 => {
                let mut views = self.views();
                let mut said = self.journal().acknowledge(who, timeline, &views).await.unwrap();
                let mut expected = self.rules.acknowledge(who, timeline, &views);
                said.sort_unstable();
                expected.sort_unstable();
                assert_eq!(said, expected, "acknowledge {views:?}");
                views.retain(|(partition, _)| !said.contains(partition));
                self.count("acknowledge", !said.is_empty());
                self.count("acknowledge in part", !said.is_empty() && !views.is_empty());
            }
            29..=33 => self.activate(timeline).await,
            34..=49 => {
                let facts = self.facts();
                let said = self.journal().ship(who, timeline, &facts).await;
                let expected = self.rules.ship(who, timeline, &facts);
                self.shipped("ship", said, expected).await;
            }
            50..=58 => {
                let id = self.id();
                let partition = if self.rng.u32(..20) == 0 { 9 } else { id.partition() };
                let view = self.view(partition).view;
                let said = self.journal().row(partition, view, id).await.unwrap();
                let expected = self.rules.row(partition, view, id);
                assert_eq!(said, expected, "row");
                self.count("row", said.is_some());
                self.count("row that is there", said.is_some_and(|row| row.is_some()));
            }
            59..=65 => {
                let partition = PARTITIONS[self.rng.usize(..3)];
                let (view, limit) = (self.view(partition).view, self.rng.usize(..6));
                let after = self.rng.bool().then(|| self.id());
                let said = self.journal().rows(partition, view, after, limit).await.unwrap();
                assert_eq!(said, self.rules.rows(partition, view, after, limit), "rows");
                self.count("rows", said.is_some());
                let in_flight = self.rng.bool();
                let (listed, _) = self.journal().list(after, limit, in_flight).await.unwrap();
                assert_eq!(listed, self.rules.list(after, limit, in_flight), "list");
                self.count(if in_flight { "list of what is in flight" } else { "list" }, !listed.is_empty());
            }
            66..=68 => {
                let said = self.journal().leave(who, timeline).await.unwrap();
                assert_eq!(said, self.rules.leave(who, timeline), "leave");
                self.count("leave", said);
            }
            69..=73 => {
                let target = self.session();
                self.retire(who, target, timeline).await;
            }
            74..=80 => {
                let (partition, facts) = (PARTITIONS[self.rng.usize(..3)], self.facts());
                let view = self.last_active(partition);
                let said = self.journal().drain(who, timeline, &view, &facts).await;
                let expected = self.rules.drain(who, timeline, &view, &facts);
                self.shipped("drain", said, expected).await;
            }
            81..=87 => {
                let of = self.partitions();
                let views: Vec<LastActive> = of.into_iter().map(|partition| self.last_active(partition)).collect();
                let said = self.journal().retired(who, timeline, &views).await.unwrap();
                assert_eq!(said, self.rules.retired(who, timeline, &views), "retired {views:?}");
                self.count("retired", said);
            }
            88..=90 => self.sweep(timeline).await,
            91 => self.unreached(who).await,
            92 => {
                self.open(who, timeline).await;
                self.look(who).await;
                for _ in 0..3 {
                    let gone = self.session();
                    self.force(gone).await;
                }
            }
            93 => {
                self.now += STEP;
                let step = STEP.as_micros();
                let passes = format!(
                    "UPDATE onceward.journal_member SET heard_at = heard_at - {step}, unreached_at = unreached_at - {step}"
                );
                self.server.psql("shop", &passes).unwrap();
            }
            94 => self.change_views().await,
            _ => {
                // Mostly in views that serve.
                self.change_views().await;
                self.look(who).await;
                for _ in 0..12 {
                    let who = self.session();
                    self.step(who).await;
                }
                self.at_risk().await;
            }
        }
        let who = self.session();
        self.look(who).await;
        self.count("somebody is silent", !self.seen.silent.is_empty());
    }

    async fn open(&mut self, who: SessionId, timeline: Timeline) {
        let of = self.partitions();
        let openings = of.into_iter().map(|partition| Opening {
            before: self.view(partition),
            acknowledged: self.rng.u64(..6),
            incarnation: Incarnation([self.rng.u8(1..4); 20]),
        });
        let openings: Vec<Opening> = openings.collect();
        let said = self.journal().open(who, timeline, &openings).await.unwrap();
        // The tags are drawn by the database.
        let drawn = self.journal().look(session(0)).await.unwrap();
        let tag = |partition| drawn.views[usize::from(partition)].view.tag;
        assert_eq!(said, self.rules.open(who, timeline, &openings, tag), "open {openings:?}");
        self.count("open", said > 0);
        self.count("open in part", said > 0 && said < openings.len());
    }

    async fn activate(&mut self, timeline: Timeline) {
        let views = self.views();
        let kept = self.rules.mark;
        let mut said = self.journal().agreed(timeline, &views).await.unwrap();
        let mut expected = self.rules.agreed(timeline, &views, kept);
        said.sort_by_key(|of| of.0);
        expected.sort_by_key(|of| of.0);
        assert_eq!(said, expected, "agreed {views:?}");
        self.count("agreed", !said.is_empty());
        self.count("something erased", said.iter().any(|(_, install)| !install.erased.is_empty()));
        let mut said = self.journal().activate(timeline, &views).await.unwrap();
        let mut expected = self.rules.activate(timeline, &views, kept);
        said.sort_unstable();
        expected.sort_unstable();
        assert_eq!(said, expected, "activate {views:?}");
        self.active.extend(said.iter().map(|of| (*of, self.seen.views[usize::from(*of)])));
        self.count("activate", !said.is_empty());
    }

    /// Raises horizons, or removes what is below them: all of it, since which of many go first is said by nobody.
    async fn sweep(&mut self, timeline: Timeline) {
        if self.rng.bool() {
            let horizons = self.views().into_iter().map(|(partition, view)| {
                let fence = Fence(self.rng.u64(..9));
                Horizon { partition, view, fence }
            });
            let horizons: Vec<Horizon> = horizons.collect();
            let said = self.journal().raise(timeline, &horizons).await.unwrap();
            assert_eq!(said, self.rules.raise(timeline, &horizons), "raise {horizons:?}");
            self.count("raise", said > 0);
            self.count("raise in part", said > 0 && said < horizons.len());
        }
        let (swept, mut above) = self.journal().sweep(10_000, Duration::from_secs(1)).await.unwrap();
        let (expected, expected_above) = self.rules.sweep(10_000, Micros(FAR.0 - 1));
        above.sort_unstable();
        assert_eq!((swept, &above), (expected, &expected_above), "sweep");
        self.count("sweep", swept.removed > 0);
        self.count("something is above the horizon", !above.is_empty());
    }

    /// A step on a row, in a view that serves or does not, by a session that may or may not: the answer and what is left of
    /// the row.
    async fn step(&mut self, who: SessionId) {
        let id = self.id();
        let view = self.view(id.partition()).view;
        let at = At { partition: id.partition(), view, incarnation: Incarnation::DATABASE, session: who };
        let there = self.rules.row(at.partition, at.view, id).flatten().map(|row| row.stored).unwrap_or_default();
        let (facts, lease) = (record(&mut self.rng).facts, Duration::from_micros(self.rng.u64(..9)));
        let expect = match self.rng.u32(..4) {
            0 => Expect::Seen(there.fence, Revision(self.rng.u64(1..4))),
            1 => Expect::Seen(there.fence, there.revision),
            2 => Expect::Holder(Fence(self.rng.u64(1..6))),
            _ => Expect::Holder(there.fence),
        };
        let holder = match expect {
            Expect::Holder(fence) | Expect::Seen(fence, _) => fence,
        };
        let write = Replacement {
            expect,
            facts: facts.clone(),
            fence: if self.rng.bool() { FenceRule::Next } else { FenceRule::Keep },
            lease: if self.rng.bool() { Lease::For(lease) } else { Lease::Over },
            keep: if self.rng.bool() { Keep::For(Duration::from_micros(FAR.0)) } else { Keep::Open },
        };
        let placed = transition::place(ClaimId([self.rng.u8(..); 16]), who);
        let (call, what) = match self.rng.u32(..5) {
            0 => ("step: insert", What::Insert { facts: &placed, lease }),
            1 => ("step: replace", What::Replace(&write)),
            2 => ("step: extend", What::Extend { holder, lease }),
            3 => ("step: release", What::Release(expect)),
            _ => ("step: get", What::Get),
        };
        let said = self.journal().step(&at, id, what).await.unwrap();
        let now = match &said {
            Stepped::Done { now, .. } | Stepped::There { now, .. } | Stepped::Absent { now } => *now,
            Stepped::NeedsRow | Stepped::Elsewhere => Micros(1),
        };
        let expected = self.rules.step(&at, id, what, now);
        assert_eq!(format!("{said:?}"), format!("{expected:?}"), "{call} {id} {what:?}");
        self.count("step", !matches!(said, Stepped::Elsewhere));
        let is_taken = match what {
            What::Get => matches!(said, Stepped::There { .. }),
            _ => matches!(said, Stepped::Done { .. }),
        };
        self.count(call, is_taken);
        let row = self.journal().row(at.partition, at.view, id).await.unwrap();
        assert_eq!(row, self.rules.row(at.partition, at.view, id), "what {call} left");
    }

    async fn unreached(&mut self, who: SessionId) {
        // Most see the same.
        let partitions: Vec<u16> = match self.rng.u32(..4) {
            0 => self.partitions(),
            _ => PARTITIONS.to_vec(),
        };
        let rows = self.sessions;
        for number in 1..=rows {
            let who = if self.rng.u32(..4) == 0 { who } else { session(number) };
            let said = self.journal().unreached(who, &partitions).await.unwrap();
            let expected = self.rules.unreached(who, &partitions, self.now, HEARD_WITHIN);
            assert_eq!(said, expected, "unreached {partitions:?}");
            self.count("unreached by all", !said.by_all.is_empty());
            self.count("unreached by some", said.by_some.len() > said.by_all.len());
        }
    }

    /// Views go on without somebody.
    async fn force(&mut self, gone: SessionId) {
        let silence = if self.rng.u32(..3) == 0 { SILENCE } else { Duration::ZERO };
        let wish = Wish { session: gone, silence, keeps: STEP, clocks_differ: Duration::ZERO, is_try: false };
        let said = self.forced.without(&wish).await.unwrap();
        // Tags, and the mark from its clock, are drawn by the database.
        let drawn = self.journal().look(session(0)).await.unwrap();
        let tag = |partition: u16| drawn.views[usize::from(partition)].view.tag;
        let mark = self.forced.decisions().await.unwrap().last().map_or(Fence(0), |decision| decision.mark);
        let expected = self.rules.force(gone, self.now, silence, mark, tag).map(|(partitions, _)| partitions);
        let partitions = match &said {
            Said::Done { partitions, .. } => Some(partitions.clone()),
            _ => None,
        };
        assert_eq!(partitions, expected, "force {said:?}");
        self.count("force", expected.is_some());
    }

    /// What was granted since.
    async fn at_risk(&mut self) {
        if let Some(decision) = self.forced.decisions().await.unwrap().last() {
            let listed = self.forced.at_risk(decision).map_ok(|key| key.fact.id);
            let listed: BTreeSet<RecordId> = listed.try_collect().await.unwrap();
            let of = decision.partitions.iter();
            let expected: BTreeSet<RecordId> =
                of.flat_map(|partition| self.rules.granted_above(*partition, decision.mark)).collect();
            assert_eq!(listed, expected, "at risk");
            self.count("something is at risk", !listed.is_empty());
        }
    }

    async fn retire(&mut self, who: SessionId, target: SessionId, timeline: Timeline) {
        let views = self.journal().retire(who, target, timeline).await.unwrap();
        assert_eq!(views, self.rules.retire(who, target, timeline), "retire");
        self.count("retire", views.is_some());
        if let Some(views) = views.filter(|_| self.rng.bool()) {
            let said = self.journal().retired(target, timeline, &views).await.unwrap();
            assert_eq!(said, self.rules.retired(target, timeline, &views), "retired {views:?}");
        }
    }

    /// Everybody acknowledges what there is and who cannot leaves, so that views become active now and then; then somebody
    /// may be retired.
    async fn change_views(&mut self) {
        let views: Vec<_> = PARTITIONS.map(|of| (of, self.seen.views[usize::from(of)].view)).into();
        let timeline = self.seen.timeline;
        for number in 1..=self.sessions {
            let mut said = self.journal().acknowledge(session(number), timeline, &views).await.unwrap();
            let mut expected = self.rules.acknowledge(session(number), timeline, &views);
            said.sort_unstable();
            expected.sort_unstable();
            assert_eq!(said, expected, "acknowledge {views:?}");
        }
        for gone in self.seen.silent.clone() {
            assert_eq!(self.journal().leave(gone, timeline).await.unwrap(), self.rules.leave(gone, timeline));
        }
        self.activate(timeline).await;
        let (who, target) = (self.session(), self.session());
        self.retire(who, target, timeline).await;
    }
}

fn session(number: u64) -> SessionId {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    SessionId(id)
}

fn record(rng: &mut Rng) -> Record {
    let states = [State::InFlight, State::NotExecuted, State::Completed, State::Failed, State::Erased];
    let state = states[rng.usize(..states.len())];
    let facts = Facts {
        state,
        attempt: rng.u32(..2),
        phase: if rng.bool() { Phase::Dispatched } else { Phase::Claimed },
        ambiguous: rng.bool(),
        outcome: (state == State::Completed).then(|| Outcome { status: rng.u16(200..600), ..Outcome::default() }),
        checkpoint: rng.bool().then(|| Checkpoint { seq: rng.u32(..3), name: "step".into(), data: vec![0; 3].into() }),
        ..transition::place(ClaimId([rng.u8(..); 16]), session(1))
    };
    let stored = Stored {
        fence: Fence(rng.u64(1..6)),
        revision: Revision(rng.u64(1..9)),
        lease_until: Micros(rng.u64(..9)),
        keep_until: if rng.bool() { Micros(rng.u64(..9)) } else { FAR },
        written_at: Micros(rng.u64(..9)),
    };
    Record { stored, facts }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_functions_of_the_journal_answer_as_the_simulators_rules_do() {
    let mut counts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for seed in SEEDS {
        println!("seed {seed}");
        let mut both = Both::start(seed).await;
        for _ in 0..CALLS {
            both.call().await;
        }
        for (call, [taken, refused]) in both.counts {
            let count = counts.entry(call).or_default();
            *count = [count[0] + taken, count[1] + refused];
        }
    }
    for (call, [taken, refused]) in &counts {
        println!("{call}: {taken} taken, {refused} not");
        assert!(*taken > 3 && *refused > 3, "{call}: the sequence says too little of it");
    }
}
