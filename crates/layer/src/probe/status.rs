//! Asks the upstream's own books whether a request took effect of which nobody knows (the step `probe` of
//! `on_unknown`).
//!
//! One status URL, asked by GET. A status that is listed says that it was executed, and the answer becomes the record's;
//! another listed one says that it was not; anything else, a redirect too, says nothing.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request};
use onceward_core::{decide::Found, key::RecordId, outcome::Outcome, policy::Step};

use super::{Doubt, ProbeUrl, Questions};
use crate::{
    ask::{Answer, Client},
    replay,
    route::Route,
};

/// How the books are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeRules {
    /// Who is asked.
    pub url: ProbeUrl,
    /// Sent along: the credentials of the question.
    pub headers: HeaderMap,
    /// Statuses that say that it took effect.
    pub executed: Vec<u16>,
    /// Statuses that say that it did not.
    pub not_executed: Vec<u16>,
    /// Repeats get 200 and an empty body instead of the answer.
    pub ack: bool,
    /// For a question and its answer.
    pub timeout: Duration,
}

impl ProbeRules {
    /// Asks `url`; the statuses are still to be said.
    #[must_use]
    pub fn new(url: ProbeUrl) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            executed: Vec::new(),
            not_executed: Vec::new(),
            ack: false,
            timeout: Duration::from_secs(5),
        }
    }
}

/// A status URL, and how it is asked.
#[derive(Debug)]
pub struct Probe {
    client: Arc<dyn Client>,
    rules: ProbeRules,
    questions: Questions,
}

impl Probe {
    /// Asks by `rules` over `client`.
    #[must_use]
    pub fn new(client: Arc<dyn Client>, rules: ProbeRules) -> Self {
        let questions = Questions::new("probe", rules.timeout);
        Self { client, rules, questions }
    }

    /// The step of `on_unknown` that asks it, not before `quiesce` after the outcome became unknown.
    #[must_use]
    pub fn step(&self, quiesce: Duration) -> Step {
        Step::Probe { quiesce, unattended: !self.rules.url.needs_key() }
    }

    /// Asks about the request that was executed under `key`, spelled as the upstream was sent it.
    pub(super) async fn ask(self: &Arc<Self>, route: &Arc<Route>, key: Option<&str>, doubt: Doubt) -> Found {
        let (id, _, _) = doubt;
        let Some(question) = self.question(&id, key) else {
            tracing::debug!(record = %id.short(), route = %route.name, "the status URL has no place for this key");
            return Found::Nothing;
        };
        let (probe, of) = (Arc::clone(self), Arc::clone(route));
        let ask = || async move {
            let answer = probe.client.ask(question, of.recorded_body_bytes_max).await?;
            probe.read(answer, &of).map_err(|status| format!("its answer {status} says nothing").into())
        };
        self.questions.put(route, doubt, ask).await
    }

    fn question(&self, id: &RecordId, key: Option<&str>) -> Option<Request<()>> {
        let mut question = Request::new(());
        *question.method_mut() = Method::GET;
        *question.uri_mut() = self.rules.url.fill(id, key)?;
        question.headers_mut().clone_from(&self.rules.headers);
        Some(question)
    }

    fn read(&self, answer: Answer, route: &Route) -> Result<Found, http::StatusCode> {
        let Answer { status, mut headers, body } = answer;
        if self.rules.not_executed.contains(&status.as_u16()) {
            return Ok(Found::NotExecuted);
        }
        if !self.rules.executed.contains(&status.as_u16()) {
            return Err(status);
        }
        if self.rules.ack {
            return Ok(Found::Executed(Outcome { status: 200, ..Outcome::default() }));
        }
        replay::strip_own(&mut headers, route);
        Ok(Found::Executed(replay::completed(replay::outcome_of(status, &headers, route), body, None)))
    }
}
