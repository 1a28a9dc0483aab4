//! The pure heart of Onceward.
#![no_std]
extern crate alloc;
