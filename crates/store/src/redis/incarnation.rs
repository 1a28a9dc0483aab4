//! Whether Redis is still the one whose contents were known.
//!
//! Each partition has a marker with an epoch, which every step compares: after a flush, or a start without data, there
//! is none. The epoch begins with eight bytes of the server's replication id, which is another after each restart and
//! each failover: then a snapshot or a replica may be behind, and whoever notices gives all markers a new epoch, so that
//! every other process notices at its next step. Which records were lost nobody can tell; how many partitions and since
//! when at the earliest can be told, and is: markers are raised each second, and whoever has one of a time has all that
//! was written to its server before.
//!
//! A slot of a Cluster that moves takes its marker along, which then begins as its former server's: that is no loss, and
//! whoever looks next has it begin as the new one's, the rest of the epoch being the same. Until then the marker does not
//! show when the new server fails over, so that each process knows by which server it last saw a partition served.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use onceward_core::{key::PARTITIONS, record::Micros};
use tokio::time::Instant;

use super::step::Epoch;
use crate::Loss;

/// The most losses that are remembered one by one.
const LOSSES_MAX: usize = 16;
/// How much of a replication id an epoch begins with.
const TAG_BYTES: usize = 8;

/// Eight bytes of a replication id.
pub(super) type Tag = [u8; TAG_BYTES];

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lost {
    /// There is no marker: nothing of before is left.
    Everything,
    /// The marker is of another history: what came last may be missing.
    MayBeBehind,
    /// It evicted keys for want of memory, which may have been completed records.
    Evicted,
    /// Another process has made the marker anew, and knows why.
    NoticedElsewhere,
}

impl Lost {
    fn in_words(self) -> &'static str {
        match self {
            Self::Everything => "it was emptied, or started without its data",
            Self::MayBeBehind => "it was started again, or failed over",
            Self::Evicted => "it evicted keys for want of memory",
            Self::NoticedElsewhere => "another process noticed that it was emptied, started again or failed over",
        }
    }
}

/// What is known of every partition's marker, and what was lost.
#[derive(Debug)]
pub(super) struct Incarnations {
    epochs: RwLock<Vec<Epoch>>,
    /// By partition, how many keys its server is known to have evicted.
    evicted: Vec<AtomicU64>,
    state: Mutex<State>,
    /// Held by whoever looks at all markers, one at a time.
    pub(super) looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the servers, when they were last asked.
    tags: BTreeSet<Tag>,
    /// By partition, of the server that had it when its marker was last looked at.
    served: BTreeMap<u16, Tag>,
    /// By server, how many keys it is known to have evicted.
    evicted: BTreeMap<Tag, u64>,
    /// A time of the store at which its servers were those that are known, the latest.
    well_at: Micros,
    losses: VecDeque<Loss>,
    count: u64,
    last: Option<Last>,
    /// The last loss is not yet where other processes find it.
    is_unsaid: bool,
}

/// The last loss: when this process learned of it, how long ago it was then, and when it was by the store's time.
#[derive(Clone, Copy, Debug)]
struct Last {
    learned: Instant,
    ago: Duration,
    at: Micros,
}

impl Default for Incarnations {
    fn default() -> Self {
        let epochs = vec![Epoch::default(); usize::from(PARTITIONS)];
        let evicted = epochs.iter().map(|_| AtomicU64::new(0)).collect();
        Self { epochs: RwLock::new(epochs), evicted, state: Mutex::default(), looking: tokio::sync::Mutex::default() }
    }
}

impl Incarnations {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn epoch(&self, partition: u16) -> Epoch {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        epochs.get(usize::from(partition)).copied().unwrap_or_default()
    }

    /// Whether another epoch is known of this partition.
    pub(super) fn is_other(&self, partition: u16, epoch: Epoch) -> bool {
        let known = self.epoch(partition);
        !goes_on(&known, &epoch) && known != Epoch::default()
    }

    /// Takes a marker's epoch for known.
    pub(super) fn learn(&self, partition: u16, epoch: Epoch) {
        let mut epochs = self.epochs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = epochs.get_mut(usize::from(partition)) {
            *known = epoch;
        }
    }

    pub(super) fn evicted(&self, partition: u16) -> u64 {
        self.evicted.get(usize::from(partition)).map_or(0, |known| known.load(Ordering::SeqCst))
    }

    /// Whether a server has evicted keys since it was looked at last. What it evicted before a slot moved to it was none of
    /// that slot's; whether it was before or after is not known of a server that is new.
    pub(super) fn has_evicted_more(&self, tag: Tag, count: u64) -> bool {
        count > self.lock().evicted.get(&tag).copied().unwrap_or_default()
    }

    /// Takes for known how many keys each of these servers has evicted, beside those that have partitions and say nothing now.
    pub(super) fn learn_evicted_by(&self, servers: impl Iterator<Item = (Tag, u64)>) {
        let mut state = self.lock();
        let served: BTreeSet<Tag> = state.served.values().copied().collect();
        state.evicted.retain(|tag, _| served.contains(tag));
        state.evicted.extend(servers);
    }

    /// Takes for known how many keys the partition's server has evicted, where it says so.
    pub(super) fn learn_evicted(&self, partition: u16, count: Option<u64>) {
        if let (Some(known), Some(count)) = (self.evicted.get(usize::from(partition)), count) {
            known.store(count, Ordering::SeqCst);
        }
    }

    /// What epochs may begin with, one after the other.
    pub(super) fn tags(&self) -> Vec<u8> {
        self.lock().tags.iter().flatten().copied().collect()
    }

    /// The servers' histories; tells whether there is one among them that was not known.
    pub(super) fn see(&self, tags: BTreeSet<Tag>) -> bool {
        let mut state = self.lock();
        let is_new = !state.tags.is_empty() && !tags.is_subset(&state.tags);
        state.tags = tags;
        is_new
    }

    /// Partitions that are served by another server than when their markers were last looked at; `by` says by which.
    pub(super) fn moved(&self, by: impl Fn(u16) -> Option<Tag>) -> Vec<u16> {
        let state = self.lock();
        let has_moved = |partition: &u16| by(*partition).is_some_and(|tag| state.served.get(partition) != Some(&tag));
        (0..PARTITIONS).filter(has_moved).collect()
    }

    /// The histories that took the place of one that is gone: new ones that have a partition which was served by it. What
    /// had moved there may be behind as the rest is, whatever its marker begins with.
    pub(super) fn successors(&self, by: impl Fn(u16) -> Option<Tag>) -> BTreeSet<Tag> {
        let state = self.lock();
        let known: BTreeSet<Tag> = state.served.values().copied().collect();
        let gone = state.served.iter().filter(|(_, was)| !state.tags.contains(*was));
        gone.filter_map(|(partition, _)| by(*partition)).filter(|is| !known.contains(is)).collect()
    }

    /// A partition's marker was looked at on this server.
    pub(super) fn is_served(&self, partition: u16, by: Option<Tag>) {
        if let Some(tag) = by {
            self.lock().served.insert(partition, tag);
        }
    }

    /// Whether all of these histories are known.
    pub(super) fn knows(&self, tags: &BTreeSet<Tag>) -> bool {
        !tags.is_empty() && tags.is_subset(&self.lock().tags)
    }

    /// The servers had the histories that are known now at this time, or after it.
    pub(super) fn is_well(&self, at: Micros) {
        let mut state = self.lock();
        state.well_at = state.well_at.max(at);
    }

    /// Up to when all is there, by the markers of partitions that lost something: a file or a replica that has one of them has whatever
    /// was written to its server before it. One that is later than when all was well may have been raised since by
    /// somebody who had not noticed, and says nothing. Zero where none says anything.
    pub(super) fn kept_until<'a>(&self, markers: impl Iterator<Item = &'a Marked>) -> Micros {
        let well_at = self.lock().well_at;
        let mut of_servers: BTreeMap<Option<Tag>, Micros> = BTreeMap::new();
        for marked in markers {
            let kept = of_servers.entry(marked.epoch.first_chunk().copied()).or_insert(Micros::ZERO);
            // One that somebody else has made anew says nothing of before.
            if marked.found == Found::OfAnother && marked.before <= well_at {
                *kept = marked.before.max(*kept);
            }
        }
        of_servers.into_values().min().unwrap_or(Micros::ZERO)
    }

    /// Notes a loss of what was written between two times, and says so once.
    pub(super) fn lost(&self, partitions: &[u16], from: Micros, at: Micros, what: Lost) {
        let mut state = self.lock();
        let why = what.in_words();
        let loss = Loss { partitions: partitions.len(), from, to: at, why };
        let list = ranges(partitions);
        tracing::error!(
            partitions = list,
            from_us = loss.from.0,
            to_us = loss.to.0,
            why,
            "Redis lost records: keys of routes with durability cache that were claimed or completed between these times may run again"
        );
        state.count += 1;
        state.last = Some(Last { learned: Instant::now(), ago: Duration::ZERO, at });
        state.is_unsaid = true;
        state.losses.push_back(loss);
        if state.losses.len() > LOSSES_MAX {
            state.losses.pop_front();
        }
    }

    /// How often something was lost, and the last times of it.
    pub(super) fn shown(&self) -> (u64, Vec<Loss>) {
        let state = self.lock();
        (state.count, state.losses.iter().cloned().collect())
    }

    /// How long ago it was noticed last, by this process or before its start.
    pub(super) fn lost_ago(&self) -> Option<Duration> {
        self.lock().last.map(|last| last.learned.elapsed() + last.ago)
    }

    /// Takes a loss for known that others noticed before this process started. It told nobody, and is not counted.
    pub(super) fn knows_of(&self, at: Micros, now: Micros) {
        let mut state = self.lock();
        if state.last.is_none() {
            state.last = Some(Last { learned: Instant::now(), ago: now.since(at), at });
        }
    }

    /// When the last loss was noticed, where others cannot know that yet.
    pub(super) fn unsaid(&self) -> Option<Micros> {
        let state = self.lock();
        state.last.filter(|_| state.is_unsaid).map(|last| last.at)
    }

    /// Others can know of the loss of this time.
    pub(super) fn is_said(&self, at: Micros) {
        let mut state = self.lock();
        state.is_unsaid &= state.last.is_some_and(|last| last.at != at);
    }
}

/// What a marker is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark<'a> {
    /// Of a marker that is made or made anew.
    pub(super) epoch: Epoch,
    /// What a marker's epoch may begin with, eight bytes each: of the histories that the servers have. Empty: anything.
    /// One that is not that of `epoch` has moved, and is put right.
    pub(super) tags: &'a [u8],
    /// The least time that is written down in one that is made.
    pub(super) floor: Micros,
}

/// A marker as it is now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marked {
    pub(super) epoch: Epoch,
    /// The latest time and fence that was written down before; zero where there was none.
    pub(super) before: Micros,
    /// The latest that is written down now.
    pub(super) written: Micros,
    /// The server's clock.
    pub(super) wall: Micros,
    pub(super) found: Found,
}

/// What was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A marker of this history.
    Known,
    /// None.
    Missing,
    /// One of another history: the server was started again or failed over.
    OfAnother,
}

/// The first bytes of a replication id, which is forty hexadecimal digits.
pub(super) fn tag_of(history: &str) -> Option<Tag> {
    let mut tag = Tag::default();
    for (byte, at) in tag.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(history.get(at..at + 2)?, 16).ok()?;
    }
    Some(tag)
}

/// Whether what one epoch was made for goes on under the other, on whichever server.
pub(super) fn goes_on(one: &Epoch, other: &Epoch) -> bool {
    one.iter().skip(TAG_BYTES).eq(other.iter().skip(TAG_BYTES))
}

/// An epoch that nobody had before.
pub(super) fn new_epoch(tag: Option<Tag>) -> Epoch {
    let mut epoch = Epoch::default();
    // Without randomness two that are made in one history would be alike: a flush would be taken for none.
    if getrandom::fill(&mut epoch).is_err() {
        tracing::error!("this machine gives no randomness: a flush of Redis may go unnoticed");
    }
    if let (Some(tag), Some(first)) = (tag, epoch.first_chunk_mut::<TAG_BYTES>()) {
        *first = tag;
    }
    epoch
}

/// `0-3,7`, for log lines.
fn ranges(partitions: &[u16]) -> String {
    let mut spans: Vec<(u16, u16)> = Vec::new();
    for partition in partitions {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == *partition => *last = *partition,
            _ => spans.push((*partition, *partition)),
        }
    }
    let text = |(first, last): &(u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    spans.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_was_not_known_is_noticed_and_one_that_goes_is_not() {
        let (a, b) = (tag_of(&"ab".repeat(20)).unwrap(), tag_of(&"cd".repeat(20)).unwrap());
        let seen = Incarnations::default();
        assert!(!seen.see([a, b].into()), "the first look");
        assert!(!seen.see([a].into()), "a server that has gone lost nothing that the others have");
        assert!(seen.see([a, b].into()), "one that comes back may be behind");
        assert_eq!(seen.tags(), [a, b].concat());
        assert!(tag_of("").is_none() && tag_of(&"xy".repeat(20)).is_none());
        assert!(new_epoch(Some(a)).starts_with(&a) && new_epoch(Some(a)) != new_epoch(Some(a)));
    }

    #[test]
    fn a_server_that_took_the_place_of_another_is_told_from_one_that_slots_have_moved_to() {
        let [a, b, c, new] = [1, 2, 3, 4].map(|byte| [byte; TAG_BYTES]);
        let seen = Incarnations::default();
        let look = |tags: &[Tag], by: fn(u16) -> Option<Tag>| {
            seen.see(tags.iter().copied().collect());
            (seen.moved(by), seen.successors(by))
        };
        assert_eq!(look(&[a, b], first_of), ((0..PARTITIONS).collect(), [].into()), "the first look");
        (0..PARTITIONS).for_each(|partition| seen.is_served(partition, first_of(partition)));
        assert_eq!(look(&[a, b], first_of), (vec![], [].into()));
        let added = |partition| if partition == 5 { Some([3; TAG_BYTES]) } else { first_of(partition) };
        assert_eq!(look(&[a, b, c], added), (vec![5], [].into()), "a shard more");
        let moved = |partition| if partition == 5 { Some([2; TAG_BYTES]) } else { first_of(partition) };
        assert_eq!(look(&[b], moved), (vec![5], [].into()), "it is on one that was there before");
        let unknown = |partition| if partition < 128 { None } else { Some([2; TAG_BYTES]) };
        assert_eq!(look(&[b], unknown), (vec![], [].into()), "in the middle of a failover");
        let failed_over = |partition| Some(if partition < 130 { [4; TAG_BYTES] } else { [2; TAG_BYTES] });
        assert_eq!(look(&[new, b], failed_over), ((0..130).collect(), [new].into()), "with what had moved there last");
    }

    fn first_of(partition: u16) -> Option<Tag> {
        Some(if partition < 128 { [1; TAG_BYTES] } else { [2; TAG_BYTES] })
    }

    #[test]
    fn what_is_kept_reaches_to_the_latest_marker_that_nobody_can_have_raised_since() {
        let seen = Incarnations::default();
        let marked = |server: u8, before: u64, found| {
            let before = Micros(before);
            Marked { epoch: [server; 16], before, written: Micros(90), wall: Micros(90), found }
        };
        let kept = |markers: &[Marked]| seen.kept_until(markers.iter());
        let other = Found::OfAnother;
        assert_eq!(kept(&[marked(1, 20, other)]), Micros::ZERO, "it was never known to be well");
        seen.is_well(Micros(50));
        let one = [marked(1, 20, other), marked(1, 30, other), marked(1, 60, other), marked(1, 40, Found::Known)];
        assert_eq!(kept(&one), Micros(30));
        assert_eq!(kept(&[&one[..], &[marked(2, 25, other)]].concat()), Micros(25), "each server has its own file");
        assert_eq!(kept(&[marked(2, 60, other)]), Micros::ZERO);
        let elsewhere = marked(2, 40, Found::Known);
        assert_eq!(kept(&[&one[..], &[elsewhere]].concat()), Micros::ZERO, "of the other server nobody can tell");
    }

    #[test]
    fn an_epoch_is_learned_once_and_a_loss_is_told_with_its_partitions() {
        let seen = Incarnations::default();
        assert!(!seen.is_other(3, [1; 16]), "the first look");
        seen.learn(3, [1; 16]);
        assert!(seen.epoch(3) == [1; 16] && !seen.is_other(3, [1; 16]) && seen.is_other(3, [2; 16]));
        seen.lost(&[3], Micros(5), Micros(9), Lost::MayBeBehind);
        let (count, losses) = seen.shown();
        assert!(count == 1 && seen.lost_ago().is_some());
        let why = Lost::MayBeBehind.in_words();
        assert_eq!(losses, [Loss { partitions: 1, from: Micros(5), to: Micros(9), why }]);
        assert_eq!(ranges(&[0, 1, 2, 7, 9, 10]), "0-2,7,9-10");
    }
}
