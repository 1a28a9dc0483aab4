//! Which requests are covered, and how each is treated.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, Method, Uri};
use onceward_core::{
    canonical::{Pointer, Rules},
    key::KeyRules,
    policy::{Policy, Preset},
};
use onceward_store::Durability;
use tokio::sync::Semaphore;

use crate::{
    auth::Auth,
    pattern::Pattern,
    probe::{Effects, Probe},
};

/// How requests of one route are treated. Names and defaults are those of the configuration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Route {
    /// Unique among the routes; part of every key's scope.
    pub name: String,
    /// Methods it covers.
    pub methods: Vec<Method>,
    /// Paths it covers; `None` for all.
    pub path: Option<Pattern>,
    /// Host it covers; `None` for all.
    pub host: Option<String>,
    /// Whether they are protected at all.
    pub mode: Mode,
    /// Where the key comes from.
    pub key: KeyRule,
    /// Whom a key belongs to.
    pub scope: ScopeRule,
    /// Checks credentials before a claim and before a replay.
    pub auth: Option<Arc<Auth>>,
    /// What makes two requests the same.
    pub fingerprint: Rules,
    /// Lifetimes, recording and what to do with unknown outcomes.
    pub policy: Arc<Policy>,
    /// Who is asked by the step `probe` of the policy's list.
    pub probe: Option<Arc<Probe>>,
    /// Where the step `effect` of the policy's list looks.
    pub effects: Option<Arc<Effects>>,
    /// To the upstream's head; after it the client gets 504 and the execution goes on.
    pub timeout: Duration,
    /// To the end of an answer that is kept; after it the outcome is unknown.
    pub execution_max: Duration,
    /// Between two frames of an answer that is not kept.
    pub idle_timeout: Duration,
    /// How long a duplicate waits for the first.
    pub wait: Duration,
    /// How many wait for one key.
    pub waiters_per_key: usize,
    /// Longer request bodies are refused.
    pub request_body_bytes_max: u64,
    /// Longer answers are recorded without their body.
    pub recorded_body_bytes_max: usize,
    /// 422, 409 or 400.
    pub mismatch_status: u16,
    /// Replays are 200 without a body.
    pub replay_ack: bool,
    /// Marks replays.
    pub replay_header: HeaderName,
    /// Whether `Set-Cookie` is recorded and replayed.
    pub set_cookie: bool,
    /// Executions at a time; routes with one upstream share it.
    pub in_flight: Arc<Semaphore>,
    /// The upstream gets a child key for this step instead of the client's key.
    pub forward_derived: Option<String>,
    /// How its records are kept, by a store that offers more than one way
    /// ([`Store::keep_by_route`](onceward_store::Store::keep_by_route)).
    pub durability: Durability,
    /// So long after a loss of the store ([`Stats::cache`](onceward_store::Stats::cache)) new keys are refused, since they
    /// may be old ones whose records were lost; what is still there is answered. `None`: they are claimed.
    pub quarantine: Option<Duration>,
    /// How long a completed answer is withheld while the store does not confirm its record.
    pub record_wait: Duration,
    /// What the service behind the layer wants to know of the route. The layer does not look at it.
    pub extensions: http::Extensions,
    /// Whether it is the one for everything that no other covers.
    pub(crate) is_fallback: bool,
}

/// Whether a route protects its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does.
    Enforce,
    /// It only says what it would do: everything passes through.
    Observe,
    /// Everything passes through.
    Off,
}

/// Where a route's key comes from.
#[derive(Clone, Debug)]
pub struct KeyRule {
    /// All that are present must agree.
    pub from: Vec<Source>,
    /// What to do without one.
    pub missing: Missing,
    /// How it may be spelled.
    pub rules: KeyRules,
    /// Documentation of the route's keys, for the refusal of a missing one.
    pub docs: Option<String>,
}

/// One place where a key may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A header.
    Header(HeaderName),
    /// A string in a JSON body, by RFC 6901 pointer.
    Json(Pointer),
    /// A field of a form body.
    Form(String),
    /// A parameter of the query.
    Query(String),
}

/// What to do with a request without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Forward it unprotected.
    Optional,
    /// Refuse it.
    Required,
    /// Its fingerprint is its key, for so long.
    Derive(Duration),
}

/// Whom a key belongs to.
#[derive(Clone, Debug)]
pub struct ScopeRule {
    /// The tenant.
    pub tenant: Part,
    /// The environment.
    pub env: Part,
    /// The caller.
    pub principal: Principal,
}

/// A part of the scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Always this.
    Fixed(String),
    /// From a header that a trusted hop sets.
    Header(HeaderName),
}

/// How the caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// By the credential that is there, as PROTOCOL section 3 says.
    Auto,
    /// One principal for all.
    None,
    /// By these, joined in order.
    List(Vec<PrincipalSource>),
    /// By this header of the answer of the route's `auth` check, whatever else is said. [`Route::auth`] itself says
    /// it of a route that serves; of one that only names records, nothing else does.
    Auth(HeaderName),
}

/// One part of a listed principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrincipalSource {
    /// A header; one that is no credential counts only from trusted peers.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
    /// The subject of the client's certificate, see [`PeerCertificate`](crate::PeerCertificate).
    Mtls,
}

impl Route {
    /// How the caller is told: by `auth`, where that names it, else as the scope says.
    #[must_use]
    pub fn told_by(&self) -> Principal {
        match self.auth.as_ref().and_then(|auth| auth.names_the_caller()) {
            Some(header) => Principal::Auth(header.clone()),
            None => self.scope.principal.clone(),
        }
    }

    /// Whether it protects requests of this method. Safe ones have no effect to protect.
    #[must_use]
    pub fn covers(&self, method: &Method) -> bool {
        self.mode == Mode::Enforce && is_protectable(method) && self.methods.contains(method)
    }

    /// Whether it watches requests that it would protect.
    #[must_use]
    pub fn watches(&self, method: &Method) -> bool {
        self.mode == Mode::Observe && is_protectable(method) && self.methods.contains(method)
    }

    /// A route with the defaults of the configuration: POST and PATCH, any path.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            methods: vec![Method::POST, Method::PATCH],
            path: None,
            host: None,
            mode: Mode::Enforce,
            key: KeyRule {
                from: vec![
                    Source::Header(HeaderName::from_static("idempotency-key")),
                    Source::Header(HeaderName::from_static("x-idempotency-key")),
                ],
                missing: Missing::Optional,
                rules: KeyRules::default(),
                docs: None,
            },
            scope: ScopeRule {
                tenant: Part::Fixed("default".into()),
                env: Part::Fixed("default".into()),
                principal: Principal::Auto,
            },
            auth: None,
            fingerprint: Rules::default(),
            in_flight: Arc::new(Semaphore::new(1000)),
            policy: Arc::new(Policy::default()),
            probe: None,
            effects: None,
            timeout: Duration::from_secs(30),
            execution_max: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(60),
            wait: Duration::from_secs(20),
            waiters_per_key: 1024,
            request_body_bytes_max: 10 << 20,
            recorded_body_bytes_max: 1 << 20,
            mismatch_status: 422,
            replay_ack: false,
            replay_header: HeaderName::from_static("idempotent-replayed"),
            set_cookie: false,
            forward_derived: None,
            durability: Durability::default(),
            quarantine: None,
            record_wait: Duration::from_secs(2),
            extensions: http::Extensions::new(),
            is_fallback: false,
        }
    }

    /// Whether Stripe's hint header goes with answers of our own.
    pub(crate) fn says_should_retry(&self) -> bool {
        self.policy.recording.preset == Preset::Stripe
    }
}

/// All routes of a process, the closest first, and the one for everything else.
#[derive(Clone, Debug)]
pub struct Routes {
    /// By precedence.
    routes: Vec<Arc<Route>>,
    fallback: Arc<Route>,
}

impl Routes {
    /// `fallback` is the route named `default`; `routes` are in the order of the file.
    #[must_use]
    pub fn new(routes: Vec<Route>, mut fallback: Route) -> Self {
        fallback.is_fallback = true;
        let mut routes: Vec<Arc<Route>> = routes.into_iter().map(Arc::new).collect();
        // More literal segments win, then `{name}` before `{*rest}`, then a host before none; a
        // stable sort leaves the rest to the order in the file.
        routes.sort_by_key(|route| {
            let closeness = route.path.as_ref().map_or((std::cmp::Reverse(0), true), Pattern::closeness);
            (closeness, route.host.is_none())
        });
        Self { routes, fallback: Arc::new(fallback) }
    }

    /// The route of a request: the closest that names its method, path and host, else the fallback.
    #[must_use]
    pub fn of(&self, method: &Method, path: &str, host: Option<&str>) -> &Arc<Route> {
        if self.routes.is_empty() {
            return &self.fallback;
        }
        let path = normal(path);
        let named = self.routes.iter().find(|route| {
            route.methods.contains(method)
                && route.path.as_ref().is_none_or(|pattern| pattern.matches(&path))
                && route.host.as_deref().is_none_or(|want| host.is_some_and(|have| is_host(want, have)))
        });
        named.unwrap_or(&self.fallback)
    }

    /// The route named `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Route>> {
        self.all().find(|route| route.name == name)
    }

    /// The environment of a route's keys, where it is always the same. `route` is a name, or `default METHOD PATH`.
    pub(crate) fn env_of(&self, route: &str) -> &str {
        let name = route.split_once(' ').map_or(route, |(name, _)| name);
        match self.named(name).map(|route| &route.scope.env) {
            Some(Part::Fixed(env)) => env,
            Some(Part::Header(_)) | None => "default",
        }
    }

    /// Whether any of them protects requests of this method.
    #[must_use]
    pub fn protect(&self, method: &Method) -> bool {
        is_protectable(method) && self.all().any(|route| route.covers(method))
    }

    /// All of them, the fallback last.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter().chain(std::iter::once(&self.fallback))
    }
}

/// The host that a request names, without its port.
#[must_use]
pub fn host_of<'r>(uri: &'r Uri, headers: &'r http::HeaderMap) -> Option<&'r str> {
    uri.host().or_else(|| headers.get(http::header::HOST).and_then(|host| host.to_str().ok()))
}

fn is_host(want: &str, have: &str) -> bool {
    let without_port = match have.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => have,
    };
    want.eq_ignore_ascii_case(without_port)
}

/// GET, HEAD, OPTIONS and TRACE have no effect to protect, CONNECT is a tunnel.
fn is_protectable(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT)
}

/// `path` with percent-encoded unreserved characters (RFC 3986, 6.2.2.2) decoded, and the digits of all other
/// encodings in upper case (6.2.2.1).
#[must_use]
pub fn normal(path: &str) -> std::borrow::Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let hex = after.get(1..3).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let decoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).map(char::from);
        match (hex, decoded) {
            (Some(_), Some(char)) if char.is_ascii_alphanumeric() || "-._~".contains(char) => out.push(char),
            (Some(hex), _) => {
                out.push('%');
                out.push_str(&hex.to_ascii_uppercase());
            }
            (None, _) => {
                out.push('%');
                rest = after.get(1..).unwrap_or_default();
                continue;
            }
        }
        rest = after.get(3..).unwrap_or_default();
    }
    out.push_str(rest);
    out.into()
}

/// Whether servers may read `path` in more than one way: dot segments, encoded separators, NUL.
#[must_use]
pub fn is_ambiguous(path: &str) -> bool {
    let path = normal(path);
    path.split('/').any(|segment| segment == "." || segment == "..")
        || ["%2F", "%5C", "%00"].iter().any(|encoded| path.contains(encoded))
        || path.contains(['\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, path: &str, host: Option<&str>) -> Route {
        Route { path: Some(Pattern::parse(path).unwrap()), host: host.map(Into::into), ..Route::new(name) }
    }

    #[test]
    fn the_closest_route_covers_a_request() {
        let routes = Routes::new(
            vec![
                route("all", "/{*rest}", None),
                route("any-order", "/v1/orders/{id}", None),
                route("new-order", "/v1/orders/new", None),
                route("orders-rest", "/v1/orders/{*rest}", None),
                route("order-at-host", "/v1/orders/{id}", Some("api.example")),
                route("spelled", "/v2/%63aff%c3%a9", None),
            ],
            Route::new("default"),
        );
        let rows = [
            ("/v1/orders/new", None, "new-order"),
            ("/v1/orders/7", None, "any-order"),
            ("/v1/orders/7", Some("API.example:8080"), "order-at-host"),
            ("/v1/orders/7/pay", None, "orders-rest"),
            ("/v1/orders", None, "orders-rest"),
            ("/v1/%6Frders/ne%77", None, "new-order"),
            ("/v1/orders//", None, "orders-rest"),
            ("/", None, "all"),
            ("/v2/caff%C3%A9", None, "spelled"),
            ("/v2/%63aff%C3%a9", None, "spelled"),
        ];
        for (path, host, name) in rows {
            assert_eq!(routes.of(&Method::POST, path, host).name, name, "{path} {host:?}");
        }
    }

    #[test]
    fn safe_methods_and_unlisted_ones_pass_through() {
        let routes = Routes::new(vec![], Route::new("default"));
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE] {
            assert!(!routes.of(&method, "/", None).covers(&method), "{method}");
        }
        assert!(routes.of(&Method::PATCH, "/", None).covers(&Method::PATCH));
    }

    #[test]
    fn paths_that_servers_read_differently_are_told() {
        for path in ["/a/../b", "/a/./b", "/a/%2e%2E/b", "/a%2Fb", "/a%2fb", "/a%5cb", "/a%00", "/a\\b", "/a%2e"] {
            let ambiguous = is_ambiguous(path);
            assert_eq!(ambiguous, path != "/a%2e", "{path}");
        }
        for path in ["/a//b", "/a%20b", "/a.b/..c", "/%7Eme"] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }
}
