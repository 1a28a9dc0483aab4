//! The way to one upstream: HTTP/1.1 or HTTP/2 over pooled connections, each request sent at most once.
//!
//! # Never a second dispatch
//!
//! A request is written to one connection only, with one exception that hyper proves: when a pooled connection turns
//! out to be closed before hyper took the request off its queue, hyper hands the request back whole, and it goes to
//! another connection. Over HTTP/2 a stream that the upstream says it did not process counts as not sent, see `http2`.
//! Anything later is [`UpstreamError::Broken`]: it may have been sent.
//!
//! # Few needless failures
//!
//! An upstream may close an idle connection at the moment it is used. Two things narrow that: connections are dropped
//! after [`POOL_IDLE_DEFAULT`], before the upstreams in use do; and before a request is taken, the socket itself is
//! asked for an end, not only the runtime, which may not have heard of it yet (see `connector`). What is left is an end
//! that is on the wire while the request is.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tower::Service;

use super::headers;
use super::pool::{Pool, Used};
use super::tls::ClientTls;

/// How long a connection without a request is kept. Servers that close idle connections do so from 5 s on (Node.js,
/// Apache, uvicorn); whoever closes first cannot be surprised. A steady stream of requests keeps connections well
/// below this.
pub const POOL_IDLE_DEFAULT: Duration = Duration::from_secs(4);

/// What an upstream is reached by.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UpstreamOptions {
    /// For name resolution and all addresses of the name together.
    pub connect_timeout: Duration,
    /// How long a connection without a request is kept; zero keeps none.
    pub pool_idle: Duration,
    /// HTTP/2: by prior knowledge, or under TLS by ALPN, where HTTP/1.1 is offered too. WebSockets still go over
    /// HTTP/1.1.
    pub http2: bool,
    /// For an `https` URL.
    pub tls: Option<Arc<ClientTls>>,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(5), pool_idle: POOL_IDLE_DEFAULT, http2: false, tls: None }
    }
}

/// An upstream's URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UpstreamUrlError {
    /// Not a URL, or none with a host.
    #[error("{url:?} is not a URL like http://127.0.0.1:9000")]
    Invalid {
        /// What was given.
        url: String,
    },
    /// Nothing says how the upstream is known.
    #[error("{url:?}: an https upstream needs certificates: set UpstreamOptions::tls")]
    Https {
        /// What was given.
        url: String,
    },
    /// Requests keep the path they came with, so there is no place for another.
    #[error("{url:?} has a path or query; an upstream is scheme, host and port only")]
    Path {
        /// What was given.
        url: String,
    },
}

/// A request got no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// Not one byte of the request was sent: the upstream knows nothing of it.
    #[error("nothing was sent to the upstream")]
    NotSent {
        /// What happened.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The exchange broke off. The request may have been sent, in part or whole, and may have taken effect.
    #[error("the exchange with the upstream broke off")]
    Broken {
        /// Whether it was the request's body that ended early, so that the upstream is not to blame.
        request_body: bool,
        /// What happened.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl UpstreamError {
    /// Whether it is certain that the upstream got nothing of the request.
    #[must_use]
    pub fn not_sent(&self) -> bool {
        matches!(self, Self::NotSent { .. })
    }

    /// Whether the request's own body failed. The upstream may have got a part.
    #[must_use]
    pub fn request_body_failed(&self) -> bool {
        matches!(self, Self::Broken { request_body: true, .. })
    }
}

impl UpstreamError {
    /// What it means that an exchange ended so, after hyper took the request.
    pub(super) fn of_exchange(error: hyper::Error) -> Self {
        let (not_sent, request_body) = (never_written(&error), error.is_user());
        let source = Box::new(error);
        if not_sent { Self::NotSent { source } } else { Self::Broken { request_body, source } }
    }
}

/// Whether a connection failed on which not a byte had been written since it was opened.
fn never_written(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && super::connector::is_untouched(error)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// A client of one upstream. Clones share its connections.
#[derive(Debug)]
pub struct Upstream<B> {
    pool: Arc<Pool<B>>,
    /// For the few requests that come without one.
    host: HeaderValue,
}

impl<B> Clone for Upstream<B> {
    fn clone(&self) -> Self {
        Self { pool: Arc::clone(&self.pool), host: self.host.clone() }
    }
}

impl<B> Upstream<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    /// A client of `url`, which is `http://HOST[:PORT]` or `https://…`. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// See [`UpstreamUrlError`].
    pub fn new(url: &str, options: &UpstreamOptions) -> Result<Self, UpstreamUrlError> {
        let url_text = || url.to_owned();
        let uri: Uri = url.parse().map_err(|_| UpstreamUrlError::Invalid { url: url_text() })?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => None,
            Some(scheme) if *scheme == Scheme::HTTPS => {
                let tls = options.tls.clone().ok_or_else(|| UpstreamUrlError::Https { url: url_text() })?;
                // An address of version 6 stands in brackets.
                let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(host.to_owned());
                Some((tls, name.map_err(|_| UpstreamUrlError::Invalid { url: url_text() })?))
            }
            _ => return Err(UpstreamUrlError::Invalid { url: url_text() }),
        };
        let host = uri
            .authority()
            .filter(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
            .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
            .ok_or_else(|| UpstreamUrlError::Invalid { url: url_text() })?;
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(UpstreamUrlError::Path { url: url_text() });
        }
        Ok(Self { pool: Pool::new(uri, tls, options), host })
    }
}

impl<B> Service<Request<B>> for Upstream<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = Response<UpstreamBody<B>>;
    type Error = UpstreamError;
    type Future = Exchange<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Exchange<B> {
        if request.uri().authority().is_some() {
            // What comes through `entry` is in origin form already, and this is not for it.
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        }
        let body = request.body();
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let method = request.method().clone();
        let headers = request.headers_mut();
        frame(headers, &method, length);
        if !headers.contains_key(header::HOST) {
            headers.insert(header::HOST, self.host.clone());
        }
        Exchange { answer: Box::pin(Arc::clone(&self.pool).exchange(request)), method }
    }
}

/// Says the body's length, where it is known. hyper believes a `Content-Length` that is there, so it must be the body's own.
fn frame(headers: &mut HeaderMap, method: &Method, length: Option<u64>) {
    headers.remove(header::TRANSFER_ENCODING);
    match length {
        Some(0) if !headers.contains_key(header::CONTENT_LENGTH) => {
            // RFC 9110 section 8.6: methods that anticipate a body say that there is none.
            if matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
        }
        Some(length) => {
            let said = single_length(headers);
            if said != Some(length) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
        }
        None => {
            headers.remove(header::CONTENT_LENGTH);
        }
    }
}

fn single_length(headers: &HeaderMap) -> Option<u64> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    // Digits only: `parse` takes a plus sign.
    line.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// The answer of an upstream, to come. Dropping it ends the exchange, and the connection where it is HTTP/1.1; the
/// request may have been sent.
pub struct Exchange<B> {
    answer: Pin<Box<dyn Future<Output = Result<Answered<B>, UpstreamError>> + Send>>,
    method: Method,
}

/// An answer as it comes, and the connection that it comes on.
type Answered<B> = (Response<Incoming>, Used<B>);
type Outcome<B> = Result<Response<UpstreamBody<B>>, UpstreamError>;

impl<B> Future for Exchange<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Output = Outcome<B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, used) = ready!(self.answer.as_mut().poll(cx))?;
        Poll::Ready(Ok(tidy(response, &self.method, used)))
    }
}

/// Takes the hop off an answer, so that only what is the upstream's own goes on.
fn tidy<B>(mut response: Response<Incoming>, method: &Method, used: Used<B>) -> Response<UpstreamBody<B>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let length = response.body().size_hint().exact();
    let bodiless = *method == Method::HEAD || matches!(response.status().as_u16(), 204 | 304);
    let headers = response.headers_mut();
    // Of two framings the chunked one was read; the length must not be believed by the next.
    if headers.contains_key(header::CONTENT_LENGTH) && !bodiless && single_length(headers) != length {
        match length {
            Some(length) => headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length)),
            None => headers.remove(header::CONTENT_LENGTH),
        };
    }
    let websocket = headers::strip_hop_by_hop(headers);
    if websocket && !switched {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
    response.map(|body| UpstreamBody::new(body, used))
}

/// The body of an upstream's answer. At its end the connection is free for another request; dropped before, the
/// exchange ends, and the connection where it is HTTP/1.1.
#[derive(Debug)]
pub struct UpstreamBody<B> {
    body: Incoming,
    used: Option<Used<B>>,
}

impl<B> UpstreamBody<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    fn new(body: Incoming, used: Used<B>) -> Self {
        let mut this = Self { body, used: Some(used) };
        if this.body.is_end_stream() {
            this.finish();
        }
        this
    }

    fn finish(&mut self) {
        if let Some(used) = self.used.take() {
            used.finish();
        }
    }
}

impl<B> Body for UpstreamBody<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.used = None,
            Some(Ok(frame)) if !frame.is_trailers() && !self.body.is_end_stream() => {}
            _ => self.finish(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// Neither part is ever pinned.
impl<B> Unpin for UpstreamBody<B> {}

#[cfg(test)]
mod tests {
    use super::*;

    type AnyBody = http_body_util::Empty<Bytes>;

    #[test]
    fn only_urls_without_a_path_are_taken_and_https_with_certificates() {
        let options = UpstreamOptions::default();
        for url in ["http://127.0.0.1:9000", "http://api.internal/", "http://[::1]:80"] {
            assert!(Upstream::<AnyBody>::new(url, &options).is_ok(), "{url}");
        }
        for url in ["127.0.0.1:9000", "/path", "ftp://a", "http://u@a", "http://", ""] {
            let error = Upstream::<AnyBody>::new(url, &options).unwrap_err();
            assert!(matches!(error, UpstreamUrlError::Invalid { .. }), "{url}: {error}");
        }
        let error = Upstream::<AnyBody>::new("https://a", &options).unwrap_err();
        assert!(matches!(error, UpstreamUrlError::Https { .. }), "{error}");
        let error = Upstream::<AnyBody>::new("http://a/v1", &options).unwrap_err();
        assert!(matches!(error, UpstreamUrlError::Path { .. }), "{error}");
    }

    #[test]
    fn the_length_sent_is_the_bodys_own() {
        let framed = |method: Method, said: &[&'static str], length| {
            let mut headers = HeaderMap::new();
            for line in said {
                headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(line));
            }
            frame(&mut headers, &method, length);
            headers.get(header::CONTENT_LENGTH).map(|value: &HeaderValue| value.to_str().unwrap().to_owned())
        };
        let length = |text: &str| Some(text.to_owned());
        assert_eq!(framed(Method::POST, &["5"], Some(5)), length("5"));
        assert_eq!(framed(Method::POST, &["7"], Some(5)), length("5"));
        assert_eq!(framed(Method::POST, &["5", "5"], Some(5)), length("5"));
        assert_eq!(framed(Method::POST, &[], Some(0)), length("0"));
        assert_eq!(framed(Method::GET, &[], Some(0)), None);
        assert_eq!(framed(Method::GET, &["5"], None), None);
    }
}
