//! What a step makes of the record that is there: the rules that the scripts of Redis keep, as a pure function.

use onceward_core::{
    cas::{self, Expect},
    mutant::{self, Mutant},
    record::{Fence, Micros, Phase, Record, Revision, State, Stored},
};

use super::{Order, What, is_released, released};

/// The record that a step writes, or `None` where what is there is not meant. `held` is what is there, over or not; `mark`
/// is not below any fence whose record is gone.
#[must_use]
pub fn stepped(held: Option<&Record>, what: What<'_>, now: Micros, mark: Fence) -> Option<Record> {
    let there = held.filter(|record| !record.is_expired(now));
    let meant = |expect: Expect| there.filter(|record| cas::is_meant(expect, &record.stored, record.facts.state));
    Some(match what {
        What::Insert { facts, lease } => {
            if there.is_some_and(|record| !is_released(&record.facts)) {
                return None;
            }
            let stored = cas::inserted(lease, now, mark, held.map(|record| &record.stored));
            Record { stored, facts: facts.clone() }
        }
        What::Replace(write) => {
            let stored = cas::replaced(write, &meant(write.expect)?.stored, now, mark);
            Record { stored, facts: write.facts.clone() }
        }
        What::Extend { holder, lease } => {
            let record = meant(Expect::Holder(holder))?;
            Record { stored: cas::extended(&record.stored, lease, now), facts: record.facts.clone() }
        }
        What::Release(expect) => {
            let record = meant(expect)?;
            let revision = Revision(record.stored.revision.0.saturating_add(1));
            let stored = Stored { revision, lease_until: Micros::ZERO, written_at: now, ..record.stored };
            Record { stored, facts: released(record.facts.clone(), now) }
        }
        What::Get => return None,
    })
}

/// The same in the journal's own row, given [`as_record`]: nothing may come to say less than it did, so a tombstone, or an
/// answer whose end another clock gave, keeps the later end.
#[must_use]
pub fn stepped_in_row(row: Option<&Record>, what: What<'_>, now: Micros, mark: Fence) -> Option<Record> {
    let mut record = stepped(row, what, now, mark)?;
    if let Some(row) = row {
        let (was, is) = (Order::of(row), Order::of(&record));
        if (was.fence, was.rank, was.step) == (is.fence, is.rank, is.step) {
            record.stored.keep_until = record.stored.keep_until.max(row.stored.keep_until);
        }
    }
    Some(record)
}

/// A row as the record that is there for a step: a claim counts as sent, as where Redis is given the row, since that it was
/// may have been written to Redis alone (2.7).
#[must_use]
pub fn as_record(mut row: Record) -> Record {
    if row.facts.state == State::InFlight && !mutant::is(Mutant::HydrateKeepsPhase) {
        row.facts.phase = Phase::Dispatched;
    }
    row
}
