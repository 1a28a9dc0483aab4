//! Writes a tree in canonical form, leaving out what the marks say.

use alloc::vec::Vec;
use core::ops::Range;

use super::field::FieldList;
use super::json::{Kind, Node, Tree, mark};
use super::{number, pointer};

/// Buffers that the next body uses again.
#[derive(Default)]
pub(crate) struct WriteBuffers {
    path: Vec<u8>,
    /// The places of the elements of the unordered arrays that are being written.
    elements: Vec<Range<usize>>,
    sorted: Vec<u8>,
}

impl WriteBuffers {
    pub(crate) fn memory_bytes(&self) -> usize {
        self.path.capacity() + self.elements.capacity() * size_of::<Range<usize>>() + self.sorted.capacity()
    }

    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        self.path = Vec::new();
        self.elements.clear();
        self.elements.shrink_to(bytes_max / size_of::<Range<usize>>());
        self.sorted.clear();
        self.sorted.shrink_to(bytes_max);
    }
}

/// Appends the canonical text of the tree's value to `out`. With `keep`, only what is marked
/// [`mark::KEEP`] is written, in its place within the containers that hold it.
pub(crate) fn write(
    tree: &Tree,
    input: &[u8],
    keep: bool,
    buffers: &mut WriteBuffers,
    fields: &mut FieldList,
    out: &mut Vec<u8>,
) {
    buffers.path.clear();
    buffers.elements.clear();
    let naming = fields.wants_more();
    Writer { tree, input, buffers, fields, out, naming }.value(0, !keep);
}

struct Writer<'w> {
    tree: &'w Tree,
    input: &'w [u8],
    buffers: &'w mut WriteBuffers,
    fields: &'w mut FieldList,
    out: &'w mut Vec<u8>,
    /// Whether leaves are collected here: not beyond the limit, nor inside unordered arrays,
    /// whose elements have no lasting place.
    naming: bool,
}

impl Writer<'_> {
    /// The recursion is as deep as the parser lets a tree be: 64 levels.
    fn value(&mut self, index: u32, whole: bool) {
        let node = self.tree.node(index);
        let start = self.out.len();
        let leaf = match node.kind {
            Kind::Verbatim | Kind::Plain => {
                self.out.extend_from_slice(self.input.get(node.start as usize..node.end as usize).unwrap_or_default());
                true
            }
            Kind::Number => {
                number::write(self.tree.text(self.input, node), self.out);
                true
            }
            Kind::Escaped => {
                write_string(self.tree.text(self.input, node), self.out);
                true
            }
            Kind::Object => self.object(node, whole),
            Kind::Array if node.marks & mark::UNORDERED != 0 => {
                let naming = core::mem::replace(&mut self.naming, false);
                self.unordered(index, whole);
                self.naming = naming;
                true
            }
            Kind::Array => self.array(index, whole),
        };
        if leaf && self.naming && !self.buffers.path.is_empty() {
            self.fields.leaf(&self.buffers.path, start..self.out.len());
            self.naming = self.fields.wants_more();
        }
    }

    fn counts(&self, index: u32, whole: bool) -> bool {
        let marks = self.tree.node(index).marks;
        marks & mark::STRIP == 0 && (whole || marks & (mark::KEEP | mark::PATH) != 0)
    }

    fn below(&mut self, index: u32, whole: bool) {
        let whole = whole || self.tree.node(index).marks & mark::KEEP != 0;
        self.value(index, whole);
    }

    /// Whether it is empty, and so a leaf.
    fn object(&mut self, object: Node, whole: bool) -> bool {
        let tree = self.tree;
        let mut empty = true;
        self.out.push(b'{');
        for name in tree.members(object) {
            let value = name + 1;
            if !self.counts(value, whole) {
                continue;
            }
            if !empty {
                self.out.push(b',');
            }
            empty = false;
            let name = tree.node(*name);
            if name.kind == Kind::Plain {
                self.out.extend_from_slice(self.input.get(name.start as usize..name.end as usize).unwrap_or_default());
            } else {
                write_string(tree.text(self.input, name), self.out);
            }
            self.out.push(b':');
            if self.naming {
                let parent = self.buffers.path.len();
                pointer::push_token(&mut self.buffers.path, tree.text(self.input, name));
                self.below(value, whole);
                self.buffers.path.truncate(parent);
            } else {
                self.below(value, whole);
            }
        }
        self.out.push(b'}');
        empty
    }

    fn array(&mut self, array: u32, whole: bool) -> bool {
        let tree = self.tree;
        let mut empty = true;
        self.out.push(b'[');
        for (position, element) in tree.elements(array).enumerate() {
            if !self.counts(element, whole) {
                continue;
            }
            if !empty {
                self.out.push(b',');
            }
            empty = false;
            if self.naming {
                let parent = self.buffers.path.len();
                self.buffers.path.push(b'/');
                push_decimal(&mut self.buffers.path, position);
                self.below(element, whole);
                self.buffers.path.truncate(parent);
            } else {
                self.below(element, whole);
            }
        }
        self.out.push(b']');
        empty
    }

    /// The elements' canonical texts, sorted by their bytes.
    fn unordered(&mut self, array: u32, whole: bool) {
        let tree = self.tree;
        self.out.push(b'[');
        let (first, start) = (self.buffers.elements.len(), self.out.len());
        for element in tree.elements(array) {
            if self.counts(element, whole) {
                let start = self.out.len();
                self.below(element, whole);
                self.buffers.elements.push(start..self.out.len());
            }
        }
        let WriteBuffers { elements, sorted, .. } = &mut *self.buffers;
        let places = elements.get_mut(first..).unwrap_or_default();
        let text = |place: &Range<usize>| self.out.get(place.clone()).unwrap_or_default();
        places.sort_unstable_by(|a, b| text(a).cmp(text(b)));
        sorted.clear();
        for (position, place) in places.iter().enumerate() {
            if position > 0 {
                sorted.push(b',');
            }
            sorted.extend_from_slice(text(place));
        }
        elements.truncate(first);
        self.out.truncate(start);
        self.out.extend_from_slice(sorted);
        self.out.push(b']');
    }
}

/// A string as RFC 8785 writes it: the shortest escape where one is needed, none elsewhere.
fn write_string(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else {
            break;
        };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(if *byte < 0x10 { b'0' } else { b'1' });
                out.push(HEX.get(usize::from(byte & 0x0f)).copied().unwrap_or(b'0'));
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn push_decimal(out: &mut Vec<u8>, number: usize) {
    if number >= 10 {
        push_decimal(out, number / 10);
    }
    // The remainder of ten is a single digit.
    out.push(b'0' + u8::try_from(number % 10).unwrap_or(0));
}
