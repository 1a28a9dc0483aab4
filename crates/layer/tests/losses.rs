//! A store that loses records and says so: what becomes of new keys, and of those that are still there.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use onceward::{
    Body, BoxError, Engine, Layer, Limits, Route, Routes, Secret,
    pattern::Pattern,
    store::{
        Answer, Cache, Filter, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write,
        memory::Memory,
    },
};
use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence},
};
use tokio::time::{Instant, advance};
use tower::{Layer as _, ServiceExt, service_fn};

const QUARANTINE: Duration = Duration::from_secs(1200);

/// The reference store as one in a cache is: the step that meets a loss is refused, and from then on it is known.
#[derive(Debug, Default)]
struct Forgetful {
    memory: Memory,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    unmet: bool,
    lost: Option<Instant>,
}

impl Forgetful {
    /// As a restart from a snapshot does: some records may be gone, and these are not.
    fn restart(&self) {
        self.state.lock().unwrap().unmet = true;
    }

    /// A step, unless it meets a loss.
    fn step(&self) -> Result<Memory, StoreError> {
        let mut state = self.state.lock().unwrap();
        if std::mem::take(&mut state.unmet) {
            state.lost = Some(Instant::now());
            return Err(StoreError::not_applied(Kind::Incarnation));
        }
        Ok(self.memory.clone())
    }
}

impl Store for Forgetful {
    fn kind(&self) -> &'static str {
        "forgetful"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(async move { self.step()?.insert(id, facts, lease).await })
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(async move { self.step()?.replace(id, write).await })
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(async move { self.step()?.extend(id, holder, lease).await })
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(async move { self.step()?.remove(id, expect).await })
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(async move { self.step()?.get(id).await })
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        self.memory.scan(after, limit, filter)
    }

    fn sweep(&self, limit: usize) -> Answer<'_, Swept> {
        self.memory.sweep(limit)
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.memory.watch(id)
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        self.memory.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        self.memory.rules(policy)
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.memory.usage(tenant)
    }

    fn stats(&self) -> Stats {
        let lost_ago = self.state.lock().unwrap().lost.map(|at| at.elapsed());
        Stats { cache: Some(Cache { lost_ago, ..Cache::default() }), ..self.memory.stats() }
    }
}

/// A route that goes on after a loss, and one that does not.
struct Shop {
    store: Arc<Forgetful>,
    engine: Engine,
    calls: Arc<AtomicUsize>,
}

impl Shop {
    fn new() -> Self {
        let store = Arc::new(Forgetful::default());
        let mut careful = Route::new("careful");
        careful.path = Some(Pattern::parse("/careful").unwrap());
        careful.quarantine = Some(QUARANTINE);
        let routes = Routes::new(vec![careful], Route::new("default"));
        let secret = Secret::from_bytes([7; 32]);
        let engine = Engine::new(store.clone(), secret, routes, Limits::default(), Engine::new_session());
        Self { store, engine, calls: Arc::default() }
    }

    /// Its status, whether it was a replay, and when to come back.
    async fn post(&self, path: &str, key: &str) -> (u16, bool, Option<u64>) {
        let calls = Arc::clone(&self.calls);
        let inner = service_fn(move |_: Request<Body>| {
            calls.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, BoxError>(Response::new(Body::full("done".into()))) }
        });
        let request = Request::post(path).header("idempotency-key", key).body(Body::empty()).unwrap();
        let response = Layer::new(self.engine.clone()).layer(inner).oneshot(request).await.unwrap();
        let after = response.headers().get("retry-after").map(|after| after.to_str().unwrap().parse().unwrap());
        (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"), after)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_a_loss_is_served_where_the_route_goes_on() {
    let shop = Shop::new();
    shop.store.restart();
    assert_eq!(shop.post("/open", "k-1").await, (200, false, None));
    shop.store.restart();
    assert_eq!(shop.post("/open", "k-1").await, (200, true, None), "what is there is answered");
    assert_eq!(shop.post("/open", "k-2").await, (200, false, None));
    assert_eq!(shop.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn in_quarantine_new_keys_are_refused_for_its_time_and_what_is_there_is_answered() {
    let shop = Shop::new();
    assert_eq!(shop.post("/careful", "k-1").await, (200, false, None));
    shop.store.restart();
    // Whoever finds the loss is refused, too.
    assert_eq!(shop.post("/careful", "k-2").await, (503, false, Some(1200)));
    assert_eq!(shop.post("/careful", "k-2").await, (503, false, Some(1200)));
    assert_eq!(shop.post("/careful", "k-1").await, (200, true, None));
    assert_eq!(shop.post("/open", "k-2").await, (200, false, None), "another route goes on");
    advance(Duration::from_secs(1000)).await;
    assert_eq!(shop.post("/careful", "k-2").await, (503, false, Some(200)));
    advance(Duration::from_secs(200)).await;
    assert_eq!(shop.post("/careful", "k-2").await, (200, false, None));
    shop.store.restart();
    assert_eq!(shop.post("/careful", "k-1").await, (200, true, None), "whoever finds one and is there is answered");
    assert_eq!(shop.post("/careful", "k-3").await, (503, false, Some(1200)));
    assert_eq!(shop.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_recorded_over_a_loss_of_others() {
    let shop = Shop::new();
    let store = Arc::clone(&shop.store);
    let inner = service_fn(move |_: Request<Body>| {
        store.restart();
        async { Ok::<_, BoxError>(Response::new(Body::full("done".into()))) }
    });
    let request = Request::post("/open").header("idempotency-key", "k-1").body(Body::empty()).unwrap();
    let response = Layer::new(shop.engine.clone()).layer(inner).oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(shop.post("/open", "k-1").await, (200, true, None));
    assert_eq!(shop.calls(), 0);
}
