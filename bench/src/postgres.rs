//! P14: durable claims in PostgreSQL beside one INSERT a claim, each on the same server in turns; look-ups of completed
//! keys; claims while a million ended records are swept. P9 across processes: waiters of another gateway's claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use onceward_core::key::RecordId;
use onceward_core::record::Facts;
use onceward_store::postgres::address::Address;
use onceward_store::postgres::migrate::{MIGRATIONS, migrate};
use onceward_store::postgres::{Options, Postgres};
use onceward_store::{Insert, Store};
use tokio_postgres::{Client, NoTls};

use crate::inside::payment;
use crate::report::{Line, aim, median, percentile};
use crate::rows::Rounds;
use crate::waiters;

const LEASE: Duration = Duration::from_secs(30);
const DATABASE: &str = "claims";

/// What is aimed at, and at how many callers.
const AT: [(&str, u32, Option<f64>); 3] = [("P14-64", 64, Some(2.5)), ("P14-8", 8, None), ("P14-1", 1, None)];

/// A claim's own row: what somebody would write who keeps keys in a table.
const ONE_TABLE: &str = "CREATE TABLE one (id bytea PRIMARY KEY, fence bigint NOT NULL, lease_until bigint NOT NULL,
    state smallint NOT NULL, claim_id bytea NOT NULL, fingerprint bytea NOT NULL, route text NOT NULL,
    tenant text NOT NULL, claimed_at timestamptz NOT NULL)";
const ONE_INSERT: &str = "INSERT INTO one VALUES ($1, $2, $3, 1, $4, $5, $6, $7, clock_timestamp())
    ON CONFLICT (id) DO NOTHING RETURNING fence";

pub(crate) struct Place {
    server: servers::Postgres,
    address: Address,
}

impl Place {
    /// A server that syncs each commit, as one does that is relied on.
    ///
    /// # Errors
    /// Where it is missing.
    pub(crate) async fn new() -> anyhow::Result<Self> {
        Self::with(&[]).await
    }

    /// The same with these settings more.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) async fn with(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let durable = [("fsync", "on"), ("max_wal_size", "4GB")];
        let server = servers::Postgres::start(&[&durable, settings].concat())?;
        server.create_database(DATABASE)?;
        let address = Address::new(&server.url(DATABASE), None, None)?;
        migrate(&address, MIGRATIONS, false).await?;
        server.psql(DATABASE, ONE_TABLE)?;
        Ok(Self { server, address })
    }

    pub(crate) fn url(&self) -> String {
        self.server.url(DATABASE)
    }

    /// What the server answers.
    ///
    /// # Errors
    /// Where it refuses.
    pub(crate) fn psql(&self, sql: &str) -> anyhow::Result<String> {
        self.server.psql(DATABASE, sql)
    }

    /// A connection of its own.
    async fn client(&self) -> anyhow::Result<Client> {
        let (client, connection) = tokio_postgres::connect(&self.server.url(DATABASE), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A store on it.
    ///
    /// # Errors
    /// Where it does not answer.
    pub(crate) async fn store(&self) -> anyhow::Result<Arc<Postgres>> {
        Ok(Arc::new(Postgres::open(Options::new(self.address.clone())).await?))
    }
}

/// Ids that nobody had before, spread as hashes are.
#[derive(Debug, Default)]
pub(crate) struct Ids(AtomicU64);

impl Ids {
    pub(crate) fn next(&self) -> RecordId {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 32];
        for (part, at) in id.chunks_exact_mut(8).zip(1_u64..) {
            let mut mixed = number.wrapping_mul(4).wrapping_add(at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
        }
        RecordId(id)
    }
}

/// How many a second, and how long each took.
pub(crate) struct Rate {
    pub(crate) a_second: f64,
    took: Vec<f64>,
}

/// Claims of `callers` at a time for `span`.
///
/// # Errors
/// Where the store does not answer.
pub(crate) async fn claimed<S: Store>(
    store: &Arc<S>,
    ids: &Arc<Ids>,
    callers: u32,
    span: Duration,
) -> anyhow::Result<Rate> {
    let (start, facts) = (Instant::now(), Arc::new(payment()));
    let mut running = Vec::new();
    for _ in 0..callers {
        let (store, ids, facts) = (Arc::clone(store), Arc::clone(ids), Arc::clone(&facts));
        running.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while start.elapsed() < span {
                let began = Instant::now();
                let claimed = store.insert(ids.next(), &facts, LEASE).await?;
                ensure!(matches!(claimed, Insert::Inserted { .. }), "a fresh key is taken");
                took.push(began.elapsed().as_secs_f64());
            }
            anyhow::Ok(took)
        }));
    }
    gather(running, start).await
}

/// The same by one INSERT each, on a connection for each caller.
///
/// # Errors
/// Where the server does not answer.
pub(crate) async fn inserted(place: &Place, ids: &Arc<Ids>, callers: u32, span: Duration) -> anyhow::Result<Rate> {
    let facts: Arc<Facts> = Arc::new(payment());
    let mut clients = Vec::new();
    for _ in 0..callers {
        let client = place.client().await?;
        let statement = client.prepare(ONE_INSERT).await?;
        clients.push((client, statement));
    }
    let (start, mut running) = (Instant::now(), Vec::new());
    for (client, statement) in clients {
        let (ids, facts) = (Arc::clone(ids), Arc::clone(&facts));
        running.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while start.elapsed() < span {
                let (began, id) = (Instant::now(), ids.next());
                let (id, claim, fingerprint) = (&id.0[..], &facts.claim_id.0[..], &facts.fingerprint[..]);
                let (fence, until) = (1_i64, 2_i64);
                let (route, tenant) = (&*facts.route, &*facts.tenant);
                let rows =
                    client.query(&statement, &[&id, &fence, &until, &claim, &fingerprint, &route, &tenant]).await?;
                ensure!(rows.len() == 1, "a fresh key is taken");
                took.push(began.elapsed().as_secs_f64());
            }
            anyhow::Ok(took)
        }));
    }
    gather(running, start).await
}

async fn gather(
    running: Vec<tokio::task::JoinHandle<anyhow::Result<Vec<f64>>>>,
    start: Instant,
) -> anyhow::Result<Rate> {
    let mut took = Vec::new();
    for caller in running {
        took.extend(caller.await??);
    }
    Ok(Rate { a_second: took.len() as f64 / start.elapsed().as_secs_f64(), took })
}

/// Measures P14 at each number of callers that `wanted` names.
///
/// # Errors
/// Where PostgreSQL is missing, or refuses.
pub(crate) async fn claims(rounds: Rounds, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Line>> {
    let place = Place::new().await?;
    let (store, ids) = (place.store().await?, Arc::new(Ids::default()));
    let mut lines = Vec::new();
    for (name, callers, least) in AT.into_iter().filter(|(name, ..)| wanted(name)) {
        let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut took, mut baseline_took) = (Vec::new(), Vec::new());
        for _ in 0..rounds.count {
            let mut one = inserted(&place, &ids, callers, rounds.span).await?;
            let mut batched = claimed(&store, &ids, callers, rounds.span).await?;
            ratios.push(batched.a_second / one.a_second);
            ours.push(batched.a_second);
            theirs.push(one.a_second);
            took.push(percentile(&mut batched.took, 0.99));
            baseline_took.push(percentile(&mut one.took, 0.99));
        }
        let (ratio, ours, theirs) = (median(ratios), median(ours), median(theirs));
        let (took, baseline_took) = (median(took) * 1e3, median(baseline_took) * 1e3);
        let aimed = least.map(|least| aim("at least", least, ratio >= least)).unwrap_or_default();
        lines.push(Line {
            name,
            text: format!(
                "claims in Postgres at {callers} callers / one INSERT a claim: rate {ratio:.2}x{aimed}; \
                 {ours:.0} / {theirs:.0} a second, p99 {took:.2} / {baseline_took:.2} ms"
            ),
            figures: vec![
                ("rate", ratio),
                ("claims_per_second", ours),
                ("inserts_per_second", theirs),
                ("p99_ms", took),
            ],
        });
    }
    Ok(lines)
}

/// How many completed keys are looked up, over and over.
const COMPLETED: u64 = 10_000;
/// What somebody who keeps keys in a table asks first.
const ONE_SELECT: &str = "SELECT state, status, headers, body, fingerprint FROM onceward.record WHERE id = $1";

/// Fills the table with completed records of 300 bytes, whose retention ends then.
fn completed(place: &Place, records: u64, keep_until: &str) -> anyhow::Result<()> {
    let fill = format!(
        "INSERT INTO onceward.record SELECT sha256(int4send(n)), 1, 2, 0, {keep_until}, 1, 3, true, false, 1, substr(sha256('a'), 1, 16),
            substr(sha256('a'), 1, 16), NULL, 1, sha256('a'), '', 'create-payment', 'acme', 'production', 1, 1, 0, '',
            201, '', convert_to(repeat('x', 300), 'UTF8'), '', false, 0, NULL, NULL, NULL FROM generate_series(1, {records}) n"
    );
    place.server.psql(DATABASE, &fill)?;
    place.server.psql(DATABASE, "VACUUM ANALYZE onceward.record").map(drop)
}

/// Replays as the store sees them: claims of keys that are completed, beside one SELECT for each.
///
/// # Errors
/// Where PostgreSQL is missing, or refuses.
pub(crate) async fn replays(rounds: Rounds) -> anyhow::Result<Line> {
    const CALLERS: usize = 64;
    let place = Place::new().await?;
    completed(&place, COMPLETED, "9000000000000000")?;
    let rows = place.client().await?.query("SELECT id FROM onceward.record", &[]).await?;
    let ids: Vec<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
    let id = |at: usize| ids.get(at % ids.len()).context("no id");
    let (store, facts) = (place.store().await?, payment());
    let mut clients = Vec::new();
    for _ in 0..CALLERS {
        let client = place.client().await?;
        let statement = client.prepare(ONE_SELECT).await?;
        clients.push((client, statement));
    }
    let (mut ratios, mut ours, mut theirs, mut took) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.count {
        let (clients, store, facts, id) = (&clients, &store, &facts, &id);
        let selected = many(CALLERS, rounds.span, |caller, at| async move {
            let (client, statement) = clients.get(caller).context("no caller")?;
            let rows = client.query(statement, &[id(at)?]).await?;
            ensure!(rows.len() == 1, "it is there");
            Ok(())
        })
        .await?;
        let mut met = many(CALLERS, rounds.span, |_, at| async move {
            let met = store.insert(RecordId(id(at)?.as_slice().try_into()?), facts, LEASE).await?;
            ensure!(matches!(met, Insert::Existing { .. }), "it is there");
            Ok(())
        })
        .await?;
        ratios.push(met.a_second / selected.a_second);
        ours.push(met.a_second);
        theirs.push(selected.a_second);
        took.push(percentile(&mut met.took, 0.99) * 1e3);
    }
    let (ratio, ours, theirs, took) = (median(ratios), median(ours), median(theirs), median(took));
    Ok(Line {
        name: "P14-replay",
        text: format!(
            "look-ups of completed keys in Postgres at {CALLERS} callers / one SELECT each: rate {ratio:.2}x; \
             {ours:.0} / {theirs:.0} a second, p99 {took:.2} ms"
        ),
        figures: vec![("rate", ratio), ("lookups_per_second", ours), ("selects_per_second", theirs), ("p99_ms", took)],
    })
}

/// P9 across two gateways.
///
/// # Errors
/// Where PostgreSQL is missing, or refuses.
pub(crate) async fn waiters(rounds: Rounds) -> anyhow::Result<Line> {
    let place = Place::new().await?;
    let (owner, other, ids) = (place.store().await?, place.store().await?, Ids::default());
    let looking = Arc::new(place.client().await?);
    let is_said = |id: RecordId| {
        let looking = Arc::clone(&looking);
        async move {
            let said = "SELECT FROM onceward.waiter WHERE record_id = $1";
            Ok(!looking.query(said, &[&id.0.as_slice()]).await?.is_empty())
        }
    };
    waiters::measure("P9-postgres", owner, other, rounds, || ids.next(), is_said).await
}

/// What `callers` at a time do for `span`, each over and over; `work` is given the caller and a number that rises.
async fn many<F>(callers: usize, span: Duration, work: impl Fn(usize, usize) -> F) -> anyhow::Result<Rate>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let (start, work) = (Instant::now(), &work);
    let mut running = futures_util::stream::FuturesUnordered::new();
    for caller in 0..callers {
        running.push(async move {
            let mut took = Vec::new();
            while start.elapsed() < span {
                let began = Instant::now();
                // A prime, so that callers do not look at the same.
                work(caller, took.len() * 7_919 + caller * 104_729).await?;
                took.push(began.elapsed().as_secs_f64());
            }
            anyhow::Ok(took)
        });
    }
    let mut took = Vec::new();
    while let Some(done) = running.next().await {
        took.extend(done?);
    }
    Ok(Rate { a_second: took.len() as f64 / start.elapsed().as_secs_f64(), took })
}

/// Claims of 8 callers while ended records are swept, beside the same without a sweep.
///
/// # Errors
/// Where PostgreSQL is missing, or refuses.
pub(crate) async fn sweep(rounds: Rounds) -> anyhow::Result<Line> {
    const CALLERS: u32 = 8;
    const AIM: f64 = 2.0;
    const STEP: usize = 1_000;
    let place = Place::new().await?;
    let records = rounds.records / 10;
    completed(&place, records, "1")?;
    let (store, ids) = (place.store().await?, Arc::new(Ids::default()));
    let mut quiet = claimed(&store, &ids, CALLERS, rounds.span * 2).await?;
    let done = Arc::new(AtomicBool::new(false));
    let (sweeper, over) = (Arc::clone(&store), Arc::clone(&done));
    let sweeping = tokio::spawn(async move {
        let (start, mut removed) = (Instant::now(), 0);
        while removed < records {
            let swept = sweeper.sweep(STEP, Duration::ZERO).await?;
            removed += swept.removed;
            ensure!(swept.more || removed >= records, "the sweep ended at {removed} of {records}");
        }
        over.store(true, Ordering::Relaxed);
        anyhow::Ok(start.elapsed())
    });
    let mut busy = Rate { a_second: 0.0, took: Vec::new() };
    while !done.load(Ordering::Relaxed) && !sweeping.is_finished() {
        busy.took.extend(claimed(&store, &ids, CALLERS, Duration::from_millis(500)).await?.took);
    }
    let swept_in = sweeping.await.context("the sweep")??;
    let (before, during) = (percentile(&mut quiet.took, 0.99) * 1e3, percentile(&mut busy.took, 0.99) * 1e3);
    let ratio = during / before;
    let a_second = records as f64 / swept_in.as_secs_f64();
    Ok(Line {
        name: "P14-sweep",
        text: format!(
            "claims of {CALLERS} callers while {records} ended records are swept / without: p99 {ratio:.2}x{}; \
             {during:.2} / {before:.2} ms, {a_second:.0} records swept a second",
            aim("at most", AIM, ratio <= AIM)
        ),
        figures: vec![("p99", ratio), ("p99_ms", during), ("quiet_p99_ms", before), ("swept_per_second", a_second)],
    })
}
