//! Where things are: the repository's root, its tracked files, its packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    root().join(folder)
}

/// A path as it can be pasted at the root.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// A text file of the tree.
pub(crate) struct Text {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Text {
    /// For tests of the checks.
    #[cfg(test)]
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }
}

/// Every text file that is tracked, or new and not ignored.
///
/// # Errors
/// Where git cannot list them.
pub(crate) fn texts() -> anyhow::Result<Vec<Text>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .context("git ls-files")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).context("a file's name is not UTF-8")?;
    let paths = listed.split('\0').filter(|path| !path.is_empty());
    // What is deleted but still in the index, and what is not text, is nothing to read.
    let texts = paths.filter_map(|path| {
        Some(Text { path: path.to_owned(), text: std::fs::read_to_string(root().join(path)).ok()? })
    });
    Ok(texts.collect())
}

/// A package of the workspace.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) features: Vec<String>,
    /// Names of the packages it depends on, of every kind, tests' too.
    pub(crate) dependencies: Vec<String>,
    pub(crate) is_library: bool,
}

/// The workspace's packages.
///
/// # Errors
/// Where cargo cannot tell.
pub(crate) fn packages() -> anyhow::Result<Vec<Package>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(metadata.get("packages").unwrap_or(&Value::Null));
    let packages = packages.iter().map(|package| {
        let field = |name: &str| package.get(name).cloned().unwrap_or_default();
        Package {
            name: text(&field("name")),
            features: field("features").as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default(),
            dependencies: list(&field("dependencies")).iter().filter_map(|one| one.get("name").map(text)).collect(),
            is_library: list(&field("targets")).iter().any(|target| {
                target.get("kind").is_some_and(|kinds| list(kinds).iter().any(|kind| kind.as_str() == Some("lib")))
            }),
        }
    });
    Ok(packages.collect())
}
