//! Onceward's store contract, its stores, and the list of cases that every store passes.
//!
//! Stores do not decide. They compare and set, and return their own time; `onceward-core` decides
//! on what they returned.
//!
//! # The contract
//!
//! Every implementation of [`Store`] keeps these rules; the conformance cases name them.
//!
//! - **S1** Each verb is one atomic step. Between its read and its write nobody else writes.
//! - **S2** Each answer carries the store's own time of that step. No other clock counts, and it
//!   never goes back, not across restarts either.
//! - **S3** `insert` makes the record only where there is none, or where the one there has ended.
//!   Otherwise it returns the record as it is. It is never an error that a record is there.
//! - **S4** A new fence is larger than every fence that any record of the key ever had, whatever
//!   happened between: takeover, release, forgetting, expiry, the clock set back.
//! - **S5** `Holder(fence)` meets a record in flight under that fence, whatever its revision and
//!   whether or not its lease is over. `Seen(fence, revision)` meets exactly the record that was read.
//! - **S6** Every applied write raises the revision, renewals included.
//! - **S7** A write that did not meet its record changes nothing and returns what is there.
//! - **S8** A write ends in one of three ways: applied, not applied, unknown. Unknown is an error
//!   with [`Applied::Unknown`], never folded into "failed".
//! - **S9** What was answered is durable, to the degree that the store claims, before the answer.
//! - **S10** A lease never deletes: a record in flight or unknown has no end of its own.
//! - **S11** A settled record is there until its end, byte for byte, and gone for every verb after
//!   it, without waiting for a sweep. A body that ends before its record may go from then on; what
//!   decides ([`Outcome::is_bare`](onceward_core::outcome::Outcome::is_bare)) does not wait for it.
//! - **S12** Reading changes nothing.
//! - **S13** Damage is an error ([`Kind::Damaged`]), never an absence.
//! - **S14** Full means that new claims are refused and nothing is evicted; holders still finish.
//! - **S15** `watch` wakes after any write to the key since it was called; it may wake without one.
//! - **S16** A session that is known to be over holds nothing: its records come back with their
//!   lease over, and it writes nothing more ([`Kind::SessionOver`]).
//! - **S17** Fingerprint rules that are kept under a policy are found under it by every process of the
//!   store, after a restart too, until [`RULES_MAX`] later ones have come.
//! - **S18** [`Store::usage`] has each answered write of this process in it, a tenant's own and no other's, after a
//!   restart too; those of other processes of the store from when they were last counted.
//!
//! # Layout
//!
//! [`memory`] the reference, [`embedded`] the durable store of one process over [`log`], `postgres` the store of
//! several processes in a PostgreSQL database, `redis` that in Redis, `watch` the waking of waiters inside a process, `conformance` the cases;
//! [`journaled`] the protocol of Redis in front of a journal, [`fallback`] a second store for the time in which the first does not answer; `tiered` Redis in front of a database; [`effects`] what an upstream wrote down beside, `doctor` what is found of a store's servers.

use std::{fmt, future::Future, ops::Add, pin::Pin, sync::Arc, time::Duration};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, Record, Revision, Seen},
};

pub use self::durability::{Durabilities, Durability};
pub use self::error::{Applied, Kind, StoreError};
pub use self::watch::Watch;

pub mod circuit;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub mod doctor;
mod durability;
pub mod effects;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
pub mod fallback;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod figures;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod forgotten;
pub mod guarded;
pub mod journaled;
mod lists;
#[cfg(feature = "embedded")]
pub mod log;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
mod recent;
#[cfg(feature = "redis")]
pub mod redis;
mod sync;
#[cfg(feature = "redis")]
pub mod tiered;
mod watch;

/// How many fingerprint rules a store keeps; the oldest go first.
pub const RULES_MAX: usize = 256;
/// The longest text of one of them.
pub const RULES_BYTES_MAX: usize = 1 << 20;

/// What a verb returns: boxed, so that stores can be chosen at run time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Is told of keys that were forgotten or erased: of one, or of all where some may have been missed. It must not wait.
pub type HearsForgotten = Arc<dyn Fn(Option<RecordId>) + Send + Sync>;

/// Whether a claim of this key, on this route, goes to the fallback where the store does not answer. It must not wait.
pub type FallsBack = Arc<dyn Fn(&RecordId, &str) -> bool + Send + Sync>;

/// What an insert found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Insert {
    /// There was none; now there is.
    Inserted {
        /// Of the new record.
        fence: Fence,
        /// Store time.
        now: Micros,
    },
    /// It was there.
    Existing {
        /// As it is.
        record: Box<Record>,
        /// Store time.
        now: Micros,
    },
}

/// What a conditional write found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// It met its record.
    Applied {
        /// Of the record now; of a removed one, its last.
        fence: Fence,
        /// Of the record now.
        revision: Revision,
        /// Store time.
        now: Micros,
    },
    /// It did not; nothing has changed.
    Lost {
        /// What is there instead.
        record: Option<Box<Record>>,
        /// Store time.
        now: Micros,
    },
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The record, unless it has ended.
    pub record: Option<Record>,
    /// Store time.
    pub now: Micros,
}

/// Which records a scan returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state, as derived at the time of the scan.
    pub state: Option<Seen>,
    /// Of this route.
    pub route: Option<String>,
    /// Written at or after this time.
    pub since: Option<Micros>,
}

impl Filter {
    /// Whether it lets `record` through at `now`.
    #[must_use]
    pub fn admits(&self, record: &Record, now: Micros) -> bool {
        self.state.is_none_or(|state| record.seen_at(now) == state)
            && self.route.as_ref().is_none_or(|route| record.facts.route == *route)
            && self.since.is_none_or(|since| record.stored.written_at >= since)
    }
}

/// One page of a scan, in the order of the ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most as many as asked for.
    pub records: Vec<(RecordId, Record)>,
    /// Where to go on; `None` at the end.
    pub next: Option<RecordId>,
    /// Store time.
    pub now: Micros,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Ended records removed.
    pub removed: u64,
    /// Whether ended records may be left.
    pub more: bool,
}

impl Add for Swept {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { removed: self.removed + other.removed, more: self.more || other.more }
    }
}

/// What a tenant takes up in a store; quotas are held against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its records, until a sweep has removed them.
    pub records: u64,
    /// Bytes that they take; of a store that rounds, at most a sixteenth too many.
    pub bytes: u64,
}

/// A store's own figures, for metrics and readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records that have not ended, or have not been noticed to.
    pub records: u64,
    /// New claims are refused at so many; `None` where nothing but memory or disk bounds them.
    pub records_max: Option<u64>,
    /// In flight or unknown.
    pub open: u64,
    /// Bytes that records take, in memory or on disk.
    pub bytes: u64,
    /// Whether new claims are taken.
    pub accepts_claims: bool,
    /// What is not well, in words; empty where all is.
    pub concerns: Vec<String>,
    /// Of a store that may lose what it acknowledged; `None` of one that does not.
    pub cache: Option<Cache>,
}

/// What a store in a cache says of its keeping, for metrics and for routes that stop after a loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cache {
    /// How often it was found emptied, started again or failed over since this process began.
    pub losses: u64,
    /// The last of these, the oldest first.
    pub last: Vec<Loss>,
    /// Keys that the servers evicted since they started.
    pub evicted: u64,
    /// Bytes of memory that the servers use, other keys' among them.
    pub memory: u64,
    /// What they may use; zero where nothing bounds it.
    pub memory_max: u64,
}

/// A time in which a store may have lost what it acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// How many of its partitions it is about.
    pub partitions: usize,
    /// What was written from this store's time on may be lost: the latest up to which all is certainly there, or zero
    /// where nothing of before is, or nobody knows.
    pub from: Micros,
    /// The store's time at which it was noticed.
    pub to: Micros,
    /// What was found.
    pub why: &'static str,
}

/// A place where records are kept. The rules are this crate's front page.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Its name in metrics and logs.
    fn kind(&self) -> &'static str;

    /// Makes the record in flight under a new fence, unless one is there. Repeatable with the
    /// same claim id: then the record there is the caller's own.
    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert>;

    /// Replaces the record that `write.expect` means.
    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write>;

    /// Renews the holder's lease; never shortens it.
    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write>;

    /// Removes the record that `expect` means; its fence is remembered.
    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write>;

    /// Reads.
    fn get(&self, id: RecordId) -> Answer<'_, Read>;

    /// Reads many: those after `after` that `filter` admits, at most `limit` (a bound on the
    /// answer; a page may hold fewer and still have a next).
    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page>;

    /// Removes at most `limit` records that ended `waits` ago or earlier; perhaps later ones too. Until it is called
    /// without a wait, other upkeep of the store waits where it can.
    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept>;

    /// Wakes after the next write to the key.
    fn watch(&self, id: RecordId) -> Watch;

    /// From now on `hears` is told of what processes of the store forget and erase, as far as that is pushed; the first
    /// who asks is. Of a store that one process has it hears nothing: that process knows.
    fn tell_forgotten(&self, hears: HearsForgotten) {
        drop(hears);
    }

    /// Which claims a store that has a [`fallback`] makes there; the first word stays. Any other has none.
    fn fall_back(&self, when: FallsBack) {
        drop(when);
    }

    /// How each route's records are kept, of a store that offers more than one way; the first word stays, and changes with
    /// what it points to. Any other store has one place for all.
    fn keep_by_route(&self, routes: Arc<Durabilities>) {
        drop(routes);
    }

    /// Whether the record of `id` was in the fallback when it was looked at last, without I/O.
    fn is_in_fallback(&self, id: &RecordId) -> bool {
        let _ = id;
        false
    }

    /// Keeps the fingerprint rules that records name by `policy`. Repeatable; at most [`RULES_BYTES_MAX`].
    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()>;

    /// The rules kept under `policy`.
    fn rules(&self, policy: u32) -> Answer<'_, Option<String>>;

    /// What the records of a tenant take up, without I/O. Writes that are on their way may not be in it yet.
    fn usage(&self, tenant: &str) -> Usage;

    /// How long ago a loss of records was noticed last, without I/O; never of a store that keeps what it acknowledged.
    fn lost_ago(&self) -> Option<Duration>;

    /// The store's figures, without I/O.
    fn stats(&self) -> Stats;
}
