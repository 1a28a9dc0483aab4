//! Stripe's "Idempotent requests" (API v1) and what its SDKs read, under `record.preset = "stripe"`.

use serde_json::Value;

use super::support::{Answer, Gate, Gateway, Start, Step, Upstream, answer, basic, request};

/// As an API of Stripe's kind would be put behind the proxy: one route, errors for other parameters as 400.
const CONFIG: &str = r#"
[[route]]
name = "v1"
match = { path = "/v1/{*rest}" }
record = { preset = "stripe" }
mismatch_status = 400
in_flight = { wait = "0s" }
"#;

/// Answers with the status in the form's `status`, and says how often it was run.
async fn api() -> (Upstream, Gateway) {
    let upstream = Upstream::start(|received, before| {
        let body = String::from_utf8_lossy(&received.body).into_owned();
        let status = body.split('&').find_map(|pair| pair.strip_prefix("status=")).map_or(200, |s| s.parse().unwrap());
        vec![answer(status, &[("Content-Type", "application/json")], format!("{{\"run\":{before}}}")).into()]
    })
    .await;
    let gateway = Start::before(&upstream).config(CONFIG).start().await;
    (upstream, gateway)
}

/// A request as the SDKs send it: form-encoded, with Basic credentials and a bare key.
fn sent(method: &str, path: &str, key: &str, form: &str) -> Vec<u8> {
    let secret = basic("sk_test_1234", "");
    let headers =
        [("Idempotency-Key", key), ("Authorization", &secret), ("Content-Type", "application/x-www-form-urlencoded")];
    request(method, path, &headers, form)
}

async fn create(gateway: &Gateway, key: &str, form: &str) -> Answer {
    gateway.ask(sent("POST", "/v1/customers", key, form)).await
}

#[tokio::test]
async fn the_status_and_body_of_the_first_request_are_returned_again_including_500_errors() {
    let (upstream, gateway) = api().await;
    for status in [200, 402, 500] {
        let (key, form) = (format!("KG5LxwFBepaKHyUD-{status}"), format!("description=My First&status={status}"));
        let first = create(&gateway, &key, &form).await;
        assert_eq!((first.status, first.header("idempotent-replayed")), (status, None));
        let again = create(&gateway, &key, &form).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (status, Some("true")));
        assert_eq!(again.body, first.body);
        let said = (status >= 400).then_some("false");
        assert_eq!(again.header("stripe-should-retry"), said, "an SDK stops at a replayed error");
        assert_eq!(upstream.effects(&key), 1);
    }
}

#[tokio::test]
async fn parameters_that_differ_from_the_first_requests_are_an_error() {
    let (upstream, gateway) = api().await;
    create(&gateway, "k", "amount=2000&currency=usd").await;
    assert_eq!(create(&gateway, "k", "currency=usd&amount=2000").await.status, 200, "the same in another order");
    let other = create(&gateway, "k", "amount=3000&currency=usd").await;
    assert_eq!((other.status, other.slug().as_str()), (400, "key-reused"));
    assert_eq!(other.header("stripe-should-retry"), Some("false"));
    // "Keys for idempotent requests can only be used for the same endpoint they were first used for."
    let elsewhere = gateway.ask(sent("POST", "/v1/charges", "k", "amount=2000&currency=usd")).await;
    assert_eq!((elsewhere.status, elsewhere.slug().as_str()), (400, "key-reused"));
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn what_failed_validation_or_was_refused_before_the_endpoint_ran_is_not_saved() {
    let (upstream, gateway) = api().await;
    for status in [400, 401, 403, 404, 409, 429] {
        let (key, form) = (format!("k-{status}"), format!("status={status}"));
        create(&gateway, &key, &form).await;
        assert!(!create(&gateway, &key, &form).await.is_replay(), "{status}");
        assert_eq!(upstream.effects(&key), 2, "{status}: the retry runs");
    }
}

#[tokio::test]
async fn a_request_that_conflicts_with_one_that_runs_is_409_and_may_be_retried() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, _| vec![Step::Until(held.clone()), answer(200, &[], "{}").into()]).await;
    let gateway = Start::before(&upstream).config(CONFIG).start().await;
    let mut first = gateway.connect().await;
    first.send(sent("POST", "/v1/customers", "k", "a=1")).await;
    upstream.reached("k", 1).await;
    let conflict = create(&gateway, "k", "a=1").await;
    assert_eq!((conflict.status, conflict.header("stripe-should-retry")), (409, Some("true")));
    gate.open();
    assert_eq!(first.answer().await.status, 200);
    assert!(create(&gateway, "k", "a=1").await.is_replay());
}

#[tokio::test]
async fn keys_have_up_to_255_characters_and_are_kept_for_24_hours() {
    let (upstream, gateway) = api().await;
    assert_eq!(create(&gateway, &"k".repeat(255), "a=1").await.status, 200);
    assert_eq!(create(&gateway, &"k".repeat(256), "a=1").await.status, 400);
    assert_eq!(upstream.received().len(), 1);
    let record: &Value = &gateway.records().await[0];
    let time = |name: &str| record[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let hours = time("expires_at").duration_since(time("completed_at")).as_secs_f64() / 3600.0;
    assert!((hours - 24.0).abs() < 0.01, "{hours}");
}

#[tokio::test]
async fn all_posts_take_keys_and_they_have_no_effect_on_get_and_delete() {
    let (upstream, gateway) = api().await;
    for (method, runs) in [("POST", 1), ("GET", 2), ("DELETE", 2)] {
        for _ in 0..2 {
            gateway.ask(sent(method, "/v1/customers/cus_1", method, "")).await;
        }
        assert_eq!(upstream.effects(method), runs, "{method}");
    }
}
