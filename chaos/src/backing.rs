//! What is behind the processes under test: a folder of one process's own, or a database that several share.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;

use crate::cache::{self, Cache};
use crate::database::Database;
use crate::disk::SmallDisk;
use crate::plan::Durability;
use crate::shards::Shards;

/// The stores that plans are carried out on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    /// One process on its folder.
    Embedded,
    /// Two processes on one PostgreSQL database.
    Postgres,
    /// Two processes on one Redis server, or on a Cluster.
    Redis,
    /// Two processes on one PostgreSQL database with one Redis server in front.
    Tiered,
}

impl Store {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Embedded, Self::Postgres, Self::Redis, Self::Tiered];

    /// As `--store` spells it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Tiered => "tiered",
        }
    }
}

/// How long a claim lasts without renewal, as the configuration writes it, on routes of three kinds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leases {
    /// Shorter than a process is stopped for.
    pub(crate) short: &'static str,
    /// Longer than that: what would be run again.
    pub(crate) again: &'static str,
    /// Longer than anything that is waited for, where nobody has to wait for it.
    pub(crate) long: &'static str,
}

/// What is behind the processes of one round.
pub(crate) enum Backing {
    /// A folder, and the disk that it is on, where that is one that can be filled.
    Embedded {
        /// The folder.
        folder: PathBuf,
        /// The disk.
        disk: Option<SmallDisk>,
    },
    /// A database.
    Postgres(Box<Database>),
    /// Redis.
    Redis(Box<Cache>),
    /// A Redis Cluster.
    Cluster(Box<Shards>),
    /// A database with Redis in front, and where all routes have their records.
    Tiered(Box<Database>, Box<Cache>, Durability),
}

/// 32 bytes, in base64.
pub(crate) const SECRET: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// The tables of every configuration whose records are shared.
fn shared(kind: &str, own: &Path) -> String {
    format!("[identity]\nsecret = \"{SECRET}\"\n[store]\nkind = \"{kind}\"\npath = {own:?}\ndeadline = \"2s\"\n")
}

impl Backing {
    /// Whether Redis has the only copy of records.
    #[must_use]
    pub(crate) fn is_cache(&self) -> bool {
        matches!(self, Self::Redis(_) | Self::Cluster(_) | Self::Tiered(_, _, Durability::Cache))
    }

    /// Whether Redis is in front of a journal.
    #[must_use]
    pub(crate) fn is_journaled(&self) -> bool {
        matches!(self, Self::Tiered(_, _, Durability::Journaled))
    }

    /// How many processes are before it.
    #[must_use]
    pub(crate) fn gateways(&self) -> usize {
        match self {
            Self::Embedded { .. } => 1,
            Self::Postgres(_) | Self::Redis(_) | Self::Cluster(_) | Self::Tiered(..) => 2,
        }
    }

    /// The tables of the configuration that name it. What a process keeps for itself is in `own`.
    #[must_use]
    pub(crate) fn config(&self, own: &Path) -> String {
        match self {
            Self::Embedded { folder, .. } => {
                format!("[store]\nkind = \"embedded\"\npath = {folder:?}\nreserve = \"1MiB\"\n")
            }
            Self::Postgres(database) => format!("{}{}", shared("postgres", own), database.table()),
            Self::Redis(cache) => format!("{}{}", shared("redis", own), cache.table()),
            Self::Cluster(shards) => format!("{}{}", shared("redis", own), shards.table()),
            Self::Tiered(database, cache, _) => {
                format!("{}{}{}", shared("tiered", own), database.table(), cache.table())
            }
        }
    }

    /// What it asks of all routes.
    #[must_use]
    pub(crate) fn defaults(&self) -> String {
        match self {
            Self::Embedded { .. } | Self::Postgres(_) => String::new(),
            Self::Redis(cache) | Self::Tiered(_, cache, Durability::Cache) => cache.defaults(),
            Self::Tiered(_, _, durability) => cache::defaults_of_kept(*durability),
            Self::Cluster(_) => cache::defaults(false),
        }
    }

    /// How long claims last before it.
    #[must_use]
    pub(crate) fn leases(&self) -> Leases {
        match self {
            // A short one is renewed every tenth of a second, so that a stopped process soon sleeps through it.
            // Nobody waits for the end of one: a process that is gone holds nothing.
            Self::Embedded { .. } => Leases { short: "400ms", again: "10s", long: "30m" },
            // The claims of a process that is gone are its own until their leases end.
            Self::Postgres(_) | Self::Redis(_) | Self::Cluster(_) | Self::Tiered(..) => {
                Leases { short: "500ms", again: "3s", long: "3s" }
            }
        }
    }

    /// The folder.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn folder(&self) -> anyhow::Result<&Path> {
        match self {
            Self::Embedded { folder, .. } => Ok(folder),
            _ => anyhow::bail!("this life needs a store in a folder"),
        }
    }

    /// The disk that can be filled.
    ///
    /// # Errors
    /// Where it is on none.
    pub(crate) fn disk(&self) -> anyhow::Result<&SmallDisk> {
        match self {
            Self::Embedded { disk, .. } => disk.as_ref().context("this life needs a disk of its own"),
            _ => anyhow::bail!("this life needs a store in a folder"),
        }
    }

    /// The database.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn database(&mut self) -> anyhow::Result<&mut Database> {
        match self {
            Self::Postgres(database) | Self::Tiered(database, ..) => Ok(database),
            _ => anyhow::bail!("this life needs a database"),
        }
    }

    /// Redis.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn cache(&mut self) -> anyhow::Result<&mut Cache> {
        match self {
            Self::Redis(cache) | Self::Tiered(_, cache, _) => Ok(cache),
            _ => anyhow::bail!("this life needs one Redis"),
        }
    }

    /// A Redis Cluster.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn shards(&mut self) -> anyhow::Result<&mut Shards> {
        match self {
            Self::Cluster(shards) => Ok(shards),
            _ => anyhow::bail!("this life needs a Redis Cluster"),
        }
    }
}
