//! Limits of connections, HTTP/2, and the end.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Client, PATIENCE, Proxy, Recorder, fields, limits, times};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// Long enough that a limit is not met by chance, short enough to wait for.
const SHORT: Duration = Duration::from_millis(100);

async fn ends(client: &mut Client) {
    tokio::time::timeout(PATIENCE, async { while client.read_more().await {} }).await.expect("an end");
}

#[tokio::test]
async fn beyond_the_limit_a_connection_waits_for_a_place() {
    let recorder = Recorder::start().await;
    let mut bounds = limits();
    bounds.connections = 1;
    let proxy = Proxy::with(recorder.address, bounds, times(), &[]).await;
    let mut first = proxy.connect().await;
    first.send(GET).await;
    assert_eq!(first.answer().await.unwrap().status, 200);
    let mut second = proxy.connect().await;
    second.send(GET).await;
    assert!(tokio::time::timeout(SHORT, second.read_more()).await.is_err(), "it must wait");
    drop(first);
    assert_eq!(second.answer().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_head_that_does_not_end_ends_the_connection_however_it_trickles() {
    let recorder = Recorder::start().await;
    let mut bounds = limits();
    bounds.header_read_timeout = SHORT;
    let proxy = Proxy::with(recorder.address, bounds, times(), &[]).await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
    let (mut read, mut write) = client.stream.into_split();
    let trickle = tokio::spawn(async move {
        while tokio::io::AsyncWriteExt::write_all(&mut write, b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut rest);
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("an end");
    trickle.abort();
}

#[tokio::test]
async fn a_connection_without_requests_ends_and_one_with_a_slow_answer_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bounds = limits();
    bounds.keep_alive = SHORT;
    let proxy = Proxy::with(listener.local_addr().unwrap(), bounds, times(), &[]).await;
    let mut silent = proxy.connect().await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    ends(&mut silent).await;
    // More than the limit has passed by now, with a request open.
    tokio::time::sleep(SHORT).await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    ends(&mut client).await;
}

#[tokio::test]
async fn a_body_that_stops_ends_the_connection() {
    let recorder = Recorder::start().await;
    let mut bounds = limits();
    bounds.stall_timeout = SHORT;
    let proxy = Proxy::with(recorder.address, bounds, times(), &[]).await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await;
    ends(&mut client).await;
    assert_eq!(recorder.with(|log| log.requests.len()), 0);
}

#[tokio::test]
async fn a_client_that_stops_reading_ends_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bounds = limits();
    bounds.stall_timeout = SHORT;
    let proxy = Proxy::with(listener.local_addr().unwrap(), bounds, times(), &[]).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
    // Fills every buffer on the way; ends when the proxy gives the exchange up.
    let answer = vec![0; 100_000_000];
    let written = tokio::io::AsyncWriteExt::write_all(&mut upstream.stream, &answer);
    assert!(tokio::time::timeout(PATIENCE, written).await.expect("an end").is_err());
    drop(client);
}

#[tokio::test]
async fn a_drain_lets_open_requests_end_and_takes_no_new_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    let address = proxy.address;
    let mut open = proxy.connect().await;
    open.send(GET).await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    let mut fresh = proxy.connect().await;
    // Accepted, for it comes after the first in the queue and before the end is asked for; may be cut without a word.
    let report = proxy.stop();
    ends(&mut fresh).await;
    assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = open.answer().await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
    assert_eq!(answer.field("connection"), ["close"]);
    assert!(open.answer().await.is_none());
    let report = report.await.unwrap();
    assert_eq!((report.connections_cut, report.tunnels_cut), (0, 0));
}

#[tokio::test]
async fn what_is_open_at_the_end_of_the_drain_is_cut_and_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bounds = limits();
    bounds.drain = Duration::from_millis(1);
    let proxy = Proxy::with(listener.local_addr().unwrap(), bounds, times(), &[]).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    let report = proxy.stop().await.unwrap();
    assert_eq!(report.connections_cut, 1);
    ends(&mut client).await;
    ends(&mut upstream).await;
}

type H2<B> = hyper::client::conn::http2::SendRequest<B>;

async fn http2<B>(proxy: &Proxy) -> (H2<B>, tokio::task::JoinHandle<hyper::Result<()>>)
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TokioIo::new(TcpStream::connect(proxy.address).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

#[tokio::test]
async fn http2_requests_become_http1_requests_upstream() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::before(recorder.address).await;
    let (mut sender, _connection) = http2(&proxy).await;
    let pieces = futures_util::stream::iter(["he", "llo"])
        .map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(piece))));
    let request = Request::post("http://api:81/a?b")
        .version(Version::HTTP_2)
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(StreamBody::new(pieces))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (http::StatusCode::OK, Version::HTTP_2));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    let received = recorder.with(|log| {
        assert!(log.violations.is_empty(), "{:?}", log.violations);
        log.requests[0].clone()
    });
    assert!(received.head.starts_with("POST /a?b HTTP/1.1\r\n"), "{}", received.head);
    assert_eq!(received.body, "hello");
    assert_eq!(fields(&received.head, "host"), ["api:81"]);
    assert_eq!(fields(&received.head, "cookie"), ["a=1; b=2"]);
    assert_eq!(fields(&received.head, "transfer-encoding"), ["chunked"]);
}

#[tokio::test]
async fn http2_refuses_what_http1_refuses() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::before(recorder.address).await;
    let (mut sender, _connection) = http2(&proxy).await;
    for (request, status) in [
        (Request::get("http://a/").header("host", "b"), 400),
        (Request::connect("a:80"), 405),
        (Request::get("http://a/"), 200),
    ] {
        let request = request.version(Version::HTTP_2).body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), status);
    }
    assert_eq!(recorder.with(|log| log.requests.len()), 1);
}

#[tokio::test]
async fn http2_trailers_reach_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    let (mut sender, _connection) = http2(&proxy).await;
    let request = Request::get("http://a/").version(Version::HTTP_2).body(Empty::<Bytes>::new()).unwrap();
    let asked = tokio::spawn(sender.send_request(request));
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"\r\n\r\n").await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n").await;
    let body = asked.await.unwrap().unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_drain_ends_http2_with_a_goaway_after_the_open_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    let (mut sender, connection) = http2(&proxy).await;
    let request = Request::post("http://a/").version(Version::HTTP_2).body(Full::<Bytes>::from("body")).unwrap();
    let asked = tokio::spawn(sender.send_request(request));
    let mut upstream = Client::accept(&listener).await;
    upstream.read_until(b"body").await;
    let report = proxy.stop();
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    tokio::time::timeout(PATIENCE, connection).await.expect("an end").unwrap().expect("a clean end");
    assert_eq!(report.await.unwrap().connections_cut, 0);
}

#[tokio::test]
async fn http2_without_requests_ends() {
    let recorder = Recorder::start().await;
    let mut bounds = limits();
    bounds.keep_alive = SHORT;
    let proxy = Proxy::with(recorder.address, bounds, times(), &[]).await;
    let (mut sender, connection) = http2(&proxy).await;
    let request = Request::get("http://a/").version(Version::HTTP_2).body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    answer.into_body().collect().await.unwrap();
    tokio::time::timeout(PATIENCE, connection).await.expect("an end").unwrap().expect("a clean end");
}

use futures_util::StreamExt as _;

/// curl before version 8 takes an answer for lost whose stream is reset while its request is on the way.
#[tokio::test]
async fn a_short_body_that_nobody_reads_does_not_reset_its_stream_and_a_long_one_does() {
    let refuses = tower::service_fn(|_| async {
        let response = http::Response::builder().status(400).body(Full::new(Bytes::from_static(b"no"))).unwrap();
        Ok::<_, std::convert::Infallible>(response)
    });
    let proxy = Proxy::around(refuses, limits(), &[]).await;
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let ask = |client: &mut h2::client::SendRequest<Bytes>, end| {
        client.send_request(Request::post("http://a/").body(()).unwrap(), end).unwrap()
    };
    for _ in 0..2 {
        let (answer, mut body) = ask(&mut client, false);
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), 400);
        while answer.body_mut().data().await.is_some() {}
        body.send_data(vec![b'x'; 1_000].into(), true).unwrap();
        // Whatever the proxy makes of it comes before the answer to what is asked after it.
        ask(&mut client, true).0.await.unwrap();
        let reset = std::future::poll_fn(|context| body.poll_reset(context));
        assert!(tokio::time::timeout(Duration::ZERO, reset).await.is_err());
    }
    let (answer, mut body) = ask(&mut client, false);
    assert_eq!(answer.await.unwrap().status(), 400);
    let endless = async {
        loop {
            body.reserve_capacity(16 << 10);
            match std::future::poll_fn(|context| body.poll_capacity(context)).await {
                Some(Ok(room)) => drop(body.send_data(vec![b'x'; room].into(), false)),
                _ => break,
            }
        }
    };
    tokio::time::timeout(PATIENCE, endless).await.expect("it is cut off");
}

/// What the proxy writes in place of a refusal of hyper's must never take the place of an answer's own bytes.
#[tokio::test]
async fn a_body_that_looks_like_a_bare_refusal_is_passed_on_as_it_is() {
    const TEXT: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let echoes = tower::service_fn(|_| async {
        // The head goes out before the body is there, so that this is a write of its own.
        let body = StreamBody::new(futures_util::stream::once(async {
            tokio::time::sleep(SHORT).await;
            Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(TEXT.as_bytes())))
        }));
        let response = http::Response::builder().header("content-length", TEXT.len()).body(body).unwrap();
        Ok::<_, std::convert::Infallible>(response)
    });
    let proxy = Proxy::around(echoes, limits(), &[]).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        client.send(GET).await;
        assert_eq!(String::from_utf8_lossy(&client.answer().await.unwrap().body), TEXT);
    }
    client.send("GARBAGE\r\n\r\n").await;
    let refused = client.answer().await.unwrap();
    assert!(refused.status == 400 && refused.field("content-type") == ["application/problem+json"], "{refused:?}");
}
