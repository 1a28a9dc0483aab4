//! What goes on beside the calls: markers made and kept, the servers watched, and what is not well.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use onceward_core::record::Micros;
use redis::{
    Value,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo},
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Evictions, Shared,
    error::is_forbidden,
    incarnation::{Found, Lost, Mark, Marked, Tag, new_epoch, tag_of},
    info::Info,
    key,
    link::{CallError, Link},
};
use crate::{Kind, StoreError};

/// How often the servers are looked at, and times are written down.
const TICK: Duration = Duration::from_secs(1);
/// What may have been answered after the time that was written down last.
const UNWRITTEN: Duration = Duration::from_millis(1_500);
/// How many markers are on their way at a time.
const MARKS_AT_ONCE: usize = 64;
/// How often records in flight are counted, in ticks.
const COUNT_OPEN: u32 = 5;
/// Of how many partitions it is asked at a time whether any has records in flight.
const EXIST_AT_ONCE: usize = 16;
/// From this share of the server's memory on it is told.
const MEMORY_SHORT: f64 = 0.8;

/// How Redis is, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) hears: AtomicBool,
    /// Partitions that were written to since times were last written down, one bit each.
    touched: [AtomicU64; 4],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    concerns: Vec<String>,
    figures: Figures,
}

/// What the servers say, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// Keys of everybody.
    pub(super) keys: u64,
    /// In flight or unknown.
    pub(super) open: u64,
    /// Bytes of memory in use, and the limit; 0 where there is none.
    pub(super) memory: u64,
    pub(super) memory_max: u64,
    /// Keys that were evicted since the start of the servers.
    pub(super) evicted: u64,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shown(&self) -> (Figures, Vec<String>) {
        let state = self.lock();
        let mut concerns = state.concerns.clone();
        if !self.hears.load(Ordering::Relaxed) {
            concerns.push("what is published does not come: waiters look again each second".to_owned());
        }
        (state.figures, concerns)
    }

    /// A partition is written to.
    pub(super) fn touch(&self, partition: u16) {
        if let Some(word) = self.touched.get(usize::from(partition) / 64) {
            let bit = 1 << (partition % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Those that were, once.
    fn take_touched(&self) -> Vec<u16> {
        let words: Vec<u64> = self.touched.iter().map(|word| word.swap(0, Ordering::Relaxed)).collect();
        let is_in = |partition: &u16| {
            words.get(usize::from(*partition) / 64).is_some_and(|word| word >> (partition % 64) & 1 == 1)
        };
        key::partitions().filter(is_in).collect()
    }
}

/// The first look: every partition gets its marker, and time goes on from the latest that is written down.
pub(super) async fn start(shared: &Shared) -> Result<(), StoreError> {
    let servers = ask(shared).await?;
    shared.incarnations.see(servers.tags());
    look(shared, &servers.infos);
    let marked = mark(shared, &servers, &key::partitions().collect::<Vec<_>>()).await?;
    let written = marked.iter().map(|(_, marked)| marked.written).max().unwrap_or_default();
    let wall = marked.iter().map(|(_, marked)| marked.wall).max().unwrap_or_default();
    // A clock that is not behind goes on; one that is may have been set back from what was not written down yet.
    shared.time(if wall < written { written.plus(UNWRITTEN) } else { wall });
    tell(shared, &servers, &marked, true);
    are_well(shared).await;
    learn_evicted(shared, &servers);
    super::shared::say_again(shared).await?;
    if let Some(at) = super::shared::last_loss(shared).await? {
        shared.incarnations.knows_of(at, shared.floor());
    }
    Ok(())
}

/// Looks at the servers each second.
pub(super) async fn tick(shared: Arc<Shared>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once, and was at the start.
    ticks.tick().await;
    let (mut uncounted, mut was_well) = (COUNT_OPEN, true);
    loop {
        ticks.tick().await;
        // Not in the first round after one that failed: then the servers have enough to do.
        let counts = was_well && uncounted >= COUNT_OPEN;
        let done = once(&shared, counts).await;
        was_well = done.is_ok();
        uncounted = if counts && was_well { 1 } else { uncounted.saturating_add(1) };
        if let Err(error) = done {
            let source = error.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
            shared.health.lock().concerns = vec![format!("Redis does not answer: {error}{source}")];
        }
    }
}

async fn once(shared: &Shared, counts: bool) -> Result<(), StoreError> {
    // What somebody else has learned meanwhile is not taken back.
    let looking = shared.incarnations.looking.lock().await;
    let servers = ask(shared).await?;
    let is_new = shared.incarnations.see(servers.tags());
    look(shared, &servers.infos);
    let mut partitions = shared.health.take_touched();
    if is_new {
        partitions = key::partitions().collect();
    } else {
        partitions.extend(shared.incarnations.moved(|partition| servers.tag(partition)));
        partitions.sort_unstable();
        partitions.dedup();
        if partitions.is_empty() {
            // One shows whether there was a flush while nobody wrote.
            partitions.push(0);
        }
    }
    let marked = mark(shared, &servers, &partitions).await;
    if marked.is_err() {
        partitions.iter().for_each(|partition| shared.health.touch(*partition));
    }
    let mut marked = marked?;
    // What one marker shows happened to others, too: it is told as one loss.
    if marked.iter().any(|(partition, marked)| is_loss(shared, *partition, marked)) {
        let rest: Vec<u16> = key::partitions().filter(|partition| !partitions.contains(partition)).collect();
        match mark(shared, &servers, &rest).await {
            Ok(more) => marked.extend(more),
            Err(_) => rest.iter().for_each(|partition| shared.health.touch(*partition)),
        }
        marked.sort_unstable_by_key(|(partition, _)| *partition);
    }
    tell(shared, &servers, &marked, false);
    tell_evicted(shared, &servers);
    are_well(shared).await;
    drop(looking);
    super::shared::say_again(shared).await?;
    if counts {
        let open = count_open(shared, 0).await?.into_iter().map(|(_, count)| count).sum();
        shared.health.lock().figures.open = open;
        super::foreign::look(shared).await?;
    }
    Ok(())
}

/// Whether a marker shows that something was lost.
fn is_loss(shared: &Shared, partition: u16, marked: &Marked) -> bool {
    marked.found != Found::Known || shared.incarnations.is_other(partition, marked.epoch)
}

/// Asks once more, after markers were raised: where the servers are the same still, these tell up to when all is there.
async fn are_well(shared: &Shared) {
    if let Ok(servers) = ask(shared).await
        && shared.incarnations.knows(&servers.tags())
    {
        shared.incarnations.is_well(servers.asked_at);
    }
}

/// A step met a marker that is gone or another's: all are looked at, once for all who met it.
pub(super) async fn unmarked(shared: &Shared, partition: u16, met: super::step::Epoch) -> Result<(), StoreError> {
    let _looking = shared.incarnations.looking.lock().await;
    if shared.incarnations.epoch(partition) != met {
        return Ok(());
    }
    look_at_all(shared).await
}

/// A grant met evictions: they are looked at, once for all who met them, and told.
pub(super) async fn evicted(shared: &Shared, partition: u16, met: u64) -> Result<(), StoreError> {
    let _looking = shared.incarnations.looking.lock().await;
    if shared.incarnations.evicted(partition) != met {
        return Ok(());
    }
    look_at_all(shared).await
}

/// Marks every partition and tells what that shows, with `looking` held; what could not be marked is at the next look.
async fn look_at_all(shared: &Shared) -> Result<(), StoreError> {
    let servers = ask(shared).await?;
    shared.incarnations.see(servers.tags());
    let marked = mark(shared, &servers, &key::partitions().collect::<Vec<_>>()).await;
    if marked.is_err() {
        key::partitions().for_each(|partition| shared.health.touch(partition));
    }
    tell(shared, &servers, &marked?, false);
    tell_evicted(shared, &servers);
    super::shared::say_again(shared).await
}

/// Notes evictions as losses, where they are taken for such.
fn tell_evicted(shared: &Shared, servers: &Servers) {
    if shared.options.evictions == Evictions::Inline {
        let is_more = |partition: &u16| {
            let said = servers.tag(*partition).zip(servers.evicted(*partition));
            said.is_some_and(|(tag, count)| shared.incarnations.has_evicted_more(tag, count))
        };
        let more: Vec<u16> = key::partitions().filter(is_more).collect();
        if !more.is_empty() {
            shared.incarnations.lost(&more, Micros::ZERO, shared.floor(), Lost::Evicted);
            shared.watchers.wake_all();
        }
        // Only now, as in `tell`.
        learn_evicted(shared, servers);
    }
}

fn learn_evicted(shared: &Shared, servers: &Servers) {
    let said = |info: &Info| Some((tag_of(info.history()?)?, info.number("evicted_keys")));
    shared.incarnations.learn_evicted_by(servers.infos.iter().filter_map(said));
    for partition in key::partitions() {
        shared.incarnations.learn_evicted(partition, servers.evicted(partition));
    }
}

/// Notes what markers say of losses.
fn tell(shared: &Shared, servers: &Servers, marked: &[(u16, Marked)], is_start: bool) {
    let mut lost: BTreeMap<Lost, Vec<u16>> = BTreeMap::new();
    let all_missing = marked.iter().all(|(_, marked)| marked.found == Found::Missing);
    for (partition, marked) in marked {
        let is_other = shared.incarnations.is_other(*partition, marked.epoch);
        let what = match marked.found {
            // A store that is made.
            Found::Missing if is_start && all_missing => continue,
            Found::Missing => Lost::Everything,
            Found::OfAnother => Lost::MayBeBehind,
            Found::Known if is_other => Lost::NoticedElsewhere,
            Found::Known => continue,
        };
        lost.entry(what).or_default().push(*partition);
    }
    // What another process was quicker to notice is the same loss.
    if let Some(mut quicker) = lost.remove(&Lost::NoticedElsewhere) {
        let partitions = match lost.first_entry() {
            Some(first) => first.into_mut(),
            None => lost.entry(Lost::NoticedElsewhere).or_default(),
        };
        partitions.append(&mut quicker);
        partitions.sort_unstable();
    }
    let now = marked.iter().map(|(_, marked)| marked.wall).max().unwrap_or_default();
    let is_lost = |(partition, marked): &&(u16, Marked)| {
        marked.found == Found::OfAnother || shared.incarnations.is_other(*partition, marked.epoch)
    };
    let kept_until = shared.incarnations.kept_until(marked.iter().filter(is_lost).map(|(_, marked)| marked));
    for (what, partitions) in &lost {
        let from = if *what == Lost::MayBeBehind { kept_until } else { Micros::ZERO };
        shared.incarnations.lost(partitions, from, now, *what);
    }
    // Only now: whoever steps under a new epoch finds the loss told.
    for (partition, marked) in marked {
        shared.incarnations.learn(*partition, marked.epoch);
        shared.incarnations.is_served(*partition, servers.tag(*partition));
    }
    if !lost.is_empty() {
        shared.watchers.wake_all();
    }
    shared.incarnations.is_well(servers.asked_at);
}

async fn mark(shared: &Shared, servers: &Servers, partitions: &[u16]) -> Result<Vec<(u16, Marked)>, StoreError> {
    let tags = shared.incarnations.tags();
    let successors = shared.incarnations.successors(|partition| servers.tag(partition));
    let floor = shared.floor();
    let marks = partitions.iter().copied().map(|partition| {
        let tag = servers.tag(partition);
        let tags = match tag {
            // In the middle of a failover nobody says whose it is: that is judged once somebody does.
            None => Vec::new(),
            Some(tag) if successors.contains(&tag) => tag.to_vec(),
            Some(_) => tags.clone(),
        };
        let epoch = new_epoch(tag);
        async move {
            let mark = Mark { epoch, tags: &tags, floor };
            shared.mark(partition, &mark).await.map(|marked| (partition, marked))
        }
    });
    let marked: Vec<_> = stream::iter(marks).buffered(MARKS_AT_ONCE).collect().await;
    marked.into_iter().collect()
}

/// The primaries, as they are now.
#[derive(Debug, Default)]
struct Servers {
    /// What each says of itself; empty where it may not be asked.
    infos: Vec<Info>,
    /// Of a Cluster, which slots are whose: first, last, and where in `infos`.
    slots: Vec<(u16, u16, usize)>,
    /// A time of the store, no later than when they said so.
    asked_at: Micros,
}

impl Servers {
    fn tags(&self) -> BTreeSet<Tag> {
        self.infos.iter().filter_map(|info| tag_of(info.history()?)).collect()
    }

    /// Of the server that has this partition.
    fn of(&self, partition: u16) -> Option<&Info> {
        if let [info] = &*self.infos {
            return Some(info);
        }
        let slot = key::slot(partition);
        let (_, _, at) = self.slots.iter().find(|(first, last, _)| (*first..=*last).contains(&slot))?;
        self.infos.get(*at)
    }

    /// How many keys it has evicted.
    fn evicted(&self, partition: u16) -> Option<u64> {
        self.of(partition).map(|info| info.number("evicted_keys"))
    }

    fn tag(&self, partition: u16) -> Option<Tag> {
        tag_of(self.of(partition)?.history()?)
    }
}

/// What every primary says of itself; nothing where the user may not ask.
pub(super) async fn every_info(link: &Link) -> Result<Vec<Info>, StoreError> {
    asked(link).await.map(|servers| servers.infos)
}

async fn ask(shared: &Shared) -> Result<Servers, StoreError> {
    let said = shared.floor();
    let servers = asked(&shared.side).await?;
    // Of several the least; an old server does not say what its clock is.
    let clocks = servers.infos.iter().map(|info| Micros(info.number("server_time_usec"))).min();
    Ok(Servers { asked_at: clocks.filter(|clock| *clock > Micros::ZERO).unwrap_or(said), ..servers })
}

async fn asked(link: &Link) -> Result<Servers, StoreError> {
    let command = redis::cmd("INFO");
    if !link.address().is_cluster() {
        return match link.call(&command).await.map_err(CallError::read) {
            Ok(info) => Ok(Servers { infos: vec![Info::of(info)], ..Servers::default() }),
            Err(error) if is_forbidden(&error) => Ok(Servers::default()),
            Err(error) => Err(error),
        };
    }
    let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
    let infos = match link.route(&command, all).await.map_err(CallError::read) {
        Ok(Some(Value::Map(nodes))) => nodes.into_iter().map(|(at, info)| (text(&at), Info::of(info))).collect(),
        Ok(_) => BTreeMap::new(),
        Err(error) if is_forbidden(&error) => return Ok(Servers::default()),
        Err(error) => return Err(error),
    };
    let slots = slots(link).await?.into_iter().filter_map(|slots| {
        let at = format!("{}:{}", slots.host, slots.port);
        Some((slots.first, slots.last, infos.keys().position(|known| *known == at)?))
    });
    let slots = slots.collect();
    Ok(Servers { infos: infos.into_values().collect(), slots, asked_at: Micros::ZERO })
}

/// A range of a Cluster's slots, and its primary.
pub(super) struct Slots {
    first: u16,
    last: u16,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Slots {
    /// How many.
    pub(super) fn count(&self) -> u16 {
        self.last.saturating_add(1).saturating_sub(self.first)
    }
}

/// Which slots of a Cluster are whose.
pub(super) async fn slots(link: &Link) -> Result<Vec<Slots>, StoreError> {
    let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
    let command = redis::cmd("CLUSTER").arg("SLOTS").take();
    let answer = link.route(&command, any).await.map_err(CallError::read)?;
    Ok(slots_of(&answer.unwrap_or_default()))
}

fn slots_of(answer: &Value) -> Vec<Slots> {
    let Value::Array(ranges) = answer else { return Vec::new() };
    let read = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &**parts else { return None };
        let [host, Value::Int(port), ..] = &**primary else { return None };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        Some(Slots { first, last, host: text(host), port: u16::try_from(*port).ok()? })
    };
    ranges.iter().filter_map(read).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    }
}

/// What they say that is not well.
fn look(shared: &Shared, infos: &[Info]) {
    let mut concerns = Vec::new();
    let mut figures = Figures::default();
    if infos.is_empty() {
        let said = "the user may not ask INFO: restarts, failovers and evictions go unnoticed; allow +info";
        concerns.push(said.to_owned());
    }
    for info in infos {
        figures.keys += info.keys(shared.side.address().database());
        figures.memory += info.number("used_memory");
        figures.memory_max += info.number("maxmemory");
        figures.evicted += info.number("evicted_keys");
        let policy = info.field("maxmemory_policy");
        if !policy.is_empty() && policy != "noeviction" && info.number("maxmemory") > 0 {
            concerns.push(format!(
                "its maxmemory-policy is {policy}: completed records are evicted before their retention is over, and \
                 such keys run again; set noeviction"
            ));
        }
        let (used, max) = (info.number("used_memory"), info.number("maxmemory"));
        #[expect(clippy::cast_precision_loss, reason = "a share of memory")]
        if max > 0 && used as f64 > max as f64 * MEMORY_SHORT {
            concerns
                .push(format!("{used} of its {max} bytes of memory are used: raise maxmemory, or shorten retention"));
        }
        if info.field("role") == "slave" {
            concerns.push("it is a replica: point the store at the primary, or at its Sentinels".to_owned());
        }
    }
    let mut state = shared.health.lock();
    if state.figures.evicted < figures.evicted && state.figures != Figures::default() {
        let count = figures.evicted - state.figures.evicted;
        tracing::error!(count, "Redis evicted keys: records that were among them run again");
    }
    if figures.evicted > 0 {
        concerns.push(format!("it has evicted {} keys since its start", figures.evicted));
    }
    concerns.dedup();
    figures.open = state.figures.open;
    state.concerns = concerns;
    state.figures = figures;
}

/// How many are in flight or unknown, by partition, from one on, of those that have any. Mostly few have: first it is asked
/// of some together whether there are such, but for a Cluster, where each partition has a slot of its own.
pub(super) async fn count_open(shared: &Shared, from: u16) -> Result<Vec<(u16, u64)>, StoreError> {
    let mut some: Vec<u16> = key::partitions().filter(|partition| *partition >= from).collect();
    if !shared.side.address().is_cluster() {
        let groups: Vec<Vec<u16>> = some.chunks(EXIST_AT_ONCE).map(<[u16]>::to_vec).collect();
        let exist = numbers(shared, "EXISTS", groups.clone()).await?;
        some = groups.into_iter().zip(exist).filter(|(_, count)| *count > 0).flat_map(|(group, _)| group).collect();
    }
    let counts = numbers(shared, "SCARD", some.iter().map(|partition| vec![*partition]).collect()).await?;
    Ok(some.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect())
}

/// What a command says of the open sets of each group of partitions.
async fn numbers(shared: &Shared, name: &str, groups: Vec<Vec<u16>>) -> Result<Vec<u64>, StoreError> {
    let answers = groups.into_iter().map(|group| async move {
        let command = redis::cmd(name).arg(group.into_iter().map(key::open).collect::<Vec<_>>()).take();
        match shared.side.call(&command).await.map_err(CallError::read)? {
            Value::Int(count) => Ok(u64::try_from(count).unwrap_or_default()),
            _ => Err(StoreError::not_applied(Kind::Unavailable)),
        }
    });
    let answers: Vec<Result<u64, StoreError>> = stream::iter(answers).buffered(MARKS_AT_ONCE).collect().await;
    answers.into_iter().collect()
}

/// Counts what tenants take up, where that is asked for.
pub(super) async fn count(shared: Arc<Shared>) {
    shared.figures.keep_counted(shared.options.usage, None, || super::scan::usage(&shared)).await;
}
