//! The three couplings on a real server, over each database library.

#![cfg(all(feature = "tokio-postgres", feature = "sqlx"))]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod over_sqlx;
mod over_tokio_postgres;
#[path = "../shop/mod.rs"]
mod shop;
mod standby;
