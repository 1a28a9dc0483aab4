//! Clients that ask one thing after the other while a test does something to the servers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::task::JoinHandle;

use super::support::{soon, until};

/// They ask until it ends, and keep what came of each question.
pub(crate) struct Load<T> {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<T>>>,
}

impl<T: Send + 'static> Load<T> {
    /// Each of so many clients asks by its number and its question's.
    pub(crate) fn start<F>(clients: usize, ask: impl Fn(usize, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = T> + Send,
    {
        let (stop, asked, ask) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(ask));
        let client = |client| {
            let (stop, asked, ask) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&ask));
            tokio::spawn(async move {
                let mut came = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    came.push(ask(client, came.len()).await);
                    asked.fetch_add(1, Ordering::SeqCst);
                }
                came
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, asked, clients }
    }

    /// Until so many more questions have come to their end, or a client has failed, which [`end`](Self::end) tells.
    pub(crate) async fn more(&self, count: usize) {
        let then = self.asked.load(Ordering::SeqCst) + count;
        let has_failed = || self.clients.iter().any(JoinHandle::is_finished);
        until("more answers", async || self.asked.load(Ordering::SeqCst) >= then || has_failed()).await;
    }

    /// Whatever came, of all clients.
    pub(crate) async fn end(self) -> Vec<T> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(soon("a client's end", client).await.unwrap());
        }
        all
    }
}
