//! What is known of a key, and which of two facts says more.

use std::sync::Arc;

use onceward_core::{
    key::RecordId,
    mutant::{self, Mutant},
    record::{Facts, Fence, Micros, Phase, Record, Revision, State, Stored},
};

/// A record of a key, as the journal is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Whose it is.
    pub id: RecordId,
    /// As it was written. Shared, since it is in the spool, on its way and in the window at once.
    pub record: Arc<Record>,
}

/// Orders the facts of one key: the larger one is what both say together, whenever and however often each arrives
/// (GUARANTEES 2.9, A4). Revisions are no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// Of the holder.
    pub fence: Fence,
    /// In flight, not executed, settled, erased.
    pub rank: u8,
    /// How many recovery points it has.
    pub step: u32,
    /// When it ends, where it does: each replay of a route whose retention slides writes a later time.
    pub keep_until: Micros,
}

impl Order {
    /// Of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let rank = match record.facts.state {
            State::InFlight => 1,
            State::NotExecuted => 2,
            State::Completed | State::Failed => 3,
            State::Erased => 4,
        };
        let step = record.facts.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq);
        Self { fence: record.stored.fence, rank, step, keep_until: record.stored.keep_until }
    }
}

/// Whether a record says that its claim was released: the key is free, as if there were none. It stays until the journal
/// knows (A9). What was not executed and is *kept*, with a time before which nobody may try again or for its count of
/// attempts, has had an attempt.
#[must_use]
pub fn is_released(facts: &Facts) -> bool {
    facts.state == State::NotExecuted && facts.attempt == 0
}

/// What a release makes of a claim's facts.
#[must_use]
pub fn released(facts: Facts, now: Micros) -> Facts {
    Facts { state: State::NotExecuted, attempt: 0, settled_at: now, outcome: None, ..facts }
}

/// Whether what is there has ended, since the journal has no row of it: all that was said up to `horizon` is in the journal,
/// until it is swept (A10).
#[must_use]
pub fn is_swept(held: &Record, horizon: Fence) -> bool {
    let is_open = matches!(held.facts.state, State::InFlight | State::NotExecuted);
    is_open && held.stored.fence <= horizon && !mutant::is(Mutant::SweptStays)
}

/// What becomes of the record `held` in Redis when the journal has `row`: `None` where it stays as it is. One that has ended
/// is of use only against what says less and would have no end.
///
/// What is open there and was granted in an earlier view, up to `before`, gives way to a row of a smaller fence, or of its fence
/// and another claim: a claim that was used is in the journal before the next view serves, so this one never was (A13). Its
/// reply was lost, and whoever asked for it has given it up.
///
/// A claim counts as sent, whatever the row says (2.7): that it was may have been written to a Redis that is lost. The
/// same holds for a claim that is there and says no more than the row (A5): a replica that was promoted may have
/// missed the mark.
#[must_use]
pub fn merged(held: Option<&Record>, row: &Record, now: Micros, before: Fence) -> Option<Record> {
    if held.is_none() && row.is_expired(now) {
        return None;
    }
    let of_row = Order::of(row);
    let revision = held.map_or(0, |held| held.stored.revision.0).saturating_add(1);
    match held {
        Some(held) if is_dead(held, row, before) => Some(given(row, Revision(revision.max(row.stored.revision.0)))),
        Some(held) if Order::of(held) > of_row => None,
        Some(held) if Order::of(held) == of_row => {
            let is_behind = held.facts.state == State::InFlight
                && held.facts.phase == Phase::Claimed
                && !mutant::is(Mutant::StalePhase);
            is_behind.then(|| sent(held.clone(), Revision(revision)))
        }
        _ => Some(given(row, Revision(revision.max(row.stored.revision.0)))),
    }
}

/// A row as Redis has it from here on.
fn given(row: &Record, revision: Revision) -> Record {
    match row.facts.state {
        State::InFlight if !mutant::is(Mutant::HydrateKeepsPhase) => sent(row.clone(), revision),
        _ => Record { stored: Stored { revision, ..row.stored }, facts: row.facts.clone() },
    }
}

/// Whether a claim of an earlier view was never used, since the journal has an earlier one, or another one of its fence: only
/// a lost Redis knew that this had been given, and where clocks differ it was given again.
fn is_dead(held: &Record, row: &Record, before: Fence) -> bool {
    let is_behind = row.stored.fence <= held.stored.fence && !is_same_claim(held, row);
    is_of_before(held, before) && is_behind && !mutant::is(Mutant::DeadClaimWins)
}

/// Whether both are of one claim.
#[must_use]
pub fn is_same_claim(one: &Record, other: &Record) -> bool {
    (one.stored.fence, one.facts.claim_id) == (other.stored.fence, other.facts.claim_id)
}

/// Whether it is open, and was granted in an earlier view.
#[must_use]
pub fn is_of_before(held: &Record, before: Fence) -> bool {
    matches!(held.facts.state, State::InFlight | State::NotExecuted) && held.stored.fence <= before
}

fn sent(mut record: Record, revision: Revision) -> Record {
    record.stored.revision = revision;
    record.facts.phase = Phase::Dispatched;
    record
}

#[cfg(test)]
mod tests {
    use onceward_core::{outcome::Outcome, record::ClaimId, transition};
    use proptest::prelude::*;

    use super::*;

    const NOW: Micros = Micros(1_000);
    /// No view was before.
    const NONE: Fence = Fence(0);

    fn record(fence: u64, state: State, phase: Phase) -> Record {
        let facts = transition::place(ClaimId([1; 16]), onceward_core::record::SessionId([2; 16]));
        let outcome = (state == State::Completed).then(Outcome::default);
        let stored = Stored { fence: Fence(fence), revision: Revision(1), ..Stored::default() };
        Record { stored, facts: Facts { state, phase, outcome, ..facts } }
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let states = vec![State::InFlight, State::NotExecuted, State::Completed, State::Erased];
        let phases = vec![Phase::Claimed, Phase::Dispatched];
        (1..4_u64, prop::sample::select(states), prop::sample::select(phases))
            .prop_map(|(fence, state, phase)| record(fence, state, phase))
    }

    proptest! {
        #[test]
        fn facts_that_come_twice_late_and_out_of_order_come_to_the_same(
            facts in prop::collection::vec(any_record(), 1..8),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..16),
        ) {
            let all = |facts: &mut dyn Iterator<Item = &Record>| {
                facts.fold(None::<Record>, |held, row| merged(held.as_ref(), row, NOW, NONE).or(held))
            };
            let once = all(&mut facts.iter()).unwrap();
            let again = order.iter().map(|at| at.get(&facts)).chain(facts.iter().rev());
            let shuffled = all(&mut again.collect::<Vec<_>>().into_iter()).unwrap();
            prop_assert_eq!(Order::of(&once), Order::of(&shuffled));
            prop_assert!(shuffled.facts.state != State::InFlight || shuffled.facts.phase == Phase::Dispatched);
        }
    }

    #[test]
    fn a_claim_of_the_journal_counts_as_sent_and_so_does_one_that_is_there_as_the_same() {
        let row = record(5, State::InFlight, Phase::Claimed);
        assert_eq!(merged(None, &row, NOW, NONE).unwrap().facts.phase, Phase::Dispatched);
        let held = record(5, State::InFlight, Phase::Claimed);
        let raised = merged(Some(&held), &row, NOW, NONE).unwrap();
        assert_eq!((raised.facts.phase, raised.stored.revision), (Phase::Dispatched, Revision(2)));
        assert_eq!(merged(Some(&raised), &row, NOW, NONE), None);
    }

    #[test]
    fn a_claim_of_an_earlier_view_that_the_journal_never_had_gives_way_to_a_smaller_row() {
        let (row, before) = (record(5, State::InFlight, Phase::Dispatched), Fence(7));
        for state in [State::InFlight, State::NotExecuted] {
            let held = Record {
                stored: Stored { revision: Revision(4), ..record(6, state, Phase::Claimed).stored },
                ..record(6, state, Phase::Claimed)
            };
            let given = merged(Some(&held), &row, NOW, before).unwrap();
            assert_eq!((given.stored.fence, given.stored.revision), (Fence(5), Revision(5)));
            assert_eq!(merged(Some(&held), &row, NOW, Fence(5)), None, "one of this view may be in use");
        }
        let (mut other, mine) =
            (record(5, State::InFlight, Phase::Claimed), record(5, State::InFlight, Phase::Dispatched));
        other.facts.claim_id = ClaimId([9; 16]);
        let given = merged(Some(&other), &mine, NOW, before).unwrap();
        assert_eq!(
            given.facts.claim_id, mine.facts.claim_id,
            "the fence was given twice, and this one is in the journal"
        );
        let settled = record(6, State::Completed, Phase::Dispatched);
        assert_eq!(merged(Some(&settled), &row, NOW, before), None);
    }

    #[test]
    fn of_one_answer_the_later_end_counts() {
        let mut held = record(5, State::Completed, Phase::Dispatched);
        held.stored.keep_until = Micros(NOW.0 + 10);
        let mut later = held.clone();
        later.stored.keep_until = Micros(NOW.0 + 20);
        assert_eq!(merged(Some(&held), &later, NOW, NONE).unwrap().stored.keep_until, later.stored.keep_until);
        assert_eq!(merged(Some(&later), &held, NOW, NONE), None);
    }

    #[test]
    fn what_says_less_changes_nothing_and_what_has_ended_is_none() {
        let held = record(5, State::Completed, Phase::Dispatched);
        for less in [record(5, State::InFlight, Phase::Dispatched), record(4, State::Erased, Phase::Dispatched)] {
            assert_eq!(merged(Some(&held), &less, NOW, NONE), None);
        }
        let erased = merged(Some(&held), &record(5, State::Erased, Phase::Dispatched), NOW, NONE).unwrap();
        assert_eq!((erased.facts.state, erased.stored.revision), (State::Erased, Revision(2)));
        let mut ended = record(9, State::Completed, Phase::Dispatched);
        ended.stored.keep_until = NOW;
        assert_eq!(merged(None, &ended, NOW, NONE), None);
        assert!(merged(None, &ended, Micros(NOW.0 - 1), NONE).is_some());
        let claim = record(9, State::InFlight, Phase::Dispatched);
        assert!(
            merged(Some(&claim), &ended, NOW, NONE).unwrap().is_expired(NOW),
            "a claim that was settled is over with its end"
        );
    }
}
