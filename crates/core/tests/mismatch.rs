//! What a mismatch names, through the public API alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod asking;

use onceward_core::canonical::{Request, Rules, Workspace};
use onceward_core::fingerprint::Fingerprinter;
use onceward_core::key::{RecordId, Secret};

use asking::{FORM, JSON, request, set, texts, with};

fn fingerprinter() -> Fingerprinter {
    Fingerprinter::new(&Secret::from_bytes([7; 32]))
}

const RECORD: RecordId = RecordId([3; 32]);

fn differing(old: &Request<'_>, new: &Request<'_>, rules: &Rules) -> (String, bool) {
    let stored = with(old, rules, |canonical| fingerprinter().field_digests(&RECORD, &canonical.fields));
    let mut workspace = Workspace::new();
    let new = workspace.canonicalize_to_explain(new, rules);
    let differences = fingerprinter().differing(&RECORD, &stored, &new.fields, rules);
    (differences.names.join(" "), differences.removed)
}

fn differing_bodies(old: &str, new: &str) -> (String, bool) {
    differing(&request(JSON, old), &request(JSON, new), &Rules::default())
}

fn only(names: &str) -> (String, bool) {
    (names.to_owned(), false)
}

#[test]
fn a_mismatch_names_fields_that_changed_or_are_new() {
    let old = r#"{"amount":1,"items":[{"sku":"a"}],"to":{}}"#;
    assert_eq!(differing_bodies(old, r#"{"amount":2,"items":[{"sku":"a"}],"to":{}}"#), only("/amount"));
    assert_eq!(differing_bodies(old, r#"{"amount":1,"items":[{"sku":"b"}],"to":{}}"#), only("/items/0/sku"));
    assert_eq!(differing_bodies(old, r#"{"amount":1,"fee":0,"items":[{"sku":"a"}],"to":{}}"#), only("/fee"));
    assert_eq!(differing_bodies(old, r#"{"amount":1,"items":[{"sku":"a"}]}"#), ("body".into(), true));
    assert_eq!(differing_bodies(old, "[]"), only("body"));
    assert_eq!(differing_bodies(old, "not json"), only("body"));
    assert_eq!(differing_bodies("1", "2"), only("body"));
}

#[test]
fn a_mismatch_beyond_the_stored_fields_says_body_and_accuses_no_old_field() {
    let many = |last: &str| {
        let members: Vec<_> = (10..30).map(|at| format!("\"m{at}\":{at}")).collect();
        format!("{{{},\"z\":{last}}}", members.join(","))
    };
    assert_eq!(differing_bodies(&many("1"), &many("2")), only("body"));
    assert_eq!(differing_bodies(&many("1"), &many("1").replace("12,", "0,")), only("/m12"));
    let early = many("1").replacen('{', "{\"a\":0,", 1);
    assert_eq!(differing_bodies(&many("1"), &early), only("/a"));
}

#[test]
fn a_mismatch_names_the_parts_of_the_request() {
    let rules = set(|set| set.headers = texts(&["v"]));
    let old = Request { query: Some("a=1"), headers: &[("v", b"1")], ..request(JSON, r#"{"a":1}"#) };
    let cases = [
        (Request { method: "PATCH", ..old }, "method"),
        (Request { path: "/other", ..old }, "path"),
        (Request { query: Some("a=2"), ..old }, "query"),
        (Request { query: None, ..old }, "query"),
        (Request { headers: &[], ..old }, "header:v"),
        (Request { headers: &[("v", b"2")], body: b"{\"a\":2}", ..old }, "header:v /a"),
    ];
    for (new, names) in cases {
        assert_eq!(differing(&old, &new, &rules), only(names));
    }
    assert_eq!(differing(&request(JSON, "{}"), &old, &rules), only("query header:v body"));
    let form = |body| request(FORM, body);
    assert_eq!(differing(&form("a=1&b=2"), &form("a=1&b=3"), &rules), only("form:b"));
    assert_eq!(differing(&form("a=1&b=2"), &form("b=2&a=1&a=2"), &rules), only("form:a"));
    let silent = set(|set| set.fields = 0);
    assert_eq!(differing(&request(JSON, "1"), &request(JSON, "2"), &silent), only(""));
}

#[test]
fn digests_of_one_value_differ_between_records_and_names_are_cut() {
    let rules = Rules::default();
    with(&request(JSON, r#"{"a":1}"#), &rules, |canonical| {
        let one = fingerprinter().field_digests(&RECORD, &canonical.fields);
        let other = fingerprinter().field_digests(&RecordId([4; 32]), &canonical.fields);
        assert_eq!(one.len(), 3);
        assert!(one.iter().all(|digest| !other.contains(digest)));
    });
    let long = "é".repeat(200);
    let (names, _) = differing_bodies(&format!("{{\"{long}\":1}}"), &format!("{{\"{long}\":2}}"));
    assert!(names.len() < 140 && names.ends_with('…'));
}
