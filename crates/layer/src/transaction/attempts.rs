//! One thing tried several times, and what is certain when it is given up.

use std::{error::Error, fmt, time::Duration};

use super::{BoxError, Source, Terms, TransactionError, session, told};

/// The attempts of one call.
#[derive(Debug)]
pub(super) struct Attempts {
    max: u32,
    made: u32,
    last: Option<BoxError>,
}

impl Attempts {
    pub(super) fn new(terms: &Terms) -> Self {
        Self { max: terms.attempts_max.max(1), made: 0, last: None }
    }

    /// Begins one, after a pause where it is not the first; false where there were enough.
    pub(super) async fn another(&mut self) -> bool {
        if self.made == self.max {
            return false;
        }
        self.made += 1;
        if self.made > 1 {
            pause(self.made).await;
        }
        true
    }

    pub(super) fn is_first(&self) -> bool {
        self.made <= 1
    }

    /// Takes how one ended. Where another attempt would not mend it, what is to be told is given back.
    pub(super) fn failed(&mut self, error: BoxError) -> Result<(), BoxError> {
        if !is_worth_another(&error) {
            let is_of_claim = session::state(&error).is_some_and(|state| state.starts_with("ID"));
            // What an earlier attempt may have committed stays in doubt, unless the record itself has answered.
            return Err(match self.last.take() {
                Some(doubt) if is_in_doubt(&doubt) && !is_of_claim => doubt,
                _ => error,
            });
        }
        // What was lost at COMMIT stays in doubt, whatever later attempts failed by.
        if !self.last.as_ref().is_some_and(is_in_doubt) {
            self.last = Some(error);
        }
        Ok(())
    }

    /// It was read that no attempt so far was committed.
    pub(super) fn nothing_stands(&mut self) {
        self.last = None;
    }

    /// `error` ended what was tried between two attempts: that says nothing of what is in doubt.
    pub(super) fn ended_by(&mut self, error: TransactionError) -> TransactionError {
        match self.last.take() {
            Some(doubt) if is_in_doubt(&doubt) => TransactionError::CommitUnknown(doubt),
            _ => error,
        }
    }

    /// There were enough.
    pub(super) fn given_up(self) -> TransactionError {
        told(self.last.unwrap_or_else(|| "it was read that nothing was committed".into()), self.made)
    }
}

/// A COMMIT was sent, and what became of it was not said.
#[derive(Debug)]
struct InDoubt(BoxError);

impl fmt::Display for InDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the outcome of COMMIT was not said")
    }
}

impl Error for InDoubt {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// It is committed on this server, and perhaps nowhere else.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server gave up waiting for its synchronous standby: it is committed here and perhaps nowhere else; look at the \
     standby and at who cancels (statement_timeout counts)"
)]
struct NotConfirmed;

/// Commits. An error after which it may have been committed is known as one from then on.
pub(super) async fn commit(transaction: impl session::Calls) -> Result<(), BoxError> {
    transaction.commit().await.map_err(|error| if is_refused(&error) { error } else { Box::new(InDoubt(error)) })
}

/// Whether the server said that it was rolled back, as by a constraint that is checked at COMMIT. Cancelled (57014) it may
/// have been while it waited for a standby: then it is committed here.
fn is_refused(error: &BoxError) -> bool {
    session::state(error).is_some_and(|state| state != "57014") && !session::is_lost(error)
}

/// How often a connection's server had given up waiting for its standby, before a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard(u64);

impl Heard {
    pub(super) fn so_far<S: Source>(source: &S, connection: &S::Connection) -> Self {
        Self(source.unconfirmed(connection))
    }

    /// After a COMMIT that succeeded: in doubt all the same where the server gave up meanwhile.
    pub(super) fn no_more<S: Source>(self, source: &S, connection: &S::Connection) -> Result<(), BoxError> {
        if source.unconfirmed(connection) == self.0 { Ok(()) } else { Err(Box::new(InDoubt(NotConfirmed.into()))) }
    }
}

/// Whether it may have been committed.
pub(super) fn is_in_doubt(error: &BoxError) -> bool {
    error.is::<InDoubt>()
}

/// Whether it is committed, though perhaps only here: nothing that is read here says more.
pub(super) fn is_not_confirmed(error: &BoxError) -> bool {
    error.downcast_ref::<InDoubt>().is_some_and(|doubt| doubt.0.is::<NotConfirmed>())
}

/// Whether another attempt may end otherwise, or find out how this one did.
fn is_worth_another(error: &BoxError) -> bool {
    session::is_worth_another(error) || is_in_doubt(error) && !is_not_confirmed(error)
}

/// The pause before another attempt: longer each time, at most a second, and not the same for everybody.
pub(super) async fn pause(attempt: u32) {
    let most = 20_u64.saturating_mul(1 << attempt.min(6)).min(1_000);
    let drawn = getrandom::u32().unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(most / 2 + u64::from(drawn) % (most / 2 + 1))).await;
}

#[cfg(test)]
mod tests {
    use tokio_postgres::{Config, NoTls};

    use super::*;
    use crate::transaction::session::{Arg, Calls, Said};

    /// A transaction whose COMMIT is not answered.
    struct Lost;

    impl Calls for Lost {
        async fn call(&mut self, _: &str, _: &[Arg<'_>]) -> Result<Said, BoxError> {
            Ok(Said::default())
        }

        async fn commit(self) -> Result<(), BoxError> {
            Err(lost().await)
        }
    }

    /// As where no server is.
    async fn lost() -> BoxError {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let Err(error) = Config::new().host("127.0.0.1").port(port).user("nobody").connect(NoTls).await else {
            panic!("somebody listens on port {port}");
        };
        error.into()
    }

    #[tokio::test]
    async fn what_was_lost_at_commit_is_in_doubt_until_it_is_read_and_never_told_as_not_committed() {
        let terms = Terms { attempts_max: 2, ..Terms::default() };
        for is_read in [false, true] {
            let mut attempts = Attempts::new(&terms);
            assert!(attempts.another().await);
            attempts.failed(commit(Lost).await.unwrap_err()).unwrap();
            if is_read {
                attempts.nothing_stands();
            }
            assert!(attempts.another().await);
            // Not even connected.
            attempts.failed(lost().await).unwrap();
            assert!(!attempts.another().await);
            let told = attempts.given_up();
            assert_eq!(matches!(told, TransactionError::CommitUnknown(_)), !is_read, "{told:?}");
            assert_eq!(matches!(told, TransactionError::Attempts(2, _)), is_read, "{told:?}");
            let doubtful = async || if is_read { lost().await } else { commit(Lost).await.unwrap_err() };
            let mut attempts = Attempts::new(&terms);
            attempts.failed(doubtful().await).unwrap();
            let told = attempts.ended_by(TransactionError::InFlight);
            assert_eq!(matches!(told, TransactionError::CommitUnknown(_)), !is_read, "{told:?}");
            // By what no repetition mends.
            let mut attempts = Attempts::new(&terms);
            attempts.failed(doubtful().await).unwrap();
            let told = super::told(attempts.failed("no more connections".into()).unwrap_err(), 1);
            assert_eq!(matches!(told, TransactionError::CommitUnknown(_)), !is_read, "{told:?}");
        }
    }
}
