//! Goal: whatever becomes of a request, metrics and log say what became of it and nothing of whose it was or what was
//! in it. Method: every decision once, each part of a request with a marker that stands nowhere else.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::support::{Gate, Start, Step, Upstream, answer, find, request, until};

/// A log line may show the last four characters of a key: these are not in the marker.
const KEY: &str = "marker-key-6d1f0a";
const TENANT: &str = "marker-tenant-2e77b1";
const USER: &str = "marker-user-90cd34";
const PATH: &str = "marker-path-c4415e";
const QUERY: &str = "marker-query-07ab92";
const BODY: &str = "marker-body-f3e8d6";
const TOKEN: &str = "marker-token-58b2c9";
const ANSWER: &str = "marker-answer-a1960f";
const MARKERS: [&str; 8] = [KEY, TENANT, USER, PATH, QUERY, BODY, TOKEN, ANSWER];

fn config(auth: &Upstream) -> String {
    format!(
        r#"
[listen]
trusted = ["127.0.0.0/8"]
[store]
max_records = 6
[quota]
live_records = 100
[defaults]
in_flight = {{ wait = "0s" }}
limits = {{ recorded_body = "1KiB" }}
scope = {{ tenant = "header:X-Tenant" }}
[[route]]
name = "pay"
match = {{ path = "/pay/{{id}}" }}
on_store_outage = "bypass"
[[route]]
name = "waits"
match = {{ path = "/waits/{{id}}" }}
in_flight = {{ wait = "20s" }}
[[route]]
name = "failing"
match = {{ path = "/failing/{{id}}" }}
on_unknown = ["fail"]
[[route]]
name = "watched"
match = {{ path = "/watched/{{id}}" }}
mode = "observe"
[[route]]
name = "guarded"
match = {{ path = "/guarded/{{id}}" }}
auth = {{ url = "http://{}/check" }}
"#,
        auth.address
    )
}

fn jwt(signature: &str) -> String {
    let claims = URL_SAFE_NO_PAD.encode(format!("{{\"iss\":\"i\",\"sub\":\"{USER}\"}}"));
    format!("Bearer eyJhbGciOiJub25lIn0.{claims}.{TOKEN}-{signature}")
}

fn ask(path: &str, key: &str, token: &str, body: &str) -> Vec<u8> {
    let key = format!("{KEY}-{key}");
    let headers = [("Idempotency-Key", key.as_str()), ("Authorization", token), ("X-Tenant", TENANT)];
    request("POST", &format!("/{path}/{PATH}?q={QUERY}"), &headers, format!("{{\"{BODY}\":\"{body}\"}}"))
}

#[tokio::test]
async fn no_decision_tells_a_key_a_tenant_a_path_a_body_or_a_credential() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, _| {
        let answers = |length: usize| answer(201, &[("X-Told", ANSWER)], ANSWER.repeat(length)).into();
        match received.target.split('/').nth(1) {
            Some("failing") => vec![Step::Close],
            Some("waits") => vec![Step::Until(held.clone()), answers(1)],
            _ if find(&received.body, b"large").is_some() => vec![answers(100)],
            _ => vec![answers(1)],
        }
    })
    .await;
    let auth = Upstream::start(|_, _| vec![answer(401, &[], ANSWER).into()]).await;
    let gateway = Start::before(&upstream).config(&config(&auth)).env("ONCEWARD_LOG", "trace").start().await;
    let one = jwt("one");
    let mut sent = 0;
    let mut tell = async |what: &str, ask: Vec<u8>, status: u16| {
        sent += 1;
        let answer = gateway.ask(ask).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if answer.header("content-type") == Some("application/problem+json") {
            let told = answer.text();
            for marker in MARKERS.into_iter().filter(|marker| *marker != BODY) {
                assert!(!told.contains(marker), "{what}: {marker} in {told}");
            }
        }
    };
    tell("executed", ask("pay", "0001", &one, "a"), 201).await;
    tell("replayed", ask("pay", "0001", &one, "a"), 201).await;
    tell("mismatch", ask("pay", "0001", &one, "b"), 422).await;
    tell("principal-changed", ask("pay", "0001", &jwt("two"), "a"), 409).await;
    tell("not kept", ask("pay", "0002", &one, "large"), 201).await;
    tell("response-not-kept", ask("pay", "0002", &one, "large"), 409).await;
    tell("upstream-failed", ask("failing", "0003", &one, "a"), 502).await;
    tell("failed", ask("failing", "0003", &one, "a"), 409).await;
    tell("denied", ask("guarded", "0004", &one, "a"), 401).await;
    tell("invalid-key", ask("pay", "a b", &one, "a"), 400).await;
    tell("conflicting-keys", ask("pay", "a,b", &one, "a"), 400).await;
    tell("no-principal", ask("pay", "0005", &format!("Digest {TOKEN}"), "a"), 400).await;
    let keyless = [("X-Tenant", TENANT), ("Authorization", one.as_str())];
    tell("unprotected", request("POST", &format!("/pay/{PATH}?q={QUERY}"), &keyless, BODY), 201).await;
    // One that waits, beside one that may not.
    let mut first = gateway.connect().await;
    first.send(ask("waits", "0006", &one, "a")).await;
    upstream.reached(&format!("{KEY}-0006"), 1).await;
    let mut second = gateway.connect().await;
    second.send(ask("waits", "0006", &one, "a")).await;
    until("the waiter", async || gateway.metrics().await.contains("onceward_waiters 1")).await;
    gate.open();
    assert_eq!((first.answer().await.status, second.answer().await.status), (201, 201));
    let sent_by_hand = 2;
    gateway.ask(ask("watched", "0007", &one, "a")).await;
    gateway.ask(ask("watched", "0007", &one, "a")).await;
    // An upstream that breaks off where no route settles it: unknown.
    let closing = Upstream::start(|_, _| vec![Step::Close]).await;
    let breaking = Start::before(&closing).start().await;
    for (status, told) in [(502, "upstream-failed"), (409, "outcome-unknown")] {
        let answer = breaking.ask(ask("pay", "0008", &one, "a")).await;
        assert_eq!((answer.status, answer.slug().as_str()), (status, told));
    }
    // And a store that is full.
    let mut n = 0;
    let bypassed = loop {
        n += 1;
        sent += 1;
        let answer = gateway.ask(ask("pay", &format!("1{n:03}"), &one, "a")).await;
        if answer.header("idempotency-status").is_some() || n == 20 {
            break answer;
        }
    };
    assert_eq!(bypassed.header("idempotency-status"), Some("bypassed"));

    let metrics = gateway.metrics().await + &breaking.metrics().await;
    for outcome in ["executed", "replayed", "waited", "mismatch", "unknown", "rejected", "unprotected", "bypassed"] {
        let counted = metrics.lines().any(|line| {
            line.starts_with("onceward_requests_total{")
                && line.contains(&format!("outcome=\"{outcome}\""))
                && !line.ends_with(" 0")
        });
        assert!(counted, "{outcome} was not driven:\n{metrics}");
    }
    assert!(metrics.contains("onceward_observed_total{route=\"watched\""), "{metrics}");
    // A line is written after its client has been answered.
    let decided = || {
        let log = gateway.log();
        log.lines().filter(|line| line.contains(" decision=") && !line.contains("observed")).count()
    };
    let requests = sent + sent_by_hand;
    until("a line for each request", async || decided() >= requests).await;
    let log = gateway.log() + &breaking.log();
    for marker in MARKERS {
        let line = metrics.lines().chain(log.lines()).find(|line| line.contains(marker));
        assert_eq!(line, None, "{marker} got out");
    }
    assert_eq!(decided(), requests, "one line a request:\n{}", gateway.log());
}
