//! `onceward view force` and `onceward view at-risk`: views go on without a session that is gone for good, and the keys that may
//! have been executed twice since.

use std::{path::Path, pin::pin, time::Duration};

use futures_util::TryStreamExt as _;
use onceward::store::postgres::forced::{AtRisk, Decision, Forced, Said, Wish};
use serde_json::{Value, json};

use super::{Failure, args::ForceArgs, view};
use crate::{
    admin,
    config::{Config, Environment, Flags, units::spell_duration},
    opened,
};

/// As far as the clocks of servers that are looked after may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(10);

const MEANS: &str = "what it was granted last and nobody else knows of may run a second time";

/// Decides it, or with nothing accepted says what would be decided.
///
/// # Errors
/// Exit code 1 where it is refused or not accepted yet, 2 where the configuration has no journal.
pub(super) async fn force(args: &ForceArgs) -> Result<(), Failure> {
    let config = Config::load(Some(&args.config), &Flags::default(), &Environment::of_process())?;
    let (journal, database) = view::journal(&config, &args.config)?;
    let (session, silence) = (args.without, journal.member_timeout);
    let wish =
        Wish { session, silence, keeps: kept_for(&config), clocks_differ: CLOCKS_DIFFER, is_try: !args.accept_risk };
    let forced = Forced::connect(&opened::addresses(database, "store.postgres")?.0).await?;
    let (silent_for, partitions) = match forced.without(&wish).await? {
        Said::Done { silent_for, partitions } => (silent_for, partitions),
        refused => return Err(Failure::not_well(why(&refused, silence))),
    };
    let (of, silent) = (partitions.len(), spell_duration(whole(silent_for)));
    if !args.accept_risk {
        return Err(Failure::not_well(format!(
            "nothing was changed. {of} partitions wait for {session:?}, which is silent for {silent}. Where its data folder is \
             left, start a gateway on that instead: nothing is lost then. Without it {MEANS}: make sure that its process has \
             ended, and say --accept-risk"
        )));
    }
    tracing::warn!(?session, partitions = of, "views go on without a session, by an operator's word");
    if args.output.json {
        println!("{}", json!({ "without": format!("{session:?}"), "partitions": partitions }));
    } else {
        println!(
            "{of} partitions go on without {session:?}, which was silent for {silent}: {MEANS}. The keys that are granted \
             from now on are listed by `onceward view at-risk`, for {}",
            spell_duration(whole(wish.keeps))
        );
    }
    Ok(())
}

fn why(said: &Said, silence: Duration) -> String {
    match said {
        Said::HeardOf { silent_for } => format!(
            "the session was heard of {:.1} s ago: it lives, or another gateway ships what it left. Look again with `onceward \
             view status`; one that was silent for {} can be left out",
            silent_for.as_secs_f64(),
            spell_duration(silence)
        ),
        Said::NotWaitedFor => {
            "no view waits for that session: where it is silent, the others retire it by themselves, and \
             nothing is at risk"
                .to_owned()
        }
        Said::OfAnotherLife => {
            "there are views from before the database failed over or was restored: the next ones come \
             first, which a gateway opens; ask again in a moment"
                .to_owned()
        }
        _ => {
            "no such session is a member: nothing waits for it. `onceward view status` shows those that are".to_owned()
        }
    }
}

/// How long a key may come back that the session was granted: of any route, since one that is not journaled now may have been
/// when it was granted.
fn kept_for(config: &Config) -> Duration {
    let all = config.routes.iter().chain([&config.default_route]);
    all.map(|route| if route.sliding { route.retention_max } else { route.retention } + route.execution_max)
        .max()
        .unwrap_or_default()
}

fn whole(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

/// Lists the keys.
///
/// # Errors
/// Exit code 1 where some are known to have been granted twice, 2 where the configuration has no journal.
pub(super) async fn at_risk(file: &Path, is_json: bool) -> Result<(), Failure> {
    let config = Config::load(Some(file), &Flags::default(), &Environment::of_process())?;
    let (_, database) = view::journal(&config, file)?;
    let forced = Forced::connect(&opened::addresses(database, "store.postgres")?.0).await?;
    let mut twice = 0;
    let decisions = forced.decisions().await?;
    for decision in &decisions {
        twice += decision.twice;
        if !is_json {
            println!("{}", shown(decision));
        }
        let mut keys = pin!(forced.at_risk(decision));
        while let Some(key) = keys.try_next().await? {
            let key = row(decision, &key);
            if is_json { println!("{key}") } else { println!("{}", line(&key)) }
        }
    }
    if decisions.is_empty() && !is_json {
        println!("no view has gone on without a session: nothing is at risk");
    }
    if twice > 0 {
        return Err(Failure::not_well(format!("{twice} keys were granted twice")));
    }
    Ok(())
}

/// A decision, in words.
pub(super) fn shown(decision: &Decision) -> String {
    let Decision { session, ago, silent_before, ends_in, partitions, twice, .. } = decision;
    let spell = |duration: &Duration| spell_duration(whole(*duration));
    let known =
        if *twice == 0 { String::new() } else { format!("; {twice} keys are known to have been granted twice") };
    format!(
        "{} partitions went on without {session:?} {} ago, which had been silent for {}: what is granted in them is at risk for \
         another {}{known}",
        partitions.len(),
        spell(ago),
        spell(silent_before),
        spell(ends_in)
    )
}

/// One line a key, so that a long list is not held in memory.
fn row(decision: &Decision, AtRisk { fact, first, is_executed }: &AtRisk) -> Value {
    let mut row = admin::record_as_it_stands(&fact.id, &fact.record);
    if let Some(of) = row.as_object_mut() {
        let known = match first {
            None => "not known",
            Some(_) if *is_executed => "executed",
            Some(_) => "granted",
        };
        of.insert("without".to_owned(), json!(format!("{:?}", decision.session)));
        of.insert("before".to_owned(), json!(known));
        of.insert("fence_before".to_owned(), json!(first.map(|fence| fence.0.to_string())));
    }
    row
}

fn line(row: &Value) -> String {
    let cell = |name| row.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    let before = match cell("before").as_str() {
        "executed" => "  executed before, by that session",
        "granted" => "  granted before, to that session",
        _ => "",
    };
    format!("{}  {}  {}  {}{before}", cell("record_id"), cell("route"), cell("state"), cell("claimed_at"))
}
