//! Which fields cross the proxy: RFC 9110 section 7.6.1, both ways, and what is said of the client.
//!
//! Settled here: `Trailer` stays, trailers are forwarded. `TE` is reduced to `trailers`. `Proxy-Authorization` and
//! `Proxy-Authenticate` belong to the hop and are dropped. `Via` of others is passed on and none is added: to several
//! upstreams (nginx among them) it turns compression off, and a gateway that is invisible should stay so.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};

use super::framing::is_websocket;
use super::peer::PeerFields;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Removes what belongs to the connection a message came on. True when the message asks for a WebSocket, whose
/// `Connection: upgrade` and `Upgrade: websocket` then stay.
///
/// `Transfer-Encoding` goes too; whoever needs it reads it before. What `Connection` names goes with it, except
/// `Host`, `Content-Length` and the like, which no hop may claim.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) -> bool {
    // One pass over the names: most messages have two or three of these, and a lookup of each would cost more.
    let mut found = Found::default();
    for name in headers.keys() {
        match *name {
            header::CONNECTION => found.connection = true,
            header::TRANSFER_ENCODING => found.transfer_encoding = true,
            header::TE => found.te = true,
            header::UPGRADE => found.upgrade = true,
            header::PROXY_AUTHENTICATE | header::PROXY_AUTHORIZATION => found.proxy = true,
            _ => match name.as_str() {
                "keep-alive" => found.keep_alive = true,
                "proxy-connection" | "http2-settings" => found.proxy = true,
                _ => {}
            },
        }
    }
    let mut websocket = false;
    if found.connection {
        websocket = found.upgrade && upgrades(headers);
        remove_named(headers);
        headers.remove(header::CONNECTION);
    }
    if found.transfer_encoding {
        headers.remove(header::TRANSFER_ENCODING);
    }
    if found.te {
        reduce_te(headers);
    }
    if found.upgrade {
        headers.remove(header::UPGRADE);
    }
    if found.keep_alive {
        headers.remove(KEEP_ALIVE);
    }
    if found.proxy {
        headers.remove(header::PROXY_AUTHENTICATE);
        headers.remove(header::PROXY_AUTHORIZATION);
        headers.remove(PROXY_CONNECTION);
        headers.remove(HTTP2_SETTINGS);
    }
    if websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    websocket
}

#[derive(Default)]
struct Found {
    connection: bool,
    transfer_encoding: bool,
    te: bool,
    upgrade: bool,
    keep_alive: bool,
    proxy: bool,
}

/// Whether this is a request for a WebSocket over HTTP/1.1, RFC 6455 section 4.1. Read before anything is stripped.
pub(super) fn asks_for_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    method == Method::GET
        && version == Version::HTTP_11
        && headers.contains_key(header::UPGRADE)
        && upgrades(headers)
        && !headers.contains_key(header::TRANSFER_ENCODING)
        && headers.get(header::CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0")
}

/// Whether any `Upgrade` names the protocol `websocket`: the rule by which `framing` stops following.
pub(super) fn names_websocket(headers: &HeaderMap) -> bool {
    headers.get_all(header::UPGRADE).iter().any(|value| is_websocket(value.as_bytes()))
}

/// Whether `Connection` has the option `upgrade` and `Upgrade` the protocol `websocket`.
fn upgrades(headers: &HeaderMap) -> bool {
    tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade")) && names_websocket(headers)
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

fn remove_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter(|token| !matches!(token.len(), 5 if token.eq_ignore_ascii_case(b"close")))
        .filter(|token| !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"upgrade"))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Fields that a `Connection` option must not take away: a client could else hide from the upstream, or from the
/// layer behind, what it is protected by.
fn is_end_to_end(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::HOST
            | header::CONTENT_LENGTH
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::AUTHORIZATION
            | header::COOKIE
            | header::FORWARDED
            | header::CACHE_CONTROL
            | header::TE
    ) || name.as_str().starts_with("x-forwarded-")
        || name.as_str().ends_with("idempotency-key")
}

/// Leaves of `TE` at most `trailers`: the one thing that concerns the other end too. It is itself hop-by-hop and named
/// in `Connection` where it is sent on, see `upstream`.
fn reduce_te(headers: &mut HeaderMap) {
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(header::TE);
    }
}

/// Says upstream for whom a request is: `X-Forwarded-For`, `-Host` and `-Proto`, and `Forwarded`. What a trusted peer
/// said is kept and extended; what others said, in any `X-Forwarded-*` or `Forwarded`, is dropped.
pub(super) fn forward_for(headers: &mut HeaderMap, peer: &PeerFields) {
    if !peer.peer.trusted {
        remove_spoofable(headers);
    }
    extend_list(headers, X_FORWARDED_FOR, &peer.address);
    extend_list(headers, header::FORWARDED, &peer.forwarded);
    if !headers.contains_key(X_FORWARDED_HOST)
        && let Some(host) = headers.get(header::HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, peer.proto.clone());
    }
}

fn remove_spoofable(headers: &mut HeaderMap) {
    let spoofable = |name: &HeaderName| {
        *name == header::FORWARDED || name.as_str().starts_with("x-forwarded-") || name.as_str() == "x-real-ip"
    };
    if headers.keys().any(spoofable) {
        let names: Vec<HeaderName> = headers.keys().filter(|name| spoofable(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Adds an element at the end of a list field, as one line: not every upstream joins lines.
fn extend_list(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, element.clone());
        return;
    }
    let mut joined = Vec::new();
    for value in headers.get_all(&name) {
        joined.extend_from_slice(value.as_bytes());
        joined.extend_from_slice(b", ");
    }
    joined.extend_from_slice(element.as_bytes());
    // Valid values joined by ", " are a valid value.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(name, joined);
    }
}

/// Joins the `Cookie` lines into which HTTP/2 may cut one, RFC 9113 section 8.2.3: HTTP/1 knows one only.
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(header::COOKIE).iter();
    if lines.next().is_none() || lines.next().is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::Peer;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn connection_takes_what_it_names_and_no_more() {
        let mut headers = map(&[
            ("connection", "close, X-Hop, Host, authorization, Idempotency-Key"),
            ("x-hop", "1"),
            ("host", "a"),
            ("authorization", "b"),
            ("idempotency-key", "c"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "d"),
            ("te", "gzip, trailers"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AA"),
        ]);
        assert!(!strip_hop_by_hop(&mut headers));
        let expected = map(&[
            ("host", "a"),
            ("authorization", "b"),
            ("idempotency-key", "c"),
            ("te", "trailers"),
            ("trailer", "x-sum"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn only_a_websocket_may_upgrade() {
        let mut headers = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert!(asks_for_websocket(&Method::GET, Version::HTTP_11, &headers));
        assert!(!asks_for_websocket(&Method::POST, Version::HTTP_11, &headers));
        assert!(strip_hop_by_hop(&mut headers));
        assert_eq!(headers, map(&[("connection", "upgrade"), ("upgrade", "websocket")]));

        let mut unnamed = map(&[("upgrade", "websocket")]);
        assert!(!strip_hop_by_hop(&mut unnamed));
        assert!(unnamed.is_empty());
    }

    fn peer(trusted: bool) -> PeerFields {
        PeerFields::new(Peer { address: "192.0.2.1:5".parse().unwrap(), trusted }, false)
    }

    #[test]
    fn a_stranger_cannot_say_for_whom_it_asks() {
        let mut headers = map(&[
            ("host", "api"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-prefix", "/admin"),
            ("x-real-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
        ]);
        forward_for(&mut headers, &peer(false));
        let expected = map(&[
            ("host", "api"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "api"),
            ("x-forwarded-proto", "http"),
            ("forwarded", "for=192.0.2.1;proto=http"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn what_a_trusted_peer_said_is_extended() {
        let mut headers = map(&[
            ("host", "api"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "public"),
            ("x-forwarded-proto", "https"),
        ]);
        forward_for(&mut headers, &peer(true));
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9, 10.0.0.1, 192.0.2.1");
        assert_eq!(headers["x-forwarded-host"], "public");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["forwarded"], "for=192.0.2.1;proto=http");
    }

    #[test]
    fn cookies_cut_by_http2_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2")]));
    }
}
