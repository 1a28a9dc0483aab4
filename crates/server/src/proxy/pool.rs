//! The connections to one upstream that wait for their next request.
//!
//! hyper-util has a pool too; this one knows less and so costs less (no races between a checkout and a connect, no task
//! for each answer), and it holds the rule on retries itself: see [`Pool::exchange`].

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use super::connector::Connector;
use super::upstream::UpstreamError;

/// Connections without a request that are kept.
const IDLE_MAX: usize = 1024;
/// Bytes of an answer's head, and what is read ahead of an answer's reader.
const ANSWER_BUFFER_BYTES: usize = 128 << 10;

/// The connections to one upstream.
#[derive(Debug)]
pub(super) struct Pool<B> {
    connector: Connector,
    /// Scheme, host and port.
    target: Uri,
    idle_timeout: Duration,
    /// The last in is the first out, so that what is not needed grows old.
    idle: Mutex<Vec<Idle<B>>>,
    /// Whether the task runs that closes the old ones.
    swept: AtomicBool,
}

#[derive(Debug)]
struct Idle<B> {
    sender: SendRequest<B>,
    since: Instant,
}

/// A connection on which an exchange is not at its end; goes back to its pool by [`Used::finish`], and closes when it
/// is dropped.
#[derive(Debug)]
pub(super) struct Used<B> {
    pool: Arc<Pool<B>>,
    sender: SendRequest<B>,
}

impl<B> Pool<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    pub(super) fn new(target: Uri, connect_timeout: Duration, idle_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            connector: Connector::new(connect_timeout),
            target,
            idle_timeout,
            idle: Mutex::new(Vec::new()),
            swept: AtomicBool::new(false),
        })
    }

    /// Sends a request, and gives its answer with the connection that it comes on.
    ///
    /// It is sent to another connection only when hyper gives it back whole, which it does if and only if it had not
    /// begun to write it, and when that connection was an old one: a new one that ends so tells something.
    pub(super) async fn exchange(
        self: Arc<Self>,
        mut request: Request<B>,
    ) -> Result<(Response<Incoming>, Used<B>), UpstreamError> {
        loop {
            let (mut sender, kept) = match self.take() {
                Some(sender) => (sender, true),
                None => (self.connect().await?, false),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Used { pool: self, sender })),
                Err(mut error) => match error.take_message() {
                    Some(whole) if kept => request = whole,
                    Some(_) => {
                        return Err(UpstreamError::NotSent { source: Box::new(error.into_error()) });
                    }
                    None => return Err(UpstreamError::of_exchange(error.into_error())),
                },
            }
        }
    }

    /// A connection that is open and waits, as far as can be known.
    fn take(&self) -> Option<SendRequest<B>> {
        let mut idle = lock(&self.idle);
        let now = Instant::now();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let kept = idle.get(at)?;
            if kept.sender.is_closed() || now - kept.since >= self.idle_timeout {
                idle.swap_remove(at);
            } else if kept.sender.is_ready() {
                return Some(idle.swap_remove(at).sender);
            }
            // One that is neither is about to finish its last exchange.
        }
        None
    }

    fn put(self: Arc<Self>, sender: SendRequest<B>) {
        if sender.is_closed() || self.idle_timeout.is_zero() {
            return;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: Instant::now() });
            drop(idle);
            if !self.swept.swap(true, Ordering::AcqRel) {
                tokio::spawn(sweep(Arc::downgrade(&self), self.idle_timeout));
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<B>, UpstreamError> {
        let mut connector = self.connector.clone();
        let not_sent = |source| UpstreamError::NotSent { source };
        let io = connector.ready().await.map_err(not_sent)?.call(self.target.clone()).await.map_err(not_sent)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(ANSWER_BUFFER_BYTES)
            .handshake(io)
            .await
            .map_err(|error| not_sent(error.into()))?;
        // Ends when its sender is dropped and its last exchange is over.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the upstream ended early");
            }
        });
        Ok(sender)
    }
}

impl<B> Used<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    /// The answer is at its end: the connection may be used again.
    pub(super) fn finish(self) {
        self.pool.put(self.sender);
    }
}

/// Closes connections that grew old, until there are none or the pool is gone.
async fn sweep<B>(pool: Weak<Pool<B>>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout / 2).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        let mut idle = lock(&pool.idle);
        let now = Instant::now();
        idle.retain(|kept| !kept.sender.is_closed() && now - kept.since < idle_timeout);
        if idle.is_empty() {
            // Under the lock: whoever puts the next one in sees it.
            pool.swept.store(false, Ordering::Release);
            return;
        }
    }
}

/// The list is whole whatever a panicking holder did: it only adds and removes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
