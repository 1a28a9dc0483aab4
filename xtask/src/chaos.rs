//! `cargo xtask chaos`: the crash checker on the real binary.

use anyhow::Context as _;

use crate::step::{Counts, Shown};
use crate::{install, tree};

/// Builds what is needed, and runs the checker.
///
/// # Errors
/// Where something does not build, a fault did not happen, or a rule was broken.
pub(crate) fn run(arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    // What moves the clock of a process.
    install::program("faketime", "faketime")?;
    if let Some(at) = arguments.iter().position(|argument| *argument == "--mutants") {
        let (before, after) = arguments.split_at(at);
        return mutants(&[before, after.get(1..).unwrap_or_default()].concat(), counts);
    }
    Shown::new("cargo build --package onceward-server --package onceward-chaos --bins").run(counts)?;
    checker(&["run", "--onceward", &tree::shown(&tree::target().join("debug/onceward"))], arguments, counts)
}

/// The same plans with each safety taken out of the product, in a build of its own.
fn mutants(arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    Shown::new("cargo build --package onceward-server --bins --features mutants").run(counts)?;
    let (folder, binary) = (tree::target().join("chaos"), tree::target().join("debug/onceward"));
    let mutants = folder.join("onceward-mutants");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::copy(&binary, &mutants))
        .context("the build with mutants")?;
    // The next one who looks there finds the product again.
    Shown::new("cargo build --package onceward-server --package onceward-chaos --bins").run(counts)?;
    checker(&["mutants", "--onceward", &tree::shown(&mutants)], arguments, counts)
}

fn checker(first: &[&str], arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    let program = tree::shown(&tree::target().join("debug/onceward-chaos"));
    Shown::new(&format!("{program} {} {}", first.join(" "), arguments.join(" "))).run(counts)
}
