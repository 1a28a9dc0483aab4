//! `onceward key explain`: how one captured request is treated, without treating it.

use std::io::Read;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use onceward::{Engine, Explained};
use serde_json::json;

use super::Failure;
use crate::{
    assemble::{self, Upstreams},
    config::Config,
    identity::Purpose,
    start,
};

const REQUEST_BYTES_MAX: u64 = 64 << 20;
const HEADERS_MAX: usize = 256;

pub(super) fn run(config: &Config, input: impl Read, as_json: bool) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    input
        .take(REQUEST_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("stdin: {error}")))?;
    if bytes.len() as u64 > REQUEST_BYTES_MAX {
        return Err(Failure::usage(format!("the request is over {REQUEST_BYTES_MAX} bytes")));
    }
    let request = parse(&bytes)?;
    // Without a store of its own: nothing is claimed, and the id is that of a secret that may not be there yet.
    let engine = engine(config)?;
    if !has_secret(config) {
        eprintln!("onceward: there is no install secret yet, so record_id is that of a secret of zeros");
    }
    let explained = engine.explain(&request).map_err(|problem| Failure::not_well(problem.to_string()))?;
    if as_json {
        println!("{}", as_value(&explained));
    } else {
        print_text(&explained);
    }
    Ok(())
}

fn has_secret(config: &Config) -> bool {
    config.identity.secret.is_some() || config.store.path.join("onceward.secret").exists()
}

/// An engine that only names requests, over a store of its own.
pub(super) fn engine(config: &Config) -> Result<Engine, Failure> {
    let store = std::sync::Arc::new(onceward::store::memory::Memory::default());
    let upstreams = Upstreams::new(config, &Upstreams::default()).map_err(start::StartError::from)?;
    if has_secret(config) {
        return Ok(start::engine(config, &upstreams, store, Purpose::Look)?);
    }
    let routes = assemble::routes(config, &upstreams).map_err(start::StartError::from)?;
    let limits = assemble::limits(&config.limits);
    Ok(Engine::new(store, onceward::Secret::from_bytes([0; 32]), routes, limits, Engine::new_session()))
}

fn as_value(explained: &Explained) -> serde_json::Value {
    json!({
        "route": explained.route,
        "protected": explained.key.is_some(),
        "key": explained.key,
        "scope": explained.scope.as_ref().map(|scope| json!({
            "tenant": scope.tenant, "env": scope.env, "principal": scope.principal, "route": scope.route,
        })),
        "record_id": explained.record_id.map(|id| id.to_string()),
        // What is hashed need not be text; the bytes follow exactly.
        "canonical": String::from_utf8(explained.canonical.clone()).ok(),
        "canonical_base64": STANDARD.encode(&explained.canonical),
        "body_form": explained.body_form,
        "fingerprint": format!("blake3:{}", explained.fingerprint),
        "fingerprint_is_keyed": false,
        "stripped": explained.stripped,
        "policy": explained.policy,
    })
}

fn print_text(explained: &Explained) {
    println!("route        {}", explained.route);
    match &explained.key {
        Some(key) => println!("key          {key}"),
        None => println!("key          none: the request is forwarded unprotected"),
    }
    if let Some(scope) = &explained.scope {
        println!(
            "scope        tenant={} env={} principal={} route={}",
            scope.tenant, scope.env, scope.principal, scope.route
        );
    }
    if let Some(id) = explained.record_id {
        println!("record_id    {id}");
    }
    println!("body         {}", explained.body_form);
    println!("canonical    {}", String::from_utf8_lossy(&explained.canonical).escape_debug());
    println!("fingerprint  blake3:{} (unkeyed, to compare by eye; records keep a keyed one)", explained.fingerprint);
    println!("stripped     {}", if explained.stripped.is_empty() { "-".into() } else { explained.stripped.join(" ") });
    println!("policy       {}", explained.policy);
}

/// An HTTP/1.1 message, as it would stand on the wire; bare line feeds are taken too, since captures are edited.
fn parse(bytes: &[u8]) -> Result<Request<bytes::Bytes>, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!(
            "stdin is no HTTP/1.1 request: {why}; it begins like \"POST /v1/payments HTTP/1.1\", then headers, an empty line, the body"
        ))
    };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let body_at = match head.parse(bytes) {
        Ok(httparse::Status::Complete(at)) => at,
        Ok(httparse::Status::Partial) => return Err(wrong("the empty line after the headers is missing".into())),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let method =
        Method::from_bytes(head.method.unwrap_or_default().as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let uri: Uri = head.path.unwrap_or_default().parse().map_err(|_| wrong("its target is no URI".into()))?;
    let mut fields = HeaderMap::new();
    for header in head.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let value = HeaderValue::from_bytes(header.value).map_err(|error| wrong(error.to_string()))?;
        fields.append(name, value);
    }
    let body = bytes.get(body_at..).unwrap_or_default();
    // A capture's own length tells where its body ends; an editor's last line feed is none of it.
    let length = fields.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let body = match length {
        Some(length) if length > body.len() => {
            return Err(wrong(format!("Content-Length says {length} bytes, {} are there", body.len())));
        }
        Some(length) => body.get(..length).unwrap_or_default(),
        None => body,
    };
    let mut request = Request::new(bytes::Bytes::copy_from_slice(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = fields;
    Ok(request)
}
