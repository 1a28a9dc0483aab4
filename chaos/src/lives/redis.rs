//! What is done to Redis, and what the processes say of it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use onceward_core::key::PARTITIONS;

use super::{LOOK_EVERY, Lives, Struck};
use crate::PATIENCE;
use crate::cache;
use crate::history;
use crate::plan::Blow;
use crate::shards::{AFTERWARDS, BETWEEN};
use crate::traffic::wall_us;

/// How often it is waited for another key that a replica lacks.
const AHEAD_TRIES_MAX: u32 = 200;
/// How long Redis is stopped.
const REDIS_STOPPED: Duration = Duration::from_secs(3);
/// What a process says once journaled keys are claimed in the database, and in Redis again.
const TO_THE_DATABASE: &str = "these partitions' claims go to the database";
const TO_REDIS: &str = "claims go to Redis again";

impl Lives<'_> {
    /// The same to Redis; whatever may have lost records is noticed by both processes.
    pub(super) async fn strike_redis(&mut self, blow: Blow, after: u32) -> anyhow::Result<()> {
        // Hints are kept beside, and are left out where Redis is slow.
        for _ in 0..AHEAD_TRIES_MAX {
            if self.backing.is_cache() || self.backing.cache()?.has_any()? {
                break;
            }
            self.settled(self.traffic.figures().settled.saturating_add(1)).await?;
        }
        // What was written from then on will be gone.
        let mut from_us = match blow {
            Blow::LeftBehind => Some(self.backing.cache()?.leave_behind()?),
            Blow::SetBack => Some(self.backing.cache()?.save()?),
            Blow::Flushed | Blow::Emptied | Blow::Deleted | Blow::Both => Some(0),
            _ => None,
        };
        if matches!(blow, Blow::LeftBehind | Blow::SetBack) {
            self.settled(self.traffic.figures().settled.saturating_add(after)).await?;
            for _ in 0..AHEAD_TRIES_MAX {
                if self.backing.cache()?.is_ahead()? {
                    break;
                }
                self.settled(self.traffic.figures().settled.saturating_add(1)).await?;
            }
        }
        let (log, settled) = (self.site.log_bytes(), self.traffic.figures().settled);
        let mut only = None;
        let begun_us = wall_us();
        let cache = self.backing.cache()?;
        match blow {
            Blow::Flushed => cache.flush()?,
            Blow::Killed | Blow::Emptied => cache.kill()?,
            Blow::Both => {
                self.backing.database()?.fall()?;
                self.backing.cache()?.kill()?;
                self.backing.database()?.rise()?;
            }
            Blow::LeftBehind => cache.fail_over()?,
            Blow::SetBack => cache.set_back()?,
            Blow::Deleted => {
                let at_rest = self.traffic.at_rest();
                let operation = self.rng.choice(at_rest).context("no key is at rest")?;
                cache.delete(&operation)?;
                only = Some(operation);
            }
            Blow::Cut => cache.cut(),
            Blow::Unanswered => cache.cut_unanswered()?,
            Blow::Stopped => {
                cache.pause()?;
                tokio::time::sleep(REDIS_STOPPED).await;
                cache.resume()?;
            }
            Blow::Away => {
                cache.go_away()?;
                if self.backing.is_journaled() {
                    self.said_by_each(log, TO_THE_DATABASE).await?;
                }
                if !self.backing.is_cache() {
                    self.settled(self.traffic.figures().settled.saturating_add(after)).await?;
                }
                self.backing.cache()?.come_back()?;
                if self.backing.is_journaled() {
                    self.said_by_each(log, TO_REDIS).await?;
                }
            }
            Blow::ShutDown | Blow::FailedOver | Blow::Moved => anyhow::bail!("this is not done to one Redis"),
        }
        self.count(blow.name());
        let is_told = from_us.is_some() && only.is_none() || blow == Blow::Killed;
        if self.backing.is_cache() && (is_told || only.is_some()) {
            self.struck.push(Struck { log, from_us: from_us.take(), begun_us, over_us: wall_us(), only, parts: None });
        }
        if is_told && self.backing.is_cache() {
            self.told_by_all(log, usize::from(PARTITIONS)).await?;
        }
        self.settled(settled.saturating_add(after)).await
    }

    /// The same to a Cluster: slots are moved, which nobody is to take for a loss, or a primary falls, and what it had is
    /// noticed by both processes.
    pub(super) async fn strike_cluster(&mut self, blow: Blow, after: u32) -> anyhow::Result<()> {
        if blow == Blow::Moved {
            let (log, begun_us) = (self.site.log_bytes(), wall_us());
            let (between, afterwards) = (self.said_by_shards(BETWEEN)?, self.said_by_shards(AFTERWARDS)?);
            self.backing.shards()?.begin_moves(&mut self.rng)?;
            self.shards_say(BETWEEN, between).await?;
            self.backing.shards()?.end_moves()?;
            self.shards_say(AFTERWARDS, afterwards).await?;
            let parts = Some(BTreeSet::new());
            self.struck.push(Struck { log, from_us: None, begun_us, over_us: wall_us(), only: None, parts });
        } else {
            ensure!(blow == Blow::LeftBehind, "{blow:?} is not done to a Cluster");
            let from_us = Some(self.backing.shards()?.leave_behind(&mut self.rng)?);
            self.settled(self.traffic.figures().settled.saturating_add(after)).await?;
            for _ in 0..AHEAD_TRIES_MAX {
                if self.backing.shards()?.is_ahead()? {
                    break;
                }
                self.settled(self.traffic.figures().settled.saturating_add(1)).await?;
            }
            let (log, begun_us) = (self.site.log_bytes(), wall_us());
            let parts = self.backing.shards()?.fall()?;
            let count = parts.len();
            let parts = Some(parts);
            self.struck.push(Struck { log, from_us, begun_us, over_us: wall_us(), only: None, parts });
            self.told_by_all(log, count).await?;
        }
        self.count(blow.name());
        self.settled(self.traffic.figures().settled.saturating_add(after)).await
    }

    fn said_by_shards(&mut self, words: &[&str]) -> anyhow::Result<u64> {
        self.backing.shards()?.said(words)
    }

    /// Nodes have said one of these words more often.
    async fn shards_say(&mut self, words: &[&str], before: u64) -> anyhow::Result<()> {
        let saying = async {
            while self.said_by_shards(words)? <= before {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, saying).await.with_context(|| format!("no node said one of {words:?}"))?
    }

    /// Each process has said so.
    async fn said_by_each(&self, from: u64, words: &str) -> anyhow::Result<()> {
        let saying = async {
            while self.site.log_from(from).matches(words).count() < self.running.len() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, saying).await.with_context(|| format!("not all of them said: {words}"))
    }

    /// Each process has said of so many parts of Redis that they were lost.
    async fn told_by_all(&self, from: u64, parts: usize) -> anyhow::Result<()> {
        let saying = async {
            while !cache::is_told_by_all(&self.site.log_from(from), self.running.len(), parts) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, saying).await.context("not all of them told that Redis may have lost all of it")
    }

    /// What was lost on purpose, with what the processes said of it.
    ///
    /// # Errors
    /// Where they said so of anything else.
    pub(super) fn losses(&mut self) -> anyhow::Result<Vec<history::Loss>> {
        if !self.backing.is_cache() {
            return Ok(Vec::new());
        }
        let quarantine_us = self.backing.cache().map_or(0, |cache| cache.quarantine_us());
        let ends = self.struck.iter().skip(1).map(|next| next.log).chain([u64::MAX]).collect::<Vec<_>>();
        let first = self.struck.first().map_or(u64::MAX, |first| first.log);
        let told = cache::told(&self.site.log_between(0, first));
        ensure!(told.is_empty(), "nothing had been lost, and they said: {told:?}");
        let mut losses = Vec::new();
        let mut lost_before_us = 0;
        for (Struck { log, from_us, begun_us, over_us, only, parts }, end) in self.struck.drain(..).zip(ends) {
            let told = cache::told(&self.site.log_between(log, end));
            ensure!(only.is_none() || told.is_empty(), "a record was deleted by hand, and they said: {told:?}");
            let is_there = |part: &u16| parts.as_ref().is_none_or(|parts| parts.contains(part));
            let other = told.iter().find(|told| !told.parts.iter().all(is_there));
            ensure!(other.is_none(), "of {parts:?} something may be lost, and they said: {other:?}");
            let (gone, told) = match (only, from_us) {
                (Some(only), _) => ([only].into(), None),
                (None, Some(from_us)) => {
                    let written = self.traffic.written_between(lost_before_us, from_us, over_us);
                    lost_before_us = over_us;
                    let gone = written.into_iter().filter(|operation| is_there(&cache::part_of(operation)));
                    (gone.collect(), Some(told))
                }
                (None, None) => (BTreeSet::new(), Some(told)),
            };
            let from_us = from_us.unwrap_or(begun_us);
            losses.push(history::Loss { from_us, begun_us, over_us, gone, told, quarantine_us });
        }
        Ok(losses)
    }
}
