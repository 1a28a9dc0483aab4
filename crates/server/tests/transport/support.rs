//! What the transport's tests share: the real proxy on port 0, and an upstream that records bytes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use onceward_server::proxy::{
    self, Limits, Passthrough, PassthroughTimes, Report, RequestBody, Trusted, Upstream, UpstreamOptions,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::Service;

/// Against a test that hangs; no test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn limits() -> Limits {
    Limits::default()
}

pub(crate) fn times() -> PassthroughTimes {
    PassthroughTimes::default()
}

/// A proxy on the plain path, running.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Report>,
}

impl Proxy {
    pub(crate) async fn before(upstream: SocketAddr) -> Self {
        Self::with(upstream, Limits::default(), PassthroughTimes::default(), &[]).await
    }

    pub(crate) async fn with(upstream: SocketAddr, limits: Limits, times: PassthroughTimes, trusted: &[&str]) -> Self {
        let upstream = Upstream::new(&format!("http://{upstream}"), &UpstreamOptions::default()).unwrap();
        Self::around(Passthrough::new(upstream, times), limits, trusted).await
    }

    /// The transport around any service.
    pub(crate) async fn around<S, B>(service: S, limits: Limits, trusted: &[&str]) -> Self
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let trusted = Trusted::parse(trusted).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, asked) = oneshot::channel();
        let task = tokio::spawn(proxy::serve(listener, service, limits, trusted, async {
            let _ = asked.await;
        }));
        Self { address, shutdown, task }
    }

    /// Asks for the end and gives the report, once there is one.
    pub(crate) fn stop(self) -> JoinHandle<Report> {
        let _ = self.shutdown.send(());
        self.task
    }

    pub(crate) async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), buffer: Vec::new(), proxy: None }
    }
}

/// A client that writes bytes and reads answers with a `Content-Length`.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
    /// A proxy to keep running as long as this client, for it ends when it is dropped.
    pub(crate) proxy: Option<Proxy>,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The values of a field, lines in order.
    pub(crate) fn field(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }
}

/// The values of a field in a head, lines in order.
pub(crate) fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

impl Client {
    /// The other end of a connection: an upstream played by hand.
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let accepted = tokio::time::timeout(PATIENCE, listener.accept());
        let (stream, _) = accepted.await.expect("a connection").unwrap();
        Self { stream, buffer: Vec::new(), proxy: None }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The proxy may have refused and closed already; the answers tell.
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The next answer, or `None` at the connection's end.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        tokio::time::timeout(PATIENCE, self.read_answer()).await.expect("an answer or an end")
    }

    async fn read_answer(&mut self) -> Option<Answer> {
        let head_end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more().await {
                assert!(self.buffer.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&self.buffer));
                return None;
            }
        };
        let head = String::from_utf8(self.buffer.drain(..head_end).collect()).expect("heads are ASCII");
        let status = head[9..12].parse().expect("a status");
        if status < 200 {
            return Some(Answer { status, head, body: Vec::new() });
        }
        let length: usize = match fields(&head, "content-length")[..] {
            [length] => length.parse().expect("a length"),
            _ => panic!("expected one length in {head}"),
        };
        while self.buffer.len() < length {
            assert!(self.read_more().await, "the answer ends early");
        }
        let body = self.buffer.drain(..length).collect();
        Some(Answer { status, head, body })
    }

    /// False at the end of the stream, which a reset is too.
    pub(crate) async fn read_more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(read) if read > 0)
    }

    /// Reads until `bytes` have come.
    pub(crate) async fn read_until(&mut self, bytes: &[u8]) {
        let all = async {
            while find(&self.buffer, bytes).is_none() {
                assert!(self.read_more().await, "the end came before {:?}", String::from_utf8_lossy(bytes));
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the bytes");
    }
}

/// Where `needle` begins.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// One request as an upstream got it.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) head: String,
    pub(crate) body: Bytes,
}

/// An upstream that keeps every byte, and answers each complete request with `200 ok`. It reads strictly: a head with
/// anything but CRLF lines, or without exactly one framing, is a violation.
#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
pub(crate) struct Log {
    /// Complete requests, in order.
    pub(crate) requests: Vec<Received>,
    /// Connections that ended inside a request.
    pub(crate) cut: usize,
    /// What no strict reader takes.
    pub(crate) violations: Vec<String>,
}

impl Recorder {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorder = Self { address: listener.local_addr().unwrap(), log: Arc::default() };
        let log = Arc::clone(&recorder.log);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(record(stream, Arc::clone(&log)));
            }
        });
        recorder
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.log.lock().unwrap())
    }
}

async fn record(mut stream: TcpStream, log: Arc<Mutex<Log>>) {
    let mut buffer = Vec::new();
    loop {
        match strict(&buffer) {
            Ok(Some((received, used))) => {
                buffer.drain(..used);
                log.lock().unwrap().requests.push(received);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
            Ok(None) => {
                if !matches!(stream.read_buf(&mut buffer).await, Ok(read) if read > 0) {
                    if !buffer.is_empty() {
                        log.lock().unwrap().cut += 1;
                    }
                    return;
                }
            }
            Err(violation) => {
                log.lock().unwrap().violations.push(violation);
                return;
            }
        }
    }
}

/// The first complete request of `buffer` and its length.
fn strict(buffer: &[u8]) -> Result<Option<(Received, usize)>, String> {
    let Some(head_end) = find(buffer, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    for line in head.split("\r\n") {
        if line.contains(['\r', '\n', '\0']) || line.starts_with([' ', '\t']) || line.is_empty() {
            return Err(format!("line {line:?} in {head:?}"));
        }
    }
    if fields(&head, "host").len() != 1 {
        return Err(format!("not one Host in {head:?}"));
    }
    let rest = &buffer[head_end + 4..];
    let (body, used) = match (&fields(&head, "content-length")[..], &fields(&head, "transfer-encoding")[..]) {
        ([], []) => (Vec::new(), 0),
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| head.clone())?;
            match rest.get(..length) {
                None => return Ok(None),
                Some(body) => (body.to_vec(), length),
            }
        }
        ([], ["chunked"]) => match strict_chunks(rest)? {
            None => return Ok(None),
            Some(read) => read,
        },
        _ => return Err(format!("no single framing in {head:?}")),
    };
    let received = Received { head, body: body.into() };
    Ok(Some((received, head_end + 4 + used)))
}

fn strict_chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
        let size = usize::from_str_radix(&text, 16).map_err(|_| format!("chunk size {text:?}"))?;
        at += end + 2;
        if size == 0 {
            // Trailers, if any, end with an empty line.
            let rest = &bytes[at..];
            if rest.starts_with(b"\r\n") {
                return Ok(Some((body, at + 2)));
            }
            return Ok(find(rest, b"\r\n\r\n").map(|end| (body, at + end + 4)));
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else {
            return Ok(None);
        };
        if !chunk.ends_with(b"\r\n") {
            return Err(format!("chunk without its end: {chunk:?}"));
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
}
