//! A worker of which any number of processes run. What they did is in one PostgreSQL database, and so are the effects.
//!
//! ```sh
//! onceward migrate …   # the schema and its secret, once
//! psql "$URL" -c 'create table invoice (id bigint generated always as identity, number text not null)'
//! cargo run --example worker_postgres --features postgres,tokio-postgres -- "$URL" invoice-1 invoice-2 invoice-1
//! ```
//!
//! A worker that is killed leaves its job unknown: it may have sent the invoice. The next one runs it again, under a larger
//! fence, and `onceward.effect` says in the invoice's own transaction whether it was sent. So the effect is made once, and
//! only because of that may the policy say `Step::Retry`.

use std::{error::Error, sync::Arc, time::Duration};

use onceward::{
    Engine, JobError, Jobs, Limits, Policy, Route, Routes, Run, RunError, Secret, Step,
    store::postgres::{Options, Postgres, address::Address},
};
use tokio_postgres::{Config, NoTls};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("the arguments are the URL of a database, then numbers of invoices")?;
    work(&url, Duration::from_secs(10), &args.collect::<Vec<_>>()).await
}

/// Works off the messages, which a queue may deliver more than once. The job of a worker that was killed goes on after
/// `lease`.
pub async fn work(url: &str, lease: Duration, messages: &[String]) -> Result<(), Box<dyn Error>> {
    let store = Postgres::open(Options::new(Address::new(url, None, None)?)).await?;
    let routes = Routes::new(vec![], Route::new("default"));
    // Of all workers the same.
    let secret = Secret::from_bytes([7; 32]);
    let engine = Engine::new(Arc::new(store), secret, routes, Limits::default(), Engine::new_session());
    let policy = Policy {
        lease,
        // Queues keep messages for days: remember their keys for longer.
        retention: Duration::from_secs(14 * 24 * 3600),
        on_unknown: vec![Step::Retry],
        ..Policy::default()
    };
    let jobs = Jobs::new(engine.clone(), "invoices", policy, Duration::from_secs(20));
    let config: Config = url.parse()?;
    for message in messages {
        let done = loop {
            let (config, number) = (config.clone(), message.clone());
            let run =
                jobs.run_once(message, message.as_bytes(), |run| async move { send(&config, run, &number).await });
            match run.await {
                Ok(done) => break done,
                // Somebody else is at it. A queue would deliver the message again; here it is asked for again.
                Err(RunError::InFlight | RunError::ClaimLost) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let before = if done.replayed { ", sent before" } else { "" };
        println!("{message}: {}{before}", String::from_utf8_lossy(&done.output));
    }
    engine.drain(Duration::from_secs(25)).await;
    Ok(())
}

/// The effect, and that it was made, in one transaction.
async fn send(config: &Config, run: Run, number: &str) -> Result<bytes::Bytes, JobError<tokio_postgres::Error>> {
    // Before COMMIT nothing was done, whatever fails.
    let not_done = JobError::NotDone;
    let (mut client, connection) = config.connect(NoTls).await.map_err(not_done)?;
    tokio::spawn(connection);
    let transaction = client.transaction().await.map_err(not_done)?;
    let fence = i64::try_from(run.fence).unwrap_or(i64::MAX);
    // Refuses a worker that was overtaken (ID001).
    let effect = transaction.query_one("select onceward.effect($1, $2)", &[&&run.record.0[..], &fence]).await;
    if effect.map_err(not_done)?.get(0) {
        transaction.execute("insert into invoice (number) values ($1)", &[&number]).await.map_err(not_done)?;
    }
    transaction.commit().await.map_err(JobError::Unknown)?;
    Ok(format!("{number} is sent").into())
}
