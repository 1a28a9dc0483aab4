//! The process: start, folder, ports, the end, and what it must not let out.

use tokio::net::TcpListener;

use super::support::{
    Client, Gate, Start, Step, Upstream, charged, files_below, find, onceward, output, post, request, until,
    whole_stores_name,
};

/// Answers when the gate opens.
async fn gated(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::start(move |_, before| vec![Step::Until(gate.clone()), charged(before).into()]).await
}

#[tokio::test]
async fn the_first_line_of_the_log_says_what_is_protected_and_the_folder_is_made() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    assert!(gateway.log().lines().next().unwrap().contains("requests through this process only are protected"));
    let data = gateway.start.data();
    for name in ["onceward.secret", "admin.token"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(data.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_signal_lets_what_runs_end_and_the_exit_code_is_0() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let mut gateway = Start::before(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "k-1", "{}")).await;
    let mut idle = gateway.connect().await;
    upstream.reached("k-1", 1).await;
    gateway.terminate();
    until("the end of accepting", async || tokio::net::TcpStream::connect(gateway.proxy).await.is_err()).await;
    let ready = gateway.admin("GET", "/readyz", &[], "").await;
    assert_eq!((ready.status, &ready.json()["reasons"]), (503, &serde_json::json!(["draining"])));
    gate.open();
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (201, "{\"charge\":0}"));
    assert!(gateway.ended().await.success());
    assert!(idle.try_answer().await.is_err(), "an idle connection is closed");
    // And its answer is safe.
    let start = gateway.start.clone();
    assert!(start.start().await.post("/pay", "k-1", "{}").await.is_replay());
}

// contract: listen.drain
#[tokio::test]
async fn what_does_not_end_in_time_is_cut_and_its_outcome_unknown() {
    let gate = Gate::shut();
    let upstream = gated(&gate).await;
    let mut gateway = Start::before(&upstream).config("[listen]\ndrain = \"300ms\"\n").start().await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    gateway.terminate();
    assert!(gateway.ended().await.success());
    gateway.says("what was left is an unknown outcome").await;
    assert!(client.try_answer().await.is_err());
    let gateway = gateway.start.clone().start().await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.slug(), "outcome-unknown");
}

#[tokio::test]
async fn a_port_that_is_in_use_is_named() {
    let upstream = Upstream::charging().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--admin"] {
        let (code, said) = Start::before(&upstream).arg(flag).arg(&address).refused().await;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&address) && said.contains(flag), "{said}");
    }
}

#[tokio::test]
async fn a_folder_that_another_process_has_is_refused_with_its_pid() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let (code, said) = gateway.start.refused().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("process {}", gateway.pid())), "{said}");
    assert_eq!(gateway.post("/x", "k-1", "{}").await.status, 201, "the first is not disturbed");
}

#[tokio::test]
async fn a_folder_of_something_else_is_left_as_it_was() {
    let upstream = Upstream::charging().await;
    let start = Start::before(&upstream);
    std::fs::create_dir(start.data()).unwrap();
    std::fs::write(start.data().join("thesis.doc"), b"years of work").unwrap();
    let (code, said) = start.refused().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is not a data folder") && said.contains("thesis.doc"), "{said}");
    assert_eq!(std::fs::read(start.data().join("thesis.doc")).unwrap(), b"years of work");
    assert!(!start.data().join("onceward.secret").exists());
}

#[tokio::test]
async fn a_damaged_secret_is_refused() {
    let upstream = Upstream::charging().await;
    let mut gateway = Start::before(&upstream).start().await;
    gateway.kill().await;
    let secret = gateway.start.data().join("onceward.secret");
    std::fs::write(&secret, "c2hvcnQ=\n").unwrap();
    let (code, said) = gateway.start.refused().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("onceward.secret") && said.contains("32"), "{said}");
    assert!(!said.contains("c2hvcnQ"), "secrets are not shown: {said}");
}

// contract: route.client_retries
#[tokio::test]
async fn wrong_usage_ends_with_2_and_says_how_it_is_right() {
    let upstream = Upstream::charging().await;
    for (start, told) in [
        (Start::new(), "--upstream"),
        (Start::before(&upstream).config("[listen]\nadress = \"x\"\n"), "did you mean \"address\"?"),
        (Start::before(&upstream).config("[regions]\nself = \"a\"\n"), "not available in this version"),
        (Start::before(&upstream).failpoint("nowhere:hit=1:abort"), "failpoint"),
        // No build that is given away can take a safety out.
        (Start::before(&upstream).env("ONCEWARD_MUTANT", "no-such-mutant"), "ONCEWARD_MUTANT"),
        (Start::before(&upstream).arg("--frobnicate"), "--frobnicate"),
        (Start::before(&upstream).config("[defaults]\nretention = \"1m\"\n"), "2 × client_retries"),
    ] {
        let (code, said) = start.refused().await;
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(told), "{said}");
    }
}

#[tokio::test]
async fn the_demo_shows_itself() {
    let start = Start::new().arg("--demo");
    let gateway = start.start().await;
    let charge = gateway.post("/v1/payments", "k-1", "{\"amount\":5,\"currency\":\"EUR\"}").await;
    assert!(charge.status < 500, "{charge:?}");
}

/// What must not get out, each a marker that is found nowhere else.
const KEY: &str = "marker-key-7f3a91";
const TOKEN: &str = "marker-token-11c8e2";
const BODY: &str = "marker-body-93d0aa";
const PATH: &str = "marker-path-5b20fe";
const COOKIE: &str = "marker-cookie-e00c4d";
const ANSWER: &str = "marker-answer-48aa10";

#[tokio::test]
async fn no_key_credential_body_or_raw_path_gets_out() {
    let upstream = Upstream::start(|received, before| match received.target.split('/').nth(1) {
        Some("breaks") => vec![Step::Close],
        Some("limits") => vec![super::support::answer(429, &[], ANSWER).into()],
        _ => vec![super::support::answer(201, &[], format!("{ANSWER} {before}")).into()],
    })
    .await;
    let gateway = Start::before(&upstream).env("ONCEWARD_LOG", "trace").start().await;
    let token = format!("Bearer {TOKEN}");
    let mut answers = Vec::new();
    for path in ["breaks", "limits", "works"] {
        let path = format!("/{path}/{PATH}");
        for key in [KEY, &format!("\"{KEY}"), &format!("{KEY} {KEY}"), &format!("{KEY}, b")] {
            for body in [format!("{{\"a\":\"{BODY}\"}}"), format!("{{\"a\":\"{BODY}-other\"}}"), BODY.to_owned()] {
                let headers = [("Idempotency-Key", key), ("Authorization", &token), ("Cookie", COOKIE)];
                answers.push(gateway.ask(request("POST", &path, &headers, &body)).await);
            }
        }
        let headers = [("Idempotency-Key", KEY), ("Cookie", COOKIE)];
        answers.push(gateway.ask(request("POST", &path, &headers, BODY)).await);
        let headers = [("Idempotency-Key", KEY), ("Authorization", &format!("Digest {TOKEN}"))];
        answers.push(gateway.ask(request("POST", &path, &headers, BODY)).await);
    }
    let own: Vec<_> =
        answers.iter().filter(|answer| answer.header("content-type") == Some("application/problem+json")).collect();
    assert!(own.len() > 20, "{}", own.len());
    for answer in own {
        let text = answer.text();
        for marker in [KEY, TOKEN, BODY, PATH, COOKIE] {
            assert!(!text.contains(marker), "{marker} in an answer: {text}");
        }
    }
    let metrics = gateway.metrics().await;
    let listed = gateway.admin("GET", "/records", &[], "").await.text();
    assert!(metrics.contains("onceward_requests_total") && listed.contains("record_id"));
    let log = gateway.log();
    for marker in [KEY, TOKEN, BODY, PATH, COOKIE, ANSWER] {
        assert!(!metrics.contains(marker), "{marker} in the metrics");
        assert!(!listed.contains(marker), "{marker} in the list of records");
        let line = log.lines().find(|line| line.contains(marker));
        assert_eq!(line, None, "{marker} in the log");
    }
    let files = files_below(&gateway.start.data());
    let holds = |marker: &str| files.iter().find(|(_, bytes)| find(bytes, marker.as_bytes()).is_some());
    for marker in [KEY, TOKEN, BODY, PATH, COOKIE] {
        assert!(holds(marker).is_none(), "{marker} in {:?}", holds(marker).unwrap().0);
    }
    assert!(holds(ANSWER).is_some(), "the search finds what is there");
}

#[tokio::test]
async fn the_metrics_of_the_contract_are_there() {
    let upstream = Upstream::start(|received, before| match received.target.as_str() {
        "/breaks" => vec![Step::Close],
        _ => vec![charged(before).into()],
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    gateway.post("/x", "k-1", "{}").await;
    gateway.post("/x", "k-1", "{}").await;
    gateway.post("/x", "k-1", "{\"other\":1}").await;
    gateway.post("/breaks", "k-2", "{}").await;
    gateway.post("/breaks", "k-2", "{}").await;
    gateway.post("/x", "a b", "{}").await;
    gateway.ask(request("POST", "/x", &[], "{}")).await;
    let metrics = gateway.metrics().await;
    for (outcome, count) in
        [("executed", 2), ("replayed", 1), ("mismatch", 1), ("unknown", 1), ("rejected", 1), ("unprotected", 1)]
    {
        let line = format!("onceward_requests_total{{route=\"default\",outcome=\"{outcome}\"}} {count}");
        assert!(metrics.lines().any(|found| found == line), "{line} not in\n{metrics}");
    }
    for line in [
        "onceward_fingerprint_mismatches_total{route=\"default\"} 1",
        "onceward_in_flight 0",
        "onceward_waiters 0",
        "onceward_fenced_completions_total 0",
        "onceward_fingerprint_unverified_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} not in\n{metrics}");
    }
    let of_store = format!("onceward_store_operation_seconds_bucket{{store=\"{}\"", whole_stores_name());
    for name in ["onceward_request_overhead_seconds_bucket{route=\"default\"", &of_store] {
        assert!(metrics.lines().any(|found| found.starts_with(name)), "{name} not in\n{metrics}");
    }
    until("the gauges of the background", async || {
        let metrics = gateway.metrics().await;
        metrics.contains("onceward_unknown_open{route=\"default\"} 1") && metrics.contains("onceward_records{state=")
    })
    .await;
}

// contract: admin.token
#[tokio::test]
async fn the_admin_listener_is_for_whoever_is_meant() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    gateway.post("/x", "k-1", "{}").await;
    let id = gateway.records().await[0]["record_id"].as_str().unwrap().to_owned();
    let token = format!("Bearer {}", gateway.token());
    let with_token = [("Authorization", token.as_str())];
    assert_eq!(gateway.admin("GET", "/healthz", &[], "").await.text(), "ok\n");
    let ready = gateway.admin("GET", "/readyz", &[], "").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &serde_json::json!(true)));
    let record = format!("/records/{id}");
    assert_eq!(gateway.admin("GET", &record, &[], "").await.status, 200, "reading is open on loopback");
    let resolve = format!("{record}/resolve");
    let outcome = format!("{record}/outcome");
    for (method, path, body) in [
        ("GET", outcome.as_str(), ""),
        ("DELETE", &record, ""),
        ("POST", &resolve, "{\"as\":\"executed\"}"),
        ("GET", &format!("{outcome}/"), ""),
        ("GET", &format!("/records/{id}/%6futcome"), ""),
        ("HEAD", &outcome, ""),
    ] {
        for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", "Bearer ")]] {
            let mut client = Client::connect(gateway.admin).await;
            let host = gateway.admin.to_string();
            let mut all = vec![("Content-Type", "application/json")];
            all.extend(headers);
            let ask = String::from_utf8(request(method, path, &all, body)).unwrap().replace("api.test", &host);
            client.send(ask).await;
            let status = client.read_head().await.unwrap().status;
            assert!(status == 401 || (status == 404 && *path != outcome), "{method} {path}: {status}");
        }
    }
    let shown = gateway.admin("GET", &outcome, &with_token, "").await;
    assert_eq!((shown.status, &shown.json()["status"]), (200, &serde_json::json!(201)));
    for (name, value) in [("Origin", "http://evil.test"), ("Origin", "null"), ("Host", "evil.test:80")] {
        let ask = match name {
            "Host" => format!("GET /records HTTP/1.1\r\nHost: {value}\r\n\r\n"),
            _ => format!("GET /records HTTP/1.1\r\nHost: {}\r\n{name}: {value}\r\n\r\n", gateway.admin),
        };
        let mut client = Client::connect(gateway.admin).await;
        client.send(ask).await;
        assert_eq!(client.answer().await.status, 403, "{name}: {value}");
    }
    // Errors of its own are all of one form.
    for (method, path, body, status) in [
        ("GET", "/nowhere", "", 404),
        ("GET", "/records?state=odd", "", 400),
        ("GET", "/records?limit=many", "", 400),
        ("GET", "/records/short", "", 400),
        ("GET", &format!("/records/{}", "A".repeat(43)), "", 404),
        ("POST", "/records/find", "{", 400),
        ("POST", "/records/find", "{\"kee\":1}", 400),
        ("POST", &resolve, "{\"as\":\"executed\",\"answer\":{\"status\":42}}", 400),
        ("POST", &resolve, "{\"as\":\"executed\"}", 409),
        ("PUT", "/records", "{}", 405),
    ] {
        let answer = gateway.admin(method, path, &with_token, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{method} {path} {body}");
    }
    let forgotten = gateway.admin("DELETE", &record, &with_token, "").await;
    assert_eq!(forgotten.status, 200);
    assert!(!gateway.post("/x", "k-1", "{}").await.is_replay());
}

#[tokio::test]
async fn the_version_is_told() {
    let mut command = onceward();
    command.arg("--version");
    let told = output(command).await;
    assert!(told.status.success() && told.stdout.starts_with(b"onceward "), "{told:?}");
}
