//! The project's own tasks, each run as `cargo xtask NAME`.
//!
//! # Layout
//!
//! [`checks`] the steps of `cargo xtask test`, [`step`] one command that is shown, timed and
//! counted, [`install`] what the steps need from outside, [`contract`] the contract's rows with their
//! tests, [`tidy`] the rules of the tree that no compiler knows, [`codegen`] what is generated from `proto/`, [`mod@bench`] the measurements,
//! [`chaos`] the crash checker, [`fuzz`] what comes from outside, [`model`] the view protocol explored, [`sim`] whole
//! systems in virtual time, [`rolling`] two builds on one store.

mod bench;
mod chaos;
mod checks;
mod codegen;
mod conformance;
mod contract;
mod fuzz;
mod install;
mod model;
mod rolling;
mod sim;
mod step;
mod tidy;
mod tree;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask TASK

  test [STEP…]           everything that must hold before a change lands, or some steps of it:
                         fmt clippy features docs tests contract doctests tidy alerts conformance codegen
                         clients chaos fuzz model sim
  install                the servers that tests start themselves, where they are missing
  tidy                   the rules of the tree that no compiler knows
  codegen [--check]      makes crates/core/src/wire.rs from proto/, or says that it differs
  contract [--store embedded|postgres|redis]
                         each row of docs/protocol.md with the tests that show it, and their result
  conformance --list     where each case of the conformance list runs; fails where one runs nowhere
  bench [--quick] [ROW…] the measurements, P1 to P16, P-return and P-view, each beside a baseline or an aim;
                         --json=FILE writes the figures too
  bench soak [--minutes=30]
                         mixed requests at 70 % of the highest rate: p99 and memory must stay flat
  chaos [--store embedded|postgres|redis] [--seed N] [--plan NAME,…] [--seconds N | --long MINUTES]
        [--strategy watch]
                         kills, stops and damages real processes, and judges what clients and the upstream saw
  chaos --mutants [--store embedded|postgres|redis] [--seed N] [--only NAME,…]
                         the same on builds with one safety taken out: each must be found red
  fuzz [--seconds N] [--seed N] [--guided] [TARGET…]
                         what comes from outside, in forms that nobody thought of; --guided is led by coverage
  model [--experiment NAME,…] [--long] [--mutants] [--trace]
                         every state that the view protocol can come to; --mutants: with one thing wrong at a time
  sim [--seeds N] [--from N] [--seconds N] [--mutants] [--only NAME,…] [--trace]
                         whole systems in virtual time, a seed a run; --mutants: with one safety taken out at a time
  rolling [--other FILE] two builds on one Redis, each taking the other's place under load; without --other one is
                         built that differs in what it says of itself";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test", steps @ ..] => return checks::run(steps),
        ["install"] => install::servers(),
        ["tidy"] => tidy::run(),
        ["codegen"] => codegen::run(false),
        ["codegen", "--check"] => codegen::run(true),
        ["conformance", "--list"] => conformance::list(),
        ["contract", rest @ ..] => contract::run(rest, &mut step::Counts::default()),
        ["bench", rest @ ..] => bench::run(rest),
        ["chaos", rest @ ..] => chaos::run(rest, &mut step::Counts::default()),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["model", rest @ ..] => model::run(rest),
        ["sim", rest @ ..] => sim::run(rest),
        ["rolling", rest @ ..] => rolling::run(rest),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
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
