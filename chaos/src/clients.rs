//! The clients: many, each with time-outs and retries of its own, and with habits that are not good.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::history::{Act, Answer, End, Operation, digest};
use crate::ledger::{DISPATCH, LIFE, SCRIPT, Step};
use crate::plan::Mix;
use crate::traffic::Traffic;

/// Says that an answer is not recorded, or is from the memory of a process that could not ask.
const STATUS: &str = "idempotency-status";
/// How long a client insists at most, from its first request on.
const INSISTS: Duration = Duration::from_secs(12);
/// How long a patient one waits for an answer.
const PATIENT: Duration = Duration::from_secs(10);
/// The pause before it tries again.
const PAUSE: Duration = Duration::from_millis(40);

/// What clients do under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Story {
    /// Path of the route.
    pub(crate) route: &'static str,
    /// The key.
    pub(crate) key: String,
    /// What the upstream does with the first dispatch, the second, …
    pub(crate) script: Vec<Step>,
    /// Who asks, all at once.
    pub(crate) askers: Vec<Asker>,
}

/// One client of a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Whose credential it has.
    pub(crate) caller: &'static str,
    /// Its body.
    pub(crate) body: String,
    /// How it behaves.
    pub(crate) habit: Habit,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Waits, and tries again until it knows.
    Patient,
    /// Goes away after so many milliseconds without an answer, and tries again.
    Impatient(u64),
    /// Goes away after so many milliseconds, and never comes back.
    GivesUp(u64),
    /// Breaks off in the middle of its first request, then is patient.
    BreaksOff,
}

/// The routes, by how often they are used.
const ROUTES: &[&str] = &["/pay", "/pay", "/pay", "/two", "/again", "/again", "/long"];

impl Story {
    /// The nth story of a seed.
    #[must_use]
    pub(crate) fn of(mix: Mix, seed: u64, nth: u64) -> Self {
        match mix {
            Mix::All => Self::of_all(seed, nth),
            Mix::Overtaken => Self::of_the_overtaken(seed, nth),
        }
    }

    fn of_the_overtaken(seed: u64, nth: u64) -> Self {
        let mut rng = rng(seed, nth);
        let script = (0..2).map(|_| Step { act: Act::Ok, after_ms: rng.u64(600..1000) }).collect();
        let body = format!("{{\"story\":{nth}}}");
        let asker = |habit| Asker { caller: "Bearer anna", body: body.clone(), habit };
        let askers = vec![asker(Habit::Patient), asker(Habit::Patient), asker(Habit::Impatient(rng.u64(100..300)))];
        Self { route: "/brief", key: format!("key-{nth}"), script, askers }
    }

    fn of_all(seed: u64, nth: u64) -> Self {
        let mut rng = rng(seed, nth);
        let route = rng.choice(ROUTES.iter().copied()).unwrap_or("/pay");
        let body = |variant: u32| format!("{{\"amount\":{variant},\"story\":{nth}}}");
        let mut askers = Vec::new();
        match rng.u32(0..10) {
            // Another body under the key, at the same time or nearly.
            0 => {
                for variant in 0..rng.u32(2..4) {
                    let habit = habit(&mut rng);
                    askers.push(Asker { caller: "Bearer anna", body: body(variant), habit });
                }
            }
            // The same key from two callers, which are two operations.
            1 => {
                for caller in ["Bearer anna", "Bearer bert"] {
                    askers.push(Asker { caller, body: body(0), habit: Habit::Patient });
                }
            }
            2 | 3 => askers.push(Asker { caller: "Bearer anna", body: body(0), habit: habit(&mut rng) }),
            // A crowd.
            _ => {
                for _ in 0..rng.u32(3..9) {
                    askers.push(Asker { caller: "Bearer anna", body: body(0), habit: habit(&mut rng) });
                }
            }
        }
        let (key, script) = (format!("key-{nth}"), script(&mut rng));
        Self { route, key, script, askers }
    }
}

/// Of one story.
fn rng(seed: u64, nth: u64) -> Rng {
    Rng::with_seed(seed ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn habit(rng: &mut Rng) -> Habit {
    match rng.u32(0..10) {
        0 => Habit::GivesUp(rng.u64(1..200)),
        1 | 2 => Habit::Impatient(rng.u64(20..400)),
        3 => Habit::BreaksOff,
        _ => Habit::Patient,
    }
}

/// What the upstream does: released a few times, then an end of some kind, and should that be an unknown one and the
/// route run it again, another.
fn script(rng: &mut Rng) -> Vec<Step> {
    let mut steps = Vec::new();
    while rng.u32(0..6) == 0 {
        let act = if rng.bool() { Act::Busy } else { Act::Limited };
        steps.push(Step { act, after_ms: rng.u64(0..60) });
    }
    for _ in 0..2 {
        let act = match rng.u32(0..20) {
            0 => Act::Cut,
            1 => Act::CutMid,
            2 => Act::Bare,
            3 => Act::Error,
            4 | 5 => Act::Stream,
            _ => Act::Ok,
        };
        let after_ms = if rng.u32(0..3) == 0 { rng.u64(200..700) } else { rng.u64(0..120) };
        steps.push(Step { act, after_ms });
        // What comes behind an unknown attempt, and may be a release.
        if rng.u32(0..3) == 0 {
            steps.push(Step { act: Act::Limited, after_ms: 0 });
        }
    }
    steps
}

/// What is sent.
#[derive(Clone, Debug)]
struct Letter {
    operation: Operation,
    number: usize,
    body: String,
    script: String,
    audit: bool,
}

/// Plays a story to its end.
pub(crate) async fn play(traffic: &Arc<Traffic>, story: Story) {
    let script = story.script.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut numbers: Vec<(Operation, usize)> = Vec::new();
    let mut clients = tokio::task::JoinSet::new();
    for asker in story.askers {
        let operation =
            Operation { route: story.route.to_owned(), caller: asker.caller.to_owned(), key: story.key.clone() };
        let known = numbers.iter().find(|(known, _)| *known == operation).map(|(_, number)| *number);
        let number = known.unwrap_or_else(|| {
            let number = traffic.operation(operation.clone());
            numbers.push((operation.clone(), number));
            number
        });
        let letter = Letter { operation, number, body: asker.body, script: script.clone(), audit: false };
        clients.spawn(insist(Arc::clone(traffic), letter, asker.habit));
    }
    clients.join_all().await;
}

/// Asks until it knows, or until it has no patience left.
async fn insist(traffic: Arc<Traffic>, letter: Letter, habit: Habit) {
    if habit == Habit::BreaksOff {
        let (address, life) = traffic.place().await;
        let sent = traffic.sent(letter.number, &letter.body, digest(letter.body.as_bytes()), life, false);
        let half = half_of(address, &letter, life).await;
        traffic.ended(sent, letter.number, if half.is_ok() { End::Left } else { End::Broken });
    }
    let patience = match habit {
        Habit::Impatient(ms) | Habit::GivesUp(ms) => Duration::from_millis(ms),
        Habit::Patient | Habit::BreaksOff => PATIENT,
    };
    let until = Instant::now() + INSISTS;
    for tries in 1.. {
        // Who has learnt that an answer takes its time waits longer.
        let end = ask(&traffic, &letter, patience * tries).await;
        if is_known(&end) || matches!(habit, Habit::GivesUp(_)) || Instant::now() >= until {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks how a key stands until it says so, but not beyond `until`.
pub(crate) async fn audit(traffic: &Arc<Traffic>, number: usize, operation: Operation, body: String, until: Instant) {
    let letter = Letter { operation, number, body, script: String::new(), audit: true };
    let asking = async {
        while !is_known(&ask(traffic, &letter, PATIENT).await) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    // The judge sees what it said last.
    let _late = tokio::time::timeout_at(until, asking).await;
}

/// Whether asking again would tell nothing more.
fn is_known(end: &End) -> bool {
    let End::Answer(answer) = end else { return false };
    match (answer.dispatch, answer.problem.as_deref()) {
        // Released, or an unknown outcome: what the key says of it is another question.
        (Some(_), _) => !matches!(answer.status, 429 | 503) && !answer.unrecorded,
        (None, Some(problem)) => matches!(problem, "outcome-unknown" | "key-reused" | "failed" | "key-gone"),
        (None, None) => false,
    }
}

/// One request.
async fn ask(traffic: &Arc<Traffic>, letter: &Letter, patience: Duration) -> End {
    let (address, life) = traffic.place().await;
    let request = traffic.sent(letter.number, &letter.body, digest(letter.body.as_bytes()), life, letter.audit);
    let end = match tokio::time::timeout(patience, exchange(address, letter, life)).await {
        Ok(Some(answer)) => End::Answer(answer),
        Ok(None) => End::Broken,
        Err(_) => End::Left,
    };
    traffic.ended(request, letter.number, end.clone());
    end
}

/// Sends it on a connection of its own. None: no whole answer came.
async fn exchange(address: std::net::SocketAddr, letter: &Letter, life: usize) -> Option<Answer> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    // Dropped with this future, and the connection with it.
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let request = hyper::Request::post(&letter.operation.route)
        .header("host", "api.test")
        .header("content-type", "application/json")
        .header("connection", "te")
        .header("te", "trailers")
        .header("authorization", &letter.operation.caller)
        .header("idempotency-key", &letter.operation.key)
        .header(SCRIPT, &letter.script)
        .header(LIFE, life)
        .body(Full::new(Bytes::from(letter.body.clone())))
        .ok()?;
    let (head, body) = sender.send_request(request).await.ok()?.into_parts();
    let collected = body.collect().await.ok()?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let body = collected.to_bytes();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let is_problem = header("content-type").is_some_and(|kind| kind.starts_with("application/problem+json"));
    Some(Answer {
        status: head.status.as_u16(),
        body: digest(&body),
        dispatch: header(DISPATCH).and_then(|number| number.parse().ok()),
        problem: if is_problem { slug(&body) } else { None },
        // What streams can say so only at its end.
        unrecorded: matches!(
            header(STATUS).or(trailers.get(STATUS).and_then(|value| value.to_str().ok())),
            Some("unrecorded" | "remembered")
        ),
    })
}

/// The last word of a problem's type.
fn slug(body: &[u8]) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    problem.get("type")?.as_str()?.rsplit(':').next().map(str::to_owned)
}

/// Half of a request, and then nothing more.
async fn half_of(address: std::net::SocketAddr, letter: &Letter, life: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let Operation { route, caller, key } = &letter.operation;
    let (body, script) = (&letter.body, &letter.script);
    let head = format!(
        "POST {route} HTTP/1.1\r\nHost: api.test\r\nAuthorization: {caller}\r\nIdempotency-Key: {key}\r\n\
         {SCRIPT}: {script}\r\n{LIFE}: {life}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes().get(..body.len() / 2).unwrap_or_default()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_the_same_stories_each_time_and_another_seed_others() {
        for mix in [Mix::All, Mix::Overtaken] {
            let of = |seed| (0..50).map(|nth| Story::of(mix, seed, nth)).collect::<Vec<_>>();
            assert_eq!(of(7), of(7));
            assert_ne!(of(7), of(8));
        }
    }
}
