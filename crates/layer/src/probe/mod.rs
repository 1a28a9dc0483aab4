//! What became of a request whose outcome nobody knows: asked of whoever keeps books of it.
//!
//! `status` asks the upstream over HTTP, `effect` looks into the database where it writes its effects down. Whoever asks
//! about the same record at the same time shares the question. What was found is written by whoever asked, against the
//! record as he had read it: a late answer or an operator wins.

mod effect;
mod status;
mod url;

use std::{sync::Arc, time::Duration};

use onceward_core::{
    decide::Found,
    key::{self, ClientKey, RecordId},
    policy::Step,
    record::{Fence, Revision},
};

pub use self::{
    effect::{EffectRules, Effects},
    status::{Probe, ProbeRules},
    url::{InvalidProbeUrl, ProbeUrl},
};
use tokio::sync::Semaphore;

use crate::{body::BoxError, exchange::chain, once::Once, route::Route};

/// Questions of one kind at a time; further ones wait, within their time.
const ASKING_MAX: usize = 64;

/// What is asked about, all of it: of a record that has changed, the answer is another.
pub(crate) type Doubt = (RecordId, Fence, Revision);

/// A request's way to the books of its route.
#[derive(Clone, Copy)]
pub(crate) struct Books<'a> {
    pub(crate) route: &'a Arc<Route>,
    /// The client's key; none where it was derived from the request, or where there is no request.
    pub(crate) key: Option<&'a ClientKey>,
}

impl Books<'_> {
    /// Asks about a record as it was read, as `step` has it.
    pub(crate) async fn ask(self, step: Step, doubt: Doubt) -> Found {
        let route = self.route;
        match (step, &route.probe, &route.effects) {
            (Step::Effect, _, Some(effects)) => effects.look(route, doubt).await,
            (Step::Probe { .. }, Some(probe), _) => {
                let child = match (&route.forward_derived, self.key) {
                    (Some(step), Some(key)) => Some(key::child_key(key.as_str(), step)),
                    _ => None,
                };
                probe.ask(route, child.as_deref().or(self.key.map(ClientKey::as_str)), doubt).await
            }
            _ => Found::Nothing,
        }
    }
}

/// Questions of one kind, each shared by those who ask the same at the same time.
#[derive(Debug)]
struct Questions {
    /// Which step asks.
    by: &'static str,
    /// For a question and its answer.
    timeout: Duration,
    once: Once<Doubt, Found>,
    asking: Arc<Semaphore>,
}

impl Questions {
    fn new(by: &'static str, timeout: Duration) -> Self {
        Self { by, timeout, once: Once::default(), asking: Arc::new(Semaphore::new(ASKING_MAX)) }
    }

    /// What `ask` finds, and tells; nothing where it fails or takes too long.
    async fn put<F>(&self, route: &Arc<Route>, doubt: Doubt, ask: impl FnOnce() -> F) -> Found
    where
        F: Future<Output = Result<Found, BoxError>> + Send + 'static,
    {
        let (by, timeout) = (self.by, self.timeout);
        let (id, name, asking) = (doubt.0, route.name.clone(), Arc::clone(&self.asking));
        let question = || {
            let answer = ask();
            async move {
                let answer = async {
                    let _permit = asking.acquire().await?;
                    answer.await
                };
                let found = match tokio::time::timeout(timeout, answer).await {
                    Ok(Ok(found)) => Ok(found),
                    Ok(Err(error)) => Err(error),
                    Err(_late) => Err("there was no answer in time".into()),
                };
                let found = found.unwrap_or_else(|error| {
                    tracing::warn!(record = %id.short(), route = name, by, error = %chain(&*error), "it could not be told what became of a request");
                    Found::Nothing
                });
                let word = match &found {
                    Found::Executed(_) => "executed",
                    Found::NotExecuted => "not_executed",
                    Found::Nothing => "nothing",
                };
                tracing::info!(record = %id.short(), route = name, by, found = word, "an outcome was probed");
                metrics::counter!("onceward_probes_total", "route" => name, "by" => by, "found" => word).increment(1);
                found
            }
        };
        self.once.join(doubt, question).await
    }
}
