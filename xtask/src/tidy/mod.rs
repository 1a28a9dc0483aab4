//! `cargo xtask tidy`: the rules of the tree that no compiler knows.
//!
//! Each check takes texts and returns what is wrong, one line each, so that its test can hand it a
//! tree of its own. [`text`] looks at every file, [`names`] holds documents and code to each other,
//! [`contract`] holds `docs/protocol.md` to what is built, [`alerts`] the alerts to both, [`arrows`] looks at who depends on whom.

pub(crate) mod alerts;
mod arrows;
mod contract;
mod names;
mod text;

use anyhow::ensure;

use crate::tree::{self, Text};

/// Runs every check on the tree.
///
/// # Errors
/// Where one finds something, or the tree cannot be read.
pub(crate) fn run() -> anyhow::Result<()> {
    let texts = tree::texts()?;
    let packages = tree::packages()?;
    let checks: Vec<(&str, Vec<String>)> = vec![
        ("no path of a machine", text::machine_paths(&texts)),
        ("no host of a registry", text::registry_hosts(&texts)),
        ("no conflict left in a file", text::conflicts(&texts)),
        ("no bare allow", text::bare_allows(&texts)),
        ("the README is short", text::long_readme(&texts)),
        ("arrows between crates", arrows::backward(&packages)),
        ("names in ARCHITECTURE.md", names::architecture(&texts)),
        ("tests in docs/guarantees.md and its kin", names::tests(&texts)),
        ("metrics", names::metrics(&texts)),
        ("alerts in deploy/prometheus", alerts::alerts(&texts)),
        ("what is not available", names::not_available(&texts)),
        ("marks in docs/protocol.md", contract::marks(&texts)),
        ("a case for each row of docs/protocol.md", crate::contract::gaps(&texts)),
        ("problems in docs/protocol.md", contract::problems(&texts)),
    ];
    let mut wrong = 0;
    for (check, found) in &checks {
        println!("{} {check}", if found.is_empty() { "ok    " } else { "WRONG " });
        found.iter().for_each(|line| println!("       {line}"));
        wrong += found.len();
    }
    ensure!(wrong == 0, "tidy found {wrong} things");
    Ok(())
}

/// The file at `path`, if it is there.
fn file<'a>(texts: &'a [Text], path: &str) -> Option<&'a Text> {
    texts.iter().find(|text| text.path == path)
}

/// Each line that `is_wrong`, as `path:line: text`.
fn lines(texts: &[Text], is_wrong: impl Fn(&str) -> bool) -> Vec<String> {
    let of = |text: &Text| {
        let found = text.text.lines().enumerate().filter(|(_, line)| is_wrong(line));
        found.map(|(at, line)| format!("{}:{}: {}", text.path, at + 1, line.trim())).collect::<Vec<_>>()
    };
    texts.iter().flat_map(of).collect()
}
