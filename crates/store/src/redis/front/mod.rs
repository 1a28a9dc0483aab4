//! What the journaled protocol asks of Redis, on real servers: each call one script, in the partition's slot.
//!
//! Beside the keys of other durabilities a partition has a view (`…:v`), the sessions that it lets in (`…:s`), the ids that
//! may not be in the journal yet (`…:d`), and records (`…:ID:j`). A script looks whether the server is the primary with the
//! data that the caller names, whether the view is its view and the session is let in, and only then at the record. INFO is
//! asked for the first, in the script: where the user may not, each call fails, and nothing is granted.
//!
//! A record that is dirty has no end in Redis, so that nothing is dropped that the journal lacks; once the journal has it for
//! good, it ends as its retention does. A call that is sent again does no harm: an insert finds its own claim, a holder's
//! write finds what it wrote, and in another view neither does anything.
//!
//! Those who wait are told as in `cache`, on the record's channel, of replacements and releases. What is merged is told
//! nobody: they look again each second.
//!
//! `scripts` the scripts' text, `bytes` a record as it lies here, `fit` whether servers may be used.

mod bytes;
mod fit;
mod scripts;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::future::join_all;
use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease},
    key::{PARTITIONS, RecordId},
    record::{Fence, Micros, Record, SessionId},
};
use redis::Value;

pub use self::fit::Unfit;
use self::scripts::Scripts;
use super::{
    Redis, Shared,
    error::{Failure, OTHER_KIND},
    info::Info,
    key,
    link::{CallError, Link},
    script::{Script, eight, expected, lengthened, odd},
    step::length,
    value,
};
use crate::{
    Answer, Kind, StoreError,
    journaled::{At, Dirty, Fact, Front, Incarnation, Install, Outbox, Row, Sight, Stepped, View, What},
};

/// So many records are looked at by one script: some hundred microseconds of the server's time.
const PAGE_MAX: usize = 64;
/// Of a view as it lies there: number, tag, mark, the latest time of a grant, before, whether it is warm, and the
/// horizon.
const VIEW_BYTES: usize = 49;

/// Redis in front of a journal. It lives on the connections of the store that it was made of, which has to be kept.
pub struct JournaledFront {
    shared: Arc<Shared>,
    scripts: Scripts,
    /// By partition.
    keys: Vec<[String; 3]>,
}

impl fmt::Debug for JournaledFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JournaledFront({})", self.shared.options.address)
    }
}

impl Redis {
    /// These servers as the front of a journal. It takes scripts, whatever the store's own strategy is.
    #[must_use]
    pub fn front(&self) -> JournaledFront {
        let tell = if self.shared.options.address.is_cluster() { "SPUBLISH" } else { "PUBLISH" };
        JournaledFront {
            shared: Arc::clone(&self.shared),
            scripts: Scripts::new(tell, self.shared.options.clock_moves()),
            keys: (0..PARTITIONS).map(|partition| ["v", "s", "d"].map(|of| key::journaled(partition, of))).collect(),
        }
    }
}

impl JournaledFront {
    /// Calls a script of this partition, with these keys more than the partition's own.
    async fn call(
        &self,
        link: &Link,
        script: &Script,
        at: &At,
        records: &[String],
        arguments: &[&[u8]],
    ) -> Result<Value, CallError> {
        let Some(own) = self.keys.get(usize::from(at.partition)) else {
            let said = Failure::said(format!("there is no partition {}", at.partition));
            return Err(CallError::NotSent(StoreError::not_applied(Kind::Unavailable).because(said)));
        };
        let keys: Vec<&[u8]> = own.iter().chain(records).map(String::as_bytes).collect();
        script.run(link, &keys, arguments).await
    }

    /// Calls a script that says yes or no, about these records where there are some.
    async fn ask(
        &self,
        script: &Script,
        at: &At,
        said: &[u8],
        records: &[String],
        arguments: &[&[u8]],
    ) -> Result<bool, StoreError> {
        let arguments: Vec<&[u8]> = std::iter::once(said).chain(arguments.iter().copied()).collect();
        let answer = self.call(&self.shared.side, script, at, records, &arguments).await.map_err(CallError::step)?;
        match &answer {
            Value::BulkString(code) if code.as_slice() == b"1" => Ok(true),
            Value::BulkString(code) if code.as_slice() == b"9" => Ok(false),
            other => Err(refused(other).unwrap_or_else(odd)),
        }
    }

    /// What every script is told first.
    fn said(&self, at: &At) -> Vec<u8> {
        let mut said = Vec::with_capacity(160);
        said.extend_from_slice(&at.view.number.to_be_bytes());
        said.extend_from_slice(&at.view.tag.to_be_bytes());
        said.extend_from_slice(&at.session.0);
        said.extend_from_slice(&self.shared.floor().0.to_be_bytes());
        said.extend_from_slice(b"\nmaster_replid:");
        let digits = at.incarnation.0.into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
        said.extend(digits.map(|digit| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }));
        said.push(b'\r');
        said
    }

    async fn take(&self, at: &At, id: RecordId, what: What<'_>, row: Option<&Row>) -> Result<Stepped, StoreError> {
        let records = [key::journaled_record(at.partition, &id)];
        let mut said = self.said(at);
        let row = match row {
            None => b"-".to_vec(),
            Some(None) => Vec::new(),
            Some(Some(row)) => bytes::row(row),
        };
        let link = &self.shared.link;
        let answer = match &what {
            What::Insert { facts, lease } => {
                let packed = value::pack_whole(facts);
                said.extend_from_slice(&length(*lease));
                said.extend_from_slice(&bytes::prefix(facts));
                said.extend_from_slice(packed.head());
                self.call(link, &self.scripts.insert, at, &records, &[&said, &row, packed.tail()]).await
            }
            What::Replace(write) => {
                let packed = value::pack_whole(&write.facts);
                said.extend_from_slice(&expected(write.expect));
                said.push(if write.fence == FenceRule::Next { b'n' } else { b'k' });
                said.extend_from_slice(&match write.lease {
                    Lease::Keep => lengthened(b'k', Duration::ZERO),
                    Lease::Over => lengthened(b'o', Duration::ZERO),
                    Lease::For(span) => lengthened(b'f', span),
                });
                said.extend_from_slice(&match write.keep {
                    Keep::Open => lengthened(b'o', Duration::ZERO),
                    Keep::For(span) => lengthened(b'f', span),
                });
                said.extend_from_slice(&bytes::prefix(&write.facts));
                said.extend_from_slice(packed.head());
                self.call(link, &self.scripts.replace, at, &records, &[&said, &row, packed.tail()]).await
            }
            What::Extend { holder, lease } => {
                said.extend_from_slice(&expected(Expect::Holder(*holder)));
                said.extend_from_slice(&length(*lease));
                self.call(link, &self.scripts.extend, at, &records, &[&said, &row]).await
            }
            What::Release(expect) => {
                said.extend_from_slice(&expected(*expect));
                self.call(link, &self.scripts.release, at, &records, &[&said, &row]).await
            }
            What::Get => self.call(link, &self.scripts.get, at, &records, &[&said, &row]).await,
        };
        // A read that was given a row may have merged it: that says nothing new, and may be done twice.
        let is_read = matches!(what, What::Get);
        let answer = answer.map_err(|failed| if is_read { failed.read() } else { failed.step() })?;
        let mut stepped = stepped(&what, answer)?;
        match &mut stepped {
            Stepped::Done { now, .. } => {
                *now = self.shared.time(*now);
                self.shared.watchers.wake(&id);
            }
            Stepped::There { now, .. } | Stepped::Absent { now } => *now = self.shared.time(*now),
            Stepped::NeedsRow | Stepped::Elsewhere => {}
        }
        Ok(stepped)
    }

    /// Those that answered; an error where none does.
    async fn see(&self, partitions: &[u16]) -> Result<Vec<(u16, Sight)>, StoreError> {
        let at_once = if self.shared.options.address.is_cluster() { 1 } else { partitions.len().max(1) };
        let asked = partitions.chunks(at_once).map(|some| self.see_on_one(some));
        let (mut seen, mut failed) = (Vec::with_capacity(partitions.len()), None);
        for answer in join_all(asked).await {
            match answer {
                Ok(some) => seen.extend(some),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if seen.is_empty() => Err(error),
            _ => Ok(seen),
        }
    }

    /// Of one server.
    async fn see_on_one(&self, partitions: &[u16]) -> Result<Vec<(u16, Sight)>, StoreError> {
        let keys: Vec<String> = partitions.iter().map(|partition| key::journaled(*partition, "v")).collect();
        let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        let answer = self.scripts.look.run(&self.shared.side, &keys, &[]).await.map_err(CallError::read)?;
        let Value::Array(mut views) = answer else { return Err(refused(&answer).unwrap_or_else(odd)) };
        let info = Info::of(views.pop().ok_or_else(odd)?);
        let incarnation = info.history().and_then(incarnation_of).ok_or_else(|| {
            let said = Failure::said("the server does not say which data it has (master_replid of INFO)");
            StoreError::not_applied(Kind::Unavailable).because(said)
        })?;
        if !info.is_primary() && !self.shared.options.address.is_cluster() {
            // Whoever connects next is led to the primary, where somebody knows it.
            self.shared.link.close();
            self.shared.side.close();
        }
        let sight = |(partition, view): (&u16, Value)| {
            let view = match view {
                Value::BulkString(bytes) if bytes.len() == VIEW_BYTES => bytes,
                _ => vec![0; VIEW_BYTES],
            };
            let eight_at = |at| view.get(at..at + 8).and_then(eight).unwrap_or_default();
            let is_warm = view.get(40) == Some(&b'1');
            let (is_primary, mark) = (info.is_primary(), Fence(eight_at(16)));
            let view = View { number: eight_at(0), tag: eight_at(8) };
            (*partition, Sight { is_primary, incarnation, view, is_warm, mark })
        };
        Ok(partitions.iter().zip(views).map(sight).collect())
    }

    /// A record as it lies there, over or not.
    ///
    /// # Errors
    /// Where Redis does not answer, or what is there cannot be read.
    #[cfg(any(test, feature = "conformance"))]
    pub async fn kept(&self, partition: u16, id: &RecordId) -> Result<Option<Record>, StoreError> {
        let get = redis::cmd("GET").arg(key::journaled_record(partition, id)).take();
        match self.shared.side.call(&get).await.map_err(CallError::read)? {
            Value::BulkString(record) => bytes::unpack(record).map(Some),
            _ => Ok(None),
        }
    }

    async fn dirty_records(&self, at: &At) -> Result<Option<Outbox>, StoreError> {
        let (said, count) = (self.said(at), PAGE_MAX.to_string());
        let (mut cursor, mut found) = (b"0".to_vec(), BTreeMap::new());
        loop {
            let arguments: [&[u8]; 3] = [&said, &cursor, count.as_bytes()];
            let answer = self.call(&self.shared.side, &self.scripts.dirty, at, &[], &arguments).await;
            let mut page = match answer.map_err(CallError::read)? {
                Value::Array(page) => page.into_iter(),
                Value::BulkString(code) if code == b"9" => return Ok(None),
                other => return Err(refused(&other).unwrap_or_else(odd)),
            };
            let (Some(Value::BulkString(next)), Some(Value::BulkString(before))) = (page.next(), page.next()) else {
                return Err(odd());
            };
            let before = Fence(eight(&before).ok_or_else(odd)?);
            while let (Some(Value::BulkString(id)), Some(Value::BulkString(record))) = (page.next(), page.next()) {
                let id = std::str::from_utf8(&id).ok().and_then(|id| id.parse::<RecordId>().ok()).ok_or_else(odd)?;
                // Of one that is on several pages the last is the latest.
                found.insert(id, Fact { id, record: Arc::new(bytes::unpack(record)?) });
            }
            if next == b"0" {
                return Ok(Some(Outbox { before, facts: found.into_values().collect() }));
            }
            cursor = next;
        }
    }

    async fn give(&self, at: &At, install: &Install) -> Result<bool, StoreError> {
        let mut said = self.said(at);
        said.extend_from_slice(&install.mark.0.to_be_bytes());
        said.extend_from_slice(&install.horizon.0.to_be_bytes());
        let sessions: Vec<u8> = install.admitted.iter().flat_map(|session| session.0).collect();
        let (records, rows) = rows(at, &install.erased);
        let arguments: Vec<&[u8]> = std::iter::once(&*sessions).chain(rows.iter().map(Vec::as_slice)).collect();
        self.ask(&self.scripts.install, at, &said, &records, &arguments).await
    }

    async fn merge_rows(&self, at: &At, facts: &[Fact]) -> Result<bool, StoreError> {
        let said = self.said(at);
        for page in pages(facts) {
            let (records, rows) = rows(at, page);
            let arguments: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            if !self.ask(&self.scripts.merge_rows, at, &said, &records, &arguments).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn are_shipped(&self, at: &At, shipped: &[Dirty]) -> Result<bool, StoreError> {
        let said = self.said(at);
        for page in pages(shipped) {
            let records: Vec<String> = page.iter().map(|of| key::journaled_record(at.partition, &of.id)).collect();
            let of_each = |of: &Dirty| [of.fence.0.to_be_bytes(), of.revision.0.to_be_bytes()].concat();
            let written: Vec<u8> = page.iter().flat_map(of_each).collect();
            if !self.ask(&self.scripts.clean, at, &said, &records, &[&written]).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Front for JournaledFront {
    fn step<'a>(&'a self, at: &'a At, id: RecordId, what: What<'a>, row: Option<&'a Row>) -> Answer<'a, Stepped> {
        Box::pin(self.take(at, id, what, row))
    }

    /// Of one server by one script, of a Cluster's by one for each partition, all on their way at once.
    fn look<'a>(&'a self, partitions: &'a [u16]) -> Answer<'a, Vec<(u16, Sight)>> {
        Box::pin(self.see(partitions))
    }

    fn install<'a>(&'a self, at: &'a At, install: &'a Install) -> Answer<'a, bool> {
        Box::pin(self.give(at, install))
    }

    fn admit<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        Box::pin(async move { self.ask(&self.scripts.admit, at, &self.said(at), &[], &[]).await })
    }

    fn shut_out<'a>(&'a self, at: &'a At, target: SessionId) -> Answer<'a, bool> {
        Box::pin(async move { self.ask(&self.scripts.shut_out, at, &self.said(at), &[], &[&target.0]).await })
    }

    /// In pages. A session that was shut out before the first of them writes nothing any more, so that all it wrote is in
    /// the set from then on, until the journal has it; and each page is of the same view on the same data, or there is none.
    fn dirty<'a>(&'a self, at: &'a At) -> Answer<'a, Option<Outbox>> {
        Box::pin(self.dirty_records(at))
    }

    fn clean<'a>(&'a self, at: &'a At, shipped: &'a [Dirty]) -> Answer<'a, bool> {
        Box::pin(self.are_shipped(at, shipped))
    }

    fn merge<'a>(&'a self, at: &'a At, rows: &'a [Fact]) -> Answer<'a, bool> {
        Box::pin(self.merge_rows(at, rows))
    }

    fn warm<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        Box::pin(async move { self.ask(&self.scripts.warm, at, &self.said(at), &[], &[]).await })
    }
}

/// What one script takes at a time. One that is empty is asked of all the same: is it the view still?
fn pages<T>(all: &[T]) -> impl Iterator<Item = &[T]> {
    all.chunks(PAGE_MAX).chain(all.is_empty().then_some(all))
}

/// Keys and bytes of the journal's rows.
fn rows(at: &At, facts: &[Fact]) -> (Vec<String>, Vec<Vec<u8>>) {
    facts.iter().map(|fact| (key::journaled_record(at.partition, &fact.id), bytes::row(&fact.record))).unzip()
}

/// Reads what a step's script returns.
fn stepped(what: &What<'_>, answer: Value) -> Result<Stepped, StoreError> {
    if let Some(error) = refused(&answer) {
        return Err(error);
    }
    let (said, there) = match answer {
        Value::BulkString(said) => (said, None),
        Value::Array(items) => match <[Value; 2]>::try_from(items) {
            Ok([Value::BulkString(said), Value::BulkString(there)]) => (said, Some(there)),
            _ => return Err(odd()),
        },
        _ => return Err(odd()),
    };
    let (code, rest) = said.split_first().ok_or_else(odd)?;
    match code {
        b'9' => return Ok(Stepped::Elsewhere),
        b'4' => return Ok(Stepped::NeedsRow),
        _ => {}
    }
    let (now, block) = rest.split_at_checked(8).ok_or_else(odd)?;
    let now = Micros(eight(now).ok_or_else(odd)?);
    match (code, there) {
        (b'0', None) => {
            let facts = match what {
                What::Insert { facts, .. } => (*facts).clone(),
                What::Replace(write) => write.facts.clone(),
                _ => return Err(odd()),
            };
            let stored = bytes::stored(block).ok_or_else(odd)?;
            Ok(Stepped::Done { record: Arc::new(Record { stored, facts }), now })
        }
        // It was written, and what was written cannot be read.
        (b'0', Some(record)) => {
            let record =
                bytes::unpack(record).map_err(|error| StoreError::unknown(error.kind.clone()).because(error))?;
            Ok(Stepped::Done { record: Arc::new(record), now })
        }
        (b'1', Some(record)) => Ok(Stepped::There { record: Box::new(bytes::unpack(record)?), now }),
        (b'2', None) => Ok(Stepped::Absent { now }),
        _ => Err(odd()),
    }
}

/// What a script says where it did nothing because something is wrong.
fn refused(answer: &Value) -> Option<StoreError> {
    let Value::BulkString(said) = answer else { return None };
    let (code, rest) = said.split_first()?;
    match code {
        b'5' => {
            let said =
                "the user may not ask the server for INFO in scripts: give it the rights of deploy/redis/onceward.acl";
            Some(StoreError::not_applied(Kind::Unavailable).because(Failure::said(said)))
        }
        b'7' => Some(StoreError::not_applied(Kind::Damaged(OTHER_KIND.into()))),
        b'8' => {
            let (wall, written) = rest.split_at_checked(8)?;
            let behind = Micros(eight(written)?).since(Micros(eight(wall)?));
            Some(StoreError::not_applied(Kind::ClockSuspect(format!("it is {behind:?} behind what it said before"))))
        }
        _ => None,
    }
}

/// Forty hexadecimal digits.
fn incarnation_of(history: &str) -> Option<Incarnation> {
    let mut of = Incarnation::default();
    for (byte, at) in of.0.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(history.get(at..at + 2)?, 16).ok()?;
    }
    Some(of)
}
