//! gRPC through the layer: an unmodified tonic client, a tonic server behind the layer, a socket between them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, StreamBody};
use onceward::{
    Body, BoxError, Engine, Layer, Limits, Route, Routes, Secret,
    store::{Store, memory::Memory},
};
use tokio::sync::{Notify, Semaphore};
use tonic::{
    Code, IntoStreamingRequest, Request, Response, Status, Streaming,
    codegen::tokio_stream,
    metadata::{KeyAndValueRef, MetadataMap, MetadataValue},
    transport::{Channel, Server, server::TcpIncoming},
};
use tower::{Layer as _, Service, ServiceExt, service_fn};

use payments::{Charge, ChargeRequest, payments_client::PaymentsClient, payments_server::PaymentsServer};

#[expect(clippy::allow_attributes, unreachable_pub, unused_qualifications, reason = "generated")]
mod payments {
    include!("../examples/payments/payments.rs");
}

// ===== the service =====

/// Charges, counts, and ends as the account says.
#[derive(Clone, Default)]
struct Bank {
    charges: Arc<AtomicUsize>,
    /// Where it is closed, a charge waits.
    gate: Option<Arc<Semaphore>>,
    arrived: Arc<Notify>,
}

impl Bank {
    fn gated() -> Self {
        Self { gate: Some(Arc::new(Semaphore::new(0))), ..Self::default() }
    }

    fn charges(&self) -> usize {
        self.charges.load(Ordering::SeqCst)
    }

    async fn take(&self, request: ChargeRequest) -> Result<Charge, Status> {
        let number = self.charges.fetch_add(1, Ordering::SeqCst) + 1;
        self.arrived.notify_one();
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let mut words = request.account.split(' ');
        let (Some("status"), Some(code)) = (words.next(), words.next()) else {
            return Ok(Charge { id: format!("ch_{number}"), amount_cents: request.amount_cents });
        };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin("trace-bin", MetadataValue::from_bytes(&[0, 255, number as u8]));
        if let Some(word) = words.next() {
            metadata.insert("idempotency-outcome", word.parse().unwrap());
        }
        let code = Code::from(code.parse::<i32>().unwrap());
        Err(Status::with_details_and_metadata(code, "so be it: 100 %", Bytes::from_static(b"\x08\x01"), metadata))
    }
}

#[tonic::async_trait]
impl payments::payments_server::Payments for Bank {
    async fn charge(&self, request: Request<ChargeRequest>) -> Result<Response<Charge>, Status> {
        let word = request.metadata().get("say").cloned();
        let mut response = Response::new(self.take(request.into_inner()).await?);
        response.metadata_mut().insert_bin("trace-bin", MetadataValue::from_bytes(&[0, 1, 2, 255]));
        if let Some(word) = word {
            response.metadata_mut().insert("idempotency-outcome", word);
        }
        Ok(response)
    }

    type ChargeAndFollowStream = tokio_stream::Iter<std::vec::IntoIter<Result<Charge, Status>>>;

    async fn charge_and_follow(
        &self,
        request: Request<ChargeRequest>,
    ) -> Result<Response<Self::ChargeAndFollowStream>, Status> {
        let ending = request.metadata().get("end").cloned();
        let charge = self.take(request.into_inner()).await?;
        let mut all: Vec<_> = (0..charge.amount_cents).map(|_| Ok(charge.clone())).collect();
        if let Some(ending) = ending {
            let code = Code::from(ending.to_str().unwrap().parse::<i32>().unwrap());
            all.push(Err(Status::new(code, "it ends so")));
        }
        Ok(Response::new(tokio_stream::iter(all)))
    }

    async fn charge_all(&self, request: Request<Streaming<ChargeRequest>>) -> Result<Response<Charge>, Status> {
        let mut stream = request.into_inner();
        let mut sum = 0;
        while let Some(request) = stream.message().await? {
            sum += request.amount_cents;
        }
        self.take(ChargeRequest { account: String::new(), amount_cents: sum }).await.map(Response::new)
    }
}

/// What stands between the layer and the service: a metadatum `between` of the request says what it does.
#[derive(Clone)]
struct Between<S>(S);

impl<S> Service<http::Request<Body>> for Between<S>
where
    S: Service<http::Request<Body>, Response = http::Response<tonic::body::Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(|never| match never {})
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let what = request.headers().get("between").map(|what| what.to_str().unwrap().to_owned());
        let late = request.headers().get("say-late").cloned();
        let call = self.0.call(request);
        Box::pin(async move {
            let response = call.await.map_err(|never: Infallible| match never {})?;
            let (parts, body) = response.into_parts();
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned().unwrap_or_default();
            let data = Ok(http_body::Frame::data(collected.to_bytes()));
            let stream = |frames: Vec<Result<http_body::Frame<Bytes>, BoxError>>| {
                Body::wrap(StreamBody::new(tokio_stream::iter(frames)))
            };
            let body = match what.as_deref() {
                // A status of the head is none where something follows.
                Some("no status") => stream(vec![data]),
                Some("breaks off") => stream(vec![data, Err("the wire was cut".into())]),
                Some("balancer") => {
                    let mut answer = http::Response::new(Body::empty());
                    *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                    answer.headers_mut().insert("retry-after", "1".parse()?);
                    return Ok(answer);
                }
                // As tonic has no way to say something at the end of an answer that went well.
                _ if parts.headers.contains_key("grpc-status") => Body::empty(),
                _ => {
                    let mut trailers = trailers;
                    trailers.insert("late-bin", "AP8".parse()?);
                    if let Some(word) = late {
                        trailers.insert("idempotency-outcome", word);
                    }
                    stream(vec![data, Ok(http_body::Frame::trailers(trailers))])
                }
            };
            Ok(http::Response::from_parts(parts, body))
        })
    }
}

// ===== the rig =====

struct Rig {
    bank: Bank,
    engine: Engine,
    channel: Channel,
}

impl Rig {
    async fn new(bank: Bank) -> Self {
        Self::with(bank, |_route| {}).await
    }

    async fn with(bank: Bank, set: impl FnOnce(&mut Route)) -> Self {
        let mut route = Route::new("default");
        set(&mut route);
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let routes = Routes::new(vec![], route);
        let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
        let layer = Layer::new(engine.clone());
        let service = tower::layer::layer_fn(move |inner| layer.layer(Between(inner)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().layer(service).add_service(PaymentsServer::new(bank.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { bank, engine, channel }
    }

    fn client(&self) -> PaymentsClient<Channel> {
        PaymentsClient::new(self.channel.clone())
    }

    async fn charge(&self, key: &str, account: &str, amount_cents: u64) -> Result<Response<Charge>, Status> {
        self.client().charge(call(key, account, amount_cents)).await
    }

    /// The answer as it stands on the wire: head, body, trailers.
    async fn raw(&self, path: &str, key: &str, account: &str, more: &[(&str, &str)]) -> (HeaderMap, Bytes, HeaderMap) {
        let message = ChargeRequest { account: account.into(), amount_cents: 2 };
        let message = prost::Message::encode_to_vec(&message);
        let mut framed = vec![0, 0, 0, 0, message.len() as u8];
        framed.extend_from_slice(&message);
        let mut request = http::Request::post(format!("http://bank/payments.v1.Payments/{path}"))
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .header("idempotency-key", key);
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let body = tonic::body::Body::new(http_body_util::Full::from(framed));
        let response = self.channel.clone().ready().await.unwrap().call(request.body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        (parts.headers, collected.to_bytes(), trailers)
    }
}

fn call(key: &str, account: &str, amount_cents: u64) -> Request<ChargeRequest> {
    keyed(key, ChargeRequest { account: account.into(), amount_cents })
}

fn keyed<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !key.is_empty() {
        request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    }
    request
}

fn with<T>(mut request: Request<T>, name: &'static str, value: &str) -> Request<T> {
    request.metadata_mut().insert(name, value.parse().unwrap());
    request
}

fn is_replay(metadata: &MetadataMap) -> bool {
    metadata.contains_key("idempotent-replayed")
}

/// Without what belongs to one exchange.
fn essence(mut headers: HeaderMap) -> HeaderMap {
    for own in ["date", "x-request-id", "idempotency-expires", "idempotent-replayed"] {
        headers.remove(own);
    }
    headers
}

fn problem(status: &Status) -> serde_json::Value {
    let problem = status.metadata().get_bin("onceward-problem-bin").expect("a problem").to_bytes().unwrap();
    serde_json::from_slice(&problem).unwrap()
}

fn slug(status: &Status) -> String {
    let slug = problem(status)["type"].as_str().unwrap().strip_prefix("urn:onceward:problem:").unwrap().to_owned();
    assert!(status.message().starts_with(&slug), "{status:?}");
    slug
}

fn pushback(status: &Status) -> Option<i64> {
    status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap().parse().unwrap())
}

// ===== the answer =====

#[tokio::test]
async fn a_unary_call_runs_once_and_its_repeat_gets_head_message_and_trailers_as_they_were() {
    let rig = Rig::new(Bank::default()).await;
    let first = rig.charge("k", "acc", 4711).await.unwrap();
    let again = rig.charge("k", "acc", 4711).await.unwrap();
    assert_eq!((first.get_ref().id.as_str(), first.get_ref().amount_cents), ("ch_1", 4711));
    assert_eq!(first.get_ref(), again.get_ref());
    for metadata in [first.metadata(), again.metadata()] {
        assert_eq!(metadata.get_bin("trace-bin").unwrap().to_bytes().unwrap(), [0, 1, 2, 255].as_slice());
        assert_eq!(metadata.get_bin("late-bin").unwrap().to_bytes().unwrap(), [0, 255].as_slice());
        assert!(metadata.contains_key("idempotency-expires"), "{metadata:?}");
    }
    assert!(!is_replay(first.metadata()) && is_replay(again.metadata()));
    assert_eq!(rig.bank.charges(), 1);

    let first = rig.raw("Charge", "raw", "acc", &[]).await;
    let again = rig.raw("Charge", "raw", "acc", &[("grpc-timeout", "5S"), ("trace", "another")]).await;
    assert_eq!(essence(first.0), essence(again.0));
    assert_eq!((&first.1, essence(first.2.clone())), (&again.1, again.2));
    assert_eq!((first.2["grpc-status"].as_bytes(), first.2["late-bin"].as_bytes()), (&b"0"[..], &b"AP8"[..]));
    assert_eq!(rig.bank.charges(), 2);
}

#[tokio::test]
async fn an_error_is_replayed_as_it_was_without_a_body_its_head_being_its_trailers() {
    let rig = Rig::new(Bank::default()).await;
    let first = rig.charge("k", "status 9", 1).await.unwrap_err();
    let again = rig.charge("k", "status 9", 1).await.unwrap_err();
    for status in [&first, &again] {
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "so be it: 100 %"));
        assert_eq!(status.details(), b"\x08\x01");
        assert_eq!(status.metadata().get_bin("trace-bin").unwrap().to_bytes().unwrap(), [0, 255, 1].as_slice());
    }
    assert!(!is_replay(first.metadata()) && is_replay(again.metadata()));
    for _ in 0..2 {
        let (head, body, trailers) = rig.raw("Charge", "raw", "status 3", &[]).await;
        assert_eq!(head["grpc-status"], "3");
        assert!(body.is_empty() && trailers.is_empty(), "{trailers:?}");
        assert!(head.contains_key("idempotency-expires"));
    }
    assert_eq!(rig.bank.charges(), 2);
}

#[tokio::test]
async fn every_status_is_recorded_released_or_unknown_by_the_table_of_the_contract() {
    let rig = Rig::new(Bank::default()).await;
    for code in 1..=16 {
        let key = format!("k-{code}");
        let account = format!("status {code}");
        let before = rig.bank.charges();
        let first = rig.charge(&key, &account, 1).await.unwrap_err();
        assert_eq!((first.code() as i32, is_replay(first.metadata())), (code, false), "the upstream's own answer");
        let again = rig.charge(&key, &account, 1).await.unwrap_err();
        let runs = rig.bank.charges() - before;
        match code {
            3 | 5 | 6 | 9 | 11 | 12 | 13 | 15 => {
                assert_eq!((runs, again.code() as i32, is_replay(again.metadata())), (1, code, true), "recorded");
            }
            7 | 8 | 10 | 16 => {
                assert_eq!((runs, again.code() as i32, is_replay(again.metadata())), (2, code, false), "released");
            }
            _ => {
                assert_eq!((runs, again.code()), (1, Code::FailedPrecondition), "{code} is unknown");
                assert_eq!((slug(&again).as_str(), pushback(&again)), ("outcome-unknown", Some(-1)));
            }
        }
        let is_recorded = is_replay(again.metadata());
        assert_eq!(first.metadata().contains_key("idempotency-expires"), is_recorded, "{code}: {first:?}");
    }
}

#[tokio::test]
async fn an_answer_that_ends_without_a_status_is_unknown_and_one_that_is_not_grpc_goes_by_its_http_status() {
    let rig = Rig::new(Bank::default()).await;
    let silent = || with(call("silent", "acc", 1), "between", "no status");
    rig.client().charge(silent()).await.unwrap_err();
    let again = rig.client().charge(silent()).await.unwrap_err();
    assert_eq!((slug(&again).as_str(), rig.bank.charges()), ("outcome-unknown", 1));

    // 503 with Retry-After is released.
    let balanced = || with(call("balanced", "acc", 1), "between", "balancer");
    for runs in [2, 3] {
        let status = rig.client().charge(balanced()).await.unwrap_err();
        assert_eq!((status.code(), rig.bank.charges()), (Code::Unavailable, runs), "as gRPC reads a 503");
    }
}

#[tokio::test]
async fn the_upstreams_word_wins_in_head_and_trailers_and_no_client_sees_it() {
    let rig = Rig::new(Bank::default()).await;
    // In the head of an answer that went well.
    let said = || with(call("head", "acc", 1), "say", "release");
    for runs in [1, 2] {
        let response = rig.client().charge(said()).await.unwrap();
        assert!(!response.metadata().contains_key("idempotency-outcome") && !is_replay(response.metadata()));
        assert_eq!(rig.bank.charges(), runs);
    }
    // At its end, where it overrules the head.
    let said = || with(with(call("late", "acc", 1), "say", "release"), "say-late", "record; retention=60");
    rig.client().charge(said()).await.unwrap();
    let again = rig.client().charge(said()).await.unwrap();
    assert!(is_replay(again.metadata()) && !again.metadata().contains_key("idempotency-outcome"));
    // At the end of one that did not go well.
    for (key, account, code, replayed) in
        [("a", "status 14 record", 14, true), ("b", "status 3 release", 3, false), ("c", "status 2 fail", 2, true)]
    {
        rig.charge(key, account, 1).await.unwrap_err();
        let again = rig.charge(key, account, 1).await.unwrap_err();
        assert_eq!((again.code() as i32, is_replay(again.metadata())), (code, replayed), "{account}");
        assert!(!again.metadata().contains_key("idempotency-outcome"));
    }
}

#[tokio::test]
async fn two_at_once_are_one_call_and_the_one_that_does_not_wait_is_aborted_with_a_time_to_come_back() {
    let rig = Rig::new(Bank::gated()).await;
    let (one, two) = (rig.client(), rig.client());
    let one = tokio::spawn(async move { { one }.charge(call("k", "acc", 1)).await });
    rig.bank.arrived.notified().await;
    let two = tokio::spawn(async move { { two }.charge(call("k", "acc", 1)).await });
    while rig.engine.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    let other = rig.charge("k", "acc", 2).await.unwrap_err();
    assert_eq!((other.code(), slug(&other).as_str()), (Code::InvalidArgument, "key-reused"), "told in flight too");
    rig.bank.gate.as_ref().unwrap().add_permits(1);
    let (one, two) = (one.await.unwrap().unwrap(), two.await.unwrap().unwrap());
    assert_eq!((one.get_ref(), rig.bank.charges()), (two.get_ref(), 1));
    assert!(!is_replay(one.metadata()) && is_replay(two.metadata()));

    let rig = Rig::with(Bank::gated(), |route| route.wait = Duration::ZERO).await;
    let mut client = rig.client();
    let first = tokio::spawn(async move { client.charge(call("k", "acc", 1)).await });
    rig.bank.arrived.notified().await;
    let refused = rig.charge("k", "acc", 1).await.unwrap_err();
    assert_eq!((refused.code(), slug(&refused).as_str()), (Code::Aborted, "in-flight"));
    assert!(pushback(&refused).is_some_and(|wait_ms| wait_ms > 0), "{refused:?}");
    assert_eq!(problem(&refused)["retryable"], true);
    rig.bank.gate.as_ref().unwrap().add_permits(1);
    first.await.unwrap().unwrap();
}

// ===== streams =====

#[tokio::test]
async fn a_row_of_answers_is_recorded_with_its_end_and_replayed_whole() {
    let rig = Rig::new(Bank::default()).await;
    for round in 0..2 {
        let request = with(call("k", "acc", 3), "end", "9");
        let response = rig.client().charge_and_follow(request).await.unwrap();
        assert_eq!(is_replay(response.metadata()), round == 1);
        let mut stream = response.into_inner();
        for _ in 0..3 {
            assert_eq!(stream.message().await.unwrap().unwrap().id, "ch_1");
        }
        let end = stream.message().await.unwrap_err();
        assert_eq!((end.code(), end.message()), (Code::FailedPrecondition, "it ends so"));
    }
    assert_eq!(rig.bank.charges(), 1);
}

#[tokio::test]
async fn a_row_of_answers_beyond_the_limit_is_given_once_and_remembered_as_a_fact() {
    let rig = Rig::with(Bank::default(), |route| route.recorded_body_bytes_max = 20).await;
    let mut stream = rig.client().charge_and_follow(call("k", "acc", 50)).await.unwrap().into_inner();
    let mut count = 0;
    while stream.message().await.unwrap().is_some() {
        count += 1;
    }
    let again = rig.client().charge_and_follow(call("k", "acc", 50)).await.unwrap_err();
    assert_eq!((again.code(), slug(&again).as_str()), (Code::FailedPrecondition, "response-not-kept"));
    assert_eq!(problem(&again)["recorded_grpc_status"], 0, "that it went well is known");
    assert_eq!((count, rig.bank.charges()), (50, 1));
}

#[tokio::test]
async fn an_answer_that_breaks_off_ends_in_a_status_that_says_so() {
    let rig = Rig::new(Bank::default()).await;
    let broken = with(call("k", "acc", 3), "between", "breaks off");
    let mut stream = rig.client().charge_and_follow(broken).await.unwrap().into_inner();
    for _ in 0..3 {
        stream.message().await.unwrap().unwrap();
    }
    let end = stream.message().await.unwrap_err();
    assert_eq!((end.code(), slug(&end).as_str()), (Code::Unknown, "upstream-failed"));
    let again = rig.client().charge_and_follow(call("k", "acc", 3)).await.unwrap_err();
    assert_eq!((slug(&again).as_str(), rig.bank.charges()), ("outcome-unknown", 1));
}

#[tokio::test]
async fn a_call_of_more_than_one_message_is_not_protected_and_passes_without_a_key() {
    let rig = Rig::new(Bank::default()).await;
    let charge = |amount_cents| ChargeRequest { account: String::new(), amount_cents };
    for messages in [vec![charge(1), charge(2)], vec![]] {
        let request = keyed("k", tokio_stream::iter(messages)).into_streaming_request();
        let refused = rig.client().charge_all(request).await.unwrap_err();
        assert_eq!((refused.code(), slug(&refused).as_str()), (Code::Unimplemented, "not-one-message"));
    }
    assert_eq!(rig.bank.charges(), 0, "nothing was sent");
    let two = Request::new(tokio_stream::iter(vec![charge(1), charge(2)]));
    let unkeyed = rig.client().charge_all(with(two, "say-late", "record")).await.unwrap();
    assert_eq!(unkeyed.get_ref().amount_cents, 3);
    assert!(!unkeyed.metadata().contains_key("idempotency-outcome"), "said at the end, and for nobody but Onceward");
    // One message that comes as a stream is one message; nothing was claimed under its key.
    let request = keyed("k", tokio_stream::iter(vec![charge(5)])).into_streaming_request();
    assert_eq!(rig.client().charge_all(request).await.unwrap().get_ref().amount_cents, 5);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_second_message_does_not_come_is_not_waited_for_without_end() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let routes = Routes::new(vec![], Route::new("default"));
    let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
    let inner = service_fn(|_: http::Request<Body>| async { Err::<http::Response<Body>, BoxError>("called".into()) });
    let mut service = Layer::new(engine).layer(inner);
    let first = futures_util::stream::iter([Ok::<_, BoxError>(http_body::Frame::data(Bytes::from_static(&[0; 5])))]);
    let endless = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    let request = http::Request::post("/payments.v1.Payments/ChargeAll")
        .header("content-type", "application/grpc")
        .header("idempotency-key", "k")
        .body(StreamBody::new(endless))
        .unwrap();
    // Where it is waited for, a paused clock ends this at once.
    let response = tokio::time::timeout(Duration::from_secs(60), service.call(request)).await.expect("an end").unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
}

// ===== refusals =====

#[tokio::test]
async fn refusals_are_statuses_that_clients_read_with_the_problem_in_their_metadata() {
    let rig = Rig::with(Bank::default(), |route| {
        route.key.missing = onceward::route::Missing::Required;
        route.request_body_bytes_max = 1000;
    })
    .await;
    rig.charge("k", "acc", 1).await.unwrap();
    let long = "x".repeat(2000);
    let rows = [
        ("", "acc", Code::InvalidArgument, "missing-key", 400),
        ("a, b", "acc", Code::InvalidArgument, "conflicting-keys", 400),
        ("k", "other", Code::InvalidArgument, "key-reused", 422),
        ("long", long.as_str(), Code::ResourceExhausted, "body-too-large", 413),
    ];
    for (key, account, code, want, http_status) in rows {
        let refused = rig.charge(key, account, 1).await.unwrap_err();
        assert_eq!((refused.code(), slug(&refused).as_str()), (code, want));
        assert_eq!((problem(&refused)["status"].as_u64(), pushback(&refused)), (Some(http_status), Some(-1)), "{want}");
    }
    assert_eq!(rig.bank.charges(), 1);

    let (head, body, trailers) = rig.raw("Charge", "a, b", "acc", &[]).await;
    assert_eq!(
        (head["content-type"].as_bytes(), head["grpc-status"].as_bytes()),
        (&b"application/grpc"[..], &b"3"[..])
    );
    assert!(body.is_empty() && trailers.is_empty(), "trailers-only: {trailers:?}");
    assert!(!head["onceward-problem-bin"].to_str().unwrap().contains('='), "base64 without padding");
}

#[tokio::test]
async fn an_acknowledgement_says_how_the_call_ended_and_no_more() {
    let rig = Rig::with(Bank::default(), |route| route.replay_ack = true).await;
    rig.charge("ok", "acc", 4711).await.unwrap();
    let again = rig.charge("ok", "acc", 4711).await.unwrap();
    assert_eq!(again.get_ref(), &Charge::default());
    assert!(is_replay(again.metadata()));
    rig.charge("no", "status 5", 1).await.unwrap_err();
    let again = rig.charge("no", "status 5", 1).await.unwrap_err();
    assert_eq!((again.code(), again.message(), is_replay(again.metadata())), (Code::NotFound, "", true));
    let sent_once: Vec<_> =
        again.metadata().iter().filter(|entry| matches!(entry, KeyAndValueRef::Binary(..))).collect();
    assert!(sent_once.is_empty(), "{sent_once:?}");
}
