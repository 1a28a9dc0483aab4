//! `run_once` over the memory store: what a worker and its queue see.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onceward::{
    Done, Engine, JobError, Jobs, Limits, Policy, Route, Routes, RunError, Secret, Step, store::memory::Memory,
};
use tokio::sync::{Notify, Semaphore};

struct Rig {
    engine: Engine,
    jobs: Jobs,
    runs: Arc<AtomicUsize>,
    started: Arc<Notify>,
    gate: Arc<Semaphore>,
}

impl Rig {
    fn new(policy: Policy) -> Self {
        let routes = Routes::new(vec![], Route::new("default"));
        let store = Arc::new(Memory::default());
        let engine = Engine::new(store, Secret::from_bytes([7; 32]), routes, Limits::default(), Engine::new_session());
        let jobs = Jobs::new(engine.clone(), "queue", policy, Duration::from_secs(20));
        Self { engine, jobs, runs: Arc::default(), started: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
    }

    fn start(
        &self,
        result: Result<&'static str, fn(io::Error) -> JobError<io::Error>>,
    ) -> impl Future<Output = Result<Done, RunError<io::Error>>> + Send + 'static + use<> {
        let (jobs, runs, started, gate) =
            (self.jobs.clone(), Arc::clone(&self.runs), Arc::clone(&self.started), Arc::clone(&self.gate));
        async move {
            jobs.run_once("job-1", b"input", move |_run| async move {
                runs.fetch_add(1, Ordering::SeqCst);
                started.notify_one();
                gate.acquire().await.unwrap().forget();
                result
                    .map(|output| Bytes::from_static(output.as_bytes()))
                    .map_err(|kind| kind(io::Error::other("work failed")))
            })
            .await
        }
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn work_is_done_once_and_later_calls_get_its_output() {
    let rig = Rig::new(Policy::default());
    rig.gate.add_permits(9);
    let first = rig.start(Ok("done")).await.unwrap();
    let again = rig.start(Ok("other")).await.unwrap();
    assert_eq!((first.replayed, again.replayed), (false, true));
    assert_eq!(again.output, "done");
    assert_eq!(rig.runs(), 1);
}

#[tokio::test]
async fn two_at_once_are_one_run() {
    let rig = Rig::new(Policy::default());
    let first = tokio::spawn(rig.start(Ok("done")));
    rig.started.notified().await;
    let second = tokio::spawn(rig.start(Ok("done")));
    while rig.engine.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    rig.gate.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap().output, second.await.unwrap().unwrap().output);
    assert_eq!(rig.runs(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_work() {
    let rig = Rig::new(Policy::default());
    let first = tokio::spawn(rig.start(Ok("done")));
    rig.started.notified().await;
    first.abort();
    rig.gate.add_permits(1);
    assert!(rig.start(Ok("other")).await.unwrap().replayed);
    assert_eq!(rig.engine.drain(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn how_work_fails_decides_whether_it_runs_again() {
    let rig = Rig::new(Policy::default());
    rig.gate.add_permits(9);
    assert!(matches!(rig.start(Err(JobError::NotDone)).await, Err(RunError::Job(JobError::NotDone(_)))));
    assert!(matches!(rig.start(Err(JobError::Unknown)).await, Err(RunError::Job(JobError::Unknown(_)))));
    assert!(matches!(rig.start(Ok("done")).await, Err(RunError::OutcomeUnknown)));
    assert_eq!(rig.runs(), 2);
    let rig = Rig::new(Policy { on_unknown: vec![Step::Retry], ..Policy::default() });
    rig.gate.add_permits(9);
    assert!(rig.start(Err(JobError::Unknown)).await.is_err());
    assert!(matches!(rig.start(Err(JobError::Failed)).await, Err(RunError::Job(JobError::Failed(_)))));
    assert!(matches!(rig.start(Ok("done")).await, Err(RunError::Failed)));
    assert_eq!(rig.runs(), 2);
}

#[tokio::test]
async fn work_that_panics_leaves_the_outcome_unknown() {
    let rig = Rig::new(Policy::default());
    let panics = rig.jobs.run_once("job-1", b"input", |_| async { panic!("a defect") });
    let panicked: Result<Done, RunError<io::Error>> = panics.await;
    assert!(matches!(panicked, Err(RunError::Panicked)));
    assert!(matches!(rig.start(Ok("done")).await, Err(RunError::OutcomeUnknown)));
}

#[tokio::test]
async fn a_key_with_another_input_is_refused() {
    let rig = Rig::new(Policy::default());
    rig.gate.add_permits(9);
    rig.start(Ok("done")).await.unwrap();
    let other = rig.jobs.run_once("job-1", b"other input", |_| async { Ok::<_, JobError<io::Error>>(Bytes::new()) });
    assert!(matches!(other.await, Err(RunError::KeyReused)));
}

#[tokio::test]
async fn unknown_outcomes_of_a_queue_are_given_up_by_its_policy_without_a_caller() {
    let rig = Rig::new(Policy { on_unknown: vec![Step::Fail], ..Policy::default() });
    rig.gate.add_permits(9);
    assert!(rig.start(Err(JobError::Unknown)).await.is_err());
    assert_eq!(rig.engine.settle_unattended().await.unwrap(), 1);
    assert!(matches!(rig.start(Ok("done")).await, Err(RunError::Failed)));
}
