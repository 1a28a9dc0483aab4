//! Puts a request's canonical form together in buffers that are used again.

use alloc::vec::Vec;
use core::fmt;

use super::field::FieldList;
use super::form::Pairs;
use super::json::Tree;
use super::media::{self, Media};
use super::rules::{self, BodyRule, Entry, Rules, Target};
use super::write::{self, WriteBuffers};
use super::{BodyForm, Canonical, Findings, Head, RawReason, Request, multipart};

const DOMAIN: &[u8] = b"onceward/v1/request\0";
/// Fields that are compared when a mismatch is to be explained.
const FIELDS_EXPLAINED_MAX: usize = 1024;

/// Buffers for making canonical forms, used again from one request to the next.
#[derive(Default)]
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

    /// How much memory its buffers hold, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.out.capacity()
            + self.tree.memory_bytes()
            + self.pairs.memory_bytes()
            + self.fields.memory_bytes()
            + self.write.memory_bytes()
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

impl fmt::Debug for Workspace {
    /// The buffers hold parts of requests: only their size is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workspace({} bytes)", self.memory_bytes())
    }
}

/// Of a body that is not read, every field is lacking.
fn lacking_all<'r>(rules: &'r Rules, findings: &mut Findings<'r>) {
    let of_body = |entry: &&Entry| !matches!(entry.target, Target::Query(_));
    findings.missing_required.extend(rules.require.iter().filter(of_body).map(Entry::text));
    findings.keep_missing |= rules.keep.iter().any(|entry| of_body(&entry));
}

/// Returns where the text itself begins.
fn push_text(text: &[u8], out: &mut Vec<u8>) -> usize {
    // No part of a request head reaches 4 GiB.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    let start = out.len();
    out.extend_from_slice(text);
    start
}
