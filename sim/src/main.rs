//! Whole systems in virtual time: the engine and the journaled store's protocol over a Redis, a database and a network
//! that fail. One seed is one run.
//!
//! [`world`] the network and the truth; [`redis`] and [`onceward_sim::database`] the servers, [`journal`] the way to the
//! database; [`gateway`] what users get, over them; [`faults`] what is done to it all; [`run`] one run; [`history`] what was
//! seen of it, and what was promised.

#![expect(clippy::indexing_slicing, reason = "a run that asks for what is not there is to end at once")]

mod faults;
mod gateway;
mod history;
mod journal;
mod redis;
mod run;
mod world;

use std::{
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use onceward_core::mutant::{self, Mutant};

/// Mutants that no run has shown yet, so that nobody takes them for shown; the view protocol's model shows them. But for
/// `swept-comes-back`: one run in 100 000 shows it, which takes longer than there is time for each time.
const NOT_SHOWN: &[Mutant] = &[
    Mutant::SweptComesBack,
    Mutant::StalePhase,
    Mutant::DatabaseAdmitsAll,
    Mutant::DatabaseTakesRetiring,
    Mutant::DeadClaimWins,
    Mutant::DeadClaimDrained,
];

/// Runs whole systems in virtual time, and looks at what clients and the upstream saw.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many runs.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Begins no more runs after so many seconds, and says how many it were.
    #[arg(long)]
    seconds: Option<u64>,
    /// And then again with one safety taken out at a time, each until a run shows it.
    #[arg(long)]
    mutants: bool,
    /// Of the safeties these, and no run with all of them.
    #[arg(long, value_delimiter = ',', value_parser = named)]
    only: Vec<Mutant>,
    /// So many runs of each at most.
    #[arg(long, default_value_t = 200_000)]
    mutant_seeds: u64,
    /// Says of each run what came of it.
    #[arg(long)]
    verbose: bool,
    /// Shows what gateways say; of use with one seed.
    #[arg(long)]
    trace: bool,
}

fn named(name: &str) -> Result<Mutant, String> {
    Mutant::named(name).ok_or_else(|| {
        let all: Vec<&str> = Mutant::OF_VIEWS.iter().map(|mutant| mutant.name()).collect();
        format!("there are {}", all.join(", "))
    })
}

/// What came of many runs.
#[derive(Debug, Default)]
struct Explored {
    runs: u64,
    /// In how many the database served.
    on_database: u64,
    /// In how many views went on without a gateway that was gone.
    forced: u64,
    took: Duration,
    /// The lowest seed whose run broke a promise, and which.
    broken: Option<(u64, String)>,
}

fn explore(arguments: &Arguments, seeds: u64, seconds: Option<u64>) -> Explored {
    let started = Instant::now();
    let next = AtomicU64::new(arguments.from);
    let [runs, on_database, forced] = [const { AtomicU64::new(0) }; 3];
    let broken = Mutex::new(None::<(u64, String)>);
    let found = || broken.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = seconds.map(Duration::from_secs);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(|| {
                while found().is_none() && limit.is_none_or(|limit| started.elapsed() < limit) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.from.saturating_add(seeds) {
                        return;
                    }
                    let history = run::run(seed);
                    runs.fetch_add(1, Ordering::Relaxed);
                    on_database.fetch_add(u64::from(history.is_database_used), Ordering::Relaxed);
                    forced.fetch_add(u64::from(!history.forced.is_empty()), Ordering::Relaxed);
                    if arguments.verbose {
                        println!("{seed}: {history}");
                    }
                    if let Some(rule) = history.broken() {
                        let mut found = found();
                        if found.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *found = Some((seed, format!("{rule}\n    {history}")));
                        }
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
    let [runs, on_database, forced] = [runs, on_database, forced].map(AtomicU64::into_inner);
    Explored { runs, on_database, forced, took: started.elapsed(), broken }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.trace {
        let shown = tracing_subscriber::fmt().with_env_filter("onceward_sim=trace,onceward_store=debug");
        shown.without_time().with_target(false).with_ansi(false).with_writer(std::io::stderr).init();
    }
    let (mut passed, mut failed) = (0, 0);
    if arguments.only.is_empty() {
        let Explored { runs, on_database, forced, took, broken } =
            explore(&arguments, arguments.seeds, arguments.seconds);
        println!(
            "{runs} runs from seed {} in {:.1} s; in {on_database} the database served, in {forced} views went on without a gateway",
            arguments.from,
            took.as_secs_f64()
        );
        if let Some((seed, rule)) = broken {
            println!("  BROKEN by seed {seed}: {rule}\n  again: cargo xtask sim --from {seed} --seeds 1 --trace");
            failed += 1;
        } else {
            passed += runs;
        }
    }
    let all = if arguments.mutants { Mutant::OF_VIEWS.as_slice() } else { &[] };
    let wanted = if arguments.only.is_empty() { all } else { &arguments.only };
    for mutant in wanted {
        if arguments.only.is_empty() && NOT_SHOWN.contains(mutant) {
            println!("  {}: no run has shown it yet, or one in very many, and none was tried", mutant.name());
            continue;
        }
        choose(*mutant);
        let Explored { runs, took, broken, .. } = explore(&arguments, arguments.mutant_seeds, None);
        match broken {
            Some((seed, rule)) => {
                let rule = rule.lines().next().unwrap_or_default();
                println!("  {}: shown by seed {seed}, after {runs} runs: {rule}", mutant.name());
                passed += 1;
            }
            None => {
                println!("  {}: NOT SHOWN by {runs} runs in {:.1} s", mutant.name(), took.as_secs_f64());
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(feature = "mutants")]
fn choose(mutant: Mutant) {
    mutant::choose(mutant);
}

/// In a build without the feature there is nothing to take out.
#[cfg(not(feature = "mutants"))]
fn choose(mutant: Mutant) {
    debug_assert!(!mutant::is(mutant), "{} cannot be taken out of this build", mutant.name());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_run_and_another_seed_another() {
        let [first, again, other] = [7, 7, 8].map(|seed| format!("{:?}", run::run(seed)));
        assert_eq!(first, again);
        assert_ne!(first, other);
    }
}
