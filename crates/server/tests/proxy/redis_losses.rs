//! What Redis loses, seen from outside: keys that run again are told, and a route in quarantine runs none.

use servers::{Redis, Relay, Sentinels};

use super::{
    redis::{config, url},
    support::{Gate, Gateway, Start, Step, Upstream, charged, metric, post, until},
};

const ROUTES: &str = r#"client_retries = "15m"
[[route]]
name = "open"
match = { path = "/open" }
[[route]]
name = "careful"
match = { path = "/careful" }
on_cache_loss = "quarantine"
"#;

const LOSSES: &str = "onceward_store_incarnation_changes_total";
const LAST: &str = "onceward_store_last_loss_timestamp_seconds";

/// Before anything is lost.
async fn both_answered(gateway: &Gateway) {
    for path in ["/open", "/careful"] {
        assert_eq!(gateway.post(path, path, "{}").await.status, 201);
        assert!(gateway.post(path, path, "{}").await.is_replay());
    }
    let metrics = gateway.metrics().await;
    assert!(metric(&metrics, LOSSES) < 0.5 && metric(&metrics, LAST) < 0.5, "nothing was lost yet");
}

/// Until the gateway knows of the loss, it is shown with what it is about: keys `between` two times, or `before` one.
async fn is_told(gateway: &Gateway, span: &str) {
    until("the loss in the metrics", async || metric(&gateway.metrics().await, LOSSES) >= 1.0).await;
    let last = metric(&gateway.metrics().await, LAST);
    assert!(last > 1e9, "seconds since 1970, by the store's clock: {last}");
    let ready = gateway.admin("GET", "/readyz", &[], "").await;
    let warnings = ready.json()["warnings"].to_string();
    assert_eq!(ready.status, 200, "it serves on: {warnings}");
    assert!(
        warnings.contains(&format!("keys claimed or completed {span} 20")) && warnings.contains("may run again"),
        "{warnings}"
    );
    gateway.says("Redis lost records").await;
}

/// A key that was not seen before is refused by one route and runs on the other.
async fn new_keys(gateway: &Gateway, upstream: &Upstream) {
    let refused = gateway.post("/careful", "new-1", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(after > 60 && after <= 900, "{after}");
    assert!(refused.json()["detail"].as_str().unwrap().contains("one of them"), "{refused:?}");
    assert_eq!(gateway.post("/open", "new-2", "{}").await.status, 201);
    assert!(gateway.post("/open", "new-2", "{}").await.is_replay());
    assert_eq!((upstream.effects("new-1"), upstream.effects("new-2")), (0, 1));
}

fn start(upstream: &Upstream, server: &Redis) -> Start {
    Start::before(upstream).config(&config(&url(server), ROUTES))
}

/// What a server without its records makes of those that were asked before.
async fn all_is_lost(gateway: &Gateway, upstream: &Upstream) {
    let refused = gateway.post("/careful", "/careful", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
    let again = gateway.post("/open", "/open", "{}").await;
    assert!(again.status == 201 && !again.is_replay(), "{again:?}");
    assert_eq!((upstream.effects("/open"), upstream.effects("/careful")), (2, 1));
}

// contract: route.durability, route.on_cache_loss, store-unavailable
#[tokio::test]
async fn after_a_flush_lost_keys_run_again_or_are_refused_as_the_route_says() {
    let (server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let gateway = start(&upstream, &server).start().await;
    both_answered(&gateway).await;
    server.command(&["FLUSHALL"]).unwrap();
    // Whoever comes first finds it.
    all_is_lost(&gateway, &upstream).await;
    new_keys(&gateway, &upstream).await;
    is_told(&gateway, "before").await;
    // Who starts later knows of it, and told nobody.
    let later = start(&upstream, &server).start().await;
    new_keys(&later, &upstream).await;
    assert!(metric(&later.metrics().await, LOSSES) < 0.5 && !later.log().contains("lost records"), "{}", later.log());
}

// contract: store.redis.detect_evictions
#[tokio::test]
async fn evictions_that_are_noticed_inline_are_a_loss_and_a_route_in_quarantine_grants_nothing_after_them() {
    let (server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let inline = format!("{}\ndetect_evictions = \"inline\"", url(&server));
    let gateway = Start::before(&upstream).config(&config(&inline, ROUTES)).start().await;
    both_answered(&gateway).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "volatile-lru"]).unwrap();
    let _refused = server.command(&["SET", "somebody", "else"]);
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    // Both answers are gone, and neither runs again where that is not accepted.
    all_is_lost(&gateway, &upstream).await;
    new_keys(&gateway, &upstream).await;
    is_told(&gateway, "before").await;
}

#[tokio::test]
async fn an_execution_whose_claim_is_lost_meanwhile_is_recorded_all_the_same() {
    let (server, gate) = (Redis::start(&[]).unwrap(), Gate::shut());
    let held = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(held.clone()), charged(before).into()]).await;
    let one = start(&upstream, &server).start().await;
    let two = start(&upstream, &server).start().await;
    let mut client = one.connect().await;
    client.send(post("/open", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    server.command(&["FLUSHALL"]).unwrap();
    until("the loss", async || metric(&one.metrics().await, LOSSES) >= 1.0).await;
    gate.open();
    let answer = client.answer().await;
    assert!(answer.status == 201 && answer.header("idempotency-status").is_none(), "{answer:?}");
    let replay = two.post("/open", "k-1", "{}").await;
    assert!(replay.is_replay() && replay.essence() == answer.essence(), "{replay:?}");
    assert_eq!(upstream.effects("k-1"), 1);
}

#[tokio::test]
async fn a_start_without_data_is_a_loss_and_one_with_data_refuses_new_keys_only() {
    for (settings, keeps) in [(&[][..], false), (&[("appendonly", "yes"), ("appendfsync", "always")], true)] {
        let (mut server, upstream) = (Redis::start(settings).unwrap(), Upstream::charging().await);
        let gateway = start(&upstream, &server).start().await;
        both_answered(&gateway).await;
        server.kill().unwrap();
        server.start_again().unwrap();
        is_told(&gateway, if keeps { "between" } else { "before" }).await;
        if keeps {
            for path in ["/open", "/careful"] {
                assert!(gateway.post(path, path, "{}").await.is_replay(), "{path}");
            }
        } else {
            all_is_lost(&gateway, &upstream).await;
        }
        new_keys(&gateway, &upstream).await;
    }
}

/// How far its history goes.
fn offset(server: &Redis) -> u64 {
    let info = server.command(&["INFO", "replication"]).unwrap();
    let name = if info.contains("role:master") { "master_repl_offset:" } else { "slave_repl_offset:" };
    info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_failover_is_followed_and_told_and_what_the_replica_has_is_answered() {
    let mut sentinels = Sentinels::start(&[], 1, None).unwrap();
    let upstream = Upstream::charging().await;
    let hosts: Vec<String> = sentinels.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("url = \"redis+sentinel://{}/{}\"", hosts.join(","), Sentinels::NAME);
    let gateway = Start::before(&upstream).config(&config(&url, ROUTES)).start().await;
    both_answered(&gateway).await;
    let [primary, replica] = sentinels.nodes() else { panic!("two nodes") };
    let written = offset(primary);
    until("the replica", async || offset(replica) >= written).await;
    sentinels.kill_primary().unwrap();
    is_told(&gateway, "between").await;
    for path in ["/open", "/careful"] {
        assert!(gateway.post(path, path, "{}").await.is_replay(), "{path}");
    }
    new_keys(&gateway, &upstream).await;
}

/// The partitions that one line says were lost, and from when to when, in microseconds.
async fn told(gateway: &Gateway) -> (String, u64, u64) {
    let log = gateway.says("Redis lost records").await;
    let line = log.lines().find(|line| line.contains("Redis lost records")).unwrap();
    let word = |name: &str| {
        let (_, rest) = line.split_once(name).unwrap();
        rest.split_whitespace().next().unwrap().trim_matches('"').to_owned()
    };
    (word("partitions="), word("from_us=").parse().unwrap(), word("to_us=").parse().unwrap())
}

/// The server's clock, in microseconds.
fn time(server: &Redis) -> u64 {
    let said = server.command(&["TIME"]).unwrap();
    let (seconds, micros) = said.split_once('\n').unwrap();
    seconds.trim().parse::<u64>().unwrap() * 1_000_000 + micros.trim().parse::<u64>().unwrap()
}

/// Goal: what a split does, and no more. The old primary is cut off with one gateway; its replica is promoted and serves the
/// other; the network heals and the old primary becomes a replica. Keys that came to both sides meanwhile ran on both, where
/// their route accepts that; what only the old side has is lost, and told; no other key runs twice, and a route in quarantine
/// runs none.
#[tokio::test]
async fn two_primaries_at_a_time_run_a_key_once_each_and_what_the_demoted_one_took_is_told_as_lost() {
    let (old, gate) = (Redis::start(&[]).unwrap(), Gate::shut());
    let new = old.replica().unwrap();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.key() {
        "held" => vec![Step::Until(held.clone()), charged(before).into()],
        _ => vec![charged(before).into()],
    })
    .await;
    let ways = [Relay::before(old.port()).unwrap(), Relay::before(old.port()).unwrap()];
    let through = |way: &Relay| {
        let url = old.url().replace(&old.port().to_string(), &way.port().to_string());
        Start::before(&upstream).config(&config(&format!("url = \"{url}\""), ROUTES))
    };
    let (one, two) = (through(&ways[0]).start().await, through(&ways[1]).start().await);
    both_answered(&one).await;
    old.wait_for_replicas(1).unwrap();

    // Split.
    new.promote().unwrap();
    ways[1].leads_to(new.port());
    ways[1].cut();
    is_told(&two, "between").await;
    let split = time(&new);
    let mut waiting = one.connect().await;
    waiting.send(post("/open", "held", "{}")).await;
    upstream.reached("held", 1).await;
    for (key, on_new) in [("both", true), ("old-only", false)] {
        assert_eq!(one.post("/open", key, "{}").await.status, 201);
        if on_new {
            assert_eq!(two.post("/open", key, "{}").await.status, 201, "each side takes it");
            assert!(two.post("/open", key, "{}").await.is_replay() && one.post("/open", key, "{}").await.is_replay());
        }
    }
    assert_eq!(one.post("/careful", "kept", "{}").await.status, 201);
    assert_eq!(two.post("/careful", "kept", "{}").await.status, 503);
    for gateway in [&one, &two] {
        assert!(gateway.post("/open", "/open", "{}").await.is_replay(), "what was before is on both sides");
    }
    let healing = time(&new);
    assert_eq!((upstream.effects("both"), upstream.effects("kept")), (2, 1));
    assert!(metric(&one.metrics().await, LOSSES) < 0.5, "its server lost nothing yet");

    // Healed.
    old.replicate(&new).unwrap();
    let refused = one.post("/open", "on-a-replica", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
    ways[0].leads_to(new.port());
    ways[0].cut();
    is_told(&one, "before").await;
    let (partitions, from, to) = told(&one).await;
    assert!(partitions == "0-255" && from <= split && healing <= to, "{partitions} {from} {to}, and {split} {healing}");
    gate.open();
    let answer = waiting.answer().await;
    assert_eq!((answer.status, answer.header("idempotency-status")), (201, None), "{answer:?}");
    for gateway in [&one, &two] {
        let replay = gateway.post("/open", "held", "{}").await;
        assert!(
            replay.is_replay() && replay.text() == answer.text(),
            "what ran over all of it has one answer: {replay:?}"
        );
        for key in ["both", "old-only", "/open"] {
            assert_eq!(gateway.post("/open", key, "{}").await.status, 201);
        }
        for key in ["kept", "new"] {
            assert_eq!(gateway.post("/careful", key, "{}").await.slug(), "store-unavailable");
        }
    }
    let effects = ["both", "old-only", "held", "/open", "kept", "new", "on-a-replica"].map(|key| upstream.effects(key));
    assert_eq!(effects, [2, 2, 1, 1, 1, 0, 0]);
    assert!(metric(&two.metrics().await, LOSSES) < 1.5, "it lost nothing by that");
}
