//! Who may depend on whom: `core ← store ← layer ← server`, and nothing points back.

use crate::tree::Package;

/// The library crates, each after those that it may use. Packages that are not among them (tasks,
/// measurements, simulations) may use all, and no library may use them.
const ORDER: &[&str] = &["onceward-core", "onceward-store", "onceward", "onceward-server"];
/// Starts real servers for tests, and knows none of the others: everybody's tests may ask for it.
const SERVERS: &str = "servers";

/// Dependencies that point back, those of tests included.
pub(super) fn backward(packages: &[Package]) -> Vec<String> {
    let place = |name: &str| ORDER.iter().position(|crate_name| *crate_name == name);
    let is_ours = |name: &str| packages.iter().any(|package| package.name == name);
    let mut found = Vec::new();
    for package in packages {
        if package.name == SERVERS {
            let others = package.dependencies.iter().filter(|name| is_ours(name));
            found.extend(others.map(|other| format!("{SERVERS} must not depend on {other}")));
        }
        let Some(at) = place(&package.name) else { continue };
        // A crate's tests may ask for the crate itself with a feature of it.
        let others = package.dependencies.iter().filter(|name| is_ours(name) && **name != package.name);
        let others = others.filter(|name| **name != SERVERS);
        for dependency in others {
            if place(dependency).is_none_or(|other| other >= at) {
                found.push(format!("{} must not depend on {dependency}", package.name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies.iter().map(|name| (*name).to_owned()).collect();
        Package { name: name.into(), features: Vec::new(), dependencies, is_library: true }
    }

    #[test]
    fn a_crate_uses_only_those_before_it() {
        let right = [
            package("onceward-core", &["bytes"]),
            package("onceward-store", &["onceward-core", "onceward-store"]),
            package("onceward-server", &["onceward-core", "onceward-store"]),
            package("bench", &["onceward-server"]),
            package("servers", &["anyhow"]),
            package("onceward", &["onceward-store", "servers"]),
        ];
        assert!(backward(&right).is_empty());
        let wrong = [
            package("onceward-core", &["onceward-store"]),
            package("onceward-store", &["bench"]),
            package("bench", &[]),
            package("servers", &["bench"]),
        ];
        assert_eq!(
            backward(&wrong),
            [
                "onceward-core must not depend on onceward-store",
                "onceward-store must not depend on bench",
                "servers must not depend on bench"
            ]
        );
    }
}
