//! Onceward as one binary.
pub mod config;
pub mod demo;
pub mod proxy;
