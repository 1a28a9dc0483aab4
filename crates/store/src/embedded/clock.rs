//! The store's clock: the wall's time when the store was opened, and the machine's running time since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use onceward_core::record::Micros;
use rustix::time::{ClockId, clock_gettime};

/// How the store tells the time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The wall clock at the start, then the boot clock, which also runs while the machine sleeps. A jump of the wall
    /// clock changes nothing until the next start.
    #[default]
    Machine,
    /// Set from outside, in microseconds since the epoch.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The time outside, before the store says what its last was.
    pub(crate) fn wall(&self) -> Micros {
        match self {
            Self::Machine => {
                #[expect(clippy::disallowed_methods, reason = "this is the store's clock")]
                let now = std::time::SystemTime::now();
                Micros::ZERO.plus(now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default())
            }
            Self::Manual(now) => Micros(now.load(Ordering::SeqCst)),
        }
    }
}

/// A clock that has been started: it never goes back.
#[derive(Debug)]
pub(crate) struct Started {
    clock: Clock,
    start: Micros,
    boot_at_start: u64,
    latest: AtomicU64,
}

impl Started {
    /// Goes on from the wall's time or, where that is behind it, from `last`, the last time that the store knows.
    pub(crate) fn new(clock: Clock, last: Micros) -> Self {
        let start = clock.wall().max(Micros(last.0.saturating_add(1)));
        Self { clock, start, boot_at_start: boot_us(), latest: AtomicU64::new(start.0) }
    }

    pub(crate) fn now(&self) -> Micros {
        let now = match &self.clock {
            Clock::Machine => return Micros(self.start.0.saturating_add(boot_us().saturating_sub(self.boot_at_start))),
            Clock::Manual(now) => now.load(Ordering::SeqCst),
        };
        Micros(self.latest.fetch_max(now, Ordering::SeqCst).max(now))
    }
}

/// Microseconds since the machine was started.
fn boot_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1_000_000 + nanoseconds / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on_from_the_last_time_of_the_log_and_never_back() {
        let wall = Arc::new(AtomicU64::new(100));
        let clock = Started::new(Clock::Manual(Arc::clone(&wall)), Micros(500));
        assert_eq!(clock.now(), Micros(501));
        wall.store(700, Ordering::SeqCst);
        assert_eq!(clock.now(), Micros(700));
        wall.store(600, Ordering::SeqCst);
        assert_eq!(clock.now(), Micros(700));
    }

    #[test]
    fn the_machines_clock_starts_at_the_wall_and_runs() {
        let clock = Started::new(Clock::Machine, Micros::ZERO);
        let wall = Clock::Machine.wall();
        let now = clock.now();
        assert!(now.since(wall).max(wall.since(now)).as_secs() < 60);
        assert!(clock.now() >= now);
    }
}
