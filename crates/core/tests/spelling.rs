//! Properties: spelling never counts, values always do, and no input breaks anything.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod asking;

use onceward_core::canonical::{Request, Rules, json_text};
use onceward_core::fingerprint::Fingerprinter;
use onceward_core::key::{RecordId, Secret};
use proptest::prelude::*;

const RECORD: RecordId = RecordId([3; 32]);
use asking::{FORM, JSON, request, set, texts, with};

fn body(content_type: Option<&[u8]>, text: &str, rules: &Rules) -> String {
    with(&request(content_type, text), rules, |canonical| String::from_utf8(canonical.body().to_vec()).unwrap())
}

fn fingerprinter() -> Fingerprinter {
    Fingerprinter::new(&Secret::from_bytes([7; 32]))
}

/// A JSON value of ours, spelled in many ways.
#[derive(Clone, Debug)]
enum Json {
    Null,
    Bool(bool),
    /// A whole number times a power of ten.
    Number(i64, i8),
    Text(String),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        (any::<i64>(), -30_i8..30).prop_map(|(digits, exponent)| Json::Number(digits, exponent)),
        (-1000_i64..1000, -3_i8..3).prop_map(|(digits, exponent)| Json::Number(digits, exponent)),
        any::<String>().prop_map(Json::Text),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Json::Array),
            proptest::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

/// Draws spellings from a seed.
struct Spelling(u64);

impl Spelling {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn space(&mut self, out: &mut String) {
        for _ in 0..self.draw(3) {
            out.push([' ', '\t', '\n', '\r'][self.draw(4) as usize]);
        }
    }

    fn text(&mut self, text: &str, out: &mut String) {
        out.push('"');
        for char in text.chars() {
            let must = char < ' ' || char == '"' || char == '\\';
            if must || self.draw(4) == 0 {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let upper = self.draw(2) == 0;
                    out.push_str(&if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") });
                }
            } else {
                out.push(char);
            }
        }
        out.push('"');
    }

    fn number(&mut self, digits: i64, exponent: i8, out: &mut String) {
        let exponent = i64::from(exponent);
        if digits == 0 {
            out.push_str(["0", "-0", "0.0", "0e9", "-0.00E-3"][self.draw(5) as usize]);
            return;
        }
        let zeros = self.draw(3);
        let down = exponent - zeros as i64;
        match self.draw(3) {
            0 => out.push_str(&format!("{digits}{}e{down}", "0".repeat(zeros as usize))),
            1 => out.push_str(&format!("{digits}.0{}E{exponent:+}", "0".repeat(zeros as usize))),
            _ if (0..20).contains(&exponent) => {
                out.push_str(&format!("{digits}{}", "0".repeat(exponent as usize)));
            }
            _ => {
                let sign = if digits < 0 { "-" } else { "" };
                let text = digits.unsigned_abs().to_string();
                out.push_str(&format!("{sign}0.{text}e{}", exponent + text.len() as i64));
            }
        }
    }

    fn spell(&mut self, json: &Json, out: &mut String) {
        self.space(out);
        match json {
            Json::Null => out.push_str("null"),
            Json::Bool(bool) => out.push_str(if *bool { "true" } else { "false" }),
            Json::Number(digits, exponent) => self.number(*digits, *exponent, out),
            Json::Text(text) => self.text(text, out),
            Json::Array(elements) => {
                out.push('[');
                for (at, element) in elements.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    self.spell(element, out);
                }
                self.space(out);
                out.push(']');
            }
            Json::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                for at in (1..members.len()).rev() {
                    members.swap(at, self.draw(at as u64 + 1) as usize);
                }
                out.push('{');
                for (at, (name, value)) in members.into_iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    self.space(out);
                    self.text(name, out);
                    self.space(out);
                    out.push(':');
                    self.spell(value, out);
                }
                self.space(out);
                out.push('}');
            }
        }
        self.space(out);
    }
}

fn spelled(json: &Json, seed: u64) -> String {
    let mut out = String::new();
    Spelling(seed).spell(json, &mut out);
    out
}

/// Changes one value somewhere.
fn changed(json: &Json, draw: &mut Spelling) -> Json {
    match json {
        Json::Null => Json::Bool(false),
        Json::Bool(bool) => Json::Bool(!bool),
        Json::Number(digits, exponent) if *digits == i64::MAX => Json::Number(digits - 1, *exponent),
        Json::Number(digits, exponent) => Json::Number(digits + 1, *exponent),
        Json::Text(text) => Json::Text(format!("{text}\u{301}")),
        Json::Array(elements) if elements.is_empty() => Json::Array(vec![Json::Null]),
        Json::Array(elements) => {
            let mut elements = elements.clone();
            let at = draw.draw(elements.len() as u64) as usize;
            elements[at] = changed(&elements[at], draw);
            Json::Array(elements)
        }
        Json::Object(members) if members.is_empty() => Json::Object(vec![(String::new(), Json::Null)]),
        Json::Object(members) => {
            let mut members = members.clone();
            let at = draw.draw(members.len() as u64) as usize;
            members[at].1 = changed(&members[at].1, draw);
            Json::Object(members)
        }
    }
}

proptest! {
    #[test]
    fn spelling_never_changes_the_canonical_form(json in json(), seeds in any::<[u64; 2]>()) {
        let [one, other] = seeds.map(|seed| json_text(spelled(&json, seed).as_bytes()));
        prop_assert!(one.is_ok(), "{one:?}");
        prop_assert_eq!(one, other);
    }

    #[test]
    fn a_changed_value_always_changes_the_canonical_form(json in json(), seed in any::<u64>()) {
        let other = changed(&json, &mut Spelling(seed));
        prop_assert_ne!(
            json_text(spelled(&json, seed).as_bytes()).unwrap(),
            json_text(spelled(&other, seed).as_bytes()).unwrap()
        );
    }

    #[test]
    fn the_canonical_form_is_its_own(json in json(), seed in any::<u64>()) {
        let once = json_text(spelled(&json, seed).as_bytes()).unwrap();
        prop_assert_eq!(json_text(once.as_bytes()).unwrap(), once);
    }

    #[test]
    fn any_bytes_have_a_canonical_form(
        body in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_usize..4, query in any::<String>()
    ) {
        let rules = set(|set| {
            set.strip = texts(&["/a", "/*/b", "query:a", "form:a"]);
            set.require = texts(&["/0", "query:b"]);
            set.unordered = texts(&["", "/*"]);
            set.sort_query = true;
        });
        let content_type = [JSON, FORM, Some(&b"multipart/form-data; boundary=a"[..]), None][kind];
        let request = Request { query: Some(&query), content_type, body: &body, ..Request::default() };
        let digests = with(&request, &rules, |canonical| fingerprinter().field_digests(&RECORD, &canonical.fields));
        prop_assert!(digests.len() <= 11);
    }

    #[test]
    fn any_near_json_has_a_canonical_form(text in r#"[\[\]{}",:0-9eE.+\-tfnrualse\\ ab]{0,60}"#) {
        if let Ok(once) = json_text(text.as_bytes()) {
            prop_assert_eq!(json_text(once.as_bytes()).unwrap(), once);
        }
    }

    #[test]
    fn a_forms_order_of_names_does_not_count(pairs in proptest::collection::btree_map("[a-z=&%+é]{1,4}", any::<String>(), 1..6), seed in any::<u64>()) {
        let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let mut pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let one = body(FORM, &pairs.join("&"), &Rules::default());
        let mut draw = Spelling(seed);
        for at in (1..pairs.len()).rev() {
            pairs.swap(at, draw.draw(at as u64 + 1) as usize);
        }
        prop_assert_eq!(body(FORM, &pairs.join("&"), &Rules::default()), one.clone());
        prop_assert_eq!(body(FORM, &one, &Rules::default()), one);
    }
}
