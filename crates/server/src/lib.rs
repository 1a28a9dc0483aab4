//! Server.
pub mod config;
