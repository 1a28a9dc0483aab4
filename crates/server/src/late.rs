//! A Redis in front of a database that was not there when this process began.
//!
//! Claims go to the database meanwhile, as they do wherever Redis is gone. Once it answers it is looked at as at a start,
//! over connections of its own, and nothing of it counts before it is found to be the right one.

use std::{sync::Weak, time::Duration};

use onceward::store::{journaled::JournaledStore, postgres::Postgres, redis::Redis};
use tokio::time::sleep;

use crate::{
    config::{Config, RedisStore},
    opened,
    start::StartError,
};

/// How often it is looked for.
const EVERY: Duration = Duration::from_secs(1);
/// And looked at, where it is there and not the right one.
const WRONG_EVERY: Duration = Duration::from_secs(5);

/// Looks for it until it is used, or nobody would use it any more.
pub(crate) async fn admit(redis: Weak<Redis>, database: Weak<Postgres>, config: Config, said: RedisStore) {
    let (mut told, mut every) = (String::new(), EVERY);
    loop {
        sleep(every).await;
        let (Some(redis), Some(database)) = (redis.upgrade(), database.upgrade()) else { return };
        match look(&redis, &database, &config, &said).await {
            Ok(()) => return tracing::warn!("Redis is there, and used from now on"),
            Err(error) => {
                let why = error.in_words();
                redis.refuse(why.clone());
                every = if error.is_redis_away() { EVERY } else { WRONG_EVERY };
                if !error.is_redis_away() && why != told {
                    tracing::error!("Redis is there, and not used: {why}");
                    told = why;
                }
            }
        }
    }
}

async fn look(redis: &Redis, database: &Postgres, config: &Config, said: &RedisStore) -> Result<(), StartError> {
    let looked_at = opened::redis(config, said).await?;
    if config.store.journal.is_some() {
        let paired = JournaledStore::pair(&looked_at, database).await;
        paired.map_err(|source| StartError::Journal(Box::new(source)))?;
    }
    let address = format!("{redis:?}");
    redis.admit().await.map_err(|source| StartError::Redis { address, source })
}
