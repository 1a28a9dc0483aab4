//! This crate's own stores as subjects.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onceward_core::key::RecordId;

use super::{Hand, Harness, Raw, Subject};
use crate::{
    Store as _,
    circuit::Breaker,
    fallback::Fallback,
    guarded::Guarded,
    memory::{Bounds, Clock, Memory},
};

/// The memory store on a clock of the case's.
#[derive(Clone, Copy, Debug)]
pub struct OnMemory;

/// A clock that only a case moves: it stands still, so that many grants share one microsecond.
#[derive(Clone, Debug)]
pub(super) struct StillClock(pub(super) Arc<AtomicU64>);

impl StillClock {
    /// In the summer of 2025.
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_750_000_000_000_000)))
    }

    pub(super) fn clock(&self) -> Clock {
        Clock::Manual(Arc::clone(&self.0))
    }
}

impl Hand for StillClock {
    fn turn(&self, micros: i64) {
        let turned = |now: u64| now.checked_add_signed(micros);
        // Only the case's own task moves it, and never out of range.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, turned);
    }
}

impl Raw for Memory {
    fn read(&self, id: &RecordId) -> Option<Bytes> {
        self.bytes_of(id)
    }

    fn overwrite(&self, id: &RecordId, bytes: &[u8]) {
        Self::overwrite(self, id, bytes);
    }
}

impl Subject for OnMemory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        let hand = StillClock::new();
        let store = Memory::new(Bounds::default(), hand.clock());
        Box::pin(std::future::ready(Harness {
            store: Arc::new(store.clone()),
            clock: Some(Arc::new(hand)),
            raw: Some(Arc::new(store)),
            rounds: 300,
            keep: None,
        }))
    }
}

/// The memory store on the machine's clock, which no case can move: what a store across a network
/// looks like, and the proof that the cases can wait.
#[derive(Clone, Copy, Debug)]
pub struct OnMemoryWaiting;

impl Subject for OnMemoryWaiting {
    fn name(&self) -> &'static str {
        "memory-waiting"
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        let store = Memory::new(Bounds::default(), Clock::system());
        Box::pin(std::future::ready(Harness {
            store: Arc::new(store.clone()),
            clock: None,
            raw: Some(Arc::new(store)),
            rounds: 100,
            keep: None,
        }))
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("fence_no_precision_loss_above_2p53", "its clock stands before 2255"),
            ("fence_increases_after_release_with_the_clock_set_back", "its clock cannot be set"),
        ]
    }
}

/// The memory store beside another.
#[derive(Clone, Copy, Debug)]
pub enum OnFallback {
    /// Before a fallback that is never needed.
    FirstIsWell,
    /// As the fallback of one that never answers.
    FirstIsDead,
}

impl Subject for OnFallback {
    fn name(&self) -> &'static str {
        match self {
            Self::FirstIsWell => "fallback",
            Self::FirstIsDead => "fallback-first-dead",
        }
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        /// Longer than any case takes.
        const LONG: Duration = Duration::from_secs(60);
        Box::pin(async {
            let harness = OnMemory.open().await;
            let other = Memory::default();
            other.set_replica(matches!(self, Self::FirstIsDead));
            // Open from its first call on.
            let breaker = Breaker { failures: 1, open: LONG };
            let well = Arc::new(Guarded::new(Arc::clone(&harness.store), LONG, Breaker::default()));
            let other = Arc::new(Guarded::new(Arc::new(other), LONG, breaker));
            let store = match self {
                Self::FirstIsWell => Fallback::new(well, other),
                Self::FirstIsDead => Fallback::new(other, well),
            };
            let is_dead = matches!(self, Self::FirstIsDead);
            store.fall_back(Arc::new(move |_, _| is_dead));
            Harness { store: Arc::new(store), ..harness }
        })
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        const ABSENT: &str =
            "reads a key that the second does not have: whether it is nowhere only the first could say";
        const SWEPT: &str = "a sweep is one of the first; what has ended in the second goes beside";
        match self {
            Self::FirstIsWell => &[],
            Self::FirstIsDead => &[
                ("a_body_ends_before_its_fact", SWEPT),
                ("claim_quota_per_tenant", SWEPT),
                ("complete_absent_resurrects_or_absent_per_mode", ABSENT),
                ("fence_increases_after_expiry", ABSENT),
                ("fence_increases_after_forget_reuse", ABSENT),
                ("fence_increases_after_release", ABSENT),
                ("fence_increases_after_release_with_the_clock_set_back", ABSENT),
                ("fence_no_precision_loss_above_2p53", ABSENT),
                ("forget_absent_creates_tombstone", ABSENT),
                ("get_is_pure", ABSENT),
                ("release_by_owner_after_unknown_claim", ABSENT),
                ("release_makes_absent", ABSENT),
                ("renew_absent_lost", ABSENT),
                ("rules_are_found_under_their_policy", "rules count as kept once the first has them"),
                ("sweep_never_removes_inprogress", SWEPT),
                ("tombstone_expires_to_absent", ABSENT),
            ],
        }
    }
}

/// The embedded store in a folder of its own, on a clock of the case's.
#[cfg(feature = "embedded")]
#[derive(Clone, Copy, Debug)]
pub struct OnEmbedded;

/// A folder that goes with the case.
#[cfg(feature = "embedded")]
pub(super) struct Folder(pub(super) std::path::PathBuf);

#[cfg(feature = "embedded")]
impl Folder {
    pub(super) fn new() -> Self {
        let mut name = [0; 8];
        getrandom::fill(&mut name).unwrap_or_else(|error| panic!("no randomness: {error}"));
        Self(std::env::temp_dir().join(format!("onceward-{:016x}", u64::from_le_bytes(name))))
    }
}

#[cfg(feature = "embedded")]
impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind lies in the machine's folder for such.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(feature = "embedded")]
impl Subject for OnEmbedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        use crate::{
            embedded::{self, Embedded, Options},
            log,
        };
        Box::pin(async {
            let hand = StillClock::new();
            let folder = Folder::new();
            let log = log::Options { segment_bytes: 8 << 20, pause: Duration::ZERO, ..log::Options::default() };
            let clock = embedded::Clock::Manual(Arc::clone(&hand.0));
            let store = Embedded::open(&folder.0, Options { log, clock, ..Options::default() }).await;
            let store = store.unwrap_or_else(|error| panic!("opening {}: {error}", folder.0.display()));
            Harness {
                store: Arc::new(store),
                clock: Some(Arc::new(hand)),
                raw: None,
                rounds: 50,
                keep: Some(Box::new(folder)),
            }
        })
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        &[(
            "schema_version_forward_refused",
            "its bytes are under the log's own version and checksums: the tests of the log show it",
        )]
    }
}
