//! Redis in front of a journal as a subject. Whoever runs it brings the servers.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use onceward_core::{key::PARTITIONS, record::SessionId};

use super::{Database, Harness, Servers, Subject, redis::Behind, subject::Folder};
use crate::{
    Store,
    journaled::{Front, JournaledStore, LogSpool, Options, Sight, SpoolOptions},
    postgres::{Failover, JournalOptions, Options as PostgresOptions, Postgres},
    redis::{Options as RedisOptions, Redis},
};

/// Time enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// The store on servers of its own for each case.
#[derive(Clone, Copy, Debug)]
pub struct OnJournaled {
    /// Makes the database; `None` in the list, where nothing is run.
    pub database: Option<fn() -> Database>,
    /// Makes what is in front of it; as above.
    pub servers: Option<fn() -> Servers>,
}

impl Subject for OnJournaled {
    fn name(&self) -> &'static str {
        "journaled"
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        Box::pin(async {
            let (Some(database), Some(servers)) = (self.database, self.servers) else {
                panic!("it is run where there are servers")
            };
            let Database { address, keep: of_database, .. } = database();
            let options = PostgresOptions { deadline: PATIENCE, ..PostgresOptions::new(address) };
            let database = Postgres::open(options).await.unwrap_or_else(|error| panic!("opening: {error}"));
            let Servers { options, keep: of_redis } = servers();
            let options = RedisOptions { clock_moves: true, deadline: PATIENCE, ..options };
            let redis = Redis::open(options).await.unwrap_or_else(|error| panic!("opening: {error}"));
            let (database, redis) = (Arc::new(database), Arc::new(redis));
            let folder = Folder::new();
            let opened = LogSpool::open(&folder.0, &SpoolOptions::default());
            let (spool, left) = opened.unwrap_or_else(|error| panic!("opening: {error}"));
            let journal = Arc::new(database.journal(JournalOptions::new(Failover::None)));
            let options = Options { session: SessionId([0; 16]), partitions: PARTITIONS, deadline: PATIENCE };
            let (front, waking): (_, Arc<dyn Store>) = (Arc::new(redis.front()), Arc::<Redis>::clone(&redis));
            let looking = Arc::clone(&front);
            let store = JournaledStore::start(options, front, journal, Arc::new(spool), left, waking, database);
            let store = Arc::new(store.unwrap_or_else(|error| panic!("starting: {error}")));
            are_warm(&*looking).await;
            let keep = Some(Box::new((folder, of_redis, of_database)) as _);
            Harness { store, clock: Some(Arc::new(Behind::new(redis))), raw: None, rounds: 10, keep }
        })
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("claim_quota_per_tenant", "what a tenant takes up is not counted yet: quotas hold nothing back"),
            ("schema_version_forward_refused", "the scripts' own tests write a record of a later version"),
        ]
    }
}

/// Until every partition has its first view, and that is warm: before, a claim counts as sent once it is journaled (A5).
async fn are_warm(front: &dyn Front) {
    let partitions: Vec<u16> = (0..PARTITIONS).collect();
    let is_warm =
        |sights: Vec<(u16, Sight)>| sights.len() == partitions.len() && sights.iter().all(|(_, sight)| sight.is_warm);
    while !front.look(&partitions).await.is_ok_and(is_warm) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
