//! The examples `payments_postgres` and `payments_sqlx`, with a client that repeats itself.

#![cfg(all(feature = "tokio-postgres", feature = "sqlx"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../examples/payments_sqlx.rs"]
#[expect(dead_code, unreachable_pub, reason = "its main is the example's")]
mod over_sqlx;
#[path = "../examples/payments_postgres.rs"]
#[expect(dead_code, unreachable_pub, reason = "its main is the example's")]
mod over_tokio_postgres;
mod shop;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use tower::ServiceExt as _;

#[tokio::test]
async fn a_payment_that_is_sent_again_is_made_once_and_answered_the_same() {
    let server = shop::server().await;
    is_made_once(&server, over_tokio_postgres::app(server.url("shop").parse().unwrap())).await;
}

#[tokio::test]
async fn a_payment_over_sqlx_is_made_once_and_answered_the_same() {
    let server = shop::server().await;
    is_made_once(&server, over_sqlx::app(sqlx::PgPool::connect_lazy(&server.url("shop")).unwrap())).await;
}

async fn is_made_once(server: &servers::Postgres, app: Router) {
    let table = "create table payment (id bigint generated always as identity, idem_id bytea not null unique, amount bigint not null)";
    server.psql("shop", table).unwrap();
    let post = async |key: &str, amount: &'static str| {
        let request = Request::post("/v1/payments").header("idempotency-key", key).body(Body::from(amount)).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let replayed = response.headers().get("idempotent-replayed").is_some_and(|value| value == "true");
        let status = response.status().as_u16();
        (status, to_bytes(response.into_body(), 1 << 16).await.unwrap(), replayed)
    };
    let (one, two) = tokio::join!(post("a", "1200"), post("a", "1200"));
    assert_eq!((one.0, &one.1), (201, &two.1));
    assert_ne!(one.2, two.2, "one of them is a replay");
    assert_eq!(post("a", "7").await.0, 422, "another request under the same key");
    assert_eq!(post("b", "20000").await, (422, "at most 10000".into(), false));
    assert_eq!(post("b", "20000").await, (422, "at most 10000".into(), true));
    assert_eq!(server.psql("shop", "select count(*), sum(amount) from payment").unwrap(), "1|1200");
}
