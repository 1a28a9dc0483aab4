//! The two ends of a comparison: the smallest upstream, and a proxy that does nothing but forward.

use std::convert::Infallible;
use std::future::Future;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Bytes of the upstream's answer.
const ANSWER_BYTES: usize = 300;
/// Connections to the upstream that wait for their next request.
const IDLE_MAX: usize = 1024;

/// Answers every request, once its body is read, with 201 and 300 bytes of JSON, on one thread.
///
/// # Errors
/// Where it cannot listen.
pub(crate) fn upstream() -> anyhow::Result<()> {
    let frame = br#"{"id":"ch_1","note":""}"#.len();
    let answer = format!(r#"{{"id":"ch_1","note":"{}"}}"#, "x".repeat(ANSWER_BYTES - frame));
    let answer = Bytes::from(answer);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(move |request| {
        let answer = answer.clone();
        async move {
            let status = match request.into_body().collect().await {
                Ok(_) => StatusCode::CREATED,
                Err(_) => StatusCode::BAD_REQUEST,
            };
            let mut response = Response::new(Full::new(answer));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
    }))
}

/// Forwards every request to `upstream`, streaming both bodies, over pooled connections, on the
/// runtime that Onceward uses.
///
/// # Errors
/// Where it cannot listen.
pub(crate) fn plain_proxy(upstream: &str) -> anyhow::Result<()> {
    let authority: hyper::http::uri::Authority =
        upstream.strip_prefix("http://").context("http:// only")?.trim_end_matches('/').parse()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async move {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client: Client<_, Incoming> =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(IDLE_MAX).build(connector);
        serve(move |mut request: Request<Incoming>| {
            let (client, authority) = (client.clone(), authority.clone());
            async move {
                let path = request.uri().path_and_query().cloned();
                let path = path.unwrap_or_else(|| hyper::http::uri::PathAndQuery::from_static("/"));
                let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
                let forwarded = match uri {
                    Ok(uri) => {
                        *request.uri_mut() = uri;
                        request.headers_mut().remove(header::CONNECTION);
                        client.request(request).await.ok()
                    }
                    Err(_) => None,
                };
                match forwarded {
                    Some(response) => response.map(BodyExt::boxed),
                    None => {
                        let empty = http_body_util::Empty::new().map_err(|never: Infallible| match never {}).boxed();
                        let mut response = Response::new(empty);
                        *response.status_mut() = StatusCode::BAD_GATEWAY;
                        response
                    }
                }
            }
        })
        .await
    })
}

/// Serves on a free port, which it prints as a URL.
async fn serve<F, B>(handle: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> anyhow::Result<()>
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let handle = handle.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // A connection that ends badly shows in wrk's errors.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
