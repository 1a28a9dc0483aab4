//! A record to what Redis keeps of it, and back.
//!
//! What is kept is the record's own encoding (`docs/record-format.md`) with two flags that this store alone sets: bit 2,
//! its protobuf body is a zstd frame (where that is shorter), and bit 5, the answer's body lies under a key of its own,
//! since it ends before the record. The checksum at the end is that of the encoding without them.

use std::cell::RefCell;

use bytes::Bytes;
use onceward_core::{
    codec::{self, DecodeError, HEADER_BYTES},
    outcome::Outcome,
    record::{Facts, Micros, Record, Stored},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Kind, StoreError};

/// Of the low byte of the flags, at offset 5.
const COMPRESSED: u8 = 1 << 2;
const APART: u8 = 1 << 5;
const FLAGS_LOW: usize = 5;
/// Where the lengths of digests and body lie.
const COUNTS: std::ops::Range<usize> = HEADER_BYTES - 8..HEADER_BYTES;
const CHECKSUM_BYTES: usize = 8;
/// A shorter body is kept as it is: a frame's own bytes would be most of what is saved.
const COMPRESS_FROM: usize = 160;
/// The fastest level that still finds what repeats in JSON and headers.
const LEVEL: i32 = 1;
/// What a body may come to when it is unpacked: a checkpoint and an answer at their limits.
const UNPACKED_BYTES_MAX: usize = 256 << 20;

/// A record's bytes around the store's block, which the step writes.
#[derive(Debug)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    /// The answer's body, where it lies apart, with its checksum before it; and when it ends.
    pub(super) apart: Option<(Vec<u8>, Micros)>,
}

impl Packed {
    /// Before the store's block.
    pub(super) fn head(&self) -> &[u8] {
        self.bytes.get(..codec::STORED.start).unwrap_or_default()
    }

    /// After it.
    pub(super) fn tail(&self) -> &[u8] {
        self.bytes.get(codec::STORED.end..).unwrap_or_default()
    }

    /// All of it with this block.
    pub(super) fn with(&self, stored: &Stored) -> Vec<u8> {
        [self.head(), &codec::stored_bytes(stored), self.tail()].concat()
    }

    /// Bytes that it takes, the body's among them.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.apart.as_ref().map_or(0, |(body, _)| body.len())
    }
}

thread_local! {
    /// Its tables are the larger part of compressing something short.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = RefCell::new(zstd::bulk::Compressor::new(LEVEL).ok());
}

/// Packs what is to be kept.
pub(super) fn pack(facts: &Facts) -> Packed {
    let ends =
        facts.outcome.as_ref().is_some_and(|outcome| outcome.body_until != Micros::ZERO && !outcome.body.is_empty());
    if !ends {
        return pack_whole(facts);
    }
    let mut bytes = Vec::new();
    let mut facts = facts.clone();
    let apart = facts.outcome.as_mut().map(|outcome| {
        let body = std::mem::take(&mut outcome.body);
        let mut apart = Vec::with_capacity(CHECKSUM_BYTES + body.len());
        apart.extend_from_slice(&xxh3_64(&body).to_be_bytes());
        apart.extend_from_slice(&body);
        (apart, outcome.body_until)
    });
    codec::encode_parts(&Stored::default(), &facts, &mut bytes);
    let mut bytes = compressed(bytes);
    if let Some(flags) = bytes.get_mut(FLAGS_LOW) {
        *flags |= APART;
    }
    Packed { bytes, apart }
}

/// Packs it with its answer's body, also where that ends before the record.
pub(super) fn pack_whole(facts: &Facts) -> Packed {
    let mut bytes = Vec::new();
    codec::encode_parts(&Stored::default(), facts, &mut bytes);
    Packed { bytes: compressed(bytes), apart: None }
}

/// The same record with its protobuf body as a zstd frame, where that is shorter.
fn compressed(bytes: Vec<u8>) -> Vec<u8> {
    let Some((from, len)) = body_of(&bytes) else { return bytes };
    if len < COMPRESS_FROM {
        return bytes;
    }
    let Some(body) = bytes.get(from..from + len) else { return bytes };
    let frame = COMPRESSOR.with_borrow_mut(|compressor| compressor.as_mut().and_then(|with| with.compress(body).ok()));
    let Some(frame) = frame.filter(|frame| frame.len() < len) else { return bytes };
    let sum_at = from + len;
    let mut out = Vec::with_capacity(from + frame.len() + CHECKSUM_BYTES);
    out.extend_from_slice(bytes.get(..from).unwrap_or_default());
    out.extend_from_slice(&frame);
    out.extend_from_slice(bytes.get(sum_at..).unwrap_or_default());
    set_body_len(&mut out, frame.len());
    if let Some(flags) = out.get_mut(FLAGS_LOW) {
        *flags |= COMPRESSED;
    }
    out
}

/// Where the protobuf body begins and how long it is said to be.
fn body_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let [high, low, _, _, len @ ..] = *bytes.get(COUNTS)?.first_chunk::<8>()?;
    let fields = usize::from(u16::from_be_bytes([high, low]));
    Some((HEADER_BYTES + fields * 8, usize::try_from(u32::from_be_bytes(len)).ok()?))
}

fn set_body_len(bytes: &mut [u8], len: usize) {
    // It was shorter than one that fitted.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if let Some(slot) = bytes.get_mut(HEADER_BYTES - 4..HEADER_BYTES) {
        slot.copy_from_slice(&len.to_be_bytes());
    }
}

/// Reads what is kept under a record's key, with what is kept of its body under the other.
///
/// # Errors
/// [`Kind::Damaged`], [`Kind::Newer`]: never a guess. A body that is gone before its time is no error: what is left is
/// the fact.
pub(super) fn unpack(value: Vec<u8>, apart: Option<&[u8]>) -> Result<Record, StoreError> {
    let mut value = value;
    let flags = value.get(FLAGS_LOW).copied().unwrap_or_default();
    // The flags of a later version are not ours to read.
    let is_ours = value.starts_with(b"OW\x01");
    if is_ours && flags & COMPRESSED != 0 {
        value = uncompressed(&value).map_err(damaged)?;
    }
    if is_ours && let Some(slot) = value.get_mut(FLAGS_LOW) {
        *slot &= !(COMPRESSED | APART);
    }
    let mut record = codec::decode(&Bytes::from(value)).map_err(|error| {
        let kind = match error {
            DecodeError::Newer(_) | DecodeError::Flags(_) => Kind::Newer(error.to_string()),
            _ => Kind::Damaged(error.to_string()),
        };
        StoreError::not_applied(kind).because(error)
    })?;
    if is_ours && flags & APART != 0 {
        record.facts.outcome = match record.facts.outcome.take() {
            Some(outcome) => Some(with_body(outcome, apart)?),
            None => return Err(damaged("its body lies apart, and it has no answer")),
        };
    }
    Ok(record)
}

/// How many bytes less a record's value is once its answer's body has ended, 0 where that lies apart; `None` where it has no
/// answer.
pub(super) fn body_bytes(value: Vec<u8>) -> Option<usize> {
    let len = value.len();
    let mut facts = unpack(value, None).ok()?.facts;
    facts.outcome = Some(facts.outcome?.bare());
    Some(len.saturating_sub(pack(&facts).len()))
}

/// Whether its answer's body lies under a key of its own.
pub(super) fn is_apart(value: &[u8]) -> bool {
    value.starts_with(b"OW\x01") && value.get(FLAGS_LOW).is_some_and(|flags| flags & APART != 0)
}

fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::not_applied(Kind::Damaged(what.to_string()))
}

fn with_body(outcome: Outcome, apart: Option<&[u8]>) -> Result<Outcome, StoreError> {
    let Some((sum, body)) = apart.and_then(|apart| apart.split_first_chunk::<CHECKSUM_BYTES>()) else {
        return Ok(outcome.bare());
    };
    if u64::from_be_bytes(*sum) != xxh3_64(body) {
        return Err(damaged("its body's checksum does not match"));
    }
    Ok(Outcome { body: Bytes::copy_from_slice(body), ..outcome })
}

fn uncompressed(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    const CUT: &str = "it is shorter than its own lengths say";
    let (from, len) = body_of(value).ok_or(CUT)?;
    let sum_at = from.checked_add(len).ok_or(CUT)?;
    let frame = value.get(from..sum_at).ok_or(CUT)?;
    let size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    let size = size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= UNPACKED_BYTES_MAX);
    let size = size.ok_or("its body is no zstd frame of a size that a record has")?;
    let body = zstd::bulk::decompress(frame, size).map_err(|_| "its body is no zstd frame")?;
    let mut out = Vec::with_capacity(from + body.len() + CHECKSUM_BYTES);
    out.extend_from_slice(value.get(..from).ok_or(CUT)?);
    out.extend_from_slice(&body);
    out.extend_from_slice(value.get(sum_at..).unwrap_or_default());
    set_body_len(&mut out, body.len());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use onceward_core::{
        outcome::Field,
        record::{ClaimId, Fence, Revision, SessionId, State},
        transition,
    };

    use super::*;

    #[test]
    fn what_goes_with_the_body_of_an_answer_is_told() {
        let mut body = vec![0; 5_000];
        getrandom::fill(&mut body).unwrap();
        let gone = |body: &[u8], until| body_bytes(pack(&facts(body, until)).with(&Stored::default()));
        assert!(gone(&body, Micros::ZERO).is_some_and(|gone| (4_990..5_020).contains(&gone)));
        assert_eq!(gone(&body, Micros(1)), Some(0), "it lies apart");
        let open = transition::place(ClaimId([1; 16]), SessionId([2; 16]));
        assert_eq!(body_bytes(pack(&open).with(&Stored::default())), None);
    }

    fn facts(body: &[u8], body_until: Micros) -> Facts {
        let headers = vec![Field { name: "content-type".into(), value: "application/json".into() }];
        let body = Bytes::copy_from_slice(body);
        let outcome = Outcome { status: 201, headers, body, body_until, ..Outcome::default() };
        Facts {
            state: State::Completed,
            route: "create-payment".into(),
            tenant: "acme".into(),
            outcome: Some(outcome),
            ..transition::place(ClaimId([1; 16]), SessionId([2; 16]))
        }
    }

    fn stored() -> Stored {
        Stored { fence: Fence(1 << 60), revision: Revision(7), ..Stored::default() }
    }

    fn json() -> Vec<u8> {
        br#"{"id":"pay_1","amount":100,"currency":"eur","status":"succeeded"},"#.repeat(20)
    }

    #[test]
    fn a_record_comes_back_as_it_was_with_its_body_inside_or_apart_compressed_or_not() {
        let random: Vec<u8> = (0..2000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for body in [&b""[..], b"ok", &json(), &random] {
            for until in [Micros::ZERO, Micros(99)] {
                let facts = facts(body, until);
                let packed = pack(&facts);
                let value = packed.with(&stored());
                let is_apart = until != Micros::ZERO && !body.is_empty();
                assert_eq!(packed.apart.is_some(), is_apart);
                let apart = packed.apart.as_ref().map(|(apart, _)| &**apart);
                assert_eq!(unpack(value.clone(), apart).unwrap(), Record { stored: stored(), facts: facts.clone() });
                assert_eq!([packed.head(), &codec::stored_bytes(&stored()), packed.tail()].concat(), value);
                if is_apart {
                    let bare = unpack(value, None).unwrap().facts.outcome.unwrap();
                    assert!(bare.body_not_kept && bare.status == 201, "a body that is gone leaves the fact");
                }
            }
        }
        let plain = {
            let mut bytes = Vec::new();
            codec::encode_parts(&stored(), &facts(&json(), Micros::ZERO), &mut bytes);
            bytes
        };
        assert!(pack(&facts(&json(), Micros::ZERO)).len() * 3 < plain.len(), "what repeats is compressed");
    }

    #[test]
    fn each_flipped_byte_outside_the_stores_block_is_damage_and_a_later_version_is_told() {
        let packed = pack(&facts(&json(), Micros(99)));
        let value = packed.with(&stored());
        let (apart, _) = packed.apart.as_ref().unwrap();
        let read = |value: &[u8], apart: &[u8]| unpack(value.to_vec(), Some(apart));
        let whole = read(&value, apart).unwrap();
        for at in (0..value.len()).filter(|at| !codec::STORED.contains(at)) {
            let mut value = value.clone();
            value[at] ^= 0x10;
            // A zstd frame has bits that mean nothing: what they leave is the same record.
            assert!(read(&value, apart).is_err() || read(&value, apart).unwrap() == whole, "byte {at}");
        }
        for at in 0..apart.len() {
            let mut apart = apart.clone();
            apart[at] ^= 1;
            assert!(read(&value, &apart).is_err(), "byte {at} of the body");
        }
        let mut later = value.clone();
        later[2] = 2;
        assert!(matches!(read(&later, apart).unwrap_err().kind, Kind::Newer(_)));
        for len in 0..value.len() {
            assert!(read(&value[..len], apart).is_err(), "{len} bytes pass");
        }
    }
}
