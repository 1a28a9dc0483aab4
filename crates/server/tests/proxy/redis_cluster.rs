//! Several gateways before a Redis Cluster.

use servers::RedisCluster;

use super::{
    redis::{config, gated},
    redis_doctor::look,
    support::{Gate, Start, metric, post, until},
};

const BODY: &str = "{\"amount\":5}";
const INSERTS: &str = "onceward_store_operation_seconds_count{store=\"redis\",operation=\"insert\",result=\"ok\"}";
/// Enough that each primary has some of them.
const KEYS: usize = 40;

/// Goal: over three primaries two gateways are one for each key, and whoever waits at the other one is told by the key's own
/// shard. Method: real nodes; the first key's upstream answers once its duplicate waits, the others' at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_on_a_cluster_run_each_key_once_and_answer_each_others_duplicates() {
    let (cluster, gate) = (RedisCluster::start(&[]).unwrap(), Gate::shut());
    let upstream = gated(&gate).await;
    let hosts: Vec<String> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let url = format!("redis+cluster://{}", hosts.join(","));
    let start = async || Start::before(&upstream).config(&config(&format!("url = \"{url}\""), "")).start().await;
    let (one, two) = (start().await, start().await);

    let (mut owner, mut waits) = (one.connect().await, two.connect().await);
    owner.send(post("/pay", "k-0", BODY)).await;
    upstream.reached("k-0", 1).await;
    waits.send(post("/pay", "k-0", BODY)).await;
    // It looks once more when it has begun to listen.
    until("the looks at the key", async || metric(&two.metrics().await, INSERTS) >= 2.0).await;
    let channels = |node: &servers::Redis| node.command(&["PUBSUB", "SHARDCHANNELS", "idemp:*"]).unwrap();
    assert_eq!(cluster.nodes()[..3].iter().filter(|node| !channels(node).is_empty()).count(), 1);
    gate.open();
    let (first, waited) = (owner.answer().await, waits.answer().await);
    assert!(first.status == 201 && !first.is_replay() && waited.is_replay(), "{first:?} {waited:?}");
    assert_eq!(first.text(), waited.text());

    for number in 1..KEYS {
        let key = format!("k-{number}");
        let (first, other) = tokio::join!(one.post("/pay", &key, BODY), two.post("/pay", &key, BODY));
        assert!(first.status == 201 && other.status == 201, "{first:?} {other:?}");
        assert!(first.is_replay() != other.is_replay() && first.text() == other.text(), "{first:?} {other:?}");
        assert_eq!(upstream.effects(&key), 1);
    }
    for node in &cluster.nodes()[..3] {
        assert!(
            !node.command(&["KEYS", "idemp:v1:{p*}:???????????????????????????????????????????"]).unwrap().is_empty()
        );
    }
    let (code, said) = look(&url).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ok   slots: all are served, by 3 primaries"), "{said}");
    assert_eq!(said.matches("ok   role: a primary").count(), 3, "{said}");
    for well in ["scripts", "notifications", "foreign keys", "replicas"] {
        assert!(said.contains(&format!("ok   {well}: ")), "{well}: {said}");
    }
}
