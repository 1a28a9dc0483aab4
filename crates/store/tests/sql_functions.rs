//! The SQL functions on a real server: ids, rights, waits, and what cannot be committed. What they decide is held to
//! `onceward-core` by `sql_differential.rs`.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod sql;

use servers::Postgres;
use tokio_postgres::{Client, Error, NoTls};

/// The SQLSTATE of a refusal.
fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.expect_err("it is refused");
    error.code().unwrap_or_else(|| panic!("{error}")).code().to_owned()
}

/// A record id for a test, as SQL.
fn key(name: &str) -> String {
    format!("onceward.record_id('default', 'default', 'anonymous', 'pay', '{name}')")
}

fn claim(name: &str, mode: &str) -> String {
    format!("select outcome, fence, body from onceward.claim({}, sha256('request'), '{mode}')", key(name))
}

/// Claims; outcome and fence.
async fn claimed(client: &Client, name: &str, mode: &str) -> Result<(String, i64), Error> {
    client.query_one(&claim(name, mode), &[]).await.map(|row| (row.get(0), row.get(1)))
}

fn complete(name: &str, fence: i64) -> String {
    format!("select onceward.complete({}, {fence}, 201, '[[\"content-type\", \"text/plain\"]]', 'paid')", key(name))
}

/// Ends once the session waits for a lock.
async fn waits(looking: &Client, pid: i32) {
    let waits = "select cardinality(pg_blocking_pids($1)) > 0";
    while !looking.query_one(waits, &[&pid]).await.unwrap().get::<_, bool>(0) {
        tokio::task::yield_now().await;
    }
}

async fn pid(client: &Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

async fn connect_as(server: &Postgres, user: &str, password: &str) -> Client {
    let url = format!("postgresql://{user}:{password}@127.0.0.1:{}/shop", server.port());
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn record_ids_and_child_keys_are_those_of_the_vectors() {
    let server = sql::server().await;
    let client = sql::connect(&server).await;
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../docs/vectors/record-ids.json")).unwrap();
    let text = |value: &serde_json::Value, name: &str| value[name].as_str().unwrap().to_owned();
    let ids = vectors["record_ids"].as_array().unwrap();
    assert!(ids.len() >= 8);
    for vector in ids {
        let [tenant, env, principal, route, key, id] =
            ["tenant", "env", "principal", "route", "key", "id"].map(|name| text(vector, name));
        let made = "select onceward.record_text(id), onceward.record_id(onceward.record_text(id)) = id, \
                    (get_byte(id, 0) * 256 + get_byte(id, 1)) % 256 \
                    from onceward.record_id($1, $2, $3, $4, $5) id";
        let row = client.query_one(made, &[&tenant, &env, &principal, &route, &key]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), id);
        assert!(row.get::<_, bool>(1), "its text reads back");
        assert_eq!(format!("p{:03}", row.get::<_, i32>(2)), text(vector, "partition"));
    }
    for vector in vectors["child_keys"].as_array().unwrap() {
        let [parent, step, child] = ["parent", "step", "child"].map(|name| text(vector, name));
        let row = client.query_one("select onceward.child_key($1, $2)", &[&parent, &step]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), child);
    }
    for wrong in ["", "short", "!Kc J3IXiJHabZiu6uvB7XO5FekyaCPp-INTrvKFnz_8"] {
        assert_eq!(code(client.query_one("select onceward.record_id($1)", &[&wrong]).await), "22023");
    }
    client.batch_execute("delete from onceward.secret").await.unwrap();
    assert_eq!(code(client.query_one(&format!("select {}", key("a")), &[]).await), "55000", "without the secret");
}

#[tokio::test]
async fn an_application_claims_and_reads_nothing_else_and_settling_is_the_operators() {
    let server = sql::server().await;
    let owner = sql::connect(&server).await;
    owner
        .batch_execute(
            "create role shop login password 'shop' in role onceward_app;
             create role desk login password 'desk' in role onceward_operator;
             create role other login password 'other';",
        )
        .await
        .unwrap();
    let app = connect_as(&server, "shop", "shop").await;
    // What it makes under the names of ours stands behind them.
    app.batch_execute(
        "create temp table record (id bytea); create temp table secret (bytes bytea);
         create function pg_temp.now_us() returns bigint language sql as 'select 7::bigint';
         create function pg_temp.sha256(bytea) returns bytea language sql as $$ select ''::bytea $$;
         set search_path = pg_temp, onceward, pg_catalog;",
    )
    .await
    .unwrap();
    let (outcome, fence) = claimed(&app, "a", "lease").await.unwrap();
    assert_eq!(outcome, "granted");
    assert!(fence > 1_000_000_000_000_000, "the time is the schema's own");
    for refused in [
        "select * from onceward.secret",
        "select * from onceward.record",
        "update onceward.record set state = 3",
        "select onceward.now_us()",
        "select onceward.hmac('', '')",
        "select onceward.removed(null)",
        &format!("select onceward.resolve({}, 1, 'failed')", key("a")),
        &format!("select onceward.forget({})", key("a")),
        "select onceward.grant_roles()",
    ] {
        assert_eq!(code(app.query(refused, &[]).await), "42501", "{refused}");
    }
    app.query_one(&complete("a", fence), &[]).await.unwrap();
    assert_eq!(claimed(&app, "a", "tx").await.unwrap().0, "replay");

    let desk = connect_as(&server, "desk", "desk").await;
    assert_eq!(code(claimed(&desk, "b", "lease").await), "42501");
    let forgotten = desk.query_one(&format!("select onceward.forget({}, 'reuse')", key("a")), &[]).await.unwrap();
    assert_eq!(forgotten.get::<_, &str>(0), "freed");
    let other = connect_as(&server, "other", "other").await;
    assert_eq!(code(other.query(&format!("select {}", key("a")), &[]).await), "42501");
}

#[tokio::test]
async fn who_may_not_create_roles_migrates_all_the_same_and_roles_can_come_later() {
    let server = Postgres::start(&[]).unwrap();
    server.psql("postgres", "create role plain login password 'plain'").unwrap();
    server.psql("postgres", "create database shop owner plain").unwrap();
    let plain = connect_as(&server, "plain", "plain").await;
    sql::migrated(&format!("postgresql://plain:plain@127.0.0.1:{}/shop", server.port())).await;
    let granted = plain.query_one("select onceward.grant_roles()", &[]).await.unwrap();
    assert!(granted.get::<_, Vec<String>>(0).is_empty(), "there are none");
    server.psql("shop", "create role onceward_app nologin").unwrap();
    let granted = plain.query_one("select onceward.grant_roles()", &[]).await.unwrap();
    assert_eq!(granted.get::<_, Vec<String>>(0), ["onceward_app"]);
}

#[tokio::test]
async fn a_duplicate_waits_for_the_transaction_then_replays_or_runs_or_is_told_to_come_back() {
    let server = sql::server().await;
    let (one, other, looking) = (sql::connect(&server).await, sql::connect(&server).await, sql::connect(&server).await);
    let other_pid = pid(&other).await;

    // Committed: the answer, although the waiting statement began before it was there.
    one.batch_execute("begin").await.unwrap();
    let (_, fence) = claimed(&one, "a", "tx").await.unwrap();
    one.query_one(&complete("a", fence), &[]).await.unwrap();
    let query = claim("a", "tx");
    let (row, ()) = tokio::join!(other.query_one(&query, &[]), async {
        waits(&looking, other_pid).await;
        one.batch_execute("commit").await.unwrap();
    });
    let row = row.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("replay", fence));
    assert_eq!(row.get::<_, &[u8]>(2), b"paid");

    // Rolled back: it runs.
    one.batch_execute("begin").await.unwrap();
    claimed(&one, "b", "tx").await.unwrap();
    other.batch_execute("begin").await.unwrap();
    let (granted, ()) = tokio::join!(claimed(&other, "b", "tx"), async {
        waits(&looking, other_pid).await;
        one.batch_execute("rollback").await.unwrap();
    });
    assert_eq!(granted.unwrap().0, "granted");

    // Neither: it is told to come back, and the session's own lock_timeout is as it was.
    one.batch_execute("set onceward.wait_ms = 30; set lock_timeout = '1h'").await.unwrap();
    assert_eq!(code(claimed(&one, "b", "tx").await), "55P03");
    assert_eq!(code(claimed(&one, "b", "lease").await), "55P03");
    let set: String = one.query_one("show lock_timeout", &[]).await.unwrap().get(0);
    assert_eq!(set, "1h");
    other.batch_execute("rollback").await.unwrap();

    // In the stricter levels a conflict is the caller's to repeat.
    for level in ["repeatable read", "serializable"] {
        one.batch_execute("begin").await.unwrap();
        let (_, fence) = claimed(&one, level, "tx").await.unwrap();
        one.query_one(&complete(level, fence), &[]).await.unwrap();
        other.batch_execute(&format!("begin isolation level {level}")).await.unwrap();
        let (refused, ()) = tokio::join!(claimed(&other, level, "tx"), async {
            waits(&looking, other_pid).await;
            one.batch_execute("commit").await.unwrap();
        });
        assert_eq!(code(refused), "40001", "{level}");
        other.batch_execute(&format!("rollback; begin isolation level {level}")).await.unwrap();
        assert_eq!(claimed(&other, level, "tx").await.unwrap().0, "replay");
        other.batch_execute("commit").await.unwrap();

        // A release since the snapshot has raised the mark that the snapshot does not show.
        let freed = format!("{level} freed");
        other.batch_execute(&format!("begin isolation level {level}; select 1 from pg_class limit 1")).await.unwrap();
        let (_, fence) = claimed(&one, &freed, "lease").await.unwrap();
        one.query_one(&format!("select onceward.release({}, {fence})", key(&freed)), &[]).await.unwrap();
        assert_eq!(code(claimed(&other, &freed, "tx").await), "40001", "{level}");
        other.batch_execute("rollback").await.unwrap();
    }
}

#[tokio::test]
async fn what_a_savepoint_took_back_or_nobody_settled_cannot_be_committed() {
    let server = sql::server().await;
    let client = sql::connect(&server).await;
    client
        .batch_execute(
            "create table payment (id bytea, amount int);
             create table ledger (id bytea, amount int); select onceward.guard_table('ledger', 'id');",
        )
        .await
        .unwrap();
    let behind_a_savepoint = async |name: &str| {
        client.batch_execute("begin; savepoint here").await.unwrap();
        let (_, fence) = claimed(&client, name, "tx").await.unwrap();
        client.batch_execute("rollback to here").await.unwrap();
        fence
    };

    // complete raises, and so the transaction cannot be committed.
    let fence = behind_a_savepoint("a").await;
    client.batch_execute(&format!("insert into payment values ({}, 1)", key("a"))).await.unwrap();
    assert_eq!(code(client.query_one(&complete("a", fence), &[]).await), "ID003");
    assert_eq!(code(client.batch_execute("commit; select 1/0").await), "22012", "it ends as a rollback");

    // A guarded table refuses the COMMIT of whoever does not even call complete.
    behind_a_savepoint("b").await;
    client.batch_execute(&format!("insert into ledger values ({}, 1)", key("b"))).await.unwrap();
    assert_eq!(code(client.batch_execute("commit").await), "ID003");

    // And that of whoever writes under a claim of another transaction.
    let (_, fence) = claimed(&client, "c", "lease").await.unwrap();
    let insert = format!("insert into ledger values ({}, 1)", key("c"));
    assert_eq!(code(client.batch_execute(&insert).await), "ID003");
    client
        .batch_execute(&format!("begin; select onceward.assert_fence({}, {fence}); {insert}; commit", key("c")))
        .await
        .unwrap();

    // A claim in mode tx that nobody settled does not stay.
    client.batch_execute("begin").await.unwrap();
    claimed(&client, "d", "tx").await.unwrap();
    client.batch_execute(&format!("insert into payment values ({}, 1)", key("d"))).await.unwrap();
    assert_eq!(code(client.batch_execute("commit").await), "ID003");
    assert_eq!(code(claimed(&client, "d", "tx").await), "ID003", "nor one outside of a transaction");

    let rows = client.query("select amount from payment union all select amount from ledger", &[]).await.unwrap();
    assert_eq!(rows.len(), 1, "only what was written under its claim");
    for (table, column) in [("payment", "nothing"), ("payment", "amount")] {
        let guard = format!("select onceward.guard_table('{table}', '{column}')");
        assert_eq!(code(client.query(&guard, &[]).await), "42703");
    }
}

#[tokio::test]
async fn a_holder_that_was_overtaken_commits_nothing_and_a_takeover_waits_for_one_that_was_not() {
    let server = sql::server().await;
    let (one, other, looking) = (sql::connect(&server).await, sql::connect(&server).await, sql::connect(&server).await);
    let other_pid = pid(&other).await;
    let held = |name: &str, fence: i64| format!("select onceward.assert_fence({}, {fence})", key(name));
    let short = |name: &str| {
        format!(
            "select outcome, fence, attempt from onceward.claim({}, sha256('request'), 'lease', lease => '0', two_phase => true)",
            key(name)
        )
    };
    let fence: i64 = one.query_one(&short("a"), &[]).await.unwrap().get(1);
    one.batch_execute("begin").await.unwrap();
    one.query_one(&held("a", fence), &[]).await.unwrap();
    let query = short("a");
    let (row, ()) = tokio::join!(other.query_one(&query, &[]), async {
        waits(&looking, other_pid).await;
        one.batch_execute("commit").await.unwrap();
    });
    let row = row.unwrap();
    assert_eq!((row.get(0), row.get(2)), ("granted", 2_i64), "the lease was over, and nothing sent");
    assert_eq!(code(one.query_one(&held("a", fence), &[]).await), "ID001");
    assert_eq!(code(one.query_one(&complete("a", fence), &[]).await), "ID003");
    one.query_one(&complete("a", row.get(1)), &[]).await.unwrap();
}

#[tokio::test]
async fn an_effect_is_made_once_and_never_after_somebody_looked_for_it() {
    let server = sql::server().await;
    let (one, other, looking) = (sql::connect(&server).await, sql::connect(&server).await, sql::connect(&server).await);
    let other_pid = pid(&other).await;
    let effect = |name: &str, fence: i64| format!("select onceward.effect({}, {fence})", key(name));
    let probe = |name: &str, fence: i64| format!("select onceward.probe_effect({}, {fence})", key(name));
    let is =
        async |client: &Client, query: String| client.query_one(&query, &[]).await.map(|row| row.get::<_, bool>(0));

    assert!(is(&one, effect("a", 10)).await.unwrap());
    assert!(!is(&one, effect("a", 10)).await.unwrap(), "a repetition");
    assert!(!is(&one, effect("a", 12)).await.unwrap(), "nor a later attempt");
    assert_eq!(code(is(&one, effect("a", 11)).await), "ID001", "an earlier attempt, late");
    assert!(is(&one, probe("a", 20)).await.unwrap());

    // The effect is on its way: whoever looks waits, and sees it.
    one.batch_execute("begin").await.unwrap();
    assert!(is(&one, effect("b", 10)).await.unwrap());
    let (seen, ()) = tokio::join!(is(&other, probe("b", 11)), async {
        waits(&looking, other_pid).await;
        one.batch_execute("commit").await.unwrap();
    });
    assert!(seen.unwrap());

    // It was looked for and was not there: it never will be.
    assert!(!is(&other, probe("c", 11)).await.unwrap());
    assert_eq!(code(is(&one, effect("c", 10)).await), "ID001");

    // The first answer that was written down with it is the one that is found.
    for status in [201, 409] {
        let answer = format!("[[\"Location\",\"/{status}\"]]");
        let call = format!("select onceward.effect({}, 10, 'done', {status}, '{answer}', 'paid')", key("e"));
        one.query_one(&call, &[]).await.unwrap();
    }
    let look = format!(
        "select made, status, onceward.unpacked(headers)::text, body from onceward.look({}, 11, 'done')",
        key("e")
    );
    let found = one.query_one(&look, &[]).await.unwrap();
    let answer: (bool, i32, &str, &[u8]) = (found.get(0), found.get(1), found.get(2), found.get(3));
    assert_eq!(answer, (true, 201, "[[\"location\", \"/201\"]]", b"paid".as_slice()));

    // A record in this database that was taken over needs no probe.
    let (_, fence) = claimed(&one, "d", "lease").await.unwrap();
    assert!(is(&one, effect("d", fence)).await.unwrap());
    assert_eq!(code(is(&one, effect("d", fence - 1)).await), "ID001");

    let message = format!("select onceward.outbox({}, {fence}, 'paid', 'ten')", key("d"));
    let ids = [one.query_one(&message, &[]).await.unwrap(), one.query_one(&message, &[]).await.unwrap()];
    assert_eq!(ids[0].get::<_, Vec<u8>>(0), ids[1].get::<_, Vec<u8>>(0));
    assert_eq!(one.query("select 1 from onceward.outbox", &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_answered_is_durable_whatever_the_session_says() {
    let server = sql::server().await;
    let client = sql::connect(&server).await;
    client.batch_execute("set synchronous_commit = off").await.unwrap();
    let (_, fence) = claimed(&client, "k", "lease").await.unwrap();
    let probe = format!("select onceward.probe_effect({}, {fence})", key("k"));
    for call in [claim("other", "lease"), complete("k", fence), probe] {
        client.batch_execute(&format!("begin; {call}")).await.unwrap();
        let row = client.query_one("select current_setting('synchronous_commit')", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "on", "{call}");
        client.batch_execute("commit").await.unwrap();
    }
}

#[tokio::test]
async fn whoever_names_no_fence_holds_nothing() {
    let server = sql::server().await;
    let client = sql::connect(&server).await;
    claimed(&client, "held", "lease").await.unwrap();
    let short = format!("select onceward.claim({}, sha256('request'), 'lease', '0 s')", key("unknown"));
    client.batch_execute(&short).await.unwrap();
    let all = "select string_agg(r::text, ' ' order by id) from onceward.record r";
    let before: String = client.query_one(all, &[]).await.unwrap().get(0);
    let (held, unknown) = (key("held"), key("unknown"));
    for (call, state) in [
        (format!("complete({held}, null, 200)"), "ID003"),
        (format!("fail({held}, null)"), "ID003"),
        (format!("fail({held}, null, 'retryable')"), "ID003"),
        (format!("release({held}, null)"), "ID003"),
        (format!("renew({held}, null)"), "ID003"),
        (format!("checkpoint({held}, null, 1, 'one')"), "ID003"),
        (format!("dispatched({held}, null)"), "ID003"),
        (format!("assert_fence({held}, null)"), "ID001"),
        (format!("resolve({unknown}, null, 'failed')"), "ID001"),
        (format!("effect({held}, null)"), "22023"),
        (format!("probe_effect({held}, null)"), "22023"),
    ] {
        assert_eq!(code(client.query(&format!("select onceward.{call}"), &[]).await), state, "{call}");
    }
    assert_eq!(client.query_one(all, &[]).await.unwrap().get::<_, String>(0), before);
}

#[tokio::test]
async fn wrong_arguments_are_refused_in_words_and_nothing_is_written() {
    let server = sql::server().await;
    let client = sql::connect(&server).await;
    let id = key("a");
    for (wrong, state) in [
        ("select onceward.claim('short', sha256('r'))".to_owned(), "22023"),
        (format!("select onceward.claim({id}, 'short')"), "22023"),
        (format!("select onceward.claim({id}, sha256('r'), 'auto')"), "22023"),
        (format!("select onceward.claim({id}, sha256('r'), lease => '-1 s')"), "22023"),
        (format!("select onceward.claim({id}, sha256('r'), claim_id => 'x')"), "22023"),
        (format!("select onceward.claim({id}, sha256('r'), on_unknown => null)"), "22004"),
        (format!("select onceward.complete({id}, 1, 20)"), "22023"),
        (format!("select onceward.complete({id}, 1, 200, '{{\"a\": 1}}')"), "22023"),
        (format!("select onceward.complete({id}, 1, 200, '[[\"a\"]]')"), "22023"),
        (format!("select onceward.complete({id}, 1, 200)"), "ID003"),
        (format!("select onceward.fail({id}, 1, 'perhaps')"), "22023"),
        (format!("select onceward.renew({id}, 1)"), "ID003"),
        (format!("select onceward.resolve({id}, 1, 'executed')"), "22023"),
        (format!("select onceward.resolve({id}, 1, 'not_executed')"), "ID003"),
        (format!("select onceward.forget({id}, 'burn')"), "22023"),
        (format!("select onceward.effect({id}, 1, '')"), "22023"),
        (format!("select onceward.outbox({id}, 1, '', '')"), "22023"),
        ("select onceward.record_id('t', 'e', null, 'r', 'k')".to_owned(), "22004"),
    ] {
        let said = client.query(&wrong, &[]).await;
        if let Err(error) = &said {
            assert!(error.as_db_error().is_some_and(|error| !error.message().is_empty()), "{wrong}");
        }
        assert_eq!(code(said), state, "{wrong}");
    }
    for table in ["record", "effect", "outbox"] {
        assert!(client.query(&format!("select 1 from onceward.{table}"), &[]).await.unwrap().is_empty(), "{table}");
    }
    assert!(client.query(&format!("select 1 from onceward.get({id})"), &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn old_effects_go_a_batch_at_a_time_and_never_those_of_a_record_that_is_there() {
    let server = sql::server().await;
    let client = sql::connect(&server).await;
    let number = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    let left = "select count(distinct record_id) from onceward.effect";
    let (_, fence) = claimed(&client, "open", "lease").await.unwrap();
    client.query_one(&format!("select onceward.effect({}, {fence})", key("open")), &[]).await.unwrap();
    for name in ["old 1", "old 2", "old 3", "late", "looked for", "undo"] {
        client.query_one(&format!("select onceward.effect({}, 1, 'first')", key(name)), &[]).await.unwrap();
        client.query_one(&format!("select onceward.effect({}, 1)", key(name)), &[]).await.unwrap();
    }
    client
        .batch_execute(&format!(
            "update onceward.effect set written_at = 1;
             update onceward.effect set written_at = onceward.now_us() where record_id = {} and name = 'done';
             select onceward.probe_effect({}, onceward.now_us());
             insert into onceward.compensation (record_id, name, seq, fence, kind, target, payload, state, registered_at, done_at)
                 select {undo}, 'waits', 1, 1, 'sql', 'a.b', '1'::jsonb, 'stuck', 1, 0
                 union all select {undo}, 'over', 2, 1, 'sql', 'a.b', '1', 'done', 1, 1",
            key("late"),
            key("looked for"),
            undo = key("undo")
        ))
        .await
        .unwrap();
    assert_eq!(number(left).await, 7);
    assert_eq!(number("select onceward.prune_effects(batch => 2)").await, 3, "two records, and a compensation");
    assert_eq!(number("select onceward.prune_effects(batch => 2)").await, 1);
    assert_eq!(number("select onceward.prune_effects(batch => 2)").await, 0);
    let names = format!("select count(*) from onceward.effect where record_id in ({}, {})", key("old 1"), key("old 2"));
    assert_eq!((number(left).await, number(&names).await), (4, 0), "open, late, looked for, undo");
    assert_eq!(number("select count(*) from onceward.compensation").await, 1, "the one that waits");
    assert_eq!(code(client.query("select onceward.prune_effects('1 hour')", &[]).await), "22023");
}
