//! The set of dirty records in Redis, from which a session is retired that is gone with its disk (2.7): what the journal has
//! for good is taken out of it.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::{
    At, Dirty, Shared, Snapshot,
    guard::{Guard, Serving},
};

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
