//! What becomes of a request when the upstream is away, breaks off, or closes connections that are kept.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use onceward_server::proxy::{Upstream, UpstreamError, UpstreamOptions};
use tokio::net::TcpListener;
use tower::{Service, ServiceExt};

use crate::support::{Client, Proxy, Recorder};

type AnyUpstream = Upstream<Full<Bytes>>;

fn upstream_at(address: std::net::SocketAddr) -> AnyUpstream {
    Upstream::new(&format!("http://{address}"), &UpstreamOptions::default()).unwrap()
}

fn post() -> Request<Full<Bytes>> {
    Request::post("/v1/payments").header("host", "a").body(Full::from("body")).unwrap()
}

async fn problem_of(client: &mut Client) -> (u16, String) {
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.field("content-type"), ["application/problem+json"]);
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    (answer.status, problem["type"].as_str().unwrap().trim_start_matches("urn:onceward:problem:").to_owned())
}

const REQUEST: &str = "POST /v1/payments HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

#[tokio::test]
async fn an_upstream_that_is_not_there_got_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = upstream_at(address).oneshot(post()).await.unwrap_err();
    assert!(error.not_sent(), "{error:?}");

    let proxy = Proxy::before(address).await;
    let mut client = proxy.connect().await;
    client.send(REQUEST).await;
    assert_eq!(problem_of(&mut client).await, (502, "upstream-unreachable".to_owned()));
    // The connection of the client is as good as before.
    client.send(REQUEST).await;
    assert_eq!(problem_of(&mut client).await, (502, "upstream-unreachable".to_owned()));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_got_nothing() {
    let upstream = AnyUpstream::new("http://nothing.invalid:9", &UpstreamOptions::default()).unwrap();
    assert!(upstream.oneshot(post()).await.unwrap_err().not_sent());
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_in_time_got_nothing() {
    // A full queue: the kernel takes no further handshake, and the connection hangs.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        held.push(stream);
        assert!(held.len() < 100, "the queue never fills");
    }
    let mut options = UpstreamOptions::default();
    options.connect_timeout = Duration::from_millis(50);
    let upstream = AnyUpstream::new(&format!("http://{address}"), &options).unwrap();
    let error = upstream.oneshot(post()).await.unwrap_err();
    assert!(error.not_sent(), "{error:?}");
}

#[tokio::test]
async fn an_upstream_that_closes_at_once_got_nothing() {
    // As a port forwarder does when nothing is behind it: the connection comes about, and ends before a byte.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = upstream_at(listener.local_addr().unwrap());
    let asked = tokio::spawn(upstream.oneshot(post()));
    let (stream, _) = listener.accept().await.unwrap();
    // The request may be out already; then it is not certain, and must be said to be so.
    drop(stream);
    match asked.await.unwrap().unwrap_err() {
        UpstreamError::NotSent { .. } | UpstreamError::Broken { request_body: false, .. } => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_exchange_that_breaks_off_may_have_been_carried_out() {
    for part in ["", "HTTP/1.1 200 OK\r\nContent-Le"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::before(listener.local_addr().unwrap()).await;
        let mut client = proxy.connect().await;
        client.send(REQUEST).await;
        let mut upstream = Client::accept(&listener).await;
        upstream.read_until(b"body").await;
        upstream.send(part).await;
        drop(upstream);
        assert_eq!(problem_of(&mut client).await, (502, "upstream-failed".to_owned()));
        // And it was not sent again.
        let again = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(again.is_err(), "a second dispatch");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_http_may_have_been_carried_out() {
    for nonsense in
        ["SMTP ready\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n"]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asked = tokio::spawn(upstream_at(listener.local_addr().unwrap()).oneshot(post()));
        let mut upstream = Client::accept(&listener).await;
        upstream.read_until(b"body").await;
        upstream.send(nonsense).await;
        let error = asked.await.unwrap().unwrap_err();
        assert!(!error.not_sent() && !error.request_body_failed(), "{nonsense:?}: {error:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_silent_ends_in_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut times = crate::support::times();
    times.timeout = Duration::from_millis(50);
    let proxy = Proxy::with(listener.local_addr().unwrap(), crate::support::limits(), times, &[]).await;
    let mut client = proxy.connect().await;
    client.send(REQUEST).await;
    let _upstream = Client::accept(&listener).await;
    assert_eq!(problem_of(&mut client).await, (504, "upstream-timeout".to_owned()));
}

#[tokio::test]
async fn an_answer_that_stops_is_broken_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut times = crate::support::times();
    times.idle_timeout = Duration::from_millis(50);
    let proxy = Proxy::with(listener.local_addr().unwrap(), crate::support::limits(), times, &[]).await;
    let mut client = proxy.connect().await;
    client.send(REQUEST).await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"body").await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello").await;
    client.read_until(b"hello").await;
    while client.read_more().await {}
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    let mut client = proxy.connect().await;
    client.send(REQUEST).await;
    let mut upstream = Client::accept(&listener).await;
    for _ in 0..3 {
        upstream.read_until(b"body").await;
        upstream.buffer.clear();
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        client.send(REQUEST).await;
    }
}

/// The upstream ends each connection after its answer without having said so, and the next request comes the moment
/// after. The end is in the kernel by then, but the runtime need not have seen it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_closes_kept_connections_costs_no_request_and_sees_none_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut upstream = upstream_at(listener.local_addr().unwrap());
    const ROUNDS: usize = 300;
    let (closed, mut is_closed) = tokio::sync::mpsc::channel(1);
    let served = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            let mut connection = Client::accept(&listener).await;
            connection.read_until(b"body").await;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            drop(connection);
            closed.send(()).await.unwrap();
        }
        listener
    });
    for round in 0..ROUNDS {
        let answer = upstream.call(post()).await.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
        is_closed.recv().await.unwrap();
    }
    // One connection for each request, and none beyond.
    let listener = served.await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), listener.accept()).await.is_err());
}

#[tokio::test]
async fn a_request_body_that_fails_is_not_the_upstreams_fault() {
    let recorder = Recorder::start().await;
    let upstream: Upstream<_> =
        Upstream::new(&format!("http://{}", recorder.address), &UpstreamOptions::default()).unwrap();
    let pieces = futures_util::stream::iter([
        Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
        Err(std::io::Error::other("the client went away")),
    ]);
    let body = http_body_util::StreamBody::new(pieces);
    let request = Request::post("/").header("host", "a").body(body).unwrap();
    let error = upstream.oneshot(request).await.unwrap_err();
    assert!(error.request_body_failed() && !error.not_sent(), "{error:?}");
    assert_eq!(recorder.with(|log| log.requests.len()), 0);
}

#[tokio::test]
async fn a_client_that_leaves_mid_body_leaves_no_whole_request_upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    for framing in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let mut client = proxy.connect().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}")).await;
        let mut upstream = Client::accept(&listener).await;
        upstream.read_until(b"hello").await;
        drop(client);
        while upstream.read_more().await {}
        assert!(!upstream.buffer.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&upstream.buffer));
    }
}

#[tokio::test]
async fn a_service_that_fails_without_an_answer_is_a_500() {
    let service = tower::service_fn(|_: Request<onceward_server::proxy::RequestBody>| async {
        Err::<http::Response<Full<Bytes>>, _>(std::io::Error::other("broken"))
    });
    let proxy = Proxy::around(service, crate::support::limits(), &[]).await;
    let mut client = proxy.connect().await;
    client.send(REQUEST).await;
    assert_eq!(problem_of(&mut client).await, (500, "internal".to_owned()));
}

#[tokio::test]
async fn a_request_says_who_its_peer_is() {
    let service = tower::service_fn(|request: Request<onceward_server::proxy::RequestBody>| async move {
        let peer = request.extensions().get::<onceward_server::proxy::Peer>().copied();
        Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::from(format!("{:?}", peer.map(|peer| peer.trusted)))))
    });
    for (trusted, expected) in [(&["127.0.0.1"][..], "Some(true)"), (&[], "Some(false)")] {
        let proxy = Proxy::around(service, crate::support::limits(), trusted).await;
        let mut client = proxy.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.unwrap().body, expected.as_bytes());
    }
}
