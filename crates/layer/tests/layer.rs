//! The layer in front of a service of this process, over the memory store: what a client of a
//! protected service sees.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use onceward::{
    Body, BoxError, Engine, Layer, Limits, NotSent, Policy, Route, Routes, Secret, Step,
    store::{Store, memory::Memory},
};
use tokio::sync::{Notify, Semaphore};
use tower::{Layer as _, Service as _, ServiceExt, service_fn};

type AnswerFn = dyn Fn(usize, Request<Body>) -> Result<Response<Body>, BoxError> + Send + Sync;

/// A service that counts its calls and answers as it is told.
#[derive(Clone)]
struct Upstream {
    calls: Arc<AtomicUsize>,
    /// Each call takes one; the test gives them.
    gate: Arc<Semaphore>,
    arrived: Arc<Notify>,
    answer: Arc<AnswerFn>,
}

impl Upstream {
    fn new(answer: impl Fn(usize, Request<Body>) -> Result<Response<Body>, BoxError> + Send + Sync + 'static) -> Self {
        Self {
            calls: Arc::default(),
            gate: Arc::new(Semaphore::new(1_000_000)),
            arrived: Arc::default(),
            answer: Arc::new(answer),
        }
    }

    fn gated(self) -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..self }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn call(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.arrived.notify_one();
        self.gate.acquire().await?.forget();
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        (self.answer)(call, Request::from_parts(parts, Body::full(body)))
    }
}

fn charged(call: usize, _request: Request<Body>) -> Result<Response<Body>, BoxError> {
    let mut response = Response::new(Body::full(format!("{{\"charge\":{call}}}").into()));
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert("location", format!("/v1/payments/{call}").parse()?);
    response.headers_mut().append("x-part", "one".parse()?);
    response.headers_mut().append("x-part", "two".parse()?);
    response.headers_mut().insert("set-cookie", "secret=1".parse()?);
    Ok(response)
}

#[derive(Clone)]
struct Rig {
    engine: Engine,
    upstream: Upstream,
    memory: Memory,
}

impl Rig {
    fn new(upstream: Upstream) -> Self {
        Self::with(upstream, |_route| {})
    }

    fn with(upstream: Upstream, set: impl FnOnce(&mut Route)) -> Self {
        let mut route = Route::new("default");
        set(&mut route);
        let memory = Memory::default();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let routes = Routes::new(vec![], route);
        let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
        Self { engine, upstream, memory }
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        let upstream = self.upstream.clone();
        let inner = service_fn(move |request: Request<Body>| upstream.clone().call(request));
        let mut service = Layer::new(self.engine.clone()).layer(inner);
        ServiceExt::<Request<Body>>::ready(&mut service).await.unwrap().call(request).await.unwrap()
    }

    async fn post(&self, key: &str, body: &'static str) -> Answer {
        Answer::of(self.send(post(key, body)).await).await
    }

    fn spawn_post(&self, key: &'static str, body: &'static str) -> tokio::task::JoinHandle<Answer> {
        let this = self.clone();
        tokio::spawn(async move { this.post(key, body).await })
    }
}

fn post(key: &str, body: &'static str) -> Request<Body> {
    let mut request = Request::post("/v1/payments").header("content-type", "application/json");
    if !key.is_empty() {
        request = request.header("idempotency-key", key);
    }
    request.body(Body::full(Bytes::from_static(body.as_bytes()))).unwrap()
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.expect("the body came to its end");
        let trailers = collected.trailers().cloned();
        Self { status: parts.status.as_u16(), headers: parts.headers, body: collected.to_bytes(), trailers }
    }

    fn problem(&self) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn slug(&self) -> String {
        let problem = self.problem();
        problem["type"].as_str().unwrap().strip_prefix("urn:onceward:problem:").unwrap().to_owned()
    }

    fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_and_the_service_is_called_once() {
    let rig = Rig::new(Upstream::new(charged));
    let first = rig.post("k", r#"{"amount":1}"#).await;
    let again = rig.post("\"k\"", r#"{ "amount": 1.0 }"#).await;
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.body, again.body);
    assert_eq!(again.headers["location"], "/v1/payments/1");
    assert_eq!(again.headers.get_all("x-part").iter().collect::<Vec<_>>(), ["one", "two"]);
    assert!(!first.is_replay() && again.is_replay());
    assert!(first.headers.contains_key("idempotency-expires") && again.headers.contains_key("idempotency-expires"));
    assert!(first.headers.contains_key("set-cookie") && !again.headers.contains_key("set-cookie"));
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test]
async fn another_request_under_the_same_key_is_refused_and_the_difference_named() {
    let rig = Rig::new(Upstream::new(charged));
    rig.post("k", r#"{"amount":4711,"to":"a"}"#).await;
    let other = rig.post("k", r#"{"amount":8150,"to":"a"}"#).await;
    assert_eq!((other.status, other.slug().as_str()), (422, "key-reused"));
    assert_eq!(other.problem()["fields"], serde_json::json!(["/amount"]));
    let said = String::from_utf8_lossy(&other.body);
    assert!(!said.contains("4711") && !said.contains("8150"), "a value is shown: {said}");
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test]
async fn a_mismatch_is_found_while_the_first_is_still_in_flight() {
    let rig = Rig::new(Upstream::new(charged).gated());
    let first = rig.spawn_post("k", r#"{"amount":1}"#);
    rig.upstream.arrived.notified().await;
    assert_eq!(rig.post("k", r#"{"amount":2}"#).await.slug(), "key-reused");
    rig.upstream.gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
}

#[tokio::test]
async fn two_hundred_at_once_are_one_call_and_two_hundred_equal_answers() {
    let rig = Rig::new(Upstream::new(charged).gated());
    let all: Vec<_> = (0..200).map(|_| rig.spawn_post("k", "{}")).collect();
    rig.upstream.arrived.notified().await;
    while rig.engine.waiting() < 199 {
        tokio::task::yield_now().await;
    }
    rig.upstream.gate.add_permits(1);
    for answer in all {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, answer.body.as_ref()), (201, br#"{"charge":1}"#.as_slice()));
    }
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test]
async fn too_many_waiters_are_told_to_come_back() {
    let rig = Rig::with(Upstream::new(charged).gated(), |route| route.waiters_per_key = 3);
    let first = rig.spawn_post("k", "{}");
    rig.upstream.arrived.notified().await;
    let waiting: Vec<_> = (0..3).map(|_| rig.spawn_post("k", "{}")).collect();
    while rig.engine.waiting() < 3 {
        tokio::task::yield_now().await;
    }
    let refused = rig.post("k", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (409, "in-flight"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.problem()["retryable"], true);
    rig.upstream.gate.add_permits(1);
    first.await.unwrap();
    for waiter in waiting {
        assert_eq!(waiter.await.unwrap().status, 201);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_told_to_come_back_when_its_wait_is_over() {
    let rig = Rig::new(Upstream::new(charged).gated());
    let first = rig.spawn_post("k", "{}");
    rig.upstream.arrived.notified().await;
    assert_eq!(rig.post("k", "{}").await.slug(), "in-flight");
    rig.upstream.gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
}

#[tokio::test]
async fn on_a_release_exactly_one_waiter_runs() {
    let upstream = Upstream::new(|call, request| {
        let mut response = charged(call, request)?;
        if call == 1 {
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        }
        Ok(response)
    })
    .gated();
    let rig = Rig::new(upstream);
    let first = rig.spawn_post("k", "{}");
    rig.upstream.arrived.notified().await;
    let waiting: Vec<_> = (0..20).map(|_| rig.spawn_post("k", "{}")).collect();
    while rig.engine.waiting() < 20 {
        tokio::task::yield_now().await;
    }
    rig.upstream.gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 429);
    rig.upstream.arrived.notified().await;
    rig.upstream.gate.add_permits(1);
    for waiter in waiting {
        let answer = waiter.await.unwrap();
        assert_eq!((answer.status, answer.body.as_ref()), (201, br#"{"charge":2}"#.as_slice()));
    }
    assert_eq!(rig.upstream.calls(), 2);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_the_execution() {
    let rig = Rig::new(Upstream::new(charged).gated());
    let first = rig.spawn_post("k", "{}");
    rig.upstream.arrived.notified().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    rig.upstream.gate.add_permits(1);
    let again = rig.post("k", "{}").await;
    assert_eq!((again.status, again.body.as_ref()), (201, br#"{"charge":1}"#.as_slice()));
    assert_eq!(rig.upstream.calls(), 1);
    assert_eq!(rig.engine.drain(Duration::from_secs(5)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_execution_goes_on_after_the_client_was_told_and_is_recorded() {
    let rig = Rig::new(Upstream::new(charged).gated());
    let first = rig.post("k", "{}").await;
    assert_eq!((first.status, first.slug().as_str()), (504, "upstream-timeout"));
    assert_eq!(rig.engine.in_flight(), 1);
    rig.upstream.gate.add_permits(1);
    assert_eq!(rig.engine.drain(Duration::from_secs(5)).await, 0);
    let again = rig.post("k", "{}").await;
    assert!(again.is_replay());
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_execution_beyond_its_limit_is_an_unknown_outcome() {
    let rig = Rig::new(Upstream::new(charged).gated());
    assert_eq!(rig.post("k", "{}").await.slug(), "upstream-timeout");
    assert_eq!(rig.engine.drain(Duration::from_secs(700)).await, 0);
    let again = rig.post("k", "{}").await;
    assert_eq!((again.status, again.slug().as_str()), (409, "outcome-unknown"));
    assert_eq!(again.problem()["retryable"], false);
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test]
async fn an_upstream_that_breaks_off_leaves_the_outcome_unknown_and_one_that_was_not_reached_frees_the_key() {
    let rig = Rig::new(Upstream::new(|call, request| match call {
        1 => Err(NotSent("connection refused".into()).into()),
        2 => Err("connection reset".into()),
        _ => charged(call, request),
    }));
    let unreachable = rig.post("k", "{}").await;
    assert_eq!((unreachable.status, unreachable.slug().as_str()), (502, "upstream-unreachable"));
    let failed = rig.post("k", "{}").await;
    assert_eq!((failed.status, failed.slug().as_str()), (502, "upstream-failed"));
    assert_eq!(rig.post("k", "{}").await.slug(), "outcome-unknown");
    assert_eq!(rig.upstream.calls(), 2);
}

#[tokio::test]
async fn a_panicking_handler_leaves_the_outcome_unknown() {
    let rig = Rig::new(Upstream::new(|_, _| panic!("a handler's defect")));
    assert_eq!(rig.post("k", "{}").await.slug(), "upstream-failed");
    assert_eq!(rig.post("k", "{}").await.slug(), "outcome-unknown");
}

#[tokio::test]
async fn with_retry_an_unknown_outcome_runs_again_with_the_next_attempt_and_a_larger_fence() {
    let seen: Arc<std::sync::Mutex<Vec<(String, u64)>>> = Arc::default();
    let log = Arc::clone(&seen);
    let upstream = Upstream::new(move |call, request| {
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        log.lock().unwrap().push((header("idempotency-attempt"), header("idempotency-fence").parse()?));
        if call < 3 { Err("connection reset".into()) } else { charged(call, request) }
    });
    let rig = Rig::with(upstream, |route| {
        route.policy = Arc::new(Policy { on_unknown: vec![Step::Retry], retry_max: 3, ..Policy::default() });
    });
    assert_eq!(rig.post("k", "{}").await.slug(), "upstream-failed");
    assert_eq!(rig.post("k", "{}").await.slug(), "upstream-failed");
    assert_eq!(rig.post("k", "{}").await.status, 201);
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.iter().map(|(attempt, _)| attempt.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1), "{seen:?}");
}

#[tokio::test]
async fn a_release_after_an_unknown_attempt_leaves_the_outcome_unknown() {
    let upstream = Upstream::new(|call, request| {
        if call == 1 {
            return Err("connection reset".into());
        }
        let mut response = charged(call, request)?;
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        Ok(response)
    });
    let rig = Rig::with(upstream, |route| {
        route.policy = Arc::new(Policy { on_unknown: vec![Step::Retry], retry_max: 1, ..Policy::default() });
    });
    assert_eq!(rig.post("k", "{}").await.slug(), "upstream-failed");
    assert_eq!(rig.post("k", "{}").await.status, 429);
    assert_eq!(rig.post("k", "{}").await.slug(), "outcome-unknown");
    assert_eq!(rig.upstream.calls(), 2);
}

#[tokio::test]
async fn the_service_can_say_what_its_answer_means() {
    let rig = Rig::new(Upstream::new(|call, request| {
        let mut response = charged(call, request)?;
        let said = match call {
            1 => "release",
            _ => "fail; retention=60",
        };
        response.headers_mut().insert("idempotency-outcome", said.parse()?);
        Ok(response)
    }));
    let first = rig.post("k", "{}").await;
    assert!(!first.headers.contains_key("idempotency-outcome") && !first.headers.contains_key("idempotency-expires"));
    assert!(!rig.post("k", "{}").await.is_replay());
    assert!(rig.post("k", "{}").await.is_replay());
    assert_eq!(rig.upstream.calls(), 2);
}

#[tokio::test]
async fn a_streamed_answer_is_replayed_with_its_trailers_and_its_end_waits_for_the_record() {
    let rig = Rig::new(Upstream::new(|_, _| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "6".parse()?);
        let frames = vec![
            Ok::<_, BoxError>(Frame::data("abc".into())),
            Ok(Frame::data("def".into())),
            Ok(Frame::trailers(trailers)),
        ];
        Ok(Response::new(Body::wrap(StreamBody::new(futures_util::stream::iter(frames)))))
    }));
    let first = rig.post("k", "{}").await;
    let again = rig.post("k", "{}").await;
    assert_eq!((first.body.as_ref(), again.body.as_ref()), (b"abcdef".as_slice(), b"abcdef".as_slice()));
    assert_eq!(first.trailers, again.trailers);
    assert_eq!(again.trailers.unwrap()["x-sum"], "6");
    assert!(again.headers.contains_key("idempotent-replayed"));
}

#[tokio::test]
async fn an_answer_over_the_limit_is_recorded_without_its_body_and_never_run_again() {
    let big = Bytes::from(vec![b'x'; 3 << 20]);
    let sent = big.clone();
    let rig = Rig::new(Upstream::new(move |_, _| Ok(Response::new(Body::full(sent.clone())))));
    assert_eq!(rig.post("k", "{}").await.body, big);
    let again = rig.post("k", "{}").await;
    assert_eq!((again.status, again.slug().as_str()), (409, "response-not-kept"));
    assert_eq!(again.problem()["recorded_status"], 200);
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test]
async fn an_event_stream_is_recorded_without_its_body() {
    let rig = Rig::new(Upstream::new(|_, _| {
        let mut response = Response::new(Body::full("data: 1\n\n".into()));
        response.headers_mut().insert("content-type", "text/event-stream; charset=utf-8".parse()?);
        Ok(response)
    }));
    assert_eq!(rig.post("k", "{}").await.body, "data: 1\n\n");
    assert_eq!(rig.post("k", "{}").await.slug(), "response-not-kept");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_recorded_and_not_passed_off_as_complete() {
    let rig = Rig::new(Upstream::new(|_, _| {
        let frames = vec![Ok(Frame::data(Bytes::from_static(b"abc"))), Err::<Frame<Bytes>, BoxError>("reset".into())];
        Ok(Response::new(Body::wrap(StreamBody::new(futures_util::stream::iter(frames)))))
    }));
    let response = rig.send(post("k", "{}")).await;
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(rig.post("k", "{}").await.slug(), "outcome-unknown");
}

#[tokio::test]
async fn a_record_settled_by_somebody_else_meanwhile_is_what_the_client_gets() {
    use onceward::store::{Filter, Write};
    use onceward_core::{outcome::Outcome, transition};
    let rig = Rig::new(Upstream::new(charged).gated());
    let first = rig.spawn_post("k", "{}");
    rig.upstream.arrived.notified().await;
    let page = rig.memory.scan(None, 10, Filter::default()).await.unwrap();
    let (id, record) = page.records.into_iter().next().unwrap();
    rig.memory.end_session(record.facts.session);
    let record = rig.memory.get(id).await.unwrap().record.unwrap();
    let outcome = Outcome { status: 202, body: "settled".into(), ..Outcome::default() };
    let write = transition::resolve(
        &record,
        transition::Resolution::Executed(outcome),
        "",
        Duration::from_secs(60),
        record.stored.written_at,
    )
    .unwrap();
    assert!(matches!(rig.memory.replace(id, &write).await.unwrap(), Write::Applied { .. }));
    rig.upstream.gate.add_permits(1);
    let answer = first.await.unwrap();
    assert_eq!((answer.status, answer.body.as_ref()), (202, b"settled".as_slice()));
}

#[tokio::test]
async fn keys_belong_to_their_caller() {
    let rig = Rig::new(Upstream::new(charged));
    for authorization in ["Bearer alice", "Bearer bob", "Bearer alice"] {
        let mut request = post("k", "{}");
        request.headers_mut().insert("authorization", authorization.parse().unwrap());
        rig.send(request).await;
    }
    assert_eq!(rig.upstream.calls(), 2);
}

#[tokio::test]
async fn a_caller_that_cannot_be_told_is_refused_with_what_to_set() {
    let rig = Rig::new(Upstream::new(charged));
    for (name, value, says) in
        [("cookie", "session=1", "cookie:session"), ("authorization", "AWS4-HMAC-SHA256 x", "scope.principal")]
    {
        let mut request = post("k", "{}");
        request.headers_mut().insert(name, value.parse().unwrap());
        let answer = Answer::of(rig.send(request).await).await;
        assert_eq!((answer.status, answer.slug().as_str()), (400, "no-principal"));
        assert!(answer.problem()["detail"].as_str().unwrap().contains(says), "{answer:?}");
    }
    assert_eq!(rig.upstream.calls(), 0);
}

#[tokio::test]
async fn a_refreshed_token_is_the_same_caller_but_is_shown_nothing() {
    let rig = Rig::new(Upstream::new(charged));
    // {"iss":"https://id.example","sub":"u1"}, with two signatures.
    let token =
        |signature: &str| format!("Bearer e30.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJzdWIiOiJ1MSJ9.{signature}");
    let mut answers = Vec::new();
    for signature in ["AAAA", "BBBB", "AAAA"] {
        let mut request = post("k", "{}");
        request.headers_mut().insert("authorization", token(signature).parse().unwrap());
        answers.push(Answer::of(rig.send(request).await).await);
    }
    assert_eq!(answers[1].slug(), "principal-changed");
    assert!(answers[2].is_replay());
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test]
async fn malformed_and_conflicting_keys_are_refused_and_nothing_is_forwarded() {
    let rig = Rig::new(Upstream::new(charged));
    for (key, slug) in [
        ("", "missing-key"),
        ("a b", "invalid-key"),
        ("a, b", "conflicting-keys"),
        ("\"a", "invalid-key"),
        ("\"a\";q=1", "invalid-key"),
    ] {
        let rig = Rig::with(rig.upstream.clone(), |route| route.key.missing = onceward::route::Missing::Required);
        let answer = rig.post(key, "{}").await;
        assert_eq!((answer.status, answer.slug().as_str()), (400, slug), "{key:?}");
    }
    let mut request = post("a", "{}");
    request.headers_mut().append("idempotency-key", "a".parse().unwrap());
    assert_eq!(Answer::of(rig.send(request).await).await.slug(), "conflicting-keys");
    let mut request = post("a", "{}");
    request.headers_mut().insert("x-idempotency-key", "b".parse().unwrap());
    assert_eq!(Answer::of(rig.send(request).await).await.slug(), "conflicting-keys");
    assert_eq!(rig.upstream.calls(), 0);
}

#[tokio::test]
async fn safe_methods_pass_through_even_with_a_key() {
    let rig = Rig::new(Upstream::new(charged));
    for _ in 0..2 {
        let request = Request::get("/v1/payments").header("idempotency-key", "k").body(Body::empty()).unwrap();
        assert!(!Answer::of(rig.send(request).await).await.is_replay());
    }
    assert_eq!(rig.upstream.calls(), 2);
}

#[tokio::test]
async fn a_derived_key_makes_equal_requests_one() {
    let rig = Rig::with(Upstream::new(charged), |route| {
        route.key.missing = onceward::route::Missing::Derive(Duration::from_secs(300));
    });
    let first = rig.post("", r#"{"amount":1}"#).await;
    assert_eq!(first.headers["idempotency-key-source"], "derived");
    assert!(rig.post("", r#"{"amount":1.0}"#).await.is_replay());
    assert!(!rig.post("", r#"{"amount":2}"#).await.is_replay());
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_anything_is_claimed() {
    let rig = Rig::with(Upstream::new(charged), |route| route.request_body_bytes_max = 4);
    let answer = rig.post("k", r#"{"a":1}"#).await;
    assert_eq!((answer.status, answer.slug().as_str()), (413, "body-too-large"));
    assert_eq!(rig.memory.stats().records, 0);
}

#[tokio::test]
async fn a_large_body_is_spooled_and_reaches_the_service_as_it_was_sent() {
    let rig = Rig::new(Upstream::new(|_, request| {
        let body = futures_util::FutureExt::now_or_never(request.into_body().collect()).unwrap()?.to_bytes();
        Ok(Response::new(Body::full(
            format!("{} {}", body.len(), body.iter().map(|b| u64::from(*b)).sum::<u64>()).into(),
        )))
    }));
    for len in [300 << 10, 5 << 20] {
        let body: Vec<u8> = (0..len).map(|i: usize| (i * 31 % 251) as u8).collect();
        let said = format!("{} {}", body.len(), body.iter().map(|b| u64::from(*b)).sum::<u64>());
        let key = format!("k{len}");
        let request = || {
            let body = Body::full(body.clone().into());
            Request::post("/v1/upload").header("idempotency-key", &key).body(body).unwrap()
        };
        assert_eq!(Answer::of(rig.send(request()).await).await.body, said);
        assert!(Answer::of(rig.send(request()).await).await.is_replay());
    }
    assert_eq!(rig.upstream.calls(), 2);
}

#[tokio::test]
async fn a_fresh_key_is_refused_when_the_upstream_is_busy_and_repeats_are_answered() {
    let rig = Rig::with(Upstream::new(charged).gated(), |route| route.in_flight = Arc::new(Semaphore::new(1)));
    rig.upstream.gate.add_permits(1);
    rig.post("done", "{}").await;
    rig.upstream.arrived.notified().await;
    let busy = rig.spawn_post("busy", "{}");
    rig.upstream.arrived.notified().await;
    let refused = rig.post("fresh", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "overloaded"));
    assert!(rig.post("done", "{}").await.is_replay());
    rig.upstream.gate.add_permits(1);
    assert_eq!(busy.await.unwrap().status, 201);
    assert_eq!(rig.memory.stats().records, 2);
}

#[tokio::test]
async fn an_unavailable_store_denies_or_bypasses_as_the_route_says() {
    let rig = Rig::new(Upstream::new(charged));
    rig.memory.set_replica(true);
    let denied = rig.post("k", "{}").await;
    assert_eq!((denied.status, denied.slug().as_str()), (503, "store-unavailable"));
    assert!(denied.headers.contains_key("retry-after"));
    assert_eq!(rig.upstream.calls(), 0);
    let rig = Rig::with(Upstream::new(charged), |route| {
        route.policy = Arc::new(Policy { on_store_outage: onceward::Outage::Bypass, ..Policy::default() });
    });
    rig.memory.set_replica(true);
    let bypassed = rig.post("k", "{}").await;
    assert_eq!((bypassed.status, bypassed.headers["idempotency-status"].to_str().unwrap()), (201, "bypassed"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_withheld_for_a_store_that_does_not_confirm_it() {
    let rig = Rig::new(Upstream::new(charged).gated());
    let first = rig.spawn_post("k", "{}");
    rig.upstream.arrived.notified().await;
    rig.memory.set_replica(true);
    rig.upstream.gate.add_permits(1);
    let first = first.await.unwrap();
    assert_eq!((first.status, first.headers["idempotency-status"].to_str().unwrap()), (201, "unrecorded"));
    // This process still knows the answer.
    let again = rig.post("k", "{}").await;
    assert!(again.is_replay(), "{again:?}");
    // And says no more of it than it did the first time.
    assert_eq!(again.headers["idempotency-status"].to_str().unwrap(), "unrecorded");
    rig.memory.set_replica(false);
    assert_eq!(rig.engine.drain(Duration::from_secs(60)).await, 0);
    let recorded = rig.post("k", "{}").await;
    assert!(recorded.is_replay() && !recorded.headers.contains_key("idempotency-status"), "{recorded:?}");
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_for_as_long_as_the_service_works() {
    let rig = Rig::new(Upstream::new(charged).gated());
    let first = rig.spawn_post("k", "{}");
    rig.upstream.arrived.notified().await;
    tokio::time::advance(Duration::from_secs(25)).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let page = rig.memory.scan(None, 10, onceward::store::Filter::default()).await.unwrap();
    let (_, record) = page.records.first().unwrap();
    assert_eq!(record.seen_at(page.now), onceward_core::record::Seen::InFlight, "{record:?}");
    rig.upstream.gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_its_client_left_does_not_run_for_ever() {
    let rig = Rig::new(Upstream::new(|_, _| {
        let beats = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Ok::<_, BoxError>(Frame::data(Bytes::from_static(b": beat\n\n"))), ()))
        });
        let mut response = Response::new(Body::wrap(StreamBody::new(beats)));
        response.headers_mut().insert("content-type", "text/event-stream".parse()?);
        Ok(response)
    }));
    let mut stream = rig.send(post("k", "{}")).await.into_body();
    for _ in 0..100 {
        assert!(stream.frame().await.unwrap().is_ok(), "the client sets the pace, beyond execution_max too");
    }
    assert_eq!(rig.engine.in_flight(), 1);
    drop(stream);
    assert_eq!(rig.engine.drain(Duration::from_secs(60)).await, 0);
    assert_eq!(rig.post("k", "{}").await.slug(), "outcome-unknown");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_retention_is_told_as_it_is_and_does_not_move_with_each_replay() {
    let rig = Rig::new(Upstream::new(charged));
    let expires =
        |answer: &Answer| httpdate::parse_http_date(answer.headers["idempotency-expires"].to_str().unwrap()).unwrap();
    let first = expires(&rig.post("k", "{}").await);
    tokio::time::advance(Duration::from_secs(3600)).await;
    // Dates are told by the wall clock, which stands still here: an hour later an hour less is left.
    let again = expires(&rig.post("k", "{}").await);
    let sooner = first.duration_since(again).unwrap();
    assert!((3590..3610).contains(&sooner.as_secs()), "{sooner:?}");
}

#[tokio::test]
async fn a_damaged_record_is_no_outage_and_is_never_bypassed() {
    let rig = Rig::with(Upstream::new(charged), |route| {
        route.policy = Arc::new(Policy { on_store_outage: onceward::Outage::Bypass, ..Policy::default() });
    });
    rig.post("k", "{}").await;
    let page = rig.memory.scan(None, 10, onceward::store::Filter::default()).await.unwrap();
    rig.memory.damage(&page.records.first().unwrap().0);
    assert_eq!(rig.post("k", "{}").await.slug(), "store-unavailable");
    assert_eq!(rig.upstream.calls(), 1);
}

#[tokio::test]
async fn the_service_can_be_given_a_key_of_its_own_wherever_the_clients_key_stood() {
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let upstream = Upstream::new(move |call, request| {
        log.lock().unwrap().push(request.headers()["idempotency-key"].to_str().unwrap().to_owned());
        charged(call, request)
    });
    let rig = Rig::with(upstream, |route| {
        route.forward_derived = Some("payments".into());
        route.key.from.push(onceward::route::Source::Json(onceward::Pointer::parse("/id").unwrap()));
    });
    rig.post("k-1", "{}").await;
    let mut request = post("", r#"{"id":"k-1"}"#);
    request.headers_mut().insert("authorization", "Bearer somebody-else".parse().unwrap());
    rig.send(request).await;
    // The child of `k-1` for the step `payments`, from the published vectors.
    let child = "v3sh2vvv8Wywo2P3Pq886tj4rm67EQlI";
    assert_eq!(*seen.lock().unwrap(), [child, child]);
}

#[tokio::test(start_paused = true)]
async fn a_replay_before_a_busy_upstream_tells_the_end_of_the_retention_as_it_is() {
    let places = Arc::new(Semaphore::new(1));
    let busy = Arc::clone(&places);
    let rig = Rig::with(Upstream::new(charged), move |route| route.in_flight = busy);
    let expires =
        |answer: &Answer| httpdate::parse_http_date(answer.headers["idempotency-expires"].to_str().unwrap()).unwrap();
    let first = expires(&rig.post("k", "{}").await);
    let _taken = places.acquire().await.unwrap();
    tokio::time::advance(Duration::from_secs(3600)).await;
    let sooner = first.duration_since(expires(&rig.post("k", "{}").await)).unwrap();
    assert!((3590..3610).contains(&sooner.as_secs()), "{sooner:?}");
}
