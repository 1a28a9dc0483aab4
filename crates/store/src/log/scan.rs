//! Reading a segment from front to back, batch by batch.

use std::io;

use super::batch::{ALIGN, BATCH_HEADER, BatchHead, FRAME_HEADER, Kind, array, digest_over, frames, mark_of};
use super::file::DiskFile;
use super::segment::HEADER_ROOM;
use super::{Entry, Position};

/// How much is read at once.
const WINDOW: usize = 1 << 20;

/// A moving view of a file, so that a segment is read in large pieces.
struct Window<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
    base: u64,
    /// No byte from here on belongs to a batch.
    limit: u64,
}

impl Window<'_> {
    /// The `len` bytes at `offset`; fewer where the limit or the file ends before.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let wanted = usize::try_from(self.limit.saturating_sub(offset)).map_or(len, |left| left.min(len));
        let held = offset >= self.base && offset + wanted as u64 <= self.base + self.buffer.len() as u64;
        if !held {
            let room = usize::try_from(self.limit.saturating_sub(offset)).unwrap_or(usize::MAX);
            let size = wanted.max(WINDOW).min(room);
            self.buffer.resize(size, 0);
            let read = self.file.read_at(&mut self.buffer, offset)?;
            self.buffer.truncate(read);
            self.base = offset;
        }
        let start = usize::try_from(offset - self.base).map_err(io::Error::other)?;
        let end = (start + wanted).min(self.buffer.len());
        Ok(self.buffer.get(start..end).unwrap_or_default())
    }
}

/// What reading has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The byte behind the last valid batch.
    pub(crate) end: u64,
    /// The sequence number the next batch must have.
    pub(crate) sequence: u64,
    pub(crate) digest: u64,
    pub(crate) frames: u32,
    pub(crate) time_us: u64,
    pub(crate) fence_mark: u64,
    pub(crate) oldest: u32,
    /// Where the last valid batch begins.
    pub(crate) last_batch: Option<u64>,
}

/// What stands where reading stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No batch of this segment begins there.
    Clean,
    /// One begins there and is not whole; its header, if that is.
    Torn(Option<BatchHead>),
    /// The segment is full to its limit.
    Limit,
}

/// A reader of one segment.
pub(crate) struct Scan<'a> {
    window: Window<'a>,
    number: u32,
    salt: u64,
    tag_of: fn(&[u8]) -> u64,
    pub(crate) progress: Progress,
}

impl<'a> Scan<'a> {
    /// Begins at the segment's first batch. `limit`: the byte behind the last one, if known, else the end of the room.
    pub(crate) fn new(file: &'a dyn DiskFile, number: u32, salt: u64, limit: u64, sequence: u64) -> Self {
        let start = u64::from(HEADER_ROOM);
        Self {
            window: Window { file, buffer: Vec::new(), base: 0, limit },
            number,
            salt,
            tag_of: |_| 0,
            progress: Progress {
                end: start,
                sequence,
                digest: 0,
                frames: 0,
                time_us: 0,
                fence_mark: 0,
                oldest: 0,
                last_batch: None,
            },
        }
    }

    /// Tags the frames it shows.
    pub(crate) fn tagging(self, tag_of: fn(&[u8]) -> u64) -> Self {
        Self { tag_of, ..self }
    }

    /// Reads on while batches are valid and shows their frames, one batch after it was verified whole.
    pub(crate) fn run(&mut self, show: &mut dyn FnMut(Entry)) -> io::Result<Stop> {
        loop {
            let at = self.progress.end;
            if at >= self.window.limit {
                return Ok(Stop::Limit);
            }
            let bytes = self.window.bytes(at, BATCH_HEADER)?;
            let Some(head) = BatchHead::decode(bytes, self.salt) else {
                let marked = array(bytes, 0).map(u64::from_le_bytes) == Some(mark_of(self.salt));
                return Ok(if marked { Stop::Torn(None) } else { Stop::Clean });
            };
            let digest = digest_over(self.progress.digest, bytes);
            let body = self.window.bytes(at + BATCH_HEADER as u64, head.body as usize)?;
            if !head.matches(body, self.salt) || head.sequence != self.progress.sequence {
                return Ok(Stop::Torn(Some(head)));
            }
            let base = at + BATCH_HEADER as u64;
            for (offset, frame) in frames(body) {
                let [id, _] = split(&frame.id);
                let payload = offset + FRAME_HEADER..offset + FRAME_HEADER + frame.payload;
                let tag = match frame.kind {
                    Kind::Put => (self.tag_of)(body.get(payload).unwrap_or_default()),
                    Kind::Remove => 0,
                };
                show(Entry {
                    id,
                    kind: frame.kind,
                    keep_until_s: frame.keep_until_s,
                    position: Position::new(self.number, base + offset as u64),
                    len: frame.frame_len(),
                    tag,
                });
            }
            self.progress = Progress {
                end: at + head.batch_len(),
                sequence: head.sequence + 1,
                digest,
                frames: self.progress.frames + head.frames,
                time_us: head.time_us,
                fence_mark: head.fence_mark,
                oldest: head.oldest,
                last_batch: Some(at),
            };
        }
    }

    /// The next batch header of this segment behind where reading stopped, and its place. There is none behind a
    /// batch that a crash has torn: the one after it would have been written only once it was whole.
    pub(crate) fn next_header(&mut self) -> io::Result<Option<(u64, BatchHead)>> {
        let mark = mark_of(self.salt);
        let mut at = self.progress.end + ALIGN as u64;
        while at + BATCH_HEADER as u64 <= self.window.limit {
            let bytes = self.window.bytes(at, WINDOW)?;
            if bytes.len() < BATCH_HEADER {
                break;
            }
            let here = bytes.chunks(ALIGN).position(|chunk| array(chunk, 0).map(u64::from_le_bytes) == Some(mark));
            match here {
                None => at += bytes.len().next_multiple_of(ALIGN) as u64,
                Some(chunk) => {
                    at += (chunk * ALIGN) as u64;
                    let head = BatchHead::decode(self.window.bytes(at, BATCH_HEADER)?, self.salt);
                    match head.filter(|head| head.sequence > self.progress.sequence) {
                        Some(head) => return Ok(Some((at, head))),
                        None => at += ALIGN as u64,
                    }
                }
            }
        }
        Ok(None)
    }

    /// Leaves out what lies between here and `to`, where a batch with this sequence number begins.
    pub(crate) fn skip(&mut self, to: u64, sequence: u64) {
        self.progress.end = to;
        self.progress.sequence = sequence;
    }
}

/// The two halves of an id; the first one names it in the index.
pub(crate) fn split(id: &[u8; 32]) -> [[u8; 16]; 2] {
    let half = |at| array(id, at).unwrap_or_default();
    [half(0), half(16)]
}
