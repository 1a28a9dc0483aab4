//! Taking certificate files anew, without a lost connection.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::files::{TlsError, TlsErrors, digest};

/// What is made of some files, and in force until better ones are read.
pub(super) struct Kept<T> {
    /// Whose it is, for the log.
    whose: String,
    files: Vec<PathBuf>,
    now: ArcSwap<T>,
    /// The contents that were tried last, whatever came of it.
    tried: AtomicU64,
}

/// What was read, with what is odd about it.
pub(super) struct Loaded<T> {
    pub(super) value: T,
    pub(super) warning: Option<TlsError>,
}

impl<T> std::fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("whose", &self.whose).field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T> Kept<T> {
    pub(super) fn load(
        whose: String,
        files: Vec<PathBuf>,
        load: impl FnOnce() -> Result<Loaded<T>, TlsErrors>,
    ) -> Result<Self, TlsErrors> {
        // Before they are read for good: what changes between is found at the next look.
        let tried = AtomicU64::new(digest(files.iter().map(PathBuf::as_path)));
        let now = ArcSwap::from_pointee(load()?.value);
        Ok(Self { whose, files, now, tried })
    }

    pub(super) fn now(&self) -> Arc<T> {
        self.now.load_full()
    }

    fn has_changed(&self) -> bool {
        digest(self.files.iter().map(PathBuf::as_path)) != self.tried.load(Ordering::Relaxed)
    }

    fn reload(&self, load: impl FnOnce() -> Result<Loaded<T>, TlsErrors>) -> Result<(), TlsErrors> {
        self.tried.store(digest(self.files.iter().map(PathBuf::as_path)), Ordering::Relaxed);
        let loaded = load().inspect_err(|errors| {
            metrics::counter!("onceward_certificate_reloads_total", "result" => "refused").increment(1);
            tracing::error!(whose = self.whose, %errors, "a certificate was not taken; the one before stays in force");
        })?;
        if let Some(warning) = &loaded.warning {
            tracing::warn!(whose = self.whose, "{warning}");
        }
        self.now.store(Arc::new(loaded.value));
        metrics::counter!("onceward_certificate_reloads_total", "result" => "taken").increment(1);
        tracing::info!(whose = self.whose, "certificates were read anew; new connections use them");
        Ok(())
    }
}

/// One side whose files can be taken anew.
pub(super) trait Reload: Send + Sync {
    fn reload(&self) -> Result<(), TlsErrors>;
    fn has_changed(&self) -> bool;
}

/// What a side is made of, so that all sides are taken anew alike.
pub(super) trait Files: Send + Sync {
    type Made: Send + Sync;
    fn kept(&self) -> &Kept<Self::Made>;
    fn load(&self) -> Result<Loaded<Self::Made>, TlsErrors>;
}

impl<F: Files> Reload for F {
    fn reload(&self) -> Result<(), TlsErrors> {
        self.kept().reload(|| self.load())
    }

    fn has_changed(&self) -> bool {
        self.kept().has_changed()
    }
}

/// All certificates of a process that are in use. Clones are the same. What is not used any more leaves by itself.
#[derive(Clone, Default)]
pub struct Certificates(Arc<Mutex<Vec<Weak<dyn Reload>>>>);

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificates({})", self.all().len())
    }
}

impl Certificates {
    /// Takes `side` in among those that are reloaded.
    pub(super) fn add(&self, side: Weak<dyn Reload>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|side| side.strong_count() > 0);
        all.push(side);
    }

    fn all(&self) -> Vec<Arc<dyn Reload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// Reads all files anew. New connections use what was read; open ones go on.
    ///
    /// # Errors
    ///
    /// What could not be used. It is logged, and what was in force before stays so; the others are taken.
    pub fn reload(&self) -> Result<(), TlsErrors> {
        finish(self.all().iter().map(|side| side.reload()))
    }

    /// As [`Self::reload`], those only whose contents have changed since they were last tried.
    ///
    /// # Errors
    ///
    /// See [`Self::reload`].
    pub fn reload_changed(&self) -> Result<(), TlsErrors> {
        finish(self.all().iter().filter(|side| side.has_changed()).map(|side| side.reload()))
    }

    /// Looks for changed contents every so often, until it is dropped. Contents, not times: Kubernetes swaps a link
    /// above the files.
    pub async fn watch(self, every: Duration) {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let certificates = self.clone();
            // What is wrong has been logged.
            let _told = tokio::task::spawn_blocking(move || certificates.reload_changed()).await;
        }
    }
}

fn finish(results: impl Iterator<Item = Result<(), TlsErrors>>) -> Result<(), TlsErrors> {
    let errors: Vec<TlsError> = results.filter_map(Result::err).flat_map(|errors| errors.0).collect();
    if errors.is_empty() { Ok(()) } else { Err(TlsErrors(errors)) }
}

/// The paths that are there, as the list of files of one side.
pub(super) fn files<'a>(paths: impl IntoIterator<Item = Option<&'a Path>>) -> Vec<PathBuf> {
    paths.into_iter().flatten().map(Path::to_owned).collect()
}
