//! What routes with `durability = "journaled"` need of this process: a spool in its folder, and a session over it.

use std::{io, sync::Arc, time::Duration};

use onceward::store::{
    journaled::{JournaledStore, LogSpool, Options, Serves, SpoolOptions},
    postgres::{JournalOptions, Postgres},
    redis::Redis,
};
use onceward_core::{key::PARTITIONS, record::SessionId};

use crate::{
    config::{Config, Journal},
    start::StartError,
};

/// The spool's folder, in the store's.
pub const SPOOL_FOLDER: &str = "spool";
/// How the spool grows.
const SEGMENT_BYTES: u32 = 16 << 20;
/// Whoever waits for this process to be ready waits so long at most for views, which mostly are there within a second.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// A process that stops in order puts what it holds into the journal within this; otherwise it does when it starts again,
/// or others do it.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// A process's part in what is journaled.
#[derive(Clone, Debug)]
pub struct Journaling {
    /// As a store.
    pub store: Arc<JournaledStore>,
    spool: Arc<LogSpool>,
}

impl Journaling {
    /// Opens the spool, which one process can, begins a session, and waits a while until it takes claims.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(
        config: &Config,
        said: &Journal,
        database: &Arc<Postgres>,
        redis: &Arc<Redis>,
    ) -> Result<Self, StartError> {
        let folder = config.store.path.join(SPOOL_FOLDER);
        let segments_max = u32::try_from(said.spool / u64::from(SEGMENT_BYTES)).unwrap_or(u32::MAX);
        let opened = LogSpool::open(&folder, &SpoolOptions { segment_bytes: SEGMENT_BYTES, segments_max });
        let (spool, left) = opened.map_err(|source| StartError::Spool { folder, source: Box::new(source) })?;
        let spool = Arc::new(spool);
        let mut options = JournalOptions::new(said.failover.clone());
        options.silence = said.member_timeout;
        // Each session draws its own.
        let session =
            Options { session: SessionId::default(), partitions: PARTITIONS, deadline: config.store.deadline };
        let opened = JournaledStore::open(session, redis, database, options, Arc::clone(&spool), left).await;
        let store = Arc::new(opened.map_err(|source| StartError::Journal(Box::new(source)))?);
        if !store.is_ready(READY_WITHIN).await {
            let Serves { in_force, of, .. } = store.serves();
            tracing::warn!(
                partitions = of - in_force,
                "the journal's views are not all in force yet: keys of these partitions are refused until they are. Another \
                 process that has gone is retired {:?} after it was heard of last",
                said.member_timeout
            );
        }
        Ok(Self { store, spool })
    }

    /// As [`Opened::set_admin`](crate::opened::Opened::set_admin).
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn set_admin(&self, address: &str) -> io::Result<()> {
        self.spool.set_admin(address)
    }

    /// Ends the session.
    pub async fn close(&self) {
        if !self.store.leave(LEAVES_WITHIN).await {
            tracing::warn!(
                "what this process claimed in the journal's name is not all in the database: it is put there when this \
                 process starts again, or by others once they have not heard of it"
            );
        }
    }
}
