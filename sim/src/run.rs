//! One run: a world, gateways, clients and faults, all drawn from a seed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onceward_core::record::Fence;
use onceward_store::journaled::Owed;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    faults::{Fault, replicate},
    gateway::{Disk, Gateway},
    history::{Forced, History, Told},
    journal::SILENT,
    world::World,
};

/// For so long clients ask and things happen.
const BUSY: Duration = Duration::from_secs(12);
/// For so long everything is well, before it is looked at who serves.
const CALM: Duration = Duration::from_secs(20);
/// No clock of a server is further off than that.
const CLOCKS_DIFFER: Duration = Duration::from_secs(10);

/// The gateways that live.
pub(crate) struct Fleet(Mutex<Vec<Option<Gateway>>>);

impl Fleet {
    fn gateways(&self) -> std::sync::MutexGuard<'_, Vec<Option<Gateway>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process begins.
    pub(crate) fn start(&self, world: &Arc<World>, who: usize) {
        self.go_on(world, who, Gateway::owed(world, who));
    }

    /// A process goes on with another session.
    fn go_on(&self, world: &Arc<World>, who: usize, owed: Arc<Owed>) {
        let gateway = Gateway::start(world, who, owed);
        self.gateways()[who] = Some(gateway);
    }

    /// It is gone, one time in two its disk too; what it sent may still arrive. `false` where it was gone already.
    pub(crate) fn crash(&self, world: &Arc<World>, who: usize) -> bool {
        let Some(gone) = self.gateways()[who].take() else { return false };
        {
            let inner = &mut *world.lock();
            inner.gateways[who].life += 1;
            if inner.rng.bool() {
                inner.gateways[who].disk = Disk::default();
                inner.history.is_disk_lost = true;
            }
        }
        drop(gone);
        true
    }

    fn get(&self, who: usize) -> Option<Gateway> {
        self.gateways()[who].clone()
    }
}

/// Runs one seed.
pub(crate) fn run(seed: u64) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return History::default() };
    runtime.block_on(play(seed))
}

async fn play(seed: u64) -> History {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let gateways = rng.usize(2..4);
    let world = World::new(seed, gateways);
    let fleet = Arc::new(Fleet(Mutex::new(vec![None; gateways])));
    (0..gateways).for_each(|who| fleet.start(&world, who));
    let mut tasks = JoinSet::new();
    tasks.spawn(replicate(Arc::clone(&world)));
    tasks.spawn(start_again(Arc::clone(&world), Arc::clone(&fleet), gateways));
    (0..gateways).for_each(|who| drop(tasks.spawn(sweep(Arc::clone(&world), Arc::clone(&fleet), who))));
    let keys = rng.u32(2..12);
    for _ in 0..rng.usize(2..5) {
        tasks.spawn(client(Arc::clone(&world), Arc::clone(&fleet), gateways, keys));
    }
    let mut faults = JoinSet::new();
    let mut last = 300;
    for _ in 0..rng.usize(..6) {
        let fault = Fault::ALL[rng.usize(..Fault::ALL.len())];
        // Often soon after the one before, while that is being mended.
        let soon = 1 << rng.u32(1..13);
        let at = if rng.bool() { rng.u64(300..9_000) } else { (last + rng.u64(1..=soon)).min(9_500) };
        last = at;
        let at = Duration::from_millis(at);
        let (world, fleet) = (Arc::clone(&world), Arc::clone(&fleet));
        faults.spawn(async move {
            sleep(at).await;
            fault.happen(&world, &fleet).await;
        });
    }
    if rng.bool() {
        world.lock().history.has_operator = true;
        tasks.spawn(operate(Arc::clone(&world)));
    }
    sleep(BUSY).await;
    while faults.join_next().await.is_some() {}
    world.lock().loss_in_a_thousand = 0;
    sleep(CALM).await;
    let mut serves = Vec::new();
    for who in 0..gateways {
        serves.push(is_serving(&fleet, who).await);
    }
    let again = world.lock().history.answered_by_others();
    let mut asked_again = BTreeMap::new();
    if let Some(gateway) = fleet.get(0).filter(|_| serves.iter().all(|serves| *serves)) {
        for key in again {
            asked_again.insert(key, gateway.ask(key, true).await);
        }
    }
    let inner = &mut *world.lock();
    for Forced { partitions, mark, .. } in &inner.history.forced {
        let of = partitions.iter().flat_map(|partition| inner.database.granted_above(*partition, *mark));
        inner.history.at_risk.extend(of);
    }
    inner.history.asked_again = asked_again;
    inner.history.serves = serves;
    inner.history.is_blocked = inner.database.is_waiting_for_somebody(world.elapsed(), SILENT);
    inner.history.clone()
}

/// Whether a fresh key is run within a few tries: the dice of a job may fall against it.
async fn is_serving(fleet: &Fleet, who: usize) -> bool {
    for again in 0..5 {
        let Some(gateway) = fleet.get(who) else { return false };
        let key = 1_000_000 + u32::try_from(who).unwrap_or_default() * 1_000 + again;
        let told = timeout(Duration::from_secs(10), gateway.request(key)).await;
        if matches!(told, Ok(Told::Done(_) | Told::NotDone | Told::Unknown)) {
            return true;
        }
        sleep(Duration::from_secs(1)).await;
    }
    false
}

/// A client asks for one key after the other, at any gateway, and again where it was told nothing of use.
async fn client(world: Arc<World>, fleet: Arc<Fleet>, gateways: usize, keys: u32) {
    while world.elapsed() < BUSY {
        let (key, who, waits, what) = {
            let rng = &mut world.lock().rng;
            // Later on later keys, so that some are fresh at any time.
            let newest = u32::try_from(world.elapsed().as_millis() / 400).unwrap_or_default();
            (newest + rng.u32(..keys), rng.usize(..gateways), rng.u64(1..300), rng.u32(..16))
        };
        sleep(Duration::from_millis(waits)).await;
        let Some(gateway) = fleet.get(who) else { continue };
        let asked = async {
            match what {
                0 => gateway.erase(key).await,
                1 => gateway.settle(key).await,
                _ => drop(gateway.request(key).await),
            }
        };
        // It hangs up; the gateway goes on.
        let _told = timeout(Duration::from_secs(2), asked).await;
    }
}

/// A gateway whose session is over begins another.
async fn start_again(world: Arc<World>, fleet: Arc<Fleet>, gateways: usize) {
    loop {
        sleep(Duration::from_millis(250)).await;
        for who in 0..gateways {
            let is_paused = world.lock().gateways[who].is_paused;
            if let Some(gateway) = fleet.get(who).filter(|gateway| !is_paused && gateway.journaled.is_over()) {
                // It leaves in order beside the new one, as far as it can.
                fleet.go_on(&world, who, Arc::clone(&gateway.owed));
                tokio::spawn(async move { gateway.journaled.leave(Duration::from_secs(30)).await });
            }
        }
    }
}

/// An operator has views go on without gateways that are gone: he knows which are.
async fn operate(world: Arc<World>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        let inner = &mut *world.lock();
        if inner.database_is_down {
            continue;
        }
        let (now, above) = (world.elapsed(), Fence(world.clock(CLOCKS_DIFFER).0));
        let gone = inner.lives.iter().filter(|(_, who, life)| inner.gateways[*who].life != *life);
        for (session, ..) in gone {
            if let Some((partitions, mark)) = inner.database.force(*session, now, SILENT, above, |_| inner.rng.u64(..))
            {
                tracing::debug!(at = ?now, ?session, ?partitions, ?mark, "views go on without it");
                inner.history.forced.push(Forced { partitions, mark });
            }
        }
    }
}

/// Rids the journal of what has ended.
async fn sweep(world: Arc<World>, fleet: Arc<Fleet>, who: usize) {
    loop {
        let waits = world.lock().rng.u64(100..1_500);
        sleep(Duration::from_millis(waits)).await;
        if let Some(gateway) = fleet.get(who) {
            let _swept = gateway.journaled.sweep(100, Duration::ZERO).await;
        }
    }
}
