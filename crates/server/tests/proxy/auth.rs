//! `auth`: credentials are checked before a claim and before a replay, by a service that may say no, say nothing, or
//! not be there.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::support::{Gate, Received, Start, Step, Upstream, answer, bearer, head, nobody, request, soon, until};

/// A service that lets on whom `is_good` says, and counts what it is asked.
async fn service(is_good: impl Fn(&Received) -> bool + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |asked, _| {
        let denied = [("WWW-Authenticate", "Bearer realm=\"api\""), ("Content-Type", "text/plain")];
        vec![if is_good(asked) { answer(204, &[], "") } else { answer(401, &denied, "who are you?") }.into()]
    })
    .await
}

fn authorized(asked: &Received) -> bool {
    asked.header("authorization") == Some("Bearer good")
}

fn with_auth(service: &Upstream, more: &str) -> String {
    format!("[defaults]\nauth = {{ url = \"http://{}/check?via=onceward\"{more} }}\n", service.address)
}

fn ask(key: &str, credential: &str) -> Vec<u8> {
    request("POST", "/pay", &[("Idempotency-Key", key), ("Authorization", credential)], "{}")
}

// contract: route.auth.url, route.auth.headers
#[tokio::test]
async fn a_revoked_credential_gets_no_replay_and_the_service_is_asked_as_nginx_asks() {
    let revoked = Arc::new(AtomicBool::new(false));
    let is_revoked = Arc::clone(&revoked);
    let service = service(move |asked| authorized(asked) && !is_revoked.load(Ordering::SeqCst)).await;
    let upstream = Upstream::charging().await;
    let config = with_auth(&service, ", cache = \"0s\", headers = [\"X-Device\"]");
    let gateway = Start::before(&upstream).config(&config).start().await;
    let pay = request(
        "POST",
        "/pay?for=tea",
        &[
            ("Idempotency-Key", "k-1"),
            ("Authorization", "Bearer good"),
            ("Cookie", "session=1"),
            ("X-Api-Key", "k"),
            ("X-Device", "d-1"),
            ("X-Secret", "not listed"),
            ("X-Original-URI", "/forged"),
            ("X-Original-Method", "GET"),
        ],
        "{\"amount\":5}",
    );
    assert_eq!(gateway.ask(&pay).await.status, 201);
    assert!(gateway.ask(&pay).await.is_replay());
    let asked = service.received();
    assert_eq!(asked.len(), 2, "before the claim, and before the replay");
    for asked in &asked {
        assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", "/check?via=onceward"));
        let sent: Vec<_> = ["authorization", "cookie", "x-api-key", "x-device", "x-original-method", "x-original-uri"]
            .iter()
            .map(|name| asked.all(name).join(","))
            .collect();
        assert_eq!(sent, ["Bearer good", "session=1", "k", "d-1", "POST", "/pay?for=tea"]);
        for name in ["x-secret", "idempotency-key", "content-length", "transfer-encoding"] {
            assert_eq!(asked.header(name), None, "{name}");
        }
    }
    revoked.store(true, Ordering::SeqCst);
    let denied = gateway.ask(&pay).await;
    assert_eq!((denied.status, denied.is_replay(), denied.text().as_str()), (401, false, "who are you?"));
    assert_eq!(denied.header("www-authenticate"), Some("Bearer realm=\"api\""));
    assert_eq!(upstream.effects("k-1"), 1);
    // Without a key nothing is claimed or replayed: the upstream checks for itself.
    assert_eq!(gateway.ask(request("POST", "/pay", &[], "{}")).await.status, 201);
    assert_eq!(service.received().len(), 3);
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("onceward_auth_checks_total{result=\"refused\"} 1"), "{metrics}");
}

#[tokio::test]
async fn who_is_not_let_on_does_not_wait_for_the_first_either_and_claims_nothing() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, _| vec![Step::Until(held.clone()), answer(201, &[], "done").into()]).await;
    let service = service(authorized).await;
    let config = format!("{}scope = {{ principal = \"none\" }}\n", with_auth(&service, ""));
    let gateway = Start::before(&upstream).config(&config).start().await;
    let mut first = gateway.connect().await;
    first.send(ask("k-1", "Bearer good")).await;
    upstream.reached("k-1", 1).await;
    assert_eq!(gateway.ask(ask("k-1", "Bearer bad")).await.status, 401);
    assert_eq!(gateway.ask(ask("k-2", "Bearer bad")).await.status, 401);
    assert_eq!(gateway.records().await.len(), 1);
    gate.open();
    assert_eq!(first.answer().await.status, 201);
    assert_eq!((upstream.effects("k-1"), upstream.effects("k-2")), (1, 0));
}

// contract: route.auth.timeout
#[tokio::test]
async fn a_service_that_is_no_help_is_503_and_nothing_is_claimed_or_shown() {
    let shut = Gate::shut();
    let held = shut.clone();
    let service = Upstream::start(move |asked, _| {
        let named = |lines: &[(&str, &str)]| vec![Step::Send(answer(200, lines, ""))];
        match asked.header("authorization").unwrap_or_default() {
            "Bearer good" => named(&[("X-User", "u1")]),
            "Bearer hangs" => vec![Step::Until(held.clone())],
            "Bearer half" => vec![b"HTTP/1.1 200 OK\r\nX-Us".to_vec().into(), Step::Until(held.clone())],
            "Bearer broken" => vec![b"HELLO\r\n\r\n".to_vec().into(), Step::Close],
            "Bearer closes" => vec![Step::Close],
            "Bearer 500" => vec![answer(500, &[("X-User", "u1")], "oops").into()],
            "Bearer 503" => vec![answer(503, &[("Retry-After", "100")], "").into()],
            "Bearer nobody" => named(&[]),
            "Bearer twice" => named(&[("X-User", "u1"), ("X-User", "u2")]),
            "Bearer empty" => named(&[("X-User", "")]),
            _ => named(&[("X-User", "caf\u{e9}")]),
        }
    })
    .await;
    let upstream = Upstream::charging().await;
    let config = with_auth(&service, ", timeout = \"400ms\", principal_header = \"X-User\"");
    let gateway = Start::before(&upstream).config(&config).start().await;
    assert_eq!(gateway.ask(ask("k-1", "Bearer good")).await.status, 201);
    for how in ["hangs", "half", "broken", "closes", "500", "503", "nobody", "twice", "empty", "latin"] {
        let refused = gateway.ask(ask("k-1", &format!("Bearer {how}"))).await;
        assert_eq!((refused.status, refused.slug().as_str()), (503, "auth-unavailable"), "{how}");
        assert_eq!((refused.header("retry-after"), refused.json()["retryable"].as_bool()), (Some("1"), Some(true)));
        assert!(!refused.text().contains("charge") && !refused.text().contains("oops"), "{how}");
    }
    assert_eq!((upstream.received().len(), gateway.records().await.len()), (1, 1));
    let log = gateway.says("did not answer in time").await;
    assert!(!log.contains("Bearer"), "{log}");

    let config = format!("[defaults]\nauth = {{ url = \"http://{}\" }}\n", nobody().await);
    let gateway = Start::before(&upstream).config(&config).start().await;
    let refused = gateway.ask(ask("k-1", "Bearer good")).await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "auth-unavailable"));
    assert_eq!((upstream.received().len(), gateway.records().await.len()), (1, 0));
    assert!(gateway.metrics().await.contains("onceward_auth_checks_total{result=\"unavailable\"} 1"));
}

#[tokio::test]
async fn any_other_answer_is_the_clients_without_what_belongs_to_its_connection_or_to_onceward() {
    let service = Upstream::start(|asked, _| {
        let huge = "x".repeat(1 << 20);
        vec![
            match asked.header("authorization").unwrap_or_default() {
                "Bearer redirect" => answer(302, &[("Location", "https://login.test/?next=1")], ""),
                "Bearer busy" => answer(429, &[("Retry-After", "7"), ("X-Part", "a"), ("X-Part", "b")], "slowly"),
                "Bearer claims" => {
                    let own = [("Idempotent-Replayed", "true"), ("Idempotency-Status", "x"), ("X-Hop", "1")];
                    answer(403, &[&own[..], &[("Connection", "X-Hop"), ("Keep-Alive", "timeout=1")]].concat(), "no")
                }
                _ => answer(403, &[("Content-Type", "text/plain"), ("X-Why", "long")], huge),
            }
            .into(),
        ]
    })
    .await;
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(&with_auth(&service, "")).start().await;
    let redirect = gateway.ask(ask("k-1", "Bearer redirect")).await;
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("https://login.test/?next=1")));
    let busy = gateway.ask(ask("k-1", "Bearer busy")).await;
    assert_eq!((busy.status, busy.header("retry-after"), busy.text().as_str()), (429, Some("7"), "slowly"));
    assert_eq!(busy.all("x-part"), ["a", "b"]);
    let claims = gateway.ask(ask("k-1", "Bearer claims")).await;
    assert_eq!((claims.status, claims.text().as_str()), (403, "no"));
    for name in ["idempotent-replayed", "idempotency-status", "x-hop", "keep-alive"] {
        assert_eq!(claims.header(name), None, "{name}");
    }
    let huge = gateway.ask(ask("k-1", "Bearer huge")).await;
    assert_eq!((huge.status, huge.body.len(), huge.header("x-why")), (403, 0, Some("long")));
    assert_eq!(huge.header("content-type"), None, "of a body that is not there");
    assert_eq!((upstream.received().len(), gateway.records().await.len()), (0, 0));
}

#[tokio::test]
async fn a_yes_is_remembered_for_those_who_send_the_same_and_a_no_is_not() {
    let gate = Gate::shut();
    let held = gate.clone();
    let service = Upstream::start(move |asked, _| {
        let status = if authorized(asked) { 200 } else { 403 };
        vec![Step::Until(held.clone()), answer(status, &[], "").into()]
    })
    .await;
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(&with_auth(&service, ", cache = \"1h\"")).start().await;
    let mut clients = Vec::new();
    for n in 0..20 {
        let mut client = gateway.connect().await;
        client.send(ask(&format!("k-{n}"), "Bearer good")).await;
        clients.push(client);
    }
    service.reached("", 1).await;
    // One whose client goes away does not take the answer with it.
    drop(clients.remove(0));
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 201);
    }
    assert_eq!(gateway.ask(ask("k-7", "Bearer good")).await.status, 201);
    assert_eq!(service.received().len(), 1, "for twenty at once and one later");
    let elsewhere = request("POST", "/elsewhere", &[("Idempotency-Key", "k"), ("Authorization", "Bearer good")], "");
    assert_eq!(gateway.ask(&elsewhere).await.status, 201);
    assert_eq!(service.received().len(), 2, "another path is another question");
    for n in 3..6 {
        assert_eq!(gateway.ask(ask("k-7", "Bearer bad")).await.status, 403);
        assert_eq!(service.received().len(), n);
    }
}

// contract: route.auth.cache
#[tokio::test]
async fn what_is_remembered_is_forgotten_after_its_time() {
    let service = service(authorized).await;
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(&with_auth(&service, ", cache = \"300ms\"")).start().await;
    until("a second question", async || {
        assert_eq!(gateway.ask(ask("k-1", "Bearer good")).await.status, 201);
        service.received().len() > 1
    })
    .await;
}

// contract: route.auth.principal_header
#[tokio::test]
async fn the_service_can_name_the_caller() {
    let service = Upstream::start(|asked, _| {
        let user = asked.header("cookie").unwrap_or_default().split_once('-').map_or("", |(user, _)| user);
        vec![answer(200, &[("X-User", user)], "").into()]
    })
    .await;
    let upstream = Upstream::charging().await;
    let config = with_auth(&service, ", principal_header = \"X-User\"");
    let gateway = Start::before(&upstream).config(&config).start().await;
    let by = |session| request("POST", "/pay", &[("Idempotency-Key", "k-1"), ("Cookie", session)], "{}");
    // Of a cookie alone nobody else could tell.
    assert!(!gateway.ask(by("alice-1")).await.is_replay());
    assert!(gateway.ask(by("alice-2")).await.is_replay(), "another session of the same caller");
    assert!(!gateway.ask(by("bob-1")).await.is_replay());
    assert_eq!(upstream.effects("k-1"), 2);
    let scope = onceward_core::key::Scope {
        tenant: "default",
        env: "default",
        principal: "auth:alice",
        route: "default POST /pay",
    };
    let secret = std::fs::read_to_string(gateway.start.data().join("onceward.secret")).unwrap();
    let secret = onceward::Secret::from_base64(secret.trim()).unwrap();
    let id = onceward::RecordId::derive(&secret, &scope, "k-1").to_string();
    assert_eq!(gateway.records().await[0]["record_id"], id.as_str(), "spelled auth:VALUE");
}

#[tokio::test]
async fn a_check_vouches_for_a_refreshed_token_and_for_nothing_once_it_is_gone() {
    let service = service(|asked| asked.header("authorization").is_some_and(|token| !token.contains("forged"))).await;
    let upstream = Upstream::start(|received, before| {
        let status = if received.key() == "k-400" { 400 } else { 201 };
        vec![answer(status, &[], format!("charge {before}")).into()]
    })
    .await;
    let config = with_auth(&service, "");
    let mut gateway = Start::before(&upstream).config(&config).start().await;
    let claims = "{\"iss\":\"https://id.test\",\"sub\":\"alice\"}";
    let (first, refreshed) = (bearer(claims, "one"), bearer(claims, "two"));
    assert_eq!(gateway.ask(ask("k-1", &first)).await.status, 201);
    assert!(gateway.ask(ask("k-1", &refreshed)).await.is_replay(), "vouched for");
    assert_eq!(gateway.ask(ask("k-1", &bearer(claims, "forged"))).await.status, 401);
    // Its subject is verified, so a bad request blocks nobody's key but its own.
    assert_eq!(gateway.ask(ask("k-400", &first)).await.status, 400);
    assert!(gateway.ask(ask("k-400", &first)).await.is_replay());
    gateway.kill().await;

    // The record has kept whose token made it.
    let without = gateway.start.clone().config("[defaults]\nlease = \"10s\"\n").start().await;
    assert_eq!(without.ask(ask("k-1", &refreshed)).await.slug(), "principal-changed");
    assert!(without.ask(ask("k-1", &first)).await.is_replay());
    assert_eq!(upstream.effects("k-1"), 1);
}

#[tokio::test]
async fn keys_and_principals_are_looked_at_before_it_is_asked_and_bodies_after() {
    let service = service(authorized).await;
    let upstream = Upstream::charging().await;
    let config = format!("{}limits = {{ request_body = \"16B\" }}\n", with_auth(&service, ""));
    let gateway = Start::before(&upstream).config(&config).start().await;
    assert_eq!(gateway.ask(ask("a b", "Bearer bad")).await.slug(), "invalid-key");
    assert_eq!(gateway.ask(ask("k-1", "Digest username=x")).await.slug(), "no-principal");
    assert_eq!(service.received().len(), 0);
    // It is asked by the head alone: of this body not a byte has come.
    let mut client = gateway.connect().await;
    client.send(head_of("k-1", "Bearer bad", 1000)).await;
    assert_eq!(client.answer().await.status, 401);
    let mut client = gateway.connect().await;
    client.send(head_of("k-1", "Bearer good", 1000)).await;
    assert_eq!(client.answer().await.slug(), "body-too-large");
    assert_eq!((service.received().len(), gateway.records().await.len()), (2, 0));
}

fn head_of(key: &str, credential: &str, length: usize) -> String {
    format!(
        "POST /pay HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {key}\r\nAuthorization: {credential}\r\nContent-Length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_route_can_do_without_the_check_of_the_others() {
    let service = service(authorized).await;
    let upstream = Upstream::charging().await;
    let config = format!(
        "{}[[route]]\nname = \"open\"\nmatch = {{ path = \"/open\" }}\nauth = {{ url = \"none\" }}\n",
        with_auth(&service, "")
    );
    let gateway = Start::before(&upstream).config(&config).start().await;
    assert_eq!(gateway.post("/open", "k-1", "{}").await.status, 201);
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 401);
    assert_eq!(service.received().len(), 1);
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let service = Upstream::start(|_, _| {
        let endless = [head(403, &[("Transfer-Encoding", "chunked")]), b"40000\r\n".to_vec(), vec![b'x'; 0x40000]];
        vec![endless.concat().into(), Step::Until(Gate::shut())]
    })
    .await;
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(&with_auth(&service, ", timeout = \"30s\"")).start().await;
    let answer = soon("the refusal", gateway.ask(ask("k-1", "Bearer bad"))).await;
    assert_eq!((answer.status, answer.body.len()), (403, 0));
}
