//! The store in Redis as a subject. Whoever runs it brings the servers.

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use bytes::Bytes;
use onceward_core::key::RecordId;

use super::{Hand, Harness, Raw, Subject};
use crate::redis::{Options, Redis};

/// Servers with nothing of this store on them.
pub struct Servers {
    /// How the store is opened there.
    pub options: Options,
    /// Kept until the case ends.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Servers({:?})", self.options.address)
    }
}

/// The store on servers of its own for each case.
#[derive(Clone, Copy, Debug)]
pub struct OnRedis {
    /// Its name in the list.
    pub name: &'static str,
    /// Makes or empties the servers; `None` in the list, where nothing is run.
    pub servers: Option<fn() -> Servers>,
}

impl Subject for OnRedis {
    fn name(&self) -> &'static str {
        self.name
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        Box::pin(async {
            let Some(servers) = self.servers else { panic!("{} is run where there are servers", self.name) };
            let Servers { options, keep } = servers();
            let store = Redis::open(Options { clock_moves: true, ..options }).await;
            let store = Arc::new(store.unwrap_or_else(|error| panic!("opening: {error}")));
            let behind = Arc::new(Behind::new(Arc::clone(&store)));
            Harness {
                store,
                clock: Some(Arc::<Behind>::clone(&behind)),
                raw: Some(behind),
                rounds: 40,
                keep: Some(keep),
            }
        })
    }
}

/// Moves the servers' clock, and reads and writes past the store: on a thread of its own, since whoever asks does not
/// await.
pub(super) struct Behind(Mutex<mpsc::Sender<(Ask, mpsc::Sender<Option<Bytes>>)>>);

enum Ask {
    Turn(i64),
    Read(RecordId),
    Overwrite(RecordId, Vec<u8>),
}

impl Behind {
    pub(super) fn new(store: Arc<Redis>) -> Self {
        let (to, asked) = mpsc::channel::<(Ask, mpsc::Sender<Option<Bytes>>)>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            for (ask, done) in asked {
                let answer = runtime.block_on(async {
                    match ask {
                        Ask::Turn(micros) => store.turn_clock(micros).await.map(|()| None),
                        Ask::Read(id) => store.raw(id).await,
                        Ask::Overwrite(id, bytes) => store.overwrite_raw(id, &bytes).await.map(|()| None),
                    }
                });
                // A case that has ended waits for nothing.
                let _ = done.send(answer.unwrap_or_else(|error| panic!("behind the store: {error:?}")));
            }
        });
        Self(Mutex::new(to))
    }

    fn ask(&self, ask: Ask) -> Option<Bytes> {
        let (done, answer) = mpsc::channel();
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner).send((ask, done));
        assert!(sent.is_ok(), "nobody is behind the store");
        answer.recv().unwrap_or_else(|error| panic!("behind the store: {error}"))
    }
}

impl Hand for Behind {
    fn turn(&self, micros: i64) {
        self.ask(Ask::Turn(micros));
    }
}

impl Raw for Behind {
    fn read(&self, id: &RecordId) -> Option<Bytes> {
        self.ask(Ask::Read(*id))
    }

    fn overwrite(&self, id: &RecordId, bytes: &[u8]) {
        self.ask(Ask::Overwrite(*id, bytes.to_vec()));
    }
}
