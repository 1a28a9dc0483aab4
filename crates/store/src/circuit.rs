//! A circuit breaker: a store that does not answer is asked less often, so that whoever waits is told at once.
//!
//! Closed, every call goes through. After so many failures in a row it opens: calls fail at once and nothing is sent. After
//! a time, a little shorter or longer each time so that processes do not ask together, it is half open: one call goes
//! through, and its end decides. (M. Nygard, *Release It!*, "Circuit Breaker".)

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{Kind, StoreError};

/// When a circuit opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row that open it; at least 1.
    pub failures: u32,
    /// How long it stays open, give or take a fifth.
    pub open: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, open: Duration::from_secs(1) }
    }
}

/// Where a circuit stands; as numbers in `onceward_circuit_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Calls go through.
    Closed = 0,
    /// One call is on its way, to see.
    HalfOpen = 1,
    /// Calls fail at once.
    Open = 2,
}

/// The breaker of one store.
#[derive(Debug)]
pub(crate) struct Gate {
    /// As the log names it.
    name: &'static str,
    breaker: Breaker,
    /// Whether it is closed and the last call was answered, so that calls of a store that is well take no lock.
    is_well: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { since: Instant },
}

/// A call that may go through. Dropped without a word, as where its caller has gone, it says nothing of the store.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    is_probe: bool,
}

impl Gate {
    pub(crate) fn new(name: &'static str, breaker: Breaker) -> Self {
        let state = Mutex::new(State::Closed { failures: 0 });
        Self { name, breaker, is_well: AtomicBool::new(true), state }
    }

    pub(crate) fn breaker(&self) -> Breaker {
        self.breaker
    }

    pub(crate) fn circuit(&self) -> Circuit {
        match *self.lock() {
            State::Closed { .. } => Circuit::Closed,
            State::HalfOpen { .. } => Circuit::HalfOpen,
            State::Open { .. } => Circuit::Open,
        }
    }

    /// Lets a call through, or fails it: it was not sent.
    pub(crate) fn pass(&self) -> Result<Pass<'_>, StoreError> {
        if self.is_well.load(Ordering::Acquire) {
            return Ok(Pass { gate: self, is_probe: false });
        }
        let mut state = self.lock();
        let is_probe = match *state {
            State::Closed { .. } => false,
            State::Open { until } if Instant::now() < until => return Err(refused()),
            State::Open { .. } => {
                *state = State::HalfOpen { since: Instant::now() };
                true
            }
            State::HalfOpen { .. } => return Err(refused()),
        };
        drop(state);
        Ok(Pass { gate: self, is_probe })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Give or take a fifth.
    fn open_for(&self) -> Duration {
        let mut draw = [0; 1];
        // Without randomness processes may ask together: no more than that.
        let _drawn = getrandom::fill(&mut draw);
        self.breaker.open.mul_f64(0.8 + 0.4 * f64::from(draw[0]) / 255.0)
    }
}

impl Pass<'_> {
    /// The call has ended.
    pub(crate) fn ended<T>(mut self, result: &Result<T, StoreError>) {
        let failed = result.as_ref().is_err_and(|error| is_outage(&error.kind));
        let was_probe = std::mem::take(&mut self.is_probe);
        if !failed && self.gate.is_well.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.gate.lock();
        let next = match (&*state, failed) {
            (State::Closed { failures: 0 }, false) => return,
            (_, false) => State::Closed { failures: 0 },
            (State::Closed { failures }, true) if failures + 1 < self.gate.breaker.failures => {
                State::Closed { failures: failures + 1 }
            }
            // One that was let through before it opened says nothing new.
            (State::Open { .. }, true) => return,
            (State::HalfOpen { .. }, true) if !was_probe => return,
            (_, true) => State::Open { until: Instant::now() + self.gate.open_for() },
        };
        match (&*state, &next) {
            (State::Closed { .. }, State::Open { .. }) => {
                tracing::error!("{} does not answer: calls fail at once until it does", self.gate.name);
            }
            (State::HalfOpen { since }, State::Closed { .. }) => {
                tracing::info!(probe_us = since.elapsed().as_micros(), "{} answers again", self.gate.name);
            }
            _ => {}
        }
        let is_well = matches!(next, State::Closed { failures: 0 });
        *state = next;
        // Under the lock, so that the last to know is the last to say.
        self.gate.is_well.store(is_well, Ordering::Release);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            // Nobody heard how it ended: the next call is the probe.
            *self.gate.lock() = State::Open { until: Instant::now() };
        }
    }
}

/// What says that the store cannot be reached. One that answers no is well.
fn is_outage(kind: &Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::NotPrimary)
}

fn refused() -> StoreError {
    StoreError::not_applied(Kind::Unavailable).because("it did not answer the last calls: the circuit is open")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn call(gate: &Gate, result: Result<(), StoreError>) -> bool {
        let Ok(pass) = gate.pass() else { return false };
        pass.ended(&result);
        true
    }

    fn down() -> Result<(), StoreError> {
        Err(StoreError::unknown(Kind::Unavailable))
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_one_call_decides_when_it_closes() {
        let gate = Gate::new("the store", Breaker { failures: 3, open: SECOND });
        for result in [down(), down(), Ok(()), down(), down()] {
            assert!(call(&gate, result));
        }
        assert_eq!(gate.circuit(), Circuit::Closed, "not in a row");
        assert!(call(&gate, down()) && gate.circuit() == Circuit::Open);
        let refused = gate.pass().unwrap_err();
        assert_eq!((refused.kind, refused.applied), (Kind::Unavailable, crate::Applied::No));

        tokio::time::advance(SECOND * 2).await;
        let probe = gate.pass().unwrap();
        assert!(gate.circuit() == Circuit::HalfOpen && gate.pass().is_err(), "one at a time");
        probe.ended(&down());
        assert!(gate.circuit() == Circuit::Open && gate.pass().is_err());
        tokio::time::advance(SECOND * 2).await;
        assert!(call(&gate, Ok(())) && gate.circuit() == Circuit::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_says_no_is_well_and_a_probe_that_nobody_waits_for_is_tried_again() {
        let gate = Gate::new("the store", Breaker { failures: 1, open: SECOND });
        for kind in [Kind::Full, Kind::Declined, Kind::Damaged("x".into()), Kind::SessionOver] {
            assert!(call(&gate, Err(StoreError::not_applied(kind))));
        }
        assert_eq!(gate.circuit(), Circuit::Closed);
        assert!(call(&gate, down()));
        tokio::time::advance(SECOND * 2).await;
        drop(gate.pass().unwrap());
        assert!(call(&gate, Ok(())) && gate.circuit() == Circuit::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_end_of_an_older_call_does_not_keep_it_open() {
        let gate = Gate::new("the store", Breaker { failures: 1, open: SECOND });
        let (slow, slower) = (gate.pass().unwrap(), gate.pass().unwrap());
        assert!(call(&gate, down()));
        slow.ended(&down());
        tokio::time::advance(SECOND * 2).await;
        let probe = gate.pass().unwrap();
        slower.ended(&down());
        assert_eq!(gate.circuit(), Circuit::HalfOpen, "the probe decides");
        probe.ended(&Ok::<(), StoreError>(()));
        assert_eq!(gate.circuit(), Circuit::Closed);
    }
}
