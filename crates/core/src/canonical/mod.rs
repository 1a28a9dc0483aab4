//! The canonical form of a request: the exact bytes that its fingerprint is made of.
//!
//! Two requests have equal bytes where they mean the same under the route's rules, and different
//! ones wherever any server could tell them apart. In doubt a body is hashed byte for byte.
//!
//! # The bytes
//!
//! All lengths are big-endian. A *text* is its length as u32 and its bytes.
//!
//! | part | |
//! |---|---|
//! | domain | `onceward/v1/request` and a zero byte |
//! | method, path | two texts, as received |
//! | query | one byte, 0 where there is none, else 1 and a text |
//! | headers | their number as u32, then name and value of each as texts, sorted by name |
//! | body form | one byte: `j` JSON, `f` form, `m` multipart, `r` raw, `n` not counted |
//! | body | the body in that form |
//! | length | the length of the body in that form, as u64 |
//!
//! The length stands behind the body, so that a raw body can be hashed while it arrives: all
//! before it is read from the front, the length from the back, and what is between is the body.
//!
//! * **JSON**: RFC 8785, but a number is never rounded: see [`RawReason`] for what falls back to
//!   raw, and `number.rs` for the spelling.
//! * **Form**: pairs decoded, sorted by name (see `form.rs` for lists), percent-encoded again.
//! * **Multipart**: for each part its header block and its content as texts.
//! * **Query**: as sent. With `sort_query`, or an entry `query:NAME`, in pieces between `&`, each
//!   as sent, empty ones left out; none left is as no query at all.
//!
//! # The rules
//!
//! [`Rules::compile`] reads a route's lists once. Entries are pointers into a JSON body,
//! `query:NAME` and `form:NAME`. `keep` narrows each part that one of its entries speaks of, and
//! leaves other parts whole. Pointers speak of JSON bodies and `form:` entries of forms: where a
//! list has both, those of the other kind do not concern a body. Under `*` every element must
//! have the field, or it is lacking. `strip` wins over `keep`.
//!
//! # Memory
//!
//! A [`Workspace`] keeps its buffers from one request to the next. For a body of n bytes it needs
//! at most 48 n + 64 KiB, the worst being unordered arrays of one-digit numbers; a payment needs
//! about 8 n. [`Workspace::shrink`] gives large buffers back.
//!
//! # Layout
//!
//! `workspace.rs` puts the parts together · `rules.rs` what a route says · `json.rs` reads · `write.rs` writes · `number.rs` spells numbers
//! · `pointer.rs` RFC 6901 · `form.rs` forms and queries · `multipart.rs` · `media.rs` content
//! types · `field.rs` what a mismatch can name · `source.rs` finds keys in bodies.
//!
//! ```
//! use onceward_core::canonical::{Request, RuleSet, Rules, Workspace};
//!
//! let rules = Rules::compile(&RuleSet { strip: vec!["/sent_at".into()], ..RuleSet::default() })?;
//! let mut workspace = Workspace::new();
//! let mut bytes_of = |body: &[u8]| {
//!     let json = Some(&b"application/json"[..]);
//!     let request = Request { method: "POST", path: "/pay", content_type: json, body, ..Request::default() };
//!     workspace.canonicalize(&request, &rules).bytes.to_vec()
//! };
//! let one = bytes_of(br#"{"amount": 1.0, "currency": "EUR", "sent_at": "09:00"}"#);
//! let same = bytes_of(br#"{"currency":"\u0045UR","amount":1e0,"sent_at":"09:01"}"#);
//! let other = bytes_of(br#"{"currency":"EUR","amount":2}"#);
//! assert_eq!(one, same);
//! assert_ne!(one, other);
//! # Ok::<(), onceward_core::canonical::RuleError>(())
//! ```

mod field;
mod form;
mod json;
mod media;
mod multipart;
mod number;
mod pointer;
mod rules;
mod source;
mod workspace;
mod write;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use self::field::Fields;
pub use self::pointer::{Pointer, PointerError};
pub use self::rules::{BodyRule, RuleError, RuleProblem, RuleSet, Rules};
pub use self::source::{Found, in_form, in_json, in_query};
pub use self::workspace::Workspace;

use self::field::FieldList;
use self::json::Tree;
use self::write::WriteBuffers;

/// A request as the fingerprint sees it.
#[derive(Clone, Copy, Default)]
pub struct Request<'a> {
    /// As received: case counts.
    pub method: &'a str,
    /// As received, percent-encoding and all.
    pub path: &'a str,
    /// What follows the first `?`, as received; `None` where there is no `?`.
    pub query: Option<&'a str>,
    /// Those of [`Rules::headers`] that are there: lower-case name, and [`header_value`].
    pub headers: &'a [(&'a str, &'a [u8])],
    /// The `Content-Type`, which decides how the body is read.
    pub content_type: Option<&'a [u8]>,
    /// Whether a `Content-Encoding` is still on the body, which is then hashed as it is.
    pub encoded: bool,
    /// The whole body.
    pub body: &'a [u8],
}

impl fmt::Debug for Request<'_> {
    /// Paths, queries, headers and bodies can hold secrets: only sizes are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} …, {} bytes of body)", self.method, self.body.len())
    }
}

/// The form in which a body is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyForm {
    /// Canonical JSON.
    Json,
    /// Sorted pairs.
    Form,
    /// By part, without its boundary.
    Multipart,
    /// Byte for byte.
    Raw(RawReason),
    /// Not at all, as the route asks.
    None,
}

/// Why a body is hashed byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RawReason {
    /// There is no body.
    #[error("it is empty")]
    Empty,
    /// The route says `body = "raw"`.
    #[error("the route asks for it")]
    Asked,
    /// A media type without a canonical form, or none.
    #[error("its content type has no canonical form")]
    MediaType,
    /// It is compressed.
    #[error("it has a content coding")]
    Encoded,
    /// Over [`RuleSet::canonical_body_max`].
    #[error("it is larger than canonical_body")]
    TooLarge,
    /// Not JSON by RFC 8259.
    #[error("it is not JSON (at byte {at})")]
    NotJson {
        /// Where that was noticed.
        at: usize,
    },
    /// Not UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// Nested deeper than 64 levels.
    #[error("it is nested deeper than 64 levels")]
    TooDeep,
    /// An object has one name twice, which parsers resolve differently.
    #[error("an object has a name twice")]
    DuplicateName,
    /// An escape names half a character.
    #[error("a string has half a surrogate pair")]
    LoneSurrogate,
    /// A form with a broken percent escape.
    #[error("a percent escape of the form is broken")]
    MalformedForm,
    /// A multipart body whose structure is not plain.
    #[error("its parts cannot be told without doubt")]
    MalformedMultipart,
}

/// A request in canonical form. Borrows from the workspace and the rules.
#[non_exhaustive]
pub struct Canonical<'w> {
    /// The exact bytes that are hashed.
    pub bytes: &'w [u8],
    /// The form of the body among them.
    pub body_form: BodyForm,
    /// What the rules found.
    pub findings: Findings<'w>,
    /// The single values that a mismatch can name.
    pub fields: Fields<'w>,
    body_start: usize,
}

impl<'w> Canonical<'w> {
    /// The body in its canonical form, within [`Canonical::bytes`].
    #[must_use]
    pub fn body(&self) -> &'w [u8] {
        self.bytes.get(self.body_start..self.bytes.len() - size_of::<u64>()).unwrap_or_default()
    }
}

impl fmt::Debug for Canonical<'_> {
    /// The bytes hold the request: only their number is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Canonical({} bytes, {:?}, {:?})", self.bytes.len(), self.body_form, self.findings)
    }
}

/// The canonical bytes up to a raw body that is hashed as it arrives:
/// [`Hasher`](crate::fingerprint::Hasher) takes it from there.
#[non_exhaustive]
pub struct Head<'w> {
    /// All bytes in front of the body.
    pub bytes: &'w [u8],
    /// What the rules found: whatever they ask of a body is lacking.
    pub findings: Findings<'w>,
    /// The parts that a mismatch can name.
    pub fields: Fields<'w>,
    /// Whether the body counts at all.
    pub(crate) body_counts: bool,
}

impl fmt::Debug for Head<'_> {
    /// The bytes hold the request's head: only their number is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({} bytes, {:?})", self.bytes.len(), self.findings)
    }
}

/// What a route's rules found in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Findings<'w> {
    /// The entries of `strip` that took something away.
    pub stripped: Vec<&'w str>,
    /// Whether a field of `keep` was lacking, so that the part it speaks of is hashed whole.
    pub keep_missing: bool,
    /// The entries of `require` whose field is not there.
    pub missing_required: Vec<&'w str>,
}

/// A header's values as they count: each trimmed, joined by a comma and a space.
#[must_use]
pub fn header_value<'v>(values: impl Iterator<Item = &'v [u8]>) -> Vec<u8> {
    let mut joined = Vec::new();
    for (at, value) in values.enumerate() {
        if at > 0 {
            joined.extend_from_slice(b", ");
        }
        joined.extend_from_slice(value.trim_ascii());
    }
    joined
}

/// The canonical text of a JSON document, as principals of kind `jwt` are spelled.
///
/// # Errors
/// The reason why it has none.
pub fn json_text(document: &[u8]) -> Result<String, RawReason> {
    let mut tree = Tree::default();
    tree.parse(document)?;
    let mut out = Vec::with_capacity(document.len());
    write::write(&tree, document, false, &mut WriteBuffers::default(), &mut FieldList::default(), &mut out);
    String::from_utf8(out).map_err(|_| RawReason::NotUtf8)
}
