//! Over tokio-postgres.

#[path = "application.rs"]
mod application;
#[path = "../library/tokio_postgres.rs"]
mod library;

pub(crate) use self::application::Application;
