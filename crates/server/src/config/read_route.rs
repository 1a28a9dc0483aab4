//! `[defaults]` and `[[route]]`: each key from the route, else from `[defaults]`, else the product's.

use core::time::Duration;
use std::collections::{HashMap, HashSet};

use http::{HeaderName, Method};
use onceward::{pattern::Pattern, store::Durability};
use onceward_core::policy::Outage;

use super::{
    Inputs, Listen, Store, Upstream, forms,
    problem::{Origin, Problems},
    read::Layers,
    route::{DEFAULT_ROUTE, ForwardKey, InFlight, Match, Mode, Replay, ReplayBody, RouteConfig, RouteLimits},
    schema,
    tree::{Node, Value},
    units::{self, shown},
};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// All routes.
pub(super) struct Routes {
    pub(super) routes: Vec<RouteConfig>,
    pub(super) default: RouteConfig,
}

/// The table of a route's own over `[defaults]`, in the order of [`Routes`], the default route last.
pub(super) fn layers(root: &Node) -> Vec<(Layers<'_>, &Origin)> {
    let defaults = root.get("defaults");
    let items = root.get("route").map_or(&[][..], Node::items);
    let mut all: Vec<_> = items
        .iter()
        .filter(|node| matches!(node.value, Value::Table(_)))
        .take(schema::ROUTES_MAX)
        .map(|node| (Layers::new(Some(node), defaults), &node.at))
        .collect();
    all.push((Layers::new(None, defaults), root.entry("defaults").map_or(&Origin::Whole, |entry| &entry.at)));
    all
}

pub(super) fn routes(
    root: &Node,
    upstreams: &[Upstream],
    listen: &Listen,
    store: &Store,
    inputs: &Inputs<'_>,
    problems: &mut Problems<'_>,
) -> Option<Routes> {
    let mut names: HashMap<&str, &Origin> = HashMap::new();
    let mut told = HashSet::new();
    let mut routes = Vec::new();
    let store_at = Layers::new(root.get("store"), None).at("kind").unwrap_or(&Origin::Whole);
    let mut all = layers(root);
    // First, so that what is wrong in `[defaults]` is told of them.
    all.rotate_right(1);
    for (index, (table, at)) in all.into_iter().enumerate() {
        let is_default = index == 0;
        let own_name = table.own("name").and_then(Node::text);
        let whose = match own_name {
            _ if is_default => "[defaults]".to_owned(),
            Some(name) => format!("[[route]] {}", shown(name)),
            None => format!("[[route]] number {index}"),
        };
        let mut reader =
            Reader { table, whose: &whose, at, store, store_at, told: &mut told, inputs, problems: &mut *problems };
        if is_default {
            reader.only_in_routes();
        } else if let Some(name) = own_name {
            if let Some(first) = names.get(name) {
                let first = reader.problems.place(first);
                reader.wrong(table, "name", format!("two routes are named {}; the first is at {first}", shown(name)));
            } else {
                names.insert(name, table.at("name").unwrap_or(at));
            }
        } else if table.own("name").is_none() {
            reader.problems.error(at, r#"[[route]] lacks "name""#.to_owned());
        }
        let upstream = reader.upstream(root, upstreams, is_default);
        let name = if is_default { DEFAULT_ROUTE } else { own_name.unwrap_or_default() };
        routes.push(reader.route(name, upstream, listen, is_default));
    }
    let mut routes = routes.into_iter();
    let default = routes.next()?;
    let routes: Vec<RouteConfig> = routes.collect();
    warn_of_unreachable(root, &routes, problems);
    Some(Routes { routes, default })
}

/// Reads one route.
pub(super) struct Reader<'a, 'p, 's> {
    pub(super) table: Layers<'a>,
    /// `[defaults]`, or `[[route]] "name"`.
    pub(super) whose: &'a str,
    at: &'a Origin,
    /// Where the records are.
    pub(super) store: &'p Store,
    /// And where that is said.
    pub(super) store_at: &'p Origin,
    /// What has been told, and where, whoever's it is: routes inherit what is wrong.
    told: &'p mut HashSet<(Origin, String)>,
    pub(super) inputs: &'p Inputs<'p>,
    problems: &'p mut Problems<'s>,
}

impl Reader<'_, '_, '_> {
    /// Tells a problem where `key` stands in `table`.
    pub(super) fn wrong(&mut self, table: Layers<'_>, key: &str, why: String) {
        self.wrong_at(table.at(key).unwrap_or(self.at), why);
    }

    pub(super) fn wrong_at(&mut self, at: &Origin, why: String) {
        if self.is_news(at, &why) {
            self.problems.error(at, why);
        }
    }

    pub(super) fn warn(&mut self, table: Layers<'_>, key: &str, why: String) {
        self.warn_at(table.at(key).unwrap_or(self.at), why);
    }

    pub(super) fn warn_at(&mut self, at: &Origin, why: String) {
        if self.is_news(at, &why) {
            self.problems.warn(at, why);
        }
    }

    fn is_news(&mut self, at: &Origin, why: &str) -> bool {
        self.told.insert((at.clone(), why.replace(self.whose, "")))
    }

    /// What `[defaults]` cannot say.
    fn only_in_routes(&mut self) {
        let matching = self.table.sub("match");
        for (table, key, whose) in [
            (self.table, "name", "[defaults]"),
            (matching, "path", "\"match\" of [defaults]"),
            (matching, "host", "\"match\" of [defaults]"),
        ] {
            if table.node(key).is_some() {
                self.wrong(table, key, format!("{key:?} in {whose} has no meaning: it belongs in a [[route]]"));
            }
        }
    }

    fn upstream(&mut self, root: &Node, upstreams: &[Upstream], is_default: bool) -> Option<String> {
        let top = Layers::new(Some(root), None);
        let (table, key) = match (is_default, top.node("default_upstream")) {
            (true, Some(_)) => (top, "default_upstream"),
            _ => (self.table, "upstream"),
        };
        let known = || upstreams.iter().map(|u| u.name.as_str()).collect::<Vec<_>>().join(", ");
        match (table.text(key), upstreams) {
            (Some(name), _) if upstreams.iter().any(|upstream| upstream.name == name) => Some(name.to_owned()),
            // A wrong name or a missing upstream has been told by itself.
            (Some(_), []) | (None, []) => None,
            (Some(name), _) => {
                if forms::plain_name(name).is_ok() {
                    self.wrong(table, key, format!("no [[upstream]] is named {}; there is {}", shown(name), known()));
                }
                None
            }
            (None, [only]) => Some(only.name.clone()),
            (None, _) => {
                if !is_default {
                    let why = format!(r#"{} must say "upstream", for there are several: {}"#, self.whose, known());
                    self.problems.error(self.at, why);
                }
                None
            }
        }
    }

    fn route(&mut self, name: &str, upstream: Option<String>, listen: &Listen, is_default: bool) -> RouteConfig {
        let table = self.table;
        let key = self.key();
        let fingerprint = self.fingerprint(key.missing);
        let scope = self.scope(listen);
        let in_flight = table.sub("in_flight");
        let replay = table.sub("replay");
        let limits = table.sub("limits");
        let retention = table.duration("retention", secs(DAY));
        let sliding = table.bool("sliding");
        // A longer retention without `sliding` needs no maximum.
        let retention_max = table.duration("retention_max", secs(7 * DAY));
        if sliding && retention_max < retention {
            let key = if table.node("retention_max").is_some() { "retention_max" } else { "retention" };
            let (max, retention) = (units::spell_duration(retention_max), units::spell_duration(retention));
            self.wrong(
                table,
                key,
                format!("{}: retention_max ({max}) is less than retention ({retention})", self.whose),
            );
        }
        if !sliding && table.own("retention_max").is_some() {
            self.warn(
                table,
                "retention_max",
                format!(r#"{}: "retention_max" counts only with sliding = true"#, self.whose),
            );
        }
        let unknown_max = table.duration("unknown_max", secs(30 * DAY));
        let retry_max = table.integer("retry_max", 3);
        let timeout = table.duration("timeout", secs(30));
        let probe = self.probe(timeout);
        let mode = table.choice(
            "mode",
            &[("enforce", Mode::Enforce), ("observe", Mode::Observe), ("off", Mode::Off)],
            Mode::Enforce,
        );
        self.durability(mode);
        let durability = table.choice(
            "durability",
            &[("journaled", Durability::Journaled), ("cache", Durability::Cache)],
            Durability::Strict,
        );
        RouteConfig {
            name: name.to_owned(),
            matching: self.matching(is_default),
            upstream,
            mode,
            key,
            auth: self.auth(&scope.principal),
            scope,
            fingerprint,
            retention,
            retention_body: table.form("retention_body", units::duration),
            sliding,
            retention_max,
            unknown_max,
            client_retries: table.duration("client_retries", secs(20 * MINUTE)),
            lease: table.duration("lease", secs(10)),
            two_phase_dispatch: table.bool("two_phase_dispatch"),
            timeout,
            execution_max: table.duration("execution_max", secs(10 * MINUTE)),
            idle_timeout: table.duration("idle_timeout", secs(60)),
            record_wait: table.duration("record_wait", secs(2)),
            in_flight: InFlight {
                wait: in_flight.duration("wait", secs(20)),
                waiters_per_key: in_flight.integer("waiters_per_key", 1024),
            },
            recording: self.recording(),
            set_cookie: table.sub("record").bool("set_cookie"),
            replay: Replay {
                body: replay.choice(
                    "body",
                    &[("recorded", ReplayBody::Recorded), ("ack", ReplayBody::Ack)],
                    ReplayBody::Recorded,
                ),
                header: replay
                    .form("header", forms::replay_header)
                    .unwrap_or(HeaderName::from_static("idempotent-replayed")),
            },
            mismatch_status: table.integer("mismatch_status", 422),
            on_unknown: self.on_unknown(retry_max, unknown_max, probe.as_ref()),
            probe,
            effect: self.effect(),
            retry_max,
            on_store_outage: table.choice(
                "on_store_outage",
                &[("deny", Outage::Deny), ("bypass", Outage::Bypass), ("fallback", Outage::Fallback)],
                if durability == Durability::Journaled { Outage::Fallback } else { Outage::Deny },
            ),
            quarantine: table.text("on_cache_loss") == Some("quarantine"),
            durability,
            limits: RouteLimits {
                request_body: limits.size("request_body", 10 << 20),
                recorded_body: limits.size("recorded_body", 1 << 20),
            },
            forward_key: table.choice(
                "forward_key",
                &[("same", ForwardKey::Same), ("derived", ForwardKey::Derived)],
                ForwardKey::Same,
            ),
        }
    }

    fn matching(&mut self, is_default: bool) -> Match {
        let table = self.table.sub("match");
        let mut methods = table.list("methods", |name| name.parse::<Method>().map_err(|error| error.to_string()));
        if methods.is_empty() {
            if table.node("methods").is_some_and(|node| matches!(&node.value, Value::List(items) if items.is_empty())) {
                let why =
                    format!(r#""methods" in "match" of {} is empty: leave it out for POST and PATCH"#, self.whose);
                self.wrong(table, "methods", why);
            }
            methods = vec![Method::POST, Method::PATCH];
        }
        // Path and host are a route's own: `[defaults]` has none, and that is told there.
        let own = |key: &str| if is_default { None } else { table.own(key).and_then(Node::text) };
        Match {
            methods,
            path: own("path").and_then(|text| Pattern::parse(text).ok()).unwrap_or_else(Pattern::all),
            host: own("host").and_then(|text| forms::host(text).ok()),
        }
    }
}

/// Two routes with the same methods, paths and host: the later one never gets a request.
fn warn_of_unreachable(root: &Node, routes: &[RouteConfig], problems: &mut Problems<'_>) {
    let origins = layers(root);
    let mut seen: HashMap<String, Vec<&RouteConfig>> = HashMap::new();
    for (route, (_, at)) in routes.iter().zip(&origins) {
        // What two patterns of the same paths have in common, so that not all pairs are compared.
        let shape = format!("{:?} {}", route.matching.host, route.matching.path.segments.len());
        let alike = seen.entry(shape).or_default();
        let first = alike.iter().find(|first| {
            first.matching.path.same_paths(&route.matching.path)
                && route.matching.methods.iter().all(|method| first.matching.methods.contains(method))
        });
        if let Some(first) = first {
            let why = format!("[[route]] {:?} never gets a request: {:?} matches the same", route.name, first.name);
            problems.warn(at, why);
        }
        alike.push(route);
    }
}
