//! The HTTP transport on both sides of the proxy: the client's connections and the upstream's. It knows nothing of
//! idempotency; the layer stands between its two ends.
//!
//! # Layout
//!
//! A request comes through, in this order: `serve` (connections, limits, drain) · `socket` and `framing` (a stricter
//! reading of HTTP/1, time limits; `refused` what it says of a message that is none) · `entry` (checks, one form, `headers` for what may cross; `request_body`) · **your service** ·
//! `upstream`, `pool`, `http2` and `connector` (at most one dispatch, and what is certain when it fails; `frames` reads
//! HTTP/2 beside the library for it). `passthrough` is the service
//! for what is not protected, `tls` certificates and their reloading, `stream` a connection with it or
//! without, `tunnel` what a WebSocket becomes, `peer` who the client is, `problem` the few error
//! answers of the transport itself.
//!
//! ```no_run
//! use onceward_server::proxy::{self, Limits, Passthrough, PassthroughTimes, Trusted, Upstream, UpstreamOptions};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let upstream = Upstream::new("http://127.0.0.1:9000", &UpstreamOptions::default())?;
//! let service = Passthrough::new(upstream, PassthroughTimes::default());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! let shutdown = async { drop(tokio::signal::ctrl_c().await) };
//! let report = proxy::serve(listener, service, Limits::default(), Trusted::default(), shutdown).await;
//! println!("{} connections were cut", report.connections_cut);
//! # Ok(())
//! # }
//! ```

mod connector;
mod date;
mod dispatch;
mod entry;
mod frames;
mod framing;
mod headers;
mod http2;
mod passthrough;
mod peer;
mod pool;
pub mod problem;
mod refused;
mod request_body;
mod serve;
mod socket;
mod stream;
mod tls;
mod tunnel;
mod upstream;

pub use dispatch::{Dispatch, Target};
pub use passthrough::{Passthrough, PassthroughBody, PassthroughBodyError, PassthroughFuture, PassthroughTimes};
pub use peer::{NetworkError, Peer, Trusted};
pub use request_body::RequestBody;
pub use serve::{Limits, Report, serve, serve_tls};
pub(crate) use tls::http1_client;
pub use tls::{
    CertAndKey, Certificates, ClientAuth, ClientTls, ListenerTls, ServerTls, TlsError, TlsErrors, UpstreamTls,
};
pub use upstream::{
    Exchange, POOL_IDLE_DEFAULT, Upstream, UpstreamBody, UpstreamError, UpstreamOptions, UpstreamUrlError,
};
