//! `onceward audit`: what a configuration would make of captured requests. Which distinct ones would count as one, which
//! equal ones would not, and the fields to blame, route by route.
//!
//! A capture is a file of JSON lines, one request each: `method`, `path`, `headers`, `body` or `body_base64`, and, where
//! the capture knows it, `operation`: what the client meant, the same for all repetitions of one request. Without it a
//! key stands for its operation. Nothing is claimed and nothing sent.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, Read as _},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use onceward::{Engine, Explained};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Failure;

/// The longest line that is read.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// First requests of keys that are kept to compare later ones with; beyond it only "body" can be blamed.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// Fields that are named for one pair of requests.
const FIELDS_MAX: usize = 16;
/// Lines that cannot be read and are told.
const UNREADABLE_MAX: usize = 10;

/// One request of a capture.
#[derive(Deserialize)]
struct Captured {
    #[serde(default = "post")]
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    body: Option<Value>,
    body_base64: Option<String>,
    operation: Option<String>,
}

fn post() -> String {
    "POST".into()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// Reads a capture and prints what it shows.
///
/// # Errors
/// Exit code 1 where something would count as what it is not, or a line cannot be read.
pub(super) fn run(engine: &Engine, capture: impl BufRead, as_json: bool) -> Result<(), Failure> {
    let mut audit = Audit::default();
    audit.read(engine, capture)?;
    if as_json {
        println!("{}", audit.json());
    } else {
        audit.print();
    }
    audit.verdict()
}

/// What a key is known by: its record's id, or the fingerprint that it is derived from.
type Name = [u8; 32];

#[derive(Default)]
struct Audit {
    routes: BTreeMap<String, RouteAudit>,
    firsts: HashMap<Name, First>,
    operations: HashMap<String, (u64, Name)>,
    kept_bytes: usize,
    lines: u64,
    unreadable: Vec<String>,
    unreadable_count: u64,
}

/// The first request of a key.
struct First {
    line: u64,
    fingerprint: [u8; 32],
    operation: Option<String>,
    /// `None` where there was no more room.
    request: Option<Request<Bytes>>,
}

#[derive(Default)]
struct RouteAudit {
    requests: u64,
    unprotected: u64,
    keys: u64,
    repetitions: u64,
    rejected: BTreeMap<&'static str, u64>,
    collisions: Findings,
    strangers: Findings,
}

/// Pairs of requests, by the fields that set them apart.
#[derive(Default)]
struct Findings {
    pairs: u64,
    fields: BTreeMap<String, (u64, u64, u64)>,
}

impl Findings {
    fn add(&mut self, fields: Vec<String>, first: u64, line: u64) {
        self.pairs += 1;
        for field in fields {
            self.fields.entry(field).or_insert((0, first, line)).0 += 1;
        }
    }

    fn json(&self) -> Value {
        let fields = self.fields.iter().map(|(field, (count, first, line))| {
            json!({ "field": field, "pairs": count, "example": { "lines": [first, line] } })
        });
        json!({ "pairs": self.pairs, "fields": fields.collect::<Vec<_>>() })
    }

    fn print(&self, what: &str) {
        if self.pairs == 0 {
            return;
        }
        println!("  {what}: {}", self.pairs);
        let mut fields: Vec<_> = self.fields.iter().collect();
        fields.sort_by_key(|(field, (count, ..))| (std::cmp::Reverse(*count), field.as_str().to_owned()));
        for (field, (count, first, line)) in fields {
            println!("    {field}  {count}, for example lines {first} and {line}");
        }
    }
}

impl Audit {
    fn read(&mut self, engine: &Engine, mut capture: impl BufRead) -> Result<(), Failure> {
        let mut text = Vec::new();
        loop {
            text.clear();
            let read = capture.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut text);
            let read = read.map_err(|error| Failure::not_well(format!("line {}: {error}", self.lines + 1)))?;
            if read == 0 {
                return Ok(());
            }
            self.lines += 1;
            if read as u64 > LINE_BYTES_MAX {
                return Err(Failure::usage(format!("line {} is longer than 16 MiB: is it a capture?", self.lines)));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            match request_of(&text) {
                Ok((request, operation)) => self.request(engine, request, operation),
                Err(why) => {
                    self.unreadable_count += 1;
                    if self.unreadable.len() < UNREADABLE_MAX {
                        self.unreadable.push(format!("line {}: {why}", self.lines));
                    }
                }
            }
        }
    }

    fn request(&mut self, engine: &Engine, request: Request<Bytes>, operation: Option<String>) {
        let line = self.lines;
        let name = engine.routes().of(request.method(), request.uri().path(), host_of(&request)).name.clone();
        let route = self.routes.entry(name).or_default();
        route.requests += 1;
        let explained = match engine.explain(&request) {
            Ok(explained) => explained,
            Err(problem) => {
                *route.rejected.entry(problem.slug()).or_default() += 1;
                return;
            }
        };
        let Some(key) = name_of(&explained) else {
            route.unprotected += 1;
            return;
        };
        if let Some(operation) = &operation {
            let (before, other) = *self.operations.entry(operation.clone()).or_insert((line, key));
            if other != key {
                // Its repetition is another key's request: it would run again.
                let fields = match self.firsts.get(&other).and_then(|first| first.request.as_ref()) {
                    Some(first) => differences(first, &request, true),
                    None => vec!["key or caller".into()],
                };
                route.strangers.add(fields, before, line);
            }
        }
        let Some(first) = self.firsts.get(&key) else {
            route.keys += 1;
            let bytes = request.body().len() + 1024;
            let kept = self.kept_bytes + bytes <= KEPT_BYTES_MAX;
            self.kept_bytes += if kept { bytes } else { 0 };
            let request = kept.then_some(request);
            self.firsts.insert(key, First { line, fingerprint: explained.fingerprint.0, operation, request });
            return;
        };
        route.repetitions += 1;
        let same_operation = match (&first.operation, &operation) {
            (Some(first), Some(operation)) => Some(first == operation),
            _ => None,
        };
        let fields = || match &first.request {
            Some(before) => differences(before, &request, false),
            None => vec!["body".into()],
        };
        if first.fingerprint == explained.fingerprint.0 {
            let fields = fields();
            // What is meant to differ between repetitions is what `strip` is for.
            if same_operation == Some(false) || (same_operation.is_none() && !fields.is_empty()) {
                route.collisions.add(fields, first.line, line);
            }
        } else if same_operation != Some(false) {
            route.strangers.add(fields(), first.line, line);
        }
    }

    fn verdict(&self) -> Result<(), Failure> {
        let pairs: u64 = self.routes.values().map(|route| route.collisions.pairs + route.strangers.pairs).sum();
        match (self.unreadable_count, pairs) {
            (0, 0) => Ok(()),
            (0, pairs) => Err(Failure::not_well(format!("{pairs} pairs of requests would count as what they are not"))),
            (lines, _) => {
                Err(Failure::not_well(format!("{lines} lines are no requests: {}", self.unreadable.join("; "))))
            }
        }
    }

    fn json(&self) -> Value {
        let routes = self.routes.iter().map(|(name, route)| {
            json!({
                "route": name,
                "requests": route.requests,
                "unprotected": route.unprotected,
                "rejected": route.rejected,
                "keys": route.keys,
                "repetitions": route.repetitions,
                "distinct_that_collide": route.collisions.json(),
                "equal_that_do_not": route.strangers.json(),
            })
        });
        json!({ "lines": self.lines, "unreadable": self.unreadable, "routes": routes.collect::<Vec<_>>() })
    }

    fn print(&self) {
        for (name, route) in &self.routes {
            let RouteAudit { requests, unprotected, keys, repetitions, rejected, collisions, strangers } = route;
            println!("{name}: {requests} requests, {keys} keys, {repetitions} repetitions, {unprotected} unprotected");
            for (slug, count) in rejected {
                println!("  would be refused as {slug}: {count}");
            }
            collisions.print("distinct requests that would count as one, by what differs and does not count");
            strangers.print("repetitions that would count as another request, by what differs");
        }
    }
}

fn request_of(line: &[u8]) -> Result<(Request<Bytes>, Option<String>), String> {
    let captured: Captured = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let body = match (captured.body, captured.body_base64) {
        (Some(_), Some(_)) => return Err("it has both body and body_base64".into()),
        (Some(Value::String(text)), None) => text.into_bytes(),
        (Some(value), None) => value.to_string().into_bytes(),
        (None, Some(base64)) => STANDARD.decode(base64).map_err(|error| format!("body_base64: {error}"))?,
        (None, None) => Vec::new(),
    };
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() =
        Method::from_bytes(captured.method.as_bytes()).map_err(|_| format!("{:?} is no method", captured.method))?;
    *request.uri_mut() = captured
        .path
        .parse::<Uri>()
        .map_err(|_| format!("{:?} is no path", captured.path.chars().take(64).collect::<String>()))?;
    for (name, values) in captured.headers {
        let field: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header"))?;
        let values = match values {
            Values::One(value) => vec![value],
            Values::Many(values) => values,
        };
        for value in values {
            let value =
                HeaderValue::from_str(&value).map_err(|_| format!("the value of {name} is none of a header"))?;
            request.headers_mut().append(field.clone(), value);
        }
    }
    Ok((request, captured.operation))
}

fn host_of(request: &Request<Bytes>) -> Option<&str> {
    onceward::route::host_of(request.uri(), request.headers())
}

/// `None` where the request is forwarded unprotected.
fn name_of(explained: &Explained) -> Option<Name> {
    explained.key.as_ref()?;
    Some(explained.record_id.map_or(explained.fingerprint.0, |id| id.0))
}

/// The names of what differs between two requests, whether it counts or not; headers only where `with_headers`.
fn differences(a: &Request<Bytes>, b: &Request<Bytes>, with_headers: bool) -> Vec<String> {
    let mut names = Vec::new();
    if a.method() != b.method() {
        names.push("method".to_owned());
    }
    if a.uri().path() != b.uri().path() {
        names.push("path".to_owned());
    }
    pairs_differ(a.uri().query().unwrap_or_default(), b.uri().query().unwrap_or_default(), "query", &mut names);
    if with_headers {
        for name in a.headers().keys().chain(b.headers().keys()) {
            let differ = !a.headers().get_all(name).iter().eq(b.headers().get_all(name));
            let spelled = format!("header:{name}");
            if differ && !names.contains(&spelled) {
                names.push(spelled);
            }
        }
    }
    if a.body() != b.body() {
        let is_form = |request: &Request<Bytes>| {
            let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/x-www-form-urlencoded"))
        };
        let json = |request: &Request<Bytes>| serde_json::from_slice::<Value>(request.body()).ok();
        match (json(a), json(b), std::str::from_utf8(a.body()), std::str::from_utf8(b.body())) {
            (_, _, Ok(a_text), Ok(b_text)) if is_form(a) && is_form(b) => {
                pairs_differ(a_text, b_text, "form", &mut names)
            }
            (Some(a), Some(b), _, _) => values_differ(&a, &b, &mut String::new(), &mut names),
            _ => names.push("body".to_owned()),
        }
    }
    names.truncate(FIELDS_MAX);
    names
}

fn pairs_differ(a: &str, b: &str, kind: &str, names: &mut Vec<String>) {
    let values = |text: &str| {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(name.to_owned()).or_default().push(value.to_owned());
        }
        values
    };
    let (a, b) = (values(a), values(b));
    for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
        if a.get(name) != b.get(name) {
            names.push(format!("{kind}:{name}"));
        }
    }
}

/// Adds the RFC 6901 pointers of what differs. As deep as JSON is read: 128 levels at most.
fn values_differ(a: &Value, b: &Value, at: &mut String, names: &mut Vec<String>) {
    if a == b || names.len() > FIELDS_MAX {
        return;
    }
    let end = at.len();
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                at.push('/');
                at.push_str(&name.replace('~', "~0").replace('/', "~1"));
                values_differ(a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), at, names);
                at.truncate(end);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                at.push_str(&format!("/{index}"));
                values_differ(a, b, at, names);
                at.truncate(end);
            }
        }
        _ => names.push(if at.is_empty() { "body".to_owned() } else { at.clone() }),
    }
}
