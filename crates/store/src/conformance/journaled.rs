//! Redis in front of a journal as a subject, and the journal while nobody reaches Redis. Whoever runs it brings the servers.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use onceward_core::{
    key::{PARTITIONS, RecordId},
    record::SessionId,
};

use super::{Database, Harness, Servers, Subject, postgres::ServerClock, redis::Behind, subject::Folder};
use crate::{
    Answer, Kind, Store, StoreError,
    journaled::{
        At, Dirty, Fact, Front, Install, JournaledStore, LogSpool, Options, Outbox, Row, Sight, SpoolOptions, Stepped,
        What,
    },
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

/// The store where nobody reaches Redis, so that all of its views are on the database.
#[derive(Clone, Copy, Debug)]
pub struct OnJournaledAlone {
    /// Makes the database; `None` in the list, where nothing is run.
    pub database: Option<fn() -> Database>,
}

impl Subject for OnJournaledAlone {
    fn name(&self) -> &'static str {
        "journaled-without-redis"
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        Box::pin(async {
            let Some(database) = self.database else { panic!("it is run where there is a server") };
            let Database { address, direct, keep: of_database } = database();
            let options =
                PostgresOptions { deadline: PATIENCE, listen: Some(direct.clone()), ..PostgresOptions::new(address) };
            let database = Postgres::open(options).await.unwrap_or_else(|error| panic!("opening: {error}"));
            let database = Arc::new(database);
            let folder = Folder::new();
            let opened = LogSpool::open(&folder.0, &SpoolOptions::default());
            let (spool, left) = opened.unwrap_or_else(|error| panic!("opening: {error}"));
            let journal = Arc::new(database.journal(JournalOptions::new(Failover::None)));
            let options = Options { session: SessionId([0; 16]), partitions: PARTITIONS, deadline: PATIENCE };
            let (spool, waking): (_, Arc<dyn Store>) = (Arc::new(spool), Arc::<Postgres>::clone(&database));
            let store = JournaledStore::start(options, Arc::new(Nowhere), journal, spool, left, waking, database);
            let store = Arc::new(store.unwrap_or_else(|error| panic!("starting: {error}")));
            assert!(store.is_ready(PATIENCE).await && store.serves().on_database == usize::from(PARTITIONS));
            let keep = Some(Box::new((folder, of_database)) as _);
            Harness { store, clock: Some(Arc::new(ServerClock::new(direct))), raw: None, rounds: 10, keep }
        })
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("claim_quota_per_tenant", "what a tenant takes up is not counted yet: quotas hold nothing back"),
            ("schema_version_forward_refused", "the tests of the schema show that a newer one is refused"),
            ("claim_expired_phase_c_takes_over", COUNTS_AS_SENT),
            ("derived_state_needs_no_sweeper", COUNTS_AS_SENT),
        ]
    }
}

const COUNTS_AS_SENT: &str =
    "a claim of the journal counts as sent: that it was may have been written to a Redis that nobody reaches";

/// Redis that nobody reaches.
#[derive(Debug)]
struct Nowhere;

fn nobody<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(std::future::ready(Err(StoreError::not_applied(Kind::Unavailable))))
}

impl Front for Nowhere {
    fn step<'a>(&'a self, _at: &'a At, _id: RecordId, _what: What<'a>, _row: Option<&'a Row>) -> Answer<'a, Stepped> {
        nobody()
    }

    fn look<'a>(&'a self, _partitions: &'a [u16]) -> Answer<'a, Vec<(u16, Sight)>> {
        nobody()
    }

    fn install<'a>(&'a self, _at: &'a At, _install: &'a Install) -> Answer<'a, bool> {
        nobody()
    }

    fn admit<'a>(&'a self, _at: &'a At) -> Answer<'a, bool> {
        nobody()
    }

    fn shut_out<'a>(&'a self, _at: &'a At, _target: SessionId) -> Answer<'a, bool> {
        nobody()
    }

    fn dirty<'a>(&'a self, _at: &'a At) -> Answer<'a, Option<Outbox>> {
        nobody()
    }

    fn clean<'a>(&'a self, _at: &'a At, _shipped: &'a [Dirty]) -> Answer<'a, bool> {
        nobody()
    }

    fn merge<'a>(&'a self, _at: &'a At, _rows: &'a [Fact]) -> Answer<'a, bool> {
        nobody()
    }

    fn warm<'a>(&'a self, _at: &'a At) -> Answer<'a, bool> {
        nobody()
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
