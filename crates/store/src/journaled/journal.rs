//! What the protocol asks of the database: the journal, views and who acknowledged them, and who is a member.

use std::fmt;

use onceward_core::{key::RecordId, record::SessionId};

use super::{Fact, Incarnation, Install, Row, View};
use crate::Answer;

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
    /// It is over.
    Retired,
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
    /// Whether every member has acknowledged it, or is retired past losing.
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

/// The database, as the protocol sees it. Each call is one transaction. Those that take a timeline are refused on any
/// other: `false` or `None` then, and nothing is done.
pub trait Journal: Send + Sync + fmt::Debug + 'static {
    /// What there is, and that this session is alive.
    fn look(&self, session: SessionId) -> Answer<'_, Snapshot>;

    /// Makes the session a member. It holds nothing of any view, so it counts as having acknowledged those that wait.
    /// Refused while a view is there that was opened on another timeline, which may be older than the one that is active.
    fn join(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool>;

    /// Merges facts: the larger one stays (A4). A retired session's update rows and make none (A7).
    fn ship<'a>(&'a self, session: SessionId, timeline: Timeline, facts: &'a [Fact]) -> Answer<'a, Option<Mark>>;

    /// A key's row, where `view` is active and of the present timeline (A1, A8).
    fn row(&self, partition: u16, view: View, id: RecordId) -> Answer<'_, Option<Row>>;

    /// Rows of a partition after `after`, at most `limit`, likewise.
    fn rows(&self, partition: u16, view: View, after: Option<RecordId>, limit: usize) -> Answer<'_, Option<Vec<Fact>>>;

    /// Opens the next view of a partition on a server, in the place of `before`; its number is above that and above
    /// `acknowledged`. Refused to a session that is no member, unless all who ever were are retired: then nobody holds
    /// anything, since whoever claims has a member row that is past losing.
    fn open(
        &self,
        session: SessionId,
        timeline: Timeline,
        before: &ViewRow,
        acknowledged: u64,
        incarnation: Incarnation,
    ) -> Answer<'_, bool>;

    /// All that the session was granted in earlier views of the partition is in the journal.
    fn acknowledge(&self, session: SessionId, timeline: Timeline, partition: u16, view: View) -> Answer<'_, bool>;

    /// What a server is to be given with a view that all have acknowledged. Sessions are let in whose member row is past
    /// losing, and that are not being retired.
    fn agreed(&self, timeline: Timeline, partition: u16, view: View) -> Answer<'_, Option<Install>>;

    /// The view has been installed: it serves.
    fn activate(&self, timeline: Timeline, partition: u16, view: View) -> Answer<'_, bool>;

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
}
