//! Finds a key where a route's `key.from` says it stands.

use alloc::borrow::ToOwned;
use alloc::string::String;

use super::form::Pairs;
use super::json::{Kind, Tree};
use super::pointer::Pointer;
use super::{RawReason, rules};

/// What stands at the place where a key is looked for.
#[derive(Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A text, which has yet to pass the key syntax.
    Text(String),
    /// Something else than a text: a number, `null`, bytes that are not UTF-8.
    NotText,
    /// Several values, whether equal or not.
    Several,
    /// The body cannot be read as one value without doubt, so it may hold a key that the upstream
    /// sees: refuse it rather than go on without.
    Unreadable(RawReason),
}

/// The string at `pointer` in a JSON body.
#[must_use]
pub fn in_json(body: &[u8], pointer: &Pointer) -> Found {
    const WANTED: u8 = 1 << 7;
    let mut tree = Tree::default();
    if let Err(reason) = tree.parse(body) {
        return Found::Unreadable(reason);
    }
    rules::apply(&mut tree, body, pointer, WANTED, 0);
    let mut wanted = tree.nodes().iter().filter(|node| node.marks & WANTED != 0);
    match (wanted.next(), wanted.next()) {
        (None, _) => Found::Absent,
        (Some(_), Some(_)) => Found::Several,
        (Some(node), None) if matches!(node.kind, Kind::Plain | Kind::Escaped) => text(tree.text(body, *node)),
        (Some(_), None) => Found::NotText,
    }
}

/// The value of `name` in a form's body, decoded.
#[must_use]
pub fn in_form(body: &[u8], name: &str) -> Found {
    let mut pairs = Pairs::default();
    match pairs.read_form(body) {
        Ok(()) => one(&pairs, name),
        Err(_) => Found::Unreadable(RawReason::MalformedForm),
    }
}

/// The value of `name` in a query, decoded as a form's is.
#[must_use]
pub fn in_query(query: &str, name: &str) -> Found {
    // A malformed escape in another parameter is the upstream's affair.
    let mut pairs = Pairs::default();
    let mut found = Found::Absent;
    for piece in query.split('&') {
        let value = match pairs.read_form(piece.as_bytes()) {
            Ok(()) => one(&pairs, name),
            Err(_) if piece.split('=').next() == Some(name) => Found::NotText,
            Err(_) => Found::Absent,
        };
        found = match (found, value) {
            (found, Found::Absent) => found,
            (Found::Absent, value) => value,
            _ => Found::Several,
        };
    }
    found
}

fn one(pairs: &Pairs, name: &str) -> Found {
    let mut values = pairs.values(name);
    match (values.next(), values.next()) {
        (None, _) => Found::Absent,
        (Some(_), Some(_)) => Found::Several,
        (Some(value), None) => text(value.unwrap_or_default()),
    }
}

fn text(bytes: &[u8]) -> Found {
    str::from_utf8(bytes).map_or(Found::NotText, |text| Found::Text(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &str, pointer: &str) -> Found {
        in_json(body.as_bytes(), &Pointer::parse(pointer).unwrap())
    }

    fn is(found: Found, text: &str) -> bool {
        found == Found::Text(text.to_owned())
    }

    #[test]
    fn a_key_is_found_in_a_body_or_a_query() {
        assert!(is(json(r#"{"a":{"key":"\u006b-1"}}"#, "/a/key"), "k-1"));
        assert!(is(json(r#"["x","y"]"#, "/1"), "y"));
        assert!(is(in_form(b"a=1&key=k%2D1+x", "key"), "k-1 x"));
        assert!(is(in_query("a=%zz&key=k", "key"), "k"));
    }

    #[test]
    fn a_doubtful_key_is_never_the_first_that_wins() {
        assert!(json("{}", "/key") == Found::Absent);
        assert!(json(r#"{"key":1}"#, "/key") == Found::NotText);
        assert!(json(r#"["a","b"]"#, "/*") == Found::Several);
        assert!(json(r#"{"key":"a","key":"b"}"#, "/key") == Found::Unreadable(RawReason::DuplicateName));
        assert!(in_form(b"key=a&key=a", "key") == Found::Several);
        assert!(in_form(b"key=%ff", "key") == Found::NotText);
        assert!(in_query("key=a&key=b", "key") == Found::Several);
        assert!(in_query("key=%zz", "key") == Found::NotText);
    }
}
