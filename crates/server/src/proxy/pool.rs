//! The connections to one upstream that wait for their next request. Those over HTTP/2 are in `http2`.
//!
//! hyper-util has a pool too; this one knows less and so costs less (no races between a checkout and a connect, no task
//! for each answer), and it holds the rule on retries itself: see [`Pool::exchange`].

use std::error::Error as StdError;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::connector::{Connector, UpstreamSocket};
use super::http2::{self, Connections, Exchanged, Place};
use super::tls::ClientTls;
use super::upstream::{UpstreamError, UpstreamOptions};

/// Connections without a request that are kept.
const IDLE_MAX: usize = 1024;
/// The least time between two looks for connections that grew old.
const SWEEP_MIN: Duration = Duration::from_millis(100);
/// Bytes of an answer's head, and what is read ahead of an answer's reader.
pub(super) const ANSWER_BUFFER_BYTES: usize = 128 << 10;

/// The connections to one upstream.
#[derive(Debug)]
pub(super) struct Pool<B> {
    connector: Connector,
    /// Scheme, host and port.
    target: Uri,
    options: UpstreamOptions,
    /// The last in is the first out, so that what is not needed grows old.
    idle: Mutex<Vec<Idle<B>>>,
    /// Those that speak HTTP/2.
    pub(super) http2: Connections<B>,
    /// Whether the task runs that closes the old ones.
    swept: AtomicBool,
}

#[derive(Debug)]
struct Idle<B> {
    connection: Connection<B>,
    since: Instant,
}

/// A connection of HTTP/1.1. It ends when this is dropped and its last exchange is over.
#[derive(Debug)]
pub(super) struct Connection<B> {
    sender: SendRequest<B>,
    /// Over once the library has done with it.
    running: JoinHandle<()>,
}

/// A connection on which an exchange is not at its end; is free for another by [`Used::finish`]. When it is dropped
/// before, the exchange ends, and a connection of HTTP/1.1 with it.
#[derive(Debug)]
pub(super) enum Used<B> {
    Http1 {
        pool: Arc<Pool<B>>,
        connection: Connection<B>,
    },
    /// It ended with its answer.
    Over,
    Http2(#[expect(dead_code, reason = "held until the stream is at its end")] Place<B>),
}

impl<B> Pool<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    pub(super) fn new(
        target: Uri,
        tls: Option<(Arc<ClientTls>, ServerName<'static>)>,
        options: &UpstreamOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            connector: Connector::new(options.connect_timeout, tls),
            target,
            options: options.clone(),
            idle: Mutex::new(Vec::new()),
            http2: Connections::new(),
            swept: AtomicBool::new(false),
        })
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(super) fn target(&self) -> &Uri {
        &self.target
    }

    pub(super) fn scheme(&self) -> &Scheme {
        self.target.scheme().unwrap_or(&Scheme::HTTP)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.options.connect_timeout
    }

    /// Sends a request, and gives its answer with the connection that it comes on.
    ///
    /// Over HTTP/1.1 it is sent to another connection only when hyper gives it back whole, which it does if and only if
    /// it had not begun to write it, and when that connection was an old one: a new one that ends so tells something.
    #[expect(
        clippy::manual_async_fn,
        reason = "that would hold the request twice: as argument and as what it goes on with"
    )]
    pub(super) fn exchange(
        self: Arc<Self>,
        mut request: Request<B>,
    ) -> impl Future<Output = Result<(Response<Incoming>, Used<B>), UpstreamError>> + Send {
        // What is rare is on the heap, so that other requests do not carry its room.
        async move {
            // A WebSocket begins as HTTP/1.1, whatever else the upstream speaks.
            if self.options.http2 && !request.headers().contains_key(header::UPGRADE) {
                match Box::pin(Arc::clone(&self).exchange_http2(request)).await? {
                    Exchanged::Answered(response, place) => return Ok((response, Used::Http2(place))),
                    Exchanged::Http1Only(whole) => request = whole,
                }
            }
            form(&mut request);
            loop {
                let (mut connection, kept) = match self.take() {
                    Some(connection) => (connection, true),
                    None => (Box::pin(self.connect()).await?, false),
                };
                let mut answer = pin!(connection.sender.try_send_request(request));
                let early = tokio::select! {
                    biased;
                    answer = &mut answer => Some(answer),
                    _ended = &mut connection.running => None,
                };
                let (answer, connection) = match early {
                    Some(answer) => (answer, Some(connection)),
                    None => {
                        // A request that came just as the connection ended lies in its channel, where nobody looks, until
                        // its sender is gone. Then it is given back, as is the error of any other.
                        drop(connection);
                        (answer.await, None)
                    }
                };
                match answer {
                    Ok(response) => {
                        let used = connection.map_or(Used::Over, |connection| Used::Http1 { pool: self, connection });
                        return Ok((response, used));
                    }
                    Err(mut error) => match error.take_message() {
                        Some(whole) if kept => request = whole,
                        Some(_) => {
                            return Err(UpstreamError::NotSent { source: Box::new(error.into_error()) });
                        }
                        None => return Err(UpstreamError::of_exchange(error.into_error())),
                    },
                }
            }
        }
    }

    async fn connect(&self) -> Result<Connection<B>, UpstreamError> {
        let not_sent = |source| UpstreamError::NotSent { source };
        let socket = self.connector.open(&self.target, false).await.map_err(not_sent)?;
        self.begin_http1(socket).await.map_err(|error| not_sent(error.into()))
    }

    /// Begins HTTP/1.1 on a connection.
    pub(super) async fn begin_http1(&self, socket: UpstreamSocket) -> hyper::Result<Connection<B>> {
        let (sender, connection) =
            http1::Builder::new().max_buf_size(ANSWER_BUFFER_BYTES).handshake(TokioIo::new(socket)).await?;
        let running = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the upstream ended early");
            }
        });
        Ok(Connection { sender, running })
    }
}

impl<B: Send + 'static> Pool<B> {
    /// A connection that is open and waits, as far as can be known.
    fn take(&self) -> Option<Connection<B>> {
        let mut idle = lock(&self.idle);
        let now = Instant::now();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let kept = idle.get(at)?;
            if kept.connection.sender.is_closed() || now - kept.since >= self.options.pool_idle {
                idle.swap_remove(at);
            } else if kept.connection.sender.is_ready() {
                return Some(idle.swap_remove(at).connection);
            }
            // One that is neither is about to finish its last exchange.
        }
        None
    }

    pub(super) fn put(self: Arc<Self>, connection: Connection<B>) {
        if connection.sender.is_closed() || self.options.pool_idle.is_zero() {
            return;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(Idle { connection, since: Instant::now() });
            drop(idle);
            self.sweep_later();
        }
    }

    /// Sees to it that connections which nobody needs are closed.
    pub(super) fn sweep_later(self: &Arc<Self>) {
        if !self.swept.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(self), self.options.pool_idle));
        }
    }
}

impl<B: Send + 'static> Used<B> {
    /// The answer is at its end: the connection may be used again.
    pub(super) fn finish(self) {
        match self {
            Self::Http1 { pool, connection } => pool.put(connection),
            // Its place is free when it is dropped.
            Self::Http2(_) | Self::Over => {}
        }
    }
}

/// Brings a request into the form of HTTP/1.1.
fn form<B: Body>(request: &mut Request<B>) {
    http2::unform(request);
    *request.version_mut() = Version::HTTP_11;
    let is_framed = request.headers().contains_key(header::CONTENT_LENGTH);
    let has_body = !request.body().is_end_stream();
    let headers = request.headers_mut();
    if has_body && !is_framed {
        // Else hyper sends a GET without its body.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if headers.contains_key(header::TE) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Closes connections that grew old, until there are none or the pool is gone.
async fn sweep<B: Send + 'static>(pool: Weak<Pool<B>>, idle_timeout: Duration) {
    loop {
        // A time of zero keeps nothing, and must not turn into a busy loop.
        tokio::time::sleep((idle_timeout / 2).max(SWEEP_MIN)).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        let none_of_http2 = pool.http2.sweep(idle_timeout);
        let mut idle = lock(&pool.idle);
        let now = Instant::now();
        idle.retain(|kept| !kept.connection.sender.is_closed() && now - kept.since < idle_timeout);
        if idle.is_empty() && none_of_http2 {
            // Under the lock: whoever puts the next one in sees it.
            pool.swept.store(false, Ordering::Release);
            return;
        }
    }
}

/// The list is whole whatever a panicking holder did: it only adds and removes.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
