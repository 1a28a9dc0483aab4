//! The lives of the process, one after another: each is begun, has its fault, and ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::PATIENCE;
use crate::gateway::{Gateway, Site, Start};
use crate::history::{self, Operation};
use crate::ledger::Ledger;
use crate::plan::Life;
use crate::round::Counts;
use crate::traffic::Traffic;

/// As many duplicates are to be under way when the process is killed, if they come within [`CROWD_WAIT`].
const CROWD: usize = 12;
const CROWD_WAIT: Duration = Duration::from_secs(2);
/// How often the process's log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

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
    ledger: &'a Ledger,
    traffic: &'a Arc<Traffic>,
    done: Done,
    clean: Option<Gateway>,
}

impl<'a> Lives<'a> {
    /// None lived yet.
    #[must_use]
    pub(crate) fn new(site: &'a Site, ledger: &'a Ledger, traffic: &'a Arc<Traffic>) -> Self {
        let done = Done { lives: Vec::new(), counts: Counts::default(), given_up: Vec::new() };
        Self { site, ledger, traffic, done, clean: None }
    }

    /// One life, to its end; a clean one goes on.
    ///
    /// # Errors
    /// Where its fault did not happen.
    pub(crate) async fn live(&mut self, life: &Life) -> anyhow::Result<()> {
        let failpoint = match life {
            Life::Aborted { point, hit } => Some(format!("{point}:hit={hit}:abort")),
            Life::Paused { point, hit, .. } => Some(format!("{point}:hit={hit}:pause")),
            Life::Unrenewed { .. } => Some("store.extend:hit=1+:pause".to_owned()),
            Life::Killed { .. } | Life::Stopped { .. } | Life::Clean => None,
        };
        let log = self.site.log_bytes();
        let mut gateway = self.begin(life, &Start { failpoint, ..Start::default() }).await?;
        match *life {
            Life::Killed { after } => {
                self.answers(after).await?;
                self.kill(gateway).await?;
            }
            Life::Aborted { point, .. } => {
                let ended = gateway.ended().await?;
                ensure!(!ended.success(), "it ended well");
                self.is_over().await?;
                self.count(&format!("at {point}"));
            }
            Life::Paused { point, after, .. } => {
                self.said(log, "stopped at a failpoint").await?;
                let answers = self.traffic.figures().answers;
                self.answers(answers + after).await?;
                self.kill(gateway).await?;
                self.count(&format!("paused at {point}"));
            }
            Life::Stopped { after, for_ms } => {
                self.answers(after).await?;
                gateway.signal(Signal::STOP)?;
                tokio::time::sleep(Duration::from_millis(for_ms)).await;
                gateway.signal(Signal::CONT)?;
                self.count("stopped");
                let answers = self.traffic.figures().answers;
                self.answers(answers + after).await?;
                self.kill(gateway).await?;
            }
            Life::Unrenewed { after } => {
                self.said(log, "stopped at a failpoint").await?;
                let enough = self.traffic.until(PATIENCE, |figures| figures.settled >= after).await;
                ensure!(enough, "no {after} keys were answered");
                self.kill(gateway).await?;
                self.count("unrenewed");
            }
            Life::Clean => self.clean = Some(gateway),
        }
        Ok(())
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
        let fault = (*life != Life::Clean).then(|| format!("{life:?}"));
        self.traffic.is_up(gateway.address, self.done.lives.len());
        self.done.lives.push(history::Life { fault });
        Ok(gateway)
    }

    /// So many answers have come in this life.
    async fn answers(&self, count: u32) -> anyhow::Result<()> {
        ensure!(self.traffic.until(PATIENCE, |figures| figures.answers >= count).await, "no {count} answers came");
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
