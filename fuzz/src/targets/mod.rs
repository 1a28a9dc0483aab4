//! The targets, one file each.

pub(crate) mod canonical;
pub(crate) mod config;
pub(crate) mod http1;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod record;
