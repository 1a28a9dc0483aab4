//! Facts of the journal as columns, and rows of it as facts.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use onceward_core::{
    codec::{self, DecodeError},
    key::RecordId,
    record::Record,
};
use tokio_postgres::types::Type;

use super::row::{Parameter, big};
use crate::{
    Kind, StoreError,
    journaled::{Fact, Order},
};

/// Facts, a column each: of each key the largest, in the order in which rows are locked.
#[derive(Debug, Default)]
pub(super) struct Facts {
    partition: Vec<i16>,
    id: Vec<Vec<u8>>,
    fence: Vec<i64>,
    rank: Vec<i16>,
    step: Vec<i64>,
    keep_until: Vec<i64>,
    record: Vec<Vec<u8>>,
}

impl Facts {
    pub(super) fn of(facts: &[Fact]) -> Self {
        let mut largest: BTreeMap<&RecordId, &Record> = BTreeMap::new();
        for Fact { id, record } in facts {
            let held = largest.entry(id).or_insert(record);
            if Order::of(held) < Order::of(record) {
                *held = record;
            }
        }
        let mut columns = Self::default();
        for (id, record) in largest {
            let Order { fence, rank, step, .. } = Order::of(record);
            columns.partition.push(small(id.partition()));
            columns.id.push(id.0.to_vec());
            columns.fence.push(big(fence.0));
            columns.rank.push(i16::from(rank));
            columns.step.push(i64::from(step));
            columns.keep_until.push(big(record.stored.keep_until.0));
            let mut bytes = Vec::new();
            codec::encode(record, &mut bytes);
            columns.record.push(bytes);
        }
        columns
    }

    /// In the order of the functions in SQL.
    pub(super) fn parameters(&self) -> [Parameter<'_>; 7] {
        [
            (&self.partition, Type::INT2_ARRAY),
            (&self.id, Type::BYTEA_ARRAY),
            (&self.fence, Type::INT8_ARRAY),
            (&self.rank, Type::INT2_ARRAY),
            (&self.step, Type::INT8_ARRAY),
            (&self.keep_until, Type::INT8_ARRAY),
            (&self.record, Type::BYTEA_ARRAY),
        ]
    }
}

/// A partition as its column has it: there are 256.
pub(super) fn small(partition: u16) -> i16 {
    i16::try_from(partition).unwrap_or(i16::MAX)
}

/// A record of the journal.
pub(super) fn record(bytes: &[u8]) -> Result<Record, StoreError> {
    codec::decode(&Bytes::copy_from_slice(bytes)).map_err(|error| {
        let kind = match error {
            DecodeError::Newer(_) | DecodeError::Flags(_) => Kind::Newer(error.to_string()),
            _ => Kind::Damaged(error.to_string()),
        };
        StoreError::not_applied(kind).because(error)
    })
}

/// A row of the journal; `None` where its id is none.
pub(super) fn fact(id: &[u8], bytes: &[u8]) -> Result<Option<Fact>, StoreError> {
    let Ok(id) = id.try_into() else { return Ok(None) };
    Ok(Some(Fact { id: RecordId(id), record: Arc::new(record(bytes)?) }))
}
