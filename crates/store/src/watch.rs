//! The waking of those who wait for a key, inside one process.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use onceward_core::key::RecordId;
use tokio::sync::{Notify, futures::OwnedNotified};

/// Resolves after the next write to the key it was made for.
pub struct Watch(Option<Pin<Box<OwnedNotified>>>);

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
        match &mut self.0 {
            Some(notified) => notified.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// Everybody who waits, by key. Entries live as long as somebody waits, or until the next write.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<HashMap<RecordId, Arc<Notify>>>);

impl Watchers {
    /// Wakes after the next [`wake`](Self::wake) of `id`, also one before the first poll.
    pub(crate) fn watch(&self, id: RecordId) -> Watch {
        let notify = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(waiting.entry(id).or_default())
        };
        let mut notified = Box::pin(notify.notified_owned());
        notified.as_mut().enable();
        Watch(Some(notified))
    }

    /// Wakes all who wait for `id`.
    pub(crate) fn wake(&self, id: &RecordId) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(notify) = waiting {
            notify.notify_waiters();
        }
    }
}
