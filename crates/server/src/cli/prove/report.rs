//! What was found, as text for the eye, JSON for programs, and JUnit for a CI.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::args::ProveArgs;
use super::campaign::{Findings, Round, Row};
use super::effects::Counter;
use super::judge::{Judged, Verdict};
use super::message::Template;

/// A run and its findings.
pub(super) struct Report<'a> {
    pub(super) args: &'a ProveArgs,
    pub(super) template: &'a Template,
    pub(super) counter: &'a Counter,
    pub(super) seed: u64,
    pub(super) findings: &'a Findings,
}

impl Report<'_> {
    fn endpoint(&self) -> String {
        self.template.url.shown()
    }

    fn counted(&self) -> String {
        let scope = if self.counter.is_by_key() { "by key" } else { "a total, which nothing else may move" };
        format!("{} of {}, {scope}", self.counter.place(), self.counter.url.shown())
    }

    /// As text.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let args = self.args;
        // Writing to a String does not fail.
        let mut line = |text: String| {
            let _ = writeln!(out, "{}", text.trim_end());
        };
        line(format!("{} {}", self.template.method, self.endpoint()));
        line(format!("effects: {}", self.counted()));
        line(format!(
            "seed {}, {} rounds of each attack, {} at once in races",
            self.seed, args.rounds, args.concurrency
        ));
        line(String::new());
        let baseline = &self.findings.baseline;
        line(format!("{:<16} {:<13} {}", "baseline", baseline.verdict.word(), baseline.why));
        for row in &self.findings.rows {
            let (judged, count) = row.judged();
            line(format!("{:<16} {:<13} {}", row.attack.name(), judged.verdict.word(), summary(row, &judged, count)));
            for note in &row.notes {
                line(format!("{:<30} note: {note}", ""));
            }
        }
        for row in &self.findings.rows {
            for verdict in [Verdict::Double, Verdict::Refused] {
                let mut rounds = row.rounds.iter().zip(1..).filter(|(round, _)| round.judged.verdict == verdict);
                let Some((first, number)) = rounds.next() else { continue };
                line(String::new());
                line(format!("{}, round {number}: {}. To see it:", row.attack.name(), first.judged.why));
                for step in &first.steps {
                    line(format!("    {step}"));
                }
                let others: Vec<String> = rounds.map(|(_, number): (_, u32)| number.to_string()).collect();
                if !others.is_empty() {
                    line(format!("  and likewise in round {}", others.join(", ")));
                }
            }
        }
        line(String::new());
        line(self.conclusion());
        out
    }

    fn conclusion(&self) -> String {
        let findings = self.findings;
        let count = |verdict| findings.rows.iter().filter(|row| row.judged().0.verdict == verdict).count();
        let attacks = findings.rows.len();
        match findings.verdict() {
            Verdict::Ok | Verdict::Skipped => {
                let skipped = match count(Verdict::Skipped) {
                    0 => String::new(),
                    skipped => format!(", {skipped} skipped"),
                };
                format!("nothing found by {} attacks{skipped}", count(Verdict::Ok))
            }
            Verdict::Inconclusive => format!("it cannot be told: {}", findings.doubt()),
            Verdict::Refused => {
                format!("{} of {attacks} attacks got requests in good order refused", count(Verdict::Refused))
            }
            Verdict::Double => {
                let refused = match count(Verdict::Refused) {
                    0 => String::new(),
                    refused => format!(", {refused} got requests in good order refused"),
                };
                format!("double effects by {} of {attacks} attacks{refused}", count(Verdict::Double))
            }
        }
    }

    /// As one JSON value.
    pub(super) fn json(&self) -> Value {
        let findings = self.findings;
        json!({
            "method": self.template.method.as_str(),
            "url": self.endpoint(),
            "effects": { "url": self.counter.url.shown(), "at": self.counter.place(),
                "by_key": self.counter.is_by_key() },
            "seed": self.seed,
            "concurrency": self.args.concurrency,
            "verdict": findings.verdict().name(),
            "baseline": { "verdict": findings.baseline.verdict.name(), "why": findings.baseline.why },
            "attacks": findings.rows.iter().map(row).collect::<Vec<Value>>(),
        })
    }

    /// As JUnit XML: a double effect or a refusal is a failure, what cannot be told an error.
    pub(super) fn junit(&self) -> String {
        let baseline = ("baseline".to_owned(), self.findings.baseline.clone(), String::new());
        let mut cases = vec![baseline];
        for row in &self.findings.rows {
            let (judged, count) = row.judged();
            let why = Judged { why: summary(row, &judged, count), ..judged.clone() };
            let steps = row.rounds.iter().find(|round| round.judged.verdict == judged.verdict && is_bad(round));
            cases.push((row.attack.name(), why, steps.map(|round| round.steps.join("\n")).unwrap_or_default()));
        }
        let count = |kind: &str| cases.iter().filter(|(_, judged, _)| element(judged.verdict) == Some(kind)).count();
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            out,
            "<testsuites>\n<testsuite name=\"onceward prove {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">",
            escaped(&self.endpoint()),
            cases.len(),
            count("failure"),
            count("error"),
            count("skipped"),
        );
        for (name, judged, steps) in &cases {
            let _ = write!(out, "<testcase classname=\"onceward.prove\" name=\"{name}\"");
            let _ = match element(judged.verdict) {
                None => writeln!(out, "/>"),
                Some(element) => writeln!(
                    out,
                    ">\n<{element} message=\"{}\">{}</{element}>\n</testcase>",
                    escaped(&judged.why),
                    escaped(steps)
                ),
            };
        }
        out.push_str("</testsuite>\n</testsuites>\n");
        out
    }
}

fn is_bad(round: &Round) -> bool {
    matches!(round.judged.verdict, Verdict::Double | Verdict::Refused)
}

fn element(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Ok => None,
        Verdict::Skipped => Some("skipped"),
        Verdict::Inconclusive => Some("error"),
        Verdict::Refused | Verdict::Double => Some("failure"),
    }
}

fn summary(row: &Row, judged: &Judged, count: usize) -> String {
    let mut parts = Vec::new();
    match judged.verdict {
        Verdict::Ok => parts.push(format!("{count} rounds")),
        Verdict::Skipped => parts.push(judged.why.clone()),
        _ if count == 0 => parts.push(judged.why.clone()),
        _ => parts.push(format!("{count} of {} rounds: {}", row.rounds.len(), judged.why)),
    }
    if !row.answers.is_empty() {
        parts.push(answers(&row.answers));
    }
    parts.join("; ")
}

fn answers(answers: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> = answers.iter().map(|(what, count)| format!("{count} \u{d7} {what}")).collect();
    format!("answers: {}", each.join(", "))
}

fn row(row: &Row) -> Value {
    let (judged, count) = row.judged();
    let rounds: Vec<Value> = row
        .rounds
        .iter()
        .map(|round| {
            let steps = if is_bad(round) { json!(round.steps) } else { Value::Null };
            json!({
                "verdict": round.judged.verdict.name(),
                "why": round.judged.why,
                "keys": round.operations.iter().map(|operation| &operation.key).collect::<Vec<_>>(),
                "effects": round.effects.as_ref().ok(),
                "reproduce": steps,
            })
        })
        .collect();
    json!({
        "attack": row.attack.name(),
        "verdict": judged.verdict.name(),
        "why": summary(row, &judged, count),
        "answers": row.answers,
        "notes": row.notes,
        "rounds": rounds,
    })
}

/// For an attribute or text of XML, without the characters that XML cannot have.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(letter),
            letter if letter.is_control() => out.push('?'),
            letter => out.push(letter),
        }
    }
    out
}
