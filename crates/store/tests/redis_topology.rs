//! Failovers and moves: what the store does while Sentinels and Clusters change under it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod redis_place;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use onceward_core::key::PARTITIONS;
use onceward_store::{
    Insert, Kind, Store,
    redis::{
        Evictions, Options, Redis, Strategy,
        address::{Address, Credentials},
    },
};
use redis_place::{LEASE, claim, complete, facts, id, is_there, options, until};
use servers::{RedisCluster, Sentinels};

fn by_sentinels(sentinels: &Sentinels, strategy: Strategy) -> Options {
    let hosts: Vec<String> = sentinels.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("redis+sentinel://{}/{}", hosts.join(","), Sentinels::NAME);
    let watcher = Credentials { user: Some("watcher".into()), password: Some("weak".into()) };
    let address = Address::new(&url, Credentials::default(), watcher, None).unwrap();
    Options { strategy, ..Options::new(address) }
}

fn of_cluster(cluster: &RedisCluster) -> Options {
    let hosts: Vec<String> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    options(&format!("redis+cluster://{}", hosts.join(",")))
}

fn slot(cluster: &RedisCluster, partition: u16) -> u16 {
    cluster.slot_of(&format!("idemp:v1:{{p{partition:03}}}:m")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failover_to_a_stale_replica_is_followed_and_told_with_the_time_in_which_claims_were_lost() {
    let mut sentinels = Sentinels::start(&[], 1, Some(("watcher", "weak"))).unwrap();
    let stores = [
        Redis::open(by_sentinels(&sentinels, Strategy::Script)).await.unwrap(),
        Redis::open(by_sentinels(&sentinels, Strategy::Watch)).await.unwrap(),
    ];
    for (store, number) in stores.iter().zip([1, 2]) {
        let fence = claim(store, number).await.unwrap();
        complete(store, number, fence, LEASE).await;
    }
    let primary = sentinels.primary().unwrap();
    sentinels.settle().unwrap();
    sentinels.nodes()[primary].command(&["WAIT", "1", "10000"]).unwrap();
    // The replica does not hear of what is claimed now.
    let replica = 1 - primary;
    sentinels.nodes()[replica].pause().unwrap();
    sentinels.nodes()[primary].command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    let (lost, by_watch) = (claim(&stores[0], 3).await.unwrap(), claim(&stores[1], 4).await.unwrap());
    // Long before the failover: the servers were looked at since, and were well.
    for (number, fence) in [(3, lost), (4, by_watch)] {
        until(async || marked_at(&sentinels.nodes()[primary], id(number).partition()) > fence.0).await;
    }
    let said = sentinels.said();
    sentinels.node(primary).unwrap().kill().unwrap();
    sentinels.nodes()[replica].resume().unwrap();
    sentinels.wait_for_switch(&said).unwrap();
    for (store, (settled, taken, fence)) in stores.iter().zip([(1, 3, lost), (2, 4, by_watch)]) {
        // While two processes notice it, a step may meet another epoch each time: it is refused, and asked again.
        let has = async |number| {
            let read = Mutex::new(None);
            until(async || {
                *read.lock().unwrap() = store.get(id(number)).await.ok();
                read.lock().unwrap().is_some()
            })
            .await;
            read.into_inner().unwrap().unwrap().record.is_some()
        };
        until(async || store.stats().cache.is_some_and(|cache| cache.losses > 0)).await;
        assert!(has(settled).await, "what had reached the replica is there");
        assert!(!has(taken).await, "the replica is not stale, and this shows nothing");
        let cache = store.stats().cache.unwrap();
        let loss = &cache.last[0];
        assert!(loss.why.contains("failed over") || loss.why.contains("another process"), "{loss:?}");
        assert!(loss.from.0 <= fence.0 && fence.0 <= loss.to.0, "{fence:?} is not in {loss:?}");
        let again = Mutex::new(None);
        until(async || {
            *again.lock().unwrap() = claim(store, taken).await.ok();
            again.lock().unwrap().is_some()
        })
        .await;
        assert!(again.into_inner().unwrap() > Some(fence), "S4");
    }
}

/// The time that is written down in a partition's marker.
fn marked_at(server: &servers::Redis, partition: u16) -> u64 {
    let script = "return string.format('%.0f', struct.unpack('>I4', redis.call('GET', KEYS[1]), 17) * 4294967296 \
                  + struct.unpack('>I4', redis.call('GET', KEYS[1]), 21))";
    let key = format!("idemp:v1:{{p{partition:03}}}:m");
    let said = server.command(&["EVAL", script, "1", &key]).unwrap();
    said.parse::<f64>().unwrap() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_move_of_a_slot_under_load_grants_no_key_twice_and_is_no_loss() {
    let cluster = Arc::new(RedisCluster::start(&[]).unwrap());
    let stores = [
        Arc::new(Redis::open(of_cluster(&cluster)).await.unwrap()),
        Arc::new(Redis::open(of_cluster(&cluster)).await.unwrap()),
    ];
    let partition = 17;
    let in_partition: Vec<u32> = (0..).filter(|number| id(*number).partition() == partition).take(400).collect();
    let ends = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU32::new(0));
    let granted: Vec<_> = (0..8)
        .map(|worker| {
            let (store, ends, next, numbers) =
                (Arc::clone(&stores[worker % 2]), Arc::clone(&ends), Arc::clone(&next), in_partition.clone());
            tokio::spawn(async move {
                let (mut granted, mut again) = (Vec::new(), 0);
                while !ends.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize / 2;
                    // Each key is claimed twice at least, by different claims.
                    let number = numbers[at % numbers.len()];
                    let mut facts = facts(number);
                    getrandom::fill(&mut facts.claim_id.0).unwrap();
                    match store.insert(id(number), &facts, LEASE).await {
                        Ok(Insert::Inserted { fence, .. }) => granted.push((number, fence)),
                        // A claim whose answer was lost recognises itself.
                        Ok(Insert::Existing { record, .. }) if record.facts.claim_id == facts.claim_id => {
                            granted.push((number, record.stored.fence));
                        }
                        Ok(Insert::Existing { .. }) => again += 1,
                        Err(error) => assert_eq!(error.kind, Kind::Unavailable, "{error:?}"),
                    }
                }
                (granted, again)
            })
        })
        .collect();
    until(async || next.load(Ordering::Relaxed) > 100).await;
    let slot = slot(&cluster, partition);
    let to = (cluster.primary_of(slot).unwrap() + 1) % 3;
    let mover = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || {
        let moving = mover.begin_move(slot, to).unwrap();
        // Some keys are here, some there: whoever asks for both is to try again.
        while mover.move_keys(moving, 5).unwrap() > 0 {}
        mover.end_move(moving).unwrap();
        assert_eq!(mover.primary_of(slot).unwrap(), to);
    })
    .await
    .unwrap();
    let moved_at = next.load(Ordering::Relaxed);
    until(async || next.load(Ordering::Relaxed) > moved_at + 1_000).await;
    ends.store(true, Ordering::Relaxed);
    let (mut fences, mut repeats) = (HashMap::new(), 0);
    for worker in granted {
        let (granted, again) = worker.await.unwrap();
        repeats += again;
        for (number, fence) in granted {
            let before = fences.insert(number, fence);
            assert!(before.is_none_or(|before| before == fence), "{number} was granted twice: {before:?}, {fence:?}");
        }
    }
    assert!(fences.len() > 100 && repeats > 500, "{} keys, {repeats} repeats", fences.len());
    for store in stores {
        assert_eq!(store.stats().cache.unwrap().losses, 0, "a move is no loss");
    }
}

/// Has a node evict one key of its own.
fn evict(cluster: &RedisCluster, node: usize) {
    let key = (0..).map(|n| format!("other-{n}")).find(|key| {
        let slot = cluster.slot_of(key).unwrap();
        cluster.primary_of(slot).unwrap() == node
    });
    let of = cluster.node(node).unwrap();
    of.command(&["SET", &key.unwrap(), "value", "EX", "3600"]).unwrap();
    of.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]).unwrap();
    of.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    // Before a command it makes room where it can.
    let _refused = of.command(&["SET", "other", "value"]);
    of.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    assert!(!of.command(&["INFO", "stats"]).unwrap().contains("evicted_keys:0\r"), "it evicted nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn evictions_of_before_a_slot_moved_there_are_no_loss_of_it_and_those_after_are() {
    let cluster = RedisCluster::start(&[]).unwrap();
    let partition = 17;
    let slot = slot(&cluster, partition);
    let to = (cluster.primary_of(slot).unwrap() + 1) % 3;
    evict(&cluster, to);
    let store = Redis::open(Options { evictions: Evictions::Inline, ..of_cluster(&cluster) }).await.unwrap();
    let mut numbers = (0..).filter(|number| id(*number).partition() == partition);
    let granted = async |number| {
        // Whoever meets what is not known yet is refused, and nothing is done.
        until(async || claim(&store, number).await.is_ok()).await;
        store.stats().cache.unwrap().losses
    };
    assert_eq!(granted(numbers.next().unwrap()).await, 0);
    cluster.move_slot(slot, to).unwrap();
    assert_eq!(granted(numbers.next().unwrap()).await, 0, "nothing that it has now was evicted");
    evict(&cluster, to);
    assert_eq!(granted(numbers.next().unwrap()).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_primary_of_a_cluster_that_is_killed_is_replaced_and_what_it_served_last_is_told_as_lost() {
    let mut cluster = RedisCluster::start(&[]).unwrap();
    let store = Redis::open(of_cluster(&cluster)).await.unwrap();
    let numbers: Vec<u32> = (0..60).collect();
    for number in &numbers {
        let fence = claim(&store, *number).await.unwrap();
        complete(&store, *number, fence, LEASE).await;
    }
    // Each of the first three has a third of the slots.
    let slots: Vec<u16> = (0..PARTITIONS).map(|partition| slot(&cluster, partition)).collect();
    let node = |slot: u16| usize::from(slot / 16_384_u16.div_ceil(3));
    let (dies, lives) = (node(slots[0]), (node(slots[0]) + 1) % 3);
    let (mut theirs, others): (Vec<u16>, Vec<u16>) =
        (1..PARTITIONS).partition(|at| node(slots[usize::from(*at)]) == dies);
    let leaves = theirs.pop().unwrap();
    let [comes, comes_last, ..] = others[..] else { panic!("{others:?}") };
    let move_to = |partition: u16, to| cluster.move_slot(slots[usize::from(partition)], to).unwrap();
    move_to(leaves, lives);
    move_to(comes, dies);
    // Each begins as its server's others do once it was looked at there.
    let begins = |at: usize, partition: u16| {
        let marker = format!("idemp:v1:{{p{partition:03}}}:m");
        cluster.nodes()[at].command(&["GETRANGE", &marker, "0", "7"]).unwrap()
    };
    let stays = others.iter().copied().find(|at| node(slots[usize::from(*at)]) == lives && *at > comes_last).unwrap();
    until(async || begins(dies, comes) == begins(dies, 0) && begins(lives, leaves) == begins(lives, stays)).await;
    // This one may not have been.
    move_to(comes_last, dies);
    for node in &cluster.nodes()[..3] {
        node.wait_for_replicas(1).unwrap();
    }
    let slot = slots[0];
    let killed = cluster.kill_primary(slot).unwrap();
    let to = cluster.wait_for_failover(slot, killed).unwrap();
    assert_ne!(to, killed);
    until(async || store.stats().cache.is_some_and(|cache| cache.losses > 0)).await;
    let cache = store.stats().cache.unwrap();
    // The first, those that stayed, and two that came.
    assert_eq!(cache.last.iter().map(|loss| loss.partitions).sum::<usize>(), 1 + theirs.len() + 2, "{cache:?}");
    for number in numbers {
        until(async || store.get(id(number)).await.is_ok()).await;
        assert!(is_there(&store, number).await, "{number} had reached the replica");
    }
    until(async || claim(&store, 100_000).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_slots_that_nobody_serves_grants_nothing_there_and_goes_on_elsewhere() {
    let mut cluster = RedisCluster::start(&[("cluster-require-full-coverage", "no")]).unwrap();
    let mut opened = of_cluster(&cluster);
    opened.deadline = Duration::from_millis(700);
    let store = Redis::open(opened).await.unwrap();
    let down = slot(&cluster, id(1).partition());
    let at = cluster.primary_of(down).unwrap();
    let elsewhere =
        (2..).find(|number| cluster.primary_of(slot(&cluster, id(*number).partition())).unwrap() != at).unwrap();
    // The replica first, so that nobody takes the primary's place.
    cluster.node_mut(at + 3).unwrap().kill().unwrap();
    cluster.node_mut(at).unwrap().kill().unwrap();
    let failed = claim(&store, 1).await.unwrap_err();
    assert!(matches!(failed.kind, Kind::Unavailable | Kind::NotPrimary), "{failed:?}");
    until(async || claim(&store, elsewhere).await.is_ok()).await;
    until(async || !store.stats().concerns.is_empty()).await;
}

#[test]
fn a_tenants_million_keys_are_even_over_the_partitions() {
    use onceward_core::key::{RecordId, Scope, Secret};
    let secret = Secret::from_bytes([7; 32]);
    let scope = Scope { tenant: "acme", env: "live", principal: "anonymous", route: "create-payment" };
    let mut counts = vec![0_u32; usize::from(PARTITIONS)];
    const KEYS: u32 = 1_000_000;
    for number in 0..KEYS {
        counts[usize::from(RecordId::derive(&secret, &scope, &format!("order-{number}")).partition())] += 1;
    }
    let expected = f64::from(KEYS) / f64::from(PARTITIONS);
    let chi: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    // The value that chi squared with 255 degrees of freedom passes once in a thousand times.
    assert!(chi < 330.52, "{chi}");
}
