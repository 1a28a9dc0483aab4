//! P8: what ten million live records cost: claims a second, memory, and the next start.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use onceward::store::embedded::{Embedded, Options};
use onceward::store::{Insert, Store};
use onceward_core::key::RecordId;
use onceward_core::outcome::Outcome;
use onceward_core::record::{ClaimId, Facts, Micros, Phase, SessionId};
use onceward_core::transition;

use crate::inside;
use crate::report::{Line, aim, median};
use crate::rows::Rounds;

/// Who claims while it is measured, and who fills.
const CALLERS: usize = 64;
const FILLERS: usize = 1024;

/// A store in a process of its own, so that its memory is its own.
struct Grown {
    child: Child,
    ask: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Grown {
    fn start(folder: &Path, records: u64) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("grown").arg(folder).arg(records.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let ask = child.stdin.take().context("no standard input")?;
        let said = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, ask, said })
    }

    /// Asks for a line of figures.
    fn ask(&mut self, what: &str) -> anyhow::Result<Vec<f64>> {
        writeln!(self.ask, "{what}")?;
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the store's process ended: {:?}", self.child.try_wait());
        line.split_whitespace().map(|word| word.parse().with_context(|| line.clone())).collect()
    }

    fn end(mut self) -> anyhow::Result<()> {
        drop(self.ask);
        let status = self.child.wait()?;
        ensure!(status.success(), "the store's process: {status}");
        Ok(())
    }
}

/// Measures a store of `records` beside one of ten thousand.
///
/// # Errors
/// Where a store cannot be filled or measured.
pub(crate) fn measure(folder: &Path, rounds: Rounds, records: u64) -> anyhow::Result<Line> {
    const FEW: u64 = 10_000;
    let (small, large) = (folder.join("small"), folder.join("large"));
    let mut few = Grown::start(&small, FEW)?;
    let mut many = Grown::start(&large, records)?;
    for store in [&mut few, &mut many] {
        store.ask("fill")?;
    }
    let span = rounds.span.as_millis();
    let mut ratios = Vec::new();
    for _ in 0..rounds.count {
        let ask = format!("claim {span}");
        let [theirs] = *few.ask(&ask)? else { bail!("no figures") };
        let [ours] = *many.ask(&ask)? else { bail!("no figures") };
        ratios.push(ours / theirs);
    }
    let [resident_mib] = *many.ask("resident")? else { bail!("no figures") };
    few.end()?;
    many.end()?;
    let mut again = Grown::start(&large, records)?;
    let [start_s, start_mib] = *again.ask("open")? else { bail!("no figures") };
    again.end()?;
    let ratio = median(ratios);
    Ok(Line {
        name: "P8",
        text: format!(
            "durable claims at {records} records / at {FEW}: rate {ratio:.2}x{}; resident {resident_mib:.0} MiB{}, the next start {start_s:.1} s{} at {start_mib:.0} MiB",
            aim("at least", 0.85, ratio >= 0.85),
            aim("at most", 768.0, resident_mib <= 768.0),
            aim("at most", 4.0, start_s <= 4.0),
        ),
        figures: vec![
            ("records", records as f64),
            ("rate", ratio),
            ("resident_mib", resident_mib),
            ("start_s", start_s),
        ],
    })
}

/// The process of one store: answers each line of its input with a line of figures.
///
/// # Errors
/// Where the store fails.
pub(crate) async fn grown(folder: &str, records: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut options = Options::default();
    options.records_max = usize::MAX;
    let store = Embedded::open(folder, options).await?;
    let opened = started.elapsed();
    let next = Arc::new(AtomicU64::new(store.stats().records));
    for line in std::io::stdin().lines() {
        let line = line?;
        let (what, of) = line.split_once(' ').unwrap_or((&line, ""));
        match what {
            "fill" => {
                work(&store, &next, FILLERS, move |number| number < records).await?;
                println!("{}", store.stats().records);
            }
            "claim" => {
                let (span, before) = (Duration::from_millis(of.parse()?), next.load(Ordering::Relaxed));
                let began = Instant::now();
                work(&store, &next, CALLERS, move |_| began.elapsed() < span).await?;
                let made = next.load(Ordering::Relaxed) - before;
                println!("{}", made as f64 / began.elapsed().as_secs_f64());
            }
            "resident" => println!("{}", resident_mib()?),
            "open" => println!("{} {}", opened.as_secs_f64(), resident_mib()?),
            _ => bail!("no such measurement: {line}"),
        }
    }
    store.close().await;
    Ok(())
}

fn resident_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Claims and completes fresh keys while `goes_on`, given how many there are.
async fn work(
    store: &Embedded,
    next: &Arc<AtomicU64>,
    callers: usize,
    goes_on: impl Fn(u64) -> bool + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (store, next, goes_on) = (store.clone(), Arc::clone(next), goes_on.clone());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if !goes_on(number) {
                        next.fetch_sub(1, Ordering::Relaxed);
                        return anyhow::Ok(());
                    }
                    once(&store, number).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn once(store: &Embedded, number: u64) -> anyhow::Result<()> {
    let facts = Facts {
        phase: Phase::Dispatched,
        attempt: 1,
        fingerprint_policy: 1,
        fingerprint: [9; 32],
        route: "create-payment".into(),
        tenant: "default".into(),
        env: "default".into(),
        ..transition::place(ClaimId([1; 16]), SessionId([1; 16]))
    };
    let id = id(number);
    let Insert::Inserted { fence, .. } = store.insert(id, &facts, Duration::from_secs(10)).await? else {
        bail!("a fresh key is taken");
    };
    let outcome = Outcome { status: 201, body: inside::answer(), ..Outcome::default() };
    let write = transition::complete(&facts, fence, outcome, Duration::from_secs(7 * 86_400), Micros(1));
    let transition::Write::Replace(write) = write else { bail!("a completion replaces") };
    store.replace(id, &write).await?;
    Ok(())
}

/// Ids are uniform: the number, mixed (splitmix64).
fn id(number: u64) -> RecordId {
    let mut id = [0; 32];
    let mut state = number;
    for part in id.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        part.copy_from_slice(&(word ^ word >> 31).to_le_bytes());
    }
    RecordId(id)
}
