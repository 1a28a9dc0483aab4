//! The writes of a holder and of an operator, each as a pure function of the facts that are there.
//!
//! GUARANTEES 1.3 as code: what complete, fail, release, checkpoint, takeover, resolve and forget
//! make of a record. None of them touches a store; each returns the one conditional write that a
//! store is to apply, or says why there is none.

use alloc::{boxed::Box, string::String};
use core::time::Duration;

use crate::{
    cas::{Expect, FenceRule, Keep, Lease, Replacement},
    mutant::{self, Mutant},
    outcome::{Checkpoint, Outcome},
    record::{ClaimId, Facts, Fence, Micros, NO_FINGERPRINT, Phase, Record, Seen, SessionId, State},
};

/// The write that ends a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The record becomes another.
    Replace(Box<Replacement>),
    /// The record goes: the key is new again, its fence is not.
    Remove(Expect),
}

/// Why an operator's or holder's write is not even tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Somebody holds the key, or held it and nobody knows what he did.
    #[error("the key is in flight or its outcome unknown: only force erases it")]
    Busy,
    /// There is nothing to settle.
    #[error("the outcome is not unknown: the record is {}", .0.as_str())]
    NotUnknown(Seen),
    /// Freeing a key that somebody holds would let a late answer bring it back.
    #[error("a key in flight can be erased, not freed for reuse")]
    ReuseInFlight,
    /// A checkpoint that does not follow the last one.
    #[error("checkpoint {got} does not follow {last}")]
    CheckpointOrder {
        /// Sequence of the last checkpoint; 0 for none.
        last: u32,
        /// The one that came.
        got: u32,
    },
    /// The same sequence with other content.
    #[error("checkpoint {0} was stored with other content")]
    CheckpointConflict(u32),
    /// More than [`Checkpoint::DATA_BYTES_MAX`].
    #[error("a checkpoint carries at most 65536 bytes")]
    CheckpointSize,
    /// The same checkpoint is there already: nothing to write.
    #[error("the checkpoint is stored already")]
    CheckpointThere,
}

/// What a lost write of a holder means, read off the record that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The same completion was applied before: its answer was lost.
    Already,
    /// This holder settled it before, otherwise: with another outcome, or in another state.
    Conflict,
    /// Somebody else has the key: this holder did execute, and so perhaps did another.
    Fenced,
    /// The key was erased.
    Erased,
    /// There is no record.
    Absent,
}

/// The holder's outcome becomes the key's.
#[must_use]
pub fn complete(facts: &Facts, fence: Fence, outcome: Outcome, retention: Duration, now: Micros) -> Write {
    settle(facts, fence, State::Completed, Some(outcome), retention, now)
}

/// The key has failed for good; what is there of an answer is replayed.
#[must_use]
pub fn fail(facts: &Facts, fence: Fence, outcome: Option<Outcome>, retention: Duration, now: Micros) -> Write {
    settle(facts, fence, State::Failed, outcome, retention, now)
}

fn settle(
    facts: &Facts,
    fence: Fence,
    state: State,
    outcome: Option<Outcome>,
    retention: Duration,
    now: Micros,
) -> Write {
    let facts = Facts { state, ambiguous: false, outcome, checkpoint: None, settled_at: now, ..facts.clone() };
    holder(facts, fence, Lease::Over, Keep::For(retention))
}

/// The holder did nothing. Says nothing of an earlier attempt that may have done something.
#[must_use]
pub fn release(facts: &Facts, fence: Fence) -> Write {
    let in_doubt = facts.ambiguous && !mutant::is(Mutant::ReleaseAfterUnknown);
    if in_doubt { unknown(facts, fence) } else { Write::Remove(Expect::Holder(fence)) }
}

/// The holder did nothing, and the next attempt may come no earlier than `not_before`; the count
/// of attempts survives.
#[must_use]
pub fn fail_retryable(facts: &Facts, fence: Fence, not_before: Micros, retention: Duration, now: Micros) -> Write {
    if facts.ambiguous {
        return unknown(facts, fence);
    }
    let facts = Facts { state: State::NotExecuted, not_before, settled_at: now, ..facts.clone() };
    holder(facts, fence, Lease::Over, Keep::For(retention))
}

/// The holder cannot say what happened: unknown from now on.
#[must_use]
pub fn unknown(facts: &Facts, fence: Fence) -> Write {
    holder(Facts { ambiguous: true, ..facts.clone() }, fence, Lease::Over, Keep::Open)
}

/// The second write of two-phase dispatch: from here the upstream may have been reached.
#[must_use]
pub fn dispatched(facts: &Facts, fence: Fence) -> Write {
    holder(Facts { phase: Phase::Dispatched, ..facts.clone() }, fence, Lease::Keep, Keep::Open)
}

/// A recovery point.
///
/// # Errors
/// Where it is too large, there already, or out of order.
pub fn checkpoint(facts: &Facts, fence: Fence, next: Checkpoint) -> Result<Write, Refused> {
    if next.data.len() > Checkpoint::DATA_BYTES_MAX {
        return Err(Refused::CheckpointSize);
    }
    let last = facts.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq);
    if next.seq == last {
        let same = facts.checkpoint.as_ref() == Some(&next);
        return Err(if same { Refused::CheckpointThere } else { Refused::CheckpointConflict(last) });
    }
    if next.seq != last.saturating_add(1) {
        return Err(Refused::CheckpointOrder { last, got: next.seq });
    }
    Ok(holder(Facts { checkpoint: Some(next), ..facts.clone() }, fence, Lease::Keep, Keep::Open))
}

/// Who takes a key over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taker {
    /// Its claim.
    pub claim_id: ClaimId,
    /// Its process.
    pub session: SessionId,
    /// How far it is at once.
    pub phase: Phase,
}

/// The next attempt takes the key from a holder whose lease is over, or from a record that says
/// that nothing was done. Loses to any write since the read.
#[must_use]
pub fn take_over(seen: &Record, taker: Taker, lease: Duration) -> Replacement {
    let old = &seen.facts;
    let may_have_run = old.state == State::InFlight && old.phase == Phase::Dispatched;
    let facts = Facts {
        state: State::InFlight,
        phase: taker.phase,
        ambiguous: old.ambiguous || may_have_run,
        attempt: old.attempt.saturating_add(1),
        claim_id: taker.claim_id,
        session: taker.session,
        // The first claim's fence is its time, where nobody wrote it down.
        claimed_at: if old.claimed_at == Micros::ZERO { Micros(seen.stored.fence.0) } else { old.claimed_at },
        settled_at: Micros::ZERO,
        not_before: Micros::ZERO,
        reason: String::new(),
        ..old.clone()
    };
    Replacement { expect: as_seen(seen), facts, fence: FenceRule::Next, lease: Lease::For(lease), keep: Keep::Open }
}

/// The next attempt takes the key from a holder of which it was found that it did nothing, nor any before it. Loses to
/// any write since the read.
#[must_use]
pub fn take_over_unexecuted(seen: &Record, taker: Taker, lease: Duration) -> Replacement {
    let mut write = take_over(seen, taker, lease);
    write.facts.ambiguous = false;
    write
}

/// A claim whose own answer came only after its lease: the same claim under the same fence, with a
/// lease again. Loses to any write since the read.
#[must_use]
pub fn resume(seen: &Record, lease: Duration) -> Replacement {
    Replacement {
        expect: as_seen(seen),
        facts: seen.facts.clone(),
        fence: FenceRule::Keep,
        lease: Lease::For(lease),
        keep: Keep::Open,
    }
}

/// An unknown outcome, settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It took effect; this is its answer.
    Executed(Outcome),
    /// It did not: the next request runs.
    NotExecuted,
    /// It is given up.
    Failed(Option<Outcome>),
}

/// Settles an unknown outcome; its holder, should it still live, loses its right.
///
/// # Errors
/// Where the outcome is not unknown.
pub fn resolve(
    seen: &Record,
    resolution: Resolution,
    reason: &str,
    retention: Duration,
    now: Micros,
) -> Result<Replacement, Refused> {
    match seen.seen_at(now) {
        Seen::Unknown | Seen::Abandoned => {}
        other => return Err(Refused::NotUnknown(other)),
    }
    let (state, outcome) = match resolution {
        Resolution::Executed(outcome) => (State::Completed, Some(outcome)),
        Resolution::NotExecuted => (State::NotExecuted, None),
        Resolution::Failed(outcome) => (State::Failed, outcome),
    };
    let mut facts = Facts {
        state,
        ambiguous: false,
        outcome,
        settled_at: now,
        not_before: Micros::ZERO,
        reason: reason.into(),
        ..seen.facts.clone()
    };
    // Only a further attempt has a use for a recovery point.
    if state != State::NotExecuted {
        facts.checkpoint = None;
    }
    Ok(Replacement {
        expect: as_seen(seen),
        facts,
        fence: FenceRule::Next,
        lease: Lease::Over,
        keep: Keep::For(retention),
    })
}

/// How a key is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// What was recorded goes, the key stays unusable until its retention ends.
    Erase,
    /// The key is new again.
    Reuse,
}

/// Forgets a settled key; one in flight or unknown only with `force`, and then only by erasing.
///
/// # Errors
/// Where somebody holds the key, or freeing it would let a late answer bring it back.
pub fn forget(
    seen: &Record,
    how: Forget,
    force: bool,
    reason: &str,
    retention: Duration,
    now: Micros,
) -> Result<Write, Refused> {
    if seen.facts.state == State::InFlight {
        if !force {
            return Err(Refused::Busy);
        }
        if how == Forget::Reuse {
            return Err(Refused::ReuseInFlight);
        }
    }
    if how == Forget::Reuse {
        return Ok(Write::Remove(as_seen(seen)));
    }
    let facts = erased(seen.facts.clone(), reason, now);
    Ok(Write::Replace(Box::new(Replacement {
        expect: as_seen(seen),
        facts,
        fence: FenceRule::Next,
        lease: Lease::Over,
        keep: Keep::For(retention),
    })))
}

/// What an operator inserts to erase a key that has no record, before [`forget`] with force makes
/// it a tombstone. Should the second write never come, the next claim takes it over as attempt 1.
#[must_use]
pub fn place(claim_id: ClaimId, session: SessionId) -> Facts {
    Facts {
        state: State::InFlight,
        phase: Phase::Claimed,
        ambiguous: false,
        attempt: 0,
        claim_id,
        session,
        principal_proof: None,
        fingerprint_policy: NO_FINGERPRINT,
        fingerprint: [0; 32],
        fields: alloc::vec::Vec::new(),
        route: String::new(),
        tenant: String::new(),
        env: String::new(),
        claimed_at: Micros::ZERO,
        settled_at: Micros::ZERO,
        not_before: Micros::ZERO,
        outcome: None,
        checkpoint: None,
        reason: String::new(),
    }
}

/// `facts` with everything gone that says what the request or its answer was.
#[must_use]
pub fn erased(facts: Facts, reason: &str, now: Micros) -> Facts {
    Facts {
        state: State::Erased,
        ambiguous: false,
        fingerprint: [0; 32],
        fields: alloc::vec::Vec::new(),
        principal_proof: None,
        outcome: None,
        checkpoint: None,
        settled_at: now,
        reason: reason.into(),
        ..facts
    }
}

/// What it means that a holder's write was lost. `wanted` is what it wanted to write; `None` for a
/// removal.
#[must_use]
pub fn lost(there: Option<&Record>, fence: Fence, claim_id: ClaimId, wanted: Option<&Facts>) -> Lost {
    let Some(record) = there else { return Lost::Absent };
    if record.facts.state == State::Erased {
        return Lost::Erased;
    }
    if record.stored.fence == fence && record.facts.claim_id == claim_id {
        let same = |wanted: &Facts| {
            let same = match (&record.facts.outcome, &wanted.outcome) {
                (Some(there), Some(wanted)) => is_same_answer(there, wanted),
                (there, wanted) => there == wanted,
            };
            record.facts.state == wanted.state && same
        };
        return if wanted.is_some_and(same) { Lost::Already } else { Lost::Conflict };
    }
    Lost::Fenced
}

/// Whether it is the answer that is wanted, whenever either's body ends; the one that is there may have ended since.
fn is_same_answer(there: &Outcome, wanted: &Outcome) -> bool {
    Outcome { body_until: wanted.body_until, ..there.clone() } == *wanted
        || (wanted.body_until != Micros::ZERO && *there == wanted.clone().bare())
}

fn holder(facts: Facts, fence: Fence, lease: Lease, keep: Keep) -> Write {
    Write::Replace(Box::new(Replacement { expect: Expect::Holder(fence), facts, fence: FenceRule::Keep, lease, keep }))
}

fn as_seen(record: &Record) -> Expect {
    Expect::Seen(record.stored.fence, record.stored.revision)
}

#[cfg(test)]
pub(crate) mod tests {
    use alloc::vec;

    use super::*;
    use crate::record::{Revision, Stored};

    const NOW: Micros = Micros(1_000_000);
    const KEEP: Duration = Duration::from_secs(60);

    /// In flight, dispatched, its lease over since just now.
    pub(crate) fn record() -> Record {
        Record {
            stored: Stored {
                fence: Fence(10),
                revision: Revision(3),
                lease_until: NOW,
                keep_until: Micros::ZERO,
                written_at: Micros(10),
            },
            facts: Facts {
                state: State::InFlight,
                phase: Phase::Dispatched,
                ambiguous: false,
                attempt: 1,
                claim_id: ClaimId([2; 16]),
                session: SessionId([8; 16]),
                principal_proof: Some([4; 16]),
                fingerprint_policy: 1,
                fingerprint: [9; 32],
                fields: vec![[5; 8], [6; 8]],
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

    fn step(seq: u32, data: &'static [u8]) -> Checkpoint {
        Checkpoint { seq, name: "charged".into(), data: data.into() }
    }

    fn outcome() -> Outcome {
        Outcome { status: 201, ..Outcome::default() }
    }

    fn replaced(write: Write) -> Replacement {
        match write {
            Write::Replace(write) => *write,
            Write::Remove(_) => panic!("it is a removal"),
        }
    }

    #[test]
    fn a_takeover_remembers_that_the_last_holder_may_have_run() {
        let taker = Taker { claim_id: ClaimId([1; 16]), session: SessionId([1; 16]), phase: Phase::Claimed };
        for (dispatched, before, after) in [(true, false, true), (false, true, true), (false, false, false)] {
            let mut old = record();
            old.facts.phase = if dispatched { Phase::Dispatched } else { Phase::Claimed };
            old.facts.ambiguous = before;
            let write = take_over(&old, taker, KEEP);
            assert_eq!((write.facts.ambiguous, write.facts.attempt, write.fence), (after, 2, FenceRule::Next));
            assert_eq!(write.expect, Expect::Seen(Fence(10), Revision(3)), "a renewal since the read beats it");
        }
    }

    #[test]
    fn a_release_says_nothing_of_an_earlier_attempt() {
        let mut facts = record().facts;
        assert_eq!(release(&facts, Fence(10)), Write::Remove(Expect::Holder(Fence(10))));
        facts.ambiguous = true;
        for write in [release(&facts, Fence(10)), fail_retryable(&facts, Fence(10), NOW, KEEP, NOW)] {
            let write = replaced(write);
            assert_eq!((write.facts.state, write.lease, write.keep), (State::InFlight, Lease::Over, Keep::Open));
        }
    }

    #[test]
    fn checkpoints_follow_each_other() {
        let mut facts = record().facts;
        assert_eq!(checkpoint(&facts, Fence(10), step(2, b"")), Err(Refused::CheckpointOrder { last: 0, got: 2 }));
        facts = replaced(checkpoint(&facts, Fence(10), step(1, b"a")).unwrap()).facts;
        assert_eq!(checkpoint(&facts, Fence(10), step(1, b"a")), Err(Refused::CheckpointThere));
        assert_eq!(checkpoint(&facts, Fence(10), step(1, b"b")), Err(Refused::CheckpointConflict(1)));
        assert_eq!(checkpoint(&facts, Fence(10), step(0, b"a")), Err(Refused::CheckpointOrder { last: 1, got: 0 }));
        let data = vec![0; Checkpoint::DATA_BYTES_MAX + 1].into();
        let large = Checkpoint { seq: 2, name: String::new(), data };
        assert_eq!(checkpoint(&facts, Fence(10), large), Err(Refused::CheckpointSize));
    }

    #[test]
    fn only_what_is_not_known_is_resolved_and_always_under_a_new_fence() {
        let there = record();
        for (resolution, state) in [
            (Resolution::Executed(outcome()), State::Completed),
            (Resolution::NotExecuted, State::NotExecuted),
            (Resolution::Failed(None), State::Failed),
        ] {
            let write = resolve(&there, resolution.clone(), "looked", KEEP, NOW).unwrap();
            assert_eq!((write.facts.state, write.fence, write.facts.ambiguous), (state, FenceRule::Next, false));
            let mut live = there.clone();
            live.stored.lease_until = NOW.plus(KEEP);
            let refused = Err(Refused::NotUnknown(Seen::InFlight));
            assert_eq!(resolve(&live, resolution, "looked", KEEP, NOW), refused);
        }
    }

    #[test]
    fn a_recovery_point_stays_only_where_another_attempt_can_use_it() {
        let mut there = record();
        there.facts.checkpoint = Some(step(1, b"a"));
        let kept = |resolution| resolve(&there, resolution, "", KEEP, NOW).unwrap().facts.checkpoint;
        assert!(kept(Resolution::NotExecuted).is_some());
        assert!(kept(Resolution::Executed(outcome())).is_none());
        assert!(kept(Resolution::Failed(None)).is_none());
        assert!(replaced(complete(&there.facts, Fence(10), outcome(), KEEP, NOW)).facts.checkpoint.is_none());
        assert!(replaced(unknown(&there.facts, Fence(10))).facts.checkpoint.is_some());
    }

    #[test]
    fn a_key_in_flight_is_erased_only_with_force_and_never_freed() {
        let there = record();
        for how in [Forget::Erase, Forget::Reuse] {
            assert_eq!(forget(&there, how, false, "", KEEP, NOW), Err(Refused::Busy));
        }
        assert_eq!(forget(&there, Forget::Reuse, true, "", KEEP, NOW), Err(Refused::ReuseInFlight));
        let write = replaced(forget(&there, Forget::Erase, true, "asked to", KEEP, NOW).unwrap());
        assert_eq!((write.fence, write.facts.state), (FenceRule::Next, State::Erased), "its holder is fenced");
        let Facts { principal_proof, fingerprint, fields, outcome, checkpoint, .. } = write.facts;
        assert_eq!((principal_proof, fingerprint, fields), (None, [0; 32], vec![]));
        assert_eq!((outcome, checkpoint), (None, None));
    }

    #[test]
    fn what_a_lost_write_means() {
        let (fence, claim_id) = (Fence(10), ClaimId([2; 16]));
        let mut there = record();
        (there.facts.state, there.facts.outcome) = (State::Completed, Some(outcome()));
        let mut wanted = there.facts.clone();
        let lost = |there: &Record, wanted: &Facts| lost(Some(there), fence, claim_id, Some(wanted));
        assert_eq!(lost(&there, &wanted), Lost::Already);
        let ends = Outcome { body_until: Micros(7), ..outcome() };
        there.facts.outcome = Some(ends.clone());
        assert_eq!(lost(&there, &wanted), Lost::Already, "when its body ends is none of the answer");
        there.facts.outcome = Some(ends.clone().bare());
        assert_eq!(lost(&there, &wanted), Lost::Conflict, "a body that was never kept");
        wanted.outcome = Some(ends);
        assert_eq!(lost(&there, &wanted), Lost::Already, "its body has ended");
        wanted.state = State::Failed;
        assert_eq!(lost(&there, &wanted), Lost::Conflict, "the same answer in another state is another end");
        wanted.state = State::Completed;
        wanted.outcome = Some(Outcome::default());
        assert_eq!(lost(&there, &wanted), Lost::Conflict);
        there.stored.fence = Fence(11);
        assert_eq!(lost(&there, &wanted), Lost::Fenced);
        there.facts.state = State::Erased;
        assert_eq!(lost(&there, &wanted), Lost::Erased);
        assert_eq!(super::lost(None, fence, claim_id, Some(&wanted)), Lost::Absent);
    }
}
