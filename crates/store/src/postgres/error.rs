//! What a failure of the database means: what kind it is, whether the write was applied, what to do.

use std::fmt;

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
                let more = [db.detail(), db.hint()].into_iter().flatten().map(|more| format!("; {more}"));
                format!("{}{}", db.message(), more.collect::<String>())
            }
            None => match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
        };
        let state = error.code().map(|state| state.code().to_owned());
        Self { said, advice: state.as_deref().and_then(advice), state, source: Some(error) }
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
        "42501" => "the user lacks the right: migrate as the schema's owner and grant it the role onceward_gateway",
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
