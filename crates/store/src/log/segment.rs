//! Segments: their headers, the chain they form, and the table of those that are open.
//!
//! A segment is a slot (a file, written in advance, reused) while it carries one number of the chain. Its header
//! names its predecessor and where that one validly ends, so that of all segments only the last has an end that must
//! be found by reading. Two copies of the header stand at the slot's two ends and are written one after the other
//! before the first batch: a crash can spoil one of them, never both, so two bad copies are damage.
//!
//! The chain file says what the folder is and which segment was opened last, so that a lost last segment is noticed.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Arc, PoisonError, RwLock};
use std::collections::BTreeMap;
use std::io;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::batch::{array, put, u32_at, u64_at};
use super::file::{Disk, DiskFile, read_vec};

/// The format this code writes. It refuses higher ones.
pub const FORMAT: u16 = 1;
/// Room at each end of a slot for a copy of the header; batches lie between.
pub(crate) const HEADER_ROOM: u32 = 4096;
const HEADER: usize = 112;
const MAGIC: &[u8; 8] = b"ONCELOG\n";
const CHAIN_MAGIC: &[u8; 8] = b"ONCECHN\n";
/// The chain file's name.
pub(crate) const CHAIN: &str = "onceward-log";

/// The name of a slot's file.
pub(crate) fn slot_name(slot: u32) -> String {
    format!("segment-{slot:05}")
}

/// The slot a file name stands for.
pub(crate) fn slot_of(name: &str) -> Option<u32> {
    name.strip_prefix("segment-").filter(|digits| digits.len() >= 5)?.parse().ok()
}

/// Where a segment ends, as far as it is known from outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ending {
    /// The segment's number; 0: there is none.
    pub(crate) number: u32,
    pub(crate) salt: u64,
    /// The byte behind its last valid batch.
    pub(crate) end: u64,
    /// [`super::batch::digest_over`] all its batches.
    pub(crate) digest: u64,
    /// How many frames it holds.
    pub(crate) frames: u32,
}

/// A segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) segment_bytes: u32,
    pub(crate) salt: u64,
    pub(crate) number: u32,
    /// The segment before it.
    pub(crate) before: Ending,
    /// Segments before this one no longer counted.
    pub(crate) oldest: u32,
    /// The sequence number of its first batch.
    pub(crate) sequence: u64,
    /// The store's clock when it was opened.
    pub(crate) time_us: u64,
    pub(crate) fence_mark: u64,
    /// The log it belongs to.
    pub(crate) log_id: [u8; 16],
}

/// What stands where a header may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderCopy {
    /// Zeros, or the file ends before.
    Blank,
    Valid(Header),
    /// Of a format this code does not know.
    Newer(u16),
    Bad,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &FORMAT.to_le_bytes());
        put(&mut bytes, 12, &self.segment_bytes.to_le_bytes());
        put(&mut bytes, 16, &self.salt.to_le_bytes());
        put(&mut bytes, 24, &self.number.to_le_bytes());
        put(&mut bytes, 28, &self.before.number.to_le_bytes());
        put(&mut bytes, 32, &self.before.salt.to_le_bytes());
        put(&mut bytes, 40, &self.before.end.to_le_bytes());
        put(&mut bytes, 48, &self.before.digest.to_le_bytes());
        put(&mut bytes, 56, &self.before.frames.to_le_bytes());
        put(&mut bytes, 60, &self.oldest.to_le_bytes());
        put(&mut bytes, 64, &self.sequence.to_le_bytes());
        put(&mut bytes, 72, &self.time_us.to_le_bytes());
        put(&mut bytes, 80, &self.fence_mark.to_le_bytes());
        put(&mut bytes, 88, &self.log_id);
        let check = xxh3_64_with_seed(bytes.get(..104).unwrap_or_default(), self.salt);
        put(&mut bytes, 104, &check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> HeaderCopy {
        if bytes.iter().all(|byte| *byte == 0) {
            return HeaderCopy::Blank;
        }
        if bytes.get(..8) == Some(MAGIC)
            && let Some(format) = array(bytes, 8).map(u16::from_le_bytes)
            && format > FORMAT
        {
            return HeaderCopy::Newer(format);
        }
        Self::decode_known(bytes).map_or(HeaderCopy::Bad, HeaderCopy::Valid)
    }

    fn decode_known(bytes: &[u8]) -> Option<Self> {
        (bytes.get(..8)? == MAGIC).then_some(())?;
        let salt = u64_at(bytes, 16)?;
        (u64_at(bytes, 104)? == xxh3_64_with_seed(bytes.get(..104)?, salt)).then_some(())?;
        Some(Self {
            segment_bytes: u32_at(bytes, 12)?,
            salt,
            number: u32_at(bytes, 24)?,
            before: Ending {
                number: u32_at(bytes, 28)?,
                salt: u64_at(bytes, 32)?,
                end: u64_at(bytes, 40)?,
                digest: u64_at(bytes, 48)?,
                frames: u32_at(bytes, 56)?,
            },
            oldest: u32_at(bytes, 60)?,
            sequence: u64_at(bytes, 64)?,
            time_us: u64_at(bytes, 72)?,
            fence_mark: u64_at(bytes, 80)?,
            log_id: array(bytes, 88)?,
        })
    }

    /// Writes both copies, the one at the end first.
    pub(crate) fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        let bytes = self.encode();
        file.write_synced_at(&bytes, u64::from(self.segment_bytes - HEADER_ROOM))?;
        file.write_synced_at(&bytes, 0)
    }

    /// Blanks both copies, so that the slot carries no segment any more.
    pub(crate) fn wipe(file: &dyn DiskFile, segment_bytes: u32) -> io::Result<()> {
        for at in [0, u64::from(segment_bytes - HEADER_ROOM)] {
            // What is not there is blank.
            let there = read_vec(file, at, HEADER)?.len();
            file.write_at(&vec![0; there], at)?;
        }
        file.sync()
    }

    /// Reads both copies: the one at the front, then the one at the end.
    pub(crate) fn read(file: &dyn DiskFile, segment_bytes: u32) -> io::Result<(HeaderCopy, HeaderCopy)> {
        let front = read_vec(file, 0, HEADER)?;
        let back = read_vec(file, u64::from(segment_bytes - HEADER_ROOM), HEADER)?;
        Ok((Self::decode(&front), Self::decode(&back)))
    }
}

/// The chain file: what the folder is, and which segment was opened last.
///
/// ```text
/// 0     magic 8 | format 2 | 0 2 | segment bytes 4 | log id 16 | check 8
/// 4096  mark: number 4 | 0 4 | salt 8 | check 8        written in turn, so that
/// 8192  mark                                           a torn one leaves the other
/// ```
pub(crate) struct Chain {
    file: Arc<dyn DiskFile>,
    pub(crate) segment_bytes: u32,
    pub(crate) log_id: [u8; 16],
    /// Number and salt of the segment opened last; 0: none yet.
    pub(crate) last: (u32, u64),
    next_mark: u64,
}

/// Why a chain file could not be read.
#[derive(Debug)]
pub(crate) enum ChainError {
    Io(io::Error),
    Newer(u16),
    Bad,
}

impl Chain {
    const MARKS: [u64; 2] = [4096, 8192];

    pub(crate) fn make(disk: &dyn Disk, segment_bytes: u32) -> io::Result<Self> {
        let (low, high) = (disk.salt()?, disk.salt()?);
        let mut log_id = [0; 16];
        put(&mut log_id, 0, &low.to_le_bytes());
        put(&mut log_id, 8, &high.to_le_bytes());
        let mut bytes = Self::head(segment_bytes, &log_id).to_vec();
        bytes.resize(3 * 4096, 0);
        let new = format!("{CHAIN}.new");
        let file = disk.create(&new)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        disk.rename(&new, CHAIN)?;
        disk.sync_folder()?;
        Ok(Self { file, segment_bytes, log_id, last: (0, 0), next_mark: 0 })
    }

    fn head(segment_bytes: u32, log_id: &[u8; 16]) -> [u8; 40] {
        let mut head = [0; 40];
        put(&mut head, 0, CHAIN_MAGIC);
        put(&mut head, 8, &FORMAT.to_le_bytes());
        put(&mut head, 12, &segment_bytes.to_le_bytes());
        put(&mut head, 16, log_id);
        let check = xxh3_64_with_seed(head.get(..32).unwrap_or_default(), 0);
        put(&mut head, 32, &check.to_le_bytes());
        head
    }

    /// Makes a chain file that was made anew after a loss that of the segments which are there.
    pub(crate) fn adopt(&mut self, header: &Header) -> io::Result<()> {
        self.log_id = header.log_id;
        self.segment_bytes = header.segment_bytes;
        self.file.write_synced_at(&Self::head(self.segment_bytes, &self.log_id), 0)
    }

    pub(crate) fn read(disk: &dyn Disk) -> Result<Self, ChainError> {
        let file = disk.open(CHAIN).map_err(ChainError::Io)?;
        let bytes = read_vec(&*file, 0, 3 * 4096).map_err(ChainError::Io)?;
        let format = array(&bytes, 8).map_or(0, u16::from_le_bytes);
        if bytes.get(..8) == Some(CHAIN_MAGIC) && format > FORMAT {
            return Err(ChainError::Newer(format));
        }
        Self::decode(file, &bytes).ok_or(ChainError::Bad)
    }

    fn decode(file: Arc<dyn DiskFile>, bytes: &[u8]) -> Option<Self> {
        (bytes.get(..8)? == CHAIN_MAGIC).then_some(())?;
        (u64_at(bytes, 32)? == xxh3_64_with_seed(bytes.get(..32)?, 0)).then_some(())?;
        let mut last = (0, 0);
        let mut next_mark = 0;
        for (turn, place) in Self::MARKS.into_iter().enumerate() {
            let mark = bytes.get(usize::try_from(place).ok()?..)?;
            let (number, salt) = (u32_at(mark, 0)?, u64_at(mark, 8)?);
            if u64_at(mark, 16)? == xxh3_64_with_seed(mark.get(..16)?, 1) && number > last.0 {
                last = (number, salt);
                next_mark = turn as u64 + 1;
            }
        }
        let segment_bytes = u32_at(bytes, 12)?;
        (segment_bytes >= 4 * HEADER_ROOM).then_some(())?;
        Some(Self { file, segment_bytes, log_id: array(bytes, 16)?, last, next_mark })
    }

    /// Writes down that a segment is open, before its first batch.
    pub(crate) fn opened(&mut self, number: u32, salt: u64) -> io::Result<()> {
        let mut mark = [0; 24];
        put(&mut mark, 0, &number.to_le_bytes());
        put(&mut mark, 8, &salt.to_le_bytes());
        let check = xxh3_64_with_seed(mark.get(..16).unwrap_or_default(), 1);
        put(&mut mark, 16, &check.to_le_bytes());
        let [even, odd] = Self::MARKS;
        self.file.write_synced_at(&mark, if self.next_mark.is_multiple_of(2) { even } else { odd })?;
        self.next_mark += 1;
        self.last = (number, salt);
        Ok(())
    }
}

/// A segment that counts.
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) salt: u64,
    pub(crate) slot: u32,
    pub(crate) file: Arc<dyn DiskFile>,
    /// The byte behind its last batch.
    pub(crate) end: AtomicU64,
    /// How many frames it holds.
    pub(crate) frames: AtomicU32,
}

impl Segment {
    /// How it ends, given the digest over its batches.
    pub(crate) fn ending(&self, digest: u64) -> Ending {
        Ending {
            number: self.number,
            salt: self.salt,
            end: self.end.load(Ordering::Relaxed),
            digest,
            frames: self.frames.load(Ordering::Relaxed),
        }
    }
}

/// The segments that count, by number. Readers hold what they read, so that a slot may go to a new segment meanwhile:
/// they notice by its salt.
#[derive(Default)]
pub(crate) struct Table {
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
}

impl Table {
    pub(crate) fn get(&self, number: u32) -> Option<Arc<Segment>> {
        self.read().get(&number).cloned()
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.write().insert(segment.number, segment);
    }

    /// Takes out all segments before `oldest`, in their order.
    pub(crate) fn remove_before(&self, oldest: u32) -> Vec<Arc<Segment>> {
        let mut segments = self.write();
        let rest = segments.split_off(&oldest);
        std::mem::replace(&mut *segments, rest).into_values().collect()
    }

    /// Numbers of all segments, rising.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.read().keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> crate::sync::RwLockReadGuard<'_, BTreeMap<u32, Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> crate::sync::RwLockWriteGuard<'_, BTreeMap<u32, Arc<Segment>>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }
}
