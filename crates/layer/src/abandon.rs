//! Claims that were never used: freed, so that their keys are new again.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use onceward_core::{
    claim::Claim,
    key::RecordId,
    record::{ClaimId, State},
    transition::{self, Write},
};
use onceward_store::{Store, StoreError};
use tokio::time::{Instant, sleep};

use crate::engine::Engine;

/// How long the background goes on trying.
const TRIES_FOR: Duration = Duration::from_secs(10 * 60);
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);

/// A claim of this request may stand although nobody said so: free it in the background. Nothing
/// was sent under it. A store that does not answer may apply the claim once it goes on, so that it is asked until then.
pub(crate) fn abandon_claim(engine: &Engine, id: RecordId, claim: &Claim) {
    let shared = Arc::clone(&engine.0);
    let claim_id = claim.facts().claim_id;
    shared.pace.left_behind();
    engine.0.tracker.spawn(async move {
        let give_up = Instant::now() + TRIES_FOR;
        let mut backoff = *BACKOFF.start();
        let mut absent = false;
        loop {
            sleep(shared.pace.free(Instant::now())).await;
            match free(&*shared.store, id, claim_id).await {
                Ok(Freed::Settled) => return,
                // One that is on its way yet is not there at the first look.
                Ok(Freed::Absent) if absent => return,
                Ok(Freed::Absent) => absent = true,
                Err(error) if Instant::now() >= give_up || shared.tracker.is_closed() => {
                    tracing::warn!(record = %id.short(), %error, "a claim that was never used could not be freed");
                    return;
                }
                Err(_) => {}
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(*BACKOFF.end());
        }
    });
}

/// What became of a claim that was never used.
enum Freed {
    /// It is gone, or the key is somebody else's.
    Settled,
    /// There is none.
    Absent,
}

/// Frees the record where it is still this claim.
async fn free(store: &dyn Store, id: RecordId, claim_id: ClaimId) -> Result<Freed, StoreError> {
    let Some(record) = store.get(id).await?.record else { return Ok(Freed::Absent) };
    if record.facts.claim_id == claim_id && record.facts.state == State::InFlight {
        match transition::release(&record.facts, record.stored.fence) {
            Write::Remove(expect) => store.remove(id, expect).await?,
            Write::Replace(write) => store.replace(id, &write).await?,
        };
    }
    Ok(Freed::Settled)
}
