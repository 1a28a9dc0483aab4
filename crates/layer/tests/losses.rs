//! A store that loses records and says so: what becomes of new keys, and of those that are still there.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use onceward::{
    Body, Engine, Layer, Limits, Route, Routes, Secret,
    pattern::Pattern,
    store::{
        Answer, Cache, Filter, Insert, Kind, Loss, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write,
        memory::Memory,
    },
};
use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros},
};
use tokio::time::{Instant, advance};
use tower::{Layer as _, ServiceExt, service_fn};

const QUARANTINE: Duration = Duration::from_secs(1200);

/// The reference store as one in a cache is: the step that meets a loss is refused, and from then on it is known.
#[derive(Debug, Default)]
struct Forgetful(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    memory: Memory,
    unmet: bool,
    met_meanwhile: bool,
    lost: Option<Instant>,
}

impl Forgetful {
    /// As a restart from a snapshot does: some records may be gone, and these are not.
    fn restart(&self) {
        self.0.lock().unwrap().unmet = true;
    }

    /// As a flush does.
    fn lose(&self) {
        let mut state = self.0.lock().unwrap();
        state.unmet = true;
        state.memory.lose();
        state.memory = state.memory.reopen(256).unwrap();
    }

    /// While the next claim is made, somebody else meets a loss; the claim is of after it.
    fn meet_meanwhile(&self) {
        self.0.lock().unwrap().met_meanwhile = true;
    }

    fn meets_meanwhile(&self) {
        let mut state = self.0.lock().unwrap();
        if std::mem::take(&mut state.met_meanwhile) {
            state.lost = Some(Instant::now());
        }
    }

    fn memory(&self) -> Memory {
        self.0.lock().unwrap().memory.clone()
    }

    /// A step, unless it meets a loss.
    fn step(&self) -> Result<Memory, StoreError> {
        let mut state = self.0.lock().unwrap();
        if std::mem::take(&mut state.unmet) {
            state.lost = Some(Instant::now());
            return Err(StoreError::not_applied(Kind::Incarnation));
        }
        Ok(state.memory.clone())
    }
}

impl Store for Forgetful {
    fn kind(&self) -> &'static str {
        "forgetful"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(async move {
            let memory = self.step()?;
            self.meets_meanwhile();
            memory.insert(id, facts, lease).await
        })
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
        Box::pin(async move { self.memory().scan(after, limit, filter).await })
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        Box::pin(async move { self.memory().sweep(limit, waits).await })
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.memory().watch(id)
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.memory().keep_rules(policy, rules).await })
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        Box::pin(async move { self.memory().rules(policy).await })
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.memory().usage(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.0.lock().unwrap().lost.map(|at| at.elapsed())
    }

    fn stats(&self) -> Stats {
        // Whatever was claimed was claimed before.
        let last =
            self.lost_ago().map(|_| Loss { partitions: 256, from: Micros::ZERO, to: Micros(u64::MAX), why: "a test" });
        let last = last.into_iter().collect();
        Stats { cache: Some(Cache { last, ..Cache::default() }), ..self.memory().stats() }
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
        let engine = Self::engine(&store);
        Self { store, engine, calls: Arc::default() }
    }

    /// Another process of the same store.
    fn beside(&self) -> Self {
        Self { store: Arc::clone(&self.store), engine: Self::engine(&self.store), calls: Arc::default() }
    }

    fn engine(store: &Arc<Forgetful>) -> Engine {
        let mut careful = Route::new("careful");
        careful.path = Some(Pattern::parse("/careful").unwrap());
        careful.quarantine = Some(QUARANTINE);
        let routes = Routes::new(vec![careful], Route::new("default"));
        let secret = Secret::from_bytes([7; 32]);
        Engine::new(Arc::clone(store) as _, secret, routes, Limits::default(), Engine::new_session())
    }

    /// Its status, whether it was a replay, and when to come back.
    async fn post(&self, path: &str, key: &str) -> (u16, bool, Option<u64>) {
        let calls = Arc::clone(&self.calls);
        let inner = service_fn(move |_: Request<Body>| {
            calls.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, Infallible>(Response::new(Body::full("done".into()))) }
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
async fn a_claim_during_which_a_loss_is_noticed_is_freed_and_runs_nothing_in_quarantine() {
    let shop = Shop::new();
    shop.store.meet_meanwhile();
    assert_eq!(shop.post("/careful", "k-1").await, (503, false, Some(1200)));
    assert_eq!(shop.calls(), 0);
    shop.engine.drain(Duration::from_secs(60)).await;
    assert_eq!(shop.store.memory().stats().records, 0, "the claim is freed");
    shop.store.meet_meanwhile();
    assert_eq!(shop.post("/open", "k-2").await, (200, false, None), "a route that goes on has no time to keep");
}

/// What the client of a request gets during whose execution `meanwhile` happens.
async fn during(shop: &Shop, status: u16, meanwhile: impl Future<Output = ()> + Send + 'static) -> (u16, String) {
    let meanwhile = Arc::new(Mutex::new(Some(Box::pin(meanwhile))));
    let inner = service_fn(move |_: Request<Body>| {
        let meanwhile = meanwhile.lock().unwrap().take();
        async move {
            meanwhile.unwrap().await;
            Ok::<_, Infallible>(Response::builder().status(status).body(Body::full("first".into())).unwrap())
        }
    });
    let request = Request::post("/open").header("idempotency-key", "k-1").body(Body::empty()).unwrap();
    let response = Layer::new(shop.engine.clone()).layer(inner).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status.as_u16(), String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_recorded_where_the_store_lost_its_claim_while_it_ran() {
    let shop = Shop::new();
    let store = Arc::clone(&shop.store);
    let said = during(&shop, 200, async move { store.lose() }).await;
    assert_eq!(said, (200, "first".to_owned()));
    assert_eq!(shop.post("/open", "k-1").await, (200, true, None));
    assert_eq!(shop.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_claim_is_made_anew_when_its_lease_is_renewed_and_nobody_else_runs_the_key() {
    for status in [200, 429] {
        let shop = Shop::new();
        let other = Arc::new(shop.beside());
        let (store, elsewhere) = (Arc::clone(&shop.store), Arc::clone(&other));
        let said = during(&shop, status, async move {
            store.lose();
            // Over two renewals: one finds the loss, the next the lost claim.
            tokio::time::sleep(Duration::from_secs(8)).await;
            let waiting = tokio::time::timeout(Duration::from_secs(1), elsewhere.post("/open", "k-1"));
            assert!(waiting.await.is_err(), "it waits for the first");
        })
        .await;
        assert_eq!(said, (status, "first".to_owned()));
        // Released, it is new; else it is answered.
        assert_eq!(other.post("/open", "k-1").await, (200, status == 200, None));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_ran_a_lost_key_meanwhile_has_its_answer() {
    let shop = Shop::new();
    let other = shop.beside();
    let store = Arc::clone(&shop.store);
    let said = during(&shop, 200, async move {
        store.lose();
        assert_eq!(other.post("/open", "k-1").await, (200, false, None), "it is new to others");
    })
    .await;
    assert_eq!(said, (200, "done".to_owned()), "one key has one answer");
}
