//! A second, stricter reading of what an HTTP/1 client sends.
//!
//! hyper's parser takes a lone line feed for a line end, drops what follows a `#` in the request target, and lets
//! blanks trail a chunk size. Each is harmless alone; in front of it, a proxy that reads the same bytes otherwise
//! makes a hidden request of them. So [`Framing`] follows the byte stream from message to message, looks at each
//! head once, and refuses these. It copies nothing except a line that a read cut in two.
//!
//! It follows body framing as hyper does: `Transfer-Encoding` wins over `Content-Length`. Where hyper is certain to
//! refuse a message by itself, it stops following and leaves the answer to hyper.

/// Longest line that is put together from several reads, in bytes. Heads above `Limits::headers_bytes` are hyper's to
/// refuse; beyond this the follower stops.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Where the stream stands between two reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Between two messages: nothing of the next one has come.
    Boundary,
    /// Inside a message head.
    Head,
    /// Inside a message body or its trailers.
    Body,
    /// HTTP/2: not followed.
    Http2,
    /// Not HTTP/1 any more: a WebSocket handshake was seen, or hyper is about to close.
    Opaque,
}

/// The follower of one connection.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    head: Head,
    /// Whether a first message began; only the very first may be the HTTP/2 preface.
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Boundary,
    RequestLine,
    Header,
    Fixed(u64),
    Size { digits: u8, size: u64 },
    SizeBlank { size: u64 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Trailer,
    Http2,
    Opaque,
}

/// What of a head decides how its body is framed.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    chunked: bool,
    length: Option<u64>,
    /// A length that cannot be read, or two that differ.
    length_bad: bool,
    websocket: bool,
}

impl Framing {
    /// A follower at the start of a connection.
    pub(super) fn new() -> Self {
        Self { state: State::Boundary, line: Vec::new(), head: Head::default(), begun: false }
    }

    /// Where the stream stands.
    pub(super) fn phase(&self) -> Phase {
        match self.state {
            State::Boundary => Phase::Boundary,
            State::RequestLine | State::Header => Phase::Head,
            State::Http2 => Phase::Http2,
            State::Opaque => Phase::Opaque,
            State::Fixed(_)
            | State::Size { .. }
            | State::SizeBlank { .. }
            | State::Extension { .. }
            | State::SizeLf { .. }
            | State::Chunk(_)
            | State::ChunkCr
            | State::ChunkLf
            | State::Trailer => Phase::Body,
        }
    }

    /// Follows the next bytes of the stream.
    ///
    /// # Errors
    ///
    /// The offset in `bytes` of the byte at which the stream must be refused: a NUL in its place makes hyper's parser
    /// fail there. The follower is of no use afterwards.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += self.step(rest).map_err(|offset| at + offset)?;
        }
        Ok(())
    }

    /// Consumes bytes of `rest`, which is not empty, and says how many; none only where it moves to a state that does.
    fn step(&mut self, rest: &[u8]) -> Result<usize, usize> {
        let first = rest.first().copied().unwrap_or_default();
        match self.state {
            State::Opaque | State::Http2 => Ok(rest.len()),
            State::Boundary => {
                self.state = State::RequestLine;
                Ok(0)
            }
            State::RequestLine | State::Header | State::Trailer => self.step_line(rest),
            State::Fixed(left) => {
                let taken = clamp(left, rest.len());
                self.state = match left - taken as u64 {
                    0 => State::Boundary,
                    left => State::Fixed(left),
                };
                Ok(taken)
            }
            State::Size { digits, size } => {
                self.state = match first {
                    b'\r' if digits > 0 => State::SizeLf { size },
                    b';' if digits > 0 => State::Extension { size },
                    b' ' | b'\t' if digits > 0 => State::SizeBlank { size },
                    _ => {
                        let digit = (first as char).to_digit(16).ok_or(0_usize)?;
                        let size = size.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit)));
                        State::Size { digits: 1, size: size.ok_or(0_usize)? }
                    }
                };
                Ok(1)
            }
            // Blanks are allowed before an extension only.
            State::SizeBlank { size } => {
                self.state = match first {
                    b' ' | b'\t' => State::SizeBlank { size },
                    b';' => State::Extension { size },
                    _ => return Err(0),
                };
                Ok(1)
            }
            State::Extension { size } => match memchr::memchr2(b'\r', b'\n', rest) {
                None => Ok(rest.len()),
                Some(end) => {
                    self.state = match rest.get(end) {
                        Some(b'\r') => State::SizeLf { size },
                        // hyper refuses a line feed here by itself; a NUL it would take.
                        _ => State::Opaque,
                    };
                    Ok(end + 1)
                }
            },
            State::SizeLf { size } => {
                if first != b'\n' {
                    return Err(0);
                }
                self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
                Ok(1)
            }
            State::Chunk(left) => {
                let taken = clamp(left, rest.len());
                self.state = match left - taken as u64 {
                    0 => State::ChunkCr,
                    left => State::Chunk(left),
                };
                Ok(taken)
            }
            State::ChunkCr => {
                if first != b'\r' {
                    return Err(0);
                }
                self.state = State::ChunkLf;
                Ok(1)
            }
            State::ChunkLf => {
                if first != b'\n' {
                    return Err(0);
                }
                self.state = State::Size { digits: 0, size: 0 };
                Ok(1)
            }
        }
    }

    /// Takes the next line of a head or of trailers, or the part of it that has come.
    fn step_line(&mut self, rest: &[u8]) -> Result<usize, usize> {
        let Some(end) = memchr::memchr(b'\n', rest) else {
            if self.line.len() + rest.len() > LINE_BYTES_MAX {
                self.state = State::Opaque;
            } else {
                self.line.extend_from_slice(rest);
            }
            return Ok(rest.len());
        };
        let piece = rest.get(..end).unwrap_or_default();
        let accepted = if self.line.is_empty() {
            self.end_line(piece)
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(piece);
            let accepted = self.end_line(&line);
            line.clear();
            self.line = line;
            accepted
        };
        if accepted { Ok(end + 1) } else { Err(end) }
    }

    /// Judges one line, given without its line feed, and moves on. False refuses it.
    fn end_line(&mut self, line: &[u8]) -> bool {
        let Some((b'\r', line)) = line.split_last() else {
            return false;
        };
        match self.state {
            State::RequestLine => {
                if line.is_empty() {
                    // Empty lines before a request are skipped, RFC 9112 section 2.2.
                    self.state = State::Boundary;
                    return true;
                }
                if line == b"PRI * HTTP/2.0" {
                    // The preface of HTTP/2 begins a connection or is nothing.
                    self.state = State::Http2;
                    return !self.begun;
                }
                self.begun = true;
                self.head = Head::default();
                self.state = State::Header;
                // A fragment is never sent; hyper would cut it off, and so forward another target than it got.
                memchr::memchr(b'#', line).is_none()
            }
            State::Trailer if line.is_empty() => {
                self.state = State::Boundary;
                true
            }
            State::Header if line.is_empty() => {
                self.state = self.head.body();
                true
            }
            _ => {
                if self.state == State::Header {
                    self.head.field(line);
                }
                // A line that begins with a blank continues the one before: obs-fold, refused by RFC 9112 section 5.2.
                !matches!(line.first(), Some(b' ' | b'\t'))
            }
        }
    }
}

impl Head {
    /// Notes a field line if it decides the framing.
    fn field(&mut self, line: &[u8]) {
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => {
                if let Some(value) = value_of(line, b"content-length:") {
                    match parse_length(value) {
                        Some(length) if self.length.is_none_or(|seen| seen == length) => self.length = Some(length),
                        _ => self.length_bad = true,
                    }
                }
            }
            // Only `chunked` in the last place is let through by hyper, and by `entry` only alone.
            Some(b't') => self.chunked |= value_of(line, b"transfer-encoding:").is_some(),
            Some(b'u') => {
                if let Some(value) = value_of(line, b"upgrade:") {
                    self.websocket |= is_websocket(value);
                }
            }
            _ => {}
        }
    }

    /// How the body goes on after the head.
    fn body(self) -> State {
        if self.websocket {
            State::Opaque
        } else if self.chunked {
            State::Size { digits: 0, size: 0 }
        } else if self.length_bad {
            // hyper answers 400 and closes.
            State::Opaque
        } else {
            match self.length {
                None | Some(0) => State::Boundary,
                Some(length) => State::Fixed(length),
            }
        }
    }
}

/// Whether an `Upgrade` value asks for a WebSocket, as a whole token of the list.
pub(super) fn is_websocket(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

fn value_of<'a>(line: &'a [u8], name_and_colon: &[u8]) -> Option<&'a [u8]> {
    let (name, value) = line.split_at_checked(name_and_colon.len())?;
    name.eq_ignore_ascii_case(name_and_colon).then_some(value.trim_ascii())
}

fn parse_length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |length, byte| {
        let digit = (*byte as char).to_digit(10)?;
        length.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

fn clamp(left: u64, available: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(stream: &[u8]) -> Result<Phase, usize> {
        let mut framing = Framing::new();
        framing.follow(stream).map(|()| framing.phase())
    }

    /// The verdict must not depend on how the network cuts the stream.
    fn same_in_all_cuts(stream: &[u8]) -> Result<Phase, usize> {
        let whole = verdict(stream);
        for cut in 1..stream.len() {
            let mut framing = Framing::new();
            let (left, right) = stream.split_at(cut);
            let cut_up = framing
                .follow(left)
                .and_then(|()| framing.follow(right).map_err(|offset| offset + cut))
                .map(|()| framing.phase());
            assert_eq!(cut_up, whole, "cut at {cut} of {:?}", String::from_utf8_lossy(stream));
        }
        let mut framing = Framing::new();
        let mut bytewise = Ok(());
        for (at, byte) in stream.iter().enumerate() {
            bytewise = framing.follow(&[*byte]).map_err(|_| at);
            if bytewise.is_err() {
                break;
            }
        }
        assert_eq!(bytewise.map(|()| framing.phase()), whole);
        whole
    }

    #[test]
    fn messages_are_followed_to_their_ends() {
        for stream in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:  5 \r\n\r\na\nb\nc",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\nA ;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\nX: y\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(same_in_all_cuts(stream), Ok(Phase::Boundary), "{:?}", String::from_utf8_lossy(stream));
        }
    }

    #[test]
    fn unfinished_messages_are_told_apart() {
        assert_eq!(same_in_all_cuts(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(Phase::Head));
        assert_eq!(same_in_all_cuts(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n1234"), Ok(Phase::Body));
        assert_eq!(same_in_all_cuts(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"), Ok(Phase::Body));
    }

    #[test]
    fn lone_line_feeds_folds_and_fragments_are_refused() {
        for stream in [
            &b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\na\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\nContent-Length: 3\r\n\r\n",
        ] {
            let offset = same_in_all_cuts(stream).expect_err("must be refused");
            assert!(offset < stream.len());
        }
    }

    #[test]
    fn http2_and_websockets_are_left_alone() {
        assert_eq!(same_in_all_cuts(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n\n"), Ok(Phase::Http2));
        let handshake = b"GET / HTTP/1.1\r\nUpgrade: foo, WebSocket\r\n\r\n\x81\n\n";
        assert_eq!(same_in_all_cuts(handshake), Ok(Phase::Opaque));
        assert_eq!(same_in_all_cuts(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"), Ok(Phase::Boundary));
    }
}
