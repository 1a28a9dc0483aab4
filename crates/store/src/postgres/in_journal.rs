//! Steps in views that are on the database itself: the rows of one moment are read, what becomes of each is decided by the
//! same rules as in Redis, and all are put back in one commit, each if it is still as it was read.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, Record},
};
use tokio::task::JoinSet;
use tokio_postgres::{Row, types::Type};

use super::{
    batch::{Answers, Batcher},
    fact::{self, Facts as Columns, small},
    journal::{column, foreign, signed, unsigned},
    lane::{Lane, WriteError},
    row::{Parameter, big},
};
use crate::{
    Kind, StoreError,
    journaled::{At, Fact, Stepped, What, as_record, stepped_in_row},
};

/// Batches on their way at a time.
const LANES: usize = 2;
/// So often a step looks again at a row that has changed meanwhile.
const TRIES_MAX: usize = 8;
/// How a row begins: up to its claim, with fence and revision in it.
const HEAD_BYTES: usize = 72;

const HERE: &str = "SELECT * FROM onceward.journal_here($1, $2, $3, $4, $5, $6)";
const PUT: &str = "SELECT * FROM onceward.journal_put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// [`What`], for as long as it waits for its batch.
#[derive(Clone, Debug)]
enum Step {
    Insert(Facts, Duration),
    Replace(Replacement),
    Extend(Fence, Duration),
    Release(Expect),
    Get,
}

impl Step {
    fn of(what: What<'_>) -> Self {
        match what {
            What::Insert { facts, lease } => Self::Insert(facts.clone(), lease),
            What::Replace(write) => Self::Replace(write.clone()),
            What::Extend { holder, lease } => Self::Extend(holder, lease),
            What::Release(expect) => Self::Release(expect),
            What::Get => Self::Get,
        }
    }

    fn what(&self) -> What<'_> {
        match self {
            Self::Insert(facts, lease) => What::Insert { facts, lease: *lease },
            Self::Replace(write) => What::Replace(write),
            Self::Extend(holder, lease) => What::Extend { holder: *holder, lease: *lease },
            Self::Release(expect) => What::Release(*expect),
            Self::Get => What::Get,
        }
    }
}

/// What a batch came to for one key: an answer, or nothing since its row has changed.
type Tried = Option<Stepped>;

/// The steps of this process.
#[derive(Debug)]
pub(super) struct Steps {
    batches: Batcher<(At, Step), Tried>,
    _tasks: JoinSet<()>,
}

impl Steps {
    pub(super) fn start(lane: impl Fn() -> Lane) -> Self {
        let mut tasks = JoinSet::new();
        let lanes: Vec<Lane> = (0..LANES).map(|_| lane()).collect();
        let latest = Arc::new(AtomicI64::new(0));
        let batches = Batcher::start(&mut tasks, lanes, move |lane: Arc<Lane>, steps| {
            let latest = Arc::clone(&latest);
            async move { batch(&lane, &steps, &latest).await }
        });
        Self { batches, _tasks: tasks }
    }

    /// One step.
    pub(super) async fn step(&self, at: &At, id: RecordId, what: What<'_>) -> Result<Stepped, StoreError> {
        let step = Step::of(what);
        for _ in 0..TRIES_MAX {
            if let Some(stepped) = self.batches.write(id, (*at, step.clone())).await? {
                return Ok(stepped);
            }
        }
        Err(StoreError::not_applied(Kind::Conflict))
    }
}

/// A row as it was read.
struct Here {
    serves: bool,
    now: Micros,
    mark: Fence,
    /// How it begins, for the comparison.
    head: Vec<u8>,
    record: Option<Record>,
}

/// `latest` is the latest time that was said.
async fn batch(
    lane: &Lane,
    steps: &BTreeMap<RecordId, (At, Step)>,
    latest: &AtomicI64,
) -> Result<Answers<Tried>, WriteError> {
    let mut answers = Answers::new();
    let (mut puts, mut written) = (Vec::new(), BTreeMap::new());
    for (id, here) in here(lane, steps, latest).await? {
        let Some((at, step)) = steps.get(&id) else { continue };
        let Here { serves, now, mark, head, record } = match here {
            Ok(here) => here,
            Err(damaged) => {
                answers.insert(id, Err(damaged));
                continue;
            }
        };
        if !serves {
            answers.insert(id, Ok(Some(Stepped::Elsewhere)));
        } else if let Some(record) = stepped_in_row(record.as_ref(), step.what(), now, mark) {
            let record = Arc::new(record);
            puts.push((*at, Fact { id, record: Arc::clone(&record) }, head));
            written.insert(id, Stepped::Done { record, now });
        } else {
            let there = record.filter(|record| !record.is_expired(now));
            let otherwise = match there {
                Some(record) => Stepped::There { record: Box::new(record), now },
                None => Stepped::Absent { now },
            };
            answers.insert(id, Ok(Some(otherwise)));
        }
    }
    if written.is_empty() {
        return Ok(answers);
    }
    for row in &put(lane, puts).await? {
        let id = id_of(column(row, 0)?)?;
        let said = match column::<i16>(row, 1)? {
            0 => Some(Stepped::Elsewhere),
            1 => Some(written.remove(&id).ok_or_else(foreign)?),
            _ => None,
        };
        answers.insert(id, Ok(said));
    }
    Ok(answers)
}

/// Puts records in the place of rows that begin so.
async fn put(lane: &Lane, mut puts: Vec<(At, Fact, Vec<u8>)>) -> Result<Vec<Row>, WriteError> {
    // As the columns have it.
    puts.sort_unstable_by_key(|(_, fact, _)| fact.id);
    let views = Views::of(puts.iter().map(|(at, ..)| at));
    let (facts, was): (Vec<Fact>, Vec<Vec<u8>>) = puts.into_iter().map(|(_, fact, was)| (fact, was)).unzip();
    let facts = Columns::of(&facts);
    let [partition, number, tag, session] = views.parameters();
    let [_, id, fence, rank, step, keep_until, record] = facts.parameters();
    let was: Parameter<'_> = (&was, Type::BYTEA_ARRAY);
    let parameters = [id, partition, number, tag, session, was, fence, rank, step, keep_until, record];
    lane.write(PUT, &parameters).await
}

/// The rows of these keys.
async fn here(
    lane: &Lane,
    steps: &BTreeMap<RecordId, (At, Step)>,
    latest: &AtomicI64,
) -> Result<Vec<(RecordId, Result<Here, StoreError>)>, StoreError> {
    let (ids, views) =
        (steps.keys().map(|id| &id.0[..]).collect::<Vec<_>>(), Views::of(steps.values().map(|(at, _)| at)));
    let [partition, number, tag, session] = views.parameters();
    let floor = latest.load(Ordering::SeqCst);
    let parameters: [Parameter<'_>; 6] =
        [(&floor, Type::INT8), (&ids, Type::BYTEA_ARRAY), partition, number, tag, session];
    let rows = lane.read(HERE, &parameters).await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        let bytes = column::<Option<&[u8]>>(row, 4)?;
        latest.fetch_max(column(row, 2)?, Ordering::SeqCst);
        let here = match bytes.map(fact::record).transpose() {
            Ok(record) => Ok(Here {
                serves: column(row, 1)?,
                now: Micros(unsigned(column(row, 2)?)?),
                mark: Fence(unsigned(column(row, 3)?)?),
                head: bytes.map(|bytes| bytes.iter().copied().take(HEAD_BYTES).collect()).unwrap_or_default(),
                record: record.map(as_record),
            }),
            Err(damaged) => Err(damaged),
        };
        all.push((id_of(column(row, 0)?)?, here));
    }
    Ok(all)
}

fn id_of(bytes: &[u8]) -> Result<RecordId, StoreError> {
    bytes.try_into().map(RecordId).map_err(|_| foreign())
}

/// The views that steps are taken in, a column each.
#[derive(Debug, Default)]
struct Views {
    partition: Vec<i16>,
    number: Vec<i64>,
    tag: Vec<i64>,
    session: Vec<Vec<u8>>,
}

impl Views {
    fn of<'a>(all: impl Iterator<Item = &'a At>) -> Self {
        let mut views = Self::default();
        all.for_each(|at| views.push(at));
        views
    }

    fn push(&mut self, at: &At) {
        self.partition.push(small(at.partition));
        self.number.push(big(at.view.number));
        self.tag.push(signed(at.view.tag));
        self.session.push(at.session.0.to_vec());
    }

    fn parameters(&self) -> [Parameter<'_>; 4] {
        [
            (&self.partition, Type::INT2_ARRAY),
            (&self.number, Type::INT8_ARRAY),
            (&self.tag, Type::INT8_ARRAY),
            (&self.session, Type::BYTEA_ARRAY),
        ]
    }
}
