//! `cargo xtask sim`: whole systems in virtual time.

use crate::step::{Counts, Shown};
use crate::tree;

/// What `cargo xtask test` runs.
///
/// # Errors
/// As [`run`].
pub(crate) fn gate(counts: &mut Counts) -> anyhow::Result<()> {
    simulate(&["--seeds", "50000", "--seconds", "240", "--mutants"], counts)
}

/// Builds the simulator, and runs what the arguments say.
///
/// # Errors
/// Wrong usage, a promise that a run breaks, a safety whose lack no run shows.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    simulate(arguments, &mut Counts::default())
}

fn simulate(arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    Shown::new("cargo build --profile sim --package onceward-sim --features mutants").run(counts)?;
    let program = tree::shown(&tree::target().join("sim/onceward-sim"));
    Shown::new(&format!("{program} {}", arguments.join(" "))).run(counts)
}
