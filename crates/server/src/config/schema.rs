//! Every key there is, what its value must be, and which are not built yet. The parser, the
//! overrides and the suggestions all read this one table.

use core::time::Duration;

use onceward::{ProbeUrl, pattern::Pattern};

use super::forms;
use crate::maintenance::Window;

/// What parses and is refused, by name, with line and column: where it is given and what it is. The
/// first is `section.key`, with `route` for `[defaults]` too, and with ` = value` where only that
/// value is missing. The README lists the same.
pub const NOT_AVAILABLE: &[(&str, &str)] = &[("regions", "regions"), ("encryption", "encryption of records")];

/// What is missing at `path`, if it is on the list.
pub(super) fn missing_feature(path: &str) -> Option<&'static str> {
    NOT_AVAILABLE.iter().find(|(at, _)| *at == path).map(|(_, what)| *what)
}

/// A key and what its value must be.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

pub(super) type Form = fn(&str) -> Result<(), String>;

/// What a value must be.
pub(super) enum Kind {
    /// A text that this accepts, and what it is called.
    Text(Form, &'static str),
    /// A text that no message shows.
    Secret,
    Bool,
    Integer(i64, i64),
    OneOf(&'static [i64]),
    Duration(Duration, Duration),
    Size(u64, u64),
    Choice(&'static [&'static str]),
    /// So many at most.
    List(usize, &'static Self),
    /// One text, or a list of so many.
    OneOrMore(usize, &'static Self),
    /// A text of the first, or a table.
    TextOrTable(&'static Self, &'static [Key]),
    Table(&'static [Key]),
    /// `[[name]]`, so many at most.
    Tables(usize, &'static [Key]),
    /// Not looked into: nothing of it is built.
    Any,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 60 * 60)
}

/// Ten years: longer waits are a slip of the pen.
const LONG: Duration = days(3650);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// How many entries are read; more are an error.
pub(super) const ROUTES_MAX: usize = 4096;
pub(super) const UPSTREAMS_MAX: usize = 256;
pub(super) const STATUSES_MAX: usize = 64;

const NAME: Kind = Kind::Text(|text| forms::plain_name(text).map(drop), "a name");
const HEADER: Kind = Kind::Text(|text| forms::header(text).map(drop), "the name of a header");
const FIELD: Kind = Kind::Text(|text| forms::field(text).map(drop), "a part of a request");
const STATUS: Kind = Kind::Integer(200, 599);
const STATUSES: Kind = Kind::List(STATUSES_MAX, &STATUS);
const FIELDS: Kind = Kind::List(256, &FIELD);
const ADDRESS: Kind = Kind::Text(|text| forms::address(text).map(drop), "an address and a port");
const PATH: Kind = Kind::Text(path, "a path");
const USER: Kind = Kind::Text(user, "the name of a user");
const SCOPE: Kind = Kind::Text(|text| forms::scope_part(text).map(drop), r#""fixed:VALUE" or "header:NAME""#);

const CLAIMS_PER_SECOND: Kind = Kind::Integer(1, 10_000_000);
const LIVE_RECORDS: Kind = Kind::Integer(1, 1_000_000_000);
const QUOTA_BYTES: Kind = Kind::Size(1 << 10, 1024 * GIB);

fn path(text: &str) -> Result<(), String> {
    if text.is_empty() || text.contains('\0') { Err("must name a path".to_owned()) } else { Ok(()) }
}

fn user(text: &str) -> Result<(), String> {
    let is_name = !text.is_empty() && text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name { Ok(()) } else { Err("must be 1 to 256 visible ASCII characters".to_owned()) }
}

/// The whole file.
pub(super) const ROOT: &[Key] = &[
    key("default_upstream", NAME),
    key("identity", Kind::Table(&[key("secret", Kind::Secret), key("previous", Kind::Secret)])),
    key(
        "listen",
        Kind::Table(&[
            key("address", ADDRESS),
            key(
                "tls",
                Kind::Table(&[
                    key("cert", PATH),
                    key("key", PATH),
                    key("client_ca", PATH),
                    key("client_auth", Kind::Choice(&["off", "optional", "required"])),
                ]),
            ),
            key(
                "trusted",
                Kind::List(1024, &Kind::Text(|text| forms::network(text).map(drop), "a network such as 10.0.0.0/8")),
            ),
            key("drain", Kind::Duration(Duration::ZERO, secs(3600))),
        ]),
    ),
    key("admin", Kind::Table(&[key("address", ADDRESS), key("token", Kind::Secret)])),
    key(
        "store",
        Kind::Table(&[
            key("kind", Kind::Choice(&["embedded", "redis", "postgres", "tiered"])),
            key("path", PATH),
            key("durable", Kind::Choice(&["preferred", "required"])),
            key("deadline", Kind::Duration(ms(10), secs(60))),
            key(
                "breaker",
                Kind::Table(&[
                    key("failures", Kind::Integer(1, 1_000_000)),
                    key("open", Kind::Duration(ms(10), secs(3600))),
                ]),
            ),
            key("reserve", Kind::Size(MIB, 1024 * GIB)),
            key("max_records", Kind::Integer(1, 1_000_000_000)),
            key("write_version", Kind::Integer(1, 255)),
            key(
                "redis",
                Kind::Table(&[
                    key("url", Kind::Secret),
                    key("username", USER),
                    key("password", Kind::Secret),
                    key("strategy", Kind::Choice(&["script", "watch"])),
                    key("detect_evictions", Kind::Choice(&["polled", "inline"])),
                    key(
                        "wait",
                        Kind::Table(&[
                            key("replicas", Kind::Integer(1, 16)),
                            key("timeout", Kind::Duration(ms(1), secs(60))),
                        ]),
                    ),
                    key("sentinel_username", USER),
                    key("sentinel_password", Kind::Secret),
                    key("ca", PATH),
                    key("cert", PATH),
                    key("key", PATH),
                ]),
            ),
            key(
                "postgres",
                Kind::Table(&[
                    key("url", Kind::Secret),
                    key("listen_url", Kind::Secret),
                    key("password", Kind::Secret),
                    key("connections", Kind::Integer(1, 64)),
                    key("tls", Kind::Choice(&["required", "off"])),
                    key("ca", PATH),
                ]),
            ),
            key(
                "journal",
                Kind::Table(&[
                    key("failover", Kind::Choice(&["none", "synchronous", "asynchronous"])),
                    key("standbys", Kind::List(16, &USER)),
                    key("member_timeout", Kind::Duration(secs(2), secs(3600))),
                    key("spool", Kind::Size(64 * MIB, 1024 * GIB)),
                ]),
            ),
            key(
                "fallback",
                Kind::Table(&[
                    key("kind", Kind::Choice(&["postgres"])),
                    key("duplicates", Kind::Choice(&["accepted"])),
                    key("url", Kind::Secret),
                    key("listen_url", Kind::Secret),
                    key("password", Kind::Secret),
                    key("connections", Kind::Integer(1, 64)),
                    key("tls", Kind::Choice(&["required", "off"])),
                    key("ca", PATH),
                ]),
            ),
        ]),
    ),
    key("upstream", Kind::Tables(UPSTREAMS_MAX, UPSTREAM)),
    key("defaults", Kind::Table(ROUTE)),
    key("route", Kind::Tables(ROUTES_MAX, ROUTE)),
    key(
        "limits",
        Kind::Table(&[
            key("connections", Kind::Integer(1, 1_000_000)),
            key("headers", Kind::Size(8 << 10, MIB)),
            key("waiters", Kind::Integer(0, 1_000_000)),
            key("held_answer", Kind::Size(0, 16 * MIB)),
            key("canonical_body", Kind::Size(0, 64 * MIB)),
            key("spool", Kind::Size(0, 1024 * GIB)),
            key("unrecorded", Kind::Size(0, 16 * GIB)),
            key("replay_cache", Kind::Size(0, 16 * GIB)),
            key("decode_ratio", Kind::Integer(1, 10_000)),
        ]),
    ),
    key(
        "quota",
        Kind::Table(&[
            key("claims_per_second", CLAIMS_PER_SECOND),
            key("burst", CLAIMS_PER_SECOND),
            key("live_records", LIVE_RECORDS),
            key("bytes", QUOTA_BYTES),
            key(
                "tenant",
                Kind::List(
                    10_000,
                    &Kind::Table(&[
                        key("name", Kind::Text(|text| forms::tenant(text).map(drop), "a tenant")),
                        key("claims_per_second", CLAIMS_PER_SECOND),
                        key("burst", CLAIMS_PER_SECOND),
                        key("live_records", LIVE_RECORDS),
                        key("bytes", QUOTA_BYTES),
                    ]),
                ),
            ),
        ]),
    ),
    key(
        "maintenance",
        Kind::Table(&[key(
            "window",
            Kind::Text(|text| Window::parse(text).map(drop), r#"a time such as "02:00-05:00 UTC""#),
        )]),
    ),
    key(
        "reconcile",
        Kind::Table(&[
            key("every", Kind::Duration(Duration::ZERO, days(1))),
            key(
                "compensation_urls",
                Kind::List(
                    64,
                    &Kind::Text(
                        |text| forms::compensation_url(text).map(drop),
                        r#"a URL such as "http://127.0.0.1:9000/undo/""#,
                    ),
                ),
            ),
        ]),
    ),
    key(
        "telemetry",
        Kind::Table(&[
            key(
                "otlp",
                Kind::Text(|text| forms::collector_url(text).map(drop), r#"a URL such as "http://127.0.0.1:4318""#),
            ),
            key("interval", Kind::Duration(ms(100), secs(3600))),
            key("trace_percent", Kind::Integer(0, 100)),
        ]),
    ),
    key("regions", Kind::Any),
    key("encryption", Kind::Any),
];

const UPSTREAM: &[Key] = &[
    key("name", NAME),
    key("url", Kind::Text(|text| forms::upstream_url(text).map(drop), r#"a URL such as "http://127.0.0.1:9000""#)),
    key("max_in_flight", Kind::Integer(1, 1_000_000)),
    key("connect_timeout", Kind::Duration(ms(1), secs(300))),
    key("ca", PATH),
    key("client_cert", Kind::Table(&[key("cert", PATH), key("key", PATH)])),
    key("http2", Kind::Bool),
];

/// A route, and `[defaults]`.
pub(super) const ROUTE: &[Key] = &[
    key("name", Kind::Text(|text| forms::route_name(text).map(drop), "a name")),
    key(
        "match",
        Kind::Table(&[
            key(
                "methods",
                Kind::List(16, &Kind::Choice(&["POST", "PATCH", "PUT", "DELETE", "GET", "HEAD", "OPTIONS", "TRACE"])),
            ),
            key("path", Kind::Text(|text| Pattern::parse(text).map(drop).map_err(|error| error.to_string()), "a path")),
            key("host", Kind::Text(|text| forms::host(text).map(drop), "a host")),
        ]),
    ),
    key("upstream", NAME),
    key("mode", Kind::Choice(&["enforce", "observe", "off"])),
    key(
        "key",
        Kind::Table(&[
            key("from", Kind::List(16, &Kind::Text(|text| forms::key_source(text).map(drop), "a source"))),
            key("missing", Kind::Choice(&["optional", "required", "derive"])),
            key("strict", Kind::Bool),
            key("min_length", Kind::Integer(1, 255)),
            key("derived_retention", Kind::Duration(secs(1), LONG)),
            key("docs", Kind::Text(|text| forms::docs_url(text).map(drop), "a URL")),
        ]),
    ),
    key(
        "scope",
        Kind::Table(&[
            key("tenant", SCOPE),
            key("env", SCOPE),
            key(
                "principal",
                Kind::OneOrMore(
                    8,
                    &Kind::Text(
                        |text| forms::principal(text).map(drop),
                        r#""auto", or a list such as ["header:X-User"]"#,
                    ),
                ),
            ),
        ]),
    ),
    key("auth", Kind::Table(AUTH)),
    key(
        "fingerprint",
        Kind::Table(&[
            key("hash", Kind::Choice(&["blake3", "sha256"])),
            key("body", Kind::Choice(&["canonical", "raw", "none"])),
            key("strip", FIELDS),
            key("keep", FIELDS),
            key("require", FIELDS),
            key("unordered", Kind::List(256, &Kind::Text(|text| forms::pointer(text).map(drop), "a pointer"))),
            key("headers", Kind::List(64, &HEADER)),
            key("sort_query", Kind::Bool),
            key("decode", Kind::Bool),
            key("fields", Kind::Integer(0, 64)),
        ]),
    ),
    key("retention", Kind::Duration(secs(1), LONG)),
    key("retention_body", Kind::Duration(secs(1), LONG)),
    key("sliding", Kind::Bool),
    key("retention_max", Kind::Duration(secs(1), LONG)),
    key("unknown_max", Kind::Duration(secs(1), LONG)),
    key("client_retries", Kind::Duration(Duration::ZERO, LONG)),
    key("lease", Kind::Duration(ms(100), secs(3600))),
    key("two_phase_dispatch", Kind::Bool),
    key("timeout", Kind::Duration(ms(1), days(1))),
    key("execution_max", Kind::Duration(ms(1), days(7))),
    key("idle_timeout", Kind::Duration(ms(1), days(1))),
    key("record_wait", Kind::Duration(ms(1), secs(300))),
    key(
        "in_flight",
        Kind::Table(&[
            key("wait", Kind::Duration(Duration::ZERO, days(1))),
            key("waiters_per_key", Kind::Integer(0, 1_000_000)),
        ]),
    ),
    key(
        "record",
        Kind::Table(&[
            key("preset", Kind::Choice(&["safe", "rollback", "success", "stripe"])),
            key("record", STATUSES),
            key("release", STATUSES),
            key("unknown", STATUSES),
            key(
                "release_when",
                Kind::List(
                    64,
                    &Kind::Table(&[
                        key("status", STATUS),
                        key("header", HEADER),
                        key("value", Kind::Text(header_value, "a header's value")),
                    ]),
                ),
            ),
            key("set_cookie", Kind::Bool),
        ]),
    ),
    key(
        "replay",
        Kind::Table(&[
            key("body", Kind::Choice(&["recorded", "ack"])),
            key("header", Kind::Text(|text| forms::replay_header(text).map(drop), "the name of a header")),
        ]),
    ),
    key("mismatch_status", Kind::OneOf(&[422, 409, 400])),
    key(
        "on_unknown",
        Kind::List(
            8,
            &Kind::TextOrTable(
                &Kind::Choice(&["hold", "retry", "fail", "probe", "effect"]),
                &[key("hold", Kind::Duration(secs(1), LONG))],
            ),
        ),
    ),
    key("probe", Kind::Table(PROBE)),
    key("effect", Kind::Table(EFFECT)),
    key("retry_max", Kind::Integer(0, 100)),
    key("on_store_outage", Kind::Choice(&["deny", "bypass", "fallback"])),
    key("durability", Kind::Choice(&["strict", "journaled", "cache"])),
    key("on_cache_loss", Kind::Choice(&["continue", "quarantine"])),
    key(
        "limits",
        Kind::Table(&[
            key("request_body", Kind::Size(0, 1024 * GIB)),
            key("recorded_body", Kind::Size(0, RECORDED_BODY_MAX)),
        ]),
    ),
    key("forward_key", Kind::Choice(&["same", "derived"])),
];

const AUTH: &[Key] = &[
    key(
        "url",
        Kind::Text(|text| forms::auth_url(text).map(drop), r#""none", or a URL such as "http://127.0.0.1:9100/check""#),
    ),
    key("headers", Kind::List(32, &HEADER)),
    key("cache", Kind::Duration(Duration::ZERO, secs(3600))),
    key("timeout", Kind::Duration(ms(1), secs(60))),
    key("principal_header", HEADER),
];

const PROBE: &[Key] = &[
    key(
        "url",
        Kind::Text(
            |text| ProbeUrl::parse(text).map(drop).map_err(|error| error.to_string()),
            r#"a URL such as "http://127.0.0.1:9000/by-record/{record}""#,
        ),
    ),
    key("executed", STATUSES),
    key("not_executed", STATUSES),
    key("quiesce", Kind::Duration(Duration::ZERO, days(7))),
    key("timeout", Kind::Duration(ms(1), secs(300))),
    key("replay", Kind::Choice(&["recorded", "ack"])),
    key("headers", Kind::List(16, &Kind::Table(&[key("name", HEADER), key("value", Kind::Secret)]))),
];

const EFFECT: &[Key] = &[
    key("url", Kind::Secret),
    key("password", Kind::Secret),
    key("tls", Kind::Choice(&["required", "off"])),
    key("ca", PATH),
    key("name", Kind::Text(|text| forms::effect_name(text).map(drop), "a name of 1 to 200 bytes")),
    key("timeout", Kind::Duration(ms(1), secs(300))),
    key("table", Kind::Text(|text| forms::table(text).map(drop), "a table, or schema.table")),
    key("id_column", Kind::Text(|text| forms::column(text).map(drop), "a column")),
];

/// With its headers, a record must fit half a batch of the log, which is 4 MiB.
const RECORDED_BODY_MAX: u64 = 3 * MIB;

fn header_value(text: &str) -> Result<(), String> {
    if text.len() <= 256 && http::HeaderValue::from_str(text).is_ok() {
        Ok(())
    } else {
        Err(format!("{} is not the value of a header", super::units::shown(text)))
    }
}

impl Kind {
    /// The keys below it, where it is a table.
    pub(super) fn keys(&self) -> Option<&'static [Key]> {
        match self {
            Self::Table(keys) | Self::Tables(_, keys) | Self::TextOrTable(_, keys) => Some(keys),
            Self::List(_, inner) | Self::OneOrMore(_, inner) => inner.keys(),
            _ => None,
        }
    }

    /// Whether an environment variable gives it as it is, without quotes.
    pub(super) fn is_text(&self) -> bool {
        matches!(
            self,
            Self::Text(..) | Self::Secret | Self::Duration(..) | Self::Size(..) | Self::Choice(_) | Self::Any
        )
    }
}
