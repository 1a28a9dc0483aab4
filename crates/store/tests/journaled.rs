//! Redis in front of a journal, over real servers: whatever becomes of one of them, no key is granted again, and service
//! resumes by itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    key::RecordId,
    outcome::Outcome,
    record::{ClaimId, Facts, Fence, Micros, Record, SessionId, State},
    transition::{self, Write as Transition},
};
use onceward_store::{
    Applied, Insert, Store, Write,
    conformance::{Database, OnJournaled, Servers, run_all},
    journaled::{JournaledStore, Left, LogSpool, Options, SpoolOptions},
    postgres::{
        self, Failover, JournalOptions, Postgres,
        address::Address,
        migrate::{MIGRATIONS, migrate},
    },
    redis::{self, Redis},
};
use tokio::task::JoinSet;

const LEASE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const DEADLINE: Duration = Duration::from_secs(2);
/// Time enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many ask at a time.
const CLIENTS: u64 = 8;

/// One server for all cases of the list.
fn server() -> &'static servers::Postgres {
    static PLACE: OnceLock<servers::Postgres> = OnceLock::new();
    PLACE.get_or_init(|| servers::Postgres::start(&[]).unwrap())
}

/// A database of its own with the schema, empty.
fn database() -> Database {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static EMPTY: OnceLock<()> = OnceLock::new();
    EMPTY.get_or_init(|| prepare(server(), "empty"));
    let name = format!("case{}", COUNT.fetch_add(1, Ordering::Relaxed));
    {
        // The template may be copied by one at a time.
        static COPYING: Mutex<()> = Mutex::new(());
        let _copying = COPYING.lock().unwrap();
        server().psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE empty")).unwrap();
    }
    let at = address(server(), &name);
    Database { address: at.clone(), direct: at, keep: Box::new(()) }
}

fn prepare(server: &servers::Postgres, name: &str) {
    server.create_database(name).unwrap();
    let at = address(server, name);
    // Outside of the runtime that may be here.
    let migrated = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(migrate(&at, MIGRATIONS, false)).unwrap();
    });
    migrated.join().unwrap();
}

/// A Redis of its own.
fn in_front() -> Servers {
    let server = servers::Redis::start(&[]).unwrap();
    Servers { options: redis::Options::new(redis_address(&server.url())), keep: Box::new(server) }
}

fn address(server: &servers::Postgres, database: &str) -> Address {
    Address::new(&server.url(database), None, None).unwrap()
}

fn redis_address(url: &str) -> redis::address::Address {
    let nobody = redis::address::Credentials::default;
    redis::address::Address::new(url, nobody(), nobody(), None).unwrap()
}

/// Two servers, and what gateways over them did.
struct Place {
    postgres: servers::Postgres,
    redis: servers::Redis,
    /// Through which gateways reach Redis.
    relay: servers::Relay,
    spools: tempfile::TempDir,
    seen: Arc<Seen>,
}

/// What was done, and told.
#[derive(Default)]
struct Seen {
    /// Requests that were sent, by key.
    sent: Mutex<HashMap<u64, u32>>,
    /// Answers that were recorded, by key.
    answers: Mutex<HashMap<u64, String>>,
    granted: AtomicU64,
    replayed: AtomicU64,
    refused: AtomicU64,
    next: AtomicU64,
    /// Promises that were seen broken.
    broken: Mutex<Vec<String>>,
}

impl Seen {
    fn breaks(&self, what: String) {
        self.broken.lock().unwrap().push(what);
    }
}

/// A gateway. Dropped, it is gone as after kill -9, but for what the system has of its connections.
struct Gateway {
    store: Arc<JournaledStore>,
    _redis: Arc<Redis>,
    _database: Arc<Postgres>,
}

impl Place {
    async fn new() -> Self {
        let postgres = servers::Postgres::start(&[]).unwrap();
        postgres.create_database("onceward").unwrap();
        migrate(&address(&postgres, "onceward"), MIGRATIONS, false).await.unwrap();
        let redis = servers::Redis::start(&[]).unwrap();
        let relay = servers::Relay::before(redis.port()).unwrap();
        Self { postgres, redis, relay, spools: tempfile::tempdir().unwrap(), seen: Arc::default() }
    }

    async fn gateway(&self, name: &str) -> Gateway {
        let spool = self.spools.path().join(name);
        let options = postgres::Options::new(address(&self.postgres, "onceward"));
        let options = postgres::Options { deadline: DEADLINE, ..options };
        let database = Arc::new(Postgres::open(options).await.unwrap());
        let options = redis::Options::new(redis_address(&format!("redis://{}", self.relay.address())));
        let options = redis::Options { deadline: DEADLINE, ..options };
        let redis = Arc::new(Redis::open(options).await.unwrap());
        // One that is gone may have its spool for a moment yet.
        let found = Mutex::new(None);
        until("spools", async || {
            *found.lock().unwrap() = LogSpool::open(&spool, &small()).ok();
            found.lock().unwrap().is_some()
        })
        .await;
        let (spool, left) = found.into_inner().unwrap().unwrap();
        Gateway { store: start(spool, left, &redis, &database), _redis: redis, _database: database }
    }

    /// Until `more` further keys were granted.
    async fn granted(&self, more: u64) {
        let before = self.seen.granted.load(Ordering::SeqCst);
        until("grants", async || {
            assert_eq!(*self.seen.broken.lock().unwrap(), Vec::<String>::new());
            self.seen.granted.load(Ordering::SeqCst) >= before + more
        })
        .await;
    }

    /// What must hold, whatever happened.
    fn judge(&self, least: usize) {
        let sent = self.seen.sent.lock().unwrap();
        let twice: Vec<_> = sent.iter().filter(|(_, count)| **count > 1).collect();
        assert_eq!(twice, [], "keys that were sent more than once");
        assert_eq!(*self.seen.broken.lock().unwrap(), Vec::<String>::new());
        assert!(sent.len() >= least, "{} keys", sent.len());
        let [granted, replayed, refused] =
            [&self.seen.granted, &self.seen.replayed, &self.seen.refused].map(|count| count.load(Ordering::SeqCst));
        eprintln!("{granted} granted, {replayed} replayed, {refused} refused");
        assert!(replayed > 0);
    }
}

fn small() -> SpoolOptions {
    SpoolOptions { segment_bytes: 1 << 20, ..SpoolOptions::default() }
}

fn start(spool: LogSpool, left: Vec<Left>, redis: &Arc<Redis>, database: &Arc<Postgres>) -> Arc<JournaledStore> {
    let options = Options { session: SessionId([0; 16]), partitions: 256, deadline: DEADLINE };
    let journal = JournalOptions { silence: Duration::from_secs(2), ..JournalOptions::new(Failover::None) };
    let (front, journal) = (Arc::new(redis.front()), Arc::new(database.journal(journal)));
    let (redis, database) = (Arc::clone(redis) as _, Arc::clone(database) as _);
    Arc::new(JournaledStore::start(options, front, journal, Arc::new(spool), left, redis, database).unwrap())
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("there are no {what}"));
}

/// Whether Redis has every row of the journal, in all partitions.
fn is_warm(redis: &servers::Redis) -> bool {
    let count = "local warm = 0
        for partition = 0, 255 do
            local view = redis.call('GET', string.format('idemp:v1:{p%03d}:v', partition))
            if view and view:sub(-1) == '1' then warm = warm + 1 end
        end
        return warm";
    redis.command(&["EVAL", count, "0"]).unwrap().trim() == "256"
}

fn id(key: u64) -> RecordId {
    let mut id = [0; 32];
    // Spread over the partitions.
    id[..8].copy_from_slice(&key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[8..16].copy_from_slice(&key.to_be_bytes());
    RecordId(id)
}

/// Clients that ask for new keys and for earlier ones, at each gateway.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(place: &Place, gateways: &[&Gateway]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let stores: Vec<_> = gateways.iter().map(|gateway| Arc::clone(&gateway.store)).collect();
            let (seen, stop) = (Arc::clone(&place.seen), Arc::clone(&stop));
            clients.spawn(async move {
                let mut rng = fastrand::Rng::with_seed(client);
                while !stop.load(Ordering::SeqCst) {
                    let Some(store) = rng.choice(&stores) else { return };
                    let key = match rng.bool() {
                        true => seen.next.fetch_add(1, Ordering::SeqCst),
                        false => rng.u64(..=seen.next.load(Ordering::SeqCst)),
                    };
                    ask(&seen, store, key, ClaimId(std::array::from_fn(|_| rng.u8(..)))).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        Self { stop, clients }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

/// One request: it is sent where its key is granted, and its answer recorded.
async fn ask(seen: &Seen, store: &JournaledStore, key: u64, claim_id: ClaimId) {
    let facts = Facts { route: "pay".into(), ..transition::place(claim_id, SessionId([1; 16])) };
    match store.insert(id(key), &facts, LEASE).await {
        Ok(Insert::Inserted { fence, .. }) => {
            *seen.sent.lock().unwrap().entry(key).or_default() += 1;
            let answer = format!("{claim_id:?}");
            record(seen, store, key, &facts, fence, &answer).await;
            seen.answers.lock().unwrap().entry(key).or_insert(answer);
            seen.granted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Insert::Existing { record, .. }) if record.facts.state == State::Completed => {
            let body = String::from_utf8(record.facts.outcome.unwrap().body.to_vec()).unwrap();
            if seen.answers.lock().unwrap().get(&key).is_some_and(|answer| *answer != body) {
                seen.breaks(format!("key {key} has another answer"));
            }
            seen.replayed.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Insert::Existing { .. }) => {}
        Err(error) => {
            assert!(matches!(error.applied, Applied::No | Applied::Unknown));
            seen.refused.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// As a holder does it: again, until it knows.
async fn record(seen: &Seen, store: &JournaledStore, key: u64, facts: &Facts, fence: Fence, answer: &str) {
    let outcome = Outcome { status: 201, body: answer.to_owned().into(), ..Outcome::default() };
    let Transition::Replace(write) = transition::complete(facts, fence, outcome, DAY, Micros(1)) else {
        panic!("a completion replaces")
    };
    let recorded = async {
        loop {
            match store.replace(id(key), &write).await {
                Ok(Write::Applied { .. }) => return,
                Ok(Write::Lost { record, .. }) => {
                    let is_ours =
                        |record: &Record| (record.stored.fence, record.facts.state) == (fence, State::Completed);
                    if !record.as_ref().is_some_and(|record| is_ours(record)) {
                        seen.breaks(format!("key {key} was granted, and is another's now: {record:?}"));
                    }
                    return;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    if tokio::time::timeout(PATIENCE, recorded).await.is_err() {
        seen.breaks(format!("key {key} was never recorded"));
    }
}

#[test]
fn every_case_of_the_list_holds() {
    // Outside of any runtime.
    server();
    run_all(&OnJournaled { database: Some(database), servers: Some(in_front) }, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_emptied_and_started_again_without_its_data_and_no_key_is_granted_twice() {
    let mut place = Place::new().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    place.redis.command(&["FLUSHALL"]).unwrap();
    place.granted(200).await;
    place.redis.kill().unwrap();
    place.redis.start_again().unwrap();
    place.granted(200).await;
    load.end().await;
    place.judge(600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacks_the_last_claims_takes_over_and_no_key_is_granted_twice() {
    let place = Place::new().await;
    let replica = place.redis.replica().unwrap();
    place.redis.wait_for_replicas(1).unwrap();
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    // Cut off before the last claims; it keeps what it has, and its replication id.
    replica.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    place.granted(100).await;
    let behind = |server: &servers::Redis| server.command(&["DBSIZE"]).unwrap().trim().parse::<u64>().unwrap();
    assert!(behind(&replica) < behind(&place.redis), "the replica is stale");
    replica.promote().unwrap();
    place.relay.leads_to(replica.port());
    place.relay.cut();
    place.granted(200).await;
    load.end().await;
    place.judge(500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_gone_with_its_disk_is_retired_and_then_redis_may_be_lost() {
    let place = Place::new().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    drop(other);
    std::fs::remove_dir_all(place.spools.path().join("other")).unwrap();
    let load = Load::start(&place, &[&one]);
    place.granted(100).await;
    let retired = || place.postgres.psql("onceward", "SELECT count(*) FROM onceward.journal_member WHERE status = 3");
    until("retirements", async || retired().unwrap().trim() == "1").await;
    place.redis.command(&["FLUSHALL"]).unwrap();
    place.granted(200).await;
    load.end().await;
    place.judge(500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_comes_back_settles_what_it_left_although_its_redis_is_lost() {
    let place = Place::new().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    drop(other);
    place.redis.command(&["FLUSHALL"]).unwrap();
    let other = place.gateway("other").await;
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    place.judge(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_idle_when_it_was_killed_and_comes_back_holds_up_nobody_although_its_redis_is_lost() {
    let place = Place::new().await;
    let (one, idle) = (place.gateway("one").await, place.gateway("idle").await);
    let live = || place.postgres.psql("onceward", "SELECT count(*) FROM onceward.journal_member WHERE status = 1");
    until("members", async || live().unwrap().trim() == "2").await;
    let load = Load::start(&place, &[&one]);
    place.granted(100).await;
    drop(idle);
    // Everybody waits for it, and the Redis through which it would be retired is gone.
    place.redis.command(&["FLUSHALL"]).unwrap();
    let idle = place.gateway("idle").await;
    place.granted(200).await;
    load.end().await;
    place.judge(300);
    assert!(idle.store.leave(PATIENCE).await);
    let names = std::fs::read_dir(place.spools.path().join("idle")).unwrap().map(|entry| entry.unwrap().file_name());
    let sessions: Vec<_> = names.filter(|name| name.to_str().unwrap().contains("session")).collect();
    assert_eq!(sessions, Vec::<std::ffi::OsString>::new(), "one that has left is not looked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_killed_and_service_goes_on_without_it_and_what_was_granted_meanwhile_is_shipped() {
    let mut place = Place::new().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    until("warm views", async || is_warm(&place.redis)).await;
    place.postgres.kill().unwrap();
    place.granted(200).await;
    place.postgres.start_again().unwrap();
    place.granted(100).await;
    place.redis.command(&["FLUSHALL"]).unwrap();
    place.granted(200).await;
    load.end().await;
    place.judge(700);
}
