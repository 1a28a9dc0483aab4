//! What clients were told and what the upstream did, and whether that is what was promised. Nothing inside a gateway or a
//! store is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use onceward_core::{key::RecordId, record::Fence};

use crate::{gateway::record_id, world::PARTITIONS};

/// Nobody reaches Redis for so long, and claims go to the database.
const FALLS_BACK: Duration = Duration::from_millis(2_500);

/// A key of the run.
pub(crate) type Key = u32;

/// What the upstream did, in order.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub(crate) key: Key,
    pub(crate) fence: u64,
    pub(crate) at: Duration,
    /// The gateway that sent it.
    pub(crate) who: usize,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Done(String),
    InFlight,
    Unknown,
    Gone,
    Unavailable,
    NotDone,
    Other(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: Key,
    pub(crate) who: usize,
    pub(crate) asked_at: Duration,
    pub(crate) told_at: Duration,
    /// Whether nobody else asked at the same time.
    pub(crate) is_alone: bool,
    pub(crate) told: Told,
}

/// That views went on without a session.
#[derive(Clone, Debug)]
pub(crate) struct Forced {
    pub(crate) partitions: Vec<u16>,
    /// It was granted nothing above that.
    pub(crate) mark: Fence,
}

/// All that happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// How long an answer is kept at least.
    pub(crate) retention: Duration,
    /// Whether that ends within the run.
    pub(crate) has_ends: bool,
    /// When the key's job began last.
    pub(crate) begun: BTreeMap<Key, Duration>,
    /// When the key was asked for last.
    pub(crate) asked: BTreeMap<Key, Duration>,
    /// How many were not told anything yet, or hung up.
    pub(crate) open: BTreeMap<Key, u32>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) calls: Vec<Call>,
    /// When a forgetting of the key returned first.
    pub(crate) erased: BTreeMap<Key, Duration>,
    /// What was done to the world, in order.
    pub(crate) faults: Vec<(Duration, String)>,
    /// Of each gateway, at the end: whether it served a fresh key.
    pub(crate) serves: Vec<bool>,
    /// What those keys were told at the end that a gateway which did not run them had answered before.
    pub(crate) asked_again: BTreeMap<Key, Told>,
    /// Whether somebody is gone whose word nobody can give.
    pub(crate) is_blocked: bool,
    /// From when to when nobody reached Redis, and all might have claimed elsewhere.
    pub(crate) redis_was_gone: Vec<(Duration, Duration)>,
    /// Whether something was written in a view on the database.
    pub(crate) is_database_used: bool,
    /// Whether there is somebody who has views go on without those who are gone.
    pub(crate) has_operator: bool,
    pub(crate) forced: Vec<Forced>,
    /// What is listed for it at the end.
    pub(crate) at_risk: BTreeSet<RecordId>,
    /// Whether a gateway crashed with its disk: else there is nobody whose word nobody can give.
    pub(crate) is_disk_lost: bool,
}

/// How often each was told, what the upstream did and what was done to the world.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told: BTreeMap<&'static str, usize> = BTreeMap::new();
        for call in &self.calls {
            *told.entry(call.told.name()).or_default() += 1;
        }
        write!(f, "{} effects, told {told:?}, {} erased, {:?}", self.effects.len(), self.erased.len(), self.faults)
    }
}

impl Told {
    fn name(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::InFlight => "in flight",
            Self::Unknown => "unknown",
            Self::Gone => "gone",
            Self::Unavailable => "unavailable",
            Self::NotDone => "not done",
            Self::Other(_) => "other",
        }
    }
}

impl History {
    /// Keys whose answer came from the store, by a gateway that did not run them. Where answers end, of which nobody asked
    /// meanwhile or since: whoever asks may claim the key again and be gone before its job begins.
    pub(crate) fn answered_by_others(&self) -> BTreeSet<Key> {
        let by_others = |call: &&Call| {
            let ran = self.effects.iter().rfind(|effect| effect.key == call.key);
            let is_last = !self.has_ends || (call.is_alone && self.asked.get(&call.key) == Some(&call.asked_at));
            matches!(call.told, Told::Done(_)) && is_last && ran.is_some_and(|effect| effect.who != call.who)
        };
        self.calls.iter().filter(by_others).map(|call| call.key).collect()
    }

    /// Whether a key that was run twice is at risk since views went on without a session: it was granted before and after,
    /// which its fences tell. It is in the list, but where it has left the journal since, or what was granted after is lost
    /// with another gateway.
    fn is_listed(&self, one: &Effect, next: &Effect) -> bool {
        let id = record_id(one.key);
        let is_of = |forced: &&Forced| {
            let is_after = |effect: &Effect| Fence(effect.fence) > forced.mark;
            forced.partitions.contains(&(id.partition() % PARTITIONS)) && is_after(one) != is_after(next)
        };
        let crashes = self.faults.iter().filter(|(_, fault)| fault.starts_with("Crash")).count();
        self.forced.iter().any(|forced| is_of(&forced)) && (self.has_ends || crashes > 1 || self.at_risk.contains(&id))
    }

    /// Whether the last that was known of a key may be lost with a session that views went on without: that was in the
    /// journal, too, but for a failover that lost it.
    fn may_be_set_back(&self, key: Key) -> bool {
        let partition = record_id(key).partition() % PARTITIONS;
        let is_forced = self.forced.iter().any(|forced| forced.partitions.contains(&partition));
        is_forced && self.faults.iter().any(|(_, fault)| fault.starts_with("DatabaseFailsOver"))
    }

    /// The promise that was broken first, if one was.
    pub(crate) fn broken(&self) -> Option<String> {
        let mut effects: BTreeMap<Key, Vec<&Effect>> = BTreeMap::new();
        self.effects.iter().for_each(|effect| effects.entry(effect.key).or_default().push(effect));
        for (key, of) in &effects {
            // Whoever runs it again has to wait until an answer that was given at once has ended.
            let is_broken =
                |(one, next): &(&&Effect, &&Effect)| next.at < one.at + self.retention && !self.is_listed(one, next);
            let again = of.iter().zip(of.iter().skip(1)).find(is_broken);
            if let Some((one, next)) = again {
                return Some(format!(
                    "S1: key {key} took effect at {:?} by fence {} and at {:?} by fence {}",
                    one.at, one.fence, next.at, next.fence
                ));
            }
        }
        for Call { key, who, asked_at, told_at, told, .. } in &self.calls {
            let Told::Done(body) = told else { continue };
            let of_key = effects.get(key).map(Vec::as_slice).unwrap_or_default();
            let Some(shown) = of_key.iter().find(|effect| answer(*key, effect.fence) == *body) else {
                return Some(format!("S5: key {key} was answered with {body}, which the upstream never said"));
            };
            // Whoever joins the execution itself is told by it, also where it has not heard that its answer was recorded, and
            // has ended or was erased since.
            let may_show_it = shown.who == *who || self.may_be_set_back(*key);
            if !may_show_it && of_key.iter().any(|effect| effect.at > shown.at && effect.at < *asked_at) {
                return Some(format!("S3: key {key} was run again, and at {told_at:?} the answer before was shown"));
            }
            let erased = self.erased.get(key).filter(|erased| shown.at < **erased && **erased < *asked_at);
            if erased.is_some() && !may_show_it {
                return Some(format!("S11: key {key} was erased, and shown at {told_at:?}"));
            }
        }
        let crashed = self.faults.iter().any(|(_, fault)| fault.starts_with("Crash"));
        let lost = self.asked_again.iter().find(|(_, told)| **told == Told::Unknown);
        if let Some((key, told)) = lost.filter(|_| !crashed) {
            return Some(format!("S5: key {key} was answered, and at the end it is told {told:?}"));
        }
        if self.faults.len() <= 1 && !self.serves.iter().all(|serves| *serves) {
            return Some(format!("L2: after one fault {:?} serve", self.serves));
        }
        if let [(from, to)] = *self.redis_was_gone
            && self.faults.len() == 1
        {
            let asked: Vec<&Call> =
                self.calls.iter().filter(|call| call.asked_at >= from + FALLS_BACK && call.told_at <= to).collect();
            if asked.len() >= 5 && asked.iter().all(|call| call.told == Told::Unavailable) {
                return Some(format!("L4: Redis was gone from {from:?} to {to:?}, and the database did not serve"));
            }
        }
        let is_excused = self.is_blocked && self.is_disk_lost && !self.has_operator;
        if !is_excused && !self.serves.iter().all(|serves| *serves) {
            return Some(format!("L1: everything is well again, and {:?} serve", self.serves));
        }
        None
    }
}

/// What the upstream says.
pub(crate) fn answer(key: Key, fence: u64) -> String {
    format!("{key}/{fence}")
}
