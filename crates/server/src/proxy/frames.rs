//! What goes over an HTTP/2 connection to an upstream, as far as it decides whether a request was processed.
//!
//! The HTTP library says that a stream failed and by what error, but not which stream of the connection a request had,
//! nor whether its HEADERS ever left. So [`Follow`] reads the frames' headers beside it, in both directions, and keeps
//! in a [`Wire`] the three numbers that answer it. It copies no payload but a few bytes of SETTINGS and GOAWAY.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

/// What a client sends before its first frame.
const PREFACE_BYTES: u64 = 24;
const FRAME_HEAD_BYTES: usize = 9;
/// How much of a payload is kept: 64 settings, or a GOAWAY without its debug data.
const PAYLOAD_BYTES_MAX: usize = 384;

mod kind {
    pub(super) const HEADERS: u8 = 1;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const GOAWAY: u8 = 7;
}
const FLAG_ACK: u8 = 1;
const SETTING_MAX_CONCURRENT_STREAMS: u16 = 3;

/// What is known of one connection's frames.
#[derive(Debug)]
pub(super) struct Wire {
    /// The highest stream whose HEADERS were written.
    opened: AtomicU32,
    /// The lowest last stream of all GOAWAYs that came; [`Self::OPEN`] until one does.
    last: AtomicU32,
    /// How many streams the upstream takes at a time.
    streams_max: AtomicU32,
    /// Told once the upstream's first SETTINGS are here.
    greeted: Notify,
}

impl Wire {
    /// No GOAWAY has come: larger than any stream.
    const OPEN: u32 = u32::MAX;

    pub(super) fn new() -> Self {
        Self {
            opened: AtomicU32::new(0),
            last: AtomicU32::new(Self::OPEN),
            streams_max: AtomicU32::new(u32::MAX),
            greeted: Notify::new(),
        }
    }

    /// The highest stream whose HEADERS were written so far.
    pub(super) fn opened(&self) -> u32 {
        self.opened.load(Ordering::Acquire)
    }

    /// Whether the upstream has said that it takes no further streams.
    pub(super) fn is_closing(&self) -> bool {
        self.last.load(Ordering::Acquire) != Self::OPEN
    }

    /// Whether a GOAWAY left out a stream that had been opened.
    pub(super) fn left_out_a_stream(&self) -> bool {
        self.last.load(Ordering::Acquire) < self.opened()
    }

    pub(super) fn streams_max(&self) -> u32 {
        self.streams_max.load(Ordering::Acquire)
    }

    /// Waits for the upstream's SETTINGS, with which its side begins.
    pub(super) async fn greeted(&self) {
        self.greeted.notified().await;
    }

    fn sent(&self, frame: &Frame<'_>) {
        if frame.kind == kind::HEADERS {
            self.opened.fetch_max(frame.stream, Ordering::AcqRel);
        }
    }

    fn received(&self, frame: &Frame<'_>) {
        match frame.kind {
            kind::SETTINGS if frame.flags & FLAG_ACK == 0 => {
                for setting in frame.payload.chunks_exact(6) {
                    if let [name @ .., a, b, c, d] = setting
                        && name == SETTING_MAX_CONCURRENT_STREAMS.to_be_bytes()
                    {
                        self.streams_max.store(u32::from_be_bytes([*a, *b, *c, *d]), Ordering::Release);
                    }
                }
                self.greeted.notify_one();
            }
            kind::GOAWAY => {
                if let Some(last) = frame.payload.first_chunk() {
                    self.last.fetch_min(u32::from_be_bytes(*last) & (u32::MAX >> 1), Ordering::AcqRel);
                }
            }
            _ => {}
        }
    }
}

/// One frame, with the beginning of its payload where that is looked into.
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

/// Follows one direction of a connection from frame to frame.
#[derive(Debug)]
pub(super) struct Follow {
    direction: Direction,
    /// Bytes that are not looked at: the preface, payloads.
    skip: u64,
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    /// The beginning of the payload, where it is looked into.
    payload: Vec<u8>,
    /// How much of that is still to come.
    payload_left: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Sent,
    Received,
}

impl Follow {
    pub(super) fn sent() -> Self {
        Self::new(Direction::Sent, PREFACE_BYTES)
    }

    pub(super) fn received() -> Self {
        Self::new(Direction::Received, 0)
    }

    fn new(direction: Direction, skip: u64) -> Self {
        Self { direction, skip, head: [0; FRAME_HEAD_BYTES], head_bytes: 0, payload: Vec::new(), payload_left: 0 }
    }

    /// Follows the next bytes, and notes in `wire` what they say.
    pub(super) fn follow(&mut self, mut bytes: &[u8], wire: &Wire) {
        while let Some(first) = bytes.first() {
            if self.payload_left > 0 {
                let (now, later) = bytes.split_at(self.payload_left.min(bytes.len()));
                self.payload.extend_from_slice(now);
                self.payload_left -= now.len();
                bytes = later;
                if self.payload_left == 0 {
                    self.note(wire);
                }
            } else if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= skipped as u64;
                bytes = bytes.get(skipped..).unwrap_or_default();
            } else {
                if let Some(slot) = self.head.get_mut(self.head_bytes) {
                    *slot = *first;
                }
                self.head_bytes += 1;
                bytes = bytes.get(1..).unwrap_or_default();
                if self.head_bytes == FRAME_HEAD_BYTES {
                    self.begin(wire);
                }
            }
        }
    }

    /// A frame's header is whole.
    fn begin(&mut self, wire: &Wire) {
        self.head_bytes = 0;
        self.payload.clear();
        let [a, b, c, kind, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let looked_into =
            self.direction == Direction::Received && matches!(kind, kind::SETTINGS | kind::GOAWAY) && length > 0;
        let kept = if looked_into { (length as usize).min(PAYLOAD_BYTES_MAX) } else { 0 };
        self.payload_left = kept;
        self.skip = u64::from(length) - kept as u64;
        if kept == 0 {
            self.note(wire);
        }
    }

    fn note(&self, wire: &Wire) {
        let [_, _, _, kind, flags, a, b, c, d] = self.head;
        let stream = u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> 1);
        let frame = Frame { kind, flags, stream, payload: &self.payload };
        match self.direction {
            Direction::Sent => wire.sent(&frame),
            Direction::Received => wire.received(&frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn streams_settings_and_the_last_stream_are_seen_however_the_bytes_are_cut() {
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        sent.extend(frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]));
        sent.extend(frame(kind::HEADERS, 4, 1, b"\x07\0\0\0\0"));
        sent.extend(frame(0, 0, 1, &[1; 300]));
        sent.extend(frame(kind::HEADERS, 5, 7, b"head"));
        let mut received = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0, 0, 3, 0, 0, 0, 100]);
        received.extend(frame(kind::SETTINGS, FLAG_ACK, 0, &[]));
        received.extend(frame(kind::HEADERS, 4, 1, &[9; 20]));
        received.extend(frame(kind::GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]));
        for cut in 1..40 {
            let wire = Wire::new();
            assert!(!wire.is_closing() && !wire.left_out_a_stream());
            let (mut out, mut back) = (Follow::sent(), Follow::received());
            sent.chunks(cut).for_each(|bytes| out.follow(bytes, &wire));
            received.chunks(cut).for_each(|bytes| back.follow(bytes, &wire));
            assert_eq!((wire.opened(), wire.streams_max()), (7, 100), "in pieces of {cut}");
            // The first of a graceful end: nothing is left out yet.
            assert!(wire.is_closing() && !wire.left_out_a_stream());
            let last = frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0, b'b', b'y', b'e']);
            last.chunks(cut).for_each(|bytes| back.follow(bytes, &wire));
            assert!(wire.left_out_a_stream());
        }
    }
}
