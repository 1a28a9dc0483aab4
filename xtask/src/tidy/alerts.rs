//! Holds `deploy/prometheus/` to the metrics of the contract, to the runbook, and the alerts to their cases.

use std::collections::{BTreeMap, BTreeSet};

use super::{contract, file};
use crate::tree::Text;

pub(crate) const RULES: &str = "deploy/prometheus/onceward.rules.yml";
pub(crate) const CASES: &str = "deploy/prometheus/onceward.rules.test.yml";
/// What tells gateways apart, and is none of ours.
const OF_SCRAPES: &[&str] = &["instance", "pod"];

/// An alert as the rules file spells it.
struct Alert<'a> {
    name: &'a str,
    /// Its expression, without comments.
    expr: String,
    text: &'a str,
}

/// What is wrong with the alerts: metrics, labels and values that the contract does not have, one without severity, words
/// or runbook, one without a case in which it fires and one in which it does not, and cases of alerts that are gone.
pub(super) fn alerts(texts: &[Text]) -> Vec<String> {
    let (Some(rules), Some(cases), Some(contract)) =
        (file(texts, RULES), file(texts, CASES), file(texts, contract::CONTRACT))
    else {
        return vec![format!("{RULES}, {CASES} or {} is gone", contract::CONTRACT)];
    };
    let alerts = read(&rules.text);
    if alerts.is_empty() {
        return vec![format!("{RULES}: no alert to read")];
    }
    let metrics = metrics(&contract.text);
    let mut found = Vec::new();
    for alert in &alerts {
        let mut wrong = |what: String| found.push(format!("{RULES}: {}: {what}", alert.name));
        expression(&alert.expr, &metrics).into_iter().for_each(&mut wrong);
        for key in ["severity: ", "summary: ", "description: "] {
            if !alert.text.contains(key) {
                wrong(format!("has no `{}`", key.trim_end()));
            }
        }
        match alert.text.split_once("runbook: ").and_then(|(_, rest)| rest.split_whitespace().next()) {
            Some(runbook) if has_section(texts, runbook, alert.name) => {}
            Some(runbook) => wrong(format!("`{runbook}` has no section `### {}`", alert.name)),
            None => wrong("has no `runbook:`".to_owned()),
        }
        if !cases.text.contains(&format!("alertname=\"{}\", alertstate=\"firing\"", alert.name)) {
            wrong(format!("has no case in {CASES} in which it fires"));
        }
        let silent = format!("alertname: {}, ", alert.name);
        if !cases.text.lines().any(|line| line.contains(&silent) && line.contains("exp_alerts: []")) {
            wrong(format!("has no case in {CASES} in which it does not fire"));
        }
    }
    let known: BTreeSet<&str> = alerts.iter().map(|alert| alert.name).collect();
    let cased = cases.text.split("alertname: ").skip(1).filter_map(|rest| rest.split([',', ' ', '\n']).next());
    let gone: BTreeSet<&str> = cased.filter(|name| !known.contains(name)).collect();
    found.extend(gone.into_iter().map(|name| format!("{CASES}: {RULES} has no alert {name}")));
    found
}

fn read(rules: &str) -> Vec<Alert<'_>> {
    let of = |text| {
        let name = str::lines(text).next().unwrap_or_default().trim();
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let expr = lines.skip_while(|line| !line.starts_with("expr:"));
        let expr: Vec<&str> =
            expr.take_while(|line| !line.starts_with("for:") && !line.starts_with("labels:")).collect();
        Alert { name, expr: expr.join(" "), text }
    };
    rules.split("- alert: ").skip(1).map(|text| of(text.split("\n  - name:").next().unwrap_or(text))).collect()
}

/// Whether the document has the section of that alert, which the link leads to.
fn has_section(texts: &[Text], link: &str, alert: &str) -> bool {
    let Some((path, section)) = link.split_once('#') else { return false };
    let heading = format!("### {alert}");
    section == alert.to_lowercase()
        && file(texts, path).is_some_and(|document| document.text.lines().any(|line| line == heading))
}

/// Of a metric of the contract: its labels, and the words that its row has for their values.
type Metrics<'a> = BTreeMap<&'a str, (BTreeSet<&'a str>, BTreeSet<&'a str>)>;

fn metrics(contract: &str) -> Metrics<'_> {
    let mut metrics = Metrics::new();
    for line in contract.lines().filter(|line| line.starts_with("| `onceward_")) {
        let spans: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let words: BTreeSet<&str> = spans.iter().copied().collect();
        for span in spans.iter().filter(|span| span.starts_with("onceward_")) {
            let (name, labels) = span.split_once('{').unwrap_or((span, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            metrics.insert(name, (labels.collect(), words.clone()));
        }
    }
    metrics
}

/// What an expression asks for that no metric has.
fn expression(expr: &str, metrics: &Metrics<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut used = Vec::new();
    let mut rest = expr;
    while let Some(at) = rest.find("onceward_") {
        let text = rest.get(at..).unwrap_or_default();
        let end = text.find(|char: char| !(char.is_ascii_alphanumeric() || char == '_')).unwrap_or(text.len());
        let (word, after) = text.split_at_checked(end).unwrap_or((text, ""));
        rest = after;
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(word);
        let Some((labels, values)) = metrics.get(word).or_else(|| metrics.get(base)) else {
            found.push(format!("{} has no metric `{word}`", contract::CONTRACT));
            continue;
        };
        used.push((word, labels));
        let Some((selector, _)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) else { continue };
        for matcher in selector.split(", ").flat_map(|matchers| matchers.split("\",")) {
            let (label, value) = matcher.split_once('=').unwrap_or((matcher, ""));
            let label = label.trim_end_matches('!').trim();
            if !labels.contains(label) {
                found.push(format!("`{word}` has no label `{label}`"));
            }
            let value = value.trim_start_matches(['~', '"']).trim_end_matches('"');
            for value in value.split('|').filter(|value| !values.contains(value)) {
                found.push(format!("the row of `{word}` in {} does not name `{value}`", contract::CONTRACT));
            }
        }
    }
    if used.is_empty() && found.is_empty() {
        found.push("asks for no metric of ours".to_owned());
    }
    for (word, of) in [("by (", true), ("without (", false)] {
        let lists = expr.split(word).skip(1).filter_map(|rest| rest.split_once(')')).map(|(list, _)| list);
        for label in lists.flat_map(|list| list.split(", ")) {
            let nobody = used.iter().find(|(_, labels)| !labels.contains(label)).map(|(metric, _)| *metric);
            match nobody {
                Some(metric) if of => found.push(format!("`{metric}` has no label `{label}`")),
                _ if !of && !OF_SCRAPES.contains(&label) => {
                    found.push(format!("`{label}` does not tell gateways apart: {}", OF_SCRAPES.join(", ")));
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str =
        "| metric | counts |\n| `onceward_a_total{route,result}`, `onceward_b_seconds` | `ok`, `failed` |\n";
    const RUNBOOK: &str = "## Alerts\n\n### First\n";
    const RULE: &str = "groups:\n  - name: x\n    rules:\n      - alert: First\n        # onceward_c_total\n        \
                        expr: >-\n          sum by (route) (rate(onceward_a_total{result=~\"ok|failed\"}[5m])) > 1\n        \
                        for: 5m\n        labels: { severity: warning }\n        annotations:\n          summary: s\n          \
                        description: d\n          runbook: docs/operations.md#first\n";
    const CASE: &str = "      - { alertname: First, eval_time: 1m, exp_alerts: [] }\n'ALERTS{alertname=\"First\", \
                        alertstate=\"firing\", route=\"x\"}'\n";

    fn told(rule: &str, case: &str) -> Vec<String> {
        alerts(&[
            Text::new(RULES, rule),
            Text::new(CASES, case),
            Text::new(contract::CONTRACT, CONTRACT),
            Text::new("docs/operations.md", RUNBOOK),
        ])
    }

    #[test]
    fn alerts_ask_for_metrics_that_there_are_lead_to_a_section_and_have_cases() {
        assert_eq!(told(RULE, CASE), [""; 0]);
        let seconds = RULE.replace(
            "sum by (route) (rate(onceward_a_total{result=~\"ok|failed\"}[5m]))",
            "max without (pod) (onceward_b_seconds_count)",
        );
        assert_eq!(told(&seconds, CASE), [""; 0]);
        for (from, to, says) in [
            ("onceward_a_total", "onceward_d_total", "docs/protocol.md has no metric `onceward_d_total`"),
            ("{result=", "{outcome=", "`onceward_a_total` has no label `outcome`"),
            ("ok|failed", "ok|late", "the row of `onceward_a_total` in docs/protocol.md does not name `late`"),
            ("by (route)", "by (route, kind)", "`onceward_a_total` has no label `kind`"),
            ("by (route)", "without (route)", "`route` does not tell gateways apart: instance, pod"),
            ("operations.md#first", "operations.md#other", "`docs/operations.md#other` has no section `### First`"),
            ("runbook:", "run_book:", "has no `runbook:`"),
            ("severity:", "level:", "has no `severity:`"),
            ("description:", "text:", "has no `description:`"),
        ] {
            assert_eq!(told(&RULE.replace(from, to), CASE), [format!("{RULES}: First: {says}")], "{to}");
        }
        for (from, to, says) in [
            (
                "exp_alerts: []",
                "exp_alerts: [{}]",
                "has no case in deploy/prometheus/onceward.rules.test.yml in which it does not fire",
            ),
            ("firing", "pending", "has no case in deploy/prometheus/onceward.rules.test.yml in which it fires"),
        ] {
            assert_eq!(told(RULE, &CASE.replace(from, to)), [format!("{RULES}: First: {says}")], "{to}");
        }
        let gone = format!("{CASE}{}", CASE.replace("First", "Gone"));
        assert_eq!(told(RULE, &gone), [format!("{CASES}: {RULES} has no alert Gone")]);
        assert_eq!((told("", CASE).len(), alerts(&[]).len()), (1, 1));
    }
}
