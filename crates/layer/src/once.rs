//! One question for everybody who asks the same at once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

/// From so many questions on, those that nobody waits for any more are cleared away.
const ABANDONED_MAX: usize = 1024;

/// What is being asked. A question goes on for as long as somebody waits for its answer, and is not remembered beyond.
#[derive(Debug)]
pub(crate) struct Once<K, V>(Arc<Mutex<Asking<K, V>>>);

type Asking<K, V> = HashMap<K, WeakShared<BoxFuture<'static, V>>>;

impl<K, V> Default for Once<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Once<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins whoever asks `key`, or asks it by `ask`.
    pub(crate) fn join<F>(&self, key: K, ask: impl FnOnce() -> F) -> Shared<BoxFuture<'static, V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut asking = lock(&self.0);
        if let Some(asked) = asking.get(&key).and_then(WeakShared::upgrade) {
            return asked;
        }
        let (all, answer) = (Arc::clone(&self.0), ask());
        let asked = async move {
            let answer = answer.await;
            lock(&all).remove(&key);
            answer
        };
        let asked = asked.boxed().shared();
        if asking.len() >= ABANDONED_MAX {
            asking.retain(|_, asked| asked.upgrade().is_some());
        }
        asking.extend(asked.downgrade().map(|weak| (key, weak)));
        asked
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn all_who_ask_at_once_share_an_answer_and_whoever_asks_later_gets_another() {
        let once = Once::<u8, usize>::default();
        let (gate, asked) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(0)));
        let ask = || {
            let (gate, asked) = (Arc::clone(&gate), Arc::clone(&asked));
            once.join(7, move || async move {
                gate.acquire().await.unwrap().forget();
                *lock(&asked) += 1;
                *lock(&asked)
            })
        };
        let (first, second, third) = (ask(), ask(), ask());
        // Whoever asked first may go away.
        drop(first);
        gate.add_permits(2);
        assert_eq!((second.await, third.await), (1, 1));
        assert_eq!(ask().await, 2);
        assert!(lock(&once.0).is_empty());
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_is_asked_anew_and_many_of_them_are_cleared_away() {
        let once = Once::<usize, u8>::default();
        (0..3 * ABANDONED_MAX).for_each(|key| drop(once.join(key, std::future::pending)));
        assert!(lock(&once.0).len() <= ABANDONED_MAX);
        assert_eq!(once.join(3 * ABANDONED_MAX - 1, || async { 1 }).await, 1);
    }
}
