//! The ids that were noted last, in bounded memory.

use std::collections::HashSet;

use onceward_core::key::RecordId;

/// So many are known; of twice as many the older ones may be.
const RECENT_MAX: usize = 65_536;

/// A set that drops its older half when it is full.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    new: HashSet<RecordId>,
    old: HashSet<RecordId>,
}

impl Recent {
    pub(crate) fn note(&mut self, id: RecordId) {
        if self.new.len() >= RECENT_MAX {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(id);
    }

    pub(crate) fn has(&self, id: &RecordId) -> bool {
        self.new.contains(id) || self.old.contains(id)
    }

    pub(crate) fn forget(&mut self, id: &RecordId) {
        self.new.remove(id);
        self.old.remove(id);
    }
}
