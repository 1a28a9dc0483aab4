//! Views that go on without a session, by an operator's word: what `onceward view force` and `onceward view at-risk` ask.
//!
//! A gateway that is gone with its disk, while the Redis that granted to it is gone, too, is waited for in vain: nobody knows
//! what it was granted last. Whoever decides that views go on without it accepts that those keys may run again, and gets
//! a list that has each of them ([`Forced::at_risk`]). The functions are those of `migrations/0018_journal_force.sql`.

use std::time::Duration;

use futures_util::{
    Stream, TryStreamExt as _,
    stream::{self, try_unfold},
};
use onceward_core::record::{Fence, SessionId};
use tokio_postgres::{
    Client, Row,
    types::{FromSql, Type},
};

use super::{
    address::Address,
    error::Failure,
    fact::{self, small},
    migrate::{self, MIGRATIONS, SchemaError},
    row::{Parameter, big, span},
};
use crate::journaled::Fact;

/// The most keys that are read at a time.
const KEYS_MAX: i64 = 1_000;

/// That views go on without a session.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Without whom.
    pub session: SessionId,
    /// Refused where it was heard of within that time.
    pub silence: Duration,
    /// The longest retention of what it can have been granted.
    pub keeps: Duration,
    /// No server's clock is further off than that: fences begin anew so far above the database's.
    pub clocks_differ: Duration,
    /// Only to be told what would be done.
    pub is_try: bool,
}

/// What became of the wish that views go on without a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Said {
    /// Views of these partitions go on without it, or would. It was not heard of for so long.
    Done {
        /// By the database's clock.
        silent_for: Duration,
        /// Those that waited for it.
        partitions: Vec<u16>,
    },
    /// It is no member: it never was, or is over, so nothing waits for it.
    NoMember,
    /// It was heard of a moment ago: it lives, or somebody ships what it left.
    HeardOf {
        /// By the database's clock.
        silent_for: Duration,
    },
    /// No view waits for it. Where it is silent, the others retire it by themselves.
    NotWaitedFor,
    /// Views were opened before the database failed over, and gateways open the next ones first.
    OfAnotherLife,
}

/// That views went on without a session, for as long as anything is at risk by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its number.
    pub number: i64,
    /// Without whom.
    pub session: SessionId,
    /// When that was.
    pub ago: Duration,
    /// How long nothing had been heard of the session.
    pub silent_before: Duration,
    /// When the retention is over of all that the session can have been granted.
    pub ends_in: Duration,
    /// It was granted nothing above that fence, and in these partitions nothing was granted since but above it.
    pub mark: Fence,
    /// Of these partitions.
    pub partitions: Vec<u16>,
    /// Of how many keys it is known that the session had been granted them, and that they were granted again.
    pub twice: u64,
}

/// A key that was granted after such a decision, and may have been executed before.
#[derive(Clone, Debug, PartialEq)]
pub struct AtRisk {
    /// The key's row in the journal.
    pub fact: Fact,
    /// What the session is known to have been granted, since its disk was found.
    pub first: Option<Fence>,
    /// Whether that is known to have been executed.
    pub is_executed: bool,
}

/// Asks a journal, over a connection of its own.
#[derive(Debug)]
pub struct Forced {
    client: Client,
}

impl Forced {
    /// Connects to the journal in a database.
    ///
    /// # Errors
    /// Where the database cannot be asked, or its schema is not that of this version.
    pub async fn connect(address: &Address) -> Result<Self, SchemaError> {
        let (client, connection) = address.connect(|_| ()).await.map_err(unreachable)?;
        tokio::spawn(connection);
        migrate::check_with(&client, MIGRATIONS).await?;
        Ok(Self { client })
    }

    /// Has the views that wait for a session go on without it.
    ///
    /// # Errors
    /// Where the database cannot be asked.
    pub async fn without(&self, wish: &Wish) -> Result<Said, SchemaError> {
        let (session, is_try) = (wish.session.0.as_slice(), wish.is_try);
        let [silence, keeps, differ] = [wish.silence, wish.keeps, wish.clocks_differ].map(span);
        let parameters: [Parameter<'_>; 5] = [
            (&session, Type::BYTEA),
            (&silence, Type::INT8),
            (&keeps, Type::INT8),
            (&differ, Type::INT8),
            (&is_try, Type::BOOL),
        ];
        let rows = self.ask("SELECT * FROM onceward.journal_force($1, $2, $3, $4, $5)", &parameters).await?;
        let row = rows.first().ok_or_else(foreign)?;
        let silent_for = || Ok::<_, SchemaError>(micros(column::<Option<i64>>(row, 1)?.unwrap_or_default()));
        Ok(match column::<i16>(row, 0)? {
            0 => Said::Done { silent_for: silent_for()?, partitions: partitions(row, 2)? },
            1 => Said::NoMember,
            2 => Said::HeardOf { silent_for: silent_for()? },
            3 => Said::NotWaitedFor,
            4 => Said::OfAnotherLife,
            _ => return Err(foreign()),
        })
    }

    /// What was decided so, and is not over yet.
    ///
    /// # Errors
    /// Where the database cannot be asked.
    pub async fn decisions(&self) -> Result<Vec<Decision>, SchemaError> {
        let rows = self.ask("SELECT * FROM onceward.journal_forced()", &[]).await?;
        rows.iter().map(decision).collect()
    }

    /// The keys at risk by a decision, in no order that means anything; read some at a time.
    ///
    /// # Errors
    /// Where the database cannot be asked, or a row cannot be read; nothing follows then.
    pub fn at_risk(&self, decision: &Decision) -> impl Stream<Item = Result<AtRisk, SchemaError>> {
        let number = decision.number;
        let pages = try_unfold(None, move |after: Option<AtRisk>| async move {
            let page = self.page(number, after).await?;
            let last = page.last().cloned();
            Ok(last.map(|last| (stream::iter(page.into_iter().map(Ok)), Some(last))))
        });
        pages.try_flatten()
    }

    async fn page(&self, decision: i64, after: Option<AtRisk>) -> Result<Vec<AtRisk>, SchemaError> {
        let (partition, fence, id) = match after.as_ref().map(|at| &at.fact) {
            Some(Fact { id, record }) => (small(id.partition()), big(record.stored.fence.0), id.0.as_slice()),
            None => (-1, 0, [].as_slice()),
        };
        let parameters: [Parameter<'_>; 5] = [
            (&decision, Type::INT8),
            (&partition, Type::INT2),
            (&fence, Type::INT8),
            (&id, Type::BYTEA),
            (&KEYS_MAX, Type::INT8),
        ];
        let rows = self.ask("SELECT * FROM onceward.journal_at_risk($1, $2, $3, $4, $5)", &parameters).await?;
        rows.iter().map(key).collect()
    }

    pub(super) async fn ask(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, SchemaError> {
        self.client.query_typed(sql, parameters).await.map_err(unreachable)
    }
}

pub(super) fn unreachable(error: tokio_postgres::Error) -> SchemaError {
    SchemaError::Unreachable(Failure::of(error))
}

fn foreign() -> SchemaError {
    SchemaError::Unreachable(Failure::said("a function of the journal answers otherwise than this program's"))
}

fn column<'a, T: FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, SchemaError> {
    row.try_get(at).map_err(unreachable)
}

fn micros(of: i64) -> Duration {
    Duration::from_micros(u64::try_from(of).unwrap_or_default())
}

fn partitions(row: &Row, at: usize) -> Result<Vec<u16>, SchemaError> {
    let all = column::<Vec<i16>>(row, at)?.into_iter().map(u16::try_from);
    all.collect::<Result<_, _>>().map_err(|_| foreign())
}

fn decision(row: &Row) -> Result<Decision, SchemaError> {
    Ok(Decision {
        number: column(row, 0)?,
        session: column::<&[u8]>(row, 1)?.try_into().map(SessionId).map_err(|_| foreign())?,
        ago: micros(column(row, 2)?),
        silent_before: micros(column(row, 3)?),
        ends_in: micros(column(row, 4)?),
        mark: Fence(u64::try_from(column::<i64>(row, 5)?).unwrap_or_default()),
        partitions: partitions(row, 6)?,
        twice: u64::try_from(column::<i64>(row, 7)?).unwrap_or_default(),
    })
}

fn key(row: &Row) -> Result<AtRisk, SchemaError> {
    let read = fact::fact(column(row, 2)?, column(row, 3)?);
    let unread = || SchemaError::Unreachable(Failure::said("a row of the journal cannot be read"));
    let first = column::<Option<i64>>(row, 4)?.and_then(|fence| u64::try_from(fence).ok());
    Ok(AtRisk {
        fact: read.ok().flatten().ok_or_else(unread)?,
        first: first.map(Fence),
        is_executed: column::<Option<bool>>(row, 5)?.unwrap_or_default(),
    })
}
