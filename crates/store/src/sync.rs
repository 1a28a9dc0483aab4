//! What threads share by hand, named in one place: `models/` compiles the same code over primitives whose every
//! interleaving it chooses.

pub(crate) use std::sync::{Arc, Mutex, PoisonError, atomic};
#[cfg(feature = "embedded")]
pub(crate) use std::sync::{Condvar, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(feature = "embedded")]
pub(crate) use std::thread;
