//! Work that outlives the client it is done for.
//!
//! A protected request runs inside its connection's task as long as the client is there, which
//! costs no hand-over between tasks. When the client goes away, or has got its answer before the
//! work is done, the rest moves to a task of the engine's tracker, which `drain` waits for.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    task::{Context, Poll},
};

use http::Response;
use onceward_core::mutant::{self, Mutant};
use tokio_util::task::TaskTracker;

use crate::body::Body;

/// The work's side: how it answers before it is done, and whether it must be done at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handoff(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    early: Mutex<Option<Response<Body>>>,
    /// The status of the answer that was given, zero before.
    given: AtomicU16,
    must_finish: AtomicBool,
}

impl Handoff {
    /// Raised while dropping the work would leave something undone.
    pub(crate) fn must_finish(&self) -> &AtomicBool {
        &self.0.must_finish
    }

    /// Gives the client its answer now. The work goes on; what it returns is dropped. Only the
    /// first answer counts.
    pub(crate) fn give(&self, response: Response<Body>) {
        let status = response.status().as_u16();
        if self.0.given.compare_exchange(0, status, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            *self.0.early.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
        }
    }

    /// The status of the answer that the client was given before the work was done.
    pub(crate) fn status(&self) -> Option<u16> {
        Some(self.0.given.load(Ordering::Acquire)).filter(|status| *status > 0)
    }

    fn take(&self) -> Option<Response<Body>> {
        self.status()?;
        self.0.early.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Runs `work` for a client, and without it if need be.
pub(crate) struct Detach<F>
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    work: Option<Pin<Box<F>>>,
    handoff: Handoff,
    tracker: TaskTracker,
}

impl<F> Detach<F>
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    pub(crate) fn new(work: F, handoff: Handoff, tracker: TaskTracker) -> Self {
        Self { work: Some(Box::pin(work)), handoff, tracker }
    }

    fn go_on_alone(&mut self) {
        let Some(work) = self.work.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tracker.spawn_on(
                async move {
                    // Nobody is left to answer.
                    drop(work.await);
                },
                &runtime,
            );
        }
    }
}

impl<F> Future for Detach<F>
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let this = &mut *self;
        if let Some(work) = &mut this.work
            && let Poll::Ready(response) = work.as_mut().poll(cx)
        {
            this.work = None;
            return Poll::Ready(this.handoff.take().unwrap_or(response));
        }
        match this.handoff.take() {
            Some(response) => {
                this.go_on_alone();
                Poll::Ready(response)
            }
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Detach<F>
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    fn drop(&mut self) {
        if self.handoff.must_finish().load(Ordering::Relaxed) && !mutant::is(Mutant::TiedToClient) {
            self.go_on_alone();
        }
    }
}
