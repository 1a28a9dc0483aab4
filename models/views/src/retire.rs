//! Retiring a session while Redis is healthy (2.5, A7, A8), so that the next view does not wait for it.

use crate::model::Model;
use crate::mutants::Mutant;
use crate::state::{DATABASE, GatewayId, Gateways, Key, Life, Outbox, Retirement, ServerId, State};

impl Model {
    /// Steps 0 and 1: the session is marked as retiring, and taken off the allow-list of the last active view.
    pub(crate) fn retire_fence(
        &self,
        now: &State,
        by: GatewayId,
        target: GatewayId,
        server: Option<ServerId>,
    ) -> Option<State> {
        let view = &now.postgres;
        let is_there = view.members.has(target) && !view.retired.has(target);
        // R1: not once it has acknowledged a view that is being opened.
        let has_acked = !view.is_active && view.acked.has(target) && !self.is(Mutant::NoR1);
        let may_help = by != target && now.is_on_timeline(by) && view.members.has(by) && !view.retired.has(by);
        // A server that was made anew has zeros, too.
        let is_known = view.last_active != (0, 0);
        let is_last_active = is_known && Self::is_last_active(now, server, view.last_active);
        if now.retirement.is_some() || !is_there || has_acked || !may_help || !is_last_active {
            return None;
        }
        let mut next = now.clone();
        next.postgres.retiring.add(target);
        if let Some(server) = server.filter(|_| !self.is(Mutant::RetireWithoutFence)) {
            next.servers[server].allowed.remove(target);
        }
        // What the database granted, it has.
        let is_drained = server.is_none();
        let (view, incarnation) = view.last_active;
        let timeline = now.timeline;
        next.retirement = Some(Retirement { target, by, server, is_drained, view, incarnation, timeline });
        Some(next)
    }

    fn is_last_active(now: &State, server: Option<ServerId>, view: (u8, u8)) -> bool {
        let Some(server) = server else { return view.1 == DATABASE };
        let redis = &now.servers[server];
        redis.is_master && (redis.view, redis.incarnation) == view
    }

    /// Whether the transaction of the next step is refused: the view or the timeline is another (A7), or nobody is
    /// there to make it.
    fn is_cut_off(&self, now: &State, retirement: &Retirement) -> bool {
        let is_another_timeline = retirement.timeline != now.timeline && !self.is(Mutant::TextRetireSpansTimeline);
        let is_another_view = now.postgres.last_active != (retirement.view, retirement.incarnation)
            && !self.is(Mutant::TextDrainAnyView)
            && !self.is(Mutant::RetireWithoutRecheck);
        now.gateways[retirement.by].life != Life::Alive
            || !now.is_on_timeline(retirement.by)
            || is_another_timeline
            || is_another_view
    }

    /// The retirement ends without a result; the session stays as it is, retiring.
    pub(crate) fn retire_give_up(&self, now: &State) -> Option<State> {
        let retirement = now.retirement?;
        let mut next = now.clone();
        next.retirement = None;
        self.is_cut_off(now, &retirement).then_some(next)
    }

    /// Step 2: the outbox is shipped, in a transaction that is refused unless the view is still that of step 0 (A7).
    pub(crate) fn retire_drain(&self, now: &State) -> Option<State> {
        let retirement = now.retirement.filter(|retirement| !retirement.is_drained)?;
        if self.is_cut_off(now, &retirement) {
            return None;
        }
        let mut next = now.clone();
        let redis = &mut next.servers[retirement.server?];
        for key in self.keys() {
            let fact = redis.records[key].fact;
            let waits = redis.outbox[key] != Outbox::Clean;
            // A claim of an earlier view is in the journal, or was never used (A13).
            let (record, row) = (&redis.records[key], now.postgres.journal[key]);
            let is_another = row.fence != fact.fence || self.is_another_of_its_fence(&now.truth[key], record, row);
            if redis.is_of_an_earlier_view(record) && is_another && !self.is(Mutant::DeadClaimDrained) {
                continue;
            }
            if waits && !fact.is_absent() && !self.is(Mutant::RetireWithoutDrain) {
                // A10: what is older than its retention updates a row, it never inserts one.
                let may_insert = fact.fence > now.truth[key].past;
                self.journal(&mut next.postgres, key, fact, may_insert);
                if self.settings.postgres_fails && !self.is(Mutant::TextDrainNotRetained) {
                    next.gateways[retirement.by].retained[key].add(fact);
                }
            }
            redis.outbox[key] = if waits { self.shipped() } else { Outbox::Clean };
        }
        next.postgres.hwm = next.postgres.hwm.max(redis.hwm);
        next.retirement = Some(Retirement { is_drained: true, ..retirement });
        Some(next)
    }

    /// Steps 3 and 4: role, incarnation, view and timeline are looked at again; then it is retired, or it was a second
    /// failure and the session stays retiring.
    pub(crate) fn retire_end(&self, now: &State) -> Option<State> {
        let retirement = now.retirement.filter(|retirement| retirement.is_drained)?;
        if self.is_cut_off(now, &retirement) {
            return None;
        }
        let then = (retirement.view, retirement.incarnation);
        let is_as_it_was = Self::is_last_active(now, retirement.server, then) && now.postgres.last_active == then;
        let mut next = now.clone();
        next.retirement = None;
        if is_as_it_was || self.is(Mutant::RetireWithoutRecheck) {
            next.postgres.retired.add(retirement.target);
        }
        Some(next)
    }

    /// R2: a session that learns that it is being retired drains its spool, claims no more, and retires itself.
    pub(crate) fn retire_self(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let who = &now.gateways[gateway];
        let is_retiring = now.postgres.retiring.has(gateway) && !now.postgres.retired.has(gateway);
        if !is_retiring || !self.guard_is_empty(who) || !Self::is_drained(who) || !now.is_on_timeline(gateway) {
            return None;
        }
        let mut next = now.clone();
        next.postgres.retired.add(gateway);
        next.gateways[gateway].is_fenced_off = true;
        Some(next)
    }

    /// What becomes of an outbox entry that was shipped.
    pub(crate) fn shipped(&self) -> Outbox {
        let is_kept = self.settings.postgres_fails && !self.is(Mutant::OutboxNotRetained);
        if is_kept { Outbox::Retained } else { Outbox::Clean }
    }

    /// The keys of this run.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        Key::ALL.into_iter().take(usize::from(self.settings.keys))
    }

    /// The gateways of this run.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = GatewayId> {
        GatewayId::ALL.into_iter().take(usize::from(self.settings.gateways))
    }

    /// Those that are members from the start.
    pub(crate) const fn founders(&self) -> Gateways {
        Gateways::first(self.settings.gateways - self.settings.joins as u8)
    }
}
