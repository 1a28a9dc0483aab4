//! The transport over real sockets: raw bytes and real clients on one side, recording upstreams on the other.

mod framing;
mod support;
