//! What `onceward doctor` tells of a store's servers: one finding for each thing that a store takes for granted.

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Well,
    /// It works, and should be looked at; or nobody can tell.
    Doubtful,
    /// The store does not open, or promises more than the server keeps.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub grade: Grade,
    /// What was found, and how to mend it.
    pub said: String,
}

/// Findings in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn tell(&mut self, what: &'static str, grade: Grade, said: impl Into<String>) {
        self.0.push(Finding { what, grade, said: said.into() });
    }

    pub(crate) fn either(
        &mut self,
        what: &'static str,
        is_well: bool,
        well: impl Into<String>,
        grade: Grade,
        said: &str,
    ) {
        if is_well {
            self.tell(what, Grade::Well, well);
        } else {
            self.tell(what, grade, said);
        }
    }
}
