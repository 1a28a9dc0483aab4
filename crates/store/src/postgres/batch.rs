//! The claims of one moment committed together: whatever came while the last batch was on its way is the next one.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::Arc,
};

use onceward_core::key::RecordId;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinSet,
};

use super::lane::WriteError;
use crate::{Applied, Kind, StoreError};

/// The most items of one batch.
pub(super) const BATCH_MAX: usize = 256;
/// The most that wait for their batch; beyond it calls are refused.
const QUEUE_MAX: usize = 16_384;

/// What each item of a batch is answered.
pub(super) type Answers<A> = BTreeMap<RecordId, Result<A, StoreError>>;

struct Item<W, A> {
    id: RecordId,
    write: W,
    answer: oneshot::Sender<Result<A, StoreError>>,
}

/// Collects writes and hands them on in batches, each key once in a batch.
pub(super) struct Batcher<W, A> {
    queue: mpsc::Sender<Item<W, A>>,
}

impl<W, A> std::fmt::Debug for Batcher<W, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Batcher")
    }
}

struct Queue<W, A> {
    from: mpsc::Receiver<Item<W, A>>,
    /// Whose key is in the batch before.
    next: VecDeque<Item<W, A>>,
}

impl<W: Send + 'static, A: Send + 'static> Batcher<W, A> {
    /// Starts one task for each of `lanes`, which has one batch on its way at a time. `commit` answers every item of
    /// a batch, in the order of the ids, or fails as a whole.
    pub(super) fn start<L, F, C>(tasks: &mut JoinSet<()>, lanes: impl IntoIterator<Item = L>, commit: C) -> Self
    where
        L: Send + Sync + 'static,
        C: Fn(Arc<L>, Arc<BTreeMap<RecordId, W>>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Answers<A>, WriteError>> + Send + 'static,
        W: Sync,
    {
        let (queue, from) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Mutex::new(Queue { from, next: VecDeque::new() }));
        for lane in lanes {
            let (shared, lane, commit) = (Arc::clone(&shared), Arc::new(lane), commit.clone());
            tasks.spawn(async move {
                while let Some((writes, answers)) = take(&shared).await {
                    let writes = Arc::new(writes);
                    match commit(Arc::clone(&lane), Arc::clone(&writes)).await {
                        Ok(answered) => give(answers, answered),
                        Err(failed) if failed.may_be_one_item && writes.len() > 1 => {
                            one_by_one(&lane, &commit, writes, answers).await;
                        }
                        Err(failed) => fail(answers, failed.error),
                    }
                }
            });
        }
        Self { queue }
    }

    /// Has `write` committed with the next batch.
    ///
    /// Dropping the future before the batch is made takes the write out of it; afterwards it goes on.
    pub(super) async fn write(&self, id: RecordId, write: W) -> Result<A, StoreError> {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send(Item { id, write, answer }).is_err() {
            return Err(StoreError::not_applied(Kind::Unavailable));
        }
        // A task that ended with its runtime may have sent it.
        answered.await.unwrap_or_else(|_| Err(StoreError::unknown(Kind::Unavailable)))
    }
}

type Waiting<A> = BTreeMap<RecordId, oneshot::Sender<Result<A, StoreError>>>;

/// The next batch; `None` once nobody can write any more.
async fn take<W, A>(shared: &Mutex<Queue<W, A>>) -> Option<(BTreeMap<RecordId, W>, Waiting<A>)> {
    let mut queue = shared.lock().await;
    let (mut writes, mut answers) = (BTreeMap::new(), BTreeMap::new());
    let mut again = VecDeque::new();
    while writes.len() < BATCH_MAX {
        let item = match queue.next.pop_front() {
            Some(item) => item,
            None if writes.is_empty() => queue.from.recv().await?,
            None => match queue.from.try_recv() {
                Ok(item) => item,
                Err(_) => break,
            },
        };
        if item.answer.is_closed() {
            continue;
        }
        if writes.contains_key(&item.id) {
            again.push_back(item);
            continue;
        }
        writes.insert(item.id, item.write);
        answers.insert(item.id, item.answer);
    }
    again.append(&mut queue.next);
    queue.next = again;
    Some((writes, answers))
}

fn give<A>(answers: Waiting<A>, mut answered: Answers<A>) {
    for (id, answer) in answers {
        let said = answered.remove(&id).unwrap_or_else(|| Err(StoreError::not_applied(Kind::Conflict)));
        // Nobody may wait for it any more.
        let _ = answer.send(said);
    }
}

/// Each item alone, after one of them failed the others.
async fn one_by_one<L, W, A, F, C>(
    lane: &Arc<L>,
    commit: &C,
    writes: Arc<BTreeMap<RecordId, W>>,
    mut answers: Waiting<A>,
) where
    C: Fn(Arc<L>, Arc<BTreeMap<RecordId, W>>) -> F,
    F: Future<Output = Result<Answers<A>, WriteError>>,
{
    // Nobody else holds them: the batch is over.
    let Ok(writes) = Arc::try_unwrap(writes) else {
        fail(answers, StoreError::not_applied(Kind::Unavailable));
        return;
    };
    for (id, write) in writes {
        let Some(answer) = answers.remove(&id) else { continue };
        match commit(Arc::clone(lane), Arc::new(BTreeMap::from([(id, write)]))).await {
            Ok(answered) => give(BTreeMap::from([(id, answer)]), answered),
            Err(failed) => fail(BTreeMap::from([(id, answer)]), failed.error),
        }
    }
}

/// The same failure for all.
fn fail<A>(answers: Waiting<A>, error: StoreError) {
    let (kind, applied) = (error.kind.clone(), error.applied);
    let source: Option<Arc<dyn std::error::Error + Send + Sync>> = error.source.map(Arc::from);
    for answer in answers.into_values() {
        let failed = match applied {
            Applied::Unknown => StoreError::unknown(kind.clone()),
            Applied::No => StoreError::not_applied(kind.clone()),
        };
        let failed = match &source {
            Some(source) => failed.because(Shared(Arc::clone(source))),
            None => failed,
        };
        let _ = answer.send(Err(failed));
    }
}

/// One failure underneath that of many.
#[derive(Debug)]
struct Shared(Arc<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
