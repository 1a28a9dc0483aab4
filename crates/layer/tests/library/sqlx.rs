//! The shop's statements over sqlx.

use onceward::transaction::Failure;
pub(crate) use sqlx::PgPool as Source;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};

pub(crate) type Transaction<'t> = sqlx::Transaction<'t, sqlx::Postgres>;

/// Of one connection, so that statements have an order.
pub(crate) fn source(url: &str) -> Source {
    let options: PgConnectOptions = url.parse().unwrap();
    // PgBouncer takes no connection that asks for the digits.
    let options = options.ssl_mode(PgSslMode::Disable).extra_float_digits(None);
    PgPoolOptions::new().max_connections(1).connect_lazy_with(options)
}

/// Runs a statement with texts; its one number.
pub(crate) async fn number(
    transaction: &mut Transaction<'_>,
    sql: &'static str,
    texts: &[&str],
) -> Result<i64, Failure> {
    // Unnamed, for the sake of poolers.
    let query = sqlx::query_scalar(sql).persistent(false);
    let query = texts.iter().fold(query, |query, text| query.bind((*text).to_owned()));
    Ok(query.fetch_one(&mut **transaction).await?)
}
