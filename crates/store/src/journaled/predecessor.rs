//! How a session ends whose process is gone for certain, since this one has its spool: what it left there is shipped in its
//! name, and nobody has to wait until it is missed, or for the Redis that granted to it.
//!
//! It sends nothing any more, and all that it sent is in the spool, if anything: then only its end is due. What it wrote into Redis last may not be there: that is
//! drained as in a retirement where its Redis is still the one of its views.

use std::sync::Arc;

use onceward_core::{
    mutant::{self, Mutant},
    record::SessionId,
};
use tokio::time::sleep;

use super::{At, LastActive, Left, Mark, Member, Shared, TICK, Timeline, ViewRow, outbox, retire};
use crate::StoreError;

/// So many facts are read and shipped at a time.
const SHIPPED_MAX: usize = 64;

/// Ends the sessions that left something, one after the other; tries each until it is over.
pub(super) async fn settle(shared: Arc<Shared>) {
    // On which timeline the first one's facts are past losing.
    let mut kept_on = None;
    let mut is_swept_up = true;
    while let Some(left) = shared.owed.left().filter(|_| !shared.is_over()) {
        match one(&shared, &left, &mut kept_on, &mut is_swept_up).await {
            Ok(true) => {
                kept_on = None;
                tracing::debug!(session = ?left.session, facts = left.facts.len(), "an earlier session is settled");
                // Another session of this process may have been about the same.
                if shared.owed.is_settled(&left) {
                    let places: Vec<_> = left.facts.iter().map(|(_, place)| *place).collect();
                    shared.shipments.spool().release(&places);
                    shared.shipments.spool().end(left.session);
                }
                continue;
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "what an earlier session left could not be settled"),
        }
        sleep(TICK).await;
    }
    // Only now: views may have waited for any of them.
    if !is_swept_up {
        sweep_up(&shared).await;
    }
}

/// Whether the session is over, for good.
async fn one(
    shared: &Shared,
    left: &Left,
    kept_on: &mut Option<Timeline>,
    is_swept_up: &mut bool,
) -> Result<bool, StoreError> {
    let seen = shared.journal.look(shared.session).await?;
    let may_retire = matches!(seen.me, Member::Live { .. });
    // Nobody joins before there is another view, and nobody opens one who is no member while this one is.
    let is_of_another = |row: &ViewRow| row.view.number > 0 && row.timeline != seen.timeline;
    let cannot_join = seen.me == Member::No && seen.views.iter().any(is_of_another);
    if !may_retire && !cannot_join {
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
    let retiring = if may_retire { shared.journal.retire(session, target, timeline).await? } else { None };
    let mut has_gone = retiring.is_none();
    for view in retiring.iter().flatten() {
        match retire::drain(shared, target, timeline, view).await {
            Ok(true) => continue,
            Ok(false) => {}
            // What is in that Redis alone comes back with it.
            Err(_) if shared.reach.is_unreached(view.partition) => {
                has_gone = true;
                continue;
            }
            Err(error) => return Err(error),
        }
        // In one that is over this session is not let in any more.
        let serves = |row: &ViewRow| row.partition == view.partition && row.view == view.view && row.is_active;
        if seen.views.iter().any(serves) && !is_elsewhere(shared, view).await? {
            return Ok(false);
        }
        has_gone = true;
    }
    let is_over = match &retiring {
        Some(views) if !has_gone => shared.journal.retired(target, timeline, views).await?,
        _ => {
            *is_swept_up = false;
            shared.journal.leave(target, timeline).await?
        }
    };
    shared.amiss.notify_one();
    Ok(is_over && is_past(shared, target, timeline).await?)
}

/// Waits until its end is past losing: after that its spool is not needed for it.
async fn is_past(shared: &Shared, target: SessionId, timeline: Timeline) -> Result<bool, StoreError> {
    loop {
        let seen = shared.journal.look(target).await?;
        match seen.me {
            Member::Retired { is_kept: true } | Member::No if seen.timeline == timeline => return Ok(true),
            Member::Retired { is_kept: false } if seen.timeline == timeline => sleep(TICK).await,
            _ => return Ok(false),
        }
    }
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
                if let Ok(Some(dirty)) = outbox::dirty(shared, &at).await {
                    dirty.into_iter().for_each(|fact| shared.shipments.queue(fact));
                    break;
                }
            }
            sleep(TICK).await;
        }
    }
}
