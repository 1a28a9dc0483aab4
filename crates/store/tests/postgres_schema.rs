//! The schema's migrations on a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use onceward_store::postgres::{
    address::Address,
    migrate::{MIGRATIONS, Migration, SchemaError, check, migrate},
};
use servers::{PgBouncer, Postgres};

fn address(url: &str) -> Address {
    Address::new(url, None, None).unwrap()
}

fn numbers(steps: &[&Migration]) -> Vec<i32> {
    steps.iter().map(|step| step.number).collect()
}

#[tokio::test]
async fn a_schema_is_made_once_by_however_many_at_a_time_and_what_differs_from_it_is_refused() {
    let server = Postgres::start(&[]).unwrap();
    server.create_database("shop").unwrap();
    let at = address(&server.url("shop"));
    let all: Vec<i32> = MIGRATIONS.iter().map(|step| step.number).collect();
    assert!(matches!(check(&at, MIGRATIONS).await, Err(SchemaError::Older(missing)) if missing.len() == all.len()));
    assert_eq!(numbers(&migrate(&at, MIGRATIONS, true).await.unwrap()), all, "a dry run says what it would do");
    assert_eq!(server.psql("shop", "SELECT count(*) FROM pg_namespace WHERE nspname = 'onceward'").unwrap(), "0");

    // Through a pooler as well: nothing of it lives longer than a transaction.
    let bouncer = PgBouncer::start(&server, &[]).unwrap();
    let pooled = address(&bouncer.url("shop"));
    let (one, two, three) = tokio::join!(
        migrate(&at, MIGRATIONS, false),
        migrate(&pooled, MIGRATIONS, false),
        migrate(&at, MIGRATIONS, false)
    );
    let mut done: Vec<i32> = [one, two, three].into_iter().flat_map(|done| numbers(&done.unwrap())).collect();
    done.sort_unstable();
    assert_eq!(done, all, "each step is done by one of them");
    check(&at, MIGRATIONS).await.unwrap();
    assert!(migrate(&at, MIGRATIONS, false).await.unwrap().is_empty());

    // Those who do not know a step that only adds run on; a step that takes something away ends them.
    let add =
        |breaks: bool| format!("INSERT INTO onceward.migration VALUES (9{}, 'later', 'x', {breaks})", u8::from(breaks));
    server.psql("shop", &add(false)).unwrap();
    check(&at, MIGRATIONS).await.unwrap();
    let refused = migrate(&at, MIGRATIONS, false).await.unwrap_err();
    assert!(matches!(&refused, SchemaError::Newer(names) if names == &["0090_later"]), "{refused}");
    server.psql("shop", &add(true)).unwrap();
    assert!(matches!(check(&at, MIGRATIONS).await, Err(SchemaError::Newer(names)) if names == ["0091_later"]));
    server.psql("shop", "UPDATE onceward.migration SET fingerprint = 'other' WHERE number = 1").unwrap();
    assert!(matches!(check(&at, MIGRATIONS).await, Err(SchemaError::Changed(name)) if name == "0001_tables"));
}

const HALF: &[Migration] = &[
    Migration { number: 1, name: "good", sql: "CREATE TABLE onceward.kept ()", breaks: false },
    Migration { number: 2, name: "bad", sql: "CREATE TABLE onceward.gone (); SELECT nonsense", breaks: false },
];

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_of_itself_and_what_is_wrong_is_said_with_its_sqlstate() {
    let server = Postgres::start(&[]).unwrap();
    server.create_database("shop").unwrap();
    let at = address(&server.url("shop"));
    let failed = migrate(&at, HALF, false).await.unwrap_err().to_string();
    assert!(failed.contains("0002_bad") && failed.contains("SQLSTATE 42703"), "{failed}");
    let left = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relname IN ('kept', 'gone')";
    assert_eq!(server.psql("shop", left).unwrap(), "kept");

    server.psql("shop", "CREATE ROLE weak LOGIN PASSWORD 'weak'; DROP SCHEMA onceward CASCADE").unwrap();
    for (url, wanted) in [
        (server.url("nothere"), ["SQLSTATE 3D000", "createdb"]),
        (server.url("shop").replace(servers::postgres::PASSWORD, "wrong"), ["SQLSTATE 28P01", "password"]),
        (server.url("shop").replace("postgres:only-for-tests", "weak:weak"), ["SQLSTATE 42501", "owner"]),
        ("postgresql://u:p@127.0.0.1:1/d".to_owned(), ["error connecting", "refused"]),
    ] {
        let said = migrate(&address(&url), MIGRATIONS, false).await.unwrap_err().to_string();
        assert!(wanted.iter().all(|word| said.contains(word)) && !said.contains("only-for-tests"), "{said}");
    }
}
