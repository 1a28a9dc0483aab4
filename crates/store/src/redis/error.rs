//! What a failure of Redis means: what kind it is, whether the step was applied, what to do.

use std::fmt;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::time::error::Elapsed;

use crate::{Kind, StoreError};

/// Of a key of this store that somebody else uses.
pub(super) const OTHER_KIND: &str = "another kind of value lies under a key of this store";

/// A failure of Redis in words: what it said, what to do.
#[derive(Debug)]
pub struct Failure {
    said: String,
    advice: Option<&'static str>,
    source: Option<RedisError>,
}

impl Failure {
    /// Of the client library's error.
    pub(super) fn of(error: RedisError) -> Self {
        let advice = advice(&error);
        // A script's error has the script's text and arguments nowhere; the library's has addresses at most.
        Self { said: error.to_string(), advice, source: Some(error) }
    }

    /// Of what we found ourselves.
    pub(super) fn said(said: impl Into<String>) -> Self {
        Self { said: said.into(), advice: None, source: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)?;
        match self.advice {
            Some(advice) => write!(f, ": {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

/// What whoever runs it can do.
fn advice(error: &RedisError) -> Option<&'static str> {
    Some(match error.code().unwrap_or_default() {
        "OOM" => "the server's memory is used up and its policy evicts nothing: raise maxmemory, or shorten retention",
        "NOPERM" => "the user lacks a right: give it those of deploy/redis/onceward.acl",
        "NOAUTH" | "WRONGPASS" => "check the user and the password of the store's address",
        "READONLY" => "this is a replica: point the store at the primary, or at its Sentinels",
        "MASTERDOWN" | "CLUSTERDOWN" => "the server is cut off from its primary, or a part of the Cluster is down",
        "BUSY" => "a script of somebody's runs on the server and lets nothing else through: SCRIPT KILL ends it",
        "MISCONF" => "the server cannot write its snapshot and refuses writes: make room on its disk",
        "NOREPLICAS" => "the server has fewer replicas than min-replicas-to-write: look at them",
        "LOADING" => "the server is reading its data at its start: it is tried again",
        "NOSCRIPT" => "the server forgot a script: it is sent again",
        "CROSSSLOT" => "the server is a Cluster: write redis+cluster://",
        "MOVED" | "ASK" => "the server is a Cluster: write redis+cluster://",
        _ => match error.kind() {
            ErrorKind::AuthenticationFailed => "check the user and the password of the store's address",
            ErrorKind::RESP3NotSupported => "the server is older than Redis 6",
            ErrorKind::MasterNameNotFoundBySentinel => {
                "no Sentinel knows a primary of this name: check the name, and the Sentinels"
            }
            _ => return None,
        },
    })
}

fn kind(error: &RedisError) -> Kind {
    match error.code().unwrap_or_default() {
        "OOM" => Kind::Full,
        "READONLY" | "MASTERDOWN" => Kind::NotPrimary,
        "WRONGTYPE" => Kind::Damaged(OTHER_KIND.into()),
        _ => Kind::Unavailable,
    }
}

/// Whether the server says that it did nothing: it looked at the call and not yet at its step.
fn is_refused(error: &RedisError) -> bool {
    let code = error.code().unwrap_or_default();
    let refused = [
        "OOM",
        "READONLY",
        "NOSCRIPT",
        "LOADING",
        "BUSY",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "MOVED",
        "ASK",
        "TRYAGAIN",
        "NOAUTH",
        "WRONGPASS",
        "MISCONF",
        "NOREPLICAS",
        "CROSSSLOT",
    ];
    refused.contains(&code)
}

/// A step that failed after it may have been sent. In a Cluster the library may have sent it more than once, and only
/// the last answer is known.
pub(super) fn step_failed(error: RedisError, is_cluster: bool) -> StoreError {
    let kind = kind(&error);
    let failed = match is_refused(&error) && !is_cluster {
        true => StoreError::not_applied(kind),
        false => StoreError::unknown(kind),
    };
    failed.because(Failure::of(error))
}

/// A read that failed, or a connection that did not come about: nothing was written.
pub(super) fn read_failed(error: RedisError) -> StoreError {
    StoreError::not_applied(kind(&error)).because(Failure::of(error))
}

/// Whether the connection is of no more use: it broke, or leads to a server that is no primary any more.
pub(super) fn ends_connection(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io
            | ErrorKind::Parse
            | ErrorKind::AuthenticationFailed
            | ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading)
    ) || error.is_unrecoverable_error()
}

/// Whether nobody answers, or the servers are not ready yet.
pub(super) fn is_away(failed: &StoreError) -> bool {
    let Some(source) = &failed.source else { return false };
    let of_library = source.downcast_ref::<Failure>().and_then(|failure| failure.source.as_ref());
    source.is::<Elapsed>()
        || of_library.is_some_and(|error| {
            error.is_connection_dropped()
                || error.is_connection_refusal()
                || error.is_timeout()
                || matches!(error.code(), Some("LOADING" | "CLUSTERDOWN"))
        })
}

/// Whether the script has to be sent whole.
pub(super) fn is_missing_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether the user lacks the right to what was asked.
pub(super) fn is_forbidden(failed: &StoreError) -> bool {
    let failure = failed.source.as_ref().and_then(|source| source.downcast_ref::<Failure>());
    failure.and_then(|failure| failure.source.as_ref()).is_some_and(|error| error.code() == Some("NOPERM"))
}
