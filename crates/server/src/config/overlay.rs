//! What overrides the file: environment variables `ONCEWARD_SECTION__KEY`, and flags over those.
//!
//! Two underscores go one table deeper: `ONCEWARD_LISTEN__ADDRESS`, `ONCEWARD_DEFAULTS__KEY__MISSING`.
//! `[[route]]` and `[[upstream]]` are named by their position in the file, from 0
//! (`ONCEWARD_UPSTREAM__0__URL`); the position after the last adds one. Texts, durations and sizes
//! are given without quotes, everything else as TOML spells it (`["10.0.0.0/8"]`). Variables with
//! single underscores only are not overrides, so that they can hold secrets that the file names,
//! but for `ONCEWARD_DEFAULT_UPSTREAM`, which stands in no section.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    problem::{Origin, Problems},
    schema::{self, Key, Kind},
    tree::{self, Entry, Node, Value},
};

/// The environment variables as they were at start.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// Overrides whose value is not UTF-8.
    unreadable: Vec<String>,
}

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl Environment {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let mut environment = Self::default();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => {
                    environment.variables.insert(name, value);
                }
                Err(_) => environment.unreadable.push(name),
            }
        }
        environment
    }

    /// These and no others.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let variables = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, unreadable: Vec::new() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--upstream`: the only upstream's URL. Refused where the file has several.
    pub upstream: Option<String>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--admin`
    pub admin: Option<String>,
    /// `--data`: where the embedded store is.
    pub data: Option<PathBuf>,
}

/// Puts the environment and then the flags over `root`.
pub(super) fn apply(root: &mut Node, environment: &Environment, flags: &Flags, problems: &mut Problems<'_>) {
    for name in environment.unreadable.iter().filter(|name| path_of(name).is_some()) {
        problems.error(&Origin::Variable(name.clone()), "is not UTF-8".to_owned());
    }
    let mut overrides: Vec<(Vec<String>, &String, &String)> = environment
        .variables
        .iter()
        .filter_map(|(name, value)| path_of(name).map(|path| (path, name, value)))
        .collect();
    // Positions in order, so that 9 and then 10 can be added.
    overrides.sort_by_cached_key(|(path, _, _)| {
        path.iter().map(|part| (part.parse::<usize>().unwrap_or(0), part.clone())).collect::<Vec<_>>()
    });
    for (path, name, value) in overrides {
        let at = Origin::Variable(name.clone());
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        set_in(root, schema::ROOT, &parts, value, &at, problems);
    }
    let mut flag = |at: &'static str, path: &[&str], value: Option<&str>| {
        if let Some(value) = value {
            set_in(root, schema::ROOT, path, value, &Origin::Flag(at), problems);
        }
    };
    flag("--listen", &["listen", "address"], flags.listen.as_deref());
    flag("--admin", &["admin", "address"], flags.admin.as_deref());
    let data = flags.data.as_ref().map(|path| path.to_str().ok_or(()));
    flag("--data", &["store", "path"], data.and_then(Result::ok));
    if let Some(Err(())) = data {
        problems.error(&Origin::Flag("--data"), "the path is not UTF-8".to_owned());
    }
    let Some(url) = flags.upstream.as_deref() else { return };
    let upstreams = root.get("upstream").map_or(0, |node| node.items().len());
    let at = Origin::Flag("--upstream");
    if upstreams > 1 {
        let why = format!("the file has {upstreams} upstreams: give the URL there, for it is not clear which is meant");
        return problems.error(&at, why);
    }
    set_in(root, schema::ROOT, &["upstream", "0", "url"], url, &at, problems);
    if upstreams == 0 {
        set_in(root, schema::ROOT, &["upstream", "0", "name"], "upstream", &at, problems);
    }
}

/// The path that a variable overrides; none where it is not an override.
fn path_of(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix("ONCEWARD_")?;
    if rest.contains("__") || rest == "DEFAULT_UPSTREAM" {
        Some(rest.split("__").map(str::to_ascii_lowercase).collect())
    } else {
        None
    }
}

/// Sets one value in a table. What has another shape in the file is left to the check, which tells
/// it; keys that are not known are set as texts, for the same reason.
fn set_in(node: &mut Node, keys: &'static [Key], path: &[&str], raw: &str, at: &Origin, problems: &mut Problems<'_>) {
    let (Some((first, rest)), Value::Table(entries)) = (path.split_first(), &mut node.value) else { return };
    let known = keys.iter().find(|key| key.name == *first);
    let kind = known.map_or(&Kind::Any, |key| &key.kind);
    // No deeper than the schema, however many underscores there are.
    let rest = match kind {
        Kind::Any => &[],
        kind if kind.keys().is_none() && !rest.is_empty() => {
            return problems.error(at, format!("goes too deep: {first:?} holds no other keys"));
        }
        _ => rest,
    };
    if !entries.iter().any(|entry| entry.key == *first) {
        let value = match kind {
            Kind::Tables(..) if !rest.is_empty() => Value::List(Vec::new()),
            _ if !rest.is_empty() => Value::Table(Vec::new()),
            _ => Value::Bool(false),
        };
        entries.push(Entry { key: (*first).to_owned(), at: at.clone(), node: Node { at: at.clone(), value } });
    }
    let Some(entry) = entries.iter_mut().find(|entry| entry.key == *first) else { return };
    match (rest.split_first(), kind) {
        (None, _) => {
            entry.at = at.clone();
            entry.node = read(raw, kind, at);
        }
        (Some((index, rest)), Kind::Tables(_, keys)) => {
            let Value::List(items) = &mut entry.node.value else { return };
            let known = index.parse::<usize>().ok().filter(|index| *index <= items.len());
            let (Some(index), false) = (known, rest.is_empty()) else {
                let why = format!(
                    "names no [[{first}]]: write its position in the file and a key, as in ONCEWARD_{}__0__NAME; {} is the next free one",
                    first.to_ascii_uppercase(),
                    items.len()
                );
                return problems.error(at, why);
            };
            if index == items.len() {
                items.push(Node::empty_table(at.clone()));
            }
            if let Some(item) = items.get_mut(index) {
                set_in(item, keys, rest, raw, at, problems);
            }
        }
        (Some(_), _) => set_in(&mut entry.node, kind.keys().unwrap_or(&[]), rest, raw, at, problems),
    }
}

/// A variable's text as the value that its key wants.
fn read(raw: &str, kind: &Kind, at: &Origin) -> Node {
    let text = || Node { at: at.clone(), value: Value::Text(raw.to_owned()) };
    let is_toml = match kind {
        Kind::OneOrMore(..) | Kind::TextOrTable(..) => raw.trim_start().starts_with(['[', '{']),
        kind => !kind.is_text(),
    };
    if is_toml { tree::parse_value(raw, at).unwrap_or_else(text) } else { text() }
}
