//! Path patterns: `/v1/orders/{id}/pay`, `/files/{*rest}`.

use std::fmt;

/// The path of a route, split into its segments. `{name}` stands for one segment, `{*rest}`, which
/// can only come last, for none or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// As the file spells it.
    pub text: String,
    /// What stands between the slashes; `/` alone is one empty literal.
    pub segments: Vec<Segment>,
}

/// What one segment of a path must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// This text, its percent-encoded unreserved characters decoded as in the path it is compared
    /// with, other percent-encodings in upper case.
    Literal(String),
    /// Any one segment, under this name.
    Any(String),
    /// None or more segments, under this name.
    Rest(String),
}

/// Why a text is no pattern, in words for its author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPattern(String);

impl Pattern {
    /// The pattern that every path meets, `/{*rest}`.
    #[must_use]
    pub fn all() -> Self {
        Self { text: "/{*rest}".to_owned(), segments: vec![Segment::Rest("rest".to_owned())] }
    }

    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        const BYTES_MAX: usize = 1024;
        let wrong = |why: &str| InvalidPattern(format!("{} {why}", shown(text)));
        if text.len() > BYTES_MAX {
            return Err(wrong(&format!("is longer than {BYTES_MAX} bytes")));
        }
        let inner = text.strip_prefix('/').ok_or_else(|| wrong(r#"must start with "/""#))?;
        let parts: Vec<&str> = inner.split('/').collect();
        let mut segments = Vec::with_capacity(parts.len());
        let mut names: Vec<&str> = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) else {
                segments.push(Segment::Literal(literal(part).map_err(|why| wrong(&why))?));
                continue;
            };
            let (rest, name) = name.strip_prefix('*').map_or((false, name), |name| (true, name));
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(wrong("has a placeholder whose name is not of letters, digits and \"_\""));
            }
            if names.contains(&name) {
                return Err(wrong(&format!("has two placeholders named {name:?}")));
            }
            names.push(name);
            if rest && at + 1 < parts.len() {
                return Err(wrong(&format!("has {{*{name}}} before its end: it can only come last")));
            }
            segments.push(if rest { Segment::Rest(name.to_owned()) } else { Segment::Any(name.to_owned()) });
        }
        Ok(Self { text: text.to_owned(), segments })
    }

    /// Whether it covers `path`, spelled as [`normal`](crate::route::normal) spells it.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some(relative) = path.strip_prefix('/') else { return false };
        let mut parts = relative.split('/');
        for segment in &self.segments {
            match segment {
                Segment::Rest(_) => return true,
                Segment::Any(_) if parts.next().is_none_or(str::is_empty) => return false,
                Segment::Literal(literal) if parts.next() != Some(literal) => return false,
                Segment::Any(_) | Segment::Literal(_) => {}
            }
        }
        parts.next().is_none()
    }

    /// How close it is to the paths that it covers: more literal segments first, then those without a rest.
    pub(crate) fn closeness(&self) -> (std::cmp::Reverse<usize>, bool) {
        let literals = self.segments.iter().filter(|segment| matches!(segment, Segment::Literal(_))).count();
        (std::cmp::Reverse(literals), matches!(self.segments.last(), Some(Segment::Rest(_))))
    }

    /// Whether both match the same paths, whatever their placeholders are called.
    #[must_use]
    pub fn same_paths(&self, other: &Self) -> bool {
        self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Segment::Literal(a), Segment::Literal(b)) => a == b,
                (Segment::Any(_), Segment::Any(_)) | (Segment::Rest(_), Segment::Rest(_)) => true,
                _ => false,
            })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text for a message, cut where it is long.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let cut: String = text.chars().take(CHARS_MAX).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{text:?}") }
}

/// A literal segment as it is compared. What no path of a protected method can hold is refused, for
/// such a route would never match.
fn literal(part: &str) -> Result<String, String> {
    let mut out = String::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'{' | b'}' => {
                return Err("has a brace inside a segment: a placeholder is a whole segment, {name}".to_owned());
            }
            b'%' => {
                let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                let (Some(high), Some(low)) = (hex(rest.next()), hex(rest.next())) else {
                    return Err("has a \"%\" without two hexadecimal digits".to_owned());
                };
                let decoded = char::from_u32(high * 16 + low).unwrap_or('%');
                match decoded {
                    '/' | '\\' | '\0' => {
                        return Err("holds %2F, %5C or %00, which no protected request may hold".to_owned());
                    }
                    'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' | '~' => out.push(decoded),
                    _ => out.push_str(&format!("%{:02X}", high * 16 + low)),
                }
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
            | b':' | b'@' => out.push(char::from(byte)),
            b'?' | b'#' => return Err("holds a query or a fragment: a pattern is of the path only".to_owned()),
            _ => return Err("holds a character that must be percent-encoded in a path".to_owned()),
        }
    }
    if matches!(out.as_str(), "." | "..") {
        return Err("has a dot segment, which no protected request may hold".to_owned());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Segment::{Any, Literal, Rest};

    #[test]
    fn a_pattern_is_split_into_literals_and_placeholders() {
        let rows: &[(&str, Vec<Segment>)] = &[
            ("/", vec![Literal(String::new())]),
            ("/v1/payments", vec![Literal("v1".into()), Literal("payments".into())]),
            (
                "/o/{id}/pay/",
                vec![Literal("o".into()), Any("id".into()), Literal("pay".into()), Literal(String::new())],
            ),
            ("/{*rest}", vec![Rest("rest".into())]),
            ("/%41%7e%c3%a9", vec![Literal("A~%C3%A9".into())]),
        ];
        for (text, segments) in rows {
            assert_eq!(&Pattern::parse(text).unwrap().segments, segments, "{text}");
        }
        assert_eq!(Pattern::all(), Pattern::parse("/{*rest}").unwrap());
    }

    #[test]
    fn a_pattern_that_can_never_match_is_refused() {
        for (text, why) in [
            ("", r#""" must start with "/""#),
            ("v1", r#""v1" must start with "/""#),
            ("/a{b}", "has a brace inside a segment: a placeholder is a whole segment, {name}"),
            ("/{}", "has a placeholder whose name is not of letters, digits and \"_\""),
            ("/{*rest}/x", "has {*rest} before its end: it can only come last"),
            ("/{id}/{id}", r#"has two placeholders named "id""#),
            ("/a/../b", "has a dot segment, which no protected request may hold"),
            ("/%2e", "has a dot segment, which no protected request may hold"),
            ("/%2F", "holds %2F, %5C or %00, which no protected request may hold"),
            ("/%4", "has a \"%\" without two hexadecimal digits"),
            ("/a?b=1", "holds a query or a fragment: a pattern is of the path only"),
            ("/é", "holds a character that must be percent-encoded in a path"),
        ] {
            let message = Pattern::parse(text).unwrap_err().to_string();
            assert!(message.ends_with(why), "{text}: {message}");
        }
    }

    #[test]
    fn the_names_of_placeholders_do_not_tell_patterns_apart() {
        let pattern = |text| Pattern::parse(text).unwrap();
        assert!(pattern("/a/{id}").same_paths(&pattern("/a/{order}")));
        assert!(!pattern("/a/{id}").same_paths(&pattern("/a/{*rest}")));
    }
}
