//! A store whose every call has a deadline, behind a circuit breaker.
//!
//! A call that does not answer in time fails, and a write that did not is unknown: it goes on beneath and may still be
//! applied. Its caller repeats it with the same claim id or fence and recognises itself.

use std::{future::Future, sync::Arc, time::Duration};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence},
};

use crate::circuit::{Breaker, Circuit, Gate};
use crate::{
    Answer, FallsBack, Filter, HearsForgotten, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch,
    Write,
};

/// Pages and sweeps do many steps in one call.
const MANY_STEPS: u32 = 20;

/// Any store, with a deadline on each call and a circuit breaker before all of them.
#[derive(Clone, Debug)]
pub struct Guarded {
    inner: Arc<dyn Store>,
    deadline: Duration,
    gate: Arc<Gate>,
}

impl Guarded {
    /// `inner`, whose calls answer within `deadline`; scans and sweeps within twenty times that.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, deadline: Duration, breaker: Breaker) -> Self {
        Self { inner, deadline, gate: Arc::new(Gate::new("the store", breaker)) }
    }

    /// For how long its circuit stays open, about.
    pub(crate) fn open_for(&self) -> Duration {
        self.gate.breaker().open
    }

    /// Where its circuit stands.
    #[must_use]
    pub fn circuit(&self) -> Circuit {
        self.gate.circuit()
    }
}

/// `call` is made once it is let through: a store may take its step before anybody waits for the answer.
async fn within<T, F: Future<Output = Result<T, StoreError>>>(
    gate: &Gate,
    deadline: Duration,
    late: fn(Kind) -> StoreError,
    call: impl FnOnce() -> F,
) -> Result<T, StoreError> {
    let pass = gate.pass()?;
    let answer = timely(deadline, late, call()).await;
    pass.ended(&answer);
    answer
}

async fn timely<T>(
    deadline: Duration,
    late: fn(Kind) -> StoreError,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(late(Kind::Unavailable).because(elapsed)),
    }
}

impl Store for Guarded {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(within(&self.gate, self.deadline, StoreError::unknown, move || self.inner.insert(id, facts, lease)))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(within(&self.gate, self.deadline, StoreError::unknown, move || self.inner.replace(id, write)))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(within(&self.gate, self.deadline, StoreError::unknown, move || self.inner.extend(id, holder, lease)))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(within(&self.gate, self.deadline, StoreError::unknown, move || self.inner.remove(id, expect)))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(within(&self.gate, self.deadline, StoreError::not_applied, move || self.inner.get(id)))
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        let deadline = self.deadline * MANY_STEPS;
        Box::pin(within(&self.gate, deadline, StoreError::not_applied, move || self.inner.scan(after, limit, filter)))
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        Box::pin(within(&self.gate, self.deadline * MANY_STEPS, StoreError::unknown, move || {
            self.inner.sweep(limit, waits)
        }))
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.inner.watch(id)
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        self.inner.tell_forgotten(hears);
    }

    fn fall_back(&self, when: FallsBack) {
        self.inner.fall_back(when);
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        // Beside the records, and of no weight for them: no sign of how the store is.
        Box::pin(timely(self.deadline, StoreError::unknown, self.inner.keep_rules(policy, rules)))
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        Box::pin(timely(self.deadline, StoreError::not_applied, self.inner.rules(policy)))
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.inner.usage(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.inner.lost_ago()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

#[cfg(test)]
mod tests {
    use onceward_core::{
        record::{ClaimId, SessionId},
        transition,
    };

    use super::*;
    use crate::{Applied, memory::Memory};

    async fn hung<T>() -> Result<T, StoreError> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_late_is_unknown_and_a_read_that_is_late_is_not() {
        let second = Duration::from_secs(1);
        let gate = Gate::new("the store", Breaker::default());
        let write = within(&gate, second, StoreError::unknown, hung::<Write>).await.unwrap_err();
        assert_eq!((write.kind, write.applied), (Kind::Unavailable, Applied::Unknown));
        let read = within(&gate, second, StoreError::not_applied, hung::<Read>).await.unwrap_err();
        assert_eq!((read.kind, read.applied), (Kind::Unavailable, Applied::No));
    }

    #[tokio::test]
    async fn what_an_open_circuit_refuses_is_not_done_by_a_store_that_takes_its_step_at_once() {
        let (memory, id) = (Memory::default(), RecordId([1; 32]));
        let breaker = Breaker { failures: 1, open: Duration::from_secs(3600) };
        let guarded = Guarded::new(Arc::new(memory.clone()), Duration::from_secs(1), breaker);
        memory.set_replica(true);
        assert!(guarded.get(id).await.is_err());
        memory.set_replica(false);
        let facts = transition::place(ClaimId([1; 16]), SessionId([1; 16]));
        let refused = guarded.insert(id, &facts, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(refused.applied, Applied::No);
        assert_eq!(memory.get(id).await.unwrap().record, None);
    }
}
