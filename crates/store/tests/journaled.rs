//! Redis in front of a journal, over real servers: whatever becomes of one of them, no key is granted again, and service
//! resumes by itself.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod journaled_place;
mod postgres_place;

use std::time::Duration;

use futures_util::TryStreamExt as _;
use journaled_place::{DEADLINE, Load, PATIENCE, Place, id, redis_address, until};
use onceward_core::{
    cas::{Expect, Keep, Replacement},
    outcome::Outcome,
    record::{ClaimId, Micros, Seen, SessionId, Stored},
    transition::{self, Write as Transition},
};
use onceward_store::{
    Filter, Insert, Store, Write,
    circuit::Breaker,
    conformance::{Database, MOVABLE_CLOCK, OnJournaled, OnJournaledAlone, Servers, run_all},
    guarded::Guarded,
    postgres::{
        Failover,
        forced::{AtRisk, Forced, Said, Wish},
        standing,
    },
    redis,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn database() -> Database {
    postgres_place::database("")
}

/// A Redis of its own.
fn in_front() -> Servers {
    let server = servers::Redis::start(&[]).unwrap();
    Servers { options: redis::Options::new(redis_address(&server.url())), keep: Box::new(server) }
}

/// One Redis, and the relay through which gateways reach it.
async fn place() -> (Place, servers::Redis, servers::Relay) {
    let redis = servers::Redis::start(&[]).unwrap();
    let relay = servers::Relay::before(redis.port()).unwrap();
    let in_front = redis::Options::new(redis_address(&format!("redis://{}", relay.address())));
    (Place::new(in_front).await, redis, relay)
}

/// Nobody who goes through the relay reaches Redis, which goes on.
fn gone(relay: &servers::Relay) {
    relay.refuse().unwrap();
    relay.cut();
}

/// Whether Redis has every row of the journal, in all partitions.
fn is_warm(redis: &servers::Redis) -> bool {
    let count = "local warm = 0
        for partition = 0, 255 do
            local view = redis.call('GET', string.format('idemp:v1:{p%03d}:v', partition))
            if view and view:sub(41, 41) == '1' then warm = warm + 1 end
        end
        return warm";
    redis.command(&["EVAL", count, "0"]).unwrap().trim() == "256"
}

#[test]
fn every_case_of_the_list_holds() {
    // Outside of any runtime.
    postgres_place::server();
    run_all(&OnJournaled { database: Some(database), servers: Some(in_front) }, 4);
}

#[test]
fn every_case_of_the_list_holds_while_nobody_reaches_redis() {
    // Outside of any runtime.
    postgres_place::server();
    run_all(&OnJournaledAlone { database: Some(|| postgres_place::database(MOVABLE_CLOCK)) }, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_gone_and_claims_go_to_the_database_until_it_is_back_and_no_key_is_granted_twice() {
    let (place, mut redis, relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let on_database = || [&one, &other].map(|gateway| gateway.store.serves().on_database);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    // Cut off with all that it has, and back with it: what was granted meanwhile is not there.
    gone(&relay);
    until("views on the database", async || on_database() == [256, 256]).await;
    place.granted(300).await;
    relay.accept().unwrap();
    until("views on Redis", async || on_database() == [0, 0]).await;
    place.granted(200).await;
    // A replica is there, and nobody promotes it.
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    until("views on the database", async || on_database() == [256, 256]).await;
    place.granted(100).await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    until("views on Redis", async || on_database() == [0, 0]).await;
    place.granted(100).await;
    // And gone with its data.
    redis.kill().unwrap();
    until("views on the database", async || on_database() == [256, 256]).await;
    place.granted(300).await;
    redis.start_again().unwrap();
    until("views on Redis", async || on_database() == [0, 0]).await;
    place.granted(200).await;
    load.end().await;
    place.judge(1_400);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_gateway_that_is_cut_off_from_redis_moves_nobody() {
    let (mut place, redis, relay) = place().await;
    let cut_off = place.gateway("cut off").await;
    place.in_front = redis::Options::new(redis_address(&redis.url()));
    let other = place.gateway("other").await;
    for gateway in [&cut_off, &other] {
        assert!(gateway.store.is_ready(PATIENCE).await);
    }
    gone(&relay);
    let said = "SELECT count(*) FROM onceward.journal_member WHERE cardinality(unreached) = 256";
    until("word of it", async || place.postgres.psql("onceward", said).unwrap().trim() == "1").await;
    // The other looks five times a second.
    let load = Load::start(&place, &[&other]);
    place.granted(300).await;
    load.end().await;
    assert_eq!(other.store.serves().on_database, 0);
    assert_eq!(place.postgres.psql("onceward", "SELECT max(number) FROM onceward.journal_view").unwrap().trim(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_gone_with_its_disk_while_redis_is_gone_is_retired_and_holds_up_nobody() {
    let (place, _redis, relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    gone(&relay);
    until("views on the database", async || one.store.serves().on_database == 256).await;
    place.granted(200).await;
    load.end().await;
    drop(other);
    std::fs::remove_dir_all(place.spools.path().join("other")).unwrap();
    let load = Load::start(&place, &[&one]);
    place.granted(100).await;
    // Redis is there, and used again only once nobody has to be waited for.
    relay.accept().unwrap();
    let retired = || place.postgres.psql("onceward", "SELECT count(*) FROM onceward.journal_member WHERE status = 3");
    until("retirements", async || {
        let was_on_database = one.store.serves().on_database == 256;
        let is_retired = retired().unwrap().trim() == "1";
        assert!(is_retired || was_on_database, "a view waits for one who is gone");
        is_retired
    })
    .await;
    until("views on Redis", async || one.store.serves().on_database == 0).await;
    place.granted(200).await;
    load.end().await;
    place.judge(700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_waits_for_redis_is_heard_of_meanwhile_and_is_not_taken_for_gone() {
    let (mut place, redis, relay) = place().await;
    let waits = place.gateway("waits").await;
    place.in_front = redis::Options::new(redis_address(&redis.url()));
    let other = place.gateway("other").await;
    for gateway in [&waits, &other] {
        assert!(gateway.store.is_ready(PATIENCE).await);
    }
    relay.withhold();
    let ask = |sql: &str| place.postgres.psql("onceward", sql).unwrap().trim().to_owned();
    // Several turns of one that waits for as long as others wait for it.
    let then = ask("SELECT onceward.now_us() + 10000000");
    until("word of it", async || {
        assert_eq!(ask("SELECT max(status) FROM onceward.journal_member"), "1", "a member is being retired");
        ask(&format!("SELECT min(heard_at) > {then} FROM onceward.journal_member")) == "t"
    })
    .await;
    relay.pass();
    assert!(waits.store.is_ready(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_listed_from_the_journal_where_redis_does_not_answer() {
    const CLAIMS: u64 = 400;
    let (place, _redis, relay) = place().await;
    let gateway = place.gateway("one").await;
    assert!(gateway.store.is_ready(PATIENCE).await);
    let facts = transition::place(ClaimId([1; 16]), SessionId([1; 16]));
    for key in 0..CLAIMS {
        let granted = gateway.store.insert(id(key), &facts, DAY).await;
        assert!(matches!(granted, Ok(Insert::Inserted { .. })), "{granted:?}");
    }
    relay.withhold();
    let store = Guarded::new(gateway.store, DEADLINE, Breaker::default());
    let filter = Filter { state: Some(Seen::InFlight), ..Filter::default() };
    let page = store.scan(None, 500, filter).await.unwrap();
    assert_eq!(page.records.len() as u64, CLAIMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_kept_longer_stays_its_holders_and_ends_later_also_where_redis_is_lost() {
    let (place, redis, _relay) = place().await;
    let gateway = place.gateway("one").await;
    let (store, facts) = (&gateway.store, transition::place(ClaimId([1; 16]), SessionId([1; 16])));
    let granted = loop {
        match store.insert(id(1), &facts, DAY).await {
            Ok(Insert::Inserted { fence, .. }) => break fence,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let Transition::Replace(write) = transition::complete(&facts, granted, Outcome::default(), DAY, Micros(1)) else {
        panic!("a completion replaces")
    };
    assert!(matches!(store.replace(id(1), &write).await, Ok(Write::Applied { .. })));
    let before = store.get(id(1)).await.unwrap().record.unwrap();
    let Stored { fence, revision, .. } = before.stored;
    let longer = Replacement { expect: Expect::Seen(fence, revision), keep: Keep::For(DAY * 2), ..*write };
    let longer = Replacement { facts: before.facts.clone(), ..longer };
    let written = store.replace(id(1), &longer).await.unwrap();
    assert!(matches!(written, Write::Applied { fence: kept, .. } if kept == fence), "nobody took it over: {written:?}");
    let after = store.get(id(1)).await.unwrap().record.unwrap();
    assert!(after.facts == before.facts && after.stored.keep_until > before.stored.keep_until);

    redis.command(&["FLUSHALL"]).unwrap();
    until("answers", async || {
        let read = store.get(id(1)).await;
        // Before there is a view nothing is said, and in the view what the journal has.
        read.is_ok_and(|read| read.record.is_some_and(|kept| kept.stored.keep_until == after.stored.keep_until))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_leaves_the_journal_and_a_redis_that_comes_back_from_before_does_not_bring_it_back() {
    const ENDED: u64 = 30;
    const ALL: u64 = 40;
    let (place, mut redis, _relay) = place().await;
    let gateway = place.gateway("one").await;
    let store = &gateway.store;
    until("warm views", async || is_warm(&redis)).await;
    let facts = transition::place(ClaimId([1; 16]), SessionId([1; 16]));
    let mut fences = Vec::new();
    for key in 0..ALL {
        let granted = store.insert(id(key), &facts, DAY).await;
        let Ok(Insert::Inserted { fence, .. }) = granted else { panic!("{granted:?}") };
        fences.push(fence);
    }
    redis.command(&["SAVE"]).unwrap();
    for (key, fence) in (0..ENDED).zip(fences) {
        let moment = Duration::from_millis(10);
        let Transition::Replace(write) = transition::complete(&facts, fence, Outcome::default(), moment, Micros(1))
        else {
            panic!("a completion replaces")
        };
        assert!(matches!(store.replace(id(key), &write).await, Ok(Write::Applied { .. })));
    }
    let in_journal =
        || place.postgres.psql("onceward", "SELECT count(*) FROM onceward.journal").unwrap().trim().parse::<u64>();
    until("sweeps of what has ended", async || {
        store.sweep(1_000, Duration::ZERO).await.unwrap();
        in_journal() == Ok(ALL - ENDED)
    })
    .await;
    redis.kill().unwrap();
    // With what it has saved: all of it in flight.
    redis.start_again().unwrap();
    until("answers", async || store.get(id(ALL - 1)).await.is_ok()).await;
    until("warm views", async || is_warm(&redis)).await;
    for key in 0..ALL {
        let there = store.get(id(key)).await.unwrap().record;
        assert_eq!(there.is_some(), key >= ENDED, "key {key}: {there:?}");
    }
    let again = store.insert(id(0), &facts, DAY).await;
    assert!(matches!(again, Ok(Insert::Inserted { .. })), "{again:?}");
    until("rows of it", async || in_journal() == Ok(ALL - ENDED + 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_emptied_and_started_again_without_its_data_and_no_key_is_granted_twice() {
    let (place, mut redis, _relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    redis.command(&["FLUSHALL"]).unwrap();
    place.granted(200).await;
    redis.kill().unwrap();
    redis.start_again().unwrap();
    place.granted(200).await;
    load.end().await;
    place.judge(600);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_loses_who_may_claim_and_nothing_else_and_they_claim_again_in_other_views() {
    let (place, redis, _relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    let sessions: Vec<String> = (0..256).map(|partition| format!("idemp:v1:{{p{partition:03}}}:s")).collect();
    for session in &sessions {
        redis.command(&["DEL", session]).unwrap();
    }
    place.granted(500).await;
    load.end().await;
    place.judge(700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacks_the_last_claims_takes_over_and_no_key_is_granted_twice() {
    let (place, redis, relay) = place().await;
    let replica = redis.replica().unwrap();
    redis.wait_for_replicas(1).unwrap();
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    // Cut off before the last claims; it keeps what it has, and its replication id.
    replica.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    place.granted(100).await;
    let behind = |server: &servers::Redis| server.command(&["DBSIZE"]).unwrap().trim().parse::<u64>().unwrap();
    assert!(behind(&replica) < behind(&redis), "the replica is stale");
    replica.promote().unwrap();
    relay.leads_to(replica.port());
    relay.cut();
    place.granted(200).await;
    load.end().await;
    place.judge(500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_gone_with_its_disk_is_retired_and_then_redis_may_be_lost() {
    let (place, redis, _relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    drop(other);
    std::fs::remove_dir_all(place.spools.path().join("other")).unwrap();
    let load = Load::start(&place, &[&one]);
    place.granted(100).await;
    let retired = || place.postgres.psql("onceward", "SELECT count(*) FROM onceward.journal_member WHERE status = 3");
    until("retirements", async || retired().unwrap().trim() == "1").await;
    redis.command(&["FLUSHALL"]).unwrap();
    place.granted(200).await;
    load.end().await;
    place.judge(500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_comes_back_settles_what_it_left_although_its_redis_is_lost() {
    let (place, redis, _relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    drop(other);
    redis.command(&["FLUSHALL"]).unwrap();
    let other = place.gateway("other").await;
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    place.judge(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_idle_when_it_was_killed_and_comes_back_holds_up_nobody_although_its_redis_is_lost() {
    let (place, redis, _relay) = place().await;
    let (one, idle) = (place.gateway("one").await, place.gateway("idle").await);
    let live = || place.postgres.psql("onceward", "SELECT count(*) FROM onceward.journal_member WHERE status = 1");
    until("members", async || live().unwrap().trim() == "2").await;
    let load = Load::start(&place, &[&one]);
    place.granted(100).await;
    drop(idle);
    // Everybody waits for it, and the Redis through which it would be retired is gone.
    redis.command(&["FLUSHALL"]).unwrap();
    let idle = place.gateway("idle").await;
    place.granted(200).await;
    load.end().await;
    place.judge(300);
    assert!(idle.store.leave(PATIENCE).await);
    let names = std::fs::read_dir(place.spools.path().join("idle")).unwrap().map(|entry| entry.unwrap().file_name());
    let sessions: Vec<_> = names.filter(|name| name.to_str().unwrap().contains("session")).collect();
    assert_eq!(sessions, Vec::<std::ffi::OsString>::new(), "one that has left is not looked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn views_go_on_without_a_gateway_that_is_gone_with_its_redis_once_an_operator_says_so_and_what_runs_twice_is_listed()
 {
    let (mut place, redis, _relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    until("warm views", async || is_warm(&redis)).await;
    // What the journal does not get of it, and what is lost of it with its disk and with Redis.
    place.postgres.kill().unwrap();
    let lost = u64::MAX;
    place.ask(&other, lost).await;
    let sent = |key| place.seen.sent.lock().unwrap().get(&key).copied();
    assert_eq!(sent(lost), Some(1));
    let (disk, found) = (place.spools.path().join("other"), place.spools.path().join("found"));
    std::fs::create_dir(&found).unwrap();
    for file in std::fs::read_dir(&disk).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), found.join(file.file_name())).unwrap();
    }
    drop(other);
    std::fs::remove_dir_all(disk).unwrap();
    redis.command(&["FLUSHALL"]).unwrap();
    place.postgres.start_again().unwrap();

    let address = place.address();
    let waited_for = async || {
        let views = standing::look(&address, &Failover::None).await.unwrap().views;
        let waiting: Vec<_> = views.into_iter().filter(|view| !view.serves).map(|view| view.waits_for).collect();
        if waiting.len() == 256 && waiting.iter().all(|all| *all == waiting[0]) { waiting[0].clone() } else { vec![] }
    };
    until("views that wait for it alone", async || waited_for().await.len() == 1).await;
    let gone = waited_for().await[0];
    let forced = Forced::connect(&address).await.unwrap();
    let without = async |session, silence, is_try| {
        let clocks_differ = Duration::from_secs(10);
        forced.without(&Wish { session, silence, keeps: DAY, clocks_differ, is_try }).await.unwrap()
    };
    assert!(matches!(without(gone, DAY, false).await, Said::HeardOf { .. }));
    assert_eq!(without(SessionId([9; 16]), Duration::ZERO, false).await, Said::NoMember);
    let Said::Done { partitions, .. } = without(gone, Duration::ZERO, true).await else { panic!("they wait for it") };
    assert_eq!((partitions.len(), waited_for().await), (256, vec![gone]), "nothing was changed");
    assert_eq!(forced.decisions().await.unwrap(), []);
    assert!(matches!(without(gone, Duration::ZERO, false).await, Said::Done { .. }));
    until("an answer", async || {
        place.ask(&one, lost).await;
        sent(lost) == Some(2)
    })
    .await;
    assert!(matches!(without(gone, Duration::ZERO, false).await, Said::NotWaitedFor | Said::NoMember));

    let decision = async || forced.decisions().await.unwrap().pop().unwrap();
    let listed = async || {
        let decision = decision().await;
        forced.at_risk(&decision).try_collect::<Vec<AtRisk>>().await.unwrap()
    };
    // Once it is shipped.
    until("keys at risk", async || !listed().await.is_empty()).await;
    let keys = listed().await;
    assert_eq!(keys.iter().map(|key| key.fact.id).collect::<Vec<_>>(), [id(lost)], "and none that was granted before");
    assert_eq!((keys[0].first, decision().await.twice), (None, 0), "nobody knows of it");
    let known = place.seen.sent.lock().unwrap().len();
    let load = Load::start(&place, &[&one]);
    place.granted(100).await;
    load.end().await;
    let granted = place.seen.sent.lock().unwrap().len() - known;
    until("all of those that were granted since", async || listed().await.len() == 1 + granted).await;

    // Its disk is found.
    let _found = place.gateway("found").await;
    until("what it left", async || decision().await.twice == 1).await;
    let keys = listed().await;
    let twice: Vec<_> = keys.iter().filter(|key| key.first.is_some()).collect();
    assert_eq!(twice.iter().map(|key| key.fact.id).collect::<Vec<_>>(), [id(lost)]);
    assert!(twice[0].is_executed && twice[0].first.unwrap() < twice[0].fact.record.stored.fence);
    // All others ran once.
    place.seen.sent.lock().unwrap().remove(&lost);
    place.seen.broken.lock().unwrap().retain(|what| !what.contains(&lost.to_string()));
    place.judge(300);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_killed_and_service_goes_on_without_it_and_what_was_granted_meanwhile_is_shipped() {
    let (mut place, redis, _relay) = place().await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    until("warm views", async || is_warm(&redis)).await;
    place.postgres.kill().unwrap();
    place.granted(200).await;
    place.postgres.start_again().unwrap();
    place.granted(100).await;
    redis.command(&["FLUSHALL"]).unwrap();
    place.granted(200).await;
    load.end().await;
    place.judge(700);
}
