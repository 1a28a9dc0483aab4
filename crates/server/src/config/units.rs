//! Durations and sizes as the file spells them: `250ms`, `30s`, `24h`, `7d`; `64KiB`, `10MiB`.

use core::time::Duration;

/// A duration: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
///
/// What is wrong with the text and how it is spelled right.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text).ok_or_else(|| {
        format!(r#"{} is not a duration: write a whole number and a unit, such as "250ms", "30s", "24h""#, shown(text))
    })?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!(r#"{} lacks a unit: one of "ms", "s", "m", "h", "d""#, shown(text))),
        _ => return Err(format!(r#"{} has no known unit: "ms", "s", "m", "h" or "d""#, shown(text))),
    };
    number
        .and_then(|number| number.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{} is too long", shown(text)))
}

/// A size in bytes: a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`.
///
/// # Errors
///
/// What is wrong with the text and how it is spelled right.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text).ok_or_else(|| {
        format!(r#"{} is not a size: write a whole number and a unit, such as "64KiB", "10MiB""#, shown(text))
    })?;
    let bytes: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "" => return Err(format!(r#"{} lacks a unit: one of "B", "KiB", "MiB", "GiB", "TiB""#, shown(text))),
        _ => return Err(format!(r#"{} has no known unit: "B", "KiB", "MiB", "GiB" or "TiB""#, shown(text))),
    };
    number.and_then(|number| number.checked_mul(bytes)).ok_or_else(|| format!("{} is too large", shown(text)))
}

/// The shortest exact spelling that [`duration`] reads back; parts below a millisecond are cut.
#[must_use]
pub fn spell_duration(duration: Duration) -> String {
    const SECOND: u128 = 1000;
    const MINUTE: u128 = 60 * SECOND;
    const HOUR: u128 = 60 * MINUTE;
    const DAY: u128 = 24 * HOUR;
    let millis = duration.as_millis();
    // A single day stays `24h`, as people write it.
    let units = [(DAY, "d", 2 * DAY), (HOUR, "h", HOUR), (MINUTE, "m", MINUTE), (SECOND, "s", 0)];
    for (unit, name, from) in units {
        if millis >= from && millis.is_multiple_of(unit) {
            return format!("{}{name}", millis / unit);
        }
    }
    format!("{millis}ms")
}

/// The shortest exact spelling that [`size`] reads back.
#[must_use]
pub fn spell_size(bytes: u64) -> String {
    for (shift, name) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{name}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// A user's text in quotes, escaped, and cut where it is long.
pub(super) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// The number (none where it is too large) and what follows it; none where it does not start with
/// a digit.
fn split(text: &str) -> Option<(Option<u64>, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    (digits > 0).then(|| (number.parse().ok(), unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_sizes_read_as_documented() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("20m", 1_200_000), ("24h", 86_400_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, bytes) in [("64KiB", 65536), ("10MiB", 10 << 20), ("1B", 1), ("0B", 0), ("2GiB", 2 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_units_say_which_there_are() {
        for (text, want) in [
            ("", r#""" is not a duration: write a whole number and a unit, such as "250ms", "30s", "24h""#),
            ("-1s", r#""-1s" is not a duration: write a whole number and a unit, such as "250ms", "30s", "24h""#),
            ("30", r#""30" lacks a unit: one of "ms", "s", "m", "h", "d""#),
            ("1h30m", r#""1h30m" has no known unit: "ms", "s", "m", "h" or "d""#),
            ("99999999999999999999s", r#""99999999999999999999s" is too long"#),
            ("999999999999999999d", r#""999999999999999999d" is too long"#),
        ] {
            assert_eq!(duration(text), Err(want.to_owned()));
        }
        assert_eq!(size("10MB"), Err(r#""10MB" has no known unit: "B", "KiB", "MiB", "GiB" or "TiB""#.to_owned()));
    }

    proptest! {
        #[test]
        fn a_spelled_value_reads_back(millis in 0u64..=u64::MAX / 86_400_000, bytes: u64) {
            let span = Duration::from_millis(millis);
            prop_assert_eq!(duration(&spell_duration(span)), Ok(span));
            prop_assert_eq!(size(&spell_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (duration(&text), size(&text), shown(&text));
        }
    }
}
