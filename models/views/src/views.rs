//! What makes, serves and ends a view: start, acknowledge, activate, confirm, hydrate, warm, join, leave, force (2.4 and
//! its amendments A1, A3, A5, A6, A8, A12).

use crate::model::Model;
use crate::mutants::Mutant;
use crate::state::{DATABASE, FENCES_MAX, Fact, Forced};
use crate::state::{Gateway, GatewayId, Gateways, Key, Kind, Life, Record, Rule, Server, ServerId, State, Step, Truth};

impl State {
    /// Whether a gateway is connected to the Postgres of now.
    pub(crate) fn is_on_timeline(&self, gateway: GatewayId) -> bool {
        self.gateways[gateway].life == Life::Alive && self.gateways[gateway].timeline == self.timeline
    }
}

impl Gateway {
    /// What it read is void with the view that it was read in (A1).
    fn forget_what_it_read(&mut self) {
        self.rows = Default::default();
    }
}

impl Model {
    /// Merges a journal row into a server's record, as a script does. A claim counts as dispatched, whatever it says
    /// (2.7), and carries its ambiguity.
    pub(crate) fn merge(&self, truth: &Truth, server: &mut Server, key: Key, row: Fact) -> Option<Rule> {
        let gives_way = self.gives_way(truth, server, key, row);
        let record = &mut server.records[key];
        if truth.is_over(row) {
            // In flight, older than its retention, and no row any more: over, and not live again (A10).
            let is_left_over = record.is_in_flight() && record.fact.fence <= truth.past;
            if gives_way || is_left_over && !self.is(Mutant::TextInheritedStays) {
                server.hwm = server.hwm.max(record.fact.fence);
                *record = Default::default();
            }
            return None;
        }
        if record.fact == row {
            // A replica that was promoted may have missed the mark of the very same claim (A5).
            if record.is_in_flight() && !record.is_dispatched && !self.is(Mutant::TextStalePhase) {
                record.is_dispatched = true;
                record.touch();
            }
            return None;
        }
        if row < record.fact && !gives_way {
            return None;
        }
        let keeps_phase = self.settings.two_phase && self.is(Mutant::HydrateKeepsPhase);
        let is_ambiguous = truth.ambiguous.has(row.fence) && !self.is(Mutant::AmbiguityNotJournaled);
        record.write(row, !keeps_phase, is_ambiguous);
        server.hwm = server.hwm.max(row.fence);
        (row.kind == Kind::InFlight && truth.settled.has(row.fence)).then_some(Rule::SettledStaysSettled)
    }

    /// Whether a server's record gives way to a row of another claim whose fence is not above it (A13). A claim of an
    /// earlier view that the journal does not have was never used: whoever uses one has it in the journal before the next
    /// view serves.
    pub(crate) fn gives_way(&self, truth: &Truth, server: &Server, key: Key, row: Fact) -> bool {
        let record = &server.records[key];
        let is_less = row.fence < record.fact.fence && !self.is(Mutant::TextDeadClaimWins);
        !row.is_absent()
            && server.is_of_an_earlier_view(record)
            && (is_less || self.is_another_of_its_fence(truth, record, row))
    }

    /// Whether the row is of another claim under the record's fence: that of a claim whose reply was lost may be given
    /// again, where no clock helps.
    pub(crate) fn is_another_of_its_fence(&self, truth: &Truth, record: &Record, row: Fact) -> bool {
        let is_another = record.is_of_lost && row.fence == record.fact.fence && !truth.lost.has(row.fence);
        is_another && !self.is(Mutant::TextOneClaimAFence)
    }

    /// Whether a server is of the view that a gateway is in, and asks for the journal.
    fn asks_for_rows(&self, now: &State, gateway: GatewayId, server: ServerId) -> bool {
        !now.servers[server].is_warm && now.is_on_timeline(gateway) && self.script_runs(now, gateway, server)
    }

    /// Reads a key's journal row, in this view and on the timeline that the view was opened on (A1, A8).
    pub(crate) fn confirm(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let who = &now.gateways[gateway];
        let is_of_this_view =
            now.postgres.is_active && now.postgres.view == who.view && now.postgres.timeline == now.timeline
                || self.is(Mutant::TextTimeline);
        let row = Some(now.postgres.journal[key]);
        if !is_of_this_view || who.rows[key] == row || !self.asks_for_rows(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        next.gateways[gateway].rows[key] = row;
        Some(next)
    }

    /// Merges one row into Redis.
    pub(crate) fn hydrate(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let row = now.gateways[gateway].rows[key]?;
        if !self.asks_for_rows(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        next.broken = self.merge(&now.truth[key], &mut next.servers[server], key, row);
        (next != *now).then_some(next)
    }

    /// The loader has every row of the partition: it merges them, and the view is warm.
    pub(crate) fn warm(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        if !self.asks_for_rows(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        for key in self.keys() {
            match now.gateways[gateway].rows[key] {
                Some(row) => {
                    let rule = self.merge(&now.truth[key], &mut next.servers[server], key, row);
                    next.broken = next.broken.or(rule);
                }
                None if self.is(Mutant::WarmBeforeTheLastRow) && key != Key::K1 => {}
                None => return None,
            }
        }
        next.servers[server].is_warm = true;
        next.gateways[gateway].forget_what_it_read();
        Some(next)
    }

    /// Step 1: whoever meets another incarnation, or a server without the view's marker, opens the next view on it.
    pub(crate) fn start_view(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let (redis, view) = (&now.servers[server], &now.postgres);
        let may = now.is_on_timeline(gateway) && view.members.has(gateway) && !view.retired.has(gateway);
        if !may || !redis.is_master || redis.incarnation < view.incarnation {
            return None;
        }
        let is_another = redis.incarnation != view.incarnation;
        let has_lost_its_marker = view.is_active && redis.view != view.view;
        if !is_another && !has_lost_its_marker {
            return None;
        }
        let mut next = now.clone();
        next.open_view(redis.incarnation, view.view + 1);
        Some(next)
    }

    /// Step 2b: what the guard covers is from the script of a holder's write to its spool append (A3).
    pub(crate) fn guard_is_empty(&self, who: &Gateway) -> bool {
        match who.attempt.step {
            _ if self.is(Mutant::AckWithinTheGuard) => true,
            Step::Granted | Step::Resolving => false,
            Step::Completed | Step::Released => self.is(Mutant::TextGuardClaimsOnly),
            Step::Resolved => self.is(Mutant::ResolveOutsideTheGuard),
            Step::Idle | Step::Spooled | Step::Marked | Step::Sent | Step::Asking => true,
        }
    }

    /// Whether nothing of any key waits in the spool.
    pub(crate) fn is_drained(who: &Gateway) -> bool {
        Key::ALL.into_iter().all(|key| who.spool[key].is_empty())
    }

    /// Step 2: the guard is empty and the spool is drained, so all that this gateway was granted is in the journal.
    pub(crate) fn ack(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let (who, view) = (&now.gateways[gateway], &now.postgres);
        let is_waited_for = !view.is_active && view.members.has(gateway) && !view.acked.has(gateway);
        // R2: a session that is being retired acknowledges nothing.
        let may = !view.retired.has(gateway) && (!view.retiring.has(gateway) || self.is(Mutant::NoR2));
        let is_new = who.view < view.view
            || self.is(Mutant::LowerCounter)
            || self.is(Mutant::TextTimeline) && who.view == view.view;
        if !is_waited_for || !may || !is_new || !now.is_on_timeline(gateway) {
            return None;
        }
        let is_drained = Self::is_drained(who) || self.is(Mutant::AckBeforeDrain);
        if !self.guard_is_empty(who) || !is_drained {
            return None;
        }
        let mut next = now.clone();
        next.postgres.acked.add(gateway);
        self.enter(&mut next, gateway);
        Some(next)
    }

    /// From now on this gateway's scripts name the view of Postgres.
    fn enter(&self, next: &mut State, gateway: GatewayId) {
        let who = &mut next.gateways[gateway];
        (who.view, who.incarnation) = (next.postgres.view, next.postgres.incarnation);
        who.forget_what_it_read();
        if !self.is(Mutant::SeenAcrossViews) {
            who.seen = None;
        }
        if !self.is(Mutant::ForgetOutsideTheGuard) {
            who.forgetting = None;
        }
    }

    /// Instead of acknowledgements: whoever hears of a view, uses it.
    pub(crate) fn adopt(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let is_behind = now.postgres.is_active && now.gateways[gateway].view < now.postgres.view;
        if !self.is(Mutant::Naive) || !is_behind || !now.is_on_timeline(gateway) {
            return None;
        }
        let mut next = now.clone();
        self.enter(&mut next, gateway);
        Some(next)
    }

    /// Members whose rows Postgres may yet lose. On no allow-list before that is over: with its row a session would be
    /// forgotten, and the next view would not wait for it.
    pub(crate) fn may_be_lost(&self, now: &State) -> Gateways {
        if self.settings.postgres_fails {
            now.postgres.members.without(now.standby.members)
        } else {
            Gateways::default()
        }
    }

    /// Members whose acknowledgement is still missing.
    pub(crate) fn missing(now: &State) -> Gateways {
        now.postgres.members.without(now.postgres.acked).without(now.postgres.retired)
    }

    /// Whether a view is being opened, and may be activated on this server.
    fn may_be_activated(&self, now: &State, server: ServerId) -> bool {
        let (redis, view) = (&now.servers[server], &now.postgres);
        // A8: a view of another timeline is not activated.
        let is_of_this_timeline = view.timeline == now.timeline || self.is(Mutant::TextTimeline);
        !view.is_active && is_of_this_timeline && redis.is_master && redis.incarnation == view.incarnation
    }

    /// Step 3: everybody has acknowledged or is retired. The marker, the allow-list and the tombstones are installed.
    pub(crate) fn activate(&self, now: &State, server: ServerId) -> Option<State> {
        let is_agreed = Self::missing(now).is_empty() || self.is(Mutant::Naive);
        if !is_agreed || !self.may_be_activated(now, server) {
            return None;
        }
        let mut next = now.clone();
        self.install(&mut next, server);
        Some(next)
    }

    fn install(&self, next: &mut State, server: ServerId) {
        let not_kept = if self.is(Mutant::TextInstallAtOnce) { Gateways::default() } else { self.may_be_lost(next) };
        let view = &mut next.postgres;
        let was_the_database = view.last_active.1 == DATABASE;
        view.is_active = true;
        view.last_active = (view.view, view.incarnation);
        let redis = &mut next.servers[server];
        redis.view = view.view;
        redis.is_warm = self.is(Mutant::WarmEarly) || self.is(Mutant::WarmAfterTheDatabase) && was_the_database;
        redis.allowed = if self.is(Mutant::Naive) || self.is(Mutant::NoAllowList) {
            view.members
        } else {
            let retiring = if self.is(Mutant::NoR2) { Gateways::default() } else { view.retiring };
            view.members.without(view.retired).without(retiring).without(not_kept)
        };
        if !self.is(Mutant::TextHwmNotCarried) {
            redis.hwm = redis.hwm.max(view.hwm);
        }
        redis.before = redis.hwm;
        for key in Key::ALL {
            next.truth[key].settled = Default::default();
            let row = view.journal[key];
            // A6: the tombstones are there before the first replay.
            if row.kind == Kind::Erased && !self.is(Mutant::TextStaleReplay) {
                self.merge(&next.truth[key], redis, key, row);
            }
        }
    }

    /// The operator has a view go on without the word of one session (2.6, A12), which counts as given, and as being
    /// retired, so that the session is let into none. Refused until it is dead or fenced off for certain. Whatever is
    /// granted from then on is at risk, and is told by its fence: above the mark, which no clock of before has reached.
    pub(crate) fn force(&self, now: &State) -> Option<State> {
        let view = &now.postgres;
        let is_waiting = !view.is_active && (view.timeline == now.timeline || self.is(Mutant::TextTimeline));
        let may = self.settings.forces && now.forced.is_none() && is_waiting;
        let gateway = Self::missing(now).only().filter(|_| may)?;
        let who = &now.gateways[gateway];
        let is_off = who.life == Life::Crashed || who.is_fenced_off;
        if !is_off && !self.is(Mutant::TextForceUnfenced) {
            return None;
        }
        let mut next = now.clone();
        next.postgres.acked.add(gateway);
        next.postgres.retiring.add(gateway);
        let used = |key: Key| now.truth[key].used.highest().max(now.postgres.journal[key].fence);
        let mark = Key::ALL.into_iter().map(used).fold(view.hwm.max(who.attempt.fence), u8::max);
        if !self.is(Mutant::ForceKeepsTheMark) {
            next.postgres.hwm = mark;
        }
        next.forced = Some(Forced { gateway, mark });
        Some(next)
    }

    /// A gateway that cannot renew its membership claims no more (2.7). Told apart only where force asks for it.
    pub(crate) fn fence_off(&self, now: &State, gateway: GatewayId) -> Option<State> {
        if !self.settings.forces || now.gateways[gateway].is_fenced_off {
            return None;
        }
        let mut next = now.clone();
        next.gateways[gateway].is_fenced_off = true;
        Some(next)
    }

    /// A session joins: its member row, under the lock of the view row. It holds nothing of any view, so in one that is
    /// being opened it counts as having acknowledged.
    ///
    /// A view row of another timeline may be older than the view that is active, so until a view was opened on this one
    /// nobody joins.
    pub(crate) fn join(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let is_of_this_timeline = now.postgres.timeline == now.timeline || self.is(Mutant::TextJoinAnyTimeline);
        if now.gateways[gateway].life != Life::Outside || !self.settings.joins || !is_of_this_timeline {
            return None;
        }
        let mut next = now.clone();
        next.gateways[gateway].life = Life::Alive;
        next.gateways[gateway].timeline = now.timeline;
        if !self.is(Mutant::JoinWithoutARow) {
            next.postgres.members.add(gateway);
        }
        if !now.postgres.is_active {
            next.postgres.acked.add(gateway);
        }
        self.enter(&mut next, gateway);
        Some(next)
    }

    /// And then it is added to the allow-list of the view that it joined.
    pub(crate) fn allow(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let (who, redis, view) = (&now.gateways[gateway], &now.servers[server], &now.postgres);
        let has_joined = self.settings.joins && who.life == Life::Alive && !redis.allowed.has(gateway);
        let is_retired = view.retiring.has(gateway) || view.retired.has(gateway);
        let is_its_view = redis.is_master && redis.view == who.view && redis.incarnation == who.incarnation;
        // One step with the look at the view row, which is locked: a retirement removes it from the list afterwards.
        let is_of_this_timeline = view.timeline == now.timeline || self.is(Mutant::TextJoinAnyTimeline);
        let is_the_view = view.is_active && view.view == who.view && now.is_on_timeline(gateway) && is_of_this_timeline;
        let is_kept = !self.may_be_lost(now).has(gateway) || self.is(Mutant::TextJoinAtOnce);
        if !has_joined || is_retired || !is_its_view || !is_the_view || !is_kept {
            return None;
        }
        let mut next = now.clone();
        next.servers[server].allowed.add(gateway);
        Some(next)
    }

    /// A session leaves: nothing in the guard, the spool drained, and what it shipped past losing.
    pub(crate) fn leave(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let who = &now.gateways[gateway];
        let is_done = who.attempt.step == Step::Idle && Self::is_drained(who) || self.is(Mutant::LeaveBeforeDrain);
        let has_retained = Key::ALL.into_iter().any(|key| !who.retained[key].is_empty());
        let is_member = now.postgres.members.has(gateway) && !now.postgres.retired.has(gateway);
        if !self.settings.joins || !is_done || has_retained || !is_member || !now.is_on_timeline(gateway) {
            return None;
        }
        let mut next = now.clone();
        next.postgres.retired.add(gateway);
        next.gateways[gateway] = Gateway { life: Life::Crashed, ..Gateway::default() };
        Some(next)
    }

    /// A gateway finds that Postgres is another timeline: it ships its retained window again, and a new view is opened,
    /// above any that it has acknowledged (A8).
    pub(crate) fn notice(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let is_elsewhere = now.gateways[gateway].timeline != now.timeline;
        if now.gateways[gateway].life != Life::Alive || !is_elsewhere {
            return None;
        }
        let mut next = now.clone();
        let who = &mut next.gateways[gateway];
        who.timeline = now.timeline;
        if !self.is(Mutant::NoReship) {
            for key in Key::ALL {
                who.spool[key].add_all(who.retained[key]);
            }
        }
        let (view, incarnation) = (who.view, who.incarnation);
        let postgres = &mut next.postgres;
        // Its own row may be among what was lost.
        postgres.members.add(gateway);
        if self.is(Mutant::TextTimeline) {
            // The highest view that it acknowledged is asserted again, and all goes on.
            if view > postgres.view {
                (postgres.view, postgres.incarnation) = (view, incarnation);
                (postgres.is_active, postgres.acked) = (true, Gateways::default());
                postgres.last_active = (view, incarnation);
            }
            return Some(next);
        }
        who.forget_what_it_read();
        let is_first = postgres.timeline != now.timeline;
        if is_first && !self.is(Mutant::TextLastActiveKept) {
            // Which view was active last is not known: nobody is retired until one is active on this timeline.
            postgres.last_active = (0, 0);
        }
        if is_first || (view >= postgres.view && !self.is(Mutant::LowerCounter)) {
            let above = if self.is(Mutant::LowerCounter) { postgres.view } else { postgres.view.max(view) };
            let is_behind = postgres.incarnation == DATABASE && view < postgres.view;
            let newest = if is_behind { DATABASE } else { postgres.incarnation.max(incarnation) };
            next.open_view(newest, above + 1);
        }
        Some(next)
    }
}

impl State {
    pub(crate) fn open_view(&mut self, incarnation: u8, view: u8) {
        let row = &mut self.postgres;
        (row.view, row.incarnation, row.timeline) = (view, incarnation, self.timeline);
        (row.is_active, row.acked) = (false, Gateways::default());
    }
}

const _: () = assert!(FENCES_MAX <= 8, "a set of fences has eight bits");
