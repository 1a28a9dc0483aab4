//! Whether partitions' servers are reached: where that is so for nobody, their views are on the database itself until it is
//! so for all again.
//!
//! Only when a view is opened depends on this, and never what may be granted in it. That all are asked keeps one who is cut
//! off alone from moving everybody.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Incarnation, Shared, Sight, Snapshot};
use crate::StoreError;

/// A server that was not reached for so long is said to be gone.
const GONE_AFTER: Duration = Duration::from_millis(300);
/// And one that was reached for so long to be back.
const BACK_AFTER: Duration = Duration::from_secs(1);
/// For so long it is looked often at one that is missed: by then others have said whether they miss it, too.
const LOOKED_FOR: Duration = Duration::from_secs(3);

/// What this process saw of the servers itself, and what all said.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Some were not reached when it looked last: steps ask no more while all are.
    misses_some: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Since when each was not reached, or with which data it was.
    since: HashMap<u16, (Option<Incarnation>, Instant)>,
    /// Of which partitions nobody reaches the server.
    gone: HashSet<u16>,
    /// Of which all have reached it for a while.
    back: HashSet<u16>,
    /// Whether the others were told of some last.
    has_said: bool,
}

impl Reach {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody reaches the partition's server.
    pub(super) fn is_gone(&self, partition: u16) -> bool {
        self.inner().gone.contains(&partition)
    }

    /// All have reached the partition's server for a while.
    pub(super) fn is_back(&self, partition: u16) -> bool {
        self.inner().back.contains(&partition)
    }

    /// Whether there are servers that this process did not reach when it looked last.
    pub(super) fn misses_some(&self) -> bool {
        self.misses_some.load(Ordering::Relaxed)
    }

    /// Whether there are servers that this process has begun to miss.
    pub(super) fn begins_to_miss(&self) -> bool {
        let is_new = |(seen, since): &(Option<Incarnation>, Instant)| seen.is_none() && since.elapsed() < LOOKED_FOR;
        self.misses_some() && self.inner().since.values().any(is_new)
    }

    /// Whether this process did not reach the partition's server when it looked last.
    pub(super) fn is_missed(&self, partition: u16) -> bool {
        self.misses_some() && self.inner().has_been(partition, None, Duration::ZERO)
    }

    /// Whether this process has not reached the partition's server for a while.
    pub(super) fn is_unreached(&self, partition: u16) -> bool {
        self.misses_some() && self.inner().has_been(partition, None, GONE_AFTER)
    }
}

impl Inner {
    fn has_been(&self, partition: u16, seen: Option<Incarnation>, span: Duration) -> bool {
        self.since.get(&partition).is_some_and(|(was, since)| *was == seen && since.elapsed() >= span)
    }
}

/// Notes what this process sees, and asks the others where that matters.
pub(super) async fn note(shared: &Shared, seen: &Snapshot, sights: &HashMap<u16, Sight>) -> Result<(), StoreError> {
    let primary = |partition: u16| sights.get(&partition).filter(|sight| sight.is_primary);
    let (unreached, reached, asks) = {
        let inner = &mut *shared.reach.inner();
        for row in &seen.views {
            let now = primary(row.partition).map(|sight| sight.incarnation);
            let was = inner.since.entry(row.partition).or_insert((now, Instant::now()));
            if was.0 != now {
                *was = (now, Instant::now());
            }
        }
        shared.reach.misses_some.store(inner.since.values().any(|(seen, _)| seen.is_none()), Ordering::Relaxed);
        let all = || seen.views.iter().map(|row| row.partition);
        let unreached: Vec<u16> = all().filter(|of| inner.has_been(*of, None, GONE_AFTER)).collect();
        let is_reached =
            |of: &u16| primary(*of).is_some_and(|sight| inner.has_been(*of, Some(sight.incarnation), BACK_AFTER));
        let reached: Vec<u16> = all().filter(is_reached).collect();
        let is_away = seen.views.iter().any(|row| row.incarnation.is_database());
        (unreached, reached, is_away || inner.has_said)
    };
    if unreached.is_empty() && !asks {
        let inner = &mut *shared.reach.inner();
        inner.gone.clear();
        inner.back = reached.into_iter().collect();
        return Ok(());
    }
    let others = shared.journal.unreached(shared.session, &unreached).await;
    let inner = &mut *shared.reach.inner();
    match others {
        Ok(others) => {
            inner.has_said = !unreached.is_empty();
            inner.gone = others.by_all.into_iter().filter(|of| unreached.contains(of)).collect();
            inner.back = reached.into_iter().filter(|of| !others.by_some.contains(of)).collect();
            Ok(())
        }
        Err(error) => {
            (inner.gone, inner.back) = Default::default();
            Err(error)
        }
    }
}
