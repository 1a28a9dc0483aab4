//! What happens to the log's files while the process is down: a torn end, a bit that flips after it was synced.
//!
//! Knows of the embedded store's files only that they are called `segment-…`, begin with a page that is a
//! header, and are zero behind what was written, but for their last page.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use fastrand::Rng;

const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: u64 = PAGE_BYTES as u64;
/// Less than any batch has.
const TORN_BYTES: u64 = 48;
/// As much is to have been written for a flip in the middle.
const WRITTEN_BYTES_MIN: u64 = 16 << 10;

/// The segment that was written last, and where what was written ends.
fn written_last(folder: &Path) -> anyhow::Result<(PathBuf, u64)> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("segment-") {
            let mut bytes = Vec::new();
            File::open(entry.path())?.read_to_end(&mut bytes)?;
            // Up to the first page that nothing was written to. Spare segments are empty.
            let pages = bytes.chunks(PAGE_BYTES).take_while(|page| page.iter().any(|byte| *byte != 0));
            let written = bytes.get(..pages.map(<[u8]>::len).sum()).unwrap_or_default();
            if let Some(end) = written.iter().rposition(|byte| *byte != 0) {
                segments.push((entry.metadata()?.modified()?, entry.path(), end as u64 + 1));
            }
        }
    }
    let last = segments.into_iter().max().context("nothing was written to the store's folder")?;
    Ok((last.1, last.2))
}

fn put(path: &Path, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

/// Takes the end of the last batch away, as a disk that lost a write.
///
/// # Errors
/// Where nothing was written.
pub(crate) fn tear(folder: &Path, rng: &mut Rng) -> anyhow::Result<()> {
    let (path, end) = written_last(folder)?;
    let torn = rng.u64(1..=TORN_BYTES);
    let from = end.saturating_sub(torn);
    ensure!(from > HEADER_BYTES, "nothing was written to {}", path.display());
    put(&path, from, &vec![0; usize::try_from(torn)?])
}

/// Flips one bit among what was written and is not the last of it.
///
/// # Errors
/// Where too little was written.
pub(crate) fn flip(folder: &Path, rng: &mut Rng) -> anyhow::Result<()> {
    let (path, end) = written_last(folder)?;
    ensure!(end > HEADER_BYTES + WRITTEN_BYTES_MIN, "only {end} bytes were written to {}", path.display());
    let at = rng.u64(HEADER_BYTES..HEADER_BYTES + (end - HEADER_BYTES) / 2);
    let mut byte = [0];
    let mut file = File::open(&path)?;
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    let [byte] = byte;
    put(&path, at, &[byte ^ (1 << rng.u32(0..8))])
}

/// The intervals that the process listed as lost, in microseconds of its store's clock.
#[must_use]
pub(crate) fn listed(log: &str) -> Vec<(u64, u64)> {
    let number = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split(|byte: char| !byte.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let lines = log.lines().filter(|line| line.contains("a part of the log is lost"));
    lines.filter_map(|line| Some((number(line, "after_us=")?, number(line, "before_us=")?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_torn_and_a_bit_before_it_flips_and_nothing_else_changes() {
        let folder = tempfile::tempdir().unwrap();
        let written: Vec<u8> = (0..40_000).map(|at| u8::try_from(at % 251).unwrap() | 1).collect();
        let whole = [written, vec![0; 9_000], vec![1; 100]].concat();
        let path = folder.path().join("segment-00000");
        let differ = |seed| {
            let now = std::fs::read(&path).unwrap();
            let at: Vec<usize> = (0..whole.len()).filter(|at| now[*at] != whole[*at]).collect();
            assert!(now.len() == whole.len() && !at.is_empty(), "seed {seed}");
            (at[0], at[at.len() - 1])
        };
        for seed in 0..20 {
            std::fs::write(&path, &whole).unwrap();
            tear(folder.path(), &mut Rng::with_seed(seed)).unwrap();
            let (first, last) = differ(seed);
            assert!(first >= 40_000 - 48 && last == 39_999, "seed {seed}: {first} to {last}");
            std::fs::write(&path, &whole).unwrap();
            flip(folder.path(), &mut Rng::with_seed(seed)).unwrap();
            let (first, last) = differ(seed);
            assert!(first == last && (4096..22_048).contains(&first), "seed {seed}: {first} to {last}");
        }
    }

    #[test]
    fn a_listed_interval_is_read() {
        let log = "INFO x\nERROR a part of the log is lost: keys file=\"segment-00001\" from=4096 to=8192 after_us=17 before_us=23\n";
        assert_eq!(listed(log), [(17, 23)]);
        assert_eq!(listed("all is well"), []);
    }
}
