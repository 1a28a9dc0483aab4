//! Shadow mode: everything passes as if nobody watched, and what would have been is counted and recorded.

use super::support::{
    Gate, Gateway, Received, Start, Step, Upstream, answer, charged, chunked, metric, nobody, post, request, until,
};

const OBSERVE: &str = "[defaults]\nmode = \"observe\"\n";

/// Until the route `default` has counted so many.
async fn counted(gateway: &Gateway, would: &str, count: u32) {
    let line = format!("onceward_observed_total{{route=\"default\",would=\"{would}\"}}");
    until(would, async || {
        let found = metric(&gateway.metrics().await, &line);
        assert!(found <= f64::from(count), "{found} {would}, not {count}");
        (found - f64::from(count)).abs() < 0.5
    })
    .await;
}

/// Answers with what only Onceward says elsewhere, and with the number of the execution.
fn telling(received: &Received, before: usize) -> Vec<Step> {
    let own = [
        ("Idempotent-Replayed", "true"),
        ("Idempotency-Status", "of-the-upstream"),
        ("Idempotency-Outcome", "record"),
        ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ];
    let body = format!("{before} {}", received.body.len());
    vec![match received.target.as_str() {
        "/chunked" => chunked(202, &own, &[body.as_bytes()], &[("X-Sum", "7")]).into(),
        _ => answer(201, &own, body).into(),
    }]
}

// contract: route.mode
#[tokio::test]
async fn a_request_and_its_answer_are_what_they_are_without_onceward() {
    let config = |mode: &str| format!("[defaults]\nmode = \"{mode}\"\nlimits = {{ request_body = \"1KiB\" }}\n");
    let keyed = |key: &str, body: &str| post("/pay", key, body);
    let chunks = b"POST /chunked HTTP/1.1\r\nHost: api.test\r\nIdempotency-Key: k-9\r\nTE: trailers\r\n\
        Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n";
    let requests: Vec<Vec<u8>> = vec![
        keyed("k-1", "{\"amount\":1}"),
        keyed("k-1", "{\"amount\":1}"),
        keyed("k-1", "{\"amount\":2}"),
        keyed("bad key", "{}"),
        keyed("a, b", "{}"),
        keyed("too-large", &"x".repeat(2000)),
        request("POST", "/pay", &[("X-Request-ID", "mine"), ("Idempotency-Fence", "7")], "{}"),
        request("POST", "/pay/../pay", &[("Idempotency-Key", "k-2")], "{}"),
        request("POST", "/pay", &[("Idempotency-Key", "k-3"), ("Authorization", "Digest x")], "{}"),
        request("POST", "/pay", &[("Idempotency-Key", "k-4")], ""),
        chunks.to_vec(),
        chunks.to_vec(),
    ];
    let mut seen = Vec::new();
    for mode in ["off", "observe"] {
        let upstream = Upstream::start(telling).await;
        let gateway = Start::before(&upstream).config(&config(mode)).start().await;
        let mut answers = Vec::new();
        for request in &requests {
            let answer = gateway.ask(request).await;
            answers.push((answer.status, answer.headers, answer.body, answer.trailers));
        }
        let mut received = upstream.received();
        for received in &mut received {
            // The two upstreams have an address each.
            received.headers.retain(|(name, _)| name != "host");
        }
        let received: Vec<_> = received.into_iter().map(|r| (r.method, r.target, r.headers, r.body)).collect();
        if mode == "observe" {
            assert_eq!(received.len(), requests.len());
            counted(&gateway, "executed", 3).await;
            counted(&gateway, "mismatch", 1).await;
            counted(&gateway, "unprotected", 1).await;
            counted(&gateway, "rejected", 5).await;
            counted(&gateway, "unobserved", 0).await;
            // Whether the first was recorded before the second came is not for the second to wait for.
            until("the repetitions", async || {
                let metrics = gateway.metrics().await;
                let line = |would: &str| format!("onceward_observed_total{{route=\"default\",would=\"{would}\"}}");
                metric(&metrics, &line("replayed")) + metric(&metrics, &line("waited")) > 1.5
            })
            .await;
            assert!(!gateway.log().contains("k-1"), "no key in the log");
        }
        seen.push((answers, received));
    }
    let observed = seen.pop().unwrap();
    assert_eq!(observed, seen.pop().unwrap());
}

// contract: route.mode
#[tokio::test]
async fn a_repetition_never_waits_and_what_it_would_have_met_is_told_when_it_is_known() {
    for (wait, would) in [("20s", "waited"), ("0s", "in_flight")] {
        let gate = Gate::shut();
        let held = gate.clone();
        let upstream = Upstream::start(move |_, before| match before {
            0 => vec![Step::Until(held.clone()), charged(0).into()],
            _ => vec![charged(before).into()],
        })
        .await;
        let config = format!("{OBSERVE}in_flight = {{ wait = \"{wait}\" }}\n");
        let gateway = Start::before(&upstream).config(&config).start().await;
        let mut first = gateway.connect().await;
        first.send(post("/pay", "k-1", "{}")).await;
        counted(&gateway, "executed", 1).await;
        let second = gateway.post("/pay", "k-1", "{}").await;
        assert_eq!(
            (second.status, second.text().as_str()),
            (201, "{\"charge\":1}"),
            "forwarded, though the first runs"
        );
        let other = gateway.post("/pay", "k-1", "{\"amount\":2}").await;
        assert_eq!(other.text(), "{\"charge\":2}");
        counted(&gateway, "mismatch", 1).await;
        gate.open();
        assert_eq!(first.answer().await.text(), "{\"charge\":0}");
        counted(&gateway, would, 1).await;
    }
}

#[tokio::test]
async fn neither_a_store_that_hangs_nor_one_that_refuses_nor_an_upstream_that_is_gone_changes_anything() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(OBSERVE).failpoint("claim.begin:hit=1:pause").start().await;
    for n in 0..3 {
        let answer = gateway.post("/pay", "k-1", "{}").await;
        assert_eq!((answer.status, answer.text()), (201, format!("{{\"charge\":{n}}}")));
    }
    // The store takes one record, and refuses the second as full.
    let full = format!("{OBSERVE}[store]\nmax_records = 1\n");
    let gateway = Start::before(&upstream).config(&full).start().await;
    for (key, would, count) in [("k-2", "executed", 1), ("k-3", "rejected", 1), ("k-4", "rejected", 2)] {
        assert_eq!(gateway.post("/pay", key, "{}").await.status, 201);
        counted(&gateway, would, count).await;
    }
    assert_eq!(upstream.received().len(), 6);

    let gateway = Start::before_address(nobody().await).config(OBSERVE).start().await;
    let answer = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((answer.status, answer.slug().as_str()), (502, "upstream-unreachable"));
    counted(&gateway, "unobserved", 1).await;
    assert!(gateway.records().await.is_empty());
}

#[tokio::test]
async fn what_is_recorded_is_what_would_have_been_and_serves_once_it_is_enforced() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.key() {
        "unknown" => vec![answer(502, &[], "bad gateway").into()],
        "released" => vec![answer(429, &[], "later").into()],
        "left" => vec![Step::Until(held.clone()), charged(before).into()],
        _ => telling(received, before),
    })
    .await;
    let start = Start::before(&upstream);
    let gateway = start.clone().config(OBSERVE).start().await;
    let first = gateway.post("/chunked", "k-1", "{\"b\":1,\"a\":2}").await;
    counted(&gateway, "executed", 1).await;
    gateway.post("/chunked", "k-1", "{\"b\":1,\"a\":2}").await;
    gateway.post("/pay", "unknown", "{}").await;
    gateway.post("/pay", "released", "{}").await;
    counted(&gateway, "executed", 3).await;
    // A client that goes away takes its request with it, as without us.
    let mut left = gateway.connect().await;
    left.send(post("/pay", "left", "{}")).await;
    counted(&gateway, "executed", 4).await;
    drop(left);
    let states = async |gateway: &Gateway| -> Vec<String> {
        let records = gateway.records().await;
        let mut states: Vec<_> = records.iter().map(|record| record["state"].as_str().unwrap().to_owned()).collect();
        states.sort();
        states
    };
    until("the records", async || states(&gateway).await == ["completed", "unknown"]).await;
    drop(gateway);

    let gateway = start.config("").start().await;
    let replay = gateway.post("/chunked", "k-1", "{\"a\":2,\"b\":1}").await;
    assert!(replay.is_replay());
    assert_eq!((replay.status, &replay.body), (first.status, &first.body), "the first one's, not the second's");
    let unknown = gateway.post("/pay", "unknown", "{}").await;
    assert_eq!((unknown.status, unknown.slug().as_str()), (409, "outcome-unknown"));
    assert_eq!(gateway.post("/pay", "released", "{}").await.status, 429);
    gate.open();
    assert_eq!(gateway.post("/pay", "left", "{}").await.status, 201);
}
