//! Server.
pub mod cli;
pub mod config;
