//! States that no step can tell apart are made one. Nothing is lost by it: whatever can follow one of them can follow the
//! other, and breaks the same rules.

use crate::model::Model;
use crate::mutants::Mutant;
use crate::state::{Fences, Gateway, GatewayId, Key, Life, Postgres, Server, ServerId, State};

impl Model {
    pub(crate) fn reduce(&self, state: &mut State) {
        if !self.settings.postgres_fails {
            // Nobody looks at it.
            state.standby = Postgres::default();
        }
        self.drop_what_was_read(state);
        self.drop_old_masters(state);
        self.drop_settled(state);
        if self.orders {
            self.order_gateways(state);
        }
    }

    /// What a gateway read and cannot use any more, and revisions that nobody has read.
    fn drop_what_was_read(&self, state: &mut State) {
        if self.is(Mutant::EpochOnly) {
            return;
        }
        let reads_count = !self.is(Mutant::FenceOnlyCas) && !self.is(Mutant::SeenAcrossViews);
        for id in self.gateways() {
            let who = state.gateways[id];
            let is_of =
                |redis: &Server| redis.is_master && (redis.incarnation, redis.view) == (who.incarnation, who.view);
            let is_asked_for = ServerId::ALL.iter().any(|id| is_of(&state.servers[*id]) && !state.servers[*id].is_warm);
            if !is_asked_for {
                state.gateways[id].rows = Default::default();
            }
            let still_stands = who.seen.is_some_and(|seen| {
                ServerId::ALL.iter().any(|id| {
                    let record = &state.servers[*id].records[seen.key];
                    let is_the_same = (record.fact.fence, record.revision) == (seen.fence, seen.revision);
                    is_of(&state.servers[*id]) && record.is_in_flight() && is_the_same
                })
            });
            if reads_count && !still_stands {
                state.gateways[id].seen = None;
            }
        }
        // Whatever is still held as read is what stands: revisions count from there.
        if reads_count {
            for key in self.keys() {
                for server in ServerId::ALL {
                    state.servers[server].records[key].revision = 0;
                }
            }
            for id in self.gateways() {
                if let Some(seen) = &mut state.gateways[id].seen {
                    seen.revision = 0;
                }
            }
        }
    }

    /// A master of an incarnation that no view and no gateway comes back to. It may still be restarted, and then counts.
    fn drop_old_masters(&self, state: &mut State) {
        // From the database a view may come back to any server.
        if self.is(Mutant::EpochOnly) || !state.servers.B.is_master || state.database_left > 0 {
            return;
        }
        for id in ServerId::ALL {
            let incarnation = state.servers[id].incarnation;
            let is_named_by = |row: &Postgres| incarnation >= row.incarnation || row.last_active.1 == incarnation;
            let is_named = is_named_by(&state.postgres)
                || self.settings.postgres_fails && is_named_by(&state.standby)
                || state.retirement.is_some_and(|retirement| retirement.incarnation == incarnation)
                || self.gateways().any(|id| {
                    let who = &state.gateways[id];
                    who.life == Life::Alive && who.incarnation == incarnation
                });
            if !is_named {
                state.servers[id] = Server { is_master: true, ..Server::default() };
            }
        }
    }

    /// What was settled in a view counts while that view is not warm.
    fn drop_settled(&self, state: &mut State) {
        let view = (state.postgres.view, state.postgres.incarnation);
        let is_loading = ServerId::ALL.into_iter().any(|id| {
            let redis = &state.servers[id];
            redis.is_master && !redis.is_warm && (redis.view, redis.incarnation) == view
        });
        if !is_loading {
            for key in Key::ALL {
                state.truth[key].settled = Fences::default();
            }
        }
    }

    /// Gateways differ by their names only: of all ways to name them the least is taken.
    fn order_gateways(&self, state: &mut State) {
        let founders = self.founders();
        let alike: Vec<GatewayId> = self.gateways().filter(|id| founders.has(*id)).collect();
        let swaps: &[(usize, usize)] = match alike.len() {
            2 => &[(0, 1)],
            3 => &[(0, 1), (1, 2), (0, 1), (1, 2), (0, 1)],
            _ => &[],
        };
        let mut other = state.clone();
        for (one, two) in swaps {
            if let (Some(one), Some(two)) = (alike.get(*one), alike.get(*two)) {
                other.swap(*one, *two);
            }
            if other < *state {
                *state = other.clone();
            }
        }
    }
}

impl State {
    fn swap(&mut self, one: GatewayId, two: GatewayId) {
        let first: Gateway = self.gateways[one];
        self.gateways[one] = self.gateways[two];
        self.gateways[two] = first;
        for server in ServerId::ALL {
            self.servers[server].allowed.swap(one, two);
        }
        for row in [&mut self.postgres, &mut self.standby] {
            for set in [&mut row.members, &mut row.acked, &mut row.retiring, &mut row.retired] {
                set.swap(one, two);
            }
        }
        let renamed = |id: GatewayId| match id {
            id if id == one => two,
            id if id == two => one,
            id => id,
        };
        if let Some(retirement) = &mut self.retirement {
            (retirement.target, retirement.by) = (renamed(retirement.target), renamed(retirement.by));
        }
        if let Some(forced) = &mut self.forced {
            forced.gateway = renamed(forced.gateway);
        }
    }
}
