//! The spool over the log that the embedded store has too: checksummed frames, group commit, segments of a fixed size.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use onceward_core::{
    codec,
    key::RecordId,
    record::{Record, SessionId},
};
use tokio::{
    sync::{Notify, oneshot},
    task::spawn_blocking,
};

use super::{Fact, Left, Place, Spool, begun::Begun};
use crate::{
    Answer, Kind, StoreError,
    log::{
        self, AppendError, Disk as _, Folder, Frame, LockError, LockFile, Log, NotWritten, OpenError, Outcome, Position,
    },
};

/// Names the journal that the facts are for.
const JOURNAL: &str = "onceward.journal";
/// A session's id, before a record.
const SESSION_BYTES: usize = 16;

/// How large a spool may become, and how it grows.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// Size of a segment in bytes, a multiple of 4096 of 16 KiB to 64 MiB.
    pub segment_bytes: u32,
    /// The most segments there may be: beyond that new claims are refused.
    pub segments_max: u32,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, segments_max: 64 }
    }
}

/// Why a spool could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// Another process has it.
    #[error("the spool is in use")]
    Locked(#[from] LockError),
    /// It is damaged, of a newer version, or something else.
    #[error(
        "the spool cannot be opened: {0}. Where its disk cannot be mended, put its folder aside and start without: what it \
         held is in Redis too, and others end its sessions through that. Where that Redis is lost as well, claims wait \
         until this spool is back"
    )]
    Open(#[from] OpenError),
    /// The folder or a thread could not be made.
    #[error("the spool in {folder} cannot be written")]
    Io {
        /// The folder.
        folder: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A frame is none that a spool has.
    #[error("the spool in {folder} has a frame that is no fact of a session: it is not a spool, or of a newer version")]
    Foreign {
        /// The folder.
        folder: String,
    },
}

/// What waits for its batch.
struct Ticket {
    told: oneshot::Sender<Result<Place, StoreError>>,
}

/// A spool in a folder.
pub struct LogSpool {
    log: Log<Ticket>,
    /// How many facts of each segment are to be kept.
    kept: Arc<Mutex<BTreeMap<u32, usize>>>,
    /// Appends that wait, for the pause between commits.
    waiting: Arc<AtomicUsize>,
    room: Arc<Notify>,
    begun: Arc<Begun>,
    disk: Arc<Folder>,
    folder: String,
    lock: LockFile,
}

impl fmt::Debug for LogSpool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogSpool({})", self.folder)
    }
}

impl LogSpool {
    /// Opens the spool in a folder, which is made where it is not there, and says what earlier sessions have left in it.
    ///
    /// # Errors
    /// [`SpoolError`]: nothing was changed.
    pub fn open(folder: &Path, options: &SpoolOptions) -> Result<(Self, Vec<Left>), SpoolError> {
        let failed = |source| SpoolError::Io { folder: folder.display().to_string(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = LockFile::take(folder)?;
        let options = log::Options {
            segment_bytes: options.segment_bytes,
            segments_max: options.segments_max,
            reserve_bytes: options.segment_bytes / 4,
            ..log::Options::default()
        };
        let mut entries = Vec::new();
        let disk = Arc::new(Folder::open(folder).map_err(failed)?);
        let opened = Log::<Ticket>::open(Arc::<Folder>::clone(&disk), options, &mut |entry| entries.push(entry))?;
        let begun = Arc::new(Begun::of(Arc::clone(&disk), opened.id()));
        let (waiting, room) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let kept = Arc::new(Mutex::new(BTreeMap::<u32, usize>::new()));
        let (counts, freed) = (Arc::clone(&kept), Arc::clone(&room));
        let sink = move |done: log::Done<Ticket>| {
            if let Outcome::Durable { segment } = done.outcome {
                *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(segment).or_default() += done.placed.len();
            }
            for placed in done.placed {
                let told = match &done.outcome {
                    Outcome::Durable { segment } => {
                        Ok(Place { segment: *segment, offset: placed.offset, len: placed.len })
                    }
                    Outcome::Unknown(error) => {
                        Err(StoreError::unknown(Kind::Unavailable)
                            .because(io::Error::new(error.kind(), error.to_string())))
                    }
                    Outcome::NotWritten(why @ NotWritten::Full) => {
                        Err(StoreError::not_applied(Kind::Full).because(why.clone()))
                    }
                    Outcome::NotWritten(why) => Err(StoreError::not_applied(Kind::Unavailable).because(why.clone())),
                };
                // Whoever has gone has not sent anything.
                let _gone = placed.ticket.told.send(told);
            }
            freed.notify_waiters();
        };
        // Nothing here is decided by time.
        let log = opened.start(Arc::new(|| 0), Arc::clone(&waiting), Box::new(sink)).map_err(failed)?;
        let spool = Self { log, kept, waiting, room, begun, disk, folder: folder.display().to_string(), lock };
        let mut left: Vec<Left> = Vec::new();
        for entry in entries {
            let len = u32::try_from(entry.len).unwrap_or(u32::MAX);
            let place = Place { segment: entry.position.segment, offset: entry.position.offset, len };
            let frame = spool
                .log
                .read(entry.position, entry.len, &entry.id)
                .map_err(|error| SpoolError::Io { folder: spool.folder.clone(), source: io::Error::other(error) })?;
            let session =
                session_of(&frame.payload).ok_or_else(|| SpoolError::Foreign { folder: spool.folder.clone() })?;
            *spool.kept().entry(place.segment).or_default() += 1;
            let fact = (RecordId(frame.id), place);
            match left.iter_mut().find(|left| left.session == session) {
                Some(left) => left.facts.push(fact),
                None => left.push(Left { session, facts: vec![fact] }),
            }
        }
        for session in spool.begun.all().map_err(failed)? {
            if !left.iter().any(|left| left.session == session) {
                left.push(Left { session, facts: Vec::new() });
            }
        }
        spool.free();
        Ok((spool, left))
    }

    /// Leaves word of where this process is spoken to, for whoever finds the folder held.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn set_admin(&self, address: &str) -> io::Result<()> {
        self.lock.set_admin(address)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The journal that its facts are for, where that was said.
    ///
    /// # Errors
    /// The file system's.
    pub fn journal(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.disk.path().join(JOURNAL)) {
            Ok(id) => Ok(Some(id)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From here on its facts are for this journal.
    ///
    /// # Errors
    /// The file system's.
    pub fn belongs_to(&self, journal: &str) -> io::Result<()> {
        let new = format!("{JOURNAL}.new");
        self.disk.create(&new)?.write_synced_at(journal.as_bytes(), 0)?;
        self.disk.rename(&new, JOURNAL)?;
        self.disk.sync_folder()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, usize>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the segments of which nothing is to be kept, up to the first that has something.
    fn free(&self) {
        let mut kept = self.kept();
        kept.retain(|_, count| *count > 0);
        let first = kept.keys().next().copied();
        drop(kept);
        if let Some(before) = first.or_else(|| self.log.segments().last().copied()) {
            self.log.release_before(before);
        }
    }

    async fn write(&self, session: SessionId, fact: &Fact) -> Result<Place, StoreError> {
        let mut payload = session.0.to_vec();
        codec::encode(&fact.record, &mut payload);
        let frame = Frame { kind: log::Kind::Put, id: &fact.id.0, keep_until_s: 0, payload: &payload };
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let (told, tells) = oneshot::channel();
            match self.log.append(&frame, Ticket { told }) {
                Ok(()) => return tells.await.map_err(|gone| StoreError::unknown(Kind::Unavailable).because(gone))?,
                Err(AppendError::QueueFull) => room.await,
                Err(error) => return Err(StoreError::not_applied(Kind::Unavailable).because(error)),
            }
        }
    }
}

fn session_of(payload: &[u8]) -> Option<SessionId> {
    payload.first_chunk().copied().map(SessionId)
}

/// Counts who waits.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn on(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Spool for LogSpool {
    fn begin(&self, session: SessionId) -> Answer<'_, ()> {
        let begun = Arc::clone(&self.begun);
        Box::pin(async move {
            let noted = spawn_blocking(move || begun.note(session)).await.unwrap_or_else(|gone| Err(gone.into()));
            noted.map_err(|error| StoreError::unknown(Kind::Unavailable).because(error))
        })
    }

    fn end(&self, session: SessionId) {
        if let Err(error) = self.begun.forget(session) {
            tracing::warn!(%error, "a session that has ended stays in the spool, until whoever comes after looks at it");
        }
    }

    fn append<'a>(&'a self, session: SessionId, fact: &'a Fact) -> Answer<'a, Place> {
        Box::pin(async move {
            let _waits = Waits::on(&self.waiting);
            self.write(session, fact).await
        })
    }

    fn read(&self, id: RecordId, place: Place) -> Answer<'_, Fact> {
        let read = || {
            let position = Position { segment: place.segment, offset: place.offset };
            let mut half = [0; 16];
            half.iter_mut().zip(id.0).for_each(|(to, from)| *to = from);
            let frame = self.log.read(position, place.len as usize, &half).map_err(damaged)?;
            if frame.id != id.0 || frame.payload.len() < SESSION_BYTES {
                return Err(StoreError::not_applied(Kind::Damaged("a fact in the spool is another's".into())));
            }
            let record: Record = codec::decode(&Bytes::slice(&frame.payload, SESSION_BYTES..)).map_err(damaged)?;
            Ok(Fact { id, record: Arc::new(record) })
        };
        // One read of a file that was just written: as the embedded store reads.
        Box::pin(std::future::ready(read()))
    }

    fn release(&self, places: &[Place]) {
        {
            let mut kept = self.kept();
            for place in places {
                if let Some(count) = kept.get_mut(&place.segment) {
                    *count = count.saturating_sub(1);
                }
            }
        }
        self.free();
    }

    fn has_room(&self) -> Result<(), StoreError> {
        if self.log.has_space() { Ok(()) } else { Err(StoreError::not_applied(Kind::Full)) }
    }
}

fn damaged(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::not_applied(Kind::Damaged(error.to_string())).because(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onceward_core::{
        outcome::Outcome as Answered,
        record::{ClaimId, Facts, Fence, State, Stored},
        transition,
    };
    use tokio::time::timeout;

    use super::*;

    const SESSION: SessionId = SessionId([7; 16]);

    fn small() -> SpoolOptions {
        SpoolOptions { segment_bytes: 64 << 10, segments_max: 4 }
    }

    fn fact(of: u8, body: usize) -> Fact {
        let facts = transition::place(ClaimId([of; 16]), SESSION);
        let outcome = Answered { status: 200, body: vec![of; body].into(), ..Answered::default() };
        let facts = Facts { state: State::Completed, outcome: Some(outcome), ..facts };
        let stored = Stored { fence: Fence(u64::from(of)), ..Stored::default() };
        Fact { id: RecordId([of; 32]), record: Arc::new(Record { stored, facts }) }
    }

    #[tokio::test]
    async fn what_was_not_released_is_found_again_by_session_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, left) = LogSpool::open(folder.path(), &small()).unwrap();
        assert_eq!(left, []);
        assert!(matches!(LogSpool::open(folder.path(), &small()), Err(SpoolError::Locked(_))), "one process at a time");
        let other = SessionId([8; 16]);
        let first = spool.append(SESSION, &fact(1, 10)).await.unwrap();
        let second = spool.append(other, &fact(2, 10)).await.unwrap();
        let third = spool.append(SESSION, &fact(1, 20)).await.unwrap();
        assert_eq!(spool.read(RecordId([1; 32]), first).await.unwrap(), fact(1, 10));
        assert_eq!(spool.read(RecordId([1; 32]), third).await.unwrap(), fact(1, 20));
        let wrong = spool.read(RecordId([2; 32]), first).await.unwrap_err();
        assert!(matches!(wrong.kind, Kind::Damaged(_)), "{wrong}");
        drop(spool);

        let (spool, left) = LogSpool::open(folder.path(), &small()).unwrap();
        let id = |of| RecordId([of; 32]);
        assert_eq!(
            left,
            [
                Left { session: SESSION, facts: vec![(id(1), first), (id(1), third)] },
                Left { session: other, facts: vec![(id(2), second)] },
            ]
        );
        assert_eq!(spool.read(id(2), second).await.unwrap(), fact(2, 10));
    }

    #[tokio::test]
    async fn a_session_that_wrote_nothing_is_found_again_until_it_has_ended_and_never_in_another_spool() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _left) = LogSpool::open(folder.path(), &small()).unwrap();
        let (idle, ended, busy) = (SessionId([1; 16]), SessionId([2; 16]), SESSION);
        for session in [idle, ended, busy] {
            spool.begin(session).await.unwrap();
        }
        let place = spool.append(busy, &fact(1, 10)).await.unwrap();
        spool.end(ended);
        drop(spool);
        let (spool, left) = LogSpool::open(folder.path(), &small()).unwrap();
        let nothing = |session| Left { session, facts: vec![] };
        assert_eq!(left, [Left { session: busy, facts: vec![(RecordId([1; 32]), place)] }, nothing(idle)]);
        // All facts are in the journal, and the session has not left.
        spool.release(&[place]);
        drop(spool);

        // Whoever takes away the log takes away facts: of none of its sessions it is known that nothing is left.
        for entry in fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_name().to_str().unwrap().starts_with("onceward.session.") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        let (_spool, left) = LogSpool::open(folder.path(), &small()).unwrap();
        assert_eq!(left, []);
    }

    #[tokio::test]
    async fn a_spool_that_is_full_refuses_claims_and_has_room_again_for_what_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _left) = LogSpool::open(folder.path(), &small()).unwrap();
        let mut places = Vec::new();
        let filling = async {
            while spool.log.segments().len() < small().segments_max as usize || spool.has_room().is_ok() {
                assert!(places.len() < 1_000, "it is bounded");
                match spool.has_room() {
                    Ok(()) => places.push(spool.append(SESSION, &fact(1, 4 << 10)).await.unwrap()),
                    // The next segment is in the making.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        timeout(Duration::from_secs(30), filling).await.expect("it is full");
        // A holder's answer, which goes into the reserve.
        places.push(spool.append(SESSION, &fact(2, 4 << 10)).await.unwrap());
        let (kept, released) = places.split_last().unwrap();
        spool.release(released);
        // At once: those who are refused append nothing that could say so.
        assert!(spool.has_room().is_ok());
        for _ in 0..places.len() / 2 {
            spool.append(SESSION, &fact(3, 4 << 10)).await.unwrap();
        }
        assert_eq!(spool.read(RecordId([2; 32]), *kept).await.unwrap(), fact(2, 4 << 10));
    }
}
