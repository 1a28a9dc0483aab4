//! PostgreSQL, from the Debian package.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use crate::{
    place::{Place, free_port, output},
    running::Running,
};

/// The superuser's name.
pub const USER: &str = "postgres";
/// Its password, asked for on every connection.
pub const PASSWORD: &str = "only-for-tests";

/// Of a standby it is "ready to accept read-only connections".
const READY: &str = "system is ready to accept";
/// A port that is taken between the look and the start is looked for again.
const START_TRIES_MAX: u32 = 5;

/// A server of its own, with its data in a temporary folder.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    port: u16,
    /// Standbys lie beside their primary's data.
    data: PathBuf,
    // Ended before its folder goes.
    running: Option<Running>,
    place: Place,
}

impl Postgres {
    /// A new server with these settings more than its defaults. Data is not synced to disk unless they say
    /// `fsync = on`: that outlives a kill, not a power failure, and spares slow disks.
    ///
    /// # Errors
    /// Where PostgreSQL is missing, or does not start.
    pub fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_in(Place::new()?, settings)
    }

    /// The same with a certificate and its key in PEM, so that clients may come over TLS.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_tls(settings: &[(&str, &str)], certificate: &str, key: &str) -> anyhow::Result<Self> {
        let place = Place::new()?;
        let certificate = place.write("certificate.pem", certificate)?.display().to_string();
        let key = place.write("key.pem", key)?.display().to_string();
        let tls = [("ssl", "on"), ("ssl_cert_file", &*certificate), ("ssl_key_file", &*key)];
        Self::start_in(place, &[settings, &tls].concat())
    }

    fn start_in(place: Place, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let programs = programs()?;
        let data = place.path().join("data");
        let password = place.write("password", PASSWORD)?;
        let mut initdb = place.command(&programs.join("initdb"));
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--username", USER]);
        output(initdb.arg("--pwfile").arg(&password).arg("--pgdata").arg(&data))?;
        // A pool of another host, or a standby, comes in over the same loopback.
        append(&data, "pg_hba.conf", "host replication all 127.0.0.1/32 scram-sha-256\n")?;
        let mut lines = String::from("listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\n");
        lines.push_str("fsync = off\nmax_connections = 200\nlog_line_prefix = '%p %q%a '\n");
        for (name, value) in settings {
            lines.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        append(&data, "postgresql.conf", &lines)?;
        let mut server = Self { programs, port: 0, data, running: None, place };
        let mut tries = 0;
        loop {
            server.port = free_port()?;
            tries += 1;
            match server.start_again() {
                Err(error) if tries < START_TRIES_MAX && error.to_string().contains("Address already in use") => {}
                other => return other.map(|()| server),
            }
        }
    }

    /// A standby of this server, which streams what it commits, known to it as `name`.
    ///
    /// # Errors
    /// Where the copy cannot be made, or does not start.
    pub fn standby(&self, name: &str) -> anyhow::Result<Self> {
        let place = Place::new()?;
        let data = place.path().join("data");
        let from = format!("host=127.0.0.1 port={} user={USER} password={PASSWORD}", self.port);
        let mut copy = place.command(&self.programs.join("pg_basebackup"));
        copy.args([
            "--no-sync",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--write-recovery-conf",
            "--dbname",
            &from,
        ]);
        output(copy.arg("--pgdata").arg(&data))?;
        append(&data, "postgresql.conf", &format!("cluster_name = '{name}'\n"))?;
        let mut standby = Self { programs: self.programs.clone(), port: free_port()?, data, running: None, place };
        standby.start_again()?;
        Ok(standby)
    }

    /// Makes each commit wait until the standby `name` has it.
    ///
    /// # Errors
    /// Where the server refuses.
    pub fn wait_for_standby(&self, name: &str) -> anyhow::Result<()> {
        self.psql("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"))?;
        self.psql("postgres", "SELECT pg_reload_conf()").map(|_| ())
    }

    /// Makes this standby a primary.
    ///
    /// # Errors
    /// Where it is none, or does not become one within a minute.
    pub fn promote(&self) -> anyhow::Result<()> {
        let promoted = self.psql("postgres", "SELECT pg_promote(true, 60)")?;
        anyhow::ensure!(promoted == "t", "the standby was not promoted; its log:\n{}", self.log());
        Ok(())
    }

    /// Starts it on the same port and data, after it was stopped or killed.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let mut command = self.place.command(&self.programs.join("postgres"));
        command.arg("-D").arg(&self.data).arg("-p").arg(self.port.to_string());
        self.running = Some(Running::start(&mut command, READY)?);
        Ok(())
    }

    /// Ends it as an operator does: connections are closed, what was written is there.
    ///
    /// # Errors
    /// Where it does not run or does not end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        // A stopped process does not hear.
        running.signal(Signal::CONT, true)?;
        running.signal(Signal::INT, false)?;
        running.ended().map(|_| ())
    }

    /// Ends it without a word to its clients and without a checkpoint (an "immediate" shutdown): it recovers at its
    /// next start, as after a crash.
    ///
    /// # Errors
    /// Where it does not run or does not end.
    pub fn stop_at_once(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        running.signal(Signal::QUIT, false)?;
        running.ended().map(|_| ())
    }

    /// `kill -9`, of all its processes.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        running.signal(Signal::KILL, true)?;
        running.ended().map(|_| ())
    }

    /// Stops all its processes where they are (SIGSTOP), until [`resume`](Self::resume).
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.running()?.signal(Signal::STOP, true)
    }

    /// Lets them go on (SIGCONT).
    ///
    /// # Errors
    /// Where it does not run.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.running()?.signal(Signal::CONT, true)
    }

    /// Reads its settings again, `lines` being added to them.
    ///
    /// # Errors
    /// Where it does not run or its folder cannot be written.
    pub fn reload(&self, lines: &str) -> anyhow::Result<()> {
        append(&self.data, "postgresql.conf", &format!("{lines}\n"))?;
        let running = self.running()?;
        let reloaded = "parameter \"";
        running.signal(Signal::HUP, false)?;
        running.wait_for(reloaded)
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How the superuser connects to a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// What it has logged since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        self.running.as_ref().map(Running::log).unwrap_or_default()
    }

    /// The folder with its data.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Runs SQL with psql, as the superuser, and returns the rows: fields apart by `|`, one row a line.
    ///
    /// # Errors
    /// With the server's own words, where a statement fails.
    pub fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        self.psql_at(&self.url(database), sql)
    }

    /// The same wherever `url` leads: through a pooler, as another role.
    ///
    /// # Errors
    /// With the server's own words, where a statement fails.
    pub fn psql_at(&self, url: &str, sql: &str) -> anyhow::Result<String> {
        run_psql(&self.programs, url, sql)
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// Where the server refuses.
    pub fn create_database(&self, name: &str) -> anyhow::Result<()> {
        self.psql("postgres", &format!("CREATE DATABASE \"{name}\"")).map(|_| ())
    }

    fn running(&self) -> anyhow::Result<&Running> {
        self.running.as_ref().context("it does not run")
    }
}

/// Runs SQL as [`Postgres::psql`] does, on a server that somebody else has started.
///
/// # Errors
/// With the server's own words, where a statement fails.
pub fn psql_at(url: &str, sql: &str) -> anyhow::Result<String> {
    run_psql(&programs()?, url, sql)
}

fn run_psql(programs: &Path, url: &str, sql: &str) -> anyhow::Result<String> {
    let mut psql = Command::new(programs.join("psql"));
    psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]);
    output(psql.arg("--dbname").arg(url).arg("--command").arg(sql))
}

/// The newest installed version's programs.
fn programs() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs)| {
            ["initdb", "postgres", "psql", "pg_basebackup"].iter().all(|name| programs.join(name).is_file())
        })
        .max();
    match newest {
        Some((_, programs)) => Ok(programs),
        None => bail!("PostgreSQL is missing; install it first: apt-get install postgresql-15"),
    }
}

fn append(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new().append(true).open(folder.join(name));
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_killed_comes_back_with_what_was_committed_and_one_that_is_dropped_leaves_nothing() {
        let mut server = Postgres::start(&[("max_connections", "17")]).unwrap();
        server.create_database("shop").unwrap();
        server.psql("shop", "CREATE TABLE sold (what text); INSERT INTO sold VALUES ('a hat')").unwrap();
        let port = server.port();
        server.kill().unwrap();
        assert!(server.psql("shop", "SELECT 1").is_err(), "it is gone");
        server.start_again().unwrap();
        assert_eq!(server.psql("shop", "SELECT what FROM sold").unwrap(), "a hat");
        assert_eq!((server.psql("shop", "SHOW max_connections").unwrap(), server.port()), ("17".to_owned(), port));
        server.pause().unwrap();
        server.resume().unwrap();
        assert_eq!(server.psql("shop", "SELECT 2").unwrap(), "2");
        let folder = server.data().to_owned();
        drop(server);
        assert!(!folder.exists());
    }
}
