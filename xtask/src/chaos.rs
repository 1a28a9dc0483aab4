//! `cargo xtask chaos`: the crash checker on the real binary.

use anyhow::Context as _;

use crate::step::{Counts, Shown};
use crate::{install, tree};

/// The plans on Postgres that are part of `cargo xtask test`; the others are for by hand.
const ON_POSTGRES: &str = "kills,database,failover,connections,stops";
/// Those on Redis; the others are for by hand.
const ON_REDIS: &str = "kills,flush,failover,connections,quarantine,stops";
/// Those on both with every route strict, journaled, and in Redis alone; the others are for by hand.
const ON_TIERED: [(&str, &str); 3] =
    [("strict", "database,flush,both"), ("journaled", "kills,flush,stale,away,both"), ("cache", "flush")];
/// What is taken out there of what is journaled.
const TAKEN_OUT_OF_VIEWS: &str = "no-confirm,not-spooled,outcome-not-spooled";
/// What is taken out where there are both.
const TAKEN_OUT_ON_TIERED: &str = "strict-in-cache,completion-not-durable";
/// And the safeties that are taken out on Postgres.
const TAKEN_OUT_ON_POSTGRES: &str = "completion-not-durable,fence-not-compared,lease-deletes,unknown-as-failed";

/// What `cargo xtask test` runs: every plan and every mutant on the embedded store, and some on Postgres, Redis and both.
///
/// # Errors
/// As [`run`].
pub(crate) fn gate(counts: &mut Counts) -> anyhow::Result<()> {
    run(&["--store", "embedded"], counts)?;
    run(&["--store", "postgres", "--plan", ON_POSTGRES], counts)?;
    run(&["--store", "redis", "--plan", ON_REDIS], counts)?;
    for (durability, plans) in ON_TIERED {
        run(&["--store", "tiered", "--durability", durability, "--plan", plans], counts)?;
    }
    run(&["--mutants", "--store", "embedded"], counts)?;
    // The build with mutants is still there.
    let mutants = tree::shown(&mutants_binary());
    for taken_out in [
        &["--store", "postgres", "--only", TAKEN_OUT_ON_POSTGRES][..],
        &["--store", "tiered", "--only", TAKEN_OUT_ON_TIERED],
        &["--store", "tiered", "--durability", "journaled", "--only", TAKEN_OUT_OF_VIEWS],
    ] {
        checker(&["mutants", "--onceward", &mutants], taken_out, counts)?;
    }
    Ok(())
}

/// Builds what is needed, and runs the checker.
///
/// # Errors
/// Where something does not build, a fault did not happen, or a rule was broken.
pub(crate) fn run(arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    // What moves the clock of a process.
    install::program("faketime", "faketime")?;
    if !arguments.windows(2).any(|pair| pair == ["--store", "embedded"]) {
        install::databases()?;
    }
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
    let (binary, mutants) = (tree::target().join("debug/onceward"), mutants_binary());
    std::fs::create_dir_all(tree::target().join("chaos"))
        .and_then(|()| std::fs::copy(&binary, &mutants))
        .context("the build with mutants")?;
    // The next one who looks there finds the product again.
    Shown::new("cargo build --package onceward-server --package onceward-chaos --bins").run(counts)?;
    checker(&["mutants", "--onceward", &tree::shown(&mutants)], arguments, counts)
}

fn mutants_binary() -> std::path::PathBuf {
    tree::target().join("chaos/onceward-mutants")
}

fn checker(first: &[&str], arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    let program = tree::shown(&tree::target().join("debug/onceward-chaos"));
    Shown::new(&format!("{program} {} {}", first.join(" "), arguments.join(" "))).run(counts)
}
