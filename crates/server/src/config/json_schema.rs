//! `config schema`: the JSON Schema of the file, made of the one table in [`schema`], for editors and for whoever
//! writes the file by program.

use core::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    about::about,
    schema::{self, Key, Kind},
    tree, units,
};

/// What a schema cannot hold to a number is at least held to this form.
const DURATION: &str = "^[0-9]+(ms|s|m|h|d)$";
const SIZE: &str = "^[0-9]+(B|KiB|MiB|GiB|TiB)$";
/// Of `[defaults]`, which is no route of its own.
const ROUTE_ONLY: &[&str] = &["route.name", "route.match.path", "route.match.host"];
/// What every entry of these must say.
const REQUIRED: &[(&str, &[&str])] = &[
    ("route", &["name"]),
    ("upstream", &["name", "url"]),
    ("route.record.release_when", &["status", "header"]),
    ("route.on_unknown", &["hold"]),
    ("route.probe.headers", &["name", "value"]),
];

/// The schema, in the dialect of 2020-12.
#[must_use]
pub fn json_schema() -> Value {
    let mut root = table(schema::ROOT, "", false);
    let head = [
        ("$schema", "https://json-schema.org/draft/2020-12/schema"),
        ("title", "Onceward's configuration"),
        ("description", "Durations are 250ms, 30s, 24h, 7d; sizes 64KiB, 10MiB; secrets env:NAME or file:PATH."),
    ];
    if let Value::Object(root) = &mut root {
        root.extend(head.map(|(name, text)| (name.to_owned(), text.into())));
    }
    root
}

fn table(keys: &'static [Key], path: &str, in_defaults: bool) -> Value {
    let properties: Map<String, Value> = keys
        .iter()
        .filter_map(|key| {
            let in_defaults = in_defaults || (path.is_empty() && key.name == "defaults");
            let path = match (path, key.name) {
                ("", "defaults") => "route".to_owned(),
                ("", name) => name.to_owned(),
                (path, name) => format!("{path}.{name}"),
            };
            let is_wanted = !in_defaults || !ROUTE_ONLY.contains(&path.as_str());
            is_wanted.then(|| (key.name.to_owned(), property(&key.kind, &path, in_defaults)))
        })
        .collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

/// A key: what its value may be, what it means, and its default.
fn property(kind: &'static Kind, path: &str, in_defaults: bool) -> Value {
    if let Some(what) = schema::missing_feature(path) {
        return json!({ "not": {}, "description": format!("Not available in this version: {what}.") });
    }
    let mut value = value(kind, path, in_defaults);
    let Value::Object(members) = &mut value else { return value };
    if let Some((default, means)) = about(path) {
        members.insert("description".into(), format!("{means}{}", bounds(kind)).into());
        if let Some(default) = typed(kind, default) {
            members.insert("default".into(), default);
        }
    }
    value
}

fn value(kind: &'static Kind, path: &str, in_defaults: bool) -> Value {
    let is_missing = |value: &str| schema::missing_feature(&format!("{path} = {value}")).is_some();
    match kind {
        Kind::Text(_, what) => text(what, path),
        Kind::Secret => json!({ "type": "string" }),
        Kind::Bool if is_missing("true") => json!({ "const": false }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Integer(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::OneOf(numbers) => json!({ "enum": numbers }),
        Kind::Duration(..) => json!({ "type": "string", "pattern": DURATION }),
        Kind::Size(..) => json!({ "type": "string", "pattern": SIZE }),
        Kind::Choice(words) => {
            let available: Vec<&str> = words.iter().copied().filter(|word| !is_missing(&format!("{word:?}"))).collect();
            json!({ "enum": available })
        }
        Kind::List(max, inner) => {
            json!({ "type": "array", "maxItems": max, "items": value(inner, path, in_defaults) })
        }
        Kind::OneOrMore(max, inner) => {
            let one = value(inner, path, in_defaults);
            json!({ "anyOf": [one, { "type": "array", "maxItems": max, "items": one }] })
        }
        Kind::TextOrTable(inner, keys) => {
            json!({ "anyOf": [value(inner, path, in_defaults), required(table(keys, path, in_defaults), path)] })
        }
        // `[defaults]` has no name, so it is the one table of `route` that need not say one.
        Kind::Table(keys) => required(table(keys, path, in_defaults), if path == "route" { "" } else { path }),
        Kind::Tables(max, keys) => {
            json!({ "type": "array", "maxItems": max, "items": required(table(keys, path, false), path) })
        }
        Kind::Any => json!({}),
    }
}

fn required(mut table: Value, path: &str) -> Value {
    let required = REQUIRED.iter().find(|(at, _)| *at == path);
    if let (Some((_, names)), Value::Object(members)) = (required, &mut table) {
        members.insert("required".into(), json!(names));
    }
    table
}

/// The forms of texts that a pattern can tell; others are left to `config check`.
fn text(what: &str, path: &str) -> Value {
    let pattern = match what {
        "a name" => "^[a-z0-9-]{1,64}$",
        "a source" => "^(header|json|form|query):.",
        "a part of a request" => "^(/|query:.|form:.)",
        "a pointer" => "^/",
        "a path" if path == "route.match.path" => "^/",
        "an address and a port" => ":[0-9]+$",
        "a URL" => "^https?://",
        _ if path == "route.auth.url" => "^(none$|https?://)",
        _ if what.starts_with("a URL such as") => {
            if schema::missing_feature(&format!("{path} = \"https://…\"")).is_some() {
                "^http://"
            } else {
                "^https?://"
            }
        }
        _ if what.contains("fixed:VALUE") => "^(fixed|header):.",
        _ if path == "route.scope.principal" => {
            if schema::missing_feature(&format!("{path} = \"mtls\"")).is_some() {
                "^(auto|none|(header|cookie):.+)$"
            } else {
                "^(auto|none|mtls|(header|cookie):.+)$"
            }
        }
        _ => return json!({ "type": "string", "minLength": 1 }),
    };
    json!({ "type": "string", "pattern": pattern })
}

/// What no pattern says of a number with a unit.
fn bounds(kind: &Kind) -> String {
    let (min, max) = match kind {
        Kind::Duration(min, max) if *min != Duration::ZERO => {
            (units::spell_duration(*min), units::spell_duration(*max))
        }
        Kind::Duration(_, max) => return format!(" At most {}.", units::spell_duration(*max)),
        Kind::Size(0, max) => return format!(" At most {}.", units::spell_size(*max)),
        Kind::Size(min, max) => (units::spell_size(*min), units::spell_size(*max)),
        _ => return String::new(),
    };
    format!(" From {min} to {max}.")
}

/// A default as a value of its kind; none where there is none.
fn typed(kind: &Kind, text: &str) -> Option<Value> {
    if text.is_empty() {
        return None;
    }
    match kind {
        Kind::Bool | Kind::Integer(..) | Kind::OneOf(_) => serde_json::from_str(text).ok(),
        Kind::List(..) => tree::parse_value(text, &super::problem::Origin::Whole).map(|node| texts(&node)),
        _ => Some(text.into()),
    }
}

fn texts(list: &tree::Node) -> Value {
    list.items().iter().filter_map(tree::Node::text).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(keys: &'static [Key], path: &str, out: &mut Vec<String>) {
        for key in keys {
            let path = match (path, key.name) {
                ("", "defaults") => continue,
                ("", name) => name.to_owned(),
                (path, name) => format!("{path}.{name}"),
            };
            match key.kind.keys() {
                _ if schema::missing_feature(&path).is_some() => {}
                Some(keys) => {
                    if !matches!(key.kind, Kind::Table(_) | Kind::Tables(..)) {
                        out.push(path.clone());
                    }
                    paths(keys, &path, out);
                }
                None => out.push(path),
            }
        }
    }

    #[test]
    fn every_key_says_what_it_means_and_nothing_else_is_explained() {
        let mut keys = Vec::new();
        paths(schema::ROOT, "", &mut keys);
        for key in &keys {
            assert!(about(key).is_some_and(|(_, means)| means.ends_with('.')), "{key} is not in about.rs");
        }
        for (path, ..) in super::super::about::ABOUT {
            assert!(keys.iter().any(|key| key == path), "about.rs explains {path}, which is no key of this version");
        }
    }
}
