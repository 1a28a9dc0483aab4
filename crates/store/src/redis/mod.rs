//! The store of several processes in Redis: records are strings, each step is one script or one transaction.
//!
//! A step looks and writes as one, by the server's own clock, and is answered in one round trip (`script`), or in two on
//! a connection of its own where scripts are forbidden (`watch`). Records in flight or unknown have no end in Redis, so
//! that nothing evicts them before their outcome is known; settled ones are removed by the server itself.
//!
//! *Durable* is what Redis makes of a write: what it loses is lost. A flush, a start without data, a restart and a
//! failover are noticed at the next step or within a second, told with the partitions and the time in question
//! ([`Cache`]), and the steps that met them are refused with [`Kind::Incarnation`]: nothing was written. A record that is
//! deleted by hand, or evicted, is not noticed.
//!
//! *S2 and S18 across processes*: time goes back for no process. Over a restart and between processes it does by at
//! most a second and a half, and only where the server's clock was set back by that; fences rise all the same, as far as
//! Redis kept what was written down. [`usage`](crate::Store::usage) has each write of this process at once, and those of
//! others, and what has ended, when the records are counted next: each minute, or so seldom that counting takes no more
//! than a twentieth of one connection. *S15 across processes*: replacements and removals wake, renewals do not.
//! *Scans* come in the servers' order, and may give a record twice.
//!
//! # Layout
//!
//! [`address`] where the servers are, `link` a connection to them, `admission` whether they are asked at all, `info` what they say of themselves; `key` names,
//! `value` a record's bytes; `step` what a step is, `script` and `watch` the two ways to take it; `incarnation` markers
//! and losses, `upkeep` what goes on beside, `replicas` writes that are waited for there, `waiting` waiters, [`doctor`]
//! whether the servers are fit, `foreign` keys of others, `hints` what another store says, `front` what stands before a journal, `scan` lists, `shared` what processes remember together.

pub mod address;
mod admission;
#[cfg(any(test, feature = "conformance"))]
mod behind;
pub mod doctor;
mod error;
mod foreign;
mod front;
#[cfg(test)]
mod golden;
mod hints;
mod incarnation;
mod info;
mod key;
mod link;
mod replicas;
mod scan;
mod script;
mod shared;
mod step;
mod upkeep;
mod value;
mod waiting;
mod watch;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, State},
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::timeout,
};

use self::{
    address::Address,
    admission::Admission,
    foreign::Foreign,
    incarnation::{Incarnations, Mark, Marked},
    key::Keys,
    link::Link,
    replicas::Replicas,
    script::Scripts,
    step::{Step, Stepped, What},
    upkeep::Health,
    watch::Watching,
};
pub use self::{
    error::Failure,
    front::{JournaledFront, Unfit},
    hints::AsOf,
    replicas::Wait,
};
use crate::{
    Answer, Cache, Filter, HearsForgotten, Insert, Kind, Page, RULES_BYTES_MAX, Read, Stats, Store, StoreError, Swept,
    Usage, Watch, Write,
    figures::Figures,
    forgotten::{self, Forgotten},
    watch::Watchers,
};

/// The most records of one page of a scan.
const PAGE_MAX: usize = 1_000;
/// The most keys whose waiting is not said yet; more look again by themselves.
const WAITED_MAX: usize = 4_096;

/// How a step looks and writes as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// By a script, in one round trip.
    #[default]
    Script,
    /// By WATCH, MULTI and EXEC, in two, where scripts are forbidden. Not on a Cluster.
    Watch,
}

/// When it is noticed that Redis evicted keys, which may have been completed records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Evictions {
    /// At the look of each second. They are counted and told, and grants go on.
    #[default]
    Polled,
    /// Before each grant, too, by the script that grants: they are a loss as a restart is. Costs the server about as much as
    /// another claim. Of [`Strategy::Script`] alone.
    Inline,
}

/// How the store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the servers are.
    pub address: Address,
    /// How a step is taken.
    pub strategy: Strategy,
    /// How long one call may take before its connection is given up.
    pub deadline: Duration,
    /// How many replicas a claim, a renewal and an answer have to reach before they count; none where `None`.
    pub wait: Option<Wait>,
    /// When evictions are noticed.
    pub evictions: Evictions,
    /// Whether what tenants take up is counted from the start on, which reads every record now and then. Otherwise it is
    /// once somebody has asked, and until then only what this process wrote is known.
    pub usage: bool,
    /// Whether a case of the conformance list moves the servers' clock.
    #[cfg(any(test, feature = "conformance"))]
    pub clock_moves: bool,
}

impl Options {
    /// The defaults: two seconds a call, tenants counted.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            strategy: Strategy::default(),
            deadline: Duration::from_secs(2),
            wait: None,
            evictions: Evictions::default(),
            usage: true,
            #[cfg(any(test, feature = "conformance"))]
            clock_moves: false,
        }
    }

    #[cfg(any(test, feature = "conformance"))]
    fn clock_moves(&self) -> bool {
        self.clock_moves
    }

    #[cfg(not(any(test, feature = "conformance")))]
    fn clock_moves(&self) -> bool {
        false
    }
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("Redis cannot be used as a store: {}", .0.in_words())]
pub struct OpenError(StoreError);

impl OpenError {
    /// Whether nobody answers there, or not yet: no sign that the address is wrong, or that the servers are.
    #[must_use]
    pub fn is_away(&self) -> bool {
        error::is_away(&self.0)
    }
}

/// A store in Redis. What it does in the background ends with it.
pub struct Redis {
    shared: Arc<Shared>,
    waited: mpsc::Sender<RecordId>,
    _tasks: JoinSet<()>,
}

/// How steps are taken.
#[derive(Debug)]
enum Steps {
    Script(Box<Scripts>),
    Watch(Watching),
}

/// What calls and background share.
#[derive(Debug)]
struct Shared {
    options: Options,
    /// The latest time that any answer had.
    seen_until: AtomicU64,
    steps: Steps,
    admission: Arc<Admission>,
    /// For steps.
    link: Link,
    /// For all else, so that a long list holds up no claim.
    side: Link,
    replicas: Option<Replicas>,
    incarnations: Incarnations,
    watchers: Watchers,
    /// Who is told of what is forgotten.
    forgotten: Forgotten,
    figures: Figures,
    health: Health,
    foreign: Foreign,
    remembered: shared::Remembered,
}

impl Shared {
    /// S2: the store's time never goes back.
    fn time(&self, at: Micros) -> Micros {
        Micros(self.seen_until.fetch_max(at.0, Ordering::SeqCst).max(at.0))
    }

    fn floor(&self) -> Micros {
        Micros(self.seen_until.load(Ordering::SeqCst))
    }

    async fn mark(&self, partition: u16, mark: &Mark<'_>) -> Result<Marked, StoreError> {
        match &self.steps {
            Steps::Script(scripts) => scripts.mark(&self.side, partition, mark).await,
            Steps::Watch(watching) => watching.mark(partition, mark).await,
        }
    }

    /// Takes a step, and notes what it says.
    async fn step(&self, id: RecordId, what: What<'_>) -> Result<Stepped, StoreError> {
        let keys = Keys::of(&id);
        let epoch = self.incarnations.epoch(keys.partition);
        let evicted = self.incarnations.evicted(keys.partition);
        let step = Step { id, keys, epoch, floor: self.floor(), evicted, what };
        let mut stepped = match &self.steps {
            Steps::Script(scripts) => scripts.step(&self.link, &step).await?,
            Steps::Watch(watching) => watching.step(&step, &self.incarnations.tags()).await?,
        };
        if let Some(now) = stepped.now_mut() {
            *now = self.time(*now);
        }
        match &stepped {
            Stepped::Done { change, removed, .. } => {
                self.health.touch(step.keys.partition);
                let tenant = match &step.what {
                    What::Insert { facts, .. } => Some(&facts.tenant),
                    What::Replace(write) => Some(&write.facts.tenant),
                    What::Remove(_) => removed.as_ref(),
                    What::Extend { .. } | What::Get => None,
                };
                if let Some(tenant) = tenant {
                    self.figures.wrote(tenant, *change);
                }
                self.watchers.wake(&id);
            }
            Stepped::Evicted => upkeep::evicted(self, step.keys.partition, evicted).await?,
            // Whoever meets a loss says so, and is refused: what it would write may have been written before.
            Stepped::Unmarked => upkeep::unmarked(self, step.keys.partition, epoch).await?,
            _ => {}
        }
        if let Some((replicas, (fence, revision))) = self.replicas.as_ref().zip(stepped.written(&step)) {
            replicas.have(&step.keys, fence, revision).await?;
        }
        Ok(stepped)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.shared.options.address)
    }
}

impl Redis {
    /// Opens the store, and gives every partition its marker.
    ///
    /// # Errors
    /// [`OpenError`]: no server can be reached, it refuses the user, is too old, or is a replica.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let store = Self::shut(options)?;
        store.admit().await?;
        Ok(store)
    }

    /// The store before its servers are there: each call is refused until [`admit`](Self::admit) has succeeded.
    ///
    /// # Errors
    /// [`OpenError`]: the options do not fit each other.
    pub fn shut(options: Options) -> Result<Self, OpenError> {
        if options.strategy == Strategy::Watch {
            let said = match options.evictions {
                _ if options.address.is_cluster() => {
                    "a Cluster is stepped on by scripts alone: leave out strategy = \"watch\""
                }
                Evictions::Inline => "a script notices evictions inline: leave out strategy = \"watch\"",
                Evictions::Polled => "",
            };
            if !said.is_empty() {
                return Err(OpenError(StoreError::not_applied(Kind::Unavailable).because(Failure::said(said))));
            }
        }
        // Told in the step itself; in a Cluster to the nodes of the key's shard alone.
        let tell = if options.address.is_cluster() { "SPUBLISH" } else { "PUBLISH" };
        let watchers = Watchers::default();
        let (gone, forgotten) = (Arc::new(Notify::new()), Forgotten::default());
        let heard = waiting::heard(watchers.clone(), forgotten.clone(), Arc::clone(&gone));
        let listening = Link::new(&options.address, options.deadline, Some(heard));
        let admission = Arc::new(Admission::default());
        let link = || Link::new(&options.address, options.deadline, None).behind(&admission);
        let shared = Arc::new(Shared {
            seen_until: AtomicU64::new(0),
            steps: match options.strategy {
                Strategy::Script => {
                    Steps::Script(Box::new(Scripts::new(tell, options.evictions, options.clock_moves())))
                }
                Strategy::Watch => {
                    Steps::Watch(Watching::new(&options.address, options.deadline, options.clock_moves()))
                }
            },
            link: link(),
            side: link(),
            admission,
            replicas: options.wait.map(|wait| Replicas::new(wait, &options.address, options.deadline)),
            incarnations: Incarnations::default(),
            watchers,
            forgotten,
            figures: Figures::default(),
            health: Health::default(),
            foreign: Foreign::default(),
            remembered: shared::Remembered::default(),
            options,
        });
        let mut tasks = JoinSet::new();
        let (waited, from) = mpsc::channel(WAITED_MAX);
        let after = |task: BoxFuture<'static, ()>| {
            let shared = Arc::clone(&shared);
            async move {
                shared.admission.granted().await;
                task.await;
            }
        };
        tasks.spawn(after(Box::pin(waiting::listen(Arc::clone(&shared), listening, from, gone))));
        tasks.spawn(after(Box::pin(upkeep::tick(Arc::clone(&shared)))));
        tasks.spawn(after(Box::pin(upkeep::count(Arc::clone(&shared)))));
        Ok(Self { shared, waited, _tasks: tasks })
    }

    /// Looks at the servers, gives every partition its marker, and lets calls through from then on.
    ///
    /// # Errors
    /// As [`open`](Self::open); then calls are refused, as before.
    pub async fn admit(&self) -> Result<(), OpenError> {
        let Shared { admission, incarnations, .. } = &*self.shared;
        // Whoever meets a marker meanwhile waits until it is known: it tells of no loss.
        let _looking = incarnations.looking.lock().await;
        admission.open();
        match upkeep::start(&self.shared).await {
            Ok(()) => {
                admission.is_well();
                Ok(())
            }
            Err(error) => {
                admission.shut(error.in_words());
                Err(OpenError(error))
            }
        }
    }

    /// Whether calls are let through.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.shared.admission.is_granted()
    }

    /// Says why they are not, to those who ask how the store is.
    pub fn refuse(&self, why: String) {
        self.shared.admission.shut(why);
    }

    /// Keeps `value` under `name` for every process of the store, unless there is one; returns what is kept. After a
    /// loss this process writes it again.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn remember(&self, name: &str, value: &str) -> Result<String, StoreError> {
        shared::remember(&self.shared, name, value).await
    }

    /// Puts `value` in the place of what is kept under `name`.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn replace_remembered(&self, name: &str, value: &str) -> Result<(), StoreError> {
        shared::replace(&self.shared, name, value).await
    }

    /// Whether `process` is the one that does for all what goes by this name: from now on for `span`, and longer where
    /// it asks again before that is over. Two may take themselves for it for a moment.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn keep_turn(&self, name: &str, process: &str, span: Duration) -> Result<bool, StoreError> {
        shared::keep_turn(&self.shared, name, process, span).await
    }

    /// A call that ends: whatever it waits for, no longer than two calls on the server may take.
    async fn within<T>(
        &self,
        late: fn(Kind) -> StoreError,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(self.shared.options.deadline * 2, call).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(late(Kind::Unavailable).because(elapsed)),
        }
    }

    async fn write(&self, id: RecordId, what: What<'_>) -> Result<Write, StoreError> {
        let forgets = match &what {
            What::Replace(write) => write.facts.state == State::Erased,
            What::Remove(Expect::Seen(..)) => true,
            _ => false,
        };
        let written = self.within(StoreError::unknown, self.shared.step(id, what)).await.and_then(Stepped::into_write);
        if forgets && forgotten::is_to_be_told(&written) {
            // Those who do not hear of it learn it when they look, at the latest when what they remember is over.
            let tell = redis::cmd("PUBLISH").arg(key::FORGOTTEN).arg(&id.0[..]).take();
            if let Err(failed) = self.shared.side.call(&tell).await {
                tracing::warn!(error = %failed.read(), record = %id.short(), "others could not be told of a key that was forgotten");
            }
        }
        written
    }
}

impl Store for Redis {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(async move {
            let step = self.shared.step(id, What::Insert { facts, lease });
            self.within(StoreError::unknown, step).await?.into_insert()
        })
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(self.write(id, What::Replace(write)))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(self.write(id, What::Extend { holder, lease }))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(self.write(id, What::Remove(expect)))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(async move {
            let step = self.shared.step(id, What::Get);
            self.within(StoreError::not_applied, step).await?.into_read()
        })
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        Box::pin(async move { scan::page(&self.shared, after, limit.min(PAGE_MAX), &filter).await })
    }

    fn sweep(&self, _limit: usize, _waits: Duration) -> Answer<'_, Swept> {
        // The server itself removes what has ended.
        Box::pin(std::future::ready(Ok(Swept::default())))
    }

    fn watch(&self, id: RecordId) -> Watch {
        let watch = self.shared.watchers.watch(id);
        // Where too many are to be said, this one looks again by itself.
        let _ = self.waited.try_send(id);
        watch
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        self.shared.forgotten.set(hears);
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        Box::pin(self.within(StoreError::unknown, async move {
            if rules.len() > RULES_BYTES_MAX {
                return Err(StoreError::not_applied(Kind::Full));
            }
            shared::keep_rules(&self.shared, policy, rules).await
        }))
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        Box::pin(self.within(StoreError::not_applied, shared::rules(&self.shared, policy)))
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.shared.figures.of(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.shared.incarnations.lost_ago()
    }

    fn stats(&self) -> Stats {
        let (figures, mut concerns) = self.shared.health.shown();
        if let Some(why) = self.shared.admission.concern() {
            concerns = vec![why];
        }
        concerns.extend(self.shared.foreign.concern());
        let (losses, last) = self.shared.incarnations.shown();
        let counted = self.shared.figures.total().unwrap_or(Usage { records: figures.keys, bytes: figures.memory });
        Stats {
            records: counted.records,
            records_max: None,
            open: figures.open,
            bytes: counted.bytes,
            accepts_claims: true,
            concerns,
            cache: Some(Cache {
                losses,
                last,
                evicted: figures.evicted,
                memory: figures.memory,
                memory_max: figures.memory_max,
            }),
        }
    }
}
