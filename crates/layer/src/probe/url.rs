//! The URL that an outcome is asked about at: `http://127.0.0.1:9000/v1/payments/by-key/{key}`.

use std::fmt::Write as _;

use http::Uri;
use onceward_core::key::RecordId;

use crate::route::is_ambiguous;

/// A URL with places for what is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeUrl {
    pieces: Vec<Piece>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Record,
    Key,
}

/// Why a text is no such URL, in words for its author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidProbeUrl(String);

impl ProbeUrl {
    /// Reads one. `{record}` stands for the record's id, `{key}` for the client's key, percent-encoded; one of them must
    /// be there, in the path or the query.
    ///
    /// # Errors
    /// What is wrong with it; a user and a password in it are not shown.
    pub fn parse(text: &str) -> Result<Self, InvalidProbeUrl> {
        const BYTES_MAX: usize = 2048;
        let wrong = |why: &str| Err(InvalidProbeUrl(why.to_owned()));
        if text.len() > BYTES_MAX {
            return wrong("is longer than 2048 bytes");
        }
        let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
            return wrong(r#"must start with "http://""#);
        };
        let (authority, place) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return wrong("must not hold a user or a password");
        }
        if authority.contains(['{', '}']) {
            return wrong("has a placeholder in its host: nobody but this file says who is asked");
        }
        if place.contains('#') {
            return wrong(r##"has a fragment, which is never sent: leave out what begins with "#""##);
        }
        let mut pieces = Vec::new();
        let mut left = text;
        while let Some(at) = left.find(['{', '}']) {
            let (before, after) = left.split_at(at);
            pieces.push(Piece::Text(before.to_owned()));
            let (piece, after) = if let Some(after) = after.strip_prefix("{record}") {
                (Piece::Record, after)
            } else if let Some(after) = after.strip_prefix("{key}") {
                (Piece::Key, after)
            } else {
                return wrong(r#"may hold the placeholders "{record}" and "{key}" and no other brace"#);
            };
            pieces.push(piece);
            left = after;
        }
        pieces.push(Piece::Text(left.to_owned()));
        let this = Self { pieces, text: text.to_owned() };
        if this.pieces.len() == 1 {
            return wrong(r#"asks the same of every request: put "{record}" or "{key}" into it"#);
        }
        // "host:" and "host:99999" parse as an authority without a port.
        let is_whole = |uri: Uri| {
            uri.authority().is_some_and(|authority| {
                let after_host = authority.as_str().len() != authority.host().len();
                !authority.host().is_empty() && (!after_host || authority.port_u16().is_some())
            })
        };
        if this.fill(&RecordId([0; 32]), Some("key")).is_some_and(is_whole) {
            Ok(this)
        } else {
            wrong(r#"is no URL with one reading: write "http://127.0.0.1:9000/by-record/{record}""#)
        }
    }

    /// Whether only a request can be asked about, which brings its key.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        self.pieces.contains(&Piece::Key)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Who is asked: scheme, host and port.
    #[must_use]
    pub fn server(&self) -> &str {
        let authority = self.text.find("://").map_or(0, |at| at + 3);
        let rest = self.text.get(authority..).unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        self.text.get(..authority + end).unwrap_or_default()
    }

    /// The URL for one record; none where a key is lacking, or does not fit: one that has a slash or a dot segment could
    /// make servers look at another path, and its client must not choose which.
    pub(super) fn fill(&self, id: &RecordId, key: Option<&str>) -> Option<Uri> {
        let mut out = String::with_capacity(self.text.len() + 64);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Record => {
                    let _ = write!(out, "{id}");
                }
                Piece::Key => encode(key?, &mut out),
            }
        }
        let uri: Uri = out.parse().ok()?;
        (!is_ambiguous(uri.path())).then_some(uri)
    }
}

/// Everything but unreserved characters (RFC 3986, 2.3).
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_url_with_a_place_for_what_is_asked_about_is_one() {
        for (text, why) in [
            ("ftp://h/{key}", "must start with"),
            ("http://u:secret@h/{key}", "must not hold a user"),
            ("http://{key}.h/x", "in its host"),
            ("http://h{record}", "in its host"),
            ("http://h/{id}", "no other brace"),
            ("http://h/{key", "no other brace"),
            ("http://h/key}", "no other brace"),
            ("http://h/status", "the same of every request"),
            ("http://h/{key}#there", "fragment"),
            ("http://h:99999/{key}", "one reading"),
            ("http:///{key}", "one reading"),
            ("http://h/../{key}", "one reading"),
            ("http://h/a b/{key}", "one reading"),
        ] {
            let told = ProbeUrl::parse(text).unwrap_err().to_string();
            assert!(told.contains(why) && !told.contains("secret"), "{text}: {told}");
        }
        for (text, needs_key) in [
            ("http://h/by-record/{record}", false),
            ("http://h:1/?k={key}&r={record}", true),
            ("https://h/{key}/x", true),
        ] {
            let url = ProbeUrl::parse(text).unwrap();
            assert_eq!((url.needs_key(), url.as_str()), (needs_key, text));
            assert!(["http://h", "http://h:1", "https://h"].contains(&url.server()), "{}", url.server());
        }
    }

    #[test]
    fn a_key_is_encoded_and_one_that_could_lead_elsewhere_is_not_asked_about() {
        let (path, query) =
            (ProbeUrl::parse("http://h/by/{key}").unwrap(), ProbeUrl::parse("http://h/?k={key}").unwrap());
        let id = RecordId([7; 32]);
        for (key, in_path, in_query) in [
            ("k-1", Some("/by/k-1"), Some("/?k=k-1")),
            ("a b&c=d?e#f%2e", Some("/by/a%20b%26c%3Dd%3Fe%23f%252e"), Some("/?k=a%20b%26c%3Dd%3Fe%23f%252e")),
            ("..", None, Some("/?k=..")),
            (".", None, Some("/?k=.")),
            ("../admin", None, Some("/?k=..%2Fadmin")),
            ("a\\b", None, Some("/?k=a%5Cb")),
        ] {
            let filled = |url: &ProbeUrl| url.fill(&id, Some(key)).map(|uri| uri.path_and_query().unwrap().to_string());
            assert_eq!((filled(&path).as_deref(), filled(&query).as_deref()), (in_path, in_query), "{key}");
        }
        assert_eq!(path.fill(&id, None), None);
        let record = ProbeUrl::parse("http://h/r/{record}").unwrap();
        assert_eq!(record.fill(&id, None).unwrap().path(), format!("/r/{id}"));
    }

    proptest! {
        #[test]
        fn no_key_chooses_who_is_asked(key in "[ -~]{1,80}", text in "[ -~]{0,40}") {
            let url = ProbeUrl::parse("http://books.test:9/by/{key}?r={record}").unwrap();
            if let Some(uri) = url.fill(&RecordId([0; 32]), Some(&key)) {
                prop_assert_eq!(uri.authority().unwrap().as_str(), "books.test:9");
                prop_assert_eq!(uri.path().split('/').count(), 3);
            }
            let _ = ProbeUrl::parse(&text).is_ok() || ProbeUrl::parse(&format!("http://{text}{{key}}")).is_ok();
        }
    }
}
