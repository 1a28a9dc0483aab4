//! draft-ietf-httpapi-idempotency-key-header-07.

use super::support::{Gate, Gateway, Start, Step, Upstream, answer, basic, charged, post, request};

/// The key of the draft's examples, as they spell it.
const UUID: &str = "\"8e03978e-40d5-43e8-bc93-6894a57f9324\"";
/// The one of its section 6 that no UUID is.
const RANDOM: &str = "\"clkyoesmbgybucifusbbtdsbohtyuuwz\"";
const DOCS: &str = "https://developer.example.com/idempotency";

/// A documented operation that requires a key, and tells a concurrent repetition at once.
async fn documented(upstream: &Upstream) -> Gateway {
    let config =
        format!("[defaults]\nkey = {{ missing = \"required\", docs = \"{DOCS}\" }}\nin_flight = {{ wait = \"0s\" }}\n");
    Start::before(upstream).config(&config).start().await
}

#[tokio::test]
async fn section_2_1_a_key_is_a_string_of_structured_fields_and_there_is_one() {
    let upstream = Upstream::charging().await;
    let gateway =
        Start::before(&upstream).config("[defaults]\nkey = { missing = \"required\", strict = true }\n").start().await;
    assert_eq!(gateway.post("/pay", UUID, "{}").await.status, 201);
    assert_eq!(upstream.last().header("idempotency-key"), Some(UUID), "as the client spelled it");
    assert!(gateway.post("/pay", UUID, "{}").await.is_replay());
    // Items of other types, and what is no item at all.
    for no_string in
        ["8e03978e-40d5-43e8-bc93-6894a57f9324", "42", "?1", ":aGVsbG8=:", "\"open", "\"a\";p=1", "\"\"", "\"\u{e9}\""]
    {
        let refused = gateway.post("/pay", no_string, "{}").await;
        assert_eq!((refused.status, refused.slug().as_str()), (400, "invalid-key"), "{no_string}");
    }
    let two = [("Idempotency-Key", UUID), ("Idempotency-Key", RANDOM)];
    let refused = gateway.ask(request("POST", "/pay", &two, "{}")).await;
    assert_eq!((refused.status, refused.slug().as_str()), (400, "conflicting-keys"));
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn section_2_2_a_key_is_not_reused_with_another_payload() {
    let upstream = Upstream::charging().await;
    let gateway = documented(&upstream).await;
    assert_eq!(gateway.post("/pay", UUID, "{\"amount\":1}").await.status, 201);
    assert_eq!(gateway.post("/pay", UUID, "{\"amount\":2}").await.status, 422);
    assert_eq!(gateway.post("/pay", RANDOM, "{\"amount\":2}").await.status, 201, "another key is another operation");
    assert_eq!(upstream.received().len(), 2);
}

#[tokio::test]
async fn section_2_3_the_expiry_of_a_key_is_published_with_its_answer() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config("[defaults]\nretention = \"48h\"\n").start().await;
    let answer = gateway.post("/pay", UUID, "{}").await;
    let expires = jiff::fmt::rfc2822::parse(answer.header("idempotency-expires").expect("it is told")).unwrap();
    let date = jiff::fmt::rfc2822::parse(answer.header("date").unwrap()).unwrap();
    let hours = expires.timestamp().duration_since(date.timestamp()).as_secs_f64() / 3600.0;
    assert!((hours - 48.0).abs() < 0.1, "{hours}");
}

#[tokio::test]
async fn section_2_4_a_fingerprint_is_of_the_whole_payload_or_of_selected_elements() {
    let upstream = Upstream::charging().await;
    let config =
        "[[route]]\nname = \"selected\"\nmatch = { path = \"/selected\" }\nfingerprint = { keep = [\"/amount\"] }\n";
    let gateway = Start::before(&upstream).config(config).start().await;
    for (path, other_note) in [("/whole", 422), ("/selected", 201)] {
        gateway.post(path, UUID, "{\"amount\":1,\"note\":\"a\"}").await;
        assert_eq!(gateway.post(path, UUID, "{\"amount\":1,\"note\":\"b\"}").await.status, other_note, "{path}");
        assert_eq!(gateway.post(path, UUID, "{\"amount\":2,\"note\":\"a\"}").await.status, 422, "{path}");
    }
}

#[tokio::test]
async fn section_2_6_first_time_retry_and_concurrent_requests() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.target.as_str() {
        "/slow" => vec![Step::Until(held.clone()), charged(before).into()],
        "/fails" => vec![answer(404, &[("Content-Type", "text/plain")], "no such account").into()],
        _ => vec![charged(before).into()],
    })
    .await;
    let gateway = documented(&upstream).await;
    // First time: processed normally.
    let first = gateway.post("/pay", UUID, "{}").await;
    assert_eq!((first.status, first.is_replay()), (201, false));
    // Retry: the result of the completed operation, success or error.
    let retry = gateway.post("/pay", UUID, "{}").await;
    assert!(retry.is_replay() && retry.essence() == first.essence());
    let failed = gateway.post("/fails", UUID, "{}").await;
    let retry = gateway.post("/fails", UUID, "{}").await;
    assert!(failed.status == 404 && retry.is_replay() && retry.essence() == failed.essence());
    // Concurrent: a conflict.
    let mut slow = gateway.connect().await;
    slow.send(post("/slow", UUID, "{}")).await;
    upstream.reached(UUID.trim_matches('"'), 3).await;
    assert_eq!(gateway.post("/slow", UUID, "{}").await.status, 409);
    gate.open();
    assert_eq!(slow.answer().await.status, 201);
    assert_eq!(upstream.received().len(), 3);
}

#[tokio::test]
async fn section_2_7_each_error_scenario_has_its_status_a_problem_and_a_link() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(held.clone()), charged(before).into()]).await;
    let gateway = documented(&upstream).await;
    let missing = gateway.ask(request("POST", "/pay", &[], "{}")).await;
    let mut first = gateway.connect().await;
    first.send(post("/pay", UUID, "{\"amount\":1}")).await;
    upstream.reached(UUID.trim_matches('"'), 1).await;
    let outstanding = gateway.post("/pay", UUID, "{\"amount\":1}").await;
    gate.open();
    assert_eq!(first.answer().await.status, 201);
    let reused = gateway.post("/pay", UUID, "{\"amount\":2}").await;
    for (told, status, slug) in
        [(missing, 400, "missing-key"), (reused, 422, "key-reused"), (outstanding, 409, "in-flight")]
    {
        assert_eq!((told.status, told.slug().as_str()), (status, slug));
        assert_eq!(told.header("link"), Some(format!("<{DOCS}>; rel=\"describedby\"").as_str()), "{slug}");
    }
}

#[tokio::test]
async fn section_5_a_key_is_validated_first_and_counts_with_its_caller_only() {
    let upstream = Upstream::charging().await;
    let gateway = documented(&upstream).await;
    let injected = gateway.post("/pay", "\"x\"} OR 1=1 --", "{}").await;
    assert_eq!((injected.status, injected.slug().as_str()), (400, "invalid-key"));
    let callers = [basic("alice", "a"), basic("mallory", "m")];
    for caller in &callers {
        let headers = [("Idempotency-Key", "1"), ("Authorization", caller)];
        let answer = gateway.ask(request("POST", "/pay", &headers, "{}")).await;
        assert_eq!((answer.status, answer.is_replay()), (201, false), "a key that is easily guessed leaks nothing");
    }
}

#[tokio::test]
async fn section_6_both_example_keys_are_taken() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    for key in [UUID, RANDOM] {
        assert_eq!(gateway.post("/pay", key, "{}").await.status, 201);
        assert!(gateway.post("/pay", key, "{}").await.is_replay());
    }
    assert_eq!(upstream.received().len(), 2);
}
