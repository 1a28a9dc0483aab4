//! Whose key it is, where a token says it: refreshed, forged and broken ones, and cookies that say two things.

use super::support::{Answer, Gate, Gateway, Start, Step, Upstream, answer, bearer, charged, request, until};

const ALICE: &str = r#"{"iss":"https://id.test","sub":"alice","exp":1}"#;

fn ask(key: &str, credential: &str) -> Vec<u8> {
    request("POST", "/pay", &[("Idempotency-Key", key), ("Authorization", credential)], "{}")
}

/// A refusal without what names this one request.
fn told(answer: &Answer) -> serde_json::Value {
    let mut problem = answer.json();
    problem["instance"] = "".into();
    problem
}

async fn resolve(gateway: &Gateway, how: &str) {
    let records = gateway.records().await;
    let record = records.iter().find(|record| record["state"] == "unknown").expect("an unknown outcome");
    let path = format!("/records/{}/resolve", record["record_id"].as_str().unwrap());
    let token = format!("Bearer {}", gateway.token());
    let body = format!("{{\"as\":\"{how}\"}}");
    let settled = gateway.admin("POST", &path, &[("Authorization", &token)], &body).await;
    assert_eq!(settled.status, 200, "{}", settled.text());
}

/// Goal: whoever has another token of the same subject learns nothing, not even how far the key is. Method: in each
/// state, the same words.
#[tokio::test]
async fn another_token_of_the_same_subject_is_told_one_and_the_same_in_whatever_state() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.key() {
        "in-flight" => vec![Step::Until(held.clone()), charged(before).into()],
        "completed" => vec![charged(before).into()],
        _ => vec![Step::Close],
    })
    .await;
    let config = "[defaults]\non_unknown = [\"hold\"]\n[[route]]\nname = \"retried\"\nmatch = { path = \"/retried\" }\non_unknown = [\"retry\"]\n";
    let gateway = Start::before(&upstream).config(config).start().await;
    let (first, other) = (bearer(ALICE, "one"), bearer(ALICE, "two"));
    let mut running = gateway.connect().await;
    running.send(ask("in-flight", &first)).await;
    upstream.reached("in-flight", 1).await;
    assert_eq!(gateway.ask(ask("completed", &first)).await.status, 201);
    for (key, how) in [("failed", "failed"), ("not-executed", "not-executed"), ("executed", "executed")] {
        assert_eq!(gateway.ask(ask(key, &first)).await.status, 502);
        resolve(&gateway, how).await;
    }
    assert_eq!(gateway.ask(ask("unknown", &first)).await.status, 502);
    let effects = upstream.received().len();
    let mut words = Vec::new();
    for key in ["in-flight", "completed", "failed", "not-executed", "executed", "unknown"] {
        let refused = gateway.ask(ask(key, &other)).await;
        assert_eq!((refused.status, refused.slug().as_str()), (409, "principal-changed"), "{key}");
        let another_request =
            request("POST", "/pay", &[("Idempotency-Key", key), ("Authorization", &other)], "{\"a\":1}");
        words.extend([told(&refused), told(&gateway.ask(another_request).await)]);
    }
    let retried =
        |token: &str| request("POST", "/retried", &[("Idempotency-Key", "r"), ("Authorization", token)], "{}");
    assert_eq!(gateway.ask(retried(&first)).await.status, 502);
    words.push(told(&gateway.ask(retried(&other)).await));
    assert!(words.iter().all(|said| *said == words[0]), "{words:?}");
    assert_eq!(upstream.received().len(), effects + 1, "nothing was run for the other token");
    gate.open();
    assert_eq!(running.answer().await.status, 201);
    assert!(gateway.ask(ask("in-flight", &first)).await.is_replay());
}

#[tokio::test]
async fn a_jwt_counts_by_its_issuer_subject_and_client_and_by_nothing_else() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let client = r#"{"iss":"https://id.test","client_id":"billing"}"#;
    for claims in [ALICE, client] {
        assert_eq!(gateway.ask(ask("k-1", &bearer(claims, "s"))).await.status, 201, "{claims}");
    }
    let same = [
        r#"{"exp":2,"iat":1,"sub":"alice","iss":"https://id.test"}"#,
        r#"{ "iss" : "https:\/\/id.test", "sub": "\u0061lice", "scope": "pay" }"#,
    ];
    for claims in same {
        let refused = gateway.ask(ask("k-1", &bearer(claims, "s"))).await;
        assert_eq!(refused.slug(), "principal-changed", "the same caller by another token: {claims}");
    }
    let others = [
        r#"{"iss":"https://id.test","sub":"bob"}"#,
        r#"{"iss":"https://other.test","sub":"alice"}"#,
        r#"{"sub":"alice"}"#,
        r#"{"iss":"https://id.test","sub":"alice","client_id":"billing"}"#,
        r#"{"iss":"https://id.test","sub":["alice"]}"#,
        r#"{"iss":"https://id.test","sub":"alice\"},{\"sub\":\"x"}"#,
    ];
    for claims in others {
        let ask = ask("k-1", &bearer(claims, "s"));
        assert_eq!(gateway.ask(&ask).await.status, 201, "another caller: {claims}");
        assert!(gateway.ask(&ask).await.is_replay(), "{claims}");
    }
    assert_eq!(upstream.effects("k-1"), 8);
}

#[tokio::test]
async fn a_token_that_is_no_jwt_is_its_own_caller() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let deep = format!("{{\"sub\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let long = format!("{{\"iss\":\"i\",\"sub\":\"alice\",\"pad\":\"{}\"}}", "x".repeat(20_000));
    let tokens = [
        "Bearer a.b.c".to_owned(),
        "Bearer ..".to_owned(),
        "Bearer one.two".to_owned(),
        "Bearer a.b.c.d.e".to_owned(),
        "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9".to_owned(),
        bearer("not json", "s"),
        bearer("[{\"sub\":\"alice\"}]", "s"),
        bearer("{\"iss\":\"https://id.test\"}", "s"),
        bearer("{\"sub\":null}", "s"),
        bearer("{\"sub\":1e400}", "s"),
        bearer(&deep, "s"),
        bearer("{\"sub\":\"alice\"", "s"),
        format!("{}=", bearer(ALICE, "s").replace(".s", "=.s")),
    ];
    for token in &tokens {
        assert_eq!(gateway.ask(ask("k-1", token)).await.status, 201, "{token}");
        assert!(gateway.ask(ask("k-1", token)).await.is_replay(), "{token}");
        let other = gateway.ask(ask("k-1", &format!("{token}x"))).await;
        assert_eq!((other.status, other.is_replay()), (201, false), "another token, another caller: {token}");
    }
    assert_eq!(gateway.ask(ask("k-1", &bearer(&long, "s"))).await.status, 201, "a long one is one all the same");
    assert_eq!(gateway.ask(ask("k-1", &bearer(&long, "t"))).await.slug(), "principal-changed");
    for line in ["Authorization: Bearer caf\u{e9}", "Authorization: Bearer a\r\nAuthorization: Bearer b"] {
        let ask =
            format!("POST /pay HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k-2\r\n{line}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(gateway.ask(ask).await.slug(), "no-principal", "{line}");
    }
    assert!(!gateway.log().contains("panicked"));
}

#[tokio::test]
async fn a_forged_token_cannot_block_a_key_with_a_bad_request() {
    let upstream = Upstream::start(|received, before| {
        let forged = received.header("authorization").is_some_and(|token| token.ends_with("forged"));
        let status = match (received.target.as_str(), forged) {
            ("/400", true) => 400,
            ("/404", true) => 404,
            ("/401", true) => 401,
            _ => 201,
        };
        vec![answer(status, &[], format!("{before}")).into()]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    let at = |path: &str, credential: &str| {
        request("POST", path, &[("Idempotency-Key", path), ("Authorization", credential)], "{}")
    };
    for (path, status) in [("/400", 400), ("/404", 404), ("/401", 401)] {
        assert_eq!(gateway.ask(at(path, &bearer(ALICE, "forged"))).await.status, status);
        let honest = gateway.ask(at(path, &bearer(ALICE, "honest"))).await;
        assert_eq!((honest.status, honest.is_replay()), (201, false), "{path}");
    }
    // Of a credential that names nobody else, a bad request is an answer like any other.
    let opaque = at("/400", "Bearer opaque-forged");
    assert_eq!(gateway.ask(&opaque).await.status, 400);
    assert!(gateway.ask(&opaque).await.is_replay());
}

#[tokio::test]
async fn a_cookie_that_stands_twice_with_two_values_names_nobody() {
    let upstream = Upstream::charging().await;
    let config = "[defaults]\nscope = { principal = [\"cookie:session\"] }\n";
    let gateway = Start::before(&upstream).config(config).start().await;
    let by = |cookie| request("POST", "/pay", &[("Idempotency-Key", "k-1"), ("Cookie", cookie)], "{}");
    for cookie in ["session=1; session=2", "session=; session=1", "a=b", "Session=1", "session"] {
        assert_eq!(gateway.ask(by(cookie)).await.slug(), "no-principal", "{cookie}");
    }
    assert_eq!(upstream.received().len(), 0);
    assert_eq!(gateway.ask(by("session=1; theme=dark; session=1")).await.status, 201);
    until("a replay", async || gateway.ask(by("session=1")).await.is_replay()).await;
}
