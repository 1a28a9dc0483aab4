//! What is done with the store each second: ended records are removed, unless that waits, and its figures shown.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use metrics_exporter_prometheus::PrometheusHandle;
use onceward::{
    Engine,
    store::{Cache, Stats, Store, fallback::Fallback, tiered::Tiered},
};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    maintenance::{Turns, Window},
    opened::Stack,
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

/// Sweeps `swept` for as long as the process runs, and shows what `stack` is like.
pub(crate) async fn keep(
    swept: Arc<dyn Store>,
    stack: Stack,
    sweeping: Sweeping,
    engine: Engine,
    metrics: PrometheusHandle,
) {
    metrics::describe_counter!("onceward_hints_total", "Hints that were looked for in Redis, by what came of it");
    metrics::describe_counter!(
        "onceward_accepted_duplicates_total",
        "Keys that the fallback granted although the store had them"
    );
    metrics::describe_gauge!("onceward_fallback_used", "1 while the fallback may hold records");
    let mut turns = Turns::new(sweeping.window);
    metrics::describe_gauge!("onceward_circuit_state", "0 closed, 1 half-open, 2 open");
    metrics::describe_gauge!("onceward_store_accepts_claims", "1 where the store takes new claims, else 0");
    let collected = metrics::counter!("onceward_collected_records_total", "reason" => "retention");
    let mut shown = Cache::default();
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
        let began = Instant::now();
        while let Some(waits) = turns.waits(now_s(), &stack.store.stats(), engine.tenant_was_short()) {
            match swept.sweep(sweeping.records_max, waits).await {
                Ok(swept) => {
                    collected.increment(swept.removed);
                    turns.swept(&swept);
                    if swept.more && began.elapsed() < sweeping.goes_on {
                        continue;
                    }
                }
                Err(error) => tracing::warn!(%error, "ended records could not be swept"),
            }
            break;
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
        let stats = stack.store.stats();
        show(&stats);
        if let Some(cache) = stats.cache {
            show_cache(&cache, &shown);
            shown = cache;
        }
    }
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
