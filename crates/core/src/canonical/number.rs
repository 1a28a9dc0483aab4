//! A JSON number's one spelling: equal decimal values are written alike, different ones never.
//!
//! RFC 8785 spells a number as the shortest text of its double, which makes
//! `9007199254740993` and `9007199254740992` one payment. Here a number is spelled so only where
//! that text has the number's exact decimal value; else the exact value is written in scientific
//! notation. Values are compared as decimal digits and exponents, never as floats.

use alloc::vec::Vec;

/// Every decimal of at most this many significant digits is told apart by a double of normal
/// size, so its own digits are the double's shortest ones.
const DIGITS_ALWAYS_SHORTEST: usize = 15;
/// No double's shortest spelling has more significant digits.
const DIGITS_SHORTEST_MAX: usize = 17;
/// Within this distance of the point a double is of normal size, with room to spare.
const POINT_NORMAL: i64 = 290;
/// Beyond this distance every double is zero or infinite.
const POINT_FINITE: i64 = 400;
/// Exponents up to this many digits are computed in `i64`, longer ones as text.
const EXPONENT_DIGITS_SMALL: usize = 17;

/// Writes `text`, which must follow the JSON grammar for numbers, in its canonical spelling.
///
/// Time and memory are linear in the text's length, whatever the exponent says.
pub(super) fn write(text: &[u8], out: &mut Vec<u8>) {
    let Some(decimal) = Decimal::read(text) else {
        out.push(b'0');
        return;
    };
    if decimal.negative {
        out.push(b'-');
    }
    if let Exponent::Small(_) = decimal.exponent
        && let Some(short) = decimal.short()
        && short.is_shortest_of_its_double()
    {
        short.write_es6(out);
    } else {
        decimal.write_exact(out);
    }
}

/// A number other than zero: `0.d₁d₂…dₙ × 10^point`, the point being `exponent + shift`.
struct Decimal<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    /// How many leading zeros of whole and fraction together are skipped.
    first: usize,
    /// How many significant digits follow them, the trailing zeros left out.
    count: usize,
    exponent: Exponent<'a>,
    shift: i64,
}

enum Exponent<'a> {
    Small(i64),
    /// Digits without leading zeros, too many for an integer type.
    Big {
        negative: bool,
        digits: &'a [u8],
    },
}

impl<'a> Decimal<'a> {
    /// `None` for zero, of whatever sign and exponent.
    fn read(text: &'a [u8]) -> Option<Self> {
        let (negative, text) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => (text.get(..at)?, text.get(at + 1..)?),
            None => (text, &[][..]),
        };
        let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
            Some(at) => (mantissa.get(..at)?, mantissa.get(at + 1..)?),
            None => (mantissa, &[][..]),
        };
        let digits = || whole.iter().chain(fraction);
        let first = digits().position(|digit| *digit != b'0')?;
        let last = match fraction.iter().rposition(|digit| *digit != b'0') {
            Some(at) => whole.len() + at,
            None => whole.iter().rposition(|digit| *digit != b'0')?,
        };
        Some(Self {
            negative,
            whole,
            fraction,
            first,
            count: last + 1 - first,
            exponent: Exponent::read(exponent),
            // A text is shorter than 4 GiB, so neither length nor their difference wraps.
            shift: i64::try_from(whole.len()).unwrap_or(i64::MAX) - i64::try_from(first).unwrap_or(0),
        })
    }

    fn digits(&self) -> impl Iterator<Item = u8> {
        self.whole.iter().chain(self.fraction).copied().skip(self.first).take(self.count)
    }

    /// The same number where its digits fit a double's shortest spelling.
    fn short(&self) -> Option<Short> {
        let Exponent::Small(exponent) = self.exponent else {
            return None;
        };
        if self.count > DIGITS_SHORTEST_MAX {
            return None;
        }
        let mut digits = [0; DIGITS_SHORTEST_MAX];
        for (to, from) in digits.iter_mut().zip(self.digits()) {
            *to = from;
        }
        Some(Short { digits, count: self.count, point: exponent + self.shift })
    }

    fn write_exact(&self, out: &mut Vec<u8>) {
        for (at, digit) in self.digits().enumerate() {
            if at == 1 {
                out.push(b'.');
            }
            out.push(digit);
        }
        match self.exponent {
            Exponent::Small(exponent) => write_exponent(exponent + self.shift - 1, out),
            Exponent::Big { negative, digits } => write_big_exponent(negative, digits, self.shift - 1, out),
        }
    }
}

impl<'a> Exponent<'a> {
    fn read(text: &'a [u8]) -> Self {
        let (negative, digits) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            Some((b'+', rest)) => (false, rest),
            _ => (false, text),
        };
        let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
        let digits = digits.get(zeros..).unwrap_or_default();
        if digits.len() > EXPONENT_DIGITS_SMALL {
            return Self::Big { negative, digits };
        }
        let value = digits.iter().fold(0_i64, |sum, digit| sum * 10 + i64::from(digit & 0x0f));
        Self::Small(if negative { -value } else { value })
    }
}

/// A decimal of at most 17 significant digits: `0.d₁d₂…dₙ × 10^point`.
struct Short {
    digits: [u8; DIGITS_SHORTEST_MAX],
    count: usize,
    point: i64,
}

impl Short {
    fn digits(&self) -> &[u8] {
        self.digits.get(..self.count).unwrap_or_default()
    }

    fn is_shortest_of_its_double(&self) -> bool {
        if self.count <= DIGITS_ALWAYS_SHORTEST && self.point.abs() <= POINT_NORMAL {
            return true;
        }
        if self.point.abs() > POINT_FINITE {
            return false;
        }
        let mut text = Vec::with_capacity(32);
        text.extend_from_slice(b"0.");
        text.extend_from_slice(self.digits());
        write_exponent(self.point, &mut text);
        let Some(double) = str::from_utf8(&text).ok().and_then(|text| text.parse::<f64>().ok()) else {
            return false;
        };
        if !double.is_finite() || double == 0.0 {
            return false;
        }
        let mut buffer = ryu_js::Buffer::new();
        let Some(shortest) = Decimal::read(buffer.format_finite(double).as_bytes()) else {
            return false;
        };
        shortest.short().is_some_and(|shortest| shortest.point == self.point && shortest.digits() == self.digits())
    }

    /// As ECMAScript spells a number of these digits, which RFC 8785 takes over.
    fn write_es6(&self, out: &mut Vec<u8>) {
        let digits = self.digits();
        let zeros = |out: &mut Vec<u8>, count: i64| (0..count).for_each(|_| out.push(b'0'));
        // At most 17, so the conversion cannot fail.
        let count = i64::try_from(self.count).unwrap_or(0);
        match self.point {
            point @ 1..=21 if count <= point => {
                out.extend_from_slice(digits);
                zeros(out, point - count);
            }
            point @ 1..=21 => {
                let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0).min(digits.len()));
                out.extend_from_slice(whole);
                out.push(b'.');
                out.extend_from_slice(fraction);
            }
            point @ -5..=0 => {
                out.extend_from_slice(b"0.");
                zeros(out, -point);
                out.extend_from_slice(digits);
            }
            point => {
                let (first, rest) = digits.split_at(digits.len().min(1));
                out.extend_from_slice(first);
                if !rest.is_empty() {
                    out.push(b'.');
                    out.extend_from_slice(rest);
                }
                write_exponent(point - 1, out);
            }
        }
    }
}

fn write_exponent(exponent: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
    let mut digits = [b'0'; 20];
    let mut rest = exponent.unsigned_abs();
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        // The remainder of ten is a single digit.
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

/// Writes `±digits + shift`. The exponent has at least 18 digits and `shift` at most 11, so the
/// sum keeps the exponent's sign.
fn write_big_exponent(negative: bool, digits: &[u8], shift: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(if negative { b"e-" } else { b"e+" });
    // The magnitude moves away from zero where sign and shift agree.
    let mut carry = if negative { -shift } else { shift };
    let start = out.len();
    for digit in digits.iter().rev() {
        let sum = i64::from(digit & 0x0f) + carry;
        out.push(b'0' + u8::try_from(sum.rem_euclid(10)).unwrap_or(0));
        carry = sum.div_euclid(10);
    }
    if carry > 0 {
        out.push(b'0' + u8::try_from(carry).unwrap_or(0));
    }
    let magnitude = out.get_mut(start..).unwrap_or_default();
    magnitude.reverse();
    if magnitude.first() == Some(&b'0') {
        out.remove(start);
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        let mut out = Vec::new();
        super::write(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn exponents_of_any_size_are_compared_exactly() {
        assert_eq!(canonical("1e999999999999"), "1e+999999999999");
        assert_eq!(canonical("10e999999999998"), "1e+999999999999");
        let nines = "9".repeat(40);
        assert_eq!(canonical(&format!("10e{nines}")), format!("1e+1{}", "0".repeat(40)));
        assert_eq!(canonical(&format!("0.01e1{}", "0".repeat(18))), format!("1e+{}8", "9".repeat(17)));
        assert_eq!(canonical(&format!("0.1e-{nines}")), format!("1e-1{}", "0".repeat(40)));
        assert_eq!(canonical(&format!("100e-1{}", "0".repeat(20))), format!("1e-{}8", "9".repeat(19)));
        assert_eq!(canonical(&format!("0e{nines}")), "0");
        // The last exponent computed as an integer and the first computed as text agree.
        assert_eq!(canonical(&format!("10e{}", "9".repeat(17))), canonical(&format!("1e1{}", "0".repeat(17))));
    }

    #[test]
    fn digits_of_any_number_are_kept() {
        let long = format!("1{}1", "0".repeat(100_000));
        assert_eq!(canonical(&long), format!("1.{}1e+100001", "0".repeat(100_000)));
        assert_eq!(canonical(&format!("1{}", "0".repeat(100_000))), "1e+100000");
        assert_eq!(canonical(&format!("0.{}1", "0".repeat(100_000))), "1e-100001");
    }

    proptest! {
        #[test]
        fn a_double_is_spelled_as_rfc_8785_spells_it(double in any::<f64>()) {
            prop_assume!(double.is_finite());
            let mut buffer = ryu_js::Buffer::new();
            let shortest = buffer.format_finite(double).to_owned();
            prop_assert_eq!(canonical(&shortest), shortest.clone());
            prop_assert_eq!(canonical(&shortest.replace("e+", "E")), shortest);
        }

        #[test]
        fn a_short_decimal_is_its_doubles_shortest_spelling(
            digits in 1_u64..1_000_000_000_000_000, exponent in -280_i64..270
        ) {
            let text = format!("{digits}e{exponent}");
            let double: f64 = text.parse().unwrap();
            let mut buffer = ryu_js::Buffer::new();
            prop_assert_eq!(canonical(&text), buffer.format_finite(double));
        }

        #[test]
        fn a_value_that_a_double_would_round_is_written_exactly(
            first in "[1-9]", rest in "[0-9]{14,15}[1-9]", exponent in -300_i64..290
        ) {
            let text = format!("{first}{rest}e{exponent}");
            let double: f64 = text.parse().unwrap();
            let mut buffer = ryu_js::Buffer::new();
            let shortest = buffer.format_finite(double);
            let exact = format!("{first}.{rest}e{:+}", exponent + rest.len() as i64);
            // The digits alone, without point, exponent and the zeros at both ends.
            let digits = |text: &str| {
                let mantissa = text.split('e').next().unwrap().replace('.', "");
                mantissa.trim_matches('0').to_owned()
            };
            let rounded = digits(shortest) != digits(&exact);
            prop_assert_eq!(canonical(&text), if rounded { exact.as_str() } else { shortest });
        }

        #[test]
        fn spelling_does_not_matter_and_value_does(
            digits in "[1-9][0-9]{0,24}", zeros in 0_usize..30, exponent in -40_i64..40, other in 1_u8..9
        ) {
            let value = canonical(&format!("{digits}e{exponent}"));
            let (scaled, down) = (format!("{digits}{}", "0".repeat(zeros)), exponent - zeros as i64);
            prop_assert_eq!(&canonical(&format!("{scaled}E{down}")), &value);
            prop_assert_eq!(&canonical(&format!("{digits}.000e{exponent}")), &value);
            let fraction = format!("0.{}{digits}e{}", "0".repeat(zeros), exponent + (zeros + digits.len()) as i64);
            prop_assert_eq!(&canonical(&fraction), &value);
            prop_assert_eq!(&canonical(&value), &value);
            prop_assert_ne!(&canonical(&format!("{digits}{other}e{exponent}")), &value);
            prop_assert_ne!(&canonical(&format!("-{digits}e{exponent}")), &value);
        }
    }
}
