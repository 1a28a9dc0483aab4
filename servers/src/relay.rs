//! A relay before a server: connections through it can be cut or refused, and what the server answers be withheld.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::{place::free_port, running::LIMIT};

/// Connections at a time; those above are closed at once.
const CONNECTIONS_MAX: usize = 1_000;
/// Bytes that are carried at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Bytes of one connection that are withheld before nothing more is read from its server.
const WITHHELD_BYTES_MAX: usize = 1 << 20;
/// How long a server has to accept, and a client to read.
const PEER_LIMIT: Duration = Duration::from_secs(10);
/// A port that is taken between the look and the start is looked for again.
const START_TRIES_MAX: u32 = 5;

/// A relay on a port of its own, gone with its connections when dropped. What ends a connection on one side ends it on
/// the other.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
    accepting: Mutex<Option<Accepting>>,
}

#[derive(Debug)]
struct Accepting {
    listener: Arc<TcpListener>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The server's port on this machine; 0 while there is none.
    to: u16,
    withholds: bool,
    /// Pieces of answers that were withheld since it withholds.
    withheld: usize,
    /// How often connections were cut; each lives until the next time.
    cuts: u64,
    accepted: u64,
    links: HashMap<u64, Arc<Link>>,
}

/// One connection, on both sides.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// What the client has not got yet. Whoever writes to the client holds it, so that the order stays.
    withheld: Mutex<Vec<u8>>,
    is_cut: AtomicBool,
}

impl Relay {
    /// A relay that leads nowhere yet: connections through it are closed at once.
    ///
    /// # Errors
    /// Where no port can be bound.
    pub fn start() -> anyhow::Result<Self> {
        let mut relay = Self { port: 0, shared: Arc::default(), accepting: Mutex::default() };
        let mut tries = 0;
        loop {
            relay.port = free_port()?;
            tries += 1;
            match relay.accept() {
                Err(_) if tries < START_TRIES_MAX => {}
                other => return other.map(|()| relay),
            }
        }
    }

    /// A relay that leads to the server on this port.
    ///
    /// # Errors
    /// Where no port can be bound.
    pub fn before(port: u16) -> anyhow::Result<Self> {
        let relay = Self::start()?;
        relay.leads_to(port);
        Ok(relay)
    }

    /// From here on new connections lead to the server on this port.
    pub fn leads_to(&self, port: u16) {
        self.shared.state().to = port;
    }

    /// Where clients find it, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same with the address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Cuts all connections, on both sides. What was withheld on them is lost.
    pub fn cut(&self) {
        let mut state = self.shared.state();
        state.cuts += 1;
        state.links.values().for_each(|link| link.cut());
        drop(state);
        self.shared.news.notify_all();
    }

    /// Refuses new connections, as a machine does where nothing listens; those that are there stay.
    ///
    /// # Errors
    /// Where the listener cannot be closed.
    pub fn refuse(&self) -> anyhow::Result<()> {
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Accepting { listener, thread }) = accepting else { return Ok(()) };
        // It ends the wait for the next client too.
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).context("closing a relay's listener")?;
        let _ = thread.join();
        Ok(())
    }

    /// Accepts connections again, on the same port.
    ///
    /// # Errors
    /// Where the port is somebody else's by now.
    pub fn accept(&self) -> anyhow::Result<()> {
        let mut accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        if accepting.is_some() {
            return Ok(());
        }
        let listener = Arc::new(TcpListener::bind(self.address()).context("a relay cannot listen")?);
        let (listens, shared) = (Arc::clone(&listener), Arc::clone(&self.shared));
        let thread = Builder::new().name("relay".into()).spawn(move || {
            while let Ok((client, _)) = listens.accept() {
                let (shared, state) = (Arc::clone(&shared), shared.state());
                let (to, cuts) = (state.to, state.cuts);
                drop(state);
                // Without a thread the client is dropped, and its connection with it.
                let _ = Builder::new().name("relayed".into()).spawn(move || carry(client, to, cuts, &shared));
            }
        });
        *accepting = Some(Accepting { listener, thread: thread.context("a relay cannot start")? });
        Ok(())
    }

    /// Withholds what the server answers from here on, while what clients ask passes, until
    /// [`pass`](Self::pass) or [`cut`](Self::cut).
    pub fn withhold(&self) {
        let mut state = self.shared.state();
        state.withholds = true;
        state.withheld = 0;
    }

    /// Lets answers pass again, those first that were withheld.
    pub fn pass(&self) {
        let mut state = self.shared.state();
        state.withholds = false;
        let links: Vec<_> = state.links.values().cloned().collect();
        drop(state);
        self.shared.news.notify_all();
        for link in links {
            // Who cannot be told is gone.
            if link.tell(&mut link.withheld(), &[]).is_err() {
                link.cut();
            }
        }
    }

    /// Waits up to a minute until `pieces` of answers were withheld since [`withhold`](Self::withhold): as many reads
    /// from servers had something.
    ///
    /// # Errors
    /// Where the server did not say as much.
    pub fn wait_until_withheld(&self, pieces: usize) -> anyhow::Result<()> {
        let said = self.shared.wait_until(|state| state.withheld >= pieces);
        ensure!(said, "{pieces} pieces of answers were to be withheld, and the server did not say as much");
        Ok(())
    }

    /// Withholds what the server answers until `pieces` of it were, then cuts all connections: what it did meanwhile,
    /// nobody was told.
    ///
    /// # Errors
    /// Where it said nothing that could be withheld. All is cut all the same.
    pub fn cut_unanswered(&self, pieces: usize) -> anyhow::Result<()> {
        self.withhold();
        let withheld = self.wait_until_withheld(pieces);
        self.cut();
        self.shared.state().withholds = false;
        withheld
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.state().links.len()
    }

    /// Connections that were accepted, ever.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.state().accepted
    }

    /// Waits up to a minute until this many connections are open.
    ///
    /// # Errors
    /// Where as many are not.
    pub fn wait_until_open(&self, connections: usize) -> anyhow::Result<()> {
        let are = self.shared.wait_until(|state| state.links.len() == connections);
        ensure!(are, "{connections} connections were to be open, and {} are", self.open());
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A listener that cannot be closed is nobody's matter any more.
        let _ = self.refuse();
        self.cut();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is so before the time is up.
    fn wait_until(&self, is_so: impl Fn(&State) -> bool) -> bool {
        let until = Instant::now() + LIMIT;
        let mut state = self.state();
        while !is_so(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Link {
    fn withheld(&self) -> MutexGuard<'_, Vec<u8>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
        // One side may be gone already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    fn tell(&self, withheld: &mut Vec<u8>, piece: &[u8]) -> io::Result<()> {
        let mut client = &self.client;
        client.write_all(withheld)?;
        withheld.clear();
        client.write_all(piece)
    }
}

/// One connection from its start to its end.
fn carry(client: TcpStream, to: u16, cuts: u64, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], to)), PEER_LIMIT)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    client.set_write_timeout(Some(PEER_LIMIT))?;
    let link = Arc::new(Link { client, server, withheld: Mutex::default(), is_cut: AtomicBool::new(false) });
    let mut state = shared.state();
    if state.cuts != cuts || state.links.len() >= CONNECTIONS_MAX {
        return Ok(());
    }
    state.accepted += 1;
    let number = state.accepted;
    state.links.insert(number, Arc::clone(&link));
    drop(state);
    shared.news.notify_all();

    let asks = Arc::clone(&link);
    let asking = Builder::new().name("relayed".into()).spawn(move || {
        // However it ends, the connection has.
        let _ = io::copy(&mut &asks.client, &mut &asks.server);
        asks.cut();
    });
    if asking.is_ok() {
        let _ = answers(&link, shared);
    }
    link.cut();
    if let Ok(asking) = asking {
        let _ = asking.join();
    }
    shared.state().links.remove(&number);
    shared.news.notify_all();
    Ok(())
}

/// Passes on what the server says, or keeps it.
fn answers(link: &Link, shared: &Shared) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = (&link.server).read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        let piece = piece.get(..length).unwrap_or_default();
        let mut withheld = link.withheld();
        let mut state = shared.state();
        if !state.withholds {
            drop(state);
            link.tell(&mut withheld, piece)?;
            continue;
        }
        withheld.extend_from_slice(piece);
        state.withheld += 1;
        let is_full = withheld.len() >= WITHHELD_BYTES_MAX;
        drop(withheld);
        shared.news.notify_all();
        // Not for ever: whoever withholds lets pass, cuts, or drops the relay.
        while is_full && state.withholds && !link.is_cut.load(Ordering::Relaxed) {
            state = shared.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says back what it hears, on each connection.
    fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || io::copy(&mut &client, &mut &client));
            }
        });
        port
    }

    fn heard(mut client: &TcpStream, bytes: usize) -> String {
        let mut said = vec![0; bytes];
        client.read_exact(&mut said).unwrap();
        String::from_utf8(said).unwrap()
    }

    #[test]
    fn what_is_withheld_comes_in_order_once_it_may_pass_and_never_where_it_is_cut() {
        let relay = Relay::before(echo()).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.write_all(b"one ").unwrap();
        assert_eq!(heard(&client, 4), "one ");
        relay.withhold();
        client.write_all(b"two ").unwrap();
        relay.wait_until_withheld(1).unwrap();
        client.write_all(b"three ").unwrap();
        relay.wait_until_withheld(2).unwrap();
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.set_nonblocking(false).unwrap();
        relay.pass();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(heard(&client, 10), "two three ");
        client.write_all(b"four").unwrap();
        assert_eq!(heard(&client, 4), "four");

        relay.withhold();
        client.write_all(b"five").unwrap();
        relay.wait_until_withheld(1).unwrap();
        relay.cut();
        relay.pass();
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)), "it is cut, and the rest is lost");
        relay.wait_until_open(0).unwrap();
        assert_eq!(relay.accepted(), 1);
    }

    #[test]
    fn a_relay_that_refuses_keeps_what_it_has_and_accepts_again_on_the_same_port() {
        let relay = Relay::before(echo()).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        relay.wait_until_open(1).unwrap();
        relay.refuse().unwrap();
        let refused = TcpStream::connect(relay.address()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        client.write_all(b"still").unwrap();
        assert_eq!(heard(&client, 5), "still");
        relay.accept().unwrap();
        let mut other = TcpStream::connect(relay.address()).unwrap();
        other.write_all(b"again").unwrap();
        assert_eq!((heard(&other, 5), relay.open()), ("again".to_owned(), 2));
        drop((client, other));
        relay.wait_until_open(0).unwrap();
    }

    #[test]
    fn more_than_a_relay_can_withhold_waits_with_the_server() {
        let relay = Relay::before(echo()).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        relay.wait_until_open(1).unwrap();
        relay.withhold();
        let much = "x".repeat(WITHHELD_BYTES_MAX + 5 * PIECE_BYTES);
        let mut writer = client.try_clone().unwrap();
        let text = much.clone();
        let writes = std::thread::spawn(move || writer.write_all(text.as_bytes()).unwrap());
        relay.wait_until_withheld(WITHHELD_BYTES_MAX / PIECE_BYTES).unwrap();
        relay.pass();
        let mut said = vec![0; much.len()];
        client.read_exact(&mut said).unwrap();
        writes.join().unwrap();
        assert!(said == much.as_bytes());
    }
}
