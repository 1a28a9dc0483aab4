//! The claim machine under anything that a store and an upstream can do.
//!
//! `any_events`: one machine, and whatever a driver could report next. `one_key`: several requests
//! for one key on a model store, in any order, with lost answers, crashes and time passing.

use std::{sync::Arc, time::Duration};

use onceward_core::{
    cas::{self, Expect, FenceRule, Replacement},
    claim::{Action, Applied, Belongs, Claim, Event, Sent},
    decide::{Ask, Found},
    outcome::Outcome,
    policy::{Class, Outage, Policy, Step},
    record::{ClaimId, Facts, Fence, Micros, NO_FINGERPRINT, Phase, Record, Revision, SessionId, State, Stored},
};
use proptest::prelude::*;

const NOW: Micros = Micros(1_000_000);
const ME: ClaimId = ClaimId([1; 16]);

fn ask(claim_id: ClaimId) -> Ask {
    Ask {
        claim_id,
        session: SessionId([7; 16]),
        principal_proof: Some([4; 16]),
        vouched: false,
        fingerprint_policy: 1,
        fingerprint: [9; 32],
    }
}

fn outcome(status: u16) -> Outcome {
    Outcome { status, ..Outcome::default() }
}

fn policies() -> impl Strategy<Value = Policy> {
    let step = prop_oneof![
        Just(Step::Hold),
        Just(Step::Retry),
        Just(Step::Fail),
        Just(Step::HoldFor(Duration::from_millis(500))),
        (0_u64..2_000).prop_map(|ms| Step::Probe { quiesce: Duration::from_millis(ms), unattended: ms % 2 == 0 }),
    ];
    (proptest::collection::vec(step, 0..3), any::<bool>(), any::<bool>()).prop_map(|(on_unknown, two_phase, bypass)| {
        Policy {
            on_unknown,
            two_phase_dispatch: two_phase,
            on_store_outage: if bypass { Outage::Bypass } else { Outage::Deny },
            ..Policy::default()
        }
    })
}

prop_compose! {
    fn records()(
        state in prop_oneof![
            4 => Just(State::InFlight), 1 => Just(State::NotExecuted), 2 => Just(State::Completed),
            1 => Just(State::Failed), 1 => Just(State::Erased)
        ],
        dispatched in any::<bool>(),
        ambiguous in any::<bool>(),
        attempt in 0_u32..6,
        mine in any::<bool>(),
        same_request in prop::bool::weighted(0.8),
        same_token in prop::bool::weighted(0.8),
        rules in prop_oneof![5 => Just(1_u32), 1 => Just(2), 1 => Just(NO_FINGERPRINT)],
        fence in 1_u64..100,
        lease in 0_u64..2_000_000,
        not_before in 0_u64..2_000_000,
        kept in any::<bool>(),
        has_outcome in any::<bool>(),
    ) -> Box<Record> {
        let settled = matches!(state, State::Completed | State::Failed);
        Box::new(Record {
            stored: Stored {
                fence: Fence(fence),
                revision: Revision(1),
                lease_until: Micros(lease),
                keep_until: Micros(if state == State::InFlight { 0 } else { 9_000_000 }),
                written_at: Micros(5),
            },
            facts: Facts {
                state,
                phase: if dispatched { Phase::Dispatched } else { Phase::Claimed },
                ambiguous,
                attempt,
                claim_id: if mine { ME } else { ClaimId([2; 16]) },
                session: SessionId([8; 16]),
                principal_proof: Some([if same_token { 4 } else { 5 }; 16]),
                fingerprint_policy: rules,
                fingerprint: [if same_request { 9 } else { 3 }; 32],
                fields: Vec::new(),
                route: String::new(),
                tenant: String::new(),
                env: String::new(),
                claimed_at: Micros(5),
                settled_at: Micros::ZERO,
                not_before: Micros(not_before),
                outcome: (settled && has_outcome).then(|| Outcome { body_not_kept: !kept, ..outcome(201) }),
                checkpoint: None,
                reason: String::new(),
            },
        })
    }
}

/// What a driver may report, before the action that it answers is known.
#[derive(Clone, Debug)]
struct Fate {
    pick: u8,
    record: Box<Record>,
    fence: u64,
    unknown: bool,
    class: u8,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = (any::<u8>(), records(), 100_u64..200, any::<bool>(), any::<u8>())
        .prop_map(|(pick, record, fence, unknown, class)| Fate { pick, record, fence, unknown, class });
    proptest::collection::vec(fate, 60)
}

fn class(of: u8) -> Class {
    match of % 4 {
        0 => Class::Record,
        1 => Class::Fail,
        2 => Class::Release,
        _ => Class::Unknown,
    }
}

fn named(expect: Expect) -> u64 {
    let (Expect::Holder(fence) | Expect::Seen(fence, _)) = expect;
    fence.0
}

/// The event that this fate makes of an action; `None` where the request has ended.
fn event(action: &Action, fate: &Fate) -> Option<Event> {
    let failed = || Event::StoreFailed(if fate.unknown { Applied::Unknown } else { Applied::No });
    let applied = |fence| Event::Applied { fence: Fence(fence), revision: Revision(2), now: NOW };
    let lost = |record| Event::Lost { record, now: NOW };
    Some(match action {
        Action::Insert(_) => match fate.pick % 5 {
            0 => Event::Inserted { fence: Fence(fate.fence), now: NOW },
            1 => failed(),
            2 if !fate.unknown => Event::StoreTakesNone,
            _ => Event::Existing { record: fate.record.clone(), now: NOW },
        },
        Action::Recall { .. } => match fate.pick % 3 {
            0 => Event::NotRemembered,
            _ => Event::Remembered { record: fate.record.clone(), now: NOW },
        },
        Action::Replace(_) | Action::Remove(_) => match fate.pick % 4 {
            0 => match action {
                Action::Replace(write) if write.fence == FenceRule::Next => applied(fate.fence),
                Action::Replace(write) => applied(named(write.expect)),
                _ => applied(1),
            },
            1 => lost(None),
            2 => lost(Some(fate.record.clone())),
            _ => failed(),
        },
        Action::Wait(_) => match fate.pick % 3 {
            0 => Event::WaitOver,
            1 => Event::Existing { record: fate.record.clone(), now: NOW },
            _ => Event::Woken,
        },
        Action::Probe(..) => match fate.pick % 6 {
            0 => Event::WaitOver,
            1 => Event::Existing { record: fate.record.clone(), now: NOW },
            2 => Event::Woken,
            3 => Event::Probed { found: Found::Executed(outcome(200)), now: NOW },
            4 => Event::Probed { found: Found::NotExecuted, now: NOW },
            _ => Event::Probed { found: Found::Nothing, now: NOW },
        },
        Action::Execute { .. } => match fate.pick % 3 {
            0 => Event::UpstreamFailed(if fate.unknown { Sent::Maybe } else { Sent::No }),
            _ => Event::Answered { class: class(fate.class), outcome: outcome(200), retention: None, now: NOW },
        },
        Action::Replay(_) | Action::Refuse { .. } | Action::PassThrough { .. } | Action::Answer => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn whatever_a_driver_reports_a_request_ends_as_it_may(policy in policies(), fates in fates()) {
        let two_phase = policy.two_phase_dispatch;
        let (mut claim, mut action) = Claim::new(Arc::new(policy), ask(ME), Belongs::default(), Vec::new());
        let mut executed = None;
        for fate in &fates {
            let Some(event) = event(&action, fate) else { break };
            let next = claim.on(event.clone());
            match &next {
                Action::Execute { fence, .. } => {
                    prop_assert!(executed.is_none(), "executed twice");
                    executed = Some(*fence);
                    let granted = match &event {
                        Event::Inserted { fence, .. } if !two_phase => *fence,
                        Event::Applied { fence, .. } => *fence,
                        Event::Existing { record, .. } | Event::Lost { record: Some(record), .. } => {
                            let facts = &record.facts;
                            prop_assert_eq!(facts.claim_id, ME, "executed on the claim of another");
                            prop_assert!(facts.state == State::InFlight && record.stored.lease_until > NOW);
                            prop_assert!(facts.phase == Phase::Dispatched, "executed before the mark");
                            record.stored.fence
                        }
                        other => panic!("executed on {other:?}"),
                    };
                    prop_assert_eq!(*fence, granted, "executed under a fence that was not granted");
                }
                Action::Replay(record) => {
                    let facts = &record.facts;
                    prop_assert!(facts.fingerprint == [9; 32] || facts.fingerprint_policy != 1);
                    let compared = matches!(facts.fingerprint_policy, 1 | NO_FINGERPRINT);
                    prop_assert!(compared || !matches!(event, Event::Remembered { .. }), "not compared");
                    prop_assert_eq!(facts.principal_proof, Some([4; 16]), "replayed to another caller");
                    prop_assert!(facts.outcome.as_ref().is_some_and(|outcome| !outcome.body_not_kept));
                    prop_assert!(matches!(facts.state, State::Completed | State::Failed));
                }
                Action::Answer => {
                    prop_assert!(executed.is_some());
                    let own = match (&event, &action) {
                        (Event::Applied { .. }, _) => true,
                        // Its own removal, found done.
                        (Event::Lost { record: None, .. }, Action::Remove(_)) => true,
                        (Event::Lost { record: Some(record), .. }, Action::Replace(write)) => {
                            Some(record.stored.fence) == executed
                                && record.facts.claim_id == ME
                                && record.facts.state == write.facts.state
                                && record.facts.outcome == write.facts.outcome
                        }
                        _ => false,
                    };
                    prop_assert!(own, "answered after {event:?}");
                }
                Action::Refuse { .. } | Action::PassThrough { .. } => {
                    let recording = executed.is_some();
                    let lost = matches!(event, Event::Lost { .. });
                    prop_assert!(!recording || lost, "refused although it had executed: {event:?}");
                }
                Action::Insert(facts) => {
                    prop_assert!(executed.is_none());
                    prop_assert_eq!((facts.attempt, facts.ambiguous), (1, false));
                }
                Action::Replace(write) => {
                    let holds = matches!(write.expect, Expect::Holder(_));
                    prop_assert!(holds || write.fence == FenceRule::Next || write.facts.claim_id == ME);
                }
                Action::Remove(expect) => prop_assert_eq!(Some(*expect), executed.map(Expect::Holder)),
                Action::Wait(until) => prop_assert!(*until > NOW, "waits for what is over"),
                Action::Probe(..) => prop_assert!(executed.is_none()),
                Action::Recall { .. } => {
                    prop_assert!(executed.is_none());
                    prop_assert!(matches!(event, Event::StoreFailed(_)), "recalled after {event:?}");
                }
            }
            action = next;
        }
    }
}

/// One key of a store, with time that passes only when told.
struct Model {
    record: Option<Record>,
    now: Micros,
    mark: Fence,
}

impl Model {
    fn insert(&mut self, facts: &Facts, lease: Duration) -> Event {
        match self.live() {
            Some(record) => Event::Existing { record: Box::new(record), now: self.now },
            None => {
                let ended = self.record.take().map(|record| record.stored);
                let stored = cas::inserted(lease, self.now, self.mark, ended.as_ref());
                let record = Record { stored, facts: facts.clone() };
                let fence = record.stored.fence;
                self.record = Some(record);
                Event::Inserted { fence, now: self.now }
            }
        }
    }

    fn live(&self) -> Option<Record> {
        self.record.clone().filter(|record| !record.is_expired(self.now))
    }

    fn meet(&mut self, expect: Expect, write: Option<&Replacement>) -> Event {
        let there = self.live();
        let Some(record) = there.clone().filter(|r| cas::is_meant(expect, &r.stored, r.facts.state)) else {
            return Event::Lost { record: there.map(Box::new), now: self.now };
        };
        self.mark = self.mark.max(record.stored.fence);
        let stored = match write {
            Some(write) => {
                let stored = cas::replaced(write, &record.stored, self.now, self.mark);
                self.record = Some(Record { stored, facts: write.facts.clone() });
                stored
            }
            None => {
                self.record = None;
                record.stored
            }
        };
        Event::Applied { fence: stored.fence, revision: stored.revision, now: self.now }
    }
}

struct Request {
    claim: Claim,
    action: Action,
    crashed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    who: u8,
    fault: u8,
    class: u8,
    pass: u16,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u16>()).prop_map(|(who, fault, class, pass)| Turn {
        who,
        fault,
        class,
        pass,
    });
    proptest::collection::vec(turn, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn on_one_key_fences_rise_and_hold_dispatches_once(
        step in prop_oneof![
            Just(Step::Retry),
            Just(Step::Hold),
            Just(Step::Probe { quiesce: Duration::from_micros(500), unattended: true }),
        ],
        two_phase in any::<bool>(),
        turns in turns()
    ) {
        let policy = Arc::new(Policy {
            lease: Duration::from_micros(10_000),
            two_phase_dispatch: two_phase,
            on_unknown: vec![step],
            ..Policy::default()
        });
        let retry = step == Step::Retry;
        let mut store = Model { record: None, now: Micros(1_000), mark: Fence(0) };
        let mut requests: Vec<Request> = (0..5)
            .map(|n| {
                let (claim, action) =
                    Claim::new(Arc::clone(&policy), ask(ClaimId([n; 16])), Belongs::default(), Vec::new());
                Request { claim, action, crashed: false }
            })
            .collect();
        let mut executions: Vec<Fence> = Vec::new();
        // Executions of which the upstream has not itself said that it did nothing.
        let mut standing = 0_i32;
        let mut recorded: Option<Outcome> = None;

        for turn in turns {
            store.now = store.now.plus(Duration::from_micros(u64::from(turn.pass) / 16));
            let count = requests.len();
            let Some(request) = requests.get_mut(usize::from(turn.who) % count) else { continue };
            if request.crashed {
                continue;
            }
            if turn.fault % 16 == 0 {
                // Its process dies; what it holds stays as it is.
                request.crashed = true;
                continue;
            }
            let (call_lost, reply_lost) = (turn.fault % 16 == 1, turn.fault % 16 == 2);
            let failed = Event::StoreFailed(Applied::Unknown);
            let event = match &request.action {
                Action::Insert(_) | Action::Replace(_) | Action::Remove(_) if call_lost => failed,
                Action::Insert(facts) => store.insert(facts, policy.lease),
                Action::Replace(write) => store.meet(write.expect, Some(write)),
                Action::Remove(expect) => store.meet(*expect, None),
                Action::Wait(_) => Event::Woken,
                Action::Recall { .. } => Event::NotRemembered,
                Action::Probe(..) => {
                    // Whoever keeps the books knows which attempts stand; sometimes he cannot say.
                    let found = match (turn.class % 3, standing) {
                        (0, _) => Found::Nothing,
                        (_, 0) => Found::NotExecuted,
                        _ => Found::Executed(outcome(299)),
                    };
                    Event::Probed { found, now: store.now }
                }
                Action::Execute { fence, .. } => {
                    if turn.class % 5 == 4 {
                        Event::UpstreamFailed(Sent::Maybe)
                    } else {
                        let class = class(turn.class % 5);
                        if class == Class::Release {
                            standing -= 1;
                        }
                        let status = 200 + (fence.0 % 300) as u16;
                        Event::Answered { class, outcome: outcome(status), retention: None, now: store.now }
                    }
                }
                Action::Replay(_) | Action::Refuse { .. } | Action::PassThrough { .. } | Action::Answer => continue,
            };
            let lossy = matches!(request.action, Action::Insert(_) | Action::Replace(_) | Action::Remove(_));
            let event = if reply_lost && lossy { Event::StoreFailed(Applied::Unknown) } else { event };
            request.action = request.claim.on(event);
            match &request.action {
                Action::Execute { fence, .. } => {
                    let last = executions.last().copied().unwrap_or_default();
                    prop_assert!(*fence > last, "executed under {fence:?} after {last:?}");
                    executions.push(*fence);
                    standing += 1;
                    prop_assert!(retry || standing <= 1, "two dispatches under hold: {executions:?}");
                }
                Action::Replay(record) => {
                    let kept = record.facts.outcome.clone();
                    prop_assert!(kept.is_some());
                    prop_assert!(recorded.is_none() || recorded == kept, "two answers of one key");
                    recorded = kept;
                }
                _ => {}
            }
        }
    }
}
