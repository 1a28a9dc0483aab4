//! How long a payment's canonical form and fingerprint take, against parsing into a sorted map and
//! writing that out. Run with `cargo run --release -p onceward-core --example canonical_speed`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use onceward_core::canonical::{Request, Rules, Workspace};
use onceward_core::fingerprint::{Fingerprinter, Hash};
use onceward_core::key::{RecordId, Scope, Secret};

const PAYMENT: &str = r#"{"amount":129900,"currency":"EUR","capture":true,"reference":"ORD-2026-000412","customer":{"id":"cus_9s8d7f6g5h","email":"ada.lovelace@example.com","name":"Ada Lovelace","address":{"line1":"12 St James's Square","city":"London","postal_code":"SW1Y 4JH","country":"GB"}},"payment_method":{"type":"card","token":"tok_1NqXyz2eZvKYlo2C"},"items":[{"sku":"A-100","quantity":2,"price":49.95},{"sku":"B-200","quantity":1,"price":30.0}],"metadata":{"order":"412","channel":"web","note":"leave at the door \"please\""},"test":false}"#;

/// The best of several rounds, in nanoseconds a call: what the machine can do when it is left alone.
fn measure(name: &str, mut call: impl FnMut()) {
    const CALLS: u32 = 10_000;
    let round = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        start.elapsed()
    };
    let best = (0..15).map(|_| round(&mut call)).min().unwrap_or(Duration::ZERO);
    println!("{name:<52} {:>7} ns", best.as_nanos() / u128::from(CALLS));
}

fn main() {
    let secret = Secret::from_bytes([7; 32]);
    let fingerprinter = Fingerprinter::new(&secret);
    let rules = Rules::default();
    let mut workspace = Workspace::new();
    let request = Request {
        method: "POST",
        path: "/v1/payments",
        content_type: Some(b"application/json"),
        body: PAYMENT.as_bytes(),
        ..Request::default()
    };
    println!("{} bytes of JSON", PAYMENT.len());
    measure("canonical form", || {
        black_box(workspace.canonicalize(black_box(&request), &rules).bytes.len());
    });
    measure("canonical form and BLAKE3 fingerprint", || {
        let canonical = workspace.canonicalize(black_box(&request), &rules);
        black_box(fingerprinter.fingerprint(Hash::Blake3, &canonical));
    });
    measure("canonical form and HMAC-SHA-256 fingerprint", || {
        let canonical = workspace.canonicalize(black_box(&request), &rules);
        black_box(fingerprinter.fingerprint(Hash::Sha256, &canonical));
    });
    let record = RecordId([3; 32]);
    measure("canonical form, BLAKE3 fingerprint, field digests", || {
        let canonical = workspace.canonicalize(black_box(&request), &rules);
        black_box(fingerprinter.fingerprint(Hash::Blake3, &canonical));
        black_box(fingerprinter.field_digests(&record, &canonical.fields));
    });
    let scope = Scope {
        tenant: "default",
        env: "prod",
        principal: "authorization:Bearer sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        route: "create-payment",
    };
    measure("record id", || {
        black_box(RecordId::derive(&secret, black_box(&scope), "8e03978e-40d5-43e8-bc93-6894a57f9324"));
    });
    let raw = [b'x'; 1024];
    let request = Request { content_type: None, body: &raw, ..request };
    measure("1 KiB raw: canonical form and BLAKE3 fingerprint", || {
        let canonical = workspace.canonicalize(black_box(&request), &rules);
        black_box(fingerprinter.fingerprint(Hash::Blake3, &canonical));
    });
    let large = vec![b'x'; 64 << 10];
    measure("64 KiB raw: streamed BLAKE3 fingerprint", || {
        let mut hasher = fingerprinter.hasher(Hash::Blake3, &workspace.head(black_box(&request), &rules));
        hasher.update(black_box(&large));
        black_box(hasher.finish());
    });
    measure("serde_json into a BTreeMap and written out", || {
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(black_box(PAYMENT)) {
            black_box(value.to_string().len());
        }
    });
}
