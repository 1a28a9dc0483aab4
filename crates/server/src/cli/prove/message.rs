//! The request that is sent: its URL, headers and body, filled in for one operation and spelled as bytes.

use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;

use super::wire::Origin;
use crate::config::{Environment, secret::Secret};

/// A place in a URL, a header or a body where the operation's key stands.
const KEY: &str = "{{key}}";
/// The same for a number that no other operation of the run has.
const NUMBER: &str = "{{n}}";

/// One operation: what a client means once, however often it sends it.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) key: String,
    /// The part of the key that is drawn anew for each operation: all of it, but for keys that are made long.
    pub(super) drawn: String,
    pub(super) number: u64,
}

impl Operation {
    /// One with this key.
    pub(super) fn new(key: impl Into<String>, number: u64) -> Self {
        let key = key.into();
        Self { drawn: key.clone(), key, number }
    }

    fn fill(&self, template: &str) -> String {
        template.replace(KEY, &self.key).replace(NUMBER, &self.number.to_string())
    }
}

/// Scheme, host, port and the rest.
#[derive(Clone, Debug)]
pub(super) struct Url {
    pub(super) origin: Origin,
    authority: String,
    /// Path and query, with its placeholders.
    target: String,
}

impl Url {
    /// Reads a URL with http or https.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("write it as http://HOST:PORT/PATH")?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(format!("{scheme:?} is neither http nor https")),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("credentials in it would be shown: use --header 'Authorization: env:NAME'".to_owned());
        }
        let named: Authority = authority.parse().map_err(|_| format!("{authority:?} is no host"))?;
        let host = named.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err("it names no host".to_owned());
        }
        if is_tls && rustls::pki_types::ServerName::try_from(host.as_str()).is_err() {
            return Err(format!("no certificate can name {host:?}"));
        }
        let port = named.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        if target.contains('#') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a path has neither blanks nor #, and other characters as %XX".to_owned());
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { origin: Origin { is_tls, host, port }, authority: authority.to_owned(), target })
    }

    /// The whole of it, filled in for an operation.
    pub(super) fn text(&self, operation: &Operation) -> String {
        let scheme = if self.origin.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, operation.fill(&self.target))
    }

    /// With its placeholders, as it was given.
    pub(super) fn shown(&self) -> String {
        let scheme = if self.origin.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.target)
    }

    /// The same with a part of it replaced.
    pub(super) fn with(&self, part: &str, by: &str) -> Self {
        Self { target: self.target.replace(part, by), ..self.clone() }
    }

    /// Whether the path or query has this part.
    pub(super) fn has(&self, part: &str) -> bool {
        self.target.contains(part)
    }
}

/// A header that goes with every request.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    value: Secret,
    /// A credential, or read from where credentials are: it is never shown.
    pub(super) is_secret: bool,
}

impl Line {
    /// Reads `Name: value`; `env:NAME` and `file:PATH` as the value say where it is.
    pub(super) fn parse(text: &str, environment: &Environment) -> Result<Self, String> {
        // What is wrong is said without the value, which may be a credential.
        let (name, value) = text.split_once(':').ok_or("write a header as \"Name: value\"")?;
        let name = name.trim();
        let wrong = |why: &str| format!("{name}: {why}");
        let _: HeaderName = name.parse().map_err(|_| wrong("is no name of a header"))?;
        let said = value.trim();
        let follows = said.starts_with("env:") || said.starts_with("file:");
        let value = match follows {
            true => Secret::new(said.to_owned()).follow(environment).map_err(|why| wrong(&why))?,
            false => Secret::new(said.to_owned()),
        };
        HeaderValue::from_str(value.expose()).map_err(|_| wrong("a value has no line breaks"))?;
        Ok(Self { is_secret: follows || is_credential(name), name: name.to_owned(), value })
    }

    /// The variable that a shown command has it from.
    pub(super) fn variable(&self) -> String {
        self.name
            .bytes()
            .map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase().into() } else { '_' })
            .collect()
    }

    /// What may be shown of it.
    pub(super) fn shown(&self, operation: &Operation) -> Option<String> {
        (!self.is_secret).then(|| operation.fill(self.value.expose()))
    }
}

/// Whether a header of this name is likely to hold a credential.
fn is_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["auth", "cookie", "token", "secret", "password", "api-key", "apikey", "signature"]
        .iter()
        .any(|part| name.contains(part))
}

/// What is sent, but for the operation.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) url: Url,
    pub(super) method: Method,
    pub(super) headers: Vec<Line>,
    pub(super) key_header: String,
    /// Keys go in quotes, as the draft of the IETF has them.
    pub(super) is_quoted: bool,
    pub(super) body: Body,
    /// Another request of the same kind, where there is one.
    pub(super) other: Option<Body>,
}

/// A body with its placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Text(String),
    /// Not UTF-8, from this file: without placeholders.
    Bytes {
        file: String,
        bytes: Vec<u8>,
    },
}

impl Body {
    pub(super) fn bytes(&self, operation: &Operation) -> Vec<u8> {
        match self {
            Self::Text(text) => operation.fill(text).into_bytes(),
            Self::Bytes { bytes, .. } => bytes.clone(),
        }
    }

    /// As text, or the file that it is from.
    pub(super) fn shown(&self, operation: &Operation) -> Result<String, &str> {
        match self {
            Self::Text(text) => Ok(operation.fill(text)),
            Self::Bytes { file, .. } => Err(file),
        }
    }

    pub(super) fn is_json(&self) -> bool {
        let Self::Text(text) = self else { return false };
        // As it will be once it is filled in.
        let filled = Operation::new("k", 1).fill(text);
        serde_json::from_str::<Value>(&filled).is_ok()
    }

    /// A body that means something else: another number in JSON, else another text; another last value in a form.
    pub(super) fn another(&self) -> Option<Self> {
        let Self::Text(text) = self else { return None };
        if text.contains(NUMBER) {
            return Some(Self::Text(text.replace(NUMBER, &format!("{NUMBER}1"))));
        }
        if let Ok(mut value) = serde_json::from_str::<Value>(text) {
            let changed = change(&mut value, &mut raise) || change(&mut value, &mut lengthen);
            return changed.then(|| Self::Text(value.to_string()));
        }
        let is_form = text.contains('=') && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_form.then(|| Self::Text(format!("{text}1")))
    }
}

/// Changes the first value that `one` takes.
fn change(value: &mut Value, one: &mut impl FnMut(&mut Value) -> bool) -> bool {
    match value {
        Value::Array(values) => values.iter_mut().any(|value| change(value, one)),
        Value::Object(members) => members.values_mut().any(|value| change(value, one)),
        value => one(value),
    }
}

fn raise(value: &mut Value) -> bool {
    let raised = match (value.as_u64(), value.as_i64(), value.as_f64()) {
        (Some(number), _, _) => number.checked_add(1).map(Value::from),
        (None, Some(number), _) => number.checked_add(1).map(Value::from),
        (None, None, Some(number)) => Some(Value::from(number + 1.0)),
        (None, None, None) => None,
    };
    raised.map(|raised| *value = raised).is_some()
}

fn lengthen(value: &mut Value) -> bool {
    let Value::String(text) = value else { return false };
    // Its own key in a body is no other request.
    if text.contains(KEY) {
        return false;
    }
    text.push('x');
    true
}

/// A request as it is sent: an operation, how its key is spelled, and its body.
#[derive(Clone, Debug)]
pub(super) struct Message<'a> {
    pub(super) template: &'a Template,
    pub(super) operation: Operation,
    /// The lines of the key: names and values.
    pub(super) key_lines: Vec<(String, String)>,
    pub(super) body: Body,
}

impl<'a> Message<'a> {
    /// As a client in good order sends it.
    pub(super) fn new(template: &'a Template, operation: &Operation) -> Self {
        let this = Self { template, operation: operation.clone(), key_lines: Vec::new(), body: template.body.clone() };
        let (name, value) = (template.key_header.clone(), this.spelled(template.is_quoted));
        this.with_key(&[(&name, &value)])
    }

    /// With these lines for the key.
    pub(super) fn with_key(mut self, lines: &[(&str, &str)]) -> Self {
        self.key_lines = lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self
    }

    /// With another body.
    pub(super) fn with_body(mut self, body: &Body) -> Self {
        self.body = body.clone();
        self
    }

    /// The key's value, in quotes or bare.
    pub(super) fn spelled(&self, is_quoted: bool) -> String {
        if is_quoted { format!("\"{}\"", self.operation.key) } else { self.operation.key.clone() }
    }

    /// The whole request, and where its body begins.
    pub(super) fn bytes(&self) -> (Vec<u8>, usize) {
        let (template, operation) = (self.template, &self.operation);
        let mut head = head(&template.method, &template.url, operation);
        for line in &template.headers {
            push(&mut head, &line.name, &operation.fill(line.value.expose()));
        }
        for (name, value) in &self.key_lines {
            push(&mut head, name, value);
        }
        let body = self.body.bytes(operation);
        if !body.is_empty() || matches!(template.method, Method::POST | Method::PUT | Method::PATCH) {
            push(&mut head, "Content-Length", &body.len().to_string());
        }
        head.push_str("\r\n");
        let begin = head.len();
        (head.into_bytes().into_iter().chain(body).collect(), begin)
    }
}

/// A GET of `url` with these headers.
pub(super) fn question(url: &Url, headers: &[Line], operation: &Operation) -> Vec<u8> {
    let mut head = head(&Method::GET, url, operation);
    for line in headers {
        push(&mut head, &line.name, &operation.fill(line.value.expose()));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn head(method: &Method, url: &Url, operation: &Operation) -> String {
    let target = operation.fill(&url.target);
    let authority = &url.authority;
    format!(
        "{method} {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nUser-Agent: onceward-prove\r\nAccept: */*\r\n"
    )
}

fn push(head: &mut String, name: &str, value: &str) {
    head.push_str(name);
    head.push_str(": ");
    head.push_str(value);
    head.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_what_cannot_be_asked_is_refused() {
        let url = Url::parse("http://[::1]:9000/v1/{{key}}?n={{n}}").unwrap();
        assert_eq!(url.origin, Origin { is_tls: false, host: "::1".into(), port: 9000 });
        let operation = Operation::new("k", 7);
        assert_eq!(url.text(&operation), "http://[::1]:9000/v1/k?n=7");
        assert_eq!(Url::parse("HTTPS://api.test").unwrap().origin.port, 443);
        for (text, told) in [
            ("api.test/v1", "http://HOST"),
            ("ftp://api.test", "neither"),
            ("http://user:pass@api.test", "credentials"),
            ("http:///v1", "host"),
            ("http://api.test/a b", "blanks"),
            ("http://api.test/a#b", "blanks"),
            ("http://api.test/a\r\nX: y", "blanks"),
        ] {
            let why = Url::parse(text).unwrap_err();
            assert!(why.contains(told) && !why.contains("pass@"), "{text}: {why}");
        }
    }

    #[test]
    fn another_body_means_something_else_and_stays_what_it_is() {
        for (body, other) in [
            (r#"{"a":{"b":[true,1]},"c":2}"#, Some(r#"{"a":{"b":[true,2]},"c":2}"#)),
            (r#"{"a":"x"}"#, Some(r#"{"a":"xx"}"#)),
            (r#"{"n":{{n}}}"#, Some(r#"{"n":{{n}}1}"#)),
            (r#"{"key":"{{key}}"}"#, None),
            ("a=1&b=2", Some("a=1&b=21")),
            ("", None),
            ("null", None),
        ] {
            let another = Body::Text(body.into()).another();
            assert_eq!(another, other.map(|other| Body::Text(other.into())), "{body}");
        }
        assert!(Body::Text(r#"{"n":{{n}}}"#.into()).is_json() && !Body::Text("a=1".into()).is_json());
    }

    #[test]
    fn a_header_that_may_be_a_credential_is_not_shown() {
        let environment = Environment::from_pairs([("T", "Bearer hunter2")]);
        let operation = Operation::new("k", 7);
        for (text, shown) in [
            ("Authorization: Bearer hunter2", None),
            ("X-Session-Token: hunter2", None),
            ("X-Who: env:T", None),
            ("X-Number: {{n}}", Some("7")),
        ] {
            let line = Line::parse(text, &environment).unwrap();
            assert_eq!(line.shown(&operation).as_deref(), shown, "{text}");
            assert!(!format!("{line:?}").contains("hunter2"), "{text}");
        }
        for text in ["no colon hunter2", "a b: hunter2", "X: a\r\nhunter2: b"] {
            let why = Line::parse(text, &environment).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
