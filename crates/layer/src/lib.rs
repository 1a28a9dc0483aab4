//! Each request takes effect once: a client that gets no answer sends again, and every repetition
//! gets the first one's answer.
//!
//! A tower [`Layer`] does it for axum, hyper and tonic servers, [`Jobs::run_once`] for jobs and
//! message consumers. Both claim a key in a [`store`], execute, and record the outcome under the
//! claim's fence.
//!
//! ```
//! # use std::sync::Arc;
//! use onceward::{Engine, Layer, Limits, Route, Routes, Secret, store::memory::Memory};
//! use axum::{Router, routing::post};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let engine = Engine::new(
//!     Arc::new(Memory::default()),
//!     Secret::from_bytes([7; 32]),
//!     Routes::new(vec![], Route::new("default")),
//!     Limits::default(),
//!     Engine::new_session(),
//! );
//! let app: Router = Router::new()
//!     .route("/v1/payments", post(|| async { "charged" }))
//!     .layer(Layer::new(engine.clone()));
//! # let _ = app;
//! # }
//! ```
//!
//! # Layout, in the order of a request
//!
//! `service` is the route covered · `request` key, principal, bounded body, fingerprint · `auth` credentials checked by
//! somebody else, [`ask`] how somebody else is asked · `drive`
//! runs the claim against the store, `abandon` frees one that was never used, `anew` makes one again that the store lost · `quota` what a tenant may claim · `wait` where a duplicate in flight waits · `exchange` one
//! execution · `capture` reads the answer · `replay` answers from a record · `remember`, `remembering` answers of the store that this process holds for its
//! outages · `outage`, `pace` who comes after one, and when · `refuse` the only
//! place that says a status of our own · [`grpc`] what gRPC says otherwise · `detach` work that
//! outlives its client · `observe` shadow mode, on the copies that `tee` makes · `run_once` jobs.

mod abandon;
mod anew;
pub mod ask;
mod auth;
mod body;
mod caller;
mod capture;
mod coding;
mod detach;
mod drive;
mod engine;
mod exchange;
mod explain;
pub mod failing_store;
pub mod failpoint;
pub mod grpc;
mod layer;
mod metrics;
mod observe;
mod once;
mod outage;
mod pace;
pub mod pattern;
mod policies;
mod probe;
mod quota;
pub mod reconcile;
mod refuse;
mod rekey;
mod remember;
mod remembering;
mod replay;
mod request;
pub mod route;
mod run_once;
mod service;
mod settle;
mod spool;
mod sync;
mod tee;
mod told;
#[cfg(any(feature = "tokio-postgres", feature = "sqlx"))]
pub mod transaction;
mod wait;

pub use onceward_core::{
    canonical::{BodyRule, Pointer, RuleError, RuleSet, Rules},
    claim::SettledBy,
    fingerprint::Hash,
    key::{KeyRules, RecordId, Secret, SecretId},
    policy::{Outage, Policy, Preset, Recording, Step},
};
pub use onceward_store as store;

pub use self::{
    auth::{Auth, AuthRules},
    body::{Body, BoxError},
    engine::{Engine, Limits},
    exchange::NotSent,
    explain::{Explained, ExplainedScope},
    layer::Layer,
    observe::Unanswered,
    probe::{EffectRules, Effects, InvalidProbeUrl, Probe, ProbeRules, ProbeUrl},
    quota::{Quota, QuotaLimit, Quotas},
    refuse::{Details, Problem},
    rekey::Rekeyed,
    request::{PeerCertificate, TrustedPeer, earlier::Before},
    route::{Mode, Route, Routes},
    run_once::{Done, JobError, Jobs, Run, RunError},
    service::{Covered, Service},
    told::Told,
};
