//! `cargo xtask bench`: the measurements, each beside its baseline in the same run.

use crate::install;
use crate::step::{Counts, Shown};

/// Builds what is measured, and measures.
///
/// # Errors
/// Where a row cannot be measured; a figure that misses its aim is not an error.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    install::program("nginx", "nginx-light")?;
    install::program("wrk", "wrk")?;
    let mut counts = Counts::default();
    Shown::new("cargo build --release --package onceward-server --package bench").run(&mut counts)?;
    Shown::new(&format!("target/release/bench {}", arguments.join(" "))).run(&mut counts)
}
