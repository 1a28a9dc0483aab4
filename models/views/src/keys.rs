//! What a gateway does with a key: claim, take over, send, renew, complete, release, replay, resolve, forget (1.3, 2.4
//! and their amendments A1 to A3, A9).
//!
//! Each function is one atomic step, a script in Redis mostly. It says what follows, or that it is not to be had now.

use crate::model::Model;
use crate::mutants::Mutant;
use crate::state::{
    Attempt, Fact, Gateway, GatewayId, Key, Kind, Outbox, Record, Rule, Seen, Server, ServerId, State, Step, Truth,
};

/// Revisions are told apart by equality, so a few are enough.
const REVISIONS_MAX: u8 = 3;

impl Record {
    pub(crate) const fn is_in_flight(&self) -> bool {
        matches!(self.fact.kind, Kind::InFlight)
    }

    /// Nothing came of it: in flight, or released.
    const fn is_open(&self) -> bool {
        matches!(self.fact.kind, Kind::InFlight | Kind::Released)
    }

    /// One write: the next revision, with a lease that runs.
    pub(crate) fn write(&mut self, fact: Fact, is_dispatched: bool, is_ambiguous: bool) {
        *self = Self { fact, revision: self.revision, is_dispatched, is_ambiguous, ..Self::default() };
        self.touch();
    }

    pub(crate) fn touch(&mut self) {
        self.revision = (self.revision + 1).min(REVISIONS_MAX);
    }
}

impl Server {
    /// A claim of an earlier view than the one that is installed, of which nothing came.
    pub(crate) const fn is_of_an_earlier_view(&self, record: &Record) -> bool {
        record.is_open() && record.fact.fence <= self.before
    }
}

impl Truth {
    /// Absent, or settled longer than its retention: as good as absent.
    pub(crate) fn is_over(&self, fact: Fact) -> bool {
        fact.is_absent() || (fact.is_settled() && fact.fence <= self.past)
    }

    pub(crate) fn may_be_granted(&self, fact: Fact) -> bool {
        self.is_over(fact) || fact.kind == Kind::Released
    }

    /// A client is given this attempt's answer as the key's.
    pub(crate) fn answer(&mut self, fence: u8) -> Option<Rule> {
        if fence <= self.past {
            return None;
        }
        self.answered.add(fence);
        let answers = self.answered.above(self.past);
        let different = answers.minus(self.from_books).count() + u32::from(answers.intersects(self.from_books));
        (different > 1).then_some(Rule::OneAnswer)
    }
}

impl Model {
    /// What every script checks in the same step as its write: role, replication id, epoch, allow-list.
    pub(crate) fn script_runs(&self, now: &State, gateway: GatewayId, server: ServerId) -> bool {
        let redis = &now.servers[server];
        self.is_its_view(redis, &now.gateways[gateway]) && redis.allowed.has(gateway)
    }

    fn is_its_view(&self, server: &Server, gateway: &Gateway) -> bool {
        server.is_master
            && server.view == gateway.view
            && (server.incarnation == gateway.incarnation || self.is(Mutant::EpochOnly))
    }

    /// In a view that is not warm, a grant needs the journal row, read in this view (A1).
    fn is_confirmed(&self, server: &Server, gateway: &Gateway, key: Key) -> bool {
        server.is_warm || gateway.rows[key].is_some() || self.is(Mutant::NoConfirm)
    }

    fn may_begin(&self, now: &State, gateway: GatewayId, server: ServerId) -> bool {
        let who = &now.gateways[gateway];
        who.attempt.step == Step::Idle && !who.is_fenced_off && self.script_runs(now, gateway, server)
    }

    /// A fresh key: absent, released, or past its retention.
    pub(crate) fn claim(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let (who, truth) = (&now.gateways[gateway], &now.truth[key]);
        let (redis, held) = (&now.servers[server], now.servers[server].records[key].fact);
        // One script: the row is merged, then it is decided.
        let row = if redis.is_warm { Fact::default() } else { who.rows[key].unwrap_or_default() };
        let gives_way = self.gives_way(truth, redis, key, row);
        let is_free = (truth.may_be_granted(held) || gives_way) && self.is_confirmed(redis, who, key);
        if !is_free || !self.may_begin(now, gateway, server) {
            return None;
        }
        let known = if gives_way { row } else { held.max(row) };
        truth.may_be_granted(known).then(|| self.grant(now, gateway, server, key, known.fence, false)).flatten()
    }

    /// Reads a claim that may be taken over, for [`Self::take_over`] to compare with.
    pub(crate) fn see(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let record = &now.servers[server].records[key];
        let is_unknown = record.is_dispatched || record.is_ambiguous;
        let is_wanted = !is_unknown || self.settings.retries || self.settings.resolves;
        let is_open = record.is_in_flight() && record.lease_is_over && is_wanted;
        let seen = Seen { key, fence: record.fact.fence, revision: record.revision, is_unknown };
        if !is_open || now.gateways[gateway].seen == Some(seen) || !self.may_begin(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        next.gateways[gateway].seen = Some(seen);
        Some(next)
    }

    /// Whether a write that compares with what was read may be made: nothing was written since, and the journal, where
    /// it must be asked, has nothing that would change the record first.
    fn is_as_seen(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> bool {
        let (who, redis) = (&now.gateways[gateway], &now.servers[server]);
        let record = &redis.records[key];
        let is_same = record.is_in_flight()
            && who.seen.is_some_and(|seen| {
                let is_same_revision = seen.revision == record.revision || self.is(Mutant::FenceOnlyCas);
                seen.key == key && seen.fence == record.fact.fence && is_same_revision
            });
        let changes_nothing = |row| {
            let mut merged = *redis;
            self.merge(&now.truth[key], &mut merged, key, row);
            merged == *redis
        };
        is_same
            && (self.is_confirmed(redis, who, key) || self.is(Mutant::MissOnly))
            && (redis.is_warm || who.rows[key].is_none_or(changes_nothing))
    }

    /// The next attempt, in the place of one whose lease is over.
    pub(crate) fn take_over(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let record = &now.servers[server].records[key];
        // Decided on what was read: that it is still so, is what the write compares.
        let may_be_taken = self.settings.retries || now.gateways[gateway].seen.is_some_and(|seen| !seen.is_unknown);
        if !may_be_taken || !self.is_as_seen(now, gateway, server, key) || !self.may_begin(now, gateway, server) {
            return None;
        }
        let is_ambiguous = (record.is_ambiguous || record.is_dispatched) && !self.is(Mutant::TakeoverClearsAmbiguity);
        self.grant(now, gateway, server, key, record.fact.fence, is_ambiguous)
    }

    /// The fence of the next grant: above the record's last and the partition's high-water mark.
    pub(crate) fn next_fence(&self, hwm: u8, last: u8) -> Option<u8> {
        let floor = hwm.max(last);
        (floor < self.settings.fences).then_some(floor + 1)
    }

    fn grant(
        &self,
        now: &State,
        gateway: GatewayId,
        server: ServerId,
        key: Key,
        last: u8,
        is_ambiguous: bool,
    ) -> Option<State> {
        let fence = self.next_fence(now.servers[server].hwm, last)?;
        let mut next = now.clone();
        let redis = &mut next.servers[server];
        redis.records[key].write(Fact::new(Kind::InFlight, fence), !self.settings.two_phase, is_ambiguous);
        redis.outbox[key] = Outbox::Dirty;
        redis.hwm = redis.hwm.max(fence);
        Some(self.granted(next, gateway, key, fence, is_ambiguous))
    }

    /// A gateway hears of its grant.
    pub(crate) fn granted(
        &self,
        mut next: State,
        gateway: GatewayId,
        key: Key,
        fence: u8,
        is_ambiguous: bool,
    ) -> State {
        let who = &mut next.gateways[gateway];
        who.attempt = Attempt { step: Step::Granted, key: Some(key), fence, view: who.view, ..Attempt::default() };
        who.rows[key] = None;
        who.seen = None;
        let truth = &mut next.truth[key];
        if truth.lost.has(fence) && self.is(Mutant::LostReleaseByFence) {
            truth.given_again.add(fence);
        }
        truth.lost.remove(fence);
        truth.ambiguous.remove(fence);
        truth.from_books.remove(fence);
        truth.at_risk.remove(fence);
        if next.forced.is_some_and(|forced| fence > forced.mark) {
            truth.at_risk.add(fence);
        }
        if is_ambiguous {
            truth.ambiguous.add(fence);
        }
        if fence <= truth.used.highest() {
            next.broken = Some(Rule::FencesRise);
        }
        next
    }

    /// The fact goes into the spool, and with it the gateway leaves the guard.
    pub(crate) fn spool(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let Attempt { step, key, fence, resolution, .. } = now.gateways[gateway].attempt;
        let key = key?;
        let mut next = now.clone();
        let (who, truth) = (&mut next.gateways[gateway], &mut next.truth[key]);
        match step {
            Step::Granted | Step::Resolving => {
                self.keep(who, key, Fact::new(Kind::InFlight, fence));
                who.attempt.step = if step == Step::Granted { Step::Spooled } else { Step::Asking };
                if truth.used.has(fence) {
                    next.broken = Some(Rule::AFenceIsUsedOnce);
                }
                truth.used.add(fence);
            }
            Step::Completed => {
                if !self.is(Mutant::CompleteNotSpooled) {
                    self.keep(who, key, Fact::new(Kind::Completed, fence));
                }
                who.attempt = Attempt::default();
                next.broken = truth.answer(fence);
            }
            Step::Released => {
                self.keep(who, key, Fact::new(Kind::Released, fence));
                who.attempt = Attempt::default();
            }
            Step::Resolved => {
                self.keep(who, key, Fact::new(resolution, fence));
                who.attempt = Attempt::default();
                truth.used.add(fence);
                if resolution == Kind::Completed {
                    next.broken = truth.answer(fence);
                }
            }
            Step::Idle | Step::Spooled | Step::Marked | Step::Sent | Step::Asking => return None,
        }
        Some(next)
    }

    /// The reply of a claim never came; nothing was sent. What was resolved under a claim of its own is repeated under
    /// that claim; what was written at once cannot be, since the record that was read is not there any more.
    pub(crate) fn abandon(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let can_repeat = !self.is(Mutant::TextResolveAtOnce);
        match now.gateways[gateway].attempt.step {
            Step::Granted | Step::Resolving => {
                let Attempt { key, fence, .. } = now.gateways[gateway].attempt;
                let mut next = Self::end(now, gateway);
                if let Some(key) = key.filter(|_| self.settings.loses_releases) {
                    next.truth[key].lost.add(fence);
                }
                Some(next)
            }
            Step::Resolved if can_repeat => {
                let mut next = now.clone();
                next.gateways[gateway].attempt.step = Step::Asking;
                next.gateways[gateway].attempt.resolution = Kind::Absent;
                Some(next)
            }
            Step::Resolved => Some(Self::end(now, gateway)),
            Step::Idle | Step::Spooled | Step::Marked | Step::Sent => None,
            Step::Completed | Step::Released | Step::Asking => None,
        }
    }

    /// The attempt is over for its gateway.
    pub(crate) fn end(now: &State, gateway: GatewayId) -> State {
        let mut next = now.clone();
        next.gateways[gateway].attempt = Attempt::default();
        next
    }

    /// Where a holder may write: its view's server, where it is allowed.
    fn holder_may_write(&self, now: &State, gateway: GatewayId, server: ServerId) -> bool {
        let is_its_view = self.is_its_view(&now.servers[server], &now.gateways[gateway]);
        self.script_runs(now, gateway, server) || self.is(Mutant::CompleteNotMember) && is_its_view
    }

    /// The state that a holder's write finds. Under a fence of an earlier view, where the view is not warm, the journal
    /// row is merged first, in the same step (A1). None where the row is not read yet.
    fn as_a_holder_finds_it(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let who = &now.gateways[gateway];
        let mut next = now.clone();
        let is_of_this_view = now.servers[server].is_warm || who.attempt.view == who.view;
        if !is_of_this_view && !self.is(Mutant::TextHolderUnconfirmed) {
            next.broken = self.merge(&now.truth[key], &mut next.servers[server], key, who.rows[key]?);
        }
        Some(next)
    }

    fn holds(state: &State, gateway: GatewayId, server: ServerId, key: Key) -> bool {
        let fence = state.gateways[gateway].attempt.fence;
        state.servers[server].records[key].fact == Fact::new(Kind::InFlight, fence)
    }

    /// In two phases: writes that the request will be sent.
    pub(crate) fn mark(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let Attempt { step, key, .. } = now.gateways[gateway].attempt;
        let key = key.filter(|_| step == Step::Spooled && self.settings.two_phase)?;
        if !self.script_runs(now, gateway, server) {
            return None;
        }
        let mut next = self.as_a_holder_finds_it(now, gateway, server, key)?;
        if !Self::holds(&next, gateway, server, key) {
            return None;
        }
        let redis = &mut next.servers[server];
        redis.records[key].is_dispatched = true;
        redis.records[key].touch();
        redis.outbox[key] = Outbox::Dirty;
        next.gateways[gateway].attempt.step = Step::Marked;
        Some(next)
    }

    /// From here on the upstream may have seen the request. Nobody asks Redis: a gateway that was paused does this late.
    pub(crate) fn send(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let Attempt { step, key, fence, .. } = now.gateways[gateway].attempt;
        let key = key.filter(|_| step == Step::Marked || step == Step::Spooled && !self.settings.two_phase)?;
        let mut next = now.clone();
        next.gateways[gateway].attempt.step = Step::Sent;
        let truth = &mut next.truth[key];
        let earlier = truth.sent.above(truth.past).without(fence);
        let rule = if truth.sent.has(fence) {
            Some(Rule::OneDispatchAFence)
        } else if fence <= truth.past {
            None
        } else if truth.answered.above(truth.past).intersects(truth.answered.up_to(fence)) {
            Some(Rule::NoDispatchAfterAnAnswer)
        } else if !self.settings.retries && !earlier.is_empty() {
            Some(Rule::OneDispatchUnderHold)
        } else if !earlier.up_to(fence).is_empty() && !truth.ambiguous.has(fence) {
            Some(Rule::AmbiguityIsSurfaced)
        } else {
            None
        };
        // What force promises is that each duplicate is in its list.
        let is_listed = earlier.intersects(truth.at_risk) || truth.at_risk.has(fence);
        next.broken = rule.filter(|_| !is_listed);
        if fence > truth.past {
            truth.sent.add(fence);
        }
        if self.settings.upstream_checks || self.settings.resolves {
            truth.on_the_wire.add(fence);
        }
        Some(next)
    }

    /// The upstream carries a request out, in its own time, where its rule lets it (A11).
    pub(crate) fn apply(&self, now: &State, key: Key, fence: u8) -> Option<State> {
        if !now.truth[key].on_the_wire.has(fence) {
            return None;
        }
        let mut next = now.clone();
        let truth = &mut next.truth[key];
        truth.on_the_wire.remove(fence);
        let has_no_effect_yet = truth.effects == 0 || self.is(Mutant::TextFenceIsEnough);
        let passes = !self.settings.upstream_checks
            || self.is(Mutant::UpstreamDoesNotCheck)
            || fence > truth.upstream_fence && has_no_effect_yet;
        if passes {
            truth.effects += 1;
            if fence < truth.upstream_fence && self.settings.upstream_checks {
                next.broken = Some(Rule::EffectsInFenceOrder);
            } else if truth.effects > 1 {
                next.broken = Some(Rule::OneEffect);
            }
        }
        truth.upstream_fence = truth.upstream_fence.max(fence);
        Some(next)
    }

    /// The request is lost on its way.
    pub(crate) fn lose(&self, now: &State, key: Key, fence: u8) -> Option<State> {
        if !self.settings.resolves || !now.truth[key].on_the_wire.has(fence) {
            return None;
        }
        let mut next = now.clone();
        next.truth[key].on_the_wire.remove(fence);
        Some(next)
    }

    pub(crate) fn renew(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let Attempt { step, key, .. } = now.gateways[gateway].attempt;
        let key = key.filter(|_| matches!(step, Step::Spooled | Step::Marked | Step::Sent))?;
        if !self.holder_may_write(now, gateway, server) {
            return None;
        }
        let mut next = self.as_a_holder_finds_it(now, gateway, server, key)?;
        if !Self::holds(&next, gateway, server, key) {
            return None;
        }
        next.servers[server].records[key].lease_is_over = false;
        next.servers[server].records[key].touch();
        Some(next)
    }

    /// Writes the answer under the holder's fence (A2), or finds that the claim is lost.
    pub(crate) fn complete(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let Attempt { step, key, fence, view, .. } = now.gateways[gateway].attempt;
        let key = key.filter(|_| step == Step::Sent)?;
        if now.truth[key].on_the_wire.has(fence) || !self.holder_may_write(now, gateway, server) {
            return None;
        }
        let answer = Fact::new(Kind::Completed, fence);
        let held = now.servers[server].records[key].fact;
        let is_of_an_earlier_view = view < now.gateways[gateway].view;
        if self.is(Mutant::CompleteAnyFence) && held.kind == Kind::InFlight {
            return Some(Self::completed(now.clone(), gateway, server, key));
        }
        if is_of_an_earlier_view && self.is(Mutant::TextOldComplete) {
            // Merged into whatever Redis holds, without a look at the journal.
            let wins = answer >= held;
            return Some(if wins {
                Self::completed(now.clone(), gateway, server, key)
            } else {
                Self::end(now, gateway)
            });
        }
        if is_of_an_earlier_view && self.is(Mutant::TextAnswerOnSpool) {
            // And answered once both were written, whatever the merge said.
            let mut next =
                if answer >= held { Self::completed(now.clone(), gateway, server, key) } else { now.clone() };
            next.gateways[gateway].spool[key].add(answer);
            next.gateways[gateway].attempt = Attempt::default();
            next.broken = next.truth[key].answer(fence);
            return Some(next);
        }
        let next = self.as_a_holder_finds_it(now, gateway, server, key)?;
        if Self::holds(&next, gateway, server, key) {
            return Some(Self::completed(next, gateway, server, key));
        }
        Some(Self::end(&next, gateway))
    }

    fn completed(mut next: State, gateway: GatewayId, server: ServerId, key: Key) -> State {
        let fence = next.gateways[gateway].attempt.fence;
        let redis = &mut next.servers[server];
        redis.records[key].write(Fact::new(Kind::Completed, fence), true, false);
        redis.outbox[key] = Outbox::Dirty;
        redis.hwm = redis.hwm.max(fence);
        next.gateways[gateway].attempt.step = Step::Completed;
        next.truth[key].settled.add(fence);
        next
    }

    /// Nothing was sent: the key is free, unless an earlier attempt left it ambiguous (A9).
    pub(crate) fn release(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let Attempt { step, key, fence, .. } = now.gateways[gateway].attempt;
        let is_unsent = matches!(step, Step::Spooled | Step::Marked);
        let key = key.filter(|_| is_unsent || step == Step::Sent && self.is(Mutant::ReleaseAfterSend))?;
        if !self.script_runs(now, gateway, server) {
            return None;
        }
        let mut next = self.as_a_holder_finds_it(now, gateway, server, key)?;
        if !Self::holds(&next, gateway, server, key) {
            return Some(Self::end(&next, gateway));
        }
        if !self.free(&mut next.servers[server], key) {
            return Some(Self::end(&next, gateway));
        }
        next.gateways[gateway].attempt.step = Step::Released;
        next.truth[key].settled.add(fence);
        Some(next)
    }

    /// Whether a release frees the key.
    fn free(&self, redis: &mut Server, key: Key) -> bool {
        redis.outbox[key] = Outbox::Dirty;
        let record = &mut redis.records[key];
        if record.is_ambiguous && !self.is(Mutant::ReleaseIgnoresAmbiguity) {
            // That this attempt did nothing says nothing of the one before.
            (record.lease_is_over, record.is_dispatched) = (true, true);
            record.touch();
            return false;
        }
        if self.is(Mutant::TextReleaseDeletes) {
            *record = Record::default();
        } else {
            record.write(Fact::new(Kind::Released, record.fact.fence), false, false);
        }
        true
    }

    /// Whether what is there is a claim whose reply was lost, for who had asked for it to release. It is told by its id.
    pub(crate) fn is_lost(now: &State, key: Key, fact: Fact) -> bool {
        let truth = &now.truth[key];
        fact.kind == Kind::InFlight && (truth.lost.has(fact.fence) || truth.given_again.has(fact.fence))
    }

    /// Whoever claimed in vain releases what they may hold, in the view that they claimed in, and nobody hears of it.
    pub(crate) fn release_lost(&self, now: &State, server: ServerId, key: Key) -> Option<State> {
        let redis = &now.servers[server];
        let fact = redis.records[key].fact;
        // A script may come late, as long as the server has that view.
        if !redis.is_master || fact.fence <= redis.before || !Self::is_lost(now, key, fact) {
            return None;
        }
        let mut next = now.clone();
        let redis = &mut next.servers[server];
        redis.records[key].is_of_lost = self.free(redis, key);
        (next != *now).then_some(next)
    }

    /// And in a later view, like any holder (A1).
    pub(crate) fn release_lost_later(
        &self,
        now: &State,
        gateway: GatewayId,
        server: ServerId,
        key: Key,
    ) -> Option<State> {
        if !self.script_runs(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        if !now.servers[server].is_warm {
            let row = now.gateways[gateway].rows[key]?;
            next.broken = self.merge(&now.truth[key], &mut next.servers[server], key, row);
        }
        let redis = &mut next.servers[server];
        let fact = redis.records[key].fact;
        if fact.fence > redis.before || !Self::is_lost(now, key, fact) {
            return None;
        }
        redis.records[key].is_of_lost = self.free(redis, key);
        (next != *now).then_some(next)
    }

    /// A completed record is shown in any view.
    pub(crate) fn replay(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let fact = now.servers[server].records[key].fact;
        let is_shown = fact.kind == Kind::Completed && !now.truth[key].is_over(fact);
        if !is_shown || !self.script_runs(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        let is_erased = now.truth[key].erased.has(fact.fence);
        next.broken = next.truth[key].answer(fact.fence).or(is_erased.then_some(Rule::ErasedIsNeverShown));
        (next != *now).then_some(next)
    }

    /// A probe or an operator begins to settle an unknown outcome: the claim is theirs, under a new fence, and in the
    /// journal like any other before anything is decided. Else an answer that was shown could be lost, and the earlier
    /// holder give another.
    pub(crate) fn resolve_begin(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let may = self.settings.resolves && !self.is(Mutant::TextResolveAtOnce);
        if !may || !self.is_as_seen(now, gateway, server, key) || !self.may_begin(now, gateway, server) {
            return None;
        }
        let last = now.servers[server].records[key].fact.fence;
        let mut next = self.grant(now, gateway, server, key, last, true)?;
        next.servers[server].records[key].is_dispatched = true;
        next.gateways[gateway].attempt.step = Step::Resolving;
        Some(next)
    }

    /// And writes what the books say, under that fence.
    ///
    /// They are asked once the upstream is quiet: nothing of this key is on its way, and no earlier attempt will be sent
    /// any more. Then what they say is what is so.
    pub(crate) fn resolve_end(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let Attempt { step, key, fence, .. } = now.gateways[gateway].attempt;
        let key = key.filter(|key| step == Step::Asking && self.is_quiet(now, *key))?;
        if !self.script_runs(now, gateway, server) {
            return None;
        }
        let next = self.as_a_holder_finds_it(now, gateway, server, key)?;
        if !Self::holds(&next, gateway, server, key) {
            return Some(Self::end(&next, gateway));
        }
        Some(self.resolved(next, gateway, server, key, fence))
    }

    /// Both in one write, as the text has it.
    pub(crate) fn resolve_at_once(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let may = self.settings.resolves && self.is(Mutant::TextResolveAtOnce) && self.is_quiet(now, key);
        if !may || !self.is_as_seen(now, gateway, server, key) || !self.may_begin(now, gateway, server) {
            return None;
        }
        let fence = self.next_fence(now.servers[server].hwm, now.servers[server].records[key].fact.fence)?;
        Some(self.resolved(now.clone(), gateway, server, key, fence))
    }

    fn is_quiet(&self, now: &State, key: Key) -> bool {
        let may_still_be_sent = |id: GatewayId| {
            let attempt = &now.gateways[id].attempt;
            attempt.key == Some(key) && matches!(attempt.step, Step::Granted | Step::Spooled | Step::Marked)
        };
        let is_quiet = now.truth[key].on_the_wire.is_empty() && !self.gateways().any(may_still_be_sent);
        is_quiet || self.is(Mutant::ResolveBeforeQuiet)
    }

    fn resolved(&self, mut next: State, gateway: GatewayId, server: ServerId, key: Key, fence: u8) -> State {
        let truth = &mut next.truth[key];
        let resolution = if truth.effects > 0 { Kind::Completed } else { Kind::Released };
        truth.settled.add(fence);
        truth.from_books.add(fence);
        if resolution == Kind::Released {
            // A definite "not executed" frees the key (T1); that it was true is looked at by the effects.
            truth.sent = truth.sent.above(fence);
        }
        let redis = &mut next.servers[server];
        redis.records[key].write(Fact::new(resolution, fence), true, false);
        redis.outbox[key] = Outbox::Dirty;
        redis.hwm = redis.hwm.max(fence);
        let who = &mut next.gateways[gateway];
        who.seen = None;
        who.rows[key] = None;
        who.attempt = Attempt { step: Step::Resolved, key: Some(key), fence, view: who.view, resolution };
        if self.is(Mutant::ResolveNotSpooled) {
            who.attempt = Attempt::default();
            if resolution == Kind::Completed {
                next.broken = next.truth[key].answer(fence);
            }
        }
        next
    }

    /// The first step of forgetting: the journal, since hydration would bring back what is only gone from Redis.
    pub(crate) fn forget_begin(&self, now: &State, gateway: GatewayId, server: ServerId, key: Key) -> Option<State> {
        let who = &now.gateways[gateway];
        let fact = now.servers[server].records[key].fact;
        let may = match fact.kind {
            Kind::Completed => !now.truth[key].is_over(fact),
            Kind::InFlight => self.settings.forgets_live,
            Kind::Absent | Kind::Released | Kind::Erased => false,
        };
        let is_ready = self.settings.forgets && who.forgetting.is_none() && now.is_on_timeline(gateway);
        if !may || !is_ready || now.postgres.retired.has(gateway) || !self.script_runs(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        next.gateways[gateway].forgetting = Some((key, fact.fence));
        let erased = Fact::new(Kind::Erased, fact.fence);
        if self.is(Mutant::ForgetRedisFirst) {
            next.servers[server].records[key].write(erased, false, false);
            next.truth[key].erased.add(fact.fence);
        } else {
            self.journal(&mut next.postgres, key, erased, true);
            if self.settings.postgres_fails && !self.is(Mutant::TextForgetNotRetained) {
                next.gateways[gateway].retained[key].add(erased);
            }
        }
        Some(next)
    }

    /// The second step: Redis, where the record is still that of the first. Then forgetting returns.
    pub(crate) fn forget_end(&self, now: &State, gateway: GatewayId, server: ServerId) -> Option<State> {
        let (key, fence) = now.gateways[gateway].forgetting?;
        let redis = &now.servers[server];
        let past_the_guard = self.is(Mutant::ForgetOutsideTheGuard) && redis.is_master;
        if !past_the_guard && !self.script_runs(now, gateway, server) {
            return None;
        }
        let mut next = now.clone();
        next.gateways[gateway].forgetting = None;
        let erased = Fact::new(Kind::Erased, fence);
        if self.is(Mutant::ForgetRedisFirst) {
            if !now.is_on_timeline(gateway) {
                return None;
            }
            self.journal(&mut next.postgres, key, erased, true);
            return Some(next);
        }
        let record = &mut next.servers[server].records[key];
        let is_the_same = record.fact.fence == fence
            && (record.fact.kind == Kind::Completed || record.is_in_flight() && self.settings.forgets_live);
        if !is_the_same || now.truth[key].is_over(record.fact) {
            return None;
        }
        record.write(erased, false, false);
        next.servers[server].outbox[key] = Outbox::Dirty;
        next.truth[key].erased.add(fence);
        Some(next)
    }
}
