//! `soak`: half an hour of mixed requests at seven tenths of the highest rate. Memory and p99 must stay flat.
//!
//! Requests come at their times, whether or not the ones before are answered, and a request's time counts from when it
//! was due: a stall shows in every request that it held up. Keys end after two minutes, so that the store, too, has its
//! full size from then on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::process::Server;
use crate::report::{Line, aim, median, percentile};

const CONNECTIONS: u64 = 64;
const PART_OF_HIGHEST: f64 = 0.7;
/// Of how long the highest rate is taken, after as long a warm-up.
const HIGHEST_SPAN: Duration = Duration::from_secs(10);
const EACH: Duration = Duration::from_secs(60);
/// How long a key is kept, and what must be shorter for that.
const TIMES: [(&str, &str); 3] = [("RETENTION", "2m"), ("CLIENT_RETRIES", "1m"), ("EXECUTION_MAX", "1m")];
/// The last third beside the middle one.
const P99_MAX: f64 = 1.25;
const RESIDENT_MAX: f64 = 1.05;
/// Keys of its own that a connection repeats.
const REPEATED: u64 = 50;

/// What one minute came to.
#[derive(Clone, Copy, Debug)]
struct Minute {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    resident_mib: f64,
    /// Answers that were no success.
    refused: u64,
}

/// Soaks `server` for so many minutes, one line each.
///
/// # Errors
/// Where a connection ends.
pub(crate) async fn run(server: &Server, minutes: u32) -> anyhow::Result<Line> {
    ensure!(minutes >= 6, "a soak of less than 6 minutes says nothing: its thirds are compared");
    let callers = callers(&server.url).await?;
    asked(&callers, HIGHEST_SPAN, None).await?;
    let took = asked(&callers, HIGHEST_SPAN, None).await?;
    let highest = took.len() as f64 / HIGHEST_SPAN.as_secs_f64();
    let every = Duration::from_secs_f64(CONNECTIONS as f64 / (highest * PART_OF_HIGHEST));
    println!("highest rate {highest:.0}/s; from now on {:.0}/s", highest * PART_OF_HIGHEST);
    let mut each = Vec::new();
    for number in 1..=minutes {
        let before = refused(&callers).await;
        let mut took = asked(&callers, EACH, Some(every)).await?;
        let minute = Minute {
            refused: refused(&callers).await - before,
            per_second: took.len() as f64 / EACH.as_secs_f64(),
            p50_us: percentile(&mut took, 0.5),
            p99_us: percentile(&mut took, 0.99),
            resident_mib: server.resident_mib()?,
        };
        let Minute { per_second, p50_us, p99_us, resident_mib, refused } = minute;
        let refused = if refused > 0 { format!(", {refused} REFUSED") } else { String::new() };
        println!(
            "{number:>3} min {per_second:.0}/s, p50 {p50_us:.0} us, p99 {p99_us:.0} us, {resident_mib:.0} MiB{refused}"
        );
        each.push(minute);
    }
    Ok(line(&each, highest))
}

fn line(each: &[Minute], highest: f64) -> Line {
    let third = each.len() / 3;
    let part =
        |which: usize, of: fn(&Minute) -> f64| median(each.iter().skip(which * third).take(third).map(of).collect());
    let (p99, resident) = (|minute: &Minute| minute.p99_us, |minute: &Minute| minute.resident_mib);
    let refused: u64 = each.iter().map(|minute| minute.refused).sum();
    let p99_ratio = part(2, p99) / part(1, p99);
    let resident_ratio = part(2, resident) / part(1, resident);
    Line {
        name: "soak",
        text: format!(
            "{} minutes at {:.0}/s, last third / middle third: p99 {p99_ratio:.2}x{}, memory {resident_ratio:.2}x{}; \
             p99 {:.0} / {:.0} us, {:.0} / {:.0} MiB, {refused} refused{}",
            each.len(),
            highest * PART_OF_HIGHEST,
            aim("at most", P99_MAX, p99_ratio <= P99_MAX),
            aim("at most", RESIDENT_MAX, resident_ratio <= RESIDENT_MAX),
            part(2, p99),
            part(1, p99),
            part(2, resident),
            part(1, resident),
            aim("at most", 0.0, refused == 0),
        ),
        figures: vec![
            ("p99", p99_ratio),
            ("resident", resident_ratio),
            ("p99_us", part(2, p99)),
            ("resident_mib", part(2, resident)),
            ("refused", refused as f64),
        ],
    }
}

async fn refused(callers: &[Arc<Mutex<Caller>>]) -> u64 {
    let mut refused = 0;
    for caller in callers {
        refused += caller.lock().await.refused;
    }
    refused
}

/// One connection, how many requests it has sent, and how many of them were refused.
struct Caller {
    number: u64,
    sent: u64,
    refused: u64,
    connection: SendRequest<Full<Bytes>>,
    body: Bytes,
}

async fn callers(url: &str) -> anyhow::Result<Vec<Arc<Mutex<Caller>>>> {
    let address = url.trim_start_matches("http://");
    let body = Bytes::from(format!(r#"{{"amount":1200,"currency":"EUR","description":"{}"}}"#, "x".repeat(474)));
    let mut callers = Vec::new();
    for number in 0..CONNECTIONS {
        let stream = TcpStream::connect(address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let (connection, running) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(running);
        callers.push(Arc::new(Mutex::new(Caller { number, sent: 0, refused: 0, connection, body: body.clone() })));
    }
    Ok(callers)
}

/// Lets all ask for `span`: each at once after its last answer, or `every` so often. Microseconds from when each was due.
async fn asked(callers: &[Arc<Mutex<Caller>>], span: Duration, every: Option<Duration>) -> anyhow::Result<Vec<f64>> {
    let start = Instant::now();
    let mut running = Vec::new();
    for (number, caller) in callers.iter().enumerate() {
        let caller = Arc::clone(caller);
        running.push(tokio::spawn(async move {
            let mut caller = caller.lock().await;
            let mut took = Vec::new();
            // Spread over the first interval.
            let mut due = start + every.unwrap_or_default() * number as u32 / CONNECTIONS as u32;
            while due < start + span {
                tokio::time::sleep_until(due).await;
                caller.ask().await?;
                took.push(due.elapsed().as_secs_f64() * 1e6);
                due = every.map_or_else(Instant::now, |every| due + every);
            }
            anyhow::Ok(took)
        }));
    }
    let mut all = Vec::new();
    for caller in running {
        all.extend(caller.await??);
    }
    Ok(all)
}

impl Caller {
    /// Of ten requests six have a fresh key, three repeat one, one has none.
    async fn ask(&mut self) -> anyhow::Result<()> {
        self.sent += 1;
        let key = match self.sent % 10 {
            0 => None,
            3 | 6 | 9 => Some(self.sent.saturating_sub(self.sent % REPEATED + 2)),
            _ => Some(self.sent),
        };
        let request = Request::post("/v1/payments").header(header::HOST, "localhost");
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let request = match key {
            Some(key) => request.header("idempotency-key", format!("soak-{}-{key}", self.number)),
            None => request,
        };
        self.connection.ready().await?;
        let answer = self.connection.send_request(request.body(Full::new(self.body.clone()))?).await?;
        self.refused += u64::from(!answer.status().is_success());
        answer.into_body().collect().await?;
        Ok(())
    }
}

/// Starts what is soaked.
///
/// # Errors
/// Where a process does not start.
pub(crate) fn measure(upstream: &Server, onceward: &Path, folder: &Path, minutes: u32) -> anyhow::Result<Line> {
    let mut command = std::process::Command::new(onceward);
    command.args(["proxy", "--upstream", &upstream.url, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.envs(TIMES.map(|(key, value)| (format!("ONCEWARD_DEFAULTS__{key}"), value)));
    command.arg("--data").arg(folder.join("soak"));
    let server = Server::start(&mut command)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&server, minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_third_is_held_against_the_middle_one() {
        let minute = |p99_us, resident_mib| Minute { per_second: 1.0, p50_us: 1.0, p99_us, resident_mib, refused: 1 };
        let each = [(9.0, 1.0), (9.0, 1.0), (2.0, 10.0), (2.0, 10.0), (3.0, 10.0), (3.0, 10.0)];
        let line = line(&each.map(|(p99, resident)| minute(p99, resident)), 100.0).text;
        assert!(line.contains("6 minutes at 70/s"), "{line}");
        assert!(line.contains("p99 1.50x (at most 1.25, missed), memory 1.00x (at most 1.05);"), "{line}");
        assert!(line.ends_with("6 refused (at most 0, missed)"), "{line}");
    }
}
