//! A PostgreSQL server that a test has, and databases on it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test uses its part")]

use std::sync::{
    Mutex, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use onceward_store::{
    conformance::Database,
    postgres::{
        address::Address,
        migrate::{MIGRATIONS, migrate},
    },
};

/// One server for all tests of this process.
pub(crate) fn server() -> &'static servers::Postgres {
    static PLACE: OnceLock<servers::Postgres> = OnceLock::new();
    PLACE.get_or_init(|| servers::Postgres::start(&[]).unwrap())
}

pub(crate) fn address(server: &servers::Postgres, database: &str) -> Address {
    Address::new(&server.url(database), None, None).unwrap()
}

/// A database of its own with the schema, empty, and with what the first caller's `more` makes there.
pub(crate) fn database(more: &str) -> Database {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static EMPTY: OnceLock<()> = OnceLock::new();
    EMPTY.get_or_init(|| prepare(server(), "empty", more));
    let name = format!("case{}", COUNT.fetch_add(1, Ordering::Relaxed));
    {
        // The template may be copied by one at a time.
        static COPYING: Mutex<()> = Mutex::new(());
        let _copying = COPYING.lock().unwrap();
        server().psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE empty")).unwrap();
    }
    let at = address(server(), &name);
    Database { address: at.clone(), direct: at, keep: Box::new(()) }
}

/// Makes a database with the schema and with `more`.
pub(crate) fn prepare(server: &servers::Postgres, name: &str, more: &str) {
    server.create_database(name).unwrap();
    let at = address(server, name);
    // Outside of the runtime that may be here.
    let migrated = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(migrate(&at, MIGRATIONS, false)).unwrap();
    });
    migrated.join().unwrap();
    if !more.is_empty() {
        server.psql(name, more).unwrap();
    }
}
