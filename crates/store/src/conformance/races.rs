//! The cases in which two act at once. Each round is another key; the seed of the case decides
//! who hesitates, and is printed where one fails.

use std::sync::Arc;

use onceward_core::{
    cas::Expect,
    key::RecordId,
    record::{Fence, Seen},
    transition::Resolution,
};
use tokio::sync::Barrier;

use super::{
    Case, Harness, Run,
    drive::{self, Driven, Holder, Said},
    script::{Answer, Look, Op, Span, Who, World, ask, claim, look},
};
use crate::{Store, Write};

/// How many claim at once.
const RACERS: u64 = 8;

pub(super) const CASES: &[Case] = &[
    Case::code("claim_race_n_single_winner", "S1 S3", claim_race_n_single_winner),
    Case::code("complete_body_visible_only_with_state", "S1 S9", complete_body_visible_only_with_state),
    Case::code("complete_race_with_takeover_exactly_one", "S1 S5", complete_race_with_takeover_exactly_one),
    Case::code("complete_fenced_variant_after_lock_wait", "S1 S7", complete_fenced_variant_after_lock_wait),
    Case::code("resolve_races_late_complete_one_wins", "S1 S5", resolve_races_late_complete_one_wins),
];

/// Who hesitates how often, drawn from a seed.
#[derive(Clone, Copy)]
struct Draw(u64);

impl Draw {
    /// From `ONCEWARD_SEED`, else anew. Printed, which a test shows where it fails.
    fn new() -> Self {
        let given = std::env::var("ONCEWARD_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap_or_else(|error| panic!("no randomness: {error}"));
            u64::from_le_bytes(bytes)
        });
        println!("seed {seed}; repeat with ONCEWARD_SEED={seed}");
        Self(seed)
    }

    /// The start of one racer of one round, after all have come and it has hesitated.
    async fn start(self, barrier: &Barrier, round: u64, racer: u64) {
        barrier.wait().await;
        let mut bytes = [0; 24];
        for (slot, part) in bytes.chunks_exact_mut(8).zip([self.0, round, racer]) {
            slot.copy_from_slice(&part.to_le_bytes());
        }
        for _ in 0..xxhash_rust::xxh3::xxh3_64(&bytes) % 4 {
            tokio::task::yield_now().await;
        }
    }
}

async fn both<A, B>(a: A, b: B) -> (Said, Said)
where
    A: Future<Output = Said> + Send + 'static,
    B: Future<Output = Said> + Send + 'static,
{
    let (a, b) = (tokio::spawn(a), tokio::spawn(b));
    let said = |joined: Result<Said, tokio::task::JoinError>| joined.unwrap_or_else(|error| panic!("a racer: {error}"));
    (said(a.await), said(b.await))
}

/// Keys whose holder's lease is over, all made before the one wait that this takes.
async fn overdue(harness: &Harness, rounds: u64) -> Vec<World> {
    let mut worlds = Vec::new();
    for _ in 0..rounds {
        let mut world = World::new(Arc::clone(&harness.store), harness.clock.clone());
        assert!(world.act(claim(Who::A).short().op()).await.is_done());
        worlds.push(world);
    }
    let mut last = World::new(Arc::clone(&harness.store), harness.clock.clone());
    last.act(Op::Pass).await;
    worlds
}

async fn shown(store: &dyn Store, id: RecordId) -> Look {
    let read = store.get(id).await.unwrap_or_else(|error| panic!("reading: {error}"));
    Look::of(read.record.as_ref(), read.now)
}

fn claim_race_n_single_winner(harness: Harness) -> Run {
    Box::pin(async move {
        let draw = Draw::new();
        let world = World::new(Arc::clone(&harness.store), None);
        let policy = world.policy(&claim(Who::A));
        for round in 0..harness.rounds {
            let id = super::script::new_id();
            let barrier = Arc::new(Barrier::new(RACERS as usize));
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let (store, policy, barrier) =
                        (Arc::clone(&harness.store), Arc::clone(&policy), Arc::clone(&barrier));
                    let mut ask = ask(Who::A, 1);
                    ask.claim_id.0 = [racer as u8; 16];
                    tokio::spawn(async move {
                        draw.start(&barrier, round, racer).await;
                        Driven::new(&*store, id, &policy, ask).run().await
                    })
                })
                .collect();
            let mut granted = 0;
            for racer in racers {
                match racer.await.unwrap_or_else(|error| panic!("a racer: {error}")) {
                    Said::Granted { attempt: 1, again: false, .. } => granted += 1,
                    Said::InFlight => {}
                    other => panic!("round {round}: a racer was told {other:?}"),
                }
            }
            assert_eq!(granted, 1, "S1: round {round} had {granted} winners");
        }
    })
}

fn complete_body_visible_only_with_state(harness: Harness) -> Run {
    Box::pin(async move {
        let draw = Draw::new();
        for round in 0..harness.rounds.min(100) {
            let mut world = World::new(Arc::clone(&harness.store), harness.clock.clone());
            world.act(claim(Who::A).op()).await;
            let (id, keep) = (world.id, world.span(Span::Long));
            let holder = world.holder(Who::A).clone();
            let barrier = Arc::new(Barrier::new(2));
            let (writes, reads) = ((Arc::clone(&harness.store), Arc::clone(&barrier)), Arc::clone(&harness.store));
            let write = async move {
                draw.start(&writes.1, round, 0).await;
                drive::complete(&*writes.0, id, &holder, Answer::Binary.outcome(), keep).await
            };
            let read = async move {
                draw.start(&barrier, round, 1).await;
                loop {
                    let seen = shown(&*reads, id).await;
                    if seen == look(Seen::Completed).answer(Answer::Binary) {
                        return Said::Looked;
                    }
                    assert_eq!(seen, look(Seen::InFlight), "S1: round {round}: half a completion is visible");
                    tokio::task::yield_now().await;
                }
            };
            assert_eq!(both(write, read).await, (Said::Completed, Said::Looked));
        }
    })
}

/// A late completion and a takeover at once.
async fn complete_and_take_over(draw: Draw, round: u64, world: &mut World) -> (Said, Said) {
    let holder = world.holder(Who::A).clone();
    let (id, keep) = (world.id, world.span(Span::Long));
    let policy = world.policy(&claim(Who::B).retry());
    let barrier = Arc::new(Barrier::new(2));
    let (first, second) = ((Arc::clone(&world.store), Arc::clone(&barrier)), (Arc::clone(&world.store), barrier));
    let complete = async move {
        draw.start(&first.1, round, 0).await;
        drive::complete(&*first.0, id, &holder, Answer::First.outcome(), keep).await
    };
    let take_over = async move {
        draw.start(&second.1, round, 1).await;
        Driven::new(&*second.0, id, &policy, ask(Who::B, 1)).run().await
    };
    both(complete, take_over).await
}

fn complete_race_with_takeover_exactly_one(harness: Harness) -> Run {
    Box::pin(async move {
        let draw = Draw::new();
        for (round, mut world) in (0..).zip(overdue(&harness, harness.rounds).await) {
            let said = complete_and_take_over(draw, round, &mut world).await;
            let shown = shown(&*harness.store, world.id).await;
            match said {
                (Said::Completed, Said::Replay(Answer::First)) => {
                    assert_eq!(shown, look(Seen::Completed).answer(Answer::First), "round {round}");
                }
                (Said::Fenced, Said::Granted { attempt: 2, ambiguous: true, .. }) => {
                    assert_eq!(shown, look(Seen::InFlight).attempt(2).ambiguous(), "round {round}");
                }
                other => panic!("S5: round {round} ended with {other:?}"),
            }
        }
    })
}

fn complete_fenced_variant_after_lock_wait(harness: Harness) -> Run {
    Box::pin(async move {
        let draw = Draw::new();
        for (round, mut world) in (0..).zip(overdue(&harness, harness.rounds).await) {
            let holder: Holder = world.holder(Who::A).clone();
            let (id, policy) = (world.id, world.policy(&claim(Who::B).retry()));
            let barrier = Arc::new(Barrier::new(2));
            let (first, second) =
                ((Arc::clone(&world.store), Arc::clone(&barrier)), (Arc::clone(&world.store), barrier));
            let take_over = async move {
                draw.start(&first.1, round, 0).await;
                Driven::new(&*first.0, id, &policy, ask(Who::B, 1)).run().await
            };
            // Tries to remove what nobody wrote, so that it is told what is there at every point of the
            // takeover's way: always a fence and facts of one write, never that nothing is there.
            let stale = async move {
                draw.start(&second.1, round, 1).await;
                loop {
                    match second.0.remove(id, Expect::Holder(Fence(1))).await {
                        Ok(Write::Lost { record: Some(there), .. }) => {
                            let taken = there.stored.fence > holder.fence;
                            let attempt = if taken { 2 } else { 1 };
                            assert_eq!(there.facts.attempt, attempt, "S7: a fence and facts of different writes");
                            if taken {
                                return Said::Fenced;
                            }
                        }
                        other => panic!("S7: round {round}: a stale holder is told {other:?}"),
                    }
                    tokio::task::yield_now().await;
                }
            };
            let said = both(take_over, stale).await;
            assert!(matches!(said, (Said::Granted { attempt: 2, .. }, Said::Fenced)), "round {round}: {said:?}");
        }
    })
}

fn resolve_races_late_complete_one_wins(harness: Harness) -> Run {
    Box::pin(async move {
        let draw = Draw::new();
        for (round, mut world) in (0..).zip(overdue(&harness, harness.rounds).await) {
            let holder = world.holder(Who::A).clone();
            let (id, keep) = (world.id, world.span(Span::Long));
            let barrier = Arc::new(Barrier::new(2));
            let (first, second) =
                ((Arc::clone(&world.store), Arc::clone(&barrier)), (Arc::clone(&world.store), barrier));
            let complete = async move {
                draw.start(&first.1, round, 0).await;
                drive::complete(&*first.0, id, &holder, Answer::First.outcome(), keep).await
            };
            let resolve = async move {
                draw.start(&second.1, round, 1).await;
                drive::resolve(&*second.0, id, Resolution::Executed(Answer::Second.outcome()), keep).await
            };
            let answer = match both(complete, resolve).await {
                (Said::Completed, Said::Lost | Said::NotUnknown) => Answer::First,
                (Said::Fenced, Said::Resolved) => Answer::Second,
                other => panic!("S5: round {round} ended with {other:?}"),
            };
            assert_eq!(shown(&*harness.store, world.id).await, look(Seen::Completed).answer(answer), "round {round}");
        }
    })
}
