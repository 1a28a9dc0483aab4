//! Reads the upstream's answer: for the record, and for the client.
//!
//! A short answer of known length is held until its record is safe. Any other streams at once; only
//! what tells the client that it is complete waits for the record: the last byte where the length
//! is known, else the end of the stream and the trailers.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header, response::Parts};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use onceward_core::policy::Class;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};

use crate::{
    body::{Body, BoxError, ChannelBody},
    grpc,
    replay::{self, OUTCOME},
    route::Route,
};

/// Frames that the client may lag behind where an answer is not kept.
const LAG_FRAMES_MAX: usize = 8;

/// What the answer's head says of the key.
pub(crate) struct Plan {
    verdict: Verdict,
    is_event_stream: bool,
}

/// What an answer means for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) class: Class,
    /// Where the upstream says how long it is to be remembered.
    pub(crate) retention: Option<Duration>,
}

/// When an answer is judged.
enum Verdict {
    /// By its head, for good.
    Final(Judged),
    /// By its head, unless its end says otherwise: the upstream's word on a gRPC call.
    Overrulable(Judged),
    /// By its end: a gRPC call. Its head's status counts where nothing follows.
    AtEnd { head: Option<u8>, unverified_principal: bool },
}

/// Reads the head, and takes out of it what only Onceward says.
pub(crate) fn plan(
    status: StatusCode,
    headers: &mut HeaderMap,
    route: &Route,
    unverified_principal: bool,
    is_grpc: bool,
) -> Plan {
    let said = said_in(headers);
    replay::strip_own(headers, route);
    let lookup = |name: &str| headers.get(name).map(http::HeaderValue::as_bytes);
    let recording = &route.policy.recording;
    let verdict = match said {
        Some(said) if is_grpc => Verdict::Overrulable(said),
        Some(said) => Verdict::Final(said),
        // Any other status was not made by a gRPC server.
        None if is_grpc && status == StatusCode::OK && !recording.releases(200, &lookup) => {
            Verdict::AtEnd { head: grpc::status_of(headers), unverified_principal }
        }
        None => {
            let class = recording.class(status.as_u16(), unverified_principal, lookup);
            Verdict::Final(Judged { class, retention: None })
        }
    };
    let is_event_stream = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("text/event-stream"));
    Plan { verdict, is_event_stream }
}

impl Plan {
    /// What is certain at the head already.
    pub(crate) fn at_head(&self) -> Option<Judged> {
        match self.verdict {
            Verdict::Final(judged) => Some(judged),
            Verdict::Overrulable(_) | Verdict::AtEnd { .. } => None,
        }
    }

    /// What the whole answer means, of which nothing or something followed its head. Takes out of the trailers what only
    /// Onceward says.
    pub(crate) fn at_end(&self, trailers: Option<&mut HeaderMap>, something_followed: bool, route: &Route) -> Judged {
        let mut said = None;
        let mut status = None;
        let mut has_trailers = false;
        if let Some(trailers) = trailers {
            has_trailers = true;
            said = said_in(trailers);
            status = grpc::status_of(trailers);
            replay::strip_own(trailers, route);
        }
        match self.verdict {
            Verdict::Final(judged) => judged,
            Verdict::Overrulable(judged) => said.unwrap_or(judged),
            Verdict::AtEnd { head, unverified_principal } => said.unwrap_or_else(|| {
                let status = if has_trailers || something_followed { status } else { head };
                Judged { class: route.policy.recording.grpc_class(status, unverified_principal), retention: None }
            }),
        }
    }

    /// Whether there may be a use for the body.
    pub(crate) fn keeps(&self) -> bool {
        let may_be_kept = match self.at_head() {
            Some(judged) => judged.is_kept(),
            None => true,
        };
        may_be_kept && !self.is_event_stream
    }
}

impl Judged {
    /// Whether it is, or will be, the key's answer.
    pub(crate) fn is_kept(self) -> bool {
        matches!(self.class, Class::Record | Class::Fail)
    }
}

/// The upstream's own word.
fn said_in(fields: &HeaderMap) -> Option<Judged> {
    let (class, retention) = parse_outcome(fields.get(OUTCOME)?.to_str().ok()?)?;
    Some(Judged { class, retention })
}

/// `record | release | fail`, optionally `; retention=SECONDS`. Anything else is no word at all.
fn parse_outcome(value: &str) -> Option<(Class, Option<Duration>)> {
    let mut parts = value.split(';').map(str::trim);
    let class = match parts.next()? {
        "record" => Class::Record,
        "release" => Class::Release,
        "fail" => Class::Fail,
        _ => return None,
    };
    let retention = parts
        .find_map(|part| part.strip_prefix("retention="))
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs);
    Some((class, retention))
}

/// The limits of one capture.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Answers up to this length are held.
    pub(crate) held_bytes: u64,
    /// Longer ones are recorded without their body.
    pub(crate) recorded_bytes: usize,
    /// The end of an answer that is kept.
    pub(crate) deadline: Instant,
    /// Between two frames of one that is not.
    pub(crate) idle: Duration,
    /// An answer that streams over HTTP/1.1 goes in chunks, so that something can be said in its trailers.
    pub(crate) in_chunks: bool,
}

/// An answer that was read to its end, or that broke off.
pub(crate) struct Captured {
    /// The body, where it is kept.
    pub(crate) body: Option<Bytes>,
    /// Whether it had one.
    pub(crate) has_body: bool,
    pub(crate) trailers: Option<HeaderMap>,
    /// `Err` where the answer did not come to its end.
    pub(crate) complete: Result<(), BoxError>,
    /// What the client has not got.
    pub(crate) rest: Rest,
}

/// What the client has not got yet.
pub(crate) enum Rest {
    /// Everything.
    Held(Parts, Vec<Bytes>),
    /// The end of a stream.
    Tail(Tail),
}

/// The end of a stream that the client is reading.
pub(crate) struct Tail {
    sender: mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>,
    last: Option<Bytes>,
}

impl Tail {
    /// The answer is complete.
    pub(crate) fn finish(self, trailers: Option<HeaderMap>) {
        // Where the client has gone, nobody hears it.
        if let Some(last) = self.last {
            let _gone = self.sender.send(Ok(Frame::data(last)));
        }
        if let Some(trailers) = trailers {
            let _gone = self.sender.send(Ok(Frame::trailers(trailers)));
        }
    }

    /// The answer is not the key's, and its trailers say so. What was withheld stays so.
    pub(crate) fn finish_without_last(self, trailers: HeaderMap) {
        let _gone = self.sender.send(Ok(Frame::trailers(trailers)));
    }

    /// The answer is not the key's: the client must not take it for complete.
    pub(crate) fn break_off(self, why: &'static str) {
        let _gone = self.sender.send(Err(why.into()));
    }
}

/// Reads an answer. `stream` is given the head of one that streams, at once.
pub(crate) async fn capture<R>(
    mut parts: Parts,
    body: R,
    plan: &Plan,
    bounds: Bounds,
    stream: impl FnOnce(Response<Body>),
) -> Captured
where
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let length = body.size_hint().exact();
    if length.is_some_and(|length| length <= bounds.held_bytes) && !plan.is_event_stream {
        let (frames, trailers, complete) = hold(body, bounds).await;
        let body = joined(&frames);
        let has_body = !body.is_empty();
        return Captured { has_body, body: Some(body), trailers, complete, rest: Rest::Held(parts, frames) };
    }
    let length = if bounds.in_chunks { None } else { length };
    if length.is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let (sender, frames) = mpsc::unbounded_channel();
    let taken = Arc::new(Semaphore::new(0));
    let client = Body::channel(ChannelBody { frames, taken: Arc::clone(&taken), left: length });
    stream(Response::from_parts(parts, client));
    // On the heap, so that a short answer does not carry the room of a stream.
    Box::pin(tee(body, length, sender, &taken, plan.keeps(), bounds)).await
}

/// Reads a short answer: its frames, its trailers, and whether it came to its end.
async fn hold<R>(body: R, bounds: Bounds) -> (Vec<Bytes>, Option<HeaderMap>, Result<(), BoxError>)
where
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let mut frames = Vec::new();
    let mut trailers = None;
    let complete = loop {
        match next(body.as_mut(), bounds.deadline).await {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => frames.push(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    (frames, trailers, complete)
}

async fn tee<R>(
    body: R,
    length: Option<u64>,
    sender: mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>,
    taken: &Semaphore,
    keeps: bool,
    bounds: Bounds,
) -> Captured
where
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    // While it is kept, what the client has not taken is what the record holds anyway: the channel
    // is bounded by the record's limit. Beyond it the client sets the pace.
    let mut kept = keeps.then(Vec::new);
    let mut total = 0;
    let mut lag = 0usize;
    let mut gone = false;
    let mut last = None;
    let mut trailers = None;
    let complete = loop {
        let deadline = if kept.is_some() || gone || sender.is_closed() {
            // A stream that nobody reads any more must not run for ever.
            bounds.deadline
        } else {
            Instant::now() + bounds.idle
        };
        let frame = match next(body.as_mut(), deadline).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        total += data.len() as u64;
        if let Some(frames) = &mut kept {
            if total > bounds.recorded_bytes as u64 {
                kept = None;
            } else {
                frames.push(data.clone());
            }
        }
        if length == Some(total) && !data.is_empty() {
            last = Some(data.split_off(data.len() - 1));
        }
        if data.is_empty() {
            continue;
        }
        if !gone && sender.send(Ok(Frame::data(data))).is_ok() {
            lag += 1;
        }
        if kept.is_none() && !gone {
            // A client that takes nothing for so long is as good as gone.
            let pace = wait_for_client(&sender, taken, &mut lag);
            gone = tokio::time::timeout(bounds.idle, pace).await.is_err();
            if gone {
                // It must not take what it has for the whole.
                let _gone = sender.send(Err("the answer was not taken in time".into()));
            }
        }
    };
    let body = kept.map(|frames| joined(&frames));
    Captured { body, has_body: total > 0, trailers, complete, rest: Rest::Tail(Tail { sender, last }) }
}

/// Waits until the client has taken all but a few frames, or has gone.
async fn wait_for_client(
    sender: &mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>,
    taken: &Semaphore,
    lag: &mut usize,
) {
    while *lag > LAG_FRAMES_MAX {
        tokio::select! {
            permit = taken.acquire() => {
                if let Ok(permit) = permit {
                    permit.forget();
                }
                *lag -= 1;
            }
            () = sender.closed() => {
                *lag = 0;
            }
        }
    }
}

async fn next<R>(mut body: std::pin::Pin<&mut R>, deadline: Instant) -> Result<Option<Frame<Bytes>>, BoxError>
where
    R: HttpBody<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    match tokio::time::timeout_at(deadline, body.frame()).await {
        Ok(Some(Ok(frame))) => Ok(Some(frame)),
        Ok(Some(Err(error))) => Err(error.into()),
        Ok(None) => Ok(None),
        Err(_) => Err("the upstream's answer did not end in time".into()),
    }
}

fn joined(frames: &[Bytes]) -> Bytes {
    match frames {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let mut all = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|frame| all.extend_from_slice(frame));
            all.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstreams_word_is_read_and_nonsense_is_none() {
        assert_eq!(parse_outcome("record"), Some((Class::Record, None)));
        assert_eq!(parse_outcome("release"), Some((Class::Release, None)));
        assert_eq!(parse_outcome("fail; retention=3600"), Some((Class::Fail, Some(Duration::from_secs(3600)))));
        assert_eq!(parse_outcome("record;retention=x"), Some((Class::Record, None)));
        assert_eq!(parse_outcome("retry"), None);
    }

    #[test]
    fn a_status_in_the_head_of_a_call_counts_only_where_nothing_follows() {
        let route = Route::new("default");
        let fields = |status: Option<&'static str>| {
            let mut fields = HeaderMap::new();
            if let Some(status) = status {
                fields.insert("grpc-status", http::HeaderValue::from_static(status));
            }
            fields
        };
        let (recorded, released, unknown) = (Class::Record, Class::Release, Class::Unknown);
        for (head, trailers, has_body, want) in [
            (Some("0"), None, false, recorded),
            (Some("10"), None, false, released),
            (Some("0"), None, true, unknown),
            (Some("0"), Some(Some("10")), true, released),
            (Some("0"), Some(None), false, unknown),
            (None, Some(Some("0")), true, recorded),
            (None, None, false, unknown),
        ] {
            let plan = plan(StatusCode::OK, &mut fields(head), &route, false, true);
            assert_eq!(plan.at_head(), None);
            let judged = plan.at_end(trailers.map(fields).as_mut(), has_body, &route);
            assert_eq!(judged.class, want, "{head:?} {trailers:?} {has_body}");
        }
    }
}
