//! What there is: servers, gateways, Postgres, and the truth that nobody in the model sees.
//!
//! Small integers and fixed arrays only, since a run holds tens of millions of these. Fences, views and incarnations
//! count from 1; 0 is none.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Index, IndexMut};

use crate::packing::Packing;

/// In the place of an incarnation: the view's server is the journal's own database.
pub(crate) const DATABASE: u8 = 0;

/// Names of gateways, servers and keys, and one value for each of them. They are indexed by name, so that no index can
/// be out of range.
macro_rules! named {
    ($(#[$about:meta])* $id:ident, $per:ident: $($name:ident)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub(crate) enum $id { $($name),* }

        impl $id {
            pub(crate) const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];
        }

        /// One value for each.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[expect(non_snake_case, reason = "fields are named as what they belong to")]
        pub(crate) struct $per<T> { $(pub(crate) $name: T),* }

        impl<T> Index<$id> for $per<T> {
            type Output = T;

            fn index(&self, id: $id) -> &T {
                match id { $($id::$name => &self.$name),* }
            }
        }

        impl<T> IndexMut<$id> for $per<T> {
            fn index_mut(&mut self, id: $id) -> &mut T {
                match id { $($id::$name => &mut self.$name),* }
            }
        }
    };
}

named! {
    /// A gateway: one session, from its start to its end.
    GatewayId, PerGateway: G1 G2 G3
}
named! {
    /// A Redis server. `B` begins as the replica of `A`.
    ServerId, PerServer: A B
}
named! {
    /// A key. Both are of one partition, so they share its view, its high-water mark and its warmth.
    Key, PerKey: K1 K2
}

/// A set of gateways.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Gateways(u8);

impl Gateways {
    /// The first `count`.
    pub(crate) const fn first(count: u8) -> Self {
        Self((1 << count) - 1)
    }

    pub(crate) const fn has(self, id: GatewayId) -> bool {
        self.0 >> id as u8 & 1 == 1
    }

    pub(crate) const fn add(&mut self, id: GatewayId) {
        self.0 |= 1 << id as u8;
    }

    pub(crate) const fn remove(&mut self, id: GatewayId) {
        self.0 &= !(1 << id as u8);
    }

    pub(crate) const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The only one in it.
    pub(crate) fn only(self) -> Option<GatewayId> {
        GatewayId::ALL.into_iter().find(|id| self.0 == 1 << *id as u8)
    }

    pub(crate) fn swap(&mut self, one: GatewayId, other: GatewayId) {
        let (has_one, has_other) = (self.has(one), self.has(other));
        self.remove(one);
        self.remove(other);
        if has_one {
            self.add(other);
        }
        if has_other {
            self.add(one);
        }
    }
}

/// A set of fences, each of 1 to 8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Fences(u8);

impl Fences {
    const fn bit(fence: u8) -> u8 {
        if fence == 0 { 0 } else { 1 << (fence - 1) }
    }

    const fn up_to_bits(fence: u8) -> u8 {
        ((1_u16 << fence) - 1) as u8
    }

    pub(crate) const fn has(self, fence: u8) -> bool {
        self.0 & Self::bit(fence) != 0
    }

    pub(crate) const fn add(&mut self, fence: u8) {
        self.0 |= Self::bit(fence);
    }

    pub(crate) const fn remove(&mut self, fence: u8) {
        self.0 &= !Self::bit(fence);
    }

    pub(crate) const fn up_to(self, fence: u8) -> Self {
        Self(self.0 & Self::up_to_bits(fence))
    }

    pub(crate) const fn above(self, fence: u8) -> Self {
        Self(self.0 & !Self::up_to_bits(fence))
    }

    pub(crate) const fn without(self, fence: u8) -> Self {
        Self(self.0 & !Self::bit(fence))
    }

    pub(crate) const fn minus(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const fn highest(self) -> u8 {
        (u8::BITS - self.0.leading_zeros()) as u8
    }
}

/// What is known of a key under a fence. In the order of ranks (A4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) enum Kind {
    #[default]
    Absent,
    /// Claimed.
    InFlight,
    /// The holder says that nothing was done.
    Released,
    Completed,
    /// Forgotten on request; the key stays unusable until its retention is over.
    Erased,
}

/// A fact of a key, and a journal row. The order is the join's: the larger of two facts is what both say together (A4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Fact {
    pub(crate) fence: u8,
    pub(crate) kind: Kind,
}

impl fmt::Debug for Fact {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {}", self.kind, self.fence)
    }
}

impl Fact {
    pub(crate) const fn new(kind: Kind, fence: u8) -> Self {
        Self { fence, kind }
    }

    pub(crate) const fn is_absent(self) -> bool {
        matches!(self.kind, Kind::Absent)
    }

    pub(crate) fn is_settled(self) -> bool {
        self.kind >= Kind::Released
    }
}

/// A set of facts of one key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Facts(u16);

impl Facts {
    /// Facts that a set can hold: of four kinds, under fences of 1 to 4.
    pub(crate) fn all() -> impl Iterator<Item = Fact> {
        const KINDS: [Kind; 4] = [Kind::InFlight, Kind::Released, Kind::Completed, Kind::Erased];
        (1..=FENCES_MAX).flat_map(|fence| KINDS.map(|kind| Fact { fence, kind }))
    }

    const fn bit(fact: Fact) -> u16 {
        1 << ((fact.fence - 1) * 4 + fact.kind as u8 - 1)
    }

    pub(crate) const fn has(self, fact: Fact) -> bool {
        self.0 & Self::bit(fact) != 0
    }

    pub(crate) const fn add(&mut self, fact: Fact) {
        self.0 |= Self::bit(fact);
    }

    pub(crate) const fn remove(&mut self, fact: Fact) {
        self.0 &= !Self::bit(fact);
    }

    pub(crate) const fn add_all(&mut self, others: Self) {
        self.0 |= others.0;
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn has_up_to(self, fence: u8) -> bool {
        self.0 as u32 & ((1 << (fence as u32 * 4)) - 1) != 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Fact> {
        Self::all().filter(move |fact| self.has(*fact))
    }
}

/// As many fences as [`Facts`] can hold.
pub(crate) const FENCES_MAX: u8 = 4;

/// A key's record in Redis.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Record {
    pub(crate) fact: Fact,
    /// Raised by each write, so that who read it earlier is told apart.
    pub(crate) revision: u8,
    /// Phase `d`: its request may have been sent.
    pub(crate) is_dispatched: bool,
    /// An earlier attempt may have taken effect.
    pub(crate) is_ambiguous: bool,
    pub(crate) lease_is_over: bool,
    /// Released by whoever had lost the claim's reply. A record has its claim's id, so it is told from another claim that
    /// has the same fence.
    pub(crate) is_of_lost: bool,
}

/// Whether a record waits to be shipped by whoever drains the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) enum Outbox {
    #[default]
    Clean,
    Dirty,
    /// Shipped, and kept for as long as Postgres may lose it (A8).
    Retained,
}

/// A Redis server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Server {
    pub(crate) is_master: bool,
    /// The replication id.
    pub(crate) incarnation: u8,
    /// The epoch in its marker.
    pub(crate) view: u8,
    /// The sessions that may claim (R3).
    pub(crate) allowed: Gateways,
    pub(crate) is_warm: bool,
    /// The partition's high-water mark of fences.
    pub(crate) hwm: u8,
    /// As it was when the view was installed: what has a fence above it was granted in this view.
    pub(crate) before: u8,
    pub(crate) records: PerKey<Record>,
    pub(crate) outbox: PerKey<Outbox>,
}

/// Where a gateway's present attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) enum Step {
    #[default]
    Idle,
    /// Redis said granted; not spooled yet, so within the guard.
    Granted,
    /// The claim is in the spool; out of the guard.
    Spooled,
    /// In two phases: Redis knows that it will be sent.
    Marked,
    Sent,
    /// Redis holds the answer; not spooled yet, so within the guard.
    Completed,
    /// Redis holds the release; not spooled yet, so within the guard.
    Released,
    /// Redis said that the claim is an operator's or a probe's to resolve; not spooled yet, so within the guard.
    Resolving,
    /// That claim is in the spool: what became of the key is asked for, and written under its fence.
    Asking,
    /// Redis holds what was decided; not spooled yet, so within the guard.
    Resolved,
}

/// A claim and what became of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) step: Step,
    pub(crate) key: Option<Key>,
    pub(crate) fence: u8,
    /// The view that it was granted in.
    pub(crate) view: u8,
    /// Only for [`Step::Resolved`].
    pub(crate) resolution: Kind,
}

/// A record as somebody read it, for a write that compares (`Seen`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Seen {
    pub(crate) key: Key,
    pub(crate) fence: u8,
    pub(crate) revision: u8,
    /// Dispatched, or ambiguous by an earlier attempt.
    pub(crate) is_unknown: bool,
}

/// Whether a session is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) enum Life {
    /// Not yet a member.
    #[default]
    Outside,
    Alive,
    Crashed,
}

/// A gateway.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Gateway {
    pub(crate) life: Life,
    /// The view and the incarnation that its scripts name.
    pub(crate) view: u8,
    pub(crate) incarnation: u8,
    /// The timeline of Postgres that it is connected to.
    pub(crate) timeline: u8,
    pub(crate) attempt: Attempt,
    /// Facts that are not shipped yet.
    pub(crate) spool: PerKey<Facts>,
    /// Facts that are shipped and kept for as long as Postgres may lose them (A8), or that may arrive once more.
    pub(crate) retained: PerKey<Facts>,
    pub(crate) seen: Option<Seen>,
    /// Journal rows as read in this view, for a server that is not warm.
    pub(crate) rows: PerKey<Option<Fact>>,
    /// A forgetting that has done the first of its two steps.
    pub(crate) forgetting: Option<(Key, u8)>,
    /// Claims no more: it retired itself, or cannot renew its membership.
    pub(crate) is_fenced_off: bool,
}

/// What Postgres holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Postgres {
    pub(crate) view: u8,
    pub(crate) incarnation: u8,
    /// The timeline that the view was opened on.
    pub(crate) timeline: u8,
    pub(crate) is_active: bool,
    pub(crate) members: Gateways,
    pub(crate) acked: Gateways,
    pub(crate) retiring: Gateways,
    pub(crate) retired: Gateways,
    /// View and incarnation of the last active view; zeros where that is not known on this timeline.
    pub(crate) last_active: (u8, u8),
    pub(crate) journal: PerKey<Fact>,
    /// The highest fence of the partition that was ever journaled or drained.
    pub(crate) hwm: u8,
}

/// A retirement under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Retirement {
    pub(crate) target: GatewayId,
    pub(crate) by: GatewayId,
    /// Of the last active view; none where that is the database.
    pub(crate) server: Option<ServerId>,
    pub(crate) is_drained: bool,
    /// As they were when it began.
    pub(crate) view: u8,
    pub(crate) incarnation: u8,
    pub(crate) timeline: u8,
}

/// That views go on without a session, and a fence that it was granted none above.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Forced {
    pub(crate) gateway: GatewayId,
    pub(crate) mark: u8,
}

/// What is so of a key, for the properties only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Truth {
    /// Fences that left the guard.
    pub(crate) used: Fences,
    /// The reply of the last claim under such a fence was lost: nothing is sent under it.
    pub(crate) lost: Fences,
    /// Given again after such a claim. Kept for a mutant only.
    pub(crate) given_again: Fences,
    /// Granted as ambiguous; an attribute of the claim, journaled with it (A4).
    pub(crate) ambiguous: Fences,
    pub(crate) sent: Fences,
    /// Whose answer a client was given as the key's.
    pub(crate) answered: Fences,
    /// Whose answer is what the upstream's books say: whoever asks them is told the same.
    pub(crate) from_books: Fences,
    /// Retention has passed for everything settled up to this fence.
    pub(crate) past: u8,
    /// Forgetting has returned.
    pub(crate) erased: Fences,
    /// Settled in Redis in the present view.
    pub(crate) settled: Fences,
    /// Sent, and neither applied nor rejected by the upstream.
    pub(crate) on_the_wire: Fences,
    /// The fence that the upstream keeps, and its effects in this lifetime of the key.
    pub(crate) upstream_fence: u8,
    pub(crate) effects: u8,
    /// Granted after a view went on without a session: in the list of what may be executed twice (A12).
    pub(crate) at_risk: Fences,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct State {
    pub(crate) servers: PerServer<Server>,
    pub(crate) gateways: PerGateway<Gateway>,
    pub(crate) postgres: Postgres,
    /// The standby, which may lag.
    pub(crate) standby: Postgres,
    pub(crate) timeline: u8,
    pub(crate) retirement: Option<Retirement>,
    pub(crate) truth: PerKey<Truth>,
    /// The operator's word that views go on without a session.
    pub(crate) forced: Option<Forced>,
    /// Faults that may still happen.
    pub(crate) faults_left: u8,
    /// Views that may still be opened on the database.
    pub(crate) database_left: u8,
    /// The rule that the last step broke.
    pub(crate) broken: Option<Rule>,
}

/// What must always hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Rule {
    OneDispatchUnderHold,
    OneDispatchAFence,
    AmbiguityIsSurfaced,
    NoDispatchAfterAnAnswer,
    FencesRise,
    AFenceIsUsedOnce,
    OneEffect,
    EffectsInFenceOrder,
    OneAnswer,
    ErasedIsNeverShown,
    SettledStaysSettled,
    ExpiredStaysExpired,
}

/// Hashed as a few words instead of some hundred bytes one by one, which would take most of a run's time.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let mut packing = Packing::new(hasher);
        let Self { servers, gateways, postgres, standby, timeline, retirement, truth, forced, faults_left, .. } = self;
        (servers, gateways, postgres, standby, timeline).hash(&mut packing);
        (retirement, truth, forced, faults_left, self.database_left, self.broken).hash(&mut packing);
        packing.flush();
    }
}
