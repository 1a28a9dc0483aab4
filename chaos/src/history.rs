//! What was seen from outside: the upstream's ledger, the clients' log, and what was done to the process between.
//!
//! Nothing here knows of a store. Times are orders, of the ledger's lines and of the clients' events; only where records
//! were lost on purpose is it the wall clock that says which.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What a key means to whoever sends it: the same text on another route, or from another caller, is another operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Operation {
    /// Path of the route.
    pub(crate) route: String,
    /// Whose key it is, as the `Authorization` header says.
    pub(crate) caller: String,
    /// The client's key.
    pub(crate) key: String,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} on {}", self.key, self.caller, self.route)
    }
}

/// A name for a body: its hash.
pub(crate) type Digest = u64;

/// Names a body.
#[must_use]
pub(crate) fn digest(body: &[u8]) -> Digest {
    xxhash_rust::xxh3::xxh3_64(body)
}

/// What the upstream does with a dispatch, and what that means for the key by the contract (`preset = "safe"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Act {
    /// The effect, and 201.
    Ok,
    /// The effect, and 201 with a body in chunks that is too long to be held.
    Stream,
    /// The effect, and 500: recorded as any answer.
    Error,
    /// No effect, and 503 with `Retry-After`: released.
    Busy,
    /// No effect, and 429: released.
    Limited,
    /// The effect, and 503 without `Retry-After`: an unknown outcome.
    Bare,
    /// The effect, then the connection is cut before a byte of the answer.
    Cut,
    /// The effect, then the connection is cut within the answer.
    CutMid,
}

/// What an answer means for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is the key's from here on.
    Recorded,
    /// The upstream says that it did nothing.
    Released,
    /// Nobody can know.
    Unknown,
}

impl Act {
    /// By the contract.
    #[must_use]
    pub(crate) fn meaning(self) -> Meaning {
        match self {
            Self::Ok | Self::Stream | Self::Error => Meaning::Recorded,
            Self::Busy | Self::Limited => Meaning::Released,
            Self::Bare | Self::Cut | Self::CutMid => Meaning::Unknown,
        }
    }
}

/// What the upstream sent, where it was a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Said {
    /// Status.
    pub(crate) status: u16,
    /// Of the body.
    pub(crate) body: Digest,
}

/// A line of the ledger: one request that reached the upstream. Written and synced before anything is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dispatch {
    /// Its place in the ledger, from 0.
    pub(crate) number: u64,
    /// For what.
    pub(crate) operation: Operation,
    /// `Idempotency-Attempt`; 0 where it is missing.
    pub(crate) attempt: u32,
    /// `Idempotency-Fence`; 0 where it is missing.
    pub(crate) fence: u64,
    /// When it was written down, by the wall clock in microseconds.
    pub(crate) at_us: u64,
    /// Which life of the process sent it.
    pub(crate) life: usize,
    /// Of the request's body.
    pub(crate) body: Digest,
    /// What the upstream did.
    pub(crate) act: Act,
    /// What it answered, where it answered whole.
    pub(crate) said: Option<Said>,
}

/// How a request of a client ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A whole answer.
    Answer(Answer),
    /// The connection was refused, or broke before the answer was whole.
    Broken,
    /// The client went away by itself.
    Left,
}

/// A whole answer, as a client got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Status.
    pub(crate) status: u16,
    /// Of the body.
    pub(crate) body: Digest,
    /// Which dispatch it is the answer of, where it is one of the upstream's.
    pub(crate) dispatch: Option<u64>,
    /// The slug of the problem, where it is one of the proxy's own.
    pub(crate) problem: Option<String>,
    /// Whether it says that it is not recorded (yet), or that the store was not asked.
    pub(crate) unrecorded: bool,
}

/// One thing that a client did or saw, in the order in which it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A request was begun.
    Sent {
        /// Names it.
        request: usize,
        /// For what: its place in [`Seen::operations`].
        operation: usize,
        /// Of its body.
        body: Digest,
        /// The life of the process that it was sent to.
        life: usize,
        /// Whether it is one of those that ask at the end how each key stands.
        audit: bool,
    },
    /// It ended.
    Ended {
        /// Which.
        request: usize,
        /// How.
        end: End,
    },
}

/// What was done to one life of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// What was done on purpose that may leave outcomes unknown: killed, aborted, stopped. None: nothing was.
    pub(crate) fault: Option<String>,
}

/// What a process said that its store lost: what was written to some parts of it between two times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Which.
    pub(crate) parts: BTreeSet<u16>,
    /// From then on, in microseconds.
    pub(crate) from_us: u64,
    /// Until it was noticed, in microseconds.
    pub(crate) to_us: u64,
}

/// Something was done to the store by which it lost records, or may have. Times are in microseconds of the wall clock,
/// and fences are times of the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// What was written before is there.
    pub(crate) from_us: u64,
    /// When it was begun: nothing runs again before because of it.
    pub(crate) begun_us: u64,
    /// When it was over: what is granted later is there.
    pub(crate) over_us: u64,
    /// Whose last write may be gone.
    pub(crate) gone: BTreeSet<Operation>,
    /// What the processes said of it; none where nobody can notice it.
    pub(crate) told: Option<Vec<Told>>,
    /// For so long no new key is taken once it was noticed.
    pub(crate) quarantine_us: u64,
}

/// What a route does about unknown outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Never runs it again by itself.
    Hold,
    /// Runs it again, at most so many times.
    Retry(u32),
}

/// Everything that a verdict is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The upstream's ledger, in its order.
    pub(crate) ledger: Vec<Dispatch>,
    /// What clients did and saw, in their order.
    pub(crate) events: Vec<Event>,
    /// The operations that events name by number.
    pub(crate) operations: Vec<Operation>,
    /// The lives of the process, in order.
    pub(crate) lives: Vec<Life>,
    /// What each route does about unknown outcomes; those that are not named hold.
    pub(crate) retries: Vec<(String, u32)>,
    /// Operations within an interval that the process itself listed as lost: they are not counted.
    pub(crate) given_up: BTreeSet<Operation>,
    /// What was done to the store by which it lost records, in order.
    pub(crate) losses: Vec<Loss>,
    /// Which part of the store each operation's record lies in, where that counts.
    pub(crate) parts: BTreeMap<Operation, u16>,
}

impl Seen {
    /// The dispatch of this number.
    #[must_use]
    pub(crate) fn dispatch(&self, number: u64) -> Option<&Dispatch> {
        let at = self.ledger.binary_search_by_key(&number, |dispatch| dispatch.number).ok()?;
        self.ledger.get(at)
    }

    /// What its route does about unknown outcomes.
    #[must_use]
    pub(crate) fn policy(&self, operation: &Operation) -> Policy {
        let retry = self.retries.iter().find(|(route, _)| *route == operation.route);
        retry.map_or(Policy::Hold, |(_, times)| Policy::Retry(*times))
    }
}
