//! The database: the journal, views and members, and a standby that may be behind when it takes over. What SQL functions do
//! is done here in Rust, by the same rules.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use onceward_core::{
    key::RecordId,
    mutant::{self, Mutant},
    record::{Fence, Micros, Record, SessionId, State},
};
use onceward_store::{
    Answer, StoreError,
    journaled::{
        Fact, Incarnation, Install, Journal, LastActive, Mark, Member, Opening, Order, Row, Snapshot, Timeline, View,
        ViewRow,
    },
};

use crate::world::{Inner, PARTITIONS, Peer, World};

/// A session that was not heard of for so long is retired.
pub(crate) const SILENT: Duration = Duration::from_secs(3);

/// The timeline that the database was made on.
const FIRST: Timeline = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Live,
    Retiring,
    Retired,
}

#[derive(Clone, Debug)]
struct MemberRow {
    status: Status,
    /// When it became what it is.
    since: Mark,
    heard_at: Duration,
    acknowledged: BTreeMap<u16, View>,
}

#[derive(Clone, Copy, Debug)]
struct ViewState {
    row: ViewRow,
    last_active: Option<(LastActive, Timeline)>,
}

/// A database, or its standby.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) timeline: Timeline,
    /// Of its last commit.
    pub(crate) mark: Mark,
    views: Vec<ViewState>,
    members: BTreeMap<SessionId, MemberRow>,
    rows: BTreeMap<RecordId, Record>,
    marks: BTreeMap<u16, Fence>,
}

pub(crate) fn partition_of(id: &RecordId) -> u16 {
    id.partition() % PARTITIONS
}

impl Database {
    pub(crate) fn new() -> Self {
        let of = |partition| ViewState {
            row: ViewRow {
                partition,
                view: View::default(),
                incarnation: Incarnation::default(),
                timeline: FIRST,
                is_active: false,
                is_agreed: false,
            },
            last_active: None,
        };
        Self {
            timeline: FIRST,
            mark: 0,
            views: (0..PARTITIONS).map(of).collect(),
            members: BTreeMap::new(),
            rows: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }

    /// Whether a session is gone that nobody can retire.
    pub(crate) fn is_waiting_for_somebody(&self, now: Duration) -> bool {
        self.members.values().any(|row| row.status != Status::Retired && row.heard_at + SILENT < now)
    }

    fn commit(&mut self) -> Mark {
        self.mark += 1;
        self.mark
    }

    fn view(&self, partition: u16) -> &ViewState {
        &self.views[usize::from(partition)]
    }

    fn serves(&self, partition: u16, view: View) -> bool {
        let row = &self.view(partition).row;
        row.is_active && row.view == view && row.timeline == self.timeline
    }

    fn is_agreed(&self, row: &ViewRow, kept: Mark) -> bool {
        row.view.number > 0
            && self.members.values().all(|member| match member.status {
                Status::Retired => member.since <= kept,
                _ => member.acknowledged.get(&row.partition) == Some(&row.view),
            })
    }

    fn merge(&mut self, fact: &Fact, may_insert: bool) {
        let mark = self.marks.entry(partition_of(&fact.id)).or_default();
        *mark = (*mark).max(fact.record.stored.fence);
        match self.rows.get(&fact.id) {
            None if !may_insert => {}
            Some(row) if Order::of(row) >= Order::of(&fact.record) => {}
            _ => drop(self.rows.insert(fact.id, Record::clone(&fact.record))),
        }
    }

    /// What a server is to be given with a view that all have acknowledged.
    fn install(&self, timeline: Timeline, kept: Mark, partition: u16, view: View) -> Option<Install> {
        let row = self.view(partition).row;
        let is_it = self.timeline == timeline && row.view == view && row.timeline == timeline && !row.is_active;
        if !is_it || !self.is_agreed(&row, kept) {
            return None;
        }
        let may = |row: &MemberRow| row.status == Status::Live && (row.since <= kept || mutant::is(Mutant::JoinAtOnce));
        let erased = |(id, record): (&RecordId, &Record)| {
            let is_erased = record.facts.state == State::Erased && partition_of(id) == partition;
            is_erased.then(|| Fact { id: *id, record: Arc::new(record.clone()) })
        };
        Some(Install {
            admitted: self.members.iter().filter(|(_, row)| may(row)).map(|(session, _)| *session).collect(),
            mark: self.marks.get(&partition).copied().unwrap_or_default(),
            erased: self.rows.iter().filter_map(erased).collect(),
        })
    }

    fn is_last_active(&self, view: &LastActive) -> bool {
        self.view(view.partition).last_active == Some((*view, self.timeline))
    }
}

/// A gateway's connection to the database.
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
    async fn on<T>(&self, does: impl FnOnce(&mut Inner, Duration) -> T) -> Result<T, StoreError> {
        let at_the_server = |inner: &mut Inner, world: &World| Ok(does(inner, world.elapsed()));
        self.world.call(self.who, self.life, Peer::Database, at_the_server).await
    }

    /// A transaction that is refused on another timeline.
    async fn within(
        &self,
        timeline: Timeline,
        does: impl FnOnce(&mut Database, Mark) -> bool,
    ) -> Result<bool, StoreError> {
        self.on(|inner, _| {
            let kept = inner.kept();
            inner.database.timeline == timeline && does(&mut inner.database, kept)
        })
        .await
    }
}

impl SimJournal {
    /// A transaction over several partitions: those of which it was taken.
    async fn of_each(
        &self,
        timeline: Timeline,
        views: &[(u16, View)],
        does: impl Fn(&mut Database, Mark, u16, View) -> bool,
    ) -> Result<Vec<u16>, StoreError> {
        self.on(|inner, _| {
            let kept = inner.kept();
            let database = &mut inner.database;
            if database.timeline != timeline {
                return Vec::new();
            }
            let taken = views.iter().filter(|(partition, view)| does(database, kept, *partition, *view));
            let taken: Vec<u16> = taken.map(|(partition, _)| *partition).collect();
            if !taken.is_empty() {
                database.commit();
            }
            taken
        })
        .await
    }
}

impl Journal for SimJournal {
    fn look(&self, session: SessionId) -> Answer<'_, Snapshot> {
        Box::pin(self.on(move |inner, now| {
            let kept = inner.kept();
            let database = &mut inner.database;
            let me = match database.members.get_mut(&session) {
                None => Member::No,
                Some(row) => {
                    row.heard_at = now;
                    match row.status {
                        Status::Live => Member::Live { is_kept: row.since <= kept },
                        Status::Retiring => Member::Retiring,
                        Status::Retired => Member::Retired,
                    }
                }
            };
            let agreed = |view: &ViewState| ViewRow { is_agreed: database.is_agreed(&view.row, kept), ..view.row };
            let is_silent = |row: &MemberRow| match row.status {
                Status::Live => row.heard_at + SILENT < now,
                Status::Retiring => true,
                Status::Retired => false,
            };
            let silent = database.members.iter().filter(|(_, row)| is_silent(row)).map(|(session, _)| *session);
            Snapshot {
                timeline: database.timeline,
                kept,
                me,
                views: database.views.iter().map(agreed).collect(),
                silent: silent.collect(),
            }
        }))
    }

    fn join(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool> {
        Box::pin(self.on(move |inner, now| {
            let database = &mut inner.database;
            let is_old = |view: &ViewState| view.row.view.number > 0 && view.row.timeline != timeline;
            if database.timeline != timeline || database.views.iter().any(is_old) {
                return false;
            }
            let waits = database.views.iter().filter(|view| !view.row.is_active && view.row.view.number > 0);
            let acknowledged = waits.map(|view| (view.row.partition, view.row.view)).collect();
            let since = database.commit();
            let row = MemberRow { status: Status::Live, since, heard_at: now, acknowledged };
            database.members.entry(session).or_insert(row);
            true
        }))
    }

    fn ship<'a>(&'a self, session: SessionId, timeline: Timeline, facts: &'a [Fact]) -> Answer<'a, Option<Mark>> {
        Box::pin(self.on(move |inner, _| {
            let database = &mut inner.database;
            if database.timeline != timeline {
                return None;
            }
            let is_retired = database.members.get(&session).is_none_or(|row| row.status == Status::Retired);
            facts.iter().for_each(|fact| database.merge(fact, !is_retired));
            Some(database.commit())
        }))
    }

    fn row(&self, partition: u16, view: View, id: RecordId) -> Answer<'_, Option<Row>> {
        Box::pin(self.on(move |inner, _| {
            let database = &inner.database;
            database.serves(partition, view).then(|| database.rows.get(&id).cloned().map(Box::new))
        }))
    }

    fn rows(&self, partition: u16, view: View, after: Option<RecordId>, limit: usize) -> Answer<'_, Option<Vec<Fact>>> {
        use std::ops::Bound::{Excluded, Unbounded};
        Box::pin(self.on(move |inner, _| {
            let database = &inner.database;
            let rows = database.rows.range((after.map_or(Unbounded, Excluded), Unbounded));
            let rows = rows.filter(|(id, _)| partition_of(id) == partition).take(limit);
            let facts = rows.map(|(id, record)| Fact { id: *id, record: Arc::new(record.clone()) }).collect();
            database.serves(partition, view).then_some(facts)
        }))
    }

    fn list(&self, after: Option<RecordId>, limit: usize) -> Answer<'_, (Vec<Fact>, Micros)> {
        use std::ops::Bound::{Excluded, Unbounded};
        Box::pin(self.on(move |inner, now| {
            let rows = inner.database.rows.range((after.map_or(Unbounded, Excluded), Unbounded)).take(limit);
            let facts = rows.map(|(id, record)| Fact { id: *id, record: Arc::new(record.clone()) }).collect();
            (facts, Micros::ZERO.plus(now))
        }))
    }

    fn open<'a>(&'a self, session: SessionId, timeline: Timeline, openings: &'a [Opening]) -> Answer<'a, usize> {
        Box::pin(self.on(move |inner, _| {
            let database = &mut inner.database;
            let is_member = database.members.get(&session).is_some_and(|row| row.status != Status::Retired);
            let has_members = database.members.values().any(|row| row.status != Status::Retired);
            if database.timeline != timeline || (has_members && !is_member) {
                return 0;
            }
            let mut opened = 0;
            for Opening { before, acknowledged, incarnation } in openings {
                let state = &mut database.views[usize::from(before.partition)];
                if state.row.view != before.view || state.row.timeline != before.timeline {
                    continue;
                }
                let number = before.view.number.max(*acknowledged) + 1;
                let view = View { number, tag: inner.rng.u64(..) };
                let incarnation = *incarnation;
                state.row = ViewRow { view, incarnation, timeline, is_active: false, is_agreed: false, ..*before };
                opened += 1;
            }
            database.commit();
            opened
        }))
    }

    fn acknowledge<'a>(
        &'a self,
        session: SessionId,
        timeline: Timeline,
        views: &'a [(u16, View)],
    ) -> Answer<'a, Vec<u16>> {
        Box::pin(self.of_each(timeline, views, move |database, _, partition, view| {
            let row = database.view(partition).row;
            let waits = row.view == view && !row.is_active && row.timeline == timeline;
            let Some(member) = database.members.get_mut(&session).filter(|_| waits) else { return false };
            if member.status != Status::Live {
                return false;
            }
            member.acknowledged.insert(partition, view);
            true
        }))
    }

    fn agreed<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<(u16, Install)>> {
        Box::pin(self.on(move |inner, _| {
            let (kept, database) = (inner.kept(), &inner.database);
            let each = views.iter().filter_map(|(partition, view)| {
                Some((*partition, database.install(timeline, kept, *partition, *view)?))
            });
            each.collect()
        }))
    }

    fn activate<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<u16>> {
        Box::pin(self.of_each(timeline, views, move |database, kept, partition, view| {
            let row = database.view(partition).row;
            if row.view != view || row.timeline != timeline || row.is_active || !database.is_agreed(&row, kept) {
                return false;
            }
            let last = LastActive { partition, view, incarnation: row.incarnation };
            let state = &mut database.views[usize::from(partition)];
            (state.row.is_active, state.last_active) = (true, Some((last, timeline)));
            true
        }))
    }

    fn leave(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool> {
        Box::pin(self.within(timeline, move |database, _| {
            let since = database.commit();
            if let Some(row) = database.members.get_mut(&session).filter(|row| row.status != Status::Retired) {
                (row.status, row.since) = (Status::Retired, since);
            }
            true
        }))
    }

    fn retire(&self, by: SessionId, target: SessionId, timeline: Timeline) -> Answer<'_, Option<Vec<LastActive>>> {
        Box::pin(self.on(move |inner, _| {
            let database = &mut inner.database;
            let is_there = |session| database.members.get(session).filter(|row| row.status != Status::Retired);
            let helps = is_there(&by).is_some_and(|row| row.status == Status::Live);
            let target_row = is_there(&target).filter(|_| helps && database.timeline == timeline)?;
            let mut views = Vec::new();
            for state in &database.views {
                let row = state.row;
                if !row.is_active
                    && row.view.number > 0
                    && target_row.acknowledged.get(&row.partition) == Some(&row.view)
                {
                    return None;
                }
                match state.last_active {
                    Some((view, of)) if of == timeline => views.push(view),
                    // On the first timeline nothing can have been lost: no view was ever active.
                    None if timeline == FIRST => {}
                    _ => return None,
                }
            }
            let since = database.commit();
            if let Some(row) = database.members.get_mut(&target).filter(|row| row.status == Status::Live) {
                (row.status, row.since) = (Status::Retiring, since);
            }
            Some(views)
        }))
    }

    fn drain<'a>(
        &'a self,
        by: SessionId,
        timeline: Timeline,
        view: &'a LastActive,
        facts: &'a [Fact],
    ) -> Answer<'a, Option<Mark>> {
        Box::pin(self.on(move |inner, _| {
            let database = &mut inner.database;
            let helps = database.members.get(&by).is_some_and(|row| row.status == Status::Live);
            if database.timeline != timeline || !helps || !database.is_last_active(view) {
                return None;
            }
            facts.iter().for_each(|fact| database.merge(fact, true));
            Some(database.commit())
        }))
    }

    fn retired<'a>(&'a self, target: SessionId, timeline: Timeline, views: &'a [LastActive]) -> Answer<'a, bool> {
        Box::pin(self.within(timeline, move |database, _| {
            if !views.iter().all(|view| database.is_last_active(view)) {
                return false;
            }
            let since = database.commit();
            if let Some(row) = database.members.get_mut(&target).filter(|row| row.status == Status::Retiring) {
                (row.status, row.since) = (Status::Retired, since);
            }
            true
        }))
    }
}
