//! Opens connections to an upstream, and asks the socket itself whether the upstream has closed it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::net::RecvFlags;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::{Service, ServiceExt};

use super::frames::{Follow, Wire};

/// Opens connections, each within a time limit.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    http: HttpConnector,
    timeout: Duration,
}

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
    pub(super) fn new(timeout: Duration) -> Self {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.set_connect_timeout(Some(timeout));
        // Finds hosts that vanished without a word below a connection that waits for a slow answer.
        http.set_keepalive(Some(Duration::from_secs(30)));
        http.set_keepalive_interval(Some(Duration::from_secs(10)));
        http.set_keepalive_retries(Some(3));
        Self { http, timeout }
    }
}

impl Connector {
    /// Opens a connection; `http2` follows its frames.
    pub(super) async fn open(
        &self,
        target: &Uri,
        http2: bool,
    ) -> Result<UpstreamSocket, Box<dyn std::error::Error + Send + Sync>> {
        let mut http = self.http.clone();
        let connecting = async { http.ready().await?.call(target.clone()).await };
        // The inner limit counts for each address; this one also for the name.
        let stream =
            tokio::time::timeout(self.timeout, connecting).await.map_err(|_| ConnectTimeout(self.timeout))??;
        let frames = http2.then(|| Frames {
            wire: Arc::new(Wire::new()),
            sent: Follow::sent(),
            received: Follow::received(),
            ended: false,
        });
        Ok(UpstreamSocket { stream: stream.into_inner(), written: false, quiet: Quiet::No, frames })
    }
}

/// A connection to the upstream.
pub(super) struct UpstreamSocket {
    stream: TcpStream,
    /// Whether a byte was ever written.
    written: bool,
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
        match rustix::net::recv(&self.stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, received)) => Ok(received == 0),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn mark<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(error)) if !self.written => {
                Poll::Ready(Err(io::Error::new(error.kind(), Untouched(error))))
            }
            outcome => outcome,
        }
    }

    /// What its frames say. Of one that was not opened for HTTP/2, nothing.
    pub(super) fn wire(&self) -> Arc<Wire> {
        self.frames.as_ref().map_or_else(|| Arc::new(Wire::new()), |frames| Arc::clone(&frames.wire))
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
