//! One event as a line of text: time, level, message, fields.
//!
//! The same line as the library's own format makes, at a third of its cost: each request pays for one. Control
//! characters are written as escapes, so that nothing that a client or an upstream says can begin a line of its own.

use std::{cell::RefCell, fmt, time::SystemTime};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// The format.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        #[expect(clippy::disallowed_methods, reason = "a time for people, nothing is decided by it")]
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        write_time(&mut to, now.as_secs(), now.subsec_micros())?;
        // As wide as the widest, so that messages stand below each other.
        to.write_str(match *event.metadata().level() {
            tracing::Level::ERROR => " ERROR",
            tracing::Level::WARN => "  WARN",
            tracing::Level::INFO => "  INFO",
            tracing::Level::DEBUG => " DEBUG",
            tracing::Level::TRACE => " TRACE",
        })?;
        let mut fields = Fields { to: &mut to, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        to.write_char('\n')
    }
}

/// Writes `2026-11-26T02:16:05.303056Z`.
fn write_time(to: &mut impl fmt::Write, seconds: u64, micros: u32) -> fmt::Result {
    thread_local! {
        /// The last second, in letters: it changes more rarely than lines are written.
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    SECOND.with_borrow_mut(|(of, text)| {
        if *of != seconds {
            let at = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or_default()).unwrap_or_default();
            (*of, *text) = (seconds, at.to_string().trim_end_matches('Z').to_owned());
        }
        to.write_str(text)
    })?;
    let mut digits = *b".000000Z";
    let mut left = micros;
    for digit in digits.iter_mut().skip(1).take(6).rev() {
        *digit = b'0' + u8::try_from(left % 10).unwrap_or_default();
        left /= 10;
    }
    to.write_str(std::str::from_utf8(&digits).unwrap_or_default())
}

struct Fields<'a, W> {
    to: &'a mut W,
    result: fmt::Result,
}

impl<W: fmt::Write> Fields<'_, W> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Escaped<'_, W>) -> fmt::Result) {
        if self.result.is_err() {
            return;
        }
        self.result = self.to.write_char(' ').and_then(|()| {
            if field.name() != "message" {
                self.to.write_str(field.name())?;
                self.to.write_char('=')?;
            }
            value(&mut Escaped(self.to))
        });
    }
}

impl<W: fmt::Write> Visit for Fields<'_, W> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, |to| fmt::Write::write_fmt(to, format_args!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let is_message = field.name() == "message";
        let is_plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
        self.write(field, |to| match (is_message, is_plain) {
            (true, _) => fmt::Write::write_str(to, value),
            (false, false) => fmt::Write::write_fmt(to, format_args!("{value:?}")),
            (false, true) => {
                fmt::Write::write_char(to, '"')?;
                fmt::Write::write_str(to, value)?;
                fmt::Write::write_char(to, '"')
            }
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |to| fmt::Write::write_str(to, itoa::Buffer::new().format(value)));
    }
}

/// Lets no control character through.
struct Escaped<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return self.0.write_str(text);
        }
        for character in text.chars() {
            if character.is_control() {
                write!(self.0, "{}", character.escape_default())?;
            } else {
                self.0.write_char(character)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::*;

    #[derive(Default)]
    struct Out(Mutex<Vec<u8>>);

    impl io::Write for &Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(by: impl FnOnce()) -> String {
        static OUT: Out = Out(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::fmt().event_format(Plain).with_writer(|| &OUT).finish();
        tracing::subscriber::with_default(subscriber, by);
        String::from_utf8(std::mem::take(&mut *OUT.0.lock().unwrap())).unwrap()
    }

    #[test]
    fn a_line_has_time_level_message_and_fields_and_is_one_line_whatever_is_in_it() {
        let text = logged(|| {
            tracing::warn!(route = %"pay", status = 201u16, decision = "exe\"cuted", ok = true, "broke\noff");
            tracing::info!(error = %"said\r\n2026 forged\u{9b}31m", "{} things", 3);
        });
        let lines: Vec<&str> = text.lines().collect();
        let [first, second] = lines.as_slice() else { panic!("{text:?}") };
        let (time, rest) = first.split_at("2026-11-26T02:16:05.303056Z".len());
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        assert_eq!(rest, r#"  WARN broke\noff route=pay status=201 decision="exe\"cuted" ok=true"#);
        assert!(second.ends_with(r"  INFO 3 things error=said\r\n2026 forged\u{9b}31m"), "{second}");
    }

    #[test]
    fn microseconds_keep_their_zeros() {
        for (micros, want) in [(7, ".000007Z"), (999_999, ".999999Z"), (120_000, ".120000Z")] {
            let mut text = String::new();
            write_time(&mut text, 1_764_122_400, micros).unwrap();
            assert_eq!(text, format!("2025-11-26T02:00:00{want}"));
        }
    }
}
