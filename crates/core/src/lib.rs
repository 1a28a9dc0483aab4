//! The pure heart of Onceward.
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod canonical;
pub mod fingerprint;
pub mod key;
