//! The record codec: any bytes, bytes whose checksum is made right, and records made of bytes.

use bytes::Bytes;
use onceward_core::codec::{HEADER_BYTES, STORED, decode, encode, tenant_of};
use onceward_core::outcome::{Checkpoint, Field, Outcome};
use onceward_core::record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored};
use xxhash_rust::xxh3::Xxh3;

use crate::{Target, shape};

pub(crate) const TARGET: Target = Target {
    name: "record",
    run,
    bytes_max: 2048,
    words: &["OW\u{1}", "\u{0}\u{0}\u{0}\u{0}", "route", "\u{8}", "\u{a}"],
};

fn run(input: &[u8]) -> u64 {
    let raw = Bytes::copy_from_slice(input);
    let _ = tenant_of(input);
    let as_is = outcome_of(&raw);
    let sealed = outcome_of(&sealed(input));
    let record = made_of(input);
    let mut bytes = Vec::new();
    encode(&record, &mut bytes);
    assert_eq!(tenant_of(&bytes).unwrap_or_default(), record.facts.tenant, "the tenant in the bytes");
    let read = decode(&bytes.into()).expect("what was written is read");
    assert_eq!(without_fields(&read), without_fields(&record));
    shape((as_is, sealed))
}

/// What reading says; what is read is written and read as the same.
fn outcome_of(bytes: &Bytes) -> u64 {
    match decode(bytes) {
        Err(error) => shape(error.to_string().split([':', ',']).next()),
        Ok(record) => {
            let mut written = Vec::new();
            encode(&record, &mut written);
            let written = Bytes::from(written);
            let again = decode(&written).expect("what was written is read");
            assert_eq!(without_fields(&again), without_fields(&record), "decoded, encoded, decoded");
            let mut twice = Vec::new();
            encode(&again, &mut twice);
            assert_eq!(written, twice, "the same record has the same bytes");
            shape((record.facts.state, record.facts.outcome.is_some(), record.facts.checkpoint.is_some()))
        }
    }
}

/// A large record carries no digests of fields; that is all that writing leaves out.
fn without_fields(record: &Record) -> Record {
    let mut record = record.clone();
    record.facts.fields.clear();
    record
}

/// The input as a record of version 1 whose lengths and checksum are right, so that what is behind them is reached.
fn sealed(input: &[u8]) -> Bytes {
    let mut bytes = input.to_vec();
    let least = HEADER_BYTES + 8;
    if bytes.len() < least {
        bytes.resize(least, 0);
    }
    bytes[..3].copy_from_slice(b"OW\x01");
    bytes[3] %= 6;
    // Flags that are known, and reserved bytes.
    bytes[4] = 0;
    let room = bytes.len() - least;
    let fields = (usize::from(bytes[153]) % 4).min(room / 8);
    let body = room - fields * 8;
    bytes[152..154].copy_from_slice(&u16::try_from(fields).unwrap().to_be_bytes());
    bytes[156..160].copy_from_slice(&u32::try_from(body).unwrap().to_be_bytes());
    let end = bytes.len() - 8;
    let mut hasher = Xxh3::new();
    hasher.update(&bytes[..STORED.start]);
    hasher.update(&bytes[STORED.end..end]);
    let sum = hasher.digest();
    bytes[end..].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

/// Takes values from the front of the input; zeros when it is used up.
struct Take<'a>(&'a [u8]);

impl Take<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    fn number(&mut self) -> u64 {
        // Few bytes or all of them: both ends of the encoding.
        let bytes: [u8; 8] = self.array();
        u64::from_be_bytes(bytes) >> (self.byte() % 64)
    }

    fn bytes(&mut self) -> Bytes {
        let len = usize::from(self.byte()).min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        Bytes::copy_from_slice(taken)
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn fields(&mut self) -> Vec<Field> {
        (0..self.byte() % 4).map(|_| Field { name: self.bytes(), value: self.bytes() }).collect()
    }
}

fn made_of(input: &[u8]) -> Record {
    let mut take = Take(input);
    let states = [State::InFlight, State::NotExecuted, State::Completed, State::Failed, State::Erased];
    let state = states[usize::from(take.byte()) % states.len()];
    let outcome = matches!(state, State::Completed | State::Failed).then(|| {
        let body_not_kept = take.byte() % 2 == 1;
        Outcome {
            status: 100 + u16::from(take.byte()) * 3 % 900,
            headers: take.fields(),
            body: if body_not_kept { Bytes::new() } else { take.bytes() },
            trailers: take.fields(),
            body_not_kept,
            body_until: if body_not_kept { Micros::ZERO } else { Micros(take.number()) },
        }
    });
    let checkpoint = (take.byte() % 3 == 0).then(|| Checkpoint {
        seq: u32::from(take.byte()) + 1,
        name: take.text(),
        data: take.bytes(),
    });
    let phase = if take.byte() % 2 == 0 { Phase::Claimed } else { Phase::Dispatched };
    Record {
        stored: Stored {
            fence: Fence(take.number()),
            revision: Revision(take.number()),
            lease_until: Micros(take.number()),
            keep_until: Micros(take.number()),
            written_at: Micros(take.number()),
        },
        facts: Facts {
            state,
            phase,
            ambiguous: take.byte() % 2 == 1,
            attempt: u32::from_be_bytes(take.array()),
            claim_id: ClaimId(take.array()),
            session: SessionId(take.array()),
            principal_proof: (take.byte() % 2 == 1).then(|| take.array()),
            fingerprint_policy: u32::from_be_bytes(take.array()),
            fingerprint: take.array(),
            fields: (0..take.byte() % 5).map(|_| take.array()).collect(),
            route: take.text(),
            tenant: take.text(),
            env: take.text(),
            claimed_at: Micros(take.number()),
            settled_at: Micros(take.number()),
            not_before: Micros(take.number()),
            outcome,
            checkpoint,
            reason: take.text(),
        },
    }
}
