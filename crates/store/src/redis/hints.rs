//! Hints: what another store says of settled records, so that it need not be asked again.
//!
//! A hint never grants. It is shown only while the servers are those at which it was written down: it carries the
//! partition's epoch as it was *before* the other store was asked, so that nothing comes back that was ended and then lost
//! with the word that ended it. What is ended leaves a word behind for as long as a late hint could count.

use std::{sync::Arc, time::Duration};

use onceward_core::{
    key::RecordId,
    record::{Fence, Micros, Record, Revision},
};
use redis::Value;

use super::{Redis, incarnation::goes_on, key::Keys, link::CallError, script::HINT, step::Epoch, upkeep, value};
use crate::{Kind, StoreError};

/// Epoch, fence, revision, and when the answer's body ends.
const HEAD_BYTES: usize = 16 + 8 + 8 + 8;

/// When another store was asked, by what Redis has lost since.
#[derive(Clone, Copy, Debug)]
pub struct AsOf(Epoch);

/// What came of keeping a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It, or a later word, is there.
    Done,
    /// Redis has lost records since the other store was asked.
    Lost,
}

impl Redis {
    /// Now, for a hint of what another store is about to be asked.
    #[must_use]
    pub fn as_of(&self, id: &RecordId) -> AsOf {
        AsOf(self.shared.incarnations.epoch(id.partition()))
    }

    /// The hint of a settled record, unless there is none to show. Whether its retention is over is the caller's to say.
    ///
    /// # Errors
    /// Where Redis does not answer, or what is there cannot be read.
    pub async fn hint(&self, id: RecordId) -> Result<Option<Record>, StoreError> {
        let keys = Keys::of(&id);
        let epoch = self.shared.incarnations.epoch(keys.partition);
        let get = redis::cmd("MGET").arg(keys.marker()).arg(&keys.hint()[..]).take();
        let Value::Array(found) = self.shared.link.call(&get).await.map_err(CallError::read)? else { return Ok(None) };
        let [marker, hint] = &*found else { return Ok(None) };
        if !matches!(marker, Value::BulkString(marker) if is_of(marker, &epoch)) {
            // What was lost is told there; then the epoch is known. A hint is not waited for as long as a look may take, and
            // one that is begun is to come to its end: else none ever would.
            let (shared, partition) = (Arc::clone(&self.shared), keys.partition);
            let look = async move { upkeep::unmarked(&shared, partition, epoch).await };
            let _lost = tokio::spawn(look).await;
            return Ok(None);
        }
        let Value::BulkString(hint) = hint else { return Ok(None) };
        let Some((head, record)) = hint.split_at_checked(HEAD_BYTES).filter(|(_, record)| !record.is_empty()) else {
            return Ok(None);
        };
        if !is_of(head, &epoch) {
            return Ok(None);
        }
        let mut record = value::unpack(record.to_vec(), None)?;
        let until = head.last_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
        if let Some(outcome) = &mut record.facts.outcome {
            outcome.body_until = Micros(until);
        }
        Ok(Some(record))
    }

    /// Keeps a hint of `record`, which is settled, for `keep`. Where Redis lost records since `as_of`, it does not.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn keep_hint(
        &self,
        id: RecordId,
        mut record: Record,
        as_of: AsOf,
        keep: Duration,
    ) -> Result<(), StoreError> {
        // In one piece, which ends as a whole.
        let until = record.facts.outcome.as_mut().map(|outcome| std::mem::take(&mut outcome.body_until));
        let mut hint = head(as_of.0, record.stored.fence, record.stored.revision, until.unwrap_or_default());
        hint.extend_from_slice(&value::pack(&record.facts).with(&record.stored));
        self.say_hint(id, as_of.0, &hint, keep).await.map(|_| ())
    }

    /// Ends the hint of a record up to this fence and revision, and keeps late ones out for `keep`.
    ///
    /// # Errors
    /// Where Redis does not answer: a hint may still be there.
    pub async fn end_hint(
        &self,
        id: RecordId,
        fence: Fence,
        revision: Revision,
        keep: Duration,
    ) -> Result<(), StoreError> {
        let partition = id.partition();
        let epoch = self.shared.incarnations.epoch(partition);
        if self.say_hint(id, epoch, &head(epoch, fence, revision, Micros::ZERO), keep).await? == Kept::Done {
            return Ok(());
        }
        // As above; then the word counts.
        let _lost = upkeep::unmarked(&self.shared, partition, epoch).await;
        let epoch = self.shared.incarnations.epoch(partition);
        match self.say_hint(id, epoch, &head(epoch, fence, revision, Micros::ZERO), keep).await? {
            Kept::Done => Ok(()),
            Kept::Lost => Err(StoreError::unknown(Kind::Incarnation)),
        }
    }

    async fn say_hint(&self, id: RecordId, epoch: Epoch, hint: &[u8], keep: Duration) -> Result<Kept, StoreError> {
        let keys = Keys::of(&id);
        let after = keep.as_millis().max(1).to_string();
        let (keys, arguments) = ([keys.marker(), &keys.hint()[..]], [&epoch[..], hint, after.as_bytes()]);
        match HINT.run(&self.shared.link, &keys, &arguments).await.map_err(CallError::step)? {
            Value::Int(9) => Ok(Kept::Lost),
            _ => Ok(Kept::Done),
        }
    }
}

/// Whether a marker or a hint is of this epoch, on whichever server its slot is.
fn is_of(bytes: &[u8], epoch: &Epoch) -> bool {
    bytes.first_chunk().is_some_and(|of| goes_on(of, epoch))
}

fn head(epoch: Epoch, fence: Fence, revision: Revision, until: Micros) -> Vec<u8> {
    [&epoch[..], &fence.0.to_be_bytes(), &revision.0.to_be_bytes(), &until.0.to_be_bytes()].concat()
}
