//! What keeps the core pure: it cannot name a clock or a socket, and gains no dependency unseen.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).expect(&path)
}

#[test]
fn the_dependencies_are_these_and_no_others() {
    let manifest = read("Cargo.toml");
    let mut section = "";
    let mut dependencies = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" && !line.is_empty() && !line.starts_with('#') {
            dependencies.push(line);
        }
        // A table of its own would be a way around this list.
        assert!(!line.starts_with("[dependencies.") && !line.starts_with("[target."), "{line}");
        assert!(!line.starts_with("[build-dependencies"), "{line}");
    }
    let pinned = ["base64", "blake3", "hmac", "prost", "ryu-js", "sha2", "thiserror", "xxhash-rust"];
    let expected: Vec<_> = pinned.iter().map(|name| format!("{name} = {{ workspace = true }}")).collect();
    assert_eq!(dependencies, expected, "a new dependency of the core needs its reason in the commit and its name here");
}

#[test]
fn no_dependency_brings_its_default_features() {
    let workspace = read("../../Cargo.toml");
    for name in ["base64", "blake3", "hmac", "prost", "ryu-js", "sha2", "thiserror", "xxhash-rust"] {
        let line = workspace.lines().find(|line| line.starts_with(&format!("{name} = ")));
        assert!(line.is_some_and(|line| line.contains("default-features = false")), "{name}: {line:?}");
    }
}

#[test]
fn the_crate_is_no_std() {
    let root = read("src/lib.rs");
    assert!(root.lines().any(|line| line == "#![no_std]"));
    for (number, line) in root.lines().enumerate().filter(|(_, line)| line.contains("extern crate std")) {
        let before = root.lines().nth(number.saturating_sub(1));
        assert_eq!(before, Some("#[cfg(test)]"), "{line}");
    }
}
