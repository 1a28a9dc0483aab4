//! Upstreams that fail, and what becomes of outcomes that nobody knows.

use tokio::net::TcpListener;

use super::support::{Gate, Start, Step, Upstream, charged, nobody, post, request, until};

/// An upstream that takes each request and breaks off without a word, as long as `broken` says.
async fn breaking_off(times: usize) -> Upstream {
    Upstream::start(move |_, before| if before < times { vec![Step::Close] } else { vec![charged(before).into()] })
        .await
}

// contract: upstream-unreachable
#[tokio::test]
async fn an_upstream_that_is_not_there_leaves_the_key_free() {
    let address = nobody().await;
    let gateway = Start::before_address(address).start().await;
    let refused = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (502, "upstream-unreachable"));
    assert_eq!(refused.json()["retryable"], true);
    assert_eq!(gateway.records().await.len(), 0, "nothing was sent, so nothing is recorded");
    let upstream = Upstream::on(TcpListener::bind(address).await.unwrap(), |_, n| vec![charged(n).into()]);
    let first = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((first.status, first.is_replay(), upstream.effects("k-1")), (201, false, 1));
    assert_eq!(upstream.last().header("idempotency-attempt"), Some("1"), "the first was none");
}

// contract: upstream-broke-off, outcome-unknown
#[tokio::test]
async fn an_upstream_that_breaks_off_or_breaks_http_leaves_the_outcome_unknown() {
    let upstream = Upstream::start(|received, _| {
        let bytes: &[u8] = match received.target.as_str() {
            "/close" => return vec![Step::Close],
            "/noise" => b"HELLO\r\n\r\n",
            "/half-a-head" => b"HTTP/1.1 200 OK\r\nContent-Le",
            "/bad-length" => b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nbody",
            "/bad-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\nzz\r\n",
            "/two-lengths" => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nbod",
            "/switch" => b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 0\r\n\r\n",
        };
        vec![bytes.to_vec().into(), Step::Close]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    for path in ["/close", "/noise", "/half-a-head", "/bad-length", "/bad-chunk", "/two-lengths", "/switch", "/nul"] {
        let mut client = gateway.connect().await;
        client.send(post(path, path, "{}")).await;
        // A stream is broken off, anything else is refused.
        if let Ok(first) = client.try_answer().await {
            assert_eq!((first.status, first.slug().as_str()), (502, "upstream-failed"), "{path}");
        }
        let again = gateway.post(path, path, "{}").await;
        assert_eq!((again.status, again.slug().as_str()), (409, "outcome-unknown"), "{path}");
        assert_eq!(again.json()["retryable"], false);
        assert_eq!(upstream.effects(path), 1, "{path}");
    }
    assert!(!gateway.log().contains("panicked"));
}

// contract: outcome-unknown, settled-as-failed, route.on_unknown, route.retry_max
#[tokio::test]
async fn retry_runs_it_again_with_the_next_attempt_and_then_the_list_goes_on() {
    let upstream = breaking_off(100).await;
    let gateway = Start::before(&upstream)
        .config("[defaults]\non_unknown = [\"retry\", \"fail\"]\nretry_max = 2\n")
        .start()
        .await;
    for _ in 0..3 {
        assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "upstream-failed");
    }
    let given_up = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((given_up.status, given_up.slug().as_str()), (409, "failed"));
    assert_eq!(given_up.json()["retryable"], false);
    let attempts: Vec<_> =
        upstream.received().iter().map(|r| r.header("idempotency-attempt").unwrap().to_owned()).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    let fences: Vec<u64> =
        upstream.received().iter().map(|r| r.header("idempotency-fence").unwrap().parse().unwrap()).collect();
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
    assert_eq!(gateway.records().await[0]["state"], "failed");
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "failed", "and stays so");
}

#[tokio::test]
async fn a_retry_that_is_answered_settles_the_key() {
    let upstream = breaking_off(1).await;
    let gateway = Start::before(&upstream).config("[defaults]\non_unknown = [\"retry\"]\n").start().await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 502);
    let second = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((second.status, second.is_replay()), (201, false));
    assert!(gateway.post("/pay", "k-1", "{}").await.is_replay());
    assert_eq!(upstream.effects("k-1"), 2);
}

#[tokio::test]
async fn a_release_after_an_unknown_attempt_leaves_the_outcome_unknown() {
    let upstream = Upstream::start(|_, before| match before {
        0 => vec![Step::Close],
        _ => vec![super::support::answer(429, &[], "later").into()],
    })
    .await;
    let gateway =
        Start::before(&upstream).config("[defaults]\non_unknown = [\"retry\"]\nretry_max = 1\n").start().await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 502);
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 429, "as the upstream sent it");
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "outcome-unknown");
    assert_eq!(upstream.effects("k-1"), 2);
}

// contract: route.on_unknown
#[tokio::test]
async fn a_hold_with_a_time_passes_on_after_it() {
    let upstream = breaking_off(1).await;
    let gateway =
        Start::before(&upstream).config("[defaults]\non_unknown = [{ hold = \"1s\" }, \"retry\"]\n").start().await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 502);
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "outcome-unknown", "not before its time");
    until("the end of the hold", async || gateway.post("/pay", "k-1", "{}").await.status == 201).await;
    assert_eq!(upstream.effects("k-1"), 2);
}

// contract: settled-as-failed, route.on_unknown, route.unknown_max
#[tokio::test]
async fn fail_settles_it_and_unknown_max_does_too() {
    let upstream = breaking_off(100).await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "failing"
match = { path = "/failing" }
on_unknown = ["fail"]
[[route]]
name = "bounded"
match = { path = "/bounded" }
unknown_max = "1s"
"#,
        )
        .start()
        .await;
    assert_eq!(gateway.post("/failing", "k-1", "{}").await.status, 502);
    assert_eq!(gateway.post("/failing", "k-1", "{}").await.slug(), "failed");
    assert_eq!(gateway.post("/bounded", "k-2", "{}").await.status, 502);
    until("unknown_max", async || gateway.post("/bounded", "k-2", "{}").await.slug() == "failed").await;
    assert_eq!((upstream.effects("k-1"), upstream.effects("k-2")), (1, 1));
}

// contract: no-answer-within-timeout, route.timeout
#[tokio::test]
async fn an_answer_after_the_timeout_is_the_repeats() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(held.clone()), charged(before).into()]).await;
    let gateway = Start::before(&upstream)
        .config("[defaults]\ntimeout = \"300ms\"\nin_flight = { wait = \"200ms\" }\n")
        .start()
        .await;
    let late = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((late.status, late.slug().as_str()), (504, "upstream-timeout"));
    let waiting = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((waiting.status, waiting.slug().as_str()), (409, "in-flight"), "it goes on");
    gate.open();
    until("the late answer", async || gateway.post("/pay", "k-1", "{}").await.is_replay()).await;
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: no-answer-within-timeout, route.execution_max
#[tokio::test]
async fn an_execution_that_never_ends_is_an_unknown_outcome() {
    let shut = Gate::shut();
    let gate = shut.clone();
    let upstream = Upstream::start(move |_, _| vec![Step::Until(gate.clone())]).await;
    let gateway = Start::before(&upstream)
        .config("[defaults]\ntimeout = \"200ms\"\nexecution_max = \"600ms\"\nin_flight = { wait = \"0s\" }\n")
        .start()
        .await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 504);
    until("execution_max", async || gateway.post("/pay", "k-1", "{}").await.slug() == "outcome-unknown").await;
    assert_eq!(upstream.effects("k-1"), 1);
}

#[tokio::test]
async fn what_is_not_protected_is_told_of_failures_too_and_never_recorded() {
    let upstream = Upstream::start(|_, _| vec![Step::Close]).await;
    let gateway = Start::before(&upstream).start().await;
    let failed = gateway.ask(request("POST", "/x", &[], "{}")).await;
    assert_eq!((failed.status, failed.slug().as_str()), (502, "upstream-failed"));
    let gone = Start::before_address(nobody().await).start().await;
    let failed = gone.ask(request("POST", "/x", &[], "{}")).await;
    assert_eq!((failed.status, failed.slug().as_str()), (502, "upstream-unreachable"));
    assert_eq!(gateway.records().await.len() + gone.records().await.len(), 0);
}

// contract: erased-on-request
#[tokio::test]
async fn an_erased_key_is_gone_until_its_retention_ends_and_nothing_of_it_is_left() {
    let gate = Gate::shut();
    let opened = gate.clone();
    let upstream = Upstream::start(move |request, before| match request.key() {
        "slow" => vec![Step::Until(opened.clone()), charged(before).into()],
        _ => vec![charged(before).into()],
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    assert_eq!(gateway.post("/pay", "k", "{}").await.status, 201);
    let forget = |id: String, query: &'static str| {
        let (gateway, token) = (&gateway, format!("Bearer {}", gateway.token()));
        async move {
            let path = format!("/records/{id}{query}");
            gateway.admin("DELETE", &path, &[("Authorization", &token)], "").await
        }
    };
    let id = gateway.records().await[0]["record_id"].as_str().unwrap().to_owned();
    assert_eq!(forget(id.clone(), "?erase=true").await.status, 200);
    for body in ["{}", "{\"other\":1}"] {
        let gone = gateway.post("/pay", "k", body).await;
        assert_eq!((gone.status, gone.slug().as_str()), (410, "key-gone"));
    }
    let record = &gateway.records().await[0];
    assert_eq!((record["state"].as_str(), record["status"].is_null()), (Some("erased"), true), "{record}");

    // One that runs is erased only with force, and its late answer is not recorded.
    let mut slow = gateway.connect().await;
    slow.send(post("/pay", "slow", "{}")).await;
    upstream.reached("slow", 1).await;
    let running = gateway.records().await.into_iter().find(|record| record["state"] == "in_flight").unwrap();
    let id = running["record_id"].as_str().unwrap().to_owned();
    assert_eq!(forget(id.clone(), "?erase=true").await.status, 409);
    assert_eq!(forget(id.clone(), "?force=true").await.status, 409, "a running key is never freed");
    assert_eq!(forget(id, "?erase=true&force=true").await.status, 200);
    gate.open();
    assert_eq!(slow.answer().await.slug(), "claim-lost");
    assert_eq!(gateway.post("/pay", "slow", "{}").await.slug(), "key-gone");
    assert_eq!((upstream.effects("k"), upstream.effects("slow")), (1, 1));
}
