//! What a finished batch changes, and the one task that wakes its callers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use onceward_core::key::RecordId;
use onceward_core::record::{Fence, Micros};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};

use super::Inner;
use super::clock::Started;
use super::index::{Index, Open, Shard, Slot, half};
use super::tenants::Tenants;
use super::tidy::Tidy;
use crate::log::{Done, Kind as FrameKind, NotWritten, Outcome, Placed, Position, Sink, lock};
use crate::watch::Watchers;

/// What a write changes once it is durable.
#[derive(Debug)]
pub(super) enum Change {
    /// The record is now another; it is held whole while it is open.
    Put {
        keep_until_s: u32,
        /// The tag of its tenant.
        tenant: u64,
        open: Option<Open>,
    },
    Remove,
    /// The record is where it was not, unless it has changed since.
    Move {
        from: Slot,
    },
}

impl Change {
    pub(super) fn kind(&self) -> FrameKind {
        match self {
            Self::Put { .. } | Self::Move { .. } => FrameKind::Put,
            Self::Remove => FrameKind::Remove,
        }
    }

    pub(super) fn keep_until_s(&self) -> u32 {
        match self {
            Self::Put { keep_until_s, .. } => *keep_until_s,
            Self::Move { from } => from.keep_until_s,
            Self::Remove => 0,
        }
    }
}

/// Why a write is not durable.
#[derive(Debug)]
pub(super) enum Failure {
    Unknown(Arc<std::io::Error>),
    NotWritten(NotWritten),
}

/// What goes through the log beside a frame.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: RecordId,
    pub(super) change: Change,
    pub(super) reply: Option<oneshot::Sender<Result<(), Failure>>>,
}

/// What of a segment is in the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// Slots counted, not yet part of the state's counts.
#[derive(Debug, Default)]
pub(super) struct Counted {
    records: usize,
    open: usize,
    live: BTreeMap<u32, Live>,
}

impl Counted {
    pub(super) fn add(&mut self, slot: &Slot) {
        self.records += 1;
        self.open += usize::from(slot.keep_until_s == 0);
        let live = self.live.entry(slot.segment).or_default();
        live.records += 1;
        live.bytes += slot.len() as u64;
    }
}

/// Everything in memory.
pub(super) struct State {
    pub(super) index: Index,
    pub(super) clock: Started,
    pub(super) records_max: usize,
    pub(super) records: AtomicUsize,
    pub(super) open: AtomicUsize,
    /// Claims that are at work as far as is known, for the pause between commits.
    pub(super) claims: Arc<AtomicUsize>,
    mark: AtomicU64,
    /// The segment of the last batch that was applied.
    applied: AtomicU32,
    /// What counts of each segment.
    pub(super) live: Mutex<BTreeMap<u32, Live>>,
    /// What each tenant takes up.
    pub(super) tenants: Mutex<Tenants>,
    pub(super) watchers: Watchers,
    /// Told after each batch, for writes that met a full queue.
    pub(super) room: Arc<Notify>,
    pub(super) tidy: Mutex<Tidy>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("records", &self.records).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new(index: Index, tenants: Tenants, clock: Started, records_max: usize, mark: u64) -> Self {
        Self {
            index,
            clock,
            records_max,
            records: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            claims: Arc::default(),
            mark: AtomicU64::new(mark),
            applied: AtomicU32::new(0),
            live: Mutex::default(),
            tenants: Mutex::new(tenants),
            watchers: Watchers::default(),
            room: Arc::default(),
            tidy: Mutex::default(),
        }
    }

    /// At least as large as every fence given out so far.
    pub(super) fn mark(&self) -> Fence {
        Fence(self.mark.load(Ordering::Relaxed))
    }

    pub(super) fn raise_mark(&self, fence: Fence) {
        self.mark.fetch_max(fence.0, Ordering::Relaxed);
    }

    /// Slots came into the index.
    pub(super) fn count(&self, counted: Counted) {
        self.records.fetch_add(counted.records, Ordering::Relaxed);
        self.open.fetch_add(counted.open, Ordering::Relaxed);
        let mut live = lock(&self.live);
        for (segment, more) in counted.live {
            let live = live.entry(segment).or_default();
            live.records += more.records;
            live.bytes += more.bytes;
        }
    }

    /// A slot left the index.
    pub(super) fn count_out(&self, slot: &Slot) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        self.open.fetch_sub(usize::from(slot.keep_until_s == 0), Ordering::Relaxed);
        if let Some(live) = lock(&self.live).get_mut(&slot.segment) {
            live.records = live.records.saturating_sub(1);
            live.bytes = live.bytes.saturating_sub(slot.len() as u64);
        }
        lock(&self.tenants).take(slot.tenant, slot.len());
    }

    /// Whether an open record counts as a claim at work.
    pub(super) fn count_claim(&self, open: &mut Open, counts: bool) {
        match (std::mem::replace(&mut open.counted, counts), counts) {
            (false, true) => _ = self.claims.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.claims.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Every batch in a segment before this one has been applied.
    pub(super) fn applied_segment(&self) -> u32 {
        self.applied.load(Ordering::Acquire)
    }

    pub(super) fn set_applied(&self, segment: u32) {
        self.applied.fetch_max(segment, Ordering::Release);
    }

    fn apply(&self, done: Done<Ticket>) {
        let Done { outcome, placed } = done;
        for Placed { ticket, offset, len } in placed {
            let Ticket { id, change, reply } = ticket;
            let moved = matches!(change, Change::Move { .. });
            let told = match &outcome {
                Outcome::Durable { segment } => {
                    let position = Position { segment: *segment, offset };
                    self.change(&id, change, position, len as usize);
                    Ok(())
                }
                Outcome::Unknown(error) => Err(Failure::Unknown(Arc::clone(error))),
                Outcome::NotWritten(why) => Err(Failure::NotWritten(why.clone())),
            };
            if moved {
                continue;
            }
            let waiting = self.index.of(&half(&id)).pending.remove(&id).flatten();
            if let Some(waiting) = waiting {
                waiting.notify_waiters();
            }
            if told.is_ok() {
                self.watchers.wake(&id);
            }
            // Whoever asked may have gone.
            let _ = reply.map(|reply| reply.send(told));
        }
        if let Outcome::Durable { segment } = outcome {
            self.set_applied(segment);
        }
        self.room.notify_waiters();
    }

    fn change(&self, id: &RecordId, change: Change, position: Position, len: usize) {
        let name = half(id);
        let mut shard = self.index.of(&name);
        let tenant = match &change {
            Change::Put { tenant, .. } => lock(&self.tenants).number(*tenant),
            Change::Move { from } => from.tenant,
            Change::Remove => 0,
        };
        let slot = Slot::new(name, position, len, change.keep_until_s()).of(tenant);
        let (before, after) = match change {
            Change::Move { from } if shard.get(&name) != Some(from) => (None, None),
            Change::Move { .. } => (shard.put(slot), Some(slot)),
            Change::Remove => {
                self.close(&mut shard, id);
                (shard.take(&name), None)
            }
            Change::Put { open: None, .. } => {
                self.close(&mut shard, id);
                (shard.put(slot), Some(slot))
            }
            Change::Put { open: Some(mut open), .. } => {
                let counts = open.stored.lease_until != Micros::ZERO;
                self.count_claim(&mut open, counts);
                if let Some(mut before) = shard.open.insert(*id, open) {
                    self.count_claim(&mut before, false);
                }
                (shard.put(slot), Some(slot))
            }
        };
        // Counted under the lock: a sweep that takes the slot out again must not be counted before it.
        if let Some(slot) = after {
            let mut counted = Counted::default();
            counted.add(&slot);
            self.count(counted);
            lock(&self.tenants).add(slot.tenant, slot.len());
        }
        if let Some(slot) = before {
            self.count_out(&slot);
        }
    }

    fn close(&self, shard: &mut Shard, id: &RecordId) {
        if let Some(mut open) = shard.open.remove(id) {
            self.count_claim(&mut open, false);
        }
    }
}

/// How long the writer rests when the task that applies batches is behind.
const BEHIND: Duration = Duration::from_millis(1);

/// Hands batches from the writer's thread to the task. Waits while too many are unapplied, unless the store is being
/// dropped, when nobody waits for them any more.
pub(super) fn sink(sender: mpsc::Sender<Done<Ticket>>, closing: Arc<AtomicBool>) -> Sink<Ticket> {
    Box::new(move |done| {
        let mut unsent = Some(done);
        while let Some(done) = unsent.take() {
            match sender.try_send(done) {
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(_)) if closing.load(Ordering::Relaxed) => {}
                Err(TrySendError::Full(done)) => {
                    unsent = Some(done);
                    std::thread::park_timeout(BEHIND);
                }
            }
        }
    })
}

/// The task: applies batches in order until the log is closed.
pub(super) async fn run(mut batches: mpsc::Receiver<Done<Ticket>>, state: Arc<State>, inner: Weak<Inner>) {
    while let Some(done) = batches.recv().await {
        state.apply(done);
        if let Some(inner) = inner.upgrade() {
            inner.tidy_step();
        }
    }
}
