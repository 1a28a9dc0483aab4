//! `[store.journal]`: how the database keeps the journal of routes that are journaled.

use std::time::Duration;

use onceward::store::postgres::Failover;

use super::{Journal, problem::Problems, read::Layers};

const WHOSE: &str = "[store.journal]";
/// What a spool may take of the disk.
const SPOOL_BYTES: u64 = 1 << 30;

/// `[store.journal]`, where the records are in both and it is there.
pub(super) fn journal(store: Layers<'_>, problems: &mut Problems<'_>) -> Option<Journal> {
    // A file may hold it, and be switched by the kind alone.
    let here = store.at("journal").filter(|_| store.text("kind") == Some("tiered"))?;
    let section = store.sub("journal");
    let standbys: Vec<String> = section.list("standbys", |name| Ok(name.to_owned()));
    let is_asynchronous = section.text("failover") == Some("asynchronous");
    if section.node("failover").is_none() {
        let why = format!(
            r#"{WHOSE} needs "failover": what may take the database's place, and so which of its commits a failover may lose. Write "none" for a server that comes back with its own disk, "synchronous" for standbys that each commit waits for, "asynchronous" with "standbys" for others"#
        );
        problems.error(here, why);
    }
    if is_asynchronous && standbys.is_empty() {
        let why = format!(
            r#""failover" in {WHOSE}: "asynchronous" needs "standbys", the names of all that may take over, as pg_stat_replication has them in application_name"#
        );
        problems.error(section.at("failover").unwrap_or(here), why);
    }
    if let Some(at) = section.at("standbys").filter(|_| !is_asynchronous) {
        problems.error(at, format!(r#""standbys" in {WHOSE} are those of failover = "asynchronous": leave them out"#));
    }
    let repeated =
        standbys.iter().enumerate().find(|(at, name)| standbys.iter().take(*at).any(|before| before == *name));
    if let Some((_, name)) = repeated {
        let at = section.at("standbys").unwrap_or(here);
        problems.error(at, format!(r#""standbys" in {WHOSE}: {name:?} is named twice: each has a name of its own"#));
    }
    let failover = match section.text("failover") {
        Some("synchronous") => Failover::Synchronous,
        Some("asynchronous") => Failover::Asynchronous { standbys },
        _ => Failover::None,
    };
    Some(Journal {
        failover,
        member_timeout: section.duration("member_timeout", Duration::from_secs(30)),
        spool: section.size("spool", SPOOL_BYTES),
    })
}
