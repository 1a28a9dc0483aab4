//! Replays: the same status, headers, body and trailers, and nothing of the exchange that was first.

use super::support::{Start, Upstream, answer, ask_h2, chunked, find, head, request};

/// Name, and the bytes that the upstream answers with.
fn rows() -> Vec<(&'static str, Vec<u8>)> {
    let binary: Vec<u8> = (0..=255).cycle().take(5000).collect();
    // Not a gzip file, and nobody may find out.
    let gzip = [b"\x1f\x8b\x08\x00".as_slice(), &binary].concat();
    vec![
        ("/binary", answer(200, &[("Content-Type", "application/octet-stream")], &binary)),
        ("/empty", answer(200, &[("X-A", "1")], "")),
        ("/204", head(204, &[("X-A", "1")])),
        ("/304", head(304, &[("ETag", "\"7\""), ("Content-Length", "5000")])),
        ("/303", answer(303, &[("Location", "/v1/payments/7")], "")),
        ("/404", answer(404, &[("Content-Type", "text/plain")], "no such account")),
        ("/500", answer(500, &[], "sorry")),
        ("/gzip", answer(200, &[("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")], &gzip)),
        ("/chunked", chunked(200, &[], &[&binary, b"and", b"more"], &[])),
        ("/trailers", chunked(200, &[("Trailer", "X-Sum")], &[b"body"], &[("X-Sum", "7"), ("X-Sum", "8")])),
        ("/held-most", answer(200, &[], vec![b'h'; 64 << 10])),
        ("/streamed-least", answer(200, &[], vec![b's'; (64 << 10) + 1])),
        (
            "/repeated",
            answer(200, &[("Link", "</a>"), ("X-Other", "1"), ("Link", "</b>, </c>"), ("Link", "</a>")], "r"),
        ),
        ("/latin-1", [b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9\r\nContent-Length: 2\r\n\r\nok".as_slice()].concat()),
        (
            "/one-exchange",
            answer(
                200,
                &[
                    ("Set-Cookie", "session=1"),
                    ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
                    ("Server", "upstream/1"),
                    ("Alt-Svc", "h3=\":443\""),
                    ("WWW-Authenticate", "Basic"),
                    ("X-Request-ID", "of-the-upstream"),
                    ("Keep-Alive", "timeout=5"),
                    ("Connection", "X-Hop, keep-alive"),
                    ("X-Hop", "1"),
                    ("X-Kept", "2"),
                ],
                "e",
            ),
        ),
        ("/ratelimit", answer(200, &[("RateLimit-Remaining", "4"), ("X-RateLimit-Limit", "5")], "e")),
    ]
}

// contract: repeated-completed
#[tokio::test]
async fn a_replay_is_the_first_answer_byte_for_byte_over_http1_and_http2() {
    let upstream = Upstream::start(|received, _| {
        let (_, bytes) = rows().into_iter().find(|(path, _)| *path == received.target).expect("a row");
        vec![bytes.into()]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    for (path, _) in rows() {
        let ask = request(
            "POST",
            path,
            &[("Idempotency-Key", path), ("TE", "trailers"), ("Accept-Encoding", "gzip")],
            "{\"amount\":1}",
        );
        let first = gateway.ask(&ask).await;
        assert!(!first.is_replay(), "{path}");
        let replay = gateway.ask(&ask).await;
        assert!(replay.is_replay(), "{path}: {replay:?}");
        if path == "/ratelimit" {
            assert!(!replay.headers.iter().any(|(name, _)| name.contains("ratelimit")), "{replay:?}");
            assert_eq!(replay.body, first.body);
            continue;
        }
        assert_eq!(replay.essence(), first.essence(), "{path}");
        let headers = [("idempotency-key", path), ("te", "trailers"), ("accept-encoding", "gzip")];
        let by_two = ask_h2(gateway.proxy, path, &headers, "{\"amount\":1}").await;
        assert_eq!(by_two.essence(), first.essence(), "{path} over HTTP/2");
        assert_eq!(upstream.effects(path), 1, "{path}");
        assert!(replay.header("idempotency-expires").is_some(), "{path}");
        if path == "/one-exchange" {
            assert_eq!(first.all("set-cookie"), ["session=1"], "the first answer is the upstream's own");
            for name in ["set-cookie", "server", "alt-svc", "www-authenticate", "keep-alive", "x-hop"] {
                assert_eq!(replay.header(name), None, "{name}");
            }
            assert_eq!(replay.header("x-kept"), Some("2"));
            assert_ne!(replay.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"), "a date of its own");
            assert_ne!(replay.header("x-request-id"), Some("of-the-upstream"));
        }
    }
}

#[tokio::test]
async fn conditions_and_ranges_of_a_repeat_change_nothing() {
    let upstream = Upstream::start(|_, _| {
        vec![answer(200, &[("ETag", "\"7\""), ("Accept-Ranges", "bytes")], "the whole answer").into()]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    let key = ("Idempotency-Key", "k-1");
    let first = gateway.ask(request("POST", "/x", &[key], "{}")).await;
    for more in [
        ("Range", "bytes=0-3"),
        ("If-None-Match", "\"7\""),
        ("If-Match", "\"8\""),
        ("If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"),
        ("Accept", "image/png"),
        ("Accept-Language", "fr"),
    ] {
        let replay = gateway.ask(request("POST", "/x", &[key, more], "{}")).await;
        assert!(replay.is_replay(), "{more:?}");
        assert_eq!(replay.essence(), first.essence(), "{more:?}");
    }
}

#[tokio::test]
async fn a_replay_has_the_request_id_of_the_repeat() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let ask = |id| request("POST", "/x", &[("Idempotency-Key", "k-1"), ("X-Request-ID", id)], "{}");
    gateway.ask(ask("first-1")).await;
    assert_eq!(upstream.last().all("x-request-id"), ["first-1"]);
    assert_eq!(gateway.ask(ask("second-2")).await.header("x-request-id"), Some("second-2"));
    gateway.post("/x", "k-2", "{}").await;
    let drawn = upstream.last().header("x-request-id").unwrap().to_owned();
    assert_eq!(drawn.parse::<uuid::Uuid>().unwrap().get_version_num(), 7, "{drawn}");
}

// contract: repeated-completed, route.replay.body, route.replay.header, route.record.set_cookie
#[tokio::test]
async fn a_route_says_how_its_replays_look() {
    let upstream = Upstream::start(|_, _| {
        vec![
            answer(201, &[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Type", "text/plain")], "body").into(),
        ]
    })
    .await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "ack"
match = { path = "/ack" }
replay = { body = "ack", header = "X-Seen-Before" }
[[route]]
name = "cookies"
match = { path = "/cookies" }
record = { set_cookie = true }
"#,
        )
        .start()
        .await;
    gateway.post("/ack", "k-1", "{}").await;
    let ack = gateway.post("/ack", "k-1", "{}").await;
    assert_eq!((ack.status, ack.body.len(), ack.header("x-seen-before")), (200, 0, Some("true")));
    assert_eq!((ack.header("content-type"), ack.header("idempotent-replayed")), (None, None));
    gateway.post("/cookies", "k-1", "{}").await;
    let replay = gateway.post("/cookies", "k-1", "{}").await;
    assert_eq!((replay.is_replay(), replay.all("set-cookie")), (true, vec!["a=1", "b=2"]));
}

#[tokio::test]
async fn answers_that_end_with_the_connection_are_recorded_whole() {
    let upstream = Upstream::start(|_, _| {
        vec![b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nuntil the end".to_vec().into(), super::support::Step::Close]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    let first = gateway.post("/x", "k-1", "{}").await;
    assert_eq!(first.text(), "until the end");
    let replay = gateway.post("/x", "k-1", "{}").await;
    assert!(replay.is_replay());
    assert_eq!(replay.essence(), first.essence());
}

#[tokio::test]
async fn replays_survive_a_restart_of_the_process() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let first = gateway.post("/x", "k-1", "{}").await;
    let gateway = gateway.restart().await;
    let replay = gateway.post("/x", "k-1", "{}").await;
    assert!(replay.is_replay());
    assert_eq!(replay.essence(), first.essence());
    assert_eq!(upstream.effects("k-1"), 1);
    assert!(find(gateway.log().as_bytes(), b"panicked").is_none());
}
