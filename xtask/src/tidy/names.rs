//! Checks that hold documents and code to each other, by name.

use std::collections::BTreeSet;

use super::file;
use crate::tree::Text;

/// Files and functions that ARCHITECTURE.md names and that are not there.
///
/// A name is what stands in backticks and has a `/` or a suffix of a file: `layer/service.rs`,
/// `crates/layer/src/service.rs`, `layer/drive.rs::run`, `crates/store/`. The folder `crates/` and
/// the `src/` below it may be left out.
pub(super) fn architecture(texts: &[Text]) -> Vec<String> {
    let Some(document) = file(texts, "ARCHITECTURE.md") else { return vec!["ARCHITECTURE.md is gone".to_owned()] };
    let mut found = Vec::new();
    for name in quoted(&document.text) {
        let (path, item) = name.split_once("::").map_or((name, None), |(path, item)| (path, Some(item)));
        if !is_path(path) {
            continue;
        }
        let spellings = spellings(path);
        let holds = |text: &&Text| {
            spellings.iter().any(|spelling| match spelling.strip_suffix('/') {
                Some(_) => text.path.starts_with(spelling.as_str()),
                None => text.path == *spelling || text.path.starts_with(&format!("{spelling}/")),
            })
        };
        let Some(text) = texts.iter().find(holds) else {
            found.push(format!("ARCHITECTURE.md: `{path}` is not there"));
            continue;
        };
        for part in item.into_iter().flat_map(|item| item.split("::")) {
            if !defines(&text.text, part.trim_end_matches("()")) {
                found.push(format!("ARCHITECTURE.md: `{name}`: {} has no {part}", text.path));
            }
        }
    }
    found
}

fn is_path(name: &str) -> bool {
    let plain = name.chars().all(|char| char.is_ascii_alphanumeric() || "_-./".contains(char));
    let suffixes = [".rs", ".md", ".toml", ".proto", ".py", ".ts", ".lua", ".sql", ".json"];
    let names_a_file = suffixes.iter().any(|suffix| name.ends_with(suffix)) && !name.starts_with('.');
    let names_a_place = name.contains('/') && !name.starts_with('/');
    plain && (names_a_file || names_a_place)
}

/// What a name may be short for.
fn spellings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned(), format!("crates/{path}")];
    let short = path.strip_prefix("crates/").unwrap_or(path);
    if let Some((room, rest)) = short.split_once('/') {
        all.push(format!("crates/{room}/src/{rest}"));
        all.push(format!("{room}/src/{rest}"));
        if !rest.contains('.') && !rest.ends_with('/') {
            all.push(format!("crates/{room}/src/{rest}.rs"));
        }
    }
    all
}

/// Whether a Rust file defines an item of this name.
fn defines(text: &str, name: &str) -> bool {
    const KINDS: &[&str] = &["fn", "struct", "enum", "trait", "type", "const", "static", "mod", "impl", "macro_rules!"];
    let kinds = KINDS.iter().any(|kind| {
        text.match_indices(&format!("{kind} {name}")).any(|(at, found)| {
            let after = text.get(at + found.len()..).and_then(|rest| rest.chars().next());
            !after.is_some_and(|after| after.is_alphanumeric() || after == '_')
        })
    });
    // A variant of an enum stands at the start of its line.
    kinds || text.lines().any(|line| line.trim().trim_end_matches([',', '{', ' ']) == name)
}

/// Tests that the tables of promises name in their last column and that are not there: functions of Rust and Python, and
/// the cases of the conformance list.
pub(super) fn tests(texts: &[Text]) -> Vec<String> {
    let is_code = |text: &&Text| text.path.ends_with(".rs") || text.path.ends_with(".py");
    let code: Vec<&Text> = texts.iter().filter(is_code).collect();
    let is_there = |name: &str| {
        let spellings = [format!("fn {name}("), format!("def {name}("), format!("\"{name}\"")];
        code.iter().any(|text| spellings.iter().any(|spelling| text.text.contains(spelling.as_str())))
    };
    let mut found = Vec::new();
    for path in ["docs/guarantees.md", "docs/security.md", "docs/postgres-store.md"] {
        let Some(document) = file(texts, path) else {
            found.push(format!("{path} is gone"));
            continue;
        };
        for (at, line) in document.text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
            let last = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
            let is_test = |name: &&str| {
                name.matches('_').count() >= 2 && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
            };
            for name in quoted(last).filter(is_test) {
                if !is_there(name) {
                    found.push(format!("{path}:{}: no test is named `{name}`", at + 1));
                }
            }
        }
    }
    found
}

/// Metrics that a document names and no code makes, and the other way round.
pub(super) fn metrics(texts: &[Text]) -> Vec<String> {
    let is_document = |path: &str| {
        path.ends_with(".md") && path != "CHANGELOG.md" || path.starts_with("deploy/") || path.starts_with("docs/")
    };
    let documents: Vec<&Text> = texts.iter().filter(|text| is_document(&text.path)).collect();
    let code: Vec<&Text> =
        texts.iter().filter(|text| text.path.starts_with("crates/") && text.path.ends_with(".rs")).collect();
    let made: BTreeSet<&str> = code.iter().flat_map(|text| string_metrics(&text.text)).collect();
    let mut named: BTreeSet<String> = BTreeSet::new();
    let mut found = Vec::new();
    for document in documents {
        let unmarked = super::contract::without_marked(&document.text);
        for name in metric_words(&unmarked) {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix).filter(|base| made.contains(base)))
                .unwrap_or(name);
            if named.insert(name.to_owned()) && !made.contains(name) {
                found.push(format!("{}: no code makes `{name}`", document.path));
            }
        }
    }
    let unnamed = made.iter().filter(|name| !named.contains(**name));
    found.extend(unnamed.map(|name| format!("no document names `{name}`")));
    found
}

const METRIC: &str = "onceward_";

/// What is called like a metric and is none.
const NOT_METRICS: &[&str] = &[
    "onceward_core",
    "onceward_store",
    "onceward_server",
    "onceward_client",
    // Roles of a database.
    "onceward_app",
    "onceward_gateway",
    "onceward_operator",
];

/// Metrics as whole string literals.
pub(super) fn string_metrics(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).filter(|literal| is_metric(literal))
}

/// Metrics as words.
fn metric_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_')).filter(|word| is_metric(word))
}

fn is_metric(word: &str) -> bool {
    word.strip_prefix(METRIC).is_some_and(|rest| {
        !rest.is_empty() && !rest.ends_with('_') && rest.chars().all(|char| char.is_ascii_lowercase() || char == '_')
    }) && !NOT_METRICS.contains(&word)
}

/// Where the configuration's list of what is not built yet stands.
pub(super) const SCHEMA: &str = "crates/server/src/config/schema.rs";

/// Differences between the configuration's list of what is not built yet and the README's: the
/// backticked names below its heading that says "not available", one or more an item.
pub(super) fn not_available(texts: &[Text]) -> Vec<String> {
    let (Some(readme), Some(schema)) = (file(texts, "README.md"), file(texts, SCHEMA)) else {
        return vec![format!("README.md or {SCHEMA} is gone")];
    };
    let refused: BTreeSet<String> = refused_names(&schema.text);
    if refused.is_empty() {
        return vec![format!("{SCHEMA}: no NOT_AVAILABLE to read")];
    }
    let is_heading = |line: &&str| line.starts_with('#') && line.to_lowercase().contains("not available");
    let mut lines = readme.text.lines().skip_while(|line| !is_heading(line));
    if lines.next().is_none() {
        return vec!["README.md: no heading that says what is not available".to_owned()];
    }
    let section: Vec<&str> = lines.take_while(|line| !line.starts_with('#')).collect();
    let listed: BTreeSet<String> = quoted(&section.join("\n")).map(str::to_owned).collect();
    let missing = refused.difference(&listed).map(|name| format!("README.md does not list `{name}` as not available"));
    let extra = listed.difference(&refused).map(|name| format!("README.md: `{name}` is not in {SCHEMA}"));
    missing.chain(extra).collect()
}

/// The first parts of the pairs of `NOT_AVAILABLE`.
pub(super) fn refused_names(schema: &str) -> BTreeSet<String> {
    let list = schema.split_once("NOT_AVAILABLE").and_then(|(_, rest)| rest.split_once("= &["));
    let list = list.and_then(|(_, rest)| rest.split_once("];")).map_or("", |(list, _)| list);
    let pairs = list.split('(').skip(1);
    let names = pairs.filter_map(|pair| match pair.strip_prefix("r#\"") {
        Some(raw) => raw.split_once("\"#"),
        None => pair.strip_prefix('"').and_then(|plain| plain.split_once('"')),
    });
    names.map(|(name, _)| name.to_owned()).collect()
}

/// What stands between single backticks on one line, code blocks left out.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    let lines = text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    });
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_architecture_names_files_and_functions_that_are_there() {
        let tree = |document: &str| {
            vec![
                Text::new("ARCHITECTURE.md", document),
                Text::new(
                    "crates/layer/src/drive.rs",
                    "pub(crate) async fn run(x: u8) {}\npub struct Drive;\nenum E {\n    Wait,\n}",
                ),
                Text::new("proto/onceward/v1/record.proto", ""),
            ]
        };
        let right = "`layer/drive.rs` `crates/layer/src/drive.rs::run` `layer/drive.rs::Drive` `crates/layer/` \
                     `proto/onceward/v1` `layer/drive.rs::E::Wait` `core ← store` `a::b` `409`\n```\n`gone/x.rs`\n```\n";
        assert_eq!(architecture(&tree(right)), [""; 0]);
        assert_eq!(architecture(&tree("`layer/gone.rs`")), ["ARCHITECTURE.md: `layer/gone.rs` is not there"]);
        assert_eq!(architecture(&tree("`layer/drive.rs::ru`")).len(), 1);
        assert_eq!(architecture(&tree("`crates/gone/`")).len(), 1);
        assert_eq!(architecture(&tree("`gone.md`")).len(), 1);
        assert_eq!(architecture(&[]), ["ARCHITECTURE.md is gone"]);
    }

    #[test]
    fn a_promise_names_tests_that_are_there() {
        let tree = |line: &str| {
            let row = format!("| fault | what_may_be_any_word | {line} |\n");
            vec![
                Text::new("docs/guarantees.md", &row),
                Text::new("docs/security.md", "`in_no_table`"),
                Text::new("docs/postgres-store.md", ""),
                Text::new("crates/a/tests/a.rs", "fn a_test_is_here() {}\nCase::code(\"a_case_is_there\")"),
                Text::new("clients/python/test_a.py", "def test_a_client_(case):\n    def test_it_all(case):"),
            ]
        };
        assert_eq!(tests(&tree("`a_test_is_here`, `a_case_is_there` and `test_it_all`; `x/y.rs`, `lease`")), [""; 0]);
        assert_eq!(tests(&tree("`a_test_is_gone`")), ["docs/guarantees.md:1: no test is named `a_test_is_gone`"]);
        assert_eq!(tests(&[]).len(), 3);
    }

    #[test]
    fn metrics_are_both_documented_and_made() {
        let tree = |document: &str| {
            vec![
                Text::new("docs/metrics.md", document),
                Text::new(
                    "crates/layer/src/metrics.rs",
                    r#"counter!("onceward_a_total"); histogram!("onceward_b_seconds")"#,
                ),
            ]
        };
        assert_eq!(metrics(&tree("`onceward_a_total{route}` onceward_b_seconds_bucket onceward_core")), [""; 0]);
        assert_eq!(metrics(&tree("`onceward_a_total`")), ["no document names `onceward_b_seconds`"]);
        let unknown = "onceward_a_total onceward_b_seconds onceward_c_total";
        assert_eq!(metrics(&tree(unknown)), ["docs/metrics.md: no code makes `onceward_c_total`"]);
    }

    #[test]
    fn the_readme_lists_what_the_configuration_refuses() {
        let tree = |readme: &str| {
            let schema = "pub const NOT_AVAILABLE: &[(&str, &str)] = &[\n    (\"quota\", \"quotas\"),\n    \
                          (r#\"store.kind = \"redis\"\"#, \"Redis\"),\n];\n";
            vec![Text::new("README.md", readme), Text::new(SCHEMA, schema)]
        };
        let right =
            "# Onceward\n`x`\n## Not available yet\n- quotas: `quota`\n- `store.kind = \"redis\"`\n## Next\n`y`\n";
        assert_eq!(not_available(&tree(right)), [""; 0]);
        assert_eq!(not_available(&tree(&right.replace("`quota`", "quota"))).len(), 1);
        assert_eq!(not_available(&tree(&right.replace("quotas:", "`telemetry`"))).len(), 1);
        assert_eq!(not_available(&tree("# Onceward")).len(), 1);
        assert_eq!(not_available(&[]).len(), 1);
    }
}
