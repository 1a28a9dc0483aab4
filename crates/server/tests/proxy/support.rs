//! What the tests from outside share: the real binary as a process, an upstream that counts effects, and clients that
//! see every byte.

use std::{
    io::{BufRead, BufReader, Read, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, oneshot},
    task::JoinHandle,
};

#[path = "database.rs"]
mod database;

use self::database::Database;

/// The name in metrics of the store that has the default route's records.
pub(crate) fn store_name() -> &'static str {
    database::store_name()
}

/// The name in metrics of the store as a whole.
pub(crate) fn whole_stores_name() -> &'static str {
    database::whole_stores_name()
}

/// Against a test that hangs; no test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `event`, which will come.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

/// Asks again until the answer is yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let asking = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(what, asking).await;
}

// ===== the gateway =====

/// How a gateway is started.
#[derive(Clone)]
pub(crate) struct Start {
    upstream: Option<SocketAddr>,
    config: Option<String>,
    folder: Arc<TempDir>,
    database: Arc<Database>,
    env: Vec<(String, String)>,
    args: Vec<String>,
    by_file_only: bool,
    binary: Option<String>,
}

impl Start {
    /// On a new data folder.
    pub(crate) fn new() -> Self {
        let (folder, database) = (Arc::new(tempfile::tempdir().unwrap()), Arc::default());
        Self {
            upstream: None,
            config: None,
            folder,
            database,
            env: Vec::new(),
            args: Vec::new(),
            by_file_only: false,
            binary: None,
        }
    }

    pub(crate) fn before(upstream: &Upstream) -> Self {
        Self { upstream: Some(upstream.address), ..Self::new() }
    }

    pub(crate) fn before_address(upstream: SocketAddr) -> Self {
        Self { upstream: Some(upstream), ..Self::new() }
    }

    /// With this file; its upstream named `api` is added.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Without flags for what the file can say.
    pub(crate) fn by_file_only(mut self) -> Self {
        self.by_file_only = true;
        self
    }

    /// Another build.
    pub(crate) fn binary(mut self, file: String) -> Self {
        self.binary = Some(file);
        self
    }

    pub(crate) fn failpoint(self, failpoint: &str) -> Self {
        self.env("ONCEWARD_FAILPOINT", failpoint)
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Where the store is.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where the configuration is, once it was started with one.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("onceward.toml")
    }

    fn command(&self) -> Command {
        let mut command = self.binary.as_deref().map_or_else(onceward, program);
        command.arg("proxy");
        if !self.by_file_only {
            command.arg("--data").arg(self.data());
        }
        if !self.by_file_only && !self.args.iter().any(|arg| arg == "--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if !self.by_file_only && !self.args.iter().any(|arg| arg == "--admin") {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        match (&self.config, self.upstream) {
            (Some(text), upstream) => {
                let mut text = text.clone();
                if let Some(upstream) = upstream {
                    text.push_str(&format!("\n[[upstream]]\nname = \"api\"\nurl = \"http://{upstream}\"\n"));
                    // Where the test says what an upstream is besides its address.
                    text = text.replace("@upstream", &format!("http://{upstream}"));
                }
                std::fs::write(self.config_file(), text).unwrap();
                command.arg("--config").arg(self.config_file());
            }
            (None, Some(upstream)) => {
                command.args(["--upstream", &format!("http://{upstream}")]);
            }
            (None, None) => {}
        }
        command.envs(self.database.env(self.folder.path(), self.config.as_deref().unwrap_or_default()));
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it, and waits until it is ready.
    pub(crate) async fn start(&self) -> Gateway {
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().unwrap();
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr);
            let mut line = String::new();
            while matches!(lines.read_line(&mut line), Ok(1..)) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let stdout = child.stdout.take().unwrap();
        let (ready, is_ready) = oneshot::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _gone = ready.send(lines.next());
            for _line in lines {}
        });
        let first = soon("the ready line", is_ready).await.unwrap();
        let Some(Ok(line)) = first else {
            let _ended = child.wait();
            panic!("it did not start: {}", log.lock().unwrap());
        };
        let words: Vec<&str> = line.split(' ').collect();
        let ["onceward", "ready", proxy, admin] = words[..] else { panic!("not the ready line: {line}") };
        let address = |word: &str, name: &str| word.strip_prefix(name).expect("an address").parse().unwrap();
        Gateway {
            proxy: address(&proxy.replace("=https://", "=http://"), "proxy=http://"),
            admin: address(admin, "admin=http://"),
            start: self.clone(),
            child: Some(child),
            log,
        }
    }

    /// Starts it where it will not start: its exit code and what it said on stderr.
    pub(crate) async fn refused(&self) -> (i32, String) {
        let output = output(self.command()).await;
        assert!(output.stdout.is_empty(), "a process that does not serve says nothing on stdout");
        (output.status.code().expect("an exit code"), String::from_utf8(output.stderr).unwrap())
    }
}

/// The binary, without a setting of whoever runs the tests.
pub(crate) fn onceward() -> Command {
    program(env!("CARGO_BIN_EXE_onceward"))
}

fn program(file: &str) -> Command {
    let mut command = Command::new(file);
    for (name, _) in std::env::vars() {
        if name.starts_with("ONCEWARD_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
pub(crate) async fn output(command: Command) -> Output {
    output_of(command, Vec::new()).await
}

/// Runs a command to its end, with this on stdin.
pub(crate) async fn output_of(mut command: Command, stdin: Vec<u8>) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pid = rustix::process::Pid::from_child(&child);
    let run = tokio::task::spawn_blocking(move || {
        let mut input = child.stdin.take().unwrap();
        // It may end without having read all.
        let _gone = input.write_all(&stdin);
        drop(input);
        child.wait_with_output().unwrap()
    });
    match tokio::time::timeout(PATIENCE, run).await {
        Ok(output) => output.unwrap(),
        Err(_) => {
            // Else the runtime would wait for it without end.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("{command:?} did not end");
        }
    }
}

/// A running gateway; killed when dropped.
pub(crate) struct Gateway {
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) start: Start,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
}

impl Gateway {
    /// What it has logged until now: lines gather before they are written, so what it has just done may not be there yet.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Until `words` are in its log, which is answered.
    pub(crate) async fn says(&self, words: &str) -> String {
        until(words, async || self.log().contains(words)).await;
        self.log()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The most memory that it ever had, in bytes.
    pub(crate) fn resident_max(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.start.data().join("admin.token")).unwrap().trim().to_owned()
    }

    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// SIGHUP: the configuration is to be read again.
    pub(crate) fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        soon("its end", tokio::task::spawn_blocking(move || child.wait())).await.unwrap().unwrap()
    }

    /// `kill -9`, and its end.
    pub(crate) async fn kill(&mut self) {
        self.child.as_mut().expect("it runs").kill().unwrap();
        self.ended().await;
    }

    /// The same again, on the same folder, without the failpoint.
    pub(crate) async fn restart(mut self) -> Self {
        if self.child.is_some() {
            self.kill().await;
        }
        let mut start = self.start.clone();
        start.env.retain(|(name, _)| name != "ONCEWARD_FAILPOINT");
        start.start().await
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.proxy).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect().await;
        client.send(request).await;
        client.answer().await
    }

    /// A POST of JSON with a key.
    pub(crate) async fn post(&self, path: &str, key: &str, body: &str) -> Answer {
        self.ask(post(path, key, body)).await
    }

    /// One request to the admin listener.
    pub(crate) async fn admin(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let host = self.admin.to_string();
        let mut all = vec![("Host", host.as_str())];
        if !body.is_empty() {
            all.push(("Content-Type", "application/json"));
        }
        all.extend_from_slice(headers);
        let mut client = Client::connect(self.admin).await;
        client.send(raw_request(method, path, &all, body.as_bytes())).await;
        client.answer().await
    }

    pub(crate) async fn metrics(&self) -> String {
        String::from_utf8(self.admin("GET", "/metrics", &[], "").await.body).unwrap()
    }

    /// The records, oldest claim first.
    pub(crate) async fn records(&self) -> Vec<Value> {
        let mut list = self.admin("GET", "/records?limit=1000", &[], "").await.json();
        let mut records = list["records"].as_array_mut().map(std::mem::take).unwrap_or_default();
        records.sort_by_key(|record| record["claimed_at"].to_string());
        records
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _gone = child.kill();
            let _ended = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the gateway's log\n{}", self.log());
        }
    }
}

/// Forgets a record, as an operator does.
pub(crate) async fn forget(gateway: &Gateway, record: &str) {
    let token = format!("Bearer {}", gateway.token());
    let done = gateway.admin("DELETE", &format!("/records/{record}"), &[("Authorization", &token)], "").await;
    assert_eq!(done.status, 200, "{done:?}");
}

/// Every file below `folder`, with what is in it.
pub(crate) fn files_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            let mut bytes = Vec::new();
            std::fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
            files.push((path, bytes));
        }
    }
    files
}

// ===== requests and answers =====

/// A request as it stands on the wire, with `Host` and, where there is a body, its length.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut all = vec![("Host", "api.test")];
    all.extend_from_slice(headers);
    raw_request(method, path, &all, body.as_ref())
}

fn raw_request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// A POST of JSON with a key.
pub(crate) fn post(path: &str, key: &str, body: &str) -> Vec<u8> {
    request("POST", path, &[("Idempotency-Key", key), ("Content-Type", "application/json")], body)
}

/// An answer as it stands on the wire, with the length of its body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len().to_string();
    let mut all = headers.to_vec();
    all.push(("Content-Length", &length));
    [head(status, &all).as_slice(), body].concat()
}

/// An answer in chunks, with trailers.
pub(crate) fn chunked(status: u16, headers: &[(&str, &str)], chunks: &[&[u8]], trailers: &[(&str, &str)]) -> Vec<u8> {
    let mut all = headers.to_vec();
    all.push(("Transfer-Encoding", "chunked"));
    let mut bytes = head(status, &all);
    for chunk in chunks {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The head of an answer.
pub(crate) fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

type Fields = Vec<(String, String)>;

/// An answer as a client got it. Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
}

impl Answer {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that stands there once, if at all.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        match self.all(name)[..] {
            [] => None,
            [value] => Some(value),
            ref several => panic!("{name} stands there more than once: {several:?}"),
        }
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Checks that it is a refusal in the form that all have, and gives the last part of its type.
    pub(crate) fn slug(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        for member in ["title", "detail", "instance"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {problem}");
        }
        assert!(problem["retryable"].is_boolean(), "{problem}");
        let kind = problem["type"].as_str().expect("a type");
        kind.strip_prefix("urn:onceward:problem:").expect("our type").to_owned()
    }

    /// What must be the same in a replay: all but what belongs to one exchange, and Onceward's own.
    pub(crate) fn essence(&self) -> (u16, Fields, Vec<u8>, Fields) {
        const LEFT_OUT: &[&str] = &[
            "connection",
            "keep-alive",
            "transfer-encoding",
            "set-cookie",
            "date",
            "server",
            "alt-svc",
            "www-authenticate",
            "x-request-id",
            "idempotent-replayed",
            "idempotency-expires",
            "idempotency-status",
            "idempotency-key-source",
            "content-length",
            "stripe-should-retry",
            "trailer",
        ];
        let headers = self.headers.iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str())).cloned().collect();
        (self.status, headers, self.body.clone(), self.trailers.clone())
    }
}

/// A client that writes bytes and reads bytes.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

/// The head of an answer, its body still to be read.
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: Fields,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // It may have been refused already; the answer tells.
        let _gone = self.stream.write_all(bytes.as_ref()).await;
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        self.try_answer().await.expect("a whole answer")
    }

    /// The next answer, or how far it came where the connection ended before it did.
    pub(crate) async fn try_answer(&mut self) -> Result<Answer, String> {
        soon("an answer", self.read_answer()).await
    }

    async fn read_answer(&mut self) -> Result<Answer, String> {
        let Head { status, headers } = self.read_head().await?;
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, value)| value.clone());
        if headers.iter().any(|(name, _)| name == "transfer-encoding") {
            assert_eq!(length, None, "two framings");
            loop {
                let line = self.take_until(b"\r\n").await?;
                let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).expect("a chunk size");
                if size == 0 {
                    break;
                }
                let chunk = self.take(size + 2).await?;
                body.extend_from_slice(chunk.strip_suffix(b"\r\n").expect("the chunk's end"));
            }
            loop {
                let line = self.take_until(b"\r\n").await?;
                match String::from_utf8(line).unwrap().trim() {
                    "" => break,
                    line => trailers.push(field(line)),
                }
            }
        } else if let Some(length) = length
            && status != 304
        {
            body = self.take(length.parse().expect("a length")).await?;
        } else if !matches!(status, 204 | 304) {
            panic!("an answer {status} without framing: {headers:?}");
        }
        Ok(Answer { status, headers, body, trailers })
    }

    /// The head of the next answer, interim ones left out.
    pub(crate) async fn read_head(&mut self) -> Result<Head, String> {
        loop {
            let bytes = self.take_until(b"\r\n\r\n").await?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut lines = text.trim_end().split("\r\n");
            let line = lines.next().unwrap();
            let status = line.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
            if status >= 200 {
                return Ok(Head { status, headers: lines.map(field).collect() });
            }
        }
    }

    /// Exactly so many bytes.
    pub(crate) async fn take(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < count {
            self.more().await?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Up to and with `end`.
    pub(crate) async fn take_until(&mut self, end: &[u8]) -> Result<Vec<u8>, String> {
        loop {
            if let Some(at) = find(&self.buffer, end) {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), String> {
        let ended = match soon("bytes", self.stream.read_buf(&mut self.buffer)).await {
            Ok(1..) => return Ok(()),
            Ok(0) => "ended".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(format!("{ended} after {:?}", String::from_utf8_lossy(&self.buffer)))
    }

    /// Whether bytes have come that nobody has read, or the end.
    pub(crate) fn has_more(&mut self) -> bool {
        !self.buffer.is_empty() || self.stream.try_read_buf(&mut self.buffer).is_ok()
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header line: {line:?}"));
    (name.to_ascii_lowercase(), value.trim().to_owned())
}

/// Where `needle` begins.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// One request over HTTP/2, without TLS and without asking first.
pub(crate) async fn ask_h2(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://api.test{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = soon("an answer", sender.send_request(request)).await.unwrap();
    let (parts, body) = response.into_parts();
    let collected = soon("its body", body.collect()).await.unwrap();
    let fields = |headers: &http::HeaderMap| -> Fields {
        headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect()
    };
    let trailers = collected.trailers().map(fields).unwrap_or_default();
    driver.abort();
    Answer {
        status: parts.status.as_u16(),
        headers: fields(&parts.headers),
        body: collected.to_bytes().into(),
        trailers,
    }
}

// ===== the upstream =====

/// One request as the upstream got it. Names are in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// The client's key, without quotes.
    pub(crate) fn key(&self) -> &str {
        self.header("idempotency-key").unwrap_or_default().trim_matches('"')
    }
}

/// What an upstream does with a request, in order.
#[derive(Clone)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Waits until the test opens it.
    Until(Gate),
    /// Ends the connection.
    Close,
}

impl From<Vec<u8>> for Step {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Send(bytes)
    }
}

/// Shut until the test opens it.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn shut() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub(crate) fn open(&self) {
        self.0.add_permits(1000);
    }

    pub(crate) async fn passed(&self) {
        self.0.acquire().await.unwrap().forget();
    }
}

/// An upstream that keeps every request it has read whole, and does what a script says. Each one is an effect.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What to do with a request, given how many came before it with its key.
type Script = dyn Fn(&Received, usize) -> Vec<Step> + Send + Sync;

struct Shared {
    received: Mutex<Vec<Received>>,
    arrived: Notify,
    script: Box<Script>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// `script` is given each request, and how many came before it with its key.
    pub(crate) async fn start(script: impl Fn(&Received, usize) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script)
    }

    pub(crate) fn on(
        listener: TcpListener,
        script: impl Fn(&Received, usize) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { received: Mutex::default(), arrived: Notify::new(), script: Box::new(script) });
        let of_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&of_task)));
            }
        });
        Self { address, shared, task }
    }

    /// Answers 201 with the number of the execution.
    pub(crate) async fn charging() -> Self {
        Self::start(|_, before| vec![charged(before).into()]).await
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// How many requests came with this key.
    pub(crate) fn effects(&self, key: &str) -> usize {
        self.received().iter().filter(|received| received.key() == key).count()
    }

    pub(crate) fn last(&self) -> Received {
        self.received().last().expect("a request").clone()
    }

    /// Waits until so many requests have come with this key.
    pub(crate) async fn reached(&self, key: &str, count: usize) {
        let arrival = async {
            loop {
                let mut arrived = std::pin::pin!(self.shared.arrived.notified());
                arrived.as_mut().enable();
                if self.effects(key) >= count {
                    return;
                }
                arrived.await;
            }
        };
        soon("a request at the upstream", arrival).await;
    }
}

/// `{"charge":N}`, N the number of executions with this key before it.
pub(crate) fn charged(before: usize) -> Vec<u8> {
    answer(201, &[("Content-Type", "application/json")], format!("{{\"charge\":{before}}}"))
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut peer = Client { stream, buffer: Vec::new() };
    while let Ok(received) = read_request(&mut peer).await {
        let before = {
            let mut all = shared.received.lock().unwrap();
            let before = all.iter().filter(|other| other.key() == received.key()).count();
            all.push(received.clone());
            before
        };
        shared.arrived.notify_waiters();
        for step in (shared.script)(&received, before) {
            match step {
                Step::Send(bytes) => peer.send(bytes).await,
                Step::Until(gate) => gate.passed().await,
                Step::Close => return,
            }
        }
    }
}

async fn read_request(peer: &mut Client) -> Result<Received, String> {
    // A pooled connection is quiet for as long as it likes.
    while find(&peer.buffer, b"\r\n\r\n").is_none() {
        match peer.stream.read_buf(&mut peer.buffer).await {
            Ok(1..) => {}
            _ => return Err("the connection ended".into()),
        }
    }
    let head = String::from_utf8_lossy(&peer.take_until(b"\r\n\r\n").await?).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let mut words = lines.next().unwrap().split(' ').map(ToOwned::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let headers: Fields = lines.map(field).collect();
    let value = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let mut body = Vec::new();
    if let Some(length) = value("content-length") {
        body = peer.take(length.parse().unwrap()).await?;
    } else if value("transfer-encoding").is_some() {
        loop {
            let line = peer.take_until(b"\r\n").await?;
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            let chunk = peer.take(size + 2).await?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    Ok(Received { method, target, headers, body })
}

/// An address that refuses connections, until somebody listens there.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// The value on the line that begins with `line`; 0 where there is none.
pub(crate) fn metric(metrics: &str, line: &str) -> f64 {
    let value = metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    value.unwrap_or(0.0)
}

/// The value of `Authorization: Basic`.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The value of `Authorization` with a JWT of these claims; nobody here looks at its signature.
pub(crate) fn bearer(claims: &str, signature: &str) -> String {
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    format!("Bearer {}.{}.{signature}", part("{\"alg\":\"RS256\"}"), part(claims))
}
