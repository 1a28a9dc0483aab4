//! A partition's view in this process, and who is inside it.
//!
//! A write is inside from the moment its script is sent until its fact is in the spool (A3). A view is acknowledged only
//! when nobody is inside the one before.

use std::sync::{Mutex, MutexGuard, PoisonError};

use onceward_core::mutant::{self, Mutant};
use tokio::sync::Notify;

use super::{Incarnation, View};

/// Which view this process names, on which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    pub(super) view: View,
    pub(super) incarnation: Incarnation,
}

#[derive(Debug, Default)]
struct State {
    serving: Option<Serving>,
    /// How many are inside, whichever view they entered.
    inside: usize,
    /// In which view this process was let in.
    admitted: Option<View>,
    /// In which view a step was turned away although it was let in before.
    forgotten: Option<View>,
}

/// Of one partition.
#[derive(Debug, Default)]
pub(super) struct Guard {
    state: Mutex<State>,
    left: Notify,
    serves: Notify,
}

/// Somebody is inside until this is dropped.
#[derive(Debug)]
pub(super) struct Inside<'a> {
    guard: &'a Guard,
    pub(super) serving: Serving,
    /// Whether this process was let into the view before.
    pub(super) is_admitted: bool,
}

impl Inside<'_> {
    /// The server says that it is not of this view, or does not know this process.
    pub(super) fn is_turned_away(&self) {
        if self.is_admitted {
            self.guard.state().forgotten = Some(self.serving.view);
        }
    }
}

impl Guard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while views change.
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        let mut state = self.state();
        let serving = state.serving?;
        state.inside += 1;
        Some(Inside { guard: self, serving, is_admitted: state.admitted == Some(serving.view) })
    }

    /// As [`enter`](Self::enter), once there is a view that `is_it`.
    pub(super) async fn opened(&self, is_it: impl Fn(&Inside<'_>) -> bool) -> Inside<'_> {
        loop {
            let serves = self.serves.notified();
            tokio::pin!(serves);
            serves.as_mut().enable();
            if let Some(inside) = self.enter().filter(&is_it) {
                return inside;
            }
            serves.await;
        }
    }

    /// Whoever enters this view from here on is let in by its server.
    pub(super) fn admit(&self, view: View) {
        self.state().admitted = Some(view);
        self.serves.notify_waiters();
    }

    /// Whether the view's server turned somebody away whom it had let in.
    pub(super) fn is_forgotten(&self, view: View) -> bool {
        self.state().forgotten == Some(view)
    }

    pub(super) fn serving(&self) -> Option<Serving> {
        self.state().serving
    }

    pub(super) fn serve(&self, serving: Serving) {
        self.state().serving = Some(serving);
    }

    /// Nobody enters any more, until there is another view.
    pub(super) fn close(&self) {
        self.state().serving = None;
    }

    /// Nobody is inside.
    pub(super) async fn emptied(&self) {
        loop {
            let left = self.left.notified();
            if self.state().inside == 0 || mutant::is(Mutant::AckInsideGuard) {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.guard.state();
        state.inside -= 1;
        if state.inside == 0 {
            drop(state);
            // One may ask: the one that changes views.
            self.guard.left.notify_one();
        }
    }
}
