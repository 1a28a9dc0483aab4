//! Stands between an application and its server, and breaks in at one statement.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::Notify,
};

/// Where it breaks in: at the `statement`th of all that pass, 1 for the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Break {
    pub(crate) statement: usize,
    pub(crate) side: Side,
    pub(crate) fault: Fault,
}

/// On which side of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// The server never sees the statement.
    Before,
    /// It has carried it out, and the application never sees the answer.
    After,
}

/// What is done there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing passes any more, until the application is gone.
    Hold,
    /// The connection is lost on both sides.
    Cut,
}

/// One of them, on a port of its own.
pub(crate) struct Between {
    port: u16,
    passed: Arc<Passed>,
}

struct Passed {
    at: Option<Break>,
    statements: AtomicUsize,
    reached: Notify,
}

impl Between {
    /// Carries every connection to the server, and breaks in once.
    pub(crate) async fn start(server: u16, at: Option<Break>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let passed = Arc::new(Passed { at, statements: AtomicUsize::new(0), reached: Notify::new() });
        let counted = Arc::clone(&passed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let passed = Arc::clone(&counted);
                // An error is the end of the connection, on both sides.
                tokio::spawn(
                    async move { carry(client, TcpStream::connect(("127.0.0.1", server)).await?, &passed).await },
                );
            }
        });
        Self { port, passed }
    }

    /// The same database, through this.
    pub(crate) fn url(&self, server: &servers::Postgres) -> String {
        server.url("shop").replace(&format!(":{}/", server.port()), &format!(":{}/", self.port))
    }

    /// How many statements have passed, or were to.
    pub(crate) fn statements(&self) -> usize {
        self.passed.statements.load(Ordering::SeqCst)
    }

    /// Until it has broken in.
    pub(crate) async fn reached(&self) {
        self.passed.reached.notified().await;
    }
}

async fn carry(client: TcpStream, server: TcpStream, passed: &Passed) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    log_in(&mut from_client, &mut to_client, &mut from_server, &mut to_server).await?;
    loop {
        // What belongs together: a query, or all up to a Sync.
        let statement = until(&mut from_client, b"QS").await?;
        let number = passed.statements.fetch_add(1, Ordering::SeqCst) + 1;
        let here = passed.at.filter(|at| at.statement == number);
        if here.is_none_or(|at| matches!(at.side, Side::After)) {
            to_server.write_all(&statement).await?;
            let answer = until(&mut from_server, b"Z").await?;
            if here.is_none() {
                to_client.write_all(&answer).await?;
            }
        }
        if let Some(at) = here {
            passed.reached.notify_one();
            if matches!(at.fault, Fault::Hold) {
                tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await?;
            }
            return Ok(());
        }
    }
}

/// The start of a connection, up to the first ReadyForQuery.
async fn log_in(
    from_client: &mut tcp::OwnedReadHalf,
    to_client: &mut tcp::OwnedWriteHalf,
    from_server: &mut tcp::OwnedReadHalf,
    to_server: &mut tcp::OwnedWriteHalf,
) -> io::Result<()> {
    // The first message has a length and no type.
    let length = from_client.read_u32().await?;
    let mut start = vec![0; usize::try_from(length).unwrap() - 4];
    from_client.read_exact(&mut start).await?;
    to_server.write_all(&[&length.to_be_bytes()[..], &start].concat()).await?;
    loop {
        let message = message(from_server).await?;
        to_client.write_all(&message).await?;
        match message[0] {
            // SASL and its continuation want an answer.
            b'R' if matches!(message[8], 10 | 11) => to_server.write_all(&self::message(from_client).await?).await?,
            b'Z' => return Ok(()),
            _ => {}
        }
    }
}

/// All messages up to one of these types.
async fn until(from: &mut tcp::OwnedReadHalf, types: &[u8]) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let message = message(from).await?;
        all.extend_from_slice(&message);
        if types.contains(&message[0]) {
            return Ok(all);
        }
    }
}

async fn message(from: &mut tcp::OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut message = head.to_vec();
    message.resize(1 + usize::try_from(length).unwrap(), 0);
    from.read_exact(&mut message[5..]).await?;
    Ok(message)
}
