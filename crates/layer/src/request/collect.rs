//! A request's body within bounds, and its fingerprint.
//!
//! Bodies up to `canonical_body` are read into memory and brought into canonical form; longer ones are hashed as they
//! are while they go to disk. What is over 256 KiB waits for its execution on disk either way.

use std::{cell::RefCell, pin::Pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use onceward_core::{
    canonical::{self, Rules, Workspace},
    fingerprint::{FieldDigest, Fingerprint},
    key::RecordId,
};

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    body::{Body, BoxError},
    engine::Engine,
    refuse::Problem,
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
    head: &canonical::Request<'_>,
    id: Option<&RecordId>,
) -> Result<Collected, Problem>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let bytes_max = route.request_body_bytes_max;
    let limits = engine.0.limits;
    let hint = body.size_hint();
    if hint.lower() > bytes_max {
        return Err(Problem::BodyTooLarge(bytes_max));
    }
    let mut body = std::pin::pin!(body);
    let mut memory = Memory { frames: Vec::new(), bytes: 0, permit: None };
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
        if memory.bytes > limits.canonical_body_bytes {
            // On the heap, so that a short body does not carry the room of a long one.
            let length = hint.exact().unwrap_or(bytes_max);
            return Box::pin(spool_rest(engine, route, body, head, memory, length)).await;
        }
        if memory.bytes > limits.spool_above_bytes && memory.permit.is_none() {
            // Large bodies are brought into canonical form a few at a time.
            let bytes = u32::try_from(limits.canonical_body_bytes).unwrap_or(u32::MAX);
            memory.permit = Arc::clone(&engine.0.canonical_memory).acquire_many_owned(bytes).await.ok();
        }
    }
    let whole = joined(memory.frames);
    let (fingerprint, fields, keep_missing, missing_required) = with_workspace(|workspace| {
        let request = canonical::Request { body: &whole, ..*head };
        let canonical = workspace.canonicalize(&request, &route.fingerprint);
        let fingerprint = engine.0.fingerprinter.fingerprint(route.fingerprint.hash(), &canonical);
        let fields = id.map(|id| field_bytes(engine.0.fingerprinter.field_digests(id, &canonical.fields)));
        (fingerprint, fields, canonical.findings.keep_missing, owned(&canonical.findings.missing_required))
    });
    if keep_missing {
        metrics::counter!("onceward_fingerprint_fallbacks_total").increment(1);
    }
    if whole.len() <= limits.spool_above_bytes {
        let body = Body::frames(std::iter::once(whole.clone()), trailers);
        return Ok(Collected { body, memory: Some(whole), fingerprint, keep_missing, missing_required, fields });
    }
    // The execution may take long: its body waits on disk.
    let seeks_key = route.key.from.iter().any(|source| matches!(source, Source::Json(_) | Source::Form(_)));
    let memory = seeks_key.then(|| whole.clone());
    let body = Box::pin(spool_whole(engine, whole, trailers)).await?;
    Ok(Collected { body, memory, fingerprint, keep_missing, missing_required, fields })
}

/// What of a body is in memory.
struct Memory {
    frames: Vec<Bytes>,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

/// A body that is too large for a canonical form: hashed as it is, while it goes to disk.
async fn spool_rest<B>(
    engine: &Engine,
    route: &Route,
    mut body: Pin<&mut B>,
    head: &canonical::Request<'_>,
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
    drop(memory.permit);
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
    let reader = spool.into_reader().await.map_err(spool_failed)?;
    Ok(Collected {
        body: Body::spooled(reader, trailers),
        memory: None,
        fingerprint: hasher.finish(),
        keep_missing,
        missing_required,
        fields: None,
    })
}

async fn spool_whole(engine: &Engine, whole: Bytes, trailers: Option<HeaderMap>) -> Result<Body, Problem> {
    let room = engine.0.spool.take(whole.len() as u64).ok_or(Problem::SpoolFull)?;
    let mut spool = Spool::create(room).await.map_err(spool_failed)?;
    spool.write(whole).await.map_err(spool_failed)?;
    let reader = spool.into_reader().await.map_err(spool_failed)?;
    Ok(Body::spooled(reader, trailers))
}

async fn next<B>(mut body: Pin<&mut B>) -> Result<Option<Frame<Bytes>>, Problem>
where
    B: HttpBody<Data = Bytes>,
{
    body.frame().await.transpose().map_err(|_| Problem::BodyUnreadable)
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
    head: &canonical::Request<'_>,
    body: Option<&[u8]>,
) -> Vec<[u8; 8]> {
    if route.fingerprint.fields() == 0 {
        return Vec::new();
    }
    with_workspace(|workspace| {
        let digests = match body {
            Some(body) => {
                let request = canonical::Request { body, ..*head };
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
