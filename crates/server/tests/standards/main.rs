//! What others have written down, example by example, through the real binary: the IETF draft, Stripe's documentation,
//! RFC 8785. Tests are named after the section that they are of.

#[cfg(test)]
mod idempotency_key_draft;
#[cfg(test)]
mod rfc_8785;
#[cfg(test)]
mod stripe;
#[cfg(test)]
#[expect(dead_code, reason = "the proxy's tests use the rest of it")]
#[path = "../proxy/support.rs"]
mod support;
