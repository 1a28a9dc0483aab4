//! The store over servers and a spool that fit: what the protocol takes for granted is looked at before the first session.

use std::{io, sync::Arc};

use super::{JournaledStore, Left, LogSpool, Options};
use crate::{
    StoreError,
    postgres::{JournalOptions, NotDurable, Postgres},
    redis::{Redis, Unfit},
};

/// Under which name the journal's id is remembered: in the database, and in the Redis before it.
pub const JOURNAL: &str = "journal";

/// Why the store cannot be opened. Nothing was claimed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Redis is none that may stand there.
    #[error("Redis cannot stand in front of a journal: {0}")]
    Redis(#[from] Unfit),
    /// The database is none that may have it.
    #[error("the database cannot keep a journal: {0}")]
    Database(#[from] NotDurable),
    /// They are not each other's.
    #[error(
        "{redis} stands in front of another journal ({theirs}) than this database's ({ours}): one of the two addresses is \
         another installation's. Where this Redis is to change over and nobody claims in it any more, `HDEL idemp:v1:meta {JOURNAL}`"
    )]
    OtherJournal {
        /// The servers.
        redis: String,
        /// Their journal's id.
        theirs: String,
        /// The database's.
        ours: String,
    },
    /// It is not the database that what is in the spool is for.
    #[error(
        "the spool in {folder} has claims for another journal ({theirs}) than this database's ({ours}): give this process \
         that database, or a folder of its own, and keep this one until a process with that database has had it"
    )]
    OtherSpool {
        /// The folder.
        folder: String,
        /// The id of its journal.
        theirs: String,
        /// The database's.
        ours: String,
    },
    /// The spool's folder cannot be read or written.
    #[error("the spool in {folder} cannot be read or written")]
    Spool {
        /// The folder.
        folder: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A server does not answer, or the system gives no randomness.
    #[error("the journal cannot be opened: {}", .0.in_words())]
    Failed(#[source] StoreError),
}

impl JournaledStore {
    /// Begins the first session over servers that fit each other. `spool` and `left` are what [`LogSpool::open`] gave.
    ///
    /// A Redis that is not [admitted](Redis::admit) yet is not looked at: whoever admits it [looks](Self::pair) before.
    ///
    /// # Errors
    /// [`OpenError`]: what the protocol takes for granted is not so, and with which of the three, and how that is mended.
    pub async fn open(
        options: Options,
        redis: &Arc<Redis>,
        database: &Arc<Postgres>,
        journal: JournalOptions,
        spool: Arc<LogSpool>,
        left: Vec<Left>,
    ) -> Result<Self, OpenError> {
        let journal = database.journal(journal);
        journal.check().await?;
        let front = redis.front();
        let is_there = redis.is_admitted();
        if is_there {
            front.check().await?;
        }
        let ours = database.remember(JOURNAL, &drawn()?).await.map_err(OpenError::Failed)?;
        let failed = |source| OpenError::Spool { folder: spool.folder().to_owned(), source };
        let theirs = spool.journal().map_err(failed)?;
        if let Some(theirs) = theirs.filter(|theirs| *theirs != ours && !left.is_empty()) {
            return Err(OpenError::OtherSpool { folder: spool.folder().to_owned(), theirs, ours });
        }
        if is_there {
            stands_before(redis, ours.clone()).await?;
        }
        // Before the first fact for it.
        spool.belongs_to(&ours).map_err(failed)?;
        let (redis, database) = (Arc::clone(redis) as _, Arc::clone(database) as _);
        Self::start(options, Arc::new(front), Arc::new(journal), spool, left, redis, database)
            .map_err(OpenError::Failed)
    }

    /// Whether this Redis may stand in front of the journal in this database; what [`open`](Self::open) looks at.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn pair(redis: &Redis, database: &Postgres) -> Result<(), OpenError> {
        redis.front().check().await?;
        let ours = database.remember(JOURNAL, &drawn()?).await.map_err(OpenError::Failed)?;
        stands_before(redis, ours).await
    }
}

/// Whether it stands in front of no other journal; from then on it does in front of this one.
async fn stands_before(redis: &Redis, ours: String) -> Result<(), OpenError> {
    let theirs = redis.remember(JOURNAL, &ours).await.map_err(OpenError::Failed)?;
    if theirs == ours { Ok(()) } else { Err(OpenError::OtherJournal { redis: format!("{redis:?}"), theirs, ours }) }
}

fn drawn() -> Result<String, OpenError> {
    let mut id = [0; 16];
    let drawn = getrandom::fill(&mut id);
    drawn.map_err(|error| OpenError::Failed(StoreError::not_applied(crate::Kind::Unavailable).because(error)))?;
    Ok(format!("{:032x}", u128::from_be_bytes(id)))
}
