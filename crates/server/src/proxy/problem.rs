//! The transport's own error answers, as RFC 9457 `application/problem+json`.
//!
//! Few: what the transport refuses before anything else sees it, and what the plain path says when the upstream
//! fails. The idempotency layer has its own.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

/// One kind of error answer. All of them are constants of this module, so that a reader sees each status once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The last part of the problem's type URI.
    pub slug: &'static str,
    /// The status of the answer.
    pub status: StatusCode,
    /// A short summary, the same in every answer of this kind.
    pub title: &'static str,
    /// Whether the same request may be sent again unchanged. Says nothing about whether it took effect.
    pub retryable: bool,
}

/// The client's message is not one that every reader would read alike.
pub const BAD_REQUEST: Problem =
    Problem { slug: "bad-request", status: StatusCode::BAD_REQUEST, title: "Malformed request", retryable: false };
/// `CONNECT`: this is a gateway, not a tunnel.
pub const METHOD_NOT_ALLOWED: Problem = Problem {
    slug: "method-not-allowed",
    status: StatusCode::METHOD_NOT_ALLOWED,
    title: "Method not allowed",
    retryable: false,
};
/// A transfer coding other than `chunked`.
pub const NOT_IMPLEMENTED: Problem = Problem {
    slug: "transfer-coding",
    status: StatusCode::NOT_IMPLEMENTED,
    title: "Transfer coding not supported",
    retryable: false,
};
/// A service behind the transport failed without an answer of its own.
pub const INTERNAL: Problem =
    Problem { slug: "internal", status: StatusCode::INTERNAL_SERVER_ERROR, title: "Internal error", retryable: false };
/// No route covers the request, and there is no upstream for the rest.
pub const NO_ROUTE: Problem =
    Problem { slug: "no-route", status: StatusCode::NOT_FOUND, title: "No route", retryable: false };
/// The upstream could not be reached: nothing was sent.
pub const UPSTREAM_UNREACHABLE: Problem = Problem {
    slug: "upstream-unreachable",
    status: StatusCode::BAD_GATEWAY,
    title: "Upstream unreachable",
    retryable: true,
};
/// The upstream broke off after the request, or part of it, may have been sent.
pub const UPSTREAM_FAILED: Problem =
    Problem { slug: "upstream-failed", status: StatusCode::BAD_GATEWAY, title: "Upstream failed", retryable: false };
/// The upstream did not begin its answer in time.
pub const UPSTREAM_TIMEOUT: Problem = Problem {
    slug: "upstream-timeout",
    status: StatusCode::GATEWAY_TIMEOUT,
    title: "Upstream timed out",
    retryable: false,
};

impl Problem {
    /// The answer. `detail` says what to do about it; `request` is the request's header, whose `X-Request-ID` becomes
    /// the answer's `instance`, or a new UUID where it has none.
    #[must_use]
    pub fn response(&self, detail: &str, request: &HeaderMap) -> Response<Full<Bytes>> {
        let instance = match request.get("x-request-id").and_then(|id| id.to_str().ok()) {
            Some(id) if uuid::Uuid::try_parse(id).is_err() => id.to_owned(),
            Some(id) => format!("urn:uuid:{id}"),
            None => format!("urn:uuid:{}", uuid::Uuid::now_v7()),
        };
        let body = serde_json::json!({
            "type": format!("urn:onceward:problem:{}", self.slug),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": detail,
            "instance": instance,
            "retryable": self.retryable,
        });
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_the_request_id_or_a_new_one() {
        let mut request = HeaderMap::new();
        request.insert("x-request-id", HeaderValue::from_static("0198c1f0-0000-7000-8000-000000000000"));
        let response = UPSTREAM_FAILED.response("detail", &request);
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
}
