//! HTTP/1.1 by hand: a request is bytes, so that it can be sent in parts and its connection killed anywhere.
//!
//! The endpoint is not trusted. Heads, bodies and times are bounded, nothing is followed, and what is not HTTP is no
//! answer. Each request has a connection of its own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::trust;
use crate::proxy::TlsErrors;

/// The longest head that is read.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The longest line that names the size of a chunk.
const CHUNK_LINE_BYTES_MAX: usize = 4096;
const HEADERS_MAX: usize = 200;

/// Why there is no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum NoAnswer {
    #[error("no connection: {0}")]
    Unreachable(String),
    #[error("no answer in time")]
    Late,
    #[error("closed without an answer")]
    Closed,
    #[error("the answer broke off")]
    BrokeOff,
    #[error("what came is not HTTP/1.1")]
    NotHttp,
}

impl NoAnswer {
    /// As a heading for counts.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "no connection",
            Self::Late => "no answer",
            Self::Closed => "closed",
            Self::BrokeOff => "broke off",
            Self::NotHttp => "not HTTP",
        }
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The body was longer than what is read.
    pub(super) is_cut: bool,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first line of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether it tells to come again: in flight, overloaded, or failed without saying that this is its last word.
    pub(super) fn is_worth_another_try(&self) -> bool {
        let last_word = || {
            let problem: Option<Value> = serde_json::from_slice(&self.body).ok();
            problem.is_some_and(|problem| problem.get("retryable") == Some(&Value::Bool(false)))
        };
        (matches!(self.status, 408 | 409 | 423 | 425 | 429) || self.status >= 500) && !last_word()
    }

    /// How long it asks to be left alone; a date is not read.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
    }
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) is_tls: bool,
    /// Without the brackets of IPv6.
    pub(super) host: String,
    pub(super) port: u16,
}

/// Opens connections to one origin.
#[derive(Clone)]
pub(super) struct Client {
    origin: Origin,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

impl Client {
    /// `timeout` is for each exchange, connecting included.
    pub(super) fn new(
        origin: Origin,
        cacert: Option<PathBuf>,
        is_checked: bool,
        timeout: Duration,
    ) -> Result<Self, TlsErrors> {
        let tls = match origin.is_tls {
            false => None,
            true => {
                let config = trust::client(cacert, is_checked)?;
                // A host that no certificate could name has failed as a URL before.
                let name = ServerName::try_from(origin.host.clone()).ok();
                name.map(|name| (TlsConnector::from(Arc::new(config)), name))
            }
        };
        Ok(Self { origin, tls, timeout })
    }

    /// When an exchange that begins now has failed.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    pub(super) async fn open(&self) -> Result<Connection, NoAnswer> {
        let opening = async {
            let tcp = TcpStream::connect((self.origin.host.as_str(), self.origin.port)).await?;
            tcp.set_nodelay(true)?;
            Ok(match &self.tls {
                None => Stream::Plain(tcp),
                Some((tls, name)) => Stream::Tls(Box::new(tls.connect(name.clone(), tcp).await?)),
            })
        };
        let failed = |error: io::Error| NoAnswer::Unreachable(error.to_string());
        match timeout_at(self.deadline(), opening).await {
            Ok(opened) => opened.map(|stream| Connection { stream, read: Vec::new() }).map_err(failed),
            Err(_) => Err(NoAnswer::Unreachable("not in time".to_owned())),
        }
    }

    /// Sends a whole request and reads its answer, up to `body_bytes_max` of its body.
    pub(super) async fn ask(&self, request: &[u8], body_bytes_max: usize) -> Result<Answer, NoAnswer> {
        let deadline = self.deadline();
        let mut connection = self.open().await?;
        // One that has answered early may take no more, and its answer counts.
        let _taken = connection.send(request, deadline).await;
        connection.answer(body_bytes_max, deadline).await
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection, and what was read of it and not used yet.
pub(super) struct Connection {
    stream: Stream,
    read: Vec<u8>,
}

impl Connection {
    /// Sends bytes.
    pub(super) async fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), NoAnswer> {
        let sending = async {
            match &mut self.stream {
                Stream::Plain(stream) => stream.write_all(bytes).await,
                Stream::Tls(stream) => {
                    stream.write_all(bytes).await?;
                    stream.flush().await
                }
            }
        };
        match timeout_at(deadline, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(NoAnswer::Closed),
            Err(_) => Err(NoAnswer::Late),
        }
    }

    /// Waits for the first bytes of the answer.
    pub(super) async fn first_bytes(&mut self, deadline: Instant) -> Result<(), NoAnswer> {
        timeout_at(deadline, self.more()).await.map_err(|_| NoAnswer::Late)?
    }

    /// Ends it with a reset where `by_reset`, else as a program that closes its socket.
    pub(super) fn kill(self, by_reset: bool) {
        let tcp = match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(stream) => stream.get_ref().0,
        };
        if by_reset {
            // Where it cannot be, it is closed.
            let _set = tcp.set_zero_linger();
        }
    }

    /// Reads the answer, and of its body as much as is to be read.
    pub(super) async fn answer(mut self, body_bytes_max: usize, deadline: Instant) -> Result<Answer, NoAnswer> {
        timeout_at(deadline, self.read_answer(body_bytes_max)).await.map_err(|_| NoAnswer::Late)?
    }

    async fn read_answer(&mut self, body_bytes_max: usize) -> Result<Answer, NoAnswer> {
        let mut interim = 0;
        let (status, headers) = loop {
            let (used, status, headers) = self.head().await?;
            self.read.drain(..used.min(self.read.len()));
            match status {
                // An answer before the answer.
                100..200 if interim < 16 => interim += 1,
                200..600 => break (status, headers),
                _ => return Err(NoAnswer::NotHttp),
            }
        };
        let mut answer = Answer { status, headers, body: Vec::new(), is_cut: false };
        if matches!(status, 204 | 304) {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked")) {
            (answer.body, answer.is_cut) = self.chunks(body_bytes_max).await?;
            return Ok(answer);
        }
        let length = match answer.header("content-length") {
            Some(length) => Some(length.trim().parse::<usize>().map_err(|_| NoAnswer::NotHttp)?),
            None => None,
        };
        loop {
            let have = self.read.len();
            if length.is_some_and(|length| have >= length.min(body_bytes_max)) || have > body_bytes_max {
                break;
            }
            match self.more().await {
                Ok(()) => {}
                // Without a length the end of the connection is the end of the body.
                Err(NoAnswer::Closed) if length.is_none() => break,
                Err(NoAnswer::Closed) => return Err(NoAnswer::BrokeOff),
                Err(other) => return Err(other),
            }
        }
        answer.is_cut = length.unwrap_or(self.read.len()) > body_bytes_max;
        self.read.truncate(length.unwrap_or(usize::MAX).min(body_bytes_max));
        answer.body = std::mem::take(&mut self.read);
        Ok(answer)
    }

    /// Length, status and headers of the head.
    async fn head(&mut self) -> Result<(usize, u16, Vec<(String, String)>), NoAnswer> {
        loop {
            if !self.read.is_empty() {
                let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
                let mut head = httparse::Response::new(&mut headers);
                match head.parse(&self.read) {
                    Ok(httparse::Status::Complete(used)) => {
                        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                        let headers = head.headers.iter().map(|line| (line.name.to_owned(), text(line.value)));
                        return Ok((used, head.code.unwrap_or(0), headers.collect()));
                    }
                    Ok(httparse::Status::Partial) if self.read.len() < HEAD_BYTES_MAX => {}
                    _ => return Err(NoAnswer::NotHttp),
                }
            }
            let began = !self.read.is_empty();
            self.more().await.map_err(|error| match error {
                NoAnswer::Closed if began => NoAnswer::BrokeOff,
                error => error,
            })?;
        }
    }

    async fn chunks(&mut self, body_bytes_max: usize) -> Result<(Vec<u8>, bool), NoAnswer> {
        let broke_off = |error| if error == NoAnswer::Closed { NoAnswer::BrokeOff } else { error };
        let mut body = Vec::new();
        loop {
            let (used, size) = loop {
                match httparse::parse_chunk_size(&self.read) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) if self.read.len() < CHUNK_LINE_BYTES_MAX => {
                        self.more().await.map_err(broke_off)?;
                    }
                    _ => return Err(NoAnswer::NotHttp),
                }
            };
            self.read.drain(..used.min(self.read.len()));
            // Trailers are of no interest.
            if size == 0 {
                return Ok((body, false));
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size > body_bytes_max - body.len() {
                return Ok((body, true));
            }
            while self.read.len() < size + 2 {
                self.more().await.map_err(broke_off)?;
            }
            body.extend(self.read.drain(..size));
            if self.read.drain(..2).ne(*b"\r\n") {
                return Err(NoAnswer::NotHttp);
            }
        }
    }

    async fn more(&mut self) -> Result<(), NoAnswer> {
        let read = match &mut self.stream {
            Stream::Plain(stream) => stream.read_buf(&mut self.read).await,
            Stream::Tls(stream) => stream.read_buf(&mut self.read).await,
        };
        match read {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(NoAnswer::Closed),
        }
    }
}
