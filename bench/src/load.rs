//! One round of load by wrk.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::process::Server;

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
}

/// Asks `server` for `span` over so many connections; `round` makes fresh keys new.
///
/// # Errors
/// Where wrk does not run, or a request fails.
pub(crate) fn run(
    server: &Server,
    keys: Keys,
    connections: u32,
    span: Duration,
    round: u32,
    folder: &Path,
) -> anyhow::Result<Figures> {
    let script = folder.join("post.lua");
    std::fs::write(&script, include_str!("post.lua"))?;
    let before = server.cpu();
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--timeout", "10s", "--connections", &connections.to_string()]);
    command.args(["--duration", &format!("{}s", span.as_secs())]).arg("--script").arg(&script);
    command.args([&server.url, "--"]);
    match keys {
        Keys::Fresh => command.args(["fresh", &format!("{connections}-{round:06}-")]),
        Keys::Same(key) => command.args(["same", key]),
        Keys::None => command.arg("none"),
    };
    let output = command.stdin(Stdio::null()).output().context("cannot start wrk")?;
    let spent = server.cpu().since(&before);
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {}\n{printed}{}", output.status, String::from_utf8_lossy(&output.stderr));
    read(&printed, spent)
}

/// Reads the script's closing line.
fn read(printed: &str, cpu_us: f64) -> anyhow::Result<Figures> {
    let line = printed.lines().find_map(|line| line.strip_prefix("bench "));
    let numbers: Vec<f64> = line.into_iter().flat_map(|line| line.split(' ')).filter_map(|n| n.parse().ok()).collect();
    let &[requests, duration_us, errors, p50_us, p99_us] = numbers.as_slice() else {
        bail!("wrk printed no figures:\n{printed}");
    };
    ensure!(requests > 0.0, "no request was answered:\n{printed}");
    ensure!(errors == 0.0, "{errors} of {requests} requests failed:\n{printed}");
    Ok(Figures { per_second: requests * 1e6 / duration_us, cpu_us: cpu_us / requests, p50_us, p99_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_failed_requests_are_an_error() {
        let figures = read("Running 1s\nbench 1000 2000000 0 120 900\n", 5_000.0).unwrap();
        assert_eq!(figures, Figures { per_second: 500.0, cpu_us: 5.0, p50_us: 120.0, p99_us: 900.0 });
        assert!(read("bench 1000 2000000 3 120 900", 1.0).unwrap_err().to_string().contains("3 of 1000"));
        assert!(read("bench 0 2000000 0 0 0", 1.0).is_err());
        assert!(read("nothing", 1.0).is_err());
    }
}
