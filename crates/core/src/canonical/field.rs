//! The single values of a request that a mismatch can name.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Names take at most this many bytes together; beyond it no further field is collected. Bounds
/// what long member names around many values could cost.
pub(crate) const NAMES_BYTES_MAX: usize = 64 << 10;

/// Names and the places of their values, in the order in which the canonical bytes hold them.
///
/// First come the request's own parts (`method`, `path`, `query`, `header:NAME`), then the leaf
/// members of the body (pointers, or `form:NAME`).
#[derive(Default)]
pub(crate) struct FieldList {
    names: Vec<u8>,
    fields: Vec<Field>,
    /// How many of `fields` are parts of the request, not of the body.
    parts: usize,
    body_max: usize,
    /// Whether the body has fields that are not in the list.
    truncated: bool,
}

#[derive(Clone)]
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

impl FieldList {
    pub(crate) fn start(&mut self, body_max: usize) {
        self.names.clear();
        self.fields.clear();
        self.parts = 0;
        self.body_max = body_max;
        self.truncated = false;
    }

    /// Adds a part of the request itself.
    pub(crate) fn part(&mut self, name: &[&str], value: Range<usize>) {
        if self.body_max == 0 {
            return;
        }
        let start = self.names.len();
        name.iter().for_each(|piece| self.names.extend_from_slice(piece.as_bytes()));
        self.fields.push(Field { name: start..self.names.len(), value });
        self.parts += 1;
    }

    /// Whether the body's next field would be taken.
    pub(crate) fn wants_more(&self) -> bool {
        self.fields.len() - self.parts < self.body_max && !self.truncated
    }

    /// Adds a field of the body.
    pub(crate) fn leaf(&mut self, name: &[u8], value: Range<usize>) {
        if !self.wants_more() || self.names.len() + name.len() > NAMES_BYTES_MAX {
            self.truncated = true;
            return;
        }
        let start = self.names.len();
        self.names.extend_from_slice(name);
        self.fields.push(Field { name: start..self.names.len(), value });
    }

    pub(crate) fn view<'w>(&'w self, bytes: &'w [u8]) -> Fields<'w> {
        Fields { list: self, bytes }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.names.capacity() + self.fields.capacity() * size_of::<Field>()
    }

    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        self.names.clear();
        self.names.shrink_to(bytes_max);
        self.fields.clear();
        self.fields.shrink_to(bytes_max / size_of::<Field>());
    }
}

/// The fields of a canonical request, in its order.
#[derive(Clone, Copy)]
pub struct Fields<'w> {
    list: &'w FieldList,
    bytes: &'w [u8],
}

impl<'w> Fields<'w> {
    /// Each field's name and the bytes of its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'w str, &'w [u8])> + use<'w> {
        let (list, bytes) = (self.list, self.bytes);
        list.fields.iter().map(move |field| {
            let name = list.names.get(field.name.clone()).unwrap_or_default();
            // Names come from valid UTF-8, and forms' are replaced where they are not.
            (str::from_utf8(name).unwrap_or_default(), bytes.get(field.value.clone()).unwrap_or_default())
        })
    }

    /// How many come first that are parts of the request itself, not of its body.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.list.parts
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.fields.len()
    }

    /// Whether there are none, as on routes with `fields = 0`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.fields.is_empty()
    }

    /// Whether the body has more fields than are listed here.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.list.truncated || !self.list.wants_more()
    }
}

impl fmt::Debug for Fields<'_> {
    /// Values are never shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}
