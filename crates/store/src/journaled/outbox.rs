//! The set of dirty records in Redis, from which a session is retired that is gone with its disk (2.7): what the journal has
//! for good is taken out of it.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use onceward_core::mutant::{self, Mutant};

use super::{
    At, Dirty, Fact, Outbox, Shared, Snapshot,
    guard::{Guard, Serving},
    is_of_before, is_same_claim,
};
use crate::StoreError;

/// What is in the journal for good is dirty no more.
pub(super) async fn clean(shared: &Shared, seen: &Snapshot) {
    let kept = shared.shipments.take_kept(seen.timeline, seen.kept);
    let mut by_partition: BTreeMap<u16, Vec<Dirty>> = BTreeMap::new();
    for dirty in kept {
        by_partition.entry(shared.partition_of(&dirty.id)).or_default().push(dirty);
    }
    let each = by_partition.into_iter().map(async |(partition, shipped)| {
        let serving = shared.guard(partition).ok().and_then(Guard::serving);
        let Some(Serving { view, incarnation }) = serving else { return };
        let at = At { partition, view, incarnation, session: shared.session };
        // What stays dirty costs a shipment that changes nothing when this session is retired.
        if let Err(error) = shared.front.clean(&at, &shipped).await {
            tracing::debug!(%error, partition, "shipped records stay noted as dirty");
        }
    });
    join_all(each).await;
}

/// What is dirty in a view and is to be in the journal; `None` where the server is another.
///
/// A claim of an earlier view is in the journal, or it was never used and may not come there: then one that was used may be
/// there, with a smaller fence. What has been said of it since is taken where the row is of the same claim.
pub(super) async fn dirty(shared: &Shared, at: &At) -> Result<Option<Vec<Fact>>, StoreError> {
    let Some(Outbox { before, facts }) = shared.front.dirty(at).await? else { return Ok(None) };
    let mut all = Vec::with_capacity(facts.len());
    for fact in facts {
        if is_of_before(&fact.record, before) && !mutant::is(Mutant::DeadClaimDrained) {
            let row = shared.journal.row(at.partition, at.view, fact.id).await?.flatten();
            if row.is_none_or(|row| !is_same_claim(&row, &fact.record)) {
                continue;
            }
        }
        all.push(fact);
    }
    Ok(Some(all))
}
