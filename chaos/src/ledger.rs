//! The upstream: a process of its own that writes each effect down, syncs it, and only then answers as it was told to.
//!
//! What it does with the nth dispatch of an operation is the nth word of the request's `Chaos-Script` (`busy`, `ok:40`:
//! after 40 ms), `ok` behind its end. It is never killed, so that its file is the truth.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::history::{Act, Dispatch, Operation, Said, digest};

/// Tells the upstream what to do.
pub(crate) const SCRIPT: &str = "chaos-script";
/// Which life of the process a request was sent to.
pub(crate) const LIFE: &str = "chaos-life";
/// Names the dispatch in an answer.
pub(crate) const DISPATCH: &str = "chaos-dispatch";
/// Answered once every request that had reached this machine is in the ledger.
pub(crate) const QUIET: &str = "/quiet";

const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 64;
/// Longer than what the proxy holds: it streams.
const STREAM_BYTES: usize = 70 << 10;

/// What the upstream is to do, and after how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// What.
    pub(crate) act: Act,
    /// After how many milliseconds it answers; the effect comes first.
    pub(crate) after_ms: u64,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The name that serde writes is the only one.
        let name = serde_json::to_string(&self.act).unwrap_or_default();
        write!(f, "{}:{}", name.trim_matches('"'), self.after_ms)
    }
}

/// Reads a script; what cannot be read is `ok` at once.
#[must_use]
pub(crate) fn script(text: &str) -> Vec<Step> {
    let step = |word: &str| {
        let (act, after) = word.split_once(':').unwrap_or((word, "0"));
        let act = serde_json::from_value(act.into()).unwrap_or(Act::Ok);
        Step { act, after_ms: after.parse().unwrap_or(0) }
    };
    text.split(',').filter(|word| !word.is_empty()).map(step).collect()
}

/// Serves until it is killed. Prints its address first.
///
/// # Errors
/// Where the file cannot be made, or the port not be bound.
pub(crate) async fn serve(file: &Path) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("the ledger cannot listen")?;
    let book = Book { file: File::create(file).with_context(|| file.display().to_string())?, ..Book::empty()? };
    let shared = Arc::new(Shared { book: Mutex::new(book), reading: AtomicUsize::new(0), changed: Notify::new() });
    println!("ledger ready {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let reading = Reading::new(&shared);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // A proxy that went away is what this is about.
            let _gone = answer_all(stream, &shared, reading).await;
        });
    }
}

struct Shared {
    book: Mutex<Book>,
    /// Connections that may hold a request which is not in the ledger yet.
    reading: AtomicUsize,
    changed: Notify,
}

/// A connection that may hold such a request.
struct Reading(Arc<Shared>);

impl Reading {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.reading.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

struct Book {
    file: File,
    next: u64,
    times: HashMap<Operation, usize>,
}

impl Book {
    fn empty() -> anyhow::Result<Self> {
        Ok(Self { file: File::open("/dev/null")?, next: 0, times: HashMap::new() })
    }

    /// Writes a dispatch down, for good.
    fn enter(&mut self, request: &Request) -> std::io::Result<(Dispatch, Step)> {
        let operation = Operation {
            route: request.path.clone(),
            caller: request.header("authorization").to_owned(),
            key: request.header("idempotency-key").to_owned(),
        };
        let times = self.times.entry(operation.clone()).or_default();
        let step = script(request.header(SCRIPT)).get(*times).copied().unwrap_or(Step { act: Act::Ok, after_ms: 0 });
        *times += 1;
        let number = self.next;
        self.next += 1;
        let said = whole(step.act).then(|| Said { status: status(step.act), body: digest(&body(step.act, number)) });
        let dispatch = Dispatch {
            number,
            attempt: request.header("idempotency-attempt").parse().unwrap_or(0),
            fence: request.header("idempotency-fence").parse().unwrap_or(0),
            at_us: crate::traffic::wall_us(),
            life: request.header(LIFE).parse().unwrap_or(usize::MAX),
            body: digest(&request.body),
            act: step.act,
            operation,
            said,
        };
        let mut line = serde_json::to_vec(&dispatch)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        Ok((dispatch, step))
    }
}

async fn answer_all(mut stream: TcpStream, shared: &Arc<Shared>, first: Reading) -> anyhow::Result<()> {
    let mut buffer = Vec::new();
    let mut reading = Some(first);
    loop {
        let Some(request) = Request::read(&mut stream, &mut buffer).await? else { return Ok(()) };
        if request.path == QUIET {
            quiet(shared).await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
            continue;
        }
        let book = Arc::clone(shared);
        let entered = tokio::task::spawn_blocking(move || {
            book.book.lock().unwrap_or_else(PoisonError::into_inner).enter(&request)
        });
        let (dispatch, step) = entered.await??;
        drop(reading.take());
        tokio::time::sleep(Duration::from_millis(step.after_ms)).await;
        if !act(&mut stream, step.act, dispatch.number).await? {
            return Ok(());
        }
        reading = Some(Reading::new(shared));
    }
}

/// Waits until nobody but the one who asks may hold a request that is not written down.
async fn quiet(shared: &Shared) {
    loop {
        let changed = shared.changed.notified();
        let mut changed = std::pin::pin!(changed);
        changed.as_mut().enable();
        if shared.reading.load(Ordering::SeqCst) <= 1 {
            return;
        }
        changed.await;
    }
}

fn whole(act: Act) -> bool {
    !matches!(act, Act::Cut | Act::CutMid)
}

fn status(act: Act) -> u16 {
    match act {
        Act::Ok | Act::Stream | Act::Cut | Act::CutMid => 201,
        Act::Error => 500,
        Act::Busy | Act::Bare => 503,
        Act::Limited => 429,
    }
}

fn body(act: Act, number: u64) -> Vec<u8> {
    let mut body = format!("{{\"dispatch\":{number}}}\n").into_bytes();
    let length = if act == Act::Stream { STREAM_BYTES } else { 64 + usize::try_from(number % 900).unwrap_or(0) };
    let filler = number.to_string().into_bytes();
    body.extend(filler.iter().cycle().take(length));
    body
}

/// Answers, or does not. False: the connection is to be cut.
async fn act(stream: &mut TcpStream, act: Act, number: u64) -> std::io::Result<bool> {
    if act == Act::Cut {
        return Ok(false);
    }
    let body = body(act, number);
    let more = match act {
        Act::Busy | Act::Limited => "Retry-After: 0\r\n",
        _ => "",
    };
    let length = if act == Act::Stream {
        "Transfer-Encoding: chunked\r\n".to_owned()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    let head = format!("HTTP/1.1 {} Whatever\r\n{DISPATCH}: {number}\r\n{more}{length}\r\n", status(act));
    stream.write_all(head.as_bytes()).await?;
    match act {
        Act::CutMid => {
            stream.write_all(body.get(..body.len() / 2).unwrap_or_default()).await?;
            return Ok(false);
        }
        Act::Stream => {
            for chunk in body.chunks(8 << 10) {
                stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                stream.write_all(chunk).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
        _ => stream.write_all(&body).await?,
    }
    Ok(true)
}

/// A request as it came.
struct Request {
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The next request of a connection; none at its end.
    async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<Option<Self>> {
        loop {
            if let Some((request, length)) = Self::parse(buffer)? {
                buffer.drain(..length);
                return Ok(Some(request));
            }
            anyhow::ensure!(buffer.len() < HEAD_BYTES_MAX, "a request of more than {HEAD_BYTES_MAX} bytes");
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The request at the beginning of `bytes`, and its length, where it is there whole.
    fn parse(bytes: &[u8]) -> anyhow::Result<Option<(Self, usize)>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(start) = head.parse(bytes)? else { return Ok(None) };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let request = Self {
            path: head.path.unwrap_or_default().to_owned(),
            headers: head.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect(),
            body: Vec::new(),
        };
        anyhow::ensure!(request.header("transfer-encoding").is_empty(), "a request in chunks, where none is sent");
        let end = start + request.header("content-length").parse::<usize>().unwrap_or(0);
        let body = bytes.get(start..end).map(<[u8]>::to_vec);
        Ok(body.map(|body| (Self { body, ..request }, end)))
    }
}

/// The ledger as a process, and its file.
pub(crate) struct Ledger {
    child: tokio::process::Child,
    /// Where the proxy finds it.
    pub(crate) address: SocketAddr,
    file: PathBuf,
}

impl Ledger {
    /// Starts it, with its file in `folder`.
    ///
    /// # Errors
    /// Where this program cannot be started again.
    pub(crate) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join("ledger");
        let mut child = tokio::process::Command::new(std::env::current_exe()?)
            .arg("ledger")
            .arg(&file)
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the ledger")?;
        let mut line = String::new();
        let mut out = tokio::io::BufReader::new(child.stdout.take().context("its output")?);
        tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line).await?;
        let address = line.trim().strip_prefix("ledger ready ").context("the ledger did not get ready")?.parse()?;
        Ok(Self { child, address, file })
    }

    /// Waits until whatever a process that is gone has sent is in the ledger.
    ///
    /// # Errors
    /// Where it does not answer.
    pub(crate) async fn quiet(&self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(format!("GET {QUIET} HTTP/1.1\r\nHost: ledger\r\n\r\n").as_bytes()).await?;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(crate::PATIENCE, stream.read_exact(&mut answer));
        read.await.context("the ledger does not come to rest")??;
        Ok(())
    }

    /// Ends it, and reads what it wrote.
    ///
    /// # Errors
    /// Where a line cannot be read.
    pub(crate) async fn end(mut self) -> anyhow::Result<Vec<Dispatch>> {
        self.child.kill().await?;
        let text = std::fs::read_to_string(&self.file).with_context(|| self.file.display().to_string())?;
        text.lines().map(|line| serde_json::from_str(line).context("a line of the ledger")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_as_it_is_written() {
        let steps = vec![Step { act: Act::CutMid, after_ms: 5 }, Step { act: Act::Busy, after_ms: 0 }];
        let text = steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        assert_eq!(text, "cut-mid:5,busy:0");
        assert_eq!(script(&text), steps);
        assert_eq!(script(""), []);
    }

    #[test]
    fn a_request_is_read_once_it_is_there_whole() {
        let whole = b"POST /pay HTTP/1.1\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\n{}GET";
        assert!(Request::parse(&whole[..whole.len() - 4]).unwrap().is_none());
        let (request, length) = Request::parse(whole).unwrap().unwrap();
        assert_eq!(
            (request.header("idempotency-key"), request.body.as_slice(), length),
            ("k", &b"{}"[..], whole.len() - 3)
        );
        assert!(Request::parse(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
