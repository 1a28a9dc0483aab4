//! Every case of the list on Redis: on one server, by scripts and by transactions, under the access list that is shipped,
//! on Valkey, on a primary that Sentinels name, and on a Cluster.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use onceward_store::{
    conformance::{OnRedis, Servers, run_all},
    redis::{
        Options, Strategy,
        address::{Address, Credentials},
    },
};
use servers::{Redis, RedisCluster, Sentinels};

/// How many cases run at a time where each has a server of its own.
const AT_ONCE: usize = 4;

/// Time enough for a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(20);

fn options(url: &str) -> Options {
    let address = Address::new(url, Credentials::default(), Credentials::default(), None).unwrap();
    Options { deadline: DEADLINE, ..Options::new(address) }
}

fn alone(server: Redis, options: Options) -> Servers {
    Servers { options, keep: Box::new(server) }
}

#[test]
fn every_case_of_the_list_holds_on_one_server() {
    let servers = || {
        let server = Redis::start(&[]).unwrap();
        let url = server.url();
        alone(server, options(&url))
    };
    run_all(&OnRedis { name: "redis", servers: Some(servers) }, AT_ONCE);
}

#[test]
fn every_case_of_the_list_holds_on_valkey() {
    let servers = || {
        let server = Redis::valkey(&[]).unwrap();
        let url = server.url();
        alone(server, options(&url))
    };
    run_all(&OnRedis { name: "redis-valkey", servers: Some(servers) }, AT_ONCE);
}

#[test]
fn every_case_of_the_list_holds_by_transactions_where_scripts_are_forbidden() {
    let servers = || {
        let server = Redis::start_with_acl(&[], "user default on nopass ~* &* +@all -@scripting\n").unwrap();
        let options = Options { strategy: Strategy::Watch, ..options(&server.url()) };
        alone(server, options)
    };
    run_all(&OnRedis { name: "redis-watch", servers: Some(servers) }, AT_ONCE);
}

#[test]
fn every_case_of_the_list_holds_with_the_rights_of_the_access_list_that_is_shipped() {
    let servers = || {
        let server = Redis::start_with_acl(&[], include_str!("../../../deploy/redis/onceward.acl")).unwrap();
        let url = server.url_of("onceward", "change-me");
        alone(server, options(&url))
    };
    run_all(&OnRedis { name: "redis-acl", servers: Some(servers) }, AT_ONCE);
}

/// Servers that take long to start are emptied for each case, one case after the other.
fn sentinels(strategy: Strategy) -> Servers {
    static PLACE: OnceLock<Mutex<Option<Arc<Sentinels>>>> = OnceLock::new();
    let place = PLACE.get_or_init(Mutex::default);
    let sentinels = Arc::clone(
        place
            .lock()
            .unwrap()
            .get_or_insert_with(|| Arc::new(Sentinels::start(&[], 1, Some(("watcher", "weak"))).unwrap())),
    );
    sentinels.nodes()[sentinels.primary().unwrap()].command(&["FLUSHALL"]).unwrap();
    let hosts: Vec<String> = sentinels.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("redis+sentinel://{}/{}", hosts.join(","), Sentinels::NAME);
    let watcher = Credentials { user: Some("watcher".into()), password: Some("weak".into()) };
    let address = Address::new(&url, Credentials::default(), watcher, None).unwrap();
    Servers { options: Options { strategy, deadline: DEADLINE, ..Options::new(address) }, keep: Box::new(sentinels) }
}

#[test]
fn every_case_of_the_list_holds_on_the_primary_that_sentinels_name_by_scripts_and_by_transactions() {
    let (by_script, by_watch) = (|| sentinels(Strategy::Script), || sentinels(Strategy::Watch));
    run_all(&OnRedis { name: "redis-sentinel", servers: Some(by_script) }, 1);
    run_all(&OnRedis { name: "redis-sentinel-watch", servers: Some(by_watch) }, 1);
}

#[test]
fn every_case_of_the_list_holds_on_a_cluster() {
    static PLACE: OnceLock<Arc<RedisCluster>> = OnceLock::new();
    let servers = || {
        let cluster = PLACE.get_or_init(|| Arc::new(RedisCluster::start(&[]).unwrap()));
        cluster.nodes()[..3].iter().for_each(|node| drop(node.command(&["FLUSHALL"]).unwrap()));
        let hosts: Vec<String> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let options = options(&format!("redis+cluster://{}", hosts.join(",")));
        Servers { options, keep: Box::new(Arc::clone(cluster)) }
    };
    run_all(&OnRedis { name: "redis-cluster", servers: Some(servers) }, 1);
}
