//! The vectors that every implementation passes, in whatever language.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use onceward_core::canonical::{BodyForm, Request, Rules, Workspace, json_text};
use onceward_core::key::{RecordId, Scope, Secret, child_key};
use serde_json::Value;

fn vectors(name: &str) -> Value {
    let path = format!("{}/../../docs/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&path).expect(&path)).expect(&path)
}

fn list<'v>(vectors: &'v Value, name: &str, at_least: usize) -> &'v [Value] {
    let cases = vectors[name].as_array().expect(name);
    assert!(cases.len() >= at_least, "{name} has only {} cases", cases.len());
    cases
}

fn text<'v>(case: &'v Value, name: &str) -> &'v str {
    case[name].as_str().expect(name)
}

#[test]
fn canonical_json_is_as_the_vectors_say() {
    let rules = Rules::default();
    let mut workspace = Workspace::new();
    for case in list(&vectors("canonical-json.json"), "cases", 105) {
        let name = text(case, "name");
        let body = STANDARD.decode(text(case, "input_base64")).expect(name);
        let expected = case["canonical"].as_str();
        assert_eq!(json_text(&body).ok().as_deref(), expected, "{name}");

        let content_type = Some(&b"application/json"[..]);
        let request = Request { content_type, body: &body, ..Request::default() };
        let canonical = workspace.canonicalize(&request, &rules);
        assert_eq!(canonical.body(), expected.map_or(&*body, str::as_bytes), "{name}");
        assert_eq!(canonical.body_form == BodyForm::Json, expected.is_some(), "{name}");
    }
}

#[test]
fn record_ids_are_as_the_vectors_say() {
    let vectors = vectors("record-ids.json");
    let secret = Secret::from_base64(text(&vectors, "secret_base64")).expect("the vectors' secret");
    for case in list(&vectors, "record_ids", 9) {
        let scope = Scope {
            tenant: text(case, "tenant"),
            env: text(case, "env"),
            principal: text(case, "principal"),
            route: text(case, "route"),
        };
        let id = RecordId::derive(&secret, &scope, text(case, "key"));
        assert_eq!(id.to_string(), text(case, "id"), "{case}");
        assert_eq!(format!("p{:03}", id.partition()), text(case, "partition"), "{case}");
        assert_eq!(text(case, "id").parse(), Ok(id));
        assert!(text(case, "id").starts_with(&id.short()) && id.short().len() == 8);
    }
    for case in list(&vectors, "child_keys", 4) {
        assert_eq!(child_key(text(case, "parent"), text(case, "step")), text(case, "child"), "{case}");
    }
}
