//! The verdict: a pure function of what was seen from outside.
//!
//! Each rule is a function by its own name over one operation's history. It knows nothing of the store behind, of the
//! plan's timing, or of how fast anything ran; the same rules hold for every store.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, Digest, Dispatch, End, Event, Meaning, Operation, Policy, Seen};

/// A rule that was broken, by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// The rule's name.
    pub(crate) rule: &'static str,
    /// Of whom.
    pub(crate) operation: Operation,
    /// In words.
    pub(crate) what: String,
}

/// One request of a client, from beginning to end.
#[derive(Clone, Copy)]
struct Request<'a> {
    body: Digest,
    life: usize,
    audit: bool,
    /// Place among all events at which it was begun.
    sent_at: usize,
    /// Place and way of its end; none where it never ended.
    ended: Option<(usize, &'a End)>,
}

impl Request<'_> {
    fn answer(&self) -> Option<(usize, &Answer)> {
        match self.ended {
            Some((at, End::Answer(answer))) => Some((at, answer)),
            _ => None,
        }
    }
}

/// Everything about one operation.
struct Story<'a> {
    operation: &'a Operation,
    policy: Policy,
    dispatches: Vec<&'a Dispatch>,
    requests: Vec<Request<'a>>,
    seen: &'a Seen,
}

impl<'a> Story<'a> {
    /// The answer of a request that is the key's from then on: recorded, whole, and not marked otherwise.
    fn settled(&self, request: &Request<'a>) -> Option<(usize, &'a Dispatch)> {
        let (at, answer) = request.answer()?;
        let number = answer.dispatch.filter(|_| !answer.unrecorded)?;
        let dispatch = self.seen.dispatch(number)?;
        (dispatch.act.meaning() == Meaning::Recorded).then_some((at, dispatch))
    }

    /// The first answer that is the key's from then on.
    fn first_settled(&self) -> Option<(usize, &'a Dispatch)> {
        self.requests.iter().filter_map(|request| self.settled(request)).min_by_key(|(at, _)| *at)
    }
}

type Rule = (&'static str, fn(&Story<'_>) -> Option<String>);

/// All rules.
const RULES: &[Rule] = &[
    ("one-dispatch", one_dispatch),
    ("retry-is-bounded", retry_is_bounded),
    ("fences-and-attempts-rise", fences_and_attempts_rise),
    ("answers-are-the-upstreams-own", answers_are_the_upstreams_own),
    ("answers-are-equal", answers_are_equal),
    ("answered-stays-answered", answered_stays_answered),
    ("answered-is-last", answered_is_last),
    ("other-body-never-ran", other_body_never_ran),
    ("reuse-is-said-only-of-reuse", reuse_is_said_only_of_reuse),
    ("unknown-has-a-cause", unknown_has_a_cause),
    ("every-key-ends", every_key_ends),
    ("nothing-new-ran-in-quarantine", loss::nothing_new_ran_in_quarantine),
];

/// Every rule on every operation. Empty: it held.
#[must_use]
pub(crate) fn judge(seen: &Seen) -> Vec<Broken> {
    let stories = stories(seen);
    let mut broken = Vec::new();
    for story in stories.iter().filter(|story| !seen.given_up.contains(story.operation)) {
        let rules = if loss::is_touched(story) { loss::RULES } else { RULES };
        for (rule, holds) in rules {
            if let Some(what) = holds(story) {
                broken.push(Broken { rule, operation: story.operation.clone(), what });
            }
        }
    }
    broken
}

fn stories(seen: &Seen) -> Vec<Story<'_>> {
    let story = |operation| Story {
        operation,
        policy: seen.policy(operation),
        dispatches: Vec::new(),
        requests: Vec::new(),
        seen,
    };
    let mut stories: BTreeMap<&Operation, Story<'_>> = BTreeMap::new();
    for dispatch in &seen.ledger {
        let operation = &dispatch.operation;
        stories.entry(operation).or_insert_with(|| story(operation)).dispatches.push(dispatch);
    }
    let ends: BTreeMap<usize, (usize, &End)> = seen
        .events
        .iter()
        .enumerate()
        .filter_map(|(at, event)| match event {
            Event::Ended { request, end } => Some((*request, (at, end))),
            Event::Sent { .. } => None,
        })
        .collect();
    for (at, event) in seen.events.iter().enumerate() {
        let Event::Sent { request, operation, body, life, audit } = event else { continue };
        let Some(operation) = seen.operations.get(*operation) else { continue };
        let ended = ends.get(request).copied();
        let request = Request { body: *body, life: *life, audit: *audit, sent_at: at, ended };
        stories.entry(operation).or_insert_with(|| story(operation)).requests.push(request);
    }
    stories.into_values().collect()
}

/// Under `hold`: between two dispatches the upstream itself said that it had done nothing.
fn one_dispatch(story: &Story<'_>) -> Option<String> {
    if story.policy != Policy::Hold {
        return None;
    }
    story.dispatches.windows(2).find_map(|pair| {
        let [first, second] = pair else { return None };
        (first.act.meaning() != Meaning::Released)
            .then(|| format!("dispatch {} ({:?}) was followed by dispatch {}", first.number, first.act, second.number))
    })
}

/// Under `retry`: at most so many dispatches that may have had an effect, and one.
fn retry_is_bounded(story: &Story<'_>) -> Option<String> {
    let Policy::Retry(times) = story.policy else { return None };
    let effects = story.dispatches.iter().filter(|one| one.act.meaning() != Meaning::Released).count();
    let allowed = usize::try_from(times).unwrap_or(usize::MAX).saturating_add(1);
    (effects > allowed).then(|| format!("{effects} dispatches may have had an effect, {allowed} are allowed"))
}

/// In the ledger's order each dispatch has a higher fence, and a higher attempt unless all before it did nothing.
fn fences_and_attempts_rise(story: &Story<'_>) -> Option<String> {
    let mut attempt = 0;
    let mut fence = 0;
    for dispatch in &story.dispatches {
        if dispatch.fence <= fence {
            return Some(format!("dispatch {} has fence {} after {fence}", dispatch.number, dispatch.fence));
        }
        if dispatch.attempt <= attempt {
            return Some(format!("dispatch {} is attempt {} after {attempt}", dispatch.number, dispatch.attempt));
        }
        fence = dispatch.fence;
        // A release frees the key, and its count begins anew, but not over an attempt that may have had an effect.
        if dispatch.act.meaning() != Meaning::Released || attempt > 0 {
            attempt = dispatch.attempt;
        }
    }
    None
}

/// An answer with a dispatch's name is what the upstream sent for that dispatch, of this operation.
fn answers_are_the_upstreams_own(story: &Story<'_>) -> Option<String> {
    story.requests.iter().filter_map(Request::answer).find_map(|(_, answer)| {
        let number = answer.dispatch?;
        let Some(dispatch) = story.seen.dispatch(number) else {
            return Some(format!("an answer names dispatch {number}, which never was"));
        };
        if dispatch.operation != *story.operation {
            return Some(format!("it was given the answer of {}", dispatch.operation));
        }
        match dispatch.said {
            None => Some(format!("dispatch {number} was cut off, and its answer passed as whole")),
            Some(said) if (said.status, said.body) != (answer.status, answer.body) => Some(format!(
                "the answer of dispatch {number} is not what was sent ({} then {})",
                said.status, answer.status
            )),
            Some(_) => None,
        }
    })
}

/// All answers that are the key's are of one dispatch.
fn answers_are_equal(story: &Story<'_>) -> Option<String> {
    let of: BTreeSet<u64> = story
        .requests
        .iter()
        .filter_map(|request| story.settled(request))
        .map(|(_, dispatch)| dispatch.number)
        .collect();
    (of.len() > 1).then(|| format!("it has answers of dispatches {of:?}"))
}

/// Once a client has its recorded answer, whoever asks the same later gets it too, whatever was killed between.
fn answered_stays_answered(story: &Story<'_>) -> Option<String> {
    let (at, dispatch) = story.first_settled()?;
    let later = story.requests.iter().filter(|request| request.sent_at > at && request.body == dispatch.body);
    later.filter_map(Request::answer).find_map(|(_, answer)| {
        let number = dispatch.number;
        match (answer.dispatch, answer.problem.as_deref()) {
            (Some(other), _) if other == number => None,
            // Nobody was told anything about the key.
            (None, Some("store-unavailable" | "overloaded")) => None,
            (other, problem) => Some(format!("dispatch {number} was answered, and later came {other:?} {problem:?}")),
        }
    })
}

/// Once a client has its recorded answer, nothing is dispatched under a higher fence.
fn answered_is_last(story: &Story<'_>) -> Option<String> {
    let (_, answered) = story.first_settled()?;
    let later = story.dispatches.iter().find(|dispatch| dispatch.fence > answered.fence)?;
    Some(format!("dispatch {} was answered, and then came dispatch {}", answered.number, later.number))
}

/// Where one body may have had its effect, no other is dispatched, nor given its answer.
fn other_body_never_ran(story: &Story<'_>) -> Option<String> {
    let ran = story.dispatches.iter().find(|dispatch| dispatch.act.meaning() != Meaning::Released)?;
    if let Some(other) = story.dispatches.iter().find(|other| other.body != ran.body && other.number > ran.number) {
        return Some(format!("dispatch {} has another body than dispatch {}", other.number, ran.number));
    }
    let given = story.requests.iter().find(|request| {
        request.body != ran.body && request.answer().is_some_and(|(_, answer)| answer.dispatch == Some(ran.number))
    });
    given.map(|_| format!("the answer of dispatch {} was given to a request with another body", ran.number))
}

/// 422 `key-reused` only where two bodies came under the key.
fn reuse_is_said_only_of_reuse(story: &Story<'_>) -> Option<String> {
    let bodies: BTreeSet<Digest> = story.requests.iter().map(|request| request.body).collect();
    let told = story
        .requests
        .iter()
        .filter_map(Request::answer)
        .any(|(_, answer)| answer.problem.as_deref() == Some("key-reused"));
    (told && bodies.len() < 2).then(|| "it was told to be reused, and has one body".to_owned())
}

/// An outcome that stays unknown has a reason: the upstream broke off, the process was ended or stopped meanwhile, or
/// `retry` came to its end.
fn unknown_has_a_cause(story: &Story<'_>) -> Option<String> {
    let is_unknown = story.requests.iter().any(|request| {
        request.audit
            && request.answer().is_some_and(|(_, answer)| answer.problem.as_deref() == Some("outcome-unknown"))
    });
    let broke_off = story.dispatches.iter().any(|dispatch| dispatch.act.meaning() == Meaning::Unknown);
    let ran_out =
        matches!(story.policy, Policy::Retry(times) if story.dispatches.iter().any(|one| one.attempt > times));
    let faulty = |life: usize| story.seen.lives.get(life).is_some_and(|life| life.fault.is_some());
    let was_ended = story.requests.iter().any(|request| faulty(request.life));
    (is_unknown && !broke_off && !ran_out && !was_ended)
        .then(|| "its outcome is unknown, and nothing was done to it".to_owned())
}

/// When all faults are over, each key says within the bound what became of it.
fn every_key_ends(story: &Story<'_>) -> Option<String> {
    let mut audits = story.requests.iter().filter(|request| request.audit).peekable();
    if audits.peek().is_none() {
        return Some("nobody asked at the end how it stands".to_owned());
    }
    let ends = |request: &Request<'_>| match request.answer() {
        Some((_, Answer { dispatch: Some(_), unrecorded, .. })) => !unrecorded,
        Some((_, answer)) => matches!(answer.problem.as_deref(), Some("outcome-unknown" | "failed" | "key-reused")),
        None => false,
    };
    let reused = |request: &Request<'_>| {
        request.answer().is_some_and(|(_, answer)| answer.problem.as_deref() == Some("key-reused"))
    };
    // One of the bodies is the key's.
    let mut said = false;
    let mut last = None;
    for request in audits {
        said |= ends(request) && !reused(request);
        last = Some(request.ended);
    }
    (!said).then(|| format!("at the end it says {last:?}"))
}

/// How many operations took effect once too often: what the whole is about.
#[must_use]
pub(crate) fn duplicates(broken: &[Broken]) -> usize {
    let once_too_often = ["one-dispatch", "retry-is-bounded", "answered-is-last"];
    let of = broken.iter().filter(|broken| once_too_often.contains(&broken.rule)).map(|broken| &broken.operation);
    of.collect::<BTreeSet<_>>().len()
}

pub(crate) use loss::ran_again;

mod loss;

#[cfg(test)]
mod tests;
