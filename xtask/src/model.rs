//! `cargo xtask model`: the view protocol's state space, explored.

use crate::step::{Counts, Shown};
use crate::tree;

/// What `cargo xtask test` runs: the small experiments, and every mutant that is found soon.
///
/// # Errors
/// As [`run`].
pub(crate) fn gate(counts: &mut Counts) -> anyhow::Result<()> {
    explore(&["--mutants"], counts)
}

/// Builds the model, and explores what the arguments say.
///
/// # Errors
/// Wrong usage, a rule that the protocol breaks, a mutant that breaks none, an example that is nowhere.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    explore(arguments, &mut Counts::default())
}

fn explore(arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    Shown::new("cargo build --package onceward-view-model").run(counts)?;
    let program = tree::shown(&tree::target().join("debug/onceward-view-model"));
    Shown::new(&format!("{program} {}", arguments.join(" "))).run(counts)
}
