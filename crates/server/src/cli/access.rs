//! A command's way to the records: through a running process's admin listener, or the store itself where none runs.
//!
//! Both speak to the same routes, over a socket or inside this process.

use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use onceward::store::log::Holder;
use serde_json::Value;
use tower::ServiceExt;

use super::{Failure, args::TargetArgs};
use crate::{
    admin::Admin,
    assemble::Upstreams,
    compensate::Calls,
    config::{Config, Environment, Flags, secret::Secret},
    identity::Purpose,
    journaling::SPOOL_FOLDER,
    opened::{self, Opened},
    reconcile::Reconciler,
    start,
};

/// A way to the records.
#[expect(clippy::large_enum_variant, reason = "there is one in the process")]
pub(super) enum Access {
    /// A running process.
    Running {
        base: String,
        token: Option<Secret>,
        client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
    },
    /// The store itself, in this process.
    Here { router: Router, store: Opened },
}

impl Access {
    pub(super) async fn open(target: &TargetArgs) -> Result<Self, Failure> {
        let environment = Environment::of_process();
        let token = match &target.token {
            Some(token) => Some(token.follow(&environment).map_err(|why| Failure::usage(format!("--token: {why}")))?),
            None => None,
        };
        // The folder and the file name a store; an address names a process, which must have that store.
        let named_store = target.data.is_some() || target.config.is_some();
        if let Some(admin) = &target.admin
            && !named_store
        {
            return Ok(Self::running(admin, token));
        }
        let flags = Flags {
            data: target.data.clone(),
            upstream: target.config.is_none().then(|| "http://127.0.0.1:9000".into()),
            ..Flags::default()
        };
        let config = Config::load(target.config.as_deref(), &flags, &environment)?;
        let folder = &config.store.path;
        let held = match &config.store.journal {
            Some(_) => folder.join(SPOOL_FOLDER),
            None => folder.clone(),
        };
        let holder = Holder::of(&held).map_err(|error| {
            Failure::not_well(format!("{}: the lock file cannot be read: {error}", folder.display()))
        })?;
        match (&holder, &target.admin) {
            (Some(Holder { admin: Some(address), .. }), said) => {
                if let Some(said) = said
                    && !said.trim_end_matches('/').ends_with(address.as_str())
                {
                    return Err(Failure::usage(format!(
                        "--admin {said} and the store in {} differ: that store's process is at http://{address}",
                        folder.display()
                    )));
                }
                let token = match token {
                    Some(token) => Some(token),
                    None => Some(start::admin_token(&config)?),
                };
                Ok(Self::running(&format!("http://{address}"), token))
            }
            (Some(Holder { pid, admin: None }), _) => Err(Failure::not_well(format!(
                "process {pid} holds {} and has no admin listener yet; try again",
                folder.display()
            ))),
            (None, Some(said)) => Err(Failure::usage(format!(
                "--admin {said} and the store in {} differ: no process has that store open",
                folder.display()
            ))),
            (None, None) => {
                if !config.store.is_shared() && !folder.exists() {
                    return Err(Failure::usage(format!(
                        "there is no store in {}; name its folder with --data, or its configuration with --config",
                        folder.display()
                    )));
                }
                let (store, _) = opened::open(&config, false).await?;
                let upstreams = Upstreams::new(&config, &Upstreams::default()).map_err(start::StartError::from)?;
                // As in a running process, so that what is elsewhere is found too.
                let stack = opened::stack(&config, &store, |store| store).await?;
                let engine = start::engine(&config, &upstreams, stack.store, Purpose::Look)?;
                let calls = Calls::new(&config, upstreams.certificates());
                let reconciler = Arc::new(Reconciler::new(engine.clone(), &store, &config.reconcile, calls));
                let admin = Admin::new(engine, None, Secret::new(String::new()), None, Vec::new(), reconciler);
                Ok(Self::Here { router: admin.router(), store })
            }
        }
    }

    fn running(base: &str, token: Option<Secret>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self::Running { base: base.trim_end_matches('/').to_owned(), token, client }
    }

    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let base = match self {
            Self::Running { base, .. } => base.as_str(),
            Self::Here { .. } => "",
        };
        let mut request = Request::builder().method(method).uri(format!("{base}{path}"));
        if let Self::Running { token: Some(token), .. } = self {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Full::from(body.to_string())
            }
            None => Full::default(),
        };
        let request = request.body(body).map_err(|error| Failure::usage(format!("--admin {base}: {error}")))?;
        let (status, body) = match self {
            Self::Running { client, .. } => {
                let failed = |error: &dyn std::fmt::Display| {
                    Failure::not_well(format!("{base} does not answer: {error}; is the process running?"))
                };
                let response = client.request(request).await.map_err(|error| failed(&error))?;
                let status = response.status();
                (status, response.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes())
            }
            Self::Here { router, .. } => {
                let response = router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
                let status = response.status();
                let body = response.into_body().collect().await;
                (status, body.map_err(|error| Failure::not_well(error.to_string()))?.to_bytes())
            }
        };
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        let detail = value.get("detail").and_then(Value::as_str).unwrap_or("no reason was given");
        let code = if status == StatusCode::BAD_REQUEST || status == StatusCode::UNAUTHORIZED { 2 } else { 1 };
        Err(Failure { code, message: detail.to_owned() })
    }

    /// Lets the store go, so that the next process finds it closed.
    pub(super) async fn close(self) {
        if let Self::Here { store, router } = self {
            drop(router);
            store.close().await;
        }
    }
}
