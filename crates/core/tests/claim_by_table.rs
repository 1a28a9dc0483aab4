//! The claim machine, row by row as its front page has them: events in, actions out.

use std::{sync::Arc, time::Duration};

use onceward_core::{
    cas::{FenceRule, Lease},
    claim::{Action, Applied, Belongs, Claim, Event, INSERT_TRIES_MAX, LOST_TRIES_MAX, Sent, SettledBy},
    decide::{Ask, Found, Refusal},
    outcome::Outcome,
    policy::{Class, Outage, Policy, Step},
    record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
};

const NOW: Micros = Micros(1_000_000);
const ME: ClaimId = ClaimId([1; 16]);
const OTHER: ClaimId = ClaimId([2; 16]);

/// An action, as the table spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Insert,
    /// With the attempt it becomes.
    TakeOver(u32),
    /// Its own claim under its own fence, with a lease again.
    Resume,
    MarkDispatched,
    Settle,
    /// As executed, with the answer of a probe.
    SettleExecuted,
    /// Fence and revision.
    Probe(u64, u64),
    /// The same, for the effect.
    Look(u64, u64),
    Complete,
    Fail,
    GiveUp,
    Remove,
    Wait,
    Recall,
    RecallAndAbandon,
    /// Fence and attempt.
    Execute(u64, u32),
    Replay,
    Refuse(Refusal),
    RefuseAndAbandon(Refusal),
    Pass,
    PassAndAbandon,
    Answer,
}

fn does(action: &Action) -> Does {
    match action {
        Action::Insert(facts) => {
            assert_eq!((facts.attempt, facts.ambiguous, facts.claimed_at), (1, false, Micros::ZERO), "a first claim");
            Does::Insert
        }
        Action::Replace(write) => match (write.facts.state, write.fence, write.lease) {
            (State::InFlight, FenceRule::Next, _) => Does::TakeOver(write.facts.attempt),
            (State::InFlight, FenceRule::Keep, Lease::For(_)) => Does::Resume,
            (State::InFlight, FenceRule::Keep, Lease::Keep) => Does::MarkDispatched,
            (State::InFlight, FenceRule::Keep, Lease::Over) => Does::GiveUp,
            (State::Completed, FenceRule::Keep, _) => Does::Complete,
            (State::Failed, FenceRule::Keep, _) => Does::Fail,
            (State::Failed, FenceRule::Next, _) => Does::Settle,
            (State::Completed, FenceRule::Next, _) => Does::SettleExecuted,
            _ => panic!("a claim does not write {write:?}"),
        },
        Action::Remove(_) => Does::Remove,
        Action::Wait(_) => Does::Wait,
        Action::Recall { abandon: false } => Does::Recall,
        Action::Recall { abandon: true } => Does::RecallAndAbandon,
        Action::Probe(step, fence, revision) => {
            if *step == Step::Effect {
                Does::Look(fence.0, revision.0)
            } else {
                Does::Probe(fence.0, revision.0)
            }
        }
        Action::Execute { fence, attempt } => Does::Execute(fence.0, *attempt),
        Action::Replay(_) => Does::Replay,
        Action::Refuse { refusal, abandon: false, .. } => Does::Refuse(*refusal),
        Action::Refuse { refusal, abandon: true, .. } => Does::RefuseAndAbandon(*refusal),
        Action::PassThrough { abandon: false } => Does::Pass,
        Action::PassThrough { abandon: true } => Does::PassAndAbandon,
        Action::Answer => Does::Answer,
    }
}

fn ask() -> Ask {
    Ask {
        claim_id: ME,
        session: SessionId([7; 16]),
        principal_proof: None,
        vouched: false,
        fingerprint_policy: 1,
        fingerprint: [9; 32],
    }
}

fn outcome(status: u16) -> Outcome {
    Outcome { status, body: vec![status as u8].into(), ..Outcome::default() }
}

/// In flight, dispatched, of another request with the same fingerprint; its lease runs.
fn in_flight() -> Record {
    Record {
        stored: Stored {
            fence: Fence(10),
            revision: Revision(1),
            lease_until: NOW.plus(Duration::from_secs(5)),
            keep_until: Micros::ZERO,
            written_at: Micros(10),
        },
        facts: Facts {
            state: State::InFlight,
            phase: Phase::Dispatched,
            ambiguous: false,
            attempt: 1,
            claim_id: OTHER,
            session: SessionId([8; 16]),
            principal_proof: None,
            fingerprint_policy: 1,
            fingerprint: [9; 32],
            fields: Vec::new(),
            route: "pay".into(),
            tenant: "acme".into(),
            env: "live".into(),
            claimed_at: Micros(10),
            settled_at: Micros::ZERO,
            not_before: Micros::ZERO,
            outcome: None,
            checkpoint: None,
            reason: String::new(),
        },
    }
}

fn with(change: impl FnOnce(&mut Record)) -> Record {
    let mut record = in_flight();
    change(&mut record);
    record
}

fn lease_over() -> Record {
    with(|record| record.stored.lease_until = NOW)
}

fn settled(state: State, outcome: Option<Outcome>) -> Record {
    with(|record| {
        record.facts.state = state;
        record.facts.outcome = outcome;
        record.stored.lease_until = Micros::ZERO;
        record.stored.keep_until = NOW.plus(Duration::from_secs(60));
    })
}

fn existing(record: Record) -> Event {
    Event::Existing { record: Box::new(record), now: NOW }
}

fn inserted(fence: u64) -> Event {
    Event::Inserted { fence: Fence(fence), now: NOW }
}

fn applied(fence: u64) -> Event {
    Event::Applied { fence: Fence(fence), revision: Revision(2), now: NOW }
}

fn lost(record: Option<Record>) -> Event {
    Event::Lost { record: record.map(Box::new), now: NOW }
}

fn answered(class: Class) -> Event {
    Event::Answered { class, outcome: outcome(200), retention: None, now: NOW }
}

const UNKNOWN: Event = Event::StoreFailed(Applied::Unknown);
const FAILED: Event = Event::StoreFailed(Applied::No);

fn plain() -> Policy {
    Policy::default()
}

fn retry() -> Policy {
    Policy { on_unknown: vec![Step::Retry], ..plain() }
}

fn two_phase() -> Policy {
    Policy { two_phase_dispatch: true, ..plain() }
}

/// Plays events and compares the actions; the first is always the insert.
#[track_caller]
fn check(policy: Policy, steps: &[(Event, Does)]) -> Claim {
    let (mut claim, first) = Claim::new(Arc::new(policy), ask(), Belongs::default(), Vec::new());
    assert_eq!(does(&first), Does::Insert);
    for (number, (event, expected)) in steps.iter().enumerate() {
        let action = claim.on(event.clone());
        assert_eq!(does(&action), *expected, "step {number}, after {event:?}");
    }
    claim
}

#[test]
fn claiming_inserted() {
    check(plain(), &[(inserted(5), Does::Execute(5, 1))]);
    check(two_phase(), &[(inserted(5), Does::MarkDispatched)]);
}

#[test]
fn claiming_existing_my_own() {
    let mine = with(|record| record.facts.claim_id = ME);
    check(plain(), &[(UNKNOWN, Does::Insert), (existing(mine), Does::Execute(10, 1))]);
    let third = with(|record| (record.facts.claim_id, record.facts.attempt) = (ME, 3));
    check(plain(), &[(existing(third), Does::Execute(10, 3))]);
}

#[test]
fn claiming_existing_my_own_with_its_lease_over() {
    let mut mine = lease_over();
    mine.facts.claim_id = ME;
    check(
        plain(),
        &[(UNKNOWN, Does::Insert), (existing(mine.clone()), Does::Resume), (applied(10), Does::Execute(10, 1))],
    );
    // Settled between the read and the write: nothing was sent, nothing will be.
    let failed = settled(State::Failed, None);
    check(plain(), &[(existing(mine), Does::Resume), (lost(Some(failed)), Does::Refuse(Refusal::Failed))]);
}

#[test]
fn claiming_existing_with_an_outcome() {
    for state in [State::Completed, State::Failed] {
        check(plain(), &[(existing(settled(state, Some(outcome(201)))), Does::Replay)]);
    }
}

#[test]
fn claiming_existing_refused() {
    let other_request = with(|record| record.facts.fingerprint = [3; 32]);
    let other_token = with(|record| record.facts.principal_proof = Some([3; 16]));
    let not_kept = Outcome { status: 202, body_not_kept: true, ..Outcome::default() };
    let later = with(|record| {
        (record.facts.state, record.facts.not_before) = (State::NotExecuted, Micros(NOW.0 + 1));
    });
    for (record, refusal) in [
        (other_request, Refusal::KeyReused),
        (other_token, Refusal::PrincipalChanged),
        (settled(State::Erased, None), Refusal::KeyGone),
        (settled(State::Failed, None), Refusal::Failed),
        (settled(State::Completed, Some(not_kept)), Refusal::ResponseNotKept { status: 202 }),
        (later, Refusal::RetryLater(Micros(NOW.0 + 1))),
    ] {
        check(plain(), &[(existing(record), Does::Refuse(refusal))]);
    }
}

#[test]
fn claiming_existing_in_flight_waits_and_looks_again() {
    check(
        plain(),
        &[
            (existing(in_flight()), Does::Wait),
            (Event::Woken, Does::Insert),
            (existing(in_flight()), Does::Wait),
            (existing(settled(State::Completed, Some(outcome(201)))), Does::Replay),
        ],
    );
    check(plain(), &[(existing(in_flight()), Does::Wait), (Event::WaitOver, Does::Refuse(Refusal::InFlight))]);
    // Released meanwhile: one waiter's insert makes it.
    check(
        plain(),
        &[(existing(in_flight()), Does::Wait), (Event::Woken, Does::Insert), (inserted(20), Does::Execute(20, 1))],
    );
}

#[test]
fn a_store_that_wakes_on_every_renewal_does_not_end_the_wait() {
    let mut steps = vec![(existing(in_flight()), Does::Wait)];
    for _ in 0..10 * LOST_TRIES_MAX {
        steps.push((Event::Woken, Does::Insert));
        steps.push((existing(in_flight()), Does::Wait));
    }
    check(plain(), &steps);
}

#[test]
fn claiming_existing_not_executed_or_never_dispatched_is_taken_over() {
    let not_executed = settled(State::NotExecuted, None);
    let mut abandoned = lease_over();
    abandoned.facts.phase = Phase::Claimed;
    for record in [not_executed, abandoned] {
        let claim = check(plain(), &[(existing(record), Does::TakeOver(2)), (applied(20), Does::Execute(20, 2))]);
        assert!(!claim.facts().ambiguous, "nobody was sent anything");
    }
}

#[test]
fn claiming_existing_unknown_goes_by_the_list() {
    check(plain(), &[(existing(lease_over()), Does::Refuse(Refusal::OutcomeUnknown))]);
    let claim = check(retry(), &[(existing(lease_over()), Does::TakeOver(2)), (applied(20), Does::Execute(20, 2))]);
    assert!(claim.facts().ambiguous, "the first attempt may have taken effect");
    let fail = Policy { on_unknown: vec![Step::Fail], ..plain() };
    check(fail, &[(existing(lease_over()), Does::Settle), (applied(20), Does::Refuse(Refusal::Failed))]);
    let spent = with(|record| (record.facts.attempt, record.stored.lease_until) = (4, NOW));
    check(retry(), &[(existing(spent), Does::Refuse(Refusal::OutcomeUnknown))]);
    let held = Policy { on_unknown: vec![Step::HoldFor(Duration::from_secs(1)), Step::Fail], ..plain() };
    check(held.clone(), &[(existing(lease_over()), Does::Refuse(Refusal::OutcomeUnknown))]);
    let long_ago = with(|record| record.stored.lease_until = Micros(1));
    check(
        Policy { on_unknown: vec![Step::HoldFor(Duration::from_millis(1)), Step::Fail], ..plain() },
        &[(existing(long_ago), Does::Settle)],
    );
}

#[test]
fn claiming_store_failed() {
    // Unknown: the same claim again, a bounded number of times.
    let mut steps = vec![(UNKNOWN, Does::Insert); INSERT_TRIES_MAX as usize - 1];
    steps.push((UNKNOWN, Does::RecallAndAbandon));
    steps.push((Event::NotRemembered, Does::RefuseAndAbandon(Refusal::StoreUnavailable)));
    check(plain(), &steps);
    let nothing = Event::NotRemembered;
    check(plain(), &[(FAILED, Does::Recall), (nothing.clone(), Does::Refuse(Refusal::StoreUnavailable))]);
    let abandon = Does::RefuseAndAbandon(Refusal::StoreUnavailable);
    let lost = [(UNKNOWN, Does::Insert), (FAILED, Does::RecallAndAbandon), (nothing.clone(), abandon)];
    check(plain(), &lost);
    let bypass = Policy { on_store_outage: Outage::Bypass, ..plain() };
    check(bypass.clone(), &[(FAILED, Does::Recall), (nothing.clone(), Does::Pass)]);
    let lost = [(UNKNOWN, Does::Insert), (FAILED, Does::RecallAndAbandon), (nothing, Does::PassAndAbandon)];
    check(bypass, &lost);
}

#[test]
fn a_store_that_takes_no_claim_has_answered_and_nothing_is_recalled() {
    check(plain(), &[(Event::StoreTakesNone, Does::Refuse(Refusal::StoreUnavailable))]);
    let bypass = Policy { on_store_outage: Outage::Bypass, ..plain() };
    check(bypass.clone(), &[(Event::StoreTakesNone, Does::Pass)]);
    check(bypass, &[(UNKNOWN, Does::Insert), (Event::StoreTakesNone, Does::PassAndAbandon)]);
    let taken =
        [(existing(lease_over()), Does::TakeOver(2)), (Event::StoreTakesNone, Does::Refuse(Refusal::StoreUnavailable))];
    check(retry(), &taken);
}

#[test]
fn recalling_goes_by_an_answer_that_is_this_requests_and_by_nothing_else() {
    let bypass = Policy { on_store_outage: Outage::Bypass, ..retry() };
    let recalled = |record: Record, does| {
        check(
            bypass.clone(),
            &[(FAILED, Does::Recall), (Event::Remembered { record: Box::new(record), now: NOW }, does)],
        )
    };
    let completed = || settled(State::Completed, Some(outcome(201)));
    for state in [State::Completed, State::Failed] {
        recalled(settled(state, Some(outcome(201))), Does::Replay);
    }
    let changed = |change: fn(&mut Record)| {
        let mut record = completed();
        change(&mut record);
        record
    };
    recalled(changed(|record| record.facts.fingerprint = [3; 32]), Does::Refuse(Refusal::KeyReused));
    let other_token = changed(|record| record.facts.principal_proof = Some([3; 16]));
    recalled(other_token, Does::Refuse(Refusal::PrincipalChanged));
    recalled(settled(State::Failed, None), Does::Refuse(Refusal::Failed));
    let ended = |record: &mut Record| {
        record.facts.outcome = Some(Outcome { body_until: NOW, ..outcome(201) });
    };
    recalled(changed(ended), Does::Refuse(Refusal::ResponseNotKept { status: 201 }));
    // What it was asked under other rules cannot be told; what is not settled is not known any more.
    recalled(changed(|record| record.facts.fingerprint_policy = 2), Does::Pass);
    for record in [in_flight(), lease_over(), settled(State::NotExecuted, None)] {
        recalled(record, Does::Pass);
    }
    // The claim that may stand beside it is freed.
    let answer = Event::Remembered { record: Box::new(completed()), now: NOW };
    check(bypass.clone(), &[(UNKNOWN, Does::Insert), (FAILED, Does::RecallAndAbandon), (answer, Does::Replay)]);
}

#[test]
fn taking_over_lost_is_as_existing_or_claims_anew() {
    let completed = settled(State::Completed, Some(outcome(201)));
    check(retry(), &[(existing(lease_over()), Does::TakeOver(2)), (lost(Some(in_flight())), Does::Wait)]);
    check(retry(), &[(existing(lease_over()), Does::TakeOver(2)), (lost(Some(completed)), Does::Replay)]);
    check(
        retry(),
        &[
            (existing(lease_over()), Does::TakeOver(2)),
            (lost(None), Does::Insert),
            (inserted(30), Does::Execute(30, 1)),
        ],
    );
    let mut steps = vec![(existing(lease_over()), Does::TakeOver(2))];
    steps.extend(vec![(lost(Some(lease_over())), Does::TakeOver(2)); LOST_TRIES_MAX as usize - 1]);
    steps.push((lost(Some(lease_over())), Does::Refuse(Refusal::InFlight)));
    check(retry(), &steps);
}

#[test]
fn taking_over_store_failed_asks_the_record() {
    let taken = with(|record| {
        (record.facts.claim_id, record.facts.attempt, record.facts.ambiguous) = (ME, 2, true);
        record.stored.fence = Fence(20);
    });
    check(
        retry(),
        &[
            (existing(lease_over()), Does::TakeOver(2)),
            (UNKNOWN, Does::Insert),
            (existing(taken), Does::Execute(20, 2)),
        ],
    );
    check(retry(), &[(existing(lease_over()), Does::TakeOver(2)), (FAILED, Does::Refuse(Refusal::StoreUnavailable))]);
}

#[test]
fn settling_lost_or_failed() {
    let fail = || Policy { on_unknown: vec![Step::Fail], ..plain() };
    let completed = settled(State::Completed, Some(outcome(201)));
    check(fail(), &[(existing(lease_over()), Does::Settle), (lost(Some(completed)), Does::Replay)]);
    check(fail(), &[(existing(lease_over()), Does::Settle), (lost(None), Does::Insert)]);
    check(fail(), &[(existing(lease_over()), Does::Settle), (UNKNOWN, Does::Refuse(Refusal::StoreUnavailable))]);
}

fn found(found: Found) -> Event {
    Event::Probed { found, now: NOW }
}

/// Asks, then goes on with these.
fn probe(rest: &[Step]) -> Policy {
    let probe = Step::Probe { quiesce: Duration::ZERO, unattended: true };
    Policy { on_unknown: [&[probe], rest].concat(), ..plain() }
}

const ASKS: Does = Does::Probe(10, 1);

#[test]
fn probing_executed_is_replayed_to_whoever_asked() {
    let executed = || found(Found::Executed(outcome(201)));
    let mut claim = check(
        probe(&[]),
        &[(existing(lease_over()), ASKS), (executed(), Does::SettleExecuted), (applied(20), Does::Replay)],
    );
    assert_eq!((claim.settled(), claim.settled()), (Some(SettledBy::Probe), None));
    let not_kept = Outcome { body_not_kept: true, ..outcome(201) };
    check(
        probe(&[]),
        &[
            (existing(lease_over()), ASKS),
            (found(Found::Executed(not_kept)), Does::SettleExecuted),
            (applied(20), Does::Refuse(Refusal::ResponseNotKept { status: 201 })),
        ],
    );
    // A late answer, or another request's probe, was there first.
    let completed = settled(State::Completed, Some(outcome(200)));
    let mut claim = check(
        probe(&[]),
        &[(existing(lease_over()), ASKS), (executed(), Does::SettleExecuted), (lost(Some(completed)), Does::Replay)],
    );
    assert_eq!(claim.settled(), None, "not by this one");
    for failed in [UNKNOWN, FAILED] {
        let mut claim = check(
            probe(&[]),
            &[
                (existing(lease_over()), ASKS),
                (executed(), Does::SettleExecuted),
                (failed, Does::Refuse(Refusal::StoreUnavailable)),
            ],
        );
        assert_eq!(claim.settled(), None);
    }
}

#[test]
fn probing_not_executed_runs_with_the_next_attempt_and_no_doubt_left() {
    let in_doubt = with(|record| (record.facts.ambiguous, record.stored.lease_until) = (true, NOW));
    let steps = [
        (existing(in_doubt.clone()), ASKS),
        (found(Found::NotExecuted), Does::TakeOver(2)),
        (applied(20), Does::Execute(20, 2)),
        (Event::UpstreamFailed(Sent::No), Does::Remove),
    ];
    let mut claim = check(probe(&[]), &steps);
    assert_eq!(claim.settled(), Some(SettledBy::Probe));
    assert!(!claim.facts().ambiguous, "a release of the second attempt frees the key");
    // Somebody else runs it already.
    check(
        probe(&[]),
        &[
            (existing(in_doubt), ASKS),
            (found(Found::NotExecuted), Does::TakeOver(2)),
            (lost(Some(in_flight())), Does::Wait),
        ],
    );
}

#[test]
fn probing_without_a_word_passes_on_and_before_its_time_holds() {
    let nothing = || found(Found::Nothing);
    check(probe(&[]), &[(existing(lease_over()), ASKS), (nothing(), Does::Refuse(Refusal::OutcomeUnknown))]);
    let mut claim = check(
        probe(&[Step::Fail]),
        &[(existing(lease_over()), ASKS), (nothing(), Does::Settle), (applied(20), Does::Refuse(Refusal::Failed))],
    );
    assert_eq!(claim.settled(), Some(SettledBy::Policy));
    let mut claim = check(
        probe(&[Step::Retry]),
        &[(existing(lease_over()), ASKS), (nothing(), Does::TakeOver(2)), (applied(20), Does::Execute(20, 2))],
    );
    assert!(claim.facts().ambiguous, "the first attempt may have taken effect");
    assert_eq!(claim.settled(), None, "nothing is known yet");
    // Too early to ask: whatever comes next in the list must not come first.
    for rest in [Step::Retry, Step::Fail] {
        let second = Duration::from_millis(900);
        let on_unknown = vec![Step::Probe { quiesce: second, unattended: true }, rest];
        let early = Policy { on_unknown, ..plain() };
        check(early.clone(), &[(existing(lease_over()), Does::Refuse(Refusal::OutcomeUnknown))]);
        let quiet = with(|record| record.stored.lease_until = Micros(1));
        check(early, &[(existing(quiet), ASKS)]);
    }
}

#[test]
fn each_step_that_asks_is_asked_once_in_the_order_of_the_list_and_named_as_who_settled() {
    let both = |first, second| Policy { on_unknown: vec![first, second, Step::Fail], ..plain() };
    let books = Step::Probe { quiesce: Duration::ZERO, unattended: true };
    const LOOKS: Does = Does::Look(10, 1);
    for (policy, asks) in [(both(books, Step::Effect), [ASKS, LOOKS]), (both(Step::Effect, books), [LOOKS, ASKS])] {
        let [first, second] = asks;
        let mut claim = check(
            policy.clone(),
            &[
                (existing(lease_over()), first),
                (found(Found::Nothing), second),
                (found(Found::Nothing), Does::Settle),
                (applied(20), Does::Refuse(Refusal::Failed)),
            ],
        );
        assert_eq!(claim.settled(), Some(SettledBy::Policy));
        let by = if second == LOOKS { SettledBy::Effect } else { SettledBy::Probe };
        let mut claim = check(
            policy,
            &[
                (existing(lease_over()), first),
                (found(Found::Nothing), second),
                (found(Found::NotExecuted), Does::TakeOver(2)),
                (applied(20), Does::Execute(20, 2)),
            ],
        );
        assert_eq!(claim.settled(), Some(by));
    }
}

#[test]
fn probing_what_still_runs_here_waits_for_it() {
    let completed = settled(State::Completed, Some(outcome(201)));
    check(probe(&[]), &[(existing(lease_over()), ASKS), (existing(completed), Does::Replay)]);
    check(probe(&[]), &[(existing(lease_over()), ASKS), (Event::Woken, Does::Insert), (existing(lease_over()), ASKS)]);
    check(probe(&[]), &[(existing(lease_over()), ASKS), (Event::WaitOver, Does::Refuse(Refusal::InFlight))]);
}

#[test]
fn a_record_that_changes_under_each_probe_is_not_probed_for_ever() {
    let mut steps = vec![(existing(lease_over()), ASKS)];
    for _ in 0..LOST_TRIES_MAX {
        steps.push((found(Found::Executed(outcome(201))), Does::SettleExecuted));
        steps.push((lost(Some(lease_over())), ASKS));
    }
    steps.pop();
    steps.push((lost(Some(lease_over())), Does::Refuse(Refusal::InFlight)));
    check(probe(&[]), &steps);
}

#[test]
fn dispatching() {
    check(two_phase(), &[(inserted(5), Does::MarkDispatched), (applied(5), Does::Execute(5, 1))]);
    for event in [lost(Some(in_flight())), lost(None), UNKNOWN, FAILED] {
        check(
            two_phase(),
            &[(inserted(5), Does::MarkDispatched), (event, Does::RefuseAndAbandon(Refusal::StoreUnavailable))],
        );
    }
}

#[test]
fn executing_answered() {
    for (class, write) in [
        (Class::Record, Does::Complete),
        (Class::Fail, Does::Fail),
        (Class::Release, Does::Remove),
        (Class::Unknown, Does::GiveUp),
    ] {
        check(plain(), &[(inserted(5), Does::Execute(5, 1)), (answered(class), write), (applied(5), Does::Answer)]);
    }
}

#[test]
fn executing_upstream_failed() {
    for (sent, write) in [(Sent::No, Does::Remove), (Sent::Maybe, Does::GiveUp)] {
        check(plain(), &[(inserted(5), Does::Execute(5, 1)), (Event::UpstreamFailed(sent), write)]);
    }
}

#[test]
fn a_release_after_an_earlier_unknown_attempt_leaves_the_outcome_unknown() {
    for event in [answered(Class::Release), Event::UpstreamFailed(Sent::No)] {
        check(
            retry(),
            &[(existing(lease_over()), Does::TakeOver(2)), (applied(20), Does::Execute(20, 2)), (event, Does::GiveUp)],
        );
    }
}

/// Up to the recording of an answer under fence 5.
fn recording(last: &[(Event, Does)]) -> Claim {
    let mut steps = vec![(inserted(5), Does::Execute(5, 1)), (answered(Class::Record), Does::Complete)];
    steps.extend_from_slice(last);
    check(plain(), &steps)
}

fn completed_by_me(with: Outcome) -> Record {
    let mut record = settled(State::Completed, Some(with));
    (record.facts.claim_id, record.stored.fence) = (ME, Fence(5));
    record
}

#[test]
fn recording_lost_to_my_own_write() {
    recording(&[(UNKNOWN, Does::Complete), (lost(Some(completed_by_me(outcome(200)))), Does::Answer)]);
    // A removal whose answer was lost finds nothing.
    check(
        plain(),
        &[
            (inserted(5), Does::Execute(5, 1)),
            (answered(Class::Release), Does::Remove),
            (UNKNOWN, Does::Remove),
            (lost(None), Does::Answer),
        ],
    );
}

#[test]
fn recording_lost_to_another() {
    let mut taken_and_completed = settled(State::Completed, Some(outcome(201)));
    taken_and_completed.stored.fence = Fence(20);
    recording(&[(lost(Some(taken_and_completed.clone())), Does::Replay)]);
    let claim_lost = Does::Refuse(Refusal::ClaimLost);
    recording(&[(lost(Some(in_flight())), claim_lost)]);
    recording(&[(lost(Some(settled(State::Erased, None))), claim_lost)]);
    recording(&[(lost(None), claim_lost)]);
    // Its own answer is never passed off as the key's, nor another caller's or request's as its.
    let mut other_request = taken_and_completed.clone();
    other_request.facts.fingerprint = [3; 32];
    recording(&[(lost(Some(other_request)), claim_lost)]);
    let mut other_token = taken_and_completed;
    other_token.facts.principal_proof = Some([3; 16]);
    recording(&[(lost(Some(other_token)), claim_lost)]);
    // The same holder wrote before, and otherwise: what was recorded stands.
    recording(&[(lost(Some(completed_by_me(outcome(201)))), Does::Replay)]);
}

#[test]
fn recording_store_failed_writes_again_until_the_driver_gives_up() {
    let claim = recording(&[(UNKNOWN, Does::Complete), (FAILED, Does::Complete), (UNKNOWN, Does::Complete)]);
    assert!(claim.unrecorded().is_some(), "what is to be recorded in the background");
}

#[test]
fn a_checkpoint_beside_the_machine_is_in_what_it_writes() {
    let mut claim = check(plain(), &[(inserted(5), Does::Execute(5, 1))]);
    let mut facts = claim.facts().clone();
    facts.checkpoint =
        Some(onceward_core::outcome::Checkpoint { seq: 1, name: "charged".into(), data: vec![1].into() });
    claim.noted(facts.clone());
    let Action::Replace(write) = claim.on(answered(Class::Unknown)) else { panic!("it gives up by a write") };
    assert_eq!(write.facts.checkpoint, facts.checkpoint, "the next attempt goes on from there");
}

#[test]
fn a_takeover_that_lost_leaves_nothing_in_the_next_first_claim() {
    let old = with(|record| {
        (record.stored.lease_until, record.facts.attempt, record.facts.ambiguous) = (NOW, 3, true);
        record.facts.reason = "an old one".into();
        record.facts.route = "as it was".into();
    });
    let claim = check(
        retry(),
        &[(existing(old), Does::TakeOver(4)), (lost(None), Does::Insert), (inserted(30), Does::Execute(30, 1))],
    );
    let facts = claim.facts();
    assert_eq!((facts.attempt, facts.ambiguous), (1, false));
    assert_eq!((facts.reason.as_str(), facts.route.as_str(), facts.claimed_at), ("", "", NOW));
}
