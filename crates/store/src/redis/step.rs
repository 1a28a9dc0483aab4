//! What a step is told and what it answers, whichever way it is taken.

use std::time::Duration;

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, Record, Revision},
};

use super::key::Keys;
use crate::{Insert, Kind, Read, StoreError, Write, figures::Change};

/// Of a partition: which server has it, and what was drawn by whoever gave it its marker.
pub(super) type Epoch = [u8; 16];

/// How long after a record's end the server removes it: a step that comes before finds it over by its own time, and a
/// server's clock that jumps ahead by less ends nothing early.
pub(super) const SLACK: Duration = Duration::from_secs(10);

/// One step on one record.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) id: RecordId,
    pub(super) keys: Keys,
    /// Of the partition, as this process knows it.
    pub(super) epoch: Epoch,
    /// The latest time that this process was told.
    pub(super) floor: Micros,
    /// How many keys the server had evicted, as this process knows it.
    pub(super) evicted: u64,
    pub(super) what: What<'a>,
}

#[derive(Debug)]
pub(super) enum What<'a> {
    Insert { facts: &'a Facts, lease: Duration },
    Replace(&'a Replacement),
    Extend { holder: Fence, lease: Duration },
    Remove(Expect),
    Get,
}

impl What<'_> {
    /// Whether it changes nothing.
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Get)
    }
}

/// What it came to.
#[derive(Debug)]
pub(super) enum Stepped {
    /// It was applied.
    Done {
        fence: Fence,
        revision: Revision,
        now: Micros,
        /// What the tenant takes up more or less.
        change: Change,
        /// Whose record it was that is removed.
        removed: Option<String>,
    },
    /// The record is there and not meant, or was read.
    There { record: Box<Record>, now: Micros },
    /// There is none.
    Absent { now: Micros },
    /// The partition's marker is gone, or another's: nothing was done.
    Unmarked,
    /// The server has evicted keys that this process does not know of: nothing was done.
    Evicted,
    /// The server's clock is behind what was written down: nothing was done.
    Behind { wall: Micros, written: Micros },
}

impl Stepped {
    /// When it was taken; `None` where nothing was done.
    pub(super) fn now_mut(&mut self) -> Option<&mut Micros> {
        match self {
            Self::Done { now, .. } | Self::There { now, .. } | Self::Absent { now } => Some(now),
            Self::Unmarked | Self::Evicted | Self::Behind { .. } => None,
        }
    }

    /// Fence and revision of what is to reach replicas: a record that was written, or that says that this very claim was
    /// before. A removal may be lost as any may: the key is in doubt then, and does not run again by it.
    pub(super) fn written(&self, step: &Step<'_>) -> Option<(Fence, Revision)> {
        match (self, &step.what) {
            (_, What::Remove(_) | What::Get) => None,
            (Self::Done { fence, revision, .. }, _) => Some((*fence, *revision)),
            (Self::There { record, .. }, What::Insert { facts, .. }) if record.facts.claim_id == facts.claim_id => {
                Some((record.stored.fence, record.stored.revision))
            }
            _ => None,
        }
    }

    pub(super) fn into_insert(self) -> Result<Insert, StoreError> {
        match self {
            Self::Done { fence, now, .. } => Ok(Insert::Inserted { fence, now }),
            Self::There { record, now } => Ok(Insert::Existing { record, now }),
            Self::Absent { .. } => Err(odd()),
            refused => Err(refused.refusal()),
        }
    }

    pub(super) fn into_write(self) -> Result<Write, StoreError> {
        match self {
            Self::Done { fence, revision, now, .. } => Ok(Write::Applied { fence, revision, now }),
            Self::There { record, now } => Ok(Write::Lost { record: Some(record), now }),
            Self::Absent { now } => Ok(Write::Lost { record: None, now }),
            refused => Err(refused.refusal()),
        }
    }

    pub(super) fn into_read(self) -> Result<Read, StoreError> {
        match self {
            Self::There { record, now } => Ok(Read { record: Some(*record), now }),
            Self::Absent { now } => Ok(Read { record: None, now }),
            Self::Done { .. } => Err(odd()),
            refused => Err(refused.refusal()),
        }
    }

    fn refusal(self) -> StoreError {
        match self {
            Self::Behind { wall, written } => {
                let said = format!("it is {:?} behind what it said before", written.since(wall));
                StoreError::not_applied(Kind::ClockSuspect(said))
            }
            _ => StoreError::not_applied(Kind::Incarnation),
        }
    }
}

fn odd() -> StoreError {
    StoreError::unknown(Kind::Damaged("the server's answer is none that a step gives".into()))
}

/// A length of time as steps add it: microseconds, eight bytes, big-endian.
pub(super) fn length(span: Duration) -> [u8; 8] {
    Micros::ZERO.plus(span).0.to_be_bytes()
}

/// Milliseconds after which the server removes what is kept for `span`; what no server takes is cut to a century.
pub(super) fn remove_after(span: Duration) -> u64 {
    const CENTURY: u64 = 100 * 366 * 24 * 60 * 60 * 1000;
    u64::try_from(span.saturating_add(SLACK).as_millis()).unwrap_or(u64::MAX).min(CENTURY)
}
