//! What happens to servers and gateways by itself. Faults proper are counted; time, replication and pauses are not: a
//! gateway may pause between any two steps, a lease may end and a standby may lag at any time.

use crate::model::Model;
use crate::state::{Fences, Gateway, GatewayId, Key, Life, Server, ServerId, State};

impl Model {
    /// The replica takes over all that the master has, in one step or never.
    pub(crate) fn replicate(&self, now: &State) -> Option<State> {
        let (master, replica) = (now.servers.A, now.servers.B);
        let copy = Server { is_master: false, ..master };
        if !master.is_master || replica.is_master || replica == copy {
            return None;
        }
        let mut next = now.clone();
        next.servers.B = copy;
        Some(next)
    }

    pub(crate) fn lease_ends(&self, now: &State, server: ServerId, key: Key) -> Option<State> {
        let redis = &now.servers[server];
        let runs = redis.is_master && redis.records[key].is_in_flight() && !redis.records[key].lease_is_over;
        if !self.settings.leases_end || !runs {
            return None;
        }
        let mut next = now.clone();
        next.servers[server].records[key].lease_is_over = true;
        Some(next)
    }

    pub(crate) fn standby_catches_up(&self, now: &State) -> Option<State> {
        if !self.settings.postgres_fails || now.standby == now.postgres {
            return None;
        }
        let mut next = now.clone();
        next.standby = now.postgres;
        Some(next)
    }

    /// A state with one fault fewer to come.
    fn fault(now: &State) -> Option<State> {
        let mut next = now.clone();
        next.faults_left = now.faults_left.checked_sub(1)?;
        Some(next)
    }

    /// A replication id that nothing names. One that nothing names any more may be given again.
    fn new_incarnation(now: &State) -> u8 {
        let of_servers = ServerId::ALL.into_iter().map(|id| now.servers[id].incarnation);
        let of_gateways = GatewayId::ALL.into_iter().map(|id| now.gateways[id].incarnation);
        let of_views = [now.postgres, now.standby].map(|row| row.incarnation.max(row.last_active.1));
        let of_retirement = now.retirement.map(|retirement| retirement.incarnation);
        of_servers.chain(of_gateways).chain(of_views).chain(of_retirement).max().unwrap_or_default() + 1
    }

    /// A server is empty, as another incarnation.
    pub(crate) fn restart(&self, now: &State, server: ServerId) -> Option<State> {
        let may = self.settings.restarts && now.servers[server].is_master;
        may.then(|| Self::emptied(now, server, Self::new_incarnation(now))).flatten()
    }

    /// A server is empty, as the same incarnation.
    pub(crate) fn flush(&self, now: &State, server: ServerId) -> Option<State> {
        let may = self.settings.flushes && now.servers[server].is_master;
        may.then(|| Self::emptied(now, server, now.servers[server].incarnation)).flatten()
    }

    fn emptied(now: &State, server: ServerId, incarnation: u8) -> Option<State> {
        let mut next = Self::fault(now)?;
        next.servers[server] = Server { is_master: true, incarnation, ..Server::default() };
        for key in Key::ALL {
            next.truth[key].settled = Fences::default();
        }
        Some(next)
    }

    /// The replica becomes a master as far as it has got, while the old one may still be written to.
    pub(crate) fn promote(&self, now: &State) -> Option<State> {
        if !self.settings.promotes || now.servers.B.is_master {
            return None;
        }
        let mut next = Self::fault(now)?;
        next.servers.B = Server { is_master: true, incarnation: Self::new_incarnation(now), ..now.servers.B };
        Some(next)
    }

    /// A gateway is gone, and its spool with it.
    pub(crate) fn crash(&self, now: &State, gateway: GatewayId) -> Option<State> {
        if !self.settings.crashes || now.gateways[gateway].life != Life::Alive {
            return None;
        }
        let mut next = Self::fault(now)?;
        next.gateways[gateway] = Gateway { life: Life::Crashed, ..Gateway::default() };
        Some(next)
    }

    /// The standby takes Postgres's place, without what it had not got.
    pub(crate) fn postgres_fails_over(&self, now: &State) -> Option<State> {
        if !self.settings.postgres_fails || now.timeline >= self.settings.timelines {
            return None;
        }
        let mut next = Self::fault(now)?;
        next.postgres = now.standby;
        next.timeline += 1;
        Some(next)
    }
}
