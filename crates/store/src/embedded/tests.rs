//! What the embedded store adds to the contract: durability, restarts, and giving space back.

use std::sync::atomic::AtomicU64;

use onceward_core::cas::{FenceRule, Keep, Lease};
use onceward_core::outcome::Outcome;
use onceward_core::record::{ClaimId, Phase, Revision, Seen, SessionId};

use super::*;
use crate::log::forgetful::{Crash, Forgetful, Random};
use crate::memory::{self, Memory};
use crate::{Applied, Insert, Write};

const SEGMENT: u32 = 16 << 10;
const SECOND: u64 = 1_000_000;
const START: u64 = 1_700_000_000 * SECOND;

fn id(key: u64) -> RecordId {
    let mut id = [0; 32];
    let mut random = Random(key);
    for part in id.chunks_mut(8) {
        part.copy_from_slice(&random.next().to_le_bytes());
    }
    RecordId(id)
}

fn facts(claim: u64) -> Facts {
    let mut claim_id = [0; 16];
    claim_id[..8].copy_from_slice(&claim.to_le_bytes());
    Facts {
        state: RecordState::InFlight,
        phase: Phase::Dispatched,
        ambiguous: false,
        attempt: 1,
        claim_id: ClaimId(claim_id),
        session: SessionId([7; 16]),
        principal_proof: None,
        fingerprint_policy: 1,
        fingerprint: [claim as u8; 32],
        fields: Vec::new(),
        route: "create-payment".into(),
        tenant: tenant(claim).into(),
        env: "test".into(),
        claimed_at: Micros(1),
        settled_at: Micros::ZERO,
        not_before: Micros::ZERO,
        outcome: None,
        checkpoint: None,
        reason: String::new(),
    }
}

fn tenant(claim: u64) -> &'static str {
    ["default", "acme", ""][claim as usize % 3]
}

fn body(claim: u64) -> Vec<u8> {
    let mut random = Random(claim);
    (0..random.below(80)).flat_map(|_| random.next().to_le_bytes()).collect()
}

fn completed(claim: u64) -> Facts {
    let outcome = Outcome { status: 201, body: body(claim).into(), ..Outcome::default() };
    Facts { state: RecordState::Completed, outcome: Some(outcome), ..facts(claim) }
}

fn completion(claim: u64, fence: Fence, keep: Duration) -> Replacement {
    let expect = Expect::Holder(fence);
    Replacement { expect, facts: completed(claim), fence: FenceRule::Keep, lease: Lease::Over, keep: Keep::For(keep) }
}

const LEASE: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(86_400);

struct Bench {
    store: Embedded,
    disk: Arc<Forgetful>,
    time: Arc<AtomicU64>,
}

async fn open(disk: &Arc<Forgetful>, time: &Arc<AtomicU64>) -> Result<Bench, OpenError> {
    open_sized(disk, time, SEGMENT, 0).await
}

async fn open_sized(
    disk: &Arc<Forgetful>,
    time: &Arc<AtomicU64>,
    segment_bytes: u32,
    reserve_bytes: u32,
) -> Result<Bench, OpenError> {
    let options = Options {
        log: log::Options { segment_bytes, reserve_bytes, pause: Duration::ZERO, ..log::Options::default() },
        records_max: 10_000,
        clock: Clock::Manual(Arc::clone(time)),
    };
    let store = Embedded::open_on(Arc::clone(disk) as Arc<dyn Disk>, options, None, KeptRules::default()).await?;
    Ok(Bench { store, disk: Arc::clone(disk), time: Arc::clone(time) })
}

async fn fresh() -> Bench {
    open(&Forgetful::new(1), &Arc::new(AtomicU64::new(START))).await.unwrap()
}

impl Bench {
    async fn insert(&self, key: u64) -> Result<Fence, StoreError> {
        match self.store.insert(id(key), &facts(key), LEASE).await? {
            Insert::Inserted { fence, .. } => Ok(fence),
            other @ Insert::Existing { .. } => panic!("key {key} is there: {other:?}"),
        }
    }

    async fn complete(&self, key: u64, fence: Fence, keep: Duration) -> Result<(), StoreError> {
        match self.store.replace(id(key), &completion(key, fence, keep)).await? {
            Write::Applied { .. } => Ok(()),
            lost @ Write::Lost { .. } => panic!("key {key}: {lost:?}"),
        }
    }

    async fn get(&self, key: u64) -> Option<Record> {
        self.store.get(id(key)).await.unwrap().record
    }

    fn pass(&self, seconds: u64) {
        self.time.fetch_add(seconds * SECOND, Ordering::SeqCst);
    }

    /// The same folder after the process was killed, or the power failed.
    async fn restart(self, crash: Crash) -> Self {
        let disk = self.disk.after(crash);
        open(&disk, &self.time).await.unwrap()
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_and_what_was_open_comes_back_with_its_lease_over() {
    for crash in [Crash::Process, Crash::Power] {
        let bench = fresh().await;
        let done = bench.insert(1).await.unwrap();
        bench.complete(1, done, DAY).await.unwrap();
        let completed = bench.get(1).await.unwrap();
        let open = bench.insert(2).await.unwrap();
        bench.store.extend(id(2), open, DAY).await.unwrap();
        let before = bench.get(2).await.unwrap();
        let gone = bench.insert(3).await.unwrap();
        bench.store.remove(id(3), Expect::Holder(gone)).await.unwrap();

        let bench = bench.restart(crash).await;
        assert_eq!(bench.get(1).await.unwrap(), completed);
        let after = bench.get(2).await.unwrap();
        assert_eq!((after.stored.fence, after.seen_at(Micros(START))), (open, Seen::Unknown));
        assert!(after.stored.revision > before.stored.revision, "what was seen before the restart does not come again");
        assert_eq!(bench.get(3).await, None);
        bench.complete(2, open, DAY).await.unwrap();
        assert!(bench.insert(3).await.unwrap() > gone);
    }
}

#[tokio::test]
async fn fences_rise_over_removal_restart_and_a_clock_set_back() {
    let mut bench = fresh().await;
    let mut last = Fence(0);
    for round in 0..5 {
        let fence = bench.insert(1).await.unwrap();
        assert!(fence > last, "round {round}");
        last = fence;
        bench.store.remove(id(1), Expect::Holder(fence)).await.unwrap();
        bench.time.fetch_sub(3600 * SECOND, Ordering::SeqCst);
        bench = bench.restart(Crash::Power).await;
    }
}

#[tokio::test]
async fn one_of_many_inserts_of_a_key_wins_and_the_others_see_its_record() {
    let bench = fresh().await;
    let tasks: Vec<_> = (0..64)
        .map(|claim| {
            let store = bench.store.clone();
            tokio::spawn(async move { store.insert(id(1), &facts(claim), LEASE).await.unwrap() })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += usize::from(matches!(task.await.unwrap(), Insert::Inserted { .. }));
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn it_answers_as_the_reference_does() {
    for seed in 0..40 {
        let bench = fresh().await;
        let memory = Memory::new(memory::Bounds::default(), memory::Clock::Manual(Arc::clone(&bench.time)));
        let stores: [&dyn Store; 2] = [&bench.store, &memory];
        let mut random = Random(seed);
        for step in 0..120 {
            let key = random.next() % 4;
            let what = random.below(9);
            let span = Duration::from_secs(1 + random.next() % 50);
            let (stale, claim) = (random.below(4) == 0, random.next() % 100);
            let mut answers = Vec::new();
            for store in stores {
                let there = store.get(id(key)).await.unwrap().record;
                let stored = there.as_ref().map(|record| record.stored).unwrap_or_default();
                let fence = Fence(stored.fence.0 - u64::from(stale && stored.fence.0 > 0));
                let seen = Expect::Seen(fence, stored.revision);
                let write =
                    |expect, facts, fence, keep| Replacement { expect, facts, fence, lease: Lease::For(span), keep };
                let shape = match what {
                    0..=2 => match store.insert(id(key), &facts(claim), span).await.unwrap() {
                        Insert::Inserted { now, .. } => format!("inserted {now:?}"),
                        Insert::Existing { record, now } => format!("existing {now:?} {:?}", record.facts),
                    },
                    3 => shape(store.replace(id(key), &completion(claim, fence, span)).await.unwrap()),
                    4 => shape(
                        store.replace(id(key), &write(seen, facts(claim), FenceRule::Next, Keep::Open)).await.unwrap(),
                    ),
                    5 => shape(store.extend(id(key), fence, span).await.unwrap()),
                    6 => shape(store.remove(id(key), Expect::Holder(fence)).await.unwrap()),
                    7 => shape(store.remove(id(key), seen).await.unwrap()),
                    _ => {
                        let page = store.scan(None, 10, Filter::default()).await.unwrap();
                        let all: Vec<_> = page.records.iter().map(|(id, record)| (id, &record.facts)).collect();
                        format!("{all:?} {:?}", page.next)
                    }
                };
                let record = store.get(id(key)).await.unwrap().record;
                let record = record.map(|record| (record.facts, record.stored.revision, record.stored.keep_until));
                while store.sweep(100, Duration::ZERO).await.unwrap().more {}
                let (tenants, all) = (["default", "acme", ""], store.stats().records);
                let usage = tenants.map(|tenant| store.usage(tenant).records);
                assert_eq!(usage.iter().sum::<u64>(), all, "S18: seed {seed}, step {step}, after {shape}");
                answers.push(format!("{shape} then {record:?}"));
            }
            assert_eq!(answers[0], answers[1], "seed {seed}, step {step}");
            bench.pass(random.next() % 9);
        }
    }
}

fn shape(write: Write) -> String {
    match write {
        Write::Applied { revision: Revision(revision), now, .. } => format!("applied {revision} {now:?}"),
        Write::Lost { record, now } => format!("lost {now:?} {:?}", record.map(|record| record.facts)),
    }
}

#[tokio::test]
async fn a_damaged_record_is_an_error_for_every_verb_and_never_an_absence() {
    let bench = fresh().await;
    let fence = bench.insert(1).await.unwrap();
    bench.complete(1, fence, DAY).await.unwrap();
    let slot = bench.store.inner.state.index.of(&half(&id(1))).get(&half(&id(1))).unwrap();
    bench.disk.damage("segment-00000", slot.position().offset as usize + 100, 1);
    let write = completion(1, fence, DAY);
    let errors = [
        bench.store.get(id(1)).await.unwrap_err(),
        bench.store.insert(id(1), &facts(1), LEASE).await.unwrap_err(),
        bench.store.replace(id(1), &write).await.unwrap_err(),
        bench.store.remove(id(1), Expect::Holder(fence)).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error.kind, Kind::Damaged(_)), "{error}");
        assert_eq!(error.applied, Applied::No);
    }
}

#[tokio::test]
async fn a_failed_sync_makes_the_write_unknown_and_the_store_goes_on() {
    for seed in 0..20 {
        let bench = open(&Forgetful::new(seed), &Arc::new(AtomicU64::new(START))).await.unwrap();
        bench.insert(1).await.unwrap();
        // The keeper has made its spare by then: nothing else writes.
        while bench.store.log_stats().spares == 0 {
            tokio::task::yield_now().await;
        }
        bench.disk.fail_after(0, 5);
        let error = bench.insert(2).await.unwrap_err();
        assert_eq!((error.applied, bench.get(2).await), (Applied::Unknown, None));
        let fence = bench.insert(3).await.unwrap();
        bench.complete(3, fence, DAY).await.unwrap();
        let bench = bench.restart(Crash::Power).await;
        assert_eq!(bench.get(2).await, None, "seed {seed}: it must not come back");
        assert!(bench.get(1).await.is_some() && bench.get(3).await.is_some());
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_its_write_to_finish() {
    let bench = fresh().await;
    {
        let facts = facts(1);
        let mut write = bench.store.insert(id(1), &facts, LEASE);
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(write.as_mut().poll(context))).await;
        assert!(polled.is_pending());
    }
    let watched = bench.store.insert(id(1), &facts(2), LEASE).await.unwrap();
    assert!(matches!(watched, Insert::Existing { .. }));
}

#[tokio::test]
async fn ended_records_leave_segments_are_used_again_and_the_few_that_live_on_are_kept() {
    let bench = fresh().await;
    let mut lasting = Vec::new();
    for key in 0..1500 {
        let fence = bench.insert(key).await.unwrap();
        if key % 50 == 0 {
            lasting.push(key);
        }
        if key % 100 != 0 {
            bench.complete(key, fence, if key % 50 == 0 { DAY } else { Duration::from_secs(60) }).await.unwrap();
        }
        if key % 25 == 0 {
            bench.pass(20);
            while bench.store.sweep(100, Duration::ZERO).await.unwrap().more {}
        }
    }
    bench.pass(100);
    let mut segments = usize::MAX;
    for round in 0.. {
        while bench.store.sweep(100, Duration::ZERO).await.unwrap().more {}
        // A write lets what was queued to be moved become durable.
        let fence = bench.insert(9_000 + round).await.unwrap();
        bench.store.remove(id(9_000 + round), Expect::Holder(fence)).await.unwrap();
        segments = bench.store.inner.log.segments().len();
        if segments <= 3 || round == 500 {
            break;
        }
    }
    assert!(segments <= 3, "{segments} segments are left");
    assert_eq!(bench.store.stats().records, lasting.len() as u64);
    let slots = bench.disk.names().iter().filter(|name| name.starts_with("segment-")).count();
    assert!(slots < 80, "{slots} files");
    let bench = bench.restart(Crash::Power).await;
    assert_eq!(bench.store.stats().records, lasting.len() as u64);
    for key in lasting {
        let record = bench.get(key).await.unwrap();
        assert_eq!(record.facts, if key % 100 == 0 { facts(key) } else { completed(key) });
    }
    assert_eq!(bench.store.stats().open, 15);
}

#[tokio::test]
async fn ended_records_and_the_log_wait_where_a_sweep_says_so_and_no_longer_than_it_says() {
    let bench = fresh().await;
    let mut kept = 0;
    for key in 0..1500 {
        let fence = bench.insert(key).await.unwrap();
        let lives_on = key % 50 == 0;
        kept += u64::from(lives_on);
        bench.complete(key, fence, if lives_on { 10 * DAY } else { Duration::from_secs(60) }).await.unwrap();
        if key % 25 == 0 {
            bench.store.sweep(10_000, DAY).await.unwrap();
        }
    }
    bench.pass(100);
    let long = bench.store.inner.log.segments().len();
    assert_eq!(bench.store.sweep(10_000, DAY).await.unwrap(), Swept::default(), "they ended a minute ago");
    assert_eq!((bench.store.stats().records, bench.get(1).await), (1500, None), "gone for everybody all the same");
    bench.pass(24 * 60 * 60 - 30);
    while bench.store.sweep(10_000, DAY).await.unwrap().more {}
    assert_eq!(bench.store.stats().records, kept, "they have waited for a day");
    // What is copied on becomes durable with a write.
    let copy = async |waits| {
        for round in 0..100 {
            bench.store.sweep(10_000, waits).await.unwrap();
            let fence = bench.insert(9_000 + round).await.unwrap();
            bench.store.remove(id(9_000 + round), Expect::Holder(fence)).await.unwrap();
        }
        bench.store.inner.log.segments().len()
    };
    let waiting = copy(DAY).await;
    assert!(waiting > 6 && waiting <= 12 && long > 12, "as long as may be, and no longer: {long}, then {waiting}");
    let now = copy(Duration::ZERO).await;
    assert!(now <= 6, "{waiting} segments became {now}");
}

#[tokio::test]
async fn a_record_that_is_copied_on_leaves_a_body_that_has_ended_behind() {
    let bench = fresh().await;
    let now = bench.store.get(id(0)).await.unwrap().now;
    let mut kept = Vec::new();
    for (key, span) in [(1, Duration::from_secs(60)), (2, DAY)] {
        let fence = bench.insert(key).await.unwrap();
        let mut write = completion(key, fence, DAY);
        let outcome = Outcome { body: vec![7; 300].into(), body_until: now.plus(span), ..Outcome::default() };
        write.facts.outcome = Some(outcome.clone());
        assert!(matches!(bench.store.replace(id(key), &write).await, Ok(Write::Applied { .. })));
        kept.push(outcome);
    }
    let before = bench.store.inner.state.index.of(&half(&id(1))).get(&half(&id(1))).unwrap();
    bench.pass(61);
    for key in 100.. {
        assert!(key < 3000, "it is not copied on");
        let fence = bench.insert(key).await.unwrap();
        bench.store.remove(id(key), Expect::Holder(fence)).await.unwrap();
        bench.store.sweep(100, Duration::ZERO).await.unwrap();
        let slot = bench.store.inner.state.index.of(&half(&id(1))).get(&half(&id(1))).unwrap();
        if slot.segment != before.segment {
            assert!(slot.len() + 300 <= before.len());
            break;
        }
    }
    let bench = bench.restart(Crash::Power).await;
    let outcome = async |key| bench.get(key).await.unwrap().facts.outcome.unwrap();
    assert_eq!((outcome(1).await, outcome(2).await), (kept[0].clone().bare(), kept[1].clone()));
}

#[tokio::test]
async fn a_segment_whose_batches_are_durable_but_not_applied_is_not_dropped() {
    let bench = fresh().await;
    // Large enough that eight fill a segment, and fewer than may wait to be applied.
    let facts = Facts { reason: "r".repeat(1000), ..facts(1) };
    let mut writes = Vec::new();
    // Nothing here gives way to the task that applies batches.
    for key in 0..12 {
        let durable = bench.store.log_stats().frames;
        let mut write = bench.store.insert(id(key), &facts, LEASE);
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(write.as_mut().poll(context))).await;
        assert!(polled.is_pending());
        writes.push(write);
        while bench.store.log_stats().frames == durable {
            std::thread::yield_now();
        }
    }
    assert!(bench.store.inner.log.segments().len() > 1);
    bench.store.inner.tidy_step();
    let count = writes.len() as u64;
    for write in writes {
        assert!(matches!(write.await.unwrap(), Insert::Inserted { .. }));
    }
    for key in 0..count {
        assert_eq!(bench.get(key).await.unwrap().facts, facts);
    }
    let bench = bench.restart(Crash::Power).await;
    assert_eq!(bench.store.stats().records, count);
}

#[tokio::test]
async fn a_full_disk_refuses_new_claims_and_still_takes_completions() {
    let time = Arc::new(AtomicU64::new(START));
    let bench = open_sized(&Forgetful::new(1), &time, 64 << 10, 16 << 10).await.unwrap();
    let mut held = Vec::new();
    bench.disk.set_space(bench.disk.used() + (64 << 10));
    let error = loop {
        match bench.insert(held.len() as u64).await {
            Ok(fence) => held.push(fence),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind, error.applied), (Kind::Full, Applied::No));
    assert!(!bench.store.stats().accepts_claims && !bench.store.stats().concerns.is_empty());
    for (key, fence) in held.iter().enumerate().take(5) {
        bench.complete(key as u64, *fence, DAY).await.unwrap();
    }
}

#[tokio::test]
async fn records_come_in_the_order_of_their_ids_page_by_page() {
    let bench = fresh().await;
    let mut expected: Vec<RecordId> = (0..300).map(id).collect();
    expected.sort_unstable();
    for key in 0..300 {
        let fence = bench.insert(key).await.unwrap();
        if key % 3 > 0 {
            bench.complete(key, fence, DAY).await.unwrap();
        }
    }
    for (filter, count) in [(None, 300), (Some(Seen::InFlight), 100), (Some(Seen::Completed), 200)] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let filter = Filter { state: filter, ..Filter::default() };
            let page = bench.store.scan(after, 7, filter).await.unwrap();
            found.extend(page.records.iter().map(|(id, _)| *id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found.len(), count);
        assert!(found.is_sorted() && found.iter().all(|id| expected.contains(id)));
    }
}

#[tokio::test]
async fn everything_answered_survives_a_kill_at_any_step() {
    let whole = Forgetful::new(3);
    let time = Arc::new(AtomicU64::new(START));
    let bench = open(&whole, &time).await.unwrap();
    script(&bench).await;
    let steps = whole.steps();
    assert!(bench.store.inner.log.segments().len() > 1, "the script fills a segment");
    drop(bench);
    for stop in (0..steps).step_by(2) {
        for crash in [Crash::Process, Crash::Power] {
            let disk = Forgetful::new(stop);
            disk.stop_after(stop);
            let time = Arc::new(AtomicU64::new(START));
            let Ok(bench) = open(&disk, &time).await else { continue };
            let answered = script(&bench).await;
            drop(bench);
            let bench = open(&disk.after(crash), &time).await.unwrap_or_else(|error| panic!("step {stop}: {error}"));
            for (key, state) in answered {
                let found = bench.get(key).await.map(|record| record.facts.state);
                assert_eq!(found, state, "key {key}, stopped at step {stop} of {steps}, {crash:?}\n{}", disk.trace());
            }
        }
    }
}

/// Claims, completes and removes until something fails; what was answered for each key, but for the one that failed.
async fn script(bench: &Bench) -> Vec<(u64, Option<RecordState>)> {
    let mut answered = Vec::new();
    for key in 0..60 {
        let Ok(fence) = bench.insert(key).await else { return answered };
        if key % 3 == 0 {
            answered.push((key, Some(RecordState::InFlight)));
        } else if key % 3 == 1 {
            let Ok(()) = bench.complete(key, fence, DAY).await else { return answered };
            answered.push((key, Some(RecordState::Completed)));
        } else {
            let Ok(_) = bench.store.remove(id(key), Expect::Holder(fence)).await else { return answered };
            answered.push((key, None));
        }
    }
    answered
}

#[tokio::test]
async fn what_each_tenant_takes_up_is_known_after_a_restart() {
    for crash in [Crash::Process, Crash::Power] {
        let bench = fresh().await;
        for key in 0..400 {
            let fence = bench.insert(key).await.unwrap();
            match key % 4 {
                0 => {}
                1 => _ = bench.store.remove(id(key), Expect::Holder(fence)).await.unwrap(),
                2 => bench.complete(key, fence, Duration::from_secs(5)).await.unwrap(),
                _ => bench.complete(key, fence, DAY).await.unwrap(),
            }
        }
        bench.pass(10);
        while bench.store.sweep(1000, Duration::ZERO).await.unwrap().more {}
        let usage = |bench: &Bench| ["default", "acme", "", "nobody"].map(|tenant| bench.store.usage(tenant));
        let before = usage(&bench);
        let expected = |which| (0..400).filter(|key| key % 4 != 1 && key % 4 != 2 && key % 3 == which).count() as u64;
        assert_eq!(before.map(|usage| usage.records), [expected(0), expected(1), expected(2), 0]);
        assert!(bench.store.inner.log.segments().len() > 3, "most of it is not in the last segment");
        let bench = bench.restart(crash).await;
        assert_eq!(usage(&bench), before, "{crash:?}");
    }
}

#[tokio::test]
async fn a_second_opening_of_a_real_folder_is_refused_while_the_first_lives() {
    let folder = tempfile::tempdir().unwrap();
    let options = || {
        let log = log::Options { segment_bytes: 1 << 20, ..log::Options::default() };
        Options { log, ..Options::default() }
    };
    let store = Embedded::open(folder.path(), options()).await.unwrap();
    store.set_admin("127.0.0.1:8081").unwrap();
    let refused = Embedded::open(folder.path(), options()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Lock(log::LockError::Held { .. })), "{refused}");
    let Insert::Inserted { fence, .. } = store.insert(id(1), &facts(1), LEASE).await.unwrap() else { panic!() };
    store.replace(id(1), &completion(1, fence, DAY)).await.unwrap();
    drop(store);
    let store = Embedded::open(folder.path(), options()).await.unwrap();
    assert_eq!(store.get(id(1)).await.unwrap().record.unwrap().facts, completed(1));
}
