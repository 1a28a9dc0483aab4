//! What a row comes to, for people and for programs.

use std::path::Path;

use anyhow::Context;

/// A row's result.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: &'static str,
    /// Ratios with their aims, then the figures that they come from.
    pub(crate) text: String,
    /// The same by name, units last.
    pub(crate) figures: Vec<(&'static str, f64)>,
}

impl Line {
    pub(crate) fn print(&self) {
        println!("{:<7} {}", self.name, self.text);
    }
}

/// Writes all rows as a JSON object by name.
///
/// # Errors
/// Where the file cannot be written.
pub(crate) fn write_json(path: &Path, lines: &[Line]) -> anyhow::Result<()> {
    let figures =
        |line: &Line| line.figures.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    let rows: serde_json::Map<String, serde_json::Value> =
        lines.iter().map(|line| (line.name.to_owned(), serde_json::Value::Object(figures(line)))).collect();
    let text = serde_json::to_string_pretty(&rows)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// An aim, and whether it is missed.
pub(crate) fn aim(word: &str, bound: f64, met: bool) -> String {
    format!(" ({word} {bound}{})", if met { "" } else { ", missed" })
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    percentile(&mut values, 0.5)
}

/// The value that so large a part of the others does not exceed.
pub(crate) fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
