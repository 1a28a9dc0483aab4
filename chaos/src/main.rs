//! The crash checker: real processes are killed, stopped and damaged while clients hammer them, and a judge reads the
//! upstream's ledger and the clients' log.
//!
//! # Layout
//!
//! [`plan`] what a seed means · [`round`] one plan carried out · [`lives`] faults, life by life, with
//! [`damage`], [`disk`] and [`clock`] · [`gateway`] a process
//! under test · [`backing`] what is behind it: a folder, a [`database`] or a [`cache`] behind a relay, both, or a Cluster's [`shards`] · [`ledger`] the upstream, which knows the truth · [`clients`], [`traffic`] who asks, and what all of them
//! saw · [`history`] what is judged · [`judge`] the rules · [`mutants`] the product
//! without one of its safeties

mod backing;
mod cache;
mod clients;
mod clock;
mod damage;
mod database;
mod disk;
mod gateway;
mod history;
mod judge;
mod ledger;
mod lives;
mod mutants;
mod plan;
mod round;
mod shards;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use onceward_core::mutant::Mutant;

use crate::backing::Store;
use crate::plan::{Durability, Plan, RESHARDING, Strategy, names};
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
        /// Only the plans of this store; without it those of each
        #[arg(long)]
        store: Option<Store>,
        /// Only these plans, apart by commas; without --store they are the embedded store's
        #[arg(long, value_delimiter = ',')]
        plan: Vec<String>,
        /// How processes take steps on one Redis
        #[arg(long, value_enum, default_value_t)]
        strategy: Strategy,
        /// Where all routes of the tiered store have their records
        #[arg(long)]
        durability: Option<Durability>,
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
        /// Only the plans of this store; without it those of each
        #[arg(long)]
        store: Option<Store>,
        /// Where all routes of the tiered store have their records
        #[arg(long)]
        durability: Option<Durability>,
        /// Only these mutants, apart by commas; those of views are run where they are named
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
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
        Command::Mutants { onceward, seed, store, durability, only } => match kept(store, durability) {
            Ok(durability) => teeth(onceward, seed, store, durability, &only).await,
            Err(error) => Err(error),
        },
        Command::Run { onceward, seed, store, plan, strategy, durability, seconds, long } => {
            let programs = Programs { onceward, mutant: None };
            let seconds = seconds.or(long.map(|minutes| minutes.saturating_mul(60)));
            let chosen = kept(store, durability).and_then(|durability| {
                let how = How { strategy, durability };
                Ok((by(strategy, chosen(store, &plan)?)?, how))
            });
            match chosen {
                Ok((chosen, how)) => run(&programs, seed, &chosen, how, seconds.map(Duration::from_secs)).await,
                Err(error) => Err(error),
            }
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

/// What a plan leaves open.
#[derive(Clone, Copy)]
struct How {
    strategy: Strategy,
    durability: Durability,
}

/// Where the routes of the tiered store have their records.
fn kept(store: Option<Store>, durability: Option<Durability>) -> anyhow::Result<Durability> {
    let is_there = durability.is_none() || store == Some(Store::Tiered);
    ensure!(is_there, "only with both is there a choice of durability: --store tiered");
    Ok(durability.unwrap_or_default())
}

/// A plan by its store and name.
type Name = (Store, &'static str);

/// The plans of this store that this machine can carry out; what it cannot is said.
fn possible(store: Store) -> Vec<Name> {
    let mut plans: Vec<Name> = names(store).iter().map(|name| (store, *name)).collect();
    if store == Store::Embedded
        && let Err(why) = disk::can_mount()
    {
        println!("LEFT OUT: the plan disk: {why:#}");
        plans.retain(|(_, name)| *name != "disk");
    }
    plans
}

/// The plans that are asked for.
fn chosen(store: Option<Store>, plans: &[String]) -> anyhow::Result<Vec<Name>> {
    if plans.is_empty() {
        let stores = store.map_or(Store::ALL.to_vec(), |store| vec![store]);
        return Ok(stores.into_iter().flat_map(possible).collect());
    }
    let store = store.unwrap_or(Store::Embedded);
    let known = names(store);
    let found = plans.iter().map(|plan| {
        let name = known.iter().find(|name| *name == plan);
        Ok((store, *name.with_context(|| format!("no plan {plan} on {}; there are {known:?}", store.name()))?))
    });
    found.collect()
}

/// Those of them that can take steps so; what is left out is said.
fn by(strategy: Strategy, chosen: Vec<Name>) -> anyhow::Result<Vec<Name>> {
    if strategy == Strategy::Script {
        return Ok(chosen);
    }
    let (on_one, others): (Vec<Name>, Vec<Name>) =
        chosen.into_iter().partition(|(store, name)| *store == Store::Redis && *name != RESHARDING);
    ensure!(!on_one.is_empty(), "only on one Redis are there strategies: --store redis");
    for (store, name) in others {
        println!("LEFT OUT: {} {name}: only on one Redis are there strategies", store.name());
    }
    Ok(on_one)
}

async fn teeth(
    onceward: PathBuf,
    seed: u64,
    store: Option<Store>,
    durability: Durability,
    only: &[String],
) -> anyhow::Result<bool> {
    let named = |name: &String| {
        let names = || Mutant::ALL.into_iter().chain(Mutant::OF_VIEWS).map(Mutant::name).collect::<Vec<_>>();
        Mutant::named(name).with_context(|| format!("no mutant {name}; there are {:?}", names()))
    };
    let only: Vec<Mutant> = only.iter().map(named).collect::<anyhow::Result<_>>()?;
    let programs = Programs { onceward, mutant: None };
    let mut all = true;
    for store in Store::ALL.into_iter().filter(|one| store.is_none_or(|only| only == *one)) {
        let plans = possible(store).into_iter().zip(seed..);
        let plans = plans.filter_map(|((store, name), seed)| Plan::of(store, name, seed));
        let plans: Vec<Plan> = plans.map(|plan| Plan { durability, ..plan }).collect();
        all &= mutants::all(&programs, store, &plans, &only).await?;
    }
    Ok(all)
}

/// Carries plans out until one is found red. True: none was.
async fn run(
    programs: &Programs,
    seed: u64,
    names: &[Name],
    how: How,
    goes_on: Option<Duration>,
) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut of_each: Vec<Counts> = names.iter().map(|_| Counts::default()).collect();
    let mut seed = seed;
    let mut is_green = true;
    'rounds: loop {
        for ((store, name), counts) in names.iter().zip(&mut of_each) {
            let How { strategy, durability } = how;
            let plan = Plan { strategy, durability, ..Plan::of(*store, name, seed).context("a plan that is known")? };
            is_green = one(&plan, programs, counts).await?;
            seed += 1;
            if !is_green || goes_on.is_some_and(|goes_on| began.elapsed() >= goes_on) {
                break 'rounds;
            }
        }
        if goes_on.is_none() {
            break;
        }
    }
    let mut counts = Counts::default();
    println!();
    for ((store, name), of_plan) in names.iter().zip(&of_each) {
        println!("{:<8} {name:<11} {}", store.name(), of_plan.in_a_line());
        counts.add(of_plan);
    }
    let failed = usize::from(!is_green);
    let how = if is_green { "green" } else { "RED" };
    println!("\n{counts}\n{how} in {:.0} s", began.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", counts.rounds - failed);
    Ok(is_green)
}

async fn one(plan: &Plan, programs: &Programs, counts: &mut Counts) -> anyhow::Result<bool> {
    println!("{}", plan.command());
    let began = Instant::now();
    let judged = round::run(plan, programs).await?;
    let mine = &judged.counts;
    println!("  {:.1} s  {}", began.elapsed().as_secs_f64(), mine.in_a_line());
    counts.add(mine);
    for broken in judged.broken.iter().take(20) {
        println!("  BROKEN {}: {}: {}", broken.rule, broken.operation, broken.what);
    }
    if let Some(kept) = &judged.kept {
        println!("  {} rules broken; ledger and logs are in {}", judged.broken.len(), kept.display());
    }
    Ok(judged.broken.is_empty())
}
