//! What is measured inside this process: waiters (P9), the size of a record (P12), the layer in axum (P13).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use hyper::{Request, StatusCode};
use onceward::store::{Insert, Store, memory::Memory};
use onceward::{Engine, Layer, Limits, Route, Routes, Secret};
use onceward_core::outcome::{Field, Outcome};
use onceward_core::record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored};
use onceward_core::{codec, transition};
use tokio::sync::Notify;
use tower::ServiceExt;

use crate::report::{Line, aim, median, percentile};
use crate::rows::Rounds;

/// A payment's answer of 300 bytes.
pub(crate) fn answer() -> Bytes {
    let frame = br#"{"id":"ch_1","note":""}"#.len();
    format!(r#"{{"id":"ch_1","note":"{}"}}"#, "x".repeat(300 - frame)).into()
}

fn engine() -> Engine {
    let routes = Routes::new(vec![], Route::new("default"));
    let secret = Secret::from_bytes([7; 32]);
    Engine::new(Arc::new(Memory::default()), secret, routes, Limits::default(), Engine::new_session())
}

fn pay(key: &str) -> anyhow::Result<Request<Body>> {
    let request = Request::post("/v1/payments").header("idempotency-key", key);
    Ok(request.header("content-type", "application/json").body(Body::from(r#"{"amount":100,"currency":"EUR"}"#))?)
}

/// P9: how long after the owner's completion its waiters have the answer, beside those who poll every 100 ms.
///
/// # Errors
/// Where an answer is not the one expected.
pub(crate) async fn waiters(rounds: Rounds) -> anyhow::Result<Line> {
    const WAITERS: usize = 16;
    const AIM: Duration = Duration::from_millis(2);
    let (go, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (held, begins) = (Arc::clone(&go), Arc::clone(&began));
    let charge = move || {
        let (held, begins) = (Arc::clone(&held), Arc::clone(&begins));
        async move {
            begins.notify_one();
            held.notified().await;
            (StatusCode::CREATED, answer())
        }
    };
    let engine = engine();
    let app: Router = Router::new().route("/v1/payments", post(charge)).layer(Layer::new(engine.clone()));
    let (mut pushed, mut polled) = (Vec::new(), Vec::new());
    for round in 0..rounds.count * 40 {
        let key = format!("k-{round}");
        let owner = tokio::spawn(app.clone().oneshot(pay(&key)?));
        began.notified().await;
        let mut waiting = Vec::new();
        for _ in 0..WAITERS {
            let answered = app.clone().oneshot(pay(&key)?);
            waiting.push(tokio::spawn(async move { (answered.await.map(|answer| answer.status()), Instant::now()) }));
        }
        while engine.waiting() < WAITERS {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        ensure!(owner.await??.status() == StatusCode::CREATED, "the owner was refused");
        let completed = Instant::now();
        for waiter in waiting {
            let (status, at) = waiter.await?;
            ensure!(status? == StatusCode::CREATED, "a waiter was refused");
            pushed.push(at.saturating_duration_since(completed).as_secs_f64());
        }
        // Of those who poll, one round in ten will do: it takes its time.
        if round % 10 == 0 {
            polled.extend(polling(WAITERS).await?);
        }
    }
    let (ours, theirs) = (percentile(&mut pushed, 0.99), percentile(&mut polled, 0.99));
    let (half, their_half) = (percentile(&mut pushed, 0.5), percentile(&mut polled, 0.5));
    let aim = aim("at most", AIM.as_secs_f64() * 1e3, ours <= AIM.as_secs_f64());
    Ok(Line {
        name: "P9",
        text: format!(
            "a waiter's answer after the owner's / polling at 100 ms: p99 {:.3} ms{aim} / {:.1} ms, p50 {:.3} / {:.1} ms",
            ours * 1e3,
            theirs * 1e3,
            half * 1e3,
            their_half * 1e3
        ),
        figures: vec![("p99_ms", ours * 1e3), ("polling_p99_ms", theirs * 1e3)],
    })
}

/// The same for callers who read the record every 100 ms, as peers do, each from a moment of its own.
async fn polling(callers: usize) -> anyhow::Result<Vec<f64>> {
    const EVERY: Duration = Duration::from_millis(100);
    let store = Arc::new(Memory::default());
    let id = onceward::RecordId([9; 32]);
    let facts = payment();
    let Insert::Inserted { fence, .. } = store.insert(id, &facts, Duration::from_secs(10)).await? else {
        anyhow::bail!("a fresh key is taken");
    };
    let mut waiting = Vec::new();
    for caller in 0..callers {
        let store = Arc::clone(&store);
        waiting.push(tokio::spawn(async move {
            tokio::time::sleep(EVERY * u32::try_from(caller).unwrap_or(0) / 16).await;
            loop {
                let read = store.get(id).await.ok().and_then(|read| read.record);
                if read.is_some_and(|record| record.facts.state == State::Completed) {
                    return Instant::now();
                }
                tokio::time::sleep(EVERY).await;
            }
        }));
    }
    tokio::time::sleep(EVERY * 2).await;
    let write = transition::complete(&facts, fence, outcome(), Duration::from_secs(60), Micros(1));
    let transition::Write::Replace(write) = write else { anyhow::bail!("a completion replaces") };
    store.replace(id, &write).await?;
    let completed = Instant::now();
    let mut took = Vec::new();
    for waiter in waiting {
        took.push(waiter.await?.saturating_duration_since(completed).as_secs_f64());
    }
    Ok(took)
}

/// A payment's claim.
pub(crate) fn payment() -> Facts {
    Facts {
        phase: Phase::Dispatched,
        attempt: 1,
        fingerprint_policy: 0x5EED,
        fingerprint: [9; 32],
        fields: vec![[1; 8]; 2],
        route: "create-payment".into(),
        tenant: "acme".into(),
        env: "production".into(),
        claimed_at: Micros(1_764_000_000_000_000),
        ..transition::place(ClaimId([1; 16]), SessionId([2; 16]))
    }
}

pub(crate) fn outcome() -> Outcome {
    let field = |name: &'static [u8], value: &'static [u8]| Field { name: name.into(), value: value.into() };
    let headers =
        vec![field(b"content-type", b"application/json"), field(b"location", b"/v1/payments/pay_01hzx3v9e2k5")];
    Outcome { status: 201, headers, body: answer(), ..Outcome::default() }
}

/// P12: a completed record beside a JSON snapshot of the same state.
///
/// # Errors
/// None that is known.
pub(crate) fn record_size() -> anyhow::Result<Line> {
    const AIM: f64 = 0.4;
    let stored = Stored {
        fence: Fence(1_764_000_000_000_123),
        revision: Revision(1_764_000_000_100_456),
        lease_until: Micros::ZERO,
        keep_until: Micros(1_764_086_400_000_000),
        written_at: Micros(1_764_000_000_100_456),
    };
    let facts = Facts {
        state: State::Completed,
        settled_at: Micros(1_764_000_000_100_456),
        outcome: Some(outcome()),
        ..payment()
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let outcome = outcome();
    let snapshot = serde_json::json!({
        "state": "completed", "phase": "dispatched", "ambiguous": facts.ambiguous, "attempt": facts.attempt,
        "claim_id": hex(&facts.claim_id.0), "session_id": hex(&facts.session.0),
        "fence": stored.fence.0, "revision": stored.revision.0,
        "lease_until": stored.lease_until.0, "keep_until": stored.keep_until.0, "written_at": stored.written_at.0,
        "fingerprint_policy": facts.fingerprint_policy, "fingerprint": hex(&facts.fingerprint),
        "fields": facts.fields.iter().map(|field| hex(field)).collect::<Vec<_>>(),
        "route": facts.route, "tenant": facts.tenant, "env": facts.env,
        "claimed_at": facts.claimed_at.0, "settled_at": facts.settled_at.0, "not_before": facts.not_before.0,
        "outcome": {
            "status": outcome.status,
            "headers": outcome.headers.iter().map(|field| (text(&field.name), text(&field.value))).collect::<Vec<_>>(),
            "body": text(&outcome.body),
        },
    })
    .to_string()
    .len();
    let mut bytes = Vec::new();
    codec::encode(&Record { stored, facts }, &mut bytes);
    let without = |len: usize| len - outcome.body.len();
    let ratio = bytes.len() as f64 / snapshot as f64;
    let bare = without(bytes.len()) as f64 / without(snapshot) as f64;
    Ok(Line {
        name: "P12",
        text: format!(
            "a completed record / the same as JSON: size {ratio:.2}x{}; {} / {snapshot} bytes, without the answer's 300: {bare:.2}x",
            aim("at most", AIM, ratio <= AIM),
            bytes.len()
        ),
        figures: vec![("size", ratio), ("size_without_body", bare)],
    })
}

/// P13: the layer around an axum handler, memory store, fresh keys, beside the handler alone.
///
/// # Errors
/// Where a request is refused.
pub(crate) async fn layer_in_axum(rounds: Rounds) -> anyhow::Result<Line> {
    const AIM_US: f64 = 5.0;
    let handler = || async { (StatusCode::CREATED, answer()) };
    let bare: Router = Router::new().route("/v1/payments", post(handler));
    let layered: Router = Router::new().route("/v1/payments", post(handler)).layer(Layer::new(engine()));
    let (mut more, mut alone) = (Vec::new(), Vec::new());
    let mut number = 0;
    for _ in 0..rounds.count {
        let mut each = [0.0; 2];
        for (app, each) in [&bare, &layered].into_iter().zip(&mut each) {
            let count = 20_000 * u32::try_from(rounds.span.as_secs()).unwrap_or(1);
            let before = thread_cpu_us()?;
            for _ in 0..count {
                number += 1;
                let response = app.clone().oneshot(pay(&format!("k-{number}"))?).await?;
                ensure!(response.status() == StatusCode::CREATED, "refused: {}", response.status());
                axum::body::to_bytes(response.into_body(), 1 << 20).await?;
            }
            *each = (thread_cpu_us()? - before) / f64::from(count);
        }
        let [bare, layered] = each;
        more.push(layered - bare);
        alone.push(bare);
    }
    let (more, alone) = (median(more), median(alone));
    Ok(Line {
        name: "P13",
        text: format!(
            "the layer in axum, memory store / the handler alone: {more:.2} us CPU more a request{}; alone {alone:.2} us",
            aim("at most", AIM_US, more <= AIM_US)
        ),
        figures: vec![("more_cpu_us", more), ("alone_cpu_us", alone)],
    })
}

/// CPU time of all threads of this process, from the scheduler's accounting: in P13 one thread works.
fn thread_cpu_us() -> anyhow::Result<f64> {
    let mut spent: u64 = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let schedstat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let first = schedstat.split_whitespace().next().context("schedstat is empty")?;
        spent += first.parse::<u64>()?;
    }
    Ok(spent as f64 / 1e3)
}
