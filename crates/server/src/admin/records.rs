//! Records through the admin listener: list, look at, settle, forget.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use onceward::{RecordId, store};
use onceward_core::{
    outcome::{Field, Outcome},
    record::{Micros, Record, Seen, State as RecordState},
    transition::{self, Forget, Refused, Resolution},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Admin, refuse};

/// How often a write that met another one is decided anew.
const TRIES_MAX: u32 = 8;
const PAGE_MAX: usize = 1000;
const PAGE_DEFAULT: usize = 100;

/// Which records to list.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// As [`Seen::as_str`] spells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// A route's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Written since then: RFC 3339, or seconds ago as `-60`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Where to go on, from the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A record by its key, for those who do not know its id.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Find {
    /// The client's key.
    pub key: String,
    /// `default` where it is not said.
    #[serde(default)]
    pub tenant: Option<String>,
    /// A route's name, or `default METHOD PATH`; all named routes where it is not said.
    #[serde(default)]
    pub route: Option<String>,
    /// The caller's `Authorization`; an anonymous caller where it is not said.
    #[serde(default)]
    pub authorization: Option<String>,
}

/// What is known of an unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settle {
    /// It took effect.
    Executed,
    /// It did not.
    NotExecuted,
    /// It is given up.
    Failed,
}

/// The answer that repetitions get.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// Base64.
    #[serde(default)]
    pub body: String,
    /// The body's media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// How an unknown outcome is settled.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// What is known of it.
    #[serde(rename = "as")]
    pub settle: Settle,
    /// For `executed` and `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

pub(super) async fn list(State(admin): State<Admin>, Query(query): Query<ListQuery>) -> Response {
    let state = match query.state.as_deref().map(state_named) {
        Some(None) => return bad("state is one of in_flight, completed, unknown, failed, erased, not_executed."),
        Some(state) => state,
        None => None,
    };
    let after = match query.after.as_deref().map(str::parse::<RecordId>) {
        Some(Err(_)) => return bad("after is the `next` of the page before."),
        Some(Ok(id)) => Some(id),
        None => None,
    };
    let since = match query.since.as_deref().map(since) {
        Some(None) => return bad("since is an RFC 3339 time, or seconds ago as in since=-3600."),
        Some(since) => since,
        None => None,
    };
    let limit = query.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let filter = store::Filter { state, route: query.route, since };
    match admin.engine().store().scan(after, limit, filter).await {
        Ok(page) => {
            let records: Vec<Value> = page.records.iter().map(|(id, record)| shown(id, record, page.now)).collect();
            Json(json!({ "records": records, "next": page.next.map(|id| id.to_string()) })).into_response()
        }
        Err(error) => store_failed(&error),
    }
}

pub(super) async fn find(State(admin): State<Admin>, Json(find): Json<Find>) -> Response {
    let engine = admin.engine();
    let tenant = find.tenant.as_deref().unwrap_or("default");
    let routes: Vec<String> = match find.route {
        Some(route) if route == "default" => {
            return bad("On the route default a key belongs to a method and path: name it as \"default POST /v1/x\".");
        }
        Some(route) => vec![route],
        None => engine.routes().all().map(|route| route.name.clone()).filter(|name| name != "default").collect(),
    };
    let mut found = Vec::new();
    for route in routes {
        let ids = match engine.record_ids(&find.key, tenant, &route, find.authorization.as_deref()) {
            Ok(ids) => ids,
            Err(why) => return bad(&why),
        };
        for id in ids {
            match engine.store().get(id).await {
                Ok(read) => found.extend(read.record.map(|record| shown(&id, &record, read.now))),
                Err(error) => return store_failed(&error),
            }
        }
    }
    Json(json!({ "records": found })).into_response()
}

pub(super) async fn get(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    match read(&admin, &id).await {
        Ok((id, record, now)) => Json(shown(&id, &record, now)).into_response(),
        Err(response) => response,
    }
}

/// The recorded answer itself: the guard has asked for the token.
pub(super) async fn outcome(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    let (_, record, now) = match read(&admin, &id).await {
        Ok(found) => found,
        Err(response) => return response,
    };
    let Some(mut outcome) = record.facts.outcome else {
        return refuse(StatusCode::NOT_FOUND, "no-outcome", "The record has no answer.");
    };
    if outcome.is_bare(now) {
        outcome = outcome.bare();
    }
    let fields = |fields: &[Field]| -> Vec<Value> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        fields.iter().map(|field| json!([text(&field.name), text(&field.value)])).collect()
    };
    Json(json!({
        "status": outcome.status,
        "headers": fields(&outcome.headers),
        "body": STANDARD.encode(&outcome.body),
        "body_kept": !outcome.body_not_kept,
        "trailers": fields(&outcome.trailers),
    }))
    .into_response()
}

pub(super) async fn resolve(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    Json(resolve): Json<Resolve>,
) -> Response {
    let answer = match resolve.answer.map(outcome_of).transpose() {
        Ok(answer) => answer,
        Err(why) => return bad(why),
    };
    for _ in 0..TRIES_MAX {
        let (id, record, now) = match read(&admin, &id).await {
            Ok(found) => found,
            Err(response) => return response,
        };
        let resolution = match resolve.settle {
            Settle::Executed => Resolution::Executed(answer.clone().unwrap_or_else(acknowledged)),
            Settle::NotExecuted => Resolution::NotExecuted,
            Settle::Failed => Resolution::Failed(answer.clone()),
        };
        let retention = retention(&admin, &record);
        let write = match transition::resolve(&record, resolution, "settled by an operator", retention, now) {
            Ok(write) => write,
            Err(refused) => return refused_by_state(&refused),
        };
        match admin.engine().store().replace(id, &write).await {
            Ok(store::Write::Applied { .. }) => {
                admin.engine().count_settled(&record.facts.route, onceward::SettledBy::Operator);
                tracing::info!(record = %id.short(), route = %record.facts.route, r#as = ?resolve.settle, "an unknown outcome was settled");
                return match read(&admin, &id.to_string()).await {
                    Ok((id, record, now)) => Json(shown(&id, &record, now)).into_response(),
                    Err(response) => response,
                };
            }
            // Its holder or somebody else was faster: decide on what is there now.
            Ok(store::Write::Lost { .. }) => {}
            Err(error) => return store_failed(&error),
        }
    }
    refuse(StatusCode::CONFLICT, "busy", "The record changed each time. Look at it, then try again.")
}

/// How a record is forgotten: by default its key is new again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgetQuery {
    /// What was recorded goes, and the key stays unusable until its retention ends.
    #[serde(default)]
    pub erase: bool,
    /// Also while it is in flight or its outcome unknown, and then only with `erase`: its holder loses its right.
    #[serde(default)]
    pub force: bool,
}

pub(super) async fn forget(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    Query(asked): Query<ForgetQuery>,
) -> Response {
    let how = if asked.erase { Forget::Erase } else { Forget::Reuse };
    for _ in 0..TRIES_MAX {
        let (id, record, now) = match read(&admin, &id).await {
            Ok(found) => found,
            Err(response) => return response,
        };
        let retention = retention(&admin, &record);
        let write = match transition::forget(&record, how, asked.force, "erased by an operator", retention, now) {
            Ok(write) => write,
            Err(refused) => return refused_by_state(&refused),
        };
        let written = match &write {
            transition::Write::Remove(expect) => admin.engine().store().remove(id, *expect).await,
            transition::Write::Replace(write) => admin.engine().store().replace(id, write).await,
        };
        match written {
            Ok(store::Write::Applied { .. }) => {
                let route = &record.facts.route;
                tracing::info!(record = %id.short(), %route, erased = asked.erase, "a record was forgotten");
                let done = json!({ "record_id": id.to_string(), "forgotten": true, "erased": asked.erase });
                return Json(done).into_response();
            }
            Ok(store::Write::Lost { .. }) => {}
            Err(error) => return store_failed(&error),
        }
    }
    refuse(StatusCode::CONFLICT, "busy", "The record changed each time. Look at it, then try again.")
}

async fn read(admin: &Admin, id: &str) -> Result<(RecordId, Record, Micros), Response> {
    let Ok(id) = id.parse::<RecordId>() else {
        return Err(bad("A record id is 43 characters of base64url."));
    };
    match admin.engine().store().get(id).await {
        Ok(store::Read { record: Some(record), now }) => Ok((id, record, now)),
        Ok(store::Read { record: None, .. }) => {
            Err(refuse(StatusCode::NOT_FOUND, "no-record", "There is no such record, or its retention is over."))
        }
        Err(error) => Err(store_failed(&error)),
    }
}

fn retention(admin: &Admin, record: &Record) -> Duration {
    let routes = admin.engine().routes();
    routes.named(&record.facts.route).map_or(Duration::from_secs(24 * 3600), |route| route.policy.retention)
}

fn outcome_of(answer: Answer) -> Result<Outcome, &'static str> {
    if !(200..=599).contains(&answer.status) {
        return Err("status is 200 to 599.");
    }
    let body = STANDARD.decode(&answer.body).map_err(|_| "body is base64.")?;
    let content_type = answer.content_type.unwrap_or_else(|| media_type(&body).to_owned());
    let mut headers = Vec::new();
    if !body.is_empty() {
        headers.push(Field { name: Bytes::from_static(b"content-type"), value: content_type.into() });
    }
    Ok(Outcome { status: answer.status, headers, body: body.into(), ..Outcome::default() })
}

fn media_type(body: &[u8]) -> &'static str {
    if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        "application/json"
    } else if std::str::from_utf8(body).is_ok() {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    }
}

/// An operator knows that it took effect, and not what the answer was.
fn acknowledged() -> Outcome {
    Outcome { status: 200, ..Outcome::default() }
}

/// A record as PROTOCOL section 2 shows it, with its state by this machine's clock.
pub(crate) fn record_as_it_stands(id: &RecordId, record: &Record) -> Value {
    let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default();
    shown(id, record, Micros(now))
}

/// A record as PROTOCOL section 2 shows it.
fn shown(id: &RecordId, record: &Record, now: Micros) -> Value {
    let facts = &record.facts;
    let settled = facts.state != RecordState::InFlight;
    // The first claim's fence is its time, until a later write has it in words.
    let claimed_at = if facts.claimed_at == Micros::ZERO { Micros(record.stored.fence.0) } else { facts.claimed_at };
    json!({
        "record_id": id.to_string(),
        "tenant": facts.tenant,
        "env": facts.env,
        "route": facts.route,
        "state": record.seen_at(now).as_str(),
        "attempt": facts.attempt,
        "fence": record.stored.fence.0.to_string(),
        "claimed_at": time(claimed_at),
        "lease_until": time(record.stored.lease_until),
        "completed_at": if settled { time(facts.settled_at) } else { Value::Null },
        "expires_at": time(record.stored.keep_until),
        "status": facts.outcome.as_ref().map(|outcome| outcome.status),
        "fingerprint": onceward_core::fingerprint::Fingerprint(facts.fingerprint).to_string(),
    })
}

fn time(at: Micros) -> Value {
    if at == Micros::ZERO {
        return Value::Null;
    }
    let micros = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros).map_or(Value::Null, |at| Value::String(at.to_string()))
}

fn since(text: &str) -> Option<Micros> {
    let at = match text.strip_prefix('-') {
        Some(seconds) => {
            let ago = jiff::SignedDuration::from_secs(seconds.parse::<u32>().ok()?.into());
            jiff::Timestamp::now().checked_sub(ago).ok()?
        }
        None => text.parse().ok()?,
    };
    Some(Micros(u64::try_from(at.as_microsecond()).unwrap_or(0)))
}

fn state_named(name: &str) -> Option<Seen> {
    [Seen::InFlight, Seen::Completed, Seen::Unknown, Seen::Failed, Seen::Erased, Seen::NotExecuted]
        .into_iter()
        .find(|state| state.as_str() == name)
}

pub(super) fn bad(detail: &str) -> Response {
    refuse(StatusCode::BAD_REQUEST, "bad-request", detail)
}

pub(super) fn store_failed(error: &store::StoreError) -> Response {
    tracing::warn!(%error, "the store did not answer an operator");
    refuse(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", &format!("{error}."))
}

fn refused_by_state(refused: &Refused) -> Response {
    refuse(StatusCode::CONFLICT, "not-now", &format!("{refused}."))
}
