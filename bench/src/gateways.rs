//! Onceward as a proxy on Redis: beside a plain proxy (P4, P5), and beside libraries for Express that keep keys in Redis
//! (P15).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::load::{self, Figures, Keys, Round};
use crate::process::{Cpu, Server};
use crate::redis::Place;
use crate::report::{Line, aim, median};
use crate::rows::{Rounds, binaries};

const REPLAYED: Keys = Keys::Same("the-one-that-is-replayed");

/// What is asked, of whom, and what is aimed at.
struct Row {
    name: &'static str,
    what: &'static str,
    /// `None`: the plain proxy.
    peer: Option<&'static str>,
    keys: Keys,
    cpu_max: f64,
    /// At least so many times as many requests a second.
    rate_min: Option<f64>,
}

const ROWS: &[Row] = &[
    Row {
        name: "P4-proxy",
        what: "fresh on Redis / plain proxy",
        peer: None,
        keys: Keys::Fresh,
        cpu_max: 1.5,
        rate_min: None,
    },
    Row {
        name: "P5-proxy",
        what: "replay on Redis / plain proxy",
        peer: None,
        keys: REPLAYED,
        cpu_max: 1.0,
        rate_min: None,
    },
    Row {
        name: "P15-node-fresh",
        what: "fresh on Redis / node-idempotency in Express",
        peer: Some("node-idempotency"),
        keys: Keys::Fresh,
        cpu_max: 0.2,
        rate_min: Some(5.0),
    },
    Row {
        name: "P15-node-replay",
        what: "replay on Redis / node-idempotency in Express",
        peer: Some("node-idempotency"),
        keys: REPLAYED,
        cpu_max: 0.2,
        rate_min: Some(5.0),
    },
    Row {
        name: "P15-express-fresh",
        what: "fresh on Redis / express-idempotency",
        peer: Some("express-idempotency"),
        keys: Keys::Fresh,
        cpu_max: 0.2,
        rate_min: Some(5.0),
    },
    Row {
        name: "P15-express-replay",
        what: "replay on Redis / express-idempotency",
        peer: Some("express-idempotency"),
        keys: REPLAYED,
        cpu_max: 0.2,
        rate_min: Some(5.0),
    },
];

/// Their names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.name)
}

/// Measures those that are wanted, and tells each.
///
/// # Errors
/// Where a server is missing or does not start, or answers otherwise than the row says.
pub(crate) fn measure(
    rounds: Rounds,
    folder: &Path,
    wanted: impl Fn(&str) -> bool,
    mut tell: impl FnMut(Line),
) -> anyhow::Result<()> {
    let rows: Vec<&Row> = ROWS.iter().filter(|row| wanted(row.name)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let own = std::env::current_exe()?;
    let upstream = Server::start(Command::new(&own).arg("upstream"))?;
    let place = Place::new()?;
    let onceward = gateway("redis", &upstream.url, &on_redis(&place), folder)?;
    for (row, series) in rows.into_iter().zip(0..) {
        let theirs = Place::new()?;
        let baseline = match row.peer {
            None => Server::start(Command::new(&own).args(["plain-proxy", &upstream.url]))?,
            Some(peer) => library(peer, &theirs, folder)?,
        };
        // Fresh keys of one row are not those of another.
        let round =
            |number, span| Round { keys: row.keys, connections: 64, span, number: series * 100 + number, folder };
        let warm_up = round(0, Duration::from_secs(1));
        load::look(&baseline, warm_up).context("baseline")?;
        load::warm_up(&onceward, warm_up).context(row.name)?;
        let (mut ours, mut others) = (Asked::default(), Asked::default());
        for number in 1..=rounds.count {
            others.ask(&baseline, &theirs, round(number, rounds.span)).context("baseline")?;
            ours.ask(&onceward, &place, round(number, rounds.span)).context("onceward")?;
        }
        tell(line(row, &ours, &others));
    }
    Ok(())
}

/// What one of the two came to, round by round.
#[derive(Default)]
struct Asked {
    figures: Vec<Figures>,
    redis_us: Vec<f64>,
}

impl Asked {
    fn ask(&mut self, server: &Server, place: &Place, round: Round<'_>) -> anyhow::Result<()> {
        let before = Cpu::of(place.process());
        let figures = load::run(server, round)?;
        let redis = Cpu::of(place.process()).since(&before);
        self.redis_us.push(redis / (figures.per_second * round.span.as_secs_f64()));
        self.figures.push(figures);
        Ok(())
    }

    fn of(&self, part: fn(&Figures) -> f64) -> f64 {
        median(self.figures.iter().map(part).collect())
    }

    fn shown(&self) -> String {
        format!(
            "{:.1} us CPU, {:.1} us Redis, {:.0}/s, p99 {:.0} us",
            self.of(|figures| figures.cpu_us),
            median(self.redis_us.clone()),
            self.of(|figures| figures.per_second),
            self.of(|figures| figures.p99_us)
        )
    }
}

fn line(row: &Row, ours: &Asked, theirs: &Asked) -> Line {
    let ratio = |of| load::ratio(&ours.figures, &theirs.figures, of);
    let (cpu, rate) = (ratio(|figures| figures.cpu_us), ratio(|figures| figures.per_second));
    let rate_aim = row.rate_min.map_or(String::new(), |min| aim("at least", min, rate >= min));
    Line {
        name: row.name,
        text: format!(
            "{}: CPU {cpu:.2}x{}, rate {rate:.2}x{rate_aim}; {} / {}",
            row.what,
            aim("at most", row.cpu_max, cpu <= row.cpu_max),
            ours.shown(),
            theirs.shown()
        ),
        figures: vec![("cpu", cpu), ("rate", rate), ("redis_us", median(ours.redis_us.clone()))],
    }
}

/// The store and the defaults of a gateway on Redis alone.
pub(crate) fn on_redis(place: &Place) -> String {
    let url = place.url();
    format!(
        "kind = \"redis\"\nredis = {{ url = \"{url}\" }}\n[defaults]\ndurability = \"cache\"\n\
         scope = {{ env = \"fixed:bench\" }}\n"
    )
}

/// A gateway by its name; `store` is what its file says from its `[store]` on.
///
/// # Errors
/// Where it does not start.
pub(crate) fn gateway(name: &str, upstream: &str, store: &str, folder: &Path) -> anyhow::Result<Server> {
    let (file, data) = (folder.join(format!("{name}.toml")), folder.join(format!("{name}-data")));
    let said = format!(
        "[identity]\nsecret = \"{}=\"\n[store]\npath = {:?}\n{store}[[upstream]]\nname = \"api\"\nurl = \"{upstream}\"\n",
        "A".repeat(43),
        data.display().to_string(),
    );
    std::fs::write(&file, said)?;
    let mut command = Command::new(binaries()?.join("onceward"));
    command.args(["proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"]).arg(&file);
    Server::start(&mut command)
}

/// Node finds its packages by NODE_PATH.
fn library(peer: &str, place: &Place, folder: &Path) -> anyhow::Result<Server> {
    let script = folder.join("server.cjs");
    std::fs::write(&script, include_str!("../peers/server.cjs"))?;
    let started = Server::start(Command::new("node").arg(&script).args([peer, &place.url()]));
    started.context("does NODE_PATH name the packages of bench/peers/package.json?")
}
