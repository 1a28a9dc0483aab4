//! A request's body as its fingerprint reads it: decoded, where its route asks for that.
//!
//! The upstream gets the bytes as they were sent. What cannot be decoded within its bounds, or by a coding that is not
//! known, is hashed as sent, and counted: equal content is then told apart by its coding, never refused, and a bomb
//! costs no more than a body at the limit.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, header};
use onceward_core::canonical::Rules;
use tokio::sync::OwnedSemaphorePermit;

use super::collect::is_encoded;
use crate::{coding, engine::Engine};

/// A body, and whether it is still under a coding.
pub(crate) struct Plain<'b> {
    pub(crate) bytes: Cow<'b, [u8]>,
    pub(crate) encoded: bool,
}

/// `body` under `rules`.
pub(crate) fn plain<'b>(engine: &Engine, rules: &Rules, headers: &HeaderMap, body: &'b [u8]) -> Plain<'b> {
    let as_sent = |encoded| Plain { bytes: body.into(), encoded };
    if !is_encoded(headers) {
        return as_sent(false);
    }
    if !rules.decode() || body.is_empty() {
        return as_sent(true);
    }
    let codings = coding::listed(headers.get_all(header::CONTENT_ENCODING).iter().map(|value| value.as_bytes()));
    match coding::decoded(&codings, body, engine.0.limits().decode_ratio, rules.canonical_body_max()) {
        Some(decoded) => Plain { bytes: Cow::Owned(decoded.into()), encoded: false },
        None => as_sent(true),
    }
}

/// The memory that bringing a body of so many bytes into canonical form takes, once it is there; waits for it.
pub(super) async fn room_for(
    engine: &Engine,
    rules: &Rules,
    headers: &HeaderMap,
    bytes: usize,
    is_read: bool,
) -> Option<OwnedSemaphorePermit> {
    let decoded = if rules.decode() && is_encoded(headers) {
        let most = bytes.saturating_mul(engine.0.limits().decode_ratio).min(rules.canonical_body_max());
        most.saturating_add(coding::WINDOW_BYTES_MAX)
    } else {
        0
    };
    let bytes = if is_read { bytes.saturating_add(decoded) } else { decoded };
    if bytes == 0 {
        return None;
    }
    let units = u32::try_from(bytes).unwrap_or(u32::MAX).min(engine.0.canonical_memory_units);
    // It is never closed.
    Arc::clone(&engine.0.canonical_memory).acquire_many_owned(units).await.ok()
}

/// Counts a body that its route would have decoded.
pub(super) fn count(rules: &Rules, plain: &Plain<'_>) {
    if plain.encoded && rules.decode() && !plain.bytes.is_empty() {
        metrics::counter!("onceward_fingerprint_undecoded_total").increment(1);
    }
}
