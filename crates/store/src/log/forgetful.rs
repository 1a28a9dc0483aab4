//! A disk for tests that forgets what was not synced.
//!
//! It keeps two images of every file: the live one, which readers see (the page cache), and the durable one. A crash
//! of the process leaves the live image; a power failure leaves the durable one and, of the writes that were not
//! synced, any part: sectors of them in any order, and of names a prefix of the changes. Every write, sync and change
//! of a name is a step; a run can be stopped in the middle of the nth, or that step can fail.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use super::file::{Disk, DiskFile, Name};
use super::lock;

const SECTOR: usize = 512;

/// A small generator of numbers, so that a seed repeats a run.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Written and not synced.
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum Change {
    Put(String, usize),
    Remove(String),
}

#[derive(Debug)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    random: Random,
    steps: u64,
    stop_at: Option<u64>,
    fail_at: BTreeMap<u64, i32>,
    /// Bytes all files together may have.
    space: usize,
    stopped: bool,
    trace: Vec<String>,
}

/// What a crash leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process was killed: the page cache lives on.
    Process,
    /// The power failed.
    Power,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Forgetful {
    state: Mutex<State>,
    this: Weak<Self>,
}

impl Forgetful {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Self::with(State {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            random: Random(seed),
            steps: 0,
            stop_at: None,
            fail_at: BTreeMap::new(),
            space: usize::MAX,
            stopped: false,
            trace: Vec::new(),
        })
    }

    fn with(state: State) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { state: Mutex::new(state), this: this.clone() })
    }

    /// How many steps there were.
    pub(crate) fn steps(&self) -> u64 {
        lock(&self.state).steps
    }

    /// Stops in the middle of the nth step from now, counted from 0: it is done in part, and nothing after it.
    pub(crate) fn stop_after(&self, steps: u64) {
        let mut state = lock(&self.state);
        state.stop_at = Some(state.steps + steps);
    }

    /// Lets the nth step from now fail with this error number.
    pub(crate) fn fail_after(&self, steps: u64, errno: i32) {
        let mut state = lock(&self.state);
        let step = state.steps + steps;
        state.fail_at.insert(step, errno);
    }

    pub(crate) fn set_space(&self, bytes: usize) {
        lock(&self.state).space = bytes;
    }

    pub(crate) fn used(&self) -> usize {
        let state = lock(&self.state);
        state.names.values().filter_map(|at| state.files.get(*at)).map(|file| file.live.len()).sum()
    }

    pub(crate) fn stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    /// The disk as the next process finds it.
    pub(crate) fn after(&self, crash: Crash) -> Arc<Self> {
        let state = &mut *lock(&self.state);
        let mut files = state.files.clone();
        let mut names = state.names.clone();
        if crash == Crash::Power {
            names = state.durable_names.clone();
            let kept = state.random.below(state.changes.len() + 1);
            for change in state.changes.iter().take(kept) {
                apply(&mut names, change);
            }
            for file in &mut files {
                for (at, bytes) in std::mem::take(&mut file.pending) {
                    tear(&mut file.durable, at, &bytes, &mut state.random);
                }
                file.live.clone_from(&file.durable);
            }
        }
        Self::with(State {
            files,
            durable_names: if crash == Crash::Power { names.clone() } else { state.durable_names.clone() },
            changes: if crash == Crash::Power { Vec::new() } else { state.changes.clone() },
            names,
            random: state.random.clone(),
            steps: 0,
            stop_at: None,
            fail_at: BTreeMap::new(),
            space: usize::MAX,
            stopped: false,
            trace: Vec::new(),
        })
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn damage(&self, name: &str, at: usize, by: u8) {
        let state = &mut *lock(&self.state);
        let file = &mut state.files[state.names[name]];
        file.live[at] ^= by;
        if let Some(byte) = file.durable.get_mut(at) {
            *byte ^= by;
        }
    }

    pub(crate) fn delete(&self, name: &str) {
        let state = &mut *lock(&self.state);
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.state).names.keys().cloned().collect()
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let state = lock(&self.state);
        state.files[state.names[name]].live.clone()
    }

    pub(crate) fn replace(&self, name: &str, bytes: Vec<u8>) {
        let state = &mut *lock(&self.state);
        state.files.push(Content { live: bytes.clone(), durable: bytes, pending: Vec::new() });
        let at = state.files.len() - 1;
        state.names.insert(name.into(), at);
        state.durable_names.insert(name.into(), at);
    }

    /// What was done, for messages of tests that fail.
    pub(crate) fn trace(&self) -> String {
        lock(&self.state).trace.join("\n")
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    match change {
        Change::Put(name, at) => {
            names.retain(|_, there| there != at);
            names.insert(name.clone(), *at);
        }
        Change::Remove(name) => {
            names.remove(name);
        }
    }
}

fn lay(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if image.len() < at + bytes.len() {
        image.resize(at + bytes.len(), 0);
    }
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Lays some of a write's sectors, or a prefix of it to the byte.
fn tear(image: &mut Vec<u8>, at: usize, bytes: &[u8], random: &mut Random) {
    match random.below(4) {
        0 => {}
        1 => lay(image, at, bytes),
        2 => lay(image, at, &bytes[..random.below(bytes.len() + 1)]),
        _ => {
            let mut from = 0;
            while from < bytes.len() {
                let to = (from + SECTOR - (at + from) % SECTOR).min(bytes.len());
                if random.below(2) == 0 {
                    lay(image, at + from, &bytes[from..to]);
                }
                from = to;
            }
        }
    }
}

/// What becomes of a step.
enum Fate {
    Done,
    /// In part, and then the end.
    Stops,
    Fails(i32),
}

impl State {
    fn step(&mut self, what: impl FnOnce() -> String) -> io::Result<Fate> {
        if self.stopped {
            return Err(io::Error::other("the process is gone"));
        }
        let step = self.steps;
        self.trace.push(format!("{step} {}", what()));
        self.steps += 1;
        if self.stop_at == Some(step) {
            self.stopped = true;
            return Ok(Fate::Stops);
        }
        Ok(self.fail_at.get(&step).map_or(Fate::Done, |errno| Fate::Fails(*errno)))
    }

    fn gone() -> io::Error {
        io::Error::other("the process is gone")
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        match self.step(|| format!("{change:?}"))? {
            Fate::Done => {
                apply(&mut self.names, &change);
                self.changes.push(change);
                Ok(())
            }
            Fate::Stops => {
                if self.random.below(2) == 0 {
                    apply(&mut self.names, &change);
                    self.changes.push(change);
                }
                Err(Self::gone())
            }
            Fate::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Disk for Forgetful {
    fn list(&self) -> io::Result<Vec<Name>> {
        let state = lock(&self.state);
        let len = |at: &usize| state.files[*at].live.len() as u64;
        Ok(state.names.iter().map(|(name, at)| Name { name: name.clone(), len: len(at), file: true }).collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let at = lock(&self.state).names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        let disk = self.this.upgrade().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(File { disk, at, name: name.into() }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = lock(&self.state);
        state.files.push(Content::default());
        let at = state.files.len() - 1;
        state.change(Change::Put(name.into(), at))?;
        drop(state);
        self.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        let at = state.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Put(to.into(), at))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Remove(name.into()))
    }

    fn sync_folder(&self) -> io::Result<()> {
        let state = &mut *lock(&self.state);
        match state.step(|| "sync folder".into())? {
            Fate::Done => {
                state.durable_names.clone_from(&state.names);
                state.changes.clear();
                Ok(())
            }
            Fate::Stops => Err(State::gone()),
            Fate::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn salt(&self) -> io::Result<u64> {
        Ok(lock(&self.state).random.next())
    }

    fn locate(&self, name: &str) -> String {
        format!("disk/{name}")
    }
}

#[derive(Debug)]
struct File {
    disk: Arc<Forgetful>,
    at: usize,
    name: String,
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = lock(&self.disk.state);
        let live = &state.files[self.at].live;
        let from = (offset as usize).min(live.len());
        let len = buffer.len().min(live.len() - from);
        buffer[..len].copy_from_slice(&live[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let used = self.disk.used();
        let state = &mut *lock(&self.disk.state);
        let at = offset as usize;
        let (name, len) = (&self.name, bytes.len());
        let fate = state.step(|| format!("write {name} {at}+{len}"))?;
        let file = &mut state.files[self.at];
        if used + (at + len).saturating_sub(file.live.len()) > state.space {
            return Err(io::Error::from_raw_os_error(28));
        }
        match fate {
            Fate::Done => {
                lay(&mut file.live, at, bytes);
                file.pending.push((at, bytes.to_vec()));
                Ok(())
            }
            Fate::Stops => {
                let len = state.random.below(len + 1);
                lay(&mut file.live, at, &bytes[..len]);
                file.pending.push((at, bytes[..len].to_vec()));
                Err(State::gone())
            }
            Fate::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn write_synced_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let state = &mut *lock(&self.disk.state);
        let at = offset as usize;
        let (name, len) = (&self.name, bytes.len());
        let fate = state.step(|| format!("write synced {name} {at}+{len}"))?;
        let file = &mut state.files[self.at];
        match fate {
            Fate::Done => {
                lay(&mut file.live, at, bytes);
                lay(&mut file.durable, at, bytes);
                Ok(())
            }
            Fate::Stops => {
                // Killed in the write, or between the write and its sync.
                let len = if state.random.below(2) == 0 { len } else { state.random.below(len + 1) };
                lay(&mut file.live, at, &bytes[..len]);
                file.pending.push((at, bytes[..len].to_vec()));
                Err(State::gone())
            }
            Fate::Fails(errno) => {
                // The page cache has it and believes it clean; the disk has any part of it.
                lay(&mut file.live, at, bytes);
                tear(&mut file.durable, at, bytes, &mut state.random);
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *lock(&self.disk.state);
        let name = &self.name;
        let fate = state.step(|| format!("sync {name}"))?;
        let file = &mut state.files[self.at];
        let pending = std::mem::take(&mut file.pending);
        match fate {
            Fate::Done => {
                for (at, bytes) in pending {
                    lay(&mut file.durable, at, &bytes);
                }
                Ok(())
            }
            Fate::Stops => {
                file.pending = pending;
                Err(State::gone())
            }
            Fate::Fails(errno) => {
                for (at, bytes) in pending {
                    tear(&mut file.durable, at, &bytes, &mut state.random);
                }
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn take_space(&self, len: u64) -> io::Result<()> {
        let used = self.disk.used();
        if used + len as usize > lock(&self.disk.state).space {
            return Err(io::Error::from_raw_os_error(28));
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.disk.state).files[self.at].live.len() as u64)
    }
}
