//! The shop's statements over tokio-postgres.

use onceward::transaction::Failure;
pub(crate) use tokio_postgres::{Config as Source, Transaction};

pub(crate) fn source(url: &str) -> Source {
    url.parse().unwrap()
}

/// Runs a statement with texts; its one number.
pub(crate) async fn number(transaction: &Transaction<'_>, sql: &'static str, texts: &[&str]) -> Result<i64, Failure> {
    let typed: Vec<_> = texts
        .iter()
        .map(|text| (text as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::TEXT))
        .collect();
    // Unnamed, for the sake of poolers.
    Ok(transaction.query_typed_one(sql, &typed).await?.get(0))
}
