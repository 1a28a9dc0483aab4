//! The store of several processes: records are rows of a PostgreSQL database.
//!
//! Each step is one call of a function in the schema `onceward`, a transaction of its own by the server's clock, on a
//! connection that keeps nothing between calls: a pooler in transaction mode carries it. Claims of one moment are
//! committed together, and so are settlings. An answer is given once the server has committed, and where
//! `synchronous_standby_names` says so, once a standby has; a wait for it that was cancelled is an unknown outcome.
//!
//! *Durable* is what the server makes of a commit: with `fsync` and `synchronous_commit` on, a crash of the server
//! loses nothing. A failover to a synchronous standby loses nothing; one to another loses what had not reached it, and
//! then those keys run again.
//!
//! *S2 and S18 across processes*: time goes back for no process. Over a restart and between processes it does by at
//! most a second and a half, and only where the server's clock was set back by that; fences rise all the same.
//! [`usage`](crate::Store::usage) has each write of this process at once, and those of others when the database is
//! counted next: each minute, or so seldom that counting takes no more than a twentieth of one connection.
//!
//! # Layout
//!
//! [`address`] where the database is and how it is reached, [`migrate`] its tables and functions, [`doctor`] whether it
//! is fit, [`compensation`] what undoes effects whose records failed; `lane` a connection,
//! `batch` many writes in one call, `step` the calls, `row` records as columns, `waiting` waiters, `upkeep` the clock,
//! counts and concerns, `figures` what tenants take up,
//! `effects` what an upstream wrote down; `journal` the journal of durability `journaled`, `durable` whether a server may keep it, [`standing`]
//! how its views stand, `fact` what is shipped to it as columns.

pub mod address;
mod batch;
pub mod compensation;
pub mod doctor;
mod durable;
mod effects;
mod error;
mod fact;
pub mod forced;
mod in_journal;
mod journal;
mod lane;
pub mod migrate;
mod row;
pub mod standing;
mod step;
mod upkeep;
mod waiting;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    mutant::{self, Mutant},
    record::{Facts, Fence, Micros, State},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_postgres::types::Type;

use self::{address::Address, batch::Batcher, lane::Lane, migrate::SchemaError, row::big};
pub use self::{
    durable::NotDurable,
    effects::PostgresEffects,
    error::Failure,
    journal::{Failover, JournalOptions, PostgresJournal},
};
use crate::{
    Answer, Filter, HearsForgotten, Insert, Kind, Page, RULES_BYTES_MAX, Read, Stats, Store, StoreError, Swept, Usage,
    Watch, Write,
    figures::Figures,
    forgotten::{self, Forgotten},
    watch::Watchers,
};

/// The most rows of one page of a scan.
const PAGE_MAX: usize = 1_000;
/// The most keys whose waiting is not said yet; more look again by themselves.
const WAITED_MAX: usize = 4_096;

/// How the store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the database is; a pooler in transaction mode will do.
    pub address: Address,
    /// Where notifications are listened for: the server itself, since no pooler in transaction mode passes them on.
    /// `None`: `address`.
    pub listen: Option<Address>,
    /// Connections for claims, for settling and for all else: so many each, 1 to 64. Beside them there are one for
    /// upkeep, one that listens, and one that counts now and then.
    pub connections: usize,
    /// How long one call may take on the server before its connection is given up.
    pub deadline: Duration,
    /// Whether what tenants take up is counted from the start on, which reads the whole table now and then. Otherwise
    /// it is once somebody has asked, and until then only what this process wrote is known.
    pub usage: bool,
}

impl Options {
    /// The defaults: two connections of each kind, five seconds a call, tenants counted.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address, listen: None, connections: 2, deadline: Duration::from_secs(5), usage: true }
    }
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The schema is not there, or not the one of this program.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The server cannot be used as a store.
    #[error("the database cannot be used: {}", .0.in_words())]
    Unfit(#[source] StoreError),
}

/// A store in a PostgreSQL database. What it does in the background ends with it.
#[derive(Debug)]
pub struct Postgres {
    shared: Arc<Shared>,
    claims: Batcher<step::Claim, step::Answered>,
    settling: Batcher<Replacement, step::Answered>,
    waited: mpsc::Sender<RecordId>,
    _tasks: JoinSet<()>,
}

/// What calls and background share.
#[derive(Debug)]
struct Shared {
    options: Options,
    /// The latest time that any answer had.
    seen_until: AtomicU64,
    plain: Vec<Lane>,
    next_plain: AtomicUsize,
    upkeep: Lane,
    compensating: Lane,
    watchers: Watchers,
    /// Who is told of what is forgotten.
    forgotten: Forgotten,
    figures: Figures,
    health: upkeep::Health,
}

impl Shared {
    /// S2: the store's time never goes back.
    fn time(&self, at: u64) -> Micros {
        Micros(self.seen_until.fetch_max(at, Ordering::SeqCst).max(at))
    }

    fn floor(&self) -> i64 {
        big(self.seen_until.load(Ordering::SeqCst))
    }

    fn plain(&self) -> Result<&Lane, StoreError> {
        let at = self.next_plain.fetch_add(1, Ordering::Relaxed) % self.plain.len().max(1);
        self.plain.get(at).ok_or_else(|| StoreError::not_applied(Kind::Unavailable))
    }
}

impl Postgres {
    /// Opens the store in a database whose schema is this program's.
    ///
    /// # Errors
    /// [`OpenError`]: the database cannot be reached, its schema is older or newer, it is a standby, or it would
    /// acknowledge what is not on disk.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        migrate::check(&options.address, migrate::MIGRATIONS).await?;
        let identity = Arc::default();
        let lane = |deadline| Lane::new(&options.address, &identity, deadline);
        let each = options.connections.clamp(1, 64);
        let lanes = || (0..each).map(|_| lane(options.deadline)).collect::<Vec<_>>();
        let (claim_lanes, settle_lanes) = (lanes(), lanes());
        let shared = Arc::new(Shared {
            seen_until: AtomicU64::new(0),
            plain: lanes(),
            next_plain: AtomicUsize::new(0),
            upkeep: lane(upkeep::DEADLINE),
            compensating: lane(compensation::DEADLINE),
            watchers: Watchers::default(),
            forgotten: Forgotten::default(),
            figures: Figures::default(),
            health: upkeep::Health::new(Arc::clone(&identity)),
            options,
        });
        upkeep::start(&shared).await.map_err(OpenError::Unfit)?;
        let mut tasks = JoinSet::new();
        let of = Arc::clone(&shared);
        let claims = Batcher::start(&mut tasks, claim_lanes, move |lane, writes| {
            let shared = Arc::clone(&of);
            async move { step::insert(&shared, &lane, &writes).await }
        });
        let of = Arc::clone(&shared);
        let settling = Batcher::start(&mut tasks, settle_lanes, move |lane, writes| {
            let shared = Arc::clone(&of);
            async move { step::replace(&shared, &lane, &writes).await }
        });
        let (waited, from) = mpsc::channel(WAITED_MAX);
        tasks.spawn(waiting::say(Arc::clone(&shared), from));
        let listen = shared.options.listen.clone().unwrap_or_else(|| shared.options.address.clone());
        let listening: Arc<AtomicBool> = Arc::clone(&shared.health.listening);
        tasks.spawn(waiting::listen(listen, shared.watchers.clone(), shared.forgotten.clone(), listening));
        tasks.spawn(upkeep::tick(Arc::clone(&shared)));
        tasks.spawn(upkeep::count(Arc::clone(&shared)));
        Ok(Self { shared, claims, settling, waited, _tasks: tasks })
    }

    /// Keeps `value` under `name` for every process of the database, unless there is one; returns what is kept.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn remember(&self, name: &str, value: &str) -> Result<String, StoreError> {
        let sql = "SELECT onceward.store_remember($1, $2)";
        let kept = self.shared.plain()?.write(sql, &[(&name, Type::TEXT), (&value, Type::TEXT)]).await;
        let rows = kept.map_err(|failed| failed.error)?;
        rows.first().map(|row| row.get(0)).ok_or_else(|| StoreError::unknown(Kind::Unavailable))
    }

    /// Puts `value` in the place of `before` under `name`; where another is kept, that stays.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn replace_remembered(&self, name: &str, before: &str, value: &str) -> Result<(), StoreError> {
        let sql = "UPDATE onceward.meta SET value = $3 WHERE name = $1 AND value = $2";
        let parameters = [(&name as _, Type::TEXT), (&before as _, Type::TEXT), (&value as _, Type::TEXT)];
        self.shared.plain()?.write(sql, &parameters).await.map(|_| ()).map_err(|failed| failed.error)
    }

    /// [`Mutant::LeaseDeletes`]: a claim whose lease is over counts as no record; [`Mutant::InsertOverClaim`]: any does.
    async fn claim_over(&self, id: RecordId, claim: step::Claim) -> Result<step::Answered, StoreError> {
        let again = step::Claim { facts: claim.facts.clone(), lease: claim.lease };
        match self.claims.write(id, claim).await? {
            step::Answered::There { record: Some(there), now }
                if there.facts.state == State::InFlight
                    && (mutant::is(Mutant::InsertOverClaim) || there.stored.lease_until <= now) =>
            {
                step::remove(&self.shared, id, Expect::Seen(there.stored.fence, there.stored.revision)).await?;
                self.claims.write(id, again).await
            }
            answered => Ok(answered),
        }
    }

    /// Tells others of a write that forgets.
    async fn forgot(&self, forgets: bool, id: &RecordId, written: &Result<Write, StoreError>) {
        if forgets && forgotten::is_to_be_told(written) {
            waiting::tell_forgotten(&self.shared, id).await;
        }
    }

    /// Whether `process` is the one that does for all what goes by this name: from now on for `span`, and longer where
    /// it asks again before that is over.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn keep_turn(&self, name: &str, process: &str, span: Duration) -> Result<bool, StoreError> {
        let sql = "SELECT onceward.store_keep_turn($1, $2, $3)";
        let parameters = [(&name as _, Type::TEXT), (&process as _, Type::TEXT), (&row::span(span) as _, Type::INT8)];
        let rows = self.shared.plain()?.write(sql, &parameters).await.map_err(|failed| failed.error)?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// A call that ends: whatever it waits for, no longer than two calls on the server may take.
    async fn within<T>(
        &self,
        late: fn(Kind) -> StoreError,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.shared.health.may_ask()?;
        match timeout(self.shared.options.deadline * 2, call).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(late(Kind::Unavailable).because(elapsed)),
        }
    }
}

impl Store for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        let claim = step::Claim { facts: facts.clone(), lease };
        Box::pin(self.within(StoreError::unknown, async move {
            if claim.facts.outcome.is_some() || claim.facts.checkpoint.is_some() {
                let said = "a claim carries neither an outcome nor a checkpoint";
                return Err(StoreError::not_applied(Kind::Damaged(said.into())));
            }
            let claimed = match mutant::is(Mutant::LeaseDeletes) || mutant::is(Mutant::InsertOverClaim) {
                true => self.claim_over(id, claim).await?,
                false => self.claims.write(id, claim).await?,
            };
            Ok(match claimed {
                step::Answered::Done { fence, now, .. } => Insert::Inserted { fence, now },
                step::Answered::There { record: Some(record), now } => Insert::Existing { record, now },
                step::Answered::There { record: None, .. } => return Err(StoreError::not_applied(Kind::Conflict)),
            })
        }))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        let mut write = write.clone();
        let erases = write.facts.state == State::Erased;
        let written = async move {
            if mutant::is(Mutant::FenceNotCompared)
                && let Some(there) = step::get(&self.shared, id).await?.record
            {
                write.expect = Expect::Seen(there.stored.fence, there.stored.revision);
            }
            self.settling.write(id, write).await.map(step::Answered::into_write)
        };
        Box::pin(async move {
            let written = self.within(StoreError::unknown, written).await;
            self.forgot(erases, &id, &written).await;
            written
        })
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(self.within(StoreError::unknown, step::extend(&self.shared, id, holder, lease)))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(async move {
            let written = self.within(StoreError::unknown, step::remove(&self.shared, id, expect)).await;
            self.forgot(matches!(expect, Expect::Seen(..)), &id, &written).await;
            written
        })
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(self.within(StoreError::not_applied, step::get(&self.shared, id)))
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        Box::pin(self.within(StoreError::not_applied, step::scan(&self.shared, after, limit.min(PAGE_MAX), filter)))
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        // On the lane of upkeep, with that lane's deadline.
        Box::pin(async move {
            self.shared.health.may_ask()?;
            // What ended since does not wait for longer than what waited longest.
            if waits > Duration::ZERO && !step::has_waited(&self.shared, waits).await? {
                return Ok(Swept::default());
            }
            step::sweep(&self.shared, limit).await
        })
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
        let kept = async move {
            if rules.len() > RULES_BYTES_MAX {
                return Err(StoreError::not_applied(Kind::Full));
            }
            let sql = "SELECT onceward.store_keep_rules($1, $2)";
            let parameters = [(&i64::from(policy) as _, Type::INT8), (&rules as _, Type::TEXT)];
            self.shared.plain()?.write(sql, &parameters).await.map(|_| ()).map_err(|failed| failed.error)
        };
        Box::pin(self.within(StoreError::unknown, kept))
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        let found = async move {
            let sql = "SELECT text FROM onceward.rules WHERE policy = $1";
            let rows = self.shared.plain()?.read(sql, &[(&i64::from(policy), Type::INT8)]).await?;
            Ok(rows.first().map(|row| row.get(0)))
        };
        Box::pin(self.within(StoreError::not_applied, found))
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.shared.figures.of(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    fn stats(&self) -> Stats {
        let (figures, concerns) = self.shared.health.shown();
        let Usage { records, bytes } = self.shared.figures.total().unwrap_or(figures.estimate);
        Stats {
            records,
            records_max: None,
            open: figures.open,
            bytes,
            accepts_claims: self.shared.health.may_ask().is_ok(),
            concerns,
            cache: None,
        }
    }
}
