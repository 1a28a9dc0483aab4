//! What is recorded, what is released, and what stays unknown: the presets, their overrides, and the upstream's word.

use serde_json::json;

use super::support::{Answer, Gateway, Received, Start, Step, Upstream, answer, metric, request, store_name, until};

/// What the repetition of a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Recorded,
    Released,
    Unknown,
}
use Next::{Recorded, Released, Unknown};

/// Answers `/ROUTE/STATUS` with that status, and with the headers that stand in the request's body.
fn as_asked(received: &Received, before: usize) -> Vec<Step> {
    let status = received.target.rsplit('/').next().unwrap().parse().unwrap();
    let asked: Vec<(String, String)> = serde_json::from_slice(&received.body).unwrap();
    let mut headers: Vec<(&str, &str)> = asked.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let before = before.to_string();
    headers.push(("X-Before", &before));
    vec![answer(status, &headers, "body").into()]
}

/// Sends a request twice, with a key of its own, and tells what the second met.
async fn twice(gateway: &Gateway, upstream: &Upstream, path: &str, headers: &[(&str, &str)]) -> (Answer, Answer, Next) {
    let key = format!("{}-{}", path.replace('/', "-"), upstream.received().len());
    let ask = request("POST", path, &[("Idempotency-Key", &key)], json!(headers).to_string());
    let first = gateway.ask(&ask).await;
    let status: u16 = path.rsplit('/').next().unwrap().parse().unwrap();
    assert_eq!((first.status, first.is_replay()), (status, false), "{path}: {first:?}");
    assert_eq!(first.header("x-before"), Some("0"), "the first answer goes to the client as it was sent");
    let second = gateway.ask(&ask).await;
    let next = match upstream.effects(&key) {
        2 => Released,
        1 if second.is_replay() => {
            assert_eq!(second.essence(), first.essence(), "{path}");
            Recorded
        }
        1 => {
            assert_eq!((second.status, second.slug().as_str()), (409, "outcome-unknown"), "{path}: {second:?}");
            Unknown
        }
        more => panic!("{path}: {more} effects"),
    };
    assert_eq!(first.header("idempotency-expires").is_some(), next == Recorded, "{path}: {first:?}");
    (first, second, next)
}

// contract: route.record.preset
#[tokio::test]
async fn each_preset_is_the_table_of_the_contract_over_the_wire() {
    let upstream = Upstream::start(as_asked).await;
    let mut config = String::new();
    for preset in ["safe", "rollback", "success", "stripe"] {
        config.push_str(&format!(
            "[[route]]\nname = \"{preset}\"\nmatch = {{ path = \"/{preset}/{{status}}\" }}\nrecord = {{ preset = \"{preset}\" }}\n"
        ));
    }
    let gateway = Start::before(&upstream).config(&config).start().await;
    let released = [401, 403, 405, 407, 408, 413, 415, 421, 425, 429];
    for status in released {
        for preset in ["safe", "rollback"] {
            let (_, _, next) = twice(&gateway, &upstream, &format!("/{preset}/{status}"), &[]).await;
            assert_eq!(next, Released, "{preset} {status}");
        }
    }
    let retry = [("Retry-After", "1")];
    let none: [(&str, &str); 0] = [];
    for (path, headers, want) in [
        ("/safe/200", none.as_slice(), Recorded),
        ("/safe/302", &none, Recorded),
        ("/safe/400", &none, Recorded),
        ("/safe/404", &none, Recorded),
        ("/safe/422", &none, Recorded),
        ("/safe/409", &none, Recorded),
        ("/safe/409", &retry, Released),
        ("/safe/500", &none, Recorded),
        ("/safe/501", &none, Recorded),
        ("/safe/502", &none, Unknown),
        ("/safe/503", &none, Unknown),
        ("/safe/503", &retry, Released),
        ("/safe/504", &none, Unknown),
        ("/safe/599", &none, Unknown),
        ("/rollback/500", &none, Released),
        ("/rollback/501", &none, Recorded),
        ("/success/201", &none, Recorded),
        ("/success/302", &none, Released),
        ("/success/400", &none, Released),
        ("/success/500", &none, Released),
        ("/success/503", &none, Released),
        ("/stripe/402", &none, Recorded),
        ("/stripe/500", &none, Recorded),
        ("/stripe/502", &none, Recorded),
        ("/stripe/503", &retry, Recorded),
        ("/stripe/504", &none, Recorded),
        ("/stripe/400", &none, Released),
        ("/stripe/404", &none, Released),
        ("/stripe/409", &none, Released),
        ("/stripe/429", &none, Released),
    ] {
        let (first, second, next) = twice(&gateway, &upstream, path, headers).await;
        assert_eq!(next, want, "{path} {headers:?}");
        if path.starts_with("/stripe/") && next == Recorded {
            assert_eq!(first.header("stripe-should-retry"), None, "the upstream's own answer");
            assert_eq!(second.header("stripe-should-retry"), Some("false"), "{path}: a replayed error");
        }
    }
    let refused = gateway.ask(request("POST", "/stripe/200", &[("Idempotency-Key", "bad\x01")], "[]")).await;
    assert!(refused.status == 400, "{refused:?}");
    let refused = gateway.ask(request("POST", "/stripe/200", &[("Idempotency-Key", "a, b")], "[]")).await;
    assert_eq!((refused.status, refused.header("stripe-should-retry")), (400, Some("false")));
}

// contract: route.record.record, route.record.release, route.record.unknown, route.record.release_when
#[tokio::test]
async fn statuses_and_predicates_of_a_route_win_over_its_preset() {
    let upstream = Upstream::start(as_asked).await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[defaults]
record = { record = [429], release = [422], unknown = [500], release_when = [{ status = 503, header = "x-envoy-overloaded" }, { status = 502, header = "x-lb", value = "busy" }] }
"#,
        )
        .start()
        .await;
    let none: [(&str, &str); 0] = [];
    for (path, headers, want) in [
        ("/r/429", none.as_slice(), Recorded),
        ("/r/422", &none, Released),
        ("/r/500", &none, Unknown),
        ("/r/503", &[("X-Envoy-Overloaded", "true")], Released),
        ("/r/503", &none, Unknown),
        ("/r/502", &[("X-LB", "busy")], Released),
        ("/r/502", &[("X-LB", "broken")], Unknown),
    ] {
        let (_, _, next) = twice(&gateway, &upstream, path, headers).await;
        assert_eq!(next, want, "{path} {headers:?}");
    }
}

#[tokio::test]
async fn the_upstreams_word_wins_and_no_client_sees_it() {
    let upstream = Upstream::start(as_asked).await;
    let gateway = Start::before(&upstream).start().await;
    for (path, word, want) in [
        ("/r/502", "record", Recorded),
        ("/r/200", "release", Released),
        ("/r/429", "record; retention=3600", Recorded),
        ("/r/503", "fail", Recorded),
        ("/r/200", "nonsense", Recorded),
    ] {
        let (first, second, next) = twice(&gateway, &upstream, path, &[("Idempotency-Outcome", word)]).await;
        assert_eq!(next, want, "{path} {word}");
        assert_eq!((first.header("idempotency-outcome"), second.header("idempotency-outcome")), (None, None));
    }
    let records = gateway.records().await;
    let states: Vec<&str> = records.iter().map(|record| record["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["completed", "completed", "failed", "completed"]);
    let hours = |n: usize| -> f64 {
        let time = |name: &str| records[n][name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        time("expires_at").duration_since(time("completed_at")).as_secs_f64() / 3600.0
    };
    assert!((hours(0) - 24.0).abs() < 0.01 && (hours(1) - 1.0).abs() < 0.01, "{} {}", hours(0), hours(1));
}

#[tokio::test]
async fn a_key_is_new_again_after_its_retention() {
    let upstream = Upstream::start(as_asked).await;
    let gateway = Start::before(&upstream).start().await;
    let headers = [("Idempotency-Outcome", "record; retention=1")];
    let ask = request("POST", "/r/200", &[("Idempotency-Key", "k-1")], json!(headers).to_string());
    assert_eq!(gateway.ask(&ask).await.header("x-before"), Some("0"));
    until("the end of the retention", async || gateway.ask(&ask).await.header("x-before") == Some("1")).await;
    assert_eq!(upstream.effects("k-1"), 2);
}

// contract: another-token-of-the-same-subject
// contract: route.retention_body, recorded-without-its-body
#[tokio::test]
async fn the_fact_of_an_answer_outlives_its_body() {
    let upstream = Upstream::start(as_asked).await;
    let start = Start::before(&upstream).config("[defaults]\nretention_body = \"1s\"\n");
    let gateway = start.start().await;
    let ask = request("POST", "/r/201", &[("Idempotency-Key", "k-1")], "[]");
    assert_eq!(gateway.ask(&ask).await.status, 201);
    let not_kept = async |gateway: &Gateway| {
        let again = gateway.ask(&ask).await;
        assert!(again.is_replay() || again.slug() == "response-not-kept", "{again:?}");
        !again.is_replay() && again.json()["recorded_status"] == 201 && again.status == 409
    };
    until("the end of the body", async || not_kept(&gateway).await).await;
    let id = gateway.records().await[0]["record_id"].as_str().unwrap().to_owned();
    let token = format!("Bearer {}", gateway.token());
    let headers = [("Authorization", token.as_str())];
    let shown = gateway.admin("GET", &format!("/records/{id}/outcome"), &headers, "").await.json();
    assert_eq!((&shown["status"], &shown["body"], &shown["body_kept"]), (&json!(201), &json!(""), &json!(false)));
    assert!(not_kept(&gateway.restart().await).await, "nor after a restart");
    assert_eq!(upstream.effects("k-1"), 1);
}

#[tokio::test]
async fn a_bad_request_of_an_unverified_subject_does_not_block_the_key() {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let upstream = Upstream::start(as_asked).await;
    let gateway = Start::before(&upstream).start().await;
    let token = |signature: &str| {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iss":"https://id.test","sub":"u-7"}"#);
        format!("Bearer eyJhbGciOiJub25lIn0.{claims}.{signature}")
    };
    let ask = |status: u16, key: &str, token: &str| {
        let headers = [("Idempotency-Key", key), ("Authorization", token)];
        request("POST", &format!("/r/{status}"), &headers, "[]")
    };
    for status in [400, 404] {
        let key = format!("k-{status}");
        gateway.ask(ask(status, &key, &token("forged"))).await;
        gateway.ask(ask(status, &key, &token("true"))).await;
        assert_eq!(upstream.effects(&key), 2, "{status} is released");
    }
    let first = gateway.ask(ask(200, "k-1", &token("one"))).await;
    assert_eq!(first.status, 200);
    let refreshed = gateway.ask(ask(200, "k-1", &token("two"))).await;
    assert_eq!((refreshed.status, refreshed.slug().as_str()), (409, "principal-changed"));
    assert!(gateway.ask(ask(200, "k-1", &token("one"))).await.is_replay());
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: store-unavailable, store.breaker.failures, store.breaker.open
#[tokio::test]
async fn a_store_that_does_not_answer_is_asked_no_more_until_one_call_finds_it_well() {
    let upstream = Upstream::charging().await;
    let breaker = "[store]\ndeadline = \"50ms\"\nbreaker = { failures = 2, open = \"1h\" }\n";
    let gateway = Start::before(&upstream).config(breaker).failpoint("store.insert:hit=1+:pause").start().await;
    // A claim is tried three times: the circuit opens within the first request.
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "store-unavailable");
    let circuit = format!("onceward_circuit_state{{store=\"{}\"}}", store_name());
    let open = async || metric(&gateway.metrics().await, &circuit) >= 2.0;
    until("the open circuit", open).await;
    let told = gateway.post("/pay", "k-2", "{}").await;
    assert_eq!((told.status, told.slug().as_str()), (503, "store-unavailable"));
    assert!(told.header("retry-after").is_some(), "{told:?}");
    gateway.says("calls fail at once").await;
    assert!(upstream.received().is_empty(), "nothing is sent without a claim");
}
