//! Over sqlx.

#[path = "application.rs"]
#[expect(clippy::duplicate_mod, reason = "the same application over another library")]
mod application;
#[path = "../library/sqlx.rs"]
mod library;

pub(crate) use self::application::Application;
