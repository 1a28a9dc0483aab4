//! Looks for the effect itself (the step `effect` of `on_unknown`).
//!
//! The upstream writes each effect down in the transaction that makes it, with the record and the fence that it was
//! sent. Whoever looks raises the fence first, so that a transaction which is still under way is refused: an effect that
//! is there was made, one that is not never will be.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use onceward_core::{decide::Found, key::RecordId, outcome::Outcome, record::Fence};
use onceward_store::effects::{Effect, EffectTable, Noted, Rows};

use super::{Doubt, Questions};
use crate::{exchange::chain, replay, route::Route};

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
    questions: Questions,
}

impl Effects {
    /// Looks into `table` by `rules`.
    #[must_use]
    pub fn new(table: Arc<dyn EffectTable>, rules: EffectRules) -> Self {
        let questions = Questions::new("effect", rules.timeout);
        Self { table, rules, questions }
    }

    pub(super) async fn look(self: &Arc<Self>, route: &Arc<Route>, doubt: Doubt) -> Found {
        let (effects, of) = (Arc::clone(self), Arc::clone(route));
        let (id, fence, _) = doubt;
        // The next attempt's fence is at least this one, and every earlier one's is less.
        let raised = Fence(fence.0.saturating_add(1));
        let look = || async move {
            let effect = effects.table.look(id, raised, &effects.rules.name).await?;
            Ok(effect.map_or(Found::NotExecuted, |effect| Found::Executed(outcome(effect, &of))))
        };
        self.questions.put(route, doubt, look).await
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
