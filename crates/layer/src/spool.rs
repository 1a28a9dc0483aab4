//! Large request bodies wait on disk: an unlinked file, encrypted with a key of this process only.
//!
//! The file has no name, so nothing finds it after a crash, and its bytes are ChaCha20-Poly1305
//! chunks under a key that exists in this process's memory alone. A global budget bounds the disk.

use std::{
    future::Future,
    io::{self, SeekFrom},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};

const CHUNK_BYTES: usize = 64 * 1024;
const TAG_BYTES: usize = 16;
const BUDGET_UNIT_BYTES: u64 = 4 * 1024;

/// The disk that all spooled bodies of a process may take together.
#[derive(Clone, Debug)]
pub(crate) struct SpoolBudget(Arc<Semaphore>);

impl SpoolBudget {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let units = usize::try_from(bytes_max / BUDGET_UNIT_BYTES).unwrap_or(usize::MAX);
        Self(Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes the room for a body of at most `bytes`, or says that there is none.
    pub(crate) fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(units).ok()
    }
}

/// Writes one body.
pub(crate) struct Spool {
    file: File,
    cipher: Box<LessSafeKey>,
    /// Distinct for each body; the chunk's number follows it in the nonce.
    prefix: [u8; 4],
    chunk: BytesMut,
    chunks: u64,
    bytes: u64,
    room: OwnedSemaphorePermit,
}

impl Spool {
    /// A new unlinked file.
    pub(crate) async fn create(room: OwnedSemaphorePermit) -> io::Result<Self> {
        let file = tokio::task::spawn_blocking(tempfile::tempfile).await.map_err(io::Error::other)??;
        // A key for each body, so that nonces never meet.
        let mut key = *process_key()?;
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        key.iter_mut().zip(salt).for_each(|(key, salt)| *key ^= salt);
        let [a, b, c, d, ..] = salt;
        Ok(Self {
            file: File::from_std(file),
            cipher: Box::new(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(refused)?)),
            prefix: [a, b, c, d],
            chunk: BytesMut::with_capacity(CHUNK_BYTES + TAG_BYTES),
            chunks: 0,
            bytes: 0,
            room,
        })
    }

    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(&part);
            if self.chunk.len() == CHUNK_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let nonce = nonce(self.prefix, self.chunks);
        let tag = self.cipher.seal_in_place_separate_tag(nonce, Aad::empty(), &mut self.chunk).map_err(refused)?;
        self.chunk.extend_from_slice(tag.as_ref());
        self.chunks += 1;
        let written = self.file.write_all(&self.chunk).await;
        self.chunk.clear();
        written
    }

    /// The body from its beginning.
    pub(crate) async fn into_reader(mut self) -> io::Result<SpoolReader> {
        if !self.chunk.is_empty() {
            self.flush().await?;
        }
        self.file.flush().await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        let left = self.bytes;
        let state =
            ReadState { file: self.file, cipher: self.cipher, prefix: self.prefix, chunk: 0, left, _room: self.room };
        Ok(SpoolReader { left, state: Some(state), pending: None })
    }
}

struct ReadState {
    file: File,
    cipher: Box<LessSafeKey>,
    prefix: [u8; 4],
    chunk: u64,
    left: u64,
    _room: OwnedSemaphorePermit,
}

type Pending = Pin<Box<dyn Future<Output = (ReadState, io::Result<Bytes>)> + Send>>;

/// Reads a spooled body once.
pub(crate) struct SpoolReader {
    left: u64,
    state: Option<ReadState>,
    pending: Option<Pending>,
}

impl SpoolReader {
    /// Bytes still to come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The whole body; the reader is at its beginning again.
    pub(crate) async fn read_all(&mut self) -> io::Result<Bytes> {
        let mut all = BytesMut::with_capacity(usize::try_from(self.left).unwrap_or_default());
        self.each(|part| all.extend_from_slice(part)).await?;
        Ok(all.freeze())
    }

    /// Shows the body part by part; the reader is at its beginning again.
    pub(crate) async fn each(&mut self, mut show: impl FnMut(&[u8])) -> io::Result<()> {
        let bytes = self.left;
        while let Some(part) = std::future::poll_fn(|cx| self.poll_next(cx)).await {
            show(&part?);
        }
        if let Some(state) = &mut self.state {
            state.file.seek(SeekFrom::Start(0)).await?;
            state.chunk = 0;
            state.left = bytes;
        }
        self.left = bytes;
        Ok(())
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.pending.is_none() {
            let Some(state) = self.state.take() else { return Poll::Ready(None) };
            self.pending = Some(Box::pin(read_chunk(state)));
        }
        let Some(pending) = &mut self.pending else { return Poll::Ready(None) };
        let (state, read) = std::task::ready!(pending.as_mut().poll(cx));
        self.pending = None;
        self.left = if read.is_ok() { state.left } else { 0 };
        self.state = Some(state);
        Poll::Ready(Some(read))
    }
}

async fn read_chunk(mut state: ReadState) -> (ReadState, io::Result<Bytes>) {
    let plain = usize::try_from(state.left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
    let mut sealed = vec![0; plain + TAG_BYTES];
    let read = match state.file.read_exact(&mut sealed).await {
        Ok(_) => match state.cipher.open_in_place(nonce(state.prefix, state.chunk), Aad::empty(), &mut sealed) {
            Ok(_) => {
                sealed.truncate(plain);
                Ok(sealed.into())
            }
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the spooled request body was changed on disk")),
        },
        Err(error) => Err(error),
    };
    state.chunk += 1;
    state.left -= plain as u64;
    (state, read)
}

/// The cipher does not say why: no key or length of ours is wrong.
fn refused(error: ring::error::Unspecified) -> io::Error {
    io::Error::other(format!("the cipher of spooled bodies refused: {error}"))
}

fn nonce(prefix: [u8; 4], chunk: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&prefix);
    bytes[4..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn process_key() -> io::Result<&'static [u8; 32]> {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    if let Some(key) = KEY.get() {
        return Ok(key);
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    Ok(KEY.get_or_init(|| key))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn spooled(parts: &[Bytes]) -> (SpoolReader, SpoolBudget) {
        let budget = SpoolBudget::new(10 << 20);
        let mut spool = Spool::create(budget.take(1 << 20).unwrap()).await.unwrap();
        for part in parts {
            spool.write(part.clone()).await.unwrap();
        }
        (spool.into_reader().await.unwrap(), budget)
    }

    async fn read_all(mut reader: SpoolReader) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = std::future::poll_fn(|cx| reader.poll_next(cx)).await {
            all.extend_from_slice(&bytes.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn what_was_spooled_comes_back_whatever_its_parts() {
        for len in [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let body: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let parts: Vec<Bytes> = body.chunks(10_007).map(Bytes::copy_from_slice).collect();
            let (reader, _budget) = spooled(&parts).await;
            assert_eq!(reader.left(), len as u64);
            assert_eq!(read_all(reader).await, body, "{len} bytes");
        }
    }

    #[tokio::test]
    async fn a_body_that_was_read_whole_is_read_again_from_its_beginning() {
        let body: Vec<u8> = (0..3 * CHUNK_BYTES + 5).map(|i| (i % 251) as u8).collect();
        let (mut reader, _budget) = spooled(&[body.clone().into()]).await;
        let whole = reader.read_all().await.unwrap();
        assert!(whole == body && reader.left() == body.len() as u64);
        assert!(read_all(reader).await == body);
    }

    #[tokio::test]
    async fn the_file_does_not_hold_the_body_in_clear() {
        let budget = SpoolBudget::new(1 << 20);
        let mut spool = Spool::create(budget.take(CHUNK_BYTES as u64).unwrap()).await.unwrap();
        spool.write(Bytes::from(vec![b'A'; 2 * CHUNK_BYTES])).await.unwrap();
        spool.file.flush().await.unwrap();
        spool.file.seek(SeekFrom::Start(0)).await.unwrap();
        let mut raw = Vec::new();
        spool.file.read_to_end(&mut raw).await.unwrap();
        assert!(raw.len() > CHUNK_BYTES && !raw.windows(16).any(|window| window == [b'A'; 16]));
    }

    #[tokio::test]
    async fn the_budget_is_given_back_when_the_body_was_read() {
        let (reader, budget) = spooled(&[Bytes::from_static(b"x")]).await;
        assert!(budget.take(10 << 20).is_none());
        read_all(reader).await;
        assert!(budget.take(10 << 20).is_some());
    }
}
