//! Claim here, work elsewhere, answer here.

use super::{
    Answer, BoxError, Done, Grant, OnFailure, Request, Source, Started, TransactionError, Transactions, refused,
    session::{self, Arg, Mode, word},
};

/// A claim that is held while the work is done elsewhere. Settle it: one that is dropped is an unknown outcome once its
/// lease is over.
#[derive(Debug)]
#[must_use = "a claim that is not settled is an unknown outcome once its lease is over"]
pub struct Held<'a, S> {
    transactions: &'a Transactions<S>,
    grant: Grant,
}

impl<S: Source> Transactions<S> {
    /// Claims a request whose work is done elsewhere, within [`Terms::lease`](super::Terms::lease).
    ///
    /// The weakest coupling: between the work and its record there is a moment that no database can see into. A crash
    /// there leaves the outcome unknown, and nothing runs again by itself.
    ///
    /// ```no_run
    /// # use onceward::transaction::*;
    /// # async fn send() -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example(transactions: Transactions<tokio_postgres::Config>, request: Request) -> Result<Done, TransactionError> {
    /// let held = match transactions.loose(&request).await? {
    ///     Started::Done(done) => return Ok(done),
    ///     Started::Granted(held) => held,
    /// };
    /// match send().await {
    ///     Ok(()) => held.complete(Answer::new(200, "sent")).await,
    ///     // It certainly was not sent.
    ///     Err(error) => Err(held.not_done(error).await),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TransactionError`].
    pub async fn loose(&self, request: &Request) -> Result<Started<Held<'_, S>>, TransactionError> {
        let said = self.claim_alone(request, Mode::Loose, &session::new_claim_id()).await?;
        match said.grant() {
            Some(grant) => Ok(Started::Granted(Held { transactions: self, grant })),
            None => refused(said).map(Started::Done),
        }
    }
}

impl<S: Source> Held<'_, S> {
    /// The right that the work is done under: pass its fence on to whoever can check it.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The work is done: repetitions get `answer`.
    ///
    /// # Errors
    /// [`TransactionError`]; the work is done all the same, and the outcome unknown once the lease is over.
    pub async fn complete(self, answer: Answer) -> Result<Done, TransactionError> {
        self.transactions.settle_alone(&self.grant, &answer, false).await?;
        Ok(Done { answer, replayed: false })
    }

    /// The work was certainly not done: the key is released, or kept as failed, as [`Terms::on_failure`](super::Terms::on_failure) says.
    /// Either way it blocks nobody. Returns what to tell the caller. Where you cannot be certain, drop it instead.
    pub async fn not_done(self, error: impl Into<BoxError>) -> TransactionError {
        let (record, fence) = (Arg::Bytes(&self.grant.record), Arg::Int(self.grant.fence));
        let keep = Arg::Int(session::micros(self.transactions.terms.keep));
        let (sql, args) = match self.transactions.terms.on_failure {
            OnFailure::Release => (word("onceward.release($1, $2)"), vec![record, fence]),
            OnFailure::Fail => (
                word("onceward.fail($1, $2, 'final', keep => $3 * interval '1 microsecond')"),
                vec![record, fence, keep],
            ),
        };
        let ended = self.transactions.alone(&sql, &args).await;
        ended.map_or_else(|error| error, |()| TransactionError::Work(error.into()))
    }
}
