//! `cargo xtask test`: everything that must hold before a change lands, in order, and the first
//! step that does not hold ends it.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;

use crate::step::{Counts, Shown};
use crate::{chaos, contract, fuzz, install, model, sim, tidy, tree};

/// A step's name and what runs it.
type Step = (&'static str, fn(&mut Counts) -> anyhow::Result<()>);

const STEPS: &[Step] = &[
    ("fmt", |counts| Shown::new("cargo fmt --all --check").run(counts)),
    ("clippy", |counts| Shown::new("cargo clippy --workspace --all-targets -- -D warnings").run(counts)),
    ("features", features),
    ("docs", |counts| Shown::new("cargo doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings").run(counts)),
    ("tests", tests),
    ("contract", |counts| {
        match counts.ended.is_empty() {
            true => contract::run(&[], counts)?,
            // What the step `tests` has just run is not run again.
            false => contract::print(contract::Store::Embedded, &counts.ended)?,
        }
        contract::run(&[&["--store", "postgres"], &contract::IN_THE_GATE[..]].concat(), counts)?;
        contract::run(&[&["--store", "redis"], &contract::IN_THE_GATE[..]].concat(), counts)?;
        contract::run(&[&["--store", "tiered", "--durability", "strict"], &contract::IN_THE_GATE[..]].concat(), counts)
    }),
    ("doctests", |counts| Shown::new("cargo test --workspace --doc").run(counts)),
    ("tidy", |counts| Shown::new("cargo xtask tidy").run(counts)),
    ("alerts", alerts),
    ("conformance", |counts| Shown::new("cargo xtask conformance --list").run(counts)),
    ("codegen", |counts| Shown::new("cargo xtask codegen --check").run(counts)),
    ("clients", clients),
    ("chaos", chaos::gate),
    ("fuzz", |_| fuzz::run(&["--seconds", &fuzz::SECONDS.to_string()])),
    ("model", model::gate),
    ("sim", sim::gate),
];

/// Runs the named steps, or all.
pub(crate) fn run(names: &[&str]) -> ExitCode {
    if let Some(name) = names.iter().find(|name| STEPS.iter().all(|(step, _)| step != *name)) {
        let known: Vec<&str> = STEPS.iter().map(|(step, _)| *step).collect();
        eprintln!("no step `{name}`; there are: {}", known.join(" "));
        return ExitCode::from(2);
    }
    let mut counts = Counts::default();
    let mut summary = Vec::new();
    let mut failure = None;
    for (name, step) in STEPS.iter().filter(|(name, _)| names.is_empty() || names.contains(name)) {
        println!("\n== {name}");
        let start = Instant::now();
        let done = step(&mut counts);
        summary.push(format!(
            "{name:<12} {:>7.1} s  {}",
            start.elapsed().as_secs_f64(),
            if done.is_ok() { "ok" } else { "FAILED" }
        ));
        if let Err(error) = done {
            // A step that fails without a failed test has failed all the same.
            counts.failed = counts.failed.max(1);
            failure = Some(format!("{name}: {error:#}"));
            break;
        }
    }
    println!("\n== summary");
    summary.iter().for_each(|line| println!("{line}"));
    if let Some(failure) = &failure {
        println!("\n{failure}");
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What is built by itself in a step of its own, with the features that it has: the program, and the simulator.
const BUILT_ALONE: [&str; 2] = ["onceward-server", "onceward-sim"];

/// Each feature of each library alone, and each library without any.
fn features(counts: &mut Counts) -> anyhow::Result<()> {
    let is_alone = |package: &&tree::Package| BUILT_ALONE.contains(&package.name.as_str());
    let packages = tree::packages()?;
    let libraries = packages.iter().filter(|package| package.is_library && !package.features.is_empty());
    for package in libraries.filter(|package| !is_alone(package)) {
        let check = format!("cargo clippy -p {} --no-default-features", package.name);
        Shown::new(&format!("{check} -- -D warnings")).run(counts)?;
        for feature in package.features.iter().filter(|feature| *feature != "default") {
            Shown::new(&format!("{check} --features {feature} -- -D warnings")).run(counts)?;
        }
    }
    Ok(())
}

/// The alerts, by the program that reads them.
fn alerts(counts: &mut Counts) -> anyhow::Result<()> {
    // The package brings a server along, which is not started.
    install::program("promtool", "prometheus")?;
    Shown::new(&format!("promtool check rules {}", tidy::alerts::RULES)).run(counts)?;
    Shown::new(&format!("promtool test rules {}", tidy::alerts::CASES)).run(counts)
}

fn tests(counts: &mut Counts) -> anyhow::Result<()> {
    // What the tests of TLS ask from outside.
    install::program("curl", "curl")?;
    install::program("openssl", "openssl")?;
    let before = counts.passed;
    install::servers()?;
    let runner = if install::find("cargo-nextest").is_some() {
        "cargo nextest run --workspace --no-fail-fast --status-level pass"
    } else {
        "cargo test --workspace --lib --bins --tests --no-fail-fast"
    };
    Shown::new(runner).run(counts)?;
    if counts.passed == before {
        bail!("no test was run");
    }
    Ok(())
}

/// Real clients, unmodified, through the real binary.
fn clients(counts: &mut Counts) -> anyhow::Result<()> {
    install::program("curl", "curl")?;
    install::databases()?;
    let (python, modules) = (install::python()?, install::node()?);
    Shown::new("cargo build --package onceward-server").run(counts)?;
    let binary = tree::target().join("debug/onceward");
    Shown::new(&format!("{} clients/run.py", tree::shown(&python)))
        .env("ONCEWARD_BINARY", &tree::shown(&binary))
        .env("NODE_PATH", &tree::shown(&modules))
        .run(counts)
}
