//! Runs the claim machine: does what each action says, reports what happened, decides nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{Keep, Replacement},
    claim::{Action, Applied, Claim, Event, SettledBy},
    decide::{Found, Refusal},
    key::RecordId,
    mutant::{self, Mutant},
    policy::Step,
    record::{Facts, Fence, Micros, Record, Revision, State, Stored},
    transition::Write as Transition,
};
use onceward_store::{Answer, Insert, Kind, Read, Store, StoreError, Write};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    abandon::abandon_claim,
    anew,
    engine::Engine,
    failpoint,
    metrics::{StoreResult, StoreVerb},
    probe::{Books, Doubt},
    quota::Over,
    replay::UNRECORDED,
    request::again::Again,
    wait::{News, NoSeat, Owner, Seat, Turn, Unrecorded},
};

/// How long the background goes on trying to record an answer.
const RECORD_TRIES_FOR: Duration = Duration::from_secs(60 * 60);
const RECORD_BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);

/// How the claim ended, before anything was executed.
pub(crate) enum Obtained {
    /// This request executes.
    Granted(Grant),
    /// The key has an answer.
    Replay { record: Box<Record>, waited: bool, now: Micros },
    /// No.
    Refused { refusal: Refusal, record: Option<Box<Record>> },
    /// The store is out, and the route says to go on without it.
    Unprotected,
    /// The upstream is busy, and the key is fresh: nothing was claimed.
    Overloaded,
    /// The tenant is over its quota, and the key is fresh: nothing was claimed.
    OverQuota(Over),
    /// There is no record, and none was to be made.
    Absent,
}

impl Obtained {
    /// Whether the store did not answer, and the route's word on that decided.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Unprotected | Self::Refused { refusal: Refusal::StoreUnavailable, .. })
    }
}

/// The right to execute.
pub(crate) struct Grant {
    pub(crate) owner: Owner,
    pub(crate) fence: Fence,
    pub(crate) attempt: u32,
    pub(crate) clock: StoreClock,
    /// One of the upstream's executions at a time.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// The store's time, as this process estimates it between two answers of the store.
#[derive(Clone, Copy)]
pub(crate) struct StoreClock {
    pub(crate) said: Micros,
    pub(crate) at: Instant,
}

impl StoreClock {
    pub(crate) fn now(self) -> Micros {
        self.said.plus(self.at.elapsed())
    }

    /// The same clock, by what it said `span` before.
    fn earlier(self, span: Duration) -> Self {
        let said = Micros(self.said.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)));
        self.at.checked_sub(span).map_or(self, |at| Self { said, at })
    }

    /// When the store's clock will say `time`.
    fn instant(self, time: Micros) -> Instant {
        self.at + time.since(self.said)
    }
}

/// The terms of a claim.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) lease: Duration,
    /// How long a duplicate waits for the first.
    pub(crate) wait: Duration,
    /// With how many others, for one key.
    pub(crate) waiters_per_key: usize,
    /// Executions at a time.
    pub(crate) in_flight: &'a Arc<Semaphore>,
    /// Who can say whether an unknown outcome took effect.
    pub(crate) books: Option<Books<'a>>,
    /// Only a record that is there counts: none is made.
    pub(crate) only_there: bool,
    /// How long none is made after a loss of the store.
    pub(crate) quarantine: Option<Duration>,
    /// Whether it takes its turn once the store answers again, and is refused where that is far off.
    pub(crate) takes_turns: bool,
}

/// Claims the key, waits for whoever holds it, or finds its answer.
///
/// `must_finish` is raised while dropping this future would leave a claim that nobody executes or
/// frees, and lowered while it only waits.
pub(crate) async fn obtain(
    engine: &Engine,
    id: RecordId,
    claim: &mut Claim,
    first: Action,
    terms: Terms<'_>,
    mut again: Option<&mut Again<'_>>,
    must_finish: &AtomicBool,
) -> Obtained {
    let shared = &engine.0;
    let mut action = first;
    let mut deadline = None;
    let mut turn: Option<Turn> = None;
    let mut watch = None;
    let mut permit: Option<OwnedSemaphorePermit> = None;
    let mut waited = false;
    let mut clock = StoreClock { said: Micros::ZERO, at: Instant::now() };
    loop {
        let event = match action {
            Action::Insert(facts) => {
                let kept = shared.flights.unrecorded(&id);
                if let Some(Unrecorded { record, .. }) = kept.as_ref().filter(|kept| kept.may_be_told()) {
                    Event::Existing { now: record.stored.written_at, record: Box::new(Record::clone(record)) }
                } else {
                    // What it repeats has had its turn.
                    if terms.takes_turns && !must_finish.load(Ordering::Relaxed) && !in_turn(engine).await {
                        return Obtained::Refused { refusal: Refusal::StoreUnavailable, record: None };
                    }
                    let may_claim = if terms.only_there {
                        Err(Obtained::Absent)
                    } else if quarantined(&**engine.store(), terms.quarantine).is_some() {
                        Err(Obtained::Refused { refusal: Refusal::StoreUnavailable, record: None })
                    } else if has_permit(&mut permit, terms.in_flight) {
                        shared.quotas.take(&facts.tenant, &*shared.store).map_err(Obtained::OverQuota)
                    } else {
                        Err(Obtained::Overloaded)
                    };
                    let mut event = match may_claim {
                        Ok(claiming) => {
                            must_finish.store(true, Ordering::Relaxed);
                            failpoint::hit(failpoint::CLAIM_BEGIN).await;
                            let event = insert(engine, id, &facts, terms, &mut clock).await;
                            failpoint::hit(failpoint::CLAIM_END).await;
                            if matches!(event, Event::Inserted { .. }) {
                                // A loss may have been noticed since it was looked for one: then the key may have run.
                                if quarantined(&**engine.store(), terms.quarantine).is_some() {
                                    abandon_claim(engine, id, claim);
                                    return Obtained::Refused { refusal: Refusal::StoreUnavailable, record: None };
                                }
                                claiming.spent();
                            }
                            event
                        }
                        // Repeats are answered as ever: the key is only read.
                        Err(instead) => match read(engine, id, &mut clock).await {
                            Some(event) => event,
                            None => {
                                // An insert before, whose answer was lost, may have been applied all the same.
                                if must_finish.load(Ordering::Relaxed) {
                                    abandon_claim(engine, id, claim);
                                }
                                return instead;
                            }
                        },
                    };
                    if let Some(kept) = &kept {
                        is_still_recorded(kept, &mut event);
                    }
                    event
                }
            }
            Action::Replace(write)
                if write.facts.state == State::InFlight && !has_permit(&mut permit, terms.in_flight) =>
            {
                drop(write);
                return Obtained::Overloaded;
            }
            Action::Replace(write) => {
                must_finish.store(true, Ordering::Relaxed);
                let started = Instant::now();
                let result = shared.store.replace(id, &write).await;
                shared.metrics.store_operation(StoreVerb::Replace, result_of(&result), started.elapsed());
                conditional(result, started, &mut clock)
            }
            Action::Wait(until) => {
                must_finish.store(false, Ordering::Relaxed);
                waited = true;
                // A waiter takes nothing from those who execute.
                permit = None;
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + terms.wait);
                // Whoever had the turn and finds the key held again has no turn to pass on.
                drop(turn.take());
                let seat = shared.flights.join(&id, terms.waiters_per_key, shared.limits().waiters);
                match hear(seat, deadline, &mut turn).await {
                    Some(event) => event,
                    None => match watch.take() {
                        // The record was read before the watch began: read once more first.
                        None => {
                            watch = Some(shared.store.watch(id));
                            Event::Woken
                        }
                        Some(watch) => {
                            let lease_end = clock.instant(until);
                            tokio::select! {
                                () = watch => Event::Woken,
                                () = tokio::time::sleep_until(lease_end.min(deadline)) => {
                                    if lease_end <= deadline { Event::Woken } else { Event::WaitOver }
                                }
                            }
                        }
                    },
                }
            }
            Action::Recall { abandon } => match shared.remembered.recall(&id) {
                Some((record, now)) => {
                    if abandon {
                        abandon_claim(engine, id, claim);
                    }
                    clock = StoreClock { said: now, at: Instant::now() };
                    Event::Remembered { record, now }
                }
                None => Event::NotRemembered,
            },
            Action::Probe(step, fence, revision) => {
                must_finish.store(false, Ordering::Relaxed);
                permit = None;
                // Its lease is over, as after an outage of the store, and yet it may be executed here: then it is
                // waited for. Whoever has the turn knows that it is not; he passes it on, for all to ask together.
                let seat = match turn.take() {
                    Some(_) => Err(NoSeat::NotHere),
                    None => shared.flights.join(&id, terms.waiters_per_key, shared.limits().waiters),
                };
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + terms.wait);
                match hear(seat, deadline, &mut turn).await {
                    Some(event) => {
                        waited = true;
                        event
                    }
                    None => ask_books(engine, terms.books, step, (id, fence, revision), clock).await,
                }
            }
            Action::Execute { fence, attempt } => {
                let owner = shared.flights.own(id, turn.take());
                owner.leased(clock.said, clock.at, terms.lease);
                return Obtained::Granted(Grant { owner, fence, attempt, clock, permit });
            }
            Action::Replay(record) => {
                // An unrecorded answer is replayed without asking the store: it is as old as it says.
                let now = clock.now().max(record.stored.written_at);
                return Obtained::Replay { record, waited, now };
            }
            Action::Refuse { refusal, abandon, record } => {
                if refusal == Refusal::StoreUnavailable {
                    shared.pace.refused(Instant::now());
                }
                if abandon {
                    abandon_claim(engine, id, claim);
                }
                return Obtained::Refused { refusal, record };
            }
            Action::PassThrough { abandon } => {
                if abandon {
                    abandon_claim(engine, id, claim);
                }
                return Obtained::Unprotected;
            }
            Action::Remove(_) | Action::Answer => {
                debug_assert!(false, "nothing is recorded before it is executed");
                return Obtained::Refused { refusal: Refusal::StoreUnavailable, record: None };
            }
        };
        // A record that was made with other rules is compared under those.
        if let (
            Some(again),
            Event::Existing { record, .. }
            | Event::Remembered { record, .. }
            | Event::Lost { record: Some(record), .. },
        ) = (&mut again, &event)
            && let Some(policy) = claim.lacks(record)
            && let Some(fingerprint) = Box::pin(again.under_policy(policy)).await
        {
            claim.knows(policy, fingerprint);
        }
        action = claim.on(event);
        if let Some(by) = claim.settled() {
            engine.count_settled(&claim.facts().route, by);
        }
    }
}

/// A claim of this process whose answer is still to be recorded is in flight, although its lease is over by the store.
fn is_still_recorded(kept: &Unrecorded, event: &mut Event) {
    if let Event::Existing { record, .. } = event
        && record.facts.state == State::InFlight
        && record.stored.fence == kept.record.stored.fence
    {
        record.stored.lease_until = Micros(u64::MAX);
    }
}

/// Waits for the turn to claim; tells whether it comes.
async fn in_turn(engine: &Engine) -> bool {
    let turn = engine.0.pace.claim(Instant::now());
    match turn {
        Some(Duration::ZERO) => {}
        Some(after) => {
            engine.0.metrics.paced_waited.increment(1);
            tokio::time::sleep(after).await;
        }
        None => engine.0.metrics.paced_refused.increment(1),
    }
    turn.is_some()
}

/// What whoever has a seat hears, or is refused one; nothing where the key is not executed in this process.
async fn hear(seat: Result<Seat, NoSeat>, deadline: Instant, turn: &mut Option<Turn>) -> Option<Event> {
    Some(match seat {
        Ok(seat) => match tokio::time::timeout_at(deadline, seat.news()).await {
            Err(_) => Event::WaitOver,
            Ok(Some(News::Settled(record))) => existing(&record),
            Ok(Some(News::YourTurn(mine))) => {
                *turn = Some(mine);
                Event::Woken
            }
            Ok(None) => Event::Woken,
        },
        Err(NoSeat::Full) => Event::WaitOver,
        Err(NoSeat::Settled(record)) => existing(&record),
        Err(NoSeat::NotHere) => return None,
    })
}

/// Asks whether the record, as it was read, took effect.
async fn ask_books(engine: &Engine, books: Option<Books<'_>>, step: Step, doubt: Doubt, clock: StoreClock) -> Event {
    let found = match books {
        None => Found::Nothing,
        Some(books) => {
            // Those who cannot wait for an answer must not pass it over for the next step of the list.
            let Some(_aside) = engine.0.flights.wait_aside(engine.0.limits().waiters) else { return Event::WaitOver };
            // On the heap, so that no other request carries its room.
            Box::pin(books.ask(step, doubt)).await
        }
    };
    Event::Probed { found, now: clock.now() }
}

/// Takes the permit to execute, where there is one.
fn has_permit(permit: &mut Option<OwnedSemaphorePermit>, in_flight: &Arc<Semaphore>) -> bool {
    if permit.is_none() {
        *permit = Arc::clone(in_flight).try_acquire_owned().ok();
    }
    permit.is_some()
}

fn existing(record: &Arc<Record>) -> Event {
    Event::Existing { now: record.stored.written_at, record: Box::new(Record::clone(record)) }
}

/// How much longer new keys are refused after a loss of the store.
pub(crate) fn quarantined(store: &dyn Store, quarantine: Option<Duration>) -> Option<Duration> {
    let left = quarantine?.checked_sub(store.lost_ago()?)?;
    (!left.is_zero()).then_some(left)
}

/// Whether a call met a loss of the store, and did nothing.
fn is_loss<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError { kind: Kind::Incarnation, applied: Applied::No, .. }))
}

/// The record that is there, or that the store did not say; nothing where there is none.
async fn read(engine: &Engine, id: RecordId, clock: &mut StoreClock) -> Option<Event> {
    let started = Instant::now();
    let mut result = engine.0.store.get(id).await;
    if is_loss(&result) {
        result = engine.0.store.get(id).await;
    }
    match result {
        Ok(Read { record, now }) => {
            let record = Box::new(record?);
            *clock = StoreClock { said: now, at: started };
            Some(Event::Existing { record, now })
        }
        Err(error) => Some(failed(&error)),
    }
}

async fn insert(engine: &Engine, id: RecordId, facts: &Facts, terms: Terms<'_>, clock: &mut StoreClock) -> Event {
    let (started, lease) = (Instant::now(), terms.lease);
    let mut result = engine.0.store.insert(id, facts, lease).await;
    if is_loss(&result) {
        // From here on the store knows. Whoever found it is treated as those who come after.
        if quarantined(&**engine.store(), terms.quarantine).is_some() {
            return read(engine, id, clock).await.unwrap_or(Event::StoreRefused);
        }
        result = engine.0.store.insert(id, facts, lease).await;
    }
    engine.0.metrics.store_operation(StoreVerb::Insert, result_of(&result), started.elapsed());
    if result.is_ok() {
        engine.0.pace.answered(Instant::now());
    }
    let (said, spent, event) = match result {
        Ok(Insert::Inserted { fence, now }) => (now, Duration::ZERO, Event::Inserted { fence, now }),
        Ok(Insert::Existing { record, now }) => {
            // Where the answer to this very claim was lost, its lease has run since.
            let is_own = record.facts.claim_id == facts.claim_id;
            let left = if is_own { record.stored.lease_until.since(now) } else { lease };
            (now, lease.saturating_sub(left), Event::Existing { record, now })
        }
        Err(error) => {
            tracing::warn!(record = %id.short(), %error, "the store did not answer a claim");
            return failed(&error);
        }
    };
    // The store said so no earlier than the call began: the lease counts from there.
    *clock = StoreClock { said, at: started }.earlier(spent);
    event
}

fn conditional(result: Result<Write, StoreError>, started: Instant, clock: &mut StoreClock) -> Event {
    match result {
        Ok(Write::Applied { fence, revision, now }) => {
            *clock = StoreClock { said: now, at: started };
            Event::Applied { fence, revision, now }
        }
        Ok(Write::Lost { record, now }) => Event::Lost { record, now },
        Err(error) => {
            tracing::warn!(%error, "the store did not answer a write");
            failed(&error)
        }
    }
}

/// Whether the store is out, takes no claim, or says no.
fn failed(error: &StoreError) -> Event {
    match (&error.kind, error.applied) {
        (Kind::Full | Kind::Declined | Kind::Conflict, Applied::No) => Event::StoreTakesNone,
        (Kind::Unavailable | Kind::Full | Kind::Conflict | Kind::NotPrimary, applied) => Event::StoreFailed(applied),
        _ => Event::StoreRefused,
    }
}

fn result_of<T>(result: &Result<T, StoreError>) -> StoreResult {
    match result {
        Ok(_) => StoreResult::Ok,
        Err(error) if error.applied == Applied::Unknown => StoreResult::Unknown,
        Err(_) => StoreResult::Failed,
    }
}

/// Whether the claim still holds at the moment of dispatch; if not, it is freed where it stands, since nothing was sent.
///
/// A process that was stopped between grant and dispatch may have slept through its lease. The lease is counted from
/// before the claim was sent, and a hundredth shorter than the store's, since clocks differ in rate; beyond it the
/// store is asked.
pub(crate) async fn still_holds(
    engine: &Engine,
    id: RecordId,
    claim: &Claim,
    clock: StoreClock,
    lease: Duration,
    owner: &Owner,
) -> bool {
    if clock.at.elapsed() < lease - lease / 100 {
        return true;
    }
    let asked_at = Instant::now();
    let renewed = engine.0.store.extend(id, claim.fence(), lease).await;
    if let Ok(Write::Applied { now, .. }) = renewed {
        owner.leased(now, asked_at, lease);
        return true;
    }
    tracing::warn!(record = %id.short(), "a claim was lost before anything was sent under it");
    abandon_claim(engine, id, claim);
    false
}

/// How the recording ended.
pub(crate) enum Recorded {
    /// The key says what the upstream said.
    Answer,
    /// The key says something else.
    Replay(Box<Record>),
    /// The claim was lost and there is no answer to give.
    Lost,
}

/// Brings the record into the store, however long that takes. After `record_wait` without the
/// store's word, `unrecorded` is called once, and waiters are answered from memory meanwhile.
pub(crate) async fn record(
    engine: &Engine,
    id: RecordId,
    claim: &mut Claim,
    first: Action,
    owner: Owner,
    record_wait: Duration,
    unrecorded: impl FnOnce(),
) -> Recorded {
    let shared = &engine.0;
    let started = Instant::now();
    let give_up = started + RECORD_TRIES_FOR;
    let mut slow_at = Some(started + record_wait);
    let mut unrecorded = Some(unrecorded);
    let mut backoff = *RECORD_BACKOFF.start();
    let mut action = first;
    failpoint::hit(failpoint::COMPLETE_BEGIN).await;
    if mutant::is(Mutant::CompletionNotDurable)
        && let Action::Replace(write) = &action
        && let Some(record) = settled_record(write, claim.fence(), Revision(1), write.facts.settled_at)
    {
        record_later(engine, id, write.clone());
        owner.settle(record);
        return Recorded::Answer;
    }
    loop {
        let mut written = None;
        let write = match action {
            Action::Replace(write) => Transition::Replace(write),
            Action::Remove(expect) => Transition::Remove(expect),
            Action::Answer => return Recorded::Answer,
            Action::Replay(record) => {
                shared.metrics.fenced_completions.increment(1);
                owner.forget_unrecorded();
                owner.settle(Record::clone(&record));
                return Recorded::Replay(record);
            }
            Action::Refuse { .. } => {
                shared.metrics.fenced_completions.increment(1);
                tracing::warn!(record = %id.short(), "an answer came after its claim was lost; it is not the key's");
                return Recorded::Lost;
            }
            Action::Insert(_)
            | Action::Wait(_)
            | Action::Recall { .. }
            | Action::Probe(..)
            | Action::Execute { .. }
            | Action::PassThrough { .. } => {
                debug_assert!(false, "nothing is claimed once it was executed");
                return Recorded::Lost;
            }
        };
        let mut call: Answer<'_, Write> = match &write {
            Transition::Replace(write) => shared.store.replace(id, write),
            Transition::Remove(expect) => shared.store.remove(id, *expect),
        };
        let call_started = Instant::now();
        let result = loop {
            let Some(at) = slow_at else { break call.as_mut().await };
            tokio::select! {
                biased;
                result = call.as_mut() => break result,
                () = tokio::time::sleep_until(at) => {
                    slow_at = None;
                    keep_unrecorded(engine, &owner, &write, claim);
                    if let Some(unrecorded) = unrecorded.take() {
                        unrecorded();
                    }
                }
            }
        };
        drop(call);
        let result = Box::pin(anew::over_a_loss(&*shared.store, id, &write, claim.facts(), result)).await;
        let operation = if matches!(write, Transition::Replace(_)) { StoreVerb::Replace } else { StoreVerb::Remove };
        shared.metrics.store_operation(operation, result_of(&result), call_started.elapsed());
        let event = match result {
            Ok(Write::Applied { fence, revision, now }) => {
                if let Some(by) = settles(&write, claim.facts(), owner.is_late(now)) {
                    engine.count_settled(&claim.facts().route, by);
                }
                if let Transition::Replace(write) = &write {
                    written = settled_block(write, fence, revision, now);
                }
                Event::Applied { fence, revision, now }
            }
            Ok(Write::Lost { record, now }) => Event::Lost { record, now },
            Err(error) => {
                tracing::warn!(record = %id.short(), %error, "an answer could not be recorded; trying again");
                if Instant::now() >= give_up {
                    return Recorded::Lost;
                }
                let pause = tokio::time::sleep(backoff);
                if let Some(at) = slow_at
                    && Instant::now() + backoff >= at
                {
                    // The next try would begin after the client has waited long enough.
                    tokio::time::sleep_until(at).await;
                    slow_at = None;
                    keep_unrecorded(engine, &owner, &write, claim);
                    if let Some(unrecorded) = unrecorded.take() {
                        unrecorded();
                    }
                } else {
                    pause.await;
                }
                backoff = (backoff * 2).min(*RECORD_BACKOFF.end());
                Event::StoreFailed(error.applied)
            }
        };
        action = claim.on(event);
        if action == Action::Answer {
            failpoint::hit(failpoint::COMPLETE_END).await;
            match (written, write) {
                (Some(stored), Transition::Replace(write)) => owner.settle(Record { stored, facts: write.facts }),
                // Released, or unknown: one waiter looks again.
                _ => drop(owner),
            }
            return Recorded::Answer;
        }
    }
}

/// What [`Mutant::CompletionNotDurable`] does instead of recording an answer before it is given.
fn record_later(engine: &Engine, id: RecordId, write: Box<Replacement>) {
    let store = Arc::clone(&engine.0.store);
    engine.0.tracker.spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        store.replace(id, &write).await
    });
}

/// Who settles an unknown outcome by this write of its holder's: the late answer itself, or the route's list, which ran it
/// again in doubt.
fn settles(write: &Transition, facts: &Facts, is_late: bool) -> Option<SettledBy> {
    if let Transition::Replace(write) = write
        && write.facts.state == State::InFlight
    {
        return None;
    }
    match (is_late, facts.ambiguous) {
        (true, _) => Some(SettledBy::Late),
        (false, true) => Some(SettledBy::Policy),
        (false, false) => None,
    }
}

/// Lets waiters and later repeats have the answer while the store does not confirm it, as long as
/// there is room for it.
fn keep_unrecorded(engine: &Engine, owner: &Owner, write: &Transition, claim: &Claim) {
    engine.0.metrics.unrecorded.increment(1);
    let Transition::Replace(write) = write else { return };
    let Some(record) = settled_record(write, claim.fence(), UNRECORDED, write.facts.settled_at) else { return };
    let gone = owner.settle_unrecorded(record, claim.others_go_on(), engine.0.limits().unrecorded_bytes);
    engine.0.metrics.unrecorded_dropped.increment(gone as u64);
}

/// The record that waiters are given: only one with an outcome settles a flight.
fn settled_record(write: &Replacement, fence: Fence, revision: Revision, now: Micros) -> Option<Record> {
    let stored = settled_block(write, fence, revision, now)?;
    Some(Record { stored, facts: write.facts.clone() })
}

/// The store's block of that record.
fn settled_block(write: &Replacement, fence: Fence, revision: Revision, now: Micros) -> Option<Stored> {
    write.facts.outcome.as_ref()?;
    let keep_until = match write.keep {
        Keep::For(span) => now.plus(span),
        Keep::Open => Micros::ZERO,
    };
    Some(Stored { fence, revision, lease_until: Micros::ZERO, keep_until, written_at: now })
}

/// Renews the lease every third of it, for as long as this future is polled.
///
/// Where the store has lost the claim, it is made anew: from then on nobody else runs the key.
pub(crate) async fn renew(engine: &Engine, id: RecordId, claim: &Claim, lease: Duration, owner: &Owner) {
    let (third, mut fence) = (lease / 3, claim.fence());
    loop {
        tokio::time::sleep(third).await;
        let started = Instant::now();
        let result = engine.0.store.extend(id, fence, lease).await;
        engine.0.metrics.store_operation(StoreVerb::Extend, result_of(&result), started.elapsed());
        match result {
            Ok(Write::Applied { now, .. }) => owner.leased(now, started, lease),
            Ok(Write::Lost { record, .. }) => {
                let asked_at = Instant::now();
                let anew = match record {
                    None => Box::pin(anew::claim(&*engine.0.store, id, claim.facts(), lease)).await,
                    Some(_) => Ok(None),
                };
                match anew {
                    Ok(Some(Insert::Inserted { fence: next, now })) => {
                        fence = next;
                        owner.leased(now, asked_at, lease);
                    }
                    // The next try finds out.
                    Err(error) => tracing::warn!(record = %id.short(), %error, "a claim could not be made anew"),
                    Ok(_) => {
                        tracing::warn!(record = %id.short(), "the claim was lost while the upstream works");
                        // Its completion will find out what became of the key.
                        return std::future::pending().await;
                    }
                }
            }
            Err(error) => tracing::warn!(record = %id.short(), %error, "a lease could not be renewed; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use onceward_core::{
        record::{ClaimId, SessionId},
        transition,
    };
    use onceward_store::memory::Memory;

    use super::*;
    use crate::{Limits, Route, Routes, Secret};

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_recognises_itself_has_only_what_is_left_of_its_lease() {
        const LEASE: Duration = Duration::from_secs(6);
        const LATER: Duration = Duration::from_secs(5);
        let memory = Memory::default();
        let routes = Routes::new(vec![], Route::new("default"));
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
        let (id, facts) = (RecordId([1; 32]), transition::place(ClaimId([1; 16]), SessionId([1; 16])));
        let mut clock = StoreClock { said: Micros::ZERO, at: Instant::now() };
        // Its answer is lost, and it is made again.
        let in_flight = Arc::new(Semaphore::new(1));
        let terms = Terms {
            lease: LEASE,
            wait: LEASE,
            waiters_per_key: 1,
            in_flight: &in_flight,
            books: None,
            only_there: false,
            quarantine: None,
            takes_turns: true,
        };
        insert(&engine, id, &facts, terms, &mut clock).await;
        tokio::time::advance(LATER).await;
        let again = insert(&engine, id, &facts, terms, &mut clock).await;
        assert!(matches!(again, Event::Existing { .. }), "{again:?}");
        assert_eq!(clock.at.elapsed(), LATER, "the lease runs since it was given");
        assert_eq!(clock.now(), memory.get(id).await.unwrap().now);
        // Somebody else's says nothing of ours.
        let other = transition::place(ClaimId([2; 16]), SessionId([1; 16]));
        insert(&engine, id, &other, terms, &mut clock).await;
        assert_eq!(clock.at.elapsed(), Duration::ZERO);
    }
}
