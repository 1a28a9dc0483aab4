//! Redis gone, and PostgreSQL to fall back to: what runs meanwhile, how it is marked, and that it never runs again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use servers::{Postgres, Redis, postgres::PASSWORD};

use super::{
    load::Load,
    postgres::database,
    redis::{config, url},
    support::{Answer, Gate, Gateway, Start, Step, Upstream, charged, metric, post, until},
};

const ROUTES: &str = r#"
[[route]]
name = "pay"
match = { path = "/pay" }
on_store_outage = "fallback"
[[route]]
name = "closed"
match = { path = "/closed" }
"#;
const DUPLICATES: &str = "onceward_accepted_duplicates_total";
const DEGRADED: &str = "onceward_requests_total{route=\"pay\",outcome=\"degraded\"}";

fn durable() -> Redis {
    Redis::start(&[("appendonly", "yes"), ("appendfsync", "always")]).unwrap()
}

fn with_fallback(server: &Redis, database: &Postgres) -> String {
    with_fallback_over(server, database, "tls = \"off\"")
}

pub(super) fn with_fallback_over(server: &Redis, database: &Postgres, tls: &str) -> String {
    let of_database = database.url("keys").replace(&format!(":{PASSWORD}@"), "@");
    let fallback = format!(
        "[store.fallback]\nkind = \"postgres\"\nduplicates = \"accepted\"\nurl = \"{of_database}\"\n\
         listen_url = \"{of_database}\"\npassword = \"{PASSWORD}\"\nconnections = 1\n{tls}"
    );
    let soon = "deadline = \"1s\"\nbreaker = { failures = 3, open = \"200ms\" }";
    config(&format!("{}\n{fallback}", url(server)), ROUTES).replace("deadline = \"5s\"", soon)
}

fn mark(answer: &Answer) -> Option<&str> {
    answer.header("idempotency-status")
}

/// Fresh keys are claimed in Redis again.
async fn is_back(gateway: &Gateway, name: &str) {
    let count = AtomicUsize::new(0);
    until("a claim in Redis", async || {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let fresh = gateway.post("/pay", &format!("{name}-{number}"), "{}").await;
        assert_eq!(fresh.status, 201, "{fresh:?}");
        mark(&fresh).is_none()
    })
    .await;
}

// contract: store-unavailable, route.on_store_outage, store.fallback.kind, store.fallback.duplicates, store.fallback.url
// contract: store.fallback.listen_url, store.fallback.password, store.fallback.connections
#[tokio::test]
async fn what_runs_in_the_fallback_is_marked_and_never_runs_again() {
    let (mut server, database, upstream) = (durable(), database().await, Upstream::charging().await);
    let start = Start::before(&upstream).config(&with_fallback(&server, &database));
    let (one, two) =
        (start.start().await, Start::before(&upstream).config(&with_fallback(&server, &database)).start().await);
    let first = one.post("/pay", "before", "{}").await;
    assert_eq!((first.status, mark(&first)), (201, None));

    server.kill().unwrap();
    let fresh = one.post("/pay", "meanwhile", "{}").await;
    assert_eq!((fresh.status, mark(&fresh), fresh.is_replay()), (201, Some("degraded"), false), "{fresh:?}");
    for gateway in [&one, &two] {
        let replay = gateway.post("/pay", "meanwhile", "{}").await;
        assert!(replay.is_replay() && replay.essence() == fresh.essence(), "{replay:?}");
        assert_eq!(mark(&replay), Some("degraded"));
        assert_eq!(gateway.post("/pay", "meanwhile", "{\"other\":1}").await.slug(), "key-reused");
        assert_eq!(gateway.post("/closed", "fresh", "{}").await.slug(), "store-unavailable", "a route that denies");
    }
    // Whoever remembers the answer gives it; whoever does not runs it a second time, which was accepted.
    let remembered = one.post("/pay", "before", "{}").await;
    assert_eq!((remembered.is_replay(), mark(&remembered)), (true, Some("remembered")));
    let again = two.post("/pay", "before", "{}").await;
    assert_eq!((again.status, again.is_replay(), mark(&again)), (201, false, Some("degraded")), "{again:?}");
    assert_eq!((upstream.effects("meanwhile"), upstream.effects("before")), (1, 2));
    assert!(metric(&one.metrics().await, DEGRADED) >= 2.0);
    let ready = one.admin("GET", "/readyz", &[], "").await.json()["warnings"].to_string();
    assert!(ready.contains("use the fallback"), "{ready}");

    server.start_again().unwrap();
    is_back(&one, "one").await;
    is_back(&two, "two").await;
    for gateway in [&one, &two] {
        let replay = gateway.post("/pay", "meanwhile", "{}").await;
        assert!(replay.is_replay() && replay.essence() == fresh.essence(), "{replay:?}");
        let replay = gateway.post("/pay", "before", "{}").await;
        assert!(replay.is_replay() && replay.essence() == again.essence(), "the last that ran: {replay:?}");
    }
    let after = one.post("/pay", "after", "{}").await;
    assert_eq!((after.status, mark(&after)), (201, None), "{after:?}");
    assert!(two.post("/pay", "after", "{}").await.is_replay());
    until("the duplicate", async || metric(&two.metrics().await, DUPLICATES) >= 1.0).await;
    until("the word of it", async || two.log().contains("duplicates=1")).await;
    assert!(metric(&one.metrics().await, DUPLICATES) < 0.5, "it granted no key that was there");
    for (key, effects) in [("before", 2), ("meanwhile", 1), ("after", 1), ("fresh", 0)] {
        assert_eq!(upstream.effects(key), effects, "{key}");
    }
    // What an operator does finds the record where it is.
    let records = one.records().await;
    assert!(records.len() >= 3, "of both stores: {records:?}");
    // A start in between finds what is in the fallback.
    let three = start.start().await;
    assert!(three.post("/pay", "meanwhile", "{}").await.is_replay());
}

#[tokio::test]
async fn redis_killed_under_load_costs_no_answer_and_no_key_runs_again() {
    const CLIENTS: usize = 8;
    let (mut server, database, upstream) = (durable(), database().await, Upstream::charging().await);
    let start = || Start::before(&upstream).config(&with_fallback(&server, &database));
    let gateways = [Arc::new(start().start().await), Arc::new(start().start().await)];
    let both = gateways.clone();
    let load = Load::start(CLIENTS, move |client, number| {
        let of = |number: usize| Arc::clone(&both[number % both.len()]);
        let (there, other) = (of(number), of(number + 1));
        async move {
            let key = format!("{client}-{number}");
            let first = there.post("/pay", &key, "{}").await;
            let again = other.post("/pay", &key, "{}").await;
            (key, first, again)
        }
    });
    load.more(100).await;
    server.kill().unwrap();
    load.more(200).await;
    server.start_again().unwrap();
    is_back(&gateways[0], "one").await;
    is_back(&gateways[1], "two").await;
    load.more(200).await;
    let (mut degraded, mut twice, mut keys) = (0, 0, Vec::new());
    for (key, first, again) in load.end().await {
        assert_eq!(first.status, 201, "{key}: {first:?}");
        // Asked before the kill and again after it, one may run once more; what ran meanwhile may not.
        assert_eq!(again.status, 201, "{key}: {again:?}");
        twice += usize::from(upstream.effects(&key) > 1);
        if mark(&first) == Some("degraded") {
            degraded += 1;
            assert!(again.is_replay() && again.essence() == first.essence(), "{key}: {again:?}");
            assert_eq!(upstream.effects(&key), 1, "{key}");
            keys.push((key, first));
        }
    }
    assert!(degraded > 50, "{degraded}");
    assert!(twice <= CLIENTS, "only what was on its way when Redis went: {twice}");
    for (key, first) in keys.iter().take(50) {
        for gateway in &gateways {
            let replay = gateway.post("/pay", key, "{}").await;
            assert!(replay.is_replay() && replay.essence() == first.essence(), "{key}: {replay:?}");
        }
        assert_eq!(upstream.effects(key), 1, "{key}");
    }
    let last = gateways[0].post("/pay", "last", "{}").await;
    assert_eq!((last.status, mark(&last)), (201, None));
}

#[tokio::test]
async fn what_a_gateway_executes_when_redis_goes_is_not_run_again_by_it() {
    let (mut server, database, gate) = (durable(), database().await, Gate::shut());
    let held = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(held.clone()), charged(before).into()]).await;
    let gateway = Start::before(&upstream).config(&with_fallback(&server, &database)).start().await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "runs", "{}")).await;
    upstream.reached("runs", 1).await;
    server.kill().unwrap();
    let refused = gateway.post("/pay", "runs", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
    gate.open();
    let first = client.answer().await;
    assert_eq!((first.status, mark(&first)), (201, Some("unrecorded")), "{first:?}");
    assert!(gateway.post("/pay", "runs", "{}").await.is_replay());
    server.start_again().unwrap();
    until("its record in Redis", async || {
        let replay = gateway.post("/pay", "runs", "{}").await;
        assert!(replay.is_replay(), "{replay:?}");
        mark(&replay).is_none()
    })
    .await;
    assert_eq!(upstream.effects("runs"), 1);
}
