//! A relay before a server: its connections can be cut, and what the server answers be withheld until they are.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that are carried at a time.
const PIECE_BYTES: usize = 16 << 10;

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The server's port on this machine; 0 while there is none.
    to: u16,
    /// How often connections were cut; each lives until the next time.
    cuts: u64,
    /// Whether what the server says is withheld.
    withholds: bool,
}

/// A relay; gone with its connections when dropped.
pub(crate) struct Relay {
    /// Where clients find it.
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
    /// Pieces of answers that were withheld, ever.
    withheld: watch::Receiver<usize>,
    _carries: JoinSet<()>,
}

impl Relay {
    /// A relay that leads nowhere yet.
    ///
    /// # Errors
    /// Where no port can be bound.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a relay cannot listen")?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State::default());
        let (count, withheld) = watch::channel(0);
        let mut carries = JoinSet::new();
        carries.spawn(async move {
            let count = Arc::new(count);
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (seen, count) = (seen.clone(), Arc::clone(&count));
                connections.spawn(async move {
                    // What ends a connection on one side ends it on the other.
                    let _gone = carry(client, seen, &count).await;
                });
            }
        });
        Ok(Self { address, state, withheld, _carries: carries })
    }

    /// From here on it leads to the server on this port.
    pub(crate) fn leads_to(&self, port: u16) {
        self.state.send_modify(|state| state.to = port);
    }

    /// Cuts all connections, on both sides.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Withholds what the server answers until `pieces` of it were, then cuts all connections: what it did meanwhile,
    /// nobody was told.
    pub(crate) async fn cut_unanswered(&self, pieces: usize) -> anyhow::Result<()> {
        let mut withheld = self.withheld.clone();
        let until = withheld.borrow_and_update().saturating_add(pieces);
        self.state.send_modify(|state| state.withholds = true);
        let were = tokio::time::timeout(crate::PATIENCE, withheld.wait_for(|so_far| *so_far >= until)).await.is_ok();
        self.state.send_modify(|state| {
            state.cuts += 1;
            state.withholds = false;
        });
        anyhow::ensure!(were, "the server said nothing that could be withheld");
        Ok(())
    }
}

async fn carry(
    client: TcpStream,
    mut state: watch::Receiver<State>,
    withheld: &watch::Sender<usize>,
) -> anyhow::Result<()> {
    let State { to, cuts, .. } = *state.borrow_and_update();
    let server = TcpStream::connect(("127.0.0.1", to)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let watched = state.clone();
    tokio::select! {
        asked = copy(&mut from_client, &mut to_server) => { asked?; }
        answered = answers(from_server, to_client, watched, withheld) => answered?,
        cut = state.wait_for(|state| state.cuts != cuts) => { cut?; }
    }
    Ok(())
}

/// Passes on what the server says, or keeps it.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: watch::Receiver<State>,
    withheld: &watch::Sender<usize>,
) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        if state.borrow().withholds {
            withheld.send_modify(|pieces| *pieces += 1);
        } else {
            to.write_all(piece.get(..length).unwrap_or_default()).await?;
        }
    }
}
