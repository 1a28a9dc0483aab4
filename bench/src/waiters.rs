//! P9 across two gateways: how long after the owner's completion the waiters of another process have the record, beside
//! those who read it every 100 ms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use onceward_core::key::RecordId;
use onceward_core::record::{Micros, State};
use onceward_core::transition;
use onceward_store::{Insert, Store, Write};

use crate::inside::{outcome, payment};
use crate::report::{Line, aim, percentile};
use crate::rows::Rounds;

const LEASE: Duration = Duration::from_secs(30);
const WAITERS: usize = 16;
const EVERY: Duration = Duration::from_millis(100);
const AIM_MS: f64 = 5.0;
/// Of those who poll, one round in so many will do: it takes its time.
const POLLS_EACH: u32 = 10;

/// Measures on two handles of one store. `next` draws a key, `is_said` tells whether the server knows that it is waited
/// for.
///
/// # Errors
/// Where the store refuses.
pub(crate) async fn measure<F>(
    name: &'static str,
    owner: Arc<dyn Store>,
    other: Arc<dyn Store>,
    rounds: Rounds,
    next: impl Fn() -> RecordId,
    is_said: impl Fn(RecordId) -> F,
) -> anyhow::Result<Line>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let (mut pushed, mut polled) = (Vec::new(), Vec::new());
    for round in 0..rounds.count * 10 {
        let (id, facts) = (next(), payment());
        let Insert::Inserted { fence, .. } = owner.insert(id, &facts, LEASE).await? else {
            anyhow::bail!("a fresh key is taken");
        };
        let polls = round % POLLS_EACH == 0;
        let mut waiting = Vec::new();
        for at in 0..WAITERS {
            let other = Arc::clone(&other);
            waiting.push(tokio::spawn(async move {
                if polls {
                    tokio::time::sleep(EVERY * u32::try_from(at)? / u32::try_from(WAITERS)?).await;
                }
                loop {
                    let watch = other.watch(id);
                    if other.get(id).await?.record.is_some_and(|record| record.facts.state == State::Completed) {
                        return anyhow::Ok(Instant::now());
                    }
                    if polls { tokio::time::sleep(EVERY).await } else { watch.await }
                }
            }));
        }
        while !polls && !is_said(id).await? {
            tokio::task::yield_now().await;
        }
        if polls {
            tokio::time::sleep(EVERY * 2).await;
        }
        let write = transition::complete(&facts, fence, outcome(), LEASE, Micros::ZERO);
        let transition::Write::Replace(write) = write else { anyhow::bail!("a completion replaces") };
        ensure!(matches!(owner.replace(id, &write).await?, Write::Applied { .. }), "the owner was overtaken");
        let completed = Instant::now();
        for waiter in waiting {
            let took = waiter.await??.saturating_duration_since(completed).as_secs_f64() * 1e3;
            if polls { polled.push(took) } else { pushed.push(took) }
        }
    }
    let (ours, theirs) = (percentile(&mut pushed, 0.99), percentile(&mut polled, 0.99));
    let (half, their_half) = (percentile(&mut pushed, 0.5), percentile(&mut polled, 0.5));
    Ok(Line {
        name,
        text: format!(
            "a waiter of another gateway after the owner / polling at 100 ms: p99 {ours:.2} ms{} / {theirs:.1} ms, \
             p50 {half:.2} / {their_half:.1} ms",
            aim("at most", AIM_MS, ours <= AIM_MS)
        ),
        figures: vec![("p99_ms", ours), ("polling_p99_ms", theirs)],
    })
}
