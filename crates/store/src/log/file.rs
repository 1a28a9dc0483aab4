//! The file layer: the few things the log asks of a disk.
//!
//! Everything above goes through [`Disk`] and [`DiskFile`], so that a test can put a disk under the log that forgets
//! what was not synced, tears writes and fails on command. [`Folder`] is the real one.
//!
//! What the log assumes of the medium: a write that has returned from [`DiskFile::write_synced_at`] survives, and a
//! write never harms bytes that it does not cover, not even in the same sector.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a folder holds, as [`Disk::list`] says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The file's name, without the folder.
    pub name: String,
    /// Its length in bytes; 0 for what is not a file.
    pub len: u64,
    /// Whether it is a regular file.
    pub file: bool,
}

/// One folder of files.
pub trait Disk: Send + Sync + 'static {
    /// Everything in the folder, in no order.
    fn list(&self) -> io::Result<Vec<Name>>;
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes an empty file, emptying one of that name.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, in place of what had it. Durable after [`Disk::sync_folder`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_folder`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable: creations, renames and removals so far.
    fn sync_folder(&self) -> io::Result<()>;
    /// A number nobody can guess, for salts. Part of the layer so that one seed makes a whole run repeatable.
    fn salt(&self) -> io::Result<u64>;
    /// Where a file is, for messages.
    fn locate(&self, name: &str) -> String;
}

/// One file of a [`Disk`], read and written at positions.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buffer.len()` bytes; fewer only at the file's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`; durable only after [`DiskFile::sync`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` and returns once they are durable. After an error any part of them may be on the disk,
    /// and a later sync proves nothing about them: the kernel may have forgotten that they were dirty.
    fn write_synced_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Takes space for the first `len` bytes, where the file system can do that ahead of writing.
    fn take_space(&self, len: u64) -> io::Result<()>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads exactly `len` bytes, or fewer where the file ends.
pub(crate) fn read_vec(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    let read = file.read_at(&mut buffer, offset)?;
    buffer.truncate(read);
    Ok(buffer)
}

/// A real folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder, making it (and what leads to it) where it is missing.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        if !path.is_dir() {
            fs::create_dir_all(&path)?;
            if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
                fs::File::open(above)?.sync_all()?;
            }
        }
        Ok(Self { path })
    }

    /// The folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let about = entry.metadata()?;
            let file = about.is_file();
            let len = if file { about.len() } else { 0 };
            names.push(Name { name: entry.file_name().to_string_lossy().into_owned(), len, file });
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        RealFile::open(&self.path.join(name), fs::OpenOptions::new().read(true).write(true))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs::OpenOptions::new();
        RealFile::open(&self.path.join(name), options.read(true).write(true).create(true).truncate(true).mode(0o600))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }

    fn salt(&self) -> io::Result<u64> {
        getrandom::u64().map_err(io::Error::other)
    }

    fn locate(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

/// A real file, open twice: writes through `synced` return once they are durable.
struct RealFile {
    plain: fs::File,
    synced: fs::File,
}

impl RealFile {
    fn open(path: &Path, options: &fs::OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let plain = options.open(path)?;
        let dsync = rustix::fs::OFlags::DSYNC.bits();
        let flags = i32::try_from(dsync).map_err(io::Error::other)?;
        let synced = fs::OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        Ok(Arc::new(Self { plain, synced }))
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(&self.plain, rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.plain.write_all_at(bytes, offset)
    }

    fn write_synced_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.synced.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.plain.sync_all()
    }

    fn take_space(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.plain, rustix::fs::FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.plain.metadata()?.len())
    }
}

/// How well a folder keeps what is synced to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keeps {
    /// Nothing is known against it.
    Durably,
    /// It lives in memory (tmpfs, ramfs): a restart of the machine or container empties it.
    InMemory,
    /// It is a container's own layer (overlayfs, aufs): removing the container removes it.
    InContainer,
}

/// Says whether `path` lies on a file system that a restart may empty. The server warns, or refuses where
/// durability is required.
pub fn keeps(path: &Path) -> io::Result<Keeps> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const OVERLAYFS: u64 = 0x794c_7630;
    const AUFS: u64 = 0x6175_6673;
    let about = rustix::fs::statfs(path)?;
    // The type is a signed or an unsigned word, by platform; its low 32 bits are what names the file system.
    let kind = (about.f_type as u64) & 0xffff_ffff;
    Ok(match kind {
        TMPFS | RAMFS => Keeps::InMemory,
        OVERLAYFS | AUFS => Keeps::InContainer,
        _ => Keeps::Durably,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_memory_is_recognised() {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() {
            assert_eq!(keeps(shm).unwrap(), Keeps::InMemory);
        }
    }

    #[test]
    fn a_real_file_reads_back_what_it_was_given_and_stops_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder::open(folder.path().join("made/below")).unwrap();
        let file = disk.create("a").unwrap();
        file.write_synced_at(b"hello", 3).unwrap();
        assert_eq!(read_vec(&*file, 0, 100).unwrap(), b"\0\0\0hello");
        assert_eq!(disk.list().unwrap(), vec![Name { name: "a".into(), len: 8, file: true }]);
    }
}
