//! The transport's own error answers, as RFC 9457 `application/problem+json`.
//!
//! Few: what the transport refuses before anything else sees it, and what the plain path says when the upstream
//! fails. The idempotency layer has its own.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use onceward::grpc::{self, Code};

/// One kind of error answer. All of them are constants of this module, so that a reader sees each status once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The last part of the problem's type URI.
    pub slug: &'static str,
    /// The status of the answer.
    pub status: StatusCode,
    /// The same for a gRPC call.
    pub code: Code,
    /// A short summary, the same in every answer of this kind.
    pub title: &'static str,
    /// Whether the same request may be sent again unchanged. Says nothing about whether it took effect.
    pub retryable: bool,
}

/// The client's message is not one that every reader would read alike.
pub const BAD_REQUEST: Problem = Problem {
    slug: "bad-request",
    status: StatusCode::BAD_REQUEST,
    code: Code::InvalidArgument,
    title: "Malformed request",
    retryable: false,
};
/// A request target longer than the parser takes.
pub const URI_TOO_LONG: Problem = Problem {
    slug: "uri-too-long",
    status: StatusCode::URI_TOO_LONG,
    code: Code::InvalidArgument,
    title: "Request target too long",
    retryable: false,
};
/// A head over its limits.
pub const HEADERS_TOO_LARGE: Problem = Problem {
    slug: "headers-too-large",
    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    code: Code::ResourceExhausted,
    title: "Request head too large",
    retryable: false,
};
/// `CONNECT`: this is a gateway, not a tunnel.
pub const METHOD_NOT_ALLOWED: Problem = Problem {
    slug: "method-not-allowed",
    status: StatusCode::METHOD_NOT_ALLOWED,
    code: Code::Unimplemented,
    title: "Method not allowed",
    retryable: false,
};
/// A transfer coding other than `chunked`.
pub const NOT_IMPLEMENTED: Problem = Problem {
    slug: "transfer-coding",
    status: StatusCode::NOT_IMPLEMENTED,
    code: Code::Unimplemented,
    title: "Transfer coding not supported",
    retryable: false,
};
/// A service behind the transport failed without an answer of its own.
pub const INTERNAL: Problem = Problem {
    slug: "internal",
    status: StatusCode::INTERNAL_SERVER_ERROR,
    code: Code::Internal,
    title: "Internal error",
    retryable: false,
};
/// No route covers the request, and there is no upstream for the rest.
pub const NO_ROUTE: Problem = Problem {
    slug: "no-route",
    status: StatusCode::NOT_FOUND,
    code: Code::Unimplemented,
    title: "No route",
    retryable: false,
};
/// The upstream could not be reached: nothing was sent.
pub const UPSTREAM_UNREACHABLE: Problem = Problem {
    slug: "upstream-unreachable",
    status: StatusCode::BAD_GATEWAY,
    code: Code::Unavailable,
    title: "Upstream unreachable",
    retryable: true,
};
/// The upstream broke off after the request, or part of it, may have been sent.
pub const UPSTREAM_FAILED: Problem = Problem {
    slug: "upstream-failed",
    status: StatusCode::BAD_GATEWAY,
    code: Code::Unknown,
    title: "Upstream failed",
    retryable: false,
};
/// The upstream did not begin its answer in time.
pub const UPSTREAM_TIMEOUT: Problem = Problem {
    slug: "upstream-timeout",
    status: StatusCode::GATEWAY_TIMEOUT,
    code: Code::DeadlineExceeded,
    title: "Upstream timed out",
    retryable: false,
};

impl Problem {
    /// The answer to whoever `asked`. `detail` says what to do about it.
    #[must_use]
    pub fn response(&self, detail: &str, asked: &Asked) -> Response<Full<Bytes>> {
        let id = asked.id.as_ref().and_then(|id| id.to_str().ok());
        let instance = match id {
            Some(id) if uuid::Uuid::try_parse(id).is_err() => id.to_owned(),
            Some(id) => format!("urn:uuid:{id}"),
            None => format!("urn:uuid:{}", uuid::Uuid::now_v7()),
        };
        let problem = serde_json::json!({
            "type": format!("urn:onceward:problem:{}", self.slug),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": detail,
            "instance": instance,
            "retryable": self.retryable,
        });
        if asked.is_grpc {
            let error = grpc::Error {
                code: self.code,
                message: &format!("{} ({}): {detail}", self.slug, self.title),
                problem: &problem.to_string(),
                retryable: self.retryable,
                retry_after: None,
            };
            return grpc::trailers_only(&error).map(|_empty| Full::default());
        }
        let mut response = Response::new(Full::from(problem.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// What of a request an error answer to it needs.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Its `X-Request-ID`, which becomes the answer's `instance`; a new UUID where it has none.
    id: Option<HeaderValue>,
    is_grpc: bool,
}

impl Asked {
    /// Of a request with this header.
    #[must_use]
    pub fn of(request: &HeaderMap) -> Self {
        Self { id: request.get("x-request-id").cloned(), is_grpc: grpc::is_call(request) }
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    #[test]
    fn an_error_is_a_problem_for_http_and_a_status_for_grpc() {
        let mut request = HeaderMap::new();
        request.insert("x-request-id", HeaderValue::from_static("0198c1f0-0000-7000-8000-000000000000"));
        let response = UPSTREAM_FAILED.response("detail", &Asked::of(&request));
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        request.insert("content-type", HeaderValue::from_static("application/grpc+proto"));
        let response = UPSTREAM_FAILED.response("detail", &Asked::of(&request));
        assert_eq!((response.status().as_u16(), response.body().is_end_stream()), (200, true));
        let headers = response.headers();
        assert_eq!(
            (headers["grpc-status"].as_bytes(), headers["grpc-retry-pushback-ms"].as_bytes()),
            (&b"2"[..], &b"-1"[..])
        );
        assert!(headers.contains_key("onceward-problem-bin"));
    }
}
