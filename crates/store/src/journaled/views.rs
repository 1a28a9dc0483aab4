//! How this process takes part in views: it opens one where it meets another server, acknowledges what others open,
//! installs what all have acknowledged, and makes it warm (2.4).

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use onceward_core::{
    key::RecordId,
    mutant::{self, Mutant},
};
use tokio::time::{Instant, timeout};

use super::{
    At, Dirty, Fact, Member, Shared, Snapshot, TICK, Timeline, View, ViewRow,
    guard::{Guard, Serving},
    retire,
};
use crate::StoreError;

/// So many rows are merged at a time.
const ROWS_MAX: usize = 500;

/// What this process remembers of the views that it takes part in.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The view that it acknowledged last, of each partition.
    acknowledged: HashMap<u16, View>,
    /// The view that it was let into, of each partition.
    admitted: HashMap<u16, View>,
}

/// Looks at the database now and then, and where somebody says that something is amiss.
pub(super) async fn take_part(shared: Arc<Shared>) {
    let mut part = Part::default();
    loop {
        if let Err(error) = turn(&shared, &mut part).await {
            tracing::debug!(%error, "views could not be looked at");
        }
        // Whoever meets another view pokes; one that comes while this looked is not lost.
        let _poked = timeout(TICK, shared.amiss.notified()).await;
        if shared.has_left() {
            return;
        }
    }
}

async fn turn(shared: &Arc<Shared>, part: &mut Part) -> Result<(), StoreError> {
    let seen = shared.journal.look(shared.session).await?;
    if seen.timeline != shared.shipments.timeline() {
        shared.shipments.ship_again(seen.timeline);
    }
    clean(shared, &seen).await;
    let is_kept = match seen.me {
        // A session that is being retired, or whose spool has failed, holds nothing any more once this is done (R2).
        Member::Retiring | Member::Retired => return retire::end(shared, &seen).await,
        _ if shared.is_over() => return retire::end(shared, &seen).await,
        // A row that was lost was not past losing, so nothing was claimed by its right.
        Member::No => {
            *part = Part::default();
            shared.guards().iter().for_each(Guard::close);
            let is_in = shared.journal.join(shared.session, seen.timeline).await?;
            tracing::debug!(session = ?shared.session, is_in, "joined");
            if !is_in {
                open_for_nobody(shared, &seen).await?;
            }
            return Ok(());
        }
        Member::Live { is_kept } => is_kept || mutant::is(Mutant::JoinAtOnce),
    };
    let each = seen.views.iter().map(|row| {
        let acknowledged = part.acknowledged.get(&row.partition).copied();
        let is_admitted = part.admitted.get(&row.partition) == Some(&row.view);
        let own = Own { acknowledged, is_admitted, is_kept };
        async move { (row, partition(shared, own, row, seen.timeline).await) }
    });
    for (row, done) in join_all(each).await {
        match done {
            Ok(Some(Took::Acknowledged)) => drop(part.acknowledged.insert(row.partition, row.view)),
            Ok(Some(Took::Admitted)) => {
                part.acknowledged.insert(row.partition, row.view);
                part.admitted.insert(row.partition, row.view);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, partition = row.partition, "a view could not be changed"),
        }
    }
    retire::others(shared, &seen).await;
    Ok(())
}

/// A view of another timeline that has no member left who could open the next.
async fn open_for_nobody(shared: &Shared, seen: &Snapshot) -> Result<(), StoreError> {
    for row in seen.views.iter().filter(|row| row.view.number > 0 && row.timeline != seen.timeline) {
        shared.journal.open(shared.session, seen.timeline, row, 0, row.incarnation).await?;
    }
    Ok(())
}

/// Where this process stands in a partition.
struct Own {
    acknowledged: Option<View>,
    is_admitted: bool,
    /// Whether its member row is past losing.
    is_kept: bool,
}

/// What this process did.
enum Took {
    Acknowledged,
    Admitted,
}

/// Takes the next step of one partition.
async fn partition(shared: &Shared, own: Own, row: &ViewRow, timeline: Timeline) -> Result<Option<Took>, StoreError> {
    let Shared { session, journal, front, amiss, .. } = shared;
    let at = At { partition: row.partition, view: row.view, incarnation: row.incarnation, session: *session };
    let of_us = own.acknowledged.map_or(0, |view| view.number);
    if row.view.number > 0 && (row.timeline != timeline || row.view.number < of_us) {
        // A view of another timeline may be older than what is active: one is opened above all that anybody saw (A8).
        let is_opened = journal.open(*session, timeline, row, of_us, row.incarnation).await?;
        tracing::debug!(?session, partition = row.partition, is_opened, "the database is another: a view is opened");
        amiss.notify_one();
        return Ok(None);
    }
    let sight = front.look(row.partition).await?;
    let is_there = sight.is_primary && sight.incarnation == row.incarnation;
    // One that its server has outlived was opened after the database had lost that.
    let is_outlived = sight.view.number >= row.view.number && sight.view != row.view;
    if sight.is_primary && (!is_there || is_outlived || (row.is_active && sight.view != row.view)) {
        let above = of_us.max(sight.view.number);
        let is_opened = journal.open(*session, timeline, row, above, sight.incarnation).await?;
        tracing::debug!(?session, partition = row.partition, is_opened, ?sight, "Redis is another: a view is opened");
        amiss.notify_one();
        return Ok(None);
    }
    if row.is_active {
        let guard = shared.guard(row.partition)?;
        if own.is_kept && !own.is_admitted && is_there {
            let is_in = front.admit(&at).await?;
            tracing::debug!(?session, partition = row.partition, number = row.view.number, is_in, "admitted");
            // Joined since, or acknowledged with an answer that was lost: it holds nothing of any view before.
            if is_in && guard.serving().is_none() {
                guard.serve(Serving { view: row.view, incarnation: row.incarnation });
            }
            return Ok(is_in.then_some(Took::Admitted));
        }
        if is_there && own.is_admitted && !sight.is_warm {
            warm(shared, &at).await?;
        }
        return Ok(None);
    }
    if own.acknowledged != Some(row.view) {
        let is_taken = acknowledge(shared, row, timeline).await?;
        tracing::debug!(?session, partition = row.partition, number = row.view.number, is_taken, "acknowledged");
        amiss.notify_one();
        return Ok(is_taken.then_some(Took::Acknowledged));
    }
    if row.is_agreed && is_there {
        let Some(install) = journal.agreed(timeline, row.partition, row.view).await? else { return Ok(None) };
        if front.install(&at, &install).await? {
            let is_active = journal.activate(timeline, row.partition, row.view).await?;
            tracing::debug!(?session, partition = row.partition, number = row.view.number, is_active, "activated");
            amiss.notify_one();
        }
    }
    Ok(None)
}

/// Nobody is inside, and all that was granted is in the journal: the view has this session's word.
async fn acknowledge(shared: &Shared, row: &ViewRow, timeline: Timeline) -> Result<bool, StoreError> {
    let guard = shared.guard(row.partition)?;
    guard.close();
    guard.emptied().await;
    if !mutant::is(Mutant::AckBeforeDrain) {
        let drained = timeout(shared.deadline, shared.shipments.drained()).await;
        if drained.is_err() {
            // Later, when the journal has it.
            return Ok(false);
        }
    }
    let is_taken = shared.journal.acknowledge(shared.session, timeline, row.partition, row.view).await?;
    if is_taken {
        guard.serve(Serving { view: row.view, incarnation: row.incarnation });
    }
    Ok(is_taken)
}

/// Brings every row of the journal into Redis.
async fn warm(shared: &Shared, at: &At) -> Result<(), StoreError> {
    let mut after: Option<RecordId> = None;
    loop {
        let Some(rows) = shared.journal.rows(at.partition, at.view, after, ROWS_MAX).await? else { return Ok(()) };
        after = rows.last().map(|fact| fact.id);
        if !mutant::is(Mutant::WarmEarly) && !rows.is_empty() && !shared.front.merge(at, &rows).await? {
            return Ok(());
        }
        if rows.len() < ROWS_MAX {
            break;
        }
    }
    shared.front.warm(at).await?;
    Ok(())
}

/// What is in the journal for good is dirty no more.
async fn clean(shared: &Shared, seen: &Snapshot) {
    let kept = shared.shipments.take_kept(seen.timeline, seen.kept);
    let mut by_partition: HashMap<u16, Vec<Dirty>> = HashMap::new();
    for Fact { id, record } in kept {
        let dirty = Dirty { id, fence: record.stored.fence, revision: record.stored.revision };
        by_partition.entry(shared.partition_of(&id)).or_default().push(dirty);
    }
    let started = Instant::now();
    for (partition, shipped) in by_partition {
        let serving = shared.guard(partition).ok().and_then(Guard::serving);
        let Some(Serving { view, incarnation }) = serving else { continue };
        let at = At { partition, view, incarnation, session: shared.session };
        // What stays dirty costs a shipment that changes nothing when this session is retired.
        if let Err(error) = shared.front.clean(&at, &shipped).await {
            tracing::debug!(%error, partition, took = ?started.elapsed(), "shipped records stay noted as dirty");
        }
    }
}
