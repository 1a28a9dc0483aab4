//! The key header, beside an independent reading of RFC 9651.

use onceward_core::key::{ClientKey, KEY_BYTES_MAX, KeyRules};
use sfv::{BareItem, Item, Parser};

use crate::{Target, shape};

pub(crate) const TARGET: Target = Target {
    name: "key",
    run,
    bytes_max: 600,
    words: &["\"", "\\\"", "\\\\", "\"k-1\"", "k-1", ", ", ";a=1", " ", "\t", "\u{7f}", "é", "0123456789abcdef"],
};

fn run(input: &[u8]) -> u64 {
    let lax = ClientKey::from_header(input, KeyRules::default());
    let strict = ClientKey::from_header(input, KeyRules { strict: true, min_length: 1 });
    // Blanks around a field's value are no part of it; HTTP has tabs among them, RFC 9651 has not.
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = input.iter().position(|byte| !blank(byte)).unwrap_or(input.len());
    let until = input.iter().rposition(|byte| !blank(byte)).map_or(from, |last| last + 1);
    let value = &input[from..until];

    if let Ok(key) = &lax {
        let text = key.as_str();
        assert!((1..=KEY_BYTES_MAX).contains(&text.len()), "{} bytes are a key", text.len());
        assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "not visible ASCII: {text:?}");
        assert!(text.bytes().any(|byte| byte != b' '), "a key of spaces");
        assert!(text.ends_with(key.tail()) && key.tail().len() * 2 <= text.len() && key.tail().len() <= 4);
        // The quoted spelling is the same key, and so is the text in a body.
        let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        assert_eq!(
            ClientKey::from_header(quoted.as_bytes(), KeyRules { strict: true, min_length: 1 }).as_ref(),
            Ok(key)
        );
        assert_eq!(ClientKey::from_text(text, KeyRules::default()).as_ref(), Ok(key));
        if value.first() != Some(&b'"') {
            assert_eq!(text.as_bytes(), value, "a bare key is itself");
        }
    }
    if value.first() == Some(&b'"') {
        let read: Result<Item, _> = Parser::new(value).parse();
        let theirs = match read {
            Ok(Item { bare_item: BareItem::String(text), params }) if params.is_empty() => {
                let text = text.as_str().to_owned();
                let fits = (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().any(|byte| byte != b' ');
                fits.then_some(text)
            }
            _ => None,
        };
        assert_eq!(lax.as_ref().ok().map(ClientKey::as_str), theirs.as_deref(), "against RFC 9651");
        assert_eq!(strict.is_ok(), lax.is_ok());
    } else {
        assert!(strict.is_err(), "not quoted");
    }
    match lax {
        Ok(_) => shape(("key", value.first() == Some(&b'"'))),
        Err(error) => {
            assert!(error.at <= input.len(), "noticed at {} of {} bytes", error.at, input.len());
            shape(std::mem::discriminant(&error.problem))
        }
    }
}
