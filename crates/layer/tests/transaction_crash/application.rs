//! The application whose processes are killed: a payment in one transaction, and an order in three phases.

use std::time::Duration;

use onceward::transaction::{Answer, Done, Failure, Request, Started, Terms, TransactionError, Transactions};

use super::library::{self, Source, Transaction};
use crate::Coupling;

/// Works on the shop's database at `url`, and calls somebody who has books of their own.
pub(crate) struct Application {
    transactions: Transactions<Source>,
    books: String,
}

impl Application {
    /// An order that is left goes on after `lease`.
    pub(crate) fn new(url: &str, books: &str, lease: Duration) -> Self {
        let terms = Terms { lease, ..Terms::default() };
        Self { transactions: Transactions::new(library::source(url)).with_terms(terms), books: books.to_owned() }
    }

    /// Answers a request: the ids of its entries.
    pub(crate) async fn answer(&self, coupling: Coupling, key: &str) -> Result<Done, TransactionError> {
        match coupling {
            Coupling::Same => self.pay(key).await,
            Coupling::Phases => self.order(key).await,
        }
    }

    async fn pay(&self, key: &str) -> Result<Done, TransactionError> {
        let key = key.to_owned();
        self.transactions
            .same(&request(&key), |transaction, _| {
                let key = key.clone();
                Box::pin(async move { Ok(Answer::new(201, entry(transaction, &key, "pay").await?)) })
            })
            .await
    }

    async fn order(&self, key: &str) -> Result<Done, TransactionError> {
        let mut phases = match self.transactions.phases(&request(key)).await? {
            Started::Done(done) => return Ok(done),
            Started::Granted(phases) => phases,
        };
        let of = key.to_owned();
        let reserved = phases
            .local("reserve", |transaction, _| {
                let key = of.clone();
                Box::pin(async move { Ok(entry(transaction, &key, "reserve").await?.into()) })
            })
            .await?;
        phases.external("charge", async |derived| self.charge(key, &derived).await).await?;
        phases
            .finish(|transaction, _| {
                let (key, reserved) = (of.clone(), String::from_utf8_lossy(&reserved).into_owned());
                Box::pin(async move {
                    let sold = entry(transaction, &key, "sell").await?;
                    Ok(Answer::new(201, format!("{reserved} {sold}")))
                })
            })
            .await
    }

    /// Somebody else's books, which note each call.
    async fn charge(&self, of: &str, derived: &str) -> Result<bytes::Bytes, Failure> {
        let (client, connection) = tokio_postgres::connect(&self.books, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.execute("insert into charged (of, key) values ($1, $2)", &[&of, &derived]).await?;
        Ok("receipt".into())
    }
}

fn request(key: &str) -> Request {
    Request::new("pay", key, b"amount=1200")
}

/// A line in the ledger, which nothing but the coupling keeps from being written twice.
async fn entry(transaction: &mut Transaction<'_>, key: &str, phase: &str) -> Result<String, Failure> {
    let insert = "insert into entry (key, phase) values ($1, $2) returning id";
    Ok(library::number(transaction, insert, &[key, phase]).await?.to_string())
}
