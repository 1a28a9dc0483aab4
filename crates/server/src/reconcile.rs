//! Records held against effects, and compensations run: on request (`onceward reconcile`), and beside the requests.

use std::{sync::Arc, time::Duration};

use onceward::{
    Engine,
    reconcile::{Compared, Discrepancy, Scope},
    store::{
        StoreError,
        postgres::compensation::{Compensated, Open, Rules},
    },
};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{compensate::Calls, config, opened::Opened};

/// How often compensations that are due are looked for.
const COMPENSATE_EVERY: Duration = Duration::from_secs(5);
/// Examples in the log, of each kind.
const LOGGED_MAX: usize = 3;
/// Rounds of settling, each of which settles some: more are left to the next time.
const ROUNDS_MAX: usize = 1_000;
/// The name of the turn that one gateway of a store takes for all.
const TURN: &str = "reconcile";

/// What compares and compensates in this process.
#[derive(Debug)]
pub struct Reconciler {
    engine: Engine,
    store: Opened,
    rules: Rules,
    calls: Calls,
}

/// What was found, and what was done about it.
#[derive(Debug)]
pub struct Report {
    compared: Compared,
    compensations: Option<Open>,
    repaired: Option<(u64, Compensated)>,
}

impl Reconciler {
    /// Over the store that is open.
    #[must_use]
    pub fn new(engine: Engine, store: &Opened, said: &config::Reconcile, calls: Calls) -> Self {
        let mut rules = Rules::default();
        rules.urls.clone_from(&said.compensation_urls);
        Self { engine, store: store.clone(), rules, calls }
    }

    /// Compares; with `repair`, first settles what the routes' policies allow, and runs the compensations that are due.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn look(&self, scope: &Scope, repair: bool) -> Result<Report, StoreError> {
        let mut repaired = None;
        if repair {
            let mut settled = 0;
            for _ in 0..ROUNDS_MAX {
                match self.engine.settle_unattended_on(scope.route.as_deref()).await? {
                    0 => break,
                    more => settled += more,
                }
            }
            repaired = Some((settled, self.compensate().await?));
        }
        let compared = self.engine.reconcile(scope).await?;
        let examples = u32::try_from(scope.examples_max).unwrap_or(u32::MAX);
        let compensations = match self.store.database() {
            Some(database) => Some(database.compensations(examples).await?),
            None => None,
        };
        Ok(Report { compared, compensations, repaired })
    }

    /// Runs the compensations that are due, where the records are in a database.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn compensate(&self) -> Result<Compensated, StoreError> {
        let Some(database) = self.store.database() else { return Ok(Compensated::default()) };
        let run = database.compensate(&self.rules, Some(&self.calls)).await?;
        for (outcome, count) in [("done", run.done), ("failed", run.failed), ("stuck", run.stuck)] {
            metrics::counter!("onceward_compensations_total", "outcome" => outcome).increment(count);
        }
        if run.stuck > 0 {
            tracing::error!(run.stuck, "compensations failed too often: see `onceward reconcile`, and decide");
        }
        Ok(run)
    }

    /// Compensates, for as long as the process runs.
    pub async fn keep_compensating(self: Arc<Self>) {
        if self.store.database().is_none() {
            return;
        }
        let mut tick = interval(COMPENSATE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.compensate().await {
                tracing::warn!(%error, "compensations could not be run");
            }
        }
    }

    /// Compares what is open every so often, one gateway of a store at a time; never where `every` is zero. What is
    /// completed would have to be read one and all.
    pub async fn keep_looking(self: Arc<Self>, every: Duration) {
        if every.is_zero() {
            return;
        }
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.store.keep_turn(TURN, self.engine.session(), every).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    tracing::warn!(%error, "nobody could be asked whose turn it is to reconcile");
                    continue;
                }
            }
            let scope = Scope { route: None, completed: false, examples_max: LOGGED_MAX };
            // The turn ends with the interval.
            match timeout(every, self.look(&scope, false)).await {
                Ok(Ok(report)) => report.tell(),
                Ok(Err(error)) => tracing::warn!(%error, "records could not be compared with effects"),
                Err(_late) => tracing::warn!("comparing records with effects took longer than reconcile.every"),
            }
        }
    }
}

impl Report {
    /// As JSON: each kind with its count and examples.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut found = serde_json::Map::new();
        for kind in Discrepancy::ALL {
            let of = self.compared.found.get(&kind).cloned().unwrap_or_default();
            let examples: Vec<Value> = of
                .examples
                .iter()
                .map(|example| {
                    json!({
                        "record_id": example.id.to_string(), "route": example.route, "state": example.state.as_str(),
                        "fence": example.fence.0.to_string(),
                    })
                })
                .collect();
            found.insert(kind.as_str().to_owned(), json!({ "count": of.count, "examples": examples }));
        }
        let untold: Vec<Value> =
            self.compared.untold.iter().map(|(route, why)| json!({ "route": route, "why": why })).collect();
        let compensations = self.compensations.as_ref().map(|open| {
            let examples: Vec<Value> = open
                .examples
                .iter()
                .map(|example| {
                    json!({
                        "record_id": example.record, "name": example.name, "state": example.state,
                        "target": example.target, "attempts": example.attempts, "last_error": example.last_error,
                    })
                })
                .collect();
            json!({ "due": open.due, "stuck": open.stuck, "held": open.held, "examples": examples })
        });
        let repaired = self.repaired.map(|(settled, run)| {
            json!({ "settled": settled, "compensated": run.done, "compensations_failed": run.failed + run.stuck })
        });
        json!({
            "routes": self.compared.routes, "records": self.compared.records, "found": found, "untold": untold,
            "compensations": compensations, "repaired": repaired,
        })
    }

    /// Into metrics and log.
    fn tell(&self) {
        #[expect(clippy::cast_precision_loss, reason = "figures for people, and below 2^52")]
        let gauge = |name: &'static str, label: &'static str, of: &'static str, count: u64| {
            metrics::gauge!(name, label => of).set(count as f64);
        };
        for kind in Discrepancy::ALL.into_iter().filter(|kind| *kind != Discrepancy::OutcomeWithoutEffect) {
            let count = self.compared.found.get(&kind).map_or(0, |found| found.count);
            gauge("onceward_discrepancies", "kind", kind.as_str(), count);
        }
        if let Some(open) = &self.compensations {
            for (state, count) in [("due", open.due), ("stuck", open.stuck), ("held", open.held)] {
                gauge("onceward_compensations", "state", state, count);
            }
        }
        for (kind, found) in &self.compared.found {
            let examples: Vec<String> = found.examples.iter().map(|example| example.id.short().to_string()).collect();
            let (kind, count, examples) = (kind.as_str(), found.count, examples.join(" "));
            tracing::warn!(kind, count, examples, "records and effects do not fit together: see `onceward reconcile`");
        }
        for (route, why) in &self.compared.untold {
            tracing::warn!(route, why, "the effects of a route could not be looked at");
        }
    }
}
