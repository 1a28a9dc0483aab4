//! Claim, work and answer in one transaction.

use super::{
    Answer, BoxError, Done, Failure, Grant, Request, Source, TransactionError, TransactionOf, Transactions, Working,
    attempts::{Heard, commit, is_in_doubt, is_not_confirmed, pause},
    refused,
    session::{self, Calls as _, Mode, Session as _},
    told,
};

/// How one attempt ended.
enum Ended {
    Done(Done),
    /// Not committed; another attempt may be.
    Again(BoxError),
    /// Whether it was committed is to be found out, by claiming again.
    Unknown(BoxError, Grant, Answer),
    Refused(Answer),
    Failed(TransactionError),
}

impl<S: Source> Transactions<S> {
    /// Does `work` and records its answer in one transaction with the claim: your writes take effect once, or not at all.
    ///
    /// A duplicate that comes meanwhile waits for the end of the transaction, at most [`Terms::wait`](super::Terms::wait),
    /// and then gets the answer, or runs where the first was rolled back. `work` is called again after a conflict
    /// (SQLSTATE 40001, 40P01, also where it stands in the chain of its own error) or a lost connection: it writes to the transaction and does nothing else that
    /// counts. It must not roll back to a savepoint that it did not set. Send the answer only once this returns.
    ///
    /// A COMMIT whose answer was lost is found out by claiming again: either it stands, or the work is done now.
    ///
    /// # Errors
    /// [`TransactionError`]; but for [`CommitUnknown`](TransactionError::CommitUnknown) nothing was committed.
    pub async fn same<W>(&self, request: &Request, mut work: W) -> Result<Done, TransactionError>
    where
        W: for<'t> FnMut(&'t mut TransactionOf<'_, S>, &'t Grant) -> Working<'t, Answer> + Send,
    {
        let claim_id = session::new_claim_id();
        let mut in_doubt: Option<(Grant, Answer, BoxError)> = None;
        let mut last: Option<BoxError> = None;
        let mut refusal: Option<Answer> = None;
        for attempt in 1..=self.terms.attempts_max.max(1) {
            if last.is_some() || in_doubt.is_some() {
                pause(attempt).await;
            }
            match self.once(request, &claim_id, in_doubt.as_ref(), refusal.as_ref(), &mut work).await {
                Ended::Done(done) => return Ok(done),
                Ended::Again(error) => last = Some(error),
                Ended::Unknown(error, grant, answer) => in_doubt = Some((grant, answer, error)),
                // After the rollback, never inside it.
                Ended::Refused(answer) => refusal = Some(answer),
                Ended::Failed(error) if in_doubt.is_none() => return Err(error),
                Ended::Failed(error) => last = Some(Box::new(error)),
            }
        }
        match (in_doubt, last) {
            (Some((.., error)), _) => Err(TransactionError::CommitUnknown(error)),
            (None, Some(error)) => Err(told(error, self.terms.attempts_max)),
            (None, None) => {
                Err(TransactionError::Attempts(self.terms.attempts_max, "the refusal was not recorded".into()))
            }
        }
    }

    async fn once<W>(
        &self,
        request: &Request,
        claim_id: &[u8; 16],
        in_doubt: Option<&(Grant, Answer, BoxError)>,
        refusal: Option<&Answer>,
        work: &mut W,
    ) -> Ended
    where
        W: for<'t> FnMut(&'t mut TransactionOf<'_, S>, &'t Grant) -> Working<'t, Answer> + Send,
    {
        let mut connection = match self.source.connection().await {
            Ok(connection) => connection,
            Err(error) => return Ended::Again(error),
        };
        let heard = Heard::so_far(&self.source, &connection);
        let mut transaction = match connection.begin(self.terms.isolation).await {
            Ok(transaction) => transaction,
            Err(error) => return failed(error),
        };
        let claiming = session::claiming(request, &self.terms, Mode::Same, claim_id);
        let said = match transaction.call(session::CLAIM, &claiming).await {
            Ok(said) => said,
            Err(error) => return failed(error),
        };
        let Some(grant) = said.grant() else {
            let fence = said.fence;
            return match refused(said) {
                // The answer that is there is the one whose COMMIT was in doubt.
                Ok(done) => {
                    let is_own =
                        in_doubt.is_some_and(|(grant, answer, _)| grant.fence == fence && *answer == done.answer);
                    Ended::Done(Done { replayed: !is_own, ..done })
                }
                Err(error) => Ended::Failed(error),
            };
        };
        let (answer, is_failure) = match refusal {
            Some(answer) => (answer.clone(), true),
            None => match work(&mut transaction, &grant).await {
                Ok(answer) => (answer, false),
                Err(Failure::Refused(answer)) => return Ended::Refused(answer),
                Err(Failure::Rollback(error)) if session::is_worth_another(&error) => return Ended::Again(error),
                Err(Failure::Rollback(error)) => return Ended::Failed(TransactionError::Work(error)),
            },
        };
        if let Err(error) = session::settle(&mut transaction, &grant, &answer, is_failure, &self.terms).await {
            return failed(error);
        }
        let committed = commit(transaction).await.and_then(|()| heard.no_more(&self.source, &connection));
        match committed {
            Ok(()) => Ended::Done(Done { answer, replayed: false }),
            Err(error) if is_not_confirmed(&error) => Ended::Failed(TransactionError::CommitUnknown(error)),
            Err(error) if is_in_doubt(&error) => Ended::Unknown(error, grant, answer),
            Err(error) if session::is_conflict(&error) => Ended::Again(error),
            // Refused by the server, as by a constraint that is checked at COMMIT: it was rolled back.
            Err(error) => match told(error, 1) {
                TransactionError::Database(error) => Ended::Failed(TransactionError::Work(error)),
                other => Ended::Failed(other),
            },
        }
    }
}

/// Before COMMIT: whatever failed, nothing was committed.
fn failed(error: BoxError) -> Ended {
    if session::is_worth_another(&error) { Ended::Again(error) } else { Ended::Failed(told(error, 1)) }
}
