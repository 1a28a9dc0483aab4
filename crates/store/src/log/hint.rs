//! Hints: what a sealed segment holds, without its payloads, so that opening a log need not read it.
//!
//! A hint is bound to its segment by number, salt, end, digest and count of frames, all of which the next segment's
//! header names too. One that is missing, torn, or of something else is not used: the segment is read instead.
//!
//! ```text
//! magic 8 | format 2 | 0 2 | entries 4 | number 4 | frames 4 | salt 8 | end 8 | digest 8 | tags 4 | 0 4 | check 8
//! tags:  8 each, every one once
//! entry: half of the id 16 | offset 4 | length in 16 bytes 3, kind 1 | keep-until 4 | which of the tags 4
//! ```

use std::collections::HashMap;
use std::io;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::batch::{ALIGN, Kind, array, put, u32_at, u64_at};
use super::file::{Disk, read_vec};
use super::scan::Scan;
use super::segment::{Ending, Segment};
use super::{Entry, Position};

const MAGIC: &[u8; 8] = b"ONCEHNT\n";
/// The format of hints; one of another is made again.
const FORMAT: u16 = 2;
const HEADER: usize = 64;
const TAG: usize = 8;
const ENTRY: usize = 32;

/// The name of a segment's hint.
pub(crate) fn hint_name(number: u32) -> String {
    format!("hint-{number:010}")
}

/// The segment a file name is the hint of.
pub(crate) fn hinted(name: &str) -> Option<u32> {
    name.strip_prefix("hint-").filter(|digits| digits.len() == 10)?.parse().ok()
}

/// Reads a sealed segment and writes its hint. False where the segment is not as `ending` has it, which then gets none.
pub(crate) fn write_hint(
    disk: &dyn Disk,
    segment: &Segment,
    ending: &Ending,
    sequence: u64,
    tag_of: fn(&[u8]) -> u64,
) -> io::Result<bool> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut latest: HashMap<[u8; 16], usize> = HashMap::new();
    let scan = Scan::new(&*segment.file, segment.number, segment.salt, ending.end, sequence);
    let mut scan = scan.tagging(tag_of);
    // Only the last frame of an id matters: whoever reads the hint would let it win anyway.
    scan.run(&mut |entry| match latest.get(&entry.id).and_then(|at| entries.get_mut(*at)) {
        Some(earlier) => *earlier = entry,
        None => {
            latest.insert(entry.id, entries.len());
            entries.push(entry);
        }
    })?;
    let progress = scan.progress;
    if (progress.end, progress.digest, progress.frames) != (ending.end, ending.digest, ending.frames) {
        return Ok(false);
    }
    let bytes = encode(&entries, ending);
    let name = hint_name(segment.number);
    let new = format!("{name}.new");
    let file = disk.create(&new)?;
    file.write_at(&bytes, 0)?;
    file.sync()?;
    disk.rename(&new, &name)?;
    Ok(true)
}

fn encode(entries: &[Entry], ending: &Ending) -> Vec<u8> {
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    let mut tags: Vec<u8> = Vec::new();
    for entry in entries {
        let next = u32::try_from(numbers.len()).unwrap_or_default();
        numbers.entry(entry.tag).or_insert_with(|| {
            tags.extend_from_slice(&entry.tag.to_le_bytes());
            next
        });
    }
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(&tags);
    for entry in entries {
        bytes.extend_from_slice(&entry.id);
        bytes.extend_from_slice(&entry.position.offset.to_le_bytes());
        let units = u32::try_from(entry.len / ALIGN).unwrap_or_default();
        bytes.extend_from_slice(&(units | u32::from(entry.kind.to_byte()) << 24).to_le_bytes());
        bytes.extend_from_slice(&entry.keep_until_s.to_le_bytes());
        bytes.extend_from_slice(&numbers.get(&entry.tag).copied().unwrap_or_default().to_le_bytes());
    }
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, 8, &FORMAT.to_le_bytes());
    put(&mut bytes, 12, &u32::try_from(entries.len()).unwrap_or_default().to_le_bytes());
    put(&mut bytes, 16, &ending.number.to_le_bytes());
    put(&mut bytes, 20, &ending.frames.to_le_bytes());
    put(&mut bytes, 24, &ending.salt.to_le_bytes());
    put(&mut bytes, 32, &ending.end.to_le_bytes());
    put(&mut bytes, 40, &ending.digest.to_le_bytes());
    put(&mut bytes, 48, &u32::try_from(numbers.len()).unwrap_or_default().to_le_bytes());
    let check = check_of(&bytes);
    put(&mut bytes, 56, &check.to_le_bytes());
    bytes
}

/// Over everything but the check itself.
fn check_of(bytes: &[u8]) -> u64 {
    let head = xxh3_64_with_seed(bytes.get(..56).unwrap_or_default(), 0);
    xxh3_64_with_seed(bytes.get(HEADER..).unwrap_or_default(), head)
}

/// The entries of the segment that ends so, or nothing where its hint cannot be used.
pub(crate) fn read_hint(disk: &dyn Disk, ending: &Ending) -> Option<Hint> {
    let file = disk.open(&hint_name(ending.number)).ok()?;
    let len = usize::try_from(file.len().ok()?).ok()?;
    // A foreign file of that name is not read into memory whole.
    (len <= HEADER + ending.frames as usize * (TAG + ENTRY)).then_some(())?;
    let bytes = read_vec(&*file, 0, len).ok()?;
    is_bound(&bytes, ending).filter(|bound| *bound)?;
    Some(Hint { bytes, number: ending.number })
}

/// A hint that was read and is its segment's.
pub(crate) struct Hint {
    bytes: Vec<u8>,
    number: u32,
}

impl Hint {
    /// What it holds.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let (tags, entries) = parts(&self.bytes).unwrap_or_default();
        entries.chunks_exact(ENTRY).filter_map(move |entry| decode(entry, tags, self.number))
    }
}

fn is_bound(bytes: &[u8], ending: &Ending) -> Option<bool> {
    let (tags, entries) = parts(bytes)?;
    Some(
        bytes.get(..8)? == MAGIC
            && array(bytes, 8).map(u16::from_le_bytes)? == FORMAT
            && u32_at(bytes, 16)? == ending.number
            && u32_at(bytes, 20)? == ending.frames
            && u64_at(bytes, 24)? == ending.salt
            && u64_at(bytes, 32)? == ending.end
            && u64_at(bytes, 40)? == ending.digest
            && u64_at(bytes, 56)? == check_of(bytes)
            && entries.len() == u32_at(bytes, 12)? as usize * ENTRY
            && entries.chunks_exact(ENTRY).all(|entry| decode(entry, tags, ending.number).is_some()),
    )
}

/// Tags and entries.
fn parts(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes.get(HEADER..)?.split_at_checked((u32_at(bytes, 48)? as usize).checked_mul(TAG)?)
}

fn decode(entry: &[u8], tags: &[u8], segment: u32) -> Option<Entry> {
    let word = u32_at(entry, 20)?;
    Some(Entry {
        id: array(entry, 0)?,
        kind: Kind::from_byte((word >> 24) as u8)?,
        keep_until_s: u32_at(entry, 24)?,
        position: Position { segment, offset: u32_at(entry, 16)? },
        len: (word & 0x00ff_ffff) as usize * ALIGN,
        tag: u64_at(tags, u32_at(entry, 28)? as usize * TAG)?,
    })
}
