//! What steps leave behind in Redis, looked at from beside, whichever way they are taken.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use onceward_core::{
    cas::{Expect, FenceRule, Keep, Lease, Replacement},
    key::RecordId,
    outcome::Outcome,
    transition::{self, Forget, Write as Transition},
};
use onceward_store::{
    Applied, Insert, Kind, Store, Write,
    redis::{Options, Redis, Strategy},
};
use servers::Redis as Server;

use crate::{
    opened_by,
    redis_place::{LEASE, claim, complete, facts, id, options},
};

/// Both ways to take a step, with a record for each.
const BOTH: [(Strategy, u32); 2] = [(Strategy::Script, 1), (Strategy::Watch, 2)];

fn key(id: RecordId) -> String {
    format!("idemp:v1:{{p{:03}}}:{id}", id.partition())
}

#[tokio::test]
async fn what_is_in_flight_is_listed_and_has_no_end_and_what_is_settled_is_not_listed_and_has_one() {
    let server = Server::start(&[]).unwrap();
    for (strategy, number) in BOTH {
        let store = opened_by(&server, strategy).await;
        let list = format!("idemp:v1:{{p{:03}}}:open", id(number).partition());
        let command = |words: &[&str]| server.command(words).unwrap();
        let is_open = || {
            let listed = command(&["SCARD", &list]) == "1";
            let ends = command(&["PTTL", &key(id(number))]) != "-1";
            assert_ne!(listed, ends, "{strategy:?}");
            listed
        };
        let fence = claim(&store, number).await.unwrap();
        assert!(is_open(), "{strategy:?}: a claim");
        let stays = Replacement {
            expect: Expect::Holder(fence),
            fence: FenceRule::Keep,
            lease: Lease::For(LEASE),
            keep: Keep::Open,
            facts: facts(number),
        };
        assert!(matches!(store.replace(id(number), &stays).await, Ok(Write::Applied { .. })));
        assert!(is_open(), "{strategy:?}: it goes on");
        complete(&store, number, fence, LEASE).await;
        assert!(!is_open(), "{strategy:?}: it is settled");
        let stored = store.get(id(number)).await.unwrap().record.unwrap().stored;
        let again =
            Replacement { expect: Expect::Seen(stored.fence, stored.revision), fence: FenceRule::Next, ..stays };
        assert!(matches!(store.replace(id(number), &again).await, Ok(Write::Applied { .. })));
        assert!(is_open(), "{strategy:?}: it is taken over");
    }
}

#[tokio::test]
async fn a_body_that_lies_apart_goes_with_its_record() {
    let server = Server::start(&[]).unwrap();
    for (strategy, number) in BOTH {
        let store = opened_by(&server, strategy).await;
        for how in [Forget::Reuse, Forget::Erase] {
            let Insert::Inserted { fence, now } = store.insert(id(number), &facts(number), LEASE).await.unwrap() else {
                panic!("it is there")
            };
            let body = Bytes::from_static(b"{\"paid\":true}");
            let outcome = Outcome { status: 201, body, body_until: now.plus(LEASE / 2), ..Outcome::default() };
            let Transition::Replace(write) = transition::complete(&facts(number), fence, outcome, LEASE, now) else {
                panic!("a completion replaces")
            };
            assert!(matches!(store.replace(id(number), &write).await, Ok(Write::Applied { .. })));
            let lies_there = || server.command(&["EXISTS", &format!("{}:b", key(id(number)))]).unwrap() == "1";
            assert!(lies_there(), "{strategy:?}: it does not lie apart, and this shows nothing");
            let record = store.get(id(number)).await.unwrap().record.unwrap();
            let gone = match transition::forget(&record, how, false, "", LEASE, now).unwrap() {
                Transition::Replace(write) => store.replace(id(number), &write).await,
                Transition::Remove(expect) => store.remove(id(number), expect).await,
            };
            assert!(matches!(gone, Ok(Write::Applied { .. })), "{gone:?}");
            assert!(!lies_there(), "{strategy:?}: {how:?} leaves the answer's body behind");
        }
    }
}

#[tokio::test]
async fn a_completion_and_a_release_are_told_on_their_keys_channels() {
    let server = Server::start(&[]).unwrap();
    for (strategy, number) in BOTH {
        let store = opened_by(&server, strategy).await;
        let other = number + 10;
        let mut listens = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        listens.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(listens, "SUBSCRIBE {} {}\r\n", key(id(number)), key(id(other))).unwrap();
        let mut lines = BufReader::new(listens).lines().map(|line| line.expect("nobody is told"));
        let mut hear = |word: &str| {
            lines.find(|line| line == word).unwrap();
            lines.by_ref().nth(1).unwrap()
        };
        assert_eq!([hear("subscribe"), hear("subscribe")], [key(id(number)), key(id(other))]);
        let (one, two) = (claim(&store, number).await.unwrap(), claim(&store, other).await.unwrap());
        complete(&store, number, one, LEASE).await;
        assert_eq!(hear("message"), key(id(number)), "{strategy:?}");
        assert!(matches!(store.remove(id(other), Expect::Holder(two)).await, Ok(Write::Applied { .. })));
        assert_eq!(hear("message"), key(id(other)), "{strategy:?}");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_a_little_does_not_count_and_one_that_is_far_behind_is_refused() {
    let server = Server::start(&[]).unwrap();
    for (strategy, number) in BOTH {
        let store = Redis::open(Options { strategy, clock_moves: true, ..options(&server.url()) }).await.unwrap();
        let set_back = |micros: u32| {
            let script =
                format!("return redis.call('SET', KEYS[1], struct.pack('>I4I4', 4294967295, 4294967296 - {micros}))");
            let moved = format!("idemp:v1:{{p{:03}}}:moved", id(number).partition());
            server.command(&["EVAL", &script, "1", &moved]).unwrap();
        };
        let Insert::Inserted { fence, now } = store.insert(id(number), &facts(number), LEASE).await.unwrap() else {
            panic!("it is there")
        };
        set_back(1_500_000);
        assert!(matches!(store.extend(id(number), fence, LEASE * 2).await, Ok(Write::Applied { .. })));
        let stored = store.get(id(number)).await.unwrap().record.unwrap().stored;
        assert!(
            stored.written_at >= now && stored.lease_until >= now.plus(LEASE * 2),
            "{strategy:?}: {now:?} {stored:?}"
        );
        set_back(10_000_000);
        let refused = store.extend(id(number), fence, LEASE * 3).await.unwrap_err();
        assert!(matches!(refused.kind, Kind::ClockSuspect(_)), "{strategy:?}: {refused:?}");
        assert_eq!(refused.applied, Applied::No);
    }
}
