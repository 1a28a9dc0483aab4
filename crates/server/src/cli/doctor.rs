//! `onceward doctor`: whether the servers that a configuration names are fit for what it asks of them.

use std::path::Path;

use onceward::store::{
    doctor::{Finding, Grade},
    postgres, redis,
};
use serde_json::json;

use super::Failure;
use crate::{
    config::{Config, Environment, Flags},
    opened,
};

/// Looks, and prints one line a finding.
///
/// # Errors
/// Exit code 1 where something is bad, 2 where the configuration is wrong or names no server.
pub(super) async fn run(file: &Path, is_json: bool) -> Result<(), Failure> {
    let config = Config::load(Some(file), &Flags::default(), &Environment::of_process())?;
    let mut findings = match (&config.store.postgres, &config.store.redis) {
        (Some(said), _) => {
            let (address, listen) = opened::addresses(said, "store.postgres")?;
            postgres::doctor::examine(&address, listen.as_ref()).await
        }
        (None, Some(said)) => {
            let routes = config.routes.iter().chain([&config.default_route]);
            let retention = routes.map(|route| route.retention).max().unwrap_or_default();
            redis::doctor::examine(&opened::redis_address(said)?, said.strategy, retention).await
        }
        (None, None) => {
            let why = "[store] kind is \"embedded\": there is no server to look at; `onceward config check` looks at the file";
            return Err(Failure::usage(format!("{}: {why}", file.display())));
        }
    };
    if let Some(said) = &config.store.fallback {
        let (address, listen) = opened::addresses(said, "store.fallback")?;
        let of_fallback = postgres::doctor::examine(&address, listen.as_ref()).await;
        findings.extend(of_fallback.into_iter().map(|finding| Finding {
            what: finding.what,
            said: format!("the fallback: {}", finding.said),
            ..finding
        }));
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

fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Well => "ok  ",
        Grade::Doubtful => "warn",
        Grade::Bad => "BAD ",
    }
}
