//! The store that the configuration names, opened.

use std::{fs, io, path::Path, sync::Arc};

use onceward::{
    Quotas, SecretId,
    store::{
        Store,
        embedded::{self, Embedded},
        log::{self, Keeps},
        postgres::{
            Options, Postgres,
            address::{Address, InvalidAddress},
        },
    },
};

use crate::{
    config::{Config, Database, PostgresStore, secret::Secret},
    proxy,
    start::StartError,
};

/// Ended records that the embedded store removes at a time.
const EMBEDDED_SWEPT_MAX: usize = 10_000;
/// The same in a database: one transaction, which claims may have to wait for.
const POSTGRES_SWEPT_MAX: usize = 1_000;
/// The name under which a database knows the hash of its install secret.
const SECRET_ID: &str = "secret_id";

/// A store of one of the kinds that can be chosen.
#[derive(Clone, Debug)]
pub enum Opened {
    /// Of this process alone.
    Embedded(Embedded),
    /// Of every process that the database has.
    Postgres(Arc<Postgres>),
}

impl Opened {
    /// As any store.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => Arc::new(store.clone()),
            Self::Postgres(store) => Arc::clone(store) as _,
        }
    }

    /// How many ended records are to be removed at a time.
    #[must_use]
    pub fn swept_max(&self) -> usize {
        match self {
            Self::Embedded(_) => EMBEDDED_SWEPT_MAX,
            Self::Postgres(_) => POSTGRES_SWEPT_MAX,
        }
    }

    /// Leaves word of where this process's admin listener is, for commands that find the folder held.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn set_admin(&self, address: &str) -> io::Result<()> {
        match self {
            Self::Embedded(store) => store.set_admin(address),
            // Nobody is kept out: commands open the database themselves.
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Lets it go, once all is written.
    pub async fn close(&self) {
        match self {
            Self::Embedded(store) => store.close().await,
            // Each answer was committed before it was given.
            Self::Postgres(_) => {}
        }
    }
}

/// Opens the store of the configuration, and says what is not well with it.
///
/// # Errors
/// [`StartError`].
pub async fn open(config: &Config, accept_loss: bool) -> Result<(Opened, Vec<String>), StartError> {
    match &config.store.postgres {
        None => embedded(config, accept_loss).await,
        Some(said) => postgres(config, said).await,
    }
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
pub fn addresses(said: &PostgresStore) -> Result<(Address, Option<Address>), StartError> {
    let listen = said.listen_url.as_ref().map(|url| Database { url: url.clone(), ..said.database.clone() });
    let wrong = |error: AddressError| StartError::Address(error.to_string());
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

async fn postgres(config: &Config, said: &PostgresStore) -> Result<(Opened, Vec<String>), StartError> {
    let (address, listen) = addresses(said)?;
    let folder = &config.store.path;
    fs::create_dir_all(folder).map_err(|source| StartError::System { what: "make the data folder", source })?;
    let mut options = Options::new(address);
    options.listen = listen;
    options.connections = said.connections;
    options.deadline = options.deadline.max(config.store.deadline);
    // Counting reads the whole table now and then, and only quotas ask for it.
    options.usage = config.quotas != Quotas::default();
    let store = Postgres::open(options).await.map_err(StartError::Postgres)?;
    bind(config, &store).await?;
    Ok((Opened::Postgres(Arc::new(store)), Vec::new()))
}

/// Every process of a database makes record ids with the same secret, or none would find another's.
async fn bind(config: &Config, store: &Postgres) -> Result<(), StartError> {
    let id = |secret: &crate::config::secret::InstallSecret| onceward::Secret::from_bytes(*secret.expose()).id();
    let Some(ours) = config.identity.secret.as_ref().map(id) else { return Ok(()) };
    let previous = config.identity.previous.as_ref().map(id);
    let failed = |source| StartError::System {
        what: "compare the install secret with the database's",
        source: io::Error::other(source),
    };
    let theirs = store.remember(SECRET_ID, &ours.to_string()).await.map_err(failed)?;
    let is = |id: &SecretId| id.to_string() == theirs;
    if is(&ours) {
        return Ok(());
    }
    if previous.as_ref().is_some_and(is) {
        return store.replace_remembered(SECRET_ID, &theirs, &ours.to_string()).await.map_err(failed);
    }
    Err(StartError::Foreign { theirs, ours: ours.to_string() })
}
