//! Whether a database is fit to keep records, looked at from outside: what `onceward doctor` tells.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, types::Type};

use super::{
    Failover, NotDurable,
    address::Address,
    durable::Settings,
    error::Failure,
    migrate::{self, MIGRATIONS},
};
use crate::doctor::{Finding, Findings, Grade};

/// How long a notification is waited for.
const NOTIFIED_WITHIN: Duration = Duration::from_secs(2);
/// How far the server's clock and this machine's may be apart before it is told.
const CLOCKS_APART: Duration = Duration::from_secs(2);

/// Looks at a database; `listen` is where notifications would be listened for, `journal` what may take its place where it
/// keeps a journal. Changes nothing.
pub async fn examine(address: &Address, listen: Option<&Address>, journal: Option<&Failover>) -> Vec<Finding> {
    let mut findings = Findings::default();
    let client = match address.connect(|_| ()).await {
        Ok((client, connection)) => {
            tokio::spawn(connection);
            client
        }
        Err(error) => {
            findings.tell("connection", Grade::Bad, Failure::of(error).to_string());
            return findings.0;
        }
    };
    findings.tell("connection", Grade::Well, format!("{} answers", address.shown()));
    if let Err(error) = server(&client, journal, &mut findings).await {
        findings.tell("server", Grade::Bad, Failure::of(error).to_string());
    }
    match migrate::check_with(&client, MIGRATIONS).await {
        Ok(()) => findings.tell("schema", Grade::Well, "as this version needs it"),
        Err(error) => findings.tell("schema", Grade::Bad, error.to_string()),
    }
    notifications(&client, listen.unwrap_or(address), &mut findings).await;
    findings.0
}

/// What is kept under `name` for every process of the store, if anything; `None` where that cannot be told.
pub async fn remembered(address: &Address, name: &str) -> Option<Option<String>> {
    let (client, connection) = address.connect(|_| ()).await.ok()?;
    tokio::spawn(connection);
    let sql = "SELECT value FROM onceward.meta WHERE name = $1";
    let rows = client.query_typed(sql, &[(&name, Type::TEXT)]).await.ok()?;
    Some(rows.first().map(|row| row.get(0)))
}

const SERVER: &str = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
    pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on', current_setting('synchronous_commit'), \
    current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on', \
    current_setting('synchronous_standby_names'), current_setting('default_transaction_isolation'), \
    current_setting('max_connections')::int, (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int, \
    (date_part('epoch', clock_timestamp()) * 1000000)::bigint, current_setting('autovacuum') = 'on', \
    coalesce((SELECT max(date_part('epoch', clock_timestamp() - xact_start)) FROM pg_stat_activity \
        WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'), 0)::bigint";

async fn server(
    client: &Client,
    journal: Option<&Failover>,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    const VERSION_MIN: i32 = 150_000;
    const LONG_SECONDS: i64 = 60;
    let Some(row) = client.query_typed(SERVER, &[]).await?.pop() else { return Ok(()) };
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    let old = format!("{version} is older than 15, which nothing is tried on");
    findings.either("version", number >= VERSION_MIN, version, Grade::Doubtful, &old);
    let standby = "it is a standby, or its sessions are read-only: point the store at the primary";
    findings.either("role", !row.get::<_, bool>(2), "a primary", Grade::Bad, standby);
    let durable: String = row.get(3);
    let off =
        "synchronous_commit is off, and answers would be given before they are on disk: set it to on for this user";
    findings.either("synchronous_commit", durable != "off", &*durable, Grade::Bad, off);
    let synced = "fsync or full_page_writes is off: a crash of the machine may lose or damage records: set both to on";
    findings.either("fsync", row.get(4), "on, and full_page_writes", Grade::Bad, synced);
    let standbys: String = row.get(5);
    let alone = "synchronous_standby_names is empty: a failover loses what had not reached the new primary, and such keys run again";
    match journal {
        None => findings.either("standbys", !standbys.is_empty(), &*standbys, Grade::Doubtful, alone),
        Some(failover) => {
            let rows = client.query_typed(Settings::SQL, &[]).await?;
            match Settings::of(&rows).map_err(NotDurable::Unfit).and_then(|settings| settings.concern(failover)) {
                Ok(None) => findings.tell("journal", Grade::Well, "what is committed is kept, as failover has it"),
                Ok(Some(concern)) => findings.tell("journal", Grade::Doubtful, concern),
                Err(error) => findings.tell("journal", Grade::Bad, error.to_string()),
            }
        }
    }
    let isolation: String = row.get(6);
    let other = format!("default_transaction_isolation is {isolation}: set it to `read committed` for this user");
    findings.either("isolation", isolation == "read committed", &*isolation, Grade::Bad, &other);
    let (most, used): (i32, i32) = (row.get(7), row.get(8));
    let few = format!("{used} of {most} connections are taken: raise max_connections, or go through a pooler");
    findings.either(
        "connections",
        used < most - most / 5,
        format!("{used} of {most} are taken"),
        Grade::Doubtful,
        &few,
    );
    #[expect(clippy::disallowed_methods, reason = "the two clocks are compared, and nothing is decided by it")]
    let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let there = Duration::from_micros(u64::try_from(row.get::<_, i64>(9)).unwrap_or_default());
    let apart = here.abs_diff(there);
    let far = format!("the server's clock and this machine's are {apart:?} apart: look at how they are set");
    findings.either("clock", apart <= CLOCKS_APART, "as this machine's", Grade::Doubtful, &far);
    let vacuum = "autovacuum is off: tables and indexes grow without end";
    findings.either("autovacuum", row.get(10), "on", Grade::Doubtful, vacuum);
    let oldest: i64 = row.get(11);
    let long =
        format!("a transaction is {oldest} s old: what was deleted since cannot be reused; see pg_stat_activity");
    findings.either("transactions", oldest < LONG_SECONDS, "none is old", Grade::Doubtful, &long);
    Ok(())
}

/// Sends one through the store's own way, and waits for it where it would be listened for.
async fn notifications(client: &Client, listen: &Address, findings: &mut Findings) {
    const WHAT: &str = "notifications";
    let (told, mut heard) = tokio::sync::mpsc::channel(16);
    let heard_one = move |message| {
        if matches!(message, AsyncMessage::Notification(_)) {
            // One is enough.
            let _ = told.try_send(());
        }
    };
    let listening = async {
        let (listener, connection) = listen.connect(heard_one).await?;
        tokio::spawn(connection);
        listener.batch_execute("LISTEN onceward_doctor").await?;
        client.batch_execute("NOTIFY onceward_doctor").await?;
        Ok::<_, tokio_postgres::Error>(listener)
    };
    match listening.await {
        Err(error) => findings.tell(WHAT, Grade::Doubtful, Failure::of(error).to_string()),
        Ok(_listener) => {
            let came = timeout(NOTIFIED_WITHIN, heard.recv()).await.is_ok_and(|one| one.is_some());
            let lost = "they do not come, as through a pooler: set listen_url to the server itself, or waiters look again each second";
            findings.either(WHAT, came, "they come", Grade::Doubtful, lost);
        }
    }
}
