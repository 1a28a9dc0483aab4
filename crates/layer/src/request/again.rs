//! The fingerprint of a request that has arrived, under other rules or another secret than its route's: for a record
//! that was made with those.

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use onceward_core::{
    canonical::{self, Rules},
    fingerprint::Fingerprinter,
};

use super::{
    collect::{is_encoded, listed_headers, with_workspace},
    plain::{Plain, plain, room_for},
};
use crate::{body::Body, engine::Engine};

/// A request whose body is in memory, or waits on disk.
pub(crate) struct Again<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) request: &'a mut Request<Body>,
    /// The body, where it is in memory.
    pub(crate) memory: Option<&'a Bytes>,
    /// Of the install secret that the records in question were made with.
    pub(crate) fingerprinter: &'a Fingerprinter,
}

impl Again<'_> {
    /// Its fingerprint under the rules that records name by `policy`; `None` where they are gone, or where the body
    /// cannot be read once more.
    pub(crate) async fn under_policy(&mut self, policy: u32) -> Option<[u8; 32]> {
        let rules = self.engine.rules(policy).await?;
        self.under(&rules).await
    }

    /// Its fingerprint under `rules`.
    pub(crate) async fn under(&mut self, rules: &Rules) -> Option<[u8; 32]> {
        let Self { engine, request, memory, fingerprinter } = self;
        let spooled = if memory.is_none() { request.body_mut().spool().map(|reader| reader.left()) } else { None };
        let to_read = spooled.filter(|bytes| *bytes <= rules.canonical_body_max() as u64);
        let bytes = memory.map(Bytes::len).or(to_read.and_then(|bytes| usize::try_from(bytes).ok()));
        let _room = match bytes {
            Some(bytes) => room_for(engine, rules, request.headers(), bytes, to_read.is_some()).await,
            None => None,
        };
        let whole = match memory {
            Some(memory) => Some(Bytes::clone(memory)),
            None if to_read.is_some() => Some(read(request.body_mut().spool()?.read_all().await)?),
            None => None,
        };
        let fingerprint = match &whole {
            Some(body) => with_head(request, rules, plain(engine, rules, request.headers(), body), |whole| {
                with_workspace(|workspace| {
                    let canonical = workspace.canonicalize(whole, rules);
                    fingerprinter.fingerprint(rules.hash(), &canonical)
                })
            }),
            None => {
                let mut hasher = with_head(request, rules, as_sent(request), |head| {
                    with_workspace(|workspace| fingerprinter.hasher(rules.hash(), &workspace.head(head, rules)))
                });
                let reader = request.body_mut().spool()?;
                read(reader.each(|part| hasher.update(part)).await)?;
                hasher.finish()
            }
        };
        Some(fingerprint.0)
    }
}

fn as_sent(request: &Request<Body>) -> Plain<'static> {
    Plain { bytes: [].as_slice().into(), encoded: is_encoded(request.headers()) }
}

fn read<T>(read: std::io::Result<T>) -> Option<T> {
    if let Err(error) = &read {
        tracing::error!(%error, "a spooled request body could not be read again");
    }
    read.ok()
}

/// Shows a request in the words of the canonical form, with the headers that `rules` list.
pub(super) fn with_head<T>(
    request: &Request<Body>,
    rules: &Rules,
    plain: Plain<'_>,
    work: impl FnOnce(&canonical::Request<'_>) -> T,
) -> T {
    let listed = listed_headers(rules, request.headers());
    let listed: Vec<(&str, &[u8])> = listed.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    work(&canonical::Request {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query(),
        headers: &listed,
        content_type: request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
        encoded: plain.encoded,
        body: &plain.bytes,
    })
}
