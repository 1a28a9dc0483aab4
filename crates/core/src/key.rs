//! The client's key, the scope it counts in, and the record id made of both.
//!
//! * [`Secret`]: the install secret; everything keyed in this crate starts from it.
//! * [`ClientKey`]: a key that passed the syntax of `PROTOCOL.md` section 3. It is in no store
//!   and no log: its `Debug` shows nothing, a log line may show its [`tail`](ClientKey::tail).
//! * [`Scope`] and [`RecordId`]: where a key counts, and the 32 bytes that name its record.
//! * [`child_key`]: the key a step of the work passes on.
//!
//! ```
//! use onceward_core::key::{ClientKey, KeyRules, RecordId, Scope, Secret};
//!
//! let secret = Secret::from_bytes([7; 32]);
//! let quoted = ClientKey::from_header(b"\"order-17\"", KeyRules::default())?;
//! let bare = ClientKey::from_header(b"order-17", KeyRules::default())?;
//! assert_eq!(quoted, bare);
//!
//! let scope = Scope { tenant: "default", env: "prod", principal: "anonymous", route: "create-order" };
//! let id = RecordId::derive(&secret, &scope, quoted.as_str());
//! assert_eq!(id.to_string().len(), 43);
//! # Ok::<(), onceward_core::key::InvalidKey>(())
//! ```

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::fingerprint::Fingerprint;
use crate::mutant::{self, Mutant};

/// The longest key, in bytes after unquoting.
pub const KEY_BYTES_MAX: usize = 255;

/// How many partitions record ids fall into.
pub const PARTITIONS: u16 = 256;

const RECORD_DOMAIN: &[u8] = b"onceward/v1";
const CHILD_DOMAIN: &[u8] = b"onceward/v1/child\0";
const SECRET_ID_DOMAIN: &[u8] = b"onceward/v1/secret-id\0";
const CHILD_KEY_CHARS: usize = 32;

/// The install secret: 32 bytes that key every record id and fingerprint.
///
/// `Debug` shows nothing of it. Two processes that share a store must have the same one, which
/// they find out by comparing [`Secret::id`].
#[derive(Clone)]
pub struct Secret {
    bytes: [u8; 32],
    /// Keyed once: a clone saves the two compressions that take in the key.
    mac: Hmac<Sha256>,
}

impl Secret {
    /// A secret of these 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self { bytes, mac: keyed(&bytes) }
    }

    /// Reads standard base64, with or without padding, white space around it ignored.
    ///
    /// # Errors
    /// [`InvalidSecret`] where the text is not base64 or not exactly 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.trim_ascii();
        let bytes =
            STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).map_err(|_| InvalidSecret::NotBase64)?;
        let length = bytes.len();
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| InvalidSecret::Length { bytes: length })?;
        Ok(Self::from_bytes(bytes))
    }

    /// A short keyed hash by which stores and processes compare secrets without knowing them.
    #[must_use]
    pub fn id(&self) -> SecretId {
        let mut mac = self.mac();
        mac.update(SECRET_ID_DOMAIN);
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        let mut id = [0; 8];
        for (to, from) in id.iter_mut().zip(full) {
            *to = from;
        }
        SecretId(id)
    }

    pub(crate) fn mac(&self) -> Hmac<Sha256> {
        self.mac.clone()
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Eight bytes that tell secrets apart; shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecretId(pub [u8; 8]);

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a text is no install secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSecret {
    /// The text is not standard base64.
    #[error("the secret is not base64; `openssl rand -base64 32` makes a good one")]
    NotBase64,
    /// It is base64 of the wrong number of bytes.
    #[error("the secret has {bytes} bytes, it must have 32; `openssl rand -base64 32` makes a good one")]
    Length {
        /// How many bytes it has.
        bytes: usize,
    },
}

/// What a route asks of a key beyond the syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRules {
    /// Takes the quoted form only. Texts from a body or a query have no quotes and are not concerned.
    pub strict: bool,
    /// Fewest bytes after unquoting, to refuse weak keys. Default 1.
    pub min_length: usize,
}

impl Default for KeyRules {
    fn default() -> Self {
        Self { strict: false, min_length: 1 }
    }
}

/// A key of valid syntax: 1 to 255 bytes of printable ASCII, quotes and escapes removed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClientKey(Box<str>);

impl ClientKey {
    /// Reads a header's value: an RFC 9651 String without parameters, or the same characters
    /// bare. Blanks around it are ignored.
    ///
    /// # Errors
    /// [`InvalidKey`]; a comma-joined list is [`KeyProblem::List`], so that the caller can refuse
    /// it as conflicting keys.
    pub fn from_header(value: &[u8], rules: KeyRules) -> Result<Self, InvalidKey> {
        // Only blanks may surround a field's value; other white space is refused as a character.
        let lead = value.iter().take_while(|byte| is_blank(**byte)).count();
        let end = value.iter().rposition(|byte| !is_blank(*byte)).map_or(lead, |last| last + 1);
        let trimmed = value.get(lead..end).unwrap_or_default();
        let text = match trimmed.split_first() {
            None => {
                return Err(InvalidKey { problem: KeyProblem::Empty, at: lead });
            }
            Some((b'"', rest)) => unquote(rest, lead + 1)?,
            Some(_) if rules.strict => {
                // A list stays a list, so that strictness does not hide two keys behind a quoting error.
                bare(trimmed, lead)?;
                return Err(InvalidKey { problem: KeyProblem::NotQuoted, at: lead });
            }
            Some(_) => bare(trimmed, lead)?,
        };
        Self::checked(text, rules, lead)
    }

    /// Takes a text found in a body or a query, where the surrounding format does the quoting:
    /// printable ASCII, not only spaces.
    ///
    /// # Errors
    /// [`InvalidKey`].
    pub fn from_text(text: &str, rules: KeyRules) -> Result<Self, InvalidKey> {
        if let Some(at) = text.bytes().position(|byte| !is_printable(byte)) {
            return Err(InvalidKey { problem: KeyProblem::Character, at });
        }
        Self::checked(text.to_owned(), rules, 0)
    }

    /// The key of a request that brought none, on a route that derives it from the fingerprint.
    #[must_use]
    pub fn derived(fingerprint: &Fingerprint) -> Self {
        let mut text = String::from("derived:");
        URL_SAFE_NO_PAD.encode_string(fingerprint.0, &mut text);
        Self(text.into_boxed_str())
    }

    /// The key itself. It belongs in a record id and in the request to the upstream, nowhere else.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last four characters, for log lines; fewer where the key is shorter than eight, so
    /// that no log line holds more than half a key.
    #[must_use]
    pub fn tail(&self) -> &str {
        let shown = (self.0.len() / 2).min(4);
        self.0.get(self.0.len() - shown..).unwrap_or_default()
    }

    fn checked(text: String, rules: KeyRules, at: usize) -> Result<Self, InvalidKey> {
        let problem = if text.is_empty() {
            KeyProblem::Empty
        } else if text.bytes().all(|byte| byte == b' ') {
            KeyProblem::Blank
        } else if text.len() > KEY_BYTES_MAX {
            KeyProblem::TooLong { bytes: text.len() }
        } else if text.len() < rules.min_length {
            KeyProblem::TooShort { bytes: text.len(), min: rules.min_length }
        } else {
            return Ok(Self(text.into_boxed_str()));
        };
        Err(InvalidKey { problem, at })
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKey(…)")
    }
}

/// Why a key was refused, and where. Its text never echoes the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (at byte {at})")]
pub struct InvalidKey {
    /// What is wrong with it and how to mend it.
    pub problem: KeyProblem,
    /// The byte where it was noticed, counted from 0 in the value as sent.
    pub at: usize,
}

/// What can be wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyProblem {
    /// Nothing between the quotes, or no value at all.
    #[error("the key is empty; send 1 to 255 characters, a UUID for example")]
    Empty,
    /// Only spaces.
    #[error("the key has only spaces; send 1 to 255 visible characters, a UUID for example")]
    Blank,
    /// Over [`KEY_BYTES_MAX`].
    #[error("the key has {bytes} bytes; send at most 255")]
    TooLong {
        /// Its length after unquoting.
        bytes: usize,
    },
    /// Under the route's `key.min_length`.
    #[error("the key has {bytes} bytes, here it needs at least {min}; send a random UUID")]
    TooShort {
        /// Its length after unquoting.
        bytes: usize,
        /// What the route asks for.
        min: usize,
    },
    /// A byte outside visible ASCII.
    #[error("a character is not visible ASCII; send letters, digits and punctuation only")]
    Character,
    /// A space in a key without quotes.
    #[error("a space stands outside quotes; put the key in double quotes or leave the space out")]
    Space,
    /// No closing quote.
    #[error("the closing double quote is missing; add it, or leave out the opening one")]
    Unclosed,
    /// A backslash before something else than a quote or a backslash.
    #[error("a backslash may only stand before a double quote or a backslash; double it")]
    Escape,
    /// Parameters after the closing quote.
    #[error("parameters follow the key; send the quoted key alone")]
    Parameters,
    /// Anything else after the closing quote.
    #[error("something follows the closing quote; send the quoted key alone")]
    Trailing,
    /// The route takes the quoted form only.
    #[error("the key must be a quoted string here; put it in double quotes")]
    NotQuoted,
    /// More than one value, joined by a comma.
    #[error("several keys are joined by a comma; send one, or quote a key that has a comma in it")]
    List,
}

/// Where a key counts. The parts are spelled as `PROTOCOL.md` section 3 says.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope<'a> {
    /// The tenant's name.
    pub tenant: &'a str,
    /// The environment's name.
    pub env: &'a str,
    /// `anonymous`, or `KIND:VALUE`, several joined by a line feed. Holds credentials: never logged.
    pub principal: &'a str,
    /// The route's name, or `default METHOD PATH`.
    pub route: &'a str,
}

impl fmt::Debug for Scope<'_> {
    /// Without the principal, which holds credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({:?}, {:?}, …, {:?})", self.tenant, self.env, self.route)
    }
}

/// The 32 bytes that name a record: HMAC-SHA-256 under the secret over scope and key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub [u8; 32]);

impl RecordId {
    /// The id of a key within a scope.
    #[must_use]
    pub fn derive(secret: &Secret, scope: &Scope<'_>, key: &str) -> Self {
        let mut mac = secret.mac();
        mac.update(RECORD_DOMAIN);
        let principal = if mutant::is(Mutant::PrincipalLeftOut) { "" } else { scope.principal };
        for part in [scope.tenant, scope.env, principal, scope.route, key] {
            // No part reaches 4 GiB: all come from a request head or a configuration file.
            mac.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            mac.update(part.as_bytes());
        }
        Self(mac.finalize().into_bytes().into())
    }

    /// The partition, 0 to 255: the first two bytes, big-endian, modulo [`PARTITIONS`].
    #[must_use]
    pub fn partition(&self) -> u16 {
        let [high, low, ..] = self.0;
        u16::from_be_bytes([high, low]) % PARTITIONS
    }

    /// The first eight characters of its text, for log lines.
    #[must_use]
    pub fn short(&self) -> String {
        let [a, b, c, d, e, f, ..] = self.0;
        URL_SAFE_NO_PAD.encode([a, b, c, d, e, f])
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 43];
        match URL_SAFE_NO_PAD.encode_slice(self.0, &mut text) {
            Ok(_) => f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?),
            Err(_) => Err(fmt::Error),
        }
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({self})")
    }
}

impl FromStr for RecordId {
    type Err = InvalidRecordId;

    fn from_str(text: &str) -> Result<Self, InvalidRecordId> {
        let bytes: Vec<u8> = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidRecordId)?;
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| InvalidRecordId)
    }
}

/// A text that is no record id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record id is 43 characters of base64url without padding")]
pub struct InvalidRecordId;

/// The key for a step of the work that `parent` names: 32 characters of base64url.
///
/// The same parent and step always give the same child, so a step that runs again is recognised.
#[must_use]
pub fn child_key(parent: &str, step: &str) -> String {
    let mut mac = keyed(parent.as_bytes());
    mac.update(CHILD_DOMAIN);
    mac.update(step.as_bytes());
    let digest: [u8; 32] = mac.finalize().into_bytes().into();
    let mut text = URL_SAFE_NO_PAD.encode(digest);
    text.truncate(CHILD_KEY_CHARS);
    text
}

#[expect(clippy::expect_used, reason = "HMAC takes a key of any length, so the error cannot occur")]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e)
}

/// The inside of an RFC 9651 String; `value` starts after the opening quote, at byte `offset`.
fn unquote(value: &[u8], offset: usize) -> Result<String, InvalidKey> {
    let mut text = String::new();
    let mut bytes = value.iter().copied().enumerate();
    while let Some((at, byte)) = bytes.next() {
        let at = at + offset;
        match byte {
            b'"' => return after_quote(bytes, offset).map(|()| text),
            b'\\' => match bytes.next() {
                Some((_, escaped @ (b'"' | b'\\'))) => text.push(char::from(escaped)),
                _ => {
                    return Err(InvalidKey { problem: KeyProblem::Escape, at });
                }
            },
            _ if is_printable(byte) => text.push(char::from(byte)),
            _ => {
                return Err(InvalidKey { problem: KeyProblem::Character, at });
            }
        }
        if text.len() > KEY_BYTES_MAX {
            // Length is judged before what follows, so that a huge value costs no huge text.
            return Err(InvalidKey { problem: KeyProblem::TooLong { bytes: value.len() }, at });
        }
    }
    Err(InvalidKey { problem: KeyProblem::Unclosed, at: offset + value.len() })
}

fn after_quote(rest: impl Iterator<Item = (usize, u8)>, offset: usize) -> Result<(), InvalidKey> {
    let Some((at, byte)) = rest.into_iter().find(|(_, byte)| !is_blank(*byte)) else {
        return Ok(());
    };
    let problem = match byte {
        b',' => KeyProblem::List,
        b';' => KeyProblem::Parameters,
        _ => KeyProblem::Trailing,
    };
    Err(InvalidKey { problem, at: at + offset })
}

fn bare(value: &[u8], offset: usize) -> Result<String, InvalidKey> {
    let wrong = |problem, at: usize| Err(InvalidKey { problem, at: at + offset });
    if let Some(at) = value.iter().position(|byte| *byte == b',') {
        return wrong(KeyProblem::List, at);
    }
    if let Some(at) = value.iter().position(|byte| !is_printable(*byte) || *byte == b' ') {
        let space = value.get(at).is_some_and(|byte| is_blank(*byte));
        return wrong(if space { KeyProblem::Space } else { KeyProblem::Character }, at);
    }
    if value.len() > KEY_BYTES_MAX {
        return wrong(KeyProblem::TooLong { bytes: value.len() }, KEY_BYTES_MAX);
    }
    Ok(value.iter().copied().map(char::from).collect())
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString as _;

    use proptest::prelude::*;

    use super::*;

    fn header(value: &str) -> Result<String, KeyProblem> {
        header_with(value, KeyRules::default())
    }

    fn header_with(value: &str, rules: KeyRules) -> Result<String, KeyProblem> {
        ClientKey::from_header(value.as_bytes(), rules)
            .map(|key| key.as_str().to_owned())
            .map_err(|error| error.problem)
    }

    #[test]
    fn quoted_and_bare_spell_the_same_key() {
        for (value, key) in [
            ("abc", "abc"),
            ("\"abc\"", "abc"),
            ("  \"abc\"\t", "abc"),
            ("\"a b\"", "a b"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#"a"b\c"#, r#"a"b\c"#),
            ("\"a,b;c=d\"", "a,b;c=d"),
            ("a;b=c", "a;b=c"),
            ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ] {
            assert_eq!(header(value).as_deref(), Ok(key), "{value}");
        }
        assert_eq!(header(&"k".repeat(255)).unwrap().len(), 255);
        assert_eq!(header(&format!("\"{}\"", "\\\"".repeat(255))).unwrap().len(), 255);
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        for (value, problem) in [
            ("", KeyProblem::Empty),
            ("  ", KeyProblem::Empty),
            ("\"\"", KeyProblem::Empty),
            ("\"  \"", KeyProblem::Blank),
            ("a b", KeyProblem::Space),
            ("a\tb", KeyProblem::Space),
            ("a\r", KeyProblem::Character),
            ("é", KeyProblem::Character),
            ("\"é\"", KeyProblem::Character),
            ("\"a\tb\"", KeyProblem::Character),
            ("\"abc", KeyProblem::Unclosed),
            ("\"", KeyProblem::Unclosed),
            ("\"abc\\\"", KeyProblem::Unclosed),
            ("\"a\\b\"", KeyProblem::Escape),
            ("\"abc\\", KeyProblem::Escape),
            ("\"abc\";a=1", KeyProblem::Parameters),
            ("\"abc\" ;a", KeyProblem::Parameters),
            ("\"abc\"d", KeyProblem::Trailing),
            ("\"a\", \"b\"", KeyProblem::List),
            ("a, b", KeyProblem::List),
            ("a,a", KeyProblem::List),
            (",", KeyProblem::List),
        ] {
            assert_eq!(header(value), Err(problem), "{value:?}");
        }
        assert_eq!(header(&"k".repeat(256)), Err(KeyProblem::TooLong { bytes: 256 }));
        assert!(matches!(header(&format!("\"{}\"", "k".repeat(256))), Err(KeyProblem::TooLong { .. })));
    }

    #[test]
    fn a_refusal_says_where_and_how_to_mend_it_but_not_the_key() {
        let error = ClientKey::from_header(b" secret-key \xff", KeyRules::default()).unwrap_err();
        assert_eq!((error.problem, error.at), (KeyProblem::Space, 11));
        let text = error.to_string();
        assert!(text.contains("put the key in double quotes") && text.ends_with("(at byte 11)"), "{text}");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn routes_can_ask_for_quotes_and_length() {
        let strict = KeyRules { strict: true, ..KeyRules::default() };
        assert_eq!(header_with("abc", strict), Err(KeyProblem::NotQuoted));
        assert_eq!(header_with("a,b", strict), Err(KeyProblem::List));
        assert_eq!(header_with("\"abc\"", strict).as_deref(), Ok("abc"));
        let long = KeyRules { min_length: 16, ..KeyRules::default() };
        assert_eq!(header_with("\"short\"", long), Err(KeyProblem::TooShort { bytes: 5, min: 16 }));
    }

    #[test]
    fn a_text_from_a_body_is_the_key_itself() {
        let text = |text| ClientKey::from_text(text, KeyRules::default());
        assert_eq!(text("a b").unwrap(), ClientKey::from_header(b"\"a b\"", KeyRules::default()).unwrap());
        assert_eq!(text("a,b").unwrap().as_str(), "a,b");
        for (wrong, problem) in [("", KeyProblem::Empty), (" ", KeyProblem::Blank), ("a\n", KeyProblem::Character)] {
            assert_eq!(text(wrong).unwrap_err().problem, problem);
        }
    }

    #[test]
    fn neither_key_nor_secret_show_in_debug_output() {
        let key = ClientKey::from_header(b"order-17-abcd", KeyRules::default()).unwrap();
        assert_eq!((format!("{key:?}").as_str(), key.tail()), ("ClientKey(…)", "abcd"));
        assert_eq!(ClientKey::from_header(b"abc", KeyRules::default()).unwrap().tail(), "c");
        assert_eq!(format!("{:?}", Secret::from_bytes([9; 32])), "Secret(…)");
    }

    #[test]
    fn a_secret_is_32_bytes_of_base64() {
        let text = STANDARD.encode([5; 32]);
        let secret = Secret::from_base64(&format!(" {text}\n")).unwrap();
        assert_eq!(secret.id(), Secret::from_bytes([5; 32]).id());
        assert_ne!(secret.id(), Secret::from_bytes([6; 32]).id());
        assert_eq!(Secret::from_base64(text.trim_end_matches('=')).unwrap().id(), secret.id());
        assert_eq!(Secret::from_base64("AAAA").unwrap_err(), InvalidSecret::Length { bytes: 3 });
        assert_eq!(Secret::from_base64("not base64!").unwrap_err(), InvalidSecret::NotBase64);
    }

    #[test]
    fn a_record_id_reads_back_and_nothing_else_does() {
        let id = RecordId([0xab; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "abc", &id.to_string()[1..], &format!("{id}="), &"+".repeat(43), &"_".repeat(43)] {
            assert_eq!(wrong.parse::<RecordId>(), Err(InvalidRecordId), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_key_or_a_refusal(value in proptest::collection::vec(any::<u8>(), 0..300), strict in any::<bool>()) {
            if let Ok(key) = ClientKey::from_header(&value, KeyRules { strict, min_length: 1 }) {
                prop_assert!((1..=255).contains(&key.as_str().len()));
                prop_assert!(key.as_str().bytes().all(is_printable));
            }
        }

        #[test]
        fn every_key_reads_back_from_its_quoted_form(key in "[!-~]{1,100}") {
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(header(&quoted), Ok(key.clone()));
            if !key.contains(',') && !key.starts_with('"') {
                prop_assert_eq!(header(&key), Ok(key));
            }
        }

        #[test]
        fn no_two_scopes_share_an_id(one in any::<[String; 5]>(), other in any::<[String; 5]>()) {
            let secret = Secret::from_bytes([1; 32]);
            let id = |[tenant, env, principal, route, key]: &[String; 5]| {
                RecordId::derive(&secret, &Scope { tenant, env, principal, route }, key)
            };
            prop_assert_eq!(id(&one) == id(&other), one == other);
        }
    }
}
