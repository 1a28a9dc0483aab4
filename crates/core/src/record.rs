//! What a store keeps of a key: one record.
//!
//! A record is two things. [`Facts`] are written by whoever acts on the key; [`Stored`] is the
//! store's own block (fence, revision, times), which nobody else writes.

use alloc::{string::String, vec::Vec};
use core::{fmt, time::Duration};

use crate::outcome::{Checkpoint, Outcome};

/// A time on the store's clock, in microseconds since the Unix epoch. Zero means "never".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Micros(pub u64);

impl Micros {
    /// The absence of a time.
    pub const ZERO: Self = Self(0);

    /// This time and `span` more, without overflow.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero where it is not after.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// Orders the holders of a key: every grant has a larger one than any before, for as long as the
/// store lives. Microseconds of the store's clock, raised where needed; below 2^63.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Fence(pub u64);

/// Raised by each applied write of a record, renewals included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Revision(pub u64);

/// Which execution of the key it is: 1 for the first.
pub type Attempt = u32;

/// Drawn by the caller for each claim, so that a claim whose answer was lost recognises itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ClaimId(pub [u8; 16]);

/// One life of one process; new at each start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    )*};
}
hex_debug!(ClaimId, SessionId);

/// Where a record stands. "Unknown" is not among them: it is [`State::InFlight`] after its lease
/// is over, derived at each read, so that no sweeper is on the way of safety.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// A holder has, or had, the right to execute.
    InFlight = 1,
    /// The holder or an operator says that nothing was done: the next claim may run.
    NotExecuted = 2,
    /// The outcome is recorded. Final, but for forgetting.
    Completed = 3,
    /// Settled as failed, with or without an outcome. Final, but for forgetting.
    Failed = 4,
    /// Erased on request: nothing is left but that the key was used.
    Erased = 5,
}

/// How far a holder got.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// Nothing was sent upstream.
    Claimed,
    /// The first byte may have been sent.
    Dispatched,
}

/// The store's own block of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// Of the present or last holder.
    pub fence: Fence,
    /// Of the record as it stands.
    pub revision: Revision,
    /// When the holder's right ends, if it is not renewed. Zero: it is over.
    pub lease_until: Micros,
    /// When the record ends. Zero: not by itself (in flight and unknown outcomes).
    pub keep_until: Micros,
    /// Of the last write.
    pub written_at: Micros,
}

/// The fingerprint policy of a record that was made without a request to compare with: the place
/// that an operator holds while he erases a key that has no record.
pub const NO_FINGERPRINT: u32 = u32::MAX;

/// What is known of the key's execution.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Where it stands.
    pub state: State,
    /// How far the present holder got.
    pub phase: Phase,
    /// An earlier attempt may have taken effect. Only an outcome or an operator clears it.
    pub ambiguous: bool,
    /// 1 for the first execution, one more with each takeover.
    pub attempt: u32,
    /// Of the claim that holds or held the key.
    pub claim_id: ClaimId,
    /// Of the process that made the claim.
    pub session: SessionId,
    /// Hash of the credential, where the principal alone does not prove who asks.
    pub principal_proof: Option<[u8; 16]>,
    /// Which rules the fingerprint was made with.
    pub fingerprint_policy: u32,
    /// Of the request that claimed first.
    pub fingerprint: [u8; 32],
    /// Keyed digests of some members of the request, to name what differs: 4 bytes of the
    /// pointer, 4 of the value.
    pub fields: Vec<[u8; 8]>,
    /// Name of the route.
    pub route: String,
    /// Tenant the key belongs to.
    pub tenant: String,
    /// Environment the key belongs to.
    pub env: String,
    /// Of the first claim.
    pub claimed_at: Micros,
    /// When it was completed, failed, found not executed, or erased.
    pub settled_at: Micros,
    /// A claim before this time is told to come back.
    pub not_before: Micros,
    /// What is replayed.
    pub outcome: Option<Outcome>,
    /// The last recovery point.
    pub checkpoint: Option<Checkpoint>,
    /// Why it was settled or erased without an outcome.
    pub reason: String,
}

/// A record as a store returns it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The store's block.
    pub stored: Stored,
    /// Everything else.
    pub facts: Facts,
}

/// A record's state as people see it, derived from the record and the time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Seen {
    /// Held, and the lease runs.
    InFlight,
    /// The holder's lease is over before anything was sent: the next claim takes over safely.
    Abandoned,
    /// The holder's lease is over and the upstream may have been reached.
    Unknown,
    /// Nothing was done; the next claim runs.
    NotExecuted,
    /// Recorded.
    Completed,
    /// Settled as failed.
    Failed,
    /// Erased on request.
    Erased,
}

impl Seen {
    /// As the command line and the admin listener spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InFlight | Self::Abandoned => "in_flight",
            Self::Unknown => "unknown",
            Self::NotExecuted => "not_executed",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Erased => "erased",
        }
    }
}

impl Record {
    /// The state at `now`, with unknown outcomes derived.
    #[must_use]
    pub fn seen_at(&self, now: Micros) -> Seen {
        match self.facts.state {
            State::InFlight if self.stored.lease_until > now => Seen::InFlight,
            State::InFlight if self.facts.phase == Phase::Dispatched || self.facts.ambiguous => Seen::Unknown,
            State::InFlight => Seen::Abandoned,
            State::NotExecuted => Seen::NotExecuted,
            State::Completed => Seen::Completed,
            State::Failed => Seen::Failed,
            State::Erased => Seen::Erased,
        }
    }

    /// Its retention is over: the key is new again.
    #[must_use]
    pub fn is_expired(&self, now: Micros) -> bool {
        self.stored.keep_until != Micros::ZERO && self.stored.keep_until <= now
    }

    /// Since when an unknown outcome has been unknown.
    #[must_use]
    pub fn unknown_since(&self) -> Micros {
        if self.stored.lease_until == Micros::ZERO { self.stored.written_at } else { self.stored.lease_until }
    }
}
