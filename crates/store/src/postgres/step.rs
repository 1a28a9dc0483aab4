//! The calls: each verb as one statement, and its answer read.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, Record, Revision, Seen},
};
use tokio_postgres::{Row, types::Type};

use super::{
    Shared,
    batch::Answers,
    error::Failure,
    lane::{Lane, WriteError},
    row::{self, Claimed, Parameter, Settled, THERE, big, bytes_of, span},
};
use crate::{Filter, Kind, Page, Read, StoreError, Swept, Write, figures::Change};

/// A claim that is to be made.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) facts: Facts,
    pub(super) lease: Duration,
}

/// What a write found.
#[derive(Debug)]
pub(super) enum Answered {
    Done { fence: Fence, revision: Revision, now: Micros },
    There { record: Option<Box<Record>>, now: Micros },
}

impl Answered {
    pub(super) fn into_write(self) -> Write {
        match self {
            Self::Done { fence, revision, now } => Write::Applied { fence, revision, now },
            Self::There { record, now } => Write::Lost { record, now },
        }
    }
}

/// One row of a writing step: what it found, and what the record was counted as before.
struct Written {
    item: RecordId,
    answered: Result<Answered, StoreError>,
    was: i64,
    record: Option<Record>,
}

fn call(function: &str, parameters: usize) -> String {
    let places: Vec<String> = (1..=parameters).map(|at| format!("${at}")).collect();
    format!(
        "SELECT item, done, new_fence, new_revision, at, was, {THERE} FROM onceward.{function}({})",
        places.join(", ")
    )
}

/// Columns before the record's.
const WRITTEN: usize = 6;
const READ: usize = 3;

fn id_of(row: &Row) -> Option<RecordId> {
    row.try_get::<_, &[u8]>(0).ok().and_then(|id| id.try_into().ok()).map(RecordId)
}

fn damaged(error: row::BadRow) -> StoreError {
    StoreError::not_applied(Kind::Damaged(error.to_string())).because(error)
}

/// An answer that the steps never give: the functions are not this program's.
fn foreign() -> StoreError {
    let said = "a function of the schema answers otherwise than this program's: run `onceward migrate`";
    StoreError::unknown(Kind::Unavailable).because(Failure::said(said))
}

fn unsigned(row: &Row, at: usize) -> u64 {
    row.try_get::<_, i64>(at).ok().and_then(|number| u64::try_from(number).ok()).unwrap_or_default()
}

fn written(shared: &Shared, row: &Row) -> Result<Written, StoreError> {
    let (item, done) = (id_of(row).ok_or_else(foreign)?, row.try_get(1).map_err(|_| foreign())?);
    let now = shared.time(unsigned(row, 4));
    let was = row.try_get(5).unwrap_or_default();
    let there = row::record(row, WRITTEN).map_err(damaged);
    if done {
        let (fence, revision) = (Fence(unsigned(row, 2)), Revision(unsigned(row, 3)));
        let record = there.ok().flatten();
        return Ok(Written { item, answered: Ok(Answered::Done { fence, revision, now }), was, record });
    }
    let answered = there.map(|there| {
        let record = there.filter(|record| !record.is_expired(now)).map(Box::new);
        Answered::There { record, now }
    });
    Ok(Written { item, answered, was, record: None })
}

fn change(records: i64, bytes: u64, was: i64) -> Change {
    Change { records, bytes: big(bytes).saturating_sub(was) }
}

/// Makes the claims of one batch.
pub(super) async fn insert(
    shared: &Shared,
    lane: &Lane,
    claims: &BTreeMap<RecordId, Claim>,
) -> Result<Answers<Answered>, WriteError> {
    let ids: Vec<&[u8]> = claims.keys().map(|id| id.0.as_slice()).collect();
    let leases: Vec<i64> = claims.values().map(|claim| span(claim.lease)).collect();
    let mut claimed = Claimed::default();
    claims.values().for_each(|claim| claimed.push(&claim.facts));
    let floor = shared.floor();
    let mut parameters: Vec<Parameter<'_>> =
        vec![(&floor, Type::INT8), (&ids, Type::BYTEA_ARRAY), (&leases, Type::INT8_ARRAY)];
    parameters.extend(claimed.parameters());
    let rows = lane.write(&call("store_insert", parameters.len()), &parameters).await?;
    answers(shared, &rows, |id, done, was| {
        let Some(claim) = claims.get(id) else { return };
        if done {
            // An ended record in its place is counted until then.
            shared.figures.wrote(&claim.facts.tenant, change(i64::from(was == 0), bytes_of(&claim.facts), was));
        }
    })
}

/// Makes the replacements of one batch.
pub(super) async fn replace(
    shared: &Shared,
    lane: &Lane,
    writes: &BTreeMap<RecordId, Replacement>,
) -> Result<Answers<Answered>, WriteError> {
    let ids: Vec<&[u8]> = writes.keys().map(|id| id.0.as_slice()).collect();
    let (mut fences, mut revisions, mut raises) = (Vec::new(), Vec::new(), Vec::new());
    let (mut leases, mut keeps) = (Vec::new(), Vec::new());
    let (mut claimed, mut settled) = (Claimed::default(), Settled::default());
    for write in writes.values() {
        let (fence, revision) = meant(write.expect);
        fences.push(fence);
        revisions.push(revision);
        raises.push(write.fence == FenceRule::Next);
        leases.push(match write.lease {
            Lease::Keep => None,
            Lease::Over => Some(-1),
            Lease::For(lease) => Some(span(lease)),
        });
        keeps.push(match write.keep {
            Keep::Open => None,
            Keep::For(keep) => Some(span(keep)),
        });
        claimed.push(&write.facts);
        settled.push(&write.facts);
    }
    let floor = shared.floor();
    let mut parameters: Vec<Parameter<'_>> = vec![
        (&floor, Type::INT8),
        (&ids, Type::BYTEA_ARRAY),
        (&fences, Type::INT8_ARRAY),
        (&revisions, Type::INT8_ARRAY),
        (&raises, Type::BOOL_ARRAY),
        (&leases, Type::INT8_ARRAY),
        (&keeps, Type::INT8_ARRAY),
    ];
    parameters.extend(claimed.parameters());
    parameters.extend(settled.parameters());
    let rows = lane.write(&call("store_replace", parameters.len()), &parameters).await?;
    answers(shared, &rows, |id, done, was| {
        if let Some(write) = writes.get(id).filter(|_| done) {
            shared.figures.wrote(&write.facts.tenant, change(0, bytes_of(&write.facts), was));
        }
    })
}

fn answers(
    shared: &Shared,
    rows: &[Row],
    count: impl Fn(&RecordId, bool, i64),
) -> Result<Answers<Answered>, WriteError> {
    let mut answers = Answers::new();
    for row in rows {
        let Written { item, answered, was, .. } = written(shared, row)?;
        let done = matches!(answered, Ok(Answered::Done { .. }));
        count(&item, done, was);
        if done {
            shared.watchers.wake(&item);
        }
        answers.insert(item, answered);
    }
    Ok(answers)
}

/// Fence, and where it is somebody else's write, the revision that he saw.
fn meant(expect: Expect) -> (i64, Option<i64>) {
    match expect {
        Expect::Holder(fence) => (big(fence.0), None),
        Expect::Seen(fence, revision) => (big(fence.0), Some(big(revision.0))),
    }
}

async fn alone(
    shared: &Shared,
    function: &str,
    parameters: &[Parameter<'_>],
) -> Result<(Write, Option<(Record, i64)>), StoreError> {
    let rows =
        shared.plain()?.write(&call(function, parameters.len()), parameters).await.map_err(|failed| failed.error)?;
    let Written { item, answered, was, record } = written(shared, rows.first().ok_or_else(foreign)?)?;
    let answered = answered?;
    if matches!(answered, Answered::Done { .. }) {
        shared.watchers.wake(&item);
    }
    Ok((answered.into_write(), record.map(|record| (record, was))))
}

pub(super) async fn extend(shared: &Shared, id: RecordId, holder: Fence, lease: Duration) -> Result<Write, StoreError> {
    let (floor, id, fence, lease) = (shared.floor(), id.0.as_slice(), big(holder.0), span(lease));
    let parameters: [Parameter<'_>; 4] =
        [(&floor, Type::INT8), (&id, Type::BYTEA), (&fence, Type::INT8), (&lease, Type::INT8)];
    alone(shared, "store_extend", &parameters).await.map(|(write, _)| write)
}

pub(super) async fn remove(shared: &Shared, id: RecordId, expect: Expect) -> Result<Write, StoreError> {
    let (floor, id, (fence, revision)) = (shared.floor(), id.0.as_slice(), meant(expect));
    let parameters: [Parameter<'_>; 4] =
        [(&floor, Type::INT8), (&id, Type::BYTEA), (&fence, Type::INT8), (&revision, Type::INT8)];
    let (write, removed) = alone(shared, "store_remove", &parameters).await?;
    if let Some((record, was)) = removed {
        shared.figures.wrote(&record.facts.tenant, change(-1, 0, was));
    }
    Ok(write)
}

/// A standby may be behind: what it shows decides nothing.
fn of_primary(row: &Row) -> Result<(), StoreError> {
    let standby: bool = row.try_get(2).map_err(|_| foreign())?;
    if standby { Err(StoreError::not_applied(Kind::NotPrimary)) } else { Ok(()) }
}

pub(super) async fn get(shared: &Shared, id: RecordId) -> Result<Read, StoreError> {
    let (floor, ids) = (shared.floor(), [id.0.as_slice()]);
    let sql = format!("SELECT item, at, standby, {THERE} FROM onceward.store_get($1, $2)");
    let rows = shared.plain()?.read(&sql, &[(&floor, Type::INT8), (&ids.as_slice(), Type::BYTEA_ARRAY)]).await?;
    let row = rows.first().ok_or_else(foreign)?;
    of_primary(row)?;
    let now = shared.time(unsigned(row, 1));
    let record = row::record(row, READ).map_err(damaged)?.filter(|record| !record.is_expired(now));
    Ok(Read { record, now })
}

pub(super) async fn scan(
    shared: &Shared,
    after: Option<RecordId>,
    limit: usize,
    filter: Filter,
) -> Result<Page, StoreError> {
    let floor = shared.floor();
    let (after, rows_max) = (after.as_ref().map_or(&[][..], |id| &id.0), big(limit as u64));
    let only_open = matches!(filter.state, Some(Seen::InFlight | Seen::Abandoned | Seen::Unknown));
    let sql = format!("SELECT item, at, standby, {THERE} FROM onceward.store_scan($1, $2, $3, $4)");
    let parameters: [Parameter<'_>; 4] =
        [(&floor, Type::INT8), (&after, Type::BYTEA), (&rows_max, Type::INT8), (&only_open, Type::BOOL)];
    let rows = shared.plain()?.read(&sql, &parameters).await?;
    let mut page = Page { now: shared.time(0), ..Page::default() };
    for row in &rows {
        of_primary(row)?;
        page.now = shared.time(unsigned(row, 1));
        let id = id_of(row).ok_or_else(foreign)?;
        let Some(record) = row::record(row, READ).map_err(damaged)? else { continue };
        if !record.is_expired(page.now) && filter.admits(&record, page.now) {
            page.records.push((id, record));
        }
    }
    page.next = rows.last().filter(|_| rows.len() == limit).and_then(id_of);
    Ok(page)
}

/// Whether a record, or a body, ended `waits` ago or earlier.
pub(super) async fn has_waited(shared: &Shared, waits: Duration) -> Result<bool, StoreError> {
    // As the index spells it.
    let sql = "SELECT EXISTS (SELECT FROM onceward.record r WHERE r.keep_until > 0 \
               AND least(r.keep_until, nullif(r.body_until, 0)) <= onceward.now_us() - $1)";
    let waits = i64::try_from(waits.as_micros()).unwrap_or(i64::MAX);
    let rows = shared.upkeep.read(sql, &[(&waits, Type::INT8)]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

pub(super) async fn sweep(shared: &Shared, limit: usize) -> Result<Swept, StoreError> {
    let (floor, limit) = (shared.floor(), big(limit as u64));
    let sql = "SELECT of_tenant, gone, gone_bytes, bare FROM onceward.store_sweep($1, $2)";
    let rows = shared.upkeep.write(sql, &[(&floor, Type::INT8), (&limit, Type::INT8)]).await;
    let (mut removed, mut bare) = (0, 0);
    for row in rows.map_err(|failed| failed.error)? {
        let (gone, bytes) = (unsigned(&row, 1), unsigned(&row, 2));
        removed += gone;
        bare += unsigned(&row, 3);
        if let Ok(Some(tenant)) = row.try_get::<_, Option<&str>>(0) {
            shared.figures.wrote(tenant, Change { records: -big(gone), bytes: -big(bytes) });
        }
    }
    let limit = u64::try_from(limit).unwrap_or_default();
    Ok(Swept { removed, more: removed + bare >= limit })
}

/// Counts what every tenant takes up.
pub(super) async fn usage(lane: &Lane) -> Result<HashMap<String, Change>, StoreError> {
    let rows = lane.read("SELECT of_tenant, records, bytes FROM onceward.store_usage()", &[]).await?;
    let read = |row: &Row| (row.get(0), Change { records: row.get(1), bytes: row.get(2) });
    Ok(rows.iter().map(read).collect())
}
