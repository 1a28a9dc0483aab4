//! gRPC through the proxy: an unmodified tonic client, the real binary, a tonic server that speaks HTTP/2 by prior
//! knowledge.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::{net::TcpListener, sync::Notify};
use tonic::{
    Code, Request, Response, Status, Streaming,
    codegen::tokio_stream,
    metadata::{MetadataMap, MetadataValue},
    transport::{Channel, Server, server::TcpIncoming},
};

use super::support::{Gate, Gateway, Start, Upstream, answer, nobody, soon};
use payments::{Charge, ChargeRequest, payments_client::PaymentsClient, payments_server::PaymentsServer};

#[expect(clippy::allow_attributes, unreachable_pub, unused_qualifications, reason = "generated")]
mod payments {
    include!("../../../layer/examples/payments/payments.rs");
}

/// A payments service that counts its charges. An account `status N` ends with that status, `gate` waits.
#[derive(Clone)]
struct Bank {
    address: SocketAddr,
    charges: Arc<AtomicUsize>,
    arrived: Arc<Notify>,
    gate: Gate,
}

impl Bank {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bank = Self { address, charges: Arc::default(), arrived: Arc::default(), gate: Gate::shut() };
        let server = Server::builder().add_service(PaymentsServer::new(bank.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        bank
    }

    fn charges(&self) -> usize {
        self.charges.load(Ordering::SeqCst)
    }

    /// In front of it, with this besides.
    fn before(&self, config: &str) -> Start {
        before(self.address, config)
    }

    async fn take(&self, request: ChargeRequest) -> Result<Charge, Status> {
        let number = self.charges.fetch_add(1, Ordering::SeqCst) + 1;
        self.arrived.notify_one();
        if request.account == "gate" {
            self.gate.passed().await;
        }
        let Some(code) = request.account.strip_prefix("status ") else {
            return Ok(Charge { id: format!("ch_{number}"), amount_cents: request.amount_cents });
        };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin("trace-bin", MetadataValue::from_bytes(&[0, 255]));
        let details = Bytes::from_static(b"\x08\x01");
        Err(Status::with_details_and_metadata(Code::from(code.parse::<i32>().unwrap()), "no: 100 %", details, metadata))
    }
}

#[tonic::async_trait]
impl payments::payments_server::Payments for Bank {
    async fn charge(&self, request: Request<ChargeRequest>) -> Result<Response<Charge>, Status> {
        let attempt = request.metadata().get("idempotency-attempt").cloned();
        let mut response = Response::new(self.take(request.into_inner()).await?);
        response.metadata_mut().insert_bin("trace-bin", MetadataValue::from_bytes(&[0, 1, 2, 255]));
        if let Some(attempt) = attempt {
            response.metadata_mut().insert("saw-attempt", attempt);
        }
        Ok(response)
    }

    type ChargeAndFollowStream = tokio_stream::Iter<std::vec::IntoIter<Result<Charge, Status>>>;

    async fn charge_and_follow(
        &self,
        request: Request<ChargeRequest>,
    ) -> Result<Response<Self::ChargeAndFollowStream>, Status> {
        let charge = self.take(request.into_inner()).await?;
        let mut all = vec![Ok(charge.clone()); usize::try_from(charge.amount_cents).unwrap()];
        all.push(Err(Status::data_loss("the last page is missing")));
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

fn before(upstream: SocketAddr, config: &str) -> Start {
    let upstream = format!("[[upstream]]\nname = \"bank\"\nurl = \"http://{upstream}\"\nhttp2 = true\n");
    Start::new().config(&format!("{config}\n{upstream}"))
}

async fn client(gateway: &Gateway) -> PaymentsClient<Channel> {
    PaymentsClient::connect(format!("http://{}", gateway.proxy)).await.unwrap()
}

fn call(key: &str, account: &str, amount_cents: u64) -> Request<ChargeRequest> {
    keyed(key, ChargeRequest { account: account.to_owned(), amount_cents })
}

fn keyed<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

fn is_replay(metadata: &MetadataMap) -> bool {
    metadata.contains_key("idempotent-replayed")
}

fn slug(status: &Status) -> String {
    let problem = status.metadata().get_bin("onceward-problem-bin").expect("a problem").to_bytes().unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&problem).unwrap();
    problem["type"].as_str().unwrap().strip_prefix("urn:onceward:problem:").unwrap().to_owned()
}

#[tokio::test]
async fn a_grpc_call_takes_effect_once_and_its_answer_outlives_a_kill() {
    let bank = Bank::start().await;
    let mut gateway = bank.before("").start().await;
    let first = client(&gateway).await.charge(call("k-1", "acc", 4711)).await.unwrap();
    assert_eq!((first.get_ref().id.as_str(), is_replay(first.metadata())), ("ch_1", false));
    let refused = client(&gateway).await.charge(call("k-2", "status 9", 1)).await.unwrap_err();
    assert_eq!((refused.code(), is_replay(refused.metadata())), (Code::FailedPrecondition, false));
    gateway = gateway.restart().await;
    let again = client(&gateway).await.charge(call("k-1", "acc", 4711)).await.unwrap();
    assert_eq!(again.get_ref(), first.get_ref());
    for metadata in [first.metadata(), again.metadata()] {
        assert_eq!(metadata.get_bin("trace-bin").unwrap().to_bytes().unwrap(), [0, 1, 2, 255].as_slice());
        assert!(metadata.contains_key("idempotency-expires"));
        assert_eq!(metadata.get("saw-attempt").unwrap(), "1", "what an upstream is told, it is told in metadata");
    }
    assert!(is_replay(again.metadata()));
    let again = client(&gateway).await.charge(call("k-2", "status 9", 1)).await.unwrap_err();
    assert_eq!((again.code(), again.message(), again.details()), (refused.code(), "no: 100 %", refused.details()));
    assert_eq!(again.metadata().get_bin("trace-bin").unwrap().to_bytes().unwrap(), [0, 255].as_slice());
    assert!(is_replay(again.metadata()));
    assert_eq!(bank.charges(), 2);

    let other = client(&gateway).await.charge(call("k-1", "acc", 8150)).await.unwrap_err();
    assert_eq!((other.code(), slug(&other).as_str()), (Code::InvalidArgument, "key-reused"));
}

#[tokio::test]
async fn the_status_at_the_end_decides_what_becomes_of_the_key() {
    let bank = Bank::start().await;
    let gateway = bank.before("").start().await;
    let mut client = client(&gateway).await;
    for code in 0..=16 {
        let (key, account) = (format!("k-{code}"), format!("status {code}"));
        let account = if code == 0 { "acc" } else { account.as_str() };
        let before = bank.charges();
        let code_of = |answer: Result<Response<Charge>, Status>| match answer {
            Ok(response) => (0, is_replay(response.metadata()), None),
            Err(status) if status.metadata().contains_key("onceward-problem-bin") => {
                (status.code() as i32, false, Some(slug(&status)))
            }
            Err(status) => (status.code() as i32, is_replay(status.metadata()), None),
        };
        assert_eq!(code_of(client.charge(call(&key, account, 1)).await), (code, false, None));
        let again = code_of(client.charge(call(&key, account, 1)).await);
        let runs = bank.charges() - before;
        match code {
            0 | 3 | 5 | 6 | 9 | 11 | 12 | 13 | 15 => assert_eq!((again, runs), ((code, true, None), 1), "recorded"),
            7 | 8 | 10 | 16 => assert_eq!((again, runs), ((code, false, None), 2), "released"),
            _ => assert_eq!((again, runs), ((9, false, Some("outcome-unknown".to_owned())), 1), "{code} is unknown"),
        }
    }
    let states: Vec<String> =
        gateway.records().await.iter().map(|record| record["state"].as_str().unwrap().to_owned()).collect();
    let count = |state: &str| states.iter().filter(|found| *found == state).count();
    assert_eq!((count("completed"), count("unknown"), states.len()), (9, 4, 13));
}

#[tokio::test]
async fn a_row_of_answers_is_replayed_whole_and_a_row_of_requests_is_refused() {
    let bank = Bank::start().await;
    let gateway = bank.before("").start().await;
    for round in 0..2 {
        let response = client(&gateway).await.charge_and_follow(call("k-1", "acc", 3)).await.unwrap();
        assert_eq!(is_replay(response.metadata()), round == 1);
        let mut stream = response.into_inner();
        for _ in 0..3 {
            assert_eq!(stream.message().await.unwrap().unwrap().id, "ch_1");
        }
        let end = stream.message().await.unwrap_err();
        assert_eq!((end.code(), end.message()), (Code::DataLoss, "the last page is missing"));
    }
    let charge = |amount_cents| ChargeRequest { account: String::new(), amount_cents };
    let two = || tokio_stream::iter(vec![charge(1), charge(2)]);
    let refused = client(&gateway).await.charge_all(keyed("k-2", two())).await.unwrap_err();
    assert_eq!((refused.code(), slug(&refused).as_str()), (Code::Unimplemented, "not-one-message"));
    assert_eq!((bank.charges(), gateway.records().await.len()), (1, 1), "nothing was claimed or sent");
    assert_eq!(client(&gateway).await.charge_all(two()).await.unwrap().get_ref().amount_cents, 3);
}

#[tokio::test]
async fn methods_are_routes_and_a_key_can_be_asked_of_one_of_them() {
    let bank = Bank::start().await;
    let config = r#"
[[route]]
name = "charge"
match = { path = "/payments.v1.Payments/Charge" }
key = { missing = "required" }
in_flight = { wait = "0s" }
"#;
    let gateway = bank.before(config).start().await;
    let unkeyed = ChargeRequest { account: "acc".into(), amount_cents: 1 };
    let refused = client(&gateway).await.charge(unkeyed.clone()).await.unwrap_err();
    assert_eq!((refused.code(), slug(&refused).as_str()), (Code::InvalidArgument, "missing-key"));
    client(&gateway).await.charge_and_follow(unkeyed).await.unwrap();
    assert_eq!(bank.charges(), 1);

    bank.arrived.notified().await;
    let mut first = client(&gateway).await;
    let first = tokio::spawn(async move { first.charge(call("k-1", "gate", 1)).await });
    soon("the first call", bank.arrived.notified()).await;
    let second = client(&gateway).await.charge(call("k-1", "gate", 1)).await.unwrap_err();
    assert_eq!((second.code(), slug(&second).as_str()), (Code::Aborted, "in-flight"));
    let pushback = second.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
    assert!(pushback.parse::<u64>().unwrap() > 0);
    bank.gate.open();
    first.await.unwrap().unwrap();
    assert_eq!(gateway.records().await[0]["route"], "charge");
}

#[tokio::test]
async fn what_the_proxy_says_itself_is_a_status_of_grpc() {
    let gone = nobody().await;
    let routes = |address: SocketAddr| {
        format!(
            "[[route]]\nname = \"charge\"\nmatch = {{ path = \"/payments.v1.Payments/Charge\" }}\nupstream = \"bank\"\n\
             [[upstream]]\nname = \"other\"\nurl = \"http://{address}\"\n"
        )
    };
    let gateway = before(gone, &routes(gone)).start().await;
    // The layer's own refusal, and the transport's for a call without a key.
    let unreachable = client(&gateway).await.charge(call("k-1", "acc", 1)).await.unwrap_err();
    assert_eq!((unreachable.code(), slug(&unreachable).as_str()), (Code::Unavailable, "upstream-unreachable"));
    let unkeyed = Request::new(ChargeRequest::default());
    let unreachable = client(&gateway).await.charge(unkeyed).await.unwrap_err();
    assert_eq!((unreachable.code(), slug(&unreachable).as_str()), (Code::Unavailable, "upstream-unreachable"));
    assert!(gateway.records().await.is_empty(), "the key is free");
    let nowhere = client(&gateway).await.charge_and_follow(ChargeRequest::default()).await.unwrap_err();
    assert_eq!((nowhere.code(), slug(&nowhere).as_str()), (Code::Unimplemented, "no-route"));
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_told_so_and_recorded_when_it_ends() {
    let bank = Bank::start().await;
    let gateway = bank.before("[defaults]\ntimeout = \"300ms\"\nin_flight = { wait = \"300ms\" }\n").start().await;
    let late = client(&gateway).await.charge(call("k-1", "gate", 1)).await.unwrap_err();
    assert_eq!((late.code(), slug(&late).as_str()), (Code::DeadlineExceeded, "upstream-timeout"));
    bank.gate.open();
    super::support::until("the late answer", async || gateway.records().await[0]["state"] == "completed").await;
    assert!(is_replay(client(&gateway).await.charge(call("k-1", "gate", 1)).await.unwrap().metadata()));
    assert_eq!(bank.charges(), 1);
}

#[tokio::test]
async fn a_process_that_dies_after_the_dispatch_leaves_the_outcome_of_a_call_unknown() {
    let bank = Bank::start().await;
    let mut gateway = bank.before("").failpoint("complete.begin:hit=1:abort").start().await;
    client(&gateway).await.charge(call("k-1", "acc", 1)).await.unwrap_err();
    gateway.ended().await;
    let gateway = gateway.restart().await;
    let unknown = client(&gateway).await.charge(call("k-1", "acc", 1)).await.unwrap_err();
    assert_eq!((unknown.code(), slug(&unknown).as_str()), (Code::FailedPrecondition, "outcome-unknown"));
    assert_eq!(unknown.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
    assert_eq!(bank.charges(), 1);
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_unavailable_and_says_when_to_come_back() {
    let bank = Bank::start().await;
    let start = bank.before("[store]\ndeadline = \"50ms\"\n").failpoint("store.insert:hit=1+:pause");
    let gateway = start.start().await;
    let refused = client(&gateway).await.charge(call("k-1", "acc", 1)).await.unwrap_err();
    assert_eq!((refused.code(), slug(&refused).as_str()), (Code::Unavailable, "store-unavailable"));
    // Drawn from the first five seconds, as `Retry-After` is.
    let pushback: u64 = refused.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!([1_000, 2_000, 3_000, 4_000, 5_000].contains(&pushback), "{pushback}");
    assert_eq!(bank.charges(), 0);
}

#[tokio::test]
async fn shadow_mode_reads_a_call_as_protection_would() {
    let bank = Bank::start().await;
    let gateway = bank.before("[defaults]\nmode = \"observe\"\n").start().await;
    let mut client = client(&gateway).await;
    let would = async |would: &str| {
        let name = format!("onceward_observed_total{{route=\"default\",would=\"{would}\"}} ");
        let metrics = gateway.metrics().await;
        metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse::<usize>().unwrap())
    };
    // ABORTED is released, so the second of these would have run too.
    let calls =
        [("recorded", "acc", 1, 0), ("recorded", "acc", 1, 1), ("k-2", "status 10", 2, 1), ("k-2", "status 10", 3, 1)];
    for (key, account, executed, replayed) in calls {
        let answer = client.charge(call(key, account, 1)).await;
        assert!(!answer.map_or_else(|status| is_replay(status.metadata()), |response| is_replay(response.metadata())));
        super::support::until("what it would have been", async || {
            let running = gateway.records().await.iter().any(|record| record["state"] == "in_flight");
            !running && (would("executed").await, would("replayed").await) == (executed, replayed)
        })
        .await;
    }
    assert_eq!((bank.charges(), gateway.records().await.len()), (4, 1), "all of them were forwarded");
}

#[tokio::test]
async fn who_is_not_let_in_is_told_so_in_grpc() {
    let bank = Bank::start().await;
    let door =
        Upstream::start(|_, _| vec![answer(401, &[("WWW-Authenticate", "Bearer")], "who are you?").into()]).await;
    let config = format!("[defaults]\nauth = {{ url = \"http://{}/check\" }}\n", door.address);
    let gateway = bank.before(&config).start().await;
    let refused = client(&gateway).await.charge(call("k-1", "acc", 1)).await.unwrap_err();
    assert_eq!((refused.code(), bank.charges()), (Code::Unauthenticated, 0));
    assert_eq!(refused.metadata().get("www-authenticate").unwrap(), "Bearer");
}
