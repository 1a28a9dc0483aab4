//! The contract from outside: the real binary with its own store, real sockets on both sides.
//!
//! Each module takes some rows of PROTOCOL: `keys` and `auth` section 3, the others section 4.

// Marked as tests, so that the lints on panics know all of it for what it is.
#[cfg(test)]
mod answers;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod auth;
#[cfg(test)]
mod balancers;
#[cfg(test)]
mod bodies;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod duplicates;
#[cfg(test)]
mod effect;
#[cfg(test)]
mod folder;
#[cfg(test)]
mod grpc;
#[cfg(test)]
mod journaled;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod load;
#[cfg(test)]
mod maintenance;
#[cfg(test)]
mod observe;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod postgres;
#[cfg(test)]
mod principals;
#[cfg(test)]
mod probe;
#[cfg(test)]
mod process;
#[cfg(test)]
mod quotas;
#[cfg(test)]
mod reconcile;
#[cfg(test)]
mod recording;
#[cfg(test)]
mod redis;
#[cfg(test)]
mod redis_cluster;
#[cfg(test)]
mod redis_doctor;
#[cfg(test)]
mod redis_fallback;
#[cfg(test)]
mod redis_losses;
#[cfg(test)]
mod redis_outages;
#[cfg(test)]
mod redis_rolling;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod replays;
#[cfg(test)]
mod route_keys;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod silence;
#[cfg(test)]
mod support;
#[cfg(test)]
mod telemetry;
#[cfg(test)]
mod tiered;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod trailers;
#[cfg(test)]
mod unknown;
