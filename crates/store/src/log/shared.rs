//! What the log's handle, its writer and its keeper share: the queue, the segments, and the counts.

use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::batch::{Frame, PAYLOAD_BYTES_MAX, encode_frame, frame_len};
use super::file::{Disk, DiskFile};
use super::segment::{Ending, Segment, Table};
use super::{AppendError, Options, Placed, Stats, lock};

/// What is queued for the next batch.
pub(crate) struct Queue<T> {
    /// Room for a batch header, then frames.
    pub(crate) buffer: Vec<u8>,
    pub(crate) placed: Vec<Placed<T>>,
    /// The writer sleeps until so many frames are queued; 0: it does not sleep.
    pub(crate) wake_at: usize,
    pub(crate) closed: bool,
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
    pub(crate) queue: Mutex<Queue<T>>,
    pub(crate) wake: Condvar,
    pub(crate) table: Table,
    pub(crate) slots: Mutex<Slots>,
    /// Woken when the keeper has something to do, or has made a spare.
    pub(crate) slots_changed: Condvar,
    pub(crate) oldest: AtomicU32,
    pub(crate) fence_mark: AtomicU64,
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) spares: AtomicUsize,
    pub(crate) spare_failed: AtomicBool,
    pub(crate) broken: AtomicBool,
    pub(crate) room: AtomicU64,
    pub(crate) counts: Counts,
    pub(crate) batch_bytes_max: usize,
    /// First sequence number of each segment that is needed to read it again.
    pub(crate) sequences: Mutex<BTreeMap<u32, u64>>,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) batches: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) not_written: AtomicU64,
    pub(crate) reopened: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
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

    /// Takes no more frames. The writer ends once it has written what is queued, and the keeper after it.
    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
        self.wake.notify_all();
    }

    pub(crate) fn has_space(&self) -> bool {
        if self.spares.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let enough = self.room.load(Ordering::Relaxed)
            > u64::from(self.options.reserve_bytes.min(self.options.segment_bytes / 4));
        // A log that is being opened anew says itself what it has not written.
        !self.spare_failed.load(Ordering::Relaxed) && (enough || self.is_broken())
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
        // Whoever waits for space before he appends anything would wait for that batch.
        self.note_spares(&slots);
        drop(slots);
        self.slots_changed.notify_all();
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
