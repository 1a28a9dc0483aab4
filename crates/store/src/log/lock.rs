//! The lock of a data folder: one process at a time, and a way for another to find the one that holds it.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The lock file's name in the folder.
pub(crate) const LOCK: &str = "onceward.lock";
/// A lock file says little; nobody reads more of it.
const LOCK_BYTES_MAX: u64 = 4096;

/// Who holds a data folder, as it wrote it into the lock file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holder {
    /// Its process id; 0 where the file does not say.
    pub pid: u32,
    /// The address of its admin listener, once it has one.
    pub admin: Option<String>,
}

impl Holder {
    /// Reads who holds `folder`. None where nobody does, or its file is gone.
    ///
    /// Errors: the file system's.
    pub fn of(folder: &Path) -> io::Result<Option<Self>> {
        let file = match fs::OpenOptions::new().read(true).write(true).open(folder.join(LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Shared, so that two who look do not take each other for a holder.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(fs::TryLockError::WouldBlock) => Self::read(&file).map(Some),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn read(mut file: &fs::File) -> io::Result<Self> {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.take(LOCK_BYTES_MAX).read_to_string(&mut text)?;
        let mut holder = Self::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("pid", pid)) => holder.pid = pid.parse().unwrap_or_default(),
                Some(("admin", admin)) => holder.admin = Some(admin.to_owned()),
                _ => {}
            }
        }
        Ok(holder)
    }
}

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process works in it.
    #[error("{} is in use by process {}", folder.display(), holder.pid)]
    Held {
        /// The folder.
        folder: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// The lock file could not be made or written.
    #[error("the lock file of {} cannot be written", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// A data folder, locked until this is dropped or the process ends.
#[derive(Debug)]
pub struct LockFile {
    file: fs::File,
}

impl LockFile {
    /// Locks `folder` for this process and writes its process id down.
    ///
    /// Errors: [`LockError::Held`] while another process (or another handle of this one) has it.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { folder: folder.to_owned(), source };
        let mut options = fs::OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).open(folder.join(LOCK)).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let holder = Holder::read(&file).map_err(failed)?;
                return Err(LockError::Held { folder: folder.to_owned(), holder });
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let lock = Self { file };
        lock.write(None).map_err(failed)?;
        Ok(lock)
    }

    /// Writes down where the admin listener is, for `onceward` commands that look for the running process.
    pub fn set_admin(&self, address: &str) -> io::Result<()> {
        self.write(Some(address))
    }

    fn write(&self, admin: Option<&str>) -> io::Result<()> {
        let mut text = format!("pid={}\n", std::process::id());
        if let Some(admin) = admin {
            text.push_str(&format!("admin={}\n", admin.replace('\n', " ")));
        }
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_pid_and_admin_address_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Holder::of(folder.path()).unwrap(), None);
        let lock = LockFile::take(folder.path()).unwrap();
        let refused = LockFile::take(folder.path()).unwrap_err();
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        lock.set_admin("127.0.0.1:8081").unwrap();
        let holder = Holder::of(folder.path()).unwrap().unwrap();
        assert_eq!(holder, Holder { pid: std::process::id(), admin: Some("127.0.0.1:8081".into()) });
        drop(lock);
        assert_eq!(Holder::of(folder.path()).unwrap(), None);
        LockFile::take(folder.path()).unwrap();
    }
}
