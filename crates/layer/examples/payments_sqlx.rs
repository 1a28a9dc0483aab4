//! The payments API of `payments_postgres.rs` over sqlx.
//!
//! ```sh
//! onceward migrate …   # the schema and its secret, once
//! psql "$URL" -c 'create table payment (id bigint generated always as identity, idem_id bytea not null unique, amount bigint not null)'
//! cargo run --example payments_sqlx --features sqlx -- "$URL"
//! curl -i localhost:3000/v1/payments -H 'Idempotency-Key: k-1' -d 1200   # twice: one payment, equal answers
//! ```

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use onceward::transaction::{Answer, Failure, Request, TransactionError, Transactions};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("the first argument is the URL of a database")?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("http://{}/v1/payments", listener.local_addr()?);
    axum::serve(listener, app(PgPool::connect(&url).await?)).await?;
    Ok(())
}

/// The API over a database.
pub fn app(pool: PgPool) -> Router {
    Router::new().route("/v1/payments", post(charge)).with_state(Transactions::new(pool))
}

async fn charge(State(transactions): State<Transactions<PgPool>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()) else {
        return (StatusCode::BAD_REQUEST, "say which payment it is: Idempotency-Key").into_response();
    };
    let Some(amount) = std::str::from_utf8(&body).ok().and_then(|text| text.trim().parse::<i64>().ok()) else {
        return (StatusCode::BAD_REQUEST, "the body is an amount").into_response();
    };
    let request = Request::new("create-payment", key, &body);
    let done = transactions
        .same(&request, move |transaction, grant| {
            Box::pin(async move {
                if amount > 10_000 {
                    // The same each time: recorded, though nothing else is.
                    return Err(Failure::Refused(Answer::new(422, "at most 10000")));
                }
                let insert = "insert into payment (idem_id, amount) values ($1, $2) returning id";
                let insert = sqlx::query_scalar(insert).bind(&grant.record[..]).bind(amount);
                let id: i64 = insert.fetch_one(&mut **transaction).await?;
                Ok(Answer::new(201, format!("payment {id}")))
            })
        })
        .await;
    match done {
        // It is committed: only now may it be told.
        Ok(done) => {
            let status = StatusCode::from_u16(done.answer.status).unwrap_or(StatusCode::OK);
            let replayed = [(HeaderName::from_static("idempotent-replayed"), done.replayed.to_string())];
            (status, replayed, done.answer.body).into_response()
        }
        Err(error) => (status(&error), error.to_string()).into_response(),
    }
}

fn status(error: &TransactionError) -> StatusCode {
    match error {
        TransactionError::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        TransactionError::Gone => StatusCode::GONE,
        TransactionError::Work(_) => StatusCode::INTERNAL_SERVER_ERROR,
        TransactionError::Database(_) | TransactionError::CommitUnknown(_) | TransactionError::Attempts(..) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::CONFLICT,
    }
}
