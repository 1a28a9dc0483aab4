//! Whether Redis is fit to keep records, looked at from outside: what `onceward doctor` tells.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::{PushInfo, PushKind, Value};
use tokio::{sync::Notify, time::timeout};

use super::{
    Strategy,
    address::Address,
    info::Info,
    key,
    link::{CallError, Link},
    upkeep::{Slots, every_info, slots},
    value,
};
use crate::{
    StoreError,
    doctor::{Finding, Findings, Grade},
};

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long what is published is waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// How far the server's clock and this machine's may be apart before it is told.
const CLOCKS_APART: Duration = Duration::from_secs(2);
/// How many keys are looked at.
const KEYS_LOOKED_AT: usize = 1_000;
/// How many records among them are measured.
const RECORDS_LOOKED_AT: usize = 100;
/// What a completed record with an answer of 300 bytes of JSON takes where none is there to be measured, by the bench.
const RECORD: Taken = Taken { bytes: 800, body: 300 };
/// What `retention_body` is reckoned with.
const BODY_KEPT: Duration = Duration::from_secs(3600);

/// What a completed record takes on average.
#[derive(Clone, Copy)]
struct Taken {
    bytes: u64,
    /// Of them, what goes with the answer's body.
    body: u64,
}

/// What the servers have, and so what becomes of it where they lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keeps {
    /// The only copy of records.
    Records,
    /// Claims that a journal has too.
    Claims,
    /// Hints of what a database has.
    Hints,
}

/// Looks at the servers; `retention` is the longest that is configured, for the memory that records will take. Writes
/// nothing.
pub async fn examine(address: &Address, strategy: Strategy, retention: Duration, keeps: Keeps) -> Vec<Finding> {
    let mut findings = Findings::default();
    let link = Link::new(address, DEADLINE, None);
    let infos = match every_info(&link).await {
        Ok(infos) => infos,
        Err(error) => {
            findings.tell("connection", Grade::Bad, in_words(&error));
            return findings.0;
        }
    };
    findings.tell("connection", Grade::Well, format!("{address} answers"));
    if infos.is_empty() {
        let said = "cannot tell versions, roles, memory and persistence, and neither can a gateway: allow +info";
        findings.tell("info", Grade::Doubtful, said);
    }
    if address.is_cluster() {
        served(&link, &mut findings).await;
    }
    for info in &infos {
        server(info, keeps, &mut findings);
    }
    steps(&link, strategy, &mut findings).await;
    clock(&link, &mut findings).await;
    published(address, &link, &mut findings).await;
    let taken = keys(&link, &mut findings).await;
    budget(taken, retention, &infos, &mut findings);
    findings.0
}

/// What is kept under `name` for every process of the store, if anything; `None` where that cannot be told.
pub async fn remembered(address: &Address, name: &str) -> Option<Option<String>> {
    let kept = Link::new(address, DEADLINE, None).call(redis::cmd("HGET").arg(key::META).arg(name)).await;
    match kept {
        Ok(Value::BulkString(kept)) => Some(Some(String::from_utf8_lossy(&kept).into_owned())),
        Ok(_) => Some(None),
        Err(_) => None,
    }
}

fn in_words(error: &StoreError) -> String {
    match &error.source {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// Whether each slot of a Cluster is some primary's.
async fn served(link: &Link, findings: &mut Findings) {
    let slots = slots(link).await.unwrap_or_default();
    let primaries: BTreeSet<(&str, u16)> = slots.iter().map(|slots| (&*slots.host, slots.port)).collect();
    let served: u16 = slots.iter().map(Slots::count).sum();
    let all = format!("all are served, by {} primaries", primaries.len());
    let missing = key::SLOTS.saturating_sub(served);
    let some = format!(
        "{missing} are nobody's: keys that lie there are refused; see CLUSTER SLOTS and give them to a primary"
    );
    findings.either("slots", missing == 0, all, Grade::Bad, &some);
}

fn server(info: &Info, keeps: Keeps, findings: &mut Findings) {
    const TRIED: (u32, u32) = (7, 0);
    let (major, minor) = info.version();
    let version = match info.field("valkey_version") {
        "" => format!("Redis {}", info.field("redis_version")),
        valkey => format!("Valkey {valkey}"),
    };
    let old = format!("{version} is older than 7.0, which nothing is tried on");
    findings.either("version", (major, minor) >= TRIED, version, Grade::Doubtful, &old);
    let replica = "it is a replica: point the store at the primary, or at its Sentinels";
    findings.either("role", info.is_primary(), "a primary", Grade::Bad, replica);
    let policy = info.field("maxmemory_policy");
    let evicted = match keeps {
        Keeps::Records => "completed records are evicted before their retention is over, and such keys run again",
        Keeps::Claims => "what says that a key is taken is evicted, and no gateway starts",
        Keeps::Hints => "what says that an answer was erased is evicted too, and a gateway may show it once more",
    };
    let evicts = format!("maxmemory-policy is {policy}: {evicted}; set noeviction");
    findings.either("eviction", policy == "noeviction", policy, Grade::Bad, &evicts);
    let (used, most) = (info.number("used_memory"), info.number("maxmemory"));
    let unbounded = "maxmemory is 0: what ends the memory is the machine's, which kills the server; set it";
    let share = format!("{} of {} are used", size(used), size(most));
    match most {
        0 => findings.tell("memory", Grade::Doubtful, unbounded),
        most => findings.either(
            "memory",
            used < most - most / 5,
            &*share,
            Grade::Doubtful,
            &format!("{share}: raise maxmemory, or shorten retention"),
        ),
    }
    let (grade, gone) = match keeps {
        Keeps::Records => (
            Grade::Doubtful,
            "appendonly is off: a restart loses every record that no snapshot has, and such keys run again; set \
             appendonly yes, and appendfsync everysec or always",
        ),
        Keeps::Claims => (
            Grade::Well,
            "appendonly is off, and no key runs again for that: PostgreSQL and the gateways' spools have what a restart \
             loses, and each new key asks PostgreSQL until Redis has it again",
        ),
        Keeps::Hints => (Grade::Well, "appendonly is off, and nothing but speed is lost: PostgreSQL has every record"),
    };
    findings.either("persistence", info.number("aof_enabled") == 1, "appendonly", grade, gone);
    let replicas = info.number("connected_slaves");
    let (grade, alone) = match keeps {
        Keeps::Records => {
            (Grade::Doubtful, "there is no replica: where the server's machine is lost, so is every record")
        }
        Keeps::Claims => (Grade::Doubtful, "there is no replica: while the server is away every new key is refused"),
        Keeps::Hints => (Grade::Well, "there is none: while the server is away every repetition asks PostgreSQL"),
    };
    findings.either("replicas", replicas > 0, format!("{replicas}"), grade, alone);
    let evicted = info.number("evicted_keys");
    let lost = format!("{evicted} keys were evicted since the start");
    findings.either("evicted", evicted == 0, "nothing", Grade::Doubtful, &lost);
}

/// Whether the user may do what steps are made of.
async fn steps(link: &Link, strategy: Strategy, findings: &mut Findings) {
    let marker = key::marker(0);
    match strategy {
        Strategy::Script => {
            let script = redis::cmd("EVAL").arg("return redis.call('TIME')").arg(1).arg(&marker).take();
            match link.call(&script).await.map_err(CallError::read) {
                Ok(_) => findings.tell("scripts", Grade::Well, "they run"),
                Err(error) => {
                    let said = format!("{}; or write strategy = \"watch\"", in_words(&error));
                    findings.tell("scripts", Grade::Bad, said);
                }
            }
        }
        Strategy::Watch => {
            let mut commands = redis::pipe();
            commands.atomic().cmd("GET").arg(&marker).cmd("TIME");
            match link.pipeline(&commands).await.map_err(CallError::read) {
                Ok(_) => findings.tell("transactions", Grade::Well, "they run"),
                Err(error) => findings.tell("transactions", Grade::Bad, in_words(&error)),
            }
        }
    }
}

async fn clock(link: &Link, findings: &mut Findings) {
    let time = link.call(&redis::cmd("TIME")).await.map_err(CallError::read);
    let there = match time {
        Ok(time) => redis::from_redis_value::<(u64, u32)>(time).ok(),
        Err(_) => None,
    };
    let Some((seconds, micros)) = there else {
        return findings.tell("clock", Grade::Doubtful, "cannot tell: allow +time");
    };
    #[expect(clippy::disallowed_methods, reason = "the two clocks are compared, and nothing is decided by it")]
    let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let apart = here.abs_diff(Duration::new(seconds, micros.saturating_mul(1_000).min(999_999_999)));
    let far = format!("the server's clock and this machine's are {apart:?} apart: look at how they are set");
    findings.either("clock", apart <= CLOCKS_APART, "as this machine's", Grade::Doubtful, &far);
}

/// Publishes through the store's own way, and waits for it where it is listened for.
async fn published(address: &Address, link: &Link, findings: &mut Findings) {
    const WHAT: &str = "notifications";
    let heard = Arc::new(Notify::new());
    let by = Arc::clone(&heard);
    let told = move |push: PushInfo| {
        if matches!(push.kind, PushKind::Message | PushKind::SMessage) {
            by.notify_one();
        }
    };
    let listening = Link::new(address, DEADLINE, Some(Arc::new(told)));
    // A channel that no record has: all bits are one.
    let id = onceward_core::key::RecordId([0xff; 32]);
    let subscribed = !listening.subscribe(&[id]).await.is_empty();
    let command = if address.is_cluster() { "SPUBLISH" } else { "PUBLISH" };
    let publish = redis::cmd(command).arg(key::Keys::of(&id).channel()).arg("").take();
    let sent = link.call(&publish).await.is_ok();
    let came = subscribed && sent && timeout(TOLD_WITHIN, heard.notified()).await.is_ok();
    let lost = "they do not come: waiters look again each second; allow the channels idemp:v1:* and their commands";
    findings.either(WHAT, came, "they come", Grade::Doubtful, lost);
}

/// Looks at some keys, whose they are; what one of our records takes, where there are any.
async fn keys(link: &Link, findings: &mut Findings) -> Option<Taken> {
    let mut scan = redis::cmd("SCAN");
    scan.arg(0).arg("COUNT").arg(KEYS_LOOKED_AT);
    let found = match link.call(&scan).await.map_err(CallError::read) {
        Ok(Value::Array(parts)) => parts.into_iter().next_back(),
        _ => None,
    };
    let Some(Value::Array(found)) = found else {
        findings.tell("foreign keys", Grade::Doubtful, "cannot tell: allow +scan");
        return None;
    };
    let names: Vec<Vec<u8>> = found
        .into_iter()
        .filter_map(|name| match name {
            Value::BulkString(name) => Some(name),
            _ => None,
        })
        .collect();
    let foreign = names.iter().filter(|name| !name.starts_with(key::OURS)).count();
    let shared = format!(
        "{foreign} of {} keys are somebody else's: their memory and their FLUSHALL are this store's; give it a server of \
         its own",
        names.len()
    );
    findings.either("foreign keys", foreign == 0, "none", Grade::Doubtful, &shared);
    let mut sum = Taken { bytes: 0, body: 0 };
    let mut count = 0;
    for name in names.iter().filter(|name| key::id_of(name).is_some()).take(RECORDS_LOOKED_AT) {
        if let Some(Taken { bytes, body }) = taken(link, name).await {
            sum = Taken { bytes: sum.bytes + bytes, body: sum.body + body };
            count += 1;
        }
    }
    (count > 0).then(|| Taken { bytes: sum.bytes / count, body: sum.body / count })
}

/// What a completed record takes; `None` where it is none.
async fn taken(link: &Link, name: &[u8]) -> Option<Taken> {
    let memory = async |name: &[u8]| {
        let usage = redis::cmd("MEMORY").arg("USAGE").arg(name).take();
        match link.call(&usage).await {
            Ok(Value::Int(bytes)) => u64::try_from(bytes).unwrap_or_default(),
            _ => 0,
        }
    };
    let Ok(Value::BulkString(value)) = link.call(&redis::cmd("GET").arg(name).take()).await else { return None };
    let apart = if value::is_apart(&value) { memory(&[name, b":b"].concat()).await } else { 0 };
    let within = value::body_bytes(value)?;
    let bytes = memory(name).await;
    (bytes > 0).then(|| Taken { bytes: bytes + apart, body: apart + u64::try_from(within).unwrap_or_default() })
}

/// How much memory completed records will take, for some rates and windows, and what it is with `retention_body`.
fn budget(measured: Option<Taken>, retention: Duration, infos: &[Info], findings: &mut Findings) {
    let each = measured.unwrap_or(RECORD);
    let from = if measured.is_some() { "measured here" } else { "a 300 byte answer, since there is none here" };
    let most: u64 = infos.iter().map(|info| info.number("maxmemory")).sum();
    let hour = Duration::from_secs(3600);
    let mut windows = vec![(format!("{} h", retention.as_secs().div_ceil(3600)), retention)];
    windows.extend([("1 h".to_owned(), hour), ("24 h".to_owned(), hour * 24), ("7 d".to_owned(), hour * 24 * 7)]);
    let need = |rate: u64, window: Duration| each.bytes.saturating_mul(rate).saturating_mul(window.as_secs());
    let row = |(name, window): &(String, Duration)| {
        format!("{name}: {} at 10 keys a second, {} at 100", size(need(10, *window)), size(need(100, *window)))
    };
    let table: Vec<String> = windows.iter().map(row).collect();
    // What is left of it stays for the whole window.
    let less = each.body.saturating_mul(retention.saturating_sub(BODY_KEPT).as_secs());
    let with = |rate: u64| size(need(rate, retention).saturating_sub(less.saturating_mul(rate)));
    let said = format!(
        "a completed record takes {} bytes ({from}), {} of them its answer's body; kept for {}. With retention_body = \"1h\" \
         it is for {} h: {} at 10 keys a second, {} at 100",
        each.bytes,
        each.body,
        table.join("; "),
        retention.as_secs().div_ceil(3600),
        with(10),
        with(100)
    );
    let short = most > 0 && need(10, retention) > most;
    let warned = format!("{said}. The server has {}: less than ten keys a second need", size(most));
    findings.either("budget", !short, said, Grade::Doubtful, &warned);
}

fn size(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes {
        bytes if bytes >= 10 * 1024 * MIB => format!("{} GiB", bytes / 1024 / MIB),
        bytes => format!("{} MiB", bytes.div_ceil(MIB)),
    }
}
