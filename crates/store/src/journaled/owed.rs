//! What a process owes, whichever of its sessions is there: what a process before it left in the spool, and outcomes of which nobody knows whether Redis has them: it may show what neither the spool nor the journal has. Each is
//! repeated until Redis says what became of it, in later views too (A3), and by the next session of the same process where
//! this one is over.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Left, Shared, TICK, What};

/// So many are repeated; of more the oldest are given up, and told.
const OWED_MAX: usize = 10_000;
/// Between two tries of what could not be written.
const AGAIN: Duration = Duration::from_millis(100);

/// A holder's last word on a key.
#[derive(Clone, Debug)]
pub(super) enum Word {
    Outcome(Box<Replacement>),
    Release(Expect),
}

impl Word {
    pub(super) fn what(&self) -> What<'_> {
        match self {
            Self::Outcome(write) => What::Replace(write),
            Self::Release(expect) => What::Release(*expect),
        }
    }
}

/// What a process owes, whichever of its sessions began it.
#[derive(Debug, Default)]
pub struct Owed {
    words: Mutex<VecDeque<(RecordId, Word)>>,
    some: Notify,
    left: Mutex<VecDeque<Arc<Left>>>,
}

impl Owed {
    /// Of a process that found this in its spool.
    #[must_use]
    pub fn new(left: Vec<Left>) -> Self {
        Self { left: Mutex::new(left.into_iter().map(Arc::new).collect()), ..Self::default() }
    }

    pub(super) fn left(&self) -> Option<Arc<Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).front().cloned()
    }

    /// It is settled: whether it was until now.
    pub(super) fn is_settled(&self, left: &Arc<Left>) -> bool {
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = all.front().is_some_and(|first| Arc::ptr_eq(first, left));
        is_first && all.pop_front().is_some()
    }

    pub(super) fn push(&self, id: RecordId, word: Word) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() >= OWED_MAX
            && let Some((id, _)) = words.pop_front()
        {
            tracing::error!(record = %id.short(), "whether an outcome was recorded is not known, and is not looked at again");
        }
        words.push_back((id, word));
        drop(words);
        self.some.notify_one();
    }

    fn pop(&self) -> Option<(RecordId, Word)> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Repeats what is owed, for as long as the session lives.
pub(super) async fn repeat(shared: Arc<Shared>) {
    while !shared.is_over() {
        let Some((id, word)) = shared.owed.pop() else {
            // A session that has ended may have taken the word that there is some.
            let _some = timeout(TICK, shared.owed.some.notified()).await;
            continue;
        };
        if shared.step(id, word.what()).await.is_err() {
            shared.owed.push(id, word);
            sleep(AGAIN).await;
        }
    }
}
