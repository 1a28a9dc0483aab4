//! The experiments: what is part of each, what it shows, and which mutants must fail in it.

use crate::model::Settings;
use crate::mutants::Mutant::{self, *};

/// One configuration that is explored.
pub(crate) struct Experiment {
    /// With the number of faults after a `/`.
    pub(crate) name: &'static str,
    pub(crate) shows: &'static str,
    pub(crate) settings: Settings,
    /// Explored wholly in every run of the tests, rather than by `--long`.
    pub(crate) is_small: bool,
    /// Each must break a rule, and does so soon.
    pub(crate) mutants: &'static [&'static [Mutant]],
    /// Each must break a rule, after more states than a run of the tests has time for.
    pub(crate) slow_mutants: &'static [&'static [Mutant]],
    /// Safeties that others stand in for: without them no rule is broken.
    pub(crate) harmless: &'static [&'static [Mutant]],
    /// None of these broke a rule as far as was looked at, and the space is too large to say that none does.
    pub(crate) open: &'static [&'static [Mutant]],
}

const BASE: Settings = Settings {
    gateways: 2,
    keys: 1,
    faults: 2,
    fences: 2,
    retries: false,
    two_phase: false,
    completes: false,
    releases: false,
    renews: false,
    leases_end: false,
    resolves: false,
    forgets: false,
    forgets_live: false,
    retention: false,
    ships_late: false,
    upstream_checks: false,
    joins: false,
    forces: false,
    restarts: true,
    flushes: true,
    promotes: true,
    crashes: true,
    postgres_fails: false,
    database: 0,
    loses_releases: false,
    timelines: 2,
};

const RETRY: Settings = Settings { completes: true, retries: true, leases_end: true, ..BASE };

/// Nothing fails: a view is opened on the database, and on Redis again, at any moment.
const WELL: Settings = Settings { faults: 0, restarts: false, flushes: false, promotes: false, crashes: false, ..BASE };

const WELL_RETRY: Settings = Settings { completes: true, retries: true, leases_end: true, ..WELL };

const PLAIN: Experiment = Experiment {
    name: "",
    shows: "",
    settings: BASE,
    is_small: false,
    mutants: &[],
    slow_mutants: &[],
    harmless: &[],
    open: &[],
};

/// In the order of GUARANTEES 2.9.
pub(crate) const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        name: "base/2",
        shows: "no second dispatch",
        settings: BASE,
        is_small: true,
        mutants: &[
            &[Naive],
            &[EpochOnly],
            &[NoConfirm],
            &[AckBeforeDrain],
            &[AckWithinTheGuard],
            &[RetireWithoutFence],
            &[RetireWithoutDrain],
            &[RetireWithoutRecheck],
            &[WarmEarly],
            &[NoAllowList, NoR1],
            &[NoAllowList, NoR2],
        ],
        harmless: &[&[NoR1], &[NoR2], &[NoR1, NoR2], &[NoAllowList]],
        ..PLAIN
    },
    Experiment {
        name: "complete/2",
        shows: "one answer for a key, under hold",
        settings: Settings { completes: true, ..BASE },
        is_small: true,
        ..PLAIN
    },
    Experiment {
        name: "complete_retry/1",
        shows: "one answer, and no dispatch after it",
        settings: Settings { faults: 1, ..RETRY },
        mutants: &[
            &[TextOldComplete],
            &[TextAnswerOnSpool],
            &[TextGuardClaimsOnly],
            &[CompleteNotSpooled],
            &[ShipVersionGuard],
            &[CompleteNotMember],
            &[MissOnly],
        ],
        ..PLAIN
    },
    Experiment {
        name: "release/1",
        shows: "released only if nothing was sent",
        settings: Settings { releases: true, fences: 3, faults: 1, ..BASE },
        mutants: &[&[ReleaseAfterSend], &[TextReleaseDeletes]],
        ..PLAIN
    },
    Experiment {
        name: "release_retry/1",
        shows: "ambiguity is surfaced",
        settings: Settings { releases: true, retries: true, leases_end: true, fences: 3, faults: 1, ..BASE },
        mutants: &[&[ReleaseIgnoresAmbiguity]],
        slow_mutants: &[&[AmbiguityNotJournaled]],
        ..PLAIN
    },
    Experiment {
        name: "takeover/1",
        shows: "fences rise, and who was overtaken loses",
        settings: Settings { fences: 3, faults: 1, ..RETRY },
        mutants: &[&[CompleteAnyFence], &[TakeoverClearsAmbiguity]],
        slow_mutants: &[&[TextDrainAnyView], &[MissOnly]],
        ..PLAIN
    },
    Experiment {
        name: "upstream/1",
        shows: "one effect, in the order of fences",
        settings: Settings { fences: 3, faults: 1, upstream_checks: true, ..RETRY },
        mutants: &[&[TextFenceIsEnough], &[UpstreamDoesNotCheck]],
        ..PLAIN
    },
    Experiment {
        name: "cas/1",
        shows: "a renewal after the read beats the takeover, in two phases",
        settings: Settings { two_phase: true, leases_end: true, renews: true, flushes: false, faults: 1, ..BASE },
        is_small: true,
        mutants: &[
            &[FenceOnlyCas],
            &[SeenAcrossViews],
            &[TextHolderUnconfirmed],
            &[TextStalePhase],
            &[HydrateKeepsPhase],
            &[MissOnly],
        ],
        ..PLAIN
    },
    Experiment {
        name: "cas_retry/1",
        shows: "the same under retry",
        settings: Settings { renews: true, faults: 1, ..RETRY },
        ..PLAIN
    },
    Experiment {
        name: "pg/2",
        shows: "hold, through a failover of Postgres",
        settings: Settings { postgres_fails: true, ..BASE },
        mutants: &[&[NoReship], &[NoRetention]],
        slow_mutants: &[&[TextTimeline]],
        open: &[
            &[TextLastActiveKept],
            &[LowerCounter],
            &[OutboxNotRetained],
            &[TextDrainNotRetained],
            &[TextRetireSpansTimeline],
        ],
        ..PLAIN
    },
    Experiment {
        name: "pg_complete/1",
        shows: "the same with answers",
        settings: Settings { postgres_fails: true, faults: 1, ..RETRY },
        ..PLAIN
    },
    Experiment {
        name: "forget/1",
        shows: "an erased answer is not shown",
        settings: Settings { completes: true, forgets: true, faults: 1, ..BASE },
        is_small: true,
        mutants: &[&[TextStaleReplay], &[ForgetRedisFirst], &[ForgetOutsideTheGuard]],
        ..PLAIN
    },
    Experiment {
        name: "forget/2",
        shows: "an erased answer is not shown",
        settings: Settings { completes: true, forgets: true, ..BASE },
        ..PLAIN
    },
    Experiment {
        name: "forget_pg/1",
        shows: "the same, through a failover of Postgres",
        settings: Settings { completes: true, forgets: true, postgres_fails: true, flushes: false, faults: 1, ..BASE },
        open: &[&[TextForgetNotRetained]],
        ..PLAIN
    },
    Experiment {
        name: "sweep/1",
        shows: "late shipments bring nothing back",
        settings: Settings { completes: true, retention: true, ships_late: true, faults: 1, ..BASE },
        mutants: &[&[TextSweepJournal], &[RetiredInserts], &[SweepLowersHwm], &[TextHwmNotCarried]],
        ..PLAIN
    },
    Experiment {
        name: "sweep_release/1",
        shows: "the same with releases",
        settings: Settings { releases: true, retention: true, ships_late: true, fences: 3, faults: 1, ..BASE },
        mutants: &[&[TextDropAfterShip]],
        ..PLAIN
    },
    Experiment {
        name: "sweep_retry/1",
        shows: "the same under retry",
        settings: Settings { retention: true, ships_late: true, fences: 3, faults: 1, ..RETRY },
        mutants: &[&[TextInheritedStays], &[SweepInFlight]],
        ..PLAIN
    },
    Experiment {
        name: "force/2",
        shows: "each duplicate is in the list",
        settings: Settings { forces: true, ..BASE },
        mutants: &[&[TextForceUnfenced], &[ForceKeepsTheMark]],
        ..PLAIN
    },
    Experiment {
        name: "join/2",
        shows: "no second dispatch while sessions join and leave",
        settings: Settings { joins: true, ..BASE },
        mutants: &[&[JoinWithoutARow], &[LeaveBeforeDrain]],
        ..PLAIN
    },
    Experiment {
        name: "join_pg/2",
        shows: "the same, through a failover of Postgres",
        settings: Settings { joins: true, postgres_fails: true, flushes: false, crashes: false, ..BASE },
        slow_mutants: &[&[TextJoinAtOnce], &[TextInstallAtOnce], &[TextJoinAnyTimeline]],
        ..PLAIN
    },
    Experiment {
        name: "three/1",
        shows: "no second dispatch, with three gateways",
        settings: Settings { gateways: 3, faults: 1, ..BASE },
        ..PLAIN
    },
    Experiment {
        name: "three/2",
        shows: "no second dispatch, with three gateways",
        settings: Settings { gateways: 3, ..BASE },
        ..PLAIN
    },
    Experiment {
        name: "three_complete/1",
        shows: "one answer, with three gateways",
        settings: Settings { gateways: 3, completes: true, faults: 1, ..BASE },
        ..PLAIN
    },
    Experiment {
        name: "keys/1",
        shows: "no second dispatch of either of two keys",
        settings: Settings { keys: 2, fences: 3, faults: 1, ..BASE },
        mutants: &[&[WarmBeforeTheLastRow]],
        ..PLAIN
    },
    Experiment {
        name: "keys/2",
        shows: "no second dispatch of either of two keys",
        settings: Settings { keys: 2, ..BASE },
        ..PLAIN
    },
    Experiment {
        name: "resolve/1",
        shows: "what was resolved stays so: one effect, one answer",
        settings: Settings {
            resolves: true,
            completes: true,
            leases_end: true,
            fences: 3,
            faults: 1,
            flushes: false,
            promotes: false,
            ..BASE
        },
        mutants: &[&[ResolveBeforeQuiet], &[TextResolveAtOnce]],
        open: &[&[ResolveNotSpooled], &[ResolveOutsideTheGuard]],
        ..PLAIN
    },
    Experiment {
        name: "forget_live/1",
        shows: "a claim forgotten while it runs is neither shown nor run again",
        settings: Settings { completes: true, forgets: true, forgets_live: true, faults: 1, ..BASE },
        ..PLAIN
    },
    Experiment {
        name: "lost/2",
        shows: "a claim whose reply was lost frees nothing in a later view",
        settings: Settings { loses_releases: true, flushes: false, crashes: false, ..BASE },
        is_small: true,
        mutants: &[&[LostReleaseByFence]],
        slow_mutants: &[&[DeadClaimDrained], &[TextOneClaimAFence]],
        ..PLAIN
    },
    Experiment {
        name: "database/1",
        shows: "no second dispatch, with a view on the database",
        settings: Settings { database: 1, faults: 1, ..BASE },
        is_small: true,
        mutants: &[
            &[DatabaseInAnyView],
            &[DatabaseServesUnacknowledged],
            &[RetireWithoutRecheck],
            &[WarmAfterTheDatabase],
        ],
        harmless: &[&[DatabaseForAnyMember]],
        ..PLAIN
    },
    Experiment {
        name: "database_lost/0",
        shows: "a claim of Redis whose reply was lost frees nothing on the database or after it",
        settings: Settings { database: 1, completes: true, loses_releases: true, ..WELL },
        is_small: true,
        mutants: &[&[DeadClaimDrained], &[TextOneClaimAFence], &[LostReleaseByFence]],
        ..PLAIN
    },
    Experiment {
        name: "database_alone/0",
        shows: "the same under retry, with one gateway",
        settings: Settings { database: 1, gateways: 1, fences: 3, loses_releases: true, ..WELL_RETRY },
        is_small: true,
        mutants: &[&[TextDeadClaimWins], &[TextOneClaimAFence], &[WarmAfterTheDatabase]],
        ..PLAIN
    },
    Experiment {
        name: "database_retry/0",
        shows: "one answer, and no dispatch after it, with a view on the database",
        settings: Settings { database: 1, fences: 3, ..WELL_RETRY },
        mutants: &[&[DatabaseCompletesAnyFence]],
        slow_mutants: &[&[TextDeadClaimWins]],
        ..PLAIN
    },
    Experiment {
        name: "database_phases/0",
        shows: "no second dispatch, in two phases",
        settings: Settings { database: 1, fences: 3, two_phase: true, leases_end: true, loses_releases: true, ..WELL },
        ..PLAIN
    },
    Experiment {
        name: "database_complete/1",
        shows: "one answer for a key, under hold",
        settings: Settings { database: 1, completes: true, faults: 1, ..BASE },
        ..PLAIN
    },
    Experiment {
        name: "database_forget/0",
        shows: "an erased answer is not shown",
        settings: Settings { database: 1, completes: true, forgets: true, ..WELL },
        is_small: true,
        mutants: &[&[TextStaleReplay], &[ForgetRedisFirst]],
        ..PLAIN
    },
    Experiment {
        name: "database_sweep/0",
        shows: "what has left the journal comes back nowhere",
        settings: Settings { database: 1, completes: true, retention: true, fences: 3, ..WELL },
        mutants: &[&[DatabaseIgnoresTheMark]],
        ..PLAIN
    },
    Experiment {
        name: "database_pg_alone/1",
        shows: "one answer, through a failover of Postgres, with one gateway",
        settings: Settings { database: 1, gateways: 1, completes: true, faults: 1, postgres_fails: true, ..WELL },
        is_small: true,
        mutants: &[&[DatabaseFactsNotKept], &[DatabaseFactsAreShipped]],
        ..PLAIN
    },
    Experiment {
        name: "database_pg/1",
        shows: "hold, through a failover of Postgres",
        settings: Settings { database: 1, faults: 1, postgres_fails: true, ..WELL },
        mutants: &[&[DatabaseInAnyView]],
        slow_mutants: &[&[DatabaseForAnyMember], &[DatabaseFactsNotKept], &[DatabaseFactsAreShipped]],
        ..PLAIN
    },
    Experiment {
        name: "database_join_pg/1",
        shows: "the same while sessions join and leave",
        settings: Settings { database: 1, faults: 1, joins: true, postgres_fails: true, ..WELL },
        slow_mutants: &[&[DatabaseForNewMembers]],
        ..PLAIN
    },
];
