//! What reaches the journal and what leaves it: shipping, late shipments, retention, sweeps (A4, A7 to A10).

use crate::model::Model;
use crate::mutants::Mutant;
use crate::state::{DATABASE, Fact, Facts, GatewayId, Key, Kind, Outbox, Postgres, Record, ServerId, State};

impl Model {
    /// An upsert: the larger fact stays (A4). Who may not insert, only updates a row (A7, A10).
    pub(crate) fn journal(&self, postgres: &mut Postgres, key: Key, fact: Fact, may_insert: bool) {
        let row = &mut postgres.journal[key];
        if row.is_absent() && !may_insert && !self.is(Mutant::RetiredInserts) {
            return;
        }
        if self.is(Mutant::ShipVersionGuard) && row.fence == fact.fence && row.kind == Kind::InFlight {
            return;
        }
        *row = fact.max(*row);
        postgres.hwm = postgres.hwm.max(fact.fence);
    }

    /// One fact of the spool is shipped, and its outbox entry with it.
    pub(crate) fn ship(&self, now: &State, gateway: GatewayId, key: Key, fact: Fact) -> Option<State> {
        if !now.gateways[gateway].spool[key].has(fact) || !now.is_on_timeline(gateway) {
            return None;
        }
        let mut next = now.clone();
        self.journal(&mut next.postgres, key, fact, !now.postgres.retired.has(gateway));
        let who = &mut next.gateways[gateway];
        who.spool[key].remove(fact);
        if (self.settings.postgres_fails || self.settings.ships_late) && !self.is(Mutant::NoRetention) {
            who.retained[key].add(fact);
        }
        for server in ServerId::ALL {
            if next.servers[server].records[key].fact == fact {
                next.servers[server].outbox[key] = self.shipped();
            }
        }
        Some(next)
    }

    /// A shipment that was delayed, or sent twice.
    pub(crate) fn ship_late(&self, now: &State, gateway: GatewayId, key: Key, fact: Fact) -> Option<State> {
        let is_retained = self.settings.ships_late && now.gateways[gateway].retained[key].has(fact);
        if !is_retained || !now.is_on_timeline(gateway) {
            return None;
        }
        let mut next = now.clone();
        self.journal(&mut next.postgres, key, fact, !now.postgres.retired.has(gateway));
        (next != *now).then_some(next)
    }

    /// Facts were kept for as long as a standby may lag behind. Counted anew on each timeline (A8).
    pub(crate) fn window_passes(&self, now: &State, gateway: GatewayId) -> Option<State> {
        let is_past_losing = |key, fact: Fact| !self.settings.postgres_fails || now.standby.journal[key] >= fact;
        let who = &now.gateways[gateway];
        let all_are = self.keys().all(|key| who.retained[key].iter().all(|fact| is_past_losing(key, fact)));
        if !all_are || !now.is_on_timeline(gateway) {
            return None;
        }
        let mut next = now.clone();
        for key in self.keys() {
            next.gateways[gateway].retained[key] = Facts::default();
            for server in ServerId::ALL {
                let redis = &mut next.servers[server];
                if redis.outbox[key] == Outbox::Retained && is_past_losing(key, redis.records[key].fact) {
                    redis.outbox[key] = Outbox::Clean;
                }
            }
        }
        (next != *now).then_some(next)
    }

    /// A key's retention is over: what it was settled as is as good as absent, and the key is a new one.
    pub(crate) fn retention_passes(&self, now: &State, key: Key) -> Option<State> {
        let row = now.postgres.journal[key];
        let is_settled = row.is_settled() && row.fence > now.truth[key].past && row.fence < self.settings.fences;
        // As it stands in the present view; retention begins with the record.
        let stands = now.postgres.incarnation == DATABASE
            || ServerId::ALL.into_iter().any(|server| {
                let redis = &now.servers[server];
                redis.is_master && redis.view == now.postgres.view && redis.records[key].fact == row
            });
        if !self.settings.retention || !is_settled || !now.postgres.is_active || !stands {
            return None;
        }
        let mut next = now.clone();
        let truth = &mut next.truth[key];
        truth.past = row.fence;
        (truth.sent, truth.answered) = (truth.sent.above(row.fence), truth.answered.above(row.fence));
        truth.effects = 0;
        // A journal read is younger than any retention.
        for gateway in GatewayId::ALL {
            next.gateways[gateway].rows[key] = None;
        }
        Some(next)
    }

    /// A record past its retention leaves Redis; the high-water mark keeps its fence.
    pub(crate) fn sweep(&self, now: &State, server: ServerId, key: Key) -> Option<State> {
        let redis = &now.servers[server];
        let record = &redis.records[key];
        let is_past = record.fact.is_settled() && record.fact.fence <= now.truth[key].past;
        let is_swept = is_past || self.is(Mutant::SweepInFlight) && record.is_in_flight() && record.lease_is_over;
        if !self.settings.retention || !redis.is_master || !is_swept {
            return None;
        }
        let mut next = now.clone();
        let fence = record.fact.fence;
        let redis = &mut next.servers[server];
        redis.hwm = if self.is(Mutant::SweepLowersHwm) { 0 } else { redis.hwm.max(fence) };
        redis.records[key] = Record::default();
        Some(next)
    }

    /// A release leaves Redis once it is in the journal and the view is warm (A9).
    pub(crate) fn drop_release(&self, now: &State, server: ServerId, key: Key) -> Option<State> {
        let redis = &now.servers[server];
        let is_shipped = redis.records[key].fact.kind == Kind::Released && redis.outbox[key] == Outbox::Clean;
        let may = redis.is_warm || self.is(Mutant::TextDropAfterShip);
        if !self.settings.retention || !redis.is_master || !is_shipped || !may {
            return None;
        }
        let mut next = now.clone();
        next.servers[server].records[key] = Record::default();
        Some(next)
    }

    /// A journal row past its retention goes once nobody can bring an older fact of it back (A10).
    pub(crate) fn sweep_journal(&self, now: &State, key: Key) -> Option<State> {
        let row = now.postgres.journal[key];
        if !self.settings.retention || !row.is_settled() || row.fence > now.truth[key].past {
            return None;
        }
        let may_bring_back = |gateway: GatewayId| {
            let who = &now.gateways[gateway];
            let is_held = who.attempt.key == Some(key) && who.attempt.fence <= row.fence;
            let is_spooled = who.spool[key].has_up_to(row.fence) || who.retained[key].has_up_to(row.fence);
            !now.postgres.retired.has(gateway) && (is_held || is_spooled)
        };
        if self.gateways().any(may_bring_back) && !self.is(Mutant::TextSweepJournal) {
            return None;
        }
        let mut next = now.clone();
        next.postgres.journal[key] = Fact::default();
        Some(next)
    }
}
