//! A claim, and what settles it, each in a transaction of its own.

use super::{
    Answer, Grant, Request, Source, TransactionError, Transactions,
    attempts::{Attempts, Heard, commit},
    session::{self, Arg, Calls as _, Mode, Said, Session as _, word},
    told,
};

impl<S: Source> Transactions<S> {
    /// Claims. Repeated with the same claim id, it recognises itself.
    pub(super) async fn claim_alone(
        &self,
        request: &Request,
        mode: Mode,
        claim_id: &[u8; 16],
    ) -> Result<Said, TransactionError> {
        self.said_alone(session::CLAIM, &session::claiming(request, &self.terms, mode, claim_id)).await
    }

    /// Records the answer. Repeatable: the same one is recognised.
    pub(super) async fn settle_alone(
        &self,
        grant: &Grant,
        answer: &Answer,
        is_failure: bool,
    ) -> Result<(), TransactionError> {
        let headers = session::headers(answer).map_err(TransactionError::Database)?;
        let args = session::settled(grant, answer, &headers, &self.terms);
        self.alone(&session::settling(is_failure), &args).await
    }

    /// Nothing was done since the last recovery point: the next request goes on at once.
    pub(super) async fn give_back(&self, grant: &Grant) -> Result<(), TransactionError> {
        let failed = word("onceward.fail($1, $2, 'retryable', keep => $3 * interval '1 microsecond')");
        let args = [Arg::Bytes(&grant.record), Arg::Int(grant.fence), Arg::Int(session::micros(self.terms.keep))];
        self.alone(&failed, &args).await
    }

    /// A call that may be repeated.
    pub(super) async fn alone(&self, sql: &str, args: &[Arg<'_>]) -> Result<(), TransactionError> {
        self.said_alone(sql, args).await.map(drop)
    }

    async fn said_alone(&self, sql: &str, args: &[Arg<'_>]) -> Result<Said, TransactionError> {
        let mut attempts = Attempts::new(&self.terms);
        while attempts.another().await {
            let tried = async {
                let mut connection = self.source.connection().await?;
                let heard = Heard::so_far(&self.source, &connection);
                let mut transaction = connection.begin(self.terms.isolation).await?;
                let said = transaction.call(sql, args).await?;
                commit(transaction).await?;
                heard.no_more(&self.source, &connection)?;
                Ok(said)
            };
            match tried.await {
                Ok(said) => return Ok(said),
                Err(error) => attempts.failed(error).map_err(|error| told(error, 1))?,
            }
        }
        Err(attempts.given_up())
    }
}
