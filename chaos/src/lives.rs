//! The lives of the process, one after another: each is begun, has its fault, and ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use rustix::process::Signal;

use crate::PATIENCE;
use crate::clock::{self, FakeClock};
use crate::damage;
use crate::disk::SmallDisk;
use crate::gateway::{Embedded, Gateway, Site, Start};
use crate::history::{self, Operation};
use crate::ledger::Ledger;
use crate::plan::Life;
use crate::round::Counts;
use crate::traffic::{Traffic, wall_us};

/// As many duplicates are to be under way when the process is killed, if they come within [`CROWD_WAIT`].
const CROWD: usize = 12;
const CROWD_WAIT: Duration = Duration::from_secs(2);
/// How often the process's log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The store's clock and the checker's may differ by so much, in microseconds.
const SLACK_US: u64 = 1_000_000;
/// What it logs of a request that a failpoint stopped.
const PAUSED: &str = "stopped at a failpoint";
/// What was done, and how often.
pub(crate) struct Done {
    /// What the judge is told of each life.
    pub(crate) lives: Vec<history::Life>,
    /// Kills and other faults.
    pub(crate) counts: Counts,
    /// Operations within an interval that the process listed as lost.
    pub(crate) given_up: Vec<Operation>,
}

/// The lives of one folder.
pub(crate) struct Lives<'a> {
    site: &'a Site,
    store: &'a Embedded,
    disk: Option<&'a SmallDisk>,
    rng: Rng,
    ledger: &'a Ledger,
    traffic: &'a Arc<Traffic>,
    done: Done,
    clean: Option<Gateway>,
}

impl<'a> Lives<'a> {
    /// None lived yet. `disk` is the one that the store is on, where it is one that can be filled.
    #[must_use]
    pub(crate) fn new(
        site: &'a Site,
        (store, disk): (&'a Embedded, Option<&'a SmallDisk>),
        ledger: &'a Ledger,
        traffic: &'a Arc<Traffic>,
        seed: u64,
    ) -> Self {
        let done = Done { lives: Vec::new(), counts: Counts::default(), given_up: Vec::new() };
        Self { site, store, disk, rng: Rng::with_seed(seed), ledger, traffic, done, clean: None }
    }

    /// One life, to its end; a clean one goes on.
    ///
    /// # Errors
    /// Where its fault did not happen.
    pub(crate) async fn live(&mut self, life: &Life) -> anyhow::Result<()> {
        match *life {
            Life::Killed { after } => {
                let gateway = self.begin(life, &Start::default()).await?;
                self.answers(after).await?;
                self.kill(gateway).await
            }
            Life::Aborted { point, hit } => {
                let mut gateway = self.begin(life, &at(format!("{point}:hit={hit}:abort"))).await?;
                let ended = gateway.ended().await?;
                ensure!(!ended.success(), "it ended well");
                self.count(&format!("at {point}"));
                self.is_over().await
            }
            Life::Paused { point, hit, after } => {
                let log = self.site.log_bytes();
                let gateway = self.begin(life, &at(format!("{point}:hit={hit}:pause"))).await?;
                self.said(log, PAUSED).await?;
                self.more_answers(after).await?;
                self.count(&format!("paused at {point}"));
                self.kill(gateway).await
            }
            Life::Stopped { after, for_ms } => {
                let gateway = self.begin(life, &Start::default()).await?;
                self.answers(after).await?;
                gateway.signal(Signal::STOP)?;
                tokio::time::sleep(Duration::from_millis(for_ms)).await;
                gateway.signal(Signal::CONT)?;
                self.count("stopped");
                self.more_answers(after).await?;
                self.kill(gateway).await
            }
            Life::Unrenewed { after } => {
                let log = self.site.log_bytes();
                let gateway = self.begin(life, &at("store.extend:hit=1+:pause".to_owned())).await?;
                self.said(log, PAUSED).await?;
                self.settled(after).await?;
                self.count("unrenewed");
                self.kill(gateway).await
            }
            Life::Unconfirmed { after } => {
                let gateway = self.begin(life, &at("store.replace:hit=1+:pause".to_owned())).await?;
                let came = self.traffic.until(PATIENCE, |figures| figures.unrecorded >= after).await;
                ensure!(came, "no {after} answers came that are marked as not recorded");
                self.count("unconfirmed");
                self.kill(gateway).await
            }
            Life::Jumped { start_s, then_s, after } => self.jump(life, start_s, then_s, after).await,
            Life::Torn { after } => self.tear(life, after).await,
            Life::Flipped { after } => self.flip(life, after).await,
            Life::Full { refusals } => self.fill(life, refusals).await,
            Life::Clean => {
                self.clean = Some(self.begin(life, &Start::default()).await?);
                Ok(())
            }
        }
    }

    async fn jump(&mut self, life: &Life, start_s: i64, then_s: i64, after: u32) -> anyhow::Result<()> {
        let clock = FakeClock::new(&self.site.folder)?;
        clock.put(start_s)?;
        let gateway = self.begin(life, &Start { env: clock.env(), ..Start::default() }).await?;
        clock::shows(&self.site.log_from(0), start_s)?;
        self.answers(after).await?;
        clock.put(then_s)?;
        let log = self.site.log_bytes();
        // It logs this one, with its time.
        gateway.signal(Signal::HUP)?;
        self.said(log, "SIGHUP").await?;
        let said = self.site.log_from(log);
        clock::shows(said.lines().find(|line| line.contains("SIGHUP")).unwrap_or_default(), then_s)?;
        self.more_answers(after).await?;
        if start_s != 0 {
            self.count("clock off at a start");
        }
        self.count("clock jumped");
        self.kill(gateway).await
    }

    async fn tear(&mut self, life: &Life, after: u32) -> anyhow::Result<()> {
        let gateway = self.begin(life, &Start::default()).await?;
        self.answers(after).await?;
        let known_us = wall_us();
        self.more_answers(after).await?;
        self.kill(gateway).await?;
        damage::tear(&self.store.folder, &mut self.rng)?;
        // What is torn was perhaps answered, which no power failure does. It was the last batch: whatever was known
        // half-way stands in one before it.
        self.give_up(known_us, u64::MAX);
        let log = self.site.log_bytes();
        let gateway = self.begin(life, &Start::default()).await?;
        self.said(log, "an incomplete last batch was cut").await?;
        self.count("torn");
        self.kill(gateway).await
    }

    async fn flip(&mut self, life: &Life, after: u32) -> anyhow::Result<()> {
        let gateway = self.begin(life, &Start::default()).await?;
        self.answers(after).await?;
        self.kill(gateway).await?;
        damage::flip(&self.store.folder, &mut self.rng)?;
        let log = self.site.log_bytes();
        let code = self.site.refused(&Start::default()).await?;
        let said = self.site.log_from(log);
        ensure!(code == 1 && said.contains("is damaged at byte"), "it refused with code {code}: {said}");
        let log = self.site.log_bytes();
        let accepts = Start { args: vec!["--accept-loss".to_owned()], ..Start::default() };
        let gateway = self.site.start(&accepts).await?;
        self.said(log, "a part of the log is lost").await?;
        // Before any client learns of it.
        for (after_us, before_us) in damage::listed(&self.site.log_from(log)) {
            self.give_up(after_us.saturating_sub(SLACK_US), before_us.saturating_add(SLACK_US));
        }
        self.is_up(life, &gateway);
        self.count("flipped");
        self.kill(gateway).await
    }

    async fn fill(&mut self, life: &Life, refusals: u32) -> anyhow::Result<()> {
        let disk = self.disk.context("this plan needs a disk of its own")?;
        let gateway = self.begin(life, &Start::default()).await?;
        let refused = self.traffic.until(PATIENCE, |figures| figures.unavailable >= refusals).await;
        ensure!(refused, "the disk was full, and claims were taken all the same");
        self.count("disk full");
        disk.grow()?;
        // It goes on by itself.
        let settled = self.traffic.figures().settled;
        self.settled(settled.saturating_add(refusals)).await?;
        self.kill(gateway).await
    }

    /// Operations that may have been written in an interval are not counted.
    fn give_up(&mut self, from_us: u64, to_us: u64) {
        self.done.given_up.extend(self.traffic.written_between(from_us, to_us));
    }

    /// What was done, when the last life is over.
    ///
    /// # Errors
    /// Where it cannot be ended.
    pub(crate) async fn end(mut self) -> anyhow::Result<Done> {
        let gateway = self.clean.take().context("the last life is not a clean one")?;
        gateway.kill().await?;
        Ok(self.done)
    }

    async fn begin(&mut self, life: &Life, start: &Start) -> anyhow::Result<Gateway> {
        let gateway = self.site.start(start).await?;
        self.is_up(life, &gateway);
        Ok(gateway)
    }

    fn is_up(&mut self, life: &Life, gateway: &Gateway) {
        let fault = (*life != Life::Clean).then(|| format!("{life:?}"));
        self.traffic.is_up(gateway.address, self.done.lives.len());
        self.done.lives.push(history::Life { fault });
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

    async fn kill(&mut self, gateway: Gateway) -> anyhow::Result<()> {
        self.traffic.until(CROWD_WAIT, |figures| figures.duplicates >= CROWD).await;
        self.done.counts.duplicates_at_a_kill += self.traffic.figures().duplicates;
        gateway.kill().await?;
        self.count("kill -9");
        self.is_over().await
    }

    /// The process is gone; whatever it has sent is in the ledger before the next one sends anything.
    async fn is_over(&mut self) -> anyhow::Result<()> {
        self.done.counts.kills += 1;
        self.traffic.is_down();
        self.ledger.quiet().await
    }

    fn count(&mut self, fault: &str) {
        *self.done.counts.faults.entry(fault.to_owned()).or_default() += 1;
    }
}

fn at(failpoint: String) -> Start {
    Start { failpoint: Some(failpoint), ..Start::default() }
}
