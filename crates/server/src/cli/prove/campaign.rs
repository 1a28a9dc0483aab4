//! One run: a baseline that shows that the counter counts, then the attacks, round by round, and a last look at the
//! counter for what came late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::attack::{Attack, Attacker, Evidence};
use super::effects::Counter;
use super::judge::{Judged, Verdict, judge, note, tally};
use super::message::{Message, Operation};
use super::{fresh, shell};

/// Rounds in a row that tell nothing, after which no more are tried.
const IN_VAIN_MAX: u32 = 3;

/// All that a run found.
pub(super) struct Findings {
    /// Whether the counter counts what the endpoint does.
    pub(super) baseline: Judged,
    pub(super) rows: Vec<Row>,
}

/// What one attack found.
pub(super) struct Row {
    pub(super) attack: Attack,
    pub(super) rounds: Vec<Round>,
    /// Why there is none, or why there are fewer than asked for.
    pub(super) cut_short: Option<Judged>,
    pub(super) answers: BTreeMap<String, u64>,
    pub(super) notes: BTreeSet<String>,
}

/// One round of an attack.
pub(super) struct Round {
    pub(super) operations: Vec<Operation>,
    pub(super) effects: Result<u64, String>,
    most: u64,
    pub(super) judged: Judged,
    /// The commands that do the same.
    pub(super) steps: Vec<String>,
}

impl Row {
    fn skipped(attack: Attack, judged: Judged) -> Self {
        Self { attack, rounds: Vec::new(), cut_short: Some(judged), answers: BTreeMap::new(), notes: BTreeSet::new() }
    }

    /// The worst of its rounds, with how many were so.
    pub(super) fn judged(&self) -> (Judged, usize) {
        let all = self.rounds.iter().map(|round| &round.judged).chain(&self.cut_short);
        let worst = all.fold(None, |worst: Option<&Judged>, next| match worst {
            Some(worst) if worst.verdict >= next.verdict => Some(worst),
            _ => Some(next),
        });
        let worst = worst.cloned().unwrap_or_else(|| Judged::new(Verdict::Inconclusive, "no round was made"));
        let count = self.rounds.iter().filter(|round| round.judged.verdict == worst.verdict).count();
        (worst, count)
    }
}

impl Findings {
    /// The worst that was found; with nothing else, that it cannot be told.
    pub(super) fn verdict(&self) -> Verdict {
        let rows = self.rows.iter().map(|row| row.judged().0.verdict);
        let worst = rows.max().unwrap_or(Verdict::Inconclusive).max(self.baseline.verdict);
        // All attacks left out are no proof.
        let is_tried = self.rows.iter().any(|row| !row.rounds.is_empty());
        if is_tried { worst } else { Verdict::Inconclusive }
    }

    /// Why it cannot be told.
    pub(super) fn doubt(&self) -> String {
        if self.baseline.verdict != Verdict::Ok {
            return self.baseline.why.clone();
        }
        let judged = self.rows.iter().map(|row| row.judged().0);
        let doubtful = judged.into_iter().find(|judged| judged.verdict == Verdict::Inconclusive);
        doubtful.map_or_else(|| "no attack could be tried".to_owned(), |judged| judged.why)
    }
}

/// A run under way.
pub(super) struct Campaign<'a> {
    attacker: Attacker<'a>,
    counter: &'a Counter,
    seed: u64,
    /// The first number of its operations.
    base: u64,
    made: u64,
    /// What a total stood at when the last round was over.
    standing: u64,
}

impl<'a> Campaign<'a> {
    pub(super) fn new(attacker: Attacker<'a>, counter: &'a Counter, seed: u64) -> Self {
        let base = fastrand::Rng::new().u64(1_000_000..1_000_000_000);
        Self { attacker, counter, seed, base, made: 0, standing: 0 }
    }

    /// Makes each attack that has no reason against it so many times.
    pub(super) async fn run(mut self, attacks: &[(Attack, Option<&'static str>)], rounds: u64) -> Findings {
        let baseline = self.baseline().await;
        if baseline.verdict != Verdict::Ok {
            let untried = || Judged::new(Verdict::Inconclusive, "not tried: there is nothing to compare with");
            let rows = attacks.iter().map(|(attack, _)| Row::skipped(*attack, untried())).collect();
            return Findings { baseline, rows };
        }
        let bar = progress(attacks.len() as u64 * rounds);
        let mut findings = Findings { baseline, rows: Vec::new() };
        let mut in_vain = 0;
        for (attack, reason) in attacks {
            bar.set_message(attack.name());
            if let Some(reason) = reason {
                findings.rows.push(Row::skipped(*attack, Judged::new(Verdict::Skipped, *reason)));
                bar.inc(rounds);
                continue;
            }
            findings.rows.push(Row {
                attack: *attack,
                rounds: Vec::new(),
                cut_short: None,
                answers: BTreeMap::new(),
                notes: BTreeSet::new(),
            });
            for round in 0..rounds {
                if in_vain == IN_VAIN_MAX {
                    let why = format!("not tried further: {IN_VAIN_MAX} rounds in a row told nothing");
                    if let Some(row) = findings.rows.last_mut() {
                        row.cut_short = Some(Judged::new(Verdict::Inconclusive, why));
                    }
                    break;
                }
                if !self.counter.is_by_key() {
                    self.look_for_late(&mut findings).await;
                }
                let told_something = self.round(*attack, round, &mut findings).await;
                in_vain = if told_something { 0 } else { in_vain + 1 };
                bar.inc(1);
            }
        }
        match self.counter.is_by_key() {
            true => self.look_again(&mut findings).await,
            false => self.look_for_late(&mut findings).await,
        }
        bar.finish_and_clear();
        findings
    }

    /// Two plain requests with a key each are two effects. Else nothing that follows could be believed.
    async fn baseline(&mut self) -> Judged {
        let doubt = |why: String| Judged::new(Verdict::Inconclusive, why);
        let mut statuses = BTreeSet::new();
        self.standing = match self.count_before().await {
            Ok(count) => count,
            Err(why) => return doubt(why),
        };
        for _ in 0..2 {
            let operation = self.next();
            let message = Message::new(self.attacker.template, &operation);
            let before = self.standing;
            let began = Instant::now();
            let answer = match self.attacker.ask(&message).await {
                Ok(answer) => answer,
                Err(error) => return doubt(format!("a plain request: {error}; --timeout says how long it may take")),
            };
            self.attacker.latency = self.attacker.latency.max(began.elapsed());
            statuses.insert(answer.status);
            if !answer.is_success() {
                let status = answer.status;
                return doubt(format!("a plain request is answered {status}; --body and --header say what it takes"));
            }
            match self.count(std::slice::from_ref(&operation), before).await {
                Ok(1) => {}
                Ok(0) => {
                    return doubt(format!(
                        "a plain request is answered {}, and the counter does not move: {} of the effects URL does not \
                         count these effects, or counts them later than --settle",
                        answer.status,
                        self.counter.place()
                    ));
                }
                Ok(count) => {
                    return doubt(format!(
                        "the counter moves by {count} at one plain request: something else moves it, or it counts \
                         something else"
                    ));
                }
                Err(why) => return doubt(why),
            }
        }
        let statuses: Vec<String> = statuses.iter().map(u16::to_string).collect();
        Judged::new(
            Verdict::Ok,
            format!(
                "2 plain requests, 2 effects, answered {} within {} ms",
                statuses.join(" and "),
                self.attacker.latency.as_millis().max(1)
            ),
        )
    }

    /// Whether the round told something, whatever it was.
    async fn round(&mut self, attack: Attack, round: u64, findings: &mut Findings) -> bool {
        let operation = self.next();
        // The same moments and places for a round, whichever other attacks are made.
        let mut rng = fastrand::Rng::with_seed(self.seed ^ (attack as u64) << 48 ^ round);
        let before = self.standing;
        let evidence = self.attacker.run(attack, &operation, &mut rng).await;
        let effects = self.count(&evidence.operations, before).await;
        let mut judged = judge(&evidence, &effects, self.attacker.timeout);
        let Some(row) = findings.rows.last_mut() else { return false };
        tally(&evidence.heard, &mut row.answers);
        row.notes.extend(note(&evidence));
        if judged.verdict == Verdict::Ok && !judged.why.is_empty() {
            row.notes.insert(std::mem::take(&mut judged.why));
        }
        let told_something = judged.verdict != Verdict::Inconclusive;
        row.rounds.push(self.keep(evidence, effects, judged));
        told_something
    }

    fn keep(&self, evidence: Evidence, effects: Result<u64, String>, judged: Judged) -> Round {
        let of = |operation| shell::count(self.counter, operation, self.attacker.trust);
        let counts: Vec<String> = match self.counter.is_by_key() {
            true => evidence.operations.iter().map(of).collect(),
            false => evidence.operations.first().map(of).into_iter().collect(),
        };
        // A total is worth something only by what it was before.
        let before = if self.counter.is_by_key() { Vec::new() } else { counts.clone() };
        let steps = [vec![evidence.draw], before, evidence.steps, counts].concat();
        Round { operations: evidence.operations, effects, most: evidence.most, judged, steps: shell::folded(steps) }
    }

    fn next(&mut self) -> Operation {
        self.made += 1;
        fresh(self.base, self.made)
    }

    async fn count_before(&self) -> Result<u64, String> {
        // A key that nobody has used has no effects; that this is so is a part of the baseline.
        let nobody = fresh(0, 0);
        let count = self.counter.at_rest(&nobody.key).await.map_err(|error| error.to_string())?;
        match count {
            1.. if self.counter.is_by_key() => Err(format!(
                "the counter has {count} effects for a key that was never sent: is {{key}} in its right place?"
            )),
            count => Ok(count),
        }
    }

    /// The effects of these since a total stood at `before`.
    async fn count(&mut self, operations: &[Operation], before: u64) -> Result<u64, String> {
        if !self.counter.is_by_key() {
            let now = self.counter.at_rest("").await.map_err(|error| error.to_string())?;
            self.standing = now;
            return now.checked_sub(before).ok_or_else(|| "the counter went back".to_owned());
        }
        let mut effects = 0;
        for operation in operations {
            effects += self.counter.at_rest(&operation.key).await.map_err(|error| error.to_string())?;
        }
        Ok(effects)
    }

    /// What a total moved by since the last round was over is that round's doing, or somebody else's.
    async fn look_for_late(&mut self, findings: &mut Findings) {
        let Ok(now) = self.counter.read("").await else { return };
        let late = now.abs_diff(self.standing);
        self.standing = now;
        let round = findings.rows.iter_mut().rev().find_map(|row| row.rounds.last_mut());
        if let Some(round) = round
            && late > 0
            && round.judged.verdict < Verdict::Inconclusive
        {
            let why = format!(
                "the counter moved by {late} after the round was over: raise --settle, or see who else moves it"
            );
            round.judged = Judged::new(Verdict::Inconclusive, why);
        }
    }

    /// Counts the effects of every key once more, when all is over.
    async fn look_again(&self, findings: &mut Findings) {
        for round in findings.rows.iter_mut().flat_map(|row| &mut row.rounds) {
            let Ok(counted) = round.effects.clone() else { continue };
            let mut now = 0;
            for operation in &round.operations {
                match self.counter.read(&operation.key).await {
                    Ok(effects) => now += effects,
                    Err(error) => {
                        round.judged = Judged::new(Verdict::Inconclusive, format!("at the last look: {error}"));
                        break;
                    }
                }
            }
            if now > counted && now > round.most {
                round.effects = Ok(now);
                round.judged =
                    Judged::new(Verdict::Double, format!("{now} effects under one key, the last of them late"));
            }
        }
    }
}

/// A bar on stderr where that is a terminal.
fn progress(count: u64) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(count);
    if let Ok(style) = indicatif::ProgressStyle::with_template("{bar:40} {pos}/{len} rounds, {eta} left: {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
