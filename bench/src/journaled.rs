//! Routes with `durability = "journaled"` while all is well: beside the same routes in the cache (P10), and how what they
//! write comes into the journal, beside one INSERT a record (P11). What comes when Redis is gone is in `outage`.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use onceward_core::key::{PARTITIONS, RecordId};
use onceward_core::record::{Fence, Micros, Record, Revision, SessionId, Stored};
use onceward_store::journaled::{Fact, Journal as _, JournaledStore, LogSpool, Options, SpoolOptions};
use onceward_store::postgres::{Failover, JournalOptions};
use onceward_store::{Insert, Store as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::gateways;
use crate::inside::payment;
use crate::load::{self, Keys, Round};
use crate::postgres::{self, Ids};
use crate::process::Server;
use crate::redis;
use crate::report::{Line, aim, median, percentile};
use crate::rows::Rounds;

pub(crate) const P10: &str = "P10";
pub(crate) const P11: &str = "P11";

const LEASE: Duration = Duration::from_secs(30);
/// As many facts as a process puts into one shipment.
const SHIPMENT: usize = 256;
const CALLERS: u32 = 64;
const LOOK: Duration = Duration::from_millis(5);
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// The store and the defaults of a gateway on PostgreSQL and Redis, and `routes`; all others are strict.
pub(crate) fn in_front(postgres: &postgres::Place, redis_url: &str, routes: &str) -> String {
    let password = servers::postgres::PASSWORD;
    let url = postgres.url().replace(&format!(":{password}@"), "@");
    format!(
        "kind = \"tiered\"\npostgres = {{ url = \"{url}\", password = \"{password}\", tls = \"off\" }}\n\
         redis = {{ url = \"{redis_url}\" }}\njournal = {{ failover = \"none\" }}\n\
         [defaults]\ndurability = \"strict\"\nscope = {{ env = \"fixed:bench\" }}\n{routes}"
    )
}

/// P10: fresh keys, journaled beside in the cache, each gateway with a Redis of its own.
///
/// # Errors
/// Where a server is missing or does not start, or the journal does not get what was written.
pub(crate) fn routes(runtime: &tokio::runtime::Runtime, rounds: Rounds, folder: &Path) -> anyhow::Result<Line> {
    const RATE_MIN: f64 = 0.85;
    const P99_MAX: f64 = 1.3;
    let own = std::env::current_exe()?;
    let upstream = Server::start(Command::new(&own).arg("upstream"))?;
    let (postgres, front, cache) =
        (runtime.block_on(postgres::Place::new())?, redis::Place::new()?, redis::Place::new()?);
    let all = "[[route]]\nname = \"all\"\nmatch = { path = \"/**\" }\ndurability = \"journaled\"\n";
    let journaled = in_front(&postgres, &front.url(), all);
    let journaled = gateways::gateway("journaled-10", &upstream.url, &journaled, folder)?;
    let cached = gateways::gateway("cache-10", &upstream.url, &gateways::on_redis(&cache), folder)?;
    let round = |number, span| Round { keys: Keys::Fresh, connections: CALLERS, span, number, folder };
    let warm_up = round(0, Duration::from_secs(1));
    load::warm_up(&cached, warm_up).context("cache")?;
    load::warm_up(&journaled, warm_up).context("journaled")?;
    shipped(&postgres)?;
    let (mut ours, mut theirs, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=rounds.count {
        theirs.push(load::run(&cached, round(number, rounds.span)).context("cache")?);
        ours.push(load::run(&journaled, round(number, rounds.span)).context("journaled")?);
        // What is shipped later is no load of the other's round.
        behind.push(shipped(&postgres)?.as_secs_f64() * 1e3);
    }
    let ratio = |of| load::ratio(&ours, &theirs, of);
    let rate = ratio(|figures| figures.per_second);
    let p99 = ratio(|figures| figures.p99_us);
    let cpu = ratio(|figures| figures.cpu_us);
    let behind = median(behind);
    Ok(Line {
        name: P10,
        text: format!(
            "fresh, journaled / in the cache: rate {rate:.2}x{}, p99 {p99:.2}x{}, CPU {cpu:.2}x; {} / {}; all in the journal \
             {behind:.0} ms after a round",
            aim("at least", RATE_MIN, rate >= RATE_MIN),
            aim("at most", P99_MAX, p99 <= P99_MAX),
            load::shown(&ours),
            load::shown(&theirs),
        ),
        figures: vec![("rate", rate), ("p99", p99), ("cpu", cpu), ("behind_ms", behind)],
    })
}

/// Waits until the journal has an outcome of each claim and grows no more: how long that took.
fn shipped(postgres: &postgres::Place) -> anyhow::Result<Duration> {
    const STILL: Duration = Duration::from_millis(300);
    let count = || -> anyhow::Result<(u64, u64)> {
        let said = postgres.psql("SELECT count(*), count(*) FILTER (WHERE rank < 3) FROM onceward.journal")?;
        let (all, open) = said.trim().split_once('|').context("two counts")?;
        Ok((all.trim().parse()?, open.trim().parse()?))
    };
    let start = Instant::now();
    let (mut last, mut since) = ((0, u64::MAX), Duration::ZERO);
    while start.elapsed() < SETTLES_WITHIN {
        let now = count()?;
        if now != last {
            (last, since) = (now, start.elapsed());
        } else if start.elapsed() - since > STILL {
            ensure!(now.1 == 0, "{} claims have no outcome in the journal", now.1);
            return Ok(since);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    anyhow::bail!("the journal still grows after {SETTLES_WITHIN:?}")
}

/// P11: records a second in shipments beside one INSERT each, on one connection; then, at half of the rate at which a
/// process claims, how long what it wrote waits for the journal.
///
/// # Errors
/// Where a server is missing, or refuses.
pub(crate) async fn shipping(rounds: Rounds, folder: &Path) -> anyhow::Result<Line> {
    const RATIO_MIN: f64 = 10.0;
    const LAG_MAX_MS: f64 = 200.0;
    let (place, ids) = (postgres::Place::new().await?, Arc::new(Ids::default()));
    let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.count {
        let one = postgres::inserted(&place, &ids, 1, rounds.span).await?.a_second;
        let many = sent(&place, &ids, rounds.span).await?;
        ratios.push(many / one);
        ours.push(many);
        theirs.push(one);
    }
    let (claims, mut lag) = lag(&place, &ids, rounds.span, folder).await?;
    let ratio = median(ratios);
    let [p50, p99] = [0.5, 0.99].map(|part| percentile(&mut lag, part));
    Ok(Line {
        name: P11,
        text: format!(
            "shipments of {SHIPMENT} / one INSERT a record, one connection: {ratio:.1}x{} ({:.0} / {:.0} a second); at {:.0} claims a \
             second, half of what a process makes, the oldest that is not in the journal has waited {p50:.1} ms, p99 {p99:.1} ms{}",
            aim("at least", RATIO_MIN, ratio >= RATIO_MIN),
            median(ours),
            median(theirs),
            claims / 2.0,
            aim("at most", LAG_MAX_MS, p99 <= LAG_MAX_MS),
        ),
        figures: vec![("ratio", ratio), ("lag_p99_ms", p99)],
    })
}

/// Records a second that one connection ships.
async fn sent(place: &postgres::Place, ids: &Ids, span: Duration) -> anyhow::Result<f64> {
    let store = place.store().await?;
    let journal = store.journal(JournalOptions::new(Failover::None));
    let session = SessionId(ids.next().0.first_chunk().copied().context("sixteen bytes")?);
    let timeline = journal.look(session).await?.timeline;
    ensure!(journal.join(session, timeline).await?, "it may not join");
    let fact = |id: RecordId, number: u64| {
        let stored =
            Stored { fence: Fence(number), revision: Revision(1), lease_until: Micros(1), ..Stored::default() };
        Fact { id, record: Arc::new(Record { stored, facts: payment() }) }
    };
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < span {
        let facts: Vec<Fact> = (0..SHIPMENT as u64).map(|at| fact(ids.next(), count + at + 1)).collect();
        ensure!(journal.ship(session, timeline, &facts).await?.is_some(), "a shipment was refused");
        count += SHIPMENT as u64;
    }
    let a_second = count as f64 / start.elapsed().as_secs_f64();
    // Or the next one to claim would wait for its word.
    ensure!(journal.leave(session, timeline).await?, "it may not leave");
    Ok(a_second)
}

/// What a gateway has of the journal, with a spool of its own.
///
/// # Errors
/// Where a server does not answer, or the spool cannot be opened.
pub(crate) async fn gateway(
    place: &postgres::Place,
    front: &redis::Place,
    spool: &Path,
    segment_bytes: u32,
) -> anyhow::Result<Arc<JournaledStore>> {
    let (spool, left) = LogSpool::open(spool, &SpoolOptions { segment_bytes, segments_max: 64 })?;
    let session = Options { session: SessionId::default(), partitions: PARTITIONS, deadline: Duration::from_secs(2) };
    let journal = JournalOptions::new(Failover::None);
    let (redis, database) = (front.store().await?, place.store().await?);
    Ok(Arc::new(JournaledStore::open(session, &redis, &database, journal, Arc::new(spool), left).await?))
}

/// Claims a second of one process, and at half of that since when the first waits that the journal does not have, in
/// milliseconds, each [`LOOK`].
async fn lag(
    place: &postgres::Place,
    ids: &Arc<Ids>,
    span: Duration,
    folder: &Path,
) -> anyhow::Result<(f64, Vec<f64>)> {
    let front = redis::Place::new()?;
    let store = gateway(place, &front, &folder.join("spool-11"), 16 << 20).await?;
    ensure!(store.is_ready(Duration::from_secs(10)).await, "no views");
    let claims = postgres::claimed(&store, ids, CALLERS, span).await?.a_second;
    while store.backlog().0 > 0 {
        sleep(LOOK).await;
    }
    let each = (claims / 2.0 * LOOK.as_secs_f64()).round() as usize;
    let (facts, mut running, mut waited) = (Arc::new(payment()), JoinSet::new(), Vec::new());
    let (start, mut beat) = (Instant::now(), interval(LOOK));
    beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while start.elapsed() < span * 3 {
        beat.tick().await;
        for _ in 0..each {
            let (store, facts, id) = (Arc::clone(&store), Arc::clone(&facts), ids.next());
            running.spawn(async move { store.insert(id, &facts, LEASE).await });
        }
        waited.push(store.backlog().1.as_secs_f64() * 1e3);
        while let Some(claimed) = running.try_join_next() {
            ensure!(matches!(claimed??, Insert::Inserted { .. }), "a fresh key is taken");
        }
    }
    while let Some(claimed) = running.join_next().await {
        ensure!(matches!(claimed??, Insert::Inserted { .. }), "a fresh key is taken");
    }
    store.leave(SETTLES_WITHIN).await;
    Ok((claims, waited))
}
