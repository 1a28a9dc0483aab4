//! The rules that the simulator's servers follow, apart from its network: what a script of Redis does, in Rust. The real
//! scripts are held to them.

pub mod server;
