//! What threads share by hand, under a scheduler that chooses every interleaving: the waiters of a flight, the watchers
//! of a store, the answers that are remembered of it, and the log's group commit.
//!
//! The files are those of the product. They take their primitives from `crate::sync`, and here that is shuttle's, which
//! runs all threads one at a time, switches at each lock, condition and atomic, and repeats a run from its schedule. What
//! waits for ever is a failure.
//!
//! # What this does not show
//!
//! Shuttle's atomics are sequentially consistent: that an ordering is too weak would not be seen. tokio's own `oneshot`
//! and `Notify` are single steps here; tokio has its own models for them. `layer/detach.rs` has nothing to choose: its
//! two halves are polled by one task, and dropped by it.

// What is included has tests of its own, over its own primitives; they run where it stands.
#![cfg(not(test))]

#[path = "../../crates/store/src/log/mod.rs"]
pub mod log;
pub mod log_model;
#[path = "../../crates/layer/src/remember.rs"]
#[expect(dead_code, reason = "the layer uses the rest of it")]
mod remember;
pub mod remembered;
/// As the product's, with a scheduler behind it.
mod sync {
    pub(crate) use shuttle::sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
    };
    pub(crate) use shuttle::thread;
}
#[path = "../../crates/layer/src/wait.rs"]
#[expect(dead_code, reason = "the layer uses the rest of it")]
mod wait;
pub mod waiters;
#[path = "../../crates/store/src/watch.rs"]
#[expect(dead_code, unreachable_pub, reason = "the store exports it")]
mod watch;
pub mod watchers;

use shuttle::Config;
use shuttle::scheduler::{PctScheduler, RandomScheduler};

/// Runs a model under many schedules: threads chosen evenly, and threads with priorities that change a few times, which
/// finds what needs one of them to be slow for long. A failure prints the schedule, and this the seed.
pub fn check(seed: u64, schedules: usize, model: fn()) {
    let said = format!("seed {seed}");
    let config = Config::new();
    eprintln!("{said}: {schedules} schedules, twice");
    shuttle::Runner::new(RandomScheduler::new_from_seed(seed, schedules), config.clone()).run(model);
    shuttle::Runner::new(PctScheduler::new_from_seed(seed, 3, schedules), config).run(model);
}
