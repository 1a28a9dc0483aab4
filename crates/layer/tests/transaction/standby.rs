//! A server that gives up waiting for its synchronous standby says so in a notice, and that the COMMIT succeeded.

use onceward::transaction::{Answer, Request, Started, TransactionError, Transactions};
use servers::Postgres;
use tokio_postgres::Config;

use crate::shop;

/// Cancels the one COMMIT that waits, as soon as it does.
async fn cancel_the_wait(server: &Postgres) {
    let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'";
    for _ in 0..1_000 {
        if server.psql("shop", cancel).unwrap() == "1" {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("nothing waits for a standby");
}

fn request(key: &str) -> Request {
    Request::new("pay", key, b"amount=1200")
}

async fn pay(transactions: &Transactions<Config>, key: &str) -> Result<bool, TransactionError> {
    let request = request(key);
    let done = transactions.same(&request, |transaction, _| {
        Box::pin(async move {
            // Not the server's own: a trigger may say the like.
            transaction.batch_execute("do $$ begin raise warning 'stock is low'; end $$").await?;
            Ok(Answer::new(201, "paid"))
        })
    });
    done.await.map(|done| done.replayed)
}

fn is_unknown<T>(result: &Result<T, TransactionError>) -> bool {
    matches!(result, Err(TransactionError::CommitUnknown(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_wait_for_a_standby_is_cancelled_is_told_as_unknown() {
    let server = shop::server().await;
    let transactions = Transactions::new(server.url("shop").parse::<Config>().unwrap());
    assert!(!pay(&transactions, "before").await.unwrap());
    let Started::Granted(mut phases) = transactions.phases(&request("open")).await.unwrap() else { panic!("new") };
    let Started::Granted(held) = transactions.loose(&request("held")).await.unwrap() else { panic!("new") };
    server.reload("synchronous_standby_names = 'nobody'").unwrap();

    let (paid, ()) = tokio::join!(pay(&transactions, "same"), cancel_the_wait(&server));
    assert!(is_unknown(&paid), "{paid:?}");
    assert!(pay(&transactions, "same").await.unwrap(), "on this server it is committed");
    let loose = request("loose");
    let (claimed, ()) = tokio::join!(transactions.loose(&loose), cancel_the_wait(&server));
    assert!(is_unknown(&claimed), "{claimed:?}");
    let (settled, ()) = tokio::join!(held.complete(Answer::new(200, "sent")), cancel_the_wait(&server));
    assert!(is_unknown(&settled), "{settled:?}");
    // The phase, and giving the key back after it.
    let (phase, ()) = tokio::join!(phases.local("one", |_, _| Box::pin(async { Ok("1".into()) })), async {
        cancel_the_wait(&server).await;
        cancel_the_wait(&server).await;
    });
    assert!(is_unknown(&phase), "{phase:?}");
}
