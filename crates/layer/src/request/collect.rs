//! A request's body within bounds, and its fingerprint.
//!
//! Short bodies are read into memory. What is over 256 KiB goes to disk as it arrives and waits there for its execution;
//! up to `canonical_body` it is read back once, to be brought into canonical form, and beyond it is hashed as it is.

use std::{cell::RefCell, pin::Pin};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use onceward_core::{
    canonical::{self, Rules, Workspace},
    fingerprint::{FieldDigest, Fingerprint},
    key::RecordId,
};

use super::plain::{count, plain, room_for};
use crate::{
    body::{Body, BoxError},
    engine::Engine,
    refuse::Problem,
    request::one_message::NotOneMessage,
    route::{Route, Source},
    spool::Spool,
};

/// A body that has arrived.
pub(super) struct Collected {
    /// For the upstream.
    pub(super) body: Body,
    /// The whole body, where it is in memory.
    pub(super) memory: Option<Bytes>,
    /// Of the whole request.
    pub(super) fingerprint: Fingerprint,
    /// A field that alone was to count is lacking.
    pub(super) keep_missing: bool,
    /// Fields that the route requires and the body lacks.
    pub(super) missing_required: Vec<String>,
    /// Digests of the fields, where the record's id was known.
    pub(super) fields: Option<Vec<[u8; 8]>>,
}

/// Reads the body. With the record's id at hand, its field digests are made on the way.
pub(super) async fn collect<B>(
    engine: &Engine,
    route: &Route,
    body: B,
    headers: &HeaderMap,
    head: &canonical::Request<'_>,
    id: Option<&RecordId>,
) -> Result<Collected, Problem>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let bytes_max = route.request_body_bytes_max;
    let limits = engine.0.limits();
    let hint = body.size_hint();
    if hint.lower() > bytes_max {
        return Err(Problem::BodyTooLarge(bytes_max));
    }
    let mut body = std::pin::pin!(body);
    let mut memory = Memory { frames: Vec::new(), bytes: 0 };
    let mut trailers = None;
    while let Some(frame) = next(body.as_mut()).await? {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        memory.bytes += data.len();
        if memory.bytes as u64 > bytes_max {
            return Err(Problem::BodyTooLarge(bytes_max));
        }
        memory.frames.push(data);
        if memory.bytes > limits.spool_above_bytes.min(limits.canonical_body_bytes) {
            // On the heap, so that a short body does not carry the room of a long one.
            let length = hint.exact().unwrap_or(bytes_max);
            return Box::pin(spool_rest(engine, route, body, headers, head, id, memory, length)).await;
        }
    }
    let whole = joined(memory.frames);
    let _room = if is_encoded(headers) && route.fingerprint.decode() {
        Box::pin(room_for(engine, &route.fingerprint, headers, whole.len(), false)).await
    } else {
        None
    };
    let canonical = canonicalize(engine, route, headers, head, id, &whole);
    let body = Body::frames(std::iter::once(whole.clone()), trailers);
    Ok(Collected { body, memory: Some(whole), ..canonical })
}

/// What of a body is in memory.
struct Memory {
    frames: Vec<Bytes>,
    bytes: usize,
}

/// A large body waits on disk: for the rest of itself, then for its execution. It is hashed as it is on the way; where
/// it turns out to have a canonical form, it is read back for it, a few bodies at a time.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, handed on once")]
async fn spool_rest<B>(
    engine: &Engine,
    route: &Route,
    mut body: Pin<&mut B>,
    headers: &HeaderMap,
    head: &canonical::Request<'_>,
    id: Option<&RecordId>,
    memory: Memory,
    length: u64,
) -> Result<Collected, Problem>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let bytes_max = route.request_body_bytes_max;
    let room = engine.0.spool.take(length).ok_or(Problem::SpoolFull)?;
    let mut spool = Spool::create(room).await.map_err(spool_failed)?;
    let (mut hasher, keep_missing, missing_required) = with_workspace(|workspace| {
        let head = workspace.head(head, &route.fingerprint);
        let hasher = engine.0.fingerprinter.hasher(route.fingerprint.hash(), &head);
        (hasher, head.findings.keep_missing, owned(&head.findings.missing_required))
    });
    let mut total = memory.bytes as u64;
    for frame in memory.frames {
        hasher.update(&frame);
        spool.write(frame).await.map_err(spool_failed)?;
    }
    let mut trailers = None;
    while let Some(frame) = next(body.as_mut()).await? {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        total += data.len() as u64;
        if total > bytes_max {
            return Err(Problem::BodyTooLarge(bytes_max));
        }
        hasher.update(&data);
        spool.write(data).await.map_err(spool_failed)?;
    }
    let mut reader = spool.into_reader().await.map_err(spool_failed)?;
    let limits = engine.0.limits();
    if total > limits.canonical_body_bytes as u64 {
        let body = Body::spooled(reader, trailers);
        let fingerprint = hasher.finish();
        return Ok(Collected { body, memory: None, fingerprint, keep_missing, missing_required, fields: None });
    }
    // All of it has arrived: nobody holds this memory while a slow client sends.
    let bytes = usize::try_from(total).unwrap_or(usize::MAX);
    let _room = room_for(engine, &route.fingerprint, headers, bytes, true).await;
    let whole = reader.read_all().await.map_err(spool_failed)?;
    let canonical = canonicalize(engine, route, headers, head, id, &whole);
    let seeks_key = route.key.from.iter().any(|source| matches!(source, Source::Json(_) | Source::Form(_)));
    Ok(Collected { body: Body::spooled(reader, trailers), memory: seeks_key.then_some(whole), ..canonical })
}

/// The fingerprint of a whole body, its digests where the record's id is known, and what the rules found.
fn canonicalize(
    engine: &Engine,
    route: &Route,
    headers: &HeaderMap,
    head: &canonical::Request<'_>,
    id: Option<&RecordId>,
    whole: &[u8],
) -> Collected {
    let plain = plain(engine, &route.fingerprint, headers, whole);
    count(&route.fingerprint, &plain);
    let collected = with_workspace(|workspace| {
        let request = canonical::Request { body: &plain.bytes, encoded: plain.encoded, ..*head };
        let canonical = workspace.canonicalize(&request, &route.fingerprint);
        Collected {
            body: Body::empty(),
            memory: None,
            fingerprint: engine.0.fingerprinter.fingerprint(route.fingerprint.hash(), &canonical),
            fields: id.map(|id| field_bytes(engine.0.fingerprinter.field_digests(id, &canonical.fields))),
            keep_missing: canonical.findings.keep_missing,
            missing_required: owned(&canonical.findings.missing_required),
        }
    });
    if collected.keep_missing {
        metrics::counter!("onceward_fingerprint_fallbacks_total").increment(1);
    }
    collected
}

async fn next<B>(mut body: Pin<&mut B>) -> Result<Option<Frame<Bytes>>, Problem>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    body.frame().await.transpose().map_err(|error| match error.into().downcast_ref::<NotOneMessage>() {
        Some(error) => error.problem(),
        None => Problem::BodyUnreadable,
    })
}

fn spool_failed(error: std::io::Error) -> Problem {
    tracing::error!(%error, "a request body could not be spooled");
    Problem::SpoolFull
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn joined(mut frames: Vec<Bytes>) -> Bytes {
    if frames.len() <= 1 {
        return frames.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|frame| all.extend_from_slice(frame));
    all.freeze()
}

/// The digests of a request's fields.
pub(super) fn digests(
    engine: &Engine,
    id: &RecordId,
    route: &Route,
    headers: &HeaderMap,
    head: &canonical::Request<'_>,
    body: Option<&[u8]>,
) -> Vec<[u8; 8]> {
    if route.fingerprint.fields() == 0 {
        return Vec::new();
    }
    with_workspace(|workspace| {
        let digests = match body {
            Some(body) => {
                let plain = plain(engine, &route.fingerprint, headers, body);
                let request = canonical::Request { body: &plain.bytes, encoded: plain.encoded, ..*head };
                let canonical = workspace.canonicalize(&request, &route.fingerprint);
                engine.0.fingerprinter.field_digests(id, &canonical.fields)
            }
            None => {
                let head = workspace.head(head, &route.fingerprint);
                engine.0.fingerprinter.field_digests(id, &head.fields)
            }
        };
        field_bytes(digests)
    })
}

fn field_bytes(digests: Vec<FieldDigest>) -> Vec<[u8; 8]> {
    digests.into_iter().map(FieldDigest::to_bytes).collect()
}

pub(crate) fn listed_headers<'r>(rules: &'r Rules, headers: &HeaderMap) -> Vec<(&'r str, Vec<u8>)> {
    rules
        .headers()
        .iter()
        .filter(|name| headers.contains_key(name.as_str()))
        .map(|name| {
            let values = headers.get_all(name.as_str()).iter().map(HeaderValue::as_bytes);
            (name.as_str(), canonical::header_value(values))
        })
        .collect()
}

pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Lends the thread's workspace, so that canonical forms are made without allocating.
pub(super) fn with_workspace<T>(work: impl FnOnce(&mut Workspace) -> T) -> T {
    const KEPT_BYTES_MAX: usize = 256 * 1024;
    thread_local! {
        static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::new());
    }
    WORKSPACE.with_borrow_mut(|workspace| {
        let done = work(workspace);
        workspace.shrink(KEPT_BYTES_MAX);
        done
    })
}
