//! What a database library must offer, and the calls of the SQL functions over it.

use std::{error::Error, future::Future};

use bytes::Bytes;

use super::{Answer, BoxError, Grant, Isolation, Request, Terms, TransactionError};

/// Where connections come from: a `sqlx::PgPool` (feature `sqlx`); a pool of your own whose connections deref to a
/// `tokio_postgres::Client`, or for tests and tools a `tokio_postgres::Config` that connects each time (feature
/// `tokio-postgres`).
pub trait Source: Send + Sync {
    /// A connection that is the caller's until it is dropped.
    type Connection: Session + 'static;

    /// A connection that works; one that was lost is not given again.
    fn connection(&self) -> impl Future<Output = Result<Self::Connection, BoxError>> + Send;

    /// How often the server has said on this connection that it gave up waiting for its synchronous standby: a notice of
    /// severity WARNING with SQLSTATE 01000 or 57P01, which reads like success to whoever does not look at notices. Where it
    /// rises over a COMMIT, that is [`TransactionError::CommitUnknown`]. By default it is never noticed; with
    /// `tokio-postgres` the messages of the `Connection` have it, sqlx does not hand it out (it logs it, as target
    /// `sqlx::postgres::notice`).
    fn unconfirmed(&self, connection: &Self::Connection) -> u64 {
        let _ = connection;
        0
    }
}

/// The transaction that work is given, as the database library has it.
pub type TransactionOf<'c, S> = <<S as Source>::Connection as Session>::Transaction<'c>;

/// A connection of a supported library. Implemented by this crate.
pub trait Session: Send {
    /// Rolled back where it is dropped.
    type Transaction<'c>: Calls
    where
        Self: 'c;

    /// Begins one.
    fn begin(&mut self, isolation: Isolation) -> impl Future<Output = Result<Self::Transaction<'_>, BoxError>> + Send;
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// `bytea`
    Bytes(&'a [u8]),
    /// `bigint`
    Int(i64),
    /// `text`
    Text(&'a str),
}

/// What a call says: the columns that each of them selects, in this order.
#[derive(Debug, Default)]
pub struct Said {
    /// What became of it.
    pub word: String,
    /// Of the record.
    pub fence: i64,
    /// Of the record.
    pub attempt: i64,
    /// Of a replay.
    pub status: Option<u16>,
    /// Of a replay, as JSON.
    pub headers: Option<String>,
    /// Of a replay.
    pub body: Option<Vec<u8>>,
    /// Of the last recovery point.
    pub data: Option<Vec<u8>>,
    /// The record's id.
    pub record: Vec<u8>,
}

/// A transaction that can call functions.
pub trait Calls: Send {
    /// One row of the columns of [`Said`].
    fn call(&mut self, sql: &str, args: &[Arg<'_>]) -> impl Future<Output = Result<Said, BoxError>> + Send;

    /// Commits it.
    fn commit(self) -> impl Future<Output = Result<(), BoxError>> + Send;
}

impl Said {
    /// The recorded answer.
    pub(super) fn answer(self) -> Result<Answer, TransactionError> {
        let headers = self.headers.unwrap_or_else(|| "[]".into());
        let headers = serde_json::from_str(&headers).map_err(|error| TransactionError::Database(error.into()))?;
        Ok(Answer { status: self.status.unwrap_or(200), headers, body: Bytes::from(self.body.unwrap_or_default()) })
    }

    /// The grant, where the claim was granted.
    pub(super) fn grant(&self) -> Option<Grant> {
        let record = self.record.as_slice().try_into().ok()?;
        (self.word == "granted").then_some(Grant { record, fence: self.fence, attempt: self.attempt })
    }
}

/// How a request is claimed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    /// Settled in the same transaction.
    Same,
    /// Holds for a lease; a crash is taken over.
    Resumable,
    /// Holds for a lease; a crash leaves the outcome unknown.
    Loose,
}

/// Claims: the arguments are those of [`claiming`]. How long it may wait is set before, in the same call: the mode depends on
/// it.
pub(super) const CLAIM: &str = "select c.outcome, c.fence, c.attempt, c.status, c.headers::text, c.body, c.checkpoint_data, i.id \
     from set_config('onceward.wait_ms', $11::text, true) s (wait_ms), \
     lateral onceward.record_id($1, $2, $3, $4, $5) i (id), \
     lateral onceward.claim(i.id, $6, $7 || left(s.wait_ms, 0), $8 * interval '1 microsecond', claim_id => $9, \
     two_phase => $7 = 'lease' and $10 = 1, route => $4, tenant => $1, env => $2) c";

/// The arguments of [`CLAIM`]. `claim_id` is the same in each attempt, so that one whose answer was lost is recognised.
pub(super) fn claiming<'a>(request: &'a Request, terms: &Terms, mode: Mode, claim_id: &'a [u8; 16]) -> [Arg<'a>; 11] {
    let (name, is_resumable) = match mode {
        Mode::Same => ("tx", 0),
        Mode::Resumable => ("lease", 1),
        Mode::Loose => ("lease", 0),
    };
    [
        Arg::Text(&request.tenant),
        Arg::Text(&request.env),
        Arg::Text(&request.principal),
        Arg::Text(&request.route),
        Arg::Text(&request.key),
        Arg::Bytes(&request.fingerprint),
        Arg::Text(name),
        Arg::Int(micros(terms.lease)),
        Arg::Bytes(claim_id),
        Arg::Int(is_resumable),
        Arg::Int(i64::try_from(terms.wait.as_millis()).unwrap_or(i64::MAX)),
    ]
}

/// Records the answer. Of a failure that is final, so that repetitions get it all the same.
pub(super) async fn settle(
    calls: &mut impl Calls,
    grant: &Grant,
    answer: &Answer,
    is_failure: bool,
    terms: &Terms,
) -> Result<(), BoxError> {
    let headers = headers(answer)?;
    calls.call(&settling(is_failure), &settled(grant, answer, &headers, terms)).await.map(drop)
}

pub(super) fn headers(answer: &Answer) -> Result<String, BoxError> {
    Ok(serde_json::to_string(&answer.headers)?)
}

/// The arguments of [`settling`].
pub(super) fn settled<'a>(grant: &'a Grant, answer: &'a Answer, headers: &'a str, terms: &Terms) -> [Arg<'a>; 6] {
    [
        Arg::Bytes(&grant.record),
        Arg::Int(grant.fence),
        Arg::Int(i64::from(answer.status)),
        Arg::Text(headers),
        Arg::Bytes(&answer.body),
        Arg::Int(micros(terms.keep)),
    ]
}

pub(super) fn settling(is_failure: bool) -> String {
    word(if is_failure {
        "onceward.fail($1, $2, 'final', $3::int, $4::jsonb, $5, $6 * interval '1 microsecond')"
    } else {
        "onceward.complete($1, $2, $3::int, $4::jsonb, $5, $6 * interval '1 microsecond')"
    })
}

/// A row of [`CLAIM`] or [`word`], of either library.
macro_rules! said {
    ($row:expr) => {{
        let (row, status): (_, Option<i32>) = ($row, $row.try_get(3)?);
        let word: Option<String> = row.try_get(0)?;
        Said {
            word: word.unwrap_or_default(),
            fence: row.try_get(1)?,
            attempt: row.try_get(2)?,
            status: status.and_then(|status| status.try_into().ok()),
            headers: row.try_get(4)?,
            body: row.try_get(5)?,
            data: row.try_get(6)?,
            record: row.try_get(7)?,
        }
    }};
}
pub(super) use said;

/// A call that says one word. `sql` is a constant of this crate.
pub(super) fn word(sql: &str) -> String {
    format!("select ({sql})::text, 0::bigint, 0::bigint, null::int, null::text, null::bytea, null::bytea, ''::bytea")
}

pub(super) fn micros(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn new_claim_id() -> [u8; 16] {
    uuid::Uuid::new_v4().into_bytes()
}

/// The SQLSTATE in the chain of an error.
pub(super) fn state(error: &BoxError) -> Option<String> {
    let mut next: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = next {
        if let Some(state) = library::state(error) {
            return Some(state);
        }
        next = error.source();
    }
    None
}

/// Whether the transaction is over without effect, and may end otherwise when it begins anew: a conflict, a deadlock.
pub(super) fn is_conflict(error: &BoxError) -> bool {
    matches!(state(error).as_deref(), Some("40001" | "40P01"))
}

/// Whether the connection, or the server, is gone: what it was doing may have been done.
pub(super) fn is_lost(error: &BoxError) -> bool {
    match state(error) {
        Some(state) => state.starts_with("08") || state.starts_with("57P"),
        None => {
            // An error of the network counts where it is the library's, not where it is the work's own.
            let mut is_librarys = false;
            let mut next: Option<&(dyn Error + 'static)> = Some(&**error);
            while let Some(error) = next {
                is_librarys |= library::is(error);
                if library::is_lost(error) || is_librarys && error.is::<std::io::Error>() {
                    return true;
                }
                next = error.source();
            }
            false
        }
    }
}

/// Whether another attempt may end otherwise.
pub(super) fn is_worth_another(error: &BoxError) -> bool {
    is_conflict(error) || is_lost(error)
}

/// An error of whichever library it is.
mod library {
    use std::error::Error;

    #[cfg(feature = "sqlx")]
    use super::super::sqlx;
    #[cfg(feature = "tokio-postgres")]
    use super::super::tokio_postgres;

    pub(super) fn state(error: &(dyn Error + 'static)) -> Option<String> {
        #[cfg(feature = "tokio-postgres")]
        if let Some(state) = tokio_postgres::state(error) {
            return Some(state);
        }
        #[cfg(feature = "sqlx")]
        if let Some(state) = sqlx::state(error) {
            return Some(state);
        }
        None
    }

    pub(super) fn is(error: &(dyn Error + 'static)) -> bool {
        #[cfg(feature = "tokio-postgres")]
        if tokio_postgres::is(error) {
            return true;
        }
        #[cfg(feature = "sqlx")]
        if sqlx::is(error) {
            return true;
        }
        false
    }

    /// Beside an error of the network in its chain.
    pub(super) fn is_lost(error: &(dyn Error + 'static)) -> bool {
        #[cfg(feature = "tokio-postgres")]
        if tokio_postgres::is_lost(error) {
            return true;
        }
        #[cfg(feature = "sqlx")]
        if sqlx::is_lost(error) {
            return true;
        }
        false
    }
}
