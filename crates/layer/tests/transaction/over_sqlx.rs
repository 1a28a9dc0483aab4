//! Over sqlx.

#[path = "cases.rs"]
#[expect(clippy::duplicate_mod, reason = "the same cases over another library")]
mod cases;
#[path = "../library/sqlx.rs"]
mod library;
