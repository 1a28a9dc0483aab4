//! Records that the store lost while their requests ran: made anew, since an answer that is known is worth keeping.
//!
//! Without it the client of such a request would be told that its claim was lost, come again, and be the second to run.

use std::time::Duration;

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, State},
    transition::Write as Transition,
};
use onceward_store::{Insert, Store, StoreError, Write};

/// Between the record and what is written into it.
const LEASE: Duration = Duration::from_secs(10);

/// What a holder's write came to; where it found no record, and the store has lost some since the claim, the record is
/// made again and written to. Somebody else's is left as it is. `facts` are the claim's.
pub(crate) async fn over_a_loss(
    store: &dyn Store,
    id: RecordId,
    write: &Transition,
    facts: &Facts,
    result: Result<Write, StoreError>,
) -> Result<Write, StoreError> {
    let Ok(Write::Lost { record, .. }) = &result else { return result };
    // It may have been made anew before, by the renewal of its lease or by a write that failed after that.
    let made = record.as_ref().filter(|record| is_own(&record.facts, facts)).map(|record| record.stored.fence);
    if (record.is_some() && made.is_none()) || !has_lost_since(store, facts.claimed_at) {
        return result;
    }
    match (write, made) {
        (Transition::Remove(_), None) => result,
        (Transition::Remove(_), Some(fence)) => store.remove(id, Expect::Holder(fence)).await,
        (Transition::Replace(write), Some(fence)) => under(store, id, write, fence).await,
        (Transition::Replace(write), None) => match claim(store, id, facts, LEASE).await? {
            None => result,
            Some(Insert::Inserted { fence, .. }) => under(store, id, write, fence).await,
            Some(Insert::Existing { record, now }) => Ok(Write::Lost { record: Some(record), now }),
        },
    }
}

async fn under(store: &dyn Store, id: RecordId, write: &Replacement, fence: Fence) -> Result<Write, StoreError> {
    store.replace(id, &Replacement { expect: Expect::Holder(fence), ..write.clone() }).await
}

/// Makes the record of a claim anew, where the store has lost some since: in flight, as it was. One that is there by then
/// is somebody else's.
///
/// # Errors
/// Where the store does not answer.
pub(crate) async fn claim(
    store: &dyn Store,
    id: RecordId,
    facts: &Facts,
    lease: Duration,
) -> Result<Option<Insert>, StoreError> {
    if !has_lost_since(store, facts.claimed_at) {
        return Ok(None);
    }
    let facts = Facts { state: State::InFlight, settled_at: Micros::ZERO, outcome: None, ..facts.clone() };
    Ok(Some(match store.insert(id, &facts, lease).await? {
        Insert::Existing { record, now } if is_own(&record.facts, &facts) => {
            Insert::Inserted { fence: record.stored.fence, now }
        }
        inserted => {
            tracing::warn!(record = %id.short(), "the store lost the record of a request that runs");
            inserted
        }
    }))
}

fn is_own(there: &Facts, ours: &Facts) -> bool {
    there.claim_id == ours.claim_id && there.state == State::InFlight
}

/// Whether a loss was noticed after a claim was made; of a claim whose time is not known nothing is.
fn has_lost_since(store: &dyn Store, claimed_at: Micros) -> bool {
    let Some(cache) = store.stats().cache else { return false };
    claimed_at != Micros::ZERO && cache.last.iter().any(|loss| loss.to >= claimed_at)
}
