//! The table of effects in a PostgreSQL database, which need not be the one that records are kept in.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onceward_core::{key::RecordId, outcome::Outcome, record::Fence};
use tokio_postgres::{Row, types::Type};

use super::{
    address::Address,
    error::Failure,
    lane::{Identity, Lane},
    row::{big, unpacked},
};
use crate::{
    Answer, Kind, StoreError,
    effects::{Effect, EffectTable, Noted, Rows},
};

/// A look waits for a transaction that makes the effect just then; so many wait beside each other.
const LANES: usize = 4;

/// The effects of a database that has the schema `onceward`. Connections are made when they are first needed; a call
/// that takes longer than its deadline gives its connection up.
#[derive(Debug)]
pub struct PostgresEffects {
    lanes: Vec<Lane>,
}

impl PostgresEffects {
    /// Those of the database at `address`; nothing is asked of it yet. A look takes at most `deadline`.
    #[must_use]
    pub fn new(address: &Address, deadline: Duration) -> Self {
        let identity = Arc::new(Identity::default());
        Self { lanes: (0..LANES).map(|_| Lane::new(address, &identity, deadline)).collect() }
    }
}

impl EffectTable for PostgresEffects {
    fn look<'a>(&'a self, id: RecordId, fence: Fence, name: &'a str) -> Answer<'a, Option<Effect>> {
        Box::pin(async move {
            let lane = self.lanes.get(usize::from(id.0[0]) % LANES).ok_or_else(foreign)?;
            let (id, fence) = (id.0.as_slice(), big(fence.0));
            let rows = lane
                .write(
                    "SELECT made, status, headers, body FROM onceward.look($1, $2, $3)",
                    &[(&id, Type::BYTEA), (&fence, Type::INT8), (&name, Type::TEXT)],
                )
                .await
                .map_err(|failed| failed.error)?;
            rows.first().ok_or_else(foreign).and_then(read)
        })
    }

    fn noted<'a>(&'a self, ids: &'a [RecordId], name: &'a str, rows: Option<&'a Rows>) -> Answer<'a, Vec<Noted>> {
        Box::pin(async move {
            let lane = self.lanes.first().ok_or_else(foreign)?;
            let bytes: Vec<&[u8]> = ids.iter().map(|id| id.0.as_slice()).collect();
            let sql = "SELECT made, fence FROM onceward.noted($1, $2)";
            let found = lane.read(sql, &[(&bytes, Type::BYTEA_ARRAY), (&name, Type::TEXT)]).await?;
            let mut noted = found.iter().map(note).collect::<Result<Vec<_>, _>>()?;
            if noted.len() != ids.len() {
                return Err(foreign());
            }
            if let Some(rows) = rows {
                let found = lane.read(&rows_of(rows), &[(&bytes, Type::BYTEA_ARRAY)]).await?;
                for (noted, row) in noted.iter_mut().zip(&found) {
                    noted.has_row = row.try_get(0).ok();
                }
            }
            Ok(noted)
        })
    }
}

fn note(row: &Row) -> Result<Noted, StoreError> {
    let wrong = |error: tokio_postgres::Error| foreign().because(error);
    let fence: Option<i64> = row.try_get(1).map_err(wrong)?;
    let fence = fence.and_then(|fence| u64::try_from(fence).ok()).map(Fence);
    Ok(Noted { is_made: row.try_get(0).map_err(wrong)?, fence, has_row: None })
}

/// Of each id, in their order, whether the application's table has it.
fn rows_of(rows: &Rows) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let table: Vec<String> = rows.table.splitn(2, '.').map(quoted).collect();
    format!(
        "SELECT EXISTS (SELECT FROM {} t WHERE t.{} = i.id) FROM unnest($1) WITH ORDINALITY i (id, at) ORDER BY i.at",
        table.join("."),
        quoted(&rows.id_column)
    )
}

fn read(row: &Row) -> Result<Option<Effect>, StoreError> {
    let wrong = |error: tokio_postgres::Error| foreign().because(error);
    if !row.try_get::<_, bool>(0).map_err(wrong)? {
        return Ok(None);
    }
    let Some(status) = row.try_get::<_, Option<i32>>(1).map_err(wrong)? else {
        return Ok(Some(Effect { answer: None }));
    };
    let headers: &[u8] = row.try_get(2).map_err(wrong)?;
    let body: &[u8] = row.try_get(3).map_err(wrong)?;
    Ok(Some(Effect {
        answer: Some(Outcome {
            status: u16::try_from(status).map_err(|_| foreign())?,
            headers: unpacked(Bytes::copy_from_slice(headers)).ok_or_else(foreign)?,
            body: Bytes::copy_from_slice(body),
            ..Outcome::default()
        }),
    }))
}

fn foreign() -> StoreError {
    let said =
        "onceward.look answers otherwise than this program's: run `onceward migrate` on the database of the effects";
    StoreError::unknown(Kind::Unavailable).because(Failure::said(said))
}
