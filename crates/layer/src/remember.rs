//! Answers that this process holds for the time in which the store does not answer.
//!
//! What the store said of a settled key is remembered here: what it was, and when. It is asked for only after the store
//! did not answer the very request that wants it, so that it is never shown where the store could say otherwise. Three
//! things keep it from being shown where the store would have said otherwise:
//!
//! - Whatever this process writes to a key, and whatever else it sees of one, forgets the answer before. A write forgets
//!   where it begins and where it ends, and what a call saw is remembered only if nothing was forgotten since that call began:
//!   two calls may be answered in another order than the store took them in.
//! - What other processes forget is told by the store, where it can.
//! - What the store did not confirm for [`CONFIRMED_WITHIN`] is not used, and nothing is beyond the record's own end.
//!
//! Memory is bounded in bytes. What was confirmed longest ago goes first.

use std::{hash::BuildHasherDefault, time::Duration};

use hashlink::LinkedHashMap;
use onceward_core::{
    key::RecordId,
    record::{Fence, Micros, Record, Revision, State},
};
use tokio::time::Instant;

use crate::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    wait::IdHasher,
};

/// The revision of an answer that is given from here; those of stores never come to it.
pub(crate) const REMEMBERED: Revision = Revision(u64::MAX);
/// For how long an answer counts that the store has not confirmed again.
pub(crate) const CONFIRMED_WITHIN: Duration = Duration::from_secs(10 * 60);

/// Each has its own lock and an even share of the bytes.
const SHARDS: usize = 8;
/// One answer takes at most this part of all bytes.
const ANSWER_SHARE: usize = 16;
/// So many keys share a count of what was forgotten: a call that runs while one of them is forgotten is not remembered.
const FORGOTTEN: usize = 1024;
/// What a record takes beside its texts.
const OVERHEAD_BYTES: usize = 1024;
const FIELD_OVERHEAD_BYTES: usize = 64;

/// The answers of the store that this process remembers.
#[derive(Debug)]
pub(crate) struct Remembered {
    shards: [Mutex<Shard>; SHARDS],
    /// How often something was forgotten, for each group of keys.
    forgotten: Box<[AtomicU64]>,
    bytes_max: AtomicUsize,
}

type Answers = LinkedHashMap<RecordId, Answer, BuildHasherDefault<IdHasher>>;

#[derive(Debug, Default)]
struct Shard {
    /// The one confirmed longest ago first.
    answers: Answers,
    bytes: usize,
}

#[derive(Debug)]
struct Answer {
    record: Record,
    bytes: usize,
    confirmed: Said,
}

impl Shard {
    fn remove(&mut self, id: &RecordId) -> Option<Answer> {
        let gone = self.answers.remove(id)?;
        self.bytes -= gone.bytes;
        Some(gone)
    }
}

/// What the store's clock said, and when it was asked: the store's time is estimated from there, and never too early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) now: Micros,
    pub(crate) asked: Instant,
}

/// Drawn before the store is called: what it then says counts if nothing was forgotten meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

impl Remembered {
    /// Within so many bytes; nothing where they are zero.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let forgotten = (0..FORGOTTEN).map(|_| AtomicU64::new(0)).collect();
        Self { shards: Default::default(), forgotten, bytes_max: AtomicUsize::new(bytes_max) }
    }

    /// From here on within so many bytes; what is too much now goes as others come.
    pub(crate) fn set_bytes_max(&self, bytes_max: usize) {
        self.bytes_max.store(bytes_max, Ordering::SeqCst);
        if bytes_max == 0 {
            self.forget_all();
        }
    }

    /// Whether nothing is ever remembered.
    pub(crate) fn is_off(&self) -> bool {
        self.bytes_max.load(Ordering::Relaxed) == 0
    }

    /// Before the store is called about `id`.
    pub(crate) fn ticket(&self, id: &RecordId) -> Ticket {
        Ticket(self.forgotten(id).load(Ordering::SeqCst))
    }

    /// The store said that this is the record of `id`: it is remembered where it is settled, and forgotten where it is
    /// not. Returns how many others had to go for it.
    pub(crate) fn saw(&self, ticket: Ticket, id: &RecordId, record: &Record, said: Said) -> usize {
        if !is_settled(record) {
            self.forget(id);
            return 0;
        }
        {
            let mut shard = self.shard(id);
            if let Some(answer) = shard.answers.get_mut(id)
                && version(&answer.record) == version(record)
            {
                // Of two calls the one that was asked later knows more.
                if answer.confirmed.asked < said.asked {
                    answer.confirmed = said;
                    shard.answers.to_back(id);
                }
                return 0;
            }
        }
        self.keep(ticket, id, record.clone(), said, false)
    }

    /// A write of this process made this of the record of `id`, and `ticket` was drawn once everything before it was
    /// forgotten. Returns how many others had to go for it.
    pub(crate) fn wrote(&self, ticket: Ticket, id: &RecordId, record: Record, said: Said) -> usize {
        if !is_settled(&record) {
            self.forget(id);
            return 0;
        }
        self.keep(ticket, id, record, said, true)
    }

    fn keep(&self, ticket: Ticket, id: &RecordId, record: Record, said: Said, is_new: bool) -> usize {
        let (bytes, bytes_max) = (bytes_of(&record), self.bytes_max.load(Ordering::Relaxed));
        if bytes > bytes_max / ANSWER_SHARE {
            self.forget(id);
            return 0;
        }
        // Let go outside of the lock.
        let mut gone = Vec::new();
        let mut shard = self.shard(id);
        // Under the lock, so that whoever forgets meanwhile finds it, or is found. What was asked before a write is over
        // with it.
        let count = self.forgotten(id);
        let forgotten = if is_new { count.fetch_add(1, Ordering::SeqCst) } else { count.load(Ordering::SeqCst) };
        if forgotten != ticket.0 {
            if is_new {
                shard.remove(id);
            }
            return 0;
        }
        let before = shard.answers.insert(*id, Answer { record, bytes, confirmed: said });
        shard.bytes = shard.bytes + bytes - before.as_ref().map_or(0, |answer| answer.bytes);
        while shard.bytes > bytes_max / SHARDS {
            let Some((_, oldest)) = shard.answers.pop_front() else { break };
            shard.bytes -= oldest.bytes;
            gone.push(oldest);
        }
        drop(shard);
        drop(before);
        gone.len()
    }

    /// Nothing is known of `id` any more, nor by what the store was asked before.
    pub(crate) fn forget(&self, id: &RecordId) {
        self.forgotten(id).fetch_add(1, Ordering::SeqCst);
        let gone = self.shard(id).remove(id);
        drop(gone);
    }

    /// Nothing is known of any key any more.
    pub(crate) fn forget_all(&self) {
        for count in &self.forgotten {
            count.fetch_add(1, Ordering::SeqCst);
        }
        for shard in &self.shards {
            let gone = std::mem::take(&mut *shard.lock().unwrap_or_else(PoisonError::into_inner));
            drop(gone);
        }
    }

    /// How many answers are remembered.
    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).answers.len()).sum()
    }

    /// The record of `id`, as the store confirmed it last, and the store's time now, as it is estimated. For a request
    /// that the store did not answer.
    pub(crate) fn recall(&self, id: &RecordId) -> Option<(Box<Record>, Micros)> {
        let shard = self.shard(id);
        let answer = shard.answers.get(id)?;
        let age = answer.confirmed.asked.elapsed();
        let now = answer.confirmed.now.plus(age);
        if age >= CONFIRMED_WITHIN || answer.record.is_expired(now) {
            return None;
        }
        let mut record = Box::new(answer.record.clone());
        record.stored.revision = REMEMBERED;
        Some((record, now))
    }

    fn forgotten(&self, id: &RecordId) -> &AtomicU64 {
        let [.., high, low] = id.0;
        #[expect(clippy::indexing_slicing, reason = "the index is taken modulo the length")]
        &self.forgotten[usize::from(u16::from_be_bytes([high, low])) % FORGOTTEN]
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.0;
        #[expect(clippy::indexing_slicing, reason = "the index is taken modulo the length")]
        self.shards[usize::from(first) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_settled(record: &Record) -> bool {
    matches!(record.facts.state, State::Completed | State::Failed)
}

/// Which of all that were ever under its key.
fn version(record: &Record) -> (Fence, Revision) {
    (record.stored.fence, record.stored.revision)
}

/// The memory that a record takes, about.
fn bytes_of(record: &Record) -> usize {
    let facts = &record.facts;
    let texts = facts.route.len() + facts.tenant.len() + facts.env.len() + facts.reason.len();
    let outcome = facts.outcome.as_ref().map_or(0, |outcome| {
        let fields = outcome.headers.iter().chain(&outcome.trailers);
        let fields = fields.map(|field| field.name.len() + field.value.len() + FIELD_OVERHEAD_BYTES);
        outcome.body.len() + fields.sum::<usize>()
    });
    OVERHEAD_BYTES + texts + facts.fields.len() * 8 + outcome
}

#[cfg(test)]
mod tests {
    use onceward_core::{
        outcome::Outcome,
        record::{ClaimId, SessionId, Stored},
        transition,
    };

    use super::*;

    const BYTES: usize = 1 << 20;
    const HOUR: Duration = Duration::from_secs(3600);

    fn id(number: u8) -> RecordId {
        RecordId([number; 32])
    }

    /// Of another body another record.
    fn completed(body: usize) -> Record {
        let mut facts = transition::place(ClaimId([1; 16]), SessionId([1; 16]));
        facts.state = State::Completed;
        facts.outcome = Some(Outcome { status: 201, body: vec![b'x'; body].into(), ..Outcome::default() });
        let keep_until = Micros(1).plus(HOUR);
        let stored = Stored { fence: Fence(5 + body as u64), revision: Revision(2), keep_until, ..Stored::default() };
        Record { stored, facts }
    }

    fn said() -> Said {
        Said { now: Micros(1), asked: Instant::now() }
    }

    fn remembers(all: &Remembered, number: u8) -> bool {
        all.recall(&id(number)).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn it_counts_for_as_long_as_the_store_has_confirmed_it_and_never_beyond_its_end() {
        let all = Remembered::new(BYTES);
        let record = completed(10);
        let saw = |record: &Record| all.saw(all.ticket(&id(1)), &id(1), record, said());
        saw(&record);
        let minute = Duration::from_secs(60);
        tokio::time::advance(CONFIRMED_WITHIN - minute).await;
        let (there, now) = all.recall(&id(1)).expect("confirmed");
        assert_eq!((now, there.stored.revision), (Micros(1).plus(CONFIRMED_WITHIN - minute), REMEMBERED));
        saw(&record);
        tokio::time::advance(CONFIRMED_WITHIN - minute).await;
        assert!(remembers(&all, 1), "confirmed again");
        tokio::time::advance(minute).await;
        assert!(!remembers(&all, 1));
        let mut ends = record;
        (ends.stored.revision, ends.stored.keep_until) = (Revision(3), Micros(1).plus(minute));
        saw(&ends);
        assert!(remembers(&all, 1));
        tokio::time::advance(minute).await;
        assert!(!remembers(&all, 1), "its retention is over");
    }

    #[tokio::test]
    async fn what_was_asked_before_something_was_forgotten_is_not_remembered() {
        let all = Remembered::new(BYTES);
        let (record, before) = (completed(10), all.ticket(&id(1)));
        all.saw(before, &id(1), &record, said());
        all.forget(&id(1));
        assert!(!remembers(&all, 1));
        all.saw(before, &id(1), &record, said());
        assert!(!remembers(&all, 1), "the store took it before it took what forgot");
        all.saw(all.ticket(&id(1)), &id(1), &record, said());
        assert!(remembers(&all, 1));
        let before = all.ticket(&id(1));
        all.forget_all();
        all.saw(before, &id(1), &record, said());
        assert!(!remembers(&all, 1));
    }

    #[tokio::test]
    async fn what_is_not_settled_forgets_and_another_answer_takes_the_place_of_the_one_before() {
        let all = Remembered::new(BYTES);
        let saw = |record: &Record| all.saw(all.ticket(&id(1)), &id(1), record, said());
        for state in [State::InFlight, State::NotExecuted, State::Erased] {
            saw(&completed(10));
            assert!(remembers(&all, 1));
            let mut record = completed(10);
            record.facts.state = state;
            saw(&record);
            assert!(!remembers(&all, 1), "{state:?}");
        }
        saw(&completed(10));
        let other = completed(20);
        saw(&other);
        let (there, _) = all.recall(&id(1)).expect("the other");
        assert_eq!((there.stored.fence, there.facts), (other.stored.fence, other.facts));
    }

    #[tokio::test]
    async fn the_oldest_go_first_and_what_is_large_does_not_come_in() {
        let all = Remembered::new(BYTES);
        let saw = |number: u8, body| all.saw(all.ticket(&id(number)), &id(number), &completed(body), said());
        // All in one shard: there is room for two.
        let share = BYTES / ANSWER_SHARE - 2 * OVERHEAD_BYTES;
        assert_eq!([saw(8, share), saw(16, share), saw(8, share), saw(24, share)], [0, 0, 0, 1]);
        assert_eq!([8, 16, 24].map(|number| remembers(&all, number)), [true, false, true], "confirmed longest ago");
        saw(8, BYTES / ANSWER_SHARE);
        assert!(!remembers(&all, 8), "what is there now is too large, and what was is over");
        let bytes: usize = all.shards.iter().map(|shard| shard.lock().unwrap().bytes).sum();
        assert_eq!(bytes, share + OVERHEAD_BYTES);
        all.set_bytes_max(0);
        saw(24, 1);
        assert!(!remembers(&all, 24) && all.is_off());
    }
}
