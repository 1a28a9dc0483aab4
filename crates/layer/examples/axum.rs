//! An axum server whose payments take effect once, with the durable embedded store.
//!
//! ```sh
//! cargo run --example axum
//! curl -i localhost:3000/v1/payments -H 'Idempotency-Key: k-1' -d amount=100   # twice: one charge, equal answers
//! ```

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use onceward::{
    Engine, Layer, Limits, Route, Routes, Secret,
    store::embedded::{Embedded, Options},
};
use std::sync::atomic::{AtomicU64, Ordering};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join("onceward-example-axum");
    let store = Embedded::open(&folder, Options::default()).await?;
    // In earnest: 32 random bytes of your own, kept as long as the store. Another secret makes every key new.
    let secret = Secret::from_bytes([7; 32]);
    let routes = Routes::new(vec![], Route::new("default"));
    let engine = Engine::new(Arc::new(store.clone()), secret, routes, Limits::default(), Engine::new_session());

    let app = Router::new()
        .route("/v1/payments", post(charge))
        .with_state(Arc::new(AtomicU64::new(0)))
        // Inside authentication, outside time-outs and compression.
        .layer(Layer::new(engine.clone()));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("http://{}/v1/payments, records in {}", listener.local_addr()?, folder.display());
    axum::serve(listener, app).with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) }).await?;
    // Executions outlive their clients: give them time to be recorded.
    engine.drain(Duration::from_secs(25)).await;
    store.close().await;
    Ok(())
}

async fn charge(State(charges): State<Arc<AtomicU64>>) -> (StatusCode, String) {
    let number = charges.fetch_add(1, Ordering::Relaxed) + 1;
    (StatusCode::CREATED, format!("{{\"id\":\"ch_{number}\"}}\n"))
}
