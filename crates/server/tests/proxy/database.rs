//! The same tests on another store: where `CONTRACT_DATABASE` names a PostgreSQL server, each data folder has a database
//! there for its records, a copy of the one named `contract`. `cargo xtask contract --store postgres` says it.

use std::{path::Path, sync::OnceLock};

use servers::postgres::{PASSWORD, psql_at};

/// How the server's superuser connects to it, without the name of a database.
const SERVER: &str = "CONTRACT_DATABASE";
/// The database that has the schema.
const TEMPLATE: &str = "contract";
/// As the embedded store does at its start: whoever held a record is gone. Here that is a lease that has run out.
const LEASES_RUN_OUT: &str = "UPDATE onceward.record SET lease_until = least(lease_until, onceward.now_us() - 1)
    WHERE keep_until = 0";

/// The store's name in metrics.
pub(crate) fn store_name() -> &'static str {
    if std::env::var_os(SERVER).is_some() { "postgres" } else { "embedded" }
}

/// The database of one data folder, once it is made.
#[derive(Default)]
pub(crate) struct Database(OnceLock<()>);

impl Database {
    /// What the environment says of it to a process with this configuration. Nothing where the tests run on the
    /// embedded store, or the file names a store itself.
    ///
    /// # Panics
    /// Where the server does not do as it is told.
    pub(crate) fn env(&self, folder: &Path, config: &str) -> Vec<(&'static str, String)> {
        let Ok(server) = std::env::var(SERVER) else { return Vec::new() };
        if config.contains("kind = \"") {
            return Vec::new();
        }
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap().trim_start_matches('.');
        match self.0.set(()) {
            Ok(()) => {
                psql_at(&format!("{server}/postgres"), &format!("CREATE DATABASE \"{name}\" TEMPLATE {TEMPLATE}"))
            }
            Err(()) => psql_at(&format!("{server}/{name}"), LEASES_RUN_OUT),
        }
        .unwrap();
        let bare = server.replace(&format!(":{PASSWORD}@"), "@");
        let mut env = vec![
            ("ONCEWARD_STORE__KIND", "postgres".to_owned()),
            ("ONCEWARD_STORE__POSTGRES__URL", format!("{bare}/{name}")),
            ("ONCEWARD_STORE__POSTGRES__PASSWORD", PASSWORD.to_owned()),
            ("ONCEWARD_STORE__POSTGRES__TLS", "off".to_owned()),
            ("ONCEWARD_STORE__POSTGRES__CONNECTIONS", "1".to_owned()),
        ];
        if !config.contains("deadline = ") {
            env.push(("ONCEWARD_STORE__DEADLINE", "5s".to_owned()));
        }
        if !config.contains("secret = ") {
            env.push(("ONCEWARD_IDENTITY__SECRET", secret(folder)));
        }
        env
    }
}

/// A secret of the folder's own, where the embedded store keeps its.
fn secret(folder: &Path) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let file = folder.join("data/onceward.secret");
    if !file.exists() {
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(&file, STANDARD.encode([7; 32])).unwrap();
    }
    format!("file:{}", file.display())
}
