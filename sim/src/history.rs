//! What clients were told and what the upstream did, and whether that is what was promised. Nothing inside a gateway or a
//! store is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

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
    pub(crate) told: Told,
}

/// All that happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) effects: Vec<Effect>,
    pub(crate) calls: Vec<Call>,
    /// When a forgetting of the key returned.
    pub(crate) erased: BTreeMap<Key, Duration>,
    /// What was done to the world, in order.
    pub(crate) faults: Vec<(Duration, String)>,
    /// Of each gateway, at the end: whether it served a fresh key.
    pub(crate) serves: Vec<bool>,
    /// What those keys were told at the end that a gateway which did not run them had answered before.
    pub(crate) asked_again: BTreeMap<Key, Told>,
    /// Whether somebody is gone whose word nobody can give.
    pub(crate) is_blocked: bool,
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
    /// Keys whose answer came from the store: by a gateway that did not run them.
    pub(crate) fn answered_by_others(&self) -> BTreeSet<Key> {
        let by_others = |call: &&Call| {
            let ran = self.effects.iter().find(|effect| effect.key == call.key);
            matches!(call.told, Told::Done(_)) && ran.is_some_and(|effect| effect.who != call.who)
        };
        self.calls.iter().filter(by_others).map(|call| call.key).collect()
    }

    /// The promise that was broken first, if one was.
    pub(crate) fn broken(&self) -> Option<String> {
        let mut effects: BTreeMap<Key, Vec<&Effect>> = BTreeMap::new();
        self.effects.iter().for_each(|effect| effects.entry(effect.key).or_default().push(effect));
        for (key, of) in &effects {
            if let [first, .., last] = of.as_slice() {
                return Some(format!(
                    "S1: key {key} took effect {} times: at {:?} by fence {} and at {:?} by fence {}",
                    of.len(),
                    first.at,
                    first.fence,
                    last.at,
                    last.fence
                ));
            }
        }
        let mut answers: BTreeMap<Key, &str> = BTreeMap::new();
        for Call { key, who, asked_at, told_at, told } in &self.calls {
            let Told::Done(body) = told else { continue };
            let of_upstream = effects.get(key).and_then(|of| of.first()).map(|effect| answer(*key, effect.fence));
            if of_upstream.as_deref() != Some(body) {
                return Some(format!("S5: key {key} was answered with {body}, which the upstream never said"));
            }
            if answers.insert(*key, body).is_some_and(|before| before != body) {
                return Some(format!("S3: key {key} has two answers, the second at {told_at:?}"));
            }
            // Whoever joins the execution itself is told by it, also where it has not heard that its answer was recorded
            // and erased since.
            let is_its_own = effects.get(key).is_some_and(|of| of.iter().all(|effect| effect.who == *who));
            if self.erased.get(key).is_some_and(|erased| erased < asked_at) && !is_its_own {
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
        let is_excused = self.is_blocked && self.is_disk_lost;
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
