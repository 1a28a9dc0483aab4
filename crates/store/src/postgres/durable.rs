//! Whether a server keeps what it commits, as the journal counts on.

use onceward_core::record::SessionId;

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

const SETTINGS: &str = "SELECT current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on', \
    current_setting('synchronous_standby_names') <> '', \
    ARRAY(SELECT DISTINCT r.application_name FROM pg_stat_replication r ORDER BY 1)";

impl PostgresJournal {
    /// Whether the server is one that may keep the journal; tells what is not there now and may come.
    ///
    /// # Errors
    /// [`NotDurable`]
    pub async fn check(&self) -> Result<(), NotDurable> {
        let rows = self.read(SETTINGS, &[]).await.map_err(NotDurable::Unfit)?;
        let row = rows.first().ok_or_else(|| NotDurable::Unfit(foreign()))?;
        let has = |at| column::<bool>(row, at).map_err(NotDurable::Unfit);
        for (at, setting) in [(0, "fsync"), (1, "full_page_writes")] {
            if !has(at)? {
                return Err(NotDurable::Off(setting));
            }
        }
        let connected: Vec<String> = column(row, 3).map_err(NotDurable::Unfit)?;
        match self.may_take_over() {
            Failover::Synchronous if !has(2)? => return Err(NotDurable::NoStandbys),
            Failover::Asynchronous { standbys } => {
                let absent: Vec<&String> = standbys.iter().filter(|standby| !connected.contains(*standby)).collect();
                if !absent.is_empty() {
                    tracing::warn!(
                        ?absent,
                        ?connected,
                        "standbys of the journal are not in pg_stat_replication: while one is not, nothing more is past losing: \
                         gateways that begin wait for it, and spools grow. Names are their application_name"
                    );
                }
            }
            Failover::None if !connected.is_empty() => tracing::warn!(
                ?connected,
                "standbys are connected, and failover \"none\" counts on that none takes the database's place: what it has \
                 not got then would run again"
            ),
            _ => {}
        }
        // Whether the functions may be called, and the standbys be seen: as nobody, which changes nothing.
        self.look(SessionId::default()).await.map_err(NotDurable::Unfit)?;
        Ok(())
    }
}
