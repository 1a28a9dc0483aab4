//! Where a duplicate in flight waits: woken by the owner in this process, never polling.
//!
//! Each key that is executed here has a flight. Its owner settles it with the record, and every
//! waiter gets that. When the owner releases the key instead, exactly one waiter gets the turn; a
//! turn that is dropped, because its client went away, passes to the next.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    // A time, on which nothing waits.
    sync::atomic::AtomicU64 as Plain,
    time::Duration,
};

use onceward_core::{
    key::RecordId,
    record::{Micros, Record},
};
use tokio::{sync::oneshot, time::Instant};

use crate::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// What a waiter hears.
#[derive(Debug)]
pub(crate) enum News {
    /// The key's record.
    Settled(Arc<Record>),
    /// This waiter, and no other, is to look again.
    YourTurn(Turn),
}

/// Everything that executes, or is waited for, in this process.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    shards: [Mutex<Shard>; 16],
    waiting: AtomicUsize,
    unrecorded: AtomicUsize,
    /// The number of the last holder.
    holders: AtomicU64,
    kept: Mutex<Kept>,
}

/// The answers that the store has not confirmed, oldest first, with the bytes that each holds.
#[derive(Debug, Default)]
struct Kept {
    answers: VecDeque<(RecordId, usize)>,
    bytes: usize,
}

type Shard = HashMap<RecordId, Flight, BuildHasherDefault<IdHasher>>;

#[derive(Debug, Default)]
struct Flight {
    /// Who executes it, or has the turn to look again: whoever had it before was overtaken.
    holder: u64,
    unrecorded: Option<Unrecorded>,
    waiters: VecDeque<oneshot::Sender<News>>,
}

/// The record of a key, while the store has not confirmed it.
#[derive(Clone, Debug)]
pub(crate) struct Unrecorded {
    pub(crate) record: Arc<Record>,
    /// From when on others may run or settle the key, where they may: theirs is then perhaps the key's answer.
    until: Option<Instant>,
}

impl Unrecorded {
    /// Whether it is the key's answer for certain.
    pub(crate) fn may_be_told(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// Record ids are keyed hashes already: their first bytes serve.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.last_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

/// The right to execute, inside this process. Dropping it without a word passes it on.
#[derive(Debug)]
pub(crate) struct Owner {
    flights: Arc<Flights>,
    id: RecordId,
    live: bool,
    /// Its number. A turn may find the key taken by a request that nobody woke, and the flight with it.
    holder: u64,
    /// Until when the claim was last renewed, in store time: beyond it others see an unknown outcome.
    leased_until: AtomicU64,
    began: Instant,
    /// The same in microseconds since it began, by this process's clock: from before the store was asked, and a hundredth
    /// shorter than the store's, since clocks differ in rate.
    leased_us: Plain,
}

/// The right to look again, after the owner let go.
#[derive(Debug)]
pub(crate) struct Turn(Owner);

/// A place in the queue.
#[derive(Debug)]
pub(crate) struct Seat {
    news: oneshot::Receiver<News>,
    flights: Arc<Flights>,
}

/// A place beside the queues.
#[derive(Debug)]
pub(crate) struct Aside(Arc<Flights>);

/// Why there is no seat.
#[derive(Debug)]
pub(crate) enum NoSeat {
    /// Nobody executes it in this process.
    NotHere,
    /// Too many wait already.
    Full,
    /// It is settled, though the store has not confirmed it.
    Settled(Arc<Record>),
}

impl Flights {
    /// Whoever was granted the key owns its flight. Its turn, if it had one, becomes that.
    pub(crate) fn own(self: &Arc<Self>, id: RecordId, turn: Option<Turn>) -> Owner {
        if let Some(mut turn) = turn {
            // The flight is there, with the others that wait.
            turn.0.live = false;
        }
        let owner = self.owner(id);
        let kept = {
            let mut shard = self.shard(&id);
            let flight = shard.entry(id).or_default();
            flight.holder = owner.holder;
            // Of one that was overtaken just now: perhaps not the key's answer.
            flight.unrecorded.take()
        };
        if kept.is_some() {
            self.release(&id);
        }
        owner
    }

    fn owner(self: &Arc<Self>, id: RecordId) -> Owner {
        let holder = self.holders.fetch_add(1, Ordering::Relaxed) + 1;
        let (leased_until, leased_us) = (AtomicU64::new(0), Plain::new(0));
        Owner { flights: Arc::clone(self), id, live: true, holder, leased_until, began: Instant::now(), leased_us }
    }

    /// A place among those who wait for `id`.
    pub(crate) fn join(
        self: &Arc<Self>,
        id: &RecordId,
        per_key_max: usize,
        process_max: usize,
    ) -> Result<Seat, NoSeat> {
        let mut shard = self.shard(id);
        let Some(flight) = shard.get_mut(id) else { return Err(NoSeat::NotHere) };
        if let Some(Unrecorded { record, .. }) = flight.unrecorded.as_ref().filter(|kept| kept.may_be_told()) {
            return Err(NoSeat::Settled(Arc::clone(record)));
        }
        if flight.waiters.len() >= per_key_max {
            flight.waiters.retain(|waiter| !waiter.is_closed());
        }
        if flight.waiters.len() >= per_key_max || self.waiting.load(Ordering::Relaxed) >= process_max {
            return Err(NoSeat::Full);
        }
        let (sender, news) = oneshot::channel();
        flight.waiters.push_back(sender);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Seat { news, flights: Arc::clone(self) })
    }

    /// Keeps an answer within `bytes_max`; returns how many older ones had to go for it.
    fn keep(&self, id: RecordId, bytes: usize, bytes_max: usize) -> usize {
        let mut gone = Vec::new();
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.answers.push_back((id, bytes));
            kept.bytes += bytes;
            while kept.bytes > bytes_max {
                let Some((oldest, freed)) = kept.answers.pop_front() else { break };
                kept.bytes -= freed;
                gone.push(oldest);
            }
            self.unrecorded.store(kept.answers.len(), Ordering::Relaxed);
        }
        for id in &gone {
            if let Some(flight) = self.shard(id).get_mut(id) {
                flight.unrecorded = None;
            }
        }
        gone.len()
    }

    fn release(&self, id: &RecordId) {
        if self.unrecorded.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.answers.iter().position(|(kept, _)| kept == id)
            && let Some((_, freed)) = kept.answers.remove(at)
        {
            kept.bytes -= freed;
        }
        self.unrecorded.store(kept.answers.len(), Ordering::Relaxed);
    }

    /// The record of `id`, where it is settled here and the store has not confirmed it.
    pub(crate) fn unrecorded(&self, id: &RecordId) -> Option<Unrecorded> {
        if self.unrecorded.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.shard(id).get(id).and_then(|flight| flight.unrecorded.clone())
    }

    /// Whether somebody in this process executes `id`, or is about to look again.
    pub(crate) fn is_owned(&self, id: &RecordId) -> bool {
        self.shard(id).get(id).is_some()
    }

    /// A place among those who wait for something else than a flight.
    pub(crate) fn wait_aside(self: &Arc<Self>, process_max: usize) -> Option<Aside> {
        if self.waiting.load(Ordering::Relaxed) >= process_max {
            return None;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Some(Aside(Arc::clone(self)))
    }

    /// How many wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.0;
        let index = usize::from(first) % self.shards.len();
        #[expect(clippy::indexing_slicing, reason = "the index is taken modulo the length")]
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This holder let go: the first waiter that is still there gets the turn. Where somebody else holds the flight by
    /// now, nobody is woken, and what he keeps stays.
    fn pass(self: &Arc<Self>, id: &RecordId, mut holder: u64) {
        loop {
            let (kept, next) = {
                let mut shard = self.shard(id);
                let Some(flight) = shard.get_mut(id).filter(|flight| flight.holder == holder) else { return };
                let kept = flight.unrecorded.take();
                let next = flight.waiters.pop_front().map(|waiter| (waiter, Turn(self.owner(*id))));
                match &next {
                    Some((_, turn)) => flight.holder = turn.0.holder,
                    None => drop(shard.remove(id)),
                }
                (kept, next)
            };
            if kept.is_some() {
                self.release(id);
            }
            let Some((waiter, turn)) = next else { return };
            holder = turn.0.holder;
            match waiter.send(News::YourTurn(turn)) {
                Ok(()) => return,
                // Its client has gone; the turn must not pass itself on while we loop.
                Err(News::YourTurn(mut turn)) => turn.0.live = false,
                Err(News::Settled(_)) => {}
            }
        }
    }
}

impl Owner {
    /// The claim holds for `lease` from `now` in store time, as far as is known; the store was asked at `asked_at`.
    pub(crate) fn leased(&self, now: Micros, asked_at: Instant, lease: Duration) {
        let here = (asked_at + (lease - lease / 100)).saturating_duration_since(self.began);
        self.leased_us.store(u64::try_from(here.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.leased_until.store(now.plus(lease).0, Ordering::Relaxed);
    }

    /// Whether the outcome was unknown at this store time.
    pub(crate) fn is_late(&self, now: Micros) -> bool {
        now.0 >= self.leased_until.load(Ordering::Relaxed)
    }

    /// The key has its record: every waiter gets it.
    pub(crate) fn settle(mut self, record: Record) {
        self.live = false;
        let flight = self.flights.shard(&self.id).remove(&self.id);
        self.flights.release(&self.id);
        let Some(flight) = flight else { return };
        tell(flight.waiters, &Arc::new(record));
    }

    /// The key has its record, and the store does not confirm it: waiters and later repeats are
    /// answered from memory until it does, or until `bytes_max` of newer ones need its room, and no longer than the
    /// claim holds where `others_go_on` from there. Returns how many older ones had to go. The answer of an owner
    /// that was overtaken is perhaps not the key's, and answers nobody.
    pub(crate) fn settle_unrecorded(&self, record: Record, others_go_on: bool, bytes_max: usize) -> usize {
        const OVERHEAD_BYTES: usize = 1024;
        let bytes = record.facts.outcome.as_ref().map_or(0, |outcome| outcome.body.len()) + OVERHEAD_BYTES;
        let until = others_go_on.then(|| self.began + Duration::from_micros(self.leased_us.load(Ordering::Relaxed)));
        let kept = Unrecorded { record: Arc::new(record), until };
        let waiters = {
            let mut shard = self.flights.shard(&self.id);
            let Some(flight) = shard.get_mut(&self.id).filter(|flight| flight.holder == self.holder) else { return 0 };
            flight.unrecorded = Some(kept.clone());
            if kept.may_be_told() { std::mem::take(&mut flight.waiters) } else { VecDeque::new() }
        };
        tell(waiters, &kept.record);
        self.flights.keep(self.id, bytes, bytes_max)
    }

    /// Forgets what [`settle_unrecorded`](Self::settle_unrecorded) kept.
    pub(crate) fn forget_unrecorded(&self) {
        if let Some(flight) = self.flights.shard(&self.id).get_mut(&self.id) {
            flight.unrecorded = None;
        }
        self.flights.release(&self.id);
    }
}

fn tell(waiters: VecDeque<oneshot::Sender<News>>, record: &Arc<Record>) {
    for waiter in waiters {
        // One whose client has gone hears nothing; that is all.
        let _gone = waiter.send(News::Settled(Arc::clone(record)));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.live {
            self.flights.pass(&self.id, self.holder);
        }
    }
}

impl Seat {
    /// Waits. `None` where the flight is gone without a word, which no owner does.
    pub(crate) async fn news(mut self) -> Option<News> {
        (&mut self.news).await.ok()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.flights.waiting.fetch_sub(1, Ordering::Relaxed);
        // A turn that arrived and was not read passes itself on when the channel is dropped.
        self.news.close();
    }
}

#[cfg(test)]
mod tests {
    use onceward_core::{
        claim::{Belongs, Claim},
        decide::Ask,
        policy::Policy,
        record::{ClaimId, SessionId, Stored},
    };

    use super::*;

    const ID: RecordId = RecordId([7; 32]);

    fn record() -> Record {
        let ask = Ask {
            claim_id: ClaimId([1; 16]),
            session: SessionId([2; 16]),
            principal_proof: None,
            vouched: false,
            fingerprint_policy: 0,
            fingerprint: [0; 32],
        };
        let (claim, _) = Claim::new(Arc::new(Policy::default()), ask, Belongs::default(), Vec::new());
        Record { stored: Stored::default(), facts: claim.facts().clone() }
    }

    #[tokio::test]
    async fn a_settled_flight_wakes_every_waiter_and_is_gone() {
        let flights = Arc::new(Flights::default());
        let owner = flights.own(ID, None);
        let seats: Vec<Seat> = (0..5).map(|_| flights.join(&ID, 10, 10).unwrap()).collect();
        assert_eq!(flights.waiting(), 5);
        owner.settle(record());
        for seat in seats {
            assert!(matches!(seat.news().await, Some(News::Settled(_))));
        }
        assert_eq!(flights.waiting(), 0);
        assert!(matches!(flights.join(&ID, 10, 10), Err(NoSeat::NotHere)));
    }

    #[tokio::test]
    async fn on_a_release_exactly_one_waiter_gets_the_turn_and_the_others_wait_on() {
        let flights = Arc::new(Flights::default());
        let owner = flights.own(ID, None);
        let first = flights.join(&ID, 10, 10).unwrap();
        let mut second = flights.join(&ID, 10, 10).unwrap();
        drop(owner);
        let Some(News::YourTurn(turn)) = first.news().await else { panic!("no turn") };
        assert!(second.news.try_recv().is_err());
        flights.own(ID, Some(turn)).settle(record());
        assert!(matches!(second.news().await, Some(News::Settled(_))));
    }

    #[tokio::test]
    async fn a_turn_whose_client_goes_away_passes_to_the_next() {
        let flights = Arc::new(Flights::default());
        let owner = flights.own(ID, None);
        let gone_before = flights.join(&ID, 10, 10).unwrap();
        let gone_after = flights.join(&ID, 10, 10).unwrap();
        let last = flights.join(&ID, 10, 10).unwrap();
        drop(gone_before);
        drop(owner);
        drop(gone_after);
        assert!(matches!(last.news().await, Some(News::YourTurn(_))));
        assert_eq!(flights.waiting(), 0);
    }

    #[tokio::test]
    async fn a_turn_that_finds_the_key_taken_wakes_nobody_and_forgets_nothing() {
        let flights = Arc::new(Flights::default());
        let owner = flights.own(ID, None);
        let seat = flights.join(&ID, 10, 10).unwrap();
        drop(owner);
        let Some(News::YourTurn(turn)) = seat.news().await else { panic!("no turn") };
        // A request that nobody woke was faster.
        let faster = flights.own(ID, None);
        let mut waiting = flights.join(&ID, 10, 10).unwrap();
        drop(turn);
        assert!(waiting.news.try_recv().is_err(), "woken for a key that is executed");
        assert!(flights.is_owned(&ID));
        drop(faster);
        let Some(News::YourTurn(turn)) = waiting.news().await else { panic!("no turn") };
        let faster = flights.own(ID, None);
        faster.settle_unrecorded(record(), false, 1 << 20);
        drop(turn);
        assert!(flights.unrecorded(&ID).is_some(), "another's answer is forgotten");
        drop(faster);
        assert!(!flights.is_owned(&ID) && flights.unrecorded(&ID).is_none());
    }

    #[test]
    fn waiters_are_bounded_by_key_and_by_process() {
        let flights = Arc::new(Flights::default());
        let _owner = flights.own(ID, None);
        let _seats: Vec<Seat> = (0..3).map(|_| flights.join(&ID, 3, 10).unwrap()).collect();
        assert!(matches!(flights.join(&ID, 3, 10), Err(NoSeat::Full)));
        assert!(matches!(flights.join(&ID, 10, 3), Err(NoSeat::Full)));
    }

    #[test]
    fn an_unrecorded_answer_serves_later_repeats_until_it_is_forgotten() {
        let flights = Arc::new(Flights::default());
        let owner = flights.own(ID, None);
        assert_eq!(owner.settle_unrecorded(record(), false, 1 << 20), 0);
        assert!(matches!(flights.join(&ID, 10, 10), Err(NoSeat::Settled(_))));
        assert!(flights.unrecorded(&ID).is_some());
        drop(owner);
        assert!(flights.unrecorded(&ID).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unrecorded_answer_is_told_for_as_long_as_the_claim_holds_where_others_go_on_from_there() {
        const LEASE: Duration = Duration::from_secs(6);
        let flights = Arc::new(Flights::default());
        let owner = flights.own(ID, None);
        owner.leased(Micros(1), Instant::now(), LEASE);
        owner.settle_unrecorded(record(), true, 1 << 20);
        let told = || flights.unrecorded(&ID).unwrap().may_be_told();
        assert!(told() && matches!(flights.join(&ID, 10, 10), Err(NoSeat::Settled(_))));
        tokio::time::advance(LEASE).await;
        assert!(!told());
        let mut waits = flights.join(&ID, 10, 10).unwrap();
        owner.settle_unrecorded(record(), true, 1 << 20);
        assert!(waits.news.try_recv().is_err(), "another's may be the key's");
        owner.settle(record());
        assert!(matches!(waits.news().await, Some(News::Settled(_))));
    }

    #[test]
    fn the_unrecorded_answer_of_an_owner_that_was_overtaken_is_nobodys() {
        let flights = Arc::new(Flights::default());
        let overtaken = flights.own(ID, None);
        let owner = flights.own(ID, None);
        let seat = flights.join(&ID, 10, 10).unwrap();
        assert_eq!(overtaken.settle_unrecorded(record(), false, 1 << 20), 0);
        assert!(flights.unrecorded(&ID).is_none());
        owner.settle(record());
        assert_eq!(overtaken.settle_unrecorded(record(), false, 1 << 20), 0);
        assert!(flights.unrecorded(&ID).is_none() && matches!(flights.join(&ID, 10, 10), Err(NoSeat::NotHere)));
        drop(seat);
    }

    #[test]
    fn unrecorded_answers_are_bounded_and_the_oldest_goes_first() {
        let flights = Arc::new(Flights::default());
        let ids: Vec<RecordId> = (0..4).map(|n| RecordId([n; 32])).collect();
        let owners: Vec<Owner> = ids.iter().map(|id| flights.own(*id, None)).collect();
        // Each takes a little over a KiB: three fit.
        let gone: usize = owners.iter().map(|owner| owner.settle_unrecorded(record(), false, 3 * 1024)).sum();
        assert_eq!(gone, 1);
        let kept: Vec<bool> = ids.iter().map(|id| flights.unrecorded(id).is_some()).collect();
        assert_eq!(kept, [false, true, true, true]);
        drop(owners);
        assert_eq!(flights.unrecorded.load(Ordering::Relaxed), 0);
    }
}
