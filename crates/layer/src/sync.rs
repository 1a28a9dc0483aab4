//! What threads share by hand, named in one place: `models/` compiles the same code over primitives whose every
//! interleaving it chooses.

pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic};
