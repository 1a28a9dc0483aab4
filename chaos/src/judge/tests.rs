//! Each rule meets a history that breaks it, and a history that breaks none.

use super::*;
use crate::history::{Act, Life, Loss, Said, Told};

const BODY: Digest = 7;
const OTHER: Digest = 8;

/// A history that is written down line by line.
struct Written {
    seen: Seen,
}

fn answer(status: u16, dispatch: Option<u64>, problem: Option<&str>) -> End {
    let body = dispatch.unwrap_or(99);
    End::Answer(Answer { status, body, dispatch, problem: problem.map(str::to_owned), unrecorded: false })
}

/// The answer of a dispatch, as the upstream sent it.
fn answered(dispatch: u64) -> End {
    answer(201, Some(dispatch), None)
}

fn problem(slug: &str) -> End {
    answer(409, None, Some(slug))
}

impl Written {
    fn on(route: &str) -> Self {
        let seen = Seen { retries: vec![("/again".into(), 2)], ..Seen::default() };
        let mut written = Self { seen };
        written.seen.lives = vec![Life { fault: Some("killed".into()) }, Life::default()];
        written.operation(route, "anna");
        written
    }

    fn operation(&mut self, route: &str, caller: &str) {
        self.seen.operations.push(Operation { route: route.into(), caller: caller.into(), key: "k".into() });
    }

    /// A dispatch of the first operation, in the clean life.
    fn dispatch(mut self, attempt: u32, fence: u64, act: Act) -> Self {
        let number = self.seen.ledger.len() as u64;
        let whole = !matches!(act, Act::Cut | Act::CutMid);
        let said = whole.then_some(Said { status: 201, body: number });
        let operation = self.seen.operations[0].clone();
        let at_us = fence + 2;
        self.seen.ledger.push(Dispatch { number, operation, attempt, fence, at_us, life: 1, body: BODY, act, said });
        self
    }

    fn request(mut self, life: usize, body: Digest, audit: bool, end: End) -> Self {
        let request = self.seen.events.len();
        self.seen.events.push(Event::Sent { request, operation: 0, body, life, audit });
        self.seen.events.push(Event::Ended { request, end });
        self
    }

    fn asked(self, end: End) -> Self {
        self.request(1, BODY, false, end)
    }

    fn audited(self, end: End) -> Self {
        self.request(1, BODY, true, end)
    }

    /// The rules that it breaks.
    fn breaks(&self) -> Vec<&'static str> {
        judge(&self.seen).into_iter().map(|broken| broken.rule).collect()
    }
}

fn once() -> Written {
    Written::on("/pay").dispatch(1, 10, Act::Ok).asked(answered(0))
}

#[test]
fn a_key_that_ran_once_and_answered_everybody_alike_breaks_nothing() {
    let good = once().asked(End::Broken).asked(End::Left).request(1, OTHER, false, problem("key-reused"));
    assert_eq!(good.asked(answer(503, None, Some("store-unavailable"))).audited(answered(0)).breaks(), [""; 0]);
}

#[test]
fn releases_free_the_key_and_begin_its_count_anew() {
    let freed = Written::on("/pay").dispatch(1, 10, Act::Busy).dispatch(1, 11, Act::Limited).dispatch(1, 12, Act::Ok);
    assert_eq!(freed.asked(answered(2)).audited(answered(2)).breaks(), [""; 0]);
}

#[test]
fn a_killed_process_and_an_upstream_that_breaks_off_may_leave_an_unknown_outcome() {
    let killed = Written::on("/pay").request(0, BODY, false, End::Broken).audited(problem("outcome-unknown"));
    assert_eq!(killed.breaks(), [""; 0]);
    let cut = Written::on("/pay").dispatch(1, 10, Act::Cut).asked(answer(502, None, Some("upstream-failed")));
    assert_eq!(cut.audited(problem("outcome-unknown")).breaks(), [""; 0]);
}

#[test]
fn a_second_dispatch_after_an_effect_is_found() {
    for act in [Act::Ok, Act::Error, Act::Cut, Act::CutMid, Act::Bare] {
        let twice = Written::on("/pay").dispatch(1, 10, act).dispatch(2, 11, Act::Ok).asked(answered(1));
        let broken = judge(&twice.audited(answered(1)).seen);
        assert_eq!(broken.iter().map(|broken| broken.rule).collect::<Vec<_>>(), ["one-dispatch"], "{act:?}");
        assert_eq!(duplicates(&broken), 1);
    }
}

#[test]
fn under_retry_unknown_outcomes_run_again_but_not_without_end() {
    let again = |times: u32| {
        let cut = |written: Written, n| written.dispatch(n, 10 + u64::from(n), Act::Cut);
        (1..=times).fold(Written::on("/again"), cut).audited(problem("outcome-unknown"))
    };
    assert_eq!(again(3).breaks(), [""; 0]);
    assert_eq!(again(4).breaks(), ["retry-is-bounded"]);
}

#[test]
fn a_fence_or_an_attempt_that_does_not_rise_is_found() {
    let rule = "fences-and-attempts-rise";
    let second = |attempt, fence| {
        Written::on("/again").dispatch(1, 10, Act::Cut).dispatch(attempt, fence, Act::Ok).audited(answered(1)).breaks()
    };
    assert_eq!(second(2, 11), [""; 0]);
    assert_eq!(second(2, 10), [rule]);
    assert_eq!(second(1, 11), [rule]);
    // A release behind an attempt that may have had an effect frees nothing.
    let forgotten = Written::on("/again").dispatch(1, 10, Act::Cut).dispatch(2, 11, Act::Busy).dispatch(1, 12, Act::Ok);
    assert_eq!(forgotten.audited(answered(2)).breaks(), [rule]);
}

#[test]
fn an_answer_that_the_upstream_did_not_give_for_this_key_is_found() {
    let rule = "answers-are-the-upstreams-own";
    assert!(once().asked(answered(5)).audited(answered(0)).breaks().contains(&rule), "of a dispatch that never was");
    assert_eq!(once().asked(answer(200, Some(0), None)).audited(answered(0)).breaks(), [rule], "with another status");
    let cut = Written::on("/pay").dispatch(1, 10, Act::CutMid).asked(answered(0));
    assert_eq!(cut.audited(problem("outcome-unknown")).breaks(), [rule], "of an answer that was cut off");
    let mut foreign = once().audited(answered(0));
    foreign.operation("/pay", "bert");
    let request = foreign.seen.events.len();
    foreign.seen.events.push(Event::Sent { request, operation: 1, body: BODY, life: 1, audit: true });
    foreign.seen.events.push(Event::Ended { request, end: answered(0) });
    assert!(foreign.breaks().contains(&rule), "of another caller");
}

#[test]
fn two_answers_to_one_key_are_found() {
    let two = Written::on("/again").dispatch(1, 10, Act::Ok).dispatch(2, 11, Act::Ok).asked(answered(0));
    assert!(two.audited(answered(1)).breaks().contains(&"answers-are-equal"));
}

#[test]
fn an_answer_that_is_lost_later_is_found() {
    let rule = "answered-stays-answered";
    for lost in ["outcome-unknown", "in-flight", "key-reused", "failed"] {
        assert!(once().asked(problem(lost)).audited(answered(0)).breaks().contains(&rule), "{lost}");
    }
    // What came before the answer, or is marked as not recorded, promises nothing.
    let before = Written::on("/pay").dispatch(1, 10, Act::Ok).asked(problem("in-flight")).asked(answered(0));
    assert_eq!(before.audited(answered(0)).breaks(), [""; 0]);
    let End::Answer(unmarked) = answered(0) else { unreachable!() };
    let marked = End::Answer(Answer { unrecorded: true, ..unmarked });
    let unrecorded = Written::on("/pay").dispatch(1, 10, Act::Ok).request(0, BODY, false, marked);
    assert_eq!(unrecorded.audited(problem("outcome-unknown")).breaks(), [""; 0]);
}

#[test]
fn a_dispatch_after_the_answer_is_found() {
    let later = Written::on("/again").dispatch(1, 10, Act::Ok).asked(answered(0)).dispatch(2, 11, Act::Cut);
    assert_eq!(later.audited(answered(0)).breaks(), ["answered-is-last"]);
}

#[test]
fn another_body_that_ran_or_was_answered_is_found() {
    let rule = "other-body-never-ran";
    let mut ran = once().dispatch(2, 11, Act::Ok).audited(answered(0));
    ran.seen.ledger[1].body = OTHER;
    assert!(ran.breaks().contains(&rule));
    assert_eq!(once().request(1, OTHER, false, answered(0)).audited(answered(0)).breaks(), [rule]);
}

#[test]
fn a_key_that_is_said_to_be_reused_and_was_not_is_found() {
    let wrong = Written::on("/pay").dispatch(1, 10, Act::Ok).asked(problem("key-reused"));
    assert_eq!(wrong.audited(answered(0)).breaks(), ["reuse-is-said-only-of-reuse"]);
}

#[test]
fn an_unknown_outcome_without_a_cause_is_found() {
    let left = Written::on("/pay").dispatch(1, 10, Act::Ok).asked(End::Left).audited(problem("outcome-unknown"));
    assert_eq!(left.breaks(), ["unknown-has-a-cause"]);
}

#[test]
fn a_key_that_does_not_end_is_found() {
    let rule = "every-key-ends";
    assert_eq!(once().breaks(), [rule], "nobody asked");
    for end in [End::Left, problem("in-flight"), answer(503, None, Some("store-unavailable"))] {
        assert!(Written::on("/pay").request(0, BODY, true, end.clone()).breaks().contains(&rule), "{end:?}");
    }
}

#[test]
fn what_the_process_listed_as_lost_is_not_counted() {
    let mut twice = once().dispatch(1, 11, Act::Ok).audited(answered(1));
    assert!(!twice.breaks().is_empty());
    twice.seen.given_up.insert(twice.seen.operations[0].clone());
    assert_eq!(twice.breaks(), [""; 0]);
}

/// Which part of the store the key lies in.
const PART: u16 = 4;

/// Two losses of the key, each told by two processes; the first is of what was written from 5 on, the second of all.
/// Fences are times.
fn lossy(route: &str, quarantine_us: u64) -> Written {
    let mut written = Written::on(route);
    let key = written.seen.operations[0].clone();
    let told = |from_us, to_us| Told { parts: [PART].into(), from_us, to_us };
    let loss = |from_us, begun_us, told| Loss {
        from_us,
        begun_us,
        over_us: begun_us + 2,
        gone: [key.clone()].into(),
        told: Some(told),
        quarantine_us,
    };
    let first = loss(5, 20, vec![told(4, 30), told(0, 32)]);
    let second = loss(0, 60, vec![told(0, 65), told(0, 66)]);
    written.seen.losses = vec![first, second];
    written.seen.parts = [(key, PART)].into();
    written
}

impl Written {
    /// Attempts with their fences, each of which took effect; and the answer of the last.
    fn ran(self, dispatches: &[(u32, u64)]) -> Vec<&'static str> {
        let run = |written: Self, (attempt, fence): &(u32, u64)| written.dispatch(*attempt, *fence, Act::Ok);
        dispatches.iter().fold(self, run).audited(answered(dispatches.len() as u64 - 1)).breaks()
    }
}

#[test]
fn a_key_runs_again_once_for_each_loss_of_its_record_and_not_otherwise() {
    let ran = |fences: &[u64]| lossy("/pay", 0).ran(&fences.iter().map(|fence| (1, *fence)).collect::<Vec<_>>());
    assert_eq!(ran(&[10, 40]), [""; 0], "it was lost");
    assert_eq!(ran(&[10, 21]), [""; 0], "before anybody noticed");
    assert_eq!(ran(&[10, 40, 80]), [""; 0], "it was lost twice");
    assert!(ran(&[10, 15]).contains(&"one-dispatch"), "it was not lost yet");
    assert!(ran(&[10, 40, 50]).contains(&"one-dispatch"), "nothing was lost between");
    assert!(ran(&[24, 40]).contains(&"one-dispatch"), "it was granted after the loss");
    assert!(ran(&[3, 40]).contains(&"one-dispatch"), "it was written long before");
    assert!(ran(&[80, 90]).contains(&"one-dispatch"), "no loss came later");
    assert!(ran(&[41, 40]).contains(&"fences-rise"));
    let mut other = lossy("/pay", 0);
    for loss in &mut other.seen.losses {
        loss.gone.clear();
    }
    assert!(other.ran(&[(1, 10), (1, 40)]).contains(&"one-dispatch"), "other keys were lost");
}

#[test]
fn what_is_lost_under_retry_does_not_count_and_what_is_not_does() {
    let ran = |dispatches: &[(u32, u64)]| lossy("/again", 0).ran(dispatches);
    assert_eq!(ran(&[(1, 3), (2, 10), (2, 40)]), [""; 0], "the second attempt was lost, the first is there");
    assert_eq!(ran(&[(1, 3), (1, 40)]), ["fences-and-attempts-rise"], "the first is there");
    let unknown = |written: Written| written.dispatch(1, 10, Act::Cut).dispatch(2, 12, Act::Ok).asked(answered(1));
    let after =
        |attempt, fence| unknown(lossy("/again", 0)).dispatch(attempt, fence, Act::Ok).audited(answered(2)).breaks();
    assert_eq!(after(3, 40), [""; 0], "the answer was lost, the claim is there");
    assert_eq!(after(3, 15), ["answered-is-last"]);
    assert_eq!(after(1, 40), [""; 0], "all was lost");
    let counted = lossy("/again", 0).dispatch(1, 3, Act::Cut).dispatch(2, 10, Act::Limited).dispatch(2, 40, Act::Ok);
    assert_eq!(counted.audited(answered(2)).breaks(), [""; 0], "a release frees nothing, and was lost");
}

#[test]
fn a_record_that_was_made_anew_after_a_loss_can_be_lost_again() {
    let ran = |change: fn(&mut Loss)| {
        let mut lossy = lossy("/again", 0);
        change(&mut lossy.seen.losses[1]);
        lossy.ran(&[(1, 10), (2, 50), (1, 80)])
    };
    let later = |loss: &mut Loss| {
        loss.from_us = 45;
        loss.told.as_mut().unwrap()[0].from_us = 45;
    };
    assert_eq!(ran(later), [""; 0], "the second loss is of what was written from 45 on");
    let not_at_all = |loss: &mut Loss| loss.gone.clear();
    assert_eq!(ran(not_at_all), ["fences-and-attempts-rise"], "it was there");
}

#[test]
fn a_claim_that_is_there_without_its_dispatch_lets_a_key_run_again() {
    let ran = |fence| lossy("/two", 0).ran(&[(1, fence), (2, 40)]);
    assert_eq!(ran(4), [""; 0], "the dispatch came within the time");
    assert!(ran(1).contains(&"one-dispatch"));
}

#[test]
fn what_was_lost_and_not_told_is_found() {
    let rule = "what-was-lost-was-told";
    let ran = |change: fn(&mut Loss)| {
        let mut lossy = lossy("/pay", 0);
        change(&mut lossy.seen.losses[0]);
        lossy.ran(&[(1, 10), (1, 40)])
    };
    assert_eq!(ran(|loss| loss.told = Some(Vec::new())), [rule], "nobody did");
    assert_eq!(ran(|loss| loss.told.as_mut().unwrap()[0].from_us = 11), [rule], "one did too little");
    assert_eq!(ran(|loss| loss.told.as_mut().unwrap()[1].to_us = 9), [rule]);
    let elsewhere = |loss: &mut Loss| {
        for told in loss.told.as_mut().unwrap() {
            told.parts = [PART + 1].into();
        }
    };
    assert_eq!(ran(elsewhere), [rule], "of another part");
    assert_eq!(ran(|loss| loss.told = None), [""; 0], "nobody can");
}

#[test]
fn a_new_key_does_not_run_in_quarantine() {
    let rule = "nothing-new-ran-in-quarantine";
    assert_eq!(lossy("/pay", 10).ran(&[(1, 10), (1, 35)]), [rule], "it was lost");
    assert_eq!(lossy("/pay", 10).ran(&[(1, 35)]), [rule], "or not");
    assert_eq!(lossy("/pay", 10).ran(&[(1, 10), (1, 25)]), [""; 0], "nobody had noticed");
    assert_eq!(lossy("/pay", 10).ran(&[(1, 10), (1, 41)]), [""; 0], "it is over");
    assert_eq!(lossy("/again", 10).ran(&[(1, 3), (2, 35)]), [""; 0], "it was there");
}
