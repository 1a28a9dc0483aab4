//! The journal of durability `journaled`: each call of [`Journal`] as one transaction.
//!
//! The functions are those of `migrations/0012_journal.sql`, which says what holds which lock. Shipments, views and reads
//! go over connections of their own: what waits for a standby holds up nothing that reads.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    key::RecordId,
    record::{Fence, Micros, SessionId},
};
use tokio_postgres::{
    Row as Answered,
    types::{FromSql, Type},
};

use super::{
    Postgres,
    error::Failure,
    fact::{self, Facts, small},
    in_journal::Steps,
    lane::Lane,
    row::{Parameter, big, span},
};
use crate::{
    Answer, Kind, StoreError, Swept,
    journaled::{
        At, Fact, Horizon, Incarnation, Install, Journal, LastActive, Mark, Member, Opening, Row, Snapshot, Stepped,
        Timeline, Unreached, View, ViewRow, What,
    },
};

/// Rows are read on so many connections.
const READERS: usize = 2;
/// The most rows that are read at a time.
const ROWS_MAX: usize = 1_000;
/// The most rows that are removed at a time.
const SWEPT_MAX: usize = 10_000;

const LOOK: &str = "SELECT * FROM onceward.journal_look($1, $2, $3, $4, $5, $6)";
const JOIN: &str = "SELECT * FROM onceward.journal_join($1, $2)";
const SHIP: &str = "SELECT * FROM onceward.journal_ship($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const ROW: &str = "SELECT * FROM onceward.journal_row($1, $2, $3, $4)";
const ROWS: &str = "SELECT * FROM onceward.journal_rows($1, $2, $3, $4, $5)";
const LIST: &str = "SELECT * FROM onceward.journal_list($1, $2)";
const IN_FLIGHT: &str = "SELECT * FROM onceward.journal_in_flight($1, $2)";
const OPEN: &str = "SELECT * FROM onceward.journal_open($1, $2, $3, $4, $5, $6, $7, $8)";
const ACKNOWLEDGE: &str = "SELECT * FROM onceward.journal_acknowledge($1, $2, $3, $4, $5)";
const AGREED: &str = "SELECT * FROM onceward.journal_agreed($1, $2, $3, $4, $5, $6, $7)";
const ACTIVATE: &str = "SELECT * FROM onceward.journal_activate($1, $2, $3, $4, $5, $6, $7)";
const LEAVE: &str = "SELECT * FROM onceward.journal_leave($1, $2)";
const RETIRE: &str = "SELECT * FROM onceward.journal_retire($1, $2, $3)";
const DRAIN: &str = "SELECT * FROM onceward.journal_drain($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
const RETIRED: &str = "SELECT * FROM onceward.journal_retired($1, $2, $3, $4, $5, $6)";
const RAISE: &str = "SELECT * FROM onceward.journal_raise($1, $2, $3, $4, $5)";
const SWEEP: &str = "SELECT * FROM onceward.journal_sweep($1, $2)";
const UNREACHED: &str = "SELECT * FROM onceward.journal_unreached($1, $2, $3)";
const POSITION: &str = "SELECT onceward.journal_position($1)";

/// What may take the database's place, and so which of its commits may be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failover {
    /// Nothing: the server comes back with its own disk, and what is on that is past losing. Assumes that `fsync` and
    /// `full_page_writes` are on, that the disk keeps what it has acknowledged, and that nobody restores an older copy of
    /// it without a new timeline (a snapshot of the volume has none).
    None,
    /// A standby that each commit waits for: what a look's own commit has waited for is past losing. Commits wait with
    /// `synchronous_commit` at `on`, whatever the session says, unless that is `remote_apply`: `local` would not wait,
    /// `remote_write` only for the standby's memory. Assumes that only a standby takes over that
    /// `synchronous_standby_names` makes every commit wait for: with `ANY 1 (a, b)`, or `FIRST 1 (a, b)` while `a` was
    /// there, the other one may be behind. While no names are set nothing is past losing; they are set before gateways
    /// start, since a commit in the moment in which the server reads them may not wait yet.
    Synchronous,
    /// One of these standbys, by their names in `pg_stat_replication` (`application_name` or `cluster_name`, each another
    /// one): what all of them have on their disks is past losing. While one of them is not connected nothing more is, and
    /// without names nothing ever. Assumes that no other standby takes over, and that none of them is set back to an
    /// older copy. The owner of the schema needs the role `pg_monitor` to see how far they have got.
    Asynchronous {
        /// All that may take over.
        standbys: Vec<String>,
    },
}

impl Failover {
    /// As the functions have it.
    pub(super) fn parameters(&self) -> (&'static str, &[String]) {
        match self {
            Self::None => ("none", &[]),
            Self::Synchronous => ("synchronous", &[]),
            Self::Asynchronous { standbys } => ("asynchronous", standbys),
        }
    }
}

/// How the journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// What may take the database's place.
    pub failover: Failover,
    /// A member that was not heard of for so long, by the database's clock, is silent: others retire it.
    pub silence: Duration,
    /// And one that was not heard of for so long has no say in whether Redis is reached.
    pub heard_within: Duration,
}

impl JournalOptions {
    /// The defaults: members are silent after 30 seconds, and have no say after two.
    #[must_use]
    pub fn new(failover: Failover) -> Self {
        Self { failover, silence: Duration::from_secs(30), heard_within: Duration::from_secs(2) }
    }
}

/// The journal in a PostgreSQL database, of 256 partitions. Connections are made when they are first needed.
///
/// A [`Timeline`] is drawn at random by whoever looks first at a new life of the database, that is at another timeline of
/// its log or another system, and kept in it. A [`Mark`] is a position of the log in bytes.
#[derive(Debug)]
pub struct PostgresJournal {
    options: JournalOptions,
    ships: Lane,
    views: Lane,
    readers: Vec<Lane>,
    sweeps: Lane,
    steps: Steps,
    next_reader: AtomicUsize,
    /// Up to where the log is past losing, as far as a look has said, and on which timeline. On that it stays true.
    known: Mutex<(Timeline, Mark)>,
}

impl Postgres {
    /// The journal in this store's database.
    #[must_use]
    pub fn journal(&self, options: JournalOptions) -> PostgresJournal {
        let Self { shared, .. } = self;
        let lane = || Lane::new(&shared.options.address, shared.health.identity(), shared.options.deadline);
        PostgresJournal {
            options,
            ships: lane(),
            views: lane(),
            readers: (0..READERS).map(|_| lane()).collect(),
            next_reader: AtomicUsize::new(0),
            sweeps: lane(),
            steps: Steps::start(lane),
            known: Mutex::default(),
        }
    }
}

impl PostgresJournal {
    fn reader(&self) -> &Lane {
        let at = self.next_reader.fetch_add(1, Ordering::Relaxed) % READERS;
        self.readers.get(at).unwrap_or(&self.views)
    }

    /// A call that changes something.
    async fn change(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Answered>, StoreError> {
        self.views.write(sql, parameters).await.map_err(|failed| failed.error)
    }

    pub(super) async fn read(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Answered>, StoreError> {
        self.reader().read(sql, parameters).await
    }

    /// A call that writes facts, and where the log is once it has committed.
    async fn put(
        &self,
        sql: &str,
        timeline: Timeline,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Mark>, StoreError> {
        let timeline = signed(timeline);
        let position: [Parameter<'_>; 1] = [(&timeline, Type::INT8)];
        let (put, then) =
            self.ships.write_then(sql, parameters, POSITION, &position).await.map_err(|failed| failed.error)?;
        if !first::<bool>(&put)? {
            return Ok(None);
        }
        // Asked of another server, it says nothing of this one's log.
        let position: Option<i64> = first(&then)?;
        let elsewhere = || StoreError::unknown(Kind::Incarnation);
        position.and_then(|position| u64::try_from(position).ok()).map(Some).ok_or_else(elsewhere)
    }

    /// What may take over.
    pub(super) fn may_take_over(&self) -> &Failover {
        &self.options.failover
    }

    /// The same as the functions have it.
    fn failover(&self) -> (&'static str, &[String]) {
        self.options.failover.parameters()
    }

    fn known(&self) -> (Timeline, Mark) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn know(&self, timeline: Timeline, kept: Mark) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = if known.0 == timeline { (timeline, known.1.max(kept)) } else { (timeline, kept) };
    }

    /// A call about views that all have acknowledged, on the lane that fits it.
    async fn of_agreed(
        &self,
        sql: &str,
        timeline: Timeline,
        views: &[(u16, View)],
        changes: bool,
    ) -> Result<Vec<Answered>, StoreError> {
        let (failover, standbys) = self.failover();
        let (known_on, known) = self.known();
        let known = if known_on == timeline { big(known) } else { 0 };
        let (timeline, views) = (signed(timeline), Views::of(views.iter().copied()));
        let [partition, number, tag] = views.parameters();
        let parameters = [
            (&timeline as _, Type::INT8),
            partition,
            number,
            tag,
            (&failover as _, Type::TEXT),
            (&standbys as _, Type::TEXT_ARRAY),
            (&known as _, Type::INT8),
        ];
        if changes { self.change(sql, &parameters).await } else { self.read(sql, &parameters).await }
    }
}

impl Journal for PostgresJournal {
    fn look(&self, session: SessionId) -> Answer<'_, Snapshot> {
        Box::pin(async move {
            let ((failover, standbys), (known_on, known)) = (self.failover(), self.known());
            let (session, silence) = (session.0.as_slice(), span(self.options.silence));
            let (known_on, known) = (signed(known_on), big(known));
            let parameters: [Parameter<'_>; 6] = [
                (&session, Type::BYTEA),
                (&silence, Type::INT8),
                (&failover, Type::TEXT),
                (&standbys, Type::TEXT_ARRAY),
                (&known_on, Type::INT8),
                (&known, Type::INT8),
            ];
            let rows = self.change(LOOK, &parameters).await?;
            let seen = snapshot(rows.first().ok_or_else(foreign)?)?;
            self.know(seen.timeline, seen.kept);
            Ok(seen)
        })
    }

    fn join(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool> {
        Box::pin(async move {
            let (session, timeline) = (session.0.as_slice(), signed(timeline));
            let parameters: [Parameter<'_>; 2] = [(&session, Type::BYTEA), (&timeline, Type::INT8)];
            first(&self.change(JOIN, &parameters).await?)
        })
    }

    fn ship<'a>(&'a self, session: SessionId, timeline: Timeline, facts: &'a [Fact]) -> Answer<'a, Option<Mark>> {
        Box::pin(async move {
            let (facts, session, of) = (Facts::of(facts), session.0.as_slice(), signed(timeline));
            let mut parameters: Vec<Parameter<'_>> = vec![(&session, Type::BYTEA), (&of, Type::INT8)];
            parameters.extend(facts.parameters());
            self.put(SHIP, timeline, &parameters).await
        })
    }

    fn row(&self, partition: u16, view: View, id: RecordId) -> Answer<'_, Option<Row>> {
        Box::pin(async move {
            let (partition, number, tag) = (small(partition), big(view.number), signed(view.tag));
            let id = id.0.as_slice();
            let parameters: [Parameter<'_>; 4] =
                [(&partition, Type::INT2), (&number, Type::INT8), (&tag, Type::INT8), (&id, Type::BYTEA)];
            let rows = self.read(ROW, &parameters).await?;
            let row = rows.first().ok_or_else(foreign)?;
            if !column::<bool>(row, 0)? {
                return Ok(None);
            }
            let there = column::<Option<&[u8]>>(row, 1)?.map(fact::record).transpose()?;
            Ok(Some(there.map(Box::new)))
        })
    }

    fn rows(&self, partition: u16, view: View, after: Option<RecordId>, limit: usize) -> Answer<'_, Option<Vec<Fact>>> {
        Box::pin(async move {
            let (partition, number, tag) = (small(partition), big(view.number), signed(view.tag));
            let after = after.as_ref().map_or(&[][..], |id| &id.0);
            let rows_max = big(limit.min(ROWS_MAX) as u64);
            let parameters: [Parameter<'_>; 5] = [
                (&partition, Type::INT2),
                (&number, Type::INT8),
                (&tag, Type::INT8),
                (&after, Type::BYTEA),
                (&rows_max, Type::INT8),
            ];
            let rows = self.read(ROWS, &parameters).await?;
            if !first::<bool>(&rows)? {
                return Ok(None);
            }
            facts(&rows).map(Some)
        })
    }

    fn list(&self, after: Option<RecordId>, limit: usize, in_flight: bool) -> Answer<'_, (Vec<Fact>, Micros)> {
        Box::pin(async move {
            let after = after.as_ref().map_or(&[][..], |id| &id.0);
            let rows_max = big(limit.min(ROWS_MAX) as u64);
            let parameters: [Parameter<'_>; 2] = [(&after, Type::BYTEA), (&rows_max, Type::INT8)];
            let rows = self.read(if in_flight { IN_FLIGHT } else { LIST }, &parameters).await?;
            Ok((facts(&rows)?, Micros(unsigned(first(&rows)?)?)))
        })
    }

    fn open<'a>(&'a self, session: SessionId, timeline: Timeline, openings: &'a [Opening]) -> Answer<'a, usize> {
        Box::pin(async move {
            let (session, timeline) = (session.0.as_slice(), signed(timeline));
            let before = Views::of(openings.iter().map(|opening| (opening.before.partition, opening.before.view)));
            let of: Vec<i64> = openings.iter().map(|opening| signed(opening.before.timeline)).collect();
            let above: Vec<i64> = openings.iter().map(|opening| big(opening.acknowledged)).collect();
            let incarnations: Vec<&[u8]> = openings.iter().map(|opening| opening.incarnation.0.as_slice()).collect();
            let [partition, number, tag] = before.parameters();
            let parameters: [Parameter<'_>; 8] = [
                (&session, Type::BYTEA),
                (&timeline, Type::INT8),
                partition,
                number,
                tag,
                (&of, Type::INT8_ARRAY),
                (&above, Type::INT8_ARRAY),
                (&incarnations, Type::BYTEA_ARRAY),
            ];
            let opened: i64 = first(&self.change(OPEN, &parameters).await?)?;
            Ok(usize::try_from(opened).unwrap_or_default())
        })
    }

    fn acknowledge<'a>(
        &'a self,
        session: SessionId,
        timeline: Timeline,
        views: &'a [(u16, View)],
    ) -> Answer<'a, Vec<u16>> {
        Box::pin(async move {
            let (session, timeline) = (session.0.as_slice(), signed(timeline));
            let views = Views::of(views.iter().copied());
            let [partition, number, tag] = views.parameters();
            let parameters: [Parameter<'_>; 5] =
                [(&session, Type::BYTEA), (&timeline, Type::INT8), partition, number, tag];
            partitions(&self.change(ACKNOWLEDGE, &parameters).await?)
        })
    }

    fn agreed<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<(u16, Install)>> {
        Box::pin(async move {
            let rows = self.of_agreed(AGREED, timeline, views, false).await?;
            rows.iter().map(install).collect()
        })
    }

    fn activate<'a>(&'a self, timeline: Timeline, views: &'a [(u16, View)]) -> Answer<'a, Vec<u16>> {
        Box::pin(async move { partitions(&self.of_agreed(ACTIVATE, timeline, views, true).await?) })
    }

    fn leave(&self, session: SessionId, timeline: Timeline) -> Answer<'_, bool> {
        Box::pin(async move {
            let (session, timeline) = (session.0.as_slice(), signed(timeline));
            let parameters: [Parameter<'_>; 2] = [(&session, Type::BYTEA), (&timeline, Type::INT8)];
            first(&self.change(LEAVE, &parameters).await?)
        })
    }

    fn retire(&self, by: SessionId, target: SessionId, timeline: Timeline) -> Answer<'_, Option<Vec<LastActive>>> {
        Box::pin(async move {
            let (by, target, timeline) = (by.0.as_slice(), target.0.as_slice(), signed(timeline));
            let parameters: [Parameter<'_>; 3] = [(&by, Type::BYTEA), (&target, Type::BYTEA), (&timeline, Type::INT8)];
            let rows = self.change(RETIRE, &parameters).await?;
            rows.first().map(last_active).transpose()
        })
    }

    fn drain<'a>(
        &'a self,
        by: SessionId,
        timeline: Timeline,
        view: &'a LastActive,
        facts: &'a [Fact],
    ) -> Answer<'a, Option<Mark>> {
        Box::pin(async move {
            let (facts, by, of) = (Facts::of(facts), by.0.as_slice(), signed(timeline));
            let LastActive { partition, view, incarnation } = view;
            let (partition, number, tag) = (small(*partition), big(view.number), signed(view.tag));
            let incarnation = incarnation.0.as_slice();
            let mut parameters: Vec<Parameter<'_>> = vec![
                (&by, Type::BYTEA),
                (&of, Type::INT8),
                (&partition, Type::INT2),
                (&number, Type::INT8),
                (&tag, Type::INT8),
                (&incarnation, Type::BYTEA),
            ];
            parameters.extend(facts.parameters());
            self.put(DRAIN, timeline, &parameters).await
        })
    }

    fn retired<'a>(&'a self, target: SessionId, timeline: Timeline, views: &'a [LastActive]) -> Answer<'a, bool> {
        Box::pin(async move {
            let (target, timeline) = (target.0.as_slice(), signed(timeline));
            let incarnations: Vec<&[u8]> = views.iter().map(|view| view.incarnation.0.as_slice()).collect();
            let views = Views::of(views.iter().map(|view| (view.partition, view.view)));
            let [partition, number, tag] = views.parameters();
            let parameters: [Parameter<'_>; 6] = [
                (&target, Type::BYTEA),
                (&timeline, Type::INT8),
                partition,
                number,
                tag,
                (&incarnations, Type::BYTEA_ARRAY),
            ];
            first(&self.change(RETIRED, &parameters).await?)
        })
    }

    fn step<'a>(&'a self, at: &'a At, id: RecordId, what: What<'a>) -> Answer<'a, Stepped> {
        Box::pin(self.steps.step(at, id, what))
    }

    fn unreached<'a>(&'a self, session: SessionId, unreached: &'a [u16]) -> Answer<'a, Unreached> {
        Box::pin(async move {
            let (session, heard_within) = (session.0.as_slice(), span(self.options.heard_within));
            let unreached: Vec<i16> = unreached.iter().map(|partition| small(*partition)).collect();
            let parameters: [Parameter<'_>; 3] =
                [(&session, Type::BYTEA), (&unreached, Type::INT2_ARRAY), (&heard_within, Type::INT8)];
            let rows = self.change(UNREACHED, &parameters).await?;
            let row = rows.first().ok_or_else(foreign)?;
            let of = |at| column::<Vec<i16>>(row, at)?.into_iter().map(partition).collect::<Result<_, _>>();
            Ok(Unreached { by_all: of(0)?, by_some: of(1)? })
        })
    }

    fn raise<'a>(&'a self, timeline: Timeline, horizons: &'a [Horizon]) -> Answer<'a, usize> {
        Box::pin(async move {
            let timeline = signed(timeline);
            let fences: Vec<i64> = horizons.iter().map(|horizon| big(horizon.fence.0)).collect();
            let views = Views::of(horizons.iter().map(|horizon| (horizon.partition, horizon.view)));
            let [partition, number, tag] = views.parameters();
            let parameters: [Parameter<'_>; 5] =
                [(&timeline, Type::INT8), partition, number, tag, (&fences, Type::INT8_ARRAY)];
            let raised: i64 = first(&self.change(RAISE, &parameters).await?)?;
            Ok(usize::try_from(raised).unwrap_or_default())
        })
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, (Swept, Vec<u16>)> {
        Box::pin(async move {
            let (rows_max, waits) = (big(limit.min(SWEPT_MAX) as u64), span(waits));
            let parameters: [Parameter<'_>; 2] = [(&rows_max, Type::INT8), (&waits, Type::INT8)];
            let rows = self.sweeps.write(SWEEP, &parameters).await.map_err(|failed| failed.error)?;
            let row = rows.first().ok_or_else(foreign)?;
            let removed = unsigned(column(row, 0)?)?;
            let above = column::<Vec<i16>>(row, 1)?.into_iter().map(partition);
            let above = above.collect::<Result<Vec<_>, _>>()?;
            Ok((Swept { removed, more: removed >= rows_max.unsigned_abs() }, above))
        })
    }
}

/// Views of partitions, a column each.
#[derive(Debug, Default)]
struct Views {
    partition: Vec<i16>,
    number: Vec<i64>,
    tag: Vec<i64>,
}

impl Views {
    fn of(views: impl Iterator<Item = (u16, View)>) -> Self {
        let mut columns = Self::default();
        for (partition, view) in views {
            columns.partition.push(small(partition));
            columns.number.push(big(view.number));
            columns.tag.push(signed(view.tag));
        }
        columns
    }

    fn parameters(&self) -> [Parameter<'_>; 3] {
        [(&self.partition, Type::INT2_ARRAY), (&self.number, Type::INT8_ARRAY), (&self.tag, Type::INT8_ARRAY)]
    }
}

/// The same 64 bits.
pub(super) fn signed(bits: u64) -> i64 {
    bits.cast_signed()
}

pub(super) fn column<'a, T: FromSql<'a>>(row: &'a Answered, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|error| foreign().because(error))
}

fn first<'a, T: FromSql<'a>>(rows: &'a [Answered]) -> Result<T, StoreError> {
    column(rows.first().ok_or_else(foreign)?, 0)
}

/// Rows with id and record after a column that they share; a row without id is none.
fn facts(rows: &[Answered]) -> Result<Vec<Fact>, StoreError> {
    let mut facts = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(id) = column::<Option<&[u8]>>(row, 1)? {
            facts.push(fact::fact(id, column(row, 2)?)?.ok_or_else(foreign)?);
        }
    }
    Ok(facts)
}

fn partition(number: i16) -> Result<u16, StoreError> {
    u16::try_from(number).map_err(|_| foreign())
}

fn partitions(rows: &[Answered]) -> Result<Vec<u16>, StoreError> {
    first::<Vec<i16>>(rows)?.into_iter().map(partition).collect()
}

fn session(bytes: &[u8]) -> Result<SessionId, StoreError> {
    bytes.try_into().map(SessionId).map_err(|_| foreign())
}

fn incarnation(bytes: &[u8]) -> Result<Incarnation, StoreError> {
    bytes.try_into().map(Incarnation).map_err(|_| foreign())
}

pub(super) fn unsigned(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| foreign())
}

fn snapshot(row: &Answered) -> Result<Snapshot, StoreError> {
    let me = match (column::<Option<i16>>(row, 2)?, column(row, 3)?) {
        (None, _) => Member::No,
        (Some(1), is_kept) => Member::Live { is_kept },
        (Some(2), _) => Member::Retiring,
        (Some(3), is_kept) => Member::Retired { is_kept },
        _ => return Err(foreign()),
    };
    let (numbers, tags, incarnations): (Vec<i64>, Vec<i64>, Vec<&[u8]>) =
        (column(row, 5)?, column(row, 6)?, column(row, 7)?);
    let (timelines, active, agreed): (Vec<i64>, Vec<bool>, Vec<bool>) =
        (column(row, 8)?, column(row, 9)?, column(row, 10)?);
    let of = column::<Vec<i16>>(row, 4)?.into_iter().zip(numbers).zip(tags).zip(incarnations);
    let all = of.zip(timelines).zip(active).zip(agreed);
    let view = |((((((of, number), tag), server), timeline), is_active), is_agreed): Columns<'_>| {
        Ok(ViewRow {
            partition: partition(of)?,
            view: View { number: unsigned(number)?, tag: tag.cast_unsigned() },
            incarnation: incarnation(server)?,
            timeline: timeline.cast_unsigned(),
            is_active,
            is_agreed,
        })
    };
    Ok(Snapshot {
        timeline: column::<i64>(row, 0)?.cast_unsigned(),
        kept: unsigned(column(row, 1)?)?,
        me,
        views: all.map(view).collect::<Result<_, StoreError>>()?,
        silent: column::<Vec<&[u8]>>(row, 11)?.into_iter().map(session).collect::<Result<_, _>>()?,
    })
}

type Columns<'a> = ((((((i16, i64), i64), &'a [u8]), i64), bool), bool);

fn install(row: &Answered) -> Result<(u16, Install), StoreError> {
    let (ids, records): (Vec<&[u8]>, Vec<&[u8]>) = (column(row, 3)?, column(row, 4)?);
    let erased = ids.into_iter().zip(records).map(|(id, record)| fact::fact(id, record)?.ok_or_else(foreign));
    let install = Install {
        admitted: column::<Vec<&[u8]>>(row, 1)?.into_iter().map(session).collect::<Result<_, _>>()?,
        mark: Fence(unsigned(column(row, 2)?)?),
        erased: erased.collect::<Result<_, _>>()?,
        horizon: Fence(unsigned(column(row, 5)?)?),
    };
    Ok((partition(column(row, 0)?)?, install))
}

fn last_active(row: &Answered) -> Result<Vec<LastActive>, StoreError> {
    let Some(of) = column::<Option<Vec<i16>>>(row, 0)? else { return Ok(Vec::new()) };
    let (numbers, tags, incarnations): (Vec<i64>, Vec<i64>, Vec<&[u8]>) =
        (column(row, 1)?, column(row, 2)?, column(row, 3)?);
    let view = |(((of, number), tag), server): (((i16, i64), i64), &[u8])| {
        let view = View { number: unsigned(number)?, tag: tag.cast_unsigned() };
        Ok(LastActive { partition: partition(of)?, view, incarnation: incarnation(server)? })
    };
    of.into_iter().zip(numbers).zip(tags).zip(incarnations).map(view).collect()
}

/// An answer that the functions never give.
pub(super) fn foreign() -> StoreError {
    let said = "a function of the journal answers otherwise than this program's: run `onceward migrate`";
    StoreError::unknown(Kind::Unavailable).because(Failure::said(said))
}
