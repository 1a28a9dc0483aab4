//! A sample payments API to stand behind the proxy, and commands to try with it: `onceward proxy --demo`.
//!
//! It is honest: each `POST /v1/payments` that reaches it is a charge, whatever key it carries, and its ledger shows
//! every one. That a repeated request is charged once is then the proxy's doing alone. It can be slow and it can fail
//! on request, with headers, which are in no fingerprint, or in the query:
//!
//! | header | query | does |
//! |---|---|---|
//! | `X-Demo-Delay: 5s` | `delay=5s` | waits before the charge; `250ms` to `10m` |
//! | `X-Demo-Fail: 503` | `fail=503` | answers this status, 400 to 599, and charges nothing |
//! | `X-Demo-Fail: drop-before` | `fail=drop-before` | closes the connection without an answer, and charges nothing |
//! | `X-Demo-Fail: drop-after` | `fail=drop-after` | charges, and closes the connection without an answer |
//!
//! The ledger is kept in memory and is gone with the process.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path as PathPart, Query, State, rejection::JsonRejection};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Charges that the ledger shows; its count goes on beyond.
const LEDGER_MAX: usize = 10_000;
const DELAY_MAX: Duration = Duration::from_secs(600);
/// How long the open requests have at the end.
const DRAIN: Duration = Duration::from_secs(2);
/// The route that the demo's requests are on, as `keys resolve --route` takes it.
const ROUTE: &str = "default POST /v1/payments";

/// One charge.
#[derive(Debug, Clone, Serialize)]
struct Charge {
    id: String,
    amount: u64,
    currency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// What came with the request, to show what the proxy says.
    key: Option<String>,
    attempt: Option<String>,
    charged_at: String,
}

#[derive(Debug, Default)]
struct Ledger {
    charges: VecDeque<Charge>,
    count: u64,
    totals: BTreeMap<String, u128>,
}

type Shared = Arc<Mutex<Ledger>>;

#[derive(Debug, Deserialize)]
struct NewCharge {
    amount: u64,
    currency: String,
    description: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Wishes {
    delay: Option<String>,
    fail: Option<String>,
}

/// How a charge is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Status(StatusCode),
    DropBefore,
    DropAfter,
}

/// Marks an answer that is not to be given: the connection is closed instead.
#[derive(Debug, Clone, Copy)]
struct Dropped;

/// Ends a connection without an answer.
#[derive(Debug, Error)]
#[error("the connection was dropped, as asked for")]
struct DropConnection;

/// Serves the sample API until `shutdown` is done, then lets open requests end for two seconds.
///
/// # Errors
///
/// When the listener fails.
pub async fn serve(listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let router = router();
    let tasks = TaskTracker::new();
    let (ending, cut) = (CancellationToken::new(), CancellationToken::new());
    let mut shutdown = pin!(shutdown);
    let outcome = loop {
        let stream = tokio::select! {
            () = &mut shutdown => break Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => break Err(error),
            },
        };
        let _ = stream.set_nodelay(true);
        let (router, ending, cut) = (router.clone(), ending.clone(), cut.clone());
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let router = router.clone();
                async move {
                    let response = router.oneshot(request).await.map_err(|never: Infallible| match never {})?;
                    let dropped = response.extensions().get::<Dropped>().is_some();
                    if dropped { Err(DropConnection) } else { Ok(response) }
                }
            });
            let mut connection = pin!(
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
            );
            tokio::select! {
                // How a connection ends is its client's business.
                _ = connection.as_mut() => return,
                () = ending.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                () = cut.cancelled() => {}
            }
        });
    };
    ending.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        cut.cancel();
        tasks.wait().await;
    }
    outcome
}

fn router() -> Router {
    Router::new()
        .route("/v1/payments", get(list).post(charge))
        .route("/v1/payments/by-key/{key}", get(by_key))
        .with_state(Shared::default())
}

async fn charge(
    State(ledger): State<Shared>,
    Query(query): Query<Wishes>,
    headers: HeaderMap,
    body: Result<Json<NewCharge>, JsonRejection>,
) -> Response {
    let Json(new) = match body {
        Ok(body) => body,
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    if new.amount == 0 || new.currency.len() != 3 || !new.currency.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return refuse(
            StatusCode::UNPROCESSABLE_ENTITY,
            "amount is a positive number of cents, currency three letters",
        );
    }
    let (delay, failure) = match wishes(&headers, query) {
        Ok(wishes) => wishes,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    match failure {
        Some(Failure::Status(status)) => {
            return refuse(status, "failed, as asked for; nothing was charged");
        }
        Some(Failure::DropBefore) => return drop_connection(),
        Some(Failure::DropAfter) | None => {}
    }
    let charge = book(&ledger, new, &headers);
    if failure == Some(Failure::DropAfter) {
        return drop_connection();
    }
    let location = format!("/v1/payments/{}", charge.id);
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(charge)).into_response()
}

/// The effect: one line more in the ledger.
fn book(ledger: &Shared, new: NewCharge, headers: &HeaderMap) -> Charge {
    let mut ledger = lock(ledger);
    ledger.count += 1;
    let currency = new.currency.to_ascii_uppercase();
    let charge = Charge {
        id: format!("pay_{:04}", ledger.count),
        amount: new.amount,
        currency: currency.clone(),
        description: new.description,
        key: text(headers, "idempotency-key").map(|key| key.trim_matches('"').to_owned()),
        attempt: text(headers, "idempotency-attempt").map(str::to_owned),
        charged_at: jiff::Timestamp::now().to_string(),
    };
    *ledger.totals.entry(currency).or_default() += u128::from(new.amount);
    ledger.charges.push_back(charge.clone());
    if ledger.charges.len() > LEDGER_MAX {
        ledger.charges.pop_front();
    }
    charge
}

async fn list(State(ledger): State<Shared>) -> Response {
    let ledger = lock(&ledger);
    let totals: BTreeMap<&String, String> =
        ledger.totals.iter().map(|(currency, total)| (currency, total.to_string())).collect();
    Json(serde_json::json!({ "count": ledger.count, "totals": totals, "payments": ledger.charges })).into_response()
}

async fn by_key(State(ledger): State<Shared>, PathPart(key): PathPart<String>) -> Response {
    let ledger = lock(&ledger);
    let found: Vec<&Charge> =
        ledger.charges.iter().filter(|charge| charge.key.as_deref() == Some(key.as_str())).collect();
    if found.is_empty() {
        return refuse(StatusCode::NOT_FOUND, "no charge was made under this key");
    }
    Json(serde_json::json!({ "count": found.len(), "payments": found })).into_response()
}

fn wishes(headers: &HeaderMap, query: Wishes) -> Result<(Duration, Option<Failure>), String> {
    let wish = |name, query: Option<String>| text(headers, name).map(str::to_owned).or(query);
    let delay = match wish("x-demo-delay", query.delay) {
        None => Duration::ZERO,
        Some(delay) => parse_delay(&delay)
            .ok_or_else(|| format!("{delay:?} is no delay: write it as 250ms, 5s or 1m, up to 10m"))?,
    };
    let failure = match wish("x-demo-fail", query.fail) {
        None => None,
        Some(fail) => Some(match fail.as_str() {
            "drop-before" => Failure::DropBefore,
            "drop-after" => Failure::DropAfter,
            status => status
                .parse()
                .ok()
                .filter(|status| (400..600).contains(status))
                .and_then(|status| StatusCode::from_u16(status).ok())
                .map(Failure::Status)
                .ok_or_else(|| format!("{fail:?} is no failure: a status from 400, drop-before or drop-after"))?,
        }),
    };
    Ok((delay, failure))
}

fn parse_delay(text: &str) -> Option<Duration> {
    let digits = text.find(|next: char| !next.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    let delay = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(unit_ms)?);
    (delay <= DELAY_MAX).then_some(delay)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(serde_json::json!({ "error": why }))).into_response()
}

fn drop_connection() -> Response {
    let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
    response.extensions_mut().insert(Dropped);
    response
}

/// The ledger is whole whatever a panicking holder did: each step leaves it so.
fn lock(ledger: &Shared) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The five things to try, as text for a terminal: commands for a POSIX shell with curl, and a line on what each shows.
///
/// `program` is how this process was started (its path), `data` its data folder, `pid` its process id.
#[must_use]
pub fn commands(program: &Path, proxy: SocketAddr, admin: SocketAddr, data: &Path, pid: u32) -> String {
    let program = quote(&program.to_string_lossy());
    let data = quote(&data.to_string_lossy());
    let payments = format!("http://{proxy}/v1/payments");
    let post = |key: &str, amount: u32, more: &str| {
        format!(
            "curl -isS {payments} -H 'Content-Type: application/json' -H 'Idempotency-Key: {key}'{more} \
             -d '{{\"amount\": {amount}, \"currency\": \"EUR\"}}'"
        )
    };
    let show = format!("curl -sS {payments}");
    let slow = |delay: &str| format!(" -H 'X-Demo-Delay: {delay}'");
    let first = post("demo-1", 1200, "");
    let other_amount = post("demo-1", 9900, "");
    let twin = post("demo-2", 500, &slow("2s"));
    let doomed = post("demo-3", 700, &slow("60s"));
    let again = post("demo-3", 700, "");

    let mut out = String::new();
    let mut line = |text: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{text}");
    };
    line(
        "A sample payments API is behind the proxy. Every POST that reaches it is a charge; paste these to see which do.",
    );
    line("");
    line("1. A charge: 201, and one payment in the ledger.");
    line(&format!("   {first}"));
    line(&format!("   {show}"));
    line("");
    line("2. The same again: the same answer with `idempotent-replayed: true`, and still one payment.");
    line(&format!("   {first}"));
    line(&format!("   {show}"));
    line("");
    line("3. Another amount under the same key: 422, nothing charged.");
    line(&format!("   {other_amount}"));
    line("");
    line("4. Two at once: the second waits for the first and gets its answer; one payment more.");
    line(&format!("   ({twin} & {twin} & wait)"));
    line(&format!("   {show}"));
    line("");
    line("5. kill -9 in the middle of a slow charge, which is the case that nobody can decide alone.");
    line(&format!("   ({doomed} & sleep 1; kill -9 {pid}; wait)"));
    line(
        "   Start it again (the sample API's ledger was in the killed process and is empty now; Onceward's record is not):",
    );
    line(&format!("   {program} proxy --demo --listen {proxy} --admin {admin} --data {data}"));
    line(
        "   In another terminal, the same again: 409 `outcome-unknown`. It may have been charged, so it is not run again.",
    );
    line(&format!("   {again}"));
    line(
        "   Look, as you would in your payment provider's records. Not there, so say so, and the next repeat is charged:",
    );
    line(&format!("   curl -sS {payments}/by-key/demo-3"));
    line(&format!("   {program} keys list --state unknown --data {data}"));
    line(&format!("   {program} keys resolve --key demo-3 --route {} --as not-executed --data {data}", quote(ROUTE)));
    line(&format!("   {again}"));
    out
}

/// As one word of a POSIX shell.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn start() -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, asked) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(serve(listener, async {
            let _ = asked.await;
        }));
        (address, stop)
    }

    /// One request on its own connection: the status, or 0 for none, and the body.
    async fn ask(address: SocketAddr, method: &str, target: &str, headers: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            assert!(answer.is_empty(), "{answer}");
            return (0, Value::Null);
        };
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    const BODY: &str = r#"{"amount": 1200, "currency": "eur"}"#;

    #[tokio::test]
    async fn every_post_is_a_charge_and_the_ledger_shows_it() {
        let (address, _stop) = start().await;
        let key = "Idempotency-Key: \"k\"\r\nIdempotency-Attempt: 1\r\n";
        for number in 1..=2 {
            let (status, charge) = ask(address, "POST", "/v1/payments", key, BODY).await;
            assert_eq!((status, charge["id"].as_str().unwrap()), (201, format!("pay_000{number}").as_str()));
        }
        let (_, ledger) = ask(address, "GET", "/v1/payments", "", "").await;
        assert_eq!((&ledger["count"], &ledger["totals"]["EUR"]), (&Value::from(2), &Value::from("2400")));
        let (status, by_key) = ask(address, "GET", "/v1/payments/by-key/k", "", "").await;
        assert_eq!((status, &by_key["count"]), (200, &Value::from(2)));
        assert_eq!(ask(address, "GET", "/v1/payments/by-key/other", "", "").await.0, 404);
    }

    #[tokio::test]
    async fn it_fails_as_asked_and_says_what_was_charged() {
        let (address, _stop) = start().await;
        for (target, headers, status, charged) in [
            ("/v1/payments?fail=503", "", 503, 0),
            ("/v1/payments", "X-Demo-Fail: drop-before\r\n", 0, 0),
            ("/v1/payments?fail=drop-after&delay=1ms", "", 0, 1),
            ("/v1/payments?fail=200", "", 400, 1),
            ("/v1/payments?delay=1h", "", 400, 1),
        ] {
            assert_eq!(ask(address, "POST", target, headers, BODY).await.0, status, "{target}");
            let (_, ledger) = ask(address, "GET", "/v1/payments", "", "").await;
            assert_eq!(ledger["count"], charged, "{target}");
        }
        assert_eq!(ask(address, "POST", "/v1/payments", "", "{}").await.0, 400);
        assert_eq!(ask(address, "POST", "/v1/payments", "", r#"{"amount":0,"currency":"EUR"}"#).await.0, 422);
    }

    #[test]
    fn the_commands_are_shell_and_survive_odd_paths() {
        let (proxy, admin) = ("127.0.0.1:8080".parse().unwrap(), "127.0.0.1:8081".parse().unwrap());
        let text = commands(Path::new("/opt/it's here/onceward"), proxy, admin, Path::new("data folder"), 4711);
        for number in 1..=5 {
            assert!(text.contains(&format!("\n{number}. ")), "{text}");
        }
        let commands: Vec<&str> = text.lines().filter_map(command).collect();
        assert_eq!(commands.len(), 14, "{text}");
        for command in commands {
            // Parsed, not run.
            let parsed = Command::new("sh").args(["-n", "-c", command]).status().unwrap();
            assert!(parsed.success(), "{command}");
        }
        assert!(text.contains(r"'/opt/it'\''s here/onceward' proxy --demo"), "{text}");
        assert!(text.contains("--data 'data folder'"), "{text}");
        assert!(text.contains("kill -9 4711"), "{text}");
    }

    /// A line that is a command and not prose.
    fn command(line: &str) -> Option<&str> {
        let line = line.strip_prefix("   ")?;
        let first = line.split_whitespace().next()?;
        (first.starts_with("curl") || first.starts_with("(curl") || line.contains("/onceward' ")).then_some(line)
    }
}
