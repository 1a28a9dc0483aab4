//! How a request would be treated, without treating it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use onceward_core::{
    canonical::{self, BodyForm, Workspace},
    fingerprint::{Fingerprint, unkeyed_blake3},
    key::{RecordId, Scope},
};

use crate::{
    engine::Engine,
    grpc,
    refuse::Problem,
    request,
    route::{self, Route},
};

/// What a request is to the engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explained {
    /// Name of its route.
    pub route: String,
    /// Its key; `None` where it is forwarded unprotected.
    pub key: Option<String>,
    /// What the key counts within.
    pub scope: Option<ExplainedScope>,
    /// The id of its record.
    pub record_id: Option<RecordId>,
    /// The exact bytes that are hashed.
    pub canonical: Vec<u8>,
    /// How the body is read, in words.
    pub body_form: String,
    /// Unkeyed, so that it can be compared by eye; records keep a keyed one.
    pub fingerprint: Fingerprint,
    /// The entries of `strip` that took something away.
    pub stripped: Vec<String>,
    /// The route's policy, in words.
    pub policy: String,
}

/// A scope, spelled as it goes into the record id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExplainedScope {
    /// Tenant.
    pub tenant: String,
    /// Environment.
    pub env: String,
    /// Principal, credentials included: for the eyes of whoever has them.
    pub principal: String,
    /// Route, or `default METHOD PATH`.
    pub route: String,
}

impl Engine {
    /// Explains a whole request. Every peer counts as trusted.
    ///
    /// # Errors
    /// The refusal that the request would meet.
    pub fn explain(&self, request: &Request<Bytes>) -> Result<Explained, Problem> {
        let host = route::host_of(request.uri(), request.headers());
        let routes = self.routes();
        let route = routes.of(request.method(), request.uri().path(), host);
        let listed = request::collect::listed_headers(&route.fingerprint, request.headers());
        let listed: Vec<(&str, &[u8])> = listed.iter().map(|(name, value)| (*name, value.as_slice())).collect();
        let plain = request::plain::plain(self, &route.fingerprint, request.headers(), request.body());
        let message = canonical::Request {
            method: request.method().as_str(),
            path: request.uri().path(),
            query: request.uri().query(),
            headers: &listed,
            content_type: request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
            encoded: plain.encoded,
            body: &plain.bytes,
        };
        let mut workspace = Workspace::new();
        let canonical = workspace.canonicalize(&message, &route.fingerprint);
        let mut explained = Explained {
            route: route.name.clone(),
            key: None,
            scope: None,
            record_id: None,
            body_form: form_in_words(canonical.body_form),
            fingerprint: unkeyed_blake3(canonical.bytes),
            stripped: canonical.findings.stripped.iter().map(|entry| (*entry).to_owned()).collect(),
            policy: policy_in_words(route),
            canonical: canonical.bytes.to_vec(),
        };
        if !route.covers(request.method()) && !route.watches(request.method()) {
            return Ok(explained);
        }
        if route::is_ambiguous(request.uri().path()) {
            return Err(Problem::InvalidPath);
        }
        let missing = canonical.findings.missing_required.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
        let from_head = request::key::from_head(route, request.headers(), request.uri().query())?;
        let key = request::key::agreed(route, from_head, &message, Some(&plain.bytes))?;
        let key = match (key, route.key.missing) {
            (Some(key), _) => key.as_str().to_owned(),
            (None, route::Missing::Optional) => return Ok(explained),
            (None, route::Missing::Required) => return Err(Problem::MissingKey),
            // It is made of the keyed fingerprint, which is nobody's business.
            (None, route::Missing::Derive(_)) => {
                explained.key = Some("derived from the fingerprint".into());
                return Ok(explained);
            }
        };
        if grpc::is_call(request.headers()) {
            request::one_message::is_one(request.body())?;
        }
        if !missing.is_empty() {
            return Err(Problem::MissingIdentifier(missing));
        }
        if route.auth.as_ref().is_some_and(|auth| auth.names_the_caller().is_some()) {
            // Whose it is only the service that checks credentials knows, and it is not asked.
            explained.key = Some(key);
            return Ok(explained);
        }
        let principal = request::principal::spelled_principal(self.secret(), route, request.headers(), true)?;
        let tenant = request::principal::scope_part(&route.scope.tenant, request.headers(), true)?.into_owned();
        let env = request::principal::scope_part(&route.scope.env, request.headers(), true)?.into_owned();
        let route_name = request::principal::scope_route(route, request.method(), request.uri().path()).into_owned();
        let scope = Scope { tenant: &tenant, env: &env, principal: &principal, route: &route_name };
        explained.record_id = Some(RecordId::derive(self.secret(), &scope, &key));
        explained.key = Some(key);
        explained.scope = Some(ExplainedScope { tenant, env, principal, route: route_name });
        Ok(explained)
    }
}

fn form_in_words(form: BodyForm) -> String {
    match form {
        BodyForm::Json => "canonical JSON".into(),
        BodyForm::Form => "form, as sorted pairs".into(),
        BodyForm::Multipart => "multipart, by part".into(),
        BodyForm::Raw(reason) => format!("byte for byte: {reason}"),
        BodyForm::None => "not counted".into(),
        _ => "otherwise".into(),
    }
}

fn policy_in_words(route: &Arc<Route>) -> String {
    let policy = &route.policy;
    format!(
        "retention={:?} lease={:?} timeout={:?} execution_max={:?} wait={:?} on_unknown={:?} preset={:?}",
        policy.retention,
        policy.lease,
        route.timeout,
        route.execution_max,
        route.wait,
        policy.on_unknown,
        policy.recording.preset
    )
}
