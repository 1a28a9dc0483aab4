//! A gateway's connection to the database.

use std::{fmt, sync::Arc, time::Duration};

use onceward_core::{
    key::RecordId,
    record::{Micros, SessionId},
};
use onceward_sim::database::Database;
use onceward_store::{
    Answer, StoreError, Swept,
    journaled::{
        At, Fact, Horizon, Install, Journal, LastActive, Mark, Opening, Row, Snapshot, Stepped, Timeline, Unreached,
        View, What,
    },
};

use crate::world::{Inner, Peer, World};

/// A session that was not heard of for so long is retired.
pub(crate) const SILENT: Duration = Duration::from_secs(3);

/// One that was not heard of for so long has no say in whether servers are reached.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// The database as a gateway reaches it.
pub(crate) struct SimJournal {
    pub(crate) world: Arc<World>,
    pub(crate) who: usize,
    pub(crate) life: u32,
}

impl fmt::Debug for SimJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimJournal({})", self.who)
    }
}

impl SimJournal {
    fn on<'a, T: Send + 'a>(&'a self, does: impl FnOnce(&mut Inner, Duration) -> T + Send + 'a) -> Answer<'a, T> {
        let at_the_server = |inner: &mut Inner, world: &World| Ok::<_, StoreError>(does(inner, world.elapsed()));
        Box::pin(self.world.call(self.who, self.life, Peer::Database, at_the_server))
    }

    /// What asks neither for the time nor for what is past losing.
    fn at<'a, T: Send + 'a>(&'a self, does: impl FnOnce(&mut Database) -> T + Send + 'a) -> Answer<'a, T> {
        self.on(|inner, _| does(&mut inner.database))
    }
}

impl Journal for SimJournal {
    fn look(&self, session: SessionId) -> Answer<'_, Snapshot> {
        self.on(move |inner, now| {
            let kept = inner.kept();
            inner.database.look(session, now, SILENT, kept)
        })
    }

    fn join(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool> {
        self.on(move |inner, now| inner.database.join(session, timeline, now))
    }

    fn ship<'a>(&'a self, session: SessionId, timeline: Timeline, facts: &'a [Fact]) -> Answer<'a, Option<Mark>> {
        self.at(move |database| database.ship(session, timeline, facts))
    }

    fn row(&self, partition: u16, view: View, id: RecordId) -> Answer<'_, Option<Row>> {
        self.at(move |database| database.row(partition, view, id))
    }

    fn rows(&self, partition: u16, view: View, after: Option<RecordId>, limit: usize) -> Answer<'_, Option<Vec<Fact>>> {
        self.at(move |database| database.rows(partition, view, after, limit))
    }

    fn list(&self, after: Option<RecordId>, limit: usize, in_flight: bool) -> Answer<'_, (Vec<Fact>, Micros)> {
        self.on(move |inner, now| (inner.database.list(after, limit, in_flight), Micros::ZERO.plus(now)))
    }

    fn open<'a>(&'a self, session: SessionId, timeline: Timeline, openings: &'a [Opening]) -> Answer<'a, usize> {
        self.on(move |inner, _| {
            let Inner { database, rng, .. } = inner;
            database.open(session, timeline, openings, |_| rng.u64(..))
        })
    }

    fn acknowledge<'a>(
        &'a self,
        session: SessionId,
        timeline: Timeline,
        views: &'a [(u16, View)],
    ) -> Answer<'a, Vec<u16>> {
        self.at(move |database| database.acknowledge(session, timeline, views))
    }

    fn agreed<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<(u16, Install)>> {
        self.on(move |inner, _| inner.database.agreed(timeline, views, inner.kept()))
    }

    fn activate<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<u16>> {
        self.on(move |inner, _| {
            let kept = inner.kept();
            inner.database.activate(timeline, views, kept)
        })
    }

    fn leave(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool> {
        self.at(move |database| database.leave(session, timeline))
    }

    fn retire(&self, by: SessionId, target: SessionId, timeline: Timeline) -> Answer<'_, Option<Vec<LastActive>>> {
        self.at(move |database| database.retire(by, target, timeline))
    }

    fn drain<'a>(
        &'a self,
        by: SessionId,
        timeline: Timeline,
        view: &'a LastActive,
        facts: &'a [Fact],
    ) -> Answer<'a, Option<Mark>> {
        self.at(move |database| database.drain(by, timeline, view, facts))
    }

    fn retired<'a>(&'a self, target: SessionId, timeline: Timeline, views: &'a [LastActive]) -> Answer<'a, bool> {
        self.at(move |database| database.retired(target, timeline, views))
    }

    fn step<'a>(&'a self, at: &'a At, id: RecordId, what: What<'a>) -> Answer<'a, Stepped> {
        let at_the_server = move |inner: &mut Inner, world: &World| {
            let stepped = inner.database.step(at, id, what, world.clock(Duration::ZERO));
            inner.history.is_database_used |= matches!(stepped, Stepped::Done { .. });
            tracing::trace!(%id, who = self.who, ?at, ?what, ?stepped, "step in the database");
            Ok::<_, StoreError>(stepped)
        };
        Box::pin(self.world.call(self.who, self.life, Peer::Database, at_the_server))
    }

    fn unreached<'a>(&'a self, session: SessionId, partitions: &'a [u16]) -> Answer<'a, Unreached> {
        self.on(move |inner, now| inner.database.unreached(session, partitions, now, HEARD_WITHIN))
    }

    fn raise<'a>(&'a self, timeline: Timeline, horizons: &'a [Horizon]) -> Answer<'a, usize> {
        self.at(move |database| database.raise(timeline, horizons))
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, (Swept, Vec<u16>)> {
        let waits = u64::try_from(waits.as_micros()).unwrap_or(u64::MAX);
        let at_the_server = move |inner: &mut Inner, world: &World| {
            let before = Micros(world.clock(Duration::ZERO).0.saturating_sub(waits));
            Ok::<_, StoreError>(inner.database.sweep(limit, before))
        };
        Box::pin(self.world.call(self.who, self.life, Peer::Database, at_the_server))
    }
}
