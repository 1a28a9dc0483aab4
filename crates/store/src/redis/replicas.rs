//! Writes that replicas have before they count: WAIT, on connections of its own, since it lets nothing else through
//! meanwhile.
//!
//! It makes a loss less likely, and excludes none: a failover may promote a replica that has less, and a server that is
//! cut off may be waited at beside the one that took its place. Whether the write is on the server that is waited at is
//! looked at first.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use onceward_core::record::{Fence, Revision};
use redis::Value;

use super::{
    address::Address,
    error::Failure,
    key::Keys,
    link::{CallError, Link},
};
use crate::{Applied, Kind, StoreError};

/// How many are waited for at a time; more wait for these.
const CONNECTIONS: usize = 16;

/// How many replicas a write has to reach, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// So many at least, of each primary.
    pub replicas: u16,
    /// Less than the deadline of a call.
    pub timeout: Duration,
}

/// Waits for replicas.
#[derive(Debug)]
pub(super) struct Replicas {
    wait: Wait,
    links: Vec<Link>,
    next: AtomicUsize,
}

impl Replicas {
    pub(super) fn new(wait: Wait, address: &Address, deadline: Duration) -> Self {
        let links = (0..CONNECTIONS).map(|_| Link::new(address, deadline, None)).collect();
        Self { wait, links, next: AtomicUsize::new(0) }
    }

    /// Until so many have the record as it was written.
    ///
    /// # Errors
    /// Unknown: they do not within the time, or the server that was asked has another record. It is written at the
    /// primary all the same.
    pub(super) async fn have(&self, keys: &Keys, fence: Fence, revision: Revision) -> Result<(), StoreError> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS;
        let Some(link) = self.links.get(at) else { return Ok(()) };
        let mut commands = redis::pipe();
        // Where fence and revision stand: value.rs. WAIT is for what this connection's last command could see.
        commands.cmd("GETRANGE").arg(keys.record()).arg(12).arg(27);
        commands.cmd("WAIT").arg(self.wait.replicas).arg(self.wait.timeout.as_millis().max(1).to_string());
        // The step itself was applied.
        let failed = |failed: CallError| StoreError { applied: Applied::Unknown, ..failed.step() };
        let answers = link.pipeline(&commands).await.map_err(failed)?;
        let unknown = |said: String| Err(StoreError::unknown(Kind::Unavailable).because(Failure::said(said)));
        let [Value::BulkString(there), Value::Int(count)] = &*answers else {
            return unknown("the server's answer to WAIT is none".to_owned());
        };
        if **there != [fence.0.to_be_bytes(), revision.0.to_be_bytes()].concat() {
            return unknown(
                "the server that replicas are waited for at has not what was written: it failed over".to_owned(),
            );
        }
        if *count < i64::from(self.wait.replicas) {
            let (wanted, within) = (self.wait.replicas, self.wait.timeout);
            return unknown(format!(
                "{count} of {wanted} replicas had the write within {within:?}: look at them, or ask for less with `wait` in \
                 [store.redis]"
            ));
        }
        Ok(())
    }
}
