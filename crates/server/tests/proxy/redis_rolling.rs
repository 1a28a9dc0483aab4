//! Two builds on one Redis. `OTHER_ONCEWARD` names the binary of the other one; without it both are this build, and
//! `cargo xtask rolling` runs it with two.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use servers::Redis;
use tokio::sync::RwLock;

use super::{
    redis::{config, url},
    support::{Answer, Gateway, Start, Upstream, post, until},
};

const CLIENTS: usize = 6;
/// Operations before, between and after the two replacements.
const STRETCH: usize = 40;

/// A gateway, and whoever takes its place.
type Place = RwLock<Gateway>;

/// Asks whoever is there until there is an answer of the API, as a client does whose connection a deploy cuts.
async fn ask(place: &Place, key: &str) -> Answer {
    for _ in 0..20 {
        // Connected before the place is given away; what becomes of it then is the drain's.
        let mut client = place.read().await.connect().await;
        client.send(post("/pay", key, "{}")).await;
        match client.try_answer().await {
            Ok(answer) if answer.status == 409 && answer.slug() == "in-flight" => {}
            Ok(answer) => return answer,
            Err(_cut) => {}
        }
    }
    panic!("{key}: no answer");
}

/// Starts the next before the one there is stopped, as a rolling deploy does.
async fn replace(place: &Place, by: Start) {
    let next = by.start().await;
    let mut old = std::mem::replace(&mut *place.write().await, next);
    old.terminate();
    assert!(old.ended().await.success(), "{}", old.log());
}

#[tokio::test]
async fn gateways_of_two_builds_on_one_redis_are_one_for_a_key_while_each_takes_the_others_place() {
    let (server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let this = || Start::before(&upstream).config(&config(&url(&server), ""));
    let other = || match std::env::var("OTHER_ONCEWARD") {
        Ok(binary) => this().binary(binary),
        Err(_) => this(),
    };
    let places = Arc::new([RwLock::new(this().start().await), RwLock::new(other().start().await)]);
    for (first, second) in [(0, 1), (1, 0)] {
        let key = format!("k-{first}");
        let answer = ask(&places[first], &key).await;
        let again = ask(&places[second], &key).await;
        assert!(answer.status == 201 && again.is_replay() && again.essence() == answer.essence(), "{again:?}");
        let mismatch = places[second].read().await.post("/pay", &key, "{\"other\":1}").await;
        assert_eq!(mismatch.slug(), "key-reused");
    }

    let (done, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let client = |number: usize| {
        let (places, done, stop) = (Arc::clone(&places), Arc::clone(&done), Arc::clone(&stop));
        async move {
            let mut keys = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                let key = format!("c-{number}-{}", keys.len());
                let (one, two) = tokio::join!(ask(&places[0], &key), ask(&places[1], &key));
                assert!(one.status == 201 && two.status == 201, "{key}: {one:?} {two:?}");
                assert_eq!(one.essence(), two.essence(), "{key}");
                keys.push(key);
                done.fetch_add(1, Ordering::SeqCst);
            }
            keys
        }
    };
    let clients: Vec<_> = (0..CLIENTS).map(|number| tokio::spawn(client(number))).collect();
    let stretch = async || {
        let from = done.load(Ordering::SeqCst);
        let all = || clients.iter().all(|client| !client.is_finished());
        until("operations", async || !all() || done.load(Ordering::SeqCst) >= from + STRETCH).await;
    };
    stretch().await;
    replace(&places[0], other()).await;
    stretch().await;
    replace(&places[1], this()).await;
    stretch().await;
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        for key in client.await.unwrap() {
            assert_eq!(upstream.effects(&key), 1, "{key}");
        }
    }
}

// contract: store.write_version
#[tokio::test]
async fn a_version_of_records_that_this_build_does_not_write_is_refused_with_those_that_it_does() {
    let upstream = Upstream::charging().await;
    let start = |version: u8| Start::before(&upstream).config(&format!("[store]\nwrite_version = {version}\n"));
    let (code, said) = start(2).refused().await;
    let told = "is 2: this build writes version 1 of records and reads 1 to 1; say 1, or leave it out";
    assert!(code == 2 && said.contains(told), "{code} {said}");
    assert_eq!(start(1).start().await.post("/pay", "k-1", "{}").await.status, 201);
}
