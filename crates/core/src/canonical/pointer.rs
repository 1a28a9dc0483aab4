//! RFC 6901 pointers, with `*` for any element of an array.

use alloc::string::String;
use alloc::vec::Vec;

/// A pointer into a JSON body, read once and matched many times.
///
/// `~0` and `~1` stand for `~` and `/`. On an array the token `*` matches every element and a
/// number one of them; on an object both are ordinary member names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    tokens: Vec<Token>,
}

/// One step of a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The member's name, unescaped.
    pub(crate) name: String,
    /// What it means on an array.
    pub(crate) element: Element,
}

/// What a token means on an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// Every element.
    Any,
    /// The element with this index.
    At(u32),
    /// None: the token is only a member's name.
    No,
}

/// Why a text is no pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PointerError {
    /// It is not empty and has no slash in front.
    #[error("a pointer starts with a slash, as in `/amount`")]
    NoSlash,
    /// `~` stands before something else than 0 or 1.
    #[error("`~` is written `~0` and a slash in a name `~1`; another `~` has no meaning")]
    Escape,
    /// Deeper than any body that is read as JSON.
    #[error("a pointer has at most 64 parts")]
    TooDeep,
    /// Over 1024 bytes.
    #[error("a pointer has at most 1024 bytes")]
    TooLong,
}

const TOKENS_MAX: usize = 64;
const BYTES_MAX: usize = 1024;

impl Pointer {
    /// Reads a pointer. The empty text names the whole body.
    ///
    /// # Errors
    /// [`PointerError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        if text.len() > BYTES_MAX {
            return Err(PointerError::TooLong);
        }
        if text.is_empty() {
            return Ok(Self { tokens: Vec::new() });
        }
        let rest = text.strip_prefix('/').ok_or(PointerError::NoSlash)?;
        let tokens = rest.split('/').map(Token::parse).collect::<Result<Vec<_>, _>>()?;
        if tokens.len() > TOKENS_MAX {
            return Err(PointerError::TooDeep);
        }
        Ok(Self { tokens })
    }

    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Whether it names the whole body.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.tokens.is_empty()
    }
}

impl Token {
    fn parse(text: &str) -> Result<Self, PointerError> {
        let mut name = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            name.push(match char {
                '~' => match chars.next() {
                    Some('0') => '~',
                    Some('1') => '/',
                    _ => return Err(PointerError::Escape),
                },
                _ => char,
            });
        }
        let canonical_index = text == "0" || !text.starts_with('0');
        let element = if text == "*" {
            Element::Any
        } else if canonical_index && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            text.parse().map_or(Element::No, Element::At)
        } else {
            Element::No
        };
        Ok(Self { name, element })
    }
}

/// Appends `/name` to a pointer's text, escaped.
pub(crate) fn push_token(path: &mut Vec<u8>, name: &[u8]) {
    path.push(b'/');
    for byte in name {
        match byte {
            b'~' => path.extend_from_slice(b"~0"),
            b'/' => path.extend_from_slice(b"~1"),
            _ => path.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unescaped_and_indexes_have_no_leading_zero() {
        let pointer = Pointer::parse("/a~1b/~01/*/0/10/01//-").unwrap();
        let names: Vec<_> = pointer.tokens().iter().map(|token| token.name.as_str()).collect();
        assert_eq!(names, ["a/b", "~1", "*", "0", "10", "01", "", "-"]);
        let elements: Vec<_> = pointer.tokens().iter().map(|token| token.element).collect();
        use Element::{Any, At, No};
        assert_eq!(elements, [No, No, Any, At(0), At(10), No, No, No]);
    }

    #[test]
    fn what_is_no_pointer_is_refused_with_the_reason() {
        assert_eq!(Pointer::parse("amount"), Err(PointerError::NoSlash));
        assert_eq!(Pointer::parse("/a~"), Err(PointerError::Escape));
        assert_eq!(Pointer::parse("/a~2"), Err(PointerError::Escape));
        assert_eq!(Pointer::parse(&"/a".repeat(65)), Err(PointerError::TooDeep));
        assert_eq!(Pointer::parse(&"/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".repeat(40)), Err(PointerError::TooLong));
        assert!(Pointer::parse("").unwrap().is_whole());
    }
}
