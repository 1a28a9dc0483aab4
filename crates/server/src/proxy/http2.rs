//! The connections to one upstream that speak HTTP/2, and what is certain when a stream fails.
//!
//! Each connection takes so many requests at a time as its upstream says, and [`STREAMS_MAX`] at most; beyond, another
//! connection is opened, one at a time, up to [`CONNECTIONS_MAX`]; beyond that a request waits for a place. A
//! connection is used only when the upstream's SETTINGS have come: one that does not speak HTTP/2 has got no request.
//!
//! # What was not processed
//!
//! RFC 9113 section 8.7 names two signs by which a stream was not processed: it was reset with REFUSED_STREAM, or a
//! GOAWAY named a last stream before it. A third is ours: the connection ended before the stream's HEADERS were written.
//! All else may have been carried out. The HTTP library tells a GOAWAY in other cases too, so that its word is held
//! against the frames themselves (see `frames`).

use std::error::Error as StdError;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::header::{self, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connector::UpstreamSocket;
use super::frames::Wire;
use super::pool::{self, ANSWER_BUFFER_BYTES, Pool, lock};
use super::upstream::UpstreamError;

/// Requests at a time on one connection, whatever more the upstream would take.
const STREAMS_MAX: u32 = 100;
/// Connections to one upstream, those included that end.
const CONNECTIONS_MAX: usize = 64;
/// How often a request is given to another connection because one was about to end. It was sent on none of them.
const ATTEMPTS_MAX: usize = 4;
/// How long an upstream that chose HTTP/1.1 is not asked for HTTP/2 again.
const HTTP1_FOR: Duration = Duration::from_secs(60);
/// Answer bytes of one stream that wait for their reader.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// Enough for all streams at once, so that one that is read slowly holds up no other.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_MAX;
/// Request bytes of one stream that wait for the upstream.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// An upstream that answers no ping within this is gone: its machine answers TCP, but nobody is in. Not more often:
/// servers of gRPC hang up on clients that ping within five minutes (`too_many_pings`), whatever they are working on.
const PING_EVERY: Duration = Duration::from_secs(330);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The HTTP/2 connections to one upstream.
#[derive(Debug)]
pub(super) struct Connections<B> {
    state: Mutex<State<B>>,
    /// Told when a place is free, for those who wait for one.
    freed: Notify,
}

#[derive(Debug)]
struct State<B> {
    open: Vec<Connection<B>>,
    /// The connection that is being opened. Whoever has no place waits for it.
    opening: Option<Opening>,
    /// Under TLS the upstream chose HTTP/1.1, and is not asked again until then.
    http1_until: Option<Instant>,
    numbered: u64,
}

/// What became of a request.
pub(super) enum Exchanged<B> {
    /// It was answered.
    Answered(Response<Incoming>, Place<B>),
    /// It was not sent: the upstream speaks HTTP/1.1 only.
    Http1Only(Request<B>),
}

type Opening = Shared<BoxFuture<'static, Result<(), OpenError>>>;

/// A connection did not come about; told to all who waited for it.
#[derive(Debug, Clone, Error)]
#[error("no HTTP/2 connection")]
struct OpenError(#[source] Arc<dyn StdError + Send + Sync>);

#[derive(Debug)]
struct Connection<B> {
    number: u64,
    sender: SendRequest<B>,
    wire: Arc<Wire>,
    /// Cancelled once the library has done with it.
    ended: CancellationToken,
    streams: u32,
    /// When the last stream ended.
    since: Instant,
}

/// A place for one request on a connection; free again when dropped.
#[derive(Debug)]
pub(super) struct Place<B> {
    pool: Arc<Pool<B>>,
    number: u64,
    wire: Arc<Wire>,
    ended: CancellationToken,
    /// The highest stream that was written when the place was taken.
    opened_before: u32,
}

impl<B> Connections<B> {
    pub(super) fn new() -> Self {
        let state = State { open: Vec::new(), opening: None, http1_until: None, numbered: 0 };
        Self { state: Mutex::new(state), freed: Notify::new() }
    }

    /// Closes connections that grew old. True where none is left.
    pub(super) fn sweep(&self, idle_timeout: Duration) -> bool {
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.open.retain(|connection| connection.streams > 0 || now - connection.since < idle_timeout);
        state.open.is_empty()
    }
}

impl<B> State<B> {
    /// A connection with a place, or why there is none.
    fn take(&mut self) -> Option<&mut Connection<B>> {
        self.open.retain(|connection| connection.streams > 0 || !connection.is_over());
        self.open.iter_mut().find(|connection| {
            connection.streams < connection.wire.streams_max().min(STREAMS_MAX) && !connection.is_over()
        })
    }
}

impl<B> Connection<B> {
    fn is_over(&self) -> bool {
        self.sender.is_closed() || self.wire.is_closing()
    }
}

impl<B> Pool<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    /// Sends a request over HTTP/2. Given back whole, it goes to another connection; see [`Place::judge`] for the rest.
    pub(super) async fn exchange_http2(
        self: Arc<Self>,
        mut request: Request<B>,
    ) -> Result<Exchanged<B>, UpstreamError> {
        form(&mut request, self.scheme())?;
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let Some((place, mut sender)) = self.place().await? else { return Ok(Exchanged::Http1Only(request)) };
            let mut answer = std::pin::pin!(sender.try_send_request(request));
            drop(sender);
            let answer = tokio::select! {
                biased;
                answer = &mut answer => answer,
                () = place.ended.cancelled() => {
                    // A request that came just as the connection ended lies in its channel, where nobody looks, until
                    // the last of its senders is gone. Then it is given back, as is the error of any other.
                    place.leave();
                    answer.await
                }
            };
            match answer {
                Ok(response) => return Ok(Exchanged::Answered(response, place)),
                Err(mut error) => match error.take_message() {
                    Some(whole) => {
                        place.leave();
                        request = whole;
                        last = Some(error.into_error());
                    }
                    None => return Err(place.judge(error.into_error())),
                },
            }
        }
        let source = last.map_or_else(|| "no connection stayed open".into(), Into::into);
        Err(UpstreamError::NotSent { source })
    }

    /// Waits for a place on a connection, and opens one where need be. `None` where the upstream speaks HTTP/1.1 only.
    async fn place(self: &Arc<Self>) -> Result<Option<(Place<B>, SendRequest<B>)>, UpstreamError> {
        loop {
            // Made before the look, so that no end is missed between.
            let freed = self.http2.freed.notified();
            let opening = {
                let mut state = lock(&self.http2.state);
                if let Some(connection) = state.take() {
                    connection.streams += 1;
                    let place = Place {
                        pool: Arc::clone(self),
                        number: connection.number,
                        wire: Arc::clone(&connection.wire),
                        ended: connection.ended.clone(),
                        opened_before: connection.wire.opened(),
                    };
                    return Ok(Some((place, connection.sender.clone())));
                }
                if state.http1_until.is_some_and(|until| Instant::now() < until) {
                    return Ok(None);
                }
                if state.opening.is_none() && state.open.len() < CONNECTIONS_MAX {
                    state.opening = Some(self.open());
                }
                state.opening.clone()
            };
            match opening {
                Some(opening) => opening.await.map_err(|error| UpstreamError::NotSent { source: error.into() })?,
                None => {
                    metrics::counter!("onceward_upstream_connection_limit_reached_total").increment(1);
                    freed.await;
                }
            }
        }
    }

    /// Opens a connection on a task of its own, so that it does not depend on the request that asked first. The task
    /// ends with the connection's time limit.
    fn open(self: &Arc<Self>) -> Opening {
        let pool = Arc::downgrade(self);
        let connect = Arc::clone(self).connect_http2();
        let task = tokio::spawn(async move {
            let connected = connect.await;
            let Some(pool) = Weak::upgrade(&pool) else { return Ok(()) };
            let opened = {
                let mut state = lock(&pool.http2.state);
                state.opening = None;
                connected.map(|connected| match connected {
                    Connected::Http2(sender, wire, ended) => {
                        let number = state.numbered;
                        state.numbered += 1;
                        state.open.push(Connection { number, sender, wire, ended, streams: 0, since: Instant::now() });
                        None
                    }
                    Connected::Http1(connection) => {
                        state.http1_until = Some(Instant::now() + HTTP1_FOR);
                        Some(connection)
                    }
                })
            };
            pool.sweep_later();
            let opened = opened.map(|http1| {
                if let Some(connection) = http1 {
                    pool.put(connection);
                }
            });
            opened.map_err(|cause| OpenError(cause.into()))
        });
        async move { task.await.unwrap_or_else(|ended| Err(OpenError(Arc::new(ended)))) }.boxed().shared()
    }

    async fn connect_http2(self: Arc<Self>) -> Result<Connected<B>, Box<dyn StdError + Send + Sync>> {
        let until = Instant::now() + self.connect_timeout();
        let socket = self.connector().open(self.target(), true).await?;
        match socket.wire() {
            Some(wire) => greet(socket, wire, until).await,
            None => Ok(Connected::Http1(self.begin_http1(socket).await?)),
        }
    }
}

/// A connection that came about.
enum Connected<B> {
    Http2(SendRequest<B>, Arc<Wire>, CancellationToken),
    Http1(pool::Connection<B>),
}

/// Begins HTTP/2 on a connection and waits for the upstream to do so too.
async fn greet<B>(
    socket: UpstreamSocket,
    wire: Arc<Wire>,
    until: Instant,
) -> Result<Connected<B>, Box<dyn StdError + Send + Sync>>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(ANSWER_BUFFER_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(socket))
        .await?;
    // Ends when its senders are dropped and its last exchange is over.
    let ended = CancellationToken::new();
    let end = ended.clone().drop_guard();
    let mut running = tokio::spawn(async move {
        let _end = end;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the upstream ended early");
        }
    });
    tokio::select! {
        () = wire.greeted() => Ok(Connected::Http2(sender, wire, ended)),
        _ = &mut running => Err("it ended before the upstream began HTTP/2: does it speak HTTP/2 without an upgrade?".into()),
        () = tokio::time::sleep_until(until) => Err("the upstream did not begin HTTP/2 in time".into()),
    }
}

/// Brings a request into the form of HTTP/2: its authority in the target, and no field of a connection.
fn form<B>(request: &mut Request<B>, scheme: &Scheme) -> Result<(), UpstreamError> {
    let not_sent = |source: Box<dyn StdError + Send + Sync>| UpstreamError::NotSent { source };
    let headers = request.headers_mut();
    headers.remove(header::CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    if let Some(host) = headers.remove(header::HOST) {
        let authority = Authority::try_from(host.as_bytes()).map_err(|error| not_sent(error.into()))?;
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(scheme.clone());
        parts.authority = Some(authority);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|error| not_sent(error.into()))?;
    }
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

/// Undoes [`form`], for a request that was not sent and goes over HTTP/1.1 instead.
pub(super) fn unform<B>(request: &mut Request<B>) {
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        request.headers_mut().insert(header::HOST, host);
    }
}

impl<B> Place<B> {
    /// What it means that an exchange here ended so.
    fn judge(&self, error: hyper::Error) -> UpstreamError {
        let cause = cause(&error);
        let not_sent = cause.is_some_and(|cause| {
            let refused = cause.is_reset() && cause.is_remote() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
            // The library gives a remote GOAWAY to each stream beyond its last one, and also to a stream that it was
            // just opening when a GOAWAY of any kind came. That one is the highest of all: if it is not beyond the
            // last stream, none is.
            let left_out = cause.is_go_away() && cause.is_remote() && self.wire.left_out_a_stream();
            // After such an error nothing more is written (see `connector`).
            let unwritten = cause.is_io() && self.wire.opened() == self.opened_before;
            refused || left_out || unwritten
        });
        // The library resets a stream by itself only when the request's body fails.
        let request_body = cause.is_some_and(|cause| cause.is_reset() && !cause.is_remote() && !cause.is_library());
        let source = Box::new(error);
        if not_sent { UpstreamError::NotSent { source } } else { UpstreamError::Broken { request_body, source } }
    }

    /// The connection is about to end: nobody is to take a place on it.
    fn leave(&self) {
        lock(&self.pool.http2.state).open.retain(|connection| connection.number != self.number);
    }
}

impl<B> Drop for Place<B> {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.pool.http2.state);
            if let Some(connection) = state.open.iter_mut().find(|connection| connection.number == self.number) {
                connection.streams = connection.streams.saturating_sub(1);
                connection.since = Instant::now();
            }
        }
        self.pool.http2.freed.notify_waiters();
    }
}

/// The error of HTTP/2 below an error of the library.
fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        next = error.source();
    }
    None
}
