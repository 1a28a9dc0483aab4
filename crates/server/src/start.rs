//! The process from start to drain: store, engine, listeners, background work.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use onceward::{
    Engine, Layer,
    store::{
        Store, embedded,
        journaled::{self, SpoolError},
        postgres, redis,
    },
};
use tokio::net::TcpListener;
use tower::Layer as _;

use crate::{
    admin::Admin,
    assemble::{self, Unusable, Upstreams},
    cli::args::ProxyArgs,
    compensate::Calls,
    config::{Config, ConfigError, Environment, Flags, secret::Secret},
    demo, folder,
    identity::{self, Identity, Purpose},
    maintenance::Window,
    opened::{self, Opened, Stack},
    proxy,
    reconcile::Reconciler,
    reload::Reload,
    sweep::{self, Sweeping},
    telemetry,
};

/// The admin token's file in the data folder.
const TOKEN_FILE: &str = "admin.token";
/// Takes a safety out, in builds for the crash checker.
const MUTANT: &str = "ONCEWARD_MUTANT";
/// How often certificate files are looked at for other contents.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(2);
/// How often unknown outcomes are looked through.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
/// Whose turn it is to settle them, of the gateways of a store; how long a dead one keeps it.
/// A look is put off so often, one after the other, at most.
const SETTLE_PUT_OFF_MAX: u32 = 6;
const SETTLE_TURN: &str = "settle";
const SETTLE_TURN_LASTS: Duration = Duration::from_secs(15);

/// Why a process did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong: exit code 2.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Record ids would be made otherwise than so far: exit code 2.
    #[error(
        "record ids would be made otherwise than so far, and keys that clients still retry would be new and run again: \
         {}. Take the change back, or start with --accept-rekey: records of before are then looked for under their \
         earlier ids too, until they have ended", .changes.join("; ")
    )]
    Rekeyed {
        /// What would change, route by route.
        changes: Vec<String>,
    },
    /// `ONCEWARD_FAILPOINT` is no failpoint: exit code 2.
    #[error("ONCEWARD_FAILPOINT: {0}")]
    Failpoint(String),
    /// `ONCEWARD_MUTANT` names nothing that can be taken out of this build: exit code 2.
    #[error("ONCEWARD_MUTANT: {0}")]
    Mutant(String),
    /// A certificate of the listener cannot be used: exit code 2.
    #[error("listen.tls: {0}")]
    Certificates(proxy::TlsErrors),
    /// A route cannot be built.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The store does not open.
    #[error("the store in {} does not open", folder.display())]
    Store {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: embedded::OpenError,
    },
    /// The spool of routes that are journaled does not open.
    #[error("the spool in {} does not open", folder.display())]
    Spool {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: Box<SpoolError>,
    },
    /// Redis, the database and the spool are not such that routes may be journaled.
    #[error("routes cannot be journaled")]
    Journal(#[source] Box<journaled::OpenError>),
    /// The store in Postgres does not open.
    #[error("the store in Postgres does not open")]
    Postgres(#[source] postgres::OpenError),
    /// The store in Redis does not open.
    #[error("the store in Redis at {address} does not open")]
    Redis {
        /// Where it was looked for.
        address: String,
        /// Why.
        #[source]
        source: redis::OpenError,
    },
    /// The address of the store or its TLS cannot be used: exit code 2.
    #[error("[{section}]: {what}")]
    Address {
        /// Which address.
        section: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The records of the store were made with another secret.
    #[error(
        "the records of this store were made with another install secret ({theirs}, not {ours}); under this one every \
         key would be new and run again. Bring the old secret back as [identity] secret, or give it as [identity] \
         previous"
    )]
    Foreign {
        /// A hash of the store's secret.
        theirs: String,
        /// Of the configuration's.
        ours: String,
    },
    /// `store.durable = "required"`, and the folder may be emptied.
    #[error(
        "{} is on a file system that {}; put [store] path on a disk, or take store.durable back",
        folder.display(), why
    )]
    NotDurable {
        /// The folder.
        folder: PathBuf,
        /// What happens to it.
        why: &'static str,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({what}); stop whatever uses it, or choose another with {flag}")]
    Listen {
        /// What for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// How to choose another.
        flag: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A secret cannot be read or drawn.
    #[error("{}: {what}", file.display())]
    Secret {
        /// Its file.
        file: PathBuf,
        /// What is wrong, and how to mend it.
        what: String,
    },
    /// Something of the operating system.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// 2 for wrong usage or configuration, 1 for everything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Rekeyed { .. }
            | Self::Failpoint(_)
            | Self::Mutant(_)
            | Self::Address { .. }
            | Self::Certificates(_)
            | Self::Unusable(_) => 2,
            _ => 1,
        }
    }

    /// Whether a Redis does not answer, or not yet: no sign that anything is wrong with it or its address.
    pub(crate) fn is_redis_away(&self) -> bool {
        matches!(self, Self::Redis { source, .. } if source.is_away())
    }

    /// With all that is underneath, in one line.
    #[must_use]
    pub fn in_words(&self) -> String {
        let mut words = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            words = format!("{words}: {error}");
            cause = error.source();
        }
        words
    }
}

/// What fails on purpose, where that is asked for.
fn failing(store: Arc<dyn Store>) -> Arc<dyn Store> {
    if onceward::failpoint::is_in_store() {
        return Arc::new(onceward::failing_store::FailingStore::new(store));
    }
    store
}

/// Runs `onceward proxy` until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`StartError`]; nothing was served then.
pub async fn run(args: &ProxyArgs) -> Result<(), StartError> {
    if let Ok(failpoint) = std::env::var("ONCEWARD_FAILPOINT") {
        onceward::failpoint::check(&failpoint).map_err(StartError::Failpoint)?;
        tracing::warn!(failpoint, "a failpoint is armed: this process will fail on purpose");
    }
    mutate()?;
    let mut flags = args.flags();
    let demo = if args.demo { Some(sample_api(&mut flags).await?) } else { None };
    let environment = Environment::of_process();
    let config = Config::load(args.config.as_deref(), &flags, &environment)?;
    if config.store.is_shared() {
        tracing::info!(
            "requests through the gateways of this store only are protected; point every client at one of them"
        );
    } else {
        tracing::info!("requests through this process only are protected; point every client at it");
    }

    let metrics = install_metrics()?;
    let (store, concerns) = opened::open(&config, args.accept_loss).await?;
    let stack = opened::stack(&config, &store, failing).await?;
    let upstreams = Upstreams::new(&config, &Upstreams::default())?;
    let tls = listener_tls(&config, upstreams.certificates())?;
    let purpose = Purpose::Serve { accept_rekey: args.accept_rekey };
    let engine = engine(&config, &upstreams, Arc::clone(&stack.store), purpose)?;
    let listener = listen("requests", config.listen.address, "--listen").await?;
    let admin_listener = listen("admin", config.admin.address, "--admin").await?;
    let system = |what| move |source| StartError::System { what, source };
    let address = listener.local_addr().map_err(system("ask for the proxy's address"))?;
    let admin_address = admin_listener.local_addr().map_err(system("ask for the admin address"))?;
    store.set_admin(&admin_address.to_string()).map_err(system("write the admin address into the lock file"))?;
    let token = admin_token(&config)?;

    let calls = Calls::new(&config, upstreams.certificates());
    let reconciler = Arc::new(Reconciler::new(engine.clone(), &store, &config.reconcile, calls));
    let (shown, listening) = (Some(metrics.clone()), Some(admin_address));
    let admin = Admin::new(engine.clone(), shown, token, listening, concerns, Arc::clone(&reconciler));
    let hangup = hangup_signal()?;
    let certificates = upstreams.certificates().clone();
    let (file, running) = (args.config.clone(), config.clone());
    let sample_api = flags.upstream.clone().filter(|_| demo.is_some());
    let reload = Reload::new(file, flags, environment, running, upstreams, engine.clone(), admin.clone());
    let telemetry = telemetry::start(&config.telemetry, &engine, metrics.clone());
    let mut background =
        Background::start(&engine, &store, stack, metrics, admin_listener, &admin, config.maintenance.window);
    background.0.push(tokio::spawn(reload.run(hangup)));
    background.0.push(tokio::spawn(certificates.watch(CERTIFICATES_EVERY)));
    background.0.extend(telemetry);
    background.0.push(tokio::spawn(Arc::clone(&reconciler).keep_compensating()));
    background.0.push(tokio::spawn(reconciler.keep_looking(config.reconcile.every)));
    announce(args, &config, sample_api, address, admin_address)?;

    let limits = transport_limits(&config);
    let trusted = proxy::Trusted::parse(config.listen.trusted.iter().map(ToString::to_string))
        .map_err(|error| StartError::System { what: "read listen.trusted", source: io::Error::other(error) })?;
    let mut stop = std::pin::pin!(stop_signal()?);
    let service = Layer::new(engine.clone()).layer(proxy::Dispatch);
    let stopping = std::cell::Cell::new(None);
    let stopped = async {
        stop.as_mut().await;
        tracing::info!("stopping: finishing what runs");
        stopping.set(Some(tokio::time::Instant::now()));
        admin.drain();
    };
    let report = match tls {
        Some(tls) => proxy::serve_tls(listener, tls, service, limits, trusted, stopped).await,
        None => proxy::serve(listener, service, limits, trusted, stopped).await,
    };
    // Executions whose clients have gone share the time that connections had.
    let spent = stopping.get().map_or(Duration::ZERO, |since| since.elapsed());
    let left = engine.drain(config.listen.drain.saturating_sub(spent)).await;
    if report.connections_cut > 0 || left > 0 {
        tracing::warn!(
            connections_cut = report.connections_cut,
            tunnels_cut = report.tunnels_cut,
            executions_left = left,
            "stopped before all was done; what was left is an unknown outcome"
        );
    }
    background.stop();
    store.close().await;
    if let Some(demo) = demo {
        demo.abort();
    }
    tracing::info!("stopped");
    Ok(())
}

/// Takes a safety out where the crash checker asks for it.
#[cfg(feature = "mutants")]
fn mutate() -> Result<(), StartError> {
    use onceward_core::mutant::{self, Mutant};
    let Ok(name) = std::env::var(MUTANT) else { return Ok(()) };
    let names = || Mutant::ALL.map(Mutant::name).join(", ");
    let chosen = Mutant::named(&name).ok_or_else(|| StartError::Mutant(format!("{name:?} is none of {}", names())))?;
    mutant::choose(chosen);
    tracing::error!(mutant = name, "a safety is taken out of this process: it breaks its promises on purpose");
    Ok(())
}

/// No safety can be taken out of this build, and whoever asks for it is told so.
#[cfg(not(feature = "mutants"))]
fn mutate() -> Result<(), StartError> {
    match std::env::var_os(MUTANT) {
        None => Ok(()),
        Some(_) => Err(StartError::Mutant("this build has all safeties; unset it".to_owned())),
    }
}

/// An engine over `store`, with the configuration's routes and the folder's secret.
///
/// # Errors
/// [`StartError`].
pub fn engine(
    config: &Config,
    upstreams: &Upstreams,
    store: Arc<dyn Store>,
    purpose: Purpose,
) -> Result<Engine, StartError> {
    let Identity { secret, before } = identity::settle(config, purpose)?;
    let routes = assemble::routes(config, upstreams)?;
    let engine = Engine::new(store, secret, routes, assemble::limits(&config.limits), Engine::new_session());
    engine.limit_tenants(config.quotas.clone());
    engine.look_under(before);
    Ok(engine)
}

/// The admin token of the configuration, else the folder's, drawn on first use.
///
/// # Errors
/// [`StartError`].
pub fn admin_token(config: &Config) -> Result<Secret, StartError> {
    if let Some(token) = &config.admin.token {
        return Ok(token.clone());
    }
    folder::text_or_drawn(&config.store.path, TOKEN_FILE).map(Secret::new)
}

async fn sample_api(flags: &mut Flags) -> Result<tokio::task::JoinHandle<io::Result<()>>, StartError> {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = listen("the sample API", address, "--demo").await?;
    let bound =
        listener.local_addr().map_err(|source| StartError::System { what: "ask for the sample's address", source })?;
    flags.upstream = Some(format!("http://{bound}"));
    Ok(tokio::spawn(demo::serve(listener, std::future::pending())))
}

async fn listen(what: &'static str, address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { what, address, flag, source })
}

fn install_metrics() -> Result<PrometheusHandle, StartError> {
    // From a tenth of a millisecond, which a replay takes, to the longest wait.
    const SECONDS: &[f64] = &[
        0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0, 30.0,
    ];
    let failed = |error| StartError::System { what: "set up the metrics", source: io::Error::other(error) };
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(failed)
}

fn listener_tls(
    config: &Config,
    certificates: &proxy::Certificates,
) -> Result<Option<Arc<proxy::ServerTls>>, StartError> {
    let load = |said| proxy::ServerTls::load(said, certificates);
    config.listen.tls.as_ref().map(load).transpose().map_err(StartError::Certificates)
}

fn transport_limits(config: &Config) -> proxy::Limits {
    proxy::Limits {
        connections: config.limits.connections,
        headers_bytes: usize::try_from(config.limits.headers).unwrap_or(usize::MAX),
        drain: config.listen.drain,
        ..proxy::Limits::default()
    }
}

/// Tells whoever waits for it, a person or a script, that requests are taken.
fn announce(
    args: &ProxyArgs,
    config: &Config,
    sample_api: Option<String>,
    address: SocketAddr,
    admin: SocketAddr,
) -> Result<(), StartError> {
    let failed = |source| StartError::System { what: "write to stdout", source };
    let mut out = io::stdout().lock();
    let scheme = if config.listen.tls.is_some() { "https" } else { "http" };
    writeln!(out, "onceward ready proxy={scheme}://{address} admin=http://{admin}").map_err(failed)?;
    if let Some(sample_api) = sample_api {
        let program = std::env::args_os().next().map_or_else(|| PathBuf::from("onceward"), PathBuf::from);
        let data = args.data.as_deref().unwrap_or(&config.store.path);
        writeln!(out).map_err(failed)?;
        write!(out, "{}", demo::commands(&program, address, admin, data, std::process::id())).map_err(failed)?;
        writeln!(out, "\nThe sample API without Onceward before it, to compare: {sample_api}/v1/payments")
            .map_err(failed)?;
    }
    out.flush().map_err(failed)
}

fn stop_signal() -> Result<impl Future<Output = ()>, StartError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |source| StartError::System { what: "listen for signals", source };
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Taken before anything is ready, so that no SIGHUP ends the process.
fn hangup_signal() -> Result<tokio::signal::unix::Signal, StartError> {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::hangup()).map_err(|source| StartError::System { what: "listen for signals", source })
}

/// What runs beside the requests.
struct Background(Vec<tokio::task::JoinHandle<()>>);

impl Background {
    fn start(
        engine: &Engine,
        store: &Opened,
        stack: Stack,
        metrics: PrometheusHandle,
        admin_listener: TcpListener,
        admin: &Admin,
        window: Option<Window>,
    ) -> Self {
        let router = admin.router();
        let serve = async move {
            if let Err(error) = axum::serve(admin_listener, router).await {
                tracing::error!(%error, "the admin listener ended");
            }
        };
        let sweeping = Sweeping { records_max: store.swept_max(), goes_on: store.sweeps_for(), window };
        let sweep = sweep::keep(store.clone(), stack, sweeping, engine.clone(), metrics);
        let settle = settle(engine.clone(), store.clone());
        Self(vec![tokio::spawn(serve), tokio::spawn(sweep), tokio::spawn(settle)])
    }

    fn stop(self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Unknown outcomes are looked through by every process, for its gauges, and settled by one at a time.
async fn settle(engine: Engine, store: Opened) {
    let mut tick = tokio::time::interval(SETTLE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut put_off = 0;
    loop {
        tick.tick().await;
        if put_off < SETTLE_PUT_OFF_MAX && engine.outage_is_recent() {
            put_off += 1;
            continue;
        }
        put_off = 0;
        let looked = match store.keep_turn(SETTLE_TURN, engine.session(), SETTLE_TURN_LASTS).await {
            Ok(true) => engine.settle_unattended().await,
            Ok(false) => engine.count_unattended().await.map(|()| 0),
            Err(error) => Err(error),
        };
        match looked {
            Ok(0) => {}
            Ok(settled) => tracing::info!(settled, "unknown outcomes were settled by policy"),
            Err(error) => tracing::warn!(%error, "unknown outcomes could not be looked through"),
        }
    }
}
