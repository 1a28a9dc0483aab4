//! Where a request's key stands, and that all places agree.

use http::{HeaderMap, HeaderName};
use onceward_core::{
    canonical::{self, Found},
    key::{ClientKey, InvalidKey, KeyProblem},
};

use crate::{
    grpc,
    refuse::Problem,
    route::{Route, Source},
};

pub(crate) fn from_head(route: &Route, headers: &HeaderMap, query: Option<&str>) -> Result<Option<ClientKey>, Problem> {
    let mut key = None;
    for source in &route.key.from {
        let found = match source {
            Source::Header(name) => key_in_header(route, headers, name)?,
            Source::Query(name) => text_key(route, canonical::in_query(query.unwrap_or_default(), name), name)?,
            Source::Json(_) | Source::Form(_) => None,
        };
        agree(&mut key, found)?;
    }
    Ok(key)
}

fn key_in_header(route: &Route, headers: &HeaderMap, name: &HeaderName) -> Result<Option<ClientKey>, Problem> {
    let mut lines = headers.get_all(name).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(Problem::ConflictingKeys(format!("{name} stands on more than one line")));
    }
    ClientKey::from_header(value.as_bytes(), route.key.rules)
        .map(Some)
        .map_err(|error| invalid_key(name.as_str(), error))
}

fn invalid_key(place: &str, error: InvalidKey) -> Problem {
    if error.problem == KeyProblem::List {
        return Problem::ConflictingKeys(format!("{place} is a list"));
    }
    Problem::InvalidKey(format!("{place}: {error}"))
}

/// Sources that are present must agree.
fn agree(key: &mut Option<ClientKey>, found: Option<ClientKey>) -> Result<(), Problem> {
    match (&key, found) {
        (_, None) => Ok(()),
        (None, found) => {
            *key = found;
            Ok(())
        }
        (Some(one), Some(other)) if *one == other => Ok(()),
        (Some(_), Some(_)) => Err(Problem::ConflictingKeys("the places where a key can stand do not agree".into())),
    }
}

pub(crate) fn agreed(
    route: &Route,
    from_head: Option<ClientKey>,
    head: &canonical::Request<'_>,
    body: Option<&[u8]>,
) -> Result<Option<ClientKey>, Problem> {
    let mut key = from_head;
    for source in &route.key.from {
        let is_form = head.content_type.is_some_and(is_form);
        let is_grpc = head.content_type.is_some_and(grpc::is_media_type);
        let found = match (source, body) {
            (Source::Header(_) | Source::Query(_), _) => continue,
            (Source::Json(_) | Source::Form(_), _) if is_grpc => continue,
            (Source::Json(_), _) if is_form => continue,
            (Source::Form(_), _) if !is_form => continue,
            (_, Some([])) => continue,
            // A key may stand in it that the upstream sees.
            (_, None) => return Err(Problem::InvalidKey("the body is too large to look for a key in it".into())),
            (Source::Json(pointer), Some(body)) => text_key(route, canonical::in_json(body, pointer), "the body")?,
            (Source::Form(name), Some(body)) => text_key(route, canonical::in_form(body, name), name)?,
        };
        agree(&mut key, found)?;
    }
    Ok(key)
}

fn text_key(route: &Route, found: Found, place: &str) -> Result<Option<ClientKey>, Problem> {
    match found {
        Found::Absent => Ok(None),
        Found::Text(text) => {
            ClientKey::from_text(&text, route.key.rules).map(Some).map_err(|error| invalid_key(place, error))
        }
        Found::Several => Err(Problem::ConflictingKeys(format!("the key stands in {place} more than once"))),
        Found::NotText => Err(Problem::InvalidKey(format!("the key in {place} is no text; send it as a string"))),
        Found::Unreadable(reason) => {
            Err(Problem::InvalidKey(format!("no key can be read from {place}: {reason}; send the key in a header")))
        }
    }
}

fn is_form(content_type: &[u8]) -> bool {
    const FORM: &[u8] = b"application/x-www-form-urlencoded";
    content_type.get(..FORM.len()).is_some_and(|media| media.eq_ignore_ascii_case(FORM))
}
