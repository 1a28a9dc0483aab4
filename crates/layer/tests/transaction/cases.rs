//! What each coupling does, whichever library its connections are of.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use onceward::transaction::{
    Answer, Failure, Isolation, OnFailure, Request, Started, Terms, TransactionError, Transactions,
};

use super::library::{self, Source};
use crate::shop;

/// An entry under a record's id, in hexadecimal digits.
const PAY: &str = "insert into ledger (idem_id) values (decode($1, 'hex')) returning id";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn request(key: &str) -> Request {
    Request::new("pay", key, b"amount=1200").principal("user:17")
}

fn transactions(server: &servers::Postgres, terms: Terms) -> Transactions<Source> {
    Transactions::new(library::source(&server.url("shop"))).with_terms(terms)
}

async fn pay(transactions: &Transactions<Source>, request: &Request) -> Result<(u16, String, bool), TransactionError> {
    let done = transactions
        .same(request, |transaction, grant| {
            Box::pin(async move {
                let id = library::number(transaction, PAY, &[&hex(&grant.record)]).await?;
                let mut answer = Answer::new(201, id.to_string());
                answer.headers.push(("content-type".into(), "text/plain".into()));
                Ok(answer)
            })
        })
        .await?;
    let body = String::from_utf8(done.answer.body.to_vec()).unwrap();
    assert_eq!(done.answer.headers, [("content-type".to_owned(), "text/plain".to_owned())]);
    Ok((done.answer.status, body, done.replayed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_pays_and_all_get_its_answer_at_every_isolation() {
    let server = shop::server().await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let transactions = transactions(&server, Terms { isolation, ..Terms::default() });
        let key = format!("{isolation:?}");
        // On tasks of their own, as a server has them: what `same` returns is Send.
        let all = (0..20).map(|_| {
            let (transactions, request) = (transactions.clone(), request(&key));
            tokio::spawn(async move { pay(&transactions, &request).await })
        });
        let mut answers = Vec::new();
        for one in all.collect::<Vec<_>>() {
            answers.push(one.await.unwrap().unwrap());
        }
        assert_eq!(answers.iter().filter(|(.., replayed)| !replayed).count(), 1, "{isolation:?}");
        answers.iter_mut().for_each(|answer| answer.2 = true);
        answers.dedup();
        assert_eq!(answers.len(), 1, "{isolation:?}: {answers:?}");
    }
    assert_eq!(server.psql("shop", "select count(*) from ledger").unwrap(), "3");
}

#[tokio::test]
async fn what_is_rolled_back_leaves_nothing_and_a_refusal_is_recorded_after_the_rollback() {
    let server = shop::server().await;
    let transactions = transactions(&server, Terms::default());
    let failing = async |refused: Option<Answer>| {
        transactions
            .same(&request("a"), |transaction, grant| {
                let refused = refused.clone();
                Box::pin(async move {
                    library::number(transaction, PAY, &[&hex(&grant.record)]).await?;
                    match refused {
                        Some(answer) => Err(Failure::Refused(answer)),
                        None => Err(std::io::Error::other("no paper").into()),
                    }
                })
            })
            .await
    };
    assert!(matches!(failing(None).await, Err(TransactionError::Work(error)) if error.to_string() == "no paper"));
    let declined = Answer::new(402, "declined");
    let done = failing(Some(declined.clone())).await.unwrap();
    assert_eq!((done.answer, done.replayed), (declined.clone(), false));
    let done = failing(None).await.unwrap();
    assert_eq!((done.answer, done.replayed), (declined, true));
    assert_eq!(server.psql("shop", "select count(*) from ledger").unwrap(), "0");

    let other = Request::new("pay", "a", b"amount=7").principal("user:17");
    assert!(matches!(pay(&transactions, &other).await, Err(TransactionError::KeyReused)));
    let somebody_else = Request::new("pay", "a", b"amount=7").principal("user:18");
    assert!(!pay(&transactions, &somebody_else).await.unwrap().2);
}

#[tokio::test]
async fn conflicts_are_repeated_and_no_more_often_than_allowed() {
    let server = shop::server().await;
    let transactions = transactions(&server, Terms { attempts_max: 4, ..Terms::default() });
    let deadlock = "create function deadlock() returns bigint language plpgsql as \
         $$ begin raise exception using errcode = '40P01'; end $$";
    server.psql("shop", deadlock).unwrap();
    let calls = AtomicU32::new(0);
    let conflicting = async |times: u32| {
        transactions
            .same(&request(&format!("conflicts {times}")), |transaction, _| {
                let fails = calls.fetch_add(1, Ordering::Relaxed) < times;
                Box::pin(async move {
                    if fails {
                        library::number(transaction, "select deadlock()", &[]).await?;
                    }
                    Ok(Answer::new(200, "done"))
                })
            })
            .await
    };
    assert_eq!(conflicting(3).await.unwrap().answer.status, 200);
    calls.store(0, Ordering::Relaxed);
    assert!(matches!(conflicting(9).await, Err(TransactionError::Attempts(4, _))));
    assert_eq!(calls.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn what_the_server_refuses_at_commit_is_the_works_failure_and_is_not_repeated() {
    let server = shop::server().await;
    let table = "create table ticket (seat text, unique (seat) deferrable initially deferred); \
         insert into ticket values ('1a')";
    server.psql("shop", table).unwrap();
    let transactions = transactions(&server, Terms::default());
    let calls = AtomicU32::new(0);
    let order = request("a");
    let sold = transactions.same(&order, |transaction, grant| {
        calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            library::number(transaction, PAY, &[&hex(&grant.record)]).await?;
            library::number(transaction, "insert into ticket values ($1) returning 1::bigint", &["1a"]).await?;
            Ok(Answer::new(201, "sold"))
        })
    });
    let sold = sold.await;
    assert!(matches!(sold, Err(TransactionError::Work(_))), "{sold:?}");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!(server.psql("shop", "select count(*) from ledger").unwrap(), "0");
    assert!(!pay(&transactions, &order).await.unwrap().2, "the key is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_carries_it() {
    let server = shop::server().await;
    // One session for all of them.
    let pooler = servers::PgBouncer::start(&server, &[("default_pool_size", "1")]).unwrap();
    let transactions = Transactions::new(library::source(&pooler.url("shop")));
    let (a, b) = (request("a"), request("b"));
    let (one, two, other) = tokio::join!(pay(&transactions, &a), pay(&transactions, &a), pay(&transactions, &b));
    assert_eq!(one.unwrap().1, two.unwrap().1);
    assert!(!other.unwrap().2);
    assert_eq!(server.psql("shop", "select count(*) from ledger").unwrap(), "2");
}

#[tokio::test]
async fn phases_go_on_after_the_last_that_was_committed_with_the_same_derived_key() {
    let server = shop::server().await;
    let terms = Terms { lease: Duration::from_secs(600), ..Terms::default() };
    let transactions = transactions(&server, terms);
    let keys = std::sync::Mutex::new(Vec::new());
    let order = async |fails: bool| -> Result<_, TransactionError> {
        let mut phases = match transactions.phases(&request("order")).await? {
            Started::Done(done) => return Ok(done),
            Started::Granted(phases) => phases,
        };
        let id = phases
            .local("reserve", |transaction, grant| {
                Box::pin(async move {
                    let id = library::number(transaction, PAY, &[&hex(&grant.record)]).await?;
                    Ok(id.to_string().into())
                })
            })
            .await?;
        let receipt = phases
            .external("charge", async |key| {
                keys.lock().unwrap().push(key);
                if fails { Err(std::io::Error::other("no line").into()) } else { Ok("receipt".into()) }
            })
            .await?;
        let answer = Answer::new(201, [&id[..], b" ", &receipt].concat());
        let finish = phases.finish(move |_, _| {
            let answer = answer.clone();
            Box::pin(async move { Ok(answer) })
        });
        finish.await
    };
    assert!(matches!(order(true).await, Err(TransactionError::Work(_))));
    // Given back: the next request goes on at once, long before the lease ends.
    let first = order(false).await.unwrap();
    assert_eq!((&first.answer.body[..], first.replayed), (&b"1 receipt"[..], false));
    let again = order(false).await.unwrap();
    assert_eq!((again.answer, again.replayed), (first.answer, true));
    assert_eq!(server.psql("shop", "select count(*) from ledger").unwrap(), "1");
    let derived = onceward_core::key::child_key("order", "charge");
    assert_eq!(*keys.lock().unwrap(), [derived.clone(), derived]);

    let Started::Granted(mut phases) = transactions.phases(&request("renamed")).await.unwrap() else { panic!("new") };
    phases.local("one", |_, _| Box::pin(async { Ok("1".into()) })).await.unwrap();
    let failed = phases.external("two", async |_| Err(std::io::Error::other("no line").into())).await;
    assert!(matches!(failed, Err(TransactionError::Work(_))));
    let Started::Granted(mut phases) = transactions.phases(&request("renamed")).await.unwrap() else { panic!("open") };
    let renamed = phases.local("eins", |_, _| Box::pin(async { Ok("1".into()) })).await;
    assert!(matches!(renamed, Err(TransactionError::PhaseRenamed { number: 1, .. })), "{renamed:?}");
}

#[tokio::test]
async fn what_a_phase_refuses_for_good_is_its_callers_answer_and_every_repetitions() {
    let server = shop::server().await;
    let transactions = transactions(&server, Terms::default());
    let Started::Granted(mut phases) = transactions.phases(&request("refused")).await.unwrap() else { panic!("new") };
    let refusal = Answer::new(402, "no money");
    let refused = phases.external("charge", async |_| Err(Failure::Refused(refusal.clone()))).await;
    let Err(TransactionError::Refused(answer)) = refused else { panic!("{refused:?}") };
    assert_eq!(answer, refusal);
    let Started::Done(done) = transactions.phases(&request("refused")).await.unwrap() else { panic!("settled") };
    assert_eq!((done.answer, done.replayed), (refusal, true));
}

#[tokio::test]
async fn what_phases_did_is_undone_in_reverse_once_a_later_one_is_refused() {
    let server = shop::server().await;
    server
        .psql(
            "shop",
            "create table undone (at bigserial, what text);
             create function public.undo(record_id bytea, key text, payload jsonb) returns void language sql
                 security definer set search_path = public, pg_catalog, pg_temp
                 as $$ insert into undone (what) values ($3->>'what') $$;
             select onceward.allow_compensation('public.undo')",
        )
        .unwrap();
    let transactions = transactions(&server, Terms::default());
    let undo = async || {
        while server.psql("shop", "select onceward.compensate()").unwrap() == "done" {}
        server.psql("shop", "select string_agg(what, ' ' order by at) from undone").unwrap()
    };
    let order = async |name: &str, is_refused: bool| {
        let Started::Granted(mut order) = transactions.phases(&request(name)).await.unwrap() else { panic!("new") };
        let reserve = order.local("reserve", |transaction, grant| {
            Box::pin(async move {
                grant.compensate_with(transaction, "reserve", "public.undo", r#"{"what": "reserve"}"#).await?;
                Ok("".into())
            })
        });
        reserve.await.unwrap();
        for _ in 0..2 {
            order.compensate_with("charge", "public.undo", r#"{"what": "charge"}"#).await.unwrap();
        }
        order.external("charge", async |_| Ok("".into())).await.unwrap();
        if is_refused {
            let refused = order.external("ship", async |_| Err(Failure::Refused(Answer::new(409, "sold out")))).await;
            assert!(matches!(refused, Err(TransactionError::Refused(_))), "{refused:?}");
        } else {
            order.finish(|_, _| Box::pin(async { Ok(Answer::new(201, "sent")) })).await.unwrap();
        }
    };
    order("good", false).await;
    assert_eq!(undo().await, "");
    order("bad", true).await;
    assert_eq!(undo().await, "charge reserve");

    let Started::Granted(mut phases) = transactions.phases(&request("wrong")).await.unwrap() else { panic!("new") };
    let wrong = phases.local("one", |transaction, grant| {
        Box::pin(async move {
            grant.compensate_with(transaction, "one", "pg_catalog.now", "{}").await?;
            Ok("".into())
        })
    });
    assert!(matches!(wrong.await, Err(TransactionError::Work(_))));
}

#[tokio::test]
async fn loose_work_that_failed_blocks_nobody() {
    let server = shop::server().await;
    let releasing = transactions(&server, Terms::default());
    let Started::Granted(held) = releasing.loose(&request("a")).await.unwrap() else { panic!("new") };
    assert!(matches!(releasing.loose(&request("a")).await, Err(TransactionError::InFlight)));
    let failed = held.not_done(std::io::Error::other("no line")).await;
    assert!(matches!(failed, TransactionError::Work(_)));
    let Started::Granted(held) = releasing.loose(&request("a")).await.unwrap() else { panic!("released") };
    held.complete(Answer::new(200, "sent")).await.unwrap();
    let Started::Done(done) = releasing.loose(&request("a")).await.unwrap() else { panic!("done") };
    assert_eq!((&done.answer.body[..], done.replayed), (&b"sent"[..], true));

    let failing = transactions(&server, Terms { on_failure: OnFailure::Fail, ..Terms::default() });
    let Started::Granted(held) = failing.loose(&request("b")).await.unwrap() else { panic!("new") };
    held.not_done(std::io::Error::other("no line")).await;
    assert!(matches!(failing.loose(&request("b")).await, Err(TransactionError::Failed)));

    // One that is dropped is unknown once its lease is over, and runs again by nobody's decision but yours.
    let short = transactions(&server, Terms { lease: Duration::ZERO, ..Terms::default() });
    let Started::Granted(held) = short.loose(&request("c")).await.unwrap() else { panic!("new") };
    drop(held);
    assert!(matches!(short.loose(&request("c")).await, Err(TransactionError::OutcomeUnknown)));
}
