//! What record ids are made of: the install secret and the routes. Neither changes unnoticed.
//!
//! The data folder remembers both. A start under which some request would get another id is refused, for its key would be
//! new and a client that still retries would run a second time; with `--accept-rekey` (and `identity.previous`, where
//! it is the secret) it goes on, and looks for records under their earlier ids until none of that time is left.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use onceward::{Before, Routes, SecretId, pattern::Pattern};
use onceward_core::record::Micros;
use serde::{Deserialize, Serialize};

use crate::{
    assemble,
    config::{
        Config, RouteConfig,
        forms::{self, PrincipalWord},
        route::{KeySource, Mode, Principal, PrincipalPart},
    },
    folder,
    start::StartError,
};

/// Whose secret the records of the folder were made with, as a hash.
const SECRET_ID_FILE: &str = "onceward.secret-id";
/// The install secret, where the configuration has none.
const SECRET_FILE: &str = "onceward.secret";
/// What record ids of the folder are made of, route by route.
const ROUTES_FILE: &str = "onceward.routes";
/// Changes whose records may be left at a time.
const CHANGES_MAX: usize = 8;
/// Beside the longest life of a record: what clocks differ by, and the time of a sweep.
const SLACK: Duration = Duration::from_secs(3600);

/// Who asks, and so what may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A process that will serve requests. `accept_rekey` lets ids change.
    Serve {
        /// `--accept-rekey`
        accept_rekey: bool,
    },
    /// A command that looks at the records of a folder: it changes nothing there.
    Look,
}

/// The install secret, and what ids were made of before, the latest first.
pub struct Identity {
    /// Of the configuration, else of the folder, drawn at the first start.
    pub secret: onceward::Secret,
    /// For [`onceward::Engine::look_under`].
    pub before: Vec<Before>,
}

/// Settles what ids are made of from here on.
///
/// # Errors
/// [`StartError::Rekeyed`] where ids would change and nobody has accepted that; [`StartError::Secret`].
pub fn settle(config: &Config, purpose: Purpose) -> Result<Identity, StartError> {
    let folder = &config.store.path;
    let secret = match &config.identity.secret {
        Some(secret) => onceward::Secret::from_bytes(*secret.expose()),
        None => folder_secret(folder)?,
    };
    let previous = config.identity.previous.as_ref().map(|secret| onceward::Secret::from_bytes(*secret.expose()));
    let bound = bound_to(folder)?;
    let known =
        |id: &SecretId| [Some(&secret), previous.as_ref()].into_iter().flatten().any(|secret| secret.id() == *id);
    if bound.as_ref().is_some_and(|id| !known(id)) {
        return Err(failed(
            folder,
            SECRET_ID_FILE,
            "the records here were made with another install secret; under this one every key would be new and run again. \
             Bring the old secret back (onceward.secret, or [identity] secret), give it as [identity] previous, or start \
             with an empty folder",
        ));
    }
    let mut kept = kept(folder)?;
    let now = list(config, kept.as_ref().map(|kept| kept.now.as_slice()).unwrap_or_default());
    if let Some(kept) = &mut kept {
        let changed = routes(config, &now)?.rekeyed(&routes(config, &kept.now)?);
        if let (false, Purpose::Serve { accept_rekey: false }) = (changed.is_empty(), purpose) {
            return Err(StartError::Rekeyed { changes: changed.iter().map(ToString::to_string).collect() });
        }
        let old_secret = bound.unwrap_or_else(|| secret.id());
        if !changed.is_empty() || old_secret != secret.id() {
            let until_us = wall_us().saturating_add(micros(longest(&kept.now)));
            let old = Change { routes: std::mem::take(&mut kept.now), secret: old_secret.to_string(), until_us };
            tracing::warn!(
                changes = changed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
                secret_changed = old_secret != secret.id(),
                "record ids are made otherwise from here on; records of before are looked for under their earlier ids"
            );
            kept.before.insert(0, old);
        }
    }
    let mut changes = kept.map(|kept| kept.before).unwrap_or_default();
    changes.retain(|change| change.until_us > wall_us());
    if changes.len() > CHANGES_MAX {
        return Err(failed(
            folder,
            ROUTES_FILE,
            "too many changes of routes or secret still have records; wait until they have ended",
        ));
    }
    let before = looked_under(config, folder, &changes, &[Some(&secret), previous.as_ref()])?;
    if let Purpose::Serve { .. } = purpose {
        write(folder, &now, changes)?;
        if bound != Some(secret.id()) {
            folder::write(folder, SECRET_ID_FILE, &secret.id().to_string())?;
        }
    }
    Ok(Identity { secret, before })
}

/// What `next` would re-key, were it to replace the running configuration; where that is nothing, the folder remembers
/// its routes.
///
/// # Errors
/// [`StartError::Rekeyed`], or that the folder cannot be written.
pub fn follow(running: &Config, next: &Config) -> Result<(), StartError> {
    let folder = &running.store.path;
    let Some(kept) = kept(folder)? else {
        return Err(failed(
            folder,
            ROUTES_FILE,
            "is gone, and with it what the ids of running keys are made of; restart",
        ));
    };
    let now = list(next, &kept.now);
    let changed = routes(next, &now)?.rekeyed(&routes(next, &kept.now)?);
    if !changed.is_empty() {
        return Err(StartError::Rekeyed { changes: changed.iter().map(ToString::to_string).collect() });
    }
    if now == kept.now { Ok(()) } else { write(folder, &now, kept.before) }
}

// ===== what the folder remembers =====

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    now: Vec<RouteIdentity>,
    /// The latest first.
    before: Vec<Change>,
}

/// What ids were made of until a change.
#[derive(Serialize, Deserialize)]
struct Change {
    routes: Vec<RouteIdentity>,
    /// Of the install secret, as a hash.
    secret: String,
    /// When no record of that time is left.
    until_us: u64,
}

/// What of a route its record ids are made of, and which requests are its, in the words of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RouteIdentity {
    name: String,
    methods: Vec<String>,
    path: String,
    host: Option<String>,
    /// Whether it protects requests, or has since it was made.
    protects: bool,
    key: Vec<String>,
    tenant: String,
    env: String,
    principal: Vec<String>,
    /// The header of the `auth` check's answer that names the caller, in place of the principal.
    #[serde(default)]
    auth: Option<String>,
    /// How long a record may live.
    longest_us: u64,
}

fn list(config: &Config, before: &[RouteIdentity]) -> Vec<RouteIdentity> {
    let identity = |route: &RouteConfig| {
        // Its records do not go when it stops to protect.
        let did = before.iter().any(|old| old.name == route.name && old.protects);
        RouteIdentity {
            name: route.name.clone(),
            methods: route.matching.methods.iter().map(ToString::to_string).collect(),
            path: route.matching.path.text.clone(),
            host: route.matching.host.clone(),
            protects: did || (route.mode == Mode::Enforce && route.upstream.is_some()),
            key: route.key.from.iter().map(KeySource::to_string).collect(),
            tenant: route.scope.tenant.to_string(),
            env: route.scope.env.to_string(),
            principal: principal_words(&route.scope.principal),
            auth: route.auth.as_ref().and_then(|auth| auth.principal_header.as_ref()).map(ToString::to_string),
            longest_us: micros(longest_life(route)),
        }
    };
    config.routes.iter().chain([&config.default_route]).map(identity).collect()
}

/// How long a record of the route may live after it is claimed: until it is settled, at the latest as failed after
/// `unknown_max`, and then for its retention.
fn longest_life(route: &RouteConfig) -> Duration {
    let retention = if route.sliding { route.retention_max } else { route.retention };
    route.execution_max.saturating_add(route.unknown_max).saturating_add(retention).saturating_add(SLACK)
}

fn longest(routes: &[RouteIdentity]) -> Duration {
    Duration::from_micros(routes.iter().map(|route| route.longest_us).max().unwrap_or(0))
}

fn principal_words(principal: &Principal) -> Vec<String> {
    match principal {
        Principal::Auto => vec!["auto".into()],
        Principal::None => vec!["none".into()],
        Principal::Parts(parts) => parts.iter().map(PrincipalPart::to_string).collect(),
    }
}

fn principal_of(words: &[String]) -> Result<Principal, String> {
    let mut parts = Vec::with_capacity(words.len());
    for word in words {
        match forms::principal(word)? {
            PrincipalWord::Auto => return Ok(Principal::Auto),
            PrincipalWord::None => return Ok(Principal::None),
            PrincipalWord::Mtls => return Err("mtls is not known here".into()),
            PrincipalWord::Part(part) => parts.push(part),
        }
    }
    Ok(Principal::Parts(parts))
}

/// The remembered routes, as far as they name records. Everything else about them is the default route's.
fn routes(config: &Config, list: &[RouteIdentity]) -> Result<Routes, StartError> {
    let folder = &config.store.path;
    let route = |kept: &RouteIdentity| -> Result<onceward::Route, String> {
        let mut route = config.default_route.clone();
        route.name.clone_from(&kept.name);
        let method = |name: &String| name.parse().map_err(|_| format!("{name} is no method"));
        route.matching.methods = kept.methods.iter().map(method).collect::<Result<_, _>>()?;
        route.matching.path = Pattern::parse(&kept.path).map_err(|error| error.to_string())?;
        route.matching.host.clone_from(&kept.host);
        route.mode = if kept.protects { Mode::Enforce } else { Mode::Off };
        route.upstream = Some(String::new());
        route.key.from = kept.key.iter().map(|text| forms::key_source(text)).collect::<Result<_, _>>()?;
        route.scope.tenant = forms::scope_part(&kept.tenant)?;
        route.scope.env = forms::scope_part(&kept.env)?;
        route.scope.principal = principal_of(&kept.principal)?;
        let mut named = assemble::name_of(&route).map_err(|error| error.to_string())?;
        if let Some(header) = &kept.auth {
            let header = header.parse().map_err(|_| format!("{header} is no header"))?;
            named.scope.principal = onceward::route::Principal::Auth(header);
        }
        Ok(named)
    };
    let read = list.iter().map(route).collect::<Result<Vec<_>, _>>();
    let mut read = read.map_err(|why| failed(folder, ROUTES_FILE, &format!("cannot be read: {why}")))?;
    let Some(default) = read.pop() else { return Err(failed(folder, ROUTES_FILE, "names no routes")) };
    Ok(Routes::new(read, default))
}

fn looked_under(
    config: &Config,
    folder: &Path,
    changes: &[Change],
    secrets: &[Option<&onceward::Secret>],
) -> Result<Vec<Before>, StartError> {
    let mut before = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(secret) = secrets.iter().flatten().find(|secret| secret.id().to_string() == change.secret) else {
            return Err(failed(
                folder,
                ROUTES_FILE,
                "records of an earlier install secret may be left, and it is not given: bring it back as [identity] previous",
            ));
        };
        let until = Micros(change.until_us);
        before.push(Before { routes: routes(config, &change.routes)?, secret: (*secret).clone(), until });
    }
    Ok(before)
}

fn kept(folder: &Path) -> Result<Option<Kept>, StartError> {
    let Some(text) = folder::text(folder, ROUTES_FILE)? else { return Ok(None) };
    match serde_json::from_str::<Kept>(&text) {
        Ok(kept) if kept.version == 1 => Ok(Some(kept)),
        Ok(_) => Err(failed(folder, ROUTES_FILE, "is of a later version of Onceward; run that one")),
        Err(error) => Err(failed(
            folder,
            ROUTES_FILE,
            &format!(
                "is damaged ({error}), so that a change of record ids cannot be noticed. Where the routes are what they \
                 were at the last start, delete it and start again"
            ),
        )),
    }
}

fn write(folder: &Path, now: &[RouteIdentity], before: Vec<Change>) -> Result<(), StartError> {
    let kept = Kept { version: 1, now: now.to_vec(), before };
    let text = serde_json::to_string_pretty(&kept)
        .map_err(|error| failed(folder, ROUTES_FILE, &format!("cannot be written: {error}")))?;
    folder::write(folder, ROUTES_FILE, &text)
}

fn bound_to(folder: &Path) -> Result<Option<SecretId>, StartError> {
    let Some(text) = folder::text(folder, SECRET_ID_FILE)? else { return Ok(None) };
    let mut id = [0; 8];
    let hex = text.trim();
    let read = hex.len() == 2 * id.len()
        && id.iter_mut().enumerate().all(|(index, byte)| {
            let digits = hex.get(2 * index..2 * index + 2);
            digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).is_some_and(|read| {
                *byte = read;
                true
            })
        });
    if read {
        Ok(Some(SecretId(id)))
    } else {
        Err(failed(folder, SECRET_ID_FILE, "is damaged; bring it back from a backup"))
    }
}

fn folder_secret(folder: &Path) -> Result<onceward::Secret, StartError> {
    let gone = folder::text(folder, SECRET_FILE)?.is_none();
    if gone && folder::text(folder, SECRET_ID_FILE)?.is_some() {
        return Err(failed(
            folder,
            SECRET_FILE,
            "is gone, and the records here were made with it; a new one would make every key new. Bring it back, or start \
             with an empty folder",
        ));
    }
    let text = folder::text_or_drawn(folder, SECRET_FILE)?;
    onceward::Secret::from_base64(&text).map_err(|error| {
        let why = format!("{error}; without the secret it was made with, every key of this store would be new");
        failed(folder, SECRET_FILE, &why)
    })
}

fn failed(folder: &Path, name: &str, what: &str) -> StartError {
    StartError::Secret { file: folder.join(name), what: what.to_owned() }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn wall_us() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "how long earlier ids are looked under, over restarts")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, micros)
}
