//! The SQL functions are the one second copy of what `onceward-core` decides. Here both are driven by the same steps, and
//! must say the same and leave the same records.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod sql;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use fastrand::Rng;
use onceward_core::record::Micros;
use serde_json::{Value, json};
use servers::Postgres;
use tokio_postgres::{
    Client,
    types::{Json, ToSql},
};

use sql::{
    oracle::{Oracle, Step},
    steps,
};

const SEQUENCES: u64 = 5_000;
const STEPS: usize = 20;
const WORKERS: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_functions_say_and_leave_what_core_does() {
    let seed = seed();
    let server = Arc::new(sql::server().await);
    sql::connect(&server).await.batch_execute(include_str!("sql/harness.sql")).await.unwrap();
    let seen = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let workers = (0..WORKERS).map(|worker| {
        let (server, seen) = (Arc::clone(&server), Arc::clone(&seen));
        tokio::spawn(async move {
            let pair = Pair::new(&server).await;
            for number in (0..SEQUENCES).filter(|number| number % WORKERS == worker) {
                let told = sequence(&pair, worker, number, seed + number).await;
                let mut seen = seen.lock().unwrap();
                told.into_iter().for_each(|what| *seen.entry(what).or_default() += 1);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap_or_else(|error| panic!("ONCEWARD_SEED={seed}: {error}"));
    }
    let seen = Arc::into_inner(seen).unwrap().into_inner().unwrap();
    println!("seed {seed}: {SEQUENCES} sequences of {STEPS} steps; {seen:?}");
    for what in SEEN {
        assert!(seen.contains_key(*what), "ONCEWARD_SEED={seed}: never seen: {what}");
    }
}

/// What a run must have met, or it shows little.
const SEEN: &[&str] = &[
    "granted",
    "replay",
    "in_flight",
    "retry_later",
    "response_not_kept",
    "failed",
    "unknown",
    "probe",
    "completed",
    "already",
    "not_executed",
    "released",
    "absent",
    "stored",
    "erased",
    "freed",
    "rollback",
    "principal_changed",
    "key_reused",
    "gone",
    "fenced",
    "conflict",
    "order",
    "size",
    "stale_fence",
    "not_unknown",
    "busy",
    "reuse_in_flight",
    "pair waited",
    "pair did not wait",
    "pair rolled back",
];

fn seed() -> u64 {
    std::env::var("ONCEWARD_SEED").map_or_else(|_| fastrand::u64(..u64::from(u32::MAX)), |seed| seed.parse().unwrap())
}

/// Two sessions; one of them also looks what the other waits for.
struct Pair {
    one: Client,
    other: Client,
    other_pid: i32,
}

impl Pair {
    async fn new(server: &Postgres) -> Self {
        let (one, other) = (sql::connect(server).await, sql::connect(server).await);
        for client in [&one, &other] {
            client.batch_execute("set plan_cache_mode = force_generic_plan").await.unwrap();
        }
        let other_pid = other.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        Self { one, other, other_pid }
    }

    /// Does the step; what was said.
    async fn step(client: &Client, step: &Step) -> Value {
        let row = client.query_one("select diff.one($1)", &[&Json(steps::told(step))]).await.unwrap();
        let Json(said) = row.get(0);
        said
    }

    /// Ends once the other session has answered or waits for a lock.
    async fn other_waits(&self, answer: &mut (impl Future<Output = Value> + Unpin)) -> Option<Value> {
        loop {
            let pid: &(dyn ToSql + Sync) = &self.other_pid;
            let params = [pid];
            let looked = self.one.query_one("select cardinality(pg_blocking_pids($1)) > 0", &params);
            tokio::select! {
                biased;
                said = &mut *answer => return Some(said),
                row = looked => if row.unwrap().get(0) { return None },
            }
        }
    }
}

/// One sequence: steps in one session, then two at the same time in two, then steps again. Says what was met.
async fn sequence(pair: &Pair, worker: u64, number: u64, seed: u64) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let ids = [0, 1].map(|last| {
        let mut id = [0; 32];
        rng.fill(&mut id);
        // One partition a worker: its mark is this sequence's alone.
        (id[0], id[31]) = (u8::try_from(worker).unwrap(), last);
        id
    });
    pair.one
        .execute("update onceward.mark set fence = 0 where partition = $1", &[&i16::try_from(worker).unwrap()])
        .await
        .unwrap();
    let mut oracle = Oracle::default();
    let mut clock = Micros(1_700_000_000_000_000);
    let mut met = Vec::new();
    let mut history = Vec::new();

    let before_pair = rng.usize(1..STEPS - 2);
    for part in [before_pair, STEPS - 2 - before_pair] {
        let mut ops = Vec::new();
        for _ in 0..part {
            clock = steps::tick(&mut rng, clock);
            let id = ids[usize::from(rng.u8(..4) == 0)];
            let step = steps::draw(&mut rng, &oracle, id, clock);
            let said = oracle.step(&step);
            met.extend(words(&said));
            ops.push(json!([steps::told(&step), [said, oracle.look(id)]]));
            history.push(step);
        }
        let row = pair.one.query_one("select * from diff.run($1)", &[&Json(&ops)]).await.unwrap();
        let agreed = usize::try_from(row.get::<_, i32>(0)).unwrap();
        if let Some(op) = ops.get(agreed) {
            let said: Json<Value> = row.get(1);
            history.truncate(history.len() - ops.len() + agreed + 1);
            panic!("ONCEWARD_SEED={seed} sequence {number}\n{}core {}\nSQL  {}", listed(&history), op[1], said.0);
        }
        if history.len() == before_pair {
            oracle = at_once(pair, &mut rng, oracle, ids, &mut clock, &mut met)
                .await
                .unwrap_or_else(|told| panic!("ONCEWARD_SEED={seed} sequence {number}\n{}\n{told}", listed(&history)));
        }
    }
    met
}

/// Two steps, the first in a transaction that is still open while the second runs. They must end as one after the other.
async fn at_once(
    pair: &Pair,
    rng: &mut Rng,
    before: Oracle,
    ids: [[u8; 32]; 2],
    clock: &mut Micros,
    met: &mut Vec<String>,
) -> Result<Oracle, String> {
    *clock = steps::tick(rng, *clock);
    // On one key: the fences of different keys are in no order.
    let first = steps::draw_function(rng, &before, ids[0], *clock);
    let second = steps::draw_function(rng, &before, ids[0], *clock);
    let is_committed = rng.u8(..4) != 0;

    pair.one.batch_execute("begin").await.unwrap();
    let first_said = Pair::step(&pair.one, &first).await;
    let mut answer = Box::pin(Pair::step(&pair.other, &second));
    let answered = pair.other_waits(&mut answer).await;
    met.push(if answered.is_some() { "pair did not wait" } else { "pair waited" }.to_owned());
    pair.one.batch_execute(if is_committed { "commit" } else { "rollback" }).await.unwrap();
    let second_said = match answered {
        Some(said) => said,
        None => answer.await,
    };
    met.extend(words(&second_said));

    let mut orders = vec![vec![&second]];
    if is_committed {
        orders = vec![vec![&first, &second], vec![&second, &first]];
    } else {
        met.push("pair rolled back".to_owned());
    }
    let mut tried = Vec::new();
    for order in orders {
        let mut oracle = before.clone();
        let mut said: BTreeMap<bool, Value> = BTreeMap::new();
        for step in order {
            said.insert(std::ptr::eq(step, &first), oracle.step(step));
        }
        let mut is_same = said[&false] == second_said && said.get(&true).is_none_or(|said| *said == first_said);
        for id in ids {
            let row = pair.one.query_one("select diff.look($1)", &[&&id[..]]).await.unwrap();
            let Json(left) = row.get::<_, Json<Value>>(0);
            is_same &= left == oracle.look(id);
            tried.push(format!("core {}\nSQL  {left}", oracle.look(id)));
        }
        if is_same {
            return Ok(oracle);
        }
        tried.push(format!("core {said:?}"));
    }
    Err(format!(
        "at once:\n{first:?}\n{second:?}\ncommitted {is_committed}\nSQL said {first_said}\nand {second_said}\n{}",
        tried.join("\n")
    ))
}

fn listed(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("{step:?}\n")).collect()
}

/// The words in what was said, to count what was met.
fn words(said: &Value) -> Vec<String> {
    match said {
        Value::String(word) => vec![word.clone()],
        Value::Array(all) => all.iter().flat_map(words).collect(),
        Value::Object(object) => {
            ["outcome", "detail"].iter().filter_map(|name| Some(object.get(*name)?.as_str()?.to_owned())).collect()
        }
        _ => Vec::new(),
    }
}
