//! Fingerprint rules that change while keys live: a record is compared under the rules it was made with, in this process
//! and in the next one, for as long as the store keeps them.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use onceward::{
    Body, BoxError, Engine, Layer, Limits, Route, Routes, RuleSet, Rules, Secret, Step,
    store::{RULES_MAX, Store, memory::Memory},
};
use tower::{Layer as _, ServiceExt, service_fn};

fn strip(fields: &[&str]) -> Rules {
    let strip = fields.iter().map(|field| (*field).to_owned()).collect();
    Rules::compile(&RuleSet { strip, ..RuleSet::default() }).unwrap()
}

fn routes(rules: Rules) -> Routes {
    let mut route = Route::new("default");
    route.fingerprint = rules;
    Routes::new(vec![], route)
}

fn process(store: &Arc<dyn Store>, rules: Rules) -> Engine {
    let secret = Secret::from_bytes([7; 32]);
    Engine::new(Arc::clone(store), secret, routes(rules), Limits::default(), Engine::new_session())
}

/// Sends a request under the key `k`; its status, whether it was a replay, and the fields that a refusal names.
async fn sent(engine: &Engine, calls: &Arc<AtomicUsize>, body: Bytes) -> (u16, bool, String) {
    let calls = Arc::clone(calls);
    let inner = service_fn(move |request: Request<Body>| {
        let calls = Arc::clone(&calls);
        async move {
            request.into_body().collect().await?;
            calls.fetch_add(1, Ordering::SeqCst);
            Ok::<_, BoxError>(Response::new(Body::full("done".into())))
        }
    });
    let request =
        Request::post("/v1/payments").header("content-type", "application/json").header("idempotency-key", "k");
    let service = Layer::new(engine.clone()).layer(inner);
    let response = service.oneshot(request.body(Body::full(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let problem: serde_json::Value =
        serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
    (parts.status.as_u16(), parts.headers.contains_key("idempotent-replayed"), problem["fields"].to_string())
}

fn small(amount: u32, at: u32) -> Bytes {
    format!("{{\"amount\":{amount},\"at\":{at}}}").into()
}

/// Over 256 KiB, so that it waits on disk.
fn large(amount: u32, at: u32) -> Bytes {
    format!("{{\"amount\":{amount},\"at\":{at},\"text\":\"{}\"}}", "x".repeat(300 << 10)).into()
}

/// Over 1 MiB, so that it is hashed as it is.
fn huge(amount: u32, at: u32) -> Bytes {
    format!("{{\"amount\":{amount},\"at\":{at},\"text\":\"{}\"}}", "x".repeat(1100 << 10)).into()
}

#[tokio::test]
async fn a_record_is_compared_under_the_rules_it_was_made_with() {
    for body in [small, large] {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let calls = Arc::new(AtomicUsize::new(0));
        let first = process(&store, strip(&["/at"]));
        assert_eq!(sent(&first, &calls, body(1, 1)).await.0, 200);
        // The next process has other rules, and learns the old ones from the store; the first changes its own.
        let next = process(&store, strip(&[]));
        first.reconfigure(routes(strip(&["/amount"])), Limits::default());
        for engine in [&next, &first] {
            let (status, replayed, _) = sent(engine, &calls, body(1, 2)).await;
            assert_eq!((status, replayed), (200, true), "what did not count then does not count now");
            let (status, _, fields) = sent(engine, &calls, body(2, 1)).await;
            assert_eq!(status, 422, "what counted then counts now");
            assert!(fields == "[\"/amount\"]" || fields == "[]", "{fields}");
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_body_without_a_canonical_form_is_hashed_again_as_it_is() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let calls = Arc::new(AtomicUsize::new(0));
    assert_eq!(sent(&process(&store, strip(&["/at"])), &calls, huge(1, 1)).await.0, 200);
    let next = process(&store, strip(&["/amount"]));
    assert!(sent(&next, &calls, huge(1, 1)).await.1);
    assert_eq!(sent(&next, &calls, huge(2, 1)).await.0, 422);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn where_the_rules_are_gone_the_key_decides() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let calls = Arc::new(AtomicUsize::new(0));
    assert_eq!(sent(&process(&store, strip(&["/at"])), &calls, small(1, 1)).await.0, 200);
    for later in 0..u32::try_from(RULES_MAX).unwrap() {
        store.keep_rules(later, "{}").await.unwrap();
    }
    let (status, replayed, _) = sent(&process(&store, strip(&[])), &calls, small(2, 2)).await;
    assert_eq!((status, replayed), (200, true));
}

#[tokio::test]
async fn a_takeover_goes_on_under_the_rules_of_the_first_request() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let unknown = service_fn(|_: Request<Body>| async { Err::<Response<Body>, BoxError>("broken off".into()) });
    let request =
        Request::post("/v1/payments").header("content-type", "application/json").header("idempotency-key", "k");
    let first = Layer::new(process(&store, strip(&["/at"]))).layer(unknown);
    assert_eq!(first.oneshot(request.body(Body::full(small(1, 1))).unwrap()).await.unwrap().status(), 502);

    let next = process(&store, strip(&[]));
    let mut retried = Route::new("default");
    retried.fingerprint = strip(&[]);
    retried.policy = Arc::new(onceward::Policy { on_unknown: vec![Step::Retry], ..onceward::Policy::default() });
    next.reconfigure(Routes::new(vec![], retried), Limits::default());
    let calls = Arc::new(AtomicUsize::new(0));
    assert_eq!(sent(&next, &calls, small(2, 1)).await.0, 422, "another request takes nothing over");
    assert_eq!(sent(&next, &calls, small(1, 2)).await.0, 200);
    let (status, replayed, _) = sent(&next, &calls, small(1, 3)).await;
    assert_eq!((status, replayed), (200, true));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
