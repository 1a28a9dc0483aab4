//! Who is told of what processes forget.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use onceward_core::key::RecordId;

use crate::{Applied, HearsForgotten, StoreError, Write};

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

/// Whether others are to be told of a write that forgets: it was applied, or may have been.
pub(crate) fn is_to_be_told(written: &Result<Write, StoreError>) -> bool {
    match written {
        Ok(Write::Applied { .. }) => true,
        Ok(Write::Lost { .. }) => false,
        Err(error) => error.applied == Applied::Unknown,
    }
}

impl fmt::Debug for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Forgotten")
    }
}
