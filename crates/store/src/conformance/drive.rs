//! A small driver: runs core's claim machine on a store up to its first action that is none of the
//! store's, and the steps of a holder or an operator. The real one is the layer's.

use std::sync::Arc;

use onceward_core::{
    cas::{Expect, FenceRule, Lease},
    claim::{Action, Belongs, Claim, Event},
    decide::{Ask, Refusal},
    key::RecordId,
    outcome::{Checkpoint, Outcome},
    policy::Policy,
    record::{Attempt, ClaimId, Facts, Fence, Micros, Record, Seen, SessionId, State},
    transition::{self, Forget, Lost, Refused, Resolution},
};

use super::script::Answer;
use crate::{Applied, Insert, Kind, Store, StoreError, Write};

/// More steps than any claim takes: beyond it the machine runs in a circle.
const STEPS_MAX: usize = 64;

/// What an operation says, in the words of the guarantees, section 1.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Granted {
        attempt: Attempt,
        again: bool,
        ambiguous: bool,
        checkpoint: u32,
    },
    Replay(Answer),
    InFlight,
    Unknown,
    FailedFinal,
    RetryLater,
    Mismatch,
    PrincipalChanged,
    Gone,
    NotKept,
    /// The store gave no answer that allows more; whether a claim may stand.
    Unavailable {
        kind: Kind,
        abandon: bool,
    },
    Renewed {
        late: bool,
    },
    Stored,
    OutOfOrder,
    Completed,
    Failed,
    Released,
    StillAmbiguous,
    Forgotten,
    Resolved,
    Swept,
    Looked,
    Already,
    Conflict,
    TooLate,
    Lost,
    Fenced,
    Erased,
    Absent,
    Busy,
    ReuseRefused,
    NotUnknown,
    StoreFailed(Kind, Applied),
}

impl Said {
    /// Whether the operation took effect, or found that it need not.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Granted { .. }
            | Self::Replay(_)
            | Self::InFlight
            | Self::FailedFinal
            | Self::Renewed { .. }
            | Self::Stored
            | Self::Completed
            | Self::Failed
            | Self::Released
            | Self::Forgotten
            | Self::Resolved
            | Self::Swept
            | Self::Looked => true,
            Self::Unknown
            | Self::RetryLater
            | Self::Mismatch
            | Self::PrincipalChanged
            | Self::Gone
            | Self::NotKept
            | Self::Unavailable { .. }
            | Self::OutOfOrder
            | Self::StillAmbiguous
            | Self::Already
            | Self::Conflict
            | Self::TooLate
            | Self::Lost
            | Self::Fenced
            | Self::Erased
            | Self::Absent
            | Self::Busy
            | Self::ReuseRefused
            | Self::NotUnknown
            | Self::StoreFailed(..) => false,
        }
    }

    /// Whether the operation must have left the record exactly as it was.
    pub(super) fn changes_nothing(&self) -> bool {
        match self {
            Self::Granted { again, .. } => *again,
            Self::Renewed { .. }
            | Self::Stored
            | Self::Completed
            | Self::Failed
            | Self::Released
            | Self::StillAmbiguous
            | Self::Forgotten
            | Self::Resolved
            | Self::Swept
            // A route's `fail` step settles and then refuses.
            | Self::FailedFinal
            // A failed call may have been applied.
            | Self::Unavailable { .. }
            | Self::StoreFailed(..) => false,
            Self::Replay(_)
            | Self::InFlight
            | Self::Unknown
            | Self::RetryLater
            | Self::Mismatch
            | Self::PrincipalChanged
            | Self::Gone
            | Self::NotKept
            | Self::OutOfOrder
            | Self::Looked
            | Self::Already
            | Self::Conflict
            | Self::TooLate
            | Self::Lost
            | Self::Fenced
            | Self::Erased
            | Self::Absent
            | Self::Busy
            | Self::ReuseRefused
            | Self::NotUnknown => true,
        }
    }
}

impl From<StoreError> for Said {
    fn from(error: StoreError) -> Self {
        Self::StoreFailed(error.kind, error.applied)
    }
}

/// What a claimant holds.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) fence: Fence,
    pub(super) facts: Facts,
    pub(super) lease_until: Micros,
}

/// One claim on its way: the machine, the store, and what the machine wants next.
pub(super) struct Driven<'s> {
    store: &'s dyn Store,
    id: RecordId,
    policy: Arc<Policy>,
    claim: Claim,
    pub(super) next: Action,
    again: bool,
    kind: Kind,
    now: Micros,
}

impl<'s> Driven<'s> {
    pub(super) fn new(store: &'s dyn Store, id: RecordId, policy: &Arc<Policy>, ask: Ask) -> Self {
        let belongs = Belongs { route: "pay".into(), tenant: "acme".into(), env: "live".into() };
        let fields = vec![[0xF1; 8]];
        let (claim, next) = Claim::new(Arc::clone(policy), ask, belongs, fields);
        let policy = Arc::clone(policy);
        Self { store, id, policy, claim, next, again: false, kind: Kind::Unavailable, now: Micros::ZERO }
    }

    /// Whether the next action is the store's to do.
    pub(super) fn wants_store(&self) -> bool {
        matches!(self.next, Action::Insert(_) | Action::Replace(_) | Action::Remove(_))
    }

    /// Does the next action on the store and asks the machine again.
    pub(super) async fn step(&mut self) {
        let answer = match &self.next {
            Action::Insert(facts) => {
                self.store.insert(self.id, facts, self.policy.lease).await.map(|inserted| match inserted {
                    Insert::Inserted { fence, now } => Event::Inserted { fence, now },
                    Insert::Existing { record, now } => Event::Existing { record, now },
                })
            }
            Action::Replace(write) => self.store.replace(self.id, write).await.map(event),
            Action::Remove(expect) => self.store.remove(self.id, *expect).await.map(event),
            other => panic!("{other:?} is not the store's"),
        };
        let event = answer.unwrap_or_else(|error| {
            self.kind = error.kind;
            Event::StoreFailed(error.applied)
        });
        // Its own claim, found as it was or with its lease run out and begun anew.
        let resumed = matches!(&self.next, Action::Replace(write)
            if write.fence == FenceRule::Keep && matches!(write.lease, Lease::For(_)));
        self.again = resumed || matches!(event, Event::Existing { .. });
        if let Event::Inserted { now, .. } | Event::Existing { now, .. } | Event::Applied { now, .. } = &event {
            self.now = *now;
        }
        self.next = self.claim.on(event);
        if let Action::Recall { .. } = self.next {
            self.next = self.claim.on(Event::NotRemembered);
        }
    }

    /// Runs it to the first action that is none of the store's.
    pub(super) async fn run(&mut self) -> Said {
        for _ in 0..STEPS_MAX {
            if !self.wants_store() {
                return self.said();
            }
            self.step().await;
        }
        panic!("a claim took more than {STEPS_MAX} steps");
    }

    /// What the next action means for the one who asked.
    fn said(&self) -> Said {
        match &self.next {
            Action::Execute { attempt, .. } => {
                let facts = self.claim.facts();
                Said::Granted {
                    attempt: *attempt,
                    again: self.again,
                    ambiguous: facts.ambiguous,
                    checkpoint: facts.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq),
                }
            }
            Action::Replay(record) => Said::Replay(Answer::of(record.facts.outcome.as_ref())),
            Action::Wait(_) => Said::InFlight,
            Action::Refuse { refusal, abandon, .. } => match refusal {
                Refusal::PrincipalChanged => Said::PrincipalChanged,
                Refusal::KeyReused => Said::Mismatch,
                Refusal::InFlight => Said::InFlight,
                Refusal::OutcomeUnknown => Said::Unknown,
                Refusal::Failed => Said::FailedFinal,
                Refusal::KeyGone => Said::Gone,
                Refusal::ResponseNotKept { .. } => Said::NotKept,
                Refusal::RetryLater(_) => Said::RetryLater,
                Refusal::StoreUnavailable => Said::Unavailable { kind: self.kind.clone(), abandon: *abandon },
                other => panic!("a claim is not refused as {other:?}"),
            },
            Action::PassThrough { abandon } => Said::Unavailable { kind: self.kind.clone(), abandon: *abandon },
            other => panic!("a claim does not end with {other:?}"),
        }
    }

    /// What it holds, once it was granted, or after its insert where it dies before the dispatch.
    pub(super) fn holder(&self) -> Holder {
        Holder {
            fence: self.claim.fence(),
            facts: self.claim.facts().clone(),
            lease_until: self.now.plus(self.policy.lease),
        }
    }
}

fn event(write: Write) -> Event {
    match write {
        Write::Applied { fence, revision, now } => Event::Applied { fence, revision, now },
        Write::Lost { record, now } => Event::Lost { record, now },
    }
}

/// Applies a transition's write.
pub(super) async fn apply(store: &dyn Store, id: RecordId, write: &transition::Write) -> Result<Write, StoreError> {
    match write {
        transition::Write::Replace(write) => store.replace(id, write).await,
        transition::Write::Remove(expect) => store.remove(id, *expect).await,
    }
}

/// Reads, for those who act on what they read.
async fn read(store: &dyn Store, id: RecordId) -> Result<(Option<Record>, Micros), Said> {
    let read = store.get(id).await?;
    Ok((read.record, read.now))
}

/// The holder's settling write, and what it means that it was lost.
async fn settle(store: &dyn Store, id: RecordId, holder: &Holder, write: transition::Write, done: Said) -> Said {
    let wanted = match &write {
        transition::Write::Replace(write) => Some(&write.facts),
        transition::Write::Remove(_) => None,
    };
    match apply(store, id, &write).await {
        Ok(Write::Applied { .. }) => done,
        Ok(Write::Lost { record, .. }) => {
            match transition::lost(record.as_deref(), holder.fence, holder.facts.claim_id, wanted) {
                Lost::Already => Said::Already,
                // A failure that finds the completion of the same holder comes too late.
                Lost::Conflict
                    if done != Said::Completed && record.is_some_and(|r| r.facts.state == State::Completed) =>
                {
                    Said::TooLate
                }
                Lost::Conflict => Said::Conflict,
                Lost::Fenced => Said::Fenced,
                Lost::Erased => Said::Erased,
                Lost::Absent => Said::Absent,
            }
        }
        Err(error) => error.into(),
    }
}

pub(super) async fn renew(store: &dyn Store, id: RecordId, holder: &mut Holder, lease: std::time::Duration) -> Said {
    match store.extend(id, holder.fence, lease).await {
        Ok(Write::Applied { now, .. }) => {
            let late = holder.lease_until <= now;
            holder.lease_until = holder.lease_until.max(now.plus(lease));
            Said::Renewed { late }
        }
        Ok(Write::Lost { .. }) => Said::Lost,
        Err(error) => error.into(),
    }
}

pub(super) async fn checkpoint(store: &dyn Store, id: RecordId, holder: &mut Holder, seq: u32, data: &[u8]) -> Said {
    let next = Checkpoint { seq, name: format!("step {seq}"), data: bytes::Bytes::copy_from_slice(data) };
    let write = match transition::checkpoint(&holder.facts, holder.fence, next) {
        Ok(write) => write,
        Err(Refused::CheckpointThere) => return Said::Already,
        Err(Refused::CheckpointConflict(_)) => return Said::Conflict,
        Err(Refused::CheckpointOrder { .. }) => return Said::OutOfOrder,
        Err(other) => panic!("{other}"),
    };
    beside(store, id, holder, write).await
}

pub(super) async fn dispatched(store: &dyn Store, id: RecordId, holder: &mut Holder) -> Said {
    let write = transition::dispatched(&holder.facts, holder.fence);
    beside(store, id, holder, write).await
}

/// A write that leaves the holder at work.
async fn beside(store: &dyn Store, id: RecordId, holder: &mut Holder, write: transition::Write) -> Said {
    match apply(store, id, &write).await {
        Ok(Write::Applied { .. }) => {
            if let transition::Write::Replace(write) = write {
                holder.facts = write.facts;
            }
            Said::Stored
        }
        Ok(Write::Lost { .. }) => Said::Lost,
        Err(error) => error.into(),
    }
}

pub(super) async fn complete(
    store: &dyn Store,
    id: RecordId,
    holder: &Holder,
    outcome: Outcome,
    retention: std::time::Duration,
) -> Said {
    let write = transition::complete(&holder.facts, holder.fence, outcome, retention, holder.lease_until);
    settle(store, id, holder, write, Said::Completed).await
}

pub(super) async fn fail(
    store: &dyn Store,
    id: RecordId,
    holder: &Holder,
    outcome: Option<Outcome>,
    retention: std::time::Duration,
) -> Said {
    let write = transition::fail(&holder.facts, holder.fence, outcome, retention, holder.lease_until);
    settle(store, id, holder, write, Said::Failed).await
}

pub(super) async fn fail_retryable(
    store: &dyn Store,
    id: RecordId,
    holder: &Holder,
    after: std::time::Duration,
    retention: std::time::Duration,
) -> Said {
    let now = match read(store, id).await {
        Ok((_, now)) => now,
        Err(said) => return said,
    };
    let write = transition::fail_retryable(&holder.facts, holder.fence, now.plus(after), retention, now);
    let done = if holder.facts.ambiguous { Said::StillAmbiguous } else { Said::Failed };
    settle(store, id, holder, write, done).await
}

pub(super) async fn release(store: &dyn Store, id: RecordId, holder: &Holder) -> Said {
    let done = if holder.facts.ambiguous { Said::StillAmbiguous } else { Said::Released };
    settle(store, id, holder, transition::release(&holder.facts, holder.fence), done).await
}

/// Frees what a claim with an unknown end may have left: only a record that carries its claim id.
pub(super) async fn abandon(store: &dyn Store, id: RecordId, claim_id: ClaimId) -> Said {
    let there = match read(store, id).await {
        Ok((there, _)) => there,
        Err(said) => return said,
    };
    match there {
        None => Said::Absent,
        Some(there) if there.facts.claim_id != claim_id || there.facts.state != State::InFlight => Said::Fenced,
        Some(there) => {
            let holder = Holder { fence: there.stored.fence, facts: there.facts, lease_until: Micros::ZERO };
            release(store, id, &holder).await
        }
    }
}

pub(super) async fn resolve(
    store: &dyn Store,
    id: RecordId,
    resolution: Resolution,
    retention: std::time::Duration,
) -> Said {
    let (there, now) = match read(store, id).await {
        Ok(read) => read,
        Err(said) => return said,
    };
    let Some(there) = there else { return Said::Absent };
    let Ok(write) = transition::resolve(&there, resolution, "looked it up", retention, now) else {
        return Said::NotUnknown;
    };
    match store.replace(id, &write).await {
        Ok(Write::Applied { .. }) => Said::Resolved,
        Ok(Write::Lost { .. }) => Said::Lost,
        Err(error) => error.into(),
    }
}

pub(super) async fn forget(
    store: &dyn Store,
    id: RecordId,
    how: Forget,
    force: bool,
    retention: std::time::Duration,
) -> Said {
    let (there, now) = match read(store, id).await {
        Ok(read) => read,
        Err(said) => return said,
    };
    let (there, force) = match there {
        Some(there) => (there, force),
        None if how == Forget::Reuse => return Said::Absent,
        // Erasing a key that has no record keeps a late answer, or a first request, out as well.
        None => match placed(store, id).await {
            Ok(placed) => (placed, true),
            Err(said) => return said,
        },
    };
    let write = match transition::forget(&there, how, force, "asked to", retention, now) {
        Ok(write) => write,
        Err(Refused::ReuseInFlight) => return Said::ReuseRefused,
        Err(_) => return Said::Busy,
    };
    match apply(store, id, &write).await {
        Ok(Write::Applied { .. }) => Said::Forgotten,
        Ok(Write::Lost { .. }) => Said::Lost,
        Err(error) => error.into(),
    }
}

async fn placed(store: &dyn Store, id: RecordId) -> Result<Record, Said> {
    let facts = transition::place(ClaimId([0xAD; 16]), SessionId([0xAD; 16]));
    match store.insert(id, &facts, std::time::Duration::from_secs(10)).await? {
        Insert::Existing { .. } => Err(Said::Busy),
        Insert::Inserted { fence, .. } => match read(store, id).await?.0 {
            Some(there) if there.stored.fence == fence => Ok(there),
            _ => Err(Said::Lost),
        },
    }
}

/// What a read shows.
pub(super) fn seen(there: Option<&Record>, now: Micros) -> Option<Seen> {
    there.map(|record| record.seen_at(now))
}

/// A removal that a test makes by hand.
pub(super) async fn remove_seen(store: &dyn Store, id: RecordId, there: &Record) -> Result<Write, StoreError> {
    store.remove(id, Expect::Seen(there.stored.fence, there.stored.revision)).await
}
