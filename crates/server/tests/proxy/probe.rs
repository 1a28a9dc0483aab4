//! `probe`: the upstream's own books are asked about an outcome that nobody knows, and may say anything.

use super::support::{Gate, Gateway, Received, Start, Step, Upstream, answer, charged, nobody, post, request, until};

/// An upstream that breaks off the first request of each key, and answers the later ones.
async fn forgetful() -> Upstream {
    Upstream::start(|_, before| if before == 0 { vec![Step::Close] } else { vec![charged(before).into()] }).await
}

/// The books, which answer each question so.
async fn books(say: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |asked, _| vec![say(asked).into()]).await
}

/// Asks at once, of a record where nothing else is said.
fn probing(books: &Upstream, list: &str, path: &str, more: &str) -> String {
    format!(
        "[defaults]\non_unknown = [{list}]\nprobe = {{ url = \"http://{}{path}\", executed = [200], not_executed = [404], quiesce = \"0s\"{more} }}\n",
        books.address
    )
}

async fn in_doubt(gateway: &Gateway, key: &str) {
    let broken = gateway.post("/pay", key, "{\"amount\":5}").await;
    assert_eq!((broken.status, broken.slug().as_str()), (502, "upstream-failed"));
}

async fn repeat(gateway: &Gateway, key: &str) -> super::support::Answer {
    gateway.post("/pay", key, "{\"amount\":5}").await
}

// contract: outcome-unknown, route.probe.url, route.probe.executed, route.probe.headers
#[tokio::test]
async fn what_took_effect_is_answered_from_the_books_and_recorded() {
    let upstream = forgetful().await;
    let books = books(|_| {
        let lines = [
            ("Content-Type", "application/json"),
            ("X-Part", "one"),
            ("X-Part", "two"),
            ("Set-Cookie", "books=1"),
            ("Idempotent-Replayed", "forged"),
            ("X-Request-ID", "of-the-books"),
        ];
        answer(200, &lines, "{\"charge\":7}")
    })
    .await;
    let path = "/by-key/{key}?record={record}";
    let config =
        probing(&books, "\"probe\"", path, ", headers = [{ name = \"Authorization\", value = \"env:BOOKS\" }]");
    let gateway = Start::before(&upstream).config(&config).env("BOOKS", "Bearer of-the-books").start().await;
    let pay =
        request("POST", "/pay", &[("Idempotency-Key", "\"k 1%\""), ("X-Api-Key", "the-clients")], "{\"amount\":5}");
    assert_eq!(gateway.ask(&pay).await.status, 502);
    let settled = gateway.ask(&pay).await;
    assert_eq!((settled.status, settled.text().as_str()), (200, "{\"charge\":7}"));
    assert!(settled.is_replay());
    assert_eq!(settled.all("x-part"), ["one", "two"]);
    assert_eq!((settled.header("set-cookie"), settled.all("idempotent-replayed").len()), (None, 1));
    assert!(settled.header("idempotency-expires").is_some());
    let asked = books.last();
    let record = &gateway.records().await[0];
    let target = format!("/by-key/k%201%25?record={}", record["record_id"].as_str().unwrap());
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", target.as_str()));
    assert_eq!(asked.header("authorization"), Some("Bearer of-the-books"));
    for name in ["x-api-key", "idempotency-key", "content-length"] {
        assert_eq!(asked.header(name), None, "{name}");
    }
    assert_eq!((record["state"].as_str(), record["status"].as_u64()), (Some("completed"), Some(200)));
    assert_eq!(gateway.ask(&pay).await.essence(), settled.essence(), "and again");
    let other = request("POST", "/pay", &[("Idempotency-Key", "\"k 1%\""), ("X-Api-Key", "the-clients")], "{}");
    assert_eq!(gateway.ask(other).await.slug(), "key-reused");
    assert_eq!((upstream.received().len(), books.received().len()), (1, 1));
    let metrics = gateway.metrics().await;
    assert!(metrics.contains(r#"onceward_unknown_outcomes_total{route="default",settled_by="probe"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"onceward_probes_total{route="default",by="probe",found="executed"} 1"#), "{metrics}");
    assert!(!gateway.log().contains("of-the-books"));
}

// contract: route.probe.not_executed
#[tokio::test]
async fn what_did_not_take_effect_runs_with_the_next_attempt_and_no_doubt_left() {
    let upstream = Upstream::start(|received, before| match (before, received.key()) {
        (0, _) => vec![Step::Close],
        (1, "k-busy") => vec![answer(429, &[], "later").into()],
        _ => vec![charged(before).into()],
    })
    .await;
    let books = books(|_| answer(404, &[], "")).await;
    let gateway = Start::before(&upstream).config(&probing(&books, "\"probe\"", "/by/{record}", "")).start().await;
    in_doubt(&gateway, "k-1").await;
    let second = repeat(&gateway, "k-1").await;
    assert_eq!((second.status, second.is_replay()), (201, false));
    assert!(repeat(&gateway, "k-1").await.is_replay());
    let sent: Vec<(String, u64)> = upstream
        .received()
        .iter()
        .map(|r| {
            let header = |name| r.header(name).unwrap().to_owned();
            (header("idempotency-attempt"), header("idempotency-fence").parse().unwrap())
        })
        .collect();
    assert_eq!((sent.len(), sent[0].0.as_str(), sent[1].0.as_str()), (2, "1", "2"));
    assert!(sent[0].1 < sent[1].1, "{sent:?}");
    // A release of the second attempt leaves no doubt: the key is free.
    in_doubt(&gateway, "k-busy").await;
    assert_eq!(repeat(&gateway, "k-busy").await.status, 429);
    assert_eq!(gateway.records().await.len(), 1);
    let third = repeat(&gateway, "k-busy").await;
    assert_eq!((third.status, upstream.last().header("idempotency-attempt")), (201, Some("1")));
}

// contract: route.probe.timeout
#[tokio::test]
async fn anything_else_says_nothing_and_the_list_goes_on() {
    let shut = Gate::shut();
    let held = shut.clone();
    let upstream = forgetful().await;
    let books = Upstream::start(move |asked, _| match asked.target.as_str() {
        "/by/redirect" => vec![answer(302, &[("Location", "/by/elsewhere")], "").into()],
        "/by/error" => vec![answer(500, &[], "").into()],
        "/by/busy" => vec![answer(429, &[], "").into()],
        "/by/created" => vec![answer(201, &[], "").into()],
        "/by/empty" => vec![answer(204, &[], "").into()],
        "/by/noise" => vec![b"HELLO\r\n\r\n".to_vec().into(), Step::Close],
        "/by/closes" => vec![Step::Close],
        "/by/hangs" => vec![Step::Until(held.clone())],
        "/by/half" => vec![b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec().into(), Step::Close],
        "/by/slow" => {
            vec![b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow".to_vec().into(), Step::Until(held.clone())]
        }
        other => panic!("asked for {other}"),
    })
    .await;
    let config = probing(&books, "\"probe\"", "/by/{key}", ", timeout = \"300ms\"");
    let gateway = Start::before(&upstream).config(&config).start().await;
    let words = ["redirect", "error", "busy", "created", "empty", "noise", "closes", "hangs", "half", "slow"];
    for word in words {
        in_doubt(&gateway, word).await;
        let refused = repeat(&gateway, word).await;
        assert_eq!((refused.status, refused.slug().as_str()), (409, "outcome-unknown"), "{word}");
        assert_eq!(refused.json()["retryable"], false);
        assert_eq!(upstream.effects(word), 1, "{word}");
    }
    assert!(!gateway.log().contains("panicked"));

    let gone = nobody().await;
    let list = "on_unknown = [\"probe\", \"fail\"]\n";
    let table = "probe = { url = \"http://GONE/{record}\", executed = [200], quiesce = \"0s\" }\n";
    let config = format!("[defaults]\n{list}{}", table.replace("GONE", &gone.to_string()));
    let upstream = forgetful().await;
    let gateway = Start::before(&upstream).config(&config).start().await;
    in_doubt(&gateway, "k-1").await;
    assert_eq!(repeat(&gateway, "k-1").await.slug(), "failed");
    assert_eq!(upstream.effects("k-1"), 1);
    let metrics = gateway.metrics().await;
    assert!(metrics.contains(r#"onceward_unknown_outcomes_total{route="default",settled_by="policy"} 1"#), "{metrics}");
}

// contract: route.probe.replay
#[tokio::test]
async fn books_that_answer_at_length_are_believed_and_not_recorded_whole() {
    let upstream = forgetful().await;
    let books = books(|_| answer(200, &[], "x".repeat(100_000))).await;
    let config = format!(
        "{}limits = {{ recorded_body = \"64KiB\" }}\n[[route]]\nname = \"acked\"\nmatch = {{ path = \"/acked\" }}\nprobe = {{ replay = \"ack\" }}\n",
        probing(&books, "\"probe\"", "/by/{record}", "")
    );
    let gateway = Start::before(&upstream).config(&config).start().await;
    in_doubt(&gateway, "k-1").await;
    for _ in 0..2 {
        let refused = repeat(&gateway, "k-1").await;
        assert_eq!((refused.status, refused.slug().as_str()), (409, "response-not-kept"));
        assert_eq!(refused.json()["recorded_status"], 200);
    }
    assert_eq!(gateway.post("/acked", "k-2", "{}").await.status, 502);
    let acked = gateway.post("/acked", "k-2", "{}").await;
    assert_eq!((acked.status, acked.body.len(), acked.is_replay()), (200, 0, true));
    assert_eq!((upstream.received().len(), books.received().len()), (2, 2));
}

#[tokio::test]
async fn many_repeats_at_once_are_one_question_and_at_most_one_more_execution() {
    for (status, executions) in [(200, 1), (404, 2)] {
        let gate = Gate::shut();
        let held = gate.clone();
        let upstream = forgetful().await;
        let books =
            Upstream::start(move |_, _| vec![Step::Until(held.clone()), answer(status, &[], "found").into()]).await;
        let gateway = Start::before(&upstream).config(&probing(&books, "\"probe\"", "/by/{record}", "")).start().await;
        in_doubt(&gateway, "k-1").await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = gateway.connect().await;
            client.send(post("/pay", "k-1", "{\"amount\":5}")).await;
            clients.push(client);
        }
        books.reached("", 1).await;
        until("all twenty to wait for it", async || gateway.metrics().await.contains("onceward_waiters 20")).await;
        gate.open();
        let mut answers = Vec::new();
        for client in &mut clients {
            answers.push(client.answer().await);
        }
        assert_eq!(books.received().len(), 1, "{status}");
        assert_eq!(upstream.effects("k-1"), executions, "{status}");
        assert!(answers.iter().all(|answer| answer.essence() == answers[0].essence()), "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), executions - 1, "{status}");
        let metrics = gateway.metrics().await;
        let settled = r#"onceward_unknown_outcomes_total{route="default",settled_by="probe"} 1"#;
        assert!(metrics.contains(settled) && metrics.contains("onceward_waiters 0"), "{metrics}");
    }
}

#[tokio::test]
async fn an_operator_who_settles_it_meanwhile_wins() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = forgetful().await;
    let books = Upstream::start(move |_, _| vec![Step::Until(held.clone()), answer(404, &[], "").into()]).await;
    let gateway = Start::before(&upstream).config(&probing(&books, "\"probe\"", "/by/{record}", "")).start().await;
    in_doubt(&gateway, "k-1").await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "k-1", "{\"amount\":5}")).await;
    books.reached("", 1).await;
    let id = gateway.records().await[0]["record_id"].as_str().unwrap().to_owned();
    let token = format!("Bearer {}", gateway.token());
    let headers = [("Authorization", token.as_str())];
    let settled = gateway.admin("POST", &format!("/records/{id}/resolve"), &headers, "{\"as\":\"failed\"}").await;
    assert_eq!(settled.status, 200, "{}", settled.text());
    gate.open();
    assert_eq!(client.answer().await.slug(), "failed");
    assert_eq!(upstream.effects("k-1"), 1, "what the probe found came too late");
    let metrics = gateway.metrics().await;
    assert!(
        metrics.contains(r#"{route="default",settled_by="operator"} 1"#)
            && !metrics.contains("settled_by=\"probe\"} 1")
    );
}

// contract: route.probe.quiesce
#[tokio::test]
async fn it_is_not_asked_before_its_time_and_nothing_else_of_the_list_is_done_meanwhile() {
    let upstream = forgetful().await;
    let books = books(|_| answer(200, &[], "found")).await;
    let config = probing(&books, "\"probe\", \"retry\"", "/by/{key}", "").replace("\"0s\"", "\"2s\"");
    let gateway = Start::before(&upstream).config(&config).start().await;
    in_doubt(&gateway, "k-1").await;
    assert_eq!(repeat(&gateway, "k-1").await.slug(), "outcome-unknown");
    assert_eq!(books.received().len(), 0);
    until("its time", async || repeat(&gateway, "k-1").await.status == 200).await;
    assert_eq!((upstream.effects("k-1"), books.received().len()), (1, 1));
}

#[tokio::test]
async fn without_a_request_only_what_needs_none_is_asked() {
    let upstream = forgetful().await;
    let books = books(|asked| match asked.target.split('/').nth(1) {
        Some("executed") => answer(200, &[], "found"),
        Some("not-executed") => answer(404, &[], ""),
        _ => answer(500, &[], ""),
    })
    .await;
    let mut config = String::new();
    for (name, place, list) in [
        ("executed", "{record}", "\"probe\""),
        ("not-executed", "{record}", "{ hold = \"1s\" }, \"probe\""),
        ("nothing", "{record}", "\"probe\", \"fail\""),
        ("by-key", "{key}", "\"probe\", \"fail\""),
    ] {
        let route = probing(&books, list, &format!("/{name}/{place}"), "");
        config.push_str(
            &route
                .replace("[defaults]\n", &format!("[[route]]\nname = \"{name}\"\nmatch = {{ path = \"/{name}\" }}\n")),
        );
    }
    let gateway = Start::before(&upstream).config(&config).start().await;
    for name in ["executed", "not-executed", "nothing", "by-key"] {
        assert_eq!(gateway.post(&format!("/{name}"), name, "{}").await.status, 502);
    }
    let state = async |name: &str| {
        let records = gateway.records().await;
        let record = records.iter().find(|record| record["route"] == name).unwrap().clone();
        record["state"].as_str().unwrap().to_owned()
    };
    for (name, settled) in [("executed", "completed"), ("not-executed", "not_executed"), ("nothing", "failed")] {
        until(name, async || state(name).await == settled).await;
    }
    assert_eq!(state("by-key").await, "unknown", "its key is not kept");
    assert!(books.received().iter().all(|asked| !asked.target.contains("by-key")));
    assert!(gateway.post("/executed", "executed", "{}").await.is_replay());
    let second = gateway.post("/not-executed", "not-executed", "{}").await;
    assert_eq!((second.status, upstream.last().header("idempotency-attempt")), (201, Some("2")));
    assert_eq!(gateway.post("/nothing", "nothing", "{}").await.slug(), "failed");
    assert_eq!((upstream.effects("executed"), upstream.effects("nothing")), (1, 1));
    let has = |metrics: &str, line: &str| metrics.lines().any(|have| have == line);
    until("the gauges", async || {
        let metrics = gateway.metrics().await;
        has(&metrics, r#"onceward_unknown_open{route="by-key"} 1"#)
            && has(&metrics, r#"onceward_unknown_open{route="executed"} 0"#)
            && has(&metrics, r#"onceward_unknown_oldest_seconds{route="executed"} 0"#)
            && has(&metrics, r#"onceward_unknown_outcomes_total{route="executed",settled_by="probe"} 1"#)
            && has(&metrics, r#"onceward_unknown_outcomes_total{route="not-executed",settled_by="probe"} 1"#)
            && has(&metrics, r#"onceward_unknown_outcomes_total{route="nothing",settled_by="policy"} 1"#)
    })
    .await;
}

#[tokio::test]
async fn a_key_is_asked_about_as_the_upstream_knows_it_or_not_at_all() {
    let upstream = Upstream::start(|_, _| vec![Step::Close]).await;
    let books = books(|_| answer(404, &[], "")).await;
    let config = format!(
        "{}[[route]]\nname = \"child\"\nmatch = {{ path = \"/child\" }}\nforward_key = \"derived\"\n[[route]]\nname = \"derived\"\nmatch = {{ path = \"/derived\" }}\nkey = {{ missing = \"derive\" }}\n",
        probing(&books, "\"probe\"", "/by/{key}", "")
    );
    let gateway = Start::before(&upstream).config(&config).start().await;
    for _ in 0..2 {
        assert_eq!(gateway.post("/child", "parent-1", "{}").await.status, 502);
    }
    let child = onceward_core::key::child_key("parent-1", "api");
    assert_eq!(books.last().target, format!("/by/{child}"));
    assert_eq!(upstream.received().len(), 2, "the books knew nothing of it");
    // Of these the books would know nothing, and that would be taken for an answer.
    for (path, headers) in [
        ("/derived", vec![]),
        ("/pay", vec![("Idempotency-Key", "../other")]),
        ("/pay", vec![("Idempotency-Key", "..")]),
    ] {
        let ask = request("POST", path, &headers, "{}");
        assert_eq!(gateway.ask(&ask).await.status, 502);
        assert_eq!(gateway.ask(&ask).await.slug(), "outcome-unknown", "{headers:?}");
    }
    assert_eq!(books.received().len(), 1);
}

#[tokio::test]
async fn what_a_killed_process_left_in_doubt_is_asked_about_by_the_next_one() {
    let shut = Gate::shut();
    let held = shut.clone();
    let upstream = Upstream::start(move |_, before| match before {
        0 => vec![Step::Until(held.clone())],
        _ => vec![charged(before).into()],
    })
    .await;
    let books = books(|_| answer(200, &[], "found")).await;
    let gateway = Start::before(&upstream).config(&probing(&books, "\"probe\"", "/by/{key}", "")).start().await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "k-1", "{\"amount\":5}")).await;
    upstream.reached("k-1", 1).await;
    assert_eq!(books.received().len(), 0);
    let gateway = gateway.restart().await;
    let settled = repeat(&gateway, "k-1").await;
    assert_eq!((settled.status, settled.text().as_str(), settled.is_replay()), (200, "found", true));
    assert_eq!(upstream.effects("k-1"), 1);
}
