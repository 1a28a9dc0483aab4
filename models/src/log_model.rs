//! Group commit: threads that append, one that writes, one that makes segments, over a folder in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex as Plain, PoisonError};

use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use shuttle::sync::mpsc;
use shuttle::thread;

use crate::log::{AppendError, Clock, Disk, DiskFile, Done, Frame, Kind, Log, Name, Options, Outcome};

const SEGMENT_BYTES: u32 = 16 << 10;

type Files = BTreeMap<String, Arc<File>>;

struct File(Plain<Vec<u8>>);

/// Files in memory. What it does is one step: the interleavings are those of the threads above it.
struct Memory {
    files: Plain<Files>,
    salt: Plain<u64>,
    /// Synced writes that fail, counted down.
    fails_in: Option<Arc<AtomicUsize>>,
}

struct Failing {
    file: Arc<File>,
    fails_in: Option<Arc<AtomicUsize>>,
}

fn open<T>(mutex: &Plain<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    fn new(fails_in: Option<usize>) -> Arc<Self> {
        let fails_in = fails_in.map(|writes| Arc::new(AtomicUsize::new(writes)));
        Arc::new(Self { files: Plain::default(), salt: Plain::new(9), fails_in })
    }

    /// As it is now, for another process.
    fn copy(&self) -> Arc<Self> {
        let copied = |file: &Arc<File>| Arc::new(File(Plain::new(open(&file.0).clone())));
        let files = open(&self.files).iter().map(|(name, file)| (name.clone(), copied(file))).collect();
        Arc::new(Self { files: Plain::new(files), salt: Plain::new(99), fails_in: None })
    }
}

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<Name>> {
        let files = open(&self.files);
        let name = |(name, file): (&String, &Arc<File>)| {
            let len = open(&file.0).len() as u64;
            Name { name: name.clone(), len, file: true }
        };
        Ok(files.iter().map(name).collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = open(&self.files).get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Failing { file, fails_in: self.fails_in.clone() }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        open(&self.files).insert(name.to_owned(), Arc::new(File(Plain::default())));
        self.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = open(&self.files);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        open(&self.files).remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_folder(&self) -> io::Result<()> {
        Ok(())
    }

    fn salt(&self) -> io::Result<u64> {
        let mut salt = open(&self.salt);
        *salt = salt.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Ok(*salt)
    }

    fn locate(&self, name: &str) -> String {
        name.to_owned()
    }
}

impl DiskFile for Failing {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = open(&self.file.0);
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut all = open(&self.file.0);
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        if let Some(place) = all.get_mut(offset..end) {
            place.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn write_synced_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(fails_in) = &self.fails_in {
            let left = fails_in.load(Ordering::SeqCst);
            fails_in.store(left.wrapping_sub(1), Ordering::SeqCst);
            if left == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        self.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn take_space(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(open(&self.file.0).len() as u64)
    }
}

fn id(ticket: u64) -> [u8; 32] {
    let mut id = [1; 32];
    for (to, from) in id.iter_mut().zip(ticket.to_be_bytes()) {
        *to = from;
    }
    id
}

/// The tickets whose frames another process would find.
fn found(disk: &Arc<Memory>) -> Vec<u64> {
    let mut found = Vec::new();
    let disk: Arc<dyn Disk> = disk.copy();
    let opened = Log::<u64>::open(disk, options(), &mut |entry| {
        found.push(entry.id.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)));
    });
    assert!(opened.is_ok(), "the log does not open: {:?}", opened.err().map(|error| error.to_string()));
    found
}

fn options() -> Options {
    let quick = std::time::Duration::ZERO;
    Options { segment_bytes: SEGMENT_BYTES, reserve_bytes: 0, pause: quick, ..Options::default() }
}

/// Whoever appends is told, once, and what is told durable is there for the next process at that moment.
pub fn everybody_is_told_and_what_is_durable_is_there() {
    run(2, 2, 100, None);
}

/// The same over the end of a segment, with the next one made beside it.
pub fn a_full_segment_is_followed_by_the_next() {
    run(2, 4, 1500, None);
}

/// The same with a write that fails: those of its batch are told "unknown", and what they wrote never comes back once
/// the log has written again.
pub fn a_batch_that_failed_is_unknown_for_all_and_for_good() {
    run(2, 2, 100, Some(3));
}

fn run(threads: u64, frames: u64, payload_bytes: usize, fails_in: Option<usize>) {
    let disk = Memory::new(fails_in);
    let opened = Log::<u64>::open(Arc::clone(&disk) as Arc<dyn Disk>, options(), &mut |_| {});
    let Ok(opened) = opened else { return assert!(fails_in.is_some(), "a new folder is refused") };
    let time = AtomicU64::new(1);
    let clock: Clock = Arc::new(move || time.fetch_add(1, Ordering::SeqCst));
    let (tell, told) = mpsc::channel();
    let at_that_moment = Arc::clone(&disk);
    let sink = Box::new(move |done: Done<u64>| {
        let is_durable = matches!(done.outcome, Outcome::Durable { .. });
        let there = if is_durable { found(&at_that_moment) } else { Vec::new() };
        for placed in done.placed {
            assert!(!is_durable || there.contains(&placed.ticket), "told durable, and not there: {}", placed.ticket);
            assert!(tell.send((placed.ticket, done.outcome.clone())).is_ok(), "nobody listens");
        }
    });
    let Ok(log) = opened.start(clock, Arc::default(), sink) else {
        return assert!(fails_in.is_some(), "a log in memory does not start");
    };
    let log = Arc::new(log);
    let appending: Vec<_> = (0..threads)
        .map(|thread| {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for frame in 0..frames {
                    let ticket = thread * frames + frame + 1;
                    let payload = vec![7; payload_bytes];
                    let frame = Frame { kind: Kind::Put, id: &id(ticket), keep_until_s: 9, payload: &payload };
                    while let Err(error) = log.append(&frame, ticket) {
                        assert!(matches!(error, AppendError::QueueFull), "{error}");
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut outcomes: Vec<(u64, Outcome)> = Vec::new();
    for _ in 0..threads * frames {
        let Ok((ticket, outcome)) = told.recv() else { break };
        assert!(outcomes.iter().all(|(other, _)| *other != ticket), "{ticket} is told twice");
        outcomes.push((ticket, outcome));
    }
    for thread in appending {
        assert!(thread.join().is_ok(), "a thread failed");
    }
    log.close();
    let there = found(&disk);
    let last_durable = outcomes.iter().rposition(|(_, outcome)| matches!(outcome, Outcome::Durable { .. }));
    for (at, (ticket, outcome)) in outcomes.iter().enumerate() {
        let is_there = there.contains(ticket);
        match outcome {
            Outcome::Durable { .. } => assert!(is_there, "durable, and gone: {ticket}"),
            Outcome::NotWritten(_) => assert!(!is_there, "not written, and there: {ticket}"),
            Outcome::Unknown(_) => assert!(!is_there || last_durable < Some(at), "unknown, and back again: {ticket}"),
        }
        assert!(matches!(outcome, Outcome::Durable { .. }) || fails_in.is_some(), "{ticket} is told {outcome:?}");
    }
    assert_eq!(outcomes.len() as u64, threads * frames, "somebody was not told");
}
