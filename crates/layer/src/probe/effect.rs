//! Looks for the effect itself (the step `effect` of `on_unknown`).
//!
//! The upstream writes each effect down in the transaction that makes it, with the record and the fence that it was
//! sent. Whoever looks raises the fence first, so that a transaction which is still under way is refused: an effect that
//! is there was made, one that is not never will be.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use onceward_core::{decide::Found, key::RecordId, outcome::Outcome, record::Fence};
use onceward_store::effects::{Effect, EffectTable, Noted, Rows};
use tokio::sync::Semaphore;

use super::{Doubt, told};
use crate::{body::BoxError, exchange::chain, once::Once, replay, route::Route};

/// Looks at a time; further ones wait, within their time.
const LOOKING_MAX: usize = 64;

/// How an effect is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectRules {
    /// What the upstream calls it.
    pub name: String,
    /// For one look.
    pub timeout: Duration,
    /// The application's own table, that [`reconcile`](crate::Engine::reconcile) compares records with too.
    pub rows: Option<Rows>,
}

impl Default for EffectRules {
    fn default() -> Self {
        Self { name: "done".into(), timeout: Duration::from_secs(5), rows: None }
    }
}

/// Where the effects of a route are written down.
#[derive(Debug)]
pub struct Effects {
    table: Arc<dyn EffectTable>,
    rules: EffectRules,
    once: Once<Doubt, Found>,
    looking: Semaphore,
}

impl Effects {
    /// Looks into `table` by `rules`.
    #[must_use]
    pub fn new(table: Arc<dyn EffectTable>, rules: EffectRules) -> Self {
        Self { table, rules, once: Once::default(), looking: Semaphore::new(LOOKING_MAX) }
    }

    pub(super) async fn look(self: &Arc<Self>, route: &Arc<Route>, doubt: Doubt) -> Found {
        let (effects, route) = (Arc::clone(self), Arc::clone(route));
        let found = self.once.join(doubt, move || async move {
            let found = effects.found(&route, doubt).await;
            told(&found, "effect", &doubt.0, &route);
            found
        });
        found.await
    }

    /// What is written down of each record, in their order; an error is in words.
    pub(crate) async fn noted(&self, ids: &[RecordId]) -> Result<Vec<Noted>, String> {
        let noted = self.table.noted(ids, &self.rules.name, self.rules.rows.as_ref());
        match tokio::time::timeout(self.rules.timeout, noted).await {
            Ok(Ok(noted)) => Ok(noted),
            Ok(Err(error)) => Err(chain(&error).to_string()),
            Err(_late) => Err("the database did not answer in time".into()),
        }
    }

    async fn found(&self, route: &Route, (id, fence, _): Doubt) -> Found {
        // The next attempt's fence is at least this one, and every earlier one's is less.
        let raised = Fence(fence.0.saturating_add(1));
        let looked = async {
            let _permit = self.looking.acquire().await?;
            Ok(self.table.look(id, raised, &self.rules.name).await?)
        };
        let why: BoxError = match tokio::time::timeout(self.rules.timeout, looked).await {
            Ok(Ok(Some(effect))) => return Found::Executed(outcome(effect, route)),
            Ok(Ok(None)) => return Found::NotExecuted,
            Ok(Err(error)) => error,
            Err(_late) => "the database did not answer in time".into(),
        };
        tracing::warn!(record = %id.short(), route = %route.name, error = %chain(&*why), "the effect of a request could not be looked for");
        Found::Nothing
    }
}

/// The answer that was written down with the effect, as the route records answers; 200 and an empty body where there is
/// none.
fn outcome(effect: Effect, route: &Route) -> Outcome {
    let Some(answer) = effect.answer else { return Outcome { status: 200, ..Outcome::default() } };
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let fields = answer.headers.iter().filter_map(|field| {
        Some((HeaderName::from_bytes(&field.name).ok()?, HeaderValue::from_bytes(&field.value).ok()?))
    });
    let mut headers = HeaderMap::new();
    headers.extend(fields.map(|(name, value)| (Some(name), value)));
    replay::strip_own(&mut headers, route);
    let body = (answer.body.len() <= route.recorded_body_bytes_max).then_some(answer.body);
    replay::completed(replay::outcome_of(status, &headers, route), body, None)
}
