//! How a session ends whose process is gone for certain, since this one has its spool: what it left there is shipped in its
//! name, and nobody has to wait until it is missed, or for the Redis that granted to it.
//!
//! It sends nothing any more, and all that it sent is in the spool. What it wrote into Redis last may not be there: that is
//! drained as in a retirement where its Redis is still the one of its views.

use std::sync::Arc;

use onceward_core::mutant::{self, Mutant};
use tokio::time::sleep;

use super::{At, LastActive, Left, Mark, Member, Shared, TICK, Timeline, retire};
use crate::StoreError;

/// So many facts are read and shipped at a time.
const SHIPPED_MAX: usize = 64;

/// Ends the sessions that left something, one after the other; tries each until it is over.
pub(super) async fn settle(shared: Arc<Shared>) {
    // On which timeline the first one's facts are past losing.
    let mut kept_on = None;
    while let Some(left) = shared.owed.left().filter(|_| !shared.is_over()) {
        match one(&shared, &left, &mut kept_on).await {
            Ok(true) => {
                kept_on = None;
                tracing::debug!(session = ?left.session, facts = left.facts.len(), "an earlier session is settled");
                // Another session of this process may have been about the same.
                if shared.owed.is_settled(&left) {
                    let places: Vec<_> = left.facts.iter().map(|(_, place)| *place).collect();
                    shared.shipments.spool().release(&places);
                }
                continue;
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "what an earlier session left could not be settled"),
        }
        sleep(TICK).await;
    }
}

/// Whether the session is over.
async fn one(shared: &Shared, left: &Left, kept_on: &mut Option<Timeline>) -> Result<bool, StoreError> {
    let seen = shared.journal.look(shared.session).await?;
    if !matches!(seen.me, Member::Live { .. }) {
        return Ok(false);
    }
    // Once: what is past losing on this timeline stays so, however often the rest is tried.
    if *kept_on != Some(seen.timeline) {
        if !is_kept(shared, left, seen.timeline).await? {
            return Ok(false);
        }
        *kept_on = Some(seen.timeline);
    }
    let (session, target, timeline) = (shared.session, left.session, seen.timeline);
    let mut has_gone = true;
    if let Some(views) = shared.journal.retire(session, target, timeline).await? {
        has_gone = false;
        for view in &views {
            if retire::drain(shared, target, timeline, view).await? {
                continue;
            }
            if !is_elsewhere(shared, view).await? {
                return Ok(false);
            }
            has_gone = true;
        }
        if !has_gone {
            return shared.journal.retired(target, timeline, &views).await;
        }
    }
    if !shared.journal.leave(target, timeline).await? {
        return Ok(false);
    }
    shared.amiss.notify_one();
    if has_gone {
        sweep_up(shared).await;
    }
    Ok(true)
}

/// Ships what it left, in its name: whether that is past losing.
async fn is_kept(shared: &Shared, left: &Left, timeline: Timeline) -> Result<bool, StoreError> {
    if mutant::is(Mutant::LeftNotShipped) {
        return Ok(true);
    }
    let mut last: Mark = 0;
    for some in left.facts.chunks(SHIPPED_MAX) {
        let mut facts = Vec::with_capacity(some.len());
        for (id, place) in some {
            facts.push(shared.shipments.spool().read(*id, *place).await?);
        }
        let Some(mark) = shared.journal.ship(left.session, timeline, &facts).await? else { return Ok(false) };
        last = last.max(mark);
    }
    loop {
        let seen = shared.journal.look(shared.session).await?;
        if seen.timeline != timeline {
            return Ok(false);
        }
        if seen.kept >= last {
            return Ok(true);
        }
        sleep(TICK).await;
    }
}

/// Whether the Redis of a view is not there any more.
async fn is_elsewhere(shared: &Shared, view: &LastActive) -> Result<bool, StoreError> {
    let sights = shared.front.look(&[view.partition]).await?;
    let is_it = |is_primary, incarnation, of| is_primary && incarnation == view.incarnation && of == view.view;
    Ok(sights.iter().any(|(_, sight)| !is_it(sight.is_primary, sight.incarnation, sight.view)))
}

/// What it wrote last may be in Redis alone: it is shipped like what this session writes.
async fn sweep_up(shared: &Shared) {
    for (guard, partition) in shared.guards().iter().zip(0..) {
        while !shared.is_over() {
            if let Some(serving) = guard.serving() {
                let session = shared.session;
                let at = At { partition, view: serving.view, incarnation: serving.incarnation, session };
                if let Ok(Some(dirty)) = shared.front.dirty(&at).await {
                    dirty.into_iter().for_each(|fact| shared.shipments.queue(fact));
                    break;
                }
            }
            sleep(TICK).await;
        }
    }
}
