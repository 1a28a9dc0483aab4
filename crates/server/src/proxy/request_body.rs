//! The body of a client's request, read a little further when nobody wants it.
//!
//! Over HTTP/2, a body that is dropped before its end resets the stream. A client that is still sending a short body
//! then may take the answer for lost (RFC 9113 section 8.1 has the answer count; curl before 8 fails with "stream
//! error"). So what is about to come is read and thrown away.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// How much is read, and for how long. A longer body is cut off, as its client must expect.
const UNWANTED_BYTES_MAX: usize = 64 << 10;
const UNWANTED_FOR: Duration = Duration::from_secs(1);

/// What a client sends. Behind `proxy`, any body will do.
#[derive(Debug)]
pub struct RequestBody {
    /// None once it was dropped.
    body: Option<Incoming>,
    resets: bool,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, version: Version) -> Self {
        Self { body: Some(body), resets: version == Version::HTTP_2 }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| self.resets && !body.is_end_stream()) else { return };
        // Without a runtime the process is going, and its connections with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(UNWANTED_FOR, async move {
            let mut left = UNWANTED_BYTES_MAX;
            while let Some(Ok(frame)) = body.frame().await {
                let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { break };
                left = rest;
            }
        }));
    }
}
