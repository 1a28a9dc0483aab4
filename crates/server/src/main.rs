//! Onceward.
fn main() {}
