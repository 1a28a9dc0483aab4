//! The cases that every store passes, and the list of where each runs.
//!
//! The names are those of `docs/guarantees.md`, section 1.5, and two more. Most are rows: what was
//! done before, what is done, what it says, what a read shows afterwards. The rest are races and
//! faults, in code. A store's tests implement [`Subject`] and say `conformance_tests!`:
//!
//! ```no_run
//! onceward_store::conformance_tests!(memory, onceward_store::conformance::OnMemory);
//! ```
//!
//! which makes one test a name. Nothing is left out in silence: a subject names what it cannot run
//! and why, [`list`] prints it, and [`check`] fails where a name runs nowhere.
//!
//! # Layout
//!
//! `drive` a request's claim and a holder's or operator's step on any store · `script` the
//! language of the rows and the checks made after each step · `rows` the rows · `races`, `content`,
//! `faults` the cases in code · `postgres`, `redis`, `fallback`, `tiered` and `journaled` the stores across a network as subjects · `hooks` those that only the memory store can show, with its hooks
//!
//! Not a stable interface: names and rows follow the guarantees.

use std::{
    any::Any,
    collections::VecDeque,
    fmt::Write as _,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use onceward_core::key::RecordId;

use crate::Store;

mod content;
mod drive;
#[cfg(all(feature = "postgres", feature = "redis"))]
mod fallback;
mod faults;
mod hooks;
#[cfg(all(feature = "embedded", feature = "postgres", feature = "redis"))]
mod journaled;
#[cfg(feature = "postgres")]
mod postgres;
mod races;
#[cfg(feature = "redis")]
mod redis;
mod rows;
mod script;
mod subject;
#[cfg(all(feature = "postgres", feature = "redis"))]
mod tiered;

#[cfg(all(feature = "postgres", feature = "redis"))]
pub use self::fallback::{OnFallbackOfRedis, Stoppable};
#[cfg(all(feature = "embedded", feature = "postgres", feature = "redis"))]
pub use self::journaled::{OnJournaled, OnJournaledAlone};
#[cfg(feature = "postgres")]
pub use self::postgres::{Database, MOVABLE_CLOCK, OnPostgres};
#[cfg(feature = "redis")]
pub use self::redis::{OnRedis, Servers};
#[cfg(feature = "embedded")]
pub use self::subject::OnEmbedded;
pub use self::subject::{OnFallback, OnMemory, OnMemoryWaiting};
#[cfg(all(feature = "postgres", feature = "redis"))]
pub use self::tiered::OnTiered;

/// What a case returns; it panics where a rule is broken.
pub type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A store under test.
pub trait Subject: Send + Sync + 'static {
    /// Its name in the list.
    fn name(&self) -> &'static str;

    /// A fresh store.
    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>>;

    /// The names that it cannot run, each with the reason.
    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
}

/// One fresh store with what a case may do to it.
pub struct Harness {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Moves the store's clock. Where it is `None`, cases use short leases and wait for the
    /// store's own time.
    pub clock: Option<Arc<dyn Hand>>,
    /// Reads and writes records behind the store's back.
    pub raw: Option<Arc<dyn Raw>>,
    /// How many rounds a race runs.
    pub rounds: u64,
    /// Kept until the case ends: a folder, a server.
    pub keep: Option<Box<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Harness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Harness({})", self.store.kind())
    }
}

/// Moves a store's clock.
pub trait Hand: Send + Sync {
    /// By so many microseconds, back where negative.
    fn turn(&self, micros: i64);
}

/// A record's stored bytes, past the store.
pub trait Raw: Send + Sync {
    /// As they are kept.
    fn read(&self, id: &RecordId) -> Option<Bytes>;
    /// Puts others in their place.
    fn overwrite(&self, id: &RecordId, bytes: &[u8]);
}

/// Where a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On every store.
    EveryStore,
    /// On the core with the memory store's hooks, because it is about what a store of one process
    /// cannot meet. The text says what the real server's own case will be.
    Hooks(&'static str),
}

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name in the guarantees, and of its test.
    pub name: &'static str,
    /// The rules of a store that it is about, as this crate's front page numbers them; `core` where
    /// it is about what is made of them.
    pub rule: &'static str,
    /// Where it runs.
    pub place: Place,
    act: Act,
}

#[derive(Clone, Copy)]
enum Act {
    Row(&'static script::Row),
    Code(fn(Harness) -> Run),
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.rule)
    }
}

impl Case {
    const fn row(row: &'static script::Row) -> Self {
        Self { name: row.name, rule: row.rule, place: Place::EveryStore, act: Act::Row(row) }
    }

    const fn code(name: &'static str, rule: &'static str, run: fn(Harness) -> Run) -> Self {
        Self { name, rule, place: Place::EveryStore, act: Act::Code(run) }
    }

    const fn hooks(name: &'static str, rule: &'static str, server: &'static str, run: fn(Harness) -> Run) -> Self {
        Self { name, rule, place: Place::Hooks(server), act: Act::Code(run) }
    }

    /// Runs it.
    ///
    /// # Panics
    /// Where the store breaks the rule.
    #[must_use]
    pub fn run(&self, mut harness: Harness) -> Run {
        let keep = harness.keep.take();
        let running = match self.act {
            Act::Row(row) => Box::pin(script::play(row, harness)),
            Act::Code(run) => run(harness),
        };
        Box::pin(async move {
            running.await;
            drop(keep);
        })
    }
}

/// Every case, in the order of the guarantees.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = rows::ROWS.iter().map(Case::row).collect();
    for list in [races::CASES, content::CASES, faults::CASES, hooks::CASES] {
        cases.extend_from_slice(list);
    }
    cases.sort_by_key(|case| NAMES.iter().position(|name| *name == case.name));
    cases
}

/// The stores of this crate.
#[must_use]
pub fn subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(OnMemory),
        Box::new(OnMemoryWaiting),
        Box::new(OnFallback::FirstIsWell),
        Box::new(OnFallback::FirstIsDead),
        #[cfg(feature = "embedded")]
        Box::new(OnEmbedded),
        #[cfg(feature = "postgres")]
        Box::new(OnPostgres { name: "postgres", database: None }),
        #[cfg(feature = "postgres")]
        Box::new(OnPostgres { name: "postgres-pooled", database: None }),
        #[cfg(feature = "redis")]
        Box::new(OnRedis { name: "redis", servers: None }),
        #[cfg(feature = "redis")]
        Box::new(OnRedis { name: "redis-watch", servers: None }),
        #[cfg(feature = "redis")]
        Box::new(OnRedis { name: "redis-acl", servers: None }),
        #[cfg(feature = "redis")]
        Box::new(OnRedis { name: "redis-valkey", servers: None }),
        #[cfg(feature = "redis")]
        Box::new(OnRedis { name: "redis-sentinel", servers: None }),
        #[cfg(feature = "redis")]
        Box::new(OnRedis { name: "redis-sentinel-watch", servers: None }),
        #[cfg(feature = "redis")]
        Box::new(OnRedis { name: "redis-cluster", servers: None }),
        #[cfg(all(feature = "postgres", feature = "redis"))]
        Box::new(OnFallbackOfRedis { database: None, first: None }),
        #[cfg(all(feature = "postgres", feature = "redis"))]
        Box::new(OnTiered { in_cache: false, database: None, servers: None }),
        #[cfg(all(feature = "postgres", feature = "redis"))]
        Box::new(OnTiered { in_cache: true, database: None, servers: None }),
        #[cfg(all(feature = "embedded", feature = "postgres", feature = "redis"))]
        Box::new(OnJournaled { database: None, servers: None }),
        #[cfg(all(feature = "embedded", feature = "postgres", feature = "redis"))]
        Box::new(OnJournaledAlone { database: None }),
    ]
}

/// Why `subject` does not run `case`; `None` where it does.
#[must_use]
pub fn left_out(subject: &dyn Subject, case: &Case) -> Option<String> {
    if let Place::Hooks(server) = case.place {
        return (subject.name() != OnMemory.name()).then(|| format!("runs on core and memory: {server}"));
    }
    subject.cannot().iter().find(|(name, _)| *name == case.name).map(|(_, why)| (*why).to_owned())
}

/// What is wrong with the list itself: a name without a case or with two, a case that runs
/// nowhere, a reason that names nothing or says nothing.
#[must_use]
pub fn check(subjects: &[Box<dyn Subject>]) -> Vec<String> {
    let cases = cases();
    let mut wrong = Vec::new();
    for name in NAMES {
        let count = cases.iter().filter(|case| case.name == *name).count();
        if count != 1 {
            wrong.push(format!("{name} has {count} cases"));
        }
    }
    for case in &cases {
        if !NAMES.contains(&case.name) {
            wrong.push(format!("{} is no name of the guarantees", case.name));
        }
        if subjects.iter().all(|subject| left_out(&**subject, case).is_some()) {
            wrong.push(format!("{} runs on no store", case.name));
        }
    }
    for subject in subjects {
        for (name, why) in subject.cannot() {
            if !NAMES.contains(name) || why.is_empty() {
                wrong.push(format!("{} leaves out `{name}` because `{why}`", subject.name()));
            }
        }
    }
    wrong
}

/// One line a case: its number, name, rules and where it runs.
#[must_use]
pub fn list(subjects: &[Box<dyn Subject>]) -> String {
    let mut out = String::new();
    for (index, case) in cases().iter().enumerate() {
        let runs: Vec<&str> =
            subjects.iter().filter(|s| left_out(&***s, case).is_none()).map(|subject| subject.name()).collect();
        let _ = write!(out, "{:2} {:52} {:12} {}", index + 1, case.name, case.rule, runs.join(", "));
        if let Place::Hooks(server) = case.place {
            let _ = write!(out, " (core with memory's hooks; {server})");
        }
        for subject in subjects.iter().filter(|subject| subject.name() != OnMemory.name()) {
            if let Some(why) = left_out(&**subject, case).filter(|_| case.place == Place::EveryStore) {
                let _ = write!(out, "; not {}: {why}", subject.name());
            }
        }
        out.push('\n');
    }
    out
}

/// Runs one case on one subject, on a runtime of its own with several threads. What
/// `conformance_tests!` calls.
///
/// # Panics
/// Where the case fails, is unknown, or runs longer than five minutes.
pub fn run_one(subject: &dyn Subject, name: &str) {
    let Some(case) = cases().into_iter().find(|case| case.name == name) else { panic!("there is no case `{name}`") };
    if let Some(why) = left_out(subject, &case) {
        println!("{name} is left out on {}: {why}", subject.name());
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(async {
        let harness = subject.open().await;
        let limit = Duration::from_secs(300);
        assert!(tokio::time::timeout(limit, case.run(harness)).await.is_ok(), "{name} is stuck");
    });
}

/// Runs every case on one subject, some at a time, and tells of each. For stores whose servers the test brings, which
/// would each be started anew for tests of their own.
///
/// # Panics
/// Where a case fails, with the names of all that did.
pub fn run_all(subject: &dyn Subject, at_once: usize) {
    let names = Mutex::new(NAMES.iter().copied().collect::<VecDeque<_>>());
    let failed = Mutex::new(Vec::new());
    let lock = |names: &Mutex<VecDeque<&'static str>>| names.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(name) = lock(&names) {
                    let case = std::panic::catch_unwind(AssertUnwindSafe(|| run_one(subject, name)));
                    println!("{}: {name} {}", subject.name(), if case.is_ok() { "holds" } else { "FAILED" });
                    if case.is_err() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "{} of {} cases failed: {failed:?}", failed.len(), NAMES.len());
}

/// Gives the frozen list of names to a macro: the guarantees' 1 to 80, then those that came after.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_names {
    ([$($to:tt)*] $args:tt) => {
        $($to)* ! {
            $args
            claim_absent_grants_fence
            claim_race_n_single_winner
            claim_inflight_other_owner
            claim_reentrant_same_owner_same_fence
            claim_reply_lost_then_retry_reentrant
            claim_completed_replays_bytes_exact
            claim_mismatch_inprogress
            claim_mismatch_completed
            claim_mismatch_precedes_inflight
            claim_tombstone_gone_precedes_mismatch
            claim_failed_retryable_before_not_before
            claim_failed_retryable_after_not_before_attempt_increments
            claim_failed_final_replays
            claim_expired_phase_c_takes_over
            claim_expired_phase_d_block_is_indeterminate
            claim_expired_phase_d_retry_sets_amb_and_new_fence
            claim_epoch_mismatch_writes_nothing
            claim_session_fenced_writes_nothing
            claim_clock_guard_forward
            claim_clock_guard_backward_vs_hwm
            claim_on_replica_refused
            claim_quota_per_tenant
            fence_strictly_increases_across_takeover
            fence_increases_after_release
            fence_increases_after_forget_reuse
            fence_increases_after_expiry
            fence_increases_across_epoch_after_meta_loss
            fence_no_precision_loss_above_2p53
            renew_extends
            renew_never_shortens
            renew_late_same_fence_ok
            renew_after_takeover_lost
            renew_absent_lost
            renew_completed_lost
            ckpt_monotone_seq
            ckpt_replay_idempotent
            ckpt_stale_fence_lost
            ckpt_dispatched_sets_phase
            ckpt_returned_to_next_claimant
            complete_ok
            complete_after_lease_expiry_same_fence_ok
            complete_stale_fence_fenced_and_event
            complete_twice_same_digest_already
            complete_twice_other_digest_conflict
            complete_after_tombstone_erased
            complete_absent_resurrects_or_absent_per_mode
            complete_body_visible_only_with_state
            complete_race_with_takeover_exactly_one
            complete_fenced_variant_after_lock_wait
            fail_final_then_claim_replays
            fail_retryable_with_amb_becomes_indeterminate
            fail_after_complete_too_late
            release_makes_absent
            release_with_amb_stays_indeterminate
            release_stale_fenced
            release_by_owner_after_unknown_claim
            forget_busy_refused
            forget_force_fences_holder
            forget_erases_body_and_fp_everywhere
            forget_absent_creates_tombstone
            tombstone_expires_to_absent
            resolve_executed_replays
            resolve_not_executed_allows_claim
            resolve_races_late_complete_one_wins
            sweep_never_removes_inprogress
            lease_expiry_never_deletes
            id_length_prefix_no_collision
            scope_isolation_same_key_two_tenants
            partition_count_mismatch_refuses_start
            binary_safe_bodies_headers
            max_size_body_boundary
            get_is_pure
            derived_state_needs_no_sweeper
            watch_conflict_retries_bounded
            script_missing_NOSCRIPT_reload
            cluster_MOVED_ASK_mid_claim
            schema_version_forward_refused
            forget_force_reuse_on_inprogress_refused
            claim_session_not_member_refused
            confirmed_flag_bound_to_epoch
            renewal_after_the_read_beats_the_takeover
            rules_are_found_under_their_policy
            fence_increases_after_release_with_the_clock_set_back
            a_body_ends_before_its_fact
        }
    };
}

/// Makes a module with one test for each name, run on a [`Subject`].
#[macro_export]
macro_rules! conformance_tests {
    ($module:ident, $subject:expr) => {
        mod $module {
            $crate::conformance_names! { [$crate::conformance_test] [$subject] }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_test {
    ([$subject:expr] $($name:ident)*) => {$(
        #[test]
        #[expect(non_snake_case, reason = "some names hold a server's own word")]
        fn $name() {
            $crate::conformance::run_one(&$subject, stringify!($name));
        }
    )*};
}

macro_rules! names {
    ([] $($name:ident)*) => {
        /// Every name, in order.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
conformance_names! { [names] [] }
