//! Asking somebody else over HTTP: the service that checks credentials ([`Auth`](crate::Auth)), and the upstream
//! about an outcome that nobody knows.
//!
//! The layer opens no connection itself. It is handed a [`Client`], which the binary makes of hyper and a library user
//! of whatever is at hand.

use std::{fmt, future::Future, pin::Pin};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, StatusCode, header};

use crate::body::BoxError;

/// Sends a question and gives its answer.
///
/// The question has no body, its URI is absolute. An implementation follows no redirect, adds no credential, and may
/// send a question again, since it has no effect. It needs no time limit of its own: what takes too long is dropped.
pub trait Client: fmt::Debug + Send + Sync + 'static {
    /// Asks. Of an answer whose body is longer than `body_bytes_max` no more than that is read.
    fn ask(&self, question: Request<()>, body_bytes_max: usize) -> Asking;
}

/// An answer to come.
pub type Asking = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, whole; `None` where it is longer than asked for.
    pub body: Option<Bytes>,
}

/// Takes off what belongs to one connection, and how the body was framed on it.
pub(crate) fn strip_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}
