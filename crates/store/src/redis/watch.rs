//! Steps as transactions, for servers whose users may not run scripts: WATCH and reads in one round trip, MULTI to EXEC
//! in a second, on a connection that nobody else uses meanwhile.
//!
//! The step is decided here, by the same pure functions as in the stores of one process. Whatever is written to the
//! record or to the partition's marker between the two round trips, a flush included, makes EXEC come back empty:
//! nothing was written, and the step begins anew, a bounded number of times. EXEC brings what the server says of itself,
//! too: what was acknowledged by one that is no primary, or of a history that is not known, counts as unknown.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use onceward_core::{
    cas::{self, FenceRule, Keep},
    codec,
    mutant::{self, Mutant},
    record::{Fence, Micros, Record, State, Stored},
};
use redis::{Pipeline, Value};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::sleep,
};

use super::{
    address::Address,
    error::Failure,
    incarnation::{Found, Mark, Marked, goes_on, tag_of},
    info::Info,
    key,
    link::{CallError, Link},
    step::{Epoch, Step, Stepped, What, remove_after},
    value::{self, Packed},
};
use crate::{Kind, StoreError, figures::Change};

/// How many steps are on their way at a time; more wait.
const CONNECTIONS_MAX: usize = 32;
/// How often a step begins anew.
const TRIES_MAX: u32 = 8;
/// The longest pause before it does; as much more each time.
const PAUSE: Duration = Duration::from_millis(2);
/// How far the server's clock may be behind what was written down.
const BEHIND_MAX: Duration = Duration::from_secs(2);

/// Takes steps on connections of their own.
#[derive(Debug)]
pub(super) struct Watching {
    free: Mutex<Vec<Link>>,
    permits: Semaphore,
    clock_moves: bool,
}

/// A connection that nobody else uses until it is given back. One that is dropped with a step on its way is closed: it
/// may watch keys, or have a transaction open.
struct Held<'a> {
    of: &'a Watching,
    link: Option<Link>,
    is_whole: bool,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            if !self.is_whole {
                link.close();
            }
            self.of.free.lock().unwrap_or_else(PoisonError::into_inner).push(link);
        }
    }
}

impl Held<'_> {
    async fn send(&mut self, commands: &Pipeline) -> Result<Vec<Value>, CallError> {
        let Some(link) = &self.link else {
            return Err(CallError::NotSent(StoreError::not_applied(Kind::Unavailable)));
        };
        self.is_whole = false;
        let answers = link.pipeline(commands).await?;
        self.is_whole = true;
        Ok(answers)
    }
}

/// What lies under a step's keys.
struct There {
    marker: Option<Marker>,
    value: Option<Vec<u8>>,
    apart: Option<Vec<u8>>,
    wall: Micros,
}

#[derive(Clone, Copy)]
struct Marker {
    epoch: Epoch,
    written: Micros,
}

impl Marker {
    fn of(value: &Value) -> Option<Self> {
        let Value::BulkString(bytes) = value else { return None };
        let (epoch, written) = bytes.split_first_chunk::<16>()?;
        Some(Self { epoch: *epoch, written: Micros(u64::from_be_bytes(written.try_into().ok()?)) })
    }

    fn bytes(self) -> Vec<u8> {
        [&self.epoch[..], &self.written.0.to_be_bytes()].concat()
    }
}

/// What is to be written, once it is decided.
struct Writing {
    stored: Stored,
    was_open: bool,
    /// `None`: the record is removed.
    new: Option<(Packed, State, Option<u64>)>,
    /// Its body lay apart.
    was_apart: bool,
    change: Change,
    removed: Option<String>,
}

impl Watching {
    pub(super) fn new(address: &Address, deadline: Duration, clock_moves: bool) -> Self {
        let free = (0..CONNECTIONS_MAX).map(|_| Link::new(address, deadline, None)).collect();
        Self { free: Mutex::new(free), permits: Semaphore::new(CONNECTIONS_MAX), clock_moves }
    }

    async fn hold(&self) -> Result<Held<'_>, StoreError> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|closed| StoreError::not_applied(Kind::Unavailable).because(closed))?;
        let link = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Held { of: self, link, is_whole: true, _permit: permit })
    }

    /// Takes a step; `tags` are what the histories that are known begin with.
    ///
    /// # Errors
    /// [`Kind::Conflict`]: it met another write each time. Else as a script's.
    pub(super) async fn step(&self, step: &Step<'_>, tags: &[u8]) -> Result<Stepped, StoreError> {
        let mut held = self.hold().await?;
        for round in 0..TRIES_MAX {
            if round > 0 {
                sleep(PAUSE.mul_f64(f64::from(round) * random())).await;
            }
            let there = self.look(&mut held, step).await?;
            let Some(marker) = there.marker.filter(|marker| goes_on(&marker.epoch, &step.epoch)) else {
                return Ok(Stepped::Unmarked);
            };
            if marker.written.since(there.wall) > BEHIND_MAX {
                return Ok(Stepped::Behind { wall: there.wall, written: marker.written });
            }
            let now = there.wall.max(step.floor);
            let writing = match decide(step, there, marker, now)? {
                Decided::Found(stepped) => return Ok(stepped),
                Decided::Write(writing) => writing,
            };
            let answers = held.send(&transaction(step, &writing, marker, now)).await.map_err(CallError::step)?;
            match answers.into_iter().next_back() {
                Some(Value::Nil) => {}
                Some(Value::Array(answers)) => {
                    let said = Info::of(answers.into_iter().next_back().unwrap_or_default());
                    confirm(&said, tags).inspect_err(|_| held.is_whole = false)?;
                    let Writing { stored, change, removed, .. } = writing;
                    return Ok(Stepped::Done { fence: stored.fence, revision: stored.revision, now, change, removed });
                }
                _ => return Err(StoreError::unknown(Kind::Damaged("EXEC's answer is none".into()))),
            }
        }
        Err(StoreError::not_applied(Kind::Conflict))
    }

    async fn look(&self, held: &mut Held<'_>, step: &Step<'_>) -> Result<There, StoreError> {
        let marker = step.keys.marker();
        let mut commands = redis::pipe();
        if step.what.is_read() {
            commands.atomic();
        } else {
            // What a step before left watched would fail this one.
            commands.cmd("UNWATCH").cmd("WATCH").arg(marker).arg(step.keys.record());
        }
        commands.cmd("GET").arg(marker).cmd("GET").arg(step.keys.record()).cmd("GET").arg(step.keys.body()).cmd("TIME");
        self.add_moved(&mut commands, step.keys.partition);
        let mut answers = held.send(&commands).await.map_err(CallError::read)?;
        if step.what.is_read() {
            let Some(Value::Array(inside)) = answers.pop() else { return Err(odd()) };
            answers = inside;
        } else {
            answers.drain(..2.min(answers.len()));
        }
        let [marker, value, apart, time, moved @ ..] = &mut *answers else { return Err(odd()) };
        let bytes = |value: &mut Value| match std::mem::take(value) {
            Value::BulkString(bytes) => Some(bytes),
            _ => None,
        };
        Ok(There {
            marker: Marker::of(marker),
            value: bytes(value),
            apart: bytes(apart),
            wall: time_of(time, moved.first()).ok_or_else(odd)?,
        })
    }

    fn add_moved(&self, commands: &mut Pipeline, partition: u16) {
        #[cfg(any(test, feature = "conformance"))]
        if self.clock_moves {
            commands.cmd("GET").arg(key::moved(partition));
        }
        let _ = (commands, partition, self.clock_moves);
    }

    /// Gives a partition its marker, or raises what is written down in it.
    pub(super) async fn mark(&self, partition: u16, mark: &Mark<'_>) -> Result<Marked, StoreError> {
        let mut held = self.hold().await?;
        let name = key::marker(partition);
        for round in 0..TRIES_MAX {
            if round > 0 {
                sleep(PAUSE.mul_f64(f64::from(round) * random())).await;
            }
            let mut commands = redis::pipe();
            commands.cmd("UNWATCH").cmd("WATCH").arg(&name).cmd("GET").arg(&name).cmd("TIME");
            self.add_moved(&mut commands, partition);
            let answers = held.send(&commands).await.map_err(CallError::read)?;
            let [_, _, marker, time, moved @ ..] = &*answers else { return Err(odd()) };
            let wall = time_of(time, moved.first()).ok_or_else(odd)?;
            let is_of =
                |epoch: &Epoch| mark.tags.is_empty() || mark.tags.chunks_exact(8).any(|tag| epoch.starts_with(tag));
            let there = Marker::of(marker);
            let before = there.map_or(Micros::ZERO, |marker| marker.written);
            let (new, found) = match there {
                None => (Marker { epoch: mark.epoch, written: wall.max(mark.floor) }, Found::Missing),
                Some(Marker { epoch, written }) if is_of(&epoch) => {
                    (Marker { epoch, written: written.max(wall) }, Found::Known)
                }
                Some(Marker { written, .. }) => {
                    (Marker { epoch: mark.epoch, written: written.max(wall) }, Found::OfAnother)
                }
            };
            let mut commands = redis::pipe();
            commands.atomic().cmd("SET").arg(&name).arg(new.bytes());
            let answers = held.send(&commands).await.map_err(CallError::step)?;
            if matches!(answers.last(), Some(Value::Array(_))) {
                return Ok(Marked { epoch: new.epoch, before, written: new.written, wall, found });
            }
        }
        Err(StoreError::not_applied(Kind::Conflict))
    }
}

enum Decided {
    /// Nothing is to be written.
    Found(Stepped),
    Write(Writing),
}

/// Whether a mutant has an insert take this record for none.
fn counts_as_none(record: &Record, now: Micros) -> bool {
    let is_over = record.stored.lease_until <= now;
    record.facts.state == State::InFlight
        && (mutant::is(Mutant::InsertOverClaim) || mutant::is(Mutant::LeaseDeletes) && is_over)
}

/// The step's decision on what is there.
fn decide(step: &Step<'_>, there: There, marker: Marker, now: Micros) -> Result<Decided, StoreError> {
    let mark = Fence(marker.written.0);
    let bytes = there.value.as_ref().map_or(0, Vec::len);
    let was_apart = there.value.as_deref().is_some_and(value::is_apart);
    let record = there.value.map(|value| value::unpack(value, there.apart.as_deref())).transpose()?;
    let (ended, mut record) = match record {
        Some(record) if record.is_expired(now) => (Some(record), None),
        record => (None, record),
    };
    let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
    if let What::Insert { facts, lease } = &step.what {
        if let Some(record) = record.take_if(|record| !counts_as_none(record, now)) {
            return Ok(Decided::Found(Stepped::There { record: Box::new(record), now }));
        }
        let packed = value::pack(facts);
        let change = Change { records: 1, bytes: signed(packed.len()) };
        let before = ended.or(record).map(|before| before.stored);
        let stored = cas::inserted(*lease, now, mark, before.as_ref());
        let new = Some((packed, facts.state, None));
        return Ok(Decided::Write(Writing { stored, was_open: false, new, was_apart, change, removed: None }));
    }
    let Some(record) = record else { return Ok(Decided::Found(Stepped::Absent { now })) };
    let is_meant = |expect| cas::is_meant(expect, &record.stored, record.facts.state);
    let was_open = record.facts.state == State::InFlight;
    let writing = match &step.what {
        What::Replace(write) if is_meant(write.expect) => {
            let packed = value::pack(&write.facts);
            let change = Change { records: 0, bytes: signed(packed.len()) - signed(bytes) };
            let stored = cas::replaced(write, &record.stored, now, mark);
            let after = match write.keep {
                Keep::Open => None,
                Keep::For(span) => Some(remove_after(span)),
            };
            debug_assert!(write.fence == FenceRule::Next || stored.fence == record.stored.fence);
            Writing {
                stored,
                was_open,
                new: Some((packed, write.facts.state, after)),
                was_apart,
                change,
                removed: None,
            }
        }
        What::Extend { holder, lease } if is_meant(cas::Expect::Holder(*holder)) => {
            let stored = cas::extended(&record.stored, *lease, now);
            let new = Some((value::pack(&record.facts), record.facts.state, None));
            Writing { stored, was_open, new, was_apart, change: Change::default(), removed: None }
        }
        What::Remove(expect) if is_meant(*expect) => {
            let change = Change { records: -1, bytes: -signed(bytes) };
            let Record { stored, facts } = record;
            Writing { stored, was_open, new: None, was_apart, change, removed: Some(facts.tenant) }
        }
        _ => return Ok(Decided::Found(Stepped::There { record: Box::new(record), now })),
    };
    Ok(Decided::Write(writing))
}

fn transaction(step: &Step<'_>, writing: &Writing, marker: Marker, now: Micros) -> Pipeline {
    let (record, body, open, id) = (step.keys.record(), step.keys.body(), step.keys.open(), &step.id.0[..]);
    let mut commands = redis::pipe();
    commands.atomic();
    let mut is_open = false;
    let mut apart = None;
    match &writing.new {
        Some((packed, state, after)) => {
            is_open = *state == State::InFlight;
            let block = codec::stored_bytes(&writing.stored);
            commands.cmd("SET").arg(record).arg([packed.head(), &block, packed.tail()].concat());
            if let Some(after) = after {
                commands.arg("PX").arg(*after);
            }
            // A body that is over already is not written.
            apart = packed.apart.as_ref().filter(|(_, until)| *until > now);
        }
        None => {
            commands.cmd("DEL").arg(record);
            let Fence(last) = writing.stored.fence;
            if last > marker.written.0 {
                let marker = Marker { written: Micros(last), ..marker };
                commands.cmd("SET").arg(step.keys.marker()).arg(marker.bytes());
            }
        }
    }
    match (writing.was_open, is_open) {
        (false, true) => drop(commands.cmd("SADD").arg(open).arg(id)),
        (true, false) => drop(commands.cmd("SREM").arg(open).arg(id)),
        _ => {}
    }
    match apart {
        Some((bytes, until)) => {
            let millis = u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX).saturating_add(1);
            commands.cmd("SET").arg(body).arg(bytes).arg("PX").arg(millis);
        }
        None if writing.was_apart => drop(commands.cmd("DEL").arg(body)),
        None => {}
    }
    if matches!(step.what, What::Replace(_) | What::Remove(_)) {
        commands.cmd("PUBLISH").arg(step.keys.channel()).arg("");
    }
    commands.cmd("INFO").arg("replication");
    commands
}

/// Whether what a server acknowledged counts.
fn confirm(said: &Info, tags: &[u8]) -> Result<(), StoreError> {
    // Whoever may not ask is not told.
    let known = said.history().and_then(tag_of).is_none_or(|tag| tags.chunks_exact(8).any(|known| known == tag));
    if (said.is_primary() && known) || said.field("role").is_empty() {
        return Ok(());
    }
    let why = "the server that took the step is no primary, or was started again or failed over since it was looked at";
    Err(StoreError::unknown(Kind::NotPrimary).because(Failure::said(why)))
}

/// Of TIME, seconds and microseconds, and what a test has moved it by.
fn time_of(time: &Value, moved: Option<&Value>) -> Option<Micros> {
    let Value::Array(parts) = time else { return None };
    let [Value::BulkString(seconds), Value::BulkString(micros)] = &**parts else { return None };
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
    let wall = number(seconds)?.checked_mul(1_000_000)?.checked_add(number(micros)?)?;
    let moved = match moved {
        Some(Value::BulkString(bytes)) => bytes.as_slice().try_into().map(i64::from_be_bytes).unwrap_or_default(),
        _ => 0,
    };
    Some(Micros(wall.wrapping_add_signed(moved)))
}

fn odd() -> StoreError {
    StoreError::not_applied(Kind::Damaged("the server's answer is none that a transaction gives".into()))
}

/// Between nothing and one, so that those who met do not meet again.
fn random() -> f64 {
    let mut draw = [0; 1];
    // Without randomness they may meet again: no more than that.
    let _drawn = getrandom::fill(&mut draw);
    f64::from(draw[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_history_acknowledged_does_not_count() {
        let said = |text: &str| Info::of(Value::BulkString(text.into()));
        let history = |digits: &str| format!("master_replid:{}\r\n", digits.repeat(20));
        let tags = tag_of(&"ab".repeat(20)).unwrap();
        assert!(confirm(&said(&format!("role:master\r\n{}", history("ab"))), &tags).is_ok());
        assert!(confirm(&said(&format!("role:slave\r\n{}", history("ab"))), &tags).is_err());
        let other = confirm(&said(&format!("role:master\r\n{}", history("cd"))), &tags).unwrap_err();
        assert_eq!((other.kind, other.applied), (Kind::NotPrimary, crate::Applied::Unknown));
        assert!(confirm(&said(""), &tags).is_ok(), "nobody may ask it");
    }

    #[test]
    fn the_servers_time_is_read_in_microseconds() {
        let time = |seconds: &str, micros: &str| {
            Value::Array(vec![Value::BulkString(seconds.into()), Value::BulkString(micros.into())])
        };
        assert_eq!(time_of(&time("1750000000", "000007"), None), Some(Micros(1_750_000_000_000_007)));
        assert_eq!(time_of(&Value::Nil, None), None);
    }
}
