//! `onceward doctor`: whether the servers that a configuration names are fit for what it asks of them.

use std::path::Path;

use onceward::store::{
    Durability,
    doctor::{Finding, Grade},
    journaled::{JOURNAL, OpenError},
    postgres,
    redis::{self, doctor::Keeps},
};
use serde_json::json;

use super::Failure;
use crate::{
    config::{Config, Environment, Flags},
    opened,
    start::StartError,
};

/// Looks, and prints one line a finding.
///
/// # Errors
/// Exit code 1 where something is bad, 2 where the configuration is wrong or names no server.
pub(super) async fn run(file: &Path, is_json: bool) -> Result<(), Failure> {
    let config = Config::load(Some(file), &Flags::default(), &Environment::of_process())?;
    if !config.store.is_shared() {
        let why =
            "[store] kind is \"embedded\": there is no server to look at; `onceward config check` looks at the file";
        return Err(Failure::usage(format!("{}: {why}", file.display())));
    }
    let mut findings = Vec::new();
    if let Some(said) = &config.store.postgres {
        let (address, listen) = opened::addresses(said, "store.postgres")?;
        let failover = config.store.journal.as_ref().map(|journal| &journal.failover);
        let of_database = postgres::doctor::examine(&address, listen.as_ref(), failover).await;
        findings.extend(of_database.into_iter().map(named(config.store.is_tiered(), "PostgreSQL")));
        let kept = postgres::doctor::remembered(&address, opened::SECRET_ID).await;
        findings.extend(kept.and_then(|theirs| secret(&config, theirs)));
    }
    if let Some(said) = &config.store.redis {
        let routes = config.routes.iter().chain([&config.default_route]);
        let retention = routes.map(|route| route.retention).max().unwrap_or_default();
        let address = opened::redis_address(said)?;
        let of_redis = redis::doctor::examine(&address, said.strategy, retention, keeps(&config)).await;
        findings.extend(of_redis.into_iter().map(named(config.store.is_tiered(), "Redis")));
        if !config.store.is_tiered() {
            let kept = redis::doctor::remembered(&address, opened::SECRET_ID).await;
            findings.extend(kept.and_then(|theirs| secret(&config, theirs)));
        }
        if config.store.journal.is_some()
            && let Some(database) = &config.store.postgres
        {
            let ours = postgres::doctor::remembered(&opened::addresses(database, "store.postgres")?.0, JOURNAL).await;
            let theirs = redis::doctor::remembered(&address, JOURNAL).await;
            findings.extend(pairing(address.to_string(), ours.flatten(), theirs.flatten()));
        }
    }
    if let Some(said) = &config.store.fallback {
        let (address, listen) = opened::addresses(said, "store.fallback")?;
        let of_fallback = postgres::doctor::examine(&address, listen.as_ref(), None).await;
        findings.extend(of_fallback.into_iter().map(named(true, "the fallback")));
    }
    for finding in &findings {
        let Finding { what, said, .. } = finding;
        if is_json {
            println!("{}", json!({ "what": what, "grade": word(finding.grade).trim_end(), "said": said }));
        } else {
            println!("{} {what}: {said}", word(finding.grade));
        }
    }
    if findings.iter().any(|finding| finding.grade == Grade::Bad) {
        return Err(Failure::not_well("the server is not fit for the store"));
    }
    Ok(())
}

/// What Redis has of all routes together.
fn keeps(config: &Config) -> Keeps {
    let uses =
        |durability| config.routes.iter().chain([&config.default_route]).any(|route| route.durability == durability);
    if !config.store.is_tiered() || uses(Durability::Cache) {
        Keeps::Records
    } else if uses(Durability::Journaled) {
        Keeps::Claims
    } else {
        Keeps::Hints
    }
}

/// Whether Redis stands in front of this database's journal, where gateways have been at both.
fn pairing(redis: String, ours: Option<String>, theirs: Option<String>) -> Option<Finding> {
    let (ours, theirs) = (ours?, theirs?);
    let (grade, said) = if ours == theirs {
        (Grade::Well, "Redis stands in front of this database's journal".to_owned())
    } else {
        (Grade::Bad, OpenError::OtherJournal { redis, theirs, ours }.to_string())
    };
    Some(Finding { what: "pairing", grade, said })
}

/// Whether the records there, if any, were made with the secret of the configuration; `theirs` is what the store knows it by.
fn secret(config: &Config, theirs: Option<String>) -> Option<Finding> {
    let ours = opened::secret_id(config.identity.secret.as_ref()?);
    let previous = config.identity.previous.as_ref().map(opened::secret_id);
    let (grade, said) = match theirs {
        None => (Grade::Well, "no gateway has been here".to_owned()),
        Some(theirs) if theirs == ours.to_string() => (Grade::Well, "that of the records there".to_owned()),
        Some(theirs) if previous.is_some_and(|previous| theirs == previous.to_string()) => {
            (Grade::Well, "the records there were made with the previous one".to_owned())
        }
        Some(theirs) => (Grade::Bad, StartError::Foreign { theirs, ours: ours.to_string() }.to_string()),
    };
    Some(Finding { what: "secret", grade, said })
}

/// Says of which server something is, where there are two.
fn named(is_one_of_two: bool, whose: &'static str) -> impl Fn(Finding) -> Finding {
    move |finding| match is_one_of_two {
        true => Finding { said: format!("{whose}: {}", finding.said), ..finding },
        false => finding,
    }
}

fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Well => "ok  ",
        Grade::Doubtful => "warn",
        Grade::Bad => "BAD ",
    }
}
