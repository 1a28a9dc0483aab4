//! How the journal is rid of what has ended (A10).
//!
//! A row that is gone must not come back as less than it was: as a claim that nobody settles. So each partition has a
//! horizon: all that was said of keys up to that fence is in the journal, or was there and has ended. Above it nothing is
//! swept. Up to it a claim that is shipped late makes no row, and one that is found in Redis and has none is over.
//!
//! How high it may be is seen in Redis: of the view that serves, what may not be in the journal yet is in the set of what is
//! dirty, and what was granted before is in the journal, since all have acknowledged the view.

use std::time::Duration;

use futures_util::future::join_all;
use onceward_core::{
    mutant::{self, Mutant},
    record::Fence,
};

use super::{At, Horizon, Journaled, Shared, Sight, Timeline, outbox};
use crate::{StoreError, Swept};

/// So many horizons are raised in one sweep.
const RAISED_MAX: usize = 16;
/// What is dirty although its fence is so far behind is shipped here: its own process may wait for an end that is far off, or
/// not know that it has it.
const SHIPPED_AFTER: Duration = Duration::from_secs(10);
/// So many facts go in one shipment.
const SHIPPED_MAX: usize = 64;

impl Journaled {
    /// As [`Store::sweep`](crate::Store::sweep), of the journal; Redis removes by itself.
    ///
    /// # Errors
    /// Where the journal does not answer.
    pub async fn sweep(&self, limit: usize, waits: Duration) -> Result<Swept, StoreError> {
        let shared = &*self.shared;
        let (swept, mut above) = shared.journal.sweep(limit, waits).await?;
        above.truncate(RAISED_MAX);
        if above.is_empty() || shared.is_over() {
            return Ok(swept);
        }
        let timeline = shared.shipments.timeline();
        let sights = match shared.front.look(&above).await {
            Ok(sights) => sights,
            Err(error) => {
                tracing::debug!(%error, "no horizon can be raised while Redis is not reached");
                return Ok(swept);
            }
        };
        let asked = sights.iter().map(|(partition, sight)| horizon(shared, *partition, timeline, sight));
        let mut horizons: Vec<Horizon> = Vec::with_capacity(sights.len());
        for horizon in join_all(asked).await {
            match horizon {
                Ok(horizon) => horizons.extend(horizon),
                Err(error) => tracing::debug!(%error, "a partition's horizon could not be seen"),
            }
        }
        let left = limit.saturating_sub(usize::try_from(swept.removed).unwrap_or(usize::MAX));
        if horizons.is_empty() || shared.journal.raise(timeline, &horizons).await? == 0 || left == 0 {
            return Ok(swept);
        }
        let (then, _) = shared.journal.sweep(left, waits).await?;
        Ok(swept + then)
    }
}

/// How high a partition's horizon may be; `None` where this session is not in the view that serves, or that is not warm:
/// then Redis may have claims whose rows it has not seen.
async fn horizon(
    shared: &Shared,
    partition: u16,
    timeline: Timeline,
    sight: &Sight,
) -> Result<Option<Horizon>, StoreError> {
    let Some(serving) = shared.guard(partition)?.serving() else { return Ok(None) };
    if !sight.is_primary || !sight.is_warm || (sight.view, sight.incarnation) != (serving.view, serving.incarnation) {
        return Ok(None);
    }
    let at = At { partition, view: serving.view, incarnation: serving.incarnation, session: shared.session };
    // What is granted from here on is above the sight's mark.
    let Some(dirty) = outbox::dirty(shared, &at).await? else { return Ok(None) };
    let old = sight.mark.0.saturating_sub(u64::try_from(SHIPPED_AFTER.as_micros()).unwrap_or(u64::MAX));
    let (old, young): (Vec<_>, Vec<_>) = dirty.into_iter().partition(|fact| fact.record.stored.fence.0 < old);
    for facts in old.chunks(SHIPPED_MAX) {
        if shared.journal.ship(shared.session, timeline, facts).await?.is_none() {
            return Ok(None);
        }
    }
    let below_young = young.iter().map(|fact| fact.record.stored.fence.0.saturating_sub(1)).min();
    let below_young = below_young.filter(|_| !mutant::is(Mutant::HorizonTooHigh));
    let fence = Fence(below_young.unwrap_or(u64::MAX).min(sight.mark.0));
    Ok(Some(Horizon { partition, view: serving.view, fence }))
}
