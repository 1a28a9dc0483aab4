//! A database as the fallback of a Redis that stands still as a subject. Whoever runs it brings the servers.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{Database, Harness, OnFallback, OnPostgres, Servers, Subject};
use crate::{Store as _, circuit::Breaker, fallback::Fallback, guarded::Guarded, redis::Redis};

/// Time enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the first call of a case waits for what does not answer.
const DEADLINE: Duration = Duration::from_millis(200);
/// Open from that call on, for longer than any case takes.
const BREAKER: Breaker = Breaker { failures: 1, open: Duration::from_secs(60) };

/// A Redis that a store can be opened on.
pub struct Stoppable {
    /// Where it is.
    pub servers: Servers,
    /// Has it stand still.
    pub stop: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Stoppable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stoppable({:?})", self.servers)
    }
}

/// The store on servers of its own for each case.
#[derive(Clone, Copy, Debug)]
pub struct OnFallbackOfRedis {
    /// Makes the database; `None` in the list, where nothing is run.
    pub database: Option<fn() -> Database>,
    /// Makes what stands still before it; as above.
    pub first: Option<fn() -> Stoppable>,
}

impl Subject for OnFallbackOfRedis {
    fn name(&self) -> &'static str {
        "fallback-redis-stopped"
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        Box::pin(async {
            let Some(first) = self.first else { panic!("it is run where there are servers") };
            let harness = OnPostgres { name: "postgres", database: self.database }.open().await;
            let Stoppable { servers: Servers { options, keep }, stop } = first();
            let first = Redis::open(options).await.unwrap_or_else(|error| panic!("opening: {error}"));
            stop();
            let first = Arc::new(Guarded::new(Arc::new(first), DEADLINE, BREAKER));
            let second = Arc::new(Guarded::new(harness.store, PATIENCE, Breaker::default()));
            let store = Fallback::new(first, second);
            store.fall_back(Arc::new(|_, _| true));
            Harness { store: Arc::new(store), keep: Some(Box::new((harness.keep, keep))), ..harness }
        })
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        static BOTH: std::sync::LazyLock<Vec<(&str, &str)>> = std::sync::LazyLock::new(|| {
            let of_database = OnPostgres { name: "postgres", database: None };
            [OnFallback::FirstIsDead.cannot(), of_database.cannot()].concat()
        });
        &BOTH
    }
}
