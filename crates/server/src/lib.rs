//! Onceward as one binary.
pub mod assemble;
pub mod config;
pub mod demo;
pub mod proxy;
