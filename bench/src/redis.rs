//! Records in Redis beside the plainest commands that keep as much: what a claim and its completion cost the server (P4),
//! a look-up (P5), the memory of a record (P6), waiters of another process (P9).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use onceward_core::key::{PARTITIONS, RecordId};
use onceward_core::outcome::Outcome;
use onceward_core::record::{Micros, SessionId};
use onceward_core::transition;
use onceward_store::journaled::{At, Front as _, Incarnation, Install, Stepped, View, What};
use onceward_store::redis::address::{Address, Credentials};
use onceward_store::redis::{Options, Redis};
use onceward_store::{Insert, Store, Write};
use redis::aio::{ConnectionLike, MultiplexedConnection};

use crate::inside::{outcome, payment};
use crate::process::Cpu;
use crate::report::{Line, aim, median};
use crate::rows::Rounds;
use crate::waiters;

const LEASE: Duration = Duration::from_secs(30);
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);
/// Callers at a time, so that commands are sent together, as they are under load.
const CALLERS: u64 = 64;

pub(crate) struct Place {
    server: servers::Redis,
    process: u32,
}

impl Place {
    /// A server of its own.
    ///
    /// # Errors
    /// Where Redis is missing.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let server = servers::Redis::start(&[])?;
        Ok(Self { process: process_of(&server)?, server })
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Its process's id.
    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    /// Stops its process where it is.
    ///
    /// # Errors
    /// Where it does not run.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.server.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it does not run.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        self.server.resume()
    }

    /// Kills it, and starts it again without its data.
    ///
    /// # Errors
    /// Where it does not start.
    pub(crate) fn start_again(&mut self) -> anyhow::Result<()> {
        self.server.kill()?;
        self.server.start_again()?;
        self.process = process_of(&self.server)?;
        Ok(())
    }

    /// A store on it.
    ///
    /// # Errors
    /// Where it does not answer.
    pub(crate) async fn store(&self) -> anyhow::Result<Arc<Redis>> {
        let address = Address::new(&self.server.url(), Credentials::default(), Credentials::default(), None)?;
        Ok(Arc::new(Redis::open(Options { usage: false, ..Options::new(address) }).await?))
    }

    /// A connection of nobody else's.
    pub(crate) async fn raw(&self) -> anyhow::Result<MultiplexedConnection> {
        Ok(redis::Client::open(self.server.url())?.get_multiplexed_async_connection().await?)
    }

    fn memory(&self) -> anyhow::Result<u64> {
        let info = self.server.command(&["INFO", "memory"])?;
        let used = info.lines().find_map(|line| line.trim().strip_prefix("used_memory:"));
        Ok(used.context("no used_memory")?.parse()?)
    }
}

fn process_of(server: &servers::Redis) -> anyhow::Result<u32> {
    let info = server.command(&["INFO", "server"])?;
    let process = info.lines().find_map(|line| line.trim().strip_prefix("process_id:"));
    Ok(process.context("no process")?.parse()?)
}

/// Spread as hashes are.
fn id(number: u64) -> RecordId {
    let mut id = [0; 32];
    for (part, at) in id.chunks_exact_mut(8).zip(1_u64..) {
        let mixed = number.wrapping_mul(4).wrapping_add(at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        part.copy_from_slice(&(mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_be_bytes());
    }
    RecordId(id)
}

/// What so many at a time cost the server, in microseconds each, and how many a second there were.
struct Cost {
    server_us: f64,
    a_second: f64,
}

async fn cost<F>(place: &Place, span: Duration, work: impl Fn(u64) -> F) -> anyhow::Result<Cost>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let count = AtomicU64::new(0);
    let (before, start) = (Cpu::of(place.process), Instant::now());
    let mut running = futures_util::stream::FuturesUnordered::new();
    for _ in 0..CALLERS {
        running.push(async {
            while start.elapsed() < span {
                work(count.fetch_add(1, Ordering::Relaxed)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.next().await {
        done?;
    }
    let done = count.load(Ordering::Relaxed) as f64;
    Ok(Cost { server_us: Cpu::of(place.process).since(&before) / done, a_second: done / start.elapsed().as_secs_f64() })
}

/// P4, the server's side: a claim and its completion beside one SET NX PX.
///
/// # Errors
/// Where Redis is missing, or refuses.
pub(crate) async fn claims(rounds: Rounds) -> anyhow::Result<Line> {
    const AIM: f64 = 5.5;
    let place = Place::new()?;
    let (store, raw) = (place.store().await?, place.raw().await?);
    let next = AtomicU64::new(0);
    let (mut ratios, mut ours, mut theirs, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds.count {
        let set = cost(&place, rounds.span, |number| {
            let mut raw = raw.clone();
            async move {
                let key = format!("raw:{:059}", u64::from(round) << 32 | number);
                let mut set = redis::cmd("SET");
                set.arg(key).arg("1").arg("NX").arg("PX").arg(86_400_000);
                raw.req_packed_command(&set).await?;
                Ok(())
            }
        })
        .await?;
        let claimed = cost(&place, rounds.span, |_| {
            let (store, id) = (&store, id(next.fetch_add(1, Ordering::Relaxed)));
            async move {
                let facts = payment();
                let Insert::Inserted { fence, .. } = store.insert(id, &facts, LEASE).await? else {
                    anyhow::bail!("a fresh key is taken");
                };
                let write = transition::complete(&facts, fence, outcome(), KEEP, Micros::ZERO);
                let transition::Write::Replace(write) = write else { anyhow::bail!("a completion replaces") };
                ensure!(matches!(store.replace(id, &write).await?, Write::Applied { .. }), "it was overtaken");
                Ok(())
            }
        })
        .await?;
        place.server.command(&["FLUSHALL"])?;
        // Noticed, and the markers made again.
        let _refused = store.get(id(0)).await;
        ratios.push(claimed.server_us / set.server_us);
        ours.push(claimed.server_us);
        theirs.push(set.server_us);
        rates.push(claimed.a_second);
    }
    let (ratio, ours, theirs, rate) = (median(ratios), median(ours), median(theirs), median(rates));
    Ok(Line {
        name: "P4-redis",
        text: format!(
            "claim and completion at {CALLERS} callers / one SET NX PX: Redis's CPU {ratio:.2}x{}; {ours:.1} / {theirs:.1} us, \
             {rate:.0} a second",
            aim("at most", AIM, ratio <= AIM)
        ),
        figures: vec![("server_cpu", ratio), ("server_cpu_us", ours), ("per_second", rate)],
    })
}

/// P4, the server's side, of the front of a journal: a claim and its completion in a warm view beside one SET NX PX.
///
/// # Errors
/// Where Redis is missing, or refuses.
pub(crate) async fn fronted_claims(rounds: Rounds) -> anyhow::Result<Line> {
    const AIM: f64 = 10.0;
    let place = Place::new()?;
    let (store, raw) = (place.store().await?, place.raw().await?);
    let front = store.front();
    let next = AtomicU64::new(0);
    let session = SessionId([1; 16]);
    let (mut ratios, mut ours, mut theirs, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds.count {
        let set = cost(&place, rounds.span, |number| {
            let mut raw = raw.clone();
            async move {
                let key = format!("raw:{:059}", u64::from(round) << 32 | number);
                let mut set = redis::cmd("SET");
                set.arg(key).arg("1").arg("NX").arg("PX").arg(86_400_000);
                raw.req_packed_command(&set).await?;
                Ok(())
            }
        })
        .await?;
        let mut at =
            At { partition: 0, view: View { number: 1, tag: 1 }, incarnation: Incarnation::default(), session };
        let install = Install { admitted: vec![session], ..Install::default() };
        let partitions: Vec<u16> = (0..PARTITIONS).collect();
        for (partition, sight) in front.look(&partitions).await? {
            (at.partition, at.incarnation) = (partition, sight.incarnation);
            ensure!(front.install(&at, &install).await? && front.warm(&at).await?, "another has the view");
        }
        let claimed = cost(&place, rounds.span, |_| {
            let (front, id) = (&front, id(next.fetch_add(1, Ordering::Relaxed)));
            let at = At { partition: id.partition(), ..at };
            async move {
                let facts = payment();
                let insert = What::Insert { facts: &facts, lease: LEASE };
                let Stepped::Done { record, .. } = front.step(&at, id, insert, None).await? else {
                    anyhow::bail!("a fresh key is taken");
                };
                let fence = record.stored.fence;
                let write = transition::complete(&facts, fence, outcome(), KEEP, Micros::ZERO);
                let transition::Write::Replace(write) = write else { anyhow::bail!("a completion replaces") };
                let written = front.step(&at, id, What::Replace(&write), None).await?;
                ensure!(matches!(written, Stepped::Done { .. }), "it was overtaken");
                Ok(())
            }
        })
        .await?;
        place.server.command(&["FLUSHALL"])?;
        ratios.push(claimed.server_us / set.server_us);
        ours.push(claimed.server_us);
        theirs.push(set.server_us);
        rates.push(claimed.a_second);
    }
    let (ratio, ours, theirs, rate) = (median(ratios), median(ours), median(theirs), median(rates));
    Ok(Line {
        name: "P4-journaled",
        text: format!(
            "claim and completion in front of a journal at {CALLERS} callers / one SET NX PX: Redis's CPU {ratio:.2}x{}; \
             {ours:.1} / {theirs:.1} us, {rate:.0} a second",
            aim("at most", AIM, ratio <= AIM)
        ),
        figures: vec![("server_cpu", ratio), ("server_cpu_us", ours), ("per_second", rate)],
    })
}

/// P5: a claim that finds its key completed, beside a GET of the same bytes.
///
/// # Errors
/// Where Redis is missing, or refuses.
pub(crate) async fn replays(rounds: Rounds) -> anyhow::Result<Line> {
    const AIM: f64 = 1.2;
    const RECORDS: u64 = 10_000;
    let place = Place::new()?;
    let (store, raw) = (place.store().await?, place.raw().await?);
    let keys = completed(&store, RECORDS).await?;
    let (mut ratios, mut ours, mut theirs, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.count {
        let got = cost(&place, rounds.span, |number| {
            let (mut raw, keys) = (raw.clone(), &keys);
            async move {
                let key = keys.get(usize::try_from(number.wrapping_mul(7_919) % RECORDS)?).context("a key")?;
                let value = raw.req_packed_command(redis::cmd("GET").arg(key)).await?;
                ensure!(matches!(value, redis::Value::BulkString(_)), "it is there");
                Ok(())
            }
        })
        .await?;
        let met = cost(&place, rounds.span, |number| {
            let store = &store;
            async move {
                let met = store.insert(id(number.wrapping_mul(7_919) % RECORDS), &payment(), LEASE).await?;
                ensure!(matches!(met, Insert::Existing { .. }), "it is there");
                Ok(())
            }
        })
        .await?;
        ratios.push(met.server_us / got.server_us);
        ours.push(met.server_us);
        theirs.push(got.server_us);
        rates.push(met.a_second / got.a_second);
    }
    let (ratio, ours, theirs, rate) = (median(ratios), median(ours), median(theirs), median(rates));
    Ok(Line {
        name: "P5-redis",
        text: format!(
            "a claim of a completed key / GET of its record, {CALLERS} callers: Redis's CPU {ratio:.2}x{}; {ours:.2} / \
             {theirs:.2} us, rate {rate:.2}x",
            aim("at most", AIM, ratio <= AIM)
        ),
        figures: vec![("server_cpu", ratio), ("server_cpu_us", ours), ("rate", rate)],
    })
}

/// Completes so many; returns their keys.
async fn completed(store: &Redis, records: u64) -> anyhow::Result<Vec<String>> {
    let mut keys = Vec::new();
    for number in 0..records {
        let (id, facts) = (id(number), payment());
        let Insert::Inserted { fence, .. } = store.insert(id, &facts, LEASE).await? else {
            anyhow::bail!("a fresh key is taken");
        };
        let write = transition::complete(&facts, fence, outcome(), KEEP, Micros::ZERO);
        let transition::Write::Replace(write) = write else { anyhow::bail!("a completion replaces") };
        store.replace(id, &write).await?;
        keys.push(key(id));
    }
    Ok(keys)
}

/// A payment's answer of 300 bytes, as APIs give them: names that repeat, and ids and times that do not.
fn payment_answer(number: u64) -> String {
    let hex: String = id(number).0.iter().map(|byte| format!("{byte:02x}")).collect();
    let (one, two, three) = (&hex[..24], &hex[24..40], &hex[40..56]);
    let answer = format!(
        r#"{{"id":"pay_{one}","object":"payment","amount":{},"currency":"eur","status":"succeeded","customer":"cus_{two}","created":{},"livemode":true,"receipt_url":"https://pay.example/receipts/{three}","method":{{"type":"card","brand":"visa","last4":"{}"}},"metadata":{{"order":"{}"}}}}"#,
        100 + number % 90_000,
        1_764_000_000 + number,
        &hex[56..60],
        6_000_000 + number
    );
    format!("{answer:<300}")
}

/// P6: what a completed record takes, beside its answer alone under a key of 64 characters.
///
/// # Errors
/// Where Redis is missing, or refuses.
pub(crate) async fn memory() -> anyhow::Result<Line> {
    const AIM: f64 = 1.3;
    const RECORDS: u64 = 100_000;
    let place = Place::new()?;
    let (store, mut raw) = (place.store().await?, place.raw().await?);
    // Buffers and scripts are there before either is counted.
    completed(&store, 1).await?;
    let empty = place.memory()?;
    for number in 0..RECORDS {
        let mut set = redis::cmd("SET");
        set.arg(format!("{number:064}")).arg(payment_answer(number)).arg("PX").arg(86_400_000);
        raw.req_packed_command(&set).await?;
    }
    let theirs = (place.memory()? - empty) as f64 / RECORDS as f64;
    place.server.command(&["FLUSHALL"])?;
    let _refused = store.get(id(0)).await;
    completed(&store, 1).await?;
    let empty = place.memory()?;
    for first in (1..=RECORDS).step_by(1000) {
        let work = (first..first + 1000).map(|number| {
            let store = &store;
            async move {
                let (id, facts) = (id(number), payment());
                let Insert::Inserted { fence, .. } = store.insert(id, &facts, LEASE).await? else {
                    anyhow::bail!("a fresh key is taken");
                };
                let outcome = Outcome { body: payment_answer(number).into(), ..outcome() };
                let write = transition::complete(&facts, fence, outcome, KEEP, Micros::ZERO);
                let transition::Write::Replace(write) = write else { anyhow::bail!("a completion replaces") };
                store.replace(id, &write).await.map(|_| ()).map_err(anyhow::Error::from)
            }
        });
        let done: Vec<anyhow::Result<()>> = futures_util::stream::iter(work).buffer_unordered(64).collect().await;
        done.into_iter().collect::<anyhow::Result<()>>()?;
    }
    let ours = (place.memory()? - empty) as f64 / RECORDS as f64;
    let ratio = ours / theirs;
    Ok(Line {
        name: "P6",
        text: format!(
            "memory of a completed record / SET of its 300 bytes under 64 characters: {ratio:.2}x{}; {ours:.0} / \
             {theirs:.0} bytes",
            aim("at most", AIM, ratio <= AIM)
        ),
        figures: vec![("memory", ratio), ("bytes", ours)],
    })
}

/// P9 across two gateways.
///
/// # Errors
/// Where Redis is missing, or refuses.
pub(crate) async fn waiters(rounds: Rounds) -> anyhow::Result<Line> {
    let place = Place::new()?;
    let (owner, other, looking) = (place.store().await?, place.store().await?, place.raw().await?);
    let is_said = |id: RecordId| {
        let mut looking = looking.clone();
        async move {
            let channel = key(id);
            let said = looking.req_packed_command(redis::cmd("PUBSUB").arg("NUMSUB").arg(channel)).await?;
            Ok(matches!(said, redis::Value::Array(counts) if counts.last() != Some(&redis::Value::Int(0))))
        }
    };
    let next = AtomicU64::new(0);
    waiters::measure("P9-redis", owner, other, rounds, || id(next.fetch_add(1, Ordering::Relaxed)), is_said).await
}

fn key(id: RecordId) -> String {
    format!("idemp:v1:{{p{:03}}}:{id}", id.partition())
}
