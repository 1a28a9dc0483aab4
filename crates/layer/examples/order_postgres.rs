//! Orders in three phases: reserve in your own database, charge by somebody else's API, sell in your own database.
//!
//! ```sh
//! onceward migrate …   # the schema and its secret, once
//! psql "$URL" -c "create table stock (item text primary key, count bigint not null check (count >= 0));
//!     create table sale (id bigint generated always as identity, item text not null, receipt text not null);
//!     insert into stock values ('hat', 10);
//!     create function put_back(record_id bytea, key text, payload jsonb) returns void language sql security definer
//!         set search_path = public as 'update stock set count = count + 1 where item = payload->>''item''';
//!     select onceward.allow_compensation('public.put_back')"
//! cargo run --example order_postgres --features tokio-postgres -- "$URL" http://localhost:4000/charges
//! curl -i localhost:3000/v1/orders -H 'Idempotency-Key: k-1' -d hat
//! ```
//!
//! Each phase in the database takes effect once, wherever the process dies: a repetition goes on after the last. The charge
//! may be sent again, under the same derived key, so the other API has to be idempotent by `Idempotency-Key`.
//!
//! Where the charge is refused, what was reserved is put back, once: the phase that reserves registers it. Whoever runs what
//! is due runs it: a gateway on this database, `onceward reconcile --repair`, or `select onceward.compensate()` now and then.
//! Whoever adds a phase behind the charge that can fail for good registers there how the money is paid back.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{self, HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::BodyExt as _;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use onceward::transaction::{Answer, Done, Failure, Request, Started, Terms, TransactionError, Transactions};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_postgres::Config;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(charges)) = (args.next(), args.next()) else {
        return Err("the arguments are the URL of a database and that of the charges".into());
    };
    serve(TcpListener::bind("127.0.0.1:3000").await?, &url, charges, Duration::from_secs(30)).await
}

/// Takes orders until it is killed. An order that was left goes on after `lease`, which is longer than a charge takes.
pub async fn serve(
    listener: TcpListener,
    url: &str,
    charges: String,
    lease: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    println!("http://{}/v1/orders", listener.local_addr()?);
    // In earnest, give it a pool instead of a configuration that connects each time.
    let transactions = Transactions::new(url.parse()?).with_terms(Terms { lease, ..Terms::default() });
    let shop = Shop { transactions, charges };
    axum::serve(listener, Router::new().route("/v1/orders", post(order)).with_state(shop)).await?;
    Ok(())
}

#[derive(Clone)]
struct Shop {
    transactions: Transactions<Config>,
    charges: String,
}

async fn order(State(shop): State<Shop>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()) else {
        return (StatusCode::BAD_REQUEST, "say which order it is: Idempotency-Key").into_response();
    };
    let Ok(item) = String::from_utf8(body.to_vec()) else {
        return (StatusCode::BAD_REQUEST, "the body is what is ordered").into_response();
    };
    match shop.order(key, &item).await {
        // A refusal is recorded as an answer is.
        Ok(Done { answer, .. }) | Err(TransactionError::Refused(answer)) => {
            (StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK), answer.body).into_response()
        }
        Err(error @ TransactionError::KeyReused) => {
            (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response()
        }
        // Come back later.
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

impl Shop {
    async fn order(&self, key: &str, item: &str) -> Result<Done, TransactionError> {
        let mut phases = match self.transactions.phases(&Request::new("order", key, item.as_bytes())).await? {
            Started::Done(done) => return Ok(done),
            Started::Granted(phases) => phases,
        };
        phases
            .local("reserve", |transaction, grant| {
                let item = item.to_owned();
                Box::pin(async move {
                    let reserve = "update stock set count = count - 1 where item = $1 and count > 0";
                    if transaction.execute(reserve, &[&item]).await? == 0 {
                        return Err(Failure::Refused(Answer::new(409, format!("no {item} is left"))));
                    }
                    // Should the order fail after all.
                    let payload = serde_json::json!({ "item": item }).to_string();
                    grant.compensate_with(transaction, "reserve", "public.put_back", &payload).await?;
                    Ok(Bytes::new())
                })
            })
            .await?;
        let receipt = phases.external("charge", |derived| self.charge(derived, item.to_owned())).await?;
        phases
            .finish(|transaction, _| {
                let (item, receipt) = (item.to_owned(), String::from_utf8_lossy(&receipt).into_owned());
                Box::pin(async move {
                    let sell = "insert into sale (item, receipt) values ($1, $2) returning id";
                    let id: i64 = transaction.query_one(sell, &[&item, &receipt]).await?.get(0);
                    Ok(Answer::new(201, format!("order {id}, {receipt}")))
                })
            })
            .await
    }

    /// The receipt, from whoever takes the money.
    async fn charge(&self, derived: String, item: String) -> Result<Bytes, Failure> {
        let request = http::Request::post(&self.charges).header("idempotency-key", derived).body(Body::from(item))?;
        let response = Client::builder(TokioExecutor::new()).build_http().request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        match status {
            status if status.is_success() => Ok(body),
            // Refused for good: recorded, so that a repetition does not try again.
            StatusCode::PAYMENT_REQUIRED => Err(Failure::Refused(Answer::new(402, body))),
            status => Err(std::io::Error::other(format!("the charge was answered with {status}")).into()),
        }
    }
}
