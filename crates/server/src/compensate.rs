//! Calls that undo effects, made over HTTP.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use onceward::store::postgres::compensation::{Call, Caller, Calling};
use tower::Service as _;

use crate::{
    assemble,
    config::Config,
    proxy::{Certificates, Upstream},
};

/// The servers that are kept connected to; those of the configuration's list are fewer.
const SERVERS_MAX: usize = 256;

/// Makes calls the way that requests go to upstreams, with connections of its own.
#[derive(Debug)]
pub struct Calls {
    config: Config,
    certificates: Certificates,
    servers: Mutex<HashMap<String, Upstream<Full<Bytes>>>>,
}

impl Calls {
    /// A server that is an upstream of `config` is known by that one's authorities, any other by the system's.
    #[must_use]
    pub fn new(config: &Config, certificates: &Certificates) -> Self {
        Self { config: config.clone(), certificates: certificates.clone(), servers: Mutex::default() }
    }

    fn server(&self, url: &Uri) -> Result<Upstream<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let authority = url.authority().ok_or("the URL has no host")?;
        let server = format!("{}://{authority}", url.scheme_str().unwrap_or("http"));
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = servers.get(&server) {
            return Ok(known.clone());
        }
        let options = assemble::options_for(&self.config, &server, &self.certificates)?;
        let new = Upstream::new(&server, &options)?;
        if servers.len() < SERVERS_MAX {
            servers.insert(server, new.clone());
        }
        Ok(new)
    }
}

impl Caller for Calls {
    fn call(&self, call: Call) -> Calling {
        let request = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            let url: Uri = call.url.parse()?;
            let upstream = self.server(&url)?;
            let request = Request::builder()
                .method(Method::POST)
                .uri(url)
                .header("idempotency-key", HeaderValue::from_str(&call.key)?)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::from(call.payload))?;
            Ok((upstream, request))
        };
        let request = request();
        Box::pin(async move {
            let (mut upstream, request) = request?;
            let answer = upstream.call(request).await?;
            // What it says beside its status is of no use; its connection goes with it.
            Ok(answer.status().as_u16())
        })
    }
}
