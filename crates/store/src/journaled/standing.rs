//! What this process says of its partitions to those who look after it.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{Sight, Snapshot, ViewRow, views::Part};

/// How many partitions are how, as this process last looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serves {
    /// Claims are taken: the view is in force, and this session is in it.
    pub in_force: usize,
    /// And they do not ask the database to know of earlier ones.
    pub warm: usize,
    /// They go to the database, since nobody reaches Redis.
    pub on_database: usize,
    /// All.
    pub of: usize,
}

/// The same, as the last turn found it.
#[derive(Debug, Default)]
pub(super) struct Standing {
    in_force: AtomicUsize,
    warm: AtomicUsize,
    on_database: AtomicUsize,
}

impl Standing {
    pub(super) fn serves(&self, of: usize) -> Serves {
        let [in_force, warm, on_database] =
            [&self.in_force, &self.warm, &self.on_database].map(|count| count.load(Ordering::Relaxed));
        Serves { in_force, warm, on_database, of }
    }

    pub(super) fn note(&self, part: &Part, seen: &Snapshot, sights: &HashMap<u16, Sight>) {
        let is_in_force = |row: &&ViewRow| {
            let sight = sights.get(&row.partition).filter(|sight| sight.is_primary);
            row.is_active
                && part.is_in(row)
                && sight.is_some_and(|sight| (sight.view, sight.incarnation) == (row.view, row.incarnation))
        };
        let is_warm = |row: &&ViewRow| sights.get(&row.partition).is_some_and(|sight| sight.is_warm);
        let in_force = seen.views.iter().filter(is_in_force);
        self.warm.store(in_force.clone().filter(is_warm).count(), Ordering::Relaxed);
        let on_database = in_force.clone().filter(|row| row.incarnation.is_database()).count();
        let was = self.on_database.swap(on_database, Ordering::Relaxed);
        if was == 0 && on_database > 0 {
            tracing::warn!(
                partitions = on_database,
                "nobody reaches Redis: these partitions' claims go to the database"
            );
        }
        if was > 0 && on_database == 0 {
            tracing::warn!("claims go to Redis again");
        }
        self.in_force.store(in_force.count(), Ordering::Relaxed);
    }
}
