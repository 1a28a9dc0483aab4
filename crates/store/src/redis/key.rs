//! Names of keys. All of one partition share a hash tag, so that a Cluster keeps them in one slot and a step finds
//! them on one server.
//!
//! `idemp:v1:{p017}:ID` a record, its id in base64url · `…:ID:b` its body, where that ends before it · `…:ID:h` a hint of a
//! record that is elsewhere · `…:ID:j` a record in front of a journal, `…:v`, `…:s`, `…:d` the view, the sessions and the dirty ids of its partition · `…:m` the partition's marker · `…:open` the ids of its records that are in flight or unknown · `idemp:v1:meta`, `:rules` what
//! all processes share. `v1` is the format's major version.

use onceward_core::key::{PARTITIONS, RecordId};

/// What every key begins with.
pub(super) const NAMESPACE: &str = "idemp:v1:";
/// What the keys of every version begin with.
pub(super) const OURS: &[u8] = b"idemp:";
/// What processes remember together: a hash.
pub(super) const META: &str = "idemp:v1:meta";
/// Fingerprint rules by policy: a hash.
pub(super) const RULES: &str = "idemp:v1:{rules}";
/// Their policies, the oldest first: a list.
pub(super) const RULES_ORDER: &str = "idemp:v1:{rules}:order";
/// The channel on which processes are told of what was forgotten or erased: the id's bytes.
pub(super) const FORGOTTEN: &str = "idemp:v1:forgotten";
/// Every record's key, for SCAN: sixteen bytes before the id, 43 of it.
pub(super) const RECORDS: &str = "idemp:v1:{p???}:???????????????????????????????????????????";

/// How many slots a Redis Cluster has.
pub(super) const SLOTS: u16 = 16_384;

/// Bytes before what is the key's own: `idemp:v1:{p017}:`.
const PREFIX_BYTES: usize = 16;
/// An id in base64url.
const ID_BYTES: usize = 43;

/// The keys of one record, and of its partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) partition: u16,
    body: [u8; PREFIX_BYTES + ID_BYTES + 2],
    open: [u8; PREFIX_BYTES + 4],
    marker: [u8; PREFIX_BYTES + 1],
}

impl Keys {
    pub(super) fn of(id: &RecordId) -> Self {
        let partition = id.partition();
        let (mut body, mut open, mut marker) =
            ([0; PREFIX_BYTES + ID_BYTES + 2], [0; PREFIX_BYTES + 4], [0; PREFIX_BYTES + 1]);
        write(&mut body, format_args!("{NAMESPACE}{{p{partition:03}}}:{id}:b"));
        write(&mut open, format_args!("{NAMESPACE}{{p{partition:03}}}:open"));
        write(&mut marker, format_args!("{NAMESPACE}{{p{partition:03}}}:m"));
        Self { partition, body, open, marker }
    }

    pub(super) fn record(&self) -> &[u8] {
        self.body.get(..PREFIX_BYTES + ID_BYTES).unwrap_or_default()
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(super) fn hint(&self) -> [u8; PREFIX_BYTES + ID_BYTES + 2] {
        let mut hint = self.body;
        if let Some(last) = hint.last_mut() {
            *last = b'h';
        }
        hint
    }

    /// Also the name of the channel on which writes to the record are told.
    pub(super) fn channel(&self) -> &[u8] {
        self.record()
    }

    pub(super) fn marker(&self) -> &[u8] {
        &self.marker
    }

    pub(super) fn open(&self) -> &[u8] {
        &self.open
    }
}

/// Fills `into`, which is as long as what is written.
fn write(mut into: &mut [u8], text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    // The lengths are those of the text: three digits for a partition, 43 characters for an id.
    let _ = into.write_fmt(text);
}

/// The key of a partition's marker.
pub(super) fn marker(partition: u16) -> String {
    format!("{NAMESPACE}{{p{partition:03}}}:m")
}

/// Where a test puts what moves the clock.
#[cfg(any(test, feature = "conformance"))]
pub(super) fn moved(partition: u16) -> String {
    format!("{NAMESPACE}{{p{partition:03}}}:moved")
}

/// The key of the ids that are in flight or unknown.
pub(super) fn open(partition: u16) -> String {
    format!("{NAMESPACE}{{p{partition:03}}}:open")
}

/// What is kept of a partition in front of a journal: `v` the view, `s` the sessions, `d` the ids that may not be in it.
pub(super) fn journaled(partition: u16, of: &str) -> String {
    format!("{NAMESPACE}{{p{partition:03}}}:{of}")
}

/// A record in front of a journal.
pub(super) fn journaled_record(partition: u16, id: &RecordId) -> String {
    format!("{NAMESPACE}{{p{partition:03}}}:{id}:j")
}

/// The slot of a Redis Cluster that a partition lies in (Redis Cluster specification, "Key distribution model").
pub(super) fn slot(partition: u16) -> u16 {
    crc16(format!("p{partition:03}").as_bytes()) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let shifted = |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        (0..8).fold(crc ^ (u16::from(*byte) << 8), shifted)
    })
}

/// The record whose key this is.
pub(super) fn id_of(key: &[u8]) -> Option<RecordId> {
    let id = key.strip_prefix(NAMESPACE.as_bytes())?.get(PREFIX_BYTES - NAMESPACE.len()..)?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// Every partition.
pub(super) fn partitions() -> impl Iterator<Item = u16> {
    0..PARTITIONS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_by_its_key_and_all_keys_of_a_partition_share_a_slot() {
        let id = RecordId(std::array::from_fn(|at| u8::try_from(at * 7).unwrap()));
        let keys = Keys::of(&id);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(text(keys.record()), format!("idemp:v1:{{p007}}:{id}"));
        assert_eq!(text(keys.body()), format!("idemp:v1:{{p007}}:{id}:b"));
        assert_eq!(text(&keys.hint()), format!("idemp:v1:{{p007}}:{id}:h"));
        assert_eq!(text(keys.open()), "idemp:v1:{p007}:open");
        assert_eq!(text(keys.marker()), marker(7));
        assert_eq!((marker(7), open(7)), ("idemp:v1:{p007}:m".to_owned(), text(keys.open())));
        assert_eq!(id_of(keys.record()), Some(id));
        for other in [keys.body(), &keys.hint(), keys.open(), marker(7).as_bytes(), b"idemp:v1:meta", b"", b"foreign"] {
            assert_eq!(id_of(other), None, "{}", text(other));
        }
        let glob = RECORDS.len();
        assert_eq!(glob, keys.record().len(), "SCAN's pattern has the length of a record's key");
    }

    #[test]
    fn a_slot_is_the_one_that_the_specification_gives() {
        assert_eq!(crc16(b"123456789"), 0x31c3, "the specification's own check value");
        let slots: std::collections::HashSet<u16> = partitions().map(slot).collect();
        assert_eq!(slots.len(), 256, "no two partitions share a slot");
    }
}
