//! Those who wait for keys whose holder is another process.
//!
//! Whoever waits subscribes to the key's channel, on which a replacement or a removal is told in its own step; in a
//! Cluster that is a channel of the key's shard. A renewal is not told. What is lost, by a connection that breaks, costs
//! one second: then whoever waits looks again.
//!
//! Keys that are forgotten or erased are told on one channel that every process listens to, for those who remember
//! answers. After a connection broke, all may have been: what was told meanwhile is lost.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use onceward_core::key::RecordId;
use redis::{PushInfo, PushKind, Value};
use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval},
};

use super::{Shared, address::Heard, key, link::Link};
use crate::{forgotten::Forgotten, watch::Watchers};

/// How often whoever waits looks again without being told.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The most keys that are subscribed to in one step.
const SUBSCRIBE_MAX: usize = 256;

/// Wakes whoever waits for the key of a message, tells of what was forgotten, and hands on that the connection is gone.
pub(super) fn heard(watchers: Watchers, forgotten: Forgotten, gone: Arc<Notify>) -> Heard {
    Arc::new(move |push: PushInfo| match push.kind {
        PushKind::Message | PushKind::SMessage => {
            let mut data = push.data.iter().map(bytes);
            match (data.next().flatten(), data.next().flatten()) {
                (Some(channel), Some(id)) if channel == key::FORGOTTEN.as_bytes() => {
                    // What is no id is told as all.
                    forgotten.tell(id.try_into().ok().map(RecordId));
                }
                (Some(channel), _) => key::id_of(channel).iter().for_each(|id| watchers.wake(id)),
                (None, _) => {}
            }
        }
        PushKind::Disconnection => gone.notify_one(),
        _ => {}
    })
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// Subscribes to the channels of keys that are waited for, and has those who wait look again each second.
pub(super) async fn listen(shared: Arc<Shared>, link: Link, mut waited: mpsc::Receiver<RecordId>, gone: Arc<Notify>) {
    // By key, whether its channel is subscribed to.
    let mut wanted: HashMap<RecordId, bool> = HashMap::new();
    // Whether what is forgotten is heard of.
    let mut hears = false;
    let mut again = interval(LOOK_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut new = Vec::new();
    loop {
        tokio::select! {
            _ = again.tick() => {
                if !hears {
                    hears = link.subscribe_forgotten().await;
                    if hears {
                        shared.forgotten.tell(None);
                    }
                }
                let left: Vec<RecordId> = wanted.keys().filter(|id| !shared.watchers.is_waited(id)).copied().collect();
                for id in &left {
                    wanted.remove(id);
                }
                link.unsubscribe(&left).await;
                wanted.keys().for_each(|id| shared.watchers.wake(id));
                // Those whose channel is not subscribed to, after a connection broke.
                new.extend(wanted.iter().filter(|(_, subscribed)| !**subscribed).map(|(id, _)| *id));
                if new.is_empty() && wanted.is_empty() {
                    // Whether it could be, where nobody waits.
                    let reached = link.call(&redis::cmd("PING")).await.is_ok();
                    shared.health.hears.store(reached, Ordering::Relaxed);
                }
            }
            () = gone.notified() => {
                hears = false;
                wanted.values_mut().for_each(|subscribed| *subscribed = false);
                new.extend(wanted.keys().copied());
            }
            count = waited.recv_many(&mut new, SUBSCRIBE_MAX) => if count == 0 { return },
        }
        let ids: HashSet<RecordId> =
            new.drain(..).filter(|id| !wanted.get(id).is_some_and(|subscribed| *subscribed)).collect();
        if ids.is_empty() {
            continue;
        }
        let ids: Vec<RecordId> = ids.into_iter().collect();
        wanted.extend(ids.iter().map(|id| (*id, false)));
        let subscribed = link.subscribe(&ids).await;
        shared.health.hears.store(subscribed.len() == ids.len(), Ordering::Relaxed);
        for id in subscribed {
            wanted.insert(id, true);
            // A write since the look before may have told nobody.
            shared.watchers.wake(&id);
        }
    }
}
