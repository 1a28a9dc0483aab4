//! The fingerprint rules that records name, each as a small file in `rules/` beside the log.
//!
//! They change when a configuration does, not with requests, so they need no place in the log. A file is written whole
//! or not at all, and under a name that says what is in it, so that writing it twice changes nothing.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use crate::{RULES_BYTES_MAX, RULES_MAX};

const FOLDER: &str = "rules";

/// What is kept, in memory and, where there is a folder, in it.
#[derive(Debug, Default)]
pub(super) struct KeptRules {
    folder: Option<PathBuf>,
    kept: Mutex<BTreeMap<u32, String>>,
    /// One writer at a time: all write the same draft.
    writing: Mutex<()>,
}

impl KeptRules {
    /// Reads what `data`, the store's folder, holds. A file that is not one of ours is left alone.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join(FOLDER);
        let mut kept = BTreeMap::new();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { folder: Some(folder), ..Self::default() });
            }
            Err(error) => return Err(error),
        };
        for entry in entries.take(RULES_MAX * 2) {
            let path = entry?.path();
            let policy =
                path.file_stem().and_then(|stem| stem.to_str()).and_then(|hex| u32::from_str_radix(hex, 16).ok());
            if let Some(policy) = policy
                && path.extension().is_some_and(|extension| extension == "json")
                && fs::metadata(&path)?.len() <= RULES_BYTES_MAX as u64
            {
                kept.insert(policy, fs::read_to_string(&path)?);
            }
        }
        Ok(Self { folder: Some(folder), kept: Mutex::new(kept), writing: Mutex::default() })
    }

    /// The text kept under `policy`.
    pub(super) fn get(&self, policy: u32) -> Option<String> {
        self.lock().get(&policy).cloned()
    }

    /// Keeps `text` under `policy`, on disk before it returns. Does I/O.
    pub(super) fn keep(&self, policy: u32, text: &str) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lock().get(&policy).is_some_and(|kept| kept == text) {
            return Ok(());
        }
        if let Some(folder) = &self.folder {
            write(folder, policy, text)?;
        }
        self.lock().insert(policy, text.to_owned());
        self.make_room(policy)
    }

    /// Lets the oldest go where there are too many.
    fn make_room(&self, newest: u32) -> io::Result<()> {
        loop {
            let mut kept = self.lock();
            if kept.len() <= RULES_MAX {
                return Ok(());
            }
            let age = |policy: &u32| {
                let written = self.folder.as_ref().map(|folder| fs::metadata(file(folder, *policy))?.modified());
                written.and_then(Result::ok).unwrap_or(SystemTime::UNIX_EPOCH)
            };
            let oldest = kept.keys().copied().filter(|policy| *policy != newest).min_by_key(age);
            let Some(oldest) = oldest else { return Ok(()) };
            kept.remove(&oldest);
            if let Some(folder) = &self.folder {
                match fs::remove_file(file(folder, oldest)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file(folder: &Path, policy: u32) -> PathBuf {
    folder.join(format!("{policy:08x}.json"))
}

fn write(folder: &Path, policy: u32, text: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let to = file(folder, policy);
    let draft = to.with_extension("new");
    let mut out = fs::File::create(&draft)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&draft, &to)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_keep_the_same_rules_at_once() {
        let data = tempfile::tempdir().unwrap();
        let kept = KeptRules::open(data.path()).unwrap();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..16).map(|_| scope.spawn(|| kept.keep(7, "{}"))).collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
        });
        assert_eq!(KeptRules::open(data.path()).unwrap().get(7).as_deref(), Some("{}"));
    }

    #[test]
    fn rules_outlive_the_process_and_a_foreign_file_is_left_alone() {
        let data = tempfile::tempdir().unwrap();
        let kept = KeptRules::open(data.path()).unwrap();
        kept.keep(0xabcd, "{}").unwrap();
        kept.keep(0xabcd, "{}").unwrap();
        kept.keep(1, "one").unwrap();
        fs::write(data.path().join(FOLDER).join("notes.txt"), "mine").unwrap();
        fs::write(data.path().join(FOLDER).join("00000002.new"), "half").unwrap();
        let again = KeptRules::open(data.path()).unwrap();
        assert_eq!(
            (again.get(0xabcd).as_deref(), again.get(1).as_deref(), again.get(2)),
            (Some("{}"), Some("one"), None)
        );
        assert_eq!(fs::read_to_string(data.path().join(FOLDER).join("notes.txt")).unwrap(), "mine");
    }
}
