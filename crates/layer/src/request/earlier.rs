//! The same request as it was named before: under an earlier list of routes, or another install secret.
//!
//! After a change of what record ids are made of, a key's record may still stand under its earlier id. That one is
//! looked at first, and what is found there is gone on with. Nothing is ever inserted under an earlier id, so that one
//! that is gone stays gone: two requests can then meet under the present id only.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use onceward_core::{
    canonical::{self, Rules},
    decide::Ask,
    fingerprint::Fingerprinter,
    key::{ClientKey, RecordId, Scope, Secret},
    record::Micros,
};

use super::{
    again::Again,
    key,
    principal::{self, Who, principal, scope_part, scope_route},
};
use crate::{
    engine::new_claim_id,
    policies,
    route::{self, Principal, Route, Routes},
};

/// What record ids were made of until some time.
#[derive(Debug)]
pub struct Before {
    /// The routes.
    pub routes: Routes,
    /// The install secret.
    pub secret: Secret,
    /// When, on the store's clock, no record of that time is left: no id is looked up under it any more.
    pub until: Micros,
}

/// A [`Before`], ready to be looked under.
#[derive(Debug)]
pub(crate) struct Earlier {
    pub(crate) routes: Routes,
    pub(crate) secret: Secret,
    pub(crate) until: Micros,
    fingerprinter: Fingerprinter,
}

impl Earlier {
    pub(crate) fn new(before: Before) -> Self {
        let Before { routes, secret, until } = before;
        Self { fingerprinter: Fingerprinter::new(&secret), routes, secret, until }
    }
}

/// One earlier name of a request.
pub(crate) struct Name {
    pub(crate) id: RecordId,
    principal_proof: Option<[u8; 16]>,
    earlier: usize,
}

/// What of a request names it.
pub(super) struct Named<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) head: &'a canonical::Request<'a>,
    pub(super) trusted: bool,
    /// The body, where it is in memory.
    pub(super) memory: Option<&'a Bytes>,
    /// The key that the request has now.
    pub(super) key: &'a ClientKey,
    /// Who asks now, where the `auth` check named the caller.
    pub(super) caller: Option<&'a str>,
}

/// The names that the request had and does not have any more, the latest first. What could not be told then, the
/// caller or the key, has no name of that time.
pub(super) fn names(earlier: &[Arc<Earlier>], named: &Named<'_>, id: &RecordId) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    for (index, before) in earlier.iter().enumerate() {
        let host = route::host_of(named.uri, named.headers);
        let route = before.routes.of(named.method, named.uri.path(), host);
        if !route.covers(named.method) {
            continue;
        }
        if let Some((old, principal_proof)) = name_of(before, route, named)
            && old != *id
            && names.iter().all(|name| name.id != old)
        {
            names.push(Name { id: old, principal_proof, earlier: index });
        }
    }
    names
}

fn name_of(before: &Earlier, route: &Arc<Route>, named: &Named<'_>) -> Option<(RecordId, Option<[u8; 16]>)> {
    let Named { method, uri, headers, head, trusted, memory, key, caller } = named;
    let from_head = key::from_head(route, headers, uri.query()).ok()?;
    let found = key::agreed(route, from_head, head, memory.map(Bytes::as_ref)).ok()?;
    // A key that was derived then is derived now as well.
    let key = found.as_ref().unwrap_or(key);
    let who = match route.told_by() {
        Principal::Auth(_) => Who { spelled: (*caller)?.to_owned(), proof: None },
        _ => principal(&before.secret, route, headers, *trusted).ok()?,
    };
    let tenant = scope_part(&route.scope.tenant, headers, *trusted).ok()?;
    let env = scope_part(&route.scope.env, headers, *trusted).ok()?;
    let route_name = scope_route(route, method, uri.path());
    let scope = Scope { tenant: &tenant, env: &env, principal: &who.spelled, route: &route_name };
    Some((RecordId::derive(&before.secret, &scope, key.as_str()), who.proof))
}

impl Name {
    /// How the request is hashed for records of that name's time.
    pub(crate) fn fingerprinter<'e>(&self, earlier: &'e [Arc<Earlier>]) -> Option<&'e Fingerprinter> {
        earlier.get(self.earlier).map(|before| &before.fingerprinter)
    }

    /// What the request asks for under this name. `again` hashes as [`Self::fingerprinter`] says.
    pub(crate) async fn ask(&self, now: &Ask, again: &mut Again<'_>, rules: &Rules) -> Ask {
        let mut ask = Ask { claim_id: new_claim_id(), principal_proof: self.principal_proof, ..now.clone() };
        match again.under(rules).await {
            Some(fingerprint) => ask.fingerprint = fingerprint,
            // Nothing to compare with: as where the rules are gone, the key decides.
            None => ask.fingerprint_policy = policies::UNKNOWN,
        }
        ask
    }
}

/// The earlier ids of a key, for whoever looks for its record.
pub(crate) fn ids(
    earlier: &[Arc<Earlier>],
    key: &str,
    tenant: &str,
    route: &str,
    authorization: Option<&str>,
) -> Vec<RecordId> {
    let id = |before: &Arc<Earlier>| {
        let principal = principal::principal_of(&before.secret, authorization).ok()?;
        let env = before.routes.env_of(route);
        let scope = Scope { tenant, env, principal: &principal, route };
        Some(RecordId::derive(&before.secret, &scope, key))
    };
    earlier.iter().filter_map(id).collect()
}
