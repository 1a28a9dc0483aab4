//! What is done to the world.

use std::{sync::Arc, time::Duration};

use onceward_sim::server::Server;
use tokio::time::sleep;

use crate::{redis::incarnation, run::Fleet, world::World};

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Flush,
    /// Redis loses who may claim, and nothing else.
    ForgetSessions,
    RestartEmpty,
    /// The replica takes over as far as it has got; the old primary goes on for those who still follow it.
    Promote,
    RedisDown,
    Crash,
    Pause,
    DatabaseFailsOver,
    DatabaseDown,
    CutFromRedis,
    CutFromDatabase,
}

impl Fault {
    pub(crate) const ALL: [Self; 11] = [
        Self::Flush,
        Self::ForgetSessions,
        Self::RestartEmpty,
        Self::Promote,
        Self::RedisDown,
        Self::Crash,
        Self::Pause,
        Self::DatabaseFailsOver,
        Self::DatabaseDown,
        Self::CutFromRedis,
        Self::CutFromDatabase,
    ];

    /// Does it, and what belongs to it later.
    pub(crate) async fn happen(self, world: &Arc<World>, fleet: &Fleet) {
        let (who, lasts) = {
            let inner = &mut *world.lock();
            let who = inner.rng.usize(..inner.gateways.len());
            inner.history.faults.push((world.elapsed(), format!("{self:?} {who}")));
            tracing::debug!(at = ?world.elapsed(), "{self:?} {who}");
            (who, Duration::from_millis(inner.rng.u64(300..6_000)))
        };
        match self {
            Self::Flush => {
                let inner = &mut *world.lock();
                let at = primary(&inner.servers);
                inner.servers[at].empty();
            }
            Self::ForgetSessions => {
                let inner = &mut *world.lock();
                let at = primary(&inner.servers);
                inner.servers[at].forget_sessions();
            }
            Self::RestartEmpty => {
                let inner = &mut *world.lock();
                inner.incarnations += 1;
                let (at, number) = (primary(&inner.servers), inner.incarnations);
                inner.servers[at].empty();
                inner.servers[at].incarnation = incarnation(number);
            }
            Self::Promote => promote(world).await,
            Self::RedisDown => {
                let from = world.elapsed();
                world.lock().redis_is_down = true;
                sleep(lasts).await;
                let inner = &mut *world.lock();
                inner.redis_is_down = false;
                if let Some(since) = inner.members_kept_since() {
                    inner.history.redis_was_gone.push((from.max(since), world.elapsed()));
                }
            }
            // One that is gone already comes back only once: two processes never have one disk.
            Self::Crash if fleet.crash(world, who) => {
                sleep(lasts / 2).await;
                fleet.start(world, who);
            }
            Self::Crash => {}
            Self::Pause => {
                world.lock().gateways[who].is_paused = true;
                sleep(lasts).await;
                world.lock().gateways[who].is_paused = false;
                world.wake();
            }
            Self::DatabaseFailsOver => {
                let inner = &mut *world.lock();
                let timeline = inner.database.timeline + 1;
                inner.database = inner.standby.clone();
                inner.database.timeline = timeline;
            }
            Self::DatabaseDown => {
                world.lock().database_is_down = true;
                sleep(lasts).await;
                world.lock().database_is_down = false;
            }
            Self::CutFromRedis => {
                world.lock().gateways[who].is_cut_from_redis = true;
                sleep(lasts).await;
                world.lock().gateways[who].is_cut_from_redis = false;
            }
            Self::CutFromDatabase => {
                world.lock().gateways[who].is_cut_from_database = true;
                sleep(lasts).await;
                world.lock().gateways[who].is_cut_from_database = false;
            }
        }
    }
}

/// Which server is followed by whoever asks now.
fn primary(servers: &[Server; 2]) -> usize {
    usize::from(servers[1].is_primary)
}

async fn promote(world: &Arc<World>) {
    let gateways = {
        let inner = &mut *world.lock();
        if inner.servers[1].is_primary {
            return;
        }
        inner.incarnations += 1;
        inner.servers[1].is_primary = true;
        inner.servers[1].incarnation = incarnation(inner.incarnations);
        inner.gateways.len()
    };
    let mut order: Vec<usize> = (0..gateways).collect();
    world.lock().rng.shuffle(&mut order);
    for who in order {
        let later = Duration::from_millis(world.lock().rng.u64(..800));
        sleep(later).await;
        world.lock().gateways[who].follows = 1;
    }
    world.lock().servers[0].is_primary = false;
}

/// The replica gets what the primary has, now and then; so does the database's standby.
pub(crate) async fn replicate(world: Arc<World>) {
    loop {
        let waits = {
            let inner = &mut *world.lock();
            let slow = [1, 1, 1, 1, 1, 1, 40, 150][inner.rng.usize(..8)];
            Duration::from_millis(inner.rng.u64(1..20) * slow)
        };
        sleep(waits).await;
        let inner = &mut *world.lock();
        if inner.rng.bool() {
            if inner.servers[0].is_primary && !inner.servers[1].is_primary {
                inner.servers[1] = inner.servers[0].replica();
            }
        } else if inner.database.timeline == inner.standby.timeline || inner.rng.u32(..4) == 0 {
            let now = world.elapsed();
            inner.replicate_database(now);
        }
    }
}
