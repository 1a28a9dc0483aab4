//! What all clients share: where the process is now, the log of what they did and saw, and what is under way.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::history::{Digest, End, Event, Operation};

/// Where the processes are, and which of their lives it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Of those that run; empty while all are down.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Counted from 0.
    pub(crate) life: usize,
}

/// Figures that faults wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Whole answers in this life.
    pub(crate) answers: u32,
    /// Answers of the upstream that are a key's, in this life.
    pub(crate) settled: u32,
    /// Answers that say that they are not recorded, in this life.
    pub(crate) unrecorded: u32,
    /// Refusals because the store was not there, in this life.
    pub(crate) unavailable: u32,
    /// Requests under way whose key another request under way has too.
    pub(crate) duplicates: usize,
    /// Requests under way.
    pub(crate) open: usize,
}

/// Shared by all clients of a round.
pub(crate) struct Traffic {
    place: watch::Sender<Place>,
    /// Requests so far: each goes to another process than the one before.
    turns: AtomicUsize,
    figures: watch::Sender<Figures>,
    log: Mutex<Log>,
}

/// What clients did and saw.
#[derive(Default)]
pub(crate) struct Log {
    /// In order.
    pub(crate) events: Vec<Event>,
    /// Wall clock of each event, in microseconds.
    pub(crate) times_us: Vec<u64>,
    /// What events name by number.
    pub(crate) operations: Vec<Operation>,
    /// The bodies that came with each, in order of their first use.
    pub(crate) bodies: Vec<Vec<String>>,
    requests: usize,
    under_way: HashMap<usize, usize>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            place: watch::Sender::new(Place { addresses: Vec::new(), life: 0 }),
            turns: AtomicUsize::new(0),
            figures: watch::Sender::default(),
            log: Mutex::default(),
        }
    }
}

impl Traffic {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes are up: a new life.
    pub(crate) fn are_up(&self, addresses: Vec<SocketAddr>, life: usize) {
        self.figures.send_modify(|figures| {
            *figures = Figures { open: figures.open, duplicates: figures.duplicates, ..Figures::default() }
        });
        let _before = self.place.send_replace(Place { addresses, life });
    }

    /// In the same life, these are left.
    pub(crate) fn are_left(&self, addresses: Vec<SocketAddr>) {
        self.place.send_modify(|place| place.addresses = addresses);
    }

    /// Waits until a process is up; where several are, each in its turn.
    pub(crate) async fn place(&self) -> (SocketAddr, usize) {
        let mut place = self.place.subscribe();
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        loop {
            {
                let Place { addresses, life } = &*place.borrow_and_update();
                let at = turn.checked_rem(addresses.len()).unwrap_or(0);
                if let Some(address) = addresses.get(at) {
                    return (*address, *life);
                }
            }
            // The sender is this one: it is not gone.
            let _changed = place.changed().await;
        }
    }

    /// Waits until the figures are so, at most for `limit`. False: they are not.
    pub(crate) async fn until(&self, limit: Duration, are: impl FnMut(&Figures) -> bool) -> bool {
        let mut figures = self.figures.subscribe();
        tokio::time::timeout(limit, figures.wait_for(are)).await.is_ok()
    }

    /// The figures now.
    #[must_use]
    pub(crate) fn figures(&self) -> Figures {
        *self.figures.borrow()
    }

    /// Names an operation.
    #[must_use]
    pub(crate) fn operation(&self, operation: Operation) -> usize {
        let mut log = self.lock();
        log.operations.push(operation);
        log.bodies.push(Vec::new());
        log.operations.len() - 1
    }

    /// A request is begun.
    #[must_use]
    pub(crate) fn sent(&self, operation: usize, body: &str, digest: Digest, life: usize, audit: bool) -> usize {
        let mut log = self.lock();
        let request = log.requests;
        log.requests += 1;
        log.push(Event::Sent { request, operation, body: digest, life, audit });
        if let Some(bodies) = log.bodies.get_mut(operation)
            && !bodies.iter().any(|known| known == body)
        {
            bodies.push(body.to_owned());
        }
        let under_way = log.under_way.entry(operation).or_default();
        *under_way += 1;
        let is_duplicate = *under_way > 1;
        drop(log);
        self.figures.send_modify(|figures| {
            figures.open += 1;
            figures.duplicates += usize::from(is_duplicate);
        });
        request
    }

    /// It ended.
    pub(crate) fn ended(&self, request: usize, operation: usize, end: End) {
        let (answers, settled, unrecorded, unavailable) = match &end {
            End::Answer(answer) => (
                1,
                u32::from(is_settled(&end)),
                u32::from(answer.unrecorded),
                u32::from(answer.problem.as_deref() == Some("store-unavailable")),
            ),
            End::Broken | End::Left => (0, 0, 0, 0),
        };
        let mut log = self.lock();
        log.push(Event::Ended { request, end });
        let left = log.under_way.entry(operation).or_default();
        let was_duplicate = *left > 1;
        *left = left.saturating_sub(1);
        if *left == 0 {
            log.under_way.remove(&operation);
        }
        drop(log);
        self.figures.send_modify(|figures| {
            figures.answers += answers;
            figures.settled += settled;
            figures.unrecorded += unrecorded;
            figures.unavailable += unavailable;
            figures.open = figures.open.saturating_sub(1);
            figures.duplicates = figures.duplicates.saturating_sub(usize::from(was_duplicate));
        });
    }

    /// The operations with the bodies that came with each.
    #[must_use]
    pub(crate) fn asked(&self) -> Vec<(usize, Operation, Vec<String>)> {
        let log = self.lock();
        let asked = log.operations.iter().zip(&log.bodies).enumerate();
        asked.map(|(at, (operation, bodies))| (at, operation.clone(), bodies.clone())).collect()
    }

    /// Operations that have their answer and that nobody asks for now.
    #[must_use]
    pub(crate) fn at_rest(&self) -> Vec<Operation> {
        let log = self.lock();
        let mut of: HashMap<usize, usize> = HashMap::new();
        let mut settled = BTreeSet::new();
        for event in &log.events {
            match event {
                Event::Sent { request, operation, .. } => {
                    of.insert(*request, *operation);
                }
                Event::Ended { request, end } if is_settled(end) => settled.extend(of.get(request)),
                Event::Ended { .. } => {}
            }
        }
        let at_rest = settled.into_iter().filter(|operation| !log.under_way.contains_key(operation));
        at_rest.filter_map(|operation| log.operations.get(operation)).cloned().collect()
    }

    /// Operations that may have been written to the store between two times of the wall clock, in microseconds: those
    /// that were begun before its end, and of which no answer was known before its beginning. What was asked for before
    /// `since_us` may have been lost, and says nothing.
    #[must_use]
    pub(crate) fn written_between(&self, since_us: u64, from_us: u64, to_us: u64) -> Vec<Operation> {
        let log = self.lock();
        let mut of: HashMap<usize, usize> = HashMap::new();
        let (mut begun, mut known) = (BTreeSet::new(), BTreeSet::new());
        for (event, at) in log.events.iter().zip(&log.times_us) {
            match event {
                Event::Sent { request, operation, .. } => {
                    if *at >= since_us {
                        of.insert(*request, *operation);
                    }
                    if *at <= to_us {
                        begun.insert(*operation);
                    }
                }
                Event::Ended { request, end } if is_settled(end) && *at < from_us => {
                    known.extend(of.get(request));
                }
                Event::Ended { .. } => {}
            }
        }
        begun.difference(&known).filter_map(|operation| log.operations.get(*operation)).cloned().collect()
    }

    /// The whole log, when all clients have gone.
    #[must_use]
    pub(crate) fn take(&self) -> Log {
        std::mem::take(&mut *self.lock())
    }
}

/// An answer of the upstream's that is the key's.
fn is_settled(end: &End) -> bool {
    let End::Answer(answer) = end else { return false };
    answer.dispatch.is_some() && matches!(answer.status, 201 | 500) && !answer.unrecorded
}

impl Log {
    fn push(&mut self, event: Event) {
        self.events.push(event);
        self.times_us.push(wall_us());
    }
}

/// The wall clock in microseconds.
#[must_use]
pub(crate) fn wall_us() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "to compare with the interval that a damaged store lists")]
    let now = SystemTime::now();
    u64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}
