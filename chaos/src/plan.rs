//! A seed becomes a plan: which faults come in which life of the process, each at a logical moment.

use clap::ValueEnum;
use fastrand::Rng;

use crate::backing::Store;

/// The failpoints, in the order of a request (`ONCEWARD_FAILPOINT`).
pub(crate) const FAILPOINTS: [&str; 9] = [
    "claim.begin",
    "claim.end",
    "dispatch.begin",
    "dispatch.end",
    "complete.begin",
    "complete.end",
    "store.insert",
    "store.replace",
    "store.extend",
];

/// What is done to a database while the processes before it go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// `kill -9`, and started again.
    Killed,
    /// Shut down without waiting for anybody, and started again.
    ShutDown,
    /// `kill -9` for good, and its synchronous standby takes its place.
    FailedOver,
    /// All connections to it are cut.
    Cut,
    /// The same once some of its answers were withheld.
    Unanswered,
    /// Everything is taken out of it.
    Flushed,
    /// `kill -9`, and started again without what it had.
    Emptied,
    /// `kill -9` for good, and a replica that was left behind takes its place.
    LeftBehind,
    /// `kill -9`, and started again from a snapshot of before.
    SetBack,
    /// One record is deleted by hand.
    Deleted,
    /// Stopped for three seconds (SIGSTOP).
    Stopped,
    /// Cut off from all, for as long as it takes until keys are answered without it, and back with all that it had.
    Away,
    /// Slots of a Cluster are moved.
    Moved,
    /// The database and Redis are killed at a time, and Redis comes back without what it had.
    Both,
}

impl Blow {
    /// Where there are a database and Redis: what is done to the latter too.
    #[must_use]
    pub(crate) fn is_of_redis(self) -> bool {
        matches!(
            self,
            Self::Flushed
                | Self::Emptied
                | Self::LeftBehind
                | Self::SetBack
                | Self::Deleted
                | Self::Stopped
                | Self::Away
                | Self::Both
        )
    }

    /// In the list of faults.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Killed => "database kill -9",
            Self::ShutDown => "database shut down at once",
            Self::FailedOver => "failed over",
            Self::Cut => "connections cut",
            Self::Unanswered => "answers withheld",
            Self::Flushed => "flushed",
            Self::Emptied => "started again without data",
            Self::LeftBehind => "failed over to a replica left behind",
            Self::SetBack => "started again from a snapshot",
            Self::Deleted => "record deleted",
            Self::Stopped => "database stopped",
            Self::Away => "Redis away",
            Self::Moved => "slots moved",
            Self::Both => "database and Redis kill -9 at a time",
        }
    }
}

/// One life of the processes: what is done to them, and how it ends. Moments are counted in answers that clients got.
/// Where there are several, what is done to one is done to the first, unless it is said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// `kill -9` after so many answers, with duplicates under way; where there are several processes, of all.
    Killed {
        /// Answers.
        after: u32,
    },
    /// `kill -9` of one of several after so many answers; the others go on for as many more.
    OneKilled {
        /// Which.
        which: usize,
        /// Answers.
        after: u32,
    },
    /// Something is done to the database after so many answers, and as many keys more are answered by themselves.
    Struck {
        /// What.
        blow: Blow,
        /// Answers.
        after: u32,
    },
    /// It ends itself at a failpoint, as a crash would.
    Aborted {
        /// Which.
        point: &'static str,
        /// The how manieth time that it is reached.
        hit: u32,
    },
    /// One request stops for good at a failpoint; `kill -9` after so many answers of others.
    Paused {
        /// Which.
        point: &'static str,
        /// The how manieth time that it is reached.
        hit: u32,
        /// Answers.
        after: u32,
    },
    /// SIGSTOP after so many answers, SIGCONT after its lease, `kill -9` after as many answers more.
    Stopped {
        /// Answers.
        after: u32,
        /// How long it is stopped, in milliseconds: more than a lease.
        for_ms: u64,
    },
    /// No lease is renewed, so that holders are overtaken while they work; `kill -9` after so many answers.
    Unrenewed {
        /// Answers of the upstream's.
        after: u32,
    },
    /// The store confirms no answer, so that they go out marked; `kill -9` after so many answers of the upstream's.
    Unconfirmed {
        /// Answers.
        after: u32,
    },
    /// The wall clock is off at the start and jumps meanwhile; `kill -9` at the end.
    Jumped {
        /// Seconds from the right time at the start.
        start_s: i64,
        /// Seconds from the right time after so many answers.
        then_s: i64,
        /// Answers.
        after: u32,
    },
    /// `kill -9` after so many answers, and the end of the last batch is lost while it is down.
    Torn {
        /// Answers.
        after: u32,
    },
    /// `kill -9` after so many answers, and a bit flips while it is down: the next start is to refuse, and to list what
    /// is lost where that is accepted.
    Flipped {
        /// Answers.
        after: u32,
    },
    /// The disk is full from the first start on until so many requests were refused for it, and has space again.
    Full {
        /// Refusals.
        refusals: u32,
    },
    /// Nothing: what was left open must come to its end here.
    Clean,
}

/// The plan on a Redis Cluster.
pub(crate) const RESHARDING: &str = "resharding";

const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;

/// The names of the plans that a store knows, in the order in which all are run.
#[must_use]
pub(crate) fn names(store: Store) -> &'static [&'static str] {
    match store {
        Store::Embedded => {
            &["kills", "failpoints", "pauses", "stops", "overtaken", "unconfirmed", "clock", "damage", "disk"]
        }
        Store::Postgres => {
            &["kills", "database", "failover", "connections", "stops", "failpoints", "overtaken", "unconfirmed"]
        }
        Store::Redis => &[
            "kills",
            "flush",
            "failover",
            "connections",
            "database",
            "emptied",
            "snapshot",
            "quarantine",
            "deleted",
            "stops",
            "failpoints",
            "overtaken",
            "unconfirmed",
            RESHARDING,
        ],
        Store::Tiered => &[
            "kills",
            "database",
            "failover",
            "connections",
            "flush",
            "emptied",
            "stale",
            "away",
            "both",
            "stops",
            "failpoints",
            "overtaken",
            "unconfirmed",
        ],
    }
}

/// Which stories clients play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Everything.
    All,
    /// Executions longer than their lease, on a route that runs what is unknown again, and clients that come back.
    Overtaken,
}

/// How processes take a step on Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// By a script.
    #[default]
    Script,
    /// By a transaction.
    Watch,
}

impl Strategy {
    /// As `--strategy` and the configuration spell it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Script => "script",
            Self::Watch => "watch",
        }
    }
}

/// Where all routes have their records, in a store that leaves it to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Durability {
    /// In the database, with hints in Redis.
    #[default]
    Strict,
    /// In Redis, and in a log of each process from which the database gets them.
    Journaled,
    /// In Redis alone.
    Cache,
}

impl std::str::FromStr for Durability {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "strict" => Ok(Self::Strict),
            "cache" => Ok(Self::Cache),
            "journaled" => Ok(Self::Journaled),
            _ => Err("there are strict, journaled and cache"),
        }
    }
}

impl Durability {
    /// As `--durability` and the configuration spell it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Journaled => "journaled",
            Self::Cache => "cache",
        }
    }
}

/// What is done in one round: a folder, a ledger, clients, and several lives of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// On what.
    pub(crate) store: Store,
    /// Its name.
    pub(crate) name: &'static str,
    /// Of faults and clients.
    pub(crate) seed: u64,
    /// What clients ask.
    pub(crate) mix: Mix,
    /// In order; the last one is clean.
    pub(crate) lives: Vec<Life>,
    /// On Redis.
    pub(crate) strategy: Strategy,
    /// On both.
    pub(crate) durability: Durability,
}

impl Plan {
    /// The plan of this name and seed; none where the store has no plan of the name.
    #[must_use]
    pub(crate) fn of(store: Store, name: &str, seed: u64) -> Option<Self> {
        let name = *names(store).iter().find(|known| **known == name)?;
        let mut rng = Rng::with_seed(seed);
        let mut lives = match (store, name) {
            (Store::Embedded, "kills") => kills(&mut rng),
            (_, "kills") => kills_of_several(&mut rng),
            (_, "failpoints") => failpoints(&mut rng),
            (_, "pauses") => pauses(&mut rng),
            (Store::Embedded, "stops") => stops(&mut rng, 500, 900),
            // Another process may take over what is sent late only where the upstream does not look at the fence.
            (Store::Postgres | Store::Tiered, "stops") => stops(&mut rng, 700, 1500),
            (Store::Redis, "stops") => {
                let mut lives = stops(&mut rng, 700, 1500);
                lives.push(struck_by(&mut rng, Blow::Stopped));
                lives
            }
            (_, "flush") => struck(&mut rng, &[Blow::Flushed, Blow::Flushed]),
            (_, RESHARDING) => vec![
                struck_by(&mut rng, Blow::Moved),
                struck_by(&mut rng, Blow::LeftBehind),
                struck_by(&mut rng, Blow::Moved),
                Life::OneKilled { which: rng.usize(0..2), after: rng.u32(10..40) },
            ],
            (_, "emptied") => struck(&mut rng, &[Blow::Emptied, Blow::Emptied]),
            // Whoever is started within the time does not know of the loss: nobody is killed.
            (_, "snapshot") => struck(&mut rng, &[Blow::SetBack, Blow::SetBack]),
            (_, "deleted") => struck(&mut rng, &[Blow::Deleted, Blow::Deleted]),
            (_, "quarantine") => vec![struck_by(&mut rng, Blow::Flushed), struck_by(&mut rng, Blow::LeftBehind)],
            (Store::Redis, "database") => struck(&mut rng, &[Blow::Killed, Blow::Killed]),
            (Store::Redis, "failover") => {
                vec![struck_by(&mut rng, Blow::LeftBehind), struck_by(&mut rng, Blow::LeftBehind)]
            }
            (_, "stale") => vec![struck_by(&mut rng, Blow::LeftBehind), struck_by(&mut rng, Blow::LeftBehind)],
            (_, "away") => struck(&mut rng, &[Blow::Away, Blow::Away]),
            (_, "both") => struck(&mut rng, &[Blow::Both, Blow::Both]),
            (_, "overtaken") => vec![Life::Unrenewed { after: rng.u32(80..160) }],
            (_, "unconfirmed") => vec![Life::Unconfirmed { after: rng.u32(30..60) }],
            (_, "clock") => clock(&mut rng),
            (_, "damage") => damage(&mut rng),
            (_, "database") => struck(&mut rng, &[Blow::Killed, Blow::ShutDown]),
            (_, "failover") => vec![struck_by(&mut rng, Blow::FailedOver), struck_by(&mut rng, Blow::FailedOver)],
            (_, "connections") => struck(&mut rng, &[Blow::Cut, Blow::Unanswered, Blow::Unanswered]),
            _ => vec![Life::Full { refusals: rng.u32(10..40) }, Life::Killed { after: rng.u32(20..60) }],
        };
        lives.push(Life::Clean);
        let mix = if name == "overtaken" { Mix::Overtaken } else { Mix::All };
        Some(Self { store, name, seed, mix, lives, strategy: Strategy::Script, durability: Durability::Strict })
    }

    /// The command that runs it again.
    #[must_use]
    pub(crate) fn command(&self) -> String {
        let Self { store, name, seed, strategy, durability, .. } = self;
        let how = match (store, strategy) {
            (Store::Tiered, _) => format!(" --durability {}", durability.name()),
            (_, Strategy::Script) => String::new(),
            (_, Strategy::Watch) => format!(" --strategy {}", strategy.name()),
        };
        format!("cargo xtask chaos --store {} --plan {name}{how} --seed {seed}", store.name())
    }
}

/// Of one and of all, in turn; what one left is met by the other, and by the next one.
fn kills_of_several(rng: &mut Rng) -> Vec<Life> {
    let mut one = |which| Life::OneKilled { which, after: rng.u32(20..90) };
    let mut lives = vec![one(0), one(1), one(0)];
    lives.insert(rng.usize(0..=lives.len()), Life::Killed { after: rng.u32(20..90) });
    lives
}

fn struck_by(rng: &mut Rng, blow: Blow) -> Life {
    Life::Struck { blow, after: rng.u32(30..90) }
}

/// Each blow once, in any order, and then a process is killed: what it could not record is left to the others.
fn struck(rng: &mut Rng, blows: &[Blow]) -> Vec<Life> {
    let mut blows = blows.to_vec();
    rng.shuffle(&mut blows);
    let mut lives: Vec<Life> = blows.into_iter().map(|blow| struck_by(rng, blow)).collect();
    lives.push(Life::OneKilled { which: rng.usize(0..2), after: rng.u32(10..40) });
    lives
}

fn kills(rng: &mut Rng) -> Vec<Life> {
    (0..6).map(|_| Life::Killed { after: rng.u32(5..90) }).collect()
}

fn failpoints(rng: &mut Rng) -> Vec<Life> {
    let mut points = FAILPOINTS;
    rng.shuffle(&mut points);
    // A lease is renewed only where an execution takes long.
    let hit = |rng: &mut Rng, point| if point == "store.extend" { rng.u32(1..5) } else { rng.u32(1..40) };
    points.into_iter().map(|point| Life::Aborted { point, hit: hit(rng, point) }).collect()
}

fn pauses(rng: &mut Rng) -> Vec<Life> {
    let mut points = FAILPOINTS;
    rng.shuffle(&mut points);
    let some = points.into_iter().take(3);
    some.map(|point| Life::Paused { point, hit: rng.u32(1..10), after: rng.u32(20..60) }).collect()
}

fn stops(rng: &mut Rng, from_ms: u64, to_ms: u64) -> Vec<Life> {
    (0..2).map(|_| Life::Stopped { after: rng.u32(10..40), for_ms: rng.u64(from_ms..to_ms) }).collect()
}

/// Jumps at a start stay well below the retention: a wall clock that is further ahead ends records early, as promised.
fn clock(rng: &mut Rng) -> Vec<Life> {
    let mut life = |start_s| Life::Jumped { start_s, then_s: rng.i64(-40..40) * DAY_S, after: rng.u32(10..40) };
    vec![life(0), life(-3 * DAY_S), life(4 * HOUR_S), life(-HOUR_S)]
}

fn damage(rng: &mut Rng) -> Vec<Life> {
    vec![Life::Torn { after: rng.u32(60..120) }, Life::Flipped { after: rng.u32(60..100) }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_plan_and_each_failpoint_has_its_life() {
        for store in Store::ALL {
            for name in names(store) {
                assert_eq!(Plan::of(store, name, 3), Plan::of(store, name, 3));
                assert_ne!(Plan::of(store, name, 3), Plan::of(store, name, 4), "{name}");
            }
            let lives = Plan::of(store, "failpoints", 3).unwrap().lives;
            for point in FAILPOINTS {
                assert!(
                    lives.iter().any(|life| matches!(life, Life::Aborted { point: of, .. } if *of == point)),
                    "{point}"
                );
            }
            assert_eq!(Plan::of(store, "no-such-plan", 3), None);
        }
    }
}
