//! The store in Postgres from outside: several gateways on one database, what they refuse, what is left when one dies.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use servers::{PgBouncer, Postgres, Redis, postgres::PASSWORD};

use super::redis_fallback::with_fallback_over;
use super::redis_outages::forgets_for_both;
use super::support::{Gate, Start, Step, Upstream, charged, metric, onceward, output, post, soon, until};

const BODY: &str = "{\"amount\":5}";

fn secret(of: u8) -> String {
    STANDARD.encode([of; 32])
}

fn config(url: &str, listen: &str, more: &str) -> String {
    let bare = |url: &str| url.replace(&format!(":{PASSWORD}@"), "@");
    let (secret, url, listen) = (secret(7), bare(url), bare(listen));
    format!(
        "[identity]\nsecret = \"{secret}\"\n[store]\nkind = \"postgres\"\ndeadline = \"5s\"\n\
         postgres = {{ url = \"{url}\", listen_url = \"{listen}\", password = \"{PASSWORD}\", connections = 1, tls = \"off\" }}\n\
         [defaults]\n{more}"
    )
}

/// A database with the schema, as an operator makes it.
pub(super) async fn database() -> Postgres {
    database_with(&[]).await
}

/// The same on a server with these settings.
pub(super) async fn database_with(settings: &[(&str, &str)]) -> Postgres {
    let server = Postgres::start(settings).unwrap();
    server.create_database("keys").unwrap();
    migrate(&server, &[]).await;
    server
}

async fn migrate(server: &Postgres, more: &[&str]) -> String {
    let mut command = onceward();
    command.args(["migrate", "--database", &server.url("keys")]).args(more);
    let done = output(command).await;
    let (out, err) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert!(done.status.success(), "{out}{err}");
    out
}

fn before(upstream: &Upstream, server: &Postgres, more: &str) -> Start {
    let url = server.url("keys");
    Start::before(upstream).config(&config(&url, &url, more))
}

// contract: store.kind, store.postgres.url, store.postgres.listen_url, store.postgres.password
// contract: store.postgres.connections, store.postgres.tls
#[tokio::test]
async fn two_gateways_on_one_database_are_one_for_a_key_also_behind_a_pooler() {
    let server = database().await;
    let bouncer = PgBouncer::start(&server, &[]).unwrap();
    let gate = Gate::shut();
    let upstream = Upstream::start({
        let gate = gate.clone();
        move |request, count| {
            let wait = if request.key() == "k-2" { vec![Step::Until(gate.clone())] } else { vec![] };
            wait.into_iter().chain([Step::Send(charged(count))]).collect()
        }
    })
    .await;
    let one = before(&upstream, &server, "").start().await;
    let pooled = config(&bouncer.url("keys"), &server.url("keys"), "");
    let two = Start::before(&upstream).config(&pooled).start().await;

    let first = one.post("/pay", "k-1", BODY).await;
    let again = two.post("/pay", "k-1", BODY).await;
    assert!(first.status == 201 && !first.is_replay() && again.is_replay(), "{first:?} {again:?}");
    assert_eq!(first.text(), again.text());
    assert_eq!(two.post("/pay", "k-1", "{\"amount\":6}").await.slug(), "key-reused");

    // While one executes it, the other waits, and gets the answer.
    let mut asking = one.connect().await;
    asking.send(post("/pay", "k-2", BODY)).await;
    upstream.reached("k-2", 1).await;
    let mut waiting = two.connect().await;
    waiting.send(post("/pay", "k-2", BODY)).await;
    until("a waiter", || async {
        server.psql("keys", "SELECT count(*) FROM onceward.waiter").is_ok_and(|count| count == "1")
    })
    .await;
    gate.open();
    let (first, waited) = (asking.answer().await, waiting.answer().await);
    assert!(first.status == 201 && waited.is_replay(), "{first:?} {waited:?}");
    assert_eq!((upstream.effects("k-1"), upstream.effects("k-2")), (1, 1));
    assert!(metric(&one.metrics().await, "onceward_circuit_state{store=\"postgres\"}") < 0.5);
    assert_eq!(two.records().await.len(), 2, "each sees all");
}

#[tokio::test]
async fn what_a_killed_gateway_left_in_doubt_is_in_doubt_for_the_others() {
    let (server, upstream) = (database().await, Upstream::charging().await);
    let lease = "lease = \"1s\"\nin_flight = { wait = \"20s\" }\n";
    let mut dies = before(&upstream, &server, lease).failpoint("complete.begin:hit=1:abort").start().await;
    let lives = before(&upstream, &server, lease).start().await;
    let mut client = dies.connect().await;
    client.send(post("/pay", "k-1", BODY)).await;
    assert!(client.try_answer().await.is_err());
    assert!(!dies.ended().await.success());
    // It waits for the holder, whose lease ends with nobody there.
    let again = lives.post("/pay", "k-1", BODY).await;
    assert_eq!((again.status, again.slug().as_str()), (409, "outcome-unknown"), "{again:?}");
    assert_eq!(upstream.effects("k-1"), 1);
}

#[tokio::test]
async fn a_database_that_is_killed_refuses_claims_and_answers_from_what_it_holds_once_it_is_back() {
    let (mut server, upstream) = (database().await, Upstream::charging().await);
    let gateway = before(&upstream, &server, "").start().await;
    assert_eq!(gateway.post("/pay", "k-1", BODY).await.status, 201);
    server.kill().unwrap();
    let refused = gateway.post("/pay", "k-2", BODY).await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "store-unavailable"), "{refused:?}");
    assert_eq!(upstream.effects("k-2"), 0);
    let remembered = gateway.post("/pay", "k-1", BODY).await;
    assert!(remembered.is_replay(), "{remembered:?}");
    assert_eq!(remembered.header("idempotency-status"), Some("remembered"));
    server.start_again().unwrap();
    until("the database", || async {
        let replay = gateway.post("/pay", "k-1", BODY).await;
        assert!(replay.is_replay(), "{replay:?}");
        replay.header("idempotency-status").is_none()
    })
    .await;
    assert_eq!(gateway.post("/pay", "k-2", BODY).await.status, 201);
    assert_eq!((upstream.effects("k-1"), upstream.effects("k-2")), (1, 1));
}

#[tokio::test]
async fn what_one_gateway_forgets_no_other_shows_while_the_database_is_gone() {
    let (mut server, upstream) = (database().await, Upstream::charging().await);
    let (one, two) = (before(&upstream, &server, "").start().await, before(&upstream, &server, "").start().await);
    forgets_for_both(&one, &two, || server.kill().unwrap()).await;
}

#[tokio::test]
async fn a_start_needs_the_schema_and_the_secret_that_the_records_were_made_with() {
    let upstream = Upstream::charging().await;
    let server = Postgres::start(&[]).unwrap();
    server.create_database("keys").unwrap();
    let (code, said) = before(&upstream, &server, "").refused().await;
    assert!(code == 1 && said.contains("run `onceward migrate` first"), "{code} {said}");
    let shown = migrate(&server, &["--dry-run"]).await;
    assert!(shown.contains("CREATE TABLE onceward.record"), "{shown}");
    let (_, said) = before(&upstream, &server, "").refused().await;
    assert!(said.contains("run `onceward migrate` first"), "a dry run changes nothing: {said}");
    assert!(migrate(&server, &["--secret", &secret(7)]).await.contains("applied 0001_tables"));
    assert!(migrate(&server, &[]).await.contains("up to date"));
    let kept = server.psql("keys", "SELECT encode(bytes, 'base64') FROM onceward.secret").unwrap();
    assert_eq!(kept, secret(7));

    drop(soon("a start", before(&upstream, &server, "").start()).await);
    let url = server.url("keys");
    let other = config(&url, &url, "").replace(&secret(7), &secret(8));
    let (code, said) = Start::before(&upstream).config(&other).refused().await;
    assert!(code == 1 && said.contains("another install secret") && !said.contains(&secret(7)), "{code} {said}");
    let both = other.replace("[store]", &format!("previous = \"{}\"\n[store]", secret(7)));
    drop(Start::before(&upstream).config(&both).start().await);
    // From then on the new one counts.
    drop(Start::before(&upstream).config(&other).start().await);

    let foreign = config(&url, &url, "").replace(PASSWORD, "wrong");
    let (_, said) = Start::before(&upstream).config(&foreign).refused().await;
    assert!(said.contains("SQLSTATE 28P01") && !said.contains("\"wrong\""), "{said}");
    let (code, said) = Start::before(&upstream).config("[store]\nkind = \"postgres\"\n").refused().await;
    assert!(code == 2 && said.contains("[identity]") && said.contains("[store.postgres]"), "{code} {said}");
}

// contract: store.postgres.tls, store.postgres.ca, store.fallback.tls, store.fallback.ca
#[tokio::test]
async fn the_server_is_spoken_to_over_tls_and_only_by_the_name_that_its_certificate_has() {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let server = Postgres::start_with_tls(&[], &own.cert.pem(), &own.signing_key.serialize_pem()).unwrap();
    server.create_database("keys").unwrap();
    migrate(&server, &[]).await;
    let upstream = Upstream::charging().await;
    let url = server.url("keys");
    let folder = tempfile::tempdir().unwrap();
    let start = |certificate: &rcgen::Certificate, name: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, certificate.pem()).unwrap();
        let tls = format!("tls = \"required\", ca = \"{}\"", file.display());
        Start::before(&upstream).config(&config(&url, &url, "").replace("tls = \"off\"", &tls))
    };
    let gateway = start(&own.cert, "own.pem").start().await;
    assert_eq!(gateway.post("/pay", "k-1", BODY).await.status, 201);
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'onceward' AND NOT ssl";
    let encrypted = plain.replace("AND NOT ssl", "AND ssl");
    assert_eq!(server.psql("keys", plain).unwrap(), "0");
    assert_ne!(server.psql("keys", &encrypted).unwrap(), "0");
    let (code, said) = start(&other.cert, "other.pem").refused().await;
    assert!(code == 1 && said.contains("certificate"), "{code} {said}");
    // The same of a fallback.
    let redis = Redis::start(&[]).unwrap();
    let start = |name: &str| {
        let tls = format!("tls = \"required\"\nca = \"{}\"", folder.path().join(name).display());
        Start::before(&upstream).config(&with_fallback_over(&redis, &server, &tls))
    };
    drop(start("own.pem").start().await);
    let (code, said) = start("other.pem").refused().await;
    assert!(code == 1 && said.contains("certificate"), "{code} {said}");
}

#[tokio::test]
async fn the_doctor_tells_what_is_not_well_and_how_to_mend_it() {
    let server = database().await;
    let folder = tempfile::tempdir().unwrap();
    let bouncer = PgBouncer::start(&server, &[]).unwrap();
    let look = async |url: &str, listen: &str| {
        let file = folder.path().join("onceward.toml");
        let upstream = "\n[[upstream]]\nname = \"api\"\nurl = \"http://127.0.0.1:9\"\n";
        std::fs::write(&file, config(url, listen, upstream)).unwrap();
        let mut command = onceward();
        command.args(["doctor", "--config"]).arg(&file);
        let done = output(command).await;
        (done.status.code(), String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap())
    };
    let url = server.url("keys");
    let (code, said) = look(&url, &url).await;
    assert!(code == Some(1) && said.contains("BAD  fsync: "), "the tests' server does not sync: {said}");
    for well in ["connection", "version", "role", "synchronous_commit", "schema", "isolation", "clock", "notifications"]
    {
        assert!(said.contains(&format!("ok   {well}: ")), "{well}: {said}");
    }
    assert!(said.contains("warn standbys: ") && said.contains("ok   secret: no gateway has been here"), "{said}");
    server.psql("keys", "INSERT INTO onceward.meta (name, value) VALUES ('secret_id', 'another')").unwrap();
    let (_, said) = look(&url, &url).await;
    assert!(said.contains("BAD  secret: ") && said.contains("another install secret"), "{said}");
    let (_, said) = look(&bouncer.url("keys"), &bouncer.url("keys")).await;
    assert!(
        said.contains("ok   schema") && said.contains("warn notifications: ") && said.contains("listen_url"),
        "{said}"
    );
    server.psql("keys", "DROP SCHEMA onceward CASCADE; ALTER DATABASE keys SET synchronous_commit = off").unwrap();
    let (code, said) = look(&url, &url).await;
    assert!(code == Some(1) && said.contains("BAD  schema: ") && said.contains("BAD  synchronous_commit: "), "{said}");
    assert!(said.contains("run `onceward migrate`"), "{said}");
}
