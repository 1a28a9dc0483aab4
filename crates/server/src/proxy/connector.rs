//! Opens connections to an upstream, and asks the socket itself whether the upstream has closed it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::net::RecvFlags;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use super::frames::{Follow, Wire};
use super::stream::Stream;
use super::tls::ClientTls;

/// Opens connections, each within a time limit.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    http: HttpConnector,
    tls: Option<(Arc<ClientTls>, ServerName<'static>)>,
    timeout: Duration,
}

/// For the upstream's first words after a handshake, besides the time that the connection took.
const WORDS_MARGIN: Duration = Duration::from_millis(20);

/// A connection was not opened in time.
#[derive(Debug, Error)]
#[error("no connection within {} ms", .0.as_millis())]
struct ConnectTimeout(Duration);

/// Wraps the failure of a connection on which nothing had been written yet.
#[derive(Debug, Error)]
#[error("the connection failed before anything was written")]
struct Untouched(#[source] io::Error);

/// Whether an error says that nothing was ever written on its connection.
pub(super) fn is_untouched(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Untouched>())
}

impl Connector {
    /// `tls` with the name that the upstream's certificate must have.
    pub(super) fn new(timeout: Duration, tls: Option<(Arc<ClientTls>, ServerName<'static>)>) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(tls.is_none());
        http.set_nodelay(true);
        http.set_connect_timeout(Some(timeout));
        // Finds hosts that vanished without a word below a connection that waits for a slow answer.
        http.set_keepalive(Some(Duration::from_secs(30)));
        http.set_keepalive_interval(Some(Duration::from_secs(10)));
        http.set_keepalive_retries(Some(3));
        Self { http, tls, timeout }
    }
}

/// Whether the upstream refused our side of the handshake. In TLS 1.3 it says so after the handshake is over for us; a
/// request that crossed it on the way was not read, since nothing is before the handshake is over for the upstream.
fn is_refused_handshake(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        cause,
        Some(rustls::Error::AlertReceived(
            Alert::AccessDenied
                | Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRequired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::DecryptError
                | Alert::HandshakeFailure
                | Alert::UnknownCA
                | Alert::UnsupportedCertificate
        ))
    )
}

impl Connector {
    /// Opens a connection. With `http2` it speaks that; under TLS only if the upstream chooses it, see
    /// [`UpstreamSocket::wire`].
    pub(super) async fn open(
        &self,
        target: &Uri,
        http2: bool,
    ) -> Result<UpstreamSocket, Box<dyn std::error::Error + Send + Sync>> {
        // The inner limit counts for each address; this one also for the name, and for TLS.
        let stream = tokio::time::timeout(self.timeout, self.connect(target, http2))
            .await
            .map_err(|_| ConnectTimeout(self.timeout))??;
        let http2 = match &stream {
            Stream::Plain(_) => http2,
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        };
        let frames = http2.then(|| Frames {
            wire: Arc::new(Wire::new()),
            sent: Follow::sent(),
            received: Follow::received(),
            ended: false,
        });
        Ok(UpstreamSocket { stream, written: false, heard: false, quiet: Quiet::No, frames })
    }

    async fn connect(&self, target: &Uri, http2: bool) -> Result<Stream, Box<dyn std::error::Error + Send + Sync>> {
        let began = Instant::now();
        let mut http = self.http.clone();
        let stream = http.ready().await?.call(target.clone()).await?.into_inner();
        let Some((tls, name)) = &self.tls else {
            return Ok(Stream::Plain(stream));
        };
        let stream = tls.connector(http2).connect(name.clone(), stream).await?;
        if tls.shows_certificate() {
            // In TLS 1.3 the upstream judges our certificate when the handshake is over for us, and its refusal could
            // cross a request on the way. Its first words come with that judgement: they are waited for as long as the
            // connection took. One that says nothing then is used all the same.
            let _spoke = tokio::time::timeout(began.elapsed() + WORDS_MARGIN, stream.get_ref().0.readable()).await;
        }
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

/// A connection to the upstream.
pub(super) struct UpstreamSocket {
    stream: Stream,
    /// Whether a byte was ever written.
    written: bool,
    /// Whether a byte ever came.
    heard: bool,
    quiet: Quiet,
    /// Where it speaks HTTP/2.
    frames: Option<Frames>,
}

/// The frames of a connection that speaks HTTP/2.
struct Frames {
    wire: Arc<Wire>,
    sent: Follow,
    received: Follow,
    /// An end or an error was read. Nothing is written from then on, so that a stream which was not written by then
    /// never will be.
    ended: bool,
}

/// How quiet a connection is, to tell when the socket is worth asking. Just after an answer it is not, and while one is
/// awaited the runtime will say so in time; it is when a new request comes, and hyper looks once more before taking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quiet {
    /// Bytes came, or none in either direction yet.
    No,
    /// Nothing came since, and nothing was written.
    Waiting,
    /// A request is under way.
    Asked,
}

impl UpstreamSocket {
    /// Whether the upstream has closed its side. Asks the kernel: the runtime learns of an end only when it next looks
    /// at all its sockets, and a request taken in between would be lost on a dead connection.
    fn closed(&self) -> io::Result<bool> {
        let mut byte = [0_u8; 1];
        match rustix::net::recv(self.stream.tcp(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            // Under TLS an end is announced by a record, and HTTP/1.1 has nothing else to say unasked.
            Ok((_, received)) => Ok(received == 0 || (self.stream.is_tls() && self.frames.is_none())),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn mark<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(error)) if !self.written || (!self.heard && is_refused_handshake(&error)) => {
                Poll::Ready(Err(io::Error::new(error.kind(), Untouched(error))))
            }
            outcome => outcome,
        }
    }

    /// What its frames say, where it speaks HTTP/2.
    pub(super) fn wire(&self) -> Option<Arc<Wire>> {
        self.frames.as_ref().map(|frames| Arc::clone(&frames.wire))
    }

    fn has_ended(&self) -> bool {
        self.frames.as_ref().is_some_and(|frames| frames.ended)
    }

    fn wrote(&mut self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.written |= bytes > 0;
            self.quiet = Quiet::Asked;
        }
        self.mark(outcome)
    }
}

impl AsyncRead for UpstreamSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, has_room) = (buf.filled().len(), buf.remaining() > 0);
        let outcome = this.poll_read_socket(cx, buf);
        if let (Some(frames), Poll::Ready(read)) = (&mut this.frames, &outcome) {
            let fresh = buf.filled().get(before..).unwrap_or_default();
            frames.received.follow(fresh, &frames.wire);
            frames.ended |= read.is_err() || (has_room && fresh.is_empty());
        }
        outcome
    }
}

impl UpstreamSocket {
    fn poll_read_socket(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self;
        let outcome = Pin::new(&mut this.stream).poll_read(cx, buf);
        match outcome {
            Poll::Ready(Ok(())) => {
                this.quiet = Quiet::No;
                this.heard |= !buf.filled().is_empty();
                Poll::Ready(Ok(()))
            }
            Poll::Pending if this.quiet == Quiet::No => {
                this.quiet = Quiet::Waiting;
                Poll::Pending
            }
            // hyper reads before it takes a request: an end that is told here makes it give the request back whole.
            Poll::Pending if this.quiet == Quiet::Waiting => match this.closed() {
                Ok(true) => Poll::Ready(Ok(())),
                Ok(false) => Poll::Pending,
                Err(error) => this.mark(Poll::Ready(Err(error))),
            },
            outcome => this.mark(outcome),
        }
    }
}

impl AsyncWrite for UpstreamSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.has_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let outcome = Pin::new(&mut this.stream).poll_write(cx, bytes);
        if let (Some(frames), Poll::Ready(Ok(written))) = (&mut this.frames, &outcome) {
            frames.sent.follow(bytes.get(..*written).unwrap_or_default(), &frames.wire);
        }
        this.wrote(outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.has_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        if let (Some(frames), Poll::Ready(Ok(written))) = (&mut this.frames, &outcome) {
            let mut left = *written;
            for slice in slices {
                let (now, _) = slice.split_at(left.min(slice.len()));
                frames.sent.follow(now, &frames.wire);
                left -= now.len();
            }
        }
        this.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
