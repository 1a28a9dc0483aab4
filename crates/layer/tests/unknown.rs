//! Unknown outcomes whose holder still lives: several engines over one store, as several processes are.
#![expect(clippy::unwrap_used, reason = "a test's helper may stop at the first surprise")]

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, set_default_local_recorder,
};
use onceward::{
    Body, Engine, Layer, Limits, Policy, Probe, ProbeRules, ProbeUrl, Route, Routes, Secret, Step,
    ask::{Answer, Asking, Client},
    store::{
        Store,
        memory::{Bounds, Clock, Memory},
    },
};
use tokio::sync::{Notify, Semaphore};
use tower::{Layer as _, ServiceExt, service_fn};

/// Counts, and nothing else.
#[derive(Default)]
struct Counts(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Counts {
    fn settled(&self, by: &str) -> u64 {
        let name = format!("onceward_unknown_outcomes_total route=default settled_by={by}");
        self.0.lock().unwrap().get(&name).map_or(0, |count| count.load(Ordering::SeqCst))
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<String> = key.labels().map(|label| format!(" {}={}", label.key(), label.value())).collect();
        let name = format!("{}{}", key.name(), labels.concat());
        Counter::from_arc(Arc::clone(self.0.lock().unwrap().entry(name).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Something that is called, and answers when the test lets it.
#[derive(Clone, Debug)]
struct Gated {
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    arrived: Arc<Notify>,
    status: StatusCode,
}

impl Gated {
    fn answering(status: StatusCode) -> Self {
        Self { calls: Arc::default(), gate: Arc::new(Semaphore::new(0)), arrived: Arc::default(), status }
    }

    fn open(&self) {
        self.gate.add_permits(1000);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn call(self) -> StatusCode {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.arrived.notify_one();
        self.gate.acquire().await.unwrap().forget();
        self.status
    }
}

impl Client for Gated {
    fn ask(&self, _question: Request<()>, _body_bytes_max: usize) -> Asking {
        let this = self.clone();
        Box::pin(async move {
            let status = this.call().await;
            Ok(Answer { status, headers: HeaderMap::new(), body: Some(Bytes::from_static(b"of the books")) })
        })
    }
}

/// One process: an engine of its own over the common store.
#[derive(Clone)]
struct Process {
    engine: Engine,
    upstream: Gated,
}

impl Process {
    fn over(memory: &Memory, on_unknown: &[Step], books: &Gated, upstream: &Gated) -> Self {
        let mut route = Route::new("default");
        route.policy = Arc::new(Policy { on_unknown: on_unknown.into(), ..Policy::default() });
        let mut rules = ProbeRules::new(ProbeUrl::parse("http://books.test/{record}").unwrap());
        (rules.executed, rules.not_executed) = (vec![200], vec![404]);
        route.probe = Some(Arc::new(Probe::new(Arc::new(books.clone()), rules)));
        let routes = Routes::new(vec![], route);
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
        Self { engine, upstream: upstream.clone() }
    }

    fn post(&self) -> tokio::task::JoinHandle<(u16, String, bool)> {
        let upstream = self.upstream.clone();
        let inner = service_fn(move |_request: Request<Body>| {
            let upstream = upstream.clone();
            async move {
                let mut response = Response::new(Body::full(Bytes::from_static(b"of the upstream")));
                *response.status_mut() = upstream.call().await;
                Ok::<_, Infallible>(response)
            }
        });
        let service = Layer::new(self.engine.clone()).layer(inner);
        let request = Request::post("/pay").header("idempotency-key", "k-1").body(Body::full("{}".into())).unwrap();
        tokio::spawn(async move {
            let (parts, body) = service.oneshot(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let replayed = parts.headers.contains_key("idempotent-replayed");
            (parts.status.as_u16(), String::from_utf8(body.to_vec()).unwrap(), replayed)
        })
    }
}

const PROBE: Step = Step::Probe { quiesce: Duration::ZERO, unattended: true };

/// A store whose clock the test moves.
fn store() -> (Memory, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(1_000_000));
    (Memory::new(Bounds::default(), Clock::Manual(Arc::clone(&clock))), clock)
}

/// More than a lease passes in the store, so that the holder's right is over, as after an outage, though it lives.
fn lose_the_lease(clock: &AtomicU64) {
    clock.fetch_add(11_000_000, Ordering::SeqCst);
}

#[tokio::test]
async fn an_answer_after_the_lease_settles_the_outcome_and_is_counted_as_late() {
    let counts = Counts::default();
    let _guard = set_default_local_recorder(&counts);
    let (memory, clock) = store();
    let (books, upstream) = (Gated::answering(StatusCode::OK), Gated::answering(StatusCode::CREATED));
    let process = Process::over(&memory, &[Step::Hold], &books, &upstream);
    let first = process.post();
    upstream.arrived.notified().await;
    lose_the_lease(&clock);
    upstream.open();
    assert_eq!(first.await.unwrap(), (201, "of the upstream".into(), false));
    assert_eq!((counts.settled("late"), counts.settled("policy")), (1, 0));
    assert!(process.post().await.unwrap().2);
}

#[tokio::test]
async fn what_still_runs_in_this_process_is_waited_for_and_not_probed() {
    let (memory, clock) = store();
    let (books, upstream) = (Gated::answering(StatusCode::NOT_FOUND), Gated::answering(StatusCode::CREATED));
    books.open();
    let process = Process::over(&memory, &[PROBE, Step::Fail], &books, &upstream);
    let first = process.post();
    upstream.arrived.notified().await;
    lose_the_lease(&clock);
    assert_eq!(process.engine.settle_unattended().await.unwrap(), 0);
    let second = process.post();
    let waits = async {
        while process.engine.waiting() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waits).await.expect("the second waits for the first");
    upstream.open();
    assert_eq!(first.await.unwrap(), (201, "of the upstream".into(), false));
    assert_eq!(second.await.unwrap(), (201, "of the upstream".into(), true));
    assert_eq!((upstream.calls(), books.calls()), (1, 0));
}

#[tokio::test]
async fn a_late_answer_beats_a_probe_that_found_the_contrary() {
    let counts = Counts::default();
    let _guard = set_default_local_recorder(&counts);
    for found in [StatusCode::OK, StatusCode::NOT_FOUND] {
        let (memory, clock) = store();
        let (books, upstream) = (Gated::answering(found), Gated::answering(StatusCode::CREATED));
        let holder = Process::over(&memory, &[PROBE], &books, &upstream);
        let other = Process::over(&memory, &[PROBE], &books, &upstream);
        let first = holder.post();
        upstream.arrived.notified().await;
        lose_the_lease(&clock);
        let (asks, looks) = (other.post(), {
            let engine = other.engine.clone();
            tokio::spawn(async move { engine.settle_unattended().await })
        });
        books.arrived.notified().await;
        upstream.open();
        assert_eq!(first.await.unwrap(), (201, "of the upstream".into(), false));
        books.open();
        assert_eq!(asks.await.unwrap(), (201, "of the upstream".into(), true), "{found}");
        assert_eq!(looks.await.unwrap().unwrap(), 0);
        assert_eq!((upstream.calls(), books.calls()), (1, 1), "a request and the worker share a question");
    }
    assert_eq!((counts.settled("late"), counts.settled("probe")), (2, 0));
}

#[tokio::test]
async fn a_probe_that_was_first_fences_the_late_answer() {
    let counts = Counts::default();
    let _guard = set_default_local_recorder(&counts);
    let (memory, clock) = store();
    let (books, upstream) = (Gated::answering(StatusCode::OK), Gated::answering(StatusCode::CREATED));
    books.open();
    let holder = Process::over(&memory, &[PROBE], &books, &upstream);
    let other = Process::over(&memory, &[PROBE], &books, &upstream);
    let first = holder.post();
    upstream.arrived.notified().await;
    lose_the_lease(&clock);
    assert_eq!(other.post().await.unwrap(), (200, "of the books".into(), true));
    upstream.open();
    let late = first.await.unwrap();
    assert_eq!(late, (200, "of the books".into(), true), "its own answer is not passed off as the key's");
    assert_eq!((counts.settled("probe"), counts.settled("late")), (1, 0));
}

#[tokio::test]
async fn an_attempt_in_doubt_settles_the_outcome_by_policy_once_it_is_answered() {
    let counts = Counts::default();
    let _guard = set_default_local_recorder(&counts);
    let (memory, _clock) = store();
    let books = Gated::answering(StatusCode::OK);
    let broken = Gated::answering(StatusCode::BAD_GATEWAY);
    let works = Gated::answering(StatusCode::CREATED);
    broken.open();
    works.open();
    assert_eq!(Process::over(&memory, &[Step::Hold], &books, &broken).post().await.unwrap().0, 502);
    let again = |upstream| Process::over(&memory, &[Step::Retry], &books, upstream).post();
    assert_eq!(again(&broken).await.unwrap().0, 502);
    assert_eq!(counts.settled("policy"), 0, "still nobody knows");
    assert_eq!(again(&works).await.unwrap(), (201, "of the upstream".into(), false));
    assert_eq!((counts.settled("policy"), counts.settled("late")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_recorded_is_told_no_more_once_others_may_have_run_the_key_again() {
    let (memory, clock) = store();
    let books = Gated::answering(StatusCode::OK);
    let (slow, quick) = (Gated::answering(StatusCode::CREATED), Gated::answering(StatusCode::OK));
    quick.open();
    let one = Process::over(&memory, &[Step::Retry], &books, &slow);
    let first = one.post();
    slow.arrived.notified().await;
    memory.set_replica(true);
    slow.open();
    assert_eq!(first.await.unwrap(), (201, "of the upstream".into(), false));
    assert_eq!(one.post().await.unwrap(), (201, "of the upstream".into(), true));
    lose_the_lease(&clock);
    tokio::time::advance(Policy::default().lease).await;
    // Its tries that are due by now fail, and the next one is later.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(one.post().await.unwrap().0, 503, "whose answer it is the store has to say");
    memory.set_replica(false);
    let other = Process::over(&memory, &[Step::Retry], &books, &quick);
    assert_eq!(other.post().await.unwrap(), (200, "of the upstream".into(), false));
    assert_eq!(one.post().await.unwrap(), (200, "of the upstream".into(), true), "the key's answer is the other one");
    assert_eq!((slow.calls(), quick.calls()), (1, 1));
}
