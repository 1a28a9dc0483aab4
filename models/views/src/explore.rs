//! Runs experiments and says what was found.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use stateright::{Checker, HasDiscoveries, Model as _};

use crate::experiments::{EXPERIMENTS, Experiment};
use crate::model::Model;
use crate::mutants::{self, Mutant};
use crate::properties;

const USAGE: &str = "\
usage: cargo xtask model [--experiment NAME,…] [--long] [--mutants] [--only-mutants] [--trace] [--steps N] [--threads N]
  without more, the small experiments are explored wholly
  --long     all experiments, and with --mutants those that take long
  --mutants  also the protocol with one thing wrong at a time: each must break a rule
  --trace    the shortest way to each broken rule of a mutant; one of the protocol itself is always shown
  --steps N  an experiment is cut after N steps from state to state
  --threads N  experiments at a time";

/// More than any experiment that memory has room for.
const STEPS_MAX: usize = 4_000_000_000;

/// What is asked for.
struct Asked {
    experiments: Vec<&'static Experiment>,
    is_long: bool,
    with_mutants: bool,
    with_protocol: bool,
    traces: bool,
    steps_max: usize,
    threads: usize,
}

impl Asked {
    fn of(words: &[String]) -> anyhow::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut asked = Self {
            experiments: Vec::new(),
            is_long: false,
            with_mutants: false,
            with_protocol: true,
            traces: false,
            steps_max: STEPS_MAX,
            threads,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let number = |text: Option<&String>| -> anyhow::Result<usize> {
                let number = text.and_then(|text| text.parse().ok()).filter(|number| *number > 0);
                number.with_context(|| format!("{word} takes a number from 1\n{USAGE}"))
            };
            match word.as_str() {
                "--experiment" => {
                    for name in words.next().context(USAGE)?.split(',') {
                        let known = || EXPERIMENTS.iter().map(|one| one.name).collect::<Vec<_>>().join(" ");
                        let found = EXPERIMENTS.iter().find(|one| one.name == name);
                        asked
                            .experiments
                            .push(found.with_context(|| format!("no experiment {name}; there are: {}", known()))?);
                    }
                }
                "--long" => asked.is_long = true,
                "--mutants" => asked.with_mutants = true,
                "--only-mutants" => (asked.with_mutants, asked.with_protocol) = (true, false),
                "--trace" => asked.traces = true,
                "--steps" => asked.steps_max = number(words.next())?,
                "--threads" => asked.threads = number(words.next())?,
                _ => bail!("{USAGE}"),
            }
        }
        Ok(asked)
    }

    /// What is run, in the order of the table.
    fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        let is_named = !self.experiments.is_empty();
        let all =
            EXPERIMENTS.iter().filter(|one| !is_named || self.experiments.iter().any(|asked| asked.name == one.name));
        for experiment in all {
            let job = |mutants, must| Job { experiment, mutants, must };
            if self.with_protocol && (is_named || self.is_long || experiment.is_small) {
                jobs.push(job(&[], Must::Hold));
            }
            if self.with_mutants {
                jobs.extend(experiment.mutants.iter().map(|mutants| job(mutants, Must::Break)));
                let all_of_it = self.is_long || is_named;
                jobs.extend(
                    experiment.slow_mutants.iter().filter(|_| all_of_it).map(|mutants| job(mutants, Must::Break)),
                );
                jobs.extend(experiment.harmless.iter().filter(|_| all_of_it).map(|mutants| job(mutants, Must::Hold)));
                jobs.extend(experiment.open.iter().filter(|_| all_of_it).map(|mutants| job(mutants, Must::Either)));
            }
        }
        jobs
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Must {
    Hold,
    Break,
    /// It is not known which.
    Either,
}

#[derive(Clone, Copy)]
struct Job {
    experiment: &'static Experiment,
    mutants: &'static [Mutant],
    must: Must,
}

/// What a run found.
struct Found {
    states: usize,
    depth: usize,
    /// Every state was looked at.
    is_whole: bool,
    took: Duration,
    /// The rule that was broken, with the steps to it.
    broken: Option<(&'static str, Vec<String>)>,
    /// Examples that must be there and were not seen.
    not_seen: Vec<&'static str>,
}

impl Job {
    fn name(&self) -> String {
        let without = mutants::name(self.mutants);
        if without.is_empty() { self.experiment.name.to_owned() } else { format!("{} {without}", self.experiment.name) }
    }

    fn explore(&self, steps_max: usize, orders: bool) -> Found {
        let mut model = Model::new(self.experiment.settings, self.mutants);
        model.orders = orders;
        let properties = model.properties();
        let start = Instant::now();
        let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(steps_max);
        let checker = checker.spawn_bfs().join();
        let found = checker.discoveries();
        let examples = properties.iter().map(|property| property.name).filter(|name| properties::is_example(name));
        let not_seen = examples.filter(|name| !found.contains_key(name)).collect();
        // Several may have been broken before the checker looked up: the shortest way counts.
        let broken = found
            .into_iter()
            .filter(|(name, _)| !properties::is_example(name))
            .map(|(rule, path)| (rule, path.into_actions()))
            .min_by_key(|(rule, steps)| (steps.len(), *rule));
        Found {
            states: checker.unique_state_count(),
            depth: checker.max_depth(),
            is_whole: broken.is_none() && checker.state_count() < steps_max,
            took: start.elapsed(),
            broken: broken.map(|(rule, steps)| (rule, steps.iter().map(|step| format!("{step:?}")).collect())),
            not_seen,
        }
    }

    /// Whether it came out as it must, and a line of the table.
    fn judged(&self, found: &Found) -> (bool, String) {
        let is_right = match self.must {
            Must::Break => found.broken.is_some(),
            Must::Either => true,
            Must::Hold => {
                found.broken.is_none() && !(found.is_whole && self.mutants.is_empty() && !found.not_seen.is_empty())
            }
        };
        let what = match (&found.broken, self.must) {
            (Some((rule, steps)), Must::Break | Must::Either) => {
                format!("killed in {} steps: not \"{rule}\"", steps.len())
            }
            (Some((rule, steps)), Must::Hold) => format!("BROKEN in {} steps: not \"{rule}\"", steps.len()),
            (None, Must::Break) if found.is_whole => "SURVIVED, whole space".to_owned(),
            (None, Must::Break) => "SURVIVED as far as it was looked at".to_owned(),
            (None, Must::Either) if found.is_whole => "breaks nothing, whole space".to_owned(),
            (None, Must::Either) => "CUT, breaks nothing so far".to_owned(),
            (None, Must::Hold) if found.is_whole && !is_right => format!("NOT SEEN: {}", found.not_seen.join(", ")),
            (None, Must::Hold) if found.is_whole => format!("whole space: {}", self.experiment.shows),
            (None, Must::Hold) => format!("CUT, holds so far: {}", self.experiment.shows),
        };
        let (states, seconds) = (found.states, found.took.as_secs_f64());
        (is_right, format!("{:<44} {states:>12} states {:>4} deep {seconds:>8.1} s  {what}", self.name(), found.depth))
    }
}

/// Runs what the words ask for, and prints a table.
///
/// # Errors
/// Wrong usage, a rule that the protocol breaks, an example that is nowhere, a mutant that breaks none.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let asked = Asked::of(words)?;
    let jobs = asked.jobs();
    ensure!(!jobs.is_empty(), "nothing to run\n{USAGE}");
    let at = AtomicUsize::new(0);
    let lines = Mutex::new(Vec::new());
    let wrong = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..asked.threads {
            scope.spawn(|| {
                while let Some((number, job)) = jobs.iter().enumerate().nth(at.fetch_add(1, Ordering::Relaxed)) {
                    let found = job.explore(asked.steps_max, true);
                    let (is_right, mut line) = job.judged(&found);
                    if !is_right {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    if found.broken.is_some() && (asked.traces || job.must == Must::Hold) {
                        // Once more, with gateways that keep their names on the way.
                        let named = job.explore(asked.steps_max, false);
                        let steps = named.broken.map(|(_, steps)| steps).unwrap_or_default();
                        line += &steps.iter().map(|step| format!("\n    {step}")).collect::<String>();
                    }
                    eprintln!("{line}");
                    if let Ok(mut lines) = lines.lock() {
                        lines.push((number, line));
                    }
                }
            });
        }
    });
    let mut lines = lines.into_inner().context("a run panicked")?;
    lines.sort();
    ensure!(lines.len() == jobs.len(), "a run panicked");
    println!();
    for (_, line) in &lines {
        println!("{line}");
    }
    let killed = jobs.iter().filter(|job| job.must == Must::Break).count();
    let wrong = wrong.into_inner();
    println!("\n{killed} explorations were of mutants that must be killed");
    println!("{} passed, {wrong} failed", jobs.len() - wrong);
    ensure!(wrong == 0, "{wrong} explorations came out wrong");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::collections::VecDeque;

    use super::*;
    use crate::model::{Action, Settings};
    use crate::mutants::Mutant::*;
    use crate::state::Key::K1;
    use crate::state::{Fact, GatewayId, Kind, Rule, ServerId, State};

    fn experiment(name: &str) -> &'static Experiment {
        EXPERIMENTS.iter().find(|one| one.name == name).expect(name)
    }

    /// After how many steps at least a rule is broken.
    fn broken(settings: Settings, mutants: &[Mutant], reduces: bool) -> Option<usize> {
        let mut model = Model::new(settings, mutants);
        model.reduces = reduces;
        let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found = checker.discoveries().into_iter().filter(|(name, _)| !properties::is_example(name));
        found.map(|(_, path)| path.into_actions().len()).min()
    }

    #[test]
    fn making_states_one_hides_no_way_to_a_broken_rule_and_makes_none() {
        let base = Settings { faults: 1, ..experiment("base/2").settings };
        let cas = experiment("cas/1").settings;
        let forget = experiment("forget/1").settings;
        let alone = experiment("database_alone/0").settings;
        let failover = experiment("database_pg_alone/1").settings;
        let cases: [(Settings, &[Mutant]); 13] = [
            (base, &[]),
            (base, &[Naive]),
            (base, &[EpochOnly]),
            (base, &[AckBeforeDrain]),
            (base, &[AckWithinTheGuard]),
            (base, &[RetireWithoutFence]),
            (cas, &[FenceOnlyCas]),
            (forget, &[ForgetOutsideTheGuard]),
            (forget, &[ForgetRedisFirst]),
            (alone, &[]),
            (alone, &[TextDeadClaimWins]),
            (alone, &[TextOneClaimAFence]),
            (failover, &[DatabaseFactsNotKept]),
        ];
        for (settings, mutants) in cases {
            let with = broken(settings, mutants, true);
            let without = broken(settings, mutants, false);
            assert_eq!(with, without, "{}", mutants::name(mutants));
            assert_eq!(with.is_none(), mutants.is_empty(), "{}", mutants::name(mutants));
        }
    }

    #[test]
    fn states_that_differ_are_told_apart_by_their_hash() {
        let settings = Settings { faults: 1, ..experiment("base/2").settings };
        let model = Model::new(settings, &[]);
        let mut states: HashSet<State> = model.init_states().into_iter().collect();
        let mut waiting: VecDeque<State> = states.iter().cloned().collect();
        while let Some(state) = waiting.pop_front() {
            for next in model.next_states(&state) {
                if states.insert(next.clone()) {
                    waiting.push_back(next);
                }
            }
        }
        let checker = Model::new(settings, &[]).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        // By whole states here, by their hashes there.
        assert_eq!(states.len(), checker.unique_state_count());
    }

    /// Two faults: Redis restarts empty, and the replica that has missed it, and has a takeover whose reply was lost, takes
    /// its place (A13).
    #[test]
    fn a_takeover_that_nobody_used_gives_way_to_the_journal_when_a_stale_replica_brings_it_back() {
        use Action::*;
        use GatewayId::{G1, G2};
        use ServerId::{A, B};
        let claim = Fact::new(Kind::InFlight, 1);
        let is_lost = [Claim(G1, A, K1), Spool(G1), Ship(G1, K1, claim), LeaseEnds(A, K1), See(G2, A, K1)];
        let and_replicated = [TakeOver(G2, A, K1), Abandon(G2), Replicate];
        let meanwhile = [Restart(A), StartView(G1, A), Ack(G1), Ack(G2), Activate(A), Confirm(G1, A, K1), Mark(G1, A)];
        let comes_back = [Send(G1), Promote, StartView(G1, B), Ack(G1), Ack(G2), LeaseEnds(B, K1), Activate(B)];
        let until_then = [&is_lost[..], &and_replicated, &meanwhile, &comes_back].concat();
        let is_taken_over = [Confirm(G2, B, K1), See(G2, B, K1), TakeOver(G2, B, K1), Spool(G2), Mark(G2, B), Send(G2)];

        let cas = experiment("cas/1").settings;
        let settings = Settings { fences: 3, faults: 2, renews: false, ..cas };
        let after = |mutants: &[Mutant]| {
            let mut model = Model::new(settings, mutants);
            model.orders = false;
            let mut state = model.init_states().pop().expect("a state");
            for step in &until_then {
                state = model.next_state(&state, *step).unwrap_or_else(|| panic!("{step:?} of {state:?}"));
            }
            // Up to the first step that is not to be had.
            is_taken_over.iter().try_fold(state, |now, step| model.next_state(&now, *step).ok_or(*step))
        };
        assert_eq!(after(&[]).err(), Some(TakeOver(G2, B, K1)));
        let broken = after(&[TextDeadClaimWins]).map(|state| state.broken);
        assert_eq!(broken, Ok(Some(Rule::OneDispatchUnderHold)));
    }

    #[test]
    fn every_mutant_is_named_by_an_experiment() {
        let told = |mutant: &Mutant| {
            EXPERIMENTS
                .iter()
                .any(|one| one.mutants.iter().chain(one.slow_mutants).chain(one.open).any(|list| list.contains(mutant)))
        };
        let untold: Vec<_> = mutants::ALL.iter().filter(|mutant| !told(mutant)).collect();
        assert!(untold.is_empty(), "{untold:?}");
    }
}
