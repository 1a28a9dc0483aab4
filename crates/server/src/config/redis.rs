//! `[store.redis]`: where the servers are and how they are reached, and what routes must say of records that are there.

use std::{path::PathBuf, time::Duration};

use onceward::store::redis::{
    Evictions, Strategy, Wait,
    address::{Address, Credentials, InvalidAddress, Tls},
};

use super::{
    Inputs, RedisStore,
    problem::{Origin, Problems},
    read::{Layers, STORE_DEADLINE, follow},
    read_route::Reader,
    route::Mode,
    secret::Secret,
    tls,
};

const WHOSE: &str = "[store.redis]";

/// `[store.redis]`, where the records are there.
pub(super) fn store(
    store: Layers<'_>,
    identity: Layers<'_>,
    inputs: &Inputs<'_>,
    problems: &mut Problems<'_>,
) -> Option<RedisStore> {
    // A file may hold several, and be switched by the kind alone.
    let kind = store.text("kind").filter(|kind| ["redis", "tiered"].contains(kind))?;
    let is_tiered = kind == "tiered";
    let section = store.sub("redis");
    let here = store.at("kind").unwrap_or(&Origin::Whole);
    // Of a tiered one the database says so.
    if identity.node("secret").is_none() && !is_tiered {
        let why = r#"kind = "redis" needs "secret" in [identity]: every process of the store makes record ids with the same one; draw it with `openssl rand -base64 32`"#;
        problems.error(here, why.into());
    }
    if section.node("url").is_none() {
        let why = format!(r#"kind = "{kind}" needs "url" in [store.redis], for example "redis://127.0.0.1:6379""#);
        problems.error(here, why);
    }
    if let Some(at) = store.at("max_records").filter(|_| !is_tiered) {
        let why = r#""max_records" in [store] bounds the embedded store: Redis with kind = "redis" is bounded by its maxmemory"#;
        problems.warn(at, why.into());
    }
    let mut secret = |key: &str| follow(section, key, WHOSE, inputs, problems).map(Secret::new);
    let (url, password, sentinel_password) = (secret("url"), secret("password"), secret("sentinel_password"));
    let ca = section.text("ca").map(PathBuf::from);
    let has_own = section.node("cert").is_some() || section.node("key").is_some();
    let own_at = section.at("cert").or_else(|| section.at("key")).unwrap_or(here);
    let client_cert = if has_own { tls::pair(section, WHOSE, own_at, problems) } else { None };
    let has_tls = ca.is_some() || has_own;
    if let Some(why) = url.as_ref().and_then(|url| no_address(url, has_tls).err()) {
        let at = match why {
            InvalidAddress::ClearWithCertificates => section.at("ca").unwrap_or(own_at),
            _ => section.at("url").unwrap_or(here),
        };
        problems.error(at, format!(r#""url" in {WHOSE}: {why}"#));
    }
    let strategy = section.choice("strategy", &[("watch", Strategy::Watch)], Strategy::Script);
    if let Some(at) = section.at("strategy").filter(|_| is_tiered && strategy == Strategy::Watch) {
        let why = format!(
            r#""strategy" in {WHOSE}: what kind = "tiered" keeps in Redis is kept by scripts: leave out "watch", or write kind = "postgres""#
        );
        problems.error(at, why);
    }
    let evictions = section.choice("detect_evictions", &[("inline", Evictions::Inline)], Evictions::Polled);
    if let Some(at) =
        section.at("detect_evictions").filter(|_| (evictions, strategy) == (Evictions::Inline, Strategy::Watch))
    {
        let why = format!(
            r#""detect_evictions" in {WHOSE}: "inline" is the script's work: leave out strategy = "watch", or this"#
        );
        problems.error(at, why);
    }
    Some(RedisStore {
        wait: wait(section, store, problems),
        evictions,
        url: url.unwrap_or_else(|| Secret::new("redis://localhost".into())),
        strategy,
        username: section.text("username").map(ToOwned::to_owned),
        password,
        sentinel_username: section.text("sentinel_username").map(ToOwned::to_owned),
        sentinel_password,
        ca,
        client_cert,
    })
}

/// How many replicas a write has to reach, and before a call is given up.
fn wait(section: Layers<'_>, store: Layers<'_>, problems: &mut Problems<'_>) -> Option<Wait> {
    let at = section.at("wait")?;
    let said = section.sub("wait");
    if said.node("replicas").is_none() {
        problems
            .error(at, format!(r#""wait" in {WHOSE} lacks "replicas": so many have to have a write, for example 1"#));
    }
    let timeout = said.duration("timeout", Duration::from_millis(100));
    let deadline = store.duration("deadline", STORE_DEADLINE);
    if timeout >= deadline {
        let at = said.at("timeout").unwrap_or(at);
        let why = format!(
            r#""timeout" in "wait" of {WHOSE} is {timeout:?}: it must be below "deadline" in [store], {deadline:?}, within which the whole step has to be answered"#
        );
        problems.error(at, why);
    }
    Some(Wait { replicas: said.integer("replicas", 1), timeout })
}

/// Why it names no servers.
fn no_address(url: &Secret, has_tls: bool) -> Result<(), InvalidAddress> {
    let tls = has_tls.then(Tls::default);
    Address::new(url.expose(), Credentials::default(), Credentials::default(), tls).map(drop)
}

impl Reader<'_, '_, '_> {
    /// A journal is of a store that has both, and says what may become of it.
    fn journaled(&mut self, mode: Mode) {
        let (table, whose) = (self.table, self.whose);
        if self.store.journal.is_none() {
            let why = format!(
                r#""durability" of {whose}: "journaled" is of kind = "tiered" in [store], with [store.journal]: write there what may take the database's place, for example failover = "none""#
            );
            self.wrong(table, "durability", why);
        } else if mode != Mode::Off {
            let why = format!(
                r#""durability" of {whose}: "journaled" is a preview: docs/tiered-store.md says what it lacks"#
            );
            self.warn(table, "durability", why);
        }
    }

    /// Holds what a route says of its records to the store that has them: one that may lose what it acknowledged, and
    /// that others may use, is taken by nobody who has not written so.
    pub(super) fn durability(&mut self, mode: Mode) {
        let (table, whose) = (self.table, self.whose);
        let said = table.text("durability");
        let is_tiered = self.store.is_tiered();
        if said == Some("journaled") {
            self.journaled(mode);
        }
        let has_fallback = self.store.fallback.is_some() || said == Some("journaled");
        if table.text("on_store_outage") == Some("fallback") && !has_fallback {
            let why = format!(
                r#""on_store_outage" of {whose}: "fallback" needs [store.fallback], with kind = "postgres" and duplicates = "accepted", beside kind = "redis" in [store], or durability = "journaled""#
            );
            self.wrong(table, "on_store_outage", why);
        }
        let is_kept = matches!(said, Some("strict" | "journaled"));
        if self.store.redis.is_none() || is_tiered && is_kept {
            if said == Some("cache") {
                let why = format!(
                    r#""durability" of {whose}: "cache" is of kind = "redis" or "tiered" in [store]; where these records are, they are kept: write "strict", or leave it out"#
                );
                self.wrong(table, "durability", why);
            }
            if table.text("on_cache_loss") == Some("quarantine") {
                let why = format!(
                    r#""on_cache_loss" of {whose}: where these records are, nothing is lost: "quarantine" is of durability = "cache"; leave it out"#
                );
                self.wrong(table, "on_cache_loss", why);
            }
            if !is_tiered {
                return;
            }
        } else if said == Some("strict") {
            let why = format!(
                r#""durability" of {whose}: kind = "redis" keeps nothing as "strict" does. Write "cache", which accepts that keys run again whose records Redis lost, or keep the records elsewhere"#
            );
            self.wrong(table, "durability", why);
        }
        if mode == Mode::Off {
            return;
        }
        if said.is_none() && is_tiered {
            let why = format!(
                r#"{whose}: with kind = "tiered" a route says where its records are: write durability = "strict" for PostgreSQL, with Redis for repetitions, "journaled" for Redis with PostgreSQL behind, or "cache" for Redis alone, which may lose what it acknowledged"#
            );
            self.wrong_at(self.store_at, why);
        } else if said.is_none() {
            let why = format!(
                r#"{whose}: the records are in Redis, which may lose what it acknowledged (a restart, a failover, an eviction), and keys whose records are lost run again: write durability = "cache" to accept that"#
            );
            self.wrong_at(self.store_at, why);
        }
        if table.sub("scope").node("env").is_none() {
            let why = format!(
                r#"{whose}: environments may share a Redis, and their keys must not meet: write scope = {{ env = "fixed:production" }}, or what it is"#
            );
            self.wrong_at(self.store_at, why);
        }
    }
}
