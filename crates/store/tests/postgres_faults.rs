//! What goes wrong with a real server, and what the store then says.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onceward_core::{
    cas::Expect,
    outcome::Outcome,
    record::{ClaimId, Facts, Fence, Micros, SessionId},
    transition::{self, Write as Transition},
};
use onceward_store::{
    Applied, Insert, Kind, Store, StoreError, Write,
    postgres::{
        OpenError, Options, Postgres,
        address::Address,
        migrate::{MIGRATIONS, migrate},
    },
};
use servers::Postgres as Server;

const LEASE: Duration = Duration::from_secs(60);

async fn served(settings: &[(&str, &str)]) -> Server {
    let server = Server::start(settings).unwrap();
    server.create_database("shop").unwrap();
    migrate(&address(&server), MIGRATIONS, false).await.unwrap();
    server
}

fn address(server: &Server) -> Address {
    Address::new(&server.url("shop"), None, None).unwrap()
}

async fn opened(server: &Server) -> Postgres {
    Postgres::open(Options { deadline: Duration::from_secs(20), ..Options::new(address(server)) }).await.unwrap()
}

fn id(number: u32) -> onceward_core::key::RecordId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.wrapping_mul(0x9E37_79B9).to_be_bytes());
    id[4..8].copy_from_slice(&number.to_be_bytes());
    onceward_core::key::RecordId(id)
}

fn facts(number: u32) -> Facts {
    let mut claim_id = [0; 16];
    claim_id[..4].copy_from_slice(&number.to_be_bytes());
    transition::place(ClaimId(claim_id), SessionId([1; 16]))
}

async fn claim(store: &Postgres, number: u32) -> Result<Fence, StoreError> {
    match store.insert(id(number), &facts(number), LEASE).await? {
        Insert::Inserted { fence, .. } => Ok(fence),
        Insert::Existing { record, .. } => panic!("{number} is taken by {:?}", record.facts.claim_id),
    }
}

async fn complete(store: &Postgres, number: u32, fence: Fence, keep: Duration) {
    let outcome = Outcome { status: 200, body: Bytes::from_static(b"done"), ..Outcome::default() };
    let Transition::Replace(write) = transition::complete(&facts(number), fence, outcome, keep, Micros(1)) else {
        panic!("a completion is a replacement")
    };
    assert!(matches!(store.replace(id(number), &write).await.unwrap(), Write::Applied { .. }));
}

/// Asks until `is_so`; what ends it is an event in the server, what limits it is the test's own limit.
async fn until(server: &Server, sql: &str, is_so: &str) {
    for _ in 0..2_000 {
        if server.psql("shop", sql).unwrap() == is_so {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{sql} never says {is_so}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_is_killed_loses_nothing_that_was_acknowledged_and_has_nothing_that_was_denied() {
    const KILLS: u32 = 3;
    let mut server = served(&[]).await;
    let store = Arc::new(opened(&server).await);
    let (next, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let acknowledged = Arc::new(AtomicU32::new(0));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (store, next, stop) = (Arc::clone(&store), Arc::clone(&next), Arc::clone(&stop));
            let acknowledged = Arc::clone(&acknowledged);
            tokio::spawn(async move {
                let mut said = HashMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let claimed = claim(&store, number).await;
                    acknowledged.fetch_add(u32::from(claimed.is_ok()), Ordering::Relaxed);
                    said.insert(number, claimed.map_err(|error| error.applied));
                    tokio::task::yield_now().await;
                }
                said
            })
        })
        .collect();
    for _ in 0..KILLS {
        let before = acknowledged.load(Ordering::Relaxed);
        while acknowledged.load(Ordering::Relaxed) < before + 200 {
            tokio::task::yield_now().await;
        }
        server.kill().unwrap();
        server.start_again().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (mut done, mut denied, mut unknown) = (0, 0, 0);
    for caller in callers {
        for (number, said) in caller.await.unwrap() {
            let there = store.get(id(number)).await.unwrap().record;
            match said {
                Ok(fence) => {
                    assert_eq!(there.map(|record| record.stored.fence), Some(fence), "{number} was acknowledged")
                }
                Err(Applied::No) => assert!(there.is_none(), "{number} was denied and is there"),
                Err(Applied::Unknown) => unknown += 1,
            }
            done += u32::from(said.is_ok());
            denied += u32::from(said == Err(Applied::No));
        }
    }
    println!("{done} acknowledged, {denied} denied, {unknown} unknown over {KILLS} kills");
    assert!(done >= KILLS * 200 && denied + unknown > 0, "the kills met nobody");
}

/// From here on commits wait for a standby that does not come: they are on this server, and nobody is told.
async fn withhold_answers(server: &Server) {
    server.psql("shop", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    server.psql("shop", "SELECT pg_reload_conf()").unwrap();
    until(server, "SHOW synchronous_standby_names", "nobody").await;
}

/// A claim that the server has committed and does not answer.
async fn unanswered(
    server: &Server,
    store: &Arc<Postgres>,
    number: u32,
) -> tokio::task::JoinHandle<Result<Fence, StoreError>> {
    let store = Arc::clone(store);
    let claimed = tokio::spawn(async move { claim(&store, number).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%store_insert%'";
    until(server, waits, "1").await;
    claimed
}

#[tokio::test]
async fn a_wait_for_a_standby_that_is_cancelled_is_an_unknown_outcome() {
    let server = served(&[]).await;
    let store = Arc::new(opened(&server).await);
    claim(&store, 1).await.unwrap();
    withhold_answers(&server).await;
    let claimed = unanswered(&server, &store, 2).await;
    server.psql("shop", "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").unwrap();
    let failed = claimed.await.unwrap().unwrap_err();
    assert_eq!(failed.applied, Applied::Unknown, "{failed:?}");
    assert!(failed.source.unwrap().to_string().contains("synchronous standby"));
    assert!(store.get(id(2)).await.unwrap().record.is_some(), "here it is");
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_with_the_server_is_unknown_and_was_applied() {
    let mut server = served(&[]).await;
    let store = Arc::new(opened(&server).await);
    withhold_answers(&server).await;
    let claimed = unanswered(&server, &store, 1).await;
    server.kill().unwrap();
    let failed = claimed.await.unwrap().unwrap_err();
    assert_eq!((&failed.kind, failed.applied), (&Kind::Unavailable, Applied::Unknown), "{failed:?}");
    server.start_again().unwrap();
    assert!(store.get(id(1)).await.unwrap().record.is_some());
}

#[tokio::test]
async fn a_row_that_somebody_holds_stops_its_own_key_and_no_other() {
    let server = served(&[]).await;
    let store = opened(&server).await;
    // A transaction that has claimed key 1 and goes on.
    let (client, connection) = tokio_postgres::connect(&server.url("shop"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let fence = claim(&store, 1).await.unwrap();
    client.batch_execute("BEGIN; SELECT FROM onceward.record FOR UPDATE").await.unwrap();
    let Transition::Replace(write) = transition::unknown(&facts(1), fence) else { panic!("a replacement") };
    let (held, free) = tokio::join!(store.replace(id(1), &write), claim(&store, 2));
    let failed = held.unwrap_err();
    assert_eq!((&failed.kind, failed.applied), (&Kind::Conflict, Applied::No));
    let said = failed.source.unwrap().to_string();
    assert!(said.contains("55P03") && said.contains("pg_stat_activity"), "{said}");
    free.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    assert!(matches!(store.replace(id(1), &write).await, Ok(Write::Applied { .. })));
}

#[tokio::test]
async fn what_cannot_keep_records_is_refused_and_what_was_written_by_hand_is_damage() {
    let server = served(&[]).await;
    let store = opened(&server).await;
    let fence = claim(&store, 1).await.unwrap();
    complete(&store, 1, fence, LEASE).await;
    for (by_hand, column) in [
        ("headers = '\\x0005'", "headers"),
        ("status = NULL", "status"),
        ("attempt = -1", "attempt"),
        ("attempt = 5000000000", "attempt"),
        ("state = 9", "state"),
        ("claim_id = '\\x01'", "claim_id"),
        ("fields = '\\x01'", "fields"),
    ] {
        server
            .psql(
                "shop",
                &format!("CREATE TABLE kept AS SELECT * FROM onceward.record; UPDATE onceward.record SET {by_hand}"),
            )
            .unwrap();
        let read = store.get(id(1)).await.unwrap_err();
        assert!(matches!(&read.kind, Kind::Damaged(said) if said.contains(column)), "{by_hand}: {read}");
        let claimed = store.insert(id(1), &facts(1), LEASE).await.unwrap_err();
        assert!(matches!(claimed.kind, Kind::Damaged(_)), "{by_hand}: {claimed}");
        let restore = "DELETE FROM onceward.record; INSERT INTO onceward.record SELECT * FROM kept; DROP TABLE kept";
        server.psql("shop", restore).unwrap();
    }
    assert!(store.get(id(1)).await.unwrap().record.is_some());
    // A text that no column takes fails its own claim only.
    let odd = Facts { route: "a\0b".into(), ..facts(2) };
    let (refused, other) = tokio::join!(store.insert(id(2), &odd, LEASE), claim(&store, 3));
    assert_eq!(refused.unwrap_err().applied, Applied::No);
    other.unwrap();

    for (setting, word) in [
        ("synchronous_commit = off", "synchronous_commit"),
        ("default_transaction_isolation = 'serializable'", "default_transaction_isolation"),
    ] {
        server.psql("shop", &format!("ALTER DATABASE shop SET {setting}")).unwrap();
        let refused = Postgres::open(Options::new(address(&server))).await.unwrap_err();
        assert!(matches!(refused, OpenError::Unfit(_)) && refused.to_string().contains(word), "{refused}");
        server.psql("shop", "ALTER DATABASE shop RESET ALL").unwrap();
    }
    server.psql("shop", "ALTER DATABASE shop SET default_transaction_read_only = on").unwrap();
    let refused = Postgres::open(Options::new(address(&server))).await.unwrap_err();
    assert!(refused.to_string().contains("read-only") && refused.to_string().contains("primary"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sweeps_and_claims_of_the_same_keys_never_wait_for_each_other_in_a_circle_and_fences_rise() {
    const KEYS: u32 = 200;
    let server = served(&[("deadlock_timeout", "50ms"), ("log_lock_waits", "off")]).await;
    let (one, two) = (Arc::new(opened(&server).await), Arc::new(opened(&server).await));
    let mut fences = HashMap::new();
    for _ in 0..4 {
        let claims = (0..KEYS).map(|number| {
            let store = Arc::clone(if number % 2 == 0 { &one } else { &two });
            tokio::spawn(async move {
                let fence = claim(&store, number).await.unwrap();
                complete(&store, number, fence, Duration::from_micros(1)).await;
                (number, fence)
            })
        });
        let claims: Vec<_> = claims.collect();
        let sweeper = Arc::clone(&two);
        let sweeps = tokio::spawn(async move {
            for _ in 0..10 {
                sweeper.sweep(7, Duration::ZERO).await.unwrap();
            }
        });
        for claimed in claims {
            let (number, fence) = claimed.await.unwrap();
            let before = fences.insert(number, fence);
            assert!(before.is_none_or(|before| before < fence), "{number}: {before:?}, then {fence:?}");
        }
        sweeps.await.unwrap();
    }
    while one.sweep(1_000, Duration::ZERO).await.unwrap().more {}
    assert_eq!(server.psql("shop", "SELECT count(*) FROM onceward.record").unwrap(), "0");
    let marked = server.psql("shop", "SELECT max(fence) FROM onceward.mark").unwrap();
    assert_eq!(marked.parse::<u64>().ok(), fences.values().map(|fence| fence.0).max(), "marks keep the last fence");
    assert!(!server.log().contains("deadlock"), "{}", server.log());
}

#[tokio::test]
async fn a_write_wakes_those_who_wait_in_another_process_and_notifies_for_no_other_key() {
    let server = served(&[]).await;
    let (here, there) = (opened(&server).await, opened(&server).await);
    let (waited, other) = (claim(&there, 1).await.unwrap(), claim(&there, 2).await.unwrap());
    let by_sql = claim(&there, 3).await.unwrap();
    let (watch, watch_by_sql) = (here.watch(id(1)), here.watch(id(3)));
    until(&server, "SELECT count(*) FROM onceward.waiter", "2").await;
    let (client, mut connection) = tokio_postgres::connect(&server.url("shop"), tokio_postgres::NoTls).await.unwrap();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notification(notification) = message {
                told.send(notification.payload().to_owned()).unwrap();
            }
        }
    });
    client.batch_execute("LISTEN onceward").await.unwrap();
    complete(&there, 2, other, LEASE).await;
    assert!(matches!(there.remove(id(1), Expect::Holder(waited)).await, Ok(Write::Applied { .. })));
    let first = heard.recv().await.unwrap();
    let hex = |number| id(number).0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(first, hex(1), "nobody waits for the other key");
    // What the SQL functions write is a write too.
    let completed = format!("SELECT onceward.complete('\\x{}', {}, 200)", hex(3), by_sql.0);
    assert_eq!(server.psql("shop", &completed).unwrap(), "completed");
    let second = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await.unwrap();
    assert_eq!(second, Some(hex(3)));
    for watch in [watch, watch_by_sql] {
        tokio::time::timeout(Duration::from_secs(60), watch).await.unwrap();
    }
}

#[tokio::test]
async fn a_user_in_the_role_of_gateways_and_with_no_other_rights_will_do() {
    let server = served(&[]).await;
    let rights = "CREATE ROLE gateway LOGIN PASSWORD 'weak' IN ROLE onceward_gateway";
    server.psql("shop", rights).unwrap();
    let url = server.url("shop").replace("postgres:only-for-tests", "gateway:weak");
    let store = Postgres::open(Options::new(Address::new(&url, None, None).unwrap())).await.unwrap();
    let (one, two) = (claim(&store, 1).await.unwrap(), claim(&store, 2).await.unwrap());
    complete(&store, 1, one, Duration::from_micros(1)).await;
    assert!(matches!(store.extend(id(2), two, LEASE).await, Ok(Write::Applied { .. })));
    assert_eq!(store.scan(None, 10, onceward_store::Filter::default()).await.unwrap().next, None);
    assert_eq!(store.sweep(10, Duration::from_secs(3600)).await.unwrap().removed, 0, "it may wait");
    assert_eq!(store.sweep(10, Duration::ZERO).await.unwrap().removed, 1);
    assert!(matches!(store.remove(id(2), Expect::Holder(two)).await, Ok(Write::Applied { .. })));
    store.keep_rules(1, "rules").await.unwrap();
    assert_eq!(store.rules(1).await.unwrap().as_deref(), Some("rules"));
    let secret = "SELECT count(*) FROM onceward.secret";
    let refused = server.psql_at(&url, secret).unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failover_to_the_synchronous_standby_loses_nothing_and_is_told() {
    let mut primary = served(&[]).await;
    let standby = primary.standby("second").unwrap();
    primary.wait_for_standby("second").unwrap();
    until(&primary, "SELECT string_agg(sync_state, '') FROM pg_stat_replication", "sync").await;
    let alone = Postgres::open(Options::new(address(&standby))).await.unwrap_err();
    assert!(alone.to_string().contains("standby"), "{alone}");
    let both = format!(
        "postgresql://postgres:only-for-tests@127.0.0.1:{},127.0.0.1:{}/shop?target_session_attrs=read-write",
        primary.port(),
        standby.port()
    );
    let both = Address::new(&both, None, None).unwrap();
    let store = Postgres::open(Options { deadline: Duration::from_secs(20), ..Options::new(both) }).await.unwrap();
    let mut fences = HashMap::new();
    for number in 0..50 {
        fences.insert(number, claim(&store, number).await.unwrap());
    }
    primary.kill().unwrap();
    let failed = claim(&store, 50).await.unwrap_err();
    assert_eq!(failed.kind, Kind::Unavailable, "{failed:?}");
    standby.promote().unwrap();
    for number in 51..100 {
        fences.insert(number, claim(&store, number).await.unwrap());
    }
    for (number, fence) in fences {
        let there = store.get(id(number)).await.unwrap().record;
        assert_eq!(there.map(|record| record.stored.fence), Some(fence), "{number}");
    }
    let concerns = store.stats().concerns.join("\n");
    assert!(concerns.contains("failed over") && concerns.contains("00000001"), "{concerns}");
}

#[tokio::test]
async fn a_new_fence_is_above_what_was_deleted_whatever_the_clock_says() {
    const DELETED: u64 = 1 << 60;
    let server = served(&[]).await;
    let store = opened(&server).await;
    server.psql("shop", &format!("UPDATE onceward.mark SET fence = {DELETED}")).unwrap();
    let first = claim(&store, 1).await.unwrap();
    assert!(first.0 > DELETED, "{first:?}");
    complete(&store, 1, first, Duration::from_micros(1)).await;
    server.psql("shop", &format!("UPDATE onceward.mark SET fence = {}", DELETED + 1_000)).unwrap();
    let again = claim(&store, 1).await.unwrap();
    assert!(again.0 > DELETED + 1_000, "in the place of a record that has ended: {again:?}");
    assert_eq!(store.get(id(1)).await.unwrap().record.unwrap().stored.fence, again);
}
