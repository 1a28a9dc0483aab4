//! The store of several processes: records are rows of a PostgreSQL database.
//!
//! # Layout
//!
//! [`address`] where the database is and how it is reached, [`migrate`] its tables and functions.

pub mod address;
mod error;
pub mod migrate;
