//! The rules that the simulator's servers follow, apart from its network: what a script of Redis or a function in SQL does, in
//! Rust. The real ones are held to them.

pub mod database;
pub mod server;
