//! A second store for the time in which the first does not answer.
//!
//! The second does not hold the first one's records: a key that was claimed before runs again there. That is accepted by
//! whoever asks for it, counted as far as it is found, and kept small:
//!
//! - Only claims of routes that ask for it go to the second, and only while the first one's circuit is not closed, or
//!   where it failed this very claim. Who probes the circuit is this store itself, so that no request waits for that.
//! - Processes find out at different times that the first is back. One that did goes on claiming in the second for twice as
//!   long as a circuit is open, and looks at the first beside: nobody claims there whom another one does not see.
//! - Whatever was begun on one store is ended on that one: a write follows the record that it means. So does a fence,
//!   which the other store's clock did not give.
//! - What the second holds is found there for as long as it lives, before anything is claimed on the first: what ran
//!   meanwhile does not run again. While the second holds nothing, which is looked at each second, it is not asked.
//!
//! *S2*: the times of two stores are of two clocks; of one record they are of one. *S4*: fences rise on each of them,
//! and over both as far as their clocks agree.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use onceward_core::{
    cas::{Expect, Replacement},
    key::RecordId,
    record::{ClaimId, Facts, Fence, State},
    transition::{self, Write as Transition},
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    Answer, Applied, FallsBack, Filter, HearsForgotten, Insert, Kind, Page, Read, Stats, Store, StoreError, Swept,
    Usage, Watch, Write, circuit::Circuit, guarded::Guarded, lists::Lists, recent::Recent,
};

/// How often a circuit that is not closed is asked whether it lets a call through.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// How often it is looked whether the second holds anything, and what has ended there is removed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many ended records at a time.
const SWEPT_MAX: usize = 1_000;
/// So many grants of the second are looked for on the first once it is back; of further ones the oldest are not.
const GRANTED_MAX: usize = 100_000;
/// Between two of these looks: a hundred a second, beside what the first has to do.
const CHECK_PAUSE: Duration = Duration::from_millis(10);
/// Asked for to probe the circuit: no key's.
const NOBODY: RecordId = RecordId([0; 32]);

/// Two stores as one.
pub struct Fallback {
    both: Arc<Both>,
    _tasks: JoinSet<()>,
}

struct Both {
    first: Arc<Guarded>,
    second: Arc<Guarded>,
    /// Whether claims go to the second.
    away: AtomicBool,
    when: OnceLock<FallsBack>,
    /// Keys whose record was on the second when it was looked at last.
    placed: Recent,
    lists: Lists,
    /// Whether the second may hold records: zero where it does not, else how often that was found.
    holds: AtomicU64,
    granted: Mutex<VecDeque<(RecordId, ClaimId)>>,
    /// Granted since the first was lost.
    grants: AtomicUsize,
    duplicates: AtomicU64,
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fallback({:?}, {:?})", self.both.first, self.both.second)
    }
}

impl Fallback {
    /// `first`, and `second` for the time in which it does not answer. Nothing falls back before
    /// [`Store::fall_back`] says when.
    #[must_use]
    pub fn new(first: Arc<Guarded>, second: Arc<Guarded>) -> Self {
        let both = Arc::new(Both {
            first,
            second,
            away: AtomicBool::new(false),
            when: OnceLock::new(),
            placed: Recent::default(),
            lists: Lists::default(),
            // Others may have used it.
            holds: AtomicU64::new(1),
            granted: Mutex::default(),
            grants: AtomicUsize::new(0),
            duplicates: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(probe(Arc::clone(&both)));
        tasks.spawn(look(Arc::clone(&both)));
        tasks.spawn(check(Arc::clone(&both)));
        Self { both, _tasks: tasks }
    }

    /// The second store.
    #[must_use]
    pub fn second(&self) -> &Arc<Guarded> {
        &self.both.second
    }

    /// Keys that the second granted although the first had them, as far as they were found.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.both.duplicates.load(Ordering::Relaxed)
    }

    /// Whether claims go to the second.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.both.is_out() || self.both.away.load(Ordering::SeqCst)
    }

    /// Whether the second may hold records.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.both.may_hold()
    }
}

impl Both {
    fn may_hold(&self) -> bool {
        self.holds.load(Ordering::SeqCst) != 0
    }

    fn holds(&self) {
        self.holds.fetch_add(1, Ordering::SeqCst);
    }

    fn falls_back(&self, id: &RecordId, route: &str) -> bool {
        self.when.get().is_some_and(|when| when(id, route))
    }

    fn is_out(&self) -> bool {
        self.first.circuit() != Circuit::Closed
    }

    /// The record of `id` on the second, where that may hold it.
    async fn found(&self, id: RecordId) -> Result<Option<Read>, StoreError> {
        if !self.may_hold() && !self.placed.has(&id) {
            return Ok(None);
        }
        let read = self.second.get(id).await?;
        if read.record.is_some() {
            self.placed.note(id);
            return Ok(Some(read));
        }
        self.placed.forget(&id);
        Ok(None)
    }

    async fn insert(&self, id: RecordId, facts: &Facts, lease: Duration) -> Result<Insert, StoreError> {
        let falls_back = self.falls_back(&id, &facts.route);
        if falls_back && self.is_out() {
            return self.insert_second(id, facts, lease).await;
        }
        match self.found(id).await {
            Ok(Some(Read { record: Some(record), now })) => {
                if record.facts.claim_id == facts.claim_id {
                    self.granted(id, facts.claim_id);
                }
                return Ok(Insert::Existing { record: Box::new(record), now });
            }
            Ok(_) => {}
            // What ran there must not run again.
            Err(error) => return Err(StoreError::not_applied(Kind::Unavailable).because(error)),
        }
        if falls_back && self.away.load(Ordering::SeqCst) {
            return match self.first.get(id).await {
                Ok(Read { record: Some(record), now }) => Ok(Insert::Existing { record: Box::new(record), now }),
                _ => self.insert_second(id, facts, lease).await,
            };
        }
        match self.first.insert(id, facts, lease).await {
            Err(error) if falls_back && is_outage(&error.kind) => {
                let second = self.insert_second(id, facts, lease).await;
                second.map_err(|failed| match error.applied {
                    // A claim may stand there.
                    Applied::Unknown => StoreError::unknown(failed.kind),
                    Applied::No => failed,
                })
            }
            inserted => inserted,
        }
    }

    async fn insert_second(&self, id: RecordId, facts: &Facts, lease: Duration) -> Result<Insert, StoreError> {
        // Before it is there, so that nobody takes it for empty meanwhile.
        self.holds();
        let inserted = self.second.insert(id, facts, lease).await?;
        self.placed.note(id);
        let is_own = match &inserted {
            Insert::Inserted { .. } => true,
            Insert::Existing { record, .. } => record.facts.claim_id == facts.claim_id,
        };
        if is_own {
            self.granted(id, facts.claim_id);
        }
        Ok(inserted)
    }

    /// The second granted this: the first may have it too, of before or of a try that it took and did not answer.
    fn granted(&self, id: RecordId, claim_id: ClaimId) {
        self.grants.fetch_add(1, Ordering::Relaxed);
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.len() >= GRANTED_MAX {
            granted.pop_front();
        }
        granted.push_back((id, claim_id));
    }

    /// A write to whichever store has the record that it means.
    async fn write<'a>(
        &'a self,
        id: RecordId,
        write: impl Fn(&'a Guarded) -> Answer<'a, Write>,
    ) -> Result<Write, StoreError> {
        if self.placed.has(&id) {
            let written = write(&self.second).await?;
            if !matches!(written, Write::Lost { record: None, .. }) {
                return Ok(written);
            }
            self.placed.forget(&id);
        }
        let written = write(&self.first).await?;
        if matches!(written, Write::Lost { .. })
            && self.may_hold()
            && let applied @ Write::Applied { .. } = write(&self.second).await?
        {
            return Ok(applied);
        }
        Ok(written)
    }

    async fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Result<Page, StoreError> {
        let second = self.may_hold().then_some(&*self.second as &dyn Store);
        let (page, counts) = self.lists.page(&[second, Some(&*self.first)], after, limit, filter).await?;
        let of_second = counts.first().copied().unwrap_or_default();
        page.records.iter().take(of_second).for_each(|(id, _)| self.placed.note(*id));
        Ok(page)
    }
}

/// What says that a store cannot be reached.
fn is_outage(kind: &Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::NotPrimary)
}

/// Asks a circuit that is not closed whether it lets a call through, and says when it changes.
async fn probe(both: Arc<Both>) {
    let mut closed_since = None;
    loop {
        sleep(PROBE_EVERY).await;
        let was_away = both.away.load(Ordering::SeqCst);
        if both.is_out() {
            if !was_away {
                both.grants.store(0, Ordering::Relaxed);
                both.away.store(true, Ordering::SeqCst);
                tracing::error!(
                    "the first store does not answer: fresh keys of routes that fall back are claimed in the fallback"
                );
            }
            closed_since = None;
            // How it ends is the circuit's to note.
            let _probed = both.first.get(NOBODY).await;
        } else if was_away && closed_since.get_or_insert_with(Instant::now).elapsed() >= both.first.open_for() * 2 {
            both.away.store(false, Ordering::SeqCst);
            let granted = both.grants.load(Ordering::Relaxed);
            tracing::warn!(
                granted,
                "the first store answers again: fresh keys are claimed there, and what the fallback granted is looked for"
            );
        }
    }
}

/// Looks each second whether the second holds anything, and removes there what has ended.
async fn look(both: Arc<Both>) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let before = both.holds.load(Ordering::SeqCst);
        if before != 0
            && let Err(error) = both.second.sweep(SWEPT_MAX, Duration::ZERO).await
        {
            tracing::debug!(%error, "ended records of the fallback could not be swept");
        }
        let empty = match both.second.scan(None, 1, Filter::default()).await {
            Ok(page) => page.records.is_empty() && page.next.is_none(),
            // As it was.
            Err(_) => continue,
        };
        match (empty, before) {
            // Unless something was claimed meanwhile.
            (true, _) if !both.is_out() => {
                let _changed = both.holds.compare_exchange(before, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
            (false, 0) => both.holds(),
            _ => {}
        }
    }
}

/// Once the first is back: which keys that the second granted it has too. Claims of its own that it took before it was
/// given up are freed: nothing was sent under them.
async fn check(both: Arc<Both>) {
    loop {
        sleep(LOOK_EVERY).await;
        let mut duplicates = 0_u64;
        let mut looked = 0_u64;
        while !both.is_out() {
            let next = both.granted.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((id, claim_id)) = next else { break };
            match both.first.get(id).await {
                Ok(Read { record: Some(record), .. }) if record.facts.claim_id == claim_id => {
                    if record.facts.state == State::InFlight {
                        let freed = match transition::release(&record.facts, record.stored.fence) {
                            Transition::Remove(expect) => both.first.remove(id, expect).await,
                            Transition::Replace(write) => both.first.replace(id, &write).await,
                        };
                        if let Err(error) = freed {
                            tracing::warn!(record = %id.short(), %error, "a claim that was never used could not be freed");
                        }
                    }
                }
                Ok(Read { record, .. }) => duplicates += u64::from(record.is_some()),
                Err(_) => {
                    both.granted.lock().unwrap_or_else(PoisonError::into_inner).push_front((id, claim_id));
                    break;
                }
            }
            looked += 1;
            sleep(CHECK_PAUSE).await;
        }
        both.duplicates.fetch_add(duplicates, Ordering::Relaxed);
        if looked > 0 {
            tracing::warn!(
                looked,
                duplicates,
                "keys that the fallback granted were looked for in the first store: duplicates had been claimed there before"
            );
        }
    }
}

impl Store for Fallback {
    fn kind(&self) -> &'static str {
        self.both.first.kind()
    }

    fn insert<'a>(&'a self, id: RecordId, facts: &'a Facts, lease: Duration) -> Answer<'a, Insert> {
        Box::pin(self.both.insert(id, facts, lease))
    }

    fn replace<'a>(&'a self, id: RecordId, write: &'a Replacement) -> Answer<'a, Write> {
        Box::pin(self.both.write(id, move |store| store.replace(id, write)))
    }

    fn extend(&self, id: RecordId, holder: Fence, lease: Duration) -> Answer<'_, Write> {
        Box::pin(self.both.write(id, move |store| store.extend(id, holder, lease)))
    }

    fn remove(&self, id: RecordId, expect: Expect) -> Answer<'_, Write> {
        Box::pin(self.both.write(id, move |store| store.remove(id, expect)))
    }

    fn get(&self, id: RecordId) -> Answer<'_, Read> {
        Box::pin(async move {
            match self.both.found(id).await? {
                Some(read) => Ok(read),
                None => self.both.first.get(id).await,
            }
        })
    }

    fn scan(&self, after: Option<RecordId>, limit: usize, filter: Filter) -> Answer<'_, Page> {
        Box::pin(self.both.scan(after, limit, filter))
    }

    fn sweep(&self, limit: usize, waits: Duration) -> Answer<'_, Swept> {
        // The second is swept beside.
        self.both.first.sweep(limit, waits)
    }

    fn watch(&self, id: RecordId) -> Watch {
        if self.both.placed.has(&id) { self.both.second.watch(id) } else { self.both.first.watch(id) }
    }

    fn tell_forgotten(&self, hears: HearsForgotten) {
        self.both.first.tell_forgotten(Arc::clone(&hears));
        self.both.second.tell_forgotten(hears);
    }

    fn fall_back(&self, when: FallsBack) {
        let _taken = self.both.when.set(when);
    }

    fn is_in_fallback(&self, id: &RecordId) -> bool {
        self.both.placed.has(id)
    }

    fn keep_rules<'a>(&'a self, policy: u32, rules: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.both.second.keep_rules(policy, rules).await {
                tracing::debug!(%error, "the fingerprint rules could not be kept in the fallback");
            }
            self.both.first.keep_rules(policy, rules).await
        })
    }

    fn rules(&self, policy: u32) -> Answer<'_, Option<String>> {
        Box::pin(async move {
            match self.both.first.rules(policy).await {
                Ok(Some(rules)) => Ok(Some(rules)),
                otherwise => self.both.second.rules(policy).await.or(otherwise),
            }
        })
    }

    fn usage(&self, tenant: &str) -> Usage {
        let (first, second) = (self.both.first.usage(tenant), self.both.second.usage(tenant));
        Usage { records: first.records + second.records, bytes: first.bytes + second.bytes }
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.both.first.lost_ago()
    }

    fn stats(&self) -> Stats {
        let (mut stats, second) = (self.both.first.stats(), self.both.second.stats());
        if self.both.is_out() {
            stats.concerns.push("the store does not answer: routes that fall back use the fallback".to_owned());
        } else if self.both.may_hold() {
            stats.concerns.push("the fallback holds records: keys are looked for there too".to_owned());
        }
        stats.concerns.extend(second.concerns.into_iter().map(|concern| format!("the fallback: {concern}")));
        stats.open += second.open;
        stats.records += second.records;
        stats
    }
}
