//! Answers from a record, and what of an answer goes into one.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use onceward_core::{
    outcome::{Field, Outcome},
    record::{Micros, Record, Revision},
};

use crate::{body::Body, caller::Caller, coding, grpc, remember::REMEMBERED, route::Route};

/// Says until when the key is remembered.
pub(crate) const EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");
/// Says that an answer is unprotected, not yet recorded, or remembered where the store could not be asked.
pub(crate) const STATUS: HeaderName = HeaderName::from_static("idempotency-status");
/// The revision of an answer that no store has confirmed; those of stores begin at 1.
pub(crate) const UNRECORDED: Revision = Revision(0);
/// The upstream's word on what to do with its answer.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("idempotency-outcome");
/// Says that the key was derived from the request.
pub(crate) const KEY_SOURCE: HeaderName = HeaderName::from_static("idempotency-key-source");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Takes out of an upstream's answer what only Onceward says.
pub(crate) fn strip_own(headers: &mut HeaderMap, route: &Route) {
    for name in [&EXPIRES, &STATUS, &OUTCOME, &KEY_SOURCE, &route.replay_header] {
        headers.remove(name);
    }
}

/// Whether a header is recorded: all end-to-end ones, but for those that belong to one exchange.
fn is_recorded(name: &HeaderName, route: &Route, named_by_connection: &[String]) -> bool {
    if *name == header::SET_COOKIE {
        return route.set_cookie;
    }
    let left_out = matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "content-length"
            | "date"
            | "server"
            | "alt-svc"
            | "www-authenticate"
            | "x-request-id"
    );
    let is_rate_limit = ["ratelimit", "x-ratelimit", "x-rate-limit"].iter().any(|p| name.as_str().starts_with(p));
    !left_out && !is_rate_limit && !named_by_connection.iter().any(|named| named == name.as_str())
}

/// What is recorded of an answer's head.
pub(crate) fn outcome_of(status: StatusCode, headers: &HeaderMap, route: &Route) -> Outcome {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let headers = headers.iter().filter(|(name, _)| is_recorded(name, route, &named)).map(field).collect();
    Outcome { status: status.as_u16(), headers, ..Outcome::default() }
}

/// A head with the rest of its answer.
pub(crate) fn completed(head: Outcome, body: Option<Bytes>, trailers: Option<&HeaderMap>) -> Outcome {
    Outcome {
        body_not_kept: body.is_none(),
        body: body.unwrap_or_default(),
        trailers: trailers.map(|trailers| trailers.iter().map(field).collect()).unwrap_or_default(),
        ..head
    }
}

fn field((name, value): (&HeaderName, &HeaderValue)) -> Field {
    Field { name: Bytes::copy_from_slice(name.as_str().as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
}

/// The recorded answer, again.
pub(crate) fn response(
    record: &Record,
    route: &Route,
    request_id: &HeaderValue,
    now: Micros,
    caller: &Caller,
) -> Response<Body> {
    let readable = if caller.is_grpc { coding::readable_messages } else { coding::readable };
    let outcome = readable(record.facts.outcome.clone().unwrap_or_default(), caller.accepted.as_deref());
    let expires = expires_in(record.stored.keep_until.since(now));
    let mut response = if route.replay_ack && caller.is_grpc {
        // The head is the end where there are no trailers.
        grpc::ack(&header_map(if outcome.trailers.is_empty() { outcome.headers } else { outcome.trailers }))
    } else if route.replay_ack {
        Response::new(Body::empty())
    } else {
        let trailers = (!outcome.trailers.is_empty()).then(|| header_map(outcome.trailers));
        let declared = trailers.as_ref().filter(|_| caller.wants_declared_trailers).cloned();
        let mut response = Response::new(Body::frames(std::iter::once(outcome.body), trailers));
        *response.status_mut() = StatusCode::from_u16(outcome.status).unwrap_or(StatusCode::OK);
        *response.headers_mut() = header_map(outcome.headers);
        if let Some(trailers) = declared {
            caller.declare(response.headers_mut(), trailers.keys());
        }
        response
    };
    let headers = response.headers_mut();
    headers.insert(route.replay_header.clone(), HeaderValue::from_static("true"));
    headers.insert(REQUEST_ID, request_id.clone());
    if record.stored.revision == UNRECORDED {
        // Replayed from memory, it promises no more than it did the first time.
        headers.insert(STATUS, HeaderValue::from_static("unrecorded"));
    }
    if record.stored.revision == REMEMBERED {
        // The store could not be asked whether it is still so.
        headers.insert(STATUS, HeaderValue::from_static("remembered"));
    }
    if let Some(expires) = expires {
        headers.insert(EXPIRES, expires);
    }
    if route.says_should_retry() && response.status().as_u16() >= 400 {
        response.headers_mut().insert("stripe-should-retry", HeaderValue::from_static("false"));
    }
    response
}

/// An HTTP date `span` from now.
pub(crate) fn expires_in(span: Duration) -> Option<HeaderValue> {
    #[expect(clippy::disallowed_methods, reason = "a date for people, nothing is decided by it")]
    let at = SystemTime::now().checked_add(span)?;
    HeaderValue::from_str(&httpdate::fmt_http_date(at)).ok()
}

fn header_map(fields: Vec<Field>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len() + 4);
    for field in fields {
        let name = HeaderName::from_bytes(&field.name);
        let value = HeaderValue::from_maybe_shared(field.value);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}
