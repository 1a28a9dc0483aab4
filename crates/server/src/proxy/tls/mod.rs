//! TLS on both sides, by rustls with ring: the listener's certificate, those of clients, and what upstreams are known by.
//!
//! [`ServerTls`] and [`ClientTls`] are made of files, and take them anew without a lost connection: those that are open
//! go on under what they began with, new ones get what is in force. [`Certificates`] knows all of them, to reload them
//! at a signal and to look for changed contents. What cannot be used leaves the old one in force, and is logged.
//!
//! Sessions are resumed. Early data is not taken: it can be replayed by whoever saw it.
//!
//! # Layout
//!
//! `files` PEM from the disk, and what is wrong with it · `server` the listener's side · `client` an upstream's ·
//! `certificates` reloading · `subject` what is read out of a certificate.

mod certificates;
mod client;
mod files;
mod server;
mod subject;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use certificates::Certificates;
pub(crate) use client::http1_client;
pub use client::{CertAndKey, ClientTls, UpstreamTls};
pub use files::{TlsError, TlsErrors};
pub use server::{ClientAuth, ListenerTls, ServerTls};

/// HTTP/2 and HTTP/1.1, as ALPN names them.
const H2: &[u8] = b"h2";
const HTTP_11: &[u8] = b"http/1.1";

/// Named in each configuration: a process may hold other rustls providers, and none is its default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
