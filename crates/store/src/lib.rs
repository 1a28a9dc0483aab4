//! Stores.
#[cfg(feature = "embedded")]
pub mod log;
