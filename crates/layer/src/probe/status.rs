//! Asks the upstream's own books whether a request took effect of which nobody knows (the step `probe` of
//! `on_unknown`).
//!
//! One status URL, asked by GET. A status that is listed says that it was executed, and the answer becomes the record's;
//! another listed one says that it was not; anything else, a redirect too, says nothing. Whoever asks about the same
//! record at the same time shares the question. What was found is written by whoever asked, against the record as he
//! had read it: a late answer or an operator wins.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request};
use onceward_core::{decide::Found, key::RecordId, outcome::Outcome, policy::Step};
use tokio::sync::Semaphore;

use super::{Doubt, ProbeUrl, told};
use crate::{
    ask::{Answer, Client},
    body::BoxError,
    exchange::chain,
    once::Once,
    replay,
    route::Route,
};

/// Questions of one kind at a time; further ones wait, within their time.
const ASKING_MAX: usize = 64;

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
    once: Once<Doubt, Found>,
    asking: Semaphore,
}

impl Probe {
    /// Asks by `rules` over `client`.
    #[must_use]
    pub fn new(client: Arc<dyn Client>, rules: ProbeRules) -> Self {
        Self { client, rules, once: Once::default(), asking: Semaphore::new(ASKING_MAX) }
    }

    /// The step of `on_unknown` that asks it, not before `quiesce` after the outcome became unknown.
    #[must_use]
    pub fn step(&self, quiesce: Duration) -> Step {
        Step::Probe { quiesce, unattended: !self.rules.url.needs_key() }
    }
}

impl Probe {
    /// Asks about the request that was executed under `key`, spelled as the upstream was sent it.
    pub(super) async fn ask(self: &Arc<Self>, route: &Arc<Route>, key: Option<&str>, doubt: Doubt) -> Found {
        let (id, _, _) = doubt;
        let Some(question) = self.question(&id, key) else {
            tracing::debug!(record = %id.short(), route = %route.name, "the status URL has no place for this key");
            return Found::Nothing;
        };
        let (probe, route) = (Arc::clone(self), Arc::clone(route));
        let found = self.once.join(doubt, move || async move {
            let found = probe.put(question, &route, &id).await;
            told(&found, "probe", &id, &route);
            found
        });
        found.await
    }

    fn question(&self, id: &RecordId, key: Option<&str>) -> Option<Request<()>> {
        let mut question = Request::new(());
        *question.method_mut() = Method::GET;
        *question.uri_mut() = self.rules.url.fill(id, key)?;
        question.headers_mut().clone_from(&self.rules.headers);
        Some(question)
    }

    async fn put(&self, question: Request<()>, route: &Route, id: &RecordId) -> Found {
        let answer = async {
            let _permit = self.asking.acquire().await?;
            self.client.ask(question, route.recorded_body_bytes_max).await
        };
        let why: BoxError = match tokio::time::timeout(self.rules.timeout, answer).await {
            Ok(Ok(answer)) => match self.read(answer, route) {
                Ok(found) => return found,
                Err(status) => format!("its answer {status} says nothing").into(),
            },
            Ok(Err(error)) => error,
            Err(_late) => "it did not answer in time".into(),
        };
        tracing::warn!(record = %id.short(), route = %route.name, error = %chain(&*why), "the status URL could not say what became of a request");
        Found::Nothing
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
