//! Steps as scripts: one round trip each, that looks and writes as one (EVALSHA).

use onceward_core::record::{Fence, Micros, Revision};
use redis::{Cmd, ToRedisArgs, Value};

use super::{
    incarnation::{Found, Mark, Marked},
    key,
    link::{CallError, Link},
    step::{Step, Stepped, What, Written, expected, length},
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
    /// How writes are told: `SPUBLISH`, `PUBLISH`, or empty.
    tell: &'static str,
}

/// Where a test puts what moves the clock.
const MOVED: &str = "--MOVED";
/// Adds what a test has put beside the marker to the server's clock.
#[cfg(any(test, feature = "conformance"))]
const MOVING: &str = "do local moved = redis.call('GET', (string.gsub(KEYS[1], ':m$', ':moved')))\n\
    if moved then local hi, lo = struct.unpack('>I4I4', moved); nlo = nlo + lo; nhi = nhi + hi\n\
    if nlo >= 4294967296 then nlo = nlo - 4294967296; nhi = nhi + 1 end\n\
    if nhi >= 4294967296 then nhi = nhi - 4294967296 end end end";

impl Scripts {
    pub(super) fn new(tell: &'static str, clock_moves: bool) -> Self {
        let step = |own: &str| {
            let text = format!("{}{own}", include_str!("scripts/begin.lua"));
            Script::new(&moving(&text, clock_moves))
        };
        Self {
            insert: step(include_str!("scripts/insert.lua")),
            replace: step(include_str!("scripts/replace.lua")),
            extend: step(include_str!("scripts/extend.lua")),
            remove: step(include_str!("scripts/remove.lua")),
            get: step(include_str!("scripts/get.lua")),
            mark: Script::new(&moving(include_str!("scripts/mark.lua"), clock_moves)),
            tell,
        }
    }

    /// Takes a step.
    ///
    /// # Errors
    /// Of a write that may have been sent: unknown, unless the server says that it did nothing.
    pub(super) async fn step(&self, link: &Link, step: &Step<'_>) -> Result<Stepped, StoreError> {
        let marker = key::marker(step.keys.partition);
        let keys = [marker.as_bytes(), step.keys.record(), step.keys.open(), step.keys.body()];
        let floor = step.floor.0.to_be_bytes();
        let id = &step.id.0[..];
        let told: &[u8] = if self.tell.is_empty() { b"" } else { step.keys.channel() };
        let mut bytes = 0;
        let answer = match &step.what {
            What::Insert { facts, lease } => {
                let packed = value::pack(facts);
                bytes = packed.len();
                let lease = length(*lease);
                let arguments = [&step.epoch[..], &floor, packed.head(), packed.tail(), &lease, id];
                self.insert.run(link, &keys, &arguments).await
            }
            What::Replace(write) => {
                let written = Written::of(write);
                bytes = written.packed.len();
                let after = written.remove_after.to_string();
                let (body, until) = match &written.packed.apart {
                    Some((body, until)) => (&**body, until.0.to_be_bytes()),
                    None => (&b""[..], [0; 8]),
                };
                let arguments = [
                    &step.epoch[..],
                    &floor,
                    written.packed.head(),
                    written.packed.tail(),
                    &written.expect,
                    written.fence,
                    &written.lease,
                    &written.keep,
                    after.as_bytes(),
                    id,
                    self.tell.as_bytes(),
                    told,
                    body,
                    &until,
                ];
                self.replace.run(link, &keys, &arguments).await
            }
            What::Extend { holder, lease } => {
                let arguments = [&step.epoch[..], &floor, &holder.0.to_be_bytes(), &length(*lease)];
                self.extend.run(link, &keys, &arguments).await
            }
            What::Remove(expect) => {
                let expect = expected(*expect);
                let arguments = [&step.epoch[..], &floor, &expect, id, self.tell.as_bytes(), told];
                self.remove.run(link, &keys, &arguments).await
            }
            What::Get => self.get.run(link, &keys, &[&step.epoch[..], &floor]).await,
        };
        match answer {
            Ok(answer) => read(answer, &step.what, bytes),
            Err(failed) if step.what.is_read() => Err(failed.read()),
            Err(failed) => Err(failed.step()),
        }
    }

    /// Gives a partition its marker, or raises what is written down in it.
    pub(super) async fn mark(&self, link: &Link, partition: u16, mark: &Mark<'_>) -> Result<Marked, StoreError> {
        let (key, floor) = (key::marker(partition), mark.floor.0.to_be_bytes());
        let answer = self.mark.run(link, &[key.as_bytes()], &[&mark.epoch[..], mark.tags, &floor]).await;
        let answer = items(answer.map_err(CallError::step)?)?;
        match &*answer {
            [Value::BulkString(marker), Value::BulkString(now), Value::Int(new)] => {
                let epoch = marker.first_chunk().copied().ok_or_else(odd)?;
                let written = marker.get(16..).and_then(eight).ok_or_else(odd)?;
                let wall = eight(now).ok_or_else(odd)?;
                let found = match new {
                    0 => Found::Known,
                    1 => Found::Missing,
                    _ => Found::OfAnother,
                };
                Ok(Marked { epoch, written: Micros(written), wall: Micros(wall), found })
            }
            _ => Err(odd()),
        }
    }
}

fn moving(text: &str, clock_moves: bool) -> String {
    #[cfg(any(test, feature = "conformance"))]
    if clock_moves {
        return text.replace(MOVED, MOVING);
    }
    debug_assert!(!clock_moves, "only tests move the clock");
    text.replace(MOVED, "")
}

/// A script that is sent by its hash, and whole where the server does not have it.
#[derive(Debug)]
struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: &str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { text: text.to_owned(), hash }
    }

    async fn run(&self, link: &Link, keys: &[&[u8]], arguments: &[&[u8]]) -> Result<Value, CallError> {
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

fn odd() -> StoreError {
    StoreError::unknown(Kind::Damaged("the server's answer is none that a script gives".into()))
}

fn eight(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Reads what a step's script returns; `bytes` is what was written.
fn read(value: Value, what: &What<'_>, bytes: usize) -> Result<Stepped, StoreError> {
    let mut items = items(value)?.into_iter();
    let Some(Value::Int(code)) = items.next() else { return Err(odd()) };
    if code == 9 {
        return Ok(Stepped::Unmarked);
    }
    let mut text = || match items.next() {
        Some(Value::BulkString(bytes)) => Some(bytes),
        _ => None,
    };
    let now = text().as_deref().and_then(eight).map(Micros).ok_or_else(odd)?;
    Ok(match code {
        0 => {
            let written = text().ok_or_else(odd)?;
            let (fence, revision) = written.split_at_checked(8).ok_or_else(odd)?;
            let (fence, revision) = eight(fence).zip(eight(revision)).ok_or_else(odd)?;
            let was = text();
            let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
            let (records, was_bytes, removed) = match (what, was) {
                (What::Insert { .. }, _) => (1, 0, None),
                (What::Remove(_), Some(was)) => {
                    let bytes = was.len();
                    (-1, signed(bytes), value::unpack(was, None).ok().map(|record| record.facts.tenant))
                }
                (_, Some(was)) => {
                    (0, std::str::from_utf8(&was).ok().and_then(|len| len.parse().ok()).unwrap_or(0), None)
                }
                (_, None) => (0, signed(bytes), None),
            };
            let change = Change { records, bytes: signed(bytes).saturating_sub(was_bytes) };
            Stepped::Done { fence: Fence(fence), revision: Revision(revision), now, change, removed }
        }
        1 => {
            let (value, apart) = (text().ok_or_else(odd)?, text());
            let record = value::unpack(value, apart.as_deref())?;
            Stepped::There { record: Box::new(record), now }
        }
        2 => Stepped::Absent { now },
        8 => Stepped::Behind { wall: now, written: text().as_deref().and_then(eight).map(Micros).ok_or_else(odd)? },
        _ => return Err(odd()),
    })
}
