//! A Redis that does not answer: what routes do without it, and that all is well once it is back.

use servers::Redis;

use super::{
    redis::{config, url},
    support::{Gateway, Start, Upstream, forget, metric, until},
};

const ROUTES: &str = r#"
[[route]]
name = "closed"
match = { path = "/closed" }
[[route]]
name = "open"
match = { path = "/open" }
on_store_outage = "bypass"
"#;
const CIRCUIT: &str = "onceward_circuit_state{store=\"redis\"}";

async fn start(server: &Redis, upstream: &Upstream) -> Gateway {
    let soon = "deadline = \"250ms\"\nbreaker = { failures = 3, open = \"200ms\" }";
    let config = config(&url(server), ROUTES).replace("deadline = \"5s\"", soon);
    let gateway = Start::before(upstream).config(&config).start().await;
    for path in ["/closed", "/open"] {
        let first = gateway.post(path, "before", "{\"paid\":1}").await;
        assert_eq!((first.status, first.header("idempotency-status")), (201, None));
    }
    gateway
}

/// What was answered before is answered from memory on both routes, to the same request as ever.
async fn is_remembered(gateway: &Gateway) {
    for path in ["/closed", "/open"] {
        let replay = gateway.post(path, "before", "{\"paid\":1}").await;
        assert!(replay.is_replay(), "{replay:?}");
        assert_eq!((replay.status, replay.header("idempotency-status")), (201, Some("remembered")), "{replay:?}");
        let other = gateway.post(path, "before", "{\"paid\":2}").await;
        assert_eq!((other.status, other.slug().as_str()), (422, "key-reused"), "{other:?}");
    }
    assert!(metric(&gateway.metrics().await, "onceward_remembered_replays_total") >= 2.0);
}

/// Fresh keys are refused by one route and forwarded by the other, and the circuit opens.
async fn is_out(gateway: &Gateway, upstream: &Upstream) {
    let denied = gateway.post("/closed", "meanwhile-1", "{}").await;
    assert_eq!((denied.status, denied.slug().as_str()), (503, "store-unavailable"), "{denied:?}");
    assert!(denied.header("retry-after").is_some() && denied.json()["retryable"] == true, "{denied:?}");
    let bypassed = gateway.post("/open", "meanwhile-2", "{}").await;
    assert_eq!((bypassed.status, bypassed.header("idempotency-status")), (201, Some("bypassed")));
    assert_eq!((upstream.effects("meanwhile-1"), upstream.effects("meanwhile-2")), (0, 1));
    is_remembered(gateway).await;
    until("the open circuit", async || {
        assert_eq!(gateway.post("/closed", "meanwhile-1", "{}").await.slug(), "store-unavailable");
        metric(&gateway.metrics().await, CIRCUIT) >= 2.0
    })
    .await;
}

/// What was there is answered, what was refused runs, and nothing twice.
async fn is_back(gateway: &Gateway, upstream: &Upstream) {
    until("an answer of the store", async || {
        let replay = gateway.post("/closed", "before", "{\"paid\":1}").await;
        assert!(replay.is_replay(), "{replay:?}");
        replay.header("idempotency-status").is_none()
    })
    .await;
    until("a closed circuit", async || metric(&gateway.metrics().await, CIRCUIT) < 0.5).await;
    // Its claim may have reached the server, and is freed then: nothing was sent under it.
    until("the key that was refused", async || gateway.post("/closed", "meanwhile-1", "{}").await.status == 201).await;
    assert!(gateway.post("/closed", "meanwhile-1", "{}").await.is_replay());
    assert_eq!(gateway.post("/closed", "after", "{}").await.status, 201);
    for (key, effects) in [("before", 2), ("meanwhile-1", 1), ("after", 1)] {
        assert_eq!(upstream.effects(key), effects, "{key}");
    }
}

// contract: store.redis.wait.replicas, store.redis.wait.timeout
#[tokio::test]
async fn a_request_is_forwarded_once_as_many_replicas_have_its_claim_as_are_asked_for() {
    let (server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let waits = format!("{}\nwait = {{ replicas = 1, timeout = \"2s\" }}", url(&server));
    let gateway = Start::before(&upstream).config(&config(&waits, "")).start().await;
    let refused = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
    assert_eq!(upstream.effects("k-1"), 0);
    let _replica = server.replica().unwrap();
    // What was claimed and not granted is freed.
    until("a grant", async || gateway.post("/pay", "k-1", "{}").await.status == 201).await;
    assert!(gateway.post("/pay", "k-1", "{}").await.is_replay());
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: store-unavailable, route.on_store_outage, store.breaker.failures, store.breaker.open, limits.replay_cache
#[tokio::test]
async fn a_redis_that_is_killed_denies_or_bypasses_and_is_asked_again_once_it_is_back() {
    let settings = [("appendonly", "yes"), ("appendfsync", "always")];
    let (mut server, upstream) = (Redis::start(&settings).unwrap(), Upstream::charging().await);
    let gateway = start(&server, &upstream).await;
    server.kill().unwrap();
    is_out(&gateway, &upstream).await;
    server.start_again().unwrap();
    is_back(&gateway, &upstream).await;
}

#[tokio::test]
async fn a_redis_that_stands_still_is_late_as_any_other_and_loses_nothing() {
    let (server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let gateway = start(&server, &upstream).await;
    server.pause().unwrap();
    is_out(&gateway, &upstream).await;
    server.resume().unwrap();
    is_back(&gateway, &upstream).await;
    assert!(metric(&gateway.metrics().await, "onceward_store_incarnation_changes_total") < 0.5);
}

/// Two gateways remember two keys, and one forgets the first of them: the other does not show it any more, `without` the
/// store.
pub(super) async fn forgets_for_both(one: &Gateway, two: &Gateway, without: impl FnOnce()) {
    const HELD: &str = "onceward_remembered_answers";
    for key in ["forgotten", "kept"] {
        assert_eq!(one.post("/pay", key, "{}").await.status, 201);
        assert!(two.post("/pay", key, "{}").await.is_replay());
    }
    let forgotten = one.records().await[0]["record_id"].as_str().unwrap().to_owned();
    forget(one, &forgotten).await;
    until("the word of it", async || metric(&two.metrics().await, HELD) < 1.5).await;
    // Where it came as "any may have been forgotten", since it had only begun to listen.
    assert!(two.post("/pay", "kept", "{}").await.is_replay());
    without();
    for gateway in [one, two] {
        let refused = gateway.post("/pay", "forgotten", "{}").await;
        assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
        let kept = gateway.post("/pay", "kept", "{}").await;
        assert!(kept.is_replay(), "{kept:?}");
        assert_eq!(kept.header("idempotency-status"), Some("remembered"));
    }
}

#[tokio::test]
async fn what_one_gateway_forgets_no_other_shows_while_redis_is_gone() {
    let (mut server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let config = config(&url(&server), "");
    let start = || Start::before(&upstream).config(&config);
    let (one, two) = (start().start().await, start().start().await);
    forgets_for_both(&one, &two, || server.kill().unwrap()).await;
}
