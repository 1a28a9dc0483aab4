//! Asks the upstream's own books whether a request took effect of which nobody knows (the step `probe` of
//! `on_unknown`).
//!
//! One status URL, asked by GET. A status that is listed says that it was executed, and the answer becomes the record's;
//! another listed one says that it was not; anything else, a redirect too, says nothing. Whoever asks about the same
//! record at the same time shares the question. What was found is written by whoever asked, against the record as he
//! had read it: a late answer or an operator wins.

mod url;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request};
use onceward_core::{
    decide::Found,
    key::{self, ClientKey, RecordId},
    outcome::Outcome,
    policy::Step,
    record::{Fence, Revision},
};
use tokio::sync::Semaphore;

pub use self::url::{InvalidProbeUrl, ProbeUrl};
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

/// What is asked about, all of it: of a record that has changed, the answer is another.
type Doubt = (RecordId, Fence, Revision);

/// A status URL, and how it is asked.
#[derive(Debug)]
pub struct Probe {
    client: Arc<dyn Client>,
    rules: ProbeRules,
    once: Once<Doubt, Found>,
    asking: Semaphore,
}

/// A request's way to its route's probe.
#[derive(Clone, Copy)]
pub(crate) struct Books<'a> {
    pub(crate) probe: &'a Arc<Probe>,
    pub(crate) route: &'a Arc<Route>,
    /// The client's key; none where it was derived from the request, or where there is no request.
    pub(crate) key: Option<&'a ClientKey>,
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

impl Books<'_> {
    /// Asks about a record as it was read.
    pub(crate) async fn ask(self, (id, fence, revision): Doubt) -> Found {
        let Some(question) = self.question(&id) else {
            tracing::debug!(record = %id.short(), route = %self.route.name, "the status URL has no place for this key");
            return Found::Nothing;
        };
        let (probe, route) = (Arc::clone(self.probe), Arc::clone(self.route));
        let found = self.probe.once.join((id, fence, revision), move || async move {
            let found = probe.put(question, &route, &id).await;
            tracing::info!(record = %id.short(), route = %route.name, found = word(&found), "an outcome was probed");
            metrics::counter!("onceward_probes_total", "route" => route.name.clone(), "found" => word(&found))
                .increment(1);
            found
        });
        found.await
    }

    /// The key is spelled as the upstream was sent it.
    fn question(self, id: &RecordId) -> Option<Request<()>> {
        let child = match (&self.route.forward_derived, self.key) {
            (Some(step), Some(key)) => Some(key::child_key(key.as_str(), step)),
            _ => None,
        };
        let key = child.as_deref().or(self.key.map(ClientKey::as_str));
        let mut question = Request::new(());
        *question.method_mut() = Method::GET;
        *question.uri_mut() = self.probe.rules.url.fill(id, key)?;
        question.headers_mut().clone_from(&self.probe.rules.headers);
        Some(question)
    }
}

impl Probe {
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

fn word(found: &Found) -> &'static str {
    match found {
        Found::Executed(_) => "executed",
        Found::NotExecuted => "not_executed",
        Found::Nothing => "nothing",
    }
}
