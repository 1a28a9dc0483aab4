//! Which requests are the same and which are not, through the public API alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod asking;

use onceward_core::canonical::{
    BodyForm, BodyRule, RawReason, Request, RuleProblem, RuleSet, Rules, Workspace, header_value,
};
use onceward_core::fingerprint::{Fingerprint, Fingerprinter, Hash};
use onceward_core::key::Secret;

use asking::{FORM, JSON, request, set, texts, with};

fn bytes(request: &Request<'_>, rules: &Rules) -> Vec<u8> {
    with(request, rules, |canonical| canonical.bytes.to_vec())
}

fn body(content_type: Option<&[u8]>, text: &str, rules: &Rules) -> String {
    with(&request(content_type, text), rules, |canonical| String::from_utf8(canonical.body().to_vec()).unwrap())
}

fn fingerprinter() -> Fingerprinter {
    Fingerprinter::new(&Secret::from_bytes([7; 32]))
}

fn fingerprint(text: &str, rules: &Rules) -> Fingerprint {
    with(&request(JSON, text), rules, |canonical| fingerprinter().fingerprint(Hash::Blake3, &canonical))
}

#[test]
fn the_same_payment_in_another_spelling_has_the_same_fingerprint() {
    let rules = set(|set| set.strip = texts(&["/metadata/sent_at", "/items/*/seen"]));
    let one = r#"{"amount":1,"to":{"name":"Zoë"},"metadata":{"sent_at":"09:00"},"items":[{"sku":"a","seen":1}]}"#;
    let same =
        "{ \"items\" : [ {\"sku\":\"a\"} ],\n\"to\":{\"name\":\"Zo\\u00eb\"}, \"metadata\":{}, \"amount\": 10e-1 }";
    assert_eq!(fingerprint(one, &rules), fingerprint(same, &rules));
    for amount in ["1.0", "1e0", "0.1E+1", "1.000"] {
        let spelled = one.replace(":1,\"to", &format!(":{amount},\"to"));
        assert_eq!(fingerprint(&spelled, &rules), fingerprint(one, &rules), "{amount}");
    }
}

#[test]
fn another_payment_has_another_fingerprint() {
    let rules = Rules::default();
    let of = |amount: &str| fingerprint(&format!(r#"{{"amount":{amount}}}"#), &rules);
    assert_ne!(of("100"), of("101"));
    assert_ne!(of("9007199254740993"), of("9007199254740992"));
    assert_ne!(of("0.1"), of("0.10000000000000001"));
    assert_ne!(of("1"), of("\"1\""));
    assert_ne!(of("1"), of("1,\"amount\":1"));
    assert_ne!(of("1,\"amount\":1"), of("1,\"amount\": 1"));
    assert_ne!(of("1e400"), of("1e401"));
    assert_ne!(of("null"), of("0"));
}

#[test]
fn a_body_that_could_be_read_in_two_ways_is_hashed_byte_for_byte() {
    let deep = "[".repeat(65) + &"]".repeat(65);
    for (text, reason) in [
        (r#"{"a":1,"a":1}"#, RawReason::DuplicateName),
        (r#""\ud800""#, RawReason::LoneSurrogate),
        (&*deep, RawReason::TooDeep),
        ("{\"a\":1}x", RawReason::NotJson { at: 7 }),
        ("", RawReason::Empty),
    ] {
        let (form, canonical) =
            with(&request(JSON, text), &Rules::default(), |canonical| (canonical.body_form, canonical.body().to_vec()));
        assert_eq!((form, &*canonical), (BodyForm::Raw(reason), text.as_bytes()));
    }
}

#[test]
fn every_part_of_a_request_counts_and_none_runs_into_another() {
    let header: &[(&str, &[u8])] = &[("api-version", b"2")];
    let base = request(JSON, "{}");
    let variants = [
        base,
        Request { method: "PATCH", ..base },
        Request { path: "/v1/payment", ..base },
        Request { path: "/v1/payments?", ..base },
        Request { query: Some(""), ..base },
        Request { query: Some("a=1"), ..base },
        Request { query: Some("a=1&"), ..base },
        Request { headers: header, ..base },
        Request { headers: &[("api-version", b"")], ..base },
        Request { headers: &[("api-versio", b"n2")], ..base },
        Request { body: b"[]", ..base },
        Request { body: b"", ..base },
        Request { content_type: None, ..base },
        Request { encoded: true, body: b" {}", ..base },
    ];
    let all: Vec<_> = variants.iter().map(|request| bytes(request, &Rules::default())).collect();
    for (at, one) in all.iter().enumerate() {
        for (other_at, other) in all.iter().enumerate().skip(at + 1) {
            assert_ne!(one, other, "{at} and {other_at}");
        }
    }
}

#[test]
fn the_layout_is_as_documented() {
    let one = Request { query: Some("q"), headers: &[("b", b"2"), ("a", b"1")], ..request(JSON, "[1.0]") };
    let expected = [
        &b"onceward/v1/request\0\0\0\0\x04POST\0\0\0\x0c/v1/payments\x01\0\0\0\x01q"[..],
        b"\0\0\0\x02\0\0\0\x01a\0\0\0\x011\0\0\0\x01b\0\0\0\x012j[1]\0\0\0\0\0\0\0\x03",
    ];
    assert_eq!(bytes(&one, &Rules::default()), expected.concat());
}

#[test]
fn listed_headers_are_trimmed_and_joined() {
    let rules = set(|set| set.headers = texts(&["X-B", "api-version", "x-b"]));
    assert_eq!(rules.headers(), ["api-version", "x-b"]);
    assert_eq!(header_value([&b" a "[..], b"b"].into_iter()), b"a, b");
}

#[test]
fn strip_removes_members_and_elements_wherever_they_are() {
    let rules = set(|set| set.strip = texts(&["/a", "/b/*/c", "/d/0", "/~1~0", "/none"]));
    let input = r#"{"a":1,"b":[{"c":1,"x":2},{"c":3}],"d":[1,2],"/~":0,"e":{"a":1}}"#;
    assert_eq!(body(JSON, input, &rules), r#"{"b":[{"x":2},{}],"d":[2],"e":{"a":1}}"#);
    with(&request(JSON, input), &rules, |canonical| {
        assert_eq!(canonical.findings.stripped, ["/a", "/b/*/c", "/d/0", "/~1~0"]);
    });
    // On an object `*` is a name like any other.
    let star = set(|set| set.strip = texts(&["/*"]));
    assert_eq!(body(JSON, r#"{"*":1,"a":2}"#, &star), r#"{"a":2}"#);
    assert_eq!(body(JSON, "[1,2]", &star), "[]");
}

#[test]
fn keep_counts_only_what_it_names_and_all_where_something_is_lacking() {
    let rules = set(|set| set.keep = texts(&["/id", "/items/*/sku", "/to/iban"]));
    let whole = r#"{"id":1,"items":[{"n":1,"sku":"a"},{"sku":"b"}],"to":{"iban":"x","name":"y"},"z":0}"#;
    assert_eq!(body(JSON, whole, &rules), r#"{"id":1,"items":[{"sku":"a"},{"sku":"b"}],"to":{"iban":"x"}}"#);
    for lacking in [
        r#"{"id":1,"items":[{"n":1,"sku":"a"},{"n":2}],"to":{"iban":"x"}}"#,
        r#"{"id":1,"items":[],"to":{}}"#,
        r#"{"id":1,"to":{"iban":"x"}}"#,
        "[]",
    ] {
        assert_eq!(body(JSON, lacking, &rules), lacking);
        assert!(with(&request(JSON, lacking), &rules, |canonical| canonical.findings.keep_missing));
    }
    assert!(with(&request(None, "raw"), &rules, |canonical| canonical.findings.keep_missing));
    assert!(!with(&request(JSON, whole), &rules, |canonical| canonical.findings.keep_missing));
    let both = set(|set| (set.keep, set.strip) = (texts(&["/a"]), texts(&["/a/b"])));
    assert_eq!(body(JSON, r#"{"a":{"b":1,"c":2},"d":3}"#, &both), r#"{"a":{"c":2}}"#);
}

#[test]
fn required_fields_are_named_when_they_lack() {
    let rules = set(|set| set.require = texts(&["/amount", "/items/*/sku", "form:amount", "query:v"]));
    let missing =
        |request: &Request<'_>| with(request, &rules, |canonical| canonical.findings.missing_required.join(" "));
    let good = Request { query: Some("v=1"), ..request(JSON, r#"{"amount":null,"items":[]}"#) };
    assert_eq!(missing(&good), "");
    assert_eq!(missing(&Request { query: None, ..good }), "query:v");
    assert_eq!(missing(&Request { body: b"{\"items\":[{}]}", ..good }), "/amount /items/*/sku");
    assert_eq!(missing(&Request { content_type: FORM, body: b"amount=1", ..good }), "");
    assert_eq!(missing(&Request { content_type: FORM, body: b"a=1", ..good }), "form:amount");
    assert_eq!(missing(&Request { content_type: None, ..good }), "/amount /items/*/sku form:amount");
    let mut workspace = Workspace::new();
    let head = workspace.head(&good, &rules);
    assert_eq!(head.findings.missing_required, ["/amount", "/items/*/sku", "form:amount"]);
    let json_only = set(|set| set.require = texts(&["/amount"]));
    with(&request(FORM, "amount=1"), &json_only, |canonical| {
        assert_eq!(canonical.findings.missing_required, ["/amount"]);
    });
}

#[test]
fn an_unordered_array_is_a_multiset() {
    let rules = set(|set| set.unordered = texts(&["/tags", "/groups", "/groups/*"]));
    let of = |text: &str| body(JSON, text, &rules);
    assert_eq!(of(r#"{"tags":["b","a"]}"#), of(r#"{"tags":["a","b"]}"#));
    assert_ne!(of(r#"{"tags":["a","a","b"]}"#), of(r#"{"tags":["a","b"]}"#));
    assert_ne!(of(r#"{"tags":["a","a","b"]}"#), of(r#"{"tags":["a","b","b"]}"#));
    assert_ne!(of(r#"{"other":["b","a"]}"#), of(r#"{"other":["a","b"]}"#));
    assert_eq!(of(r#"{"groups":[[3,1.0],[2]]}"#), r#"{"groups":[[1,3],[2]]}"#);
    assert_eq!(of(r#"{"groups":[[2],[1,3]]}"#), r#"{"groups":[[1,3],[2]]}"#);
    let root = set(|set| set.unordered = texts(&[""]));
    assert_eq!(body(JSON, "[2,1]", &root), "[1,2]");
}

#[test]
fn forms_are_sorted_pairs_whose_lists_keep_their_order() {
    let rules = set(|set| set.strip = texts(&["form:ts"]));
    let of = |text: &str| body(FORM, text, &rules);
    assert_eq!(of("b=2&a=1+%2b&&ts=9"), "a=1%20%2B&b=2");
    assert_eq!(of("a=1&b=2"), of("b=%32&%61=1"));
    assert_ne!(of("a=1&a=2"), of("a=2&a=1"));
    assert_ne!(of("x[][a]=1&x[][b]=2&x[][a]=3"), of("x[][a]=1&x[][a]=3&x[][b]=2"));
    assert_ne!(of("a"), of("a="));
    assert_ne!(of("a=1%26b=2"), of("a=1&b=2"));
    assert_eq!(of("a=%zz"), "a=%zz");
    let keep = set(|set| set.keep = texts(&["form:id"]));
    assert_eq!(body(FORM, "id=1&x=2", &keep), "id=1");
    assert_eq!(body(FORM, "x=2", &keep), "x=2");
    with(&request(FORM, "a=%zz"), &rules, |canonical| {
        assert_eq!(canonical.body_form, BodyForm::Raw(RawReason::MalformedForm));
    });
}

#[test]
fn a_query_counts_as_sent_unless_a_rule_speaks_of_it() {
    let of = |query: &'static str, rules: &Rules| bytes(&Request { query: Some(query), ..request(JSON, "{}") }, rules);
    let plain = Rules::default();
    assert_ne!(of("a=1&b=2", &plain), of("b=2&a=1", &plain));
    let sorted = set(|set| set.sort_query = true);
    assert_eq!(of("a=1&b=2", &sorted), of("b=2&a=1", &sorted));
    assert_ne!(of("a=1&a=2", &sorted), of("a=2&a=1", &sorted));
    assert_ne!(of("a=1+1", &sorted), of("a=1%201", &sorted));
    let strip = set(|set| set.strip = texts(&["query:t s"]));
    assert_eq!(of("a=1&t%20s=2&b=3", &strip), of("a=1&b=3", &strip));
    assert_eq!(of("t+s=2", &strip), bytes(&request(JSON, "{}"), &strip));
    assert_ne!(of("a=1&b=3", &strip), of("b=3&a=1", &strip));
    let keep = set(|set| set.keep = texts(&["query:id"]));
    assert_eq!(of("id=1&x=2", &keep), of("x=3&id=1", &keep));
    assert_ne!(of("x=2", &keep), of("x=3", &keep));
}

#[test]
fn a_streamed_body_has_the_fingerprint_of_the_body_in_memory() {
    let text = "x".repeat(1000);
    for rules in [
        Rules::default(),
        set(|set| set.canonical_body_max = 10),
        set(|set| set.body = BodyRule::None),
        set(|set| set.body = BodyRule::Raw),
    ] {
        let content_type = if rules.canonical_body_max() == 10 { JSON } else { None };
        let request = Request { query: Some("a=1"), ..request(content_type, &text) };
        for hash in [Hash::Blake3, Hash::Sha256] {
            let whole = with(&request, &rules, |canonical| fingerprinter().fingerprint(hash, &canonical));
            let mut workspace = Workspace::new();
            let mut hasher = fingerprinter().hasher(hash, &workspace.head(&request, &rules));
            text.as_bytes().chunks(77).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.finish(), whole, "{hash:?}");
        }
    }
}

#[test]
fn fingerprints_depend_on_secret_and_hash() {
    let rules = Rules::default();
    with(&request(JSON, "{}"), &rules, |canonical| {
        let other = Fingerprinter::new(&Secret::from_bytes([8; 32]));
        for hash in [Hash::Blake3, Hash::Sha256] {
            assert_ne!(other.fingerprint(hash, &canonical), fingerprinter().fingerprint(hash, &canonical));
        }
        let one = fingerprinter();
        assert_ne!(one.fingerprint(Hash::Blake3, &canonical), one.fingerprint(Hash::Sha256, &canonical));
        assert_eq!(format!("{one:?}"), "Fingerprinter(…)");
    });
}

#[test]
fn a_policy_changes_with_what_is_equal_and_with_nothing_else() {
    let plain = Rules::default().policy();
    assert_eq!(Rules::compile(&RuleSet::default()).unwrap().policy(), plain);
    assert_eq!(set(|set| set.require = texts(&["/a"])).policy(), plain);
    let ab = set(|set| set.strip = texts(&["/a", "/b"])).policy();
    assert_eq!(set(|set| set.strip = texts(&["/b", "/a"])).policy(), ab);
    assert_ne!(ab, plain);
    assert_ne!(set(|set| set.keep = texts(&["/a", "/b"])).policy(), ab);
    assert_ne!(set(|set| set.hash = Hash::Sha256).policy(), plain);
}

#[test]
fn bad_rules_are_refused_with_list_entry_and_reason() {
    let refused = |change: fn(&mut RuleSet)| {
        let mut set = RuleSet::default();
        change(&mut set);
        Rules::compile(&set).unwrap_err()
    };
    let error = refused(|set| set.strip = texts(&["/ok", "amount"]));
    assert_eq!((error.list, &*error.entry, error.problem), ("strip", "amount", RuleProblem::Unknown));
    assert_eq!(
        error.to_string(),
        "fingerprint.strip: `amount`: write a pointer such as `/amount`, `query:NAME` or `form:NAME`"
    );
    assert!(matches!(refused(|set| set.keep = texts(&["/a~x"])).problem, RuleProblem::Pointer(_)));
    assert_eq!(refused(|set| set.strip = texts(&[""])).problem, RuleProblem::WholeBody);
    assert_eq!(refused(|set| set.unordered = texts(&["query:a"])).problem, RuleProblem::OnlyPointers);
    assert_eq!(refused(|set| set.require = texts(&["query:"])).problem, RuleProblem::FieldName);
    assert_eq!(refused(|set| set.headers = texts(&["a b"])).problem, RuleProblem::HeaderName);
    assert_eq!(refused(|set| set.fields = 65).problem, RuleProblem::TooManyFields);
    assert_eq!(refused(|set| set.strip = vec!["/a".into(); 65]).problem, RuleProblem::TooMany);
    let raw = refused(|set| (set.body, set.require) = (BodyRule::Raw, texts(&["/a"])));
    assert_eq!(raw.problem, RuleProblem::BodyNotRead);
}

#[test]
fn large_and_hostile_bodies_stay_bounded() {
    let rules = set(|set| set.unordered = texts(&["", "/*", "/*/*"]));
    let size = 1 << 20;
    let deep_names = format!("{{\"{0}\":{{\"{0}\":[{1}0]}}}}", "n".repeat(size / 4), "0,".repeat(size / 8));
    let bodies = [
        "[".repeat(size),
        "{\"a\":".repeat(size / 5),
        format!("[{}0]", "1e20,".repeat(size / 5 - 1)),
        format!("[1e{}]", "9".repeat(size - 4)),
        format!("[0.{}1]", "0".repeat(size - 5)),
        format!("[{}0]", "[0],".repeat(size / 4 - 1)),
        format!("\"{}\"", "\\u0001".repeat(size / 6 - 1)),
        deep_names,
    ];
    let mut workspace = Workspace::new();
    for body in &bodies {
        let canonical = workspace.canonicalize_to_explain(&request(JSON, body), &rules);
        assert!(canonical.bytes.len() < size * 6);
        assert!(canonical.fields.iter().map(|(name, _)| name.len()).sum::<usize>() <= 1 << 17);
        assert!(workspace.memory_bytes() <= 48 * size + (1 << 16));
        workspace.shrink(1 << 16);
        assert!(workspace.memory_bytes() <= 10 << 16);
    }
    for body in ["a&".repeat(size / 2), "a=%62&".repeat(size / 6), "+".repeat(size)] {
        let sorted = set(|set| set.sort_query = true);
        let request = Request { query: Some(&body), ..request(FORM, &body) };
        let canonical = workspace.canonicalize_to_explain(&request, &sorted);
        assert_eq!(canonical.body_form, BodyForm::Form);
        assert!(workspace.memory_bytes() <= 48 * size + (1 << 16));
        workspace.shrink(1 << 16);
    }
    let over = "0".repeat(size + 1);
    with(&request(JSON, &over), &rules, |canonical| {
        assert_eq!(canonical.body_form, BodyForm::Raw(RawReason::TooLarge));
    });
}
