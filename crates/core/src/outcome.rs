//! The answer of the first execution, as plain bytes to be replayed.

use alloc::vec::Vec;
pub use prost::bytes::Bytes;

use crate::record::Micros;

/// One header or trailer field, as it stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Lower-case name.
    pub name: Bytes,
    /// Value without surrounding white space; any bytes that HTTP allows.
    pub value: Bytes,
}

/// What the upstream, or a job, answered.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Outcome {
    /// HTTP status; 200 for jobs.
    pub status: u16,
    /// Headers in order, repeats kept, those left out that are never replayed.
    pub headers: Vec<Field>,
    /// The body; empty where [`body_not_kept`](Self::body_not_kept).
    pub body: Bytes,
    /// Trailers in order.
    pub trailers: Vec<Field>,
    /// The fact is kept, the body is not: it was over the limit, an event stream, or has ended.
    pub body_not_kept: bool,
    /// Body and trailers count only before this time; zero: for as long as the record.
    pub body_until: Micros,
}

impl Outcome {
    /// Whether the fact is all there is to tell at `now`.
    #[must_use]
    pub fn is_bare(&self, now: Micros) -> bool {
        self.body_not_kept || (self.body_until != Micros::ZERO && self.body_until <= now)
    }

    /// The fact of it.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { body: Bytes::new(), trailers: Vec::new(), body_not_kept: true, body_until: Micros::ZERO, ..self }
    }
}

/// A recovery point between the steps of one execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Rises by one with each checkpoint, 1 first.
    pub seq: u32,
    /// Chosen by the caller.
    pub name: alloc::string::String,
    /// At most [`Checkpoint::DATA_BYTES_MAX`] bytes.
    pub data: Bytes,
}

impl Checkpoint {
    /// The most bytes that a checkpoint carries.
    pub const DATA_BYTES_MAX: usize = 64 * 1024;
}
