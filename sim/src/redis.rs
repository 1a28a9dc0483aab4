//! Redis: two servers, of which the second replicates the first with delay. What a script does is done here in Rust, by the
//! same rules; that the scripts keep them is for the tests with real servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use onceward_core::{
    cas,
    key::RecordId,
    record::{Facts, Fence, Micros, Record, Revision, SessionId, State, Stored},
};
use onceward_store::{
    Answer, StoreError,
    journaled::{At, Dirty, Fact, Front, Incarnation, Install, Row, Sight, Stepped, View, What, merged},
};

use crate::world::{Inner, Peer, World};

/// A server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) is_primary: bool,
    pub(crate) incarnation: Incarnation,
    /// How far its clock is ahead of the others'.
    pub(crate) ahead: Duration,
    pub(crate) partitions: Vec<Partition>,
}

/// What a server holds of a partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partition {
    view: View,
    sessions: BTreeMap<SessionId, bool>,
    is_warm: bool,
    /// No fence of a record that was there is above.
    mark: Fence,
    /// Fences up to here were granted in earlier views.
    before: Fence,
    records: BTreeMap<RecordId, Record>,
    dirty: BTreeSet<RecordId>,
}

pub(crate) fn incarnation(number: u64) -> Incarnation {
    let mut id = [0; 20];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Incarnation(id)
}

impl Server {
    pub(crate) fn new(number: u64, is_primary: bool) -> Self {
        let partitions = vec![Partition::default(); usize::from(crate::world::PARTITIONS)];
        Self { is_primary, incarnation: incarnation(number), ahead: Duration::ZERO, partitions }
    }

    /// Everything is gone.
    pub(crate) fn empty(&mut self) {
        self.partitions.iter_mut().for_each(|partition| *partition = Partition::default());
    }

    /// The partition, where it is of this view for this session.
    fn in_view(&mut self, at: &At) -> Option<&mut Partition> {
        let partition = self.partitions.get_mut(usize::from(at.partition))?;
        let is_in = self.is_primary
            && self.incarnation == at.incarnation
            && partition.view == at.view
            && partition.sessions.get(&at.session) == Some(&true);
        is_in.then_some(partition)
    }
}

impl Partition {
    fn merge(&mut self, id: RecordId, row: &Record, now: Micros) {
        if let Some(record) = merged(self.records.get(&id), row, now) {
            self.mark = self.mark.max(record.stored.fence);
            self.records.insert(id, record);
        }
    }

    fn put(&mut self, id: RecordId, stored: Stored, facts: Facts) -> Arc<Record> {
        let record = Record { stored, facts };
        self.mark = self.mark.max(stored.fence);
        self.records.insert(id, record.clone());
        self.dirty.insert(id);
        Arc::new(record)
    }

    fn step(&mut self, id: RecordId, what: What<'_>, row: Option<&Row>, now: Micros) -> Stepped {
        let is_settled = |record: &Record| !matches!(record.facts.state, State::InFlight | State::NotExecuted);
        if !self.is_warm {
            let needs_row = match (what, what.holder()) {
                (_, Some(fence)) => fence <= self.before,
                (What::Insert { .. } | What::Get, None) => {
                    !self.records.get(&id).is_some_and(|record| is_settled(record) && !record.is_expired(now))
                }
                (_, None) => true,
            };
            match row {
                None if needs_row => return Stepped::NeedsRow,
                Some(Some(row)) => self.merge(id, row, now),
                _ => {}
            }
        }
        let there = self.records.get(&id).filter(|record| !record.is_expired(now)).cloned();
        let otherwise = match &there {
            Some(record) => Stepped::There { record: Box::new(record.clone()), now },
            None => Stepped::Absent { now },
        };
        match (what, there) {
            (What::Insert { facts, lease }, there) => {
                if there.as_ref().is_some_and(|record| record.facts.state != State::NotExecuted) {
                    return otherwise;
                }
                let last = self.records.get(&id).map(|record| record.stored);
                let stored = cas::inserted(lease, now, self.mark, last.as_ref());
                Stepped::Done { record: self.put(id, stored, facts.clone()), now }
            }
            (What::Replace(write), Some(record)) if cas::is_meant(write.expect, &record.stored, record.facts.state) => {
                let stored = cas::replaced(write, &record.stored, now, self.mark);
                Stepped::Done { record: self.put(id, stored, write.facts.clone()), now }
            }
            (What::Extend { holder, lease }, Some(record))
                if cas::is_meant(cas::Expect::Holder(holder), &record.stored, record.facts.state) =>
            {
                let stored = cas::extended(&record.stored, lease, now);
                Stepped::Done { record: self.put(id, stored, record.facts), now }
            }
            (What::Release(expect), Some(record)) if cas::is_meant(expect, &record.stored, record.facts.state) => {
                let revision = Revision(record.stored.revision.0 + 1);
                let stored = Stored { revision, lease_until: Micros::ZERO, written_at: now, ..record.stored };
                let facts = Facts { state: State::NotExecuted, settled_at: now, outcome: None, ..record.facts };
                Stepped::Done { record: self.put(id, stored, facts), now }
            }
            _ => otherwise,
        }
    }
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
            let stepped = server.in_view(at).map_or(Stepped::Elsewhere, |partition| partition.step(id, what, row, now));
            tracing::trace!(%id, who = self.who, ?at, ?of, ?what, ?row, ?stepped, "step");
            stepped
        }))
    }

    fn look<'a>(&'a self, partitions: &'a [u16]) -> Answer<'a, Vec<(u16, Sight)>> {
        Box::pin(self.on(move |server, _| {
            let sight = |partition: &u16| {
                let of = &server.partitions[usize::from(*partition)];
                let Server { is_primary, incarnation, .. } = *server;
                (*partition, Sight { is_primary, incarnation, view: of.view, is_warm: of.is_warm })
            };
            partitions.iter().map(sight).collect()
        }))
    }

    fn install<'a>(&'a self, at: &'a At, install: &'a Install) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, now| {
            if !server.is_primary || server.incarnation != at.incarnation {
                return false;
            }
            let Some(partition) = server.partitions.get_mut(usize::from(at.partition)) else { return false };
            if partition.view.number >= at.view.number {
                return partition.view == at.view;
            }
            partition.view = at.view;
            partition.sessions = install.admitted.iter().map(|session| (*session, true)).collect();
            partition.is_warm = false;
            partition.mark = partition.mark.max(install.mark).max(Fence(now.0));
            partition.before = partition.mark;
            for erased in &install.erased {
                partition.merge(erased.id, &erased.record, now);
            }
            true
        }))
    }

    fn admit<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| {
            let is_it = server.is_primary && server.incarnation == at.incarnation;
            match server.partitions.get_mut(usize::from(at.partition)) {
                Some(partition) if is_it && partition.view == at.view => {
                    *partition.sessions.entry(at.session).or_insert(true)
                }
                _ => false,
            }
        }))
    }

    fn shut_out<'a>(&'a self, at: &'a At, target: SessionId) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| {
            server.in_view(at).map(|partition| partition.sessions.insert(target, false)).is_some()
        }))
    }

    fn dirty<'a>(&'a self, at: &'a At) -> Answer<'a, Option<Vec<Fact>>> {
        Box::pin(self.on(move |server, _| {
            let partition = server.in_view(at)?;
            let of = |id: &RecordId| Some(Fact { id: *id, record: Arc::new(partition.records.get(id)?.clone()) });
            Some(partition.dirty.iter().filter_map(of).collect())
        }))
    }

    fn clean<'a>(&'a self, at: &'a At, shipped: &'a [Dirty]) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| {
            let Some(partition) = server.in_view(at) else { return false };
            for Dirty { id, fence, revision } in shipped {
                let is_same = |record: &Record| record.stored.fence == *fence && record.stored.revision == *revision;
                if partition.records.get(id).is_some_and(is_same) {
                    partition.dirty.remove(id);
                }
            }
            true
        }))
    }

    fn merge<'a>(&'a self, at: &'a At, rows: &'a [Fact]) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, now| {
            let Some(partition) = server.in_view(at) else { return false };
            rows.iter().for_each(|row| partition.merge(row.id, &row.record, now));
            true
        }))
    }

    fn warm<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        Box::pin(self.on(move |server, _| server.in_view(at).map(|partition| partition.is_warm = true).is_some()))
    }
}
