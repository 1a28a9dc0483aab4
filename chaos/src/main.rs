//! The crash checker: real processes are killed, stopped and damaged while clients hammer them, and a judge reads the
//! upstream's ledger and the clients' log.
//!
//! # Layout
//!
//! [`plan`] what a seed means · [`round`] one plan carried out · [`lives`] faults, life by life, with
//! [`damage`], [`disk`] and [`clock`] · [`gateway`] the process
//! under test · [`ledger`] the upstream, which knows the truth · [`clients`], [`traffic`] who asks, and what all of them
//! saw · [`history`] what is judged · [`judge`] the rules · [`mutants`] the product
//! without one of its safeties

mod clients;
mod clock;
mod damage;
mod disk;
mod gateway;
mod history;
mod judge;
mod ledger;
mod lives;
mod mutants;
mod plan;
mod round;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use onceward_core::mutant::Mutant;

use crate::plan::{NAMES, Plan};
use crate::round::{Counts, Programs};

/// Against what hangs; no verdict depends on it but that a key ends.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "Kills, stops and damages real processes, and judges what clients and the upstream saw")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Carries plans out
    Run {
        /// The binary under test
        #[arg(long)]
        onceward: PathBuf,
        /// The seed of the first round; each further one has the next
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only this plan, once
        #[arg(long)]
        plan: Option<String>,
        /// Rounds go on for so long; without it each plan has one
        #[arg(long, conflicts_with = "long")]
        seconds: Option<u64>,
        /// As --seconds, in minutes
        #[arg(long, value_name = "MINUTES")]
        long: Option<u64>,
    },
    /// Runs the same plans with each safety taken out: each must be found red
    Mutants {
        /// A binary with the feature `mutants`
        #[arg(long)]
        onceward: PathBuf,
        /// The seed of the first plan; each further one has the next
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only this mutant
        #[arg(long)]
        only: Option<String>,
    },
    /// The upstream
    #[command(hide = true)]
    Ledger {
        /// Where it writes
        file: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Ledger { file } => ledger::serve(&file).await.map(|()| true),
        Command::Mutants { onceward, seed, only } => teeth(onceward, seed, only.as_deref()).await,
        Command::Run { onceward, seed, plan, seconds, long } => {
            let programs = Programs { onceward, mutant: None };
            let seconds = seconds.or(long.map(|minutes| minutes.saturating_mul(60)));
            run(&programs, seed, plan.as_deref(), seconds.map(Duration::from_secs)).await
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The names of the plans that this machine can carry out; what it cannot is said.
fn possible() -> Vec<&'static str> {
    let can_fill_a_disk = disk::can_mount();
    if let Err(why) = &can_fill_a_disk {
        println!("LEFT OUT: the plan disk: {why:#}");
    }
    NAMES.iter().copied().filter(|name| *name != "disk" || can_fill_a_disk.is_ok()).collect()
}

/// The plans of a run that does not go on: each once, from this seed on.
fn plans(seed: u64) -> Vec<Plan> {
    possible().iter().zip(seed..).filter_map(|(name, seed)| Plan::of(name, seed)).collect()
}

async fn teeth(onceward: PathBuf, seed: u64, only: Option<&str>) -> anyhow::Result<bool> {
    let names = || Mutant::ALL.map(Mutant::name);
    let only =
        only.map(|name| Mutant::named(name).with_context(|| format!("no mutant {name}; there are {:?}", names())));
    mutants::all(&Programs { onceward, mutant: None }, &plans(seed), only.transpose()?).await
}

/// Carries plans out until one is found red. True: none was.
async fn run(programs: &Programs, seed: u64, plan: Option<&str>, goes_on: Option<Duration>) -> anyhow::Result<bool> {
    let names: Vec<&str> = match plan {
        Some(name) => vec![name],
        None => possible(),
    };
    let began = Instant::now();
    let mut counts = Counts::default();
    let mut seed = seed;
    loop {
        for name in &names {
            let plan = Plan::of(name, seed).with_context(|| format!("no plan {name}; there are {NAMES:?}"))?;
            if !one(&plan, programs, &mut counts).await? {
                println!("\n{counts}\nRED\n{} passed, 1 failed", counts.rounds - 1);
                return Ok(false);
            }
            seed += 1;
        }
        if goes_on.is_none_or(|goes_on| began.elapsed() >= goes_on) {
            break;
        }
    }
    println!("\n{counts}\ngreen in {:.0} s", began.elapsed().as_secs_f64());
    println!("{} passed, 0 failed", counts.rounds);
    Ok(true)
}

async fn one(plan: &Plan, programs: &Programs, counts: &mut Counts) -> anyhow::Result<bool> {
    println!("{}", plan.command());
    let began = Instant::now();
    let judged = round::run(plan, programs).await?;
    let mine = &judged.counts;
    println!(
        "  {:.1} s  kills {}  keys {}  dispatches {}  replays {}  unknown {}  duplicates in flight {}  duplicates {}",
        began.elapsed().as_secs_f64(),
        mine.kills,
        mine.keys,
        mine.dispatches,
        mine.replays,
        mine.unknowns,
        mine.duplicates_at_a_kill,
        mine.duplicates
    );
    counts.add(mine);
    for broken in judged.broken.iter().take(20) {
        println!("  BROKEN {}: {}: {}", broken.rule, broken.operation, broken.what);
    }
    if let Some(kept) = &judged.kept {
        println!("  {} rules broken; ledger and logs are in {}", judged.broken.len(), kept.display());
    }
    Ok(judged.broken.is_empty())
}
