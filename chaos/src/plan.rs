//! A seed becomes a plan: which faults come in which life of the process, each at a logical moment.

use fastrand::Rng;

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

/// One life of the process: what is done to it, and how it ends. Moments are counted in answers that clients got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// `kill -9` after so many answers, with duplicates under way.
    Killed {
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

const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;

/// The names of plans, in the order in which all are run.
pub(crate) const NAMES: &[&str] =
    &["kills", "failpoints", "pauses", "stops", "overtaken", "unconfirmed", "clock", "damage", "disk"];

/// Which stories clients play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Everything.
    All,
    /// Executions longer than their lease, on a route that runs what is unknown again, and clients that come back.
    Overtaken,
}

/// What is done in one round: a folder, a ledger, clients, and several lives of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Its name.
    pub(crate) name: &'static str,
    /// Of faults and clients.
    pub(crate) seed: u64,
    /// What clients ask.
    pub(crate) mix: Mix,
    /// In order; the last one is clean.
    pub(crate) lives: Vec<Life>,
}

impl Plan {
    /// The plan of this name and seed; none where no plan has the name.
    #[must_use]
    pub(crate) fn of(name: &str, seed: u64) -> Option<Self> {
        let name = *NAMES.iter().find(|known| **known == name)?;
        let mut rng = Rng::with_seed(seed);
        let mut lives = match name {
            "kills" => kills(&mut rng),
            "failpoints" => failpoints(&mut rng),
            "pauses" => pauses(&mut rng),
            "stops" => stops(&mut rng),
            "overtaken" => vec![Life::Unrenewed { after: rng.u32(80..160) }],
            "unconfirmed" => vec![Life::Unconfirmed { after: rng.u32(30..60) }],
            "clock" => clock(&mut rng),
            "damage" => damage(&mut rng),
            _ => vec![Life::Full { refusals: rng.u32(10..40) }, Life::Killed { after: rng.u32(20..60) }],
        };
        lives.push(Life::Clean);
        let mix = if name == "overtaken" { Mix::Overtaken } else { Mix::All };
        Some(Self { name, seed, mix, lives })
    }

    /// The command that runs it again.
    #[must_use]
    pub(crate) fn command(&self) -> String {
        format!("cargo xtask chaos --plan {} --seed {}", self.name, self.seed)
    }
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

fn stops(rng: &mut Rng) -> Vec<Life> {
    (0..2).map(|_| Life::Stopped { after: rng.u32(10..40), for_ms: rng.u64(500..900) }).collect()
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
        for name in NAMES {
            assert_eq!(Plan::of(name, 3), Plan::of(name, 3));
            assert_ne!(Plan::of(name, 3), Plan::of(name, 4), "{name}");
        }
        let lives = Plan::of("failpoints", 3).unwrap().lives;
        for point in FAILPOINTS {
            assert!(
                lives.iter().any(|life| matches!(life, Life::Aborted { point: of, .. } if *of == point)),
                "{point}"
            );
        }
        assert_eq!(Plan::of("no-such-plan", 3), None);
    }
}
