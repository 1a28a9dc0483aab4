//! Server.

pub mod proxy;
