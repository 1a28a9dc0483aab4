//! The canonical form, beside an independent implementation of RFC 8785 where that RFC speaks.
//!
//! Where it does not: a number that is not what its double's shortest spelling says keeps its exact value with us.

use onceward_core::canonical::{BodyForm, RawReason, Request, RuleSet, Rules, Workspace, json_text};
use serde_json::Value;

use crate::{Target, shape};

pub(crate) const TARGET: Target = Target {
    name: "canonical",
    run,
    bytes_max: 4096,
    words: &[
        "{\"a\":1}",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\u0041",
        "\\ud83d\\ude00",
        "\\ud800",
        "\\n",
        "\\/",
        "null",
        "true",
        "-0",
        "1e400",
        "1E-7",
        "9007199254740993",
        "0.1",
        "1.0",
        "-",
        "e+",
        "\u{fb33}",
        "\u{1f600}",
        "&",
        "=",
        "%41",
        "%2B",
        "+",
        "a[]=",
        "--x\r\n",
        "Content-Disposition: form-data; name=\"a\"\r\n\r\n",
        "\r\n--x--",
        "1e21",
        "1e-6",
        "123456789012345678901234567890",
        "5e-324",
        "2.2250738585072014e-308",
    ],
};

fn run(input: &[u8]) -> u64 {
    let whole = whole(input);
    let json = json(input);
    shape((whole, json))
}

/// A request of any kind: never a panic, and the same bytes from a workspace that is new and one that was used.
fn whole(input: &[u8]) -> u64 {
    let Some((kind, body)) = input.split_first() else { return 0 };
    let types = [
        &b"application/json"[..],
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/vnd.api+json; charset=utf-8",
        b"text/plain",
    ];
    let set = RuleSet {
        strip: vec!["/a/*".into(), "query:t".into(), "form:a".into()],
        require: vec!["/b".into()],
        unordered: vec!["/c".into()],
        sort_query: kind & 64 != 0,
        ..RuleSet::default()
    };
    let rules = if kind & 128 == 0 { RuleSet::default() } else { set };
    let rules = Rules::compile(&rules).expect("rules that are right");
    let content_type = types[usize::from(*kind) % types.len()];
    let query = std::str::from_utf8(&body[..body.len().min(20)]).ok();
    let request =
        Request { method: "POST", path: "/p", query, content_type: Some(content_type), body, ..Request::default() };
    let mut workspace = Workspace::new();
    let first = workspace.canonicalize(&request, &rules);
    let (bytes, form) = (first.bytes.to_vec(), first.body_form);
    let other = Request { body: b"{\"z\":[1,2,{\"y\":\"x\"}]}", content_type: Some(types[0]), ..request };
    let _ = workspace.canonicalize(&other, &rules);
    let again = workspace.canonicalize(&request, &rules);
    assert_eq!((again.bytes, again.body_form), (&bytes[..], form), "a workspace that was used");
    match form {
        BodyForm::Json => 1,
        BodyForm::Form => 2,
        BodyForm::Multipart => 3,
        BodyForm::Raw(reason) => shape(std::mem::discriminant(&reason)),
        _ => 4,
    }
}

fn json(input: &[u8]) -> u64 {
    let theirs: Result<Value, serde_json::Error> = serde_json::from_slice(input);
    let ours = match json_text(input) {
        Ok(text) => text,
        Err(reason @ (RawReason::NotJson { .. } | RawReason::NotUtf8)) => {
            assert!(theirs.is_err(), "{reason}, and another reader takes it");
            return shape(std::mem::discriminant(&reason));
        }
        // Said of JSON, of which others take some.
        Err(reason) => return shape(std::mem::discriminant(&reason)),
    };
    assert_eq!(json_text(ours.as_bytes()).as_deref(), Ok(ours.as_str()), "the canonical form of itself");
    let theirs = match theirs {
        Ok(value) => value,
        // A double cannot hold it.
        Err(error) if error.to_string().starts_with("number out of range") => return 5,
        Err(error) => panic!("JSON to us, and another reader says: {error}"),
    };
    let rfc = |value: &Value| serde_json_canonicalizer::to_string(value).expect("it has a canonical form");
    let theirs = rfc(&theirs);
    let read_again: Value = serde_json::from_str(&ours).expect("what is canonical is JSON");
    assert_eq!(rfc(&read_again), theirs, "the canonical form means something else");
    let mut is_exact = true;
    for number in numbers(&ours) {
        let double: f64 = number.parse().expect("a number");
        let spelled = rfc(&Value::from(double));
        if decimal(number) == decimal(&spelled) {
            assert_eq!(number, spelled, "another spelling of a number that the RFC has");
        } else {
            is_exact = false;
            assert!(is_scientific(number), "{number} is not spelled as an exact value is");
        }
    }
    if is_exact {
        assert_eq!(ours, theirs, "against RFC 8785");
    }
    shape(("json", is_exact, ours.len().checked_ilog2()))
}

/// The numbers of a JSON text, as they stand there.
fn numbers(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let len = text[at..].find([',', ']', '}']).unwrap_or(text.len() - at);
                found.push(&text[at..at + len]);
                at += len;
            }
            _ => at += 1,
        }
    }
    found
}

/// Its exact value: sign, digits without zeros at either end, and the power of ten of the last one. None where that is
/// beyond all doubles by far.
fn decimal(number: &str) -> Option<(bool, String, i64)> {
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (mantissa, exponent) = number.split_once('e').unwrap_or((number, "0"));
    let exponent: i32 = exponent.parse().ok()?;
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{before}{after}");
    let digits = digits.trim_start_matches('0');
    let short = digits.trim_end_matches('0');
    if short.is_empty() {
        return Some((false, String::new(), 0));
    }
    let last = i64::from(exponent) - after.len() as i64 + (digits.len() - short.len()) as i64;
    Some((negative, short.to_owned(), last))
}

/// One digit, the others after a point and none of them a last zero, and an exponent with its sign.
fn is_scientific(number: &str) -> bool {
    let number = number.strip_prefix('-').unwrap_or(number);
    let Some((mantissa, exponent)) = number.split_once('e') else { return false };
    let digits = mantissa.strip_prefix(|first: char| ('1'..='9').contains(&first));
    let digits =
        digits.is_some_and(|rest| rest.is_empty() || (rest.starts_with('.') && rest.len() > 1 && !rest.ends_with('0')));
    digits && exponent.starts_with(['+', '-'])
}
