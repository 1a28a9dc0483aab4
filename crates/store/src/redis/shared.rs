//! What processes of one store remember together: the secret's hash, fingerprint rules, whose turn it is.
//!
//! It goes with a flush, as records do. What this process knows of it, it writes again when it notices.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use onceward_core::record::Micros;
use redis::{Cmd, Value};

use super::{Shared, key, link::CallError};
use crate::{Kind, RULES_MAX, StoreError};

/// Under which name it is remembered when records were last lost.
const LOST: &str = "lost";

/// What this process has remembered or kept.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<Known>);

#[derive(Clone, Debug, Default)]
struct Known {
    words: BTreeMap<String, String>,
    rules: BTreeMap<u32, String>,
}

impl Remembered {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn call(shared: &Shared, command: &Cmd) -> Result<Value, StoreError> {
    shared.side.call(command).await.map_err(CallError::step)
}

fn command(name: &str, arguments: &[&str]) -> Cmd {
    let mut command = redis::cmd(name);
    for argument in arguments {
        command.arg(*argument);
    }
    command
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}

pub(super) async fn remember(shared: &Shared, name: &str, value: &str) -> Result<String, StoreError> {
    call(shared, &command("HSETNX", &[key::META, name, value])).await?;
    let kept = text(call(shared, &command("HGET", &[key::META, name])).await?);
    let kept = kept.ok_or_else(|| StoreError::unknown(Kind::Unavailable))?;
    shared.remembered.lock().words.insert(name.to_owned(), kept.clone());
    Ok(kept)
}

pub(super) async fn replace(shared: &Shared, name: &str, value: &str) -> Result<(), StoreError> {
    call(shared, &command("HSET", &[key::META, name, value])).await?;
    shared.remembered.lock().words.insert(name.to_owned(), value.to_owned());
    Ok(())
}

/// Not as one step: a turn that ends between the look and the renewal may be two processes' for its length.
pub(super) async fn keep_turn(shared: &Shared, name: &str, process: &str, span: Duration) -> Result<bool, StoreError> {
    let key = format!("{}turn:{name}", key::NAMESPACE);
    let span = span.as_millis().max(1).to_string();
    if call(shared, &command("SET", &[&key, process, "NX", "PX", &span])).await? == Value::Okay {
        return Ok(true);
    }
    let is_ours = text(call(shared, &command("GET", &[&key])).await?).is_some_and(|holder| holder == process);
    if is_ours {
        call(shared, &command("SET", &[&key, process, "XX", "PX", &span])).await?;
    }
    Ok(is_ours)
}

pub(super) async fn keep_rules(shared: &Shared, policy: u32, rules: &str) -> Result<(), StoreError> {
    write_rules(shared, policy, rules).await?;
    shared.remembered.lock().rules.insert(policy, rules.to_owned());
    Ok(())
}

/// The text first: a policy that is named has one.
async fn write_rules(shared: &Shared, policy: u32, rules: &str) -> Result<(), StoreError> {
    let policy = policy.to_string();
    let mut commands = redis::pipe();
    commands
        .atomic()
        .cmd("HSET")
        .arg(key::RULES)
        .arg(&policy)
        .arg(rules)
        .ignore()
        .cmd("LREM")
        .arg(key::RULES_ORDER)
        .arg(0)
        .arg(&policy)
        .ignore()
        .cmd("RPUSH")
        .arg(key::RULES_ORDER)
        .arg(&policy)
        .ignore();
    shared.side.pipeline(&commands).await.map_err(CallError::step)?;
    // The oldest, of more than are kept. Of two that do this at a time, each takes what the other left.
    loop {
        let Value::Int(count) = call(shared, &command("LLEN", &[key::RULES_ORDER])).await? else { return Ok(()) };
        if usize::try_from(count).unwrap_or_default() <= RULES_MAX {
            return Ok(());
        }
        let Some(oldest) = text(call(shared, &command("LPOP", &[key::RULES_ORDER])).await?) else { return Ok(()) };
        call(shared, &command("HDEL", &[key::RULES, &oldest])).await?;
    }
}

pub(super) async fn rules(shared: &Shared, policy: u32) -> Result<Option<String>, StoreError> {
    let found = command("HGET", &[key::RULES, &policy.to_string()]);
    shared.side.call(&found).await.map(text).map_err(CallError::read)
}

/// When a process last noticed a loss, by the store's time.
pub(super) async fn last_loss(shared: &Shared) -> Result<Option<Micros>, StoreError> {
    let found = shared.side.call(&command("HGET", &[key::META, LOST])).await.map(text).map_err(CallError::read)?;
    Ok(found.and_then(|at| at.parse().ok()).map(Micros))
}

/// After a loss, once: when it was, and what this process remembers.
pub(super) async fn say_again(shared: &Shared) -> Result<(), StoreError> {
    let Some(at) = shared.incarnations.unsaid() else { return Ok(()) };
    call(shared, &command("HSET", &[key::META, LOST, &at.0.to_string()])).await?;
    let known = shared.remembered.lock().clone();
    for (name, value) in &known.words {
        call(shared, &command("HSETNX", &[key::META, name, value])).await?;
    }
    for (policy, rules) in &known.rules {
        write_rules(shared, *policy, rules).await?;
    }
    shared.incarnations.is_said(at);
    Ok(())
}
