//! The index: where each record stands, in 32 bytes, in 256 tables by the id's first byte, so that growing never
//! rehashes everything, and a scan in the order of the ids visits one table after another.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use onceward_core::codec::{self, DecodeError};
use onceward_core::key::RecordId;
use onceward_core::record::{Micros, Record, State, Stored};
use tokio::sync::Notify;

use crate::log::Position;

/// How many tables there are.
pub(crate) const SHARDS: usize = 256;

/// The first half of an id: enough to tell ten million apart.
pub(crate) type Half = [u8; 16];

pub(crate) fn half(id: &RecordId) -> Half {
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(id.0) {
        *to = from;
    }
    half
}

/// Where one record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) id: Half,
    pub(crate) segment: u32,
    /// The offset in units of 16 bytes, 22 bits, and the length class, 10 bits.
    place: u32,
    /// The second in which it ends, rounded up; 0: it has no end.
    pub(crate) keep_until_s: u32,
    /// Whose it is, by the number that [`super::tenants`] gave.
    pub(crate) tenant: u32,
}

impl Slot {
    pub(crate) fn new(id: Half, position: Position, len: usize, keep_until_s: u32) -> Self {
        let place = (position.offset / 16) << 10 | class_of(len);
        Self { id, segment: position.segment, place, keep_until_s, tenant: 0 }
    }

    pub(crate) fn of(self, tenant: u32) -> Self {
        Self { tenant, ..self }
    }

    pub(crate) fn position(&self) -> Position {
        Position { segment: self.segment, offset: (self.place >> 10) * 16 }
    }

    /// At least the record's length, at most a sixteenth more.
    pub(crate) fn len(&self) -> usize {
        len_of(self.place & 0x3ff)
    }

    /// Whether it has certainly ended; within its last second only the record itself can tell.
    pub(crate) fn has_ended(&self, now: Micros) -> bool {
        self.keep_until_s != 0 && u64::from(self.keep_until_s) * 1_000_000 <= now.0
    }

    fn hash(id: &Half) -> u64 {
        // Ids are uniform already. The first byte names the table, so it is left out.
        let [_, bytes @ ..] = id;
        bytes.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
    }
}

/// The second in which a record ends, rounded up; 0 for one without an end.
pub(crate) fn seconds(keep_until: Micros) -> u32 {
    u32::try_from(keep_until.0.div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// The smallest class that holds `len`: four bits of mantissa, six of exponent.
fn class_of(len: usize) -> u32 {
    let len = u32::try_from(len).unwrap_or(u32::MAX >> 1);
    if len < 16 {
        return len;
    }
    let shift = 27 - len.leading_zeros();
    let mantissa = len.div_ceil(1 << shift);
    // A mantissa that rounds up to the next power of two carries into the exponent.
    (shift << 4) + mantissa
}

fn len_of(class: u32) -> usize {
    if class < 32 {
        return class as usize;
    }
    let shift = (class >> 4) - 1;
    ((16 + (class & 15)) as usize) << shift
}

/// A record in flight or unknown, whole.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    /// The store's block as it is now.
    pub(crate) stored: Stored,
    pub(crate) state: State,
    /// The record as it was written: renewals since are only in `stored`.
    pub(crate) bytes: Bytes,
    /// It counts as a claim at work, for the pause between commits.
    pub(crate) counted: bool,
}

impl Open {
    pub(crate) fn record(&self) -> Result<Record, DecodeError> {
        let record = codec::decode(&self.bytes)?;
        Ok(Record { stored: self.stored, ..record })
    }
}

/// Ids are a keyed hash: any eight of their bytes will do for a table.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some((_, last)) = bytes.split_last_chunk() {
            self.0 ^= u64::from_le_bytes(*last);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

/// A map by whole ids.
pub(crate) type Ids<T> = HashMap<RecordId, T, BuildHasherDefault<IdHasher>>;

/// One table of the index, and what is open among its ids.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    slots: HashTable<Slot>,
    pub(crate) open: Ids<Open>,
    /// Ids with a write on its way, and who waits for its end.
    pub(crate) pending: Ids<Option<Arc<Notify>>>,
}

impl Shard {
    pub(crate) fn get(&self, id: &Half) -> Option<Slot> {
        self.slots.find(Slot::hash(id), |slot| slot.id == *id).copied()
    }

    /// Puts a slot in; returns the one it takes the place of.
    pub(crate) fn put(&mut self, slot: Slot) -> Option<Slot> {
        match self.slots.entry(Slot::hash(&slot.id), |there| there.id == slot.id, |there| Slot::hash(&there.id)) {
            Entry::Occupied(mut there) => Some(std::mem::replace(there.get_mut(), slot)),
            Entry::Vacant(place) => {
                place.insert(slot);
                None
            }
        }
    }

    pub(crate) fn take(&mut self, id: &Half) -> Option<Slot> {
        self.slots.find_entry(Slot::hash(id), |slot| slot.id == *id).ok().map(|there| there.remove().0)
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Takes out at most `limit` slots that have ended at `now` and that nobody is writing to.
    pub(crate) fn take_ended(&mut self, now: Micros, limit: usize) -> Vec<Slot> {
        let busy: Vec<Half> = self.pending.keys().map(half).collect();
        let mut room = limit;
        let ended = self.slots.extract_if(|slot| {
            let ends = room > 0 && slot.has_ended(now) && !busy.contains(&slot.id);
            room -= usize::from(ends);
            ends
        });
        ended.collect()
    }

    /// Gives back memory that a shrunken table no longer needs.
    pub(crate) fn shrink(&mut self) {
        if self.slots.len() * 4 < self.slots.capacity() {
            self.slots.shrink_to(self.slots.len() * 2, |slot| Slot::hash(&slot.id));
        }
    }
}

/// All tables.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Box<[Mutex<Shard>]>,
}

impl Default for Index {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Index {
    /// The table that an id beginning with `first` belongs to.
    pub(crate) fn shard(&self, first: u8) -> std::sync::MutexGuard<'_, Shard> {
        let shard = self.shards.get(usize::from(first));
        #[expect(clippy::expect_used, reason = "there are as many tables as a byte has values")]
        crate::log::lock(shard.expect("256 tables"))
    }

    pub(crate) fn of(&self, id: &Half) -> std::sync::MutexGuard<'_, Shard> {
        let [first, ..] = *id;
        self.shard(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_class_holds_its_length_and_little_more() {
        assert_eq!(size_of::<Slot>(), 32);
        for len in (0..100_000).chain([1 << 20, (1 << 24) + 31, 12_345_678]) {
            let class = class_of(len);
            assert!(class < 1 << 10);
            assert!(len_of(class) >= len && len_of(class) <= len + len / 16 + 1, "{len}: {}", len_of(class));
        }
    }

    #[test]
    fn a_slot_keeps_its_position_to_the_end_of_the_largest_segment() {
        let position = Position { segment: u32::MAX, offset: (64 << 20) - 16 };
        let slot = Slot::new([1; 16], position, 300, 9);
        assert_eq!(slot.position(), position);
        assert!(slot.len() >= 300);
    }
}
