//! `cargo xtask bench`: the measurements, each beside its baseline in the same run.

use crate::step::{Counts, Shown};
use crate::{install, tree};

/// Builds what is measured, and measures.
///
/// # Errors
/// Where a row cannot be measured; a figure that misses its aim is not an error.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    install::program("nginx", "nginx-light")?;
    install::program("wrk", "wrk")?;
    install::databases()?;
    let modules = install::peers()?;
    let mut counts = Counts::default();
    // One command, so that what they share is built once.
    let packages = "--package onceward-server --package onceward-store --package bench";
    Shown::new(&format!("cargo build --profile dist {packages} --bins --example log_speed")).run(&mut counts)?;
    let bench = tree::shown(&tree::target().join("dist/bench"));
    Shown::new(&format!("{bench} {}", arguments.join(" "))).env("NODE_PATH", &tree::shown(&modules)).run(&mut counts)
}
