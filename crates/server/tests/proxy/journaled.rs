//! Routes with `durability = "journaled"` from outside: whatever becomes of Redis, of a gateway or of the database, no key
//! is executed again, and service resumes by itself.

use std::{sync::Arc, time::Duration};

use servers::{Postgres, Redis, Relay, postgres::PASSWORD};

use super::{
    load::Load,
    postgres::database_with,
    redis::{keys, secret},
    support::{Gateway, Start, Step, Upstream, answer as reply, metric, onceward, output, soon, until},
};

const CLIENTS: usize = 8;
/// A client waits so long before it asks again.
const AGAIN: Duration = Duration::from_millis(20);

const NO_FAILOVER: &str = "failover = \"none\", member_timeout = \"2s\"";

fn config(database: &Postgres, redis: &Redis) -> String {
    config_of(database, redis, NO_FAILOVER)
}

fn config_of(database: &Postgres, redis: &Redis, journal: &str) -> String {
    let (secret, of_redis) = (secret(7), redis.url());
    let of_database = database.url("keys").replace(&format!(":{PASSWORD}@"), "@");
    format!(
        "[identity]\nsecret = \"{secret}\"\n[store]\nkind = \"tiered\"\ndeadline = \"5s\"\n\
         breaker = {{ open = \"100ms\" }}\n\
         postgres = {{ url = \"{of_database}\", password = \"{PASSWORD}\", connections = 1, tls = \"off\" }}\n\
         redis = {{ url = \"{of_redis}\" }}\n\
         journal = {{ {journal} }}\n\
         [defaults]\ndurability = \"journaled\"\nscope = {{ env = \"fixed:test\" }}\n\
         [[route]]\nname = \"book\"\nmatch = {{ path = \"/book\" }}\ndurability = \"strict\"\n\
         [[route]]\nname = \"search\"\nmatch = {{ path = \"/search\" }}\ndurability = \"cache\"\n"
    )
}

/// Clients that ask for each key until it is answered, and then once more elsewhere: the keys.
fn clients_of(name: &'static str, gateways: &[&Arc<Gateway>]) -> Load<String> {
    let gateways: Vec<_> = gateways.iter().map(|gateway| Arc::clone(gateway)).collect();
    Load::start(CLIENTS, move |client, number| {
        let of = |number: usize| Arc::clone(&gateways[number % gateways.len()]);
        let (there, elsewhere) = (of(number), of(number + 1));
        async move {
            let key = format!("{name}-{client}-{number}");
            let first = answer(&there, &key).await;
            assert_eq!(answer(&elsewhere, &key).await, first, "{key}");
            key
        }
    })
}

/// It ends, and each key has had one effect: how many there were.
async fn judged(load: Load<String>, upstream: &Upstream) -> usize {
    let keys = load.end().await;
    for key in &keys {
        assert_eq!(upstream.effects(key), 1, "{key}");
    }
    keys.len()
}

/// What `onceward view status` says of the gateway's database.
async fn views(gateway: &Gateway, more: &[&str]) -> (Option<i32>, String) {
    view(gateway, "status", more).await
}

/// What a command of `onceward view` says.
async fn view(gateway: &Gateway, name: &str, more: &[&str]) -> (Option<i32>, String) {
    let mut command = onceward();
    command.args(["view", name, "--config"]).arg(gateway.start.config_file()).args(more);
    let done = output(command).await;
    (done.status.code(), String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap())
}

/// As a client does it: again, until it is answered.
async fn answer(gateway: &Gateway, key: &str) -> Vec<u8> {
    let asking = async {
        loop {
            let answer = gateway.post("/pay", key, "{}").await;
            match answer.status {
                201 => return answer.body,
                409 | 503 => tokio::time::sleep(AGAIN).await,
                other => panic!("{key}: {other} {answer:?}"),
            }
        }
    };
    soon("an answer", asking).await
}

// contract: route.durability, store.journal.failover, store.journal.member_timeout
#[tokio::test]
async fn a_journaled_route_keeps_its_answers_when_redis_is_emptied_and_leaves_the_others_where_they_are() {
    let (postgres, redis, upstream) =
        (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let start = async || Start::before(&upstream).config(&config(&postgres, &redis)).start().await;
    let (one, two) = (start().await, start().await);
    let ready = async |gateway: &Gateway| gateway.admin("GET", "/readyz", &[], "").await;
    for gateway in [&one, &two] {
        until("views", async || !ready(gateway).await.text().contains("journaled:")).await;
    }
    let mut first = Vec::new();
    for path in ["/pay", "/book", "/search"] {
        let answer = one.post(path, &path[1..], "{}").await;
        assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
        let again = two.post(path, &path[1..], "{}").await;
        assert!(again.is_replay() && again.essence() == answer.essence(), "{again:?}");
        assert_eq!(two.post(path, &path[1..], "{\"other\":1}").await.slug(), "key-reused");
        first.push(answer);
    }
    assert_eq!(one.records().await.len(), 3, "all are listed");
    // Asked of a gateway that runs, and by a process of its own.
    let elsewhere = tempfile::tempdir().unwrap();
    for folder in [&one.start.data(), elsewhere.path()] {
        let args = ["get", "--key", "pay", "--route", "default POST /pay", "--data", folder.to_str().unwrap()];
        let (code, said) = keys(&one, &args).await;
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(one.post("/pay", "erased", "{}").await.status, 201);
    let folder = elsewhere.path().to_str().unwrap();
    let args = ["forget", "--key", "erased", "--route", "default POST /pay", "--erase", "--data", folder];
    let (code, said) = keys(&one, &args).await;
    assert_eq!(code, Some(0), "{said}");
    for gateway in [&one, &two] {
        assert_eq!(gateway.post("/pay", "erased", "{}").await.slug(), "key-gone");
    }

    redis.command(&["FLUSHALL"]).unwrap();
    for (gateway, path) in [(&one, "pay"), (&two, "pay")] {
        assert_eq!(answer(gateway, path).await, first[0].body);
    }
    until("what was erased", async || two.post("/pay", "erased", "{}").await.slug() == "key-gone").await;
    answer(&one, "fresh").await;
    for (key, effects) in [("pay", 1), ("book", 1), ("erased", 1), ("fresh", 1)] {
        assert_eq!(upstream.effects(key), effects, "{key}");
    }
}

#[tokio::test]
async fn redis_the_database_and_a_gateway_are_killed_under_load_and_no_journaled_key_runs_twice() {
    let (mut postgres, mut redis, upstream) =
        (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let start = async |postgres, redis| Start::before(&upstream).config(&config(postgres, redis)).start().await;
    let stays = Arc::new(start(&postgres, &redis).await);
    let mut goes = start(&postgres, &redis).await;
    let load = clients_of("one", &[&stays]);
    load.more(50).await;
    redis.command(&["FLUSHALL"]).unwrap();
    load.more(50).await;
    redis.kill().unwrap();
    redis.start_again().unwrap();
    load.more(50).await;
    until("a warm Redis", async || !stays.admin("GET", "/readyz", &[], "").await.text().contains("journaled:")).await;
    postgres.kill().unwrap();
    // The database is not on the way.
    load.more(50).await;
    postgres.start_again().unwrap();
    load.more(50).await;
    let (code, said) = views(&stays, &[]).await;
    assert!(
        code == Some(0) && said.contains("256 in force, 0 not") && said.matches(" live, heard of ").count() == 2,
        "{said}"
    );
    // Gone with all that it had, it is retired while the Redis is there that granted to it.
    goes.kill().await;
    load.more(50).await;
    let members = "SELECT count(*) FROM onceward.journal_member WHERE status < 3";
    until("a retirement", async || postgres.psql("keys", members).unwrap().trim() == "1").await;
    let (_, said) = views(&stays, &["--json"]).await;
    let said: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(said["members"].as_array().unwrap().len(), 1, "{said}");
    redis.command(&["FLUSHALL"]).unwrap();
    load.more(50).await;
    let again = Arc::new(goes.restart().await);
    let both = clients_of("both", &[&stays, &again]);
    both.more(50).await;
    assert!(judged(load, &upstream).await >= 300);
    assert!(judged(both, &upstream).await >= 50);
}

#[tokio::test]
async fn an_operator_has_views_go_on_without_a_gateway_that_is_gone_with_its_redis_and_sees_what_is_at_risk() {
    let (postgres, redis, upstream) =
        (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let start = async || Start::before(&upstream).config(&config(&postgres, &redis)).start().await;
    let (stays, mut goes) = (start().await, start().await);
    for (gateway, key) in [(&stays, "before"), (&goes, "of-both")] {
        answer(gateway, key).await;
    }
    let shipped = "SELECT count(*) FROM onceward.journal WHERE rank > 2";
    until("shipments", async || postgres.psql("keys", shipped).unwrap().trim() == "2").await;
    goes.kill().await;
    redis.command(&["FLUSHALL"]).unwrap();
    let waited_for = async || {
        let (_, said) = views(&stays, &["--json"]).await;
        let said: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        let of = said["partitions"].as_array().unwrap().iter().flat_map(|view| view["waits_for"].as_array().unwrap());
        let mut all: Vec<_> = of.map(|session| session.as_str().unwrap().to_owned()).collect();
        all.sort();
        all.dedup();
        (all.len() == 1).then(|| all.remove(0))
    };
    until("views that wait", async || waited_for().await.is_some()).await;
    let gone = waited_for().await.unwrap();
    let force =
        async |session: &str, more: &[&str]| view(&stays, "force", &[&["--without", session], more].concat()).await;
    until("silence", async || !force(&gone, &[]).await.1.contains("was heard of")).await;
    let (code, said) = force(&gone, &[]).await;
    assert!(code == Some(1) && said.contains("nothing was changed. 256 partitions wait for"), "{code:?} {said}");
    let (code, said) = force("gone", &[]).await;
    assert!(code == Some(2) && said.contains("32 hexadecimal digits"), "{code:?} {said}");
    let (code, said) = force(&"0".repeat(32), &["--accept-risk"]).await;
    assert!(code == Some(1) && said.contains("no such session"), "{code:?} {said}");
    assert_eq!(stays.post("/pay", "fresh", "{}").await.slug(), "store-unavailable");
    assert_eq!(waited_for().await, Some(gone.clone()));

    let (code, said) = force(&gone, &["--accept-risk"]).await;
    assert!(code == Some(0) && said.contains("256 partitions go on without"), "{code:?} {said}");
    answer(&stays, "fresh").await;
    assert!(stays.post("/pay", "of-both", "{}").await.is_replay(), "the journal has what was shipped");
    assert_eq!(upstream.effects("of-both"), 1);
    let (_, said) = views(&stays, &[]).await;
    assert!(said.contains("256 in force, 0 not") && said.contains("256 partitions went on without"), "{said}");
    let listed = async |more: &[&str]| view(&stays, "at-risk", more).await;
    until("the key at risk", async || listed(&[]).await.1.matches("  completed  ").count() == 1).await;
    let (code, said) = listed(&["--json"]).await;
    let key: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert!(code == Some(0) && key["without"] == gone.as_str() && key["before"] == "not known", "{said}");
    let named = stays.records().await.into_iter().any(|record| record["record_id"] == key["record_id"]);
    assert!(named, "{said}");
}

// contract: route.on_store_outage
#[tokio::test]
async fn while_nobody_reaches_redis_journaled_keys_are_claimed_in_the_database_but_where_the_route_says_otherwise() {
    let (postgres, mut redis, upstream) =
        (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let refused = "[[route]]\nname = \"fast\"\nmatch = { path = \"/fast\" }\non_store_outage = \"deny\"\n";
    let config = format!("{}{refused}", config(&postgres, &redis));
    let start = async || Arc::new(Start::before(&upstream).config(&config).start().await);
    let (one, two, idle) = (start().await, start().await, start().await);
    let in_view = async |view: &str| {
        let name = format!("onceward_journal_partitions{{view=\"{view}\"}}");
        [metric(&one.metrics().await, &name), metric(&two.metrics().await, &name), metric(&idle.metrics().await, &name)]
    };
    until("warm views", async || in_view("redis").await == [256.0; 3]).await;
    let before = [("/pay", "before"), ("/fast", "fast-before")];
    for (path, key) in before {
        assert_eq!(one.post(path, key, "{}").await.status, 201);
    }
    let load = clients_of("load", &[&one, &two]);
    load.more(50).await;
    redis.kill().unwrap();
    until("views on the database", async || in_view("database").await == [256.0; 3]).await;
    load.more(100).await;
    let said = one.admin("GET", "/readyz", &[], "").await.text();
    assert!(said.contains("nobody reaches Redis for 256 of 256 partitions"), "{said}");
    let (code, said) = views(&one, &[]).await;
    let tells = |words: &str, times| said.matches(words).count() == times;
    assert!(
        code == Some(0)
            && tells("256 partitions are claimed in the database, since nobody reached Redis", 1)
            && tells("does not reach the Redis of 256 partitions", 3),
        "{said}"
    );
    for (path, key) in before {
        assert!(two.post(path, key, "{}").await.is_replay(), "{key}");
    }
    for _ in 0..20 {
        assert_eq!(idle.post("/fast", "fast-meanwhile", "{}").await.slug(), "store-unavailable");
    }
    assert_eq!(upstream.effects("fast-meanwhile"), 0);
    assert_eq!(idle.post("/pay", "at-once", "{}").await.status, 201, "what one route declines stops no other");
    assert_eq!(answer(&one, "meanwhile").await, answer(&two, "meanwhile").await);
    redis.start_again().unwrap();
    until("warm views on Redis", async || in_view("redis").await == [256.0; 3]).await;
    load.more(50).await;
    for key in ["before", "meanwhile"] {
        assert!(two.post("/pay", key, "{}").await.is_replay(), "{key}");
    }
    assert!(judged(load, &upstream).await >= 200);
    let told = one.says("claims go to Redis again").await;
    let once = |text: &str| assert_eq!(told.matches(text).count(), 1, "{text}: {told}");
    once("nobody reaches Redis: these partitions' claims go to the database");
    once("claims go to Redis again");
}

#[tokio::test]
async fn a_gateway_begins_without_redis_and_uses_it_once_it_is_there_and_the_right_one() {
    let (postgres, redis, upstream) =
        (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    // What is wrong at once stops a start all the same.
    let replica = redis.replica().unwrap();
    let wrong = config(&postgres, &redis).replace(&format!(":{}", redis.port()), &format!(":{}", replica.port()));
    let (code, said) = Start::before(&upstream).config(&wrong).refused().await;
    assert!(code == 1 && said.contains("replica"), "{code} {said}");

    let relay = Relay::start().unwrap();
    let text = config(&postgres, &redis).replace(&format!(":{}", redis.port()), &format!(":{}", relay.port()));
    let gateway = Start::before(&upstream).config(&text).start().await;
    let in_view =
        async |view: &str| metric(&gateway.metrics().await, &format!("onceward_journal_partitions{{view=\"{view}\"}}"));
    until("views on the database", async || in_view("database").await == 256.0).await;
    for path in ["/pay", "/book"] {
        assert_eq!(gateway.post(path, &path[1..], "{}").await.status, 201);
        assert!(gateway.post(path, &path[1..], "{}").await.is_replay(), "{path}");
    }
    assert_eq!(gateway.post("/search", "search", "{}").await.slug(), "store-unavailable");
    let ready = async || gateway.admin("GET", "/readyz", &[], "").await;
    assert_eq!(ready().await.status, 200);
    until("word of it", async || ready().await.text().contains("Redis is not used")).await;

    // Another installation's.
    let journal = ["HSET", "idemp:v1:meta", "journal", "another"];
    redis.command(&journal).unwrap();
    relay.leads_to(redis.port());
    until("word of it", async || ready().await.text().contains("stands in front of another journal")).await;
    assert_eq!(gateway.post("/search", "search", "{}").await.slug(), "store-unavailable");
    assert_eq!(gateway.post("/pay", "meanwhile", "{}").await.status, 201);
    assert_eq!(redis.command(&["KEYS", "idemp:v1:{*}*:v"]).unwrap().trim(), "", "no view is there");

    redis.command(&["HDEL", "idemp:v1:meta", "journal"]).unwrap();
    until("warm views on Redis", async || in_view("redis").await == 256.0).await;
    for path in ["/pay", "/book"] {
        assert!(gateway.post(path, &path[1..], "{}").await.is_replay(), "{path}");
    }
    assert!(gateway.post("/pay", "meanwhile", "{}").await.is_replay());
    until("routes in the cache", async || gateway.post("/search", "search", "{}").await.status == 201).await;
    for key in ["pay", "book", "search", "meanwhile"] {
        assert_eq!(upstream.effects(key), 1, "{key}");
    }
}

#[tokio::test]
async fn what_has_ended_leaves_the_journal_while_gateways_run() {
    let (postgres, redis, upstream) =
        (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let brief = "[[route]]\nname = \"brief\"\nmatch = { path = \"/brief\" }\nretention = \"1s\"\n\
                 client_retries = \"0s\"\nlease = \"100ms\"\ntimeout = \"500ms\"\nexecution_max = \"800ms\"\n\
                 in_flight = { wait = \"100ms\" }\n";
    let config = format!("{}{brief}", config(&postgres, &redis));
    let gateway = Start::before(&upstream).config(&config).start().await;
    until("warm views", async || {
        metric(&gateway.metrics().await, "onceward_journal_partitions{view=\"redis\"}") == 256.0
    })
    .await;
    assert_eq!(gateway.post("/pay", "stays", "{}").await.status, 201);
    for number in 0..20 {
        assert_eq!(gateway.post("/brief", &format!("brief-{number}"), "{}").await.status, 201);
    }
    let rows = || postgres.psql("keys", "SELECT count(*) FROM onceward.journal").unwrap().trim().to_owned();
    until("one row", async || rows() == "1").await;
    assert!(gateway.post("/pay", "stays", "{}").await.is_replay());
    let collected = metric(&gateway.metrics().await, "onceward_collected_records_total{reason=\"retention\"}");
    assert!(collected >= 20.0, "{collected}");
}

#[tokio::test]
async fn an_unknown_outcome_is_listed_as_one_at_once_although_the_journal_has_it_in_flight() {
    let (postgres, redis) = (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap());
    let upstream = Upstream::start(|_, _| vec![Step::Close]).await;
    let gateway = Start::before(&upstream).config(&config(&postgres, &redis)).start().await;
    until("a view", async || gateway.post("/pay", "key", "{}").await.status == 502).await;
    let records = gateway.records().await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["state"], "unknown", "{records:?}");
    redis.command(&["FLUSHALL"]).unwrap();
    until("its row", async || {
        let records = gateway.records().await;
        assert_eq!((records.len(), upstream.effects("key")), (1, 1), "{records:?}");
        records[0]["state"] == "unknown"
    })
    .await;
}

// contract: store.journal.spool
#[tokio::test]
async fn a_spool_that_is_full_refuses_new_keys_and_has_room_again_once_the_database_is_back() {
    const BODY_BYTES: usize = 900_000;
    let (mut postgres, redis) = (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap());
    let upstream = Upstream::start(|_, _| vec![Step::Send(reply(201, &[], vec![b'x'; BODY_BYTES]))]).await;
    let text = config_of(&postgres, &redis, &format!("{NO_FAILOVER}, spool = \"64MiB\""));
    let gateway = Start::before(&upstream).config(&text).start().await;
    until("a warm Redis", async || !gateway.admin("GET", "/readyz", &[], "").await.text().contains("journaled:")).await;
    postgres.kill().unwrap();
    let mut answered = Vec::new();
    let refused = loop {
        assert!(answered.len() < 100, "it is bounded");
        let key = format!("key-{}", answered.len());
        let answer = gateway.post("/pay", &key, "{}").await;
        if answer.status != 201 {
            break answer;
        }
        answered.push(key);
    };
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
    assert!(answered.len() * BODY_BYTES > 16 << 20, "{} answers", answered.len());
    let ready = gateway.admin("GET", "/readyz", &[], "").await;
    assert!(ready.status == 503 && ready.text().contains("the spool is full"), "{ready:?}");
    for key in &answered {
        assert!(gateway.post("/pay", key, "{}").await.is_replay(), "{key}");
    }
    postgres.start_again().unwrap();
    until("room", async || gateway.post("/pay", "fresh", "{}").await.status == 201).await;
    assert!(gateway.post("/pay", "fresh", "{}").await.is_replay());
}

// contract: store.journal.standbys
#[tokio::test]
async fn while_a_standby_that_may_take_over_is_away_nothing_is_claimed_and_readyz_says_so() {
    let (postgres, redis, upstream) =
        (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let text = config_of(&postgres, &redis, "failover = \"asynchronous\", standbys = [\"elsewhere\"]");
    let gateway = Start::before(&upstream).config(&text).start().await;
    assert_eq!(gateway.post("/pay", "key", "{}").await.slug(), "store-unavailable");
    assert_eq!(gateway.post("/book", "key", "{}").await.status, 201, "the others have nothing to do with it");
    let ready = gateway.admin("GET", "/readyz", &[], "").await;
    assert!(ready.status == 503 && ready.text().contains("256 of 256 partitions have no view"), "{ready:?}");
    assert_eq!(upstream.effects("key"), 1);
    let (code, said) = views(&gateway, &[]).await;
    assert!(code == Some(1) && said.contains("waits until the standbys know that it is a member"), "{said}");
}

#[tokio::test]
async fn the_doctor_tells_a_server_that_keeps_no_journal_and_a_redis_before_another_one() {
    let (sound, redis) = (database_with(&[("fsync", "on")]).await, Redis::start(&[]).unwrap());
    let (unsound, other, upstream) = (database_with(&[]).await, Redis::start(&[]).unwrap(), Upstream::charging().await);
    let without_cache = |database, redis| config(database, redis).replace("\"cache\"", "\"journaled\"");
    let folder = tempfile::tempdir().unwrap();
    let look = async |config: String| {
        let file = folder.path().join("onceward.toml");
        std::fs::write(&file, config + "[[upstream]]\nname = \"api\"\nurl = \"http://127.0.0.1:9\"\n").unwrap();
        let mut doctor = onceward();
        doctor.args(["doctor", "--config"]).arg(&file);
        let done = output(doctor).await;
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let (code, said) = look(without_cache(&unsound, &redis)).await;
    assert!(code == Some(1) && said.contains("BAD  journal: PostgreSQL: fsync is off"), "{said}");
    let config = without_cache(&sound, &redis);
    for text in [&config, &config.replace("\"none\"", "\"asynchronous\", standbys = [\"elsewhere\"]")] {
        let (code, said) = look(text.clone()).await;
        let grade =
            if *text == config { "ok   journal: PostgreSQL: " } else { "warn journal: PostgreSQL: the standbys" };
        assert!(code == Some(0) && said.contains(grade), "{said}");
        assert!(said.contains("ok   persistence: Redis: appendonly is off, and no key runs again"), "{said}");
    }
    let (code, said) = look(config.replace("\"none\"", "\"synchronous\"")).await;
    assert!(code == Some(1) && said.contains("BAD  journal: PostgreSQL: synchronous_standby_names"), "{said}");

    let _here = Start::before(&upstream).config(&config).start().await;
    let (code, said) = look(config).await;
    assert!(
        code == Some(0) && said.contains("ok   pairing: Redis stands in front of this database's journal"),
        "{said}"
    );
    let (code, said) = look(without_cache(&sound, &other)).await;
    assert!(code == Some(0) && !said.contains("stands in front"), "nobody has been there: {said}");
    let second = database_with(&[("fsync", "on")]).await;
    let _there = Start::before(&upstream).config(&without_cache(&second, &other)).start().await;
    let (code, said) = look(without_cache(&sound, &other)).await;
    assert!(code == Some(1) && said.contains("BAD  pairing: ") && said.contains("another journal"), "{said}");
}
