//! The admin listener: health, metrics, records.
//!
//! Reading is open where the listener is on loopback; every change, every recorded answer, and every other address
//! needs the token. `Host` must name the listener, so that no web page reaches it by a name of its own (DNS
//! rebinding), and a foreign `Origin` is 403.

mod reconcile;
mod records;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use onceward::{Engine, store::Loss};
use onceward_core::record::Micros;
use serde_json::json;

pub use reconcile::Look;
pub(crate) use records::record_as_it_stands;
pub use records::{Answer, Find, ForgetQuery, ListQuery, Resolve, Settle};

use crate::{config::secret::Secret, reconcile::Reconciler};

/// What the admin listener shows.
#[derive(Clone)]
pub struct Admin {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    metrics: Option<PrometheusHandle>,
    token: Secret,
    /// `None` where there is no listener: a command of this very process.
    address: Option<SocketAddr>,
    /// What was found at start and does not go away, for `/readyz`.
    concerns: Vec<String>,
    /// Why the configuration's last change is not in force.
    refused: std::sync::Mutex<Option<String>>,
    draining: std::sync::atomic::AtomicBool,
    reconciler: Arc<Reconciler>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

impl Admin {
    /// The listener at `address`.
    #[must_use]
    pub fn new(
        engine: Engine,
        metrics: Option<PrometheusHandle>,
        token: Secret,
        address: Option<SocketAddr>,
        concerns: Vec<String>,
        reconciler: Arc<Reconciler>,
    ) -> Self {
        let draining = std::sync::atomic::AtomicBool::new(false);
        Self {
            inner: Arc::new(Inner {
                engine,
                metrics,
                token,
                address,
                concerns,
                refused: Default::default(),
                draining,
                reconciler,
            }),
        }
    }

    /// From here on `/readyz` is 503.
    pub fn drain(&self) {
        self.inner.draining.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Says in `/readyz` why the configuration's last change is not in force, or no longer.
    pub fn say_refused(&self, why: Option<String>) {
        *self.inner.refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = why;
    }

    /// Its routes.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/records", get(records::list))
            .route("/records/find", post(records::find))
            .route("/records/{id}", get(records::get).delete(records::forget))
            .route("/records/{id}/outcome", get(records::outcome))
            .route("/records/{id}/resolve", post(records::resolve))
            .route("/reconcile", post(reconcile::look))
            .fallback(async || refuse(StatusCode::NOT_FOUND, "not-found", "There is nothing at this path."))
            .layer(middleware::map_response(in_our_words))
            .layer(middleware::from_fn_with_state(self.clone(), guard))
            .with_state(self.clone())
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }
}

/// Who may do what. `records/find` reads although it is a POST: its body keeps keys out of URLs.
async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let Some(address) = admin.inner.address else { return next.run(request).await };
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        // Probes come by any name, and learn nothing but whether the process is well.
        return next.run(request).await;
    }
    let headers = request.headers();
    if !names_listener(headers, address) {
        return refuse(
            StatusCode::FORBIDDEN,
            "foreign-host",
            "Host must name this listener: use its address, or localhost.",
        );
    }
    if headers.contains_key(header::ORIGIN) && !same_origin(headers) {
        return refuse(StatusCode::FORBIDDEN, "foreign-origin", "Pages of other origins have no access.");
    }
    let reads = *request.method() == Method::GET || request.uri().path() == "/records/find";
    let is_open = reads && address.ip().is_loopback() && !request.uri().path().ends_with("/outcome");
    if !is_open && !has_token(headers, &admin.inner.token) {
        let mut response = refuse(
            StatusCode::UNAUTHORIZED,
            "token-required",
            "Send Authorization: Bearer TOKEN; the token is [admin] token, or admin.token in the data folder.",
        );
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        return response;
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

fn names_listener(headers: &HeaderMap, address: SocketAddr) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().unwrap_or(0)),
        _ => (host, 80),
    };
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let is_named = match ip {
        // Any address leads to a listener on all of them, and none can be chosen by a web page's name.
        Ok(ip) => ip == address.ip() || address.ip().is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    is_named && port == address.port()
}

fn same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    match (text(header::ORIGIN), text(header::HOST)) {
        (Some(origin), Some(host)) => origin.strip_prefix("http://").is_some_and(|rest| rest == host),
        _ => false,
    }
}

fn has_token(headers: &HeaderMap, token: &Secret) -> bool {
    let said = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(said) = said.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
    // Hashes are compared, so that the time taken tells nothing of the token.
    let digest = |text: &str| onceward_core::fingerprint::unkeyed_blake3(text.as_bytes());
    digest(said) == digest(token.expose())
}

async fn ready(State(admin): State<Admin>) -> Response {
    let stats = admin.engine().store().stats();
    let mut reasons = Vec::new();
    if admin.inner.draining.load(std::sync::atomic::Ordering::Relaxed) {
        reasons.push("draining".to_owned());
    }
    if !stats.accepts_claims {
        reasons.extend(stats.concerns.clone());
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let refused = admin.inner.refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let losses: Vec<String> = stats.cache.iter().flat_map(|cache| &cache.last).map(lost).collect();
    let warnings: Vec<&String> =
        admin.inner.concerns.iter().chain(&stats.concerns).chain(&losses).chain(&refused).collect();
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons, "warnings": warnings }))).into_response()
}

/// What a loss of the store means, and of when.
fn lost(loss: &Loss) -> String {
    let Loss { partitions, why, .. } = loss;
    let time = |at: Micros| jiff::Timestamp::from_microsecond(i64::try_from(at.0).unwrap_or(i64::MAX)).ok();
    let span = match (time(loss.from).filter(|_| loss.from != Micros::ZERO), time(loss.to)) {
        (Some(from), Some(to)) => format!("between {from} and {to}"),
        (_, Some(to)) => format!("before {to}"),
        (_, None) => "at a time that is not known".to_owned(),
    };
    format!(
        "the store lost records in {partitions} of its partitions ({why}): keys claimed or completed {span} may run again"
    )
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let Some(handle) = &admin.inner.metrics else {
        return refuse(StatusCode::NOT_FOUND, "not-found", "This process keeps no metrics.");
    };
    admin.engine().set_gauges();
    let text = handle.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// What the router says of a request by itself becomes a refusal like all others, without the request's values.
async fn in_our_words(response: Response) -> Response {
    let status = response.status();
    let is_ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM);
    if is_ours || !status.is_client_error() {
        return response;
    }
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            let mut refusal = refuse(status, "method-not-allowed", "This path takes other methods, see Allow.");
            if let Some(allow) = response.headers().get(header::ALLOW) {
                refusal.headers_mut().insert(header::ALLOW, allow.clone());
            }
            refusal
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => refuse(status, "bad-request", "Send Content-Type: application/json."),
        StatusCode::PAYLOAD_TOO_LARGE => refuse(status, "body-too-large", "The body is too large."),
        _ => refuse(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The query or the body has an unknown member, lacks one, or has one of another type.",
        ),
    }
}

const PROBLEM: &str = "application/problem+json";

/// A refusal of the admin listener, as RFC 9457 problem details.
fn refuse(status: StatusCode, slug: &str, detail: &str) -> Response {
    let problem = json!({
        "type": format!("urn:onceward:problem:{slug}"),
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
        "retryable": status.is_server_error(),
    });
    (status, [(header::CONTENT_TYPE, PROBLEM)], problem.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listeners_own_names_are_taken() {
        let address: SocketAddr = "127.0.0.1:8081".parse().unwrap();
        for (host, taken) in [
            ("127.0.0.1:8081", true),
            ("localhost:8081", true),
            ("LOCALHOST:8081", true),
            ("127.0.0.1:80", false),
            ("evil.example:8081", false),
            ("127.0.0.1.evil.example:8081", false),
            ("[::1]:8081", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            assert_eq!(names_listener(&headers, address), taken, "{host}");
        }
    }
}
