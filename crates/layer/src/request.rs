//! What a request asks: its key, whose it is, its body within bounds, its fingerprint.

use std::{borrow::Cow, cell::RefCell, pin::Pin, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use onceward_core::{
    canonical::{self, Found, Rules, Workspace},
    claim::Belongs,
    decide::Ask,
    fingerprint::{FieldDigest, Fingerprint},
    key::{ClientKey, InvalidKey, KeyProblem, RecordId, Scope},
};

use crate::{
    body::{Body, BoxError},
    engine::{Engine, new_claim_id},
    refuse::Problem,
    replay::REQUEST_ID,
    route::{Missing, Part, Principal, PrincipalSource, Route, Source},
    spool::Spool,
};

/// Request extension: whether the peer is a hop whose principal, tenant and forwarding headers
/// count. Without it, as in a library behind one's own server, every peer is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedPeer(pub bool);

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
}

/// What became of reading a request.
#[expect(clippy::large_enum_variant, reason = "moved once, to whoever reads it")]
pub(crate) enum Reading {
    /// It has a key.
    Protected(Box<Asked>),
    /// It has none, and its route lets it pass.
    Unprotected(Request<Body>),
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
/// principal, body, required fields.
pub(crate) async fn read<B>(engine: &Engine, route: &Arc<Route>, request: Request<B>) -> Result<Reading, Problem>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let from_head = key_from_head(route, &parts.headers, parts.uri.query())?;
    let reads_body_for_key = route.key.from.iter().any(|source| matches!(source, Source::Json(_) | Source::Form(_)));
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
    let who = principal(engine, route, &parts.headers, trusted)?;
    let tenant = scope_part(&route.scope.tenant, &parts.headers, trusted)?;
    let env = scope_part(&route.scope.env, &parts.headers, trusted)?;

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
    let route_name = scope_route(engine, route, &parts.method, parts.uri.path());
    let scope = Scope { tenant: &tenant, env: &env, principal: &who.spelled, route: &route_name };
    // Where the head has the key, one pass over the body makes fingerprint and digests.
    let early_id = match &from_head {
        Some(key) if !reads_body_for_key => Some(RecordId::derive(engine.secret(), &scope, key.as_str())),
        _ => None,
    };
    let mut collected = collect(engine, route, body, &head, early_id.as_ref()).await?;
    let key = agreed_key(route, from_head, &head, collected.memory.as_deref())?;
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
        None => digests(engine, &id, route, &head, collected.memory.as_deref()),
    };
    let [a, b, c, d, ..] = route.fingerprint.policy();
    let ask = Ask {
        claim_id: new_claim_id(),
        session: engine.0.session,
        principal_proof: who.proof,
        fingerprint_policy: u32::from_be_bytes([a, b, c, d]),
        fingerprint: collected.fingerprint.0,
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
        unverified_principal: who.proof.is_some(),
    })))
}

/// The names of what differs between a record's request and this one.
pub(crate) fn differing(engine: &Engine, route: &Route, asked: &Reread<'_>, stored: &[[u8; 8]]) -> Vec<String> {
    let stored: Vec<FieldDigest> = stored.iter().copied().map(FieldDigest::from_bytes).collect();
    let listed = listed_headers(&route.fingerprint, asked.headers);
    let listed: Vec<(&str, &[u8])> = listed.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    let request = canonical::Request {
        method: asked.method,
        path: asked.path,
        query: asked.query,
        headers: &listed,
        content_type: asked.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
        encoded: is_encoded(asked.headers),
        body: asked.body,
    };
    with_workspace(|workspace| {
        let canonical = workspace.canonicalize_to_explain(&request, &route.fingerprint);
        engine.0.fingerprinter.differing(asked.id, &stored, &canonical.fields, &route.fingerprint).names
    })
}

/// A request as it was read, for naming what differs.
pub(crate) struct Reread<'a> {
    pub(crate) id: &'a RecordId,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a [u8],
}

// ===== key =====

pub(crate) fn key_from_head(
    route: &Route,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Option<ClientKey>, Problem> {
    let mut key = None;
    for source in &route.key.from {
        let found = match source {
            Source::Header(name) => key_in_header(route, headers, name)?,
            Source::Query(name) => text_key(route, canonical::in_query(query.unwrap_or_default(), name), name)?,
            Source::Json(_) | Source::Form(_) => None,
        };
        agree(&mut key, found)?;
    }
    Ok(key)
}

fn key_in_header(route: &Route, headers: &HeaderMap, name: &HeaderName) -> Result<Option<ClientKey>, Problem> {
    let mut lines = headers.get_all(name).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(Problem::ConflictingKeys(format!("{name} stands on more than one line")));
    }
    ClientKey::from_header(value.as_bytes(), route.key.rules)
        .map(Some)
        .map_err(|error| invalid_key(name.as_str(), error))
}

fn invalid_key(place: &str, error: InvalidKey) -> Problem {
    if error.problem == KeyProblem::List {
        return Problem::ConflictingKeys(format!("{place} is a list"));
    }
    Problem::InvalidKey(format!("{place}: {error}"))
}

/// Sources that are present must agree.
fn agree(key: &mut Option<ClientKey>, found: Option<ClientKey>) -> Result<(), Problem> {
    match (&key, found) {
        (_, None) => Ok(()),
        (None, found) => {
            *key = found;
            Ok(())
        }
        (Some(one), Some(other)) if *one == other => Ok(()),
        (Some(_), Some(_)) => Err(Problem::ConflictingKeys("the places where a key can stand do not agree".into())),
    }
}

pub(crate) fn agreed_key(
    route: &Route,
    from_head: Option<ClientKey>,
    head: &canonical::Request<'_>,
    body: Option<&[u8]>,
) -> Result<Option<ClientKey>, Problem> {
    let mut key = from_head;
    for source in &route.key.from {
        let is_form = head.content_type.is_some_and(is_form);
        let found = match (source, body) {
            (Source::Header(_) | Source::Query(_), _) => continue,
            (Source::Json(_), _) if is_form => continue,
            (Source::Form(_), _) if !is_form => continue,
            (_, Some([])) => continue,
            // A key may stand in it that the upstream sees.
            (_, None) => return Err(Problem::InvalidKey("the body is too large to look for a key in it".into())),
            (Source::Json(pointer), Some(body)) => text_key(route, canonical::in_json(body, pointer), "the body")?,
            (Source::Form(name), Some(body)) => text_key(route, canonical::in_form(body, name), name)?,
        };
        agree(&mut key, found)?;
    }
    Ok(key)
}

fn text_key(route: &Route, found: Found, place: &str) -> Result<Option<ClientKey>, Problem> {
    match found {
        Found::Absent => Ok(None),
        Found::Text(text) => {
            ClientKey::from_text(&text, route.key.rules).map(Some).map_err(|error| invalid_key(place, error))
        }
        Found::Several => Err(Problem::ConflictingKeys(format!("the key stands in {place} more than once"))),
        Found::NotText => Err(Problem::InvalidKey(format!("the key in {place} is no text; send it as a string"))),
        Found::Unreadable(reason) => {
            Err(Problem::InvalidKey(format!("no key can be read from {place}: {reason}; send the key in a header")))
        }
    }
}

fn is_form(content_type: &[u8]) -> bool {
    const FORM: &[u8] = b"application/x-www-form-urlencoded";
    content_type.get(..FORM.len()).is_some_and(|media| media.eq_ignore_ascii_case(FORM))
}

// ===== principal and scope =====

struct Who {
    spelled: String,
    proof: Option<[u8; 16]>,
}

fn principal(engine: &Engine, route: &Route, headers: &HeaderMap, trusted: bool) -> Result<Who, Problem> {
    match &route.scope.principal {
        Principal::None => Ok(Who { spelled: "anonymous".into(), proof: None }),
        Principal::Auto => auto_principal(engine, headers),
        Principal::List(sources) => {
            let mut spelled = Vec::with_capacity(sources.len());
            for source in sources {
                spelled.push(match source {
                    PrincipalSource::Header(name) => {
                        let value = one_value(headers, name, trusted || is_credential(name))?;
                        format!("header {name}:{value}")
                    }
                    PrincipalSource::Cookie(name) => {
                        let value = cookie(headers, name)
                            .ok_or_else(|| Problem::NoPrincipal(format!("the cookie {name} is missing")))?;
                        format!("cookie {name}:{value}")
                    }
                });
            }
            Ok(Who { spelled: spelled.join("\n"), proof: None })
        }
    }
}

/// The principal of a request, as it counts within a scope.
pub(crate) fn spelled_principal(
    engine: &Engine,
    route: &Route,
    headers: &HeaderMap,
    trusted: bool,
) -> Result<String, Problem> {
    principal(engine, route, headers, trusted).map(|who| who.spelled)
}

/// What of the route counts within a scope: its name, never its pattern; on the fallback, which
/// covers everything, the method and path.
pub(crate) fn scope_route<'r>(engine: &Engine, route: &'r Arc<Route>, method: &Method, path: &str) -> Cow<'r, str> {
    if engine.routes().is_fallback(route) {
        return format!("default {method} {path}").into();
    }
    route.name.as_str().into()
}

/// The principal of a caller with this `Authorization`, as it counts within a scope.
pub(crate) fn principal_of(engine: &Engine, authorization: Option<&str>) -> Result<String, String> {
    let mut headers = HeaderMap::new();
    if let Some(value) = authorization {
        let value = HeaderValue::from_str(value).map_err(|_| "the authorization is no header value".to_owned())?;
        headers.insert(header::AUTHORIZATION, value);
    }
    match auto_principal(engine, &headers) {
        Ok(who) => Ok(who.spelled),
        Err(Problem::NoPrincipal(why)) => Err(why),
        Err(other) => Err(other.slug().to_owned()),
    }
}

fn auto_principal(engine: &Engine, headers: &HeaderMap) -> Result<Who, Problem> {
    const MEND: &str =
        "set scope.principal of the route to what stays the same in a retry, as in principal = [\"header:X-User\"]";
    let opaque = |spelled| Ok(Who { spelled, proof: None });
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = credentials.next() {
        if credentials.next().is_some() {
            return Err(Problem::NoPrincipal("Authorization stands on more than one line".into()));
        }
        let value = value.to_str().map_err(|_| Problem::NoPrincipal("Authorization is not visible ASCII".into()))?;
        let (scheme, credential) = value.split_once(' ').unwrap_or((value, ""));
        let credential = credential.trim();
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(subject) = jwt_subject(credential)
        {
            let proof_scope = Scope { tenant: "", env: "", principal: "token", route: "" };
            let proof = RecordId::derive(engine.secret(), &proof_scope, credential);
            return Ok(Who { spelled: format!("jwt:{subject}"), proof: proof.0.first_chunk().copied() });
        }
        if ["basic", "bearer", "apikey", "token"].iter().any(|stable| scheme.eq_ignore_ascii_case(stable)) {
            return opaque(format!("authorization:{value}"));
        }
        return Err(Problem::NoPrincipal(format!(
            "Authorization of the scheme {} may differ in each retry; {MEND}",
            scheme.chars().take(32).collect::<String>()
        )));
    }
    for name in ["x-api-key", "api-key"] {
        if let Some(value) = headers.get(name) {
            let value = value.to_str().map_err(|_| Problem::NoPrincipal(format!("{name} is not visible ASCII")))?;
            return opaque(format!("{name}:{value}"));
        }
    }
    if headers.contains_key(header::COOKIE) {
        return Err(Problem::NoPrincipal(format!(
            "the request has a cookie and no other credential, and which cookie names the caller is not known; {}",
            MEND.replace("header:X-User", "cookie:session")
        )));
    }
    opaque("anonymous".into())
}

/// The canonical JSON of a JWT's `iss`, `sub` and `client_id`, so that a refreshed token stays the
/// same caller. Not verified here: the token's hash, kept in the record, is what protects it.
fn jwt_subject(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_head, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let claim = |name| claims.get(name).cloned().unwrap_or_default();
    let (iss, sub, client_id) = (claim("iss"), claim("sub"), claim("client_id"));
    if sub.is_null() && client_id.is_null() {
        return None;
    }
    let subject = serde_json::json!({ "client_id": client_id, "iss": iss, "sub": sub });
    canonical::json_text(subject.to_string().as_bytes()).ok()
}

/// Headers that a client itself proves to own: they need no trusted hop.
fn is_credential(name: &HeaderName) -> bool {
    *name == header::AUTHORIZATION || ["x-api-key", "api-key"].contains(&name.as_str())
}

fn one_value<'h>(headers: &'h HeaderMap, name: &HeaderName, trusted: bool) -> Result<&'h str, Problem> {
    let mut lines = headers.get_all(name).iter();
    let Some(value) = lines.next() else {
        return Err(Problem::NoPrincipal(format!("the header {name} is missing")));
    };
    if !trusted {
        return Err(Problem::UntrustedHeader(name.to_string()));
    }
    if lines.next().is_some() {
        return Err(Problem::NoPrincipal(format!("{name} stands on more than one line")));
    }
    value.to_str().map_err(|_| Problem::NoPrincipal(format!("{name} is not visible ASCII")))
}

pub(crate) fn scope_part<'r>(part: &'r Part, headers: &'r HeaderMap, trusted: bool) -> Result<Cow<'r, str>, Problem> {
    match part {
        Part::Fixed(value) => Ok(value.as_str().into()),
        Part::Header(name) => one_value(headers, name, trusted).map(Into::into),
    }
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(have, _)| *have == name)
        .map(|(_, value)| value.to_owned())
}

// ===== body and fingerprint =====

struct Collected {
    body: Body,
    /// The whole body, where it is in memory.
    memory: Option<Bytes>,
    fingerprint: Fingerprint,
    keep_missing: bool,
    missing_required: Vec<String>,
    /// Digests of the fields, where the record's id was known.
    fields: Option<Vec<[u8; 8]>>,
}

async fn collect<B>(
    engine: &Engine,
    route: &Route,
    body: B,
    head: &canonical::Request<'_>,
    id: Option<&RecordId>,
) -> Result<Collected, Problem>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let bytes_max = route.request_body_bytes_max;
    let limits = engine.0.limits;
    let hint = body.size_hint();
    if hint.lower() > bytes_max {
        return Err(Problem::BodyTooLarge(bytes_max));
    }
    let mut body = std::pin::pin!(body);
    let mut frames: Vec<Bytes> = Vec::new();
    let mut trailers = None;
    let mut total = 0u64;
    let mut spooled = None;
    let mut memory_permit = None;
    while let Some(frame) = next(body.as_mut()).await? {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        total += data.len() as u64;
        if total > bytes_max {
            return Err(Problem::BodyTooLarge(bytes_max));
        }
        if spooled.is_none() && total > limits.canonical_body_bytes as u64 {
            // Too large for a canonical form: hashed as it is, while it goes to disk.
            let room = engine.0.spool.take(hint.exact().unwrap_or(bytes_max)).ok_or(Problem::SpoolFull)?;
            let mut spool = Spool::create(room).await.map_err(spool_failed)?;
            let (mut hasher, keep_missing, missing) = with_workspace(|workspace| {
                let head = workspace.head(head, &route.fingerprint);
                let hasher = engine.0.fingerprinter.hasher(route.fingerprint.hash(), &head);
                (hasher, head.findings.keep_missing, owned(&head.findings.missing_required))
            });
            for frame in frames.drain(..) {
                hasher.update(&frame);
                spool.write(frame).await.map_err(spool_failed)?;
            }
            memory_permit = None;
            spooled = Some((spool, hasher, keep_missing, missing));
        }
        match &mut spooled {
            Some((spool, hasher, ..)) => {
                hasher.update(&data);
                spool.write(data).await.map_err(spool_failed)?;
            }
            None => {
                if total > limits.spool_above_bytes as u64 && memory_permit.is_none() {
                    // Large bodies are brought into canonical form a few at a time.
                    let bytes = u32::try_from(limits.canonical_body_bytes).unwrap_or(u32::MAX);
                    let memory = Arc::clone(&engine.0.canonical_memory);
                    memory_permit = memory.acquire_many_owned(bytes).await.ok();
                }
                frames.push(data);
            }
        }
    }
    if let Some((spool, hasher, keep_missing, missing_required)) = spooled {
        let reader = spool.into_reader().await.map_err(spool_failed)?;
        return Ok(Collected {
            body: Body::spooled(reader, trailers),
            memory: None,
            fingerprint: hasher.finish(),
            keep_missing,
            missing_required,
            fields: None,
        });
    }
    let whole = joined(frames);
    let (fingerprint, fields, keep_missing, missing_required) = with_workspace(|workspace| {
        let request = canonical::Request { body: &whole, ..*head };
        let canonical = workspace.canonicalize(&request, &route.fingerprint);
        let fingerprint = engine.0.fingerprinter.fingerprint(route.fingerprint.hash(), &canonical);
        let fields = id.map(|id| field_bytes(engine.0.fingerprinter.field_digests(id, &canonical.fields)));
        (fingerprint, fields, canonical.findings.keep_missing, owned(&canonical.findings.missing_required))
    });
    if keep_missing {
        metrics::counter!("onceward_fingerprint_fallbacks_total").increment(1);
    }
    let mut memory = Some(whole.clone());
    let body = if whole.len() > limits.spool_above_bytes {
        // The execution may take long: its body waits on disk.
        let room = engine.0.spool.take(whole.len() as u64).ok_or(Problem::SpoolFull)?;
        let mut spool = Spool::create(room).await.map_err(spool_failed)?;
        spool.write(whole).await.map_err(spool_failed)?;
        if !route.key.from.iter().any(|source| matches!(source, Source::Json(_) | Source::Form(_))) {
            memory = None;
        }
        Body::spooled(spool.into_reader().await.map_err(spool_failed)?, trailers)
    } else {
        Body::frames(std::iter::once(whole), trailers)
    };
    Ok(Collected { body, memory, fingerprint, keep_missing, missing_required, fields })
}

async fn next<B>(mut body: Pin<&mut B>) -> Result<Option<Frame<Bytes>>, Problem>
where
    B: HttpBody<Data = Bytes>,
{
    body.frame().await.transpose().map_err(|_| Problem::BodyUnreadable)
}

fn spool_failed(error: std::io::Error) -> Problem {
    tracing::error!(%error, "a request body could not be spooled");
    Problem::SpoolFull
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn joined(mut frames: Vec<Bytes>) -> Bytes {
    if frames.len() <= 1 {
        return frames.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|frame| all.extend_from_slice(frame));
    all.freeze()
}

fn digests(
    engine: &Engine,
    id: &RecordId,
    route: &Route,
    head: &canonical::Request<'_>,
    body: Option<&[u8]>,
) -> Vec<[u8; 8]> {
    if route.fingerprint.fields() == 0 {
        return Vec::new();
    }
    with_workspace(|workspace| {
        let digests = match body {
            Some(body) => {
                let request = canonical::Request { body, ..*head };
                let canonical = workspace.canonicalize(&request, &route.fingerprint);
                engine.0.fingerprinter.field_digests(id, &canonical.fields)
            }
            None => {
                let head = workspace.head(head, &route.fingerprint);
                engine.0.fingerprinter.field_digests(id, &head.fields)
            }
        };
        field_bytes(digests)
    })
}

fn field_bytes(digests: Vec<FieldDigest>) -> Vec<[u8; 8]> {
    digests.into_iter().map(FieldDigest::to_bytes).collect()
}

pub(crate) fn listed_headers<'r>(rules: &'r Rules, headers: &HeaderMap) -> Vec<(&'r str, Vec<u8>)> {
    rules
        .headers()
        .iter()
        .filter(|name| headers.contains_key(name.as_str()))
        .map(|name| {
            let values = headers.get_all(name.as_str()).iter().map(HeaderValue::as_bytes);
            (name.as_str(), canonical::header_value(values))
        })
        .collect()
}

pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Lends the thread's workspace, so that canonical forms are made without allocating.
fn with_workspace<T>(work: impl FnOnce(&mut Workspace) -> T) -> T {
    const KEPT_BYTES_MAX: usize = 256 * 1024;
    thread_local! {
        static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::new());
    }
    WORKSPACE.with_borrow_mut(|workspace| {
        let done = work(workspace);
        workspace.shrink(KEPT_BYTES_MAX);
        done
    })
}
