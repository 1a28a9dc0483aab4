//! `cargo xtask conformance --list`: every conformance case, its rules, and where it runs.

use onceward_store::conformance;

/// Prints one line a case.
///
/// # Errors
/// Where a name of the guarantees has no case, or one that runs nowhere.
pub(crate) fn list() -> anyhow::Result<()> {
    let subjects = conformance::subjects();
    let listed = conformance::list(&subjects);
    print!("{listed}");
    let (lines, count) = (listed.lines().count(), conformance::NAMES.len());
    anyhow::ensure!(lines == count, "the list has {lines} cases, the guarantees name {count}");
    let wrong = conformance::check(&subjects);
    anyhow::ensure!(wrong.is_empty(), "the conformance list is not whole:\n{}", wrong.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_every_name_and_says_where_it_runs() {
        list().unwrap();
        let listed = conformance::list(&conformance::subjects());
        for name in conformance::NAMES {
            let line = listed.lines().find(|line| line.split_whitespace().nth(1) == Some(*name));
            assert!(line.is_some_and(|line| line.contains("memory")), "{name}: {line:?}");
        }
        assert_eq!(listed.lines().count(), conformance::NAMES.len());
    }
}
