//! Processes that are measured: started, watched, and stopped whatever happens.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

const READY: Duration = Duration::from_secs(20);

/// A server that is stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it answers.
    pub(crate) url: String,
}

impl Server {
    /// Starts a command whose first line of output that has `http://` says where it answers.
    ///
    /// # Errors
    /// Where it cannot be started or ends without that line.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = spawn(command.stdout(Stdio::piped()))?;
        let out = child.stdout.take().context("no standard output")?;
        let mut server = Self { child, url: String::new() };
        let mut lines = BufReader::new(out).lines();
        for line in lines.by_ref() {
            let line = line?;
            let Some((_, url)) = line.split_once("http://") else { continue };
            server.url = format!("http://{}", url.split_whitespace().next().unwrap_or_default());
            // Whatever it prints from now on is nobody's, but must not fill the pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(server);
        }
        bail!("{command:?} ended without saying where it answers: {:?}", server.child.wait());
    }

    /// nginx, forwarding all to `upstream` from one worker, with its files in `folder`.
    ///
    /// # Errors
    /// Where it does not come up.
    pub(crate) fn nginx(upstream: &str, folder: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let upstream = upstream.trim_start_matches("http://");
        let configuration = include_str!("nginx.conf").replace("UPSTREAM", upstream).replace("PORT", &port.to_string());
        fs::create_dir_all(folder)?;
        fs::write(folder.join("nginx.conf"), configuration)?;
        let on_path = Path::new("/usr/sbin/nginx");
        let program = if on_path.exists() { on_path } else { Path::new("nginx") };
        let mut command = Command::new(program);
        command.arg("-p").arg(folder).args(["-e", "error.log", "-c", "nginx.conf"]);
        let child = spawn(command.stdout(Stdio::null()))?;
        let mut server = Self { child, url: format!("http://127.0.0.1:{port}") };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait()?;
            let log = || fs::read_to_string(folder.join("error.log")).unwrap_or_default();
            ensure!(ended.is_none() && start.elapsed() < READY, "nginx does not come up: {ended:?}\n{}", log());
            std::thread::yield_now();
        }
        Ok(server)
    }

    /// Its CPU time so far.
    pub(crate) fn cpu(&self) -> Cpu {
        let mut cpu = Cpu::default();
        let mut processes = vec![self.child.id()];
        while let Some(process) = processes.pop() {
            cpu.add(process);
            let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
            processes.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        cpu
    }
}

impl Server {
    /// What it has in memory.
    ///
    /// # Errors
    /// Where it has ended.
    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the process has ended")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's worker outlives a killed master, so it is asked to stop; the others do not mind.
        let asked = Command::new("kill").arg(self.child.id().to_string()).status();
        let start = Instant::now();
        while asked.as_ref().is_ok_and(std::process::ExitStatus::success) && start.elapsed() < READY {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    let command = command.stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

/// CPU time of a process tree, thread by thread, from the scheduler's own accounting.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpu(HashMap<String, u64>);

impl Cpu {
    /// Of one process that somebody else started.
    pub(crate) fn of(process: u32) -> Self {
        let mut cpu = Self::default();
        cpu.add(process);
        cpu
    }

    fn add(&mut self, process: u32) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return };
        for task in tasks.flatten() {
            let Ok(line) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let nanoseconds = line.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default();
            self.0.insert(task.file_name().to_string_lossy().into_owned(), nanoseconds);
        }
    }

    /// Microseconds spent since `before`, by the threads that still are.
    pub(crate) fn since(&self, before: &Self) -> f64 {
        let spent = |(thread, now): (&String, &u64)| now.saturating_sub(before.0.get(thread).copied().unwrap_or(0));
        self.0.iter().map(spent).sum::<u64>() as f64 / 1_000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_counts_what_each_thread_spent_since() {
        let cpu = |threads: &[(&str, u64)]| Cpu(threads.iter().map(|(name, ns)| ((*name).to_owned(), *ns)).collect());
        let before = cpu(&[("1", 5_000), ("2", 7_000)]);
        assert_eq!(cpu(&[("1", 6_000), ("3", 2_000)]).since(&before), 3.0);
    }

    #[test]
    fn a_server_that_never_says_where_it_answers_is_an_error() {
        let error = Server::start(Command::new("echo").arg("hello")).unwrap_err();
        assert!(error.to_string().contains("without saying where"), "{error}");
    }
}
