//! Checks that look at every file by itself.

use super::{file, lines};
use crate::tree::Text;

const README_LINES_MAX: usize = 150;

/// Absolute paths of somebody's machine.
pub(super) fn machine_paths(texts: &[Text]) -> Vec<String> {
    // Spelled in parts, so that this file passes its own check.
    let folders = ["work", "farm", "root", "home", "Users"].map(|folder| format!("/{folder}/"));
    lines(texts, |line| {
        folders.iter().any(|folder| {
            line.match_indices(folder.as_str()).any(|(at, _)| {
                let before = line.get(..at).and_then(|before| before.chars().next_back());
                !before.is_some_and(|before| before.is_alphanumeric() || "_.-})]*>/~$".contains(before))
            })
        })
    })
}

/// Hosts of package registries: clients are told names and versions, never places. The lock file of
/// cargo names its registry by itself.
pub(super) fn registry_hosts(texts: &[Text]) -> Vec<String> {
    let hosts = [["crates", "io"], ["pypi", "org"], ["pythonhosted", "org"], ["npmjs", "org"], ["npmjs", "com"]];
    let hosts = [hosts.map(|parts| parts.join(".")).to_vec(), vec![["deb", "debian", "org"].join(".")]].concat();
    let own = texts.iter().filter(|text| text.path != "Cargo.lock");
    own.flat_map(|text| lines(std::slice::from_ref(text), |line| hosts.iter().any(|host| line.contains(host.as_str()))))
        .collect()
}

/// What a merge left behind.
pub(super) fn conflicts(texts: &[Text]) -> Vec<String> {
    lines(texts, |line| ["<<<<<<< ", ">>>>>>> "].iter().any(|mark| line.starts_with(mark)))
}

/// `allow` attributes that give no reason.
pub(super) fn bare_allows(texts: &[Text]) -> Vec<String> {
    let mut found = Vec::new();
    for text in texts.iter().filter(|text| text.path.ends_with(".rs")) {
        for start in ["#[", "#!["].map(|open| format!("{open}allow")) {
            for (at, _) in text.text.match_indices(&start) {
                let attribute = text.text.get(at..).and_then(|rest| rest.split_once(']')).map_or("", |(head, _)| head);
                if !attribute.contains("reason") {
                    let line = text.text.get(..at).map_or(0, |before| before.lines().count());
                    found.push(format!("{}:{}: {attribute}]", text.path, line.max(1)));
                }
            }
        }
    }
    found
}

/// A README that nobody would read to its end.
pub(super) fn long_readme(texts: &[Text]) -> Vec<String> {
    let count = file(texts, "README.md").map_or(0, |readme| readme.text.lines().count());
    let long = count > README_LINES_MAX;
    if long { vec![format!("README.md has {count} lines, at most {README_LINES_MAX} are allowed")] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Vec<Text> {
        vec![Text::new("src/a.rs", &format!("first\n{line}\n"))]
    }

    #[test]
    fn a_path_of_a_machine_is_found_and_a_path_of_a_url_is_not() {
        let folder = ["", "root", "x"].join("/");
        for wrong in [folder.clone(), format!("see {folder}"), format!("\"{folder}\""), format!("({folder})")] {
            assert_eq!(machine_paths(&one(&wrong)), [format!("src/a.rs:2: {wrong}")]);
        }
        for right in [format!("http://host{folder}"), format!("a{folder}"), format!("../..{folder}"), "/v1/x".into()] {
            assert!(machine_paths(&one(&right)).is_empty(), "{right}");
        }
    }

    #[test]
    fn a_registry_is_found_everywhere_but_in_the_lock_file() {
        let host = ["https://index.crates", "io/"].join(".");
        assert_eq!(registry_hosts(&one(&host)).len(), 1);
        assert!(registry_hosts(&[Text::new("Cargo.lock", &host)]).is_empty());
        assert!(registry_hosts(&one("https://docs.rs/")).is_empty());
    }

    #[test]
    fn what_a_merge_left_behind_is_found() {
        let mark = format!("{} HEAD", "<".repeat(7));
        assert_eq!(conflicts(&one(&mark)).len(), 1);
        assert!(conflicts(&one("=======")).is_empty());
    }

    #[test]
    fn an_allow_needs_a_reason_on_whichever_line() {
        let allow = ["#[", "allow(dead_code"].concat();
        assert_eq!(bare_allows(&one(&format!("{allow})]"))).len(), 1);
        assert_eq!(bare_allows(&one(&(allow.replace("#[", "#![") + ")]"))).len(), 1);
        assert!(bare_allows(&one(&format!("{allow},\n reason = \"generated\")]"))).is_empty());
        assert!(bare_allows(&one("#[expect(dead_code, reason = \"x\")]")).is_empty());
    }

    #[test]
    fn a_readme_has_150_lines_at_most() {
        let readme = |lines: usize| vec![Text::new("README.md", &"x\n".repeat(lines))];
        assert!(long_readme(&readme(README_LINES_MAX)).is_empty());
        assert_eq!(long_readme(&readme(README_LINES_MAX + 1)).len(), 1);
    }
}
