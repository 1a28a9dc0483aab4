//! The database that several processes share: a PostgreSQL server that is killed, shut down and failed over, and a relay
//! before each of its two places.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use servers::postgres::{PASSWORD, USER};
use servers::{Postgres, Relay};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::PATIENCE;

/// Its name on the server.
const NAME: &str = "keys";
/// How often a standby is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Pieces of answers that are withheld: as many as claims and settlings may be on their way at once.
const UNANSWERED: usize = 4;

/// A database with its server, and at times a standby.
pub(crate) struct Database {
    primary: Postgres,
    standby: Option<Postgres>,
    /// How processes reach it: each leads to a server that is one, or was.
    places: [Relay; 2],
    /// Which of them leads to the primary.
    at: usize,
    standbys: usize,
}

impl Database {
    /// A new one, with the schema that `onceward` makes.
    ///
    /// # Errors
    /// Where PostgreSQL is missing or does not start, or the schema cannot be made.
    pub(crate) async fn start(onceward: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let primary = block_in_place(|| Postgres::start(settings))?;
        block_in_place(|| primary.create_database(NAME))?;
        let mut migrate = crate::gateway::command(onceward);
        migrate.args(["migrate", "--database", &primary.url(NAME)]);
        let done = migrate.stdin(Stdio::null()).output().await.context("onceward migrate")?;
        ensure!(done.status.success(), "onceward migrate: {}", String::from_utf8_lossy(&done.stderr));
        let places = [Relay::start()?, Relay::start()?];
        let database = Self { primary, standby: None, places, at: 0, standbys: 0 };
        database.place(0)?.leads_to(database.primary.port());
        Ok(database)
    }

    /// The table of the configuration that names it.
    #[must_use]
    pub(crate) fn table(&self) -> String {
        let hosts: Vec<String> = self.places.iter().map(|place| place.address().to_string()).collect();
        let url = format!("postgresql://{USER}@{}/{NAME}?target_session_attrs=read-write", hosts.join(","));
        format!("[store.postgres]\nurl = \"{url}\"\npassword = \"{PASSWORD}\"\ntls = \"off\"\n")
    }

    fn place(&self, at: usize) -> anyhow::Result<&Relay> {
        self.places.get(at % self.places.len()).context("two places")
    }

    /// `kill -9` of all the server's processes, and its start.
    ///
    /// # Errors
    /// Where it does not come back.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.fall()?;
        self.rise()
    }

    /// `kill -9` of all the server's processes.
    ///
    /// # Errors
    /// Where it does not run.
    pub(crate) fn fall(&mut self) -> anyhow::Result<()> {
        block_in_place(|| self.primary.kill())
    }

    /// Its start after that.
    ///
    /// # Errors
    /// Where it does not come back.
    pub(crate) fn rise(&mut self) -> anyhow::Result<()> {
        block_in_place(|| self.primary.start_again())
    }

    /// Told to shut down without waiting for anybody ("immediate"), and its start.
    ///
    /// # Errors
    /// Where it does not come back.
    pub(crate) fn shut_down(&mut self) -> anyhow::Result<()> {
        block_in_place(|| self.primary.stop_at_once())?;
        block_in_place(|| self.primary.start_again())
    }

    /// Gives it a standby that has whatever is answered from here on, unless it has one.
    ///
    /// # Errors
    /// Where there is none within a minute.
    pub(crate) async fn follow(&mut self) -> anyhow::Result<()> {
        if self.standby.is_some() {
            return Ok(());
        }
        self.standbys += 1;
        let name = format!("standby{}", self.standbys);
        let standby = block_in_place(|| self.primary.standby(&name))?;
        self.place(self.at + 1)?.leads_to(standby.port());
        self.primary.wait_for_standby(&name)?;
        let until = Instant::now() + PATIENCE;
        let state = format!("SELECT sync_state FROM pg_stat_replication WHERE application_name = '{name}'");
        while block_in_place(|| self.primary.psql("postgres", &state))? != "sync" {
            ensure!(Instant::now() < until, "the standby does not follow");
            sleep(LOOK_EVERY).await;
        }
        self.standby = Some(standby);
        Ok(())
    }

    /// `kill -9` of the primary for good; its standby takes its place.
    ///
    /// # Errors
    /// Where it has none, or that does not become the primary.
    pub(crate) fn fail_over(&mut self) -> anyhow::Result<()> {
        let standby = self.standby.take().context("there is no standby")?;
        block_in_place(|| self.primary.kill())?;
        block_in_place(|| standby.promote())?;
        self.primary = standby;
        self.at += 1;
        Ok(())
    }

    /// Cuts all connections to it.
    ///
    /// # Errors
    /// Where there is nothing before it.
    pub(crate) fn cut(&self) -> anyhow::Result<()> {
        self.place(self.at)?.cut();
        Ok(())
    }

    /// The same once several of its answers were withheld.
    ///
    /// # Errors
    /// Where it answered nothing.
    pub(crate) fn cut_unanswered(&self) -> anyhow::Result<()> {
        block_in_place(|| self.place(self.at)?.cut_unanswered(UNANSWERED))
    }
}
