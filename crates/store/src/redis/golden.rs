//! The values of version 1 as they lie in Redis. The files of `docs/golden/` never change: gateways of one store read
//! each other's values while they are replaced.

use std::path::PathBuf;

use bytes::Bytes;
use onceward_core::{
    codec,
    outcome::{Field, Outcome},
    record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
    transition,
};

use super::value::{pack, unpack};
use crate::Kind;

/// 1 July 2025, 12:00 UTC.
const NOON: u64 = 1_751_371_200_000_000;
const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;

fn in_flight() -> Record {
    let stored = Stored {
        fence: Fence(NOON),
        revision: Revision(2),
        lease_until: Micros(NOON + 10 * SECOND),
        keep_until: Micros::ZERO,
        written_at: Micros(NOON + SECOND),
    };
    let facts = Facts {
        state: State::InFlight,
        phase: Phase::Dispatched,
        attempt: 1,
        fingerprint_policy: 1,
        fingerprint: [0x40; 32],
        fields: vec![*b"PTR0VAL0", *b"PTR1VAL1"],
        route: "create-payment".into(),
        tenant: "acme".into(),
        env: "live".into(),
        claimed_at: Micros(NOON),
        ..transition::place(ClaimId([0x10; 16]), SessionId([0x20; 16]))
    };
    Record { stored, facts }
}

fn settled(state: State, outcome: Option<Outcome>) -> Record {
    let mut record = in_flight();
    record.stored.revision = Revision(3);
    record.stored.lease_until = Micros::ZERO;
    record.stored.keep_until = Micros(NOON + 2 * SECOND + DAY);
    record.stored.written_at = Micros(NOON + 2 * SECOND);
    record.facts.state = state;
    record.facts.settled_at = Micros(NOON + 2 * SECOND);
    record.facts.fields = Vec::new();
    record.facts.outcome = outcome;
    record
}

fn answer(body: &[u8], body_until: Micros) -> Option<Outcome> {
    let headers = vec![Field { name: "content-type".into(), value: "application/json".into() }];
    Some(Outcome { status: 201, headers, body: Bytes::copy_from_slice(body), body_until, ..Outcome::default() })
}

/// By name; with whether the message is a zstd frame, and whether the answer's body lies apart.
fn golden() -> Vec<(&'static str, Record, bool, bool)> {
    let long = br#"{"id":"pay_1","amount":100,"currency":"eur","status":"succeeded"},"#.repeat(20);
    let mut unknown = in_flight();
    unknown.stored.lease_until = Micros::ZERO;
    unknown.facts.ambiguous = true;
    let mut failed = settled(State::Failed, None);
    failed.facts.reason = "unknown for longer than unknown_max".into();
    let mut erased = settled(State::Erased, None);
    erased.facts.fingerprint = [0; 32];
    erased.facts.reason = "asked to".into();
    let not_kept = Outcome { status: 200, body_not_kept: true, ..Outcome::default() };
    let body_ends = Micros(NOON + 3_602 * SECOND);
    vec![
        ("in-flight", in_flight(), false, false),
        ("unknown", unknown, false, false),
        ("completed", settled(State::Completed, answer(b"{\"id\":\"pay_1\"}", Micros::ZERO)), false, false),
        ("completed-compressed", settled(State::Completed, answer(&long, Micros::ZERO)), true, false),
        ("completed-body-apart", settled(State::Completed, answer(&long, body_ends)), false, true),
        ("completed-body-not-kept", settled(State::Completed, Some(not_kept)), false, false),
        ("failed", failed, false, false),
        ("erased", erased, false, false),
    ]
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/golden")
}

fn read(name: &str, suffix: &str) -> Vec<u8> {
    let file = format!("redis-v1-{name}.{suffix}");
    std::fs::read(folder().join(&file)).unwrap_or_else(|error| panic!("docs/golden/{file}: {error}"))
}

/// The value, and what lies apart from it.
fn written(record: &Record) -> (Vec<u8>, Option<Vec<u8>>) {
    let packed = pack(&record.facts);
    let value = [packed.head(), &codec::stored_bytes(&record.stored), packed.tail()].concat();
    (value, packed.apart.map(|(body, _)| body))
}

#[test]
fn golden_values_of_version_1_are_read_and_written_byte_for_byte_and_those_of_the_next_are_refused() {
    for (name, record, is_compressed, is_apart) in golden() {
        let (value, apart) = (read(name, "value"), is_apart.then(|| read(name, "body")));
        assert_eq!((value[5] >> 2 & 1 == 1, value[5] >> 5 & 1 == 1), (is_compressed, is_apart), "{name}");
        assert_eq!(unpack(value.clone(), apart.as_deref()).unwrap(), record, "{name} means something else");
        // Another zstd may find a shorter frame, which every build reads: then the compressed one is compared unpacked.
        assert_eq!(written(&record), (value.clone(), apart.clone()), "{name} is written otherwise");
        let mut later = value;
        later[2] = codec::VERSION + 1;
        let refused = unpack(later, apart.as_deref()).unwrap_err();
        assert!(matches!(&refused.kind, Kind::Newer(said) if said.contains("Run a newer onceward")), "{refused:?}");
    }
}

#[test]
fn every_golden_value_is_checked() {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = files.filter(|file| file.starts_with("redis-")).collect();
    let mut names: Vec<String> = golden().iter().map(|(name, ..)| format!("redis-v1-{name}.value")).collect();
    names.extend(golden().iter().filter(|(.., apart)| *apart).map(|(name, ..)| format!("redis-v1-{name}.body")));
    files.sort();
    names.sort();
    assert_eq!(files, names);
}

#[test]
#[ignore = "writes the files of a format that is not released yet; those of a released one never change"]
fn write_golden_values() {
    for (name, record, ..) in golden() {
        let (value, apart) = written(&record);
        std::fs::write(folder().join(format!("redis-v1-{name}.value")), value).unwrap();
        if let Some(apart) = apart {
            std::fs::write(folder().join(format!("redis-v1-{name}.body")), apart).unwrap();
        }
    }
}
