//! One round of load by wrk.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::process::Server;
use crate::report::median;

/// What keys the requests have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keys {
    /// A new one each, never seen in another round.
    Fresh,
    /// Always this one.
    Same(&'static str),
    /// None.
    None,
}

/// A round's figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    /// CPU microseconds a request of the process that was asked.
    pub(crate) cpu_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Requests that failed, a small part of all.
    pub(crate) failed: f64,
}

/// The median of the rounds' ratios.
pub(crate) fn ratio(ours: &[Figures], theirs: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    median(ours.iter().zip(theirs).map(|(own, other)| of(own) / of(other)).collect())
}

/// The medians, in words.
pub(crate) fn shown(figures: &[Figures]) -> String {
    let of = |part: fn(&Figures) -> f64| median(figures.iter().map(part).collect());
    let failed: f64 = figures.iter().map(|figures| figures.failed).sum();
    let failed = if failed > 0.0 { format!(", {failed:.0} FAILED") } else { String::new() };
    format!(
        "{:.1} us CPU, {:.0}/s, p50 {:.0} us, p99 {:.0} us{failed}",
        of(|figures| figures.cpu_us),
        of(|figures| figures.per_second),
        of(|figures| figures.p50_us),
        of(|figures| figures.p99_us)
    )
}

/// Above so large a part of failed requests, a round measured something else.
const FAILED_PART_MAX: f64 = 0.01;

/// A round to come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round<'a> {
    pub(crate) keys: Keys,
    pub(crate) connections: u32,
    pub(crate) span: Duration,
    /// Makes fresh keys new.
    pub(crate) number: u32,
    /// For wrk's script.
    pub(crate) folder: &'a Path,
}

/// Asks `server`, and measures.
///
/// # Errors
/// Where wrk does not run, or more than a few requests fail.
pub(crate) fn run(server: &Server, round: Round<'_>) -> anyhow::Result<Figures> {
    let before = server.cpu();
    let closing = wrk(server, round, false)?;
    let cpu_us = server.cpu().since(&before);
    let Closing { requests, duration_us, failed, p50_us, p99_us, .. } = closing;
    Ok(Figures { per_second: requests * 1e6 / duration_us, cpu_us: cpu_us / requests, p50_us, p99_us, failed })
}

/// Asks Onceward, and holds its answers to what the keys say: what is measured then is what the row says.
///
/// # Errors
/// As `run`, and where they are others.
pub(crate) fn warm_up(server: &Server, round: Round<'_>) -> anyhow::Result<()> {
    let (executed, replayed) = look(server, round)?;
    let right = match round.keys {
        Keys::Same(_) => executed <= 1.0 && replayed > 0.0,
        Keys::Fresh | Keys::None => replayed == 0.0,
    };
    ensure!(right, "{executed} answers were first ones and {replayed} were replays");
    Ok(())
}

/// Asks `server`, and says how many answers were no replays and how many were.
///
/// # Errors
/// As `run`.
pub(crate) fn look(server: &Server, round: Round<'_>) -> anyhow::Result<(f64, f64)> {
    let closing = wrk(server, round, true)?;
    Ok((closing.requests - closing.replays, closing.replays))
}

fn wrk(server: &Server, round: Round<'_>, looks: bool) -> anyhow::Result<Closing> {
    let script = round.folder.join("post.lua");
    std::fs::write(&script, include_str!("post.lua"))?;
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--timeout", "10s", "--connections", &round.connections.to_string()]);
    command.args(["--duration", &format!("{}s", round.span.as_secs())]).arg("--script").arg(&script);
    command.args([&server.url, "--"]);
    match round.keys {
        Keys::Fresh => command.args(["fresh", &format!("{}-{:06}-", round.connections, round.number)]),
        Keys::Same(key) => command.args(["same", key]),
        Keys::None => command.args(["none", "-"]),
    };
    let output = command.args(looks.then_some("look")).stdin(Stdio::null()).output().context("cannot start wrk")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {}\n{printed}{}", output.status, String::from_utf8_lossy(&output.stderr));
    read(&printed)
}

/// What the script closes on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Closing {
    requests: f64,
    duration_us: f64,
    failed: f64,
    p50_us: f64,
    p99_us: f64,
    replays: f64,
}

fn read(printed: &str) -> anyhow::Result<Closing> {
    let line = printed.lines().find_map(|line| line.strip_prefix("bench "));
    let numbers: Vec<f64> = line.into_iter().flat_map(|line| line.split(' ')).filter_map(|n| n.parse().ok()).collect();
    let &[requests, duration_us, failed, p50_us, p99_us, replays] = numbers.as_slice() else {
        bail!("wrk printed no figures:\n{printed}");
    };
    ensure!(requests > 0.0, "no request was answered:\n{printed}");
    ensure!(failed <= requests * FAILED_PART_MAX, "{failed} of {requests} requests failed:\n{printed}");
    Ok(Closing { requests, duration_us, failed, p50_us, p99_us, replays })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_many_failed_requests_are_an_error() {
        let closing = read("Running 1s\nbench 1000 2000000 10 120 900 7\n").unwrap();
        let times = (closing.duration_us, closing.p50_us, closing.p99_us);
        assert_eq!((closing.requests, closing.failed, closing.replays), (1000.0, 10.0, 7.0));
        assert_eq!(times, (2e6, 120.0, 900.0));
        assert!(read("bench 1000 2000000 11 120 900 0").unwrap_err().to_string().contains("11 of 1000"));
        assert!(read("bench 0 2000000 0 0 0 0").is_err());
        assert!(read("nothing").is_err());
    }
}
