//! P16: Redis is killed under load, and what is journaled is claimed in PostgreSQL, beside strict routes on the same servers.
//!
//! Two gateways. Fresh keys come at a steady rate to a journaled route and to a strict one, by turns; what is refused is
//! counted and not sent again. Redis is killed (SIGKILL), is away for a while, and is started again without its data.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::http::{Request, StatusCode, header};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};

use crate::report::{Line, aim, percentile};
use crate::{gateways, journaled, postgres};

pub(crate) const NAME: &str = "P16";
/// Operations that begin in a second, on each of the routes.
const RATE: u32 = 150;
const WARM_UP: Duration = Duration::from_secs(3);
const BEFORE: Duration = Duration::from_secs(5);
const AWAY: Duration = Duration::from_secs(12);
/// From when on the database has the claims.
const SETTLED: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(8);
const JOURNALED: &str =
    "[[route]]\nname = \"journaled\"\nmatch = { path = \"/journaled\" }\ndurability = \"journaled\"\n";
const ROUTES: [&str; 2] = ["/journaled", "/strict"];
const AIM: f64 = 2.0;

/// What one request came to.
#[derive(Clone, Copy)]
struct Told {
    route: usize,
    began: Instant,
    took: Duration,
    is_answered: bool,
}

/// Measures.
///
/// # Errors
/// Where a server is missing or does not start, or an answer is neither one nor a refusal.
pub(crate) async fn measure(folder: &Path) -> anyhow::Result<Line> {
    let postgres = postgres::Place::new().await?;
    let mut redis = servers::Redis::start(&[])?;
    let upstream = upstream().await?;
    let store = journaled::in_front(&postgres, &redis.url(), JOURNALED);
    let gateway = |name: &str| gateways::gateway(name, &upstream, &store, folder);
    let both = [gateway("one-16")?, gateway("two-16")?];
    let began = Instant::now();
    let kill = began + WARM_UP + BEFORE;
    let (back, end) = (kill + AWAY, kill + AWAY + AFTER);
    let operations = tokio::spawn(operations(both.each_ref().map(|server| server.url.clone()), end));
    sleep_until(kill).await;
    redis.kill()?;
    sleep_until(back).await;
    redis.start_again()?;
    let told = operations.await??;
    let of = |route: usize, from: Instant, to: Instant| {
        told.iter().filter(move |told| told.route == route && told.began >= from && told.began < to)
    };
    let p99 = |route, from, to| {
        let answered = of(route, from, to).filter(|told| told.is_answered);
        percentile(&mut answered.map(|told| told.took.as_secs_f64() * 1e3).collect::<Vec<_>>(), 0.99)
    };
    let without = (kill + SETTLED, back);
    let [ours, theirs] = [0, 1].map(|route| p99(route, without.0, without.1));
    let before = [0, 1].map(|route| p99(route, began + WARM_UP, kill));
    // From the first refusal to the last one, for each of the two changes.
    let pause = |from, to| {
        let refused: Vec<Instant> = of(0, from, to).filter(|told| !told.is_answered).map(|told| told.began).collect();
        let lasted =
            refused.iter().max().zip(refused.iter().min()).map_or(Duration::ZERO, |(last, first)| *last - *first);
        (refused.len(), lasted.as_secs_f64() * 1e3)
    };
    let ((away, away_ms), (again, again_ms)) = (pause(kill, back), pause(back, end));
    let slowest = told.iter().map(|told| told.took).max().unwrap_or_default().as_secs_f64() * 1e3;
    let refused_strict = of(1, began, end).filter(|told| !told.is_answered).count();
    let ratio = ours / theirs;
    Ok(Line {
        name: NAME,
        text: format!(
            "without Redis, journaled / strict, p99: {ratio:.2}x{} ({ours:.1} / {theirs:.1} ms; before {:.1} / {:.1} ms); \
             {} a second on each; refused {away} within {away_ms:.0} ms of its end, {again} within {again_ms:.0} ms of its \
             return, {refused_strict} of the strict; the slowest of all {slowest:.0} ms",
            aim("at most", AIM, ratio <= AIM),
            before[0],
            before[1],
            RATE,
        ),
        figures: vec![
            ("p99", ratio),
            ("journaled_p99_ms", ours),
            ("strict_p99_ms", theirs),
            ("pause_ms", away_ms),
            ("pause_at_return_ms", again_ms),
            ("slowest_ms", slowest),
        ],
    })
}

async fn upstream() -> anyhow::Result<String> {
    let answer = || async { (StatusCode::CREATED, r#"{"id":"ch_1"}"#) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = ROUTES.iter().fold(axum::Router::new(), |router, path| router.route(path, post(answer)));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

/// Begins operations until the end, by turns on both routes of both gateways, and waits for them all.
async fn operations(urls: [String; 2], end: Instant) -> anyhow::Result<Vec<Told>> {
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let all = Arc::new(Mutex::new(Vec::new()));
    let (mut clients, mut beat) = (JoinSet::new(), interval(Duration::from_secs(1) / (2 * RATE)));
    for number in 0.. {
        if Instant::now() >= end {
            break;
        }
        beat.tick().await;
        let (route, at) = (number % 2, number / 2 % 2);
        let url = format!("{}{}", urls.get(at).context("a gateway")?, ROUTES.get(route).context("a route")?);
        let (client, all) = (client.clone(), Arc::clone(&all));
        clients.spawn(async move {
            let began = Instant::now();
            let is_answered = operation(&client, &url, number).await?;
            let told = Told { route, began, took: began.elapsed(), is_answered };
            all.lock().unwrap_or_else(PoisonError::into_inner).push(told);
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    let all = std::mem::take(&mut *all.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(all)
}

/// Whether it was answered, or else refused.
async fn operation(client: &Client<HttpConnector, Full<Bytes>>, url: &str, number: usize) -> anyhow::Result<bool> {
    let request = Request::post(url).header("idempotency-key", format!("outage-{number}"));
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::from(r#"{"amount":5}"#))?;
    let answer = client.request(request).await?;
    let status = answer.status();
    answer.into_body().collect().await?;
    let is_refused = status == StatusCode::SERVICE_UNAVAILABLE;
    ensure!(is_refused || status == StatusCode::CREATED, "operation {number} was answered with {status}");
    Ok(!is_refused)
}
