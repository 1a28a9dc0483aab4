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
    /// A claim leaves its view before it is in the spool.
    GuardEndsEarly,
    /// A view is acknowledged while a claim of the one before is on its way.
    AckInsideGuard,
    /// A view is acknowledged before all that was granted is in the journal.
    AckBeforeDrain,
    /// A claim is sent that is not in the spool.
    NotSpooled,
    /// A claim comes back from the journal as not sent.
    HydrateKeepsPhase,
    /// A claim that a stale replica says was not sent is believed.
    StalePhase,
    /// A view is warm before Redis has what the journal has.
    WarmEarly,
    /// A session claims before its member row is past losing.
    JoinAtOnce,
    /// What the database may have lost is not shipped again.
    NotShippedAgain,
    /// What was shipped is forgotten before it is past losing.
    WindowNotKept,
    /// A session is retired that may still claim.
    RetireWithoutShutOut,
    /// A session is retired whose claims are not in the journal.
    RetireWithoutDrain,
    /// What is erased is erased in Redis alone.
    ForgetNotJournaled,
    /// A view that is not warm grants without the journal's row.
    NoConfirm,
    /// An answer is given that is not in the spool.
    OutcomeNotSpooled,
    /// A claim whose answer was lost, and that recognises itself, is not in the spool.
    RepeatNotSpooled,
    /// An outcome of which nobody knows whether Redis has it is not looked at again.
    NotRepeated,
    /// A session whose process is gone is over although what is in its spool was not shipped.
    LeftNotShipped,
    /// A session is a member that is not in the spool.
    SessionNotSpooled,
    /// A partition's horizon is above what is in Redis alone.
    HorizonTooHigh,
    /// What is shipped late brings back what was swept.
    SweptComesBack,
    /// A claim of a stale replica that has no row any more stays.
    SweptStays,
    /// A view on the database takes steps of whoever it has not let in.
    DatabaseAdmitsAll,
    /// A view on the database takes steps whether it is active or not.
    DatabaseViewIgnored,
    /// A step of a session that is being retired is taken by the database.
    DatabaseTakesRetiring,
    /// What the database granted is not kept in case it loses it.
    DatabaseNotSpooled,
    /// A claim of an earlier view that nobody used stays over the journal's row.
    DeadClaimWins,
    /// And is put into the journal over it.
    DeadClaimDrained,
    /// Where views go on without a session, fences do not begin anew above what it can have been granted.
    ForceKeepsTheMark,
}

impl Mutant {
    /// Those that the crash checker looks for.
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

    /// Those of the journaled store's protocol, which the simulator looks for.
    pub const OF_VIEWS: [Self; 29] = [
        Self::GuardEndsEarly,
        Self::AckInsideGuard,
        Self::AckBeforeDrain,
        Self::NotSpooled,
        Self::HydrateKeepsPhase,
        Self::StalePhase,
        Self::WarmEarly,
        Self::JoinAtOnce,
        Self::NotShippedAgain,
        Self::WindowNotKept,
        Self::RetireWithoutShutOut,
        Self::RetireWithoutDrain,
        Self::ForgetNotJournaled,
        Self::NoConfirm,
        Self::OutcomeNotSpooled,
        Self::RepeatNotSpooled,
        Self::NotRepeated,
        Self::LeftNotShipped,
        Self::SessionNotSpooled,
        Self::HorizonTooHigh,
        Self::SweptComesBack,
        Self::SweptStays,
        Self::DatabaseAdmitsAll,
        Self::DatabaseViewIgnored,
        Self::DatabaseTakesRetiring,
        Self::DatabaseNotSpooled,
        Self::DeadClaimWins,
        Self::DeadClaimDrained,
        Self::ForceKeepsTheMark,
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
            Self::GuardEndsEarly => "guard-ends-early",
            Self::AckInsideGuard => "ack-inside-guard",
            Self::AckBeforeDrain => "ack-before-drain",
            Self::NotSpooled => "not-spooled",
            Self::HydrateKeepsPhase => "hydrate-keeps-phase",
            Self::StalePhase => "stale-phase",
            Self::WarmEarly => "warm-early",
            Self::JoinAtOnce => "join-at-once",
            Self::NotShippedAgain => "not-shipped-again",
            Self::WindowNotKept => "window-not-kept",
            Self::RetireWithoutShutOut => "retire-without-shut-out",
            Self::RetireWithoutDrain => "retire-without-drain",
            Self::ForgetNotJournaled => "forget-not-journaled",
            Self::NoConfirm => "no-confirm",
            Self::OutcomeNotSpooled => "outcome-not-spooled",
            Self::RepeatNotSpooled => "repeat-not-spooled",
            Self::NotRepeated => "not-repeated",
            Self::LeftNotShipped => "left-not-shipped",
            Self::SessionNotSpooled => "session-not-spooled",
            Self::HorizonTooHigh => "horizon-too-high",
            Self::SweptComesBack => "swept-comes-back",
            Self::SweptStays => "swept-stays",
            Self::DatabaseAdmitsAll => "database-admits-all",
            Self::DatabaseViewIgnored => "database-view-ignored",
            Self::DatabaseTakesRetiring => "database-takes-retiring",
            Self::DatabaseNotSpooled => "database-not-spooled",
            Self::DeadClaimWins => "dead-claim-wins",
            Self::DeadClaimDrained => "dead-claim-drained",
            Self::ForceKeepsTheMark => "force-keeps-the-mark",
        }
    }

    /// The mutant of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain(Self::OF_VIEWS).find(|mutant| mutant.name() == name)
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
        for mutant in Mutant::ALL.into_iter().chain(Mutant::OF_VIEWS) {
            assert_eq!(Mutant::named(mutant.name()), Some(mutant));
            assert!(!is(mutant));
        }
        assert_eq!(Mutant::named("no-such-mutant"), None);
    }
}
