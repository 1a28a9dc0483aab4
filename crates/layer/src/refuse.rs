//! The one place that says a status code of our own: every refusal as RFC 9457 problem details.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use onceward_core::decide::Refusal;
use serde_json::json;

use crate::{
    body::Body,
    grpc::{self, Code},
    quota::QuotaLimit,
    route::Route,
};

/// Why a request gets an answer of ours instead of the upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The key is malformed.
    InvalidKey(String),
    /// Two different keys, one header on two lines, or a list.
    ConflictingKeys(String),
    /// The route requires a key.
    MissingKey,
    /// A field that the route requires is not in the body.
    MissingIdentifier(Vec<String>),
    /// Nothing stable tells who asks.
    NoPrincipal(String),
    /// A header that only trusted hops may set.
    UntrustedHeader(String),
    /// Nobody could tell whether the credentials are good.
    AuthUnavailable,
    /// A path that servers read in more than one way.
    InvalidPath,
    /// The request body is over its limit, in bytes.
    BodyTooLarge(u64),
    /// The request body did not arrive.
    BodyUnreadable,
    /// A gRPC call with more than one message, or with none.
    NotOneMessage,
    /// The disk that large request bodies wait on is full.
    SpoolFull,
    /// Not now, for the reason given by the decision.
    Refused(Refusal, Details),
    /// Nothing was sent.
    UpstreamUnreachable,
    /// It broke off after the request was sent.
    UpstreamFailed,
    /// No answer within `timeout`; the execution goes on.
    UpstreamTimeout,
    /// The upstream is busy.
    Overloaded,
    /// The tenant has reached a limit of its quota, for about so long.
    OverQuota(QuotaLimit, Duration),
    /// This process is going.
    Draining,
}

/// What a refusal knows besides its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Fields that differ from the first request's.
    pub fields: Vec<String>,
    /// How a gRPC call ended whose answer was not kept.
    pub recorded_grpc_status: Option<u8>,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// Whether that is because the store has lost records.
    pub in_quarantine: bool,
}

impl Problem {
    /// The last part of the problem's type.
    #[must_use]
    pub fn slug(&self) -> &'static str {
        match self {
            Self::InvalidKey(_) => "invalid-key",
            Self::ConflictingKeys(_) => "conflicting-keys",
            Self::MissingKey => "missing-key",
            Self::MissingIdentifier(_) => "missing-identifier",
            Self::NoPrincipal(_) => "no-principal",
            Self::UntrustedHeader(_) => "untrusted-header",
            Self::AuthUnavailable => "auth-unavailable",
            Self::InvalidPath => "invalid-path",
            Self::BodyTooLarge(_) => "body-too-large",
            Self::BodyUnreadable => "body-unreadable",
            Self::NotOneMessage => "not-one-message",
            Self::SpoolFull | Self::Overloaded => "overloaded",
            Self::OverQuota(..) => "quota-exceeded",
            Self::Draining => "draining",
            Self::UpstreamUnreachable => "upstream-unreachable",
            Self::UpstreamFailed => "upstream-failed",
            Self::UpstreamTimeout => "upstream-timeout",
            Self::Refused(refusal, _) => match refusal {
                Refusal::PrincipalChanged => "principal-changed",
                Refusal::KeyReused => "key-reused",
                Refusal::InFlight | Refusal::RetryLater(_) => "in-flight",
                Refusal::OutcomeUnknown => "outcome-unknown",
                Refusal::Failed => "failed",
                Refusal::KeyGone => "key-gone",
                Refusal::ResponseNotKept { .. } => "response-not-kept",
                Refusal::ClaimLost => "claim-lost",
                _ => "store-unavailable",
            },
        }
    }

    fn status(&self, mismatch_status: u16) -> StatusCode {
        match self {
            Self::InvalidKey(_)
            | Self::ConflictingKeys(_)
            | Self::MissingKey
            | Self::MissingIdentifier(_)
            | Self::NoPrincipal(_)
            | Self::UntrustedHeader(_)
            | Self::InvalidPath
            | Self::BodyUnreadable => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::OverQuota(..) => StatusCode::TOO_MANY_REQUESTS,
            Self::NotOneMessage => StatusCode::NOT_IMPLEMENTED,
            Self::UpstreamUnreachable | Self::UpstreamFailed => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::SpoolFull | Self::Overloaded | Self::Draining | Self::AuthUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Refused(refusal, _) => match refusal {
                Refusal::KeyReused => StatusCode::from_u16(mismatch_status).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY),
                Refusal::KeyGone => StatusCode::GONE,
                Refusal::ClaimLost | Refusal::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::CONFLICT,
            },
        }
    }

    /// The same for a gRPC call.
    fn grpc_code(&self) -> Code {
        match self {
            Self::InvalidKey(_)
            | Self::ConflictingKeys(_)
            | Self::MissingKey
            | Self::MissingIdentifier(_)
            | Self::NoPrincipal(_)
            | Self::UntrustedHeader(_)
            | Self::InvalidPath
            | Self::BodyUnreadable => Code::InvalidArgument,
            Self::BodyTooLarge(_) | Self::OverQuota(..) => Code::ResourceExhausted,
            Self::NotOneMessage => Code::Unimplemented,
            Self::UpstreamFailed => Code::Unknown,
            Self::UpstreamTimeout => Code::DeadlineExceeded,
            Self::UpstreamUnreachable | Self::AuthUnavailable | Self::SpoolFull | Self::Overloaded | Self::Draining => {
                Code::Unavailable
            }
            Self::Refused(refusal, _) => match refusal {
                Refusal::KeyReused => Code::InvalidArgument,
                Refusal::PrincipalChanged => Code::PermissionDenied,
                Refusal::InFlight | Refusal::RetryLater(_) | Refusal::ClaimLost => Code::Aborted,
                Refusal::OutcomeUnknown | Refusal::Failed | Refusal::KeyGone | Refusal::ResponseNotKept { .. } => {
                    Code::FailedPrecondition
                }
                _ => Code::Unavailable,
            },
        }
    }

    /// Title, what to do, and whether the same request may be sent again as it is.
    fn words(&self) -> (&'static str, String, bool) {
        match self {
            Self::InvalidKey(why) => ("The idempotency key is malformed", format!("{why}."), false),
            Self::ConflictingKeys(why) => {
                ("More than one idempotency key", format!("{why}. Send one key, on one line."), false)
            }
            Self::MissingKey => (
                "An idempotency key is required",
                "Send a new Idempotency-Key header with each new operation, and the same one with each retry of it."
                    .into(),
                false,
            ),
            Self::MissingIdentifier(fields) => (
                "A required field is missing",
                format!("The body lacks {}. Send what identifies this operation.", fields.join(", ")),
                false,
            ),
            Self::NoPrincipal(why) => ("The caller cannot be told", format!("{why}."), false),
            Self::UntrustedHeader(name) => (
                "A header from an untrusted peer",
                format!("{name} counts only from peers in listen.trusted. Send the request through the trusted hop, or list this peer there."),
                false,
            ),
            Self::AuthUnavailable => (
                "The credentials could not be checked",
                "Nothing was claimed, sent or shown. Send the request again, with the same key.".into(),
                true,
            ),
            Self::InvalidPath => (
                "The path can be read in more than one way",
                "Send the path without dot segments, encoded slashes or backslashes, and without NUL.".into(),
                false,
            ),
            Self::BodyTooLarge(limit) => (
                "The request body is too large",
                format!("At most {limit} bytes are taken. Send less, or raise limits.request_body of the route."),
                false,
            ),
            Self::BodyUnreadable => {
                ("The request body did not arrive", "Send the request again, with the same key.".into(), true)
            }
            Self::NotOneMessage => (
                "A protected call has exactly one message",
                "Nothing was claimed or sent. Send this call without a key, on a route that takes calls without one, or set mode = \"off\" for its method.".into(),
                false,
            ),
            Self::SpoolFull | Self::Overloaded => {
                ("Too much at once", "Nothing was claimed or sent. Send the request again, with the same key.".into(), true)
            }
            Self::OverQuota(limit, _) => (
                "The tenant is over its quota",
                format!(
                    "{} Nothing was claimed or sent. Send the request again, with the same key, after the time in Retry-After; what was asked before is answered all the while.",
                    match limit {
                        QuotaLimit::Rate => "It makes new operations faster than its quota.claims_per_second.",
                        QuotaLimit::Records => "It has as many live keys as its quota.live_records, or half of the store.",
                        QuotaLimit::Bytes => "Its recorded answers take as much room as its quota.bytes.",
                    }
                ),
                true,
            ),
            Self::Draining => {
                ("This process is shutting down", "Send the request again, with the same key.".into(), true)
            }
            Self::UpstreamUnreachable => (
                "The upstream cannot be reached",
                "Nothing was sent to it, the key is free. Send the request again, with the same key.".into(),
                true,
            ),
            Self::UpstreamFailed => (
                "The upstream broke off",
                "It may have executed the request: the outcome is unknown until it is settled. Ask again with the same key; never with a new one.".into(),
                true,
            ),
            Self::UpstreamTimeout => (
                "The upstream has not answered yet",
                "It goes on; its answer will be recorded. Ask again with the same key.".into(),
                true,
            ),
            Self::Refused(refusal, details) => refused_words(*refusal, details),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        const SOON: Duration = Duration::from_secs(1);
        match self {
            Self::Refused(Refusal::InFlight | Refusal::RetryLater(_) | Refusal::StoreUnavailable, details) => {
                Some(details.retry_after.unwrap_or(SOON))
            }
            Self::OverQuota(_, after) => Some(*after),
            Self::Refused(Refusal::ClaimLost, _)
            | Self::SpoolFull
            | Self::Overloaded
            | Self::AuthUnavailable
            | Self::Draining => Some(SOON),
            _ => None,
        }
    }

    /// The answer. `route` is the one that covered the request, `instance` the request's id.
    #[must_use]
    pub fn response(&self, route: Option<&Route>, instance: &str) -> Response<Body> {
        let mut response = Response::new(Body::full(Bytes::from(self.json(route, instance).to_string())));
        *response.status_mut() = self.status(mismatch_status(route));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.hints(headers, route, instance);
        response
    }

    /// The same for a gRPC call.
    #[must_use]
    pub fn grpc_response(&self, route: Option<&Route>, instance: &str) -> Response<Body> {
        let mut response = self.in_grpc(route, instance, grpc::trailers_only);
        self.hints(response.headers_mut(), route, instance);
        response
    }

    /// What ends a gRPC answer that has begun.
    pub(crate) fn grpc_trailers(&self, route: Option<&Route>, instance: &str) -> HeaderMap {
        self.in_grpc(route, instance, |error| error.trailers())
    }

    fn in_grpc<T>(&self, route: Option<&Route>, instance: &str, say: impl FnOnce(&grpc::Error<'_>) -> T) -> T {
        let (_, _, retryable) = self.words();
        say(&grpc::Error {
            code: self.grpc_code(),
            message: &self.to_string(),
            problem: &self.json(route, instance).to_string(),
            retryable,
            retry_after: self.retry_after(),
        })
    }

    fn json(&self, route: Option<&Route>, instance: &str) -> serde_json::Value {
        let (title, detail, retryable) = self.words();
        let instance = match uuid::Uuid::parse_str(instance) {
            Ok(uuid) => uuid.urn().to_string(),
            Err(_) => instance.to_owned(),
        };
        let mut problem = json!({
            "type": format!("urn:onceward:problem:{}", self.slug()),
            "title": title,
            "status": self.status(mismatch_status(route)).as_u16(),
            "detail": detail,
            "instance": instance,
            "retryable": retryable,
        });
        if let (Self::Refused(_, Details { recorded_grpc_status: Some(status), .. }), Some(object)) =
            (self, problem.as_object_mut())
        {
            object.insert("recorded_grpc_status".into(), json!(status));
        }
        let extra = match self {
            Self::Refused(Refusal::KeyReused, details) => Some(("fields", json!(details.fields))),
            Self::Refused(Refusal::ResponseNotKept { status }, _) => Some(("recorded_status", json!(status))),
            Self::MissingIdentifier(fields) => Some(("fields", json!(fields))),
            _ => None,
        };
        if let (Some((name, value)), Some(object)) = (extra, problem.as_object_mut()) {
            object.insert(name.into(), value);
        }
        problem
    }

    /// What a client can use without reading the problem.
    fn hints(&self, headers: &mut HeaderMap, route: Option<&Route>, instance: &str) {
        if let Some(after) = self.retry_after() {
            let seconds = after.as_secs_f64().ceil().max(1.0);
            if let Ok(value) = HeaderValue::from_str(&format!("{seconds:.0}")) {
                headers.insert(header::RETRY_AFTER, value);
            }
        }
        // The three that the IETF draft asks a link for (its section 2.7).
        let is_documented = matches!(
            self,
            Self::MissingKey | Self::Refused(Refusal::KeyReused | Refusal::InFlight | Refusal::RetryLater(_), _)
        );
        if is_documented
            && let Some(docs) = route.and_then(|route| route.key.docs.as_ref())
            && let Ok(link) = HeaderValue::from_str(&format!("<{docs}>; rel=\"describedby\""))
        {
            headers.insert(header::LINK, link);
        }
        if let Ok(id) = HeaderValue::from_str(instance.strip_prefix("urn:uuid:").unwrap_or(instance)) {
            headers.insert("x-request-id", id);
        }
        if route.is_some_and(Route::says_should_retry) {
            let (_, _, retryable) = self.words();
            let hint = if retryable { "true" } else { "false" };
            headers.insert("stripe-should-retry", HeaderValue::from_static(hint));
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (title, detail, _) = self.words();
        write!(f, "{} ({title}): {detail}", self.slug())
    }
}

impl std::error::Error for Problem {}

fn mismatch_status(route: Option<&Route>) -> u16 {
    route.map_or(422, |route| route.mismatch_status)
}

fn refused_words(refusal: Refusal, details: &Details) -> (&'static str, String, bool) {
    match refusal {
        Refusal::PrincipalChanged => (
            "Another token made the first request",
            "Ask with the token of the first request; with another one nothing is shown and nothing is run.".into(),
            false,
        ),
        Refusal::KeyReused => (
            "The key was used for another request",
            if details.fields.is_empty() {
                "Use a new key for a new operation, or send the first request unchanged.".into()
            } else {
                format!(
                    "Use a new key for a new operation, or send the first request unchanged. What differs: {}.",
                    details.fields.join(", ")
                )
            },
            false,
        ),
        Refusal::InFlight | Refusal::RetryLater(_) => (
            "The first request with this key still runs",
            "Ask again after the time in Retry-After, with the same key.".into(),
            true,
        ),
        Refusal::OutcomeUnknown => (
            "Nobody knows yet whether the first request took effect",
            "Do not send it under another key. It is settled by the operator (onceward keys resolve) or by a late answer.".into(),
            false,
        ),
        Refusal::Failed => (
            "The operation was settled as failed",
            "Use a new key for a new attempt, once you know that the first had no effect.".into(),
            false,
        ),
        Refusal::KeyGone => {
            ("The key was erased on request", "It stays unusable until its retention ends. Use a new key.".into(), false)
        }
        Refusal::ResponseNotKept { status } => (
            "The first request completed, its answer was not kept",
            format!(
                "It was answered with {}, too large or streaming to be recorded. Look the result up; do not send it again.",
                match details.recorded_grpc_status {
                    Some(status) => format!("gRPC status {status}"),
                    None => format!("status {status}"),
                }
            ),
            false,
        ),
        Refusal::ClaimLost => (
            "The key was settled by somebody else while the request ran",
            "Ask again with the same key.".into(),
            true,
        ),
        Refusal::StoreUnavailable if details.in_quarantine => (
            "The store of keys has lost records",
            "This key may be one of them, so that nothing was sent to the upstream. Look whether the operation took effect, \
             or send the request again, with the same key, after the time in Retry-After: then it runs."
                .into(),
            true,
        ),
        _ => (
            "The store of keys is unavailable",
            "Nothing was sent to the upstream. Send the request again, with the same key.".into(),
            true,
        ),
    }
}
