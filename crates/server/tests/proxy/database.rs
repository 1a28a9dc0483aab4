//! The same tests on another store: where `CONTRACT_STORE` names a server, each data folder has a place there for its
//! records. On PostgreSQL that is a database of its own, a copy of the one named `contract`; on Redis one by its number;
//! where `CONTRACT_IN_FRONT` names a Redis too, one of each. `cargo xtask contract --store postgres`, `--store redis` and
//! `--store tiered` say it.

use std::{path::Path, sync::OnceLock};

use servers::{
    postgres::{PASSWORD, psql_at},
    redis::command_at,
};

/// How the tests connect to the server, without the name of a database.
const SERVER: &str = "CONTRACT_STORE";
/// A Redis in front of it.
const IN_FRONT: &str = "CONTRACT_IN_FRONT";
/// And what all routes ask of both.
const DURABILITY: &str = "CONTRACT_DURABILITY";
/// The database that has the schema.
const TEMPLATE: &str = "contract";
/// As the embedded store does at its start: whoever held a record is gone. Here that is a lease that has run out.
const LEASES_RUN_OUT: &str = "UPDATE onceward.record SET lease_until = least(lease_until, onceward.now_us() - 1)
    WHERE keep_until = 0";
/// The same in Redis, in the database of the first argument: a record without an end of its own has its lease's in the
/// eight bytes from the 29th on, or eight further on in front of a journal.
const LEASES_RUN_OUT_IN_REDIS: &str = "redis.call('SELECT', ARGV[1])
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2] - 1
    local over = struct.pack('>I4I4', math.floor(now / 4294967296), now % 4294967296)
    for mark, before in pairs({ [''] = 0, [':j'] = 8 }) do
        for _, key in ipairs(redis.call('KEYS', 'idemp:v1:{p*}:' .. string.rep('?', 43) .. mark)) do
            local record = redis.call('GET', key)
            local hi, lo = struct.unpack('>I4I4', record, before + 29)
            if string.sub(record, before + 37, before + 44) == string.rep('\\0', 8) and hi * 4294967296 + lo > now then
                redis.call('SETRANGE', key, before + 28, over)
            end
        end
    end";
/// Counts the databases that are in use.
const DATABASES: &str = "contract:databases";

/// The store's name in metrics.
pub(crate) fn store_name() -> &'static str {
    match std::env::var(SERVER) {
        Ok(server) if server.starts_with("redis:") || all_routes_are("cache") => "redis",
        Ok(_) if all_routes_are("journaled") => "journaled",
        Ok(_) => "postgres",
        Err(_) => "embedded",
    }
}

/// The name that its operations have in metrics: where there are both, of all durabilities together.
pub(crate) fn whole_stores_name() -> &'static str {
    if std::env::var_os(IN_FRONT).is_some() { "tiered" } else { store_name() }
}

/// Whether there are two, and this is where all records are.
fn all_routes_are(durability: &str) -> bool {
    std::env::var(DURABILITY).is_ok_and(|said| said == durability)
}

/// The databases of one data folder, once they are made.
#[derive(Default)]
pub(crate) struct Database {
    /// Its name, on PostgreSQL.
    name: OnceLock<String>,
    /// Its number, on Redis.
    number: OnceLock<String>,
}

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
        let mut env = match server.starts_with("redis:") {
            true => self.in_redis(&server),
            false => self.in_postgres(&server, folder),
        };
        if let Ok(in_front) = std::env::var(IN_FRONT) {
            // What is said last counts.
            env.extend(self.in_redis(&in_front));
            env.push(("ONCEWARD_STORE__KIND", "tiered".to_owned()));
            env.push(("ONCEWARD_DEFAULTS__DURABILITY", std::env::var(DURABILITY).unwrap()));
            if std::env::var(DURABILITY).is_ok_and(|durability| durability == "journaled") {
                env.push(("ONCEWARD_STORE__JOURNAL__FAILOVER", "none".to_owned()));
                env.push(("ONCEWARD_STORE__JOURNAL__MEMBER_TIMEOUT", "2s".to_owned()));
            }
        }
        if !config.contains("deadline = ") {
            env.push(("ONCEWARD_STORE__DEADLINE", "5s".to_owned()));
        }
        if !config.contains("secret = ") {
            env.push(("ONCEWARD_IDENTITY__SECRET", secret(folder)));
        }
        env
    }

    fn in_postgres(&self, server: &str, folder: &Path) -> Vec<(&'static str, String)> {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap().trim_start_matches('.');
        match self.name.set(name.to_owned()) {
            Ok(()) => {
                psql_at(&format!("{server}/postgres"), &format!("CREATE DATABASE \"{name}\" TEMPLATE {TEMPLATE}"))
            }
            Err(_) => psql_at(&format!("{server}/{name}"), LEASES_RUN_OUT),
        }
        .unwrap();
        let bare = server.replace(&format!(":{PASSWORD}@"), "@");
        vec![
            ("ONCEWARD_STORE__KIND", "postgres".to_owned()),
            ("ONCEWARD_STORE__POSTGRES__URL", format!("{bare}/{name}")),
            ("ONCEWARD_STORE__POSTGRES__PASSWORD", PASSWORD.to_owned()),
            ("ONCEWARD_STORE__POSTGRES__TLS", "off".to_owned()),
            ("ONCEWARD_STORE__POSTGRES__CONNECTIONS", "1".to_owned()),
        ]
    }

    fn in_redis(&self, server: &str) -> Vec<(&'static str, String)> {
        let port = server.strip_prefix("redis://127.0.0.1:").unwrap().parse().unwrap();
        let number = match self.number.get() {
            Some(number) => {
                command_at(port, &["EVAL", LEASES_RUN_OUT_IN_REDIS, "0", number]).unwrap();
                number
            }
            None => self.number.get_or_init(|| command_at(port, &["INCR", DATABASES]).unwrap()),
        };
        vec![
            ("ONCEWARD_STORE__KIND", "redis".to_owned()),
            ("ONCEWARD_STORE__REDIS__URL", format!("{server}/{number}")),
            ("ONCEWARD_DEFAULTS__DURABILITY", "cache".to_owned()),
            ("ONCEWARD_DEFAULTS__SCOPE__ENV", "fixed:default".to_owned()),
        ]
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
