//! What holds of a key whose record the store may have lost: it runs again because of that alone, once for each loss,
//! where the processes said so, and not while new keys were refused.
//!
//! A dispatch runs *again* where the record of one before would have kept it. That one's record was written with its
//! claim, whose time is its fence; or, where the claim is there still and only says that nothing was sent yet, between
//! claim and dispatch.

use super::{
    Request, Rule, Story, answers_are_the_upstreams_own, every_key_ends, fences_and_attempts_rise, one_dispatch,
    other_body_never_ran, retry_is_bounded, reuse_is_said_only_of_reuse, stories,
};
use crate::history::{Dispatch, Loss, Meaning, Policy, Seen, Told};

/// The rules of such a key.
pub(super) const RULES: &[Rule] = &[
    ("one-dispatch", between_losses_one_dispatch),
    ("retry-is-bounded", between_losses_retry_is_bounded),
    ("fences-and-attempts-rise", between_losses_fences_and_attempts_rise),
    ("fences-rise", fences_rise),
    ("other-body-never-ran", between_losses_other_body_never_ran),
    ("answered-is-last", answered_is_last_unless_that_was_lost),
    ("what-was-lost-was-told", what_was_lost_was_told),
    ("nothing-new-ran-in-quarantine", nothing_new_ran_in_quarantine),
    ("answers-are-the-upstreams-own", answers_are_the_upstreams_own),
    ("reuse-is-said-only-of-reuse", reuse_is_said_only_of_reuse),
    ("every-key-ends", every_key_ends),
];

/// Whether its record may have been lost.
pub(super) fn is_touched(story: &Story<'_>) -> bool {
    story.seen.losses.iter().any(|loss| loss.gone.contains(story.operation))
}

/// What was dispatched between one loss of the record and the next.
struct Piece<'a> {
    story: Story<'a>,
    /// Why it begins: the loss, and the dispatches of the piece before that it made to run again.
    again: Option<(&'a Loss, Vec<&'a Dispatch>)>,
}

/// When the record was written that would have kept `again` from running, and that a loss took: first and last, in
/// microseconds.
fn written(story: &Story<'_>, loss: &Loss, before: &Dispatch, again: &Dispatch) -> (u64, u64) {
    // A count that goes on is of a claim that is there.
    let last = if again.attempt > before.attempt { before.at_us } else { before.fence };
    let written = (before.fence, last);
    let of_it = |other: &&Loss| other.gone.contains(story.operation) && is_within(written, other);
    let earlier = story.seen.losses.iter().filter(of_it).find(|other| other.begun_us < loss.begun_us);
    match earlier {
        // Lost before while it ran, it was made anew then, or with its answer.
        Some(earlier) if !is_within(written, loss) => (earlier.begun_us, again.fence),
        _ => written,
    }
}

/// Whether a loss took what was written at some time between these.
fn is_within((first, last): (u64, u64), loss: &Loss) -> bool {
    first <= loss.over_us && loss.from_us <= last
}

/// Those of `before` whose records would have kept `again` from running.
fn would_keep<'a>(policy: Policy, before: &[&'a Dispatch], again: &Dispatch) -> Vec<&'a Dispatch> {
    // A release frees the key, but not over an attempt that may have had an effect: there it counts on.
    let first = before.iter().position(|before| before.act.meaning() != Meaning::Released).unwrap_or(before.len());
    let counting = before.iter().skip(first).copied();
    counting.filter(|before| policy == Policy::Hold || again.attempt <= before.attempt).collect()
}

fn pieces<'a>(story: &Story<'a>) -> Vec<Piece<'a>> {
    let piece = |again| Piece {
        story: Story {
            operation: story.operation,
            policy: story.policy,
            dispatches: Vec::new(),
            requests: Vec::new(),
            seen: story.seen,
        },
        again,
    };
    let mut left: Vec<&Loss> = story.seen.losses.iter().filter(|loss| loss.gone.contains(story.operation)).collect();
    let mut pieces = Vec::new();
    let mut last = piece(None);
    for dispatch in &story.dispatches {
        let again = would_keep(story.policy, &last.story.dispatches, dispatch);
        let explains = |loss: &&Loss| {
            let is_gone = |before: &&Dispatch| is_within(written(story, loss, before, dispatch), loss);
            loss.begun_us <= dispatch.fence && again.iter().all(is_gone)
        };
        if !again.is_empty()
            && let Some(at) = left.iter().position(explains)
        {
            // It lost the record once.
            let loss = left.remove(at);
            pieces.push(std::mem::replace(&mut last, piece(Some((loss, again)))));
        }
        last.story.dispatches.push(dispatch);
    }
    pieces.push(last);
    for piece in &mut pieces {
        let is_of = |request: &&Request<'_>| {
            let number = request.answer().and_then(|(_, answer)| answer.dispatch);
            piece.story.dispatches.iter().any(|dispatch| Some(dispatch.number) == number)
        };
        piece.story.requests = story.requests.iter().filter(is_of).copied().collect();
    }
    pieces
}

fn in_pieces(story: &Story<'_>, holds: fn(&Story<'_>) -> Option<String>) -> Option<String> {
    pieces(story).iter().find_map(|piece| holds(&piece.story))
}

fn between_losses_one_dispatch(story: &Story<'_>) -> Option<String> {
    in_pieces(story, one_dispatch)
}

fn between_losses_retry_is_bounded(story: &Story<'_>) -> Option<String> {
    in_pieces(story, retry_is_bounded)
}

fn between_losses_fences_and_attempts_rise(story: &Story<'_>) -> Option<String> {
    in_pieces(story, fences_and_attempts_rise)
}

fn between_losses_other_body_never_ran(story: &Story<'_>) -> Option<String> {
    in_pieces(story, other_body_never_ran)
}

/// In the ledger's order each dispatch has a higher fence, over losses too.
fn fences_rise(story: &Story<'_>) -> Option<String> {
    story.dispatches.windows(2).find_map(|pair| {
        let [first, second] = pair else { return None };
        (second.fence <= first.fence)
            .then(|| format!("dispatch {} has fence {} after {}", second.number, second.fence, first.fence))
    })
}

/// Once a client has its recorded answer, nothing is dispatched under a higher fence, unless the store lost that answer:
/// then the key runs again, or, where the claim is there still, is in doubt.
fn answered_is_last_unless_that_was_lost(story: &Story<'_>) -> Option<String> {
    pieces(story).iter().find_map(|piece| {
        let (_, answered) = piece.story.first_settled()?;
        let is_lost = |later: &Dispatch| {
            let takes = |loss: &&Loss| loss.gone.contains(story.operation) && loss.begun_us <= later.fence;
            // Where nothing is left, the claim is not either.
            story.seen.losses.iter().filter(takes).any(|loss| loss.from_us > 0)
        };
        let mut later = piece.story.dispatches.iter().filter(|later| later.fence > answered.fence);
        let later = later.find(|later| !is_lost(later))?;
        Some(format!("dispatch {} was answered, and then came dispatch {}", answered.number, later.number))
    })
}

/// What ran again because its record was lost lies in what each process said that was.
fn what_was_lost_was_told(story: &Story<'_>) -> Option<String> {
    let part = story.seen.parts.get(story.operation);
    pieces(story).iter().find_map(|piece| {
        let (loss, before) = piece.again.as_ref()?;
        let again = piece.story.dispatches.first()?;
        let of_it = |told: &&Told| part.is_some_and(|part| told.parts.contains(part));
        let told: Vec<&Told> = loss.told.as_ref()?.iter().filter(of_it).collect();
        if told.is_empty() {
            return Some(format!("dispatch {} ran again, and nobody said that something was lost", again.number));
        }
        told.iter().find_map(|told| {
            let (from, to) = (told.from_us, told.to_us);
            let outside = before.iter().find(|before| {
                let (first, last) = written(story, loss, before, again);
                last < from || to < first
            })?;
            Some(format!(
                "dispatch {} of {} was lost, and what was said to be lost is from {from} to {to}",
                outside.number, outside.fence
            ))
        })
    })
}

/// Once a loss was noticed, no new key runs before the time is over.
pub(super) fn nothing_new_ran_in_quarantine(story: &Story<'_>) -> Option<String> {
    let part = story.seen.parts.get(story.operation)?;
    story.seen.losses.iter().filter(|loss| loss.quarantine_us > 0).find_map(|loss| {
        let of_it = loss.told.iter().flatten().filter(|told| told.parts.contains(part));
        // Whoever notices first has it noticed by all others at their next step.
        let noticed = of_it.map(|told| told.to_us).min()?;
        let until = noticed + loss.quarantine_us;
        let is_new = |one: &&&Dispatch| one.attempt == 1 && noticed < one.fence && one.fence < until;
        let new = story.dispatches.iter().find(is_new)?;
        Some(format!("dispatch {} has fence {}, and a loss was noticed at {noticed}", new.number, new.fence))
    })
}

/// How many operations may have taken effect again because records were lost.
#[must_use]
pub(crate) fn ran_again(seen: &Seen) -> usize {
    let has_effect =
        |piece: &Piece<'_>| piece.story.dispatches.iter().any(|one| one.act.meaning() != Meaning::Released);
    let is_again = |story: &&Story<'_>| pieces(story).iter().filter(|piece| has_effect(piece)).count() > 1;
    stories(seen).iter().filter(is_again).count()
}
