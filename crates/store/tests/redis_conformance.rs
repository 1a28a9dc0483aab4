//! Every case of the list on Redis.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::VecDeque, sync::Mutex};

use onceward_store::{
    conformance::{self, OnRedis, Servers},
    redis::{
        Options, Strategy,
        address::{Address, Credentials},
    },
};

/// How many cases run at a time, each on a database or servers of its own.
const AT_ONCE: u32 = 4;

fn options(url: &str) -> Options {
    Options::new(Address::new(url, Credentials::default(), Credentials::default(), None).unwrap())
}

/// Runs the whole list, some cases at a time, and tells of each.
fn every_case_holds(subject: OnRedis) {
    let names = Mutex::new(conformance::NAMES.iter().copied().collect::<VecDeque<_>>());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(name) = { names.lock().unwrap().pop_front() } {
                    let case = std::panic::catch_unwind(|| conformance::run_one(&subject, name));
                    println!("{}: {name} {}", subject.name, if case.is_ok() { "holds" } else { "FAILED" });
                    if case.is_err() {
                        failed.lock().unwrap().push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} cases failed: {failed:?}", failed.len(), conformance::NAMES.len());
}

#[test]
fn every_case_of_the_list_holds_by_transactions_where_scripts_are_forbidden() {
    let servers = || {
        let server = servers::Redis::start_with_acl(&[], "user default on nopass ~* &* +@all -@scripting\n").unwrap();
        let options = Options { strategy: Strategy::Watch, ..options(&server.url()) };
        Servers { options, keep: Box::new(server) }
    };
    every_case_holds(OnRedis { name: "redis-watch", servers: Some(servers) });
}

#[test]
fn every_case_of_the_list_holds_on_one_server() {
    let servers = || {
        let server = servers::Redis::start(&[]).unwrap();
        Servers { options: options(&server.url()), keep: Box::new(server) }
    };
    every_case_holds(OnRedis { name: "redis", servers: Some(servers) });
}
