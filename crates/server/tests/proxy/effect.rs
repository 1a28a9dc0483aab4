//! `effect`: the upstream writes its effect down in the transaction that makes it, and an outcome that nobody knows is
//! looked up there, whatever store the records are in.

use std::sync::Arc;

use servers::{Postgres, postgres::PASSWORD};

use super::support::{Gate, Gateway, Received, Start, Step, Upstream, answer, onceward, output, post, until};

const BODY: &str = "{\"amount\":5}";
const PAID: &str = "{\"charge\":7}";

/// The upstream's database, which has the schema and a table of payments.
async fn books() -> Arc<Postgres> {
    let server = Postgres::start(&[]).unwrap();
    server.create_database("shop").unwrap();
    let mut command = onceward();
    command.args(["migrate", "--database", &server.url("shop")]);
    assert!(output(command).await.status.success());
    let tables = "CREATE TABLE payment (key text); CREATE ROLE looker LOGIN PASSWORD 'look' IN ROLE onceward_gateway";
    server.psql("shop", tables).unwrap();
    Arc::new(server)
}

/// What the upstream does with a request: one transaction. `answer` is what `onceward.effect` is given beside the name.
fn pays(server: &Postgres, request: &Received, answer: &str) -> Result<(), String> {
    let of = |name| request.header(name).unwrap();
    let (key, record, fence) = (request.key(), of("idempotency-record"), of("idempotency-fence"));
    let sql = format!(
        "BEGIN; INSERT INTO payment SELECT '{key}' WHERE onceward.effect(onceward.record_id('{record}'), {fence}, 'paid'{answer}); COMMIT"
    );
    server.psql("shop", &sql).map(drop).map_err(|error| format!("{error:#}"))
}

const ANSWER: &str = ", 201, '[[\"content-type\",\"application/json\"],[\"set-cookie\",\"a=b\"],[\"idempotent-replayed\",\"no\"],[\"x-part\",\"1\"]]', '{\"charge\":7}'";

fn payments(server: &Postgres, key: &str) -> String {
    server.psql("shop", &format!("SELECT count(*) FROM payment WHERE key = '{key}'")).unwrap()
}

/// The records in files, the effects in a database.
fn beside(server: &Postgres, list: &str) -> String {
    let url = server.url("shop").replace(&format!("postgres:{PASSWORD}"), "looker");
    format!(
        "[defaults]\non_unknown = [{list}]\neffect = {{ url = \"{url}\", password = \"look\", tls = \"off\", name = \"paid\" }}\n"
    )
}

/// The records in the same database.
fn within(server: &Postgres) -> String {
    let url = server.url("shop").replace(&format!("postgres:{PASSWORD}"), "looker");
    format!(
        "[identity]\nsecret = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n[store]\nkind = \"postgres\"\ndeadline = \"5s\"\n\
         postgres = {{ url = \"{url}\", password = \"look\", connections = 1, tls = \"off\" }}\n\
         [defaults]\nlease = \"1s\"\non_unknown = [\"effect\"]\neffect = {{ name = \"paid\" }}\n"
    )
}

async fn repeat(gateway: &Gateway, key: &str) -> super::support::Answer {
    gateway.post("/pay", key, BODY).await
}

// contract: outcome-unknown, route.effect.url, route.effect.password, route.effect.tls, route.effect.name
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_after_the_commit_answers_what_was_committed_with_the_effect() {
    let server = books().await;
    for (key, config) in [("k-1", beside(&server, "\"effect\"")), ("k-2", within(&server))] {
        let app = Arc::clone(&server);
        let upstream = Upstream::start(move |request, _| {
            pays(&app, request, ANSWER).unwrap();
            vec![answer(201, &[("Content-Type", "application/json")], PAID).into()]
        })
        .await;
        let mut gateway =
            Start::before(&upstream).config(&config).failpoint("complete.begin:hit=1:abort").start().await;
        let mut client = gateway.connect().await;
        client.send(post("/pay", key, BODY)).await;
        assert!(client.try_answer().await.is_err());
        assert!(!gateway.ended().await.success());
        assert_eq!(payments(&server, key), "1");
        let gateway = gateway.restart().await;
        until("it to be settled", async || repeat(&gateway, key).await.status != 409).await;
        let settled = repeat(&gateway, key).await;
        assert_eq!((settled.status, settled.text().as_str(), settled.is_replay()), (201, PAID, true), "{settled:?}");
        let headers = ["content-type", "x-part", "set-cookie"].map(|name| settled.header(name));
        assert_eq!(headers, [Some("application/json"), Some("1"), None]);
        assert_eq!(settled.all("idempotent-replayed"), ["true"]);
        assert_eq!((upstream.effects(key), payments(&server, key).as_str()), (1, "1"));
        let metrics = gateway.metrics().await;
        let by = r#"onceward_unknown_outcomes_total{route="default",settled_by="effect"} 1"#;
        assert!(metrics.contains(by), "{metrics}");
        // By the request, or in the background, or both.
        let found = r#"onceward_probes_total{route="default",by="effect",found="executed"} "#;
        assert!(metrics.contains(found), "{metrics}");
        server.psql("shop", "TRUNCATE payment").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_before_the_commit_runs_it_again_and_the_late_commit_is_refused() {
    let server = books().await;
    for (at, config) in [beside(&server, "\"effect\""), within(&server)].into_iter().enumerate() {
        let (app, gate) = (Arc::clone(&server), Gate::shut());
        let paused = gate.clone();
        let upstream = Upstream::start(move |request, before| {
            if before < 2 {
                return vec![Step::Until(paused.clone()), Step::Close];
            }
            pays(&app, request, ANSWER).unwrap();
            vec![answer(201, &[("Content-Type", "application/json")], PAID).into()]
        })
        .await;
        let key = format!("k-{at}");
        let mut gateway = Start::before(&upstream).config(&config).start().await;
        let mut client = gateway.connect().await;
        client.send(post("/pay", &key, BODY)).await;
        upstream.reached(&key, 1).await;
        let first = upstream.last();
        gateway.kill().await;
        let gateway = gateway.restart().await;
        let mut client = gateway.connect().await;
        client.send(post("/pay", &key, BODY)).await;
        upstream.reached(&key, 2).await;
        assert_eq!(upstream.last().header("idempotency-attempt"), Some("2"));
        // The first one wakes up, before the second has done anything.
        let late = pays(&server, &first, ANSWER).unwrap_err();
        assert!(late.contains("overtaken"), "{late}");
        gate.open();
        assert_eq!(client.answer().await.status, 502, "the second did nothing, and broke off");
        until("the third", async || repeat(&gateway, &key).await.status == 201).await;
        assert_eq!(server.psql("shop", "SELECT count(*) FROM payment").unwrap(), "1");
        assert!(repeat(&gateway, &key).await.is_replay());
        server.psql("shop", "TRUNCATE payment").unwrap();
    }
}

// contract: route.effect.timeout, route.effect.ca
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_says_nothing_and_the_list_goes_on() {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut server = Postgres::start_with_tls(&[], &own.cert.pem(), &own.signing_key.serialize_pem()).unwrap();
    server.create_database("shop").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("shop.pem");
    std::fs::write(&authority, own.cert.pem()).unwrap();
    let mut command = onceward();
    command.args(["migrate", "--database", &server.url("shop")]);
    assert!(output(command).await.status.success());
    server.psql("shop", "CREATE ROLE looker LOGIN PASSWORD 'look' IN ROLE onceward_gateway").unwrap();
    let upstream = Upstream::start(|_, _| vec![Step::Close]).await;
    let config = beside(&server, "\"effect\", { hold = \"1h\" }, \"fail\"")
        .replace("tls = \"off\", name", &format!("ca = \"{}\", timeout = \"2s\", name", authority.display()));
    let gateway = Start::before(&upstream).config(&config).start().await;
    let broken = gateway.post("/pay", "k-1", BODY).await;
    assert_eq!((broken.status, broken.slug().as_str()), (502, "upstream-failed"));
    let record = upstream.last().header("idempotency-record").unwrap().to_owned();
    let fence = upstream.last().header("idempotency-fence").unwrap().to_owned();
    let effect = format!("SELECT onceward.effect(onceward.record_id('{record}'), {fence}, 'paid')");
    server.kill().unwrap();
    let refused = repeat(&gateway, "k-1").await;
    assert_eq!((refused.status, refused.slug().as_str()), (409, "outcome-unknown"), "{refused:?}");
    server.start_again().unwrap();
    server.psql("shop", &effect).unwrap();
    until("it to be settled", async || repeat(&gateway, "k-1").await.status == 200).await;
    let settled = repeat(&gateway, "k-1").await;
    assert_eq!((settled.body.len(), settled.is_replay(), upstream.effects("k-1")), (0, true, 1));
}
