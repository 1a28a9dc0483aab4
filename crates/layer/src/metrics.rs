//! The figures of PROTOCOL section 7, as handles that are looked up once.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::{Counter, Histogram, counter, gauge, histogram};
use onceward_core::claim::SettledBy;

use crate::{
    quota::QuotaLimit,
    route::{Mode, Route, Routes},
};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Executed,
    Replayed,
    Waited,
    InFlight,
    Mismatch,
    Unknown,
    Rejected,
    Unprotected,
    Bypassed,
    Degraded,
}

impl Outcome {
    const ALL: [Self; 10] = [
        Self::Executed,
        Self::Replayed,
        Self::Waited,
        Self::InFlight,
        Self::Mismatch,
        Self::Unknown,
        Self::Rejected,
        Self::Unprotected,
        Self::Bypassed,
        Self::Degraded,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Replayed => "replayed",
            Self::Waited => "waited",
            Self::InFlight => "in_flight",
            Self::Mismatch => "mismatch",
            Self::Unknown => "unknown",
            Self::Rejected => "rejected",
            Self::Unprotected => "unprotected",
            Self::Bypassed => "bypassed",
            Self::Degraded => "degraded",
        }
    }
}

/// What would have become of a request that shadow mode watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Would {
    As(Outcome),
    /// It could not be watched to its end: too much at once, or its client went away.
    Unobserved,
}

impl Would {
    fn all() -> [Self; Outcome::ALL.len() + 1] {
        std::array::from_fn(|index| Outcome::ALL.get(index).map_or(Self::Unobserved, |outcome| Self::As(*outcome)))
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::As(outcome) => outcome.as_str(),
            Self::Unobserved => "unobserved",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::As(outcome) => outcome as usize,
            Self::Unobserved => Outcome::ALL.len(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Metrics {
    /// Those of routes that are gone go with them; what they counted stays.
    routes: ArcSwap<HashMap<String, Arc<RouteMetrics>>>,
    store: StoreMetrics,
    pub(crate) fenced_completions: Counter,
    pub(crate) fingerprint_unverified: Counter,
    pub(crate) unrecorded: Counter,
    pub(crate) unrecorded_dropped: Counter,
    pub(crate) remembered: Counter,
    pub(crate) remembered_dropped: Counter,
    pub(crate) paced_waited: Counter,
    pub(crate) paced_refused: Counter,
    auth: [Counter; 4],
    over_quota: [Counter; 3],
}

struct RouteMetrics {
    requests: [Counter; Outcome::ALL.len()],
    overhead: Histogram,
    mismatches: Counter,
    /// Of a route that only watches, or once did.
    observed: OnceLock<[Counter; Outcome::ALL.len() + 1]>,
    usual: std::sync::atomic::AtomicU64,
}

impl RouteMetrics {
    fn new(name: &str) -> Self {
        // So that the first is seen as a rise.
        for by in SettledBy::ALL {
            let _shown = settled(name, by.as_str());
        }
        let requests = |outcome: Outcome| counter!("onceward_requests_total", "route" => name.to_owned(), "outcome" => outcome.as_str());
        Self {
            requests: Outcome::ALL.map(requests),
            overhead: histogram!("onceward_request_overhead_seconds", "route" => name.to_owned()),
            mismatches: counter!("onceward_fingerprint_mismatches_total", "route" => name.to_owned()),
            observed: OnceLock::new(),
            usual: std::sync::atomic::AtomicU64::new(0),
        }
    }

    fn observed(&self, name: &str) -> &[Counter; Outcome::ALL.len() + 1] {
        let counter =
            |would: Would| counter!("onceward_observed_total", "route" => name.to_owned(), "would" => would.as_str());
        self.observed.get_or_init(|| Would::all().map(counter))
    }
}

impl std::fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RouteMetrics")
    }
}

/// A store call, as metrics name it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoreVerb {
    Insert,
    Replace,
    Remove,
    Extend,
}

/// How a store call ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoreResult {
    Ok,
    Failed,
    Unknown,
}

/// What became of a check of credentials.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AuthResult {
    Allowed,
    Cached,
    Refused,
    Unavailable,
}

/// A histogram for each verb and result.
struct StoreMetrics([[Histogram; 3]; 4]);

impl std::fmt::Debug for StoreMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreMetrics")
    }
}

impl StoreMetrics {
    fn new(store: &'static str) -> Self {
        Self(["insert", "replace", "remove", "extend"].map(|operation| {
            ["ok", "failed", "unknown"].map(|result| {
                histogram!(
                    "onceward_store_operation_seconds",
                    "store" => store, "operation" => operation, "result" => result
                )
            })
        }))
    }
}

impl Metrics {
    pub(crate) fn new(routes: &Routes, store: &'static str) -> Self {
        describe();
        let this = Self {
            routes: ArcSwap::default(),
            store: StoreMetrics::new(store),
            fenced_completions: counter!("onceward_fenced_completions_total"),
            fingerprint_unverified: counter!("onceward_fingerprint_unverified_total"),
            unrecorded: counter!("onceward_unrecorded_answers_total"),
            unrecorded_dropped: counter!("onceward_unrecorded_dropped_total"),
            remembered: counter!("onceward_remembered_replays_total"),
            remembered_dropped: counter!("onceward_remembered_dropped_total"),
            paced_waited: counter!("onceward_paced_claims_total", "result" => "waited"),
            paced_refused: counter!("onceward_paced_claims_total", "result" => "refused"),
            auth: ["allowed", "cached", "refused", "unavailable"]
                .map(|result| counter!("onceward_auth_checks_total", "result" => result)),
            over_quota: QuotaLimit::ALL.map(|limit| counter!("onceward_over_quota_total", "limit" => limit.as_str())),
        };
        this.know(routes);
        this
    }

    /// From here on counts what happens on these routes.
    pub(crate) fn know(&self, routes: &Routes) {
        let known = self.routes.load();
        let of_route = |route: &Arc<Route>| {
            let name = &route.name;
            let metrics = known.get(name).cloned().unwrap_or_else(|| Arc::new(RouteMetrics::new(name)));
            if route.mode == Mode::Observe {
                // So that they are there before the first request.
                metrics.observed(name);
            }
            (name.clone(), metrics)
        };
        self.routes.store(Arc::new(routes.all().map(of_route).collect()));
    }

    pub(crate) fn request(&self, route: &str, outcome: Outcome) {
        let routes = self.routes.load();
        let Some(metrics) = routes.get(route) else { return };
        if let Some(counter) = metrics.requests.get(outcome as usize) {
            counter.increment(1);
        }
        if outcome == Outcome::Mismatch {
            metrics.mismatches.increment(1);
        }
    }

    /// Shadow mode has seen what would have become of a request.
    pub(crate) fn observed(&self, route: &str, would: Would) {
        let routes = self.routes.load();
        let Some(metrics) = routes.get(route) else { return };
        if let Some(counter) = metrics.observed(route).get(would.index()) {
            counter.increment(1);
        }
    }

    pub(crate) fn overhead(&self, route: &str, took: Duration) {
        if let Some(metrics) = self.routes.load().get(route) {
            metrics.overhead.record(took.as_secs_f64());
        }
    }

    /// An execution of the route took so long: the usual time is a moving average.
    pub(crate) fn executed_in(&self, route: &str, took: Duration) {
        let routes = self.routes.load();
        let Some(metrics) = routes.get(route) else { return };
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let usual = metrics.usual.load(std::sync::atomic::Ordering::Relaxed);
        let next = if usual == 0 { took } else { usual - usual / 8 + took / 8 };
        metrics.usual.store(next, std::sync::atomic::Ordering::Relaxed);
    }

    /// How long an execution of the route usually takes.
    pub(crate) fn usual(&self, route: &str) -> Duration {
        let usual =
            self.routes.load().get(route).map_or(0, |metrics| metrics.usual.load(std::sync::atomic::Ordering::Relaxed));
        Duration::from_micros(usual)
    }

    pub(crate) fn auth(&self, result: AuthResult) {
        if let Some(counter) = self.auth.get(result as usize) {
            counter.increment(1);
        }
    }

    pub(crate) fn over_quota(&self, limit: QuotaLimit) {
        if let Some(counter) = self.over_quota.get(limit as usize) {
            counter.increment(1);
        }
    }

    pub(crate) fn unknown_settled(&self, route: &str, by: &'static str) {
        settled(route, by).increment(1);
    }

    pub(crate) fn store_operation(&self, verb: StoreVerb, result: StoreResult, took: Duration) {
        if let Some(histogram) = self.store.0.get(verb as usize).and_then(|results| results.get(result as usize)) {
            histogram.record(took.as_secs_f64());
        }
    }
}

fn settled(route: &str, by: &'static str) -> Counter {
    counter!("onceward_unknown_outcomes_total", "route" => route.to_owned(), "settled_by" => by)
}

/// The unknown outcomes of a route: how many, and how old the oldest is.
pub(crate) fn unknowns(route: &str, open: u32, oldest: Duration) {
    gauge!("onceward_unknown_open", "route" => route.to_owned()).set(open);
    gauge!("onceward_unknown_oldest_seconds", "route" => route.to_owned()).set(oldest.as_secs_f64());
}

/// Gauges that are read off the engine when metrics are scraped.
pub(crate) fn gauges(in_flight: usize, waiting: usize, remembered: usize) {
    #[expect(clippy::cast_precision_loss, reason = "counts of requests at a time are far below 2^52")]
    {
        gauge!("onceward_in_flight").set(in_flight as f64);
        gauge!("onceward_waiters").set(waiting as f64);
        gauge!("onceward_remembered_answers").set(remembered as f64);
    }
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("onceward_requests_total", "Requests on covered routes, by what became of them");
    describe_histogram!(
        "onceward_request_overhead_seconds",
        Unit::Seconds,
        "Time of Onceward's own, upstream and waiting excluded"
    );
    describe_counter!("onceward_observed_total", "Requests in shadow mode, by what would have become of them");
    describe_histogram!("onceward_store_operation_seconds", Unit::Seconds, "Store calls");
    describe_counter!("onceward_fingerprint_mismatches_total", "Keys that came again with another request");
    describe_counter!(
        "onceward_fingerprint_unverified_total",
        "Requests told by their key alone, their rules being gone"
    );
    describe_counter!(
        "onceward_fingerprint_undecoded_total",
        "Compressed bodies that could not be decoded and were compared as sent"
    );
    describe_counter!("onceward_fenced_completions_total", "Answers that came after the claim was lost");
    describe_counter!("onceward_unrecorded_answers_total", "Answers given before the store confirmed their record");
    describe_counter!("onceward_unrecorded_dropped_total", "Unrecorded answers that newer ones took the room of");
    describe_counter!("onceward_remembered_replays_total", "Replays from memory while the store did not answer");
    describe_counter!("onceward_remembered_dropped_total", "Remembered answers that newer ones took the room of");
    describe_counter!("onceward_paced_claims_total", "Claims that did not go on at once after an outage of the store");
    describe_counter!("onceward_auth_checks_total", "Checks of credentials, by what became of them");
    describe_counter!("onceward_over_quota_total", "Fresh claims refused by a tenant's quota, by its limit");
    describe_counter!("onceward_unknown_outcomes_total", "Unknown outcomes settled");
    describe_gauge!("onceward_unknown_open", "Outcomes that nobody knows, by route");
    describe_gauge!("onceward_unknown_oldest_seconds", Unit::Seconds, "How long the oldest of them has been unknown");
    describe_gauge!("onceward_in_flight", "Executions that run now");
    describe_gauge!("onceward_remembered_answers", "Answers held for the time in which the store does not answer");
    describe_gauge!("onceward_waiters", "Duplicates that wait now");
}
