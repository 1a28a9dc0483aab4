//! The plain path: a request to the upstream and its answer back, with nothing of idempotency.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use onceward::Unanswered;
use pin_project_lite::pin_project;
use thiserror::Error;
use tokio::time::{Instant, Sleep, Timeout};
use tower::Service;

use super::problem::{self, Asked};
use super::upstream::{Exchange, Upstream, UpstreamBody, UpstreamError};

/// The time limits of the plain path.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PassthroughTimes {
    /// To the upstream's head: 504 beyond.
    pub timeout: Duration,
    /// Between two pieces of an answer's body: the answer is broken off beyond.
    pub idle_timeout: Duration,
}

impl Default for PassthroughTimes {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), idle_timeout: Duration::from_secs(60) }
    }
}

/// Forwards requests as they are. Its own answers are 502 `upstream-unreachable`, 502 `upstream-failed`, 504
/// `upstream-timeout`, and 400 where the request's own body broke off; it has no errors.
#[derive(Debug)]
pub struct Passthrough<B> {
    upstream: Upstream<B>,
    times: PassthroughTimes,
}

impl<B> Passthrough<B> {
    /// The plain path to `upstream`.
    #[must_use]
    pub fn new(upstream: Upstream<B>, times: PassthroughTimes) -> Self {
        Self { upstream, times }
    }
}

impl<B> Clone for Passthrough<B> {
    fn clone(&self) -> Self {
        Self { upstream: self.upstream.clone(), times: self.times }
    }
}

impl<B> Service<Request<B>> for Passthrough<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = Response<PassthroughBody<B>>;
    type Error = Infallible;
    type Future = PassthroughFuture<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> PassthroughFuture<B> {
        let asked = Asked::of(request.headers());
        PassthroughFuture {
            exchange: tokio::time::timeout(self.times.timeout, self.upstream.call(request)),
            idle_timeout: self.times.idle_timeout,
            asked,
        }
    }
}

pin_project! {
    /// An answer on the plain path, to come.
    pub struct PassthroughFuture<B> {
        #[pin]
        exchange: Timeout<Exchange<B>>,
        idle_timeout: Duration,
        asked: Asked,
    }
}

impl<B> Future for PassthroughFuture<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Output = Result<Response<PassthroughBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(Ok(match ready!(this.exchange.poll(cx)) {
            Ok(Ok(response)) => response.map(|body| PassthroughBody::upstream(body, *this.idle_timeout)),
            Ok(Err(error)) => refuse(&error, this.asked),
            Err(_) => {
                let detail = "the upstream may still carry the request out; look before sending it again";
                own(problem::UPSTREAM_TIMEOUT.response(detail, this.asked), true)
            }
        }))
    }
}

fn refuse<B>(error: &UpstreamError, asked: &Asked) -> Response<PassthroughBody<B>> {
    let (problem, detail) = if error.not_sent() {
        (problem::UPSTREAM_UNREACHABLE, "nothing was sent to the upstream; send the request again")
    } else if error.request_body_failed() {
        (problem::BAD_REQUEST, "the request's body broke off or is not framed as it says")
    } else {
        (problem::UPSTREAM_FAILED, "the request may have been carried out; look before sending it again")
    };
    tracing::warn!(error = error as &dyn StdError, "the upstream gave no answer");
    own(problem.response(detail, asked), !error.not_sent())
}

/// An answer of our own, and whether something may have been sent to the upstream.
fn own<B>(mut response: Response<Full<Bytes>>, sent: bool) -> Response<PassthroughBody<B>> {
    response.extensions_mut().insert(Unanswered { sent });
    response.map(PassthroughBody::own)
}

pin_project! {
    /// The body of an answer on the plain path.
    #[derive(Debug)]
    pub struct PassthroughBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    #[derive(Debug)]
    enum Kind<B> {
        Upstream {
            #[pin]
            body: UpstreamBody<B>,
            idle_timeout: Duration,
            // Made at the first wait: most answers never wait.
            timer: Option<Pin<Box<Sleep>>>,
            waiting: bool,
        },
        Own { #[pin] body: Full<Bytes> },
    }
}

/// An answer broke off.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PassthroughBodyError {
    /// The upstream broke it off.
    #[error("the upstream broke its answer off")]
    Upstream(#[source] hyper::Error),
    /// Nothing came for this long.
    #[error("the upstream sent nothing for {} ms", .0.as_millis())]
    Idle(Duration),
}

impl<B> PassthroughBody<B> {
    pub(super) fn upstream(body: UpstreamBody<B>, idle_timeout: Duration) -> Self {
        Self { kind: Kind::Upstream { body, idle_timeout, timer: None, waiting: false } }
    }

    pub(super) fn own(body: Full<Bytes>) -> Self {
        Self { kind: Kind::Own { body } }
    }
}

impl<B> Body for PassthroughBody<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = Bytes;
    type Error = PassthroughBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PassthroughBodyError>>> {
        match self.project().kind.project() {
            KindProj::Own { body } => body.poll_frame(cx).map_err(|never| match never {}),
            KindProj::Upstream { body, idle_timeout, timer, waiting } => {
                if let Poll::Ready(frame) = body.poll_frame(cx) {
                    *waiting = false;
                    return Poll::Ready(frame.map(|frame| frame.map_err(PassthroughBodyError::Upstream)));
                }
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(*idle_timeout)));
                if !*waiting {
                    *waiting = true;
                    timer.as_mut().reset(Instant::now() + *idle_timeout);
                }
                timer.as_mut().poll(cx).map(|()| Some(Err(PassthroughBodyError::Idle(*idle_timeout))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Upstream { body, .. } => body.is_end_stream(),
            Kind::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Upstream { body, .. } => body.size_hint(),
            Kind::Own { body } => body.size_hint(),
        }
    }
}
