//! A connection that is there when it is needed: made, looked at, given up and made again.

use std::{
    sync::{
        Arc, Mutex as Lock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join;
use tokio::{sync::Mutex, time::timeout};
use tokio_postgres::{AsyncMessage, Client, Row, SimpleQueryMessage};

use super::{
    address::{Address, CONNECT_TIMEOUT},
    error::{Failure, is_unconfirmed, may_be_one_item, read_failed, write_failed},
    row::Parameter,
};
use crate::{Kind, StoreError};

/// Which server it is: learned when the store is opened, and held against every later connection.
#[derive(Debug, Default)]
pub(super) struct Identity(Lock<Known>);

#[derive(Debug, Default)]
struct Known {
    /// System and timeline.
    last: Option<(i64, String)>,
    /// The timeline before, where it changed.
    before: Option<String>,
}

impl Identity {
    /// Holds what a connection says against what was said before. Another system is another store.
    fn meet(&self, system: i64, timeline: &str) -> Result<(), StoreError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.last.take() {
            Some((other, before)) if other != system => {
                known.last = Some((other, before));
                let said = format!(
                    "this is system {system}, the store was opened on {other}: start again where that is meant"
                );
                return Err(StoreError::not_applied(Kind::Incarnation).because(Failure::said(said)));
            }
            Some((_, before)) if before != timeline => {
                tracing::warn!(before, now = timeline, "the database was failed over, or restored");
                known.before = Some(before);
            }
            _ => {}
        }
        known.last = Some((system, timeline.to_owned()));
        Ok(())
    }

    /// The timeline before, where it changed since the store was opened.
    pub(super) fn changed(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).before.clone()
    }
}

/// One connection for one kind of work. Calls on it are answered in order.
#[derive(Debug)]
pub(super) struct Lane {
    address: Address,
    identity: Arc<Identity>,
    deadline: Duration,
    connected: Mutex<Option<Arc<Connected>>>,
}

#[derive(Debug)]
struct Connected {
    client: Client,
    /// How often the server said that it did not wait for its standby.
    unconfirmed: Arc<AtomicU64>,
}

/// What makes a server unfit: asked on every new connection.
const FIT: &str = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on', current_setting('synchronous_commit'), \
    current_setting('default_transaction_isolation'), (SELECT system_identifier FROM pg_control_system()), \
    CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END";

impl Lane {
    pub(super) fn new(address: &Address, identity: &Arc<Identity>, deadline: Duration) -> Self {
        Self { address: address.clone(), identity: Arc::clone(identity), deadline, connected: Mutex::new(None) }
    }

    /// A read: whatever fails, nothing was written.
    pub(super) async fn read(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreError> {
        let connected = self.connected().await?;
        match timeout(self.deadline, connected.client.query_typed(sql, parameters)).await {
            Ok(rows) => rows.map_err(read_failed),
            Err(elapsed) => {
                self.give_up(&connected).await;
                Err(StoreError::not_applied(Kind::Unavailable).because(elapsed))
            }
        }
    }

    /// A write in a transaction of its own, over when the answer is here.
    pub(super) async fn write(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, WriteError> {
        self.written(async |client| client.query_typed(sql, parameters).await).await
    }

    /// The same, and a read after its commit that is sent along with it. Where the read alone fails, what was written is
    /// there and the caller does not learn what it asked for: that counts as unknown.
    pub(super) async fn write_then(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
        then: &str,
        then_parameters: &[Parameter<'_>],
    ) -> Result<(Vec<Row>, Vec<Row>), WriteError> {
        let (rows, read) = self
            .written(async |client| {
                // Sent in this order, each with an end of its own: the second begins when the first has committed.
                let both = join(client.query_typed(sql, parameters), client.query_typed(then, then_parameters));
                let (rows, read) = both.await;
                Ok((rows?, read))
            })
            .await?;
        let unread = |error| {
            let StoreError { kind, source, .. } = read_failed(error);
            StoreError { source, ..StoreError::unknown(kind) }
        };
        Ok((rows, read.map_err(unread)?))
    }

    /// A write of several statements without parameters, in one transaction: so that one can bound the next.
    pub(super) async fn script(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, WriteError> {
        self.written(async |client| client.simple_query(sql).await).await
    }

    async fn written<T>(
        &self,
        call: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, WriteError> {
        let connected = self.connected().await?;
        let before = connected.unconfirmed.load(Ordering::SeqCst);
        match timeout(self.deadline, call(&connected.client)).await {
            Ok(Ok(_)) if connected.unconfirmed.load(Ordering::SeqCst) != before => {
                let said = "the server gave up waiting for its synchronous standby: it is committed here and perhaps \
                    nowhere else; look at the standby and at who cancels";
                Err(StoreError::unknown(Kind::Unavailable).because(Failure::said(said)).into())
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(WriteError { may_be_one_item: may_be_one_item(&error), error: write_failed(error) }),
            Err(elapsed) => {
                self.give_up(&connected).await;
                Err(StoreError::unknown(Kind::Unavailable).because(elapsed).into())
            }
        }
    }

    /// Drops a connection that does not answer; whoever else waits on it hears that it is closed.
    async fn give_up(&self, given_up: &Arc<Connected>) {
        let mut connected = self.connected.lock().await;
        if connected.as_ref().is_some_and(|connected| Arc::ptr_eq(connected, given_up)) {
            *connected = None;
        }
    }

    async fn connected(&self) -> Result<Arc<Connected>, StoreError> {
        let unavailable = || StoreError::not_applied(Kind::Unavailable);
        let limit = self.deadline.min(CONNECT_TIMEOUT);
        let connecting = async {
            let mut connected = self.connected.lock().await;
            if let Some(connected) = connected.as_ref().filter(|connected| !connected.client.is_closed()) {
                return Ok(Arc::clone(connected));
            }
            *connected = None;
            let new = Arc::new(self.connect().await?);
            *connected = Some(Arc::clone(&new));
            Ok(new)
        };
        timeout(limit, connecting).await.unwrap_or_else(|elapsed| Err(unavailable().because(elapsed)))
    }

    async fn connect(&self) -> Result<Connected, StoreError> {
        let unconfirmed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&unconfirmed);
        let heard = move |message| {
            // A warning, since by then nothing can be taken back. The steps themselves give none.
            if let AsyncMessage::Notice(notice) = message
                && is_unconfirmed(&notice)
            {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        let (client, connection) = self.address.connect(heard).await.map_err(read_failed)?;
        tokio::spawn(connection);
        let rows = client.query_typed(FIT, &[]).await.map_err(read_failed)?;
        let Some(row) = rows.first() else { return Err(StoreError::not_applied(Kind::Unavailable)) };
        fit(row.get(0), row.get(1), row.get(2))?;
        self.identity.meet(row.get(3), row.get(4))?;
        Ok(Connected { client, unconfirmed })
    }
}

/// Whether records can be trusted to a session like this.
fn fit(read_only: bool, durable: &str, isolation: &str) -> Result<(), StoreError> {
    if read_only {
        let said = "it is a standby, or its sessions are read-only: point the store at the primary";
        return Err(StoreError::not_applied(Kind::NotPrimary).because(Failure::said(said)));
    }
    let wrong = if durable == "off" {
        "synchronous_commit is off, and an answer would be given before it is on disk: set it to on for this user or server"
    } else if isolation != "read committed" {
        "default_transaction_isolation is not `read committed`, and a step would not see what it waited for: set it so for this user"
    } else {
        return Ok(());
    };
    Err(StoreError::not_applied(Kind::Unavailable).because(Failure::said(wrong)))
}

/// How a write fails.
#[derive(Debug)]
pub(super) struct WriteError {
    pub(super) error: StoreError,
    /// By one of its items: the others may do without it.
    pub(super) may_be_one_item: bool,
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self { error, may_be_one_item: false }
    }
}
