//! How a write goes: wait for the one before it, look, evaluate, queue, wait for the batch.

use std::sync::Arc;

use bytes::Bytes;
use onceward_core::codec::{self, DecodeError};
use onceward_core::key::RecordId;
use onceward_core::mutant::{self, Mutant};
use onceward_core::record::{Micros, Record, State, Stored};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::oneshot;

use super::Inner;
use super::apply::{Change, Failure, Ticket};
use super::index::{Open, Slot, half, seconds};
use super::tenants::tag_of;
use crate::log::{self, AppendError, Frame};
use crate::{Kind, StoreError};

/// What is there of an id.
pub(super) enum There {
    /// No record, or one that has ended; its block where it is still at hand.
    None(Option<Stored>),
    /// One in flight or unknown.
    Open(Open),
    /// A settled one.
    Settled(Box<Record>),
}

impl There {
    /// The record, read where it was not yet.
    pub(super) fn record(self) -> Result<Option<Box<Record>>, StoreError> {
        match self {
            Self::None(_) => Ok(None),
            Self::Open(open) => open.record().map(|record| Some(Box::new(record))).map_err(damaged),
            Self::Settled(record) => Ok(Some(record)),
        }
    }

    /// What a condition is held against.
    pub(super) fn stored(&self) -> Option<(Stored, State)> {
        match self {
            Self::None(_) => None,
            Self::Open(open) => Some((open.stored, open.state)),
            Self::Settled(record) => Some((record.stored, record.facts.state)),
        }
    }
}

pub(super) fn damaged(error: DecodeError) -> StoreError {
    StoreError::not_applied(Kind::Damaged(error.to_string())).because(error)
}

/// What a verb makes of what is there.
pub(super) enum Evaluated<R> {
    /// Nothing is written.
    Answer(R),
    /// An open record's lease runs on: only in memory.
    Renew(Stored, R),
    /// The record becomes another, whose bytes are in the buffer.
    Put(Stored, State, R),
    /// There is none any more.
    Remove(R),
}

/// A verb: what it makes of the record that is there at a time. The buffer keeps what it held the last time.
pub(super) trait Step<R>: Fn(&Inner, There, Micros, &mut Vec<u8>) -> Result<Evaluated<R>, StoreError> {}
impl<R, F: Fn(&Inner, There, Micros, &mut Vec<u8>) -> Result<Evaluated<R>, StoreError>> Step<R> for F {}

/// Where one try of a write has come to.
enum Tried<R> {
    /// It is over.
    Over(Result<R, StoreError>),
    /// Its frame is queued.
    Queued(oneshot::Receiver<Result<(), Failure>>, R),
    /// Another one is on its way, or the queue is full: try again after this.
    Wait(OwnedNotified),
    /// A settled record must be read first.
    Read(Slot),
}

impl Inner {
    /// Evaluates `step` on the record that is there and makes what it says durable.
    ///
    /// Dropped before its frame is queued, nothing has happened; after that the write goes on without its caller.
    pub(super) async fn write<R>(&self, id: RecordId, mut bytes: Vec<u8>, step: impl Step<R>) -> Result<R, StoreError> {
        let mut read = None;
        loop {
            match self.try_write(&id, &mut bytes, &step, read.take()) {
                Tried::Over(result) => return result,
                Tried::Queued(done, answer) => return self.outcome(done.await).map(|()| answer),
                Tried::Wait(event) => event.await,
                Tried::Read(slot) => read = self.read(&slot, Some(&id))?.map(|(_, record)| (slot, record)),
            }
        }
    }

    fn try_write<R>(
        &self,
        id: &RecordId,
        bytes: &mut Vec<u8>,
        step: &impl Step<R>,
        read: Option<(Slot, Record)>,
    ) -> Tried<R> {
        let mut shard = self.state.index.of(&half(id));
        if let Some(pending) = shard.pending.get_mut(id) {
            return Tried::Wait(Arc::clone(pending.get_or_insert_default()).notified_owned());
        }
        let now = self.state.clock.now();
        let there = if let Some(open) = shard.open.get(id) {
            There::Open(open.clone())
        } else {
            match shard.get(&half(id)).filter(|slot| !slot.has_ended(now)) {
                None => There::None(None),
                Some(slot) => match read {
                    Some((of, record)) if of == slot && record.is_expired(now) => There::None(Some(record.stored)),
                    Some((of, record)) if of == slot => There::Settled(Box::new(record)),
                    _ => return Tried::Read(slot),
                },
            }
        };
        let (change, answer) = match step(self, there, now, bytes) {
            Err(error) => return Tried::Over(Err(error)),
            Ok(Evaluated::Answer(answer)) => return Tried::Over(Ok(answer)),
            Ok(Evaluated::Renew(stored, answer)) => {
                if let Some(open) = shard.open.get_mut(id) {
                    open.stored = stored;
                    self.state.count_claim(open, true);
                }
                drop(shard);
                self.state.watchers.wake(id);
                return Tried::Over(Ok(answer));
            }
            Ok(Evaluated::Remove(answer)) => {
                bytes.clear();
                (Change::Remove, answer)
            }
            Ok(Evaluated::Put(stored, state, answer)) => {
                self.state.raise_mark(stored.fence);
                self.log.raise_fence_mark(stored.fence.0);
                let is_open = stored.keep_until == Micros::ZERO;
                let open =
                    is_open.then(|| Open { stored, state, bytes: Bytes::copy_from_slice(bytes), counted: false });
                if mutant::is(Mutant::ClaimNotDurable)
                    && let Some(open) = &open
                {
                    shard.open.insert(*id, open.clone());
                    drop(shard);
                    self.state.watchers.wake(id);
                    return Tried::Over(Ok(answer));
                }
                (Change::Put { keep_until_s: seconds(stored.keep_until), tenant: tag_of(bytes), open }, answer)
            }
        };
        let (reply, done) = oneshot::channel();
        let room = Arc::clone(&self.state.room).notified_owned();
        let frame = Frame { kind: change.kind(), id: &id.0, keep_until_s: change.keep_until_s(), payload: bytes };
        match self.log.append(&frame, Ticket { id: *id, change, reply: Some(reply) }) {
            Ok(()) => {
                shard.pending.insert(*id, None);
                Tried::Queued(done, answer)
            }
            Err(AppendError::QueueFull) => Tried::Wait(room),
            Err(error @ (AppendError::TooLarge | AppendError::Closed)) => {
                Tried::Over(Err(StoreError::not_applied(Kind::Unavailable).because(error)))
            }
        }
    }

    fn outcome(&self, told: Result<Result<(), Failure>, oneshot::error::RecvError>) -> Result<(), StoreError> {
        match told {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Failure::Unknown(error))) => Err(StoreError::unknown(Kind::Unavailable).because(Shared(error))),
            Ok(Err(Failure::NotWritten(why @ log::NotWritten::Full))) => {
                Err(StoreError::not_applied(Kind::Full).because(why))
            }
            Ok(Err(Failure::NotWritten(why))) => Err(StoreError::not_applied(Kind::Unavailable).because(why)),
            // The store was torn down between the queue and the answer.
            Err(error) => Err(StoreError::unknown(Kind::Unavailable).because(error)),
        }
    }

    /// Copies a record as it stands to the log's end, so that its segment can be dropped. Does nothing where it has
    /// changed, is being written, or the queue is full.
    pub(super) fn move_on(&self, slot: &Slot) {
        let (id, mut payload) = match self.log.read(slot.position(), slot.len(), &slot.id) {
            Ok(frame) => (RecordId(frame.id), frame.payload),
            Err(log::ReadError::Damaged { .. }) => {
                // It stays damaged: an empty frame under its name reads as one.
                let mut id = [0; 32];
                id.iter_mut().zip(slot.id).for_each(|(to, from)| *to = from);
                (RecordId(id), Bytes::new())
            }
            Err(_) => return,
        };
        debug_assert!(codec::decode(&Bytes::new()).is_err(), "an empty record is a damaged one");
        if let Some(bare) = codec::without_ended_body(&payload, self.state.clock.now()) {
            payload = bare.into();
        }
        let shard = self.state.index.of(&slot.id);
        if shard.pending.contains_key(&id) || shard.get(&slot.id) != Some(*slot) {
            return;
        }
        let change = Change::Move { from: *slot };
        let frame = Frame { kind: change.kind(), id: &id.0, keep_until_s: slot.keep_until_s, payload: &payload };
        let _ = self.log.append(&frame, Ticket { id, change, reply: None });
    }
}

/// An error that several callers get.
#[derive(Debug, thiserror::Error)]
#[error("the log could not be written")]
struct Shared(#[source] Arc<std::io::Error>);
