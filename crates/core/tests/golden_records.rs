//! The records of version 1 as they lie in stores, and the schema they are written by.
//!
//! The files of `docs/golden/` never change: a build that cannot read one cannot read its users'
//! stores. A new version adds files of its own.

use std::path::PathBuf;

use onceward_core::{
    codec,
    outcome::{Bytes, Checkpoint, Field, Outcome},
    record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
};

/// 1 July 2025, 12:00 UTC.
const NOON: u64 = 1_751_371_200_000_000;
const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;

fn in_flight() -> Record {
    let counted = |from: u8| core::array::from_fn(|at| from.wrapping_add(u8::try_from(at).unwrap_or(0)));
    Record {
        stored: Stored {
            fence: Fence(NOON),
            revision: Revision(2),
            lease_until: Micros(NOON + 10 * SECOND),
            keep_until: Micros::ZERO,
            written_at: Micros(NOON + SECOND),
        },
        facts: Facts {
            state: State::InFlight,
            phase: Phase::Dispatched,
            ambiguous: false,
            attempt: 1,
            claim_id: ClaimId(core::array::from_fn(|at| 0x10 + u8::try_from(at).unwrap_or(0))),
            session: SessionId(core::array::from_fn(|at| 0x20 + u8::try_from(at).unwrap_or(0))),
            principal_proof: Some(core::array::from_fn(|at| 0x30 + u8::try_from(at).unwrap_or(0))),
            fingerprint_policy: 1,
            fingerprint: counted(0x40),
            fields: vec![*b"PTR0VAL0", *b"PTR1VAL1"],
            route: "create-payment".into(),
            tenant: "acme".into(),
            env: "live".into(),
            claimed_at: Micros::ZERO,
            settled_at: Micros::ZERO,
            not_before: Micros::ZERO,
            outcome: None,
            checkpoint: None,
            reason: String::new(),
        },
    }
}

fn settled(state: State) -> Record {
    let mut record = in_flight();
    record.stored.revision = Revision(3);
    record.stored.lease_until = Micros::ZERO;
    record.stored.keep_until = Micros(NOON + 2 * SECOND + DAY);
    record.stored.written_at = Micros(NOON + 2 * SECOND);
    record.facts.state = state;
    record.facts.claimed_at = Micros(NOON);
    record.facts.settled_at = Micros(NOON + 2 * SECOND);
    record
}

fn field(name: &'static [u8], value: &'static [u8]) -> Field {
    Field { name: Bytes::from_static(name), value: Bytes::from_static(value) }
}

fn golden() -> Vec<(&'static str, Record)> {
    let mut completed = settled(State::Completed);
    // Over 512 bytes: without digests.
    completed.facts.fields = Vec::new();
    completed.facts.outcome = Some(Outcome {
        status: 201,
        headers: vec![
            field(b"content-type", b"application/octet-stream"),
            field(b"x-repeated", b"one"),
            field(b"x-bytes", b"\x80\xFF"),
            field(b"x-repeated", b"two"),
            field(b"x-empty", b""),
        ],
        body: (0..=255).collect::<Vec<u8>>().into(),
        trailers: vec![field(b"grpc-status", b"0")],
        ..Outcome::default()
    });
    let mut body_ends = completed.clone();
    if let Some(outcome) = &mut body_ends.facts.outcome {
        outcome.body_until = Micros(NOON + 3602 * SECOND);
    }
    let mut not_kept = settled(State::Completed);
    not_kept.facts.principal_proof = None;
    not_kept.facts.outcome = Some(Outcome { status: 200, body_not_kept: true, ..Outcome::default() });
    let mut failed = settled(State::Failed);
    failed.stored.fence = Fence(NOON + DAY);
    failed.facts.attempt = 4;
    failed.facts.reason = "unknown for longer than unknown_max".into();
    let mut erased = settled(State::Erased);
    erased.facts.principal_proof = None;
    erased.facts.fingerprint = [0; 32];
    erased.facts.fields = Vec::new();
    erased.facts.reason = "asked to".into();
    let mut not_executed = settled(State::NotExecuted);
    not_executed.facts.attempt = 2;
    not_executed.facts.not_before = Micros(NOON + 60 * SECOND);
    let data = Bytes::from_static(b"{\"charge\":\"ch_1\"}\x00\xFF");
    not_executed.facts.checkpoint = Some(Checkpoint { seq: 2, name: "charged".into(), data });
    let mut unknown = in_flight();
    unknown.stored.lease_until = Micros::ZERO;
    unknown.facts.ambiguous = true;
    unknown.facts.attempt = 2;
    let mut claimed = in_flight();
    claimed.facts.phase = Phase::Claimed;
    vec![
        ("in-flight", in_flight()),
        ("claimed", claimed),
        ("unknown", unknown),
        ("completed", completed),
        ("completed-body-not-kept", not_kept),
        ("completed-body-ends", body_ends),
        ("failed", failed),
        ("erased", erased),
        ("not-executed-with-checkpoint", not_executed),
    ]
}

fn docs(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn file(name: &str) -> PathBuf {
    docs(&format!("docs/golden/v1-{name}.owr"))
}

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(record, &mut bytes);
    bytes
}

#[test]
fn golden_records_of_version_1_are_read_and_written_byte_for_byte() {
    for (name, record) in golden() {
        let bytes = std::fs::read(file(name)).unwrap_or_else(|error| panic!("docs/golden/v1-{name}.owr: {error}"));
        let read = codec::decode(&Bytes::from(bytes.clone())).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read, record, "{name} means something else");
        assert_eq!(bytes_of(&read), bytes, "{name} is written otherwise");
    }
}

#[test]
fn every_golden_file_is_checked() {
    let mut files: Vec<String> = std::fs::read_dir(docs("docs/golden"))
        .expect("the folder is in the tree")
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("v1-"))
        .collect();
    files.sort();
    let mut names: Vec<String> = golden().iter().map(|(name, _)| format!("v1-{name}.owr")).collect();
    names.sort();
    assert_eq!(files, names);
}

#[test]
#[ignore = "writes the files of a format that is not released yet; those of a released one never change"]
fn write_golden_records() {
    for (name, record) in golden() {
        std::fs::write(file(name), bytes_of(&record)).expect("the folder is in the tree");
    }
}

#[test]
fn the_format_document_shows_the_golden_record_in_flight() {
    let text = std::fs::read_to_string(docs("docs/record-format.md")).expect("it is in the tree");
    let bytes = std::fs::read(file("in-flight")).expect("it is in the tree");
    for (row, chunk) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("{:04x}  {}", row * 16, hex.join(" "));
        assert!(text.contains(&line), "docs/record-format.md lacks the line `{line}`");
    }
}

/// Message, field, number and type of every field that stores hold. Lines are only ever added:
/// a number is never given to another field, nor a field another type or name.
const FROZEN: &[(&str, &str, u32, &str)] = &[
    ("Body", "route", 1, "string"),
    ("Body", "tenant", 2, "string"),
    ("Body", "env", 3, "string"),
    ("Body", "claimed_at", 4, "uint64"),
    ("Body", "settled_at", 5, "uint64"),
    ("Body", "not_before", 6, "uint64"),
    ("Body", "outcome", 7, "Outcome"),
    ("Body", "checkpoint", 8, "Checkpoint"),
    ("Body", "reason", 9, "string"),
    ("Outcome", "status", 1, "uint32"),
    ("Outcome", "headers", 2, "repeated Header"),
    ("Outcome", "body", 3, "bytes"),
    ("Outcome", "trailers", 4, "repeated Header"),
    ("Outcome", "body_not_kept", 5, "bool"),
    ("Outcome", "body_until", 6, "uint64"),
    ("Header", "name", 1, "bytes"),
    ("Header", "value", 2, "bytes"),
    ("Checkpoint", "seq", 1, "uint32"),
    ("Checkpoint", "name", 2, "string"),
    ("Checkpoint", "data", 3, "bytes"),
];

/// The fields of a schema that has messages and fields only, one a line.
fn fields_of(schema: &str) -> Vec<(String, String, u32, String)> {
    let mut message = String::new();
    let mut fields = Vec::new();
    for line in schema.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
        if let Some(name) = line.strip_prefix("message ") {
            message = name.trim_end_matches('{').trim().to_owned();
        } else if let Some((kind_and_name, number)) = line.strip_suffix(';').and_then(|line| line.split_once('='))
            && !message.is_empty()
            && let Some((kind, name)) = kind_and_name.trim().rsplit_once(' ')
        {
            let number = number.trim().parse().unwrap_or_else(|_| panic!("`{line}` has no plain number"));
            fields.push((message.clone(), name.to_owned(), number, kind.to_owned()));
        } else {
            let known = ["", "}", "syntax = \"proto3\";", "package onceward.v1;"];
            assert!(known.contains(&line), "this test does not read `{line}`: teach it first");
        }
    }
    fields
}

/// What stored records would no longer mean the same by.
fn incompatible(schema: &str) -> Vec<String> {
    let fields = fields_of(schema);
    let mut wrong = Vec::new();
    for (message, name, number, kind) in FROZEN {
        let is_there = fields.iter().any(|(m, n, at, k)| m == message && n == name && at == number && k == kind);
        if !is_there {
            wrong.push(format!("{message}.{name} = {number} ({kind}) is gone or has changed"));
        }
    }
    for (message, name, number, kind) in &fields {
        let frozen = FROZEN.iter().any(|(m, n, at, k)| m == message && n == name && at == number && k == kind);
        if !frozen {
            wrong.push(format!("{message}.{name} = {number} ({kind}) is new: add it to the frozen list"));
        }
    }
    wrong
}

fn schema() -> String {
    let path = docs("proto/onceward/v1/record.proto");
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("the schema is not in the tree: {error}"))
}

#[test]
fn the_schema_of_stored_records_changes_only_by_additions() {
    assert_eq!(incompatible(&schema()), Vec::<String>::new());
}

#[test]
fn an_incompatible_change_of_the_schema_is_noticed() {
    for (from, to) in [
        ("string reason = 9;", "string reason = 10;"),
        ("string reason = 9;", "string cause = 9;"),
        ("uint64 not_before = 6;", "int64 not_before = 6;"),
        ("repeated Header trailers = 4;", "Header trailers = 4;"),
        ("  bool body_not_kept = 5;\n", ""),
    ] {
        let changed = schema().replace(from, to);
        assert_ne!(changed, schema(), "the schema has no `{from}`");
        assert!(!incompatible(&changed).is_empty(), "`{from}` became `{to}` unnoticed");
    }
}

#[test]
fn the_generated_code_is_of_this_schema() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/wire.rs");
    let code = std::fs::read_to_string(path).expect("it is in the tree");
    for (message, name, number, kind) in FROZEN {
        let body = code.split(&format!("pub struct {message} {{")).nth(1).and_then(|rest| rest.split("\n}").next());
        let body = body.unwrap_or_else(|| panic!("wire.rs has no message {message}"));
        let before = body.split(&format!("pub {name}:")).next().unwrap_or_default();
        let tag = before.rsplit("#[prost(").next().unwrap_or_default();
        assert!(tag.contains(&format!("tag = \"{number}\"")), "wire.rs: {message}.{name} has the tag {tag}");
        let word = match *kind {
            kind if kind.starts_with("repeated") => "repeated",
            "Outcome" | "Checkpoint" => "message",
            plain => plain,
        };
        assert!(tag.contains(word), "wire.rs: {message}.{name} is no {kind}: {tag}");
    }
}
