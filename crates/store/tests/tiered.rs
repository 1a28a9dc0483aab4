//! Redis in front of PostgreSQL, or PostgreSQL as its fallback: every case of the list, and what hints may and may not do.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod postgres_place;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    outcome::Outcome,
    record::{ClaimId, Facts, Fence, Micros, Record, SessionId, State},
    transition::{self, Write as Transition},
};
use onceward_store::{
    Applied, Durabilities, Durability, Filter, Insert, Store, Write,
    circuit::Breaker,
    conformance::{Database, MOVABLE_CLOCK, OnFallbackOfRedis, OnTiered, Servers, Stoppable, run_all},
    guarded::Guarded,
    postgres::{self, Postgres},
    redis::{self, Redis},
    tiered::Tiered,
};
use postgres_place::{address, prepare, server};

const LEASE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Time enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

fn database() -> Database {
    postgres_place::database(MOVABLE_CLOCK)
}

fn guarded(store: Arc<dyn Store>) -> Arc<Guarded> {
    Arc::new(Guarded::new(store, PATIENCE, Breaker::default()))
}

fn redis_address(server: &servers::Redis) -> redis::address::Address {
    let nobody = redis::address::Credentials::default;
    redis::address::Address::new(&server.url(), nobody(), nobody(), None).unwrap()
}

async fn redis(server: &servers::Redis) -> Arc<Redis> {
    Arc::new(Redis::open(redis::Options::new(redis_address(server))).await.unwrap())
}

async fn tiered(database: Arc<dyn Store>, server: &servers::Redis) -> Tiered {
    let cache = redis(server).await;
    Tiered::new(guarded(database), guarded(Arc::clone(&cache) as _), cache, Breaker::default())
}

/// A Redis of its own.
fn in_front() -> Servers {
    let server = servers::Redis::start(&[]).unwrap();
    Servers { options: redis::Options::new(redis_address(&server)), keep: Box::new(server) }
}

#[test]
fn every_case_of_the_list_holds_on_the_fallback_of_a_redis_that_stands_still() {
    let first = || {
        let server = Arc::new(servers::Redis::start(&[]).unwrap());
        let options = redis::Options::new(redis_address(&server));
        let stopped = Arc::clone(&server);
        Stoppable {
            servers: Servers { options, keep: Box::new(server) },
            stop: Box::new(move || stopped.pause().unwrap()),
        }
    };
    // Outside of any runtime.
    server();
    run_all(&OnFallbackOfRedis { database: Some(database), first: Some(first) }, 4);
}

#[test]
fn every_case_of_the_list_holds_where_routes_are_strict() {
    // Outside of any runtime.
    server();
    run_all(&OnTiered { in_cache: false, database: Some(database), servers: Some(in_front) }, 4);
}

#[test]
fn every_case_of_the_list_holds_where_routes_are_in_the_cache() {
    // Outside of any runtime.
    server();
    run_all(&OnTiered { in_cache: true, database: Some(database), servers: Some(in_front) }, 4);
}

/// Two processes on servers of their own.
struct Place {
    postgres: servers::Postgres,
    redis: servers::Redis,
    one: Tiered,
    other: Tiered,
}

impl Place {
    async fn new() -> Self {
        let postgres = servers::Postgres::start(&[]).unwrap();
        prepare(&postgres, "onceward", MOVABLE_CLOCK);
        let redis = servers::Redis::start(&[]).unwrap();
        let open = async || {
            let at = address(&postgres, "onceward");
            let options = postgres::Options { listen: Some(at.clone()), ..postgres::Options::new(at) };
            tiered(Arc::new(Postgres::open(options).await.unwrap()), &redis).await
        };
        let (one, other) = (open().await, open().await);
        Self { postgres, redis, one, other }
    }

    async fn complete(&self, number: u8) -> Record {
        let fence = claim(&self.one, number).await.unwrap();
        let written = self.one.replace(id(number), &completion(number, fence)).await.unwrap();
        assert!(matches!(written, Write::Applied { .. }), "{written:?}");
        self.one.get(id(number)).await.unwrap().record.unwrap()
    }

    /// Waits until the other process tells the record from Redis.
    async fn told_from_redis(&self, number: u8) -> Record {
        let shown = self.other.hints().shown;
        let found = Mutex::new(None);
        until(async || {
            *found.lock().unwrap() = Some(existing(&self.other, number).await);
            self.other.hints().shown > shown
        })
        .await;
        found.into_inner().unwrap().unwrap()
    }

    async fn forget(&self, seen: &Record) -> Result<Write, onceward_store::StoreError> {
        let forget = transition::forget(seen, transition::Forget::Erase, false, "asked", DAY, Micros(1)).unwrap();
        let Transition::Replace(write) = forget else { panic!("an erasure replaces") };
        let [number, ..] = seen.facts.claim_id.0;
        self.one.replace(id(number), &write).await
    }
}

fn id(number: u8) -> RecordId {
    RecordId([number; 32])
}

fn facts(number: u8) -> Facts {
    let facts = transition::place(ClaimId([number; 16]), SessionId([1; 16]));
    Facts { route: "pay".into(), ..facts }
}

fn completion(number: u8, fence: Fence) -> Replacement {
    let outcome = Outcome { status: 201, body: "done".into(), ..Outcome::default() };
    let Transition::Replace(write) = transition::complete(&facts(number), fence, outcome, DAY, Micros(1)) else {
        panic!("a completion replaces")
    };
    *write
}

async fn claim(store: &Tiered, number: u8) -> Result<Fence, onceward_store::StoreError> {
    match store.insert(id(number), &facts(number), LEASE).await? {
        Insert::Inserted { fence, .. } => Ok(fence),
        Insert::Existing { record, .. } => panic!("it is there: {record:?}"),
    }
}

/// The record that a claim of somebody else meets.
async fn existing(store: &Tiered, number: u8) -> Record {
    let other = Facts { claim_id: ClaimId([0xee; 16]), ..facts(number) };
    match store.insert(id(number), &other, LEASE).await.unwrap() {
        Insert::Existing { record, .. } => *record,
        Insert::Inserted { .. } => panic!("it was granted again"),
    }
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("it never came to be"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_is_told_from_redis_and_is_as_the_database_has_it_and_claims_are_the_databases_alone() {
    let mut place = Place::new().await;
    let settled = place.complete(1).await;
    assert_eq!(place.told_from_redis(1).await, settled);
    let fence = claim(&place.one, 2).await.unwrap();
    assert_eq!(existing(&place.other, 2).await.stored.fence, fence, "what is in flight is asked for");
    place.postgres.kill().unwrap();
    assert_eq!(place.told_from_redis(1).await, settled, "the database is not needed for it");
    let refused = claim(&place.other, 3).await.unwrap_err();
    assert!(matches!(refused.applied, Applied::No | Applied::Unknown), "{refused:?}");
    place.postgres.start_again().unwrap();
    until(async || place.one.replace(id(2), &completion(2, fence)).await.is_ok()).await;
    assert_eq!(existing(&place.other, 2).await.facts.state, State::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_redis_no_key_is_granted_again_and_none_is_refused() {
    let mut place = Place::new().await;
    let settled = place.complete(1).await;
    place.told_from_redis(1).await;
    place.redis.command(&["FLUSHALL"]).unwrap();
    assert_eq!(existing(&place.other, 1).await, settled);
    // Hints are kept again, of what the present server was there for.
    assert_eq!(place.told_from_redis(1).await, settled);
    // That Redis was another is counted, and nobody is told that keys may run again.
    let cache = || place.other.stats().cache.unwrap();
    until(async || cache().losses > 0).await;
    assert_eq!(cache().last, []);
    let fence = claim(&place.one, 2).await.unwrap();
    place.redis.kill().unwrap();
    assert_eq!(existing(&place.other, 1).await, settled);
    let written = place.one.replace(id(2), &completion(2, fence)).await.unwrap();
    assert!(matches!(written, Write::Applied { .. }), "{written:?}");
    claim(&place.other, 3).await.unwrap();
    let page = place.other.scan(None, 10, Filter::default()).await.unwrap();
    assert_eq!(page.records.len(), 3, "a list needs the database alone where no route uses the cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_told_by_no_process_and_no_late_hint_brings_it_back() {
    let mut place = Place::new().await;
    let state = async |place: &Place, number| existing(&place.other, number).await.facts.state;
    let hints = redis(&place.redis).await;
    for (number, is_flushed) in [(1, false), (2, true)] {
        let settled = place.complete(number).await;
        assert_eq!(place.told_from_redis(number).await, settled);
        let as_of = hints.as_of(&id(number));
        assert!(matches!(place.forget(&settled).await, Ok(Write::Applied { .. })));
        assert_eq!(state(&place, number).await, State::Erased);
        if is_flushed {
            // The word that ended it is lost.
            place.redis.command(&["FLUSHALL"]).unwrap();
        }
        // Another process read it before, and was held up.
        hints.keep_hint(id(number), settled.clone(), as_of, DAY).await.unwrap();
        // At first it is noticed that something was lost.
        for _ in 0..2 {
            assert_eq!(hints.hint(id(number)).await.unwrap(), None);
            assert_eq!(state(&place, number).await, State::Erased);
        }
        // One that came in all the same ends where the erasure is repeated, which looks at the record.
        if is_flushed {
            hints.keep_hint(id(number), settled.clone(), hints.as_of(&id(number)), DAY).await.unwrap();
            assert!(hints.hint(id(number)).await.unwrap().is_some());
            place.one.get(id(number)).await.unwrap();
            assert_eq!(hints.hint(id(number)).await.unwrap(), None);
        }
    }
    let settled = place.complete(3).await;
    place.told_from_redis(3).await;
    place.redis.kill().unwrap();
    let refused = place.forget(&settled).await.unwrap_err();
    assert_eq!(refused.applied, Applied::No, "its hint cannot be ended: {refused:?}");
    assert_eq!(existing(&place.one, 3).await, settled);
}

/// While an erasure is under way Redis loses the word that ended the hint, and somebody reads the record once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_hint_that_comes_in_during_an_erasure_ends_with_it() {
    let place = Place::new().await;
    let settled = place.complete(1).await;
    place.told_from_redis(1).await;
    let hints = redis(&place.redis).await;
    let url = place.postgres.url("onceward");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("BEGIN; SELECT 1 FROM onceward.record FOR UPDATE").await.unwrap();
    let erasing = async {
        // A row that somebody holds is waited for half a second: until then it fails. Where that is told late, it is not
        // known whether it was applied, and asking again finds it done.
        loop {
            match place.forget(&settled).await {
                Ok(written) => break written,
                Err(error) => assert!(matches!(error.applied, Applied::No | Applied::Unknown), "{error:?}"),
            }
        }
    };
    let meanwhile = async {
        until(async || hints.hint(id(1)).await.unwrap().is_none()).await;
        place.redis.command(&["FLUSHALL"]).unwrap();
        until(async || {
            let as_of = hints.as_of(&id(1));
            hints.keep_hint(id(1), settled.clone(), as_of, DAY).await.unwrap();
            hints.hint(id(1)).await.unwrap().is_some()
        })
        .await;
        client.batch_execute("COMMIT").await.unwrap();
    };
    let (written, ()) = tokio::join!(erasing, meanwhile);
    let is_erased = |written: &Write| match written {
        Write::Applied { .. } => true,
        Write::Lost { record, .. } => record.as_ref().is_some_and(|record| record.facts.state == State::Erased),
    };
    assert!(is_erased(&written), "{written:?}");
    assert_eq!(hints.hint(id(1)).await.unwrap(), None);
    assert_eq!(existing(&place.other, 1).await.facts.state, State::Erased);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_whose_retention_is_over_by_the_databases_clock_is_not_shown() {
    let place = Place::new().await;
    place.complete(1).await;
    place.told_from_redis(1).await;
    let day = i64::try_from(DAY.as_micros()).unwrap();
    place.postgres.psql("onceward", &format!("UPDATE public.moved SET us = us + {day}")).unwrap();
    // It learns the time with its next question, each second at the latest.
    place.other.get(id(2)).await.unwrap();
    claim(&place.other, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_has_its_records_where_it_asks_and_what_was_begun_ends_there() {
    let place = Place::new().await;
    let routes = Arc::new(Durabilities::default());
    routes.set([("fast".to_owned(), Durability::Cache)].into());
    place.one.keep_by_route(Arc::clone(&routes));
    let fast = |number| Facts { route: "fast".into(), ..facts(number) };
    let Insert::Inserted { fence, .. } = place.one.insert(id(1), &fast(1), LEASE).await.unwrap() else {
        panic!("it is fresh")
    };
    claim(&place.one, 2).await.unwrap();
    let of_database = place.one.database().scan(None, 10, Filter::default()).await.unwrap();
    assert_eq!(of_database.records.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id(2)]);
    let of_both = place.one.scan(None, 10, Filter::default()).await.unwrap();
    assert_eq!(of_both.records.len(), 2);
    // The configuration changes while it runs.
    routes.set(HashMap::new());
    assert!(matches!(place.one.extend(id(1), fence, LEASE).await, Ok(Write::Applied { .. })));
    let write =
        Replacement { facts: Facts { route: "fast".into(), ..completion(1, fence).facts }, ..completion(1, fence) };
    assert!(matches!(place.one.replace(id(1), &write).await, Ok(Write::Applied { .. })));
    let read = place.one.get(id(1)).await.unwrap().record.unwrap();
    assert_eq!(read.facts.state, State::Completed);
    let seen = Expect::Seen(read.stored.fence, read.stored.revision);
    assert!(matches!(place.one.remove(id(1), seen).await, Ok(Write::Applied { .. })));
}
