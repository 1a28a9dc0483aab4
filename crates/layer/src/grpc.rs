//! What gRPC says otherwise than HTTP: the outcome stands in `grpc-status` at the end of an answer, a request is a row of
//! framed messages, and errors are answers without a body whose head is their trailers.
//!
//! A call is protected where its request is one message: only then is "the same request" something that can be told
//! before it is run. Its message counts in the fingerprint as it was sent, with the five bytes before it: the length
//! follows from the message, and without the compression flag two different messages could be taken for one.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use onceward_core::outcome::Outcome;

use crate::body::Body;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const PROBLEM: HeaderName = HeaderName::from_static("onceward-problem-bin");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// A message without fields: no compression, no bytes.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// The statuses that answers of our own have, by their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// Something may have been done, and nobody knows.
    Unknown = 2,
    /// The request is wrong, and stays so.
    InvalidArgument = 3,
    /// It took longer than somebody waits.
    DeadlineExceeded = 4,
    /// Not to be shown to this caller.
    PermissionDenied = 7,
    /// A limit of the caller's, or of a message's size.
    ResourceExhausted = 8,
    /// The key's state does not allow it, and trying again will not change that.
    FailedPrecondition = 9,
    /// Somebody else is at work on it: try again.
    Aborted = 10,
    /// Not something that is done here.
    Unimplemented = 12,
    /// A fault of ours.
    Internal = 13,
    /// Not now, and nothing was done: try again.
    Unavailable = 14,
    /// Nobody knows whose call it is.
    Unauthenticated = 16,
}

/// Whether a request is a gRPC call: `application/grpc`, with or without the name of its messages' format. gRPC-Web,
/// which has its status in the body, is not.
#[must_use]
pub fn is_call(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| is_media_type(value.as_bytes()))
}

pub(crate) fn is_media_type(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((start, rest)) = content_type.split_at_checked(GRPC.len()) else { return false };
    start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
}

/// The status of an answer, from its trailers, or from its head where that is all there is. `None` where there is none,
/// where it is no status of gRPC, or where two lines say it.
pub(crate) fn status_of(fields: &HeaderMap) -> Option<u8> {
    let mut lines = fields.get_all(STATUS).iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    line.to_str().ok()?.parse().ok().filter(|status| *status <= 16)
}

/// The same of an answer that was recorded.
pub(crate) fn recorded_status(outcome: &Outcome) -> Option<u8> {
    let ending = if outcome.trailers.is_empty() { &outcome.headers } else { &outcome.trailers };
    let mut lines = ending.iter().filter(|field| field.name.as_ref() == STATUS.as_str().as_bytes());
    std::str::from_utf8(&lines.next()?.value).ok()?.parse().ok()
}

/// What says that a call was answered before, and how, without saying what: an empty message, or the recorded error.
pub(crate) fn ack(recorded: &HeaderMap) -> Response<Body> {
    let status = recorded.get(STATUS).cloned().unwrap_or_else(|| HeaderValue::from(Code::Unknown as u16));
    let mut ending = HeaderMap::with_capacity(4);
    ending.insert(STATUS, status);
    let is_ok = status_of(&ending) == Some(0);
    let mut response = if is_ok {
        Response::new(Body::frames(std::iter::once(Bytes::from_static(EMPTY_MESSAGE)), Some(ending)))
    } else {
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = ending;
        response
    };
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// What somebody who knows no gRPC answers to a call, as gRPC has it: without its body, its status as clients would
/// read it.
pub(crate) fn in_place_of(http: &Response<Body>) -> Response<Body> {
    let status = http.status().as_u16();
    let code = match status {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    *headers = http.headers().clone();
    for of_the_body in [header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
        headers.remove(of_the_body);
    }
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    headers.insert(STATUS, HeaderValue::from(code as u16));
    if let Ok(message) = HeaderValue::from_str(&format!("answered with HTTP status {status}")) {
        headers.insert(MESSAGE, message);
    }
    response
}

/// An error as gRPC has it: an answer without a body, whose head says how it ended.
#[must_use]
pub fn trailers_only(error: &Error<'_>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = error.trailers();
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// An error of our own, in gRPC's words.
#[derive(Clone, Copy, Debug)]
pub struct Error<'a> {
    /// Its status.
    pub code: Code,
    /// What to do, for people. Any text.
    pub message: &'a str,
    /// The problem as JSON, for programs: `onceward-problem-bin`.
    pub problem: &'a str,
    /// Whether the same call may be sent again as it is. Clients that retry by themselves are told not to where it is not.
    pub retryable: bool,
    /// When.
    pub retry_after: Option<Duration>,
}

impl Error<'_> {
    /// The end of an answer that fails so.
    #[must_use]
    pub fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(8);
        trailers.insert(STATUS, HeaderValue::from(self.code as u16));
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(self.message)) {
            trailers.insert(MESSAGE, message);
        }
        if let Ok(problem) = HeaderValue::from_str(&STANDARD_NO_PAD.encode(self.problem)) {
            trailers.insert(PROBLEM, problem);
        }
        let pushback = match self.retry_after {
            _ if !self.retryable => Some(HeaderValue::from_static("-1")),
            Some(after) => Some(HeaderValue::from(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))),
            None => None,
        };
        if let Some(pushback) = pushback {
            trailers.insert(PUSHBACK, pushback);
        }
        trailers
    }
}

/// All but visible ASCII and blanks, and `%` itself, byte by byte.
fn percent_encoded(message: &str) -> String {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let digit = |half: u8| HEX.get(usize::from(half)).copied().unwrap_or('0');
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => encoded.extend(['%', digit(byte >> 4), digit(byte & 15)]),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        fields
    }

    #[test]
    fn a_call_is_told_by_its_content_type() {
        for (content_type, want) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/GRPC; charset=utf-8", true),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            assert_eq!(is_call(&fields(&[("content-type", content_type)])), want, "{content_type}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn only_one_line_with_a_status_of_grpc_is_a_status() {
        for (lines, want) in [
            (&[("grpc-status", "0")][..], Some(0)),
            (&[("grpc-status", "16")], Some(16)),
            (&[("grpc-status", "17")], None),
            (&[("grpc-status", "-1")], None),
            (&[("grpc-status", "")], None),
            (&[("grpc-status", "0"), ("grpc-status", "14")], None),
            (&[("grpc-message", "0")], None),
        ] {
            assert_eq!(status_of(&fields(lines)), want, "{lines:?}");
        }
    }

    #[test]
    fn an_answer_of_http_is_put_as_clients_of_grpc_would_read_it() {
        for (status, want) in [(401, "16"), (403, "7"), (404, "12"), (429, "14"), (302, "2")] {
            let mut http = Response::new(Body::full("no".into()));
            *http.status_mut() = http::StatusCode::from_u16(status).unwrap();
            http.headers_mut().insert("www-authenticate", HeaderValue::from_static("Bearer"));
            http.headers_mut().insert("content-length", HeaderValue::from_static("2"));
            let response = in_place_of(&http);
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], want, "{status}");
            assert!(response.body().is_end_stream() && !response.headers().contains_key("content-length"));
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
        }
    }

    #[test]
    fn an_error_says_all_that_a_client_can_use_in_what_headers_can_carry() {
        let error = Error {
            code: Code::Aborted,
            message: "100 % sûr\n",
            problem: "{}?",
            retryable: true,
            retry_after: Some(Duration::from_millis(1500)),
        };
        let response = trailers_only(&error);
        let expected = fields(&[
            ("grpc-status", "10"),
            ("grpc-message", "100 %25 s%C3%BBr%0A"),
            ("onceward-problem-bin", "e30/"),
            ("grpc-retry-pushback-ms", "1500"),
            ("content-type", "application/grpc"),
        ]);
        assert_eq!(response.headers(), &expected);
        assert!(response.body().is_end_stream(), "the head is the trailers");
        let pushback = |error: Error<'_>| error.trailers().get(PUSHBACK).cloned();
        assert_eq!(pushback(Error { retryable: false, ..error }).unwrap(), "-1");
        assert_eq!(pushback(Error { retry_after: None, ..error }), None);
    }
}
