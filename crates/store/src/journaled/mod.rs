//! Redis in front of a journal in a database: a claim costs one step in Redis and one append to a local spool before its
//! request is sent, and no failure of Redis lets a key run twice.
//!
//! What Redis loses is noticed, since each step names the view of its partition, the server's incarnation and this
//! session, and is refused in the same step where they are others. Then a new view is opened in the database. It serves
//! once every session has acknowledged it, which each does when all that it was granted before is in the journal; a
//! session that is gone is retired first, through the Redis that granted to it. Until the new view's Redis has every row
//! of the journal, a grant is made with the key's row in hand. No bound of time is relied on (GUARANTEES 2.2 to 2.9).
//!
//! This is the protocol without its servers: [`Front`], [`Journal`] and [`Spool`] are what it asks of them. The simulator
//! runs it over servers of its own making, in virtual time.
//!
//! # Layout
//!
//! [`fact`](Fact) what is shipped, [`front`](Front) and [`journal`](Journal) what is asked of Redis and of the database;
//! `guard` who is inside a view, `shipments` what the journal may not have yet, `spool`, `logged` and `begun` where that is on the
//! disk, `owed` outcomes whose fate is unknown, `views` how views change and `standing` how far that has come, `reach` and
//! `either` how views come to be on the database itself while Redis is gone, `step` what a step does there, `outbox` what Redis keeps for a retirement, `retire` how a session ends, `predecessor` how one
//! ends whose process is gone, `open` what is looked at before the first begins, `sweep` how the
//! journal is rid of what has ended.

#[cfg(feature = "embedded")]
mod begun;
mod either;
mod fact;
mod front;
mod guard;
mod journal;
#[cfg(feature = "embedded")]
mod logged;
#[cfg(all(feature = "embedded", feature = "postgres", feature = "redis"))]
mod open;
mod outbox;
mod owed;
mod predecessor;
mod reach;
mod retire;
mod shipments;
mod spool;
mod standing;
mod step;
mod store;
mod sweep;
mod views;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease, Replacement},
    key::RecordId,
    mutant::{self, Mutant},
    record::{Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};

#[cfg(feature = "embedded")]
pub use self::logged::{LogSpool, SpoolError, SpoolOptions};
#[cfg(all(feature = "embedded", feature = "postgres", feature = "redis"))]
pub use self::open::{JOURNAL, OpenError};
use self::{
    either::Either,
    guard::{Guard, Inside},
    owed::Word,
    reach::Reach,
    shipments::Shipments,
    standing::Standing,
    views::Cold,
};
pub use self::{
    fact::{Fact, Order, is_of_before, is_released, is_same_claim, is_swept, merged, released},
    front::{At, Dirty, Front, Incarnation, Install, Outbox, Row, Sight, Stepped, View, What},
    journal::{Horizon, Journal, LastActive, Mark, Member, Opening, Snapshot, Timeline, Unreached, ViewRow},
    owed::Owed,
    spool::{Left, Place, Spool},
    standing::Serves,
    step::{as_record, stepped, stepped_in_row},
    store::JournaledStore,
};
use crate::{Applied, Insert, Kind, Read, StoreError, Write};

/// How often the database is looked at.
const TICK: Duration = Duration::from_millis(200);
/// After a shipment that failed.
const SHIP_AGAIN: Duration = Duration::from_millis(100);
/// How long a claim is held that is made to settle what somebody else left.
const SETTLING: Duration = Duration::from_secs(30);
/// So often a write that compares looks again at what changed meanwhile.
const TRIES_MAX: usize = 4;

/// How the protocol is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of this process; new at each start.
    pub session: SessionId,
    /// How many partitions there are, 1 to 256.
    pub partitions: u16,
    /// How long one call may take.
    pub deadline: Duration,
}

/// Redis in front of a journal. What it does in the background ends with it; so does the session, as a crash.
pub struct Journaled {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// What verbs and background share.
#[derive(Debug)]
struct Shared {
    session: SessionId,
    deadline: Duration,
    front: Arc<dyn Front>,
    journal: Arc<dyn Journal>,
    shipments: Shipments,
    owed: Arc<Owed>,
    guards: Vec<Guard>,
    cold: Cold,
    reach: Reach,
    standing: Standing,
    /// Something is not as this process knows it.
    amiss: Notify,
    over: AtomicBool,
    left: AtomicBool,
}

impl Shared {
    fn partition_of(&self, id: &RecordId) -> u16 {
        id.partition() % u16::try_from(self.guards.len()).unwrap_or(u16::MAX).max(1)
    }

    fn guard(&self, partition: u16) -> Result<&Guard, StoreError> {
        let of_others = || StoreError::not_applied(Kind::Newer(format!("it has a partition {partition}")));
        self.guards.get(usize::from(partition)).ok_or_else(of_others)
    }

    fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// A view, for this session.
    fn at(&self, row: &ViewRow) -> At {
        At { partition: row.partition, view: row.view, incarnation: row.incarnation, session: self.session }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn end_session(&self) {
        if !self.over.swap(true, Ordering::SeqCst) {
            tracing::error!("this session is over: it claims nothing more, and another has to begin");
        }
        self.amiss.notify_one();
    }

    fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    fn note_left(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// A holder's last word on a key, which Redis may have taken also where that is not known.
    async fn say(&self, id: RecordId, word: Word) -> Result<Write, StoreError> {
        let said = self.step(id, word.what()).await.and_then(written);
        if said.as_ref().is_err_and(|error| error.applied == Applied::Unknown) && !mutant::is(Mutant::NotRepeated) {
            self.owed.push(id, word);
        }
        said
    }

    /// Takes a step inside the view, and out again once its fact is in the spool. Where the view turns out to be over it is
    /// taken once more in the next, but for one by what was seen, which is void there (A1); where Redis is missed, an insert
    /// or read too.
    async fn step(&self, id: RecordId, what: What<'_>) -> Result<Stepped, StoreError> {
        if self.is_over() {
            return Err(StoreError::not_applied(Kind::SessionOver));
        }
        let partition = self.partition_of(&id);
        let guard = self.guard(partition)?;
        let failed = match guard.enter() {
            Some(inside) if !self.is_missed(&inside, partition, &what) => {
                let serving = (inside.serving.view, inside.is_admitted);
                match self.step_inside(inside, id, what).await {
                    Err(error) if is_by_what_was_seen(&what) => return Err(error),
                    Err(error) if error.applied == Applied::No && error.kind == Kind::Incarnation => {
                        Some((serving, error))
                    }
                    Err(error) if is_harmless(&what) && self.reach.is_missed(partition) => Some((serving, error)),
                    stepped => return stepped,
                }
            }
            Some(inside) => Some(((inside.serving.view, true), StoreError::not_applied(Kind::Unavailable))),
            None if is_by_what_was_seen(&what) => {
                self.amiss.notify_one();
                return Err(StoreError::not_applied(Kind::Incarnation));
            }
            None => None,
        };
        // Whoever waits is outside, or the next view would wait for him.
        self.amiss.notify_one();
        let is_other = |inside: &Inside<'_>| {
            let of = failed.as_ref().map(|(of, _)| *of);
            inside.is_admitted && of.is_none_or(|(view, was_admitted)| inside.serving.view != view || !was_admitted)
        };
        match timeout(self.deadline / 2, guard.opened(is_other)).await {
            Ok(inside) => self.step_inside(inside, id, what).await.map_err(|error| match &failed {
                Some((_, before)) if before.applied == Applied::Unknown => {
                    StoreError::unknown(error.kind.clone()).because(error)
                }
                _ => error,
            }),
            Err(elapsed) => {
                let nothing = || StoreError::not_applied(Kind::Incarnation).because(elapsed);
                Err(failed.map_or_else(nothing, |(_, error)| error))
            }
        }
    }

    /// Whether the view's Redis was missed for a while, so that a step there would only take its time.
    fn is_missed(&self, inside: &Inside<'_>, partition: u16, what: &What<'_>) -> bool {
        is_harmless(what) && !inside.serving.incarnation.is_database() && self.reach.is_unreached(partition)
    }

    /// One try, in the view that this is inside of. The journal's row is read only where it is needed.
    async fn step_inside(&self, inside: Inside<'_>, id: RecordId, what: What<'_>) -> Result<Stepped, StoreError> {
        let partition = self.partition_of(&id);
        let at =
            At { partition, view: inside.serving.view, incarnation: inside.serving.incarnation, session: self.session };
        if at.incarnation.is_database() && !inside.is_admitted && !mutant::is(Mutant::DatabaseAdmitsAll) {
            // Only whose member row is past losing is let in, and the database does not look at that in each step.
            return Err(StoreError::not_applied(Kind::Incarnation));
        }
        let mut stepped = self.front.step(&at, id, what, None).await?;
        if matches!(stepped, Stepped::NeedsRow) {
            let row = match mutant::is(Mutant::NoConfirm) {
                true => Some(None),
                false => self.journal.row(partition, at.view, id).await.map_err(nothing_was_done)?,
            };
            let Some(row) = row else {
                self.amiss.notify_one();
                return Err(StoreError::not_applied(Kind::Incarnation));
            };
            stepped = self.front.step(&at, id, what, Some(&row)).await?;
        }
        if matches!(stepped, Stepped::Elsewhere) {
            inside.is_turned_away();
        }
        if matches!(stepped, Stepped::NeedsRow | Stepped::Elsewhere) {
            self.amiss.notify_one();
            return Err(StoreError::not_applied(Kind::Incarnation));
        }
        let is_left_out = at.incarnation.is_database() && mutant::is(Mutant::DatabaseNotSpooled);
        if let Some(record) = own(&what, &stepped).filter(|_| !is_left_out) {
            let inside = (!mutant::is(Mutant::GuardEndsEarly)).then_some(inside);
            let kept = self.shipments.append(Fact { id, record }).await;
            drop(inside);
            if let Err(error) = kept {
                // Redis has it, and what is dirty there is shipped when this session is retired.
                self.end_session();
                return Err(StoreError::unknown(error.kind.clone()).because(error));
            }
        }
        Ok(stepped)
    }
}

fn is_by_what_was_seen(what: &What<'_>) -> bool {
    matches!(what, What::Replace(Replacement { expect: Expect::Seen(..), .. }) | What::Release(Expect::Seen(..)))
}

/// Whether it may be done twice, in two views: a claim that is its own recognises itself, or is never sent.
fn is_harmless(what: &What<'_>) -> bool {
    matches!(what, What::Insert { .. } | What::Get)
}

/// The record that this process is answerable for after a step: what it wrote, also with a call whose answer was lost.
fn own(what: &What<'_>, stepped: &Stepped) -> Option<Arc<Record>> {
    let is_left_out = |record: &Record| match record.facts.state {
        State::Erased => mutant::is(Mutant::ForgetNotJournaled),
        State::Completed => mutant::is(Mutant::OutcomeNotSpooled),
        State::InFlight => mutant::is(Mutant::NotSpooled),
        State::NotExecuted | State::Failed => false,
    };
    let record = match (what, stepped) {
        (What::Extend { .. } | What::Get, _) => None,
        (_, Stepped::Done { record, .. }) => Some(Arc::clone(record)),
        (_, Stepped::There { .. }) if mutant::is(Mutant::RepeatNotSpooled) => None,
        (What::Insert { facts, .. }, Stepped::There { record, .. }) => {
            (record.facts.claim_id == facts.claim_id).then(|| Arc::new(Record::clone(record)))
        }
        (_, Stepped::There { record, .. }) => {
            let is_ours = what.holder() == Some(record.stored.fence) && record.facts.state != State::InFlight;
            is_ours.then(|| Arc::new(Record::clone(record)))
        }
        _ => None,
    };
    record.filter(|record| !is_left_out(record))
}

fn nothing_was_done(error: StoreError) -> StoreError {
    StoreError::not_applied(error.kind.clone()).because(error)
}

impl fmt::Debug for Journaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journaled({:?}, {:?})", self.shared.front, self.shared.journal)
    }
}

impl Journaled {
    /// Begins a session: it joins, and serves once views are there. `owed` is this process's, and was given to its earlier
    /// sessions, too.
    #[must_use]
    pub fn start(
        options: Options,
        front: Arc<dyn Front>,
        journal: Arc<dyn Journal>,
        spool: Arc<dyn Spool>,
        owed: Arc<Owed>,
    ) -> Self {
        let Options { session, partitions, deadline } = options;
        let shared = Arc::new(Shared {
            session,
            deadline,
            front: Arc::new(Either { redis: front, database: Arc::clone(&journal) }),
            journal,
            shipments: Shipments::new(session, spool),
            owed,
            guards: (0..partitions.max(1)).map(|_| Guard::default()).collect(),
            cold: Cold::default(),
            reach: Reach::default(),
            standing: Standing::default(),
            amiss: Notify::new(),
            over: AtomicBool::new(false),
            left: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(views::take_part(Arc::clone(&shared)));
        tasks.spawn(views::keep_warm(Arc::clone(&shared)));
        tasks.spawn(ship(Arc::clone(&shared)));
        tasks.spawn(owed::repeat(Arc::clone(&shared)));
        tasks.spawn(predecessor::settle(Arc::clone(&shared)));
        Self { shared, _tasks: tasks }
    }

    /// The session ends in order: nothing more is claimed. `false` where it is not known within `limit` that what it holds is
    /// in the journal and its end past losing; others retire it then, or whoever comes after on its disk.
    pub async fn leave(&self, limit: Duration) -> bool {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.amiss.notify_one();
        let left = async {
            while !self.shared.has_left() {
                sleep(TICK).await;
            }
        };
        timeout(limit, left).await.is_ok()
    }

    /// How many partitions are how, as far as this process has looked.
    #[must_use]
    pub fn serves(&self) -> Serves {
        let of = self.shared.guards.len();
        if self.is_over() { Serves { of, ..Serves::default() } } else { self.shared.standing.serves(of) }
    }

    /// Whether the record's partition has a view on the database itself.
    #[must_use]
    pub fn is_on_database(&self, id: &RecordId) -> bool {
        let guard = self.shared.guard(self.shared.partition_of(id)).ok();
        guard.and_then(Guard::serving).is_some_and(|serving| serving.incarnation.is_database())
    }

    /// How much of what this session wrote the journal does not have yet, and since when the first of it waits.
    #[must_use]
    pub fn backlog(&self) -> (usize, Duration) {
        self.shared.shipments.backlog()
    }

    /// All that this session has written until now is in the journal.
    pub async fn shipped(&self) {
        self.shared.shipments.drained().await;
    }

    /// Whether this session claims nothing more: another has to begin.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.shared.is_over()
    }

    /// As [`Store::insert`](crate::Store::insert).
    ///
    /// # Errors
    /// Where nothing is granted now, or it is not known whether it was.
    pub async fn insert(&self, id: RecordId, facts: &Facts, lease: Duration) -> Result<Insert, StoreError> {
        if let Err(full) = self.shared.shipments.has_room() {
            // What is there is told all the same.
            let Read { record, now } = self.get(id).await?;
            return match record.filter(|record| !record.is_expired(now)) {
                Some(record) => Ok(Insert::Existing { record: Box::new(record), now }),
                None => Err(full),
            };
        }
        match self.shared.step(id, What::Insert { facts, lease }).await? {
            Stepped::Done { record, now } => Ok(Insert::Inserted { fence: record.stored.fence, now }),
            Stepped::There { record, now } => Ok(Insert::Existing { record, now }),
            _ => Err(odd()),
        }
    }

    /// As [`Store::replace`](crate::Store::replace). What settles a claim that is somebody else's takes it over first, so
    /// that the journal has a claim above it before anybody is shown the outcome; what erases is in the journal first.
    ///
    /// # Errors
    /// Where nothing is written now, or it is not known whether it was.
    pub async fn replace(&self, id: RecordId, write: &Replacement) -> Result<Write, StoreError> {
        let is_others = matches!(write.expect, Expect::Seen(..));
        match write.facts.state {
            State::Erased => self.erase(id, write).await,
            State::NotExecuted | State::Completed | State::Failed if is_others => {
                self.settle(id, write.expect, Word::Outcome(Box::new(write.clone()))).await
            }
            State::InFlight => self.shared.step(id, What::Replace(write)).await.and_then(written),
            _ => self.shared.say(id, Word::Outcome(Box::new(write.clone()))).await,
        }
    }

    /// As [`Store::extend`](crate::Store::extend).
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub async fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Result<Write, StoreError> {
        self.shared.step(id, What::Extend { holder, lease }).await.and_then(written)
    }

    /// As [`Store::remove`](crate::Store::remove): the key is free, and its record stays until the journal knows (A9).
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub async fn remove(&self, id: RecordId, expect: Expect) -> Result<Write, StoreError> {
        match expect {
            Expect::Holder(_) => self.shared.say(id, Word::Release(expect)).await,
            Expect::Seen(..) => self.settle(id, expect, Word::Release(expect)).await,
        }
    }

    /// As [`Store::get`](crate::Store::get).
    ///
    /// # Errors
    /// Where nothing can be read now.
    pub async fn get(&self, id: RecordId) -> Result<Read, StoreError> {
        match self.shared.step(id, What::Get).await.map_err(nothing_was_done)? {
            Stepped::There { record, now } if is_released(&record.facts) => Ok(Read { record: None, now }),
            Stepped::There { record, now } => Ok(Read { record: Some(*record), now }),
            Stepped::Absent { now } => Ok(Read { record: None, now }),
            Stepped::Done { .. } | Stepped::NeedsRow | Stepped::Elsewhere => Err(odd()),
        }
    }

    /// Takes over what was seen, and then says `word` by that right.
    async fn settle(&self, id: RecordId, expect: Expect, word: Word) -> Result<Write, StoreError> {
        let read = self.get(id).await?;
        let there = |record| Write::Lost { record, now: read.now };
        let Some(record) = read.record else { return Ok(there(None)) };
        if (record.stored.fence, record.stored.revision) != seen(expect) {
            return Ok(there(Some(Box::new(record))));
        }
        if let Word::Outcome(write) = &word
            && record.facts.state == State::Completed
            && record.facts == write.facts
        {
            // Nobody holds it, and the later end of one answer counts: there is nothing to take over, and nothing that a
            // crash between two steps could take from whoever repeats.
            return self.shared.step(id, What::Replace(write)).await.and_then(written);
        }
        let facts = Facts {
            state: State::InFlight,
            phase: Phase::Dispatched,
            ambiguous: true,
            session: self.shared.session,
            outcome: None,
            ..record.facts
        };
        let takeover =
            Replacement { expect, facts, fence: FenceRule::Next, lease: Lease::For(SETTLING), keep: Keep::Open };
        let fence = match self.shared.step(id, What::Replace(&takeover)).await.and_then(written)? {
            Write::Applied { fence, .. } => fence,
            lost @ Write::Lost { .. } => return Ok(lost),
        };
        let by_right = match word {
            Word::Outcome(write) => {
                let write = Replacement { expect: Expect::Holder(fence), fence: FenceRule::Keep, ..*write };
                Word::Outcome(Box::new(write))
            }
            Word::Release(_) => Word::Release(Expect::Holder(fence)),
        };
        // From the takeover on it is not as it was.
        self.shared.say(id, by_right).await.map_err(|error| StoreError::unknown(error.kind.clone()).because(error))
    }

    /// In the journal first, since a view would bring back what is only gone from Redis.
    async fn erase(&self, id: RecordId, write: &Replacement) -> Result<Write, StoreError> {
        let read = self.get(id).await?;
        let Some(record) = read.record else { return Ok(Write::Lost { record: None, now: read.now }) };
        let is_meant = match write.expect {
            Expect::Holder(fence) => record.stored.fence == fence && record.facts.state == State::InFlight,
            Expect::Seen(..) => (record.stored.fence, record.stored.revision) == seen(write.expect),
        };
        if !is_meant {
            return Ok(Write::Lost { record: Some(Box::new(record)), now: read.now });
        }
        let fence = record.stored.fence;
        // It outlives the answer that a replica may still show (A10).
        let keep_until = match write.keep {
            Keep::For(span) => read.now.plus(span).max(record.stored.keep_until),
            Keep::Open => Micros::ZERO,
        };
        let stored = Stored { keep_until, lease_until: Micros::ZERO, ..record.stored };
        let erased = Fact { id, record: Arc::new(Record { stored, facts: write.facts.clone() }) };
        if !mutant::is(Mutant::ForgetNotJournaled) {
            let timeline = self.shared.shipments.timeline();
            let shipped =
                self.shared.journal.ship(self.shared.session, timeline, std::slice::from_ref(&erased)).await?;
            if shipped.is_none() {
                self.shared.amiss.notify_one();
                return Err(StoreError::not_applied(Kind::Incarnation));
            }
            // And like all that it ships, for as long as the database may lose it.
            self.shared.shipments.queue(erased);
        }
        let unknown = |error: StoreError| StoreError::unknown(error.kind.clone()).because(error);
        for _ in 0..TRIES_MAX {
            let read = self.get(id).await.map_err(unknown)?;
            let Some(record) = read.record.filter(|record| record.stored.fence == fence) else {
                return Ok(Write::Lost { record: None, now: read.now });
            };
            let expect = Expect::Seen(fence, record.stored.revision);
            let again = Replacement { expect, ..write.clone() };
            let erased = self.shared.say(id, Word::Outcome(Box::new(again))).await.map_err(unknown)?;
            if matches!(erased, Write::Applied { .. }) {
                return Ok(erased);
            }
        }
        Err(StoreError::unknown(Kind::Conflict))
    }
}

fn seen(expect: Expect) -> (Fence, Revision) {
    match expect {
        Expect::Seen(fence, revision) => (fence, revision),
        Expect::Holder(fence) => (fence, Revision(0)),
    }
}

fn written(stepped: Stepped) -> Result<Write, StoreError> {
    match stepped {
        Stepped::Done { record, now } => {
            Ok(Write::Applied { fence: record.stored.fence, revision: record.stored.revision, now })
        }
        Stepped::There { record, now } => {
            let record = Some(record).filter(|record| !is_released(&record.facts));
            Ok(Write::Lost { record, now })
        }
        Stepped::Absent { now } => Ok(Write::Lost { record: None, now }),
        Stepped::NeedsRow | Stepped::Elsewhere => Err(odd()),
    }
}

fn odd() -> StoreError {
    StoreError::unknown(Kind::Damaged("the server's answer is none that a step gives".into()))
}

/// Ships what waits, in order, for as long as the process lives.
async fn ship(shared: Arc<Shared>) {
    loop {
        let batch = match shared.shipments.batch().await {
            Ok(batch) => batch,
            Err(error) => {
                // Redis has it, and what is dirty there is shipped when this session is retired.
                tracing::error!(%error, "the spool does not give back what is in it");
                shared.end_session();
                sleep(SHIP_AGAIN).await;
                continue;
            }
        };
        match shared.journal.ship(shared.session, batch.timeline, &batch.facts).await {
            Ok(Some(mark)) => shared.shipments.is_shipped(&batch, mark),
            Ok(None) => {
                shared.amiss.notify_one();
                sleep(SHIP_AGAIN).await;
            }
            Err(error) => {
                tracing::debug!(%error, "a shipment to the journal failed, and is repeated");
                sleep(SHIP_AGAIN).await;
            }
        }
    }
}
