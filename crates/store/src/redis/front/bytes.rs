//! A record as it lies in front of a journal: eight bytes for scripts, and then as in `value`, its answer's body within.
//!
//! `J`, the version, the state; bit 0 that its claim counts as sent, bit 1 that a script released it, whatever the bytes
//! behind say, which scripts cannot write anew, and bit 2 that it was released, by whomever; then the number of its last recovery point (4 bytes).

use onceward_core::{
    codec,
    record::{Facts, Fence, Micros, Phase, Record, Revision, State, Stored},
};

use super::value;
use crate::{
    Kind, StoreError,
    journaled::{is_released, released},
};

const VERSION: u8 = 1;
const IS_SENT: u8 = 1;
const IS_RELEASED_HERE: u8 = 1 << 1;
const IS_RELEASED: u8 = 1 << 2;

/// What goes before the record's own bytes.
pub(super) fn prefix(facts: &Facts) -> [u8; 8] {
    let [a, b, c, d] = step(facts).to_be_bytes();
    let flags = if is_released(facts) { IS_RELEASED } else { 0 };
    [b'J', VERSION, facts.state as u8, flags, a, b, c, d]
}

fn step(facts: &Facts) -> u32 {
    facts.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq)
}

/// A row of the journal: a claim counts as sent, whatever the row says (2.7).
pub(super) fn row(record: &Record) -> Vec<u8> {
    let sent = (record.facts.state == State::InFlight && record.facts.phase == Phase::Claimed)
        .then(|| Facts { phase: Phase::Dispatched, ..record.facts.clone() });
    let facts = sent.as_ref().unwrap_or(&record.facts);
    [&prefix(facts)[..], &value::pack_whole(facts).with(&record.stored)].concat()
}

/// # Errors
/// [`Kind::Damaged`], [`Kind::Newer`]: never a guess.
pub(super) fn unpack(mut bytes: Vec<u8>) -> Result<Record, StoreError> {
    let damaged = |what: &str| StoreError::not_applied(Kind::Damaged(what.to_owned()));
    let Some(&[b'J', version, state, flags, ref seq @ ..]) = bytes.first_chunk::<8>() else {
        return Err(damaged("not a record of a journal's front"));
    };
    let seq = u32::from_be_bytes(*seq);
    if version > VERSION || flags & !(IS_SENT | IS_RELEASED_HERE | IS_RELEASED) != 0 {
        return Err(StoreError::not_applied(Kind::Newer(format!("it has version {version} and flags {flags:#04x}"))));
    }
    bytes.drain(..8);
    let mut record = value::unpack(bytes, None)?;
    if flags & IS_RELEASED_HERE != 0 {
        // A release ends the lease, and writes when it was as everything does.
        record.facts = released(record.facts, record.stored.written_at);
    }
    if flags & IS_SENT != 0 {
        record.facts.phase = Phase::Dispatched;
    }
    let was_released = flags & IS_RELEASED != 0;
    if record.facts.state as u8 != state || step(&record.facts) != seq || is_released(&record.facts) != was_released {
        return Err(damaged("it is not what the bytes before it say"));
    }
    Ok(record)
}

/// The store's block.
pub(super) fn stored(block: &[u8]) -> Option<Stored> {
    let (fields, rest) = block.as_chunks::<8>();
    let [fence, revision, lease_until, keep_until, written_at] = *fields.first_chunk()?;
    let exact = fields.len() == 5 && rest.is_empty() && codec::STORED.len() == block.len();
    let micros = |bytes| Micros(u64::from_be_bytes(bytes));
    exact.then(|| Stored {
        fence: Fence(u64::from_be_bytes(fence)),
        revision: Revision(u64::from_be_bytes(revision)),
        lease_until: micros(lease_until),
        keep_until: micros(keep_until),
        written_at: micros(written_at),
    })
}
