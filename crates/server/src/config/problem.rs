//! What is wrong with a configuration, and where.

use std::{fmt, io, path::PathBuf};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// In a file.
    Line {
        /// The file's name as it was given.
        file: String,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
    },
    /// The file as a whole.
    File(String),
    /// In an environment variable of this name.
    Variable(String),
    /// In a flag of this name, dashes included.
    Flag(&'static str),
    /// Nowhere: it is missing, and there is no file.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::File(file) => f.write_str(file),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// One thing that is wrong, or worth a look.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What, and how to mend it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read: {source}{hint}", file.display())]
    Unreadable {
        /// The file as it was named.
        file: PathBuf,
        /// What to do, empty or starting with a semicolon.
        hint: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It was read, and is not right. One problem a line, in the order of the file.
    #[error("{}", lines(problems))]
    Invalid {
        /// At least one, at most [`PROBLEMS_MAX`] and one that counts the others.
        problems: Vec<Problem>,
    },
}

/// How many problems are told at once.
pub const PROBLEMS_MAX: usize = 50;

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Where a value comes from, before its line is looked up.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// A byte of the file.
    Offset(usize),
    Variable(String),
    Flag(&'static str),
    /// The file as a whole, or the command line where there is none.
    Whole,
}

/// The file's name and text, to find lines and columns.
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// Line and column of a byte.
    pub(super) fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = self.text.get(..offset).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        let mut column = before.get(start..).unwrap_or_default().chars().count() + 1;
        if line == 1 && before.starts_with('\u{feff}') {
            column -= 1;
        }
        Place::Line { file: self.name.to_owned(), line, column }
    }
}

/// Collects what is wrong.
pub(super) struct Problems<'a> {
    source: Option<Source<'a>>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    left_out: usize,
}

impl<'a> Problems<'a> {
    pub(super) fn new(source: Option<Source<'a>>) -> Self {
        Self { source, errors: Vec::new(), warnings: Vec::new(), left_out: 0 }
    }

    pub(super) fn place(&self, origin: &Origin) -> Place {
        match (origin, &self.source) {
            (Origin::Offset(offset), Some(source)) => source.place(*offset),
            (Origin::Variable(name), _) => Place::Variable(name.clone()),
            (Origin::Flag(name), _) => Place::Flag(name),
            (Origin::Whole | Origin::Offset(_), None) => Place::CommandLine,
            (Origin::Whole, Some(source)) => Place::File(source.name.to_owned()),
        }
    }

    pub(super) fn error(&mut self, origin: &Origin, message: String) {
        // A line is looked up for those only that are told.
        if self.is_full() {
            self.left_out += 1;
            return;
        }
        let problem = Problem { place: self.place(origin), message };
        if !self.errors.contains(&problem) {
            self.errors.push(problem);
        }
    }

    pub(super) fn warn(&mut self, origin: &Origin, message: String) {
        if self.warnings.len() < PROBLEMS_MAX {
            let problem = Problem { place: self.place(origin), message };
            if !self.warnings.contains(&problem) {
                self.warnings.push(problem);
            }
        }
    }

    /// Whether further errors are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.errors.len() >= PROBLEMS_MAX
    }

    pub(super) fn count(&self) -> usize {
        self.errors.len() + self.left_out
    }

    /// Errors and warnings, each in the order of the file.
    pub(super) fn finish(mut self) -> (Vec<Problem>, Vec<Problem>) {
        self.errors.sort();
        self.warnings.sort();
        if self.left_out > 0 {
            let message = format!("{} more problems; mend these first", self.left_out);
            self.errors.push(Problem { place: self.place(&Origin::Whole), message });
        }
        (self.errors, self.warnings)
    }
}
