//! How a store call fails: what kind of failure, and whether it took effect all the same.

pub use onceward_core::claim::Applied;

/// A store call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{kind}{}", if *.applied == Applied::Unknown { ", and it is unknown whether the write was applied" } else { "" })]
pub struct StoreError {
    /// What happened.
    pub kind: Kind,
    /// Whether the write took effect.
    pub applied: Applied,
    /// The failure underneath.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of failure it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Kind {
    /// It did not answer, or not in time.
    #[error("the store is unavailable")]
    Unavailable,
    /// At its bound: new claims are refused, nothing is evicted.
    #[error("the store is full: new claims are refused until records end")]
    Full,
    /// It would take it, and was told not to for records of this route ([`Store::fall_back`](crate::Store::fall_back)).
    #[error("the store takes no claim of this route for now")]
    Declined,
    /// A record's bytes are not those that were written.
    #[error("a record is damaged: {0}")]
    Damaged(String),
    /// The store lost its contents, or is another one, since it was opened.
    #[error("the store is not the one that was opened: its incarnation has changed")]
    Incarnation,
    /// This process was declared over, or was never let in.
    #[error("this process's session is over")]
    SessionOver,
    /// The store's clock has jumped.
    #[error("the store's clock is not to be trusted: {0}")]
    ClockSuspect(String),
    /// A replica or standby, which must not decide.
    #[error("the store is not a primary")]
    NotPrimary,
    /// The step met another write each time it was tried.
    #[error("the store is too busy: the step met another write each time")]
    Conflict,
    /// Records or metadata of a later version.
    #[error("the store's data is of a later version: {0}")]
    Newer(String),
}

impl StoreError {
    /// A failure before anything was written.
    #[must_use]
    pub fn not_applied(kind: Kind) -> Self {
        Self { kind, applied: Applied::No, source: None }
    }

    /// A failure of which nobody knows whether the write was applied.
    #[must_use]
    pub fn unknown(kind: Kind) -> Self {
        Self { kind, applied: Applied::Unknown, source: None }
    }

    /// With the failure underneath, in one line.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn in_words(&self) -> String {
        match &self.source {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    /// The same with the failure underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}
