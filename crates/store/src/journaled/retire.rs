//! How a session ends: by itself, or by others where it is heard of no more (2.5, R1 to R3, A7, A8).

use futures_util::future::try_join_all;
use onceward_core::{
    mutant::{self, Mutant},
    record::SessionId,
};
use tokio::time::timeout;

use super::{At, LastActive, Member, Shared, Snapshot, Timeline, outbox};
use crate::StoreError;

/// This session ends: it claims nothing more, and is over once all that it holds is in the journal for good.
pub(super) async fn end(shared: &Shared, seen: &Snapshot) -> Result<(), StoreError> {
    shared.end_session();
    for guard in shared.guards() {
        guard.close();
        guard.emptied().await;
    }
    let _drained = timeout(shared.deadline, shared.shipments.drained()).await;
    if !shared.shipments.is_over() {
        return Ok(());
    }
    let has_left = match seen.me {
        Member::Retired { is_kept } => is_kept,
        // Also where there is no row: one that is on its way comes before this.
        me => {
            let is_taken = shared.journal.leave(shared.session, seen.timeline).await?;
            // Whether that is past losing is seen next.
            shared.amiss.notify_one();
            is_taken && me == Member::No
        }
    };
    if has_left {
        shared.shipments.spool().end(shared.session);
        shared.note_left();
    }
    Ok(())
}

/// Retires those who are heard of no more, while the servers of their views are there: what they were granted is in the
/// set of dirty records.
pub(super) async fn others(shared: &Shared, seen: &Snapshot) {
    for target in seen.silent.iter().filter(|target| **target != shared.session) {
        if let Err(error) = one(shared, *target, seen.timeline).await {
            tracing::debug!(%error, "a session that is silent could not be retired");
        }
    }
}

async fn one(shared: &Shared, target: SessionId, timeline: Timeline) -> Result<(), StoreError> {
    let (session, journal) = (shared.session, &shared.journal);
    let Some(views) = journal.retire(session, target, timeline).await? else { return Ok(()) };
    let drained = try_join_all(views.iter().map(|view| drain(shared, target, timeline, view))).await?;
    if drained.contains(&false) {
        return Ok(());
    }
    // Each step was taken in the view that it names, so nothing that was granted there can be missing.
    journal.retired(target, timeline, &views).await?;
    shared.amiss.notify_one();
    Ok(())
}

/// Shuts a session out of a view and ships what is dirty there. `false` where the view is not the one that serves there
/// any more, or this session is not let in.
pub(super) async fn drain(
    shared: &Shared,
    target: SessionId,
    timeline: Timeline,
    view: &LastActive,
) -> Result<bool, StoreError> {
    let LastActive { partition, view: of, incarnation } = *view;
    let at = At { partition, view: of, incarnation, session: shared.session };
    // From here on it is granted nothing there, even if it wakes up.
    if !mutant::is(Mutant::RetireWithoutShutOut) && !shared.front.shut_out(&at, target).await? {
        return Ok(false);
    }
    let Some(dirty) = outbox::dirty(shared, &at).await? else { return Ok(false) };
    if mutant::is(Mutant::RetireWithoutDrain) {
        return Ok(true);
    }
    let Some(_mark) = shared.journal.drain(shared.session, timeline, view, &dirty).await? else { return Ok(false) };
    // Kept like its own, for as long as the database may lose them.
    dirty.into_iter().for_each(|fact| shared.shipments.queue(fact));
    Ok(true)
}
