//! What is measured, against what, and what is aimed at.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::load::{self, Figures, Keys, Round};
use crate::process::Server;
use crate::report::{Line, aim, median};
use crate::{gateways, growth, inside, journaled, outage, postgres, redis, report, returning, soak, view};

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    pub(crate) span: Duration,
    pub(crate) count: u32,
    /// Of the large store of P8.
    pub(crate) records: u64,
}

/// Requests through Onceward beside a baseline.
struct Row {
    name: &'static str,
    what: &'static str,
    baseline: Baseline,
    keys: Keys,
    connections: u32,
    /// At most so much of the baseline's CPU time a request.
    cpu_max: Option<f64>,
    /// At least so much of the baseline's requests a second.
    rate_min: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Baseline {
    Nginx,
    PlainProxy,
}

const ROWS: &[Row] = &[
    Row {
        name: "P1",
        what: "replay of 300 bytes / nginx passing through",
        baseline: Baseline::Nginx,
        keys: Keys::Same("the-one-that-is-replayed"),
        connections: 32,
        cpu_max: Some(0.75),
        rate_min: Some(1.5),
    },
    Row {
        name: "P2",
        what: "unprotected / plain proxy",
        baseline: Baseline::PlainProxy,
        keys: Keys::None,
        connections: 32,
        cpu_max: Some(1.15),
        rate_min: None,
    },
    Row {
        name: "P3-64",
        what: "fresh at 64 connections / plain proxy",
        baseline: Baseline::PlainProxy,
        keys: Keys::Fresh,
        connections: 64,
        cpu_max: Some(2.2),
        rate_min: Some(0.5),
    },
    Row {
        name: "P3-256",
        what: "fresh at 256 connections / plain proxy",
        baseline: Baseline::PlainProxy,
        keys: Keys::Fresh,
        connections: 256,
        cpu_max: Some(1.8),
        rate_min: Some(0.5),
    },
];

/// Rows of other modules.
const OTHERS: &[&str] = &[
    P7,
    "P4-redis",
    "P4-journaled",
    "P5-redis",
    "P6",
    "P8",
    "P9",
    "P9-postgres",
    "P9-redis",
    "P12",
    "P13",
    "P14-64",
    "P14-8",
    "P14-1",
    "P14-replay",
    "P14-sweep",
    returning::NAME,
    outage::NAME,
    journaled::P10,
    journaled::P11,
    view::AT[0].0,
    view::AT[1].0,
    view::AT[2].0,
    view::AT[3].0,
];

/// Durable claims beside a bare log, which the store's own example measures.
const P7: &str = "P7";
const P7_CALLERS: &str = "64";
const P7_MIN: f64 = 0.8;

/// Measures the rows whose names begin with one of `names`, or all, and writes their figures to `json` too.
///
/// # Errors
/// Where a row cannot be measured, or there is none of a name.
pub(crate) fn run(names: &[&str], rounds: Rounds, json: Option<&Path>) -> anyhow::Result<()> {
    let all: Vec<&str> =
        ROWS.iter().map(|row| row.name).chain(OTHERS.iter().copied()).chain(gateways::names()).collect();
    let is_named = |row: &str, name: &str| row == name || row.starts_with(&format!("{name}-"));
    let wanted = |row: &str| names.is_empty() || names.iter().any(|name| is_named(row, name));
    for name in names {
        ensure!(all.iter().any(|row| is_named(row, name)), "no row {name}; there are {}", all.join(" "));
    }
    let folder = Folder::new()?;
    let rows: Vec<&Row> = ROWS.iter().filter(|row| wanted(row.name)).collect();
    println!("{} rounds of {} s each, in turns; medians", rounds.count, rounds.span.as_secs());
    let mut lines = Vec::new();
    let mut tell = |line: Line| {
        line.print();
        lines.push(line);
    };
    if !rows.is_empty() {
        let servers = Servers::start(&folder.0)?;
        for row in rows {
            tell(measure(row, &servers, rounds, &folder.0).with_context(|| row.name)?);
        }
    }
    gateways::measure(rounds, &folder.0, wanted, &mut tell)?;
    if wanted(P7) {
        tell(claims(&folder.0, rounds).context(P7)?);
    }
    if wanted("P8") {
        tell(growth::measure(&folder.0, rounds, rounds.records).context("P8")?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if wanted("P9") {
        tell(runtime.block_on(inside::waiters(rounds)).context("P9")?);
    }
    if wanted("P9-postgres") {
        tell(runtime.block_on(postgres::waiters(rounds)).context("P9-postgres")?);
    }
    if wanted("P9-redis") {
        tell(runtime.block_on(redis::waiters(rounds)).context("P9-redis")?);
    }
    if wanted("P4-redis") {
        tell(runtime.block_on(redis::claims(rounds)).context("P4-redis")?);
    }
    if wanted("P4-journaled") {
        tell(runtime.block_on(redis::fronted_claims(rounds)).context("P4-journaled")?);
    }
    if wanted("P5-redis") {
        tell(runtime.block_on(redis::replays(rounds)).context("P5-redis")?);
    }
    if wanted("P6") {
        tell(runtime.block_on(redis::memory()).context("P6")?);
    }
    if wanted("P12") {
        tell(inside::record_size().context("P12")?);
    }
    if wanted("P13") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tell(runtime.block_on(inside::layer_in_axum(rounds)).context("P13")?);
    }
    if ["P14-64", "P14-8", "P14-1"].into_iter().any(wanted) {
        for line in runtime.block_on(postgres::claims(rounds, wanted)).context("P14")? {
            tell(line);
        }
    }
    if wanted("P14-replay") {
        tell(runtime.block_on(postgres::replays(rounds)).context("P14-replay")?);
    }
    if wanted("P14-sweep") {
        tell(runtime.block_on(postgres::sweep(rounds)).context("P14-sweep")?);
    }
    if wanted(journaled::P10) {
        tell(journaled::routes(&runtime, rounds, &folder.0).context(journaled::P10)?);
    }
    if wanted(journaled::P11) {
        tell(runtime.block_on(journaled::shipping(rounds, &folder.0)).context(journaled::P11)?);
    }
    if wanted(outage::NAME) {
        tell(runtime.block_on(outage::measure(&folder.0)).context(outage::NAME)?);
    }
    if view::AT.iter().any(|(name, _)| wanted(name)) {
        runtime.block_on(view::measure(rounds, &folder.0, wanted, &mut tell)).context(view::NAME)?;
    }
    if wanted(returning::NAME) {
        tell(runtime.block_on(returning::measure(&folder.0)).context(returning::NAME)?);
    }
    json.map_or(Ok(()), |path| report::write_json(path, &lines))
}

/// Soaks Onceward for so many minutes, and prints what came of it.
///
/// # Errors
/// Where a process does not start, or a connection ends.
pub(crate) fn soak(minutes: u32) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let upstream = Server::start(Command::new(std::env::current_exe()?).arg("upstream"))?;
    soak::measure(&upstream, &binaries()?.join("onceward"), &folder.0, minutes)?.print();
    Ok(())
}

/// Where everything is written, on the disk of the binaries; gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let folder = binaries()?.join(format!("bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The folder that this binary is in, and so the others.
pub(crate) fn binaries() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("no folder")?.to_path_buf())
}

struct Servers {
    onceward: Server,
    nginx: Server,
    plain_proxy: Server,
    /// Last, so that it is stopped last.
    _upstream: Server,
}

impl Servers {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let upstream = Server::start(Command::new(&own).arg("upstream"))?;
        let nginx = Server::nginx(&upstream.url, &folder.join("nginx"))?;
        let plain_proxy = Server::start(Command::new(&own).args(["plain-proxy", &upstream.url]))?;
        let mut onceward = Command::new(binaries()?.join("onceward"));
        onceward.args(["proxy", "--upstream", &upstream.url, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let onceward = Server::start(onceward.arg("--data").arg(folder.join("data")))?;
        Ok(Self { onceward, nginx, plain_proxy, _upstream: upstream })
    }
}

fn measure(row: &Row, servers: &Servers, rounds: Rounds, folder: &Path) -> anyhow::Result<Line> {
    let baseline = match row.baseline {
        Baseline::Nginx => &servers.nginx,
        Baseline::PlainProxy => &servers.plain_proxy,
    };
    let round = |number, span| Round { keys: row.keys, connections: row.connections, span, number, folder };
    let warm_up = round(0, Duration::from_secs(1));
    load::look(baseline, warm_up).context("baseline")?;
    load::warm_up(&servers.onceward, warm_up).context("onceward")?;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for number in 1..=rounds.count {
        theirs.push(load::run(baseline, round(number, rounds.span)).context("baseline")?);
        ours.push(load::run(&servers.onceward, round(number, rounds.span)).context("onceward")?);
    }
    Ok(line(row, &ours, &theirs))
}

/// A row's line: its ratios with their aims, then the figures that they come from.
fn line(row: &Row, ours: &[Figures], theirs: &[Figures]) -> Line {
    let (cpu, rate) =
        (load::ratio(ours, theirs, |figures| figures.cpu_us), load::ratio(ours, theirs, |figures| figures.per_second));
    let cpu_aim = row.cpu_max.map_or(String::new(), |max| aim("at most", max, cpu <= max));
    let rate_aim = row.rate_min.map_or(String::new(), |min| aim("at least", min, rate >= min));
    let (ours_cpu, p99) =
        (median(ours.iter().map(|own| own.cpu_us).collect()), median(ours.iter().map(|own| own.p99_us).collect()));
    Line {
        name: row.name,
        text: format!(
            "{}: CPU {cpu:.2}x{cpu_aim}, rate {rate:.2}x{rate_aim}; {} / {}",
            row.what,
            load::shown(ours),
            load::shown(theirs)
        ),
        figures: vec![("cpu", cpu), ("rate", rate), ("cpu_us", ours_cpu), ("p99_us", p99)],
    }
}

/// P7, by the store's example, which has the bare log.
fn claims(folder: &Path, rounds: Rounds) -> anyhow::Result<Line> {
    let mut command = Command::new(binaries()?.join("examples/log_speed"));
    command.arg(folder.join("log")).arg(P7_CALLERS);
    command.args([rounds.span.as_secs().to_string(), rounds.count.to_string()]);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let Some((ratio, rest)) = claims_ratio(&printed) else { bail!("{command:?} printed no ratio:\n{printed}") };
    let aim = aim("at least", P7_MIN, ratio >= P7_MIN);
    Ok(Line {
        name: P7,
        text: format!(
            "durable claims at 64 callers / bare log with group commit: rate {ratio:.2}x{aim}; rounds {rest}"
        ),
        figures: vec![("rate", ratio)],
    })
}

/// The median and the rounds, from `embedded / bare: median 0.91 of [0.90, 0.91] (…)`.
fn claims_ratio(printed: &str) -> Option<(f64, &str)> {
    let line = printed.lines().find_map(|line| line.strip_prefix("embedded / bare: median "))?;
    let (ratio, rest) = line.split_once(" of ")?;
    let end = rest.find(']')?;
    Some((ratio.parse().ok()?, rest.get(..=end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(per_second: f64, cpu_us: f64) -> Figures {
        Figures { per_second, cpu_us, p50_us: 100.0, p99_us: 200.0, failed: 1.0 }
    }

    #[test]
    fn a_row_shows_the_median_of_its_rounds_ratios_and_whether_the_aim_is_met() {
        let row = ROWS.first().unwrap();
        let theirs = [figures(100.0, 10.0), figures(50.0, 10.0), figures(100.0, 20.0)];
        let ours = [figures(200.0, 7.0), figures(100.0, 9.0), figures(400.0, 30.0)];
        let line = line(row, &ours, &theirs).text;
        assert!(line.contains("CPU 0.90x (at most 0.75, missed), rate 2.00x (at least 1.5);"), "{line}");
        assert_eq!(line.matches("3 FAILED").count(), 2, "{line}");
    }

    #[test]
    fn the_example_s_ratio_is_read() {
        let printed = "bare 1/s\nembedded / bare: median 0.91 of [0.90, 0.91, 0.95] (P7: 0.80)\n";
        assert_eq!(claims_ratio(printed), Some((0.91, "[0.90, 0.91, 0.95]")));
        assert_eq!(claims_ratio("bare 1/s"), None);
    }
}
