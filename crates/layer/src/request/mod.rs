//! What a request asks: its key, whose it is, its body within bounds, its fingerprint.
//!
//! [`key`] where the key stands, [`principal`] whose it is, [`collect`] the body and its fingerprint, [`plain`] how the
//! fingerprint reads it, [`again`] that under other rules, [`earlier`] how the request was named before a change of
//! routes or secret, [`one_message`] what of gRPC is a request.

pub(crate) mod again;
pub(crate) mod collect;
pub(crate) mod earlier;
pub(crate) mod key;
pub(crate) mod one_message;
pub(crate) mod plain;
pub(crate) mod principal;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header};
use http_body::Body as HttpBody;
use onceward_core::{
    canonical::{self, Rules},
    claim::Belongs,
    decide::Ask,
    fingerprint::FieldDigest,
    key::{ClientKey, RecordId, Scope},
};

use self::{
    collect::{collect, digests, is_encoded, listed_headers, with_workspace},
    one_message::OneMessage,
    principal::{Who, principal, scope_part, scope_route},
};
use crate::{
    ask::Answer,
    auth::Verdict,
    body::{Body, BoxError},
    engine::{Engine, new_claim_id},
    grpc, policies,
    refuse::Problem,
    replay::REQUEST_ID,
    route::{Missing, Route, Source},
};

/// Request extension: whether the peer is a hop whose principal, tenant and forwarding headers
/// count. Without it, as in a library behind one's own server, every peer is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedPeer(pub bool);

/// Request extension: the subject of the client certificate that was verified on the request's connection, in the form
/// of RFC 4514. Whoever puts it there vouches for the verification. Without it there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate(pub Arc<str>);

/// A request that brings a key, or is given one.
pub(crate) struct Asked {
    pub(crate) id: RecordId,
    pub(crate) ask: Ask,
    pub(crate) belongs: Belongs,
    pub(crate) fields: Vec<[u8; 8]>,
    pub(crate) key: ClientKey,
    pub(crate) request: Request<Body>,
    /// The body, where it is in memory: to name what differs from the first request.
    pub(crate) body: Option<Bytes>,
    pub(crate) derived: bool,
    pub(crate) unverified_principal: bool,
    /// Where the key's record may stand from before.
    pub(crate) earlier: Vec<earlier::Name>,
}

/// What became of reading a request.
#[expect(clippy::large_enum_variant, reason = "moved once, to whoever reads it")]
pub(crate) enum Reading {
    /// It has a key.
    Protected(Box<Asked>),
    /// It has none, and its route lets it pass.
    Unprotected(Request<Body>),
    /// Its credentials were checked, and this is what its client is told.
    Denied(Arc<Answer>),
}

/// The id of a request: its own, or a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    const ID_BYTES_MAX: usize = 200;
    if let Some(id) = headers.get(REQUEST_ID)
        && (1..=ID_BYTES_MAX).contains(&id.len())
        && id.to_str().is_ok()
    {
        return id.clone();
    }
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text: &str = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Reads a request on a covered route. The order of checks is PROTOCOL section 3's: key,
/// principal, credentials, body, required fields.
pub(crate) fn read<'a, B>(
    engine: &'a Engine,
    route: &'a Arc<Route>,
    request: Request<B>,
) -> impl Future<Output = Result<Reading, Problem>> + Send + 'a
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    // Not an `async fn`, whose future would hold the request twice: as its argument, and as what it goes on with.
    async move {
        let from_head = key::from_head(route, &parts.headers, parts.uri.query())?;
        let is_grpc = grpc::is_call(&parts.headers);
        let reads_body_for_key =
            !is_grpc && route.key.from.iter().any(|source| matches!(source, Source::Json(_) | Source::Form(_)));
        if from_head.is_none() && !reads_body_for_key {
            match route.key.missing {
                Missing::Optional => {
                    return Ok(Reading::Unprotected(Request::from_parts(parts, Body::wrap(body))));
                }
                Missing::Required => return Err(Problem::MissingKey),
                Missing::Derive(_) => {}
            }
        }
        let trusted = parts.extensions.get::<TrustedPeer>().is_none_or(|peer| peer.0);
        let says_who = route.auth.as_ref().is_some_and(|auth| auth.names_the_caller().is_some());
        let mut who = if says_who {
            Who::default()
        } else {
            principal(engine.secret(), route, &parts.headers, trusted, parts.extensions.get())?
        };
        let tenant = scope_part(&route.scope.tenant, &parts.headers, trusted)?;
        let env = scope_part(&route.scope.env, &parts.headers, trusted)?;
        let vouched = route.auth.is_some();
        if let Some(auth) = &route.auth {
            // On the heap, so that other routes do not carry its room.
            match Box::pin(auth.check(&parts, &engine.0.metrics)).await {
                Verdict::Allowed(None) if says_who => return Err(Problem::AuthUnavailable),
                Verdict::Allowed(None) => {}
                Verdict::Allowed(Some(caller)) => who.spelled = format!("auth:{caller}"),
                Verdict::Refused(answer) => return Ok(Reading::Denied(answer)),
                Verdict::Unavailable => return Err(Problem::AuthUnavailable),
            }
        }

        let listed = listed_headers(&route.fingerprint, &parts.headers);
        let listed: Vec<(&str, &[u8])> = listed.iter().map(|(name, value)| (*name, value.as_slice())).collect();
        let head = canonical::Request {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &listed,
            content_type: parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
            encoded: is_encoded(&parts.headers),
            body: &[],
        };
        let route_name = scope_route(route, &parts.method, parts.uri.path());
        let scope = Scope { tenant: &tenant, env: &env, principal: &who.spelled, route: &route_name };
        // Where the head has the key, one pass over the body makes fingerprint and digests.
        let early_id = match &from_head {
            Some(key) if !reads_body_for_key => Some(RecordId::derive(engine.secret(), &scope, key.as_str())),
            _ => None,
        };
        let body = OneMessage::new(body, is_grpc);
        let mut collected = collect(engine, route, body, &parts.headers, &head, early_id.as_ref()).await?;
        let key = match collected.memory.as_deref().filter(|_| reads_body_for_key) {
            Some(body) => {
                let plain = plain::plain(engine, &route.fingerprint, &parts.headers, body);
                key::agreed(route, from_head, &head, Some(&plain.bytes))?
            }
            None => key::agreed(route, from_head, &head, collected.memory.as_deref())?,
        };
        let (key, derived) = match (key, route.key.missing) {
            (Some(key), _) => (key, false),
            (None, Missing::Optional) => {
                return Ok(Reading::Unprotected(Request::from_parts(parts, collected.body)));
            }
            (None, Missing::Required) => return Err(Problem::MissingKey),
            (None, Missing::Derive(_)) => {
                if collected.keep_missing {
                    return Err(Problem::MissingKey);
                }
                (ClientKey::derived(&collected.fingerprint), true)
            }
        };
        if !collected.missing_required.is_empty() {
            return Err(Problem::MissingIdentifier(collected.missing_required));
        }
        let id = early_id.unwrap_or_else(|| RecordId::derive(engine.secret(), &scope, key.as_str()));
        let fields = match collected.fields.take() {
            Some(fields) => fields,
            None => digests(engine, &id, route, &parts.headers, &head, collected.memory.as_deref()),
        };
        let ask = Ask {
            claim_id: new_claim_id(),
            session: engine.0.session,
            // Kept also where somebody vouches, should the route be without a check one day.
            principal_proof: who.proof,
            vouched,
            fingerprint_policy: policies::number(&route.fingerprint),
            fingerprint: collected.fingerprint.0,
        };
        let before = engine.0.earlier.load();
        let earlier = if before.is_empty() {
            Vec::new()
        } else {
            let memory = collected.memory.as_ref();
            let (method, uri, headers) = (&parts.method, &parts.uri, &parts.headers);
            let caller = says_who.then_some(who.spelled.as_str());
            let certificate = parts.extensions.get();
            let key = &key;
            let named = earlier::Named { method, uri, headers, head: &head, trusted, certificate, memory, key, caller };
            earlier::names(&before, &named, &id)
        };
        let belongs = Belongs { route: route.name.clone(), tenant: tenant.into_owned(), env: env.into_owned() };
        Ok(Reading::Protected(Box::new(Asked {
            id,
            ask,
            belongs,
            fields,
            key,
            body: collected.memory,
            request: Request::from_parts(parts, collected.body),
            derived,
            unverified_principal: who.proof.is_some() && !vouched,
            earlier,
        })))
    }
}

/// The names of what differs between a record's request and this one.
pub(crate) fn differing(
    engine: &Engine,
    rules: &Rules,
    id: &RecordId,
    request: &Request<Body>,
    body: &[u8],
    stored: &[[u8; 8]],
) -> Vec<String> {
    let stored: Vec<FieldDigest> = stored.iter().copied().map(FieldDigest::from_bytes).collect();
    let plain = plain::plain(engine, rules, request.headers(), body);
    again::with_head(request, rules, plain, |message| {
        with_workspace(|workspace| {
            let canonical = workspace.canonicalize_to_explain(message, rules);
            engine.0.fingerprinter.differing(id, &stored, &canonical.fields, rules).names
        })
    })
}
