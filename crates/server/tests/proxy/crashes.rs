//! `kill -9` at each step of a claim, and what the restarted process answers.

use super::support::{Start, Upstream, post};

/// Sends a request to a process that dies at `failpoint`, and asks again after the restart: how often the upstream
/// has executed it by then, the answer's status, and its slug where it is a refusal.
async fn crash_at(failpoint: &str, config: &str) -> (usize, u16, Option<String>) {
    let upstream = Upstream::charging().await;
    let mut gateway =
        Start::before(&upstream).config(config).failpoint(&format!("{failpoint}:hit=1:abort")).start().await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "k-1", "{\"amount\":5}")).await;
    let broken = client.try_answer().await;
    assert!(broken.is_err(), "{failpoint}: {broken:?}");
    assert!(!gateway.ended().await.success());
    let gateway = gateway.restart().await;
    let again = gateway.post("/pay", "k-1", "{\"amount\":5}").await;
    if again.status == 409 {
        assert_eq!(again.json()["retryable"], false, "{again:?}");
        // Nor does asking once more change it.
        assert_eq!(gateway.post("/pay", "k-1", "{\"amount\":5}").await.status, 409);
    }
    if again.is_replay() {
        assert_eq!(again.text(), "{\"charge\":0}");
    }
    let slug = (again.status >= 400).then(|| again.slug());
    (upstream.effects("k-1"), again.status, slug)
}

#[tokio::test]
async fn a_crash_before_the_claim_leaves_the_key_new() {
    assert_eq!(crash_at("claim.begin", "").await, (1, 201, None));
}

// contract: outcome-unknown, route.durability
#[tokio::test]
async fn a_crash_after_the_claim_leaves_the_outcome_unknown() {
    let unknown = || Some("outcome-unknown".to_owned());
    assert_eq!(crash_at("claim.end", "").await, (0, 409, unknown()));
    assert_eq!(crash_at("dispatch.begin", "").await, (0, 409, unknown()));
}

// contract: outcome-unknown
#[tokio::test]
async fn a_crash_after_the_dispatch_leaves_the_outcome_unknown_and_never_runs_twice() {
    let unknown = || Some("outcome-unknown".to_owned());
    assert_eq!(crash_at("dispatch.end", "").await, (1, 409, unknown()));
    assert_eq!(crash_at("complete.begin", "").await, (1, 409, unknown()));
}

// contract: route.durability
#[tokio::test]
async fn a_crash_after_the_record_is_safe_loses_nothing() {
    assert_eq!(crash_at("complete.end", "").await, (1, 201, None));
}

// contract: route.two_phase_dispatch
#[tokio::test]
async fn in_two_phases_a_claim_that_was_never_sent_is_taken_over() {
    let config = "[defaults]\ntwo_phase_dispatch = true\n";
    assert_eq!(crash_at("claim.end", config).await, (1, 201, None));
    let unknown = Some("outcome-unknown".to_owned());
    assert_eq!(crash_at("dispatch.begin", config).await, (0, 409, unknown));
}

#[tokio::test]
async fn a_route_that_retries_runs_it_again_with_the_next_attempt_and_a_larger_fence() {
    let upstream = Upstream::charging().await;
    let mut gateway = Start::before(&upstream)
        .config("[defaults]\non_unknown = [\"retry\"]\n")
        .failpoint("complete.begin:hit=1:abort")
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.send(post("/pay", "k-1", "{}")).await;
    assert!(client.try_answer().await.is_err());
    gateway.ended().await;
    let gateway = gateway.restart().await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 201);
    let [first, second] = &upstream.received()[..] else { panic!("two executions") };
    assert_eq!((first.header("idempotency-attempt"), second.header("idempotency-attempt")), (Some("1"), Some("2")));
    let fence =
        |received: &super::support::Received| received.header("idempotency-fence").unwrap().parse::<u64>().unwrap();
    assert!(fence(second) > fence(first));
    assert_eq!(first.header("idempotency-record"), second.header("idempotency-record"));
}
