//! Redis from the Debian package, and Valkey.

mod cli;
mod cluster;
mod sentinels;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use self::cli::As;
pub use self::cluster::{Move, RedisCluster, SLOTS};
pub use self::sentinels::Sentinels;
use crate::{
    place::{Place, free_port, program},
    running::Running,
};

/// A user that every server has and that may do everything: [`Redis::command`] runs as it, replicas log in as it. What
/// the others may do, `default` with them, is as Redis has it, or as the test says.
pub const USER: &str = "admin";
/// Its password.
pub const PASSWORD: &str = "only-for-tests";

const ADMIN: As<'static> = As { user: USER, password: PASSWORD };
const READY: &str = "Ready to accept connections";
/// Of all versions.
const SYNCED: &str = "<-> REPLICA sync: Finished with success";
const RESUMED: &str = "accepted a Partial Resynchronization";
const CONFIG: &str = "redis.conf";
/// The guard knows it by its ending.
const PID: &str = "redis.pid";
/// Names the program of Valkey.
const VALKEY: &str = "ONCEWARD_VALKEY";
/// Ports that are taken between the look and the start are looked for again.
const START_TRIES_MAX: u32 = 5;

/// Runs a command as [`USER`] on the server that a test of another process has started on this port.
///
/// # Errors
/// As [`Redis::command`].
pub fn command_at(port: u16, words: &[&str]) -> anyhow::Result<String> {
    cli::command(port, ADMIN, words)
}

/// A server of its own, with its data in a temporary folder. It keeps nothing over a restart unless its settings say
/// so (`save`, `appendonly`).
#[derive(Debug)]
pub struct Redis {
    wanted: Wanted,
    port: u16,
    tls_port: Option<u16>,
    /// Where the nodes of a cluster talk to it.
    bus_port: Option<u16>,
    is_paused: AtomicBool,
    // Ended before its folder goes.
    running: Option<Running>,
    place: Place,
}

/// What a server is made of; its replicas are made of the same.
#[derive(Clone, Debug)]
struct Wanted {
    program: PathBuf,
    settings: Vec<(String, String)>,
    /// An ACL file's text.
    acl: Option<String>,
    /// Certificate and key, in PEM.
    tls: Option<(String, String)>,
}

impl Wanted {
    fn new(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Ok(Self::of(program("redis-server", "redis-server")?, settings))
    }

    fn of(program: PathBuf, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { program, settings, acl: None, tls: None }
    }

    /// The lines of its configuration that do not name a port.
    fn config(&self, place: &Place) -> anyhow::Result<String> {
        let file = |name: &str| place.path().join(name).display().to_string();
        let data = file("data");
        std::fs::create_dir(&data).context("a folder for the data")?;
        let (pid, socket) = (file(PID), file("redis.sock"));
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut line = |name: &str, value: &str| lines.push((name.to_owned(), value.to_owned()));
        line("bind", "127.0.0.1");
        line("dir", &data);
        line("pidfile", &pid);
        line("unixsocket", &socket);
        line("save", "");
        // A replica that asks for everything need not wait for others that might.
        line("repl-diskless-sync-delay", "0");
        line("masteruser", USER);
        line("masterauth", PASSWORD);
        let admin = format!("{USER} on >{PASSWORD} ~* &* +@all");
        match &self.acl {
            None => line("user", &admin),
            Some(acl) => {
                let acl = place.write("users.acl", &format!("{}\nuser {admin}\n", acl.trim_end()))?;
                line("aclfile", &acl.display().to_string());
            }
        }
        if let Some((certificate, key)) = &self.tls {
            line("tls-cert-file", &place.write("certificate.pem", certificate)?.display().to_string());
            line("tls-key-file", &place.write("key.pem", key)?.display().to_string());
            line("tls-auth-clients", "no");
        }
        let lines = lines.iter().chain(&self.settings);
        Ok(lines.map(|(name, value)| format!("{name} {}\n", if value.is_empty() { "\"\"" } else { value })).collect())
    }
}

impl Redis {
    /// A new server with these settings more than its defaults, each value as it would stand in `redis.conf`. A setting
    /// that is given twice is what it is given last.
    ///
    /// # Errors
    /// Where Redis is missing, or does not start.
    pub fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_as(Wanted::new(settings)?, &[])
    }

    /// The same with a certificate and its key in PEM, and a port that clients come to over TLS, without certificates
    /// of their own. The other port stays.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_tls(settings: &[(&str, &str)], certificate: &str, key: &str) -> anyhow::Result<Self> {
        let tls = Some((certificate.to_owned(), key.to_owned()));
        Self::start_as(Wanted { tls, ..Wanted::new(settings)? }, &[])
    }

    /// The same with the users of this ACL file, to whom [`USER`] is added.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_acl(settings: &[(&str, &str)], acl: &str) -> anyhow::Result<Self> {
        Self::start_as(Wanted { acl: Some(acl.to_owned()), ..Wanted::new(settings)? }, &[])
    }

    /// The same of Valkey: the program that `ONCEWARD_VALKEY` names, or that `cargo xtask install` has put under the
    /// target folder, which knows no TLS.
    ///
    /// # Errors
    /// Where there is neither, or it does not start.
    pub fn valkey(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_as(Wanted::of(valkey_server()?, settings), &[])
    }

    /// `own` are settings that its replicas do not get.
    fn start_as(wanted: Wanted, own: &[(&str, &str)]) -> anyhow::Result<Self> {
        let place = Place::ours()?;
        let mut config = wanted.config(&place)?;
        config.extend(own.iter().map(|(name, value)| format!("{name} {value}\n")));
        let is_node = wanted.settings.iter().any(|(name, value)| name == "cluster-enabled" && value == "yes");
        let is_paused = AtomicBool::new(false);
        let mut server = Self { wanted, port: 0, tls_port: None, bus_port: None, is_paused, running: None, place };
        let mut tries = 0;
        loop {
            server.port = free_port()?;
            let mut ports = format!("port {}\n", server.port);
            if server.wanted.tls.is_some() {
                let port = free_port()?;
                server.tls_port = Some(port);
                ports.push_str(&format!("tls-port {port}\n"));
            }
            if is_node {
                let port = free_port()?;
                server.bus_port = Some(port);
                ports.push_str(&format!("cluster-port {port}\n"));
            }
            server.place.write(CONFIG, &(ports + &config))?;
            tries += 1;
            match server.start_again() {
                Err(error) if tries < START_TRIES_MAX && error.to_string().contains("Address already in use") => {}
                other => return other.map(|()| server),
            }
        }
    }

    /// A replica of this server, of the same settings, that has all of its data and streams what is written.
    ///
    /// # Errors
    /// Where it does not start, or has not caught up within a minute.
    pub fn replica(&self) -> anyhow::Result<Self> {
        let replica = self.replica_through(self.port)?;
        // From here on it counts for WAIT.
        self.running()?.wait_for(&format!("Synchronization with replica 127.0.0.1:{} succeeded", replica.port))?;
        Ok(replica)
    }

    /// The same over a port of this machine that leads to this server, such as a relay's. It has all of the data; whether
    /// this server knows that already is not waited for.
    ///
    /// # Errors
    /// As [`replica`](Self::replica).
    pub fn replica_through(&self, port: u16) -> anyhow::Result<Self> {
        let replica = Self::start_as(self.wanted.clone(), &[("replicaof", &format!("127.0.0.1 {port}"))])?;
        replica.running()?.wait_for(SYNCED)?;
        Ok(replica)
    }

    /// Waits until this many replicas have all that was written here.
    ///
    /// # Errors
    /// Where fewer do after ten seconds.
    pub fn wait_for_replicas(&self, replicas: usize) -> anyhow::Result<()> {
        // The client has logged in, and so waits for whatever was written before.
        let have: usize = self.command(&["WAIT", &replicas.to_string(), "10000"])?.parse().context("WAIT")?;
        ensure!(have >= replicas, "{have} replicas have what was written, and {replicas} were to");
        Ok(())
    }

    /// Makes this server a replica of another, also after its next start, and waits until it has all of its data.
    ///
    /// # Errors
    /// Where it does not run, or has not caught up within a minute.
    pub fn replicate(&self, other: &Self) -> anyhow::Result<()> {
        let running = self.running()?;
        let logged = running.logged();
        let said = self.command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()])?;
        self.command(&["CONFIG", "REWRITE"])?;
        if said.contains("Already connected") {
            return Ok(());
        }
        running.wait_for_since(logged, &[SYNCED, RESUMED])
    }

    /// Makes this replica a primary, also after its next start.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn promote(&self) -> anyhow::Result<()> {
        self.command(&["REPLICAOF", "NO", "ONE"])?;
        self.command(&["CONFIG", "REWRITE"]).map(|_| ())
    }

    /// Starts it on the same ports and data, after it was stopped or killed.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "it runs already");
        let mut command = self.place.command(&self.wanted.program);
        self.running = Some(Running::start(command.arg(self.place.path().join(CONFIG)), READY)?);
        self.is_paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Ends it as an operator does (SHUTDOWN): where it is to save, it has saved. It waits up to `shutdown-timeout` for
    /// replicas that lag.
    ///
    /// # Errors
    /// Where it does not run or does not end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        // A stopped process does not hear.
        running.signal(Signal::CONT, true)?;
        running.signal(Signal::TERM, false)?;
        running.ended().map(|_| ())
    }

    /// `kill -9`, of what it has forked too.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        running.signal(Signal::KILL, true)?;
        running.ended()?;
        // The number may be another process's by the time that the guard looks.
        std::fs::remove_file(self.place.path().join(PID)).context(PID)
    }

    /// Stops its process where it is (SIGSTOP), until [`resume`](Self::resume).
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.running()?.signal(Signal::STOP, true)?;
        self.is_paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// Where it does not run.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.running()?.signal(Signal::CONT, true)?;
        self.is_paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Runs a command as [`USER`], and returns what it says: the parts of a list one a line, nothing for a nil.
    ///
    /// # Errors
    /// With the server's own words, where it refuses, or where it has not answered within 30 seconds.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        cli::command(self.port, ADMIN, words)
    }

    /// The same as another user.
    ///
    /// # Errors
    /// As [`command`](Self::command), and where the password is wrong.
    pub fn command_as(&self, user: &str, password: &str, words: &[&str]) -> anyhow::Result<String> {
        cli::command(self.port, As { user, password }, words)
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How the user `default` connects, who has no password unless the settings say so.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How a user connects. Neither name nor password may need escapes.
    #[must_use]
    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}", self.port)
    }

    /// How the user `default` connects over TLS.
    ///
    /// # Errors
    /// Where it was not started [with TLS](Self::start_with_tls).
    pub fn tls_url(&self) -> anyhow::Result<String> {
        let port = self.tls_port.context("it was started without TLS")?;
        Ok(format!("rediss://127.0.0.1:{port}"))
    }

    /// How the user `default` connects over the Unix socket in its folder.
    #[must_use]
    pub fn socket_url(&self) -> String {
        format!("redis+unix://{}", self.place.path().join("redis.sock").display())
    }

    /// The folder with its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.place.path().join("data")
    }

    /// What it has logged since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        self.running.as_ref().map(Running::log).unwrap_or_default()
    }

    /// Waits up to a minute until it has logged `text` since its last start.
    ///
    /// # Errors
    /// With its log, where it does not.
    pub fn wait_for_log(&self, text: &str) -> anyhow::Result<()> {
        self.running()?.wait_for(text)
    }

    /// Whether it runs and is not [paused](Self::pause).
    #[must_use]
    pub fn answers(&self) -> bool {
        self.running.is_some() && !self.is_paused.load(Ordering::Relaxed)
    }

    fn running(&self) -> anyhow::Result<&Running> {
        self.running.as_ref().context("it does not run")
    }
}

fn valkey_server() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(VALKEY) {
        let named = PathBuf::from(named);
        ensure!(named.is_file(), "{VALKEY} names {}, where no file is", named.display());
        return Ok(named);
    }
    // Whoever runs was built somewhere in the target folder.
    let us = std::env::current_exe().context("where we are")?;
    let installed = us.ancestors().map(|folder| folder.join("servers-valkey/valkey-server"));
    let found = installed.into_iter().find(|file| file.is_file());
    found.with_context(|| {
        format!("valkey-server is missing; install it first: cargo xtask install, or name one of your own by {VALKEY}")
    })
}
