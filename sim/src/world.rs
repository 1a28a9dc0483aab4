//! The world: servers, the network between them and the gateways, and the truth that the checker looks at.
//!
//! Time is virtual: every call takes some of it, drawn from the seed, and everything that happens at a server happens at
//! one moment.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use onceward_core::record::{Micros, SessionId};
use onceward_sim::{database::Database, server::Server};
use onceward_store::{Kind, StoreError};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{gateway::Disk, history::History, redis::incarnation};

/// How many partitions there are: enough that one is not another.
pub(crate) const PARTITIONS: u16 = 2;
/// The timeline that the database was made on.
const FIRST: u64 = 1;
/// How long a call may take.
pub(crate) const DEADLINE: Duration = Duration::from_millis(500);
/// How long answers are kept: past the end of the run, or so short that keys are free again and again.
const DAY: Duration = Duration::from_secs(86_400);
const SHORT: Duration = Duration::from_millis(1_200);
/// What the servers' clocks begin at.
const START_US: u64 = 1_750_000_000_000_000;

/// Whom a gateway calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Redis,
    Database,
}

/// What the network does to a gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gateway {
    /// Its lives so far: calls of an earlier one are never answered.
    pub(crate) life: u32,
    pub(crate) is_paused: bool,
    pub(crate) is_cut_from_redis: bool,
    pub(crate) is_cut_from_database: bool,
    /// With its spool.
    pub(crate) disk: Disk,
    /// Which server its client follows.
    pub(crate) follows: usize,
}

/// Everything that is.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) rng: fastrand::Rng,
    pub(crate) servers: [Server; 2],
    pub(crate) database: Database,
    /// Takes over, as far as it has got.
    pub(crate) standby: Database,
    /// When it was last told of other members.
    pub(crate) members_kept_at: Duration,
    pub(crate) database_is_down: bool,
    pub(crate) redis_is_down: bool,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) sessions: u64,
    /// Whose each session is, and in which life of that gateway it began.
    pub(crate) lives: Vec<(SessionId, usize, u32)>,
    pub(crate) incarnations: u64,
    pub(crate) loss_in_a_thousand: u32,
    /// Whether jobs are claimed first and marked as sent later.
    pub(crate) has_two_phases: bool,
    /// How long an answer is kept.
    pub(crate) retention: Duration,
    /// And how long at most where each replay keeps it longer.
    pub(crate) sliding_max: Option<Duration>,
    /// So often the spool is slow: one append in so many.
    pub(crate) spool_is_slow_in: u32,
    pub(crate) history: History,
}

impl Inner {
    /// Copies what the standby has not got.
    pub(crate) fn replicate_database(&mut self, now: Duration) {
        if !self.standby.is_of_same_members(&self.database) {
            self.members_kept_at = now;
        }
        self.standby = self.database.clone();
    }

    /// Since when all who are members are so past losing; `None` while one is not: it may claim nothing.
    pub(crate) fn members_kept_since(&self) -> Option<Duration> {
        self.standby.is_of_same_members(&self.database).then_some(self.members_kept_at)
    }

    /// What is on the standby too.
    pub(crate) fn kept(&self) -> u64 {
        if self.standby.timeline == self.database.timeline { self.standby.mark } else { 0 }
    }
}

/// Shared by all that runs.
#[derive(Debug)]
pub(crate) struct World {
    inner: Mutex<Inner>,
    started: Instant,
    woken: Notify,
}

impl World {
    pub(crate) fn new(seed: u64, gateways: usize) -> Arc<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let loss_in_a_thousand = [0, 5, 20][rng.usize(..3)];
        let has_two_phases = rng.bool();
        let spool_is_slow_in = [25, 25, 3][rng.usize(..3)];
        let retention = if rng.bool() { DAY } else { SHORT };
        let sliding_max = (retention == SHORT && rng.u32(..3) == 0).then_some(2 * SHORT);
        let inner = Inner {
            rng,
            servers: [true, false].map(|is_primary| Server::new(incarnation(1), is_primary, PARTITIONS)),
            database: Database::new(PARTITIONS, FIRST),
            standby: Database::new(PARTITIONS, FIRST),
            members_kept_at: Duration::ZERO,
            database_is_down: false,
            redis_is_down: false,
            gateways: vec![Gateway::default(); gateways],
            sessions: 0,
            lives: Vec::new(),
            incarnations: 1,
            loss_in_a_thousand,
            has_two_phases,
            retention,
            sliding_max,
            spool_is_slow_in,
            history: History { retention, has_ends: retention == SHORT, ..History::default() },
        };
        Arc::new(Self { inner: Mutex::new(inner), started: Instant::now(), woken: Notify::new() })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the run began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A server's clock, which is `off` by so much.
    pub(crate) fn clock(&self, off: Duration) -> Micros {
        Micros(START_US).plus(self.elapsed()).plus(off)
    }

    pub(crate) fn new_session(&self, who: usize) -> SessionId {
        let mut inner = self.lock();
        inner.sessions += 1;
        tracing::debug!(at = ?self.elapsed(), "session {} begins", inner.sessions);
        let mut id = [0; 16];
        id[8..].copy_from_slice(&inner.sessions.to_be_bytes());
        let life = inner.gateways[who].life;
        inner.lives.push((SessionId(id), who, life));
        SessionId(id)
    }

    /// Somebody was paused and is not any more, or a life has ended.
    pub(crate) fn wake(&self) {
        self.woken.notify_waiters();
    }

    /// Waits while the gateway is paused; for ever in a life that has ended.
    pub(crate) async fn awake(&self, who: usize, life: u32) {
        loop {
            let woken = self.woken.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            {
                let inner = self.lock();
                let gateway = &inner.gateways[who];
                if gateway.life == life && !gateway.is_paused {
                    return;
                }
            }
            woken.await;
        }
    }

    /// A call of a gateway: what `at_the_server` does happens at one moment, or never, and its answer may be lost.
    pub(crate) async fn call<T>(
        &self,
        who: usize,
        life: u32,
        peer: Peer,
        at_the_server: impl FnOnce(&mut Inner, &Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.awake(who, life).await;
        let (there, back, is_lost, is_answer_lost) = {
            let inner = &mut *self.lock();
            let base = if peer == Peer::Redis { 200 } else { 800 };
            let mut latency = || {
                let slow = if inner.rng.u32(..100) == 0 { 100 } else { 1 };
                Duration::from_micros(inner.rng.u64(base..4 * base) * slow)
            };
            let (there, back) = (latency(), latency());
            let lost = inner.loss_in_a_thousand;
            (there, back, inner.rng.u32(..1000) < lost, inner.rng.u32(..1000) < lost)
        };
        sleep(there).await;
        let unavailable = || StoreError::unknown(Kind::Unavailable);
        let is_unreachable = {
            let inner = self.lock();
            let gateway = &inner.gateways[who];
            match peer {
                Peer::Redis => inner.redis_is_down || gateway.is_cut_from_redis,
                Peer::Database => inner.database_is_down || gateway.is_cut_from_database,
            }
        };
        if is_lost || is_unreachable {
            sleep(DEADLINE).await;
            self.awake(who, life).await;
            return Err(unavailable());
        }
        let answer = at_the_server(&mut self.lock(), self);
        if is_answer_lost {
            sleep(DEADLINE).await;
            self.awake(who, life).await;
            return Err(unavailable());
        }
        sleep(back).await;
        self.awake(who, life).await;
        answer
    }
}
