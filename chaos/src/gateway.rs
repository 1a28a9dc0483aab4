//! The processes that are under test: the real binary, before a store that outlives it.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::PATIENCE;
use crate::backing::{Backing, Leases};

/// The routes that run an unknown outcome again.
pub(crate) const RETRIES: [&str; 2] = ["/again", "/brief"];
/// How often they run an unknown outcome again.
pub(crate) const RETRY_MAX: u32 = 3;

/// The routes, each with what is special about it.
#[must_use]
fn routes(leases: Leases, defaults: &str) -> String {
    let Leases { short, again, long } = leases;
    let mut text = String::from("[defaults]\nkey = { missing = \"required\" }\nin_flight = { wait = \"2s\" }\n");
    text.push_str(defaults);
    for (name, says) in [
        ("pay", format!("lease = \"{short}\"")),
        ("two", format!("lease = \"{short}\"\ntwo_phase_dispatch = true")),
        ("again", format!("on_unknown = [\"retry\"]\nretry_max = {RETRY_MAX}\nlease = \"{again}\"")),
        ("brief", format!("on_unknown = [\"retry\"]\nretry_max = {RETRY_MAX}\nlease = \"{short}\"")),
        ("long", format!("lease = \"{long}\"")),
    ] {
        text.push_str(&format!("\n[[route]]\nname = \"{name}\"\nmatch = {{ path = \"/{name}\" }}\n{says}\n"));
    }
    text
}

/// How one life of the process is begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// `ONCEWARD_FAILPOINT`
    pub(crate) failpoint: Option<String>,
    /// More of the environment.
    pub(crate) env: Vec<(String, String)>,
    /// More arguments.
    pub(crate) args: Vec<String>,
    /// Of all processes; else of the first alone, and the others are begun as they are.
    pub(crate) everywhere: bool,
}

/// The binary, without a setting of whoever runs the checker.
#[must_use]
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ONCEWARD_") {
            command.env_remove(name);
        }
    }
    command
}

/// Where the processes are and what they are started with.
pub(crate) struct Site {
    /// The binary.
    pub(crate) program: PathBuf,
    /// A safety to take out of it, where it is built for that.
    pub(crate) mutant: Option<String>,
    /// Where their configurations and log are.
    pub(crate) folder: PathBuf,
}

impl Site {
    /// Writes the configuration of each process.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn configure(&self, backing: &Backing, upstream: SocketAddr) -> anyhow::Result<()> {
        for which in 0..backing.gateways() {
            let store = backing.config(&self.folder.join(format!("own{which}")));
            let routes = routes(backing.leases(), &backing.defaults());
            let text = format!("{store}\n{routes}\n[[upstream]]\nname = \"ledger\"\nurl = \"http://{upstream}\"\n");
            std::fs::write(self.config(which), text).context("the configuration")?;
        }
        Ok(())
    }

    fn config(&self, which: usize) -> PathBuf {
        self.folder.join(format!("onceward{which}.toml"))
    }

    /// Where they log, over all their lives.
    #[must_use]
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("onceward.log")
    }

    /// The log from `offset` on.
    #[must_use]
    pub(crate) fn log_from(&self, offset: u64) -> String {
        self.log_between(offset, u64::MAX)
    }

    /// The log between two offsets.
    #[must_use]
    pub(crate) fn log_between(&self, from: u64, to: u64) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        let [from, to] = [from, to].map(|offset| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len()));
        String::from_utf8_lossy(bytes.get(from..to).unwrap_or_default()).into_owned()
    }

    /// How long the log is.
    #[must_use]
    pub(crate) fn log_bytes(&self) -> u64 {
        std::fs::metadata(self.log()).map_or(0, |file| file.len())
    }

    fn command(&self, which: usize, start: &Start) -> anyhow::Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(self.log()).context("the log")?;
        let mut command = command(&self.program);
        command.args(["proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"]);
        command.arg(self.config(which)).args(&start.args);
        command.envs(start.failpoint.iter().map(|failpoint| ("ONCEWARD_FAILPOINT", failpoint)));
        command.envs(self.mutant.iter().map(|mutant| ("ONCEWARD_MUTANT", mutant)));
        command.envs(start.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stderr(log).kill_on_drop(true);
        Ok(command)
    }

    /// Starts one of them, and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub(crate) async fn start(&self, which: usize, start: &Start) -> anyhow::Result<Gateway> {
        let mut child =
            self.command(which, start)?.stdout(Stdio::piped()).spawn().context("the binary does not start")?;
        let mut out = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, out.read_line(&mut line));
        read.await.context("it does not get ready")??;
        let Some(rest) = line.strip_prefix("onceward ready proxy=http://") else {
            bail!("it does not get ready, see {}", self.log().display())
        };
        let address = rest.split(' ').next().unwrap_or_default().parse().context("the ready line")?;
        Ok(Gateway { child, address })
    }
}

impl Site {
    /// Starts the first where it is to refuse: its exit code.
    ///
    /// # Errors
    /// Where it gets ready.
    pub(crate) async fn refused(&self, start: &Start) -> anyhow::Result<i32> {
        let mut child = self.command(0, start)?.stdout(Stdio::null()).spawn().context("the binary does not start")?;
        let ended =
            tokio::time::timeout(PATIENCE, child.wait()).await.context("it was to refuse to start, and runs")??;
        ended.code().context("it was to refuse to start, and was killed")
    }
}

/// One life of the process; killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    /// Where clients find it.
    pub(crate) address: SocketAddr,
}

impl Gateway {
    /// Sends it a signal.
    ///
    /// # Errors
    /// Where it is gone.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(pid.context("the process is gone")?, signal).context("a signal")
    }

    /// `kill -9`, and its end.
    ///
    /// # Errors
    /// Where it cannot be killed.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill -9")
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Where it does not.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.context("it was to end by itself, and runs")?.context("its end")
    }
}
