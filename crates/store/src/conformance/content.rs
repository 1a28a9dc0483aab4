//! What a record holds, and who may read it: the cases that rows cannot say.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease, Replacement},
    codec,
    key::{RecordId, Scope, Secret},
    outcome::Outcome,
    record::{Facts, Fence, Seen, State},
};

use super::{
    Case, Harness, Run,
    drive::{self, Driven, Said},
    script::{Answer, Look, Op, Span, Who, World, ask, claim, look, new_id},
};
use crate::{Applied, Filter, Insert, Kind, RULES_MAX, Usage, Write};

/// The default limit of a recorded body.
const RECORDED_BODY_BYTES: usize = 1024 * 1024;

pub(super) const CASES: &[Case] = &[
    Case::code("fence_no_precision_loss_above_2p53", "S4 S5", fence_no_precision_loss_above_2p53),
    Case::code("forget_erases_body_and_fp_everywhere", "S5 S11", forget_erases_body_and_fp_everywhere),
    Case::code("id_length_prefix_no_collision", "core S3", id_length_prefix_no_collision),
    Case::code("scope_isolation_same_key_two_tenants", "core S3", scope_isolation_same_key_two_tenants),
    Case::code("max_size_body_boundary", "S11", max_size_body_boundary),
    Case::code("get_is_pure", "S12", get_is_pure),
    Case::code("schema_version_forward_refused", "S7 S13", schema_version_forward_refused),
    Case::code("renewal_after_the_read_beats_the_takeover", "S5 S6", renewal_after_the_read_beats_the_takeover),
    Case::code("a_body_ends_before_its_fact", "core S11", a_body_ends_before_its_fact),
    Case::code("rules_are_found_under_their_policy", "S17", rules_are_found_under_their_policy),
    Case::code("claim_quota_per_tenant", "S18", claim_quota_per_tenant),
];

fn world(harness: &Harness) -> World {
    World::new(Arc::clone(&harness.store), harness.clock.clone())
}

async fn shown(world: &World) -> Look {
    let read = world.store.get(world.id).await.unwrap_or_else(|error| panic!("reading: {error}"));
    Look::of(read.record.as_ref(), read.now)
}

fn rules_are_found_under_their_policy(harness: Harness) -> Run {
    Box::pin(async move {
        let store = &harness.store;
        assert_eq!(store.rules(7).await.unwrap_or_else(|error| panic!("{error}")), None);
        let count = u32::try_from(RULES_MAX).unwrap_or(u32::MAX);
        for policy in (0..=count).chain([count]) {
            let kept = store.keep_rules(policy, &format!("rules {policy}")).await;
            kept.unwrap_or_else(|error| panic!("keeping {policy}: {error}"));
        }
        for policy in [1, 2, count - 1, count] {
            let found = store.rules(policy).await.unwrap_or_else(|error| panic!("{error}"));
            // Which is the oldest is told by the clock of files, so that of two at a time either may be gone.
            assert!(policy < 3 || found == Some(format!("rules {policy}")), "S17: {policy}: {found:?}");
        }
        let mut left = 0;
        for policy in 0..=count {
            left += usize::from(store.rules(policy).await.is_ok_and(|found| found.is_some()));
        }
        assert_eq!(left, RULES_MAX, "they are bounded");
    })
}

/// What quotas are held against: each verb counts, and only for its own tenant.
fn claim_quota_per_tenant(harness: Harness) -> Run {
    Box::pin(async move {
        let mut world = world(&harness);
        let store = Arc::clone(&world.store);
        world.act(claim(Who::A).op()).await;
        let mut facts = world.holder(Who::A).facts.clone();
        let own = facts.tenant.clone();
        let before = store.usage(&own);
        facts.tenant = "umbrella".into();
        let lease = Duration::from_secs(60);
        let mut fences = Vec::new();
        for count in 1..=3 {
            let id = new_id();
            let Ok(Insert::Inserted { fence, .. }) = store.insert(id, &facts, lease).await else { panic!("inserting") };
            assert!(matches!(store.insert(id, &facts, lease).await, Ok(Insert::Existing { .. })));
            assert_eq!(store.usage("umbrella").records, count, "S18: a repeat counts, or a claim does not");
            fences.push((id, fence));
        }
        let small = store.usage("umbrella").bytes;
        assert!(small >= 3 * 160, "S18: three records in {small} bytes");
        let [(first, first_fence), (second, second_fence), ..] = *fences else { panic!("three claims") };
        // Nothing that a store could compress.
        let mut body = vec![0; 10_000];
        getrandom::fill(&mut body).unwrap_or_else(|error| panic!("no randomness: {error}"));
        let outcome = Outcome { status: 200, body: body.into(), ..Outcome::default() };
        let settled = Facts { state: State::Completed, outcome: Some(outcome), ..facts.clone() };
        let write = Replacement {
            expect: Expect::Holder(first_fence),
            facts: settled,
            keep: Keep::For(Duration::from_secs(3600)),
            fence: FenceRule::Keep,
            lease: Lease::Over,
        };
        assert!(matches!(store.replace(first, &write).await, Ok(Write::Applied { .. })));
        let grown = store.usage("umbrella");
        assert_eq!(grown.records, 3, "S18: a settled record counts");
        let room = small + 10_000..=small + 11_000;
        assert!(room.contains(&grown.bytes), "S18: {} bytes are not those of the answer", grown.bytes);
        assert!(matches!(store.remove(second, Expect::Holder(second_fence)).await, Ok(Write::Applied { .. })));
        assert_eq!(store.usage("umbrella").records, 2, "S18: a removed record counts");
        assert_eq!(store.usage(&own), before, "S18: another tenant's records count");
        assert_eq!(store.usage("nobody"), Usage::default());
        if let Some(hand) = &harness.clock {
            hand.turn(3_601_000_000);
            // It ended within the hour: what waits for longer finds nothing.
            let early = store.sweep(100, Duration::from_secs(7_200)).await;
            assert!(
                matches!(early, Ok(crate::Swept { removed: 0, more: false })),
                "what may wait was swept: {early:?}"
            );
            let mut removed = 0;
            while let Ok(swept) = store.sweep(100, Duration::ZERO).await {
                removed += swept.removed;
                if !swept.more {
                    break;
                }
            }
            // Where the server itself removes what has ended, that is counted by the store's own count.
            let left = store.usage("umbrella").records;
            assert!(
                left == 1 || removed == 0,
                "S18: a swept record counts: {left} are left of 2, {removed} were swept"
            );
        }
    })
}

fn fence_no_precision_loss_above_2p53(harness: Harness) -> Run {
    Box::pin(async move {
        let Some(hand) = &harness.clock else { panic!("its clock cannot be moved past 2255: say so in `cannot`") };
        hand.turn(9_000_000_000_000_000);
        let mut world = world(&harness);
        world.act(claim(Who::A).op()).await;
        let fence = world.holder(Who::A).fence;
        assert!(fence.0 > 1 << 53, "the clock stands before 2255: {fence:?}");
        for near in [fence.0 - 1, fence.0 + 1] {
            let written = world.store.extend(world.id, Fence(near), Duration::from_secs(1)).await;
            assert!(matches!(written, Ok(Write::Lost { .. })), "S5: {near} passes for {fence:?}: {written:?}");
        }
        assert_eq!(world.act(Op::Renew(Who::A, Span::Long)).await, Said::Renewed { late: false });
        // Grants within one microsecond are told apart by one.
        for _ in 0..3 {
            assert_eq!(world.act(Op::Release(Who::A)).await, Said::Released);
            assert!(world.act(claim(Who::A).op()).await.is_done());
        }
        assert_eq!(world.act(Op::Complete(Who::A, Answer::First, Span::Long)).await, Said::Completed);
    })
}

fn forget_erases_body_and_fp_everywhere(harness: Harness) -> Run {
    const MARK: &[u8] = b"4111-1111-1111-1111";
    Box::pin(async move {
        let mut world = world(&harness);
        let policy = world.policy(&claim(Who::A));
        let mut asks = ask(Who::A, 0x5A);
        asks.principal_proof = Some([0x5B; 16]);
        let store = Arc::clone(&world.store);
        let mut driven = Driven::new(&*store, world.id, &policy, asks);
        driven.run().await;
        let mut holder = driven.holder();
        assert_eq!(drive::checkpoint(&*store, world.id, &mut holder, 1, MARK).await, Said::Stored);
        let outcome = Outcome { status: 200, body: Bytes::from_static(MARK), ..Outcome::default() };
        let keep = world.span(Span::Long);
        assert_eq!(drive::complete(&*store, world.id, &holder, outcome, keep).await, Said::Completed);

        assert_eq!(world.act(Op::Erase { force: false, keep: Span::Long }).await, Said::Forgotten);
        // `act` has checked that no fact of the request or the answer is left in the read.
        let page = store.scan(None, 1000, Filter { state: Some(Seen::Erased), ..Filter::default() }).await;
        let page = page.unwrap_or_else(|error| panic!("scanning: {error}"));
        let scanned = page.records.iter().find(|(id, _)| *id == world.id).map(|(_, record)| record);
        assert!(scanned.is_some_and(|record| record.facts.outcome.is_none()), "a scan shows {scanned:?}");
        if let Some(bytes) = harness.raw.as_ref().and_then(|raw| raw.read(&world.id)) {
            for gone in [MARK, &[0x5A; 8], &[0x5B; 8], &[0xF1; 8]] {
                assert!(!bytes.windows(gone.len()).any(|window| window == gone), "its bytes still hold {gone:?}");
            }
        }
        assert_eq!(world.act(claim(Who::B).op()).await, Said::Gone);
    })
}

fn id_length_prefix_no_collision(harness: Harness) -> Run {
    Box::pin(async move {
        // Parts whose plain joining would be the same.
        let ids = [id_of("a", "b", "ck"), id_of("ab", "", "ck"), id_of("a", "bc", "k"), id_of("", "ab", "ck")];
        every_one_is_granted(&harness, &ids).await;
    })
}

fn scope_isolation_same_key_two_tenants(harness: Harness) -> Run {
    Box::pin(async move {
        let ids = [id_of("acme", "anonymous", "key-1"), id_of("umbrella", "anonymous", "key-1")];
        every_one_is_granted(&harness, &ids).await;
        let mut world = world(&harness);
        world.id = id_of("other", "anonymous", "key-1");
        world.act(claim(Who::A).op()).await;
        world.act(Op::Complete(Who::A, Answer::First, Span::Long)).await;
        world.id = id_of("acme", "anonymous", "key-1");
        assert_eq!(shown(&world).await, look(Seen::InFlight), "one tenant's completion shows in another");
    })
}

async fn every_one_is_granted(harness: &Harness, ids: &[RecordId]) {
    for (id, who) in ids.iter().zip([Who::A, Who::B, Who::C, Who::A]) {
        let mut world = world(harness);
        world.id = *id;
        let said = world.act(claim(who).op()).await;
        assert!(matches!(said, Said::Granted { attempt: 1, again: false, .. }), "{id:?} is taken: {said:?}");
    }
}

fn id_of(tenant: &str, principal: &str, key: &str) -> RecordId {
    let scope = Scope { tenant, env: "live", principal, route: "create-payment" };
    RecordId::derive(&Secret::from_bytes([7; 32]), &scope, key)
}

fn max_size_body_boundary(harness: Harness) -> Run {
    Box::pin(async move {
        for size in [0, 1, RECORDED_BODY_BYTES - 1, RECORDED_BODY_BYTES, RECORDED_BODY_BYTES + 1] {
            let mut world = world(&harness);
            world.act(claim(Who::A).op()).await;
            // Not compressible to nothing: a store that compresses meets its large case as well.
            let body: Vec<u8> =
                (0_u64..).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()).take(size).collect();
            let outcome = Outcome { status: 200, body: body.into(), ..Outcome::default() };
            let (keep, id) = (world.span(Span::Long), world.id);
            let said = drive::complete(&*harness.store, id, world.holder(Who::A), outcome.clone(), keep).await;
            assert_eq!(said, Said::Completed, "{size} bytes");
            let read = harness.store.get(id).await.unwrap_or_else(|error| panic!("reading {size} bytes: {error}"));
            let kept = read.record.and_then(|record| record.facts.outcome);
            assert!(kept.as_ref() == Some(&outcome), "S11: {size} bytes came back as others");
            world.reread().await;
            assert_eq!(world.act(claim(Who::B).op()).await, Said::Replay(Answer::Other));
        }
        // Beyond the route's limit the fact is kept without its body.
        let mut world = world(&harness);
        world.act(claim(Who::A).op()).await;
        world.act(Op::Complete(Who::A, Answer::NotKept, Span::Long)).await;
        assert_eq!(world.act(claim(Who::B).op()).await, Said::NotKept);
    })
}

/// The fact of an answer outlives its body, before a sweep and after it.
fn a_body_ends_before_its_fact(harness: Harness) -> Run {
    Box::pin(async move {
        let mut world = world(&harness);
        let policy = world.policy(&claim(Who::A));
        let store = Arc::clone(&world.store);
        let mut driven = Driven::new(&*store, world.id, &policy, ask(Who::A, 1));
        driven.run().await;
        let now = store.get(world.id).await.unwrap_or_else(|error| panic!("reading: {error}")).now;
        let outcome = Outcome { body_until: now.plus(world.span(Span::Short)), ..Answer::Binary.outcome() };
        let (keep, holder) = (world.span(Span::Long), driven.holder());
        assert_eq!(drive::complete(&*store, world.id, &holder, outcome.clone(), keep).await, Said::Completed);
        let completed = outcome.clone();
        let whole = store.get(world.id).await.unwrap_or_else(|error| panic!("reading: {error}")).record;
        assert_eq!(whole.and_then(|record| record.facts.outcome), Some(outcome), "S11: whole until its end");
        world.act(Op::Pass).await;
        for _ in 0..2 {
            let mut driven = Driven::new(&*store, world.id, &policy, ask(Who::B, 1));
            assert_eq!(driven.run().await, Said::NotKept);
            let read = store.get(world.id).await.unwrap_or_else(|error| panic!("reading: {error}"));
            let outcome = read.record.and_then(|record| record.facts.outcome);
            assert!(outcome.is_some_and(|outcome| outcome.is_bare(read.now) && outcome.status == 299));
            store.sweep(1000, Duration::ZERO).await.unwrap_or_else(|error| panic!("sweeping: {error}"));
        }
        // A holder that repeats its completion, because its answer was lost, recognises it.
        assert_eq!(drive::complete(&*store, world.id, &holder, completed, keep).await, Said::Already);
    })
}

fn get_is_pure(harness: Harness) -> Run {
    Box::pin(async move {
        let mut world = world(&harness);
        let mut empty = harness.store.get(new_id()).await.unwrap_or_else(|error| panic!("reading: {error}"));
        assert!(empty.record.take().is_none());
        for op in [claim(Who::A).short().op(), Op::Pass, Op::Complete(Who::A, Answer::First, Span::Long)] {
            world.act(op).await;
            let bytes = || harness.raw.as_ref().and_then(|raw| raw.read(&world.id));
            let (before, count) = (bytes(), harness.store.stats().records);
            let first = harness.store.get(world.id).await.map(|read| read.record);
            for _ in 0..3 {
                let again = harness.store.get(world.id).await.map(|read| read.record);
                assert!(matches!((&first, &again), (Ok(a), Ok(b)) if a == b), "S12: {first:?}, then {again:?}");
                let page = harness.store.scan(None, 1000, Filter::default()).await;
                let shows = page.is_ok_and(|page| page.records.iter().any(|(id, _)| *id == world.id));
                assert!(shows, "a scan does not show what is there");
                drop(harness.store.watch(world.id));
            }
            assert_eq!(bytes(), before, "S12: reading changed the record's bytes");
            assert_eq!(harness.store.stats().records, count);
        }
    })
}

fn schema_version_forward_refused(harness: Harness) -> Run {
    Box::pin(async move {
        let Some(raw) = &harness.raw else { panic!("its bytes cannot be written from outside: say so in `cannot`") };
        let (version, flags) = (2, 4);
        for (at, later) in [(version, codec::VERSION + 1), (flags, 0x80)] {
            let mut world = world(&harness);
            world.act(claim(Who::A).op()).await;
            let bytes = raw.read(&world.id).unwrap_or_else(|| panic!("the record has no bytes"));
            let bytes = later_bytes(&bytes, at, later);
            raw.overwrite(&world.id, &bytes);

            let said = Driven::new(&*world.store, world.id, &world.policy(&claim(Who::B)), ask(Who::B, 1)).run().await;
            assert!(
                matches!(said, Said::Unavailable { kind: Kind::Newer(_), abandon: false }),
                "a record of a later version is met with {said:?}"
            );
            let read = harness.store.get(world.id).await;
            assert!(read.is_err_and(|error| matches!(error.kind, Kind::Newer(_)) && error.applied == Applied::No));
            assert_eq!(raw.read(&world.id).as_deref(), Some(&*bytes), "a record of a later version was written to");
        }
    })
}

/// A record's bytes with one byte of the header changed and the checksum made to match, as a later
/// version would write it.
fn later_bytes(bytes: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut later = bytes.to_vec();
    if let Some(byte) = later.get_mut(at) {
        *byte = value;
    }
    let sum_at = later.len().saturating_sub(8);
    let covered = [later.get(..codec::STORED.start), later.get(codec::STORED.end..sum_at)];
    let sum = xxhash_rust::xxh3::xxh3_64(&covered.into_iter().flatten().flatten().copied().collect::<Vec<u8>>());
    later.truncate(sum_at);
    later.extend_from_slice(&sum.to_be_bytes());
    later
}

fn renewal_after_the_read_beats_the_takeover(harness: Harness) -> Run {
    Box::pin(async move {
        let mut world = world(&harness);
        world.act(claim(Who::A).short().op()).await;
        world.act(Op::Pass).await;
        let policy = world.policy(&claim(Who::B).retry());
        let store = Arc::clone(&world.store);
        let mut taker = Driven::new(&*store, world.id, &policy, ask(Who::B, 1));
        taker.step().await;
        assert!(taker.wants_store(), "it has read that the lease is over, and wants to take over");
        // The fence is the same before and after: only the revision tells the renewal.
        assert_eq!(world.act(Op::Renew(Who::A, Span::Long)).await, Said::Renewed { late: true });
        assert_eq!(taker.run().await, Said::InFlight, "S5: a takeover wins over a renewal that it did not see");
        assert_eq!(shown(&world).await, look(Seen::InFlight));
        assert_eq!(world.act(Op::Complete(Who::A, Answer::First, Span::Long)).await, Said::Completed);
    })
}
