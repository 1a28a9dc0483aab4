//! What the protocol asks of Redis: steps that are taken in one view only, and what gives a partition its view.

use std::{fmt, sync::Arc, time::Duration};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, Record, Revision, SessionId},
};

use super::Fact;
use crate::Answer;

/// Which data a server has: its replication id, which is another one after a restart and on a replica that is promoted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub [u8; 20]);

impl Incarnation {
    /// Of a view that is on no Redis but on the journal's database itself.
    pub const DATABASE: Self = Self([0xff; 20]);

    /// Whether it is the database's.
    #[must_use]
    pub fn is_database(self) -> bool {
        self == Self::DATABASE
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_database() {
            return f.write_str("database");
        }
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A view of a partition. Two that have the same number and were opened on different timelines of the database differ by
/// their tag.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct View {
    /// Rises with each view; 0: none yet.
    pub number: u64,
    /// Drawn by whoever opened it.
    pub tag: u64,
}

/// In which view, on which server and for whom a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Of 0 to 255.
    pub partition: u16,
    /// That this process acknowledged last.
    pub view: View,
    /// Of the server that the view is on.
    pub incarnation: Incarnation,
    /// Of this process.
    pub session: SessionId,
}

/// What a step does.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// Makes the record in flight, unless one is there that has not ended and was not released.
    Insert {
        /// Of the new record.
        facts: &'a Facts,
        /// How long its lease runs.
        lease: Duration,
    },
    /// Replaces the record that is meant.
    Replace(&'a Replacement),
    /// Renews the holder's lease.
    Extend {
        /// Whose.
        holder: Fence,
        /// For how long.
        lease: Duration,
    },
    /// Says of the holder's claim that nothing was done (A9): the record stays, under its fence.
    Release(Expect),
    /// Reads.
    Get,
}

impl What<'_> {
    /// The fence of the claim by whose right it writes, if it is a holder's.
    #[must_use]
    pub fn holder(&self) -> Option<Fence> {
        match self {
            Self::Replace(Replacement { expect: Expect::Holder(fence), .. })
            | Self::Extend { holder: fence, .. }
            | Self::Release(Expect::Holder(fence)) => Some(*fence),
            _ => None,
        }
    }
}

/// A journal row, read in the view in which it is used: `None` where there is none.
pub type Row = Option<Box<Record>>;

/// What a step came to.
#[derive(Clone, Debug)]
pub enum Stepped {
    /// It was applied.
    Done {
        /// As it stands now.
        record: Arc<Record>,
        /// The server's time.
        now: Micros,
    },
    /// The record is there and not meant, or was read.
    There {
        /// As it is.
        record: Box<Record>,
        /// The server's time.
        now: Micros,
    },
    /// There is none.
    Absent {
        /// The server's time.
        now: Micros,
    },
    /// The view is not warm, and this needs the journal's row: nothing was done.
    NeedsRow,
    /// The server is no primary, or is of another incarnation or view, or this session is not let in: nothing was done.
    Elsewhere,
}

/// What a partition's server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// A replica decides nothing.
    pub is_primary: bool,
    /// Of its data.
    pub incarnation: Incarnation,
    /// That its marker says; the default where there is none.
    pub view: View,
    /// Whether it has every row of the journal.
    pub is_warm: bool,
    /// No fence that was granted in the view is above it.
    pub mark: Fence,
}

/// What a server is given with a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Install {
    /// Sessions that may claim (R3): all others may not.
    pub admitted: Vec<SessionId>,
    /// No fence that was ever granted is above it.
    pub mark: Fence,
    /// Erased keys: they are there before the first record is shown (A6).
    pub erased: Vec<Fact>,
    /// What the journal had of rows up to here and has no more has ended (A10).
    pub horizon: Fence,
}

/// A record that may not be in the journal yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirty {
    /// Whose.
    pub id: RecordId,
    /// Of the record that was shipped.
    pub fence: Fence,
    /// Of the record that was shipped.
    pub revision: Revision,
}

/// What may not be in the journal yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// Fences up to here were granted in earlier views.
    pub before: Fence,
    /// Each record once.
    pub facts: Vec<Fact>,
}

/// Redis, as the protocol sees it. Each call is one atomic step of one partition; those that take an [`At`] check role,
/// incarnation, view and session in that same step.
///
/// In a view that is not warm every write needs the row, but for one by the fence of a claim granted in that view (A1),
/// and so does an insert or read that finds no settled record. In any view one that finds a claim at or below the horizon
/// needs it: without a row that is over ([`is_swept`](super::is_swept)). A row that is given is merged first
/// ([`merged`](super::merged)), with the mark that the view was installed with as `before`. Each applied step notes the record as dirty, until [`clean`](Self::clean).
pub trait Front: Send + Sync + fmt::Debug + 'static {
    /// Takes a step.
    fn step<'a>(&'a self, at: &'a At, id: RecordId, what: What<'a>, row: Option<&'a Row>) -> Answer<'a, Stepped>;

    /// What the partitions' servers are now; without those that do not answer. Not in one step.
    fn look<'a>(&'a self, partitions: &'a [u16]) -> Answer<'a, Vec<(u16, Sight)>>;

    /// Gives the partition this view, unless it has one as high. The server is of `at`'s incarnation and a primary;
    /// `false` where it is not, and then nothing is done.
    fn install<'a>(&'a self, at: &'a At, install: &'a Install) -> Answer<'a, bool>;

    /// Lets a session in that joined after the view was installed, unless it was shut out of it.
    fn admit<'a>(&'a self, at: &'a At) -> Answer<'a, bool>;

    /// Shuts `target` out of the view of `at`, for good.
    fn shut_out<'a>(&'a self, at: &'a At, target: SessionId) -> Answer<'a, bool>;

    /// Records that may not be in the journal yet; `None` where the server is another.
    fn dirty<'a>(&'a self, at: &'a At) -> Answer<'a, Option<Outbox>>;

    /// These are in the journal for good: what has not been written since is dirty no more.
    fn clean<'a>(&'a self, at: &'a At, shipped: &'a [Dirty]) -> Answer<'a, bool>;

    /// Merges rows of the journal, read in this view.
    fn merge<'a>(&'a self, at: &'a At, rows: &'a [Fact]) -> Answer<'a, bool>;

    /// Every row of the journal has been merged: the view is warm.
    fn warm<'a>(&'a self, at: &'a At) -> Answer<'a, bool>;
}
