//! `cargo xtask fuzz`: what comes from outside, in forms that nobody thought of.

use anyhow::{Context, bail, ensure};

use crate::step::{Counts, Shown};
use crate::{install, tree};

/// What the step of the tests takes, over all targets.
pub(crate) const SECONDS: u32 = 60;
const TARGETS: &[&str] = &["key", "canonical", "record", "log", "config", "http1"];

/// What libFuzzer is led by, in flags that stable Rust has.
const COVERAGE: &str = "--cfg onceward_libfuzzer -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions";

/// Runs the targets: by themselves, or led by coverage where `--guided` is among the arguments.
///
/// # Errors
/// Wrong usage, or an input that breaks a target.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let mut counts = Counts::default();
    if !arguments.contains(&"--guided") {
        Shown::new("cargo build --package onceward-fuzz --bin fuzz").run(&mut counts)?;
        let fuzz = tree::shown(&tree::target().join("debug/fuzz"));
        return Shown::new(&format!("{fuzz} {}", arguments.join(" "))).run(&mut counts);
    }
    let (mut seconds, mut targets) = (600, Vec::new());
    let mut words = arguments.iter().filter(|word| **word != "--guided");
    while let Some(word) = words.next() {
        match *word {
            "--seconds" => {
                let number = words.next().and_then(|word| word.parse::<u32>().ok()).filter(|number| *number > 0);
                seconds = number.context("--seconds takes a number from 1")?;
            }
            target if TARGETS.contains(&target) => targets.push(target),
            other => bail!("no target {other:?}; there are: {}", TARGETS.join(" ")),
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    install::program("c++", "g++")?;
    // All that is built here counts its coverage, so it is built in a place of its own.
    let folder = tree::target().join("guided");
    // With a target named, build scripts and macros go without.
    let host = host()?;
    let build = format!("cargo build --release --package onceward-fuzz --bin guided --target {host} --target-dir");
    Shown::new(&format!("{build} {}", tree::shown(&folder)))
        .env("RUSTFLAGS", COVERAGE)
        // Half the time to build, and no slower for it.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .run(&mut counts)?;
    let guided = tree::shown(&folder.join(&host).join("release/guided"));
    let share = (seconds / u32::try_from(targets.len())?).max(1);
    for target in targets {
        let found = folder.join("corpus").join(target);
        std::fs::create_dir_all(&found)?;
        let regressions = tree::root().join("fuzz/regressions").join(target);
        std::fs::create_dir_all(&regressions)?;
        // What it finds worth keeping goes into the first folder; the others are read.
        let line = format!(
            "{guided} {} fuzz/corpus/{target} {} -max_total_time={share} -timeout=10 -max_len=4096 \
             -artifact_prefix=fuzz/regressions/{target}/ -print_final_stats=1 -verbosity=0",
            tree::shown(&found),
            tree::shown(&regressions),
        );
        Shown::new(&line).env("ONCEWARD_FUZZ_TARGET", target).run(&mut counts)?;
    }
    Ok(())
}

/// The triple of this machine, as rustc has it.
fn host() -> anyhow::Result<String> {
    let output = std::process::Command::new("rustc").arg("-vV").output().context("rustc")?;
    ensure!(output.status.success(), "rustc -vV: {}", output.status);
    let text = String::from_utf8(output.stdout).context("rustc -vV")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_owned())
}
