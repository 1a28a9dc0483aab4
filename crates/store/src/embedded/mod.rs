//! The durable store of one process: the log is the store.
//!
//! Every write becomes one frame of the [`log`] and is answered once its batch is durable; only then does
//! the index change. A write is evaluated under its table's lock, which is never held across I/O; a second write to an
//! id waits for the first one's batch and is evaluated anew. Reads of settled records are one positional read.
//!
//! Records in flight and unknown ones are kept in memory whole. Leases are only there: a renewal writes nothing, and
//! after a restart every session but the present one is over, so that what was open comes back with its lease over.
//!
//! # Layout
//!
//! - `mod.rs`: opening, and the verbs · `write.rs`: how a write waits, is evaluated, queued and answered
//! - `apply.rs`: what a finished batch changes · `tidy.rs`: sweeping, dropping segments, copying forward
//! - `index.rs`: where records stand · `tenants.rs`: what each tenant takes up · `clock.rs`: the store's time
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use onceward_store::{Store, embedded::{Embedded, Options}};
//! let store = Embedded::open("onceward-data", Options::default()).await?;
//! assert_eq!(store.kind(), "embedded");
//! store.close().await;
//! # Ok(())
//! # }
//! ```

mod apply;
mod clock;
mod index;
mod rules;
mod tenants;
#[cfg(test)]
mod tests;
mod tidy;
mod write;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use onceward_core::cas::{self, Expect, Replacement};
use onceward_core::codec;
use onceward_core::key::RecordId;
use onceward_core::mutant::{self, Mutant};
use onceward_core::record::{Facts, Fence, Micros, Record, State as RecordState, Stored};

use self::apply::{State, Ticket};
pub use self::clock::Clock;
use self::index::{Index, Slot, half};
use self::rules::KeptRules;
use self::tenants::Tenants;
use self::write::{Evaluated, There, damaged};
use crate::log::{self, Disk, Folder, Kind as FrameKind, LockFile, Log, OpenReport, lock};
use crate::{Answer, Filter, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept, Usage, Watch, Write};

/// Batches that may be finished and not yet applied; the writer then waits.
const BATCHES_MAX: usize = 16;

/// How an embedded store works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The log's.
    pub log: log::Options,
    /// New claims are refused at so many records. About 55 bytes of memory each.
    pub records_max: usize,
    /// The store's clock.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        // One spare segment, and one while the next is made: at full speed a segment fills within seconds, and no
        // claim is refused for want of a file that is on its way.
        let log = log::Options { spares_min: 2, ..log::Options::default() };
        Self { log, records_max: 10_000_000, clock: Clock::Machine }
    }
}

/// Why an embedded store was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder could not be made or read.
    #[error("cannot use the data folder {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it, or the lock could not be taken.
    #[error(transparent)]
    Lock(#[from] log::LockError),
    /// The log was refused.
    #[error(transparent)]
    Log(#[from] log::OpenError),
    /// The log could not be written.
    #[error("the log cannot be started")]
    Start(#[source] std::io::Error),
}

/// The durable store of one process. Clones share it; the last one to go closes the log.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    log: Log<Ticket>,
    report: OpenReport,
    lock: Option<LockFile>,
    rules: Arc<KeptRules>,
    closing: Arc<AtomicBool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to be answered, so the writer need not wait for anybody to listen.
        self.closing.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in `folder`, or makes one where the folder is missing or empty. Reads what is there on a
    /// blocking thread: some seconds for ten million records.
    ///
    /// # Errors
    /// [`OpenError`]: another process has it, it is something else, of a newer format, or damaged.
    pub async fn open(folder: impl Into<PathBuf>, options: Options) -> Result<Self, OpenError> {
        let folder = folder.into();
        let failed = |source| OpenError::Folder { folder: folder.clone(), source };
        let disk = Folder::open(folder.clone()).map_err(failed)?;
        let lock = LockFile::take(&folder)?;
        let rules = KeptRules::open(&folder).map_err(failed)?;
        Self::open_on(Arc::new(disk), options, Some(lock), rules).await
    }

    async fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        lock: Option<LockFile>,
        rules: KeptRules,
    ) -> Result<Self, OpenError> {
        let runtime = tokio::runtime::Handle::current();
        let opening = tokio::task::spawn_blocking(move || Self::open_blocking(disk, options, lock, rules, &runtime));
        opening.await.map_err(|error| OpenError::Start(std::io::Error::other(error)))?
    }

    fn open_blocking(
        disk: Arc<dyn Disk>,
        options: Options,
        lock: Option<LockFile>,
        rules: KeptRules,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, OpenError> {
        let index = Index::default();
        let mut tenants = Tenants::default();
        let wall = options.clock.wall();
        let of_log = log::Options { tag_of: tenants::tag_of, ..options.log.clone() };
        let opened = Log::<Ticket>::open(disk, of_log, &mut |entry| {
            let mut shard = index.of(&entry.id);
            let slot = Slot::new(entry.id, entry.position, entry.len, entry.keep_until_s);
            // An ended record still takes the place of those before it.
            if entry.kind == FrameKind::Put && !slot.has_ended(wall) {
                shard.put(slot.of(tenants.number(entry.tag)));
            } else {
                shard.take(&entry.id);
            }
        })?;
        let report = opened.report().clone();
        let clock = clock::Started::new(options.clock.clone(), Micros(report.time_us));
        let state = Arc::new(State::new(index, tenants, clock, options.records_max, report.fence_mark));
        let closing = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = tokio::sync::mpsc::channel(BATCHES_MAX);
        let timed = Arc::clone(&state);
        let sink = apply::sink(sender, Arc::clone(&closing));
        let claims = Arc::clone(&state.claims);
        let log = opened.start(Arc::new(move || timed.clock.now().0), claims, sink).map_err(OpenError::Start)?;
        let inner = Arc::new(Inner { state, log, report, lock, rules: Arc::new(rules), closing });
        inner.load();
        runtime.spawn(apply::run(receiver, Arc::clone(&inner.state), Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// What opening found: a batch that was cut, losses that were accepted.
    #[must_use]
    pub fn report(&self) -> &OpenReport {
        &self.inner.report
    }

    /// Counters and gauges of the log.
    #[must_use]
    pub fn log_stats(&self) -> log::Stats {
        self.inner.log.stats()
    }

    /// Writes the admin listener's address into the lock file, for commands that look for the running process.
    ///
    /// # Errors
    /// The file system's.
    pub fn set_admin(&self, address: &str) -> std::io::Result<()> {
        self.inner.lock.as_ref().map_or(Ok(()), |lock| lock.set_admin(address))
    }

    /// Writes what is queued and takes no more writes. Reads go on.
    pub async fn close(&self) {
        let inner = Arc::clone(&self.inner);
        // An aborted runtime leaves the closing to the drop.
        let _ = tokio::task::spawn_blocking(move || inner.log.close()).await;
    }
}

impl Inner {
    /// Counts what the index holds, and takes open records into memory with their lease over: whoever held them was
    /// another process.
    fn load(&self) {
        if let Some(last) = self.log.segments().last() {
            self.state.set_applied(*last);
        }
        let now = self.state.clock.now();
        let mut counted = apply::Counted::default();
        let mut tenants = lock(&self.state.tenants);
        for first in 0..=u8::MAX {
            let mut shard = self.state.index.shard(first);
            let mut open = Vec::new();
            for slot in shard.slots() {
                counted.add(slot);
                tenants.add(slot.tenant, slot.len());
                if slot.keep_until_s == 0 {
                    open.push(*slot);
                }
            }
            for slot in open {
                // One that is damaged says so at every read.
                let Ok(frame) = self.log.read(slot.position(), slot.len(), &slot.id) else { continue };
                let Ok(mut record) = codec::decode(&frame.payload) else { continue };
                if !mutant::is(Mutant::StaleSession) {
                    record.stored.lease_until = Micros::ZERO;
                }
                // Renewals were not written: what anybody saw before the restart must not come again.
                record.stored.revision.0 = record.stored.revision.0.saturating_add(1).max(now.0);
                let (stored, state) = (record.stored, record.facts.state);
                let bytes = Bytes::copy_from_slice(&frame.payload);
                shard.open.insert(RecordId(frame.id), index::Open { stored, state, bytes, counted: false });
            }
        }
        self.state.count(counted);
    }

    /// Reads a settled record. None: its segment was dropped meanwhile, look it up again.
    fn read(&self, slot: &Slot, id: Option<&RecordId>) -> Result<Option<(RecordId, Record)>, StoreError> {
        let frame = match self.log.read(slot.position(), slot.len(), &slot.id) {
            Ok(frame) => frame,
            Err(log::ReadError::Gone) => return Ok(None),
            Err(error @ log::ReadError::Damaged { .. }) => {
                return Err(StoreError::not_applied(Kind::Damaged(error.to_string())).because(error));
            }
            Err(error) => return Err(StoreError::not_applied(Kind::Unavailable).because(error)),
        };
        if id.is_some_and(|id| id.0 != frame.id) {
            let said = "two ids begin with the same sixteen bytes, or this one was damaged";
            return Err(StoreError::not_applied(Kind::Damaged(said.into())));
        }
        let record = codec::decode(&frame.payload).map_err(damaged)?;
        Ok(Some((RecordId(frame.id), record)))
    }

    /// The record of an id as it is, or was when it was looked up.
    fn get_now(&self, id: &RecordId) -> Result<Read, StoreError> {
        loop {
            let shard = self.state.index.of(&half(id));
            let now = self.state.clock.now();
            if let Some(open) = shard.open.get(id) {
                let open = open.clone();
                drop(shard);
                return Ok(Read { record: Some(open.record().map_err(damaged)?), now });
            }
            let Some(slot) = shard.get(&half(id)).filter(|slot| !slot.has_ended(now)) else {
                return Ok(Read { record: None, now });
            };
            drop(shard);
            if let Some((_, record)) = self.read(&slot, Some(id))? {
                return Ok(Read { record: Some(record).filter(|record| !record.is_expired(now)), now });
            }
        }
    }

    /// One page: at most `limit` records are looked at, so that a filter that admits few does not read the whole store.
    fn scan_now(&self, after: Option<RecordId>, limit: usize, filter: &Filter) -> Result<Page, StoreError> {
        let now = self.state.clock.now();
        let mut page = Page { now, ..Page::default() };
        let (candidates, more) = tidy::ids_after(&self.state.index, after.as_ref(), limit, filter.state, now);
        for candidate in &candidates {
            let Some((id, record)) = self.find(candidate, now)? else { continue };
            if !record.is_expired(now) && filter.admits(&record, now) {
                page.records.push((id, record));
            }
        }
        if more {
            page.next = candidates.last().map(|last| {
                let mut id = [0xff; 32];
                id.iter_mut().zip(last).for_each(|(to, from)| *to = *from);
                RecordId(id)
            });
        }
        Ok(page)
    }

    fn find(&self, id: &index::Half, now: Micros) -> Result<Option<(RecordId, Record)>, StoreError> {
        loop {
            let shard = self.state.index.of(id);
            let Some(slot) = shard.get(id).filter(|slot| !slot.has_ended(now)) else { return Ok(None) };
            if slot.keep_until_s == 0
                && let Some((id, open)) = shard.open.iter().find(|(open, _)| half(open) == *id)
            {
                return Ok(Some((*id, open.record().map_err(damaged)?)));
            }
            drop(shard);
            if let Some(found) = self.read(&slot, None)? {
                return Ok(Some(found));
            }
        }
    }

    fn is_full(&self) -> bool {
        self.state.records.load(Ordering::Relaxed) >= self.state.records_max || !self.log.has_space()
    }
}

impl Store for Embedded {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(self.inner.write(id, Vec::with_capacity(512), move |inner, there, now, bytes| {
            let existing = |record| Ok(Evaluated::Answer(Insert::Existing { record, now }));
            let ended = match there {
                There::Open(open)
                    if mutant::is(Mutant::InsertOverClaim)
                        || mutant::is(Mutant::LeaseDeletes) && open.stored.lease_until <= now =>
                {
                    Some(open.stored)
                }
                There::Open(open) => return existing(Box::new(open.record().map_err(damaged)?)),
                There::Settled(record) => return existing(record),
                There::None(ended) => ended,
            };
            // An ended record that is still counted makes room for its successor.
            if !inner.log.has_space() || ended.is_none() && inner.is_full() {
                return Err(StoreError::not_applied(Kind::Full));
            }
            let stored = cas::inserted(lease, now, inner.state.mark(), ended.as_ref());
            bytes.clear();
            codec::encode_parts(&stored, facts, bytes);
            let answer = Insert::Inserted { fence: stored.fence, now };
            Ok(Evaluated::Put(stored, facts.state, answer))
        }))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        // A body may be long: it is encoded before the lock, and the store's block is filled in under it.
        let mut encoded = Vec::new();
        codec::encode_parts(&Stored::default(), &write.facts, &mut encoded);
        let claims = write.facts.state == RecordState::InFlight && write.fence == cas::FenceRule::Next;
        Box::pin(self.inner.write(id, encoded, move |inner, there, now, bytes| {
            let there = match meant(there, write.expect, now)? {
                Ok(there) => there,
                Err(lost) => return Ok(Evaluated::Answer(lost)),
            };
            if claims && !inner.log.has_space() {
                return Err(StoreError::not_applied(Kind::Full));
            }
            let stored = cas::replaced(write, &there, now, inner.state.mark());
            if let Some(block) = bytes.get_mut(codec::STORED) {
                block.copy_from_slice(&codec::stored_bytes(&stored));
            }
            let answer = Write::Applied { fence: stored.fence, revision: stored.revision, now };
            Ok(Evaluated::Put(stored, write.facts.state, answer))
        }))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(self.inner.write(id, Vec::new(), move |_, there, now, _| {
            let there = match meant(there, Expect::Holder(holder), now)? {
                Ok(there) => there,
                Err(lost) => return Ok(Evaluated::Answer(lost)),
            };
            let stored = cas::extended(&there, lease, now);
            let answer = Write::Applied { fence: stored.fence, revision: stored.revision, now };
            Ok(Evaluated::Renew(stored, answer))
        }))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(self.inner.write(id, Vec::new(), move |_, there, now, _| {
            let stored = match meant(there, expect, now)? {
                Ok(there) => there,
                Err(lost) => return Ok(Evaluated::Answer(lost)),
            };
            Ok(Evaluated::Remove(Write::Applied { fence: stored.fence, revision: stored.revision, now }))
        }))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(std::future::ready(self.inner.get_now(&id)))
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        Box::pin(std::future::ready(self.inner.scan_now(after, limit, &filter)))
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        Box::pin(self.inner.sweep(limit, waits))
    }

    fn watch(&self, id: RecordId) -> Watch {
        self.inner.state.watchers.watch(id)
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        let (kept, text) = (Arc::clone(&self.inner.rules), rules.to_owned());
        Box::pin(async move {
            let failed = |error: std::io::Error| StoreError::unknown(Kind::Unavailable).because(error);
            let writing = tokio::task::spawn_blocking(move || kept.keep(policy, &text));
            writing.await.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)
        })
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        Box::pin(std::future::ready(Ok(self.inner.rules.get(policy))))
    }

    fn usage(&self, tenant: &str) -> Usage {
        lock(&self.inner.state.tenants).usage(tenant)
    }

    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    fn stats(&self) -> Stats {
        let state = &self.inner.state;
        let log = self.inner.log.stats();
        let records = state.records.load(Ordering::Relaxed);
        let mut concerns = Vec::new();
        if records >= state.records_max {
            concerns.push(format!("the store holds {records} records, its limit: new claims are refused"));
        }
        if log.broken {
            concerns.push("the log cannot be written and is tried again".to_owned());
        } else if log.full {
            concerns.push("no space is left for the log: new claims are refused".to_owned());
        }
        Stats {
            records: records as u64,
            records_max: Some(state.records_max as u64),
            open: state.open.load(Ordering::Relaxed) as u64,
            bytes: (log.segments + log.spares) * u64::from(self.inner.log.segment_bytes()),
            accepts_claims: !self.inner.is_full() && !log.broken,
            concerns,
            cache: None,
        }
    }
}

/// The store's block of the record that `expect` means, or the answer that it is not there.
fn meant(there: There, expect: Expect, now: Micros) -> Result<Result<Stored, Write>, StoreError> {
    match there.stored() {
        Some((stored, state)) if cas::is_meant(expect, &stored, state) => Ok(Ok(stored)),
        _ => Ok(Err(Write::Lost { record: there.record()?, now })),
    }
}
