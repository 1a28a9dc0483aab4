//! The state machine of one request: events in, actions out.
//!
//! | state | event | action → next state |
//! |---|---|---|
//! | start | [`Claim::new`] | Insert(in flight, lease) → claiming |
//! | claiming | Inserted | Execute → executing (two-phase: Replace(dispatched) → dispatching) |
//! | claiming | Existing: my own claim id | Execute → executing (the answer to the first insert was lost) |
//! | claiming | Existing: completed or failed with an outcome, same fingerprint | Replay → done |
//! | claiming | Existing: other fingerprint, other token, erased, failed, body not kept | Refuse → done |
//! | claiming | Existing: in flight, lease runs | Wait(lease end) → waiting |
//! | claiming | Existing: not executed, or holder gone before dispatch | Replace(next fence) → taking over |
//! | claiming | Existing: outcome unknown | by `on_unknown`: Replace(next fence) → taking over, Replace(failed) → settling, Probe → probing, or Refuse(unknown) → done |
//! | claiming | StoreFailed(applied: unknown), tries left | Insert with the same claim id → claiming |
//! | claiming, taking over | StoreRefused | Refuse(store unavailable) → done, whatever `on_store_outage` says |
//! | claiming | StoreFailed | Recall → recalling; Abandon where the claim may stand |
//! | claiming, taking over | StoreTakesNone | by `on_store_outage`, as where nothing is remembered → done |
//! | recalling | Remembered: completed or failed with an outcome, same fingerprint | Replay → done |
//! | recalling | Remembered: other fingerprint, other token, failed, body not kept | Refuse → done |
//! | recalling | NotRemembered, or what cannot be compared | by `on_store_outage`: Refuse(store unavailable) or PassThrough → done; Abandon where the claim may stand |
//! | taking over | Replaced | Execute → executing |
//! | taking over, settling | Lost | as Existing, or Insert where the record is gone → claiming, a bounded number of times |
//! | settling | Replaced | Refuse(failed), or after a probe Replay → done |
//! | probing | Probed: executed | Replace(completed) → settling |
//! | probing | Probed: not executed | Replace(next fence, no doubt left) → taking over |
//! | probing | Probed: nothing | the rest of `on_unknown` |
//! | probing | Existing, Woken, WaitOver: it still runs in this process | as waiting |
//! | dispatching | Replaced | Execute → executing |
//! | dispatching | Lost, StoreFailed | Refuse(store unavailable), Abandon → done: nothing was sent |
//! | claiming | Existing: my own claim id, its lease over | Replace(same fence, lease) → taking over |
//! | waiting | Woken | Insert → claiming (or, with the record at hand, as Existing) |
//! | waiting | WaitOver | Refuse(in flight) → done |
//! | executing | Answered(record) | Replace(completed, holder) → recording |
//! | executing | Answered(fail) | Replace(failed, holder) → recording |
//! | executing | Answered(release), UpstreamFailed(sent: no) | Remove(holder), or Replace(unknown) after an earlier unknown attempt → recording |
//! | executing | Answered(unknown), UpstreamFailed(sent: maybe), Dropped | Replace(unknown, lease over) → recording |
//! | recording | Applied | Answer(recorded) → done |
//! | recording | Lost: my own write, its answer was lost | Answer(recorded) → done |
//! | recording | Lost: another fence, erased, absent | Replay(canonical) or Refuse(claim lost) → done; counted |
//! | recording | StoreFailed | Retry the same write → recording; the driver says when to give up: Answer(unrecorded) |
//!
//! The driver (`layer/drive.rs`) does what an action says and reports what happened; it decides
//! nothing. Retries are bounded by [`INSERT_TRIES_MAX`] and [`LOST_TRIES_MAX`].

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};

use crate::{
    cas::{Expect, Keep, Replacement},
    decide::{Ask, Decision, Found, Place, Refusal, Verified, decide, probed},
    mutant::{self, Mutant},
    outcome::Outcome,
    policy::{Class, Outage, Policy, Step},
    record::{Attempt, Facts, Fence, Micros, NO_FINGERPRINT, Phase, Record, Revision, State, Stored},
    transition::{self, Lost, Write},
};

/// How often an insert whose answer was lost is repeated.
pub const INSERT_TRIES_MAX: u32 = 3;
/// How often a takeover that lost to another write looks again.
pub const LOST_TRIES_MAX: u32 = 8;

/// Whether a failed store call took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It did not.
    No,
    /// It may have.
    Unknown,
}

/// Whether a failed upstream call reached the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Not a byte of it.
    No,
    /// It may have.
    Maybe,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The insert made the record.
    Inserted {
        /// Its fence.
        fence: Fence,
        /// Store time.
        now: Micros,
    },
    /// A record is there.
    Existing {
        /// As it is.
        record: Box<Record>,
        /// Store time of the read.
        now: Micros,
    },
    /// A replacement or removal was applied.
    Applied {
        /// The record's fence now.
        fence: Fence,
        /// Its revision now.
        revision: Revision,
        /// Store time.
        now: Micros,
    },
    /// A replacement or removal did not meet the record it was meant for.
    Lost {
        /// What is there instead.
        record: Option<Box<Record>>,
        /// Store time.
        now: Micros,
    },
    /// The store failed: it did not answer, or not in time.
    StoreFailed(Applied),
    /// The store answered that it takes no claim now: it is full, or too busy. Nothing was written.
    StoreTakesNone,
    /// What this process remembers of the key.
    Remembered {
        /// As the store confirmed it last.
        record: Box<Record>,
        /// Estimate of the store's time.
        now: Micros,
    },
    /// This process remembers nothing of the key.
    NotRemembered,
    /// The store answered, and its answer is no: a damaged record, a session that is over. No outage, so that no policy
    /// goes on without it.
    StoreRefused,
    /// The execution waited for has ended, or its lease has.
    Woken,
    /// The wait limit is reached, or too many wait.
    WaitOver,
    /// The upstream answered in full.
    Answered {
        /// What that means for the key.
        class: Class,
        /// What is to be recorded.
        outcome: Outcome,
        /// The upstream's own word on how long to keep it.
        retention: Option<core::time::Duration>,
        /// Estimate of the store's time.
        now: Micros,
    },
    /// The upstream did not answer in full.
    UpstreamFailed(Sent),
    /// It was asked whether an unknown outcome took effect.
    Probed {
        /// What was found.
        found: Found,
        /// Estimate of the store's time.
        now: Micros,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Insert these facts with the policy's lease.
    Insert(Box<Facts>),
    /// Apply this replacement.
    Replace(Box<Replacement>),
    /// Remove the record.
    Remove(Expect),
    /// Wait for the holder, at most until this store time, then report [`Event::Woken`].
    Wait(Micros),
    /// Ask whether the record as it stands there took effect, as this step has it, then report [`Event::Probed`]. Where
    /// it is still executed in this process, wait for that instead, as for [`Action::Wait`].
    Probe(Step, Fence, Revision),
    /// The store does not answer: report what this process remembers of the key, as [`Event::Remembered`] or
    /// [`Event::NotRemembered`]. Where it remembers something, and with `abandon`, a claim of this request may stand in
    /// the store all the same: free it in the background.
    Recall {
        /// Whether a claim may stand.
        abandon: bool,
    },
    /// Send the request upstream.
    Execute {
        /// To be sent along.
        fence: Fence,
        /// To be sent along.
        attempt: Attempt,
    },
    /// Answer from this record.
    Replay(Box<Record>),
    /// Say no. With `abandon`, a claim of this request may stand: free it in the background.
    Refuse {
        /// Why.
        refusal: Refusal,
        /// Whether a claim may stand.
        abandon: bool,
        /// The record that said so, where there is one.
        record: Option<Box<Record>>,
    },
    /// Forward unprotected.
    PassThrough {
        /// Whether a claim may stand.
        abandon: bool,
    },
    /// Give the upstream's answer to the client: the key says the same from here on.
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Claiming,
    Recalling,
    TakingOver,
    Settling,
    Probing,
    Dispatching,
    Waiting,
    Executing,
    Recording,
    Done,
}

/// What the record says of where the key belongs, for people.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Belongs {
    /// Name of the route.
    pub route: String,
    /// Tenant.
    pub tenant: String,
    /// Environment.
    pub env: String,
}

/// One request on its way to an answer.
#[derive(Debug)]
pub struct Claim {
    policy: Arc<Policy>,
    ask: Ask,
    /// The request's fingerprint under other rules, of records that were made with those.
    others: Vec<(u32, [u8; 32])>,
    at: At,
    /// What the record holds while this request is its holder, or wants to be.
    facts: Facts,
    /// What a first claim holds, while `facts` are those of a takeover.
    first: Option<Facts>,
    fence: Fence,
    insert_tries: u32,
    lost_tries: u32,
    /// A claim of ours may stand although no answer said so.
    may_hold: bool,
    unverified: bool,
    last_write: Option<Write>,
    /// What a probe is asked about, and the step that asks.
    in_doubt: Option<(Box<Record>, Place)>,
    /// What the write under way makes of the record, and who settles an unknown outcome by it.
    settling: Option<Box<Replacement>>,
    settles: Option<SettledBy>,
    settled: Option<SettledBy>,
}

/// Who settled an unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SettledBy {
    /// The route's list: `fail`, `unknown_max`, or an attempt that `retry` added.
    Policy,
    /// Whoever keeps the books was asked.
    Probe,
    /// The effect was looked for in its database.
    Effect,
    /// The answer came after all.
    Late,
    /// A person.
    Operator,
}

impl SettledBy {
    /// Each of them.
    pub const ALL: [Self; 5] = [Self::Policy, Self::Probe, Self::Effect, Self::Late, Self::Operator];

    /// Who settles by what the step found.
    #[must_use]
    pub fn found(found: &Found, step: Option<Step>) -> Self {
        match (found, step) {
            (Found::Nothing, _) => Self::Policy,
            (_, Some(Step::Effect)) => Self::Effect,
            _ => Self::Probe,
        }
    }

    /// As metrics spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Probe => "probe",
            Self::Effect => "effect",
            Self::Late => "late",
            Self::Operator => "operator",
        }
    }
}

impl Claim {
    /// A request that asks for a key, and the first action.
    #[must_use]
    pub fn new(policy: Arc<Policy>, ask: Ask, belongs: Belongs, fields: Vec<[u8; 8]>) -> (Self, Action) {
        let facts = Facts {
            state: State::InFlight,
            phase: if policy.two_phase_dispatch { Phase::Claimed } else { Phase::Dispatched },
            ambiguous: false,
            attempt: 1,
            claim_id: ask.claim_id,
            session: ask.session,
            principal_proof: ask.principal_proof,
            fingerprint_policy: ask.fingerprint_policy,
            fingerprint: ask.fingerprint,
            fields,
            route: belongs.route,
            tenant: belongs.tenant,
            env: belongs.env,
            claimed_at: Micros::ZERO,
            settled_at: Micros::ZERO,
            not_before: Micros::ZERO,
            outcome: None,
            checkpoint: None,
            reason: String::new(),
        };
        let mut claim = Self {
            policy,
            ask,
            others: Vec::new(),
            at: At::Claiming,
            facts,
            first: None,
            fence: Fence(0),
            insert_tries: 0,
            lost_tries: 0,
            may_hold: false,
            unverified: false,
            last_write: None,
            in_doubt: None,
            settling: None,
            settles: None,
            settled: None,
        };
        let action = claim.insert();
        (claim, action)
    }

    /// The fence under which this request holds the key; zero before it does.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// Whether the key alone decided, because the record's fingerprint rules are gone.
    #[must_use]
    pub fn unverified(&self) -> bool {
        self.unverified
    }

    /// The rules under which the request's fingerprint is lacking to compare it with `record`.
    #[must_use]
    pub fn lacks(&self, record: &Record) -> Option<u32> {
        let policy = record.facts.fingerprint_policy;
        let known = [self.ask.fingerprint_policy, NO_FINGERPRINT].contains(&policy)
            || self.others.iter().any(|(other, _)| *other == policy);
        (!known).then_some(policy)
    }

    /// Whether others may run or settle the key once its lease is over.
    #[must_use]
    pub fn others_go_on(&self) -> bool {
        self.policy.on_unknown.first().is_some_and(|step| *step != Step::Hold)
    }

    /// The request's fingerprint under the rules that records name by `policy`.
    pub fn knows(&mut self, policy: u32, fingerprint: [u8; 32]) {
        self.others.push((policy, fingerprint));
    }

    /// The request as it is to be compared with `record`: under the rules that the record was made with, if its
    /// fingerprint under those is known. A takeover goes on under them too, so that later repeats are compared with
    /// what was asked first.
    fn ask_of(&self, record: &Record) -> Ask {
        let policy = record.facts.fingerprint_policy;
        match self.others.iter().find(|(other, _)| *other == policy) {
            Some((_, fingerprint)) => Ask { fingerprint_policy: policy, fingerprint: *fingerprint, ..self.ask.clone() },
            None => self.ask.clone(),
        }
    }

    /// Who has settled an unknown outcome by a write of this request's, before it executed anything; told once.
    #[must_use]
    pub fn settled(&mut self) -> Option<SettledBy> {
        self.settled.take()
    }

    /// The facts as this holder knows them.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A write of this holder beside the machine was applied (a checkpoint): what the machine
    /// writes from here on includes it.
    pub fn noted(&mut self, facts: Facts) {
        self.facts = facts;
    }

    /// The driver stops retrying the last write in the foreground: the write itself, to be
    /// repeated in the background.
    #[must_use]
    pub fn unrecorded(&self) -> Option<Write> {
        self.last_write.clone()
    }

    /// Takes what happened, says what to do.
    ///
    /// # Panics
    /// Never on what a store or an upstream does; on an event that the present state cannot have
    /// caused, which is a defect of the driver.
    #[must_use]
    pub fn on(&mut self, event: Event) -> Action {
        match (self.at, event) {
            (At::Claiming, Event::Inserted { fence, now }) => {
                self.facts.claimed_at = now;
                self.granted(fence)
            }
            (At::Claiming, Event::Existing { record, now })
            | (At::Waiting | At::Probing, Event::Existing { record, now })
            | (At::Claiming | At::TakingOver | At::Settling, Event::Lost { record: Some(record), now }) => {
                self.decide(record, now)
            }
            (At::TakingOver | At::Settling, Event::Lost { record: None, .. }) => self.look_again(),
            (At::Waiting, Event::Woken) if mutant::is(Mutant::WaitersNotReading) => self.execute(),
            // Bounded by the driver's wait limit: a store may wake on every renewal.
            (At::Waiting | At::Probing, Event::Woken) => {
                self.lost_tries = 0;
                self.claim_anew()
            }
            (At::Claiming | At::TakingOver, Event::StoreRefused) => self.refuse(Refusal::StoreUnavailable, None),
            (At::Claiming, Event::StoreFailed(applied)) => self.claim_failed(applied),
            (At::Claiming | At::TakingOver, Event::StoreTakesNone) => self.outage(),
            (At::Recalling, Event::Remembered { record, now }) => self.remembered(record, now),
            (At::Recalling, Event::NotRemembered) => self.outage(),
            (At::TakingOver, Event::StoreFailed(applied)) => {
                self.may_hold |= applied == Applied::Unknown;
                // The claim id in the record tells whether it was ours after all.
                if applied == Applied::Unknown { self.look_again() } else { self.outage() }
            }
            (At::Settling, Event::StoreFailed(_) | Event::StoreTakesNone | Event::StoreRefused) => {
                self.refuse(Refusal::StoreUnavailable, None)
            }
            (At::TakingOver, Event::Applied { fence, .. }) => {
                self.settled = self.settles.take();
                self.granted(fence)
            }
            (At::Settling, Event::Applied { fence, revision, now }) => self.settled_as(fence, revision, now),
            (At::Dispatching, Event::Applied { .. }) => self.execute(),
            (
                At::Dispatching,
                Event::Lost { .. } | Event::StoreFailed(_) | Event::StoreTakesNone | Event::StoreRefused,
            ) => {
                self.may_hold = true;
                self.refuse(Refusal::StoreUnavailable, None)
            }
            (At::Probing, Event::Probed { found, now }) => self.probed(found, now),
            (At::Waiting | At::Probing, Event::WaitOver) => self.refuse(Refusal::InFlight, None),
            (At::Executing, Event::Answered { class, outcome, retention, now }) => {
                let retention = retention.unwrap_or(self.policy.retention);
                let body_ends = self.policy.retention_body.filter(|span| *span < retention);
                let body_until = body_ends.map_or(Micros::ZERO, |span| now.plus(span));
                let outcome = Outcome { body_until, ..outcome };
                let write = match class {
                    Class::Record => transition::complete(&self.facts, self.fence, outcome, retention, now),
                    Class::Fail => transition::fail(&self.facts, self.fence, Some(outcome), retention, now),
                    Class::Release => transition::release(&self.facts, self.fence),
                    Class::Unknown if mutant::is(Mutant::UnknownAsFailed) => {
                        transition::release(&self.facts, self.fence)
                    }
                    Class::Unknown => transition::unknown(&self.facts, self.fence),
                };
                self.record(write)
            }
            (At::Executing, Event::UpstreamFailed(sent)) => {
                let write = match sent {
                    Sent::No => transition::release(&self.facts, self.fence),
                    Sent::Maybe if mutant::is(Mutant::UnknownAsFailed) => transition::release(&self.facts, self.fence),
                    Sent::Maybe => transition::unknown(&self.facts, self.fence),
                };
                self.record(write)
            }
            (At::Recording, Event::Applied { .. }) => {
                self.at = At::Done;
                Action::Answer
            }
            (At::Recording, Event::Lost { record, now }) => self.recording_lost(record, now),
            (At::Recording, Event::StoreFailed(_) | Event::StoreTakesNone | Event::StoreRefused) => self.write_again(),
            (at, event) => panic!("no {at:?} request can see {event:?}"),
        }
    }

    fn insert(&mut self) -> Action {
        self.at = At::Claiming;
        self.insert_tries += 1;
        Action::Insert(Box::new(self.facts.clone()))
    }

    fn granted(&mut self, fence: Fence) -> Action {
        self.fence = fence;
        self.may_hold = true;
        if self.facts.phase == Phase::Dispatched {
            return self.execute();
        }
        self.at = At::Dispatching;
        self.facts.phase = Phase::Dispatched;
        action(transition::dispatched(&self.facts, fence))
    }

    fn execute(&mut self) -> Action {
        self.at = At::Executing;
        Action::Execute { fence: self.fence, attempt: self.facts.attempt }
    }

    fn decide(&mut self, record: Box<Record>, now: Micros) -> Action {
        let (decision, verified) = decide(&record, &self.ask_of(&record), &self.policy, now);
        self.unverified = verified == Verified::No;
        self.follow(decision, record, SettledBy::Policy)
    }

    fn probed(&mut self, found: Found, now: Micros) -> Action {
        let Some((record, place)) = self.in_doubt.take() else { panic!("probing without a record") };
        let by = SettledBy::found(&found, place.step(&self.policy));
        let decision = probed(&record, &self.ask_of(&record), &self.policy, place, found, now);
        self.follow(decision, record, by)
    }

    fn follow(&mut self, decision: Decision, record: Box<Record>, by: SettledBy) -> Action {
        self.settles = None;
        match decision {
            Decision::Mine { fence, .. } => {
                self.facts = record.facts;
                self.granted(fence)
            }
            Decision::Replay => {
                self.at = At::Done;
                Action::Replay(record)
            }
            Decision::Wait(until) => {
                self.at = At::Waiting;
                Action::Wait(until)
            }
            Decision::TakeOver(write) | Decision::Settle(write) if self.lost_tries >= LOST_TRIES_MAX => {
                drop(write);
                self.refuse(Refusal::InFlight, Some(record))
            }
            Decision::Probe(_) if self.lost_tries >= LOST_TRIES_MAX => self.refuse(Refusal::InFlight, Some(record)),
            Decision::Probe(place) => {
                let Some(step) = place.step(&self.policy) else { panic!("no step at {place:?}") };
                self.at = At::Probing;
                let (fence, revision) = (record.stored.fence, record.stored.revision);
                self.in_doubt = Some((record, place));
                Action::Probe(step, fence, revision)
            }
            Decision::TakeOver(write) => {
                self.at = At::TakingOver;
                // An attempt that runs in doubt settles nothing before it is answered.
                self.settles = (by != SettledBy::Policy).then_some(by);
                self.lost_tries += 1;
                let mine = core::mem::replace(&mut self.facts, write.facts.clone());
                self.first.get_or_insert(mine);
                Action::Replace(Box::new(write))
            }
            Decision::Settle(write) => {
                self.at = At::Settling;
                self.settles = Some(by);
                self.lost_tries += 1;
                self.settling = Some(Box::new(write.clone()));
                Action::Replace(Box::new(write))
            }
            Decision::Refuse(refusal) => self.refuse(refusal, Some(record)),
        }
    }

    /// What was settled is what this request is answered from, as any other would be.
    fn settled_as(&mut self, fence: Fence, revision: Revision, now: Micros) -> Action {
        let Some(write) = self.settling.take() else { panic!("settling without a write") };
        self.settled = self.settles.take();
        let keep_until = match write.keep {
            Keep::For(span) => now.plus(span),
            Keep::Open => Micros::ZERO,
        };
        let stored = Stored { fence, revision, lease_until: Micros::ZERO, keep_until, written_at: now };
        let record = Box::new(Record { stored, facts: write.facts });
        match decide(&record, &self.ask_of(&record), &self.policy, now).0 {
            Decision::Replay => {
                self.at = At::Done;
                Action::Replay(record)
            }
            Decision::Refuse(refusal) => self.refuse(refusal, Some(record)),
            _ => self.refuse(Refusal::Failed, Some(record)),
        }
    }

    /// The record that was read is gone or has changed: claim anew.
    fn look_again(&mut self) -> Action {
        if self.lost_tries >= LOST_TRIES_MAX {
            return self.refuse(Refusal::InFlight, None);
        }
        self.lost_tries += 1;
        self.claim_anew()
    }

    /// A first claim again: what a takeover wanted to write is void.
    fn claim_anew(&mut self) -> Action {
        self.insert_tries = 0;
        if let Some(first) = self.first.take() {
            self.facts = first;
        }
        self.insert()
    }

    fn claim_failed(&mut self, applied: Applied) -> Action {
        self.may_hold |= applied == Applied::Unknown;
        if applied == Applied::Unknown && self.insert_tries < INSERT_TRIES_MAX {
            return self.insert();
        }
        self.at = At::Recalling;
        Action::Recall { abandon: self.may_hold }
    }

    /// Goes by what is remembered where that is an answer, and where it can be told that it is this request's: the store
    /// cannot be asked.
    fn remembered(&mut self, record: Box<Record>, now: Micros) -> Action {
        let (decision, verified) = decide(&record, &self.ask_of(&record), &self.policy, now);
        match (decision, verified) {
            (decision @ (Decision::Replay | Decision::Refuse(_)), Verified::Yes) => {
                self.follow(decision, record, SettledBy::Policy)
            }
            _ => self.outage(),
        }
    }

    fn outage(&mut self) -> Action {
        match self.policy.on_store_outage {
            Outage::Deny | Outage::Fallback => self.refuse(Refusal::StoreUnavailable, None),
            Outage::Bypass => {
                self.at = At::Done;
                Action::PassThrough { abandon: self.may_hold }
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal, record: Option<Box<Record>>) -> Action {
        self.at = At::Done;
        // Whatever another record says, no claim of ours stands beside it.
        let abandon = self.may_hold && record.is_none();
        Action::Refuse { refusal, abandon, record }
    }

    fn record(&mut self, write: Write) -> Action {
        self.at = At::Recording;
        self.last_write = Some(write.clone());
        action(write)
    }

    fn write_again(&mut self) -> Action {
        match self.last_write.clone() {
            Some(write) => action(write),
            None => panic!("recording without a write"),
        }
    }

    fn recording_lost(&mut self, record: Option<Box<Record>>, now: Micros) -> Action {
        let wanted = match &self.last_write {
            Some(Write::Replace(write)) => Some(&write.facts),
            Some(Write::Remove(_)) | None => None,
        };
        let lost = transition::lost(record.as_deref(), self.fence, self.ask.claim_id, wanted);
        let removed = matches!(self.last_write, Some(Write::Remove(_)));
        self.at = At::Done;
        match (lost, record) {
            // A removal whose answer was lost finds nothing; a completion finds itself.
            (Lost::Absent, _) if removed => Action::Answer,
            (Lost::Already, _) => Action::Answer,
            // The key's answer, on the terms of any other request: same caller, same request.
            (_, Some(record)) if decide(&record, &self.ask_of(&record), &self.policy, now).0 == Decision::Replay => {
                Action::Replay(record)
            }
            _ => Action::Refuse { refusal: Refusal::ClaimLost, abandon: false, record: None },
        }
    }
}

fn action(write: Write) -> Action {
    match write {
        Write::Replace(replacement) => Action::Replace(replacement),
        Write::Remove(expect) => Action::Remove(expect),
    }
}
