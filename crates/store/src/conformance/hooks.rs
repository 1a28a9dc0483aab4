//! What a store of one process cannot meet: shown on the core with the memory store's hooks.

use std::{sync::Arc, time::Duration};

use onceward_core::{
    cas::Expect,
    record::{Fence, Seen, SessionId},
};

use super::{
    Case, Hand, Harness, Run,
    drive::{self, Driven, Said},
    script::{Answer, Look, Op, Span, Who, World, ask, claim, look, nothing},
    subject::StillClock,
};
use crate::{
    Applied, Kind, Store, Write,
    memory::{Bounds, Memory},
};

pub(super) const CASES: &[Case] = &[
    Case::hooks(
        "claim_epoch_mismatch_writes_nothing",
        "S7 S8",
        "with Redis: the partition's marker is gone or another's",
        claim_epoch_mismatch_writes_nothing,
    ),
    Case::hooks(
        "claim_session_fenced_writes_nothing",
        "S16",
        "with tiered: a session fenced in the marker",
        claim_session_fenced_writes_nothing,
    ),
    Case::hooks(
        "claim_clock_guard_forward",
        "S2",
        "with Redis and Postgres: TIME ahead of the client's by more than 2 s",
        claim_clock_guard_forward,
    ),
    Case::hooks(
        "claim_clock_guard_backward_vs_hwm",
        "S2",
        "with Redis and Postgres: TIME behind the marker's high-water mark",
        claim_clock_guard_backward_vs_hwm,
    ),
    Case::hooks(
        "claim_on_replica_refused",
        "S1",
        "with Redis and Postgres: a replica, a standby",
        claim_on_replica_refused,
    ),
    Case::hooks(
        "fence_increases_across_epoch_after_meta_loss",
        "S4",
        "with Redis: FLUSHALL between two grants",
        fence_increases_across_epoch_after_meta_loss,
    ),
    Case::hooks(
        "partition_count_mismatch_refuses_start",
        "S8",
        "with Redis and Postgres: another count in the metadata",
        partition_count_mismatch_refuses_start,
    ),
    Case::hooks(
        "claim_session_not_member_refused",
        "S16",
        "with tiered: a session that is no member of the view",
        claim_session_not_member_refused,
    ),
    Case::hooks(
        "confirmed_flag_bound_to_epoch",
        "S5",
        "with tiered: a read confirmed in one view used in the next",
        confirmed_flag_bound_to_epoch,
    ),
];

/// A memory store, its clock, and a key of it.
fn open() -> (World, Memory, StillClock) {
    let hand = StillClock::new();
    let memory = Memory::new(Bounds::default(), hand.clock());
    (on(&memory, &hand), memory, hand)
}

fn on(memory: &Memory, hand: &StillClock) -> World {
    World::new(Arc::new(memory.clone()), Some(Arc::new(hand.clone())))
}

fn session(who: Who) -> SessionId {
    SessionId([who as u8; 16])
}

fn refused(kind: Kind) -> Said {
    Said::StoreFailed(kind, Applied::No)
}

async fn claims(store: &dyn Store, world: &World, who: Who) -> Said {
    Driven::new(store, world.id, &world.policy(&claim(who).retry()), ask(who, 1)).run().await
}

async fn shown(store: &dyn Store, world: &World) -> Look {
    let read = store.get(world.id).await.unwrap_or_else(|error| panic!("reading: {error}"));
    Look::of(read.record.as_ref(), read.now)
}

fn reopened(memory: &Memory) -> Memory {
    memory.reopen(256).unwrap_or_else(|error| panic!("opening again: {error}"))
}

fn claim_epoch_mismatch_writes_nothing(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, _) = open();
        world.act(claim(Who::A).op()).await;
        memory.lose();
        let gone = Said::Unavailable { kind: Kind::Incarnation, abandon: false };
        assert_eq!(claims(&memory, &world, Who::B).await, gone);
        let (id, holder) = (world.id, world.holder(Who::A));
        assert_eq!(drive::renew(&memory, id, holder, Duration::from_secs(1)).await, refused(Kind::Incarnation));
        let outcome = Answer::First.outcome();
        let said = drive::complete(&memory, id, holder, outcome, Duration::from_secs(1)).await;
        assert_eq!(said, refused(Kind::Incarnation));
        assert_eq!(shown(&reopened(&memory), &world).await, nothing(), "a refused step wrote");
    })
}

fn claim_session_fenced_writes_nothing(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, hand) = open();
        world.act(claim(Who::A).op()).await;
        memory.end_session(session(Who::A));
        assert_eq!(shown(&memory, &world).await, look(Seen::Unknown), "S16: what it held is over at once");
        for op in [
            Op::Renew(Who::A, Span::Long),
            Op::Checkpoint(Who::A, 1, "one"),
            Op::Complete(Who::A, Answer::First, Span::Long),
            Op::Release(Who::A),
        ] {
            assert_eq!(world.act(op).await, refused(Kind::SessionOver), "{op:?} of a session that is over");
        }
        assert_eq!(shown(&memory, &world).await, look(Seen::Unknown));
        let over = Said::Unavailable { kind: Kind::SessionOver, abandon: false };
        let mut other = on(&memory, &hand);
        assert_eq!(other.act(claim(Who::A).op()).await, over);
        assert_eq!(shown(&memory, &other).await, nothing());

        // Nor may it take over from another.
        other.act(claim(Who::B).short().op()).await;
        other.act(Op::Pass).await;
        let seen = memory.get(other.id).await.ok().and_then(|read| read.record);
        let Some(seen) = seen else { panic!("the record is gone") };
        let taker = onceward_core::transition::Taker {
            claim_id: ask(Who::A, 1).claim_id,
            session: session(Who::A),
            phase: onceward_core::record::Phase::Dispatched,
        };
        let write = onceward_core::transition::take_over(&seen, taker, Duration::from_secs(1));
        let taken = memory.replace(other.id, &write).await;
        assert!(taken.is_err_and(|error| error.kind == Kind::SessionOver));
        // Others settle and take over what it held.
        assert_eq!(world.act(claim(Who::B).op()).await, Said::Unknown);
        assert_eq!(world.act(Op::NotExecuted).await, Said::Resolved);
        assert!(world.act(claim(Who::B).op()).await.is_done());
    })
}

fn claim_clock_guard_forward(_: Harness) -> Run {
    Box::pin(async {
        let (store_clock, reference) = (StillClock::new(), StillClock::new());
        let memory = Memory::with_reference(Bounds::default(), store_clock.clock(), Some(reference.clock()));
        let mut world = on(&memory, &store_clock);
        store_clock.turn(1_900_000);
        assert!(world.act(claim(Who::A).short().op()).await.is_done(), "less than 2 s apart is fine");
        store_clock.turn(30_000_000);
        let said = claims(&memory, &world, Who::B).await;
        assert!(matches!(said, Said::Unavailable { kind: Kind::ClockSuspect(_), .. }), "a jump ahead: {said:?}");
        // Once they agree again, the lease that seemed over never was.
        store_clock.turn(-30_000_000);
        assert_eq!(claims(&memory, &world, Who::B).await, Said::InFlight);
    })
}

fn claim_clock_guard_backward_vs_hwm(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, hand) = open();
        hand.turn(60_000_000);
        world.act(claim(Who::A).op()).await;
        hand.turn(-3_000_000);
        let other = on(&memory, &hand);
        let said = claims(&memory, &other, Who::B).await;
        assert!(matches!(said, Said::Unavailable { kind: Kind::ClockSuspect(_), .. }), "a jump back: {said:?}");
        hand.turn(2_000_000);
        assert_eq!(shown(&memory, &other).await, nothing(), "a refused step wrote");
        // Less than 2 s back: time stands still until the clock has caught up.
        assert_eq!(world.act(Op::Release(Who::A)).await, Said::Released);
        assert!(world.act(claim(Who::B).op()).await.is_done(), "its fence rises, as every grant's does");
    })
}

fn claim_on_replica_refused(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, hand) = open();
        world.act(claim(Who::A).op()).await;
        let other = on(&memory, &hand);
        memory.set_replica(true);
        let not_primary = Said::Unavailable { kind: Kind::NotPrimary, abandon: false };
        assert_eq!(claims(&memory, &other, Who::B).await, not_primary);
        // A replica knows the record, and must not say so: it may be behind.
        assert_eq!(claims(&memory, &world, Who::B).await, not_primary);
        assert!(memory.get(world.id).await.is_err_and(|error| error.kind == Kind::NotPrimary));
        memory.set_replica(false);
        assert_eq!(shown(&memory, &other).await, nothing());
        assert_eq!(claims(&memory, &world, Who::B).await, Said::InFlight);
    })
}

fn fence_increases_across_epoch_after_meta_loss(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, hand) = open();
        for _ in 0..100 {
            world.act(claim(Who::A).op()).await;
            world.act(Op::Release(Who::A)).await;
        }
        world.act(claim(Who::A).op()).await;
        let last: Fence = world.holder(Who::A).fence;
        memory.lose();
        // Far less than a restart or a failover takes; the clock is all that is left.
        hand.turn(1_000);
        world.through(Arc::new(reopened(&memory)));
        assert!(world.act(claim(Who::B).op()).await.is_done());
        assert!(world.holder(Who::B).fence > last, "S4: the fence fell with the store's contents");
    })
}

fn partition_count_mismatch_refuses_start(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, _) = open();
        world.act(claim(Who::A).op()).await;
        for count in [0, 1, 255, 257, 1024] {
            let opened = memory.reopen(count);
            assert!(opened.is_err_and(|error| matches!(error.kind, Kind::Newer(_))), "{count} partitions open");
        }
        assert_eq!(shown(&reopened(&memory), &world).await, look(Seen::InFlight));
    })
}

fn claim_session_not_member_refused(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, hand) = open();
        world.act(claim(Who::A).short().op()).await;
        memory.admit_only([session(Who::A)]);
        let over = Said::Unavailable { kind: Kind::SessionOver, abandon: false };
        let other = on(&memory, &hand);
        assert_eq!(claims(&memory, &other, Who::B).await, over);
        assert_eq!(shown(&memory, &other).await, nothing());
        world.act(Op::Pass).await;
        assert_eq!(claims(&memory, &world, Who::B).await, over, "nor by a takeover");
        assert_eq!(shown(&memory, &world).await, look(Seen::Unknown));
        assert_eq!(world.act(Op::Complete(Who::A, Answer::First, Span::Long)).await, Said::Completed);
    })
}

fn confirmed_flag_bound_to_epoch(_: Harness) -> Run {
    Box::pin(async {
        let (mut world, memory, hand) = open();
        world.act(claim(Who::A).short().op()).await;
        world.act(Op::Pass).await;
        let read = memory.get(world.id).await.ok().and_then(|read| read.record);
        let Some(read) = read else { panic!("the record is gone") };
        let expect = Expect::Seen(read.stored.fence, read.stored.revision);
        memory.lose();
        hand.turn(1);
        // On the handle of before, nothing; on one of after, what was read means no record of it.
        let removed = memory.remove(world.id, expect).await;
        assert!(removed.is_err_and(|error| error.kind == Kind::Incarnation && error.applied == Applied::No));
        let after = reopened(&memory);
        let removed = drive::remove_seen(&after, world.id, &read).await;
        assert!(matches!(removed, Ok(Write::Lost { record: None, .. })), "{removed:?}");
        world.through(Arc::new(after.clone()));
        world.act(claim(Who::B).op()).await;
        let removed = drive::remove_seen(&after, world.id, &read).await;
        assert!(matches!(removed, Ok(Write::Lost { record: Some(_), .. })), "{removed:?}");
        assert_eq!(shown(&after, &world).await, look(Seen::InFlight));
    })
}
