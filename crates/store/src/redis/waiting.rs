//! Those who wait for keys whose holder is another process.
//!
//! Whoever waits subscribes to the key's channel, on which a replacement or a removal is told in its own step; in a
//! Cluster that is a channel of the key's shard. A renewal is not told. What is lost, by a connection that breaks, costs
//! one second: then whoever waits looks again.

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
use crate::watch::Watchers;

/// How often whoever waits looks again without being told.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The most keys that are subscribed to in one step.
const SUBSCRIBE_MAX: usize = 256;

/// Wakes whoever waits for the key of a message, and hands on that the connection is gone.
pub(super) fn heard(watchers: Watchers, gone: Arc<Notify>) -> Heard {
    Arc::new(move |push: PushInfo| match push.kind {
        PushKind::Message | PushKind::SMessage => {
            let channel = match push.data.first() {
                Some(Value::BulkString(channel)) => key::id_of(channel),
                Some(Value::SimpleString(channel)) => key::id_of(channel.as_bytes()),
                _ => None,
            };
            channel.iter().for_each(|id| watchers.wake(id));
        }
        PushKind::Disconnection => gone.notify_one(),
        _ => {}
    })
}

/// Subscribes to the channels of keys that are waited for, and has those who wait look again each second.
pub(super) async fn listen(shared: Arc<Shared>, link: Link, mut waited: mpsc::Receiver<RecordId>, gone: Arc<Notify>) {
    // By key, whether its channel is subscribed to.
    let mut wanted: HashMap<RecordId, bool> = HashMap::new();
    let mut again = interval(LOOK_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut new = Vec::new();
    loop {
        tokio::select! {
            _ = again.tick() => {
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
