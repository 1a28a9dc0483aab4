//! Over the library `sqlx`.

use std::{error::Error, future::Future};

use sqlx::{AssertSqlSafe, Connection as _, PgPool, Postgres, Row as _, Transaction, pool::PoolConnection};

use super::{
    BoxError, Isolation,
    session::{Arg, Calls, Said, Session, Source, said},
};

/// A connection of a pool.
#[derive(Debug)]
pub struct Pooled(PoolConnection<Postgres>);

impl Source for PgPool {
    type Connection = Pooled;

    async fn connection(&self) -> Result<Pooled, BoxError> {
        Ok(Pooled(self.acquire().await?))
    }
}

impl Session for Pooled {
    type Transaction<'c> = Transaction<'c, Postgres>;

    fn begin(
        &mut self,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Transaction<'_, Postgres>, BoxError>> + Send {
        let begun = self.0.begin_with(match isolation {
            Isolation::ReadCommitted => "begin isolation level read committed",
            Isolation::RepeatableRead => "begin isolation level repeatable read",
            Isolation::Serializable => "begin isolation level serializable",
        });
        async { Ok(begun.await?) }
    }
}

impl Calls for Transaction<'_, Postgres> {
    async fn call(&mut self, sql: &str, args: &[Arg<'_>]) -> Result<Said, BoxError> {
        // Made of constants of this crate. Unnamed, so that a pooler in transaction mode carries it.
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for arg in args {
            query = match arg {
                Arg::Bytes(bytes) => query.bind(*bytes),
                Arg::Int(number) => query.bind(*number),
                Arg::Text(text) => query.bind(*text),
            };
        }
        let row = query.fetch_one(&mut **self).await?;
        Ok(said!(&row))
    }

    async fn commit(self) -> Result<(), BoxError> {
        Ok(Transaction::commit(self).await?)
    }
}

pub(super) fn state(error: &(dyn Error + 'static)) -> Option<String> {
    let error = error.downcast_ref::<sqlx::Error>()?.as_database_error()?;
    Some(error.code()?.into_owned())
}

pub(super) fn is(error: &(dyn Error + 'static)) -> bool {
    error.is::<sqlx::Error>()
}

/// What the network did stands in the chain of its errors.
pub(super) fn is_lost(_: &(dyn Error + 'static)) -> bool {
    false
}
