//! What a route can say of fingerprints, times and sizes: each key does what it says, seen from outside.

use serde_json::Value;

use super::support::{Answer, Gate, Gateway, Start, Step, Upstream, answer, charged, head, post, request, until};

/// A gateway whose `[defaults]` are these lines.
async fn with_defaults(upstream: &Upstream, lines: &str) -> Gateway {
    Start::before(upstream).config(&format!("[defaults]\n{lines}\n")).start().await
}

/// What a second request meets under the key of a first: a replay, or `key-reused`.
async fn second(gateway: &Gateway, first: &[u8], second: &[u8]) -> Answer {
    assert_eq!(gateway.ask(first).await.status, 201);
    let answer = gateway.ask(second).await;
    assert!(answer.is_replay() || answer.slug() == "key-reused", "{answer:?}");
    answer
}

// contract: route.mode
#[tokio::test]
async fn a_route_that_is_off_forwards_as_if_there_were_no_key() {
    let upstream = Upstream::charging().await;
    let gateway = with_defaults(&upstream, "mode = \"off\"").await;
    for _ in 0..2 {
        let answer = gateway.post("/x", "k-1", "{}").await;
        assert_eq!((answer.status, answer.is_replay(), answer.header("idempotency-expires")), (201, false, None));
    }
    assert_eq!(gateway.post("/x", "a, b", "{}").await.status, 201, "nor is the key looked at");
    assert_eq!((upstream.effects("k-1"), gateway.records().await.len()), (2, 0));
}

// contract: route.fingerprint.hash
#[tokio::test]
async fn either_hash_tells_requests_apart_and_they_differ() {
    let upstream = Upstream::charging().await;
    let config = "[[route]]\nname = \"sha\"\nmatch = { path = \"/sha\" }\nfingerprint = { hash = \"sha256\" }\n";
    let gateway = Start::before(&upstream).config(config).start().await;
    for path in ["/sha", "/blake"] {
        let answer =
            second(&gateway, &post(path, "k", "{\"a\":1,\"b\":2}"), &post(path, "k", "{\"b\":2,\"a\":1}")).await;
        assert!(answer.is_replay(), "{path}");
        assert_eq!(gateway.post(path, "k", "{\"a\":2}").await.slug(), "key-reused", "{path}");
    }
    let prints: Vec<Value> = gateway.records().await.iter().map(|record| record["fingerprint"].clone()).collect();
    assert!(prints.len() == 2 && prints[0] != prints[1], "{prints:?}");
}

// contract: route.fingerprint.body
#[tokio::test]
async fn a_body_counts_in_canonical_form_byte_for_byte_or_not_at_all() {
    let upstream = Upstream::charging().await;
    for (body, other_words, other_content) in [("canonical", true, false), ("raw", false, false), ("none", true, true)]
    {
        let gateway = with_defaults(&upstream, &format!("fingerprint = {{ body = \"{body}\" }}")).await;
        let answer = second(&gateway, &post("/x", "k-1", "{\"a\":1}"), &post("/x", "k-1", "{ \"a\": 1.0 }")).await;
        assert_eq!(answer.is_replay(), other_words, "{body}");
        let answer = second(&gateway, &post("/x", "k-2", "{\"a\":1}"), &post("/x", "k-2", "{\"a\":2}")).await;
        assert_eq!(answer.is_replay(), other_content, "{body}");
    }
}

// contract: route.fingerprint.strip, route.fingerprint.keep
#[tokio::test]
async fn what_is_stripped_does_not_count_and_where_some_are_kept_only_those_do() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "strip"
match = { path = "/strip" }
fingerprint = { strip = ["/sent_at", "/items/*/at", "query:ts", "form:nonce"] }
[[route]]
name = "keep"
match = { path = "/keep" }
fingerprint = { keep = ["/amount"] }
"#,
        )
        .start()
        .await;
    let form = |key, body: &str| {
        let kind = ("Content-Type", "application/x-www-form-urlencoded");
        request("POST", "/strip", &[("Idempotency-Key", key), kind], body)
    };
    for (name, one, two, same) in [
        (
            "a member",
            post("/strip", "1", "{\"a\":1,\"sent_at\":1}"),
            post("/strip", "1", "{\"a\":1,\"sent_at\":2}"),
            true,
        ),
        (
            "another",
            post("/strip", "2", "{\"a\":1,\"sent_at\":1}"),
            post("/strip", "2", "{\"a\":2,\"sent_at\":1}"),
            false,
        ),
        (
            "of each element",
            post("/strip", "3", "{\"items\":[{\"at\":1},{\"at\":2}]}"),
            post("/strip", "3", "{\"items\":[{\"at\":3},{\"at\":4}]}"),
            true,
        ),
        ("of the query", post("/strip?a=1&ts=1", "4", "{}"), post("/strip?a=1&ts=2", "4", "{}"), true),
        ("the rest of it", post("/strip?a=1&ts=1", "5", "{}"), post("/strip?a=2&ts=1", "5", "{}"), false),
        ("of a form", form("6", "a=1&nonce=1"), form("6", "nonce=2&a=1"), true),
        (
            "kept",
            post("/keep", "7", "{\"amount\":5,\"note\":1}"),
            post("/keep", "7", "{\"amount\":5,\"note\":2}"),
            true,
        ),
        ("and changed", post("/keep", "8", "{\"amount\":5}"), post("/keep", "8", "{\"amount\":6}"), false),
        ("not there", post("/keep", "9", "{\"note\":1}"), post("/keep", "9", "{\"note\":2}"), false),
    ] {
        assert_eq!(second(&gateway, &one, &two).await.is_replay(), same, "{name}");
    }
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("onceward_fingerprint_fallbacks_total"), "bodies that lack what is kept are counted");
}

// contract: route.fingerprint.unordered, route.fingerprint.headers, route.fingerprint.sort_query
#[tokio::test]
async fn order_and_headers_count_as_the_route_says() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "loose"
match = { path = "/loose" }
fingerprint = { unordered = ["/tags"], headers = ["X-Currency"], sort_query = true }
"#,
        )
        .start()
        .await;
    let currency = |path: &str, key: &str, value: &str| {
        request("POST", path, &[("Idempotency-Key", key), ("X-Currency", value)], "{}")
    };
    for (one, two, same) in [
        (post("/loose", "1", "{\"tags\":[1,2,2]}"), post("/loose", "1", "{\"tags\":[2,1,2]}"), true),
        (post("/loose", "2", "{\"tags\":[1,2,2]}"), post("/loose", "2", "{\"tags\":[1,1,2]}"), false),
        (post("/strict", "3", "{\"tags\":[1,2]}"), post("/strict", "3", "{\"tags\":[2,1]}"), false),
        (post("/loose?a=1&b=2", "4", "{}"), post("/loose?b=2&a=1", "4", "{}"), true),
        (post("/strict?a=1&b=2", "5", "{}"), post("/strict?b=2&a=1", "5", "{}"), false),
        (currency("/loose", "6", "EUR"), currency("/loose", "6", "USD"), false),
        (currency("/loose", "7", "EUR"), currency("/loose", "7", " EUR "), true),
        (currency("/strict", "8", "EUR"), currency("/strict", "8", "USD"), true),
    ] {
        let shown = String::from_utf8_lossy(&two).into_owned();
        assert_eq!(second(&gateway, &one, &two).await.is_replay(), same, "{shown}");
    }
}

// contract: route.fingerprint.decode
#[tokio::test]
async fn a_compressed_body_is_compared_as_it_was_sent() {
    let upstream = Upstream::charging().await;
    let gateway = with_defaults(&upstream, "fingerprint = { decode = false }").await;
    let gzip = |body: &[u8]| {
        let headers = [("Idempotency-Key", "k"), ("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
        request("POST", "/x", &headers, body)
    };
    // Not gzip at all: nobody looks into it, and the upstream gets it as it is.
    let answer = second(&gateway, &gzip(b"{\"a\":1}"), &gzip(b"{ \"a\":1}")).await;
    assert_eq!(answer.status, 422);
    assert!(gateway.ask(gzip(b"{\"a\":1}")).await.is_replay());
    assert_eq!(upstream.last().body, b"{\"a\":1}");
}

// contract: route.fingerprint.fields, same-key-other-fingerprint
#[tokio::test]
async fn a_mismatch_names_as_many_members_as_the_route_keeps_and_no_values() {
    let upstream = Upstream::charging().await;
    for (fields, named) in [("8", vec!["/amount"]), ("0", vec![])] {
        let gateway = with_defaults(&upstream, &format!("fingerprint = {{ fields = {fields} }}")).await;
        let one = post("/x", "k-1", "{\"amount\":5,\"to\":\"alice\"}");
        let told = second(&gateway, &one, &post("/x", "k-1", "{\"amount\":6,\"to\":\"alice\"}")).await;
        assert_eq!(told.status, 422);
        assert_eq!(told.json()["fields"], serde_json::json!(named));
        assert!(!told.text().contains("alice"));
    }
}

fn seconds_kept(record: &Value) -> f64 {
    let time = |name: &str| record[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    time("expires_at").duration_since(time("completed_at")).as_secs_f64()
}

// contract: route.retention, route.sliding, route.retention_max
#[tokio::test]
async fn retention_counts_from_completion_and_slides_where_the_route_says_so() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "fixed"
match = { path = "/fixed" }
retention = "48h"
[[route]]
name = "sliding"
match = { path = "/sliding" }
client_retries = "0s"
timeout = "1s"
in_flight = { wait = "0s" }
execution_max = "1s"
lease = "1s"
retention = "2s"
sliding = true
retention_max = "4s"
"#,
        )
        .start()
        .await;
    gateway.post("/fixed", "k-1", "{}").await;
    assert!(gateway.post("/fixed", "k-1", "{}").await.is_replay());
    let kept = seconds_kept(&gateway.records().await[0]);
    assert!((kept - 48.0 * 3600.0).abs() < 1.0, "{kept}");
    gateway.post("/sliding", "k-2", "{}").await;
    let record = async || gateway.records().await.into_iter().find(|record| record["route"] == "sliding");
    let first = seconds_kept(&record().await.unwrap());
    assert!(first < 2.1, "{first}");
    // Replays carry it beyond its own retention, but not beyond retention_max; then the key is new.
    let most = std::cell::Cell::new(first);
    until("the end of the retention", async || {
        most.set(record().await.map_or(most.get(), |record| most.get().max(seconds_kept(&record))));
        let answer = gateway.post("/sliding", "k-2", "{}").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        !answer.is_replay()
    })
    .await;
    assert!(most.get() > 2.5 && most.get() < 4.1, "{most:?}");
    assert_eq!(upstream.effects("k-2"), 2);
}

// contract: route.idle_timeout
#[tokio::test]
async fn an_event_stream_that_falls_silent_is_broken_off() {
    let shut = Gate::shut();
    let gate = shut.clone();
    let upstream = Upstream::start(move |_, _| {
        let head = head(200, &[("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]);
        vec![[head, b"9\r\ndata: 1\n\n\r\n".to_vec()].concat().into(), Step::Until(gate.clone())]
    })
    .await;
    let gateway = with_defaults(&upstream, "idle_timeout = \"200ms\"").await;
    let mut client = gateway.connect().await;
    client.send(post("/events", "k-1", "{}")).await;
    assert_eq!(client.read_head().await.unwrap().status, 200);
    assert_eq!(client.take_until(b"data: 1\n\n\r\n").await.unwrap(), b"9\r\ndata: 1\n\n\r\n");
    let ended = client.take(1).await;
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: route.limits.recorded_body, recorded-without-its-body
#[tokio::test]
async fn an_answer_over_the_recorded_size_of_the_route_keeps_only_the_fact() {
    let upstream = Upstream::start(|received, _| {
        let length = received.target.trim_start_matches('/').parse().unwrap();
        vec![answer(201, &[], vec![b'x'; length]).into()]
    })
    .await;
    let gateway = with_defaults(&upstream, "limits = { recorded_body = \"1KiB\" }").await;
    for (path, kept) in [("/1024", true), ("/1025", false)] {
        assert_eq!(gateway.post(path, path, "{}").await.status, 201);
        let again = gateway.post(path, path, "{}").await;
        assert_eq!(again.is_replay(), kept, "{path}");
        if !kept {
            assert_eq!((again.slug().as_str(), &again.json()["recorded_status"]), ("response-not-kept", &201.into()));
        }
    }
}

// contract: route.key.derived_retention
#[tokio::test]
async fn a_derived_key_is_kept_for_a_time_of_its_own() {
    let upstream = Upstream::start(|_, before| vec![charged(before).into()]).await;
    let gateway = with_defaults(&upstream, "key = { missing = \"derive\", derived_retention = \"2m\" }").await;
    gateway.ask(request("POST", "/x", &[], "{}")).await;
    assert!(gateway.ask(request("POST", "/x", &[], "{}")).await.is_replay());
    let kept = seconds_kept(&gateway.records().await[0]);
    assert!((kept - 120.0).abs() < 1.0, "{kept}");
}
