//! What the protocol takes for granted of its servers and its spool is looked at when the store is opened: what is not so is
//! refused, with what it is and how it is mended.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod journaled_place;
mod postgres_place;

use std::{fs, sync::Arc};

use journaled_place::{Load, PATIENCE, Place, redis_address, small, until};
use onceward_core::{
    key::RecordId,
    record::{ClaimId, Record, SessionId, Stored},
    transition,
};
use onceward_store::{
    journaled::{Fact, LogSpool, Spool as _},
    postgres::Failover,
    redis,
};
use servers::Redis as Server;

async fn before(server: &Server) -> Place {
    Place::new(redis::Options::new(redis_address(&server.url()))).await
}

/// Why it is refused.
async fn refused(place: &Place, name: &str) -> String {
    match place.open(name).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    }
}

fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

#[tokio::test]
async fn a_redis_that_may_evict_or_may_not_be_asked_for_info_is_refused_and_taken_once_that_is_mended() {
    let server = Server::start(&[]).unwrap();
    let place = before(&server).await;
    for policy in ["allkeys-lru", "volatile-ttl"] {
        server.command(&["CONFIG", "SET", "maxmemory-policy", policy]).unwrap();
        says(&refused(&place, "one").await, &["Redis", policy, "noeviction"]);
    }
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).unwrap();
    server.command(&["ACL", "SETUSER", "default", "-info"]).unwrap();
    says(&refused(&place, "one").await, &["Redis", "+info", "deploy/redis/onceward.acl"]);
    server.command(&["ACL", "SETUSER", "default", "+info"]).unwrap();
    place.gateway("one").await;
}

#[tokio::test]
async fn a_database_that_does_not_keep_what_it_commits_is_refused_and_taken_once_that_is_mended() {
    let server = Server::start(&[]).unwrap();
    let mut place = before(&server).await;
    for setting in ["fsync", "full_page_writes"] {
        place.postgres.reload(&format!("{setting} = off")).unwrap();
        let shown = || place.postgres.psql("onceward", &format!("SHOW {setting}")).unwrap();
        until("settings", async || shown().trim() == "off").await;
        says(&refused(&place, "one").await, &["database", setting, "set it to on"]);
        place.postgres.reload(&format!("{setting} = on")).unwrap();
        until("settings", async || shown().trim() == "on").await;
    }
    place.failover = Failover::Synchronous;
    says(&refused(&place, "one").await, &["database", "synchronous_standby_names", "asynchronous"]);
    // One that is away for a moment is waited for, and not refused.
    place.failover = Failover::Asynchronous { standbys: vec!["away".into()] };
    drop(place.gateway("one").await);
    place.failover = Failover::None;
    place.gateway("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_installations_redis_database_or_spool_is_refused_and_nothing_of_either_is_touched() {
    let (server, other_server) = (Server::start(&[]).unwrap(), Server::start(&[]).unwrap());
    let (mut place, other) = (before(&server).await, before(&other_server).await);
    let (gateway, theirs) = (place.gateway("one").await, other.gateway("one").await);
    let load = Load::start(&place, &[&gateway]);
    place.granted(50).await;
    load.end().await;
    assert!(gateway.store.leave(PATIENCE).await && theirs.store.leave(PATIENCE).await);
    drop((gateway, theirs));

    let views = |server: &Server| server.command(&["GET", "idemp:v1:{p007}:v"]).unwrap();
    let was = views(&other_server);
    place.in_front = redis::Options { deadline: place.in_front.deadline, ..other.in_front.clone() };
    says(
        &refused(&place, "one").await,
        &["another journal", &other_server.port().to_string(), "HDEL idemp:v1:meta journal"],
    );
    assert_eq!(views(&other_server), was);
    place.in_front = redis::Options::new(redis_address(&server.url()));

    // A spool in which something is left, of a gateway of the other.
    let folder = other.spools.path().join("one");
    let left = || {
        let (spool, left) = LogSpool::open(&folder, &small()).unwrap();
        (Arc::new(spool), left)
    };
    let (spool, nothing) = left();
    assert_eq!(nothing, []);
    let facts = transition::place(ClaimId([1; 16]), SessionId([2; 16]));
    let fact = Fact { id: RecordId([1; 32]), record: Arc::new(Record { stored: Stored::default(), facts }) };
    spool.append(SessionId([2; 16]), &fact).await.unwrap();
    drop(spool);
    fs::remove_dir_all(place.spools.path().join("one")).unwrap();
    copy(&folder, &place.spools.path().join("one"));
    says(&refused(&place, "one").await, &["spool", "another journal", "a folder of its own"]);
    drop(left());
    let (_spool, left) = left();
    assert_eq!(left.len(), 1, "whoever has that database finds it still");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_damaged_is_refused_with_what_to_do_and_that_heals_it() {
    let server = Server::start(&[]).unwrap();
    let place = before(&server).await;
    let (one, other) = (place.gateway("one").await, place.gateway("other").await);
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    drop(other);
    let folder = place.spools.path().join("other");
    until("spools", async || LogSpool::open(&folder, &small()).is_ok()).await;
    let segment = |name: &str| name.starts_with("segment-") && !name.contains("hint");
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| {
        segment(path.file_name().unwrap().to_str().unwrap()) && fs::metadata(path).unwrap().len() > 1 << 16
    });
    names.sort();
    let mut bytes = fs::read(&names[0]).unwrap();
    // In the first batch: behind it there are more, so that no crash has done it.
    bytes[4096 + 100] ^= 1;
    fs::write(&names[0], bytes).unwrap();
    let why = LogSpool::open(&folder, &small()).unwrap_err().to_string();
    says(&why, &["is damaged at byte", "put its folder aside", "Redis"]);

    fs::rename(&folder, place.spools.path().join("aside")).unwrap();
    let other = place.gateway("other").await;
    let retired = || place.postgres.psql("onceward", "SELECT count(*) FROM onceward.journal_member WHERE status = 3");
    until("retirements", async || retired().unwrap().trim() == "1").await;
    // Nobody waits for it any more, also where Redis is lost now.
    server.command(&["FLUSHALL"]).unwrap();
    let load = Load::start(&place, &[&one, &other]);
    place.granted(200).await;
    load.end().await;
    place.judge(400);
}
