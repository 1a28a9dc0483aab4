//! What tests of the store in Redis share.

#![allow(dead_code, reason = "each of them uses its own part")]

use std::time::Duration;

use bytes::Bytes;
use onceward_core::{
    key::RecordId,
    outcome::Outcome,
    record::{ClaimId, Facts, Fence, Micros, SessionId},
    transition::{self, Write as Transition},
};
use onceward_store::{
    Insert, Store, StoreError, Write,
    redis::{
        Options, Redis,
        address::{Address, Credentials},
    },
};
use servers::Redis as Server;

pub(crate) const LEASE: Duration = Duration::from_secs(60);

pub(crate) fn options(url: &str) -> Options {
    Options::new(Address::new(url, Credentials::default(), Credentials::default(), None).unwrap())
}

pub(crate) async fn opened(server: &Server) -> Redis {
    Redis::open(options(&server.url())).await.unwrap()
}

/// Spread over the partitions.
pub(crate) fn id(number: u32) -> RecordId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.wrapping_mul(0x9E37_79B9).to_be_bytes());
    id[4..8].copy_from_slice(&number.to_be_bytes());
    RecordId(id)
}

pub(crate) fn facts(number: u32) -> Facts {
    let mut claim_id = [0; 16];
    claim_id[..4].copy_from_slice(&number.to_be_bytes());
    transition::place(ClaimId(claim_id), SessionId([1; 16]))
}

pub(crate) async fn claim(store: &Redis, number: u32) -> Result<Fence, StoreError> {
    match store.insert(id(number), &facts(number), LEASE).await? {
        Insert::Inserted { fence, .. } => Ok(fence),
        Insert::Existing { .. } => panic!("{number} is taken"),
    }
}

/// Completes with so many random bytes.
pub(crate) async fn try_complete(
    store: &Redis,
    number: u32,
    fence: Fence,
    keep: Duration,
    bytes: usize,
) -> Result<(), StoreError> {
    let mut body = vec![0; bytes];
    getrandom::fill(&mut body).unwrap();
    let outcome = Outcome { status: 201, body: Bytes::from(body), ..Outcome::default() };
    let Transition::Replace(write) = transition::complete(&facts(number), fence, outcome, keep, Micros(1)) else {
        panic!("a completion is a replacement")
    };
    let written = store.replace(id(number), &write).await?;
    assert!(matches!(written, Write::Applied { .. }), "{written:?}");
    Ok(())
}

pub(crate) async fn complete(store: &Redis, number: u32, fence: Fence, keep: Duration) {
    try_complete(store, number, fence, keep, 300).await.unwrap();
}

pub(crate) async fn is_there(store: &Redis, number: u32) -> bool {
    store.get(id(number)).await.unwrap().record.is_some()
}

/// Asks again until it is so; the limit only ends a test that has failed.
pub(crate) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("it never came to be"));
}
