//! Those who wait for a write to a key, without a lock where nobody does.

use std::sync::Arc;

use onceward_core::key::RecordId;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{future, thread};

use crate::watch::Watchers;

const ID: RecordId = RecordId([7; 32]);

/// Whoever watches and then reads does not sleep over a write: either it reads what was written, or it is woken.
pub fn no_write_is_slept_over() {
    let watchers = Watchers::default();
    let written = Arc::new(AtomicUsize::new(0));
    let writers = 2;
    let mut threads: Vec<_> = (0..writers)
        .map(|_| {
            let (watchers, written) = (watchers.clone(), Arc::clone(&written));
            thread::spawn(move || {
                written.fetch_add(1, Ordering::SeqCst);
                watchers.wake(&ID);
            })
        })
        .collect();
    threads.extend((0..2).map(|number| {
        let (watchers, written) = (watchers.clone(), Arc::clone(&written));
        thread::spawn(move || {
            if number == 1 {
                // One that goes away again leaves the other's entry.
                drop(watchers.watch(ID));
            }
            loop {
                let watch = watchers.watch(ID);
                if written.load(Ordering::SeqCst) == writers {
                    return;
                }
                future::block_on(watch);
            }
        })
    }));
    for thread in threads {
        assert!(thread.join().is_ok(), "a thread failed");
    }
}
