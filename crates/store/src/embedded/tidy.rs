//! Keeping the store small: ended records leave the index, segments without live ones are dropped, and the few that
//! live on in the oldest segment are copied to the log's end, a bounded step at a time.

use std::time::Duration;

use onceward_core::key::RecordId;
use onceward_core::record::{Micros, Seen};

use super::Inner;
use super::index::{Half, Index, SHARDS, Slot, half};
use crate::log::lock;
use crate::{StoreError, Swept};

/// Records copied forward in one step, which comes with each commit and each table swept.
const MOVES_PER_STEP: usize = 64;

/// Where tidying stands.
#[derive(Debug, Default)]
pub(super) struct Tidy {
    /// The next table to sweep.
    sweep_next: u8,
    /// The segment whose live records are being copied, and the next table to look for them in.
    moving: Option<(u32, usize)>,
    /// Whether copying waits for as long as it can.
    waits: bool,
}

/// Whether a record seen so is held in memory whole.
fn is_open(seen: Seen) -> bool {
    matches!(seen, Seen::InFlight | Seen::Abandoned | Seen::Unknown)
}

/// The first `limit` ids behind `after`, in order, and whether there are more.
pub(super) fn ids_after(
    index: &Index,
    after: Option<&RecordId>,
    limit: usize,
    seen: Option<Seen>,
    now: Micros,
) -> (Vec<Half>, bool) {
    let after = after.map(half);
    let first = after.map_or(0, |[first, ..]| first);
    let behind = |id: &Half| after.is_none_or(|after| *id > after);
    let mut found: Vec<Half> = Vec::new();
    for table in first..=u8::MAX {
        let shard = index.shard(table);
        let mut here: Vec<Half> = if seen.is_some_and(is_open) {
            shard.open.keys().map(half).filter(behind).collect()
        } else {
            shard.slots().filter(|slot| behind(&slot.id) && !slot.has_ended(now)).map(|slot| slot.id).collect()
        };
        drop(shard);
        here.sort_unstable();
        let room = limit - found.len();
        if here.len() > room {
            here.truncate(room);
            found.append(&mut here);
            return (found, true);
        }
        found.append(&mut here);
    }
    (found, false)
}

impl Inner {
    /// Takes records that ended `waits` ago out of the index, table by table, until `limit` or once around.
    pub(super) async fn sweep(&self, limit: usize, waits: Duration) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        lock(&self.state.tidy).waits = waits > Duration::ZERO;
        for _ in 0..SHARDS {
            let left = limit.saturating_sub(usize::try_from(swept.removed).unwrap_or(usize::MAX));
            let removed = self.sweep_table(left, waits);
            swept.removed += removed as u64;
            if removed == left {
                swept.more = true;
                break;
            }
            self.tidy_step();
            // A table of ten million records' store takes some tens of microseconds.
            tokio::task::yield_now().await;
        }
        self.tidy_step();
        Ok(swept)
    }

    /// Takes at most `limit` records that ended `waits` ago out of the next table; how many it were.
    fn sweep_table(&self, limit: usize, waits: Duration) -> usize {
        let now = self.state.clock.now();
        let ended_by = Micros(now.0.saturating_sub(u64::try_from(waits.as_micros()).unwrap_or(u64::MAX)));
        let table = lock(&self.state.tidy).sweep_next;
        let mut shard = self.state.index.shard(table);
        let ended = shard.take_ended(ended_by, limit);
        shard.shrink();
        for open in shard.open.values_mut() {
            // A holder that died without a word no longer makes others wait for it.
            let counts = open.counted && open.stored.lease_until > now;
            self.state.count_claim(open, counts);
        }
        drop(shard);
        for slot in &ended {
            self.state.count_out(slot);
        }
        if ended.len() < limit {
            lock(&self.state.tidy).sweep_next = table.wrapping_add(1);
        }
        ended.len()
    }

    /// Drops the oldest segments if nothing in them lives, and copies on a few records of the oldest where that is
    /// worth it.
    pub(super) fn tidy_step(&self) {
        let mut tidy = lock(&self.state.tidy);
        // Batches in the segment applied last, and in those behind it, may be durable and not yet in the index.
        let applied = self.state.applied_segment();
        let segments = self.log.segments();
        let sealed = segments.get(..segments.partition_point(|number| *number < applied)).unwrap_or_default();
        let (dead, oldest) = {
            let mut live = lock(&self.state.live);
            let lives = |number: &&u32| live.get(*number).is_some_and(|live| live.records > 0);
            let oldest = sealed.iter().find(lives).copied();
            let dead = oldest.unwrap_or(applied);
            *live = live.split_off(&dead);
            let total: u64 = live.values().map(|live| live.bytes).sum();
            (dead, oldest.and_then(|oldest| Some((oldest, live.get(&oldest)?.bytes, total))))
        };
        if sealed.first().is_some_and(|first| *first < dead) {
            self.log.release_before(dead);
        }
        let Some((oldest, bytes, total)) = oldest else {
            tidy.moving = None;
            return;
        };
        if tidy.moving.is_none_or(|(segment, _)| segment != oldest) {
            let is_worth = self.worth_moving(bytes, total, segments.len(), tidy.waits);
            tidy.moving = is_worth.then_some((oldest, 0));
        }
        if let Some((segment, table)) = tidy.moving {
            tidy.moving = Some((segment, self.move_some(segment, table)));
        }
    }

    /// Whether copying a segment's `bytes` of live records on is worth it: they are few, or dead records behind them
    /// have made the log twice as long as what lives in it. While it waits: where the log is four times as long, or
    /// nothing else makes room.
    fn worth_moving(&self, bytes: u64, total: u64, segments: usize, waits: bool) -> bool {
        let segment = u64::from(self.log.segment_bytes());
        if !self.log.has_space() {
            return bytes < segment * 3 / 4;
        }
        if waits {
            return segments as u64 * segment > 4 * total + 8 * segment;
        }
        bytes <= segment / 4 || segments as u64 * segment > 2 * total + 4 * segment
    }

    /// Copies on at most [`MOVES_PER_STEP`] records of `segment` that the table holds; returns the next one to look at.
    fn move_some(&self, segment: u32, table: usize) -> usize {
        let Ok(first) = u8::try_from(table) else { return 0 };
        let now = self.state.clock.now();
        let shard = self.state.index.shard(first);
        let here: Vec<Slot> = shard
            .slots()
            .filter(|slot| slot.segment == segment && !slot.has_ended(now))
            .take(MOVES_PER_STEP)
            .copied()
            .collect();
        drop(shard);
        // What is queued moves with the next batch; what cannot be now is looked at again the next time around.
        for slot in &here {
            self.move_on(slot);
        }
        (table + 1) % SHARDS
    }
}
