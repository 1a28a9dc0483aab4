//! Holds `docs/protocol.md` to what is built: its marks of what is not, its metrics, its problems.

use std::collections::BTreeSet;

use super::{file, names};
use crate::tree::Text;

pub(super) const CONTRACT: &str = "docs/protocol.md";
const MARK: char = '†';

/// Differences between the keys and values with a mark in the tables of keys and the configuration's list of what is
/// not built; and metrics whose mark says that no code makes them, though one does.
pub(super) fn marks(texts: &[Text]) -> Vec<String> {
    let (Some(contract), Some(schema)) = (file(texts, CONTRACT), file(texts, names::SCHEMA)) else {
        return vec![format!("{CONTRACT} or {} is gone", names::SCHEMA)];
    };
    let refused = names::refused_names(&schema.text);
    let marked = marked_keys(&contract.text);
    let missing = refused
        .difference(&marked)
        .map(|name| format!("{CONTRACT}: `{name}` is not built and has no {MARK} in the tables of section 5"));
    let extra = marked.difference(&refused).map(|name| {
        format!("{CONTRACT}: `{name}` has a {MARK}, but {} does not list it: take the mark away", names::SCHEMA)
    });
    let made: BTreeSet<&str> = texts
        .iter()
        .filter(|text| text.path.starts_with("crates/") && text.path.ends_with(".rs"))
        .flat_map(|text| names::string_metrics(&text.text))
        .collect();
    let of_metrics = marked_spans(&contract.text)
        .map(|span| span.split('{').next().unwrap_or_default())
        .filter(|name| made.contains(name))
        .map(|name| format!("{CONTRACT}: `{name}` has a {MARK}, but code makes it: take the mark away"));
    missing.chain(extra).chain(of_metrics).collect()
}

/// `section.key`, `route.key`, or either with ` = value`, as the list of what is not built spells them.
fn marked_keys(contract: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut prefix = "";
    for line in
        contract.lines().skip_while(|line| !line.starts_with("## 5")).take_while(|line| !line.starts_with("## 6"))
    {
        if line.contains("`[[route]]`") {
            prefix = "route.";
        }
        let Some(cells) = line.strip_prefix('|') else { continue };
        let (first, rest) = cells.split_once('|').unwrap_or((cells, ""));
        keys.extend(marked_spans(first).map(|key| format!("{prefix}{key}")));
        let Some(key) = first.split('`').nth(1) else { continue };
        keys.extend(marked_spans(rest).map(|value| match value {
            "true" | "false" => format!("{prefix}{key} = {value}"),
            _ => format!("{prefix}{key} = \"{value}\""),
        }));
    }
    keys
}

/// What stands between backticks right before a mark.
fn marked_spans(text: &str) -> impl Iterator<Item = &str> {
    let pieces: Vec<&str> = text.split('`').collect();
    let marked: Vec<&str> = pieces
        .windows(2)
        .skip(1)
        .step_by(2)
        .filter_map(|pair| match pair {
            [span, after] if after.starts_with(MARK) => Some(*span),
            _ => None,
        })
        .collect();
    marked.into_iter()
}

/// `text` without what is marked.
pub(super) fn without_marked(text: &str) -> String {
    let pieces: Vec<&str> = text.split('`').collect();
    let mut kept = String::with_capacity(text.len());
    for (at, piece) in pieces.iter().enumerate() {
        let is_marked = at % 2 == 1 && pieces.get(at + 1).is_some_and(|after| after.starts_with(MARK));
        if !is_marked {
            kept.push_str(piece);
        }
        kept.push('`');
    }
    kept
}

/// Where code says the last part of a problem's type, and how.
const PROBLEMS: &[(&str, &str)] =
    &[("crates/layer/src/refuse.rs", "=> \""), ("crates/server/src/proxy/problem.rs", "slug: \"")];

/// Problems that code answers with and the contract does not name, and metrics likewise.
pub(super) fn problems(texts: &[Text]) -> Vec<String> {
    let Some(contract) = file(texts, CONTRACT) else { return vec![format!("{CONTRACT} is gone")] };
    let mut found = Vec::new();
    for (path, before) in PROBLEMS {
        let Some(text) = file(texts, path) else {
            found.push(format!("{path} is gone"));
            continue;
        };
        let slugs: BTreeSet<&str> = text
            .text
            .split(before)
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .filter(|slug| slug.len() > 3 && slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
            .collect();
        if slugs.is_empty() {
            found.push(format!("{path}: no problem to read"));
        }
        let unnamed = slugs.into_iter().filter(|slug| !contract.text.contains(&format!("`{slug}`")));
        found.extend(unnamed.map(|slug| format!("{CONTRACT} does not name the problem `{slug}` of {path}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "pub const NOT_AVAILABLE: &[(&str, &str)] = &[\n    (\"quota\", \"quotas\"),\n    \
                          (r#\"route.mode = \"observe\"\"#, \"shadow mode\"),\n    \
                          (\"upstream.http2 = true\", \"HTTP/2\"),\n];\n";
    const TABLES: &str = "## 5. Configuration\n| key | default | else |\n| `quota`† | none | |\n| `upstream.http2` | \
                          `false` | `true`† |\nWhat a `[[route]]` says\n| `mode` | `enforce` | `off`, `observe`† |\n\
                          ## 6\n| `other`† | |\n";

    fn tree(contract: &str, code: &str) -> Vec<Text> {
        vec![
            Text::new(CONTRACT, contract),
            Text::new(names::SCHEMA, SCHEMA),
            Text::new("crates/layer/src/refuse.rs", code),
            Text::new("crates/server/src/proxy/problem.rs", "slug: \"bad-request\""),
        ]
    }

    #[test]
    fn what_is_not_built_has_a_mark_and_what_is_built_has_none() {
        assert_eq!(marks(&tree(TABLES, "")), [""; 0]);
        assert_eq!(marks(&tree(&TABLES.replace("`quota`†", "`quota`"), "")).len(), 1);
        assert_eq!(marks(&tree(&TABLES.replace("`off`,", "`off`†,"), "")).len(), 1);
        let of_metric =
            marks(&tree(&format!("{TABLES}`onceward_a_total{{route}}`†"), "counter!(\"onceward_a_total\")"));
        assert_eq!(of_metric.len(), 1, "{of_metric:?}");
        assert_eq!(marks(&[]).len(), 1);
    }

    #[test]
    fn a_problem_that_the_contract_does_not_name_is_found() {
        let code = "Self::MissingKey => \"missing-key\",";
        assert_eq!(problems(&tree("`bad-request` `missing-key`", code)), [""; 0]);
        assert_eq!(problems(&tree("`bad-request`", code)).len(), 1);
        assert_eq!(problems(&tree("`bad-request`", "")).len(), 1, "nothing to read is told");
    }

    #[test]
    fn what_is_marked_is_left_out() {
        assert_eq!(without_marked("a `b`† `c` d").replace('`', ""), "a † c d");
    }
}
