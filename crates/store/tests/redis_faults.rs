//! What goes wrong with a real Redis, and what the store then says.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod redis_place;
mod redis_written;

use std::{sync::Arc, time::Duration};

use onceward_core::{
    cas::Expect,
    record::{Fence, Seen},
    transition::{self, Forget, Write as Transition},
};
use onceward_store::{
    Applied, Filter, Insert, Kind, Store, StoreError, Write,
    redis::{Evictions, Options, Redis, Strategy, Wait, address::Address},
};
use redis_place::{LEASE, claim, complete, facts, id, is_there, opened, options, try_complete, until};
use servers::Redis as Server;

/// Both ways to take a step.
const BOTH: [Strategy; 2] = [Strategy::Script, Strategy::Watch];

async fn opened_by(server: &Server, strategy: Strategy) -> Redis {
    Redis::open(Options { strategy, ..options(&server.url()) }).await.unwrap()
}

#[tokio::test]
async fn what_was_flushed_is_noticed_by_the_next_step_which_writes_nothing_and_by_every_other_process() {
    let server = Server::start(&[]).unwrap();
    for strategy in BOTH {
        let (here, there) = (opened_by(&server, strategy).await, opened_by(&server, strategy).await);
        here.remember("word", "ours").await.unwrap();
        here.keep_rules(7, "rules").await.unwrap();
        let before = claim(&here, 1).await.unwrap();
        let held = claim(&there, 2).await.unwrap();
        server.command(&["FLUSHALL"]).unwrap();

        let refused = claim(&here, 1).await.unwrap_err();
        assert_eq!((&refused.kind, refused.applied), (&Kind::Incarnation, Applied::No), "{strategy:?}");
        let after = claim(&here, 1).await.unwrap();
        assert!(after > before, "S4: {after:?} after {before:?}");
        // The holder of a record that is gone is told so, and so is whoever asks for the first time.
        let refused = there.extend(id(2), held, LEASE).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Incarnation);
        assert!(matches!(there.extend(id(2), held, LEASE).await, Ok(Write::Lost { record: None, .. })));
        for store in [&here, &there] {
            let cache = store.stats().cache.unwrap();
            assert_eq!((cache.losses, cache.last.len(), cache.last[0].partitions), (1, 1, 256), "{cache:?}");
            assert!(store.lost_ago().is_some() && cache.last[0].from <= cache.last[0].to);
        }
        assert_eq!(there.remember("word", "theirs").await.unwrap(), "ours", "what was known is written again");
        assert_eq!(there.rules(7).await.unwrap().as_deref(), Some("rules"));
        server.command(&["FLUSHALL"]).unwrap();
    }
}

#[tokio::test]
async fn a_flush_while_nobody_asks_is_told_as_one_loss_of_all_partitions() {
    let server = Server::start(&[]).unwrap();
    for strategy in BOTH {
        let store = opened_by(&server, strategy).await;
        server.command(&["FLUSHALL"]).unwrap();
        until(async || store.stats().cache.is_some_and(|cache| cache.losses > 0)).await;
        let cache = store.stats().cache.unwrap();
        assert_eq!((cache.losses, cache.last[0].partitions), (1, 256), "{strategy:?}: {cache:?}");
    }
}

#[tokio::test]
async fn a_restart_is_told_whether_or_not_anything_was_lost() {
    for persistent in [false, true] {
        let settings: &[(&str, &str)] =
            if persistent { &[("appendonly", "yes"), ("appendfsync", "always")] } else { &[] };
        let mut server = Server::start(settings).unwrap();
        let store = opened(&server).await;
        let fence = claim(&store, 1).await.unwrap();
        complete(&store, 1, fence, LEASE).await;
        server.kill().unwrap();
        let failed = claim(&store, 2).await.unwrap_err();
        assert_eq!(failed.kind, Kind::Unavailable, "{failed:?}");
        server.start_again().unwrap();
        // Noticed by the look of each second, or by the first step.
        until(async || {
            let _step = store.get(id(3)).await;
            store.stats().cache.is_some_and(|cache| cache.losses > 0)
        })
        .await;
        until(async || store.get(id(1)).await.is_ok()).await;
        assert_eq!(is_there(&store, 1).await, persistent, "persistent: {persistent}");
        let why = store.stats().cache.unwrap().last[0].why;
        assert!(why.contains(if persistent { "started again" } else { "emptied" }), "{why}");
    }
}

#[tokio::test]
async fn a_restart_while_nobody_looked_is_told_at_the_next_start() {
    let mut server = Server::start(&[("appendonly", "yes")]).unwrap();
    let store = opened(&server).await;
    claim(&store, 1).await.unwrap();
    drop(store);
    let again = opened(&server).await;
    assert_eq!(again.stats().cache.unwrap().losses, 0, "the same server");
    drop(again);
    server.stop().unwrap();
    server.start_again().unwrap();
    let again = opened(&server).await;
    assert_eq!(again.stats().cache.unwrap().losses, 1);
    assert!(is_there(&again, 1).await);
}

#[tokio::test]
async fn a_script_that_the_server_forgot_is_sent_again_and_a_step_that_is_repeated_recognises_itself() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    let fence = claim(&store, 1).await.unwrap();
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
    let Insert::Existing { record, .. } = store.insert(id(1), &facts(1), LEASE).await.unwrap() else {
        panic!("it is there")
    };
    assert_eq!((record.stored.fence, record.facts.claim_id), (fence, facts(1).claim_id));
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
    complete(&store, 1, fence, LEASE).await;
}

#[tokio::test]
async fn a_replica_and_a_primary_that_became_one_decide_nothing() {
    let server = Server::start(&[]).unwrap();
    let replica = server.replica().unwrap();
    for strategy in BOTH {
        let refused = Redis::open(Options { strategy, ..options(&replica.url()) }).await.unwrap_err().to_string();
        assert!(refused.contains("replica") && refused.contains("primary"), "{refused}");
    }
    let stores = [opened_by(&server, BOTH[0]).await, opened_by(&server, BOTH[1]).await];
    for (store, number) in stores.iter().zip([1, 2]) {
        claim(store, number).await.unwrap();
    }
    replica.promote().unwrap();
    server.replicate(&replica).unwrap();
    for (store, number) in stores.iter().zip([3, 4]) {
        let refused = claim(store, number).await.unwrap_err();
        assert!(matches!(refused.kind, Kind::NotPrimary | Kind::Unavailable), "{refused:?}");
        assert!(!store.get(id(number)).await.is_ok_and(|read| read.record.is_some()), "it was written all the same");
    }
}

#[tokio::test]
async fn a_full_server_refuses_claims_and_says_so_and_what_is_in_flight_outlives_eviction() {
    let server = Server::start(&[("maxmemory", "6mb"), ("maxmemory-policy", "noeviction")]).unwrap();
    let store = opened(&server).await;
    let held = claim(&store, 1).await.unwrap();
    let filled = async {
        for number in 10.. {
            if let Err(failed) = complete_large(&store, number).await {
                return failed;
            }
        }
        unreachable!()
    };
    let full = filled.await;
    assert_eq!((&full.kind, full.applied), (&Kind::Full, Applied::No), "{full:?}");
    until(async || store.stats().concerns.iter().any(|concern| concern.contains("memory"))).await;
    assert!(is_there(&store, 1).await);

    // A policy that evicts what has an end takes completed records, and none in flight.
    server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]).unwrap();
    for number in 10_000..11_500 {
        complete_large(&store, number).await.unwrap();
    }
    assert!(store.extend(id(1), held, LEASE).await.is_ok_and(|write| matches!(write, Write::Applied { .. })));
    until(async || store.stats().cache.is_some_and(|cache| cache.evicted > 0)).await;
    let concerns = store.stats().concerns.join("\n");
    assert!(concerns.contains("volatile-lru") && concerns.contains("evicted"), "{concerns}");
}

#[tokio::test]
async fn evictions_are_told_as_a_loss_before_the_next_grant_where_that_is_asked_for() {
    let settings = [("maxmemory", "6mb"), ("maxmemory-policy", "volatile-lru")];
    let server = Server::start(&settings).unwrap();
    let other = opened(&server).await;
    let inline = Options { evictions: Evictions::Inline, ..options(&server.url()) };
    let store = Redis::open(inline.clone()).await.unwrap();
    let evicted = || {
        let info = server.command(&["INFO", "stats"]).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("evicted_keys:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let losses = || store.stats().cache.unwrap().losses;
    let mut number = 0;
    for burst in 1..=20 {
        let (before, told) = (evicted(), losses());
        while evicted() == before {
            number += 1;
            complete_large(&other, number).await.unwrap();
        }
        number += 1;
        // Refused once at most for each eviction, the claim's own included; told before it is granted.
        while let Err(refused) = claim(&store, number).await {
            assert_eq!((&refused.kind, refused.applied), (&Kind::Incarnation, Applied::No), "{refused:?}");
        }
        assert!(losses() > told && store.lost_ago().is_some(), "burst {burst}: granted after evictions nobody told of");
    }
    assert!(store.stats().cache.unwrap().last[0].why.contains("evicted"));
    let refused = Redis::open(Options { strategy: Strategy::Watch, ..inline }).await.unwrap_err().to_string();
    assert!(refused.contains("strategy"), "{refused}");
}

#[tokio::test]
async fn a_write_counts_once_as_many_replicas_have_it_as_are_asked_for() {
    let server = Server::start(&[]).unwrap();
    let replica = server.replica().unwrap();
    for (strategy, number) in [(Strategy::Script, 1), (Strategy::Watch, 11)] {
        let waiting = async |timeout| {
            let (wait, deadline) = (Some(Wait { replicas: 1, timeout }), Duration::from_secs(40));
            Redis::open(Options { strategy, wait, deadline, ..options(&server.url()) }).await.unwrap()
        };
        let store = waiting(Duration::from_secs(20)).await;
        let has = |number: u32| {
            let key = format!("idemp:v1:{{p{:03}}}:{}", id(number).partition(), id(number));
            replica.command(&["GETRANGE", &key, "3", "3"]).unwrap()
        };
        let fence = claim(&store, number).await.unwrap();
        assert_eq!(has(number), "\u{1}", "the replica has it once the claim is granted");
        complete(&store, number, fence, LEASE).await;
        assert_eq!(has(number), "\u{3}", "and the answer once it is recorded");

        let hasty = waiting(Duration::from_millis(300)).await;
        replica.promote().unwrap();
        let unsure = claim(&hasty, number + 1).await.unwrap_err();
        assert_eq!((&unsure.kind, unsure.applied), (&Kind::Unavailable, Applied::Unknown), "{unsure:?}");
        assert!(unsure.source.unwrap().to_string().contains("0 of 1 replicas"));
        assert!(is_there(&hasty, number).await, "who asks for what is there waits for nobody");
        let again = hasty.insert(id(number), &facts(number + 2), LEASE).await;
        assert!(matches!(again, Ok(Insert::Existing { .. })), "{again:?}");
        // It is applied at the primary all the same, and whoever repeats it waits again.
        let repeated = hasty.insert(id(number + 1), &facts(number + 1), LEASE).await.unwrap_err();
        assert_eq!(repeated.applied, Applied::Unknown);
        replica.replicate(&server).unwrap();
        until(async || hasty.insert(id(number + 1), &facts(number + 1), LEASE).await.is_ok()).await;
        assert_eq!(has(number + 1), "\u{1}");
    }
}

#[tokio::test]
async fn what_tenants_take_up_is_known_soon_after_a_store_is_admitted() {
    let server = Server::start(&[]).unwrap();
    let other = Redis::shut(Options { usage: true, ..options(&server.url()) }).unwrap();
    // Meanwhile it has its turn, and may not ask.
    claim(&opened(&server).await, 1).await.unwrap();
    other.admit().await.unwrap();
    // A count that failed is tried again after a minute.
    let counted = until(async || other.usage("").records == 1);
    tokio::time::timeout(Duration::from_secs(30), counted).await.unwrap();
}

#[tokio::test]
async fn others_are_told_of_an_erasure_of_which_nobody_knows_whether_it_counts() {
    let server = Server::start(&[]).unwrap();
    let (here, there) = (opened(&server).await, opened(&server).await);
    let wait = Some(Wait { replicas: 1, timeout: Duration::from_millis(50) });
    let waits = Redis::open(Options { wait, ..options(&server.url()) }).await.unwrap();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    there.tell_forgotten(Arc::new(move |id| {
        let _told = heard.send(id);
    }));
    until(async || server.command(&["PUBSUB", "NUMSUB", "idemp:v1:forgotten"]).unwrap().ends_with('3')).await;
    let fence = claim(&here, 1).await.unwrap();
    complete(&here, 1, fence, LEASE).await;
    let record = here.get(id(1)).await.unwrap().record.unwrap();
    let erased = transition::forget(&record, Forget::Erase, false, "", LEASE, record.stored.written_at).unwrap();
    let Transition::Replace(write) = erased else { panic!("an erasure replaces") };
    let unsure = waits.replace(id(1), &write).await.unwrap_err();
    assert_eq!(unsure.applied, Applied::Unknown, "it is at the primary, and at no replica: {unsure:?}");
    let told = async { while hears.recv().await.unwrap() != Some(id(1)) {} };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
}

/// A claim and a completion of ten thousand bytes.
async fn complete_large(store: &Redis, number: u32) -> Result<(), StoreError> {
    let fence = claim(store, number).await?;
    try_complete(store, number, fence, LEASE, 10_000).await
}

#[tokio::test]
async fn what_others_wrote_under_our_keys_is_damage_and_a_later_version_is_told() {
    let server = Server::start(&[]).unwrap();
    for strategy in BOTH {
        let store = opened_by(&server, strategy).await;
        let number = if strategy == Strategy::Script { 1 } else { 11 };
        let key = |number: u32| format!("idemp:v1:{{p{:03}}}:{}", id(number).partition(), id(number));
        server.command(&["SET", &key(number), "hello"]).unwrap();
        let damaged = claim(&store, number).await.unwrap_err();
        assert!(matches!(damaged.kind, Kind::Damaged(_)) && damaged.applied == Applied::No, "{damaged:?}");
        assert!(matches!(store.get(id(number)).await.unwrap_err().kind, Kind::Damaged(_)));

        server.command(&["RPUSH", &key(number + 1), "a list"]).unwrap();
        let foreign = claim(&store, number + 1).await.unwrap_err();
        assert!(matches!(foreign.kind, Kind::Damaged(_)), "{foreign:?}");

        let fence = claim(&store, number + 2).await.unwrap();
        server.command(&["SETRANGE", &key(number + 2), "2", "\u{2}"]).unwrap();
        let newer = claim(&store, number + 2).await.unwrap_err();
        assert!(matches!(newer.kind, Kind::Newer(_)), "{newer:?}");
        let newer = store.extend(id(number + 2), fence, LEASE).await.unwrap_err();
        assert!(matches!(newer.kind, Kind::Newer(_)) && newer.applied == Applied::No, "{newer:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_a_store_is_refused_with_what_to_do() {
    let server = Server::start_with_acl(&[], "user default off\nuser app on >weak ~* &* +@all\n").unwrap();
    let open = Server::start(&[]).unwrap();
    for (url, want) in [
        (server.url_of("app", "wrong"), "user and the password"),
        (format!("redis://127.0.0.1:{}", server.port()), "user and the password"),
        ("redis://127.0.0.1:1".to_owned(), "refused"),
        (format!("redis+sentinel://127.0.0.1:{}/main", open.port()), "sentinel node"),
    ] {
        let refused = Redis::open(options(&url)).await.unwrap_err().to_string();
        assert!(refused.contains(want), "{url}: {refused}");
        assert!(!refused.contains("weak") && !refused.contains("wrong"), "{refused}");
    }
    Redis::open(options(&server.url_of("app", "weak"))).await.unwrap();
    let node = Server::start(&[("cluster-enabled", "yes")]).unwrap();
    let refused = Redis::open(options(&node.url())).await.unwrap_err().to_string();
    assert!(refused.contains("redis+cluster://"), "{refused}");
}

#[tokio::test]
async fn a_script_that_hangs_makes_steps_wait_no_longer_than_their_deadline_and_none_is_granted() {
    let server = Arc::new(Server::start(&[("busy-reply-threshold", "50")]).unwrap());
    let store = Redis::open(Options { deadline: Duration::from_secs(1), ..options(&server.url()) }).await.unwrap();
    let by = Arc::clone(&server);
    // Ended by SCRIPT KILL.
    let hanging = std::thread::spawn(move || by.command(&["EVAL", "while true do end", "0"]).unwrap_err());
    let is_busy = |failed: StoreError| failed.source.is_some_and(|why| why.to_string().contains("SCRIPT KILL"));
    until(async || store.get(id(1)).await.is_err_and(is_busy)).await;
    let refused = claim(&store, 1).await.unwrap_err();
    assert_eq!(refused.applied, Applied::No, "{refused:?}");
    server.command(&["SCRIPT", "KILL"]).unwrap();
    hanging.join().unwrap();
    until(async || claim(&store, 1).await.is_ok()).await;
}

#[tokio::test]
async fn whoever_waits_in_another_process_is_woken_by_a_completion_and_by_a_release() {
    let server = Server::start(&[]).unwrap();
    for (strategy, number) in [(Strategy::Script, 1), (Strategy::Watch, 3)] {
        let (here, there) = (opened_by(&server, strategy).await, opened_by(&server, strategy).await);
        let (one, two) = (claim(&here, number).await.unwrap(), claim(&here, number + 1).await.unwrap());
        let watches = [there.watch(id(number)), there.watch(id(number + 1))];
        complete(&here, number, one, LEASE).await;
        assert!(matches!(here.remove(id(number + 1), Expect::Holder(two)).await, Ok(Write::Applied { .. })));
        for watch in watches {
            tokio::time::timeout(Duration::from_secs(60), watch).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_list_has_every_record_once_at_least_in_pages_and_only_what_is_asked_for() {
    let server = Server::start(&[]).unwrap();
    let store = opened(&server).await;
    for number in 0..300 {
        let fence = claim(&store, number).await.unwrap();
        if number >= 40 {
            complete(&store, number, fence, LEASE).await;
        }
    }
    server.command(&["SET", "session:1", "somebody else's"]).unwrap();
    for (state, want) in
        [(None, 300), (Some(Seen::InFlight), 40), (Some(Seen::Completed), 260), (Some(Seen::Unknown), 0)]
    {
        let filter = Filter { state, ..Filter::default() };
        let (mut after, mut seen) = (None, std::collections::BTreeSet::new());
        loop {
            let page = store.scan(after, 7, filter.clone()).await.unwrap();
            assert!(page.records.len() <= 7);
            seen.extend(page.records.into_iter().map(|(id, _)| id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), want, "{state:?}");
    }
    until(async || store.stats().concerns.iter().any(|concern| concern.contains("1 of its keys are somebody else's")))
        .await;
    let refused = store.scan(Some(id(1)), 7, Filter::default()).await.unwrap_err();
    assert!(refused.source.unwrap().to_string().contains("its last page"));
}

#[tokio::test]
async fn a_fence_is_above_what_was_written_down_whatever_the_clock_says() {
    for (strategy, number) in [(Strategy::Script, 1), (Strategy::Watch, 2)] {
        let server = Server::start(&[]).unwrap();
        let store = opened_by(&server, strategy).await;
        let first = claim(&store, number).await.unwrap();
        let ahead = first.0 + 1_500_000;
        let marker = format!("idemp:v1:{{p{:03}}}:m", id(number).partition());
        let bytes = ahead.to_be_bytes().iter().map(|byte| format!("\\{byte}")).collect::<String>();
        let script = format!("return redis.call('SETRANGE', KEYS[1], 16, '{bytes}')");
        server.command(&["EVAL", &script, "1", &marker]).unwrap();
        let removed = store.remove(id(number), Expect::Holder(first)).await;
        assert!(matches!(removed, Ok(Write::Applied { .. })), "{strategy:?}: {removed:?}");
        let again = claim(&store, number).await.unwrap();
        assert!(again > Fence(ahead), "{strategy:?}: {again:?}");
        // That fence, which is above the clock and what was written down, is gone with its record.
        let removed = store.remove(id(number), Expect::Holder(again)).await;
        assert!(matches!(removed, Ok(Write::Applied { .. })), "{strategy:?}: {removed:?}");
        let last = claim(&store, number).await.unwrap();
        assert!(last > again, "{strategy:?}: {last:?} after {again:?}");
    }
}

#[test]
fn an_address_is_shown_without_its_password() {
    let address = Address::new("redis://app:weak@h", Default::default(), Default::default(), None).unwrap();
    assert!(!format!("{:?}", Options::new(address)).contains("weak"));
}
