//! The transport over real sockets: raw bytes and real clients on one side, recording upstreams on the other.

// Marked as tests, so that the lints on panics know all of it for what it is.
#[cfg(test)]
mod connections;
#[cfg(test)]
mod framing;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod support;
#[cfg(test)]
mod upstreams;
