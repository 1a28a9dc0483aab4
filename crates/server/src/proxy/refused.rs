//! What a client is told whose message is no HTTP/1 that this proxy reads.
//!
//! hyper answers such a message itself, with a head alone, and nothing of ours is asked. The socket knows that head by
//! what it lacks (every other answer is dated by `date`) and by when it comes: while nothing of an answer is on its way,
//! since a body may hold the same bytes. What is written in its place says what is wrong.

use bytes::Bytes;
use http::StatusCode;

use super::date;
use super::problem::{self, Asked, Problem};

/// No head of hyper's own is longer.
const HEAD_BYTES_MAX: usize = 128;

/// The answer to write where hyper writes one of its own; `None` for any other bytes.
pub(super) fn in_place_of(written: &[u8]) -> Option<Bytes> {
    if written.len() > HEAD_BYTES_MAX || !written.starts_with(b"HTTP/1.") {
        return None;
    }
    let (line, fields) = std::str::from_utf8(written).ok()?.strip_suffix("\r\n\r\n")?.split_once("\r\n")?;
    let is_bare = fields.split("\r\n").all(|field| matches!(field, "content-length: 0" | "connection: close"));
    let (problem, detail) = told(line.get(9..12).filter(|_| is_bare)?)?;
    let answer = date::dated(problem.response(detail, &Asked::default()));
    let head = answer.headers().iter().fold(format!("{line}\r\n"), |head, (name, value)| {
        head + name.as_str() + ": " + value.to_str().unwrap_or_default() + "\r\n"
    });
    let body = answer.into_body().into_inner()?;
    let head = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    Some([head.as_bytes(), &body].concat().into())
}

fn told(status: &str) -> Option<(Problem, &'static str)> {
    match StatusCode::from_bytes(status.as_bytes()).ok()? {
        StatusCode::BAD_REQUEST => Some((
            problem::BAD_REQUEST,
            "The message cannot be read, or two readers could read it in two ways (RFC 9112): look at its request line, its header lines, its line ends and its chunk sizes.",
        )),
        StatusCode::URI_TOO_LONG => Some((
            problem::URI_TOO_LONG,
            "The request target is longer than 65534 bytes. Put what is long into the body.",
        )),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Some((
            problem::HEADERS_TOO_LARGE,
            "The head is larger than limits.headers or has more than 100 lines. Send fewer or shorter fields, or raise limits.headers.",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_head_of_hypers_own_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let answer = in_place_of(bare).expect("an answer");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 431 ") && text.contains("urn:onceward:problem:headers-too-large"), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("content-length: {}", body.len())) && head.contains("connection: close"));
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: Thu, 26 Nov 2026 00:00:00 GMT\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\n\r\n",
            b"",
        ] {
            assert_eq!(in_place_of(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
