//! One round: a plan is carried out on a folder of its own, and everything that was seen is handed to the judge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backing::{Backing, Store};
use crate::cache::{self, Cache, Wanted};
use crate::clients::{self, Story};
use crate::database::Database;
use crate::disk::SmallDisk;
use crate::gateway::{RETRIES, RETRY_MAX, Site};
use crate::history::{self, Seen};
use crate::judge::{self, Broken};
use crate::ledger::Ledger;
use crate::lives::{Done, Lives};
use crate::plan::{Blow, Durability, Life, Plan, RESHARDING};
use crate::shards::Shards;
use crate::traffic::Traffic;

/// Stories that are played at a time.
const WORKERS: u64 = 20;
/// Answers that come in the last, clean life before no more stories are begun.
const ANSWERS_AFTER: u32 = 100;
/// How long the keys may take at the end to say how they stand, all of them: many times what they do.
const AUDIT: Duration = Duration::from_secs(20);
/// A dispatch while the one before it, of the same process, was not answered: its lease was over.
const OVERTAKEN: &str = "overtaken";
/// Keys that are asked at the end at a time.
const AUDITS_AT_ONCE: usize = 64;

/// What a round, or several, came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Rounds.
    pub(crate) rounds: usize,
    /// Times that the process was ended, by a signal or by a failpoint.
    pub(crate) kills: usize,
    /// Operations: keys of one caller on one route.
    pub(crate) keys: usize,
    /// Requests of clients.
    pub(crate) requests: usize,
    /// Requests whose key another had under way when the process was ended.
    pub(crate) duplicates_at_a_kill: usize,
    /// Requests that reached the upstream.
    pub(crate) dispatches: usize,
    /// Recorded answers that were given again.
    pub(crate) replays: usize,
    /// Keys whose outcome is unknown at the end.
    pub(crate) unknowns: usize,
    /// Keys within an interval that the process listed as lost.
    pub(crate) given_up: usize,
    /// Keys that ran again because their records were lost.
    pub(crate) again: usize,
    /// Keys that took effect once too often.
    pub(crate) duplicates: usize,
    /// Other faults that happened, and how often, by name.
    pub(crate) faults: BTreeMap<String, usize>,
}

impl Counts {
    /// What matters most.
    #[must_use]
    pub(crate) fn in_a_line(&self) -> String {
        format!(
            "rounds {}  kills {}  keys {}  requests {}  dispatches {}  replays {}  unknown {}  duplicates in flight {}  \
             again {}  duplicates {}",
            self.rounds,
            self.kills,
            self.keys,
            self.requests,
            self.dispatches,
            self.replays,
            self.unknowns,
            self.duplicates_at_a_kill,
            self.again,
            self.duplicates
        )
    }

    /// Adds another's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.kills += other.kills;
        self.keys += other.keys;
        self.requests += other.requests;
        self.duplicates_at_a_kill += other.duplicates_at_a_kill;
        self.dispatches += other.dispatches;
        self.replays += other.replays;
        self.unknowns += other.unknowns;
        self.given_up += other.given_up;
        self.again += other.again;
        self.duplicates += other.duplicates;
        for (name, times) in &other.faults {
            *self.faults.entry(name.clone()).or_default() += times;
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "rounds {}  kills {}  keys {}  requests {}  duplicates in flight at a kill {}",
            self.rounds, self.kills, self.keys, self.requests, self.duplicates_at_a_kill
        )?;
        writeln!(
            f,
            "dispatches {}  replays {}  unknown at the end {}  given up as lost {}  run again after a loss {}  \
             duplicates {}",
            self.dispatches, self.replays, self.unknowns, self.given_up, self.again, self.duplicates
        )?;
        let faults: Vec<String> = self.faults.iter().map(|(name, times)| format!("{name} {times}")).collect();
        write!(f, "faults: {}", faults.join(", "))
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The binary.
    pub(crate) onceward: PathBuf,
    /// A safety to take out of it.
    pub(crate) mutant: Option<String>,
}

/// A round that was carried out.
pub(crate) struct Judged {
    /// What it came to.
    pub(crate) counts: Counts,
    /// Rules that were broken.
    pub(crate) broken: Vec<Broken>,
    /// Where everything is, if something was broken.
    pub(crate) kept: Option<PathBuf>,
}

/// Carries `plan` out.
///
/// # Errors
/// Where a fault of the plan did not happen, or the machine does not play along; nothing is judged then.
pub(crate) async fn run(plan: &Plan, programs: &Programs) -> anyhow::Result<Judged> {
    let folder = tempfile::Builder::new().prefix("onceward-chaos-").tempdir().context("a temporary folder")?;
    match carry_out(plan, programs, folder.path()).await {
        Ok((seen, counts)) => {
            let broken = judge::judge(&seen);
            let counts = Counts { duplicates: judge::duplicates(&broken), ..counts };
            let kept = (!broken.is_empty()).then(|| folder.keep());
            Ok(Judged { counts, broken, kept })
        }
        Err(error) => Err(error.context(format!("see {}", folder.keep().display()))),
    }
}

async fn carry_out(plan: &Plan, programs: &Programs, folder: &Path) -> anyhow::Result<(Seen, Counts)> {
    let ledger = Ledger::start(folder).await?;
    let mut backing = match plan.store {
        Store::Embedded => {
            let data = folder.join("data");
            let disk = (plan.name == "disk").then(|| SmallDisk::mount(&data)).transpose()?;
            Backing::Embedded { folder: data, disk }
        }
        Store::Postgres => Backing::Postgres(Box::new(Database::start(&programs.onceward, &[]).await?)),
        Store::Redis if plan.name == RESHARDING => Backing::Cluster(Box::new(Shards::start()?)),
        Store::Redis => Backing::Redis(Box::new(Cache::start(wanted(plan))?)),
        Store::Tiered => {
            // A journal is not kept by a server that may lose what it has committed.
            let settings: &[_] = if plan.durability == Durability::Journaled { &[("fsync", "on")] } else { &[] };
            let database = Box::new(Database::start(&programs.onceward, settings).await?);
            Backing::Tiered(database, Box::new(Cache::start(wanted(plan))?), plan.durability)
        }
    };
    let site = Site { program: programs.onceward.clone(), mutant: programs.mutant.clone(), folder: folder.to_owned() };
    site.configure(&backing, ledger.address)?;
    let traffic = Arc::new(Traffic::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let (traffic, stop, mix, seed) = (Arc::clone(&traffic), Arc::clone(&stop), plan.mix, plan.seed);
        workers.spawn(async move {
            let mut nth = worker;
            while !stop.load(Ordering::Relaxed) {
                clients::play(&traffic, Story::of(mix, seed, nth)).await;
                nth += WORKERS;
            }
        });
    }
    let mut lives = Lives::new(&site, &mut backing, &ledger, &traffic, plan.seed);
    for life in &plan.lives {
        lives.live(life).await.with_context(|| format!("{life:?} did not happen"))?;
    }
    // The last life goes on until all is over.
    traffic.until(crate::PATIENCE, |figures| figures.answers >= ANSWERS_AFTER).await;
    stop.store(true, Ordering::Relaxed);
    workers.join_all().await;
    audit(&traffic).await;
    let Done { lives, counts, given_up, losses } = lives.end().await?;
    let ledger = ledger.end().await?;
    let log = traffic.take();
    let seen = Seen {
        ledger,
        events: log.events,
        lives,
        retries: RETRIES.map(|route| (route.to_owned(), RETRY_MAX)).to_vec(),
        given_up: given_up.into_iter().collect(),
        parts: log.operations.iter().map(|operation| (operation.clone(), cache::part_of(operation))).collect(),
        losses,
        operations: log.operations,
    };
    let counts = counted(&seen, counts);
    ensure!(plan.name != "overtaken" || counts.faults.contains_key(OVERTAKEN), "no holder was overtaken");
    // Every key is asked for at the end, so that what was lost has run again.
    let losing = seen.losses.iter().filter(|loss| !loss.gone.is_empty()).count();
    ensure!(losing == 0 || counts.again > 0, "nothing ran again of what was lost {losing} times");
    ensure!(counts.keys > 0 && counts.dispatches > 0, "no client came through");
    Ok((seen, counts))
}

/// What Redis is to do in this plan.
fn wanted(plan: &Plan) -> Wanted {
    let failover = if plan.name == "failover" { "synchronous" } else { "none" };
    let fails_over = plan.lives.iter().any(|life| matches!(life, Life::Struck { blow: Blow::LeftBehind, .. }));
    Wanted {
        is_kept: plan.store == Store::Redis && plan.name == "database",
        quarantine: plan.name == "quarantine",
        fails_over,
        strategy: plan.strategy,
        has_hints: plan.store == Store::Tiered && plan.durability == Durability::Strict,
        journal: (plan.store == Store::Tiered && plan.durability == Durability::Journaled).then_some(failover),
    }
}

/// Asks of each key, with each body that came under it, how it stands.
async fn audit(traffic: &Arc<Traffic>) {
    let mut audits = JoinSet::new();
    let until = Instant::now() + AUDIT;
    for (number, operation, bodies) in traffic.asked() {
        if audits.len() >= AUDITS_AT_ONCE {
            audits.join_next().await;
        }
        let traffic = Arc::clone(traffic);
        audits.spawn(async move {
            for body in bodies {
                clients::audit(&traffic, number, operation.clone(), body, until).await;
            }
        });
    }
    audits.join_all().await;
}

fn counted(seen: &Seen, counts: Counts) -> Counts {
    let mut answers: BTreeMap<u64, usize> = BTreeMap::new();
    let mut unknowns = std::collections::BTreeSet::new();
    let mut audits: BTreeMap<usize, usize> = BTreeMap::new();
    let mut requests = 0;
    for event in &seen.events {
        match event {
            history::Event::Sent { request, operation, audit, .. } => {
                requests += 1;
                if *audit {
                    audits.insert(*request, *operation);
                }
            }
            history::Event::Ended { request, end: history::End::Answer(answer) } => {
                if let Some(number) = answer.dispatch {
                    *answers.entry(number).or_default() += 1;
                }
                if answer.problem.as_deref() == Some("outcome-unknown")
                    && let Some(operation) = audits.get(request)
                {
                    unknowns.insert(*operation);
                }
            }
            history::Event::Ended { .. } => {}
        }
    }
    let overtaken = overtaken(seen);
    let mut counts = counts;
    if overtaken > 0 {
        counts.faults.insert(OVERTAKEN.to_owned(), overtaken);
    }
    Counts {
        rounds: 1,
        keys: seen.operations.len(),
        requests,
        dispatches: seen.ledger.len(),
        replays: answers.values().map(|times| times - 1).sum(),
        unknowns: unknowns.len(),
        given_up: seen.given_up.len(),
        again: judge::ran_again(seen),
        ..counts
    }
}

/// Dispatches whose key the same life of the process had dispatched before, to an upstream that answered whole.
fn overtaken(seen: &Seen) -> usize {
    let mut last: BTreeMap<&history::Operation, &history::Dispatch> = BTreeMap::new();
    let mut overtaken = 0;
    for dispatch in &seen.ledger {
        if let Some(before) = last.insert(&dispatch.operation, dispatch) {
            overtaken +=
                usize::from(before.life == dispatch.life && before.act.meaning() == history::Meaning::Recorded);
        }
    }
    overtaken
}
