//! Gateways over servers that a test has, clients that ask them, and what was seen.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test uses its part")]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
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
    journaled::{JournaledStore, LogSpool, OpenError, Options, SpoolOptions},
    postgres::{self, Failover, JournalOptions, Postgres},
    redis::{self, Redis},
};
use tokio::task::JoinSet;

use crate::postgres_place::{address, prepare};

const LEASE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);
/// Time enough for a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// So many ask at a time.
const CLIENTS: u64 = 8;

pub(crate) fn redis_address(url: &str) -> redis::address::Address {
    let nobody = redis::address::Credentials::default;
    redis::address::Address::new(url, nobody(), nobody(), None).unwrap()
}

/// A database, what is in front of it, and what gateways over them did.
pub(crate) struct Place {
    pub(crate) postgres: servers::Postgres,
    pub(crate) in_front: redis::Options,
    pub(crate) failover: Failover,
    pub(crate) spools: tempfile::TempDir,
    pub(crate) seen: Arc<Seen>,
}

/// What was done, and told.
#[derive(Default)]
pub(crate) struct Seen {
    /// Requests that were sent, by key.
    pub(crate) sent: Mutex<HashMap<u64, u32>>,
    /// Answers that were recorded, by key.
    pub(crate) answers: Mutex<HashMap<u64, String>>,
    pub(crate) granted: AtomicU64,
    pub(crate) replayed: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) next: AtomicU64,
    /// Promises that were seen broken.
    pub(crate) broken: Mutex<Vec<String>>,
}

impl Seen {
    fn breaks(&self, what: String) {
        self.broken.lock().unwrap().push(what);
    }
}

/// A gateway. Dropped, it is gone as after kill -9, but for what the system has of its connections.
pub(crate) struct Gateway {
    pub(crate) store: Arc<JournaledStore>,
    pub(crate) redis: Arc<Redis>,
    _database: Arc<Postgres>,
}

impl Place {
    pub(crate) async fn new(in_front: redis::Options) -> Self {
        let postgres = servers::Postgres::start(&[("fsync", "on")]).unwrap();
        prepare(&postgres, "onceward", "");
        let in_front = redis::Options { deadline: DEADLINE, ..in_front };
        let spools = tempfile::tempdir().unwrap();
        Self { postgres, in_front, failover: Failover::None, spools, seen: Arc::default() }
    }

    pub(crate) async fn gateway(&self, name: &str) -> Gateway {
        self.open(name).await.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A gateway, or why there is none.
    pub(crate) async fn open(&self, name: &str) -> Result<Gateway, OpenError> {
        let folder = self.spools.path().join(name);
        let options = postgres::Options::new(address(&self.postgres, "onceward"));
        let options = postgres::Options { deadline: DEADLINE, ..options };
        let database = Arc::new(Postgres::open(options).await.unwrap());
        let redis = Arc::new(Redis::open(self.in_front.clone()).await.unwrap());
        // One that is gone may have its spool for a moment yet.
        let found = Mutex::new(None);
        until("spools", async || {
            *found.lock().unwrap() = LogSpool::open(&folder, &small()).ok();
            found.lock().unwrap().is_some()
        })
        .await;
        let (spool, left) = found.into_inner().unwrap().unwrap();
        let options = Options { session: SessionId([0; 16]), partitions: 256, deadline: DEADLINE };
        let journal = JournalOptions { silence: Duration::from_secs(2), ..JournalOptions::new(self.failover.clone()) };
        let store = JournaledStore::open(options, &redis, &database, journal, Arc::new(spool), left).await?;
        Ok(Gateway { store: Arc::new(store), redis, _database: database })
    }

    /// The database's.
    pub(crate) fn address(&self) -> postgres::address::Address {
        address(&self.postgres, "onceward")
    }

    /// One request.
    pub(crate) async fn ask(&self, gateway: &Gateway, key: u64) {
        ask(&self.seen, &gateway.store, key, ClaimId(std::array::from_fn(|_| fastrand::u8(..)))).await;
    }

    /// Until `more` further keys were granted.
    pub(crate) async fn granted(&self, more: u64) {
        let before = self.seen.granted.load(Ordering::SeqCst);
        until("grants", async || {
            assert_eq!(*self.seen.broken.lock().unwrap(), Vec::<String>::new());
            self.seen.granted.load(Ordering::SeqCst) >= before + more
        })
        .await;
    }

    /// What must hold, whatever happened.
    pub(crate) fn judge(&self, least: usize) {
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

pub(crate) fn small() -> SpoolOptions {
    SpoolOptions { segment_bytes: 1 << 20, ..SpoolOptions::default() }
}

pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("there are no {what}"));
}

pub(crate) fn id(key: u64) -> RecordId {
    let mut id = [0; 32];
    // Spread over the partitions.
    id[..8].copy_from_slice(&key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[8..16].copy_from_slice(&key.to_be_bytes());
    RecordId(id)
}

/// Clients that ask for new keys and for earlier ones, at each gateway.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(place: &Place, gateways: &[&Gateway]) -> Self {
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

    pub(crate) async fn end(mut self) {
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
