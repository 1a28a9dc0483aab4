//! What a failure of the database means: what kind it is, whether the write was applied, what to do.

use std::fmt;

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::{Kind, StoreError};

/// A failure of the database in words: what it said, its SQLSTATE, what to do.
#[derive(Debug)]
pub struct Failure {
    said: String,
    state: Option<String>,
    advice: Option<&'static str>,
    source: Option<tokio_postgres::Error>,
}

impl Failure {
    /// Of the client library's error.
    pub(super) fn of(error: tokio_postgres::Error) -> Self {
        let said = match error.as_db_error() {
            Some(db) => {
                // Not its detail: of a row that is refused, that is the row, an answer's body among it.
                let hint = db.hint().map(|hint| format!("; {hint}"));
                format!("{}{}", db.message(), hint.unwrap_or_default())
            }
            None => match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
        };
        let state = error.code().map(|state| state.code().to_owned());
        Self { said, advice: state.as_deref().and_then(advice), state, source: Some(error) }
    }

    /// Of what we found ourselves.
    pub(super) fn said(said: impl Into<String>) -> Self {
        Self { said: said.into(), state: None, advice: None, source: None }
    }

    /// The SQLSTATE, where the server gave one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)?;
        if let Some(state) = &self.state {
            write!(f, " (SQLSTATE {state})")?;
        }
        match self.advice {
            Some(advice) => write!(f, ": {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

/// What whoever runs it can do, by SQLSTATE or its class.
fn advice(state: &str) -> Option<&'static str> {
    Some(match state {
        "28P01" | "28000" => "check the user and the password of the store's address, and the server's pg_hba.conf",
        "3D000" => "make the database first: createdb NAME",
        "3F000" | "42P01" | "42883" | "42703" => {
            "the schema is missing or older than this program: run `onceward migrate`"
        }
        "42501" => {
            "the user lacks the right: come as the schema's owner, or have it granted what docs/postgres-store.md lists"
        }
        "53100" => "the server's disk is full: make room",
        "53300" => "the server has no connection left: raise max_connections, or go through a pooler",
        "53200" => "the server is out of memory: look at its log",
        "55P03" => "somebody holds the record's row in a long transaction: look at pg_stat_activity",
        "40001" | "40P01" => "the step met another write: it can be repeated",
        "25006" => "this is a standby or a read-only session: point the store at the primary",
        "57014" => "the statement was cancelled: look at statement_timeout and who cancels",
        "57P01" | "57P02" | "57P03" => "the server is shutting down or starting: it is tried again",
        "26000" | "42P05" => "a pooler in transaction mode forgets prepared statements: no setting of ours needs them",
        _ if state.starts_with("08") => "the connection failed: check the address, the server and what is between",
        _ if state.starts_with("XX") => "the server is damaged or met a fault of its own: look at its log",
        _ => return None,
    })
}

/// Whether a statement that ended so can have been committed all the same.
fn may_be_applied(error: &tokio_postgres::Error) -> bool {
    let Some(db) = error.as_db_error() else {
        // The connection went away between the call and its answer.
        return true;
    };
    // An error ends its transaction; whoever is sent away for good may have been committed before.
    let ended_for_good = !matches!(db.parsed_severity(), Some(Severity::Error));
    ended_for_good || is_ambiguous(db.code())
}

/// SQLSTATEs of which not even severity ERROR says that nothing was committed: the wait for a synchronous standby can
/// be cancelled after the commit, and poolers report a server that they lost as a protocol violation.
fn is_ambiguous(state: &SqlState) -> bool {
    *state == SqlState::QUERY_CANCELED
        || *state == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
        || ["08", "57P"].iter().any(|class| state.code().starts_with(class))
}

fn kind(error: &tokio_postgres::Error) -> Kind {
    let Some(db) = error.as_db_error() else { return Kind::Unavailable };
    match db.code().code() {
        "25006" => Kind::NotPrimary,
        "40001" | "40P01" | "55P03" => Kind::Conflict,
        "XX001" | "XX002" => Kind::Damaged(db.message().to_owned()),
        _ => Kind::Unavailable,
    }
}

/// A write that failed after it was sent.
pub(super) fn write_failed(error: tokio_postgres::Error) -> StoreError {
    let kind = kind(&error);
    let failed = if may_be_applied(&error) { StoreError::unknown(kind) } else { StoreError::not_applied(kind) };
    failed.because(Failure::of(error))
}

/// A read that failed, or a connection that did not come about: nothing was written.
pub(super) fn read_failed(error: tokio_postgres::Error) -> StoreError {
    StoreError::not_applied(kind(&error)).because(Failure::of(error))
}

/// Whether a notice says that the server gave up waiting for its standby: by its severity and code, since its words are
/// of the server's language.
pub(super) fn is_unconfirmed(notice: &DbError) -> bool {
    let code = notice.code();
    matches!(notice.parsed_severity(), Some(Severity::Warning))
        && (*code == SqlState::WARNING || *code == SqlState::ADMIN_SHUTDOWN)
}

/// Whether the statement failed by what one of its items is, so that the others may do without it.
pub(super) fn may_be_one_item(error: &tokio_postgres::Error) -> bool {
    let state = error.as_db_error().map(DbError::code).map(SqlState::code);
    state.is_some_and(|state| {
        !may_be_applied(error) && (["22", "23"].iter().any(|class| state.starts_with(class)) || state == "55P03")
    })
}
