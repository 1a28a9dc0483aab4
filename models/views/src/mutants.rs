//! Ways to get the protocol wrong. Those that begin with `Text` put back what GUARANTEES said before its amendments.

/// Lists the mutants, and their names as they are typed.
macro_rules! mutants {
    ($($(#[$about:meta])* $name:ident)*) => {
        /// One way to get it wrong.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Mutant { $($(#[$about])* $name),* }

        #[cfg(test)]
        pub(crate) const ALL: &[Mutant] = &[$(Mutant::$name),*];
    };
}

mutants! {
    // Views and retirement (2.4, 2.5).
    /// A time bound in the place of acknowledgements: the protocol that 2.2 refutes.
    Naive
    /// Scripts check the epoch marker, and not the replication id.
    EpochOnly
    /// Grants in a view that is not warm ask no journal.
    NoConfirm
    AckBeforeDrain
    AckWithinTheGuard
    RetireWithoutFence
    RetireWithoutDrain
    RetireWithoutRecheck
    /// A view is warm from its start.
    WarmEarly
    /// A session that has acknowledged a view being opened is retired.
    NoR1
    /// A session that is being retired acknowledges a view.
    NoR2
    /// A list of who is refused instead of who may claim: a new incarnation refuses nobody.
    NoAllowList
    /// The loader counts as done with one row still missing.
    WarmBeforeTheLastRow
    // Completion (A2, A3).
    /// A late completion is merged into Redis without a look at the journal.
    TextOldComplete
    /// The guard ends with the grant.
    TextGuardClaimsOnly
    /// A shipment with no newer revision loses, completions too.
    ShipVersionGuard
    CompleteAnyFence
    /// Completion does not look at the allow-list.
    CompleteNotMember
    /// A late completion is answered once it is spooled, whatever Redis said.
    TextAnswerOnSpool
    CompleteNotSpooled
    // Release (A9).
    ReleaseIgnoresAmbiguity
    AmbiguityNotJournaled
    TextReleaseDeletes
    ReleaseAfterSend
    /// A release leaves Redis once it is shipped, warm or not.
    TextDropAfterShip
    // Takeover (A1, A5, A6, A11).
    /// A hit in Redis is believed where the view is not warm.
    MissOnly
    /// Hydration brings a claim back as not dispatched.
    HydrateKeepsPhase
    TakeoverClearsAmbiguity
    TextHwmNotCarried
    UpstreamDoesNotCheck
    /// The upstream keeps the fence and not the effect.
    TextFenceIsEnough
    /// A hit keeps its phase although the journal holds the same claim.
    TextStalePhase
    /// A holder writes under an earlier view's fence without a look at the journal.
    TextHolderUnconfirmed
    TextInheritedStays
    /// An outbox is drained although another view has been active since.
    TextDrainAnyView
    TextRetireSpansTimeline
    OutboxNotRetained
    // Compare and set (A1).
    /// A takeover compares the fence and not the revision.
    FenceOnlyCas
    /// What was read in one view counts in the next.
    SeenAcrossViews
    // Postgres fails over (A8).
    /// Views are asserted again and all goes on.
    TextTimeline
    NoReship
    NoRetention
    TextDrainNotRetained
    TextLastActiveKept
    LowerCounter
    // Forgetting.
    ForgetRedisFirst
    /// Tombstones come with hydration, after the first replay (A6).
    TextStaleReplay
    ForgetOutsideTheGuard
    TextForgetNotRetained
    // Sweeps (A10).
    TextSweepJournal
    RetiredInserts
    SweepInFlight
    SweepLowersHwm
    // Force (A12).
    TextForceUnfenced
    /// Fences do not begin anew above what the session can have been granted.
    ForceKeepsTheMark
    // Joining and leaving.
    /// A session is allowed to claim before it has a member row.
    JoinWithoutARow
    /// A session claims although Postgres may yet lose its member row.
    TextJoinAtOnce
    /// The same, of those who are members when a view is activated.
    TextInstallAtOnce
    /// A session joins the view that Postgres names, although another timeline wrote it.
    TextJoinAnyTimeline
    LeaveBeforeDrain
    // Views on the database.
    /// A session that has acknowledged a view on the database is granted claims in it, active or not.
    DatabaseInAnyView
    /// Whoever was shut out by retirement is granted claims on the database.
    DatabaseForAnyMember
    /// Also a session whose member row may yet be lost.
    DatabaseForNewMembers
    /// What the database granted is not shipped again when it has failed over.
    DatabaseFactsNotKept
    /// What the database granted counts as shipped, on whichever timeline it is noted.
    DatabaseFactsAreShipped
    DatabaseServesUnacknowledged
    WarmAfterTheDatabase
    /// Fences of the database rise above the row's only.
    DatabaseIgnoresTheMark
    /// A completion on the database does not look at the row.
    DatabaseCompletesAnyFence
    // Claims that nobody used (A13).
    /// A claim of an earlier view that the journal does not have wins over the row.
    TextDeadClaimWins
    /// Such a claim is drained, too.
    DeadClaimDrained
    /// Claims under the same fence are taken for one.
    TextOneClaimAFence
    /// A claim whose reply was lost is released by its fence, and not by its id.
    LostReleaseByFence
    // Resolving.
    ResolveBeforeQuiet
    /// What was found is written in one step, without a claim in the journal before it.
    TextResolveAtOnce
    ResolveNotSpooled
    ResolveOutsideTheGuard
}

/// A few mutants at a time, as a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Mutants(u128);

impl Mutants {
    pub(crate) fn of(list: &[Mutant]) -> Self {
        Self(list.iter().fold(0, |set, mutant| set | 1 << *mutant as u32))
    }

    pub(crate) const fn has(self, mutant: Mutant) -> bool {
        self.0 >> mutant as u32 & 1 == 1
    }
}

/// As it is typed and printed: `ack-before-drain`, several with a `+` between them.
pub(crate) fn name(mutants: &[Mutant]) -> String {
    let names = mutants.iter().map(|mutant| {
        let words = format!("{mutant:?}");
        let mut name = String::new();
        for letter in words.chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    });
    names.collect::<Vec<_>>().join("+")
}
