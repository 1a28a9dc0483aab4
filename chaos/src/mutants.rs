//! The checker's teeth: with each safety taken out of the product, the same plans under the same seeds must be red.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Context as _;
use onceward_core::mutant::Mutant;
use tokio::task::JoinSet;

use crate::backing::Store;
use crate::plan::{Durability, Plan};
use crate::round::{self, Programs};

/// Mutants that are looked for at a time: a round waits more than it computes.
const AT_ONCE: usize = 2;

/// Runs `plans` for each of `only` that `store` has, or for all that it has, until one is red. False: a mutant survived all
/// of them.
///
/// # Errors
/// Where a fault did not happen.
pub(crate) async fn all(programs: &Programs, store: Store, plans: &[Plan], only: &[Mutant]) -> anyhow::Result<bool> {
    let mut survivors = Vec::new();
    let mut running = JoinSet::new();
    let durability = plans.first().map_or_else(Durability::default, |plan| plan.durability);
    let of_views = only.iter().filter(|mutant| Mutant::OF_VIEWS.contains(mutant));
    let of_all = Mutant::ALL.iter().filter(|mutant| only.is_empty() || only.contains(mutant));
    let asked: Vec<Mutant> =
        of_all.chain(of_views).copied().filter(|mutant| is_of(*mutant, store, durability)).collect();
    let mut left = asked.iter().copied();
    loop {
        while running.len() < AT_ONCE
            && let Some(mutant) = left.next()
        {
            let programs = Programs { mutant: Some(mutant.name().to_owned()), ..programs.clone() };
            let mut plans = plans.to_vec();
            // What is expected to show it comes first; the others are run where it does not.
            plans.sort_by_key(|plan| plan.name != shows(mutant));
            running.spawn(async move { (mutant, is_found(&programs, &plans, mutant).await) });
        }
        match running.join_next().await {
            None => break,
            Some(ended) => {
                let (mutant, found) = ended?;
                if !found.with_context(|| mutant.name())? {
                    survivors.push(mutant.name());
                }
            }
        }
    }
    let all = asked.len();
    if survivors.is_empty() {
        println!("every mutant was found on {}", store.name());
    } else {
        println!("SURVIVED on {}: {}", store.name(), survivors.join(", "));
    }
    println!("{} passed, {} failed", all - survivors.len(), survivors.len());
    Ok(survivors.is_empty())
}

/// Whether the store keeps this safety itself, or what is before every store does.
fn is_of(mutant: Mutant, store: Store, durability: Durability) -> bool {
    match mutant {
        _ if Mutant::OF_VIEWS.contains(&mutant) => store == Store::Tiered && durability == Durability::Journaled,
        // A claim is one commit of the server, whose `synchronous_commit` the store looks at; and no process knows
        // that the session of another is over.
        Mutant::ClaimNotDurable | Mutant::StaleSession => store == Store::Embedded,
        // Only there is a choice.
        Mutant::StrictInCache => store == Store::Tiered && durability == Durability::Strict,
        _ => true,
    }
}

/// The plan that is most about it.
fn shows(mutant: Mutant) -> &'static str {
    match mutant {
        Mutant::StrictInCache | Mutant::NoConfirm | Mutant::NotSpooled | Mutant::OutcomeNotSpooled => "flush",
        Mutant::FenceNotCompared => "overtaken",
        _ => "kills",
    }
}

async fn is_found(programs: &Programs, plans: &[Plan], mutant: Mutant) -> anyhow::Result<bool> {
    let began = Instant::now();
    for plan in plans {
        let judged = round::run(plan, programs).await?;
        if let Some(kept) = &judged.kept {
            // What is red on purpose is nothing to look into.
            std::fs::remove_dir_all(kept)?;
        }
        let rules: BTreeSet<&str> = judged.broken.iter().map(|broken| broken.rule).collect();
        if !rules.is_empty() {
            let rules: Vec<&str> = rules.into_iter().collect();
            let (name, seconds) = (mutant.name(), began.elapsed().as_secs_f64());
            println!("{name:<24} red in {seconds:>4.1} s by {} under {}: {}", plan.name, plan.seed, rules.join(", "));
            return Ok(true);
        }
    }
    println!("{:<24} SURVIVED", mutant.name());
    Ok(false)
}
