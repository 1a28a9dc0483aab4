//! What undoes an effect, registered with it.

use super::{
    Failure, Grant, Phases, Source, TransactionError,
    session::{Arg, Calls, word},
};

const WITH: &str = "onceward.compensate_with($1, $2, $3, $4, $5::jsonb)";

fn args<'a>(grant: &'a Grant, name: &'a str, target: &'a str, payload: &'a str) -> [Arg<'a>; 5] {
    [Arg::Bytes(&grant.record), Arg::Int(grant.fence), Arg::Text(name), Arg::Text(target), Arg::Text(payload)]
}

impl Grant {
    /// Registers, in the transaction that makes an effect, what undoes it should the request be settled as failed: `target`
    /// is a function `schema.name` that an operator allowed (`onceward.allow_compensation`), called with the record's id, a
    /// key and `payload`, or an http(s) URL, to which `payload` is sent under that key. `payload` is JSON of at most 64 KiB.
    /// The last registered runs first. The same `name` again changes nothing.
    ///
    /// ```no_run
    /// # use onceward::transaction::*;
    /// # async fn example(order: &mut Phases<'_, tokio_postgres::Config>) -> Result<(), TransactionError> {
    /// order.local("reserve", |transaction, grant| Box::pin(async move {
    ///     transaction.execute("update stock set count = count - 1 where item = 'hat'", &[]).await?;
    ///     grant.compensate_with(transaction, "reserve", "shop.put_back", r#"{"item": "hat"}"#).await?;
    ///     Ok("".into())
    /// })).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Failure::Rollback`]: the claim was lost (ID001), or the target is none that may be registered (22023).
    pub async fn compensate_with(
        &self,
        transaction: &mut impl Calls,
        name: &str,
        target: &str,
        payload: &str,
    ) -> Result<(), Failure> {
        let registered = transaction.call(&word(WITH), &args(self, name, target, payload)).await;
        registered.map(drop).map_err(Failure::Rollback)
    }
}

impl<S: Source> Phases<'_, S> {
    /// The same in a transaction of its own, *before* an [`external`](Self::external) call that it undoes: a crash between
    /// the two leaves a compensation for what may not have been done, never an effect without one. Its receiver has to bear
    /// that.
    ///
    /// # Errors
    /// [`TransactionError`].
    pub async fn compensate_with(&self, name: &str, target: &str, payload: &str) -> Result<(), TransactionError> {
        self.transactions.alone(&word(WITH), &args(&self.grant, name, target, payload)).await
    }
}
