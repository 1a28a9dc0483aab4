//! Over the library `tokio-postgres`.

use std::{
    error::Error,
    future::{Future, poll_fn},
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio_postgres::{
    AsyncMessage, Client, Config, IsolationLevel, NoTls, Transaction,
    error::{DbError, Severity, SqlState},
    types::{ToSql, Type},
};

use super::{
    BoxError, Isolation,
    session::{Arg, Calls, Said, Session, Source, said},
};

/// A connection of its own, which listens to what the server says unasked.
#[derive(Debug)]
pub struct Connected {
    client: Box<Client>,
    unconfirmed: Arc<AtomicU64>,
}

impl Deref for Connected {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connected {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Connects each time, without TLS: for tests and tools. An application implements [`Source`] over its pool.
impl Source for Config {
    type Connection = Connected;

    async fn connection(&self) -> Result<Connected, BoxError> {
        let (client, mut connection) = self.connect(NoTls).await?;
        let unconfirmed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&unconfirmed);
        // Ends with the client. A notice is heard before the answer that follows it.
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message
                    && is_unconfirmed(&notice)
                {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ok(Connected { client: Box::new(client), unconfirmed })
    }

    fn unconfirmed(&self, connection: &Connected) -> u64 {
        connection.unconfirmed.load(Ordering::SeqCst)
    }
}

/// Whether the server gave up waiting for its standby: by severity and code, since the words are of its language. A trigger
/// that raises a warning has the same code, and says that it was plpgsql.
fn is_unconfirmed(notice: &DbError) -> bool {
    matches!(notice.parsed_severity(), Some(Severity::Warning))
        && [SqlState::WARNING, SqlState::ADMIN_SHUTDOWN].contains(notice.code())
        && notice.routine() != Some("exec_stmt_raise")
}

/// Whatever a pool gives out that is a client.
impl<C: DerefMut<Target = Client> + Send> Session for C {
    type Transaction<'c>
        = Transaction<'c>
    where
        C: 'c;

    fn begin(&mut self, isolation: Isolation) -> impl Future<Output = Result<Transaction<'_>, BoxError>> + Send {
        let level = match isolation {
            Isolation::ReadCommitted => IsolationLevel::ReadCommitted,
            Isolation::RepeatableRead => IsolationLevel::RepeatableRead,
            Isolation::Serializable => IsolationLevel::Serializable,
        };
        let begun = self.build_transaction().isolation_level(level).start();
        async { Ok(begun.await?) }
    }
}

impl Calls for Transaction<'_> {
    async fn call(&mut self, sql: &str, args: &[Arg<'_>]) -> Result<Said, BoxError> {
        let params: Vec<(&(dyn ToSql + Sync), Type)> = args
            .iter()
            .map(|arg| match arg {
                Arg::Bytes(bytes) => (bytes as &(dyn ToSql + Sync), Type::BYTEA),
                Arg::Int(number) => (number as &(dyn ToSql + Sync), Type::INT8),
                Arg::Text(text) => (text as &(dyn ToSql + Sync), Type::TEXT),
            })
            .collect();
        // Unnamed, so that a pooler in transaction mode carries it.
        let row = self.query_typed_one(sql, &params).await?;
        Ok(said!(&row))
    }

    async fn commit(self) -> Result<(), BoxError> {
        Ok(Transaction::commit(self).await?)
    }
}

pub(super) fn state(error: &(dyn Error + 'static)) -> Option<String> {
    let error = error.downcast_ref::<tokio_postgres::Error>()?;
    Some(error.code()?.code().to_owned())
}

pub(super) fn is(error: &(dyn Error + 'static)) -> bool {
    error.is::<tokio_postgres::Error>()
}

pub(super) fn is_lost(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<tokio_postgres::Error>().is_some_and(tokio_postgres::Error::is_closed)
}
