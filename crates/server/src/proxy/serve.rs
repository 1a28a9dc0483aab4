//! The listener: a bounded number of connections, HTTP/1.1 and HTTP/2 on one port, with TLS or without, and an orderly
//! end.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use onceward::PeerCertificate;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::date;
use super::entry;
use super::peer::{Peer, PeerFields, Trusted};
use super::request_body::RequestBody;
use super::socket::{Activity, Socket, Times, signal};
use super::stream::Stream;
use super::tls::ServerTls;

/// hyper reserves room for this many fields without asking the allocator.
const HYPER_HEADERS: usize = 100;
/// Streams that a client reset before they were answered, at most, on one HTTP/2 connection: CVE-2023-44487.
const PENDING_RESETS_MAX: usize = 20;
/// Answer bytes that wait in memory for an HTTP/2 client's window, each stream.
const HTTP2_SEND_BUFFER_BYTES: usize = 64 << 10;
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 << 10;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// How long nothing is accepted after the system refused a socket, for want of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What the cut connections have to notice that they are.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// The bounds of a listener.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Connections open at a time, tunnels included. Beyond it new ones wait in the kernel's queue.
    pub connections: usize,
    /// Bytes of a request head: 431 beyond. At least 8192. Trailers may have 16 KiB, always.
    pub headers_bytes: usize,
    /// Header lines of a request: 431 beyond.
    pub headers: usize,
    /// From the first byte of a request head to its last.
    pub header_read_timeout: Duration,
    /// Between two bytes of a request body, and of an answer that the client is slow to take.
    pub stall_timeout: Duration,
    /// How long a connection stays open without a request.
    pub keep_alive: Duration,
    /// Requests at a time on one HTTP/2 connection.
    pub http2_streams: u32,
    /// For the TLS handshake of a client, its wait for a turn included.
    pub handshake_timeout: Duration,
    /// TLS handshakes at a time.
    pub handshakes: usize,
    /// How long the open requests have at the end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            headers_bytes: 64 << 10,
            headers: HYPER_HEADERS,
            header_read_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            // Above the pool times of common clients and load balancers (60 s), so that they close first.
            keep_alive: Duration::from_secs(75),
            http2_streams: 250,
            handshake_timeout: Duration::from_secs(10),
            handshakes: 2048,
            drain: Duration::from_secs(25),
        }
    }
}

/// How a listener ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Connections whose requests were not done at the end of the drain.
    pub connections_cut: usize,
    /// WebSocket tunnels that were open at the end of the drain.
    pub tunnels_cut: usize,
}

/// What all connections of a listener share.
pub(super) struct Server {
    pub(super) tasks: TaskTracker,
    /// The signal of each open connection. A shared token would cost a contended lock at every wake of a connection;
    /// this is touched when one opens or ends.
    open: Mutex<HashMap<u64, Arc<Activity>>>,
    /// No more waiting, for tunnels.
    pub(super) cut: CancellationToken,
    connections_cut: AtomicUsize,
    tunnels_cut: AtomicUsize,
}

impl Server {
    fn signal_all(&self, signal: u8) {
        for activity in lock(&self.open).values() {
            activity.signal(signal);
        }
    }

    pub(super) fn count_cut_tunnel(&self) {
        self.tunnels_cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// One connection of a client, as its requests see it. Its place among the connections is free when the last user of
/// this is gone, the tunnel included.
pub(super) struct Connection {
    pub(super) server: Arc<Server>,
    pub(super) peer: PeerFields,
    /// The client's, verified in the handshake.
    pub(super) certificate: Option<PeerCertificate>,
    pub(super) activity: Arc<Activity>,
    _seat: Seat,
}

/// A place among the connections, counted.
struct Seat(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Seat {
    fn new(place: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("onceward_connections").increment(1.0);
        Self(place)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        metrics::gauge!("onceward_connections").decrement(1.0);
    }
}

/// Serves HTTP/1.1 and HTTP/2 (by prior knowledge) on `listener` until `shutdown` is done, then lets the open requests
/// end, for at most `limits.drain`, and says how many connections had to be cut.
///
/// `service` sees requests in origin form, with one `Host`, without hop-by-hop fields, with truthful
/// `X-Forwarded-*` and with the [`Peer`] among their extensions. Its future is dropped when the client goes away: what
/// must end regardless has to run on a task of its own. Its answers are sent as they are; an error becomes a 500.
///
/// The framing of HTTP/1 is checked more strictly than hyper does; refusals are 400, 431 and 501, and the connection
/// ends with them.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    limits: Limits,
    trusted: Trusted,
    shutdown: impl Future<Output = ()>,
) -> Report
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    serve_on(listener, None, service, limits, trusted, shutdown).await
}

/// As [`serve`], under TLS: HTTP/1.1 and HTTP/2 by ALPN. Handshakes run beside each other, each within
/// `limits.handshake_timeout`. A request of a client whose certificate was verified has its subject among its
/// extensions, as [`onceward::PeerCertificate`].
pub async fn serve_tls<S, B>(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    service: S,
    limits: Limits,
    trusted: Trusted,
    shutdown: impl Future<Output = ()>,
) -> Report
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    serve_on(listener, Some(tls), service, limits, trusted, shutdown).await
}

async fn serve_on<S, B>(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    service: S,
    limits: Limits,
    trusted: Trusted,
    shutdown: impl Future<Output = ()>,
) -> Report
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let server = Arc::new(Server {
        tasks: TaskTracker::new(),
        open: Mutex::new(HashMap::new()),
        cut: CancellationToken::new(),
        connections_cut: AtomicUsize::new(0),
        tunnels_cut: AtomicUsize::new(0),
    });
    let protocol = Arc::new(protocol(&limits, &server.tasks));
    let times = Times { head: limits.header_read_timeout, stall: limits.stall_timeout, idle: limits.keep_alive };
    let places = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let tls = tls.map(|tls| {
        let turns = Semaphore::new(limits.handshakes.clamp(1, Semaphore::MAX_PERMITS));
        Arc::new(Handshakes { tls, turns, timeout: limits.handshake_timeout })
    });

    let mut shutdown = pin!(shutdown);
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, address, place)) = accepted else {
            continue;
        };
        let peer = Peer { address, trusted: trusted.contains(address.ip()) };
        let accepted =
            Accepted { server: Arc::clone(&server), peer, times, activity: Activity::new(), seat: Seat::new(place) };
        number += 1;
        lock(&server.open).insert(number, Arc::clone(&accepted.activity));
        let (service, protocol, tls) = (service.clone(), Arc::clone(&protocol), tls.clone());
        server.tasks.spawn(async move {
            let server = Arc::clone(&accepted.server);
            let began = match tls {
                None => Some(accepted.connect(Stream::Plain(stream), None)),
                // Large, and over once it is done.
                Some(handshakes) => Box::pin(handshakes.shake(stream, accepted)).await,
            };
            if let Some((socket, connection)) = began {
                run(socket, service, connection, protocol).await;
            }
            lock(&server.open).remove(&number);
        });
    }

    drop(listener);
    server.signal_all(signal::DRAIN);
    server.tasks.close();
    if tokio::time::timeout(limits.drain, server.tasks.wait()).await.is_err() {
        server.signal_all(signal::CUT);
        server.cut.cancel();
        let _ = tokio::time::timeout(CUT_GRACE, server.tasks.wait()).await;
    }
    Report {
        connections_cut: server.connections_cut.load(Ordering::Relaxed),
        tunnels_cut: server.tunnels_cut.load(Ordering::Relaxed),
    }
}

/// A client that was accepted, before the first byte.
struct Accepted {
    server: Arc<Server>,
    peer: Peer,
    times: Times,
    activity: Arc<Activity>,
    seat: Seat,
}

impl Accepted {
    fn connect(self, stream: Stream, certificate: Option<PeerCertificate>) -> (Socket, Arc<Connection>) {
        let Self { server, peer, times, activity, seat } = self;
        let peer = PeerFields::new(peer, stream.is_tls());
        let socket = Socket::new(stream, times, Arc::clone(&activity));
        (socket, Arc::new(Connection { server, peer, certificate, activity, _seat: seat }))
    }
}

/// The TLS handshakes of a listener.
struct Handshakes {
    tls: Arc<ServerTls>,
    /// So many at a time: one costs memory, and whoever begins one need not go on.
    turns: Semaphore,
    timeout: Duration,
}

impl Handshakes {
    /// Begins TLS with a client. `None` where it does not come about, or the drain begins before.
    async fn shake(&self, stream: TcpStream, accepted: Accepted) -> Option<(Socket, Arc<Connection>)> {
        let activity = Arc::clone(&accepted.activity);
        let told = poll_fn(|cx| if activity.poll_signals(cx) == 0 { Poll::Pending } else { Poll::Ready(()) });
        let handshake = tokio::time::timeout(self.timeout, async {
            let _turn = self.turns.acquire().await;
            self.tls.accept(stream).await
        });
        let (reason, error) = tokio::select! {
            () = told => return None,
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => {
                    let certificate = ServerTls::certificate(&stream);
                    return Some(accepted.connect(Stream::Tls(Box::new(stream.into())), certificate));
                }
                Ok(Err(error)) => ("failed", error),
                Err(late) => ("timeout", late.into()),
            },
        };
        metrics::counter!("onceward_tls_handshakes_failed_total", "reason" => reason).increment(1);
        tracing::debug!(%error, client = %accepted.peer.address, "a TLS handshake came to nothing");
        None
    }
}

/// Waits for a place, then for a client. `None` when the system refused the client's socket.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, std::net::SocketAddr, OwnedSemaphorePermit)> {
    let place = match Arc::clone(places).try_acquire_owned() {
        Ok(place) => place,
        Err(_) => {
            metrics::counter!("onceward_connection_limit_reached_total").increment(1);
            Arc::clone(places).acquire_owned().await.ok()?
        }
    };
    match listener.accept().await {
        Ok((stream, address)) => {
            // Without it an answer in two writes waits for the client's delayed acknowledgement.
            let _ = stream.set_nodelay(true);
            Some((stream, address, place))
        }
        Err(error) => {
            let of_the_client =
                matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
            if !of_the_client {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None
        }
    }
}

fn protocol(limits: &Limits, tasks: &TaskTracker) -> auto::Builder<OnTracker> {
    let mut builder = auto::Builder::new(OnTracker(tasks.clone()));
    let headers_bytes = limits.headers_bytes.max(8192);
    let mut http1 = builder.http1();
    http1
        .timer(TokioTimer::new())
        // `date` says it, so that an answer of hyper's own is known by its want.
        .auto_date_header(false)
        // The socket keeps the time of heads and of idle connections apart, with one timer for a connection.
        .header_read_timeout(None)
        // A head must fit into the read buffer, so this is its limit too.
        .max_buf_size(headers_bytes);
    if limits.headers != HYPER_HEADERS {
        http1.max_headers(limits.headers);
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_header_list_size(u32::try_from(headers_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES);
    builder
}

/// Runs one connection to its end, or to the end of the drain.
async fn run<S, B>(socket: Socket, service: S, connection: Arc<Connection>, protocol: Arc<auto::Builder<OnTracker>>)
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let server = Arc::clone(&connection.server);
    let activity = Arc::clone(&connection.activity);
    let answer = service_fn(move |request| {
        let answered = entry::answer(request, service.clone(), Arc::clone(&connection));
        async move { answered.await.map(date::dated) }
    });
    let mut exchange = pin!(protocol.serve_connection_with_upgrades(TokioIo::new(socket), answer));
    let mut told = false;
    let cut = poll_fn(|cx| {
        let signals = activity.poll_signals(cx);
        if signals & signal::CUT != 0 {
            return Poll::Ready(true);
        }
        if signals != 0 && !told {
            told = true;
            // `Connection: close` on the next answer, GOAWAY, or the end where nothing is open.
            exchange.as_mut().graceful_shutdown();
        }
        exchange.as_mut().poll(cx).map(|ended| {
            if let Err(error) = ended {
                // A client's doing nearly always, and nobody is there to be told.
                tracing::debug!(error = &*error, "a connection ended early");
            }
            false
        })
    })
    .await;
    if cut {
        server.connections_cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// The map is whole whatever a panicking holder did: it only inserts and removes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the streams of HTTP/2 connections where the drain waits for them.
#[derive(Clone)]
struct OnTracker(TaskTracker);

impl<F> hyper::rt::Executor<F> for OnTracker
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}
