//! The database: the journal, views and members. What SQL functions do is done here in Rust, by the same rules: the real ones
//! are held to them (`sim/tests/journal.rs`).

#![expect(clippy::indexing_slicing, reason = "a run that asks for what is not there is to end at once")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use onceward_core::{
    key::RecordId,
    mutant::{self, Mutant},
    record::{Fence, Micros, Record, SessionId, State},
};
use onceward_store::{
    Swept,
    journaled::{
        At, Fact, Horizon, Incarnation, Install, LastActive, Mark, Member, Opening, Order, Row, Snapshot, Stepped,
        Timeline, Unreached, View, ViewRow, What, as_record, is_released, stepped_in_row,
    },
};

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
    /// Which servers it does not reach, and when it said so.
    unreached: (Vec<u16>, Duration),
}

#[derive(Clone, Copy, Debug)]
struct ViewState {
    row: ViewRow,
    last_active: Option<(LastActive, Timeline)>,
}

/// A database, or its standby. What is past losing is known to whoever calls, as `kept`.
#[derive(Clone, Debug)]
pub struct Database {
    /// The present one.
    pub timeline: Timeline,
    /// Of its last commit.
    pub mark: Mark,
    /// The one that it was made on.
    first: Timeline,
    views: Vec<ViewState>,
    members: BTreeMap<SessionId, MemberRow>,
    rows: BTreeMap<RecordId, Record>,
    marks: BTreeMap<u16, Fence>,
    horizons: BTreeMap<u16, Fence>,
}

impl Database {
    /// Who is a member, and how.
    #[must_use]
    pub fn is_of_same_members(&self, other: &Self) -> bool {
        let all = |of: &Self| of.members.iter().map(|(session, row)| (*session, row.status)).collect::<Vec<_>>();
        all(self) == all(other)
    }

    /// An empty one, of so many partitions.
    #[must_use]
    pub fn new(partitions: u16, timeline: Timeline) -> Self {
        let of = |partition| ViewState {
            row: ViewRow {
                partition,
                view: View::default(),
                incarnation: Incarnation::default(),
                timeline,
                is_active: false,
                is_agreed: false,
            },
            last_active: None,
        };
        Self {
            timeline,
            mark: 0,
            first: timeline,
            views: (0..partitions).map(of).collect(),
            members: BTreeMap::new(),
            rows: BTreeMap::new(),
            marks: BTreeMap::new(),
            horizons: BTreeMap::new(),
        }
    }

    /// Whether a session is gone that nobody can retire.
    #[must_use]
    pub fn is_waiting_for_somebody(&self, now: Duration, silence: Duration) -> bool {
        self.members.values().any(|row| row.status != Status::Retired && row.heard_at + silence < now)
    }

    fn commit(&mut self) -> Mark {
        self.mark += 1;
        self.mark
    }

    fn partition_of(&self, id: &RecordId) -> u16 {
        id.partition() % u16::try_from(self.views.len()).unwrap_or(u16::MAX)
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

    /// Of each key the largest.
    fn merge_all(&mut self, facts: &[Fact], may_insert: bool) {
        let mut largest: BTreeMap<RecordId, &Fact> = BTreeMap::new();
        for fact in facts {
            let held = largest.entry(fact.id).or_insert(fact);
            if Order::of(&held.record) < Order::of(&fact.record) {
                *held = fact;
            }
        }
        largest.into_values().for_each(|fact| self.merge(fact, may_insert));
    }

    fn merge(&mut self, fact: &Fact, may_insert: bool) {
        let partition = self.partition_of(&fact.id);
        let mark = self.marks.entry(partition).or_default();
        *mark = (*mark).max(fact.record.stored.fence);
        let is_open = matches!(fact.record.facts.state, State::InFlight | State::NotExecuted);
        let is_below = is_open && fact.record.stored.fence <= self.horizon(partition);
        match self.rows.get(&fact.id) {
            None if !may_insert || (is_below && !mutant::is(Mutant::SweptComesBack)) => {}
            Some(row) if Order::of(row) >= Order::of(&fact.record) => {}
            _ => drop(self.rows.insert(fact.id, Record::clone(&fact.record))),
        }
    }

    fn horizon(&self, partition: u16) -> Fence {
        self.horizons.get(&partition).copied().unwrap_or_default()
    }

    fn is_last_active(&self, view: &LastActive) -> bool {
        self.view(view.partition).last_active == Some((*view, self.timeline))
    }

    fn is_live(&self, session: SessionId) -> bool {
        self.members.get(&session).is_some_and(|row| row.status == Status::Live)
    }

    /// Those of the views of which `does` was done.
    fn of_each(
        &mut self,
        timeline: Timeline,
        views: &[(u16, View)],
        does: impl Fn(&mut Self, u16, View) -> bool,
    ) -> Vec<u16> {
        if self.timeline != timeline {
            return Vec::new();
        }
        let taken = views.iter().filter(|(partition, view)| does(self, *partition, *view));
        let taken: Vec<u16> = taken.map(|(partition, _)| *partition).collect();
        if !taken.is_empty() {
            self.commit();
        }
        taken
    }
}

/// The calls of [`Journal`](onceward_store::journaled::Journal).
impl Database {
    /// What there is, and that this session is alive.
    pub fn look(&mut self, session: SessionId, now: Duration, silence: Duration, kept: Mark) -> Snapshot {
        let me = match self.members.get_mut(&session) {
            None => Member::No,
            Some(row) => {
                row.heard_at = now;
                match row.status {
                    Status::Live => Member::Live { is_kept: row.since <= kept },
                    Status::Retiring => Member::Retiring,
                    Status::Retired => Member::Retired { is_kept: row.since <= kept },
                }
            }
        };
        let agreed = |view: &ViewState| ViewRow {
            is_agreed: !view.row.is_active && self.is_agreed(&view.row, kept),
            ..view.row
        };
        let is_silent = |row: &MemberRow| match row.status {
            Status::Live => row.heard_at + silence < now,
            Status::Retiring => true,
            Status::Retired => false,
        };
        let silent = self.members.iter().filter(|(_, row)| is_silent(row)).map(|(session, _)| *session);
        Snapshot {
            timeline: self.timeline,
            kept,
            me,
            views: self.views.iter().map(agreed).collect(),
            silent: silent.collect(),
        }
    }

    /// Makes the session a member.
    pub fn join(&mut self, session: SessionId, timeline: Timeline, now: Duration) -> bool {
        let is_old = |view: &ViewState| view.row.view.number > 0 && view.row.timeline != timeline;
        if self.timeline != timeline || self.views.iter().any(is_old) {
            return false;
        }
        let waits = self.views.iter().filter(|view| !view.row.is_active && view.row.view.number > 0);
        let acknowledged = waits.map(|view| (view.row.partition, view.row.view)).collect();
        let since = self.commit();
        let unreached = (Vec::new(), Duration::ZERO);
        let row = MemberRow { status: Status::Live, since, heard_at: now, acknowledged, unreached };
        self.members.entry(session).or_insert(row);
        true
    }

    /// Merges facts.
    pub fn ship(&mut self, session: SessionId, timeline: Timeline, facts: &[Fact]) -> Option<Mark> {
        if self.timeline != timeline {
            return None;
        }
        let is_retired = self.members.get(&session).is_none_or(|row| row.status == Status::Retired);
        self.merge_all(facts, !is_retired);
        Some(self.commit())
    }

    /// A key's row.
    #[must_use]
    pub fn row(&self, partition: u16, view: View, id: RecordId) -> Option<Row> {
        self.serves(partition, view).then(|| self.rows.get(&id).cloned().map(Box::new))
    }

    /// Rows of a partition.
    #[must_use]
    pub fn rows(&self, partition: u16, view: View, after: Option<RecordId>, limit: usize) -> Option<Vec<Fact>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let rows = self.rows.range((after.map_or(Unbounded, Excluded), Unbounded));
        let rows = rows.filter(|(id, _)| self.partition_of(id) == partition).take(limit);
        let facts = rows.map(|(id, record)| Fact { id: *id, record: Arc::new(record.clone()) }).collect();
        self.serves(partition, view).then_some(facts)
    }

    /// Rows after `after`, whatever view they are of: all, or those in flight.
    #[must_use]
    pub fn list(&self, after: Option<RecordId>, limit: usize, in_flight: bool) -> Vec<Fact> {
        use std::ops::Bound::{Excluded, Unbounded};
        let rows = self.rows.range((after.map_or(Unbounded, Excluded), Unbounded));
        let rows = rows.filter(|(_, record)| !in_flight || record.facts.state == State::InFlight).take(limit);
        rows.map(|(id, record)| Fact { id: *id, record: Arc::new(record.clone()) }).collect()
    }

    /// Opens the next views of partitions; `tag` draws each one's.
    pub fn open(
        &mut self,
        session: SessionId,
        timeline: Timeline,
        openings: &[Opening],
        mut tag: impl FnMut(u16) -> u64,
    ) -> usize {
        let is_member = self.members.get(&session).is_some_and(|row| row.status != Status::Retired);
        let has_members = self.members.values().any(|row| row.status != Status::Retired);
        if self.timeline != timeline || (has_members && !is_member) {
            return 0;
        }
        let mut opened = 0;
        for Opening { before, acknowledged, incarnation } in openings {
            let state = &mut self.views[usize::from(before.partition)];
            if state.row.view != before.view || state.row.timeline != before.timeline {
                continue;
            }
            let number = before.view.number.max(*acknowledged) + 1;
            let view = View { number, tag: tag(before.partition) };
            let incarnation = *incarnation;
            state.row = ViewRow { view, incarnation, timeline, is_active: false, is_agreed: false, ..*before };
            opened += 1;
        }
        self.commit();
        opened
    }

    /// All that the session was granted in earlier views of the partitions is in the journal.
    pub fn acknowledge(&mut self, session: SessionId, timeline: Timeline, views: &[(u16, View)]) -> Vec<u16> {
        self.of_each(timeline, views, |database, partition, view| {
            let row = database.view(partition).row;
            let waits = row.view == view && !row.is_active && row.timeline == timeline;
            let Some(member) = database.members.get_mut(&session).filter(|_| waits) else { return false };
            if member.status != Status::Live {
                return false;
            }
            member.acknowledged.insert(partition, view);
            true
        })
    }

    /// What servers are to be given with those of the views that all have acknowledged.
    #[must_use]
    pub fn agreed(&self, timeline: Timeline, views: &[(u16, View)], kept: Mark) -> Vec<(u16, Install)> {
        let each = views.iter();
        each.filter_map(|(partition, view)| Some((*partition, self.install(timeline, kept, *partition, *view)?)))
            .collect()
    }

    fn install(&self, timeline: Timeline, kept: Mark, partition: u16, view: View) -> Option<Install> {
        let row = self.view(partition).row;
        let is_it = self.timeline == timeline && row.view == view && row.timeline == timeline && !row.is_active;
        if !is_it || !self.is_agreed(&row, kept) {
            return None;
        }
        let may = |row: &MemberRow| row.status == Status::Live && (row.since <= kept || mutant::is(Mutant::JoinAtOnce));
        let erased = |(id, record): (&RecordId, &Record)| {
            let is_erased = record.facts.state == State::Erased && self.partition_of(id) == partition;
            is_erased.then(|| Fact { id: *id, record: Arc::new(record.clone()) })
        };
        Some(Install {
            admitted: self.members.iter().filter(|(_, row)| may(row)).map(|(session, _)| *session).collect(),
            mark: self.marks.get(&partition).copied().unwrap_or_default().max(self.horizon(partition)),
            horizon: self.horizon(partition),
            erased: self.rows.iter().filter_map(erased).collect(),
        })
    }

    /// The views have been installed: they serve.
    pub fn activate(&mut self, timeline: Timeline, views: &[(u16, View)], kept: Mark) -> Vec<u16> {
        self.of_each(timeline, views, |database, partition, view| {
            let row = database.view(partition).row;
            if row.view != view || row.timeline != timeline || row.is_active || !database.is_agreed(&row, kept) {
                return false;
            }
            let last = LastActive { partition, view, incarnation: row.incarnation };
            let state = &mut database.views[usize::from(partition)];
            (state.row.is_active, state.last_active) = (true, Some((last, timeline)));
            true
        })
    }

    /// The session is over.
    pub fn leave(&mut self, session: SessionId, timeline: Timeline) -> bool {
        if self.timeline != timeline {
            return false;
        }
        let since = self.commit();
        if let Some(row) = self.members.get_mut(&session).filter(|row| row.status != Status::Retired) {
            (row.status, row.since) = (Status::Retired, since);
        }
        true
    }

    /// Has the views that wait for a session go on without it (A12), where it was not heard of within `silence`: whose
    /// partitions that is, and a fence that it was granted none above. No clock has reached `above`. Views of another
    /// timeline that no member is there to follow up are opened anew; `tag` draws each one's.
    pub fn force(
        &mut self,
        session: SessionId,
        now: Duration,
        silence: Duration,
        above: Fence,
        mut tag: impl FnMut(u16) -> u64,
    ) -> Option<(Vec<u16>, Fence)> {
        let row = self.members.get(&session).filter(|row| row.status != Status::Retired)?;
        let is_heard_of = |row: &MemberRow| row.status != Status::Retired && row.heard_at + silence > now;
        let is_old = |row: &ViewRow| row.view.number > 0 && row.timeline != self.timeline;
        let has_old = self.views.iter().any(|view| is_old(&view.row));
        if is_heard_of(row) || has_old && self.members.values().any(is_heard_of) {
            return None;
        }
        let waits = |of: &ViewRow| {
            let is_given = row.acknowledged.get(&of.partition) == Some(&of.view);
            is_old(of) || of.view.number > 0 && !of.is_active && !is_given
        };
        let partitions: Vec<u16> =
            self.views.iter().filter(|view| waits(&view.row)).map(|view| view.row.partition).collect();
        if partitions.is_empty() {
            return None;
        }
        let timeline = self.timeline;
        for ViewState { row, .. } in self.views.iter_mut().filter(|view| view.row.view.number > 0) {
            if row.timeline != timeline {
                let view = View { number: row.view.number + 1, tag: tag(row.partition) };
                *row = ViewRow { view, timeline, is_active: false, is_agreed: false, ..*row };
            }
        }
        let waiting: Vec<(u16, View)> =
            partitions.iter().map(|partition| (*partition, self.view(*partition).row.view)).collect();
        let of_rows = self.rows.iter().filter(|(id, _)| partitions.contains(&self.partition_of(id)));
        let highest = of_rows.map(|(_, record)| record.stored.fence).fold(above, Fence::max);
        let of_marks =
            |partition: &u16| self.marks.get(partition).copied().unwrap_or_default().max(self.horizon(*partition));
        let mark = partitions.iter().map(of_marks).fold(highest, Fence::max);
        if !mutant::is(Mutant::ForceKeepsTheMark) {
            self.marks.extend(partitions.iter().map(|partition| (*partition, mark)));
        }
        let since = self.commit();
        if let Some(row) = self.members.get_mut(&session) {
            row.acknowledged.extend(waiting);
            if row.status == Status::Live {
                (row.status, row.since) = (Status::Retiring, since);
            }
        }
        Some((partitions, mark))
    }

    /// Keys of a partition whose row has a fence above `mark`, and was not released.
    pub fn granted_above(&self, partition: u16, mark: Fence) -> impl Iterator<Item = RecordId> {
        let of = self.rows.iter().filter(move |(id, record)| {
            let is_above = record.stored.fence > mark && record.facts.state != State::NotExecuted;
            is_above && self.partition_of(id) == partition
        });
        of.map(|(id, _)| *id)
    }

    /// Begins to retire `target`.
    pub fn retire(&mut self, by: SessionId, target: SessionId, timeline: Timeline) -> Option<Vec<LastActive>> {
        let helps = self.is_live(by) && self.timeline == timeline;
        let target_row = self.members.get(&target).filter(|row| helps && row.status != Status::Retired)?;
        let mut views = Vec::new();
        for state in &self.views {
            let row = state.row;
            if !row.is_active && row.view.number > 0 && target_row.acknowledged.get(&row.partition) == Some(&row.view) {
                return None;
            }
            match state.last_active {
                Some((view, of)) if of == timeline => views.push(view),
                // On the first timeline nothing can have been lost: no view was ever active.
                None if timeline == self.first => {}
                _ => return None,
            }
        }
        let since = self.commit();
        if let Some(row) = self.members.get_mut(&target).filter(|row| row.status == Status::Live) {
            (row.status, row.since) = (Status::Retiring, since);
        }
        Some(views)
    }

    /// Ships what was found dirty in the view that a session was shut out of.
    pub fn drain(&mut self, by: SessionId, timeline: Timeline, view: &LastActive, facts: &[Fact]) -> Option<Mark> {
        if self.timeline != timeline || !self.is_live(by) || !self.is_last_active(view) {
            return None;
        }
        self.merge_all(facts, true);
        Some(self.commit())
    }

    /// `target` is retired.
    pub fn retired(&mut self, target: SessionId, timeline: Timeline, views: &[LastActive]) -> bool {
        if self.timeline != timeline || !views.iter().all(|view| self.is_last_active(view)) {
            return false;
        }
        let since = self.commit();
        if let Some(row) = self.members.get_mut(&target).filter(|row| row.status == Status::Retiring) {
            (row.status, row.since) = (Status::Retired, since);
        }
        true
    }

    /// A step in a view that is on the database itself.
    pub fn step(&mut self, at: &At, id: RecordId, what: What<'_>, now: Micros) -> Stepped {
        let serves = self.serves(at.partition, at.view) || mutant::is(Mutant::DatabaseViewIgnored);
        let may = self.members.get(&at.session).is_some_and(|row| match row.status {
            Status::Live => true,
            Status::Retiring | Status::Retired => mutant::is(Mutant::DatabaseTakesRetiring),
        });
        if !serves || !may {
            return Stepped::Elsewhere;
        }
        let row = self.rows.get(&id).cloned().map(as_record);
        let mark = self.marks.get(&at.partition).copied().unwrap_or_default().max(self.horizon(at.partition));
        if let Some(record) = stepped_in_row(row.as_ref(), what, now, mark) {
            let record = Arc::new(record);
            self.rows.insert(id, Record::clone(&record));
            let mark = self.marks.entry(at.partition).or_default();
            *mark = (*mark).max(record.stored.fence);
            self.commit();
            return Stepped::Done { record, now };
        }
        match row.filter(|row| !row.is_expired(now)) {
            Some(row) => Stepped::There { record: Box::new(row), now },
            None => Stepped::Absent { now },
        }
    }

    /// That a session does not reach these servers, and what the others say.
    pub fn unreached(&mut self, session: SessionId, partitions: &[u16], now: Duration, within: Duration) -> Unreached {
        if let Some(row) = self.members.get_mut(&session).filter(|row| row.status != Status::Retired) {
            (row.unreached, row.heard_at) = ((partitions.to_vec(), now), now);
        }
        let is_there = |row: &&MemberRow| row.status == Status::Live && row.heard_at + within >= now;
        let says = |row: &MemberRow, of: u16| row.unreached.1 + within >= now && row.unreached.0.contains(&of);
        let is_missed = self.members.values().any(|row| row.status != Status::Retired && row.heard_at + within < now);
        let there: Vec<&MemberRow> = self.members.values().filter(is_there).collect();
        let all = || self.views.iter().map(|view| view.row.partition);
        Unreached {
            by_all: all().filter(|of| !there.is_empty() && there.iter().all(|row| says(row, *of))).collect(),
            by_some: all().filter(|of| is_missed || there.iter().any(|row| says(row, *of))).collect(),
        }
    }

    /// Raises partitions' horizons.
    pub fn raise(&mut self, timeline: Timeline, horizons: &[Horizon]) -> usize {
        if self.timeline != timeline {
            return 0;
        }
        let mut raised = 0;
        for Horizon { partition, view, fence } in horizons {
            if self.serves(*partition, *view) && self.horizon(*partition) < *fence {
                self.horizons.insert(*partition, *fence);
                raised += 1;
            }
        }
        self.commit();
        raised
    }

    /// Removes rows that ended before, or were released.
    pub fn sweep(&mut self, limit: usize, before: Micros) -> (Swept, Vec<u16>) {
        let is_over = |record: &Record| {
            let has_ended = record.facts.state != State::InFlight && record.is_expired(before);
            has_ended || is_released(&record.facts)
        };
        let over = self.rows.iter().filter(|(_, record)| is_over(record));
        let over: Vec<(RecordId, u16, Fence)> =
            over.map(|(id, record)| (*id, self.partition_of(id), record.stored.fence)).collect();
        let (below, above): (Vec<_>, Vec<_>) =
            over.into_iter().partition(|(_, partition, fence)| *fence <= self.horizon(*partition));
        let gone = below.iter().take(limit).filter(|(id, ..)| self.rows.remove(id).is_some()).count();
        self.commit();
        let above: BTreeSet<u16> = above.into_iter().map(|(_, partition, _)| partition).collect();
        (Swept { removed: gone as u64, more: gone < below.len() }, above.into_iter().collect())
    }
}
