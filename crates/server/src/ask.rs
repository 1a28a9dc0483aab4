//! The client that questions are asked with: `auth` and `probe`.
//!
//! It goes the way of the upstreams, with connections of its own. That way never sends a request twice; a question has no
//! effect, so here one that broke off is asked once more.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use onceward::{
    BoxError,
    ask::{Answer, Asking, Client},
};
use tower::Service;

use crate::proxy::{Upstream, UpstreamOptions, UpstreamUrlError};

/// Asks one server over HTTP/1.1, with pooled connections. Clones share them.
#[derive(Clone, Debug)]
pub struct Questions(Upstream<Empty<Bytes>>);

impl Questions {
    /// Asks `server`, which is scheme, host and port.
    ///
    /// # Errors
    ///
    /// It names none that can be asked.
    pub fn new(server: &str, options: &UpstreamOptions) -> Result<Self, UpstreamUrlError> {
        Upstream::new(server, options).map(Self)
    }
}

impl Client for Questions {
    fn ask(&self, question: Request<()>, body_bytes_max: usize) -> Asking {
        let mut upstream = self.0.clone();
        Box::pin(async move {
            // The server may have closed a kept connection just then.
            let again = question.clone();
            let response = match upstream.call(question.map(|()| Empty::new())).await {
                Err(error) if !error.not_sent() => upstream.call(again.map(|()| Empty::new())).await,
                first => first,
            };
            let (parts, body) = response?.into_parts();
            let body = read(body, body_bytes_max).await?;
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        })
    }
}

/// The whole body, or `None` where it is longer. A longer one is not read to its end: its connection is closed.
async fn read<B>(body: B, bytes_max: usize) -> Result<Option<Bytes>, BoxError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    if usize::try_from(body.size_hint().lower()).is_ok_and(|least| least > bytes_max) {
        return Ok(None);
    }
    let mut body = pin!(body);
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Into::into)?.into_data() {
            if all.len() + data.len() > bytes_max {
                return Ok(None);
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(Some(all.freeze()))
}
