//! Repetitions that come while the first still runs, and clients that go away.

use serde_json::json;

use super::support::{Gate, Start, Step, Upstream, answer, charged, metric, post, request, until};

/// Answers when the gate opens.
async fn gated(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::start(move |_, before| vec![Step::Until(gate.clone()), charged(before).into()]).await
}

/// Until so many duplicates wait.
async fn waiting(gateway: &super::support::Gateway, count: f64) {
    until("the waiters", async || metric(&gateway.metrics().await, "onceward_waiters ") >= count).await;
}

// contract: repeated-still-running
#[tokio::test]
async fn duplicates_wait_for_the_first_and_get_its_answer() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let gateway = Start::before(&upstream).start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.send(post("/pay", "k-1", "{}")).await;
        clients.push(client);
    }
    waiting(&gateway, 19.0).await;
    gate.open();
    let mut replays = 0;
    for client in &mut clients {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (201, "{\"charge\":0}"));
        replays += usize::from(answer.is_replay());
    }
    assert_eq!((replays, upstream.effects("k-1")), (19, 1));
    let metrics = gateway.metrics().await;
    assert!(metric(&metrics, "onceward_requests_total{route=\"default\",outcome=\"waited\"}") >= 19.0, "{metrics}");
}

// contract: repeated-still-running, route.in_flight.wait
#[tokio::test]
async fn who_waits_too_long_is_told_when_to_come_back() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let gateway = Start::before(&upstream).config("[defaults]\nin_flight = { wait = \"100ms\" }\n").start().await;
    let mut first = gateway.connect().await;
    first.send(post("/pay", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    let told = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((told.status, told.slug().as_str()), (409, "in-flight"));
    assert_eq!(told.json()["retryable"], true);
    assert!(told.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    gate.open();
    assert_eq!(first.answer().await.status, 201);
    assert!(gateway.post("/pay", "k-1", "{}").await.is_replay());
}

// contract: route.in_flight.waiters_per_key
#[tokio::test]
async fn beyond_the_number_of_waiters_nobody_waits() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let gateway = Start::before(&upstream)
        .config("[defaults]\nin_flight = { wait = \"20s\", waiters_per_key = 1 }\n")
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = gateway.connect().await;
        client.send(post("/pay", "k-1", "{}")).await;
        clients.push(client);
    }
    waiting(&gateway, 1.0).await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "in-flight");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 201);
    }
}

// contract: repeated-still-running
#[tokio::test]
async fn when_the_first_is_released_exactly_one_waiter_runs() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, before| match before {
        0 => vec![Step::Until(held.clone()), answer(429, &[], "busy").into()],
        _ => vec![charged(before).into()],
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    let mut first = gateway.connect().await;
    first.send(post("/pay", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    let mut others = Vec::new();
    for _ in 0..5 {
        let mut client = gateway.connect().await;
        client.send(post("/pay", "k-1", "{}")).await;
        others.push(client);
    }
    waiting(&gateway, 5.0).await;
    gate.open();
    assert_eq!(first.answer().await.status, 429);
    let mut executed = 0;
    for client in &mut others {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (201, "{\"charge\":1}"));
        executed += usize::from(!answer.is_replay());
    }
    assert_eq!((executed, upstream.effects("k-1")), (1, 2));
}

// contract: same-key-other-fingerprint, route.mismatch_status
#[tokio::test]
async fn another_request_under_the_key_is_refused_while_the_first_still_runs() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "conflict"
match = { path = "/conflict" }
mismatch_status = 409
[[route]]
name = "bad"
match = { path = "/bad" }
mismatch_status = 400
"#,
        )
        .start()
        .await;
    for (path, status) in [("/other", 422), ("/conflict", 409), ("/bad", 400)] {
        let mut first = gateway.connect().await;
        first.send(post(path, path, "{\"amount\":5,\"to\":\"alice\"}")).await;
        upstream.reached(path, 1).await;
        let other = gateway.post(path, path, "{\"amount\":6666,\"to\":\"alice\"}").await;
        assert_eq!((other.status, other.slug().as_str()), (status, "key-reused"), "{path}");
        assert_eq!(other.json()["fields"], json!(["/amount"]), "{path}");
        assert!(!other.text().contains("6666") && !other.text().contains("alice"), "values are not told");
        gate.open();
        assert_eq!(first.answer().await.status, 201);
        assert_eq!(gateway.post(path, path, "{\"amount\":6666}").await.status, status, "nor afterwards");
        // The same request in other words is the same request.
        assert!(gateway.post(path, path, "{ \"to\" : \"alice\", \"amount\" : 5.0 }").await.is_replay());
        assert_eq!(upstream.effects(path), 1);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_stops_nothing() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let gateway = Start::before(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    drop(client);
    gate.open();
    let replay = gateway.post("/pay", "k-1", "{}").await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: upstream-busy, upstream.max_in_flight
#[tokio::test]
async fn a_busy_upstream_gets_no_fresh_key_and_repeats_are_answered_as_ever() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.target.as_str() {
        "/slow" => vec![Step::Until(held.clone()), charged(before).into()],
        _ => vec![charged(before).into()],
    })
    .await;
    let gateway = Start::new()
        .config(&format!(
            "[[upstream]]\nname = \"small\"\nurl = \"http://{}\"\nmax_in_flight = 1\n[defaults]\nin_flight = {{ wait = \"100ms\" }}\n",
            upstream.address
        ))
        .start()
        .await;
    assert_eq!(gateway.post("/fast", "done", "{}").await.status, 201);
    let mut slow = gateway.connect().await;
    slow.send(post("/slow", "slow", "{}")).await;
    upstream.reached("slow", 1).await;
    let fresh = gateway.post("/fast", "fresh", "{}").await;
    assert_eq!((fresh.status, fresh.slug().as_str()), (503, "overloaded"));
    assert!(fresh.header("retry-after").is_some());
    assert!(gateway.post("/fast", "done", "{}").await.is_replay());
    assert_eq!(gateway.post("/slow", "slow", "{}").await.slug(), "in-flight");
    assert_eq!(gateway.post("/fast", "done", "{\"other\":1}").await.slug(), "key-reused");
    assert_eq!(gateway.records().await.len(), 2, "nothing was claimed for the fresh key");
    gate.open();
    assert_eq!(slow.answer().await.status, 201);
    until("the permit", async || gateway.post("/fast", "fresh", "{}").await.status == 201).await;
    assert_eq!(upstream.effects("fresh"), 1);
}

#[tokio::test]
async fn requests_without_a_key_never_wait_for_each_other() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let gateway = Start::before(&upstream).start().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = gateway.connect().await;
        client.send(request("POST", "/pay", &[], "{}")).await;
        clients.push(client);
    }
    upstream.reached("", 3).await;
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 201);
    }
    assert_eq!(gateway.records().await.len(), 0);
}
