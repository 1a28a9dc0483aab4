//! The log: where durable stores put their records.
//!
//! [`Log::append`] takes opaque frames. One writer thread gathers what is queued into a batch, writes it with one
//! synced write into a segment that was written in advance, and reports the batch to a sink: all of it is durable, or
//! its fate is unknown, or nothing of it was written. Nothing is folded: a write error makes the batch *unknown* and
//! moves the log to a new segment whose header says where the old one validly ends, so that the batch whose callers
//! were told "unknown" cannot come back later.
//!
//! # Layout
//!
//! - `file.rs`: the file layer, real; and `forgetful.rs`, the one of the tests, which forgets what was not synced
//! - `batch.rs`: bytes of batches and frames; `segment.rs`: headers, the chain, the table of open segments
//! - `shared.rs`: the queue and what all parts share; `writer.rs`: group commit, rotation, errors; `keeper.rs`: the background (spare segments, hints)
//! - `scan.rs`, `hint.rs`, `recovery.rs`: reading a log again
//! - `lock.rs`: one process at a time
//!
//! # Limits
//!
//! A segment is at most 64 MiB, a payload [`PAYLOAD_BYTES_MAX`] and at most a quarter of a segment, the queue at most
//! half a segment or 8 MiB.

mod batch;
mod error;
mod file;
#[cfg(test)]
pub(crate) mod forgetful;
mod hint;
mod keeper;
mod lock;
mod recovery;
mod scan;
mod segment;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::io;
use std::time::Duration;

use bytes::Bytes;

pub use batch::{Frame, Kind, PAYLOAD_BYTES_MAX};
pub use error::{AppendError, NotWritten, OpenError, ReadError};
pub use file::{Disk, DiskFile, Folder, Keeps, Name, keeps};
pub(crate) use lock::LOCK;
pub use lock::{Holder, LockError, LockFile};
pub use segment::FORMAT;

use batch::{FRAME_HEADER, decode_frame};
use file::read_vec;
use keeper::Keeper;
use recovery::Found;
use segment::HEADER_ROOM;
use shared::Shared;
use writer::Writer;

/// Locks a mutex; a poisoned one held nothing that a panic could leave half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a log works. `Default` is what the embedded store uses.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of a segment in bytes, 16 KiB to 64 MiB, a multiple of 4096. Fixed once a folder has been made.
    pub segment_bytes: u32,
    /// The least time between the end of a commit and the next one while more than [`Options::pause_above`] claims
    /// are open, so that more of them share a sync.
    pub pause: Duration,
    /// See [`Options::pause`].
    pub pause_above: usize,
    /// Segments kept ready, beyond those that count.
    pub spares_min: usize,
    /// Free segments beyond this many are given back to the file system.
    pub spares_max: usize,
    /// The most segments there may be, spares included; at the limit the log is full.
    pub segments_max: u32,
    /// While no free segment is ready, claims are refused once the present one has no more than this left: the rest is
    /// for completions. At most a quarter of a segment counts, since making the next one takes a while.
    pub reserve_bytes: u32,
    /// Opens a damaged log and lists what is lost; else it is refused.
    pub accept_loss: bool,
    /// What a payload is tagged with: a number of the caller's, shown with each frame when the log is opened, also
    /// where the payload is not read. A change of it needs a new folder.
    pub tag_of: fn(&[u8]) -> u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            pause: Duration::from_micros(300),
            pause_above: 2,
            spares_min: 1,
            spares_max: 4,
            segments_max: u32::MAX,
            reserve_bytes: 16 << 20,
            accept_loss: false,
            tag_of: |_| 0,
        }
    }
}

/// Where a frame stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Number of the segment, rising over the log's whole life.
    pub segment: u32,
    /// Byte in the segment's file, a multiple of 16.
    pub offset: u32,
}

impl Position {
    pub(crate) fn new(segment: u32, offset: u64) -> Self {
        // A segment is at most 64 MiB.
        Self { segment, offset: u32::try_from(offset).unwrap_or(u32::MAX) }
    }
}

/// What opening a log shows of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The first half of its id.
    pub id: [u8; 16],
    /// What it means.
    pub kind: Kind,
    /// Until when it counts, in seconds; 0: always.
    pub keep_until_s: u32,
    /// Where it stands.
    pub position: Position,
    /// Its length in bytes, with header and padding.
    pub len: usize,
    /// By [`Options::tag_of`]; 0 for a removal.
    pub tag: u64,
}

/// A frame read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it means.
    pub kind: Kind,
    /// Whose it is.
    pub id: [u8; 32],
    /// Until when it counts, in seconds; 0: always.
    pub keep_until_s: u32,
    /// What was written.
    pub payload: Bytes,
}

/// How a batch ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outcome {
    /// All of it is durable, in this segment.
    Durable {
        /// The segment's number.
        segment: u32,
    },
    /// It may be on the disk or not, now or after a power failure; it will not come back once the log writes again.
    Unknown(Arc<io::Error>),
    /// Nothing of it was written.
    NotWritten(NotWritten),
}

/// What [`Log::append`] was given and where it went.
#[derive(Debug)]
pub struct Placed<T> {
    /// The caller's.
    pub ticket: T,
    /// The frame's offset in the segment's file.
    pub offset: u32,
    /// Its length in bytes, with header and padding.
    pub len: u32,
}

/// A batch that is over, in the order of the log.
#[derive(Debug)]
pub struct Done<T> {
    /// How it ended.
    pub outcome: Outcome,
    /// Its frames. Offsets mean something only where it is durable.
    pub placed: Vec<Placed<T>>,
}

/// Who is told of batches, from the writer's thread. May block; the log then waits.
pub type Sink<T> = Box<dyn FnMut(Done<T>) + Send>;
/// The store's clock, in microseconds; never goes back.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The incomplete last batch that opening cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: String,
    /// Where the batch began.
    pub offset: u64,
    /// How long it was to be; none where even its header is incomplete.
    pub bytes: Option<u64>,
    /// Its sequence number.
    pub sequence: u64,
    /// The store's clock when it was written; none where even its header is incomplete.
    pub time_us: Option<u64>,
}

/// An interval of the log that was given up: keys written in it may run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The file.
    pub file: String,
    /// The segment's number.
    pub segment: u32,
    /// The segment's salt.
    pub salt: u64,
    /// First byte lost; 0: the whole segment, and those before it up to one that is there.
    pub from: u64,
    /// First byte kept after it.
    pub to: u64,
    /// Sequence number of the batch at [`Loss::to`].
    pub sequence: u64,
    /// The store's clock at the last batch before, in microseconds.
    pub after_us: u64,
    /// The store's clock at the first batch behind; the greatest number where there is none.
    pub before_us: u64,
}

/// What opening a log found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The last time in the log, in microseconds of the store's clock. The clock must not start below it.
    pub time_us: u64,
    /// No fence above this one was given out.
    pub fence_mark: u64,
    /// The incomplete batch that was cut.
    pub cut: Option<Cut>,
    /// What was accepted as lost now.
    pub losses: Vec<Loss>,
}

/// Counters and gauges of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Batches that became durable.
    pub batches: u64,
    /// Frames in them.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Batches whose fate is unknown.
    pub unknown: u64,
    /// Batches that were not written.
    pub not_written: u64,
    /// Times the log went on in a new segment after an error.
    pub reopened: u64,
    /// Segments that count.
    pub segments: u64,
    /// Free segments.
    pub spares: u64,
    /// Bytes left in the present segment.
    pub room_bytes: u64,
    /// Whether claims are refused for want of space.
    pub full: bool,
    /// Whether the log waits to be opened anew after an error.
    pub broken: bool,
}

/// A log that was read and is not written yet.
pub struct Opened {
    disk: Arc<dyn Disk>,
    options: Options,
    found: Found,
}

impl Opened {
    /// What was found.
    #[must_use]
    pub fn report(&self) -> &OpenReport {
        &self.found.report
    }

    /// Drawn when the log was made: no other log has it.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.found.chain.log_id
    }

    /// Begins to write. `open` says how many claims are open, for the pause between commits.
    ///
    /// Errors: the log's first segment, or a thread, could not be made.
    pub fn start<T: Send + 'static>(self, clock: Clock, open: Arc<AtomicUsize>, sink: Sink<T>) -> io::Result<Log<T>> {
        let (log, mut writer, mut keeper) = self.prepare(clock, open, sink)?;
        writer.waits_for_spares(true);
        let named = |name: &str| crate::sync::thread::Builder::new().name(name.to_owned());
        let threads = vec![
            named("onceward-log").spawn(move || writer.run())?,
            named("onceward-keeper").spawn(move || keeper.run())?,
        ];
        *lock(&log.threads) = threads;
        Ok(log)
    }

    /// A log without threads, for tests that step its parts.
    pub(crate) fn prepare<T: Send + 'static>(
        self,
        clock: Clock,
        open: Arc<AtomicUsize>,
        sink: Sink<T>,
    ) -> io::Result<(Log<T>, Writer<T>, Keeper<T>)> {
        let (shared, writer) = Writer::new(self.disk, self.options, self.found, clock, open, sink)?;
        let keeper = Keeper::new(Arc::clone(&shared));
        Ok((Log { shared, threads: Mutex::new(Vec::new()) }, writer, keeper))
    }
}

/// A log that is written. Dropping it writes what is queued and ends its threads.
pub struct Log<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    threads: Mutex<Vec<crate::sync::thread::JoinHandle<()>>>,
}

impl<T: Send + 'static> Log<T> {
    /// Reads the log in a folder, or makes one in an empty folder. Shows every frame that counts, oldest first: of an
    /// id that occurs twice the later one wins, even where it has expired.
    ///
    /// The caller holds the folder's [`LockFile`].
    ///
    /// Errors: [`OpenError`].
    pub fn open(disk: Arc<dyn Disk>, options: Options, show: &mut dyn FnMut(Entry)) -> Result<Opened, OpenError> {
        let size = options.segment_bytes;
        if !(4 * HEADER_ROOM..=64 << 20).contains(&size) || !size.is_multiple_of(4096) {
            return Err(OpenError::SegmentBytes(size));
        }
        let chain = recovery::open_chain(&*disk, size, options.accept_loss)?;
        keeper::clear(&*disk).map_err(|source| OpenError::io(&*disk, "", source))?;
        let found = recovery::recover(&*disk, chain, options.accept_loss, options.tag_of, show)?;
        let options = Options { segment_bytes: found.chain.segment_bytes, ..options };
        Ok(Opened { disk, options, found })
    }

    /// Queues a frame for the next batch; what was queued before it comes before it. The sink gets `ticket` back.
    ///
    /// Errors: [`AppendError`]; the frame is then not queued.
    pub fn append(&self, frame: &Frame<'_>, ticket: T) -> Result<(), AppendError> {
        self.shared.append(frame, ticket)
    }

    /// Reads the frame at `position`, whose id begins with `id`, with one positional read of `len` bytes, which may be
    /// more than the frame is long.
    ///
    /// Errors: [`ReadError`].
    pub fn read(&self, position: Position, len: usize, id: &[u8; 16]) -> Result<Record, ReadError> {
        let segment = self.shared.table.get(position.segment).ok_or(ReadError::Gone)?;
        let file = || self.shared.disk.locate(&segment::slot_name(segment.slot));
        let bytes = read_vec(&*segment.file, u64::from(position.offset), len.max(FRAME_HEADER));
        let mut bytes = bytes.map_err(|source| ReadError::Io { file: file(), source })?;
        let found = decode_frame(&bytes, segment.salt).filter(|(head, _)| head.id.starts_with(id));
        let Some((head, _)) = found else {
            // Its slot may have gone to another segment while it was read.
            let gone = self.shared.table.get(position.segment).is_none();
            return Err(if gone {
                ReadError::Gone
            } else {
                ReadError::Damaged { file: file(), offset: position.offset }
            });
        };
        bytes.truncate(FRAME_HEADER + head.payload);
        let payload = Bytes::from(bytes).slice(FRAME_HEADER..);
        Ok(Record { kind: head.kind, id: head.id, keep_until_s: head.keep_until_s, payload })
    }

    /// Says that no segment before `number` counts any more. They are free once a batch that says so is durable.
    /// The segment that is being written always counts.
    pub fn release_before(&self, number: u32) {
        self.shared.release_before(number);
    }

    /// Numbers of the segments that count, rising; the last one is being written.
    #[must_use]
    pub fn segments(&self) -> Vec<u32> {
        self.shared.table.numbers()
    }

    /// Raises the fence mark that is written with every batch. To be raised before the frame that uses a fence is
    /// appended.
    pub fn raise_fence_mark(&self, fence: u64) {
        self.shared.fence_mark.fetch_max(fence, Ordering::Relaxed);
    }

    /// Whether there is space for new claims: a free segment to go on in, or one in the making and more than
    /// [`Options::reserve_bytes`] left until then. Where none can be made, what is left of the present segment is kept
    /// for completions. The next one is made as soon as this one is begun, and its space is taken first of all, so that
    /// nearly all of this one is left when that fails.
    #[must_use]
    pub fn has_space(&self) -> bool {
        self.shared.has_space()
    }

    /// Whether the log waits to be opened anew after an error. What is appended meanwhile is told to be not written.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.is_broken()
    }

    /// Size of a segment in bytes.
    #[must_use]
    pub fn segment_bytes(&self) -> u32 {
        self.shared.options.segment_bytes
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Takes no more frames, writes what is queued and ends the threads. Blocks.
    pub fn close(&self) {
        self.shared.close();
        for thread in lock(&self.threads).drain(..) {
            // A panic there has been reported by the panic hook; there is nothing left to do about it here.
            let _ = thread.join();
        }
    }
}

impl<T: Send + 'static> Drop for Log<T> {
    fn drop(&mut self) {
        self.close();
    }
}
