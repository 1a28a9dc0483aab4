//! How this process takes part in views: it opens one where it meets another server, acknowledges what others open,
//! installs what all have acknowledged, and makes it warm (2.4).
//!
//! A turn looks at all partitions, decides the next step of each, and takes those of one kind together: a view change of
//! all of them is a few transactions.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use onceward_core::{
    key::RecordId,
    mutant::{self, Mutant},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    At, Incarnation, Member, Opening, Shared, Sight, Snapshot, TICK, Timeline, View, ViewRow,
    guard::{Guard, Serving},
    outbox, reach, retire,
};
use crate::StoreError;

/// How often the database is looked at while views change: others wait for each step.
const CHANGING_TICK: Duration = Duration::from_millis(50);
/// How often a session is heard of at least.
const HEARD_EVERY: Duration = Duration::from_millis(500);
/// So many rows are merged at a time.
const ROWS_MAX: usize = 500;
/// After a session that could not be begun.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);

/// Views whose servers do not have every row of the journal yet.
#[derive(Debug, Default)]
pub(super) struct Cold {
    views: Mutex<Vec<At>>,
    some: Notify,
}

impl Cold {
    fn set(&self, views: Vec<At>) {
        let has_some = !views.is_empty();
        *self.views.lock().unwrap_or_else(PoisonError::into_inner) = views;
        if has_some {
            self.some.notify_one();
        }
    }

    fn take(&self) -> Vec<At> {
        std::mem::take(&mut *self.views.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What this process remembers of the views that it takes part in.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The view that it acknowledged last, of each partition.
    acknowledged: HashMap<u16, View>,
    /// The view that it was let into, of each partition.
    admitted: HashMap<u16, View>,
    /// Whether a view waits, or one may be about to be opened.
    is_changing: bool,
}

impl Part {
    /// Whether it was let into this view.
    pub(super) fn is_in(&self, row: &ViewRow) -> bool {
        self.admitted.get(&row.partition) == Some(&row.view)
    }
}

/// Looks at the database now and then, and where somebody says that something is amiss.
pub(super) async fn take_part(shared: Arc<Shared>) {
    // Others wait for a member, and only who has its disk knows that nothing is left of it.
    while let Err(error) = shared.shipments.begin().await {
        tracing::error!(%error, "the spool does not take a session: none can begin");
        sleep(BEGIN_AGAIN).await;
        if shared.is_over() {
            return shared.note_left();
        }
    }
    let mut part = Part::default();
    loop {
        if let Err(error) = heard_of(&shared, turn(&shared, &mut part)).await {
            tracing::debug!(%error, "views could not be looked at");
        }
        // Whoever meets another view pokes; one that comes while this looked is not lost.
        let tick = if part.is_changing { CHANGING_TICK } else { TICK };
        let _poked = timeout(tick, shared.amiss.notified()).await;
        if shared.has_left() {
            return;
        }
    }
}

/// Whoever waits for the database or for others in a turn is there all the same, and is not to be retired for it.
async fn heard_of(shared: &Shared, turn: impl Future<Output = Result<(), StoreError>>) -> Result<(), StoreError> {
    let saying_so = async {
        loop {
            sleep(HEARD_EVERY).await;
            // What it says is for the next turn.
            let _seen = shared.journal.look(shared.session).await;
        }
    };
    tokio::select! {
        biased;
        done = turn => done,
        () = saying_so => Ok(()),
    }
}

async fn turn(shared: &Arc<Shared>, part: &mut Part) -> Result<(), StoreError> {
    let seen = shared.journal.look(shared.session).await?;
    if seen.timeline != shared.shipments.timeline() {
        shared.shipments.ship_again(seen.timeline);
    }
    outbox::clean(shared, &seen).await;
    let is_kept = match seen.me {
        // A session that is being retired, or whose spool has failed, holds nothing any more once this is done (R2).
        Member::Retiring | Member::Retired { .. } => return retire::end(shared, &seen).await,
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
    let partitions: Vec<u16> = seen.views.iter().map(|row| row.partition).collect();
    // Also without Redis a view is acknowledged: others may reach it.
    // A server that was missed last is not waited for as long again: the turn has other things to do.
    let patience = if shared.reach.misses_some() { shared.deadline / 5 } else { shared.deadline };
    let mut sights: HashMap<u16, Sight> = match timeout(patience, shared.front.look(&partitions)).await {
        Ok(Ok(sights)) => sights.into_iter().collect(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "Redis could not be looked at");
            HashMap::new()
        }
        Err(elapsed) => {
            tracing::debug!(%elapsed, "Redis could not be looked at in time");
            HashMap::new()
        }
    };
    if let Err(error) = reach::note(shared, &seen, &sights).await {
        tracing::debug!(%error, "the others could not be asked whether they reach Redis");
    }
    for row in seen.views.iter().filter(|row| row.incarnation.is_database() && !shared.reach.is_back(row.partition)) {
        sights.insert(row.partition, Sight::of_database(row));
    }
    let is_changing = |row: &ViewRow| row.view.number > 0 && (!row.is_active || !part.is_in(row));
    part.is_changing = seen.views.iter().any(is_changing) || shared.reach.begins_to_miss();
    shared.standing.note(part, &seen, &sights);
    let steps: Vec<(&ViewRow, Step)> = seen
        .views
        .iter()
        .map(|row| {
            let is_forgotten = shared.guard(row.partition).is_ok_and(|guard| guard.is_forgotten(row.view));
            let sight = sights.get(&row.partition);
            let is_gone = shared.reach.is_gone(row.partition);
            (row, next(part, row, sight, seen.timeline, is_kept, is_forgotten, is_gone))
        })
        .collect();
    let of = |wanted: fn(&Step) -> bool| steps.iter().filter(move |(_, step)| wanted(step)).map(|(row, _)| *row);
    let openings: Vec<Opening> = steps.iter().filter_map(|(_, step)| step.opening()).collect();
    shared.cold.set(of(|step| matches!(step, Step::Warm)).map(|row| shared.at(row)).collect());
    // One that fails keeps no other from being taken.
    let done = [
        open(shared, seen.timeline, &openings).await,
        admit(shared, part, of(|step| matches!(step, Step::Admit))).await,
        acknowledge(shared, part, seen.timeline, of(|step| matches!(step, Step::Acknowledge)).collect()).await,
        install(shared, seen.timeline, of(|step| matches!(step, Step::Install)).collect()).await,
    ];
    for error in done.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "views could not be changed");
    }
    retire::others(shared, &seen).await;
    Ok(())
}

/// The next step of a partition.
#[derive(Debug)]
enum Step {
    Open(Opening),
    Admit,
    Warm,
    Acknowledge,
    Install,
    Nothing,
}

impl Step {
    fn opening(&self) -> Option<Opening> {
        match self {
            Self::Open(opening) => Some(*opening),
            _ => None,
        }
    }
}

/// `is_kept`: whether this session's member row is past losing.
/// `is_forgotten`: whether the view's server turned somebody away whom it had let in.
/// `is_gone`: whether nobody reaches the partition's primary.
fn next(
    part: &Part,
    row: &ViewRow,
    sight: Option<&Sight>,
    timeline: Timeline,
    is_kept: bool,
    is_forgotten: bool,
    is_gone: bool,
) -> Step {
    let acknowledged = part.acknowledged.get(&row.partition).copied();
    let of_us = acknowledged.map_or(0, |view| view.number);
    if row.view.number > 0 && (row.timeline != timeline || row.view.number < of_us) {
        // A view of another timeline may be older than what is active: one is opened above all that anybody saw (A8).
        return Step::Open(Opening { before: *row, acknowledged: of_us, incarnation: row.incarnation });
    }
    if is_gone && !row.incarnation.is_database() {
        return Step::Open(Opening { before: *row, acknowledged: of_us, incarnation: Incarnation::DATABASE });
    }
    let is_there = sight.is_some_and(|sight| sight.is_primary && sight.incarnation == row.incarnation);
    if let Some(sight) = sight {
        // One that its server has outlived was opened after the database had lost that.
        let is_outlived = sight.view.number >= row.view.number && sight.view != row.view;
        // It may have lost who may claim alone, and then whom it had shut out, too.
        let is_other = sight.view != row.view || is_forgotten;
        if sight.is_primary && (!is_there || is_outlived || (row.is_active && is_other)) {
            let above = of_us.max(sight.view.number);
            return Step::Open(Opening { before: *row, acknowledged: above, incarnation: sight.incarnation });
        }
    }
    let is_admitted = part.is_in(row);
    match row.is_active {
        true if is_there && is_kept && !is_admitted => Step::Admit,
        true if is_there && is_admitted && sight.is_some_and(|sight| !sight.is_warm) => Step::Warm,
        false if row.view.number > 0 && acknowledged != Some(row.view) => Step::Acknowledge,
        false if row.view.number > 0 && row.is_agreed && is_there => Step::Install,
        _ => Step::Nothing,
    }
}

async fn open(shared: &Shared, timeline: Timeline, openings: &[Opening]) -> Result<(), StoreError> {
    if openings.is_empty() {
        return Ok(());
    }
    let opened = shared.journal.open(shared.session, timeline, openings).await?;
    tracing::debug!(session = ?shared.session, opened, ?openings, "Redis or the database is another: views are opened");
    shared.amiss.notify_one();
    Ok(())
}

/// A view of another timeline that has no member left who could open the next.
async fn open_for_nobody(shared: &Shared, seen: &Snapshot) -> Result<(), StoreError> {
    let of_another = seen.views.iter().filter(|row| row.view.number > 0 && row.timeline != seen.timeline);
    let openings = of_another.map(|row| Opening { before: *row, acknowledged: 0, incarnation: row.incarnation });
    open(shared, seen.timeline, &openings.collect::<Vec<_>>()).await
}

/// Has the views' servers let this session in, which joined after they were installed or has not heard that it was let in.
async fn admit(shared: &Shared, part: &mut Part, rows: impl Iterator<Item = &ViewRow>) -> Result<(), StoreError> {
    let each = rows.map(|row| async move { (row, shared.front.admit(&shared.at(row)).await) });
    let mut failed = Ok(());
    let mut admitted = Vec::new();
    for (row, is_in) in join_all(each).await {
        match is_in {
            Ok(true) => {
                admitted.push(row.partition);
                let guard = shared.guard(row.partition)?;
                // Joined since, or acknowledged with an answer that was lost: it holds nothing of any view before.
                if guard.serving().is_none() {
                    guard.serve(Serving { view: row.view, incarnation: row.incarnation });
                }
                guard.admit(row.view);
                part.acknowledged.insert(row.partition, row.view);
                part.admitted.insert(row.partition, row.view);
            }
            Ok(false) => {}
            Err(error) => failed = Err(error),
        }
    }
    if !admitted.is_empty() {
        tracing::debug!(session = ?shared.session, ?admitted, "let in");
    }
    failed
}

/// Nobody is inside, and all that was granted is in the journal: the views have this session's word.
async fn acknowledge(
    shared: &Shared,
    part: &mut Part,
    timeline: Timeline,
    rows: Vec<&ViewRow>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let guards = rows.iter().map(|row| shared.guard(row.partition)).collect::<Result<Vec<_>, _>>()?;
    guards.iter().for_each(|guard| guard.close());
    for guard in guards {
        guard.emptied().await;
    }
    if !mutant::is(Mutant::AckBeforeDrain) && timeout(shared.deadline, shared.shipments.drained()).await.is_err() {
        // Later, when the journal has it.
        return Ok(());
    }
    let views: Vec<(u16, View)> = rows.iter().map(|row| (row.partition, row.view)).collect();
    let taken = shared.journal.acknowledge(shared.session, timeline, &views).await?;
    tracing::debug!(session = ?shared.session, ?views, ?taken, "acknowledged");
    for row in rows.into_iter().filter(|row| taken.contains(&row.partition)) {
        part.acknowledged.insert(row.partition, row.view);
        shared.guard(row.partition)?.serve(Serving { view: row.view, incarnation: row.incarnation });
    }
    shared.amiss.notify_one();
    Ok(())
}

/// Gives the servers views that all have acknowledged, and has them serve.
async fn install(shared: &Shared, timeline: Timeline, rows: Vec<&ViewRow>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let views: Vec<(u16, View)> = rows.iter().map(|row| (row.partition, row.view)).collect();
    let agreed = shared.journal.agreed(timeline, &views).await?;
    let each = agreed.iter().filter_map(|(partition, install)| {
        let row = rows.iter().find(|row| row.partition == *partition)?;
        Some(async move { (row, shared.front.install(&shared.at(row), install).await) })
    });
    let mut installed = Vec::new();
    let mut failed = Ok(());
    for (row, is_installed) in join_all(each).await {
        match is_installed {
            Ok(true) => installed.push((row.partition, row.view)),
            Ok(false) => {}
            Err(error) => failed = Err(error),
        }
    }
    if !installed.is_empty() {
        let active = shared.journal.activate(timeline, &installed).await?;
        tracing::debug!(session = ?shared.session, ?installed, ?active, "activated");
        shared.amiss.notify_one();
    }
    failed
}

/// Brings the journal's rows into Redis, for as long as the session lives: beside the turns, which others wait for.
pub(super) async fn keep_warm(shared: Arc<Shared>) {
    loop {
        shared.cold.some.notified().await;
        let mut views = shared.cold.take();
        // Each begins elsewhere, and looks whether somebody has been there: together they share the work.
        let share = usize::from(shared.session.0[15]) % views.len().max(1);
        views.rotate_left(share);
        for at in views {
            if let Err(error) = warm(&shared, &at).await {
                tracing::debug!(%error, partition = at.partition, "a view could not be made warm");
            }
        }
    }
}

async fn warm(shared: &Shared, at: &At) -> Result<(), StoreError> {
    let sights = shared.front.look(&[at.partition]).await?;
    let is_cold = |sight: &Sight| sight.view == at.view && sight.incarnation == at.incarnation && !sight.is_warm;
    if !sights.iter().any(|(_, sight)| is_cold(sight)) {
        return Ok(());
    }
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
