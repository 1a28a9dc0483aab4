//! What comes once a store answers again that did not: counted on a clock of the test's own.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use onceward::{
    Body, Engine, Layer, Limits, Route, Routes, Secret,
    store::{Store, memory::Memory},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower::{Layer as _, ServiceExt as _, service_fn};

const RATE: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Rig {
    engine: Engine,
    /// When the service was called.
    calls: Arc<Mutex<Vec<Instant>>>,
}

impl Rig {
    /// A client that comes again when it is told to, until it has its answer.
    async fn operation(self, number: u32) {
        loop {
            let calls = Arc::clone(&self.calls);
            let inner = service_fn(move |_: Request<Body>| {
                calls.lock().unwrap().push(Instant::now());
                async { Ok::<_, Infallible>(Response::new(Body::empty())) }
            });
            let request = Request::post("/pay").header("idempotency-key", format!("operation-{number}"));
            let request = request.body(Body::full("{}".into())).unwrap();
            let answer = Layer::new(self.engine.clone()).layer(inner).oneshot(request).await.unwrap();
            if answer.status() == 200 {
                return;
            }
            assert_eq!(answer.status(), 503);
            let after = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            sleep(Duration::from_secs(after)).await;
        }
    }
}

/// The most calls in any second.
fn most(calls: &[Instant]) -> usize {
    let within = |(index, from): (usize, &Instant)| calls.partition_point(|at| *at < *from + SECOND) - index;
    calls.iter().enumerate().map(within).max().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn once_the_store_answers_again_the_service_is_called_a_fifth_more_often_than_before_at_most() {
    for seconds in [1, 3, 10] {
        let memory = Memory::default();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let routes = Routes::new(vec![], Route::new("default"));
        let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
        let rig = Rig { engine, calls: Arc::default() };
        let (began, mut clients) = (Instant::now(), JoinSet::new());
        let stop = began + BEFORE;
        let back = stop + SECOND * seconds;
        let operations = u32::try_from((back + AFTER - began).as_secs()).unwrap() * RATE;
        for number in 0..operations {
            sleep_until(began + SECOND / RATE * number).await;
            memory.set_replica((stop..back).contains(&Instant::now()));
            clients.spawn(rig.clone().operation(number));
        }
        clients.join_all().await;
        let calls = rig.calls.lock().unwrap().clone();
        assert_eq!(calls.len(), usize::try_from(operations).unwrap(), "each took effect once");
        let (before, after): (Vec<Instant>, Vec<Instant>) = calls.iter().partition(|at| **at < back);
        let (before, after, first) = (most(&before), most(&after), after[0] - back);
        assert!(first < SECOND, "after {seconds} s it took {first:?} until anything went on");
        assert!(after * 5 <= before * 6, "after {seconds} s: {after} in a second, and {before} before");
        assert!(Instant::now() < back + AFTER * 2, "somebody is refused for ever");
    }
}
