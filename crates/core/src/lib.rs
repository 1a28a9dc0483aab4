//! The pure heart of Onceward: keys, records and the decision what a request may do.
//!
//! Nothing here does I/O, reads a clock or draws a random number: time, ids and what a store
//! returned are arguments, and what is to be done comes back as data. `no_std` makes clocks and
//! sockets unnameable, and `tests/purity.rs` pins the dependencies.
//!
//! # Layout
//!
//! - [`key`]: the client's key, its scope, and the record id made of both
//! - [`canonical`], [`fingerprint`]: what makes two requests the same request
//! - [`record`]: what a store keeps; [`outcome`]: the answer inside it; [`codec`]: its bytes
//! - [`policy`]: what a route wants; [`decide`]: the one place that decides
//! - [`claim`]: the state machine of one request; [`transition`]: the writes of a holder or an operator
//! - [`cas`]: the compare-and-set step that stores in one process share
//! - [`mutant`]: safeties that the crash checker takes out, in builds of its own
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod canonical;
pub mod cas;
pub mod claim;
pub mod codec;
pub mod decide;
pub mod fingerprint;
pub mod key;
pub mod mutant;
pub mod outcome;
pub mod policy;
pub mod record;
pub mod transition;
#[expect(unreachable_pub, reason = "generated")]
mod wire;
