//! A wall clock that can be moved under the process: libfaketime, which leaves the monotonic clocks alone.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// How far the clock that the process shows may be from where it was put, in seconds.
const NEAR_S: i64 = 600;

/// The wall clock of one process.
pub(crate) struct FakeClock {
    file: PathBuf,
    library: PathBuf,
}

impl FakeClock {
    /// A clock that is right so far, kept in `folder`.
    ///
    /// # Errors
    /// Where libfaketime is not installed.
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self { file: folder.join("clock"), library: library()? })
    }

    /// What the process is started with.
    #[must_use]
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Puts it so many seconds from the right time.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn put(&self, seconds: i64) -> anyhow::Result<()> {
        // Never half a file: the process reads it at each look at its clock.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        std::fs::rename(&new, &self.file).context("the clock's file")
    }
}

/// Where Debian has it.
///
/// # Errors
/// Where it is not there.
pub(crate) fn library() -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib")?.filter_map(Result::ok).map(|entry| entry.path());
    let files = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.is_file()).context("libfaketime is missing: apt-get install faketime")
}

/// The last line of a log was written by a clock that is `seconds` from the right time.
///
/// # Errors
/// Where it was not.
pub(crate) fn shows(log: &str, seconds: i64) -> anyhow::Result<()> {
    let line = log.lines().last().context("nothing was logged")?;
    let said = line.split(' ').next().unwrap_or_default();
    let at: jiff::Timestamp = said.parse().with_context(|| format!("no time: {said:?}"))?;
    let now = i64::try_from(crate::traffic::wall_us() / 1_000_000)?;
    let off = at.as_second() - now;
    ensure!(
        (off - seconds).abs() < NEAR_S,
        "its clock is {off} s from the right time, and was put {seconds} s from it"
    );
    Ok(())
}
