//! What goes on beside the calls: the store's clock written down, tenants counted, and what is not well.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::types::Type;

use super::{
    Shared,
    lane::{Identity, Lane},
    step,
};
use crate::{Kind, StoreError, Usage};

/// How long a sweep or another step of upkeep may take on the server.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// How often the server's clock and state are looked at.
const TICK: Duration = Duration::from_secs(1);
/// What may have been answered after the time that was written down last: a tick, and half a second that a crash of
/// the server undoes.
const UNWRITTEN: Duration = Duration::from_millis(1_500);
/// How far the server's clock may be behind what it said before: beyond it, nothing is written.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2);
/// How long a count may take.
const COUNT_DEADLINE: Duration = Duration::from_secs(600);

/// How the database is, as far as is known.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) listening: Arc<AtomicBool>,
    identity: Arc<Identity>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why nothing may be asked of it.
    clock: Option<String>,
    concerns: Vec<String>,
    figures: Figures,
}

/// What the server says of its tables.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// In flight or unknown; of very many, ten thousand.
    pub(super) open: u64,
    /// Records, and bytes, as the server's own statistics estimate them.
    pub(super) estimate: Usage,
}

impl Health {
    pub(super) fn new(identity: Arc<Identity>) -> Self {
        Self { listening: Arc::default(), identity, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which server it is, for further connections to it.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// An error where the server's clock is not to be trusted.
    pub(super) fn may_ask(&self) -> Result<(), StoreError> {
        match &self.lock().clock {
            None => Ok(()),
            Some(said) => Err(StoreError::not_applied(Kind::ClockSuspect(said.clone()))),
        }
    }

    /// Figures, and what is not well.
    pub(super) fn shown(&self) -> (Figures, Vec<String>) {
        let state = self.lock();
        let mut concerns = state.concerns.clone();
        concerns.extend(state.clock.iter().map(|said| format!("the server's clock is not to be trusted: {said}")));
        if !self.listening.load(Ordering::Relaxed) {
            let said = "notifications do not come: waiters look again each second; see `listen_url`";
            concerns.push(said.to_owned());
        }
        if let Some(before) = self.identity.changed() {
            concerns.push(format!(
                "the database was failed over or restored since the start (its timeline was {before}): what had not \
                 reached the new primary is lost, and such keys may run again"
            ));
        }
        (state.figures, concerns)
    }
}

/// The first look: where time goes on from, and what there is.
pub(super) async fn start(shared: &Shared) -> Result<(), StoreError> {
    look(shared, UNWRITTEN).await?;
    if shared.options.usage {
        count_once(shared, &counter(shared)).await?;
    }
    Ok(())
}

/// Looks at the server each second.
pub(super) async fn tick(shared: Arc<Shared>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once, and was at the start.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = look(&shared, Duration::ZERO).await {
            let source = error.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
            shared.health.lock().concerns = vec![format!("the database does not answer: {error}{source}")];
        }
    }
}

async fn look(shared: &Shared, unwritten: Duration) -> Result<(), StoreError> {
    let sql = "SELECT wall, latest, standby, durable, synced, open_count, record_estimate, bytes_estimate FROM onceward.store_tick($1)";
    let rows = shared.upkeep.write(sql, &[(&shared.floor(), Type::INT8)]).await.map_err(|failed| failed.error)?;
    let Some(row) = rows.first() else { return Err(StoreError::unknown(Kind::Unavailable)) };
    let unsigned = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or_default();
    let (wall, latest) = (unsigned(0), unsigned(1));
    // A clock that is not behind goes on; one that is may have been set back from what was not written down yet.
    let unwritten = if wall < latest { u64::try_from(unwritten.as_micros()).unwrap_or_default() } else { 0 };
    shared.time(latest.saturating_add(unwritten));
    let behind = Duration::from_micros(latest.saturating_sub(wall));
    let mut concerns = Vec::new();
    if row.get(2) {
        concerns.push("it is a standby, and decides nothing: point the store at the primary".to_owned());
    }
    if row.get::<_, &str>(3) == "off" {
        concerns.push("synchronous_commit is off for this user: set it to on".to_owned());
    }
    if row.get::<_, &str>(4) == "off" {
        concerns.push("fsync is off: what was answered does not outlive a crash of the server's machine".to_owned());
    }
    let mut state = shared.health.lock();
    state.concerns = concerns;
    state.figures = Figures { open: unsigned(5), estimate: Usage { records: unsigned(6), bytes: unsigned(7) } };
    state.clock = (behind > CLOCK_SKEW_MAX)
        .then(|| format!("it is {behind:?} behind what it said before; nothing is written until it has caught up"));
    Ok(())
}

/// Counts what tenants take up, where that is asked for. Its connection is for this alone, and goes with it.
pub(super) async fn count(shared: Arc<Shared>) {
    // From the start on means that the start has counted.
    let took = shared.options.usage.then_some(Duration::ZERO);
    let once = || async { step::usage(&counter(&shared)).await };
    shared.figures.keep_counted(shared.options.usage, took, once).await;
}

fn counter(shared: &Shared) -> Lane {
    Lane::new(&shared.options.address, &shared.health.identity, COUNT_DEADLINE)
}

async fn count_once(shared: &Shared, lane: &Lane) -> Result<(), StoreError> {
    shared.figures.begin();
    let counted = step::usage(lane).await?;
    shared.figures.counted(counted);
    Ok(())
}
