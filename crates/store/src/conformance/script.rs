//! The language of the rows, and what is checked after every step of any row.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onceward_core::{
    decide::Ask,
    key::RecordId,
    outcome::{Field, Outcome},
    policy::{Policy, Step},
    record::{ClaimId, Fence, Micros, Record, Seen, SessionId, State},
    transition::{Forget, Resolution},
};

use super::{
    Hand, Harness,
    drive::{self, Driven, Holder, Said},
};
use crate::Store;

/// How long "short" lasts where the store's clock can be moved.
const SHORT_MOVED: Duration = Duration::from_secs(10);
/// How long it lasts where it cannot: it is waited for.
const SHORT_WAITED: Duration = Duration::from_millis(250);
/// Longer than any case.
const LONG: Duration = Duration::from_secs(3600);

/// One case as data.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) rule: &'static str,
    /// Done before; each must take effect.
    pub(super) given: &'static [Op],
    /// What is tried, and what it says.
    pub(super) op: Op,
    pub(super) says: Said,
    /// What a read shows afterwards.
    pub(super) after: Look,
    /// What else is true from there on.
    pub(super) then: &'static [(Op, Said)],
}

/// Who asks; each has a claim id and a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    A = 0xA1,
    B = 0xB2,
    C = 0xC3,
}

/// How long something lasts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Span {
    /// [`Op::Pass`] passes it.
    Short,
    /// Nothing does.
    Long,
}

/// Answers that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    First,
    Second,
    /// All byte values, repeated headers, trailers.
    Binary,
    /// The fact without its body.
    NotKept,
    /// None of these.
    Other,
}

impl Answer {
    pub(super) fn outcome(self) -> Outcome {
        let text = |status, body: &'static str| Outcome {
            status,
            headers: vec![field(b"content-type", b"text/plain")],
            body: Bytes::from_static(body.as_bytes()),
            ..Outcome::default()
        };
        match self {
            Self::First => text(201, "the first answer"),
            Self::Second => text(200, "another answer"),
            Self::NotKept => Outcome { status: 200, body_not_kept: true, ..Outcome::default() },
            Self::Binary => Outcome {
                status: 299,
                headers: vec![
                    field(b"x-repeated", b"one"),
                    field(b"x-bytes", &(0x80..=0xFF).collect::<Vec<u8>>()),
                    field(b"x-repeated", b"two"),
                    field(b"x-empty", b""),
                ],
                body: (0..=255).chain((0..=255).rev()).collect::<Vec<u8>>().into(),
                trailers: vec![field(b"grpc-status", b"0"), field(b"x-sum-bin", b"\xFF\x00\xFE")],
                ..Outcome::default()
            },
            Self::Other => panic!("it stands for what is none of ours"),
        }
    }

    pub(super) fn of(outcome: Option<&Outcome>) -> Self {
        let all = [Self::First, Self::Second, Self::Binary, Self::NotKept];
        all.into_iter().find(|answer| outcome == Some(&answer.outcome())).unwrap_or(Self::Other)
    }
}

fn field(name: &[u8], value: &[u8]) -> Field {
    Field { name: Bytes::copy_from_slice(name), value: Bytes::copy_from_slice(value) }
}

/// A claim and its circumstances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) who: Who,
    pub(super) fingerprint: u8,
    pub(super) lease: Span,
    pub(super) retry: bool,
    pub(super) two_phase: bool,
    /// Its process dies after the claim and before the dispatch.
    pub(super) dies: bool,
}

/// What can be done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Claim(Asking),
    Renew(Who, Span),
    Checkpoint(Who, u32, &'static str),
    Dispatched(Who),
    Complete(Who, Answer, Span),
    FailFinal(Who, Option<Answer>),
    FailRetryable(Who, Span),
    Release(Who),
    Executed(Answer),
    NotExecuted,
    GivenUp,
    Erase {
        force: bool,
        keep: Span,
    },
    Reuse {
        force: bool,
    },
    Sweep,
    /// Nothing but the read that follows every step.
    Look,
    /// More than a short span.
    Pass,
    /// The store's clock goes back, by less than would make it suspect.
    SetBack,
}

pub(super) const fn claim(who: Who) -> Asking {
    Asking { who, fingerprint: 1, lease: Span::Long, retry: false, two_phase: false, dies: false }
}

impl Asking {
    pub(super) const fn other_request(mut self) -> Self {
        self.fingerprint = 2;
        self
    }
    pub(super) const fn short(mut self) -> Self {
        self.lease = Span::Short;
        self
    }
    pub(super) const fn retry(mut self) -> Self {
        self.retry = true;
        self
    }
    pub(super) const fn two_phase(mut self) -> Self {
        self.two_phase = true;
        self
    }
    pub(super) const fn dies_before_dispatch(mut self) -> Self {
        self.two_phase = true;
        self.dies = true;
        self
    }
    pub(super) const fn op(self) -> Op {
        Op::Claim(self)
    }
}

/// What a read shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) seen: Option<Seen>,
    pub(super) attempt: u32,
    pub(super) ambiguous: bool,
    pub(super) checkpoint: u32,
    pub(super) answer: Option<Answer>,
}

pub(super) const fn nothing() -> Look {
    Look { seen: None, attempt: 0, ambiguous: false, checkpoint: 0, answer: None }
}

pub(super) const fn look(seen: Seen) -> Look {
    Look { seen: Some(seen), attempt: 1, ambiguous: false, checkpoint: 0, answer: None }
}

impl Look {
    pub(super) const fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }
    pub(super) const fn ambiguous(mut self) -> Self {
        self.ambiguous = true;
        self
    }
    pub(super) const fn checkpoint(mut self, seq: u32) -> Self {
        self.checkpoint = seq;
        self
    }
    pub(super) const fn answer(mut self, answer: Answer) -> Self {
        self.answer = Some(answer);
        self
    }

    pub(super) fn of(there: Option<&Record>, now: Micros) -> Self {
        let Some(record) = there else { return nothing() };
        Self {
            seen: drive::seen(there, now),
            attempt: record.facts.attempt,
            ambiguous: record.facts.ambiguous,
            checkpoint: record.facts.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq),
            answer: record.facts.outcome.as_ref().map(|outcome| Answer::of(Some(outcome))),
        }
    }
}

/// A key of a store, those who act on it, and what was seen of it.
pub(super) struct World {
    pub(super) store: Arc<dyn Store>,
    pub(super) id: RecordId,
    clock: Option<Arc<dyn Hand>>,
    /// Answers get lost on the way: what a step says is not all that it did.
    lossy: bool,
    holders: BTreeMap<Who, Holder>,
    /// The largest fence that any grant or forgetting of this key had.
    fence: Fence,
    /// The store's latest time.
    now: Micros,
    /// What the last read showed.
    there: Option<Record>,
}

impl World {
    pub(super) fn new(store: Arc<dyn Store>, clock: Option<Arc<dyn Hand>>) -> Self {
        Self {
            store,
            id: new_id(),
            clock,
            lossy: false,
            holders: BTreeMap::new(),
            fence: Fence(0),
            now: Micros::ZERO,
            there: None,
        }
    }

    /// A world behind a store that loses answers.
    pub(super) fn lossy(store: Arc<dyn Store>, clock: Option<Arc<dyn Hand>>) -> Self {
        Self { lossy: true, ..Self::new(store, clock) }
    }

    /// The key was written past this world.
    pub(super) async fn reread(&mut self) {
        let read = self.store.get(self.id).await.unwrap_or_else(|error| panic!("reading: {error}"));
        self.there = read.record;
    }

    /// Another store in the place of the first, as a decorator is.
    pub(super) fn through(&mut self, store: Arc<dyn Store>) {
        self.store = store;
    }

    pub(super) fn span(&self, span: Span) -> Duration {
        match span {
            Span::Long => LONG,
            Span::Short if self.clock.is_some() => SHORT_MOVED,
            Span::Short => SHORT_WAITED,
        }
    }

    pub(super) fn holder(&mut self, who: Who) -> &mut Holder {
        self.holders.get_mut(&who).unwrap_or_else(|| panic!("{who:?} holds nothing"))
    }

    pub(super) fn policy(&self, asking: &Asking) -> Arc<Policy> {
        Arc::new(Policy {
            lease: self.span(asking.lease),
            two_phase_dispatch: asking.two_phase,
            on_unknown: vec![if asking.retry { Step::Retry } else { Step::Hold }],
            ..Policy::default()
        })
    }

    /// Does one thing, checks what is true of every step, and says what it said.
    pub(super) async fn act(&mut self, op: Op) -> Said {
        let before = self.there.clone();
        let said = self.try_op(op).await;
        let read = match self.store.get(self.id).await {
            Ok(read) => read,
            Err(error) => return error.into(),
        };
        let again = self.store.get(self.id).await.unwrap_or_else(|error| panic!("S12: a second read fails: {error}"));
        let passes = matches!(op, Op::Pass);
        assert_eq!(read.record, again.record, "S12: two reads differ after {op:?}");
        assert!(read.now >= self.now, "S2: the store's time went back from {:?} to {:?}", self.now, read.now);
        if let Some(record) = &read.record {
            check_record(record, op);
            self.check_against(before.as_ref(), record, &said, op);
        }
        if said.changes_nothing() && !passes && !self.lossy && still_there(before.as_ref(), read.now) {
            assert_eq!(read.record, before, "S7: {op:?} said {said:?} and changed the record");
        }
        self.now = read.now;
        self.there = read.record;
        said
    }

    fn check_against(&mut self, before: Option<&Record>, record: &Record, said: &Said, op: Op) {
        let fence = record.stored.fence;
        let rises = matches!(said, Said::Granted { again: false, .. } | Said::Forgotten | Said::Resolved);
        if rises {
            assert!(fence > self.fence, "S4: {op:?} gave fence {fence:?} after {:?}", self.fence);
        }
        assert!(fence >= self.fence, "S4: the fence went back from {:?} to {fence:?}", self.fence);
        self.fence = fence;
        if let Some(before) = before.filter(|before| before.stored.fence == fence)
            && before != record
        {
            let (old, new) = (before.stored.revision, record.stored.revision);
            assert!(new > old, "S6: {op:?} wrote revision {new:?} over {old:?}");
        }
    }

    async fn try_op(&mut self, op: Op) -> Said {
        let store = Arc::clone(&self.store);
        let (store, id) = (&*store, self.id);
        match op {
            Op::Claim(asking) => self.claim(asking).await,
            Op::Renew(who, span) => {
                let lease = self.span(span);
                drive::renew(store, id, self.holder(who), lease).await
            }
            Op::Checkpoint(who, seq, data) => {
                drive::checkpoint(store, id, self.holder(who), seq, data.as_bytes()).await
            }
            Op::Dispatched(who) => drive::dispatched(store, id, self.holder(who)).await,
            Op::Complete(who, answer, keep) => {
                let keep = self.span(keep);
                drive::complete(store, id, self.holder(who), answer.outcome(), keep).await
            }
            Op::FailFinal(who, answer) => {
                drive::fail(store, id, self.holder(who), answer.map(Answer::outcome), LONG).await
            }
            Op::FailRetryable(who, after) => {
                let after = self.span(after);
                drive::fail_retryable(store, id, self.holder(who), after, LONG).await
            }
            Op::Release(who) => drive::release(store, id, self.holder(who)).await,
            Op::Executed(answer) => drive::resolve(store, id, Resolution::Executed(answer.outcome()), LONG).await,
            Op::NotExecuted => drive::resolve(store, id, Resolution::NotExecuted, LONG).await,
            Op::GivenUp => drive::resolve(store, id, Resolution::Failed(None), LONG).await,
            Op::Erase { force, keep } => drive::forget(store, id, Forget::Erase, force, self.span(keep)).await,
            Op::Reuse { force } => drive::forget(store, id, Forget::Reuse, force, LONG).await,
            Op::Sweep => match store.sweep(1000, Duration::ZERO).await {
                Ok(_) => Said::Swept,
                Err(error) => error.into(),
            },
            Op::Look => Said::Looked,
            Op::Pass => {
                self.pass().await;
                Said::Looked
            }
            Op::SetBack => {
                let hand =
                    self.clock.as_ref().unwrap_or_else(|| panic!("its clock cannot be set back: say so in `cannot`"));
                hand.turn(-1_000_000);
                Said::Looked
            }
        }
    }

    async fn claim(&mut self, asking: Asking) -> Said {
        let policy = self.policy(&asking);
        let store = Arc::clone(&self.store);
        let mut driven = Driven::new(&*store, self.id, &policy, ask(asking.who, asking.fingerprint));
        if asking.dies {
            driven.step().await;
            assert!(driven.wants_store(), "a claim in two phases marks the dispatch before it executes");
            self.holders.insert(asking.who, driven.holder());
            return Said::Granted { attempt: 1, again: false, ambiguous: false, checkpoint: 0 };
        }
        let said = driven.run().await;
        if matches!(said, Said::Granted { .. }) {
            let holder = driven.holder();
            if let Some(before) =
                self.holders.get(&asking.who).filter(|_| matches!(said, Said::Granted { again: true, .. }))
            {
                assert_eq!(before.fence, holder.fence, "the same claim came back with another fence");
            }
            self.holders.insert(asking.who, holder);
        }
        said
    }

    /// Lets more than a short span pass on the store's clock.
    async fn pass(&mut self) {
        if let Some(hand) = &self.clock {
            hand.turn(i64::try_from(SHORT_MOVED.as_micros()).unwrap_or(i64::MAX) + 1);
            return;
        }
        let mut until = None;
        loop {
            let read =
                self.store.get(self.id).await.unwrap_or_else(|error| panic!("reading the store's time: {error}"));
            let until = *until.get_or_insert(read.now.plus(SHORT_WAITED).plus(Duration::from_millis(1)));
            if read.now >= until {
                return;
            }
            // The store's own time is what is waited for; this is only when to ask again.
            tokio::time::sleep(until.since(read.now)).await;
        }
    }
}

/// What is true of every record at any time.
fn check_record(record: &Record, op: Op) {
    let Record { stored, facts } = record;
    assert!(stored.fence > Fence(0) && stored.fence.0 < 1 << 63, "{:?} after {op:?}", stored.fence);
    assert!(stored.revision.0 > 0, "a record without a revision after {op:?}");
    let open = facts.state == State::InFlight;
    assert_eq!(stored.keep_until == Micros::ZERO, open, "S10: an end on an open record, or none on a settled one");
    if facts.state == State::Erased {
        assert!(facts.outcome.is_none() && facts.checkpoint.is_none() && facts.principal_proof.is_none());
        assert!(facts.fingerprint == [0; 32] && facts.fields.is_empty(), "an erased record still tells its request");
    }
}

/// Whether a record that was read has not ended meanwhile.
fn still_there(before: Option<&Record>, now: Micros) -> bool {
    before.is_none_or(|record| !record.is_expired(now))
}

/// A request of `who`'s.
pub(super) fn ask(who: Who, fingerprint: u8) -> Ask {
    Ask {
        claim_id: ClaimId([who as u8; 16]),
        session: SessionId([who as u8; 16]),
        principal_proof: None,
        vouched: false,
        fingerprint_policy: 1,
        fingerprint: [fingerprint; 32],
    }
}

/// An id that no other case of this process uses, and none of another process on the same server.
pub(super) fn new_id() -> RecordId {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut id = [0; 32];
    getrandom::fill(&mut id).unwrap_or_else(|error| panic!("no randomness: {error}"));
    let count = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    for (slot, byte) in id.iter_mut().rev().zip(count.iter().rev()) {
        *slot = *byte;
    }
    RecordId(id)
}

/// Plays a row.
pub(super) async fn play(row: &'static Row, harness: Harness) {
    let mut world = World::new(harness.store, harness.clock);
    for op in row.given {
        let said = world.act(*op).await;
        assert!(said.is_done(), "{}: given {op:?}, the store says {said:?}", row.name);
    }
    let said = world.act(row.op).await;
    assert_eq!(said, row.says, "{}: what {:?} says", row.name, row.op);
    assert_eq!(Look::of(world.there.as_ref(), world.now), row.after, "{}: what a read shows afterwards", row.name);
    for (op, says) in row.then {
        let said = world.act(*op).await;
        assert_eq!(said, *says, "{}: what {op:?} says thereafter", row.name);
    }
}
