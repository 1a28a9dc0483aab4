//! How whoever asked can be answered.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Version, header};

use crate::{coding, grpc};

/// What a request's head says of the answers that its client takes.
pub(crate) struct Caller {
    /// Its `Accept-Encoding`, any coding where it has none; for gRPC the codings of messages, none where it has none.
    pub(crate) accepted: Option<String>,
    /// Errors are told in gRPC's way.
    pub(crate) is_grpc: bool,
    /// It takes trailers over HTTP/1.1, where only those are sent that the head of the answer declares.
    pub(crate) wants_declared_trailers: bool,
}

impl Caller {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let is_grpc = grpc::is_call(headers);
        Self {
            accepted: if is_grpc { coding::grpc_accepted(headers) } else { coding::accepted(headers) },
            is_grpc,
            wants_declared_trailers: request.version() == Version::HTTP_11 && takes_trailers(headers),
        }
    }

    /// Names trailers in the head of their answer, where this client would not get them else.
    pub(crate) fn declare<'t>(&self, head: &mut HeaderMap, trailers: impl Iterator<Item = &'t HeaderName>) {
        if !self.wants_declared_trailers {
            return;
        }
        for name in trailers {
            let is_declared = head
                .get_all(header::TRAILER)
                .iter()
                .filter_map(|line| line.to_str().ok())
                .flat_map(|line| line.split(','))
                .any(|declared| declared.trim().eq_ignore_ascii_case(name.as_str()));
            if !is_declared {
                head.append(header::TRAILER, HeaderValue::from(name.clone()));
            }
        }
    }
}

/// RFC 9110, 10.1.4.
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|taken| taken.trim().eq_ignore_ascii_case("trailers"))
}
