//! Requests and rules as the tests of the canonical form say them.

use onceward_core::canonical::{Canonical, Request, RuleSet, Rules, Workspace};

pub(crate) const JSON: Option<&[u8]> = Some(b"application/json; charset=utf-8");
pub(crate) const FORM: Option<&[u8]> = Some(b"application/x-www-form-urlencoded");

/// The default rules, changed.
pub(crate) fn set(change: impl FnOnce(&mut RuleSet)) -> Rules {
    let mut set = RuleSet::default();
    change(&mut set);
    Rules::compile(&set).unwrap()
}

pub(crate) fn texts(entries: &[&str]) -> Vec<String> {
    entries.iter().map(|entry| (*entry).to_owned()).collect()
}

pub(crate) fn request<'a>(content_type: Option<&'a [u8]>, body: &'a str) -> Request<'a> {
    Request { method: "POST", path: "/v1/payments", content_type, body: body.as_bytes(), ..Request::default() }
}

/// Looks at a request in canonical form.
pub(crate) fn with<T>(request: &Request<'_>, rules: &Rules, look: impl FnOnce(Canonical<'_>) -> T) -> T {
    look(Workspace::new().canonicalize(request, rules))
}
