//! Forms and query strings: pairs joined by `&`.
//!
//! A form is written as its pairs, decoded, sorted by name and encoded again in one spelling.
//! Pairs of one name keep their order, and so do pairs whose names agree up to the first `[]`:
//! servers build lists from both, and another order is another list.
//!
//! A query keeps each pair as it was sent, since servers differ in how they decode one: `+`
//! stays `+`. Only where a rule asks are pairs left out or sorted.

use alloc::vec::Vec;
use core::ops::Range;

use super::field::FieldList;
use super::rules::Entry;

/// A pair in [`Pairs::text`], or in the query as sent.
struct Pair {
    /// The decoded name.
    name: Place,
    /// For a form the decoded value, absent where there is no `=`; for a query the piece as sent.
    value: Place,
}

/// A range in half the memory, since a body can consist of pairs.
#[derive(Clone, Copy)]
struct Place {
    start: u32,
    end: u32,
}

impl Place {
    /// Names nothing.
    const ABSENT: Self = Self { start: u32::MAX, end: 0 };

    /// Positions beyond 4 GiB name nothing; no body that is read is as large.
    fn new(range: Range<usize>) -> Self {
        match (u32::try_from(range.start), u32::try_from(range.end)) {
            (Ok(start), Ok(end)) => Self { start, end },
            _ => Self::ABSENT,
        }
    }

    fn of(self, text: &[u8]) -> Option<&[u8]> {
        text.get(self.start as usize..self.end as usize)
    }
}

/// Working memory for forms and queries, used again.
#[derive(Default)]
pub(crate) struct Pairs {
    pairs: Vec<Pair>,
    text: Vec<u8>,
}

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MalformedEscape;

impl Pairs {
    /// Reads a form's body.
    pub(crate) fn read_form(&mut self, body: &[u8]) -> Result<(), MalformedEscape> {
        self.pairs.clear();
        self.text.clear();
        for piece in body.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty()) {
            let (name, value) = split_pair(piece);
            let name = self.decode(name)?;
            let value = value.map_or(Ok(Place::ABSENT), |value| self.decode(value))?;
            self.pairs.push(Pair { name, value });
        }
        Ok(())
    }

    /// Reads a query: names decoded to be found by rules, pieces left as sent.
    pub(crate) fn read_query(&mut self, query: &[u8]) {
        self.pairs.clear();
        self.text.clear();
        let mut start = 0;
        for piece in query.split(|byte| *byte == b'&') {
            let end = start + piece.len();
            if !piece.is_empty() {
                let (name, _) = split_pair(piece);
                let name = self.decode(name).unwrap_or_else(|MalformedEscape| {
                    let start = self.text.len();
                    self.text.extend_from_slice(name);
                    Place::new(start..self.text.len())
                });
                self.pairs.push(Pair { name, value: Place::new(start..end) });
            }
            start = end + 1;
        }
    }

    /// Whether a pair has this name.
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.pairs.iter().any(|pair| self.name(pair) == name)
    }

    /// The decoded values of this name, in order; `None` for a name without `=`.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = Option<&[u8]>> {
        self.pairs.iter().filter(move |pair| self.name(pair) == name.as_bytes()).map(|pair| pair.value.of(&self.text))
    }

    /// Leaves out the pairs that these entries name, and reports which entries matched.
    pub(crate) fn strip<'r>(&mut self, entries: impl Iterator<Item = &'r Entry>, stripped: &mut Vec<&'r str>) {
        let Self { pairs, text } = self;
        for entry in entries {
            let before = pairs.len();
            pairs.retain(|pair| pair.name.of(text) != entry.name());
            if pairs.len() < before {
                stripped.push(entry.text());
            }
        }
    }

    /// Leaves out the pairs that none of these entries names.
    pub(crate) fn keep<'r>(&mut self, entries: impl Iterator<Item = &'r Entry> + Clone) {
        let Self { pairs, text } = self;
        pairs.retain(|pair| entries.clone().any(|entry| pair.name.of(text) == entry.name()));
    }

    /// Sorts by name, stable within a [`list_name`].
    pub(crate) fn sort(&mut self) {
        let Self { pairs, text } = self;
        let name = |pair: &Pair| list_name(pair.name.of(text).unwrap_or_default());
        pairs.sort_by(|a, b| name(a).cmp(name(b)));
    }

    /// Appends a form's pairs in their one spelling.
    pub(crate) fn write_form(&self, fields: &mut FieldList, out: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(first) = self.pairs.get(at) {
            let group = list_name(self.name(first));
            let start = out.len();
            while let Some(pair) = self.pairs.get(at)
                && list_name(self.name(pair)) == group
            {
                if at > 0 {
                    out.push(b'&');
                }
                encode(self.name(pair), out);
                if let Some(value) = pair.value.of(&self.text) {
                    out.push(b'=');
                    encode(value, out);
                }
                at += 1;
            }
            if fields.wants_more() {
                let name = alloc::string::String::from_utf8_lossy(group);
                let name = [b"form:", name.as_bytes()].concat();
                // The separator in front depends on the pairs before, not on this field.
                let start = if out.get(start) == Some(&b'&') { start + 1 } else { start };
                fields.leaf(&name, start..out.len());
            } else {
                fields.leaf(&[], 0..0);
            }
        }
    }

    /// Appends a query's pieces as they were sent.
    pub(crate) fn write_query(&self, query: &[u8], out: &mut Vec<u8>) {
        for (at, pair) in self.pairs.iter().enumerate() {
            if at > 0 {
                out.push(b'&');
            }
            out.extend_from_slice(pair.value.of(query).unwrap_or_default());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.pairs.capacity() * size_of::<Pair>() + self.text.capacity()
    }

    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        self.pairs.clear();
        self.pairs.shrink_to(bytes_max / size_of::<Pair>());
        self.text.clear();
        self.text.shrink_to(bytes_max);
    }

    fn name(&self, pair: &Pair) -> &[u8] {
        pair.name.of(&self.text).unwrap_or_default()
    }

    fn decode(&mut self, encoded: &[u8]) -> Result<Place, MalformedEscape> {
        let start = self.text.len();
        let mut bytes = encoded.iter().copied();
        while let Some(byte) = bytes.next() {
            self.text.push(match byte {
                b'+' => b' ',
                b'%' => match (bytes.next().and_then(hex_value), bytes.next().and_then(hex_value)) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => {
                        self.text.truncate(start);
                        return Err(MalformedEscape);
                    }
                },
                _ => byte,
            });
        }
        Ok(Place::new(start..self.text.len()))
    }
}

/// A name up to and with its first `[]`: pairs that agree in it stay in the order they were sent.
fn list_name(name: &[u8]) -> &[u8] {
    let list = name.windows(2).position(|pair| pair == b"[]");
    list.and_then(|at| name.get(..at + 2)).unwrap_or(name)
}

fn split_pair(piece: &[u8]) -> (&[u8], Option<&[u8]>) {
    match piece.iter().position(|byte| *byte == b'=') {
        Some(at) => (piece.get(..at).unwrap_or_default(), piece.get(at + 1..)),
        None => (piece, None),
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Percent-encodes all but RFC 3986's unreserved characters, so that `&` and `=` only separate.
fn encode(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let hex = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
    for byte in text {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(*byte),
            _ => out.extend_from_slice(&[b'%', hex(byte >> 4), hex(byte & 0x0f)]),
        }
    }
}
