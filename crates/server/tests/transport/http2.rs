//! HTTP/2 to the upstream: what passes, what is bounded, and what is certain when it fails. Upstreams are played frame
//! by frame where a failure is the point, else by the library's server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use onceward_server::proxy::{Upstream, UpstreamError, UpstreamOptions};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tower::{Service, ServiceExt};

use crate::support::{Client, PATIENCE, Recorder};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn options() -> UpstreamOptions {
    let mut options = UpstreamOptions::default();
    options.http2 = true;
    options
}

fn upstream_at<B>(address: SocketAddr) -> Upstream<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Upstream::new(&format!("http://{address}"), &options()).unwrap()
}

fn post() -> Request<Full<Bytes>> {
    Request::post("/v1/payments").header("host", "api.test").body(Full::from("body")).unwrap()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn goaway(last: u32, reason: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat())
}

/// Takes a connection and begins HTTP/2 on it.
async fn begin(listener: &TcpListener) -> Client {
    let mut upstream = Client::accept(listener).await;
    upstream.read_until(b"SM\r\n\r\n").await;
    upstream.buffer.drain(..24);
    upstream.send(frame(SETTINGS, 0, 0, &[])).await;
    upstream
}

/// The stream of the next request, once its HEADERS are here.
async fn next_stream(upstream: &mut Client) -> u32 {
    let seen = async {
        loop {
            let length = |buffer: &[u8]| u32::from_be_bytes([0, buffer[0], buffer[1], buffer[2]]) as usize;
            while upstream.buffer.len() < 9 || upstream.buffer.len() < 9 + length(&upstream.buffer) {
                assert!(upstream.read_more().await, "the connection ended before a request");
            }
            let whole = 9 + length(&upstream.buffer);
            let frame: Vec<u8> = upstream.buffer.drain(..whole).collect();
            if frame[3] == HEADERS {
                return u32::from_be_bytes(frame[5..9].try_into().unwrap());
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("a request")
}

/// How a request ends whose upstream does this once it has the head.
async fn ended_by(answer: impl Fn(u32) -> Vec<u8>) -> UpstreamError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = tokio::spawn(upstream_at(listener.local_addr().unwrap()).oneshot(post()));
    let mut upstream = begin(&listener).await;
    let stream = next_stream(&mut upstream).await;
    upstream.send(answer(stream)).await;
    let closing = async {
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut upstream.stream).await;
        while upstream.read_more().await {}
    };
    let (ended, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(asked, closing) }).await.expect("an end");
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(20), listener.accept()).await.is_err(),
        "a second dispatch"
    );
    ended.unwrap().unwrap_err()
}

#[tokio::test]
async fn what_the_upstream_says_it_did_not_process_was_not_sent() {
    let reset = |reason: u32| move |stream| frame(RST_STREAM, 0, stream, &reason.to_be_bytes());
    let error = ended_by(reset(7)).await;
    assert!(error.not_sent(), "REFUSED_STREAM: {error:?}");
    for reason in [0, 11] {
        let error = ended_by(|stream| goaway(stream - 1, reason)).await;
        assert!(error.not_sent(), "beyond the last stream of a GOAWAY {reason}: {error:?}");
    }
}

#[tokio::test]
async fn every_other_end_may_have_been_carried_out() {
    for reason in [0, 1, 2, 5, 8, 11] {
        let error = ended_by(|stream| frame(RST_STREAM, 0, stream, &u32::to_be_bytes(reason))).await;
        assert!(!error.not_sent() && !error.request_body_failed(), "reset with {reason}: {error:?}");
    }
    for (last, reason) in [(0, 0), (0, 2), (u32::MAX >> 1, 0), (u32::MAX >> 1, 11)] {
        let error = ended_by(|stream| goaway(last.max(stream), reason)).await;
        assert!(!error.not_sent() && !error.request_body_failed(), "GOAWAY {last} {reason}: {error:?}");
    }
    let error = ended_by(|_| Vec::new()).await;
    assert!(!error.not_sent() && !error.request_body_failed(), "an end: {error:?}");
    // A broken frame, to which the library itself says GOAWAY.
    let error = ended_by(|_| frame(SETTINGS, 0, 0, b"odd")).await;
    assert!(!error.not_sent() && !error.request_body_failed(), "a protocol error: {error:?}");
}

#[tokio::test]
async fn an_upstream_that_does_not_begin_http2_got_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for said in ["HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", ""] {
        let asked = tokio::spawn(upstream_at(listener.local_addr().unwrap()).oneshot(post()));
        let mut upstream = Client::accept(&listener).await;
        upstream.send(said).await;
        drop(upstream);
        let error = asked.await.unwrap().unwrap_err();
        assert!(error.not_sent(), "{said:?}: {error:?}");
    }
    // One that says nothing at all, within the time for a connection.
    let mut options = options();
    options.connect_timeout = std::time::Duration::from_millis(50);
    let upstream = Upstream::new(&format!("http://{}", listener.local_addr().unwrap()), &options).unwrap();
    let error = upstream.oneshot(post()).await.unwrap_err();
    assert!(error.not_sent(), "{error:?}");
}

/// An upstream of the library that answers as it is told.
async fn serve<F>(
    streams_max: u32,
    answer: impl Fn(Request<hyper::body::Incoming>) -> F + Clone + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = Response<StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Piece>>>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, std::convert::Infallible>(answered.await) }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            builder.max_concurrent_streams(streams_max);
            tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    address
}

type Piece = Result<Frame<Bytes>, std::io::Error>;

fn pieces(pieces: Vec<Frame<Bytes>>) -> StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Piece>>> {
    StreamBody::new(futures_util::stream::iter(pieces.into_iter().map(Ok).collect::<Vec<_>>()))
}

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    [(name.parse().unwrap(), value.parse().unwrap())].into_iter().collect()
}

#[tokio::test]
async fn head_body_and_trailers_pass_in_both_directions() {
    let seen = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&seen);
    let address = serve(100, move |request: Request<hyper::body::Incoming>| {
        let kept = Arc::clone(&kept);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap();
            let trailers = body.trailers().cloned();
            *kept.lock().unwrap() = Some((head, body.to_bytes(), trailers));
            let mut response = Response::new(pieces(vec![
                Frame::data("answer".into()),
                Frame::trailers(self::trailers("grpc-status", "0")),
            ]));
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response
        }
    })
    .await;
    let mut upstream = upstream_at(address);
    let body = pieces(vec![Frame::data("ask".into()), Frame::trailers(trailers("x-sum", "7"))]);
    let mut request = Request::post("/pay.Pay/Charge?x=1").body(body).unwrap();
    for (name, value) in [("host", "api.test:50051"), ("te", "trailers"), ("content-type", "application/grpc")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = upstream.call(request).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/grpc".parse().unwrap())
    );
    let answer = answer.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers(), Some(&trailers("grpc-status", "0")));
    assert_eq!(answer.to_bytes(), "answer");
    let (head, body, sent) = seen.lock().unwrap().take().unwrap();
    assert_eq!(head.uri, "http://api.test:50051/pay.Pay/Charge?x=1");
    assert_eq!(
        (&head.headers["te"], head.headers.get("host"), head.headers.get("connection")),
        (&"trailers".parse().unwrap(), None, None)
    );
    assert_eq!((body, sent), (Bytes::from("ask"), Some(trailers("x-sum", "7"))));
}

#[tokio::test]
async fn a_request_body_that_fails_is_told_as_such() {
    let address = serve(100, |request: Request<hyper::body::Incoming>| async move {
        let _ = request.into_body().collect().await;
        Response::new(pieces(Vec::new()))
    })
    .await;
    let body = StreamBody::new(futures_util::stream::iter([
        Ok(Frame::data(Bytes::from("half"))),
        Err(std::io::Error::other("the client went away")),
    ]));
    let request = Request::post("/").header("host", "a").body(body).unwrap();
    let error = upstream_at(address).oneshot(request).await.unwrap_err();
    assert!(error.request_body_failed() && !error.not_sent(), "{error:?}");
}

/// So many requests that are open at a time are on so few connections as the upstream's limit needs, and wait beyond
/// for a connection, not for a reset.
#[tokio::test]
async fn a_connection_carries_as_many_requests_as_the_upstream_says() {
    const ASKED: usize = 5;
    let (come, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut upstream = upstream_at::<Full<Bytes>>(listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, arrived, opened) = (Arc::clone(&connections), Arc::clone(&come), Arc::clone(&gate));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let (arrived, opened) = (Arc::clone(&arrived), Arc::clone(&opened));
            let service = hyper::service::service_fn(move |_| {
                let (arrived, opened) = (Arc::clone(&arrived), Arc::clone(&opened));
                async move {
                    let wait = opened.notified();
                    arrived.add_permits(1);
                    wait.await;
                    Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
                }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            builder.max_concurrent_streams(2);
            tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    let asked: Vec<_> = (0..ASKED).map(|_| tokio::spawn(upstream.call(post()))).collect();
    let all = come.acquire_many(u32::try_from(ASKED).unwrap());
    let _all = tokio::time::timeout(PATIENCE, all).await.expect("all are there at a time").unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 3);
    gate.notify_waiters();
    for asked in asked {
        let answer = asked.await.unwrap().unwrap();
        answer.into_body().collect().await.unwrap();
    }
    // And the connections are used again.
    let again = tokio::spawn(upstream.call(post()));
    let _one = come.acquire().await.unwrap();
    gate.notify_waiters();
    again.await.unwrap().unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

/// Connections end in good order again and again while requests come. What was not sent the upstream has not seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_in_good_order_are_told_truly() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = upstream_at::<Full<Bytes>>(listener.local_addr().unwrap());
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (counted, served) = (Arc::clone(&counted), Arc::new(Notify::new()));
            let told = Arc::clone(&served);
            let service = hyper::service::service_fn(move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
                told.notify_one();
                async { Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from("ok"))) }
            });
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let mut connection =
                    std::pin::pin!(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
                for _ in 0..5 {
                    tokio::select! {
                        _ = &mut connection => return,
                        () = served.notified() => {}
                    }
                }
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            });
        }
    });
    let (answered, unsure) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (mut upstream, answered, unsure) = (upstream.clone(), Arc::clone(&answered), Arc::clone(&unsure));
            tokio::spawn(async move {
                for _ in 0..200 {
                    let called = tokio::time::timeout(PATIENCE, upstream.call(post())).await;
                    match called.expect("a request that came as its connection ended is told of it") {
                        Ok(answer) => {
                            // One that breaks off leaves its client as unsure as none.
                            let whole = answer.into_body().collect().await.is_ok();
                            (if whole { &answered } else { &unsure }).fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) if error.not_sent() => {}
                        Err(_) => {
                            unsure.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let [done, answered, unsure] = [done, answered, unsure].map(|count| count.load(Ordering::Relaxed));
    assert!((answered..=answered + unsure).contains(&done), "{done} done, {answered} answered, {unsure} unsure");
    // How many meet the end of their connection is the machine's to say; that they are few, that this shows anything.
    assert!(answered > 3000 && unsure * 20 < answered, "{answered} answered, {unsure} unsure");
}

#[tokio::test]
async fn a_websocket_begins_as_http1_before_an_upstream_of_http2() {
    let recorder = Recorder::start().await;
    let upstream = upstream_at(recorder.address);
    let mut request = Request::get("/chat").body(Full::<Bytes>::default()).unwrap();
    for (name, value) in [("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(upstream.oneshot(request).await.unwrap().status(), 200);
    recorder.with(|log| assert!(log.requests[0].head.starts_with("GET /chat HTTP/1.1\r\n"), "{:?}", log.requests));
}
