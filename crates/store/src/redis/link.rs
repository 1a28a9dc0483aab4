//! A connection that is there when it is needed: made, looked at, given up and made again, whatever the servers' shape.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use onceward_core::key::RecordId;
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisError, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cluster_routing::RoutingInfo,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    address::{Address, CONNECT_TIMEOUT, Heard, Opening, handed_on},
    admission::Admission,
    error::{Failure, ends_connection, is_missing_script, read_failed, step_failed},
    info::Info,
    key::{FORGOTTEN, Keys},
};
use crate::{Kind, StoreError};

/// The major version that has RESP3.
const OLDEST: u32 = 6;
/// After a connection that did not come about, whoever asks next is refused at once for so long.
const AGAIN: Duration = Duration::from_millis(50);
/// After so many calls in a row that nobody answered, a Cluster's connection is made anew.
const UNANSWERED_MAX: u32 = 3;

/// One connection, or a Cluster's, that many calls share.
pub(super) struct Link {
    address: Address,
    deadline: Duration,
    heard: Option<Heard>,
    /// Where the servers are not to be asked before they were looked at.
    admission: Option<Arc<Admission>>,
    live: RwLock<Option<Live>>,
    opening: Mutex<Opener>,
    made: AtomicU64,
}

struct Opener {
    opening: Option<Opening>,
    failed_at: Option<Instant>,
}

#[derive(Clone)]
enum Shape {
    One(MultiplexedConnection),
    Many(ClusterConnection),
}

#[derive(Clone)]
pub(super) struct Live {
    shape: Shape,
    generation: u64,
    /// Calls in a row that no server answered.
    unanswered: Arc<AtomicU32>,
}

/// A call on its way. A Cluster's connection mends itself, but for when it has come to a stand in the middle of it, as it
/// does now and then while slots move: then no call is answered any more, and it is made anew.
struct Asked<'a> {
    link: &'a Link,
    live: &'a Live,
    is_answered: bool,
}

impl<'a> Asked<'a> {
    fn of(link: &'a Link, live: &'a Live) -> Self {
        Self { link, live, is_answered: false }
    }

    fn ended<T>(mut self, answer: Result<T, RedisError>) -> Result<T, RedisError> {
        // What has a code was said by a server.
        self.is_answered = answer.as_ref().err().is_none_or(|error| error.code().is_some());
        answer
    }
}

impl Drop for Asked<'_> {
    /// Also of a call whose caller waits no longer.
    fn drop(&mut self) {
        let unanswered = &self.live.unanswered;
        if self.is_answered {
            unanswered.store(0, Ordering::Relaxed);
        } else if unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= UNANSWERED_MAX
            && matches!(self.live.shape, Shape::Many(_))
        {
            self.link.give_up(self.live.generation);
        }
    }
}

/// A call that failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// There is no connection.
    NotSent(StoreError),
    /// It may have reached the server.
    Sent {
        /// What the server or the network said.
        error: RedisError,
        /// Where it may have been sent more than once.
        is_cluster: bool,
    },
}

impl CallError {
    /// Of a step that writes.
    pub(super) fn step(self) -> StoreError {
        match self {
            Self::NotSent(error) => error,
            Self::Sent { error, is_cluster } => step_failed(error, is_cluster),
        }
    }

    /// Of a step that only reads.
    pub(super) fn read(self) -> StoreError {
        match self {
            Self::NotSent(error) => error,
            Self::Sent { error, .. } => read_failed(error),
        }
    }

    /// Whether the script has to be sent whole.
    pub(super) fn is_missing_script(&self) -> bool {
        matches!(self, Self::Sent { error, .. } if is_missing_script(error))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.address)
    }
}

impl Link {
    pub(super) fn new(address: &Address, deadline: Duration, heard: Option<Heard>) -> Self {
        Self {
            address: address.clone(),
            deadline,
            heard,
            admission: None,
            live: RwLock::new(None),
            opening: Mutex::new(Opener { opening: None, failed_at: None }),
            made: AtomicU64::new(0),
        }
    }

    /// The same, refused for as long as that is shut.
    pub(super) fn behind(self, admission: &Arc<Admission>) -> Self {
        Self { admission: Some(Arc::clone(admission)), ..self }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Sends one command.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, CallError> {
        let live = self.live().await.map_err(CallError::NotSent)?;
        let asked = Asked::of(self, &live);
        let answer = match live.shape.clone() {
            Shape::One(mut connection) => connection.req_packed_command(command).await,
            Shape::Many(mut connection) => connection.req_packed_command(command).await,
        };
        asked.ended(answer.and_then(Value::extract_error)).map_err(|error| self.failed(&live, error))
    }

    /// Sends one command to these nodes of a Cluster; none where it is no Cluster.
    pub(super) async fn route(&self, command: &Cmd, to: RoutingInfo) -> Result<Option<Value>, CallError> {
        let live = self.live().await.map_err(CallError::NotSent)?;
        let Shape::Many(mut connection) = live.shape.clone() else { return Ok(None) };
        let asked = Asked::of(self, &live);
        let answer = connection.route_command(command.clone(), to).await.and_then(Value::extract_error);
        asked.ended(answer).map(Some).map_err(|error| self.failed(&live, error))
    }

    /// Sends several at once. In a Cluster all are about one slot.
    pub(super) async fn pipeline(&self, commands: &Pipeline) -> Result<Vec<Value>, CallError> {
        let live = self.live().await.map_err(CallError::NotSent)?;
        // A transaction's answer is one, after those that say that its commands are queued.
        let (offset, count) = if commands.is_transaction() { (commands.len() + 1, 1) } else { (0, commands.len()) };
        let asked = Asked::of(self, &live);
        let answer = match live.shape.clone() {
            Shape::One(mut connection) => connection.req_packed_commands(commands, offset, count).await,
            Shape::Many(mut connection) => connection.req_packed_commands(commands, offset, count).await,
        };
        let answers = answer.and_then(|answers| answers.into_iter().map(Value::extract_error).collect());
        asked.ended(answers).map_err(|error| self.failed(&live, error))
    }

    /// Subscribes to the channels of these records; returns those for which that is confirmed.
    pub(super) async fn subscribe(&self, ids: &[RecordId]) -> Vec<RecordId> {
        let channels: Vec<Keys> = ids.iter().map(Keys::of).collect();
        let Ok(live) = self.live().await else { return Vec::new() };
        let asked = Asked::of(self, &live);
        let mut done = 0;
        let failed = match live.shape.clone() {
            Shape::One(mut connection) => {
                let channels: Vec<&[u8]> = channels.iter().map(Keys::channel).collect();
                let subscribed = connection.subscribe(channels).await;
                done = if subscribed.is_ok() { ids.len() } else { 0 };
                subscribed.err()
            }
            Shape::Many(mut connection) => {
                let mut failed = None;
                // Each may be on another shard.
                for channel in &channels {
                    failed = connection.ssubscribe(channel.channel()).await.err();
                    if failed.is_some() {
                        break;
                    }
                    done += 1;
                }
                failed
            }
        };
        if let Err(error) = asked.ended(failed.map_or(Ok(()), Err)) {
            self.failed(&live, error);
        }
        ids.get(..done).unwrap_or_default().to_vec()
    }

    /// Subscribes to the channel of what is forgotten; returns whether that is confirmed.
    pub(super) async fn subscribe_forgotten(&self) -> bool {
        let Ok(live) = self.live().await else { return false };
        let asked = Asked::of(self, &live);
        let subscribed = match live.shape.clone() {
            Shape::One(mut connection) => connection.subscribe(FORGOTTEN).await,
            Shape::Many(mut connection) => connection.subscribe(FORGOTTEN).await,
        };
        asked.ended(subscribed).map_err(|error| self.failed(&live, error)).is_ok()
    }

    /// Takes back what was subscribed to. That it fails costs no more than messages that nobody waits for.
    pub(super) async fn unsubscribe(&self, ids: &[RecordId]) {
        let channels: Vec<Keys> = ids.iter().map(Keys::of).collect();
        if channels.is_empty() {
            return;
        }
        let Ok(mut live) = self.live().await else { return };
        match &mut live.shape {
            Shape::One(connection) => {
                let channels: Vec<&[u8]> = channels.iter().map(Keys::channel).collect();
                let _done = connection.unsubscribe(channels).await;
            }
            Shape::Many(connection) => {
                for channel in &channels {
                    let _done = connection.sunsubscribe(channel.channel()).await;
                }
            }
        }
    }

    fn failed(&self, live: &Live, error: RedisError) -> CallError {
        let is_cluster = matches!(live.shape, Shape::Many(_));
        // A Cluster's mends itself, or is given up when nothing is answered any more.
        if !is_cluster && ends_connection(&error) {
            self.give_up(live.generation);
        }
        CallError::Sent { error, is_cluster }
    }

    /// Drops a connection that is of no more use, unless it has been made again meanwhile.
    pub(super) fn give_up(&self, generation: u64) {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if live.as_ref().is_some_and(|live| live.generation == generation) {
            *live = None;
        }
    }

    /// Drops the connection, whatever its state.
    pub(super) fn close(&self) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn living(&self) -> Option<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn live(&self) -> Result<Live, StoreError> {
        if let Some(admission) = &self.admission {
            admission.check()?;
        }
        if let Some(live) = self.living() {
            return Ok(live);
        }
        let limit = self.deadline.min(CONNECT_TIMEOUT);
        let connecting = async {
            let mut opener = self.opening.lock().await;
            // Made by another meanwhile.
            if let Some(live) = self.living() {
                return Ok(live);
            }
            if opener.failed_at.is_some_and(|at| at.elapsed() < AGAIN) {
                return Err(StoreError::not_applied(Kind::Unavailable).because(Failure::said("it cannot be reached")));
            }
            let made = self.open(&mut opener).await;
            opener.failed_at = made.is_err().then(Instant::now);
            let generation = self.made.fetch_add(1, Ordering::Relaxed);
            let live = Live { shape: made?, generation, unanswered: Arc::default() };
            *self.live.write().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
            Ok(live)
        };
        timeout(limit, connecting)
            .await
            .unwrap_or_else(|elapsed| Err(StoreError::not_applied(Kind::Unavailable).because(elapsed)))
    }

    async fn open(&self, opener: &mut Opener) -> Result<Shape, StoreError> {
        let opening = match &mut opener.opening {
            Some(opening) => opening,
            none => none.insert(self.address.open(self.deadline, self.heard.as_ref()).map_err(read_failed)?),
        };
        let mut connection = match opening {
            Opening::Cluster(client) => {
                return client.get_async_connection().await.map(Shape::Many).map_err(read_failed);
            }
            Opening::One(client) => client.get_multiplexed_async_connection_with_config(&self.config()).await,
            Opening::Sentinel(sentinels) => sentinels.get_async_connection_with_config(&self.config()).await,
        }
        .map_err(read_failed)?;
        let info = connection.req_packed_command(&redis::cmd("INFO")).await.and_then(Value::extract_error);
        // Whoever may not ask is not told; that it cannot be watched is said elsewhere.
        if let Ok(info) = info {
            fit(&Info::of(info))?;
        }
        Ok(Shape::One(connection))
    }

    fn config(&self) -> AsyncConnectionConfig {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT.min(self.deadline)))
            .set_response_timeout(Some(self.deadline));
        match &self.heard {
            None => config,
            Some(heard) => config.set_push_sender(handed_on(heard)),
        }
    }
}

/// Whether records can be kept on a server that says this of itself.
fn fit(info: &Info) -> Result<(), StoreError> {
    let unfit = |kind, said: String| Err(StoreError::not_applied(kind).because(Failure::said(said)));
    let (major, minor) = info.version();
    if major != 0 && major < OLDEST {
        return unfit(Kind::Unavailable, format!("the server is Redis {major}.{minor}: {OLDEST}.0 or later is needed"));
    }
    if info.field("redis_mode") == "sentinel" {
        let said = "the server is a Sentinel: write redis+sentinel://HOST:PORT/NAME";
        return unfit(Kind::Unavailable, said.to_owned());
    }
    if info.number("cluster_enabled") == 1 {
        return unfit(Kind::Unavailable, "the server is one of a Cluster: write redis+cluster://HOST:PORT".to_owned());
    }
    if !info.field("role").is_empty() && !info.is_primary() {
        let said =
            "the server is a replica, which decides nothing: point the store at the primary, or at its Sentinels";
        return unfit(Kind::NotPrimary, said.to_owned());
    }
    Ok(())
}
