//! What this process wrote and the journal may not have: in the spool first, then in the journal, then kept for as long as
//! the database may lose it (A8).
//!
//! What is in the spool is in memory only for a while: the rest is read again when it is to be shipped.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use onceward_core::{
    key::RecordId,
    mutant::{self, Mutant},
    record::{Record, SessionId},
};
use tokio::{sync::Notify, time::Instant};

use super::{
    Dirty, Fact, Place, Spool,
    journal::{Mark, Timeline},
};
use crate::{Kind, StoreError};

/// At so many facts that are to be kept new claims are refused; holders still finish.
const KEPT_MAX: usize = 1_000_000;
/// So many facts go in one shipment, and so many bytes, but for one that is longer.
const BATCH_MAX: usize = 256;
const BATCH_BYTES: usize = 4 << 20;
/// So many bytes of facts that wait are in memory besides the spool.
const HELD_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Shipments {
    session: SessionId,
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
    /// Bytes of those that wait which are in memory.
    held: usize,
}

/// Where a fact is.
#[derive(Clone, Debug)]
enum Held {
    Memory(Arc<Record>),
    Spool(Place),
    Both(Arc<Record>, Place),
}

#[derive(Clone, Debug)]
struct Entry {
    number: u64,
    of: Dirty,
    held: Held,
    /// Since when it is to be shipped.
    since: Instant,
}

impl Entry {
    fn place(&self) -> Option<Place> {
        match self.held {
            Held::Spool(place) | Held::Both(_, place) => Some(place),
            Held::Memory(_) => None,
        }
    }

    /// Takes it out of memory where the spool has it.
    fn let_go(&mut self, held: &mut usize) {
        if let Held::Both(_, place) = self.held {
            *held = held.saturating_sub(place.len as usize);
            self.held = Held::Spool(place);
        }
    }
}

/// Facts to be shipped.
#[derive(Debug)]
pub(super) struct Batch {
    generation: u64,
    pub(super) timeline: Timeline,
    pub(super) facts: Vec<Fact>,
}

impl Shipments {
    pub(super) fn new(session: SessionId, spool: Arc<dyn Spool>) -> Self {
        Self { session, spool, inner: Mutex::default(), waits: Notify::new(), shipped: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn spool(&self) -> &dyn Spool {
        &*self.spool
    }

    /// The session is in the spool when it returns.
    pub(super) async fn begin(&self) -> Result<(), StoreError> {
        match mutant::is(Mutant::SessionNotSpooled) {
            true => Ok(()),
            false => self.spool.begin(self.session).await,
        }
    }

    /// In the spool when it returns.
    pub(super) async fn append(&self, fact: Fact) -> Result<(), StoreError> {
        let place = self.spool.append(self.session, &fact).await?;
        self.push(fact, Some(place));
        Ok(())
    }

    /// To be shipped, without the spool.
    pub(super) fn queue(&self, fact: Fact) {
        self.push(fact, None);
    }

    fn push(&self, fact: Fact, place: Option<Place>) {
        let Fact { id, record } = fact;
        let of = Dirty { id, fence: record.stored.fence, revision: record.stored.revision };
        let inner = &mut *self.inner();
        inner.last += 1;
        let held = match place {
            Some(place) if inner.held + place.len as usize > HELD_BYTES => Held::Spool(place),
            Some(place) => {
                inner.held += place.len as usize;
                Held::Both(record, place)
            }
            None => Held::Memory(record),
        };
        inner.pending.push_back(Entry { number: inner.last, of, held, since: Instant::now() });
        self.waits.notify_one();
    }

    /// Whether a new claim may be made.
    pub(super) fn has_room(&self) -> Result<(), StoreError> {
        let kept = {
            let inner = self.inner();
            inner.pending.len() + inner.window.len()
        };
        if kept >= KEPT_MAX { Err(StoreError::not_applied(Kind::Full)) } else { self.spool.has_room() }
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
    ///
    /// # Errors
    /// Of the spool, where it does not give back what is in it.
    pub(super) async fn batch(&self) -> Result<Batch, StoreError> {
        loop {
            let waits = self.waits.notified();
            let (generation, timeline, picked) = self.pick();
            if picked.is_empty() {
                waits.await;
                continue;
            }
            let mut facts = Vec::with_capacity(picked.len());
            for (id, held) in picked {
                facts.push(match held {
                    Held::Memory(record) | Held::Both(record, _) => Fact { id, record },
                    Held::Spool(place) => self.spool.read(id, place).await?,
                });
            }
            return Ok(Batch { generation, timeline, facts });
        }
    }

    fn pick(&self) -> (u64, Timeline, Vec<(RecordId, Held)>) {
        let inner = self.inner();
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += entry.place().map_or(0, |place| place.len as usize).max(1);
            is_first || bytes <= BATCH_BYTES
        };
        let picked = inner.pending.iter().take(BATCH_MAX).take_while(fits);
        (inner.generation, inner.timeline, picked.map(|entry| (entry.of.id, entry.held.clone())).collect())
    }

    /// The journal has them, unless all is to be shipped again meanwhile.
    pub(super) fn is_shipped(&self, batch: &Batch, mark: Mark) {
        let inner = &mut *self.inner();
        if inner.generation != batch.generation {
            return;
        }
        for _ in 0..batch.facts.len() {
            let Some(mut entry) = inner.pending.pop_front() else { break };
            entry.let_go(&mut inner.held);
            inner.window.push_back((entry, mark));
        }
        self.shipped.notify_waiters();
    }

    /// Takes out of the window what the database cannot lose any more.
    pub(super) fn take_kept(&self, timeline: Timeline, kept: Mark) -> Vec<Dirty> {
        let (mut taken, mut places) = (Vec::new(), Vec::new());
        {
            let mut inner = self.inner();
            while inner.timeline == timeline
                && inner.window.front().is_some_and(|(_, mark)| *mark <= kept || mutant::is(Mutant::WindowNotKept))
            {
                let Some((entry, _)) = inner.window.pop_front() else { break };
                places.extend(entry.place());
                taken.push(entry.of);
            }
        }
        self.spool.release(&places);
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

    /// How many wait to be shipped, and for how long the first of them has.
    pub(super) fn backlog(&self) -> (usize, Duration) {
        let inner = self.inner();
        let first = inner.pending.front();
        (inner.pending.len(), first.map_or(Duration::ZERO, |first| first.since.elapsed()))
    }

    /// All that was ever there is in the journal for good.
    pub(super) fn is_over(&self) -> bool {
        let inner = self.inner();
        inner.pending.is_empty() && inner.window.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use onceward_core::{
        record::{ClaimId, Stored},
        transition,
    };

    use super::*;
    use crate::Answer;

    /// As long as facts are here.
    const LONG: u32 = 1 << 20;

    /// Keeps what it is given, in memory.
    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<Option<Fact>>>);

    impl Kept {
        fn count(&self) -> usize {
            self.0.lock().unwrap().iter().flatten().count()
        }
    }

    impl Spool for Kept {
        fn begin(&self, _session: SessionId) -> Answer<'_, ()> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn end(&self, _session: SessionId) {}

        fn append<'a>(&'a self, _session: SessionId, fact: &'a Fact) -> Answer<'a, Place> {
            let mut facts = self.0.lock().unwrap();
            facts.push(Some(fact.clone()));
            let offset = u32::try_from(facts.len() - 1).unwrap();
            Box::pin(std::future::ready(Ok(Place { segment: 1, offset, len: LONG })))
        }

        fn read(&self, _id: RecordId, place: Place) -> Answer<'_, Fact> {
            let fact = self.0.lock().unwrap()[place.offset as usize].clone().expect("it was not released");
            Box::pin(std::future::ready(Ok(fact)))
        }

        fn release(&self, places: &[Place]) {
            let mut facts = self.0.lock().unwrap();
            places.iter().for_each(|place| drop(facts[place.offset as usize].take()));
        }

        fn has_room(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    fn shipments() -> (Arc<Kept>, Shipments) {
        let spool = Arc::new(Kept::default());
        (Arc::clone(&spool), Shipments::new(SessionId([2; 16]), spool))
    }

    fn fact(of: u8) -> Fact {
        let facts = transition::place(ClaimId([of; 16]), SessionId([2; 16]));
        Fact { id: RecordId([of; 32]), record: Arc::new(Record { stored: Stored::default(), facts }) }
    }

    fn ids(taken: &[Dirty]) -> Vec<u8> {
        taken.iter().map(|dirty| dirty.id.0[0]).collect()
    }

    #[tokio::test]
    async fn the_spool_is_told_only_of_its_own_that_they_are_past_losing() {
        let (spool, shipments) = shipments();
        // Of another session, and then two of this one, of which the second is not shipped yet.
        shipments.queue(fact(1));
        shipments.append(fact(2)).await.unwrap();
        let batch = shipments.batch().await.unwrap();
        shipments.append(fact(3)).await.unwrap();
        shipments.is_shipped(&batch, 7);
        assert!(shipments.take_kept(0, 6).is_empty(), "the database may lose them");
        assert_eq!(ids(&shipments.take_kept(0, 7)), [1, 2]);
        assert_eq!(spool.count(), 1, "the third is in the spool until it is past losing");
    }

    #[tokio::test]
    async fn what_was_shipped_to_a_database_that_has_failed_over_is_read_and_shipped_again_in_order() {
        let (_spool, shipments) = shipments();
        shipments.append(fact(1)).await.unwrap();
        // Of another session: the spool does not have it.
        shipments.queue(fact(2));
        let before = shipments.batch().await.unwrap();
        shipments.is_shipped(&before, 7);
        // More than there is room for in memory.
        let all: Vec<Fact> = (1..=40).map(fact).collect();
        for fact in &all[2..] {
            shipments.append(fact.clone()).await.unwrap();
        }
        assert!(shipments.inner().held <= HELD_BYTES, "the rest is in the spool alone");
        let late = shipments.batch().await.unwrap();
        shipments.ship_again(1);
        // Its answer comes from the life before, and says nothing of this one.
        shipments.is_shipped(&late, 8);
        let mut again = Vec::new();
        while again.len() < all.len() {
            let batch = shipments.batch().await.unwrap();
            assert_eq!(batch.timeline, 1);
            assert!(batch.facts.len() <= BATCH_BYTES / LONG as usize + 1, "a shipment is bounded");
            again.extend(batch.facts.clone());
            shipments.is_shipped(&batch, 1);
        }
        assert_eq!(again, all);
        assert_eq!(shipments.inner().held, 0);
    }
}
