//! What stands behind the layer: each request goes to its route's upstream, or to none.
//!
//! The route itself carries its [`Target`], so that a request that came by a route of an earlier configuration goes
//! where that configuration says.

use std::{error::Error as StdError, future::Future, pin::Pin, sync::Arc, task::Context, task::Poll};

use http::{Request, Response};
use onceward::{Body, BoxError, Covered, NotSent};
use tower::Service;

use super::passthrough::{Passthrough, PassthroughBody};
use super::problem;
use super::upstream::{Upstream, UpstreamError};

/// Where the requests of a route go: an extension of the [`Route`](onceward::Route), as `Arc<Target>`.
#[derive(Debug)]
pub struct Target {
    /// For executions under a claim, which the layer times.
    pub upstream: Upstream<Body>,
    /// The end of everything under a claim, so that no answer of the upstream hangs for ever; within it the layer
    /// says what is too long.
    pub execution_max: std::time::Duration,
    /// For everything else.
    pub plain: Passthrough<Body>,
}

/// The service behind the layer. A request under a claim fails with an error that says whether it was sent; every
/// other request is always answered. A route without a [`Target`] is 404 `no-route`.
#[derive(Debug, Clone, Copy)]
pub struct Dispatch;

impl Service<Request<Body>> for Dispatch {
    type Response = Response<PassthroughBody<Body>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let covered = request.extensions_mut().remove::<Covered>();
        let is_protected = covered.as_ref().is_some_and(|covered| covered.protected);
        let target = covered.as_ref().and_then(|covered| covered.route.extensions.get::<Arc<Target>>());
        let Some(target) = target else {
            let asked = problem::Asked::of(request.headers());
            return Box::pin(async move {
                let detail = "no route of the configuration matches this request; add one, or set default_upstream";
                if is_protected {
                    return Err(NotSent(detail.into()).into());
                }
                Ok(problem::NO_ROUTE.response(detail, &asked).map(PassthroughBody::own))
            });
        };
        if !is_protected {
            let answer = target.plain.clone().call(request);
            return Box::pin(async move { answer.await.map_err(|never| match never {}) });
        }
        let idle_timeout = target.execution_max;
        let exchange = target.upstream.clone().call(request);
        Box::pin(async move {
            match exchange.await {
                Ok(response) => Ok(response.map(|body| PassthroughBody::upstream(body, idle_timeout))),
                Err(error) => Err(classed(error)),
            }
        })
    }
}

/// As the layer reads it: nothing sent, or perhaps sent.
fn classed(error: UpstreamError) -> BoxError {
    if error.not_sent() {
        let cause: Box<dyn StdError + Send + Sync> = Box::new(error);
        return NotSent(cause).into();
    }
    error.into()
}
