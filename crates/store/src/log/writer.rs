//! The writer: group commit, rotation to the next segment, and what happens after an error.

use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::batch::{BATCH_HEADER, Seal, digest_over, seal_batch};
use super::file::{Disk, DiskFile};
use super::recovery::Found;
use super::segment::{Chain, Ending, HEADER_ROOM, Header, Segment, Table, slot_name};
use super::shared::{Counts, Queue, Shared, Slots, add};
use super::{Clock, Done, NotWritten, Options, Outcome, Placed, Sink, lock};

/// The most bytes one batch holds, in segments large enough.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long the writer waits for a spare segment that is in the making.
const SPARE_WAIT: Duration = Duration::from_secs(2);
/// How often a log that failed is opened anew.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

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
        let mut sequences = BTreeMap::new();
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

/// Nobody needs a segment any more. Until then the keeper goes on: what was queued before the log was closed may need
/// another one.
impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        lock(&self.shared.slots).closed = true;
        self.shared.slots_changed.notify_all();
    }
}
