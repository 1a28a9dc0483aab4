//! Server.

pub mod demo;
pub mod proxy;
