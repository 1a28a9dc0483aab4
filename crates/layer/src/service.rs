//! The tower service: which requests are covered, and the way of one that is.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Body as HttpBody;
use onceward_core::{
    claim::{Belongs, Claim},
    decide::{Ask, Refusal},
    key::{self, ClientKey},
    policy::{Outage, Policy},
    record::Micros,
};
use onceward_store::Read;
use tokio::time::Instant;
use tower_service::Service as TowerService;

use crate::{
    auth,
    body::{Body, BoxError},
    caller::Caller,
    detach::{Detach, Handoff},
    drive::{self, Grant, Obtained, Terms},
    engine::Engine,
    exchange::Exchange,
    grpc,
    metrics::Outcome,
    observe, policies,
    probe::Books,
    refuse::{Details, Problem},
    remember::REMEMBERED,
    replay::{self, STATUS},
    request::{self, Asked, Reading, again::Again, earlier},
    route::{self, Missing, Route, Source, is_ambiguous},
    told::Told,
};

/// W3C Trace Context, 3.2.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const ATTEMPT: HeaderName = HeaderName::from_static("idempotency-attempt");
const RECORD: HeaderName = HeaderName::from_static("idempotency-record");
const FENCE: HeaderName = HeaderName::from_static("idempotency-fence");

/// Request extension for the inner service: the route, and whether this is an execution under a
/// claim, whose errors decide what becomes of the key.
#[derive(Clone, Debug)]
pub struct Covered {
    /// The route of the request.
    pub route: Arc<Route>,
    /// Whether a claim stands behind it.
    pub protected: bool,
}

/// An inner service whose covered requests take effect once.
#[derive(Clone, Debug)]
pub struct Service<S> {
    inner: S,
    engine: Engine,
}

impl<S> Service<S> {
    /// `inner` behind `engine`.
    pub fn new(inner: S, engine: Engine) -> Self {
        Self { inner, engine }
    }
}

impl<S, B, R> TowerService<Request<B>> for Service<S>
where
    S: TowerService<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    B: HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: HttpBody<Data = bytes::Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The clone that was polled ready is the one called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let host = route::host_of(request.uri(), request.headers());
        let routes = self.engine.0.routes.load();
        let route = Arc::clone(routes.of(request.method(), request.uri().path(), host));
        let covered = route.covers(request.method());
        let watched = route.watches(request.method());
        // Only this layer says these, of whatever request.
        for name in [&ATTEMPT, &RECORD, &FENCE] {
            request.headers_mut().remove(name);
        }
        request.extensions_mut().insert(Covered { route: Arc::clone(&route), protected: false });
        // Behind a path that servers read in two ways may be a route that protects.
        let ambiguous = !covered && routes.protect(request.method()) && is_ambiguous(request.uri().path());
        if watched && !ambiguous {
            return Box::pin(observe::serve(self.engine.clone(), route, inner, request));
        }
        if !covered && !ambiguous {
            let call = inner.call(request.map(Body::wrap));
            return Box::pin(async move { Ok(call.await?.map(Body::wrap)) });
        }
        let engine = self.engine.clone();
        Box::pin(serve(engine, route, inner, request))
    }
}

async fn serve<S, B, R>(
    engine: Engine,
    route: Arc<Route>,
    mut inner: S,
    mut request: Request<B>,
) -> Result<Response<Body>, S::Error>
where
    S: TowerService<Request<Body>, Response = Response<R>> + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    B: HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: HttpBody<Data = bytes::Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let request_id = request::request_id(request.headers());
    request.headers_mut().insert(replay::REQUEST_ID, request_id.clone());
    let started = Instant::now();
    let is_grpc = grpc::is_call(request.headers());
    let heard = engine.0.teller.is_heard();
    let trace_parent = if heard { request.headers().get(TRACE_PARENT).cloned() } else { None };
    let told = |engine: &Engine, decision: &str, status: u16| {
        if heard {
            let trace_parent = trace_parent.as_ref();
            let told = Told { status: Some(status), trace_parent, ..plain(&route, decision, started.elapsed()) };
            engine.0.teller.tell(&told);
        }
    };
    let reading = if is_ambiguous(request.uri().path()) {
        Err(Problem::InvalidPath)
    } else {
        request::read(&engine, &route, request).await
    };
    let asked = match reading {
        Ok(Reading::Protected(asked)) => asked,
        Ok(Reading::Unprotected(request)) => {
            engine.0.metrics.request(&route.name, Outcome::Unprotected);
            tracing::info!(route = %route.name, decision = "unprotected", "request");
            let answer = |body| Body::answer(body, Arc::clone(&route));
            let mut response = inner.call(request).await?.map(answer);
            replay::strip_own(response.headers_mut(), &route);
            told(&engine, "unprotected", response.status().as_u16());
            return Ok(response);
        }
        Ok(Reading::Denied(answer)) => {
            engine.0.metrics.request(&route.name, Outcome::Rejected);
            tracing::info!(route = %route.name, decision = "denied", status = answer.status.as_u16(), "request");
            let response = auth::refusal(&answer, &route, &request_id);
            told(&engine, "denied", response.status().as_u16());
            return Ok(if is_grpc { grpc::in_place_of(&response) } else { response });
        }
        Err(problem) => {
            engine.0.metrics.request(&route.name, Outcome::Rejected);
            tracing::info!(route = %route.name, decision = problem.slug(), "request");
            let id = request_id.to_str().unwrap_or_default();
            let response =
                if is_grpc { problem.grpc_response(Some(&route), id) } else { problem.response(Some(&route), id) };
            told(&engine, problem.slug(), response.status().as_u16());
            return Ok(response);
        }
    };
    let handoff = Handoff::default();
    let tracker = engine.0.tracker.clone();
    let work = protected(engine, route, inner, asked, request_id, started, handoff.clone());
    Ok(Detach::new(work, handoff, tracker).await)
}

async fn protected<S, R>(
    engine: Engine,
    route: Arc<Route>,
    mut inner: S,
    asked: Box<Asked>,
    request_id: HeaderValue,
    started: Instant,
    handoff: Handoff,
) -> Response<Body>
where
    S: TowerService<Request<Body>, Response = Response<R>> + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    R: HttpBody<Data = bytes::Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let Asked { id, ask, belongs, fields, key, mut request, body, derived, unverified_principal, earlier } = *asked;
    let policy = policy_for(&route, derived);
    let terms = Terms {
        lease: policy.lease,
        wait: route.wait,
        waiters_per_key: route.waiters_per_key,
        in_flight: &route.in_flight,
        books: Some(Books { route: &route, key: (!derived).then_some(&key) }),
        only_there: false,
        quarantine: route.quarantine,
        // Where nobody is refused in an outage, nobody comes back after it.
        takes_turns: policy.on_store_outage == Outage::Deny,
    };
    if !engine.0.policies.is_kept(policies::number(&route.fingerprint)) {
        Box::pin(engine.keep_rules(&route.fingerprint)).await;
    }
    let mut again =
        Again { engine: &engine, request: &mut request, memory: body.as_ref(), fingerprinter: &engine.0.fingerprinter };
    let found = if earlier.is_empty() {
        None
    } else {
        Box::pin(obtain_earlier(&route, &policy, &earlier, &ask, &belongs, terms, &mut again, &handoff)).await
    };
    // A store that does not answer says nothing of earlier names, and this process may remember the present one.
    let found = found.filter(|(.., obtained)| !obtained.is_outage() || engine.0.remembered.recall(&id).is_none());
    let (id, claim, obtained) = match found {
        Some(found) => found,
        None => {
            let (claim, first) = Claim::new(policy, ask, belongs, fields);
            // On the heap, since it is handed on from future to future.
            let mut claim = Box::new(claim);
            let must_finish = handoff.must_finish();
            let obtained = drive::obtain(&engine, id, &mut claim, first, terms, Some(&mut again), must_finish).await;
            (id, claim, obtained)
        }
    };
    if claim.unverified() {
        engine.0.metrics.fingerprint_unverified.increment(1);
    }
    let degraded = engine.store().is_in_fallback(&id);
    let caller = Caller::of(&request);
    let trace_parent = if engine.0.teller.is_heard() { request.headers().get(TRACE_PARENT).cloned() } else { None };
    let (upstream, fenced) = (AtomicU64::new(0), AtomicBool::new(false));
    let exchange = Exchange { engine, route, id, request_id, caller, derived, unverified_principal, upstream, fenced };
    let (engine, route) = (&exchange.engine, &exchange.route);
    let (outcome, response) = match obtained {
        Obtained::Granted(grant) => {
            let claimed_in = started.elapsed();
            announce(&mut request, route, &grant, &id, &key);
            let (fence, attempt) = (grant.fence.0, grant.attempt);
            // On the heap, so that a replay does not carry the room of an execution.
            let mut response = Box::pin(exchange.run(claim, grant, inner, request, &handoff)).await;
            let outcome = if degraded { mark_degraded(&mut response) } else { Outcome::Executed };
            let upstream = Duration::from_micros(exchange.upstream.load(Ordering::Relaxed));
            let overhead = started.elapsed().saturating_sub(upstream);
            let status = handoff.status().unwrap_or_else(|| response.status().as_u16());
            engine.0.metrics.request(&route.name, outcome);
            engine.0.metrics.overhead(&route.name, overhead);
            tracing::info!(
                route = %route.name, record = %id.short(), key = %key.tail(), decision = outcome.as_str(),
                attempt, fence, status,
                claim_us = micros(claimed_in), upstream_us = micros(upstream), overhead_us = micros(overhead),
                "request"
            );
            engine.0.teller.tell(&Told {
                record: Some(id),
                attempt: Some(attempt),
                status: Some(status),
                upstream: Some(upstream),
                fenced: exchange.fenced.load(Ordering::Relaxed),
                trace_parent: trace_parent.as_ref(),
                ..plain(route, outcome.as_str(), started.elapsed())
            });
            // From here on there is nothing left that must be finished.
            handoff.must_finish().store(false, Ordering::Relaxed);
            return response;
        }
        Obtained::Replay { record, waited, now } => {
            let mut outcome = if waited { Outcome::Waited } else { Outcome::Replayed };
            if !waited {
                engine.0.metrics.overhead(&route.name, started.elapsed());
            }
            if record.stored.revision == REMEMBERED {
                engine.0.metrics.remembered.increment(1);
            }
            extend_retention(engine, route, id, &record, now);
            let mut response = replay::response(&record, route, &exchange.request_id, now, &exchange.caller);
            exchange.mark_derived(response.headers_mut());
            if degraded && record.stored.revision != REMEMBERED {
                outcome = mark_degraded(&mut response);
            }
            (outcome, response)
        }
        Obtained::Refused { refusal, record } => {
            let quarantined = drive::quarantined(&**engine.store(), route.quarantine);
            let details = Details {
                fields: if let (Refusal::KeyReused, Some(body), Some(record)) = (refusal, body.as_deref(), &record)
                    && let Some(rules) = engine.rules_or(record.facts.fingerprint_policy, &route.fingerprint).await
                {
                    request::differing(engine, &rules, &id, &request, body, &record.facts.fields)
                } else {
                    Vec::new()
                },
                recorded_grpc_status: match (refusal, &record) {
                    (Refusal::ResponseNotKept { .. }, Some(record)) if exchange.caller.is_grpc => {
                        record.facts.outcome.as_ref().and_then(grpc::recorded_status)
                    }
                    _ => None,
                },
                retry_after: match refusal {
                    Refusal::InFlight => Some(usual_time_left(engine, route)),
                    Refusal::StoreUnavailable => {
                        Some(quarantined.unwrap_or_else(|| engine.0.outage.refused(Instant::now(), draw())))
                    }
                    _ => None,
                },
                in_quarantine: quarantined.is_some(),
            };
            (outcome_of(refusal), exchange.refuse(&Problem::Refused(refusal, details)))
        }
        Obtained::Absent | Obtained::Overloaded => (Outcome::Rejected, exchange.refuse(&Problem::Overloaded)),
        Obtained::OverQuota(over) => {
            engine.0.metrics.over_quota(over.limit);
            (Outcome::Rejected, exchange.refuse(&Problem::OverQuota(over.limit, over.after)))
        }
        Obtained::Unprotected => {
            let response = match inner.call(request).await {
                Ok(response) => {
                    let mut response = response.map(|body| Body::answer(body, Arc::clone(route)));
                    replay::strip_own(response.headers_mut(), route);
                    response.headers_mut().insert(STATUS, HeaderValue::from_static("bypassed"));
                    response
                }
                Err(_) => exchange.refuse(&Problem::UpstreamFailed),
            };
            (Outcome::Bypassed, response)
        }
    };
    handoff.must_finish().store(false, Ordering::Relaxed);
    engine.0.metrics.request(&route.name, outcome);
    tracing::info!(
        route = %route.name, record = %id.short(), key = %key.tail(), decision = outcome.as_str(),
        status = response.status().as_u16(), total_us = micros(started.elapsed()),
        "request"
    );
    engine.0.teller.tell(&Told {
        record: Some(id),
        status: Some(response.status().as_u16()),
        trace_parent: trace_parent.as_ref(),
        ..plain(route, outcome.as_str(), started.elapsed())
    });
    response
}

/// Says that the answer's record is in the store's fallback, which does not know what the store had before.
fn mark_degraded(response: &mut Response<Body>) -> Outcome {
    response.headers_mut().entry(STATUS).or_insert(HeaderValue::from_static("degraded"));
    Outcome::Degraded
}

/// What there is to tell of any request.
fn plain<'a>(route: &'a Route, decision: &'a str, took: Duration) -> Told<'a> {
    Told {
        route: &route.name,
        decision,
        record: None,
        attempt: None,
        status: None,
        took,
        upstream: None,
        fenced: false,
        trace_parent: None,
    }
}

/// Goes on with a record that stands under an earlier name of the key; `None` where there is none.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, of which each is used once")]
async fn obtain_earlier(
    route: &Route,
    policy: &Arc<Policy>,
    names: &[earlier::Name],
    ask: &Ask,
    belongs: &Belongs,
    terms: Terms<'_>,
    again: &mut Again<'_>,
    handoff: &Handoff,
) -> Option<(key::RecordId, Box<Claim>, Obtained)> {
    let engine = again.engine;
    let all = engine.0.earlier.load_full();
    for name in names {
        let settled_here = engine.0.flights.unrecorded(&name.id).is_some_and(|kept| kept.may_be_told());
        if !settled_here && matches!(engine.store().get(name.id).await, Ok(Read { record: None, .. })) {
            continue;
        }
        let fingerprinter = name.fingerprinter(&all).unwrap_or(&engine.0.fingerprinter);
        let mut again = Again { engine, request: &mut *again.request, memory: again.memory, fingerprinter };
        let ask = name.ask(ask, &mut again, &route.fingerprint).await;
        // What the record says of where it belongs stays.
        let (claim, first) = Claim::new(Arc::clone(policy), ask, belongs.clone(), Vec::new());
        let mut claim = Box::new(claim);
        // The books of the present route may know nothing of what an earlier one did, and that would be taken for "not
        // executed": they are not asked.
        let terms = Terms { only_there: true, books: None, ..terms };
        match drive::obtain(engine, name.id, &mut claim, first, terms, Some(&mut again), handoff.must_finish()).await {
            Obtained::Absent => {}
            obtained => return Some((name.id, claim, obtained)),
        }
    }
    None
}

/// A derived key is remembered for its own, shorter time.
pub(crate) fn policy_for(route: &Route, derived: bool) -> Arc<Policy> {
    match route.key.missing {
        Missing::Derive(retention) if derived => Arc::new(Policy { retention, ..Policy::clone(&route.policy) }),
        _ => Arc::clone(&route.policy),
    }
}

/// Tells the upstream which execution this is.
fn announce(request: &mut Request<Body>, route: &Arc<Route>, grant: &Grant, id: &key::RecordId, key: &ClientKey) {
    request.extensions_mut().insert(Covered { route: Arc::clone(route), protected: true });
    let headers = request.headers_mut();
    let number = |n: u64| HeaderValue::from(n);
    headers.insert(ATTEMPT, number(u64::from(grant.attempt)));
    headers.insert(FENCE, number(grant.fence.0));
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(RECORD, id);
    }
    if let Some(step) = &route.forward_derived
        && let Ok(child) = HeaderValue::from_str(&key::child_key(key.as_str(), step))
    {
        let mut replaced = false;
        for source in &route.key.from {
            if let Source::Header(name) = source
                && headers.contains_key(name)
            {
                headers.insert(name.clone(), child.clone());
                replaced = true;
            }
        }
        if !replaced {
            // The client's key stands elsewhere, or was derived.
            headers.insert(KEY, child);
        }
    }
}

/// The route's usual time, give or take a fifth, so that those who come back do not meet.
fn usual_time_left(engine: &Engine, route: &Route) -> Duration {
    let usual = engine.0.metrics.usual(&route.name).max(Duration::from_secs(1));
    usual.mul_f64(0.8 + 0.4 * draw())
}

/// Between nothing and one.
fn draw() -> f64 {
    let [draw, ..] = *uuid::Uuid::new_v4().as_bytes();
    f64::from(draw) / 255.0
}

/// Where the retention slides, each replay that the store knows of extends it, in the background.
pub(crate) fn extend_retention(
    engine: &Engine,
    route: &Route,
    id: key::RecordId,
    record: &onceward_core::record::Record,
    now: Micros,
) {
    use onceward_core::cas::{Expect, FenceRule, Keep, Lease, Replacement};
    let Some(most) = route.policy.sliding_max else { return };
    if record.stored.revision == REMEMBERED {
        return;
    }
    let age = now.since(record.facts.settled_at);
    let left = most.saturating_sub(age).min(route.policy.retention);
    let write = Replacement {
        expect: Expect::Seen(record.stored.fence, record.stored.revision),
        facts: record.facts.clone(),
        fence: FenceRule::Keep,
        lease: Lease::Over,
        keep: Keep::For(left),
    };
    let store = Arc::clone(engine.store());
    engine.0.tracker.spawn(async move {
        // Losing to another replay's extension is as good as winning.
        if let Err(error) = store.replace(id, &write).await {
            tracing::warn!(%error, "a retention could not be extended");
        }
    });
}

pub(crate) fn outcome_of(refusal: Refusal) -> Outcome {
    match refusal {
        Refusal::KeyReused => Outcome::Mismatch,
        Refusal::InFlight | Refusal::RetryLater(_) => Outcome::InFlight,
        Refusal::OutcomeUnknown => Outcome::Unknown,
        Refusal::Failed | Refusal::ResponseNotKept { .. } | Refusal::KeyGone => Outcome::Replayed,
        _ => Outcome::Rejected,
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_replay_carries_no_room_for_what_it_does_not_do() {
        // Futures are moved into place once for each request: what only large bodies or executions
        // need belongs behind a box of its own.
        const BYTES_MAX: usize = 5 * 1024;
        let store = Arc::new(onceward_store::memory::Memory::default());
        let routes = crate::Routes::new(vec![], Route::new("default"));
        let secret = crate::Secret::from_bytes([0; 32]);
        let engine = Engine::new(store, secret, routes, crate::Limits::default(), Engine::new_session());
        let inner = tower::service_fn(|_: Request<Body>| async { Ok::<_, BoxError>(Response::new(Body::empty())) });
        let route = Arc::clone(engine.routes().named("default").expect("every engine has one"));
        let bytes = size_of_val(&serve(engine, route, inner, Request::new(Body::empty())));
        assert!(bytes <= BYTES_MAX, "{bytes} bytes");
    }
}
