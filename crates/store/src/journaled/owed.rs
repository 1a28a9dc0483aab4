//! Outcomes of which nobody knows whether Redis has them: it may show what neither the spool nor the journal has. Each is
//! repeated until Redis says what became of it, in later views too (A3).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
};
use tokio::{sync::Notify, time::sleep};

use super::{Shared, What};

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

#[derive(Debug, Default)]
pub(super) struct Owed {
    words: Mutex<VecDeque<(RecordId, Word)>>,
    some: Notify,
}

impl Owed {
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
    loop {
        let some = shared.owed.some.notified();
        match shared.owed.pop() {
            None => some.await,
            // One who is over writes nothing more; what is dirty in Redis is shipped by whoever retires it.
            Some(_) if shared.is_over() => {}
            Some((id, word)) => {
                if shared.step(id, word.what()).await.is_err() {
                    shared.owed.push(id, word);
                    sleep(AGAIN).await;
                }
            }
        }
    }
}
