//! `onceward prove`: attacks an endpoint that claims to be idempotent, from outside, and counts what takes effect.
//!
//! It knows nothing of the endpoint but its answers and a counter of effects. Attacks run one after the other, each round
//! with a key of its own, so that a total tells which round moved it.
//!
//! # Layout
//!
//! `args` what can be typed · `message` the request, filled in · `wire` and `trust` HTTP/1.1 by hand, TLS · `effects` the
//! counter · `attack` the attacks · `judge` what a round means · `campaign` one run of all · `shell` the same as commands
//! · `report` text, JSON and JUnit.

mod args;
mod attack;
mod campaign;
mod effects;
mod judge;
mod message;
mod report;
mod shell;
mod trust;
mod wire;

use std::io::{Read, Write as _};
use std::path::PathBuf;

use http::Method;

pub use args::ProveArgs;
pub use attack::Attack;

use self::attack::Attacker;
use self::campaign::Campaign;
use self::effects::{At, Counter};
use self::judge::Verdict;
use self::message::{Body, Line, Operation, Template, Url};
use self::report::Report;
use self::shell::Trust;
use self::wire::Client;
use super::Failure;
use crate::config::Environment;

/// The largest body that is sent.
const BODY_BYTES_MAX: u64 = 16 << 20;
/// What seeds are drawn below, so that they are short to type.
const SEEDS: u64 = 1 << 32;

/// Attacks the endpoint and prints what it found.
///
/// # Errors
/// Exit code 1 where it found something, 2 for wrong usage and where it could not be told.
pub(super) async fn run(args: &ProveArgs) -> Result<(), Failure> {
    let environment = Environment::of_process();
    let template = template(args, &environment)?;
    let tls_wrong = |error: crate::proxy::TlsErrors| Failure::usage(error.to_string());
    let client = |url: &Url| {
        Client::new(url.origin.clone(), args.cacert.clone(), !args.insecure, args.timeout).map_err(tls_wrong)
    };
    let counter = counter(args, &template, &environment, &client)?;
    let attacks = attacks(args, &template, &counter)?;
    let trust = Trust { cacert: args.cacert.clone(), is_insecure: args.insecure };
    let endpoint = client(&template.url)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::Rng::new().u64(..SEEDS));
    let attacker = Attacker {
        template: &template,
        client: &endpoint,
        trust: &trust,
        at_once: usize::from(args.concurrency),
        latency: std::time::Duration::ZERO,
        timeout: args.timeout,
    };
    let findings = Campaign::new(attacker, &counter, seed).run(&attacks, u64::from(args.rounds)).await;
    let report = Report { args, template: &template, counter: &counter, seed, findings: &findings };
    if let Some(file) = &args.junit {
        std::fs::write(file, report.junit())
            .map_err(|error| Failure::usage(format!("--junit: {} cannot be written: {error}", file.display())))?;
    }
    let said = if args.output.json { format!("{}\n", report.json()) } else { report.text() };
    std::io::stdout()
        .write_all(said.as_bytes())
        .map_err(|error| Failure::not_well(format!("stdout cannot be written: {error}")))?;
    match findings.verdict() {
        Verdict::Ok | Verdict::Skipped => Ok(()),
        Verdict::Inconclusive => Err(Failure::usage(format!("it cannot be told: {}", findings.doubt()))),
        Verdict::Refused => Err(Failure::not_well("requests in good order were refused")),
        Verdict::Double => Err(Failure::not_well("double effects were found")),
    }
}

fn template(args: &ProveArgs, environment: &Environment) -> Result<Template, Failure> {
    let url =
        Url::parse(&args.url).map_err(|why| Failure::usage(format!("{}: {why}", without_credentials(&args.url))))?;
    if matches!(args.method, Method::CONNECT | Method::HEAD) {
        return Err(Failure::usage(format!("--method: {} has no answer to compare", args.method)));
    }
    let mut headers = lines("--header", &args.headers, environment)?;
    for line in &headers {
        let framing = ["connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade"];
        if framing.iter().any(|name| line.name.eq_ignore_ascii_case(name)) {
            return Err(Failure::usage(format!("--header: {} is said by the command itself", line.name)));
        }
        if line.name.eq_ignore_ascii_case(&args.key_header) {
            return Err(Failure::usage(format!("--header: {} is drawn for each operation", line.name)));
        }
    }
    let body = body("--body", &args.body)?;
    let other = match &args.other_body {
        Some(said) => Some(self::body("--other-body", said)?),
        None => body.another(),
    };
    if other.as_ref() == Some(&body) {
        return Err(Failure::usage("--other-body is the same as --body"));
    }
    let has_type = headers.iter().any(|line| line.name.eq_ignore_ascii_case("content-type"));
    if !has_type && body != Body::Text(String::new()) {
        let kind = if body.is_json() { "application/json" } else { "application/x-www-form-urlencoded" };
        let line = Line::parse(&format!("Content-Type: {kind}"), environment);
        headers.push(line.map_err(Failure::usage)?);
    }
    Ok(Template {
        url,
        method: args.method.clone(),
        headers,
        key_header: args.key_header.clone(),
        is_quoted: args.quoted,
        body,
        other,
    })
}

fn counter(
    args: &ProveArgs,
    template: &Template,
    environment: &Environment,
    client: &impl Fn(&Url) -> Result<Client, Failure>,
) -> Result<Counter, Failure> {
    let said = &args.effects_url;
    let url = Url::parse(said)
        .map_err(|why| Failure::usage(format!("--effects-url: {}: {why}", without_credentials(said))))?;
    let headers = match args.effects_send.is_empty() {
        false => lines("--effects-send", &args.effects_send, environment)?,
        // A credential goes nowhere else than where it was meant for.
        true if url.origin == template.url.origin => {
            template.headers.iter().filter(|line| !line.name.eq_ignore_ascii_case("content-type")).cloned().collect()
        }
        true => Vec::new(),
    };
    let at = match (&args.effects_pointer, &args.effects_header) {
        (Some(pointer), _) => At::Pointer(pointer.clone()),
        (None, Some(name)) => At::Header(name.clone()),
        (None, None) => return Err(Failure::usage("say --effects-pointer or --effects-header")),
    };
    Ok(Counter { client: client(&url)?, url, headers, at, settle: args.settle })
}

/// The attacks to make, each with the reason where it cannot be.
fn attacks(
    args: &ProveArgs,
    template: &Template,
    counter: &Counter,
) -> Result<Vec<(Attack, Option<&'static str>)>, Failure> {
    use clap::ValueEnum as _;
    let mut attacks: Vec<Attack> = Vec::new();
    let said = if args.attacks.is_empty() { Attack::value_variants() } else { &args.attacks };
    for attack in said {
        if !attacks.contains(attack) {
            attacks.push(*attack);
        }
    }
    let attacks: Vec<_> = attacks.into_iter().map(|attack| (attack, attack.is_not_for(template, counter))).collect();
    // One that was asked for by name is not left out in silence.
    match attacks.iter().find_map(|(attack, why)| why.map(|why| (attack, why))) {
        Some((attack, why)) if !args.attacks.is_empty() => {
            Err(Failure::usage(format!("--attacks: {}: {why}", attack.name())))
        }
        _ => Ok(attacks),
    }
}

fn lines(flag: &str, said: &[String], environment: &Environment) -> Result<Vec<Line>, Failure> {
    let read = |text: &String| Line::parse(text, environment).map_err(|why| Failure::usage(format!("{flag}: {why}")));
    said.iter().map(read).collect()
}

fn body(flag: &str, said: &str) -> Result<Body, Failure> {
    let Some(name) = said.strip_prefix('@') else { return Ok(Body::Text(said.to_owned())) };
    let mut bytes = Vec::new();
    let read = match name {
        "-" => std::io::stdin().lock().take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes),
        name => std::fs::File::open(PathBuf::from(name))
            .and_then(|file| file.take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes)),
    };
    read.map_err(|error| Failure::usage(format!("{flag}: {name} cannot be read: {error}")))?;
    if bytes.len() as u64 > BODY_BYTES_MAX {
        return Err(Failure::usage(format!("{flag}: {name} is over {} MiB", BODY_BYTES_MAX >> 20)));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Body::Text(text),
        Err(error) => Body::Bytes { file: name.to_owned(), bytes: error.into_bytes() },
    })
}

/// A URL that may have a password in it, for a message.
fn without_credentials(url: &str) -> &str {
    if url.contains('@') { "the URL" } else { url }
}

/// An operation that nobody has seen, for the key and the number of `position`.
fn fresh(base: u64, position: u64) -> Operation {
    Operation::new(uuid::Uuid::new_v4().to_string(), base + position)
}
