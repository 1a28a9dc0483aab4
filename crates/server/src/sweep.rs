//! What is done with the store each second: ended records are removed, and its figures shown.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use onceward::store::{Cache, Stats, Store, guarded::Guarded};
use tokio::time::{MissedTickBehavior, interval};

/// How often ended records are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Sweeps at most `records_max` records at a time, for as long as the process runs.
pub(crate) async fn keep(store: Arc<dyn Store>, records_max: usize, guarded: Arc<Guarded>, metrics: PrometheusHandle) {
    metrics::describe_gauge!("onceward_circuit_state", "0 closed, 1 half-open, 2 open");
    metrics::describe_gauge!("onceward_store_accepts_claims", "1 where the store takes new claims, else 0");
    let circuit = metrics::gauge!("onceward_circuit_state", "store" => store.kind());
    let collected = metrics::counter!("onceward_collected_records_total", "reason" => "retention");
    let mut shown = Cache::default();
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
        match store.sweep(records_max).await {
            Ok(swept) => collected.increment(swept.removed),
            Err(error) => tracing::warn!(%error, "ended records could not be swept"),
        }
        circuit.set(f64::from(guarded.circuit() as u8));
        let stats = store.stats();
        show(&stats);
        if let Some(cache) = stats.cache {
            show_cache(&cache, &shown);
            shown = cache;
        }
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
