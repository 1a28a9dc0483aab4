//! Many small values hashed as few large ones.

use std::hash::Hasher;

/// Takes single bytes and gives words of eight on.
///
/// Only for values whose bytes have one meaning each, as all of a state have: no strings, no slices.
pub(crate) struct Packing<'a, H> {
    to: &'a mut H,
    word: u64,
    bits: u32,
}

impl<'a, H: Hasher> Packing<'a, H> {
    pub(crate) const fn new(to: &'a mut H) -> Self {
        Self { to, word: 0, bits: 0 }
    }

    /// Gives on what is left.
    pub(crate) fn flush(self) {
        self.to.write_u64(self.word);
    }
}

impl<H: Hasher> Hasher for Packing<'_, H> {
    fn write_u8(&mut self, byte: u8) {
        self.word |= u64::from(byte) << self.bits;
        self.bits += u8::BITS;
        if self.bits == u64::BITS {
            self.to.write_u64(self.word);
            (self.word, self.bits) = (0, 0);
        }
    }

    fn write_u16(&mut self, value: u16) {
        let [low, high] = value.to_le_bytes();
        self.write_u8(low);
        self.write_u8(high);
    }

    // What `derive` writes to tell the variants of an enum apart; none has more than 256.
    fn write_isize(&mut self, discriminant: isize) {
        self.write_u8(discriminant.to_le_bytes().first().copied().unwrap_or_default());
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    // The words are the result; nobody asks here.
    fn finish(&self) -> u64 {
        self.word
    }
}
