//! The stricter reading of HTTP/1, beside hyper's, which reads the same bytes right behind it.
//!
//! Behind the stricter reader hyper gets what that let through, and then what makes it fail. So it may refuse more, and
//! never see a request that the first one has not seen, or another one in its place.

#[path = "../../../crates/server/src/proxy/framing.rs"]
mod framing;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use self::framing::{Framing, Phase};
use crate::{Target, shape};

pub(crate) const TARGET: Target = Target {
    name: "http1",
    run,
    bytes_max: 2048,
    words: &[
        "GET / HTTP/1.1\r\n",
        "POST /a HTTP/1.1\r\n",
        "Host: a\r\n",
        "\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding:chunked\r\n",
        "Content-Length:5\r\n",
        "transfer-encoding : chunked\r\n",
        "0\r\n\r\n",
        "5\r\nhello\r\n",
        "1;a=b\r\nx\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        "#",
        "Upgrade: websocket\r\n",
        "Connection: close\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "Content-Length: 1, 1\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "HTTP/1.0",
        "Expect: 100-continue\r\n",
        "hello",
        "Content-Length: +5\r\n",
        "X: y\r\n",
        "ffffffffffffffff\r\n",
        "\u{0}",
    ],
};

/// A further request, behind what ends between two messages.
const PROBE: &[u8] = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n";

/// What was let through, and how it ends.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    /// Method and target of each request whose end has come, as they stand there.
    complete: Vec<String>,
    /// Those whose head has come.
    begun: usize,
    refused_at: Option<usize>,
    phase: Phase,
}

fn run(input: &[u8]) -> u64 {
    let read = follow(input);
    assert_eq!(follow_cut(input), (read.refused_at, read.phase), "cut otherwise");
    if matches!(read.phase, Phase::Opaque | Phase::Http2) {
        return shape(("left alone", read.complete.len().min(3)));
    }
    let mut stream = input[..read.refused_at.unwrap_or(input.len())].to_vec();
    if read.refused_at.is_some() {
        stream.extend(b"\0\r\n\r\n");
    } else if read.phase == Phase::Boundary {
        stream.extend(PROBE);
    }
    let mut theirs = hyper_reads(&stream);
    // One that comes through as itself tells that both readers stood at the same place.
    if read.phase == Phase::Boundary && theirs.pop_if(|(line, _)| line == "GET /probe").is_some() {
        assert_eq!(theirs.len(), read.complete.len(), "hyper reads other messages: {theirs:?}");
    }
    // hyper answers a request at its head; its body is read behind that.
    let seen = theirs.len();
    assert!(seen <= read.begun, "hyper sees {seen} requests, {} were let through: {theirs:?}", read.begun);
    for (at, (ours, (line, body))) in read.complete.iter().zip(&theirs).enumerate() {
        // A target in absolute form is spelled anew by hyper.
        if ours.split_once(' ').is_some_and(|(_, target)| target.starts_with('/')) {
            assert_eq!(ours, line, "another request");
        }
        // It may refuse a body, and then reads no further; it must not wait for more of one that was let through whole.
        let ended = at + 1 == seen;
        assert!(
            *body == Body::Whole || (*body == Body::Refused && ended),
            "a body that was let through whole: {body:?}"
        );
    }
    let whole = theirs.iter().filter(|(_, body)| *body == Body::Whole).count();
    assert!(whole <= read.complete.len(), "hyper sees {whole} whole requests, {} came", read.complete.len());
    shape((read.complete.len().min(4), seen.min(4), read.refused_at.is_some(), read.phase == Phase::Body))
}

/// Follows byte by byte, so that each boundary is seen.
fn follow(input: &[u8]) -> Read {
    let mut framing = Framing::new();
    let mut read = Read { complete: Vec::new(), begun: 0, refused_at: None, phase: Phase::Boundary };
    let mut start = 0;
    for (at, byte) in input.iter().enumerate() {
        let before = framing.phase();
        if let Err(offset) = framing.follow(std::slice::from_ref(byte)) {
            assert_eq!(offset, 0);
            read.refused_at = Some(at);
            break;
        }
        let now = framing.phase();
        if before == Phase::Boundary {
            start = at;
        }
        // Empty lines before a request are no head.
        let is_blank = input[start..=at] == *b"\r\n";
        if before == Phase::Head && now != Phase::Head && !is_blank {
            read.begun += 1;
        }
        if now == Phase::Boundary && before != Phase::Boundary && !is_blank {
            read.complete.push(line_of(&input[start..=at]));
        }
    }
    read.phase = framing.phase();
    read
}

/// The same in pieces of a few bytes: how it ended.
fn follow_cut(input: &[u8]) -> (Option<usize>, Phase) {
    let mut framing = Framing::new();
    let mut at = 0;
    let size = 2 + input.len() % 13;
    for piece in input.chunks(size) {
        if let Err(offset) = framing.follow(piece) {
            return (Some(at + offset), framing.phase());
        }
        at += piece.len();
    }
    (None, framing.phase())
}

fn line_of(message: &[u8]) -> String {
    let line = message.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    line.rsplit_once(' ').map_or_else(String::new, |(line, _)| line.to_owned())
}

/// How a body ended for hyper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Whole,
    /// It waited for more.
    Cut,
    Refused,
}

/// The requests that hyper sees, and how the body of each ended.
fn hyper_reads(stream: &[u8]) -> Vec<(String, Body)> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Builder::new_current_thread().build().expect("a runtime"));
    let seen: Arc<Mutex<Vec<(String, Body)>>> = Arc::default();
    runtime.block_on(async {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let seen = Arc::clone(&seen);
        let service = service_fn(move |request: Request<Incoming>| {
            let seen = Arc::clone(&seen);
            async move {
                let at = {
                    let mut seen = seen.lock().expect("not poisoned");
                    seen.push((format!("{} {}", request.method(), request.uri()), Body::Cut));
                    seen.len() - 1
                };
                let ended = match request.into_body().collect().await {
                    Ok(_) => Body::Whole,
                    Err(error) if was_cut(&error) => Body::Cut,
                    Err(_) => Body::Refused,
                };
                seen.lock().expect("not poisoned")[at].1 = ended;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let serve = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .pipeline_flush(true)
            .serve_connection(TokioIo::new(far), service);
        let feed = async {
            let _taken = near.write_all(stream).await;
            let _ended = near.shutdown().await;
            let mut answers = Vec::new();
            let _read = near.read_to_end(&mut answers).await;
        };
        let (_served, ()) = tokio::join!(serve, feed);
    });
    std::mem::take(&mut *seen.lock().expect("not poisoned"))
}

/// Whether a body only ended too early.
fn was_cut(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    error.is_incomplete_message() || cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::UnexpectedEof)
}
