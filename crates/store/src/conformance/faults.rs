//! Calls that fail on the way: a decorator that loses answers, and the cases about it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    claim::{INSERT_TRIES_MAX, LOST_TRIES_MAX},
    key::RecordId,
    record::{ClaimId, Facts, Fence, Seen},
};

use super::{
    Case, Harness, Run,
    drive::{self, Holder, Said},
    script::{Answer, Op, Span, Who, World, claim},
};
use crate::{
    Answer as StoreAnswer, Filter, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write,
};

pub(super) const CASES: &[Case] = &[
    Case::code("claim_reply_lost_then_retry_reentrant", "S8 S3", claim_reply_lost_then_retry_reentrant),
    Case::code("release_by_owner_after_unknown_claim", "S8 S5", release_by_owner_after_unknown_claim),
    Case::hooks(
        "watch_conflict_retries_bounded",
        "core S7",
        "with Redis `watch`: EXEC comes back empty each time",
        watch_conflict_retries_bounded,
    ),
    Case::hooks(
        "script_missing_NOSCRIPT_reload",
        "core S8",
        "with Redis `script`: SCRIPT FLUSH between two calls",
        script_missing_noscript_reload,
    ),
    Case::hooks(
        "cluster_MOVED_ASK_mid_claim",
        "core S8",
        "with Redis Cluster: a slot moves between two calls",
        cluster_moved_ask_mid_claim,
    ),
];

/// How a call goes wrong.
#[derive(Clone, Debug)]
enum Fault {
    /// It is applied, its answer is lost.
    ReplyLost,
    /// It never arrives, and nobody knows.
    CallLost,
    /// It is refused without effect.
    Refused(Kind),
    /// Another write comes first: the old holder writes what it had written.
    Beaten(Box<Holder>),
}

/// A store in front of another whose calls go wrong by a plan.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn Store>,
    inserts: Mutex<VecDeque<Fault>>,
    replaces: Mutex<VecDeque<Fault>>,
    calls: AtomicU32,
}

impl Faulty {
    fn new(inner: &Arc<dyn Store>, inserts: Vec<Fault>, replaces: Vec<Fault>) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            inserts: Mutex::new(inserts.into()),
            replaces: Mutex::new(replaces.into()),
            calls: AtomicU32::new(0),
        })
    }

    fn next(&self, plan: &Mutex<VecDeque<Fault>>) -> Option<Fault> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        plan.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn calls(&self) -> u32 {
        self.calls.swap(0, Ordering::Relaxed)
    }
}

fn lost<T>() -> Result<T, StoreError> {
    Err(StoreError::unknown(Kind::Unavailable))
}

impl Store for Faulty {
    fn kind(&self) -> &'static str {
        "faulty"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> StoreAnswer<'a, Insert> {
        Box::pin(async move {
            match self.next(&self.inserts) {
                None | Some(Fault::Beaten(_)) => self.inner.insert(id, facts, lease).await,
                Some(Fault::ReplyLost) => self.inner.insert(id, facts, lease).await.and_then(|_| lost()),
                Some(Fault::CallLost) => lost(),
                Some(Fault::Refused(kind)) => Err(StoreError::not_applied(kind)),
            }
        })
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> StoreAnswer<'a, Write> {
        Box::pin(async move {
            match self.next(&self.replaces) {
                None => self.inner.replace(id, write).await,
                Some(Fault::ReplyLost) => self.inner.replace(id, write).await.and_then(|_| lost()),
                Some(Fault::CallLost) => lost(),
                Some(Fault::Refused(kind)) => Err(StoreError::not_applied(kind)),
                Some(Fault::Beaten(mut holder)) => {
                    drive::dispatched(&*self.inner, id, &mut holder).await;
                    self.inner.replace(id, write).await
                }
            }
        })
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> StoreAnswer<'_, Write> {
        self.inner.extend(id, holder, lease)
    }

    fn remove(&self, id: RecordId, expect: Expect) -> StoreAnswer<'_, Write> {
        self.inner.remove(id, expect)
    }

    fn get(&self, id: RecordId) -> StoreAnswer<'_, Read> {
        self.inner.get(id)
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> StoreAnswer<'_, Page> {
        self.inner.scan(after, limit, filter)
    }

    fn sweep(&self, limit: usize, waits: Duration) -> StoreAnswer<'_, Swept> {
        self.inner.sweep(limit, waits)
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.inner.watch(id)
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> StoreAnswer<'a, ()> {
        self.inner.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> StoreAnswer<'_, Option<String>> {
        self.inner.rules(policy)
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.inner.usage(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.inner.lost_ago()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

fn faulty(harness: &Harness, inserts: Vec<Fault>, replaces: Vec<Fault>) -> (World, Arc<Faulty>) {
    let store = Faulty::new(&harness.store, inserts, replaces);
    (World::lossy(Arc::<Faulty>::clone(&store), harness.clock.clone()), store)
}

fn granted(attempt: u32, again: bool, ambiguous: bool) -> Said {
    Said::Granted { attempt, again, ambiguous, checkpoint: 0 }
}

fn unavailable(kind: Kind, abandon: bool) -> Said {
    Said::Unavailable { kind, abandon }
}

const HELD: Op = claim(Who::B).op();

fn claim_reply_lost_then_retry_reentrant(harness: Harness) -> Run {
    Box::pin(async move {
        let (mut world, store) = faulty(&harness, vec![Fault::ReplyLost], vec![]);
        assert_eq!(world.act(claim(Who::A).op()).await, granted(1, true, false));
        assert_eq!(store.calls(), 2, "one insert whose answer was lost, one that found itself");
        assert_eq!(world.act(HELD).await, Said::InFlight);
        assert_eq!(world.act(Op::Complete(Who::A, Answer::First, Span::Long)).await, Said::Completed);

        // The repeat comes only after the lease: nothing may be sent before it runs again.
        let (mut world, _) = faulty(&harness, vec![Fault::ReplyLost; INSERT_TRIES_MAX as usize], vec![]);
        assert_eq!(world.act(claim(Who::A).short().op()).await, unavailable(Kind::Unavailable, true));
        world.act(Op::Pass).await;
        assert_eq!(world.act(claim(Who::A).op()).await, granted(1, true, false));
        assert_eq!(world.act(claim(Who::B).retry().op()).await, Said::InFlight);
    })
}

fn release_by_owner_after_unknown_claim(harness: Harness) -> Run {
    Box::pin(async move {
        let every = || vec![Fault::ReplyLost; INSERT_TRIES_MAX as usize];
        let (mut world, store) = faulty(&harness, every(), vec![]);
        assert_eq!(world.act(claim(Who::A).op()).await, unavailable(Kind::Unavailable, true));
        assert_eq!(store.calls(), INSERT_TRIES_MAX, "the repeats are bounded");
        assert_eq!(world.act(HELD).await, Said::InFlight, "the claim stands, although nobody was told");
        let (id, owner) = (world.id, ClaimId([Who::A as u8; 16]));
        assert_eq!(drive::abandon(&*world.store, id, owner).await, Said::Released);
        assert_eq!(drive::abandon(&*world.store, id, owner).await, Said::Absent);
        assert_eq!(world.act(HELD).await, granted(1, false, false));
        // Whoever comes late to free his own claim frees no other's.
        assert_eq!(drive::abandon(&*world.store, id, owner).await, Said::Fenced);
        assert_eq!(world.act(Op::Complete(Who::B, Answer::First, Span::Long)).await, Said::Completed);
    })
}

fn watch_conflict_retries_bounded(harness: Harness) -> Run {
    Box::pin(async move {
        // The store gives up its own bounded retries with `Conflict`: nothing was written.
        let (mut world, store) = faulty(&harness, vec![Fault::Refused(Kind::Conflict)], vec![]);
        assert_eq!(world.act(claim(Who::A).op()).await, unavailable(Kind::Conflict, false));
        assert_eq!(store.calls(), 1);

        // A takeover that meets another write each time gives up, too.
        let (mut world, _) = faulty(&harness, vec![], vec![]);
        world.act(claim(Who::A).short().op()).await;
        world.act(Op::Pass).await;
        let beaten = Fault::Beaten(Box::new(world.holder(Who::A).clone()));
        let store = Faulty::new(&harness.store, vec![], vec![beaten; 100]);
        world.through(Arc::<Faulty>::clone(&store));
        let policy = world.policy(&claim(Who::B).retry());
        let asks = super::script::ask(Who::B, 1);
        let said = drive::Driven::new(&*world.store, world.id, &policy, asks).run().await;
        assert_eq!(said, Said::InFlight);
        assert_eq!(store.calls(), LOST_TRIES_MAX + 1, "one insert, and so many takeovers");
        let read = world.store.get(world.id).await.unwrap_or_else(|error| panic!("reading: {error}"));
        assert_eq!(drive::seen(read.record.as_ref(), read.now), Some(Seen::Unknown));
    })
}

fn script_missing_noscript_reload(harness: Harness) -> Run {
    Box::pin(async move {
        // A call that was not applied, and nobody can tell: each step repeated takes effect once.
        let (mut world, store) = faulty(&harness, vec![Fault::CallLost], vec![Fault::CallLost]);
        assert_eq!(world.act(claim(Who::A).op()).await, granted(1, false, false));
        assert_eq!(store.calls(), 2);
        let complete = Op::Complete(Who::A, Answer::First, Span::Long);
        assert_eq!(world.act(complete).await, Said::StoreFailed(Kind::Unavailable, crate::Applied::Unknown));
        assert_eq!(world.act(complete).await, Said::Completed);
        assert_eq!(world.act(HELD).await, Said::Replay(Answer::First));
    })
}

fn cluster_moved_ask_mid_claim(harness: Harness) -> Run {
    Box::pin(async move {
        // The slot moves after the call was applied: the repeat finds what was done.
        let (mut world, _) = faulty(&harness, vec![], vec![Fault::ReplyLost, Fault::ReplyLost]);
        world.act(claim(Who::A).short().op()).await;
        world.act(Op::Pass).await;
        assert_eq!(world.act(claim(Who::B).retry().op()).await, granted(2, true, true), "the takeover found itself");
        assert_eq!(world.act(claim(Who::C).retry().op()).await, Said::InFlight);
        let complete = Op::Complete(Who::B, Answer::First, Span::Long);
        assert_eq!(world.act(complete).await, Said::StoreFailed(Kind::Unavailable, crate::Applied::Unknown));
        assert_eq!(world.act(complete).await, Said::Already);
        // Before it was applied: it is done once, under one fence.
        let (mut world, _) = faulty(&harness, vec![], vec![Fault::CallLost]);
        world.act(claim(Who::A).short().op()).await;
        world.act(Op::Pass).await;
        assert_eq!(world.act(claim(Who::B).retry().op()).await, granted(2, false, true));
    })
}
