//! The store that the configuration names, opened.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use onceward::{
    Quotas, SecretId,
    store::{
        Store, StoreError,
        circuit::Breaker,
        embedded::{self, Embedded},
        fallback::Fallback,
        guarded::Guarded,
        journaled::JournaledStore,
        log::{self, Keeps},
        postgres::{
            self, Postgres,
            address::{Address, InvalidAddress},
        },
        redis::{self, Redis},
        tiered::Tiered,
    },
};
use onceward_core::record::SessionId;

use crate::{
    config::{
        Config, Database, PostgresStore, RedisStore,
        secret::{InstallSecret, Secret},
    },
    journaling::Journaling,
    late, proxy,
    start::StartError,
};

/// Ended records that the embedded store removes at a time.
const EMBEDDED_SWEPT_MAX: usize = 10_000;
/// The same in a database: one transaction, which claims may have to wait for. Redis removes them itself.
const SHARED_SWEPT_MAX: usize = 1_000;
/// For so long of each second a database is swept, where there is more: so more records can go than come.
const SHARED_GOES_ON: Duration = Duration::from_millis(500);
/// The circuit before journaled keys is open no longer.
const JOURNALED_OPEN: Duration = Duration::from_millis(200);
/// The name under which a store of several processes knows the hash of its install secret.
pub(crate) const SECRET_ID: &str = "secret_id";

/// A store of one of the kinds that can be chosen.
#[derive(Clone, Debug)]
pub enum Opened {
    /// Of this process alone.
    Embedded(Embedded),
    /// Of every process that the database has.
    Postgres(Arc<Postgres>),
    /// Of every process that has the Redis.
    Redis(Arc<Redis>),
    /// Of every process that has both.
    Tiered(Arc<Postgres>, Arc<Redis>, Option<Journaling>),
}

/// The stores of the configuration with what guards and joins them.
#[derive(Debug)]
pub struct Stack {
    /// What requests go to.
    pub store: Arc<dyn Store>,
    /// Each store's guard.
    pub guards: Vec<Arc<Guarded>>,
    /// Where `store` is one.
    pub fallback: Option<Arc<Fallback>>,
    /// Where `store` is one.
    pub tiered: Option<Arc<Tiered>>,
}

impl Opened {
    /// As any store; of two the database.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => Arc::new(store.clone()),
            Self::Postgres(store) | Self::Tiered(store, ..) => Arc::clone(store) as _,
            Self::Redis(store) => Arc::clone(store) as _,
        }
    }

    /// Where it keeps journaled keys, too.
    #[must_use]
    pub fn journaled(&self) -> Option<&Arc<JournaledStore>> {
        match self {
            Self::Tiered(.., Some(journaling)) => Some(&journaling.store),
            Self::Embedded(_) | Self::Postgres(_) | Self::Redis(_) | Self::Tiered(..) => None,
        }
    }

    /// The database that the records are in.
    #[must_use]
    pub fn database(&self) -> Option<&Postgres> {
        match self {
            Self::Postgres(store) | Self::Tiered(store, ..) => Some(store),
            Self::Embedded(_) | Self::Redis(_) => None,
        }
    }

    /// Whether this process is the one that does for all what goes by this name: from now on for `span`, and longer where
    /// it asks again before that is over.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn keep_turn(&self, name: &str, process: SessionId, span: Duration) -> Result<bool, StoreError> {
        let process = format!("{process:?}");
        match self {
            Self::Embedded(_) => Ok(true),
            Self::Postgres(store) | Self::Tiered(store, ..) => store.keep_turn(name, &process, span).await,
            Self::Redis(store) => store.keep_turn(name, &process, span).await,
        }
    }

    /// How many ended records are to be removed at a time.
    #[must_use]
    pub fn swept_max(&self) -> usize {
        match self {
            Self::Embedded(_) => EMBEDDED_SWEPT_MAX,
            Self::Postgres(_) | Self::Redis(_) | Self::Tiered(..) => SHARED_SWEPT_MAX,
        }
    }

    /// For how long of each second they are removed, where there are more.
    pub(crate) fn sweeps_for(&self) -> Duration {
        match self {
            Self::Embedded(_) => Duration::ZERO,
            Self::Postgres(_) | Self::Redis(_) | Self::Tiered(..) => SHARED_GOES_ON,
        }
    }

    /// Leaves word of where this process's admin listener is, for commands that find the folder held.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn set_admin(&self, address: &str) -> io::Result<()> {
        match self {
            Self::Embedded(store) => store.set_admin(address),
            Self::Tiered(.., Some(journaling)) => journaling.set_admin(address),
            // Nobody is kept out: commands open the store themselves.
            Self::Postgres(_) | Self::Redis(_) | Self::Tiered(..) => Ok(()),
        }
    }

    /// Lets it go, once all is written.
    pub async fn close(&self) {
        match self {
            Self::Embedded(store) => store.close().await,
            Self::Tiered(.., Some(journaling)) => journaling.close().await,
            // What was answered is with the server.
            Self::Postgres(_) | Self::Redis(_) | Self::Tiered(..) => {}
        }
    }
}

/// Opens the store of the configuration, and says what is not well with it.
///
/// # Errors
/// [`StartError`].
pub async fn open(config: &Config, accept_loss: bool) -> Result<(Opened, Vec<String>), StartError> {
    let opened = match (&config.store.postgres, &config.store.redis) {
        (Some(said), Some(and)) => {
            let postgres = database(config, said, "store.postgres").await?;
            let redis = in_front(config, and, &postgres).await?;
            let journaling = match &config.store.journal {
                Some(said) => Some(Journaling::open(config, said, &postgres, &redis).await?),
                None => None,
            };
            Opened::Tiered(postgres, redis, journaling)
        }
        (Some(said), None) => Opened::Postgres(database(config, said, "store.postgres").await?),
        (None, Some(said)) => Opened::Redis(redis(config, said).await?),
        (None, None) => return embedded(config, accept_loss).await,
    };
    Ok((opened, Vec::new()))
}

async fn embedded(config: &Config, accept_loss: bool) -> Result<(Opened, Vec<String>), StartError> {
    let folder = &config.store.path;
    let mut options = embedded::Options::default();
    options.log.accept_loss = accept_loss;
    options.log.reserve_bytes = u32::try_from(config.store.reserve).unwrap_or(u32::MAX);
    if let Some(records) = config.store.max_records {
        options.records_max = usize::try_from(records).unwrap_or(usize::MAX);
    }
    // Before the first segment is written: a refused folder is left as it was.
    let made = fs::create_dir_all(folder).and_then(|()| log::keeps(folder));
    let why = match made {
        Ok(Keeps::InMemory) => Some("lives in memory and is empty after a restart"),
        Ok(Keeps::InContainer) => Some("belongs to its container and goes with it"),
        _ => None,
    };
    if let Some(why) = why
        && config.store.durable_required
    {
        return Err(StartError::NotDurable { folder: folder.clone(), why });
    }
    let store =
        Embedded::open(folder, options).await.map_err(|source| StartError::Store { folder: folder.clone(), source })?;
    let mut concerns = Vec::new();
    if let Some(why) = why {
        concerns.push(format!("the data folder {} {why}", folder.display()));
    }
    if let Some(cut) = &store.report().cut {
        tracing::warn!(
            file = cut.file,
            offset = cut.offset,
            bytes = cut.bytes,
            "an incomplete last batch was cut; nobody was told that it was written"
        );
    }
    for loss in &store.report().losses {
        tracing::error!(
            file = loss.file,
            from = loss.from,
            to = loss.to,
            after_us = loss.after_us,
            before_us = loss.before_us,
            "a part of the log is lost: keys written between these times may run again"
        );
        concerns.push(format!(
            "{} bytes {} to {} were lost: keys written there may run again",
            loss.file, loss.from, loss.to
        ));
    }
    for concern in &concerns {
        tracing::warn!("{concern}");
    }
    Ok((Opened::Embedded(store), concerns))
}

/// Where the database of the configuration is, and where notifications are listened for.
///
/// # Errors
/// [`StartError::Address`].
pub fn addresses(said: &PostgresStore, section: &'static str) -> Result<(Address, Option<Address>), StartError> {
    let listen = said.listen_url.as_ref().map(|url| Database { url: url.clone(), ..said.database.clone() });
    let wrong = |error: AddressError| StartError::Address { section, what: error.to_string() };
    let address = address(&said.database).map_err(wrong)?;
    Ok((address, listen.as_ref().map(self::address).transpose().map_err(wrong)?))
}

/// Where a database is, and how a connection to it is made.
///
/// # Errors
/// Where it is no address, or a certificate cannot be read.
pub fn address(said: &Database) -> Result<Address, AddressError> {
    let tls = if said.tls { Some(tls(said.ca.as_deref())?) } else { None };
    Ok(Address::new(said.url.expose(), said.password.as_ref().map(Secret::expose), tls)?)
}

/// Why a database cannot be reached at all.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Its address.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] proxy::TlsErrors),
}

/// TLS to a database; the authorities of the system where `ca` is none.
///
/// # Errors
/// Where a certificate cannot be read.
pub fn tls(ca: Option<&Path>) -> Result<Arc<rustls::ClientConfig>, proxy::TlsErrors> {
    let mut tls = proxy::http1_client(ca.map(Path::to_path_buf), true)?;
    // The protocol inside is the database's own.
    tls.alpn_protocols.clear();
    Ok(Arc::new(tls))
}

/// The stores with their deadlines and circuits, joined as the configuration says; `wrap` goes around the one that keeps
/// claims, inside of its guard.
///
/// # Errors
/// [`StartError`].
pub async fn stack(
    config: &Config,
    opened: &Opened,
    wrap: fn(Arc<dyn Store>) -> Arc<dyn Store>,
) -> Result<Stack, StartError> {
    let breaker = config.store.breaker;
    let guarded = |store, breaker| Arc::new(Guarded::new(store, config.store.deadline, breaker));
    let guard = |store| guarded(store, breaker);
    let first = guard(wrap(opened.store()));
    if let Opened::Tiered(_, redis, journaling) = opened {
        let cache = guard(Arc::clone(redis) as _);
        let mut tiered = Tiered::new(Arc::clone(&first), Arc::clone(&cache), Arc::clone(redis), breaker);
        let mut guards = vec![first, cache];
        if let Some(journaling) = journaling {
            // Its claims find another place by themselves, within a second mostly.
            let breaker = Breaker { open: breaker.open.min(JOURNALED_OPEN), ..breaker };
            let journaled = guarded(wrap(Arc::clone(&journaling.store) as _), breaker);
            guards.push(Arc::clone(&journaled));
            tiered = tiered.with_journaled(journaled);
        }
        let tiered = Arc::new(tiered);
        return Ok(Stack { store: Arc::clone(&tiered) as _, guards, fallback: None, tiered: Some(tiered) });
    }
    let Some(said) = &config.store.fallback else {
        return Ok(Stack { store: Arc::clone(&first) as _, guards: vec![first], fallback: None, tiered: None });
    };
    let second = guard(database(config, said, "store.fallback").await? as _);
    let fallback = Arc::new(Fallback::new(Arc::clone(&first), Arc::clone(&second)));
    Ok(Stack { store: Arc::clone(&fallback) as _, guards: vec![first, second], fallback: Some(fallback), tiered: None })
}

async fn database(config: &Config, said: &PostgresStore, section: &'static str) -> Result<Arc<Postgres>, StartError> {
    let (address, listen) = addresses(said, section)?;
    let folder = &config.store.path;
    fs::create_dir_all(folder).map_err(|source| StartError::System { what: "make the data folder", source })?;
    let mut options = postgres::Options::new(address);
    options.listen = listen;
    options.connections = said.connections;
    options.deadline = options.deadline.max(config.store.deadline);
    // Counting reads the whole table now and then, and only quotas ask for it.
    options.usage = config.quotas != Quotas::default();
    let store = Arc::new(Postgres::open(options).await.map_err(StartError::Postgres)?);
    bind(config, Remembers::Postgres(&store)).await?;
    Ok(store)
}

/// A Redis in front of a database, without which a process can begin: then it is used once it is there, and has been
/// looked at.
async fn in_front(config: &Config, said: &RedisStore, postgres: &Arc<Postgres>) -> Result<Arc<Redis>, StartError> {
    match redis(config, said).await {
        Err(away) if away.is_redis_away() => {
            tracing::error!("this process begins without Redis, and uses it once it is there: {}", away.in_words());
            let options = redis_options(config, said)?;
            let address = options.address.to_string();
            let store = Redis::shut(options).map_err(|source| StartError::Redis { address, source })?;
            let store = Arc::new(store);
            tokio::spawn(late::admit(Arc::downgrade(&store), Arc::downgrade(postgres), config.clone(), said.clone()));
            Ok(store)
        }
        opened => opened,
    }
}

/// Opens it, and holds it to the install secret.
pub(crate) async fn redis(config: &Config, said: &RedisStore) -> Result<Arc<Redis>, StartError> {
    let options = redis_options(config, said)?;
    let folder = &config.store.path;
    fs::create_dir_all(folder).map_err(|source| StartError::System { what: "make the data folder", source })?;
    let address = options.address.to_string();
    let store = Redis::open(options).await.map_err(|source| StartError::Redis { address, source })?;
    let store = Arc::new(store);
    bind(config, Remembers::Redis(&store)).await?;
    Ok(store)
}

fn redis_options(config: &Config, said: &RedisStore) -> Result<redis::Options, StartError> {
    let address = redis_address(said)?;
    let mut options = redis::Options::new(address);
    options.strategy = said.strategy;
    options.evictions = said.evictions;
    options.wait = said.wait;
    options.deadline = options.deadline.max(config.store.deadline);
    // Counting reads every record now and then, and only quotas ask for it.
    options.usage = config.quotas != Quotas::default();
    Ok(options)
}

/// Where the Redis of the configuration is, and how a connection to it is made; certificates are read.
///
/// # Errors
/// [`StartError::Address`].
pub fn redis_address(said: &RedisStore) -> Result<redis::address::Address, StartError> {
    let wrong = |what: String| StartError::Address { section: "store.redis", what };
    let file = |path: &Path| fs::read(path).map_err(|error| wrong(format!("{}: {error}", path.display())));
    let identity = match &said.client_cert {
        Some(own) => Some((file(&own.cert)?, file(&own.key)?)),
        None => None,
    };
    let ca = said.ca.as_deref().map(file).transpose()?;
    let tls = (ca.is_some() || identity.is_some()).then_some(redis::address::Tls { ca, identity });
    let password = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    let own = redis::address::Credentials { user: said.username.clone(), password: password(&said.password) };
    let (user, password) = (said.sentinel_username.clone(), password(&said.sentinel_password));
    let sentinel = redis::address::Credentials { user, password };
    redis::address::Address::new(said.url.expose(), own, sentinel, tls).map_err(|error| wrong(error.to_string()))
}

/// A store that several processes have.
enum Remembers<'a> {
    Postgres(&'a Postgres),
    Redis(&'a Redis),
}

/// The hash by which a store knows it.
pub(crate) fn secret_id(secret: &InstallSecret) -> SecretId {
    onceward::Secret::from_bytes(*secret.expose()).id()
}

/// Every process of a store makes record ids with the same secret, or none would find another's.
async fn bind(config: &Config, store: Remembers<'_>) -> Result<(), StartError> {
    let Some(ours) = config.identity.secret.as_ref().map(secret_id) else { return Ok(()) };
    let previous = config.identity.previous.as_ref().map(secret_id);
    let failed = |source| StartError::System {
        what: "compare the install secret with the store's",
        source: io::Error::other(source),
    };
    let said = ours.to_string();
    let theirs = match &store {
        Remembers::Postgres(store) => store.remember(SECRET_ID, &said).await,
        Remembers::Redis(store) => store.remember(SECRET_ID, &said).await,
    }
    .map_err(failed)?;
    let is = |id: &SecretId| id.to_string() == theirs;
    if is(&ours) {
        return Ok(());
    }
    if previous.as_ref().is_some_and(is) {
        return match &store {
            Remembers::Postgres(store) => store.replace_remembered(SECRET_ID, &theirs, &said).await,
            Remembers::Redis(store) => store.replace_remembered(SECRET_ID, &said).await,
        }
        .map_err(failed);
    }
    Err(StartError::Foreign { theirs, ours: said })
}
