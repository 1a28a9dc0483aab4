//! The request of a protected gRPC call: one message, and no second one.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use crate::{body::BoxError, refuse::Problem};

/// How long a client that has sent one message may take to say that it was the only one. Clients of unary calls say it
/// with the message; those of a stream may never say it before they are answered.
const HALF_CLOSE_MAX: Duration = Duration::from_secs(10);

/// What is in front of a message: whether it is compressed, and its length as four bytes.
const PREFIX_BYTES: usize = 5;

pin_project_lite::pin_project! {
    /// A body that ends in an error where it is not the one message of a call. Without a check it passes as it is.
    pub(super) struct OneMessage<B> {
        #[pin]
        body: B,
        check: Option<Check>,
    }
}

/// Why a call is not protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotOneMessage {
    /// Something came after the message, or its end did not.
    #[error("the call has more than one message")]
    More,
    /// It ended before one began.
    #[error("the call has no message")]
    None,
    /// It ended within one.
    #[error("the call's message is cut short")]
    Cut,
}

#[derive(Default)]
struct Check {
    framing: Framing,
    /// Made where the end does not come with the message.
    half_close: Option<Pin<Box<Sleep>>>,
}

/// Where in its message a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Prefix { have: usize, length: u32 },
    Message { left: u32 },
    Done,
}

impl Default for Framing {
    fn default() -> Self {
        Self::Prefix { have: 0, length: 0 }
    }
}

impl Framing {
    fn follow(mut self, mut data: &[u8]) -> Result<Self, NotOneMessage> {
        while let Some((first, rest)) = data.split_first() {
            (self, data) = match self {
                Self::Prefix { have, length } => {
                    // The first byte is the flag, the others the length, the highest first.
                    let length = if have == 0 { 0 } else { length << 8 | u32::from(*first) };
                    let next = match have + 1 {
                        PREFIX_BYTES if length == 0 => Self::Done,
                        PREFIX_BYTES => Self::Message { left: length },
                        have => Self::Prefix { have, length },
                    };
                    (next, rest)
                }
                Self::Message { left } => {
                    let taken = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
                    let next = if left == 0 { Self::Done } else { Self::Message { left } };
                    (next, data.get(taken..).unwrap_or_default())
                }
                Self::Done => return Err(NotOneMessage::More),
            };
        }
        Ok(self)
    }

    fn end(self) -> Result<(), NotOneMessage> {
        match self {
            Self::Done => Ok(()),
            Self::Prefix { have: 0, .. } => Err(NotOneMessage::None),
            Self::Prefix { .. } | Self::Message { .. } => Err(NotOneMessage::Cut),
        }
    }
}

/// Says of a whole body what a request with it would meet.
pub(crate) fn is_one(body: &[u8]) -> Result<(), Problem> {
    Framing::default().follow(body).and_then(Framing::end).map_err(NotOneMessage::problem)
}

impl NotOneMessage {
    pub(super) fn problem(self) -> Problem {
        match self {
            Self::More | Self::None => Problem::NotOneMessage,
            Self::Cut => Problem::BodyUnreadable,
        }
    }
}

impl<B> OneMessage<B> {
    /// `body`, checked where it `is_grpc`.
    pub(super) fn new(body: B, is_grpc: bool) -> Self {
        Self { body, check: is_grpc.then(Check::default) }
    }
}

impl<B> HttpBody for OneMessage<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let polled = this.body.poll_frame(cx);
        let Some(check) = this.check else {
            return polled.map_err(Into::into);
        };
        if polled.is_pending() && check.framing == Framing::Done {
            let half_close = check.half_close.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSE_MAX)));
            ready!(half_close.as_mut().poll(cx));
            return Poll::Ready(Some(Err(NotOneMessage::More.into())));
        }
        Poll::Ready(match ready!(polled) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    match check.framing.follow(data) {
                        Ok(framing) => check.framing = framing,
                        Err(error) => return Poll::Ready(Some(Err(error.into()))),
                    }
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => check.framing.end().err().map(|error| Err(error.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_is_told_from_none_from_more_and_from_a_part_however_it_is_cut() {
        let rows: &[(&[u8], Result<(), NotOneMessage>)] = &[
            (&[0, 0, 0, 0, 3, 1, 2, 3], Ok(())),
            (&[1, 0, 0, 0, 1, 9], Ok(())),
            (&[0, 0, 0, 0, 0], Ok(())),
            (&[], Err(NotOneMessage::None)),
            (&[0, 0, 0], Err(NotOneMessage::Cut)),
            (&[0, 0, 0, 0, 3, 1, 2], Err(NotOneMessage::Cut)),
            (&[0, 0, 0, 1, 0, 1, 2], Err(NotOneMessage::Cut)),
            (&[0, 0, 0, 0, 1, 9, 0], Err(NotOneMessage::More)),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Err(NotOneMessage::More)),
        ];
        for (bytes, want) in rows {
            for cut in 0..=bytes.len() {
                let (first, rest) = bytes.split_at(cut);
                let found = Framing::default().follow(first).and_then(|framing| framing.follow(rest));
                assert_eq!(found.and_then(Framing::end), *want, "{bytes:?} cut at {cut}");
            }
        }
    }
}
