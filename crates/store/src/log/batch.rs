//! The codec of batches and frames.
//!
//! A segment is a row of batches, each one write, one sync and one atomic unit. A batch is a header and frames; a
//! frame is one record of the caller's, with a checksum of its own, so that one positional read can verify it.
//!
//! ```text
//! batch   mark 8 | body length 4 | frames 4 | sequence 8 | time 8 | fence mark 8 | oldest 4 | 0 4 | body check 8 | header check 8
//! frame   check 8 | payload length 3, kind 1 | keep-until 4 | id 32 | payload | zeros to 16
//! ```
//!
//! Integers are little-endian. Every checksum is XXH3-64 seeded with the segment's salt, and the mark is derived from
//! it, so that nothing a recycled file held before passes for something of its present life, and no client can write
//! a payload that looks like a batch.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Length of a batch's header in bytes.
pub(crate) const BATCH_HEADER: usize = 64;
/// Length of a frame's header in bytes.
pub(crate) const FRAME_HEADER: usize = 48;
/// Batches and frames start at multiples of this.
pub(crate) const ALIGN: usize = 16;
/// The longest payload of a frame.
pub const PAYLOAD_BYTES_MAX: usize = (1 << 24) - 1;

/// What a frame means to whoever wrote it. The log only carries it, but for [`Kind::Remove`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The record is now the payload.
    Put,
    /// There is no record any more. Says nothing once its segment is the oldest.
    Remove,
}

impl Kind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Put => 1,
            Self::Remove => 2,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Put),
            2 => Some(Self::Remove),
            _ => None,
        }
    }
}

/// One record on its way into the log, or out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it means.
    pub kind: Kind,
    /// Whose record it is.
    pub id: &'a [u8; 32],
    /// Until when it counts, in seconds of the store's clock; 0: always (in flight, or unknown).
    pub keep_until_s: u32,
    /// The record, at most [`PAYLOAD_BYTES_MAX`].
    pub payload: &'a [u8],
}

/// Reads `N` bytes at `at`, or nothing where the buffer ends before.
pub(crate) fn array<const N: usize>(buffer: &[u8], at: usize) -> Option<[u8; N]> {
    buffer.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn u32_at(buffer: &[u8], at: usize) -> Option<u32> {
    array(buffer, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(buffer: &[u8], at: usize) -> Option<u64> {
    array(buffer, at).map(u64::from_le_bytes)
}

/// Overwrites what stands at `at`. A buffer too short is a broken invariant of the writer.
pub(crate) fn put(buffer: &mut [u8], at: usize, bytes: &[u8]) {
    let place = buffer.get_mut(at..at + bytes.len());
    assert!(place.is_some(), "a header is written into a buffer that holds one");
    if let Some(place) = place {
        place.copy_from_slice(bytes);
    }
}

/// `len` raised to the next multiple of [`ALIGN`].
pub(crate) fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Length of a frame with a payload of `payload` bytes, padding included.
pub(crate) fn frame_len(payload: usize) -> usize {
    aligned(FRAME_HEADER + payload)
}

/// The eight bytes that open every batch of a segment with this salt.
pub(crate) fn mark_of(salt: u64) -> u64 {
    xxh3_64_with_seed(b"onceward batch", salt)
}

/// Appends a frame whose checksum is still missing: the salt of its segment is known only when it is written.
pub(crate) fn encode_frame(buffer: &mut Vec<u8>, frame: &Frame<'_>) {
    let start = buffer.len();
    let len = frame.payload.len();
    assert!(len <= PAYLOAD_BYTES_MAX, "the caller has refused longer payloads");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let word = len as u32 | u32::from(frame.kind.to_byte()) << 24;
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&word.to_le_bytes());
    buffer.extend_from_slice(&frame.keep_until_s.to_le_bytes());
    buffer.extend_from_slice(frame.id);
    buffer.extend_from_slice(frame.payload);
    buffer.resize(start + frame_len(len), 0);
}

/// What a frame's header says, not yet verified against its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHead {
    pub(crate) kind: Kind,
    pub(crate) keep_until_s: u32,
    pub(crate) id: [u8; 32],
    /// Length of the payload.
    pub(crate) payload: usize,
}

impl FrameHead {
    /// Reads a header, or nothing where these bytes cannot be one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let word = u32_at(bytes, 8)?;
        Some(Self {
            kind: Kind::from_byte((word >> 24) as u8)?,
            keep_until_s: u32_at(bytes, 12)?,
            id: array(bytes, 16)?,
            payload: (word & 0x00ff_ffff) as usize,
        })
    }

    /// Length of the whole frame, padding included.
    pub(crate) fn frame_len(&self) -> usize {
        frame_len(self.payload)
    }
}

/// Reads the frame at the start of `bytes` and verifies it; the payload borrows from them.
pub(crate) fn decode_frame(bytes: &[u8], salt: u64) -> Option<(FrameHead, &[u8])> {
    let head = FrameHead::decode(bytes)?;
    let end = FRAME_HEADER + head.payload;
    let covered = bytes.get(8..end)?;
    (xxh3_64_with_seed(covered, salt) == u64_at(bytes, 0)?).then_some(())?;
    Some((head, bytes.get(FRAME_HEADER..end)?))
}

/// The frames of a batch's body, each with its offset in it. Ends early where a header makes no sense, which in a
/// verified body cannot be.
pub(crate) fn frames(body: &[u8]) -> impl Iterator<Item = (usize, FrameHead)> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || {
        let head = FrameHead::decode(body.get(at..)?)?;
        let found = (at, head);
        at += head.frame_len();
        (at <= body.len()).then_some(found)
    })
}

/// What a batch's header says beside its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHead {
    /// Length of the frames, padding included.
    pub(crate) body: u32,
    /// How many frames.
    pub(crate) frames: u32,
    /// Rises by one from batch to batch, over segments.
    pub(crate) sequence: u64,
    /// The store's clock when it was written, in microseconds.
    pub(crate) time_us: u64,
    /// No fence was given out above this one.
    pub(crate) fence_mark: u64,
    /// Segments before this one count no longer.
    pub(crate) oldest: u32,
    body_check: u64,
}

impl BatchHead {
    /// Reads and verifies a header.
    pub(crate) fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        let head: [u8; BATCH_HEADER] = array(bytes, 0)?;
        (u64_at(&head, 0)? == mark_of(salt)).then_some(())?;
        (u64_at(&head, 56)? == xxh3_64_with_seed(head.get(..56)?, salt)).then_some(())?;
        Some(Self {
            body: u32_at(&head, 8)?,
            frames: u32_at(&head, 12)?,
            sequence: u64_at(&head, 16)?,
            time_us: u64_at(&head, 24)?,
            fence_mark: u64_at(&head, 32)?,
            oldest: u32_at(&head, 40)?,
            body_check: u64_at(&head, 48)?,
        })
    }

    /// Whether `body` is the one this header was written with.
    pub(crate) fn matches(&self, body: &[u8], salt: u64) -> bool {
        body.len() == self.body as usize && xxh3_64_with_seed(body, salt) == self.body_check
    }

    /// Length of the whole batch.
    pub(crate) fn batch_len(&self) -> u64 {
        BATCH_HEADER as u64 + u64::from(self.body)
    }
}

/// What the writer knows of a batch when it closes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seal {
    pub(crate) salt: u64,
    pub(crate) sequence: u64,
    pub(crate) time_us: u64,
    pub(crate) fence_mark: u64,
    pub(crate) oldest: u32,
}

/// Completes a batch: `buffer` is room for the header and then frames as [`encode_frame`] leaves them. Gives each
/// frame its checksum, writes the header, returns how many frames there are.
pub(crate) fn seal_batch(buffer: &mut [u8], seal: &Seal) -> u32 {
    let mut count: u32 = 0;
    let mut at = BATCH_HEADER;
    while let Some(head) = buffer.get(at..).and_then(FrameHead::decode) {
        let end = at + FRAME_HEADER + head.payload;
        let check = buffer.get(at + 8..end).map(|covered| xxh3_64_with_seed(covered, seal.salt));
        put(buffer, at, &check.unwrap_or_default().to_le_bytes());
        at += head.frame_len();
        count += 1;
    }
    assert!(at == buffer.len(), "a batch is whole frames");
    let body = buffer.get(BATCH_HEADER..).unwrap_or_default();
    let body_check = xxh3_64_with_seed(body, seal.salt);
    #[expect(clippy::cast_possible_truncation, reason = "a batch fits a segment, which is at most 64 MiB")]
    let body_len = body.len() as u32;
    let mut head = [0; BATCH_HEADER];
    put(&mut head, 0, &mark_of(seal.salt).to_le_bytes());
    put(&mut head, 8, &body_len.to_le_bytes());
    put(&mut head, 12, &count.to_le_bytes());
    put(&mut head, 16, &seal.sequence.to_le_bytes());
    put(&mut head, 24, &seal.time_us.to_le_bytes());
    put(&mut head, 32, &seal.fence_mark.to_le_bytes());
    put(&mut head, 40, &seal.oldest.to_le_bytes());
    put(&mut head, 48, &body_check.to_le_bytes());
    let check = xxh3_64_with_seed(head.get(..56).unwrap_or_default(), seal.salt);
    put(&mut head, 56, &check.to_le_bytes());
    put(buffer, 0, &head);
    count
}

/// Carries a segment's digest on over one more batch. Two segments with the same digest hold the same batches.
pub(crate) fn digest_over(digest: u64, header: &[u8]) -> u64 {
    xxh3_64_with_seed(header.get(..BATCH_HEADER).unwrap_or(header), digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEAL: Seal = Seal { salt: 7, sequence: 3, time_us: 5, fence_mark: 9, oldest: 1 };

    fn batch(payloads: &[Vec<u8>], salt: u64) -> Vec<u8> {
        let mut buffer = vec![0; BATCH_HEADER];
        for (number, payload) in payloads.iter().enumerate() {
            let id = [number as u8; 32];
            encode_frame(&mut buffer, &Frame { kind: Kind::Put, id: &id, keep_until_s: 11, payload });
        }
        seal_batch(&mut buffer, &Seal { salt, ..SEAL });
        buffer
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_as_it_was(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..9)) {
            let bytes = batch(&payloads, 7);
            let head = BatchHead::decode(&bytes, 7).unwrap();
            prop_assert_eq!(head.batch_len(), bytes.len() as u64);
            prop_assert_eq!((head.sequence, head.time_us, head.fence_mark, head.oldest), (3, 5, 9, 1));
            let body = &bytes[BATCH_HEADER..];
            prop_assert!(head.matches(body, 7));
            let found: Vec<_> = frames(body).collect();
            prop_assert_eq!(found.len(), payloads.len());
            prop_assert_eq!(head.frames as usize, payloads.len());
            for ((at, frame), payload) in found.iter().zip(&payloads) {
                let (again, read) = decode_frame(&body[*at..], 7).unwrap();
                prop_assert_eq!(&again, frame);
                prop_assert_eq!(read, &payload[..]);
            }
        }

        #[test]
        fn no_changed_byte_and_no_other_salt_passes(at in 0usize..400, by in 1u8..) {
            let mut bytes = batch(&[vec![1; 100], vec![2; 100]], 7);
            prop_assert!(BatchHead::decode(&bytes, 8).is_none());
            let at = at % bytes.len();
            bytes[at] ^= by;
            let good = BatchHead::decode(&bytes, 7).is_some_and(|head| head.matches(&bytes[BATCH_HEADER..], 7));
            prop_assert!(!good);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = BatchHead::decode(&bytes, 1);
            let _ = decode_frame(&bytes, 1);
            let _ = frames(&bytes).count();
        }
    }
}
