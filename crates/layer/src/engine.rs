//! What all requests of a process share: the store, the routes, the limits.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use onceward_core::{
    claim::SettledBy,
    fingerprint::Fingerprinter,
    key::{RecordId, Scope, Secret},
    mutant::{self, Mutant},
    policy::{Outage, Policy},
    record::{ClaimId, Micros, SessionId},
};
use onceward_store::{Durabilities, Durability, Store};
use tokio::sync::Semaphore;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{
    metrics::Metrics,
    observe, outage, pace,
    policies::Policies,
    quota::{Gate, Quotas},
    remember::Remembered,
    remembering::Remembering,
    request::earlier::{self, Before, Earlier},
    route::{Route, Routes},
    settle::Settling,
    spool::SpoolBudget,
    told::{Teller, Told},
    wait::Flights,
};

/// Limits of the whole process.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Duplicates that wait at a time, over all keys.
    pub waiters: usize,
    /// Answers up to this length are held until their record is safe; longer ones stream.
    pub held_answer_bytes: u64,
    /// Bodies up to this length are brought into canonical form; longer ones are hashed as they are.
    pub canonical_body_bytes: usize,
    /// A request's body is decoded to at most so many times its size.
    pub decode_ratio: usize,
    /// Bodies being brought into canonical form, together.
    pub canonical_memory_bytes: usize,
    /// Request bodies above this length wait on disk.
    pub spool_above_bytes: usize,
    /// The disk they take together.
    pub spool_bytes: u64,
    /// Unrecorded answers that are replayed from memory, together.
    pub unrecorded_bytes: usize,
    /// Recorded answers that are replayed from memory while the store does not answer, together; none where zero. One
    /// answer takes at most a sixteenth.
    pub replay_cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiters: 20_000,
            held_answer_bytes: 64 << 10,
            canonical_body_bytes: 1 << 20,
            decode_ratio: 100,
            canonical_memory_bytes: 64 << 20,
            spool_above_bytes: 256 << 10,
            spool_bytes: 1 << 30,
            unrecorded_bytes: 64 << 20,
            replay_cache_bytes: 32 << 20,
        }
    }
}

/// The shared engine. Clones share it.
#[derive(Clone, Debug)]
pub struct Engine(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) secret: Secret,
    /// Swapped whole by a reload; a request keeps the route that it came by.
    pub(crate) routes: ArcSwap<Routes>,
    limits: ArcSwap<Limits>,
    pub(crate) session: SessionId,
    pub(crate) quotas: Gate,
    /// What `store` said of settled keys lately.
    pub(crate) remembered: Arc<Remembered>,
    /// The routes whose claims go to the store's fallback.
    falling_back: Arc<ArcSwap<HashSet<String>>>,
    /// How each route's records are kept.
    durabilities: Arc<Durabilities>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) tracker: TaskTracker,
    pub(crate) spool: SpoolBudget,
    pub(crate) canonical_memory: Arc<Semaphore>,
    /// Requests that shadow mode may still watch, and bytes that it may still copy.
    pub(crate) watched: Arc<Semaphore>,
    pub(crate) copied: Arc<Semaphore>,
    /// As many units as it has, of a byte each.
    pub(crate) canonical_memory_units: u32,
    pub(crate) policies: Policies,
    /// What record ids were made of before, as long as records of then may be left; the latest first.
    pub(crate) earlier: ArcSwap<Vec<Arc<Earlier>>>,
    pub(crate) fingerprinter: Fingerprinter,
    pub(crate) metrics: Metrics,
    pub(crate) teller: Teller,
    executing: AtomicUsize,
    /// The policies of queues, whose unknown outcomes are looked through as those of routes are.
    queues: Mutex<HashMap<String, Arc<Policy>>>,
    pub(crate) settling: Settling,
    /// That of `store`, for whoever is refused.
    pub(crate) outage: outage::Outage,
    /// How many claims go on at a time after it.
    pub(crate) pace: pace::Pace,
}

impl Shared {
    /// The limits as they are now.
    pub(crate) fn limits(&self) -> Limits {
        **self.limits.load()
    }

    pub(crate) fn know_queue(&self, queue: &str, policy: &Arc<Policy>) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.insert(queue.to_owned(), Arc::clone(policy));
    }

    /// The policy of a record's route or queue; one that is gone is treated as the fallback is.
    pub(crate) fn policy_of(&self, route: &str) -> Option<Arc<Policy>> {
        let routes = self.routes.load();
        let named = routes.named(route).map(|route| Arc::clone(&route.policy));
        let queue = || self.queues.lock().unwrap_or_else(PoisonError::into_inner).get(route).cloned();
        named.or_else(queue).or_else(|| routes.all().last().map(|fallback| Arc::clone(&fallback.policy)))
    }
}

impl Engine {
    /// An engine over `store`. `session` must be the one that the store was opened with, where it
    /// tells sessions apart.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, secret: Secret, routes: Routes, limits: Limits, session: SessionId) -> Self {
        let metrics = Metrics::new(&routes, store.kind());
        let remembered = Arc::new(Remembered::new(limits.replay_cache_bytes));
        let dropped = metrics.remembered_dropped.clone();
        let of_others = Arc::clone(&remembered);
        store.tell_forgotten(Arc::new(move |id| match id {
            Some(id) => of_others.forget(&id),
            None => of_others.forget_all(),
        }));
        let falling_back = Arc::new(ArcSwap::from_pointee(falling_back(&routes)));
        let flights = Arc::new(Flights::default());
        let (remembers, names, runs) = (Arc::clone(&remembered), Arc::clone(&falling_back), Arc::clone(&flights));
        // What this process remembers is an answer, and what it executes will be one: both are better than a second
        // execution.
        store.fall_back(Arc::new(move |id, route| {
            names.load().contains(route) && !runs.is_owned(id) && remembers.recall(id).is_none()
        }));
        let durabilities = Arc::new(Durabilities::default());
        durabilities.set(durability_of_each(&routes));
        store.keep_by_route(Arc::clone(&durabilities));
        let store: Arc<dyn Store> = Arc::new(Remembering::new(store, Arc::clone(&remembered), dropped));
        let quotas = Gate::default();
        quotas.set(Quotas::default(), &routes, &*store);
        Self(Arc::new(Shared {
            quotas,
            remembered,
            falling_back,
            durabilities,
            flights,
            tracker: TaskTracker::new(),
            spool: SpoolBudget::new(limits.spool_bytes),
            canonical_memory: Arc::new(Semaphore::new(limits.canonical_memory_bytes)),
            watched: Arc::new(Semaphore::new(observe::WATCHED_MAX)),
            copied: Arc::new(Semaphore::new(observe::COPIED_BYTES_MAX)),
            canonical_memory_units: u32::try_from(limits.canonical_memory_bytes).unwrap_or(u32::MAX),
            policies: Policies::default(),
            earlier: ArcSwap::default(),
            fingerprinter: Fingerprinter::new(&secret),
            store,
            secret,
            routes: ArcSwap::from_pointee(routes),
            limits: ArcSwap::from_pointee(limits),
            session,
            metrics,
            teller: Teller::default(),
            executing: AtomicUsize::new(0),
            queues: Mutex::default(),
            settling: Settling::default(),
            outage: outage::Outage::default(),
            pace: pace::Pace::default(),
        }))
    }

    /// A new session id: one life of one process.
    ///
    /// # Panics
    /// Where the operating system has no random numbers to give, without which no claim is safe.
    #[must_use]
    pub fn new_session() -> SessionId {
        SessionId(random_id())
    }

    /// Which life of which process this is.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.0.session
    }

    /// The store beneath.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// The routes as they are now.
    #[must_use]
    pub fn routes(&self) -> Arc<Routes> {
        self.0.routes.load_full()
    }

    /// From here on requests are treated by `routes` and within `limits`; those that are on their way keep theirs.
    ///
    /// What record ids are made of must not change by it: see [`Routes::rekeyed`]. The room of spooled bodies and of
    /// canonical forms (`spool_bytes`, `canonical_memory_bytes`) stays what it was made with.
    pub fn reconfigure(&self, routes: Routes, limits: Limits) {
        self.0.metrics.know(&routes);
        self.0.falling_back.store(Arc::new(falling_back(&routes)));
        self.0.durabilities.set(durability_of_each(&routes));
        self.0.remembered.set_bytes_max(limits.replay_cache_bytes);
        self.0.limits.store(Arc::new(limits));
        self.0.quotas.set(self.0.quotas.quotas(), &routes, &*self.0.store);
        self.0.routes.store(Arc::new(routes));
    }

    /// From here on tenants may take so much.
    pub fn limit_tenants(&self, quotas: Quotas) {
        self.0.quotas.set(quotas, &self.routes(), &*self.0.store);
    }

    /// Whether a tenant was refused for what its records take, since this was asked last: a sweep may make room.
    #[must_use]
    pub fn tenant_was_short(&self) -> bool {
        self.0.quotas.take_short()
    }

    /// The install secret, for deriving record ids.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.0.secret
    }

    /// Executions that run or are being recorded now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.executing.load(Ordering::Relaxed)
    }

    /// Duplicates that wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.flights.waiting()
    }

    /// From here on a key's record is looked for under its earlier ids too, the latest of `before` first. For whoever has
    /// changed what record ids are made of.
    pub fn look_under(&self, before: Vec<Before>) {
        self.0.earlier.store(Arc::new(before.into_iter().map(|before| Arc::new(Earlier::new(before))).collect()));
    }

    /// The ids that a key's record may stand under: the present one, then those from before a change of what ids are
    /// made of.
    ///
    /// # Errors
    /// As [`record_id`](Self::record_id).
    pub fn record_ids(
        &self,
        key: &str,
        tenant: &str,
        route: &str,
        authorization: Option<&str>,
    ) -> Result<Vec<RecordId>, String> {
        let mut ids = vec![self.record_id(key, tenant, route, authorization)?];
        for id in earlier::ids(&self.0.earlier.load(), key, tenant, route, authorization) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Tells `listener` of each request on a covered route, once it has its answer. It is called on the way of the
    /// request and must not wait. The first listener of an engine stays.
    pub fn listen(&self, listener: impl Fn(&Told<'_>) + Send + Sync + 'static) {
        self.0.teller.set(Box::new(listener));
    }

    /// The id of a key's record. `route` is a route's name, or `default METHOD PATH`;
    /// `authorization` the caller's header, or `None` for an anonymous caller.
    ///
    /// # Errors
    /// Where the caller cannot be told by that header, in words.
    pub fn record_id(
        &self,
        key: &str,
        tenant: &str,
        route: &str,
        authorization: Option<&str>,
    ) -> Result<RecordId, String> {
        let principal = crate::request::principal::principal_of(self.secret(), authorization)?;
        let routes = self.routes();
        let env = routes.env_of(route);
        let scope = Scope { tenant, env, principal: &principal, route };
        Ok(RecordId::derive(self.secret(), &scope, key))
    }

    /// Counts an unknown outcome that was settled, and by whom.
    pub fn count_settled(&self, route: &str, by: SettledBy) {
        self.0.metrics.unknown_settled(route, by.as_str());
    }

    /// Sets the gauges that are read off the engine; called before metrics are rendered.
    pub fn set_gauges(&self) {
        crate::metrics::gauges(self.in_flight(), self.waiting(), self.0.remembered.count());
    }

    /// Waits until every execution has ended and is recorded, at most `limit`. Returns how many
    /// are left: their outcomes become unknown when the process ends.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.0.tracker.close();
        let _late = tokio::time::timeout(limit, self.0.tracker.wait()).await;
        self.0.tracker.len()
    }

    /// Looks no longer under what no record is left of.
    pub(crate) fn forget_earlier(&self, now: Micros) {
        let is_over = |earlier: &Arc<Earlier>| earlier.until <= now;
        if self.0.earlier.load().iter().any(is_over) {
            self.0.earlier.rcu(|earlier| {
                let left = earlier.iter().filter(|earlier| !is_over(earlier)).cloned().collect::<Vec<_>>();
                Arc::new(left)
            });
        }
    }

    /// An execution, counted until it is dropped; [`drain`](Self::drain) waits for it.
    pub(crate) fn executing(&self) -> Executing {
        self.0.executing.fetch_add(1, Ordering::Relaxed);
        Executing { _drained: self.0.tracker.token(), shared: Arc::clone(&self.0) }
    }
}

fn falling_back(routes: &Routes) -> HashSet<String> {
    let falls_back = |route: &&Arc<Route>| route.policy.on_store_outage == Outage::Fallback;
    routes.all().filter(falls_back).map(|route| route.name.clone()).collect()
}

fn durability_of_each(routes: &Routes) -> HashMap<String, Durability> {
    let kept = |route: &Route| match mutant::is(Mutant::StrictInCache) {
        true => Durability::Cache,
        false => route.durability,
    };
    routes.all().map(|route| (route.name.clone(), kept(route))).collect()
}

/// One execution that runs or is being recorded.
pub(crate) struct Executing {
    _drained: TaskTrackerToken,
    shared: Arc<Shared>,
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.shared.executing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A claim id, drawn for one request.
pub(crate) fn new_claim_id() -> ClaimId {
    ClaimId(random_id())
}

fn random_id() -> [u8; 16] {
    // Version 4 of RFC 9562 leaves 122 random bits, from the operating system's generator through
    // a generator of the thread: no call into the kernel for each request.
    *uuid::Uuid::new_v4().as_bytes()
}
