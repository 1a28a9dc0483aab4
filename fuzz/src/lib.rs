//! What comes from outside, in forms that nobody thought of: keys, bodies, records, logs, configuration, HTTP/1.
//!
//! Each target takes any bytes and panics where something is wrong that must never be. It returns the shape of what
//! happened, so that a run without coverage can tell an input that did something new.
//!
//! # Layout
//!
//! `targets` one file each · [`run`] the run that CI has, on stable Rust and without anything else · [`mutate`] how inputs
//! are changed · `guided.rs` the entry for libFuzzer. Corpora are in `corpus/TARGET`, inputs that once broke something in
//! `regressions/TARGET`: the tests of this crate run both.

pub mod mutate;
pub mod run;
mod targets;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

pub use targets::log::make_bases;

/// Something that takes bytes from outside.
#[derive(Clone, Copy)]
pub struct Target {
    /// As it is typed, and as its folders are called.
    pub name: &'static str,
    /// Panics where the input breaks it; else the shape of what happened.
    pub run: fn(&[u8]) -> u64,
    /// The longest input that is tried, in bytes.
    pub bytes_max: usize,
    /// Pieces that inputs are made of.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    targets::key::TARGET,
    targets::canonical::TARGET,
    targets::record::TARGET,
    targets::log::TARGET,
    targets::config::TARGET,
    targets::http1::TARGET,
];

impl Target {
    /// The inputs in `folder/NAME` beside this crate's source: names and contents, sorted by name.
    ///
    /// # Errors
    /// Where the folder cannot be read; one that is not there holds nothing.
    pub fn inputs(&self, folder: &str) -> std::io::Result<Vec<(String, Vec<u8>)>> {
        let folder = self.folder(folder);
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut inputs = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            inputs.push((name, std::fs::read(path)?));
        }
        inputs.sort();
        Ok(inputs)
    }

    /// Where its inputs of a kind are.
    #[must_use]
    pub fn folder(&self, kind: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(kind).join(self.name)
    }
}

/// A number for what happened: equal for what is alike.
fn shape(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
