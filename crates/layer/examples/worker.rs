//! A worker whose queue delivers messages more than once, and whose work is done once.
//!
//! ```sh
//! cargo run --example worker      # and again: the second run finds everything done
//! ```

use std::{io, sync::Arc, time::Duration};

use onceward::{
    Engine, JobError, Jobs, Limits, Policy, Route, Routes, Secret,
    store::embedded::{Embedded, Options},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join("onceward-example-worker");
    let store = Embedded::open(&folder, Options::default()).await?;
    let routes = Routes::new(vec![], Route::new("default"));
    let secret = Secret::from_bytes([7; 32]);
    let engine = Engine::new(Arc::new(store.clone()), secret, routes, Limits::default(), Engine::new_session());
    // Queues keep messages for days: remember their keys for longer.
    let policy = Policy { retention: Duration::from_secs(14 * 24 * 3600), ..Policy::default() };
    let jobs = Jobs::new(engine.clone(), "invoices", policy, Duration::from_secs(20));

    for message in ["invoice-1", "invoice-2", "invoice-1"] {
        let done = jobs
            .run_once(message, message.as_bytes(), move |run| async move {
                // What the job writes to should keep run.fence, and refuse a smaller one.
                println!("sending {message}, attempt {}, fence {}", run.attempt, run.fence);
                Ok::<_, JobError<io::Error>>(format!("{message} sent").into())
            })
            .await?;
        println!("{message}: {:?}{}", done.output, if done.replayed { ", done before" } else { "" });
    }
    engine.drain(Duration::from_secs(25)).await;
    store.close().await;
    Ok(())
}
