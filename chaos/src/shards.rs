//! A Redis Cluster that several processes share: slots that move under load, and a primary that falls to a replica which
//! was left behind.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use servers::RedisCluster;
use servers::redis::Move;
use tokio::task::block_in_place;

use crate::cache;
use crate::plan::Strategy;
use crate::traffic::wall_us;

/// Slots that move at a time, each with the records of one part.
const MOVES: usize = 8;
/// Keys of a slot that move in one step.
const KEYS: usize = 4;
/// A node's replica is so many further, or so many before, of as many times two.
const PRIMARIES: usize = 3;
/// What nodes say to whoever asks for a slot that is between two of them.
pub(crate) const BETWEEN: &[&str] = &["ASK", "TRYAGAIN"];
/// What they say to whoever does not know that a slot has moved.
pub(crate) const AFTERWARDS: &[&str] = &["MOVED"];
/// The slot of each part, one a line.
const SLOTS: &str = "local slots = {} for part = 0, 255 do slots[part + 1] = \
    redis.call('CLUSTER', 'KEYSLOT', string.format('idemp:v1:{p%03d}:m', part)) end return slots";

/// The Cluster.
pub(crate) struct Shards {
    cluster: RedisCluster,
    /// The slot of each part.
    slots: Vec<u16>,
    moving: Vec<Move>,
    /// Who is to fall, and records that its replica may have.
    falls: Option<(usize, BTreeSet<String>)>,
}

impl Shards {
    /// A new one of three primaries, each with a replica.
    ///
    /// # Errors
    /// Where Redis is missing or does not start.
    pub(crate) fn start() -> anyhow::Result<Self> {
        block_in_place(|| {
            let cluster = RedisCluster::start(&[])?;
            let slots = cluster.node(0)?.command(&["EVAL", SLOTS, "0"])?;
            let slots = slots.lines().map(str::parse).collect::<Result<_, _>>().context("slots")?;
            Ok(Self { cluster, slots, moving: Vec::new(), falls: None })
        })
    }

    /// The table of the configuration that names it.
    #[must_use]
    pub(crate) fn table(&self) -> String {
        let hosts: Vec<String> = self.cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        cache::table(&format!("redis+cluster://{}", hosts.join(",")), Strategy::Script)
    }

    /// Begins to move slots, each to another primary, and moves some of their keys.
    ///
    /// # Errors
    /// Where a node refuses.
    pub(crate) fn begin_moves(&mut self, rng: &mut Rng) -> anyhow::Result<()> {
        block_in_place(|| {
            let primaries = self.primaries()?;
            for slot in rng.choose_multiple(self.slots.iter().copied(), MOVES) {
                let others = primaries.iter().filter(|(_, slots)| !slots.contains(&slot));
                let (to, _) = rng.choice(others.collect::<Vec<_>>()).context("another primary")?;
                let moving = self.cluster.begin_move(slot, *to)?;
                self.cluster.move_keys(moving, 1)?;
                self.moving.push(moving);
            }
            Ok(())
        })
    }

    /// Ends what was begun: all nodes know.
    ///
    /// # Errors
    /// Where a node refuses, or not all know within a minute.
    pub(crate) fn end_moves(&mut self) -> anyhow::Result<()> {
        block_in_place(|| {
            for moving in self.moving.drain(..) {
                while self.cluster.move_keys(moving, KEYS)? > 0 {}
                self.cluster.end_move(moving)?;
            }
            Ok(())
        })
    }

    /// How often its nodes have answered with one of these words.
    ///
    /// # Errors
    /// Where one does not answer.
    pub(crate) fn said(&self, words: &[&str]) -> anyhow::Result<u64> {
        block_in_place(|| {
            let mut times = 0;
            for node in self.cluster.nodes().iter().filter(|node| node.answers()) {
                let said = node.command(&["INFO", "errorstats"])?;
                times += said.lines().filter_map(|line| of_words(line, words)).sum::<u64>();
            }
            Ok(times)
        })
    }

    /// From a time on, which is returned, in microseconds, a replica hears nothing of what its primary is told; what was
    /// written before it has.
    ///
    /// # Errors
    /// Where they do not play along.
    pub(crate) fn leave_behind(&mut self, rng: &mut Rng) -> anyhow::Result<u64> {
        block_in_place(|| {
            let (at, _) = rng.choice(self.primaries()?).context("a primary")?;
            let at_us = wall_us();
            let primary = self.cluster.node(at)?;
            primary.wait_for_replicas(1)?;
            self.cluster.node(replica_of(at))?.pause()?;
            // What has not reached it by now never does.
            primary.command(&["CLIENT", "KILL", "TYPE", "replica"])?;
            self.falls = Some((at, cache::records(primary)?));
            Ok(at_us)
        })
    }

    /// Whether the primary has records by now that its replica lacks.
    ///
    /// # Errors
    /// Where it does not answer.
    pub(crate) fn is_ahead(&self) -> anyhow::Result<bool> {
        let (at, saved) = self.falls.as_ref().context("nobody was left behind")?;
        block_in_place(|| Ok(!cache::records(self.cluster.node(*at)?)?.is_subset(saved)))
    }

    /// `kill -9` of the primary for good; the replica that was left behind takes its place. The parts of both.
    ///
    /// # Errors
    /// Where it does not, or lacks nothing.
    pub(crate) fn fall(&mut self) -> anyhow::Result<BTreeSet<u16>> {
        let (at, _) = self.falls.take().context("nobody was left behind")?;
        block_in_place(|| {
            let primary = self.cluster.node(at)?;
            let (had, serves) = (cache::records(primary)?, self.cluster.serves(at)?);
            let is_there = |(part, slot): (u16, &u16)| serves.contains(slot).then_some((part, *slot));
            let there: Vec<(u16, u16)> = (0..).zip(&self.slots).filter_map(is_there).collect();
            let (_, slot) = there.first().context("it has no part")?;
            self.cluster.node_mut(at)?.kill()?;
            let replica = self.cluster.node(replica_of(at))?;
            replica.resume()?;
            cache::lacks(&had, &cache::records(replica)?)?;
            let to = self.cluster.wait_for_failover(*slot, at)?;
            ensure!(to == replica_of(at), "node {to} took the place of node {at}");
            Ok(there.into_iter().map(|(part, _)| part).collect())
        })
    }

    /// The primaries that run, and their slots.
    fn primaries(&self) -> anyhow::Result<Vec<(usize, BTreeSet<u16>)>> {
        let mut primaries = Vec::new();
        for (at, node) in self.cluster.nodes().iter().enumerate() {
            let slots = if node.answers() { self.cluster.serves(at)? } else { BTreeSet::new() };
            if !slots.is_empty() {
                primaries.push((at, slots));
            }
        }
        Ok(primaries)
    }
}

fn replica_of(at: usize) -> usize {
    (at + PRIMARIES) % (2 * PRIMARIES)
}

/// Of `errorstat_MOVED:count=3`.
fn of_words(line: &str, words: &[&str]) -> Option<u64> {
    let (word, count) = line.trim().strip_prefix("errorstat_")?.split_once(":count=")?;
    words.contains(&word).then(|| count.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_say_is_counted_by_word() {
        let said =
            "# Errorstats\r\nerrorstat_ASK:count=3\r\nerrorstat_MOVED:count=12\r\nerrorstat_TRYAGAIN:count=4\r\n";
        let count = |words| said.lines().filter_map(|line| of_words(line, words)).sum::<u64>();
        assert_eq!((count(BETWEEN), count(AFTERWARDS)), (7, 12));
    }
}
