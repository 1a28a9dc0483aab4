//! Shadow mode: claims and compares beside the request, which goes its way as if nobody watched.
//!
//! Nothing here is on the way of a request or an answer: both pass through, and a task gets a copy of each
//! ([`tee`](crate::tee)). It claims what the request would have claimed, counts what it would have met, and records its
//! answer where it would have run. A store that fails, a bad key, a body over the limit or copies that take too much
//! room end the watching, never the request. Permits of the upstream are drawn from a share of its own, so that what is
//! watched takes nothing from what is protected.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use onceward_core::{
    claim::{Claim, Event, Sent},
    key::{ClientKey, RecordId},
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use tower_service::Service;

use crate::{
    body::{Body, BoxError},
    capture,
    drive::{self, Grant, Obtained, StoreClock, Terms},
    engine::Engine,
    grpc,
    metrics::{Outcome, Would},
    policies,
    refuse::Problem,
    replay,
    request::{self, Asked, Reading, again::Again},
    route::{Route, is_ambiguous},
    service::{extend_retention, outcome_of, policy_for},
    tee::{Watched, tee},
};

/// Requests watched at a time; further ones are not.
pub(crate) const WATCHED_MAX: usize = 10_000;
/// Copied bytes that nobody has read yet, and answers kept for their record, together.
pub(crate) const COPIED_BYTES_MAX: usize = 64 << 20;
/// Longer than any store takes to come back is long enough: what is watched is not worth more.
const RECORD_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Answer extension: the inner service made this answer itself, since the upstream gave none. Shadow mode must not take
/// it for the upstream's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Whether something may have been sent to the upstream.
    pub sent: bool,
}

/// The answer to a watched request.
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Watched,
}

/// How a watched request ended; nothing where its client went away before.
type Ended = oneshot::Receiver<Result<Answered, Unanswered>>;

/// Forwards the request, and watches.
pub(crate) async fn serve<S, B, R>(
    engine: Engine,
    route: Arc<Route>,
    mut inner: S,
    request: Request<B>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<R>> + Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    engine.0.metrics.request(&route.name, Outcome::Unprotected);
    let Ok(place) = Arc::clone(&engine.0.watched).try_acquire_owned() else {
        engine.0.metrics.observed(&route.name, Would::Unobserved);
        return Ok(inner.call(request.map(Body::wrap)).await?.map(Body::wrap));
    };
    let (parts, body) = request.into_parts();
    let (body, copy) = tee(body, &engine.0.copied);
    let (answers, answer) = oneshot::channel();
    let watched = Request::from_parts(parts.clone(), copy);
    engine.0.tracker.spawn(watch(engine.clone(), route, watched, answer, place));
    // Where nobody watches any more, nobody hears it.
    match inner.call(Request::from_parts(parts, Body::wrap(body))).await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let (body, copy) = tee(body, &engine.0.copied);
            let answered = match parts.extensions.get().copied() {
                Some(unanswered) => Err(unanswered),
                None => Ok(Answered { status: parts.status, headers: parts.headers.clone(), body: copy }),
            };
            let _gone = answers.send(answered);
            Ok(Response::from_parts(parts, Body::wrap(body)))
        }
        Err(error) => {
            let _gone = answers.send(Err(Unanswered { sent: true }));
            Err(error)
        }
    }
}

async fn watch(
    engine: Engine,
    route: Arc<Route>,
    request: Request<Watched>,
    answer: Ended,
    _place: OwnedSemaphorePermit,
) {
    let lost = request.body().lost();
    let reading = if is_ambiguous(request.uri().path()) {
        Err(Problem::InvalidPath)
    } else {
        request::read(&engine, &route, request).await
    };
    let would = match reading {
        Ok(Reading::Protected(asked)) => return claim(&engine, &route, asked, answer).await,
        Ok(Reading::Unprotected(_)) => Would::As(Outcome::Unprotected),
        Err(_) if lost.is_lost() => Would::Unobserved,
        Ok(Reading::Denied(_)) | Err(_) => Would::As(Outcome::Rejected),
    };
    engine.0.metrics.observed(&route.name, would);
    tracing::info!(route = %route.name, decision = "observed", would = would.as_str(), "request");
}

async fn claim(engine: &Engine, route: &Arc<Route>, asked: Box<Asked>, answer: Ended) {
    // A dry run looks under the present id only.
    let Asked { id, ask, belongs, fields, key, mut request, body, derived, unverified_principal, earlier: _ } = *asked;
    let started = Instant::now();
    let is_grpc = grpc::is_call(request.headers());
    let policy = policy_for(route, derived);
    let terms = Terms {
        lease: policy.lease,
        wait: route.wait,
        waiters_per_key: route.waiters_per_key,
        in_flight: &route.in_flight,
        // What is only watched asks nobody.
        books: None,
        only_there: false,
        quarantine: route.quarantine,
        takes_turns: true,
    };
    let (mut claim, first) = Claim::new(policy, ask, belongs, fields);
    if !engine.0.policies.is_kept(policies::number(&route.fingerprint)) {
        engine.keep_rules(&route.fingerprint).await;
    }
    // Its body is kept only as long as there is room: without it, a record under other rules is told by its key.
    let bytes = u32::try_from(body.as_ref().map_or(0, Bytes::len)).unwrap_or(u32::MAX);
    let room = Arc::clone(&engine.0.copied).try_acquire_many_owned(bytes).ok();
    if room.is_none() {
        *request.body_mut() = Body::empty();
    }
    let memory = body.filter(|_| room.is_some());
    let fingerprinter = &engine.0.fingerprinter;
    let mut again =
        room.is_some().then_some(Again { engine, request: &mut request, memory: memory.as_ref(), fingerprinter });
    let obtained = drive::obtain(engine, id, &mut claim, first, terms, again.as_mut(), &AtomicBool::new(false)).await;
    drop((request, memory, room));
    if claim.unverified() {
        engine.0.metrics.fingerprint_unverified.increment(1);
    }
    let outcome = match obtained {
        Obtained::Granted(grant) => {
            told(engine, route, id, &key, Outcome::Executed);
            let reading = ReadAs { unverified_principal, is_grpc };
            return follow(engine, route, id, claim, grant, reading, started, answer).await;
        }
        Obtained::Replay { record, waited, now } => {
            extend_retention(engine, route, id, &record, now);
            if waited { Outcome::Waited } else { Outcome::Replayed }
        }
        Obtained::Refused { refusal, .. } => outcome_of(refusal),
        Obtained::Absent | Obtained::Overloaded | Obtained::OverQuota(_) => Outcome::Rejected,
        Obtained::Unprotected => Outcome::Bypassed,
    };
    told(engine, route, id, &key, outcome);
}

fn told(engine: &Engine, route: &Route, id: RecordId, key: &ClientKey, outcome: Outcome) {
    engine.0.metrics.observed(&route.name, Would::As(outcome));
    tracing::info!(
        route = %route.name, record = %id.short(), key = %key.tail(), decision = "observed", would = outcome.as_str(),
        "request"
    );
}

/// What of the request decides what its answer means.
#[derive(Clone, Copy)]
struct ReadAs {
    unverified_principal: bool,
    is_grpc: bool,
}

/// Records what a request would have recorded that would have run.
#[expect(clippy::too_many_arguments, reason = "the parts of one execution, handed on once")]
async fn follow(
    engine: &Engine,
    route: &Arc<Route>,
    id: RecordId,
    mut claim: Claim,
    grant: Grant,
    reading: ReadAs,
    started: Instant,
    answer: Ended,
) {
    let Grant { owner, clock, permit: _permit, .. } = grant;
    let event = tokio::select! {
        biased;
        event = read_answer(engine, route, reading, started, clock, answer) => event,
        () = drive::renew(engine, id, &claim, route.policy.lease, &owner) => unreachable!("renewal does not end by itself"),
    };
    let action = claim.on(event);
    let _recorded = drive::record(engine, id, &mut claim, action, owner, RECORD_WAIT, || {}).await;
}

/// What the answer would mean for the key. One that its client did not take to its end is no answer, and leaves no
/// record: the request was never Onceward's to finish.
async fn read_answer(
    engine: &Engine,
    route: &Route,
    ReadAs { unverified_principal, is_grpc }: ReadAs,
    started: Instant,
    clock: StoreClock,
    answer: Ended,
) -> Event {
    let Answered { status, mut headers, mut body } = match answer.await {
        Ok(Ok(answered)) => answered,
        Ok(Err(Unanswered { sent: true })) => return Event::UpstreamFailed(Sent::Maybe),
        Ok(Err(Unanswered { sent: false })) | Err(_) => return Event::UpstreamFailed(Sent::No),
    };
    let plan = capture::plan(status, &mut headers, route, unverified_principal, is_grpc);
    let head = replay::outcome_of(status, &headers, route);
    let deadline = started + route.execution_max;
    let lost = body.lost();
    let mut kept = plan.keeps().then(bytes::BytesMut::new);
    let mut has_body = false;
    let mut trailers = None;
    let mut room: Option<OwnedSemaphorePermit> = None;
    loop {
        let frame = if kept.is_some() {
            match tokio::time::timeout_at(deadline, body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Event::UpstreamFailed(Sent::Maybe),
            }
        } else {
            body.frame().await
        };
        let frame = match frame {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(_)) if lost.is_lost() => return Event::UpstreamFailed(Sent::No),
            Some(Err(_)) => return Event::UpstreamFailed(Sent::Maybe),
        };
        match frame.into_data() {
            Ok(data) => {
                has_body |= !data.is_empty();
                if kept.as_ref().is_some_and(|kept| kept.len() + data.len() > route.recorded_body_bytes_max) {
                    kept = None;
                }
                if let Some(kept) = &mut kept {
                    let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
                    let Ok(more) = Arc::clone(&engine.0.copied).try_acquire_many_owned(bytes) else {
                        return Event::UpstreamFailed(Sent::No);
                    };
                    match &mut room {
                        Some(room) => room.merge(more),
                        None => room = Some(more),
                    }
                    kept.extend_from_slice(&data);
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let judged = plan.at_end(trailers.as_mut(), has_body, route);
    let outcome = replay::completed(head, kept.map(bytes::BytesMut::freeze), trailers.as_ref());
    Event::Answered { class: judged.class, outcome, retention: judged.retention, now: clock.now() }
}
