//! Records one after the other, in the servers' own order, by SCAN in bounded steps.
//!
//! A page goes on from a cursor of this store's, which is no record's id: which server or partition, SCAN's own cursor
//! there, and how many of its keys were given before. Those in flight or unknown are found by their partitions' open
//! sets alone. As with SCAN, what is there throughout is given at least once.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt as _, stream};
use onceward_core::{
    key::{PARTITIONS, RecordId},
    record::{Record, Seen},
};
use redis::{
    Cmd, Value,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
};

use super::{Shared, key, link::CallError, step::What, upkeep::slots, value};
use crate::{Filter, Kind, Page, StoreError, figures::Change};

/// How many records are read at a time.
const READS_AT_ONCE: usize = 64;
/// How many keys one SCAN looks at.
const SCAN_COUNT: usize = 256;
/// How many SCANs one page takes at most; then the next page goes on. Open sets are short, and each page asks first which
/// of those that are left have anything.
const SCANS_MAX: usize = 16;
const OPEN_SCANS_MAX: usize = 64;
/// Nor does it go on after so many records.
const LOOKED_AT_MAX: usize = SCANS_MAX * SCAN_COUNT;

/// Where a page goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    /// Over open sets, or over all keys.
    open: bool,
    /// The partition, or the server by its place among all.
    place: u16,
    /// SCAN's own.
    at: u64,
    /// How many that SCAN returns for it were given before.
    given: u32,
}

impl Cursor {
    /// As an id that no record has: its last bytes are zero.
    fn as_id(self) -> RecordId {
        let mut id = [0; 32];
        let parts: [&[u8]; 4] =
            [&[1 + u8::from(self.open)], &self.place.to_be_bytes(), &self.at.to_be_bytes(), &self.given.to_be_bytes()];
        for (slot, byte) in id.iter_mut().zip(parts.concat()) {
            *slot = byte;
        }
        RecordId(id)
    }

    fn of(id: RecordId) -> Option<Self> {
        let [kind @ (1 | 2), p, q, a, b, c, d, e, f, g, h, w, x, y, z, rest @ ..] = id.0 else { return None };
        let cursor = Self {
            open: kind == 2,
            place: u16::from_be_bytes([p, q]),
            at: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            given: u32::from_be_bytes([w, x, y, z]),
        };
        (rest == [0; 17]).then_some(cursor)
    }
}

/// One page of what `filter` admits.
pub(super) async fn page(
    shared: &Shared,
    after: Option<RecordId>,
    limit: usize,
    filter: &Filter,
) -> Result<Page, StoreError> {
    let open = matches!(filter.state, Some(Seen::InFlight | Seen::Abandoned | Seen::Unknown));
    let mut cursor = match after.map(|after| Cursor::of(after).filter(|cursor| cursor.open == open)) {
        None => Cursor { open, ..Cursor::default() },
        Some(Some(cursor)) => cursor,
        Some(None) => {
            let said =
                "a list in Redis goes on from where its last page says, with the same filter, and from nowhere else";
            return Err(StoreError::not_applied(Kind::Unavailable).because(said));
        }
    };
    let places = Places::of(shared, open, cursor.place).await?;
    let mut page = Page { now: shared.floor(), ..Page::default() };
    let mut looked_at = 0;
    for _ in 0..if open { OPEN_SCANS_MAX } else { SCANS_MAX } {
        cursor = places.next(cursor);
        if places.is_over(cursor.place) {
            return Ok(page);
        }
        let (next, ids) = places.scan(shared, cursor).await?;
        let ids: Vec<RecordId> = ids.into_iter().skip(usize::try_from(cursor.given).unwrap_or(usize::MAX)).collect();
        let reads = ids.clone().into_iter().map(|id| shared.step(id, What::Get));
        let mut reads = stream::iter(reads).buffered(READS_AT_ONCE);
        let mut taken = 0;
        for id in &ids {
            let Some(read) = reads.next().await else { break };
            let read = read?.into_read()?;
            page.now = page.now.max(read.now);
            taken += 1;
            if let Some(record) = read.record.filter(|record| filter.admits(record, read.now)) {
                page.records.push((*id, record));
                if page.records.len() >= limit {
                    break;
                }
            }
        }
        cursor = if taken < ids.len() {
            Cursor { given: cursor.given + u32::try_from(taken).unwrap_or(u32::MAX), ..cursor }
        } else if next == 0 {
            Cursor { place: cursor.place + 1, at: 0, given: 0, ..cursor }
        } else {
            Cursor { at: next, given: 0, ..cursor }
        };
        looked_at += taken;
        if page.records.len() >= limit || looked_at >= LOOKED_AT_MAX {
            break;
        }
    }
    cursor = places.next(cursor);
    page.next = (!places.is_over(cursor.place)).then(|| cursor.as_id());
    Ok(page)
}

/// What is gone through.
enum Places {
    /// The partitions that have something open, from where the page goes on.
    Open(BTreeSet<u16>),
    /// One server.
    One,
    /// A Cluster's primaries, in a settled order.
    Many(Vec<(String, u16)>),
}

impl Places {
    async fn of(shared: &Shared, open: bool, from: u16) -> Result<Self, StoreError> {
        if open {
            let counts = super::upkeep::count_open(shared, from).await?;
            return Ok(Self::Open(counts.into_iter().map(|(partition, _)| partition).collect()));
        }
        if !shared.side.address().is_cluster() {
            return Ok(Self::One);
        }
        let hosts: BTreeSet<(String, u16)> =
            slots(&shared.side).await?.into_iter().map(|slots| (slots.host, slots.port)).collect();
        Ok(Self::Many(hosts.into_iter().collect()))
    }

    fn is_over(&self, place: u16) -> bool {
        match self {
            Self::Open(_) => place >= PARTITIONS,
            Self::One => place > 0,
            Self::Many(hosts) => usize::from(place) >= hosts.len(),
        }
    }

    /// The same, or the start of the next place that has anything.
    fn next(&self, cursor: Cursor) -> Cursor {
        match self {
            Self::Open(partitions) if !partitions.contains(&cursor.place) => {
                let place = partitions.range(cursor.place..).next().copied().unwrap_or(PARTITIONS);
                Cursor { place, at: 0, given: 0, ..cursor }
            }
            _ => cursor,
        }
    }

    /// Where SCAN goes on there, and what it returned, in its order.
    async fn scan(&self, shared: &Shared, cursor: Cursor) -> Result<(u64, Vec<RecordId>), StoreError> {
        let answer = match self {
            Self::Open(_) => {
                let mut command = redis::cmd("SSCAN");
                command.arg(key::open(cursor.place)).arg(cursor.at).arg("COUNT").arg(SCAN_COUNT);
                shared.side.call(&command).await.map_err(CallError::read)?
            }
            Self::One => shared.side.call(&scan(cursor.at)).await.map_err(CallError::read)?,
            Self::Many(hosts) => {
                let Some((host, port)) = hosts.get(usize::from(cursor.place)) else { return Ok((0, Vec::new())) };
                let at = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                let answer = shared.side.route(&scan(cursor.at), RoutingInfo::SingleNode(at)).await;
                answer.map_err(CallError::read)?.unwrap_or_default()
            }
        };
        read_scan(answer, cursor.open)
            .ok_or_else(|| StoreError::not_applied(Kind::Damaged("the server's answer to SCAN is none".into())))
    }
}

fn scan(at: u64) -> Cmd {
    let mut command = redis::cmd("SCAN");
    command.arg(at).arg("MATCH").arg(key::RECORDS).arg("COUNT").arg(SCAN_COUNT);
    command
}

fn read_scan(answer: Value, open: bool) -> Option<(u64, Vec<RecordId>)> {
    let Value::Array(parts) = answer else { return None };
    let [Value::BulkString(next), Value::Array(found)] = &*parts else { return None };
    let next = std::str::from_utf8(next).ok()?.parse().ok()?;
    let id = |item: &Value| match item {
        Value::BulkString(id) if open => Some(RecordId(id.as_slice().try_into().ok()?)),
        Value::BulkString(key) => key::id_of(key),
        _ => None,
    };
    Some((next, found.iter().filter_map(id).collect()))
}

/// What each tenant takes up, by reading every record.
pub(super) async fn usage(shared: &Shared) -> Result<HashMap<String, Change>, StoreError> {
    let places = Places::of(shared, false, 0).await?;
    let mut counted = HashMap::new();
    let mut cursor = Cursor::default();
    // SCAN may give a key twice.
    let mut seen = std::collections::HashSet::new();
    while !places.is_over(cursor.place) {
        let (next, ids) = places.scan(shared, cursor).await?;
        let new: Vec<RecordId> = ids.into_iter().filter(|id| seen.insert(*id)).collect();
        let reads = new.into_iter().map(|id| async move {
            let command = redis::cmd("GET").arg(key::Keys::of(&id).record()).take();
            shared.side.call(&command).await.map_err(CallError::read)
        });
        let mut reads = stream::iter(reads).buffered(READS_AT_ONCE);
        while let Some(read) = reads.next().await {
            let Value::BulkString(bytes) = read? else { continue };
            let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
            // One that cannot be read is nobody's.
            let Ok(Record { facts, .. }) = value::unpack(bytes, None) else { continue };
            counted.entry(facts.tenant).or_insert_with(Change::default).add(Change { records: 1, bytes: size });
        }
        cursor = match next {
            0 => Cursor { place: cursor.place + 1, at: 0, ..cursor },
            next => Cursor { at: next, ..cursor },
        };
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_from_its_id_and_a_records_id_is_none() {
        for open in [false, true] {
            let cursor = Cursor { open, place: 255, at: u64::MAX - 1, given: 7 };
            assert_eq!(Cursor::of(cursor.as_id()), Some(cursor));
        }
        for id in [[0; 32], [1; 32], std::array::from_fn(|at| u8::try_from(at).unwrap())] {
            assert_eq!(Cursor::of(RecordId(id)), None);
        }
    }

    #[test]
    fn an_answer_of_scan_is_read_and_foreign_keys_in_it_are_left() {
        let id = RecordId([9; 32]);
        let key = Value::BulkString(key::Keys::of(&id).record().to_vec());
        let answer = |found| Value::Array(vec![Value::BulkString(b"17".to_vec()), Value::Array(found)]);
        let foreign = Value::BulkString(b"session:9".to_vec());
        assert_eq!(read_scan(answer(vec![foreign.clone(), key]), false), Some((17, vec![id])));
        assert_eq!(read_scan(answer(vec![foreign, Value::BulkString(vec![9; 32])]), true), Some((17, vec![id])));
        assert_eq!(read_scan(Value::Okay, false), None);
    }
}
