//! The configuration: one TOML file, the environment over it, the flags over both.
//!
//! [`Config::load`] reads all three, or tells everything that is wrong at once, each with file, line
//! and column. The result is plain data: every value is there, resolved from the route, else from
//! `[defaults]`, else from the product's default.
//!
//! # Layout
//!
//! - `tree`: TOML as a tree that remembers where each value stood; `overlay`: environment and flags
//! - `schema`: every key there is; `about`: what each means; `json_schema`: both for editors; `check`: a tree held to it; `forms`, [`units`], [`secret`]: how single values are spelled
//! - `read`, `read_route`, `route_tables`, `route_asks`: the checked tree as [`Config`] and [`route::RouteConfig`]; `tls`: certificate files; `redis`: `[store.redis]`, and what routes must say for it; `quota`: what
//!   tenants may take; `align`: the inequalities between a route's times
//! - [`report`]: `config check`, `config timeouts` and `config example`
//!
//! # Example
//!
//! ```
//! use onceward_server::config::{Config, Environment, Flags};
//!
//! let flags = Flags { upstream: Some("http://127.0.0.1:9000".into()), ..Flags::default() };
//! let config = Config::load(None, &flags, &Environment::default())?;
//! assert_eq!(config.default_route.upstream.as_deref(), Some("upstream"));
//! # Ok::<(), onceward_server::config::ConfigError>(())
//! ```

use std::{
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use ipnet::IpNet;
use onceward::{
    Quotas,
    store::{
        circuit::Breaker,
        postgres::Failover,
        redis::{Evictions, Strategy, Wait},
    },
};

mod about;
pub mod align;
mod check;
pub(crate) mod forms;
mod journal;
mod json_schema;
mod overlay;
mod problem;
mod quota;
mod read;
mod read_route;
mod redis;
pub mod report;
pub mod route;
mod route_asks;
mod route_tables;
mod schema;
pub mod secret;
mod tls;
mod tree;
pub mod units;

pub use json_schema::json_schema;
pub use overlay::{Environment, Flags};
pub use problem::{ConfigError, PROBLEMS_MAX, Place, Problem};
pub use route::RouteConfig;
pub use schema::NOT_AVAILABLE;
use secret::{InstallSecret, Secret};

use crate::{
    maintenance::Window,
    proxy::{CertAndKey, ListenerTls, UpstreamTls},
};

use problem::{Origin, Problems, Source};

/// The largest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything that can be said, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[identity]`
    pub identity: Identity,
    /// `[listen]`
    pub listen: Listen,
    /// `[admin]`
    pub admin: Admin,
    /// `[store]`
    pub store: Store,
    /// `[[upstream]]`, in the order of the file, names unique. At least one.
    pub upstreams: Vec<Upstream>,
    /// `[[route]]`, in the order of the file, names unique. Each one's upstream is there.
    pub routes: Vec<RouteConfig>,
    /// `[defaults]` as the route of what no other route matches.
    pub default_route: RouteConfig,
    /// `[limits]`
    pub limits: Limits,
    /// `[quota]`
    pub quotas: Quotas,
    /// `[maintenance]`
    pub maintenance: Maintenance,
    /// `[reconcile]`
    pub reconcile: Reconcile,
    /// `[telemetry]`
    pub telemetry: Telemetry,
}

/// `[identity]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The install secret; where `None`, the one in the store's folder, drawn on first start.
    pub secret: Option<InstallSecret>,
    /// The one before: records that were made with it are found too.
    pub previous: Option<InstallSecret>,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Port 0 is any free one.
    pub address: SocketAddr,
    /// TLS for clients; plain where `None`.
    pub tls: Option<ListenerTls>,
    /// Peers whose `Forwarded`, principal and tenant headers count.
    pub trusted: Vec<IpNet>,
    /// How long requests may still run after the signal to stop; may be zero.
    pub drain: Duration,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Port 0 is any free one. Beyond loopback only with a token.
    pub address: SocketAddr,
    /// Visible ASCII; where `None`, the one in the store's folder, drawn on first start.
    pub token: Option<Secret>,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Its folder; a relative one starts at the working directory.
    pub path: PathBuf,
    /// Refuse a folder that a restart of a container may empty, instead of warning.
    pub durable_required: bool,
    /// For each operation.
    pub deadline: Duration,
    /// When operations fail at once instead.
    pub breaker: Breaker,
    /// Kept free for completions: below it, new claims are refused. In bytes.
    pub reserve: u64,
    /// How many records there may be; the store's own bound where `None`.
    pub max_records: Option<u64>,
    /// The version of records that are written: one of those that this build writes.
    pub write_version: u8,
    /// Records are in a database instead of the folder.
    pub postgres: Option<PostgresStore>,
    /// Records are in Redis instead of the folder.
    pub redis: Option<RedisStore>,
    /// Of routes that are journaled: none can be where it is not said.
    pub journal: Option<Journal>,
    /// Where claims go while Redis does not answer.
    pub fallback: Option<PostgresStore>,
}

impl Store {
    /// Whether other processes may have it open too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.postgres.is_some() || self.redis.is_some()
    }

    /// Whether records are in both, each route's as it asks.
    #[must_use]
    pub fn is_tiered(&self) -> bool {
        self.postgres.is_some() && self.redis.is_some()
    }
}

/// `[store.journal]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// What may take the database's place.
    pub failover: Failover,
    /// A process that was not heard of for so long is retired by others.
    pub member_timeout: Duration,
    /// What may wait on the disk for the database, in bytes: beyond it new claims are refused.
    pub spool: u64,
}

/// `[store.redis]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisStore {
    /// Where the servers are.
    pub url: Secret,
    /// How steps are taken.
    pub strategy: Strategy,
    /// When evictions are noticed.
    pub evictions: Evictions,
    /// How many replicas a write has to reach.
    pub wait: Option<Wait>,
    /// Counts before the one in `url`.
    pub username: Option<String>,
    /// Counts before the one in `url`.
    pub password: Option<Secret>,
    /// Of the Sentinels.
    pub sentinel_username: Option<String>,
    /// Of the Sentinels.
    pub sentinel_password: Option<Secret>,
    /// The only authorities that count; those of the system where `None`.
    pub ca: Option<PathBuf>,
    /// What is shown to servers that ask for a certificate.
    pub client_cert: Option<CertAndKey>,
}

/// `[store.postgres]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresStore {
    /// Where the records are.
    pub database: Database,
    /// Where notifications are listened for; the database's own where `None`.
    pub listen_url: Option<Secret>,
    /// For claims, for settling and for all else, so many each.
    pub connections: usize,
}

/// A PostgreSQL database, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Where it is.
    pub url: Secret,
    /// Counts before the one in `url`.
    pub password: Option<Secret>,
    /// Whether the connection is encrypted and the server's name checked.
    pub tls: bool,
    /// The only authorities that count; those of the system where `None`.
    pub ca: Option<PathBuf>,
}

/// `[[upstream]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// `[a-z0-9-]`, 1 to 64, unique.
    pub name: String,
    /// Scheme `http` or `https`, host and perhaps a port; no path but `/`, no query.
    pub url: Uri,
    /// Requests at a time, at least 1.
    pub max_in_flight: usize,
    /// For a new connection.
    pub connect_timeout: Duration,
    /// HTTP/2: without an upgrade, or for `https` by ALPN.
    pub http2: bool,
    /// For `https`.
    pub tls: UpstreamTls,
}

/// `[maintenance]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// When work of the store is done that can wait; at any time where `None`.
    pub window: Option<Window>,
}

/// `[reconcile]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconcile {
    /// Between two comparisons of records with effects in the background; never where zero.
    pub every: Duration,
    /// The URLs that compensations may call, or with a slash at the end what they begin with.
    pub compensation_urls: Vec<String>,
}

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Where metrics and traces are sent, besides `/metrics`; nowhere where `None`.
    pub otlp: Option<Uri>,
    /// Between two exports of the metrics.
    pub interval: Duration,
    /// How many of a hundred traces are sent, 0 to 100. What is out of the ordinary always is.
    pub trace_percent: u8,
}

/// `[limits]`: for the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at a time.
    pub connections: usize,
    /// A request's header section, in bytes.
    pub headers: u64,
    /// Requests that wait for another one.
    pub waiters: usize,
    /// An answer up to this size is held until its record is safe, in bytes.
    pub held_answer: u64,
    /// A body up to this size is brought to canonical form, in bytes.
    pub canonical_body: u64,
    /// A compressed request body is decoded to at most so many times its size, for its fingerprint.
    pub decode_ratio: usize,
    /// Bodies on disk at a time, in bytes.
    pub spool: u64,
    /// Answers whose record is not confirmed yet, in bytes.
    pub unrecorded: u64,
    /// Answers that are replayed while the store does not answer, in bytes.
    pub replay_cache: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            headers: 64 << 10,
            waiters: 20_000,
            held_answer: 64 << 10,
            canonical_body: 1 << 20,
            decode_ratio: 100,
            spool: 1 << 30,
            unrecorded: 64 << 20,
            replay_cache: 32 << 20,
        }
    }
}

impl Config {
    /// Reads `file`, where one is named, puts `environment` over it and `flags` over both, follows
    /// secrets, and holds it all to the rules.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or something in it, in the environment or in the flags is wrong.
    pub fn load(file: Option<&Path>, flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let inputs = Inputs { flags, environment, secrets: Secrets::Needed };
        match file {
            None => Self::read(None, &inputs).into_result(),
            Some(path) => match read_file(path)? {
                Ok(text) => {
                    let name = path.display().to_string();
                    Self::read(Some(&Source { name: &name, text: &text }), &inputs).into_result()
                }
                Err(problem) => Err(ConfigError::Invalid { problems: vec![problem] }),
            },
        }
    }

    /// The configuration of a process without a file.
    ///
    /// # Errors
    ///
    /// A flag is wrong, or there is no upstream.
    pub fn from_flags(flags: &Flags) -> Result<Self, ConfigError> {
        Self::load(None, flags, &Environment::default())
    }

    /// Reads `text` as a file named `name`.
    ///
    /// # Errors
    ///
    /// Something in it is wrong.
    pub fn parse(name: &str, text: &str, flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let inputs = Inputs { flags, environment, secrets: Secrets::Needed };
        Self::read(Some(&Source { name, text }), &inputs).into_result()
    }

    /// The route of this name, [`route::DEFAULT_ROUTE`] included.
    #[must_use]
    pub fn route(&self, name: &str) -> Option<&RouteConfig> {
        self.routes.iter().chain([&self.default_route]).find(|route| route.name == name)
    }

    /// The upstream of this name.
    #[must_use]
    pub fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
    }

    fn read(source: Option<&Source<'_>>, inputs: &Inputs<'_>) -> Outcome {
        let mut problems = Problems::new(source.map(|source| Source { name: source.name, text: source.text }));
        let root = match source {
            None => Some(tree::Node::empty_table(Origin::Whole)),
            Some(source) => tree::parse(source, &mut problems),
        };
        let config = root.and_then(|mut root| {
            overlay::apply(&mut root, inputs.environment, inputs.flags, &mut problems);
            check::check(&root, &mut problems);
            // What is wrong by itself is left out of what follows, so that one slip is told once.
            let clean = problems.count() == 0;
            let config = read::config(&root, inputs, &mut problems);
            if clean && let Some(config) = &config {
                align::check(config, &root, &mut problems);
            }
            config
        });
        let (errors, warnings) = problems.finish();
        Outcome { config, errors, warnings }
    }
}

/// What a configuration is read with.
struct Inputs<'a> {
    flags: &'a Flags,
    environment: &'a Environment,
    secrets: Secrets,
}

/// Whether a secret that is not there is an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrets {
    /// At start.
    Needed,
    /// For `config check`, which may run where they are not.
    Absent,
}

/// What reading came to.
struct Outcome {
    /// There whenever it could be read, even with errors: for `config timeouts`.
    config: Option<Config>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Outcome {
    fn into_result(self) -> Result<Config, ConfigError> {
        match self.config {
            Some(config) if self.errors.is_empty() => {
                for warning in &self.warnings {
                    tracing::warn!("{warning}");
                }
                Ok(config)
            }
            _ => Err(ConfigError::Invalid { problems: self.errors }),
        }
    }
}

/// The file's text, or what is wrong with the file as such.
fn read_file(path: &Path) -> Result<Result<String, Problem>, ConfigError> {
    let name = path.display().to_string();
    let unreadable = |source: std::io::Error| {
        let hint = match source.kind() {
            std::io::ErrorKind::NotFound => "; write a first one with `onceward config example > onceward.toml`",
            std::io::ErrorKind::PermissionDenied => "; let this user read it",
            _ => "",
        };
        ConfigError::Unreadable { file: path.to_owned(), hint, source }
    };
    let whole = |message: String| Ok(Err(Problem { place: Place::File(name.clone()), message }));
    if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return whole("is a directory; name the file in it".to_owned());
    }
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return whole(format!("is larger than {}; is it the right file?", units::spell_size(FILE_BYTES_MAX)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Ok(text)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes().get(..good).unwrap_or_default()).into_owned();
            let place = Source { name: &name, text: &text }.place(good);
            let message = "is not UTF-8 from here on; save the file in that encoding".to_owned();
            Ok(Err(Problem { place, message }))
        }
    }
}
