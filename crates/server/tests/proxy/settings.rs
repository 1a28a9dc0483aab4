//! Keys of the process, of upstreams and of its limits: each does what it says, seen from outside.

use serde_json::json;

use super::support::{Client, Gate, Start, Step, Upstream, charged, nobody, post, request, until};

// contract: identity.secret, listen.address, admin.address, admin.token, store.kind, store.path, upstream.name, upstream.url
#[tokio::test]
async fn a_process_is_where_its_file_says_and_has_the_secrets_that_it_points_to() {
    const SECRET: [u8; 32] = [7; 32];
    let upstream = Upstream::charging().await;
    let start = Start::before(&upstream).by_file_only().env("INSTALL_SECRET", &base64(&SECRET));
    let folder = start.config_file().parent().unwrap().join("elsewhere");
    std::fs::write(start.config_file().with_file_name("token"), "a-token-of-the-admin\n").unwrap();
    let gateway = start
        .clone()
        .config(&format!(
            r#"
[identity]
secret = "env:INSTALL_SECRET"
[listen]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
token = "file:{}"
[store]
kind = "embedded"
path = "{}"
[[route]]
name = "pay"
upstream = "api"
"#,
            start.config_file().with_file_name("token").display(),
            folder.display()
        ))
        .start()
        .await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 201);
    let made: Vec<String> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(made.iter().any(|name| name == "onceward.lock"), "{made:?}");
    assert!(!made.iter().any(|name| name == "onceward.secret" || name == "admin.token"), "{made:?}");
    let record = &gateway.records().await[0];
    let scope = onceward_core::key::Scope { tenant: "default", env: "default", principal: "anonymous", route: "pay" };
    let id = onceward_core::key::RecordId::derive(&onceward_core::key::Secret::from_bytes(SECRET), &scope, "k-1");
    assert_eq!(record["record_id"], id.to_string(), "made with the secret of the variable");
    let outcome = format!("/records/{id}/outcome");
    for (token, status) in [("Bearer a-token-of-the-admin", 200), ("Bearer another-of-16-chars", 401)] {
        assert_eq!(gateway.admin("GET", &outcome, &[("Authorization", token)], "").await.status, status);
    }
    assert!(!gateway.log().contains("a-token-of-the-admin"));
}

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

// contract: default_upstream
#[tokio::test]
async fn what_no_route_matches_goes_to_the_default_upstream() {
    let (one, two) = (Upstream::charging().await, Upstream::charging().await);
    let gateway = Start::new()
        .config(&format!(
            "default_upstream = \"two\"\n[[upstream]]\nname = \"one\"\nurl = \"http://{}\"\n[[upstream]]\nname = \"two\"\nurl = \"http://{}\"\n",
            one.address, two.address
        ))
        .start()
        .await;
    assert_eq!(gateway.post("/x", "k-1", "{}").await.status, 201);
    assert_eq!((one.received().len(), two.effects("k-1")), (0, 1));
}

// contract: store.durable
#[tokio::test]
async fn a_folder_that_a_restart_may_empty_is_warned_about_or_refused() {
    let upstream = Upstream::charging().await;
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let start = |durable: &str| {
        Start::before(&upstream).by_file_only().config(&format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[store]\npath = \"{}\"\ndurable = \"{durable}\"\n",
            memory.path().join(durable).display()
        ))
    };
    let gateway = start("preferred").start().await;
    let ready = gateway.admin("GET", "/readyz", &[], "").await;
    assert_eq!(ready.status, 200);
    assert!(ready.json()["warnings"].to_string().contains("lives in memory"), "{}", ready.text());
    let (code, said) = start("required").refused().await;
    assert!(code != 0 && said.contains("memory") && said.contains("durable"), "{code}: {said}");
}

// contract: upstream.connect_timeout
#[tokio::test]
async fn a_connection_to_the_upstream_that_does_not_come_about_leaves_the_key_free() {
    // A full queue: the kernel takes no further handshake.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    let patience = std::time::Duration::from_millis(200);
    while let Ok(Ok(stream)) = tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await {
        held.push(stream);
        assert!(held.len() < 100, "the queue never fills");
    }
    let gateway = Start::new()
        .config(&format!("[[upstream]]\nname = \"api\"\nurl = \"http://{address}\"\nconnect_timeout = \"50ms\"\n"))
        .start()
        .await;
    let refused = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (502, "upstream-unreachable"));
    assert_eq!(gateway.records().await.len(), 0);
}

// contract: limits.connections
#[tokio::test]
async fn beyond_the_connections_of_the_file_one_waits_for_a_place() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config("[limits]\nconnections = 1\n").start().await;
    let mut first = gateway.connect().await;
    first.send(post("/x", "k-1", "{}")).await;
    assert_eq!(first.answer().await.status, 201);
    let mut second = gateway.connect().await;
    second.send(post("/x", "k-2", "{}")).await;
    let reached = "onceward_connection_limit_reached_total 1";
    until("the limit", async || gateway.metrics().await.contains(reached)).await;
    assert!(!second.has_more() && upstream.effects("k-2") == 0);
    drop(first);
    assert_eq!(second.answer().await.status, 201);
}

// contract: limits.headers
#[tokio::test]
async fn a_head_over_the_limit_of_the_file_is_refused() {
    let upstream = Upstream::charging().await;
    let long = "v".repeat(9000);
    let ask = request("POST", "/x", &[("Idempotency-Key", "k-1"), ("X-Long", &long)], "{}");
    let gateway = Start::before(&upstream).config("[limits]\nheaders = \"8KiB\"\n").start().await;
    let refused = gateway.ask(&ask).await;
    assert_eq!((refused.status, refused.header("connection")), (431, Some("close")));
    assert_eq!(refused.slug(), "headers-too-large");
    let wide = Start::before(&upstream).start().await;
    assert_eq!(wide.ask(&ask).await.status, 201);
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: limits.waiters
#[tokio::test]
async fn where_nobody_may_wait_a_duplicate_is_told_at_once() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(held.clone()), charged(before).into()]).await;
    let gateway = Start::before(&upstream).config("[limits]\nwaiters = 0\n").start().await;
    let mut first = gateway.connect().await;
    first.send(post("/x", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    // The route would let it wait for 20 s.
    assert_eq!(gateway.post("/x", "k-1", "{}").await.slug(), "in-flight");
    gate.open();
    assert_eq!(first.answer().await.status, 201);
}

// contract: limits.held_answer
#[tokio::test]
async fn an_answer_over_the_held_size_of_the_file_streams_all_but_its_end() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config("[limits]\nheld_answer = \"0B\"\n")
        .failpoint("complete.begin:hit=1:pause")
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.send(post("/x", "k-1", "{}")).await;
    assert_eq!(client.read_head().await.unwrap().status, 201);
    let body = b"{\"charge\":0}";
    assert_eq!(client.take(body.len() - 1).await.unwrap(), body[..body.len() - 1]);
    assert_eq!(gateway.post("/x", "k-2", "{}").await.status, 201);
    assert!(!client.has_more(), "the last byte came before the record");
}

// contract: limits.canonical_body
#[tokio::test]
async fn a_body_over_the_canonical_size_of_the_file_is_compared_byte_for_byte() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config("[limits]\ncanonical_body = \"16B\"\n").start().await;
    gateway.post("/x", "short", "{\"a\":1}").await;
    assert!(gateway.post("/x", "short", "{ \"a\": 1 }").await.is_replay());
    gateway.post("/x", "long", "{\"a\":1,\"b\":22222222}").await;
    assert_eq!(gateway.post("/x", "long", "{\"b\":22222222,\"a\":1}").await.slug(), "key-reused");
}

// contract: limits.spool, request-body-too-large
#[tokio::test]
async fn a_large_body_for_which_the_spool_has_no_room_claims_nothing() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config("[limits]\nspool = \"0B\"\n").start().await;
    let body = |kib: usize| format!("\"{}\"", "x".repeat(kib << 10));
    let refused = gateway.post("/x", "k-1", &body(300)).await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "overloaded"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(gateway.post("/x", "k-2", &body(200)).await.status, 201, "it needs no spool");
    assert_eq!((upstream.received().len(), gateway.records().await.len()), (1, 1));
    let roomy = Start::before(&upstream).start().await;
    assert_eq!(roomy.post("/x", "k-1", &body(300)).await.status, 201);
    assert_eq!(upstream.last().body.len(), (300 << 10) + 2);
}

/// Goal: no answer of the process shows what only its configuration knows. Method: a file with secrets, and every
/// way to make it speak.
#[tokio::test]
async fn secrets_of_the_file_are_never_shown() {
    const TOKEN: &str = "marker-of-the-admin-token";
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config(&format!("[admin]\ntoken = \"{TOKEN}\"\n"))
        .env("ONCEWARD_LOG", "trace")
        .start()
        .await;
    gateway.post("/x", "k-1", "{}").await;
    for path in ["/healthz", "/readyz", "/metrics", "/records", "/nowhere"] {
        assert!(!gateway.admin("GET", path, &[], "").await.text().contains(TOKEN), "{path}");
    }
    let told = gateway.admin("DELETE", "/records/x", &[("Authorization", "Bearer x")], "").await;
    assert_eq!((told.status, told.text().contains(TOKEN)), (401, false));
    assert!(!gateway.log().contains(TOKEN));
}

// contract: upstream.http2
#[tokio::test]
async fn the_upstream_is_spoken_to_in_http1_unless_its_entry_says_otherwise() {
    let upstream = Upstream::charging().await;
    let gateway = Start::new()
        .config(&format!("[[upstream]]\nname = \"api\"\nurl = \"http://{}\"\nhttp2 = false\n", upstream.address))
        .start()
        .await;
    let answer = super::support::ask_h2(gateway.proxy, "/x", &[("idempotency-key", "k-1")], "{}").await;
    // The upstream of these tests reads no other.
    assert_eq!((answer.status, upstream.effects("k-1")), (201, 1));
    let gone = Start::before_address(nobody().await).start().await;
    assert_eq!(gone.post("/x", "k-1", "{}").await.json()["type"], json!("urn:onceward:problem:upstream-unreachable"));
    let _still = Client::connect(gateway.proxy).await;
}
