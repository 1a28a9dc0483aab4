//! A store that does not answer, is full, or lets a claim go while the upstream works.

use serde_json::json;

use super::support::{Gate, Gateway, Start, Step, Upstream, answer, charged, head, post, until};

// contract: recording-not-confirmed, route.record_wait
#[tokio::test]
async fn an_answer_is_not_withheld_for_a_record_that_is_not_confirmed() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config("[store]\ndeadline = \"60s\"\n[defaults]\nrecord_wait = \"100ms\"\n")
        .failpoint("store.replace:hit=1:pause")
        .start()
        .await;
    let first = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((first.status, first.header("idempotency-status")), (201, Some("unrecorded")));
    let replay = gateway.post("/pay", "k-1", "{}").await;
    assert!(replay.is_replay() && replay.essence() == first.essence(), "from memory: {replay:?}");
    assert_eq!(replay.header("idempotency-status"), Some("unrecorded"));
    assert_eq!(gateway.records().await[0]["state"], "in_flight", "the store does not have it");
    assert!(gateway.metrics().await.contains("onceward_unrecorded_answers_total 1"));
    // A process that did not see it does not know, and says so.
    let gateway = gateway.restart().await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "outcome-unknown");
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: limits.unrecorded
#[tokio::test]
async fn unrecorded_answers_that_memory_does_not_hold_are_dropped_and_counted() {
    let upstream = Upstream::charging().await;
    let config = "[limits]\nunrecorded = \"0B\"\n[store]\ndeadline = \"60s\"\n\
                  [defaults]\nrecord_wait = \"100ms\"\nin_flight = { wait = \"0s\" }\n";
    let gateway = Start::before(&upstream).config(config).failpoint("store.replace:hit=1:pause").start().await;
    let first = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!(first.header("idempotency-status"), Some("unrecorded"));
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "in-flight", "it is never run again");
    assert_eq!(upstream.effects("k-1"), 1);
    assert!(gateway.metrics().await.contains("onceward_unrecorded_dropped_total 1"));
}

const DENY_AND_BYPASS: &str = r#"
[[route]]
name = "closed"
match = { path = "/closed" }
on_store_outage = "deny"
[[route]]
name = "open"
match = { path = "/open" }
on_store_outage = "bypass"
"#;

/// What both routes say of a fresh key that the store does not take.
async fn denies_and_bypasses(gateway: &Gateway, upstream: &Upstream) {
    let denied = gateway.post("/closed", "fresh-1", "{}").await;
    assert_eq!((denied.status, denied.slug().as_str()), (503, "store-unavailable"));
    assert!(denied.header("retry-after").is_some() && denied.json()["retryable"] == true, "{denied:?}");
    assert_eq!(upstream.effects("fresh-1"), 0, "nothing was sent");
    let bypassed = gateway.post("/open", "fresh-2", "{}").await;
    assert_eq!((bypassed.status, bypassed.header("idempotency-status")), (201, Some("bypassed")));
    assert_eq!(upstream.effects("fresh-2"), 1);
    let counted = "onceward_requests_total{route=\"open\",outcome=\"bypassed\"} 1";
    assert!(gateway.metrics().await.contains(counted));
}

// contract: store-unavailable, route.on_store_outage, store.deadline
#[tokio::test]
async fn a_store_that_does_not_answer_in_time_denies_or_bypasses_as_the_route_says() {
    let upstream = Upstream::charging().await;
    let config = format!("[store]\ndeadline = \"50ms\"\n{DENY_AND_BYPASS}");
    let gateway = Start::before(&upstream).config(&config).failpoint("store.insert:hit=1+:pause").start().await;
    denies_and_bypasses(&gateway, &upstream).await;
}

// contract: store-unavailable, store.max_records
#[tokio::test]
async fn a_full_store_takes_no_fresh_key_and_answers_repeats() {
    let upstream = Upstream::charging().await;
    let config = format!("[store]\nmax_records = 1\n{DENY_AND_BYPASS}");
    let gateway = Start::before(&upstream).config(&config).start().await;
    assert_eq!(gateway.post("/closed", "k-1", "{}").await.status, 201);
    denies_and_bypasses(&gateway, &upstream).await;
    assert!(gateway.post("/closed", "k-1", "{}").await.is_replay());
    let ready = gateway.admin("GET", "/readyz", &[], "").await;
    assert_eq!(ready.status, 503, "{}", ready.text());
    until("the figure", async || gateway.metrics().await.contains("onceward_store_accepts_claims 0")).await;
}

// contract: store-unavailable, store.reserve
#[tokio::test]
async fn a_disk_without_room_keeps_some_for_the_answers_of_what_runs() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.target.as_str() {
        "/slow" => vec![Step::Until(held.clone()), charged(before).into()],
        _ => vec![answer(200, &[], vec![b'x'; 2 << 20]).into()],
    })
    .await;
    let config = "[store]\nreserve = \"16MiB\"\n[defaults]\nlimits = { recorded_body = \"3MiB\" }\n";
    let gateway = Start::before(&upstream).config(config).start().await;
    // No further segment can be made where a folder stands in its place.
    let in_the_way: Vec<_> =
        (0..8).map(|n| gateway.start.data().join(format!("segment-{n:05}"))).filter(|path| !path.exists()).collect();
    in_the_way.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let mut running = gateway.connect().await;
    running.send(post("/slow", "runs", "{}")).await;
    upstream.reached("runs", 1).await;
    let mut last = 0;
    let refused = loop {
        let answer = gateway.post("/fill", &format!("k-{last}"), "{}").await;
        if answer.status != 200 {
            break answer;
        }
        last += 1;
        assert!(last < 400, "the disk is never full");
    };
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"));
    assert_eq!(gateway.admin("GET", "/readyz", &[], "").await.status, 503);
    gate.open();
    assert_eq!(running.answer().await.status, 201);
    assert!(gateway.post("/slow", "runs", "{}").await.is_replay(), "its answer had room");
    in_the_way.iter().for_each(|path| std::fs::remove_dir(path).unwrap());
    until("room", async || gateway.post("/slow", "new", "{}").await.status == 201).await;
}

/// Sends a request whose lease is never renewed, and waits until its outcome is unknown: its record's id.
async fn lease_runs_out(gateway: &Gateway, upstream: &Upstream, path: &str) -> (super::support::Client, String) {
    let mut client = gateway.connect().await;
    client.send(post(path, path, "{}")).await;
    upstream.reached(path, 1).await;
    let record = async || {
        let records = gateway.records().await;
        records.into_iter().find(|record| record["state"] == "unknown")
    };
    until("the end of the lease", async || record().await.is_some()).await;
    let id = record().await.unwrap()["record_id"].as_str().unwrap().to_owned();
    (client, id)
}

// contract: claim-lost-meanwhile, route.lease
#[tokio::test]
async fn an_answer_that_comes_after_the_claim_was_lost_is_not_passed_off_as_the_keys() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.target.as_str() {
        "/streamed" => vec![
            [head(200, &[("Content-Length", "100000")]), vec![b'x'; 50_000]].concat().into(),
            Step::Until(held.clone()),
            vec![b'x'; 50_000].into(),
        ],
        _ => vec![Step::Until(held.clone()), charged(before).into()],
    })
    .await;
    let gateway = Start::before(&upstream)
        .config("[store]\ndeadline = \"250ms\"\n[defaults]\nlease = \"300ms\"\n")
        .failpoint("store.extend:hit=1+:pause")
        .start()
        .await;
    let token = format!("Bearer {}", gateway.token());
    let settle = async |id: &str, how: serde_json::Value| {
        let path = format!("/records/{id}/resolve");
        let done = gateway.admin("POST", &path, &[("Authorization", &token)], &how.to_string()).await;
        assert_eq!(done.status, 200, "{done:?}");
    };
    let (mut executed, id) = lease_runs_out(&gateway, &upstream, "/executed").await;
    settle(&id, json!({ "as": "executed", "answer": { "status": 202 } })).await;
    let (mut not_executed, id) = lease_runs_out(&gateway, &upstream, "/not-executed").await;
    settle(&id, json!({ "as": "not-executed" })).await;
    let (mut streamed, id) = lease_runs_out(&gateway, &upstream, "/streamed").await;
    settle(&id, json!({ "as": "failed" })).await;
    gate.open();
    assert_eq!(executed.answer().await.status, 202, "what the record says, not 201");
    let lost = not_executed.answer().await;
    assert_eq!((lost.status, lost.slug().as_str()), (503, "claim-lost"));
    assert!(lost.header("retry-after").is_some());
    let broken = streamed.try_answer().await;
    assert!(broken.is_err(), "a stream that was not recorded looks complete");
    assert_eq!(gateway.post("/executed", "/executed", "{}").await.status, 202);
    assert_eq!(gateway.post("/streamed", "/streamed", "{}").await.slug(), "failed");
    assert_eq!(gateway.post("/not-executed", "/not-executed", "{}").await.status, 201, "it runs again");
    assert_eq!(upstream.effects("/not-executed"), 2);
    assert!(gateway.metrics().await.contains("onceward_fenced_completions_total 3"));
}
