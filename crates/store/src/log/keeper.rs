//! The keeper: what can be done in the background. Spare segments, hints, and giving back what is not needed.

use crate::sync::{Arc, PoisonError};
use std::io;
use std::time::{Duration, Instant};

use super::file::{Disk, DiskFile};
use super::hint::{hint_name, hinted, write_hint};
use super::lock;
use super::segment::slot_name;
use super::shared::Shared;

/// How much of a new slot is written at once; commits get their turn in between.
const ZEROS: usize = 1 << 20;
/// How often a spare that could not be made is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
const NEW: &str = ".new";

/// Removes what a crash has left half made.
pub(crate) fn clear(disk: &dyn Disk) -> io::Result<()> {
    for entry in disk.list()? {
        let made = entry.name.strip_suffix(NEW);
        let ours = made.is_some_and(|made| {
            super::segment::slot_of(made).is_some() || hinted(made).is_some() || made.starts_with("onceward-lo")
        });
        if entry.file && ours {
            disk.remove(&entry.name)?;
        }
    }
    Ok(())
}

/// Makes one slot, written in advance: zeros really written, so that a commit overwrites blocks that are there and
/// its sync need not touch the file system's own records.
pub(crate) fn make_spare<T>(shared: &Shared<T>) -> io::Result<()> {
    let slot = lock(&shared.slots).slot_next;
    let made = fill(shared, slot);
    let mut slots = lock(&shared.slots);
    let result = match made {
        Ok(file) => {
            slots.slot_next = slot + 1;
            slots.free.push_back((slot, file));
            slots.failed = None;
            Ok(())
        }
        Err(error) => {
            let shown = io::Error::new(error.kind(), error.to_string());
            if slots.failed.replace(Arc::new(shown)).is_none() {
                tracing::warn!(%error, "no further log segment can be made: new claims are refused");
            }
            Err(error)
        }
    };
    shared.note_spares(&slots);
    drop(slots);
    shared.slots_changed.notify_all();
    result
}

fn fill<T>(shared: &Shared<T>, slot: u32) -> io::Result<Arc<dyn DiskFile>> {
    let disk = &*shared.disk;
    if shared.table.len() as u64 + lock(&shared.slots).free.len() as u64 >= u64::from(shared.options.segments_max) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let name = slot_name(slot);
    let new = format!("{name}{NEW}");
    let written = || {
        let file = disk.create(&new)?;
        // Want of space shows here, at once, not after most of the file has been written.
        file.take_space(u64::from(shared.options.segment_bytes))?;
        let zeros = vec![0; ZEROS.min(shared.options.segment_bytes as usize)];
        let mut at = 0;
        while at < shared.options.segment_bytes as usize {
            let piece = zeros.len().min(shared.options.segment_bytes as usize - at);
            file.write_at(zeros.get(..piece).unwrap_or_default(), at as u64)?;
            file.sync()?;
            at += piece;
        }
        disk.rename(&new, &name)?;
        disk.sync_folder()?;
        Ok(file)
    };
    written().inspect_err(|_| {
        // Gives the space back; where even that fails, the next start clears it.
        let _ = disk.remove(&new);
    })
}

/// The background thread's work, in steps.
pub(crate) struct Keeper<T> {
    shared: Arc<Shared<T>>,
    /// Not before this time is a spare tried again.
    retry_at: Option<Instant>,
}

/// What a step of the keeper came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something was done; there may be more.
    Done,
    /// There is nothing to do.
    Idle,
}

impl<T> Keeper<T> {
    /// Tries a spare again at once, for tests.
    #[cfg(test)]
    pub(crate) fn forget_failures(&mut self) {
        self.retry_at = None;
    }

    pub(crate) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared, retry_at: None }
    }

    /// Works until the writer is gone.
    pub(crate) fn run(&mut self) {
        loop {
            let step = self.step();
            let slots = lock(&self.shared.slots);
            if slots.closed {
                return;
            }
            let waited = match step {
                Step::Done => continue,
                // A wake-up that was missed between the step and this wait costs one period.
                Step::Idle => self.shared.slots_changed.wait_timeout(slots, RETRY_EVERY),
            };
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Does the most urgent thing.
    pub(crate) fn step(&mut self) -> Step {
        let options = &self.shared.options;
        let mut slots = lock(&self.shared.slots);
        let due = self.retry_at.is_none_or(|at| Instant::now() >= at);
        if due && slots.free.len() + slots.leaving.len() < options.spares_min {
            drop(slots);
            let made = make_spare(&self.shared).is_ok();
            self.retry_at = if made { None } else { Instant::now().checked_add(RETRY_EVERY) };
            return Step::Done;
        }
        if let Some((segment, ending, sequence)) = slots.unhinted.pop_front() {
            drop(slots);
            let disk = &*self.shared.disk;
            match write_hint(disk, &segment, &ending, sequence, self.shared.options.tag_of) {
                Ok(true) => {}
                // Dropped meanwhile, or damaged: whoever reads it next will tell.
                Ok(false) => tracing::debug!(segment = segment.number, "no hint for a segment that is not as it was"),
                Err(error) => {
                    tracing::warn!(segment = segment.number, %error, "a hint could not be written")
                }
            }
            return Step::Done;
        }
        if let Some(number) = slots.dropped.pop_front() {
            drop(slots);
            // It may never have been written; one that stays is bound to a segment that is gone.
            let _ = self.shared.disk.remove(&hint_name(number));
            return Step::Done;
        }
        if slots.free.len() > options.spares_max
            && let Some((slot, file)) = slots.free.pop_back()
        {
            self.shared.note_spares(&slots);
            drop(slots);
            drop(file);
            let disk = &*self.shared.disk;
            if let Err(error) = disk.remove(&slot_name(slot)).and_then(|()| disk.sync_folder()) {
                tracing::warn!(%error, "a free log segment could not be removed");
            }
            return Step::Done;
        }
        Step::Idle
    }
}
