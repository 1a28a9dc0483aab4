//! What a million fresh keys take in the memory store: `cargo run --release --example memory_million`.

use std::time::Duration;

use onceward_core::{
    key::RecordId,
    outcome::{Field, Outcome},
    record::{ClaimId, Facts, Micros, Phase, SessionId},
    transition::{self, Write},
};
use onceward_store::{
    Insert, Store,
    memory::{Bounds, Clock, Memory},
};

const KEYS: u64 = 1_000_000;
const PAGE_BYTES: u64 = 4096;
/// An answer of a payments API.
const BODY: &[u8] = &[b'x'; 256];

/// Resident memory in MiB, from the second field of `statm`.
fn resident() -> Result<u64, Box<dyn std::error::Error>> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).ok_or("statm has no second field")?.parse()?;
    Ok(pages * PAGE_BYTES / (1024 * 1024))
}

fn id(of: u64) -> RecordId {
    let mut id = [0; 32];
    for (index, slot) in id.chunks_exact_mut(8).enumerate() {
        let word = (of + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17 * u32::try_from(index).unwrap_or(0));
        slot.copy_from_slice(&word.to_be_bytes());
    }
    RecordId(id)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bounds = Bounds { records_max: 2_000_000 };
    let store = Memory::new(bounds, Clock::system());
    let facts = Facts {
        phase: Phase::Dispatched,
        attempt: 1,
        fingerprint_policy: 1,
        fingerprint: [9; 32],
        fields: vec![[1; 8]; 8],
        route: "create-payment".into(),
        tenant: "default".into(),
        env: "default".into(),
        ..transition::place(ClaimId([1; 16]), SessionId([1; 16]))
    };
    let field = |name: &'static [u8], value: &'static [u8]| Field { name: name.into(), value: value.into() };
    let outcome = Outcome {
        status: 201,
        headers: vec![field(b"content-type", b"application/json"), field(b"content-length", b"256")],
        body: BODY.into(),
        ..Outcome::default()
    };
    println!("at the start: {} MiB resident", resident()?);
    let mut fences = Vec::new();
    for of in 0..KEYS {
        let Insert::Inserted { fence, .. } = store.insert(id(of), &facts, Duration::from_secs(10)).await? else {
            return Err("a fresh key is taken".into());
        };
        fences.push(fence);
    }
    let stats = store.stats();
    let (bytes, mib) = (stats.bytes / stats.records, resident()?);
    println!("{KEYS} claims of {bytes} bytes: {mib} MiB resident, {} bytes a key", mib * 1024 * 1024 / KEYS);
    for (of, fence) in (0..KEYS).zip(fences) {
        let keep = Duration::from_secs(86_400);
        if let Write::Replace(write) = transition::complete(&facts, fence, outcome.clone(), keep, Micros(1)) {
            store.replace(id(of), &write).await?;
        }
    }
    let stats = store.stats();
    let (bytes, mib) = (stats.bytes / stats.records, resident()?);
    println!("{KEYS} completions of {bytes} bytes: {mib} MiB resident, {} bytes a key", mib * 1024 * 1024 / KEYS);
    Ok(())
}
