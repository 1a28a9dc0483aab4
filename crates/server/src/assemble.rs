//! The configuration as the layer's routes and the proxy's upstreams.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderValue, Uri, uri::Scheme};
use onceward::{
    Auth, AuthRules, Body, BodyRule, EffectRules, Effects, Hash, KeyRules, Limits, Mode, Pointer, Probe, ProbeRules,
    Route, Routes, RuleSet, Rules,
    ask::Client,
    route::{KeyRule, Missing, Part, Principal, PrincipalSource, ScopeRule, Source},
    store::postgres::PostgresEffects,
};
use tokio::sync::Semaphore;

use crate::{
    ask::Questions,
    config::{self, Config, Database, RouteConfig, route as said},
    opened,
    proxy::{Certificates, ClientTls, Passthrough, PassthroughTimes, Target, Upstream, UpstreamOptions},
};

/// How long a look may take before its connection is given up: longer than the schema lets it wait for a lock.
const EFFECT_DEADLINE: Duration = Duration::from_secs(30);

/// A route or upstream that the layer or the transport does not take, though the configuration did.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Unusable {
    what: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn unusable(what: String) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Unusable {
    move |source| Unusable { what, source }
}

/// The upstreams of a configuration, each with its connections and the permits of its requests.
#[derive(Debug, Default)]
pub struct Upstreams {
    by_name: HashMap<String, Reached>,
    certificates: Certificates,
}

/// One upstream, as its configuration says.
#[derive(Debug)]
struct Reached {
    said: config::Upstream,
    client: Upstream<Body>,
    permits: Arc<Semaphore>,
    /// A share for routes in shadow mode, which take nothing from those that protect.
    watched: Arc<Semaphore>,
}

impl Upstreams {
    /// Those of `config`. One that `before` has with the same words keeps its connections and permits.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn new(config: &Config, before: &Self) -> Result<Self, Unusable> {
        let reached = |said: &config::Upstream| {
            if let Some(same) = before.by_name.get(&said.name).filter(|before| before.said == *said) {
                let (permits, watched) = (Arc::clone(&same.permits), Arc::clone(&same.watched));
                let reached = Reached { said: said.clone(), client: same.client.clone(), permits, watched };
                return Ok((said.name.clone(), reached));
            }
            let options = UpstreamOptions {
                connect_timeout: said.connect_timeout,
                http2: said.http2,
                tls: Self::tls(said, &before.certificates)?,
                ..UpstreamOptions::default()
            };
            let client = Upstream::new(&said.url.to_string(), &options)
                .map_err(|error| unusable(format!("upstream {:?}", said.name))(error.into()))?;
            let permits = || Arc::new(Semaphore::new(said.max_in_flight.min(Semaphore::MAX_PERMITS)));
            let reached = Reached { said: said.clone(), client, permits: permits(), watched: permits() };
            Ok((said.name.clone(), reached))
        };
        let by_name = config.upstreams.iter().map(reached).collect::<Result<_, _>>()?;
        Ok(Self { by_name, certificates: before.certificates.clone() })
    }

    /// The certificates of all of them, to be reloaded; those of the listener belong here too.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    fn tls(said: &config::Upstream, certificates: &Certificates) -> Result<Option<Arc<ClientTls>>, Unusable> {
        if said.url.scheme() != Some(&Scheme::HTTPS) {
            return Ok(None);
        }
        let tls = ClientTls::load(&said.name, &said.tls, certificates);
        tls.map(Some).map_err(|errors| unusable(format!("upstream {:?}", said.name))(errors.into()))
    }
}

/// The routes that the layer covers, each with the [`Target`] that the service behind it sends to.
///
/// # Errors
/// [`Unusable`].
pub fn routes(config: &Config, upstreams: &Upstreams) -> Result<Routes, Unusable> {
    let mut asks = Asks {
        config,
        certificates: &upstreams.certificates,
        clients: HashMap::new(),
        auths: Vec::new(),
        tables: Vec::new(),
    };
    let mut route = |said: &RouteConfig| {
        let mut route = route_of(said, config.limits.canonical_body)?;
        let wrong = unusable(format!("route {:?}: who is asked", said.name));
        let mut asked = || -> Result<_, Failed> {
            let auth = said.auth.as_ref().map(|said| asks.auth(said)).transpose()?;
            let probe = said.probe.as_ref().map(|said| asks.probe(said)).transpose()?;
            Ok((auth, probe, said.effect.as_ref().map(|said| asks.effects(said)).transpose()?))
        };
        (route.auth, route.probe, route.effects) = asked().map_err(wrong)?;
        if let Some(reached) = said.upstream.as_ref().and_then(|name| upstreams.by_name.get(name)) {
            let permits = if route.mode == Mode::Observe { &reached.watched } else { &reached.permits };
            route.in_flight = Arc::clone(permits);
            route.extensions.insert(Arc::new(target(said, &reached.client)));
        }
        Ok(route)
    };
    let named = config.routes.iter().map(&mut route).collect::<Result<Vec<_>, _>>()?;
    Ok(Routes::new(named, route(&config.default_route)?))
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What asks others, and the clients that it asks with.
struct Asks<'c> {
    config: &'c Config,
    certificates: &'c Certificates,
    /// By scheme, host and port.
    clients: HashMap<String, Arc<Questions>>,
    /// Routes that check alike share what is remembered.
    auths: Vec<(said::AuthConfig, Arc<Auth>)>,
    /// Those of one database share its connections.
    tables: Vec<(Database, Arc<PostgresEffects>)>,
}

impl Asks<'_> {
    fn client(&mut self, server: &str) -> Result<Arc<dyn Client>, Failed> {
        if let Some(client) = self.clients.get(server) {
            return Ok(Arc::clone(client) as Arc<dyn Client>);
        }
        let client = Arc::new(Questions::new(server, &options_for(self.config, server, self.certificates)?)?);
        self.clients.insert(server.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    fn auth(&mut self, said: &said::AuthConfig) -> Result<Arc<Auth>, Failed> {
        if let Some((_, same)) = self.auths.iter().find(|(other, _)| other == said) {
            return Ok(Arc::clone(same));
        }
        let server = server_of(&said.url);
        let mut rules = AuthRules::new(said.url.clone());
        rules.headers.clone_from(&said.headers);
        rules.cache = said.cache;
        rules.timeout = said.timeout;
        rules.principal_header.clone_from(&said.principal_header);
        let auth = Arc::new(Auth::new(self.client(&server)?, rules));
        self.auths.push((said.clone(), Arc::clone(&auth)));
        Ok(auth)
    }

    fn probe(&mut self, said: &said::ProbeConfig) -> Result<Arc<Probe>, Failed> {
        let mut rules = ProbeRules::new(said.url.clone());
        rules.executed.clone_from(&said.executed);
        rules.not_executed.clone_from(&said.not_executed);
        rules.ack = said.replay == said::ReplayBody::Ack;
        rules.timeout = said.timeout;
        for (name, value) in &said.headers {
            // Read as the value of a header before.
            if let Ok(mut value) = HeaderValue::from_str(value.expose()) {
                value.set_sensitive(true);
                rules.headers.append(name.clone(), value);
            }
        }
        Ok(Arc::new(Probe::new(self.client(said.url.server())?, rules)))
    }

    fn effects(&mut self, said: &said::EffectConfig) -> Result<Arc<Effects>, Failed> {
        let of_records = self.config.store.postgres.as_ref().map(|store| &store.database);
        let Some(database) = said.database.as_ref().or(of_records) else {
            return Err("nothing says in which database the effects are".into());
        };
        let table = match self.tables.iter().find(|(other, _)| other == database) {
            Some((_, same)) => Arc::clone(same),
            None => {
                let new = Arc::new(PostgresEffects::new(&opened::address(database)?, EFFECT_DEADLINE));
                self.tables.push((database.clone(), Arc::clone(&new)));
                new
            }
        };
        let mut rules = EffectRules::default();
        rules.name.clone_from(&said.name);
        rules.timeout = said.timeout;
        rules.rows.clone_from(&said.rows);
        Ok(Arc::new(Effects::new(table, rules)))
    }
}

/// How a server is reached that is no upstream by itself. One that is an upstream too is known by that one's authorities,
/// and shown its certificate; any other by the system's.
pub(crate) fn options_for(
    config: &Config,
    server: &str,
    certificates: &Certificates,
) -> Result<UpstreamOptions, Failed> {
    let mut options = UpstreamOptions::default();
    if server.starts_with("https://") {
        let same = config.upstreams.iter().find(|upstream| server_of(&upstream.url) == server);
        let said = same.map(|upstream| upstream.tls.clone()).unwrap_or_default();
        options.tls = Some(ClientTls::load(server, &said, certificates)?);
    }
    Ok(options)
}

/// Scheme, host and port.
fn server_of(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", url.scheme_str().unwrap_or_default())
}

/// A route that names records and serves nothing: for telling what the id of a request is, or was.
///
/// # Errors
/// [`Unusable`].
pub(crate) fn name_of(said: &RouteConfig) -> Result<Route, Unusable> {
    route_of(said, 0)
}

fn target(said: &RouteConfig, upstream: &Upstream<Body>) -> Target {
    let times = PassthroughTimes { timeout: said.timeout, idle_timeout: said.idle_timeout };
    let plain = Passthrough::new(upstream.clone(), times);
    Target { upstream: upstream.clone(), execution_max: said.execution_max.max(said.idle_timeout), plain }
}

/// The process limits, as the layer takes them.
#[must_use]
pub fn limits(limits: &config::Limits) -> Limits {
    Limits {
        waiters: limits.waiters,
        held_answer_bytes: limits.held_answer,
        canonical_body_bytes: usize::try_from(limits.canonical_body).unwrap_or(usize::MAX),
        decode_ratio: limits.decode_ratio,
        spool_bytes: limits.spool,
        unrecorded_bytes: usize::try_from(limits.unrecorded).unwrap_or(usize::MAX),
        replay_cache_bytes: usize::try_from(limits.replay_cache).unwrap_or(usize::MAX),
        ..Limits::default()
    }
}

fn route_of(said: &RouteConfig, canonical_body: u64) -> Result<Route, Unusable> {
    let wrong = |what: &str| unusable(format!("route {:?}: {what}", said.name));
    let mut route = Route::new(&said.name);
    route.methods.clone_from(&said.matching.methods);
    if said.name != said::DEFAULT_ROUTE {
        route.path = Some(said.matching.path.clone());
        route.host.clone_from(&said.matching.host);
    }
    // Where nothing is behind it there is nothing to protect: the answer is 404.
    route.mode = match said.mode {
        said::Mode::Enforce if said.upstream.is_some() => Mode::Enforce,
        said::Mode::Observe if said.upstream.is_some() => Mode::Observe,
        _ => Mode::Off,
    };
    route.key = key_rule(said).map_err(wrong("key.from"))?;
    route.scope = scope_rule(&said.scope);
    route.fingerprint = fingerprint(&said.fingerprint, canonical_body).map_err(wrong("fingerprint"))?;
    route.policy = Arc::new(said.policy());
    route.timeout = said.timeout;
    route.execution_max = said.execution_max;
    route.idle_timeout = said.idle_timeout;
    route.record_wait = said.record_wait;
    route.durability = said.durability;
    route.quarantine = said.quarantine.then_some(said.client_retries);
    route.wait = said.in_flight.wait;
    route.waiters_per_key = said.in_flight.waiters_per_key;
    route.request_body_bytes_max = said.limits.request_body;
    route.recorded_body_bytes_max = usize::try_from(said.limits.recorded_body).unwrap_or(usize::MAX);
    route.mismatch_status = said.mismatch_status;
    route.replay_ack = said.replay.body == said::ReplayBody::Ack;
    route.replay_header.clone_from(&said.replay.header);
    route.set_cookie = said.set_cookie;
    if said.forward_key == said::ForwardKey::Derived {
        route.forward_derived.clone_from(&said.upstream);
    }
    Ok(route)
}

fn key_rule(route: &RouteConfig) -> Result<KeyRule, Box<dyn std::error::Error + Send + Sync>> {
    let said = &route.key;
    let mut from = Vec::with_capacity(said.from.len());
    for source in &said.from {
        from.push(match source {
            said::KeySource::Header(name) => Source::Header(name.clone()),
            said::KeySource::Json(pointer) => Source::Json(Pointer::parse(pointer)?),
            said::KeySource::Form(name) => Source::Form(name.clone()),
            said::KeySource::Query(name) => Source::Query(name.clone()),
        });
    }
    let missing = match said.missing {
        said::Missing::Optional => Missing::Optional,
        said::Missing::Required => Missing::Required,
        said::Missing::Derive => Missing::Derive(said.derived_retention),
    };
    let rules = KeyRules { strict: said.strict, min_length: said.min_length };
    Ok(KeyRule { from, missing, rules, docs: said.docs.clone() })
}

fn scope_rule(said: &said::ScopeConfig) -> ScopeRule {
    let part = |part: &said::ScopePart| match part {
        said::ScopePart::Fixed(value) => Part::Fixed(value.clone()),
        said::ScopePart::Header(name) => Part::Header(name.clone()),
    };
    let principal = match &said.principal {
        said::Principal::Auto => Principal::Auto,
        said::Principal::None => Principal::None,
        said::Principal::Parts(parts) => Principal::List(
            parts
                .iter()
                .map(|part| match part {
                    said::PrincipalPart::Header(name) => PrincipalSource::Header(name.clone()),
                    said::PrincipalPart::Cookie(name) => PrincipalSource::Cookie(name.clone()),
                    said::PrincipalPart::Mtls => PrincipalSource::Mtls,
                })
                .collect(),
        ),
    };
    ScopeRule { tenant: part(&said.tenant), env: part(&said.env), principal }
}

fn fingerprint(
    said: &said::FingerprintConfig,
    canonical_body: u64,
) -> Result<Rules, Box<dyn std::error::Error + Send + Sync>> {
    let fields = |fields: &[said::Field]| -> Vec<String> {
        fields
            .iter()
            .map(|field| match field {
                said::Field::Pointer(pointer) => pointer.clone(),
                said::Field::Query(name) => format!("query:{name}"),
                said::Field::Form(name) => format!("form:{name}"),
            })
            .collect()
    };
    let set = RuleSet {
        hash: match said.hash {
            said::Hash::Blake3 => Hash::Blake3,
            said::Hash::Sha256 => Hash::Sha256,
        },
        body: match said.body {
            said::FingerprintBody::Canonical => BodyRule::Canonical,
            said::FingerprintBody::Raw => BodyRule::Raw,
            said::FingerprintBody::None => BodyRule::None,
        },
        strip: fields(&said.strip),
        keep: fields(&said.keep),
        require: fields(&said.require),
        unordered: said.unordered.clone(),
        headers: said.headers.iter().map(ToString::to_string).collect(),
        sort_query: said.sort_query,
        decode: said.decode,
        fields: said.fields,
        canonical_body_max: usize::try_from(canonical_body).unwrap_or(usize::MAX),
    };
    Ok(Rules::compile(&set)?)
}
