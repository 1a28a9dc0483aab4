//! What a process remembers of settled keys, while others of its requests forget them.

use std::sync::Arc;

use onceward_core::{
    key::RecordId,
    record::{ClaimId, Fence, Micros, Record, Revision, SessionId, State, Stored},
    transition,
};
use shuttle::sync::Mutex;
use shuttle::thread;
use tokio::time::Instant;

use crate::remember::{Remembered, Said};

const ID: RecordId = RecordId([7; 32]);

/// The record at this revision, settled; its attempt says which.
fn settled(revision: u32) -> Record {
    let mut facts = transition::place(ClaimId([1; 16]), SessionId([1; 16]));
    (facts.state, facts.attempt) = (State::Completed, revision);
    let revision = u64::from(revision);
    Record { stored: Stored { fence: Fence(1), revision: Revision(revision), ..Stored::default() }, facts }
}

/// A request reads, another replaces the record, a third removes it, and all note what the store said: whatever order
/// their answers come in, in the end nothing is remembered but what the store has.
pub fn nothing_is_remembered_but_what_the_store_has() {
    let remembered = Arc::new(Remembered::new(1 << 20));
    let store = Arc::new(Mutex::new(Some(settled(1))));
    let said = || Said { now: Micros(1), asked: Instant::now() };
    let reader = |remembered: Arc<Remembered>, store: Arc<Mutex<Option<Record>>>| {
        move || {
            let ticket = remembered.ticket(&ID);
            let there = store.lock().unwrap_or_else(|_| unreachable!("nobody panics")).clone();
            match there {
                Some(record) => drop(remembered.saw(ticket, &ID, &record, said())),
                None => remembered.forget(&ID),
            }
        }
    };
    let writer = |remembered: Arc<Remembered>, store: Arc<Mutex<Option<Record>>>, next: Option<Record>| {
        move || {
            remembered.forget(&ID);
            let ticket = remembered.ticket(&ID);
            let applied = {
                let mut there = store.lock().unwrap_or_else(|_| unreachable!("nobody panics"));
                // Both mean the record as it was first.
                let meets = there.as_ref().is_some_and(|record| record.stored.revision == Revision(1));
                if meets {
                    there.clone_from(&next);
                }
                if meets { Ok(next) } else { Err(there.clone()) }
            };
            match applied {
                Ok(Some(record)) => drop(remembered.wrote(ticket, &ID, record, said())),
                Err(Some(record)) => drop(remembered.saw(ticket, &ID, &record, said())),
                Ok(None) | Err(None) => remembered.forget(&ID),
            }
        }
    };
    let threads = [
        thread::spawn(reader(Arc::clone(&remembered), Arc::clone(&store))),
        thread::spawn(writer(Arc::clone(&remembered), Arc::clone(&store), Some(settled(2)))),
        thread::spawn(writer(Arc::clone(&remembered), Arc::clone(&store), None)),
    ];
    for thread in threads {
        assert!(thread.join().is_ok(), "a thread failed");
    }
    let there =
        store.lock().unwrap_or_else(|_| unreachable!("nobody panics")).as_ref().map(|there| there.facts.attempt);
    let known = remembered.recall(&ID).map(|(record, _)| record.facts.attempt);
    assert!(known.is_none() || known == there, "{known:?} is remembered, and {there:?} is there");
}
