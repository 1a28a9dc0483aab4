//! Views whose server is the journal's own database: where no gateway reaches Redis, or at any other time.
//!
//! Each function is one transaction. The journal's row is the record: it is compared, and written. So the view is warm
//! always, and nothing is dirty in it. What was written goes into the session's window too, since the database may lose it
//! when it fails over (A8); until it is there, the session is inside the guard.

use crate::model::Model;
use crate::mutants::Mutant;
use crate::state::{DATABASE, Fact, Fences, Gateway, GatewayId, Key, Kind, Life, Rule, State, Step};

impl Model {
    /// Opens the next view on the database. That nobody reaches Redis is a matter of when this is of use, not of whether
    /// it is safe.
    pub(crate) fn open_on_database(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let view = &now.postgres;
        let may = now.is_on_timeline(gateway) && view.members.has(gateway) && !view.retired.has(gateway);
        if !may || view.incarnation == DATABASE {
            return None;
        }
        let mut next = now.clone();
        next.database_left = now.database_left.checked_sub(1)?;
        next.open_view(DATABASE, view.view + 1);
        Some(next)
    }

    /// Everybody has acknowledged or is retired.
    pub(crate) fn activate_on_database(&self, now: &State) -> Option<State> {
        let view = &now.postgres;
        let is_agreed = Self::missing(now).is_empty() || self.is(Mutant::DatabaseServesUnacknowledged);
        if view.is_active || view.incarnation != DATABASE || view.timeline != now.timeline || !is_agreed {
            return None;
        }
        let mut next = now.clone();
        next.postgres.is_active = true;
        next.postgres.last_active = (view.view, DATABASE);
        for key in Key::ALL {
            next.truth[key].settled = Fences::default();
        }
        Some(next)
    }

    /// What each transaction checks: the view is the active one, of this timeline, and the session a live member whose row
    /// is past losing.
    fn transaction_runs(&self, now: &State, gateway: GatewayId) -> bool {
        let (who, view) = (&now.gateways[gateway], &now.postgres);
        let is_in_one = who.life == Life::Alive && who.incarnation == DATABASE;
        let is_the_view =
            view.is_active && (view.view, view.incarnation, view.timeline) == (who.view, DATABASE, now.timeline);
        let is_shut_out = view.retiring.has(gateway) || view.retired.has(gateway);
        let is_kept = !self.may_be_lost(now).has(gateway);
        is_in_one
            && now.is_on_timeline(gateway)
            && (is_the_view || self.is(Mutant::DatabaseInAnyView))
            && view.members.has(gateway)
            && (!is_shut_out || self.is(Mutant::DatabaseForAnyMember))
            && (is_kept || self.is(Mutant::DatabaseForNewMembers))
    }

    /// Where what a gateway was granted or has settled is kept, so that it leaves the guard.
    pub(crate) fn keep(&self, who: &mut Gateway, key: Key, fact: Fact) {
        match who.incarnation {
            DATABASE if self.is(Mutant::DatabaseFactsNotKept) => {}
            DATABASE if self.is(Mutant::DatabaseFactsAreShipped) => who.retained[key].add(fact),
            // Also where it is in the journal: that may be lost before this is noted.
            _ => who.spool[key].add(fact),
        }
    }

    /// A fresh key.
    pub(crate) fn claim_on_database(&self, now: &State, gateway: GatewayId, key: Key) -> Option<State> {
        let row = now.postgres.journal[key];
        now.truth[key]
            .may_be_granted(row)
            .then(|| self.grant_on_database(now, gateway, key, row.fence, false))
            .flatten()
    }

    /// In the place of an attempt whose lease is over. Each claim in the journal counts as sent.
    pub(crate) fn take_over_on_database(&self, now: &State, gateway: GatewayId, key: Key) -> Option<State> {
        let row = now.postgres.journal[key];
        let may_be_taken = row.kind == Kind::InFlight && self.settings.retries && self.settings.leases_end;
        let is_ambiguous = !self.is(Mutant::TakeoverClearsAmbiguity);
        may_be_taken.then(|| self.grant_on_database(now, gateway, key, row.fence, is_ambiguous)).flatten()
    }

    fn grant_on_database(
        &self,
        now: &State,
        gateway: GatewayId,
        key: Key,
        last: u8,
        is_ambiguous: bool,
    ) -> Option<State> {
        let who = &now.gateways[gateway];
        if who.attempt.step != Step::Idle || who.is_fenced_off || !self.transaction_runs(now, gateway) {
            return None;
        }
        let mark = if self.is(Mutant::DatabaseIgnoresTheMark) { 0 } else { now.postgres.hwm };
        let fence = self.next_fence(mark, last)?;
        let mut next = now.clone();
        self.journal(&mut next.postgres, key, Fact::new(Kind::InFlight, fence), true);
        Some(self.granted(next, gateway, key, fence, is_ambiguous))
    }

    /// A holder's attempt, where the transaction runs, and whether the claim is still its own.
    fn held_on_database(&self, now: &State, gateway: GatewayId) -> Option<(Key, u8, bool)> {
        let attempt = &now.gateways[gateway].attempt;
        let key = attempt.key.filter(|_| self.transaction_runs(now, gateway))?;
        Some((key, attempt.fence, now.postgres.journal[key] == Fact::new(Kind::InFlight, attempt.fence)))
    }

    /// In two phases: it will be sent.
    pub(crate) fn mark_on_database(&self, now: &State, gateway: GatewayId) -> Option<State> {
        if !self.settings.two_phase || now.gateways[gateway].attempt.step != Step::Spooled {
            return None;
        }
        let (_, _, holds) = self.held_on_database(now, gateway)?;
        let mut next = now.clone();
        next.gateways[gateway].attempt.step = Step::Marked;
        Some(if holds { next } else { Self::end(now, gateway) })
    }

    /// Writes the answer under the holder's fence (A2), or finds that the claim is lost.
    pub(crate) fn complete_on_database(&self, now: &State, gateway: GatewayId) -> Option<State> {
        if !self.settings.completes || now.gateways[gateway].attempt.step != Step::Sent {
            return None;
        }
        let (key, fence, holds) = self.held_on_database(now, gateway)?;
        if now.truth[key].on_the_wire.has(fence) {
            return None;
        }
        if !holds && !self.is(Mutant::DatabaseCompletesAnyFence) {
            return Some(Self::end(now, gateway));
        }
        Some(self.settled_on_database(now, gateway, key, Fact::new(Kind::Completed, fence), Step::Completed))
    }

    /// Nothing was sent: the key is free, unless an earlier attempt left it ambiguous (A9).
    pub(crate) fn release_on_database(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let is_unsent = matches!(now.gateways[gateway].attempt.step, Step::Spooled | Step::Marked);
        if !self.settings.releases || !is_unsent {
            return None;
        }
        let (key, fence, holds) = self.held_on_database(now, gateway)?;
        let is_ambiguous = now.truth[key].ambiguous.has(fence) && !self.is(Mutant::ReleaseIgnoresAmbiguity);
        if !holds || is_ambiguous {
            return Some(Self::end(now, gateway));
        }
        Some(self.settled_on_database(now, gateway, key, Fact::new(Kind::Released, fence), Step::Released))
    }

    /// Whoever claimed in vain releases what they may hold, at any time in this view, and nobody hears of it.
    pub(crate) fn release_lost_on_database(&self, now: &State, key: Key) -> Option<State> {
        let (view, row) = (&now.postgres, now.postgres.journal[key]);
        let is_there = view.is_active && view.incarnation == DATABASE && view.timeline == now.timeline;
        let is_ambiguous = now.truth[key].ambiguous.has(row.fence) && !self.is(Mutant::ReleaseIgnoresAmbiguity);
        if !is_there || is_ambiguous || !Self::is_lost(now, key, row) {
            return None;
        }
        let mut next = now.clone();
        self.journal(&mut next.postgres, key, Fact::new(Kind::Released, row.fence), true);
        Some(next)
    }

    fn settled_on_database(&self, now: &State, gateway: GatewayId, key: Key, fact: Fact, step: Step) -> State {
        let mut next = now.clone();
        self.journal(&mut next.postgres, key, fact, true);
        next.gateways[gateway].attempt.step = step;
        next
    }

    /// A completed record is shown.
    pub(crate) fn replay_on_database(&self, now: &State, gateway: GatewayId, key: Key) -> Option<State> {
        let row = now.postgres.journal[key];
        if row.kind != Kind::Completed || now.truth[key].is_over(row) || !self.transaction_runs(now, gateway) {
            return None;
        }
        let mut next = now.clone();
        let is_erased = now.truth[key].erased.has(row.fence);
        next.broken = next.truth[key].answer(row.fence).or(is_erased.then_some(Rule::ErasedIsNeverShown));
        (next != *now).then_some(next)
    }

    /// Forgets a key.
    pub(crate) fn forget_on_database(&self, now: &State, gateway: GatewayId, key: Key) -> Option<State> {
        let row = now.postgres.journal[key];
        let is_there = match row.kind {
            Kind::Completed => !now.truth[key].is_over(row),
            Kind::InFlight => self.settings.forgets_live,
            Kind::Absent | Kind::Released | Kind::Erased => false,
        };
        let may = self.settings.forgets && now.gateways[gateway].forgetting.is_none();
        if !may || !is_there || !self.transaction_runs(now, gateway) {
            return None;
        }
        let mut next = now.clone();
        self.journal(&mut next.postgres, key, Fact::new(Kind::Erased, row.fence), true);
        next.gateways[gateway].forgetting = Some((key, row.fence));
        Some(next)
    }

    /// And that it is forgotten goes into the window; then forgetting returns.
    pub(crate) fn forgotten_on_database(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let who = &now.gateways[gateway];
        let (key, fence) = who.forgetting.filter(|_| who.incarnation == DATABASE)?;
        let mut next = now.clone();
        let who = &mut next.gateways[gateway];
        who.forgetting = None;
        self.keep(who, key, Fact::new(Kind::Erased, fence));
        next.truth[key].erased.add(fence);
        Some(next)
    }
}
