//! What the protocol asks of the spool: a local log that outlives this process.

use std::fmt;

use onceward_core::{key::RecordId, record::SessionId};

use super::Fact;
use crate::{Answer, StoreError};

/// Where a fact stands in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of its segment.
    pub segment: u32,
    /// Byte in the segment.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// What a session that is over has left in the spool of its process, which is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Whose.
    pub session: SessionId,
    /// Its facts, in the order in which they were written; none where all that it was granted is in the journal.
    pub facts: Vec<(RecordId, Place)>,
}

/// A local log that outlives this process: a fact is in it before its request is sent.
///
/// It also has each session that began and has not ended, whether or not there are facts of it: that whoever comes after it
/// on this disk knows of it.
pub trait Spool: Send + Sync + fmt::Debug + 'static {
    /// A session begins: durable when it returns, and only then is it a member.
    fn begin(&self, session: SessionId) -> Answer<'_, ()>;

    /// Nobody will ask for this session any more, and no fact of it is kept. Where that is not written down, whoever comes
    /// after finds it ended.
    fn end(&self, session: SessionId);

    /// Durable when it returns. Where it fails, this session is over.
    fn append<'a>(&'a self, session: SessionId, fact: &'a Fact) -> Answer<'a, Place>;

    /// Reads a fact again that was not released.
    ///
    /// # Errors
    /// Where it is damaged, or the disk fails: then this session is over.
    fn read(&self, id: RecordId, place: Place) -> Answer<'_, Fact>;

    /// The facts at these places need not be kept any more.
    fn release(&self, places: &[Place]);

    /// Whether new claims may be spooled; those of holders may be in any case.
    ///
    /// # Errors
    /// `Full`.
    fn has_room(&self) -> Result<(), StoreError>;
}
