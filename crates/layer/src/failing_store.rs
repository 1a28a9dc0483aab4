//! A store that stops at the failpoints within it: what a disk or a server that hangs looks like from above.

use std::{sync::Arc, time::Duration};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{Facts, Fence},
};
use onceward_store::{Answer, Filter, HearsForgotten, Insert, Page, Read, Stats, Store, Swept, Usage, Watch, Write};

use crate::failpoint::{self, hit};

/// `inner`, whose writes pass a failpoint first. Below the deadline of [`Guarded`](onceward_store::guarded::Guarded),
/// so that a paused call is late as any other.
#[derive(Clone, Debug)]
pub struct FailingStore(Arc<dyn Store>);

impl FailingStore {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self(inner)
    }
}

impl Store for FailingStore {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(async move {
            hit(failpoint::STORE_INSERT).await;
            self.0.insert(id, facts, lease).await
        })
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(async move {
            hit(failpoint::STORE_REPLACE).await;
            self.0.replace(id, write).await
        })
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(async move {
            hit(failpoint::STORE_EXTEND).await;
            self.0.extend(id, holder, lease).await
        })
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        self.0.remove(id, expect)
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        self.0.get(id)
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        self.0.scan(after, limit, filter)
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        self.0.sweep(limit, waits)
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.0.watch(id)
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        self.0.tell_forgotten(hears);
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        self.0.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        self.0.rules(policy)
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.0.usage(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.0.lost_ago()
    }

    fn stats(&self) -> Stats {
        self.0.stats()
    }
}
