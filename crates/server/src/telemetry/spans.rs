//! Requests as spans: a part of the ordinary ones, and every one whose outcome is unknown, that was a mismatch, or whose
//! answer came after its claim was lost.

use std::time::Duration;

use http::HeaderValue;
use onceward::Told;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{InstrumentationScope, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};

use super::{attribute, now_nanos, text};

/// Chooses which requests become spans, by their trace, so that all of one trace are chosen or none.
pub(super) struct Sampler {
    /// Of 2^32.
    below: u64,
}

/// Where a request belongs in a trace.
struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl Sampler {
    pub(super) fn new(percent: u8) -> Self {
        Self { below: (u64::from(percent) << 32) / 100 }
    }

    /// The request's span, where it is one of those that are kept.
    pub(super) fn span(&self, told: &Told<'_>) -> Option<Span> {
        let parent = told.trace_parent.and_then(parent_of);
        let drawn = uuid::Uuid::new_v4().into_bytes();
        let trace = parent.as_ref().map_or(drawn, |parent| parent.trace);
        let [.., a, b, c, d] = trace;
        let chosen = u64::from(u32::from_be_bytes([a, b, c, d])) < self.below;
        let asked_for = parent.as_ref().is_some_and(|parent| parent.sampled) && self.below > 0;
        if !(chosen || asked_for || is_out_of_the_ordinary(told)) {
            return None;
        }
        let [id @ .., _, _, _, _, _, _, _, _] = uuid::Uuid::new_v4().into_bytes();
        let end = now_nanos();
        let mut attributes = vec![text("onceward.route", told.route), text("onceward.decision", told.decision)];
        let mut number = |name: &str, value: Option<u64>| {
            let value = value.and_then(|value| i64::try_from(value).ok());
            attributes.extend(value.map(|value| attribute(name, Value::IntValue(value))));
        };
        number("http.response.status_code", told.status.map(u64::from));
        number("onceward.attempt", told.attempt.map(u64::from));
        number("onceward.upstream_us", told.upstream.map(micros));
        if let Some(record) = &told.record {
            attributes.push(text("onceward.record", &record.short().to_string()));
        }
        if told.fenced {
            attributes.push(attribute("onceward.fenced", Value::BoolValue(true)));
        }
        let failed = told.status.is_some_and(|status| status >= 500);
        Some(Span {
            trace_id: trace.to_vec(),
            span_id: id.to_vec(),
            parent_span_id: parent.map_or_else(Vec::new, |parent| parent.span.to_vec()),
            name: format!("onceward {}", told.route),
            kind: SpanKind::Server.into(),
            start_time_unix_nano: end.saturating_sub(u64::try_from(told.took.as_nanos()).unwrap_or(u64::MAX)),
            end_time_unix_nano: end,
            attributes,
            status: failed.then(|| Status { code: StatusCode::Error.into(), ..Status::default() }),
            ..Span::default()
        })
    }
}

fn is_out_of_the_ordinary(told: &Told<'_>) -> bool {
    told.fenced || matches!(told.decision, "unknown" | "mismatch")
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// `00-TRACE-SPAN-FLAGS`, W3C Trace Context section 3.2. A later version is read as far as it is the same.
fn parent_of(value: &HeaderValue) -> Option<Parent> {
    let mut parts = value.to_str().ok()?.trim().split('-');
    let version = hex::<1>(parts.next()?)?;
    let (trace, span, [flags]) = (hex::<16>(parts.next()?)?, hex::<8>(parts.next()?)?, hex::<1>(parts.next()?)?);
    let whole = version != [0] || parts.next().is_none();
    (version != [0xff] && whole && trace != [0; 16] && span != [0; 8]).then_some(Parent {
        trace,
        span,
        sampled: flags & 1 == 1,
    })
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(is_lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

pub(super) fn request(spans: Vec<Span>, resource: Resource, scope: InstrumentationScope) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_trace_parent_is_one() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (value, is_one) in [
            (format!("00-{trace}-b7ad6b7169203331-01"), true),
            (format!("01-{trace}-b7ad6b7169203331-00-more"), true),
            (format!("00-{trace}-b7ad6b7169203331-01-more"), false),
            (format!("ff-{trace}-b7ad6b7169203331-01"), false),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
            (format!("00-{trace}-0000000000000000-01"), false),
            (format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()), false),
            (String::new(), false),
        ] {
            assert_eq!(parent_of(&HeaderValue::from_str(&value).unwrap()).is_some(), is_one, "{value}");
        }
    }
}
