//! Over tokio-postgres.

#[path = "cases.rs"]
mod cases;
#[path = "../library/tokio_postgres.rs"]
mod library;
