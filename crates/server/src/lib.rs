//! Onceward as one binary: the reverse proxy, its configuration, its admin listener and its command line.
//!
//! # Layout
//!
//! [`cli`] what can be typed, and the commands · [`config`] the file, the environment, the flags · [`assemble`] both
//! as the layer's routes · [`start`] the process from start to drain · [`identity`] what record ids are made of, over
//! starts · [`reload`] the configuration, changed while it runs · [`proxy`] HTTP on both sides of the layer · [`ask`]
//! questions to others · [`admin`] metrics, health and records · [`reconcile`] records
//! held against effects, and what undoes them · [`demo`] the sample API of `proxy --demo`.

/// What this build says that it is: `ONCEWARD_VERSION` at its build, else that of the package.
pub const VERSION: &str = match option_env!("ONCEWARD_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

pub mod admin;
pub mod ask;
pub mod assemble;
pub mod cli;
mod compensate;
pub mod config;
pub mod demo;
mod folder;
pub mod identity;
pub mod journaling;
mod late;
mod maintenance;
pub mod opened;
pub mod proxy;
pub mod reconcile;
pub mod reload;
pub mod start;
mod sweep;
mod telemetry;
