//! Safeties that can be taken out, one at a time, to see that the crash checker misses them.
//!
//! Each place that keeps a safety asks [`is`] for its mutant. Without the feature `mutants`, which no release has, the
//! answer is a constant `false`.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!(
    "a build with the feature `mutants` can break every promise: it is for the crash checker, never for a release"
);

/// A safety that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// A claim is known to its process only, until the answer is recorded.
    ClaimNotDurable = 1,
    /// An answer is given before it is recorded.
    CompletionNotDurable,
    /// An execution ends with its client's connection.
    TiedToClient,
    /// A conditional write does not compare fence and revision.
    FenceNotCompared,
    /// A claim whose lease is over counts as no record.
    LeaseDeletes,
    /// Claims of a process that is gone keep their lease.
    StaleSession,
    /// An outcome that is unknown counts as one that failed: the key is freed.
    UnknownAsFailed,
    /// The caller is not part of the record id.
    PrincipalLeftOut,
    /// A waiter that is woken executes without looking at the record again.
    WaitersNotReading,
    /// A release frees the key although an earlier attempt is unknown.
    ReleaseAfterUnknown,
    /// What asks for `strict` is kept in Redis alone, which grants it.
    StrictInCache,
    /// A claim counts as no record, whatever its lease.
    InsertOverClaim,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ClaimNotDurable,
        Self::CompletionNotDurable,
        Self::TiedToClient,
        Self::FenceNotCompared,
        Self::LeaseDeletes,
        Self::StaleSession,
        Self::UnknownAsFailed,
        Self::PrincipalLeftOut,
        Self::WaitersNotReading,
        Self::ReleaseAfterUnknown,
        Self::StrictInCache,
        Self::InsertOverClaim,
    ];

    /// As `ONCEWARD_MUTANT` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClaimNotDurable => "claim-not-durable",
            Self::CompletionNotDurable => "completion-not-durable",
            Self::TiedToClient => "tied-to-client",
            Self::FenceNotCompared => "fence-not-compared",
            Self::LeaseDeletes => "lease-deletes",
            Self::StaleSession => "stale-session",
            Self::UnknownAsFailed => "unknown-as-failed",
            Self::PrincipalLeftOut => "principal-left-out",
            Self::WaitersNotReading => "waiters-not-reading",
            Self::ReleaseAfterUnknown => "release-after-unknown",
            Self::StrictInCache => "strict-in-cache",
            Self::InsertOverClaim => "insert-over-claim",
        }
    }

    /// The mutant of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| mutant.name() == name)
    }
}

#[cfg(feature = "mutants")]
static CHOSEN: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(0);

/// From here on this process lacks that safety.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Mutant) {
    CHOSEN.store(mutant as u8, core::sync::atomic::Ordering::Relaxed);
}

/// Whether this safety is taken out.
#[cfg(feature = "mutants")]
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    CHOSEN.load(core::sync::atomic::Ordering::Relaxed) == mutant as u8
}

/// Whether this safety is taken out: it is not.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_is_found_by_its_name_and_none_is_chosen_by_itself() {
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::named(mutant.name()), Some(mutant));
            assert!(!is(mutant));
        }
        assert_eq!(Mutant::named("no-such-mutant"), None);
    }
}
