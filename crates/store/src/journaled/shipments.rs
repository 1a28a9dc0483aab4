//! What this process wrote and the journal may not have: in the spool first, then in the journal, then kept for as long as
//! the database may lose it (A8).

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use onceward_core::mutant::{self, Mutant};
use tokio::sync::Notify;

use super::{
    Fact,
    journal::{Mark, Timeline},
};
use crate::{Answer, Kind, StoreError};

/// At so many facts that are not shipped new claims are refused; holders still finish.
const PENDING_MAX: usize = 100_000;
/// So many facts go in one shipment.
const BATCH_MAX: usize = 256;

/// A local log that outlives this process: a fact is in it before its request is sent.
pub trait Spool: Send + Sync + fmt::Debug + 'static {
    /// Durable when it returns. Where it fails, this session is over.
    fn append<'a>(&'a self, fact: &'a Fact) -> Answer<'a, ()>;

    /// The first `count` facts of those that are there need not be kept any more.
    fn release(&self, count: usize);
}

#[derive(Debug)]
pub(super) struct Shipments {
    spool: Arc<dyn Spool>,
    inner: Mutex<Inner>,
    /// There is something to ship.
    waits: Notify,
    /// Something was shipped.
    shipped: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    timeline: Timeline,
    /// Raised when all is to be shipped again.
    generation: u64,
    /// Number of the last fact.
    last: u64,
    pending: VecDeque<Entry>,
    /// Shipped on this timeline, and where its log was then.
    window: VecDeque<(Entry, Mark)>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    fact: Fact,
    /// Whether the spool has it too.
    is_spooled: bool,
}

/// Facts to be shipped.
#[derive(Debug)]
pub(super) struct Batch {
    generation: u64,
    pub(super) timeline: Timeline,
    pub(super) facts: Vec<Fact>,
}

impl Shipments {
    pub(super) fn new(spool: Arc<dyn Spool>) -> Self {
        Self { spool, inner: Mutex::default(), waits: Notify::new(), shipped: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the spool when it returns.
    pub(super) async fn append(&self, fact: Fact) -> Result<(), StoreError> {
        self.spool.append(&fact).await?;
        self.push(fact, true);
        Ok(())
    }

    /// To be shipped, without the spool.
    pub(super) fn queue(&self, fact: Fact) {
        self.push(fact, false);
    }

    fn push(&self, fact: Fact, is_spooled: bool) {
        let mut inner = self.inner();
        inner.last += 1;
        let number = inner.last;
        inner.pending.push_back(Entry { number, fact, is_spooled });
        drop(inner);
        self.waits.notify_one();
    }

    /// Whether a new claim may be made.
    pub(super) fn has_room(&self) -> Result<(), StoreError> {
        let is_full = self.inner().pending.len() >= PENDING_MAX;
        if is_full { Err(StoreError::not_applied(Kind::Full)) } else { Ok(()) }
    }

    pub(super) fn timeline(&self) -> Timeline {
        self.inner().timeline
    }

    /// The database lives another life: what it may have lost is shipped again.
    pub(super) fn ship_again(&self, timeline: Timeline) {
        let mut inner = self.inner();
        (inner.timeline, inner.generation) = (timeline, inner.generation + 1);
        let window = std::mem::take(&mut inner.window);
        if !mutant::is(Mutant::NotShippedAgain) {
            for (entry, _) in window.into_iter().rev() {
                inner.pending.push_front(entry);
            }
        }
        drop(inner);
        self.waits.notify_one();
    }

    /// The next facts to ship; waits until there are some.
    pub(super) async fn batch(&self) -> Batch {
        loop {
            let waits = self.waits.notified();
            {
                let inner = self.inner();
                if !inner.pending.is_empty() {
                    let facts = inner.pending.iter().take(BATCH_MAX).map(|entry| entry.fact.clone()).collect();
                    return Batch { generation: inner.generation, timeline: inner.timeline, facts };
                }
            }
            waits.await;
        }
    }

    /// The journal has them, unless all is to be shipped again meanwhile.
    pub(super) fn is_shipped(&self, batch: &Batch, mark: Mark) {
        let mut inner = self.inner();
        if inner.generation != batch.generation {
            return;
        }
        for _ in 0..batch.facts.len() {
            let Some(entry) = inner.pending.pop_front() else { break };
            inner.window.push_back((entry, mark));
        }
        drop(inner);
        self.shipped.notify_waiters();
    }

    /// Takes out of the window what the database cannot lose any more.
    pub(super) fn take_kept(&self, timeline: Timeline, kept: Mark) -> Vec<Fact> {
        let mut inner = self.inner();
        let (mut taken, mut spooled) = (Vec::new(), 0);
        while inner.timeline == timeline
            && inner.window.front().is_some_and(|(_, mark)| *mark <= kept || mutant::is(Mutant::WindowNotKept))
        {
            let Some((entry, _)) = inner.window.pop_front() else { break };
            spooled += usize::from(entry.is_spooled);
            taken.push(entry.fact);
        }
        drop(inner);
        self.spool.release(spooled);
        taken
    }

    /// All that is there now is in the journal, on its present timeline.
    pub(super) async fn drained(&self) {
        let through = self.inner().last;
        loop {
            let shipped = self.shipped.notified();
            tokio::pin!(shipped);
            shipped.as_mut().enable();
            if self.inner().pending.front().is_none_or(|entry| entry.number > through) {
                return;
            }
            shipped.await;
        }
    }

    /// All that was ever there is in the journal for good.
    pub(super) fn is_over(&self) -> bool {
        let inner = self.inner();
        inner.pending.is_empty() && inner.window.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use onceward_core::{
        key::RecordId,
        record::{ClaimId, Record, SessionId, Stored},
        transition,
    };

    use super::*;

    /// Counts what it holds.
    #[derive(Debug, Default)]
    struct Counted(AtomicUsize);

    impl Spool for Counted {
        fn append<'a>(&'a self, _fact: &'a Fact) -> Answer<'a, ()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(std::future::ready(Ok(())))
        }

        fn release(&self, count: usize) {
            self.0.fetch_sub(count, Ordering::SeqCst);
        }
    }

    fn fact(of: u8) -> Fact {
        let facts = transition::place(ClaimId([of; 16]), SessionId([2; 16]));
        Fact { id: RecordId([of; 32]), record: Arc::new(Record { stored: Stored::default(), facts }) }
    }

    #[tokio::test]
    async fn the_spool_is_told_only_of_its_own_that_they_are_past_losing() {
        let spool = Arc::new(Counted::default());
        let shipments = Shipments::new(Arc::clone(&spool) as _);
        // Of another session, and then two of this one, of which the second is not shipped yet.
        shipments.queue(fact(1));
        shipments.append(fact(2)).await.unwrap();
        let batch = shipments.batch().await;
        shipments.append(fact(3)).await.unwrap();
        shipments.is_shipped(&batch, 7);
        assert_eq!(shipments.take_kept(0, 6), [], "the database may lose them");
        assert_eq!(shipments.take_kept(0, 7), [fact(1), fact(2)]);
        assert_eq!(spool.0.load(Ordering::SeqCst), 1, "the third is in the spool until it is past losing");
    }

    #[tokio::test]
    async fn what_was_shipped_to_a_database_that_has_failed_over_is_shipped_again_in_order() {
        let shipments = Shipments::new(Arc::new(Counted::default()));
        shipments.append(fact(1)).await.unwrap();
        let before = shipments.batch().await;
        shipments.is_shipped(&before, 7);
        shipments.append(fact(2)).await.unwrap();
        let late = shipments.batch().await;
        shipments.ship_again(1);
        // Its answer comes from the life before, and says nothing of this one.
        shipments.is_shipped(&late, 8);
        let again = shipments.batch().await;
        assert_eq!((again.timeline, again.facts), (1, vec![fact(1), fact(2)]));
    }
}
