//! Whether servers may stand in front of a journal: what steps rely on and do not look at themselves.

use onceward_core::key::PARTITIONS;

use super::JournaledFront;
use crate::{StoreError, redis::upkeep::every_info};

/// Why servers are not to stand in front of a journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// Whether they have restarted or failed over is in what they say of themselves.
    #[error(
        "the user may not ask for INFO, without which no restart or failover is noticed: allow +info, as \
         deploy/redis/onceward.acl does"
    )]
    Silent,
    /// A record that is gone while its server is there is missed by nobody.
    #[error(
        "its maxmemory-policy is {0:?}, and a key that it evicts runs again: set it to noeviction, with CONFIG SET and in its \
         file"
    )]
    Evicts(String),
    /// They do not answer, or not as they should.
    #[error("{}", .0.in_words())]
    Call(#[source] StoreError),
}

impl JournaledFront {
    /// Whether these servers may stand in front of a journal.
    ///
    /// # Errors
    /// [`Unfit`]
    pub async fn check(&self) -> Result<(), Unfit> {
        let infos = every_info(&self.shared.side).await.map_err(Unfit::Call)?;
        if infos.is_empty() {
            return Err(Unfit::Silent);
        }
        for info in infos {
            let policy = info.field("maxmemory_policy");
            if policy != "noeviction" {
                return Err(Unfit::Evicts(policy.to_owned()));
            }
        }
        // In scripts it may be forbidden, or left out, for itself.
        let all: Vec<u16> = (0..PARTITIONS).collect();
        self.see(&all).await.map_err(Unfit::Call)?;
        Ok(())
    }
}
