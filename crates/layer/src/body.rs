//! The one body type of the layer, for requests on their way in and answers on their way out.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::{replay, route::Route, spool::SpoolReader};

/// Any error, as tower services pass them on.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or an answer's body: in memory, spooled to disk, or streaming.
pub struct Body(Kind);

/// What is rare or large is on the heap: a request moves many times on its way, and its body with it.
enum Kind {
    /// Frames that are at hand.
    Frames { next: Bytes, rest: VecDeque<Bytes>, left: u64, trailers: Option<Box<HeaderMap>> },
    /// Another body, as it comes.
    Stream(Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError> + Send>>),
    /// A request that was spooled.
    Spooled { reader: Box<SpoolReader>, trailers: Option<Box<HeaderMap>> },
    /// An answer that is read elsewhere, at its own speed.
    Channel(Box<ChannelBody>),
}

/// The client's end of an answer that a capture reads.
pub(crate) struct ChannelBody {
    pub(crate) frames: mpsc::UnboundedReceiver<Result<Frame<Bytes>, BoxError>>,
    /// Told after each frame that was taken, so that the capture can wait for the client.
    pub(crate) taken: Arc<tokio::sync::Semaphore>,
    /// Bytes still to come, where the length is known.
    pub(crate) left: Option<u64>,
}

impl Body {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// Bytes at hand.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        Self::frames(std::iter::once(bytes), None)
    }

    /// Another body, untouched.
    pub fn wrap<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Kind::Stream(Box::pin(Wrapped { body, route: None })))
    }

    /// An answer that is given as it comes, but for what in its trailers only Onceward says.
    pub(crate) fn answer<B>(body: B, route: Arc<Route>) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Kind::Stream(Box::pin(Wrapped { body, route: Some(route) })))
    }

    pub(crate) fn frames(frames: impl IntoIterator<Item = Bytes>, trailers: Option<HeaderMap>) -> Self {
        let mut frames = frames.into_iter().filter(|bytes| !bytes.is_empty());
        let next = frames.next().unwrap_or_default();
        let rest: VecDeque<Bytes> = frames.collect();
        let left = rest.iter().chain([&next]).map(|bytes| bytes.len() as u64).sum();
        Self(Kind::Frames { next, rest, left, trailers: trailers.map(Box::new) })
    }

    pub(crate) fn spooled(reader: SpoolReader, trailers: Option<HeaderMap>) -> Self {
        Self(Kind::Spooled { reader: Box::new(reader), trailers: trailers.map(Box::new) })
    }

    /// The spooled body that nobody has begun to read.
    pub(crate) fn spool(&mut self) -> Option<&mut SpoolReader> {
        match &mut self.0 {
            Kind::Spooled { reader, .. } => Some(reader),
            Kind::Frames { .. } | Kind::Stream(_) | Kind::Channel(_) => None,
        }
    }

    pub(crate) fn channel(body: ChannelBody) -> Self {
        Self(Kind::Channel(Box::new(body)))
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.0 {
            Kind::Frames { .. } => "Frames",
            Kind::Stream(_) => "Stream",
            Kind::Spooled { .. } => "Spooled",
            Kind::Channel(_) => "Channel",
        };
        write!(f, "Body::{kind}")
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Frames { next, rest, left, trailers } => {
                if !next.is_empty() {
                    let following = rest.pop_front().unwrap_or_default();
                    let bytes = std::mem::replace(next, following);
                    *left -= bytes.len() as u64;
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            Kind::Stream(body) => body.as_mut().poll_frame(cx),
            Kind::Spooled { reader, trailers } => match std::task::ready!(reader.poll_next(cx)) {
                Some(Ok(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
                None => Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers)))),
            },
            Kind::Channel(body) => {
                let frame = std::task::ready!(body.frames.poll_recv(cx));
                if let Some(Ok(frame)) = &frame {
                    body.taken.add_permits(1);
                    if let (Some(left), Some(bytes)) = (&mut body.left, frame.data_ref()) {
                        *left = left.saturating_sub(bytes.len() as u64);
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Frames { next, trailers, .. } => next.is_empty() && trailers.is_none(),
            Kind::Stream(body) => body.is_end_stream(),
            Kind::Spooled { .. } => false,
            // Only the end of the channel says that the answer is complete.
            Kind::Channel(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            // With trailers to follow, HTTP/1 needs the chunked coding: no length is said.
            Kind::Frames { left, trailers: None, .. } => SizeHint::with_exact(*left),
            Kind::Frames { .. } => SizeHint::default(),
            Kind::Stream(body) => body.size_hint(),
            Kind::Spooled { reader, trailers: None } => SizeHint::with_exact(reader.left()),
            Kind::Spooled { .. } => SizeHint::default(),
            Kind::Channel(body) => body.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

pin_project_lite::pin_project! {
    struct Wrapped<B> {
        #[pin]
        body: B,
        // Of an answer.
        route: Option<Arc<Route>>,
    }
}

impl<B> HttpBody for Wrapped<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let frame = std::task::ready!(this.body.poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let mut frame = frame.map_err(Into::into)?;
            if let (Some(route), Some(trailers)) = (this.route, frame.trailers_mut()) {
                replay::strip_own(trailers, route);
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
