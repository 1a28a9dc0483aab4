//! A cluster of three primaries, each with a replica.

use std::{collections::BTreeSet, ops::RangeInclusive};

use anyhow::{Context as _, ensure};

use super::{ADMIN, PASSWORD, Redis, USER, cli};

/// Slots of a cluster.
pub const SLOTS: u16 = 16_384;
const PRIMARIES: usize = 3;
const NODES: usize = 2 * PRIMARIES;
/// What a key that moves may take, in milliseconds.
const MIGRATE_MS: u32 = 5_000;

/// Six nodes: the first three were primaries at the start, each with a third of the slots, and node `n + 3` was the
/// replica of node `n`. A primary that the others have not heard of for a second is replaced by its replica.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    ids: Vec<String>,
}

/// A slot on its way from one primary to another: see [`RedisCluster::begin_move`].
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// The slot.
    pub slot: u16,
    /// The node that has it until the end.
    pub from: usize,
    /// The node that has it from then on.
    pub to: usize,
}

/// What one node knows of another.
struct Seen<'a> {
    port: Option<u16>,
    flags: &'a str,
    is_linked: bool,
    slots: Vec<&'a str>,
}

impl RedisCluster {
    /// A cluster whose nodes have these settings more than their defaults. It is whole when this returns: every node
    /// knows every other and says that the cluster's state is `ok`, and the replicas have caught up.
    ///
    /// # Errors
    /// Where Redis is missing or does not start, or they have not found each other within a minute.
    pub fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let fixed = [
            ("cluster-enabled", "yes"),
            ("cluster-announce-ip", "127.0.0.1"),
            ("cluster-node-timeout", "1000"),
            // However long a replica has heard nothing, and whoever has none: nobody else's place is taken.
            ("cluster-replica-validity-factor", "0"),
            ("cluster-allow-replica-migration", "no"),
        ];
        let settings = [&fixed, settings].concat();
        let nodes = (0..NODES).map(|_| Redis::start(&settings)).collect::<anyhow::Result<Vec<_>>>()?;
        let ids = nodes.iter().map(|node| node.command(&["CLUSTER", "MYID"])).collect::<anyhow::Result<Vec<_>>>()?;
        let cluster = Self { nodes, ids };
        cluster.join()?;
        cluster.wait_until_whole()?;
        Ok(cluster)
    }

    fn join(&self) -> anyhow::Result<()> {
        let first = self.node(0)?;
        let share = SLOTS.div_ceil(3);
        for (at, node) in self.nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()])?;
            let bus = node.bus_port.context("a node has a bus")?;
            first.command(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus.to_string()])?;
        }
        for (node, from) in self.nodes.iter().take(PRIMARIES).zip((0..SLOTS).step_by(share.into())) {
            let to = (from + share).min(SLOTS) - 1;
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()])?;
        }
        for (replica, primary) in self.nodes.iter().skip(PRIMARIES).zip(&self.ids) {
            replica.running()?.look("its primary", || match replica.command(&["CLUSTER", "REPLICATE", primary]) {
                Ok(_) => Ok(Some(())),
                // Not yet.
                Err(error) if format!("{error:#}").contains("Unknown node") => Ok(None),
                Err(error) => Err(error),
            })?;
            replica.wait_for_log(super::SYNCED)?;
        }
        Ok(())
    }

    /// Waits until every node that runs knows every other that does as one that can be reached, has all slots served,
    /// and says `cluster_state:ok`.
    ///
    /// # Errors
    /// Where one has not within a minute.
    pub fn wait_until_whole(&self) -> anyhow::Result<()> {
        let running: Vec<&Redis> = self.nodes.iter().filter(|node| node.answers()).collect();
        let ports: Vec<u16> = running.iter().map(|node| node.port()).collect();
        for node in running {
            node.running()?.look("a whole cluster", || {
                let info = node.command(&["CLUSTER", "INFO"])?;
                let is_ok = ["cluster_state:ok", "cluster_slots_ok:16384"].iter().all(|line| info.contains(line));
                let nodes = node.command(&["CLUSTER", "NODES"])?;
                let seen: Vec<Seen<'_>> = seen(&nodes).collect();
                let sees = |port: &u16| {
                    let one = seen.iter().find(|one| one.port == Some(*port));
                    one.is_some_and(|one| one.is_linked && !one.flags.contains("fail"))
                };
                let replicas = seen.iter().filter(|one| one.flags.contains("slave")).count();
                let is_whole = is_ok && replicas == NODES - PRIMARIES && ports.iter().all(sees);
                Ok(is_whole.then_some(()))
            })?;
        }
        Ok(())
    }

    /// The nodes, in the order of their start.
    #[must_use]
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// One of them.
    ///
    /// # Errors
    /// Where there are not as many.
    pub fn node(&self, at: usize) -> anyhow::Result<&Redis> {
        self.nodes.get(at).with_context(|| format!("there is no node {at}"))
    }

    /// The same to be killed, stopped, and started again.
    ///
    /// # Errors
    /// Where there are not as many.
    pub fn node_mut(&mut self, at: usize) -> anyhow::Result<&mut Redis> {
        self.nodes.get_mut(at).with_context(|| format!("there is no node {at}"))
    }

    /// How the user `default` connects, node by node.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// The slot of a key.
    ///
    /// # Errors
    /// Where no node runs.
    pub fn slot_of(&self, key: &str) -> anyhow::Result<u16> {
        let node = self.nodes.iter().find(|node| node.answers()).context("no node runs")?;
        node.command(&["CLUSTER", "KEYSLOT", key])?.parse().context("a slot")
    }

    /// The node that has a slot, once all nodes that run agree about it.
    ///
    /// # Errors
    /// Where they do not within a minute, or nobody has it.
    pub fn primary_of(&self, slot: u16) -> anyhow::Result<usize> {
        self.agreed(slot, |_| true)
    }

    /// `kill -9` of the node that has a slot. Returns who it was, for [`wait_for_failover`](Self::wait_for_failover) and
    /// to be started again.
    ///
    /// # Errors
    /// Where nobody has it.
    pub fn kill_primary(&mut self, slot: u16) -> anyhow::Result<usize> {
        let at = self.primary_of(slot)?;
        self.node_mut(at)?.kill()?;
        Ok(at)
    }

    /// The slots that a node has, as it sees it itself.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn serves(&self, at: usize) -> anyhow::Result<BTreeSet<u16>> {
        let nodes = self.node(at)?.command(&["CLUSTER", "NODES"])?;
        let itself = seen(&nodes).find(|one| one.flags.contains("myself")).context("no line of its own")?;
        Ok(itself.slots.iter().filter_map(|range| range_of(range)).flatten().collect())
    }

    /// Waits until all nodes that run agree that a slot is another node's than `from`, whose it is.
    ///
    /// # Errors
    /// Where they do not within a minute.
    pub fn wait_for_failover(&self, slot: u16, from: usize) -> anyhow::Result<usize> {
        self.agreed(slot, |at| at != from)
    }

    fn agreed(&self, slot: u16, is_it: impl Fn(usize) -> bool) -> anyhow::Result<usize> {
        let answering: Vec<&Redis> = self.nodes.iter().filter(|node| node.answers()).collect();
        let first = answering.first().context("no node runs")?;
        first.running()?.look("one node that has the slot, for all", || {
            let mut agreed = None;
            for node in &answering {
                let nodes = node.command(&["CLUSTER", "NODES"])?;
                let has =
                    |one: &Seen<'_>| one.flags.contains("master") && one.slots.iter().any(|range| within(slot, range));
                let Some(port) = seen(&nodes).find(has).and_then(|one| one.port) else { return Ok(None) };
                if agreed.is_some_and(|other| other != port) {
                    return Ok(None);
                }
                agreed = Some(port);
            }
            let at = self.nodes.iter().position(|node| Some(node.port()) == agreed);
            Ok(at.filter(|at| is_it(*at)))
        })
    }

    /// Starts a node again, on the same ports and data, and waits until the cluster is whole with it.
    ///
    /// # Errors
    /// Where it runs, does not start, or is not taken back within a minute.
    pub fn start_again(&mut self, at: usize) -> anyhow::Result<()> {
        self.node_mut(at)?.start_again()?;
        self.wait_until_whole()
    }

    /// Moves a slot with all its keys to another primary: the three steps below.
    ///
    /// # Errors
    /// Where one of them fails.
    pub fn move_slot(&self, slot: u16, to: usize) -> anyhow::Result<()> {
        let moving = self.begin_move(slot, to)?;
        while self.move_keys(moving, 100)? > 0 {}
        self.end_move(moving)
    }

    /// From here on the slot's node answers for the keys that are there, and sends whoever asks for others to node `to`
    /// (ASK), which answers to those who say that they were sent (ASKING).
    ///
    /// # Errors
    /// Where `to` is no primary, or has the slot already.
    pub fn begin_move(&self, slot: u16, to: usize) -> anyhow::Result<Move> {
        let from = self.primary_of(slot)?;
        let (from_id, to_id) = (self.id(from)?, self.id(to)?);
        self.node(to)?.command(&["CLUSTER", "SETSLOT", &slot.to_string(), "IMPORTING", from_id])?;
        self.node(from)?.command(&["CLUSTER", "SETSLOT", &slot.to_string(), "MIGRATING", to_id])?;
        Ok(Move { slot, from, to })
    }

    /// Moves up to `keys_max` of the slot's keys, and returns how many. A call that has some of two keys of a slot here
    /// and there is told to try again (TRYAGAIN).
    ///
    /// # Errors
    /// Where one of the two nodes refuses or does not answer.
    pub fn move_keys(&self, moving: Move, keys_max: usize) -> anyhow::Result<usize> {
        let (from, to) = (self.node(moving.from)?.port(), self.node(moving.to)?.port());
        let listed = cli::quoted(from, ADMIN, &format!("CLUSTER GETKEYSINSLOT {} {keys_max}", moving.slot))?;
        if listed.starts_with("(empty") {
            return Ok(0);
        }
        let keys: Option<Vec<&str>> = listed.lines().map(|line| Some(line.split_once(") ")?.1)).collect();
        let keys = keys.with_context(|| format!("no list of keys: {listed}"))?;
        let migrate =
            format!("MIGRATE 127.0.0.1 {to} \"\" 0 {MIGRATE_MS} AUTH2 {USER} {PASSWORD} KEYS {}", keys.join(" "));
        let said = cli::quoted(from, ADMIN, &migrate)?;
        // Without a key it has moved none: they are gone since they were listed.
        ensure!(said == "OK" || said == "NOKEY", "MIGRATE from port {from} to {to}: {said}");
        Ok(keys.len())
    }

    /// Gives the slot to its new node for good, and waits until all nodes that run know.
    ///
    /// # Errors
    /// Where keys are left behind, or they do not know within a minute.
    pub fn end_move(&self, moving: Move) -> anyhow::Result<()> {
        let Move { slot, from, to } = moving;
        // Once the new node says whose it is, the old one drops what it has of it.
        let left = self.node(from)?.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()])?;
        ensure!(left == "0", "{left} keys of slot {slot} are still on node {from}; move them first");
        // First who has the keys: were he to fall after the other was told, nobody would have the slot.
        for at in [to, from] {
            self.node(at)?.command(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", self.id(to)?])?;
        }
        self.agreed(slot, |at| at == to).map(|_| ())
    }

    fn id(&self, at: usize) -> anyhow::Result<&str> {
        self.ids.get(at).map(String::as_str).with_context(|| format!("there is no node {at}"))
    }
}

/// The lines of CLUSTER NODES.
fn seen(nodes: &str) -> impl Iterator<Item = Seen<'_>> {
    nodes.lines().filter_map(|line| {
        // id address flags primary ping pong epoch link slot…
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, address, flags, _, _, _, _, link, slots @ ..] = &words[..] else { return None };
        let port = address.split('@').next()?.rsplit(':').next()?.parse().ok();
        Some(Seen { port, flags, is_linked: *link == "connected", slots: slots.to_vec() })
    })
}

/// A range as nodes write it: one slot, or from and to. One that moves stands in brackets beside.
fn range_of(range: &str) -> Option<RangeInclusive<u16>> {
    let (from, to) = range.split_once('-').unwrap_or((range, range));
    Some(from.parse().ok()?..=to.parse().ok()?)
}

fn within(slot: u16, range: &str) -> bool {
    range_of(range).is_some_and(|range| range.contains(&slot))
}
