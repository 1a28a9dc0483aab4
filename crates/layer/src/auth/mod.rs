//! Credentials are checked before a claim and before a replay, as nginx's `auth_request` does it.
//!
//! The service is sent a GET without the body, with the request's credentials. 2xx lets the request on; anything else
//! is the client's answer; and where nobody answers, nothing is claimed and nothing replayed. Each request is checked
//! once, when it arrives: one that then waits for the first to end is not checked again after its wait.

mod cache;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header, request::Parts};
use tokio::{sync::Semaphore, time::Instant};

use self::cache::{Cache, QuestionId};
use crate::{
    ask::{self, Answer, Client},
    body::{Body, BoxError},
    exchange::chain,
    metrics::{AuthResult, Metrics},
    once::Once,
    replay,
    route::Route,
};

const ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
const ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
/// Where credentials stand, sent along without being listed.
const CREDENTIALS: [HeaderName; 4] =
    [header::AUTHORIZATION, header::COOKIE, HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];
/// A refusal's body for the client; a longer one is left out.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The caller as the service names it.
const PRINCIPAL_BYTES_MAX: usize = 1024;
/// Questions to one service at a time; further ones wait, within their time.
const ASKING_MAX: usize = 1024;

/// How credentials are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthRules {
    /// Who is asked; absolute.
    pub url: Uri,
    /// Headers that are sent along, besides `Authorization`, `Cookie`, `X-Api-Key` and `Api-Key`.
    pub headers: Vec<HeaderName>,
    /// How long a 2xx counts for requests that would send the same; zero asks for each.
    pub cache: Duration,
    /// For a question and its answer.
    pub timeout: Duration,
    /// The header of the answer that names the caller.
    pub principal_header: Option<HeaderName>,
}

impl AuthRules {
    /// Asks `url`, with the defaults of the configuration.
    #[must_use]
    pub fn new(url: Uri) -> Self {
        Self {
            url,
            headers: Vec::new(),
            cache: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            principal_header: None,
        }
    }
}

/// A check of credentials. Routes that check alike share one, and what it remembers.
#[derive(Debug)]
pub struct Auth {
    client: Arc<dyn Client>,
    rules: AuthRules,
    cache: Cache,
    once: Once<QuestionId, Verdict>,
    asking: Semaphore,
}

/// What became of a check.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// The request may go on; whose it is, where the service says that.
    Allowed(Option<Arc<str>>),
    /// This is the client's answer.
    Refused(Arc<Answer>),
    /// Nobody could tell.
    Unavailable,
}

impl Auth {
    /// Checks by `rules` over `client`.
    ///
    /// # Panics
    /// Where the operating system has no random numbers to give.
    #[must_use]
    pub fn new(client: Arc<dyn Client>, rules: AuthRules) -> Self {
        Self { client, rules, cache: Cache::new(), once: Once::default(), asking: Semaphore::new(ASKING_MAX) }
    }

    /// The header by which the service, instead of the request, says who the caller is.
    #[must_use]
    pub fn names_the_caller(&self) -> Option<&HeaderName> {
        self.rules.principal_header.as_ref()
    }

    /// Checks a request by its head.
    pub(crate) async fn check(self: &Arc<Self>, head: &Parts, metrics: &Metrics) -> Verdict {
        let question = self.question(head);
        if self.rules.cache.is_zero() {
            let verdict = self.ask(question).await;
            metrics.auth(result_of(&verdict));
            return verdict;
        }
        let id = self.cache.id(&question);
        if let Some(principal) = self.cache.look(id, Instant::now()) {
            metrics.auth(AuthResult::Cached);
            return Verdict::Allowed(principal);
        }
        let this = Arc::clone(self);
        let verdict = self.once.join(id, || async move { this.ask_and_remember(id, question).await }).await;
        metrics.auth(result_of(&verdict));
        verdict
    }

    async fn ask_and_remember(&self, id: QuestionId, question: Request<()>) -> Verdict {
        // It is true from before it was said.
        let asked = Instant::now();
        // An answer to others may have come since it was looked for.
        if let Some(principal) = self.cache.look(id, asked) {
            return Verdict::Allowed(principal);
        }
        let verdict = self.ask(question).await;
        // A refusal is not remembered: whoever has just been let in must not wait for it to be forgotten, and a flood
        // of bad credentials must not push out the good ones.
        if let Verdict::Allowed(principal) = &verdict {
            self.cache.allow(id, principal.clone(), asked + self.rules.cache);
        }
        verdict
    }

    async fn ask(&self, question: Request<()>) -> Verdict {
        let answer = async {
            let _permit = self.asking.acquire().await?;
            self.client.ask(question, ANSWER_BYTES_MAX).await
        };
        let why: BoxError = match tokio::time::timeout(self.rules.timeout, answer).await {
            Ok(Ok(answer)) if answer.status.is_success() => match self.caller(&answer.headers) {
                Ok(principal) => return Verdict::Allowed(principal),
                Err(why) => why.into(),
            },
            Ok(Ok(answer)) if answer.status.is_server_error() => format!("it answered {}", answer.status).into(),
            Ok(Ok(answer)) => return Verdict::Refused(Arc::new(answer)),
            Ok(Err(error)) => error,
            Err(_late) => "it did not answer in time".into(),
        };
        let host = self.rules.url.host().unwrap_or_default();
        tracing::warn!(host, error = %chain(&*why), "the service that checks credentials is no help; nothing is claimed");
        Verdict::Unavailable
    }

    /// Whose the request is, where the service is to say that. One that then does not has not answered.
    fn caller(&self, headers: &HeaderMap) -> Result<Option<Arc<str>>, String> {
        let Some(name) = &self.rules.principal_header else { return Ok(None) };
        let mut lines = headers.get_all(name).iter();
        let value = lines.next().ok_or_else(|| format!("its answer lacks {name}"))?;
        if lines.next().is_some() {
            return Err(format!("its answer has {name} on more than one line"));
        }
        match value.to_str() {
            Ok(value) if (1..=PRINCIPAL_BYTES_MAX).contains(&value.len()) => Ok(Some(value.into())),
            _ => Err(format!("{name} of its answer is not 1 to {PRINCIPAL_BYTES_MAX} visible ASCII characters")),
        }
    }

    fn question(&self, head: &Parts) -> Request<()> {
        let mut question = Request::new(());
        *question.method_mut() = Method::GET;
        *question.uri_mut() = self.rules.url.clone();
        let headers = question.headers_mut();
        for name in CREDENTIALS.iter().chain(&self.rules.headers) {
            if !headers.contains_key(name) {
                for value in head.headers.get_all(name) {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        // Last: a client does not say what it asks for.
        let method = HeaderValue::from_str(head.method.as_str());
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        for (name, value) in [(ORIGINAL_METHOD, method), (ORIGINAL_URI, HeaderValue::from_str(target))] {
            headers.remove(&name);
            if let Ok(value) = value {
                headers.insert(name, value);
            }
        }
        question
    }
}

fn result_of(verdict: &Verdict) -> AuthResult {
    match verdict {
        Verdict::Allowed(_) => AuthResult::Allowed,
        Verdict::Refused(_) => AuthResult::Refused,
        Verdict::Unavailable => AuthResult::Unavailable,
    }
}

/// A refusal, for the client: as the service said it, but for what belongs to its connection and what only Onceward
/// says.
pub(crate) fn refusal(answer: &Answer, route: &Route, request_id: &HeaderValue) -> Response<Body> {
    let mut response = Response::new(answer.body.clone().map_or_else(Body::empty, Body::full));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.clone_from(&answer.headers);
    ask::strip_connection(headers);
    replay::strip_own(headers, route);
    if answer.body.is_none() {
        headers.remove(header::CONTENT_TYPE);
        headers.remove(header::CONTENT_ENCODING);
    }
    headers.insert(replay::REQUEST_ID, request_id.clone());
    response
}
