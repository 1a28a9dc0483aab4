//! What `onceward-core` makes of a step: its decision, its transitions and its compare-and-set, over records in memory and
//! a clock that is set. Results and records have the form in which `harness.sql` returns them.

use std::{collections::BTreeMap, time::Duration};

use onceward_core::{
    cas::{self, Expect, FenceRule, Replacement},
    decide::{Ask, Decision, Refusal, Verified, decide},
    outcome::{Bytes, Checkpoint, Field, Outcome},
    policy::Policy,
    record::{Facts, Fence, Micros, Phase, Record, Seen},
    transition::{self, Forget, Lost, Refused, Resolution, Write},
};
use serde_json::{Value, json};

/// How a holder ends its claim.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Complete(Outcome),
    Fail(Option<Outcome>),
    FailRetryable(Duration),
    Release,
    /// Of a claim in mode `tx` only: the transaction is rolled back.
    Rollback,
}

/// One step on a key.
#[derive(Clone, Debug)]
pub(crate) enum Verb {
    Claim {
        ask: Ask,
        policy: Box<Policy>,
        in_tx: Option<End>,
    },
    End {
        fence: Fence,
        end: End,
        keep: Duration,
    },
    Renew {
        fence: Fence,
        lease: Duration,
    },
    Checkpoint {
        fence: Fence,
        next: Checkpoint,
    },
    Dispatched {
        fence: Fence,
    },
    AssertFence {
        fence: Fence,
    },
    Resolve {
        fence: Fence,
        resolution: Resolution,
        keep: Duration,
    },
    Forget {
        how: Forget,
        force: bool,
        keep: Duration,
    },
    Get,
    /// Written by a gateway: the body is not kept, or ends.
    Bare {
        body_not_kept: bool,
        body_until: Micros,
    },
    /// Written by a gateway: the place that an operator holds.
    Place {
        record: Box<Record>,
    },
}

/// Which key, and when.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) id: [u8; 32],
    pub(crate) clock: Micros,
    pub(crate) verb: Verb,
}

/// The keys of one partition, as core leaves them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) records: BTreeMap<[u8; 32], Record>,
    pub(crate) mark: Fence,
}

impl Oracle {
    /// The record, unless it has ended.
    pub(crate) fn there(&self, id: [u8; 32], clock: Micros) -> Option<(Record, Micros)> {
        let record = self.records.get(&id)?;
        let now = clock.max(record.stored.written_at);
        (!record.is_expired(now)).then(|| (record.clone(), now))
    }

    /// Does the step; what the SQL function is to say.
    pub(crate) fn step(&mut self, step: &Step) -> Value {
        let (id, clock) = (step.id, step.clock);
        match &step.verb {
            Verb::Claim { ask, policy, in_tx } => match in_tx {
                None => self.claim(id, ask, policy, clock),
                Some(end) => self.claim_in_tx(id, ask, policy, end, clock),
            },
            Verb::End { fence, end, keep } => self.end(id, *fence, end, *keep, clock),
            Verb::Renew { fence, lease } => match self.held(id, *fence, clock) {
                Err(lost) => lost,
                Ok((record, now)) => {
                    let stored = cas::extended(&record.stored, *lease, now);
                    self.records.insert(id, Record { stored, ..record });
                    json!(stored.lease_until.0)
                }
            },
            Verb::Checkpoint { fence, next } => match self.held(id, *fence, clock) {
                Err(lost) => lost,
                Ok((record, now)) => match transition::checkpoint(&record.facts, *fence, next.clone()) {
                    Ok(write) => self.written(id, write, now, "stored"),
                    Err(Refused::CheckpointThere) => json!("already"),
                    Err(Refused::CheckpointConflict(_)) => error("22023", "conflict"),
                    Err(Refused::CheckpointOrder { .. }) => error("22023", "order"),
                    Err(Refused::CheckpointSize) => error("22023", "size"),
                    Err(other) => panic!("{other}"),
                },
            },
            Verb::Dispatched { fence } => match self.held(id, *fence, clock) {
                Err(lost) => lost,
                Ok((record, now)) => self.written(id, transition::dispatched(&record.facts, *fence), now, "dispatched"),
            },
            Verb::AssertFence { fence } => match self.held(id, *fence, clock) {
                Err(_) => error("ID001", "stale_fence"),
                Ok(_) => json!("held"),
            },
            Verb::Resolve { fence, resolution, keep } => self.resolve(id, *fence, resolution, *keep, clock),
            Verb::Forget { how, force, keep } => self.forget(id, *how, *force, *keep, clock),
            Verb::Get => self.there(id, clock).map_or(Value::Null, |(record, now)| json!(record.seen_at(now).as_str())),
            Verb::Bare { body_not_kept, body_until } => {
                let outcome = self.records.get_mut(&id).and_then(|record| record.facts.outcome.as_mut()).unwrap();
                (outcome.body_not_kept, outcome.body_until) = (*body_not_kept, *body_until);
                json!("bare")
            }
            Verb::Place { record } => {
                self.records.insert(id, (**record).clone());
                json!("place")
            }
        }
    }

    /// The record of a new claim, as `insert` of any store makes it.
    fn inserted(&mut self, id: [u8; 32], facts: Facts, lease: Duration, clock: Micros) {
        let ended = self.records.get(&id).map(|record| record.stored);
        let now = ended.map_or(clock, |ended| clock.max(ended.written_at));
        let record = Record { stored: cas::inserted(lease, now, self.mark, ended.as_ref()), facts };
        self.records.insert(id, record);
    }

    fn claim(&mut self, id: [u8; 32], ask: &Ask, policy: &Policy, clock: Micros) -> Value {
        let Some((there, now)) = self.there(id, clock) else {
            let phase = if policy.two_phase_dispatch { Phase::Claimed } else { Phase::Dispatched };
            let facts = Facts {
                phase,
                attempt: 1,
                principal_proof: ask.principal_proof,
                fingerprint_policy: ask.fingerprint_policy,
                fingerprint: ask.fingerprint,
                route: "pay".into(),
                tenant: "acme".into(),
                env: "live".into(),
                ..transition::place(ask.claim_id, ask.session)
            };
            self.inserted(id, facts, policy.lease, clock);
            return self.claimed(id, "granted", false, true, Micros::ZERO);
        };
        let (decision, verified) = decide(&there, ask, policy, now);
        let verified = verified == Verified::Yes;
        let mut wait = Micros::ZERO;
        let (outcome, reentrant) = match decision {
            Decision::Mine { .. } => ("granted", true),
            Decision::Replay => ("replay", false),
            Decision::Wait(until) => {
                wait = until;
                ("in_flight", false)
            }
            Decision::TakeOver(write) => {
                let reentrant = write.fence == FenceRule::Keep;
                self.replaced(id, &write, now);
                ("granted", reentrant)
            }
            Decision::Settle(write) => {
                self.replaced(id, &write, now);
                ("failed", false)
            }
            Decision::Probe(_) => ("probe", false),
            Decision::Refuse(refusal) => match refusal {
                Refusal::PrincipalChanged => return error("ID002", "principal_changed"),
                Refusal::KeyReused => return error("ID002", "key_reused"),
                Refusal::KeyGone => return error("ID004", "gone"),
                Refusal::OutcomeUnknown => ("unknown", false),
                Refusal::Failed => ("failed", false),
                Refusal::ResponseNotKept { .. } => ("response_not_kept", false),
                Refusal::RetryLater(until) => {
                    wait = until;
                    ("retry_later", false)
                }
                other => panic!("not said by decide: {other:?}"),
            },
        };
        self.claimed(id, outcome, reentrant, verified, wait)
    }

    fn claimed(&self, id: [u8; 32], outcome: &str, reentrant: bool, verified: bool, wait: Micros) -> Value {
        let Record { stored, facts } = &self.records[&id];
        let answer = facts.outcome.as_ref();
        let replayed = answer.filter(|_| outcome == "replay");
        let checkpoint = facts.checkpoint.as_ref().filter(|_| outcome == "granted");
        let told = answer.filter(|_| outcome == "replay" || outcome == "response_not_kept");
        json!({
            "outcome": outcome,
            "fence": stored.fence.0,
            "attempt": facts.attempt,
            "ambiguous": facts.ambiguous,
            "reentrant": reentrant,
            "verified": verified,
            "wait_us": (wait != Micros::ZERO).then_some(wait.0),
            "status": told.map(|answer| answer.status),
            "headers": replayed.map(|answer| pairs(&answer.headers)),
            "body": replayed.map(|answer| hex(&answer.body)),
            "trailers": replayed.map(|answer| pairs(&answer.trailers)),
            "checkpoint_seq": checkpoint.map(|checkpoint| checkpoint.seq),
            "checkpoint_name": checkpoint.map(|checkpoint| &checkpoint.name),
            "checkpoint_data": checkpoint.map(|checkpoint| hex(&checkpoint.data)),
        })
    }

    fn claim_in_tx(&mut self, id: [u8; 32], ask: &Ask, policy: &Policy, end: &End, clock: Micros) -> Value {
        let before = self.clone();
        let said = self.claim(id, ask, policy, clock);
        if said["outcome"] != "granted" {
            return said;
        }
        if matches!(end, End::Rollback) {
            *self = before;
            return json!([said, "rollback"]);
        }
        let fence = self.records[&id].stored.fence;
        let ended = self.end(id, fence, end, policy.retention, clock);
        json!([said, ended])
    }

    fn end(&mut self, id: [u8; 32], fence: Fence, end: &End, keep: Duration, clock: Micros) -> Value {
        let there = self.there(id, clock);
        let Some((record, now)) = there.clone() else {
            return match end {
                End::Release => json!("absent"),
                _ => error("ID003", "absent"),
            };
        };
        let facts = &record.facts;
        let (write, said) = match end {
            End::Complete(outcome) => (transition::complete(facts, fence, outcome.clone(), keep, now), "completed"),
            End::Fail(outcome) => (transition::fail(facts, fence, outcome.clone(), keep, now), "failed"),
            End::FailRetryable(after) => {
                let said = if facts.ambiguous { "unknown" } else { "not_executed" };
                (transition::fail_retryable(facts, fence, now.plus(*after), keep, now), said)
            }
            End::Release => (transition::release(facts, fence), if facts.ambiguous { "unknown" } else { "released" }),
            End::Rollback => panic!("only of a claim in mode tx"),
        };
        let expect = match &write {
            Write::Replace(write) => write.expect,
            Write::Remove(expect) => *expect,
        };
        if !cas::is_meant(expect, &record.stored, facts.state) {
            let wanted = match &write {
                Write::Replace(write) => Some(&write.facts),
                Write::Remove(_) => None,
            };
            return lost(transition::lost(Some(&record), fence, facts.claim_id, wanted));
        }
        self.written(id, write, now, said)
    }

    fn resolve(&mut self, id: [u8; 32], fence: Fence, how: &Resolution, keep: Duration, clock: Micros) -> Value {
        let Some((record, now)) = self.there(id, clock) else { return error("ID003", "absent") };
        if record.stored.fence != fence {
            return error("ID001", "stale_fence");
        }
        match transition::resolve(&record, how.clone(), "looked", keep, now) {
            Err(_) => error("55000", "not_unknown"),
            Ok(write) => {
                self.replaced(id, &write, now);
                json!(self.records[&id].stored.fence.0)
            }
        }
    }

    fn forget(&mut self, id: [u8; 32], how: Forget, force: bool, keep: Duration, clock: Micros) -> Value {
        let mut force = force;
        if self.there(id, clock).is_none() {
            if how == Forget::Reuse {
                return json!("absent");
            }
            // As an operator does: a place is held, then erased.
            let place = transition::place(Default::default(), Default::default());
            self.inserted(id, place, Duration::from_secs(1), clock);
            force = true;
        }
        let (record, now) = self.there(id, clock).unwrap();
        match transition::forget(&record, how, force, "asked to", keep, now) {
            Err(Refused::Busy) => error("55006", "busy"),
            Err(Refused::ReuseInFlight) => error("55006", "reuse_in_flight"),
            Err(other) => panic!("{other}"),
            Ok(write) => {
                let said = if how == Forget::Erase { "erased" } else { "freed" };
                self.written(id, write, now, said)
            }
        }
    }

    /// The record that a holder's write meets, or what it is told.
    fn held(&self, id: [u8; 32], fence: Fence, clock: Micros) -> Result<(Record, Micros), Value> {
        let there = self.there(id, clock);
        match there {
            Some((record, now)) if cas::is_meant(Expect::Holder(fence), &record.stored, record.facts.state) => {
                Ok((record, now))
            }
            Some((record, _)) => Err(lost(transition::lost(Some(&record), fence, record.facts.claim_id, None))),
            None => Err(lost(Lost::Absent)),
        }
    }

    fn written(&mut self, id: [u8; 32], write: Write, now: Micros, said: &str) -> Value {
        match write {
            Write::Replace(write) => self.replaced(id, &write, now),
            Write::Remove(_) => {
                let gone = self.records.remove(&id).unwrap();
                self.mark = self.mark.max(gone.stored.fence);
            }
        }
        json!(said)
    }

    fn replaced(&mut self, id: [u8; 32], write: &Replacement, now: Micros) {
        let there = self.records[&id].stored;
        let stored = cas::replaced(write, &there, now, self.mark);
        self.records.insert(id, Record { stored, facts: write.facts.clone() });
    }

    /// The row of the key and the mark of its partition.
    pub(crate) fn look(&self, id: [u8; 32]) -> Value {
        let row = self.records.get(&id).map(|Record { stored, facts }| {
            let answer = facts.outcome.as_ref();
            json!({
                "id": hex(&id),
                "fence": stored.fence.0,
                "revision": stored.revision.0,
                "lease_until": stored.lease_until.0,
                "keep_until": stored.keep_until.0,
                "written_at": stored.written_at.0,
                "state": facts.state as u8,
                "dispatched": facts.phase == Phase::Dispatched,
                "ambiguous": facts.ambiguous,
                "attempt": facts.attempt,
                "claim_id": hex(&facts.claim_id.0),
                "session": hex(&facts.session.0),
                "principal_proof": facts.principal_proof.map(|proof| hex(&proof)),
                "fingerprint_policy": facts.fingerprint_policy,
                "fingerprint": hex(&facts.fingerprint),
                "fields": "\\x",
                "route": facts.route,
                "tenant": facts.tenant,
                "env": facts.env,
                "claimed_at": facts.claimed_at.0,
                "settled_at": facts.settled_at.0,
                "not_before": facts.not_before.0,
                "reason": facts.reason,
                "status": answer.map(|answer| answer.status),
                "headers": answer.map(|answer| packed(&answer.headers)),
                "body": answer.map(|answer| hex(&answer.body)),
                "trailers": answer.map(|answer| packed(&answer.trailers)),
                "body_not_kept": answer.is_some_and(|answer| answer.body_not_kept),
                "body_until": answer.map_or(0, |answer| answer.body_until.0),
                "checkpoint_seq": facts.checkpoint.as_ref().map(|checkpoint| checkpoint.seq),
                "checkpoint_name": facts.checkpoint.as_ref().map(|checkpoint| &checkpoint.name),
                "checkpoint_data": facts.checkpoint.as_ref().map(|checkpoint| hex(&checkpoint.data)),
            })
        });
        json!({ "row": row, "mark": self.mark.0 })
    }

    /// The state, for counting what was covered.
    pub(crate) fn seen(&self, id: [u8; 32], clock: Micros) -> Option<Seen> {
        self.there(id, clock).map(|(record, now)| record.seen_at(now))
    }
}

fn lost(lost: Lost) -> Value {
    match lost {
        Lost::Already => json!("already"),
        Lost::Conflict => error("ID003", "conflict"),
        Lost::Fenced => error("ID003", "fenced"),
        Lost::Erased => error("ID004", "erased"),
        Lost::Absent => error("ID003", "absent"),
    }
}

fn error(code: &str, detail: &str) -> Value {
    json!({ "error": code, "detail": detail })
}

/// As PostgreSQL writes bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    bytes.iter().for_each(|byte| text.extend([digit(byte >> 4), digit(byte & 15)]));
    text
}

/// As the SQL functions take and give fields.
pub(crate) fn pairs(fields: &[Field]) -> Vec<[String; 2]> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    fields.iter().map(|field| [text(&field.name), text(&field.value)]).collect()
}

fn packed(fields: &[Field]) -> String {
    let mut bytes = Vec::new();
    for Field { name, value } in fields {
        bytes.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        bytes.extend(&name[..]);
        bytes.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend(&value[..]);
    }
    hex(&bytes)
}
