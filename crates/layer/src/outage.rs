//! When whoever was refused because the store does not answer may come back: some time that is drawn, from a longer span
//! the longer it lasts, so that they do not come in one moment once it answers again.
//!
//! What was refused in an outage of *t* seconds is *t* seconds' worth of requests, on top of those that come anyway. Drawn
//! from fifteen times as long it makes about a fifth more of them for a while, and from a second it would make *t* times as
//! many more.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How many times as long as it has lasted.
const TIMES: u32 = 15;
/// What it is drawn from at first.
const FIRST: Duration = Duration::from_secs(5);
/// Nobody is told to wait longer. Of an outage of ten seconds or more others come back sooner than they should for that
/// fifth: who waits longer for a store that was back at once thinks that it is not.
const MOST: Duration = Duration::from_secs(30);
/// After so long without a refusal it is over.
const OVER: Duration = Duration::from_secs(2);

/// The outage that goes on, if any.
#[derive(Debug, Default)]
pub(crate) struct Outage(Mutex<Option<Series>>);

#[derive(Clone, Copy, Debug)]
struct Series {
    since: Instant,
    last: Instant,
}

impl Outage {
    /// A request is refused: when it may come back, in whole seconds from 1 on. `draw` is from 0 to 1.
    pub(crate) fn refused(&self, now: Instant, draw: f64) -> Duration {
        let mut series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *series {
            Some(Series { since, last }) if now.saturating_duration_since(last) < OVER => since,
            _ => now,
        };
        *series = Some(Series { since, last: now });
        let span = (FIRST + now.saturating_duration_since(since) * TIMES).min(MOST);
        Duration::from_secs_f64(1.0 + (span.as_secs_f64() * draw).floor()).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests come at a steady rate, and so many tenths of a second later the store answers again: the most that come in
    /// a second from then on, beside the rate.
    fn peak(tenths: u32) -> f64 {
        const A_TENTH: u32 = 20;
        let (outage, began) = (Outage::default(), Instant::now());
        let mut coming: std::collections::HashMap<u32, u32> = std::collections::HashMap::new();
        let mut back = vec![0; 700];
        let mut draw = 0.0;
        for step in 0..700 * A_TENTH {
            let come = 1 + coming.remove(&step).unwrap_or(0);
            if step >= tenths * A_TENTH {
                back[usize::try_from(step / A_TENTH).unwrap()] += come;
                continue;
            }
            for _ in 0..come {
                // Spread as even as can be.
                draw = (draw + 0.618_034) % 1.0;
                let after = outage.refused(began + Duration::from_millis(5) * step, draw).as_secs();
                *coming.entry(step + u32::try_from(after).unwrap() * 10 * A_TENTH).or_default() += 1;
            }
        }
        let a_second = back.windows(10).map(|tenths| tenths.iter().sum::<u32>()).max().unwrap();
        f64::from(a_second) / f64::from(10 * A_TENTH)
    }

    #[test]
    fn those_who_were_refused_add_about_a_fifth_when_the_store_is_back() {
        for (tenths, most) in [(10, 1.25), (20, 1.25), (30, 1.25), (45, 1.35)] {
            let peak = peak(tenths);
            assert!(peak <= most, "after {tenths} tenths of a second: {peak} times what came before");
        }
    }

    #[test]
    fn the_span_grows_from_five_seconds_to_half_a_minute_and_begins_anew_after_a_pause() {
        let (outage, began) = (Outage::default(), Instant::now());
        let refused = |after_ms: u64, draw| outage.refused(began + Duration::from_millis(after_ms), draw).as_secs();
        assert_eq!([refused(0, 0.0), refused(0, 0.5), refused(0, 0.99)], [1, 3, 5]);
        assert_eq!([refused(1_000, 0.0), refused(1_000, 0.5), refused(1_000, 0.99)], [1, 11, 20]);
        assert_eq!([refused(2_900, 0.99), refused(2_900, 1.0)], [30, 30]);
        assert_eq!(refused(4_899, 0.5), 16);
        assert_eq!(refused(6_899, 0.99), 5, "nobody was refused for two seconds");
    }
}
