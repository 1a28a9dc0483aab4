//! What the conformance list does past the store: moves the servers' clock, reads and writes bytes.

use bytes::Bytes;
use onceward_core::{key::RecordId, record::Micros};
use redis::Value;

use super::{Redis, key, link::CallError};
use crate::StoreError;

impl Redis {
    /// Moves the clock that scripts read by so many microseconds, back where negative; of a store that was opened with
    /// `clock_moves`.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn turn_clock(&self, micros: i64) -> Result<(), StoreError> {
        for partition in key::partitions() {
            let name = key::moved(partition);
            let get = redis::cmd("GET").arg(&name).take();
            let before = match self.shared.side.call(&get).await.map_err(CallError::read)? {
                Value::BulkString(bytes) => bytes.try_into().map(i64::from_be_bytes).unwrap_or_default(),
                _ => 0,
            };
            // Two's complement, as the scripts add it.
            let moved = before.wrapping_add(micros).to_be_bytes();
            let set = redis::cmd("SET").arg(&name).arg(&moved[..]).take();
            self.shared.side.call(&set).await.map_err(CallError::step)?;
        }
        Ok(())
    }

    /// Fixes the clock that scripts of a journal's front read in this partition.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn fix_clock(&self, partition: u16, at: Micros) -> Result<(), StoreError> {
        let set = redis::cmd("SET").arg(key::journaled(partition, "clock")).arg(&at.0.to_be_bytes()[..]).take();
        self.shared.side.call(&set).await.map(|_| ()).map_err(CallError::step)
    }

    /// The bytes that are kept of a record.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn raw(&self, id: RecordId) -> Result<Option<Bytes>, StoreError> {
        let get = redis::cmd("GET").arg(key::Keys::of(&id).record()).take();
        Ok(match self.shared.side.call(&get).await.map_err(CallError::read)? {
            Value::BulkString(bytes) => Some(bytes.into()),
            _ => None,
        })
    }

    /// Puts others in their place.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn overwrite_raw(&self, id: RecordId, bytes: &[u8]) -> Result<(), StoreError> {
        let set = redis::cmd("SET").arg(key::Keys::of(&id).record()).arg(bytes).arg("KEEPTTL").take();
        self.shared.side.call(&set).await.map(|_| ()).map_err(CallError::step)
    }
}
