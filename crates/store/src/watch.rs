//! The waking of those who wait for a key, inside one process.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use onceward_core::key::RecordId;
use tokio::sync::{Notify, futures::OwnedNotified};

use crate::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Resolves after the next write to the key it was made for.
pub struct Watch(Option<Waiting>);

struct Waiting {
    /// `None` only while it is dropped.
    notified: Option<Pin<Box<OwnedNotified>>>,
    id: RecordId,
    watchers: Watchers,
}

impl Watch {
    /// One that never wakes: for stores that cannot notify.
    #[must_use]
    pub fn never() -> Self {
        Self(None)
    }
}

impl Future for Watch {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.as_mut().and_then(|waiting| waiting.notified.as_mut()) {
            Some(notified) => notified.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.notified = None;
        self.watchers.forget(&self.id);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// Everybody who waits, by key. An entry lives until the next write, or as long as somebody waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watchers(Arc<Waited>);

#[derive(Debug, Default)]
struct Waited {
    keys: Mutex<HashMap<RecordId, Arc<Notify>>>,
    /// How many there are, so that a write that nobody waits for takes no lock. Whoever waits is counted before it
    /// reads the record, and whoever writes looks after it wrote: one of the two sees the other.
    count: AtomicUsize,
}

impl Watchers {
    /// Wakes after the next [`wake`](Self::wake) of `id`, also one before the first poll.
    pub(crate) fn watch(&self, id: RecordId) -> Watch {
        let mut waiting = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notified = Box::pin(Arc::clone(waiting.entry(id).or_default()).notified_owned());
        notified.as_mut().enable();
        self.0.count.store(waiting.len(), Ordering::SeqCst);
        Watch(Some(Waiting { notified: Some(notified), id, watchers: self.clone() }))
    }

    /// Wakes all who wait for `id`.
    pub(crate) fn wake(&self, id: &RecordId) {
        if self.0.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let woken = {
            let mut waiting = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
            let woken = waiting.remove(id);
            self.0.count.store(waiting.len(), Ordering::SeqCst);
            woken
        };
        if let Some(notify) = woken {
            notify.notify_waiters();
        }
    }

    /// Whether anybody waits for `id`.
    #[cfg(feature = "redis")]
    pub(crate) fn is_waited(&self, id: &RecordId) -> bool {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    /// Wakes everybody.
    #[cfg(feature = "redis")]
    pub(crate) fn wake_all(&self) {
        let woken = {
            let mut waiting = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.count.store(0, Ordering::SeqCst);
            std::mem::take(&mut *waiting)
        };
        woken.into_values().for_each(|notify| notify.notify_waiters());
    }

    /// Drops the entry of a key that nobody waits for any more.
    fn forget(&self, id: &RecordId) {
        let mut waiting = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        // Handles are given out under this lock only: one handle means that this map has the last.
        if waiting.get(id).is_some_and(|notify| Arc::strong_count(notify) == 1) {
            waiting.remove(id);
            self.0.count.store(waiting.len(), Ordering::SeqCst);
        }
    }

    /// How many keys are waited for.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
