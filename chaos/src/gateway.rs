//! The process that is under test: the real binary, on a folder that outlives it.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::PATIENCE;

/// The store behind the process: what the configuration says of it. A store of its own servers starts them, too.
pub(crate) trait StoreSetup {
    /// The tables `[store…]` of the configuration.
    fn config(&self) -> String;
}

/// The durable store of one process, in a folder.
pub(crate) struct Embedded {
    /// The folder.
    pub(crate) folder: PathBuf,
}

impl StoreSetup for Embedded {
    fn config(&self) -> String {
        format!("[store]\nkind = \"embedded\"\npath = {:?}\nreserve = \"1MiB\"\n", self.folder)
    }
}

/// The routes that run an unknown outcome again.
pub(crate) const RETRIES: [&str; 2] = ["/again", "/brief"];
/// How often they run an unknown outcome again.
pub(crate) const RETRY_MAX: u32 = 3;

/// The routes, each with what is special about it.
#[must_use]
pub(crate) fn routes() -> String {
    let mut text = String::from("[defaults]\nkey = { missing = \"required\" }\nin_flight = { wait = \"2s\" }\n");
    for (name, says) in [
        // Renewed every tenth of a second, so that a stopped process soon sleeps through it.
        ("pay", "lease = \"400ms\"".to_owned()),
        ("two", "lease = \"400ms\"\ntwo_phase_dispatch = true".to_owned()),
        ("again", format!("on_unknown = [\"retry\"]\nretry_max = {RETRY_MAX}")),
        ("brief", format!("on_unknown = [\"retry\"]\nretry_max = {RETRY_MAX}\nlease = \"400ms\"")),
        // Nobody waits for this lease: a process that is gone holds nothing.
        ("long", "lease = \"30m\"".to_owned()),
    ] {
        text.push_str(&format!("\n[[route]]\nname = \"{name}\"\nmatch = {{ path = \"/{name}\" }}\n{says}\n"));
    }
    text
}

/// How one life of the process is begun.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    /// `ONCEWARD_FAILPOINT`
    pub(crate) failpoint: Option<String>,
    /// More of the environment.
    pub(crate) env: Vec<(String, String)>,
    /// More arguments.
    pub(crate) args: Vec<String>,
}

/// Where the process is and what it is started with.
pub(crate) struct Site {
    /// The binary.
    pub(crate) program: PathBuf,
    /// A safety to take out of it, where it is built for that.
    pub(crate) mutant: Option<String>,
    /// Where its configuration and log are.
    pub(crate) folder: PathBuf,
}

impl Site {
    /// Writes the configuration.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn configure(&self, store: &dyn StoreSetup, upstream: SocketAddr) -> anyhow::Result<()> {
        let text =
            format!("{}\n{}\n[[upstream]]\nname = \"ledger\"\nurl = \"http://{upstream}\"\n", store.config(), routes());
        std::fs::write(self.config(), text).context("the configuration")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("onceward.toml")
    }

    /// Where it logs, over all its lives.
    #[must_use]
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("onceward.log")
    }

    /// The log from `offset` on.
    #[must_use]
    pub(crate) fn log_from(&self, offset: u64) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// How long the log is.
    #[must_use]
    pub(crate) fn log_bytes(&self) -> u64 {
        std::fs::metadata(self.log()).map_or(0, |file| file.len())
    }

    fn command(&self, start: &Start) -> anyhow::Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(self.log()).context("the log")?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ONCEWARD_") {
                command.env_remove(name);
            }
        }
        command.args(["proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"]);
        command.arg(self.config()).args(&start.args);
        command.envs(start.failpoint.iter().map(|failpoint| ("ONCEWARD_FAILPOINT", failpoint)));
        command.envs(self.mutant.iter().map(|mutant| ("ONCEWARD_MUTANT", mutant)));
        command.envs(start.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stderr(log).kill_on_drop(true);
        Ok(command)
    }

    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub(crate) async fn start(&self, start: &Start) -> anyhow::Result<Gateway> {
        let mut child = self.command(start)?.stdout(Stdio::piped()).spawn().context("the binary does not start")?;
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
    /// Starts it where it is to refuse: its exit code.
    ///
    /// # Errors
    /// Where it gets ready.
    pub(crate) async fn refused(&self, start: &Start) -> anyhow::Result<i32> {
        let mut child = self.command(start)?.stdout(Stdio::null()).spawn().context("the binary does not start")?;
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
