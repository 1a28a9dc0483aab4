//! One execution: the request goes upstream, its answer into the record, then to the client.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, header, response::Parts};
use http_body::Body as HttpBody;
use onceward_core::{
    claim::{Claim, Event, Sent},
    decide::Refusal,
    key::RecordId,
    policy::Class,
};
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    body::{Body, BoxError},
    caller::Caller,
    capture::{self, Bounds, Captured, Judged, Rest, Tail},
    detach::Handoff,
    drive::{self, Grant, Recorded},
    engine::Engine,
    failpoint,
    refuse::{Details, Problem},
    replay::{self, EXPIRES, KEY_SOURCE, STATUS},
    route::Route,
};

/// The inner service did not send a byte of the request: the key is free again.
///
/// An inner service that knows this for certain wraps its error in it; every other error counts
/// as "may have been sent".
#[derive(Debug, thiserror::Error)]
#[error("nothing was sent upstream")]
pub struct NotSent(#[source] pub BoxError);

/// One protected request, once it is known what it is.
pub(crate) struct Exchange {
    pub(crate) engine: Engine,
    pub(crate) route: Arc<Route>,
    pub(crate) id: RecordId,
    pub(crate) request_id: HeaderValue,
    pub(crate) caller: Caller,
    pub(crate) derived: bool,
    pub(crate) unverified_principal: bool,
    /// Time that the upstream took, in microseconds.
    pub(crate) upstream: AtomicU64,
    /// Its answer came after its claim was lost.
    pub(crate) fenced: AtomicBool,
}

/// What the client is still owed.
enum Owed {
    /// It has got an answer, or gone.
    Nothing,
    /// A held answer.
    Held(Box<Parts>, Vec<Bytes>, Option<HeaderMap>),
    /// The end of a streamed one.
    Tail(Tail, Option<HeaderMap>),
    /// The upstream failed.
    Problem(Problem),
}

impl Exchange {
    /// Executes under `grant`. What it returns is for the client, unless it has handed an answer
    /// over before.
    #[expect(
        clippy::manual_async_fn,
        reason = "that would hold the request twice: as argument and as what it goes on with"
    )]
    pub(crate) fn run<'a, S, R>(
        &'a self,
        mut claim: Box<Claim>,
        grant: Grant,
        mut inner: S,
        request: Request<Body>,
        handoff: &'a Handoff,
    ) -> impl Future<Output = Response<Body>> + Send + 'a
    where
        S: Service<Request<Body>, Response = Response<R>> + Send + 'static,
        S::Error: Into<BoxError> + Send,
        S::Future: Send,
        R: HttpBody<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        async move {
            let _executing = self.engine.executing();
            let Grant { owner, clock, permit: _permit, .. } = grant;
            let started = Instant::now();
            failpoint::hit(failpoint::DISPATCH_BEGIN).await;
            if !drive::still_holds(&self.engine, self.id, &claim, clock, self.route.policy.lease, &owner).await {
                drop(owner);
                return self.refuse(&Problem::Refused(Refusal::ClaimLost, Details::default()));
            }
            let (event, owed) = {
                // A handler that panics may have had its effect: its outcome is unknown, not gone.
                let call = std::panic::catch_unwind(AssertUnwindSafe(|| inner.call(request)));
                let work = self.follow(call.ok(), started, clock, handoff);
                tokio::select! {
                    biased;
                    done = work => done,
                    () = drive::renew(&self.engine, self.id, &claim, self.route.policy.lease, &owner) => {
                        unreachable!("renewal does not end by itself")
                    }
                }
            };
            failpoint::hit(failpoint::DISPATCH_END).await;
            let upstream = started.elapsed();
            self.upstream.store(u64::try_from(upstream.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            self.engine.0.metrics.executed_in(&self.route.name, upstream);

            let is_unknown =
                matches!(event, Event::UpstreamFailed(Sent::Maybe) | Event::Answered { class: Class::Unknown, .. });
            let action = claim.on(event);
            let mut owed = Some(owed);
            let recorded =
                drive::record(&self.engine, self.id, &mut claim, action, owner, self.route.record_wait, || match owed
                    .take()
                {
                    Some(Owed::Held(parts, frames, trailers)) => {
                        let mut response = self.held(*parts, frames, trailers);
                        response.headers_mut().insert(STATUS, HeaderValue::from_static("unrecorded"));
                        handoff.give(response);
                    }
                    Some(Owed::Tail(tail, trailers)) => {
                        let mut trailers = trailers.unwrap_or_default();
                        trailers.insert(STATUS, HeaderValue::from_static("unrecorded"));
                        tail.finish(Some(trailers));
                    }
                    Some(Owed::Problem(problem)) => handoff.give(self.refuse(&problem)),
                    Some(Owed::Nothing) | None => {}
                })
                .await;
            if !matches!(recorded, Recorded::Answer) {
                self.fenced.store(true, Ordering::Relaxed);
            }
            if is_unknown {
                tracing::warn!(record = %self.id.short(), route = %self.route.name, "outcome unknown: the upstream may have executed the request");
            }
            match (recorded, owed) {
                (Recorded::Answer, Some(Owed::Held(parts, frames, trailers))) => self.held(*parts, frames, trailers),
                (Recorded::Answer, Some(Owed::Tail(tail, trailers))) => {
                    tail.finish(trailers);
                    Response::default()
                }
                (_, Some(Owed::Problem(problem))) => self.refuse(&problem),
                (_, Some(Owed::Tail(tail, _))) => {
                    let lost = Problem::Refused(Refusal::ClaimLost, Details::default());
                    self.break_off(tail, &lost, "the key was settled otherwise while the upstream answered");
                    Response::default()
                }
                (Recorded::Replay(record), Some(Owed::Held(..))) => {
                    let mut response =
                        replay::response(&record, &self.route, &self.request_id, clock.now(), &self.caller);
                    self.mark_derived(response.headers_mut());
                    response
                }
                (Recorded::Lost, Some(Owed::Held(..))) => {
                    self.refuse(&Problem::Refused(Refusal::ClaimLost, Details::default()))
                }
                (_, Some(Owed::Nothing) | None) => Response::default(),
            }
        }
    }

    /// Reads the answer to a request that was sent, unless the sending panicked. The event is for the claim, the rest for
    /// the client.
    async fn follow<F, R, E>(
        &self,
        call: Option<F>,
        started: Instant,
        clock: drive::StoreClock,
        handoff: &Handoff,
    ) -> (Event, Owed)
    where
        F: Future<Output = Result<Response<R>, E>> + Send,
        E: Into<BoxError> + Send,
        R: HttpBody<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let route = &self.route;
        let deadline = started + route.execution_max;
        let Some(call) = call else {
            return (Event::UpstreamFailed(Sent::Maybe), Owed::Problem(Problem::UpstreamFailed));
        };
        let mut call = std::pin::pin!(AssertUnwindSafe(call).catch_unwind());
        let mut gave_up_on_client = false;
        let head = match tokio::time::timeout_at(started + route.timeout, call.as_mut()).await {
            Ok(head) => Some(head),
            Err(_) => {
                gave_up_on_client = true;
                handoff.give(self.refuse(&Problem::UpstreamTimeout));
                tokio::time::timeout_at(deadline, call).await.ok()
            }
        };
        let owed = |problem| if gave_up_on_client { Owed::Nothing } else { Owed::Problem(problem) };
        let response = match head {
            Some(Ok(Ok(response))) => response,
            Some(Ok(Err(error))) => {
                let error = error.into();
                let sent = sent_of(&*error);
                tracing::warn!(record = %self.id.short(), route = %route.name, ?sent, error = %chain(&*error), "the upstream did not answer");
                let problem = if sent == Sent::No { Problem::UpstreamUnreachable } else { Problem::UpstreamFailed };
                return (Event::UpstreamFailed(sent), owed(problem));
            }
            Some(Err(_panic)) => return (Event::UpstreamFailed(Sent::Maybe), owed(Problem::UpstreamFailed)),
            None => return (Event::UpstreamFailed(Sent::Maybe), Owed::Nothing),
        };

        let (mut parts, body) = response.into_parts();
        let is_grpc = self.caller.is_grpc;
        let plan = capture::plan(parts.status, &mut parts.headers, route, self.unverified_principal, is_grpc);
        let head = replay::outcome_of(parts.status, &parts.headers, route);
        if let Some(judged) = plan.at_head() {
            self.mark(&mut parts.headers, judged);
        }
        self.mark_derived(&mut parts.headers);
        let bounds = Bounds {
            held_bytes: self.engine.0.limits().held_answer_bytes.min(route.recorded_body_bytes_max as u64),
            recorded_bytes: route.recorded_body_bytes_max,
            deadline,
            idle: route.idle_timeout,
            in_chunks: self.caller.wants_declared_trailers,
        };
        let stream = |mut head: Response<Body>| {
            self.caller.declare(head.headers_mut(), std::iter::once(&STATUS));
            handoff.give(head);
        };
        let captured = capture::capture(parts, body, &plan, bounds, stream).await;
        let Captured { body, has_body, mut trailers, complete, rest } = captured;
        let judged = plan.at_end(trailers.as_mut(), has_body, route);
        if let Err(error) = complete {
            tracing::warn!(record = %self.id.short(), route = %route.name, error = %chain(&*error), "the upstream's answer broke off");
            if let Rest::Tail(tail) = rest {
                self.break_off(tail, &Problem::UpstreamFailed, "the upstream broke off");
                return (Event::UpstreamFailed(Sent::Maybe), Owed::Nothing);
            }
            return (Event::UpstreamFailed(Sent::Maybe), owed(Problem::UpstreamFailed));
        }
        let outcome = replay::completed(head, body, trailers.as_ref());
        let event = Event::Answered { class: judged.class, outcome, retention: judged.retention, now: clock.now() };
        // What the head could not say yet.
        let late = plan.at_head().is_none() && judged.is_kept();
        let owed = match rest {
            Rest::Held(..) if gave_up_on_client => Owed::Nothing,
            Rest::Held(mut parts, frames) => {
                if late {
                    self.mark(&mut parts.headers, judged);
                }
                Owed::Held(Box::new(parts), frames, trailers)
            }
            Rest::Tail(tail) => {
                if late {
                    self.mark(trailers.get_or_insert_default(), judged);
                }
                Owed::Tail(tail, trailers)
            }
        };
        (event, owed)
    }

    /// Adds what a client is told of an answer that will be recorded.
    fn mark(&self, fields: &mut HeaderMap, judged: Judged) {
        if judged.is_kept() {
            let retention = judged.retention.unwrap_or(self.route.policy.retention);
            if let Some(expires) = replay::expires_in(retention) {
                fields.insert(EXPIRES, expires);
            }
        }
    }

    /// Says of any answer that its key was not the client's.
    pub(crate) fn mark_derived(&self, headers: &mut HeaderMap) {
        if self.derived {
            headers.insert(KEY_SOURCE, HeaderValue::from_static("derived"));
        }
    }

    pub(crate) fn refuse(&self, problem: &Problem) -> Response<Body> {
        let id = self.request_id.to_str().unwrap_or_default();
        let mut response = if self.caller.is_grpc {
            problem.grpc_response(Some(&self.route), id)
        } else {
            problem.response(Some(&self.route), id)
        };
        self.mark_derived(response.headers_mut());
        response
    }

    /// Ends an answer that streams as what it is: not the key's. In gRPC that can be said, else the stream breaks.
    fn break_off(&self, tail: Tail, problem: &Problem, why: &'static str) {
        if self.caller.is_grpc {
            let id = self.request_id.to_str().unwrap_or_default();
            tail.finish_without_last(problem.grpc_trailers(Some(&self.route), id));
        } else {
            tail.break_off(why);
        }
    }

    fn held(&self, mut parts: Parts, frames: Vec<Bytes>, trailers: Option<HeaderMap>) -> Response<Body> {
        if let Some(trailers) = &trailers {
            // With a length there is no room for them in HTTP/1.1.
            parts.headers.remove(header::CONTENT_LENGTH);
            self.caller.declare(&mut parts.headers, trailers.keys());
        }
        Response::from_parts(parts, Body::frames(frames, trailers))
    }
}

/// Whether an inner service's error says that nothing was sent.
fn sent_of(error: &(dyn std::error::Error + 'static)) -> Sent {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<NotSent>() {
            return Sent::No;
        }
        cause = error.source();
    }
    Sent::Maybe
}

/// An error with everything beneath it, for the log.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push_str(": ");
        said.push_str(&error.to_string());
        cause = error.source();
    }
    said
}
