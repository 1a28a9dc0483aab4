//! The journal of durability `journaled` on real servers: standbys that take over, many at a time, answers that are lost.
//! That each call answers as the protocol has it is shown in `sim/tests/journal.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use futures_util::TryStreamExt as _;
use onceward_core::{
    key::RecordId,
    record::{ClaimId, Fence, Record, SessionId, Stored},
    transition,
};
use onceward_store::{
    Applied, Kind,
    journaled::{Fact, Incarnation, Install, Journal, LastActive, Member, Opening, Snapshot, View, ViewRow},
    postgres::{
        Failover, JournalOptions, Options, Postgres, PostgresJournal,
        address::Address,
        forced::{Forced, Said, Wish},
        migrate::{MIGRATIONS, migrate},
    },
};
use servers::{Postgres as Server, Relay};

async fn served() -> Server {
    let server = Server::start(&[]).unwrap();
    server.create_database("shop").unwrap();
    migrate(&address(&server.url("shop")), MIGRATIONS, false).await.unwrap();
    server
}

fn address(url: &str) -> Address {
    Address::new(url, None, None).unwrap()
}

async fn journal_at(url: &str, failover: Failover) -> PostgresJournal {
    let options = Options { deadline: Duration::from_secs(60), ..Options::new(address(url)) };
    Postgres::open(options).await.unwrap().journal(JournalOptions::new(failover))
}

async fn journal(server: &Server, failover: Failover) -> PostgresJournal {
    journal_at(&server.url("shop"), failover).await
}

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn id(partition: u8, number: u8) -> RecordId {
    let mut id = [number; 32];
    (id[0], id[1]) = (0, partition);
    RecordId(id)
}

fn fact(id: RecordId, fence: u64) -> Fact {
    let stored = Stored { fence: Fence(fence), ..Stored::default() };
    let facts = transition::place(ClaimId([1; 16]), session(1));
    Fact { id, record: Arc::new(Record { stored, facts }) }
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

/// Looks until `is_so`.
async fn seen(journal: &PostgresJournal, who: SessionId, is_so: impl Fn(&Snapshot) -> bool) -> Snapshot {
    for _ in 0..20_000 {
        let seen = journal.look(who).await.unwrap();
        if is_so(&seen) {
            return seen;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never is so");
}

fn openings(views: &[ViewRow]) -> Vec<Opening> {
    let of = |row: &ViewRow| Opening { before: *row, acknowledged: row.view.number, incarnation: Incarnation([7; 20]) };
    views.iter().map(of).collect()
}

fn views(seen: &Snapshot) -> Vec<(u16, View)> {
    seen.views.iter().map(|row| (row.partition, row.view)).collect()
}

/// Opens the next view of every partition, and brings it to serve as far as `who` can.
async fn change_views(journal: &PostgresJournal, who: SessionId) -> Snapshot {
    let seen = journal.look(who).await.unwrap();
    assert_eq!(journal.open(who, seen.timeline, &openings(&seen.views)).await.unwrap(), 256);
    let opened = views(&journal.look(who).await.unwrap());
    assert_eq!(journal.acknowledge(who, seen.timeline, &opened).await.unwrap().len(), 256);
    let installs = journal.agreed(seen.timeline, &opened).await.unwrap();
    assert_eq!(installs.len(), 256);
    assert!(installs.iter().all(|(_, install)| install.admitted.contains(&who)));
    assert_eq!(journal.activate(seen.timeline, &opened).await.unwrap().len(), 256);
    journal.look(who).await.unwrap()
}

/// The standby hears no more of its primary.
async fn cut(standby: &Server, primary: &Server) {
    standby.psql("postgres", "ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    standby.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    until(primary, "SELECT count(*) FROM pg_stat_replication", "0").await;
}

#[tokio::test]
async fn what_a_standby_has_not_got_is_not_kept_and_once_it_takes_over_the_old_timeline_does_nothing() {
    let primary = served().await;
    let standby = primary.standby("second").unwrap();
    until(&primary, "SELECT string_agg(state, '') FROM pg_stat_replication", "streaming").await;
    let both = Failover::Asynchronous { standbys: vec!["second".to_owned()] };
    let old = journal(&primary, both).await;
    let (one, two) = (session(1), session(2));
    let first = old.look(one).await.unwrap().timeline;
    assert!(old.join(one, first).await.unwrap());
    seen(&old, one, |seen| seen.me == Member::Live { is_kept: true }).await;
    let served_views = views(&change_views(&old, one).await);
    let mark = old.ship(one, first, &[fact(id(0, 1), 5)]).await.unwrap().unwrap();
    seen(&old, one, |seen| seen.kept >= mark).await;

    cut(&standby, &primary).await;
    let lost = old.ship(one, first, &[fact(id(0, 2), 6)]).await.unwrap().unwrap();
    assert!(old.join(two, first).await.unwrap());
    let there = old.look(two).await.unwrap();
    assert!(there.kept < lost, "{} is not on the standby, {} is", lost, there.kept);
    assert_eq!(there.me, Member::Live { is_kept: false });
    assert!(old.row(0, served_views[0].1, id(0, 2)).await.unwrap().unwrap().is_some(), "here it is");

    standby.promote().unwrap();
    let new = journal(&standby, Failover::None).await;
    let there = new.look(two).await.unwrap();
    assert_eq!(there.me, Member::No, "it is lost with the last commits");
    assert_ne!(there.timeline, first);
    assert!(there.views.iter().all(|row| row.timeline == first && row.is_active));
    let (_, view) = served_views[0];
    let last = LastActive { partition: 0, view, incarnation: Incarnation([7; 20]) };
    assert_eq!(new.row(0, view, id(0, 1)).await.unwrap(), None, "its view is of another timeline");
    assert_eq!(new.rows(0, view, None, 10).await.unwrap(), None);
    for timeline in [first, there.timeline] {
        assert!(new.acknowledge(one, timeline, &served_views).await.unwrap().is_empty());
        assert!(new.agreed(timeline, &served_views).await.unwrap().is_empty());
        assert!(new.activate(timeline, &served_views).await.unwrap().is_empty());
        assert!(!new.join(two, timeline).await.unwrap(), "a view of the other timeline is there");
        assert_eq!(new.retire(one, one, timeline).await.unwrap(), None);
        assert_eq!(new.drain(one, timeline, &last, &[fact(id(0, 3), 7)]).await.unwrap(), None);
        assert!(!new.retired(one, timeline, &[last]).await.unwrap());
    }
    assert_eq!(new.ship(one, first, &[fact(id(0, 3), 7)]).await.unwrap(), None);
    assert_eq!(new.open(one, first, &openings(&there.views)).await.unwrap(), 0);
    assert!(!new.leave(one, first).await.unwrap());
    assert_eq!(new.look(two).await.unwrap().views, there.views, "nothing was done");
    assert_eq!(old.ship(one, there.timeline, &[fact(id(0, 3), 7)]).await.unwrap(), None, "nor on the old primary");

    let now = change_views(&new, one).await;
    assert!(now.views.iter().all(|row| row.timeline == there.timeline && row.is_active && row.view.number == 2));
    let row = |number| new.row(0, now.views[0].view, id(0, number));
    assert_eq!(row(1).await.unwrap().unwrap().unwrap().stored.fence, Fence(5));
    assert_eq!(row(2).await.unwrap(), Some(None), "it had not got there");
    assert_eq!(row(3).await.unwrap(), Some(None), "nobody shipped it on this timeline");
    assert!(new.join(two, there.timeline).await.unwrap());
    assert_eq!(new.retire(two, one, there.timeline).await.unwrap().unwrap().len(), 256);
}

/// Nobody is left who could open the next views, or who would let others join.
#[tokio::test]
async fn after_a_failover_that_no_member_outlived_an_operators_word_opens_the_next_views() {
    let primary = served().await;
    let standby = primary.standby("second").unwrap();
    let journal = journal(&primary, Failover::None).await;
    let (one, other, new) = (session(1), session(2), session(3));
    let before = journal.look(one).await.unwrap();
    for who in [one, other] {
        assert!(journal.join(who, before.timeline).await.unwrap());
    }
    let opened = journal.open(one, before.timeline, &openings(&before.views)).await.unwrap();
    assert_eq!(opened, 256);
    let silent = |who: u8| {
        format!(
            "UPDATE onceward.journal_member SET heard_at = heard_at - 3600000000 WHERE session = decode(repeat('0{who}', 16), 'hex')"
        )
    };
    primary.psql("shop", &silent(1)).unwrap();
    primary.wait_for_standby("second").unwrap();
    cut(&standby, &primary).await;
    standby.promote().unwrap();

    let journal = journal_at(&standby.url("shop"), Failover::None).await;
    let seen = journal.look(new).await.unwrap();
    assert_ne!(seen.timeline, before.timeline);
    assert!(!journal.join(new, seen.timeline).await.unwrap());
    assert_eq!(journal.open(new, seen.timeline, &openings(&seen.views)).await.unwrap(), 0);
    let forced = Forced::connect(&address(&standby.url("shop"))).await.unwrap();
    let without = async |session| {
        let silence = Duration::from_secs(1_800);
        let (keeps, clocks_differ) = (Duration::from_secs(3_600), Duration::from_secs(10));
        forced.without(&Wish { session, silence, keeps, clocks_differ, is_try: false }).await.unwrap()
    };
    assert_eq!(without(one).await, Said::OfAnotherLife, "the other one may open them");
    standby.psql("shop", &silent(2)).unwrap();
    for gone in [one, other] {
        let said = without(gone).await;
        assert!(matches!(&said, Said::Done { partitions, .. } if partitions.len() == 256), "{said:?}");
        assert_eq!(without(gone).await, Said::NotWaitedFor);
    }
    assert!(journal.join(new, seen.timeline).await.unwrap());
    let seen = journal.look(new).await.unwrap();
    assert!(seen.views.iter().all(|row| row.is_agreed && row.timeline == seen.timeline));
    let installs = journal.agreed(seen.timeline, &views(&seen)).await.unwrap();
    assert_eq!(installs.len(), 256);
    let above = |install: &Install| install.mark > Fence(1_700_000_000_000_000);
    assert!(installs.iter().all(|(_, install)| install.admitted == [new] && above(install)));
    let decisions = forced.decisions().await.unwrap();
    assert_eq!(decisions.len(), 2);

    // More than are read at a time, some of one fence.
    let mark = decisions[1].mark.0;
    let facts = |partition| (0..230).map(move |number| fact(id(partition, number), mark + 1 + u64::from(number) / 3));
    for partition in 0..11 {
        let facts: Vec<Fact> = facts(partition).chain([fact(id(partition, 250), mark)]).collect();
        journal.ship(new, seen.timeline, &facts).await.unwrap().unwrap();
    }
    let listed = forced.at_risk(&decisions[1]).map_ok(|key| key.fact.id);
    let mut listed: Vec<RecordId> = listed.try_collect().await.unwrap();
    listed.sort();
    let granted: Vec<RecordId> = (0..11).flat_map(facts).map(|fact| fact.id).collect();
    assert_eq!(listed, granted);
}

#[tokio::test]
async fn behind_a_synchronous_standby_a_commit_that_came_back_is_kept_whatever_the_session_would_wait_for() {
    let primary = served().await;
    let standby = primary.standby("second").unwrap();
    primary.psql("shop", "ALTER ROLE postgres SET synchronous_commit = 'local'").unwrap();
    let journal = Arc::new(journal(&primary, Failover::Synchronous).await);
    let one = session(1);
    let timeline = journal.look(one).await.unwrap().timeline;
    assert!(journal.join(one, timeline).await.unwrap());
    let alone = journal.look(one).await.unwrap();
    assert_eq!((alone.kept, alone.me), (0, Member::Live { is_kept: false }), "nothing waits for a standby yet");
    primary.wait_for_standby("second").unwrap();
    until(&primary, "SELECT string_agg(sync_state, '') FROM pg_stat_replication", "sync").await;
    // Connections hear of the setting between two calls.
    seen(&journal, one, |seen| seen.me == Member::Live { is_kept: true }).await;
    let mark = journal.ship(one, timeline, &[fact(id(0, 1), 5)]).await.unwrap().unwrap();
    let kept = journal.look(one).await.unwrap().kept;
    assert!(kept >= mark, "{kept} is before {mark}");

    cut(&standby, &primary).await;
    let ships = Arc::clone(&journal);
    let shipped = tokio::spawn(async move { ships.ship(one, timeline, &[fact(id(0, 2), 6)]).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%journal_ship%'";
    until(&primary, waits, "1").await;
    let cancelled = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    primary.psql("shop", cancelled).unwrap();
    let failed = shipped.await.unwrap().unwrap_err();
    assert_eq!(failed.applied, Applied::Unknown, "{failed:?}");
    primary.psql("shop", "ALTER SYSTEM SET synchronous_standby_names = ''").unwrap();
    primary.psql("shop", "SELECT pg_reload_conf()").unwrap();
    until(&primary, "SHOW synchronous_standby_names", "").await;
    let lost = journal.ship(one, timeline, &[fact(id(0, 3), 7)]).await.unwrap().unwrap();
    let there = journal.look(one).await.unwrap();
    assert!(kept <= there.kept && there.kept < lost, "what nobody waited for is not kept: {} and {lost}", there.kept);
}

#[tokio::test]
async fn a_shipment_whose_answer_is_lost_is_unknown_and_one_that_was_not_sent_is_not_applied() {
    let server = served().await;
    let relay = Relay::before(server.port()).unwrap();
    let url = format!("postgresql://postgres:only-for-tests@127.0.0.1:{}/shop", relay.port());
    let journal = Arc::new(journal_at(&url, Failover::None).await);
    let one = session(1);
    let timeline = journal.look(one).await.unwrap().timeline;
    assert!(journal.join(one, timeline).await.unwrap());
    journal.ship(one, timeline, &[fact(id(0, 1), 5)]).await.unwrap().unwrap();
    relay.withhold();
    let ships = Arc::clone(&journal);
    let shipped = tokio::spawn(async move { ships.ship(one, timeline, &[fact(id(0, 2), 6)]).await });
    until(&server, "SELECT count(*) FROM onceward.journal", "2").await;
    relay.refuse().unwrap();
    relay.cut();
    let failed = shipped.await.unwrap().unwrap_err();
    assert_eq!((&failed.kind, failed.applied), (&Kind::Unavailable, Applied::Unknown), "{failed:?}");
    let failed = journal.ship(one, timeline, &[fact(id(0, 3), 7)]).await.unwrap_err();
    assert_eq!((&failed.kind, failed.applied), (&Kind::Unavailable, Applied::No), "{failed:?}");
    assert_eq!(server.psql("shop", "SELECT count(*) FROM onceward.journal").unwrap(), "2");
}

#[tokio::test]
async fn gateways_call_the_journal_and_read_none_of_its_tables_and_standbys_that_are_not_shown_are_an_error() {
    let server = served().await;
    server.psql("shop", "CREATE ROLE gateway LOGIN PASSWORD 'weak' IN ROLE onceward_gateway").unwrap();
    let url = server.url("shop").replace("postgres:only-for-tests", "gateway:weak");
    let journal = journal_at(&url, Failover::Asynchronous { standbys: vec!["second".to_owned()] }).await;
    let one = session(1);
    let there = journal.look(one).await.unwrap();
    assert!(journal.join(one, there.timeline).await.unwrap());
    journal.ship(one, there.timeline, &[fact(id(0, 1), 5)]).await.unwrap().unwrap();
    assert_eq!(journal.row(0, there.views[0].view, id(0, 1)).await.unwrap(), None);
    for table in ["journal", "journal_member", "journal_view"] {
        let refused = server.psql_at(&url, &format!("SELECT FROM onceward.{table}")).unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{refused}");
    }
    assert_eq!(journal.look(one).await.unwrap().kept, 0, "the standby is not connected");

    let _standby = server.standby("second").unwrap();
    until(&server, "SELECT string_agg(state, '') FROM pg_stat_replication", "streaming").await;
    let weak = "CREATE ROLE weak; GRANT USAGE ON SCHEMA onceward TO weak; \
        GRANT ALL ON ALL TABLES IN SCHEMA onceward TO weak; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onceward TO weak; \
        ALTER FUNCTION onceward.journal_look OWNER TO weak; GRANT EXECUTE ON FUNCTION onceward.journal_look TO gateway";
    server.psql("shop", weak).unwrap();
    let failed = journal.look(one).await.unwrap_err();
    assert_eq!(failed.applied, Applied::No);
    let said = failed.source.unwrap().to_string();
    assert!(said.contains("42501") && said.contains("pg_monitor"), "{said}");
    server.psql("shop", "GRANT pg_monitor TO weak").unwrap();
    seen(&journal, one, |seen| seen.me == Member::Live { is_kept: true }).await;
}

/// Whoever ships the same keys in whatever order: nobody waits in a circle, and the largest stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shippers_of_the_same_keys_never_wait_for_each_other_in_a_circle_and_the_largest_fact_stays() {
    const SHIPPERS: u8 = 6;
    const SHIPMENTS: u64 = 8;
    let server = served().await;
    let journal = Arc::new(journal(&server, Failover::None).await);
    let timeline = journal.look(session(1)).await.unwrap().timeline;
    let shippers: Vec<_> = (1..=SHIPPERS)
        .map(|who| {
            let server = server.url("shop");
            tokio::spawn(async move {
                let mut rng = Rng::with_seed(u64::from(who));
                let journal = journal_at(&server, Failover::None).await;
                // Every second one is no member, and changes only what is there.
                if who % 2 == 0 {
                    assert!(journal.join(session(who), timeline).await.unwrap());
                }
                for shipment in 0..SHIPMENTS {
                    let fence = 1 + shipment * u64::from(SHIPPERS) + u64::from(who);
                    let mut facts: Vec<Fact> = (0..=255).map(|number| fact(id(number % 4, number), fence)).collect();
                    rng.shuffle(&mut facts);
                    journal.ship(session(who), timeline, &facts).await.unwrap().unwrap();
                }
            })
        })
        .collect();
    for shipper in shippers {
        shipper.await.unwrap();
    }
    let largest = 1 + (SHIPMENTS - 1) * u64::from(SHIPPERS) + u64::from(SHIPPERS);
    let there = "SELECT count(*) || ' ' || min(fence) FROM onceward.journal";
    assert_eq!(server.psql("shop", there).unwrap(), format!("256 {largest}"));
}

/// Writes down each change of views and members in the order in which it is made.
const AUDIT: &str = "
    CREATE TABLE audit (seq bigserial, what text, session bytea, partition int, number bigint, tag bigint);
    CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_TABLE_NAME = 'journal_member' THEN
            IF TG_OP = 'INSERT' OR NEW.status <> OLD.status THEN
                INSERT INTO public.audit (what, session) VALUES ('member ' || NEW.status, NEW.session);
            END IF;
        ELSIF TG_TABLE_NAME = 'journal_acknowledged' THEN
            INSERT INTO public.audit (what, session, partition, number, tag)
                VALUES ('acknowledged', NEW.session, NEW.partition, NEW.number, NEW.tag);
        ELSE
            INSERT INTO public.audit (what, partition, number, tag)
                VALUES (CASE WHEN NEW.active THEN 'active' ELSE 'open' END, NEW.partition, NEW.number, NEW.tag);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER audited AFTER INSERT OR UPDATE ON onceward.journal_member FOR EACH ROW EXECUTE FUNCTION audited();
    CREATE TRIGGER audited AFTER INSERT OR UPDATE ON onceward.journal_acknowledged FOR EACH ROW EXECUTE FUNCTION audited();
    CREATE TRIGGER audited AFTER UPDATE ON onceward.journal_view FOR EACH ROW EXECUTE FUNCTION audited();";

/// Gateways race each other through every step of views and members. What became of it is read in the order of the changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_races_no_view_serves_without_every_members_word_and_nobody_is_retired_who_gave_his() {
    const GATEWAYS: u8 = 6;
    const TURNS: usize = 150;
    let server = served().await;
    server.psql("shop", AUDIT).unwrap();
    let sessions = Arc::new(Mutex::new(Vec::new()));
    let gateways: Vec<_> = (1..=GATEWAYS)
        .map(|who| {
            let (url, sessions) = (server.url("shop"), Arc::clone(&sessions));
            tokio::spawn(async move { race(&journal_at(&url, Failover::None).await, who, TURNS, &sessions).await })
        })
        .collect();
    for gateway in gateways {
        gateway.await.unwrap();
    }
    let text = "SELECT what, encode(session, 'hex'), partition, number, tag FROM audit ORDER BY seq";
    let log = server.psql("shop", text).unwrap();
    let (mut active, mut retiring) = (0, 0);
    let mut views: BTreeMap<&str, (bool, [&str; 2])> = BTreeMap::new();
    let mut members: BTreeMap<&str, (bool, BTreeMap<&str, [&str; 2]>)> = BTreeMap::new();
    for line in log.lines() {
        let [what, who, partition, number, tag] = line.split('|').collect::<Vec<_>>().try_into().unwrap();
        let view = [number, tag];
        match what {
            "member 1" => drop(members.insert(who, (true, BTreeMap::new()))),
            "member 2" => {
                let (is_live, acknowledged) = members.get_mut(who).unwrap();
                *is_live = false;
                for (partition, (is_active, view)) in &views {
                    let has_word = acknowledged.get(partition) == Some(view);
                    assert!(*is_active || !has_word, "{who} is being retired, and gave its word for {partition}");
                }
                retiring += 1;
            }
            "member 3" => drop(members.remove(who)),
            "acknowledged" => {
                let (is_live, acknowledged) = members.get_mut(who).unwrap();
                assert!(*is_live, "{who} is being retired, and gives its word for {partition}");
                acknowledged.insert(partition, view);
            }
            "open" => drop(views.insert(partition, (false, view))),
            "active" => {
                assert_eq!(views.insert(partition, (true, view)), Some((false, view)), "{partition}");
                for (who, (_, acknowledged)) in &members {
                    assert_eq!(acknowledged.get(partition), Some(&view), "{partition} serves without {who}");
                }
                active += 1;
            }
            other => panic!("{other}"),
        }
    }
    println!("{active} views became active, {retiring} retirements were begun, {} changes", log.lines().count());
    assert!(active > 0 && retiring > 0, "the race was none");
}

async fn race(journal: &PostgresJournal, who: u8, turns: usize, sessions: &Mutex<Vec<SessionId>>) {
    const OF: [u16; 2] = [3, 200];
    let mut rng = Rng::with_seed(u64::from(who));
    let mut lives = 0;
    let mut me = SessionId([0; 16]);
    for _ in 0..turns {
        let seen = journal.look(me).await.unwrap();
        let timeline = seen.timeline;
        match seen.me {
            Member::No | Member::Retired { .. } => {
                lives += 1;
                me = SessionId([who; 16]);
                me.0[0] = lives;
                assert!(journal.join(me, timeline).await.unwrap());
                sessions.lock().unwrap().push(me);
                continue;
            }
            Member::Retiring => assert!(journal.leave(me, timeline).await.unwrap()),
            Member::Live { .. } => {}
        }
        let rows: Vec<ViewRow> = OF.map(|of| seen.views[usize::from(of)]).into();
        let of = |wanted: &dyn Fn(&ViewRow) -> bool| -> Vec<(u16, View)> {
            rows.iter().filter(|row| wanted(row)).map(|row| (row.partition, row.view)).collect()
        };
        match rng.u32(..20) {
            0 => drop(journal.open(me, timeline, &openings(&rows)).await.unwrap()),
            1..=12 => {
                journal.acknowledge(me, timeline, &of(&|row| !row.is_active)).await.unwrap();
                // What looked agreed a moment ago may not be so any more.
                journal.activate(timeline, &of(&|row| row.view.number > 0)).await.unwrap();
            }
            13..=17 => {
                let target = {
                    let sessions = sessions.lock().unwrap();
                    sessions[sessions.len() - 1 - rng.usize(..sessions.len().min(usize::from(who)))]
                };
                let target = seen.silent.first().copied().filter(|_| rng.bool()).unwrap_or(target);
                if let Some(views) = journal.retire(me, target, timeline).await.unwrap()
                    && rng.bool()
                {
                    for view in &views {
                        journal.drain(me, timeline, view, &[fact(id(3, who), 1)]).await.unwrap();
                    }
                    journal.retired(target, timeline, &views).await.unwrap();
                }
            }
            18 => assert!(journal.leave(me, timeline).await.unwrap()),
            _ => drop(journal.ship(me, timeline, &[fact(id(3, who), u64::from(lives))]).await.unwrap()),
        }
    }
}
