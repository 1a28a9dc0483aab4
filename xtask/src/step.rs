//! One command: shown so that a contributor can paste it, run, timed, and its tests counted.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::contract::Ended;
use crate::tree;

/// A command of a step.
pub(crate) struct Shown {
    variables: Vec<(String, String)>,
    words: Vec<String>,
}

impl Shown {
    /// A command in words that are split at spaces: `"cargo fmt --all"`.
    pub(crate) fn new(line: &str) -> Self {
        Self { variables: Vec::new(), words: line.split_whitespace().map(str::to_owned).collect() }
    }

    /// With an environment variable, which is shown too.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As a contributor can paste it at the root.
    pub(crate) fn line(&self) -> String {
        let mut line = String::new();
        for (name, value) in &self.variables {
            let quote = if value.contains(' ') { "'" } else { "" };
            let _ = write!(line, "{name}={quote}{value}{quote} ");
        }
        line + &self.words.join(" ")
    }

    /// Runs it at the root and adds the tests that it says it ran to `counts`.
    ///
    /// # Errors
    /// Where it cannot be started or does not end well.
    pub(crate) fn run(&self, counts: &mut Counts) -> anyhow::Result<()> {
        println!("$ {}", self.line());
        let start = Instant::now();
        let (program, arguments) = self.words.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(tree::root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let read = Mutex::new(Counts::default());
        std::thread::scope(|scope| {
            scope.spawn(|| out.map(|out| pass_on(out, &mut std::io::stdout(), &read)));
            scope.spawn(|| err.map(|err| pass_on(err, &mut std::io::stderr(), &read)));
        });
        let status = child.wait().context(self.line())?;
        counts.add(read.into_inner().unwrap_or_default());
        println!("  {:.1} s", start.elapsed().as_secs_f64());
        if !status.success() {
            bail!("{}: {status}", self.line());
        }
        Ok(())
    }
}

/// Passes a child's lines on as they come, and counts what they say of tests.
fn pass_on(from: impl Read, to: &mut impl Write, counts: &Mutex<Counts>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        // A reader that went away is no reason to stop the step.
        let _ = to.write_all(&line);
        if let Ok(mut counts) = counts.lock() {
            counts.read(&String::from_utf8_lossy(&line));
        }
        line.clear();
    }
    let _ = to.flush();
}

/// How many tests ran, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Those whose runner tells of each.
    pub(crate) ended: Vec<Ended>,
}

impl Counts {
    /// Adds another's.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ended.extend(other.ended);
    }

    /// Reads a closing line of cargo test, nextest, or one of ours; others are nothing.
    pub(crate) fn read(&mut self, line: &str) {
        self.ended.extend(Ended::read(line));
        // nextest shows what a failed test printed indented, its own closing line of one test included.
        let ours = line.split_once(" passed, ").is_some_and(|(passed, _)| passed.parse::<u64>().is_ok());
        if line.starts_with("test result:") || line.trim_start().starts_with("Summary [") || ours {
            self.passed += before(line, "passed");
            self.failed += before(line, "failed");
        }
    }
}

/// The number that stands before `word`, 0 where none does.
fn before(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let number = words.windows(2).find_map(|pair| match pair {
        [number, found] if *found == word => number.parse().ok(),
        _ => None,
    });
    number.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> (u64, u64) {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.read(line));
        (counts.passed, counts.failed)
    }

    #[test]
    fn closing_lines_of_each_runner_are_counted_and_no_others() {
        let cargo = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(read(&[cargo]), (12, 3));
        assert_eq!(read(&["     Summary [   1.482s] 40 tests run: 39 passed (1 slow), 1 failed, 2 skipped"]), (39, 1));
        assert_eq!(read(&["27 passed, 0 failed"]), (27, 0));
        assert_eq!(
            read(&["test it_passed ... ok", "I passed, 3 failed", &format!("    {cargo}"), "running 4 tests", ""]),
            (0, 0)
        );
        assert_eq!(read(&[cargo, "27 passed, 0 failed\n"]), (39, 3));
    }

    #[test]
    fn a_command_is_shown_as_it_can_be_pasted() {
        let shown = Shown::new("cargo doc --no-deps").env("RUSTDOCFLAGS", "-D warnings").env("A", "b");
        assert_eq!(shown.line(), "RUSTDOCFLAGS='-D warnings' A=b cargo doc --no-deps");
    }

    #[test]
    fn a_command_that_fails_fails_its_step() {
        let mut counts = Counts::default();
        assert!(Shown::new("false").run(&mut counts).is_err());
        assert!(Shown::new("true").run(&mut counts).is_ok());
        assert!(Shown::new("no-such-command-of-ours").run(&mut counts).is_err());
    }
}
