//! What a request may do, given the record that is there. The one place that says replay, wait,
//! refuse or take over; one pure function.
//!
//! The order is fixed: whose key it is (principal), whether it is the same request (fingerprint),
//! then the state. An erased key is gone whatever was asked, since its fingerprint is gone too.

use crate::{
    cas::Replacement,
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
    /// Say no.
    Refuse(Refusal),
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
        Seen::Unknown => on_unknown(there, ask, policy, now),
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

/// Works the route's list: each step settles or passes on; at its end the outcome is held.
fn on_unknown(there: &Record, ask: &Ask, policy: &Policy, now: Micros) -> Decision {
    if let Some(write) = overdue(there, policy, now) {
        return Decision::Settle(write);
    }
    let age = now.since(there.unknown_since());
    for step in &policy.on_unknown {
        match *step {
            Step::Hold => break,
            Step::HoldFor(span) if age < span => break,
            Step::HoldFor(_) => {}
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

/// What a background worker, with no request at hand, settles: an outcome unknown for longer than
/// `unknown_max`, or one whose list comes to `fail` without needing a request.
#[must_use]
pub fn unattended(there: &Record, policy: &Policy, now: Micros) -> Option<Replacement> {
    if there.seen_at(now) != Seen::Unknown {
        return None;
    }
    let age = now.since(there.unknown_since());
    let next = policy.on_unknown.iter().find(|step| !matches!(step, Step::HoldFor(span) if age >= *span));
    overdue(there, policy, now)
        .or_else(|| if next == Some(&Step::Fail) { given_up(there, policy, now, "on_unknown: fail") } else { None })
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
    let phase = if policy.two_phase_dispatch { Phase::Claimed } else { Phase::Dispatched };
    let taker = Taker { claim_id: ask.claim_id, session: ask.session, phase };
    let mut write = transition::take_over(there, taker, policy.lease);
    write.facts.principal_proof = ask.principal_proof;
    // What runs from here on is this request, also where the old one could not be compared.
    write.facts.fingerprint_policy = ask.fingerprint_policy;
    write.facts.fingerprint = ask.fingerprint;
    Decision::TakeOver(write)
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
        let late = NOW.plus(Duration::from_secs(3600));
        let hour = Step::HoldFor(Duration::from_secs(3600));
        assert!(unattended(&there, &with(&[Step::Fail]), NOW).is_some());
        assert!(unattended(&there, &with(&[hour, Step::Fail]), NOW).is_none());
        assert!(unattended(&there, &with(&[hour, Step::Fail]), late).is_some());
        assert!(unattended(&there, &with(&[Step::Hold, Step::Fail]), late).is_none());
        assert!(unattended(&there, &with(&[Step::Retry, Step::Fail]), late).is_none(), "a retry needs a request");
        let after = NOW.plus(Policy::default().unknown_max);
        assert!(unattended(&there, &Policy::default(), after).is_some(), "never unknown for ever");
    }
}
