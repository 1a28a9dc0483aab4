//! What the protocol asks of the database: the journal, views and who acknowledged them, and who is a member.

use std::{fmt, time::Duration};

use onceward_core::{
    key::RecordId,
    record::{Fence, Micros, SessionId},
};

use super::{At, Fact, Incarnation, Install, Row, Stepped, View, What};
use crate::{Answer, Swept};

/// A life of the database: another one after a standby has taken over.
pub type Timeline = u64;

/// A position of the database's log: what was committed up to it is on every standby that may take over, once
/// [`Snapshot::kept`] says so.
pub type Mark = u64;

/// What a session is to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Member {
    /// It has no row.
    #[default]
    No,
    /// It has one, which may still be lost with the database's last commits unless `is_kept`.
    Live {
        /// Whether it is past losing.
        is_kept: bool,
    },
    /// Others are about to shut it out: it claims nothing more and acknowledges nothing (R2).
    Retiring,
    /// It is over, which may still be lost with the database's last commits unless `is_kept`.
    Retired {
        /// Whether it is past losing.
        is_kept: bool,
    },
}

/// A partition's view, as the database has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewRow {
    /// Of 0 to 255.
    pub partition: u16,
    /// The default where none was opened yet.
    pub view: View,
    /// Of the server that it is on.
    pub incarnation: Incarnation,
    /// On which it was opened.
    pub timeline: Timeline,
    /// Whether it serves; else it waits for acknowledgements.
    pub is_active: bool,
    /// Whether it waits no more: every member has acknowledged it, or is retired past losing. Not asked of one that serves.
    pub is_agreed: bool,
}

/// What the database says of views and members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its present one.
    pub timeline: Timeline,
    /// What is committed up to here is past losing.
    pub kept: Mark,
    /// What this session is.
    pub me: Member,
    /// Each partition's.
    pub views: Vec<ViewRow>,
    /// Members that have not been heard of for too long, and those whose retirement was begun.
    pub silent: Vec<SessionId>,
}

/// A view that is to be opened, in the place of `before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// As the database had it.
    pub before: ViewRow,
    /// The highest number that is known of the partition, in Redis or to whoever opens it.
    pub acknowledged: u64,
    /// Of the server that it is on.
    pub incarnation: Incarnation,
}

/// All that was said of a partition's keys up to `fence` is in the journal, or was there and has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Of 0 to 255.
    pub partition: u16,
    /// In which that was seen.
    pub view: View,
    /// The highest.
    pub fence: Fence,
}

/// A partition's last active view, for a retirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastActive {
    /// Of 0 to 255.
    pub partition: u16,
    /// That was active last.
    pub view: View,
    /// Of the server that it is on.
    pub incarnation: Incarnation,
}

/// Of which partitions members do not reach the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreached {
    /// Nobody does of whom something was heard lately.
    pub by_all: Vec<u16>,
    /// Some do not, or nothing was heard of them.
    pub by_some: Vec<u16>,
}

/// The database, as the protocol sees it. Each call is one transaction. Those that take a timeline are refused on any
/// other: `false`, `None` or none then, and nothing is done. Of several partitions each is decided for itself.
pub trait Journal: Send + Sync + fmt::Debug + 'static {
    /// What there is, and that this session is alive.
    fn look(&self, session: SessionId) -> Answer<'_, Snapshot>;

    /// Makes the session a member. It holds nothing of any view, so it counts as having acknowledged those that wait.
    /// Refused while a view is there that was opened on another timeline, which may be older than the one that is active.
    fn join(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool>;

    /// Merges facts: the larger one stays (A4). A retired session's update rows and make none (A7), and so do those that are
    /// not settled and not above their partition's horizon (A10).
    fn ship<'a>(&'a self, session: SessionId, timeline: Timeline, facts: &'a [Fact]) -> Answer<'a, Option<Mark>>;

    /// A key's row, where `view` is active and of the present timeline (A1, A8).
    fn row(&self, partition: u16, view: View, id: RecordId) -> Answer<'_, Option<Row>>;

    /// Rows of a partition after `after`, at most `limit`, likewise.
    fn rows(&self, partition: u16, view: View, after: Option<RecordId>, limit: usize) -> Answer<'_, Option<Vec<Fact>>>;

    /// Rows after `after` in the order of the ids, at most `limit`, and the database's time: for lists, which decide
    /// nothing. Of `in_flight` only those rows, which takes no time for the others.
    fn list(&self, after: Option<RecordId>, limit: usize, in_flight: bool) -> Answer<'_, (Vec<Fact>, Micros)>;

    /// Opens the next views of partitions; a view's number is above that of the one before and above `acknowledged`.
    /// Answers how many were opened: one whose view before is another is not. Refused to a session that is no member,
    /// unless all who ever were are retired: then nobody holds anything, since whoever claims has a member row that is past
    /// losing.
    fn open<'a>(&'a self, session: SessionId, timeline: Timeline, openings: &'a [Opening]) -> Answer<'a, usize>;

    /// All that the session was granted in earlier views of the partitions is in the journal. Answers of which partitions
    /// that was taken.
    fn acknowledge<'a>(
        &'a self,
        session: SessionId,
        timeline: Timeline,
        views: &'a [(u16, View)],
    ) -> Answer<'a, Vec<u16>>;

    /// What servers are to be given with those of the views that all have acknowledged. Sessions are let in whose member row
    /// is past losing, and that are not being retired.
    fn agreed<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<(u16, Install)>>;

    /// The views have been installed: they serve. Answers of which partitions that was taken.
    fn activate<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<u16>>;

    /// The session is over: it holds nothing, and all that it shipped is past losing.
    fn leave(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool>;

    /// Begins to retire `target` (2.5, step 0): which views it has to be shut out of. Refused where it has acknowledged
    /// a view that waits (R1), and where a partition's last active view is not known on this timeline (A8). On the timeline
    /// that the database was made on, a partition that never had an active view has none to be shut out of.
    fn retire(&self, by: SessionId, target: SessionId, timeline: Timeline) -> Answer<'_, Option<Vec<LastActive>>>;

    /// Ships what was found dirty in the view that `target` was shut out of (A7). Refused where that is not the last active
    /// one any more.
    fn drain<'a>(
        &'a self,
        by: SessionId,
        timeline: Timeline,
        view: &'a LastActive,
        facts: &'a [Fact],
    ) -> Answer<'a, Option<Mark>>;

    /// `target` is retired. Refused where one of `views` is not the last active one any more.
    fn retired<'a>(&'a self, target: SessionId, timeline: Timeline, views: &'a [LastActive]) -> Answer<'a, bool>;

    /// A step in a view that is on the database itself, of a session that was let in: as [`Front::step`](super::Front::step),
    /// with the key's row as the record that is there. `Elsewhere` where the view is not active or of another timeline, or
    /// the session no live member. What it leaves in the row is never less than what was there ([`Order`](super::Order)).
    fn step<'a>(&'a self, at: &'a At, id: RecordId, what: What<'a>) -> Answer<'a, Stepped>;

    /// That this session does not reach the servers of these partitions, and what the others say. For liveness alone:
    /// nothing is decided by it but when a view is opened.
    fn unreached<'a>(&'a self, session: SessionId, partitions: &'a [u16]) -> Answer<'a, Unreached>;

    /// Raises partitions' horizons. Answers how many are higher now: one whose view is not active is not raised.
    fn raise<'a>(&'a self, timeline: Timeline, horizons: &'a [Horizon]) -> Answer<'a, usize>;

    /// Removes at most `limit` rows that ended `waits` ago or before, by the database's clock, or were released, up to their
    /// partitions' horizons (A10). Answers also of which partitions there are some above it, of many not always the same.
    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, (Swept, Vec<u16>)>;
}
