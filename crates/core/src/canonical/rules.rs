//! What a route says of its requests' fingerprints, read once at start.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::json::{Kind, Tree, mark};
use super::pointer::{Element, Pointer, PointerError, Token};
use crate::fingerprint::Hash;

/// Entries a list may have.
const ENTRIES_MAX: usize = 64;
/// Bytes a field or header name may have.
const NAME_BYTES_MAX: usize = 1024;
/// Default of [`RuleSet::canonical_body_max`]: 1 MiB.
const CANONICAL_BODY_MAX: usize = 1 << 20;
/// Largest [`RuleSet::canonical_body_max`]: 64 MiB, so that positions fit four bytes.
const CANONICAL_BODY_LIMIT: usize = 64 << 20;
/// Most fields whose digests a record keeps.
const FIELDS_MAX: usize = 64;

/// How a body is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyRule {
    /// In canonical form where it has one.
    #[default]
    Canonical,
    /// Byte for byte.
    Raw,
    /// Not at all.
    None,
}

/// A route's `fingerprint` table as it is written, with the defaults of `PROTOCOL.md` section 5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The hash that is used.
    pub hash: Hash,
    /// How the body is hashed.
    pub body: BodyRule,
    /// Fields that do not count: pointers, `query:NAME`, `form:NAME`.
    pub strip: Vec<String>,
    /// The only fields that count, of each part (body, query) that an entry speaks of.
    pub keep: Vec<String>,
    /// Fields that must be there.
    pub require: Vec<String>,
    /// Arrays whose order does not count: pointers only.
    pub unordered: Vec<String>,
    /// Headers that count, in any case.
    pub headers: Vec<String>,
    /// Whether the order of the query's names does not count.
    pub sort_query: bool,
    /// Whether compressed bodies are decoded first. The caller decodes; the policy remembers it.
    pub decode: bool,
    /// How many members of the body a mismatch can name; 0 turns naming off. At most 64.
    pub fields: usize,
    /// Larger bodies are hashed byte for byte. Bytes, at most 64 MiB.
    pub canonical_body_max: usize,
}

impl Default for RuleSet {
    fn default() -> Self {
        Self {
            hash: Hash::Blake3,
            body: BodyRule::Canonical,
            strip: Vec::new(),
            keep: Vec::new(),
            require: Vec::new(),
            unordered: Vec::new(),
            headers: Vec::new(),
            sort_query: false,
            decode: false,
            fields: 8,
            canonical_body_max: CANONICAL_BODY_MAX,
        }
    }
}

/// A [`RuleSet`] that has been checked and read.
#[derive(Clone, Debug)]
pub struct Rules {
    pub(crate) strip: Vec<Entry>,
    pub(crate) keep: Vec<Entry>,
    pub(crate) require: Vec<Entry>,
    pub(crate) unordered: Vec<Entry>,
    headers: Vec<String>,
    hash: Hash,
    pub(crate) body: BodyRule,
    pub(crate) sort_query: bool,
    decode: bool,
    pub(crate) fields: usize,
    pub(crate) canonical_body_max: usize,
    policy: [u8; 8],
}

impl Default for Rules {
    /// The rules of a route that says nothing.
    fn default() -> Self {
        let set = RuleSet::default();
        Self {
            strip: Vec::new(),
            keep: Vec::new(),
            require: Vec::new(),
            unordered: Vec::new(),
            headers: Vec::new(),
            hash: set.hash,
            body: set.body,
            sort_query: set.sort_query,
            decode: set.decode,
            fields: set.fields,
            canonical_body_max: set.canonical_body_max,
            policy: policy(&set),
        }
    }
}

impl Rules {
    /// Checks and reads a route's rules.
    ///
    /// # Errors
    /// [`RuleError`] names the list, the entry and what is wrong with it.
    pub fn compile(set: &RuleSet) -> Result<Self, RuleError> {
        let mut headers: Vec<String> = Vec::new();
        for name in entries_of("headers", &set.headers)? {
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(token) {
                return Err(RuleError::new("headers", name, RuleProblem::HeaderName));
            }
            headers.push(name.to_ascii_lowercase());
        }
        headers.sort_unstable();
        headers.dedup();
        if set.fields > FIELDS_MAX {
            return Err(RuleError::new("fields", &set.fields.to_string(), RuleProblem::TooManyFields));
        }
        if set.canonical_body_max > CANONICAL_BODY_LIMIT {
            let bytes = set.canonical_body_max.to_string();
            return Err(RuleError::new("canonical_body", &bytes, RuleProblem::CanonicalBody));
        }
        let rules = Self {
            strip: Entry::list("strip", &set.strip)?,
            keep: Entry::list("keep", &set.keep)?,
            require: Entry::list("require", &set.require)?,
            unordered: Entry::list("unordered", &set.unordered)?,
            headers,
            hash: set.hash,
            body: set.body,
            sort_query: set.sort_query,
            decode: set.decode,
            fields: set.fields,
            canonical_body_max: set.canonical_body_max,
            policy: policy(set),
        };
        rules.check()?;
        Ok(rules)
    }

    fn check(&self) -> Result<(), RuleError> {
        let lists =
            [("strip", &self.strip), ("keep", &self.keep), ("require", &self.require), ("unordered", &self.unordered)];
        for (list, entries) in lists {
            for entry in entries {
                let problem = match &entry.target {
                    Target::Body(pointer) if pointer.is_whole() && list != "unordered" => RuleProblem::WholeBody,
                    Target::Query(_) | Target::Form(_) if list == "unordered" => RuleProblem::OnlyPointers,
                    Target::Body(_) | Target::Form(_) if self.body != BodyRule::Canonical => RuleProblem::BodyNotRead,
                    Target::Body(_) | Target::Query(_) | Target::Form(_) => continue,
                };
                return Err(RuleError::new(list, &entry.text, problem));
            }
        }
        Ok(())
    }

    /// The rules as they are written.
    #[must_use]
    pub fn set(&self) -> RuleSet {
        let texts = |entries: &[Entry]| entries.iter().map(|entry| entry.text.clone()).collect();
        RuleSet {
            hash: self.hash,
            body: self.body,
            strip: texts(&self.strip),
            keep: texts(&self.keep),
            require: texts(&self.require),
            unordered: texts(&self.unordered),
            headers: self.headers.clone(),
            sort_query: self.sort_query,
            decode: self.decode,
            fields: self.fields,
            canonical_body_max: self.canonical_body_max,
        }
    }

    /// The headers that count: lower-case, sorted, each once.
    #[must_use]
    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    /// The hash that the route asks for.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Whether the caller decodes compressed bodies before they are hashed.
    #[must_use]
    pub fn decode(&self) -> bool {
        self.decode
    }

    /// How many members of the body a mismatch can name.
    #[must_use]
    pub fn fields(&self) -> usize {
        self.fields
    }

    /// Bodies over this many bytes are hashed byte for byte.
    #[must_use]
    pub fn canonical_body_max(&self) -> usize {
        self.canonical_body_max
    }

    /// Names what decides which requests are equal and which fields a record keeps digests of, so
    /// that none is compared under other rules than it was made with. `require` does not count.
    #[must_use]
    pub fn policy(&self) -> [u8; 8] {
        self.policy
    }

    /// Whether the query is taken apart rather than hashed as sent.
    pub(crate) fn touch_query(&self) -> bool {
        self.sort_query || self.strip.iter().chain(&self.keep).any(|entry| matches!(entry.target, Target::Query(_)))
    }
}

/// One entry of a list.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    text: String,
    pub(crate) target: Target,
}

#[derive(Clone, Debug)]
pub(crate) enum Target {
    Body(Pointer),
    Query(String),
    Form(String),
}

impl Entry {
    fn list(list: &'static str, texts: &[String]) -> Result<Vec<Self>, RuleError> {
        let read = |text: &String| Self::read(text).map_err(|problem| RuleError::new(list, text, problem));
        entries_of(list, texts)?.iter().map(read).collect()
    }

    fn read(text: &str) -> Result<Self, RuleProblem> {
        let target = match text.split_once(':') {
            Some(("query", name)) => Target::Query(checked_name(name)?),
            Some(("form", name)) => Target::Form(checked_name(name)?),
            _ if text.is_empty() || text.starts_with('/') => {
                Target::Body(Pointer::parse(text).map_err(RuleProblem::Pointer)?)
            }
            _ => return Err(RuleProblem::Unknown),
        };
        Ok(Self { text: text.to_owned(), target })
    }

    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The name of a query or form field.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        match &self.target {
            Target::Body(_) => None,
            Target::Query(name) | Target::Form(name) => Some(name.as_bytes()),
        }
    }

    pub(crate) fn pointer(&self) -> Option<&Pointer> {
        match &self.target {
            Target::Body(pointer) => Some(pointer),
            Target::Query(_) | Target::Form(_) => None,
        }
    }
}

fn entries_of<'s>(list: &'static str, texts: &'s [String]) -> Result<&'s [String], RuleError> {
    match texts.get(ENTRIES_MAX) {
        Some(text) => Err(RuleError::new(list, text, RuleProblem::TooMany)),
        None => Ok(texts),
    }
}

fn checked_name(name: &str) -> Result<String, RuleProblem> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(RuleProblem::FieldName);
    }
    Ok(name.to_owned())
}

/// Marks what `pointer` names; `through` goes to the containers on the way. Returns whether any
/// node was marked, and whether none was lacking: under `*` every element must have the field.
pub(crate) fn apply(tree: &mut Tree, input: &[u8], pointer: &Pointer, marks: u8, through: u8) -> Reach {
    let mut reach = Reach { found: false, complete: true };
    walk(
        tree,
        input,
        0,
        pointer.tokens(),
        &mut |tree, index, here| {
            tree.mark(index, if here { marks } else { through });
        },
        &mut reach,
    );
    reach
}

/// What a pointer met in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) found: bool,
    pub(crate) complete: bool,
}

/// As deep as the tree: 64 levels at most.
fn walk(
    tree: &mut Tree,
    input: &[u8],
    index: u32,
    tokens: &[Token],
    meet: &mut impl FnMut(&mut Tree, u32, bool),
    reach: &mut Reach,
) {
    meet(tree, index, tokens.is_empty());
    let Some((token, rest)) = tokens.split_first() else {
        reach.found = true;
        return;
    };
    let node = tree.node(index);
    let below = match (node.kind, token.element) {
        (Kind::Object, _) => tree.member(input, node, token.name.as_bytes()),
        (Kind::Array, Element::At(position)) => tree.element(index, position),
        (Kind::Array, Element::Any) => {
            let mut element = index + 1;
            while element < node.next {
                walk(tree, input, element, rest, meet, reach);
                element = tree.node(element).next;
            }
            return;
        }
        _ => None,
    };
    match below {
        Some(below) => walk(tree, input, below, rest, meet, reach),
        None => reach.complete = false,
    }
}

/// The mark set for each list of rules.
pub(crate) const STRIP: (u8, u8) = (mark::STRIP, 0);
pub(crate) const KEEP: (u8, u8) = (mark::KEEP, mark::PATH);
pub(crate) const UNORDERED: (u8, u8) = (mark::UNORDERED, 0);

fn policy(set: &RuleSet) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"onceward/v1/fingerprint-policy\0");
    hasher.update(&[
        match set.hash {
            Hash::Blake3 => b'b',
            Hash::Sha256 => b's',
        },
        match set.body {
            BodyRule::Canonical => b'c',
            BodyRule::Raw => b'r',
            BodyRule::None => b'n',
        },
        u8::from(set.sort_query),
        u8::from(set.decode),
    ]);
    for number in [set.canonical_body_max, set.fields] {
        hasher.update(&(number as u64).to_be_bytes());
    }
    let headers: Vec<_> = set.headers.iter().map(|name| name.to_ascii_lowercase()).collect();
    for list in [&set.strip, &set.keep, &set.unordered, &headers] {
        let mut list: Vec<_> = list.iter().collect();
        list.sort_unstable();
        list.dedup();
        hasher.update(&(list.len() as u64).to_be_bytes());
        for text in list {
            hasher.update(&(text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        }
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    [a, b, c, d, e, f, g, h]
}

/// An entry of a route's rules that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fingerprint.{list}: `{entry}`: {problem}")]
pub struct RuleError {
    /// The list it stands in.
    pub list: &'static str,
    /// The entry as written.
    pub entry: String,
    /// What is wrong with it.
    #[source]
    pub problem: RuleProblem,
}

impl RuleError {
    fn new(list: &'static str, entry: &str, problem: RuleProblem) -> Self {
        Self { list, entry: entry.to_owned(), problem }
    }
}

/// What can be wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleProblem {
    /// Neither a pointer nor a query or form field.
    #[error("write a pointer such as `/amount`, `query:NAME` or `form:NAME`")]
    Unknown,
    /// A bad pointer.
    #[error(transparent)]
    Pointer(PointerError),
    /// The empty pointer where it makes no sense.
    #[error("this names the whole body; to leave it out write `body = \"none\"`")]
    WholeBody,
    /// An empty or overlong field name.
    #[error("a field's name has 1 to 1024 bytes")]
    FieldName,
    /// Not a header's name.
    #[error("this is no header name")]
    HeaderName,
    /// A query or form field where only arrays make sense.
    #[error("only arrays in a JSON body have an order to ignore; write a pointer")]
    OnlyPointers,
    /// A body field where the body is not read.
    #[error("this needs `body = \"canonical\"`")]
    BodyNotRead,
    /// More than 64 entries.
    #[error("a list has at most 64 entries")]
    TooMany,
    /// `canonical_body` is over 64 MiB.
    #[error("bodies over 64 MiB are always hashed byte for byte")]
    CanonicalBody,
    /// `fields` is over 64.
    #[error("at most 64 fields can be named")]
    TooManyFields,
}
