//! Two stores as one: what goes to which, and that what ran while the first was gone does not run again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use onceward_core::{
    cas::Expect,
    key::RecordId,
    outcome::Outcome,
    record::{ClaimId, Facts, Fence, Micros, SessionId, State},
    transition::{self, Write as Transition},
};
use onceward_store::{
    Applied, Filter, Insert, Read, Store, Write, circuit::Breaker, fallback::Fallback, guarded::Guarded, memory::Memory,
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const BREAKER: Breaker = Breaker { failures: 1, open: Duration::from_millis(100) };

fn guarded(store: Arc<dyn Store>) -> Arc<Guarded> {
    Arc::new(Guarded::new(store, SECOND, BREAKER))
}

struct Two {
    first: Memory,
    second: Memory,
    both: Fallback,
}

impl Two {
    /// Where every route but `closed` falls back.
    fn new() -> Self {
        let (first, second) = (Memory::default(), Memory::default());
        let both = Fallback::new(guarded(Arc::new(first.clone())), guarded(Arc::new(second.clone())));
        both.fall_back(Arc::new(|_, route| route != "closed"));
        Self { first, second, both }
    }

    fn is_out(&self, out: bool) {
        self.first.set_replica(out);
    }

    async fn claim(&self, number: u8) -> Option<Fence> {
        match self.both.insert(id(number), &facts(number), LEASE).await.unwrap() {
            Insert::Inserted { fence, .. } => Some(fence),
            Insert::Existing { .. } => None,
        }
    }

    async fn complete(&self, number: u8, fence: Fence) -> Result<Write, onceward_store::StoreError> {
        self.both.replace(id(number), &completion(number, fence)).await
    }

    async fn back(&self) {
        self.is_out(false);
        until(async || !self.both.is_away()).await;
    }
}

fn id(number: u8) -> RecordId {
    RecordId([number; 32])
}

fn facts(number: u8) -> Facts {
    transition::place(ClaimId([number; 16]), SessionId([1; 16]))
}

fn completion(number: u8, fence: Fence) -> onceward_core::cas::Replacement {
    let outcome = Outcome { status: 201, ..Outcome::default() };
    let Transition::Replace(write) = transition::complete(&facts(number), fence, outcome, DAY, Micros(1)) else {
        panic!("a completion replaces")
    };
    *write
}

async fn state(store: &dyn Store, number: u8) -> Option<State> {
    store.get(id(number)).await.unwrap().record.map(|record| record.facts.state)
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("it never came to be"));
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_on_one_store_is_ended_on_that_one() {
    let two = Two::new();
    let on_first = two.claim(1).await.unwrap();
    two.is_out(true);
    let on_second = two.claim(2).await.unwrap();
    assert!(two.both.is_in_fallback(&id(2)) && !two.both.is_in_fallback(&id(1)));
    assert!(two.complete(1, on_first).await.is_err(), "it is not written down elsewhere");
    assert_eq!(two.second.get(id(1)).await.unwrap().record, None);
    assert!(matches!(two.both.extend(id(2), on_second, LEASE).await, Ok(Write::Applied { .. })));
    assert!(matches!(two.complete(2, on_second).await, Ok(Write::Applied { .. })));
    let mut closed = facts(3);
    closed.route = "closed".into();
    assert!(two.both.insert(id(3), &closed, LEASE).await.is_err(), "a route that does not fall back");
    two.is_out(false);
    until(async || two.complete(1, on_first).await.is_ok_and(|written| matches!(written, Write::Applied { .. }))).await;
    // Others may not know yet that the first is back.
    assert!(two.both.is_away());
    assert!(two.claim(1).await.is_none() && two.claim(4).await.is_some());
    assert_eq!((state(&two.first, 4).await, state(&two.second, 4).await), (None, Some(State::InFlight)));
    two.back().await;
    assert_eq!(
        (state(&two.first, 1).await, state(&two.second, 2).await),
        (Some(State::Completed), Some(State::Completed))
    );
    assert_eq!((state(&two.first, 2).await, state(&two.second, 1).await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn what_ran_meanwhile_is_found_afterwards_by_every_process_and_fresh_keys_go_to_the_first() {
    let two = Two::new();
    two.is_out(true);
    let fence = two.claim(1).await.unwrap();
    two.complete(1, fence).await.unwrap();
    two.back().await;
    // A process that begins now, and one that ran all along.
    let guarded_first = guarded(Arc::new(two.first.clone()));
    let other = Fallback::new(guarded_first, guarded(Arc::new(two.second.clone())));
    for store in [&two.both, &other] {
        let found = store.insert(id(1), &facts(9), LEASE).await.unwrap();
        assert!(matches!(found, Insert::Existing { .. }), "{found:?}");
        assert!(store.is_in_fallback(&id(1)));
    }
    assert!(two.claim(2).await.is_some());
    assert_eq!((state(&two.first, 2).await, state(&two.second, 2).await), (Some(State::InFlight), None));
    // Both are listed, and both can be forgotten.
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = two.both.scan(after, 10, Filter::default()).await.unwrap();
        listed.extend(page.records.into_iter().map(|(id, _)| id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    listed.sort();
    assert_eq!(listed, [id(1), id(2)]);
    let Read { record: Some(record), .. } = other.get(id(1)).await.unwrap() else { panic!("it is there") };
    let seen = Expect::Seen(record.stored.fence, record.stored.revision);
    assert!(matches!(other.remove(id(1), seen).await, Ok(Write::Applied { .. })));
    assert!(two.claim(1).await.is_some());
    assert_eq!(state(&two.first, 1).await, Some(State::InFlight), "nothing is left there: it goes to the first");
    until(async || !two.both.is_used()).await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_both_granted_are_counted_and_claims_that_were_never_used_are_freed() {
    let two = Two::new();
    two.claim(1).await.unwrap();
    // The first takes this claim, and its answer is lost.
    two.first.insert(id(2), &facts(2), LEASE).await.unwrap();
    two.is_out(true);
    let mut other = facts(1);
    other.claim_id = ClaimId([9; 16]);
    let again = two.both.insert(id(1), &other, LEASE).await.unwrap();
    assert!(matches!(again, Insert::Inserted { .. }), "it does not know: {again:?}");
    let fence = two.claim(2).await.unwrap();
    two.complete(2, fence).await.unwrap();
    two.back().await;
    until(async || two.both.duplicates() == 1).await;
    until(async || state(&two.first, 2).await.is_none()).await;
    assert_eq!(two.both.duplicates(), 1, "its own claim is none");
    assert!(two.claim(2).await.is_none(), "it ran in the second");
}

#[tokio::test(start_paused = true)]
async fn where_nobody_can_tell_what_ran_nothing_runs() {
    let two = Two::new();
    two.is_out(true);
    two.claim(1).await.unwrap();
    two.back().await;
    two.second.set_replica(true);
    for number in [1, 2] {
        let refused = two.both.insert(id(number), &facts(number), LEASE).await.unwrap_err();
        assert_eq!(refused.applied, Applied::No);
    }
    two.second.set_replica(false);
    until(async || two.both.insert(id(2), &facts(2), LEASE).await.is_ok()).await;
    assert_eq!(state(&two.first, 2).await, Some(State::InFlight));
}
