//! The store in PostgreSQL as a subject. Whoever runs it brings the server.

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use tokio_postgres::types::Type;

use super::{Hand, Harness, Subject};
use crate::postgres::{Options, Postgres, address::Address};

/// What a database needs beside the schema, so that a case can move its clock.
pub const MOVABLE_CLOCK: &str = "
    CREATE TABLE public.moved (us bigint NOT NULL);
    INSERT INTO public.moved VALUES (0);
    CREATE OR REPLACE FUNCTION onceward.now_us() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
        SELECT round(date_part('epoch', clock_timestamp()) * 1000000)::bigint + (SELECT us FROM public.moved) $$";

/// A database with the schema and [`MOVABLE_CLOCK`], empty.
pub struct Database {
    /// How the store reaches it.
    pub address: Address,
    /// How the server itself is reached, where `address` is a pooler.
    pub direct: Address,
    /// Kept until the case ends.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({:?})", self.address)
    }
}

/// The store in a database of its own for each case.
#[derive(Clone, Copy, Debug)]
pub struct OnPostgres {
    /// Its name in the list.
    pub name: &'static str,
    /// Makes the database; `None` in the list, where nothing is run.
    pub database: Option<fn() -> Database>,
}

impl Subject for OnPostgres {
    fn name(&self) -> &'static str {
        self.name
    }

    fn open(&self) -> Pin<Box<dyn Future<Output = Harness> + Send + '_>> {
        Box::pin(async {
            let Some(database) = self.database else { panic!("{} is run where there is a server", self.name) };
            let Database { address, direct, keep } = database();
            let options = Options { listen: Some(direct.clone()), connections: 2, ..Options::new(address) };
            let store = Postgres::open(options).await.unwrap_or_else(|error| panic!("opening: {error}"));
            let clock = ServerClock::new(direct);
            Harness { store: Arc::new(store), clock: Some(Arc::new(clock)), raw: None, rounds: 15, keep: Some(keep) }
        })
    }

    fn cannot(&self) -> &'static [(&'static str, &'static str)] {
        &[(
            "schema_version_forward_refused",
            "its columns have no version of their own: the tests of the schema show that a newer one is refused",
        )]
    }
}

/// Moves the clock of a database that has [`MOVABLE_CLOCK`], from a thread with a connection of its own, since whoever
/// moves it does not await.
pub(super) struct ServerClock(Mutex<mpsc::Sender<(i64, mpsc::Sender<()>)>>);

impl ServerClock {
    pub(super) fn new(address: Address) -> Self {
        let (to, turns) = mpsc::channel::<(i64, mpsc::Sender<()>)>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
            for (micros, done) in turns {
                runtime.block_on(async {
                    let (client, connection) =
                        address.connect(|_| ()).await.unwrap_or_else(|error| panic!("the clock: {error}"));
                    tokio::spawn(connection);
                    let moved = "UPDATE public.moved SET us = us + $1";
                    let moved = client.query_typed(moved, &[(&micros, Type::INT8)]).await;
                    moved.unwrap_or_else(|error| panic!("the clock: {error}"));
                });
                // A case that has ended waits for nothing.
                let _ = done.send(());
            }
        });
        Self(Mutex::new(to))
    }
}

impl Hand for ServerClock {
    fn turn(&self, micros: i64) {
        let (done, moved) = mpsc::channel();
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner).send((micros, done));
        assert!(sent.is_ok() && moved.recv().is_ok(), "the database's clock cannot be moved");
    }
}
