//! How the log's operations fail, one type each.

use std::io;
use std::sync::Arc;

use super::file::Disk;
use super::segment::FORMAT;

/// Why a batch was not written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NotWritten {
    /// The present segment is full and there is no other.
    #[error("no space is left for the log")]
    Full,
    /// The log failed and could not be opened anew yet; it is tried again by itself.
    #[error("the log cannot be written")]
    Broken(#[source] Arc<io::Error>),
}

/// Why a frame was not taken. Nothing of it will be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// It is longer than a payload may be.
    #[error("a record is larger than the log takes")]
    TooLarge,
    /// More is queued than one batch may hold; try again when a batch is over.
    #[error("the log's queue is full")]
    QueueFull,
    /// The log is closed.
    #[error("the log is closed")]
    Closed,
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Its segment was dropped since the position was learnt: look the position up again.
    #[error("the segment was dropped")]
    Gone,
    /// What stands there is not what was written. The record is damaged, not absent.
    #[error("damaged record in {file} at byte {offset}")]
    Damaged {
        /// The file.
        file: String,
        /// The byte in it.
        offset: u32,
    },
    /// The disk did not answer.
    #[error("cannot read {file}")]
    Io {
        /// The file.
        file: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder holds something else.
    #[error("{folder} is not a data folder: it holds {found}")]
    NotALog {
        /// The folder.
        folder: String,
        /// One thing found in it.
        found: String,
    },
    /// It was written by a later version.
    #[error("{file} has format {format}; this version reads up to {FORMAT}")]
    Newer {
        /// The file.
        file: String,
        /// Its format.
        format: u16,
    },
    /// It is damaged where no crash damages it.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// The byte in it.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// A segment of the chain is gone.
    #[error("{folder}: segment number {segment} is missing")]
    Missing {
        /// The folder.
        folder: String,
        /// The segment's number.
        segment: u32,
    },
    /// The options make no sense.
    #[error("segment size {0} is not a multiple of 4096 between 16 KiB and 64 MiB")]
    SegmentBytes(u32),
    /// The disk refused.
    #[error("cannot open {file}")]
    Io {
        /// The file.
        file: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(disk: &dyn Disk, name: &str, source: io::Error) -> Self {
        Self::Io { file: disk.locate(name), source }
    }
}
