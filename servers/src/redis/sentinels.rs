//! Three Sentinels over a primary and its replicas.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use super::{ADMIN, PASSWORD, PID, Redis, START_TRIES_MAX, USER, cli};
use crate::{
    place::{Place, free_port},
    running::Running,
};

const SENTINELS: usize = 3;
const QUORUM: usize = 2;
const FAILOVER_TRIES_MAX: u32 = 5;
/// What they say once another is the primary, and when a failover comes to nothing.
const SWITCHED: &str = "+switch-master ";
const ABORTED: &str = "-failover-abort-";
const CONFIG: &str = "sentinel.conf";
/// How often they look at the servers and ask each other, shorter than by themselves; and how long they trust no clock
/// after a pause, which a busy machine makes too.
const PERIODS_MS: [(&str, u32); 4] =
    [("ping-period", 200), ("info-period", 1_000), ("ask-period", 200), ("tilt-period", 2_000)];
/// How often they greet each other.
const GREET: &str = "publish-period";
/// By themselves. A server that says that it is a primary, and is none, is told so after four times as long: shorter,
/// and they would undo each other's failovers.
const GREET_MS: u32 = 2_000;
/// While no failover is under way.
const GREET_SOON_MS: u32 = 200;

/// A primary, its replicas, and three Sentinels that fail over once two of them have not heard of the primary for a
/// second.
#[derive(Debug)]
pub struct Sentinels {
    sentinels: Vec<Sentinel>,
    nodes: Vec<Redis>,
}

/// How much each Sentinel had said at a moment.
#[derive(Debug)]
pub struct Said(Vec<usize>);

#[derive(Debug)]
struct Sentinel {
    program: PathBuf,
    port: u16,
    // Ended before its folder goes.
    running: Option<Running>,
    place: Place,
}

impl Sentinels {
    /// The name under which they know the primary.
    pub const NAME: &'static str = "shop";

    /// A primary of these settings with as many replicas, under three Sentinels that know all of them and each other.
    /// Where `user` is given, name and password, only he can ask the Sentinels, and what the data servers ask for is
    /// another matter.
    ///
    /// # Errors
    /// Where Redis is missing or does not start, or they have not found each other within a minute.
    pub fn start(settings: &[(&str, &str)], replicas: usize, user: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let primary = Redis::start(settings)?;
        let mut nodes = Vec::new();
        for _ in 0..replicas {
            nodes.push(primary.replica()?);
        }
        nodes.insert(0, primary);
        let mut all = Self { sentinels: Vec::new(), nodes };
        for _ in 0..SENTINELS {
            let sentinel = Sentinel::start(all.node(0)?, user)?;
            sentinel.set(GREET, GREET_SOON_MS)?;
            all.sentinels.push(sentinel);
        }
        for sentinel in &all.sentinels {
            sentinel.running()?.wait_until(
                |log| {
                    let others = log.matches("+sentinel sentinel ").count();
                    others == SENTINELS - 1 && log.matches("+slave slave ").count() == replicas
                },
                "that it has found the others",
            )?;
        }
        all.set(GREET, GREET_MS)?;
        Ok(all)
    }

    fn set(&self, period: &str, ms: u32) -> anyhow::Result<()> {
        self.sentinels.iter().filter(|sentinel| sentinel.running.is_some()).try_for_each(|one| one.set(period, ms))
    }

    /// Where the Sentinels listen, on 127.0.0.1.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.port).collect()
    }

    /// The data servers, in the order of their start: the first was the primary.
    #[must_use]
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// One of the data servers.
    ///
    /// # Errors
    /// Where there are not as many.
    pub fn node(&mut self, at: usize) -> anyhow::Result<&mut Redis> {
        self.nodes.get_mut(at).with_context(|| format!("there is no node {at}"))
    }

    /// Which of the data servers the Sentinels take for the primary, as the first of them that runs has it.
    ///
    /// # Errors
    /// Where none runs.
    pub fn primary(&self) -> anyhow::Result<usize> {
        let sentinel = self.sentinels.iter().find(|sentinel| sentinel.running.is_some()).context("no Sentinel runs")?;
        let address = Self::ask(sentinel.port, &["GET-MASTER-ADDR-BY-NAME", Self::NAME])?;
        let of = |node: &Redis| address.lines().nth(1) == Some(&node.port().to_string());
        self.nodes.iter().position(of).with_context(|| format!("{address} is none of the nodes"))
    }

    /// The port of the [`primary`](Self::primary).
    ///
    /// # Errors
    /// Where no Sentinel runs.
    pub fn primary_port(&self) -> anyhow::Result<u16> {
        let at = self.primary()?;
        self.nodes.get(at).map(Redis::port).context("the primary is a node")
    }

    /// `kill -9` of the primary, and the wait until its place is taken. Returns who was killed, to be started again.
    ///
    /// # Errors
    /// Where no replica takes its place within a minute.
    pub fn kill_primary(&mut self) -> anyhow::Result<usize> {
        let (said, at) = (self.said(), self.primary()?);
        self.node(at)?.kill()?;
        self.wait_for_switch(&said)?;
        Ok(at)
    }

    /// Has the primary's place taken by a replica, as an operator does, and waits until all Sentinels agree. The former
    /// primary goes on as one for a moment, until a Sentinel makes it a replica: see [`settle`](Self::settle).
    ///
    /// # Errors
    /// Where no replica is fit for it within a minute, or none takes the place.
    pub fn failover(&self) -> anyhow::Result<()> {
        let said = self.said();
        let running = self.sentinels.iter().find_map(|one| Some((one.port, one.running.as_ref()?)));
        let (port, running) = running.context("no Sentinel runs")?;
        for _ in 0..FAILOVER_TRIES_MAX {
            let logged = running.logged();
            running.look("a replica that is fit", || match Self::ask(port, &["FAILOVER", Self::NAME]) {
                Ok(_) => Ok(Some(())),
                // It has not heard of the replicas since they were told whom to follow, or does it already.
                Err(error) if ["NOGOODSLAVE", "INPROG"].iter().any(|why| format!("{error:#}").contains(why)) => {
                    Ok(None)
                }
                Err(error) => Err(error),
            })?;
            // A replica that is slow to take the place is left as it is.
            running.wait_for_since(logged, &[SWITCHED, ABORTED])?;
            if running.log().get(logged..).is_some_and(|log| log.contains(SWITCHED)) {
                return self.wait_for_switch(&said);
            }
        }
        bail!("no replica took the place in {FAILOVER_TRIES_MAX} tries; the Sentinels' logs:\n{}", self.logs())
    }

    fn ask(port: u16, words: &[&str]) -> anyhow::Result<String> {
        cli::command(port, ADMIN, &[&["SENTINEL"], words].concat())
    }

    /// How much the Sentinels have said, for [`wait_for_switch`](Self::wait_for_switch).
    #[must_use]
    pub fn said(&self) -> Said {
        Said(self.sentinels.iter().map(|one| one.running.as_ref().map_or(0, Running::logged)).collect())
    }

    /// Waits until each Sentinel that runs has said since then that there is another primary.
    ///
    /// # Errors
    /// Where one has not within a minute.
    pub fn wait_for_switch(&self, since: &Said) -> anyhow::Result<()> {
        for (sentinel, logged) in self.sentinels.iter().zip(&since.0) {
            if let Some(running) = &sentinel.running {
                running.wait_for_since(*logged, &[SWITCHED])?;
            }
        }
        Ok(())
    }

    /// Waits until every data server that runs, but for the primary, is a replica of it that streams. To be called when
    /// no failover is under way.
    ///
    /// # Errors
    /// Where one is not within a minute.
    pub fn settle(&self) -> anyhow::Result<()> {
        let (primary, port) = (self.primary()?, self.primary_port()?);
        self.set(GREET, GREET_SOON_MS)?;
        for (_, node) in self.nodes.iter().enumerate().filter(|(at, node)| *at != primary && node.answers()) {
            node.running()?.look("the primary's replica", || {
                // A Sentinel that makes it a replica cuts its clients' connections.
                let Ok(role) = node.command(&["ROLE"]) else { return Ok(None) };
                let role: Vec<&str> = role.lines().collect();
                let follows = matches!(role[..], ["slave", _, of, "connected", ..] if of == port.to_string());
                Ok(follows.then_some(()))
            })?;
        }
        self.set(GREET, GREET_MS)
    }

    /// What the Sentinels have logged since their last starts.
    #[must_use]
    pub fn logs(&self) -> String {
        let logs = self.sentinels.iter().filter_map(|sentinel| sentinel.running.as_ref()).map(Running::log);
        logs.collect::<Vec<_>>().join("\n")
    }

    /// `kill -9` of one of the Sentinels.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn kill_sentinel(&mut self, at: usize) -> anyhow::Result<()> {
        let sentinel = self.sentinels.get_mut(at).with_context(|| format!("there is no Sentinel {at}"))?;
        let mut running = sentinel.running.take().context("it does not run")?;
        running.signal(Signal::KILL, true)?;
        running.ended()?;
        std::fs::remove_file(sentinel.place.path().join(PID)).context(PID)
    }

    /// Starts one of the Sentinels again, on the same port and with what it knew.
    ///
    /// # Errors
    /// Where it runs or does not start.
    pub fn start_sentinel_again(&mut self, at: usize) -> anyhow::Result<()> {
        self.sentinels.get_mut(at).with_context(|| format!("there is no Sentinel {at}"))?.start_again()
    }
}

impl Sentinel {
    fn start(primary: &Redis, user: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let place = Place::ours()?;
        let program = primary.wanted.program.clone();
        let mut sentinel = Self { program, port: 0, running: None, place };
        let mut tries = 0;
        loop {
            sentinel.port = free_port()?;
            let config = sentinel.config(primary.port(), user);
            sentinel.place.write(CONFIG, &config)?;
            tries += 1;
            match sentinel.start_again() {
                Err(error) if tries < START_TRIES_MAX && error.to_string().contains("Address already in use") => {}
                other => return other.map(|()| sentinel),
            }
        }
    }

    fn config(&self, primary: u16, user: Option<(&str, &str)>) -> String {
        let (port, folder, name) = (self.port, self.place.path().display(), Sentinels::NAME);
        let default = match user {
            None => String::new(),
            Some(("default", password)) => format!("requirepass {password}\n"),
            Some((user, password)) => format!("user {user} on >{password} ~* &* +@all\nuser default off\n"),
        };
        format!(
            "port {port}\nbind 127.0.0.1\ndir {folder}\npidfile {folder}/{PID}\n\
             user {USER} on >{PASSWORD} ~* &* +@all\n{default}\
             sentinel sentinel-user {USER}\nsentinel sentinel-pass {PASSWORD}\n\
             sentinel monitor {name} 127.0.0.1 {primary} {QUORUM}\n\
             sentinel down-after-milliseconds {name} 1000\nsentinel failover-timeout {name} 3000\n\
             sentinel auth-user {name} {USER}\nsentinel auth-pass {name} {PASSWORD}\n"
        )
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "it runs already");
        let mut command = self.place.command(&self.program);
        command.arg(self.place.path().join(CONFIG)).arg("--sentinel");
        self.running = Some(Running::start(&mut command, "+monitor master ")?);
        PERIODS_MS.iter().try_for_each(|(period, ms)| self.set(period, *ms))
    }

    fn set(&self, period: &str, ms: u32) -> anyhow::Result<()> {
        cli::command(self.port, ADMIN, &["SENTINEL", "DEBUG", period, &ms.to_string()]).map(|_| ())
    }

    fn running(&self) -> anyhow::Result<&Running> {
        self.running.as_ref().context("it does not run")
    }
}
