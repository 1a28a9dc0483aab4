//! Compares records with what upstreams wrote down of their effects, on the routes that say where that is.
//!
//! It reads and changes nothing; what can be settled, [`settle_unattended`](Engine::settle_unattended) settles. A record
//! that looks wrong is read again before it is told: one that has changed meanwhile is left for the next look.

use std::{collections::BTreeMap, sync::Arc};

use onceward_core::{
    key::RecordId,
    record::{Fence, Micros, Record, Seen},
};
use onceward_store::{Filter, StoreError, effects::Noted};

use crate::{engine::Engine, route::Route};

/// Records read, and effects asked for, at a time.
const PAGE_RECORDS: usize = 256;

/// What does not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Discrepancy {
    /// In flight with its lease over, or unknown, and no effect is written down.
    OrphanedClaim,
    /// The same, and the effect is there.
    EffectWithoutOutcome,
    /// Completed with a 2xx, and no effect is there.
    OutcomeWithoutEffect,
    /// In flight, and its fence has been overtaken where the effects are.
    StaleHolder,
}

impl Discrepancy {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::OrphanedClaim, Self::EffectWithoutOutcome, Self::OutcomeWithoutEffect, Self::StaleHolder];

    /// Its name in reports and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrphanedClaim => "orphaned_claim",
            Self::EffectWithoutOutcome => "effect_without_outcome",
            Self::OutcomeWithoutEffect => "outcome_without_effect",
            Self::StaleHolder => "stale_holder",
        }
    }
}

/// What is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only this route.
    pub route: Option<String>,
    /// Completed records too, which are read one and all; otherwise only those in flight and unknown, which are few.
    pub completed: bool,
    /// How many records of each kind are told by name.
    pub examples_max: usize,
}

/// A record that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Which.
    pub id: RecordId,
    /// Its route.
    pub route: String,
    /// How it was seen.
    pub state: Seen,
    /// Its fence.
    pub fence: Fence,
    /// Its last write, in store time.
    pub written_at: Micros,
}

/// How many there are of a kind, and some of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// All.
    pub count: u64,
    /// The first ones.
    pub examples: Vec<Example>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Records that were held against what is written down.
    pub records: u64,
    /// By kind; kinds without any are left out.
    pub found: BTreeMap<Discrepancy, Found>,
    /// Routes of which it cannot be told, and why.
    pub untold: BTreeMap<String, String>,
    /// Routes that say where their effects are.
    pub routes: Vec<String>,
}

impl Compared {
    fn add(&mut self, kind: Discrepancy, example: Example, examples_max: usize) {
        let found = self.found.entry(kind).or_default();
        found.count += 1;
        if found.examples.len() < examples_max {
            found.examples.push(example);
        }
    }
}

impl Engine {
    /// Compares the records of routes that have [`effects`](Route::effects) with these.
    ///
    /// # Errors
    /// Where the store does not answer. A database of effects that does not is told in [`Compared::untold`].
    pub async fn reconcile(&self, scope: &Scope) -> Result<Compared, StoreError> {
        let routes = self.routes();
        let mut all = Compared::default();
        let named = routes.all().filter(|route| route.effects.is_some()).map(|route| route.name.clone());
        all.routes = named.filter(|name| scope.route.as_ref().is_none_or(|wanted| wanted == name)).collect();
        if all.routes.is_empty() {
            return Ok(all);
        }
        let completed = scope.completed.then_some(Seen::Completed);
        // In the order in which a record goes through them, so that one whose lease ends meanwhile is not passed over.
        for state in [Seen::InFlight, Seen::Abandoned, Seen::Unknown].into_iter().chain(completed) {
            let mut after = None;
            loop {
                let filter = Filter { state: Some(state), route: scope.route.clone(), since: None };
                let page = self.store().scan(after, PAGE_RECORDS, filter).await?;
                let mut by_route: BTreeMap<String, Vec<(RecordId, Record)>> = BTreeMap::new();
                for (id, record) in page.records {
                    if concerns(&record, state) {
                        by_route.entry(record.facts.route.clone()).or_default().push((id, record));
                    }
                }
                for (name, records) in by_route {
                    if let Some(route) = routes.named(&name).filter(|route| route.effects.is_some()) {
                        self.compare(&Arc::clone(route), state, &records, scope, &mut all).await?;
                    }
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(all)
    }

    async fn compare(
        &self,
        route: &Arc<Route>,
        state: Seen,
        records: &[(RecordId, Record)],
        scope: &Scope,
        all: &mut Compared,
    ) -> Result<(), StoreError> {
        let Some(effects) = &route.effects else { return Ok(()) };
        // What could not be told once is not asked for again in this look.
        if all.untold.contains_key(&route.name) {
            return Ok(());
        }
        let ids: Vec<RecordId> = records.iter().map(|(id, _)| *id).collect();
        let noted = match effects.noted(&ids).await {
            Ok(noted) => noted,
            Err(why) => {
                all.untold.insert(route.name.clone(), why);
                return Ok(());
            }
        };
        all.records += records.len() as u64;
        for ((id, record), noted) in records.iter().zip(noted) {
            let Some(kind) = kind(state, record, noted) else { continue };
            let read = self.store().get(*id).await?;
            let is_same = read
                .record
                .is_some_and(|now| now.stored.fence == record.stored.fence && now.seen_at(read.now) == state);
            if is_same {
                let example = Example {
                    id: *id,
                    route: route.name.clone(),
                    state,
                    fence: record.stored.fence,
                    written_at: record.stored.written_at,
                };
                all.add(kind, example, scope.examples_max);
            }
        }
        Ok(())
    }
}

/// Of answers, those that say that it took effect.
fn concerns(record: &Record, state: Seen) -> bool {
    state != Seen::Completed
        || record.facts.outcome.as_ref().is_some_and(|outcome| (200..300).contains(&outcome.status))
}

/// A row of the application's own counts as the effect, and where such a table is named, an answer needs one.
fn kind(state: Seen, record: &Record, noted: Noted) -> Option<Discrepancy> {
    let took_effect = noted.is_made || noted.has_row == Some(true);
    match state {
        Seen::Unknown | Seen::Abandoned if took_effect => Some(Discrepancy::EffectWithoutOutcome),
        Seen::Unknown | Seen::Abandoned => Some(Discrepancy::OrphanedClaim),
        Seen::InFlight => {
            noted.fence.is_some_and(|fence| fence > record.stored.fence).then_some(Discrepancy::StaleHolder)
        }
        Seen::Completed => (!noted.has_row.unwrap_or(noted.is_made)).then_some(Discrepancy::OutcomeWithoutEffect),
        _ => None,
    }
}
