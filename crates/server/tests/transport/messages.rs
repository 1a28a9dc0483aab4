//! What crosses the proxy, and how it is changed.

use tokio::net::TcpListener;

use crate::support::{Client, Proxy, Recorder, fields, find};

/// A proxy, and the listener of an upstream that the test plays by hand.
async fn by_hand() -> (Proxy, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    (proxy, listener)
}

/// Sends a request, answers it by hand, and gives the head with the client.
async fn exchange(request: &str, answer: &str) -> (String, Client) {
    let (proxy, listener) = by_hand().await;
    let mut client = proxy.connect().await;
    client.send(request).await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    let end = find(&upstream.buffer, b"\r\n\r\n").unwrap();
    let head = String::from_utf8(upstream.buffer[..end].to_vec()).unwrap();
    upstream.send(answer).await;
    client.proxy = Some(proxy);
    (head, client)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn the_upstream_gets_the_request_without_the_hop_and_with_its_client() {
    let request = "POST /v1/pay?x=%2f HTTP/1.1\r\nHost: api.example:81\r\nContent-Length: 0\r\n\
        Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers, gzip\r\n\
        Proxy-Authorization: Basic eA==\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\n\
        Via: 1.1 other\r\nX-Double: a\r\nX-Double: b\r\n\r\n";
    let (head, mut client) = exchange(request, OK).await;
    assert!(head.starts_with("POST /v1/pay?x=%2f HTTP/1.1\r\n"), "{head}");
    for (name, values) in [
        ("host", &["api.example:81"][..]),
        ("content-length", &["0"]),
        ("connection", &["te"]),
        ("te", &["trailers"]),
        ("x-hop", &[]),
        ("keep-alive", &[]),
        ("proxy-authorization", &[]),
        ("via", &["1.1 other"]),
        ("x-double", &["a", "b"]),
        ("x-forwarded-for", &["127.0.0.1"]),
        ("x-forwarded-host", &["api.example:81"]),
        ("x-forwarded-proto", &["http"]),
        ("forwarded", &["for=127.0.0.1;proto=http"]),
    ] {
        assert_eq!(fields(&head, name), values, "{name} in {head}");
    }
    assert_eq!(client.answer().await.unwrap().body, b"ok");
}

#[tokio::test]
async fn a_trusted_peer_speaks_for_its_client() {
    let recorder = Recorder::start().await;
    let proxy =
        Proxy::with(recorder.address, crate::support::limits(), crate::support::times(), &["127.0.0.0/8"]).await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    let head = recorder.with(|log| log.requests[0].head.clone());
    assert_eq!(fields(&head, "x-forwarded-for"), ["203.0.113.9, 127.0.0.1"]);
    assert_eq!(fields(&head, "x-forwarded-proto"), ["https"]);
}

#[tokio::test]
async fn the_host_of_an_absolute_target_wins_over_the_field() {
    let (head, _client) = exchange("GET http://real:81/a HTTP/1.1\r\nHost: other\r\n\r\n", OK).await;
    assert!(head.starts_with("GET /a HTTP/1.1\r\n"), "{head}");
    assert_eq!(fields(&head, "host"), ["real:81"]);
    assert_eq!(fields(&head, "x-forwarded-host"), ["real:81"]);
}

#[tokio::test]
async fn the_client_gets_the_answer_without_the_hop() {
    let answer = "HTTP/1.1 201 Quite Created\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
        Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok";
    let (_, mut client) = exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", answer).await;
    let answer = client.answer().await.unwrap();
    assert!(answer.head.starts_with("HTTP/1.1 201 Quite Created\r\n"), "{}", answer.head);
    assert_eq!(answer.field("set-cookie"), ["a=1", "b=2"]);
    for name in ["connection", "x-hop", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert!(answer.field(name).is_empty(), "{name} in {}", answer.head);
    }
}

#[tokio::test]
async fn an_answer_with_two_framings_reaches_the_client_with_the_one_that_was_read() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (_, mut client) = exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", answer).await;
    client.read_until(b"2\r\nok\r\n0\r\n\r\n").await;
    let text = String::from_utf8_lossy(&client.buffer).to_ascii_lowercase();
    assert!(text.contains("transfer-encoding: chunked") && !text.contains("content-length"), "{text}");
}

#[tokio::test]
async fn interim_answers_are_dropped() {
    let answer = format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{OK}");
    let (_, mut client) = exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &answer).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
}

#[tokio::test]
async fn an_answer_to_head_keeps_the_length_it_would_have() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n";
    let (_, mut client) = exchange("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", answer).await;
    client.read_until(b"\r\n\r\n").await;
    let text = String::from_utf8_lossy(&client.buffer).to_ascii_lowercase();
    assert!(text.contains("content-length: 50"), "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn a_continue_is_answered_here_and_not_asked_upstream() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::before(recorder.address).await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 100);
    client.send("hello").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    let received = recorder.with(|log| log.requests[0].clone());
    assert_eq!(received.body, "hello");
    assert!(fields(&received.head, "expect").is_empty(), "{}", received.head);
}

#[tokio::test]
async fn bodies_stream_both_ways_before_they_end() {
    let (proxy, listener) = by_hand().await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"5\r\nfirst\r\n").await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    client.read_until(b"3\r\none\r\n").await;
    client.send("6\r\nsecond\r\n0\r\n\r\n").await;
    upstream.read_until(b"6\r\nsecond\r\n0\r\n\r\n").await;
    upstream.send("3\r\ntwo\r\n0\r\n\r\n").await;
    client.read_until(b"3\r\ntwo\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn trailers_cross_both_ways() {
    let (proxy, listener) = by_hand().await;
    let mut client = proxy.connect().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\n\r\n\
             2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
        .await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"0\r\nx-sum: 7\r\n\r\n").await;
    upstream
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n2\r\nok\r\n0\r\nX-End: 8\r\n\r\n")
        .await;
    client.read_until(b"2\r\nok\r\n0\r\nx-end: 8\r\n\r\n").await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client() {
    let (proxy, listener) = by_hand().await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    client.read_until(b"5\r\nhello\r\n").await;
    drop(upstream);
    while client.read_more().await {}
    assert!(find(&client.buffer, b"0\r\n\r\n").is_none(), "{:?}", String::from_utf8_lossy(&client.buffer));
}

#[tokio::test]
async fn a_refused_upload_still_sees_why() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::before(recorder.address).await;
    let mut client = proxy.connect().await;
    // No Host: refused at the head. The body is larger than both sockets' buffers, so the client is still sending.
    client.send("POST / HTTP/1.1\r\nContent-Length: 900000\r\n\r\n").await;
    client.send(vec![b'x'; 900_000]).await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.field("content-type"), ["application/problem+json"]);
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem["type"], "urn:onceward:problem:bad-request");
    assert_eq!(problem["retryable"], false);
    assert!(client.answer().await.is_none());
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_until_the_drain_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut limits = crate::support::limits();
    limits.drain = std::time::Duration::from_millis(1);
    let proxy = Proxy::with(listener.local_addr().unwrap(), limits, crate::support::times(), &[]).await;
    let mut client = proxy.connect().await;
    client
        .send(
            "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    let head = String::from_utf8(std::mem::take(&mut upstream.buffer)).unwrap();
    assert_eq!(fields(&head, "connection"), ["upgrade"]);
    assert_eq!(fields(&head, "upgrade"), ["websocket"]);
    assert_eq!(fields(&head, "sec-websocket-key").len(), 1);
    upstream
        .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\n\n hello")
        .await;
    client.read_until(b"\n\n hello").await;
    let text = String::from_utf8_lossy(&client.buffer).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 101 ") && text.contains("upgrade: websocket\r\n"), "{text}");
    // Bytes that no HTTP reader would take.
    client.send(b"\n\0\r\n from the client").await;
    upstream.read_until(b"\n\0\r\n from the client").await;

    let report = proxy.stop().await.unwrap();
    assert_eq!((report.connections_cut, report.tunnels_cut), (0, 1));
    while client.read_more().await {}
    while upstream.read_more().await {}
}

#[tokio::test]
async fn large_bodies_arrive_whole_in_either_framing() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::before(recorder.address).await;
    let mut client = proxy.connect().await;
    // Every byte there is, line ends among them, in pieces that no buffer's size divides.
    let body: Vec<u8> = (0..3_000_017_u32).map(|at| (at % 251) as u8).collect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    client.send(format!("{head}Content-Length: {}\r\n\r\n", body.len())).await;
    client.send(&body).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).await;
    for piece in body.chunks(70_001) {
        client.send(format!("{:X}\r\n", piece.len())).await;
        client.send(piece).await;
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    recorder.with(|log| {
        assert_eq!(log.requests.len(), 2);
        for received in &log.requests {
            assert!(received.body == body, "{}", received.head);
        }
    });
}
