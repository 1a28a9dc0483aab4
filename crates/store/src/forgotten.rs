//! Who is told of what processes forget.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use onceward_core::key::RecordId;

use crate::HearsForgotten;

/// The one who asked first, or nobody yet.
#[derive(Clone, Default)]
pub(crate) struct Forgotten(Arc<OnceLock<HearsForgotten>>);

impl Forgotten {
    pub(crate) fn set(&self, hears: HearsForgotten) {
        let _taken = self.0.set(hears);
    }

    /// This key was forgotten or erased, or any may have been.
    pub(crate) fn tell(&self, id: Option<RecordId>) {
        if let Some(hears) = self.0.get() {
            hears(id);
        }
    }
}

impl fmt::Debug for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Forgotten")
    }
}
