//! Steps as scripts: one round trip each, that looks and writes as one (EVALSHA).

use std::{sync::LazyLock, time::Duration};

use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease},
    mutant::{self, Mutant},
    record::{Fence, Micros, Revision},
};
use redis::{Cmd, ToRedisArgs, Value};

use super::{
    Evictions,
    error::OTHER_KIND,
    incarnation::{Found, Mark, Marked},
    key,
    link::{CallError, Link},
    step::{Step, Stepped, What, length, remove_after},
    value,
};
use crate::{Kind, StoreError, figures::Change};

/// The scripts of every step.
#[derive(Debug)]
pub(super) struct Scripts {
    insert: Script,
    replace: Script,
    extend: Script,
    remove: Script,
    get: Script,
    mark: Script,
    evictions: Evictions,
}

/// Where a grant looks at evictions.
const EVICTED: &str = "--EVICTED";
/// Refuses where the server has evicted another number of keys than this process knows of, in the last twenty bytes of the
/// first argument.
const NOTICING: &str = "local evicted = string.match(call('INFO', 'stats'), 'evicted_keys:(%d+)')\n\
    if not evicted or string.rep('0', 20 - #evicted) .. evicted ~= sub(said, -20) then return '6' end";
/// Where an insert asks whether there is a record, and a write whether it is the one that is meant.
const NO_RECORD: &str = "if not there or ended then";
const IS_MEANT: &str = "if readable and not ended and (";
/// Where a test puts what moves the clock.
const MOVED: &str = "--MOVED";
/// Adds what a test has put beside the marker to the server's clock.
#[cfg(any(test, feature = "conformance"))]
const MOVING: &str = "do local moved = redis.call('GET', (string.gsub(KEYS[1], ':m$', ':moved')))\n\
    if moved then local hi, lo = struct.unpack('>I4I4', moved); nlo = nlo + lo; nhi = nhi + hi\n\
    if nlo >= 4294967296 then nlo = nlo - 4294967296; nhi = nhi + 1 end\n\
    if nhi >= 4294967296 then nhi = nhi - 4294967296 end end end";

impl Scripts {
    /// With `tell` for PUBLISH: in a Cluster another command tells the nodes of the key's shard alone.
    pub(super) fn new(tell: &str, evictions: Evictions, clock_moves: bool) -> Self {
        let noticing = if evictions == Evictions::Inline { NOTICING } else { "" };
        let step = |own: &str| {
            let own = &mutated(own.replace(EVICTED, noticing));
            let text = [include_str!("scripts/begin.lua"), own, include_str!("scripts/found.lua")].concat();
            Script::new(&moving(&text.replace("'PUBLISH'", &format!("'{tell}'")), clock_moves))
        };
        Self {
            insert: step(include_str!("scripts/insert.lua")),
            replace: step(include_str!("scripts/replace.lua")),
            extend: step(include_str!("scripts/extend.lua")),
            remove: step(include_str!("scripts/remove.lua")),
            get: step(""),
            mark: Script::new(&moving(include_str!("scripts/mark.lua"), clock_moves)),
            evictions,
        }
    }

    /// Takes a step.
    ///
    /// # Errors
    /// Of a write that may have been sent: unknown, unless the server says that it did nothing.
    pub(super) async fn step(&self, link: &Link, step: &Step<'_>) -> Result<Stepped, StoreError> {
        let keys = [step.keys.marker(), step.keys.record()];
        // What is short goes in one argument: each costs the server as much as a small command.
        let mut said = [&step.epoch[..], &step.floor.0.to_be_bytes()].concat();
        let mut bytes = 0;
        let answer = match &step.what {
            What::Insert { facts, lease } => {
                let packed = value::pack(facts);
                bytes = packed.len();
                said.extend_from_slice(&length(*lease));
                said.extend_from_slice(&step.id.0);
                said.extend_from_slice(packed.head());
                self.say_evicted(&mut said, step);
                self.insert.run(link, &keys, &[&said, packed.tail()]).await
            }
            What::Replace(write) => {
                let packed = value::pack(&write.facts);
                bytes = packed.len();
                said.extend_from_slice(&expected(write.expect));
                said.push(if write.fence == FenceRule::Next { b'n' } else { b'k' });
                said.extend_from_slice(&match write.lease {
                    Lease::Keep => lengthened(b'k', Duration::ZERO),
                    Lease::Over => lengthened(b'o', Duration::ZERO),
                    Lease::For(span) => lengthened(b'f', span),
                });
                let (keep, after) = match write.keep {
                    Keep::Open => (lengthened(b'o', Duration::ZERO), 0),
                    Keep::For(span) => (lengthened(b'f', span), remove_after(span)),
                };
                said.extend_from_slice(&keep);
                said.extend_from_slice(&step.id.0);
                said.extend_from_slice(packed.head());
                self.say_evicted(&mut said, step);
                let after = after.to_string();
                let until = packed.apart.as_ref().map(|(_, until)| until.0.to_be_bytes()).unwrap_or_default();
                match &packed.apart {
                    Some((body, _)) => {
                        let arguments = [&said[..], packed.tail(), after.as_bytes(), body, &until];
                        self.replace.run(link, &keys, &arguments).await
                    }
                    None => self.replace.run(link, &keys, &[&said, packed.tail(), after.as_bytes()]).await,
                }
            }
            What::Extend { holder, lease } => {
                said.extend_from_slice(&holder.0.to_be_bytes());
                said.extend_from_slice(&length(*lease));
                self.extend.run(link, &keys, &[&said]).await
            }
            What::Remove(expect) => {
                said.extend_from_slice(&expected(*expect));
                said.extend_from_slice(&step.id.0);
                self.remove.run(link, &keys, &[&said]).await
            }
            What::Get => self.get.run(link, &keys, &[&said]).await,
        };
        match answer {
            Ok(answer) => read(link, step, answer, bytes).await,
            Err(failed) if step.what.is_read() => Err(failed.read()),
            Err(failed) => Err(failed.step()),
        }
    }

    fn say_evicted(&self, said: &mut Vec<u8>, step: &Step<'_>) {
        if self.evictions == Evictions::Inline {
            said.extend_from_slice(format!("{:020}", step.evicted).as_bytes());
        }
    }

    /// Gives a partition its marker, or raises what is written down in it.
    pub(super) async fn mark(&self, link: &Link, partition: u16, mark: &Mark<'_>) -> Result<Marked, StoreError> {
        let (key, floor) = (key::marker(partition), mark.floor.0.to_be_bytes());
        let answer = self.mark.run(link, &[key.as_bytes()], &[&mark.epoch[..], mark.tags, &floor]).await;
        let answer = items(answer.map_err(CallError::step)?)?;
        match &*answer {
            [Value::BulkString(marker), Value::BulkString(now), Value::Int(new), Value::BulkString(before)] => {
                let epoch = marker.first_chunk().copied().ok_or_else(odd)?;
                let written = marker.get(16..).and_then(eight).ok_or_else(odd)?;
                let wall = eight(now).ok_or_else(odd)?;
                let found = match new {
                    0 => Found::Known,
                    1 => Found::Missing,
                    _ => Found::OfAnother,
                };
                let before = Micros(eight(before).unwrap_or_default());
                Ok(Marked { epoch, before, written: Micros(written), wall: Micros(wall), found })
            }
            _ => Err(odd()),
        }
    }
}

/// A step's own file, without the safety that is taken out.
fn mutated(own: String) -> String {
    let without = |kept: &str, instead: &str| own.replace(kept, instead);
    if mutant::is(Mutant::InsertOverClaim) {
        return without(NO_RECORD, "if not there or ended or string.byte(there, 4) == 1 then");
    }
    if mutant::is(Mutant::LeaseDeletes) {
        // What was compared of its end before is used no more.
        return without(
            NO_RECORD,
            "local lhi, llo = 0, 0\n\
             if readable then lhi, llo = unpack('>I4I4', there, 29) end\n\
             local is_over = readable and string.byte(there, 4) == 1 and (lhi < nhi or (lhi == nhi and llo <= nlo))\n\
             if not there or ended or is_over then",
        );
    }
    if mutant::is(Mutant::FenceNotCompared) {
        return without(IS_MEANT, "if readable and not ended and (true or");
    }
    own
}

fn moving(text: &str, clock_moves: bool) -> String {
    #[cfg(any(test, feature = "conformance"))]
    if clock_moves {
        return text.replace(MOVED, MOVING);
    }
    debug_assert!(!clock_moves, "only tests move the clock");
    text.replace(MOVED, "")
}

/// Keeps a hint, or ends it.
pub(super) static HINT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/hint.lua")));

/// A script that is sent by its hash, and whole where the server does not have it.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    hash: String,
}

impl Script {
    pub(super) fn new(text: &str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { text: text.to_owned(), hash }
    }

    pub(super) async fn run(&self, link: &Link, keys: &[&[u8]], arguments: &[&[u8]]) -> Result<Value, CallError> {
        let answer = link.call(&command("EVALSHA", &self.hash, keys, arguments)).await;
        match answer {
            // Whoever does not know a script has not begun it.
            Err(failed) if failed.is_missing_script() => link.call(&command("EVAL", &self.text, keys, arguments)).await,
            answer => answer,
        }
    }
}

fn command(name: &str, script: &str, keys: &[&[u8]], arguments: &[&[u8]]) -> Cmd {
    let bytes = keys.iter().chain(arguments).map(|part| part.len()).sum::<usize>();
    let mut command = Cmd::with_capacity(3 + keys.len() + arguments.len(), name.len() + script.len() + bytes + 4);
    command.arg(name).arg(script).arg(keys.len());
    for part in keys.iter().chain(arguments) {
        part.write_redis_args(&mut command);
    }
    command
}

fn items(value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(odd()),
    }
}

pub(super) fn odd() -> StoreError {
    StoreError::unknown(Kind::Damaged("the server's answer is none that a script gives".into()))
}

pub(super) fn eight(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Reads what a step's script returns; `bytes` is what was written.
async fn read(link: &Link, step: &Step<'_>, answer: Value, bytes: usize) -> Result<Stepped, StoreError> {
    let (said, there, apart) = match answer {
        Value::BulkString(said) => (said, None, None),
        Value::Array(items) => {
            let mut items = items.into_iter().map(|item| match item {
                Value::BulkString(bytes) => Some(bytes),
                _ => None,
            });
            (items.next().flatten().ok_or_else(odd)?, items.next().flatten(), items.next().flatten())
        }
        _ => return Err(odd()),
    };
    let (code, rest) = said.split_first().ok_or_else(odd)?;
    match code {
        b'9' => return Ok(Stepped::Unmarked),
        b'6' => return Ok(Stepped::Evicted),
        _ => {}
    }
    let (now, rest) = rest.split_at_checked(8).ok_or_else(odd)?;
    let now = Micros(eight(now).ok_or_else(odd)?);
    match (code, there) {
        (b'0', removed) => {
            let (fence, rest) = rest.split_at_checked(8).ok_or_else(odd)?;
            let (revision, was) = rest.split_at_checked(8).ok_or_else(odd)?;
            let (fence, revision) = eight(fence).zip(eight(revision)).ok_or_else(odd)?;
            let was = was.try_into().map(u32::from_be_bytes).map(i64::from);
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            let (records, less, removed) = match (&step.what, removed) {
                (What::Insert { .. }, _) => (1, 0, None),
                (What::Remove(_), Some(was)) => {
                    let bytes = i64::try_from(was.len()).unwrap_or(i64::MAX);
                    (-1, bytes, value::unpack(was, None).ok().map(|record| record.facts.tenant))
                }
                _ => (0, was.unwrap_or(bytes), None),
            };
            let change = Change { records, bytes: bytes.saturating_sub(less) };
            Ok(Stepped::Done { fence: Fence(fence), revision: Revision(revision), now, change, removed })
        }
        (b'1', Some(value)) => {
            let apart = match apart {
                // While its slot moves, a body may lie on another server than its record: that is asked for by
                // a command that follows it.
                None if value::is_apart(&value) => body(link, step).await?,
                apart => apart,
            };
            let record = value::unpack(value, apart.as_deref())?;
            Ok(Stepped::There { record: Box::new(record), now })
        }
        (b'2', None) => Ok(Stepped::Absent { now }),
        (b'7', None) => Err(StoreError::not_applied(Kind::Damaged(OTHER_KIND.into()))),
        (b'8', None) => Ok(Stepped::Behind { wall: now, written: Micros(eight(rest).ok_or_else(odd)?) }),
        _ => Err(odd()),
    }
}

/// What is kept of a record's body under its own key.
async fn body(link: &Link, step: &Step<'_>) -> Result<Option<Vec<u8>>, StoreError> {
    let get = redis::cmd("GET").arg(step.keys.body()).take();
    Ok(match link.call(&get).await.map_err(CallError::read)? {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    })
}

/// Which record, in seventeen bytes.
pub(super) fn expected(expect: Expect) -> [u8; 17] {
    let (kind, fence, revision) = match expect {
        Expect::Holder(fence) => (b'h', fence, Revision(0)),
        Expect::Seen(fence, revision) => (b's', fence, revision),
    };
    let mut bytes = [kind; 17];
    for (slot, byte) in bytes.iter_mut().skip(1).zip(fence.0.to_be_bytes().into_iter().chain(revision.0.to_be_bytes()))
    {
        *slot = byte;
    }
    bytes
}

/// A letter and a length of time.
pub(super) fn lengthened(letter: u8, span: Duration) -> [u8; 9] {
    let mut bytes = [letter; 9];
    for (slot, byte) in bytes.iter_mut().skip(1).zip(length(span)) {
        *slot = byte;
    }
    bytes
}
