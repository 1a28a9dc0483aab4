//! Steps drawn at random, most of them about what is there; and how `harness.sql` is told of one.

use std::time::Duration;

use fastrand::Rng;
use onceward_core::{
    cas,
    decide::Ask,
    outcome::{Bytes, Checkpoint, Field, Outcome},
    policy::{Policy, Step as OnUnknown},
    record::{ClaimId, Fence, Micros, NO_FINGERPRINT, Record, Revision, SessionId, Stored},
    transition::{self, Forget, Resolution},
};
use serde_json::{Value, json};

use super::oracle::{End, Oracle, Step, Verb, hex, pairs};

const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;

/// Moves the clock: mostly on, at times far, at times back.
pub(crate) fn tick(rng: &mut Rng, clock: Micros) -> Micros {
    let on = [0, 0, 1, SECOND, 3 * SECOND, 10 * SECOND, 60 * SECOND, 3600 * SECOND, DAY, 31 * DAY];
    let back = [1, SECOND, 20 * SECOND, 2 * 3600 * SECOND];
    if rng.u8(..8) == 0 {
        Micros(clock.0 - rng.choice(back).unwrap())
    } else {
        Micros(clock.0 + rng.choice(on).unwrap())
    }
}

/// A step on `id` at `clock`.
pub(crate) fn draw(rng: &mut Rng, oracle: &Oracle, id: [u8; 32], clock: Micros) -> Step {
    let there = oracle.there(id, clock).map(|(record, _)| record);
    let verb = match (&there, rng.u8(..20)) {
        (None, 0) => place(rng, oracle, id, clock),
        (Some(record), 0) if record.facts.outcome.is_some() => {
            let body_until = Micros(if rng.bool() { 0 } else { clock.0 + rng.u64(..20) * SECOND });
            Verb::Bare { body_not_kept: body_until == Micros::ZERO, body_until }
        }
        (None, ..12) | (Some(_), ..7) => claim(rng),
        (_, 7..=10) => Verb::End { fence: fence(rng, oracle, id), end: end(rng), keep: span(rng) },
        (_, 11) => Verb::Renew { fence: fence(rng, oracle, id), lease: lease(rng) },
        (_, 12 | 13) => Verb::Checkpoint { fence: fence(rng, oracle, id), next: checkpoint(rng, there.as_ref()) },
        (_, 14) => Verb::Dispatched { fence: fence(rng, oracle, id) },
        (_, 15) => Verb::AssertFence { fence: fence(rng, oracle, id) },
        (_, 16 | 17) => Verb::Resolve { fence: fence(rng, oracle, id), resolution: resolution(rng), keep: span(rng) },
        (_, 18) => Verb::Get,
        _ => {
            let how = if rng.bool() { Forget::Erase } else { Forget::Reuse };
            Verb::Forget { how, force: rng.bool(), keep: span(rng) }
        }
    };
    Step { id, clock, verb }
}

/// The same, but only steps that are functions of the schema: those of a gateway are written here without its locks.
pub(crate) fn draw_function(rng: &mut Rng, oracle: &Oracle, id: [u8; 32], clock: Micros) -> Step {
    loop {
        let step = draw(rng, oracle, id, clock);
        if !matches!(step.verb, Verb::Bare { .. } | Verb::Place { .. }) {
            return step;
        }
    }
}

fn claim(rng: &mut Rng) -> Verb {
    let in_tx = (rng.u8(..4) == 0).then(|| if rng.u8(..4) == 0 { End::Rollback } else { end(rng) });
    let on_unknown = [
        OnUnknown::Hold,
        OnUnknown::HoldFor(span(rng)),
        OnUnknown::Retry,
        OnUnknown::Fail,
        OnUnknown::Probe { quiesce: Duration::from_secs(rng.u64(..20)), unattended: rng.bool() },
    ];
    let ask = Ask {
        // A few, so that a claim meets its own.
        claim_id: ClaimId([rng.u8(1..5); 16]),
        session: SessionId([rng.u8(1..3); 16]),
        principal_proof: (rng.u8(..4) == 0).then_some([rng.u8(1..3); 16]),
        vouched: rng.bool(),
        fingerprint_policy: u32::from(rng.u8(..8) == 0) + 1,
        fingerprint: [u8::from(rng.u8(..8) == 0); 32],
    };
    let policy = Policy {
        retention: span(rng),
        lease: lease(rng),
        two_phase_dispatch: rng.bool(),
        on_unknown: (0..rng.usize(..4)).filter_map(|_| rng.choice(on_unknown)).collect(),
        retry_max: rng.u32(..4),
        unknown_max: if rng.bool() { Duration::from_secs(30 * 86_400) } else { span(rng) },
        ..Policy::default()
    };
    Verb::Claim { ask, policy: Box::new(policy), in_tx }
}

fn place(rng: &mut Rng, oracle: &Oracle, id: [u8; 32], clock: Micros) -> Verb {
    if oracle.records.contains_key(&id) {
        return Verb::Get;
    }
    let facts = transition::place(ClaimId([9; 16]), SessionId([9; 16]));
    assert_eq!(facts.fingerprint_policy, NO_FINGERPRINT);
    let stored = Stored {
        fence: cas::next_fence(clock, oracle.mark, Fence(0)),
        revision: Revision(1),
        lease_until: clock.plus(lease(rng)),
        keep_until: Micros::ZERO,
        written_at: clock,
    };
    Verb::Place { record: Box::new(Record { stored, facts }) }
}

fn end(rng: &mut Rng) -> End {
    match rng.u8(..5) {
        0 | 1 => End::Complete(outcome(rng)),
        2 => End::Fail(rng.bool().then(|| outcome(rng))),
        3 => End::FailRetryable(Duration::from_secs(rng.u64(..12))),
        _ => End::Release,
    }
}

fn resolution(rng: &mut Rng) -> Resolution {
    match rng.u8(..3) {
        0 => Resolution::Executed(outcome(rng)),
        1 => Resolution::NotExecuted,
        _ => Resolution::Failed(rng.bool().then(|| outcome(rng))),
    }
}

/// One of a few, so that the same comes again.
fn outcome(rng: &mut Rng) -> Outcome {
    let field = |name: &'static str, value: &'static str| Field { name: name.into(), value: value.into() };
    let headers = [field("content-type", "text/plain"), field("x-städte", "Zürich"), field("x-empty", "")];
    let trailers = [field("grpc-status", "0")];
    Outcome {
        status: rng.choice([200, 201, 422, 503]).unwrap(),
        headers: headers[..rng.usize(..4)].to_vec(),
        body: Bytes::from_static(rng.choice([&b""[..], b"paid", b"\x00\xff\n"]).unwrap()),
        trailers: trailers[..rng.usize(..2)].to_vec(),
        ..Outcome::default()
    }
}

fn checkpoint(rng: &mut Rng, there: Option<&Record>) -> Checkpoint {
    let last = there.and_then(|record| record.facts.checkpoint.as_ref()).map_or(0, |checkpoint| checkpoint.seq);
    let seq = if rng.u8(..4) == 0 { rng.u32(..4) } else { last + u32::from(rng.u8(..4) != 0) };
    let size = match rng.u16(..2_000) {
        0 => Checkpoint::DATA_BYTES_MAX,
        1..50 => Checkpoint::DATA_BYTES_MAX + 1,
        _ => rng.usize(..2),
    };
    Checkpoint { seq, name: "step".into(), data: vec![7; size].into() }
}

/// Mostly that of the record that is there.
fn fence(rng: &mut Rng, oracle: &Oracle, id: [u8; 32]) -> Fence {
    let there = oracle.records.get(&id).map_or(oracle.mark, |record| record.stored.fence);
    match rng.u8(..8) {
        0 => Fence(there.0.saturating_sub(1)),
        1 => oracle.mark,
        _ => there,
    }
}

fn lease(rng: &mut Rng) -> Duration {
    Duration::from_secs(rng.u64(..12))
}

fn span(rng: &mut Rng) -> Duration {
    Duration::from_secs(rng.choice([0, 1, 5, 20, 600, 86_400]).unwrap())
}

/// The step, as `harness.sql` reads it.
pub(crate) fn told(step: &Step) -> Value {
    let mut op = json!({ "id": hex(&step.id), "clock": step.clock.0 });
    let told = match &step.verb {
        Verb::Claim { ask, policy, in_tx } => {
            let mut told = json!({
                "verb": if in_tx.is_some() { "claim_in_tx" } else { "claim" },
                "claim_id": hex(&ask.claim_id.0),
                "session": hex(&ask.session.0),
                "principal_proof": ask.principal_proof.map(|proof| hex(&proof)),
                "vouched": ask.vouched,
                "fingerprint_policy": ask.fingerprint_policy,
                "fingerprint": hex(&ask.fingerprint),
                "lease": micros(policy.lease),
                "keep": micros(policy.retention),
                "two_phase": policy.two_phase_dispatch,
                "on_unknown": policy.on_unknown.iter().map(words).collect::<Vec<_>>(),
                "retry_max": policy.retry_max,
                "unknown_max": micros(policy.unknown_max),
            });
            if let Some(end) = in_tx {
                merge(&mut told, ended(end));
                let verb = told["verb"].take();
                told["ends"] = verb;
                told["verb"] = json!("claim_in_tx");
            }
            told
        }
        Verb::End { fence, end, keep } => {
            let mut told = json!({ "fence": fence.0, "keep": micros(*keep) });
            merge(&mut told, ended(end));
            told
        }
        Verb::Renew { fence, lease } => json!({ "verb": "renew", "fence": fence.0, "lease": micros(*lease) }),
        Verb::Checkpoint { fence, next } => {
            json!({ "verb": "checkpoint", "fence": fence.0, "seq": next.seq, "body": hex(&next.data) })
        }
        Verb::Dispatched { fence } => json!({ "verb": "dispatched", "fence": fence.0 }),
        Verb::AssertFence { fence } => json!({ "verb": "assert_fence", "fence": fence.0 }),
        Verb::Resolve { fence, resolution, keep } => {
            let (verdict, outcome) = match resolution {
                Resolution::Executed(outcome) => ("executed", Some(outcome)),
                Resolution::NotExecuted => ("not_executed", None),
                Resolution::Failed(outcome) => ("failed", outcome.as_ref()),
            };
            let mut told = json!({ "fence": fence.0, "keep": micros(*keep), "verdict": verdict });
            merge(&mut told, answer("resolve", outcome));
            told
        }
        Verb::Forget { how, force, keep } => {
            let how = if *how == Forget::Erase { "erase" } else { "reuse" };
            json!({ "verb": "forget", "how": how, "force": force, "keep": micros(*keep) })
        }
        Verb::Get => json!({ "verb": "get" }),
        Verb::Bare { body_not_kept, body_until } => {
            json!({ "verb": "bare", "body_not_kept": body_not_kept, "body_until": body_until.0 })
        }
        Verb::Place { record } => json!({
            "verb": "place",
            "fence": record.stored.fence.0,
            "lease_until": record.stored.lease_until.0,
            "claim_id": hex(&record.facts.claim_id.0),
            "session": hex(&record.facts.session.0),
        }),
    };
    merge(&mut op, told);
    op
}

fn ended(end: &End) -> Value {
    match end {
        End::Complete(outcome) => answer("complete", Some(outcome)),
        End::Fail(outcome) => answer("fail", outcome.as_ref()),
        End::FailRetryable(after) => json!({ "verb": "fail_retryable", "retry_after": micros(*after) }),
        End::Release => json!({ "verb": "release" }),
        End::Rollback => json!({ "verb": "rollback" }),
    }
}

fn answer(verb: &str, outcome: Option<&Outcome>) -> Value {
    json!({
        "verb": verb,
        "status": outcome.map(|outcome| outcome.status),
        "headers": outcome.map_or_else(Vec::new, |outcome| pairs(&outcome.headers)),
        "body": outcome.map(|outcome| hex(&outcome.body)),
        "trailers": outcome.map_or_else(Vec::new, |outcome| pairs(&outcome.trailers)),
    })
}

fn words(step: &OnUnknown) -> String {
    match step {
        OnUnknown::Hold => "hold".into(),
        OnUnknown::HoldFor(span) => format!("hold {} s", span.as_secs()),
        OnUnknown::Retry => "retry".into(),
        OnUnknown::Fail => "fail".into(),
        OnUnknown::Probe { quiesce, .. } => format!("probe {} s", quiesce.as_secs()),
        other => panic!("a step that SQL does not know: {other:?}"),
    }
}

fn merge(into: &mut Value, from: Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else { panic!("objects") };
    into.extend(from);
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap()
}
