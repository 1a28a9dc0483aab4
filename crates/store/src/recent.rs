//! The ids that were noted last, in bounded memory.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use onceward_core::key::RecordId;

/// So many are known; of twice as many the older ones may be.
const RECENT_MAX: usize = 65_536;

/// A set that drops its older half when it is full.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Halves>);

#[derive(Debug, Default)]
struct Halves {
    new: HashSet<RecordId>,
    old: HashSet<RecordId>,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Halves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, id: RecordId) {
        let mut halves = self.lock();
        if halves.new.len() >= RECENT_MAX {
            halves.old = std::mem::take(&mut halves.new);
        }
        halves.new.insert(id);
    }

    pub(crate) fn has(&self, id: &RecordId) -> bool {
        let halves = self.lock();
        halves.new.contains(id) || halves.old.contains(id)
    }

    pub(crate) fn forget(&self, id: &RecordId) {
        let mut halves = self.lock();
        halves.new.remove(id);
        halves.old.remove(id);
    }
}
