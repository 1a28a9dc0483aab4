//! A record to bytes and back. `docs/record-format.md` has it byte by byte.
//!
//! A fixed big-endian header that scripts can read by offset, the field digests, a protobuf body
//! (`proto/onceward/v1/record.proto`), and a checksum over everything but the store's block, which
//! the store alone writes.

use alloc::{string::String, vec::Vec};

use prost::{Message, bytes::Bytes};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    outcome::{Checkpoint, Field, Outcome},
    record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
    wire,
};

/// The version that this build writes.
pub const VERSION: u8 = 1;
/// The oldest that this build reads.
pub const OLDEST: u8 = 1;
/// Bytes before the field digests.
pub const HEADER_BYTES: usize = 160;
/// Where the store's block lies: fence, revision, lease, keep-until, written-at, eight bytes each.
pub const STORED: core::ops::Range<usize> = 12..52;
/// A record over this size carries no field digests.
pub const FIELDS_RECORD_BYTES_MAX: usize = 512;

const MAGIC: [u8; 2] = *b"OW";
const CHECKSUM_BYTES: usize = 8;

const FLAG_DISPATCHED: u16 = 1;
const FLAG_AMBIGUOUS: u16 = 1 << 1;
const FLAG_BODY_NOT_KEPT: u16 = 1 << 4;
const FLAG_PROOF: u16 = 1 << 6;
const FLAG_BODY_ENDS: u16 = 1 << 7;
const FLAGS_KNOWN: u16 = FLAG_DISPATCHED | FLAG_AMBIGUOUS | FLAG_BODY_NOT_KEPT | FLAG_PROOF | FLAG_BODY_ENDS;

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Shorter than its own lengths say.
    #[error("record is cut: {have} bytes, its header says {need}")]
    Cut {
        /// Bytes there are.
        have: usize,
        /// Bytes there must be.
        need: usize,
    },
    /// Does not begin with `OW`.
    #[error("not a record: it does not begin with `OW`")]
    Foreign,
    /// Written by a later version: refused, never misread.
    #[error("record has format version {0}; this build reads up to version {VERSION}. Run a newer onceward")]
    Newer(u8),
    /// Uses a flag that this version does not know.
    #[error("record has flags {0:#06x} that this build does not know. Run a newer onceward")]
    Flags(u16),
    /// Its bytes changed after they were written.
    #[error("record is damaged: its checksum does not match")]
    Damaged,
    /// The checksum is right and the content is not: a defect of its writer.
    #[error("record cannot be read: {0}")]
    Content(&'static str),
}

/// Appends the record's bytes to `out`.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    encode_parts(&record.stored, &record.facts, out);
}

/// As [`encode`], of a record that is not in one piece.
pub fn encode_parts(stored: &Stored, facts: &Facts, out: &mut Vec<u8>) {
    let start = out.len();
    let body = body_of(facts);
    let body_len = body.encoded_len();
    let keeps_fields = HEADER_BYTES + facts.fields.len() * 8 + body_len + CHECKSUM_BYTES <= FIELDS_RECORD_BYTES_MAX;
    let fields: &[[u8; 8]] = if keeps_fields { &facts.fields } else { &[] };
    out.reserve(HEADER_BYTES + fields.len() * 8 + body_len + CHECKSUM_BYTES);

    let mut flags = 0;
    if facts.phase == Phase::Dispatched {
        flags |= FLAG_DISPATCHED;
    }
    if facts.ambiguous {
        flags |= FLAG_AMBIGUOUS;
    }
    if facts.outcome.as_ref().is_some_and(|outcome| outcome.body_not_kept) {
        flags |= FLAG_BODY_NOT_KEPT;
    }
    if facts.principal_proof.is_some() {
        flags |= FLAG_PROOF;
    }
    if facts.outcome.as_ref().is_some_and(|outcome| outcome.body_until != Micros::ZERO) {
        flags |= FLAG_BODY_ENDS;
    }
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, facts.state as u8]);
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&facts.fingerprint_policy.to_be_bytes());
    out.extend_from_slice(&stored_bytes(stored));
    out.extend_from_slice(&facts.attempt.to_be_bytes());
    out.extend_from_slice(&facts.claim_id.0);
    out.extend_from_slice(&facts.session.0);
    out.extend_from_slice(&facts.principal_proof.unwrap_or_default());
    out.extend_from_slice(&facts.fingerprint);
    out.extend_from_slice(&[0; 16]); // key id and nonce, reserved for encryption
    out.extend_from_slice(&u16::try_from(fields.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&u32::try_from(body_len).unwrap_or(u32::MAX).to_be_bytes());
    debug_assert_eq!(out.len() - start, HEADER_BYTES);
    for field in fields {
        out.extend_from_slice(field);
    }
    body.encode_raw(out);
    let sum = checksum(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&sum.to_be_bytes());
}

/// Whose record these bytes are, without reading the rest of them; `None` where they are no record that this build
/// wrote, and for one without a tenant.
#[must_use]
pub fn tenant_of(record: &[u8]) -> Option<&str> {
    // Field number and wire type, as `encode_raw` writes them: in order, and empty ones not at all.
    const ROUTE: u8 = 1 << 3 | 2;
    const TENANT: u8 = 2 << 3 | 2;
    let [high, low] = record.get(HEADER_BYTES - 8..HEADER_BYTES - 6)?.try_into().ok()?;
    let fields = usize::from(u16::from_be_bytes([high, low]));
    let mut body = record.get(HEADER_BYTES + fields * 8..)?;
    loop {
        let (field, rest) = body.split_first()?;
        body = rest;
        let len = usize::try_from(prost::encoding::decode_varint(&mut body).ok()?).ok()?;
        let (value, rest) = body.split_at_checked(len)?;
        match *field {
            TENANT => return core::str::from_utf8(value).ok(),
            ROUTE => body = rest,
            _ => return None,
        }
    }
}

/// The store's block as it lies in a record, so that a store can write it in place.
#[must_use]
pub fn stored_bytes(stored: &Stored) -> [u8; 40] {
    let mut out = [0; 40];
    let values = [stored.fence.0, stored.revision.0, stored.lease_until.0, stored.keep_until.0, stored.written_at.0];
    for (slot, value) in out.chunks_exact_mut(8).zip(values) {
        slot.copy_from_slice(&value.to_be_bytes());
    }
    out
}

/// Reads a record. `bytes` must hold exactly one; bodies share its memory.
///
/// # Errors
/// See [`DecodeError`]: nothing is guessed, and a newer version is never misread.
pub fn decode(bytes: &Bytes) -> Result<Record, DecodeError> {
    let mut header = Reader { rest: bytes, have: bytes.len() };
    if header.take::<2>()? != MAGIC {
        return Err(DecodeError::Foreign);
    }
    let [version, state] = header.take()?;
    if version > VERSION {
        return Err(DecodeError::Newer(version));
    }
    if version == 0 {
        return Err(DecodeError::Content("format version 0 never existed"));
    }
    let flags = u16::from_be_bytes(header.take()?);
    let _reserved: [u8; 2] = header.take()?;
    let fingerprint_policy = u32::from_be_bytes(header.take()?);
    let stored = Stored {
        fence: Fence(header.u64()?),
        revision: Revision(header.u64()?),
        lease_until: Micros(header.u64()?),
        keep_until: Micros(header.u64()?),
        written_at: Micros(header.u64()?),
    };
    let attempt = u32::from_be_bytes(header.take()?);
    let claim_id = ClaimId(header.take()?);
    let session = SessionId(header.take()?);
    let proof = header.take()?;
    let fingerprint = header.take()?;
    let _key_id_and_nonce: [u8; 16] = header.take()?;
    let field_count = usize::from(u16::from_be_bytes(header.take()?));
    let _reserved: [u8; 2] = header.take()?;
    let body_len = usize::try_from(u32::from_be_bytes(header.take()?)).unwrap_or(usize::MAX);

    let body_at = HEADER_BYTES + field_count * 8;
    let sum_at = body_at.saturating_add(body_len);
    let need = sum_at.saturating_add(CHECKSUM_BYTES);
    if bytes.len() != need {
        return Err(DecodeError::Cut { have: bytes.len(), need });
    }
    let mut sum = Reader { rest: bytes.get(sum_at..).unwrap_or_default(), have: bytes.len() };
    if sum.u64()? != checksum(bytes.get(..sum_at).unwrap_or_default()) {
        return Err(DecodeError::Damaged);
    }
    if flags & !FLAGS_KNOWN != 0 {
        return Err(DecodeError::Flags(flags & !FLAGS_KNOWN));
    }
    let state = match state {
        1 => State::InFlight,
        2 => State::NotExecuted,
        3 => State::Completed,
        4 => State::Failed,
        5 => State::Erased,
        _ => return Err(DecodeError::Content("its state is none that version 1 knows")),
    };
    let mut fields = Vec::with_capacity(field_count);
    for _ in 0..field_count {
        fields.push(header.take()?);
    }
    let body = wire::Body::decode(bytes.slice(body_at..sum_at))
        .map_err(|_| DecodeError::Content("its body is not the protobuf message onceward.v1.Body"))?;
    Ok(Record {
        stored,
        facts: Facts {
            state,
            phase: if flags & FLAG_DISPATCHED == 0 { Phase::Claimed } else { Phase::Dispatched },
            ambiguous: flags & FLAG_AMBIGUOUS != 0,
            attempt,
            claim_id,
            session,
            principal_proof: (flags & FLAG_PROOF != 0).then_some(proof),
            fingerprint_policy,
            fingerprint,
            fields,
            route: body.route,
            tenant: body.tenant,
            env: body.env,
            claimed_at: Micros(body.claimed_at),
            settled_at: Micros(body.settled_at),
            not_before: Micros(body.not_before),
            outcome: body.outcome.map(outcome_from).transpose()?,
            checkpoint: body.checkpoint.map(|c| Checkpoint { seq: c.seq, name: c.name, data: c.data }),
            reason: body.reason,
        },
    })
}

/// The bytes of the same record without what of its answer has ended at `now`; `None` where nothing has, or where the
/// bytes are no record.
#[must_use]
pub fn without_ended_body(bytes: &Bytes, now: Micros) -> Option<Vec<u8>> {
    const FLAGS: core::ops::Range<usize> = 4..6;
    let flags = u16::from_be_bytes(bytes.get(FLAGS)?.try_into().ok()?);
    if flags & FLAG_BODY_ENDS == 0 {
        return None;
    }
    let mut record = decode(bytes).ok()?;
    let outcome = record.facts.outcome.take_if(|outcome| outcome.is_bare(now))?;
    record.facts.outcome = Some(outcome.bare());
    let mut bare = Vec::new();
    encode(&record, &mut bare);
    Some(bare)
}

/// XXH3-64 over everything but the store's block (and the checksum itself).
fn checksum(bytes: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(bytes.get(..STORED.start).unwrap_or_default());
    hash.update(bytes.get(STORED.end..).unwrap_or_default());
    hash.digest()
}

fn body_of(facts: &Facts) -> wire::Body {
    wire::Body {
        route: facts.route.clone(),
        tenant: facts.tenant.clone(),
        env: facts.env.clone(),
        claimed_at: facts.claimed_at.0,
        settled_at: facts.settled_at.0,
        not_before: facts.not_before.0,
        outcome: facts.outcome.as_ref().map(|outcome| wire::Outcome {
            status: u32::from(outcome.status),
            headers: fields_to(&outcome.headers),
            body: outcome.body.clone(),
            trailers: fields_to(&outcome.trailers),
            body_not_kept: outcome.body_not_kept,
            body_until: outcome.body_until.0,
        }),
        checkpoint: facts.checkpoint.as_ref().map(|checkpoint| wire::Checkpoint {
            seq: checkpoint.seq,
            name: checkpoint.name.clone(),
            data: checkpoint.data.clone(),
        }),
        reason: String::clone(&facts.reason),
    }
}

fn outcome_from(outcome: wire::Outcome) -> Result<Outcome, DecodeError> {
    Ok(Outcome {
        status: u16::try_from(outcome.status).map_err(|_| DecodeError::Content("its status is no HTTP status"))?,
        headers: fields_from(outcome.headers),
        body: outcome.body,
        trailers: fields_from(outcome.trailers),
        body_not_kept: outcome.body_not_kept,
        body_until: Micros(outcome.body_until),
    })
}

fn fields_to(fields: &[Field]) -> Vec<wire::Header> {
    fields.iter().map(|f| wire::Header { name: f.name.clone(), value: f.value.clone() }).collect()
}

fn fields_from(fields: Vec<wire::Header>) -> Vec<Field> {
    fields.into_iter().map(|f| Field { name: f.name, value: f.value }).collect()
}

struct Reader<'a> {
    rest: &'a [u8],
    have: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((first, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Cut { have: self.have, need: HEADER_BYTES + CHECKSUM_BYTES });
        };
        self.rest = rest;
        Ok(*first)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take()?))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn bytes_of(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Record, DecodeError> {
        decode(&Bytes::copy_from_slice(bytes))
    }

    /// The bytes with one changed and the checksum made to match: what a defective or later writer
    /// would leave.
    fn rewritten(bytes: &[u8], at: usize, value: u8) -> Vec<u8> {
        let mut out = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
        out[at] = value;
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_be_bytes());
        out
    }

    fn texts() -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 0..20).prop_map(|chars| chars.into_iter().collect())
    }

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn headers() -> impl Strategy<Value = Vec<Field>> {
        proptest::collection::vec((bytes(20), bytes(40)).prop_map(|(name, value)| Field { name, value }), 0..5)
    }

    prop_compose! {
        fn outcomes()(
            status in any::<u16>(), headers in headers(), body in bytes(600), trailers in headers(),
            body_not_kept in any::<bool>(), body_until in any::<u64>(),
        ) -> Outcome {
            Outcome { status, headers, body, trailers, body_not_kept, body_until: Micros(body_until) }
        }
    }

    prop_compose! {
        fn checkpoints()(seq in any::<u32>(), name in texts(), data in bytes(100)) -> Checkpoint {
            Checkpoint { seq, name, data }
        }
    }

    prop_compose! {
        fn records()(
            stored in any::<[u64; 5]>(),
            state in prop_oneof![
                Just(State::InFlight), Just(State::NotExecuted), Just(State::Completed), Just(State::Failed),
                Just(State::Erased)
            ],
            (dispatched, ambiguous) in any::<(bool, bool)>(),
            (attempt, fingerprint_policy) in any::<(u32, u32)>(),
            (claim_id, session, fingerprint) in any::<([u8; 16], [u8; 16], [u8; 32])>(),
            principal_proof in any::<Option<[u8; 16]>>(),
            fields in proptest::collection::vec(any::<[u8; 8]>(), 0..20),
            (route, tenant, env, reason) in (texts(), texts(), texts(), texts()),
            (claimed_at, settled_at, not_before) in any::<(u64, u64, u64)>(),
            outcome in proptest::option::of(outcomes()),
            checkpoint in proptest::option::of(checkpoints()),
        ) -> Record {
            let [fence, revision, lease_until, keep_until, written_at] = stored;
            Record {
                stored: Stored {
                    fence: Fence(fence),
                    revision: Revision(revision),
                    lease_until: Micros(lease_until),
                    keep_until: Micros(keep_until),
                    written_at: Micros(written_at),
                },
                facts: Facts {
                    state,
                    phase: if dispatched { Phase::Dispatched } else { Phase::Claimed },
                    ambiguous,
                    attempt,
                    claim_id: ClaimId(claim_id),
                    session: SessionId(session),
                    principal_proof,
                    fingerprint_policy,
                    fingerprint,
                    fields,
                    route,
                    tenant,
                    env,
                    claimed_at: Micros(claimed_at),
                    settled_at: Micros(settled_at),
                    not_before: Micros(not_before),
                    outcome,
                    checkpoint,
                    reason,
                },
            }
        }
    }

    /// As it comes back: without its digests where it would pass the bound with them.
    fn kept(record: &Record) -> Record {
        let mut kept = record.clone();
        let size = HEADER_BYTES + kept.facts.fields.len() * 8 + body_of(&kept.facts).encoded_len() + CHECKSUM_BYTES;
        if size > FIELDS_RECORD_BYTES_MAX {
            kept.facts.fields.clear();
        }
        kept
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_record_comes_back_as_it_was_written(record in records()) {
            let bytes = bytes_of(&record);
            prop_assert_eq!(read(&bytes), Ok(kept(&record)));
            prop_assert_eq!(bytes_of(&kept(&record)), bytes, "written again, it is the same bytes");
        }

        #[test]
        fn a_truncation_is_an_error(record in records(), more in 1_usize..40) {
            let mut bytes = bytes_of(&record);
            for len in 0..bytes.len() {
                prop_assert!(read(&bytes[..len]).is_err(), "{len} of {} bytes pass", bytes.len());
            }
            bytes.resize(bytes.len() + more, 0);
            prop_assert!(read(&bytes).is_err(), "more bytes than it has pass");
        }

        #[test]
        fn a_flipped_bit_is_an_error_outside_the_stores_block_and_changes_only_that_inside(record in records()) {
            let record = kept(&record);
            let mut bytes = bytes_of(&record);
            for bit in 0..bytes.len() * 8 {
                let (at, mask) = (bit / 8, 1 << (bit % 8));
                bytes[at] ^= mask;
                match read(&bytes) {
                    Ok(other) => {
                        prop_assert!(STORED.contains(&at), "bit {bit} is not covered");
                        prop_assert_eq!(&other.facts, &record.facts);
                        prop_assert_ne!(other.stored, record.stored);
                    }
                    Err(error) => prop_assert!(!STORED.contains(&at), "bit {bit} of the store's block: {error}"),
                }
                bytes[at] ^= mask;
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), header in any::<bool>()) {
            let mut bytes = bytes;
            if header && bytes.len() > 3 {
                bytes[..3].copy_from_slice(&[b'O', b'W', VERSION]);
            }
            let _ = read(&bytes);
        }

        #[test]
        fn the_stores_block_can_be_written_in_place(record in records(), stored in any::<[u64; 5]>()) {
            let [fence, revision, lease, keep, written] = stored;
            let stored = Stored {
                fence: Fence(fence),
                revision: Revision(revision),
                lease_until: Micros(lease),
                keep_until: Micros(keep),
                written_at: Micros(written),
            };
            let mut bytes = bytes_of(&record);
            bytes[STORED].copy_from_slice(&stored_bytes(&stored));
            prop_assert_eq!(read(&bytes), Ok(Record { stored, ..kept(&record) }));
        }
    }

    fn any_record() -> Record {
        crate::transition::tests::record()
    }

    #[test]
    fn a_newer_version_is_refused_and_not_misread() {
        let bytes = bytes_of(&any_record());
        for version in [VERSION + 1, u8::MAX] {
            assert_eq!(read(&rewritten(&bytes, 2, version)), Err(DecodeError::Newer(version)));
            // Whatever else it holds: not even its checksum is ours to judge.
            let mut foreign = bytes.clone();
            foreign[2] = version;
            assert_eq!(read(&foreign[..10]), Err(DecodeError::Newer(version)));
        }
        assert!(matches!(read(&rewritten(&bytes, 2, 0)), Err(DecodeError::Content(_))));
    }

    #[test]
    fn a_flag_that_is_not_known_is_refused() {
        let bytes = bytes_of(&any_record());
        for bit in 0..16 {
            let flag = 1_u16 << bit;
            let at = if bit < 8 { 5 } else { 4 };
            let result = read(&rewritten(&bytes, at, bytes[at] | flag.to_be_bytes()[at - 4]));
            if FLAGS_KNOWN & flag == 0 {
                assert_eq!(result, Err(DecodeError::Flags(flag)));
            } else {
                assert!(result.is_ok(), "{flag:#06x}: {result:?}");
            }
        }
    }

    #[test]
    fn what_no_writer_makes_is_refused() {
        let bytes = bytes_of(&any_record());
        for state in [0, 6, u8::MAX] {
            assert!(matches!(read(&rewritten(&bytes, 3, state)), Err(DecodeError::Content(_))));
        }
        let body_at = HEADER_BYTES + 8 * any_record().facts.fields.len();
        assert!(matches!(read(&rewritten(&bytes, body_at, 0xFF)), Err(DecodeError::Content(_))), "no protobuf");
        assert_eq!(read(b"{\"state\":1}"), Err(DecodeError::Foreign));
        assert!(matches!(read(b""), Err(DecodeError::Cut { .. })));
        let mut status = any_record();
        status.facts.outcome = Some(Outcome::default());
        let mut body = body_of(&status.facts);
        body.outcome.as_mut().unwrap().status = 70_000;
        let mut too_large = bytes_of(&status)[..HEADER_BYTES].to_vec();
        too_large[152..154].copy_from_slice(&[0; 2]);
        too_large[156..160].copy_from_slice(&u32::try_from(body.encoded_len()).unwrap().to_be_bytes());
        body.encode_raw(&mut too_large);
        let sum = checksum(&too_large);
        too_large.extend_from_slice(&sum.to_be_bytes());
        assert!(matches!(read(&too_large), Err(DecodeError::Content(_))), "a status beyond 65535");
    }

    #[test]
    fn a_body_is_taken_out_once_it_has_ended_and_nothing_else_changes() {
        let mut record = any_record();
        let outcome = Outcome { status: 200, body: vec![7; 50].into(), body_until: Micros(100), ..Outcome::default() };
        record.facts.outcome = Some(outcome.clone());
        let bytes: Bytes = bytes_of(&record).into();
        assert_eq!(without_ended_body(&bytes, Micros(99)), None);
        let bare = without_ended_body(&bytes, Micros(100)).unwrap();
        record.facts.outcome = Some(outcome.bare());
        assert_eq!(read(&bare), Ok(kept(&record)));
        assert_eq!(without_ended_body(&bare.into(), Micros(100)), None, "there is no more to take");
        for other in [bytes_of(&any_record()), vec![], vec![0xff; 6]] {
            assert_eq!(without_ended_body(&other.into(), Micros(u64::MAX)), None);
        }
    }

    #[test]
    fn digests_are_left_out_where_the_record_would_pass_its_bound() {
        let mut record = any_record();
        record.facts.fields = vec![[1; 8]; 8];
        assert_eq!(read(&bytes_of(&record)).map(|r| r.facts.fields.len()), Ok(8));
        record.facts.reason = "x".repeat(FIELDS_RECORD_BYTES_MAX);
        assert_eq!(read(&bytes_of(&record)).map(|r| r.facts.fields.len()), Ok(0));
    }
}
