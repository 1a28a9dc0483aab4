//! A disk that can be filled: a small file system in memory of its own, which only root can mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Room for one segment, and for no second one.
const FULL: &str = "size=100m";
/// Room for a few.
const ROOMY: &str = "size=400m";

/// A mounted disk, which is full as soon as a store has begun on it; unmounted when dropped.
pub(crate) struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts it at `folder`, which is made.
    ///
    /// # Errors
    /// Where nothing may be mounted.
    pub(crate) fn mount(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        mount(&["-t", "tmpfs", "-o", FULL, "none"], folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Gives it space.
    ///
    /// # Errors
    /// Where nothing may be mounted.
    pub(crate) fn grow(&self) -> anyhow::Result<()> {
        mount(&["-o", &format!("remount,{ROOMY}")], &self.folder)
    }
}

fn mount(arguments: &[&str], folder: &Path) -> anyhow::Result<()> {
    let output = Command::new("mount").args(arguments).arg(folder).output().context("mount is missing")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "a small disk cannot be mounted, which takes root: {}", said.trim());
    Ok(())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever was killed may still hold it open for a moment.
        let _gone = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

/// Whether a disk can be mounted here, and if not, why.
///
/// # Errors
/// Why not.
pub(crate) fn can_mount() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    SmallDisk::mount(&folder.path().join("disk")).map(drop)
}
