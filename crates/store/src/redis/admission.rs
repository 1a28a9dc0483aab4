//! Whether the servers are asked at all: not before they were looked at.
//!
//! A process that has its records elsewhere too can begin without its Redis. Until that has been there, and was found to be
//! the right one, each call is refused as if nobody answered.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::SetOnce;

use super::error::Failure;
use crate::{Kind, StoreError};

/// Shut at first.
#[derive(Debug)]
pub(super) struct Admission {
    /// From the first look on, which asks like all else.
    is_open: AtomicBool,
    /// What that found is well: once, for good.
    is_well: SetOnce<()>,
    why: Mutex<String>,
}

impl Default for Admission {
    fn default() -> Self {
        let why = "it was not there when this process began, and is used once it has been looked at";
        Self { is_open: AtomicBool::new(false), is_well: SetOnce::new(), why: Mutex::new(why.to_owned()) }
    }
}

impl Admission {
    pub(super) fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    pub(super) fn is_well(&self) {
        let _once = self.is_well.set(());
    }

    pub(super) fn is_granted(&self) -> bool {
        self.is_well.initialized()
    }

    /// Until it is.
    pub(super) async fn granted(&self) {
        self.is_well.wait().await;
    }

    /// Why it is not.
    pub(super) fn concern(&self) -> Option<String> {
        (!self.is_granted()).then(|| format!("Redis is not used: {}", self.why()))
    }

    fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From here on calls are refused, with these words.
    pub(super) fn shut(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
        self.is_open.store(false, Ordering::Release);
    }

    /// Nothing, or what a call is refused with.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.is_open.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(StoreError::not_applied(Kind::Unavailable).because(Failure::said(self.why())))
    }
}
