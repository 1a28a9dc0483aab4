//! Applications that are killed with -9 or cut off at every statement, and killed at random while PostgreSQL is killed
//! too: the ledger has each entry once, no key is stuck, answers are equal, and what an application is told is true.

#![cfg(all(feature = "tokio-postgres", feature = "sqlx"))]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod between;
mod over_sqlx;
mod over_tokio_postgres;
#[path = "../shop/mod.rs"]
mod shop;

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use futures_util::stream::{self, StreamExt as _};
use onceward::transaction::{Done, TransactionError};
use onceward_core::key::child_key;
use servers::Postgres;
use tokio::{io::AsyncReadExt as _, process::Command, sync::watch};

use self::between::{Between, Break, Fault, Side};

/// Which database library an application has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    TokioPostgres,
    Sqlx,
}

const LIBRARIES: [Library; 2] = [Library::TokioPostgres, Library::Sqlx];

/// How it couples its writes to the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coupling {
    Same,
    Phases,
}

const COUPLINGS: [Coupling; 2] = [Coupling::Same, Coupling::Phases];

/// A request: who asks, how it is worked on, and whose it is.
#[derive(Clone, Debug)]
struct Ask {
    library: Library,
    coupling: Coupling,
    key: String,
}

impl Ask {
    /// Has it answered in this process, by the database at `url`.
    async fn answer(&self, url: &str, books: &str, lease: Duration) -> Result<Done, TransactionError> {
        let (coupling, key) = (self.coupling, &self.key);
        match self.library {
            Library::TokioPostgres => {
                over_tokio_postgres::Application::new(url, books, lease).answer(coupling, key).await
            }
            Library::Sqlx => over_sqlx::Application::new(url, books, lease).answer(coupling, key).await,
        }
    }
}

fn named<T: Copy + std::fmt::Debug>(all: [T; 2], name: &str) -> T {
    all.into_iter().find(|one| format!("{one:?}") == name).unwrap()
}

fn text(done: &Done) -> String {
    String::from_utf8_lossy(&done.answer.body).into_owned()
}

/// Processes at a time.
const AT_A_TIME: usize = 4;
/// Longer than anything here takes; what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a client repeats a request before its key counts as stuck.
const REPEATS_MAX: u32 = 400;
const ANSWERED: &str = "answered: ";
/// Of a process that may be killed; one that is slower than this is overtaken, which costs nothing but time.
const SHORT: Duration = Duration::from_millis(300);
/// Nobody takes over.
const LONG: Duration = Duration::from_secs(600);

/// The process that the others start, with a key and a coupling. Like any client it repeats its request until there is an
/// answer.
#[tokio::test]
#[ignore = "the application: the other tests start it as a process of its own"]
async fn application() {
    let of = |name: &str| std::env::var(name).unwrap();
    let (library, coupling) = (named(LIBRARIES, &of("SHOP_LIBRARY")), named(COUPLINGS, &of("SHOP_COUPLING")));
    let ask = Ask { library, coupling, key: of("SHOP_KEY") };
    for _ in 0..REPEATS_MAX {
        match ask.answer(&of("SHOP_URL"), &of("SHOP_BOOKS"), SHORT).await {
            Ok(done) => return println!("\n{ANSWERED}{}", text(&done)),
            // Somebody is at it, was faster, or the server is down.
            Err(
                TransactionError::InFlight
                | TransactionError::ClaimLost(_)
                | TransactionError::Attempts(..)
                | TransactionError::CommitUnknown(_),
            ) => tokio::time::sleep(Duration::from_millis(25)).await,
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("stuck");
}

/// A server with the ledger, and somebody else's books of what was charged.
async fn server() -> Postgres {
    let server = shop::server().await;
    let tables = "create table entry (id bigint generated always as identity, key text, phase text); \
         create table charged (of text, key text)";
    server.psql("shop", tables).unwrap();
    server
}

/// Runs a process of the application: its answer, or none where it was killed, once `killed` is.
async fn run(url: &str, books: &str, ask: &Ask, killed: impl Future<Output = ()>) -> Option<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "application", "--ignored", "--nocapture"]);
    command.env("SHOP_URL", url).env("SHOP_BOOKS", books);
    command.env("SHOP_KEY", &ask.key).env("SHOP_COUPLING", format!("{:?}", ask.coupling));
    command.env("SHOP_LIBRARY", format!("{:?}", ask.library));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut said, mut failed) = (String::new(), String::new());
    let ended = async {
        tokio::try_join!(stdout.read_to_string(&mut said), stderr.read_to_string(&mut failed)).unwrap();
    };
    let is_killed = tokio::select! {
        biased;
        () = killed => true,
        ended = tokio::time::timeout(LIMIT, ended) => { ended.unwrap(); false }
    };
    if is_killed {
        // SIGKILL.
        child.kill().await.unwrap();
        return None;
    }
    let answer = said.lines().find_map(|line| line.strip_prefix(ANSWERED)).map(str::to_owned);
    Some(answer.unwrap_or_else(|| panic!("{ask:?}: {said}{failed}")))
}

/// Holds the ledger and the books to the answers, by key: each phase is there once, its id is the answer's, each charge of
/// an order has the order's one derived key, and nothing is left open.
fn judge(server: &Postgres, answers: &BTreeMap<String, (Coupling, String)>) {
    let rows = |sql: &str| server.psql("shop", sql).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    let entries = rows(
        "select key, string_agg(phase || '=' || id, ' ' order by id) from entry group by key order by key collate \"C\"",
    );
    let expected = answers.iter().map(|(key, (coupling, answer))| match coupling {
        Coupling::Same => format!("{key}|pay={answer}"),
        Coupling::Phases => format!("{key}|reserve={}", answer.replace(' ', " sell=")),
    });
    assert_alike(&entries, &expected.collect::<Vec<_>>());
    let charged = rows("select of, key from charged group by of, key order by of collate \"C\", key");
    let phased = answers.iter().filter(|(_, (coupling, _))| *coupling == Coupling::Phases);
    assert_alike(&charged, &phased.map(|(key, _)| format!("{key}|{}", child_key(key, "charge"))).collect::<Vec<_>>());
    let states = rows("select state, count(*) from onceward.record group by state");
    assert_eq!(states, [format!("3|{}", answers.len())], "all are completed");
}

/// The lines that differ, of hundreds.
fn assert_alike(seen: &[String], expected: &[String]) {
    let others =
        |of: &[String], than: &[String]| of.iter().filter(|line| !than.contains(line)).cloned().collect::<Vec<_>>();
    assert_eq!(others(seen, expected), others(expected, seen));
    assert_eq!(seen.len(), expected.len());
}

/// How many statements a request has that nothing happens to, and every break in them; that request, and its answer.
async fn breaks(server: &Postgres, ask: &Ask, fault: Fault) -> (Vec<Break>, String) {
    let between = Between::start(server.port(), None).await;
    let done = ask.answer(&between.url(server), &server.url("shop"), LONG).await.unwrap();
    let statements = between.statements();
    // BEGIN, claim, write, complete, COMMIT; and those for each phase.
    assert!(
        statements >= if ask.coupling == Coupling::Same { 5 } else { 17 },
        "only {statements} statements were seen"
    );
    let all =
        (1..=statements).flat_map(|statement| [Side::Before, Side::After].map(|side| Break { statement, side, fault }));
    (all.collect(), text(&done))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_statement_each_phase_takes_effect_once_and_no_key_is_stuck() {
    let server = server().await;
    let direct = server.url("shop");
    let mut answers = BTreeMap::new();
    // To PostgreSQL both libraries are killed alike; one has half the statements.
    let library = Library::TokioPostgres;
    for coupling in COUPLINGS {
        let ask = Ask { library, coupling, key: format!("{coupling:?} in peace") };
        let (breaks, answer) = breaks(&server, &ask, Fault::Hold).await;
        answers.extend([(ask.key, (coupling, answer))]);
        let killed = breaks.into_iter().map(async |at| {
            let between = Between::start(server.port(), Some(at)).await;
            let ask = Ask { library, coupling, key: format!("{coupling:?} {at:?}") };
            let said = run(&between.url(&server), &direct, &ask, between.reached()).await;
            assert_eq!(said, None, "{ask:?}: it was not killed");
            let answer = run(&direct, &direct, &ask, std::future::pending()).await.unwrap();
            let again = ask.answer(&direct, &direct, SHORT).await.unwrap();
            assert_eq!((text(&again), again.replayed), (answer.clone(), true), "{ask:?}");
            (ask.key, (coupling, answer))
        });
        // A few at a time: they are processes, and wait for the lease of whoever was killed.
        answers.extend(stream::iter(killed).buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await);
    }
    judge(&server, &answers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_at_every_statement_an_application_finds_out_what_became_of_it() {
    let server = server().await;
    let direct = server.url("shop");
    let mut answers = BTreeMap::new();
    for (library, coupling) in LIBRARIES.into_iter().flat_map(|library| COUPLINGS.map(|coupling| (library, coupling))) {
        let ask = Ask { library, coupling, key: format!("{library:?} {coupling:?} in peace") };
        let (breaks, answer) = breaks(&server, &ask, Fault::Cut).await;
        answers.extend([(ask.key, (coupling, answer))]);
        let cut = breaks.into_iter().map(async |at| {
            let between = Between::start(server.port(), Some(at)).await;
            let ask = Ask { library, coupling, key: format!("{library:?} {coupling:?} {at:?}") };
            let done = ask.answer(&between.url(&server), &direct, LONG).await;
            // No repetition of the client's: it was committed, or done anew, and its own.
            let done = done.unwrap_or_else(|error| panic!("{ask:?}: {error:?}"));
            assert!(!done.replayed, "{ask:?}: it is nobody else's");
            // A pool of sqlx looks after its connection once the answer is there, or not yet.
            assert!(between.statements() >= at.statement || library == Library::Sqlx, "{ask:?}: it was not cut off");
            (ask.key, (coupling, text(&done)))
        });
        answers.extend(stream::iter(cut).buffer_unordered(2 * AT_A_TIME).collect::<Vec<_>>().await);
    }
    judge(&server, &answers);
    // What was charged is known to the process that goes on.
    assert_eq!(server.psql("shop", "select of from charged group by of having count(*) > 1").unwrap(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_with_the_server_killed_too_each_phase_takes_effect_once() {
    const KEYS: usize = 16;
    const SERVER_KILLS: usize = 3;
    let seed = std::env::var("ONCEWARD_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("ONCEWARD_SEED={seed}");
    let mut server = server().await;
    let direct = server.url("shop");
    let (ended, mut ends) = watch::channel(0);
    // Of each key two clients, which are at it at the same time, over different libraries.
    let clients = (0..2 * KEYS).map(async |number: usize| {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(number as u64));
        let (library, coupling) = (LIBRARIES[number % 2], COUPLINGS[number / 2 % 2]);
        let ask = Ask { library, coupling, key: format!("{seed} {}", number / 2) };
        for _ in 0..REPEATS_MAX {
            let (is_killed, pause) = (rng.u8(..4) != 0, Duration::from_millis(rng.u64(..400)));
            let killed =
                async { if is_killed { tokio::time::sleep(pause).await } else { std::future::pending().await } };
            if let Some(answer) = run(&direct, &direct, &ask, killed).await {
                ended.send_modify(|count| *count += 1);
                return (ask.key, (coupling, answer));
            }
        }
        panic!("{ask:?} is stuck");
    });
    let killer = async {
        for kill in 1..=SERVER_KILLS {
            // While others are at it.
            ends.wait_for(|count| *count >= kill * 2 * KEYS / (SERVER_KILLS + 1)).await.unwrap();
            let killed = tokio::task::spawn_blocking(move || {
                server.kill().unwrap();
                server.start_again().unwrap();
                server
            });
            server = killed.await.unwrap();
        }
        server
    };
    let clients = stream::iter(clients).buffer_unordered(2 * AT_A_TIME).collect::<Vec<_>>();
    let (clients, server) = tokio::join!(clients, killer);
    let mut answers = BTreeMap::new();
    for (key, answer) in clients {
        let first = answers.entry(key).or_insert_with(|| answer.clone());
        assert_eq!(*first, answer, "two clients of one key");
    }
    judge(&server, &answers);
}
