//! What each tenant takes up in a store of several processes: counted there now and then, and followed between by what this process wrote.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{StoreError, Usage};

/// The pause between two counts, and how much longer it is than the count took.
const PAUSE: Duration = Duration::from_secs(60);
const SHARE: u32 = 20;
/// How often it is looked whether anybody has asked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Records and bytes, up or down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) records: i64,
    pub(crate) bytes: i64,
}

impl Change {
    pub(crate) fn add(&mut self, other: Self) {
        self.records = self.records.saturating_add(other.records);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn usage(self) -> Usage {
        let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
        Usage { records: unsigned(self.records), bytes: unsigned(self.bytes) }
    }
}

pub(crate) type Tenants = HashMap<String, Change>;

/// Everybody's share.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    inner: Mutex<Inner>,
    /// Whether anybody has asked.
    asked: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the last count, which every process's writes are in.
    counted: Tenants,
    /// Whether there was one.
    is_counted: bool,
    /// Answered before the count on its way began: it will have them.
    before: Tenants,
    /// Answered since: it may have them or not.
    since: Tenants,
}

impl Inner {
    fn parts(&self) -> [&Tenants; 3] {
        [&self.counted, &self.before, &self.since]
    }
}

impl Figures {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write of this process.
    pub(crate) fn wrote(&self, tenant: &str, change: Change) {
        if change == Change::default() {
            return;
        }
        let mut inner = self.lock();
        match inner.since.get_mut(tenant) {
            Some(sum) => sum.add(change),
            None => {
                inner.since.insert(tenant.to_owned(), change);
            }
        }
    }

    /// A count begins: what comes from now on is not surely in it.
    pub(crate) fn begin(&self) {
        let mut inner = self.lock();
        let since = std::mem::take(&mut inner.since);
        for (tenant, change) in since {
            inner.before.entry(tenant).or_default().add(change);
        }
    }

    /// It has ended. What was answered while it ran counts twice at most until the next.
    pub(crate) fn counted(&self, counted: Tenants) {
        let mut inner = self.lock();
        inner.counted = counted;
        inner.is_counted = true;
        inner.before.clear();
    }

    /// Counts now and then by `once`, for as long as it is awaited: from the start on, or once somebody has asked.
    pub(crate) async fn keep_counted<F>(&self, from_the_start: bool, mut took: Option<Duration>, once: impl Fn() -> F)
    where
        F: Future<Output = Result<Tenants, StoreError>>,
    {
        loop {
            match took {
                Some(took) => sleep(PAUSE.max(took * SHARE)).await,
                // Nobody may ever ask.
                None if !from_the_start && !self.asked.load(Ordering::Relaxed) => {
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
                None => {}
            }
            let started = Instant::now();
            self.begin();
            match once().await {
                Ok(counted) => self.counted(counted),
                Err(error) => tracing::warn!(%error, "what tenants take up could not be counted"),
            }
            took = Some(started.elapsed());
        }
    }

    pub(crate) fn of(&self, tenant: &str) -> Usage {
        self.asked.store(true, Ordering::Relaxed);
        let inner = self.lock();
        let mut sum = Change::default();
        inner.parts().iter().filter_map(|part| part.get(tenant)).for_each(|change| sum.add(*change));
        sum.usage()
    }

    /// What all take up; `None` where that was never counted.
    pub(crate) fn total(&self) -> Option<Usage> {
        let inner = self.lock();
        if !inner.is_counted {
            return None;
        }
        let mut sum = Change::default();
        inner.parts().iter().flat_map(|part| part.values()).for_each(|change| sum.add(*change));
        Some(sum.usage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Change = Change { records: 1, bytes: 300 };

    #[test]
    fn a_count_takes_the_place_of_what_was_answered_before_it_and_of_nothing_after() {
        let figures = Figures::default();
        figures.wrote("acme", ONE);
        figures.begin();
        figures.wrote("acme", ONE);
        assert_eq!(figures.of("acme"), Usage { records: 2, bytes: 600 });
        figures.counted(Tenants::from([("acme".to_owned(), ONE), ("other".to_owned(), ONE)]));
        assert_eq!(figures.of("acme").records, 2, "the one before is in the count, the one after is not");
        // A count that fails leaves everything as it is.
        figures.begin();
        assert_eq!((figures.of("acme").records, figures.total().map(|all| all.records)), (2, Some(3)));
        figures.wrote("acme", Change { records: -5, bytes: -5000 });
        assert_eq!(figures.of("acme"), Usage::default(), "never below nothing");
    }
}
