//! The writer: queue, group commit, rotation to the next segment, and what happens after an error.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::batch::{BATCH_HEADER, Frame, PAYLOAD_BYTES_MAX, Seal, digest_over, encode_frame, frame_len, seal_batch};
use super::file::{Disk, DiskFile};
use super::recovery::Found;
use super::scan::Scan;
use super::segment::{Chain, Ending, HEADER_ROOM, Header, Segment, Table, slot_name};
use super::{AppendError, Clock, Done, Entry, NotWritten, Options, Outcome, Placed, ReadError, Sink, Stats, lock};

/// The most bytes one batch holds, in segments large enough.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long the writer waits for a spare segment that is in the making.
const SPARE_WAIT: Duration = Duration::from_secs(2);
/// How often a log that failed is opened anew.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// What is queued for the next batch.
struct Queue<T> {
    /// Room for a batch header, then frames.
    buffer: Vec<u8>,
    placed: Vec<Placed<T>>,
    /// The writer sleeps until so many frames are queued; 0: it does not sleep.
    wake_at: usize,
    closed: bool,
}

/// Segments that do not count, and what the keeper has to do.
#[derive(Default)]
pub(crate) struct Slots {
    /// Ready to be written.
    pub(crate) free: VecDeque<(u32, Arc<dyn DiskFile>)>,
    /// Dropped; free once a batch that says so is durable.
    pub(crate) leaving: VecDeque<Arc<Segment>>,
    /// Sealed and without a hint, each with its first batch's sequence number.
    pub(crate) unhinted: VecDeque<(Arc<Segment>, Ending, u64)>,
    /// Segments whose hints can go.
    pub(crate) dropped: VecDeque<u32>,
    pub(crate) slot_next: u32,
    /// Why the last spare could not be made.
    pub(crate) failed: Option<Arc<io::Error>>,
    pub(crate) closed: bool,
}

/// What the log's handle, its writer and its keeper share.
pub(crate) struct Shared<T> {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) options: Options,
    queue: Mutex<Queue<T>>,
    wake: Condvar,
    pub(crate) table: Table,
    pub(crate) slots: Mutex<Slots>,
    /// Woken when the keeper has something to do, or has made a spare.
    pub(crate) slots_changed: Condvar,
    oldest: AtomicU32,
    pub(crate) fence_mark: AtomicU64,
    open: Arc<AtomicUsize>,
    spares: AtomicUsize,
    spare_failed: AtomicBool,
    broken: AtomicBool,
    room: AtomicU64,
    counts: Counts,
    batch_bytes_max: usize,
    /// First sequence number of each segment that is needed to read it again.
    sequences: Mutex<std::collections::BTreeMap<u32, u64>>,
}

#[derive(Default)]
struct Counts {
    batches: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
    unknown: AtomicU64,
    not_written: AtomicU64,
    reopened: AtomicU64,
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl<T> Shared<T> {
    pub(crate) fn append(&self, frame: &Frame<'_>, ticket: T) -> Result<(), AppendError> {
        let len = frame_len(frame.payload.len());
        if frame.payload.len() > PAYLOAD_BYTES_MAX || len > self.batch_bytes_max / 2 {
            return Err(AppendError::TooLarge);
        }
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(AppendError::Closed);
        }
        let offset = queue.buffer.len();
        if offset + len > self.batch_bytes_max {
            return Err(AppendError::QueueFull);
        }
        encode_frame(&mut queue.buffer, frame);
        // Within a batch both fit 32 bits; the writer adds the batch's place.
        let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
        queue.placed.push(Placed { ticket, offset: small(offset), len: small(len) });
        if queue.wake_at != 0 && queue.placed.len() >= queue.wake_at {
            queue.wake_at = 0;
            drop(queue);
            self.wake.notify_one();
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
        lock(&self.slots).closed = true;
        self.wake.notify_all();
        self.slots_changed.notify_all();
    }

    pub(crate) fn has_space(&self) -> bool {
        self.spares.load(Ordering::Relaxed) > 0 || !self.spare_failed.load(Ordering::Relaxed)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(crate) fn release_before(&self, number: u32) {
        let Some(last) = self.table.numbers().pop() else {
            return;
        };
        let dropped = self.table.remove_before(number.min(last));
        if dropped.is_empty() {
            return;
        }
        let mut sequences = lock(&self.sequences);
        let mut slots = lock(&self.slots);
        for segment in dropped {
            sequences.remove(&segment.number);
            slots.unhinted.retain(|(unhinted, ..)| unhinted.number != segment.number);
            slots.dropped.push_back(segment.number);
            // Said in the next batch, which alone makes it true.
            self.oldest.fetch_max(segment.number + 1, Ordering::Relaxed);
            slots.leaving.push_back(segment);
        }
        drop(slots);
        self.slots_changed.notify_all();
    }

    pub(crate) fn scan(&self, number: u32, show: &mut dyn FnMut(Entry)) -> Result<(), ReadError> {
        let segment = self.table.get(number).ok_or(ReadError::Gone)?;
        let sequence = lock(&self.sequences).get(&number).copied().ok_or(ReadError::Gone)?;
        let file = || self.disk.locate(&slot_name(segment.slot));
        let end = segment.end.load(Ordering::Acquire);
        let mut scan = Scan::new(&*segment.file, number, segment.salt, end, sequence);
        scan.run(show).map_err(|source| ReadError::Io { file: file(), source })?;
        if scan.progress.end == end {
            return Ok(());
        }
        if self.table.get(number).is_none() {
            return Err(ReadError::Gone);
        }
        Err(ReadError::Damaged { file: file(), offset: u32::try_from(scan.progress.end).unwrap_or(u32::MAX) })
    }

    /// Copies what callers ask often out of the lock.
    pub(crate) fn note_spares(&self, slots: &Slots) {
        self.spares.store(slots.free.len() + slots.leaving.len(), Ordering::Relaxed);
        self.spare_failed.store(slots.failed.is_some(), Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            batches: get(&self.counts.batches),
            frames: get(&self.counts.frames),
            bytes: get(&self.counts.bytes),
            unknown: get(&self.counts.unknown),
            not_written: get(&self.counts.not_written),
            reopened: get(&self.counts.reopened),
            segments: self.table.len() as u64,
            spares: self.spares.load(Ordering::Relaxed) as u64,
            room_bytes: get(&self.room),
            full: !self.has_space(),
            broken: self.is_broken(),
        }
    }
}

/// What a turn of the writer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing was queued.
    Idle,
    /// A batch is over, one way or another.
    Over,
    /// Nothing is queued and nothing will be.
    Closed,
}

/// The one thread that writes.
pub(crate) struct Writer<T> {
    shared: Arc<Shared<T>>,
    chain: Chain,
    clock: Clock,
    sink: Sink<T>,
    /// The segment being written; none before the first one and after an error.
    current: Option<Arc<Segment>>,
    /// Digest over the present segment's batches.
    digest: u64,
    /// How the last segment ends that the next header names.
    before: Ending,
    sequence: u64,
    number_next: u32,
    /// The last batch's, for the next: its memory.
    buffer: Vec<u8>,
    last_error: Option<Arc<io::Error>>,
    reopen_at: Option<Instant>,
    spare_wait: Duration,
    rest_until: Option<Instant>,
    /// How many frames the last batches had.
    recent: [usize; 8],
}

impl<T> Writer<T> {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        options: Options,
        found: Found,
        clock: Clock,
        open: Arc<AtomicUsize>,
        sink: Sink<T>,
    ) -> io::Result<(Arc<Shared<T>>, Self)> {
        let room = (options.segment_bytes - 2 * HEADER_ROOM) as usize;
        let batch_bytes_max = BATCH_BYTES_MAX.min(room / 2);
        let mut slots = Slots { slot_next: found.slot_next, ..Slots::default() };
        slots.free.extend(found.free);
        let table = Table::default();
        let mut sequences = std::collections::BTreeMap::new();
        for (segment, ending, sequence) in &found.segments {
            table.insert(Arc::clone(segment));
            sequences.insert(segment.number, *sequence);
            if found.unhinted.contains(&segment.number) {
                slots.unhinted.push_back((Arc::clone(segment), *ending, *sequence));
            }
        }
        let last = found.segments.into_iter().next_back();
        let before = last.as_ref().map(|(_, ending, _)| *ending).unwrap_or_default();
        let current = last.map(|(segment, ..)| segment);
        let shared = Arc::new(Shared {
            disk,
            batch_bytes_max,
            queue: Mutex::new(Queue { buffer: vec![0; BATCH_HEADER], placed: Vec::new(), wake_at: 0, closed: false }),
            wake: Condvar::new(),
            table,
            slots: Mutex::new(slots),
            slots_changed: Condvar::new(),
            oldest: AtomicU32::new(found.oldest),
            fence_mark: AtomicU64::new(found.report.fence_mark),
            open,
            spares: AtomicUsize::new(0),
            spare_failed: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            room: AtomicU64::new(0),
            counts: Counts::default(),
            sequences: Mutex::new(sequences),
            options,
        });
        let mut writer = Self {
            shared: Arc::clone(&shared),
            chain: found.chain,
            clock,
            sink,
            digest: before.digest,
            before,
            current,
            sequence: found.sequence,
            number_next: found.number_next,
            buffer: vec![0; BATCH_HEADER],
            last_error: None,
            reopen_at: None,
            spare_wait: Duration::ZERO,
            rest_until: None,
            recent: [0; 8],
        };
        if writer.current.is_none() {
            // The very first segment is made here, so that a folder without space is an error at start.
            if lock(&shared.slots).free.is_empty() {
                super::keeper::make_spare(&shared)?;
            }
            writer.rotate().map_err(|why| match why {
                NotWritten::Full => io::ErrorKind::StorageFull.into(),
                NotWritten::Broken(error) => io::Error::new(error.kind(), error),
            })?;
        }
        writer.note_room();
        shared.note_spares(&lock(&shared.slots));
        Ok((shared, writer))
    }

    /// Opens the log anew at the next turn, for tests.
    #[cfg(test)]
    pub(crate) fn forget_failures(&mut self) {
        self.reopen_at = None;
    }

    pub(crate) fn waits_for_spares(&mut self, waits: bool) {
        self.spare_wait = if waits { SPARE_WAIT } else { Duration::ZERO };
    }

    /// Writes until the log is closed and nothing is queued.
    pub(crate) fn run(&mut self) {
        while self.turn(true) != Turn::Closed {}
    }

    /// Writes one batch of what is queued; waits for something to be queued where `wait` says so.
    pub(crate) fn turn(&mut self, wait: bool) -> Turn {
        let mut queue = lock(&self.shared.queue);
        if wait {
            queue = self.rest(queue);
        }
        while queue.placed.is_empty() {
            if queue.closed {
                return Turn::Closed;
            }
            if !wait {
                return Turn::Idle;
            }
            queue.wake_at = 1;
            queue = self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let mut buffer = std::mem::replace(&mut queue.buffer, std::mem::take(&mut self.buffer));
        let room = queue.placed.len();
        let placed = std::mem::replace(&mut queue.placed, Vec::with_capacity(room));
        drop(queue);
        self.recent.rotate_right(1);
        if let Some(first) = self.recent.first_mut() {
            *first = placed.len();
        }

        let done = self.commit(&mut buffer, placed);
        (self.sink)(done);
        if self.current.is_none() && self.last_error.is_some() {
            self.reopen();
        }
        // A buffer that one large batch has grown is not kept.
        buffer.truncate(BATCH_HEADER);
        if buffer.capacity() > 1 << 20 {
            buffer.shrink_to(1 << 20);
        }
        self.buffer = buffer;
        self.rest_until = Instant::now().checked_add(self.shared.options.pause);
        Turn::Over
    }

    /// Leaves the pause between commits while enough claims are open to share the next one. It ends early once as many
    /// frames are queued as any of the last batches had: whoever could share it is there.
    fn rest<'a>(&self, mut queue: MutexGuard<'a, Queue<T>>) -> MutexGuard<'a, Queue<T>>
    where
        T: 'a,
    {
        if self.shared.open.load(Ordering::Relaxed) <= self.shared.options.pause_above {
            return queue;
        }
        let Some(until) = self.rest_until else { return queue };
        let enough = self.recent.iter().copied().max().unwrap_or_default().max(1);
        while !queue.closed && queue.placed.len() < enough {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue.wake_at = enough;
            queue = self.shared.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.wake_at = 0;
        queue
    }

    fn commit(&mut self, buffer: &mut [u8], mut placed: Vec<Placed<T>>) -> Done<T> {
        if !self.fits(buffer.len())
            && let Err(why) = self.make_room()
        {
            add(&self.shared.counts.not_written, 1);
            return Done { outcome: Outcome::NotWritten(why), placed };
        }
        match self.write(buffer) {
            Ok((segment, base)) => {
                for frame in &mut placed {
                    frame.offset += base;
                }
                Done { outcome: Outcome::Durable { segment }, placed }
            }
            Err(error) => {
                add(&self.shared.counts.unknown, 1);
                Done { outcome: Outcome::Unknown(error), placed }
            }
        }
    }

    /// Whether a batch of `len` bytes fits the present segment, with an empty one behind it.
    fn fits(&self, len: usize) -> bool {
        let room = u64::from(self.shared.options.segment_bytes - HEADER_ROOM);
        let end = self.before.end + len as u64 + BATCH_HEADER as u64;
        self.current.is_some() && end <= room
    }

    fn note_room(&self) {
        let room = u64::from(self.shared.options.segment_bytes - HEADER_ROOM);
        let left = if self.current.is_some() { room.saturating_sub(self.before.end) } else { 0 };
        self.shared.room.store(left, Ordering::Relaxed);
    }

    /// Seals and writes one batch into the present segment. After an error there is none any more.
    fn write(&mut self, buffer: &mut [u8]) -> Result<(u32, u32), Arc<io::Error>> {
        let Some(segment) = self.current.clone() else {
            return Err(Arc::new(io::ErrorKind::NotConnected.into()));
        };
        let oldest = self.shared.oldest.load(Ordering::Relaxed);
        let seal = Seal {
            salt: segment.salt,
            sequence: self.sequence,
            time_us: (self.clock)(),
            fence_mark: self.shared.fence_mark.load(Ordering::Relaxed),
            oldest,
        };
        let frames = seal_batch(buffer, &seal);
        let start = self.before.end;
        if let Err(error) = segment.file.write_synced_at(buffer, start) {
            let error = Arc::new(error);
            tracing::error!(file = self.shared.disk.locate(&slot_name(segment.slot)), %error, "the log could not be written");
            self.current = None;
            self.last_error = Some(Arc::clone(&error));
            self.shared.broken.store(true, Ordering::Relaxed);
            self.note_room();
            return Err(error);
        }
        self.sequence += 1;
        self.digest = digest_over(self.digest, buffer);
        self.before.digest = self.digest;
        self.before.end += buffer.len() as u64;
        self.before.frames += frames;
        segment.end.store(self.before.end, Ordering::Release);
        segment.frames.store(self.before.frames, Ordering::Release);
        self.note_room();
        self.free_left(oldest);
        let counts = &self.shared.counts;
        add(&counts.batches, 1);
        add(&counts.frames, u64::from(frames));
        add(&counts.bytes, buffer.len() as u64);
        Ok((segment.number, u32::try_from(start).unwrap_or(u32::MAX)))
    }

    /// What was dropped before `oldest` is free: a durable batch or header says that it does not count.
    fn free_left(&self, oldest: u32) {
        let mut slots = lock(&self.shared.slots);
        if slots.leaving.is_empty() {
            return;
        }
        while let Some(segment) = slots.leaving.pop_front_if(|segment| segment.number < oldest) {
            slots.free.push_back((segment.slot, Arc::clone(&segment.file)));
            // There is space again, whatever stood in the way of a new slot.
            slots.failed = None;
        }
        self.shared.note_spares(&slots);
        drop(slots);
        self.shared.slots_changed.notify_all();
    }

    /// Goes on in the next segment, freeing what was dropped first where no other is ready.
    fn make_room(&mut self) -> Result<(), NotWritten> {
        if let Some(error) = self.last_error.clone()
            && self.reopen_at.is_some_and(|at| Instant::now() < at)
        {
            return Err(NotWritten::Broken(error));
        }
        let (none, leaving) = {
            let slots = lock(&self.shared.slots);
            (slots.free.is_empty(), !slots.leaving.is_empty())
        };
        if none && leaving && self.current.is_some() {
            let mut empty = vec![0; BATCH_HEADER];
            // Whether it worked shows in what is free now.
            let _ = self.write(&mut empty);
        }
        self.rotate()
    }

    fn reopen(&mut self) {
        match self.rotate() {
            Ok(()) => add(&self.shared.counts.reopened, 1),
            Err(error) => {
                tracing::error!(%error, "the log stays closed after an error and is tried again")
            }
        }
        self.reopen_at = Instant::now().checked_add(REOPEN_EVERY);
    }

    /// Opens the next segment.
    fn rotate(&mut self) -> Result<(), NotWritten> {
        let Some((slot, file)) = self.take_spare() else {
            self.shared.slots_changed.notify_all();
            return Err(NotWritten::Full);
        };
        let number = self.number_next;
        // Never used twice, even where this one comes to nothing.
        self.number_next += 1;
        let opened = self.open_segment(number, &*file);
        self.reopen_at = Instant::now().checked_add(REOPEN_EVERY);
        let salt = opened.map_err(|error| {
            // The slot is not used again in this run: its file does not take writes.
            let error = Arc::new(error);
            self.last_error = Some(Arc::clone(&error));
            self.current = None;
            self.shared.broken.store(true, Ordering::Relaxed);
            self.note_room();
            NotWritten::Broken(error)
        })?;
        let segment = Arc::new(Segment {
            number,
            salt,
            slot,
            file,
            end: AtomicU64::new(u64::from(HEADER_ROOM)),
            frames: AtomicU32::new(0),
        });
        let sealed = std::mem::replace(&mut self.before, segment.ending(0));
        self.digest = 0;
        self.shared.table.insert(Arc::clone(&segment));
        let mut sequences = lock(&self.shared.sequences);
        sequences.insert(number, self.sequence);
        let mut slots = lock(&self.shared.slots);
        if let (Some(old), Some(first)) = (self.shared.table.get(sealed.number), sequences.get(&sealed.number)) {
            slots.unhinted.push_back((old, sealed, *first));
        }
        drop(slots);
        drop(sequences);
        self.current = Some(segment);
        self.last_error = None;
        self.shared.broken.store(false, Ordering::Relaxed);
        self.note_room();
        self.shared.slots_changed.notify_all();
        Ok(())
    }

    /// Writes a header, so that the segment before ends where it validly does, and then the chain's mark.
    fn open_segment(&mut self, number: u32, file: &dyn DiskFile) -> io::Result<u64> {
        let salt = self.shared.disk.salt()?;
        let header = Header {
            segment_bytes: self.shared.options.segment_bytes,
            salt,
            number,
            before: self.before,
            oldest: self.shared.oldest.load(Ordering::Relaxed),
            sequence: self.sequence,
            time_us: (self.clock)(),
            fence_mark: self.shared.fence_mark.load(Ordering::Relaxed),
            log_id: self.chain.log_id,
        };
        header.write(file)?;
        self.chain.opened(number, salt)?;
        Ok(salt)
    }

    /// A free slot; waits for one in the making.
    fn take_spare(&self) -> Option<(u32, Arc<dyn DiskFile>)> {
        let mut slots = lock(&self.shared.slots);
        let mut waited = Duration::ZERO;
        let since = Instant::now();
        while slots.free.is_empty() && slots.failed.is_none() && waited < self.spare_wait {
            self.shared.slots_changed.notify_all();
            let left = self.spare_wait.saturating_sub(waited);
            let changed = self.shared.slots_changed.wait_timeout(slots, left);
            slots = changed.unwrap_or_else(PoisonError::into_inner).0;
            waited = since.elapsed();
        }
        let spare = slots.free.pop_front();
        self.shared.note_spares(&slots);
        spare
    }
}
