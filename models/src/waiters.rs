//! Duplicates in flight, around one key of a store that is a single cell.

use std::sync::Arc;

use onceward_core::claim::{Belongs, Claim};
use onceward_core::decide::Ask;
use onceward_core::key::RecordId;
use onceward_core::policy::Policy;
use onceward_core::record::{ClaimId, Record, SessionId, Stored};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{future, thread};

use crate::wait::{Flights, News, NoSeat, Turn};

const ID: RecordId = RecordId([7; 32]);

/// What the store says of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Free,
    InFlight,
    Completed,
}

struct World {
    flights: Arc<Flights>,
    cell: Mutex<Cell>,
    /// Executions that release the key before one completes it.
    releases: AtomicUsize,
    executing: AtomicUsize,
    completed: AtomicUsize,
    /// Whether a flight is owned by an execution.
    owned: AtomicUsize,
    /// Turns that were heard of.
    turns: AtomicUsize,
    /// Those of them that may go on to the next one.
    passed: AtomicUsize,
}

/// A few requests with one key, of which the first executions say that nothing was done. Nobody waits for ever, one at a
/// time executes, and nobody is woken to look again while another executes.
pub fn everybody_is_answered() {
    run(3, 1, 0);
}

/// The same with clients that go away while they wait.
pub fn whoever_leaves_takes_no_turn_along() {
    run(4, 1, 2);
}

fn run(requests: usize, releases: usize, leaving: usize) {
    let world = Arc::new(World {
        flights: Arc::new(Flights::default()),
        cell: Mutex::new(Cell::Free),
        releases: AtomicUsize::new(releases),
        executing: AtomicUsize::new(0),
        completed: AtomicUsize::new(0),
        owned: AtomicUsize::new(0),
        turns: AtomicUsize::new(0),
        passed: AtomicUsize::new(0),
    });
    let threads: Vec<_> = (0..requests)
        .map(|number| {
            let world = Arc::clone(&world);
            thread::spawn(move || request(&world, number < leaving))
        })
        .collect();
    for thread in threads {
        assert!(thread.join().is_ok(), "a request failed");
    }
    assert_eq!(world.flights.waiting(), 0, "somebody is still counted as waiting");
    assert!(!world.flights.is_owned(&ID), "a flight without an owner is left");
    let ended = (*lock(&world.cell), world.completed.load(Ordering::SeqCst));
    // Whoever releases is answered, and so nobody may be left to complete it.
    assert!(ended == (Cell::Completed, 1) || ended == (Cell::Free, 0), "{ended:?}");
    let turns = world.turns.load(Ordering::SeqCst);
    let may_be = releases + world.passed.load(Ordering::SeqCst);
    assert!(turns <= may_be, "{turns} were woken to look again, for {may_be} reasons");
}

/// One request, until it is answered; as `layer/drive.rs` goes about it.
fn request(world: &World, leaves: bool) {
    let mut turn: Option<Turn> = None;
    loop {
        let found = {
            let mut cell = lock(&world.cell);
            let found = *cell;
            if found == Cell::Free {
                *cell = Cell::InFlight;
            }
            found
        };
        match found {
            Cell::Completed => return,
            Cell::Free => {
                return execute(world, turn.take());
            }
            Cell::InFlight => {
                // Who has the turn and finds the key taken gives the turn back. It goes on only where whoever took the
                // key has not come as far as to own its flight.
                if let Some(turn) = turn.take() {
                    if world.owned.load(Ordering::SeqCst) == 0 {
                        world.passed.fetch_add(1, Ordering::SeqCst);
                    }
                    drop(turn);
                }
                match world.flights.join(&ID, 16, 16) {
                    Err(NoSeat::NotHere) => thread::yield_now(),
                    Err(other) => assert!(matches!(other, NoSeat::Settled(_)), "{other:?}"),
                    Ok(seat) if leaves => {
                        thread::yield_now();
                        drop(seat);
                        return;
                    }
                    Ok(seat) => match future::block_on(seat.news()) {
                        Some(News::Settled(_)) => return,
                        Some(News::YourTurn(given)) => {
                            world.turns.fetch_add(1, Ordering::SeqCst);
                            turn = Some(given);
                        }
                        None => assert_eq!(world.completed.load(Ordering::SeqCst), 1, "a seat lost without a word"),
                    },
                }
            }
        }
    }
}

fn execute(world: &World, turn: Option<Turn>) {
    let owner = world.flights.own(ID, turn);
    world.owned.store(1, Ordering::SeqCst);
    assert_eq!(world.executing.fetch_add(1, Ordering::SeqCst), 0, "two execute at once");
    thread::yield_now();
    world.executing.fetch_sub(1, Ordering::SeqCst);
    world.owned.store(0, Ordering::SeqCst);
    let releases = world.releases.load(Ordering::SeqCst);
    if releases > 0 {
        world.releases.store(releases - 1, Ordering::SeqCst);
        *lock(&world.cell) = Cell::Free;
        drop(owner);
        return;
    }
    world.completed.fetch_add(1, Ordering::SeqCst);
    *lock(&world.cell) = Cell::Completed;
    owner.settle(record());
}

fn lock<T>(mutex: &Mutex<T>) -> shuttle::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn record() -> Record {
    let ask = Ask {
        claim_id: ClaimId([1; 16]),
        session: SessionId([2; 16]),
        principal_proof: None,
        vouched: false,
        fingerprint_policy: 0,
        fingerprint: [0; 32],
    };
    let (claim, _) = Claim::new(Arc::new(Policy::default()), ask, Belongs::default(), Vec::new());
    Record { stored: Stored::default(), facts: claim.facts().clone() }
}
