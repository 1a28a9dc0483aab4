//! The configuration, changed while the process runs: on SIGHUP, and when its file changes.
//!
//! The next configuration is read and held to all rules first; only a whole one replaces the running one, in one step,
//! and requests on their way end as they began. What cannot change in a running process (listeners, store, identity) and
//! what would make the keys of live requests new is refused by name. A refused file leaves the running configuration in
//! force, and says so in the log, in `/readyz` and in `onceward_config_in_force`.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _, event::ModifyKind};
use onceward::Engine;
use tokio::{signal::unix::Signal, sync::Notify};

use crate::{
    admin::Admin,
    assemble::{self, Unusable, Upstreams},
    config::{Config, ConfigError, Environment, Flags},
    identity,
    start::StartError,
};

/// Changes of a file come in several steps: what is still being written is left to be.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);

/// Why a configuration does not replace the running one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// It is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A route or upstream cannot be built.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// It changes what a running process cannot change.
    #[error("{} cannot change while the process runs: restart it, or take that back", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
    /// It would make keys new, or the data folder cannot be written.
    #[error(transparent)]
    Identity(#[from] StartError),
}

/// What a reload came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// Another configuration is in force.
    Changed,
    /// It says what the running one says.
    Same,
}

/// Follows the configuration of a running process.
pub struct Reload {
    file: Option<PathBuf>,
    flags: Flags,
    environment: Environment,
    running: Config,
    upstreams: Upstreams,
    engine: Engine,
    admin: Admin,
    changed: Arc<Notify>,
    watch: Option<Watch>,
}

impl Reload {
    /// `running` was read from `file`, `environment` and `flags`; `engine` and `upstreams` were made of it.
    #[must_use]
    pub fn new(
        file: Option<PathBuf>,
        flags: Flags,
        environment: Environment,
        running: Config,
        upstreams: Upstreams,
        engine: Engine,
        admin: Admin,
    ) -> Self {
        metrics::describe_counter!("onceward_config_reloads_total", "Configurations read while running, by result");
        metrics::describe_gauge!(
            "onceward_config_in_force",
            "1 where the file says what is in force, 0 where it was refused"
        );
        metrics::gauge!("onceward_config_in_force").set(1.0);
        let changed = Arc::new(Notify::new());
        let watch = file.as_deref().and_then(|file| Watch::start(file, &changed));
        Self { file, flags, environment, running, upstreams, engine, admin, changed, watch }
    }

    /// Reloads on each SIGHUP and each change of the file, until it is dropped.
    pub async fn run(mut self, mut hangup: Signal) {
        let mut read = self.file.as_deref().map(|file| fs::read(file).ok());
        // It may have changed after it was read and before it was watched.
        if Config::load(self.file.as_deref(), &self.flags, &self.environment).ok().as_ref() != Some(&self.running) {
            self.say();
        }
        loop {
            tokio::select! {
                signal = hangup.recv() => {
                    if signal.is_none() {
                        return;
                    }
                    tracing::info!("SIGHUP: reading the configuration and the certificates again");
                    // What is wrong with them is logged, and those before stay in force.
                    let _told = self.upstreams.certificates().reload();
                }
                () = self.changed.notified() => {
                    tokio::time::sleep(SETTLES_WITHIN).await;
                    if let Some(watch) = &mut self.watch {
                        watch.follow();
                    }
                    let now = self.file.as_deref().map(|file| fs::read(file).ok());
                    // A file that is away for a moment is being replaced.
                    if now == read || now == Some(None) {
                        continue;
                    }
                    tracing::info!("the configuration file has changed: reading it");
                }
            }
            read = self.file.as_deref().map(|file| fs::read(file).ok());
            self.say();
        }
    }

    /// Reloads, and says what came of it.
    fn say(&mut self) {
        let (result, refused) = match self.reload() {
            Ok(Reloaded::Changed) => {
                tracing::info!(routes = self.running.routes.len(), "the configuration was reloaded");
                ("applied", None)
            }
            Ok(Reloaded::Same) => {
                tracing::info!("the configuration says what is in force: nothing changes");
                ("unchanged", None)
            }
            Err(error) => {
                let refused = format!("the configuration was not reloaded, the one before stays in force: {error}");
                tracing::error!("{refused}");
                let result = if matches!(error, ReloadError::Config(_)) { "invalid" } else { "refused" };
                (result, Some(refused))
            }
        };
        metrics::counter!("onceward_config_reloads_total", "result" => result).increment(1);
        metrics::gauge!("onceward_config_in_force").set(if refused.is_none() { 1.0 } else { 0.0 });
        self.admin.say_refused(refused);
    }

    /// Reads the configuration and puts it in force, whole or not at all.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    pub fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let next = Config::load(self.file.as_deref(), &self.flags, &self.environment)?;
        if next == self.running {
            return Ok(Reloaded::Same);
        }
        let fixed = fixed_changes(&self.running, &next);
        if !fixed.is_empty() {
            return Err(ReloadError::NeedsRestart(fixed));
        }
        let upstreams = Upstreams::new(&next, &self.upstreams)?;
        let routes = assemble::routes(&next, &upstreams)?;
        // Remembered before it is in force: no record is made that the folder does not know the name of.
        identity::follow(&self.running, &next)?;
        self.engine.reconfigure(routes, assemble::limits(&next.limits));
        self.engine.limit_tenants(next.quotas.clone());
        self.upstreams = upstreams;
        warn_of_moves(&self.running, &next);
        self.running = next;
        Ok(Reloaded::Changed)
    }
}

/// Tells of routes whose records are kept elsewhere from now on: what they had stays where it was, and is not looked at.
fn warn_of_moves(running: &Config, next: &Config) {
    for route in next.routes.iter().chain([&next.default_route]) {
        let before = running.routes.iter().chain([&running.default_route]).find(|before| before.name == route.name);
        if let Some(before) = before.filter(|before| before.durability != route.durability) {
            tracing::warn!(
                route = route.name,
                from = before.durability.name(),
                to = route.durability.name(),
                "the route has another durability: its keys begin anew, and those that were answered before may run again \
                 within their retention"
            );
        }
    }
}

/// What differs and is fixed for the life of a process.
fn fixed_changes(running: &Config, next: &Config) -> Vec<&'static str> {
    let (old, new) = (&running.limits, &next.limits);
    let all = [
        ("identity.secret", running.identity.secret != next.identity.secret),
        ("identity.previous", running.identity.previous != next.identity.previous),
        ("listen.address", running.listen.address != next.listen.address),
        ("listen.tls", running.listen.tls != next.listen.tls),
        ("listen.trusted", running.listen.trusted != next.listen.trusted),
        ("listen.drain", running.listen.drain != next.listen.drain),
        ("admin.address", running.admin.address != next.admin.address),
        ("admin.token", running.admin.token != next.admin.token),
        ("[store]", running.store != next.store),
        ("[maintenance]", running.maintenance != next.maintenance),
        ("[reconcile]", running.reconcile != next.reconcile),
        ("[telemetry]", running.telemetry != next.telemetry),
        ("limits.connections", old.connections != new.connections),
        ("limits.headers", old.headers != new.headers),
        ("limits.spool", old.spool != new.spool),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// Watches the folders that a file's content depends on: its own, and the one that it is a link into.
///
/// Folders, since an editor replaces the file and Kubernetes the link `..data` beside it; a watch on the file itself
/// would be left on what was there before.
struct Watch {
    watcher: RecommendedWatcher,
    file: PathBuf,
    target: Option<PathBuf>,
}

impl Watch {
    fn start(file: &Path, changed: &Arc<Notify>) -> Option<Self> {
        let told = Arc::clone(changed);
        let name = file.file_name().map(OsStr::to_os_string);
        let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let concerns = event.as_ref().map_or(true, |event| match event.kind {
                EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)) => false,
                EventKind::Modify(ModifyKind::Name(_)) | EventKind::Create(_) | EventKind::Remove(_) => true,
                // Other files in the folder are written all the time, a log among them.
                _ => event.paths.iter().any(|path| path.file_name() == name.as_deref()),
            });
            if concerns {
                told.notify_one();
            }
        });
        let watched = watching.and_then(|mut watcher| {
            watcher.watch(&folder_of(file), RecursiveMode::NonRecursive)?;
            Ok(Self { watcher, file: file.to_owned(), target: None })
        });
        match watched {
            Ok(mut watch) => {
                watch.follow();
                Some(watch)
            }
            Err(error) => {
                tracing::warn!(%error, "the configuration file cannot be watched; send SIGHUP after a change");
                None
            }
        }
    }

    /// Watches where the file is a link into, if that has changed.
    fn follow(&mut self) {
        let own = fs::canonicalize(folder_of(&self.file)).ok();
        let target = fs::canonicalize(&self.file)
            .ok()
            .map(|file| folder_of(&file))
            .filter(|folder| Some(folder) != own.as_ref());
        if target == self.target {
            return;
        }
        if let Some(old) = self.target.take() {
            // It may be gone, and its watch with it.
            let _gone = self.watcher.unwatch(&old);
        }
        if let Some(folder) = target
            && self.watcher.watch(&folder, RecursiveMode::NonRecursive).is_ok()
        {
            self.target = Some(folder);
        }
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}
