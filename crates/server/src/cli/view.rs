//! `onceward view status`: whether journaled keys are claimed, and whom they wait for where not.

use std::{collections::BTreeMap, path::Path};

use onceward::store::postgres::standing::{self, JournalStanding};
use onceward_core::record::SessionId;
use serde_json::json;

use super::{Failure, force};
use crate::{
    config::{Config, Environment, Flags, Journal, PostgresStore},
    opened,
};

/// Looks, and prints the partitions and the members.
///
/// # Errors
/// Exit code 1 where keys of some partitions are refused, 2 where the configuration has no journal.
pub(super) async fn status(file: &Path, is_json: bool) -> Result<(), Failure> {
    let config = Config::load(Some(file), &Flags::default(), &Environment::of_process())?;
    let (journal, database) = journal(&config, file)?;
    let standing = standing::look(&opened::addresses(database, "store.postgres")?.0, &journal.failover).await?;
    let refused = standing.views.iter().filter(|view| !view.serves).count();
    let held_up = standing.members.iter().filter(|member| member.may_be_lost).count();
    if is_json {
        println!("{}", json(&standing));
    } else {
        println!("{} partitions: {} in force, {refused} not", standing.views.len(), standing.views.len() - refused);
        let on_database = standing.views.iter().filter(|view| view.serves && view.is_on_database).count();
        if on_database > 0 {
            println!("{on_database} partitions are claimed in the database, since nobody reached Redis");
        }
        for member in &standing.members {
            let how = match member {
                member if member.is_retiring => "is being retired",
                member if member.silent_for > journal.member_timeout => "silent: others retire it",
                member if member.may_be_lost => "live, and waits until the standbys know that it is a member",
                _ => "live",
            };
            let reach = match member.unreached {
                0 => String::new(),
                some => format!(", does not reach the Redis of {some} partitions"),
            };
            println!("{:?} {how}, heard of {:.1} s ago{reach}", member.session, member.silent_for.as_secs_f64());
        }
        if standing.members.is_empty() {
            println!("no gateway is a member");
        }
        for (what, partitions) in waiting(&standing) {
            println!("{partitions} partitions {what}");
        }
        for decision in &standing.forced {
            println!("{}", force::shown(decision));
        }
    }
    match (refused, held_up) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::not_well(format!("{held_up} gateways refuse journaled keys"))),
        _ => Err(Failure::not_well(format!("journaled keys of {refused} partitions are refused"))),
    }
}

/// What the configuration says of the journal, and where that is.
///
/// # Errors
/// Where it has none: exit code 2.
pub(super) fn journal<'a>(config: &'a Config, file: &Path) -> Result<(&'a Journal, &'a PostgresStore), Failure> {
    let why = "views are of durability = \"journaled\", and there is no [store.journal]";
    let both = config.store.journal.as_ref().zip(config.store.postgres.as_ref());
    both.ok_or_else(|| Failure::usage(format!("{}: {why}", file.display())))
}

/// What partitions wait for whose views do not serve, and how many do.
fn waiting(standing: &JournalStanding) -> BTreeMap<String, usize> {
    let mut waiting = BTreeMap::new();
    for view in standing.views.iter().filter(|view| !view.serves) {
        let what = if view.number == 0 {
            "have no view yet: the first gateway opens it".to_owned()
        } else if view.is_of_another_life {
            "have a view from before the database failed over or was restored: a gateway opens the next".to_owned()
        } else if view.waits_for.is_empty() {
            "wait for a gateway to install the view, or for standbys to have what was acknowledged".to_owned()
        } else {
            let whom: Vec<String> = view.waits_for.iter().map(shown).collect();
            format!(
                "wait until all that was granted before is in the journal, or the session retired: {}",
                whom.join(", ")
            )
        };
        *waiting.entry(what).or_default() += 1;
    }
    waiting
}

fn json(standing: &JournalStanding) -> serde_json::Value {
    let views = standing.views.iter().map(|view| {
        let waits_for: Vec<String> = view.waits_for.iter().map(shown).collect();
        json!({ "partition": view.partition, "number": view.number, "in_force": view.serves, "on_database": view.is_on_database, "of_another_life": view.is_of_another_life, "waits_for": waits_for })
    });
    let members = standing.members.iter().map(|member| {
        json!({
            "session": shown(&member.session),
            "retiring": member.is_retiring,
            "silent_seconds": member.silent_for.as_secs_f64(),
            "may_be_lost": member.may_be_lost,
            "unreached": member.unreached,
        })
    });
    let forced = standing.forced.iter().map(|decision| {
        json!({
            "without": shown(&decision.session),
            "partitions": decision.partitions,
            "seconds_ago": decision.ago.as_secs_f64(),
            "ends_in_seconds": decision.ends_in.as_secs_f64(),
            "granted_twice": decision.twice,
        })
    });
    let (views, members, forced): (Vec<_>, Vec<_>, Vec<_>) = (views.collect(), members.collect(), forced.collect());
    json!({ "partitions": views, "members": members, "forced": forced })
}

fn shown(session: &SessionId) -> String {
    format!("{session:?}")
}
