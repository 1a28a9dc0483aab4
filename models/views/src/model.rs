//! The model: which steps there are, and what follows from each.

use std::sync::atomic::{AtomicU64, Ordering};

use stateright::{Model as Stateright, Property};

use crate::mutants::{Mutant, Mutants};
use crate::properties;
use crate::state::{Fact, Facts, Gateway, GatewayId, Key, Life, Postgres, Rule, Server, ServerId, State};

/// What is part of a run, and its bounds. The least that there is: two gateways that claim and dispatch, no faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) gateways: u8,
    pub(crate) keys: u8,
    /// Faults in all.
    pub(crate) faults: u8,
    /// Grants beyond this fence are not looked at.
    pub(crate) fences: u8,
    /// The route says `retry`: unknown outcomes are run again. Else they are held.
    pub(crate) retries: bool,
    pub(crate) two_phase: bool,
    pub(crate) completes: bool,
    pub(crate) releases: bool,
    pub(crate) renews: bool,
    pub(crate) leases_end: bool,
    pub(crate) resolves: bool,
    pub(crate) forgets: bool,
    /// Claims that run are forgotten, too.
    pub(crate) forgets_live: bool,
    pub(crate) retention: bool,
    /// Shipments arrive late, or twice.
    pub(crate) ships_late: bool,
    /// The upstream keeps fence and effect by key.
    pub(crate) upstream_checks: bool,
    /// The last gateway is no member at first; sessions join and leave.
    pub(crate) joins: bool,
    pub(crate) forces: bool,
    pub(crate) restarts: bool,
    pub(crate) flushes: bool,
    pub(crate) promotes: bool,
    pub(crate) crashes: bool,
    pub(crate) postgres_fails: bool,
    /// So many views may be opened on the database, beside those that it brings back as it fails over.
    pub(crate) database: u8,
    /// A claim whose reply was lost is released at some time, and that reply is lost too.
    pub(crate) loses_releases: bool,
    /// The last timeline that Postgres may come to; the first is 1.
    pub(crate) timelines: u8,
}

/// One step, by the protocol's name of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Claim(GatewayId, ServerId, Key),
    See(GatewayId, ServerId, Key),
    TakeOver(GatewayId, ServerId, Key),
    Spool(GatewayId),
    Abandon(GatewayId),
    Mark(GatewayId, ServerId),
    Send(GatewayId),
    Apply(Key, u8),
    Lose(Key, u8),
    Renew(GatewayId, ServerId),
    Complete(GatewayId, ServerId),
    Release(GatewayId, ServerId),
    ReleaseLost(ServerId, Key),
    ReleaseLostLater(GatewayId, ServerId, Key),
    Replay(GatewayId, ServerId, Key),
    ResolveBegin(GatewayId, ServerId, Key),
    ResolveEnd(GatewayId, ServerId),
    ResolveAtOnce(GatewayId, ServerId, Key),
    ForgetBegin(GatewayId, ServerId, Key),
    ForgetEnd(GatewayId, ServerId),

    OpenOnDatabase(GatewayId),
    ActivateOnDatabase,
    RetireOnDatabase { by: GatewayId, target: GatewayId },
    ClaimOnDatabase(GatewayId, Key),
    TakeOverOnDatabase(GatewayId, Key),
    MarkOnDatabase(GatewayId),
    CompleteOnDatabase(GatewayId),
    ReleaseOnDatabase(GatewayId),
    ReleaseLostOnDatabase(Key),
    ReplayOnDatabase(GatewayId, Key),
    ForgetOnDatabase(GatewayId, Key),
    ForgottenOnDatabase(GatewayId),

    Ship(GatewayId, Key, Fact),
    ShipLate(GatewayId, Key, Fact),
    WindowPasses(GatewayId),
    RetentionPasses(Key),
    Sweep(ServerId, Key),
    DropRelease(ServerId, Key),
    SweepJournal(Key),

    Confirm(GatewayId, ServerId, Key),
    Hydrate(GatewayId, ServerId, Key),
    Warm(GatewayId, ServerId),
    StartView(GatewayId, ServerId),
    Ack(GatewayId),
    Adopt(GatewayId),
    Activate(ServerId),
    Force,
    FenceOff(GatewayId),
    Join(GatewayId),
    Allow(GatewayId, ServerId),
    Leave(GatewayId),
    Notice(GatewayId),
    RetireFence { by: GatewayId, target: GatewayId, server: ServerId },
    RetireGiveUp,
    RetireDrain,
    RetireEnd,
    RetireSelf(GatewayId),

    Replicate,
    LeaseEnds(ServerId, Key),
    StandbyCatchesUp,
    Restart(ServerId),
    Flush(ServerId),
    Promote,
    Crash(GatewayId),
    PostgresFailsOver,
}

/// The protocol under some settings, with some of it got wrong, or none.
pub(crate) struct Model {
    pub(crate) settings: Settings,
    mutants: Mutants,
    /// Whether states that differ by what no step can use are one.
    pub(crate) reduces: bool,
    /// Whether states that differ by the names of gateways are one.
    pub(crate) orders: bool,
    actions: Vec<Action>,
    /// Properties of which the checker has been told once; see [`Model::is_first`].
    told: AtomicU64,
}

impl Model {
    pub(crate) fn new(settings: Settings, mutants: &[Mutant]) -> Self {
        let mut model = Self {
            settings,
            mutants: Mutants::of(mutants),
            reduces: true,
            orders: true,
            actions: Vec::new(),
            told: AtomicU64::new(0),
        };
        model.actions = model.all_actions();
        model
    }

    pub(crate) const fn is(&self, mutant: Mutant) -> bool {
        self.mutants.has(mutant)
    }

    /// Every step that could be, in no state in particular.
    fn all_actions(&self) -> Vec<Action> {
        let mut all = Vec::new();
        for g in self.gateways() {
            use Action::*;
            all.extend([Spool(g), Abandon(g), Send(g), WindowPasses(g), Ack(g), Adopt(g), FenceOff(g)]);
            all.extend([Join(g), Leave(g), Notice(g), RetireSelf(g), Crash(g)]);
            for key in self.keys() {
                let facts = || Facts::all().filter(|fact| fact.fence <= self.settings.fences);
                all.extend(facts().map(|fact| Ship(g, key, fact)));
                all.extend(facts().filter(|_| self.settings.ships_late).map(|fact| ShipLate(g, key, fact)));
            }
            for s in ServerId::ALL {
                all.extend([Mark(g, s), Complete(g, s), ForgetEnd(g, s), Warm(g, s), StartView(g, s), Allow(g, s)]);
                all.extend(self.settings.renews.then_some(Renew(g, s)));
                all.extend(self.settings.resolves.then_some(ResolveEnd(g, s)));
                all.extend(self.settings.releases.then_some(Release(g, s)));
                all.extend(self.gateways().map(|target| RetireFence { by: g, target, server: s }));
                for key in self.keys() {
                    all.extend([Claim(g, s, key), See(g, s, key), TakeOver(g, s, key), Replay(g, s, key)]);
                    all.extend([Confirm(g, s, key), Hydrate(g, s, key), ForgetBegin(g, s, key)]);
                    all.extend(self.settings.loses_releases.then_some(ReleaseLostLater(g, s, key)));
                    if self.settings.resolves {
                        all.extend([ResolveBegin(g, s, key), ResolveAtOnce(g, s, key)]);
                    }
                }
            }
        }
        if self.settings.database > 0 {
            all.extend(self.actions_on_the_database());
        }
        for key in self.keys() {
            let fences = || 1..=self.settings.fences;
            all.extend(fences().flat_map(|fence| [Action::Apply(key, fence), Action::Lose(key, fence)]));
            all.extend([Action::RetentionPasses(key), Action::SweepJournal(key)]);
            for s in ServerId::ALL {
                all.extend([Action::Sweep(s, key), Action::DropRelease(s, key), Action::LeaseEnds(s, key)]);
                all.extend(self.settings.loses_releases.then_some(Action::ReleaseLost(s, key)));
            }
        }
        for s in ServerId::ALL {
            all.extend([Action::Activate(s), Action::Restart(s), Action::Flush(s)]);
        }
        all.extend([Action::Force, Action::RetireGiveUp, Action::RetireDrain, Action::RetireEnd]);
        all.extend([Action::Replicate, Action::StandbyCatchesUp, Action::Promote, Action::PostgresFailsOver]);
        let is_idle_here = |action: &Action| match action {
            Action::Complete(..) => !self.settings.completes,
            Action::RetireFence { by, target, .. } => by == target,
            _ => false,
        };
        all.retain(|action| !is_idle_here(action));
        all
    }

    fn actions_on_the_database(&self) -> Vec<Action> {
        use Action::*;
        let mut all = vec![ActivateOnDatabase];
        for g in self.gateways() {
            all.extend([OpenOnDatabase(g), MarkOnDatabase(g), CompleteOnDatabase(g), ReleaseOnDatabase(g)]);
            all.push(ForgottenOnDatabase(g));
            all.extend(self.gateways().filter(|target| *target != g).map(|target| RetireOnDatabase { by: g, target }));
            for key in self.keys() {
                all.extend([ClaimOnDatabase(g, key), TakeOverOnDatabase(g, key)]);
                all.extend([ReplayOnDatabase(g, key), ForgetOnDatabase(g, key)]);
            }
        }
        all.extend(self.keys().filter(|_| self.settings.loses_releases).map(ReleaseLostOnDatabase));
        all
    }

    fn step(&self, now: &State, action: Action) -> Option<State> {
        match action {
            Action::Claim(g, s, key) => self.claim(now, g, s, key),
            Action::See(g, s, key) => self.see(now, g, s, key),
            Action::TakeOver(g, s, key) => self.take_over(now, g, s, key),
            Action::Spool(g) => self.spool(now, g),
            Action::Abandon(g) => self.abandon(now, g),
            Action::Mark(g, s) => self.mark(now, g, s),
            Action::Send(g) => self.send(now, g),
            Action::Apply(key, fence) => self.apply(now, key, fence),
            Action::Lose(key, fence) => self.lose(now, key, fence),
            Action::Renew(g, s) => self.renew(now, g, s),
            Action::Complete(g, s) => self.complete(now, g, s),
            Action::Release(g, s) => self.release(now, g, s),
            Action::ReleaseLost(s, key) => self.release_lost(now, s, key),
            Action::ReleaseLostLater(g, s, key) => self.release_lost_later(now, g, s, key),
            Action::Replay(g, s, key) => self.replay(now, g, s, key),
            Action::ResolveBegin(g, s, key) => self.resolve_begin(now, g, s, key),
            Action::ResolveEnd(g, s) => self.resolve_end(now, g, s),
            Action::ResolveAtOnce(g, s, key) => self.resolve_at_once(now, g, s, key),
            Action::ForgetBegin(g, s, key) => self.forget_begin(now, g, s, key),
            Action::ForgetEnd(g, s) => self.forget_end(now, g, s),
            Action::OpenOnDatabase(g) => self.open_on_database(now, g),
            Action::ActivateOnDatabase => self.activate_on_database(now),
            Action::RetireOnDatabase { by, target } => self.retire_fence(now, by, target, None),
            Action::ClaimOnDatabase(g, key) => self.claim_on_database(now, g, key),
            Action::TakeOverOnDatabase(g, key) => self.take_over_on_database(now, g, key),
            Action::MarkOnDatabase(g) => self.mark_on_database(now, g),
            Action::CompleteOnDatabase(g) => self.complete_on_database(now, g),
            Action::ReleaseOnDatabase(g) => self.release_on_database(now, g),
            Action::ReleaseLostOnDatabase(key) => self.release_lost_on_database(now, key),
            Action::ReplayOnDatabase(g, key) => self.replay_on_database(now, g, key),
            Action::ForgetOnDatabase(g, key) => self.forget_on_database(now, g, key),
            Action::ForgottenOnDatabase(g) => self.forgotten_on_database(now, g),
            Action::Ship(g, key, fact) => self.ship(now, g, key, fact),
            Action::ShipLate(g, key, fact) => self.ship_late(now, g, key, fact),
            Action::WindowPasses(g) => self.window_passes(now, g),
            Action::RetentionPasses(key) => self.retention_passes(now, key),
            Action::Sweep(s, key) => self.sweep(now, s, key),
            Action::DropRelease(s, key) => self.drop_release(now, s, key),
            Action::SweepJournal(key) => self.sweep_journal(now, key),
            Action::Confirm(g, s, key) => self.confirm(now, g, s, key),
            Action::Hydrate(g, s, key) => self.hydrate(now, g, s, key),
            Action::Warm(g, s) => self.warm(now, g, s),
            Action::StartView(g, s) => self.start_view(now, g, s),
            Action::Ack(g) => self.ack(now, g),
            Action::Adopt(g) => self.adopt(now, g),
            Action::Activate(s) => self.activate(now, s),
            Action::Force => self.force(now),
            Action::FenceOff(g) => self.fence_off(now, g),
            Action::Join(g) => self.join(now, g),
            Action::Allow(g, s) => self.allow(now, g, s),
            Action::Leave(g) => self.leave(now, g),
            Action::Notice(g) => self.notice(now, g),
            Action::RetireFence { by, target, server } => self.retire_fence(now, by, target, Some(server)),
            Action::RetireGiveUp => self.retire_give_up(now),
            Action::RetireDrain => self.retire_drain(now),
            Action::RetireEnd => self.retire_end(now),
            Action::RetireSelf(g) => self.retire_self(now, g),
            Action::Replicate => self.replicate(now),
            Action::LeaseEnds(s, key) => self.lease_ends(now, s, key),
            Action::StandbyCatchesUp => self.standby_catches_up(now),
            Action::Restart(s) => self.restart(now, s),
            Action::Flush(s) => self.flush(now, s),
            Action::Promote => self.promote(now),
            Action::Crash(g) => self.crash(now, g),
            Action::PostgresFailsOver => self.postgres_fails_over(now),
        }
    }

    /// The rule that a state breaks by itself: with retention, what has expired is not live again.
    fn broken_by(&self, state: &State) -> Option<Rule> {
        if !self.settings.retention {
            return None;
        }
        let view = &state.postgres;
        let is_expired =
            |key, fact: Fact| fact.kind == crate::state::Kind::InFlight && fact.fence <= state.truth[key].past;
        let lives_again = self.keys().any(|key| {
            let in_redis = ServerId::ALL.into_iter().any(|server| {
                let redis = &state.servers[server];
                let is_the_view = view.is_active && (redis.view, redis.incarnation) == (view.view, view.incarnation);
                redis.is_master && is_the_view && redis.is_warm && is_expired(key, redis.records[key].fact)
            });
            in_redis || is_expired(key, view.journal[key])
        });
        lives_again.then_some(Rule::ExpiredStaysExpired)
    }

    /// Whether the checker has not been told of this property yet. It keeps the last finding and copies a path for each,
    /// so it is told of the first only: that is the shortest, and a run is not slowed by what is found everywhere.
    pub(crate) fn is_first(&self, property: u32, is_found: bool) -> bool {
        let bit = 1 << property;
        is_found
            && self.told.load(Ordering::Relaxed) & bit == 0
            && self.told.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

impl Stateright for Model {
    type State = State;
    type Action = Action;

    /// One view, active on `A`, warm; `B` is its replica and has nothing yet.
    fn init_states(&self) -> Vec<State> {
        let members = self.founders();
        let Settings { faults, database, .. } = self.settings;
        let mut state = State { timeline: 1, faults_left: faults, database_left: database, ..State::default() };
        for id in ServerId::ALL {
            let is_master = id == ServerId::A;
            let redis =
                Server { is_master, incarnation: 1, view: 1, is_warm: true, allowed: members, ..Server::default() };
            state.servers[id] = redis;
        }
        for id in self.gateways().filter(|id| members.has(*id)) {
            let (view, incarnation, timeline) = (1, 1, 1);
            state.gateways[id] = Gateway { life: Life::Alive, view, incarnation, timeline, ..Gateway::default() };
        }
        state.postgres = Postgres {
            view: 1,
            incarnation: 1,
            timeline: 1,
            is_active: true,
            members,
            last_active: (1, 1),
            ..Postgres::default()
        };
        state.standby = state.postgres;
        if self.reduces {
            self.reduce(&mut state);
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Nothing is looked for behind a rule that is broken.
        if state.broken.is_none() {
            actions.extend_from_slice(&self.actions);
        }
    }

    fn next_state(&self, now: &State, action: Action) -> Option<State> {
        let mut next = self.step(now, action)?;
        next.broken = next.broken.or_else(|| self.broken_by(&next));
        if self.reduces {
            self.reduce(&mut next);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(&self.settings)
    }
}
