//! Whether a server keeps what it commits, as the journal counts on.

use onceward_core::record::SessionId;
use tokio_postgres::Row;

use super::journal::{Failover, PostgresJournal, column, foreign};
use crate::{StoreError, journaled::Journal as _};

/// Why a server is not to keep a journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotDurable {
    /// What it has committed may be lost with its machine's power.
    #[error(
        "{0} is off, and a crash of its machine may lose or damage what it has committed: set it to on, and reload"
    )]
    Off(&'static str),
    /// A failover loses what nobody waited for.
    #[error(
        "synchronous_standby_names is empty, so no commit waits for a standby, and failover \"synchronous\" counts on that: \
         set it to all that may take over; else the failover is \"asynchronous\", or \"none\" where nothing takes over"
    )]
    NoStandbys,
    /// It does not answer, or not as it should.
    #[error("{}", .0.in_words())]
    Unfit(#[source] StoreError),
}

/// What a server says of how it keeps what it commits.
pub(super) struct Settings {
    fsync: bool,
    full_page_writes: bool,
    /// Whether commits wait for a standby.
    waits: bool,
    /// The standbys that are connected.
    connected: Vec<String>,
}

impl Settings {
    /// Asked for by this.
    pub(super) const SQL: &str = "SELECT current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on', \
        current_setting('synchronous_standby_names') <> '', \
        ARRAY(SELECT DISTINCT r.application_name FROM pg_stat_replication r ORDER BY 1)";

    pub(super) fn of(rows: &[Row]) -> Result<Self, StoreError> {
        let row = rows.first().ok_or_else(foreign)?;
        Ok(Self {
            fsync: column(row, 0)?,
            full_page_writes: column(row, 1)?,
            waits: column(row, 2)?,
            connected: column(row, 3)?,
        })
    }

    /// What is doubtful about a journal there, where it may be kept.
    pub(super) fn concern(&self, failover: &Failover) -> Result<Option<String>, NotDurable> {
        for (is_on, setting) in [(self.fsync, "fsync"), (self.full_page_writes, "full_page_writes")] {
            if !is_on {
                return Err(NotDurable::Off(setting));
            }
        }
        let connected = &self.connected;
        match failover {
            Failover::Synchronous if !self.waits => Err(NotDurable::NoStandbys),
            Failover::Asynchronous { standbys } => {
                let absent: Vec<&String> = standbys.iter().filter(|standby| !connected.contains(*standby)).collect();
                let concern = format!(
                    "the standbys {absent:?} of the journal are not in pg_stat_replication, which has {connected:?}: while \
                     one is not, nothing more is past losing: gateways that begin wait for it, and spools grow. Names are \
                     their application_name"
                );
                Ok((!absent.is_empty()).then_some(concern))
            }
            Failover::None if !connected.is_empty() => Ok(Some(format!(
                "the standbys {connected:?} are connected, and failover \"none\" counts on that none takes the database's \
                 place: what it has not got then would run again"
            ))),
            _ => Ok(None),
        }
    }
}

impl PostgresJournal {
    /// Whether the server is one that may keep the journal; tells what is not there now and may come.
    ///
    /// # Errors
    /// [`NotDurable`]
    pub async fn check(&self) -> Result<(), NotDurable> {
        let rows = self.read(Settings::SQL, &[]).await.map_err(NotDurable::Unfit)?;
        let settings = Settings::of(&rows).map_err(NotDurable::Unfit)?;
        if let Some(concern) = settings.concern(self.may_take_over())? {
            tracing::warn!("{concern}");
        }
        // Whether the functions may be called, and the standbys be seen: as nobody, which changes nothing.
        self.look(SessionId::default()).await.map_err(NotDurable::Unfit)?;
        Ok(())
    }
}
