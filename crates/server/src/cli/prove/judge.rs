//! What a round means. Only what was counted counts: an effect that could not be counted is unknown, and unknown is never
//! well.

use std::collections::BTreeMap;
use std::time::Duration;

use super::attack::Evidence;
use super::wire::{Answer, NoAnswer};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// One effect, and an answer for whoever comes again.
    Ok,
    /// Not tried, for a reason that is said.
    Skipped,
    /// It cannot be told.
    Inconclusive,
    /// A request that is in order is refused, left without its effect, or never answered.
    Refused,
    /// More effects than operations.
    Double,
}

impl Verdict {
    /// As text, for the eye.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Inconclusive => "inconclusive",
            Self::Refused => "REFUSED",
            Self::Double => "DOUBLE",
        }
    }

    /// As a value, for programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Double => "double",
            other => other.word(),
        }
    }
}

/// A verdict with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    pub(super) why: String,
}

impl Judged {
    pub(super) fn new(verdict: Verdict, why: impl Into<String>) -> Self {
        Self { verdict, why: why.into() }
    }
}

/// Judges one round by its evidence and the effects that were counted.
pub(super) fn judge(evidence: &Evidence, effects: &Result<u64, String>, timeout: Duration) -> Judged {
    let effects = match effects {
        Ok(effects) => *effects,
        Err(why) => return Judged::new(Verdict::Inconclusive, why.clone()),
    };
    let counted = if effects == 1 { "1 effect".to_owned() } else { format!("{effects} effects") };
    if effects > evidence.most {
        let of = if evidence.operations.len() == 1 { "under one key" } else { "of fewer operations" };
        return Judged::new(Verdict::Double, format!("{counted} {of}"));
    }
    if let Some(why) = &evidence.failed {
        return Judged::new(Verdict::Inconclusive, format!("the attack did not take place: {why}"));
    }
    match &evidence.last {
        Err(error) => Judged::new(Verdict::Inconclusive, format!("the last repetition: {error}")),
        Ok(answer) if answer.is_success() && effects >= evidence.least => Judged::new(Verdict::Ok, ""),
        Ok(answer) if answer.is_success() && evidence.operations.len() > 1 => {
            Judged::new(Verdict::Refused, format!("{counted} of {} operations, all answered 2xx", evidence.least))
        }
        Ok(answer) if answer.is_success() => {
            Judged::new(Verdict::Refused, format!("answered {}, and nothing took effect", answer.status))
        }
        Ok(Answer { status: 429, .. }) => Judged::new(Verdict::Inconclusive, "429: there are too many requests for it"),
        Ok(answer) if evidence.may_refuse && (400..500).contains(&answer.status) && effects == 0 => {
            Judged::new(Verdict::Ok, format!("refused with {}", answer.status))
        }
        Ok(answer) if answer.is_worth_another_try() => Judged::new(
            Verdict::Refused,
            format!("{counted}, and repetitions are still told {} after {}", answer.status, seconds(timeout)),
        ),
        Ok(answer) => Judged::new(Verdict::Refused, format!("{counted}, and the repetition is told {}", answer.status)),
    }
}

fn seconds(timeout: Duration) -> String {
    crate::config::units::spell_duration(timeout)
}

/// How often each status, and each kind of silence, was heard.
pub(super) fn tally(heard: &[Result<Answer, NoAnswer>], into: &mut BTreeMap<String, u64>) {
    for told in heard {
        let name = match told {
            Ok(answer) => answer.status.to_string(),
            Err(error) => error.name().to_owned(),
        };
        *into.entry(name).or_default() += 1;
    }
}

/// What is worth saying of a round beside its verdict.
pub(super) fn note(evidence: &Evidence) -> Option<String> {
    if evidence.note.is_some() || evidence.operations.len() > 1 {
        return evidence.note.clone();
    }
    let mut successes = evidence.heard.iter().flatten().filter(|answer| answer.is_success());
    let first = successes.next()?;
    let differs = successes
        .any(|answer| answer.status != first.status || (!answer.is_cut && !first.is_cut && answer.body != first.body));
    differs.then(|| "a repetition got another answer than the first".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::prove::message::Operation;

    fn answer(status: u16, body: &str) -> Result<Answer, NoAnswer> {
        Ok(Answer { status, headers: Vec::new(), body: body.into(), is_cut: false })
    }

    fn evidence(last: Result<Answer, NoAnswer>) -> Evidence {
        Evidence {
            operations: vec![Operation::new("k", 1)],
            heard: vec![last.clone()],
            last,
            most: 1,
            least: 1,
            may_refuse: false,
            failed: None,
            note: None,
            steps: Vec::new(),
            draw: String::new(),
        }
    }

    #[test]
    fn a_double_effect_is_one_whatever_was_answered_and_unknown_is_never_ok() {
        let verdict = |evidence: &Evidence, effects| judge(evidence, &effects, Duration::from_secs(1)).verdict;
        for last in [answer(201, ""), answer(409, ""), answer(500, ""), Err(NoAnswer::Late)] {
            assert_eq!(verdict(&evidence(last.clone()), Ok(2)), Verdict::Double);
            assert_eq!(verdict(&evidence(last.clone()), Err("down".into())), Verdict::Inconclusive);
            let not_made = Evidence { failed: Some("no connection".into()), ..evidence(last) };
            assert_eq!(verdict(&not_made, Ok(1)), Verdict::Inconclusive);
            assert_eq!(verdict(&not_made, Ok(2)), Verdict::Double);
        }
        for (last, effects, expected) in [
            (answer(201, ""), 1, Verdict::Ok),
            (answer(201, ""), 0, Verdict::Refused),
            (answer(409, ""), 1, Verdict::Refused),
            (answer(400, ""), 0, Verdict::Refused),
            (answer(302, ""), 1, Verdict::Refused),
            (answer(429, ""), 1, Verdict::Inconclusive),
            (Err(NoAnswer::Closed), 1, Verdict::Inconclusive),
            (Err(NoAnswer::NotHttp), 0, Verdict::Inconclusive),
        ] {
            assert_eq!(verdict(&evidence(last.clone()), Ok(effects)), expected, "{last:?} {effects}");
        }
        let refusable = |last| Evidence { may_refuse: true, ..evidence(last) };
        assert_eq!(verdict(&refusable(answer(400, "")), Ok(0)), Verdict::Ok);
        assert_eq!(verdict(&refusable(answer(500, "")), Ok(0)), Verdict::Refused);
        assert_eq!(verdict(&refusable(answer(400, "")), Ok(1)), Verdict::Refused);
    }

    #[test]
    fn two_keys_that_are_taken_for_one_are_told() {
        let near = Evidence {
            operations: vec![Operation::new("a", 1), Operation::new("b", 1)],
            most: 2,
            least: 2,
            ..evidence(answer(201, ""))
        };
        let judged = judge(&near, &Ok(1), Duration::from_secs(1));
        assert_eq!(
            (judged.verdict, judged.why.as_str()),
            (Verdict::Refused, "1 effect of 2 operations, all answered 2xx")
        );
        assert_eq!(judge(&near, &Ok(2), Duration::from_secs(1)).verdict, Verdict::Ok);
    }

    #[test]
    fn another_answer_to_a_repetition_is_noted() {
        let heard = |told: &[(u16, &str)]| Evidence {
            heard: told.iter().map(|(status, body)| answer(*status, body)).collect(),
            ..evidence(answer(201, ""))
        };
        assert_eq!(note(&heard(&[(201, "a"), (409, "x"), (201, "a")])), None);
        assert!(note(&heard(&[(201, "a"), (201, "b")])).is_some() && note(&heard(&[(201, "a"), (200, "a")])).is_some());
    }
}
