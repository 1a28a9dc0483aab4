//! The schema's migrations: numbered, each in a transaction of its own, under one advisory lock.
//!
//! A migration that was applied is never changed; what comes later is another file. Several versions of Onceward run
//! beside each other on one schema: a step only adds, and what it makes superfluous goes in a later step that is marked
//! as breaking, once no process is left that does not know it.

use std::time::Duration;

use tokio_postgres::{Client, Transaction, types::Type};
use xxhash_rust::xxh3::xxh3_64;

use super::{address::Address, error::Failure};

/// How long a step waits for another process that migrates.
pub const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Names the lock among a database's advisory locks: `onceward` in ASCII.
const LOCK: i64 = 0x6f6e_6365_7761_7264;

/// One step of the schema.
#[derive(Debug)]
pub struct Migration {
    /// Rises; gaps are left for what belongs together.
    pub number: i32,
    /// The file's name without number.
    pub name: &'static str,
    /// What it runs.
    pub sql: &'static str,
    /// Programs that do not know it must not run on a schema that has it.
    pub breaks: bool,
}

macro_rules! migrations {
    ($($number:literal $name:literal $file:literal),* $(,)?) => {
        &[$(Migration { number: $number, name: $name, sql: include_str!(concat!("migrations/", $file)), breaks: false }),*]
    };
}

/// Every step that this program knows, by number.
pub const MIGRATIONS: &[Migration] = migrations![
    1 "tables" "0001_tables.sql",
    2 "words" "0002_words.sql",
    3 "claim" "0003_claim.sql",
    4 "holder" "0004_holder.sql",
    5 "operator" "0005_operator.sql",
    6 "effects" "0006_effects.sql",
    7 "roles" "0007_roles.sql",
    8 "compensation" "0008_compensation.sql",
    9 "reconcile" "0009_reconcile.sql",
    10 "store" "0010_store.sql",
    11 "keep_turn" "0011_keep_turn.sql",
    12 "journal" "0012_journal.sql",
    13 "journal_end" "0013_journal_end.sql",
    14 "journal_in_flight" "0014_journal_in_flight.sql",
    15 "journal_status" "0015_journal_status.sql",
    16 "journal_sweep" "0016_journal_sweep.sql",
    17 "journal_database" "0017_journal_database.sql",
    18 "journal_force" "0018_journal_force.sql",
];

/// Why the schema is not what is needed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// The database cannot be reached or asked.
    #[error("the database cannot be reached: {0}")]
    Unreachable(#[source] Failure),
    /// It is older than this program, or not there at all.
    #[error("the schema `onceward` lacks {}: run `onceward migrate` first", .0.join(", "))]
    Older(Vec<String>),
    /// It is newer than this program.
    #[error("the schema `onceward` has {} that this version does not know: run a newer version of onceward", .0.join(", "))]
    Newer(Vec<String>),
    /// An applied step is not the one of this program.
    #[error(
        "migration {0} was applied with other contents: the schema was made by another build, or by hand; restore it from a backup, or drop the schema and migrate anew where it holds nothing of worth"
    )]
    Changed(String),
    /// Another secret is there.
    #[error(
        "the database has another install secret than this one: records and SQL functions would make different ids; give the secret that is there, or empty onceward.secret where nothing was made with it"
    )]
    OtherSecret,
    /// A step failed; nothing of it was applied, those before it were.
    #[error("migration {name} failed, and nothing of it was applied: {failure}")]
    Step {
        /// Number and name.
        name: String,
        /// What the server said.
        #[source]
        failure: Failure,
    },
}

impl Migration {
    fn shown(&self) -> String {
        format!("{:04}_{}", self.number, self.name)
    }

    fn fingerprint(&self) -> String {
        format!("{:016x}", xxh3_64(self.sql.as_bytes()))
    }
}

/// Applies what is missing of `migrations`, and returns it; with `dry_run` it only returns it. Repeatable, and safe
/// beside others that do the same.
///
/// # Errors
/// [`SchemaError`]; the steps before the one that failed are applied.
pub async fn migrate(
    address: &Address,
    migrations: &'static [Migration],
    dry_run: bool,
) -> Result<Vec<&'static Migration>, SchemaError> {
    let mut client = connect(address).await?;
    let applied = applied(&client).await?;
    let missing = missing(migrations, &applied)?;
    if let Some(newer) = newer(migrations, &applied, |_| true) {
        return Err(newer);
    }
    if dry_run {
        return Ok(missing);
    }
    if !missing.is_empty() {
        step(&mut client, None).await.map_err(|error| failed("0000_schema", error))?;
    }
    let mut done = Vec::new();
    for migration in missing {
        if step(&mut client, Some(migration)).await.map_err(|error| failed(&migration.shown(), error))? {
            done.push(migration);
        }
    }
    if !done.is_empty() {
        grant_roles(&mut client).await.map_err(|error| failed("grant_roles", error))?;
    }
    Ok(done)
}

/// Whether the schema is one that this program runs on.
///
/// # Errors
/// [`SchemaError`] where it is not, or cannot be asked.
pub async fn check(address: &Address, migrations: &'static [Migration]) -> Result<(), SchemaError> {
    let client = connect(address).await?;
    check_with(&client, migrations).await
}

pub(super) async fn check_with(client: &Client, migrations: &'static [Migration]) -> Result<(), SchemaError> {
    let applied = applied(client).await?;
    let missing = missing(migrations, &applied)?;
    if !missing.is_empty() {
        return Err(SchemaError::Older(missing.iter().map(|migration| migration.shown()).collect()));
    }
    // Steps that only add are no harm to those who do not know them.
    newer(migrations, &applied, |applied| applied.breaks).map_or(Ok(()), Err)
}

/// Keeps the install secret where only the schema's owner reads it, for the SQL functions that make record ids.
/// Repeatable.
///
/// # Errors
/// [`SchemaError::OtherSecret`] where another is there, and as [`migrate`].
pub async fn keep_secret(address: &Address, secret: &[u8; 32]) -> Result<(), SchemaError> {
    let client = connect(address).await?;
    let kept = "INSERT INTO onceward.secret (bytes) VALUES ($1) ON CONFLICT DO NOTHING";
    let secret = secret.as_slice();
    client.query_typed(kept, &[(&secret, Type::BYTEA)]).await.map_err(|error| failed("secret", error))?;
    let same = "SELECT FROM onceward.secret WHERE bytes = $1";
    let rows = client.query_typed(same, &[(&secret, Type::BYTEA)]).await.map_err(|error| failed("secret", error))?;
    if rows.is_empty() { Err(SchemaError::OtherSecret) } else { Ok(()) }
}

/// A step as the database has it.
#[derive(Debug)]
struct Applied {
    number: i32,
    name: String,
    fingerprint: String,
    breaks: bool,
}

fn failed(name: &str, error: tokio_postgres::Error) -> SchemaError {
    SchemaError::Step { name: name.to_owned(), failure: Failure::of(error) }
}

fn unreachable(error: tokio_postgres::Error) -> SchemaError {
    SchemaError::Unreachable(Failure::of(error))
}

async fn connect(address: &Address) -> Result<Client, SchemaError> {
    let (client, connection) = address.connect(|_| ()).await.map_err(unreachable)?;
    tokio::spawn(connection);
    Ok(client)
}

async fn applied(client: &Client) -> Result<Vec<Applied>, SchemaError> {
    let there = client.query_typed("SELECT to_regclass('onceward.migration') IS NOT NULL", &[]).await;
    if !there.map_err(unreachable)?.first().is_some_and(|row| row.get(0)) {
        return Ok(Vec::new());
    }
    let all = "SELECT number, name, fingerprint, breaks FROM onceward.migration ORDER BY number";
    let rows = client.query_typed(all, &[]).await.map_err(unreachable)?;
    let applied = |row: &tokio_postgres::Row| Applied {
        number: row.get(0),
        name: row.get(1),
        fingerprint: row.get(2),
        breaks: row.get(3),
    };
    Ok(rows.iter().map(applied).collect())
}

fn missing(migrations: &'static [Migration], applied: &[Applied]) -> Result<Vec<&'static Migration>, SchemaError> {
    let mut missing = Vec::new();
    for migration in migrations {
        match applied.iter().find(|applied| applied.number == migration.number) {
            None => missing.push(migration),
            Some(applied) if applied.fingerprint != migration.fingerprint() => {
                return Err(SchemaError::Changed(migration.shown()));
            }
            Some(_) => {}
        }
    }
    Ok(missing)
}

fn newer(
    migrations: &'static [Migration],
    applied: &[Applied],
    counts: impl Fn(&Applied) -> bool,
) -> Option<SchemaError> {
    let unknown = applied.iter().filter(|applied| migrations.iter().all(|known| known.number != applied.number));
    let names: Vec<String> = unknown
        .filter(|applied| counts(applied))
        .map(|applied| format!("{:04}_{}", applied.number, applied.name))
        .collect();
    (!names.is_empty()).then_some(SchemaError::Newer(names))
}

/// A transaction under the lock.
async fn alone(client: &mut Client) -> Result<Transaction<'_>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let wait = format!("SET LOCAL lock_timeout = {}", LOCK_WAIT.as_millis());
    transaction.batch_execute(&wait).await?;
    transaction.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await?;
    Ok(transaction)
}

/// Gives the roles what the steps added, which is nobody's before.
async fn grant_roles(client: &mut Client) -> Result<(), tokio_postgres::Error> {
    let transaction = alone(client).await?;
    transaction.batch_execute("SELECT onceward.grant_roles()").await?;
    transaction.commit().await
}

/// One step in one transaction, under the lock; `None` makes what the steps are written down in. Returns whether it was
/// still missing.
async fn step(client: &mut Client, migration: Option<&Migration>) -> Result<bool, tokio_postgres::Error> {
    let transaction = alone(client).await?;
    let Some(migration) = migration else {
        transaction
            .batch_execute(
                "CREATE SCHEMA IF NOT EXISTS onceward;
                 CREATE TABLE IF NOT EXISTS onceward.migration (
                     number int PRIMARY KEY, name text NOT NULL, fingerprint text NOT NULL, breaks boolean NOT NULL,
                     applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
            .await?;
        transaction.commit().await?;
        return Ok(true);
    };
    let number = migration.number;
    let there = "SELECT FROM onceward.migration WHERE number = $1";
    if !transaction.query_typed(there, &[(&number, Type::INT4)]).await?.is_empty() {
        return Ok(false);
    }
    transaction.batch_execute(migration.sql).await?;
    let note = "INSERT INTO onceward.migration (number, name, fingerprint, breaks) VALUES ($1, $2, $3, $4)";
    let (name, fingerprint) = (migration.name, migration.fingerprint());
    let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] =
        [(&number, Type::INT4), (&name, Type::TEXT), (&fingerprint, Type::TEXT), (&migration.breaks, Type::BOOL)];
    transaction.query_typed(note, &values).await?;
    transaction.commit().await?;
    Ok(true)
}
