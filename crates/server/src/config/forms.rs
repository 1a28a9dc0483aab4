//! How single values are spelled: sources, scopes, pointers, names, addresses.

use std::net::SocketAddr;

use http::{HeaderName, Uri};
use ipnet::IpNet;

use super::{
    route::{Field, KeySource, PrincipalPart, ScopePart},
    units::shown,
};

/// The longest name of a form field, query parameter, cookie or pointer, in bytes.
const NAME_BYTES_MAX: usize = 256;

pub(super) fn route_name(text: &str) -> Result<String, String> {
    let name = plain_name(text)?;
    if name == super::route::DEFAULT_ROUTE {
        return Err(
            r#""default" is the route of requests that no route matches; give this one another name"#.to_owned()
        );
    }
    Ok(name)
}

pub(super) fn plain_name(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!(r#"{} is not a name: 1 to 64 of a-z, 0-9 and "-""#, shown(text)))
    }
}

/// Not empty, at most so many bytes, on one line.
fn is_plain(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && !text.contains(char::is_control)
}

/// What an upstream calls an effect.
pub(super) fn effect_name(text: &str) -> Result<String, String> {
    if is_plain(text, 200) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is no name of an effect: 1 to 200 bytes, no control characters", shown(text)))
    }
}

/// A table of an upstream, perhaps with its schema.
pub(super) fn table(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() <= 2 && parts.iter().all(|part| is_plain(part, 63)) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is no table: write table, or schema.table, as the database spells them", shown(text)))
    }
}

/// A column of it.
pub(super) fn column(text: &str) -> Result<String, String> {
    if is_plain(text, 63) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is no column: 1 to 63 bytes, as the database spells it", shown(text)))
    }
}

/// What compensations may call: one URL, or with a slash at the end all that begin so.
pub(super) fn compensation_url(text: &str) -> Result<String, String> {
    let uri: Uri = text.parse().map_err(|_| format!("{} is no URL", shown(text)))?;
    let has_host = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let after = text.split_once("://").map_or("", |(_, after)| after);
    if !has_host || !matches!(uri.scheme_str(), Some("http" | "https")) || text.contains(['?', '#']) {
        return Err(format!(
            r#"{} must start with "https://" or "http://" and have neither user nor query"#,
            shown(text)
        ));
    }
    // Without it, HOST would let HOST.elsewhere in.
    if after.contains('/') {
        Ok(text.to_owned())
    } else {
        Err(format!(r#"{} has no path: end it in "/" for all of that server"#, shown(text)))
    }
}

/// A tenant, as a header names it or a route is fixed to.
pub(super) fn tenant(text: &str) -> Result<String, String> {
    if is_plain(text, 256) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is not a tenant: 1 to 256 bytes without control characters", shown(text)))
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(r#"{} is not an address and a port: write "127.0.0.1:8080", or "[::1]:8080""#, shown(text))
    })
}

/// A network, or one address as the network of itself.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .or_else(|_| text.parse().map(|one: std::net::IpAddr| one.into()))
        .map_err(|_| format!(r#"{} is not a network: write "10.0.0.0/8", or one address"#, shown(text)))?;
    // The bits after the prefix would be ignored in silence: 10.1.2.3/8 trusts all of 10.
    if net.addr() == net.network() {
        Ok(net)
    } else {
        Err(format!("{text} has bits set after its prefix: write {}, or {}", net.trunc(), net.addr()))
    }
}

/// `http://host:port`. What is shown of it never holds a password.
pub(super) fn upstream_url(text: &str) -> Result<Uri, String> {
    let uri = origin(text)?;
    let wrong = |why: &str| Err(format!("{} {why}", shown(text)));
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return wrong(
            "has a path or a query: requests are forwarded with their own, so write only scheme, host and port",
        );
    }
    match uri.scheme_str() {
        Some("http" | "https") => Ok(uri),
        _ => wrong(r#"must start with "http://""#),
    }
}

/// Where a collector takes OTLP over HTTP; `/v1/metrics` and `/v1/traces` are below it.
pub(super) fn collector_url(text: &str) -> Result<Uri, String> {
    let uri = origin(text)?;
    if uri.scheme_str() == Some("http") && uri.query().is_none() {
        Ok(uri)
    } else {
        Err(format!(r#"{} must start with "http://" and have no query: a collector beside this process"#, shown(text)))
    }
}

/// Any absolute URL a reader can be sent to.
pub(super) fn docs_url(text: &str) -> Result<String, String> {
    let uri = origin(text)?;
    if matches!(uri.scheme_str(), Some("http" | "https")) && !text.contains(['<', '>']) {
        Ok(text.to_owned())
    } else {
        Err(format!(r#"{} must start with "https://" or "http://""#, shown(text)))
    }
}

/// Who is asked about credentials: any absolute URL, or `none`.
pub(super) fn auth_url(text: &str) -> Result<Option<Uri>, String> {
    if text == "none" {
        return Ok(None);
    }
    let uri = origin(text)?;
    if text.contains('#') {
        return Err(r##"has a fragment, which is never sent: leave out what begins with "#""##.to_owned());
    }
    match uri.scheme_str() {
        Some("http" | "https") => Ok(Some(uri)),
        _ => Err(format!(r#"{} must start with "http://""#, shown(text))),
    }
}

fn origin(text: &str) -> Result<Uri, String> {
    // Checked on the text first, so that no message shows a password.
    if text.contains('@') {
        return Err("must not hold a user or a password".to_owned());
    }
    let wrong = || format!(r#"{} is not a URL: write "http://127.0.0.1:9000""#, shown(text));
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    // "host:" and "host:99999" parse as an authority without a port.
    let after_host = authority.as_str().len() != authority.host().len();
    if uri.scheme().is_none() || authority.host().is_empty() || (after_host && authority.port_u16().is_none()) {
        return Err(wrong());
    }
    Ok(uri)
}

/// A host name or address without its port, in lower case.
pub(super) fn host(text: &str) -> Result<String, String> {
    let name = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let fits = match name {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    if fits {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!(r#"{} is not a host: write "api.example.com", without a port"#, shown(text)))
    }
}

pub(super) fn header(text: &str) -> Result<HeaderName, String> {
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("{} is longer than {NAME_BYTES_MAX} bytes", shown(text)));
    }
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{} is not the name of a header", shown(text)))
}

/// A header that can mark replays: not one that means something else.
pub(super) fn replay_header(text: &str) -> Result<HeaderName, String> {
    let name = header(text)?;
    let taken = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "idempotency-attempt",
        "idempotency-expires",
        "idempotency-fence",
        "idempotency-key",
        "idempotency-outcome",
        "idempotency-record",
        "idempotency-status",
        "location",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if taken.contains(&name.as_str()) {
        return Err(format!("{} has another meaning; choose a header of your own", shown(text)));
    }
    Ok(name)
}

pub(crate) fn key_source(text: &str) -> Result<KeySource, String> {
    match text.split_once(':') {
        Some(("header", name)) => header(name).map(KeySource::Header),
        Some(("json", at)) => {
            let at = pointer(at)?;
            if at.split('/').any(|token| token == "*") {
                return Err(format!(r#"{} holds "*", but a key is one value"#, shown(text)));
            }
            Ok(KeySource::Json(at))
        }
        Some(("form", name)) => named(name).map(KeySource::Form),
        Some(("query", name)) => named(name).map(KeySource::Query),
        _ => Err(format!(
            r#"{} is not a source: write "header:NAME", "json:/pointer", "form:NAME" or "query:NAME""#,
            shown(text)
        )),
    }
}

pub(crate) fn scope_part(text: &str) -> Result<ScopePart, String> {
    match text.split_once(':') {
        Some(("fixed", value)) => {
            if (1..=64).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic()) {
                Ok(ScopePart::Fixed(value.to_owned()))
            } else {
                Err(format!("{} must fix 1 to 64 visible ASCII characters", shown(text)))
            }
        }
        Some(("header", name)) => header(name).map(ScopePart::Header),
        _ => Err(format!(r#"{} is not known: write "fixed:VALUE" or "header:NAME""#, shown(text))),
    }
}

/// One entry of `scope.principal`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PrincipalWord {
    Auto,
    None,
    Part(PrincipalPart),
}

pub(crate) fn principal(text: &str) -> Result<PrincipalWord, String> {
    match (text, text.split_once(':')) {
        ("auto", _) => Ok(PrincipalWord::Auto),
        ("none", _) => Ok(PrincipalWord::None),
        ("mtls", _) => Ok(PrincipalWord::Part(PrincipalPart::Mtls)),
        (_, Some(("header", name))) => Ok(PrincipalWord::Part(PrincipalPart::Header(header(name)?))),
        (_, Some(("cookie", name))) => {
            // A cookie's name is a token, as a header's is, but its case counts.
            header(name).map_err(|_| format!("{} is not the name of a cookie", shown(name)))?;
            Ok(PrincipalWord::Part(PrincipalPart::Cookie(name.to_owned())))
        }
        _ => Err(format!(
            r#"{} is not known: write "auto", "none", "mtls", "header:NAME" or "cookie:NAME""#,
            shown(text)
        )),
    }
}

/// A part of a request: a pointer, `query:NAME` or `form:NAME`.
pub(super) fn field(text: &str) -> Result<Field, String> {
    match text.split_once(':') {
        _ if text.starts_with('/') => pointer(text).map(Field::Pointer),
        Some(("query", name)) => named(name).map(Field::Query),
        Some(("form", name)) => named(name).map(Field::Form),
        _ => {
            Err(format!(r#"{} is not a part of a request: write "/pointer", "query:NAME" or "form:NAME""#, shown(text)))
        }
    }
}

/// An RFC 6901 pointer that is not empty; `*` as a token is left to the reader.
pub(super) fn pointer(text: &str) -> Result<String, String> {
    const DEPTH_MAX: usize = 64;
    let wrong = |why: &str| Err(format!("{} is not a pointer: {why}", shown(text)));
    if text.len() > NAME_BYTES_MAX * 4 {
        return wrong("it is longer than 1024 bytes");
    }
    let Some(inner) = text.strip_prefix('/') else {
        return wrong(r#"it must start with "/", as in "/metadata/sent_at""#);
    };
    if inner.split('/').count() > DEPTH_MAX {
        return wrong("it is deeper than 64");
    }
    let mut rest = inner.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'~' && !matches!(rest.next(), Some(b'0' | b'1')) {
            return wrong(r#"after "~" only 0 or 1 may follow ("~0" is "~", "~1" is "/")"#);
        }
    }
    Ok(text.to_owned())
}

fn named(name: &str) -> Result<String, String> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        Ok(name.to_owned())
    } else {
        Err(format!("{} is not a name: 1 to {NAME_BYTES_MAX} bytes", shown(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sources_and_fields_read_as_documented() {
        assert_eq!(key_source("header:X-Key"), Ok(KeySource::Header(HeaderName::from_static("x-key"))));
        assert_eq!(key_source("json:/a/b~1c"), Ok(KeySource::Json("/a/b~1c".into())));
        assert_eq!(key_source("query:a:b"), Ok(KeySource::Query("a:b".into())));
        assert_eq!(field("/items/*/at"), Ok(Field::Pointer("/items/*/at".into())));
        assert_eq!(field("form:nonce"), Ok(Field::Form("nonce".into())));
        assert_eq!(scope_part("fixed:live"), Ok(ScopePart::Fixed("live".into())));
        assert_eq!(principal("cookie:Session"), Ok(PrincipalWord::Part(PrincipalPart::Cookie("Session".into()))));
        assert_eq!(host("API.example.com"), Ok("api.example.com".into()));
        assert_eq!(network("10.0.0.1").map(|n| n.to_string()), Ok("10.0.0.1/32".into()));
    }

    #[test]
    fn wrong_spellings_say_the_right_ones() {
        let rows: &[(Result<String, String>, &str)] = &[
            (
                key_source("cookie:x").map(|_| String::new()),
                r#""cookie:x" is not a source: write "header:NAME", "json:/pointer", "form:NAME" or "query:NAME""#,
            ),
            (key_source("json:/a/*").map(|_| String::new()), r#""json:/a/*" holds "*", but a key is one value"#),
            (key_source("header:a b").map(|_| String::new()), r#""a b" is not the name of a header"#),
            (
                pointer("/a~2"),
                r#""/a~2" is not a pointer: after "~" only 0 or 1 may follow ("~0" is "~", "~1" is "/")"#,
            ),
            (pointer("a"), r#""a" is not a pointer: it must start with "/", as in "/metadata/sent_at""#),
            (
                network("10.1.0.0/8").map(|_| String::new()),
                "10.1.0.0/8 has bits set after its prefix: write 10.0.0.0/8, or 10.1.0.0",
            ),
            (upstream_url("http://u:secret@h").map(|_| String::new()), "must not hold a user or a password"),
            (
                upstream_url("localhost:9000").map(|_| String::new()),
                r#""localhost:9000" is not a URL: write "http://127.0.0.1:9000""#,
            ),
            (
                upstream_url("http://h:99999").map(|_| String::new()),
                r#""http://h:99999" is not a URL: write "http://127.0.0.1:9000""#,
            ),
            (upstream_url("ftp://h").map(|_| String::new()), r#""ftp://h" must start with "http://""#),
            (
                route_name("default"),
                r#""default" is the route of requests that no route matches; give this one another name"#,
            ),
        ];
        for (got, want) in rows {
            assert_eq!(got.as_ref().unwrap_err(), want);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String, tail in "[ -~]{0,40}") {
            for text in [&text, &tail, &format!("http://{tail}"), &format!("json:/{text}")] {
                let _ = (route_name(text), address(text), network(text), upstream_url(text), docs_url(text));
                let _ = (host(text), replay_header(text), key_source(text), scope_part(text), principal(text));
                let _ = (field(text), onceward::pattern::Pattern::parse(text), auth_url(text));
            }
        }
    }
}
