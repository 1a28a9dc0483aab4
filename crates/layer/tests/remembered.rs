//! What this process remembers of settled keys, and shows while the store does not answer.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use onceward::{
    Body, Engine, Layer, Limits, Outage, Policy, Route, Routes, Secret,
    store::{Filter, Store, memory::Memory},
};
use onceward_core::{
    record::Micros,
    transition::{self, Forget, Write},
};
use tokio::time::advance;
use tower::{Layer as _, ServiceExt, service_fn};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An engine over a memory store that can be made not to answer, before a service that counts its calls.
struct Rig {
    engine: Engine,
    memory: Memory,
    calls: Arc<AtomicUsize>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    replayed: bool,
    mark: String,
    body: String,
}

impl Rig {
    fn new(policy: Policy) -> Self {
        Self::within(policy, Limits::default())
    }

    fn within(policy: Policy, limits: Limits) -> Self {
        let mut route = Route::new("default");
        route.policy = Arc::new(policy);
        let memory = Memory::default();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let secret = Secret::from_bytes([7; 32]);
        let engine = Engine::new(store, secret, Routes::new(vec![], route), limits, Engine::new_session());
        Self { engine, memory, calls: Arc::default() }
    }

    async fn ask(&self, key: &str, caller: &str, body: &'static str) -> Answer {
        let calls = Arc::clone(&self.calls);
        let inner = service_fn(move |_: Request<Body>| {
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            let response = Response::builder().status(201).body(Body::full(format!("charge {call}").into())).unwrap();
            async move { Ok::<_, Infallible>(response) }
        });
        let request = Request::post("/pay")
            .header("idempotency-key", key)
            .header("authorization", format!("Bearer {caller}"))
            .header("content-type", "application/json")
            .body(Body::full(body.into()))
            .unwrap();
        let response = Layer::new(self.engine.clone()).layer(inner).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            replayed: header("idempotent-replayed").is_some(),
            mark: header("idempotency-status").unwrap_or_default(),
            body: String::from_utf8(body.into()).unwrap(),
        }
    }

    async fn pay(&self, key: &str) -> Answer {
        self.ask(key, "me", "{}").await
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// From here on the store does not answer, or does again.
    fn is_out(&self, out: bool) {
        self.memory.set_replica(out);
    }

    /// As an operator does through this process.
    async fn forget(&self, how: Forget) {
        let page = self.engine.store().scan(None, 10, Filter::default()).await.unwrap();
        for (id, record) in page.records {
            let done = match transition::forget(&record, how, false, "asked to", DAY, page.now).unwrap() {
                Write::Remove(expect) => self.engine.store().remove(id, expect).await,
                Write::Replace(write) => self.engine.store().replace(id, &write).await,
            };
            done.unwrap();
        }
    }
}

impl Answer {
    fn is_refused(&self, status: u16, slug: &str) -> bool {
        self.status == status && !self.replayed && self.body.contains(&format!("problem:{slug}"))
    }

    fn is_remembered(&self, body: &str) -> bool {
        *self == Self { status: 201, replayed: true, mark: "remembered".into(), body: body.into() }
    }
}

fn bypassing() -> Policy {
    Policy { on_store_outage: Outage::Bypass, ..Policy::default() }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_leaves_what_this_process_remembers() {
    for policy in [Policy::default(), bypassing()] {
        let denies = policy.on_store_outage == Outage::Deny;
        let rig = Rig::new(policy);
        assert_eq!(rig.pay("executed").await.status, 201);
        rig.is_out(true);
        assert!(rig.pay("executed").await.is_remembered("charge 1"));
        let fresh = rig.pay("fresh").await;
        if denies {
            assert!(fresh.is_refused(503, "store-unavailable"), "{fresh:?}");
        } else {
            assert_eq!((fresh.status, fresh.mark.as_str()), (201, "bypassed"));
        }
        rig.is_out(false);
        let replay = rig.pay("executed").await;
        assert_eq!((replay.replayed, replay.mark.as_str()), (true, ""), "the store says so");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_for_the_same_caller_and_the_same_request() {
    let rig = Rig::new(bypassing());
    rig.pay("k").await;
    rig.is_out(true);
    assert!(rig.ask("k", "me", "{\"other\":1}").await.is_refused(422, "key-reused"));
    let other = rig.ask("k", "somebody else", "{}").await;
    assert_eq!((other.status, other.mark.as_str(), other.body.as_str()), (201, "bypassed", "charge 2"));
    assert!(rig.pay("k").await.is_remembered("charge 1"));
    assert_eq!(rig.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_replay_is_remembered_too_and_one_that_another_process_recorded() {
    let rig = Rig::new(Policy::default());
    rig.pay("k").await;
    // Another process on the same store, that has only replayed it.
    let store: Arc<dyn Store> = Arc::new(rig.memory.clone());
    let routes = Routes::new(vec![], Route::new("default"));
    let secret = Secret::from_bytes([7; 32]);
    let engine = Engine::new(store, secret, routes, Limits::default(), Engine::new_session());
    let other = Rig { engine, memory: rig.memory.clone(), calls: Arc::default() };
    rig.is_out(true);
    assert!(other.pay("k").await.is_refused(503, "store-unavailable"), "it has not seen it");
    rig.is_out(false);
    assert!(other.pay("k").await.replayed);
    rig.is_out(true);
    assert!(other.pay("k").await.is_remembered("charge 1"));
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_or_erased_is_not_shown_from_memory() {
    for how in [Forget::Reuse, Forget::Erase] {
        let rig = Rig::new(Policy::default());
        rig.pay("k").await;
        assert!(rig.pay("k").await.replayed);
        rig.forget(how).await;
        rig.is_out(true);
        let again = rig.pay("k").await;
        assert!(again.is_refused(503, "store-unavailable"), "{how:?}: {again:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_did_to_a_key_is_known_once_the_store_has_said_so() {
    // As another process does, past this one.
    let rig = Rig::new(Policy::default());
    rig.pay("k").await;
    let page = rig.memory.scan(None, 10, Filter::default()).await.unwrap();
    let (id, record) = page.records.into_iter().next().unwrap();
    let Ok(Write::Replace(write)) = transition::forget(&record, Forget::Erase, false, "asked to", DAY, Micros(1))
    else {
        panic!("erasing replaces")
    };
    rig.memory.replace(id, &write).await.unwrap();
    assert!(rig.pay("k").await.is_refused(410, "key-gone"));
    rig.is_out(true);
    assert!(rig.pay("k").await.is_refused(503, "store-unavailable"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_no_has_answered_and_nothing_is_shown_in_its_place() {
    for policy in [Policy::default(), bypassing()] {
        let rig = Rig::new(policy);
        rig.pay("k").await;
        let page = rig.memory.scan(None, 10, Filter::default()).await.unwrap();
        let (id, _) = page.records.into_iter().next().unwrap();
        rig.memory.damage(&id);
        assert!(rig.pay("k").await.is_refused(503, "store-unavailable"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_remembered_ends_with_its_record_and_its_body_and_when_nobody_has_confirmed_it() {
    let minute = Duration::from_secs(60);
    let rig = Rig::new(Policy { retention: 3 * minute, retention_body: Some(minute), ..Policy::default() });
    rig.pay("k").await;
    rig.is_out(true);
    advance(minute / 2).await;
    assert!(rig.pay("k").await.is_remembered("charge 1"));
    advance(minute / 2).await;
    assert!(rig.pay("k").await.is_refused(409, "response-not-kept"), "the body has ended");
    advance(2 * minute).await;
    assert!(rig.pay("k").await.is_refused(503, "store-unavailable"), "all of it has");
    let rig = Rig::new(Policy::default());
    rig.pay("k").await;
    rig.is_out(true);
    advance(10 * minute).await;
    assert!(rig.pay("k").await.is_refused(503, "store-unavailable"));
}

#[tokio::test]
async fn nothing_is_remembered_without_room_for_it() {
    let rig = Rig::within(Policy::default(), Limits { replay_cache_bytes: 0, ..Limits::default() });
    rig.pay("k").await;
    assert!(rig.pay("k").await.replayed);
    rig.is_out(true);
    assert!(rig.pay("k").await.is_refused(503, "store-unavailable"));
    // A reload may give it room, and take it back.
    rig.is_out(false);
    let routes = || Routes::new(vec![], Route::new("default"));
    rig.engine.reconfigure(routes(), Limits::default());
    assert!(rig.pay("k").await.replayed);
    rig.is_out(true);
    assert!(rig.pay("k").await.is_remembered("charge 1"));
    rig.engine.reconfigure(routes(), Limits { replay_cache_bytes: 0, ..Limits::default() });
    assert!(rig.pay("k").await.is_refused(503, "store-unavailable"));
}
