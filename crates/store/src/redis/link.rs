//! A connection that is there when it is needed: made, looked at, given up and made again, whatever the servers' shape.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, PushInfo, RedisError, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
    cluster_async::ClusterConnection,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    address::{Address, CONNECT_TIMEOUT, Opening},
    error::{Failure, ends_connection, read_failed, step_failed},
    info::Info,
};
use crate::{Kind, StoreError};

/// After a connection that did not come about, whoever asks next is refused at once for so long.
const AGAIN: Duration = Duration::from_millis(50);

/// What is done with what is published; called on the connection's own task.
pub(super) type Heard = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// One connection, or a Cluster's, that many calls share.
pub(super) struct Link {
    address: Address,
    deadline: Duration,
    heard: Option<Heard>,
    live: RwLock<Option<Live>>,
    opening: Mutex<Opener>,
    made: AtomicU64,
}

struct Opener {
    opening: Option<Opening>,
    failed_at: Option<Instant>,
}

#[derive(Clone)]
enum Shape {
    One(MultiplexedConnection),
    Many(ClusterConnection),
}

#[derive(Clone)]
pub(super) struct Live {
    shape: Shape,
    generation: u64,
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct CallError {
    pub(super) error: RedisError,
    /// Whether it may have reached the server.
    sent: bool,
    is_cluster: bool,
}

impl CallError {
    /// Of a step that writes.
    pub(super) fn step(self) -> StoreError {
        if self.sent { step_failed(self.error, self.is_cluster) } else { read_failed(self.error) }
    }

    /// Of a step that only reads.
    pub(super) fn read(self) -> StoreError {
        read_failed(self.error)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.address)
    }
}

impl Link {
    pub(super) fn new(address: &Address, deadline: Duration, heard: Option<Heard>) -> Self {
        Self {
            address: address.clone(),
            deadline,
            heard,
            live: RwLock::new(None),
            opening: Mutex::new(Opener { opening: None, failed_at: None }),
            made: AtomicU64::new(0),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Sends one command.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, CallError> {
        self.with(async |shape| match shape {
            Shape::One(connection) => connection.req_packed_command(command).await,
            Shape::Many(connection) => connection.req_packed_command(command).await,
        })
        .await
    }

    /// Sends several at once. In a Cluster all are about one slot.
    pub(super) async fn pipeline(&self, commands: &Pipeline) -> Result<Vec<Value>, CallError> {
        let (offset, count) = (0, commands.len());
        self.with(async |shape| match shape {
            Shape::One(connection) => connection.req_packed_commands(commands, offset, count).await,
            Shape::Many(connection) => connection.req_packed_commands(commands, offset, count).await,
        })
        .await
    }

    /// Asks a Cluster's nodes, or does what `one` does.
    pub(super) async fn cluster(&self) -> Result<Option<ClusterConnection>, StoreError> {
        match self.live().await?.shape {
            Shape::One(_) => Ok(None),
            Shape::Many(connection) => Ok(Some(connection)),
        }
    }

    /// The connection itself, where there is one server.
    pub(super) async fn one(&self) -> Result<Option<(MultiplexedConnection, u64)>, StoreError> {
        let Live { shape, generation } = self.live().await?;
        match shape {
            Shape::One(connection) => Ok(Some((connection, generation))),
            Shape::Many(_) => Ok(None),
        }
    }

    async fn with(
        &self,
        call: impl AsyncFnOnce(&mut Shape) -> Result<Value2, RedisError>,
    ) -> Result<Value2, CallError> {
        todo!()
    }
}
