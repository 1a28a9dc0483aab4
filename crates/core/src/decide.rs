//! What a request may do, given the record that is there. The one place that says replay, wait,
//! refuse or take over; one pure function.
//!
//! The order is fixed: whose key it is (principal), whether it is the same request (fingerprint),
//! then the state. An erased key is gone whatever was asked, since its fingerprint is gone too.

use alloc::boxed::Box;

use crate::{
    cas::Replacement,
    outcome::Outcome,
    policy::{Policy, Step},
    record::{Attempt, ClaimId, Fence, Micros, NO_FINGERPRINT, Phase, Record, Seen, SessionId},
    transition::{self, Resolution, Taker},
};

/// A request that asks for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Drawn for this request.
    pub claim_id: ClaimId,
    /// Of this process.
    pub session: SessionId,
    /// Hash of the credential, where the principal alone does not prove who asks.
    pub principal_proof: Option<[u8; 16]>,
    /// Somebody who can tell has checked the credential just now: another proof than the record's is
    /// the same caller's, as after a token was refreshed.
    pub vouched: bool,
    /// Which rules the fingerprint was made with.
    pub fingerprint_policy: u32,
    /// Of this request.
    pub fingerprint: [u8; 32],
}

/// What the request may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The claim that is there is this request's own: its answer had been lost.
    Mine {
        /// The fence it got.
        fence: Fence,
        /// The attempt it is.
        attempt: Attempt,
    },
    /// Answer from the record.
    Replay,
    /// Somebody executes it; his lease runs until then.
    Wait(Micros),
    /// Claim it by this write.
    TakeOver(Replacement),
    /// The outcome is given up: settle it by this write, then refuse as failed.
    Settle(Replacement),
    /// Ask whether it took effect, as the step at this place of `on_unknown` has it, then go on with [`probed`].
    Probe(Place),
    /// Say no.
    Refuse(Refusal),
}

/// A step of a policy's `on_unknown`, by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(usize);

impl Place {
    /// The step there; of another policy than it was said of, perhaps none.
    #[must_use]
    pub fn step(self, policy: &Policy) -> Option<Step> {
        policy.on_unknown.get(self.0).copied()
    }

    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Why a request is not served. `layer/refuse.rs` says which status that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// Another token of the same subject made the claim.
    PrincipalChanged,
    /// The key was used for another request.
    KeyReused,
    /// The first one still runs.
    InFlight,
    /// Nobody knows whether it took effect.
    OutcomeUnknown,
    /// Settled as failed, without an answer.
    Failed,
    /// Erased on request.
    KeyGone,
    /// The fact is recorded, the body is not.
    ResponseNotKept {
        /// The recorded status.
        status: u16,
    },
    /// The holder asked not to be repeated before then.
    RetryLater(Micros),
    /// The claim was lost to a takeover, resolve or forget while the upstream worked.
    ClaimLost,
    /// The store did not answer.
    StoreUnavailable,
}

/// Whether the request's fingerprint could be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// It was.
    Yes,
    /// The record was made under rules that are gone: the key alone decided.
    No,
}

/// Decides. `now` is the store's time of the read.
#[must_use]
pub fn decide(there: &Record, ask: &Ask, policy: &Policy, now: Micros) -> (Decision, Verified) {
    let facts = &there.facts;
    if facts.principal_proof.is_some() && facts.principal_proof != ask.principal_proof && !ask.vouched {
        return (Decision::Refuse(Refusal::PrincipalChanged), Verified::Yes);
    }
    let seen = there.seen_at(now);
    if seen == Seen::Erased {
        return (Decision::Refuse(Refusal::KeyGone), Verified::Yes);
    }
    // A place held by an operator belongs to no request: there is nothing to compare.
    let placed = facts.fingerprint_policy == NO_FINGERPRINT;
    let same_rules = facts.fingerprint_policy == ask.fingerprint_policy;
    let verified = if same_rules || placed { Verified::Yes } else { Verified::No };
    if same_rules && !placed && facts.fingerprint != ask.fingerprint {
        return (Decision::Refuse(Refusal::KeyReused), verified);
    }
    (by_state(there, seen, ask, policy, now), verified)
}

fn by_state(there: &Record, seen: Seen, ask: &Ask, policy: &Policy, now: Micros) -> Decision {
    let facts = &there.facts;
    match seen {
        Seen::InFlight if facts.claim_id == ask.claim_id => {
            Decision::Mine { fence: there.stored.fence, attempt: facts.attempt }
        }
        // Its answer came after its lease: nothing was sent under it yet, and nothing may be
        // before the lease runs again. Whoever settled it since the read wins.
        Seen::Abandoned | Seen::Unknown if facts.claim_id == ask.claim_id => {
            Decision::TakeOver(transition::resume(there, policy.lease))
        }
        Seen::InFlight => Decision::Wait(there.stored.lease_until),
        Seen::NotExecuted if facts.not_before > now => Decision::Refuse(Refusal::RetryLater(facts.not_before)),
        Seen::Abandoned | Seen::NotExecuted => take_over(there, ask, policy),
        Seen::Unknown => on_unknown(there, ask, policy, now, Place(0)),
        Seen::Completed | Seen::Failed => match &facts.outcome {
            Some(outcome) if outcome.is_bare(now) => {
                Decision::Refuse(Refusal::ResponseNotKept { status: outcome.status })
            }
            Some(_) => Decision::Replay,
            None => Decision::Refuse(Refusal::Failed),
        },
        Seen::Erased => Decision::Refuse(Refusal::KeyGone),
    }
}

/// What was found out about an unknown outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It took effect; this is its answer.
    Executed(Outcome),
    /// It did not.
    NotExecuted,
    /// Nothing.
    Nothing,
}

/// Decides on an unknown outcome about which the step at `place` found this; `there` is what [`Decision::Probe`] was said
/// of. The writes lose to whatever was written since: a late answer, an operator, another request's probe.
#[must_use]
pub fn probed(there: &Record, ask: &Ask, policy: &Policy, place: Place, found: Found, now: Micros) -> Decision {
    match found {
        Found::Executed(_) => settled_by_probe(there, policy, place, found, now)
            .map_or(Decision::Refuse(Refusal::OutcomeUnknown), Decision::Settle),
        Found::NotExecuted => {
            let write = transition::take_over_unexecuted(there, taker(ask, policy), policy.lease);
            Decision::TakeOver(as_asked(write, ask))
        }
        Found::Nothing => on_unknown(there, ask, policy, now, place.next()),
    }
}

/// What was found, as the write that settles it; none where it was nothing.
fn settled_by_probe(there: &Record, policy: &Policy, place: Place, found: Found, now: Micros) -> Option<Replacement> {
    let (resolution, found) = match found {
        Found::Executed(outcome) => (Resolution::Executed(outcome), "executed"),
        Found::NotExecuted => (Resolution::NotExecuted, "not executed"),
        Found::Nothing => return None,
    };
    let by = if place.step(policy) == Some(Step::Effect) { "effect" } else { "probe" };
    let reason = alloc::format!("{by}: {found}");
    transition::resolve(there, resolution, &reason, policy.retention, now).ok()
}

/// Works the route's list from a place on: each step settles or passes on; at its end the outcome is held.
fn on_unknown(there: &Record, ask: &Ask, policy: &Policy, now: Micros, from: Place) -> Decision {
    if let Some(write) = overdue(there, policy, now) {
        return Decision::Settle(write);
    }
    let age = now.since(there.unknown_since());
    for (at, step) in policy.on_unknown.iter().enumerate().skip(from.0) {
        match *step {
            Step::Hold => break,
            Step::HoldFor(span) if age < span => break,
            Step::HoldFor(_) => {}
            Step::Probe { quiesce, .. } if age < quiesce => break,
            Step::Probe { .. } | Step::Effect => return Decision::Probe(Place(at)),
            Step::Retry if there.facts.attempt <= policy.retry_max => return take_over(there, ask, policy),
            Step::Retry => {}
            Step::Fail => {
                if let Some(write) = given_up(there, policy, now, "on_unknown: fail") {
                    return Decision::Settle(write);
                }
            }
        }
    }
    Decision::Refuse(Refusal::OutcomeUnknown)
}

/// What a background worker, with no request at hand, can do about an unknown outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unattended {
    /// Settle it by this write.
    Settle(Box<Replacement>),
    /// Ask whether it took effect, as the step at this place has it, then go on with [`unattended_probed`].
    Probe(Place),
}

/// What can be done without a request: nothing where the list comes to a step that needs one, or must wait. An outcome
/// unknown for longer than `unknown_max` is settled whatever the list says.
#[must_use]
pub fn unattended(there: &Record, policy: &Policy, now: Micros) -> Option<Unattended> {
    work_unattended(there, policy, now, Place(0))
}

/// As [`unattended`], where the step at `place` found this.
#[must_use]
pub fn unattended_probed(
    there: &Record,
    policy: &Policy,
    place: Place,
    found: Found,
    now: Micros,
) -> Option<Unattended> {
    match found {
        Found::Nothing => work_unattended(there, policy, now, place.next()),
        found => settled_by_probe(there, policy, place, found, now).map(Box::new).map(Unattended::Settle),
    }
}

fn work_unattended(there: &Record, policy: &Policy, now: Micros, from: Place) -> Option<Unattended> {
    if there.seen_at(now) != Seen::Unknown {
        return None;
    }
    if let Some(write) = overdue(there, policy, now) {
        return Some(Unattended::Settle(Box::new(write)));
    }
    let age = now.since(there.unknown_since());
    for (at, step) in policy.on_unknown.iter().enumerate().skip(from.0) {
        match *step {
            Step::HoldFor(span) if age >= span => {}
            Step::Probe { quiesce, unattended: true } if age >= quiesce => return Some(Unattended::Probe(Place(at))),
            Step::Effect => return Some(Unattended::Probe(Place(at))),
            Step::Fail => {
                return given_up(there, policy, now, "on_unknown: fail").map(Box::new).map(Unattended::Settle);
            }
            Step::Hold | Step::HoldFor(_) | Step::Probe { .. } | Step::Retry => return None,
        }
    }
    None
}

fn overdue(there: &Record, policy: &Policy, now: Micros) -> Option<Replacement> {
    let age = now.since(there.unknown_since());
    if age < policy.unknown_max {
        return None;
    }
    given_up(there, policy, now, "unknown for longer than unknown_max")
}

fn given_up(there: &Record, policy: &Policy, now: Micros, reason: &str) -> Option<Replacement> {
    transition::resolve(there, Resolution::Failed(None), reason, policy.retention, now).ok()
}

fn take_over(there: &Record, ask: &Ask, policy: &Policy) -> Decision {
    Decision::TakeOver(as_asked(transition::take_over(there, taker(ask, policy), policy.lease), ask))
}

fn taker(ask: &Ask, policy: &Policy) -> Taker {
    let phase = if policy.two_phase_dispatch { Phase::Claimed } else { Phase::Dispatched };
    Taker { claim_id: ask.claim_id, session: ask.session, phase }
}

fn as_asked(mut write: Replacement, ask: &Ask) -> Replacement {
    write.facts.principal_proof = ask.principal_proof;
    // What runs from here on is this request, also where the old one could not be compared.
    write.facts.fingerprint_policy = ask.fingerprint_policy;
    write.facts.fingerprint = ask.fingerprint;
    write
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::{outcome::Outcome, record::State, transition::tests::record};

    const NOW: Micros = Micros(1_000_000);

    fn ask() -> Ask {
        Ask {
            claim_id: ClaimId([1; 16]),
            session: SessionId([1; 16]),
            principal_proof: Some([4; 16]),
            vouched: false,
            fingerprint_policy: 1,
            fingerprint: [9; 32],
        }
    }

    fn decided(there: &Record, ask: &Ask) -> Decision {
        decide(there, ask, &Policy::default(), NOW).0
    }

    #[test]
    fn whose_key_it_is_comes_first_then_which_request_then_the_state() {
        let mut there = record();
        (there.facts.state, there.facts.outcome) = (State::Completed, Some(Outcome::default()));
        let stranger = Ask { principal_proof: None, fingerprint: [3; 32], ..ask() };
        assert_eq!(decided(&there, &stranger), Decision::Refuse(Refusal::PrincipalChanged));
        let other = Ask { fingerprint: [3; 32], ..ask() };
        assert_eq!(decided(&there, &other), Decision::Refuse(Refusal::KeyReused));
        assert_eq!(decided(&there, &ask()), Decision::Replay);
        there.facts = transition::erased(there.facts, "asked to", NOW);
        for ask in [stranger, other, ask()] {
            assert_eq!(decided(&there, &ask), Decision::Refuse(Refusal::KeyGone));
        }
    }

    #[test]
    fn who_is_vouched_for_may_bring_another_token_and_no_other_request() {
        let mut there = record();
        (there.facts.state, there.facts.outcome) = (State::Completed, Some(Outcome::default()));
        let refreshed = Ask { principal_proof: Some([5; 16]), vouched: true, ..ask() };
        assert_eq!(decided(&there, &refreshed), Decision::Replay);
        let other = Ask { fingerprint: [3; 32], ..refreshed };
        assert_eq!(decided(&there, &other), Decision::Refuse(Refusal::KeyReused));
    }

    #[test]
    fn where_the_rules_of_the_fingerprint_are_gone_the_key_decides_and_it_is_said() {
        let mut there = record();
        (there.facts.state, there.facts.outcome) = (State::Completed, Some(Outcome::default()));
        let newer = Ask { fingerprint_policy: 2, fingerprint: [3; 32], ..ask() };
        assert_eq!(decide(&there, &newer, &Policy::default(), NOW), (Decision::Replay, Verified::No));
    }

    #[test]
    fn a_takeover_carries_the_fingerprint_of_the_request_that_runs() {
        let mut there = record();
        there.facts.phase = Phase::Claimed;
        let newer = Ask { fingerprint_policy: 2, fingerprint: [3; 32], ..ask() };
        let Decision::TakeOver(write) = decided(&there, &newer) else { panic!("nothing was sent") };
        assert_eq!((write.facts.fingerprint_policy, write.facts.fingerprint), (2, [3; 32]));
    }

    #[test]
    fn a_place_held_by_an_operator_is_taken_over_as_the_first_attempt() {
        let there = Record { facts: transition::place(ClaimId([7; 16]), SessionId([7; 16])), ..record() };
        let (decision, verified) = decide(&there, &ask(), &Policy::default(), NOW);
        let Decision::TakeOver(write) = decision else { panic!("{decision:?}") };
        assert_eq!((write.facts.attempt, write.facts.ambiguous, verified), (1, false, Verified::Yes));
        let live = Record { stored: crate::record::Stored { lease_until: Micros(NOW.0 + 1), ..there.stored }, ..there };
        assert_eq!(decided(&live, &ask()), Decision::Wait(Micros(NOW.0 + 1)));
    }

    #[test]
    fn what_is_settled_without_a_request_needs_none() {
        let there = record();
        let with = |on_unknown: &[Step]| Policy { on_unknown: on_unknown.into(), ..Policy::default() };
        let settles =
            |steps: &[Step], now| matches!(unattended(&there, &with(steps), now), Some(Unattended::Settle(_)));
        let span = Duration::from_secs(3600);
        let (late, hour) = (NOW.plus(span), Step::HoldFor(span));
        assert!(settles(&[Step::Fail], NOW));
        assert!(!settles(&[hour, Step::Fail], NOW));
        assert!(settles(&[hour, Step::Fail], late));
        assert!(!settles(&[Step::Hold, Step::Fail], late));
        assert!(!settles(&[Step::Retry, Step::Fail], late), "a retry needs a request");
        let probe = |unattended| Step::Probe { quiesce: span, unattended };
        for (steps, now, does) in [
            (&[probe(true), Step::Fail][..], NOW, None),
            (&[probe(true), Step::Fail], late, Some(Unattended::Probe(Place(0)))),
            (&[Step::Effect, Step::Fail], NOW, Some(Unattended::Probe(Place(0)))),
            (&[hour, probe(true)], late, Some(Unattended::Probe(Place(1)))),
            (&[probe(false), Step::Fail], late, None),
        ] {
            assert_eq!(unattended(&there, &with(steps), now), does, "{steps:?}");
        }
        let after = NOW.plus(Policy::default().unknown_max);
        assert!(settles(&[Step::Hold], after) && settles(&[probe(false)], after), "never unknown for ever");
    }

    #[test]
    fn what_was_found_without_a_request_settles_and_nothing_goes_on_in_the_list() {
        let there = record();
        let probe = Step::Probe { quiesce: Duration::ZERO, unattended: true };
        let policy = Policy { on_unknown: alloc::vec![probe, Step::Effect, Step::Fail], ..Policy::default() };
        let settled = |place, found| match unattended_probed(&there, &policy, place, found, NOW) {
            Some(Unattended::Settle(write)) => (write.facts.state, write.facts.reason),
            other => panic!("{other:?}"),
        };
        for (place, word) in [(Place(0), "probe"), (Place(1), "effect")] {
            let executed = settled(place, Found::Executed(Outcome::default()));
            assert_eq!(executed, (State::Completed, alloc::format!("{word}: executed")));
            let not = settled(place, Found::NotExecuted);
            assert_eq!(not, (State::NotExecuted, alloc::format!("{word}: not executed")));
        }
        let next = unattended_probed(&there, &policy, Place(0), Found::Nothing, NOW);
        assert_eq!(next, Some(Unattended::Probe(Place(1))), "each is asked once");
        assert_eq!(settled(Place(1), Found::Nothing).0, State::Failed);
        let held = Policy { on_unknown: alloc::vec![probe], ..Policy::default() };
        assert_eq!(unattended_probed(&there, &held, Place(0), Found::Nothing, NOW), None);
    }
}
