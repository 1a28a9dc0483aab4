//! Whether the servers are asked at all: not before they were looked at.
//!
//! A process that has its records elsewhere too can begin without its Redis. Until that has been there, and was found to be
//! the right one, each call is refused as if nobody answered.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::error::Failure;
use crate::{Kind, StoreError};

/// Shut at first.
#[derive(Debug)]
pub(super) struct Admission {
    is_open: AtomicBool,
    why: Mutex<String>,
}

impl Default for Admission {
    fn default() -> Self {
        let why = "it was not there when this process began, and is used once it has been looked at";
        Self { is_open: AtomicBool::new(false), why: Mutex::new(why.to_owned()) }
    }
}

impl Admission {
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    pub(super) fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// From here on calls are refused, with these words.
    pub(super) fn shut(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
        self.is_open.store(false, Ordering::Release);
    }

    /// Nothing, or what a call is refused with.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.is_open() {
            return Ok(());
        }
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(StoreError::not_applied(Kind::Unavailable).because(Failure::said(why)))
    }
}
