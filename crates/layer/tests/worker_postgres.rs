//! The example of that name: two workers, of which one is killed in the middle of its job.

#![cfg(all(feature = "postgres", feature = "tokio-postgres"))]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../examples/worker_postgres.rs"]
#[expect(dead_code, unreachable_pub, reason = "its main is the example's")]
mod example;
mod shop;

use std::{process::Stdio, time::Duration};

use servers::Postgres;
use tokio::process::{Child, Command};

/// The process that the others start.
#[tokio::test]
#[ignore = "the worker: the other test starts it as a process of its own"]
async fn worker() {
    let url = std::env::var("SHOP_URL").unwrap();
    example::work(&url, Duration::from_secs(1), &["invoice-1".into(), "invoice-2".into()]).await.unwrap();
}

fn start(server: &Postgres, failpoint: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker", "--ignored", "--nocapture"]).env("SHOP_URL", server.url("shop"));
    command.envs(failpoint.map(|failpoint| ("ONCEWARD_FAILPOINT", failpoint)));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// Asks until the answer is this.
async fn until(server: &Postgres, sql: &str, expected: &str) {
    for _ in 0..1_000 {
        if server.psql("shop", sql).unwrap() == expected {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never was {expected}: {sql}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_in_its_job_leaves_an_effect_that_is_made_once() {
    let server = shop::server().await;
    let table = "create table invoice (id bigint generated always as identity, number text not null)";
    server.psql("shop", table).unwrap();
    // Before its effect: whoever wants to write an invoice waits.
    let (client, connection) = tokio_postgres::connect(&server.url("shop"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("begin; lock table invoice in exclusive mode").await.unwrap();
    let mut first = start(&server, None);
    until(&server, "select count(*) from pg_locks where not granted and relation = 'invoice'::regclass", "1").await;
    first.kill().await.unwrap();
    client.batch_execute("rollback").await.unwrap();
    // After its effect, before it is recorded.
    let mut second = start(&server, Some("complete.begin:hit=1:pause"));
    until(&server, "select count(*) from invoice", "1").await;
    let third = start(&server, None);
    second.kill().await.unwrap();

    let third = third.wait_with_output().await.unwrap();
    let fourth = start(&server, None).wait_with_output().await.unwrap();
    for (output, sent) in [(third, "is sent\n"), (fourth, "is sent, sent before\n")] {
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        for number in ["invoice-1", "invoice-2"] {
            assert!(said.contains(&format!("{number}: {number} {sent}")), "{said}");
        }
    }
    assert_eq!(server.psql("shop", "select number from invoice order by id").unwrap(), "invoice-1\ninvoice-2");
    let attempts = "select attempt, state from onceward.record order by attempt";
    assert_eq!(server.psql("shop", attempts).unwrap(), "1|3\n3|3", "the first invoice took three attempts");
}
