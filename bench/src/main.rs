//! Measurements side by side with baselines: `cargo xtask bench [--quick] [--json=FILE] [ROW…]`.
//!
//! Load comes from wrk; upstream and proxies are processes of their own on loopback. Targets and
//! baselines take turns, round by round; what is printed are medians, of the rounds' ratios too. A
//! process's CPU time a request, from the scheduler's accounting, hardly moves with the machine's
//! noise and is what to look at first; requests a second move with everything.
//!
//! # Layout
//!
//! [`rows`] what is measured against what, [`gateways`] that on Redis and beside other libraries, [`load`] one round of wrk, [`process`] the processes and
//! their CPU time, [`servers`] the upstream and the plain proxy; [`inside`] what needs no process, [`growth`] a store of
//! ten million records, [`mod@postgres`] claims in PostgreSQL, [`returning`] what comes when Redis is back, [`outage`] what comes while it is gone, [`view`] until it is another, [`journaled`] routes of that kind while all is well, [`soak`] half an hour of them all; [`report`] what is
//! printed.
//!
//! A figure that misses its aim is printed and is no error; a row that cannot be measured is.

mod gateways;
mod growth;
mod inside;
mod journaled;
mod load;
mod outage;
mod postgres;
mod process;
mod redis;
mod report;
mod returning;
mod rows;
mod servers;
mod soak;
mod view;
mod waiters;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["upstream"] => servers::upstream(),
        ["plain-proxy", upstream] => servers::plain_proxy(upstream),
        ["grown", folder, records] => grown(folder, records),
        ["soak", rest @ ..] => soaked(rest),
        rest => {
            let quick = rest.contains(&"--quick");
            let (seconds, count, records) = if quick { (1, 3, 1_000_000) } else { (3, 5, 10_000_000) };
            let rounds = rows::Rounds { span: Duration::from_secs(seconds), count, records };
            let json = rest.iter().find_map(|word| word.strip_prefix("--json=")).map(Path::new);
            let names: Vec<&str> = rest.iter().copied().filter(|word| !word.starts_with("--")).collect();
            rows::run(&names, rounds, json)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn grown(folder: &str, records: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(growth::grown(folder, records.parse()?))
}

fn soaked(arguments: &[&str]) -> anyhow::Result<()> {
    let minutes = match arguments {
        [] => 30,
        [minutes] => minutes.strip_prefix("--minutes=").context("soak takes --minutes=N")?.parse()?,
        _ => bail!("soak takes --minutes=N"),
    };
    rows::soak(minutes)
}
