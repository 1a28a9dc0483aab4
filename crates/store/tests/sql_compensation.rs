//! Compensation on a real server: when it is due, that it takes effect once and in reverse, who may register what.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod sql;

use std::{
    collections::BTreeMap,
    error::Error as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use onceward_core::{
    key::RecordId,
    transition::{self, Resolution},
};
use onceward_store::{
    Store as _, Write,
    postgres::{
        Options, Postgres as Opened,
        address::Address,
        compensation::{Call, Caller, Calling, Compensated, Rules},
    },
};
use servers::Postgres;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::{Client, Error, NoTls};

/// The shop: what was undone, in which order and as whom.
const SHOP: &str = "
    create schema shop;
    create role stock nologin;
    grant usage on schema shop to stock, public;
    create table shop.undone (at bigserial, record bytea not null, key text not null, what text not null, by text not null);
    grant insert, select on shop.undone to stock;
    grant usage on sequence shop.undone_at_seq to stock;
    create function shop.undo(record_id bytea, key text, payload jsonb) returns void
        language sql security definer set search_path = shop, pg_catalog, pg_temp
        as $$ insert into undone (record, key, what, by) values ($1, $2, $3->>'what', current_user) $$;
    alter function shop.undo owner to stock;
    select onceward.allow_compensation('shop.undo');
    create role app login password 'app' in role onceward_app;
    create role desk login password 'desk' in role onceward_operator;";

async fn shop() -> (Postgres, Client) {
    let server = sql::server().await;
    let owner = sql::connect(&server).await;
    owner.batch_execute(SHOP).await.unwrap();
    (server, owner)
}

async fn connect_as(server: &Postgres, user: &str) -> Client {
    let url = format!("postgresql://{user}:{user}@127.0.0.1:{}/shop", server.port());
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn opened(server: &Postgres) -> Opened {
    Opened::open(Options::new(Address::new(&server.url("shop"), None, None).unwrap())).await.unwrap()
}

/// Without pauses: what fails is due again at once.
fn rules() -> Rules {
    let mut rules = Rules::default();
    rules.pause = Duration::ZERO;
    rules
}

fn done(count: u64) -> Compensated {
    let mut done = Compensated::default();
    done.done = count;
    done
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.expect_err("it is refused");
    error.code().unwrap_or_else(|| panic!("{error}: {:?}", error.source())).code().to_owned()
}

fn key(name: &str) -> String {
    format!("onceward.record_id('default', 'default', 'anonymous', 'order', '{name}')")
}

async fn claimed(client: &Client, name: &str, lease: &str) -> i64 {
    let claim = format!("select fence from onceward.claim({}, sha256('order'), 'lease', '{lease}')", key(name));
    client.query_one(&claim, &[]).await.unwrap().get(0)
}

fn with(name: &str, fence: i64, what: &str, target: &str) -> String {
    let payload = format!("{{\"what\": \"{what}\"}}");
    format!("select onceward.compensate_with({}, {fence}, '{what}', '{target}', '{payload}')", key(name))
}

/// Registers one for each.
async fn registered(client: &Client, name: &str, fence: i64, steps: &[&str]) {
    for what in steps {
        assert!(client.query_one(&with(name, fence, what, "shop.undo"), &[]).await.unwrap().get::<_, bool>(0));
    }
}

/// What was undone, in order.
async fn undone(client: &Client, name: &str) -> String {
    let all =
        format!("select coalesce(string_agg(what, ' ' order by at), '') from shop.undone where record = {}", key(name));
    client.query_one(&all, &[]).await.unwrap().get(0)
}

async fn states(client: &Client, name: &str) -> String {
    let all = format!(
        "select string_agg(name || ' ' || state, ', ' order by seq) from onceward.compensation where record_id = {}",
        key(name)
    );
    client.query_one(&all, &[]).await.unwrap().get(0)
}

async fn resolve(client: &Client, name: &str, fence: i64, verdict: &str) {
    client.query_one(&format!("select onceward.resolve({}, {fence}, {verdict})", key(name)), &[]).await.unwrap();
}

#[tokio::test]
async fn what_failed_is_undone_once_in_reverse_and_what_was_completed_or_is_unknown_is_left_alone() {
    let (server, client) = shop().await;
    let store = opened(&server).await;
    let steps = ["reserve", "charge", "ship"];

    let fence = claimed(&client, "failed", "1 min").await;
    registered(&client, "failed", fence, &steps).await;
    let again = client.query_one(&with("failed", fence, "charge", "shop.undo"), &[]).await.unwrap();
    assert!(!again.get::<_, bool>(0), "the same name is the same compensation");
    let unknown = claimed(&client, "unknown", "0 s").await;
    registered(&client, "unknown", unknown, &steps).await;
    let other = claimed(&client, "completed", "0 s").await;
    registered(&client, "completed", other, &steps).await;
    let released = claimed(&client, "released", "1 min").await;
    registered(&client, "released", released, &["reserve"]).await;
    // One is in flight, two are unknown.
    assert_eq!(store.compensate(&rules(), None).await.unwrap(), Compensated::default());

    // What the attempt before registered is undone with the rest.
    let first = claimed(&client, "taken over", "0 s").await;
    registered(&client, "taken over", first, &["reserve"]).await;
    let again = "select fence from onceward.claim({}, sha256('order'), 'lease', '1 min', on_unknown => '{retry}')";
    let second: i64 = client.query_one(&again.replacen("{}", &key("taken over"), 1), &[]).await.unwrap().get(0);
    assert_eq!(states(&client, "taken over").await, "reserve registered");
    registered(&client, "taken over", second, &["charge"]).await;
    client.query_one(&format!("select onceward.fail({}, {second})", key("taken over")), &[]).await.unwrap();
    assert_eq!(store.compensate(&rules(), None).await.unwrap(), done(2));
    assert_eq!(undone(&client, "taken over").await, "charge reserve");

    client.query_one(&format!("select onceward.fail({}, {fence})", key("failed")), &[]).await.unwrap();
    client.query_one(&format!("select onceward.release({}, {released})", key("released")), &[]).await.unwrap();
    // Forgotten before anybody came to undo it.
    client.query_one(&format!("select onceward.forget({}, 'reuse')", key("failed")), &[]).await.unwrap();
    resolve(&client, "completed", other, "'executed', 200").await;
    assert_eq!(store.compensate(&rules(), None).await.unwrap(), done(3));
    assert_eq!(store.compensate(&rules(), None).await.unwrap(), Compensated::default(), "once");
    assert_eq!(undone(&client, "failed").await, "ship charge reserve");
    assert_eq!(states(&client, "completed").await, "reserve dropped, charge dropped, ship dropped");
    assert_eq!(undone(&client, "completed").await, "");
    let row = client.query_one("select distinct key, by from shop.undone where what = 'ship'", &[]).await.unwrap();
    let text = client.query_one(&format!("select onceward.record_text({})", key("failed")), &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), onceward_core::key::child_key(text.get(0), "compensate/ship"));
    assert_eq!(row.get::<_, &str>(1), "stock", "the function's owner, not who runs it");

    // The store's own step settles as the functions do.
    let id: Vec<u8> = client.query_one(&format!("select {}", key("unknown")), &[]).await.unwrap().get(0);
    let id = RecordId(id.try_into().unwrap());
    let read = store.get(id).await.unwrap();
    let failed =
        transition::resolve(&read.record.unwrap(), Resolution::Failed(None), "", Duration::ZERO, read.now).unwrap();
    assert!(matches!(store.replace(id, &failed).await.unwrap(), Write::Applied { .. }));
    // Its record is at its end at once, and swept.
    while store.sweep(100, Duration::ZERO).await.unwrap().more {}
    assert_eq!(store.compensate(&rules(), None).await.unwrap(), done(3));
    assert_eq!(undone(&client, "unknown").await, "ship charge reserve");

    // Nobody will ever decide about this one: it is shown, and an operator does.
    let held = "select record, name from onceward.compensations('held')";
    let held = client.query(held, &[]).await.unwrap();
    assert_eq!((held.len(), held[0].get::<_, &str>(1)), (1, "reserve"));
    client
        .query_one(&format!("select onceward.compensation_again({}, 'reserve')", key("released")), &[])
        .await
        .unwrap();
    assert_eq!(store.compensate(&rules(), None).await.unwrap(), done(1));

    // A key that is new again, and completed before: what was dropped then can be registered anew, what was run cannot.
    let forgotten = |name: &str| format!("select onceward.forget({}, 'reuse')", key(name));
    client.query_one(&forgotten("completed"), &[]).await.unwrap();
    let fence = claimed(&client, "completed", "1 min").await;
    registered(&client, "completed", fence, &["charge"]).await;
    assert_eq!(states(&client, "completed").await, "reserve dropped, ship dropped, charge registered");
    let fence = claimed(&client, "failed", "1 min").await;
    assert_eq!(code(client.query(&with("failed", fence, "charge", "shop.undo"), &[]).await), "55000");
}

#[tokio::test]
async fn only_the_holder_registers_and_whoever_settles_meanwhile_meets_it() {
    let (server, client) = shop().await;
    let other = sql::connect(&server).await;
    let fence = claimed(&client, "a", "0 s").await;
    for fence in [fence - 1, fence + 1] {
        assert_eq!(code(client.query(&with("a", fence, "x", "shop.undo"), &[]).await), "ID001");
    }
    assert_eq!(code(client.query(&with("nobody", 1, "x", "shop.undo"), &[]).await), "ID001");
    // Not with an effect that is rolled back.
    client.batch_execute("begin").await.unwrap();
    client.query_one(&with("a", fence, "x", "shop.undo"), &[]).await.unwrap();
    client.batch_execute("rollback").await.unwrap();
    // Somebody settles on a snapshot that is older than the registration.
    other.batch_execute("begin isolation level repeatable read; select 1").await.unwrap();
    client.query_one(&with("a", fence, "x", "shop.undo"), &[]).await.unwrap();
    let resolve = format!("select onceward.resolve({}, {fence}, 'failed')", key("a"));
    assert_eq!(code(other.query_one(&resolve, &[]).await), "40001");
    other.batch_execute("rollback").await.unwrap();
    other.query_one(&resolve, &[]).await.unwrap();
    assert_eq!(states(&client, "a").await, "x due");
    assert_eq!(code(client.query(&with("a", fence, "y", "shop.undo"), &[]).await), "ID001", "it is settled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_workers_that_are_killed_and_cancelled_undo_each_effect_once_and_in_reverse() {
    const RECORDS: usize = 12;
    const FAULTS: u32 = 12;
    let (server, client) = shop().await;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Takes a moment until there were faults enough, so that it is met on its way.
    client
        .batch_execute(
            "create table shop.calm ();
             create function shop.slow(record_id bytea, key text, payload jsonb) returns void
                 language plpgsql security definer set search_path = shop, pg_catalog, pg_temp
                 as $$ begin
                     perform pg_sleep(0.2) where not exists (select from shop.calm);
                     insert into undone (record, key, what, by) values ($1, $2, $3->>'what', '');
                     perform pg_sleep(0.2) where not exists (select from shop.calm);
                 end $$;
             select onceward.allow_compensation('shop.slow');",
        )
        .await
        .unwrap();
    let names: Vec<String> = (0..RECORDS).map(|at| format!("order {at}")).collect();
    for name in &names {
        let fence = claimed(&client, name, "1 min").await;
        for what in ["a", "b", "c"] {
            client.query_one(&with(name, fence, what, "shop.slow"), &[]).await.unwrap();
        }
        client.query_one(&format!("select onceward.fail({}, {fence})", key(name)), &[]).await.unwrap();
    }
    let is_left = async || {
        let left = "select exists (select from onceward.compensation where state <> 'done')";
        client.query_one(left, &[]).await.unwrap().get::<_, bool>(0)
    };
    let (mut killed, mut cancelled) = (0_u32, 0_u32);
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let url = server.url("shop");
            tokio::spawn(async move {
                let mut rules = rules();
                rules.attempts_max = i32::MAX;
                loop {
                    let store = Opened::open(Options::new(Address::new(&url, None, None).unwrap())).await.unwrap();
                    // An error is a worker that was killed: another one comes.
                    while store.compensate(&rules, None).await.is_ok() {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    while killed + cancelled < FAULTS && is_left().await {
        let what = if random.bool() { "pg_terminate_backend" } else { "pg_cancel_backend" };
        let hit = format!(
            "select {what}(pid) from pg_stat_activity
             where state = 'active' and query like '%SELECT onceward.compensate(%' and pid <> pg_backend_pid()
             order by random() limit 1"
        );
        if !client.query(&hit, &[]).await.unwrap().is_empty() {
            if what == "pg_cancel_backend" { cancelled += 1 } else { killed += 1 }
        }
        // Somewhere within a run.
        tokio::time::sleep(Duration::from_millis(random.u64(1..100))).await;
    }
    client.batch_execute("insert into shop.calm default values").await.unwrap();
    while is_left().await {}
    for worker in workers {
        worker.abort();
        assert!(worker.await.is_err_and(|error| error.is_cancelled()), "a worker failed");
    }
    println!("{killed} killed, {cancelled} cancelled");
    assert_eq!(killed + cancelled, FAULTS, "seed {seed}: the faults did not happen");
    for name in &names {
        assert_eq!(undone(&client, name).await, "c b a", "seed {seed}: {name}");
    }
}

#[tokio::test]
async fn one_that_keeps_failing_is_run_again_after_longer_pauses_then_an_operator_decides_and_the_others_wait() {
    let (server, client) = shop().await;
    let store = opened(&server).await;
    client
        .batch_execute(
            "create table shop.once (what text unique deferrable initially deferred);
             insert into shop.once values ('taken');
             create function shop.fails(record_id bytea, key text, payload jsonb) returns void
                 language plpgsql security definer set search_path = shop, pg_catalog, pg_temp
                 as $$ begin
                     insert into undone (record, key, what, by) values ($1, $2, 'half', '');
                     case $3->>'what'
                         when 'late' then insert into once values ('taken');
                         when 'hangs' then perform pg_sleep(600);
                         else raise exception 'no stock' using detail = 'a secret';
                     end case;
                 end $$;
             select onceward.allow_compensation('shop.fails');",
        )
        .await
        .unwrap();
    let fence = claimed(&client, "a", "1 min").await;
    registered(&client, "a", fence, &["first"]).await;
    client.query_one(&with("a", fence, "raises", "shop.fails"), &[]).await.unwrap();
    registered(&client, "a", fence, &["last"]).await;
    client.query_one(&format!("select onceward.fail({}, {fence})", key("a")), &[]).await.unwrap();
    let mut rules = Rules::default();
    rules.attempts_max = 5;
    rules.pause = Duration::from_secs(60);
    rules.pause_max = Duration::from_secs(300);
    let mut pauses = Vec::new();
    for attempt in 1..=5 {
        let mut wanted = Compensated::default();
        wanted.done = u64::from(attempt == 1);
        *(if attempt == 5 { &mut wanted.stuck } else { &mut wanted.failed }) = 1;
        assert_eq!(store.compensate(&rules, None).await.unwrap(), wanted, "attempt {attempt}");
        assert_eq!(store.compensate(&rules, None).await.unwrap(), Compensated::default(), "its pause is not over");
        let one =
            "select not_before - attempted_at, attempts, last_error from onceward.compensation where name = 'raises'";
        let row = client.query_one(one, &[]).await.unwrap();
        pauses.push(row.get::<_, i64>(0) / 1_000_000);
        assert_eq!((row.get::<_, i32>(1), row.get::<_, &str>(2)), (attempt, "no stock (SQLSTATE P0001)"));
        client.batch_execute("update onceward.compensation set not_before = 0").await.unwrap();
    }
    assert_eq!(pauses, [60, 120, 240, 300, 300]);
    assert_eq!(states(&client, "a").await, "first due, raises stuck, last done");
    assert_eq!(undone(&client, "a").await, "last", "what a failed run had done is undone, and those before it wait");

    let desk = connect_as(&server, "desk").await;
    let stuck = desk.query("select name, attempts, last_error from onceward.compensations()", &[]).await.unwrap();
    assert_eq!((stuck.len(), stuck[0].get::<_, &str>(0), stuck[0].get::<_, i32>(1)), (1, "raises", 5));
    let again = format!("select onceward.compensation_again({}, 'raises')", key("a"));
    desk.query_one(&again, &[]).await.unwrap();
    assert_eq!(code(desk.query_one(&again, &[]).await), "55000", "it is due");
    // An error is heard before the transaction's locks are gone.
    desk.batch_execute("").await.unwrap();
    rules.attempts_max = 1;
    assert_eq!(store.compensate(&rules, None).await.unwrap().stuck, 1);
    let settled = format!("select onceward.compensation_settled({}, 'raises', 'by hand')", key("a"));
    desk.query_one(&settled, &[]).await.unwrap();
    assert_eq!(store.compensate(&rules, None).await.unwrap(), done(1));
    assert_eq!(undone(&client, "a").await, "last first");
    assert_eq!(states(&client, "a").await, "first done, raises settled, last done");
    assert_eq!(code(desk.query_one(&settled, &[]).await), "55000");
    assert_eq!(code(desk.query_one(&settled.replace("raises", "nothing"), &[]).await), "22023");

    // What would fail at COMMIT, and what does not end, are failures like others.
    for (name, said) in [("late", "(SQLSTATE 23505)"), ("hangs", "(SQLSTATE 57014)")] {
        let fence = claimed(&client, name, "1 min").await;
        client.query_one(&with(name, fence, name, "shop.fails"), &[]).await.unwrap();
        client.query_one(&format!("select onceward.fail({}, {fence})", key(name)), &[]).await.unwrap();
        let run = client.simple_query("set statement_timeout = 500; select onceward.compensate()").await;
        run.unwrap();
        client.batch_execute("reset statement_timeout").await.unwrap();
        let one = "select state, attempts, last_error from onceward.compensation where name = $1";
        let row = client.query_one(one, &[&name]).await.unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), ("due", 1), "{name}");
        assert!(row.get::<_, &str>(2).ends_with(said), "{name}: {}", row.get::<_, &str>(2));
        assert_eq!(undone(&client, name).await, "");
    }
}

#[tokio::test]
async fn what_is_registered_runs_with_nobodys_rights_but_its_owners_and_only_what_an_operator_allowed() {
    let (server, owner) = shop().await;
    let store = opened(&server).await;
    let (app, desk) = (connect_as(&server, "app").await, connect_as(&server, "desk").await);
    owner
        .batch_execute(
            "create table shop.vault (secret text); insert into shop.vault values ('all of it');
             create schema app authorization app; create schema own authorization stock;
             create function shop.guarded(bytea, text, jsonb) returns void language sql security definer
                 set search_path = shop, pg_catalog, pg_temp as $$ select $$;
             revoke all on function shop.guarded from public;
             create function shop.two(bytea, text) returns void language sql security definer
                 set search_path = shop, pg_catalog, pg_temp as $$ select $$;
             select onceward.allow_compensation('shop.guarded');",
        )
        .await
        .unwrap();
    app.batch_execute(
        "create function app.mine(bytea, text, jsonb) returns void language sql security definer
             set search_path = pg_catalog, pg_temp as $$ select $$;
         create function app.invoker(bytea, text, jsonb) returns void language sql
             set search_path = pg_catalog, pg_temp as $$ select $$;
         create function app.loose(bytea, text, jsonb) returns void language sql security definer as $$ select $$;",
    )
    .await
    .unwrap();
    // An application decides nothing of this, and sees nothing.
    for refused in [
        "select * from onceward.compensation",
        "select onceward.allow_compensation('app.mine')",
        "select onceward.compensate()",
        "select * from onceward.compensations()",
        "select onceward.compensation_take('{}', '1 s', 1)",
        "select onceward.compensation_told('', '', 1, null, 1, '1 s', '1 s')",
        &format!("select onceward.compensation_again({}, 'x')", key("a")),
    ] {
        assert_eq!(code(app.query(refused, &[]).await), "42501", "{refused}");
    }
    let fence = claimed(&app, "a", "1 min").await;
    for refused in [
        "app.mine", // not allowed
        "mine",     // without its schema
        "app.invoker",
        "app.loose",
        "shop.guarded", // allowed, and not to the one who registers it
        "shop.two",
        "shop.nothing",
        "shop.undo(bytea, text)",
        "pg_catalog.pg_sleep; drop table x",
        "file:///etc/passwd",
        "ftp://shop.example/undo",
        "https://user:pass@shop.example/undo",
        "https://shop.example/undo#now",
        "https://shop.example/a/../admin",
        "https://shop.example/a/%2e%2E/admin",
        "https://shop.example/a b",
        "https://",
        "",
    ] {
        assert_eq!(code(app.query(&with("a", fence, "x", refused), &[]).await), "22023", "{refused}");
    }
    for refused in ["app.invoker", "app.loose", "shop.nothing"] {
        let allow = format!("select onceward.allow_compensation('{refused}')");
        assert_eq!(code(desk.query(&allow, &[]).await), "22023", "{refused}");
    }
    let allow = "select onceward.allow_compensation('app.mine(bytea, text, jsonb)')";
    assert_eq!(desk.query_one(allow, &[]).await.unwrap().get::<_, &str>(0), "app.mine");
    app.query_one(&with("a", fence, "mine", "app.mine"), &[]).await.unwrap();
    registered(&app, "a", fence, &["undo"]).await;
    app.query_one(&format!("select onceward.fail({}, {fence})", key("a")), &[]).await.unwrap();

    // Whoever registered it makes another function of it: it sees no more than its owner does.
    app.batch_execute(
        "create or replace function app.mine(bytea, text, jsonb) returns void language plpgsql security definer
             set search_path = pg_catalog, pg_temp as $$ begin
                 reset role; perform secret from shop.vault; end $$",
    )
    .await
    .unwrap();
    let mut rules = rules();
    rules.attempts_max = 1;
    let last = async || {
        let one = "select last_error from onceward.compensation where name = 'mine'";
        owner.query_one(one, &[]).await.unwrap().get::<_, String>(0)
    };
    let again = format!("select onceward.compensation_again({}, 'mine')", key("a"));
    let before = store.compensate(&rules, None).await.unwrap();
    assert_eq!((before.done, before.stuck), (1, 1));
    assert!(last().await.contains("42501") || last().await.contains("security-definer"), "{}", last().await);
    // Or one that runs as whoever calls it, or gives it to somebody else: not run at all.
    for (change, said) in [
        (
            "create or replace function app.mine(bytea, text, jsonb) returns void language plpgsql security definer
                 set search_path = pg_catalog, pg_temp as $$ begin perform secret from shop.vault; end $$",
            "permission denied",
        ),
        ("alter function app.mine security invoker", "not SECURITY DEFINER"),
        ("alter function app.mine security definer; alter function app.mine reset all", "search_path"),
        ("drop function app.mine", "no function"),
    ] {
        app.batch_execute(change).await.unwrap();
        desk.query_one(&again, &[]).await.unwrap();
        assert_eq!(store.compensate(&rules, None).await.unwrap().stuck, 1, "{change}");
        assert!(last().await.contains(said), "{change}: {}", last().await);
    }
    owner.batch_execute("alter function shop.undo owner to postgres").await.unwrap();
    let fence = claimed(&app, "b", "1 min").await;
    assert_eq!(code(app.query(&with("b", fence, "x", "shop.undo"), &[]).await), "22023", "another owner");
    owner.batch_execute("select onceward.allow_compensation('shop.undo')").await.unwrap();
    registered(&app, "b", fence, &["undo"]).await;
    assert!(desk.query_one("select onceward.disallow_compensation('shop.undo')", &[]).await.unwrap().get::<_, bool>(0));
    app.query_one(&format!("select onceward.fail({}, {fence})", key("b")), &[]).await.unwrap();
    assert_eq!(store.compensate(&rules, None).await.unwrap().stuck, 1);
    assert_eq!(undone(&owner, "b").await, "");
}

/// A receiver that answers as it is told, one connection a call, and remembers what came.
#[derive(Debug, Default)]
struct Heard {
    answers: Mutex<Vec<Option<u16>>>,
    calls: Mutex<Vec<(String, String, String)>>,
}

async fn receiver(heard: Arc<Heard>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let (mut lines, mut head) = (Vec::new(), String::new());
            while stream.read_line(&mut head).await.unwrap() > 2 {
                lines.push(std::mem::take(&mut head));
            }
            let value = |name: &str| {
                let found = lines.iter().find_map(|line| line.strip_prefix(name));
                found.map(|value| value.trim().to_owned()).unwrap_or_default()
            };
            let mut body = vec![0; value("content-length:").parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let call = (lines[0].trim().to_owned(), value("idempotency-key:"), String::from_utf8(body).unwrap());
            heard.calls.lock().unwrap().push(call);
            let answer = heard.answers.lock().unwrap().pop();
            // Without one the connection ends: it may have been done.
            if let Some(Some(status)) = answer {
                let answer = format!("HTTP/1.1 {status} OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    url
}

/// As plain as can be: one call a connection.
#[derive(Debug)]
struct Http;

impl Caller for Http {
    fn call(&self, call: Call) -> Calling {
        Box::pin(async move {
            let (host, path) = call.url.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("a URL");
            let mut stream = TcpStream::connect(host).await?;
            let head = format!(
                "POST /{path} HTTP/1.1\r\nhost: {host}\r\nidempotency-key: {}\r\ncontent-length: {}\r\n\r\n{}",
                call.key,
                call.payload.len(),
                call.payload
            );
            stream.write_all(head.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let status = answer.get(9..12).ok_or("the connection ended without an answer")?;
            Ok(status.parse()?)
        })
    }
}

#[tokio::test]
async fn a_url_is_called_with_the_same_key_until_it_says_that_it_is_done() {
    let (server, client) = shop().await;
    let store = opened(&server).await;
    let heard = Arc::new(Heard::default());
    let url = receiver(Arc::clone(&heard)).await;
    let fence = claimed(&client, "a", "1 min").await;
    registered(&client, "a", fence, &["before"]).await;
    client.query_one(&with("a", fence, "refund", &format!("{url}/refunds/new?fast=1")), &[]).await.unwrap();
    client.query_one(&format!("select onceward.fail({}, {fence})", key("a")), &[]).await.unwrap();

    // Not listed: it is not called, and not counted either; what comes before it waits.
    let mut rules = rules();
    for urls in
        [vec![], vec!["http://elsewhere.example/".to_owned()], vec![url.clone()], vec![format!("{url}/refunds")]]
    {
        rules.urls = urls;
        assert_eq!(store.compensate(&rules, Some(&Http)).await.unwrap(), Compensated::default(), "{:?}", rules.urls);
    }
    assert!(heard.calls.lock().unwrap().is_empty());

    // It fails, breaks off, and a caller dies before it is answered.
    rules.urls = vec![format!("{url}/refunds/")];
    rules.runs_max = 1;
    *heard.answers.lock().unwrap() = vec![Some(200), None, Some(503)];
    for said in ["it answered 503", "the connection ended without an answer"] {
        assert_eq!(store.compensate(&rules, Some(&Http)).await.unwrap().failed, 1);
        let row =
            client.query_one("select last_error from onceward.compensation where kind = 'url'", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), said);
    }
    let take = "select attempt, key from onceward.compensation_take($1, '1 hour', 12)";
    let died = client.query_one(take, &[&rules.urls]).await.unwrap();
    assert_eq!(store.compensate(&rules, Some(&Http)).await.unwrap(), Compensated::default(), "it is another's");
    client.batch_execute("update onceward.compensation set not_before = 0 where kind = 'url'").await.unwrap();
    assert_eq!(store.compensate(&rules, Some(&Http)).await.unwrap(), done(1));
    let calls = heard.calls.lock().unwrap().clone();
    let all: BTreeMap<_, usize> = calls.iter().fold(BTreeMap::new(), |mut all, call| {
        *all.entry(call.clone()).or_default() += 1;
        all
    });
    let one = ("POST /refunds/new?fast=1 HTTP/1.1".to_owned(), died.get(1), "{\"what\": \"refund\"}".to_owned());
    assert_eq!(all, BTreeMap::from([(one, 3)]));
    // Whoever died was not dead, and says that it failed: it is done all the same.
    let late = format!(
        "select onceward.compensation_told({}, 'refund', {}, 'late', 12, '1 s', '1 s')",
        key("a"),
        died.get::<_, i32>(0)
    );
    assert_eq!(client.query_one(&late, &[]).await.unwrap().get::<_, &str>(0), "late");
    assert_eq!(store.compensate(&rules, Some(&Http)).await.unwrap(), done(1), "now the one before it");
    assert_eq!(states(&client, "a").await, "before done, refund done");

    // Callers that die each time end as stuck, too.
    let fence = claimed(&client, "b", "1 min").await;
    client.query_one(&with("b", fence, "refund", &format!("{url}/refunds/b")), &[]).await.unwrap();
    client.query_one(&format!("select onceward.fail({}, {fence})", key("b")), &[]).await.unwrap();
    for outcome in ["take", "take", "stuck"] {
        let take = "select outcome from onceward.compensation_take($1, '0', 2)";
        assert_eq!(client.query_one(take, &[&rules.urls]).await.unwrap().get::<_, &str>(0), outcome);
    }
    // A late word that it was done counts.
    let told = format!("select onceward.compensation_told({}, 'refund', 1, null, 12, '1 s', '1 s')", key("b"));
    assert_eq!(client.query_one(&told, &[]).await.unwrap().get::<_, &str>(0), "done");
}
