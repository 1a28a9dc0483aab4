//! Keys and record ids.

/// Names one key of one scope in a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordId(pub [u8; 32]);

impl RecordId {
    /// One of 256 partitions.
    #[must_use]
    pub fn partition(&self) -> u16 {
        let [a, b, ..] = self.0;
        u16::from_be_bytes([a, b]) % 256
    }
}
