//! A server's process: what it logs, and that it has ended.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Longer than any start or stop of a small server on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// How often something is looked at that no log tells.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A server that was started. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: Arc<Log>,
}

/// What it has logged so far.
#[derive(Debug, Default)]
struct Log {
    text: Mutex<(String, bool)>,
    news: Condvar,
}

impl Log {
    /// Waits until `is_so` of the text and of whether the log has ended.
    fn wait(&self, is_so: impl Fn(&str, bool) -> bool) -> anyhow::Result<String> {
        let until = Instant::now() + LIMIT;
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        while !is_so(&text.0, text.1) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("what was waited for did not come within {LIMIT:?}; its log:\n{}", text.0);
            }
            text = self.news.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(text.0.clone())
    }
}

impl Running {
    /// Starts it and waits until its log says `ready`.
    ///
    /// # Errors
    /// With its log, where it ends before.
    pub(crate) fn start(command: &mut Command, ready: &str) -> anyhow::Result<Self> {
        let program = command.get_program().display().to_string();
        // Some servers log to the one, some to the other.
        let (from, to) = std::io::pipe().context("a pipe for the log")?;
        let spawned = command.stdout(to.try_clone().context("a pipe for the log")?).stderr(to).spawn();
        // The log ends when nobody can write to it, and the command could.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawned.with_context(|| format!("cannot start {program}"))?;
        let log = Arc::new(Log::default());
        let to = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                to.text.lock().unwrap_or_else(PoisonError::into_inner).0.push_str(&String::from_utf8_lossy(&line));
                to.news.notify_all();
                line.clear();
            }
            to.text.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
            to.news.notify_all();
        });
        let running = Self { child, log };
        let text = running.log.wait(|text, ended| ended || text.contains(ready))?;
        if !text.contains(ready) {
            bail!("{program} did not start; its log:\n{text}");
        }
        Ok(running)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.text.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// How much it has logged, for [`wait_for_since`](Self::wait_for_since).
    pub(crate) fn logged(&self) -> usize {
        self.log.text.lock().unwrap_or_else(PoisonError::into_inner).0.len()
    }

    /// Waits until it has logged `text`.
    pub(crate) fn wait_for(&self, text: &str) -> anyhow::Result<()> {
        self.wait_for_since(0, &[text])
    }

    /// Waits until it has logged one of `texts` after the first `logged` bytes.
    pub(crate) fn wait_for_since(&self, logged: usize, texts: &[&str]) -> anyhow::Result<()> {
        let said = |log: &str| log.get(logged..).is_some_and(|new| texts.iter().any(|text| new.contains(text)));
        self.wait_until(said, &format!("one of {texts:?}"))
    }

    /// Waits until its log is so, which is described by `what`.
    pub(crate) fn wait_until(&self, is_so: impl Fn(&str) -> bool, what: &str) -> anyhow::Result<()> {
        let log = self.log.wait(|log, ended| ended || is_so(log))?;
        if is_so(&log) { Ok(()) } else { bail!("it ended before it said {what}; its log:\n{log}") }
    }

    /// Looks until there is something to see: at once, and again whenever it logs something, or soon where it does not.
    pub(crate) fn look<T>(&self, what: &str, mut see: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(seen) = see()? {
                return Ok(seen);
            }
            ensure!(Instant::now() < until, "{what} was not seen within {LIMIT:?}; its log:\n{}", self.log());
            let text = self.log.text.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = self.log.news.wait_timeout(text, LOOK_EVERY);
        }
    }

    /// Sends a signal to it, or to it and all that it has started.
    pub(crate) fn signal(&self, signal: Signal, with_children: bool) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        if with_children && signal != Signal::CONT {
            // It starts no other one between the look for them and its own end.
            kill_process(pid, Signal::STOP).context("stop")?;
            // Not before it is stopped: a signal is under way for a moment. Its end stays to be waited for.
            let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(pid), stopped).context("wait")?;
        }
        let children = if with_children { children(pid) } else { Vec::new() };
        kill_process(pid, signal).context("kill")?;
        for child in children {
            // One that has ended meanwhile needs no signal.
            let _ = kill_process(child, signal);
        }
        Ok(())
    }

    /// Waits for its end and that of all who share its log.
    pub(crate) fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        self.log.wait(|_, ended| ended)?;
        self.child.wait().context("wait")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nothing is left to do where even this fails.
            let _ = self.signal(Signal::KILL, true);
            let _ = self.ended();
        }
    }
}

/// The processes that `parent` has started and that still run.
fn children(parent: Pid) -> Vec<Pid> {
    let is_child = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(1).is_some_and(|of| of == parent.as_raw_nonzero().to_string())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_child(*pid)).filter_map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_it_starts_while_it_is_killed_is_left() {
        // Each sleeper would keep the log open for longer than anybody waits.
        let script = "echo ready >&2; i=0; while [ $i -lt 3000 ]; do sleep 90 & i=$((i+1)); done; wait";
        let mut running = Running::start(Command::new("sh").args(["-c", script]), "ready").unwrap();
        running.signal(Signal::KILL, true).unwrap();
        running.ended().unwrap();
    }
}
