//! The configuration as a tree in which each value knows where it was given.

use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Problems, Source};

/// A value and where it stands. No `Debug`: it may be a secret.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) at: Origin,
    pub(super) value: Value,
}

#[derive(Clone)]
pub(super) enum Value {
    Text(String),
    /// None where it does not fit.
    Integer(Option<i64>),
    Float,
    Bool(bool),
    Datetime,
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key, where it stands, and its value. A table has each key once.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Origin,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn empty_table(at: Origin) -> Self {
        Self { at, value: Value::Table(Vec::new()) }
    }

    /// The member `key` where this is a table that has it.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.node)
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// What it is, for "must be …, not a table".
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "a text",
            Value::Integer(_) => "a number",
            Value::Float => "a number with a fraction",
            Value::Bool(_) => "true or false",
            Value::Datetime => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Reads TOML; syntax errors go to `problems`, and there is no tree then.
pub(super) fn parse(source: &Source<'_>, problems: &mut Problems<'_>) -> Option<Node> {
    const SYNTAX_ERRORS_MAX: usize = 5;
    let (table, errors) = DeTable::parse_recoverable(source.text);
    if errors.is_empty() {
        let table = table.into_inner();
        return Some(Node { at: Origin::Whole, value: Value::Table(entries(&table)) });
    }
    // What follows a first error on its line is mostly its echo. The library's own rendering quotes
    // the line, which may hold a secret: only its message is shown.
    let mut last_line = None;
    let mut told = 0;
    // Each costs a look over the text before it.
    for error in errors.iter().take(SYNTAX_ERRORS_MAX * 10) {
        let offset = error.span().map_or(0, |span| span.start);
        let line = source.text.as_bytes().iter().take(offset).filter(|&&b| b == b'\n').count();
        if last_line == Some(line) || told == SYNTAX_ERRORS_MAX {
            continue;
        }
        last_line = Some(line);
        told += 1;
        problems.error(&Origin::Offset(offset), format!("not TOML: {}", error.message()));
    }
    None
}

/// Reads one TOML value, all parts of which stand at `at`. None where it is not one.
pub(super) fn parse_value(text: &str, at: &Origin) -> Option<Node> {
    let document = format!("value = {text}");
    let table = DeTable::parse(&document).ok()?.into_inner();
    let mut entries = entries(&table);
    if entries.len() != 1 {
        return None;
    }
    let mut node = entries.pop()?.node;
    set_origin(&mut node, at);
    Some(node)
}

fn set_origin(node: &mut Node, at: &Origin) {
    node.at = at.clone();
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| set_origin(item, at)),
        Value::Table(entries) => {
            for entry in entries {
                entry.at = at.clone();
                set_origin(&mut entry.node, at);
            }
        }
        Value::Text(_) | Value::Integer(_) | Value::Float | Value::Bool(_) | Value::Datetime => {}
    }
}

/// In the order of the file.
fn entries(table: &DeTable<'_>) -> Vec<Entry> {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let node = Node { at: Origin::Offset(value.span().start), value: convert(value.get_ref()) };
            (start, Entry { key: key.get_ref().to_string(), at: Origin::Offset(start), node })
        })
        .collect();
    entries.sort_by_key(|(start, _)| *start);
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn convert(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(bool) => Value::Bool(*bool),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| Node { at: Origin::Offset(item.span().start), value: convert(item.get_ref()) })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(entries(table)),
    }
}
