//! What every request passes first: one reading of it for all behind, or a refusal.
//!
//! Behind this, a request is in origin form with its authority in `Host`, has no hop-by-hop field, says truly for whom
//! it comes, and its body is framed by hyper alone.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::{Service, ServiceExt};

use super::headers;
use super::problem::{self, Asked, Problem};
use super::request_body::RequestBody;
use super::serve::Connection;
use super::socket::OpenRequest;
use super::tunnel;

/// Why a request goes no further.
#[derive(Debug)]
struct Refusal {
    problem: Problem,
    detail: &'static str,
}

const fn bad(detail: &'static str) -> Refusal {
    Refusal { problem: problem::BAD_REQUEST, detail }
}

/// Answers one request of a client.
pub(super) async fn answer<S, B>(
    request: Request<Incoming>,
    service: S,
    connection: Arc<Connection>,
) -> Result<Response<AnswerBody<B>>, std::convert::Infallible>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body<Data = Bytes>,
{
    let open = connection.activity.open();
    let version = request.version();
    let mut request = request.map(|body| RequestBody::new(body, version));
    // Where `framing` stopped following, whatever else the request says: this must be the connection's last.
    let blind = headers::names_websocket(request.headers());
    let websocket = match admit(&mut request, &connection) {
        Ok(websocket) => websocket,
        Err(refusal) => {
            let mut response = refusal.problem.response(refusal.detail, &Asked::of(request.headers()));
            if refusal.problem == problem::METHOD_NOT_ALLOWED {
                response.headers_mut().insert(
                    header::ALLOW,
                    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE"),
                );
            }
            close_after(&mut response, version);
            return Ok(response.map(|body| AnswerBody::own(body, open)));
        }
    };
    let asked = Asked::of(request.headers());
    let client_side = websocket.then(|| hyper::upgrade::on(&mut request));
    match service.oneshot(request).await {
        Ok(mut response) => {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let Some(client_side) = client_side else {
                    let mut response = problem::UPSTREAM_FAILED
                        .response("the upstream switched protocols without having been asked", &Asked::default());
                    close_after(&mut response, version);
                    return Ok(response.map(|body| AnswerBody::own(body, open)));
                };
                tunnel::splice(client_side, hyper::upgrade::on(&mut response), &connection);
            } else if blind {
                close_after(&mut response, version);
            }
            *response.version_mut() = Version::HTTP_11;
            Ok(response.map(|body| AnswerBody::inner(body, open)))
        }
        Err(error) => {
            tracing::error!(error = &*error.into(), "a service failed without an answer");
            let mut response = problem::INTERNAL.response("the gateway's log says why", &asked);
            if blind {
                close_after(&mut response, version);
            }
            Ok(response.map(|body| AnswerBody::own(body, open)))
        }
    }
}

fn close_after<B>(response: &mut Response<B>, version: Version) {
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Checks a request and brings it into the one form. True when it asks for a WebSocket.
fn admit<B>(request: &mut Request<B>, connection: &Connection) -> Result<bool, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal {
            problem: problem::METHOD_NOT_ALLOWED,
            detail: "this is a gateway in front of an API; it opens no tunnels",
        });
    }
    check_coding(request)?;
    settle_host(request)?;
    let websocket = headers::asks_for_websocket(request.method(), request.version(), request.headers());
    if request.version() == Version::HTTP_2 {
        headers::join_cookies(request.headers_mut());
    }
    let fields = request.headers_mut();
    if headers::strip_hop_by_hop(fields) && !websocket {
        fields.remove(header::CONNECTION);
        fields.remove(header::UPGRADE);
    }
    if fields.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        // Answered here, by hyper, as soon as somebody wants the body.
        fields.remove(header::EXPECT);
    }
    headers::forward_for(fields, &connection.peer);
    // What the layer asks of a peer: whether its word on principals and tenants counts.
    request.extensions_mut().insert(onceward::TrustedPeer(connection.peer.peer.trusted));
    request.extensions_mut().insert(connection.peer.peer);
    if let Some(certificate) = &connection.certificate {
        request.extensions_mut().insert(certificate.clone());
    }
    Ok(websocket)
}

/// hyper lets any list pass that ends in `chunked`, and leaves the other codings on the body. RFC 9112 section 6.1.
fn check_coding<B>(request: &Request<B>) -> Result<(), Refusal> {
    let mut lines = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let Some(first) = lines.next() else {
        return Ok(());
    };
    if first.as_bytes().eq_ignore_ascii_case(b"chunked") && lines.next().is_none() {
        return Ok(());
    }
    let only_chunked = request
        .headers()
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"chunked"));
    Err(if only_chunked {
        bad("`chunked` may be applied once only, on one Transfer-Encoding line")
    } else {
        Refusal { problem: problem::NOT_IMPLEMENTED, detail: "send the body with `chunked` alone, or with its length" }
    })
}

/// Brings the target into origin form and its authority into `Host`. RFC 9112 section 3.2, RFC 9113 section 8.3.1.
fn settle_host<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("there is more than one Host field"));
    }
    if let Some(host) = host
        && !host.as_bytes().iter().all(|byte| is_host_byte(*byte))
    {
        return Err(bad("Host is not a host and port"));
    }
    let Some(authority) = request.uri().authority() else {
        if host.is_none() && request.version() != Version::HTTP_10 {
            return Err(bad("there is no Host field"));
        }
        return if matches!(request.uri().path().as_bytes(), [b'/', ..] | b"*") {
            Ok(())
        } else {
            Err(bad("the request target is not a path"))
        };
    };
    if request.uri().scheme().is_none() {
        // `GET example.com:80`: the authority form is for CONNECT.
        return Err(bad("the request target is not a path"));
    }
    if authority.as_str().contains('@') {
        return Err(bad("the request target holds user information"));
    }
    let authority = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the request target has no host"))?;
    if request.version() == Version::HTTP_2
        && host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()))
    {
        return Err(bad("Host and :authority differ"));
    }
    // In HTTP/1 the target's authority wins over whatever Host says.
    request.headers_mut().insert(header::HOST, authority);
    let path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = path_and_query.map_or_else(|| Uri::from_static("/"), Uri::from);
    Ok(())
}

/// `reg-name`, addresses, `:` and digits, RFC 3986 section 3.2.2; no comma, no `@`, nothing that some reader splits at.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(&byte)
}

pin_project! {
    /// The body of an answer: the service's or our own. Counts the request as open until it is dropped.
    pub(super) struct AnswerBody<B> {
        #[pin]
        body: Either<B>,
        open: OpenRequest,
    }
}

pin_project! {
    #[project = EitherProj]
    enum Either<B> {
        Inner { #[pin] body: B },
        Own { #[pin] body: Full<Bytes> },
    }
}

impl<B> AnswerBody<B> {
    fn inner(body: B, open: OpenRequest) -> Self {
        Self { body: Either::Inner { body }, open }
    }

    fn own(body: Full<Bytes>, open: OpenRequest) -> Self {
        Self { body: Either::Own { body }, open }
    }
}

impl<B: Body<Data = Bytes>> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().body.project() {
            EitherProj::Inner { body } => body.poll_frame(cx),
            EitherProj::Own { body } => body.poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Inner { body } => body.is_end_stream(),
            Either::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Inner { body } => body.size_hint(),
            Either::Own { body } => body.size_hint(),
        }
    }
}
