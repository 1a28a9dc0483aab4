//! `run_once` for jobs and consumers: the same claims, without HTTP.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use onceward_core::{
    claim::{Belongs, Claim, Event, Sent},
    decide::{Ask, Refusal},
    key::{RecordId, Scope},
    outcome::Outcome,
    policy::{Class, Policy},
};
use std::sync::atomic::AtomicBool;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    drive::{self, Grant, Obtained, Recorded, Terms},
    engine::{Engine, new_claim_id},
    quota::QuotaLimit,
};

/// A job's caller waits for the record anyway; after so long it is said in the log.
const RECORD_WAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Jobs of one queue: each key's work is done once within the policy's retention.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use onceward::{Engine, Jobs, JobError, Limits, Policy, Route, Routes, Secret, store::memory::Memory};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let store = Arc::new(Memory::default());
/// let routes = Routes::new(vec![], Route::new("default"));
/// let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
/// let jobs = Jobs::new(engine, "invoices", Policy::default(), Duration::from_secs(5));
/// for expected_replay in [false, true] {
///     let done = jobs
///         .run_once("invoice-17", b"{\"amount\":100}", |_run| async { Ok::<_, JobError<std::io::Error>>("sent".into()) })
///         .await
///         .unwrap();
///     assert_eq!(done.output, "sent");
///     assert_eq!(done.replayed, expected_replay);
/// }
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct Jobs {
    engine: Engine,
    queue: Arc<str>,
    policy: Arc<Policy>,
    wait: std::time::Duration,
    in_flight: Arc<Semaphore>,
}

/// One execution of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// 1 for the first.
    pub attempt: u32,
    /// Larger with each execution of the key: what the job writes to should refuse a smaller one.
    pub fence: u64,
    /// The record's id, for whoever checks the fence.
    pub record: RecordId,
}

/// A job that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What the work returned, the first time.
    pub output: Bytes,
    /// Whether the work was done before.
    pub replayed: bool,
}

/// How work fails. The difference decides whether it runs again.
#[derive(Debug, thiserror::Error)]
pub enum JobError<E: std::error::Error + 'static> {
    /// Nothing was done: the next call runs it again.
    #[error("nothing was done")]
    NotDone(#[source] E),
    /// It may have been done: held until somebody settles it, or run again where the policy says so.
    #[error("it may have been done")]
    Unknown(#[source] E),
    /// It has failed for good: no call runs it again.
    #[error("it failed for good")]
    Failed(#[source] E),
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError<E: std::error::Error + 'static> {
    /// Somebody runs it, and did not finish within the wait.
    #[error("the job still runs elsewhere")]
    InFlight,
    /// It may have been done, and nobody knows.
    #[error("the outcome of an earlier run is unknown")]
    OutcomeUnknown,
    /// The key was used with another input.
    #[error("the key was used with another input")]
    KeyReused,
    /// It was settled as failed.
    #[error("the job was settled as failed")]
    Failed,
    /// It was erased on request.
    #[error("the key was erased")]
    Gone,
    /// The key was settled by somebody else while the work ran; its output is not the key's.
    #[error("the claim was lost while the job ran")]
    ClaimLost,
    /// The store did not answer: nothing was run.
    #[error("the store is unavailable")]
    StoreUnavailable,
    /// The tenant `default`, whose all jobs are, has reached this limit of its quota, for about so long: nothing was run.
    #[error("the tenant is over its quota")]
    OverQuota(QuotaLimit, std::time::Duration),
    /// The work panicked or was aborted: the outcome is unknown.
    #[error("the job panicked")]
    Panicked,
    /// The work failed.
    #[error(transparent)]
    Job(JobError<E>),
}

impl Jobs {
    /// Jobs of the queue named `queue`. A call waits up to `wait` for another one of the same key.
    #[must_use]
    pub fn new(engine: Engine, queue: &str, policy: Policy, wait: std::time::Duration) -> Self {
        let in_flight = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let policy = Arc::new(policy);
        engine.0.know_queue(queue, &policy);
        Self { engine, queue: queue.into(), policy, wait, in_flight }
    }

    /// Runs `work` once for `key`; every later call gets its output. `input` is what must be the
    /// same each time; a key that comes with another is refused.
    ///
    /// The work runs on a task of the engine: dropping the returned future does not stop it, and
    /// [`Engine::drain`] waits for it. Its lease is renewed while it runs.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run_once<W, F, E>(&self, key: &str, input: &[u8], work: W) -> Result<Done, RunError<E>>
    where
        W: FnOnce(Run) -> F + Send + 'static,
        F: Future<Output = Result<Bytes, JobError<E>>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let this = self.clone();
        let scope = Scope { tenant: "default", env: "default", principal: "job", route: &self.queue };
        let id = RecordId::derive(self.engine.secret(), &scope, key);
        // The input is bound to its queue by the record, and keyed by the secret.
        let input_scope = Scope { tenant: "", env: "", principal: "input", route: &self.queue };
        let digest = onceward_core::fingerprint::unkeyed_blake3(input);
        let fingerprint = RecordId::derive(self.engine.secret(), &input_scope, &digest.to_string()).0;
        let task = self.engine.0.tracker.spawn(async move { this.run(id, fingerprint, work).await });
        task.await.unwrap_or(Err(RunError::Panicked))
    }

    async fn run<W, F, E>(&self, id: RecordId, fingerprint: [u8; 32], work: W) -> Result<Done, RunError<E>>
    where
        W: FnOnce(Run) -> F + Send + 'static,
        F: Future<Output = Result<Bytes, JobError<E>>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let ask = Ask {
            claim_id: new_claim_id(),
            session: self.engine.0.session,
            principal_proof: None,
            vouched: false,
            fingerprint_policy: 0,
            fingerprint,
        };
        let belongs = Belongs { route: self.queue.to_string(), tenant: "default".into(), env: "default".into() };
        let (mut claim, first) = Claim::new(Arc::clone(&self.policy), ask, belongs, Vec::new());
        let terms = Terms {
            lease: self.policy.lease,
            wait: self.wait,
            waiters_per_key: 1024,
            in_flight: &self.in_flight,
            books: None,
            only_there: false,
            quarantine: None,
            takes_turns: true,
        };
        let finish = AtomicBool::new(true);
        let obtained = drive::obtain(&self.engine, id, &mut claim, first, terms, None, &finish).await;
        match obtained {
            Obtained::Granted(grant) => self.execute(id, claim, grant, work).await,
            Obtained::Replay { record, .. } => match record.facts.outcome {
                Some(outcome) if record.facts.state == onceward_core::record::State::Completed => {
                    Ok(Done { output: outcome.body, replayed: true })
                }
                _ => Err(RunError::Failed),
            },
            Obtained::Refused { refusal, .. } => Err(match refusal {
                Refusal::InFlight | Refusal::RetryLater(_) => RunError::InFlight,
                Refusal::OutcomeUnknown => RunError::OutcomeUnknown,
                Refusal::KeyReused | Refusal::PrincipalChanged => RunError::KeyReused,
                Refusal::Failed | Refusal::ResponseNotKept { .. } => RunError::Failed,
                Refusal::KeyGone => RunError::Gone,
                Refusal::ClaimLost => RunError::ClaimLost,
                _ => RunError::StoreUnavailable,
            }),
            Obtained::OverQuota(over) => {
                self.engine.0.metrics.over_quota(over.limit);
                Err(RunError::OverQuota(over.limit, over.after))
            }
            Obtained::Absent | Obtained::Overloaded | Obtained::Unprotected => Err(RunError::StoreUnavailable),
        }
    }

    async fn execute<W, F, E>(&self, id: RecordId, mut claim: Claim, grant: Grant, work: W) -> Result<Done, RunError<E>>
    where
        W: FnOnce(Run) -> F + Send + 'static,
        F: Future<Output = Result<Bytes, JobError<E>>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        use futures_util::FutureExt;
        let _executing = self.engine.executing();
        let Grant { owner, fence, attempt, clock, .. } = grant;
        if !drive::still_holds(&self.engine, id, &claim, clock, self.policy.lease, &owner).await {
            return Err(RunError::ClaimLost);
        }
        let started = Instant::now();
        let run = Run { attempt, fence: fence.0, record: id };
        let work = std::panic::AssertUnwindSafe(async move { work(run).await }).catch_unwind();
        let result = tokio::select! {
            biased;
            result = work => result,
            () = drive::renew(&self.engine, id, &claim, self.policy.lease, &owner) => unreachable!("renewal does not end by itself"),
        };
        self.engine.0.metrics.executed_in(&self.queue, started.elapsed());
        let answered = |class, output: Bytes| Event::Answered {
            class,
            outcome: Outcome { status: 200, body: output, ..Outcome::default() },
            retention: None,
            now: clock.now(),
        };
        let event = match &result {
            Ok(Ok(output)) => answered(Class::Record, output.clone()),
            Ok(Err(JobError::NotDone(_))) => Event::UpstreamFailed(Sent::No),
            Ok(Err(JobError::Failed(_))) => answered(Class::Fail, Bytes::new()),
            Ok(Err(JobError::Unknown(_))) | Err(_) => Event::UpstreamFailed(Sent::Maybe),
        };
        let action = claim.on(event);
        let recorded = drive::record(&self.engine, id, &mut claim, action, owner, RECORD_WAIT, || {}).await;
        match (result, recorded) {
            (Err(_), _) => Err(RunError::Panicked),
            (Ok(Err(error)), _) => Err(RunError::Job(error)),
            (Ok(Ok(output)), Recorded::Answer) => Ok(Done { output, replayed: false }),
            (Ok(Ok(_)), Recorded::Replay(record)) => {
                Ok(Done { output: record.facts.outcome.unwrap_or_default().body, replayed: true })
            }
            (Ok(Ok(_)), Recorded::Lost) => Err(RunError::ClaimLost),
        }
    }
}
