//! The configuration as the layer's routes and the proxy's upstreams.

use std::{collections::HashMap, sync::Arc};

use onceward::{
    BodyRule, Hash, KeyRules, Limits, Mode, Pointer, Route, Routes, RuleSet, Rules,
    route::{KeyRule, Missing, Part, Principal, PrincipalSource, ScopeRule, Source},
};
use tokio::sync::Semaphore;

use crate::{
    config::{self, Config, RouteConfig, route as said},
    proxy::{Dispatch, Passthrough, PassthroughTimes, Target, Upstream, UpstreamOptions},
};

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

/// The routes that the layer covers.
///
/// # Errors
/// [`Unusable`].
pub fn routes(config: &Config) -> Result<Routes, Unusable> {
    let shares = || -> HashMap<&str, Arc<Semaphore>> {
        let upstreams = config.upstreams.iter();
        let permits = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        upstreams.map(|upstream| (upstream.name.as_str(), permits(upstream.max_in_flight))).collect()
    };
    // What is only watched takes no permit from what is protected.
    let (busy, watched) = (shares(), shares());
    let route = |route: &RouteConfig| {
        let permits = if route.mode == said::Mode::Observe { &watched } else { &busy };
        route_of(route, permits, config.limits.canonical_body)
    };
    let named = config.routes.iter().map(route).collect::<Result<Vec<_>, _>>()?;
    Ok(Routes::new(named, route(&config.default_route)?))
}

/// The process limits, as the layer takes them.
#[must_use]
pub fn limits(limits: &config::Limits) -> Limits {
    Limits {
        waiters: limits.waiters,
        held_answer_bytes: limits.held_answer,
        canonical_body_bytes: usize::try_from(limits.canonical_body).unwrap_or(usize::MAX),
        spool_bytes: limits.spool,
        unrecorded_bytes: usize::try_from(limits.unrecorded).unwrap_or(usize::MAX),
        ..Limits::default()
    }
}

/// The service behind the layer.
///
/// # Errors
/// [`Unusable`].
pub fn dispatch(config: &Config) -> Result<Dispatch, Unusable> {
    let mut upstreams = HashMap::new();
    for upstream in &config.upstreams {
        let options = UpstreamOptions { connect_timeout: upstream.connect_timeout, ..UpstreamOptions::default() };
        let client = Upstream::new(&upstream.url.to_string(), &options)
            .map_err(|error| unusable(format!("upstream {:?}", upstream.name))(error.into()))?;
        upstreams.insert(upstream.name.as_str(), client);
    }
    let mut targets = HashMap::new();
    for route in config.routes.iter().chain([&config.default_route]) {
        let Some(upstream) = route.upstream.as_deref().and_then(|name| upstreams.get(name)) else { continue };
        let times = PassthroughTimes { timeout: route.timeout, idle_timeout: route.idle_timeout };
        let plain = Passthrough::new(upstream.clone(), times);
        let target =
            Target { upstream: upstream.clone(), execution_max: route.execution_max.max(route.idle_timeout), plain };
        targets.insert(route.name.clone(), target);
    }
    Ok(Dispatch::new(targets))
}

fn route_of(said: &RouteConfig, busy: &HashMap<&str, Arc<Semaphore>>, canonical_body: u64) -> Result<Route, Unusable> {
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
    route.wait = said.in_flight.wait;
    route.waiters_per_key = said.in_flight.waiters_per_key;
    route.request_body_bytes_max = said.limits.request_body;
    route.recorded_body_bytes_max = usize::try_from(said.limits.recorded_body).unwrap_or(usize::MAX);
    route.mismatch_status = said.mismatch_status;
    route.replay_ack = said.replay.body == said::ReplayBody::Ack;
    route.replay_header.clone_from(&said.replay.header);
    route.set_cookie = said.set_cookie;
    if let Some(permits) = said.upstream.as_deref().and_then(|name| busy.get(name)) {
        route.in_flight = Arc::clone(permits);
    }
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
        decode: false,
        fields: said.fields,
        canonical_body_max: usize::try_from(canonical_body).unwrap_or(usize::MAX),
    };
    Ok(Rules::compile(&set)?)
}
