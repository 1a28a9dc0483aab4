//! What became of a request whose outcome nobody knows: asked of whoever keeps books of it.
//!
//! `status` asks the upstream over HTTP, `effect` looks into the database where it writes its effects down. Whoever asks
//! about the same record at the same time shares the question. What was found is written by whoever asked, against the
//! record as he had read it: a late answer or an operator wins.

mod effect;
mod status;
mod url;

use std::sync::Arc;

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
use crate::route::Route;

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

fn told(found: &Found, by: &'static str, id: &RecordId, route: &Route) {
    let word = match found {
        Found::Executed(_) => "executed",
        Found::NotExecuted => "not_executed",
        Found::Nothing => "nothing",
    };
    tracing::info!(record = %id.short(), route = %route.name, by, found = word, "an outcome was probed");
    metrics::counter!("onceward_probes_total", "route" => route.name.clone(), "by" => by, "found" => word).increment(1);
}
