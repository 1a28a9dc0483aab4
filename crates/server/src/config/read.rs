//! A checked tree as [`Config`]. Values that are wrong by themselves have been told by the check
//! and are read as their defaults here; what is told here is what is wrong between values.

use core::time::Duration;
use std::{collections::HashMap, path::PathBuf};

use onceward::store::{
    circuit::Breaker,
    postgres::address::{Address, InvalidAddress},
};

use onceward_core::codec;

use super::{
    Admin, Config, Database, Identity, Inputs, Limits, Listen, Maintenance, PostgresStore, Reconcile, Store, Telemetry,
    Upstream, forms, journal,
    problem::{Origin, Problems},
    quota, read_route, redis, schema,
    secret::{self, InstallSecret, Secret},
    tls,
    tree::{Node, Value},
    units::{self, shown},
};
use crate::maintenance::Window;

/// Within which an operation of the store is answered, where nothing else is said.
pub(super) const STORE_DEADLINE: Duration = Duration::from_millis(500);

/// A table over another one: what the first does not say, the second may.
#[derive(Clone, Copy)]
pub(super) struct Layers<'a> {
    own: Option<&'a Node>,
    base: Option<&'a Node>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(own: Option<&'a Node>, base: Option<&'a Node>) -> Self {
        Self { own, base }
    }

    pub(super) fn node(self, key: &str) -> Option<&'a Node> {
        self.own.and_then(|node| node.get(key)).or_else(|| self.base.and_then(|node| node.get(key)))
    }

    /// Whether the upper table itself says it.
    pub(super) fn own(self, key: &str) -> Option<&'a Node> {
        self.own.and_then(|node| node.get(key))
    }

    /// The tables under `key`, key by key over each other.
    pub(super) fn sub(self, key: &str) -> Self {
        Self::new(self.own.and_then(|node| node.get(key)), self.base.and_then(|node| node.get(key)))
    }

    /// Where a key stands, with the name before the value.
    pub(super) fn at(self, key: &str) -> Option<&'a Origin> {
        let find = |node: Option<&'a Node>| node.and_then(|node| node.entry(key)).map(|entry| &entry.at);
        find(self.own).or_else(|| find(self.base))
    }

    /// As [`Self::at`], in the upper table only.
    pub(super) fn own_at(self, key: &str) -> Option<&'a Origin> {
        self.own.and_then(|node| node.entry(key)).map(|entry| &entry.at)
    }

    pub(super) fn text(self, key: &str) -> Option<&'a str> {
        self.node(key).and_then(Node::text)
    }

    /// A text in the form that the check has seen to.
    pub(super) fn form<T>(self, key: &str, form: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.text(key).and_then(|text| form(text).ok())
    }

    pub(super) fn list<T>(self, key: &str, form: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let items = self.node(key).map_or(&[][..], Node::items);
        items.iter().filter_map(Node::text).filter_map(|text| form(text).ok()).collect()
    }

    pub(super) fn bool(self, key: &str) -> bool {
        matches!(self.node(key).map(|node| &node.value), Some(Value::Bool(true)))
    }

    pub(super) fn integer<T: TryFrom<i64>>(self, key: &str, default: T) -> T {
        match self.node(key).map(|node| &node.value) {
            Some(Value::Integer(Some(number))) => T::try_from(*number).unwrap_or(default),
            _ => default,
        }
    }

    pub(super) fn duration(self, key: &str, default: Duration) -> Duration {
        self.form(key, units::duration).unwrap_or(default)
    }

    pub(super) fn size(self, key: &str, default: u64) -> u64 {
        self.form(key, units::size).unwrap_or(default)
    }

    pub(super) fn choice<T: Copy>(self, key: &str, choices: &[(&str, T)], default: T) -> T {
        let said = self.text(key);
        choices.iter().find(|(word, _)| Some(*word) == said).map_or(default, |(_, choice)| *choice)
    }
}

/// The whole configuration; none where there is no upstream to speak of.
pub(super) fn config(root: &Node, inputs: &Inputs<'_>, problems: &mut Problems<'_>) -> Option<Config> {
    let section = |name: &str| Layers::new(root.get(name), None);
    let listen = listen(section("listen"), inputs, problems);
    let admin = admin(section("admin"), inputs, problems);
    if listen.address == admin.address && listen.address.port() != 0 {
        let at = section("admin").at("address").or_else(|| section("listen").at("address"));
        let why = format!("the proxy and the admin listener are both at {}: give one another port", listen.address);
        problems.error(at.unwrap_or(&Origin::Whole), why);
    }
    let limits = section("limits");
    let bounds = Limits::default();
    let limits = Limits {
        connections: limits.integer("connections", bounds.connections),
        headers: limits.size("headers", bounds.headers),
        waiters: limits.integer("waiters", bounds.waiters),
        held_answer: limits.size("held_answer", bounds.held_answer),
        canonical_body: limits.size("canonical_body", bounds.canonical_body),
        decode_ratio: limits.integer("decode_ratio", bounds.decode_ratio),
        spool: limits.size("spool", bounds.spool),
        unrecorded: limits.size("unrecorded", bounds.unrecorded),
        replay_cache: limits.size("replay_cache", bounds.replay_cache),
    };
    let store = section("store");
    let store_kind = store.text("kind");
    let postgres = postgres(store, section("identity"), inputs, problems);
    let store = Store {
        postgres,
        redis: redis::store(store, section("identity"), inputs, problems),
        journal: journal::journal(store, problems),
        fallback: fallback(store, inputs, problems),
        path: PathBuf::from(store.text("path").unwrap_or("onceward-data")),
        durable_required: store.text("durable") == Some("required"),
        deadline: store.duration("deadline", STORE_DEADLINE),
        breaker: {
            let (said, default) = (store.sub("breaker"), Breaker::default());
            let failures = said.integer("failures", default.failures);
            Breaker { failures, open: said.duration("open", default.open) }
        },
        reserve: store.size("reserve", 64 << 20),
        write_version: write_version(store, problems),
        max_records: store.node("max_records").map(|_| store.integer("max_records", u64::MAX)),
    };
    let identity = identity(section("identity"), inputs, problems);
    let upstreams = upstreams(root, inputs, problems);
    let routes = read_route::routes(root, &upstreams, &listen, &store, inputs, problems)?;
    Some(Config {
        identity,
        listen,
        admin,
        store,
        upstreams,
        routes: routes.routes,
        default_route: routes.default,
        limits,
        quotas: quota::quotas(section("quota"), problems),
        maintenance: maintenance(section("maintenance"), store_kind, problems),
        reconcile: Reconcile {
            every: section("reconcile").duration("every", Duration::from_secs(300)),
            compensation_urls: section("reconcile").list("compensation_urls", forms::compensation_url),
        },
        telemetry: telemetry(section("telemetry")),
    })
}

fn listen(section: Layers<'_>, inputs: &Inputs<'_>, problems: &mut Problems<'_>) -> Listen {
    Listen {
        tls: tls::listener(section, inputs, problems),
        address: section.form("address", forms::address).unwrap_or(([127, 0, 0, 1], 8080).into()),
        trusted: section.list("trusted", forms::network),
        drain: section.duration("drain", Duration::from_secs(25)),
    }
}

fn admin(section: Layers<'_>, inputs: &Inputs<'_>, problems: &mut Problems<'_>) -> Admin {
    const WEAK_BYTES: usize = 16;
    let address = section.form("address", forms::address).unwrap_or(([127, 0, 0, 1], 8081).into());
    let token = follow(section, "token", "[admin]", inputs, problems).and_then(|token| {
        let at = section.at("token").unwrap_or(&Origin::Whole);
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            problems.error(at, r#""token" in [admin] must be of visible ASCII characters, without spaces"#.to_owned());
            return None;
        }
        if token.len() < WEAK_BYTES {
            problems
                .warn(at, format!(r#""token" in [admin] is shorter than {WEAK_BYTES} characters: it can be guessed"#));
        }
        Some(Secret::new(token))
    });
    // One that could not be followed has been told already.
    if !address.ip().is_loopback() && section.node("token").is_none() {
        let why = format!(
            r#"the admin listener at {address} is reachable from other machines and has no token: set "token" in [admin], for example "env:ONCEWARD_ADMIN_TOKEN", or keep it on 127.0.0.1"#
        );
        problems.error(section.at("address").unwrap_or(&Origin::Whole), why);
    }
    Admin { address, token }
}

fn maintenance(section: Layers<'_>, store: Option<&str>, problems: &mut Problems<'_>) -> Maintenance {
    if store == Some("redis")
        && let Some(at) = section.at("window")
    {
        let why = r#""window" in [maintenance]: Redis removes what has ended by itself, and nothing else can wait: leave it out with kind = "redis""#;
        problems.warn(at, why.to_owned());
    }
    Maintenance { window: section.form("window", Window::parse) }
}

fn telemetry(section: Layers<'_>) -> Telemetry {
    Telemetry {
        otlp: section.form("otlp", forms::collector_url),
        interval: section.duration("interval", Duration::from_secs(10)),
        trace_percent: section.integer("trace_percent", 5),
    }
}

fn identity(section: Layers<'_>, inputs: &Inputs<'_>, problems: &mut Problems<'_>) -> Identity {
    let mut read = |key: &str| {
        let text = follow(section, key, "[identity]", inputs, problems)?;
        InstallSecret::from_base64(&text)
            .map_err(|why| {
                let at = section.at(key).unwrap_or(&Origin::Whole);
                problems.error(at, format!("{key:?} in [identity] {why}"));
            })
            .ok()
    };
    let (secret, previous) = (read("secret"), read("previous"));
    if previous.is_some() && secret == previous {
        let at = section.at("previous").unwrap_or(&Origin::Whole);
        problems.error(
            at,
            r#""previous" in [identity] is the same as "secret": give the one before, or leave it out"#.into(),
        );
    }
    Identity { secret, previous }
}

/// One that this build writes, which today is one alone.
fn write_version(store: Layers<'_>, problems: &mut Problems<'_>) -> u8 {
    let said = store.integer("write_version", codec::VERSION);
    if said != codec::VERSION {
        let (ours, oldest) = (codec::VERSION, codec::OLDEST);
        let why = format!(
            r#""write_version" in [store] is {said}: this build writes version {ours} of records and reads {oldest} to {ours}; say {ours}, or leave it out"#
        );
        problems.error(store.at("write_version").unwrap_or(&Origin::Whole), why);
    }
    codec::VERSION
}

/// `[store.postgres]`, where the records are there.
fn postgres(
    store: Layers<'_>,
    identity: Layers<'_>,
    inputs: &Inputs<'_>,
    problems: &mut Problems<'_>,
) -> Option<PostgresStore> {
    // A file may hold both, and be switched by the kind alone.
    let kind = store.text("kind").filter(|kind| ["postgres", "tiered"].contains(kind))?;
    let here = store.at("kind").unwrap_or(&Origin::Whole);
    if identity.node("secret").is_none() {
        let why = format!(
            r#"kind = "{kind}" needs "secret" in [identity]: every process of the database makes record ids with the same one; draw it with `openssl rand -base64 32`"#
        );
        problems.error(here, why);
    }
    if let Some(at) = store.at("max_records") {
        let why = r#""max_records" in [store] bounds the embedded store: a database is not bounded by it"#;
        problems.warn(at, why.into());
    }
    Some(in_database(store.sub("postgres"), "[store.postgres]", here, inputs, problems))
}

/// `[store.fallback]`, which must say what it means.
fn fallback(store: Layers<'_>, inputs: &Inputs<'_>, problems: &mut Problems<'_>) -> Option<PostgresStore> {
    let (section, whose) = (store.sub("fallback"), "[store.fallback]");
    let here = store.at("fallback")?;
    match store.text("kind") {
        Some("redis") => {}
        Some("postgres" | "tiered") => {
            let why =
                r#"[store.fallback] is for kind = "redis" in [store]: leave it out, records are in PostgreSQL already"#;
            problems.error(here, why.into());
            return None;
        }
        // A file may hold it, and be switched by the kind alone.
        _ => return None,
    }
    if section.text("kind").is_none() {
        problems.error(here, r#"[store.fallback] needs kind = "postgres""#.into());
    }
    if section.text("duplicates").is_none() {
        let why = r#"[store.fallback] needs duplicates = "accepted": it does not hold the records that are in Redis, and keys of before run again while it is used"#;
        problems.error(here, why.into());
    }
    Some(in_database(section, whose, here, inputs, problems))
}

/// What says that records are in a database.
fn in_database(
    section: Layers<'_>,
    whose: &str,
    here: &Origin,
    inputs: &Inputs<'_>,
    problems: &mut Problems<'_>,
) -> PostgresStore {
    if section.node("url").is_none() {
        problems.error(here, format!(r#"{whose} needs "url", for example "env:DATABASE_URL""#));
    }
    let mut secret = |key: &str| follow(section, key, whose, inputs, problems).map(Secret::new);
    let (url, listen_url, password) = (secret("url"), secret("listen_url"), secret("password"));
    for (key, url) in [("url", &url), ("listen_url", &listen_url)] {
        if let Some(why) = url.as_ref().and_then(no_address) {
            problems.error(section.at(key).unwrap_or(here), format!("{key:?} in {whose}: {why}"));
        }
    }
    let url = url.unwrap_or_else(|| Secret::new("postgresql://localhost".into()));
    let database = database(section, url, password);
    PostgresStore { database, listen_url, connections: section.integer("connections", 2) }
}

/// How a database is reached, its secrets followed.
pub(super) fn database(section: Layers<'_>, url: Secret, password: Option<Secret>) -> Database {
    Database { url, password, tls: section.text("tls") != Some("off"), ca: section.text("ca").map(PathBuf::from) }
}

/// Why it names no database; what TLS it is to have is said apart.
pub(super) fn no_address(url: &Secret) -> Option<String> {
    match Address::new(url.expose(), None, None) {
        Err(error @ InvalidAddress::Url(_)) => Some(error.to_string()),
        _ => None,
    }
}

/// A secret's text, from where the file says it is.
pub(super) fn follow(
    section: Layers<'_>,
    key: &str,
    whose: &str,
    inputs: &Inputs<'_>,
    problems: &mut Problems<'_>,
) -> Option<String> {
    match secret::followed(section.text(key)?, inputs) {
        Ok(value) => Some(value),
        Err(unfollowed) => {
            let at = section.at(key).unwrap_or(&Origin::Whole);
            let message = format!("{key:?} in {whose}: {}", unfollowed.why);
            if unfollowed.may_be_elsewhere {
                problems.warn(at, message);
            } else {
                problems.error(at, message);
            }
            None
        }
    }
}

fn upstreams(root: &Node, inputs: &Inputs<'_>, problems: &mut Problems<'_>) -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    let mut names: HashMap<&str, &Origin> = HashMap::new();
    for node in root.get("upstream").map_or(&[][..], Node::items).iter().take(schema::UPSTREAMS_MAX) {
        let table = Layers::new(Some(node), None);
        for key in ["name", "url"] {
            if table.node(key).is_none() && matches!(node.value, Value::Table(_)) {
                problems.error(&node.at, format!("[[upstream]] lacks {key:?}"));
            }
        }
        if let (Some(name), Some(at)) = (table.text("name"), table.at("name")) {
            if let Some(first) = names.get(name) {
                let first = problems.place(first);
                problems.error(at, format!("two upstreams are named {}; the first is at {first}", shown(name)));
            } else {
                names.insert(name, at);
            }
        }
        if let (Some(name), Some(url)) = (table.form("name", forms::plain_name), table.form("url", forms::upstream_url))
        {
            let tls = tls::upstream(table, &name, &url, inputs, problems);
            upstreams.push(Upstream {
                tls,
                name,
                url,
                max_in_flight: table.integer("max_in_flight", 1000),
                connect_timeout: table.duration("connect_timeout", Duration::from_secs(5)),
                http2: table.bool("http2"),
            });
        }
    }
    if upstreams.is_empty() && root.get("upstream").is_none_or(|node| node.items().is_empty()) {
        let why = r#"no upstream: add [[upstream]] with name = "api" and url = "http://127.0.0.1:9000", or give --upstream URL"#;
        problems.error(&Origin::Whole, why.to_owned());
    }
    upstreams
}
