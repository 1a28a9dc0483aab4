//! A store whose settled records this process remembers as it sees them; see `remember`.

use std::{sync::Arc, time::Duration};

use metrics::Counter;
use onceward_core::{
    cas::{Expect, Keep, Replacement},
    key::RecordId,
    record::{Facts, Fence, Micros, Record, Stored},
};
use onceward_store::{
    Answer, Durabilities, FallsBack, Filter, Insert, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write,
};
use tokio::time::Instant;

use crate::remember::{Remembered, Said, Ticket};

/// Any store, looked at.
#[derive(Debug)]
pub(crate) struct Remembering {
    inner: Arc<dyn Store>,
    remembered: Arc<Remembered>,
    /// Counts answers that others took the room of.
    dropped: Counter,
}

/// One call about one key.
struct Call<'a> {
    of: &'a Remembering,
    id: RecordId,
    ticket: Ticket,
    asked: Instant,
    /// Forgets once it is dropped: a write whose caller has gone may be applied all the same.
    writes: bool,
}

impl Remembering {
    pub(crate) fn new(inner: Arc<dyn Store>, remembered: Arc<Remembered>, dropped: Counter) -> Self {
        Self { inner, remembered, dropped }
    }

    /// Before the store is asked.
    fn asks(&self, id: RecordId) -> Call<'_> {
        Call { of: self, id, ticket: self.remembered.ticket(&id), asked: Instant::now(), writes: false }
    }

    /// Before the store is written to: from here on the record may be another one.
    fn writes(&self, id: RecordId) -> Call<'_> {
        self.remembered.forget(&id);
        Call { writes: true, ..self.asks(id) }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.writes {
            self.forget();
        }
    }
}

impl Call<'_> {
    fn said(&self, now: Micros) -> Said {
        Said { now, asked: self.asked }
    }

    /// The store said what is there.
    fn saw(&self, record: &Record, now: Micros) {
        self.dropped(self.of.remembered.saw(self.ticket, &self.id, record, self.said(now)));
    }

    fn dropped(&self, count: usize) {
        if count > 0 {
            self.of.dropped.increment(count as u64);
        }
    }

    fn forget(&self) {
        self.of.remembered.forget(&self.id);
    }

    /// The store said whether something is there.
    fn found(&self, record: Option<&Record>, now: Micros) {
        match record {
            Some(record) => self.saw(record, now),
            None => self.forget(),
        }
    }

    /// What a replacement made of the record. Where nobody knows, nothing is known.
    fn replaced(mut self, write: &Replacement, result: &Result<Write, StoreError>) {
        match result {
            Ok(Write::Applied { fence, revision, now }) => {
                let Keep::For(span) = write.keep else { return };
                self.writes = false;
                let stored = Stored {
                    fence: *fence,
                    revision: *revision,
                    lease_until: Micros::ZERO,
                    keep_until: now.plus(span),
                    written_at: *now,
                };
                let record = Record { stored, facts: write.facts.clone() };
                self.dropped(self.of.remembered.wrote(self.ticket, &self.id, record, self.said(*now)));
            }
            Ok(Write::Lost { record: Some(record), now }) => {
                self.writes = false;
                self.saw(record, *now);
            }
            Ok(Write::Lost { record: None, .. }) | Err(_) => {}
        }
    }
}

impl Store for Remembering {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        if self.remembered.is_off() {
            return self.inner.insert(id, facts, lease);
        }
        Box::pin(async move {
            let call = self.asks(id);
            let result = self.inner.insert(id, facts, lease).await;
            match &result {
                // What was there is no more.
                Ok(Insert::Inserted { .. }) => call.forget(),
                Ok(Insert::Existing { record, now }) => call.saw(record, *now),
                Err(_) => {}
            }
            result
        })
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        if self.remembered.is_off() {
            return self.inner.replace(id, write);
        }
        Box::pin(async move {
            let call = self.writes(id);
            let result = self.inner.replace(id, write).await;
            call.replaced(write, &result);
            result
        })
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        if self.remembered.is_off() {
            return self.inner.extend(id, holder, lease);
        }
        Box::pin(async move {
            let call = self.asks(id);
            let result = self.inner.extend(id, holder, lease).await;
            if let Ok(Write::Lost { record, now }) = &result {
                call.found(record.as_deref(), *now);
            }
            result
        })
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        if self.remembered.is_off() {
            return self.inner.remove(id, expect);
        }
        Box::pin(async move {
            let _call = self.writes(id);
            self.inner.remove(id, expect).await
        })
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        if self.remembered.is_off() {
            return self.inner.get(id);
        }
        Box::pin(async move {
            let call = self.asks(id);
            let result = self.inner.get(id).await;
            if let Ok(Read { record, now }) = &result {
                call.found(record.as_ref(), *now);
            }
            result
        })
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        self.inner.scan(after, limit, filter)
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        self.inner.sweep(limit, waits)
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.inner.watch(id)
    }

    fn fall_back(&self, when: FallsBack) {
        self.inner.fall_back(when);
    }

    fn keep_by_route(&self, routes: Arc<Durabilities>) {
        self.inner.keep_by_route(routes);
    }

    fn is_in_fallback(&self, id: &RecordId) -> bool {
        self.inner.is_in_fallback(id)
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        self.inner.keep_rules(policy, rules)
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        self.inner.rules(policy)
    }

    fn usage(&self, tenant: &str) -> Usage {
        self.inner.usage(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.inner.lost_ago()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
