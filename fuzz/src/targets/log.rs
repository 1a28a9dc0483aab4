//! Recovery of a damaged log: never a panic, never a record that nobody wrote, and where the log opens without a word
//! about loss, what is there is what was there at some moment.
//!
//! An input is damage, done to one of the logs in `bases`: which one, and then changes of its files. Each record's payload
//! follows from its id and a version, so that one that was invented is known.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use onceward_store::log::{
    Disk, DiskFile, Done, Entry, Frame, Kind, Log, Name, OpenReport, Options, Outcome, ReadError,
};

use crate::{Target, shape};

pub(crate) const TARGET: Target = Target {
    name: "log",
    run,
    bytes_max: 64,
    words: &["\u{0}", "\u{2}\u{0}", "\u{3}\u{1}", "\u{4}\u{1}", "\u{5}\u{1}\u{2}", "\u{6}", "\u{7}"],
};

const SEGMENT_BYTES: u32 = 16 << 10;
const KEYS: u64 = 9;
/// Changes that one input makes.
const CHANGES_MAX: usize = 8;

// ===== a folder in memory =====

type Files = BTreeMap<String, Vec<u8>>;

struct File(Mutex<Vec<u8>>);

/// Files in memory. Salts are drawn in order, so that the same run makes the same bytes.
struct Memory {
    files: Mutex<BTreeMap<String, Arc<File>>>,
    salt: AtomicU64,
}

impl Memory {
    fn of(files: &Files, salt: u64) -> Arc<Self> {
        let file = |bytes: &Vec<u8>| Arc::new(File(Mutex::new(bytes.clone())));
        let files = files.iter().map(|(name, bytes)| (name.clone(), file(bytes))).collect();
        Arc::new(Self { files: Mutex::new(files), salt: AtomicU64::new(salt) })
    }

    fn files(&self) -> Files {
        let files = self.files.lock().expect("not poisoned");
        files.iter().map(|(name, file)| (name.clone(), file.0.lock().expect("not poisoned").clone())).collect()
    }
}

fn gone(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<Name>> {
        let files = self.files();
        Ok(files.into_iter().map(|(name, bytes)| Name { name, len: bytes.len() as u64, file: true }).collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let files = self.files.lock().expect("not poisoned");
        files.get(name).map(|file| Arc::clone(file) as Arc<dyn DiskFile>).ok_or_else(|| gone(name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = Arc::new(File(Mutex::default()));
        self.files.lock().expect("not poisoned").insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock().expect("not poisoned");
        let file = files.remove(from).ok_or_else(|| gone(from))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().expect("not poisoned").remove(name).map(drop).ok_or_else(|| gone(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        Ok(())
    }

    fn salt(&self) -> io::Result<u64> {
        Ok(self.salt.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    fn locate(&self, name: &str) -> String {
        name.to_owned()
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock().expect("not poisoned");
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut all = self.0.lock().expect("not poisoned");
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn write_synced_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn take_space(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().expect("not poisoned").len() as u64)
    }
}

// ===== what is written =====

fn id_of(key: u64) -> [u8; 32] {
    std::array::from_fn(|at| u8::try_from((key * 31 + at as u64 * 7) % 251).unwrap_or(0))
}

/// What a key has at a version: its length varies, and nothing of it is left to chance.
fn payload(key: u64, version: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(key << 32 | version);
    let len = random.usize(0..400);
    let mut bytes = [key.to_be_bytes(), version.to_be_bytes()].concat();
    bytes.extend((0..len).map(|_| random.u8(..)));
    bytes
}

fn tag_of(payload: &[u8]) -> u64 {
    payload.get(15).copied().unwrap_or(255).into()
}

fn options(accept_loss: bool) -> Options {
    Options { segment_bytes: SEGMENT_BYTES, reserve_bytes: 0, accept_loss, tag_of, ..Options::default() }
}

/// A log that is written, and what it says of each batch.
struct Open {
    log: Log<()>,
    done: mpsc::Receiver<Done<()>>,
    shown: Vec<Entry>,
    report: OpenReport,
}

fn open(disk: &Arc<Memory>, accept_loss: bool) -> Result<Open, String> {
    let mut shown = Vec::new();
    let disk: Arc<dyn Disk> = Arc::clone(disk) as Arc<dyn Disk>;
    let opened = Log::<()>::open(disk, options(accept_loss), &mut |entry| shown.push(entry));
    let opened = opened.map_err(|error| error.to_string())?;
    let report = opened.report().clone();
    let time = AtomicU64::new(report.time_us);
    let clock = Arc::new(move || time.fetch_add(1000, Ordering::Relaxed) + 1);
    let (tell, done) = mpsc::channel();
    let sink = Box::new(move |batch| drop(tell.send(batch)));
    let log = opened.start(clock, Arc::default(), sink).map_err(|error| error.to_string())?;
    Ok(Open { log, done, shown, report })
}

impl Open {
    fn write(&self, kind: Kind, key: u64, version: u64) -> bool {
        let payload = if kind == Kind::Put { payload(key, version) } else { Vec::new() };
        let frame = Frame { kind, id: &id_of(key), keep_until_s: 9, payload: &payload };
        // A machine that is busy may take longer over the next segment than the log waits for it.
        (0..5).any(|_| {
            self.log.append(&frame, ()).is_ok()
                && matches!(self.done.recv().map(|done| done.outcome), Ok(Outcome::Durable { .. }))
        })
    }
}

// ===== the bases =====

struct Base {
    files: Files,
    /// What opening it shows, oldest first.
    frames: Vec<(Kind, u64, u64)>,
    /// How many of them are not in the last segment.
    settled: usize,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bases")
}

/// Writes the logs that damage is done to: within one segment, over several, and one that was released from the front.
///
/// # Errors
/// Where a file cannot be written.
pub fn make_bases() -> io::Result<()> {
    std::fs::create_dir_all(folder())?;
    for (number, (frames, release)) in [(12, false), (110, false), (160, true)].into_iter().enumerate() {
        let memory = Memory::of(&Files::new(), 77 + number as u64);
        let open = open(&memory, false).map_err(io::Error::other)?;
        for version in 0..frames {
            let key = version * 5 % KEYS;
            let kind = if version % 11 == 10 { Kind::Remove } else { Kind::Put };
            assert!(open.write(kind, key, version), "a log in memory is written");
            if release && version == 120 {
                let numbers = open.log.segments();
                open.log.release_before(numbers[numbers.len() / 2]);
            }
        }
        open.log.close();
        drop(open);
        std::fs::write(folder().join(format!("log-{number}")), packed(&memory.files()))?;
    }
    Ok(())
}

/// Files with their runs of zeros left out.
fn packed(files: &Files) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, number: usize| out.extend(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
    for (name, bytes) in files {
        number(&mut out, name.len());
        out.extend(name.as_bytes());
        number(&mut out, bytes.len());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let zeros = rest.iter().take_while(|byte| **byte == 0).count();
            // A run ends at eight zeros; fewer cost more than they save.
            let literal = rest[zeros..].windows(8).position(|window| window == [0; 8]).unwrap_or(rest.len() - zeros);
            number(&mut out, zeros);
            number(&mut out, literal);
            out.extend(&rest[zeros..zeros + literal]);
            rest = &rest[zeros + literal..];
        }
    }
    out
}

fn unpacked(mut packed: &[u8]) -> Option<Files> {
    fn number(packed: &mut &[u8]) -> Option<usize> {
        let (first, rest) = packed.split_first_chunk::<4>()?;
        *packed = rest;
        usize::try_from(u32::from_be_bytes(*first)).ok()
    }
    fn bytes<'a>(packed: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = packed.split_at_checked(len)?;
        *packed = rest;
        Some(taken)
    }
    let mut files = Files::new();
    while !packed.is_empty() {
        let len = number(&mut packed)?;
        let name = String::from_utf8(bytes(&mut packed, len)?.to_vec()).ok()?;
        let len = number(&mut packed)?;
        let mut content = Vec::new();
        while content.len() < len {
            let (zeros, literal) = (number(&mut packed)?, number(&mut packed)?);
            content.resize(content.len() + zeros, 0);
            content.extend(bytes(&mut packed, literal)?);
        }
        files.insert(name, content);
    }
    Some(files)
}

fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        (0..3)
            .map(|number| {
                let packed = std::fs::read(folder().join(format!("log-{number}"))).expect("the base is there");
                let files = unpacked(&packed).expect("the base is whole");
                let open = open(&Memory::of(&files, 1), false).expect("the base opens");
                let frames: Vec<_> = open.shown.iter().map(|entry| known(&open, entry)).collect();
                let last = open.shown.iter().map(|entry| entry.position.segment).max();
                let settled = open.shown.iter().filter(|entry| Some(entry.position.segment) < last).count();
                assert!(frames.len() >= 9, "the base holds something");
                Base { files, frames, settled }
            })
            .collect()
    })
}

/// What an entry is, checked to be something that was written.
fn known(open: &Open, entry: &Entry) -> (Kind, u64, u64) {
    let key = (0..KEYS).find(|key| id_of(*key).starts_with(&entry.id));
    let key = key.unwrap_or_else(|| panic!("an id that nobody wrote: {entry:?}"));
    if entry.kind != Kind::Put {
        return (entry.kind, key, 0);
    }
    let record = match open.log.read(entry.position, entry.len, &entry.id) {
        Ok(record) => record,
        // Where a hint says what a segment holds, its damage shows when it is read. The tag is the version's last byte.
        Err(ReadError::Damaged { .. }) => return (Kind::Put, key, entry.tag),
        Err(error) => panic!("what is shown is not there: {error}"),
    };
    let version = record.payload.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
    assert_eq!(record.id, id_of(key));
    assert_eq!(record.payload, payload(key, version), "a record that nobody wrote");
    assert_eq!(entry.tag, tag_of(&record.payload));
    (Kind::Put, key, version)
}

// ===== damage =====

/// Does what the input says to the files.
fn damage(files: &mut Files, input: &[u8]) {
    let mut rest = input.iter().copied();
    for _ in 0..CHANGES_MAX {
        let Some(what) = rest.next() else { return };
        let names: Vec<String> = files.keys().cloned().collect();
        let Some(count) = u8::try_from(names.len()).ok().filter(|count| *count > 0) else { return };
        let mut byte = || rest.next().unwrap_or(0);
        let (name, other) = (&names[usize::from(byte() % count)], &names[usize::from(byte() % count)]);
        let spot = u16::from_be_bytes([byte(), byte()]);
        let (value, len) = (byte(), usize::from(byte()) + 1);
        let source = files[other].clone();
        let Some(file) = files.get_mut(name) else { return };
        // Where something stands, and not in the zeros behind it, mostly.
        let used = file.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let reach = if what & 128 == 0 { used } else { file.len() };
        let at = usize::from(spot) * reach.max(1) / (1 << 16);
        let end = (at + len).min(file.len());
        match what & 7 {
            0 => file.get_mut(at).into_iter().for_each(|byte| *byte = value),
            1 => file.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (value % 8)),
            2 => file.get_mut(at..end).unwrap_or_default().fill(0),
            3 => file.truncate(at),
            4 => drop(files.remove(name)),
            5 => {
                // Something that stands elsewhere, checksums and all.
                let from = at.saturating_sub(usize::from(value) * 16);
                let piece = source.get(from..(from + len * 16).min(source.len())).unwrap_or_default().to_vec();
                let to = at & !15;
                let room = file.get_mut(to..).unwrap_or_default();
                let len = piece.len().min(room.len());
                room[..len].copy_from_slice(&piece[..len]);
            }
            6 => file.extend(std::iter::repeat_n(value, len * 64)),
            _ => drop(files.insert(format!("segment-{:05}", value % 12), source)),
        }
    }
}

fn run(input: &[u8]) -> u64 {
    let Some((first, changes)) = input.split_first() else { return 0 };
    let bases = bases();
    let base = &bases[usize::from(*first) % bases.len()];
    let mut files = base.files.clone();
    damage(&mut files, changes);
    let refusing = open(&Memory::of(&files, 99), false);
    let strict = match &refusing {
        Ok(opened) => {
            assert!(opened.report.losses.is_empty(), "a loss that nobody accepted");
            moment(base, &files, opened);
            shape(("opened", opened.report.cut.is_some(), opened.shown.len().checked_ilog2()))
        }
        Err(why) => shape(words(why)),
    };
    let memory = Memory::of(&files, 99);
    let accepting = match open(&memory, true) {
        Ok(opened) => {
            for entry in &opened.shown {
                let _ = known(&opened, entry);
            }
            let losses = opened.report.losses.len();
            if refusing.is_ok() {
                assert_eq!(losses, 0, "a loss of a log that opens without accepting one");
            }
            // It goes on from there.
            assert!(opened.write(Kind::Put, 3, 4711), "a log that was opened is written");
            opened.log.close();
            drop(opened);
            let again = open(&memory, false).unwrap_or_else(|why| panic!("it was opened, and is not again: {why}"));
            let last = again.shown.last().map(|entry| known(&again, entry));
            assert_eq!(last, Some((Kind::Put, 3, 4711)), "what was written after the loss is there");
            shape(losses.min(4))
        }
        Err(why) => shape(words(&why)),
    };
    shape((first % 3, strict, accepting))
}

/// What is shown is what the log held at some moment, and not before its last segment was begun.
fn moment(base: &Base, files: &Files, opened: &Open) {
    // Without a file of the log it is a folder in which there was none.
    if !files.keys().any(|name| base.files.contains_key(name)) {
        return;
    }
    let state = |frames: &[(Kind, u64, u64)]| -> BTreeMap<u64, u64> {
        let mut state = BTreeMap::new();
        for (kind, key, version) in frames {
            match kind {
                Kind::Put => drop(state.insert(*key, *version)),
                _ => drop(state.remove(key)),
            }
        }
        state
    };
    let shown: Vec<_> = opened.shown.iter().map(|entry| known(opened, entry)).collect();
    let found = state(&shown);
    let is_one = (base.settled..=base.frames.len()).any(|frames| state(&base.frames[..frames]) == found);
    assert!(is_one, "opened without a word, and what is there was never there: {found:?}");
}

/// A message without its numbers and names.
fn words(message: &str) -> String {
    message.chars().filter(|letter| !letter.is_ascii_digit()).take(60).collect()
}
