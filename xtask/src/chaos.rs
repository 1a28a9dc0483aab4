//! `cargo xtask chaos`: the crash checker on the real binary.

use crate::step::{Counts, Shown};
use crate::tree;

/// Builds what is needed, and runs the checker.
///
/// # Errors
/// Where something does not build, a fault did not happen, or a rule was broken.
pub(crate) fn run(arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    Shown::new("cargo build --package onceward-server --package onceward-chaos --bins").run(counts)?;
    checker(&["run", "--onceward", &tree::shown(&tree::target().join("debug/onceward"))], arguments, counts)
}

fn checker(first: &[&str], arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    let program = tree::shown(&tree::target().join("debug/onceward-chaos"));
    Shown::new(&format!("{program} {} {}", first.join(" "), arguments.join(" "))).run(counts)
}
