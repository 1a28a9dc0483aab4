//! What a Redis server does for the protocol, in Rust: the rules that the scripts keep, which `sim/tests/front.rs` shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use onceward_core::{
    key::RecordId,
    record::{Facts, Fence, Micros, Record, SessionId, State, Stored},
};
use onceward_store::journaled::{
    At, Dirty, Fact, Incarnation, Install, Outbox, Row, Sight, Stepped, View, What, is_released, is_swept, merged,
    stepped,
};

/// A server.
#[derive(Clone, Debug)]
pub struct Server {
    /// A replica decides nothing.
    pub is_primary: bool,
    /// Of its data.
    pub incarnation: Incarnation,
    /// How far its clock is ahead of the others'.
    pub ahead: Duration,
    partitions: Vec<Partition>,
}

/// What a server holds of a partition.
#[derive(Clone, Debug, Default)]
struct Partition {
    view: View,
    sessions: BTreeMap<SessionId, bool>,
    is_warm: bool,
    /// No fence of a record that was there is above.
    mark: Fence,
    /// Fences up to here were granted in earlier views.
    before: Fence,
    /// What is not above it and has no row in the journal has ended.
    horizon: Fence,
    records: BTreeMap<RecordId, Record>,
    dirty: BTreeSet<RecordId>,
}

impl Server {
    /// Without data.
    #[must_use]
    pub fn new(incarnation: Incarnation, is_primary: bool, partitions: u16) -> Self {
        let partitions = vec![Partition::default(); usize::from(partitions)];
        Self { is_primary, incarnation, ahead: Duration::ZERO, partitions }
    }

    /// Everything is gone.
    pub fn empty(&mut self) {
        self.partitions.iter_mut().for_each(|partition| *partition = Partition::default());
    }

    /// Who may claim is gone, and nothing else.
    pub fn forget_sessions(&mut self) {
        self.partitions.iter_mut().for_each(|partition| partition.sessions.clear());
    }

    /// Its replica, which has all of its data and its incarnation.
    #[must_use]
    pub fn replica(&self) -> Self {
        Self { is_primary: false, ..self.clone() }
    }

    /// A record as it lies there, over or not.
    #[must_use]
    pub fn record(&self, partition: u16, id: &RecordId) -> Option<&Record> {
        self.partitions.get(usize::from(partition))?.records.get(id)
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

    /// See [`Front`](onceward_store::journaled::Front), whose calls these are.
    pub fn step(&mut self, at: &At, id: RecordId, what: What<'_>, row: Option<&Row>, now: Micros) -> Stepped {
        self.in_view(at).map_or(Stepped::Elsewhere, |partition| partition.step(id, what, row, now))
    }

    /// What the partition's server is.
    #[must_use]
    pub fn look(&self, partition: u16) -> Option<Sight> {
        let of = self.partitions.get(usize::from(partition))?;
        let Self { is_primary, incarnation, .. } = *self;
        Some(Sight { is_primary, incarnation, view: of.view, is_warm: of.is_warm, mark: of.mark })
    }

    /// Gives the partition a view.
    pub fn install(&mut self, at: &At, install: &Install, now: Micros) -> bool {
        if !self.is_primary || self.incarnation != at.incarnation {
            return false;
        }
        let Some(partition) = self.partitions.get_mut(usize::from(at.partition)) else { return false };
        if partition.view.number >= at.view.number {
            return partition.view == at.view;
        }
        partition.view = at.view;
        partition.sessions = install.admitted.iter().map(|session| (*session, true)).collect();
        partition.is_warm = false;
        partition.mark = partition.mark.max(install.mark).max(Fence(now.0));
        partition.before = partition.mark;
        partition.horizon = install.horizon;
        for erased in &install.erased {
            partition.merge(erased.id, &erased.record, now);
        }
        true
    }

    /// Lets a session in.
    pub fn admit(&mut self, at: &At) -> bool {
        let is_it = self.is_primary && self.incarnation == at.incarnation;
        match self.partitions.get_mut(usize::from(at.partition)) {
            Some(partition) if is_it && partition.view == at.view && at.view != View::default() => {
                *partition.sessions.entry(at.session).or_insert(true)
            }
            _ => false,
        }
    }

    /// Shuts another out.
    pub fn shut_out(&mut self, at: &At, target: SessionId) -> bool {
        self.in_view(at).map(|partition| partition.sessions.insert(target, false)).is_some()
    }

    /// What may not be in the journal, by id.
    pub fn dirty(&mut self, at: &At) -> Option<Outbox> {
        let partition = self.in_view(at)?;
        let of = |id: &RecordId| Some(Fact { id: *id, record: Arc::new(partition.records.get(id)?.clone()) });
        Some(Outbox { before: partition.before, facts: partition.dirty.iter().filter_map(of).collect() })
    }

    /// What is in the journal for good is dirty no more; what was released goes, once the view is warm (A9).
    pub fn clean(&mut self, at: &At, shipped: &[Dirty]) -> bool {
        let Some(partition) = self.in_view(at) else { return false };
        for Dirty { id, fence, revision } in shipped {
            let is_same = |record: &&Record| record.stored.fence == *fence && record.stored.revision == *revision;
            let Some(record) = partition.records.get(id).filter(is_same) else { continue };
            if !is_released(&record.facts) {
                partition.dirty.remove(id);
            } else if partition.is_warm {
                partition.dirty.remove(id);
                partition.records.remove(id);
            }
        }
        true
    }

    /// Merges rows; a view that is warm has all that they say, and what says less may be gone from it.
    pub fn merge(&mut self, at: &At, rows: &[Fact], now: Micros) -> bool {
        let Some(partition) = self.in_view(at) else { return false };
        if !partition.is_warm {
            rows.iter().for_each(|row| partition.merge(row.id, &row.record, now));
        }
        true
    }

    /// Every row is there.
    pub fn warm(&mut self, at: &At) -> bool {
        self.in_view(at).map(|partition| partition.is_warm = true).is_some()
    }
}

impl Partition {
    fn merge(&mut self, id: RecordId, row: &Record, now: Micros) {
        if let Some(record) = merged(self.records.get(&id), row, now, self.before) {
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
        let is_old = |record: &Record| is_swept(record, self.horizon);
        let is_old = self.records.get(&id).is_some_and(is_old);
        if is_old || !self.is_warm {
            let needs_row = match (what, what.holder()) {
                _ if is_old => true,
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
        let is_over = is_old && matches!(row, Some(None));
        let held = self.records.get(&id).cloned().map(|held| if is_over { ended(held, now) } else { held });
        if let Some(Record { stored, facts }) = stepped(held.as_ref(), what, now, self.mark) {
            return Stepped::Done { record: self.put(id, stored, facts), now };
        }
        match held.filter(|record| !record.is_expired(now)) {
            Some(record) => Stepped::There { record: Box::new(record), now },
            None => Stepped::Absent { now },
        }
    }
}

/// What is over since the journal has no row of it: its fence still counts.
fn ended(held: Record, now: Micros) -> Record {
    Record { stored: Stored { keep_until: now, ..held.stored }, ..held }
}
