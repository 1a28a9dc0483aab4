//! PostgreSQL with Redis in front from outside: where each route's records are, and what becomes of them when one is gone.

use std::sync::Arc;

use servers::{Postgres, Redis, postgres::PASSWORD};

use super::{
    load::Load,
    postgres::database,
    redis::{keys, secret},
    support::{Start, Upstream, metric, onceward, output, until},
};

const SHOWN: &str = "onceward_hints_total{result=\"shown\"}";
const CLIENTS: usize = 8;

fn config(database: &Postgres, redis: &Redis) -> String {
    let (secret, of_redis) = (secret(7), redis.url());
    let of_database = database.url("keys").replace(&format!(":{PASSWORD}@"), "@");
    format!(
        "[identity]\nsecret = \"{secret}\"\n[store]\nkind = \"tiered\"\ndeadline = \"5s\"\n\
         postgres = {{ url = \"{of_database}\", password = \"{PASSWORD}\", connections = 1, tls = \"off\" }}\n\
         redis = {{ url = \"{of_redis}\" }}\n\
         [defaults]\ndurability = \"strict\"\nscope = {{ env = \"fixed:test\" }}\n\
         [[route]]\nname = \"pay\"\nmatch = {{ path = \"/pay\" }}\n\
         [[route]]\nname = \"search\"\nmatch = {{ path = \"/search\" }}\ndurability = \"cache\"\n"
    )
}

// contract: store.kind, route.durability
#[tokio::test]
async fn each_route_has_its_records_where_it_says_and_repetitions_are_answered_from_redis() {
    let (mut postgres, redis, upstream) = (database().await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let start = Start::before(&upstream).config(&config(&postgres, &redis));
    let (one, two) = (start.start().await, Start::before(&upstream).config(&config(&postgres, &redis)).start().await);
    let mut first = Vec::new();
    for path in ["/pay", "/search"] {
        let answer = one.post(path, &path[1..], "{}").await;
        assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
        let again = two.post(path, &path[1..], "{}").await;
        assert!(again.is_replay() && again.essence() == answer.essence(), "{again:?}");
        assert_eq!(two.post(path, &path[1..], "{\"other\":1}").await.slug(), "key-reused");
        first.push(answer);
    }
    let rows = postgres.psql("keys", "SELECT count(*) FROM onceward.record").unwrap();
    assert_eq!(rows.trim(), "1", "the other route's is in Redis alone");
    assert_eq!(one.records().await.len(), 2, "both are listed");

    // What an operator erases is told by no gateway, whatever Redis had of it.
    assert_eq!(one.post("/pay", "erased", "{}").await.status, 201);
    until("a hint", async || {
        assert!(two.post("/pay", "erased", "{}").await.is_replay());
        metric(&two.metrics().await, SHOWN) >= 1.0
    })
    .await;
    let (code, said) = keys(&one, &["forget", "--key", "erased", "--route", "pay", "--erase"]).await;
    assert_eq!(code, Some(0), "{said}");
    for gateway in [&one, &two] {
        assert_eq!(gateway.post("/pay", "erased", "{}").await.slug(), "key-gone");
    }
    assert_eq!(two.post("/elsewhere", "no-route", "{}").await.status, 201);
    let (code, said) = keys(&one, &["get", "--key", "no-route", "--route", "default POST /elsewhere"]).await;
    assert_eq!(code, Some(0), "{said}");
    until("another hint", async || {
        let before = metric(&two.metrics().await, SHOWN);
        assert!(two.post("/pay", "pay", "{}").await.is_replay());
        metric(&two.metrics().await, SHOWN) > before
    })
    .await;
    let mut doctor = onceward();
    doctor.args(["doctor", "--config"]).arg(one.start.config_file());
    let said = String::from_utf8(output(doctor).await.stdout).unwrap();
    for server in ["PostgreSQL", "Redis"] {
        assert!(said.contains(&format!("ok   connection: {server}: ")), "{said}");
    }

    postgres.kill().unwrap();
    let told = two.post("/pay", "pay", "{}").await;
    assert!(told.is_replay() && told.essence() == first[0].essence(), "the database is not needed: {told:?}");
    assert_eq!(two.post("/pay", "fresh", "{}").await.slug(), "store-unavailable");
    assert_eq!(two.post("/search", "fresh", "{}").await.status, 201);
    for (key, effects) in [("pay", 1), ("search", 1), ("erased", 1)] {
        assert_eq!(upstream.effects(key), effects, "{key}");
    }
}

#[tokio::test]
async fn redis_is_emptied_and_killed_under_load_and_no_strict_key_runs_twice_or_is_refused() {
    let (postgres, mut redis, upstream) = (database().await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let start = async || Arc::new(Start::before(&upstream).config(&config(&postgres, &redis)).start().await);
    let gateways = [start().await, start().await];
    let [one, two] = gateways.clone();
    let load = Load::start(CLIENTS, move |client, number| {
        let (one, two) = (Arc::clone(&one), Arc::clone(&two));
        async move {
            let key = format!("{client}-{number}");
            let first = one.post("/pay", &key, "{}").await;
            let again = two.post("/pay", &key, "{}").await;
            assert_eq!((first.status, first.is_replay()), (201, false), "{first:?}");
            assert!(again.is_replay() && again.essence() == first.essence(), "{again:?}");
            key
        }
    });
    load.more(50).await;
    redis.command(&["FLUSHALL"]).unwrap();
    load.more(50).await;
    redis.kill().unwrap();
    load.more(50).await;
    redis.start_again().unwrap();
    let shown = metric(&gateways[1].metrics().await, SHOWN);
    until("hints again", async || metric(&gateways[1].metrics().await, SHOWN) > shown).await;
    let keys = load.end().await;
    for key in &keys {
        assert_eq!(upstream.effects(key), 1, "{key}");
    }
    assert!(keys.len() >= 150, "{}", keys.len());
}

#[tokio::test]
async fn a_reload_that_moves_a_routes_records_elsewhere_warns_that_its_keys_begin_anew() {
    let (postgres, redis, upstream) = (database().await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let gateway = Start::before(&upstream).config(&config(&postgres, &redis)).start().await;
    let text = std::fs::read_to_string(gateway.start.config_file()).unwrap();
    for path in ["/pay", "/search"] {
        assert_eq!(gateway.post(path, "key", "{}").await.status, 201);
    }
    let applied = "onceward_config_reloads_total{result=\"applied\"}";
    let reloaded = async |text: &str, count: f64| {
        std::fs::write(gateway.start.config_file(), text).unwrap();
        gateway.hang_up();
        until("a reload", async || {
            let metrics = gateway.metrics().await;
            metrics.contains(applied) && metric(&metrics, applied) >= count
        })
        .await;
    };
    reloaded(&text.replace("[[route]]\nname = \"pay\"", "[[route]]\nname = \"pay\"\nretention = \"25h\""), 1.0).await;
    assert!(!gateway.log().contains("another durability"), "{}", gateway.log());
    reloaded(&text.replace("durability = \"cache\"", "durability = \"strict\""), 2.0).await;
    let log = gateway.says("another durability").await;
    let warned: Vec<&str> = log.lines().filter(|line| line.contains("another durability")).collect();
    let [line] = warned[..] else { panic!("one route has moved: {warned:?}") };
    assert!(
        ["WARN", "route=\"search\"", "cache", "strict", "begin anew"].iter().all(|word| line.contains(word)),
        "{line}"
    );
    // It says what is so.
    assert!(!gateway.post("/search", "key", "{}").await.is_replay());
    assert!(gateway.post("/pay", "key", "{}").await.is_replay());
}
