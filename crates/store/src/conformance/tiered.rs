//! Redis in front of a database as a subject: every route strict, or every route in the cache. Whoever runs it brings the
//! servers.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{Database, Hand, Harness, OnPostgres, Servers, Subject};
use crate::{Durabilities, Durability, Store, circuit::Breaker, guarded::Guarded, redis::Redis, tiered::Tiered};

/// Time enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);
/// The routes of the cases.
const ROUTES: [&str; 3] = ["", "pay", "create-payment"];

/// The store on servers of its own for each case.
#[derive(Clone, Copy, Debug)]
pub struct OnTiered {
    /// Whether all routes are in the cache; else they are strict.
    pub in_cache: bool,
    /// Makes the database; `None` in the list, where nothing is run.
    pub database: Option<fn() -> Database>,
    /// Makes what is in front of it; as above.
    pub servers: Option<fn() -> Servers>,
}

/// A clock that was turned is to be asked for again.
struct Turned(Arc<dyn Hand>, Arc<Tiered>);

impl Hand for Turned {
    fn turn(&self, micros: i64) {
        self.0.turn(micros);
        self.1.forget_time();
    }
}

impl Subject for OnTiered {
    fn name(&self) -> &'static str {
        if self.in_cache { "tiered-cache" } else { "tiered-strict" }
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        Box::pin(async {
            let Some(servers) = self.servers else { panic!("it is run where there are servers") };
            let of_database = OnPostgres { name: "postgres", database: self.database }.open().await;
            let Servers { options, keep } = servers();
            let cache = Arc::new(Redis::open(options).await.unwrap_or_else(|error| panic!("opening: {error}")));
            let guarded = |store| Arc::new(Guarded::new(store, PATIENCE, Breaker::default()));
            let of_cache = guarded(Arc::clone(&cache) as Arc<dyn Store>);
            let store = Arc::new(Tiered::new(guarded(of_database.store), of_cache, cache, Breaker::default()));
            let clock = of_database
                .clock
                .filter(|_| !self.in_cache)
                .map(|clock| Arc::new(Turned(clock, Arc::clone(&store))) as Arc<dyn Hand>);
            if self.in_cache {
                let routes = Durabilities::default();
                routes.set(ROUTES.map(|route| (route.to_owned(), Durability::Cache)).into());
                store.keep_by_route(Arc::new(routes));
            }
            let keep = Some(Box::new((of_database.keep, keep)) as _);
            Harness { store, clock, raw: None, rounds: 10, keep }
        })
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        const NOT_MOVED: &str = "the Redis store's own list moves its clock";
        if self.in_cache {
            return &[
                ("fence_no_precision_loss_above_2p53", NOT_MOVED),
                ("fence_increases_after_release_with_the_clock_set_back", NOT_MOVED),
                ("schema_version_forward_refused", "the Redis store's own list writes a record of a later version"),
            ];
        }
        OnPostgres { name: "postgres", database: None }.cannot()
    }
}
