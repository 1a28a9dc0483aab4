//! How many claims go on at a time once the store answers again: about as many as came before it stopped.
//!
//! Whoever was refused comes back on top of those who come anyway, and in the first seconds there are more of them than a
//! store and an upstream may bear that were sized for what comes. So claims take turns for a while, a tenth more in a second
//! than there were before (generic cell rate algorithm, ITU-T I.371): one that comes early waits, at most
//! [`WAIT_MAX`], and one that would wait longer is refused once more. Claims that were on their way when the store stopped it
//! takes all at once when it goes on, so that the first turn comes after as many; they are freed in turn as well, but none waits
//! longer than that: a lease that ends before would leave an unknown outcome.
//!
//! Nobody waits while the store does not answer, where hardly anybody was refused, or where this process has not seen for
//! long enough what comes. After a while more and more go on, however many come: busier hours may have begun meanwhile.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Nobody waits longer for a turn.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// So many times as many as before.
const MORE: f64 = 1.1;
/// And so many more.
const FEW: f64 = 2.0;
/// So many a second are no flood, whatever came before.
const AT_LEAST: f64 = 20.0;
/// What comes within so short a time waits for nobody.
const AT_ONCE: Duration = Duration::from_millis(20);
/// Over about so long it is counted what comes.
const AVERAGE: Duration = Duration::from_secs(10);
/// Counted for less time, it says nothing.
const COUNTED_MIN: Duration = Duration::from_secs(1);
/// Of so many seconds' claims, or fewer than that, nobody need be afraid.
const NOTICED: f64 = 0.25;
const NOTICED_MIN: f64 = 20.0;
/// So long after somebody was refused the store has enough to do.
const JUST: Duration = Duration::from_secs(5);
/// It stays so as long as those who were refused take to go on beside the others, at least so long: nobody is told to wait
/// longer than that.
const STEADY_MIN: Duration = Duration::from_secs(30);
/// And at most so long.
const STEADY_MAX: Duration = Duration::from_secs(120);
/// From then on it is twice as many each time that so much has passed.
const DOUBLES: Duration = Duration::from_secs(10);
/// So long after that there are turns no more.
const OVER: Duration = Duration::from_secs(90);

/// The turns of one process.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    rate: Rate,
    /// Refused since the store answered last, or so that others were answered between.
    refused: f64,
    refused_at: Option<Instant>,
    /// Claims that the store may make once it goes on, and that nobody waits for.
    left_behind: f64,
    /// The last one that asked was refused.
    is_out: bool,
    back: Option<Back>,
}

/// Claims a second, over about the last [`AVERAGE`].
#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    last: Option<Instant>,
    /// Each counts the less the longer ago it was.
    count: f64,
}

/// The store answers again.
#[derive(Debug)]
struct Back {
    /// Until when as many go on as before and a few more.
    steady: Instant,
    /// The next turn.
    claims: Instant,
}

impl Pace {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store answered a claim.
    pub(crate) fn answered(&self, now: Instant) {
        let mut state = self.lock();
        let state = &mut *state;
        state.is_out = false;
        if let Some(rate) = state.rate.a_second()
            && state.refused >= (rate * NOTICED).max(NOTICED_MIN)
        {
            let take = Duration::from_secs_f64(state.refused / (rate * (MORE - 1.0) + FEW));
            state.refused = 0.0;
            // Turns that were given stay so.
            let claims = state.back.as_ref().map_or(now, |back| back.claims);
            state.back = Some(Back { steady: now + take.clamp(STEADY_MIN, STEADY_MAX), claims });
            let left_behind = state.left_behind;
            if let Some((apart, back)) = state.taken_in_turns(now) {
                back.claims = (claims.max(now) + apart.mul_f64(left_behind)).min(now + WAIT_MAX);
            }
        }
        state.left_behind = 0.0;
        match &state.back {
            Some(back) if now < back.steady + OVER => {}
            Some(_) => {
                state.back = None;
                state.rate.goes_on(now);
            }
            None => state.rate.count(now),
        }
    }

    /// Somebody was refused because the store did not answer.
    pub(crate) fn refused(&self, now: Instant) {
        let mut state = self.lock();
        if state.refused_at.is_some_and(|at| now.saturating_duration_since(at) > STEADY_MIN) {
            state.refused = 0.0;
        }
        state.refused += 1.0;
        state.refused_at = Some(now);
        state.is_out = true;
    }

    /// A claim that the store did not answer is given up.
    pub(crate) fn left_behind(&self) {
        self.lock().left_behind += 1.0;
    }

    /// Whether somebody was refused so lately that what can wait had better wait.
    pub(crate) fn has_just_refused(&self, now: Instant) -> bool {
        self.lock().refused_at.is_some_and(|at| now.saturating_duration_since(at) < JUST)
    }

    /// One that was never used takes its turn to be freed: after so long.
    pub(crate) fn free(&self, now: Instant) -> Duration {
        let mut state = self.lock();
        let Some((apart, back)) = state.taken_in_turns(now) else { return Duration::ZERO };
        let at = back.turn(now).min(now + WAIT_MAX);
        back.claims = (at + apart).min(now + WAIT_MAX);
        at.saturating_duration_since(now)
    }

    /// A claim takes its turn: after so long, or not at all where too many are before it.
    pub(crate) fn claim(&self, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        let Some((apart, back)) = state.taken_in_turns(now) else { return Some(Duration::ZERO) };
        let at = back.turn(now);
        let after = at.saturating_duration_since(now);
        if after > WAIT_MAX {
            return None;
        }
        back.claims = at + apart;
        Some(after)
    }
}

impl Back {
    /// When it is the next one's.
    fn turn(&self, now: Instant) -> Instant {
        self.claims.max(now.checked_sub(AT_ONCE).unwrap_or(now))
    }
}

impl State {
    /// How far one is from the next, where turns are taken.
    fn taken_in_turns(&mut self, now: Instant) -> Option<(Duration, &mut Back)> {
        let back = self.back.as_mut().filter(|_| !self.is_out)?;
        let beyond = now.saturating_duration_since(back.steady);
        if beyond >= OVER {
            return None;
        }
        let grown = (beyond.as_secs_f64() / DOUBLES.as_secs_f64()).exp2();
        let rate = (self.rate.a_second()? * MORE + FEW).max(AT_LEAST);
        Some((Duration::from_secs_f64(1.0 / (rate * grown)), back))
    }
}

impl Rate {
    fn count(&mut self, now: Instant) {
        let last = *self.last.get_or_insert(now);
        self.since.get_or_insert(now);
        self.count = self.count * left_after(now.saturating_duration_since(last)) + 1.0;
        self.last = Some(now.max(last));
    }

    /// It was not counted for a while, and is taken for as it was.
    fn goes_on(&mut self, now: Instant) {
        self.last = Some(now);
    }

    fn a_second(&self) -> Option<f64> {
        let counted = self.last?.saturating_duration_since(self.since?);
        // Of one that has only begun it is less than what it comes to.
        let whole = AVERAGE.as_secs_f64() * (1.0 - left_after(counted));
        (counted >= COUNTED_MIN).then(|| self.count / whole)
    }
}

/// What is left of a count.
fn left_after(span: Duration) -> f64 {
    (-span.as_secs_f64() / AVERAGE.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const RATE: u32 = 100;

    /// Claims come at [`RATE`] for ten seconds, then `refused` of them are refused.
    fn after(refused: u32) -> (Pace, Instant) {
        let (pace, began) = (Pace::default(), Instant::now());
        let mut now = began;
        for _ in 0..10 * RATE {
            now += Duration::from_secs(1) / RATE;
            assert_eq!(pace.claim(now), Some(Duration::ZERO));
            pace.answered(now);
        }
        for _ in 0..refused {
            now += Duration::from_secs(1) / RATE;
            assert_eq!(pace.claim(now), Some(Duration::ZERO), "nobody waits for a store that does not answer");
            pace.refused(now);
        }
        (pace, now)
    }

    /// How many of `offered` a second go on in the second from `now`, and how many of them are told to come again.
    fn offered(pace: &Pace, now: Instant, offered: u32) -> (u32, u32) {
        let turns: Vec<_> = (0..offered).map(|n| now + Duration::from_secs(1) / offered * n).collect();
        let turns = turns.iter().map(|at| {
            pace.answered(*at);
            pace.claim(*at).map(|after| *at + after)
        });
        let turns: Vec<_> = turns.collect();
        let within = turns.iter().flatten().filter(|at| **at < now + Duration::from_secs(1)).count();
        let refused = turns.iter().filter(|turn| turn.is_none()).count();
        (u32::try_from(within).unwrap(), u32::try_from(refused).unwrap())
    }

    #[test]
    fn a_tenth_more_go_on_than_before_others_wait_and_the_rest_is_refused() {
        let (pace, now) = after(300);
        let (within, refused) = offered(&pace, now, 5 * RATE);
        assert!((105..=118).contains(&within), "{within} of {} a second", 5 * RATE);
        assert!((250..=280).contains(&refused), "as many wait as go on, and no more: {refused}");
        // Those who wait take what is left of the turns until all have had theirs.
        let later = now + Duration::from_secs(3);
        assert_eq!(offered(&pace, later, RATE), (RATE, 0));
        assert_eq!(pace.claim(later + Duration::from_secs(2)), Some(Duration::ZERO));
    }

    #[test]
    fn what_the_store_makes_of_claims_that_nobody_waits_for_and_what_frees_them_counts_as_turns() {
        let (pace, now) = after(300);
        (0..40).for_each(|_| pace.left_behind());
        let turns: Vec<_> = (0..=40)
            .map(|_| {
                pace.answered(now);
                pace.free(now)
            })
            .collect();
        let apart = Duration::from_secs(1) / 112;
        assert!((38 * apart..=42 * apart).contains(&turns[0]), "the first is after as many as were left: {turns:?}");
        let last = turns[40] - turns[0];
        assert!((38 * apart..=42 * apart).contains(&last), "they are freed one after the other: {turns:?}");
        let within = offered(&pace, now, RATE).0;
        assert!(within <= 112 - 75, "{within} claims go on beside them");
    }

    #[test]
    fn however_many_are_to_be_freed_none_waits_longer_than_a_second_and_claims_go_on() {
        let (pace, now) = after(300);
        (0..10_000).for_each(|_| pace.left_behind());
        pace.answered(now);
        let longest = (0..10_000).map(|_| pace.free(now)).max();
        assert_eq!(longest, Some(WAIT_MAX));
        assert!(pace.claim(now).is_some() && pace.claim(now + MS * 20).is_some());
        let (pace, now) = after(300);
        assert_eq!(pace.free(now), Duration::ZERO, "nobody waits for a store that does not answer");
    }

    #[test]
    fn an_outage_that_refused_hardly_anybody_makes_nobody_wait() {
        let (pace, now) = after(RATE / 5);
        assert_eq!(offered(&pace, now, 5 * RATE), (5 * RATE, 0));
    }

    #[test]
    fn whoever_does_not_know_what_comes_lets_all_through() {
        let (pace, now) = (Pace::default(), Instant::now());
        (0..1_000).for_each(|n| pace.refused(now + MS * n));
        assert_eq!(offered(&pace, now + MS * 1_000, 5 * RATE), (5 * RATE, 0));
    }

    #[test]
    fn however_many_come_more_and_more_go_on_after_a_while_and_all_in_the_end() {
        let (pace, now) = after(300);
        let within = |seconds| offered(&pace, now + Duration::from_secs(seconds), 20 * RATE).0;
        let went: Vec<u32> = [0, 29, 41, 51, 61, 120].into_iter().map(within).collect();
        let about = |times: u32| 105 * times..=130 * times;
        for (went, times) in went.iter().zip([1, 1, 2, 4, 8]) {
            assert!(about(times).contains(went), "{went} is not {times} times as many as before");
        }
        assert_eq!(went.last(), Some(&(20 * RATE)));
        // What came meanwhile was more than usual, and is not what comes.
        (0..300).for_each(|n| pace.refused(now + Duration::from_secs(121) + MS * n));
        assert!((105..=300).contains(&offered(&pace, now + Duration::from_secs(122), 20 * RATE).0));
    }
}
