//! What is done with the store each second: ended records are removed, unless that waits, and its figures shown.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use metrics_exporter_prometheus::PrometheusHandle;
use onceward::{
    Engine,
    store::{
        Cache, Stats, Store, Swept,
        fallback::Fallback,
        journaled::{JournaledStore, Serves},
        tiered::Tiered,
    },
};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    maintenance::{Turns, Window},
    opened::{Opened, Stack},
};

/// How often ended records are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How ended records are removed.
pub(crate) struct Sweeping {
    /// So many at a time.
    pub(crate) records_max: usize,
    /// For so long of each second, where there are more.
    pub(crate) goes_on: Duration,
    /// When that can wait, it waits for this.
    pub(crate) window: Option<Window>,
}

/// Sweeps what is `opened` for as long as the process runs, and shows what `stack` is like.
pub(crate) async fn keep(opened: Opened, stack: Stack, sweeping: Sweeping, engine: Engine, metrics: PrometheusHandle) {
    metrics::describe_counter!("onceward_hints_total", "Hints that were looked for in Redis, by what came of it");
    metrics::describe_counter!(
        "onceward_accepted_duplicates_total",
        "Keys that the fallback granted although the store had them"
    );
    metrics::describe_gauge!("onceward_fallback_used", "1 while the fallback may hold records");
    let mut turns = Turns::new(sweeping.window);
    metrics::describe_gauge!("onceward_circuit_state", "0 closed, 1 half-open, 2 open");
    metrics::describe_gauge!(
        "onceward_journal_partitions",
        "Partitions of journaled keys, by where they are claimed: redis, cold (there, and each new key asks the database), \
         database (nobody reaches Redis), none (refused)"
    );
    metrics::describe_gauge!("onceward_journal_backlog_records", "Records that the journal does not have yet");
    metrics::describe_gauge!("onceward_journal_lag_seconds", "Since when the first of them waits");
    metrics::describe_gauge!("onceward_store_accepts_claims", "1 where the store takes new claims, else 0");
    // Beside the guards: that a sweep is slow says nothing of how claims fare.
    let stores: Vec<Arc<dyn Store>> =
        std::iter::once(opened.store()).chain(opened.journaled().map(|store| Arc::clone(store) as _)).collect();
    let collected = metrics::counter!("onceward_collected_records_total", "reason" => "retention");
    let mut shown = Cache::default();
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
        let began = Instant::now();
        while let Some(waits) = turns.waits(now_s(), &stack.store.stats(), engine.tenant_was_short()) {
            let Some(swept) = sweep(&stores, sweeping.records_max, waits).await else { break };
            collected.increment(swept.removed);
            turns.swept(&swept);
            if !swept.more || began.elapsed() >= sweeping.goes_on {
                break;
            }
        }
        for guard in &stack.guards {
            metrics::gauge!("onceward_circuit_state", "store" => guard.kind()).set(f64::from(guard.circuit() as u8));
        }
        if let Some(fallback) = &stack.fallback {
            show_fallback(fallback);
        }
        if let Some(tiered) = &stack.tiered {
            show_hints(tiered);
        }
        if let Some(journaled) = opened.journaled() {
            show_journaled(journaled);
        }
        let stats = stack.store.stats();
        show(&stats);
        if let Some(cache) = stats.cache {
            show_cache(&cache, &shown);
            shown = cache;
        }
    }
}

/// Removes so many ended records of each, and `None` where none of them could: one that fails keeps the others from nothing.
async fn sweep(stores: &[Arc<dyn Store>], records_max: usize, waits: Duration) -> Option<Swept> {
    let mut all = None;
    for store in stores {
        match store.sweep(records_max, waits).await {
            Ok(swept) => all = Some(all.unwrap_or_default() + swept),
            Err(error) => tracing::warn!(store = store.kind(), %error, "ended records could not be swept"),
        }
    }
    all
}

/// Seconds since the epoch.
fn now_s() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "an operator's time of the day")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn show_fallback(fallback: &Fallback) {
    metrics::counter!("onceward_accepted_duplicates_total").absolute(fallback.duplicates());
    metrics::gauge!("onceward_fallback_used").set(if fallback.is_used() { 1.0 } else { 0.0 });
}

fn show_hints(tiered: &Tiered) {
    let hints = tiered.hints();
    for (result, count) in [("shown", hints.shown), ("missed", hints.missed), ("failed", hints.failed)] {
        metrics::counter!("onceward_hints_total", "result" => result).absolute(count);
    }
}

/// Where journaled keys are claimed, and what of this process the journal does not have yet.
#[expect(clippy::cast_precision_loss, reason = "figures for people, and below 2^52")]
fn show_journaled(journaled: &JournaledStore) {
    let Serves { in_force, warm, on_database, of } = journaled.serves();
    let on_redis = warm.saturating_sub(on_database);
    let all = [
        ("redis", on_redis),
        ("cold", in_force.saturating_sub(on_redis + on_database)),
        ("database", on_database),
        ("none", of.saturating_sub(in_force)),
    ];
    for (view, count) in all {
        metrics::gauge!("onceward_journal_partitions", "view" => view).set(count as f64);
    }
    let (records, lag) = journaled.backlog();
    metrics::gauge!("onceward_journal_backlog_records").set(records as f64);
    metrics::gauge!("onceward_journal_lag_seconds").set(lag.as_secs_f64());
}

#[expect(clippy::cast_precision_loss, reason = "figures for people, and below 2^52")]
fn show(stats: &Stats) {
    metrics::gauge!("onceward_records", "state" => "open").set(stats.open as f64);
    metrics::gauge!("onceward_records", "state" => "settled").set(stats.records.saturating_sub(stats.open) as f64);
    metrics::gauge!("onceward_store_accepts_claims").set(f64::from(u8::from(stats.accepts_claims)));
    // Of a store in memory there is another figure.
    if stats.cache.is_none() {
        metrics::gauge!("onceward_store_disk_bytes").set(stats.bytes as f64);
    }
}

/// What a store in a cache says more; `shown` is what it said before.
#[expect(clippy::cast_precision_loss, reason = "figures for people, and below 2^52")]
fn show_cache(cache: &Cache, shown: &Cache) {
    let changes = cache.losses.saturating_sub(shown.losses);
    metrics::counter!("onceward_store_incarnation_changes_total").increment(changes);
    // By the store's clock: a counter does not show what was noticed before it was read first.
    let last = cache.last.last().map_or(0.0, |loss| loss.to.0 as f64 / 1e6);
    metrics::gauge!("onceward_store_last_loss_timestamp_seconds").set(last);
    // Servers count from their start.
    let evicted = cache.evicted.checked_sub(shown.evicted).unwrap_or(cache.evicted);
    metrics::counter!("onceward_store_evicted_keys_total").increment(evicted);
    metrics::gauge!("onceward_store_memory_bytes").set(cache.memory as f64);
    metrics::gauge!("onceward_store_memory_limit_bytes").set(cache.memory_max as f64);
}
