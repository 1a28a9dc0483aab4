//! `onceward doctor`: whether the servers that a configuration names are fit for what it asks of them.

use std::path::Path;

use onceward::store::postgres::doctor::{Finding, Grade, examine};
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
    let Some(said) = &config.store.postgres else {
        let why = match &config.store.redis {
            Some(_) => {
                "[store] kind is \"redis\", whose servers this version does not look at; what is not well with them is in the \
                 log and in /readyz"
            }
            None => {
                "[store] kind is \"embedded\": there is no server to look at; `onceward config check` looks at the file"
            }
        };
        return Err(Failure::usage(format!("{}: {why}", file.display())));
    };
    let (address, listen) = opened::addresses(said)?;
    let findings = examine(&address, listen.as_ref()).await;
    for finding in &findings {
        let Finding { what, said, .. } = finding;
        if is_json {
            println!("{}", json!({ "what": what, "grade": word(finding.grade).trim_end(), "said": said }));
        } else {
            println!("{} {what}: {said}", word(finding.grade));
        }
    }
    if findings.iter().any(|finding| finding.grade == Grade::Bad) {
        return Err(Failure::not_well("the database is not fit for the store"));
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
