//! The claim inside your own PostgreSQL transaction: where the work is a transaction, exactly once is possible.
//!
//! A layer in front of an API can promise *at most once, and what is unknown is shown as unknown*. Work that is itself a
//! transaction of a database which holds the schema `onceward` (`onceward migrate`) can have more: the claim, the work
//! and the recorded answer are committed together, or none of them is. Three couplings, the strongest first:
//!
//! | coupling | shape | what holds |
//! |---|---|---|
//! | [`same`](Transactions::same) | one transaction: claim, your writes, the answer, COMMIT | your writes take effect once. A crash or a rollback leaves nothing; duplicates wait, then get the answer |
//! | [`phases`](Transactions::phases) | transactions with external calls between them | each transaction takes effect once; a retry resumes after the last. A call may be made again, with the same derived key |
//! | [`loose`](Transactions::loose) | claim, work elsewhere, answer | at most once, else unknown |
//!
//! The claims are made by the SQL functions of the schema, which any language can call; `docs/postgres.md` is their
//! reference. The connection comes from a [`Source`], which is a pool in an application: a `sqlx::PgPool` (feature `sqlx`),
//! or one of your own around tokio-postgres (feature `tokio-postgres`). What differs between the two stands there too.
//!
//! ```no_run
//! # async fn example(config: tokio_postgres::Config) -> Result<(), Box<dyn std::error::Error>> {
//! use onceward::transaction::{Answer, Request, Transactions};
//!
//! let transactions = Transactions::new(config);
//! let body = br#"{"amount": 1200}"#;
//! let request = Request::new("create-payment", "8e03978e-40d5-43e8-bc93-6894a57f9324", body);
//! let done = transactions
//!     .same(&request, |transaction, _grant| {
//!         Box::pin(async move {
//!             let paid = "insert into payment (amount) values (1200) returning id";
//!             let id: i64 = transaction.query_one(paid, &[]).await?.get(0);
//!             Ok(Answer::new(201, format!("{{\"id\": {id}}}")))
//!         })
//!     })
//!     .await?;
//! // Committed by now; a repetition gets the same answer, with `replayed`.
//! assert_eq!(done.answer.status, 201);
//! # Ok(())
//! # }
//! ```
//!
//! Over sqlx the same transaction is `sqlx::Transaction<Postgres>`:
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool, request: onceward::transaction::Request) -> Result<(), Box<dyn std::error::Error>> {
//! # use onceward::transaction::{Answer, Transactions};
//! let done = Transactions::new(pool)
//!     .same(&request, |transaction, _grant| {
//!         Box::pin(async move {
//!             let paid = sqlx::query_scalar("insert into payment (amount) values (1200) returning id");
//!             let id: i64 = paid.fetch_one(&mut **transaction).await?;
//!             Ok(Answer::new(201, format!("{{\"id\": {id}}}")))
//!         })
//!     })
//!     .await?;
//! # Ok(())
//! # }
//! ```

mod alone;
mod attempts;
mod compensation;
mod loose;
mod phases;
mod same;
mod session;
#[cfg(feature = "sqlx")]
mod sqlx;
#[cfg(feature = "tokio-postgres")]
mod tokio_postgres;

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

pub use self::loose::Held;
pub use self::phases::{Phases, Started};
use self::session::Said;
pub use self::session::{Source, TransactionOf};
use crate::BoxError;

/// A request: whose key it is, and what must be the same when it comes again.
#[derive(Clone, Debug)]
pub struct Request {
    tenant: String,
    env: String,
    principal: String,
    route: String,
    key: String,
    fingerprint: [u8; 32],
}

impl Request {
    /// The request `content`, sent to `route` under `key`, of an anonymous principal. The content is what must be the same
    /// each time, in one form: another one under the same key is [`TransactionError::KeyReused`].
    #[must_use]
    pub fn new(route: &str, key: &str, content: &[u8]) -> Self {
        Self {
            tenant: "default".into(),
            env: "default".into(),
            principal: "anonymous".into(),
            route: route.into(),
            key: key.into(),
            fingerprint: Sha256::digest(content).into(),
        }
    }

    /// Of this caller: the same key of another one is another key. Say who was authenticated, not what was sent.
    #[must_use]
    pub fn principal(self, principal: &str) -> Self {
        Self { principal: principal.into(), ..self }
    }

    /// In this tenant and environment; both are `default` otherwise.
    #[must_use]
    pub fn within(self, tenant: &str, env: &str) -> Self {
        Self { tenant: tenant.into(), env: env.into(), ..self }
    }
}

/// What a request is answered with, now and whenever it is repeated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status, 100 to 999; 200 for jobs.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// An answer without headers.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }
}

/// A request that was answered; what it did is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What to send.
    pub answer: Answer,
    /// Whether it is the answer of an earlier request.
    pub replayed: bool,
}

/// The right to do the work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// The record's id, 32 bytes: what a guarded table (`onceward.guard_table`) keeps with each row.
    pub record: [u8; 32],
    /// Larger with each grant of the key.
    pub fence: i64,
    /// Which execution it is, 1 for the first.
    pub attempt: i64,
}

/// Work on its way: `Box::pin(async move { … })`.
pub type Working<'t, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 't>>;

/// How work fails. Any error becomes [`Failure::Rollback`] by `?`.
#[derive(Debug)]
pub enum Failure {
    /// Nothing of it stays, and the next request runs it again.
    Rollback(BoxError),
    /// Nothing of it stays but this answer, which repetitions get: for what fails the same way each time, such as a card
    /// that is refused. Written in a transaction of its own, after the rollback.
    Refused(Answer),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Rollback(Box::new(error))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// The key's first request is still at work: come back later (409).
    #[error("the first request with this key is still being executed")]
    InFlight,
    /// Somebody claimed it elsewhere, and nobody knows whether it took effect (409).
    #[error("the outcome of an earlier request with this key is unknown")]
    OutcomeUnknown,
    /// The key came with another request before (422).
    #[error("the key was used for another request")]
    KeyReused,
    /// The key was erased (410).
    #[error("the key was erased")]
    Gone,
    /// It was settled as failed, without an answer (409).
    #[error("the request with this key was settled as failed")]
    Failed,
    /// The work refused for good, between two phases. This answer was recorded, and repetitions get it: send it.
    #[error("the work refused with {}", .0.status)]
    Refused(Answer),
    /// It was answered with this status, and the body was not kept (409).
    #[error("the request was answered with {0}, and its body was not kept")]
    ResponseNotKept(u16),
    /// Its last holder asked not to be followed yet (409).
    #[error("the request may be tried again later")]
    RetryLater,
    /// The key was taken over or settled by somebody else meanwhile; nothing of the last transaction was committed.
    #[error("the claim was lost to somebody else")]
    ClaimLost(#[source] BoxError),
    /// A phase has another name than in an earlier execution of the same key.
    #[error("phase {number} is named {now} and was named {before}: phases keep their names and order")]
    PhaseRenamed {
        /// Which, 1 for the first.
        number: u32,
        /// In the earlier execution.
        before: String,
        /// In this one.
        now: String,
    },
    /// It conflicted with other transactions, or lost its connection, as often as [`Terms::attempts_max`] allows; nothing was
    /// committed.
    #[error("given up after {0} attempts")]
    Attempts(u32, #[source] BoxError),
    /// The connection was lost at COMMIT and the outcome could not be read since: it may have taken effect. A repetition of
    /// the request finds out. Also where the server gave up waiting for its synchronous standby, which is noticed over
    /// `tokio-postgres` only ([`Source::unconfirmed`]): then it is committed on this server and would be lost with it.
    #[error("the outcome of COMMIT is unknown: repeat the request")]
    CommitUnknown(#[source] BoxError),
    /// The database refused or cannot be reached; nothing was committed.
    #[error("the database refused, and nothing was committed")]
    Database(#[source] BoxError),
    /// The work failed; nothing of it was committed.
    #[error("the work failed, and nothing of it was committed")]
    Work(#[source] BoxError),
}

/// What becomes of a key whose [`loose`](Transactions::loose) work says that it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The key is new again: the next request runs it.
    #[default]
    Release,
    /// It has failed for good: repetitions get [`TransactionError::Failed`].
    Fail,
}

/// Limits and periods.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long an answer is replayed. Default 24 hours.
    pub keep: Duration,
    /// How long a duplicate waits for a transaction that holds its key, at most 10 minutes. Default 20 s.
    pub wait: Duration,
    /// How long a claim of [`phases`](Transactions::phases) and [`loose`](Transactions::loose) holds without being renewed:
    /// longer than the longest phase. Default 30 s.
    pub lease: Duration,
    /// How often one call begins anew after a conflict or a lost connection. Default 8.
    pub attempts_max: u32,
    /// As the transactions run. Default `read committed`; `serializable` for work that reads what others write.
    pub isolation: Isolation,
    /// What becomes of a key whose loose work failed.
    pub on_failure: OnFailure,
}

/// Isolation of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Each statement sees what is committed before it.
    #[default]
    ReadCommitted,
    /// All statements see what was committed before the first.
    RepeatableRead,
    /// As if no other transaction ran at the same time.
    Serializable,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(24 * 60 * 60),
            wait: Duration::from_secs(20),
            lease: Duration::from_secs(30),
            attempts_max: 8,
            isolation: Isolation::default(),
            on_failure: OnFailure::default(),
        }
    }
}

/// Requests that are answered by transactions of one database.
#[derive(Clone, Debug)]
pub struct Transactions<S> {
    source: S,
    terms: Terms,
}

impl<S: Source> Transactions<S> {
    /// With the default [`Terms`].
    #[must_use]
    pub fn new(source: S) -> Self {
        Self { source, terms: Terms::default() }
    }

    /// With these.
    #[must_use]
    pub fn with_terms(self, terms: Terms) -> Self {
        Self { terms, ..self }
    }
}

/// What a claim was told, where it was not granted.
fn refused(said: Said) -> Result<Done, TransactionError> {
    match said.word.as_str() {
        "replay" => Ok(Done { answer: said.answer()?, replayed: true }),
        "in_flight" => Err(TransactionError::InFlight),
        "retry_later" => Err(TransactionError::RetryLater),
        "response_not_kept" => Err(TransactionError::ResponseNotKept(said.status.unwrap_or_default())),
        "failed" => Err(TransactionError::Failed),
        _ => Err(TransactionError::OutcomeUnknown),
    }
}

/// What the server said after so many attempts, as the caller's business.
fn told(error: BoxError, count: u32) -> TransactionError {
    match session::state(&error).as_deref() {
        Some("ID001" | "ID003") => TransactionError::ClaimLost(error),
        Some("ID002") => TransactionError::KeyReused,
        Some("ID004") => TransactionError::Gone,
        Some("55P03") => TransactionError::InFlight,
        _ if attempts::is_in_doubt(&error) => TransactionError::CommitUnknown(error),
        _ if session::is_worth_another(&error) => TransactionError::Attempts(count, error),
        _ => TransactionError::Database(error),
    }
}
