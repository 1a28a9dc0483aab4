//! The lives of the processes, one after another: each is begun, has its fault, and ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use rustix::process::Signal;

use crate::PATIENCE;
use crate::backing::Backing;
use crate::clock::{self, FakeClock};
use crate::damage;
use crate::gateway::{Gateway, Site, Start};
use crate::history::{self, Operation};
use crate::ledger::Ledger;
use crate::plan::{Blow, Life};
use crate::round::Counts;
use crate::traffic::{Traffic, wall_us};

mod redis;

/// As many duplicates are to be under way when the process is killed, if they come within [`CROWD_WAIT`].
const CROWD: usize = 12;
const CROWD_WAIT: Duration = Duration::from_secs(2);
/// How often the process's log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The store's clock and the checker's may differ by so much, in microseconds.
const SLACK_US: u64 = 1_000_000;
/// Answers that the others give, once one of several has ended itself.
const ANSWERS_OF_OTHERS: u32 = 20;
/// What it logs of a request that a failpoint stopped.
const PAUSED: &str = "stopped at a failpoint";
/// What a process logs that finds another primary.
const FAILED_OVER: &str = "the database was failed over";

/// What was done, and how often.
pub(crate) struct Done {
    /// What the judge is told of each life.
    pub(crate) lives: Vec<history::Life>,
    /// Kills and other faults.
    pub(crate) counts: Counts,
    /// Operations within an interval that the process listed as lost.
    pub(crate) given_up: Vec<Operation>,
    /// What was lost on purpose.
    pub(crate) losses: Vec<history::Loss>,
}

/// The lives before one store.
pub(crate) struct Lives<'a> {
    site: &'a Site,
    backing: &'a mut Backing,
    rng: Rng,
    ledger: &'a Ledger,
    traffic: &'a Arc<Traffic>,
    done: Done,
    running: Vec<Option<Gateway>>,
    struck: Vec<Struck>,
}

/// Something that may have lost records.
struct Struck {
    /// How long the log was.
    log: u64,
    /// From when to when what was written is gone; none where nothing is.
    from_us: Option<u64>,
    begun_us: u64,
    over_us: u64,
    /// The one whose record is gone, where it is one.
    only: Option<Operation>,
    /// The parts that it is about; none where all.
    parts: Option<BTreeSet<u16>>,
}

impl<'a> Lives<'a> {
    /// None lived yet.
    #[must_use]
    pub(crate) fn new(
        site: &'a Site,
        backing: &'a mut Backing,
        ledger: &'a Ledger,
        traffic: &'a Arc<Traffic>,
        seed: u64,
    ) -> Self {
        let done = Done { lives: Vec::new(), counts: Counts::default(), given_up: Vec::new(), losses: Vec::new() };
        let running = (0..backing.gateways()).map(|_| None).collect();
        Self { site, backing, rng: Rng::with_seed(seed), ledger, traffic, done, running, struck: Vec::new() }
    }

    /// One life, to its end; a clean one goes on.
    ///
    /// # Errors
    /// Where its fault did not happen.
    pub(crate) async fn live(&mut self, life: &Life) -> anyhow::Result<()> {
        match *life {
            Life::Killed { after } => {
                self.begin(life, &Start::default()).await?;
                self.answers(after).await?;
                self.kill().await
            }
            Life::OneKilled { which, after } => {
                self.begin(life, &Start::default()).await?;
                self.answers(after).await?;
                self.crowd().await;
                self.take(which)?.kill().await?;
                self.count("one of two kill -9");
                self.one_is_over(after).await
            }
            Life::Struck { blow, after } => self.strike(life, blow, after).await,
            Life::Aborted { point, hit } => {
                self.begin(life, &at(format!("{point}:hit={hit}:abort"))).await?;
                let mut gateway = self.take(0)?;
                let ended = gateway.ended().await?;
                ensure!(!ended.success(), "it ended well");
                self.count(&format!("at {point}"));
                self.one_is_over(ANSWERS_OF_OTHERS).await
            }
            Life::Paused { point, hit, after } => {
                let log = self.site.log_bytes();
                self.begin(life, &at(format!("{point}:hit={hit}:pause"))).await?;
                self.said(log, PAUSED).await?;
                self.more_answers(after).await?;
                self.count(&format!("paused at {point}"));
                self.kill().await
            }
            Life::Stopped { after, for_ms } => {
                self.begin(life, &Start::default()).await?;
                self.answers(after).await?;
                self.signal(Signal::STOP)?;
                tokio::time::sleep(Duration::from_millis(for_ms)).await;
                self.signal(Signal::CONT)?;
                self.count("stopped");
                self.more_answers(after).await?;
                self.kill().await
            }
            Life::Unrenewed { after } => {
                let log = self.site.log_bytes();
                self.begin(life, &everywhere("store.extend:hit=1+:pause")).await?;
                self.said(log, PAUSED).await?;
                self.settled(after).await?;
                self.count("unrenewed");
                self.kill().await
            }
            Life::Unconfirmed { after } => {
                self.begin(life, &everywhere("store.replace:hit=1+:pause")).await?;
                let came = self.traffic.until(PATIENCE, |figures| figures.unrecorded >= after).await;
                ensure!(came, "no {after} answers came that are marked as not recorded");
                self.count("unconfirmed");
                self.kill().await
            }
            Life::Jumped { start_s, then_s, after } => self.jump(life, start_s, then_s, after).await,
            Life::Torn { after } => self.tear(life, after).await,
            Life::Flipped { after } => self.flip(life, after).await,
            Life::Full { refusals } => self.fill(life, refusals).await,
            Life::Clean => self.begin(life, &Start::default()).await,
        }
    }

    /// Something is done to the database; the processes go on by themselves, into the next life.
    async fn strike(&mut self, life: &Life, blow: Blow, after: u32) -> anyhow::Result<()> {
        // A journal whose database has no standby yet, and may fail over to one, keeps nothing.
        let is_journaled = self.backing.is_journaled();
        if blow == Blow::FailedOver && is_journaled {
            self.backing.database()?.follow().await?;
        }
        self.begin(life, &Start::default()).await?;
        if blow == Blow::FailedOver && !is_journaled {
            self.backing.database()?.follow().await?;
        }
        self.answers(after).await?;
        self.crowd().await;
        let is_of_redis = blow.is_of_redis() && matches!(self.backing, Backing::Tiered(..));
        if is_of_redis || matches!(self.backing, Backing::Redis(_)) {
            return self.strike_redis(blow, after).await;
        }
        if let Backing::Cluster(_) = self.backing {
            return self.strike_cluster(blow, after).await;
        }
        let (log, settled) = (self.site.log_bytes(), self.traffic.figures().settled);
        let database = self.backing.database()?;
        match blow {
            Blow::Killed => database.kill()?,
            Blow::ShutDown => database.shut_down()?,
            Blow::FailedOver => database.fail_over()?,
            Blow::Cut => database.cut()?,
            Blow::Unanswered => database.cut_unanswered()?,
            _ => anyhow::bail!("this is done to Redis"),
        }
        self.count(blow.name());
        if blow == Blow::FailedOver {
            self.said(log, FAILED_OVER).await?;
            if is_journaled {
                self.backing.database()?.follow().await?;
            }
        }
        self.settled(settled.saturating_add(after)).await
    }

    async fn jump(&mut self, life: &Life, start_s: i64, then_s: i64, after: u32) -> anyhow::Result<()> {
        let clock = FakeClock::new(&self.site.folder)?;
        clock.put(start_s)?;
        self.begin(life, &Start { env: clock.env(), ..Start::default() }).await?;
        clock::shows(&self.site.log_from(0), start_s)?;
        self.answers(after).await?;
        clock.put(then_s)?;
        let log = self.site.log_bytes();
        // It logs this one, with its time.
        self.signal(Signal::HUP)?;
        self.said(log, "SIGHUP").await?;
        let said = self.site.log_from(log);
        clock::shows(said.lines().find(|line| line.contains("SIGHUP")).unwrap_or_default(), then_s)?;
        self.more_answers(after).await?;
        if start_s != 0 {
            self.count("clock off at a start");
        }
        self.count("clock jumped");
        self.kill().await
    }

    async fn tear(&mut self, life: &Life, after: u32) -> anyhow::Result<()> {
        self.begin(life, &Start::default()).await?;
        self.answers(after).await?;
        let known_us = wall_us();
        self.more_answers(after).await?;
        self.kill().await?;
        damage::tear(self.backing.folder()?, &mut self.rng)?;
        // What is torn was perhaps answered, which no power failure does. It was the last batch: whatever was known
        // half-way stands in one before it.
        self.give_up(known_us, u64::MAX);
        let log = self.site.log_bytes();
        self.begin(life, &Start::default()).await?;
        self.said(log, "an incomplete last batch was cut").await?;
        self.count("torn");
        self.kill().await
    }

    async fn flip(&mut self, life: &Life, after: u32) -> anyhow::Result<()> {
        self.begin(life, &Start::default()).await?;
        self.answers(after).await?;
        self.kill().await?;
        damage::flip(self.backing.folder()?, &mut self.rng)?;
        let log = self.site.log_bytes();
        let code = self.site.refused(&Start::default()).await?;
        let said = self.site.log_from(log);
        ensure!(code == 1 && said.contains("is damaged at byte"), "it refused with code {code}: {said}");
        let log = self.site.log_bytes();
        let accepts = Start { args: vec!["--accept-loss".to_owned()], ..Start::default() };
        let gateway = self.site.start(0, &accepts).await?;
        self.said(log, "a part of the log is lost").await?;
        // Before any client learns of it.
        for (after_us, before_us) in damage::listed(&self.site.log_from(log)) {
            self.give_up(after_us.saturating_sub(SLACK_US), before_us.saturating_add(SLACK_US));
        }
        self.running = vec![Some(gateway)];
        self.are_up(life);
        self.count("flipped");
        self.kill().await
    }

    async fn fill(&mut self, life: &Life, refusals: u32) -> anyhow::Result<()> {
        self.begin(life, &Start::default()).await?;
        let refused = self.traffic.until(PATIENCE, |figures| figures.unavailable >= refusals).await;
        ensure!(refused, "the disk was full, and claims were taken all the same");
        self.count("disk full");
        self.backing.disk()?.grow()?;
        // It goes on by itself.
        let settled = self.traffic.figures().settled;
        self.settled(settled.saturating_add(refusals)).await?;
        self.kill().await
    }

    /// Operations that may have been written in an interval are not counted.
    fn give_up(&mut self, from_us: u64, to_us: u64) {
        self.done.given_up.extend(self.traffic.written_between(0, from_us, to_us));
    }

    /// What was done, when the last life is over.
    ///
    /// # Errors
    /// Where it cannot be ended.
    pub(crate) async fn end(mut self) -> anyhow::Result<Done> {
        for gateway in self.running.iter_mut().filter_map(Option::take) {
            gateway.kill().await?;
        }
        self.done.losses = self.losses()?;
        Ok(self.done)
    }

    /// Whoever does not run is started, the first one so.
    async fn begin(&mut self, life: &Life, start: &Start) -> anyhow::Result<()> {
        let plain = Start::default();
        for (which, running) in self.running.iter_mut().enumerate() {
            let start = if which == 0 || start.everywhere { start } else { &plain };
            match running {
                None => *running = Some(self.site.start(which, start).await?),
                Some(_) => ensure!(*start == plain, "process {which} runs already, and not so"),
            }
        }
        self.are_up(life);
        Ok(())
    }

    fn are_up(&mut self, life: &Life) {
        let fault = (*life != Life::Clean).then(|| format!("{life:?}"));
        self.traffic.are_up(self.addresses(), self.done.lives.len());
        self.done.lives.push(history::Life { fault });
    }

    fn addresses(&self) -> Vec<std::net::SocketAddr> {
        self.running.iter().flatten().map(|gateway| gateway.address).collect()
    }

    /// One of those that run, which then counts as gone.
    fn take(&mut self, which: usize) -> anyhow::Result<Gateway> {
        self.running.get_mut(which).and_then(Option::take).context("the process does not run")
    }

    /// To the first one.
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.running.first().and_then(Option::as_ref).context("the process does not run")?.signal(signal)
    }

    /// So many answers have come in this life.
    async fn answers(&self, count: u32) -> anyhow::Result<()> {
        ensure!(self.traffic.until(PATIENCE, |figures| figures.answers >= count).await, "no {count} answers came");
        Ok(())
    }

    /// So many more have come.
    async fn more_answers(&self, count: u32) -> anyhow::Result<()> {
        self.answers(self.traffic.figures().answers.saturating_add(count)).await
    }

    /// So many keys were answered in this life.
    async fn settled(&self, count: u32) -> anyhow::Result<()> {
        let came = self.traffic.until(PATIENCE, |figures| figures.settled >= count).await;
        ensure!(came, "no {count} keys were answered");
        Ok(())
    }

    /// The process has logged `words` since its log was so long.
    async fn said(&self, from: u64, words: &str) -> anyhow::Result<()> {
        let saying = async {
            while !self.site.log_from(from).contains(words) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, saying).await.with_context(|| format!("it did not say: {words}"))
    }

    /// Waits for duplicates under way, and counts them.
    async fn crowd(&mut self) {
        self.traffic.until(CROWD_WAIT, |figures| figures.duplicates >= CROWD).await;
        self.done.counts.duplicates_at_a_kill += self.traffic.figures().duplicates;
    }

    /// All at once, with duplicates under way.
    async fn kill(&mut self) -> anyhow::Result<()> {
        self.crowd().await;
        for gateway in self.running.iter_mut().filter_map(Option::take) {
            gateway.kill().await?;
            self.done.counts.kills += 1;
        }
        *self.done.counts.faults.entry("kill -9".to_owned()).or_default() += 1;
        self.all_are_over().await
    }

    /// Whatever they have sent is in the ledger before the next ones send anything.
    async fn all_are_over(&mut self) -> anyhow::Result<()> {
        self.traffic.are_left(Vec::new());
        self.ledger.quiet().await
    }

    /// One is gone. What it held is its own until its leases end, and by then the ledger has read what it sent; others
    /// give so many answers meanwhile.
    async fn one_is_over(&mut self, answers: u32) -> anyhow::Result<()> {
        self.done.counts.kills += 1;
        let left = self.addresses();
        if left.is_empty() {
            return self.all_are_over().await;
        }
        self.traffic.are_left(left);
        self.more_answers(answers).await
    }

    fn count(&mut self, fault: &str) {
        *self.done.counts.faults.entry(fault.to_owned()).or_default() += 1;
    }
}

fn at(failpoint: String) -> Start {
    Start { failpoint: Some(failpoint), ..Start::default() }
}

fn everywhere(failpoint: &str) -> Start {
    Start { everywhere: true, ..at(failpoint.to_owned()) }
}
