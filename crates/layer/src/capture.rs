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
    replay::{self, OUTCOME},
    route::Route,
};

/// Frames that the client may lag behind where an answer is not kept.
const LAG_FRAMES_MAX: usize = 8;

/// What the answer's head says of the key.
pub(crate) struct Plan {
    pub(crate) class: Class,
    pub(crate) retention: Option<Duration>,
    pub(crate) is_event_stream: bool,
}

/// Reads the head, and takes out of it what only Onceward says.
pub(crate) fn plan(status: StatusCode, headers: &mut HeaderMap, route: &Route, unverified_principal: bool) -> Plan {
    let said = headers.get(OUTCOME).and_then(|value| value.to_str().ok()).and_then(parse_outcome);
    replay::strip_own(headers, route);
    let lookup = |name: &str| headers.get(name).map(http::HeaderValue::as_bytes);
    let (class, retention) = match said {
        Some((class, retention)) => (class, retention),
        None => (route.policy.recording.class(status.as_u16(), unverified_principal, lookup), None),
    };
    let is_event_stream = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("text/event-stream"));
    Plan { class, retention, is_event_stream }
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
}

/// An answer that was read to its end, or that broke off.
pub(crate) struct Captured {
    /// The body, where it is kept.
    pub(crate) body: Option<Bytes>,
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

    /// The answer is not the key's: the client must not take it for complete.
    pub(crate) fn break_off(self, why: &'static str) {
        let _gone = self.sender.send(Err(why.into()));
    }
}

/// Reads an answer. `stream` is given the head of one that streams, at once.
pub(crate) async fn capture<R>(
    response: Response<R>,
    plan: &Plan,
    bounds: Bounds,
    stream: impl FnOnce(Response<Body>),
) -> Captured
where
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let length = body.size_hint().exact();
    if length.is_some_and(|length| length <= bounds.held_bytes) && !plan.is_event_stream {
        return hold(parts, body, bounds).await;
    }
    let (sender, frames) = mpsc::unbounded_channel();
    let taken = Arc::new(Semaphore::new(0));
    let client = Body::channel(ChannelBody { frames, taken: Arc::clone(&taken), left: length });
    stream(Response::from_parts(parts, client));
    let keeps = !plan.is_event_stream && matches!(plan.class, Class::Record | Class::Fail);
    tee(body, length, sender, &taken, keeps, bounds).await
}

async fn hold<R>(parts: Parts, body: R, bounds: Bounds) -> Captured
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
    Captured { body: Some(joined(&frames)), trailers, complete, rest: Rest::Held(parts, frames) }
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
    Captured { body, trailers, complete, rest: Rest::Tail(Tail { sender, last }) }
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
}
