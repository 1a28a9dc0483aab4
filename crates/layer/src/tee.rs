//! A body that passes through untouched, and a copy of it for whoever only watches.
//!
//! The copy never holds the body up: it is left behind where nobody reads it or there is no room for it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::body::BoxError;

/// What is copied.
enum Piece {
    /// Bytes, and their room until they are read.
    Data(Bytes, OwnedSemaphorePermit),
    /// It is complete.
    End(Option<HeaderMap>),
    /// It broke off by itself.
    Failed,
}

pin_project_lite::pin_project! {
    /// A body on its way to whom it is for.
    pub(crate) struct Tee<B> {
        #[pin]
        body: B,
        copier: Copier,
    }
}

/// The writing end of a copy.
struct Copier {
    pieces: Option<mpsc::UnboundedSender<Piece>>,
    room: Arc<Semaphore>,
    /// Bytes still to come, where the length is known: whoever has them all may not ask for the end.
    left: Option<u64>,
}

/// The copy, as a body that ends or fails as the first one does.
pub(crate) struct Watched {
    pieces: mpsc::UnboundedReceiver<Piece>,
    hint: SizeHint,
    ended: bool,
    lost: Arc<AtomicBool>,
}

/// Whether a copy was left behind: its body was not read to its end, or there was no room.
#[derive(Clone)]
pub(crate) struct Lost(Arc<AtomicBool>);

impl Lost {
    pub(crate) fn is_lost(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// `body`, and a copy of what goes through it, whose unread bytes take their room from `room`.
pub(crate) fn tee<B: HttpBody<Data = Bytes>>(body: B, room: &Arc<Semaphore>) -> (Tee<B>, Watched) {
    let (sender, pieces) = mpsc::unbounded_channel();
    let hint = body.size_hint();
    let mut copier = Copier { pieces: Some(sender), room: Arc::clone(room), left: hint.exact() };
    if body.is_end_stream() {
        copier.send(Piece::End(None));
    }
    let watched = Watched { pieces, hint, ended: false, lost: Arc::default() };
    (Tee { body, copier }, watched)
}

impl Copier {
    fn send(&mut self, piece: Piece) {
        let last = !matches!(piece, Piece::Data(..));
        let gone = self.pieces.as_ref().is_none_or(|pieces| pieces.send(piece).is_err());
        if last || gone {
            self.pieces = None;
        }
    }

    fn copy(&mut self, frame: &Frame<Bytes>) {
        if self.pieces.is_none() {
            return;
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.send(Piece::End(Some(trailers.clone())));
        } else if let Some(data) = frame.data_ref() {
            self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
            let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
            match Arc::clone(&self.room).try_acquire_many_owned(bytes) {
                Ok(room) => self.send(Piece::Data(data.clone(), room)),
                Err(_) => self.pieces = None,
            }
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        if self.left == Some(0) {
            self.send(Piece::End(None));
        }
    }
}

impl<B> HttpBody for Tee<B>
where
    B: HttpBody<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = std::task::ready!(this.body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                this.copier.copy(frame);
                if this.body.is_end_stream() {
                    this.copier.send(Piece::End(None));
                }
            }
            Some(Err(_)) => this.copier.send(Piece::Failed),
            None => this.copier.send(Piece::End(None)),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Watched {
    pub(crate) fn lost(&self) -> Lost {
        Lost(Arc::clone(&self.lost))
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = std::task::ready!(self.pieces.poll_recv(cx));
        if let Some(Piece::Data(bytes, _room)) = piece {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        self.ended = true;
        Poll::Ready(match piece {
            Some(Piece::End(trailers)) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Some(Piece::Failed) => Some(Err("the body broke off".into())),
            _ => {
                self.lost.store(true, Ordering::Relaxed);
                Some(Err("the body was not watched to its end".into()))
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    fn room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1000))
    }

    #[tokio::test]
    async fn the_copy_ends_as_the_body_does() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let frames = [Ok::<_, BoxError>(Frame::data(Bytes::from("one "))), Ok(Frame::data(Bytes::from("two")))];
        let with_trailers = frames.into_iter().chain([Ok(Frame::trailers(trailers.clone()))]);
        let (body, copy) = tee(StreamBody::new(futures_util::stream::iter(with_trailers)), &room());
        body.collect().await.unwrap();
        let copied = copy.collect().await.unwrap();
        assert_eq!(copied.trailers(), Some(&trailers));
        assert_eq!(copied.to_bytes(), "one two");

        let broken = [Ok(Frame::data(Bytes::from("one "))), Err(BoxError::from("reset"))];
        let (body, copy) = tee(StreamBody::new(futures_util::stream::iter(broken)), &room());
        let lost = copy.lost();
        assert!(body.collect().await.is_err() && copy.collect().await.is_err());
        assert!(!lost.is_lost(), "it broke off by itself");
    }

    #[tokio::test]
    async fn whoever_has_the_length_needs_not_ask_for_the_end() {
        let (mut body, copy) = tee(Full::new(Bytes::from("all of it")), &room());
        assert!(body.frame().await.is_some());
        drop(body);
        assert_eq!(copy.collect().await.unwrap().to_bytes(), "all of it");
        let (body, copy) = tee(Full::new(Bytes::new()), &room());
        drop(body);
        assert_eq!(copy.collect().await.unwrap().to_bytes(), "");
    }

    #[tokio::test]
    async fn a_copy_without_room_is_left_behind_and_its_room_comes_back() {
        let room = room();
        let frames = (0..3).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 400]))));
        let (body, copy) = tee(StreamBody::new(futures_util::stream::iter(frames)), &room);
        let lost = copy.lost();
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 1200, "the body itself is whole");
        assert!(copy.collect().await.is_err() && lost.is_lost());
        assert_eq!(room.available_permits(), 1000);
    }

    #[tokio::test]
    async fn a_body_that_is_dropped_before_its_end_is_lost() {
        let frames = [Ok::<_, BoxError>(Frame::data(Bytes::from("one"))), Ok(Frame::data(Bytes::from("two")))];
        let (mut body, copy) = tee(StreamBody::new(futures_util::stream::iter(frames)), &room());
        let lost = copy.lost();
        assert!(body.frame().await.is_some());
        drop(body);
        assert!(copy.collect().await.is_err() && lost.is_lost());
    }
}
