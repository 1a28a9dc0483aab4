//! `cargo xtask rolling`: two builds of the gateway on one store, each taking the other's place under load.

use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::step::{Counts, Shown};
use crate::{install, tree};

/// What the other build says that it is.
const OTHER_VERSION: &str = "0.0.0-other";

/// With `--other FILE`, a binary of another version; else one is built that differs in what it says of itself.
///
/// # Errors
/// Where it cannot be built, both say the same version, or a key ran twice.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let mut counts = Counts::default();
    let built = tree::target().join("debug/onceward");
    let other = match arguments {
        [] => {
            Shown::new("cargo build --package onceward-server")
                .env("ONCEWARD_VERSION", OTHER_VERSION)
                .run(&mut counts)?;
            let other = tree::target().join("onceward-other");
            std::fs::copy(&built, &other).with_context(|| other.display().to_string())?;
            other
        }
        ["--other", file] => std::path::absolute(file)?,
        _ => bail!("usage: cargo xtask rolling [--other FILE]"),
    };
    install::databases()?;
    Shown::new("cargo build --package onceward-server").run(&mut counts)?;
    let [ours, theirs] = [&built, &other].map(|binary| -> anyhow::Result<String> {
        let said = Command::new(binary).arg("--version").output().with_context(|| binary.display().to_string())?;
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    });
    let (ours, theirs) = (ours?, theirs?);
    println!("{ours} beside {theirs}");
    ensure!(ours != theirs, "both are {ours}: name a binary of another version with --other");
    Shown::new("cargo test --package onceward-server --test proxy redis_rolling::")
        .env("OTHER_ONCEWARD", &other.display().to_string())
        .run(&mut counts)?;
    ensure!(counts.passed > 0, "no test was run");
    Ok(())
}
