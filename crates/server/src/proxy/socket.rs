//! The client's socket, as hyper reads it: the stricter framing, the time limits and an end that loses no answer.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::framing::{Framing, Phase};
use super::refused;
use super::stream::Stream;

/// Ends any head and any chunk line with a byte that hyper's parser refuses everywhere.
const POISON: &[u8] = b"\0\r\n\r\n";

/// How much of what a refused client still sends is read and thrown away, and for how long, so that closing does not
/// reset the connection under the answer on its way.
const LINGER_BYTES_MAX: usize = 1 << 20;
const LINGER_MAX: Duration = Duration::from_secs(2);

/// The time limits of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// From the first byte of a message head to its last.
    pub(super) head: Duration,
    /// Between two bytes of a request body, and of an answer that the client does not take.
    pub(super) stall: Duration,
    /// With no request open.
    pub(super) idle: Duration,
}

/// What a connection's socket and its requests know of each other.
#[derive(Debug)]
pub(super) struct Activity {
    started: Instant,
    /// Requests whose answer is not at its end.
    open: AtomicUsize,
    /// When the last of them ended, in microseconds since `started`.
    ended_us: AtomicU64,
    /// What the connection was told, of [`signal`].
    signals: AtomicU8,
    /// The connection's task, to be woken by a signal.
    task: AtomicWaker,
}

/// What a connection can be told.
pub(super) mod signal {
    /// Take no new request, and end.
    pub(in crate::proxy) const DRAIN: u8 = 1;
    /// An HTTP/2 connection was idle for too long: end it with a GOAWAY.
    pub(in crate::proxy) const IDLE: u8 = 2;
    /// End now.
    pub(in crate::proxy) const CUT: u8 = 4;
}

/// One open request; ends it when dropped.
#[derive(Debug)]
pub(super) struct OpenRequest(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            open: AtomicUsize::new(0),
            ended_us: AtomicU64::new(0),
            signals: AtomicU8::new(0),
            task: AtomicWaker::new(),
        })
    }

    /// Counts a request as open until the result is dropped.
    pub(super) fn open(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenRequest(Arc::clone(self))
    }

    /// Tells the connection something.
    pub(super) fn signal(&self, signal: u8) {
        self.signals.fetch_or(signal, Ordering::AcqRel);
        self.task.wake();
    }

    /// What the connection was told so far; the task is woken at the next signal.
    pub(super) fn poll_signals(&self, cx: &Context<'_>) -> u8 {
        self.task.register(cx.waker());
        self.signals.load(Ordering::Acquire)
    }

    fn ended(&self) -> Instant {
        self.started + Duration::from_micros(self.ended_us.load(Ordering::Relaxed))
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let ended_us = u64::try_from(self.0.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.ended_us.fetch_max(ended_us, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The socket of one client.
pub(super) struct Socket {
    stream: Stream,
    framing: Framing,
    /// What of [`POISON`] hyper still has to read. The stream itself is not read any more.
    poison: Option<&'static [u8]>,
    times: Times,
    activity: Arc<Activity>,
    /// When bytes came last.
    read_at: Instant,
    /// When the head began that is not complete.
    head_at: Instant,
    /// Wakes the connection at the earliest time at which a limit may be over. Kept and moved, not made for each read.
    timer: Option<Pin<Box<Sleep>>>,
    /// Runs while a write is blocked.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// An HTTP/2 connection was told to end for idleness.
    told_idle: bool,
    linger: Option<Linger>,
    /// Nothing of an answer is on its way: what was written is flushed, and no request is open. Only then can what comes
    /// be an answer of hyper's own; at any other time the same bytes may be part of a body.
    between: bool,
    /// What is being written in place of hyper's own answer, and how long that is.
    instead: Option<(Bytes, usize)>,
}

struct Linger {
    until: Pin<Box<Sleep>>,
    left: usize,
}

impl Socket {
    pub(super) fn new(stream: Stream, times: Times, activity: Arc<Activity>) -> Self {
        let now = Instant::now();
        Self {
            stream,
            framing: Framing::new(),
            poison: None,
            times,
            activity,
            read_at: now,
            head_at: now,
            timer: None,
            write_timer: None,
            told_idle: false,
            linger: None,
            between: true,
            instead: None,
        }
    }

    /// When to give up if nothing more comes, or `None` where the client owes nothing.
    fn deadline(&self) -> Option<Instant> {
        let open = self.activity.open.load(Ordering::Relaxed) > 0;
        match self.framing.phase() {
            Phase::Head => Some(self.head_at + self.times.head),
            Phase::Body => Some(self.read_at + self.times.stall),
            Phase::Boundary | Phase::Http2 if !open => Some(self.read_at.max(self.activity.ended()) + self.times.idle),
            Phase::Boundary | Phase::Http2 | Phase::Opaque => None,
        }
    }

    /// What a read that has nothing to give ends with, if a limit is over. Arms the timer for the next look else.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let now = Instant::now();
            let look_at = match self.deadline() {
                // The client owes nothing now; look again when it might.
                None => now + self.times.idle,
                Some(deadline) if deadline > now => deadline,
                Some(_) => match self.framing.phase() {
                    Phase::Http2 if !self.told_idle => {
                        self.told_idle = true;
                        self.activity.signal(signal::IDLE);
                        now + self.times.stall
                    }
                    // The end of the stream, between two messages: hyper closes in good order.
                    Phase::Boundary | Phase::Http2 => return Poll::Ready(Ok(())),
                    Phase::Head | Phase::Body | Phase::Opaque => {
                        metrics::counter!("onceward_client_timeouts_total").increment(1);
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped sending")));
                    }
                },
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(look_at)));
            if timer.deadline() > look_at || timer.is_elapsed() {
                timer.as_mut().reset(look_at);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// Follows what was just read; at something to refuse, puts the poison in its place.
    fn follow(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let fresh = buf.filled().get(before..).unwrap_or_default();
        let was = self.framing.phase();
        if let Err(offset) = self.framing.follow(fresh) {
            metrics::counter!("onceward_framing_refused_total").increment(1);
            buf.set_filled(before + offset);
            self.poison = Some(POISON);
            self.give_poison(buf);
        }
        let now = Instant::now();
        if self.framing.phase() == Phase::Head && was != Phase::Head {
            self.head_at = now;
        }
        self.read_at = now;
    }

    fn give_poison(&mut self, buf: &mut ReadBuf<'_>) {
        if let Some(poison) = &mut self.poison {
            let (now, later) = poison.split_at(poison.len().min(buf.remaining()));
            buf.put_slice(now);
            *poison = later;
        }
    }

    /// Writes what stands in place of hyper's answer, and says that the whole of that was written.
    fn poll_write_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((answer, len)) = &mut self.instead {
            let len = *len;
            if answer.is_empty() {
                self.instead = None;
                return Poll::Ready(Ok(len));
            }
            let written = Pin::new(&mut self.stream).poll_write(cx, answer);
            let count = ready!(self.poll_written(cx, written))?;
            if let Some((answer, _)) = &mut self.instead {
                answer.advance(count);
            }
        }
        Poll::Ready(Ok(0))
    }

    fn poll_written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        if self.framing.phase() == Phase::Opaque {
            // A tunnel may be as slow as it likes.
            return Poll::Pending;
        }
        let stall = self.times.stall;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        metrics::counter!("onceward_client_timeouts_total").increment(1);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poison {
            None => {}
            Some([]) => return Poll::Pending,
            Some(_) => {
                this.give_poison(buf);
                return Poll::Ready(Ok(()));
            }
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                if buf.filled().len() > before {
                    this.follow(buf, before);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.poll_limits(cx),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.between && this.framing.phase() != Phase::Http2 {
            this.instead = refused::in_place_of(bytes).map(|answer| (answer, bytes.len()));
        }
        this.between = false;
        if this.instead.is_some() {
            return this.poll_write_instead(cx);
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.poll_written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices {
            return self.poll_write(cx, only);
        }
        let this = self.get_mut();
        this.between = false;
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        // Without TLS there is nothing to flush, and it says nothing about a write that is blocked.
        let flushed = if this.stream.is_tls() { this.poll_written(cx, flushed) } else { flushed };
        this.between = matches!(flushed, Poll::Ready(Ok(()))) && this.activity.open.load(Ordering::Relaxed) == 0;
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.poll_written(cx, shut))?;
            // Only a client in the middle of a message has more to send that would reset the connection.
            if this.poison.is_none() && !matches!(this.framing.phase(), Phase::Head | Phase::Body) {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this
            .linger
            .get_or_insert_with(|| Linger { until: Box::pin(tokio::time::sleep(LINGER_MAX)), left: LINGER_BYTES_MAX });
        let mut waste = [0; 4096];
        while linger.left > 0 && linger.until.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => linger.left = linger.left.saturating_sub(buf.filled().len()),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
