//! A JSON text as a flat tree whose strings and numbers stay slices of the input.
//!
//! The tree is one array of 16-byte nodes in the order of the text: a container is followed by
//! its content and knows where that ends; a member is its name's node followed by its value's.
//! Only strings with escapes are copied. It is stricter than most parsers, since two servers must
//! not read one text differently: duplicate names, lone surrogates, deep nesting and anything
//! that RFC 8259 does not allow are refused, and the body is then hashed byte for byte.

use alloc::vec::Vec;
use core::cmp::Ordering;

use super::RawReason;

/// Deepest nesting that is read; a container in 64 others is refused after 65 bytes.
pub(crate) const DEPTH_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `null`, `true`, `false`, a number spelled canonically already: written as they stand.
    Verbatim,
    /// Any other number.
    Number,
    /// A string without escapes; its range in the input includes the quotes.
    Plain,
    /// A string with escapes; its range is in [`Tree::unescaped`].
    Escaped,
    Array,
    /// Its range is in [`Tree::order`].
    Object,
}

/// What the rules of a route say of a node, set before the tree is written.
pub(crate) mod mark {
    /// Left out.
    pub(crate) const STRIP: u8 = 1;
    /// Counts, with all below it.
    pub(crate) const KEEP: u8 = 2;
    /// Holds something that counts.
    pub(crate) const PATH: u8 = 4;
    /// An array whose order does not count.
    pub(crate) const UNORDERED: u8 = 8;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// The node after this one and all that it holds.
    pub(crate) next: u32,
    pub(crate) kind: Kind,
    pub(crate) marks: u8,
}

/// Stands where an index names no node, which no tree built here contains.
const NO_NODE: Node = Node { start: 0, end: 0, next: u32::MAX, kind: Kind::Verbatim, marks: 0 };

/// The tree and its buffers, which the next parse uses again.
#[derive(Default)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// For each object the nodes of its members' names, sorted.
    order: Vec<u32>,
    unescaped: Vec<u8>,
}

impl Tree {
    /// Reads `input`; afterwards node 0 is the whole value.
    pub(crate) fn parse(&mut self, input: &[u8]) -> Result<(), RawReason> {
        self.nodes.clear();
        self.order.clear();
        self.unescaped.clear();
        if u32::try_from(input.len()).is_err() {
            return Err(RawReason::TooLarge);
        }
        if str::from_utf8(input).is_err() {
            return Err(RawReason::NotUtf8);
        }
        Parser { tree: self, input, at: 0 }.document()
    }

    pub(crate) fn node(&self, index: u32) -> Node {
        self.nodes.get(index as usize).copied().unwrap_or(NO_NODE)
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn mark(&mut self, index: u32, marks: u8) {
        if let Some(node) = self.nodes.get_mut(index as usize) {
            node.marks |= marks;
        }
    }

    /// The name nodes of an object, in canonical order.
    pub(crate) fn members(&self, object: Node) -> &[u32] {
        self.order.get(object.start as usize..object.end as usize).unwrap_or_default()
    }

    /// The indexes of an array's elements.
    pub(crate) fn elements(&self, array: u32) -> impl Iterator<Item = u32> + '_ {
        let end = self.node(array).next;
        let mut index = array + 1;
        core::iter::from_fn(move || {
            let element = index;
            (element < end).then(|| {
                index = self.node(element).next;
                element
            })
        })
    }

    /// The element of an array with this position.
    pub(crate) fn element(&self, array: u32, position: u32) -> Option<u32> {
        self.elements(array).nth(position as usize)
    }

    /// The value of an object's member.
    pub(crate) fn member(&self, input: &[u8], object: Node, name: &[u8]) -> Option<u32> {
        let members = self.members(object);
        let found = members.binary_search_by(|member| compare_names(self.text(input, self.node(*member)), name));
        members.get(found.ok()?).map(|name| name + 1)
    }

    /// A string's characters, or a number's or literal's text.
    pub(crate) fn text<'t>(&'t self, input: &'t [u8], node: Node) -> &'t [u8] {
        let (start, end) = (node.start as usize, node.end as usize);
        let range = match node.kind {
            Kind::Escaped => self.unescaped.get(start..end),
            Kind::Plain => input.get(start + 1..end.saturating_sub(1)),
            Kind::Verbatim | Kind::Number => input.get(start..end),
            Kind::Array | Kind::Object => None,
        };
        range.unwrap_or_default()
    }

    /// Gives back memory beyond `bytes_max` in each buffer.
    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        self.nodes.clear();
        self.nodes.shrink_to(bytes_max / size_of::<Node>());
        self.order.clear();
        self.order.shrink_to(bytes_max / size_of::<u32>());
        self.unescaped.clear();
        self.unescaped.shrink_to(bytes_max);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.order.capacity() * size_of::<u32>() + self.unescaped.capacity()
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize) -> u32 {
        let index = as_u32(self.nodes.len());
        self.nodes.push(Node { start: as_u32(start), end: as_u32(end), next: index + 1, kind, marks: 0 });
        index
    }

    /// Ends the container at `index`: where its content ends, and for an object the order of its
    /// members.
    fn close(&mut self, input: &[u8], index: u32) -> Result<(), RawReason> {
        let next = as_u32(self.nodes.len());
        let start = self.order.len();
        let is_object = self.node(index).kind == Kind::Object;
        if is_object {
            self.sort_members(input, index + 1, next)?;
        }
        let end = self.order.len();
        if let Some(node) = self.nodes.get_mut(index as usize) {
            node.next = next;
            if is_object {
                (node.start, node.end) = (as_u32(start), as_u32(end));
            }
        }
        Ok(())
    }

    fn sort_members(&mut self, input: &[u8], first: u32, end: u32) -> Result<(), RawReason> {
        let start = self.order.len();
        let mut order = core::mem::take(&mut self.order);
        let mut name = first;
        let mut sorted = true;
        while name < end {
            if sorted
                && order.len() > start
                && let Some(last) = order.last()
                && self.compare(input, *last, name) != Ordering::Less
            {
                sorted = false;
            }
            order.push(name);
            name = self.node(name + 1).next;
        }
        let mut duplicate = false;
        if !sorted {
            let members = order.get_mut(start..).unwrap_or_default();
            members.sort_unstable_by(|a, b| self.compare(input, *a, *b));
            duplicate = members.windows(2).any(|pair| match pair {
                [a, b] => self.compare(input, *a, *b) == Ordering::Equal,
                _ => false,
            });
        }
        self.order = order;
        if duplicate { Err(RawReason::DuplicateName) } else { Ok(()) }
    }

    fn compare(&self, input: &[u8], a: u32, b: u32) -> Ordering {
        compare_names(self.text(input, self.node(a)), self.text(input, self.node(b)))
    }
}

/// A text of 4 GiB or more is refused before any position in it is taken.
fn as_u32(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

/// RFC 8785 sorts names by UTF-16 units. UTF-8 sorts by code points, which differs only where a
/// character beyond U+FFFF (lead byte F0 and up) meets one from U+E000 (lead byte EE or EF).
fn compare_names(a: &[u8], b: &[u8]) -> Ordering {
    let differing = a.iter().zip(b).find(|(a, b)| a != b);
    match differing {
        None => a.len().cmp(&b.len()),
        Some((a, b)) => utf16_rank(*a).cmp(&utf16_rank(*b)),
    }
}

fn utf16_rank(byte: u8) -> u8 {
    if matches!(byte, 0xee | 0xef) { byte | 0x10 } else { byte }
}

struct Parser<'p> {
    tree: &'p mut Tree,
    input: &'p [u8],
    at: usize,
}

impl Parser<'_> {
    fn document(&mut self) -> Result<(), RawReason> {
        let mut open = [0_u32; DEPTH_MAX];
        let mut depth = 0;
        'value: loop {
            self.skip_space();
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(byte @ (b'{' | b'[')) => {
                    let kind = if byte == b'{' { Kind::Object } else { Kind::Array };
                    let index = self.tree.push(kind, self.at, self.at);
                    *open.get_mut(depth).ok_or(RawReason::TooDeep)? = index;
                    self.at += 1;
                    self.skip_space();
                    if self.peek() == Some(if kind == Kind::Object { b'}' } else { b']' }) {
                        self.at += 1;
                        self.tree.close(self.input, index)?;
                    } else {
                        depth += 1;
                        if kind == Kind::Object {
                            self.name()?;
                        }
                        continue 'value;
                    }
                }
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(self.wrong()),
            }
            // A value has ended: what follows belongs to the container around it.
            loop {
                self.skip_space();
                let Some(container) = depth.checked_sub(1).and_then(|depth| open.get(depth).copied()) else {
                    return if self.at == self.input.len() { Ok(()) } else { Err(self.wrong()) };
                };
                let is_object = self.tree.node(container).kind == Kind::Object;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if is_object {
                            self.skip_space();
                            self.name()?;
                        }
                        continue 'value;
                    }
                    Some(b'}') if is_object => {}
                    Some(b']') if !is_object => {}
                    _ => return Err(self.wrong()),
                }
                self.at += 1;
                depth -= 1;
                self.tree.close(self.input, container)?;
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    fn wrong(&self) -> RawReason {
        RawReason::NotJson { at: self.at }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn name(&mut self) -> Result<(), RawReason> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong());
        }
        self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.wrong());
        }
        self.at += 1;
        Ok(())
    }

    fn literal(&mut self, text: &[u8]) -> Result<(), RawReason> {
        let end = self.at + text.len();
        if self.input.get(self.at..end) != Some(text) {
            return Err(self.wrong());
        }
        self.tree.push(Kind::Verbatim, self.at, end);
        self.at = end;
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<(), RawReason> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || (zero && whole > 1) {
            return Err(self.wrong());
        }
        let mut fraction = 0;
        // Spelled canonically already: few digits, and no zero that would be left out.
        let mut verbatim = !(zero && negative);
        if self.peek() == Some(b'.') {
            self.at += 1;
            fraction = self.digits();
            if fraction == 0 {
                return Err(self.wrong());
            }
            // Six places keep it at or above the 1e-6 where the exponent form begins.
            verbatim = fraction <= 6 && self.input.get(self.at - 1) != Some(&b'0');
        }
        verbatim &= whole + fraction <= 15;
        if let Some(b'e' | b'E') = self.peek() {
            verbatim = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.wrong());
            }
        }
        self.tree.push(if verbatim { Kind::Verbatim } else { Kind::Number }, start, self.at);
        Ok(())
    }

    fn string(&mut self) -> Result<(), RawReason> {
        let start = self.at;
        self.at += 1;
        self.at += plain_length(self.input.get(self.at..).unwrap_or_default());
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.tree.push(Kind::Plain, start, self.at);
                Ok(())
            }
            Some(b'\\') => self.escaped(start + 1),
            _ => Err(self.wrong()),
        }
    }

    /// The rest of a string from its first backslash on; `from` is where its characters start.
    fn escaped(&mut self, mut from: usize) -> Result<(), RawReason> {
        let start = self.tree.unescaped.len();
        loop {
            let plain = self.input.get(from..self.at).unwrap_or_default();
            self.tree.unescaped.extend_from_slice(plain);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    let end = self.tree.unescaped.len();
                    self.tree.push(Kind::Escaped, start, end);
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                _ => return Err(self.wrong()),
            }
            from = self.at;
            self.at += plain_length(self.input.get(self.at..).unwrap_or_default());
        }
    }

    fn escape(&mut self) -> Result<(), RawReason> {
        self.at += 1;
        let byte = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.wrong()),
        };
        self.at += 1;
        self.tree.unescaped.push(byte);
        Ok(())
    }

    fn unicode_escape(&mut self) -> Result<(), RawReason> {
        let unit = self.hex()?;
        let code = match unit {
            0xd800..=0xdbff => {
                if self.input.get(self.at..self.at + 2) != Some(b"\\u") {
                    return Err(RawReason::LoneSurrogate);
                }
                self.at += 1;
                let low = self.hex()?;
                if !(0xdc00..=0xdfff).contains(&low) {
                    return Err(RawReason::LoneSurrogate);
                }
                0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
            }
            _ => unit,
        };
        let char = char::from_u32(code).ok_or(RawReason::LoneSurrogate)?;
        let mut utf8 = [0; 4];
        self.tree.unescaped.extend_from_slice(char.encode_utf8(&mut utf8).as_bytes());
        Ok(())
    }

    /// The four digits after the `u` at the current position.
    fn hex(&mut self) -> Result<u32, RawReason> {
        self.at += 1;
        let digits = self.input.get(self.at..self.at + 4).ok_or_else(|| self.wrong())?;
        let unit =
            digits.iter().try_fold(0, |unit, digit| char::from(*digit).to_digit(16).map(|digit| unit << 4 | digit));
        let unit = unit.ok_or_else(|| self.wrong())?;
        self.at += 4;
        Ok(unit)
    }
}

/// How many bytes stand before the first quote, backslash or control character: eight at a time.
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES * 0x80;
    let mut length = 0;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * 0x22);
        let backslash = word ^ (ONES * 0x5c);
        // The lowest flag is exact; a borrow can only raise false ones above it.
        let special = (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash)
            | (word.wrapping_sub(ONES * 0x20) & !word);
        let special = special & HIGHS;
        if special != 0 {
            return length + (special.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    let special = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
    length + special.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec;

    use proptest::prelude::*;

    fn reason(input: &[u8]) -> Option<RawReason> {
        Tree::default().parse(input).err()
    }

    #[test]
    fn a_nesting_bomb_is_refused_at_the_limit() {
        let mut tree = Tree::default();
        assert_eq!(tree.parse(&vec![b'['; 1 << 20]), Err(RawReason::TooDeep));
        assert!(tree.nodes.len() <= DEPTH_MAX + 1);
        assert_eq!(reason("{\"a\":".repeat(1 << 16).as_bytes()), Some(RawReason::TooDeep));
    }

    #[test]
    fn a_refusal_says_why_and_where() {
        assert_eq!(reason(b"{\"a\":1,}"), Some(RawReason::NotJson { at: 7 }));
        assert_eq!(reason(b"[1 2]"), Some(RawReason::NotJson { at: 3 }));
        assert_eq!(reason(b"{\"a\":1,\"b\":2,\"a\":1}"), Some(RawReason::DuplicateName));
        assert_eq!(reason(b"\"\\ud800\\u0041\""), Some(RawReason::LoneSurrogate));
        assert_eq!(reason(b"\"\\ude00\""), Some(RawReason::LoneSurrogate));
        assert_eq!(reason(b"\"\xff\""), Some(RawReason::NotUtf8));
        assert_eq!(reason(b"\"\\u00"), Some(RawReason::NotJson { at: 3 }));
    }

    #[test]
    fn working_memory_stays_within_what_is_documented() {
        let cases = [
            String::from("[0") + &",0".repeat(100_000) + "]",
            String::from("[") + &"[],".repeat(100_000) + "0]",
            String::from("{") + &(0..100_000).map(|i| std::format!("\"{i}\":0,")).collect::<String>() + "\"\":0}",
            String::from("\"") + &"\\n".repeat(100_000) + "\"",
        ];
        for case in cases {
            let mut tree = Tree::default();
            tree.parse(case.as_bytes()).unwrap();
            let used = tree.nodes.len() * 16 + tree.order.len() * 4 + tree.unescaped.len();
            assert!(used <= case.len() * 8 + 64, "{used} for {}", case.len());
            assert_eq!(size_of::<Node>(), 16);
        }
    }

    proptest! {
        #[test]
        fn names_sort_by_utf16_units(a in ".*", b in ".*") {
            let expected = a.encode_utf16().cmp(b.encode_utf16());
            prop_assert_eq!(compare_names(a.as_bytes(), b.as_bytes()), expected);
        }

        #[test]
        fn the_end_of_plain_text_is_found(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let expected = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            prop_assert_eq!(plain_length(&bytes), expected.unwrap_or(bytes.len()));
        }

        #[test]
        fn the_same_texts_are_json_as_for_another_parser(text in r#"[\[\]{}",:0-9eE.+\-tfnrualse\\ ]{0,12}"#) {
            // serde_json also takes duplicate names; everything else must agree.
            match (reason(text.as_bytes()), serde_json::from_str::<serde_json::Value>(&text)) {
                (None | Some(RawReason::DuplicateName), Ok(_)) | (Some(_), Err(_)) => {}
                // Numbers beyond a double are an error there, and an exact decimal here.
                (None, Err(error)) if error.is_syntax() && std::format!("{error}").contains("out of range") => {}
                (ours, theirs) => prop_assert!(false, "{text:?}: {ours:?}, {theirs:?}"),
            }
        }
    }
}
