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
//! at most 32 n + 64 KiB, the worst being arrays of one-digit numbers and of short large ones
//! such as `1e20`; a payment needs about 4 n. [`Workspace::shrink`] gives large buffers back.
//!
//! # Layout
//!
//! `rules.rs` what a route says · `json.rs` reads · `write.rs` writes · `number.rs` spells numbers
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
mod write;

use alloc::string::String;
use alloc::vec::Vec;

pub use self::field::Fields;
pub use self::pointer::{Pointer, PointerError};
pub use self::rules::{BodyRule, RuleError, RuleProblem, RuleSet, Rules};
pub use self::source::{Found, in_form, in_json, in_query};

use self::field::FieldList;
use self::form::Pairs;
use self::json::Tree;
use self::media::Media;
use self::rules::{Entry, Target};
use self::write::WriteBuffers;

const DOMAIN: &[u8] = b"onceward/v1/request\0";
/// Fields that are compared when a mismatch is to be explained.
const FIELDS_EXPLAINED_MAX: usize = 1024;

/// A request as the fingerprint sees it.
#[derive(Clone, Copy, Debug, Default)]
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
#[derive(Debug)]
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

/// The canonical bytes up to a raw body that is hashed as it arrives:
/// [`Hasher`](crate::fingerprint::Hasher) takes it from there.
#[derive(Debug)]
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

/// Buffers for making canonical forms, used again from one request to the next.
#[derive(Debug, Default)]
pub struct Workspace {
    out: Vec<u8>,
    tree: Tree,
    pairs: Pairs,
    fields: FieldList,
    write: WriteBuffers,
}

impl Workspace {
    /// A workspace without memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The canonical form of a request.
    pub fn canonicalize<'w>(&'w mut self, request: &Request<'_>, rules: &'w Rules) -> Canonical<'w> {
        self.with_fields(request, rules, rules.fields)
    }

    /// The same bytes, with many more fields than a record keeps: what
    /// [`Fingerprinter::differing`](crate::fingerprint::Fingerprinter::differing) compares.
    pub fn canonicalize_to_explain<'w>(&'w mut self, request: &Request<'_>, rules: &'w Rules) -> Canonical<'w> {
        let fields = if rules.fields == 0 { 0 } else { FIELDS_EXPLAINED_MAX };
        self.with_fields(request, rules, fields)
    }

    /// The canonical bytes in front of a body over `canonical_body`, which is hashed byte for
    /// byte. [`Request::body`] is not looked at.
    pub fn head<'w>(&'w mut self, request: &Request<'_>, rules: &'w Rules) -> Head<'w> {
        self.fields.start(rules.fields);
        let mut findings = Findings::default();
        self.write_head(request, rules, &mut findings);
        let body_counts = rules.body != BodyRule::None;
        self.out.push(if body_counts { b'r' } else { b'n' });
        lacking_all(rules, &mut findings);
        Head { bytes: &self.out, findings, fields: self.fields.view(&self.out), body_counts }
    }

    /// Gives back memory beyond `bytes_max` in each buffer, for after a large body.
    pub fn shrink(&mut self, bytes_max: usize) {
        self.out.clear();
        self.out.shrink_to(bytes_max);
        self.tree.shrink(bytes_max);
        self.pairs.shrink(bytes_max);
        self.fields.shrink(bytes_max);
        self.write.shrink(bytes_max);
    }

    fn with_fields<'w>(&'w mut self, request: &Request<'_>, rules: &'w Rules, fields: usize) -> Canonical<'w> {
        self.fields.start(fields);
        let mut findings = Findings::default();
        self.write_head(request, rules, &mut findings);
        self.out.push(b'r');
        let body_start = self.out.len();
        let body_form = match self.body(request, rules, &mut findings) {
            Ok(form) => form,
            Err(reason) => {
                self.out.truncate(body_start);
                self.out.extend_from_slice(request.body);
                lacking_all(rules, &mut findings);
                BodyForm::Raw(reason)
            }
        };
        if let Some(tag) = self.out.get_mut(body_start - 1) {
            *tag = match body_form {
                BodyForm::Json => b'j',
                BodyForm::Form => b'f',
                BodyForm::Multipart => b'm',
                BodyForm::Raw(_) => b'r',
                BodyForm::None => b'n',
            };
        }
        let length = (self.out.len() - body_start) as u64;
        self.out.extend_from_slice(&length.to_be_bytes());
        Canonical { bytes: &self.out, body_form, findings, fields: self.fields.view(&self.out), body_start }
    }

    fn write_head<'r>(&mut self, request: &Request<'_>, rules: &'r Rules, findings: &mut Findings<'r>) {
        self.out.clear();
        self.out.extend_from_slice(DOMAIN);
        for (name, text) in [("method", request.method), ("path", request.path)] {
            let start = push_text(text.as_bytes(), &mut self.out);
            self.fields.part(&[name], start..self.out.len());
        }
        self.write_query(request.query, rules, findings);
        let count = u32::try_from(request.headers.len()).unwrap_or(u32::MAX);
        self.out.extend_from_slice(&count.to_be_bytes());
        if request.headers.is_sorted_by(|a, b| a.0 <= b.0) {
            self.write_headers(request.headers.iter());
        } else {
            let mut sorted: Vec<_> = request.headers.iter().collect();
            sorted.sort_by_key(|header| header.0);
            self.write_headers(sorted.into_iter());
        }
    }

    fn write_headers<'h>(&mut self, headers: impl Iterator<Item = &'h (&'h str, &'h [u8])>) {
        for (name, value) in headers {
            push_text(name.as_bytes(), &mut self.out);
            let start = push_text(value, &mut self.out);
            self.fields.part(&["header:", name], start..self.out.len());
        }
    }

    fn write_query<'r>(&mut self, query: Option<&str>, rules: &'r Rules, findings: &mut Findings<'r>) {
        let of_query = |entry: &&Entry| matches!(entry.target, Target::Query(_));
        let start = self.out.len();
        let required = rules.require.iter().any(|entry| of_query(&entry));
        let touched = rules.touch_query();
        if touched || required {
            self.pairs.read_query(query.unwrap_or_default().as_bytes());
            let lacking = |entry: &&Entry| !self.pairs.has(entry.name().unwrap_or_default());
            findings.missing_required.extend(rules.require.iter().filter(of_query).filter(lacking).map(Entry::text));
        }
        if !touched {
            self.out.push(u8::from(query.is_some()));
            if let Some(query) = query {
                push_text(query.as_bytes(), &mut self.out);
            }
        } else {
            let keep = rules.keep.iter().filter(of_query);
            if keep.clone().all(|entry| self.pairs.has(entry.name().unwrap_or_default())) {
                if keep.clone().next().is_some() {
                    self.pairs.keep(keep);
                }
            } else {
                findings.keep_missing = true;
            }
            self.pairs.strip(rules.strip.iter().filter(of_query), &mut findings.stripped);
            if rules.sort_query {
                self.pairs.sort();
            }
            self.out.push(u8::from(!self.pairs.is_empty()));
            if !self.pairs.is_empty() {
                let length_at = self.out.len();
                self.out.extend_from_slice(&[0; 4]);
                self.pairs.write_query(query.unwrap_or_default().as_bytes(), &mut self.out);
                let length = u32::try_from(self.out.len() - length_at - 4).unwrap_or(u32::MAX);
                if let Some(place) = self.out.get_mut(length_at..length_at + 4) {
                    place.copy_from_slice(&length.to_be_bytes());
                }
            }
        }
        // Behind the byte that says whether there is one, and the length.
        let start = start + 5;
        if self.out.len() >= start {
            self.fields.part(&["query"], start..self.out.len());
        }
    }

    /// Appends the body in canonical form, or says why it has none.
    fn body<'r>(
        &mut self,
        request: &Request<'_>,
        rules: &'r Rules,
        findings: &mut Findings<'r>,
    ) -> Result<BodyForm, RawReason> {
        match rules.body {
            BodyRule::None => return Ok(BodyForm::None),
            BodyRule::Raw => return Err(RawReason::Asked),
            BodyRule::Canonical => {}
        }
        if request.body.is_empty() {
            return Err(RawReason::Empty);
        }
        if request.encoded {
            return Err(RawReason::Encoded);
        }
        if request.body.len() > rules.canonical_body_max {
            return Err(RawReason::TooLarge);
        }
        match media::read(request.content_type.unwrap_or_default()) {
            Media::Json => self.json(request.body, rules, findings).map(|()| BodyForm::Json),
            Media::Form => self.form(request.body, rules, findings).map(|()| BodyForm::Form),
            Media::Multipart { boundary } => {
                let boundary = boundary.ok_or(RawReason::MalformedMultipart)?;
                multipart::write(request.body, boundary, &mut self.out).map_err(|_| RawReason::MalformedMultipart)?;
                lacking_all(rules, findings);
                Ok(BodyForm::Multipart)
            }
            Media::Other => Err(RawReason::MediaType),
        }
    }

    fn json<'r>(&mut self, body: &[u8], rules: &'r Rules, findings: &mut Findings<'r>) -> Result<(), RawReason> {
        self.tree.parse(body)?;
        let tree = &mut self.tree;
        let is_other = |entry: &&Entry| matches!(entry.target, Target::Form(_));
        let mut apply = |entry: &Entry, (marks, through)| {
            entry.pointer().map(|pointer| rules::apply(tree, body, pointer, marks, through))
        };
        let mut concerned = false;
        for entry in &rules.require {
            if let Some(reach) = apply(entry, (0, 0)) {
                concerned = true;
                if !reach.complete {
                    findings.missing_required.push(entry.text());
                }
            }
        }
        if !concerned {
            findings.missing_required.extend(rules.require.iter().filter(is_other).map(Entry::text));
        }
        let (mut keep, mut lacking) = (false, false);
        for entry in &rules.keep {
            if let Some(reach) = apply(entry, rules::KEEP) {
                keep = true;
                lacking |= !reach.complete;
            }
        }
        if !keep {
            lacking |= rules.keep.iter().any(|entry| is_other(&entry));
        }
        findings.keep_missing |= lacking;
        for entry in &rules.strip {
            if apply(entry, rules::STRIP).is_some_and(|reach| reach.found) {
                findings.stripped.push(entry.text());
            }
        }
        for entry in &rules.unordered {
            apply(entry, rules::UNORDERED);
        }
        write::write(&self.tree, body, keep && !lacking, &mut self.write, &mut self.fields, &mut self.out);
        Ok(())
    }

    fn form<'r>(&mut self, body: &[u8], rules: &'r Rules, findings: &mut Findings<'r>) -> Result<(), RawReason> {
        self.pairs.read_form(body).map_err(|_| RawReason::MalformedForm)?;
        let of_form = |entry: &&Entry| matches!(entry.target, Target::Form(_));
        let is_other = |entry: &&Entry| matches!(entry.target, Target::Body(_));
        let lacking = |entry: &&Entry| !self.pairs.has(entry.name().unwrap_or_default());
        let required = rules.require.iter().filter(of_form);
        if required.clone().next().is_some() {
            findings.missing_required.extend(required.filter(lacking).map(Entry::text));
        } else {
            findings.missing_required.extend(rules.require.iter().filter(is_other).map(Entry::text));
        }
        let keep = rules.keep.iter().filter(of_form);
        if keep.clone().next().is_none() {
            findings.keep_missing |= rules.keep.iter().any(|entry| is_other(&entry));
        } else if keep.clone().any(|entry| lacking(&entry)) {
            findings.keep_missing = true;
        } else {
            self.pairs.keep(keep);
        }
        self.pairs.strip(rules.strip.iter().filter(of_form), &mut findings.stripped);
        self.pairs.sort();
        self.pairs.write_form(&mut self.fields, &mut self.out);
        Ok(())
    }
}

/// Of a body that is not read, every field is lacking.
fn lacking_all<'r>(rules: &'r Rules, findings: &mut Findings<'r>) {
    let of_body = |entry: &&Entry| !matches!(entry.target, Target::Query(_));
    findings.missing_required.extend(rules.require.iter().filter(of_body).map(Entry::text));
    findings.keep_missing |= rules.keep.iter().any(|entry| of_body(&entry));
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

/// Returns where the text itself begins.
fn push_text(text: &[u8], out: &mut Vec<u8>) -> usize {
    // No part of a request head reaches 4 GiB.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    let start = out.len();
    out.extend_from_slice(text);
    start
}
