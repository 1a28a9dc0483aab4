//! PgBouncer in transaction mode, from the Debian package.

use std::fmt::Write as _;

use rustix::process::Signal;

use crate::{
    Postgres,
    place::{Place, free_port, program},
    postgres::{PASSWORD, USER},
    running::Running,
};

/// A pooler before one server: every transaction may get another connection to it.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    // Ended before its folder goes.
    running: Running,
    _place: Place,
}

impl PgBouncer {
    /// A pooler before `server`, for every database of it, with these settings more than its defaults.
    ///
    /// # Errors
    /// Where PgBouncer is missing, or does not start.
    pub fn start(server: &Postgres, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let pgbouncer = program("pgbouncer", "pgbouncer")?;
        let place = Place::new()?;
        let users = place.write("users", &format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let port = free_port()?;
        let mut text = format!("[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\n", server.port());
        let users = users.display().to_string();
        let pid = place.path().join("bouncer.pid").display().to_string();
        let (port_text, fixed) = (
            port.to_string(),
            [
                ("listen_addr", "127.0.0.1"),
                ("unix_socket_dir", ""),
                ("pool_mode", "transaction"),
                ("auth_type", "scram-sha-256"),
                ("max_client_conn", "1000"),
                ("default_pool_size", "20"),
            ],
        );
        let own = [("listen_port", &*port_text), ("auth_file", &users), ("pidfile", &pid)];
        for (name, value) in fixed.iter().chain(&own).chain(settings) {
            let _ = writeln!(text, "{name} = {value}");
        }
        let file = place.write("pgbouncer.ini", &text)?;
        let running = Running::start(place.command(&pgbouncer).arg(&file), "process up")?;
        Ok(Self { port, running, _place: place })
    }

    /// How the superuser connects to a database through it.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.running.log()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.running.signal(Signal::KILL, true)?;
        self.running.ended().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooler_reaches_every_database_of_its_server() {
        let server = Postgres::start(&[]).unwrap();
        server.create_database("shop").unwrap();
        let bouncer = PgBouncer::start(&server, &[]).unwrap();
        assert_eq!(server.psql_at(&bouncer.url("shop"), "SELECT current_database()").unwrap(), "shop");
        bouncer.kill().unwrap();
    }
}
