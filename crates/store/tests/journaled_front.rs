//! The journal's front on real servers: what is refused, and how it ends. That the scripts keep the protocol's rules is
//! shown by `sim/tests/front.rs`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod redis_place;

use std::{sync::Arc, time::Duration};

use onceward_core::{
    cas::Expect,
    key::RecordId,
    record::{Fence, Micros, Phase, Record, SessionId, State},
    transition::{self, Write as Transition},
};
use onceward_store::{
    Applied, Kind, Store as _, StoreError,
    journaled::{At, Dirty, Fact, Front, Install, Row, Sight, Stepped, View, What},
    redis::{JournaledFront, Options, Redis},
};
use redis_place::{LEASE, facts, opened, options, until};
use servers::{Redis as Server, RedisCluster};

const PARTITION: u16 = 7;
const US: SessionId = SessionId([1; 16]);
const OTHER: SessionId = SessionId([2; 16]);

fn id(number: u8) -> RecordId {
    let mut id = [number; 32];
    id[..2].copy_from_slice(&PARTITION.to_be_bytes());
    RecordId(id)
}

fn key(id: RecordId) -> String {
    format!("idemp:v1:{{p{PARTITION:03}}}:{id}:j")
}

async fn look(front: &JournaledFront) -> Result<Sight, StoreError> {
    Ok(front.look(&[PARTITION]).await?.first().unwrap().1)
}

/// A view of this number on the server as it is now, with both sessions let in.
async fn view(front: &JournaledFront, number: u64) -> At {
    let incarnation = look(front).await.unwrap().incarnation;
    let at = At { partition: PARTITION, view: View { number, tag: 5 }, incarnation, session: US };
    let install = Install { admitted: vec![US, OTHER], ..Install::default() };
    assert!(front.install(&at, &install).await.unwrap());
    at
}

async fn insert(front: &JournaledFront, at: &At, number: u8, row: Option<&Row>) -> Result<Stepped, StoreError> {
    let facts = facts(u32::from(number));
    front.step(at, id(number), What::Insert { facts: &facts, lease: LEASE }, row).await
}

async fn granted(front: &JournaledFront, at: &At, number: u8) -> Arc<Record> {
    match insert(front, at, number, Some(&None)).await.unwrap() {
        Stepped::Done { record, .. } => record,
        other => panic!("{number}: {other:?}"),
    }
}

async fn settled(front: &JournaledFront, at: &At, number: u8, fence: Fence, keep: Duration) -> Arc<Record> {
    let Transition::Replace(write) =
        transition::complete(&facts(u32::from(number)), fence, Default::default(), keep, Micros::ZERO)
    else {
        panic!("a completion replaces")
    };
    match front.step(at, id(number), What::Replace(&write), None).await.unwrap() {
        Stepped::Done { record, .. } => record,
        other => panic!("{number}: {other:?}"),
    }
}

fn dirty(number: u8, record: &Record) -> Dirty {
    Dirty { id: id(number), fence: record.stored.fence, revision: record.stored.revision }
}

/// No step is taken there, and nothing is told of what is there.
async fn grants_nothing(front: &JournaledFront, at: &At, why: &str) {
    for number in [1, 9] {
        for row in [None, Some(&None)] {
            let answer = insert(front, at, number, row).await.unwrap();
            assert!(matches!(answer, Stepped::Elsewhere), "{why}: {answer:?}");
            let answer = front.step(at, id(number), What::Get, row).await.unwrap();
            assert!(matches!(answer, Stepped::Elsewhere), "{why}: {answer:?}");
        }
    }
}

/// And nothing else is done there either.
async fn is_elsewhere(front: &JournaledFront, at: &At, why: &str) {
    grants_nothing(front, at, why).await;
    let no = [
        front.admit(&At { session: SessionId([3; 16]), ..*at }).await.unwrap(),
        front.shut_out(at, OTHER).await.unwrap(),
        front.merge(at, &[]).await.unwrap(),
        front.clean(at, &[]).await.unwrap(),
        front.warm(at).await.unwrap(),
    ];
    assert_eq!(no, [false; 5], "{why}");
    assert_eq!(front.dirty(at).await.unwrap(), None, "{why}");
}

#[tokio::test]
async fn a_view_ends_with_a_flush_a_restart_and_a_promotion_and_a_replica_grants_nothing() {
    let mut first = Server::start(&[("appendonly", "yes"), ("appendfsync", "always")]).unwrap();
    let store = opened(&first).await;
    let front = store.front();
    let flushed = view(&front, 1).await;
    granted(&front, &flushed, 1).await;
    first.command(&["FLUSHALL"]).unwrap();
    assert_eq!(look(&front).await.unwrap().incarnation, flushed.incarnation, "its data is called the same");
    is_elsewhere(&front, &flushed, "flushed").await;

    let restarted = view(&front, 2).await;
    granted(&front, &restarted, 1).await;
    first.kill().unwrap();
    first.start_again().unwrap();
    // Both of its connections.
    until(async || look(&front).await.is_ok()).await;
    until(async || front.step(&restarted, id(1), What::Get, None).await.is_ok()).await;
    let sight = look(&front).await.unwrap();
    assert_eq!(sight.view, restarted.view, "it kept all of its data");
    is_elsewhere(&front, &restarted, "restarted").await;

    let _replica_makes_a_new_history = first.replica().unwrap();
    let before = view(&front, 3).await;
    granted(&front, &before, 3).await;
    let second = first.replica().unwrap();
    first.wait_for_replicas(2).unwrap();
    second.promote().unwrap();
    let other = opened(&second).await;
    let promoted = other.front();
    assert_eq!(look(&promoted).await.unwrap().view, before.view, "the view was replicated");
    is_elsewhere(&promoted, &before, "promoted").await;
    let after = view(&promoted, 4).await;
    assert!(matches!(insert(&promoted, &after, 1, None).await.unwrap(), Stepped::NeedsRow));
    granted(&promoted, &after, 2).await;

    // The old primary follows it, over a connection that knew it as a primary: all is there but the right to decide.
    first.replicate(&second).unwrap();
    second.wait_for_replicas(1).unwrap();
    assert!(first.command(&["GET", &key(id(2))]).unwrap().starts_with('J'));
    grants_nothing(&front, &after, "a replica").await;
}

#[tokio::test]
async fn where_info_is_forbidden_every_call_says_so_and_nothing_is_granted() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    let front = store.front();
    let at = view(&front, 1).await;
    server.command(&["ACL", "SETUSER", "default", "-info"]).unwrap();
    let errors = [
        insert(&front, &at, 1, Some(&None)).await.unwrap_err(),
        front.step(&at, id(1), What::Get, Some(&None)).await.unwrap_err(),
        look(&front).await.unwrap_err(),
        front.install(&At { view: View { number: 2, tag: 1 }, ..at }, &Install::default()).await.unwrap_err(),
        front.admit(&at).await.unwrap_err(),
        front.shut_out(&at, OTHER).await.unwrap_err(),
        front.warm(&at).await.unwrap_err(),
        front.dirty(&at).await.unwrap_err(),
    ];
    for error in errors {
        let said = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(said.contains("INFO") && error.applied == Applied::No, "{error:?}");
    }
    assert_eq!(server.command(&["EXISTS", &key(id(1))]).unwrap(), "0");
}

#[tokio::test]
async fn every_call_is_taken_with_the_rights_of_the_access_list_that_is_shipped() {
    let server = Server::start_with_acl(&[], include_str!("../../../deploy/redis/onceward.acl")).unwrap();
    let store = Redis::open(options(&server.url_of("onceward", "change-me"))).await.unwrap();
    let front = store.front();
    let at = view(&front, 1).await;
    let (one, two) = (granted(&front, &at, 1).await, granted(&front, &at, 2).await);
    let extended = front.step(&at, id(1), What::Extend { holder: one.stored.fence, lease: LEASE }, None).await.unwrap();
    assert!(matches!(extended, Stepped::Done { .. }), "{extended:?}");
    let completed = settled(&front, &at, 1, one.stored.fence, LEASE).await;
    let release = What::Release(Expect::Holder(two.stored.fence));
    let Stepped::Done { record: released, .. } = front.step(&at, id(2), release, None).await.unwrap() else {
        panic!("it was the holder's")
    };
    assert_eq!(front.dirty(&at).await.unwrap().unwrap().facts.len(), 2);
    // With a record that is merged and may end by itself.
    let row = Fact { id: id(3), record: Arc::clone(&completed) };
    assert!(front.merge(&at, &[row]).await.unwrap() && front.warm(&at).await.unwrap());
    assert!(front.clean(&at, &[dirty(1, &completed), dirty(2, &released)]).await.unwrap());
    assert_eq!(front.dirty(&at).await.unwrap().unwrap().facts, []);
    assert!(front.admit(&At { session: SessionId([3; 16]), ..at }).await.unwrap());
    assert!(front.shut_out(&at, OTHER).await.unwrap());
    let there = front.step(&at, id(3), What::Get, None).await.unwrap();
    assert!(matches!(there, Stepped::There { .. }), "{there:?}");
}

#[tokio::test]
async fn what_the_journal_lacks_has_no_end_in_redis_and_what_it_has_ends_with_its_retention() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    let front = store.front();
    let at = view(&front, 1).await;
    let ends = |number| server.command(&["PTTL", &key(id(number))]).unwrap().parse::<i64>().unwrap();
    let claimed = granted(&front, &at, 1).await;
    let completed = settled(&front, &at, 1, claimed.stored.fence, Duration::from_secs(100)).await;
    assert_eq!(ends(1), -1, "it is dirty");
    assert!(front.clean(&at, &[dirty(1, &claimed)]).await.unwrap());
    assert_eq!(ends(1), -1, "it was written since");
    assert!(front.clean(&at, &[dirty(1, &completed)]).await.unwrap());
    assert!((100_000..=110_000).contains(&ends(1)), "{}", ends(1));
    // A word that comes later is dirty again.
    let seen = Expect::Seen(completed.stored.fence, completed.stored.revision);
    let answer = front.step(&at, id(1), What::Release(seen), Some(&None)).await.unwrap();
    assert!(matches!(answer, Stepped::Done { .. }) && ends(1) == -1, "{answer:?}");

    let held = granted(&front, &at, 2).await;
    let release = What::Release(Expect::Holder(held.stored.fence));
    let Stepped::Done { record, .. } = front.step(&at, id(2), release, None).await.unwrap() else {
        panic!("it was the holder's")
    };
    for (is_warm, left) in [(false, "1"), (true, "0")] {
        assert!(!is_warm || front.warm(&at).await.unwrap());
        assert!(front.clean(&at, &[dirty(2, &record)]).await.unwrap());
        assert_eq!(server.command(&["EXISTS", &key(id(2))]).unwrap(), left, "warm: {is_warm}");
    }
    let again = granted(&front, &at, 2).await;
    assert!(again.stored.fence > held.stored.fence, "S4");
}

#[tokio::test]
async fn a_process_that_was_told_a_later_time_has_nothing_removed_early() {
    const CLOCK: u64 = 2_000_000_000_000_000;
    let server = Server::start(&[]).unwrap();
    let open = async || Redis::open(Options { clock_moves: true, ..options(&server.url()) }).await.unwrap();
    let (ahead, store) = (open().await, open().await);
    store.fix_clock(PARTITION, Micros(CLOCK + 3_600_000_000)).await.unwrap();
    let at = view(&ahead.front(), 1).await;
    granted(&ahead.front(), &at, 1).await;
    // The clock is put right, and a view begins on it.
    store.fix_clock(PARTITION, Micros(CLOCK)).await.unwrap();
    let at = view(&store.front(), 2).await;
    let claimed = granted(&store.front(), &at, 2).await;
    let completed = settled(&store.front(), &at, 2, claimed.stored.fence, Duration::from_secs(7_200)).await;
    let row = Fact { id: id(3), record: Arc::clone(&completed) };
    assert!(ahead.front().clean(&at, &[dirty(2, &completed)]).await.unwrap());
    assert!(ahead.front().merge(&at, &[row]).await.unwrap());
    for number in [2, 3] {
        let left: i64 = server.command(&["PTTL", &key(id(number))]).unwrap().parse().unwrap();
        assert!((7_200_000..=7_210_000).contains(&left), "{number}: {left} ms");
    }
}

#[tokio::test]
async fn more_records_than_one_script_takes_are_all_told_as_dirty_and_are_cleaned() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    let front = store.front();
    let at = view(&front, 1).await;
    let ids: Vec<RecordId> = (0..1_000_u32)
        .map(|number| {
            let mut id = id(0);
            id.0[2..6].copy_from_slice(&number.to_be_bytes());
            id
        })
        .collect();
    let mut shipped = Vec::new();
    for id in &ids {
        let insert = What::Insert { facts: &facts(1), lease: LEASE };
        let Stepped::Done { record, .. } = front.step(&at, *id, insert, Some(&None)).await.unwrap() else {
            panic!("{id} was not granted")
        };
        shipped.push(Dirty { id: *id, fence: record.stored.fence, revision: record.stored.revision });
    }
    let told: Vec<RecordId> = front.dirty(&at).await.unwrap().unwrap().facts.iter().map(|fact| fact.id).collect();
    assert_eq!(told, ids);
    assert!(front.clean(&at, &shipped).await.unwrap());
    assert_eq!(front.dirty(&at).await.unwrap().unwrap().facts, []);
}

#[tokio::test]
async fn an_insert_that_is_sent_again_finds_its_own_claim_also_after_the_server_forgot_the_scripts() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    let front = store.front();
    let at = view(&front, 1).await;
    let claimed = granted(&front, &at, 1).await;
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
    let Stepped::There { record, .. } = insert(&front, &at, 1, Some(&None)).await.unwrap() else {
        panic!("it was granted twice")
    };
    assert_eq!((record.facts.claim_id, record.stored.revision), (claimed.facts.claim_id, claimed.stored.revision));
}

#[tokio::test]
async fn a_value_that_is_none_of_ours_is_told_and_left_as_it_is() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    let front = store.front();
    let at = view(&front, 1).await;
    let mut row = Record { stored: Default::default(), facts: facts(1) };
    row.stored.fence = Fence(1 << 60);
    let rows: [Row; 2] = [None, Some(Box::new(row))];
    server.command(&["HSET", &key(id(1)), "field", "value"]).unwrap();
    server.command(&["SET", &key(id(2)), "J\u{1}, and what nobody wrote"]).unwrap();
    server.command(&["SET", &key(id(3)), "OW"]).unwrap();
    for number in [1, 2, 3] {
        for row in &rows {
            let facts = facts(1);
            for what in [What::Insert { facts: &facts, lease: LEASE }, What::Get] {
                let error = front.step(&at, id(number), what, Some(row)).await.unwrap_err();
                let is_told = matches!(error.kind, Kind::Damaged(_) | Kind::Newer(_)) && error.applied == Applied::No;
                assert!(is_told, "{number} {what:?}: {error:?}");
            }
        }
    }
    assert_eq!(server.command(&["HGET", &key(id(1)), "field"]).unwrap(), "value");
    assert_eq!(server.command(&["GET", &key(id(3))]).unwrap(), "OW");
}

#[tokio::test]
async fn a_server_without_memory_refuses_and_has_done_nothing() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    let front = store.front();
    let at = view(&front, 1).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let error = insert(&front, &at, 1, Some(&None)).await.unwrap_err();
    assert_eq!((&error.kind, error.applied), (&Kind::Full, Applied::No));
    let next = At { view: View { number: 2, tag: 1 }, ..at };
    let error = front.install(&next, &Install::default()).await.unwrap_err();
    assert_eq!((&error.kind, error.applied), (&Kind::Full, Applied::No));
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    granted(&front, &at, 1).await;
}

#[tokio::test]
async fn a_clock_behind_the_views_last_grant_grants_nothing_until_it_comes_up_or_a_view_begins_on_it() {
    const LATER: u64 = 2_000_000_000_000_000;
    let server = Server::start(&[]).unwrap();
    let store = Redis::open(Options { clock_moves: true, ..options(&server.url()) }).await.unwrap();
    let front = store.front();
    store.fix_clock(PARTITION, Micros(LATER)).await.unwrap();
    let at = view(&front, 1).await;
    let before = granted(&front, &at, 1).await.stored.fence;
    store.fix_clock(PARTITION, Micros(LATER - 2_000_001)).await.unwrap();
    for what in [What::Insert { facts: &facts(2), lease: LEASE }, What::Get] {
        let error = front.step(&at, id(2), what, Some(&None)).await.unwrap_err();
        assert!(matches!(error.kind, Kind::ClockSuspect(_)) && error.applied == Applied::No, "{error:?}");
    }
    store.fix_clock(PARTITION, Micros(LATER - 2_000_000)).await.unwrap();
    let again = granted(&front, &at, 2).await.stored.fence;
    store.fix_clock(PARTITION, Micros(LATER - 3_600_000_000)).await.unwrap();
    let next = view(&front, 2).await;
    let last = granted(&front, &next, 3).await.stored.fence;
    assert!(before < again && again < last, "{before:?} {again:?} {last:?}");
}

#[tokio::test]
async fn whoever_waits_at_another_process_is_told_of_an_answer_and_of_a_release() {
    let server = Server::start(&[]).unwrap();
    let (ours, theirs) = (opened(&server).await, opened(&server).await);
    let front = ours.front();
    let at = view(&front, 1).await;
    for (number, is_completed) in [(1, true), (2, false)] {
        let fence = granted(&front, &at, number).await.stored.fence;
        let waits = theirs.watch(id(number));
        let channel = key(id(number)).trim_end_matches(":j").to_owned();
        let is_heard = || server.command(&["PUBSUB", "NUMSUB", &channel]).unwrap().ends_with('1');
        until(async || is_heard()).await;
        // Those who wait look again each second, too: what is told comes of this alone.
        let said = server.command(&["INFO", "commandstats"]).unwrap();
        let count = |said: &str| said.lines().find(|line| line.starts_with("cmdstat_publish:")).map(str::to_owned);
        if is_completed {
            settled(&front, &at, number, fence, LEASE).await;
        } else {
            let release = What::Release(Expect::Holder(fence));
            assert!(matches!(front.step(&at, id(number), release, None).await.unwrap(), Stepped::Done { .. }));
        }
        waits.await;
        assert_ne!(count(&said), count(&server.command(&["INFO", "commandstats"]).unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slot_that_moves_takes_its_view_along_and_grants_nothing_until_it_has_another() {
    let cluster = RedisCluster::start(&[]).unwrap();
    let hosts: Vec<String> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let store = Redis::open(options(&format!("redis+cluster://{}", hosts.join(",")))).await.unwrap();
    let front = store.front();
    let all: Vec<u16> = (0..256).collect();
    let seen = front.look(&all).await.unwrap();
    assert!(seen.len() == 256 && seen.iter().all(|(_, sight)| sight.is_primary), "{seen:?}");
    let at = view(&front, 1).await;
    let held = granted(&front, &at, 1).await;
    let slot = cluster.slot_of(&format!("idemp:v1:{{p{PARTITION:03}}}:v")).unwrap();
    let to = (cluster.primary_of(slot).unwrap() + 1) % 3;
    let moving = cluster.begin_move(slot, to).unwrap();
    // Some of its keys are here and some are there.
    assert_eq!(cluster.move_keys(moving, 1).unwrap(), 1);
    match insert(&front, &at, 2, Some(&None)).await {
        Err(_) | Ok(Stepped::Elsewhere) => {}
        granted => panic!("{granted:?}"),
    }
    while cluster.move_keys(moving, 100).unwrap() > 0 {}
    cluster.end_move(moving).unwrap();
    is_elsewhere(&front, &at, "moved").await;
    let next = view(&front, 2).await;
    assert_ne!(next.incarnation, at.incarnation);
    let extend = What::Extend { holder: held.stored.fence, lease: LEASE };
    assert!(matches!(front.step(&next, id(1), extend, None).await.unwrap(), Stepped::NeedsRow));
    let row: Row = Some(Box::new(Record::clone(&held)));
    let Stepped::Done { record, .. } = front.step(&next, id(1), extend, Some(&row)).await.unwrap() else {
        panic!("its record moved along")
    };
    assert_eq!((record.facts.state, record.facts.phase), (State::InFlight, Phase::Dispatched), "A5");
}
