//! Which sessions have begun on a disk and have not ended: an empty name in the folder of the spool for each.
//!
//! Not in the log: the log gives up its segments in order, and a session may outlive many of them.

use std::{io, sync::Arc};

use onceward_core::record::SessionId;

use crate::log::{Disk, Folder};

const PREFIX: &str = "onceward.session.";

/// The sessions of one log, which each file names: those of another are not taken for its, so that nobody who takes away a
/// log's files has its sessions count as empty.
#[derive(Debug)]
pub(super) struct Begun {
    disk: Arc<Folder>,
    log: [u8; 16],
}

impl Begun {
    pub(super) fn of(disk: Arc<Folder>, log: [u8; 16]) -> Self {
        Self { disk, log }
    }

    /// Those that are there.
    pub(super) fn all(&self) -> io::Result<Vec<SessionId>> {
        let mut all = Vec::new();
        for entry in self.disk.list()?.into_iter().filter(|entry| entry.file) {
            let Some(session) = entry.name.strip_prefix(PREFIX).and_then(session_of) else { continue };
            let mut log = [0; 16];
            let read = self.disk.open(&entry.name)?.read_at(&mut log, 0)?;
            if read == log.len() && log == self.log {
                all.push(session);
            } else if read == log.len() {
                tracing::warn!(file = self.disk.locate(&entry.name), "a session of another spool is left aside");
            } else {
                // Cut off while it was made: it was no member yet.
                self.disk.remove(&entry.name)?;
            }
        }
        all.sort();
        Ok(all)
    }

    /// Durable when it returns.
    pub(super) fn note(&self, session: SessionId) -> io::Result<()> {
        let file = self.disk.create(&name_of(session))?;
        file.write_synced_at(&self.log, 0)?;
        self.disk.sync_folder()
    }

    pub(super) fn forget(&self, session: SessionId) -> io::Result<()> {
        match self.disk.remove(&name_of(session)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

fn name_of(session: SessionId) -> String {
    format!("{PREFIX}{:032x}", u128::from_be_bytes(session.0))
}

fn session_of(digits: &str) -> Option<SessionId> {
    let is_one = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u128::from_str_radix(digits, 16).ok().filter(|_| is_one)?;
    Some(SessionId(number.to_be_bytes()))
}
