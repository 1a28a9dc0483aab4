//! P-view: how long a gateway's journaled keys wait for the next view once Redis has lost its data.
//!
//! 1, 4, 16 and 32 gateways, each a store with a spool of its own, in this process; they share one Redis and one PostgreSQL.
//! Each has callers that claim new keys at a steady rate. Redis is emptied (FLUSHALL), or killed and started again without its
//! data. A gateway's pause is from the beginning of its first claim after that, which Redis turns away, until it grants one
//! that began after it. Such a claim is held up in the gateway, and is refused where that takes too long; that is counted.
//! While Redis is started again it is away: the pause is from when it is back.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use onceward_store::journaled::{JournaledStore, Serves};
use onceward_store::{Insert, Store as _};
use redis::aio::ConnectionLike as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::inside::payment;
use crate::postgres::Ids;
use crate::redis::Place;
use crate::report::{Line, aim, percentile};
use crate::rows::Rounds;
use crate::{journaled, postgres};

pub(crate) const NAME: &str = "P-view";
/// How many gateways there are, from few to many.
pub(crate) const AT: [(&str, usize); 4] = [("P-view-1", 1), ("P-view-4", 4), ("P-view-16", 16), ("P-view-32", 32)];

const CALLERS: u32 = 4;
/// A caller claims once in this time, and the callers of a gateway by turns.
const EVERY: Duration = Duration::from_millis(200);
const LEASE: Duration = Duration::from_secs(30);
/// Of load before each loss.
const STEADY: Duration = Duration::from_millis(500);
/// Later by this in each round, so that losses come anywhere between two looks of a gateway at the database.
const LATER: Duration = Duration::from_millis(47);
const LOOK: Duration = Duration::from_millis(5);
const ENDS_WITHIN: Duration = Duration::from_secs(15);
const SETTLES_WITHIN: Duration = Duration::from_secs(30);
/// Redis is given so long to have every row of the journal before it loses its data again.
const WARM_WITHIN: Duration = Duration::from_secs(5);
/// No round begins later with one number of gateways.
const ROUNDS_WITHIN: Duration = Duration::from_secs(20);
/// However long they take.
const ROUNDS_MIN: u32 = 3;
/// All gateways' connections.
const CONNECTIONS_MAX: &str = "900";
const SEGMENT_BYTES: u32 = 1 << 20;
const AIM_MS: f64 = 1000.0;
/// Upper ends of the histogram's buckets.
const BUCKETS_MS: [f64; 6] = [50.0, 100.0, 200.0, 300.0, 500.0, 1000.0];

/// What one claim came to.
#[derive(Clone, Copy)]
struct Told {
    gateway: usize,
    began: Instant,
    ended: Instant,
    is_granted: bool,
}

#[derive(Clone, Copy)]
enum Loss {
    Emptied,
    StartedAgain,
}

/// Of all rounds with one number of gateways.
#[derive(Default)]
struct Seen {
    /// By the kind of loss, in milliseconds.
    pauses: [Vec<f64>; 2],
    /// From a loss until Redis has every row of the journal again.
    warm: Vec<f64>,
    rounds: u32,
    refused: usize,
    slowest_ms: f64,
}

/// Measures at each number of gateways that `wanted` names.
///
/// # Errors
/// Where a server is missing or does not start, or there is no grant again.
pub(crate) async fn measure(
    rounds: Rounds,
    folder: &Path,
    wanted: impl Fn(&str) -> bool,
    tell: &mut impl FnMut(Line),
) -> anyhow::Result<()> {
    let postgres = postgres::Place::with(&[("max_connections", CONNECTIONS_MAX)]).await?;
    let (mut front, ids) = (Place::new()?, Arc::new(Ids::default()));
    let mut gateways: Vec<Arc<JournaledStore>> = Vec::new();
    for (name, count) in AT.into_iter().filter(|(name, _)| wanted(name)) {
        while gateways.len() < count {
            let spool = folder.join(format!("spool-view-{}", gateways.len()));
            gateways.push(journaled::gateway(&postgres, &front, &spool, SEGMENT_BYTES).await?);
        }
        settled(&gateways).await?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let _load = load(&gateways, &ids, &told);
        let mut seen = Seen::default();
        // Emptied twice as often as started again.
        let losses = [Loss::Emptied, Loss::StartedAgain, Loss::Emptied];
        let start = Instant::now();
        for (number, loss) in (0..rounds.count * 3).zip(losses.into_iter().cycle()) {
            if number >= ROUNDS_MIN && start.elapsed() > ROUNDS_WITHIN {
                break;
            }
            sleep(STEADY + LATER * (number % 8)).await;
            round(&mut front, loss, &gateways, &told, &mut seen).await?;
        }
        tell(line(name, count, seen));
    }
    Ok(())
}

/// Callers of each gateway, for as long as this is kept.
fn load(gateways: &[Arc<JournaledStore>], ids: &Arc<Ids>, told: &Arc<Mutex<Vec<Told>>>) -> JoinSet<()> {
    let (start, facts) = (Instant::now(), Arc::new(payment()));
    let mut callers = JoinSet::new();
    for (gateway, store) in gateways.iter().enumerate() {
        for caller in 0..CALLERS {
            let (store, ids, facts, told) = (Arc::clone(store), Arc::clone(ids), Arc::clone(&facts), Arc::clone(told));
            let mut beat = interval_at(start + EVERY / CALLERS * caller, EVERY);
            beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
            callers.spawn(async move {
                loop {
                    beat.tick().await;
                    let began = Instant::now();
                    let claimed = store.insert(ids.next(), &facts, LEASE).await;
                    let is_granted = matches!(claimed, Ok(Insert::Inserted { .. }));
                    let one = Told { gateway, began, ended: Instant::now(), is_granted };
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                }
            });
        }
    }
    callers
}

/// Redis loses its data, and each gateway grants again.
async fn round(
    front: &mut Place,
    loss: Loss,
    gateways: &[Arc<JournaledStore>],
    told: &Mutex<Vec<Told>>,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    told.lock().unwrap_or_else(PoisonError::into_inner).clear();
    match loss {
        Loss::Emptied => {
            front.raw().await?.req_packed_command(&redis::cmd("FLUSHALL")).await?;
        }
        Loss::StartedAgain => front.start_again()?,
    }
    let lost = Instant::now();
    let pauses = loop {
        let pauses = pauses(gateways.len(), lost, &told.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(pauses) = pauses {
            break pauses;
        }
        ensure!(lost.elapsed() < ENDS_WITHIN, "not every gateway grants again after {ENDS_WITHIN:?}");
        sleep(LOOK).await;
    };
    seen.pauses.get_mut(loss as usize).context("a kind")?.extend(pauses);
    settled(gateways).await?;
    seen.warm.push(lost.elapsed().as_secs_f64() * 1e3);
    seen.rounds += 1;
    let told = told.lock().unwrap_or_else(PoisonError::into_inner);
    seen.refused += told.iter().filter(|told| !told.is_granted).count();
    let slowest = told.iter().map(|told| told.ended - told.began).max().unwrap_or_default();
    seen.slowest_ms = seen.slowest_ms.max(slowest.as_secs_f64() * 1e3);
    Ok(())
}

/// Each gateway's pause in milliseconds, once all have granted again.
fn pauses(gateways: usize, lost: Instant, told: &[Told]) -> Option<Vec<f64>> {
    let pause = |gateway| {
        let after = || told.iter().filter(move |told| told.gateway == gateway && told.began >= lost);
        let first = after().map(|told| told.began).min()?;
        let granted = after().filter(|told| told.is_granted).map(|told| told.ended).min()?;
        Some((granted - first).as_secs_f64() * 1e3)
    };
    (0..gateways).map(pause).collect()
}

/// Waits until every gateway is in force in all partitions, and for a while until Redis has every row of the journal.
async fn settled(gateways: &[Arc<JournaledStore>]) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let all = gateways.iter().map(|store| store.serves());
        let (mut in_force, mut warm) = (true, true);
        for Serves { in_force: serving, warm: having, on_database, of, .. } in all {
            in_force &= serving == of && on_database == 0;
            warm &= having == of;
        }
        if in_force && (warm || start.elapsed() > WARM_WITHIN) {
            return Ok(());
        }
        ensure!(start.elapsed() < SETTLES_WITHIN, "not every view is in force after {SETTLES_WITHIN:?}");
        sleep(LOOK).await;
    }
}

fn line(name: &'static str, gateways: usize, mut seen: Seen) -> Line {
    let [emptied, again] = &mut seen.pauses;
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| percentile(emptied, part));
    let [again_p50, again_p99, again_max] = [0.5, 0.99, 1.0].map(|part| percentile(again, part));
    let worse = p99.max(again_p99);
    Line {
        name,
        text: format!(
            "gateways: {gateways}; Redis emptied, no grant for p50 {p50:.0} ms, p99 {p99:.0} ms{}, at most {max:.0} ms \
             ({}); started again without its data p50 {again_p50:.0} ms, p99 {again_p99:.0} ms{}, at most {again_max:.0} ms ({}); \
             {} claims refused, the slowest took {:.0} ms; every row in Redis after {:.0} ms; {} rounds",
            aim("at most", AIM_MS, p99 <= AIM_MS),
            histogram(emptied),
            aim("at most", AIM_MS, again_p99 <= AIM_MS),
            histogram(again),
            seen.refused,
            seen.slowest_ms,
            percentile(&mut seen.warm, 0.5),
            seen.rounds,
        ),
        figures: vec![
            ("p99_ms", worse),
            ("emptied_p50_ms", p50),
            ("emptied_p99_ms", p99),
            ("emptied_max_ms", max),
            ("started_again_p50_ms", again_p50),
            ("started_again_p99_ms", again_p99),
            ("started_again_max_ms", again_max),
            ("refused", seen.refused as f64),
            ("slowest_ms", seen.slowest_ms),
        ],
    }
}

/// How many there are in each bucket that has some.
fn histogram(values: &[f64]) -> String {
    let ends = BUCKETS_MS.into_iter().chain([f64::INFINITY]);
    let starts = [0.0].into_iter().chain(BUCKETS_MS);
    let bucket = |(from, to): (f64, f64)| {
        let count = values.iter().filter(|value| **value >= from && **value < to).count();
        let name = if to.is_finite() { format!("<{to}") } else { format!(">={from}") };
        (count > 0).then(|| format!("{name}: {count}"))
    };
    starts.zip(ends).filter_map(bucket).collect::<Vec<_>>().join(", ")
}
