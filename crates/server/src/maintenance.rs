//! `[maintenance]`: when work of the store is done that can wait.
//!
//! What has ended is gone for every request at once; that it is removed, and that the log is made shorter, can wait.
//! Without a window it is done all the time. With one it is done in the window; outside it only what has waited for
//! [`WAIT_MAX`], and where its room is needed.

use std::time::Duration;

use onceward::store::{Stats, Swept};

/// Ended records wait no longer than this to be removed.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Outside the window it is looked so often for what has waited long enough, in seconds.
const LOOK_EVERY_S: u64 = 60;
/// From this share of the records that a store takes on, their room is needed: nine tenths.
const SHORT: (u64, u64) = (9, 10);
const DAY_MINUTES: u16 = 24 * 60;

/// A time of each day, in UTC; it may go over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Minutes of the day, never the same.
    from: u16,
    to: u16,
}

impl Window {
    /// Reads `HH:MM-HH:MM UTC`.
    ///
    /// # Errors
    /// What is wrong with the text and how it is spelled right.
    pub fn parse(text: &str) -> Result<Self, String> {
        const RIGHT: &str = r#"write "02:00-05:00 UTC""#;
        let shown: String = text.chars().take(64).collect();
        let Some(times) = text.strip_suffix(" UTC") else {
            return Err(format!("{shown:?} is not a time of the day in UTC, the only zone that is taken: {RIGHT}"));
        };
        let (from, to) = times.split_once('-').map_or((None, None), |(from, to)| (minute(from), minute(to)));
        match (from, to) {
            (Some(from), Some(to)) if from == to => {
                Err(format!("{shown:?} begins when it ends: {RIGHT}, or leave it out for the whole day"))
            }
            (Some(from), Some(to)) => Ok(Self { from, to }),
            _ => Err(format!("{shown:?} is not a time of the day, 00:00 to 23:59, to another: {RIGHT}")),
        }
    }

    /// Whether `now`, in seconds since the epoch, is in it: from its first minute to before its last.
    #[must_use]
    pub fn contains(&self, now_s: u64) -> bool {
        let minute = u16::try_from(now_s / 60 % u64::from(DAY_MINUTES)).unwrap_or_default();
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// `HH:MM` as a minute of the day.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(hours) || !is_number(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// Whose turn it is: requests', or that of work that can wait.
#[derive(Debug)]
pub(crate) struct Turns {
    window: Option<Window>,
    /// Room was needed, and not all of it has been made yet.
    is_short: bool,
    looked_at_s: Option<u64>,
}

impl Turns {
    pub(crate) fn new(window: Option<Window>) -> Self {
        Self { window, is_short: false, looked_at_s: None }
    }

    /// How long what is to be swept `now` has waited at least; `None` where nothing is to be. `tenant_is_short` says
    /// that one was refused for what its records take.
    pub(crate) fn waits(&mut self, now_s: u64, stats: &Stats, tenant_is_short: bool) -> Option<Duration> {
        let Some(window) = &self.window else { return Some(Duration::ZERO) };
        let (part, whole) = SHORT;
        let is_full =
            stats.records_max.is_some_and(|max| stats.records.saturating_mul(whole) >= max.saturating_mul(part));
        let is_short = tenant_is_short || is_full || !stats.accepts_claims;
        let in_window = window.contains(now_s);
        if is_short && !self.is_short && !in_window {
            tracing::info!("room is needed: ended records are removed outside the window");
        }
        self.is_short |= is_short;
        if in_window || self.is_short {
            self.looked_at_s = None;
            return Some(Duration::ZERO);
        }
        // A clock that was set back does not put it off.
        let looked_lately = self.looked_at_s.is_some_and(|at| (at..at + LOOK_EVERY_S).contains(&now_s));
        if looked_lately {
            return None;
        }
        self.looked_at_s = Some(now_s);
        Some(WAIT_MAX)
    }

    /// What came of it.
    pub(crate) fn swept(&mut self, swept: &Swept) {
        if !swept.more {
            self.is_short = false;
        } else if !self.is_short {
            // What has waited long enough goes on being removed.
            self.looked_at_s = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    /// Some midnight.
    const DAY: u64 = 20_000 * 24 * HOUR;

    fn window(text: &str) -> Window {
        Window::parse(text).unwrap()
    }

    #[test]
    fn a_window_holds_its_first_minute_and_not_its_last_and_may_go_over_midnight() {
        let night = window("02:00-05:00 UTC");
        for (at, is_in) in
            [(2 * HOUR - 1, false), (2 * HOUR, true), (5 * HOUR - 1, true), (5 * HOUR, false), (0, false)]
        {
            assert_eq!(night.contains(DAY + at), is_in, "{at}");
        }
        let over = window("23:30-00:15 UTC");
        for (at, is_in) in [
            (23 * HOUR + 30 * MINUTE - 1, false),
            (23 * HOUR + 30 * MINUTE, true),
            (24 * HOUR - 1, true),
            (0, true),
            (15 * MINUTE - 1, true),
            (15 * MINUTE, false),
        ] {
            assert_eq!(over.contains(DAY + at), is_in, "{at}");
        }
    }

    #[test]
    fn what_is_no_window_is_refused_with_what_to_write() {
        for text in [
            "",
            "02:00-05:00",
            "02:00-05:00 CET",
            "02:00-05:00 utc",
            "2:00-5:00 UTC",
            "02:00 UTC",
            "24:00-05:00 UTC",
            "02:60-05:00 UTC",
            "+2:00-05:00 UTC",
            "02:00-05:00-06:00 UTC",
            "02:00-05:00+01 UTC",
            "02:00-02:00 UTC",
            "ü UTC",
        ] {
            let told = Window::parse(text).unwrap_err();
            assert!(told.contains(r#"write "02:00-05:00 UTC""#), "{told}");
        }
    }

    #[test]
    fn work_waits_for_the_window_unless_its_room_is_needed_or_it_has_waited_for_a_day() {
        let well = Stats { records: 89, records_max: Some(100), accepts_claims: true, ..Stats::default() };
        let (done, more) = (Swept::default(), Swept { removed: 10, more: true });
        let mut turns = Turns::new(None);
        assert_eq!(turns.waits(DAY, &well, false), Some(Duration::ZERO), "without a window it never waits");

        let mut turns = Turns::new(Some(window("02:00-05:00 UTC")));
        assert_eq!(turns.waits(DAY, &well, false), Some(WAIT_MAX));
        assert_eq!(turns.waits(DAY + 59, &well, false), None, "it was looked for what has waited long enough");
        assert_eq!(turns.waits(DAY - HOUR, &well, false), Some(WAIT_MAX), "the clock was set back");
        turns.swept(&more);
        assert_eq!(turns.waits(DAY - HOUR + 1, &well, false), Some(WAIT_MAX), "there was more of it");
        turns.swept(&done);
        assert_eq!(turns.waits(DAY + 2 * HOUR, &well, false), Some(Duration::ZERO), "the window");
        turns.swept(&more);
        assert_eq!(turns.waits(DAY + 5 * HOUR, &well, false), Some(WAIT_MAX), "it is over");

        let short = [
            (Stats { records: 90, ..well.clone() }, false),
            (Stats { accepts_claims: false, ..well.clone() }, false),
            (Stats { records_max: None, ..well.clone() }, true),
        ];
        for (stats, tenant_is_short) in short {
            assert_eq!(turns.waits(DAY + 6 * HOUR, &stats, tenant_is_short), Some(Duration::ZERO), "{stats:?}");
            turns.swept(&more);
            assert_eq!(turns.waits(DAY + 6 * HOUR + 1, &well, false), Some(Duration::ZERO), "not all of it is done");
            turns.swept(&done);
            assert_ne!(turns.waits(DAY + 7 * HOUR, &well, false), Some(Duration::ZERO));
            turns.swept(&done);
        }
    }
}
