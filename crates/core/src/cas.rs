//! The compare-and-set step, as a pure function of the record that is there.
//!
//! Stores do not decide what a request may do; they compare and set. The stores of one process
//! (memory, embedded) share this step; Redis and Postgres do the same in a script and in SQL, held
//! to it by the conformance list.

use core::time::Duration;

use crate::{
    mutant::{self, Mutant},
    record::{Facts, Fence, Micros, Revision, State, Stored},
};

/// Which record a write is meant for. Whoever acts on what he read loses to any write since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The holder's own writes: the record is in flight under this fence, whatever its revision.
    Holder(Fence),
    /// Everybody else's: the record is exactly the one that was read.
    Seen(Fence, Revision),
}

/// Which fence the written record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceRule {
    /// The one that is there.
    Keep,
    /// A new, larger one: the present holder loses its right.
    Next,
}

/// What becomes of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// As it is.
    Keep,
    /// Over: an outcome that is settled, or unknown from now on.
    Over,
    /// Runs for so long from the store's now.
    For(Duration),
}

/// When the record ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Not by itself: in flight or unknown.
    Open,
    /// So long after the store's now.
    For(Duration),
}

/// One conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Of which record.
    pub expect: Expect,
    /// What it becomes.
    pub facts: Facts,
    /// Its fence.
    pub fence: FenceRule,
    /// Its lease.
    pub lease: Lease,
    /// Its end.
    pub keep: Keep,
}

/// The fence of a new grant: the store's clock, raised above the last fence of the key and above
/// every fence whose record is gone (`mark`), so that it rises for a key whatever was lost between.
#[must_use]
pub fn next_fence(now: Micros, mark: Fence, last: Fence) -> Fence {
    Fence(now.0.max(mark.0.saturating_add(1)).max(last.0.saturating_add(1)))
}

/// Whether `expect` means the record that is there.
#[must_use]
pub fn is_meant(expect: Expect, there: &Stored, state: State) -> bool {
    if mutant::is(Mutant::FenceNotCompared) {
        return true;
    }
    match expect {
        Expect::Holder(fence) => state == State::InFlight && there.fence == fence,
        Expect::Seen(fence, revision) => there.fence == fence && there.revision == revision,
    }
}

/// The store's block of the record that an insert writes. `ended` is the record of the same key whose retention is
/// over, where it is still at hand.
#[must_use]
pub fn inserted(lease: Duration, now: Micros, mark: Fence, ended: Option<&Stored>) -> Stored {
    let last = ended.map_or(Fence(0), |stored| stored.fence);
    Stored {
        fence: next_fence(now, mark, last),
        revision: Revision(1),
        lease_until: now.plus(lease),
        keep_until: Micros::ZERO,
        written_at: now,
    }
}

/// The store's block after `write` is applied to the record that `there` belongs to.
#[must_use]
pub fn replaced(write: &Replacement, there: &Stored, now: Micros, mark: Fence) -> Stored {
    Stored {
        fence: match write.fence {
            FenceRule::Keep => there.fence,
            FenceRule::Next => next_fence(now, mark, there.fence),
        },
        revision: Revision(there.revision.0.saturating_add(1)),
        lease_until: match write.lease {
            Lease::Keep => there.lease_until,
            Lease::Over => Micros::ZERO,
            Lease::For(span) => now.plus(span),
        },
        keep_until: match write.keep {
            Keep::Open => Micros::ZERO,
            Keep::For(span) => now.plus(span),
        },
        written_at: now,
    }
}

/// The store's block after a renewal: never a shorter lease.
#[must_use]
pub fn extended(there: &Stored, lease: Duration, now: Micros) -> Stored {
    Stored {
        lease_until: there.lease_until.max(now.plus(lease)),
        revision: Revision(there.revision.0.saturating_add(1)),
        written_at: now,
        ..*there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transition::tests::record;

    #[test]
    fn a_fence_rises_above_the_clock_the_mark_and_the_last() {
        assert_eq!(next_fence(Micros(50), Fence(10), Fence(20)), Fence(50));
        assert_eq!(next_fence(Micros(50), Fence(50), Fence(20)), Fence(51));
        assert_eq!(next_fence(Micros(5), Fence(10), Fence(20)), Fence(21));
    }

    #[test]
    fn a_holder_is_met_at_any_revision_and_only_in_flight_and_a_reader_at_his_only() {
        let there = record().stored;
        let met = |expect, state| is_meant(expect, &there, state);
        assert!(met(Expect::Holder(Fence(10)), State::InFlight));
        assert!(!met(Expect::Holder(Fence(11)), State::InFlight));
        for state in [State::NotExecuted, State::Completed, State::Failed, State::Erased] {
            assert!(!met(Expect::Holder(Fence(10)), state), "{state:?} has no holder");
            assert!(met(Expect::Seen(Fence(10), Revision(3)), state));
        }
        assert!(!met(Expect::Seen(Fence(10), Revision(2)), State::InFlight));
        assert!(!met(Expect::Seen(Fence(9), Revision(3)), State::InFlight));
    }

    #[test]
    fn a_renewal_never_shortens_and_always_raises_the_revision() {
        let there = Stored { lease_until: Micros(1_000), ..record().stored };
        for (lease, until) in [(1, 1_000), (5_000, 5_100)] {
            let renewed = extended(&there, Duration::from_micros(lease), Micros(100));
            assert_eq!((renewed.lease_until, renewed.revision), (Micros(until), Revision(4)));
        }
    }
}
