//! Those who wait for keys whose holder is another process.
//!
//! A key that is waited for is said so in the database, and whoever writes to it notifies; nobody else does, since
//! notifications make commits queue. A writer that looked before it was said notifies nobody, so whoever waits looks
//! once more shortly after. A notification that is lost otherwise, by a connection that breaks, costs one second: then
//! whoever waits looks again.
//!
//! Keys that are forgotten or erased are told on a channel of their own, for those who remember answers. After the
//! listening connection broke, all may have been.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onceward_core::key::RecordId;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_postgres::{AsyncMessage, types::Type};

use super::{Shared, address::Address, row::span};
use crate::{forgotten::Forgotten, watch::Watchers};

/// The channel of what was forgotten or erased.
const FORGOTTEN: &str = "onceward.forgotten";
/// How long after a key was said whoever waits for it looks once more: longer than a commit that was on its way takes.
const LOOK_ONCE_MORE: Duration = Duration::from_millis(25);
/// How often whoever waits looks again without being notified.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a key counts as waited for after it was said.
const SAID_FOR: Duration = Duration::from_secs(30);
/// The most keys that are said at a time.
const SAY_MAX: usize = 256;
/// The pause before the listening connection is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// Tells every process that a key was forgotten or erased. Those who do not hear of it learn it when they look, at the
/// latest when what they remember is over.
pub(super) async fn tell_forgotten(shared: &Shared, id: &RecordId) {
    let hex: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let told = match shared.plain() {
        Ok(lane) => {
            lane.read("SELECT pg_notify($1, $2)", &[(&FORGOTTEN, Type::TEXT), (&hex, Type::TEXT)]).await.map(drop)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        tracing::warn!(%error, record = %id.short(), "others could not be told of a key that was forgotten");
    }
}

/// Listens, on a connection of its own that no pooler may carry.
pub(super) async fn listen(address: Address, watchers: Watchers, forgotten: Forgotten, listening: Arc<AtomicBool>) {
    loop {
        let (woken, told_of) = (watchers.clone(), forgotten.clone());
        let heard = move |message| {
            let AsyncMessage::Notification(told) = message else { return };
            match (told.channel(), id_of(told.payload())) {
                // What is no id is told as all.
                (FORGOTTEN, id) => told_of.tell(id),
                (_, Some(id)) => woken.wake(&id),
                (_, None) => {}
            }
        };
        match address.connect(heard).await {
            Ok((client, connection)) => {
                let carried = tokio::spawn(connection);
                match client.batch_execute("LISTEN onceward; LISTEN \"onceward.forgotten\"").await {
                    Ok(()) => {
                        forgotten.tell(None);
                        listening.store(true, Ordering::Relaxed);
                        // It ends with the connection; nothing more is said on it.
                        let _ = carried.await;
                        listening.store(false, Ordering::Relaxed);
                    }
                    Err(error) => tracing::debug!(%error, "cannot listen"),
                }
            }
            Err(error) => tracing::debug!(%error, "cannot connect to listen"),
        }
        sleep(AGAIN).await;
    }
}

fn id_of(hex: &str) -> Option<RecordId> {
    let mut id = [0; 32];
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != id.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(RecordId(id))
}

/// Says which keys are waited for, and has those who wait look again each second.
pub(super) async fn say(shared: Arc<Shared>, mut waited: mpsc::Receiver<RecordId>) {
    let mut said: HashMap<RecordId, Instant> = HashMap::new();
    let mut again = interval(LOOK_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut new = Vec::new();
    // When to look once more for what was said just now.
    let mut once_more: VecDeque<(Instant, RecordId)> = VecDeque::new();
    loop {
        tokio::select! {
            () = sleep_until(once_more.front().map_or_else(Instant::now, |(at, _)| *at)), if !once_more.is_empty() => {
                if let Some((_, id)) = once_more.pop_front() {
                    shared.watchers.wake(&id);
                }
                continue;
            }
            _ = again.tick() => {
                said.retain(|_, at| at.elapsed() < SAID_FOR / 2);
                said.keys().for_each(|id| shared.watchers.wake(id));
                continue;
            }
            count = waited.recv_many(&mut new, SAY_MAX) => if count == 0 { return },
        }
        new.retain(|id| !said.contains_key(id));
        new.sort_unstable();
        new.dedup();
        if new.is_empty() {
            continue;
        }
        let ids: Vec<&[u8]> = new.iter().map(|id| id.0.as_slice()).collect();
        let sql = "SELECT onceward.store_wait($1, $2)";
        let written = shared.upkeep.write(sql, &[(&ids, Type::BYTEA_ARRAY), (&span(SAID_FOR), Type::INT8)]).await;
        if let Err(failed) = written {
            tracing::debug!(error = %failed.error, "cannot say which keys are waited for");
        }
        let now = Instant::now();
        once_more.extend(new.iter().map(|id| (now + LOOK_ONCE_MORE, *id)));
        // Said or not: those who wait look again by themselves.
        said.extend(new.drain(..).map(|id| (id, now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_from_its_hexadecimal_digits_and_nothing_else_is() {
        let id = RecordId(std::array::from_fn(|at| u8::try_from(at * 8).unwrap()));
        let hex: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(id_of(&hex), Some(id));
        for wrong in ["", "00", &hex[1..], &format!("{hex}00"), &hex.replace("08", "0g")] {
            assert_eq!(id_of(wrong), None, "{wrong}");
        }
    }
}
