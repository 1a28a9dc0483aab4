//! Redis in front of a journal, where that Redis is a Cluster or stands under Sentinels: primaries that fail over to replicas.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod journaled_place;
mod postgres_place;

use journaled_place::{Load, Place, redis_address};
use onceward_store::redis::{
    Options,
    address::{Address, Credentials},
};
use servers::{RedisCluster, Sentinels};

fn of_cluster(cluster: &RedisCluster) -> Options {
    let hosts: Vec<String> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    Options::new(redis_address(&format!("redis+cluster://{}", hosts.join(","))))
}

fn by_sentinels(sentinels: &Sentinels) -> Options {
    let hosts: Vec<String> = sentinels.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("redis+sentinel://{}/{}", hosts.join(","), Sentinels::NAME);
    let watcher = Credentials { user: Some("watcher".into()), password: Some("weak".into()) };
    Options::new(Address::new(&url, Credentials::default(), watcher, None).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_of_a_cluster_is_killed_and_its_replica_serves_in_views_of_its_own() {
    let mut cluster = RedisCluster::start(&[]).unwrap();
    let place = Place::new(of_cluster(&cluster)).await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    let slot = cluster.slot_of("idemp:v1:{p007}:v").unwrap();
    let killed = cluster.kill_primary(slot).unwrap();
    cluster.wait_for_failover(slot, killed).unwrap();
    let views = "SELECT count(*) FROM onceward.journal_view WHERE partition = 7 AND active AND number > 1";
    journaled_place::until("view of the new primary", async || {
        place.postgres.psql("onceward", views).unwrap().trim() == "1"
    })
    .await;
    // Of all partitions, those of the killed primary too.
    place.granted(600).await;
    load.end().await;
    place.judge(800);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinels_a_replica_that_lacks_the_last_claims_takes_over_and_no_key_is_granted_twice() {
    let mut sentinels = Sentinels::start(&[], 1, Some(("watcher", "weak"))).unwrap();
    let place = Place::new(by_sentinels(&sentinels)).await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    let primary = sentinels.primary().unwrap();
    sentinels.settle().unwrap();
    // The replica does not hear of what is claimed now.
    let replica = 1 - primary;
    sentinels.nodes()[replica].pause().unwrap();
    sentinels.nodes()[primary].command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    place.granted(100).await;
    let said = sentinels.said();
    sentinels.node(primary).unwrap().kill().unwrap();
    sentinels.nodes()[replica].resume().unwrap();
    sentinels.wait_for_switch(&said).unwrap();
    place.granted(200).await;
    load.end().await;
    place.judge(500);
}
