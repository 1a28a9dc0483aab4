//! After a change of what record ids are made of, a key's record is found under its earlier id, and no request runs twice
//! for it.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use onceward::{
    Before, Body, BoxError, Engine, Layer, Limits, Policy, Route, Routes, Secret, Step,
    pattern::Pattern,
    store::{Store, memory::Memory},
};
use onceward_core::record::Micros;
use tower::{Layer as _, ServiceExt, service_fn};

const OLD: [u8; 32] = [7; 32];
const NEW: [u8; 32] = [8; 32];

fn routes(name: &str) -> Routes {
    let mut route = Route::new(name);
    route.path = Some(Pattern::parse("/v1/payments").unwrap());
    route.policy = Arc::new(Policy { on_unknown: vec![Step::Retry], ..Policy::default() });
    Routes::new(vec![route], Route::new("default"))
}

/// A process whose keys belong to the route `name`, under `secret`.
fn process(store: &Arc<dyn Store>, name: &str, secret: [u8; 32]) -> Engine {
    Engine::new(Arc::clone(store), Secret::from_bytes(secret), routes(name), Limits::default(), Engine::new_session())
}

/// The same after the change, which looks for records of the process before.
fn next_process(store: &Arc<dyn Store>) -> Engine {
    let engine = process(store, "charge", NEW);
    let until = Micros(u64::MAX);
    engine.look_under(vec![Before { routes: routes("pay"), secret: Secret::from_bytes(OLD), until }]);
    engine
}

#[derive(Clone, Default)]
struct Api {
    calls: Arc<AtomicUsize>,
}

impl Api {
    async fn post(&self, engine: &Engine, key: &str, body: &str, says: &'static str) -> (StatusCode, String, bool) {
        let this = self.clone();
        let inner = service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                request.into_body().collect().await?;
                let call = this.calls.fetch_add(1, Ordering::SeqCst) + 1;
                if says == "break" {
                    return Err::<Response<Body>, BoxError>("broken off".into());
                }
                let mut response = Response::new(Body::full(format!("charge {call}").into()));
                response.headers_mut().insert("idempotency-outcome", says.parse()?);
                Ok(response)
            }
        });
        let request = Request::post("/v1/payments").header("idempotency-key", key);
        let service = Layer::new(engine.clone()).layer(inner);
        let response = service.oneshot(request.body(Body::full(body.to_owned().into())).unwrap()).await.unwrap();
        let replayed = response.headers().contains_key("idempotent-replayed");
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap(), replayed)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_record_of_before_is_replayed_and_compared_whatever_its_secret() {
    let (store, api): (Arc<dyn Store>, _) = (Arc::new(Memory::default()), Api::default());
    api.post(&process(&store, "pay", OLD), "k", "one", "record").await;
    let next = next_process(&store);
    let (status, body, replayed) = api.post(&next, "k", "one", "record").await;
    assert_eq!((status.as_u16(), body.as_str(), replayed), (200, "charge 1", true));
    assert_eq!(api.post(&next, "k", "two", "record").await.0, 422);
    let (_, _, replayed) = api.post(&next, "fresh", "one", "record").await;
    assert!(!replayed);
    assert!(api.post(&next, "fresh", "one", "record").await.2);
    assert_eq!(api.calls(), 2);
    // Whoever looks for the record of a key finds both.
    assert_eq!(next.record_ids("k", "default", "pay", None).unwrap().len(), 2);
}

#[tokio::test]
async fn an_unknown_outcome_of_before_is_taken_over_where_it_stands() {
    let (store, api): (Arc<dyn Store>, _) = (Arc::new(Memory::default()), Api::default());
    assert_eq!(api.post(&process(&store, "pay", OLD), "k", "one", "break").await.0, 502);
    let next = next_process(&store);
    assert_eq!(api.post(&next, "k", "other", "record").await.0, 422, "another request takes nothing over");
    assert_eq!(api.post(&next, "k", "one", "record").await.1, "charge 2");
    let (_, body, replayed) = api.post(&next, "k", "one", "record").await;
    assert_eq!((body.as_str(), replayed), ("charge 2", true));
    assert_eq!(api.calls(), 2);
}

#[tokio::test]
async fn a_key_that_is_released_under_its_earlier_id_is_claimed_under_the_present_one() {
    let (store, api): (Arc<dyn Store>, _) = (Arc::new(Memory::default()), Api::default());
    let first = process(&store, "pay", OLD);
    api.post(&first, "k", "one", "record").await;
    let old = first.record_id("k", "default", "pay", None).unwrap();
    let read = store.get(old).await.unwrap().record.unwrap();
    let expect = onceward_core::cas::Expect::Seen(read.stored.fence, read.stored.revision);
    store.remove(old, expect).await.unwrap();

    let next = next_process(&store);
    assert_eq!(api.post(&next, "k", "one", "record").await.1, "charge 2");
    assert!(store.get(old).await.unwrap().record.is_none(), "nothing is inserted under an earlier id");
    let present = next.record_id("k", "default", "charge", None).unwrap();
    assert!(store.get(present).await.unwrap().record.is_some());
}

#[tokio::test]
async fn what_no_record_is_left_of_is_looked_under_no_longer() {
    let (store, api): (Arc<dyn Store>, _) = (Arc::new(Memory::default()), Api::default());
    api.post(&process(&store, "pay", OLD), "k", "one", "record").await;
    let next = process(&store, "charge", NEW);
    let until = Micros(1);
    next.look_under(vec![Before { routes: routes("pay"), secret: Secret::from_bytes(OLD), until }]);
    assert!(api.post(&next, "k", "one", "record").await.2);
    next.settle_unattended().await.unwrap();
    assert!(!api.post(&next, "k", "one", "record").await.2);
}
