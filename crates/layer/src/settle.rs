//! The background worker: looks through the unknown outcomes, and works their routes' lists where no request is needed.
//!
//! Safety does not depend on it. What it settles it settles against the record as it was read, so that a late answer,
//! an operator or a request wins; what is still executed in this process it leaves alone, whatever the lease says.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use onceward_core::{
    cas::Replacement,
    claim::SettledBy,
    decide::{Place, Unattended, unattended, unattended_probed},
    key::RecordId,
    record::{Micros, Record, Seen},
};
use onceward_store::{Filter, StoreError, Write};
use tokio::time::Instant;

use crate::{engine::Engine, probe::Books, route::Route};

const PAGE_RECORDS: usize = 256;
/// Outcomes probed at a look, and at a time.
const PROBES_MAX: usize = 64;
const PROBES_AT_A_TIME: usize = 8;
/// An outcome that could not be told is asked about again after an eighth of its age, within these bounds.
const PROBE_AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(600);
/// Outcomes of which it is remembered when they are asked about again; of further ones it is not, and they wait.
const REMEMBERED_MAX: usize = 16_384;

/// What a look remembers for the next one.
#[derive(Debug, Default)]
pub(crate) struct Settling(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// When to probe again.
    again: HashMap<RecordId, Instant>,
    /// Routes and queues whose gauges stand.
    told: HashSet<String>,
}

/// The unknown outcomes of a route.
#[derive(Default)]
struct Unknowns {
    open: u32,
    oldest: Duration,
}

/// One to be probed.
struct Doubtful {
    id: RecordId,
    record: Record,
    route: Arc<Route>,
    /// Since when it has been unknown.
    age: Duration,
    /// The step that asks.
    place: Place,
}

/// What one look found.
#[derive(Default)]
struct Look {
    /// Whether it is this process that settles.
    settles: bool,
    settled: u64,
    open: HashMap<String, Unknowns>,
    seen: HashSet<RecordId>,
    /// Never probed before; these go first.
    new: Vec<Doubtful>,
    due: Vec<Doubtful>,
}

impl Engine {
    /// Looks through the unknown outcomes: settles those whose route's list needs no request to go
    /// on (`probe` without a key, `fail`, and `unknown_max`), and sets their gauges. Returns how many it settled. Safety
    /// does not depend on it.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn settle_unattended(&self) -> Result<u64, StoreError> {
        self.look_through(None, true).await
    }

    /// The same of one route alone, where one is named; then the gauges stay as they are.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn settle_unattended_on(&self, only: Option<&str>) -> Result<u64, StoreError> {
        self.look_through(only, true).await
    }

    /// Sets the gauges of the unknown outcomes, and settles none: another process does.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn count_unattended(&self) -> Result<(), StoreError> {
        self.look_through(None, false).await.map(|_none| ())
    }

    /// Whether requests were refused within the last seconds because the store does not answer, so that a look had better
    /// wait: once it goes on it has the claims to make that were on their way, and each of them would be read.
    #[must_use]
    pub fn outage_is_recent(&self) -> bool {
        self.0.pace.has_just_refused(Instant::now())
    }

    async fn look_through(&self, only: Option<&str>, settles: bool) -> Result<u64, StoreError> {
        let mut look = Look { settles, ..Look::default() };
        let mut after = None;
        loop {
            let filter = Filter { state: Some(Seen::Unknown), route: only.map(Into::into), since: None };
            let page = self.store().scan(after, PAGE_RECORDS, filter).await?;
            for (id, record) in page.records {
                self.look_at(id, record, page.now, &mut look).await?;
            }
            after = page.next;
            if after.is_none() {
                if only.is_none() {
                    self.forget_earlier(page.now);
                }
                break;
            }
        }
        let Look { mut settled, open, seen, mut new, due, .. } = look;
        if only.is_none() {
            self.tell(&open);
            self.lock().again.retain(|id, _| seen.contains(id));
        }
        new.extend(due);
        new.truncate(PROBES_MAX);
        let mut probes = stream::iter(new).map(|doubtful| self.probe(doubtful)).buffer_unordered(PROBES_AT_A_TIME);
        while let Some(result) = probes.next().await {
            settled += u64::from(result?);
        }
        Ok(settled)
    }

    async fn look_at(&self, id: RecordId, record: Record, now: Micros, look: &mut Look) -> Result<(), StoreError> {
        let name = &record.facts.route;
        let Some(policy) = self.0.policy_of(name) else { return Ok(()) };
        // Its lease is over, as after an outage of the store, and yet it may still be answered.
        let runs_here = self.0.flights.is_owned(&id);
        let next = if runs_here || !look.settles { None } else { unattended(&record, &policy, now) };
        if let Some(Unattended::Settle(write)) = &next
            && self.settle(id, write, SettledBy::Policy).await?
        {
            look.settled += 1;
            return Ok(());
        }
        let age = now.since(record.unknown_since());
        let unknowns = look.open.entry(name.clone()).or_default();
        unknowns.open += 1;
        unknowns.oldest = unknowns.oldest.max(age);
        // Of a route that is gone nobody knows whose books to ask: those of another would know nothing of it.
        if let (Some(Unattended::Probe(asks)), Some(route)) = (next, self.routes().named(name)) {
            let route = Arc::clone(route);
            let again = self.lock().again.get(&id).copied();
            look.seen.insert(id);
            let place = match again {
                None if look.seen.len() <= REMEMBERED_MAX => &mut look.new,
                Some(again) if again <= Instant::now() => &mut look.due,
                _ => return Ok(()),
            };
            if place.len() < PROBES_MAX {
                place.push(Doubtful { id, record, route, age, place: asks });
            }
        }
        Ok(())
    }

    /// Asks by one step after another. Whether it was settled.
    async fn probe(&self, Doubtful { id, record, route, age, mut place }: Doubtful) -> Result<bool, StoreError> {
        let (policy, started) = (&route.policy, Instant::now());
        let books = Books { route: &route, key: None };
        let settled = loop {
            let Some(step) = place.step(policy) else { break false };
            let found = books.ask(step, (id, record.stored.fence, record.stored.revision)).await;
            let by = SettledBy::found(&found, Some(step));
            let now = record.unknown_since().plus(age + started.elapsed());
            match unattended_probed(&record, policy, place, found, now) {
                Some(Unattended::Settle(write)) => break self.settle(id, &write, by).await?,
                Some(Unattended::Probe(next)) => place = next,
                None => break false,
            }
        };
        if !settled {
            let pause = (age / 8).clamp(*PROBE_AGAIN.start(), *PROBE_AGAIN.end());
            self.lock().again.insert(id, Instant::now() + pause);
        }
        Ok(settled)
    }

    async fn settle(&self, id: RecordId, write: &Replacement, by: SettledBy) -> Result<bool, StoreError> {
        let applied = matches!(self.store().replace(id, write).await?, Write::Applied { .. });
        if applied {
            let route = &write.facts.route;
            self.count_settled(route, by);
            tracing::info!(record = %id.short(), %route, by = by.as_str(), "an unknown outcome was settled");
        }
        Ok(applied)
    }

    /// Sets the gauges, those of routes without an unknown outcome too.
    fn tell(&self, open: &HashMap<String, Unknowns>) {
        let mut remembered = self.lock();
        remembered.told.extend(self.routes().all().map(|route| route.name.clone()));
        remembered.told.extend(open.keys().cloned());
        for route in &remembered.told {
            let (count, oldest) = open.get(route).map_or((0, Duration::ZERO), |now| (now.open, now.oldest));
            crate::metrics::unknowns(route, count, oldest);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.0.settling.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
