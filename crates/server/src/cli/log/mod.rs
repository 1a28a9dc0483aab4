//! The log: lines gather in memory and a thread of its own writes them to stderr, many at a time.
//!
//! A request pays for the making of its line and one short lock, not for a system call, nor for waking another thread:
//! that one looks by itself, a fiftieth of a second after the first line. Where whoever reads the log does not keep up,
//! lines are dropped and counted rather than requests held up. [`line`] is what a line looks like.

pub(super) mod line;

use std::{
    io::{self, Write as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

/// Lines that wait to be written, in bytes.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How long a first line waits for others.
const GATHER: Duration = Duration::from_millis(20);

/// Takes lines. Clones share the buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    first: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    closed: bool,
}

/// Writes until it is dropped; then what is left.
#[derive(Debug)]
pub(super) struct Writer {
    lines: Lines,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one or more whole lines.
    fn push(&self, line: &[u8]) {
        let is_first = {
            let mut waiting = self.lock();
            if waiting.bytes.len() + line.len() > WAITING_BYTES_MAX {
                waiting.dropped += 1;
                return;
            }
            let is_first = waiting.bytes.is_empty();
            waiting.bytes.extend_from_slice(line);
            is_first
        };
        if is_first {
            self.0.first.notify_one();
        }
    }

    /// What has gathered; `None` at the end.
    fn take(&self, mut room: Vec<u8>) -> Option<Vec<u8>> {
        room.clear();
        let mut waiting = self.lock();
        while waiting.bytes.is_empty() && !waiting.closed {
            waiting = self.0.first.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.closed {
            let gather = |waiting: &mut Waiting| !waiting.closed;
            let gathered = self.0.first.wait_timeout_while(waiting, GATHER, gather);
            waiting = gathered.map_or_else(|poisoned| poisoned.into_inner().0, |(waiting, _)| waiting);
        }
        if waiting.bytes.is_empty() {
            return None;
        }
        std::mem::swap(&mut room, &mut waiting.bytes);
        let dropped = std::mem::take(&mut waiting.dropped);
        if dropped > 0 {
            // Writing to a Vec does not fail.
            let _ = writeln!(room, "{dropped} log lines were dropped: stderr is not read fast enough");
        }
        Some(room)
    }
}

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    /// Starts to write what `lines` takes to `out`.
    pub(super) fn start(lines: &Lines, mut out: impl io::Write + Send + 'static) -> io::Result<Self> {
        let from = lines.clone();
        let thread = std::thread::Builder::new().name("onceward-log".into()).spawn(move || {
            let mut room = Vec::new();
            while let Some(gathered) = from.take(room) {
                // A log that cannot be written is not worth a request.
                let _ = out.write_all(&gathered).and_then(|()| out.flush());
                room = gathered;
            }
        })?;
        Ok(Self { lines: lines.clone(), thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.lines.lock().closed = true;
        self.lines.0.first.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_before_the_end() {
        let (mut lines, out) = (Lines::default(), Out::default());
        let writer = Writer::start(&lines, out.clone()).unwrap();
        for number in 0..1000 {
            writeln!(lines, "line {number}").unwrap();
        }
        drop(writer);
        let written = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert!(written.lines().eq((0..1000).map(|number| format!("line {number}")).collect::<Vec<_>>()));
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_and_counted() {
        let lines = Lines::default();
        let line = vec![b'x'; WAITING_BYTES_MAX / 2];
        for _ in 0..5 {
            lines.push(&line);
        }
        lines.lock().closed = true;
        let written = lines.take(Vec::new()).unwrap();
        assert_eq!(
            written.len() - WAITING_BYTES_MAX,
            "3 log lines were dropped: stderr is not read fast enough\n".len()
        );
    }
}
