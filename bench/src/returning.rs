//! P-return: what comes when Redis is back after it stood still, beside what came before.
//!
//! Two gateways on one Redis. Operations begin at a steady rate, each of a client of its own that sends its request again
//! after the time in `Retry-After` until it has its answer. Redis is stopped (SIGSTOP) and goes on. Counted are requests at
//! the upstream and commands at Redis: the most of them in a tenth of a second, and in a second, after the return beside
//! the most before.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::http::{Request, StatusCode, header};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::gateways;
use crate::redis::Place;
use crate::report::{Line, aim};

pub(crate) const NAME: &str = "P-return";
/// Operations that begin in a second.
const RATE: u32 = 200;
const BIN: Duration = Duration::from_millis(100);
/// Of them in a second.
const SECOND: usize = 10;
const WARM_UP: Duration = Duration::from_secs(2);
const BEFORE: Duration = Duration::from_secs(5);
const STOPPED: Duration = Duration::from_secs(3);
/// Longer than anybody is told to wait.
const AFTER: Duration = Duration::from_secs(35);
/// Whoever was refused so often has gone.
const TRIES_MAX: u32 = 12;
const AIM: f64 = 1.2;

/// When requests reached the upstream; by when Redis had processed how many commands.
#[derive(Default)]
struct Seen {
    came: Mutex<Vec<Instant>>,
    commands: Mutex<Vec<(Instant, u64)>>,
}

/// Measures.
///
/// # Errors
/// Where a server is missing or does not start, or an operation has no answer in the end.
pub(crate) async fn measure(folder: &Path) -> anyhow::Result<Line> {
    let (place, seen) = (Place::new()?, Arc::new(Seen::default()));
    let upstream = upstream(Arc::clone(&seen)).await?;
    let gateway = |name: &str| gateways::gateway(name, &upstream, &gateways::on_redis(&place), folder);
    let both = [gateway("one")?, gateway("two")?];
    let watching = tokio::spawn(watch(place.raw().await?, Arc::clone(&seen)));
    let (began, stopping) = (Instant::now(), WARM_UP + BEFORE);
    let (stop, back, end) = (began + stopping, began + stopping + STOPPED, began + stopping + STOPPED + AFTER);
    let operations = tokio::spawn(operations(both.each_ref().map(|server| server.url.clone()), end));
    tokio::time::sleep_until(stop).await;
    place.pause()?;
    tokio::time::sleep_until(back).await;
    place.resume()?;
    let (count, refused) = operations.await??;
    watching.abort();
    let came = locked(&seen.came).len();
    ensure!(came == count, "{count} operations reached the upstream {came} times");
    let requests = |from, to| most(&bins(&locked(&seen.came), from, to));
    let commands = |from, to| most(&rates(&locked(&seen.commands), from, to));
    let (before, after) = ((began + WARM_UP, stop), (back, end));
    let ratio = |of: &dyn Fn(Instant, Instant) -> [f64; 2]| {
        let (was, is) = (of(before.0, before.1), of(after.0, after.1));
        [(was[0], is[0], is[0] / was[0]), (was[1], is[1], is[1] / was[1])]
    };
    let ([tenth, second], [redis_tenth, redis_second]) = (ratio(&requests), ratio(&commands));
    let shown = |(was, is, ratio): (f64, f64, f64)| format!("{ratio:.2}x ({is:.0} / {was:.0})");
    Ok(Line {
        name: NAME,
        text: format!(
            "after {} s without Redis / before, the most in a second: requests at the upstream {}{}, commands at Redis \
             {}{}; in a tenth of it {} and {}; {count} operations, {refused} refusals",
            STOPPED.as_secs(),
            shown(second),
            aim("at most", AIM, second.2 <= AIM),
            shown(redis_second),
            aim("at most", AIM, redis_second.2 <= AIM),
            shown(tenth),
            shown(redis_tenth),
        ),
        figures: vec![
            ("upstream", second.2),
            ("redis", redis_second.2),
            ("upstream_tenth", tenth.2),
            ("redis_tenth", redis_tenth.2),
        ],
    })
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers at once, and notes when it was asked.
async fn upstream(seen: Arc<Seen>) -> anyhow::Result<String> {
    let answer = move || {
        locked(&seen.came).push(Instant::now());
        async { (StatusCode::CREATED, r#"{"id":"ch_1"}"#) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/pay", post(answer))).await });
    Ok(url)
}

/// Notes how many commands Redis has processed, but for this one.
async fn watch(mut raw: MultiplexedConnection, seen: Arc<Seen>) {
    let mut beat = interval(BIN);
    // While it stands still no reading is owed.
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for own in 0.. {
        beat.tick().await;
        let said = raw.req_packed_command(redis::cmd("INFO").arg("stats")).await;
        let said = said.map(redis::from_redis_value::<String>);
        let said = said.ok().and_then(Result::ok).unwrap_or_default();
        let total = said.lines().find_map(|line| line.strip_prefix("total_commands_processed:")?.trim().parse().ok());
        if let Some(total) = total {
            let total: u64 = total;
            locked(&seen.commands).push((Instant::now(), total.saturating_sub(own)));
        }
    }
}

/// Begins operations until the end, and waits for them all: how many there were, and how often they were refused.
async fn operations(urls: [String; 2], end: Instant) -> anyhow::Result<(usize, u32)> {
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let (mut clients, mut beat) = (JoinSet::new(), interval(Duration::from_secs(1) / RATE));
    let (mut count, mut refused) = (0, 0);
    while Instant::now() < end {
        beat.tick().await;
        let url = urls.iter().cycle().nth(count).context("a gateway")?;
        clients.spawn(operation(client.clone(), format!("{url}/pay"), count));
        count += 1;
    }
    while let Some(done) = clients.join_next().await {
        refused += done??;
    }
    Ok((count, refused))
}

/// Until it has its answer: how often it was refused.
async fn operation(client: Client<HttpConnector, Full<Bytes>>, url: String, number: usize) -> anyhow::Result<u32> {
    for refused in 0..TRIES_MAX {
        let request = Request::post(&url).header("idempotency-key", format!("return-{number}"));
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::from(r#"{"amount":5}"#))?;
        let answer = client.request(request).await?;
        let after = answer.headers().get(header::RETRY_AFTER).map(|after| after.to_str()?.parse::<u64>().context("it"));
        let status = answer.status();
        answer.into_body().collect().await?;
        match after {
            None if status == StatusCode::CREATED => return Ok(refused),
            Some(after) => sleep(Duration::from_secs(after?)).await,
            None => anyhow::bail!("operation {number} was answered with {status}"),
        }
    }
    anyhow::bail!("operation {number} was refused {TRIES_MAX} times")
}

/// How many there were in each tenth of a second.
fn bins(times: &[Instant], from: Instant, to: Instant) -> Vec<f64> {
    let mut bins = vec![0.0; usize::try_from((to - from).as_millis() / BIN.as_millis()).unwrap_or(0)];
    for time in times.iter().filter(|time| **time >= from) {
        let at = (*time - from).as_millis() / BIN.as_millis();
        if let Some(bin) = usize::try_from(at).ok().and_then(|at| bins.get_mut(at)) {
            *bin += 1.0;
        }
    }
    bins
}

/// The same of a count that was read about as often; between two readings it is taken for even.
fn rates(samples: &[(Instant, u64)], from: Instant, to: Instant) -> Vec<f64> {
    let at = |time: Instant| {
        let after = samples.partition_point(|(at, _)| *at <= time);
        let (&(began, before), &(ended, count)) =
            after.checked_sub(1).and_then(|at| samples.get(at)).zip(samples.get(after))?;
        let share = (time - began).as_secs_f64() / (ended - began).as_secs_f64();
        Some(before as f64 + (count - before) as f64 * share)
    };
    let edges: Vec<f64> = (0..).map(|n| from + BIN * n).take_while(|edge| *edge <= to).map_while(at).collect();
    edges
        .windows(2)
        .map(|pair| pair.iter().rev().copied().reduce(|more, less| more - less).unwrap_or_default())
        .collect()
}

/// The most in a tenth of a second, and in a second.
fn most(bins: &[f64]) -> [f64; 2] {
    let most = |width| bins.windows(width).map(|some| some.iter().sum::<f64>()).fold(0.0, f64::max);
    [most(1), most(SECOND)]
}
