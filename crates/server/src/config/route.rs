//! What a route says, every value resolved: from the route, else from `[defaults]`, else the
//! product's default. Plain data; the meaning of each key stands in PROTOCOL sections 3 to 5.

use core::{fmt, time::Duration};

use http::{HeaderName, Method, Uri};
use onceward_core::policy::{Outage, Policy, Recording, Step};

use onceward::{
    ProbeUrl,
    pattern::Pattern,
    store::{Durability, effects::Rows},
};

use super::{Database, secret::Secret};

/// The name of the route that treats what no other route matches.
pub const DEFAULT_ROUTE: &str = "default";

/// A route. All durations are positive unless said otherwise, and aligned with each other as
/// `config timeouts` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// `[a-z0-9-]`, 1 to 64, unique. [`DEFAULT_ROUTE`] for the one made of `[defaults]` alone.
    pub name: String,
    /// Which requests are this route's. For the route `default` only its methods count.
    pub matching: Match,
    /// The name of one of the configuration's upstreams. `None` only on the route `default`, where
    /// there are several upstreams and no `default_upstream`: such a request is 404 `no-route`.
    pub upstream: Option<String>,
    /// Whether requests are protected, only watched, or let through.
    pub mode: Mode,
    /// Where the key comes from, and what it must be.
    pub key: KeyConfig,
    /// Within what a key counts.
    pub scope: ScopeConfig,
    /// How credentials are checked, where they are.
    pub auth: Option<AuthConfig>,
    /// What makes two requests the same.
    pub fingerprint: FingerprintConfig,
    /// How long a settled key is remembered, from its completion.
    pub retention: Duration,
    /// How long body and trailers of an answer are; as long as the key where `None`. Not more than `retention`.
    pub retention_body: Option<Duration>,
    /// Each replay extends the retention.
    pub sliding: bool,
    /// So long after completion at most, where `sliding`. Not less than `retention` then.
    pub retention_max: Duration,
    /// After so long an unknown outcome is settled as failed.
    pub unknown_max: Duration,
    /// How long clients keep trying; may be zero.
    pub client_retries: Duration,
    /// How long a holder's right lasts without renewal.
    pub lease: Duration,
    /// Spends a write to tell a claim that was never sent from one that was.
    pub two_phase_dispatch: bool,
    /// To the upstream's head.
    pub timeout: Duration,
    /// To the end of an answer that is kept.
    pub execution_max: Duration,
    /// Between two bytes of an answer that is not kept.
    pub idle_timeout: Duration,
    /// How long an answer waits for its record to be safe.
    pub record_wait: Duration,
    /// What a repetition does while the first one runs.
    pub in_flight: InFlight,
    /// Which answers are recorded.
    pub recording: Recording,
    /// `Set-Cookie` is recorded and replayed.
    pub set_cookie: bool,
    /// What a replay looks like.
    pub replay: Replay,
    /// The status for a key that comes back with another request: 422, 409 or 400.
    pub mismatch_status: u16,
    /// What a request does that meets an unknown outcome, in order. Not empty; a step that ends
    /// the list comes last.
    pub on_unknown: Vec<Step>,
    /// Who is asked by [`Step::Probe`]; there whenever that is in the list.
    pub probe: Option<ProbeConfig>,
    /// Where [`Step::Effect`] looks; there whenever that is in the list.
    pub effect: Option<EffectConfig>,
    /// How many attempts [`Step::Retry`] adds at most.
    pub retry_max: u32,
    /// What to do when the store does not answer before a claim.
    pub on_store_outage: Outage,
    /// New keys are refused for `client_retries` after a loss of the store, which may have lost them.
    pub quarantine: bool,
    /// How its records are kept, where the store offers more than one way.
    pub durability: Durability,
    /// How large bodies may be.
    pub limits: RouteLimits,
    /// Which key the upstream is sent.
    pub forward_key: ForwardKey,
}

impl RouteConfig {
    /// What the core's decision needs of it.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            retention: self.retention,
            retention_body: self.retention_body,
            sliding_max: self.sliding.then_some(self.retention_max),
            lease: self.lease,
            two_phase_dispatch: self.two_phase_dispatch,
            on_unknown: self.on_unknown.clone(),
            retry_max: self.retry_max,
            unknown_max: self.unknown_max,
            on_store_outage: self.on_store_outage,
            recording: self.recording.clone(),
        }
    }
}

/// Which requests are a route's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Not empty. GET, HEAD, OPTIONS and TRACE are routed by it and never protected.
    pub methods: Vec<Method>,
    /// `/{*rest}` where the route names none.
    pub path: Pattern,
    /// In lower case, without a port. Any where `None`.
    pub host: Option<String>,
}

/// Whether requests are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Protected.
    Enforce,
    /// Claimed and compared, but always forwarded and never made to wait.
    Observe,
    /// Forwarded as if there were no key.
    Off,
}

/// Where the key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyConfig {
    /// Not empty, at most 16. Those present in a request must agree.
    pub from: Vec<KeySource>,
    /// What to do with a request that has none.
    pub missing: Missing,
    /// Only an RFC 9651 String is taken.
    pub strict: bool,
    /// In bytes, 1 to 255.
    pub min_length: usize,
    /// The retention of derived keys.
    pub derived_retention: Duration,
    /// A URL that describes the route's keys, for the answer to a missing one.
    pub docs: Option<String>,
}

/// One place where a key may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `header:NAME`
    Header(HeaderName),
    /// `json:/pointer`: an RFC 6901 pointer, not empty, without `*`.
    Json(String),
    /// `form:NAME`
    Form(String),
    /// `query:NAME`
    Query(String),
}

impl fmt::Display for KeySource {
    /// As the file spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
            Self::Form(name) => write!(f, "form:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
        }
    }
}

/// What to do with a request that has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Forward it unprotected.
    Optional,
    /// 400 `missing-key`.
    Required,
    /// Its fingerprint is its key.
    Derive,
}

/// Within what a key counts, besides the route's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeConfig {
    /// Whose it is.
    pub tenant: ScopePart,
    /// Production, staging, a test.
    pub env: ScopePart,
    /// Who asks.
    pub principal: Principal,
}

/// A part of the scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopePart {
    /// `fixed:VALUE`: the same for every request. 1 to 64 bytes of visible ASCII.
    Fixed(String),
    /// `header:NAME`, believed from trusted peers only.
    Header(HeaderName),
}

impl fmt::Display for ScopePart {
    /// As the file spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => write!(f, "fixed:{value}"),
            Self::Header(name) => write!(f, "header:{name}"),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// `auto`: by the stable credential in the request.
    Auto,
    /// `none`: all callers are one.
    None,
    /// Joined in order; not empty, at most 8.
    Parts(Vec<PrincipalPart>),
}

/// A part of the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrincipalPart {
    /// `header:NAME`
    Header(HeaderName),
    /// `cookie:NAME`
    Cookie(String),
    /// `mtls`: the subject of the client's certificate.
    Mtls,
}

impl fmt::Display for PrincipalPart {
    /// As the file spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Mtls => f.write_str("mtls"),
        }
    }
}

/// How credentials are checked before a claim and before a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// Who is asked; absolute.
    pub url: Uri,
    /// What is sent along besides the credentials.
    pub headers: Vec<HeaderName>,
    /// How long a 2xx counts for requests that send the same; zero asks for each.
    pub cache: Duration,
    /// For a question and its answer.
    pub timeout: Duration,
    /// The header of the answer that names the caller.
    pub principal_header: Option<HeaderName>,
}

/// How it is asked whether a request took effect of which nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Who is asked.
    pub url: ProbeUrl,
    /// Statuses that say that it took effect. None of them is a redirect or an error of a server, nor in the other list.
    pub executed: Vec<u16>,
    /// Statuses that say that it did not. One of the lists is not empty.
    pub not_executed: Vec<u16>,
    /// Not before so long after the outcome became unknown.
    pub quiesce: Duration,
    /// For a question and its answer.
    pub timeout: Duration,
    /// What repeats of an executed request get.
    pub replay: ReplayBody,
    /// Sent along; their values are shown nowhere.
    pub headers: Vec<(HeaderName, Secret)>,
}

/// Where it is looked for whether a request took effect of which nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectConfig {
    /// The database where the upstream writes its effects down; that of the records where `None`.
    pub database: Option<Database>,
    /// What the upstream calls it.
    pub name: String,
    /// For one look.
    pub timeout: Duration,
    /// A table of the upstream's own.
    pub rows: Option<Rows>,
}

/// What makes two requests the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintConfig {
    /// Keyed with the install secret.
    pub hash: Hash,
    /// How the body counts.
    pub body: FingerprintBody,
    /// These do not count. Empty where `keep` is not.
    pub strip: Vec<Field>,
    /// Only these count, where there are any.
    pub keep: Vec<Field>,
    /// These must be there.
    pub require: Vec<Field>,
    /// Pointers of arrays that are multisets.
    pub unordered: Vec<String>,
    /// Headers that count, sorted, each once.
    pub headers: Vec<HeaderName>,
    /// The query counts with its pairs sorted.
    pub sort_query: bool,
    /// Compressed bodies count by their content.
    pub decode: bool,
    /// How many members a record keeps digests of, so that a mismatch can name them. 0 to 64.
    pub fields: usize,
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// An RFC 6901 pointer into the JSON body, not empty; a token `*` stands for any element.
    Pointer(String),
    /// `query:NAME`
    Query(String),
    /// `form:NAME`
    Form(String),
}

/// A keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// BLAKE3, keyed.
    Blake3,
    /// HMAC-SHA-256.
    Sha256,
}

/// How the body counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FingerprintBody {
    /// In canonical form.
    Canonical,
    /// Byte for byte.
    Raw,
    /// Not at all.
    None,
}

/// What a repetition does while the first one runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// How long it waits, at most `timeout`; zero: not at all.
    pub wait: Duration,
    /// How many wait for one key at most.
    pub waiters_per_key: usize,
}

/// What a replay looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Its body.
    pub body: ReplayBody,
    /// The header that marks it.
    pub header: HeaderName,
}

/// The body of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayBody {
    /// Status, headers and body as recorded.
    Recorded,
    /// 200 and an empty body.
    Ack,
}

/// How large bodies may be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLimits {
    /// A larger request is 413 `body-too-large`.
    pub request_body: u64,
    /// A larger answer is recorded without its body.
    pub recorded_body: u64,
}

/// Which key the upstream is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardKey {
    /// As the client spelled it.
    Same,
    /// A child key named after the upstream.
    Derived,
}
