//! The client that questions are asked with: `auth` and `probe`.
//!
//! Apart from the way to the upstreams, which never sends a request twice: a question has no effect, so hyper-util's
//! client may send it again over another connection.

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use onceward::{
    BoxError,
    ask::{Answer, Asking, Client},
};

/// For a connection; the question has a limit of its own for all of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Below what servers in use close idle connections after.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const IDLE_PER_HOST_MAX: usize = 64;
/// Of an answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Asks over HTTP/1.1, with pooled connections. Clones share them.
#[derive(Clone, Debug)]
pub struct Questions(HyperClient<HttpConnector, Empty<Bytes>>);

impl Default for Questions {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .build(connector);
        Self(client)
    }
}

impl Client for Questions {
    fn ask(&self, question: Request<()>, body_bytes_max: usize) -> Asking {
        let answer = self.0.request(question.map(|()| Empty::new()));
        Box::pin(async move {
            let (parts, body) = answer.await?.into_parts();
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
