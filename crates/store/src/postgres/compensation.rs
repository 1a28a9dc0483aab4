//! Undoing effects whose records were settled as failed: functions of the database are run, URLs are called.
//!
//! The schema's functions decide what is due (`migrations/0008_compensation.sql`); here one after the other is run. A
//! function runs in one transaction with the note that it is done, so it takes effect once. A call is noted before it is
//! made and again when it is answered: whoever finds one whose lease is over makes it again, with the same key.

use std::{error::Error, fmt, future::Future, pin::Pin, time::Duration};

use tokio_postgres::{SimpleQueryMessage, types::Type};

use super::{Postgres, lane::Lane, row::span};
use crate::{Kind, StoreError};

/// How long a function may run on the server, in milliseconds; a longer one has failed.
const FUNCTION_MS_MAX: u64 = 60_000;
/// How long its answer is waited for: the server ends it before.
pub(super) const DEADLINE: Duration = Duration::from_secs(90);

/// An answer to come: the HTTP status.
pub type Calling = Pin<Box<dyn Future<Output = Result<u16, Box<dyn Error + Send + Sync>>> + Send>>;

/// Sends a call over HTTP. An implementation follows no redirect and may send a call again, since its key is the same.
/// It needs no time limit of its own: what takes longer than [`Rules::call`] is dropped.
pub trait Caller: fmt::Debug + Send + Sync + 'static {
    /// POSTs it, and gives the status of the answer.
    fn call(&self, call: Call) -> Calling;
}

/// A call that undoes an effect.
#[derive(Clone, PartialEq, Eq)]
pub struct Call {
    /// Where to, one of [`Rules::urls`].
    pub url: String,
    /// For the header `Idempotency-Key`; the same however often the call is made.
    pub key: String,
    /// JSON, as it was registered.
    pub payload: String,
}

// Neither key nor payload belongs in a log.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({})", self.url)
    }
}

/// How compensations are run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rules {
    /// Which URLs may be called: as they are, or as beginnings where they end in a slash. Others stay due.
    pub urls: Vec<String>,
    /// Runs of one compensation before it is stuck, and an operator decides. Default 12.
    pub attempts_max: i32,
    /// The pause after the first that failed; it doubles with each. Default 5 s.
    pub pause: Duration,
    /// The longest pause. Default an hour.
    pub pause_max: Duration,
    /// For a call and its answer. Default 10 s.
    pub call: Duration,
    /// Compensations run at one look; the others are run at the next. Default 100.
    pub runs_max: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            attempts_max: 12,
            pause: Duration::from_secs(5),
            pause_max: Duration::from_secs(3600),
            call: Duration::from_secs(10),
            runs_max: 100,
        }
    }
}

/// What one look did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compensated {
    /// Undone.
    pub done: u64,
    /// Failed, to be run again.
    pub failed: u64,
    /// Failed so often that an operator decides.
    pub stuck: u64,
}

impl Compensated {
    fn count(&mut self, outcome: &str) {
        match outcome {
            "done" => self.done += 1,
            "stuck" => self.stuck += 1,
            "failed" => self.failed += 1,
            // Somebody else has it by now, and counts it.
            _ => {}
        }
    }
}

/// Compensations that somebody has to do something about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Open {
    /// To be run, or run again.
    pub due: u64,
    /// An operator decides, since they failed too often.
    pub stuck: u64,
    /// An operator decides, since their records are gone without having failed or been completed.
    pub held: u64,
    /// The oldest of those that an operator decides about.
    pub examples: Vec<Example>,
}

/// One that an operator decides about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Example {
    /// The record's id.
    pub record: String,
    /// Its name.
    pub name: String,
    /// `stuck` or `held`.
    pub state: String,
    /// The function or the URL.
    pub target: String,
    /// Runs that have begun.
    pub attempts: u32,
    /// Why the last failed.
    pub last_error: String,
}

/// A call that was taken.
struct Taken {
    record: Vec<u8>,
    name: String,
    attempt: i32,
    call: Call,
}

impl Postgres {
    /// Runs what is due: functions, and where there is a `caller` also calls, one after the other, at most
    /// [`Rules::runs_max`] of each. Any number of processes may do it at the same time.
    ///
    /// # Errors
    /// Where the database does not answer. What was done by then is done; a call whose end could not be noted is made
    /// again.
    pub async fn compensate(&self, rules: &Rules, caller: Option<&dyn Caller>) -> Result<Compensated, StoreError> {
        self.shared.health.may_ask()?;
        let lane = &self.shared.compensating;
        let mut all = Compensated::default();
        for _ in 0..rules.runs_max {
            match function(lane, rules).await? {
                None => break,
                Some(outcome) => all.count(&outcome),
            }
        }
        let Some(caller) = caller.filter(|_| !rules.urls.is_empty()) else { return Ok(all) };
        for _ in 0..rules.runs_max {
            match take(lane, rules).await? {
                None => break,
                Some(Err(stuck)) => all.count(&stuck),
                Some(Ok(taken)) => {
                    let said = call(caller, taken.call.clone(), rules).await;
                    all.count(&told(lane, rules, &taken, said.as_deref()).await?);
                }
            }
        }
        Ok(all)
    }

    /// What waits, and the oldest that an operator decides about: so many of each kind at most.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn compensations(&self, examples_max: u32) -> Result<Open, StoreError> {
        let lane = &self.shared.compensating;
        let rows = lane.read("SELECT due, stuck, held FROM onceward.compensation_counts()", &[]).await?;
        let Some(row) = rows.first() else { return Err(StoreError::not_applied(Kind::Unavailable)) };
        let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or_default();
        let mut open = Open { due: count(0), stuck: count(1), held: count(2), examples: Vec::new() };
        let sql = "SELECT record, name, state, target, attempts, last_error FROM onceward.compensations($1, $2)";
        let most = i32::try_from(examples_max).unwrap_or(i32::MAX);
        for state in ["stuck", "held"] {
            let rows = lane.read(sql, &[(&state, Type::TEXT), (&most, Type::INT4)]).await?;
            open.examples.extend(rows.iter().map(|row| Example {
                record: row.get(0),
                name: row.get(1),
                state: row.get(2),
                target: row.get(3),
                attempts: u32::try_from(row.get::<_, i32>(4)).unwrap_or_default(),
                last_error: row.get(5),
            }));
        }
        Ok(open)
    }
}

/// Runs one function; what became of it, `None` where none is due.
async fn function(lane: &Lane, rules: &Rules) -> Result<Option<String>, StoreError> {
    let Rules { attempts_max, pause, pause_max, .. } = rules;
    let (pause, pause_max) = (span(*pause), span(*pause_max));
    let sql = format!(
        "SET LOCAL statement_timeout = {FUNCTION_MS_MAX}; \
         SELECT onceward.compensate({attempts_max}, {pause} * interval '1 microsecond', {pause_max} * interval '1 microsecond')"
    );
    let answers = lane.script(&sql).await.map_err(|failed| failed.error)?;
    Ok(answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Takes one call; an error is the word for one that is stuck.
async fn take(lane: &Lane, rules: &Rules) -> Result<Option<Result<Taken, String>>, StoreError> {
    let sql = "SELECT outcome, record_id, name, target, key, payload, attempt \
         FROM onceward.compensation_take($1, $2 * interval '1 microsecond', $3)";
    // Longer than the call, and than noting how it ended.
    let lease = span(rules.call.saturating_mul(2).saturating_add(Duration::from_secs(5)));
    let rows = lane
        .write(sql, &[(&rules.urls, Type::TEXT_ARRAY), (&lease, Type::INT8), (&rules.attempts_max, Type::INT4)])
        .await
        .map_err(|failed| failed.error)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let outcome: String = row.get(0);
    if outcome != "take" {
        return Ok(Some(Err(outcome)));
    }
    let call = Call { url: row.get(3), key: row.get(4), payload: row.get(5) };
    Ok(Some(Ok(Taken { record: row.get(1), name: row.get(2), attempt: row.get(6), call })))
}

/// Makes the call; why it failed.
async fn call(caller: &dyn Caller, call: Call, rules: &Rules) -> Option<String> {
    match tokio::time::timeout(rules.call, caller.call(call)).await {
        Ok(Ok(status)) if (200..300).contains(&status) => None,
        Ok(Ok(status)) => Some(format!("it answered {status}")),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_late) => Some("it did not answer in time".to_owned()),
    }
}

async fn told(lane: &Lane, rules: &Rules, taken: &Taken, said: Option<&str>) -> Result<String, StoreError> {
    let sql = "SELECT onceward.compensation_told($1, $2, $3, $4, $5, $6 * interval '1 microsecond', $7 * interval '1 microsecond')";
    let rows = lane
        .write(
            sql,
            &[
                (&taken.record, Type::BYTEA),
                (&taken.name, Type::TEXT),
                (&taken.attempt, Type::INT4),
                (&said, Type::TEXT),
                (&rules.attempts_max, Type::INT4),
                (&span(rules.pause), Type::INT8),
                (&span(rules.pause_max), Type::INT8),
            ],
        )
        .await
        .map_err(|failed| failed.error)?;
    rows.first().map(|row| row.get(0)).ok_or_else(|| StoreError::unknown(Kind::Unavailable))
}
