//! Every case of the list on PostgreSQL, on the server itself and through PgBouncer in transaction mode.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{
    Mutex, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use onceward_store::{
    conformance::{Database, MOVABLE_CLOCK, OnPostgres, run_all},
    postgres::{
        address::Address,
        migrate::{MIGRATIONS, migrate},
    },
};
use servers::{PgBouncer, Postgres};

/// One server for all cases of this process; it goes with the process.
struct Place {
    server: Postgres,
    bouncer: PgBouncer,
}

static PLACE: OnceLock<Place> = OnceLock::new();
/// How many cases run at a time.
const AT_ONCE: usize = 4;
static COUNT: AtomicU32 = AtomicU32::new(0);
/// The template may be copied by one at a time.
static COPYING: Mutex<()> = Mutex::new(());

fn place() -> &'static Place {
    PLACE.get_or_init(|| {
        let server = Postgres::start(&[]).unwrap();
        server.create_database("empty").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(migrate(&address(&server.url("empty")), MIGRATIONS, false)).unwrap();
        server.psql("empty", MOVABLE_CLOCK).unwrap();
        let bouncer = PgBouncer::start(&server, &[]).unwrap();
        Place { server, bouncer }
    })
}

fn address(url: &str) -> Address {
    Address::new(url, None, None).unwrap()
}

fn database(url: impl Fn(&Place, &str) -> String) -> Database {
    let place = place();
    let name = format!("case{}", COUNT.fetch_add(1, Ordering::Relaxed));
    {
        let _copying = COPYING.lock().unwrap();
        place.server.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE empty")).unwrap();
    }
    Database { address: address(&url(place, &name)), direct: address(&place.server.url(&name)), keep: Box::new(()) }
}

#[test]
fn every_case_of_the_list_holds_on_a_server() {
    let direct = || database(|place, name| place.server.url(name));
    // Outside of any runtime, which it needs one of its own for.
    place();
    run_all(&OnPostgres { name: "postgres", database: Some(direct) }, AT_ONCE);
}

#[test]
fn every_case_of_the_list_holds_through_a_pooler_in_transaction_mode() {
    let pooled = || database(|place, name| place.bouncer.url(name));
    // Outside of any runtime, which it needs one of its own for.
    place();
    run_all(&OnPostgres { name: "postgres-pooled", database: Some(pooled) }, AT_ONCE);
}
