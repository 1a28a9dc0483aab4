//! Redis, behind a relay: emptied, killed, set back and failed over to a replica that was left behind; and what the
//! processes say that it lost.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use onceward_core::key::{RecordId, Scope, Secret};
use servers::redis::{PASSWORD, USER};
use servers::{Redis, Relay};
use tokio::task::block_in_place;

#[cfg(test)]
use crate::backing::SECRET;
use crate::history::{Operation, Told};
use crate::plan::{Durability, Strategy};
use crate::traffic::wall_us;

/// The bytes of the secret.
const SECRET_BYTES: [u8; 32] = [7; 32];
/// The environment of all routes.
const ENV: &str = "chaos";
/// Pieces of answers that are withheld: as many as claims and settlings may be on their way at once.
const UNANSWERED: usize = 4;
/// What a process logs that noticed a loss.
const LOST: &str = "Redis lost records";
/// How long new keys are refused after that, where the configuration says so, in seconds.
const QUARANTINE_S: u64 = 2;
/// A record's key: `idemp:v1:{p017}:` and its id.
const RECORD_KEY_BYTES: usize = 16 + 43;
/// And what a hint's has after it.
const HINT: &str = ":h";
/// And what a record's has that is in front of a journal.
const JOURNALED: &str = ":j";
/// Others retire a process after so long.
const MEMBER_TIMEOUT: &str = "2s";

/// What a server is to do beyond the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Each write is on its disk before it is answered.
    pub(crate) is_kept: bool,
    /// Processes refuse new keys for a while after a loss.
    pub(crate) quarantine: bool,
    /// It is failed over.
    pub(crate) fails_over: bool,
    /// How processes take a step.
    pub(crate) strategy: Strategy,
    /// It has hints, of records of a database.
    pub(crate) has_hints: bool,
    /// It is in front of a journal, whose database this may take the place of.
    pub(crate) journal: Option<&'static str>,
}

/// A Redis server that several processes share, and at times a replica.
pub(crate) struct Cache {
    wanted: Wanted,
    primary: Redis,
    replica: Option<Redis>,
    /// Between a replica and its primary.
    stream: Option<Relay>,
    /// The records of a snapshot.
    saved: BTreeSet<String>,
    /// How processes reach the primary.
    place: Relay,
}

impl Cache {
    /// A new one.
    ///
    /// # Errors
    /// Where Redis is missing or does not start.
    pub(crate) fn start(wanted: Wanted) -> anyhow::Result<Self> {
        let kept: &[(&str, &str)] =
            if wanted.is_kept { &[("appendonly", "yes"), ("appendfsync", "always")] } else { &[] };
        let primary = block_in_place(|| Redis::start(kept))?;
        if wanted.fails_over {
            // With its first one it begins a new history, which is told as a loss: that is over before processes start.
            block_in_place(|| primary.replica())?;
        }
        let place = Relay::before(primary.port())?;
        Ok(Self { wanted, primary, replica: None, stream: None, saved: BTreeSet::new(), place })
    }

    /// The table of the configuration that names it.
    #[must_use]
    pub(crate) fn table(&self) -> String {
        let own = table(&format!("redis://{}/0", self.place.address()), self.wanted.strategy);
        match self.wanted.journal {
            Some(failover) => {
                format!("{own}[store.journal]\nfailover = \"{failover}\"\nmember_timeout = \"{MEMBER_TIMEOUT}\"\n")
            }
            None => own,
        }
    }

    /// What its routes must say.
    #[must_use]
    pub(crate) fn defaults(&self) -> String {
        defaults(self.wanted.quarantine)
    }

    /// For so long processes refuse new keys after a loss, in microseconds.
    #[must_use]
    pub(crate) fn quarantine_us(&self) -> u64 {
        if self.wanted.quarantine { QUARANTINE_S * 1_000_000 } else { 0 }
    }

    /// Whether it has anything that can be lost.
    ///
    /// # Errors
    /// Where it does not answer.
    pub(crate) fn has_any(&self) -> anyhow::Result<bool> {
        block_in_place(|| Ok(!self.kept(&self.primary)?.is_empty()))
    }

    /// Takes everything out of it, and is certain that there were records.
    ///
    /// # Errors
    /// Where there were none, or it does not answer.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        block_in_place(|| {
            ensure!(!self.kept(&self.primary)?.is_empty(), "there was nothing to lose");
            self.primary.command(&["FLUSHALL"]).map(|_| ())
        })
    }

    /// `kill -9`, and its start with all that it had, or with nothing of it where it keeps nothing.
    ///
    /// # Errors
    /// Where it does not come back, or came back otherwise.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        block_in_place(|| {
            let had = self.close()?;
            ensure!(!had.is_empty(), "there was nothing to lose");
            self.primary.kill()?;
            self.primary.start_again()?;
            let has = self.kept(&self.primary)?;
            let expected = if self.wanted.is_kept { had } else { BTreeSet::new() };
            ensure!(has == expected, "it was to come back with {} records, and has {}", expected.len(), has.len());
            self.place.accept()
        })
    }

    /// Writes down what it has: a time, in microseconds, before which whatever was written is in it.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn save(&mut self) -> anyhow::Result<u64> {
        block_in_place(|| {
            let at = wall_us();
            self.primary.command(&["SAVE"])?;
            self.saved = self.kept(&self.primary)?;
            Ok(at)
        })
    }

    /// `kill -9`, and its start from what was [saved](Self::save), which lacks records.
    ///
    /// # Errors
    /// Where it does not come back, or lacks nothing.
    pub(crate) fn set_back(&mut self) -> anyhow::Result<()> {
        block_in_place(|| {
            let had = self.close()?;
            self.primary.kill()?;
            self.primary.start_again()?;
            lacks(&had, &self.kept(&self.primary)?)?;
            self.place.accept()
        })
    }

    /// Gives it a replica that has all which was written before the time that is returned, in microseconds, and hears
    /// nothing more from here on.
    ///
    /// # Errors
    /// Where it does not start.
    pub(crate) fn leave_behind(&mut self) -> anyhow::Result<u64> {
        block_in_place(|| {
            let stream = Relay::before(self.primary.port())?;
            let replica = self.primary.replica_through(stream.port())?;
            let at = wall_us();
            self.primary.wait_for_replicas(1)?;
            stream.refuse()?;
            stream.cut();
            self.saved = self.kept(&replica)?;
            (self.replica, self.stream) = (Some(replica), Some(stream));
            Ok(at)
        })
    }

    /// Whether it has records by now that its replica or its snapshot lacks.
    ///
    /// # Errors
    /// Where it does not answer.
    pub(crate) fn is_ahead(&self) -> anyhow::Result<bool> {
        block_in_place(|| Ok(!self.kept(&self.primary)?.is_subset(&self.saved)))
    }

    /// `kill -9` of the primary for good; the replica takes its place, and lacks records.
    ///
    /// # Errors
    /// Where it has none, or that lacks nothing.
    pub(crate) fn fail_over(&mut self) -> anyhow::Result<()> {
        let replica = self.replica.take().context("there is no replica")?;
        block_in_place(|| {
            lacks(&self.close()?, &self.kept(&replica)?)?;
            self.primary.kill()?;
            replica.promote()?;
            self.place.leads_to(replica.port());
            self.place.accept()
        })?;
        self.primary = replica;
        Ok(())
    }

    /// Takes one record out of it.
    ///
    /// # Errors
    /// Where it was not there.
    pub(crate) fn delete(&self, operation: &Operation) -> anyhow::Result<()> {
        let id = record_id(operation);
        let key = format!("idemp:v1:{{p{:03}}}:{id}", id.partition());
        let gone = block_in_place(|| self.primary.command(&["DEL", &key]))?;
        ensure!(gone == "1", "the record of {operation} was not there: {gone}");
        Ok(())
    }

    /// From here on nobody writes, until the place accepts again: the records that it has.
    fn close(&self) -> anyhow::Result<BTreeSet<String>> {
        self.place.refuse()?;
        self.place.cut();
        self.kept(&self.primary)
    }

    /// The keys of what a server has that counts.
    fn kept(&self, server: &Redis) -> anyhow::Result<BTreeSet<String>> {
        let mut kept = records(server)?;
        if self.wanted.has_hints {
            kept.extend(marked(server, HINT)?);
        }
        if self.wanted.journal.is_some() {
            kept.extend(marked(server, JOURNALED)?);
        }
        Ok(kept)
    }

    /// Stops its process where it is.
    ///
    /// # Errors
    /// Where it does not run.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.primary.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it does not run.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        self.primary.resume()
    }

    /// Nobody reaches it from here on; it goes on.
    ///
    /// # Errors
    /// Where the listener cannot be closed.
    pub(crate) fn go_away(&self) -> anyhow::Result<()> {
        self.place.refuse()?;
        self.place.cut();
        Ok(())
    }

    /// All reach it again, with all that it had.
    ///
    /// # Errors
    /// Where nobody can.
    pub(crate) fn come_back(&self) -> anyhow::Result<()> {
        self.place.accept()
    }

    /// Cuts all connections to it.
    pub(crate) fn cut(&self) {
        self.place.cut();
    }

    /// The same once several of its answers were withheld.
    ///
    /// # Errors
    /// Where it answered nothing.
    pub(crate) fn cut_unanswered(&self) -> anyhow::Result<()> {
        block_in_place(|| self.place.cut_unanswered(UNANSWERED))
    }
}

/// The table of a configuration that names Redis.
#[must_use]
pub(crate) fn table(url: &str, strategy: Strategy) -> String {
    let strategy = strategy.name();
    format!(
        "[store.redis]\nurl = \"{url}\"\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
         strategy = \"{strategy}\"\n"
    )
}

/// What routes must say whose records are in a database too.
#[must_use]
pub(crate) fn defaults_of_kept(durability: Durability) -> String {
    let durability = durability.name();
    format!("durability = \"{durability}\"\nscope = {{ env = \"fixed:{ENV}\" }}\n")
}

/// What routes must say whose records are in Redis.
#[must_use]
pub(crate) fn defaults(quarantine: bool) -> String {
    let loss = if quarantine { "quarantine" } else { "continue" };
    format!(
        "durability = \"cache\"\non_cache_loss = \"{loss}\"\nclient_retries = \"{QUARANTINE_S}s\"\n\
         scope = {{ env = \"fixed:{ENV}\" }}\n"
    )
}

/// Which part of Redis an operation's record lies in.
#[must_use]
pub(crate) fn part_of(operation: &Operation) -> u16 {
    record_id(operation).partition()
}

/// By docs/protocol.md, section "Record id".
fn record_id(operation: &Operation) -> RecordId {
    let principal = format!("authorization:{}", operation.caller);
    let route = operation.route.trim_start_matches('/');
    let scope = Scope { tenant: "default", env: ENV, principal: &principal, route };
    RecordId::derive(&Secret::from_bytes(SECRET_BYTES), &scope, &operation.key)
}

/// What processes said that was lost, in lines of their log.
#[must_use]
pub(crate) fn told(log: &str) -> Vec<Told> {
    let told = |line: &str| {
        let (_, line) = line.split_once(LOST)?;
        let parts = parts(word(line, "partitions=")?.trim_matches('"'))?;
        let time = |name| word(line, name)?.parse().ok();
        Some(Told { parts, from_us: time("from_us=")?, to_us: time("to_us=")? })
    };
    log.lines().filter_map(told).collect()
}

/// Whether each of so many processes said of so many parts that they were lost.
#[must_use]
pub(crate) fn is_told_by_all(log: &str, processes: usize, parts: usize) -> bool {
    let told: usize = told(log).iter().map(|told| told.parts.len()).sum();
    told >= processes * parts
}

fn word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(name)?.1.split_whitespace().next()
}

/// Of `0-3,7`.
fn parts(list: &str) -> Option<BTreeSet<u16>> {
    let mut parts = BTreeSet::new();
    for span in list.split(',') {
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        let number = |text: &str| text.parse::<u16>().ok();
        parts.extend(number(first)?..=number(last)?);
    }
    Some(parts)
}

/// The keys of the records that a server has.
///
/// # Errors
/// Where it does not answer.
pub(crate) fn records(server: &Redis) -> anyhow::Result<BTreeSet<String>> {
    let keys = server.command(&["KEYS", "idemp:v1:{p*}:*"])?;
    Ok(keys.lines().filter(|key| key.len() == RECORD_KEY_BYTES).map(str::to_owned).collect())
}

/// The keys that a server has with this at their end.
fn marked(server: &Redis, mark: &str) -> anyhow::Result<BTreeSet<String>> {
    let keys = server.command(&["KEYS", &format!("idemp:v1:{{p*}}:*{mark}")])?;
    Ok(keys.lines().map(str::to_owned).collect())
}

/// Whether it lacks some of what another had, and not all.
///
/// # Errors
/// Where it does not.
pub(crate) fn lacks(had: &BTreeSet<String>, has: &BTreeSet<String>) -> anyhow::Result<()> {
    ensure!(!has.is_empty(), "it has nothing, and was to have some of {} records", had.len());
    ensure!(!had.is_subset(has), "it has all of {} records, and was to lack some", had.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_read_from_lines_of_the_log() {
        let line = |parts: &str| {
            format!("ERROR Redis lost records: keys may run again partitions=\"{parts}\" from_us=17 to_us=23 why=\"x\"")
        };
        let log = format!("{}\nall is well\n{}\n", line("0-2,7"), line("0-255"));
        let said = told(&log);
        assert_eq!(said[0], Told { parts: [0, 1, 2, 7].into(), from_us: 17, to_us: 23 });
        assert_eq!(said.len(), 2);
        assert!(is_told_by_all(&log, 1, 256) && !is_told_by_all(&log, 2, 256) && is_told_by_all(&log, 2, 130));
    }

    #[test]
    fn a_record_lies_where_the_product_puts_it() {
        let operation = Operation { route: "/pay".into(), caller: "Bearer anna".into(), key: "key-1".into() };
        let scope = Scope { tenant: "default", env: ENV, principal: "authorization:Bearer anna", route: "pay" };
        let id = RecordId::derive(&Secret::from_base64(SECRET).unwrap(), &scope, "key-1");
        assert_eq!(part_of(&operation), id.partition());
    }
}
