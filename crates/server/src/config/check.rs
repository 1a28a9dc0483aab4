//! Holds a tree to the schema: unknown keys, wrong kinds, values out of bounds, and what is not
//! built yet. Goes on after a problem, so that one run tells them all.

use core::fmt::Display;

use super::{
    problem::Problems,
    schema::{self, Key, Kind},
    tree::{Entry, Node, Value},
    units::{self, shown},
};

/// Checks the whole file.
pub(super) fn check(root: &Node, problems: &mut Problems<'_>) {
    let Value::Table(entries) = &root.value else { return };
    table(entries, schema::ROOT, "", &Whose::Top, problems);
}

/// Whose key a message is about.
enum Whose<'a> {
    Top,
    /// `[listen]`
    Section(&'a str),
    /// `[[route]] "create-payment"`, or by number where it has no name.
    Entry(&'a str, Result<&'a str, usize>),
    /// A table inside one of these.
    Inside(&'a str, &'a Self),
}

impl Display for Whose<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Top => f.write_str("the file"),
            Self::Section(name) => write!(f, "[{name}]"),
            Self::Entry(kind, Ok(name)) => write!(f, "[[{kind}]] {}", shown(name)),
            Self::Entry(kind, Err(index)) => write!(f, "[[{kind}]] number {}", index + 1),
            Self::Inside(key, whose) => write!(f, "{key:?} of {whose}"),
        }
    }
}

fn table(entries: &[Entry], keys: &'static [Key], path: &str, whose: &Whose<'_>, problems: &mut Problems<'_>) {
    for entry in entries {
        let Some(key) = keys.iter().find(|key| key.name == entry.key) else {
            let hint = if problems.is_full() { String::new() } else { hint(&entry.key, keys) };
            problems.error(&entry.at, format!("unknown key {} in {whose}{hint}", shown(&entry.key)));
            continue;
        };
        let path = match (path, key.name) {
            ("", "defaults") => "route".to_owned(),
            ("", name) => name.to_owned(),
            (path, name) => format!("{path}.{name}"),
        };
        let label = match whose {
            Whose::Top => format!("{:?}", key.name),
            _ => format!("{:?} in {whose}", key.name),
        };
        if let Some(what) = schema::missing_feature(&path) {
            problems.error(&entry.at, not_available(&label, what));
            continue;
        }
        let target = Target { key: key.name, label: &label, path: &path, whose };
        value(&entry.node, &key.kind, &target, problems);
    }
}

fn not_available(label: &str, what: &str) -> String {
    format!("{label} is not available in this version ({what}); leave it out")
}

/// What is being checked, for messages.
struct Target<'a> {
    key: &'static str,
    label: &'a str,
    path: &'a str,
    whose: &'a Whose<'a>,
}

impl Target<'_> {
    /// What to tell of a value on the list of what is missing.
    fn missing(&self, kind: &Kind, value: &Value) -> Option<String> {
        let value = match (kind, value) {
            (Kind::Bool, Value::Bool(true)) => "true".to_owned(),
            (Kind::Text(..), Value::Text(text)) if text.starts_with("https://") => r#""https://…""#.to_owned(),
            (Kind::Text(..) | Kind::Choice(_), Value::Text(text)) => shown(text),
            _ => return None,
        };
        let what = schema::missing_feature(&format!("{} = {value}", self.path))?;
        Some(not_available(&format!("{value} for {}", self.label), what))
    }
}

fn value(node: &Node, kind: &'static Kind, target: &Target<'_>, problems: &mut Problems<'_>) {
    if let Some(why) = target.missing(kind, &node.value) {
        return problems.error(&node.at, why);
    }
    let label = target.label;
    let mut wrong = |why: String| problems.error(&node.at, format!("{label}{why}"));
    match (kind, &node.value) {
        (Kind::Any, _) | (Kind::Bool, Value::Bool(_)) | (Kind::Secret, Value::Text(_)) => {}
        (Kind::Text(form, _), Value::Text(text)) => {
            if let Err(why) = form(text) {
                wrong(format!(": {why}"));
            }
        }
        (Kind::Choice(words), Value::Text(text)) => {
            if !words.contains(&text.as_str()) {
                let near = near(text, words.iter().copied())
                    .map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
                wrong(format!(" must be {}, not {}{near}", one_of(target.path, words), shown(text)));
            }
        }
        (Kind::Integer(min, max), Value::Integer(number)) => {
            if !number.is_some_and(|number| (*min..=*max).contains(&number)) {
                wrong(format!(" must be from {min} to {max}"));
            }
        }
        (Kind::OneOf(allowed), Value::Integer(number)) => {
            if !number.is_some_and(|number| allowed.contains(&number)) {
                wrong(format!(" must be {}", words(allowed.iter())));
            }
        }
        (Kind::Duration(min, max), Value::Text(text)) => match units::duration(text) {
            Err(why) => wrong(format!(": {why}")),
            Ok(span) if span < *min || span > *max => {
                let (min, max) = (units::spell_duration(*min), units::spell_duration(*max));
                wrong(format!(" is {}, must be from {min} to {max}", units::spell_duration(span)));
            }
            Ok(_) => {}
        },
        (Kind::Size(min, max), Value::Text(text)) => match units::size(text) {
            Err(why) => wrong(format!(": {why}")),
            Ok(bytes) if bytes < *min || bytes > *max => {
                let (min, max) = (units::spell_size(*min), units::spell_size(*max));
                wrong(format!(" is {}, must be from {min} to {max}", units::spell_size(bytes)));
            }
            Ok(_) => {}
        },
        (Kind::List(max, inner) | Kind::OneOrMore(max, inner), Value::List(items)) => {
            if items.len() > *max {
                return wrong(format!(" has {} entries, may have {max}", items.len()));
            }
            for item in items {
                value(item, inner, target, problems);
            }
        }
        (Kind::OneOrMore(_, inner), Value::Text(_)) | (Kind::TextOrTable(inner, _), Value::Text(_)) => {
            value(node, inner, target, problems);
        }
        (Kind::Table(keys) | Kind::TextOrTable(_, keys), Value::Table(entries)) => {
            let whose = match target.whose {
                Whose::Top => Whose::Section(target.key),
                outer => Whose::Inside(target.key, outer),
            };
            table(entries, keys, target.path, &whose, problems);
        }
        (Kind::Tables(max, keys), Value::List(items)) if items.iter().all(|item| item.kind() == "a table") => {
            if items.len() > *max {
                return wrong(format!(" has {} entries, may have {max}", items.len()));
            }
            for (index, item) in items.iter().enumerate() {
                let Value::Table(entries) = &item.value else { continue };
                let name = item.get("name").and_then(Node::text).ok_or(index);
                table(entries, keys, target.path, &Whose::Entry(target.key, name), problems);
            }
        }
        _ => wrong(format!(" must be {}, not {}", wanted(kind, target), node.kind())),
    }
}

/// What a value must be, for "must be …, not a number".
fn wanted(kind: &Kind, target: &Target<'_>) -> String {
    match kind {
        Kind::Text(_, what) => (*what).to_owned(),
        Kind::Secret => r#"a text: "env:NAME", "file:PATH" or the secret itself"#.to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Integer(min, max) => format!("a whole number from {min} to {max}"),
        Kind::OneOf(allowed) => words(allowed.iter()),
        Kind::Duration(..) => r#"a duration in quotes, such as "30s""#.to_owned(),
        Kind::Size(..) => r#"a size in quotes, such as "64KiB""#.to_owned(),
        Kind::Choice(words) => one_of(target.path, words),
        Kind::List(..) => "a list in square brackets".to_owned(),
        Kind::OneOrMore(_, inner) => format!("{}, or a list of such", wanted(inner, target)),
        Kind::TextOrTable(inner, keys) => {
            let keys = keys.iter().map(|key| format!("{{ {} = … }}", key.name)).collect::<Vec<_>>().join(", ");
            format!("{}, or {keys}", wanted(inner, target))
        }
        Kind::Table(_) => match target.whose {
            Whose::Top => format!("a section: write [{}]", target.key),
            _ => "a table: write { key = value }".to_owned(),
        },
        Kind::Tables(..) => format!("sections: write [[{}]], with two brackets", target.key),
        Kind::Any => "left out".to_owned(),
    }
}

/// The words that this version takes.
fn one_of(path: &str, all: &[&str]) -> String {
    words(
        all.iter()
            .map(|word| format!("{word:?}"))
            .filter(|word| schema::missing_feature(&format!("{path} = {word}")).is_none()),
    )
}

/// `a, b or c`
fn words<T: Display>(words: impl Iterator<Item = T>) -> String {
    let mut words: Vec<String> = words.map(|word| word.to_string()).collect();
    let Some(last) = words.pop() else { return String::new() };
    if words.is_empty() { last } else { format!("{} or {last}", words.join(", ")) }
}

/// What an unknown key may have meant: one that is spelled alike, one of a table beside it, or the
/// list of all where that is short.
fn hint(unknown: &str, keys: &'static [Key]) -> String {
    const LIST_MAX: usize = 8;
    if let Some(near) = near(unknown, keys.iter().map(|key| key.name)) {
        return format!("; did you mean {near:?}?");
    }
    let home = keys.iter().find(|key| key.kind.keys().is_some_and(|keys| keys.iter().any(|key| key.name == unknown)));
    if let Some(home) = home {
        return format!("; it belongs in {:?}", home.name);
    }
    if keys.len() <= LIST_MAX {
        return format!("; there is {}", words(keys.iter().map(|key| key.name)).replace(" or ", " and "));
    }
    String::new()
}

/// The word closest to `text`, where it is close.
fn near<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // The distance costs the product of both lengths, and no key is long.
    const BYTES_MAX: usize = 40;
    if text.len() > BYTES_MAX {
        return None;
    }
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let text = plain(text);
    words
        .map(|word| (strsim::osa_distance(&text, &plain(word)), word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(keys: &'static [Key], path: &str, out: &mut Vec<(String, &'static Kind)>) {
        for key in keys {
            let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            out.push((path.clone(), &key.kind));
            if let Some(keys) = key.kind.keys() {
                paths(keys, &path, out);
            }
        }
    }

    #[test]
    fn what_is_not_looked_into_is_refused_by_name_and_the_list_names_nothing_else() {
        let mut all = Vec::new();
        paths(schema::ROOT, "", &mut all);
        for (path, kind) in &all {
            if matches!(kind, Kind::Any) {
                let path = path.replace("defaults.", "route.");
                assert!(schema::missing_feature(&path).is_some(), "{path} would be ignored in silence");
            }
        }
        for (path, _) in schema::NOT_AVAILABLE {
            let path = path.split(" = ").next().unwrap();
            assert!(all.iter().any(|(known, _)| known == path), "{path} is no key");
        }
    }

    #[test]
    fn a_near_word_is_found_and_a_far_one_is_not() {
        let words = ["retention", "retention_max", "lease", "from"];
        for (text, want) in [
            ("retenton", Some("retention")),
            ("retention-max", Some("retention_max")),
            ("LEASE", Some("lease")),
            ("elase", Some("lease")),
            ("form", Some("from")),
            ("colour", None),
        ] {
            assert_eq!(near(text, words.into_iter()), want, "{text}");
        }
    }
}
