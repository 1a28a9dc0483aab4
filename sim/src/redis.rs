//! Redis: two servers, of which the second replicates the first with delay, behind the network. What they do is in
//! [`onceward_sim::server`].

use std::{fmt, sync::Arc};

use onceward_core::{
    key::RecordId,
    record::{Micros, SessionId},
};
use onceward_sim::server::Server;
use onceward_store::{
    Answer, StoreError,
    journaled::{At, Dirty, Fact, Front, Incarnation, Install, Outbox, Row, Sight, Stepped, What},
};

use crate::world::{Inner, Peer, World};

pub(crate) fn incarnation(number: u64) -> Incarnation {
    let mut id = [0; 20];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Incarnation(id)
}

/// A gateway's connection to Redis.
pub(crate) struct SimFront {
    pub(crate) world: Arc<World>,
    pub(crate) who: usize,
    pub(crate) life: u32,
}

impl fmt::Debug for SimFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFront({})", self.who)
    }
}

impl SimFront {
    async fn on<T>(&self, does: impl FnOnce(&mut Server, Micros) -> T) -> Result<T, StoreError> {
        self.world
            .call(self.who, self.life, Peer::Redis, |inner: &mut Inner, world| {
                let follows = inner.gateways[self.who].follows;
                let server = &mut inner.servers[follows];
                let now = world.clock(server.ahead);
                Ok(does(server, now))
            })
            .await
    }
}

impl Front for SimFront {
    fn step<'a>(&'a self, at: &'a At, id: RecordId, what: What<'a>, row: Option<&'a Row>) -> Answer<'a, Stepped> {
        Box::pin(self.on(move |server, now| {
            let of = server.incarnation;
            let stepped = server.step(at, id, what, row, now);
            tracing::trace!(%id, who = self.who, ?at, ?of, ?what, ?row, ?stepped, "step");
            stepped
        }))
    }

    fn look<'a>(&'a self, partitions: &'a [u16]) -> Answer<'a, Vec<(u16, Sight)>> {
        Box::pin(self.on(move |server, _| {
            partitions.iter().filter_map(|partition| Some((*partition, server.look(*partition)?))).collect()
        }))
    }

    fn install<'a>(&'a self, at: &'a At, install: &'a Install) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, now| server.install(at, install, now)))
    }

    fn admit<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| server.admit(at)))
    }

    fn shut_out<'a>(&'a self, at: &'a At, target: SessionId) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| server.shut_out(at, target)))
    }

    fn dirty<'a>(&'a self, at: &'a At) -> Answer<'a, Option<Outbox>> {
        Box::pin(self.on(move |server, _| server.dirty(at)))
    }

    fn clean<'a>(&'a self, at: &'a At, shipped: &'a [Dirty]) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| server.clean(at, shipped)))
    }

    fn merge<'a>(&'a self, at: &'a At, rows: &'a [Fact]) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, now| server.merge(at, rows, now)))
    }

    fn warm<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| server.warm(at)))
    }
}
