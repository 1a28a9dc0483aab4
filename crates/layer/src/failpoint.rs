//! Named places at which a test can stop or end the process.
//!
//! `ONCEWARD_FAILPOINT=NAME:hit=N:abort|pause` acts at the Nth time that NAME is reached, or with
//! `hit=N+` from the Nth time on: `abort` ends the process as a crash does, `pause` stops that
//! request for good. Without the variable a point costs one load.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Before the claim is sent to the store.
pub const CLAIM_BEGIN: &str = "claim.begin";
/// The store has answered the claim.
pub const CLAIM_END: &str = "claim.end";
/// The claim is granted, nothing is sent yet.
pub const DISPATCH_BEGIN: &str = "dispatch.begin";
/// The upstream's answer is there in full.
pub const DISPATCH_END: &str = "dispatch.end";
/// Before the record of the answer is sent to the store.
pub const COMPLETE_BEGIN: &str = "complete.begin";
/// The record is safe, the client has not got the end of the answer.
pub const COMPLETE_END: &str = "complete.end";

/// A claim is on its way within the store: a store that does not answer, for whoever calls it.
pub const STORE_INSERT: &str = "store.insert";
/// The record of an answer is on its way within the store.
pub const STORE_REPLACE: &str = "store.replace";
/// A renewal is on its way within the store.
pub const STORE_EXTEND: &str = "store.extend";

/// All of them.
pub const ALL: [&str; 9] = [
    CLAIM_BEGIN,
    CLAIM_END,
    DISPATCH_BEGIN,
    DISPATCH_END,
    COMPLETE_BEGIN,
    COMPLETE_END,
    STORE_INSERT,
    STORE_REPLACE,
    STORE_EXTEND,
];

struct Armed {
    name: String,
    at_hit: u64,
    and_later: bool,
    hits: AtomicU64,
    pause: bool,
}

/// Reads a failpoint's description.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check(text: &str) -> Result<(), String> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<Armed, String> {
    let usage = || format!("{text:?} is no failpoint; write NAME:hit=N:abort or NAME:hit=N:pause, NAME one of {ALL:?}");
    let [name, hit, what] = text.split(':').collect::<Vec<_>>()[..] else { return Err(usage()) };
    let hit = hit.strip_prefix("hit=").ok_or_else(usage)?;
    let and_later = hit.ends_with('+');
    let at_hit = hit.trim_end_matches('+').parse().ok().filter(|n| *n > 0).ok_or_else(usage)?;
    if !ALL.contains(&name) || !["abort", "pause"].contains(&what) {
        return Err(usage());
    }
    Ok(Armed { name: name.into(), at_hit, and_later, hits: AtomicU64::new(0), pause: what == "pause" })
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| std::env::var("ONCEWARD_FAILPOINT").ok().and_then(|text| parse(&text).ok())).as_ref()
}

/// Whether one of the places within the store is armed: only then need a store be wrapped for it.
#[must_use]
pub fn is_in_store() -> bool {
    armed().is_some_and(|armed| armed.name.starts_with("store."))
}

/// Passes, unless the environment says otherwise.
pub(crate) async fn hit(name: &str) {
    let Some(armed) = armed() else { return };
    if armed.name != name {
        return;
    }
    let hits = armed.hits.fetch_add(1, Ordering::SeqCst) + 1;
    if hits != armed.at_hit && !(armed.and_later && hits > armed.at_hit) {
        return;
    }
    if armed.pause {
        // Whoever armed it learns that it was reached: the request itself will never say so.
        tracing::warn!(failpoint = name, "stopped at a failpoint");
        std::future::pending::<()>().await;
    }
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_that_is_none_is_said_to_be() {
        assert!(check("claim.end:hit=3:abort").is_ok() && check("store.insert:hit=1+:pause").is_ok());
        for bad in ["", "claim.end", "claim.end:hit=0:abort", "nowhere:hit=1:abort", "claim.end:hit=1:stop"] {
            assert!(check(bad).unwrap_err().contains("NAME:hit=N:abort"), "{bad}");
        }
    }
}
