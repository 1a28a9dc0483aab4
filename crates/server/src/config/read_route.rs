//! `[defaults]` and `[[route]]`: each key from the route, else from `[defaults]`, else the product's.

use core::time::Duration;
use std::collections::HashMap;

use http::{HeaderName, Method};
use onceward_core::policy::{Outage, Predicate, Preset, Recording, Step};

use super::{
    Listen, Upstream,
    forms::{self, PrincipalWord},
    pattern::Pattern,
    problem::{Origin, Problems},
    read::Layers,
    route::{
        DEFAULT_ROUTE, Field, FingerprintBody, FingerprintConfig, ForwardKey, Hash, InFlight, KeyConfig, KeySource,
        Match, Missing, Mode, Principal, PrincipalPart, Replay, ReplayBody, RouteConfig, RouteLimits, ScopeConfig,
        ScopePart,
    },
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
        .map(|node| (Layers::new(Some(node), defaults), &node.at))
        .collect();
    all.push((Layers::new(None, defaults), root.entry("defaults").map_or(&Origin::Whole, |entry| &entry.at)));
    all
}

pub(super) fn routes(
    root: &Node,
    upstreams: &[Upstream],
    listen: &Listen,
    problems: &mut Problems<'_>,
) -> Option<Routes> {
    let mut names: HashMap<&str, &Origin> = HashMap::new();
    let mut routes = Vec::new();
    let all = layers(root);
    let count = all.len();
    for (index, (table, at)) in all.into_iter().enumerate() {
        let is_default = index + 1 == count;
        let own_name = table.own("name").and_then(Node::text);
        let whose = match own_name {
            _ if is_default => "[defaults]".to_owned(),
            Some(name) => format!("[[route]] {}", shown(name)),
            None => format!("[[route]] number {}", index + 1),
        };
        let mut reader = Reader { table, whose: &whose, at, problems: &mut *problems };
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
    let default = routes.pop()?;
    warn_of_unreachable(root, &routes, problems);
    Some(Routes { routes, default })
}

/// Reads one route.
struct Reader<'a, 'p, 's> {
    table: Layers<'a>,
    whose: &'a str,
    at: &'a Origin,
    problems: &'p mut Problems<'s>,
}

impl Reader<'_, '_, '_> {
    /// Tells a problem where `key` stands in `table`.
    fn wrong(&mut self, table: Layers<'_>, key: &str, why: String) {
        self.problems.error(table.at(key).unwrap_or(self.at), why);
    }

    fn warn(&mut self, table: Layers<'_>, key: &str, why: String) {
        self.problems.warn(table.at(key).unwrap_or(self.at), why);
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
        RouteConfig {
            name: name.to_owned(),
            matching: self.matching(is_default),
            upstream,
            mode: table.choice(
                "mode",
                &[("enforce", Mode::Enforce), ("observe", Mode::Observe), ("off", Mode::Off)],
                Mode::Enforce,
            ),
            key,
            scope: self.scope(listen),
            fingerprint,
            retention,
            sliding,
            retention_max,
            unknown_max,
            client_retries: table.duration("client_retries", secs(20 * MINUTE)),
            lease: table.duration("lease", secs(10)),
            two_phase_dispatch: table.bool("two_phase_dispatch"),
            timeout: table.duration("timeout", secs(30)),
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
            on_unknown: self.on_unknown(retry_max, unknown_max),
            retry_max,
            on_store_outage: table.choice(
                "on_store_outage",
                &[("deny", Outage::Deny), ("bypass", Outage::Bypass)],
                Outage::Deny,
            ),
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

    fn key(&mut self) -> KeyConfig {
        let table = self.table.sub("key");
        let mut from = table.list("from", forms::key_source);
        if from.is_empty() {
            if table.node("from").is_some_and(|node| matches!(&node.value, Value::List(items) if items.is_empty())) {
                let why = format!(r#""from" in "key" of {} is empty: leave it out for Idempotency-Key"#, self.whose);
                self.wrong(table, "from", why);
            }
            from = ["idempotency-key", "x-idempotency-key"]
                .map(|name| KeySource::Header(HeaderName::from_static(name)))
                .to_vec();
        }
        let missing = table.choice(
            "missing",
            &[("optional", Missing::Optional), ("required", Missing::Required), ("derive", Missing::Derive)],
            Missing::Optional,
        );
        if missing != Missing::Derive && table.own("derived_retention").is_some() {
            let why = format!(r#"{}: "derived_retention" counts only with missing = "derive""#, self.whose);
            self.warn(table, "derived_retention", why);
        }
        KeyConfig {
            from,
            missing,
            strict: table.bool("strict"),
            min_length: table.integer("min_length", 1),
            derived_retention: table.duration("derived_retention", secs(5 * MINUTE)),
            docs: table.form("docs", forms::docs_url),
        }
    }

    fn scope(&mut self, listen: &Listen) -> ScopeConfig {
        let table = self.table.sub("scope");
        let fixed = || ScopePart::Fixed("default".to_owned());
        let tenant = table.form("tenant", forms::scope_part).unwrap_or_else(fixed);
        let env = table.form("env", forms::scope_part).unwrap_or_else(fixed);
        let mut words = table.list("principal", forms::principal);
        if let Some(one) = table.form("principal", forms::principal) {
            words.push(one);
        } else if table.node("principal").is_some_and(|node| matches!(&node.value, Value::List(i) if i.is_empty())) {
            let why =
                format!(r#""principal" in "scope" of {} is empty: write "none" if all callers are one"#, self.whose);
            self.wrong(table, "principal", why);
        }
        let alone = words.iter().any(|word| matches!(word, PrincipalWord::Auto | PrincipalWord::None));
        if alone && words.len() > 1 {
            let why = format!(r#""principal" in "scope" of {}: "auto" and "none" stand alone"#, self.whose);
            self.wrong(table, "principal", why);
        }
        let mut parts = Vec::new();
        let mut principal = Principal::Auto;
        for word in words {
            match word {
                PrincipalWord::Auto | PrincipalWord::Mtls => {}
                PrincipalWord::None => principal = Principal::None,
                PrincipalWord::Part(part) => parts.push(part),
            }
        }
        if !parts.is_empty() {
            principal = Principal::Parts(parts);
        }
        if listen.trusted.is_empty() {
            let credentials = ["authorization", "x-api-key", "api-key"];
            let by_hop = match &principal {
                Principal::Parts(parts) => parts
                    .iter()
                    .any(|part| matches!(part, PrincipalPart::Header(name) if !credentials.contains(&name.as_str()))),
                Principal::Auto | Principal::None => false,
            };
            for (key, says) in [
                ("tenant", matches!(tenant, ScopePart::Header(_))),
                ("env", matches!(env, ScopePart::Header(_))),
                ("principal", by_hop),
            ] {
                if says {
                    let why = format!(
                        r#"{}: "{key}" is read from a header, which counts only from peers in "trusted" of [listen], and that is empty: every keyed request will be 400 untrusted-header"#,
                        self.whose
                    );
                    self.warn(table, key, why);
                }
            }
        }
        ScopeConfig { tenant, env, principal }
    }

    fn fingerprint(&mut self, missing: Missing) -> FingerprintConfig {
        let table = self.table.sub("fingerprint");
        let mut headers = table.list("headers", forms::header);
        headers.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        headers.dedup();
        let config = FingerprintConfig {
            hash: table.choice("hash", &[("blake3", Hash::Blake3), ("sha256", Hash::Sha256)], Hash::Blake3),
            body: table.choice(
                "body",
                &[
                    ("canonical", FingerprintBody::Canonical),
                    ("raw", FingerprintBody::Raw),
                    ("none", FingerprintBody::None),
                ],
                FingerprintBody::Canonical,
            ),
            strip: table.list("strip", forms::field),
            keep: table.list("keep", forms::field),
            require: table.list("require", forms::field),
            unordered: table.list("unordered", forms::pointer),
            headers,
            sort_query: table.bool("sort_query"),
            fields: table.integer("fields", 8),
        };
        if !config.strip.is_empty() && !config.keep.is_empty() {
            let key = if table.own("strip").is_some() { "strip" } else { "keep" };
            let why = format!(
                r#"{}: "strip" and "keep" of "fingerprint" exclude each other: with "keep" nothing else counts anyway; set one to []"#,
                self.whose
            );
            self.wrong(table, key, why);
        }
        let of_body = |field: &Field| matches!(field, Field::Pointer(_) | Field::Form(_));
        if config.body != FingerprintBody::Canonical {
            for (key, says) in [
                ("strip", config.strip.iter().any(of_body)),
                ("keep", config.keep.iter().any(of_body)),
                ("unordered", !config.unordered.is_empty()),
            ] {
                if says {
                    let why = format!(
                        r#"{}: {key:?} of "fingerprint" looks into the body, which body = {:?} does not"#,
                        self.whose,
                        table.text("body").unwrap_or_default()
                    );
                    self.wrong(table, key, why);
                }
            }
        }
        if config.body == FingerprintBody::None && missing == Missing::Derive {
            let why = format!(
                r#"{}: missing = "derive" with body = "none" would make one key of all requests to a path"#,
                self.whose
            );
            self.wrong(table, "body", why);
        }
        config
    }

    fn recording(&mut self) -> Recording {
        let table = self.table.sub("record");
        let statuses = |key: &str| -> Vec<u16> {
            let items = table.node(key).map_or(&[][..], Node::items);
            items
                .iter()
                .filter_map(|item| match item.value {
                    Value::Integer(Some(status)) => u16::try_from(status).ok(),
                    _ => None,
                })
                .collect()
        };
        let lists = ["record", "release", "unknown"].map(|key| (key, statuses(key)));
        for (index, (key, list)) in lists.iter().enumerate() {
            for (other, earlier) in lists.iter().take(index) {
                if let Some(status) = list.iter().find(|status| earlier.contains(status)) {
                    let why = format!(r#"{}: {status} is both in {other:?} and in {key:?} of "record""#, self.whose);
                    self.wrong(table, key, why);
                }
            }
        }
        let [(_, record), (_, release), (_, unknown)] = lists;
        let mut release_when = Vec::new();
        for item in table.node("release_when").map_or(&[][..], Node::items) {
            let table = Layers::new(Some(item), None);
            for key in ["status", "header"] {
                if table.node(key).is_none() && matches!(item.value, Value::Table(_)) {
                    let why = format!(r#"an entry of "release_when" in "record" of {} lacks {key:?}"#, self.whose);
                    self.problems.error(&item.at, why);
                }
            }
            release_when.push(Predicate {
                status: table.integer("status", 503),
                header: table.form("header", forms::header).map_or_else(String::new, |name| name.to_string()),
                value: table.text("value").map(str::to_owned),
            });
        }
        let preset = table.choice(
            "preset",
            &[
                ("safe", Preset::Safe),
                ("rollback", Preset::Rollback),
                ("success", Preset::Success),
                ("stripe", Preset::Stripe),
            ],
            Preset::Safe,
        );
        Recording { preset, record, release, unknown, release_when }
    }

    fn on_unknown(&mut self, retry_max: u32, unknown_max: Duration) -> Vec<Step> {
        let table = self.table;
        let Some(items) = table.node("on_unknown").map(Node::items) else { return vec![Step::Hold] };
        let mut steps = Vec::new();
        for item in items {
            let step = match item.text() {
                Some("hold") => Some(Step::Hold),
                Some("retry") => Some(Step::Retry),
                Some("fail") => Some(Step::Fail),
                Some(_) => None,
                None => {
                    let span = Layers::new(Some(item), None);
                    if span.node("hold").is_none() && matches!(item.value, Value::Table(_)) {
                        let why = format!(r#"a table in "on_unknown" of {} must be {{ hold = "72h" }}"#, self.whose);
                        self.problems.error(&item.at, why);
                    }
                    span.form("hold", units::duration).map(Step::HoldFor)
                }
            };
            if let (Some(_), Some(last @ (Step::Hold | Step::Fail))) = (step, steps.last()) {
                let last = if *last == Step::Hold { "hold" } else { "fail" };
                let why =
                    format!(r#""on_unknown" of {}: nothing comes after {last:?}, which ends the list"#, self.whose);
                self.problems.error(&item.at, why);
            }
            if let Some(Step::HoldFor(span)) = step
                && span >= unknown_max
            {
                let (span, max) = (units::spell_duration(span), units::spell_duration(unknown_max));
                let why = format!(
                    "{}: the hold of {span} is not less than unknown_max ({max}), so what follows is never reached",
                    self.whose
                );
                self.problems.warn(&item.at, why);
            }
            if step == Some(Step::Retry) && retry_max == 0 {
                let why = format!(r#"{}: "retry" in "on_unknown" never runs with retry_max = 0"#, self.whose);
                self.problems.error(&item.at, why);
            }
            steps.extend(step);
        }
        if steps.is_empty() {
            if items.is_empty() {
                let why = format!(r#""on_unknown" in {} is empty: write ["hold"]"#, self.whose);
                self.wrong(table, "on_unknown", why);
            }
            steps.push(Step::Hold);
        }
        steps
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
